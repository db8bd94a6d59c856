//! What waits for what: the hello reply, the device's first datagram, speech and its end.

use super::*;

const STT: &str = r#"{"session_id":"s1","type":"stt","text":"hi"}"#;

#[test]
fn everything_from_the_server_waits_for_the_hello_reply() {
    let mut story = Story::online();
    story.device(HELLO);
    story.open();
    assert_eq!(story.server(r#"{"type":"mcp","payload":{"method":"tools/list","id":2}}"#), []);
    assert_eq!(story.server(TTS_START), []);
    assert_eq!(story.down(&headed(1, b"\x08a")), Ok(vec![]));
    assert_eq!(story.server("nonsense"), [Action::Count(Counter::BadServerText)]);
    let mcp = publish(r#"{"session_id":"s1","type":"mcp","payload":{"method":"tools/list","id":2}}"#);
    assert_eq!(traffic(story.server(SERVER_HELLO)), [reply(1, "s1", r#"{"sample_rate":24000}"#), mcp]);
    let (_, let_go) = story.up_from("192.0.2.7:4000", 1, b"\x08x").unwrap();
    assert_eq!(let_go[0], publish(TTS_START));
    assert_eq!(story.heard(&let_go), [(1, 1, b"\x08a".to_vec())]);
}

#[test]
fn speech_waits_for_the_first_datagram_and_keeps_its_order() {
    let mut story = Story::in_call();
    assert_eq!(story.server(STT), [publish(STT)], "text that is no speech does not wait");
    assert_eq!(story.server(TTS_START), []);
    assert_eq!(story.server(STT), [], "but it does behind speech");
    story.down(&headed(10, b"\x08a")).unwrap();
    story.down(&headed(70, b"\x08b")).unwrap();
    assert_eq!(story.server(TTS_STOP), []);
    story.wait(1_999);
    let (frame, let_go) = story.up_from("192.0.2.7:4000", 1, b"\x08x").unwrap();
    assert_eq!(frame, headed(7, b"\x08x"));
    let [start, stt, Action::Datagram(first, _), Action::Datagram(..), stop] = &let_go[..] else {
        panic!("{let_go:?}");
    };
    assert_eq!([start, stt, stop], [&publish(TTS_START), &publish(STT), &publish(TTS_STOP)]);
    assert_eq!(first.peer.addr, addr("192.0.2.7:4000"));
    assert_eq!(story.heard(&let_go), [(1, 10, b"\x08a".to_vec()), (2, 70, b"\x08b".to_vec())]);
    assert_eq!(story.wait(10_000), [], "nothing is left of the waiting");
    let now = story.down(&headed(130, b"\x08c")).unwrap();
    assert_eq!(story.heard(&now), [(3, 130, b"\x08c".to_vec())]);
    assert_eq!(story.server(TTS_STOP), [publish(TTS_STOP)]);
}

#[test]
fn after_2_s_text_goes_on_and_audio_is_dropped_with_one_line() {
    let mut story = Story::in_call();
    story.server(TTS_START);
    story.down(&headed(10, b"\x08a")).unwrap();
    story.down(&headed(70, b"\x08b")).unwrap();
    story.server(TTS_STOP);
    assert_eq!(story.wait(1_999), []);
    let dropped = || Action::Count(Counter::Dropped(Discard::NoPeer));
    assert_eq!(
        story.wait(1),
        [dropped(), dropped(), Action::Note(Note::HeldDropped(2)), publish(TTS_START), publish(TTS_STOP)]
    );
    // Once per call.
    assert_eq!(story.server(TTS_START), [publish(TTS_START)]);
    assert_eq!(story.down(&headed(130, b"\x08c")), Err(Discard::NoPeer));
    story.up(1, b"\x08x").unwrap();
    let heard = story.down(&headed(190, b"\x08d")).unwrap();
    assert_eq!(story.heard(&heard), [(1, 190, b"\x08d".to_vec())], "sequence from 1");
    let end = story.device(r#"{"type":"goodbye"}"#);
    assert_eq!((summary(&end).facts.dropped, summary(&end).facts.down_packets), (3, 1));
}

#[test]
fn held_audio_is_bounded_and_the_newest_is_the_loser() {
    let mut story = Story::in_call();
    for n in 0..256 {
        story.down(&headed(n, b"\x08a")).unwrap();
    }
    assert_eq!(story.down(&headed(256, b"\x08a")), Err(Discard::HeldFull));
    let (_, let_go) = story.up_from("192.0.2.7:4000", 1, b"\x08x").unwrap();
    let heard = story.heard(&let_go);
    assert_eq!(heard.len(), 256);
    assert!(
        heard.iter().enumerate().all(|(i, (sequence, at, _))| (*sequence, *at) == (i as u32 + 1, i as u32))
    );
}

#[test]
fn too_much_held_text_ends_the_call() {
    let mut story = Story::in_call();
    story.server(TTS_START);
    for _ in 0..127 {
        assert_eq!(story.server(STT), []);
    }
    let actions = story.server(STT);
    assert_eq!(summary(&actions).reason, EndReason::Overflow);
    let told = told(&actions);
    assert_eq!((told.len(), told[0]), (130, TTS_START), "128 that waited, alert, goodbye");
    assert_eq!(told[129], message::goodbye(Some("s1")));
}

#[test]
fn an_abort_flushes_held_audio_and_lets_text_go() {
    let mut story = Story::in_call();
    story.down(&headed(10, b"\x08a")).unwrap();
    story.server(TTS_STOP);
    let abort = r#"{"session_id":"s1","type":"abort"}"#;
    let aborted = Action::Count(Counter::Dropped(Discard::Aborted));
    let flush = Action::FlushAudio(0x1001);
    assert_eq!(story.device(abort), [aborted, flush, publish(TTS_STOP), say(abort)]);
    // Nothing waits any more, so the time to wait has not begun.
    story.wait(3_000);
    assert_eq!(story.server(TTS_START), [], "this still waits");
    assert_eq!(story.wait(2_000), [publish(TTS_START)]);
}

#[test]
fn missing_session_ids_are_put_in_and_all_else_is_kept() {
    let mut story = Story::in_call();
    for (text, told) in [
        (r#"{ "type" : "llm" }"#, r#"{"session_id":"s1", "type" : "llm" }"#),
        (r#"{"type":"llm","session_id":""}"#, r#"{"type":"llm","session_id":"s1"}"#),
        ("{}", r#"{"session_id":"s1"}"#),
    ] {
        assert_eq!(story.server(text), [publish(told)]);
    }
    for text in ["", "认证失败", "42", "[]", "{"] {
        assert_eq!(story.server(text), [Action::Count(Counter::BadServerText)], "{text}");
    }
    let odd = r#"{ "session_id":"x", "type":"listen" , "mode":1}"#;
    assert_eq!(story.device(odd), [say(odd)]);
}

#[test]
fn a_repeated_hello_of_the_server_is_not_forwarded() {
    let mut story = Story::in_call();
    let again = SERVER_HELLO.replace("s1", "s9");
    assert_eq!(story.server(&again), [Action::Count(Counter::RepeatedHello)]);
    assert_eq!(story.device(LISTEN), [say(LISTEN)], "and changes nothing");
}

#[test]
fn uplink_audio_is_framed_and_counted() {
    let mut story = Story::in_call();
    assert_eq!(story.up(1, b"\x08one"), Ok(headed(7, b"\x08one")));
    assert_eq!(story.up(4, b"\x08two"), Ok(headed(7, b"\x08two")));
    assert_eq!(story.up(4, b"\x08two"), Err(Discard::Duplicate));
    assert_eq!(story.up(3, b"\x08six"), Err(Discard::Late));
    assert_eq!(story.up(100_000, b"\x08far"), Err(Discard::Jump));
    for bad in [&b""[..], b"\x01", &[1; 20], &[2; 17]] {
        let peer = Peer { addr: addr("192.0.2.7:4000"), local: None };
        let mut bytes = bad.to_vec();
        let outcome = story.core.uplink(peer, &mut bytes, &story.config, story.now);
        assert!(matches!(outcome, Err(Discard::Datagram(_))), "{bad:?}");
    }
    let end = story.device(r#"{"type":"goodbye"}"#);
    let expected =
        Facts { up_packets: 2, up_bytes: 8, lost: 1, reordered: 1, duplicates: 1, ..Facts::default() };
    assert_eq!(summary(&end).facts, expected);
}
