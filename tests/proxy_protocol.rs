//! Load balancers: the PROXY protocol byte by byte, and HAProxy in front of two gateways.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use mqtt_websocket_proxy::config::{Config, PeerPolicy, Secret};
use mqtt_websocket_proxy::net::Running;
use support::chat_server::{ChatServer, audio_frame};
use support::device::{Device, HELLO, client_id};
use support::host::{connect_from, device_from, device_over};
use support::http::metric_sum;
use support::log_capture::LogCapture;
use support::mqtt::{Client, Connect, PacketError};
use support::{TIMEOUT, gateway_with};

const NO_SERVERS: [&str; 0] = [];
/// The address of the balancer in these tests, and one that is not a balancer.
const BALANCER: [u8; 4] = [127, 0, 0, 5];
const NOT_A_BALANCER: [u8; 4] = [127, 0, 0, 6];

fn gateway<U: AsRef<str>>(urls: &[U], change: impl FnOnce(&mut Config)) -> Running {
    gateway_with(urls, |config| {
        config.mqtt.proxy_protocol_from =
            ["127.0.0.5", "127.0.0.8", "127.0.0.9"].map(|balancer| balancer.parse().unwrap()).to_vec();
        change(config);
    })
}

fn v1_header(client: &str) -> Vec<u8> {
    format!("PROXY TCP4 {client} 198.51.100.1 4242 1883\r\n").into_bytes()
}

fn v2_header(command: u8, client: [u8; 4], more: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x20 | command, 0x11]);
    header.extend((12 + more.len() as u16).to_be_bytes());
    header.extend(client);
    header.extend([198, 51, 100, 1, 0x10, 0x92, 0x07, 0x5b]);
    header.extend(more);
    header
}

fn v2_header_ipv6(client: &str) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    header.extend(client.parse::<Ipv6Addr>().unwrap().octets());
    header.extend("2001:db8:ffff::1".parse::<Ipv6Addr>().unwrap().octets());
    header.extend([0x10, 0x92, 0x07, 0x5b]);
    header
}

/// A connection from the balancer that has sent this.
fn connect_with_header(gateway: &Running, header: &[u8]) -> TcpStream {
    connect_with_header_from(BALANCER, gateway, header)
}

/// The same from a balancer of this test alone, which counts the log's lines about it.
fn connect_with_header_from(balancer: [u8; 4], gateway: &Running, header: &[u8]) -> TcpStream {
    let mut tcp = connect_from(balancer, gateway.addresses().mqtt);
    tcp.set_nodelay(true).unwrap();
    tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
    tcp.write_all(header).unwrap();
    tcp
}

fn assert_closed(mut tcp: TcpStream) {
    let mut rest = Vec::new();
    let _ = tcp.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{rest:?}");
    assert_ne!(
        tcp.set_read_timeout(Some(Duration::from_millis(1))).and_then(|()| tcp.read(&mut [0])).ok(),
        Some(1)
    );
}

#[test]
fn the_client_address_of_the_header_is_used() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()], |_| {});
    let extensions = [3, 0, 4, 1, 2, 3, 4].repeat(40);
    for (number, header) in
        [v1_header("192.0.2.7"), v2_header(1, [192, 0, 2, 7], &[]), v2_header(1, [192, 0, 2, 7], &extensions)]
            .iter()
            .enumerate()
    {
        let mut log = LogCapture::containing("192.0.2.7:4242");
        let number = number as u8;
        // Header, CONNECT and hello in one write.
        let mut bytes = header.clone();
        bytes.extend(Connect::new(&client_id(number)).packet());
        let mut mqtt = Client::from(connect_with_header(&gateway, &bytes));
        assert_eq!(mqtt.packet().body, [0, 0]);
        log.wait_for_line(&client_id(number));
        mqtt.send_text(HELLO);
        let mut peer = server.accept();
        assert_eq!(peer.upgrade().header("x-forwarded-for"), Some("192.0.2.7"));
    }
}

