//! JSON messages. A text is forwarded byte for byte, never serialised again: a value that changes is replaced in place.
//!
//! Only one level of an object is parsed, and values are kept as raw JSON. If a name occurs twice, readers differ in which
//! member they use: a lookup uses the one that the given [`Reader`] uses, a change changes all of them.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::mac::Mac;

mod hello;
mod mcp;
mod object;

pub use hello::{
    BadHelloVersion, DeviceHello, HelloReply, ServerHello, frame_duration_ms, hello_reply, is_for_devices,
    parse_device_hello, parse_server_hello,
};
pub use mcp::{Rpc, mcp_notification, mcp_request, mcp_result, parse_rpc, replace_rpc_id};
pub use object::JsonObject;

/// The final reader of a text. The gateway must interpret it in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// A device, which uses cJSON: it uses the first member of a name, ignores the case of ASCII letters, and ends strings and
    /// names at U+0000.
    Device,
    /// A chat server, which uses `JSON.parse`, `json.loads` or the like: it uses the last member of exactly this name.
    Server,
}

impl Reader {
    /// Stores `raw` in `found` if this reader uses it as the member `name`.
    fn look<'a>(self, key: &str, raw: &'a str, name: &str, found: &mut Option<&'a str>) {
        let taken = match self {
            Self::Device => found.is_none() && is_named(key, name),
            Self::Server => key == name,
        };
        if taken {
            *found = Some(raw);
        }
    }

    /// The text of a raw value, if that is a string.
    fn parse_string(self, raw: &str) -> Option<Cow<'_, str>> {
        let mut text = string(raw)?;
        // U+0000 can only occur as an escape, so the text is a copy.
        if let (Self::Device, Cow::Owned(text)) = (self, &mut text)
            && let Some(end) = text.find('\0')
        {
            text.truncate(end);
        }
        Some(text)
    }
}

/// A message, and its fields that decide where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peek<'a> {
    /// All members.
    pub object: JsonObject<'a>,
    /// The value of `type`; empty if absent or not a string.
    pub kind: Cow<'a, str>,
    /// The value of `session_id`, if it is a string.
    pub session_id: Option<Cow<'a, str>>,
    /// The value of `state`, if it is a string.
    pub state: Option<Cow<'a, str>>,
}

/// Parses a message.
pub fn peek(text: &str, reader: Reader) -> Result<Peek<'_>, BadMessage> {
    let object = JsonObject::parse(text)?;
    let string = |name| object.raw_for(name, reader).and_then(|raw| reader.parse_string(raw));
    let (kind, session_id, state) = (string("type"), string("session_id"), string("state"));
    Ok(Peek { kind: kind.unwrap_or_default(), session_id, state, object })
}

/// Why a text is not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadMessage {
    /// Not JSON (RFC 8259).
    NotJson,
    /// JSON, but not an object.
    NotObject,
}

impl fmt::Display for BadMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotJson => "not JSON",
            Self::NotObject => "JSON, but not an object",
        })
    }
}

impl std::error::Error for BadMessage {}

/// The message with exactly one `session_id`, whose value is `id`. All names that a device takes for `session_id` count; of several
/// members the first one is kept. For `None`, a device without a session, any string is allowed and none is added. All other bytes
/// are unchanged, and so is a text that is not a JSON object.
pub fn with_session_id<'a>(text: &'a str, id: Option<&str>) -> Cow<'a, str> {
    const NAME: &str = "session_id";
    let new = || json_quote(id.unwrap_or_default());
    let (mut edit, mut found, mut end) = (Edit::of(text), false, 0);
    let scanned = for_each_entry(text, |key, raw| {
        let start = offset_in(text, raw);
        let before = std::mem::replace(&mut end, start + raw.len());
        if !is_named(&key, NAME) {
            return;
        }
        if std::mem::replace(&mut found, true) {
            edit.put(before..end, "");
            return;
        }
        let value = string(raw);
        if key != NAME {
            // Only a brace or a comma, and white space, come before the first quote.
            let name = before + text[before..].find('"').unwrap_or_default();
            let kept = value.as_ref().filter(|value| id.is_none_or(|id| id == *value));
            edit.put(name..end, &format!("\"{NAME}\":{}", kept.map_or_else(new, |_| raw.to_owned())));
        } else if value.is_none_or(|value| id.is_some_and(|id| id != value)) {
            edit.put(start..end, &new());
        }
    });
    match (scanned, id) {
        (Err(_), _) => Cow::Borrowed(text),
        (Ok(()), Some(id)) if !found => {
            // The first byte of an object, after white space, is its brace.
            let (before, after) = text.split_once('{').unwrap_or_default();
            let comma = if after.trim_ascii_start().starts_with('}') { "" } else { "," };
            Cow::Owned(format!("{before}{{\"{NAME}\":{}{comma}{after}", json_quote(id)))
        }
        (Ok(()), _) => edit.done(),
    }
}

/// The message with `to` in place of each `session_id` that is `from`. All other bytes are unchanged.
pub fn replace_session_id<'a>(text: &'a str, from: &str, to: &str) -> Cow<'a, str> {
    let is_from = |raw: &str| string(raw).is_some_and(|id| id == from);
    replace_values(text, "session_id", &json_quote(to), is_from)
        .map_or(Cow::Borrowed(text), |replaced| replaced.text)
}

/// `text` as a JSON string literal.
pub fn json_quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    push_json_string(&mut quoted, text);
    quoted
}

/// Appends `text` as a JSON string literal.
pub(crate) fn push_json_string(out: &mut String, text: &str) {
    // Most texts are session ids and the like, and serde takes ten times as long.
    match needs_escapes(text) {
        false => out.extend(["\"", text, "\""]),
        true => out.push_str(&serde_json::Value::from(text).to_string()),
    }
}

