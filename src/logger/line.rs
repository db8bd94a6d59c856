//! One line of the log, as text or as JSON.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use log::kv::{Error, Key, Value, VisitSource};
use log::{Level, LevelFilter, Log, Record};
use serde_json::json;
use simplelog::{ConfigBuilder, WriteLogger};

use crate::text;

/// Bytes of a message, and of a field's text, at most; the rest is cut off.
pub(super) const LONGEST: usize = 8 * 1024;
/// Bytes that most messages and prefixes fit into, which are allocated at once.
const TYPICAL: usize = 192;

/// The fields that stand in brackets in front of a text line's message.
const PREFIX_FIELDS: [&str; 3] = ["device", "address", "session"];

/// Writes the level and the message of a text line: `[INFO ] text`.
pub(super) struct TextLines {
    inner: Box<WriteLogger<Buffer>>,
    buffer: Buffer,
}

impl TextLines {
    pub(super) fn new() -> Self {
        let buffer = Buffer::default();
        let config = ConfigBuilder::new()
            .set_time_level(LevelFilter::Off)
            .set_level_padding(simplelog::LevelPadding::Right)
            .set_thread_level(LevelFilter::Off)
            .set_target_level(LevelFilter::Off)
            .set_location_level(LevelFilter::Off)
            .build();
        Self { inner: WriteLogger::new(LevelFilter::Trace, config, buffer.clone()), buffer }
    }

    /// `2026-01-31T23:59:59.999+08:00 [INFO ] [device address session=id] text`, and a line feed.
    pub(super) fn line(&self, time: &str, record: &Record<'_>) -> Vec<u8> {
        let message = message(record);
        let prefix = Prefix::of(record).before(&message);
        let mut line = self.buffer.lock();
        line.clear();
        line.extend_from_slice(time.as_bytes());
        line.push(b' ');
        drop(line);
        self.inner.log(&record.to_builder().args(format_args!("{prefix}{message}")).build());
        self.buffer.lock().clone()
    }
}

/// Where the formatter writes to.
#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `{"time":…,"level":"info","message":…}` with the record's fields before the message, and a line feed.
pub(super) fn json_line(time: &str, record: &Record<'_>) -> Vec<u8> {
    let level = record.level().as_str().to_ascii_lowercase();
    let mut line = format!("{{\"time\":{},\"level\":{}", json!(time), json!(level));
    for (name, value) in Fields::of(record).0 {
        // Writing to a string cannot fail.
        let _ = write!(line, ",{}:{value}", json!(name));
    }
    let _ = writeln!(line, ",\"message\":{}}}", json!(message(record)));
    line.into_bytes()
}

/// The message on one line: a peer's text must not look like a line of the log.
fn message(record: &Record<'_>) -> String {
    let mut text = String::with_capacity(TYPICAL);
    // Writing to a string cannot fail.
    let _ = write!(text, "{}", record.args());
    match text::printable(&text, LONGEST) {
        Cow::Borrowed(all) if all.len() == text.len() => text,
        changed => changed.into_owned(),
    }
}

/// What stands in brackets in front of a text line's message: the values of [`PREFIX_FIELDS`].
#[derive(Default)]
struct Prefix([Option<String>; PREFIX_FIELDS.len()]);

impl Prefix {
    fn of(record: &Record<'_>) -> Self {
        let mut prefix = Self::default();
        // This visitor returns no error.
        let _ = record.key_values().visit(&mut prefix);
        prefix
    }

    /// `[device address session=id] `, with what there is, or nothing. A session that `message` names itself is left out.
    fn before(&self, message: &str) -> String {
        let mut text = String::with_capacity(TYPICAL);
        for (name, value) in PREFIX_FIELDS.iter().zip(&self.0) {
            let Some(value) = value else { continue };
            let label = if *name == "session" { "session=" } else { "" };
            if !label.is_empty() && is_labelled(message, label, value) {
                continue;
            }
            text.extend([if text.is_empty() { "[" } else { " " }, label, value]);
        }
        if !text.is_empty() {
            text.push_str("] ");
        }
        text
    }
}

/// Whether the message holds this value behind this label.
fn is_labelled(message: &str, label: &str, value: &str) -> bool {
    message.match_indices(label).any(|(at, _)| message[at + label.len()..].starts_with(value))
}

impl<'a> VisitSource<'a> for Prefix {
    fn visit_pair(&mut self, name: Key<'a>, value: Value<'a>) -> Result<(), Error> {
        if let Some(place) = PREFIX_FIELDS.iter().position(|field| name.as_str() == *field) {
            let text = value.to_borrowed_str().map_or_else(|| Cow::Owned(value.to_string()), Cow::Borrowed);
            self.0[place] = Some(text::printable(&text, LONGEST).into_owned());
        }
        Ok(())
    }
}

/// All that a record says besides its message.
struct Fields(Vec<(String, serde_json::Value)>);