#[test]
fn a_header_may_be_split_at_any_byte() {
    let gateway = gateway(&NO_SERVERS, |_| {});
    for header in [v1_header("192.0.2.7"), v2_header(1, [192, 0, 2, 7], b"\x04\0\x01\0")] {
        let mut bytes = header.clone();
        bytes.extend(Connect::new(&client_id(1)).packet());
        for cut in 1..header.len() + 2 {
            let mut tcp = connect_with_header(&gateway, &bytes[..cut]);
            // Sent on its own: the gateway has most likely seen the first part alone.
            tcp.write_all(&bytes[cut..]).unwrap();
            assert_eq!(Client::from(tcp).packet().body, [0, 0], "{cut}");
        }
        let mut tcp = connect_with_header(&gateway, &[]);
        for byte in &bytes {
            tcp.write_all(&[*byte]).unwrap();
            std::thread::yield_now();
        }
        assert_eq!(Client::from(tcp).packet().body, [0, 0]);
    }
}

#[test]
fn who_must_and_who_must_not_send_a_proxy_header() {
    let gateway = gateway(&NO_SERVERS, |_| {});
    // Other addresses are served as usual, and a header from them is invalid MQTT.
    device_from(NOT_A_BALANCER, gateway.addresses().mqtt, 1).mqtt.assert_nothing_pending();
    for header in [v1_header("192.0.2.7"), v2_header(1, [192, 0, 2, 7], &[])] {
        let mut tcp = connect_from(NOT_A_BALANCER, gateway.addresses().mqtt);
        tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
        tcp.write_all(&header).unwrap();
        assert_closed(tcp);
    }
    // The balancer must send a valid header.
    let mut log = LogCapture::containing("[127.0.0.8]");
    let long = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"[..], &[0; 300]].concat();
    let endless = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 300]].concat();
    for bytes in [&Connect::new(&client_id(1)).packet()[..], b"PROXY TCP4 1.2.3.4\r\n", &long, &endless] {
        assert_closed(connect_with_header_from([127, 0, 0, 8], &gateway, bytes));
    }
    let line = log.wait_for_line("mqtt.proxy_protocol_from");
    assert!(
        line.starts_with("WARN") && line.contains("does not begin with a PROXY protocol header"),
        "{line}"
    );
    assert_eq!(log.count("mqtt.proxy_protocol_from"), 0, "one line in ten seconds");
}

#[test]
fn a_health_check_is_neither_counted_nor_logged() {
    const OWN_BALANCER: [u8; 4] = [127, 0, 0, 9];
    let gateway = gateway(&NO_SERVERS, |_| {});
    let mut log = LogCapture::containing("127.0.0.9");
    for bytes in [&b""[..], b"PROXY UNKNOWN\r\n", &v2_header(0, [0; 4], &[]), b"PROXY TC"] {
        drop(connect_with_header_from(OWN_BALANCER, &gateway, bytes));
    }
    // A device behind such a header has the balancer's own address.
    let mut tcp = connect_with_header_from(OWN_BALANCER, &gateway, &v2_header(0, [192, 0, 2, 9], &[]));
    tcp.write_all(&Connect::new(&client_id(3)).packet()).unwrap();
    // It stays: that it leaves is a line too.
    let mut device = Client::from(tcp);
    assert_eq!(device.packet().body, [0, 0]);
    log.wait_for_line(&client_id(3));
    assert_eq!(log.count("WARN") + log.count("INFO") + log.count("ERROR"), 0);
    drop(device);
}

#[test]
fn a_header_shares_the_connect_timeout() {
    let gateway = gateway(&NO_SERVERS, |_| {});
    let start = std::time::Instant::now();
    assert_closed(connect_with_header(&gateway, b"PROXY TCP4 "));
    assert!(start.elapsed() > Duration::from_secs(9), "{:?}", start.elapsed());
}

