//! The configuration file's JSON, key by key: who reads a key names what it may be, and what nobody asked for is an error.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::chat_server::is_host_name;
use super::error::Problem;
use super::{Network, PublicIp, Secret};

/// One JSON value and where it stands.
pub(super) struct JsonValue<'a> {
    /// The dotted path from the top; empty for the whole file.
    path: String,
    raw: &'a str,
}

impl<'a> JsonValue<'a> {
    /// The file as a whole.
    ///
    /// # Errors
    /// When it is not JSON.
    pub(super) fn root(text: &'a str) -> Result<Self, Problem> {
        let raw = serde_json::from_str::<&RawValue>(text).map_err(|error| {
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default().to_owned();
            Problem::Json { line: error.line(), column: error.column(), message }
        })?;
        Ok(Self { path: String::new(), raw: raw.get() })
    }

    /// The problem that this value is not what is allowed here.
    pub(super) fn invalid(&self, allowed: impl Into<String>) -> Problem {
        let found = match self.raw.as_bytes().first() {
            Some(b'{' | b'[') => self.json_type().to_owned(),
            _ if self.raw.chars().count() > 80 => {
                format!("{}...", self.raw.chars().take(80).collect::<String>())
            }
            _ => self.raw.to_owned(),
        };
        Problem::value(self.display_path(), found, allowed)
    }

    /// As [`JsonValue::invalid`], for a value that may hold a secret.
    pub(super) fn invalid_redacted(&self, found: &str, allowed: impl Into<String>) -> Problem {
        Problem::value(self.display_path(), found, allowed)
    }

    fn json_type(&self) -> &'static str {
        match self.raw.as_bytes().first() {
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "true or false",
            Some(b'n') => "null",
            _ => "a number",
        }
    }

    fn deserialize<T: Deserialize<'a>>(&self, allowed: impl Into<String>) -> Result<T, Problem> {
        serde_json::from_str(self.raw).map_err(|_| self.invalid(allowed))
    }

    /// The dotted path, as messages show it.
    pub(super) fn display_path(&self) -> &str {
        if self.path.is_empty() { "the whole file" } else { &self.path }
    }

    /// Whether this is a JSON object.
    pub(super) fn is_object(&self) -> bool {
        self.raw.starts_with('{')
    }

    pub(super) fn section(&self) -> Result<Section<'a>, Problem> {
        let Entries(entries) = self.deserialize("an object")?;
        for (index, (key, _)) in entries.iter().enumerate() {
            if entries[..index].iter().any(|(other, _)| other == key) {
                let path = join_path(&self.path, key);
                return Err(Problem::value(path, "the key twice", "each key once"));
            }
        }
        Ok(Section { path: self.path.clone(), entries, known_keys: Vec::new(), problems: Vec::new() })
    }

    fn list(&self, allowed: &str) -> Result<Vec<JsonValue<'a>>, Problem> {
        let items: Vec<&RawValue> = self.deserialize(allowed)?;
        let item = |(index, raw): (usize, &&'a RawValue)| JsonValue {
            path: format!("{}[{index}]", self.path),
            raw: raw.get(),
        };
        Ok(items.iter().enumerate().map(item).collect())
    }
}

/// A JSON object whose keys are taken out one by one, and what was wrong with them.
pub(super) struct Section<'a> {
    path: String,
    entries: Vec<(String, &'a RawValue)>,
    known_keys: Vec<&'static str>,
    problems: Vec<Problem>,
}