impl Fields {
    fn of(record: &Record<'_>) -> Self {
        let mut fields = Self(Vec::new());
        // This visitor returns no error.
        let _ = record.key_values().visit(&mut fields);
        fields
    }
}

impl<'a> VisitSource<'a> for Fields {
    fn visit_pair(&mut self, name: Key<'a>, value: Value<'a>) -> Result<(), Error> {
        self.0.push((name.as_str().to_owned(), json_value(&value)));
        Ok(())
    }
}

/// A field's value as JSON.
fn json_value(value: &Value<'_>) -> serde_json::Value {
    let number = || value.to_u64().map(Into::into).or_else(|| value.to_i64().map(Into::into));
    let found = value.to_bool().map(Into::into).or_else(number).or_else(|| value.to_f64().map(Into::into));
    found.unwrap_or_else(|| json!(text::printable(&value.to_string(), LONGEST)))
}

/// The place of the level's word in a text line, for its colour.
pub(super) fn level_word(line: &[u8]) -> Option<std::ops::Range<usize>> {
    let start = line.windows(2).position(|pair| pair == b" [")? + 2;
    let end = start + line[start..].iter().position(|byte| !byte.is_ascii_alphabetic())?;
    Some(start..end)
}

/// The number of a level in syslog (RFC 5424 section 6.2.1), which the journal reads in front of a line.
pub(super) fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lines(level: Level, fields: &[(&str, Value<'_>)], message: &str) -> (String, serde_json::Value) {
        let args = format_args!("{message}").to_string();
        let builder = || {
            let mut builder = Record::builder();
            builder.level(level).key_values(&fields);
            builder
        };
        let text = TextLines::new().line("T", &builder().args(format_args!("{args}")).build());
        let json = json_line("T", &builder().args(format_args!("{args}")).build());
        assert_eq!(json.iter().filter(|byte| **byte == b'\n').count(), 1);
        (String::from_utf8(text).unwrap(), serde_json::from_slice(&json).unwrap())
    }

    #[test]
    fn who_a_line_is_about_stands_in_front_of_the_text_and_in_fields_of_its_own() {
        let who = [("device", "d@@@1"), ("address", "1.2.3.4:5"), ("session", "abc")]
            .map(|(name, value)| (name, Value::from(value)));
        for (fields, message, expected) in [
            (&who[..], "text", "T [WARN ] [d@@@1 1.2.3.4:5 session=abc] text\n"),
            (&who[..2], "text", "T [WARN ] [d@@@1 1.2.3.4:5] text\n"),
            (&who[1..2], "text", "T [WARN ] [1.2.3.4:5] text\n"),
            (&[], "text", "T [WARN ] text\n"),
            // It is not said twice.
            (
                &who[..],
                "call begins: session=abc x",
                "T [WARN ] [d@@@1 1.2.3.4:5] call begins: session=abc x\n",
            ),
        ] {
            let (text, json) = lines(Level::Warn, fields, message);
            assert_eq!(text, expected);
            assert_eq!((json["time"].as_str(), json["level"].as_str()), (Some("T"), Some("warn")));
            assert_eq!(json["message"], message);
            for (name, value) in fields {
                assert_eq!(json[*name], value.to_string());
            }
        }
    }

    #[test]
    fn fields_keep_their_types() {
        let fields = [("up", Value::from(3u64)), ("loss", Value::from(0.5)), ("answered", Value::from(true))];
        let (text, json) = lines(Level::Info, &fields, "x");
        assert_eq!(text, "T [INFO ] x\n");
        assert_eq!((&json["up"], &json["loss"], &json["answered"]), (&json!(3), &json!(0.5), &json!(true)));
    }

    #[test]
    fn hostile_text_is_one_line_of_valid_json() {
        let hostile = "\"}\r\n{\"level\":\"error\\\" \u{0} \u{1b}[31m \u{2028} \u{202e} \u{9b}";
        let fields = [("device", Value::from(hostile)), ("\"\n", Value::from("x"))];
        let (text, json) = lines(Level::Info, &fields, hostile);
        assert!(text.lines().count() == 1 && !text.contains(['\u{1b}', '\u{202e}', '\u{0}']), "{text}");
        assert_eq!(
            json["message"],
            hostile
                .replace('\r', "\\r")
                .replace('\n', "\\n")
                .replace('\u{0}', "\\u{0}")
                .replace('\u{1b}', "\\u{1b}")
                .replace('\u{2028}', "\\u{2028}")
                .replace('\u{202e}', "\\u{202e}")
                .replace('\u{9b}', "\\u{9b}")
        );
        assert_eq!(json["device"], json["message"]);
        assert_eq!(json["\"\n"], "x");
    }

    #[test]
    fn the_word_of_the_level_is_found() {
        assert_eq!(level_word(b"T [WARN ] [x] y\n"), Some(3..7));
        assert_eq!(level_word(b"T [ERROR] y\n"), Some(3..8));
        for other in ["", "\n", "{\"time\":\"T\"}\n", "T ["] {
            assert_eq!(level_word(other.as_bytes()), None);
        }
    }
}
