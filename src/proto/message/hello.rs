//! The three hellos: the device's, the chat server's, and the reply to the device.

use std::fmt;

use data_encoding::HEXLOWER;

use super::{BadMessage, JsonObject, json_quote};
use crate::text;

/// The device's hello, and what it becomes for the chat server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceHello {
    /// The hello with all fields the device sent, but `transport` "websocket" and `version` 2.
    pub forwarded: Box<str>,
}

/// Read a device's hello. A `version` other than 3 is refused; an absent one is taken for 3.
pub fn parse_device_hello(text: &str) -> Result<DeviceHello, BadHello> {
    let mut hello = JsonObject::parse(text).map_err(BadHello::Message)?;
    if let Some(found) = hello.raw("version")
        && hello.number("version") != Some(3.0)
    {
        return Err(BadHello::Version(found.chars().take(BadHello::VERSION_CHARS_MAX).collect()));
    }
    hello.set("version", "2");
    hello.set("transport", r#""websocket""#);
    Ok(DeviceHello { forwarded: hello.to_string().into() })
}

/// Why a device's hello is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadHello {
    /// A version that is not the number 3: what was found, as JSON, cut to 40 characters.
    Version(String),
    /// Not a message at all.
    Message(BadMessage),
}

impl BadHello {
    /// How many characters of a wrong version are worth a log line.
    const VERSION_CHARS_MAX: usize = 40;
}

impl fmt::Display for BadHello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(found) => write!(f, "hello with version {found}, only 3 is supported"),
            Self::Message(bad) => write!(f, "hello is {bad}"),
        }
    }
}

impl std::error::Error for BadHello {}

impl DeviceHello {
    /// The hello for a chat server that is dialled with this version of the WebSocket protocol.
    pub fn for_server(&self, protocol_version: u8) -> String {
        let version = protocol_version.to_string();
        match JsonObject::parse(&self.forwarded) {
            Ok(mut hello) if protocol_version != 2 => {
                hello.set("version", &version);
                hello.to_string()
            }
            _ => self.forwarded.to_string(),
        }
    }

    /// `audio_params` as written, when an object. Read anew each time: it is needed once, the hello is kept.
    pub fn audio_params(&self) -> Option<Box<str>> {
        raw_object(&JsonObject::parse(&self.forwarded).ok()?, "audio_params")
    }

    /// How long the device's audio packets are, in milliseconds, as far as it says.
    pub fn frame_duration_ms(&self) -> Option<u32> {
        let hello = JsonObject::parse(&self.forwarded).ok()?;
        let params = hello.object("audio_params")?;
        params.number("frame_duration").map(|ms| ms as u32)
    }
}

/// The longest session id that a device is shown, in bytes.
const MAX_SESSION_ID: usize = 128;
/// The longest `audio_params` of a chat server that a device is shown, in bytes.
const MAX_AUDIO_PARAMS: usize = 1024;

/// Whether a device can be shown this session id. Devices put it between quotes without escaping it, so it must not need
/// that; it goes into log lines, so all of it must be printable: DEL and the C1 controls, which JSON allows, are refused.
pub fn is_for_devices(session_id: &str) -> bool {
    let plain = |c| c != '"' && c != '\\' && text::is_printable(c);
    (1..=MAX_SESSION_ID).contains(&session_id.len()) && session_id.chars().all(plain)
}

/// What counts in the chat server's hello.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerHello {
    /// `session_id`, only when a non-empty string.
    pub session_id: Option<Box<str>>,
    /// `audio_params` as written, when an object of at most 1024 bytes that devices can parse.
    pub audio_params: Option<Box<str>>,
}

/// Read a chat server's hello, of which nothing is required.
pub fn parse_server_hello(text: &str) -> ServerHello {
    let hello = JsonObject::parse(text).unwrap_or_default();
    ServerHello {
        session_id: hello.string("session_id").filter(|id| !id.is_empty()).map(|id| id.into()),
        audio_params: raw_object(&hello, "audio_params").filter(|raw| can_be_embedded(raw)),
    }
}

/// Whether a device can parse a text that contains this value. It refuses half of a surrogate pair, which raw values may have.
fn can_be_embedded(raw: &str) -> bool {
    raw.len() <= MAX_AUDIO_PARAMS && serde_json::from_str::<serde_json::Value>(raw).is_ok()
}

fn raw_object(object: &JsonObject<'_>, key: &str) -> Option<Box<str>> {
    object.raw(key).filter(|raw| raw.starts_with('{')).map(Into::into)
}

/// What the device is told in answer to its hello.
#[derive(Debug, Clone, Copy)]
pub struct HelloReply<'a> {
    /// Not empty: devices ignore goodbyes of a session without an id.
    pub session_id: &'a str,
    /// The server's `audio_params`, raw; left out when `None`, and the device keeps its default.
    pub audio_params: Option<&'a str>,
    /// Host name or IPv4 address of the UDP port.
    pub server: &'a str,
    /// UDP port.
    pub port: u16,
    /// AES-128 key of the call.
    pub key: &'a [u8; 16],
    /// Template of the packet header, see [`nonce`](crate::proto::audio::nonce).
    pub nonce: &'a [u8; 16],
}

/// The reply as JSON. Every field is one that some device needs.
pub fn hello_reply(reply: &HelloReply<'_>) -> String {
    let audio_params = reply.audio_params.map(|raw| format!(r#","audio_params":{raw}"#)).unwrap_or_default();
    format!(
        concat!(
            r#"{{"type":"hello","version":3,"transport":"udp","session_id":{}{},"#,
            r#""udp":{{"server":{},"port":{},"encryption":"aes-128-ctr","key":"{}","nonce":"{}"}}}}"#,
        ),
        json_quote(reply.session_id),
        audio_params,
        json_quote(reply.server),
        reply.port,
        HEXLOWER.encode(reply.key),
        HEXLOWER.encode(reply.nonce),
    )
}