#[test]
fn limits_count_clients_and_not_the_balancer() {
    let gateway = gateway(&NO_SERVERS, |config| {
        config.mqtt.max_connections_per_ip = 2;
        config.mqtt.signature_key = Secret::new("A-good-Key");
    });
    let log_in = |client: &str, number: u8| {
        let mut mqtt = Client::from(connect_with_header(&gateway, &v1_header(client)));
        mqtt.send(&Connect::signed(&client_id(number), "A-good-Key").packet());
        let code = mqtt.packet().body[1];
        (code, mqtt)
    };
    // Many behind one balancer, two of each client.
    let all: Vec<_> = (0..20_u8).map(|n| log_in(&format!("192.0.2.{}", n / 2), n)).collect();
    assert!(all.iter().all(|(code, _)| *code == 0));
    assert_eq!(log_in("192.0.2.3", 90).0, 3);
    drop(all);
    support::host::wait_until("room again", || log_in("192.0.2.3", 91).0 == 0);
    // A client that sends nothing has a bounded number of connections too.
    let mut idle: Vec<_> =
        (0..20).map(|_| Client::from(connect_with_header(&gateway, &v1_header("192.0.2.200")))).collect();
    assert_eq!(idle.pop().unwrap().packet_within(TIMEOUT), Err(PacketError::Closed));
    // Failed logins delay only the client that failed.
    let fail = |client: &str| {
        let mut mqtt = Client::from(connect_with_header(&gateway, &v1_header(client)));
        let start = std::time::Instant::now();
        mqtt.send(&Connect::new(&client_id(50)).packet());
        assert_eq!(mqtt.read_until_closed()[0].body, [0, 4]);
        start.elapsed()
    };
    for _ in 0..5 {
        fail("192.0.2.100");
    }
    assert!(fail("192.0.2.100") >= Duration::from_secs(1));
}

#[test]
fn the_addresses_of_one_ipv6_network_do_not_evade_the_limits() {
    let gateway = gateway(&NO_SERVERS, |config| {
        config.mqtt.max_connections_per_ip = 2;
        config.api.metrics_need_token = false;
        config.mqtt.signature_key = Secret::new("A-good-Key");
    });
    let open = |client: &str| Client::from(connect_with_header(&gateway, &v2_header_ipv6(client)));
    let log_in = |client: &str, number: u8| {
        let mut mqtt = open(client);
        mqtt.send(&Connect::signed(&client_id(number), "A-good-Key").packet());
        (mqtt.packet().body[1], mqtt)
    };
    let mut log = LogCapture::containing("2001:db8:0:1:");
    let mut devices = vec![log_in("2001:db8:0:1::1", 1), log_in("2001:db8:0:1:ffff:ffff:ffff:ffff", 2)];
    assert_eq!(log_in("2001:db8:0:1:8000::3", 3).0, 3, "the third device of one /64");
    assert!(
        log.wait_for_line("max_connections_per_ip").contains("2001:db8:0:1:8000::3"),
        "not the exact address"
    );
    devices.extend([log_in("2001:db8:0:2::1", 4), log_in("2001:db8:0:2::2", 5), log_in("2001:db8::1", 6)]);
    let codes: Vec<_> = devices.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [0; 5], "two devices of each /64");
    devices.clear();
    support::host::wait_until("room again", || log_in("2001:db8:0:1::9", 7).0 == 0);
    // Failed logins delay the whole /64, and no other. Only the first is in the log.
    let fail = |client: &str| {
        let mut mqtt = open(client);
        let start = std::time::Instant::now();
        mqtt.send(&Connect::new(&client_id(50)).packet());
        assert_eq!(mqtt.read_until_closed()[0].body, [0, 4]);
        start.elapsed()
    };
    let log = LogCapture::containing("2001:db8:0:5:");
    for n in 1..=5 {
        fail(&format!("2001:db8:0:5::{n}"));
    }
    assert!(fail("2001:db8:0:5::6") >= Duration::from_secs(1));
    let delayed = || {
        let api = gateway.addresses().api.unwrap();
        metric_sum(api, "gateway_logins_refused_late_total{answer=\"delayed\"}", None)
    };
    let before = delayed();
    fail("2001:db8:0:6::6");
    assert_eq!((before, delayed()), (5.0, 5.0));
    assert_eq!(log.count("WARN"), 1);
}

