//! Environment variables, which can set every key of the file.
//!
//! A variable's text is converted to the JSON that would stand in the file, according to the kind of its key's default,
//! and read like the file: the same values are allowed, with the same error texts.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::path::Path;

use serde_json::{Number, Value};

use super::Config;
use super::error::{ConfigError, Problem};
use super::keys::{CONFIG_KEYS, ConfigKey};
use super::value::{JsonValue, edit_distance, without_comments};

pub(super) const ENVIRONMENT: &str = "environment";
pub(super) const CONFIG_FILE: &str = "CONFIG_FILE";

/// The environment variables with names of their own, and what each sets; an empty one counts as not set. Every key of
/// the file has one besides: `MQTT_PROXY_` and the key in upper case, with `_` for `.`.
pub const VARIABLES: [(&str, &str); 15] = [
    (CONFIG_FILE, "the configuration file"),
    ("MQTT_HOST", "mqtt.host"),
    ("MQTT_PORT", "mqtt.port"),
    ("UDP_HOST", "udp.host"),
    ("UDP_PORT", "udp.port"),
    ("PUBLIC_IP", "udp.public_ip"),
    ("HTTP_HOST", "api.host"),
    ("HTTP_PORT", "api.port"),
    ("API_HOST", "api.host"),
    ("API_PORT", "api.port"),
    ("API_TOKEN", "api.token"),
    ("MQTT_SIGNATURE_KEY", "mqtt.signature_key"),
    ("SERVER_SECRET", "websocket.server_secret"),
    ("LOG_LEVEL", "logging.level"),
    ("DEBUG", "debug"),
];

const PREFIX: &str = "MQTT_PROXY_";

/// Variables of other programs begin so, which are one edit from ours.
const FOREIGN_PREFIXES: [&str; 2] = ["APP_", "HTTPS_"];

/// With this behind its name, a variable of a secret names a file that holds the value.
const FILE_SUFFIX: &str = "_FILE";

const BOOLEAN_ALLOWED: &str = "1, true, yes, on, 0, false, no, off";
const LIST_ALLOWED: &str = "items with commas between them, or a JSON list";

/// A variable that is set, and the key that it sets.
#[derive(Clone)]
pub(super) struct Variable {
    /// `environment`, or the file that assigns it.
    place: &'static str,
    pub(super) name: String,
    pub(super) key: &'static ConfigKey,
    /// The value is the path of a file that holds it.
    is_file: bool,
    value: OsString,
}

/// The variables that are set in this place, in the order in which they count: a later one of the same key wins.
pub(super) fn read_variables(
    place: &'static str,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Vec<Variable> {
    let set = |(name, key, is_file): (String, &'static ConfigKey, bool)| {
        let value = variable(&name).filter(|value| !value.is_empty())?;
        Some(Variable { place, name, key, is_file, value })
    };
    variable_names().filter_map(set).collect()
}

/// Every name, the key it sets, and whether it does so by a file.
fn variable_names() -> impl Iterator<Item = (String, &'static ConfigKey, bool)> {
    CONFIG_KEYS.iter().flat_map(|key| {
        let own = VARIABLES.iter().filter(|(_, sets)| *sets == key.name).map(|(name, _)| (*name).to_owned());
        let derived = format!("{PREFIX}{}", key.name.to_ascii_uppercase().replace('.', "_"));
        let forms = if key.is_secret() { &[false, true][..] } else { &[false] };
        own.chain([derived]).flat_map(move |name| {
            forms.iter().map(move |is_file| {
                let suffix = if *is_file { FILE_SUFFIX } else { "" };
                (format!("{name}{suffix}"), key, *is_file)
            })
        })
    })
}

/// One sentence for each variable that has our prefix and an unknown name, or is one typing error from a known one.
pub fn unknown_variables(names: impl IntoIterator<Item = OsString>) -> Vec<String> {
    let own = self::variable_names().map(|(name, ..)| name);
    let known: Vec<_> = own.chain([CONFIG_FILE.to_owned()]).collect();
    names.into_iter().filter_map(|name| misspelt(ENVIRONMENT, name.to_str()?, &known)).collect()
}

/// What to say about a variable that is set in this place and is not known, but meant for this gateway.
pub(super) fn misspelt(place: &str, name: &str, known: &[impl AsRef<str>]) -> Option<String> {
    // On Windows, names of variables have no case.
    let is_known = |known: &str| known == name || cfg!(windows) && known.eq_ignore_ascii_case(name);
    let known = known.iter().map(AsRef::as_ref);
    if known.clone().any(is_known) || FOREIGN_PREFIXES.iter().any(|foreign| name.starts_with(foreign)) {
        return None;
    }
    // The distance is at least the difference in length. Comparing every variable of a shell with every key takes milliseconds.
    let is_own = name.starts_with(PREFIX);
    let near = known.filter(|known| is_own || known.len().abs_diff(name.len()) <= 1);
    let (distance, nearest) = near.map(|known| (edit_distance(name, known), known)).min()?;
    (distance <= 1 || is_own)
        .then(|| format!("{place}: {name} is not a variable of this gateway; the nearest is {nearest}"))
}

