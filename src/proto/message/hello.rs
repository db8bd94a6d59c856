//! The three hellos: the device's, the chat server's, and the reply to the device.

use std::fmt;
use std::ops::Deref;

use data_encoding::HEXLOWER;

use super::{JsonObject, push_json_string};
use crate::text;

/// A device's hello, converted for the chat server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceHello<T = Box<str>> {
    /// The device's hello with `transport` set to "websocket" and `version` to 2.
    pub forwarded: T,
}

/// Reads a device's hello. A `version` other than 3 is refused; a missing one counts as 3.
pub fn parse_device_hello(mut hello: JsonObject<'_>) -> Result<DeviceHello, BadHelloVersion> {
    if let Some(found) = hello.raw("version")
        && hello.number("version") != Some(3.0)
    {
        return Err(BadHelloVersion(found.chars().take(BadHelloVersion::CHARS_MAX).collect()));
    }
    hello.set("version", "2");
    hello.set("transport", r#""websocket""#);
    Ok(DeviceHello { forwarded: hello.to_string().into() })
}

/// The version of a device's hello that is not the number 3: its JSON, cut to 40 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadHelloVersion(pub String);

impl BadHelloVersion {
    /// The characters of a wrong version that are logged.
    const CHARS_MAX: usize = 40;
}

impl fmt::Display for BadHelloVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hello with version {}, only 3 is supported", self.0)
    }
}

impl std::error::Error for BadHelloVersion {}

impl<T: Deref<Target = str>> DeviceHello<T> {
    /// The hello for a chat server, with this version of the WebSocket protocol.
    pub fn for_server(&self, protocol_version: u8) -> String {
        let changed = (protocol_version != 2).then(|| JsonObject::parse(&self.forwarded));
        let Some(Ok(mut hello)) = changed else { return self.forwarded.to_string() };
        let version = protocol_version.to_string();
        hello.set("version", &version);
        hello.to_string()
    }

    /// The raw `audio_params`, if it is an object.
    pub fn audio_params(&self) -> Option<Box<str>> {
        raw_object(&JsonObject::parse(&self.forwarded).ok()?, "audio_params")
    }

    /// The duration of the device's audio packets in milliseconds, if it is stated.
    pub fn frame_duration_ms(&self) -> Option<u32> {
        frame_duration_ms(&self.audio_params()?)
    }
}

/// The `frame_duration` of these `audio_params` in milliseconds, if it is stated.
pub fn frame_duration_ms(audio_params: &str) -> Option<u32> {
    JsonObject::parse(audio_params).ok()?.number("frame_duration").map(|ms| ms as u32)
}

/// The longest session id that is sent to a device, in bytes.
const MAX_SESSION_ID: usize = 128;
/// The longest `audio_params` of a chat server that is sent to a device, in bytes.
const MAX_AUDIO_PARAMS: usize = 1024;

/// Whether this session id may be sent to a device. Devices put it between quotes without escaping it, so it must need no
/// escapes. It is logged, so it must be printable.
pub fn is_for_devices(session_id: &str) -> bool {
    let plain = |c| c != '"' && c != '\\' && text::is_printable(c);
    (1..=MAX_SESSION_ID).contains(&session_id.len()) && session_id.chars().all(plain)
}

/// The fields of a chat server's hello that are used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerHello {
    /// `session_id`, if it is a non-empty string.
    pub session_id: Option<Box<str>>,
    /// `audio_params` as written, when an object of at most 1024 bytes that devices can parse.
    pub audio_params: Option<Box<str>>,
}

/// Reads a chat server's hello. All fields are optional.
pub fn parse_server_hello(hello: &JsonObject<'_>) -> ServerHello {
    ServerHello {
        session_id: hello.string("session_id").filter(|id| !id.is_empty()).map(|id| id.into()),
        audio_params: raw_object(hello, "audio_params").filter(|raw| can_be_embedded(raw)),
    }
}

/// Whether a device can parse a text that contains this value. It refuses half of a surrogate pair, which raw values may have.
fn can_be_embedded(raw: &str) -> bool {
    // Real ones are flat, and as part of a message they are JSON.
    let is_plain = raw.bytes().filter(|byte| b"{[\\".contains(byte)).count() <= 1;
    raw.len() <= MAX_AUDIO_PARAMS && (is_plain || serde_json::from_str::<serde_json::Value>(raw).is_ok())
}

fn raw_object(object: &JsonObject<'_>, key: &str) -> Option<Box<str>> {
    object.raw(key).filter(|raw| raw.starts_with('{')).map(Into::into)
}

/// The fields of the reply to a device's hello.
#[derive(Debug, Clone, Copy)]
pub struct HelloReply<'a> {
    /// Must not be empty, since devices ignore a goodbye for a session without an id.
    pub session_id: &'a str,
    /// The server's raw `audio_params`. Without it the device uses its default.
    pub audio_params: Option<&'a str>,
    /// The host name or IPv4 address to send datagrams to.
    pub server: &'a str,
    /// The UDP port to send datagrams to.
    pub port: u16,
    /// The AES-128 key of the call.
    pub key: &'a [u8; 16],
    /// The template of the packet header, see [`nonce`](crate::proto::audio::nonce).
    pub nonce: &'a [u8; 16],
}

/// The reply as JSON. Each field is needed by some devices.
pub fn hello_reply(reply: &HelloReply<'_>) -> String {
    let mut json = String::with_capacity(512);
    json.push_str(r#"{"type":"hello","version":3,"transport":"udp","session_id":"#);
    push_json_string(&mut json, reply.session_id);
    if let Some(raw) = reply.audio_params {
        json.extend([r#","audio_params":"#, raw]);
    }
    json.push_str(r#","udp":{"server":"#);
    push_json_string(&mut json, reply.server);
    json.extend([r#","port":"#, &reply.port.to_string(), r#","encryption":"aes-128-ctr","key":""#]);
    HEXLOWER.encode_append(reply.key, &mut json);
    json.push_str(r#"","nonce":""#);
    HEXLOWER.encode_append(reply.nonce, &mut json);
    json.push_str(r#""}}"#);
    json
}
