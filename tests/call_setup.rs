//! From a device's hello to its answer: which chat server, the upgrade, both hellos, and what happens when servers fail.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use mqtt_websocket_proxy::config::{PublicIp, Secret};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use support::audio::Call;
use support::chat::{ChatServer, Message, Peer};
use support::device::{Device, HELLO, client_id, mac, uuid};
use support::mqtt::{Client, Connect, hmac};
use support::{LIMIT, closed_port, gateway, gateway_with};

/// The device gives up 10 s after its hello; the gateway answers before 9 s.
const IN_TIME: Duration = Duration::from_secs(9);

#[test]
fn the_upgrade_names_the_device_as_chat_servers_expect() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 0xab);
    device.say(HELLO);
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
        // What was signed is what is sent, or the server would check the token against nothing.
        ("s3cret", two_parts, Some("default-client-id".to_owned()), "default-client-id".to_owned()),
    ] {
        let gateway = gateway_with(&[server.url()], |config| config.websocket.secret = Secret::new(secret));
        let mut client = Client::log_in(gateway.addresses().mqtt, &Connect::new(&client_id));
        client.say(HELLO);
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
    device.say(&hello.to_string());
    let mut peer = server.accept();
    peer.upgrade();
    let forwarded = peer.json();
    let mut expected = hello.clone();
    expected["transport"] = "websocket".into();
    expected["version"] = 2.into();
    assert_eq!(forwarded, expected);

    let params = json!({"format": "opus", "sample_rate": 24000, "channels": 1, "frame_duration": 60, "x": 1});
    peer.say(
        &json!({"type": "hello", "session_id": "abc-123", "audio_params": params, "transport": "websocket"})
            .to_string(),
    );
    let call = device.answered();
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
        device.say(HELLO);
        let mut peer = server.accept();
        peer.upgrade();
        peer.json();
        peer.say(reply);
        let call = device.answered();
        assert_eq!(call.session_id.len(), 36, "a UUID: {}", call.session_id);
        let hello: Value = serde_json::from_str(HELLO).unwrap();
        assert_eq!(call.reply["audio_params"], hello["audio_params"], "{reply}");
    }
}

#[test]
fn key_and_ssrc_are_fresh_for_each_hello() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let calls: Vec<Call> = (0..20).map(|_| device.call(&server).0).collect();
    for (i, one) in calls.iter().enumerate() {
        for other in &calls[..i] {
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
        device.say(HELLO);
        let mut peer = server.accept();
        peer.upgrade();
        peer.greet("s");
        assert_eq!(device.json()["udp"]["server"], expected);
    }
}

#[test]
fn public_ip_auto_differs_by_the_address_each_device_reached() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.mqtt.host = [0, 0, 0, 0].into());
    let port = gateway.addresses().mqtt.port();
    for host in ["127.0.0.1", "127.0.0.2", "127.3.2.1"] {
        let mut device = Device::connect(format!("{host}:{port}").parse().unwrap(), 1);
        device.say(HELLO);
        let mut peer = server.accept();
        peer.upgrade();
        peer.greet("s");
        assert_eq!(device.json()["udp"]["server"], host);
    }
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
    // Kept to the end: a call whose server vanishes would redial.
    let mut kept = Vec::new();
    for number in 0..30 {
        let mut device = Device::connect(addr, number);
        device.say(HELLO);
        let (at, mut peer) = first_of(&servers);
        *calls.entry(at).or_default() += 1;
        peer.upgrade();
        peer.greet("s");
        device.answered();
        kept.push((device, peer));
    }
    // Even, give or take: no server is left out, none gets most.
    assert!(calls.len() == 3 && calls.values().all(|n| (4..=16).contains(n)), "{calls:?}");

    let mut device = Device::connect(addr, 0xde);
    for _ in 0..3 {
        device.call(&development);
    }
    assert!(servers.iter().all(ChatServer::is_idle));
}

