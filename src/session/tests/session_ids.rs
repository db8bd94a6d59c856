//! The session id that a device is given, and the ids in the messages of both directions.

use super::*;

/// `text` as a JSON string.
fn quoted(text: &str) -> String {
    message::json_quote(text)
}

fn server_hello(id: &str) -> String {
    format!(r#"{{"type":"hello","session_id":{}}}"#, quoted(id))
}

fn named(kind: &str, id: &str) -> String {
    format!(r#"{{"type":"{kind}","session_id":{}}}"#, quoted(id))
}

/// A device whose call is answered by a server with the session id `id`, and the actions of that.
fn call_with(id: &str) -> (Scenario, Vec<Action>) {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.open_backend();
    let actions = scenario.server_sends(&server_hello(id));
    (scenario, actions)
}

fn shown(actions: &[Action]) -> &str {
    let began = actions.iter().find_map(|action| match action {
        Action::Log(LogEvent::CallStarted { session_id, .. }) => Some(&**session_id),
        _ => None,
    });
    began.expect("the call begins")
}

#[test]
fn a_session_id_that_a_device_or_a_log_would_break_on_stays_with_the_server() {
    let long = ["x".repeat(129), "é".repeat(65), "x".repeat(900_000)];
    let odd = [
        "a\"b",
        "\"",
        "a\\",
        "\\n",
        "a\nb",
        "\0",
        "\u{1f}",
        "\u{7f}",
        "\u{85}",
        "\u{2028}",
        "\u{202e}x",
        "\u{2066}",
    ];
    for id in odd.iter().copied().chain(long.iter().map(|id| &**id)) {
        let (mut scenario, began) = call_with(id);
        assert!(texts_to_device(&began)[0].contains(r#""session_id":"own-1""#), "{id:.40?}");
        assert_eq!(
            (shown(&began), scenario.core.call().unwrap().session_id),
            ("own-1", Some("own-1")),
            "{id:.40?}"
        );
        assert_eq!(scenario.server_sends(&named("llm", id)), [publish(&named("llm", "own-1"))], "{id:.40?}");
        assert_eq!(
            scenario.device_sends(&named("listen", "own-1")),
            [send_text(&named("listen", id))],
            "{id:.40?}"
        );
        let end = scenario.device_sends(&named("goodbye", "own-1"));
        assert_eq!(&*summary(&end).session_id, "own-1");
        let to_server: Vec<_> = texts_to_server(&end)
            .iter()
            .map(|text| {
                message::peek(text, message::Reader::Server).unwrap().session_id.unwrap().into_owned()
            })
            .collect();
        assert_eq!(to_server, [id], "{id:.40?}");
    }
}

#[test]
fn a_session_id_that_needs_no_escape_is_the_devices_too() {
    let longest = ["x".repeat(128), "é".repeat(64)];
    for id in ["s1", " ", "a b'{}/", "会话-1", "\u{1f600}"].into_iter().chain(longest.iter().map(|id| &**id))
    {
        let (mut scenario, began) = call_with(id);
        assert!(texts_to_device(&began)[0].contains(&format!(r#""session_id":"{id}""#)), "{id}");
        assert_eq!((shown(&began), scenario.core.call().unwrap().session_id), (id, Some(id)));
        for kind in ["llm", "goodbye"] {
            assert_eq!(texts_to_device(&scenario.server_sends(&named(kind, id))), [named(kind, id)]);
        }
    }
}

#[test]
fn the_servers_goodbye_has_the_id_that_the_device_was_shown() {
    let (mut scenario, _) = call_with("a\"b");
    assert_eq!(
        texts_to_device(&scenario.server_sends(&named("goodbye", "a\"b"))),
        [named("goodbye", "own-1")]
    );
}

#[test]
fn ids_stay_apart_after_a_redial_to_a_server_with_such_an_id() {
    let mut scenario = Scenario::in_call();
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(2000);
    scenario.open_backend();
    scenario.server_sends(&server_hello("a\nb"));
    assert_eq!(scenario.server_sends(&named("llm", "a\nb")), [publish(&named("llm", "s1"))]);
    assert_eq!(
        scenario.device_sends(&named("abort", "s1")).last(),
        Some(&send_text(&named("abort", "a\nb")))
    );
}

#[test]
fn audio_parameters_that_are_too_long_or_break_a_devices_parser_are_not_passed_on() {
    // A device refuses a text with half of a surrogate pair.
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    for value in [format!("\"{}\"", "x".repeat(900_000)), r#""\ud800""#.to_owned(), deep] {
        let mut scenario = Scenario::online();
        scenario.device_sends(HELLO);
        scenario.open_backend();
        let hello = format!(r#"{{"type":"hello","session_id":"s1","audio_params":{{"x":{value}}}}}"#);
        let began = scenario.server_sends(&hello);
        assert_eq!(
            texts_to_device(&began),
            [match hello_reply(1, "s1", r#"{"format":"opus","sample_rate":16000}"#) {
                Action::Publish(text) => text,
                other => panic!("{other:?}"),
            }]
        );
    }
}

/// Texts of a peer, each with the text for a device whose session id is s1.
const EDITS: [(&str, &str); 20] = [
    // Correct.
    (r#"{"type":"T","session_id":"s1","a":1}"#, r#"{"type":"T","session_id":"s1","a":1}"#),
    (r#"{"type":"T","session\u005fid":"\u00731"}"#, r#"{"type":"T","session\u005fid":"\u00731"}"#),
    // Another id, or an invalid one.
    (r#"{"type":"T"}"#, r#"{"session_id":"s1","type":"T"}"#),
    (r#"{"type":"T","session_id":"other","x":[ ]}"#, r#"{"type":"T","session_id":"s1","x":[ ]}"#),
    (r#"{"type":"T","session_id":""}"#, r#"{"type":"T","session_id":"s1"}"#),
    (r#"{"type":"T","session_id":null}"#, r#"{"type":"T","session_id":"s1"}"#),
    (r#"{"type":"T","session_id":1.5e3 , "a":1}"#, r#"{"type":"T","session_id":"s1" , "a":1}"#),
    (r#"{"type":"T","session_id":{"session_id":"s1"}}"#, r#"{"type":"T","session_id":"s1"}"#),
    (r#"{"type":"T","session_id":["s1"]}"#, r#"{"type":"T","session_id":"s1"}"#),
    (r#"{"type":"T","session_id":"s1\u0000"}"#, r#"{"type":"T","session_id":"s1"}"#),
    // Several.
    (r#"{"session_id":"x","type":"T","session_id":"s1"}"#, r#"{"session_id":"s1","type":"T"}"#),
    (r#"{"session_id":"s1","type":"T","session_id":"x"}"#, r#"{"session_id":"s1","type":"T"}"#),
    (r#"{"session_id":"s1","session_id":"s1","type":"T"}"#, r#"{"session_id":"s1","type":"T"}"#),
    (
        "\t{ \"session_id\" : null , \"type\" : \"T\" ,\n \"session_id\" : 2 , \"a\" : 1 , \"session_id\" : [] } ",
        "\t{ \"session_id\" : \"s1\" , \"type\" : \"T\" , \"a\" : 1 } ",
    ),
    // In another case: devices that ignore it, and those that do not, find the same member.
    (r#"{"Session_Id":"s1","type":"T"}"#, r#"{"session_id":"s1","type":"T"}"#),
    (r#"{"type":"T" , "SESSION_ID" : "x" }"#, r#"{"type":"T" , "session_id":"s1" }"#),
    (r#"{"Session_Id":"x","type":"T","session_id":"s1"}"#, r#"{"session_id":"s1","type":"T"}"#),
    (r#"{"session_id":"s1","type":"T","session\u005fID":"x"}"#, r#"{"session_id":"s1","type":"T"}"#),
    (r#"{"type":"T","session_id\u0000y":"s1"}"#, r#"{"type":"T","session_id":"s1"}"#),
    // Similar names, and names at other levels.
    (
        r#"{"type":"T","payload":{"session_id":"x","Session_Id":1},"session_id ":"y","text":"\"session_id\":\"x\""}"#,
        r#"{"session_id":"s1","type":"T","payload":{"session_id":"x","Session_Id":1},"session_id ":"y","text":"\"session_id\":\"x\""}"#,
    ),
];

#[test]
fn what_reaches_the_device_has_one_session_id_which_is_its_own() {
    for (theirs, expected) in EDITS {
        for kind in ["llm", "goodbye"] {
            let (theirs, expected) = (theirs.replace('T', kind), expected.replace('T', kind));
            let mut scenario = Scenario::with_udp_peer();
            assert_eq!(texts_to_device(&scenario.server_sends(&theirs)), [&*expected], "{theirs}");
            let mut scenario = Scenario::with_udp_peer();
            let actions = scenario.drive(|core, cx| _ = core.send_message(&theirs, cx));
            assert_eq!(texts_to_device(&actions), [&*expected], "an operator's {theirs}");
        }
    }
}

#[test]
fn the_servers_own_id_is_mapped_wherever_it_stands() {
    let mut scenario = Scenario::in_call();
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(2000);
    scenario.open_backend();
    scenario.server_sends(&server_hello("s2"));
    let twice = r#"{"type":"llm","session_id":"s2","Session_Id":"s2","session_id":"s1"}"#;
    assert_eq!(texts_to_device(&scenario.server_sends(twice)), [r#"{"type":"llm","session_id":"s1"}"#]);
    let twice = r#"{"type":"x","Session_Id":"s1","session_id":"s1","session\u005fid":"other"}"#;
    let expected = r#"{"type":"x","Session_Id":"s2","session_id":"s2","session\u005fid":"other"}"#;
    assert_eq!(scenario.device_sends(twice), [send_text(expected)]);
}

#[test]
fn without_a_call_an_operators_session_id_is_one_string_or_none() {
    for (text, expected) in [
        (r#"{"type":"alert"}"#, r#"{"type":"alert"}"#),
        (r#"{"type":"goodbye","session_id":"x"}"#, r#"{"type":"goodbye","session_id":"x"}"#),
        (r#"{"type":"goodbye","session_id":""}"#, r#"{"type":"goodbye","session_id":""}"#),
        (r#"{"type":"goodbye","session_id":null}"#, r#"{"type":"goodbye","session_id":""}"#),
        (r#"{"Session_Id":7,"type":"goodbye"}"#, r#"{"session_id":"","type":"goodbye"}"#),
        (r#"{"Session_Id":"x","session_id":null}"#, r#"{"session_id":"x"}"#),
        (r#"{"session_id":"x","session_id":null}"#, r#"{"session_id":"x"}"#),
    ] {
        let mut scenario = Scenario::online();
        let say = |scenario: &mut Scenario| scenario.drive(|core, cx| _ = core.send_message(text, cx));
        assert_eq!(texts_to_device(&say(&mut scenario)), [expected], "{text}");
        scenario.device_sends(HELLO);
        assert_eq!(texts_to_device(&say(&mut scenario)), [expected], "before the answer to hello: {text}");
    }
}
