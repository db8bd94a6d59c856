//! The values of a configuration file's JSON, each with the place where it stands.

use std::fmt::Display;
use std::ops::Range;

use jsonc_parser::tokens::Token;
use jsonc_parser::{Scanner, ScannerOptions};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::Problem;
use crate::proto::message::JsonObject;

/// What word processors, chat programs and input methods write for `"` and `'`.
pub(super) const TYPOGRAPHIC_QUOTES: &str = "“”„‟«»‘’‚‛＂＇「」";

/// The text with spaces for its comments (`//`, `/* */`) and for the comma behind the last member or item, so that it is
/// JSON, and everything stays where it was.
pub(super) fn without_comments(text: &str) -> String {
    let mut stripped = text.to_owned();
    let mut blank = |range: Range<usize>| {
        let spaces: String =
            text[range.clone()].bytes().map(|b| if b == b'\n' { '\n' } else { ' ' }).collect();
        stripped.replace_range(range, &spaces);
    };
    let mut scanner = Scanner::new(text, &ScannerOptions::default());
    let (mut follows_value, mut comma) = (false, None);
    // What the scanner refuses is left to the JSON parser, which refuses it too.
    while let Ok(Some(token)) = scanner.scan() {
        let range = scanner.token_start()..scanner.token_end();
        match token {
            Token::CommentLine(_) | Token::CommentBlock(_) => {
                blank(range);
                continue;
            }
            Token::Comma => comma = follows_value.then_some(range),
            Token::CloseBrace | Token::CloseBracket => comma.take().into_iter().for_each(&mut blank),
            _ => comma = None,
        }
        follows_value = !matches!(token, Token::Comma | Token::Colon | Token::OpenBrace | Token::OpenBracket);
    }
    stripped
}

/// One JSON value and where it stands.
pub(super) struct JsonValue<'a> {
    /// The dotted path from the top; empty for the whole file.
    pub(super) path: String,
    raw: &'a str,
}

impl<'a> JsonValue<'a> {
    /// The value at `path`; an empty path is the whole file.
    ///
    /// # Errors
    /// When the text is not JSON.
    pub(super) fn parse(path: &str, text: &'a str) -> Result<Self, Problem> {
        let raw = serde_json::from_str::<&RawValue>(text).map_err(|error| {
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            let line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
            let quote = line.chars().find(|c| TYPOGRAPHIC_QUOTES.contains(*c));
            let quote = quote.map(|quote| {
                format!("; the line holds the typographic quote {quote}, write \" in its place")
            });
            let (line, column, quote) = (error.line(), error.column(), quote.unwrap_or_default());
            Problem::file(format!("line {line}, column {column}: not JSON: {message}{quote}"))
        })?;
        Ok(Self { path: path.to_owned(), raw: raw.get() })
    }

    /// The problem that this value is not what is allowed here.
    pub(super) fn invalid(&self, allowed: impl Display) -> Problem {
        let found = match self.raw.as_bytes().first() {
            Some(b'{' | b'[') => self.json_type().to_owned(),
            _ if self.raw.chars().count() > 80 => {
                format!("{}...", self.raw.chars().take(80).collect::<String>())
            }
            _ => self.raw.to_owned(),
        };
        self.invalid_redacted(&found, allowed)
    }

    /// As [`JsonValue::invalid`], with `found` in the place of a value that may hold a secret.
    pub(super) fn invalid_redacted(&self, found: &str, allowed: impl Display) -> Problem {
        let path = if self.path.is_empty() { "the whole file" } else { &self.path };
        Problem::value(path, found, allowed)
    }

    pub(super) fn json_type(&self) -> &'static str {
        match self.raw.as_bytes().first() {
            Some(b'{') => "an object",
            Some(b'[') => "an array",
            Some(b'"') => "a string",
            Some(b't' | b'f') => "true or false",
            Some(b'n') => "null",
            _ => "a number",
        }
    }

    pub(super) fn deserialize<T: Deserialize<'a>>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.raw)
    }

    /// Whether this is a JSON object.
    pub(super) fn is_object(&self) -> bool {
        self.raw.starts_with('{')
    }

    /// Whether JavaScript takes this value for nothing.
    pub(super) fn is_falsy(&self) -> bool {
        matches!(self.raw, "null" | "false" | "0" | "\"\"")
    }

    /// The members of an object with their keys, in their order.
    ///
    /// # Errors
    /// When this is no object, or has a key twice.
    pub(super) fn members(&self) -> Result<Vec<(String, JsonValue<'a>)>, Problem> {
        let object = JsonObject::parse(self.raw).map_err(|_| self.invalid("an object"))?;
        let mut members: Vec<(String, JsonValue<'a>)> = Vec::new();
        for (key, raw) in object.entries() {
            let path = self.join_path(key);
            if members.iter().any(|(other, _)| other == key) {
                return Err(Problem::value(path, "the key twice", "each key once"));
            }
            members.push((key.to_owned(), JsonValue { path, raw }));
        }
        Ok(members)
    }

    /// The items of a list.
    pub(super) fn items(&self, allowed: &str) -> Result<Vec<JsonValue<'a>>, Problem> {
        let items: Vec<&RawValue> = self.deserialize().map_err(|_| self.invalid(allowed))?;
        let item = |(index, raw): (usize, &'a RawValue)| JsonValue {
            path: format!("{}[{index}]", self.path),
            raw: raw.get(),
        };
        Ok(items.into_iter().enumerate().map(item).collect())
    }

    /// The problem that this member of `section` has none of the known keys. The nearest of them comes first.
    pub(super) fn unknown_key(&self, section: &JsonValue<'_>, mut known: Vec<&str>) -> Problem {
        let key = self.path.rsplit('.').next().unwrap_or_default();
        known.sort_by_key(|known| (edit_distance(key, known).min(4), *known));
        let shown = if section.path.is_empty() { "the file" } else { &section.path };
        self.invalid_redacted(&format!("an unknown key in {shown}"), known.join(", "))
    }

    /// The path of a member. A key with a dot in it stands in quotes, so that it is not taken for a path.
    fn join_path(&self, key: &str) -> String {
        let key = if key.contains('.') { format!("{key:?}") } else { key.escape_debug().to_string() };
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }
}

/// The number of insertions, removals, replacements and exchanges of neighbours, by bytes in any case, that make one text
/// of the other.
pub(crate) fn edit_distance(one: &str, other: &str) -> usize {
    let [one, other] = [one, other].map(|text| text.to_ascii_lowercase().into_bytes());
    let (mut row, mut above) = ((0..=other.len()).collect::<Vec<_>>(), Vec::new());
    for i in 0..one.len() {
        let before = above;
        (above, row) = (row, vec![i + 1]);
        for j in 0..other.len() {
            let replaced = above[j] + usize::from(one[i] != other[j]);
            let mut least = replaced.min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && one[i] == other[j - 1] && one[i - 1] == other[j] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
    }
    row[other.len()]
}