/// Secrets that are given both as a value and by a file.
pub(super) fn conflicts(variables: &[Variable]) -> impl Iterator<Item = Problem> {
    let is_set = |name: &str| variables.iter().any(|variable| variable.name == name);
    let files = variables.iter().filter(|variable| variable.is_file);
    files.filter_map(move |variable| {
        let plain = variable.name.strip_suffix(FILE_SUFFIX).filter(|name| is_set(name))?;
        Some(Problem::value(&variable.name, format!("a value beside {plain}"), "one of the two"))
    })
}

impl Variable {
    /// Sets its key. What is wrong carries the variable's name.
    pub(super) fn apply(&self, config: &mut Config) -> Vec<ConfigError> {
        let mut problems = Vec::new();
        if self.key.name == "logging.level" {
            // The file's `debug` would raise the level again. The variable for `debug` is read later, and may do so.
            config.debug = false;
        }
        let read = self.to_json().and_then(|json| {
            JsonValue::parse(self.key.name, &json).map(|value| (self.key.read)(&value, config, &mut problems))
        });
        problems.extend(read.err());
        problems.into_iter().map(|problem| self.error(problem)).collect()
    }

    /// Whether a dotted path is its key's, or lies in it.
    pub(super) fn sets(&self, field: &str) -> bool {
        field.strip_prefix(self.key.name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['[', '.']))
    }

    /// The problem where the variable is set, with its name for the key's.
    pub(super) fn error(&self, mut problem: Problem) -> ConfigError {
        if self.sets(&problem.field) {
            problem.field.replace_range(..self.key.name.len(), &self.name);
        }
        problem.at(self.place)
    }

    /// Where it is set, and its name.
    pub(super) fn label(&self) -> String {
        format!("{}: {}", self.place, self.name)
    }

    fn invalid(&self, found: impl Display, allowed: &str) -> Problem {
        Problem::value(self.key.name, found, allowed)
    }

    /// The value as it would stand in the file.
    fn to_json(&self) -> Result<String, Problem> {
        let text = self.text()?;
        let trimmed = if self.key.is_secret() { text.as_str() } else { text.trim() };
        let as_json = |found: &str, allowed| match without_comments(trimmed) {
            json if JsonValue::parse("", &json).is_ok() => Ok(json),
            _ => Err(self.invalid(found, allowed)),
        };
        match (self.key.write)(&Config::default()) {
            Value::Bool(_) => match parse_boolean(trimmed) {
                Some(on) => Ok(on.to_string()),
                None => Err(self.invalid(format!("{text:?}"), BOOLEAN_ALLOWED)),
            },
            Value::Array(_) if trimmed.starts_with('[') => {
                as_json("a text that begins like a JSON list and is none", LIST_ALLOWED)
            }
            Value::Array(_) => {
                let items = trimmed.split([',', '\n']).map(str::trim).filter(|item| !item.is_empty());
                Ok(items.map(Value::from).collect::<Value>().to_string())
            }
            Value::Object(_) => as_json("a text that is not JSON", "a JSON object"),
            Value::Number(_) if serde_json::from_str::<Number>(trimmed).is_ok() => Ok(trimmed.to_owned()),
            // A text that is no number is refused as a string.
            _ => Ok(Value::from(trimmed).to_string()),
        }
    }

    fn text(&self) -> Result<String, Problem> {
        if self.is_file {
            return self.read_secret_file(Path::new(&self.value));
        }
        match self.value.to_str().filter(|text| !text.contains(char::REPLACEMENT_CHARACTER)) {
            Some(text) => Ok(text.to_owned()),
            None => Err(self.invalid("bytes that are not UTF-8", "UTF-8 text")),
        }
    }

    /// A secret from its file, without the line end that editors add. An empty file is refused: it would switch
    /// authentication off unnoticed.
    fn read_secret_file(&self, path: &Path) -> Result<String, Problem> {
        let found = match fs::read_to_string(path) {
            Ok(text) => match text.trim_end_matches(['\r', '\n']) {
                "" => "an empty file".to_owned(),
                text => return Ok(text.to_owned()),
            },
            Err(error) => error.to_string(),
        };
        Err(self
            .invalid(format!("\"{}\" ({found})", path.display()), "a readable file that holds the secret"))
    }
}

fn parse_boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" | "" => Some(false),
        _ => None,
    }
}