/// Whether a JSON string literal of this text is more than the text between quotes (RFC 8259 section 7).
fn needs_escapes(text: &str) -> bool {
    // All bytes at once: the compiler makes vector instructions of it.
    text.bytes().fold(false, |found, byte| found | (byte < b' ') | matches!(byte, b'"' | b'\\'))
}

/// `goodbye` to a device. Without an id there is no `session_id`, since devices refuse or mishandle null.
pub fn goodbye(session_id: Option<&str>) -> String {
    envelope("goodbye", session_id, "")
}

/// `alert`, which a device shows on its screen.
pub fn alert(session_id: Option<&str>, status: &str, message: &str, emotion: &str) -> String {
    let (status, message, emotion) = (json_quote(status), json_quote(message), json_quote(emotion));
    let fields = format!(r#","status":{status},"message":{message},"emotion":{emotion}"#);
    envelope("alert", session_id, &fields)
}

/// `tts` with the state `start` or `stop`: the device starts or stops speaking.
pub fn tts(session_id: Option<&str>, state: &str) -> String {
    envelope("tts", session_id, &format!(r#","state":"{state}""#))
}

/// `call_accepted` to a device: the called device has accepted.
pub fn call_accepted(session_id: Option<&str>, from: Mac) -> String {
    envelope("call_accepted", session_id, &format!(r#","from":"{from}""#))
}

/// `goodbye` to a chat server before its WebSocket is closed. The duration is sent in seconds, as in the log.
pub fn server_goodbye(session_id: Option<&str>, reason: &str, duration_ms: u64) -> String {
    let (seconds, millis) = (duration_ms / 1000, duration_ms % 1000);
    let rest = format!(r#","reason":{},"duration":{seconds}.{millis:03}"#, json_quote(reason));
    envelope("goodbye", session_id, &rest)
}

/// A message of type `kind`; `fields` is raw JSON that starts with a comma, or empty.
fn envelope(kind: &str, session_id: Option<&str>, fields: &str) -> String {
    match session_id {
        Some(id) => format!(r#"{{"type":"{kind}","session_id":{}{fields}}}"#, json_quote(id)),
        None => format!(r#"{{"type":"{kind}"{fields}}}"#),
    }
}

/// An object's text after [`replace_values`].
struct Replaced<'a> {
    text: Cow<'a, str>,
    /// How often the name occurs.
    found: usize,
}

/// Replaces, by `new` (raw JSON), each value that is `unwanted` and whose name a device takes for `key`.
fn replace_values<'a>(
    text: &'a str,
    key: &str,
    new: &str,
    unwanted: impl Fn(&str) -> bool,
) -> Result<Replaced<'a>, BadMessage> {
    let (mut found, mut edit) = (0, Edit::of(text));
    for_each_entry(text, |name, raw| {
        if !is_named(&name, key) {
            return;
        }
        found += 1;
        if unwanted(raw) {
            let start = offset_in(text, raw);
            edit.put(start..start + raw.len(), new);
        }
    })?;
    Ok(Replaced { text: edit.done(), found })
}

/// Replaces parts of a text, in order. The text is copied only if there is something to replace.
struct Edit<'a> {
    text: &'a str,
    out: String,
    /// How many bytes of `text` were copied to `out` or replaced.
    taken: usize,
}

impl<'a> Edit<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, out: String::new(), taken: 0 }
    }

    fn put(&mut self, range: Range<usize>, new: &str) {
        self.out.push_str(&self.text[self.taken..range.start]);
        self.out.push_str(new);
        self.taken = range.end;
    }

    fn done(mut self) -> Cow<'a, str> {
        if self.taken == 0 {
            return Cow::Borrowed(self.text);
        }
        self.out.push_str(&self.text[self.taken..]);
        Cow::Owned(self.out)
    }
}

/// Whether a device takes `key` for this name: it ignores the case of ASCII letters, and strings end at U+0000.
fn is_named(key: &str, name: &str) -> bool {
    key.split('\0').next().is_some_and(|key| key.eq_ignore_ascii_case(name))
}

/// The offset of `part`, a slice of `text`, in it.
fn offset_in(text: &str, part: &str) -> usize {
    part.as_ptr().addr() - text.as_ptr().addr()
}

/// Calls `each` with each key and raw value of a JSON object, in order. An error may be found after some of them.
///
/// serde_json checks a `RawValue` without recursion, so deep nesting takes one byte per level and no stack.
fn for_each_entry<'a>(text: &'a str, each: impl FnMut(Cow<'a, str>, &'a str)) -> Result<(), BadMessage> {
    struct Entries<F>(F);

    impl<'de, F: FnMut(Cow<'de, str>, &'de str)> Visitor<'de> for Entries<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some((key, value)) = map.next_entry::<JsonStr<'de>, &'de RawValue>()? {
                (self.0)(key.0, value.get());
            }
            Ok(())
        }
    }

    let mut json = serde_json::Deserializer::from_str(text);
    if json.deserialize_map(Entries(each)).and_then(|()| json.end()).is_ok() {
        return Ok(());
    }
    let object = text.trim_ascii_start().starts_with('{');
    let json = || serde_json::from_str::<IgnoredAny>(text).is_ok();
    Err(if !object && json() { BadMessage::NotObject } else { BadMessage::NotJson })
}

/// The text of a raw value that is a string.
fn string(raw: &str) -> Option<Cow<'_, str>> {
    // Checked first, because serde_json allocates an error for other values.
    raw.starts_with('"').then(|| serde_json::from_str::<JsonStr<'_>>(raw).ok()).flatten().map(|text| text.0)
}

/// A JSON string, borrowed if it contains no escape. serde always copies a plain `Cow`.
#[derive(Deserialize)]
struct JsonStr<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests;
