//! A chat server fails during a call, and the call goes on.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
#[cfg(feature = "tls")]
use std::io::Write;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::Config;
use serde_json::{Value, json};
use support::audio::Call;
use support::chat_server::{ChatServer, Message, Peer, audio_frame};
use support::device::{Device, HELLO, client_id};
use support::log_capture::{LogCapture, log_field};
use support::parallel::kill_server;
use support::{gateway, gateway_with};

/// Pauses short enough for a test.
fn short_reconnect_delay(config: &mut Config) {
    config.websocket.reconnect.initial = Duration::from_millis(20);
    config.websocket.reconnect.max = Duration::from_millis(40);
}

/// A call on `server` after which the gateway knows the device's UDP address.
fn start_call(device: &mut Device, server: &ChatServer) -> (Call, Peer) {
    let (mut call, mut peer) = device.call(server);
    call.send(0, b"\x58a");
    assert_eq!(peer.binary(), audio_frame(0, b"\x58a"));
    (call, peer)
}

/// Accepts the next dial; returns its hello.
fn accept_redial(server: &ChatServer, session_id: &str) -> (Peer, Value) {
    let mut peer = server.accept();
    peer.upgrade();
    let hello = peer.exchange_hello(session_id);
    (peer, hello)
}

/// Audio passes both ways, with the device's first key. What the device sends before the gateway has read
/// the new chat server's hello is dropped, so wait for a text after it.
fn assert_audio_both_ways(call: &mut Call, peer: &mut Peer, mark: &[u8]) {
    peer.send_text(r#"{"type":"stt","text":"ready"}"#);
    peer.send_audio(9, mark);
    assert_eq!(call.receive().payload, mark);
    call.send(8, mark);
    assert_eq!(peer.binary(), audio_frame(8, mark));
}

#[test]
fn two_hundred_calls_survive_their_chat_server() {
    const CALLS: u8 = 200;
    let failing = ChatServer::start();
    let other = ChatServer::start();
    let mut log = LogCapture::containing(failing.addr.to_string());
    let gateway = gateway(&[failing.url(), other.url()]);
    let mut devices: Vec<(Device, Call)> = Vec::new();
    let mut peers: Vec<HashMap<String, Peer>> = vec![HashMap::new(), HashMap::new()];
    for number in 0..CALLS {
        let mut device = Device::connect(gateway.addresses().mqtt, number);
        device.send_text(HELLO);
        // Calls are spread over the list in turn.
        let at = usize::from(number % 2);
        let mut peer = [&failing, &other][at].accept();
        peer.upgrade();
        peer.exchange_hello(&format!("first-{number}"));
        let mut call = device.hello_reply();
        call.send(0, b"\x58a");
        peer.binary();
        peers[at].insert(device.mac.clone(), peer);
        devices.push((device, call));
    }
    let lost = peers.remove(0);
    let mut going_on = peers.remove(0);
    let count = lost.len();
    kill_server(failing, lost.into_values());
    for _ in 0..count {
        let mut peer = other.accept();
        let request = peer.upgrade();
        peer.exchange_hello("second");
        going_on.insert(request.header("device-id").unwrap().to_owned(), peer);
    }
    for (device, call) in &mut devices {
        let peer = going_on.get_mut(&device.mac).unwrap();
        let mark = [b"\x58", device.mac.as_bytes()].concat();
        peer.send_audio(1, &mark);
        assert_eq!(call.receive().payload, mark);
        call.send(2, &mark);
        assert_eq!(peer.binary(), audio_frame(2, &mark));
    }
    devices.iter_mut().for_each(|(device, _)| device.mqtt.assert_nothing_pending());
    log.wait_for_line("new calls try other servers first");
    assert_eq!(log.count("new calls try other servers first"), 0, "once per change, not per call");
    for level in ["WARN ", "INFO "] {
        assert_eq!(log.count(level), 0, "at the default level a call that redials says nothing of its own");
    }
}

#[test]
fn a_call_waits_until_a_chat_server_is_back() {
    let (first, second) = (ChatServer::start(), ChatServer::start());
    let gateway = gateway_with(&[first.url(), second.url()], short_reconnect_delay);
    let mut log = LogCapture::containing(client_id(1));
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, peer) = start_call(&mut device, &first);
    kill_server(second, []);
    let addr = kill_server(first, [peer]);
    log.wait_for_line("redialling");
    // Until then audio is dropped, and text waits in order.
    (0..5).for_each(|_| call.send(0, b"\x58gap"));
    for n in 0..3 {
        device.send_text(&json!({"type": "custom", "session_id": call.session_id, "n": n}).to_string());
    }
    (0..6).for_each(|_| drop(log.wait_for_line("redialling")));
    let back = ChatServer::start_at(addr);
    let (mut peer, _) = accept_redial(&back, "later");
    for n in 0..3 {
        assert_eq!(peer.json(), json!({"type": "custom", "session_id": "later", "n": n}));
    }
    assert_audio_both_ways(&mut call, &mut peer, b"\x58new");
    assert_eq!(device.json()["type"], "stt");
    device.mqtt.assert_nothing_pending();
    device.send_text(r#"{"type":"goodbye"}"#);
    let end = log.wait_for_line("call ends");
    let dropped: u32 = log_field(&end, "dropped").parse().unwrap();
    assert_eq!((dropped, log_field(&end, "redials")), (5, "1"), "{end}");
}

#[test]
fn how_a_websocket_ends_decides_whether_the_call_goes_on() {
    type End = fn(Peer) -> Option<Peer>;
    fn raw(mut peer: Peer, bytes: &[u8]) -> Option<Peer> {
        peer.send_raw(bytes);
        Some(peer)
    }
    fn close(mut peer: Peer, code: Option<u16>) -> Option<Peer> {
        peer.send_close(code);
        Some(peer)
    }
    let table: [(&str, End, bool); 20] = [
        (
            "reset",
            |peer| {
                peer.reset();
                None
            },
            true,
        ),
        (
            "end without a Close frame",
            |mut peer| {
                peer.shutdown_write();
                Some(peer)
            },
            true,
        ),
        ("1001", |peer| close(peer, Some(1001)), true),
        ("1002", |peer| close(peer, Some(1002)), true),
        ("1003", |peer| close(peer, Some(1003)), true),
        ("1011", |peer| close(peer, Some(1011)), true),
        ("1012", |peer| close(peer, Some(1012)), true),
        ("1013", |peer| close(peer, Some(1013)), true),
        ("1014", |peer| close(peer, Some(1014)), true),
        ("a code that must not be sent", |peer| close(peer, Some(1006)), true),
        ("a Close of one byte", |peer| raw(peer, &[0x88, 1, 3]), true),
        ("an unknown opcode", |peer| raw(peer, &[0x83, 0]), true),
        ("reserved bits", |peer| raw(peer, &[0xc1, 0]), true),
        ("text that is not UTF-8", |peer| raw(peer, &[0x81, 2, 0xff, 0xfe]), true),
        ("a masked frame", |peer| raw(peer, &[0x81, 0x82, 0, 0, 0, 0, b'{', b'}']), true),
        ("a frame of 2 MiB", |peer| raw(peer, &[0x82, 127, 0, 0, 0, 0, 0, 0x20, 0, 0]), true),
        ("1000", |peer| close(peer, Some(1000)), false),
        ("1008", |peer| close(peer, Some(1008)), false),
        ("4000", |peer| close(peer, Some(4000)), false),
        ("a Close without a code", |peer| close(peer, None), false),
    ];
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| {
        short_reconnect_delay(config);
        config.mqtt.hello_limit = 0;
    });
    let mut device = Device::connect(gateway.addresses().mqtt, 2);
    for (how, end, goes_on) in table {
        let (mut call, peer) = start_call(&mut device, &server);
        let old = end(peer);
        if goes_on {
            let (mut peer, _) = accept_redial(&server, "again");
            assert_audio_both_ways(&mut call, &mut peer, b"\x58on");
            assert_eq!(device.json()["session_id"], "server-session", "{how}");
            device.mqtt.assert_nothing_pending();
            device.send_text(r#"{"type":"goodbye"}"#);
            peer.expect_close(1000);
        } else {
            device.expect_goodbye("server-session");
            if ["1008", "4000"].contains(&how) {
                assert!(device.json()["message"].as_str().unwrap().contains(how));
            }
            device.mqtt.assert_nothing_pending();
            assert!(server.is_idle(), "{how}");
        }
        // The gateway has closed the old WebSocket too.
        if let Some(mut old) = old {
            old.shutdown_write();
            while !matches!(old.message(), Message::End) {}
        }
    }
}

/// The server says farewell, the last word of it being `tts stop`.
fn say_farewell(device: &mut Device, peer: &mut Peer) {
    for state in ["start", "stop"] {
        peer.send_text(&json!({"type": "tts", "state": state}).to_string());
        assert_eq!(device.json()["state"], state);
    }
}

#[test]
fn a_server_that_ends_tcp_after_its_farewell_and_takes_a_new_connection_ends_the_call() {
    let ends: [fn(Peer) -> Option<Peer>; 2] = [
        |mut peer| {
            peer.shutdown_write();
            Some(peer)
        },
        |peer| {
            peer.reset();
            None
        },
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let (server, other) = (ChatServer::start(), ChatServer::start());
        let gateway = gateway_with(&[server.url(), other.url()], short_reconnect_delay);
        let mut device = Device::connect(gateway.addresses().mqtt, 30 + number as u8);
        let (_call, mut peer) = start_call(&mut device, &server);
        say_farewell(&mut device, &mut peer);
        let _old = end(peer);
        let mut probe = server.accept();
        probe.upgrade();
        assert_eq!(probe.message(), Message::Close(Some(1000)), "no hello is said");
        device.expect_goodbye("server-session");
        device.mqtt.assert_nothing_pending();
        assert!(server.is_idle() && other.is_idle());
    }
}

#[test]
fn a_server_that_ends_tcp_after_its_speech_and_is_gone_failed() {
    let (server, other) = (ChatServer::start(), ChatServer::start());
    let gateway = gateway_with(&[server.url(), other.url()], short_reconnect_delay);
    let mut log = LogCapture::containing(client_id(32));
    let mut device = Device::connect(gateway.addresses().mqtt, 32);
    let (mut call, mut peer) = start_call(&mut device, &server);
    say_farewell(&mut device, &mut peer);
    kill_server(server, [peer]);
    // The other server's success proves nothing.
    let (mut peer, _) = accept_redial(&other, "again");
    assert!(log.wait_for_line("redialling").contains("the server takes no new connection"));
    assert_audio_both_ways(&mut call, &mut peer, b"\x58on");
    assert_eq!(device.json()["session_id"], "server-session");
    device.mqtt.assert_nothing_pending();
}

#[test]
fn the_fourth_failure_in_a_row_without_a_word_of_the_user_ends_the_call() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], short_reconnect_delay);
    let mut log = LogCapture::containing(client_id(33));
    let mut device = Device::connect(gateway.addresses().mqtt, 33);
    let (_call, mut peer) = start_call(&mut device, &server);
    for _ in 0..3 {
        peer.send_close(Some(1011));
        (peer, _) = accept_redial(&server, "again");
        peer.send_text(r#"{"type":"llm","emotion":"happy"}"#);
        assert_eq!(device.json()["type"], "llm");
    }
    peer.send_close(Some(1011));
    device.expect_goodbye("server-session");
    assert!(log.wait_for_line("the call ends").contains("three redials"));
    assert!(server.is_idle());
}