#[test]
fn audio_may_come_from_the_client_the_header_names() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()], |config| config.udp.peer_policy = PeerPolicy::Strict);
    // The audio of these tests comes from 127.0.0.1.
    for (client, heard) in [("127.0.0.1", true), ("127.0.0.9", false)] {
        let mut device = device_over(connect_with_header(&gateway, &v1_header(client)), 1);
        let (mut call, mut peer) = device.call(&server);
        call.send(1, b"\x58a");
        if heard {
            assert_eq!(peer.binary(), audio_frame(1, b"\x58a"));
        } else {
            device.mqtt.assert_nothing_pending();
            assert!(peer.message_within(Duration::from_millis(300)).is_none());
        }
        device.send_text(r#"{"type":"goodbye"}"#);
        peer.expect_close(1000);
    }
}

/// The sample configurations: without Redis, and with it.
const SAMPLES: [&str; 2] =
    [include_str!("../config/haproxy.cfg"), include_str!("../config/haproxy-cluster.cfg")];

/// HAProxy, with a sample configuration.
struct HaProxy {
    process: std::process::Child,
    mqtt: SocketAddr,
    #[cfg_attr(not(feature = "tls"), expect(dead_code))]
    mqtts: SocketAddr,
    _folder: support::process::Folder,
}

