//! Chat servers with TLS: verified certificates, a private CA, the switch that disables verification, and resumed sessions.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use mqtt_websocket_proxy::config::{ChatServerConfig, Config};
use mqtt_websocket_proxy::net::Running;
#[cfg(openssl_client)]
use openssl::ssl::SslVersion;
use support::chat_server::{ChatServer, audio_frame};
use support::device::{Device, HELLO};
use support::log_capture::LogCapture;
use support::process::Folder;
use support::tls::CertificateAuthority;
use support::{TIMEOUT, gateway_with};

fn gateway_to(url: &str, change: impl FnOnce(&mut Config)) -> Running {
    gateway_with(&[url], change)
}

/// A call with text and audio both ways. Whether its TLS session was resumed.
fn assert_call_works(gateway: &Running, server: &ChatServer) -> bool {
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, mut peer) = device.call(server);
    assert!(peer.is_tls());
    for n in 0..50 {
        call.send(n, b"\x58up");
        assert_eq!(peer.binary(), audio_frame(n, b"\x58up"));
        peer.send_audio(n, b"\x58down");
        assert_eq!(call.receive().payload, b"\x58down");
    }
    let long = format!(r#"{{"type":"x","session_id":"server-session","long":"{}"}}"#, "y".repeat(60_000));
    peer.send_text(&long);
    assert_eq!(device.mqtt.text(), long);
    device.send_text(&long);
    assert_eq!(peer.text(), long);
    device.send_text(r#"{"type":"goodbye"}"#);
    peer.expect_close(1000);
    device.mqtt.assert_nothing_pending();
    peer.is_resumed()
}

/// The server is not trusted: the device gets an alert, and not because a time is over.
fn assert_refused(gateway: &Running, server: &ChatServer) {
    let mut log = LogCapture::containing(server.addr.port().to_string());
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    device.send_text(HELLO);
    server.accept().expect_end();
    device.expect_failure();
    assert_eq!(log.count("no answer in"), 0);
    log.wait_for_line("certificate");
}

#[test]
fn a_private_ca_from_the_configuration_is_trusted_for_the_names_it_signed() {
    let authority = CertificateAuthority::new();
    let folder = Folder::new().with_file("ca.pem", authority.pem());
    let ca_file = Some(folder.0.join("ca.pem"));

    let server = ChatServer::start_tls(authority.server("127.0.0.1"));
    let gateway = gateway_to(&server.url(), |config| config.websocket.ca_file = ca_file.clone());
    assert_call_works(&gateway, &server);

    // Set for one server only.
    let gateway = gateway_to(&server.url(), |config| {
        let mut own = ChatServerConfig::clone(&config.websocket.production[0]);
        own.ca_file = ca_file.clone();
        config.websocket.production = vec![Arc::new(own)];
    });
    assert_call_works(&gateway, &server);

    // By name.
    let server = ChatServer::start_tls(authority.server("localhost"));
    let url = format!("wss://localhost:{}/", server.addr.port());
    let gateway = gateway_to(&url, |config| config.websocket.ca_file = ca_file.clone());
    assert_call_works(&gateway, &server);

    // A certificate for another name.
    let gateway = gateway_to(&server.url(), |config| config.websocket.ca_file = ca_file.clone());
    assert_refused(&gateway, &server);
}

#[test]
fn an_unknown_authority_is_refused_unless_insecure_is_set() {
    let server = ChatServer::start_tls(CertificateAuthority::new().server("127.0.0.1"));
    assert_refused(&gateway_to(&server.url(), |_| {}), &server);

    let another = Folder::new().with_file("ca.pem", CertificateAuthority::new().pem());
    let gateway =
        gateway_to(&server.url(), |config| config.websocket.ca_file = Some(another.0.join("ca.pem")));
    assert_refused(&gateway, &server);

    let gateway = gateway_to(&server.url(), |config| config.websocket.insecure = true);
    assert_call_works(&gateway, &server);

    // For one server only; and one server is verified while the rest are not.
    let own = |insecure| {
        gateway_to(&server.url(), |config| {
            let mut own = ChatServerConfig::clone(&config.websocket.production[0]);
            own.insecure = Some(insecure);
            config.websocket.production = vec![Arc::new(own)];
            config.websocket.insecure = !insecure;
        })
    };
    assert_call_works(&own(true), &server);
    assert_refused(&own(false), &server);
}

/// Where OpenSSL makes the connections.
#[cfg(openssl_client)]
#[test]
fn a_second_call_resumes_the_tls_session_unless_the_server_has_forgotten_it() {
    for version in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        let authority = CertificateAuthority::new();
        let folder = Folder::new().with_file("ca.pem", authority.pem());
        let mut server = ChatServer::start_tls(authority.server_up_to("127.0.0.1", version));
        let ca_file = Some(folder.0.join("ca.pem"));
        let gateway = gateway_to(&server.url(), |config| config.websocket.ca_file = ca_file.clone());
        let resumed = |server: &ChatServer| [(); 3].map(|()| assert_call_works(&gateway, server));
        assert_eq!(resumed(&server), [false, true, true], "{version:?}");
        // Restarted: with another key for its tickets, and another certificate.
        server.replace_tls(authority.server_up_to("127.0.0.1", version));
        assert_eq!(resumed(&server), [false, true, true], "{version:?}");
        // With a certificate that is not trusted, which a server that knows no session must show.
        server.replace_tls(CertificateAuthority::new().server_up_to("127.0.0.1", version));
        assert_refused(&gateway, &server);
    }
}

