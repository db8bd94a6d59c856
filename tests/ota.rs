//! The OTA port: a device that asks for its settings, and everybody else.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};

use support::audio::Call;
use support::chat_server::ChatServer;
use support::device::{HELLO, mac};
use support::host::connect_from;
use support::http::RawClient;
use support::log_capture::LogCapture;
use support::mqtt::Client;
use support::ota::{BODY, ask, connect, endpoint, request, with_key};
use support::process::Folder;
use support::{gateway_with, process_loopback_ip};

#[test]
fn a_device_gets_its_credentials_and_is_heard_with_them() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], with_key);
    let (ota, mqtt) = (gateway.addresses().ota.unwrap(), gateway.addresses().mqtt);
    let reply = ask(ota, 1);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.field("content-type"), Some("application/json; charset=utf-8"));
    assert!(reply.field("transfer-encoding").is_none());
    let answer = reply.json();
    assert_eq!(endpoint(&answer), ("gw.test".to_owned(), mqtt.port()));
    assert!(answer["server_time"]["timestamp"].as_u64().unwrap() > 1_700_000_000_000);
    assert!(answer["server_time"]["timezone_offset"].as_i64().unwrap().abs() <= 14 * 60);
    assert_eq!(answer["mqtt"], ask(ota, 1).json()["mqtt"], "flash is not written again");
    let mut device = Client::log_in(mqtt, &connect(&answer));
    device.send_text(HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    peer.exchange_hello("server-session");
    assert_eq!(device.json()["type"], "hello");
    // Another device's credentials are others, and these open nothing for it.
    let other = ask(ota, 2).json();
    assert_ne!(other["mqtt"]["password"], answer["mqtt"]["password"]);
    let mut thief = connect(&answer);
    thief.client_id = other["mqtt"]["client_id"].as_str().unwrap().to_owned();
    let mut refused = Client::open(mqtt);
    assert_eq!(refused.connack_code(&thief), 4);
}

#[test]
fn any_path_and_both_methods_are_answered_whatever_the_body() {
    let gateway = gateway_with(&["ws://127.0.0.1:9/"], with_key);
    let ota = gateway.addresses().ota.unwrap();
    for path in ["/", "/xiaozhi/ota", "/xiaozhi/ota/", "/x?y=z", "//", "/notify", "/xiaozhi/ota/activate"] {
        for (method, body) in
            [("GET", ""), ("POST", ""), ("POST", "{"), ("POST", "\u{0}\u{1}"), ("POST", &"x".repeat(16_384))]
        {
            let reply = RawClient::round_trip(ota, &request(method, path, "AA:BB:CC:DD:EE:FF", body));
            assert_eq!(reply.status, 200, "{method} {path}: {reply:?}");
            let answer = reply.json();
            assert_eq!(answer["mqtt"]["subscribe_topic"], "devices/p2p/aa_bb_cc_dd_ee_ff");
            assert!(["firmware", "activation", "websocket"].iter().all(|name| answer.get(name).is_none()));
        }
    }
    let chunked =
        request("POST", "/", &mac(1), "").replace("Content-Length: 0", "Transfer-Encoding: chunked");
    assert_eq!(RawClient::round_trip(ota, &format!("{chunked}3\r\n{{\"a\r\n0\r\n\r\n")).status, 200);
    let head = RawClient::open(ota);
    let mut head = head;
    head.send(request("HEAD", "/", &mac(1), ""));
    let mut text = String::new();
    head.stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n"), "{text}");
}

#[test]
fn what_is_no_request_of_a_device_gets_no_credentials() {
    let gateway = gateway_with(&["ws://127.0.0.1:9/"], with_key);
    let ota = gateway.addresses().ota.unwrap();
    let good = request("POST", "/", &mac(1), "{}");
    for (bad, status) in [
        (good.replace(&mac(1), "nonsense"), 400),
        (good.replace("Device-Id", "X-Other"), 400),
        (good.replace("POST", "DELETE"), 405),
        (good.replace("Client-Id:", "Origin: http://gw.test:8006\r\nClient-Id:"), 403),
        (good.replace("Client-Id:", "Sec-Fetch-Site: cross-site\r\nClient-Id:"), 403),
        (good.replace("Host: gw.test:8006\r\n", ""), 400),
        (good.replace("Content-Length: 2", "Content-Length: 16385"), 413),
        (good.replace("Content-Length: 2", "Content-Length: 99999999999999999999"), 413),
        (good.replace("Content-Length: 2", "Transfer-Encoding: gzip"), 501),
        (format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(9_000)), 431),
        ("\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), 400),
    ] {
        let reply = RawClient::round_trip(ota, &bad);
        assert_eq!(reply.status, status, "{bad}: {reply:?}");
        assert!(!reply.body.contains("password") && reply.json()["error"].is_string(), "{reply:?}");
    }
    assert_eq!(RawClient::round_trip(ota, &good).status, 200);
}

