//! `config/gateway.json`, its schema, the defaults and the parser agree on every key.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use mqtt_websocket_proxy::config::{Config, Source, diff};
use serde_json::{Map, Value, json};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/gateway.json");
const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/gateway.schema.json");

fn json_file(path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn temporary(name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("schema-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder.join(format!("{count}-{name}"))
}

fn load(value: &Value) -> Result<Config, String> {
    let path = temporary("gateway.json");
    fs::write(&path, value.to_string()).unwrap();
    let result = Source::new(Some(path.clone()), None, |_| None).load();
    fs::remove_file(&path).unwrap();
    result.map_err(|error| error.to_string().replace(path.to_str().unwrap(), "FILE"))
}

/// `{"a": {"b": value}}` for the path `a.b`.
fn nested(path: &str, value: &Value) -> Value {
    path.rsplit('.').fold(value.clone(), |inner, key| json!({ key: inner }))
}

fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, key| value.get(key))
}

/// Every section ("" for the whole file) and its keys, from the schema, without keys that the gateway ignores.
fn walk(schema: &Value, path: &str, leaves: &mut Vec<(String, Value)>, sections: &mut Vec<String>) {
    sections.push(path.to_owned());
    assert_eq!(schema["additionalProperties"], json!(false), "{path}");
    for (key, property) in schema["properties"].as_object().unwrap() {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        assert!(
            property["description"]
                .as_str()
                .is_some_and(|text| text.len() > 10 || path.starts_with("gateway")),
            "{path}"
        );
        if path == "$schema" || path == "gateway" {
            continue;
        }
        if property.get("properties").is_some() {
            walk(property, &path, leaves, sections);
        } else {
            leaves.push((path, property.clone()));
        }
    }
}

fn schema() -> (Vec<(String, Value)>, Vec<String>) {
    let (mut leaves, mut sections) = (Vec::new(), Vec::new());
    walk(&json_file(SCHEMA), "", &mut leaves, &mut sections);
    assert!(leaves.len() >= 40, "{}", leaves.len());
    (leaves, sections)
}

#[test]
fn the_sample_is_the_defaults() {
    let config = Source::new(Some(SAMPLE.into()), None, |_| None).load().unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(load(&json!({})), Ok(Config::default()));
}

