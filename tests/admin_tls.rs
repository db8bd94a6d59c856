//! The management API over TLS: clients that verify, certificates that change, and bad handshakes.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::Config;
use mqtt_websocket_proxy::net::Running;
use openssl::ssl::SslStream;
use support::admin::{Fixture, TOKEN, fixture, request};
use support::host::wait_until;
use support::http::{RawClient, sum_of_samples};
use support::log_capture::LogCapture;
use support::tls::{CertificateFiles, new_key};
use support::{TIMEOUT, config};

/// The API with a certificate of its own.
fn own(files: &CertificateFiles) -> impl FnOnce(&mut Config) + '_ {
    |config| {
        config.api.tls.enabled = true;
        config.api.tls.cert_file = Some(files.cert());
        config.api.tls.key_file = Some(files.key());
    }
}

/// The API with the certificate for devices.
fn shared(files: &CertificateFiles) -> impl FnOnce(&mut Config) + '_ {
    |config| {
        config.api.tls.enabled = true;
        config.mqtt.tls.port = 0;
        config.mqtt.tls.cert_file = Some(files.cert());
        config.mqtt.tls.key_file = Some(files.key());
    }
}

/// A verified connection, or the error.
fn connect(files: &CertificateFiles, api: SocketAddr) -> Result<SslStream<TcpStream>, String> {
    let tcp = TcpStream::connect_timeout(&api, TIMEOUT).unwrap();
    tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
    files.authority.client().connect("127.0.0.1", tcp).map_err(|error| error.to_string())
}

/// All that the gateway sends until it closes the connection, properly, in response to this.
fn exchange(files: &CertificateFiles, api: SocketAddr, requests: &str) -> String {
    let mut tls = connect(files, api).unwrap();
    tls.write_all(requests.as_bytes()).unwrap();
    let mut text = String::new();
    tls.read_to_string(&mut text).unwrap();
    text
}

fn get(files: &CertificateFiles, api: SocketAddr, path: &str) -> String {
    let head = format!("GET {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {TOKEN}\r\n");
    exchange(files, api, &format!("{head}Connection: close\r\n\r\n"))
}

fn served_certificate(files: &CertificateFiles, api: SocketAddr) -> Option<Vec<u8>> {
    let tls = connect(files, api).ok()?;
    tls.ssl().peer_certificate().map(|certificate| certificate.to_pem().unwrap())
}

fn metric(text: &str, name: &str) -> f64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{text}"));
    value.trim().parse().unwrap()
}

