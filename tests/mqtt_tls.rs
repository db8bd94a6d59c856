//! MQTT over TLS: devices that verify, certificates that change, and bad handshakes.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::{Config, Network};
use mqtt_websocket_proxy::net::{BindError, Running};
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use openssl::ssl::{SslConnector, SslStream};
use openssl::symm::Cipher;
use support::chat_server::{ChatServer, audio_frame};
use support::device::{Device, client_id};
use support::host::{device_over, wait_until};
use support::http::{http_call, metric_sum};
use support::log_capture::LogCapture;
use support::mqtt::{Client, Connect, PacketError};
use support::tls::{CertificateAuthority, CertificateFiles, CertifiedKey, new_key};
use support::{TIMEOUT, config, gateway_with};

const NO_SERVERS: [&str; 0] = [];

impl CertificateFiles {
    fn configure(&self, config: &mut Config) {
        config.mqtt.tls.port = 0;
        config.mqtt.tls.cert_file = Some(self.cert());
        config.mqtt.tls.key_file = Some(self.key());
    }

    fn gateway(&self, change: impl FnOnce(&mut Config)) -> Running {
        self.gateway_to(&NO_SERVERS, change)
    }

    fn gateway_to<U: AsRef<str>>(&self, urls: &[U], change: impl FnOnce(&mut Config)) -> Running {
        gateway_with(urls, |config| {
            self.configure(config);
            change(config);
        })
    }

    fn connect(&self, gateway: &Running) -> SslStream<TcpStream> {
        tls_connect(&self.authority.client(), tcp_connect(mqtts_addr(gateway))).unwrap()
    }

    fn device(&self, gateway: &Running, number: u8) -> Device {
        device_over(self.connect(gateway), number)
    }

    /// The error of a gateway that cannot start with these files.
    fn start_error(&self) -> String {
        let mut config = config(&NO_SERVERS);
        self.configure(&mut config);
        let error = Running::start(config, None).unwrap_err();
        assert!(matches!(error, BindError::Certificate(..)), "{error}");
        error.to_string()
    }
}

fn mqtts_addr(gateway: &Running) -> SocketAddr {
    gateway.addresses().mqtts.unwrap()
}

fn tcp_connect(addr: SocketAddr) -> TcpStream {
    let tcp = TcpStream::connect_timeout(&addr, TIMEOUT).unwrap();
    tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
    tcp.set_write_timeout(Some(TIMEOUT)).unwrap();
    tcp
}

/// A verified TLS connection, or the error.
fn tls_connect(connector: &SslConnector, tcp: TcpStream) -> Result<SslStream<TcpStream>, String> {
    connector.connect("127.0.0.1", tcp).map_err(|error| error.to_string())
}

/// The connection ends, with or without a reset.
fn assert_closed(mut tcp: TcpStream) {
    let mut rest = Vec::new();
    let _ = tcp.read_to_end(&mut rest);
    assert_ne!(tcp.read(&mut [0]).ok(), Some(1));
}

