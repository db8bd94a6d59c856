//! A chat server fails in mid-call, and the call goes on with the next one.

use super::*;

const HELLO_2: &str = r#"{"type":"hello","session_id":"s2"}"#;

/// The pauses before each redial, in milliseconds, while no server takes the call.
fn pauses(story: &mut Story, count: usize) -> Vec<u64> {
    let mut pauses = Vec::new();
    while pauses.len() < count {
        let before = story.ms();
        let at = story.core.deadline().unwrap();
        let ms = (at - story.now).as_micros().div_ceil(1000) as u64;
        let actions = story.wait(ms);
        if actions.iter().any(|action| matches!(action, Action::Dial(_))) {
            pauses.push(story.ms() - before);
            story.gone(failed("connect"));
        }
        story.core.heard(story.now);
    }
    pauses
}

#[test]
fn the_call_goes_on_with_the_next_server() {
    let mut story = Story::talking();
    story.device(LISTEN);
    story.server(TTS_START);
    let failure = Failure { stage: "live", why: "the server closed the WebSocket with code 1011".to_owned() };
    let actions = story.gone(Gone::Closed(Some(1011)));
    let [count, failing, hang_up, Action::Note(Note::Redialling { url, failure: why, pause }), stop] =
        &actions[..]
    else {
        panic!("{actions:?}");
    };
    assert_eq!([count, hang_up], [&Action::Count(Counter::DialFailed("live")), &Action::HangUp(1001)]);
    assert!(matches!(failing, Action::Note(Note::ServerFailing { .. })));
    assert_eq!((url.as_str(), why), (A, &failure));
    assert!((200..=250).contains(&pause.as_millis()), "{pause:?}");
    assert_eq!(
        *stop,
        publish(r#"{"type":"tts","session_id":"s1","state":"stop"}"#),
        "speech that was cut off"
    );

    // In the gap audio is dropped, text waits.
    let abort = r#"{"type":"abort","session_id":"s1"}"#;
    assert_eq!(story.up(2, b"\x08two"), Err(Discard::NoServer));
    assert_eq!(story.device(abort), [Action::FlushAudio(0x1001)]);
    assert_eq!(story.wait(250), [redial(B)]);
    story.wait(10);
    assert_eq!(story.open(), [say(HELLO_UP)]);
    assert_eq!(story.up(3, b"\x08two"), Err(Discard::NoServer));

    let actions = story.server(HELLO_2);
    assert_eq!(actions[0], Action::Count(Counter::Redialled));
    let goes_on = Note::Redialled { url: B.to_owned(), after: Duration::from_millis(260) };
    assert_eq!(actions[1], Action::Note(goes_on));
    assert_eq!(actions[2..], [say(&LISTEN.replace("s1", "s2")), say(&abort.replace("s1", "s2"))]);

    // The device keeps id, key and sequences; ids are mapped both ways.
    assert_eq!(story.server(&TTS_START.replace("s1", "s2")), [publish(TTS_START)]);
    assert_eq!(story.device(LISTEN), [say(&LISTEN.replace("s1", "s2"))]);
    assert_eq!(story.server(r#"{"type":"llm"}"#), [publish(r#"{"session_id":"s1","type":"llm"}"#)]);
    assert_eq!(story.up(4, b"\x08four"), Ok(headed(7, b"\x08four")));
    let heard = story.down(&headed(9, b"\x08a")).unwrap();
    assert_eq!(story.heard(&heard), [(1, 9, b"\x08a".to_vec())]);
    let end = story.device(r#"{"type":"goodbye","session_id":"s1"}"#);
    assert_eq!(end[0], farewell("s2", EndReason::DeviceGoodbye, 260));
    let summary = summary(&end);
    assert_eq!((&*summary.session_id, summary.facts.redials, summary.facts.dropped), ("s1", 1, 2));
    assert_eq!(summary.server, Some(server(B)));
}

#[test]
fn what_ends_a_websocket_normally_ends_the_call_and_all_else_redials() {
    for (gone, redials) in [
        (Gone::Closed(None), false),
        (Gone::Closed(Some(1000)), false),
        (Gone::Closed(Some(1001)), true),
        (Gone::Closed(Some(1011)), true),
        (Gone::Closed(Some(4000)), true),
        (failed("live"), true),
    ] {
        let mut story = Story::in_call();
        let actions = story.gone(gone.clone());
        let ended = actions.iter().any(|action| matches!(action, Action::Ended(_)));
        assert_eq!((ended, told(&actions).len()), (!redials, usize::from(!redials)), "{gone:?}");
        assert_eq!(traffic(story.wait(250)).len(), usize::from(redials), "{gone:?}");
    }
}

#[test]
fn one_server_per_attempt_and_the_next_one_first() {
    let mut story = Story::in_call();
    story.gone(failed("live"));
    for url in [B, C, A, B] {
        let actions = story.wait(2_500);
        assert!(actions.contains(&redial(url)), "{url}: {actions:?}");
        let actions = traffic(story.gone(failed("connect")));
        assert_eq!(actions, [Action::HangUp(1001)]);
    }
    story.config.websocket.production = servers(&[C]);
    assert!(story.wait(30_000).contains(&redial(C)), "the list of now");
}

#[test]
fn a_server_listed_twice_is_not_its_own_next() {
    let list = servers(&[A, A, B]);
    let next = |from: &str| Servers::after(&list, &server(from)).map(|server| server.url.clone());
    assert_eq!(next(A).as_deref(), Some(B));
    assert_eq!(next(B).as_deref(), Some(A));
    assert_eq!(next(C).as_deref(), Some(A), "no longer listed");
    assert_eq!(Servers::after(&list[..2], &list[0]).map(|server| server.url.clone()).as_deref(), Some(A));
    assert_eq!(Servers::after(&[], &server(A)), None);
}

#[test]
fn pauses_double_up_to_the_longest_with_at_most_a_fifth_taken_off() {
    let mut seen = Vec::new();
    for _ in 0..20 {
        let mut story = Story::in_call();
        story.config.websocket.reconnect.give_up_after = Duration::ZERO;
        story.config.websocket.call_idle = Duration::ZERO;
        for _ in 0..seen.len() {
            // Another seed each time.
            story.device(HELLO);
            story.open();
            story.server(SERVER_HELLO);
        }
        story.gone(failed("live"));
        let pauses = pauses(&mut story, 9);
        for (pause, full) in pauses.iter().zip([250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000])
        {
            assert!((full * 4 / 5..=full + 1).contains(pause), "{pauses:?}");
        }
        seen.push(pauses[0]);
    }
    assert!(
        seen.iter().min() < seen.iter().max(),
        "calls that failed together do not redial together: {seen:?}"
    );
}

#[test]
fn other_settings_make_other_pauses_and_are_taken_live() {
    let mut story = Story::in_call();
    story.config.websocket.reconnect.initial = Duration::from_millis(1_000);
    story.config.websocket.reconnect.multiplier = 10.0;
    story.config.websocket.reconnect.max = Duration::from_millis(5_000);
    story.gone(failed("live"));
    let pauses = pauses(&mut story, 3);
    assert!((800..=1_001).contains(&pauses[0]) && pauses[1..].iter().all(|ms| (4_000..=5_001).contains(ms)));

    let mut story = Story::in_call();
    story.config.websocket.reconnect.initial = Duration::ZERO;
    story.gone(failed("live"));
    for _ in 0..1_100 {
        assert!(story.drive(Core::timeout).iter().any(|action| matches!(action, Action::Dial(_))));
        story.gone(failed("connect"));
    }
}

#[test]
fn only_ten_seconds_of_life_make_the_pauses_short_again() {
    for (live_ms, short) in [(9_999, false), (10_000, true)] {
        let mut story = Story::in_call();
        story.gone(failed("live"));
        story.wait(250);
        story.gone(failed("connect"));
        story.wait(500);
        story.open();
        story.server(HELLO_2);
        story.wait(live_ms);
        let actions = story.gone(failed("live"));
        let Some(Action::Note(Note::Redialling { pause, .. })) = actions.last() else {
            panic!("{actions:?}")
        };
        let expected = if short { 200..=250 } else { 800..=1_000 };
        assert!(expected.contains(&pause.as_millis()), "{live_ms}: {pause:?}");
    }
}

#[test]
fn redialling_is_given_up_with_one_goodbye_and_a_reason() {
    let mut story = Story::talking();
    story.gone(failed("live"));
    let mut ended = Vec::new();
    for _ in 0..200 {
        story.core.heard(story.now);
        let actions = story.wait(1_000);
        if actions.iter().any(|action| matches!(action, Action::Dial(_))) {
            story.gone(failed("connect"));
        }
        if actions.iter().any(|action| matches!(action, Action::Ended(_))) {
            ended = actions;
            break;
        }
    }
    assert_eq!(story.ms(), 110_000);
    let alert = message::alert(
        Some("s1"),
        "连接中断 / Call lost",
        "与聊天服务器的连接中断 / The connection to the chat server was lost",
        "sad",
    );
    assert_eq!(ended[..3], [Action::HangUp(1000), publish(&alert), goodbye("s1")]);
    assert_eq!(summary(&ended).reason, EndReason::ServerLost);
}

#[test]
fn never_giving_up_means_never() {
    let mut story = Story::talking();
    story.config.websocket.reconnect.give_up_after = Duration::ZERO;
    story.config.websocket.call_idle = Duration::ZERO;
    story.gone(failed("live"));
    for _ in 0..2_000 {
        story.core.heard(story.now);
        if story.wait(1_000).iter().any(|action| matches!(action, Action::Dial(_))) {
            story.gone(failed("connect"));
        }
    }
    assert!(story.core.has_call());
}

#[test]
fn a_redialled_server_has_its_time_too() {
    let mut story = Story::talking();
    story.gone(failed("live"));
    assert_eq!(story.wait(250), [redial(B)]);
    // No connection: on after 3 s. No hello: once more after 3 s, on after 4 s.
    assert_eq!(traffic(story.wait(3_000)), [Action::HangUp(1001)]);
    assert_eq!(story.wait(500), [redial(C)]);
    story.open();
    assert_eq!(traffic(story.wait(4_000)), [say(HELLO_UP), Action::HangUp(1001)]);
    assert_eq!(story.wait(1_000), [redial(A)]);

    // The only server may take longer, but not for ever.
    let mut story = Story::talking();
    story.config.websocket.production = servers(&[A]);
    story.gone(failed("live"));
    let dialled = story.watch(250).pop().unwrap();
    assert_eq!(dialled.1, redial(A));
    let overdue: Vec<_> =
        story.watch(9_000).into_iter().filter(|(_, action)| *action == Action::HangUp(1001)).collect();
    assert_eq!(overdue.len(), 1);
    assert!((8_500..8_502).contains(&(overdue[0].0 - dialled.0)), "{overdue:?}");
}

#[test]
fn a_listen_that_waits_is_not_said_twice() {
    let mut story = Story::talking();
    story.device(LISTEN);
    story.gone(failed("live"));
    let stop = r#"{"type":"listen","state":"stop"}"#;
    story.device(stop);
    story.wait(250);
    story.open();
    assert_eq!(said(&story.server(HELLO_2)), [stop]);
    story.gone(failed("live"));
    story.wait(500);
    story.open();
    assert_eq!(said(&story.server(HELLO_2)), [stop], "the last one, again");
}

#[test]
fn hanging_up_in_the_gap_ends_the_call_at_once() {
    let mut story = Story::talking();
    story.gone(failed("live"));
    story.device(LISTEN);
    let actions = story.device(r#"{"type":"goodbye"}"#);
    assert_eq!(actions[0], Action::HangUp(1000));
    assert_eq!(summary(&actions).reason, EndReason::DeviceGoodbye);
    assert_eq!(story.wait(10_000), []);
}

#[test]
fn too_much_text_in_the_gap_ends_the_call() {
    let mut story = Story::talking();
    story.gone(failed("live"));
    for _ in 0..128 {
        story.device(LISTEN);
    }
    let actions = story.device(LISTEN);
    assert_eq!(summary(&actions).reason, EndReason::Overflow);
    assert_eq!(told(&actions).last(), Some(&r#"{"type":"goodbye","session_id":"s1"}"#));
    assert_eq!(told(&actions).len(), 2, "and why");
}

#[test]
fn text_that_waited_for_a_datagram_outlives_its_server() {
    let mut story = Story::in_call();
    let system = r#"{"session_id":"s1","type":"system","command":"reboot"}"#;
    story.server(TTS_START);
    story.down(&headed(1, b"\x08a")).unwrap();
    story.server(system);
    let actions = story.gone(failed("live"));
    assert!(actions.contains(&Action::Count(Counter::Dropped(Discard::NoServer))));
    let stop = r#"{"type":"tts","session_id":"s1","state":"stop"}"#;
    assert_eq!(told(&actions), [TTS_START, system, stop]);
}

#[test]
fn what_a_server_said_that_never_greeted_is_forgotten() {
    let mut story = Story::talking();
    story.gone(failed("live"));
    story.wait(250);
    story.open();
    story.server(r#"{"type":"llm"}"#);
    story.down(&headed(1, b"\x08a")).unwrap();
    assert_eq!(told(&story.gone(Gone::Closed(Some(1000)))), [""; 0], "1000 before its hello is a failure");
    story.wait(500);
    story.open();
    assert_eq!(told(&story.server(HELLO_2)), [""; 0]);
}

#[test]
fn stale_news_of_a_websocket_that_is_gone_changes_nothing() {
    let mut story = Story::talking();
    story.gone(failed("live"));
    assert_eq!(story.server(TTS_START), []);
    assert_eq!(story.server(r#"{"type":"goodbye"}"#), []);
    assert_eq!(story.gone(failed("live")), []);
    assert_eq!(story.down(&headed(1, b"\x08a")), Err(Discard::NoServer));
    assert_eq!(story.drive(Core::backend_blocked), []);
    assert_eq!(story.drive(Core::backend_open), []);
    assert!(story.core.has_call());
}

#[test]
fn only_speech_that_was_going_on_is_ended_by_a_redial() {
    for (said_before, ended) in [(&[TTS_START][..], 1), (&[TTS_START, TTS_STOP], 0), (&[], 0)] {
        let mut story = Story::talking();
        for text in said_before {
            story.server(text);
        }
        let mut actions = story.gone(failed("live"));
        actions.extend(story.wait(400));
        actions.extend(story.open());
        actions.extend(story.server(SERVER_HELLO));
        let stops = told(&actions).into_iter().filter(|text| text.contains("stop")).count();
        assert_eq!(stops, ended, "{said_before:?}: {actions:?}");
    }
}

#[test]
fn pauses_are_spread_evenly_over_their_last_fifth() {
    let mut story = Story::in_call();
    let reconnect = &mut story.config.websocket.reconnect;
    (reconnect.initial, reconnect.max) = (Duration::from_secs(5), Duration::from_secs(5));
    reconnect.give_up_after = Duration::ZERO;
    story.config.websocket.call_idle = Duration::ZERO;
    story.gone(failed("live"));
    let mut buckets = [0; 5];
    for pause in pauses(&mut story, 200) {
        buckets[((pause - 4_000) / 201) as usize] += 1;
    }
    assert!(buckets.into_iter().all(|count| (15..=80).contains(&count)), "{buckets:?}");
}

/// Waits for the next redial, with a device that shows life; None when the call ends before.
fn next_dial(story: &mut Story) -> Option<u64> {
    loop {
        story.core.heard(story.now);
        let step =
            story.core.deadline()?.saturating_duration_since(story.now).as_micros().div_ceil(1000) as u64;
        let actions = story.wait(step);
        if actions.iter().any(|action| matches!(action, Action::Ended(_))) {
            return None;
        }
        if actions.iter().any(|action| matches!(action, Action::Dial(_))) {
            return Some(story.ms());
        }
    }
}

/// A call of one server that gives up after so many milliseconds.
fn giving_up_after(ms: u64) -> Story {
    let mut story = Story::talking();
    story.config.websocket.production = servers(&[A]);
    story.config.websocket.reconnect.give_up_after = Duration::from_millis(ms);
    story.config.websocket.call_idle = Duration::ZERO;
    story
}

#[test]
fn each_failure_of_a_server_that_works_is_followed_by_a_redial() {
    for (give_up_ms, live_ms) in [
        (3_000, 3_500),
        (20_000, 6_500),
        (1_000, 0),
        (1, 100),
        (5_000, 9_999),
        (110_000, 9_000),
        (3_000, 10_000),
    ] {
        let mut story = giving_up_after(give_up_ms);
        let mut pauses = Vec::new();
        for n in 0..40 {
            let lost = story.ms();
            story.gone(Gone::Closed(Some(1011)));
            let dialled = next_dial(&mut story);
            let dialled =
                dialled.unwrap_or_else(|| panic!("{give_up_ms}, {live_ms}: failure {n} has no dial"));
            pauses.push(dialled - lost);
            story.open();
            story.server(SERVER_HELLO);
            for _ in 0..live_ms / 100 {
                story.wait(100);
                story.core.heard(story.now);
            }
        }
        // The pauses grow unless it lived for 10 s.
        let nominal = |n: i32| if live_ms < 10_000 { (250 << n.min(7)).min(30_000) } else { 250 };
        for (pause, full) in pauses.into_iter().zip((0..).map(nominal)) {
            assert!((full * 4 / 5..=full + 1).contains(&pause), "{give_up_ms}, {live_ms}: {pause}");
        }
    }
}

#[test]
fn redialling_is_given_up_so_long_after_the_last_loss_and_not_before_one_redial_failed() {
    for (give_up_ms, live_ms) in [(3_000, 3_500), (20_000, 6_500), (5_000, 0), (110_000, 9_999)] {
        let mut story = giving_up_after(give_up_ms);
        for _ in 0..3 {
            story.gone(Gone::Closed(Some(1011)));
            next_dial(&mut story).unwrap();
            story.open();
            story.server(SERVER_HELLO);
            story.wait(live_ms);
            story.core.heard(story.now);
        }
        let lost = story.ms();
        story.gone(Gone::Closed(Some(1011)));
        while next_dial(&mut story).is_some() {
            story.gone(failed("connect"));
        }
        assert_eq!(story.ms() - lost, give_up_ms, "{live_ms}");
    }
    // The first redial comes after the time to give up: it is the only one.
    let mut story = giving_up_after(100);
    let lost = story.ms();
    story.gone(failed("live"));
    let dialled = next_dial(&mut story).unwrap();
    assert!(dialled >= lost + 200);
    story.gone(failed("connect"));
    assert_eq!(summary(&story.wait(0)).reason, EndReason::ServerLost);
}

#[test]
fn the_first_redial_is_not_cut_off_by_giving_up() {
    let mut story = giving_up_after(1_000);
    story.gone(failed("live"));
    next_dial(&mut story).unwrap();
    assert_eq!(story.wait(2_000), []);
    story.open();
    assert_eq!(story.wait(2_000), []);
    assert!(story.server(SERVER_HELLO).contains(&Action::Count(Counter::Redialled)));
    assert_eq!(story.wait(5_000), []);
    // One that gets no answer is: no other follows.
    let lost = story.ms();
    story.gone(failed("live"));
    let dialled = next_dial(&mut story).unwrap();
    assert_eq!(next_dial(&mut story), None);
    assert!((8_500..=8_502).contains(&(story.ms() - dialled)) && story.ms() > lost + 1_000);
}
