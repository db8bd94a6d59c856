//! What tests of the program as a command share.

use std::process::Output;

use serde_json::{Value, json};

use super::mqtt::{Client, Connect};
use super::process::Process;

/// A configuration that listens on loopback, with these keys over it.
pub fn file(more: Value) -> String {
    let mut file =
        json!({"mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "mcp": {"enabled": false}});
    for (section, keys) in more.as_object().unwrap() {
        match (file.get_mut(section).and_then(Value::as_object_mut), keys) {
            (Some(old), Value::Object(keys)) => old.extend(keys.clone()),
            _ => file[section] = keys.clone(),
        }
    }
    file.to_string()
}

pub fn error_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let line = text.lines().find(|line| line.contains("error") || line.contains("ERROR"));
    line.unwrap_or_else(|| panic!("no error in {text}")).to_owned()
}

/// The error, which is all there is on stderr.
pub fn only_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text:?}");
    text.trim_end().to_owned()
}

pub fn connack_code(process: &Process, connect: &Connect) -> u8 {
    Client::open(process.mqtt()).connack_code(connect)
}

/// How a device logs in with the `mqtt` object of an OTA answer.
pub fn login(mqtt: &Value) -> Connect {
    let text = |key: &str| mqtt[key].as_str().unwrap_or_else(|| panic!("{key} in {mqtt}")).to_owned();
    let mut connect = Connect::new(&text("client_id"));
    connect.user_name = Some(text("username"));
    connect.password = Some(text("password").into_bytes());
    connect
}
