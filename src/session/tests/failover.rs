//! A chat server fails during a call, which continues with the next one.

use super::*;

const HELLO_2: &str = r#"{"type":"hello","session_id":"s2"}"#;

/// The pauses before the redials, in milliseconds, while every server fails.
fn redial_delays(scenario: &mut Scenario, count: usize) -> Vec<u64> {
    let (mut pauses, mut before) = (Vec::new(), scenario.shell.elapsed_ms());
    while pauses.len() < count {
        let at = scenario.core.deadline().unwrap();
        let ms = (at - scenario.shell.now).as_micros().div_ceil(1000) as u64;
        let actions = scenario.wait(ms);
        if actions.iter().any(|action| matches!(action, Action::Dial(_))) {
            pauses.push(scenario.shell.elapsed_ms() - before);
            scenario.close_backend(failed(BackendStage::Connect));
            before = scenario.shell.elapsed_ms();
        }
        scenario.core.refresh_keep_alive(scenario.shell.now);
    }
    pauses
}

/// What the device is told of a redial that takes long.
fn reconnecting() -> String {
    message::alert(
        Some("s1"),
        "重新连接 / Reconnecting",
        "与聊天服务器的连接中断，正在重新连接 / The connection to the chat server was lost, connecting again",
        "neutral",
    )
}

#[test]
fn a_redial_of_more_than_3_s_is_shown_and_its_success_too() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.close_backend(failed(BackendStage::Live));
    assert_eq!(texts_to_device(&scenario.wait(2_999)), [""; 0]);
    assert_eq!(texts_to_device(&scenario.wait(1)), [reconnecting()]);
    assert_eq!(texts_to_device(&scenario.wait(1_000)), [""; 0], "once");
    scenario.wait(1_000);
    scenario.open_backend();
    let back = scenario.server_sends(SERVER_HELLO);
    assert!(texts_to_device(&back)[0].contains("已恢复 / Connected"), "{back:?}");
    // A short one is not shown.
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(1_000);
    scenario.open_backend();
    assert_eq!(texts_to_device(&scenario.server_sends(SERVER_HELLO)), [""; 0]);
}