/// The first connection to any of these.
fn first_of(servers: &[ChatServer]) -> (usize, Peer) {
    let end = Instant::now() + LIMIT;
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

/// How a chat server fails before its hello.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Refused,
    Reset,
    ClosedAtOnce,
    Status(&'static str),
    NotHttp,
    WrongAccept,
    CloseCode(u16),
    GoneAfterUpgrade,
    BadFrame,
    Goodbye,
    StallsBeforeTls,
    StallsAtUpgrade,
    StallsInHead,
    StallsAtHello,
    StallsAtConnect,
    Unresolvable,
}

/// Those that show at once.
const QUICK: [Fault; 14] = [
    Fault::Refused,
    Fault::Reset,
    Fault::ClosedAtOnce,
    Fault::Status("400 Bad Request"),
    Fault::Status("401 Unauthorized"),
    Fault::Status("302 Found"),
    Fault::Status("200 OK"),
    Fault::Status("503 Service Unavailable"),
    Fault::NotHttp,
    Fault::WrongAccept,
    Fault::CloseCode(1000),
    Fault::CloseCode(1011),
    Fault::GoneAfterUpgrade,
    Fault::Goodbye,
];

/// Those that show by a deadline only.
const SLOW: [Fault; 5] = [
    Fault::StallsBeforeTls,
    Fault::StallsAtUpgrade,
    Fault::StallsInHead,
    Fault::StallsAtHello,
    Fault::StallsAtConnect,
];

/// A URL that fails so, and what keeps it failing.
fn faulty(fault: Fault) -> (String, Vec<Box<dyn std::any::Any + Send>>) {
    match fault {
        Fault::Refused => return (format!("ws://{}/", closed_port()), Vec::new()),
        Fault::Unresolvable => return ("ws://does-not-exist.invalid/".to_owned(), Vec::new()),
        Fault::StallsAtConnect => {
            // A queue of one place that is taken: further SYNs are dropped.
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            socket.listen(0).unwrap();
            let listener: TcpListener = socket.into();
            let addr = listener.local_addr().unwrap();
            let mut kept: Vec<Box<dyn std::any::Any + Send>> = vec![Box::new(listener)];
            while let Ok(stream) = std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(200)) {
                kept.push(Box::new(stream));
            }
            return (format!("ws://{addr}/"), kept);
        }
        _ => {}
    }
    let server = ChatServer::start();
    let url = match fault {
        Fault::StallsBeforeTls => format!("wss://{}/", server.addr),
        _ => server.url(),
    };
    server.serve(move |peer| fail(peer, fault));
    (url, Vec::new())
}

fn fail(mut peer: Peer, fault: Fault) {
    match fault {
        Fault::Reset => peer.reset(),
        Fault::ClosedAtOnce => drop(peer),
        Fault::Status(status) => drop(peer.refuse(status)),
        Fault::NotHttp => {
            peer.request();
            peer.send_raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n");
        }
        Fault::WrongAccept => {
            let mut request = peer.request();
            request.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("sec-websocket-key"));
            request.headers.push(("sec-websocket-key".to_owned(), "AAAAAAAAAAAAAAAAAAAAAA==".to_owned()));
            peer.send_raw(support::chat::agreement(&request).as_bytes());
            peer.hold();
        }
        Fault::CloseCode(code) => {
            peer.upgrade();
            peer.json();
            peer.send_close(Some(code));
            while !matches!(peer.message(), Message::End | Message::Close(_)) {}
        }
        Fault::GoneAfterUpgrade => {
            peer.upgrade();
            peer.json();
            peer.reset();
        }
        Fault::BadFrame => {
            peer.upgrade();
            peer.send_raw(&[0xff, 0x00]);
            while peer.message() != Message::End {}
        }
        Fault::Goodbye => {
            peer.upgrade();
            peer.json();
            peer.say(r#"{"type":"goodbye"}"#);
            while peer.message() != Message::End {}
        }
        Fault::StallsInHead => {
            peer.request();
            peer.send_raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: webso");
            peer.hold();
        }
        Fault::StallsAtHello => {
            peer.upgrade();
            while peer.message() != Message::End {}
        }
        _ => peer.hold(),
    }
}

/// The device is told in words, ends the call, and can call again; how long that took.
fn assert_told_in_words(device: &mut Device) -> Duration {
    let start = Instant::now();
    device.say(HELLO);
    let alert = device.json();
    let took = start.elapsed();
    assert_eq!(alert["type"], "alert");
    for key in ["status", "message", "emotion"] {
        assert!(alert[key].as_str().is_some_and(|text| !text.is_empty()), "{alert}");
    }
    // A complete hello, so that the device's wait ends, and goodbye.
    let call = device.answered();
    device.expect_goodbye(&call.session_id);
    device.mqtt.assert_quiet();
    took
}

#[test]
fn a_server_that_fails_at_once_is_followed_by_the_next() {
    thread::scope(|scope| {
        for fault in QUICK.into_iter().chain([Fault::BadFrame, Fault::Unresolvable]) {
            scope.spawn(move || {
                let good = ChatServer::start();
                let (url, _kept) = faulty(fault);
                let gateway = gateway(&[url, good.url()]);
                // Whichever comes first for a call, each call is answered by the good one.
                for number in 0..3 {
                    let start = Instant::now();
                    let (call, _) = Device::connect(gateway.addresses().mqtt, number).call(&good);
                    assert_eq!(call.session_id, "server-session", "{fault:?}");
                    assert!(start.elapsed() < IN_TIME, "{fault:?}: {:?}", start.elapsed());
                }
            });
        }
    });
}