#[test]
fn a_whole_call_goes_over_a_verified_connection() {
    let (server, files) = (ChatServer::start(), CertificateFiles::new());
    let gateway = files.gateway_to(&[server.url()], |_| {});
    let mut device = files.device(&gateway, 1);
    let (mut call, mut peer) = device.call(&server);
    for n in 0..50 {
        call.send(n, b"\x58up");
        assert_eq!(peer.binary(), audio_frame(n, b"\x58up"));
        peer.send_audio(n, b"\x58down");
        assert_eq!(call.receive().payload, b"\x58down");
    }
    // Both longer than a TLS record, and than one read.
    let long = format!(r#"{{"type":"x","session_id":"server-session","long":"{}"}}"#, "y".repeat(60_000));
    for _ in 0..20 {
        peer.send_text(&long);
        device.send_text(&long);
        assert_eq!(device.mqtt.text(), long);
        // No record is left unread in the TLS library.
        assert_eq!(peer.text(), long);
    }
    // The plain port is open too.
    Device::connect(gateway.addresses().mqtt, 2).mqtt.assert_nothing_pending();
    device.send_text(r#"{"type":"goodbye"}"#);
    peer.expect_close(1000);
    device.mqtt.send(&support::mqtt::DISCONNECT);
    // TLS is closed properly.
    assert_eq!(device.mqtt.read_until_closed(), []);
    let support::mqtt::ClientStream::Tls(tls) = &mut device.mqtt.stream else { unreachable!() };
    assert_eq!(tls.get_shutdown(), openssl::ssl::ShutdownState::RECEIVED);
}

#[test]
fn a_client_that_does_not_know_the_authority_refuses() {
    let files = CertificateFiles::new();
    let mut log = LogCapture::containing("no TLS connection");
    let gateway = files.gateway(|_| {});
    let why =
        tls_connect(&CertificateAuthority::new().client(), tcp_connect(mqtts_addr(&gateway))).unwrap_err();
    assert!(why.contains("certificate verify failed"), "{why}");
    // Both authorities have the same name, so only the signature is wrong.
    log.wait_for_line("alert decrypt error");
    files.device(&gateway, 1).mqtt.assert_nothing_pending();
}

#[test]
fn tls_can_take_the_place_of_the_plain_port() {
    let files = CertificateFiles::new();
    let gateway = files.gateway(|config| config.mqtt.plain = false);
    assert_eq!(Some(gateway.addresses().mqtt), gateway.addresses().mqtts);
    files.device(&gateway, 1).mqtt.assert_nothing_pending();
}

#[test]
fn a_refused_login_gets_its_return_code_over_tls_too() {
    let files = CertificateFiles::new();
    let gateway = files.gateway(|config| {
        config.mqtt.signature_key = mqtt_websocket_proxy::config::Secret::new("A-good-Key");
    });
    let mut client = Client::from(files.connect(&gateway));
    client.send(&Connect::new(&client_id(1)).packet());
    let packets = client.read_until_closed();
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].body, [0, 4]);
}

#[test]
fn keys_in_older_forms_are_read() {
    let files = CertificateFiles::new();
    let ec = new_key();
    let rsa = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let sec1 = ec.ec_key().unwrap().private_key_to_pem().unwrap();
    let parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    for (pem, key) in [
        (rsa.rsa().unwrap().private_key_to_pem().unwrap(), rsa),
        (sec1.clone(), ec.clone()),
        ([&parameters[..], &sec1].concat(), ec.clone()),
    ] {
        files.write(&files.authority.issue_for("127.0.0.1", key, -1, 30));
        fs::write(files.key(), &pem).unwrap();
        let gateway = files.gateway(|_| {});
        files.device(&gateway, 1).mqtt.assert_nothing_pending();
    }
}

#[test]
fn certificate_file_errors_are_reported_at_start() {
    let files = CertificateFiles::new();
    let pair = files.authority.issue("127.0.0.1");
    let other = new_key();
    let encrypted = pair.key.private_key_to_pem_pkcs8_passphrase(Cipher::aes_128_cbc(), b"x").unwrap();
    let rsa = Rsa::generate(2048).unwrap();
    let classic = rsa.private_key_to_pem_passphrase(Cipher::aes_128_cbc(), b"x").unwrap();
    let (cert, key) = (pair.certificate_pem(), pair.key_pem());
    let command =
        |key: &PathBuf| format!("openssl pkcs8 -topk8 -nocrypt -in {0} -out {0}.pk8", key.display());
    for (cert, key, parts) in [
        (
            Vec::new(),
            key.clone(),
            vec!["cert_file", "cert.pem is not a list of PEM certificates: there is none"],
        ),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec(),
            key.clone(),
            vec!["cert.pem is not a list"],
        ),
        (key.clone(), key.clone(), vec!["there is none in it"]),
        (cert.clone(), Vec::new(), vec!["key_file", "key.pem contains no PEM private key: there is none"]),
        (cert.clone(), cert.clone(), vec!["key.pem contains no PEM private key: there is none"]),
        (
            cert.clone(),
            b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n".to_vec(),
            vec!["key.pem contains no PEM private key"],
        ),
        (cert.clone(), encrypted, vec!["is encrypted", &command(&files.key())]),
        (cert.clone(), classic, vec!["is encrypted", &command(&files.key())]),
        (cert.clone(), other.private_key_to_pem_pkcs8().unwrap(), vec!["key.pem does not match", "cert.pem"]),
    ] {
        fs::write(files.cert(), cert).unwrap();
        fs::write(files.key(), key).unwrap();
        let refusal = files.start_error();
        for part in parts {
            assert!(refusal.contains(part), "{part:?} in {refusal}");
        }
        assert!(!refusal.contains('\n'), "{refusal}");
    }
    fs::remove_file(files.key()).unwrap();
    assert!(files.start_error().contains("mqtt.tls.key_file: "), "{}", files.start_error());
    fs::remove_file(files.cert()).unwrap();
    assert!(files.start_error().contains("cert.pem cannot be read: No such file"), "{}", files.start_error());
}