#[test]
fn a_verifying_client_uses_the_api_with_its_own_or_the_devices_certificate() {
    let files = CertificateFiles::new();
    let check = |fixture: &Fixture, is_own: bool| {
        let page = get(&files, fixture.api, "/");
        assert!(page.starts_with("HTTP/1.1 200 ") && page.ends_with("</html>\n"), "{page}");
        assert!(get(&files, fixture.api, "/api/sessions").contains("\"sessions\":[]"));
        // Pipelined, with a body longer than one read and than a TLS record, and with 100 Continue.
        let body = format!(r#"{{"clientIds":["{}"]}}"#, "x".repeat(100_000));
        let first = request("POST", "/api/devices/status", &body);
        let last = request("POST", "/api/reload", "{}").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        let text = exchange(&files, fixture.api, &(first.repeat(3) + &last));
        assert_eq!(text.matches("HTTP/1.1 200 ").count(), 3, "{text}");
        assert!(text.contains("HTTP/1.1 409 "), "{text}");
        let mut tls = connect(&files, fixture.api).unwrap();
        let expecting = request("POST", "/api/devices/status", r#"{"clientIds":[]}"#)
            .replace("Content-Length", "Expect: 100-continue\r\nConnection: close\r\nContent-Length");
        let (head, body) = expecting.split_once("\r\n\r\n").unwrap();
        tls.write_all(format!("{head}\r\n\r\n").as_bytes()).unwrap();
        let mut go_on = [0; 25];
        tls.read_exact(&mut go_on).unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        tls.write_all(body.as_bytes()).unwrap();
        let mut text = String::new();
        tls.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
        // Without a token, over TLS too.
        let text =
            exchange(&files, fixture.api, "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 401 "), "{text}");
        let metrics = get(&files, fixture.api, "/metrics");
        assert!(metric(&metrics, "gateway_api_tls_handshakes_total{result=\"ok\"}") >= 5.0);
        let expiry = "gateway_api_tls_certificate_expires_timestamp_seconds ";
        assert_eq!(metrics.contains(expiry), is_own);
        assert!(!is_own || metric(&metrics, expiry) > 1e9);
        connect(&CertificateFiles::new(), fixture.api).unwrap_err();
    };
    check(&fixture(own(&files)), true);
    check(&fixture(shared(&files)), false);
    let two_workers = |config: &mut Config| {
        own(&files)(config);
        config.workers = 2;
    };
    check(&fixture(two_workers), true);
}

#[test]
fn the_devices_certificate_serves_the_api_while_the_gateway_drains() {
    let files = CertificateFiles::new();
    let fixture = fixture(shared(&files));
    let mut device = fixture.device("aa:bb:cc:dd:ee:01");
    let _call = device.call().unwrap();
    assert!(get(&files, fixture.api, "/readyz").starts_with("HTTP/1.1 200 "));
    fixture.gateway.handle().drain();
    wait_until("it drains", || get(&files, fixture.api, "/readyz").starts_with("HTTP/1.1 503 "));
}

#[test]
fn clear_http_is_told_to_use_https() {
    let files = CertificateFiles::new();
    let mut log = LogCapture::containing("management API: [");
    let fixture = fixture(own(&files));
    for text in ["GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", "\x10\x0e\0\x04MQTT"] {
        let mut raw = RawClient::open(fixture.api);
        raw.send(text);
        let reply = raw.reply().unwrap();
        assert_eq!((reply.status, &reply.json()["code"]), (400, &"https_required".into()), "{reply:?}");
        assert!(raw.reply().is_none(), "closed");
    }
    // What begins like TLS and is not is closed, and logged once.
    for _ in 0..20 {
        let mut raw = RawClient::open(fixture.api);
        raw.send([22, 9, 9, 0, 4, 1, 0, 0, 0]);
        while raw.stream.read(&mut [0; 64]).is_ok_and(|n| n > 0) {}
    }
    assert!(log.wait_for_line("INFO").contains("no TLS connection"));
    // Other tests of this file log lines of their own.
    assert!(log.count("INFO") < 10);
    let metrics = get(&files, fixture.api, "/metrics");
    assert_eq!(metric(&metrics, "gateway_api_tls_handshakes_total{result=\"failed\"}"), 22.0);
}

#[test]
fn stalled_handshakes_end_in_time_and_lock_nobody_out() {
    let files = CertificateFiles::new();
    let fixture = fixture(own(&files));
    let start = Instant::now();
    let stalled: Vec<_> = (0..200)
        .map(|n| {
            let mut raw = RawClient::open(fixture.api);
            // The gateway may have closed it already, in favour of a newer one.
            let _ = raw.stream.write_all(&[22, 3, 1, 2, 0, 1][..if n % 2 == 0 { 6 } else { 0 }]);
            if n % 20 == 19 {
                assert!(get(&files, fixture.api, "/healthz").starts_with("HTTP/1.1 200 "));
            }
            raw
        })
        .collect();
    let metrics = get(&files, fixture.api, "/metrics");
    let for_others = sum_of_samples(&metrics, "gateway_connections_closed_for_others_total{reason=\"api_");
    let took = start.elapsed();
    // If it took longer, the own ten seconds of many were over before.
    assert!(
        for_others >= 50.0 || took > Duration::from_secs(9),
        "{for_others} closed for others in {took:?}"
    );
    for raw in stalled {
        assert_eq!({ raw }.stream.read(&mut [0]).unwrap_or(0), 0, "closed");
    }
    assert!(start.elapsed() > Duration::from_secs(9), "{:?}", start.elapsed());
    let metrics = get(&files, fixture.api, "/metrics");
    assert!(metric(&metrics, "gateway_api_tls_handshakes_total{result=\"failed\"}") >= 10.0);
}

#[test]
fn renewed_files_are_taken_and_bad_ones_are_not() {
    for is_own in [true, false] {
        let files = CertificateFiles::new();
        let fixture = match is_own {
            true => fixture(own(&files)),
            false => fixture(shared(&files)),
        };
        let new = files.authority.issue("127.0.0.1");
        let mut log = LogCapture::containing(files.key().display().to_string());
        fs::write(files.cert(), new.certificate_pem()).unwrap();
        let section = if is_own { "api.tls" } else { "mqtt.tls" };
        log.wait_for_line(&format!("ERROR the TLS certificate in use stays: {section}.key_file: the key in"));
        assert_ne!(served_certificate(&files, fixture.api), Some(new.certificate_pem()));
        fs::write(files.key(), new.key_pem()).unwrap();
        wait_until("the new certificate", || {
            served_certificate(&files, fixture.api) == Some(new.certificate_pem())
        });
    }
}

#[test]
fn a_reload_takes_other_files_or_refuses_and_switches_tls_on_and_off() {
    let (files, others) = (CertificateFiles::new(), CertificateFiles::new());
    let mut config = config::<&str>(&[]);
    let gateway = Running::start(config.clone(), None).unwrap();
    let api = gateway.addresses().api.unwrap();
    let clear = |path: &str| {
        let text = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        RawClient::round_trip(api, &text).status
    };
    assert_eq!(clear("/healthz"), 200);
    for files in [&files, &others] {
        own(files)(&mut config);
        gateway.handle().reload(config.clone());
        wait_until("these files", || connect(files, api).is_ok());
        assert_eq!(clear("/healthz"), 400);
    }
    // Neither other files that cannot be used nor a change beside them is taken.
    let mut log = LogCapture::containing("nowhere.pem");
    let mut bad = config.clone();
    bad.api.tls.key_file = Some("nowhere.pem".into());
    (bad.mqtt.tls.cert_file, bad.mqtt.tls.key_file) = (Some(files.cert()), Some(files.key()));
    gateway.handle().reload(bad);
    log.wait_for_line("ERROR reload: nothing changes: api.tls.key_file: nowhere.pem cannot be read");
    connect(&others, api).unwrap();
    assert!(connect(&files, api).is_err());
    // Nor an expired certificate.
    let mut log = LogCapture::containing(others.cert().display().to_string());
    others.write(&others.authority.issue_for("127.0.0.1", new_key(), -9, -2));
    log.wait_for_line("has expired");
    connect(&others, api).unwrap();
    config.api.tls = Default::default();
    gateway.handle().reload(config);
    wait_until("clear HTTP", || clear("/healthz") == 200);
}

#[test]
fn a_certificate_that_cannot_be_used_is_named_at_start() {
    let files = CertificateFiles::new();
    let mut config = config::<&str>(&[]);
    own(&files)(&mut config);
    fs::write(files.cert(), "").unwrap();
    let error = Running::start(config, None).unwrap_err().to_string();
    assert!(error.starts_with("api.tls.cert_file: "), "{error}");
}
