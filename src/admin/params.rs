//! The parameters of requests, in queries and in JSON objects. Errors name the parameter.

use std::borrow::Cow;
use std::fmt;

use crate::proto::message::{BadMessage, JsonObject};
use crate::text::{parse_digits, percent_decode};

/// Characters of a bad value that are shown.
const SHOWN: usize = 40;

/// A parameter of the wrong type, with a value that is not known, or there twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadParameter {
    name: String,
    found: String,
    allowed: Cow<'static, str>,
}

impl BadParameter {
    /// `found` is shown as it is; a long one is cut.
    pub fn new(name: impl Into<String>, found: &str, allowed: impl Into<Cow<'static, str>>) -> Self {
        let cut = found.char_indices().nth(SHOWN).map(|(at, _)| at);
        let found = cut.map_or_else(|| found.to_owned(), |at| format!("{}...", &found[..at]));
        Self { name: name.into(), found, allowed: allowed.into() }
    }
}

impl fmt::Display for BadParameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}, allowed: {}", self.name, self.found, self.allowed)
    }
}

impl From<BadParameter> for String {
    fn from(error: BadParameter) -> Self {
        error.to_string()
    }
}

/// The value of `key` in a query, decoded; "" for a key that stands alone.
///
/// # Errors
/// When it is there twice, or its percent-encoding is broken.
pub fn query_value<'a>(query: &'a str, key: &str) -> Result<Option<Cow<'a, str>>, BadParameter> {
    let pairs = query.split('&').map(|part| part.split_once('=').unwrap_or((part, "")));
    let mut values = pairs.filter(|(name, _)| percent_decode(name).as_deref() == Some(key));
    let Some((_, value)) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(BadParameter::new(key, "it more than once", "one value"));
    }
    let broken = || BadParameter::new(key, &format!("{value:?}"), "percent-encoded UTF-8");
    percent_decode(value).ok_or_else(broken).map(Some)
}

/// A switch in a query: off when it is not there, on when it stands alone.
///
/// # Errors
/// Any value but true, false, 1 and 0.
pub fn query_flag(query: &str, key: &str) -> Result<bool, BadParameter> {
    match query_value(query, key)?.as_deref() {
        Some("" | "true" | "1") => Ok(true),
        None | Some("false" | "0") => Ok(false),
        Some(other) => Err(BadParameter::new(key, &format!("{other:?}"), "true, false, 1, 0 or no value")),
    }
}

/// A whole number in a query, from `min` to `max`.
///
/// # Errors
/// What is none.
pub fn query_number(
    query: &str,
    key: &str,
    default: u64,
    (min, max): (u64, u64),
) -> Result<u64, BadParameter> {
    let Some(text) = query_value(query, key)? else { return Ok(default) };
    let number = parse_digits(&text).filter(|number| (min..=max).contains(number));
    number.ok_or_else(|| {
        BadParameter::new(key, &format!("{text:?}"), format!("a whole number from {min} to {max}"))
    })
}

/// The members of a JSON object. One that is null is as good as absent.
pub struct Members<'a> {
    object: JsonObject<'a>,
    /// Where the object is: empty, or a name and a dot.
    path: &'static str,
}

impl<'a> Members<'a> {
    /// The members of a body.
    ///
    /// # Errors
    /// A body that is no JSON object.
    pub fn of_body(body: &'a str) -> Result<Self, BadMessage> {
        Ok(Self { object: JsonObject::parse(body)?, path: "" })
    }