impl<'a> Section<'a> {
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(name, _)| name == key)
    }

    /// Forgets the keys whose values JavaScript takes for nothing, so that they count as absent.
    pub(super) fn remove_falsy(&mut self) {
        self.entries.retain(|(_, raw)| !matches!(raw.get(), "null" | "false" | "0" | "\"\""));
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<JsonValue<'a>> {
        self.known_keys.push(key);
        let index = self.entries.iter().position(|(name, _)| name == key)?;
        let (_, raw) = self.entries.swap_remove(index);
        Some(JsonValue { path: join_path(&self.path, key), raw: raw.get() })
    }

    /// Reads `key` into `target`, which keeps its value when the key is absent or refused.
    pub(super) fn set<T>(
        &mut self,
        key: &'static str,
        target: &mut T,
        read: impl FnOnce(&JsonValue<'a>) -> Result<T, Problem>,
    ) {
        match self.take(key).map(|value| read(&value)) {
            None => {}
            Some(Ok(found)) => *target = found,
            Some(Err(problem)) => self.problems.push(problem),
        }
    }

    /// Reads every item of the list at `key` into `target`, which keeps its items when the key is absent.
    pub(super) fn set_list<T>(
        &mut self,
        key: &'static str,
        allowed: &str,
        target: &mut Vec<T>,
        read: impl FnMut(&JsonValue<'a>) -> Result<T, Problem>,
    ) {
        match self.take(key).map(|value| value.list(allowed)) {
            None => {}
            Some(Ok(items)) => {
                target.clear();
                for item in items.iter().map(read) {
                    match item {
                        Ok(item) => target.push(item),
                        Err(problem) => self.problems.push(problem),
                    }
                }
            }
            Some(Err(problem)) => self.problems.push(problem),
        }
    }

    /// Reads the object at `key`, if there is one, and refuses what `read` did not ask for.
    pub(super) fn nested(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'a>)) {
        match self.take(key).map(|value| value.section()) {
            None => {}
            Some(Ok(mut section)) => {
                read(&mut section);
                self.problems.extend(section.finish());
            }
            Some(Err(problem)) => self.problems.push(problem),
        }
    }

    /// As [`Section::nested`] for a file of another program, where what `read` did not ask for is no error: those keys,
    /// dotted, go to `unused`.
    pub(super) fn nested_lenient(
        &mut self,
        key: &'static str,
        unused: &mut Vec<String>,
        read: impl FnOnce(&mut Section<'a>, &mut Vec<String>),
    ) {
        match self.take(key).map(|value| value.section()) {
            None => {}
            Some(Ok(mut section)) => {
                section.remove_falsy();
                read(&mut section, unused);
                self.problems.extend(section.finish_lenient(unused));
            }
            Some(Err(problem)) => self.problems.push(problem),
        }
    }

    /// All that was wrong; the keys that nobody asked for go to `unused`.
    pub(super) fn finish_lenient(self, unused: &mut Vec<String>) -> Vec<Problem> {
        unused.extend(self.entries.iter().map(|(key, _)| join_path(&self.path, key)));
        self.problems
    }

    /// All that was wrong, keys that nobody asked for included.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        let shown = if self.path.is_empty() { "the file" } else { &self.path };
        for (unknown, _) in &self.entries {
            self.known_keys.sort_by_key(|asked| (edit_distance(unknown, asked).min(4), *asked));
            self.problems.push(Problem::value(
                join_path(&self.path, unknown),
                format!("an unknown key in {shown}"),
                self.known_keys.join(", "),
            ));
        }
        self.problems
    }
}

fn join_path(path: &str, key: &str) -> String {
    let key = key.escape_debug();
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}

/// The number of insertions, removals and replacements of bytes that make one text of the other.
pub(super) fn edit_distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, b) in other.bytes().enumerate() {
            let replaced = corner + usize::from(!a.eq_ignore_ascii_case(&b));
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

/// An object's entries in their order, a repeated key as often as it stands there.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(entries)
            }
        }

        deserializer.deserialize_map(Collect).map(Entries)
    }
}

pub(super) fn boolean(value: &JsonValue<'_>) -> Result<bool, Problem> {
    value.deserialize("true or false")
}

pub(super) fn port(value: &JsonValue<'_>) -> Result<u16, Problem> {
    value.deserialize(PORT_ALLOWED)
}

const PORT_ALLOWED: &str = "a whole number from 0 to 65535";

pub(super) fn whole_number(
    range: RangeInclusive<usize>,
) -> impl FnOnce(&JsonValue<'_>) -> Result<usize, Problem> {
    move |value| {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        let number = value.deserialize(allowed.clone())?;
        if range.contains(&number) { Ok(number) } else { Err(value.invalid(allowed)) }
    }
}

pub(super) fn number(range: RangeInclusive<u32>) -> impl FnOnce(&JsonValue<'_>) -> Result<f64, Problem> {
    move |value| {
        let allowed = format!("a number from {} to {}", range.start(), range.end());
        let number: f64 = value.deserialize(allowed.clone())?;
        let range = f64::from(*range.start())..=f64::from(*range.end());
        if range.contains(&number) { Ok(number) } else { Err(value.invalid(allowed)) }
    }
}

/// A number of seconds in this range, fractions allowed.
pub(super) fn seconds(
    range: RangeInclusive<u32>,
) -> impl FnOnce(&JsonValue<'_>) -> Result<Duration, Problem> {
    move |value| number(range)(value).map(Duration::from_secs_f64)
}

/// A whole number of microseconds in this range.
pub(super) fn micros(range: RangeInclusive<u32>) -> impl FnOnce(&JsonValue<'_>) -> Result<Duration, Problem> {
    let range = *range.start() as usize..=*range.end() as usize;
    move |value| whole_number(range)(value).map(|micros| Duration::from_micros(micros as u64))
}

/// A whole number of milliseconds in this range.
pub(super) fn millis(range: RangeInclusive<u32>) -> impl FnOnce(&JsonValue<'_>) -> Result<Duration, Problem> {
    let range = *range.start() as usize..=*range.end() as usize;
    move |value| whole_number(range)(value).map(|millis| Duration::from_millis(millis as u64))
}