#[test]
fn the_call_goes_on_with_the_next_server() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.device_sends(LISTEN);
    scenario.server_sends(TTS_START);
    let failure = BackendFailure::new(BackendStage::Live, "the server closed the WebSocket with code 1011");
    let actions = scenario.close_backend(BackendClosed::CloseFrame(Some(1011), "".into()));
    let [count, failing, hang_up, Action::Log(LogEvent::Redialling { url, failure: why, pause }), stop] =
        &actions[..]
    else {
        panic!("{actions:?}");
    };
    assert_eq!(
        [count, hang_up],
        [&Action::Count(Counter::DialFailed(BackendStage::Live)), &Action::CloseBackend(1001)]
    );
    assert!(matches!(failing, Action::Log(LogEvent::ServerFailing { .. })));
    assert_eq!((url.as_str(), why), (A, &failure));
    assert!((200..=250).contains(&pause.as_millis()), "{pause:?}");
    assert_eq!(
        *stop,
        publish(r#"{"type":"tts","session_id":"s1","state":"stop"}"#),
        "speech that was cut off"
    );

    // During the pause audio is dropped, and text is queued.
    let abort = r#"{"type":"abort","session_id":"s1"}"#;
    assert_eq!(scenario.uplink(2, b"\x08two"), Err(DropReason::NoServer));
    assert_eq!(scenario.device_sends(abort), [Action::FlushAudio(0x1001)]);
    assert_eq!(scenario.wait(250), [redial(B)]);
    scenario.wait(10);
    assert_eq!(scenario.open_backend(), [send_text(HELLO_TO_SERVER)]);
    assert_eq!(scenario.uplink(3, b"\x08two"), Err(DropReason::NoServer));

    let actions = scenario.server_sends(HELLO_2);
    assert_eq!(actions[0], Action::Count(Counter::Redialled));
    let goes_on = LogEvent::Redialled { url: B.to_owned(), after: Duration::from_millis(260) };
    assert_eq!(actions[1], Action::Log(goes_on));
    assert_eq!(actions[2..], [send_text(&LISTEN.replace("s1", "s2")), send_text(&abort.replace("s1", "s2"))]);

    // The device keeps its id, key and sequences; ids are translated in both directions.
    assert_eq!(scenario.server_sends(&TTS_START.replace("s1", "s2")), [publish(TTS_START)]);
    assert_eq!(scenario.device_sends(LISTEN), [send_text(&LISTEN.replace("s1", "s2"))]);
    assert_eq!(scenario.server_sends(r#"{"type":"llm"}"#), [publish(r#"{"session_id":"s1","type":"llm"}"#)]);
    assert_eq!(scenario.uplink(4, b"\x08four"), Ok(frame_with_header(7, b"\x08four")));
    let heard = scenario.downlink(&frame_with_header(9, b"\x08a")).unwrap();
    assert_eq!(scenario.decrypt_datagrams(&heard), [(1, 9, b"\x08a".to_vec())]);
    let end = scenario.device_sends(r#"{"type":"goodbye","session_id":"s1"}"#);
    assert_eq!(end[0], server_goodbye("s2", EndReason::DeviceGoodbye, 260));
    let summary = summary(&end);
    assert_eq!((&*summary.session_id, summary.stats.redials, summary.stats.dropped), ("s1", 1, 2));
    assert_eq!(summary.server, Some(server(B)));
}

#[test]
fn a_normal_close_ends_the_call_and_any_other_redials() {
    for (gone, redials) in [
        (BackendClosed::CloseFrame(None, "".into()), false),
        (BackendClosed::CloseFrame(Some(1000), "".into()), false),
        (BackendClosed::CloseFrame(Some(1001), "".into()), true),
        (BackendClosed::CloseFrame(Some(1011), "".into()), true),
        (failed(BackendStage::Live), true),
    ] {
        let mut scenario = Scenario::in_call();
        let actions = scenario.close_backend(gone.clone());
        let ended = actions.iter().any(|action| matches!(action, Action::CallEnded(_)));
        assert_eq!((ended, texts_to_device(&actions).len()), (!redials, usize::from(!redials)), "{gone:?}");
        assert_eq!(without_logs_and_counters(scenario.wait(250)).len(), usize::from(redials), "{gone:?}");
    }
}

#[test]
fn one_server_per_attempt_and_the_next_one_first() {
    let mut scenario = Scenario::in_call();
    scenario.close_backend(failed(BackendStage::Live));
    for url in [B, C, A, B] {
        let actions = scenario.wait(2_500);
        assert!(actions.contains(&redial(url)), "{url}: {actions:?}");
        let actions = without_logs_and_counters(scenario.close_backend(failed(BackendStage::Connect)));
        assert_eq!(actions, [Action::CloseBackend(1001)]);
    }
    scenario.shell.config.websocket.production = servers(&[C]);
    assert!(scenario.wait(30_000).contains(&redial(C)), "the list of now");
}

#[test]
fn a_server_listed_twice_is_not_its_own_next() {
    let list = servers(&[A, A, B]);
    let next = |from: &str| {
        ServerHealth::default().next_after(&list, &server(from)).map(|server| server.url.clone())
    };
    assert_eq!(next(A).as_deref(), Some(B));
    assert_eq!(next(B).as_deref(), Some(A));
    assert_eq!(next(C).as_deref(), Some(A), "no longer listed");
    assert_eq!(
        ServerHealth::default().next_after(&list[..2], &list[0]).map(|server| server.url.clone()).as_deref(),
        Some(A)
    );
    assert_eq!(ServerHealth::default().next_after(&[], &server(A)), None);
}

#[test]
fn delays_double_up_to_the_maximum_with_at_most_a_fifth_of_jitter() {
    let mut seen = Vec::new();
    for _ in 0..20 {
        let mut scenario = Scenario::in_call();
        scenario.shell.config.websocket.reconnect.give_up_after = Duration::ZERO;
        scenario.shell.config.websocket.call_idle = Duration::ZERO;
        scenario.shell.config.mqtt.hello_limit = 0;
        for _ in 0..seen.len() {
            // Another seed each time.
            scenario.device_sends(HELLO);
            scenario.open_backend();
            scenario.server_sends(SERVER_HELLO);
        }
        scenario.close_backend(failed(BackendStage::Live));
        let pauses = redial_delays(&mut scenario, 9);
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
fn reconnect_settings_change_the_delays_of_running_calls() {
    let mut scenario = Scenario::in_call();
    scenario.shell.config.websocket.reconnect.initial = Duration::from_millis(1_000);
    scenario.shell.config.websocket.reconnect.multiplier = 10.0;
    scenario.shell.config.websocket.reconnect.max = Duration::from_millis(5_000);
    scenario.close_backend(failed(BackendStage::Live));
    let pauses = redial_delays(&mut scenario, 3);
    assert!((800..=1_001).contains(&pauses[0]) && pauses[1..].iter().all(|ms| (4_000..=5_001).contains(ms)));

    let mut scenario = Scenario::in_call();
    scenario.shell.config.websocket.reconnect.initial = Duration::ZERO;
    scenario.close_backend(failed(BackendStage::Live));
    for _ in 0..1_100 {
        assert!(scenario.drive(Core::on_timeout).iter().any(|action| matches!(action, Action::Dial(_))));
        scenario.close_backend(failed(BackendStage::Connect));
    }
}

#[test]
fn only_ten_live_seconds_reset_the_backoff() {
    for (live_ms, short) in [(9_999, false), (10_000, true)] {
        let mut scenario = Scenario::in_call();
        scenario.close_backend(failed(BackendStage::Live));
        scenario.wait(250);
        scenario.close_backend(failed(BackendStage::Connect));
        scenario.wait(500);
        scenario.open_backend();
        scenario.server_sends(HELLO_2);
        scenario.wait(live_ms);
        let actions = scenario.close_backend(failed(BackendStage::Live));
        let Some(Action::Log(LogEvent::Redialling { pause, .. })) = actions.last() else {
            panic!("{actions:?}")
        };
        let expected = if short { 200..=250 } else { 800..=1_000 };
        assert!(expected.contains(&pause.as_millis()), "{live_ms}: {pause:?}");
    }
}

#[test]
fn redialling_is_given_up_with_one_goodbye_and_a_reason() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.close_backend(failed(BackendStage::Live));
    let mut ended = Vec::new();
    for _ in 0..200 {
        scenario.core.refresh_keep_alive(scenario.shell.now);
        let actions = scenario.wait(1_000);
        if actions.iter().any(|action| matches!(action, Action::Dial(_))) {
            scenario.close_backend(failed(BackendStage::Connect));
        }
        if actions.iter().any(|action| matches!(action, Action::CallEnded(_))) {
            ended = actions;
            break;
        }
    }
    assert_eq!(scenario.shell.elapsed_ms(), 110_000);
    let told = scenario.wait(300);
    let alert = message::alert(
        Some("s1"),
        "连接中断 / Call lost",
        "与聊天服务器的连接中断 / The connection to the chat server was lost",
        "sad",
    );
    assert_eq!(ended[..2], [Action::CloseBackend(1000), goodbye("s1")]);
    assert_eq!(told, [publish(&alert)], "when the device has handled the goodbye");
    assert_eq!(summary(&ended).reason, EndReason::ServerLost);
}

#[test]
fn never_giving_up_means_never() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.shell.config.websocket.reconnect.give_up_after = Duration::ZERO;
    scenario.shell.config.websocket.call_idle = Duration::ZERO;
    scenario.close_backend(failed(BackendStage::Live));
    for _ in 0..2_000 {
        scenario.core.refresh_keep_alive(scenario.shell.now);
        if scenario.wait(1_000).iter().any(|action| matches!(action, Action::Dial(_))) {
            scenario.close_backend(failed(BackendStage::Connect));
        }
    }
    assert!(scenario.core.has_call());
}

#[test]
fn a_redialled_server_gets_the_full_timeouts() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.close_backend(failed(BackendStage::Live));
    assert_eq!(scenario.wait(250), [redial(B)]);
    // No connection: the next server after 3 s. No hello: repeated after 3 s, the next server after 4 s.
    assert_eq!(without_logs_and_counters(scenario.wait(2_750)), [publish(&reconnecting())]);
    assert_eq!(without_logs_and_counters(scenario.wait(250)), [Action::CloseBackend(1001)]);
    assert_eq!(scenario.wait(500), [redial(C)]);
    scenario.open_backend();
    assert_eq!(
        without_logs_and_counters(scenario.wait(4_000)),
        [send_text(HELLO_TO_SERVER), Action::CloseBackend(1001)]
    );
    assert_eq!(scenario.wait(1_000), [redial(A)]);

    // The only server has more time.
    let mut scenario = Scenario::with_udp_peer();
    scenario.shell.config.websocket.production = servers(&[A]);
    scenario.close_backend(failed(BackendStage::Live));
    let dialled = scenario.wait_timed(250).pop().unwrap();
    assert_eq!(dialled.1, redial(A));
    let overdue: Vec<_> = scenario
        .wait_timed(9_000)
        .into_iter()
        .filter(|(_, action)| *action == Action::CloseBackend(1001))
        .collect();
    assert_eq!(overdue.len(), 1);
    assert!((8_500..8_502).contains(&(overdue[0].0 - dialled.0)), "{overdue:?}");
}

#[test]
fn a_queued_listen_is_not_sent_twice() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.device_sends(LISTEN);
    scenario.close_backend(failed(BackendStage::Live));
    let stop = r#"{"type":"listen","state":"stop"}"#;
    scenario.device_sends(stop);
    scenario.wait(250);
    scenario.open_backend();
    assert_eq!(texts_to_server(&scenario.server_sends(HELLO_2)), [stop]);
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(500);
    scenario.open_backend();
    assert_eq!(texts_to_server(&scenario.server_sends(HELLO_2)), [stop], "the last one, again");
}

#[test]
fn hanging_up_during_a_redial_ends_the_call_at_once() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.close_backend(failed(BackendStage::Live));
    scenario.device_sends(LISTEN);
    let actions = scenario.device_sends(r#"{"type":"goodbye"}"#);
    assert_eq!(actions[0], Action::CloseBackend(1000));
    assert_eq!(summary(&actions).reason, EndReason::DeviceGoodbye);
    assert_eq!(scenario.wait(10_000), []);
}

#[test]
fn too_much_text_during_a_redial_ends_the_call() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.close_backend(failed(BackendStage::Live));
    for _ in 0..128 {
        scenario.device_sends(LISTEN);
    }
    let actions = scenario.device_sends(LISTEN);
    assert_eq!(summary(&actions).reason, EndReason::Overflow);
    assert_eq!(texts_to_device(&actions).last(), Some(&r#"{"type":"goodbye","session_id":"s1"}"#));
    assert_eq!(texts_to_device(&actions).len(), 1);
    assert_eq!(texts_to_device(&scenario.wait(300)).len(), 1, "and why");
}

#[test]
fn text_that_waited_for_a_datagram_outlives_its_server() {
    let mut scenario = Scenario::in_call();
    let system = r#"{"session_id":"s1","type":"system","command":"reboot"}"#;
    scenario.server_sends(TTS_START);
    scenario.downlink(&frame_with_header(1, b"\x08a")).unwrap();
    scenario.server_sends(system);
    let actions = scenario.close_backend(failed(BackendStage::Live));
    assert!(actions.contains(&Action::Count(Counter::Dropped(DropReason::NoServer))));
    let stop = r#"{"type":"tts","session_id":"s1","state":"stop"}"#;
    assert_eq!(texts_to_device(&actions), [TTS_START, system, stop]);
}

#[test]
fn text_of_a_server_that_sent_no_hello_is_discarded() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(250);
    scenario.open_backend();
    scenario.server_sends(r#"{"type":"llm"}"#);
    scenario.downlink(&frame_with_header(1, b"\x08a")).unwrap();
    assert_eq!(
        texts_to_device(&scenario.close_backend(BackendClosed::CloseFrame(Some(1000), "".into()))),
        [""; 0],
        "1000 before its hello is a failure"
    );
    scenario.wait(500);
    scenario.open_backend();
    assert_eq!(texts_to_device(&scenario.server_sends(HELLO_2)), [""; 0]);
}

#[test]
fn late_events_of_a_closed_websocket_are_ignored() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.close_backend(failed(BackendStage::Live));
    assert_eq!(scenario.server_sends(TTS_START), []);
    assert_eq!(scenario.server_sends(r#"{"type":"goodbye"}"#), []);
    assert_eq!(scenario.close_backend(failed(BackendStage::Live)), []);
    assert_eq!(scenario.downlink(&frame_with_header(1, b"\x08a")), Err(DropReason::NoServer));
    assert_eq!(scenario.drive(Core::on_backend_blocked), []);
    assert_eq!(scenario.drive(Core::on_backend_open), []);
    assert!(scenario.core.has_call());
}

#[test]
fn a_redial_stops_only_running_speech() {
    for (said_before, ended) in [(&[TTS_START][..], 1), (&[TTS_START, TTS_STOP], 0), (&[], 0)] {
        let mut scenario = Scenario::with_udp_peer();
        for text in said_before {
            scenario.server_sends(text);
        }
        let mut actions = scenario.close_backend(failed(BackendStage::Live));
        actions.extend(scenario.wait(400));
        actions.extend(scenario.open_backend());
        actions.extend(scenario.server_sends(SERVER_HELLO));
        let stops = texts_to_device(&actions).into_iter().filter(|text| text.contains("stop")).count();
        assert_eq!(stops, ended, "{said_before:?}: {actions:?}");
    }
}

#[test]
fn jitter_is_uniform_over_the_last_fifth_of_the_delay() {
    let mut scenario = Scenario::in_call();
    let reconnect = &mut scenario.shell.config.websocket.reconnect;
    (reconnect.initial, reconnect.max) = (Duration::from_secs(5), Duration::from_secs(5));
    reconnect.give_up_after = Duration::ZERO;
    scenario.shell.config.websocket.call_idle = Duration::ZERO;
    scenario.close_backend(failed(BackendStage::Live));
    let mut buckets = [0; 5];
    for pause in redial_delays(&mut scenario, 200) {
        buckets[((pause - 4_000) / 201) as usize] += 1;
    }
    assert!(buckets.into_iter().all(|count| (15..=80).contains(&count)), "{buckets:?}");
}

/// Waits for the next redial while the device sends packets; `None` if the call ends before.
fn next_dial(scenario: &mut Scenario) -> Option<u64> {
    loop {
        scenario.core.refresh_keep_alive(scenario.shell.now);
        let step = scenario
            .core
            .deadline()?
            .saturating_duration_since(scenario.shell.now)
            .as_micros()
            .div_ceil(1000) as u64;
        let actions = scenario.wait(step);
        if actions.iter().any(|action| matches!(action, Action::CallEnded(_))) {
            return None;
        }
        if actions.iter().any(|action| matches!(action, Action::Dial(_))) {
            return Some(scenario.shell.elapsed_ms());
        }
    }
}

/// A call with one server, and this time to give up redialling, in milliseconds.
fn giving_up_after(ms: u64) -> Scenario {
    let mut scenario = Scenario::with_udp_peer();
    scenario.shell.config.websocket.production = servers(&[A]);
    scenario.shell.config.websocket.reconnect.give_up_after = Duration::from_millis(ms);
    scenario.shell.config.websocket.call_idle = Duration::ZERO;
    scenario
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
        let mut scenario = giving_up_after(give_up_ms);
        let mut pauses = Vec::new();
        for n in 0..40 {
            let lost = scenario.shell.elapsed_ms();
            scenario.device_sends(r#"{"type":"abort"}"#);
            scenario.close_backend(BackendClosed::CloseFrame(Some(1011), "".into()));
            let dialled = next_dial(&mut scenario);
            let dialled =
                dialled.unwrap_or_else(|| panic!("{give_up_ms}, {live_ms}: failure {n} has no dial"));
            pauses.push(dialled - lost);
            scenario.open_backend();
            scenario.server_sends(SERVER_HELLO);
            for _ in 0..live_ms / 100 {
                scenario.wait(100);
                scenario.core.refresh_keep_alive(scenario.shell.now);
            }
        }
        // The pauses grow unless the server was live for 10 s.
        let nominal = |n: i32| if live_ms < 10_000 { (250 << n.min(7)).min(30_000) } else { 250 };
        for (pause, full) in pauses.into_iter().zip((0..).map(nominal)) {
            assert!((full * 4 / 5..=full + 1).contains(&pause), "{give_up_ms}, {live_ms}: {pause}");
        }
    }
}

#[test]
fn redialling_is_given_up_so_long_after_the_last_loss_and_not_before_one_redial_failed() {
    for (give_up_ms, live_ms) in [(3_000, 3_500), (20_000, 6_500), (5_000, 0), (110_000, 9_999)] {
        let mut scenario = giving_up_after(give_up_ms);
        for _ in 0..3 {
            scenario.close_backend(BackendClosed::CloseFrame(Some(1011), "".into()));
            next_dial(&mut scenario).unwrap();
            scenario.open_backend();
            scenario.server_sends(SERVER_HELLO);
            scenario.wait(live_ms);
            scenario.core.refresh_keep_alive(scenario.shell.now);
        }
        scenario.device_sends(r#"{"type":"abort"}"#);
        let lost = scenario.shell.elapsed_ms();
        scenario.close_backend(BackendClosed::CloseFrame(Some(1011), "".into()));
        while next_dial(&mut scenario).is_some() {
            scenario.close_backend(failed(BackendStage::Connect));
        }
        assert_eq!(scenario.shell.elapsed_ms() - lost, give_up_ms, "{live_ms}");
    }
    // The first redial is after the time to give up, so it is the only one.
    let mut scenario = giving_up_after(100);
    let lost = scenario.shell.elapsed_ms();
    scenario.close_backend(failed(BackendStage::Live));
    let dialled = next_dial(&mut scenario).unwrap();
    assert!(dialled >= lost + 200);
    scenario.close_backend(failed(BackendStage::Connect));
    assert_eq!(summary(&scenario.wait(0)).reason, EndReason::ServerLost);
}

#[test]
fn the_first_redial_is_not_cut_off_by_giving_up() {
    let mut scenario = giving_up_after(1_000);
    scenario.close_backend(failed(BackendStage::Live));
    next_dial(&mut scenario).unwrap();
    assert_eq!(scenario.wait(2_000), []);
    scenario.open_backend();
    assert_eq!(scenario.wait(2_000), [publish(&reconnecting())]);
    assert!(scenario.server_sends(SERVER_HELLO).contains(&Action::Count(Counter::Redialled)));
    assert_eq!(scenario.wait(5_000), []);
    // If it is not answered, no other one follows.
    let lost = scenario.shell.elapsed_ms();
    scenario.close_backend(failed(BackendStage::Live));
    let dialled = next_dial(&mut scenario).unwrap();
    assert_eq!(next_dial(&mut scenario), None);
    assert!(
        (8_500..=8_502).contains(&(scenario.shell.elapsed_ms() - dialled))
            && scenario.shell.elapsed_ms() > lost + 1_000
    );
}
