//! `probe --tls`: a whole call over a verified connection, and why a certificate is refused.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::process::Output;

use mqtt_websocket_proxy::tools::echo::EchoServer;
use support::process::Folder;
use support::tls::{CertificateAuthority, CertifiedKey, new_key};
use support::{config, gateway_with};

/// A folder with the CA file, and a gateway with an echo server and this certificate.
fn with_tls_gateway(
    authority: &CertificateAuthority,
    pair: &CertifiedKey,
    check: impl FnOnce(&Folder, SocketAddr),
) {
    with_tls_gateway_and_chain(authority, pair, pair.certificate_pem(), check);
}

/// The same with more certificates in the file.
fn with_tls_gateway_and_chain(
    authority: &CertificateAuthority,
    pair: &CertifiedKey,
    chain: Vec<u8>,
    check: impl FnOnce(&Folder, SocketAddr),
) {
    let folder = Folder::new().with_file("ca.pem", authority.pem());
    let (cert, key) = (folder.0.join("cert.pem"), folder.0.join("key.pem"));
    fs::write(&cert, chain).unwrap();
    fs::write(&key, pair.key_pem()).unwrap();
    let echo = EchoServer::start().unwrap();
    let gateway = gateway_with(&[echo.url()], |config| {
        config.mqtt.tls.port = 0;
        config.mqtt.tls.cert_file = Some(cert);
        config.mqtt.tls.key_file = Some(key);
    });
    check(&folder, gateway.addresses().mqtts.unwrap());
}

fn output_text(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat()
}

#[test]
fn a_call_over_tls_works() {
    let authority = CertificateAuthority::new();
    with_tls_gateway(&authority, &authority.issue("127.0.0.1"), |folder, mqtts| {
        for line in [
            format!("probe {mqtts} --tls --ca-file ca.pem --packets 5 --no-pause"),
            format!("probe mqtts://{mqtts} --ca-file ca.pem --packets 5 --no-pause"),
        ] {
            let output = folder.run(&line, &[]);
            let told = output_text(&output);
            assert_eq!(output.status.code(), Some(0), "{told}");
            assert!(told.contains("[ ok ] TLS             the certificate is good for 127.0.0.1"), "{told}");
            assert!(told.contains("[ ok ] UDP down"), "{told}");
        }
    });
}

#[test]
fn a_refused_certificate_is_explained() {
    let authority = CertificateAuthority::new();
    let good = authority.issue("127.0.0.1");
    let cases = [
        (&good, "", "the certificate is from an authority that is not known here", "fullchain.pem"),
        (
            &authority.issue("gateway.example"),
            "--ca-file ca.pem",
            "the certificate is for another name than 127.0.0.1",
            "Probe by the name in the certificate",
        ),
    ];
    for (pair, options, what, hint) in cases {
        with_tls_gateway(&authority, pair, |folder, mqtts| {
            let output = folder.run(&format!("probe {mqtts} --tls {options}"), &[]);
            let told = output_text(&output);
            assert_eq!(output.status.code(), Some(1), "{told}");
            assert!(told.contains(&format!("[FAIL] TLS             {what}")), "{told}");
            assert!(told.contains("[ -- ] MQTT") && told.contains(hint), "{told}");
        });
    }
}

#[test]
fn a_chain_that_an_esp32_refuses_fails_though_others_may_accept_it() {
    let (public, old) = (CertificateAuthority::new(), CertificateAuthority::named("Old authority"));
    let intermediate = public.intermediate();
    let pair = intermediate.issue("127.0.0.1");
    let soon = public.issue_for("127.0.0.1", new_key(), -9, 5);
    let itself = CertificateAuthority::self_signed("127.0.0.1");
    let chain = |last: Vec<u8>| [pair.certificate_pem(), intermediate.pem(), last].concat();
    for (pair, pem, code, parts) in [
        (
            &pair,
            chain(Vec::new()),
            0,
            ["[ ok ] TLS             the certificate is good", "A device's call works"],
        ),
        (
            &pair,
            chain(old.cross_signed(&public)),
            1,
            [
                "[FAIL] TLS             the certificate is good for 127.0.0.1, but an ESP32 refuses it",
                "signed by Old authority",
            ],
        ),
        (&soon, soon.certificate_pem(), 0, ["[ ok ] TLS", " days: renew it."]),
        (&itself, itself.certificate_pem(), 1, ["[FAIL] TLS", "is self-signed"]),
    ] {
        with_tls_gateway_and_chain(&public, pair, pem, |folder, mqtts| {
            let output =
                folder.run(&format!("probe {mqtts} --tls --ca-file ca.pem --packets 5 --no-pause"), &[]);
            let told = output_text(&output);
            assert_eq!(output.status.code(), Some(code), "{told}");
            assert!(parts.iter().all(|part| told.contains(part)), "{parts:?} in {told}");
        });
    }
}

/// A gateway does not start with an expired certificate, but a certificate can expire while it runs.
#[test]
fn an_expired_certificate_is_reported() {
    let authority = CertificateAuthority::new();
    let pair = authority.issue_for("127.0.0.1", new_key(), -30, -1);
    let folder = Folder::new().with_file("ca.pem", authority.pem());
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = server.local_addr().unwrap();
    let mut acceptor =
        openssl::ssl::SslAcceptor::mozilla_intermediate_v5(openssl::ssl::SslMethod::tls_server()).unwrap();
    acceptor.set_private_key(&pair.key).unwrap();
    acceptor.set_certificate(&pair.certificate).unwrap();
    let acceptor = acceptor.build();
    let thread = std::thread::spawn(move || drop(acceptor.accept(server.accept().unwrap().0)));
    let output = folder.run(&format!("probe {addr} --tls --ca-file ca.pem"), &[]);
    assert!(
        output_text(&output).contains("[FAIL] TLS             the certificate has expired"),
        "{}",
        output_text(&output)
    );
    thread.join().unwrap();
}

#[test]
fn the_wrong_kind_of_port_is_reported() {
    let authority = CertificateAuthority::new();
    with_tls_gateway(&authority, &authority.issue("127.0.0.1"), |folder, mqtts| {
        let output = folder.run(&format!("probe {mqtts}"), &[]);
        assert_eq!(output.status.code(), Some(1));
        assert!(output_text(&output).contains("probe it with --tls"), "{}", output_text(&output));
    });
    let gateway = mqtt_websocket_proxy::Running::start(config(&[] as &[&str]), None).unwrap();
    let output = Folder::new().run(&format!("probe {} --tls --timeout 20", gateway.addresses().mqtt), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        output_text(&output).contains("[FAIL] TLS             no TLS connection"),
        "{}",
        output_text(&output)
    );
    assert!(output_text(&output).contains("mqtt.tls.port"), "{}", output_text(&output));
}
