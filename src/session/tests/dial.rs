//! One chat server after the other: what each is blamed for, and what is forgotten of it.

use super::*;

const HELLO_2: &str = r#"{"type":"hello","session_id":"s2"}"#;

#[test]
fn a_server_that_does_not_greet_is_named_with_what_it_did() {
    type End = fn(&mut Story) -> Vec<Action>;
    let ends: [(End, &str); 6] = [
        (|story| story.gone(Gone::Closed(None)), "the server closed the WebSocket"),
        (|story| story.gone(Gone::Closed(Some(1000))), "the server closed the WebSocket with code 1000"),
        (|story| story.gone(Gone::Closed(Some(1011))), "the server closed the WebSocket with code 1011"),
        (|story| story.gone(failed("live")), "broken"),
        (|story| story.server(r#"{"type":"goodbye"}"#), "the server said goodbye instead"),
        (|story| story.wait(4_000).split_off(1), "no answer in 4.0 s"),
    ];
    for (end, why) in ends {
        let mut story = Story::online();
        story.device(HELLO);
        story.open();
        let failure = Failure { stage: "hello", why: why.to_owned() };
        let failing = Note::ServerFailing { url: A.to_owned(), why: failure.to_string() };
        let expected = [
            Action::Count(Counter::DialFailed("hello")),
            Action::Note(failing),
            Action::HangUp(1001),
            Action::Note(Note::DialFailed { url: A.to_owned(), failure }),
            dial(B),
        ];
        assert_eq!(end(&mut story), expected, "{why}");
    }
}

#[test]
fn the_next_server_has_to_greet_whatever_the_one_before_said() {
    for spoken in [TTS_START, r#"{"type":"stt","text":"x"}"#, r#"{"type":"llm"}"#] {
        let mut story = Story::online();
        story.device(HELLO);
        story.open();
        assert_eq!(story.server(spoken), []);
        story.gone(failed("live"));
        story.open();
        assert_eq!(traffic(story.wait(4_000)), [say(HELLO_UP), Action::HangUp(1001), dial(C)], "{spoken}");
        story.open();
        assert_eq!(told(&story.server(SERVER_HELLO)).len(), 1, "the reply alone: {spoken}");
    }
}

#[test]
fn a_name_that_is_not_found_is_the_servers_fault_and_a_place_that_is_not_free_is_not() {
    for (stage, at_fault) in [("resolve", true), ("connect", false), (OWN_SHORTAGE, false)] {
        let mut story = Story::online();
        story.device(HELLO);
        // It never got as far as connecting.
        let actions = story.drive(|core, cx| core.backend_gone(failed(stage), cx));
        let failing = actions.iter().any(|action| matches!(action, Action::Note(Note::ServerFailing { .. })));
        assert_eq!(failing, at_fault, "{stage}");
    }
}

#[test]
fn what_counts_as_speech_makes_a_silent_server_live() {
    for (text, live) in
        [(TTS_START, true), (r#"{"type":"stt","text":"x"}"#, true), (r#"{"type":"llm"}"#, false)]
    {
        let mut story = Story::online();
        story.config.websocket.production = servers(&[A]);
        story.device(HELLO);
        story.open();
        story.wait(1_000);
        assert_eq!(story.server(text), []);
        let actions = story.wait(3_000);
        let note = Action::Note(Note::NoServerHello(A.to_owned()));
        assert_eq!(actions.contains(&note), live, "{text}");
    }
}

#[test]
fn audio_and_abort_before_the_answer_cost_nothing() {
    let mut story = Story::online();
    story.device(HELLO);
    story.open();
    assert_eq!(story.up(1, b"\x08x"), Err(Discard::NoServer));
    let llm = r#"{"session_id":"s1","type":"llm"}"#;
    story.server(llm);
    assert_eq!(story.device(r#"{"type":"abort"}"#), [Action::FlushAudio(0x1001)]);
    let actions = story.server(SERVER_HELLO);
    let Action::Publish(answer) = reply(1, "s1", r#"{"sample_rate":24000}"#) else { unreachable!() };
    assert_eq!(told(&actions), [&*answer, llm]);
}

#[test]
fn a_redial_knows_nothing_of_the_server_before() {
    // Its name of the session.
    let mut story = Story::talking();
    story.gone(failed("live"));
    story.wait(250);
    story.open();
    story.server(HELLO_2);
    story.gone(failed("live"));
    story.wait(500);
    story.open();
    assert_eq!(story.device(r#"{"type":"goodbye"}"#)[0], farewell("s1", EndReason::DeviceGoodbye, 750));

    // That its time for a hello was over.
    let mut story = Story::talking();
    story.config.websocket.production = servers(&[A]);
    story.gone(failed("live"));
    story.wait(250);
    story.open();
    assert_eq!(story.wait(4_500), [say(HELLO_UP)]);
    story.gone(failed("live"));
    story.wait(500);
    story.open();
    assert_eq!(story.server(TTS_START), []);
    assert_eq!(told(&story.server(SERVER_HELLO)), [TTS_START]);

    // That text waited there for a datagram.
    let mut story = Story::in_call();
    story.server(TTS_START);
    story.gone(failed("live"));
    story.wait(2_500);
    story.open();
    story.server(SERVER_HELLO);
    story.wait(1_000);
    assert_eq!(story.server(TTS_START), []);
    assert_eq!(story.wait(1_999), []);
    assert_eq!(story.wait(1), [publish(TTS_START)]);
}

#[test]
fn a_gap_is_counted_from_its_own_failure() {
    let mut story = Story::talking();
    for (pause, url, after) in [(250, B, 250), (500, C, 500)] {
        story.gone(failed("live"));
        story.wait(pause);
        story.open();
        let actions = story.server(SERVER_HELLO);
        let after = Duration::from_millis(after);
        assert_eq!(actions[1], Action::Note(Note::Redialled { url: url.to_owned(), after }));
        story.wait(5_000);
    }
}

#[test]
fn any_seed_spreads_the_redials() {
    for seed in [0, 1, u64::MAX] {
        let mut story = Story::online();
        let reconnect = &mut story.config.websocket.reconnect;
        (reconnect.initial, reconnect.max) = (Duration::from_secs(5), Duration::from_secs(5));
        reconnect.give_up_after = Duration::ZERO;
        let mut cx = Cx {
            now: story.now,
            config: &story.config,
            servers: &mut story.servers,
            ids: &story.ids,
            out: &mut Vec::new(),
        };
        story.core.packet(publication(HELLO.as_bytes()), &mut cx);
        story.core.granted(Grant { seed, ..grant(1) }, &mut cx);
        story.open();
        story.server(SERVER_HELLO);
        let mut pauses = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let actions = story.gone(failed("live"));
            let Some(Action::Note(Note::Redialling { pause, .. })) = actions.last() else {
                panic!("{actions:?}")
            };
            pauses.insert(pause.as_millis());
            story.core.heard(story.now);
            story.wait(5_001);
        }
        assert!(pauses.len() > 10, "{seed}: {pauses:?}");
    }
}
