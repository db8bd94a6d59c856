//! Pings, keep alive, and idle calls.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::Config;
use support::chat_server::{ChatServer, Message};
use support::device::{Device, HELLO, client_id};
use support::log_capture::{LogCapture, log_field};
use support::mqtt::PINGREQ;
use support::{gateway, gateway_with};

const MS: fn(u64) -> Duration = Duration::from_millis;

fn short_ping_interval(config: &mut Config) {
    config.websocket.ping_interval = MS(200);
    config.websocket.ping_timeout = MS(300);
    config.websocket.reconnect.initial = MS(20);
}

/// An interval that passes several times before the gateway gives up a server that does not answer.
fn long_ping_timeout(config: &mut Config) {
    short_ping_interval(config);
    config.websocket.ping_timeout = MS(3000);
}

#[test]
fn a_chat_server_is_pinged_and_its_pings_are_answered() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], long_ping_timeout);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let began = Instant::now();
    let (_call, mut peer) = device.call(&server);
    for _ in 0..3 {
        let Message::Ping(payload) = peer.message() else { panic!() };
        peer.frame(10, &payload);
    }
    assert!(began.elapsed() >= MS(590), "three pings in {:?}", began.elapsed());
    for payload in [&b""[..], b"abc", &[7; 125]] {
        peer.ping(payload);
        while peer.message() != Message::Pong(payload.to_vec()) {}
    }
    device.mqtt.assert_nothing_pending();
    assert!(server.is_idle());
}

#[test]
fn no_ping_is_sent_when_the_interval_is_zero() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.websocket.ping_interval = Duration::ZERO);
    let mut device = Device::connect(gateway.addresses().mqtt, 2);
    let (_call, mut peer) = device.call(&server);
    assert_eq!(peer.message_within(MS(500)), None);
}

#[test]
fn a_chat_server_that_answers_no_ping_is_replaced() {
    let (silent, other) = (ChatServer::start(), ChatServer::start());
    let gateway = gateway_with(&[silent.url(), other.url()], short_ping_interval);
    let mut log = LogCapture::containing(client_id(3));
    let mut device = Device::connect(gateway.addresses().mqtt, 3);
    let began = Instant::now();
    let (_call, _peer) = device.call(&silent);
    let mut peer = other.accept();
    assert!(began.elapsed() >= MS(490), "{:?}", began.elapsed());
    assert!(log.wait_for_line("redialling").contains("no pong"));
    peer.upgrade();
    peer.exchange_hello("x");
    device.mqtt.assert_nothing_pending();
}

#[test]
fn any_frame_of_the_chat_server_counts_as_alive() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], long_ping_timeout);
    let mut device = Device::connect(gateway.addresses().mqtt, 4);
    let (_call, mut peer) = device.call(&server);
    let end = Instant::now() + MS(4500);
    while Instant::now() < end {
        if let Some(Message::Ping(_)) = peer.message_within(MS(100)) {
            peer.send_text(r#"{"type":"stt","text":"busy"}"#);
            device.json();
        }
    }
    device.mqtt.assert_nothing_pending();
    assert!(server.is_idle());
}

#[test]
fn an_idle_call_ends() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| {
        config.websocket.call_idle = MS(4000);
        config.websocket.ping_interval = MS(100);
    });
    let mut log = LogCapture::containing(client_id(6));
    let mut device = Device::connect(gateway.addresses().mqtt, 6);
    let (mut call, mut peer) = device.call(&server);
    // Each of these counts as activity of the call; pings and pongs do not.
    let mut last = Instant::now();
    for step in 0..4 {
        let end = Instant::now() + MS(1200);
        while Instant::now() < end {
            if let Some(Message::Ping(payload)) = peer.message_within(MS(10)) {
                peer.frame(10, &payload);
            }
        }
        last = Instant::now();
        match step {
            0 => device.send_text(r#"{"type":"custom"}"#),
            1 => peer.send_text(r#"{"type":"stt"}"#),
            2 => call.send(0, b"\x58a"),
            _ => peer.send_audio(0, b"\x58a"),
        }
    }
    assert_eq!(device.json()["type"], "stt");
    device.mqtt.send(&PINGREQ);
    device.mqtt.packet();
    device.expect_goodbye("server-session");
    assert!(last.elapsed() >= MS(3990), "{:?}", last.elapsed());
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "idle");
    while !matches!(peer.message(), Message::Close(Some(1000))) {}
}

#[test]
fn an_idle_call_continues_when_the_limit_is_zero() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.websocket.call_idle = Duration::ZERO);
    let mut device = Device::connect(gateway.addresses().mqtt, 7);
    let (_call, mut peer) = device.call(&server);
    assert_eq!(peer.message_within(MS(500)), None);
    device.mqtt.assert_nothing_pending();
}

#[test]
fn an_unanswered_ping_does_not_end_a_call_that_is_over() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], long_ping_timeout);
    let mut device = Device::connect(gateway.addresses().mqtt, 8);
    let (_call, mut peer) = device.call(&server);
    while !matches!(peer.message(), Message::Ping(_)) {}
    device.send_text(r#"{"type":"goodbye"}"#);
    device.send_text(HELLO);
    let mut next = server.accept();
    next.upgrade();
    next.exchange_hello("second");
    assert_eq!(device.hello_reply().session_id, "second");
    while !matches!(peer.message(), Message::Close(Some(1000))) {}
    // Until its time is over.
    let end = Instant::now() + MS(3500);
    while Instant::now() < end {
        if let Some(Message::Ping(payload)) = next.message_within(MS(100)) {
            next.frame(10, &payload);
        }
    }
    device.mqtt.assert_nothing_pending();
    assert!(server.is_idle());
}

/// The kernel's timer on the gateway's end of a connection: 2 is keep alive (proc(5), tcp_diag).
#[cfg(target_os = "linux")]
#[test]
fn tcp_keepalive_is_on_for_devices() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let device = Device::connect(gateway.addresses().mqtt, 9);
    let (ours, theirs) = (gateway.addresses().mqtt, device.mqtt.stream.local_addr().unwrap());
    support::host::wait_until("the keep-alive timer runs", || {
        support::host::proc_net_tcp_entry(ours, theirs)[5].starts_with("02:")
    });
}
