//! From a device's hello to the reply: choice of the chat server, the upgrade, both hellos, and servers that fail.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv6Addr, TcpListener};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use mqtt_websocket_proxy::config::{ChatServerConfig, PublicIp, Route, Secret, ServerOrder};
use serde_json::{Value, json};
use support::audio::Call;
use support::chat_server::{ChatServer, Peer, audio_frame};
use support::device::{Device, HELLO, client_id, mac, uuid};
use support::faulty_server::{IMMEDIATE_FAULTS, ServerFault, assert_failure_alert, start_faulty_server};
use support::log_capture::{LogCapture, log_field};
use support::mqtt::{Client, Connect, hmac};
use support::{TIMEOUT, gateway, gateway_with};

#[test]
fn the_upgrade_names_the_device_as_chat_servers_expect() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 0xab);
    device.send_text(HELLO);
    let request = server.accept().upgrade();
    assert_eq!(request.line, "GET /chat?from=mqtt_gateway HTTP/1.1");
    for (name, value) in [
        ("host", server.addr.to_string()),
        ("device-id", mac(0xab)),
        ("client-id", uuid(0xab)),
        ("protocol-version", "2".to_owned()),
        ("authorization", "Bearer test-token".to_owned()),
        ("x-forwarded-for", "127.0.0.1".to_owned()),
        ("origin", String::new()),
    ] {
        assert_eq!(request.header(name).unwrap_or_default(), value, "{name}");
    }
}

#[test]
fn the_client_id_header_and_the_token_agree() {
    let server = ChatServer::start();
    let two_parts = "GID_test@@@02_00_00_00_00_01".to_owned();
    for (secret, client_id, sent, signed) in [
        ("s3cret", client_id(1), Some(uuid(1)), uuid(1)),
        ("", client_id(1), Some(uuid(1)), String::new()),
        ("", two_parts.clone(), None, String::new()),
        // The signed values are the ones that are sent, so that the server can verify the token.
        ("s3cret", two_parts, Some("default-client-id".to_owned()), "default-client-id".to_owned()),
    ] {
        let gateway = gateway_with(&[server.url()], |config| config.websocket.secret = Secret::new(secret));
        let mut client = Client::log_in(gateway.addresses().mqtt, &Connect::new(&client_id));
        client.send_text(HELLO);
        let request = server.accept().upgrade();
        assert_eq!(request.header("client-id"), sent.as_deref());
        let token = request.header("authorization").unwrap().strip_prefix("Bearer ").unwrap();
        if secret.is_empty() {
            assert_eq!(token, "test-token");
            continue;
        }
        // base64url(HMAC-SHA256(secret, client id | mac | seconds)) without padding, then the seconds.
        let (signature, seconds) = token.split_once('.').unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(seconds.parse().unwrap()) <= 5, "{seconds} at {now}");
        let expected =
            openssl::base64::encode_block(&hmac(secret, &format!("{signed}|{}|{seconds}", mac(1))));
        let expected = expected.replace('+', "-").replace('/', "_");
        assert_eq!(signature, expected.trim_end_matches('='));
    }
}

#[test]
fn every_field_of_the_hello_is_forwarded_and_the_servers_audio_params_come_back() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let hello = json!({
        "type": "hello", "version": 3, "transport": "udp",
        "features": {"mcp": true, "aec": true, "glyph_push": true},
        "text_font": {"bundle": "puhui", "charset": "common", "size": 20, "bpp": 4},
        "audio_params": {"format": "opus", "sample_rate": 16000, "channels": 1, "frame_duration": 20, "play_buffer_duration": 9},
        "unknown": [1, null, "é\u{1F600}", {"deep": [[]]}], "language": "zh-CN",
    });
    device.send_text(&hello.to_string());
    let mut peer = server.accept();
    peer.upgrade();
    let forwarded = peer.json();
    let mut expected = hello.clone();
    expected["transport"] = "websocket".into();
    expected["version"] = 2.into();
    assert_eq!(forwarded, expected);

    let params = json!({"format": "opus", "sample_rate": 24000, "channels": 1, "frame_duration": 60, "x": 1});
    peer.send_text(
        &json!({"type": "hello", "session_id": "abc-123", "audio_params": params, "transport": "websocket"})
            .to_string(),
    );
    let call = device.hello_reply();
    assert_eq!(call.reply["session_id"], "abc-123");
    assert_eq!(call.reply["audio_params"], params);
    assert_eq!(call.reply["version"], 3);
    assert_eq!(call.gateway.port(), gateway.addresses().udp.port());
}