#[test]
fn what_a_server_says_in_words_is_in_the_failure_line() {
    let (server, other) = (ChatServer::start(), ChatServer::start());
    let mut log = LogCapture::containing(server.addr.to_string());
    let gateway = gateway_with(&[server.url(), other.url()], short_reconnect_delay);
    let mut device = Device::connect(gateway.addresses().mqtt, 34);
    device.send_text(HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    peer.send_text("认证失败");
    peer.shutdown_write();
    other.accept().upgrade();
    let line = log.wait_for_line("is failing");
    assert!(line.contains("it refuses the token") && line.contains("it said \"认证失败\""), "{line}");
}

#[test]
fn an_invalid_frame_closes_the_websocket_with_its_code() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], short_reconnect_delay);
    let mut device = Device::connect(gateway.addresses().mqtt, 3);
    for (bytes, code) in
        [(&[0x83, 0][..], 1002), (&[0x81, 1, 0xff], 1007), (&[0x82, 127, 0, 0, 0, 0, 0, 0x20, 0, 0], 1009)]
    {
        let (_, mut peer) = device.call(&server);
        peer.send_raw(bytes);
        assert_eq!(peer.message(), Message::Close(Some(code)));
        accept_redial(&server, "again");
    }
}

#[test]
fn the_new_chat_server_learns_where_the_device_was() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], short_reconnect_delay);
    let mut device = Device::connect(gateway.addresses().mqtt, 4);
    device.send_text(HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    let first_hello = peer.exchange_hello("old");
    assert_eq!(first_hello["text_font"], json!({"bundle": "x", "size": 16}), "the device's own hello");
    let mut call = device.hello_reply();
    let listen = json!({"type": "listen", "session_id": "old", "state": "start", "mode": "realtime"});
    device.send_text(r#"{"type":"listen","session_id":"old","state":"detect","text":"hi"}"#);
    device.send_text(&listen.to_string());
    assert_eq!(peer.json()["state"], "detect");
    assert_eq!(peer.json(), listen);
    call.send(1, b"\x58a");
    peer.binary();
    peer.send_audio(1, b"\x58x");
    assert_eq!(call.receive().sequence(), 1);
    peer.reset();

    let (mut peer, hello) = accept_redial(&server, "new");
    assert_eq!(hello, first_hello);
    // The last listen is repeated once, with the new server's id.
    let mut repeated = listen.clone();
    repeated["session_id"] = "new".into();
    assert_eq!(peer.json(), repeated);
    // Ids are mapped both ways; the device keeps the one it was given, and its sequences.
    peer.send_text(r#"{"type":"llm","session_id":"new","emotion":"happy"}"#);
    assert_eq!(device.mqtt.text(), r#"{"type":"llm","session_id":"old","emotion":"happy"}"#);
    device.send_text(r#"{"type":"listen","session_id":"old","state":"stop"}"#);
    assert_eq!(peer.text(), r#"{"type":"listen","session_id":"new","state":"stop"}"#);
    peer.send_audio(2, b"\x58y");
    let audio = call.receive();
    assert_eq!((audio.sequence(), audio.ssrc(), &audio.payload[..]), (2, call.ssrc(), &b"\x58y"[..]));
    call.send(3, b"\x58b");
    assert_eq!(peer.binary(), audio_frame(3, b"\x58b"));
    // A third server, which gives no session id.
    peer.reset();
    let mut peer = server.accept();
    peer.upgrade();
    assert_eq!(peer.json(), first_hello);
    peer.send_text(r#"{"type":"hello","transport":"websocket"}"#);
    assert_eq!(peer.json()["state"], "stop");
    peer.send_text(r#"{"type":"stt","text":"x"}"#);
    assert_eq!(device.json()["session_id"], "old");
    peer.send_text(r#"{"type":"goodbye","session_id":"old"}"#);
    device.expect_goodbye("old");
    device.mqtt.assert_nothing_pending();
}

#[test]
fn a_held_listen_is_not_sent_twice() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], short_reconnect_delay);
    let mut log = LogCapture::containing(client_id(5));
    let mut device = Device::connect(gateway.addresses().mqtt, 5);
    let (_call, mut peer) = device.call(&server);
    device.send_text(r#"{"type":"listen","state":"start","mode":"auto"}"#);
    peer.json();
    let addr = kill_server(server, [peer]);
    log.wait_for_line("redialling");
    device.send_text(r#"{"type":"listen","state":"stop"}"#);
    device.send_text(r#"{"type":"abort"}"#);
    let (mut peer, _) = accept_redial(&ChatServer::start_at(addr), "server-session");
    assert_eq!(peer.json()["state"], "stop");
    assert_eq!(peer.json()["type"], "abort");
    device.send_text(r#"{"type":"goodbye"}"#);
    peer.expect_close(1000);
}

#[test]
fn the_next_chat_server_is_dialled_once_per_attempt() {
    let servers = [ChatServer::start(), ChatServer::start(), ChatServer::start()];
    let gateway = gateway_with(&servers.each_ref().map(ChatServer::url), short_reconnect_delay);
    let mut device = Device::connect(gateway.addresses().mqtt, 6);
    let (_call, mut peer) = device.call(&servers[0]);
    for at in [1, 2, 0, 1, 2, 0] {
        peer.reset();
        peer = servers[at].accept();
        assert!(servers.iter().all(ChatServer::is_idle));
    }
    peer.upgrade();
    peer.exchange_hello("back");
    device.mqtt.assert_nothing_pending();
}

#[test]
fn pauses_grow_to_their_limit_with_a_jitter_of_a_fifth_at_most() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| {
        config.websocket.reconnect.initial = Duration::from_millis(50);
        config.websocket.reconnect.max = Duration::from_millis(400);
    });
    let mut log = LogCapture::containing(client_id(7));
    let mut device = Device::connect(gateway.addresses().mqtt, 7);
    let (_call, mut peer) = device.call(&server);
    let mut seen = Vec::new();
    for nominal in [50, 100, 200, 400, 400, 400] {
        let failed = Instant::now();
        peer.reset();
        peer = server.accept();
        let measured = failed.elapsed();
        let said = log.wait_for_line("redialling in ");
        let said: u64 =
            said.split("redialling in ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!((nominal * 4 / 5..=nominal).contains(&said), "{said} ms instead of {nominal} ms");
        assert!(measured >= Duration::from_millis(said), "{measured:?} instead of {said} ms");
        seen.push(said);
    }
    assert!(seen[3..].iter().any(|pause| *pause != seen[3]), "no jitter in {seen:?}");
}

#[test]
fn a_call_that_is_given_up_gets_one_goodbye() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| {
        short_reconnect_delay(config);
        config.websocket.reconnect.give_up_after = Duration::from_millis(300);
    });
    let mut log = LogCapture::containing(client_id(8));
    let mut device = Device::connect(gateway.addresses().mqtt, 8);
    let (_call, peer) = device.call(&server);
    let lost = Instant::now();
    kill_server(server, [peer]);
    device.expect_goodbye("server-session");
    let alert = device.json();
    assert_eq!(
        (&alert["type"], &alert["session_id"]),
        (&"alert".into(), &"server-session".into()),
        "{alert}"
    );
    assert!(lost.elapsed() >= Duration::from_millis(300));
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "server_lost");
    device.mqtt.assert_nothing_pending();
    // The old call is completely gone.
    device.send_text(r#"{"type":"listen","session_id":"server-session","state":"start"}"#);
    device.expect_goodbye("server-session");
}

#[test]
fn each_failure_of_a_chat_server_that_works_is_followed_by_a_redial() {
    let server = ChatServer::start();
    // Shorter than any pause.
    let gateway = gateway_with(&[server.url()], |config| {
        short_reconnect_delay(config);
        config.websocket.reconnect.give_up_after = Duration::from_millis(1);
    });
    let mut device = Device::connect(gateway.addresses().mqtt, 19);
    let (mut call, mut peer) = start_call(&mut device, &server);
    for round in 0..5 {
        peer.send_close(Some(1011));
        (peer, _) = accept_redial(&server, "server-session");
        assert_audio_both_ways(&mut call, &mut peer, &[0x58, round]);
        assert_eq!(device.json()["type"], "stt");
    }
    device.send_text(r#"{"type":"goodbye"}"#);
    peer.expect_close(1000);
}

#[test]
fn a_device_that_hangs_up_ends_the_redialling() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], short_reconnect_delay);
    let mut log = LogCapture::containing(client_id(9));
    let mut device = Device::connect(gateway.addresses().mqtt, 9);
    let (_call, peer) = device.call(&server);
    let addr = kill_server(server, [peer]);
    log.wait_for_line("redialling");
    device.send_text(r#"{"type":"goodbye","session_id":"server-session"}"#);
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "device_goodbye");
    device.mqtt.assert_nothing_pending();
    let back = ChatServer::start_at(addr);
    assert!(back.accept_within(Duration::from_millis(200)).is_none(), "dialled for nobody");
}

#[test]
fn text_that_waits_too_long_ends_the_call() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], short_reconnect_delay);
    let mut log = LogCapture::containing(client_id(10));
    let mut device = Device::connect(gateway.addresses().mqtt, 10);
    let (_call, peer) = device.call(&server);
    kill_server(server, [peer]);
    log.wait_for_line("redialling");
    let text = json!({"type": "custom", "filler": "x".repeat(10_000)}).to_string();
    (0..100).for_each(|_| device.send_text(&text));
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "overflow");
    device.expect_goodbye("server-session");
    // The rest of the texts came without a call.
    while device.json()["type"] != "alert" {}
}

