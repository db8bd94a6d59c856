//! The session id that a device is shown, and the ids in what passes both ways.

use super::*;

/// `text` as a JSON string.
fn quoted(text: &str) -> String {
    message::quote(text)
}

fn server_hello(id: &str) -> String {
    format!(r#"{{"type":"hello","session_id":{}}}"#, quoted(id))
}

fn named(kind: &str, id: &str) -> String {
    format!(r#"{{"type":"{kind}","session_id":{}}}"#, quoted(id))
}

/// A device whose call is answered by a server that calls the session `id`, and what that caused.
fn call_with(id: &str) -> (Story, Vec<Action>) {
    let mut story = Story::online();
    story.device(HELLO);
    story.open();
    let actions = story.server(&server_hello(id));
    (story, actions)
}

fn shown(actions: &[Action]) -> &str {
    let began = actions.iter().find_map(|action| match action {
        Action::Note(Note::CallBegan { session_id, .. }) => Some(&**session_id),
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
        let (mut story, began) = call_with(id);
        assert!(told(&began)[0].contains(r#""session_id":"own-1""#), "{id:.40?}");
        assert_eq!(
            (shown(&began), story.core.call().unwrap().session_id),
            ("own-1", Some("own-1")),
            "{id:.40?}"
        );
        assert_eq!(story.server(&named("llm", id)), [publish(&named("llm", "own-1"))], "{id:.40?}");
        assert_eq!(story.device(&named("listen", "own-1")), [say(&named("listen", id))], "{id:.40?}");
        let end = story.device(&named("goodbye", "own-1"));
        assert_eq!(&*summary(&end).session_id, "own-1");
        let to_server: Vec<_> =
            said(&end).iter().map(|text| message::server_hello(text).session_id).collect();
        assert_eq!(to_server, [Some(id.into())], "{id:.40?}");
    }
}

#[test]
fn a_session_id_that_needs_no_escape_is_the_devices_too() {
    let longest = ["x".repeat(128), "é".repeat(64)];
    for id in ["s1", " ", "a b'{}/", "会话-1", "\u{1f600}"].into_iter().chain(longest.iter().map(|id| &**id))
    {
        let (mut story, began) = call_with(id);
        assert!(told(&began)[0].contains(&format!(r#""session_id":"{id}""#)), "{id}");
        assert_eq!((shown(&began), story.core.call().unwrap().session_id), (id, Some(id)));
        for kind in ["llm", "goodbye"] {
            assert_eq!(told(&story.server(&named(kind, id))), [named(kind, id)]);
        }
    }
}

#[test]
fn the_servers_goodbye_has_the_id_that_the_device_was_shown() {
    let (mut story, _) = call_with("a\"b");
    assert_eq!(told(&story.server(&named("goodbye", "a\"b"))), [named("goodbye", "own-1")]);
}

#[test]
fn ids_stay_apart_after_a_redial_to_a_server_with_such_an_id() {
    let mut story = Story::in_call();
    story.gone(failed("live"));
    story.wait(2000);
    story.open();
    story.server(&server_hello("a\nb"));
    assert_eq!(story.server(&named("llm", "a\nb")), [publish(&named("llm", "s1"))]);
    assert_eq!(story.device(&named("abort", "s1")).last(), Some(&say(&named("abort", "a\nb"))));
}

#[test]
fn audio_parameters_without_end_are_not_passed_on() {
    let mut story = Story::online();
    story.device(HELLO);
    story.open();
    let params = format!(r#"{{"x":"{}"}}"#, "x".repeat(900_000));
    let began = story.server(&format!(r#"{{"type":"hello","session_id":"s1","audio_params":{params}}}"#));
    assert_eq!(
        told(&began),
        [match reply(1, "s1", r#"{"format":"opus","sample_rate":16000}"#) {
            Action::Publish(text) => text,
            other => panic!("{other:?}"),
        }]
    );
}