#[test]
fn only_the_named_networks_and_macs_are_answered() {
    let mut log = LogCapture::containing("02:00:00:00:00:0b");
    let gateway = gateway_with(&["ws://127.0.0.1:9/"], |config| {
        with_key(config);
        config.ota.allow = vec!["127.0.0.2".parse().unwrap()];
        config.ota.macs = vec!["02:00:00:00:00:0a".parse().unwrap()].into();
    });
    let ota = gateway.addresses().ota.unwrap();
    let status = |ip: [u8; 4], number: u8| {
        let mut stream = connect_from(ip, ota);
        stream.write_all(request("POST", "/", &mac(number), "{}").as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text.contains("password"), text.starts_with("HTTP/1.1 200 "), "{text}");
        text[9..12].to_owned()
    };
    assert_eq!(status([127, 0, 0, 2], 10), "200");
    assert_eq!(status([127, 0, 0, 1], 10), "403");
    assert_eq!(status([127, 0, 0, 2], 11), "403");
    assert_eq!(status([127, 0, 0, 2], 11), "403");
    log.wait_for_line("WARN OTA: [127.0.0.2] 02:00:00:00:00:0b refused: its MAC is not in ota.macs");
    assert_eq!(log.count("refused"), 0, "one line");
}

#[test]
fn an_address_that_asks_too_often_must_wait_and_others_need_not() {
    let gateway = gateway_with(&["ws://127.0.0.1:9/"], with_key);
    let ota = gateway.addresses().ota.unwrap();
    // All at once, within the limit of connections.
    let mut asking: Vec<_> = (0..120).map(|_| RawClient::open(ota)).collect();
    asking.iter_mut().for_each(|client| client.send(request("POST", "/", &mac(1), "{}")));
    let statuses: Vec<_> = asking.iter_mut().map(|client| client.reply().unwrap().status).collect();
    let count = |status| statuses.iter().filter(|found| **found == status).count();
    assert!(count(200) >= 100 && count(429) >= 1 && count(200) + count(429) == 120, "{statuses:?}");
    let mut stream = connect_from([127, 0, 0, 3], ota);
    stream.write_all(request("POST", "/", &mac(1), "{}").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
}

#[test]
fn behind_a_load_balancer_the_device_counts() {
    let gateway = gateway_with(&["ws://127.0.0.1:9/"], |config| {
        with_key(config);
        config.mqtt.proxy_protocol_from = vec!["127.0.0.9".parse().unwrap()];
    });
    let ota = gateway.addresses().ota.unwrap();
    let through = |header: &str| {
        let mut stream = connect_from([127, 0, 0, 9], ota);
        stream.write_all(format!("{header}{}", request("POST", "/", &mac(1), "{}")).as_bytes()).unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text.get(9..12).unwrap_or_default().to_owned()
    };
    assert_eq!(through("PROXY TCP4 10.1.2.3 127.0.0.1 4711 8006\r\n"), "200");
    assert_eq!(through("PROXY TCP4 203.0.113.9 127.0.0.1 4711 8006\r\n"), "403");
    assert_eq!(through(""), "");
    assert_eq!(ask(ota, 1).status, 200);
    // Nobody else can claim an address.
    let claimed = format!("PROXY TCP4 10.1.2.3 127.0.0.1 1 2\r\n{}", request("POST", "/", &mac(1), "{}"));
    assert_eq!(RawClient::round_trip(ota, &claimed).status, 400);
}

#[test]
fn settings_are_reloaded_and_a_drain_closes_the_port() {
    let mut log = LogCapture::containing("ota.keepalive");
    let gateway = gateway_with(&["ws://127.0.0.1:9/"], with_key);
    let ota = gateway.addresses().ota.unwrap();
    let mut config = support::config(&["ws://127.0.0.1:9/"]);
    with_key(&mut config);
    config.ota.endpoint = Some("mqtt.test:2883".parse().unwrap());
    config.ota.keepalive = 99;
    config.ota.group = "GID_kids".to_owned();
    config.ota.enabled = false;
    gateway.handle().reload(config);
    log.wait_for_line("applied: ota.endpoint, ota.keepalive, ota.group; needs restart: ota.enabled");
    let answer = ask(ota, 1).json();
    assert_eq!(
        (&answer["mqtt"]["endpoint"], &answer["mqtt"]["keepalive"]),
        (&"mqtt.test:2883".into(), &99.into())
    );
    assert!(answer["mqtt"]["client_id"].as_str().unwrap().starts_with("GID_kids@@@"));
    gateway.handle().drain();
    gateway.wait().unwrap();
    assert!(std::net::TcpStream::connect(ota).is_err());
}

#[test]
fn a_chosen_port_that_is_taken_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = support::config(&["ws://127.0.0.1:9/"]);
    with_key(&mut config);
    config.ota.host = [127, 0, 0, 1].into();
    config.ota.port = taken.local_addr().unwrap().port();
    let error = mqtt_websocket_proxy::Running::start(config, None).unwrap_err().to_string();
    assert!(error.starts_with("cannot listen on OTA port ") && error.contains("another program"), "{error}");
}