#[test]
fn when_every_server_fails_at_once_the_device_is_told_at_once() {
    thread::scope(|scope| {
        for fault in QUICK.into_iter().chain([Fault::BadFrame]) {
            scope.spawn(move || {
                let ((one, _a), (two, _b)) = (faulty(fault), faulty(fault));
                let gateway = gateway(&[one, two]);
                let took = assert_told_in_words(&mut Device::connect(gateway.addresses().mqtt, 1));
                assert!(took < Duration::from_secs(3), "{fault:?}: {took:?}");
            });
        }
    });
}

// Each of these waits for seconds to pass, so they wait together.
#[test]
fn a_server_that_stalls_is_given_up_for_the_next_and_the_device_is_answered_before_9_s() {
    thread::scope(|scope| {
        for fault in SLOW {
            // Alone, the server may use all the time there is.
            scope.spawn(move || {
                let (url, _kept) = faulty(fault);
                let gateway = gateway(&[url]);
                let took = assert_told_in_words(&mut Device::connect(gateway.addresses().mqtt, 1));
                assert!(took < IN_TIME && took > Duration::from_secs(5), "{fault:?} alone: {took:?}");
            });
            // With many that stall, the device is still answered.
            scope.spawn(move || {
                let faulty: Vec<_> = (0..4).map(|_| faulty(fault)).collect();
                let urls: Vec<_> = faulty.iter().map(|(url, _)| url.clone()).collect();
                let gateway = gateway(&urls);
                let took = assert_told_in_words(&mut Device::connect(gateway.addresses().mqtt, 1));
                assert!(took < IN_TIME, "{fault:?} four times: {took:?}");
            });
            // With a good one behind it, the call is up.
            scope.spawn(move || {
                let good = ChatServer::start();
                let (url, _kept) = faulty(fault);
                let gateway = gateway(&[url, good.url()]);
                for number in 0..2 {
                    let start = Instant::now();
                    let (call, _) = Device::connect(gateway.addresses().mqtt, number).call(&good);
                    assert_eq!(call.session_id, "server-session", "{fault:?}");
                    assert!(start.elapsed() < IN_TIME, "{fault:?}: {:?}", start.elapsed());
                }
            });
        }
        // The last one is slow, but within the time.
        scope.spawn(|| {
            let server = ChatServer::start();
            let gateway = gateway(&[server.url()]);
            let mut device = Device::connect(gateway.addresses().mqtt, 1);
            device.say(HELLO);
            let mut peer = server.accept();
            peer.upgrade();
            peer.json();
            // Some servers drop a hello that comes too early: it is said once more.
            assert_eq!(peer.json()["type"], "hello");
            assert_eq!(peer.message_within(Duration::from_secs(3)), None);
            peer.say(r#"{"type":"hello","session_id":"late"}"#);
            assert_eq!(device.answered().session_id, "late");
        });
        // A server that speaks but says no hello is taken as live: the device hears what it has to say.
        scope.spawn(|| {
            let server = ChatServer::start();
            let gateway = gateway(&[server.url()]);
            let mut device = Device::connect(gateway.addresses().mqtt, 1);
            let start = Instant::now();
            device.say(HELLO);
            let mut peer = server.accept();
            peer.upgrade();
            peer.json();
            peer.say(r#"{"type":"stt","text":"123456"}"#);
            let call = device.answered();
            assert!(start.elapsed() < IN_TIME);
            assert_eq!(
                device.json(),
                json!({"type": "stt", "text": "123456", "session_id": call.session_id})
            );
        });
        // Without any server at all, or with names that do not resolve.
        scope.spawn(|| {
            let gateway = gateway(&[] as &[&str]);
            assert!(
                assert_told_in_words(&mut Device::connect(gateway.addresses().mqtt, 1))
                    < Duration::from_secs(3)
            );
            let (url, _) = faulty(Fault::Unresolvable);
            let gateway = support::gateway(&[url]);
            assert!(assert_told_in_words(&mut Device::connect(gateway.addresses().mqtt, 1)) < IN_TIME);
        });
    });
}

#[test]
fn the_gateway_serves_others_while_servers_stall() {
    let (url, _kept) = faulty(Fault::StallsAtUpgrade);
    let good = ChatServer::start();
    let gateway = gateway_with(&[url], |config| {
        config.websocket.development = vec![Arc::new(good.url().parse().unwrap())];
        config.websocket.development_macs = vec![mac(0xde).parse().unwrap()];
    });
    let mut stuck: Vec<_> = (0..20).map(|number| Device::connect(gateway.addresses().mqtt, number)).collect();
    stuck.iter_mut().for_each(|device| device.say(HELLO));
    let start = Instant::now();
    let mut device = Device::connect(gateway.addresses().mqtt, 0xde);
    let (mut call, mut peer) = device.call(&good);
    call.send(0, b"\x58x");
    peer.binary();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    // Leaving while a dial is on its way ends it.
    stuck.iter_mut().for_each(|device| device.say(r#"{"type":"goodbye"}"#));
    stuck.iter_mut().for_each(|device| device.mqtt.assert_quiet());
}
