//! One level of a JSON object.

use std::borrow::Cow;
use std::fmt;

use super::{BadMessage, Reader, for_each_entry, push_json_string, string};

/// One level of a JSON object: keys and raw values in order. `Display` writes it as JSON, with its values byte for byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JsonObject<'a> {
    entries: Vec<(Cow<'a, str>, &'a str)>,
}

impl<'a> JsonObject<'a> {
    /// Parses an object.
    pub fn parse(text: &'a str) -> Result<Self, BadMessage> {
        // Hellos have five or six.
        let mut entries = Vec::with_capacity(8);
        for_each_entry(text, |key, raw| entries.push((key, raw)))?;
        Ok(Self { entries })
    }

    /// The raw value of `key`, as chat servers look it up.
    pub fn raw(&self, key: &str) -> Option<&'a str> {
        self.raw_for(key, Reader::Server)
    }

    /// The raw value of `key`, as this reader looks it up.
    pub fn raw_for(&self, key: &str, reader: Reader) -> Option<&'a str> {
        let mut found = None;
        self.entries.iter().for_each(|(k, raw)| reader.look(k, raw, key, &mut found));
        found
    }

    /// The value of `key` if it is a string.
    pub fn string(&self, key: &str) -> Option<Cow<'a, str>> {
        self.raw(key).and_then(string)
    }

    /// The value of `key` if it is a number that fits a double.
    pub fn number(&self, key: &str) -> Option<f64> {
        // Of all JSON values, Rust parses only numbers as numbers.
        self.raw(key)?.parse().ok().filter(|number: &f64| number.is_finite())
    }

    /// The value of `key` if it is an object.
    pub fn object(&self, key: &str) -> Option<JsonObject<'a>> {
        JsonObject::parse(self.raw(key)?).ok()
    }

    /// Sets `key` to the value `raw`, which is JSON. A new key is added at the end.
    pub fn set(&mut self, key: &'a str, raw: &'a str) {
        let mut found = false;
        for (_, value) in self.entries.iter_mut().filter(|(k, _)| k == key) {
            *value = raw;
            found = true;
        }
        if !found {
            self.entries.push((Cow::Borrowed(key), raw));
        }
    }

    /// Keys and raw values in order, including repeated keys.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.entries.iter().map(|(key, raw)| (&**key, *raw))
    }
}

impl fmt::Display for JsonObject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len: usize = self.entries().map(|(key, raw)| key.len() + raw.len() + 4).sum();
        let mut json = String::with_capacity(len + 2);
        json.push('{');
        for (index, (key, raw)) in self.entries().enumerate() {
            if index > 0 {
                json.push(',');
            }
            push_json_string(&mut json, key);
            json.extend([":", raw]);
        }
        json.push('}');
        f.write_str(&json)
    }
}