/// A device from the box, and the binary in an empty folder.
#[test]
fn without_a_file_and_a_key_a_device_comes_from_power_on_to_speech() {
    let folder = Folder::new();
    let process = folder.start("", &[("MQTT_PROXY_OTA_PORT", "0")]);
    let reply = RawClient::round_trip(
        process.ota(),
        &request("POST", "/xiaozhi/ota/", &mac(1), BODY).replace("gw.test", "127.0.0.1"),
    );
    assert_eq!(reply.status, 200, "{reply:?}");
    let answer = reply.json();
    let (host, port) = endpoint(&answer);
    let mut device = Client::log_in(SocketAddr::new(host.parse().unwrap(), port), &connect(&answer));
    device.send_text(HELLO);
    let mut text = device.json();
    // The gateway asks for the device's tools; this device does not answer.
    while text["type"] != "hello" {
        text = device.json();
    }
    let mut call = Call::new(text);
    call.assert_echo(|text| device.send_text(text));
}

#[test]
fn where_there_is_something_to_protect_it_is_off_by_default() {
    for (folder, variables) in [
        (Folder::new(), &[("MQTT_SIGNATURE_KEY", "A-good-Key-1")][..]),
        (Folder::new().with_file("config/gateway.json", "{}"), &[]),
        (Folder::new(), &[("MQTT_PROXY_OTA_ENABLED", "false")]),
    ] {
        let process = folder.start("", &[&[("MQTT_PROXY_OTA_PORT", "0")], variables].concat());
        assert!(!process.seen.iter().any(|line| line.contains("http://HOST:")), "{:#?}", process.seen);
    }
}

#[test]
fn a_default_port_that_is_taken_costs_the_answers_and_not_the_start() {
    let ip = process_loopback_ip().to_string();
    let _taken = TcpListener::bind((ip.as_str(), 8006)).unwrap();
    let process = Folder::new().start("", &[("MQTT_PROXY_OTA_HOST", &ip)]);
    let lines = process.seen.iter().filter(|line| line.contains("OTA port 8006"));
    let lines: Vec<_> = lines.collect();
    assert!(
        lines.len() == 1 && lines[0].contains("WARN") && lines[0].contains("set another ota.port"),
        "{lines:?}"
    );
}