#[test]
fn a_server_that_names_no_session_or_audio_gets_both_from_the_gateway() {
    for reply in [
        r#"{"type":"hello"}"#,
        r#"{"type":"hello","session_id":null,"audio_params":null}"#,
        r#"{"type":"hello","session_id":""}"#,
        r#"{"type":"hello","session_id":17}"#,
    ] {
        let server = ChatServer::start();
        let gateway = gateway(&[server.url()]);
        let mut device = Device::connect(gateway.addresses().mqtt, 1);
        device.send_text(HELLO);
        let mut peer = server.accept();
        peer.upgrade();
        peer.json();
        peer.send_text(reply);
        let call = device.hello_reply();
        assert_eq!(call.session_id.len(), 36, "a UUID: {}", call.session_id);
        let hello: Value = serde_json::from_str(HELLO).unwrap();
        assert_eq!(call.reply["audio_params"], hello["audio_params"], "{reply}");
    }
}

#[test]
fn key_and_ssrc_are_fresh_for_each_hello() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.mqtt.hello_limit = 0);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    // The servers' ends stay open: a call whose server is gone would redial.
    let calls: Vec<(Call, Peer)> = (0..20).map(|_| device.call(&server)).collect();
    for (i, (one, _)) in calls.iter().enumerate() {
        for (other, _) in &calls[..i] {
            assert_ne!(one.key, other.key);
            assert_ne!(one.ssrc(), other.ssrc());
        }
        assert_ne!(one.key, [0; 16]);
    }
}

#[test]
fn public_ip_is_what_the_device_reached_or_what_is_configured() {
    for (setting, expected) in [
        (PublicIp::Auto, "127.0.0.1"),
        (PublicIp::Ip([192, 0, 2, 9].into()), "192.0.2.9"),
        (PublicIp::Host("gw.example.org".to_owned()), "gw.example.org"),
    ] {
        let server = ChatServer::start();
        let gateway = gateway_with(&[server.url()], |config| {
            config.udp.public_ip = setting;
        });
        let mut device = Device::connect(gateway.addresses().mqtt, 1);
        device.send_text(HELLO);
        let mut peer = server.accept();
        peer.upgrade();
        peer.exchange_hello("s");
        assert_eq!(device.json()["udp"]["server"], expected);
    }
}

#[test]
fn public_ip_auto_differs_by_the_address_each_device_reached() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.mqtt.host = [0, 0, 0, 0].into());
    let port = gateway.addresses().mqtt.port();
    let mut kept = Vec::new();
    for (number, host) in [(1, "127.0.0.1"), (2, "127.0.0.2"), (3, "127.3.2.1")] {
        let mut device = Device::connect(format!("{host}:{port}").parse().unwrap(), number);
        device.send_text(HELLO);
        let mut peer = server.accept();
        peer.upgrade();
        peer.exchange_hello("s");
        assert_eq!(device.json()["udp"]["server"], host);
        kept.push((device, peer));
    }
}

#[test]
fn an_ipv4_device_of_an_ipv6_socket_is_an_ipv4_device() {
    if TcpListener::bind("[::1]:0").is_err() {
        return eprintln!("skipped: no IPv6 here");
    }
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| {
        config.mqtt.host = Ipv6Addr::UNSPECIFIED.into();
        config.udp.host = Ipv6Addr::UNSPECIFIED.into();
    });
    let port = gateway.addresses().mqtt.port();
    let mut device = Device::connect(([127, 0, 0, 1], port).into(), 1);
    device.send_text(HELLO);
    let mut peer = server.accept();
    assert_eq!(peer.upgrade().header("x-forwarded-for"), Some("127.0.0.1"));
    peer.exchange_hello("s");
    let mut call = device.hello_reply();
    assert_eq!(call.gateway.ip().to_string(), "127.0.0.1");
    call.send(1, b"\x58up");
    assert_eq!(peer.binary(), audio_frame(1, b"\x58up"));
    peer.send_audio(2, b"\x58down");
    assert_eq!(call.receive().payload, b"\x58down");
}

