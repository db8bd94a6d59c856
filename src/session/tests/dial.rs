//! Dials of several chat servers: which failures count against a server, and which state is reset by the next dial.

use super::*;

const HELLO_2: &str = r#"{"type":"hello","session_id":"s2"}"#;

#[test]
fn a_server_without_a_hello_is_logged_with_its_failure() {
    type End = fn(&mut Scenario) -> Vec<Action>;
    let ends: [(End, &str); 6] = [
        (
            |scenario| scenario.close_backend(BackendClosed::CloseFrame(None, "".into())),
            "the server closed the WebSocket",
        ),
        (
            |scenario| scenario.close_backend(BackendClosed::CloseFrame(Some(1000), "".into())),
            "the server closed the WebSocket with code 1000",
        ),
        (
            |scenario| scenario.close_backend(BackendClosed::CloseFrame(Some(1011), "".into())),
            "the server closed the WebSocket with code 1011",
        ),
        (|scenario| scenario.close_backend(failed(BackendStage::Live)), "broken"),
        (
            |scenario| scenario.server_sends(r#"{"type":"goodbye"}"#),
            "the server sent goodbye instead of hello",
        ),
        (|scenario| scenario.wait(4_000).split_off(1), "no answer in 4.0 s"),
    ];
    for (end, why) in ends {
        let mut scenario = Scenario::online();
        scenario.device_sends(HELLO);
        scenario.open_backend();
        let failure = BackendFailure::new(BackendStage::Hello, why.to_owned());
        let failing = LogEvent::ServerFailing { url: A.to_owned(), why: failure.to_string() };
        let expected = [
            Action::Count(Counter::DialFailed(BackendStage::Hello)),
            Action::Log(failing),
            Action::CloseBackend(1001),
            Action::Log(LogEvent::DialFailed { url: A.to_owned(), failure }),
            dial(B),
        ];
        assert_eq!(end(&mut scenario), expected, "{why}");
    }
}

#[test]
fn the_next_server_must_send_its_own_hello() {
    for spoken in [TTS_START, r#"{"type":"stt","text":"x"}"#, r#"{"type":"llm"}"#] {
        let mut scenario = Scenario::online();
        scenario.device_sends(HELLO);
        scenario.open_backend();
        assert_eq!(scenario.server_sends(spoken), []);
        scenario.close_backend(failed(BackendStage::Live));
        scenario.open_backend();
        assert_eq!(
            without_logs_and_counters(scenario.wait(4_000)),
            [send_text(HELLO_TO_SERVER), Action::CloseBackend(1001), dial(C)],
            "{spoken}"
        );
        scenario.open_backend();
        assert_eq!(
            texts_to_device(&scenario.server_sends(SERVER_HELLO)).len(),
            1,
            "the reply alone: {spoken}"
        );
    }
}

#[test]
fn a_resolve_failure_counts_against_the_server_and_a_full_dial_queue_does_not() {
    for (stage, at_fault) in
        [(BackendStage::Resolve, true), (BackendStage::Connect, false), (BackendStage::LocalShortage, false)]
    {
        let mut scenario = Scenario::online();
        scenario.device_sends(HELLO);
        // It failed before the TCP connection was being opened.
        let actions = scenario.drive(|core, cx| core.on_backend_closed(failed(stage), cx));
        let failing =
            actions.iter().any(|action| matches!(action, Action::Log(LogEvent::ServerFailing { .. })));
        assert_eq!(failing, at_fault, "{stage:?}");
    }
}

#[test]
fn speech_without_a_hello_makes_the_server_live() {
    for (text, live) in
        [(TTS_START, true), (r#"{"type":"stt","text":"x"}"#, true), (r#"{"type":"llm"}"#, false)]
    {
        let mut scenario = Scenario::online();
        scenario.shell.config.websocket.production = servers(&[A]);
        scenario.device_sends(HELLO);
        scenario.open_backend();
        scenario.wait(1_000);
        assert_eq!(scenario.server_sends(text), []);
        let actions = scenario.wait(3_000);
        let event = Action::Log(LogEvent::NoServerHello(A.to_owned()));
        assert_eq!(actions.contains(&event), live, "{text}");
    }
}

#[test]
fn audio_and_abort_before_the_answer_cost_nothing() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.open_backend();
    assert_eq!(scenario.uplink(1, b"\x08x"), Err(DropReason::NoServer));
    let llm = r#"{"session_id":"s1","type":"llm"}"#;
    scenario.server_sends(llm);
    assert_eq!(scenario.device_sends(r#"{"type":"abort"}"#), [Action::FlushAudio(0x1001)]);
    let actions = scenario.server_sends(SERVER_HELLO);
    let Action::Publish(answer) = hello_reply(1, "s1", r#"{"sample_rate":24000}"#) else { unreachable!() };
    assert_eq!(texts_to_device(&actions), [&*answer, llm]);
}

#[test]
fn a_redial_forgets_the_previous_server() {
    // Its session id is reset.
    let mut scenario = Scenario::with_udp_peer();
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(250);
    scenario.open_backend();
    scenario.server_sends(HELLO_2);
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(500);
    scenario.open_backend();
    assert_eq!(
        scenario.device_sends(r#"{"type":"goodbye"}"#)[0],
        server_goodbye("s1", EndReason::DeviceGoodbye, 750)
    );

    // The timeout of its hello is reset.
    let mut scenario = Scenario::with_udp_peer();
    scenario.shell.config.websocket.production = servers(&[A]);
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(250);
    scenario.open_backend();
    assert_eq!(texts_to_server(&scenario.wait(4_500)), [HELLO_TO_SERVER]);
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(500);
    scenario.open_backend();
    assert_eq!(scenario.server_sends(TTS_START), []);
    assert_eq!(texts_to_device(&scenario.server_sends(SERVER_HELLO))[1..], [TTS_START]);

    // The hold for the first datagram is reset.
    let mut scenario = Scenario::in_call();
    scenario.server_sends(TTS_START);
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(2_500);
    scenario.open_backend();
    scenario.server_sends(SERVER_HELLO);
    scenario.wait(1_000);
    assert_eq!(scenario.server_sends(TTS_START), []);
    assert_eq!(scenario.wait(1_999), []);
    assert_eq!(scenario.wait(1), [publish(TTS_START)]);
}

#[test]
fn a_gap_is_counted_from_its_own_failure() {
    let mut scenario = Scenario::with_udp_peer();
    for (pause, url, after) in [(250, B, 250), (500, C, 500)] {
        scenario.close_backend(failed(BackendStage::Live));
        scenario.wait(pause);
        scenario.open_backend();
        let actions = scenario.server_sends(SERVER_HELLO);
        let after = Duration::from_millis(after);
        assert_eq!(actions[1], Action::Log(LogEvent::Redialled { url: url.to_owned(), after }));
        scenario.wait(5_000);
    }
}

#[test]
fn any_ssrc_spreads_the_redials() {
    for ssrc in [1, 2, u32::MAX] {
        let mut scenario = Scenario::online();
        let reconnect = &mut scenario.shell.config.websocket.reconnect;
        (reconnect.initial, reconnect.max) = (Duration::from_secs(5), Duration::from_secs(5));
        reconnect.give_up_after = Duration::ZERO;
        let mut out = Vec::new();
        let mut cx = scenario.shell.context(&mut out);
        scenario.core.on_packet(publish_packet(HELLO.as_bytes()), &mut cx);
        scenario.core.on_credentials(CallCredentials { ssrc, ..credentials(1) }, &mut cx);
        scenario.open_backend();
        scenario.server_sends(SERVER_HELLO);
        let mut pauses = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let actions = scenario.close_backend(failed(BackendStage::Live));
            let Some(Action::Log(LogEvent::Redialling { pause, .. })) = actions.last() else {
                panic!("{actions:?}")
            };
            pauses.insert(pause.as_millis());
            scenario.core.refresh_keep_alive(scenario.shell.now);
            scenario.wait(5_001);
        }
        assert!(pauses.len() > 10, "{ssrc}: {pauses:?}");
    }
}