pub(super) fn text(value: &JsonValue<'_>) -> Result<String, Problem> {
    value.deserialize("a string")
}

/// A string that is a secret; an empty one is none.
pub(super) fn secret(value: &JsonValue<'_>) -> Result<Option<Secret>, Problem> {
    let text: String =
        text(value).map_err(|_| value.invalid_redacted(value.json_type(), "a string, empty for none"))?;
    Ok(Secret::new(&text))
}

/// A token that callers show: hard to guess, and something an HTTP header can hold.
pub(super) fn token(value: &JsonValue<'_>) -> Result<Option<Secret>, Problem> {
    let text = text(value).map_err(|_| value.invalid_redacted(value.json_type(), TOKEN_ALLOWED))?;
    parse_token(&text).ok_or_else(|| value.invalid_redacted("a text that is not shown", TOKEN_ALLOWED))
}

const TOKEN_ALLOWED: &str = "16 or more visible ASCII characters without spaces, empty for none";

/// The token of this text, which is none when it is empty; outer `None` when it must not be one.
fn parse_token(text: &str) -> Option<Option<Secret>> {
    let good = text.is_empty() || text.len() >= 16 && text.bytes().all(|byte| byte.is_ascii_graphic());
    good.then(|| Secret::new(text))
}

/// The address of the management listener.
pub(super) fn api_host(value: &JsonValue<'_>) -> Result<Option<IpAddr>, Problem> {
    const ALLOWED: &str = "\"auto\", or an IPv4 or IPv6 address to listen on";
    match text(value).map_err(|_| value.invalid(ALLOWED))?.as_str() {
        "auto" => Ok(None),
        text => text.parse().map(Some).map_err(|_| value.invalid(ALLOWED)),
    }
}

/// A path; an empty one is none.
pub(super) fn path(value: &JsonValue<'_>) -> Result<Option<PathBuf>, Problem> {
    let text = text(value).map_err(|_| value.invalid("a path, \"\" for none"))?;
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

pub(super) fn ip(value: &JsonValue<'_>) -> Result<IpAddr, Problem> {
    value.deserialize("an IPv4 or IPv6 address to listen on, such as \"0.0.0.0\" or \"::\"")
}

/// A range of addresses.
pub(super) fn network(value: &JsonValue<'_>) -> Result<Network, Problem> {
    const ALLOWED: &str = "a network such as \"10.0.0.0/8\" or \"2001:db8::/32\", or an IP address";
    text(value).ok().and_then(|text| text.parse().ok()).ok_or_else(|| value.invalid(ALLOWED))
}

/// One of some words, in any case.
pub(super) fn one_of<T: Copy>(words: &[(&str, T)]) -> impl FnOnce(&JsonValue<'_>) -> Result<T, Problem> {
    move |value| {
        let allowed = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        let text: String = value.deserialize(allowed.clone())?;
        let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(&text));
        found.map(|(_, meaning)| *meaning).ok_or_else(|| value.invalid(allowed))
    }
}

pub(super) fn level(value: &JsonValue<'_>) -> Result<LevelFilter, Problem> {
    parse_level(&text(value).map_err(|_| value.invalid(LEVELS))?).ok_or_else(|| value.invalid(LEVELS))
}

/// What [`parse_level`] accepts, for error messages and the help text.
pub const LEVELS: &str = "off, error, warn, info, debug, trace";

/// The log level of this name, in any case; `warning` and `fatal` are understood too.
pub fn parse_level(name: &str) -> Option<LevelFilter> {
    match name.to_ascii_lowercase().as_str() {
        "warning" => Some(LevelFilter::Warn),
        "fatal" => Some(LevelFilter::Error),
        name => name.parse().ok(),
    }
}

pub(super) fn public_ip(value: &JsonValue<'_>) -> Result<PublicIp, Problem> {
    let text = text(value).map_err(|_| value.invalid(PUBLIC_IP_ALLOWED))?;
    parse_public_ip(&text).ok_or_else(|| value.invalid(PUBLIC_IP_ALLOWED))
}

const PUBLIC_IP_ALLOWED: &str = "\"auto\", an IP address or a host name, without a port";

fn parse_public_ip(text: &str) -> Option<PublicIp> {
    if text.eq_ignore_ascii_case("auto") {
        return Some(PublicIp::Auto);
    }
    let ip = text.parse().ok().map(PublicIp::Ip);
    ip.or_else(|| is_host_name(text).then(|| PublicIp::Host(text.to_owned())))
}

/// The text of an object, without its white space.
pub(super) fn object(value: &JsonValue<'_>) -> Result<String, Problem> {
    let object: serde_json::Map<String, serde_json::Value> = value.deserialize("an object")?;
    serde_json::to_string(&object).map_err(|_: serde_json::Error| value.invalid("an object"))
}
