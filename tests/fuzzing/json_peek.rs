//! Messages of devices and chat servers: `peek`, translation of session ids, hellos, MCP.

use serde_json::{Map, Value};

use crate::proto::message::{
    self, BadMessage, DeviceHello, HelloReply, JsonObject, Peek, Reader, Rpc, hello_reply,
    parse_device_hello, parse_server_hello, replace_session_id, with_session_id,
};

/// The text of one message.
pub fn json_peek(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let tree = serde_json::from_str::<Value>(text);
    let peeked = peek(text);
    match (&tree, &peeked) {
        (Ok(Value::Object(tree)), Ok(peeked)) => {
            let string = |key: &str| tree.get(key).and_then(Value::as_str);
            assert_eq!(peeked.kind, string("type").unwrap_or_default());
            assert_eq!(peeked.session_id.as_deref(), string("session_id"));
            assert_eq!(peeked.state.as_deref(), string("state"));
        }
        (Ok(Value::Object(_)), Err(bad)) => panic!("{bad}"),
        (Ok(_), _) => assert_eq!(peeked, Err(BadMessage::NotObject)),
        // serde_json's tree is limited in depth, and accepts no number above a double and no lone surrogate.
        (Err(error), Ok(_)) => {
            let why = error.to_string();
            let known = [
                "recursion limit",
                "number out of range",
                "surrogate",
                "hex escape",
                "unexpected end of hex",
            ];
            assert!(known.iter().any(|known| why.contains(known)), "{why}");
        }
        (Err(_), Err(_)) => {}
    }
    let tree = tree.ok().and_then(|tree| if let Value::Object(tree) = tree { Some(tree) } else { None });
    for (from, to) in [("s", "an-id"), ("an-id", "s"), ("s", "\"quoted\\\u{1f600}"), ("s", "s")] {
        check_session_id_mapping(text, tree.as_ref(), from, to);
    }
    as_a_device_reads(text);
    check_hellos(text, tree.as_ref());
    check_rpc_ids(text, tree.as_ref());
    check_object(text, tree.as_ref());
}

fn peek(text: &str) -> Result<Peek<'_>, BadMessage> {
    message::peek(text, Reader::Server)
}

fn rpc(text: &str) -> Option<Rpc<'_>> {
    message::parse_rpc(text, Reader::Server)
}

/// The member that a device uses for this name: the first one, in any case of its letters.
fn device_takes<'a>(object: &JsonObject<'a>, name: &str) -> Option<&'a str> {
    object.entries().find(|(key, _)| takes(key, name)).map(|(_, raw)| raw)
}

/// Whether a device takes this key for this name.
fn takes(key: &str, name: &str) -> bool {
    key.split('\0').next().is_some_and(|key| key.eq_ignore_ascii_case(name))
}

/// A message for a device is interpreted as the device reads it.
fn as_a_device_reads(text: &str) {
    let peeked = message::peek(text, Reader::Device);
    assert_eq!(peeked.as_ref().err(), peek(text).as_ref().err());
    let (Ok(peeked), Ok(object)) = (peeked, JsonObject::parse(text)) else { return };
    let string = |name: &str| {
        let text: String = serde_json::from_str(device_takes(&object, name)?).ok()?;
        Some(text.split('\0').next().unwrap_or_default().to_owned())
    };
    assert_eq!(peeked.kind, string("type").unwrap_or_default());
    assert_eq!(peeked.state.as_deref(), string("state").as_deref());
    assert_eq!(peeked.session_id.as_deref(), string("session_id").as_deref());
    let payload = device_takes(&object, "payload").and_then(|raw| JsonObject::parse(raw).ok());
    let call = message::parse_rpc(text, Reader::Device);
    assert_eq!(call.is_some(), payload.is_some());
    if let Some(found) = call.and_then(|call| call.id) {
        assert_eq!(device_takes(&payload.unwrap(), "id"), Some(found));
        let replaced = message::replace_rpc_id(text, "4711", Reader::Device).expect("an id to replace");
        assert_eq!(message::parse_rpc(&replaced, Reader::Device).unwrap().id, Some("4711"));
    }
}