#[test]
fn a_server_without_tls_is_told_apart_from_one_with() {
    let server = ChatServer::start();
    let gateway = gateway_to(&format!("wss://{}/", server.addr), |_| {});
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    device.send_text(HELLO);
    let mut peer = server.accept();
    peer.send_raw(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    device.expect_failure();
}

#[test]
fn frames_right_behind_the_upgrade_are_not_left_in_a_buffer() {
    let authority = CertificateAuthority::new();
    let folder = Folder::new().with_file("ca.pem", authority.pem());
    let server = ChatServer::start_tls(authority.server("127.0.0.1"));
    let gateway =
        gateway_to(&server.url(), |config| config.websocket.ca_file = Some(folder.0.join("ca.pem")));
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    device.send_text(HELLO);
    let mut peer = server.accept();
    let request = peer.request();
    // One record: the upgrade response, a text, the hello and another text.
    let mut bytes = support::chat_server::upgrade_response(&request).into_bytes();
    for text in [r#"{"type":"a"}"#, r#"{"type":"hello","session_id":"s"}"#, r#"{"type":"b"}"#] {
        bytes.extend([0x81, text.len() as u8]);
        bytes.extend(text.as_bytes());
    }
    peer.send_raw(&bytes);
    assert_eq!(device.hello_reply().session_id, "s");
    assert_eq!(device.json()["type"], "a");
    assert_eq!(device.json()["type"], "b");
    // Many frames at once, more than one dispatch handles.
    let mut bytes = Vec::new();
    for n in 0..500 {
        let text = format!(r#"{{"session_id":"s","n":{n}}}"#);
        bytes.extend([0x81, text.len() as u8]);
        bytes.extend(text.as_bytes());
    }
    peer.send_raw(&bytes);
    for n in 0..500 {
        assert_eq!(device.json()["n"], n);
    }
}

#[test]
fn the_log_names_the_insecure_switch_and_why_a_certificate_was_refused() {
    let server = ChatServer::start_tls(CertificateAuthority::new().server("127.0.0.1"));
    let url = server.url();
    let insecure = format!(r#"{{"websocket":{{"production_servers":["{url}"],"insecure":true}}}}"#);
    let own = format!(r#"{{"websocket":{{"production_servers":[{{"url":"{url}","insecure":true}}]}}}}"#);
    let verified = format!(r#"{{"websocket":{{"production_servers":["{url}"]}}}}"#);
    let folder = Folder::new()
        .with_file("insecure.json", insecure)
        .with_file("own.json", own)
        .with_file("verified.json", verified);
    for file in ["insecure.json", "own.json"] {
        let gateway = folder.start(&format!("-c {file}"), &[]);
        let warnings: Vec<_> = gateway
            .seen
            .iter()
            .filter(|line| line.contains("[WARN ]") && line.contains("insecure"))
            .collect();
        assert_eq!(warnings.len(), 1, "{:#?}", gateway.seen);
    }
    let mut gateway = folder.start("-c verified.json", &[]);
    let mut device = Device::connect(gateway.mqtt(), 1);
    device.send_text(HELLO);
    server.accept_within(TIMEOUT).unwrap().expect_end();
    let line = gateway.wait_for_line("new calls try other servers first");
    assert!(line.contains("certificate") && line.contains("tls"), "{line}");
}
