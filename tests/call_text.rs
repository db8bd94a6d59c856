//! JSON through a call: what is forwarded, what is changed, what is dropped, and how a call ends.

#![allow(clippy::unwrap_used)]

mod support;

use std::thread;

use serde_json::json;
use support::chat_server::{ChatServer, Message, audio_frame, frame, upgrade_response};
use support::device::{Device, HELLO, client_id};
use support::gateway;
use support::mqtt::{Client, Connect, publish};

#[test]
fn text_passes_both_ways_in_order_and_unchanged() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (_call, mut peer) = device.call(&server);
    // Spaces, escapes, numbers and duplicate keys are kept, because nothing is serialised again.
    let texts = [
        r#"{"type":"listen","session_id":"server-session","state":"start","mode":"auto"}"#,
        "{ \"session_id\" :\t\"server-session\",\n\"type\": \"abort\" , \"n\": 1.50e+2, \"u\": \"\\u00e9\\/\", \"é\":\"\u{1F600}\" }",
        r#"{"type":"mcp","session_id":"server-session","payload":{"jsonrpc":"2.0","id":1,"result":{"a":[1,2,{"b":null}]}}}"#,
        r#"{"type":"iot","session_id":"server-session","states":[],"a":1,"a":2}"#,
        r#"{"type":"never heard of","session_id":"server-session"}"#,
        r#"{"session_id":"server-session","no":"type"}"#,
        r#"{"type":17,"session_id":"server-session"}"#,
    ];
    texts.iter().for_each(|text| device.send_text(text));
    texts.iter().for_each(|text| assert_eq!(peer.text(), **text));
    texts.iter().for_each(|text| peer.send_text(text));
    texts.iter().for_each(|text| assert_eq!(device.mqtt.text(), **text));

    let numbered = |n: usize| format!(r#"{{"type":"x","session_id":"server-session","n":{n}}}"#);
    (0..100).for_each(|n| device.send_text(&numbered(n)));
    (0..100).for_each(|n| assert_eq!(peer.text(), numbered(n)));
    (0..100).for_each(|n| peer.send_text(&numbered(n)));
    (0..100).for_each(|n| assert_eq!(device.mqtt.text(), numbered(n)));
}

