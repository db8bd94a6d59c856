//! How many bytes are kept for a device, to the byte: what an operator's limit of memory is about.

use super::*;

const ALERT: &str = r#"{"session_id":"s1","type":"alert"}"#;

fn learning() -> Story {
    let mut story = Story::new();
    story.config.mcp.enabled = true;
    story
}

impl Story {
    fn message(&mut self, text: &str) {
        self.drive(|core, cx| {
            core.message(text, cx);
        });
    }
}

#[test]
fn what_a_call_keeps() {
    let mut story = Story::online();
    assert_eq!(story.core.kept(), 0);
    story.device(HELLO);
    let mut kept = HELLO_UP.len();
    assert_eq!(story.core.kept(), kept);
    // The listen waits, and would be said again.
    story.device(LISTEN);
    kept += 2 * LISTEN.len();
    assert_eq!(story.core.kept(), kept);
    story.open();
    story.server(SERVER_HELLO);
    kept -= LISTEN.len();
    kept += "s1".len();
    assert_eq!(story.core.kept(), kept);
    // Text and audio wait for the first datagram.
    let frame = headed(1, b"\x08audio");
    story.server(TTS_START);
    story.down(&frame).unwrap();
    kept += TTS_START.len() + frame.len();
    assert_eq!(story.core.kept(), kept);
    story.up(1, b"\x08x").unwrap();
    kept -= TTS_START.len() + frame.len();
    assert_eq!(story.core.kept(), kept);
    // Text waits for a device that is away.
    story.lost();
    story.message(ALERT);
    story.message(ALERT);
    kept += 2 * ALERT.len();
    assert_eq!(story.core.kept(), kept);
    story.come_back(HOME);
    kept -= 2 * ALERT.len();
    assert_eq!(story.core.kept(), kept);
    // Another server's name of the session, until it is left; what waits for it goes with the call to another device.
    story.gone(failed("live"));
    story.wait(250);
    story.open();
    story.server(r#"{"type":"hello","session_id":"another"}"#);
    assert_eq!(story.core.kept(), kept + "another".len());
    story.gone(failed("live"));
    story.wait(500);
    assert_eq!(story.core.kept(), kept);
    story.device(r#"{"type":"iot"}"#);
    assert_eq!(story.core.kept(), kept + r#"{"type":"iot"}"#.len());
    story.drive(Core::ring);
    assert_eq!(story.core.kept(), kept);
    story.device(r#"{"type":"goodbye"}"#);
    assert_eq!(story.core.kept(), 0);
}

#[test]
fn what_is_learnt_of_tools_is_kept_until_the_device_leaves() {
    const FIRST: u32 = 0x4000_0000;
    let answer = |story: &mut Story, id: u32, result: &str| {
        story.device(&message::mcp_result(None, &id.to_string(), result))
    };
    let mut story = learning();
    story.connect();
    assert_eq!(story.core.kept(), 0, "asked");
    story.device(r#"{"type":"mcp","payload":{"method":"x"}}"#);
    assert_eq!(story.core.kept(), 0, "told nothing yet");
    answer(&mut story, FIRST, r#"{"server":1}"#);
    let mut kept = r#"{"server":1}"#.len();
    assert_eq!(story.core.kept(), kept);
    answer(&mut story, FIRST + 1, r#"{"tools":["one","three"],"nextCursor":"next"}"#);
    assert_eq!(story.core.kept(), kept + r#""one""three""#.len() + "next".len());
    answer(&mut story, FIRST + 2, r#"{"tools":[4]}"#);
    kept += r#"["one","three",4]"#.len();
    assert_eq!(story.core.kept(), kept);
    story.device(HELLO);
    assert_eq!(story.core.kept(), kept + HELLO_UP.len(), "and a call's");
    story.packet(Packet::Disconnect);
    assert_eq!((story.core.kept(), story.core.deadline()), (0, None));

    // A list that fails or never comes is not kept.
    for late in [false, true] {
        let mut story = learning();
        story.connect();
        answer(&mut story, FIRST, "{}");
        answer(&mut story, FIRST + 1, r#"{"tools":["one"],"nextCursor":"next"}"#);
        let actions = if late { story.wait(10_000) } else { answer(&mut story, FIRST + 2, "[]") };
        let why = if late { "no answer in 10 s" } else { "a page of tools that is none" };
        assert_eq!(actions, [Action::Note(Note::Tools(Err(why)))]);
        assert_eq!(story.core.kept(), "{}".len());
    }
}

#[test]
fn too_much_of_it_ends_the_call_and_the_connection() {
    let mut story = Story::online();
    assert_eq!(story.drive(Core::too_much_kept), [Action::Close(Reason::Memory)]);
    assert_eq!(story.drive(Core::too_much_kept), []);

    let mut story = Story::talking();
    let actions = story.drive(Core::too_much_kept);
    assert_eq!(actions[..2], [farewell("s1", EndReason::DeviceError, 0), Action::HangUp(1000)]);
    assert_eq!(summary(&actions).reason, EndReason::DeviceError);
    assert_eq!(actions[3..], [Action::Close(Reason::Memory)]);
    assert_eq!(story.core.kept(), 0);
}

/// Texts that wait for a device that is away, as many as fit, and one that still waits before them.
fn away_with_all_it_can_keep(story: &mut Story) {
    story.server(TTS_START);
    story.lost();
    for _ in 0..128 {
        story.message(ALERT);
    }
    assert!(story.core.has_call());
}

#[test]
fn whatever_brings_one_text_too_many_for_an_absent_device_ends_its_call() {
    type Act = fn(&mut Core, &mut Cx<'_>);
    let acts: [(&str, Act); 4] = [
        ("ring", Core::ring),
        ("bridge", Core::bridge),
        ("wake", |core, cx| core.wake("Ann", cx)),
        ("message", |core, cx| assert_eq!(core.message(ALERT, cx), Delivery::NotConnected)),
    ];
    for (name, act) in acts {
        let mut story = Story::in_call();
        away_with_all_it_can_keep(&mut story);
        let actions = story.drive(act);
        assert_eq!(summary(&actions).reason, EndReason::Overflow, "{name}");
        assert!(!story.core.has_call() && story.core.is_over(), "{name}");
    }
    let mut story = Story::in_call();
    away_with_all_it_can_keep(&mut story);
    let (_, actions) = story.up_from("192.0.2.7:4000", 1, b"\x08x").unwrap();
    assert_eq!(summary(&actions).reason, EndReason::Overflow, "a datagram lets go what was held");

    let mut story = Story::talking();
    story.drive(Core::ring);
    away_with_all_it_can_keep(&mut story);
    let actions = story.drive(|core, cx| core.accepted_by(mac(), cx));
    assert_eq!(summary(&actions).reason, EndReason::Overflow, "an answer");
}