#[test]
fn a_chat_server_that_failed_is_tried_last_but_not_later() {
    let (first, second) = (ChatServer::start(), ChatServer::start());
    let gateway = gateway_with(&[first.url(), second.url()], short_reconnect_delay);
    let mut log = LogCapture::containing(first.addr.to_string());
    let mut device = Device::connect(gateway.addresses().mqtt, 11);
    let (_call, peer) = device.call(&first);
    peer.reset();
    let (_peer, _) = accept_redial(&second, "x");
    assert!(log.wait_for_line("new calls try other servers first").starts_with("WARN"));
    // New calls start with the second.
    let mut calls = Vec::new();
    for number in 12..16 {
        let mut device = Device::connect(gateway.addresses().mqtt, number);
        let call = device.call(&second);
        calls.push((device, call));
        assert!(first.is_idle());
    }
    // Only when that fails too is the first tried.
    let mut device = Device::connect(gateway.addresses().mqtt, 16);
    device.send_text(HELLO);
    second.accept().reset();
    let (_peer, _) = accept_redial(&first, "y");
    device.hello_reply();
    assert!(log.wait_for_line("works again").starts_with("INFO"));
    assert_eq!(log.count("new calls try other servers first"), 0);
}

#[test]
fn the_only_chat_server_is_dialled_at_once_although_it_failed() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], short_reconnect_delay);
    let mut device = Device::connect(gateway.addresses().mqtt, 17);
    device.send_text(HELLO);
    server.accept().reset();
    device.expect_failure();
    device.call(&server);
}