#[test]
fn the_device_gets_its_session_id_once_and_nothing_else_changes() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (_call, mut peer) = device.call(&server);
    for (sent, expected) in [
        (r#"{"type":"stt","text":"a"}"#, r#"{"session_id":"server-session","type":"stt","text":"a"}"#),
        ("{}", r#"{"session_id":"server-session"}"#),
        ("{ }", r#"{"session_id":"server-session" }"#),
        (r#"{"type":"llm","session_id":null}"#, r#"{"type":"llm","session_id":"server-session"}"#),
        (r#"{"type":"llm","session_id":""}"#, r#"{"type":"llm","session_id":"server-session"}"#),
        (r#"{"type":"llm","session_id":"other"}"#, r#"{"type":"llm","session_id":"server-session"}"#),
        (
            r#"{"Session_Id":"other","type":"llm", "session_id" :"server-session" ,"session_id":1}"#,
            r#"{"session_id":"server-session","type":"llm"}"#,
        ),
        (
            r#"{"type":"mcp","payload":{"session_id":"inner"}}"#,
            r#"{"session_id":"server-session","type":"mcp","payload":{"session_id":"inner"}}"#,
        ),
    ] {
        peer.send_text(sent);
        assert_eq!(device.mqtt.text(), expected, "{sent}");
    }
}

#[test]
fn bad_messages_of_the_device_are_dropped_and_the_call_goes_on() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (_call, mut peer) = device.call(&server);
    let deep = "[".repeat(30_000);
    for bad in [
        &b""[..],
        b"hello",
        b"{",
        br#"{"type":"listen","state":"detect","text":"x""#,
        b"{'type':'listen'}",
        b"[]",
        b"null",
        b"17",
        br#""{}""#,
        b"{}{}",
        b"{\"type\":\"x\xff\"}",
        b"\x00",
        deep.as_bytes(),
    ] {
        device.mqtt.send(&publish("device-server", bad));
    }
    device.send_text(r#"{"type":"listen","session_id":"server-session"}"#);
    assert_eq!(peer.text(), r#"{"type":"listen","session_id":"server-session"}"#);
    device.mqtt.assert_nothing_pending();
}

#[test]
fn bad_messages_of_the_server_are_dropped_and_the_call_goes_on() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, mut peer) = device.call(&server);
    call.send(0, b"\x58x");
    peer.binary();
    peer.send_audio(1, b"\x58x");
    call.receive();
    for bad in ["", "认证失败", "{", "[]", "null", "17", r#""text""#, "{}{}", r#"{"type":"mcp"}x"#] {
        peer.send_text(bad);
    }
    // The server uses headers: a frame without a matching one is invalid.
    let wrong_length = [&audio_frame(5, b"abcd")[..], b"x"].concat();
    for bad in [&b""[..], b"x", &[0; 15], &[0; 16], &[0; 17], &wrong_length, &vec![7; 5000]] {
        peer.send_binary(bad);
    }
    // A second hello is dropped, and its session id ignored, also where only the device takes it for a hello.
    peer.send_text(r#"{"type":"hello","transport":"websocket","session_id":"another"}"#);
    peer.send_text(r#"{"Type":"hello","type":"llm"}"#);
    peer.send_text(r#"{"type":"mcp","session_id":"server-session"}"#);
    assert_eq!(device.mqtt.text(), r#"{"type":"mcp","session_id":"server-session"}"#);
    peer.send_text(r#"{"type":"stt"}"#);
    assert_eq!(device.mqtt.text(), r#"{"session_id":"server-session","type":"stt"}"#);
    peer.send_audio(2, b"\x58good");
    let audio = call.receive();
    assert_eq!((audio.sequence(), &audio.payload[..]), (2, &b"\x58good"[..]));
}

#[test]
fn a_goodbye_that_only_a_device_takes_for_one_ends_the_call() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (_call, mut peer) = device.call(&server);
    peer.send_text(r#"{"TYPE":"goodbye","type":"tts","Session_Id":"x"}"#);
    assert_eq!(device.mqtt.text(), r#"{"TYPE":"goodbye","type":"tts","session_id":"server-session"}"#);
    assert_eq!(peer.expect_close(1000), None);
}

#[test]
fn what_the_device_says_before_the_servers_hello_waits_and_follows_in_order() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    device.send_text(HELLO);
    let numbered = |n: usize| format!(r#"{{"type":"x","n":{n}}}"#);
    (0..10).for_each(|n| device.send_text(&numbered(n)));
    let mut peer = server.accept();
    peer.request();
    drop(peer);
    // The only server has failed: the call ends.
    device.expect_failure();

    device.send_text(HELLO);
    (0..10).for_each(|n| device.send_text(&numbered(n)));
    let mut peer = server.accept();
    peer.upgrade();
    (10..20).for_each(|n| device.send_text(&numbered(n)));
    peer.exchange_hello("s");
    (0..20).for_each(|n| assert_eq!(peer.text(), numbered(n)));
    device.hello_reply();
}

#[test]
fn what_the_server_says_before_its_hello_waits_for_the_hello_reply() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    device.send_text(HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    // Some servers send MCP first.
    peer.send_text(r#"{"type":"mcp","payload":{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"capabilities":{"vision":{"url":"x"}}}}}"#);
    peer.send_text(r#"{"type":"stt","text":"1"}"#);
    peer.send_text("not even JSON");
    peer.send_text(r#"{"type":"llm","emotion":"happy"}"#);
    device.mqtt.assert_nothing_pending();
    peer.exchange_hello("s");
    let _call = device.hello_reply();
    for kind in ["mcp", "stt", "llm"] {
        let value = device.json();
        assert_eq!((&value["type"], &value["session_id"]), (&kind.into(), &"s".into()), "{value}");
    }
    peer.send_text(r#"{"type":"stt","text":"2"}"#);
    assert_eq!(device.json()["text"], "2");
}

#[test]
fn what_comes_in_one_write_with_the_upgrade_is_not_lost() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 2);
    device.send_text(HELLO);
    let mut peer = server.accept();
    let request = peer.request();
    let mut bytes = upgrade_response(&request).into_bytes();
    bytes.extend(frame(1, br#"{"type":"stt","text":"early"}"#));
    bytes.extend(frame(2, &audio_frame(7, b"\x58a")));
    peer.send_raw(&bytes);
    peer.exchange_hello("s");
    let mut call = device.hello_reply();
    assert_eq!(device.json()["text"], "early");
    call.send(0, b"\x58u");
    assert_eq!(call.receive().payload, b"\x58a");
}

#[test]
fn the_devices_goodbye_closes_the_websocket_and_is_not_answered() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    for goodbye in [r#"{"type":"goodbye","session_id":"server-session"}"#, r#"{"type":"goodbye"}"#] {
        let (_call, mut peer) = device.call(&server);
        device.send_text(goodbye);
        device.send_text(goodbye);
        let told = peer.expect_close(1000).unwrap();
        assert_eq!(
            (&told["session_id"], &told["reason"]),
            (&json!("server-session"), &json!("device_goodbye"))
        );
        assert!(told["duration"].is_f64(), "in seconds: {told}");
        device.mqtt.assert_nothing_pending();
    }
}

#[test]
fn the_servers_end_sends_one_goodbye() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    for code in [Some(1000), None] {
        let (call, mut peer) = device.call(&server);
        // Speech is held for the device's first datagram, which never comes.
        for state in ["start", "stop"] {
            peer.send_text(&json!({"type": "tts", "state": state}).to_string());
        }
        peer.send_close(code);
        // The Close is answered, then the connection ends.
        assert!(matches!(peer.message(), Message::Close(_)));
        peer.shutdown_write();
        assert_eq!(peer.message(), Message::End);
        assert_eq!(device.json()["state"], "start", "what came before is delivered");
        assert_eq!(device.json()["state"], "stop");
        device.expect_goodbye(&call.session_id);
        device.mqtt.assert_nothing_pending();
    }
    // The server's own goodbye is forwarded unchanged, and is the only one, whether or not it closes the WebSocket.
    let (_call, mut peer) = device.call(&server);
    peer.send_text(r#"{"type":"goodbye","why":"bye"}"#);
    peer.send_close(Some(1000));
    assert_eq!(device.json(), json!({"session_id": "server-session", "type": "goodbye", "why": "bye"}));
    device.mqtt.assert_nothing_pending();
    // Older firmware echoes the goodbye; that has no effect.
    device.send_text(r#"{"type":"goodbye","session_id":"server-session"}"#);
    device.mqtt.assert_nothing_pending();
    device.call(&server);
}

#[test]
fn a_message_without_a_call_is_answered_with_goodbye() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let listen = |id: &str| format!(r#"{{"type":"listen"{id}}}"#);
    // Without an id the key is left out, because firmware cannot handle null.
    device.send_text(&listen(""));
    assert_eq!(device.json(), json!({"type": "goodbye"}));
    device.send_text(&listen(r#","session_id":null"#));
    assert_eq!(device.json(), json!({"type": "goodbye"}));
    device.send_text(&listen(r#","session_id":"old""#));
    device.expect_goodbye("old");

    let (call, mut peer) = device.call(&server);
    device.send_text(r#"{"type":"goodbye"}"#);
    peer.expect_close(1000);
    device.send_text(&listen(""));
    device.expect_goodbye(&call.session_id);
    device.send_text(&listen(r#","session_id":"old""#));
    device.expect_goodbye("old");
    // Not in answer to a goodbye or to a tool's answer.
    device.send_text(r#"{"type":"goodbye","session_id":"x"}"#);
    device.send_text(r#"{"type":"mcp","session_id":"x","payload":{"jsonrpc":"2.0","id":3,"result":{}}}"#);
    device.mqtt.assert_nothing_pending();
}

#[test]
fn a_second_hello_replaces_the_call_without_a_goodbye() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut first, mut old) = device.call(&server);
    device.send_text(HELLO);
    let mut new = server.accept();
    new.upgrade();
    new.exchange_hello("second");
    let mut second = device.hello_reply();
    assert_eq!(second.session_id, "second");
    old.expect_close(1000);
    // Audio of the old call is dropped.
    first.send(1, b"\x58old");
    second.send(2, b"\x58new");
    assert_eq!(new.binary(), audio_frame(2, b"\x58new"));
    device.mqtt.assert_nothing_pending();

    // Several hellos at once start exactly one call, with one dial.
    (0..5).for_each(|_| device.send_text(HELLO));
    let mut peer = server.accept();
    peer.upgrade();
    peer.exchange_hello("last");
    assert_eq!(device.hello_reply().session_id, "last");
    device.mqtt.assert_nothing_pending();
    assert!(server.is_idle());
}

#[test]
fn a_hello_of_another_version_closes_the_connection() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    for version in ["1", "2", "4", "\"3\"", "null"] {
        let mut device = Device::connect(gateway.addresses().mqtt, 1);
        device.send_text(&HELLO.replace("\"version\":3", &format!("\"version\":{version}")));
        assert_eq!(device.mqtt.read_until_closed(), [], "{version}");
    }
    assert!(server.is_idle());
    // A missing version is accepted.
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    device.send_text(&HELLO.replace("\"version\":3,", ""));
    let mut peer = server.accept();
    peer.upgrade();
    assert_eq!(peer.exchange_hello("s")["version"], 2);
    device.hello_reply();
}

#[test]
fn udp_timeout_of_the_device_ends_the_call_with_a_goodbye() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (call, mut peer) = device.call(&server);
    device.send_text(r#"{"type":"udp_timeout","session_id":"server-session"}"#);
    peer.expect_close(1000);
    device.expect_goodbye(&call.session_id);
    device.mqtt.assert_nothing_pending();
}

#[test]
fn long_and_fragmented_text_arrives_whole() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (_call, mut peer) = device.call(&server);
    // Longer than any buffer: a remaining length of three bytes.
    let text =
        json!({"type": "custom", "session_id": "server-session", "payload": "x".repeat(100_000)}).to_string();
    peer.send_text(&text);
    assert_eq!(device.mqtt.text(), text);
    let text = json!({"type": "mcp", "session_id": "s", "payload": {"x": "y".repeat(60_000)}}).to_string();
    device.send_text(&text);
    assert_eq!(peer.text(), text);
    // A message in fragments is one message.
    peer.send_raw(&[&[0x01, 9][..], br#"{"type":""#].concat());
    peer.send_raw(&[&[0x80, 3][..], br#"a"}"#].concat());
    assert_eq!(device.mqtt.text(), r#"{"session_id":"server-session","type":"a"}"#);
}

#[test]
fn each_of_many_devices_receives_only_its_own_messages() {
    const DEVICES: u8 = 40;
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let addr = gateway.addresses().mqtt;
    // The server answers each with its own name, in text and in audio.
    server.serve(|mut peer| {
        let request = peer.upgrade();
        let name = request.header("device-id").unwrap().to_owned();
        peer.exchange_hello(&name);
        loop {
            match peer.message() {
                Message::Text(_) => peer.send_text(&json!({"type": "llm", "text": name}).to_string()),
                Message::Binary(frame) => {
                    let opus = [&b"\x58"[..], name.as_bytes(), &frame[16..]].concat();
                    peer.send_audio(0, &opus);
                }
                Message::Close(_) | Message::End => return,
                _ => {}
            }
        }
    });
    thread::scope(|scope| {
        for number in 0..DEVICES {
            scope.spawn(move || {
                let mut device = Device::connect(addr, number);
                device.send_text(HELLO);
                let mut call = device.hello_reply();
                assert_eq!(call.session_id, device.mac);
                for n in 0..20 {
                    device.send_text(r#"{"type":"listen"}"#);
                    assert_eq!(device.json()["text"], device.mac);
                    call.send(n, &[0x58, n as u8]);
                    let expected = [&b"\x58"[..], device.mac.as_bytes(), &[0x58, n as u8]].concat();
                    assert_eq!(call.receive().payload, expected);
                }
                device.send_text(r#"{"type":"goodbye"}"#);
                device.mqtt.assert_nothing_pending();
            });
        }
    });
}

#[test]
fn devices_without_a_user_name_can_call() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let connect =
        Connect { user_name: None, password: None, name: "MQIsdp", level: 3, ..Connect::new(&client_id(1)) };
    let mut client = Client::log_in(gateway.addresses().mqtt, &connect);
    client.send_text(HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    peer.exchange_hello("s");
    assert_eq!(client.json()["session_id"], "s");
}

/// Calls share the WebSocket read buffer while no frame is partial.
#[test]
fn a_partial_frame_of_one_chat_server_affects_no_other_call() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut bad = Device::connect(gateway.addresses().mqtt, 1);
    let mut good = Device::connect(gateway.addresses().mqtt, 2);
    let (_, mut bad_server) = bad.call(&server);
    let (_, mut good_server) = good.call(&server);
    // Masked frames, which a server must not send, and other frames, each cut somewhere.
    for half in [&b"\x81\x84abcd"[..], b"\x89\x80", b"\x81\xfe\x00\x7e", b"\x82\x05ab"] {
        bad_server.try_raw(half);
        // It has been read when a later ping is answered.
        good.mqtt.assert_nothing_pending();
        for n in 0..3 {
            let text = format!(r#"{{"type":"x","session_id":"server-session","n":{n}}}"#);
            good_server.send_text(&text);
            assert_eq!(good.mqtt.text(), text);
        }
    }
}