#[test]
fn with_a_key_where_all_devices_may_have_one_address_somebody_must_be_named() {
    let key = ("MQTT_SIGNATURE_KEY", "A-good-Key-1");
    let ota = [
        key,
        ("MQTT_PROXY_OTA_ENABLED", "1"),
        ("MQTT_PROXY_OTA_PORT", "0"),
        ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
    ];
    let mut process = Folder::new().start("", &ota);
    let refused = "name ota.allow or ota.macs";
    let line = process.seen.iter().find(|line| line.contains(refused)).unwrap();
    assert!(line.contains("[ERROR] ota: no device is answered on port"), "{line}");
    let port = line.split("on port ").nth(1).unwrap().split(':').next().unwrap();
    let addr = SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
    assert_eq!(ask(addr, 1).status, 403);
    process.wait_for_line("OTA: [127.0.0.1] refused: mqtt.signature_key is set");
    let named = [&ota[..], &[("MQTT_PROXY_OTA_MACS", "02:00:00")]].concat();
    let mut process = Folder::new().start("", &[&named[..], &[("LOG_LEVEL", "debug")]].concat());
    let reply = ask(process.ota(), 1);
    assert_eq!(reply.status, 200);
    process.wait_for_line("is told to connect to");
    let secrets = ["A-good-Key-1", reply.json()["mqtt"]["password"].as_str().unwrap()].map(str::to_owned);
    assert!(!process.seen.iter().any(|line| secrets.iter().any(|secret| line.contains(secret))));
    assert!(!reply.body.contains("A-good-Key-1"));

    // An HTTP proxy says that it hides the address.
    let gateway = gateway_with(&["ws://127.0.0.1:9/"], |config| {
        with_key(config);
        config.ota.allow.clear();
    });
    let forwarded = request("POST", "/", &mac(1), "{}")
        .replace("Client-Id:", "X-Forwarded-For: 192.168.1.2\r\nClient-Id:");
    assert_eq!(RawClient::round_trip(gateway.addresses().ota.unwrap(), &forwarded).status, 403);
}

#[test]
fn a_crowd_of_silent_connections_locks_nobody_out() {
    let gateway = gateway_with(&["ws://127.0.0.1:9/"], with_key);
    let ota = gateway.addresses().ota.unwrap();
    let crowd: Vec<_> = (0..300).map(|_| connect_from([127, 0, 0, 4], ota)).collect();
    let mut slow = connect_from([127, 0, 0, 5], ota);
    let text = request("POST", "/", &mac(1), "{}");
    let (first, rest) = text.split_at(20);
    slow.write_all(first.as_bytes()).unwrap();
    let more: Vec<_> = (0..300).map(|_| connect_from([127, 0, 0, 4], ota)).collect();
    assert_eq!(ask(ota, 2).status, 200);
    slow.write_all(rest.as_bytes()).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop((crowd, more));
}

#[cfg(all(feature = "tls", target_os = "linux"))]
#[test]
fn without_a_port_only_with_a_certificate_for_that_name() {
    use support::tls::CertificateAuthority;

    // For the port on which devices speak TLS.
    support::host::in_network_namespace(|| {
        let authority = CertificateAuthority::new();
        let certificate = authority.issue("gw.test");
        let config = serde_json::json!({
            "mqtt": {"tls": {"cert_file": "cert.pem", "key_file": "key.pem"}},
            "ota": {"enabled": true, "port": 0, "allow": ["127.0.0.0/8"]},
            "websocket": {"production_servers": ["ws://127.0.0.1:9/"]},
        });
        let folder = Folder::new()
            .with_file("cert.pem", certificate.certificate_pem())
            .with_file("key.pem", certificate.key_pem())
            .with_file("ca.pem", authority.pem())
            .with_file("gateway.json", config.to_string());
        // The authorities that devices know, and others.
        for (known, told) in [("ca.pem", "gw.test"), ("cert.pem", "gw.test:PORT")] {
            let process = folder.start("-c gateway.json", &[("SSL_CERT_FILE", known)]);
            let port = process.mqtt().port().to_string();
            let told_for = |host: &str| {
                let text = request("POST", "/", &mac(1), "{}").replace("gw.test", host);
                RawClient::round_trip(process.ota(), &text).json()["mqtt"]["endpoint"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            };
            assert_eq!(told_for("gw.test"), told.replace("PORT", &port), "{known}");
            assert_eq!(told_for("other.test"), format!("other.test:{port}"));
        }
    });
}

#[test]
fn with_several_workers_the_first_one_answers_for_all() {
    let gateway = gateway_with(&["ws://127.0.0.1:9/"], |config| {
        with_key(config);
        config.workers = 3;
    });
    for number in 1..=4 {
        let answer = ask(gateway.addresses().ota.unwrap(), number).json();
        assert_eq!(endpoint(&answer).1, gateway.addresses().mqtt.port());
        Client::log_in(gateway.addresses().mqtt, &connect(&answer));
    }
}
