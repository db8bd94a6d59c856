//! A device's MQTT connection is lost during a call, and another one takes the call over.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use mqtt_websocket_proxy::net::Running;
use serde_json::json;
use support::audio::Call;
use support::chat_server::{ChatServer, Message, Peer, audio_frame};
use support::device::{Device, client_id};
use support::host::device_from;
use support::log_capture::{LogCapture, log_field};
use support::mqtt::{Client, Connect, DISCONNECT, PacketError, publish};
use support::{gateway, gateway_with};

const MS: fn(u64) -> Duration = Duration::from_millis;

struct Fixture {
    gateway: Running,
    server: ChatServer,
    device: Device,
    call: Call,
    peer: Peer,
    log: LogCapture,
}

/// A device in a call whose UDP address is known, with this grace in milliseconds.
fn fixture(number: u8, grace: u64) -> Fixture {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.mqtt.resume_grace = MS(grace));
    let log = LogCapture::containing(client_id(number));
    let mut device = Device::connect(gateway.addresses().mqtt, number);
    let (mut call, mut peer) = device.call(&server);
    call.send(0, b"\x58a");
    peer.binary();
    Fixture { gateway, server, device, call, peer, log }
}

/// The call goes on over this connection: text and audio, both ways.
fn assert_goes_on(device: &mut Device, call: &mut Call, peer: &mut Peer) {
    device.send_text(r#"{"type":"listen","state":"stop"}"#);
    assert_eq!(peer.json()["type"], "listen");
    peer.send_text(r#"{"type":"stt","text":"hi"}"#);
    assert_eq!(device.json(), json!({"type": "stt", "text": "hi", "session_id": "server-session"}));
    call.send(5, b"\x58b");
    assert_eq!(peer.binary(), audio_frame(5, b"\x58b"));
    peer.send_audio(6, b"\x58c");
    assert_eq!(call.receive().payload, b"\x58c");
    device.mqtt.assert_nothing_pending();
}

#[test]
fn a_new_connection_takes_over_the_call_however_the_old_one_ended() {
    type Loss = fn(Client) -> Option<Client>;
    let lose: [(&str, Loss); 4] = [
        ("the old one stays", Some),
        ("the old one ends first", |mut mqtt| {
            mqtt.shutdown_write();
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
        let Fixture { gateway, server, device, mut call, mut peer, log, .. } = fixture(1, 60_000);
        let old = lose(device.mqtt);
        let mut device = Device::connect(gateway.addresses().mqtt, 1);
        assert_goes_on(&mut device, &mut call, &mut peer);
        if let Some(mut old) = old {
            assert_eq!(old.packet_within(support::TIMEOUT), Err(PacketError::Closed), "{how}");
            // Closing it late does not affect the new one.
            drop(old);
        }
        assert_goes_on(&mut device, &mut call, &mut peer);
        assert!(server.is_idle() && log.count("call ends") == 0, "{how}");
    }
}

#[test]
fn text_for_an_absent_device_waits_in_order() {
    let Fixture { gateway, device, mut call, mut peer, mut log, .. } = fixture(2, 60_000);
    device.mqtt.reset();
    log.wait_for_line("connection lost in a call");
    for n in 0..3 {
        peer.send_text(&json!({"type": "stt", "text": n}).to_string());
    }
    // Audio needs no MQTT connection.
    peer.send_audio(7, b"\x58x");
    assert_eq!(call.receive().payload, b"\x58x");
    call.send(7, b"\x58y");
    assert_eq!(peer.binary(), audio_frame(7, b"\x58y"));
    let mut device = Device::connect(gateway.addresses().mqtt, 2);
    for n in 0..3 {
        assert_eq!(device.json()["text"], n);
    }
    assert_goes_on(&mut device, &mut call, &mut peer);
}

#[test]
fn a_device_may_come_back_from_another_address() {
    let Fixture { gateway, device, mut call, mut peer, .. } = fixture(3, 60_000);
    device.mqtt.reset();
    let mut device = device_from([127, 0, 0, 3], gateway.addresses().mqtt, 3);
    // Its audio comes from there too. No packet of it is lost.
    let udp = std::net::UdpSocket::bind(("127.0.0.3", 0)).unwrap();
    call.move_to(udp, |limit| peer.binary_within(limit));
    assert_goes_on(&mut device, &mut call, &mut peer);
}

#[test]
fn a_new_hello_after_a_lost_connection_starts_a_new_call() {
    let Fixture { gateway, server, device, call, mut peer, .. } = fixture(4, 60_000);
    device.mqtt.reset();
    let mut device = Device::connect(gateway.addresses().mqtt, 4);
    device.send_text(support::device::HELLO);
    peer.expect_close(1000);
    let mut peer = server.accept();
    peer.upgrade();
    peer.exchange_hello("fresh");
    let mut fresh = device.hello_reply();
    assert_eq!(fresh.session_id, "fresh");
    assert_ne!((fresh.key, fresh.ssrc()), (call.key, call.ssrc()));
    fresh.send(0, b"\x58n");
    assert_eq!(peer.binary(), audio_frame(0, b"\x58n"));
    device.mqtt.assert_nothing_pending();
}

#[test]
fn an_expired_grace_period_ends_the_call_with_a_normal_close() {
    let Fixture { gateway: _gateway, device, mut peer, mut log, .. } = fixture(5, 400);
    let lost = Instant::now();
    device.mqtt.reset();
    let goodbye = peer.expect_close(1000).unwrap();
    assert!(lost.elapsed() >= MS(390), "{:?}", lost.elapsed());
    assert_eq!(
        (&goodbye["session_id"], &goodbye["reason"]),
        (&"server-session".into(), &"device_lost".into())
    );
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "device_lost");
}

#[test]
fn without_grace_a_lost_connection_ends_its_call_at_once() {
    let Fixture { gateway: _gateway, device, mut peer, mut log, .. } = fixture(6, 0);
    device.mqtt.reset();
    peer.expect_close(1000);
    assert_eq!(log.count("connection lost in a call, kept"), 0);
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "device_lost");
}

#[test]
fn without_grace_a_replaced_connection_ends_its_call_at_once() {
    let Fixture { gateway, device, mut peer, mut log, .. } = fixture(7, 0);
    let mut old = device.mqtt;
    let mut device = Device::connect(gateway.addresses().mqtt, 7);
    peer.expect_close(1000);
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "replaced");
    assert_eq!(old.packet_within(support::TIMEOUT), Err(PacketError::Closed));
    device.send_text(r#"{"type":"listen","session_id":"server-session","state":"start"}"#);
    device.expect_goodbye("server-session");
}

#[test]
fn disconnect_ends_the_call_at_once() {
    let Fixture { gateway, mut device, mut peer, .. } = fixture(8, 60_000);
    let listen = publish("device-server", br#"{"type":"listen","state":"stop"}"#);
    device.mqtt.send(&[&listen[..], &DISCONNECT].concat());
    assert_eq!(peer.json()["type"], "listen", "what was sent before is forwarded");
    peer.expect_close(1000);
    assert_eq!(device.mqtt.read_until_closed(), []);
    let mut device = Device::connect(gateway.addresses().mqtt, 8);
    device.send_text(r#"{"type":"abort","session_id":"server-session"}"#);
    device.expect_goodbye("server-session");
}

#[test]
fn a_protocol_error_ends_the_call_at_once() {
    let Fixture { gateway: _gateway, mut device, mut peer, mut log, .. } = fixture(9, 60_000);
    device.mqtt.send(&[0x3f, 0]);
    peer.expect_close(1000);
    assert_eq!(device.mqtt.read_until_closed(), []);
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "device_error");
}

#[test]
fn a_chat_server_may_end_the_call_while_the_device_is_away() {
    let Fixture { gateway, device, mut peer, mut log, .. } = fixture(10, 60_000);
    device.mqtt.reset();
    log.wait_for_line("connection lost in a call");
    peer.send_close(Some(1000));
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "server_closed");
    let mut device = Device::connect(gateway.addresses().mqtt, 10);
    device.mqtt.assert_nothing_pending();
    device.send_text(r#"{"type":"listen","session_id":"server-session","state":"start"}"#);
    device.expect_goodbye("server-session");
}

#[test]
fn a_chat_server_may_fail_while_the_device_is_away() {
    let Fixture { gateway, server, device, mut call, peer, mut log, .. } = fixture(11, 60_000);
    device.mqtt.reset();
    log.wait_for_line("connection lost in a call");
    peer.reset();
    let mut peer = server.accept();
    peer.upgrade();
    peer.exchange_hello("server-session");
    let mut device = Device::connect(gateway.addresses().mqtt, 11);
    assert_goes_on(&mut device, &mut call, &mut peer);
}

#[test]
fn too_much_text_for_an_absent_device_ends_the_call() {
    let Fixture { gateway: _gateway, device, mut peer, mut log, .. } = fixture(12, 60_000);
    device.mqtt.reset();
    log.wait_for_line("connection lost in a call");
    let text = json!({"type": "custom", "filler": "x".repeat(10_000)}).to_string();
    for _ in 0..40 {
        // The gateway may close the connection meanwhile.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| peer.send_text(&text)));
    }
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "overflow");
}

#[test]
fn a_connection_that_takes_over_may_itself_be_taken_over() {
    let Fixture { gateway, mut device, mut call, mut peer, .. } = fixture(13, 60_000);
    for _ in 0..5 {
        let mut next = Device::connect(gateway.addresses().mqtt, 13);
        assert_eq!(device.mqtt.packet_within(support::TIMEOUT), Err(PacketError::Closed));
        assert_goes_on(&mut next, &mut call, &mut peer);
        device = next;
    }
}

#[test]
fn packets_right_behind_connect_belong_to_the_call() {
    let Fixture { gateway, device, mut peer, .. } = fixture(14, 60_000);
    drop(device);
    let mut mqtt = Client::open(gateway.addresses().mqtt);
    let listen = publish("device-server", br#"{"type":"listen","state":"stop"}"#);
    mqtt.send(&[Connect::new(&client_id(14)).packet(), listen].concat());
    assert_eq!(mqtt.packet().body, [0, 0]);
    assert_eq!(peer.json()["type"], "listen");
}

#[test]
fn a_call_that_is_still_being_set_up_survives_too() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 15);
    device.send_text(support::device::HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    device.mqtt.reset();
    let mut device = Device::connect(gateway.addresses().mqtt, 15);
    peer.exchange_hello("server-session");
    let mut call = device.hello_reply();
    call.send(0, b"\x58a");
    peer.binary();
    assert_goes_on(&mut device, &mut call, &mut peer);
}

/// A race that happened once: DISCONNECT had arrived, but a write found the connection reset before it was read, so the
/// call was kept for `resume_grace_s`.
#[test]
fn a_disconnect_before_a_reset_is_not_lost_to_a_failed_write() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.mqtt.hello_limit = 0);
    for round in 0..300 {
        let mut device = Device::connect(gateway.addresses().mqtt, 16);
        let (_call, mut peer) = device.call(&server);
        peer.send_text(r#"{"type":"llm"}"#);
        device.mqtt.send(&DISCONNECT);
        device.mqtt.reset();
        loop {
            // Shorter than the default of `resume_grace_s`.
            match peer.message_within(MS(30_000)) {
                Some(Message::Close(Some(1000))) => break,
                Some(Message::Text(_)) => {}
                other => panic!("{other:?} in round {round}: the call is kept"),
            }
        }
    }
}
