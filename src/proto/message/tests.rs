#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn peek(text: &str) -> Result<Peek<'_>, BadMessage> {
    super::peek(text, Reader::Server)
}

fn device_hello(text: &str) -> Result<DeviceHello, BadHelloVersion> {
    parse_device_hello(JsonObject::parse(text).unwrap())
}

fn rpc(text: &str) -> Option<Rpc<'_>> {
    super::parse_rpc(text, Reader::Server)
}

fn replace_rpc_id(text: &str, id: &str) -> Option<String> {
    super::replace_rpc_id(text, id, Reader::Server)
}

#[test]
fn peeking() {
    let cases = [
        (r#"{"type":"listen","session_id":"s","state":"start"}"#, ("listen", Some("s"), Some("start"))),
        (" \r\n\t{ \"type\" : \"tts\" } \n", ("tts", None, None)),
        ("{}", ("", None, None)),
        (r#"{"type":null,"session_id":null,"state":null}"#, ("", None, None)),
        (r#"{"type":1,"session_id":2,"state":[]}"#, ("", None, None)),
        (r#"{"type":"","session_id":"","state":""}"#, ("", Some(""), Some(""))),
        (r#"{"type":"a","type":"b"}"#, ("b", None, None)),
        (r#"{"type":"a","type":1}"#, ("", None, None)),
        (r#"{"session_id":"s","session_id":""}"#, ("", Some(""), None)),
        (r#"{"t\u0079pe":"he\u006clo","session\u005fid":"\"\n"}"#, ("hello", Some("\"\n"), None)),
        (r#"{"payload":{"type":"x","session_id":"y"},"type":"mcp"}"#, ("mcp", None, None)),
        (r#"{"text":"\"type\":\"no\"","type":"stt"}"#, ("stt", None, None)),
        (r#"{"TYPE":"x"," type":"y"}"#, ("", None, None)),
        // A lone surrogate is valid JSON but not valid text.
        (r#"{"type":"stt","session_id":"\ud800","text":"\ud83d"}"#, ("stt", None, None)),
        (r#"{"n":1e999,"m":-0.0E+7,"type":"x"}"#, ("x", None, None)),
    ];
    for (text, (kind, session_id, state)) in cases {
        let found = peek(text).unwrap();
        assert_eq!(
            (&*found.kind, found.session_id.as_deref(), found.state.as_deref()),
            (kind, session_id, state),
            "{text}"
        );
    }
    let Ok(Peek { kind: Cow::Borrowed("tts"), session_id: Some(Cow::Borrowed("s")), .. }) =
        peek(r#"{"type":"tts","session_id":"s"}"#)
    else {
        panic!("copied");
    };
}

#[test]
fn peeking_as_a_device_reads() {
    let cases = [
        (r#"{"type":"listen","session_id":"s","state":"start"}"#, ("listen", Some("s"), Some("start"))),
        (r#"{"type":"a","type":"b","TYPE":"c"}"#, ("a", None, None)),
        (r#"{"Type":"a","type":"b"}"#, ("a", None, None)),
        (r#"{"type":1,"type":"b"}"#, ("", None, None)),
        (r#"{"type":null,"state":[],"state":"b"}"#, ("", None, None)),
        (r#"{"session_id":"","session_id":"s"}"#, ("", Some(""), None)),
        (r#"{"SESSION_ID":"s","STATE":"x","state":"y"}"#, ("", Some("s"), Some("x"))),
        (r#"{"\u0054ype":"he\u006clo"}"#, ("hello", None, None)),
        (r#"{"type\u0000x":"a\u0000b","type":"b","session_id":"\u0000s"}"#, ("a", Some(""), None)),
        (r#"{"payload":{"type":"x"}," type":"y","typé":"z"}"#, ("", None, None)),
    ];
    for (text, (kind, session_id, state)) in cases {
        let found = super::peek(text, Reader::Device).unwrap();
        assert_eq!(
            (&*found.kind, found.session_id.as_deref(), found.state.as_deref()),
            (kind, session_id, state),
            "{text}"
        );
    }
    let found = super::peek(r#"{"Type":"tts","session_id":"s"}"#, Reader::Device);
    let Ok(Peek { kind: Cow::Borrowed("tts"), session_id: Some(Cow::Borrowed("s")), .. }) = found else {
        panic!("copied");
    };
}

#[test]
fn texts_that_are_no_messages() {
    let not_objects = ["[]", "1", " null ", "true", r#""{}""#, r#"[{"type":"x"}]"#, "-0.5e3"];
    let not_json = [
        "",
        " ",
        "{",
        "}",
        "hello",
        "认证失败",
        "{}}",
        "{} {}",
        "{},",
        "[",
        "[1,]",
        "nul",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1,}"#,
        r#"{,"a":1}"#,
        r#"{"a":1 "b":2}"#,
        r#"{a:1}"#,
        r#"{'a':1}"#,
        r#"{"a":01}"#,
        r#"{"a":+1}"#,
        r#"{"a":.5}"#,
        r#"{"a":NaN}"#,
        r#"{"a":"\x"}"#,
        r#"{"a":"\u12"}"#,
        "{\"a\":\"\n\"}",
        r#"{"a":"}"#,
        r#"{"a":[}"#,
        r#"{"a":[1}}"#,
        r#"{"a":{]}"#,
        r#"{"type":"listen","state":"detect","text":"x""#,
        "\u{feff}{}",
        "{}\0",
    ];
    for text in not_objects {
        assert_eq!(peek(text), Err(BadMessage::NotObject), "{text}");
    }
    for text in not_json {
        assert_eq!(peek(text), Err(BadMessage::NotJson), "{text}");
    }
    assert_eq!(BadMessage::NotObject.to_string(), "JSON, but not an object");
    assert_eq!(BadMessage::NotJson.to_string(), "not JSON");
    for text in not_objects.into_iter().chain(not_json) {
        assert_eq!(JsonObject::parse(text).err(), peek(text).err(), "{text}");
        assert_eq!(
            (with_session_id(text, Some("new")), with_session_id(text, None)),
            (text.into(), text.into())
        );
        assert_eq!(replace_session_id(text, "", "new"), text);
        assert_eq!(rpc(text), None, "{text}");
        assert_eq!(replace_rpc_id(text, "1"), None, "{text}");
    }
}

#[test]
fn deep_nesting_uses_no_stack() {
    const DEPTH: usize = 300_000;
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}"), (r#"[{"session_id":"#, "}]")] {
        let nested = |inner: &str| format!("{}{inner}{}", open.repeat(DEPTH), close.repeat(DEPTH));
        let good = format!(r#"{{"deep":{},"type":"x"}}"#, nested("1"));
        assert_eq!(peek(&good).unwrap().kind, "x");
        assert_eq!(with_session_id(&good, Some("s")), format!(r#"{{"session_id":"s",{}"#, &good[1..]));
        let params = format!(r#"{{"payload":{{"id":1,"params":{}}}}}"#, nested("1"));
        assert_eq!(rpc(&params).unwrap().params, Some(&*nested("1")));
        let bad = format!(r#"{{"deep":{}],"type":"x"}}"#, nested("1"));
        assert_eq!(peek(&bad), Err(BadMessage::NotJson));
    }
    let array = format!("{}{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
    assert_eq!(peek(&array), Err(BadMessage::NotObject));
    assert_eq!(peek(&array[1..]), Err(BadMessage::NotJson));
}

#[test]
fn a_device_is_told_one_session_id() {
    let cases = [
        // One, which is the device's.
        (r#"{"type":"tts","session_id":"id"}"#, None),
        (" { \"session_id\" : \"id\" } ", None),
        (r#"{"session\u005fid":"\u0069d"}"#, None),
        // None.
        ("{}", Some(r#"{"session_id":"id"}"#)),
        ("{ }", Some(r#"{"session_id":"id" }"#)),
        ("{\n}\n", Some("{\"session_id\":\"id\"\n}\n")),
        ("\t{ \"type\" :\"tts\" } ", Some("\t{\"session_id\":\"id\", \"type\" :\"tts\" } ")),
        (r#"{"payload":{"session_id":"x"}}"#, Some(r#"{"session_id":"id","payload":{"session_id":"x"}}"#)),
        (r#"{"a":[{"session_id":"x"}]}"#, Some(r#"{"session_id":"id","a":[{"session_id":"x"}]}"#)),
        (r#"{"text":"\"session_id\":\"x\""}"#, Some(r#"{"session_id":"id","text":"\"session_id\":\"x\""}"#)),
        (
            r#"{"session_id ":"y","ſession_id":1}"#,
            Some(r#"{"session_id":"id","session_id ":"y","ſession_id":1}"#),
        ),
        (r#"{"}":"{","":"}"}"#, Some(r#"{"session_id":"id","}":"{","":"}"}"#)),
        (
            r#"{"n":1.0,"m":1E2,"s":"\u00e9é\/"}"#,
            Some(r#"{"session_id":"id","n":1.0,"m":1E2,"s":"\u00e9é\/"}"#),
        ),
        // Another one, or one that is no string.
        (r#"{"session_id":"x","type":"tts"}"#, Some(r#"{"session_id":"id","type":"tts"}"#)),
        (r#"{"session_id":"id\u0000"}"#, Some(r#"{"session_id":"id"}"#)),
        (
            "{ \"a\":1, \"session_id\" : null , \"b\":2 }",
            Some("{ \"a\":1, \"session_id\" : \"id\" , \"b\":2 }"),
        ),
        (r#"{"a":1,"session_id":{"session_id":"id"}}"#, Some(r#"{"a":1,"session_id":"id"}"#)),
        (r#"{"session_id":[ 1, "]" ]}"#, Some(r#"{"session_id":"id"}"#)),
        (r#"{"session_id":12.5e3}"#, Some(r#"{"session_id":"id"}"#)),
        (r#"{"session_id":"\udc00"}"#, Some(r#"{"session_id":"id"}"#)),
        (r#"{"session\u005fid":false}"#, Some(r#"{"session\u005fid":"id"}"#)),
        // Several.
        (r#"{"session_id":null,"x":1,"session_id":"id"}"#, Some(r#"{"session_id":"id","x":1}"#)),
        (r#"{"session_id":"id","session_id":0}"#, Some(r#"{"session_id":"id"}"#)),
        (r#"{"a":1 , "session_id":"id" , "session_id" : 3}"#, Some(r#"{"a":1 , "session_id":"id"}"#)),
        (r#"{"session_id":1,"x":2,"session_id":3,"y":4}"#, Some(r#"{"session_id":"id","x":2,"y":4}"#)),
        // A name in another case.
        (r#"{"Session_Id":"id","session_id":"id"}"#, Some(r#"{"session_id":"id"}"#)),
        (r#"{ "SESSION_ID" : 1 , "x":2}"#, Some(r#"{ "session_id":"id" , "x":2}"#)),
        (r#"{"a":1, "session_id\u0000x":"id" }"#, Some(r#"{"a":1, "session_id":"id" }"#)),
        (r#"{"session\u005FID":"i\u0064"}"#, Some(r#"{"session_id":"i\u0064"}"#)),
    ];
    for (text, expected) in cases {
        let found = with_session_id(text, Some("id"));
        assert_eq!(found, expected.unwrap_or(text), "{text}");
        assert_eq!(matches!(found, Cow::Borrowed(_)), expected.is_none(), "{text}");
        assert!(matches!(with_session_id(&found, Some("id")), Cow::Borrowed(_)), "{text}");
    }
    assert_eq!(with_session_id("{}", Some("a\"\\\u{1}")), r#"{"session_id":"a\"\\\u0001"}"#);
}

#[test]
fn a_device_without_a_session_is_told_no_more_than_one_string() {
    for (text, expected) in [
        ("{}", None),
        (r#"{"type":"alert"}"#, None),
        (r#"{"session_id":"x"}"#, None),
        (r#"{"session_id":""}"#, None),
        (r#"{"session_id":null}"#, Some(r#"{"session_id":""}"#)),
        (r#"{"session_id":1,"session_id":"x"}"#, Some(r#"{"session_id":""}"#)),
        (r#"{"Session_Id":"x","session_id":2}"#, Some(r#"{"session_id":"x"}"#)),
    ] {
        let found = with_session_id(text, None);
        assert_eq!(found, expected.unwrap_or(text), "{text}");
        assert_eq!(matches!(found, Cow::Borrowed(_)), expected.is_none(), "{text}");
    }
}

#[test]
fn session_id_replaced() {
    let cases = [
        (r#"{"session_id":"from","a":1}"#, Some(r#"{"session_id":"to","a":1}"#)),
        (" {\"a\": 1 , \"session_id\" :\t\"from\" } ", Some(" {\"a\": 1 , \"session_id\" :\t\"to\" } ")),
        (r#"{"session\u005fid":"\u0066rom"}"#, Some(r#"{"session\u005fid":"to"}"#)),
        (r#"{"session_id":"from","session_id":"from"}"#, Some(r#"{"session_id":"to","session_id":"to"}"#)),
        (
            r#"{"session_id":"other","session_id":"from"}"#,
            Some(r#"{"session_id":"other","session_id":"to"}"#),
        ),
        (r#"{"Session_Id":"from","x":1}"#, Some(r#"{"Session_Id":"to","x":1}"#)),
        (r#"{"session_id":"other"}"#, None),
        (r#"{"session_id":"from "}"#, None),
        (r#"{"session_id":"fro"}"#, None),
        (r#"{"session_id":["from"]}"#, None),
        (r#"{"session_id":null}"#, None),
        (r#"{"id":"from","payload":{"session_id":"from"}}"#, None),
        ("{}", None),
    ];
    for (text, expected) in cases {
        let found = replace_session_id(text, "from", "to");
        assert_eq!(found, expected.unwrap_or(text), "{text}");
        assert_eq!(matches!(found, Cow::Borrowed(_)), expected.is_none(), "{text}");
    }
    assert_eq!(replace_session_id(r#"{"session_id":""}"#, "", "to"), r#"{"session_id":"to"}"#);
}

#[test]
fn objects() {
    let text =
        r#" { "b" : 1.50 , "a":"x\ny","o":{ "k": [1, 2] },"n":null,"k\u0065y":-3e2,"big":1e999,"b":2 } "#;
    let mut object = JsonObject::parse(text).unwrap();
    assert_eq!(object.raw("b"), Some("2"));
    assert_eq!(object.raw("o"), Some(r#"{ "k": [1, 2] }"#));
    assert_eq!(object.raw("k"), None);
    assert_eq!(object.string("a"), Some("x\ny".into()));
    assert_eq!(object.string("n"), None);
    assert_eq!(object.number("key"), Some(-300.0));
    assert_eq!((object.number("a"), object.number("n"), object.number("big")), (None, None, None));
    assert_eq!(object.object("o").unwrap().raw("k"), Some("[1, 2]"));
    assert!(object.object("a").is_none());
    let keys: Vec<_> = object.entries().map(|(key, _)| key).collect();
    assert_eq!(keys, ["b", "a", "o", "n", "key", "big", "b"]);
    object.set("n", "[]");
    object.set("b", "3");
    object.set("ne\"w", "{}");
    let expected = r#"{"b":3,"a":"x\ny","o":{ "k": [1, 2] },"n":[],"key":-3e2,"big":1e999,"b":3,"ne\"w":{}}"#;
    assert_eq!(object.to_string(), expected);
    assert_eq!(JsonObject::parse("{ }").unwrap().to_string(), "{}");
}

#[test]
fn the_frame_duration_of_a_device() {
    for (audio_params, expected) in [
        (r#","audio_params":{"frame_duration":60}"#, Some(60)),
        (r#","audio_params":{"frame_duration":20.0}"#, Some(20)),
        (r#","audio_params":{"frame_duration":"60"}"#, None),
        (r#","audio_params":{}"#, None),
        (r#","audio_params":[]"#, None),
        ("", None),
    ] {
        let text = format!(r#"{{"type":"hello","version":3{audio_params}}}"#);
        assert_eq!(device_hello(&text).unwrap().frame_duration_ms(), expected, "{text}");
    }
}

#[test]
fn device_hellos() {
    let text = concat!(
        r#"{"type":"hello","version": 3,"transport":"udp","features":{"mcp":true,"aec":true},"#,
        r#""text_font":{"bundle":"b","size":1.0},"audio_params":{"format":"opus", "sample_rate":16000},"x":"\u00e9"}"#
    );
    let hello = device_hello(text).unwrap();
    let expected = concat!(
        r#"{"type":"hello","version":2,"transport":"websocket","features":{"mcp":true,"aec":true},"#,
        r#""text_font":{"bundle":"b","size":1.0},"audio_params":{"format":"opus", "sample_rate":16000},"x":"\u00e9"}"#
    );
    assert_eq!(&*hello.forwarded, expected);
    assert_eq!(hello.for_server(2), expected);
    assert_eq!(hello.for_server(1), expected.replace(r#""version":2"#, r#""version":1"#));
    assert_eq!(hello.audio_params().as_deref(), Some(r#"{"format":"opus", "sample_rate":16000}"#));

    let cases = [
        ("{}", r#"{"version":2,"transport":"websocket"}"#),
        (r#"{"version":3.0}"#, r#"{"version":2,"transport":"websocket"}"#),
        (r#"{"version":1,"version":3}"#, r#"{"version":2,"version":2,"transport":"websocket"}"#),
        (r#"{"transport":null}"#, r#"{"transport":"websocket","version":2}"#),
        (r#"{"features":{"mcp":1}}"#, r#"{"features":{"mcp":1},"version":2,"transport":"websocket"}"#),
        (r#"{"features":true}"#, r#"{"features":true,"version":2,"transport":"websocket"}"#),
        (
            r#"{"mcp":true,"audio_params":[]}"#,
            r#"{"mcp":true,"audio_params":[],"version":2,"transport":"websocket"}"#,
        ),
    ];
    for (text, to_server) in cases {
        let hello = DeviceHello { forwarded: to_server.into() };
        assert_eq!(device_hello(text), Ok(hello), "{text}");
    }

    let long = format!("{:?}", "é".repeat(100));
    for version in ["1", "2", "4", "-3", "3.1", r#""3""#, "null", "[3]", "true", r#"{"version":3}"#, &long] {
        let shown: String = version.chars().take(40).collect();
        let found = device_hello(&format!(r#"{{"type":"hello","version":{version}}}"#));
        assert_eq!(found, Err(BadHelloVersion(shown.clone())));
        assert_eq!(
            found.unwrap_err().to_string(),
            format!("hello with version {shown}, only 3 is supported")
        );
    }
}

#[test]
fn server_hellos() {
    let hello = |session_id: Option<&str>, audio_params: Option<&str>| ServerHello {
        session_id: session_id.map(Into::into),
        audio_params: audio_params.map(Into::into),
    };
    let cases = [
        (r#"{"session_id":"s","audio_params":{ "a":1 }}"#, hello(Some("s"), Some(r#"{ "a":1 }"#))),
        (r#"{"session_id":"\u0073"}"#, hello(Some("s"), None)),
        (r#"{"session_id":""}"#, hello(None, None)),
        (r#"{"session_id":7,"audio_params":null}"#, hello(None, None)),
        (r#"{"session_id":null,"audio_params":[{}]}"#, hello(None, None)),
        ("{}", hello(None, None)),
    ];
    for (text, expected) in cases {
        assert_eq!(parse_server_hello(&JsonObject::parse(text).unwrap()), expected, "{text}");
    }
}

#[test]
fn session_ids_that_devices_can_be_shown() {
    let (longest, too_long) = ("é".repeat(64), "é".repeat(65));
    for id in ["s", " ", "a'b/c{}", "0b1e2c5a-6c0f-4b7e-9a57-1f0c3a3a1c55", "会话\u{1f600}", &longest] {
        assert!(is_for_devices(id), "{id:?}");
        assert_eq!(json_quote(id), format!("\"{id}\""), "{id:?}");
    }
    let control = (0..0x20).chain(0x7f..=0x9f).filter_map(char::from_u32).map(String::from);
    let odd = ["", "\"", "a\\", "\u{2028}", "\u{2029}", "\u{202e}", "\u{200f}", "\u{2069}", &too_long];
    for id in odd.into_iter().map(String::from).chain(control) {
        assert!(!is_for_devices(&id), "{id:?}");
    }
}

#[test]
fn hello_replies() {
    let key =
        [0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0xff];
    let nonce = crate::proto::audio::nonce(0xdead_beef);
    let reply = HelloReply {
        session_id: "s\"1",
        audio_params: Some(r#"{ "sample_rate":24000 }"#),
        server: "192.0.2.1",
        port: 8884,
        key: &key,
        nonce: &nonce,
    };
    let udp = concat!(
        r#""udp":{"server":"192.0.2.1","port":8884,"encryption":"aes-128-ctr","#,
        r#""key":"000102030405060708090a0b0c0d0eff","nonce":"01000000deadbeef0000000000000000"}}"#
    );
    let head = r#"{"type":"hello","version":3,"transport":"udp","session_id":"s\"1","#;
    assert_eq!(hello_reply(&reply), format!(r#"{head}"audio_params":{{ "sample_rate":24000 }},{udp}"#));
    assert_eq!(hello_reply(&HelloReply { audio_params: None, ..reply }), format!("{head}{udp}"));
}

#[test]
fn built_messages() {
    let cases = [
        (goodbye(Some("s\"")), json!({"type": "goodbye", "session_id": "s\""})),
        (goodbye(None), json!({"type": "goodbye"})),
        (
            call_accepted(Some("s"), [0xa, 1, 2, 3, 4, 0xff].into()),
            json!({"type": "call_accepted", "session_id": "s", "from": "0a:01:02:03:04:ff"}),
        ),
        (
            alert(Some("s"), "错误", "a\nb", "sad"),
            json!({"type": "alert", "session_id": "s", "status": "错误", "message": "a\nb", "emotion": "sad"}),
        ),
        (alert(None, "", "", ""), json!({"type": "alert", "status": "", "message": "", "emotion": ""})),
        (tts(Some("s"), "stop"), json!({"type": "tts", "session_id": "s", "state": "stop"})),
        (tts(None, "start"), json!({"type": "tts", "state": "start"})),
        (
            server_goodbye(Some("s"), "device \"left\"", 12_005),
            json!({"type": "goodbye", "session_id": "s", "reason": "device \"left\"", "duration": 12.005}),
        ),
        (server_goodbye(None, "r", 1_998), json!({"type": "goodbye", "reason": "r", "duration": 1.998})),
        (server_goodbye(None, "r", 0), json!({"type": "goodbye", "reason": "r", "duration": 0.0})),
        (
            mcp_request(Some("s"), 0x4000_0000, "tools/list", r#"{"cursor":""}"#),
            json!({"type": "mcp", "session_id": "s", "payload":
                {"jsonrpc": "2.0", "id": 0x4000_0000, "method": "tools/list", "params": {"cursor": ""}}}),
        ),
        (
            mcp_notification(None, "notifications/initialized"),
            json!({"type": "mcp", "payload": {"jsonrpc": "2.0", "method": "notifications/initialized"}}),
        ),
        (
            mcp_result(None, r#""a""#, r#"{"tools":[]}"#),
            json!({"type": "mcp", "payload": {"jsonrpc": "2.0", "id": "a", "result": {"tools": []}}}),
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected, "{text}");
    }
}

#[test]
fn rpcs() {
    let none = Rpc { id: None, method: None, params: None, result: None, error: None };
    let cases = [
        (r#"{"type":"mcp"}"#, None),
        (r#"{"payload":null}"#, None),
        (r#"{"payload":[{"id":1}]}"#, None),
        (r#"{"payload":"{}"}"#, None),
        (r#"{"payload":{}}"#, Some(none.clone())),
        (
            r#"{"id":1,"payload":{"id":null,"params":null}}"#,
            Some(Rpc { params: Some("null"), ..none.clone() }),
        ),
        (
            r#"{"payload":{"jsonrpc":"2.0","id": 1.0 ,"method":"tools\/call","params":{ "id":2 }}}"#,
            Some(Rpc {
                id: Some("1.0"),
                method: Some("tools/call".into()),
                params: Some(r#"{ "id":2 }"#),
                ..none.clone()
            }),
        ),
        (
            r#"{"payload":{"id":"x","result":{},"error":{"message":"m"},"method":5}}"#,
            Some(Rpc { id: Some(r#""x""#), result: Some("{}"), error: Some(r#"{"message":"m"}"#), ..none }),
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(rpc(text), expected, "{text}");
    }
}

#[test]
fn rpc_ids_replaced() {
    let cases = [
        (r#"{"payload":{"id":1}}"#, Some(r#"{"payload":{"id":77}}"#)),
        (
            " { \"id\":1, \"payload\" : { \"params\":{\"id\":2}, \"id\" : \"x\" , \"é\":1.0 } , \"z\":[] } ",
            Some(
                " { \"id\":1, \"payload\" : { \"params\":{\"id\":2}, \"id\" : 77 , \"é\":1.0 } , \"z\":[] } ",
            ),
        ),
        (r#"{"payload":{"\u0069d":null}}"#, Some(r#"{"payload":{"\u0069d":77}}"#)),
        (r#"{"payload":{"id":1,"id":2}}"#, Some(r#"{"payload":{"id":77,"id":77}}"#)),
        (r#"{"payload":{"id":1},"payload":{"id":2}}"#, Some(r#"{"payload":{"id":1},"payload":{"id":77}}"#)),
        (r#"{"payload":{"params":{"id":2}}}"#, None),
        (r#"{"payload":{}}"#, None),
        (r#"{"payload":[{"id":1}]}"#, None),
        (r#"{"id":1}"#, None),
    ];
    for (text, expected) in cases {
        assert_eq!(replace_rpc_id(text, "77").as_deref(), expected, "{text}");
    }
}

#[test]
fn rpcs_as_a_device_reads() {
    let text = r#"{"Payload":{"ID":1,"id":2,"Method":"a\u0000b","method":"c"},"payload":{"id":3}}"#;
    let found = super::parse_rpc(text, Reader::Device).unwrap();
    assert_eq!((found.id, found.method.as_deref()), (Some("1"), Some("a")));
    assert_eq!(rpc(text).unwrap().id, Some("3"));
    let replaced = super::replace_rpc_id(text, "77", Reader::Device);
    assert_eq!(replaced, Some(text.replace(r#""ID":1,"id":2"#, r#""ID":77,"id":77"#)));
    assert_eq!(super::parse_rpc(r#"{"payload":1,"payload":{}}"#, Reader::Device), None);
}

#[test]
fn quoting() {
    for text in ["", "plain", "a\"b\\c", "\0\u{1f}\u{7f}\n\t", "é😀\u{2028}", "</script>"] {
        assert_eq!(serde_json::from_str::<String>(&json_quote(text)).unwrap(), text);
    }
}

/// JSON values up to three levels deep, with the keys that are used here.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop_oneof![Just(String::new()), ".{0,6}", Just("from".into())].prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 20, 5, |inner| {
        prop_oneof![prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from), object_of(inner)]
    })
}

fn object_of(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    let key = prop_oneof!["type|state|session_id|Session_ID|payload|id|method", ".{0,4}"];
    prop::collection::hash_map(key, value, 0..6)
        .prop_map(|entries| Value::Object(entries.into_iter().collect()))
}

/// An object as text, with or without white space.
fn message() -> impl Strategy<Value = (Value, String)> {
    (object_of(value()), any::<bool>()).prop_map(|(value, pretty)| {
        let text = if pretty { format!("\n{value:#} ") } else { value.to_string() };
        (value, text)
    })
}

proptest! {
    #[test]
    fn peek_agrees_with_a_parsed_tree((value, text) in message()) {
        let text_of = |key: &str| value[key].as_str();
        let peek = peek(&text).unwrap();
        prop_assert_eq!(&*peek.kind, text_of("type").unwrap_or(""));
        prop_assert_eq!(peek.session_id.as_deref(), text_of("session_id"));
        prop_assert_eq!(peek.state.as_deref(), text_of("state"));
        let object = JsonObject::parse(&text).unwrap().to_string();
        prop_assert_eq!(&serde_json::from_str::<Value>(&object).unwrap(), &value);
        prop_assert_eq!(rpc(&text).is_some(), value["payload"].is_object());
    }

    #[test]
    fn edits_change_only_the_session_id((value, text) in message(), to in ".{1,9}") {
        let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap();

        let mut expected = value.clone();
        let own = |key: &String| !is_named(key, "session_id");
        expected.as_object_mut().unwrap().retain(|key, _| own(key));
        expected["session_id"] = to.as_str().into();
        let found = with_session_id(&text, Some(&to));
        prop_assert_eq!(parsed(&found), expected);
        prop_assert_eq!(JsonObject::parse(&found).unwrap().entries().filter(|(key, _)| is_named(key, "session_id")).count(), 1);
        prop_assert!(matches!(with_session_id(&found, Some(&to)), Cow::Borrowed(_)));

        let mut replaced = value.clone();
        for key in ["session_id", "Session_ID"] {
            if value[key] == "from" {
                replaced[key] = to.as_str().into();
            }
        }
        prop_assert_eq!(parsed(&replace_session_id(&text, "from", &to)), replaced);

        match replace_rpc_id(&text, "77") {
            None => prop_assert!(value["payload"].get("id").is_none()),
            Some(found) => {
                let mut replaced = value;
                replaced["payload"]["id"] = 77.into();
                prop_assert_eq!(parsed(&found), replaced);
            }
        }
    }

    #[test]
    fn invalid_json_is_rejected_as_by_a_full_parser((_, text) in message(), at in any::<prop::sample::Index>(), with in r#"[\[\]{}",:\\a0 \n]?"#) {
        // One character gone or changed.
        let (at, old) = text.char_indices().nth(at.index(text.chars().count())).unwrap();
        let damaged = format!("{}{with}{}", &text[..at], &text[at + old.len_utf8()..]);
        let expected = match serde_json::from_str::<Value>(&damaged) {
            Ok(Value::Object(_)) => Ok(()),
            Ok(_) => Err(BadMessage::NotObject),
            Err(_) => Err(BadMessage::NotJson),
        };
        prop_assert_eq!(peek(&damaged).map(|_| ()), expected);
        if expected.is_err() {
            prop_assert_eq!(with_session_id(&damaged, Some("s")), &*damaged);
        }
        if let Ok(object) = JsonObject::parse(&damaged) {
            let _ = (parse_server_hello(&object), parse_device_hello(object));
        }
        let _ = (rpc(&damaged), replace_rpc_id(&damaged, "1"));
    }

    #[test]
    fn any_text_is_parsed_without_panic(text in ".{0,80}") {
        let _ = (peek(&text), rpc(&text), replace_rpc_id(&text, "1"));
        prop_assert_eq!(serde_json::from_str::<String>(&json_quote(&text)).unwrap(), text);
    }
}