#[test]
fn certificates_that_devices_may_reject_are_warned_about_but_served() {
    let files = CertificateFiles::new();
    let intermediate = files.authority.intermediate();
    let expired = files.authority.issue_for("expired.example", new_key(), -9, -2);
    let early = files.authority.issue_for("early.example", new_key(), 2, 9);
    let alone = intermediate.issue("alone.example");
    let whole = intermediate.issue("whole.example");
    let soon = files.authority.issue_for("soon.example", new_key(), -9, 13);
    let itself = CertificateAuthority::self_signed("self.example");
    let with = |pair: &CertifiedKey, authority: &CertificateAuthority| {
        [pair.certificate_pem(), authority.pem()].concat()
    };
    for (pair, pem, name, line) in [
        (
            &expired,
            with(&expired, &files.authority),
            "expired.example",
            "ERROR mqtt.tls: the certificate for expired.example expired on",
        ),
        (
            &early,
            with(&early, &files.authority),
            "early.example",
            "WARN mqtt.tls: the certificate for early.example is not valid before",
        ),
        (
            &alone,
            alone.certificate_pem(),
            "alone.example",
            "not followed by that of its issuer, Test intermediate",
        ),
        (
            &whole,
            with(&whole, &intermediate),
            "whole.example",
            "WARN mqtt.tls: the certificate for whole.example comes from Test authority, which is none of the public",
        ),
        (&soon, with(&soon, &files.authority), "soon.example", "expires on"),
        (&itself, itself.certificate_pem(), "self.example", "is self-signed"),
    ] {
        fs::write(files.cert(), pem).unwrap();
        fs::write(files.key(), pair.key_pem()).unwrap();
        let mut log = LogCapture::containing(name);
        let gateway = files.gateway(|_| {});
        log.wait_for_line("INFO TLS certificate");
        log.wait_for_line(line);
        // A device that does not verify can connect with each of them.
        let mut connector = files.authority.client().configure().unwrap();
        connector.set_verify(openssl::ssl::SslVerifyMode::NONE);
        let tls = connector.connect("127.0.0.1", tcp_connect(mqtts_addr(&gateway))).unwrap();
        device_over(tls, 1).mqtt.assert_nothing_pending();
    }
}

#[test]
fn a_chain_is_sent_whole() {
    let files = CertificateFiles::new();
    let intermediate = files.authority.intermediate();
    let pair = intermediate.issue("127.0.0.1");
    fs::write(files.cert(), [pair.certificate_pem(), intermediate.pem()].concat()).unwrap();
    fs::write(files.key(), pair.key_pem()).unwrap();
    let gateway = files.gateway(|_| {});
    files.device(&gateway, 1).mqtt.assert_nothing_pending();
}

/// The name in the gateway's certificate.
fn served_certificate(files: &CertificateFiles, gateway: &Running) -> Option<Vec<u8>> {
    let tls = tls_connect(&files.authority.client(), TcpStream::connect(mqtts_addr(gateway)).ok()?).ok()?;
    tls.ssl().peer_certificate().map(|certificate| certificate.to_pem().unwrap())
}

