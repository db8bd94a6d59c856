//! The log line at the end of a call, and the goodbye to the chat server.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use mqtt_websocket_proxy::config::Config;
use serde_json::Value;
use support::chat_server::{ChatServer, Message};
use support::device::{Device, client_id};
use support::gateway_with;
use support::log_capture::{LogCapture, log_field};
use support::mqtt::DISCONNECT;

fn short_reconnect_delay(config: &mut Config) {
    config.websocket.reconnect.initial = Duration::from_millis(20);
}

#[test]
fn the_call_ends_line_has_the_call_statistics() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], short_reconnect_delay);
    let mut log = LogCapture::containing(client_id(1));
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (call, mut peer) = device.call(&server);
    for sequence in [1, 2, 3, 3, 7, 6, 8] {
        call.send_raw(&call.seal(0, sequence, &[0x88; 10]));
    }
    (0..5).for_each(|_| drop(peer.binary()));
    (0..4).for_each(|n| peer.send_audio(n, &[0x58; 100]));
    (0..4).for_each(|_| drop(call.receive()));
    peer.reset();
    let mut peer = server.accept();
    peer.upgrade();
    peer.exchange_hello("second");
    peer.send_text(r#"{"type":"stt"}"#);
    device.json();
    device.send_text(r#"{"type":"goodbye","session_id":"server-session"}"#);
    let line = log.wait_for_line("call ends");
    assert!(line.starts_with("INFO"), "{line}");
    for (key, value) in [
        ("session", "server-session"),
        ("reason", "device_goodbye"),
        ("up", "5p/50B"),
        ("down", "4p/400B"),
        ("lost", "2"),
        ("reordered", "1"),
        ("duplicates", "1"),
        ("redials", "1"),
    ] {
        assert_eq!(log_field(&line, key), value, "{line}");
    }
    // Decimal seconds.
    let duration = log_field(&line, "duration").strip_suffix('s').unwrap();
    assert_eq!(duration.split_once('.').unwrap().1.len(), 3, "{line}");
    assert!(duration.parse::<f64>().unwrap() > 0.0);
    device.mqtt.assert_nothing_pending();
    assert_eq!(log.count("call ends"), 0, "one line per call");
}

#[test]
fn the_chat_server_is_told_goodbye_before_the_close() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.mqtt.resume_grace = Duration::ZERO);
    type End = fn(&mut Device);
    let table: [(&str, End, u16); 5] = [
        ("device_goodbye", |device| device.send_text(r#"{"type":"goodbye"}"#), 1000),
        ("device_udp_timeout", |device| device.send_text(r#"{"type":"udp_timeout"}"#), 1000),
        ("device_error", |device| device.mqtt.send(&[0x3f, 0]), 1000),
        ("device_disconnected", |device| device.mqtt.send(&DISCONNECT), 1000),
        ("device_lost", |device| device.mqtt.shutdown_write(), 1000),
    ];
    for (reason, end, code) in table {
        let mut device = Device::connect(gateway.addresses().mqtt, 2);
        let (_call, mut peer) = device.call(&server);
        end(&mut device);
        let goodbye = peer.expect_close(code).unwrap_or_else(|| panic!("{reason}: no goodbye"));
        assert_eq!((&goodbye["session_id"], &goodbye["reason"]), (&"server-session".into(), &reason.into()));
        let duration = goodbye["duration"].as_f64().unwrap();
        assert!((0.0..60.0).contains(&duration), "{goodbye}");
    }
}

#[test]
fn the_goodbye_has_the_id_this_chat_server_knows() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], short_reconnect_delay);
    let mut device = Device::connect(gateway.addresses().mqtt, 3);
    let (_call, peer) = device.call(&server);
    peer.reset();
    let mut peer = server.accept();
    peer.upgrade();
    peer.exchange_hello("another");
    peer.send_text(r#"{"type":"stt"}"#);
    device.json();
    device.send_text(r#"{"type":"goodbye","session_id":"server-session"}"#);
    assert_eq!(peer.expect_close(1000).unwrap()["session_id"], "another");
}

#[test]
fn no_goodbye_is_sent_when_switched_off() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.websocket.send_goodbye = false);
    let mut device = Device::connect(gateway.addresses().mqtt, 4);
    let (_call, mut peer) = device.call(&server);
    device.send_text(r#"{"type":"goodbye"}"#);
    assert_eq!(peer.expect_close(1000), None::<Value>);
}

#[test]
fn a_chat_server_that_hangs_up_is_not_told_goodbye() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |_| {});
    let mut log = LogCapture::containing(client_id(5));
    let mut device = Device::connect(gateway.addresses().mqtt, 5);
    let (_call, mut peer) = device.call(&server);
    peer.send_close(Some(1000));
    assert!(matches!(peer.message(), Message::Close(Some(1000))), "the Close is answered");
    device.expect_goodbye("server-session");
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "server_closed");
}

#[test]
fn devices_and_chat_servers_are_told_when_the_gateway_stops() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |_| {});
    let mut log = LogCapture::containing(client_id(6));
    let mut device = Device::connect(gateway.addresses().mqtt, 6);
    let (_call, mut peer) = device.call(&server);
    let stopper = std::thread::spawn(move || gateway.stop(Duration::from_secs(3)).unwrap());
    assert_eq!(peer.expect_close(1001).unwrap()["reason"], "shutdown");
    let mut last = device.json();
    if last["type"] == "alert" {
        last = device.json();
    }
    assert_eq!((&last["type"], &last["session_id"]), (&"goodbye".into(), &"server-session".into()));
    assert_eq!(device.mqtt.read_until_closed(), []);
    drop(device);
    stopper.join().unwrap();
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "shutdown");
}
