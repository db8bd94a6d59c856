//! A device's MQTT connection is lost in mid-call.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use mqtt_websocket_proxy::net::Running;
use serde_json::json;
use support::audio::Call;
use support::chat::{ChatServer, Peer, headed};
use support::device::{Device, client_id};
use support::host::device_from;
use support::logged::{Logged, fact};
use support::mqtt::{Client, Connect, DISCONNECT, Silence};
use support::{gateway, gateway_with};

const MS: fn(u64) -> Duration = Duration::from_millis;

struct Scene {
    gateway: Running,
    server: ChatServer,
    device: Device,
    call: Call,
    peer: Peer,
    log: Logged,
}

/// A device in a call whose UDP address is known, with this grace in milliseconds.
fn scene(number: u8, grace: u64) -> Scene {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.mqtt.resume_grace = MS(grace));
    let log = Logged::about(client_id(number));
    let mut device = Device::connect(gateway.addresses().mqtt, number);
    let (mut call, mut peer) = device.call(&server);
    call.send(0, b"\x58a");
    peer.binary();
    Scene { gateway, server, device, call, peer, log }
}

/// The call goes on over this connection: text and audio, both ways.
fn assert_goes_on(device: &mut Device, call: &mut Call, peer: &mut Peer) {
    device.say(r#"{"type":"listen","state":"stop"}"#);
    assert_eq!(peer.json()["type"], "listen");
    peer.say(r#"{"type":"stt","text":"hi"}"#);
    assert_eq!(device.json(), json!({"type": "stt", "text": "hi", "session_id": "server-session"}));
    call.send(5, b"\x58b");
    assert_eq!(peer.binary(), headed(5, b"\x58b"));
    peer.send_audio(6, b"\x58c");
    assert_eq!(call.receive().payload, b"\x58c");
    device.mqtt.assert_quiet();
}

#[test]
fn a_new_connection_takes_over_the_call_whatever_became_of_the_old() {
    type Loss = fn(Client) -> Option<Client>;
    let lose: [(&str, Loss); 4] = [
        ("the old one stays", Some),
        ("the old one ends first", |mut mqtt| {
            mqtt.finish();
            Some(mqtt)
        }),
        ("the old one vanishes", |mqtt| {
            drop(mqtt);
            None
        }),
        ("the old one is reset", |mqtt| {
            mqtt.reset();
            None
        }),
    ];
    for (how, lose) in lose {
        let Scene { gateway, server, device, mut call, mut peer, log, .. } = scene(1, 5000);
        let old = lose(device.mqtt);
        let mut device = Device::connect(gateway.addresses().mqtt, 1);
        assert_goes_on(&mut device, &mut call, &mut peer);
        if let Some(mut old) = old {
            assert_eq!(old.packet_within(support::LIMIT), Err(Silence::Closed), "{how}");
            // Its late end is not the new one's.
            drop(old);
        }
        assert_goes_on(&mut device, &mut call, &mut peer);
        assert!(server.is_idle() && log.count("call ends") == 0, "{how}");
    }
}

#[test]
fn text_for_an_absent_device_waits_in_order() {
    let Scene { gateway, device, mut call, mut peer, mut log, .. } = scene(2, 5000);
    device.mqtt.reset();
    log.line("connection lost in a call");
    for n in 0..3 {
        peer.say(&json!({"type": "stt", "text": n}).to_string());
    }
    // Audio needs no MQTT connection.
    peer.send_audio(7, b"\x58x");
    assert_eq!(call.receive().payload, b"\x58x");
    call.send(7, b"\x58y");
    assert_eq!(peer.binary(), headed(7, b"\x58y"));
    let mut device = Device::connect(gateway.addresses().mqtt, 2);
    for n in 0..3 {
        assert_eq!(device.json()["text"], n);
    }
    assert_goes_on(&mut device, &mut call, &mut peer);
}

#[test]
fn a_device_may_come_back_from_another_address() {
    let Scene { gateway, device, mut call, mut peer, .. } = scene(3, 5000);
    device.mqtt.reset();
    let mut device = device_from([127, 0, 0, 3], gateway.addresses().mqtt, 3);
    // Its audio comes from there too, and is believed at once.
    call.udp = std::net::UdpSocket::bind(("127.0.0.3", 0)).unwrap();
    assert_goes_on(&mut device, &mut call, &mut peer);
}

#[test]
fn a_new_hello_after_a_lost_connection_starts_afresh() {
    let Scene { gateway, server, device, call, mut peer, .. } = scene(4, 5000);
    device.mqtt.reset();
    let mut device = Device::connect(gateway.addresses().mqtt, 4);
    device.say(support::device::HELLO);
    peer.expect_close(1000);
    let mut peer = server.accept();
    peer.upgrade();
    peer.greet("fresh");
    let mut fresh = device.answered();
    assert_eq!(fresh.session_id, "fresh");
    assert_ne!((fresh.key, fresh.ssrc()), (call.key, call.ssrc()));
    fresh.send(0, b"\x58n");
    assert_eq!(peer.binary(), headed(0, b"\x58n"));
    device.mqtt.assert_quiet();
}

#[test]
fn silence_ends_the_call_with_a_normal_close() {
    let Scene { gateway: _gateway, device, mut peer, mut log, .. } = scene(5, 400);
    let lost = Instant::now();
    device.mqtt.reset();
    let goodbye = peer.expect_close(1000).unwrap();
    let waited = lost.elapsed();
    assert!((MS(390)..MS(700)).contains(&waited), "{waited:?}");
    assert_eq!(
        (&goodbye["session_id"], &goodbye["reason"]),
        (&"server-session".into(), &"device_lost".into())
    );
    assert_eq!(fact(&log.line("call ends"), "reason"), "device_lost");
}

#[test]
fn without_grace_a_lost_connection_ends_its_call_at_once() {
    let Scene { gateway: _gateway, device, mut peer, .. } = scene(6, 0);
    let lost = Instant::now();
    device.mqtt.reset();
    peer.expect_close(1000);
    assert!(lost.elapsed() < MS(500));
}

#[test]
fn without_grace_a_replaced_connection_ends_its_call_at_once() {
    let Scene { gateway, device, mut peer, mut log, .. } = scene(7, 0);
    let mut old = device.mqtt;
    let mut device = Device::connect(gateway.addresses().mqtt, 7);
    peer.expect_close(1000);
    assert_eq!(fact(&log.line("call ends"), "reason"), "replaced");
    assert_eq!(old.packet_within(support::LIMIT), Err(Silence::Closed));
    device.say(r#"{"type":"listen","session_id":"server-session","state":"start"}"#);
    device.expect_goodbye("server-session");
}

#[test]
fn disconnect_ends_the_call_at_once() {
    let Scene { gateway, mut device, mut peer, .. } = scene(8, 5000);
    device.mqtt.send(&DISCONNECT);
    peer.expect_close(1000);
    let mut device = Device::connect(gateway.addresses().mqtt, 8);
    device.say(r#"{"type":"abort","session_id":"server-session"}"#);
    device.expect_goodbye("server-session");
}

#[test]
fn a_protocol_error_ends_the_call_at_once() {
    let Scene { gateway: _gateway, mut device, mut peer, mut log, .. } = scene(9, 5000);
    device.mqtt.send(&[0x3f, 0]);
    peer.expect_close(1000);
    assert_eq!(fact(&log.line("call ends"), "reason"), "device_error");
}

#[test]
fn a_chat_server_may_end_the_call_while_the_device_is_away() {
    let Scene { gateway, device, mut peer, mut log, .. } = scene(10, 5000);
    device.mqtt.reset();
    log.line("connection lost in a call");
    peer.send_close(Some(1000));
    assert_eq!(fact(&log.line("call ends"), "reason"), "server_closed");
    let mut device = Device::connect(gateway.addresses().mqtt, 10);
    device.mqtt.assert_quiet();
    device.say(r#"{"type":"listen","session_id":"server-session","state":"start"}"#);
    device.expect_goodbye("server-session");
}

#[test]
fn a_chat_server_may_fail_while_the_device_is_away() {
    let Scene { gateway, server, device, mut call, peer, mut log, .. } = scene(11, 5000);
    device.mqtt.reset();
    log.line("connection lost in a call");
    peer.reset();
    let mut peer = server.accept();
    peer.upgrade();
    peer.greet("server-session");
    let mut device = Device::connect(gateway.addresses().mqtt, 11);
    assert_goes_on(&mut device, &mut call, &mut peer);
}

#[test]
fn too_much_text_for_an_absent_device_ends_the_call() {
    let Scene { gateway: _gateway, device, mut peer, mut log, .. } = scene(12, 5000);
    device.mqtt.reset();
    log.line("connection lost in a call");
    let text = json!({"type": "custom", "filler": "x".repeat(10_000)}).to_string();
    for _ in 0..40 {
        // The gateway may hang up in the middle.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| peer.say(&text)));
    }
    assert_eq!(fact(&log.line("call ends"), "reason"), "overflow");
}

#[test]
fn a_connection_that_takes_over_may_itself_be_taken_over() {
    let Scene { gateway, mut device, mut call, mut peer, .. } = scene(13, 5000);
    for _ in 0..5 {
        let mut next = Device::connect(gateway.addresses().mqtt, 13);
        assert_eq!(device.mqtt.packet_within(support::LIMIT), Err(Silence::Closed));
        assert_goes_on(&mut next, &mut call, &mut peer);
        device = next;
    }
}

#[test]
fn what_came_right_behind_connect_belongs_to_the_call() {
    let Scene { gateway, device, mut peer, .. } = scene(14, 5000);
    drop(device);
    let mut mqtt = Client::open(gateway.addresses().mqtt);
    let listen = support::mqtt::publish("device-server", br#"{"type":"listen","state":"stop"}"#);
    mqtt.send(&[Connect::new(&client_id(14)).packet(), listen].concat());
    assert_eq!(mqtt.packet().body, [0, 0]);
    assert_eq!(peer.json()["type"], "listen");
}

#[test]
fn a_call_that_is_still_being_set_up_survives_too() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 15);
    device.say(support::device::HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    device.mqtt.reset();
    let mut device = Device::connect(gateway.addresses().mqtt, 15);
    peer.greet("server-session");
    let mut call = device.answered();
    call.send(0, b"\x58a");
    peer.binary();
    assert_goes_on(&mut device, &mut call, &mut peer);
}