#[test]
fn a_certificate_is_renewed_under_load_and_nobody_is_dropped() {
    let files = CertificateFiles::new();
    let gateway = files.gateway(|_| {});
    let device = |number| {
        let mut device = files.device(&gateway, number);
        device.say_something();
        device
    };
    let mut devices: Vec<_> = (0..30).map(device).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Connects all the time, and never fails.
        let load = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                files.device(&gateway, 200).mqtt.assert_nothing_pending();
                rounds += 1;
            }
            rounds
        });
        for _ in 0..2 {
            let new = files.authority.issue("127.0.0.1");
            let pem = new.certificate_pem();
            let mut log = LogCapture::containing("the TLS certificate in use stays");
            fs::write(files.cert(), &pem).unwrap();
            // Half renewed files change nothing.
            log.wait_for_line("key.pem does not match the first certificate in");
            assert_ne!(served_certificate(&files, &gateway), Some(pem.clone()));
            fs::write(files.key(), new.key_pem()).unwrap();
            wait_until("the new certificate", || served_certificate(&files, &gateway) == Some(pem.clone()));
        }
        over.store(true, Ordering::Relaxed);
        assert!(load.join().unwrap() > 0);
    });
    devices.iter_mut().for_each(|device| device.mqtt.assert_nothing_pending());
}

#[test]
fn a_reload_takes_new_files_or_refuses_and_switches_tls_on_and_off() {
    let (files, others) = (CertificateFiles::new(), CertificateFiles::new());
    let mut config = config(&NO_SERVERS);
    config.mqtt.max_connections = 77;
    config.mqtt.host = support::process_loopback_ip().into();
    let gateway = Running::start(config.clone(), None).unwrap();
    assert_eq!(gateway.addresses().mqtts, None);
    // Enabled, on a port that stays free.
    let addr = support::closed_port();
    let port = addr.port();
    files.configure(&mut config);
    config.mqtt.tls.port = port;
    gateway.handle().reload(config.clone());
    wait_until("TLS is on", || TcpStream::connect(addr).is_ok());
    let mut device = device_over(tls_connect(&files.authority.client(), tcp_connect(addr)).unwrap(), 1);
    // Other files.
    others.configure(&mut config);
    config.mqtt.tls.port = port;
    gateway.handle().reload(config.clone());
    wait_until("other files", || tls_connect(&others.authority.client(), tcp_connect(addr)).is_ok());
    // Files that cannot be used change nothing.
    let mut log = LogCapture::containing("nowhere.pem");
    let mut bad = config.clone();
    bad.mqtt.tls.key_file = Some("nowhere.pem".into());
    gateway.handle().reload(bad);
    log.wait_for_line("ERROR reload: nothing changes: mqtt.tls.key_file");
    tls_connect(&others.authority.client(), tcp_connect(addr)).unwrap();
    // Nor does an expired certificate.
    let mut log = LogCapture::containing(others.cert().display().to_string());
    others.write(&others.authority.issue_for("127.0.0.1", new_key(), -9, -2));
    log.wait_for_line("has expired");
    tls_connect(&others.authority.client(), tcp_connect(addr)).unwrap();
    // Disabled.
    config.mqtt.tls.cert_file = None;
    config.mqtt.tls.key_file = None;
    gateway.handle().reload(config);
    wait_until("TLS is off", || TcpStream::connect(addr).is_err());
    device.mqtt.assert_nothing_pending();
    Device::connect(gateway.addresses().mqtt, 2).mqtt.assert_nothing_pending();
}