#[test]
fn the_sample_holds_every_key_of_the_schema_with_its_default_and_no_other() {
    let (leaves, _) = schema();
    let mut sample = json_file(SAMPLE);
    for (path, property) in &leaves {
        let default = property.get("default").unwrap_or_else(|| panic!("{path} has no default"));
        assert_eq!(at(&sample, path), Some(default), "{path}");
    }
    sample.as_object_mut().unwrap().remove("$schema").unwrap();
    let of_schema = leaves.iter().map(|(path, _)| nested(path, &at(&sample, path).unwrap().clone()));
    let mut rebuilt = json!({});
    for value in of_schema {
        merge(&mut rebuilt, value);
    }
    assert_eq!(sample, rebuilt);
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

#[test]
fn every_example_of_the_schema_changes_its_own_key_and_nothing_else() {
    let certificates = temporary("ca.pem");
    fs::write(&certificates, "-----BEGIN CERTIFICATE-----\nnever parsed here\n-----END CERTIFICATE-----\n")
        .unwrap();
    for (path, property) in schema().0 {
        let mut examples = property["examples"].as_array().unwrap().clone();
        if path == "websocket.ca_file" {
            examples.push(json!(certificates));
        }
        assert!(!examples.is_empty(), "{path}");
        let base = base(&path);
        let before = load(&base).unwrap();
        for example in examples {
            let mut whole = base.clone();
            merge(&mut whole, nested(&path, &example));
            let config = load(&whole).unwrap();
            let changes = diff(&before, &config);
            let names: Vec<_> = changes.applied.iter().chain(&changes.needs_restart).collect();
            assert_eq!(names, [&path], "{example}");
            let described = property["description"].as_str().unwrap().contains("Needs a restart.");
            assert_eq!(changes.needs_restart.len(), usize::from(described), "{path}");
        }
    }
}

/// The other keys that a key needs.
fn base(path: &str) -> Value {
    let files = || json!({"cert_file": "cert.pem", "key_file": "key.pem"});
    match path {
        "mqtt.previous_signature_keys" => json!({"mqtt": {"signature_key": "a key"}}),
        "mqtt.plain" | "api.tls.enabled" => json!({"mqtt": {"tls": files()}}),
        _ if path.starts_with("mqtt.tls.") => json!({"mqtt": {"tls": files()}}),
        _ if path.starts_with("api.tls.") => {
            json!({"api": {"tls": {"enabled": true, "cert_file": "cert.pem", "key_file": "key.pem"}}})
        }
        _ => json!({}),
    }
}

/// As an operator would write this value into a variable.
fn in_the_environment(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[test]
fn every_example_of_the_schema_works_as_a_variable() {
    let bare = temporary("gateway.json");
    for (path, property) in schema().0 {
        fs::write(&bare, base(&path).to_string()).unwrap();
        let name = format!("MQTT_PROXY_{}", path.to_uppercase().replace('.', "_"));
        for example in property["examples"].as_array().unwrap() {
            let value = in_the_environment(example);
            let lookup = |asked: &str| (asked == name && !value.is_empty()).then(|| (&value).into());
            let from_environment = Source::new(Some(bare.clone()), None, lookup).load().unwrap();
            let mut whole = base(&path);
            merge(&mut whole, nested(&path, example));
            let from_file = load(&whole).unwrap();
            assert_eq!(from_environment, from_file, "{name}={value}");
        }
    }
}

#[test]
fn the_limits_of_the_schema_are_the_parsers() {
    let mut checked = 0;
    for (path, property) in schema().0 {
        let (Some(low), Some(high)) = (property["minimum"].as_i64(), property["maximum"].as_i64()) else {
            continue;
        };
        for inside in [low, high] {
            load(&nested(&path, &json!(inside))).unwrap();
        }
        for outside in [low - 1, high + 1] {
            let error = load(&nested(&path, &json!(outside))).unwrap_err();
            let start = format!("FILE: {path}: found {outside}, allowed: ");
            assert!(error.starts_with(&start), "{error}");
            assert!(error.contains(&low.to_string()) && error.contains(&high.to_string()), "{error}");
        }
        let fraction = load(&nested(&path, &json!(1.5)));
        assert_eq!(fraction.is_ok(), property["type"] == "number", "{path}: {fraction:?}");
        checked += 1;
    }
    assert!(checked >= 15, "{checked}");
}

#[test]
fn a_value_of_another_type_is_refused_with_its_field() {
    let values = [json!(null), json!("x y"), json!(true), json!(-7.5), json!([7]), json!({ "x": 7 })];
    for (path, property) in schema().0 {
        for value in &values {
            let kind = match value {
                Value::Null => "null",
                Value::String(_) => "string",
                Value::Bool(_) => "boolean",
                Value::Number(_) => "number",
                Value::Array(_) => "array",
                Value::Object(_) => "object",
            };
            if property["type"] == kind && !matches!(kind, "number" | "array") {
                continue;
            }
            let error = load(&nested(&path, value)).unwrap_err();
            assert!(error.starts_with(&format!("FILE: {path}")), "{error}");
            assert!(error.contains(": found ") && error.contains(", allowed: "), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}

#[test]
fn an_unknown_key_is_answered_with_the_keys_of_the_schema() {
    let whole = json_file(SCHEMA);
    for section in schema().1 {
        let path = if section.is_empty() { "zzz".to_owned() } else { format!("{section}.zzz") };
        let error = load(&nested(&path, &json!(1))).unwrap_err();
        let (start, allowed) = error.split_once(", allowed: ").unwrap();
        assert!(start.starts_with(&format!("FILE: {path}: found an unknown key")), "{error}");
        let allowed: BTreeSet<_> = allowed.split(", ").collect();
        let properties = section.split('.').filter(|key| !key.is_empty());
        let properties = properties.fold(&whole["properties"], |value, key| &value[key]["properties"]);
        let known: BTreeSet<_> = properties.as_object().map(Map::keys).unwrap().map(String::as_str).collect();
        assert_eq!(allowed, known, "{section}");
    }
}
