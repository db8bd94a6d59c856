//! A device that asks for its settings when it starts, and what it does with them.

use std::net::SocketAddr;

use mqtt_websocket_proxy::Config;
use mqtt_websocket_proxy::config::Secret;
use serde_json::Value;

use super::device::mac;
use super::http::{RawClient, Reply};
use super::mqtt::Connect;

/// The OTA port on a free port, and a key.
pub fn with_key(config: &mut Config) {
    config.ota.enabled = true;
    config.ota.port = 0;
    // The tests may run in a container.
    config.ota.allow = ["127.0.0.0/8", "10.0.0.0/8"].map(|network| network.parse().unwrap()).to_vec();
    config.mqtt.signature_key = Secret::new("a key for tests 1");
}

/// What firmware sends when it starts (`main/ota.cc`).
pub fn request(method: &str, path: &str, mac: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: gw.test:8006\r\nActivation-Version: 1\r\nDevice-Id: {mac}\r\n\
         Client-Id: 01234567-89ab-cdef-0123-456789abcdef\r\nUser-Agent: bread-compact-wifi/2.0.5\r\nAccept-Language: zh-CN\r\n\
         Content-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The body of some boards is not valid JSON.
pub const BODY: &str = r#"{"version":2,"mac"#;

pub fn ask(ota: SocketAddr, number: u8) -> Reply {
    RawClient::round_trip(ota, &request("POST", "/xiaozhi/ota/", &mac(number), BODY))
}

/// What the firmware has in its flash after this answer: its parser aborts on a longer name, and stores strings and numbers.
pub fn stored(answer: &Value) -> Vec<(String, String)> {
    let settings = answer["mqtt"].as_object().unwrap();
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => panic!("{other}"),
    };
    settings
        .iter()
        .map(|(name, value)| {
            assert!(name.len() <= 15, "{name} aborts the firmware");
            (name.clone(), text(value))
        })
        .collect()
}

/// How firmware logs in with an answer.
pub fn connect(answer: &Value) -> Connect {
    let stored = stored(answer);
    let field = |name: &str| stored.iter().find(|(found, _)| found == name).unwrap().1.clone();
    let mut connect = Connect::new(&field("client_id"));
    connect.user_name = Some(field("username"));
    connect.password = Some(field("password").into_bytes());
    connect.keep_alive = field("keepalive").parse().unwrap();
    connect
}

/// Host and port of the answer's endpoint, as the firmware splits it.
pub fn endpoint(answer: &Value) -> (String, u16) {
    let endpoint = answer["mqtt"]["endpoint"].as_str().unwrap();
    match endpoint.split_once(':') {
        Some((host, port)) => (host.to_owned(), port.parse().unwrap()),
        None => (endpoint.to_owned(), 8883),
    }
}