#[test]
fn tts_stop_is_sent_for_interrupted_speech() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], short_reconnect_delay);
    let mut device = Device::connect(gateway.addresses().mqtt, 18);
    let (_call, mut peer) = start_call(&mut device, &server);
    peer.send_text(r#"{"type":"tts","state":"start"}"#);
    assert_eq!(device.json()["state"], "start");
    peer.reset();
    assert_eq!(device.json(), json!({"type": "tts", "state": "stop", "session_id": "server-session"}));
    accept_redial(&server, "x");
    device.mqtt.assert_nothing_pending();
}

#[cfg(feature = "tls")]
#[test]
fn a_server_that_ends_tls_without_a_word_after_its_farewell_ends_the_call() {
    let authority = support::tls::CertificateAuthority::new();
    let folder = support::process::Folder::new().with_file("ca.pem", authority.pem());
    let server = ChatServer::start_tls(authority.server("127.0.0.1"));
    let gateway = gateway_with(&[server.url()], |config| {
        config.websocket.ca_file = Some(folder.0.join("ca.pem"));
    });
    let mut device = Device::connect(gateway.addresses().mqtt, 35);
    let (_call, mut peer) = start_call(&mut device, &server);
    say_farewell(&mut device, &mut peer);
    // TCP only, without close_notify.
    peer.shutdown_write();
    server.accept().upgrade();
    device.expect_goodbye("server-session");
}

