//! From the device's hello to its reply: servers tried in turn, one deadline over all, and words when none is left.

use super::*;

/// What a device is told whose call never came about.
fn no_server(n: u8, reason: EndReason) -> Vec<Action> {
    let own = format!("own-{n}");
    let (status, why) = match reason {
        EndReason::Refused => {
            ("忙 / Busy", "网关通话数已满，请稍后再试 / The gateway has no free line, try again later")
        }
        EndReason::Overflow => ("通话结束 / Call ended", "通话无法继续 / The call cannot go on"),
        _ => (
            "连接失败 / Call failed",
            "聊天服务器无法连接，请稍后再试 / No chat server can be reached, try again later",
        ),
    };
    vec![
        publish(&message::alert(Some(&own), status, why, "sad")),
        reply(n, &own, r#"{"format":"opus","sample_rate":16000}"#),
        goodbye(&own),
    ]
}

fn dial_failed(url: &str, stage: &'static str, why: &str) -> [Action; 2] {
    let failure = Failure { stage, why: why.to_owned() };
    [Action::HangUp(1001), Action::Note(Note::DialFailed { url: url.to_owned(), failure })]
}

#[test]
fn a_call_comes_about() {
    let mut story = Story::online();
    story.wait(1_000);
    assert_eq!(story.device(HELLO), [Action::Grant, dial(A)]);
    assert_eq!(story.core.ssrc(), Some(0x1001));
    story.wait(200);
    assert_eq!(story.open(), [say(HELLO_UP)]);
    story.wait(300);
    let began =
        Note::CallBegan { session_id: "s1".into(), url: A.to_owned(), after: Duration::from_millis(500) };
    assert_eq!(
        story.server(SERVER_HELLO),
        [
            reply(1, "s1", r#"{"sample_rate":24000}"#),
            Action::Count(Counter::Answered(500)),
            Action::Note(began)
        ]
    );
    assert_eq!(story.device(LISTEN), [say(LISTEN)]);
    assert_eq!(story.server(TTS_STOP), [publish(TTS_STOP)]);
}

#[test]
fn every_field_of_the_hello_is_forwarded() {
    let mut story = Story::online();
    story.device(r#"{"type":"hello","transport":"udp","features":{"mcp":true,"x":[1, 2]},"text_font":{"size":14},"a":null}"#);
    let hello = r#"{"type":"hello","transport":"websocket","features":{"mcp":true,"x":[1, 2]},"text_font":{"size":14},"a":null,"version":2}"#;
    assert_eq!(story.open(), [say(hello)]);
}

#[test]
fn a_server_that_names_no_session_gets_the_gateways_id_and_the_devices_audio() {
    for hello in
        [r#"{"type":"hello"}"#, r#"{"type":"hello","session_id":""}"#, r#"{"type":"hello","session_id":7}"#]
    {
        let mut story = Story::online();
        story.device(HELLO);
        story.open();
        let answer = reply(1, "own-1", r#"{"format":"opus","sample_rate":16000}"#);
        assert_eq!(traffic(story.server(hello)), [answer], "{hello}");
    }
}

#[test]
fn another_version_closes_the_connection() {
    for (version, found) in [("2", "2"), ("\"3\"", "\"3\""), ("null", "null")] {
        let mut story = Story::in_call();
        let actions = story.device(&format!(r#"{{"type":"hello","version":{version}}}"#));
        assert_eq!(summary(&actions).reason, EndReason::DeviceError);
        assert_eq!(actions.last(), Some(&Action::Close(Reason::HelloVersion(found.to_owned()))));
        assert_eq!(told(&actions), [""; 0]);
    }
    assert_eq!(Story::online().device(r#"{"type":"hello"}"#)[0], Action::Grant, "none is taken for 3");
}

#[test]
fn each_server_is_tried_once_and_the_device_told_at_once_when_none_is_left() {
    let mut story = Story::online();
    story.device(HELLO);
    let refused = |url: &str, stage| {
        let [hang_up, note] = dial_failed(url, stage, "broken");
        let failing = Note::ServerFailing { url: url.to_owned(), why: format!("{stage} failed: broken") };
        [Action::Count(Counter::DialFailed(stage)), Action::Note(failing), hang_up, note]
    };
    let mut expected = Vec::from(refused(A, "connect"));
    expected.push(dial(B));
    assert_eq!(story.gone(failed("connect")), expected);
    let mut expected = Vec::from(refused(B, "upgrade"));
    expected.push(dial(C));
    assert_eq!(story.gone(failed("upgrade")), expected);
    story.wait(10);
    let actions = story.gone(failed("resolve"));
    assert_eq!(actions[..4], refused(C, "resolve"));
    assert_eq!(actions[4], Action::HangUp(1000));
    assert_eq!(actions[5..8], no_server(1, EndReason::NoServer));
    let end = summary(&actions);
    assert_eq!((end.reason, end.answered, end.ssrc), (EndReason::NoServer, false, Some(0x1001)));
    assert_eq!((&*end.session_id, end.duration), ("own-1", Duration::from_millis(10)));
    assert_eq!(actions.len(), 9);
    assert_eq!(story.device(r#"{"type":"abort"}"#), [goodbye("own-1")], "the id it was told in passing");
}

#[test]
fn every_end_before_the_servers_hello_is_its_failure() {
    for gone in [Gone::Closed(None), Gone::Closed(Some(1000)), Gone::Closed(Some(1011)), failed("live")] {
        let mut story = Story::online();
        story.device(HELLO);
        story.open();
        let actions = story.gone(gone.clone());
        assert_eq!(actions[0], Action::Count(Counter::DialFailed("hello")), "{gone:?}");
        assert_eq!(actions.last(), Some(&dial(B)), "{gone:?}");
    }
    let mut story = Story::online();
    story.device(HELLO);
    story.open();
    let actions = traffic(story.server(r#"{"type":"goodbye"}"#));
    assert_eq!(actions, [Action::HangUp(1001), dial(B)]);
}

#[test]
fn a_server_that_stalls_is_given_up_after_3_s_while_another_is_left() {
    let mut story = Story::online();
    story.device(HELLO);
    assert_eq!(story.wait(2_999), []);
    let [hang_up, note] = dial_failed(A, "connect", "no answer in 3.0 s");
    // No place among the dials, no name yet: that is not held against the server.
    assert_eq!(story.wait(1), [Action::Count(Counter::DialFailed("connect")), hang_up, note, dial(B)]);
    story.core.backend_connecting();
    let actions = story.wait(3_000);
    assert!(matches!(actions[1], Action::Note(Note::ServerFailing { .. })));
    assert_eq!(actions.last(), Some(&dial(C)));
    // The last one may use what remains of 8.5 s.
    assert_eq!(story.wait(2_499), []);
    let actions = traffic(story.wait(1));
    assert_eq!(actions[2..5], no_server(1, EndReason::NoServer));
    assert_eq!(story.ms(), 8_500);
}

#[test]
fn a_silent_server_hears_the_hello_again_and_is_given_up_after_4_s_while_another_is_left() {
    let mut story = Story::online();
    story.config.websocket.production = servers(&[A, B]);
    story.device(HELLO);
    story.open();
    assert_eq!(story.wait(2_999), []);
    assert_eq!(story.wait(1), [say(HELLO_UP)]);
    assert_eq!(traffic(story.wait(1_000)), [Action::HangUp(1001), dial(B)]);
    story.wait(100);
    story.open();
    assert_eq!(traffic(story.wait(3_000)), [say(HELLO_UP)]);
    // The last one has until the device must be told.
    assert_eq!(traffic(story.wait(1_399)), []);
    assert_eq!(traffic(story.wait(1))[2..5], no_server(1, EndReason::NoServer));
    assert_eq!(story.ms(), 8_500);
}

#[test]
fn the_last_server_that_spoke_without_a_hello_is_taken_as_live_when_the_device_must_be_told() {
    let mut story = Story::online();
    story.config.websocket.production = servers(&[A]);
    story.device(HELLO);
    story.wait(5_000);
    story.open();
    story.server(TTS_START);
    let actions = story.wait(3_500);
    assert!(actions.contains(&Action::Note(Note::NoServerHello(A.to_owned()))), "{actions:?}");
    assert!(told(&actions)[0].contains(r#""transport":"udp""#), "{actions:?}");
}

#[test]
fn how_far_the_last_server_was_is_named_when_time_is_up() {
    for (opens, stage) in [(false, "connect"), (true, "hello")] {
        let mut story = Story::online();
        story.config.websocket.production = servers(&[A]);
        story.device(HELLO);
        if opens {
            story.open();
        }
        assert!(story.wait(8_500).contains(&dial_failed(A, stage, "no answer in 8.5 s")[1]), "{stage}");
    }
}

#[test]
fn the_last_server_may_answer_late() {
    let mut story = Story::online();
    story.config.websocket.production = servers(&[A]);
    story.device(HELLO);
    story.wait(5_000);
    story.open();
    story.wait(3_499);
    assert_eq!(told(&story.server(SERVER_HELLO)).len(), 1);
}

#[test]
fn a_server_that_speaks_without_a_hello_is_taken_as_live_after_4_s() {
    let mut story = Story::online();
    story.device(HELLO);
    story.open();
    story.server(r#"{"type":"stt","text":"bind me"}"#);
    story.down(&headed(5, b"\x08prompt")).unwrap();
    assert_eq!(traffic(story.wait(3_999)), [say(HELLO_UP)]);
    let actions = story.wait(1);
    assert_eq!(actions[0], Action::Note(Note::NoServerHello(A.to_owned())));
    let stt = publish(r#"{"session_id":"own-1","type":"stt","text":"bind me"}"#);
    assert_eq!(traffic(actions), [reply(1, "own-1", r#"{"format":"opus","sample_rate":16000}"#), stt]);
    let (_, heard) = story.up_from("192.0.2.7:4000", 1, b"\x08x").unwrap();
    assert_eq!(story.heard(&heard), [(1, 5, b"\x08prompt".to_vec())]);
    // Its hello comes after all: not forwarded, but its name for the session counts from now on.
    assert_eq!(story.server(SERVER_HELLO), [Action::Count(Counter::RepeatedHello)]);
    assert_eq!(story.server(TTS_STOP), [publish(&TTS_STOP.replace("s1", "own-1"))]);
    assert_eq!(story.device(&LISTEN.replace("s1", "own-1")), [say(LISTEN)]);
}

#[test]
fn a_silent_server_is_taken_as_live_with_its_first_word_after_4_s() {
    for audio in [false, true] {
        let mut story = Story::online();
        story.config.websocket.production = servers(&[A]);
        story.device(HELLO);
        story.open();
        story.server(r#"{"type":"mcp","payload":{}}"#);
        assert_eq!(traffic(story.wait(4_500)), [say(HELLO_UP)], "a request for tools is no speech");
        let actions = match audio {
            true => story.down(&headed(1, b"\x08x")).unwrap(),
            false => story.server(r#"{"type":"tts","state":"start"}"#),
        };
        assert_eq!(told(&actions).len(), 2, "hello and mcp: {actions:?}");
        assert!(told(&actions)[1].contains("mcp"));
    }
}

#[test]
fn what_the_device_says_meanwhile_follows_our_hello_in_order() {
    let mut story = Story::online();
    story.device(HELLO);
    let abort = r#"{"type":"abort"}"#;
    assert_eq!(story.device(LISTEN), []);
    story.open();
    assert_eq!(story.device(abort), [Action::FlushAudio(0x1001)]);
    assert_eq!(said(&story.server(SERVER_HELLO)), [LISTEN, abort]);
}

#[test]
fn too_much_text_meanwhile_ends_the_call() {
    let mut story = Story::online();
    story.device(HELLO);
    for _ in 0..128 {
        assert_eq!(story.device(LISTEN), []);
    }
    let actions = story.device(LISTEN);
    assert_eq!(actions[1..4], no_server(1, EndReason::Overflow));
    assert_eq!(summary(&actions).reason, EndReason::Overflow);
}

#[test]
fn what_came_before_goodbye_or_disconnect_is_still_sent() {
    for disconnect in [false, true] {
        let mut story = Story::online();
        story.device(HELLO);
        story.device(LISTEN);
        let leaves = match disconnect {
            true => story.packet(Packet::Disconnect),
            false => story.device(r#"{"type":"goodbye","session_id":""}"#),
        };
        assert_eq!(leaves, if disconnect { vec![Action::Close(Reason::Left)] } else { vec![] });
        assert!(!story.core.has_call(), "nobody can take it over");
        assert!(!story.core.is_over(), "but it goes on");
        assert_eq!(story.lost(), if disconnect { vec![] } else { vec![Action::Close(Reason::Left)] });
        assert_eq!(traffic(story.gone(failed("connect"))), [Action::HangUp(1001), dial(B)]);
        assert_eq!(said(&story.open()), [HELLO_UP]);
        let actions = story.server(SERVER_HELLO);
        let reason = if disconnect { EndReason::DeviceDisconnected } else { EndReason::DeviceGoodbye };
        assert_eq!(actions[..2], [say(LISTEN), farewell("s1", reason, 0)]);
        assert_eq!(actions[2], Action::HangUp(1000));
        assert_eq!((summary(&actions).reason, summary(&actions).answered), (reason, false));
        assert!(story.core.is_over());
    }
}

#[test]
fn last_words_that_no_server_takes_end_with_the_deadline() {
    let mut story = Story::online();
    story.device(HELLO);
    story.device(LISTEN);
    story.packet(Packet::Disconnect);
    let actions = story.wait(9_000);
    assert_eq!(told(&actions), [""; 0]);
    assert_eq!(summary(&actions).reason, EndReason::DeviceDisconnected);
    assert!(story.core.is_over());
}

#[test]
fn hanging_up_while_dialling_ends_the_dial_when_nothing_was_said() {
    let mut story = Story::online();
    story.device(HELLO);
    let actions = story.device(r#"{"type":"goodbye"}"#);
    assert_eq!(actions[0], Action::HangUp(1000));
    assert_eq!((actions.len(), summary(&actions).reason), (2, EndReason::DeviceGoodbye));
    assert_eq!(
        story.device(r#"{"type":"abort"}"#),
        [publish(r#"{"type":"goodbye"}"#)],
        "no id was ever given"
    );
}

#[test]
fn a_second_hello_replaces_the_call_without_a_goodbye() {
    let mut story = Story::in_call();
    let actions = story.device(HELLO);
    assert_eq!(actions[..2], [farewell("s1", EndReason::Replaced, 0), Action::HangUp(1000)]);
    assert_eq!((summary(&actions).reason, summary(&actions).ssrc), (EndReason::Replaced, Some(0x1001)));
    assert_eq!(actions[3..], [Action::Grant, dial(B)], "spread over the list");
    assert_eq!(story.core.ssrc(), Some(0x1002));
    story.open();
    let answer = reply(2, "s2", r#"{"sample_rate":24000}"#);
    assert_eq!(traffic(story.server(&SERVER_HELLO.replace("s1", "s2"))), [answer]);
}

#[test]
fn several_hellos_at_once_leave_one_call() {
    let mut story = Story::online();
    for n in 1..5 {
        let actions = story.device(HELLO);
        let ended = actions.iter().filter(|action| matches!(action, Action::Ended(_))).count();
        assert_eq!(ended, usize::from(n > 1));
        assert_eq!(told(&actions), [""; 0]);
    }
    assert_eq!(story.core.ssrc(), Some(0x1004));
}

#[test]
fn a_gateway_that_is_full_says_so() {
    let mut story = Story::online();
    let mut out = Vec::new();
    let mut cx = Cx {
        now: story.now,
        config: &story.config,
        servers: &mut story.servers,
        ids: &story.ids,
        out: &mut out,
    };
    story.core.packet(publication(HELLO.as_bytes()), &mut cx);
    story.core.granted(Grant { allowed: false, ..grant(1) }, &mut cx);
    assert_eq!(out[2..5], no_server(1, EndReason::Refused));
    assert_eq!(summary(&out).reason, EndReason::Refused);
    assert_eq!(story.core.deadline(), Some(story.start + Duration::from_secs(90)), "only its keep alive");
}

#[test]
fn servers_that_failed_lately_are_tried_last_for_a_while() {
    let mut story = Story::online();
    story.device(HELLO);
    story.gone(failed("connect"));
    story.open();
    story.server(SERVER_HELLO);
    // b, c, a; then c, b, a; then a's turn comes, and it is passed over.
    assert_eq!(story.device(HELLO).last(), Some(&dial(B)));
    assert_eq!(story.device(HELLO).last(), Some(&dial(C)));
    assert_eq!(story.device(HELLO).last(), Some(&dial(B)));
    story.wait(30_000);
    story.drive(|core, cx| core.packet(Packet::PingReq, cx));
    story.device(HELLO);
    story.device(HELLO);
    assert_eq!(story.device(HELLO).last(), Some(&dial(A)));
    story.open();
    let recovered = Note::ServerRecovered { url: A.to_owned(), after: Duration::from_secs(30) };
    assert_eq!(story.server(SERVER_HELLO)[0], Action::Note(recovered));
}

#[test]
fn with_one_server_a_failure_delays_nothing() {
    let mut story = Story::online();
    story.config.websocket.production = servers(&[A]);
    story.device(HELLO);
    story.gone(failed("connect"));
    assert_eq!(story.device(HELLO), [Action::Grant, dial(A)]);
    let again = story.gone(failed("connect"));
    let news = again.iter().any(|action| matches!(action, Action::Note(Note::ServerFailing { .. })));
    assert!(!news, "logged once per change");
}

#[test]
fn listed_devices_call_development_servers_and_two_part_ids_sign_a_stand_in() {
    let mut story = Story::new();
    story.config.websocket.development = servers(&[C]);
    story.config.websocket.development_macs = vec![mac()];
    story.packet(connect("GID@@@aa_bb_cc_dd_ee_ff", 60));
    for secret in [None, crate::config::Secret::new("secret")] {
        story.config.websocket.secret = secret.clone();
        let actions = story.device(HELLO);
        let Some(Action::Dial(request)) = actions.last() else { panic!("{actions:?}") };
        assert_eq!(request.server, server(C));
        assert_eq!(request.client_id.as_deref(), secret.map(|_| "default-client-id"));
    }
}

#[test]
fn without_any_server_the_device_hears_at_once() {
    let mut story = Story::online();
    story.config.websocket.production.clear();
    assert_eq!(story.device(HELLO)[2..5], no_server(1, EndReason::NoServer));
}

/// The dials that so many hellos cost, each with something else behind it.
fn dials(story: &mut Story, hellos: usize, other: &str) -> usize {
    let mut actions = Vec::new();
    for _ in 0..hellos {
        actions.extend(story.device(HELLO));
        actions.extend(story.device(other));
    }
    actions.iter().filter(|action| matches!(action, Action::Dial(_))).count()
}

#[test]
fn hellos_without_end_cost_a_dial_in_a_second() {
    let mut story = Story::online();
    // Replaced, or hung up, before they are answered.
    assert_eq!(dials(&mut story, 100, LISTEN), 32);
    story.wait(999);
    assert_eq!(story.device(HELLO), [Action::Count(Counter::BadDeviceText)]);
    story.wait(1);
    assert_eq!(dials(&mut story, 100, r#"{"type":"goodbye"}"#), 1);
    story.wait(1_000);
    assert_eq!(dials(&mut story, 100, "[]"), 1);
    // The one that was taken is served, and after an answer hellos are as good as ever.
    story.open();
    assert_eq!(told(&story.server(SERVER_HELLO)).len(), 1);
    assert_eq!(dials(&mut story, 100, "[]"), 32);
}