#[test]
fn a_new_connection_evicts_the_oldest_unfinished_handshake() {
    let files = CertificateFiles::new();
    let gateway = files.gateway(|config| config.mqtt.tls.max_handshakes = 5);
    let api = gateway.addresses().api.unwrap();
    let start = Instant::now();
    let silent: Vec<_> = (0..10).map(|_| tcp_connect(mqtts_addr(&gateway))).collect();
    let mut stalled: Vec<_> = (0..15)
        .map(|_| {
            let mut tcp = tcp_connect(mqtts_addr(&gateway));
            tcp.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
            tcp
        })
        .collect();
    let closed_for_others = || metric_sum(api, "gateway_connections_closed_for_others_total{", None);
    // Until all have begun.
    wait_until("ten are closed", || closed_for_others() >= 10.0 || start.elapsed() > Duration::from_secs(9));
    let mut device = files.device(&gateway, 1);
    let closed_for_others = closed_for_others();
    // The others are still open, and so are those that have sent nothing.
    let is_open = |tcp: &TcpStream| {
        tcp.set_nonblocking(true).unwrap();
        tcp.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    let others_are_open = stalled[11..].iter().chain(&silent).all(is_open);
    if start.elapsed() > Duration::from_secs(9) {
        return eprintln!("SKIPPED: this machine is too slow: {:?}, and each has 10 s", start.elapsed());
    }
    assert!(closed_for_others == 11.0 && others_are_open, "{closed_for_others}");
    stalled.drain(..11).for_each(assert_closed);
    device.mqtt.assert_nothing_pending();
}

#[test]
fn a_stalled_handshake_ends_in_bounded_time() {
    let files = CertificateFiles::new();
    let gateway = files.gateway(|_| {});
    let start = Instant::now();
    let mut stalled = tcp_connect(mqtts_addr(&gateway));
    let mut log = LogCapture::containing(stalled.local_addr().unwrap().to_string());
    stalled.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
    assert_closed(stalled);
    assert!(start.elapsed() > Duration::from_secs(9), "{:?}", start.elapsed());
    log.wait_for_line("closed: no CONNECT in time");
}

#[test]
fn input_that_is_not_tls_is_closed_at_once_and_logged_at_a_limited_rate() {
    let files = CertificateFiles::new();
    let mut log = LogCapture::containing("no TLS connection");
    let gateway = files.gateway(|_| {});
    let connect = Connect::new(&client_id(1)).packet();
    for garbage in [
        &connect[..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 100],
        &[22, 3, 1, 0, 4, 9, 0, 0, 0],
        &[22, 9, 9, 0, 4, 1, 0, 0, 0],
    ] {
        for _ in 0..20 {
            let mut tcp = tcp_connect(mqtts_addr(&gateway));
            let _ = tcp.write_all(garbage);
            assert_closed(tcp);
        }
    }
    // A connection that sends nothing is not a failure.
    for _ in 0..20 {
        drop(tcp_connect(mqtts_addr(&gateway)));
    }
    files.device(&gateway, 1).mqtt.assert_nothing_pending();
    assert!(log.wait_for_line("INFO").contains("the peer does not speak TLS: its first byte is 0x10"));
    // Other tests of this file may log a line of their own.
    assert!(log.count("INFO") < 4);
    // TLS on the plain port.
    let tcp = tcp_connect(gateway.addresses().mqtt);
    let mut log = LogCapture::containing(tcp.local_addr().unwrap().to_string());
    tls_connect(&files.authority.client(), tcp).unwrap_err();
    log.wait_for_line("closed: protocol error");
}

/// Passes one byte at a time.
struct OneByteStream(TcpStream);

impl std::fmt::Debug for OneByteStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trickle")
    }
}

impl Read for OneByteStream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for OneByteStream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(1)])
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_handshake_and_packets_may_be_split_at_any_byte() {
    let files = CertificateFiles::new();
    let gateway = files.gateway(|_| {});
    let tcp = tcp_connect(mqtts_addr(&gateway));
    tcp.set_nodelay(true).unwrap();
    let mut tls = files.authority.client().connect("127.0.0.1", OneByteStream(tcp)).unwrap();
    tls.write_all(&Connect::new(&client_id(1)).packet()).unwrap();
    let mut answer = [0; 4];
    tls.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [0x20, 2, 0, 0]);
    // Many packets in one record, and one packet in many records.
    tls.write_all(&[0xc0, 0].repeat(3000)).unwrap();
    let mut answers = vec![0; 6000];
    tls.read_exact(&mut answers).unwrap();
    assert_eq!(answers, [0xd0, 0].repeat(3000));
}