impl HaProxy {
    /// In front of these gateways; `None` if HAProxy is not installed.
    fn start(sample: &str, gateways: &[Running; 2], version: &str) -> Option<Self> {
        let [mqtt, mqtts] = [(); 2].map(|()| support::closed_port());
        let line = |line: &str| {
            let mut line = line.replace("maxconn 50000", "maxconn 500").replace("send-proxy-v2", version);
            line = line.replace("bind :1883", &format!("bind {mqtt}"));
            line = line.replace("bind :8883", &format!("bind {mqtts}"));
            for (n, gateway) in gateways.iter().enumerate() {
                let name = format!("10.0.0.1{}", n + 1);
                if line.contains(&name) {
                    let addresses = gateway.addresses();
                    let api = format!("check port {}", addresses.api.unwrap().port());
                    line = line.replace("check port 8007", &api);
                    line = line.replace(&format!("{name}:1883"), &addresses.mqtt.to_string());
                    let secured = addresses.mqtts.unwrap_or(addresses.mqtt);
                    line = line.replace(&format!("{name}:8883"), &secured.to_string());
                }
            }
            line
        };
        let text = sample.lines().map(line).collect::<Vec<_>>().join("\n") + "\n";
        let folder = support::process::Folder::new().with_file("haproxy.cfg", text);
        let mut command = std::process::Command::new("haproxy");
        command.env("PATH", "/usr/sbin:/usr/local/sbin:/usr/bin:/bin");
        command.args(["-db", "-f", "haproxy.cfg"]).current_dir(&folder.0).stdout(std::process::Stdio::null());
        match command.spawn() {
            Ok(process) => {
                let this = Self { process, mqtt, mqtts, _folder: folder };
                support::host::wait_until("HAProxy listens", || TcpStream::connect(this.mqtt).is_ok());
                Some(this)
            }
            Err(error) => {
                eprintln!("skipped: haproxy: {error}; ./setup.sh test installs it");
                None
            }
        }
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A device that connects to this address as soon as it is possible.
fn device_through(balancer: &HaProxy, n: u8) -> Option<Device> {
    let tcp = connect_from([127, 0, 1, n], balancer.mqtt);
    let mut mqtt = Client::from(tcp);
    mqtt.try_send(&Connect::new(&client_id(n)).packet());
    let packet = mqtt.packet_within(TIMEOUT).ok()?;
    assert_eq!(packet.body, [0, 0]);
    Some(Device { mqtt, mac: support::device::mac(n), client_id: client_id(n) })
}

#[test]
fn two_gateways_behind_haproxy_and_one_of_them_dies() {
    for (sample, version) in SAMPLES.into_iter().zip(["send-proxy-v2", "send-proxy"]) {
        let server = ChatServer::start();
        let start = || {
            gateway_with(&[server.url()], |config| {
                config.mqtt.proxy_protocol_from = vec!["127.0.0.1".parse().unwrap()];
                config.udp.public_ip =
                    mqtt_websocket_proxy::config::PublicIp::Ip(IpAddr::from([127, 0, 0, 1]));
                config.mqtt.max_connections_per_ip = 1;
            })
        };
        let gateways = [start(), start()];
        let Some(balancer) = HaProxy::start(sample, &gateways, version) else { return };
        let mut at = [Vec::new(), Vec::new()];
        for n in 1..=12 {
            let mut device = device_through(&balancer, n).unwrap();
            device.send_text(HELLO);
            let mut peer = server.accept();
            assert_eq!(peer.upgrade().header("x-forwarded-for"), Some(&*format!("127.0.1.{n}")), "{version}");
            peer.exchange_hello("s");
            let mut call = device.hello_reply();
            // Each gateway gives its own UDP address, and audio goes there directly.
            let place = gateways.iter().position(|gateway| gateway.addresses().udp == call.gateway).unwrap();
            // Eight in a row: the audio of these tests comes from another address.
            (1..=8).for_each(|n| call.send(n, b"\x58a"));
            (1..=8).for_each(|n| assert_eq!(peer.binary(), audio_frame(n, b"\x58a")));
            at[place].push((n, device, peer));
        }
        assert!(at.iter().all(|devices| !devices.is_empty()), "all devices at one gateway");
        // The first gateway is killed; its devices reach the other one, whose own devices stay connected.
        let [first, second] = gateways;
        let [lost, kept] = &mut at;
        let mut moved = Vec::new();
        first.stop(Duration::ZERO).unwrap();
        for (n, device, _) in lost.iter_mut() {
            while device.mqtt.packet_within(TIMEOUT).is_ok() {}
            let mut again = None;
            support::host::wait_until("a gateway takes it", || {
                again = device_through(&balancer, *n);
                again.is_some()
            });
            let mut again = again.unwrap();
            again.send_text(HELLO);
            let mut peer = server.accept();
            peer.upgrade();
            peer.exchange_hello("s");
            assert_eq!(again.hello_reply().gateway, second.addresses().udp);
            moved.push((again, peer));
        }
        kept.iter_mut().for_each(|(_, device, _)| device.mqtt.assert_nothing_pending());
    }
}

#[cfg(feature = "tls")]
#[test]
fn tls_passes_through_haproxy() {
    let authority = support::tls::CertificateAuthority::new();
    let pair = authority.issue("127.0.0.1");
    let folder = support::process::Folder::new();
    let folder = folder.with_file("cert.pem", pair.certificate_pem()).with_file("key.pem", pair.key_pem());
    let start = || {
        gateway_with(&NO_SERVERS, |config| {
            config.mqtt.proxy_protocol_from = vec!["127.0.0.1".parse().unwrap()];
            config.mqtt.tls.port = 0;
            config.mqtt.tls.cert_file = Some(folder.0.join("cert.pem"));
            config.mqtt.tls.key_file = Some(folder.0.join("key.pem"));
        })
    };
    let gateways = [start(), start()];
    for (network, sample) in (2..).zip(SAMPLES) {
        let Some(balancer) = HaProxy::start(sample, &gateways, "send-proxy-v2") else { return };
        for n in 1..=6 {
            let mut log = LogCapture::containing(format!("127.0.{network}.{n}:"));
            let tcp = connect_from([127, 0, network, n], balancer.mqtts);
            let tls = authority.client().connect("127.0.0.1", tcp).unwrap();
            device_over(tls, n).mqtt.assert_nothing_pending();
            log.wait_for_line(&client_id(n));
        }
    }
}