fn parse_tree(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Whether this is JSON by RFC 8259, which allows a lone surrogate.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// `tree` with another value of `key`.
fn with_value(tree: &Map<String, Value>, key: &str, value: &str) -> Map<String, Value> {
    let mut changed = tree.clone();
    changed.insert(key.to_owned(), value.into());
    changed
}

/// Session ids are inserted, replaced and restored, and nothing else changes.
fn check_session_id_mapping(text: &str, before: Option<&Map<String, Value>>, from: &str, to: &str) {
    let told = with_session_id(text, Some(to));
    let replaced = replace_session_id(text, from, to);
    let Ok(peeked) = peek(text) else {
        return assert_eq!((&*told, &*replaced), (text, text), "what is no message stays as it is");
    };
    let escaped = message::json_quote(to).len();
    let occurs = text.to_ascii_lowercase().matches("session_id").count() + text.matches("\\u").count() + 1;
    assert!(told.len() <= text.len() + escaped + 14, "bounded growth");
    assert!(replaced.len() <= text.len() + occurs * escaped, "bounded growth");
    assert_eq!(with_session_id(&told, Some(to)), told, "an id that is right stays");
    let idle = with_session_id(text, None);
    assert!(idle.len() <= text.len() + 2, "bounded growth");

    let of_session = |key: &str| takes(key, "session_id");
    let ids =
        |text: &str| JsonObject::parse(text).unwrap().entries().filter(|(key, _)| of_session(key)).count();
    assert_eq!((ids(&told), peek(&told).unwrap().session_id.as_deref()), (1, Some(to)));
    assert_eq!(ids(&idle), ids(text).min(1));
    let after = peek(&replaced).unwrap();
    let expected = peeked.session_id.as_deref().map(|id| if id == from { to } else { id });
    assert_eq!(after.session_id.as_deref(), expected);
    let object = JsonObject::parse(text).unwrap();
    let mut ids = object.entries().filter(|(key, _)| of_session(key)).map(|(_, raw)| raw);
    let plain = |raw: &str| {
        raw != message::json_quote(to) && (raw == message::json_quote(from) || !raw.contains('\\'))
    };
    if from != to && ids.all(plain) {
        assert_eq!(replace_session_id(&replaced, to, from), text, "mapped back, byte for byte");
    }
    let Some(before) = before else { return };
    let mut expected = before.clone();
    expected.retain(|key, _| !of_session(key));
    assert_eq!(parse_tree(&told), with_value(&expected, "session_id", to));
    let mut expected = before.clone();
    expected
        .iter_mut()
        .filter(|(key, id)| of_session(key) && *id == from)
        .for_each(|(_, id)| *id = to.into());
    assert_eq!(parse_tree(&replaced), expected);
}

/// Other parsers can read the hello for the server and the reply for the device.
fn check_hellos(text: &str, before: Option<&Map<String, Value>>) {
    let Ok(object) = JsonObject::parse(text) else { return };
    let server = parse_server_hello(&object);
    assert!(server.session_id.as_deref() != Some(""));
    if let Some(params) = &server.audio_params {
        assert!(params.starts_with('{') && is_json(params), "{params}");
    }
    let device = match parse_device_hello(object) {
        Ok(device) => device,
        Err(bad) => {
            let why = bad.to_string();
            assert!(why.len() < 300, "bounded: {why}");
            return;
        }
    };
    let DeviceHello { forwarded: to_server, .. } = &device;
    let audio_params = device.audio_params();
    assert!(to_server.len() <= 6 * text.len() + 64, "bounded growth");
    assert!(is_json(to_server), "{to_server}");
    let _ = device.frame_duration_ms();
    let reply = hello_reply(&HelloReply {
        session_id: "s\"1",
        audio_params: audio_params.as_deref(),
        server: "192.0.2.1",
        port: 8884,
        key: &[7; 16],
        nonce: &[1; 16],
    });
    assert_eq!(peek(&reply).unwrap().session_id.as_deref(), Some("s\"1"));
    let Some(before) = before else { return };
    let mut expected = with_value(before, "transport", "websocket");
    expected.insert("version".to_owned(), 2.into());
    assert_eq!(parse_tree(to_server), expected, "all the device sent, but for two fields");
    assert_eq!(device.for_server(2), **to_server);
    expected.insert("version".to_owned(), 1.into());
    assert_eq!(parse_tree(&device.for_server(1)), expected);
    let params = before.get("audio_params").filter(|params| params.is_object());
    assert_eq!(parse_tree(&reply).get("audio_params"), params);
}

/// Only the id of an MCP request is replaced.
fn check_rpc_ids(text: &str, before: Option<&Map<String, Value>>) {
    let call = rpc(text);
    let replaced = message::replace_rpc_id(text, "4711", Reader::Server);
    if let Some(found) = call.as_ref().and_then(|call| call.id) {
        assert!(!found.is_empty());
        let replaced = replaced.as_deref().expect("an id to replace");
        assert_eq!(rpc(replaced).unwrap().id, Some("4711"));
    }
    let (Some(replaced), Some(before)) = (replaced, before) else { return };
    let mut expected = before.clone();
    let payload = expected["payload"].as_object_mut().unwrap();
    payload.iter_mut().filter(|(key, _)| takes(key, "id")).for_each(|(_, id)| *id = 4711.into());
    assert_eq!(parse_tree(&replaced), expected);
}

/// An object that is written and parsed again is the same.
fn check_object(text: &str, before: Option<&Map<String, Value>>) {
    let Ok(object) = JsonObject::parse(text) else { return };
    let written = object.to_string();
    let again = JsonObject::parse(&written).unwrap();
    assert!(again.entries().eq(object.entries()));
    assert_eq!(again.to_string(), written);
    let Some(before) = before else { return };
    assert_eq!(&parse_tree(&written), before);
    for (key, value) in before {
        assert_eq!(object.string(key).as_deref(), value.as_str());
        assert_eq!(object.object(key).is_some(), value.is_object());
        // serde_json may read a double with an error in its last digit.
        let near = |a: f64, b: f64| (a - b).abs() <= a.abs() * f64::EPSILON;
        match (object.number(key), value.as_f64()) {
            (Some(own), Some(theirs)) => assert!(near(own, theirs), "{own} is not {theirs}"),
            (own, theirs) => assert_eq!(own, theirs),
        }
    }
}