#[test]
fn a_device_that_comes_over_ipv6_is_told_an_ipv4_address_for_its_audio() {
    if TcpListener::bind("[::1]:0").is_err() {
        return eprintln!("skipped: no IPv6 here");
    }
    let server = ChatServer::start();
    for public_ip in [PublicIp::Auto, PublicIp::Ip("2001:db8::1".parse().unwrap())] {
        let gateway = gateway_with(&[server.url()], |config| {
            config.mqtt.host = Ipv6Addr::UNSPECIFIED.into();
            config.udp.host = Ipv6Addr::UNSPECIFIED.into();
            config.udp.public_ip = public_ip;
        });
        let port = gateway.addresses().mqtt.port();
        let mut device = Device::connect((Ipv6Addr::LOCALHOST, port).into(), 1);
        device.send_text(HELLO);
        let mut peer = server.accept();
        assert_eq!(peer.upgrade().header("x-forwarded-for"), Some("::1"));
        peer.exchange_hello("s");
        let mut call = device.hello_reply();
        assert_eq!(call.gateway.ip().to_string(), "127.0.0.1");
        // Its audio comes from another address than its MQTT, which takes some packets to be believed.
        (1..=20).for_each(|n| call.send(n, b"\x58up"));
        assert_eq!(peer.binary()[16..], *b"\x58up");
        peer.send_audio(2, b"\x58down");
        assert_eq!(call.receive().payload, b"\x58down");
    }
}

#[test]
fn a_server_that_is_not_well_is_tried_last() {
    let servers = [ChatServer::start(), ChatServer::start()];
    let [unwell, well] = &servers;
    let health = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut own: ChatServerConfig = unwell.url().parse().unwrap();
    own.health_url = Some(format!("http://{}/", health.local_addr().unwrap()).parse().unwrap());
    let answer = thread::spawn(move || {
        let (mut peer, _) = health.accept().unwrap();
        peer.write_all(b"HTTP/1.1 503 No\r\n\r\n").unwrap();
        // Whoever asks again gets no answer in time.
        (health, peer)
    });
    let mut log = LogCapture::containing(unwell.addr.to_string());
    let gateway = gateway_with(&[well.url()], |config| {
        config.websocket.order = ServerOrder::First;
        config.websocket.production.insert(0, Arc::new(own));
    });
    log.wait_for_line("is not well");
    let _kept = answer.join().unwrap();
    // The loop is told after the line is written. A call that is dropped would be a failure of its server.
    let mut kept = Vec::new();
    for number in 0..50 {
        let mut device = Device::connect(gateway.addresses().mqtt, number);
        device.send_text(HELLO);
        let (at, peer) = accept_any(&servers);
        kept.push((device, peer));
        if at == 1 {
            return;
        }
    }
    panic!("the server that is not well is tried first");
}

#[test]
fn a_route_decides_by_group_and_mac() {
    let (production, routed) = (ChatServer::start(), ChatServer::start());
    let gateway = gateway_with(&[production.url()], |config| {
        config.websocket.routes = vec![Route {
            name: "one".to_owned(),
            groups: vec!["GID_*".to_owned()],
            macs: vec![mac(7)],
            servers: vec![Arc::new(routed.url().parse().unwrap())],
        }];
    });
    for (number, server) in [(7, &routed), (8, &production)] {
        let mut device = Device::connect(gateway.addresses().mqtt, number);
        device.call(server);
    }
    assert!(production.is_idle() && routed.is_idle());
}

