//! Races that were lost once: each is a bug that was found, run often enough to be seen again.

#![allow(clippy::unwrap_used)]

mod support;

use support::chat_server::{ChatServer, Message};
use support::device::Device;
use support::gateway;
use support::mqtt::DISCONNECT;

/// A device that leaves while the gateway writes to it: its DISCONNECT had arrived, but the write found the connection
/// reset and took the device for lost, so the call stayed for `resume_grace_s`.
#[test]
fn a_disconnect_before_a_reset_is_not_lost_to_a_failed_write() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    for round in 0..300 {
        let mut device = Device::connect(gateway.addresses().mqtt, 1);
        let (_call, mut peer) = device.call(&server);
        peer.send_text(r#"{"type":"llm"}"#);
        device.mqtt.send(&DISCONNECT);
        device.mqtt.reset();
        loop {
            match peer.message_within(std::time::Duration::from_secs(5)) {
                Some(Message::Close(Some(1000))) => break,
                Some(Message::Text(_)) => {}
                other => panic!("{other:?} in round {round}: the call is kept"),
            }
        }
    }
}