#[test]
fn a_device_that_disconnects_can_resume_its_call_on_either_port() {
    let (server, files) = (ChatServer::start(), CertificateFiles::new());
    let gateway = files.gateway_to(&[server.url()], |_| {});
    let mut device = files.device(&gateway, 1);
    let (mut call, mut peer) = device.call(&server);
    // Cut without closing TLS, then reconnected in plain, then over TLS again.
    device.mqtt.reset();
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    peer.send_text(r#"{"type":"stt","n":1}"#);
    assert_eq!(device.json()["n"], 1);
    let mut again = files.device(&gateway, 1);
    peer.send_text(r#"{"type":"stt","n":2}"#);
    assert_eq!(again.json()["n"], 2);
    device.mqtt.read_until_closed();
    call.send(1, b"\x58a");
    assert_eq!(peer.binary(), audio_frame(1, b"\x58a"));
    again.mqtt.assert_nothing_pending();
}

#[test]
fn a_device_that_does_not_read_loses_its_connection() {
    let (server, files) = (ChatServer::start(), CertificateFiles::new());
    let gateway = files.gateway_to(&[server.url()], |config| config.mqtt.resume_grace = Duration::ZERO);
    let tls = tls_connect(
        &files.authority.client(),
        support::host::connect_with_small_buffer(mqtts_addr(&gateway)),
    )
    .unwrap();
    let mut log = LogCapture::containing(client_id(7));
    let mut device = device_over(tls, 7);
    let (_call, mut peer) = device.call(&server);
    let long = format!(r#"{{"type":"x","long":"{}"}}"#, "y".repeat(90_000));
    for _ in 0..200 {
        // The gateway may have closed the connection meanwhile.
        peer.try_frame(1, long.as_bytes());
    }
    log.wait_for_line("call ends");
}

#[test]
fn a_proxy_header_comes_before_the_handshake() {
    let files = CertificateFiles::new();
    let network: Network = "127.0.0.0/8".parse().unwrap();
    let mut log = LogCapture::containing("192.0.2.77:4242");
    let gateway = files.gateway(|config| config.mqtt.proxy_protocol_from = vec![network]);
    let mut tcp = tcp_connect(mqtts_addr(&gateway));
    for byte in b"PROXY TCP4 192.0.2.77 198.51.100.1 4242 8883\r\n" {
        tcp.write_all(&[*byte]).unwrap();
    }
    let mut device = device_over(tls_connect(&files.authority.client(), tcp).unwrap(), 1);
    device.mqtt.assert_nothing_pending();
    log.wait_for_line("connected");
    // Without a header there is no handshake.
    tls_connect(&files.authority.client(), self::tcp_connect(mqtts_addr(&gateway))).unwrap_err();
    assert_eq!(
        Client::open(gateway.addresses().mqtt).packet_within(Duration::ZERO),
        Err(PacketError::Deadline)
    );
}

/// A connection that belongs to another worker is handed off with its TLS state and what it has sent.
#[test]
fn several_workers_share_the_tls_port() {
    let (server, files) = (ChatServer::start(), CertificateFiles::new());
    let gateway = files.gateway_to(&[server.url()], |config| config.workers = 3);
    let mut devices: Vec<Device> = (1..=12).map(|n| files.device(&gateway, n)).collect();
    // A call that ends would redial, and be mistaken for the next.
    let mut peers = Vec::new();
    for device in &mut devices {
        let (mut call, mut peer) = device.call(&server);
        call.send(1, b"\x58up");
        assert_eq!(peer.binary(), audio_frame(1, b"\x58up"));
        let long = format!(r#"{{"type":"x","session_id":"server-session","long":"{}"}}"#, "y".repeat(40_000));
        device.send_text(&long);
        assert_eq!(peer.text(), long);
        peers.push(peer);
    }
}

#[test]
fn the_metric_of_the_certificates_expiry_is_not_added_up_over_workers() {
    let files = CertificateFiles::new();
    let expiry = |workers| {
        let gateway = files.gateway(|config| {
            config.workers = workers;
            (config.api.enabled, config.api.port) = (true, 0);
            config.api.host = Some(config.mqtt.host);
        });
        let (_, text) = http_call(gateway.addresses().api.unwrap(), "GET", "/metrics", None, None);
        let name = "gateway_tls_certificate_expires_timestamp_seconds ";
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    assert_eq!(expiry(2), expiry(1));
}