#[test]
fn calls_are_spread_over_the_list_and_listed_devices_use_the_development_list() {
    let servers: Vec<_> = (0..3).map(|_| ChatServer::start()).collect();
    let development = ChatServer::start();
    let gateway = gateway_with(&servers.iter().map(ChatServer::url).collect::<Vec<_>>(), |config| {
        config.websocket.development = vec![Arc::new(development.url().parse().unwrap())];
        config.websocket.development_macs = vec![mac(0xde).parse().unwrap()];
    });
    let addr = gateway.addresses().mqtt;
    let mut calls: HashMap<usize, usize> = HashMap::new();
    // Kept open: a call whose server is gone would redial.
    let mut kept = Vec::new();
    for number in 0..30 {
        let mut device = Device::connect(addr, number);
        device.send_text(HELLO);
        let (at, mut peer) = accept_any(&servers);
        *calls.entry(at).or_default() += 1;
        peer.upgrade();
        peer.exchange_hello("s");
        device.hello_reply();
        kept.push((device, peer));
    }
    // Roughly even: every server gets calls, none gets most.
    assert!(calls.len() == 3 && calls.values().all(|n| (4..=16).contains(n)), "{calls:?}");

    let mut device = Device::connect(addr, 0xde);
    let _calls: Vec<_> = (0..3).map(|_| device.call(&development)).collect();
    assert!(servers.iter().all(ChatServer::is_idle));
}

/// The first connection to any of these.
fn accept_any(servers: &[ChatServer]) -> (usize, Peer) {
    let end = Instant::now() + TIMEOUT;
    loop {
        for (at, server) in servers.iter().enumerate() {
            if let Some(peer) = server.accept_within(Duration::from_millis(1)) {
                return (at, peer);
            }
        }
        assert!(Instant::now() < end, "no call came");
    }
}

#[test]
fn a_listed_device_uses_production_when_there_is_no_development_server() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| {
        config.websocket.development_macs = vec![mac(1).parse().unwrap()];
    });
    Device::connect(gateway.addresses().mqtt, 1).call(&server);
}

#[test]
fn a_server_that_fails_at_once_is_followed_by_the_next() {
    thread::scope(|scope| {
        for fault in IMMEDIATE_FAULTS.into_iter().chain([ServerFault::BadFrame, ServerFault::Unresolvable]) {
            scope.spawn(move || {
                let good = ChatServer::start();
                let (url, _kept) = start_faulty_server(fault);
                let gateway = gateway(&[url, good.url()]);
                // Whichever is tried first, the good one answers each call.
                let mut kept = Vec::new();
                for number in 0..3 {
                    let mut device = Device::connect(gateway.addresses().mqtt, number);
                    let (call, peer) = device.call(&good);
                    kept.push((device, peer));
                    assert_eq!(call.session_id, "server-session", "{fault:?}");
                }
            });
        }
    });
}

#[test]
fn when_every_server_fails_at_once_the_device_is_told_at_once() {
    thread::scope(|scope| {
        for (number, fault) in (0x80..).zip(IMMEDIATE_FAULTS.into_iter().chain([ServerFault::BadFrame])) {
            scope.spawn(move || {
                let ((one, _a), (two, _b)) = (start_faulty_server(fault), start_faulty_server(fault));
                let mut log = LogCapture::containing(client_id(number));
                let gateway = gateway(&[one, two]);
                assert_failure_alert(&mut Device::connect(gateway.addresses().mqtt, number));
                // Not because a time was over.
                assert_eq!(log.count("no answer in"), 0, "{fault:?}");
                assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "no_server", "{fault:?}");
            });
        }
    });
}

#[test]
fn the_gateway_serves_others_while_servers_stall() {
    let (url, _kept) = start_faulty_server(ServerFault::StallsAtUpgrade);
    let good = ChatServer::start();
    let gateway = gateway_with(&[url], |config| {
        config.websocket.development = vec![Arc::new(good.url().parse().unwrap())];
        config.websocket.development_macs = vec![mac(0xde).parse().unwrap()];
    });
    let mut stuck: Vec<_> = (0..20).map(|number| Device::connect(gateway.addresses().mqtt, number)).collect();
    let start = Instant::now();
    stuck.iter_mut().for_each(|device| device.send_text(HELLO));
    let mut device = Device::connect(gateway.addresses().mqtt, 0xde);
    let (mut call, mut peer) = device.call(&good);
    call.send(0, b"\x58x");
    peer.binary();
    if start.elapsed() > Duration::from_secs(4) {
        // The servers' time is nearly over.
        return eprintln!("SKIPPED: this machine is too slow: {:?}", start.elapsed());
    }
    // A device that disconnects during a dial ends it. None was answered before.
    stuck.iter_mut().for_each(|device| device.send_text(r#"{"type":"goodbye"}"#));
    stuck.iter_mut().for_each(|device| device.mqtt.assert_nothing_pending());
}
