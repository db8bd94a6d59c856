//! A device: an accepted MQTT connection, and calls.

use std::net::SocketAddr;

use serde_json::Value;

use super::audio::Call;
use super::chat_server::{ChatServer, Peer};
use super::mqtt::{Client, Connect};

/// The hello of current firmware, with a field that only newer ones send.
pub const HELLO: &str = r#"{"type":"hello","version":3,"transport":"udp","features":{"mcp":true},"audio_params":{"format":"opus","sample_rate":16000,"channels":1,"frame_duration":60},"text_font":{"bundle":"x","size":16}}"#;

#[derive(Debug)]
pub struct Device {
    pub mqtt: Client,
    pub mac: String,
    pub client_id: String,
}

impl Device {
    /// A device whose MAC ends in `number`, on a gateway without a key.
    pub fn connect(gateway: SocketAddr, number: u8) -> Self {
        let client_id = client_id(number);
        let mqtt = Client::log_in(gateway, &Connect::new(&client_id));
        Self { mqtt, mac: mac(number), client_id }
    }

    pub fn send_text(&mut self, text: &str) {
        self.mqtt.send_text(text);
    }

    /// So that the gateway, which has just started, does not take it for one that is still in a call of an earlier process. It is not
    /// answered.
    pub fn say_something(&mut self) {
        self.send_text(r#"{"type":"goodbye"}"#);
    }

    pub fn json(&mut self) -> Value {
        self.mqtt.json()
    }

    /// Starts a call: the device says hello, and the chat server answers it. Returns both ends.
    pub fn call(&mut self, server: &ChatServer) -> (Call, Peer) {
        self.send_text(HELLO);
        let mut peer = server.accept();
        peer.upgrade();
        peer.exchange_hello("server-session");
        (self.hello_reply(), peer)
    }

    /// The hello reply.
    pub fn hello_reply(&mut self) -> Call {
        Call::new(self.json())
    }

    /// The next messages must be those to a device whose call fails: a hello reply, its goodbye, and an alert, which it returns.
    pub fn expect_failure(&mut self) -> serde_json::Value {
        let call = self.hello_reply();
        self.expect_goodbye(&call.session_id);
        let alert = self.json();
        assert_eq!((&alert["type"], &alert["session_id"]), (&"alert".into(), &call.session_id.into()));
        alert
    }

    /// The next message must be a goodbye with this session id.
    pub fn expect_goodbye(&mut self, session_id: &str) {
        assert_eq!(self.json(), serde_json::json!({"type": "goodbye", "session_id": session_id}));
    }
}

pub fn mac(number: u8) -> String {
    format!("02:00:00:00:00:{number:02x}")
}

pub fn uuid(number: u8) -> String {
    format!("01234567-89ab-cdef-0123-4567{number:08x}")
}

/// `group@@@mac_@@@uuid`.
pub fn client_id(number: u8) -> String {
    format!("GID_test@@@{}@@@{}", mac(number).replace(':', "_"), uuid(number))
}