    /// The value as it was written.
    ///
    /// # Errors
    /// When it is there twice: readers differ in which one they take.
    pub fn raw(&self, key: &str) -> Result<Option<&'a str>, BadParameter> {
        let mut values = self.object.entries().filter(|(name, _)| *name == key).map(|(_, raw)| raw);
        let value = values.next();
        match values.next() {
            None => Ok(value.filter(|raw| *raw != "null")),
            Some(_) => Err(self.bad(key, "it more than once", "one value")),
        }
    }

    /// The value of a member that is a string.
    ///
    /// # Errors
    /// When it is none, or there twice.
    pub fn string(
        &self,
        key: &str,
        allowed: impl Into<Cow<'static, str>>,
    ) -> Result<Option<Cow<'a, str>>, BadParameter> {
        let Some(raw) = self.raw(key)? else { return Ok(None) };
        self.object.string(key).map(Some).ok_or_else(|| self.bad(key, raw, allowed))
    }

    /// The members of a member that is an object.
    ///
    /// # Errors
    /// When it is none, or there twice.
    pub fn object(&self, key: &str, path: &'static str) -> Result<Option<Self>, BadParameter> {
        let Some(raw) = self.raw(key)? else { return Ok(None) };
        match JsonObject::parse(raw) {
            Ok(object) => Ok(Some(Self { object, path })),
            Err(_) => Err(self.bad(key, raw, "an object")),
        }
    }

    fn bad(&self, key: &str, found: &str, allowed: impl Into<Cow<'static, str>>) -> BadParameter {
        BadParameter::new(format!("{}{key}", self.path), found, allowed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn query_values() {
        for (query, expected) in [
            ("", Ok(None)),
            ("disconnect", Ok(Some(""))),
            ("disconnect=true", Ok(Some("true"))),
            ("a=1&disconnect=tr%75e", Ok(Some("true"))),
            ("%64isconnect=true", Ok(Some("true"))),
            ("xdisconnect=true", Ok(None)),
            ("disconnect=%", Err("disconnect: found \"%\", allowed: percent-encoded UTF-8")),
            ("disconnect=%ff", Err("disconnect: found \"%ff\", allowed: percent-encoded UTF-8")),
            ("disconnect&a&disconnect", Err("disconnect: found it more than once, allowed: one value")),
        ] {
            let found = query_value(query, "disconnect").map_err(|error| error.to_string());
            let found = found.as_ref().map(Option::as_deref).map_err(String::as_str);
            assert_eq!(found, expected, "{query}");
        }
    }

    #[test]
    fn switches_and_numbers_have_known_values() {
        for (value, expected) in [
            ("", Some(true)),
            ("true", Some(true)),
            ("1", Some(true)),
            ("false", Some(false)),
            ("0", Some(false)),
        ] {
            assert_eq!(query_flag(&format!("a={value}"), "a").ok(), expected, "{value}");
        }
        assert_eq!((query_flag("a", "a"), query_flag("b", "a")), (Ok(true), Ok(false)));
        for value in ["yes", "True", "2", "null", "true ", "%20"] {
            assert!(query_flag(&format!("a={value}"), "a").is_err(), "{value}");
        }
        assert_eq!(
            query_flag("a=yes", "a").unwrap_err().to_string(),
            "a: found \"yes\", allowed: true, false, 1, 0 or no value"
        );
        let number = |query: &str| query_number(query, "n", 7, (1, 10));
        assert_eq!((number(""), number("n=1"), number("n=10")), (Ok(7), Ok(1), Ok(10)));
        for query in ["n", "n=", "n=0", "n=11", "n=-1", "n=+1", "n=1.0", "n=1e0", "n=x", "n=%201", "n=1&n=1"]
        {
            assert!(number(query).is_err(), "{query}");
        }
        let long = "9".repeat(1000);
        let sentence = number(&format!("n={long}")).unwrap_err().to_string();
        assert_eq!(sentence, format!("n: found \"{}..., allowed: a whole number from 1 to 10", &long[..39]));
    }

    #[test]
    fn members_have_their_types_and_are_there_once() {
        let body = r#"{"s":"a","n":7,"z":null,"o":{"s":1},"d":1,"\u0064":2}"#;
        let members = Members::of_body(body).unwrap();
        assert_eq!(members.string("s", "text"), Ok(Some("a".into())));
        assert_eq!((members.string("z", "text"), members.string("none", "text")), (Ok(None), Ok(None)));
        let sentence = |result: Result<Option<Cow<'_, str>>, BadParameter>| result.unwrap_err().to_string();
        assert_eq!(sentence(members.string("n", "text")), "n: found 7, allowed: text");
        assert_eq!(sentence(members.string("d", "text")), "d: found it more than once, allowed: one value");
        let inner = members.object("o", "o.").unwrap().unwrap();
        assert_eq!(sentence(inner.string("s", "text")), "o.s: found 1, allowed: text");
        assert_eq!(
            members.object("s", "s.").err().unwrap().to_string(),
            "s: found \"a\", allowed: an object"
        );
        assert!(Members::of_body("[]").is_err());
    }
}