#[cfg(feature = "tls")]
#[test]
fn a_call_over_tls_is_redialled_too() {
    let authority = support::tls::CertificateAuthority::new();
    let folder = support::process::Folder::new().with_file("ca.pem", authority.pem());
    let server = ChatServer::start_tls(authority.server("127.0.0.1"));
    let gateway = gateway_with(&[server.url()], |config| {
        short_reconnect_delay(config);
        config.websocket.ca_file = Some(folder.0.join("ca.pem"));
    });
    let mut device = Device::connect(gateway.addresses().mqtt, 21);
    let (mut call, peer) = start_call(&mut device, &server);
    peer.reset();
    let (mut peer, _) = accept_redial(&server, "next");
    assert_audio_both_ways(&mut call, &mut peer, b"\x58on");
    assert_eq!(device.json()["session_id"], "server-session");
    // Bytes that are not a TLS record, in the middle of the stream.
    (&mut peer.tcp().unwrap()).write_all(&[0; 64]).unwrap();
    let (mut peer, _) = accept_redial(&server, "last");
    assert_audio_both_ways(&mut call, &mut peer, b"\x58on");
}

#[test]
fn a_redial_uses_the_current_server_list() {
    let (first, second) = (ChatServer::start(), ChatServer::start());
    let gateway = gateway_with(&[first.url()], short_reconnect_delay);
    let mut device = Device::connect(gateway.addresses().mqtt, 22);
    let (mut call, mut peer) = start_call(&mut device, &first);
    let mut config = support::config(&[second.url()]);
    short_reconnect_delay(&mut config);
    gateway.handle().reload(config);
    // The call stays where it is until its chat server fails.
    assert_audio_both_ways(&mut call, &mut peer, b"\x58on");
    device.json();
    peer.reset();
    let (mut peer, _) = accept_redial(&second, "next");
    assert_audio_both_ways(&mut call, &mut peer, b"\x58on");
    assert!(first.is_idle());
}
