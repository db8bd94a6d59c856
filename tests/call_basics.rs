//! A call from hello to goodbye, seen from both ends.

#![allow(clippy::unwrap_used)]

mod support;

use support::chat::{ChatServer, headed};
use support::device::Device;
use support::gateway;

#[test]
fn a_call_carries_text_and_audio_both_ways() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, mut peer) = device.call(&server);
    assert_eq!(call.session_id, "server-session");
    call.send(77, b"\x58opus");
    assert_eq!(peer.binary(), headed(77, b"\x58opus"));
    peer.send_audio(99, b"\x58back");
    let audio = call.receive();
    assert_eq!((audio.timestamp(), audio.sequence(), &audio.payload[..]), (99, 1, &b"\x58back"[..]));
    peer.say(r#"{"type":"stt","text":"hi"}"#);
    assert_eq!(device.mqtt.text(), r#"{"session_id":"server-session","type":"stt","text":"hi"}"#);
    device.say(r#"{"type":"goodbye","session_id":"server-session"}"#);
    peer.expect_close(1000);
    device.mqtt.assert_quiet();
}
