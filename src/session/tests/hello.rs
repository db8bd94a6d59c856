//! From the device's hello to its reply: servers are tried in order within one deadline, and the device is told if all fail.

use super::*;

/// The messages to a device whose call was not answered by any server.
fn call_failed_actions(n: u8) -> [Action; 2] {
    let own = format!("own-{n}");
    [hello_reply(n, &own, r#"{"format":"opus","sample_rate":16000}"#), goodbye(&own)]
}

fn dial_failed(url: &str, stage: BackendStage, why: &str) -> [Action; 2] {
    let failure = BackendFailure::new(stage, why.to_owned());
    [Action::CloseBackend(1001), Action::Log(LogEvent::DialFailed { url: url.to_owned(), failure })]
}

#[test]
fn a_call_is_set_up() {
    let mut scenario = Scenario::online();
    scenario.wait(1_000);
    assert_eq!(scenario.device_sends(HELLO), [Action::GenerateCredentials, dial(A)]);
    assert_eq!(scenario.core.ssrc(), Some(0x1001));
    scenario.wait(200);
    assert_eq!(scenario.open_backend(), [send_text(HELLO_TO_SERVER)]);
    scenario.wait(300);
    let began = LogEvent::CallStarted {
        session_id: "s1".into(),
        url: A.to_owned(),
        after: Duration::from_millis(500),
    };
    let setup = SetupTimes { total_ms: Some(500), resolve_ms: 200, hello_ms: 300, ..SetupTimes::default() };
    assert_eq!(
        scenario.server_sends(SERVER_HELLO),
        [
            hello_reply(1, "s1", r#"{"sample_rate":24000}"#),
            Action::Count(Counter::Answered(setup)),
            Action::Log(began)
        ]
    );
    assert_eq!(scenario.device_sends(LISTEN), [send_text(LISTEN)]);
    assert_eq!(scenario.server_sends(TTS_STOP), [publish(TTS_STOP)]);
}

#[test]
fn every_field_of_the_hello_is_forwarded() {
    let mut scenario = Scenario::online();
    scenario.device_sends(r#"{"type":"hello","transport":"udp","features":{"mcp":true,"x":[1, 2]},"text_font":{"size":14},"a":null}"#);
    let hello = r#"{"type":"hello","transport":"websocket","features":{"mcp":true,"x":[1, 2]},"text_font":{"size":14},"a":null,"version":2}"#;
    assert_eq!(scenario.open_backend(), [send_text(hello)]);
}

#[test]
fn a_server_that_names_no_session_gets_the_gateways_id_and_the_devices_audio() {
    for hello in
        [r#"{"type":"hello"}"#, r#"{"type":"hello","session_id":""}"#, r#"{"type":"hello","session_id":7}"#]
    {
        let mut scenario = Scenario::online();
        scenario.device_sends(HELLO);
        scenario.open_backend();
        let answer = hello_reply(1, "own-1", r#"{"format":"opus","sample_rate":16000}"#);
        assert_eq!(without_logs_and_counters(scenario.server_sends(hello)), [answer], "{hello}");
    }
}

#[test]
fn another_version_closes_the_connection() {
    for (version, found) in [("2", "2"), ("\"3\"", "\"3\""), ("null", "null")] {
        let mut scenario = Scenario::in_call();
        let actions = scenario.device_sends(&format!(r#"{{"type":"hello","version":{version}}}"#));
        assert_eq!(summary(&actions).reason, EndReason::DeviceError);
        assert_eq!(actions.last(), Some(&Action::CloseDevice(CloseReason::HelloVersion(found.to_owned()))));
        assert_eq!(texts_to_device(&actions), [""; 0]);
    }
    assert_eq!(
        Scenario::online().device_sends(r#"{"type":"hello"}"#)[0],
        Action::GenerateCredentials,
        "none is taken for 3"
    );
}

#[test]
fn each_server_is_tried_once_and_the_device_told_at_once_when_none_is_left() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    let refused = |url: &str, stage| {
        let [hang_up, event] = dial_failed(url, stage, "broken");
        let failing =
            LogEvent::ServerFailing { url: url.to_owned(), why: format!("{} failed: broken", stage.label()) };
        [Action::Count(Counter::DialFailed(stage)), Action::Log(failing), hang_up, event]
    };
    let mut expected = Vec::from(refused(A, BackendStage::Connect));
    expected.push(dial(B));
    assert_eq!(scenario.close_backend(failed(BackendStage::Connect)), expected);
    let mut expected = Vec::from(refused(B, BackendStage::Upgrade));
    expected.push(dial(C));
    assert_eq!(scenario.close_backend(failed(BackendStage::Upgrade)), expected);
    scenario.wait(10);
    let actions = scenario.close_backend(failed(BackendStage::Resolve));
    assert_eq!(actions[..4], refused(C, BackendStage::Resolve));
    assert_eq!(actions[4], Action::CloseBackend(1000));
    assert_eq!(actions[5..7], call_failed_actions(1));
    let end = summary(&actions);
    assert_eq!((end.reason, end.answered, end.ssrc), (EndReason::NoServer, false, Some(0x1001)));
    assert_eq!((&*end.session_id, end.duration), ("own-1", Duration::from_millis(10)));
    assert_eq!(actions.len(), 8);
    assert_eq!(
        scenario.device_sends(r#"{"type":"abort"}"#),
        [goodbye("own-1")],
        "the id it was told in passing"
    );
}

#[test]
fn every_close_before_the_servers_hello_is_its_failure() {
    for gone in [
        BackendClosed::CloseFrame(None, "".into()),
        BackendClosed::CloseFrame(Some(1000), "".into()),
        BackendClosed::CloseFrame(Some(1011), "".into()),
        failed(BackendStage::Live),
    ] {
        let mut scenario = Scenario::online();
        scenario.device_sends(HELLO);
        scenario.open_backend();
        let actions = scenario.close_backend(gone.clone());
        assert_eq!(actions[0], Action::Count(Counter::DialFailed(BackendStage::Hello)), "{gone:?}");
        assert_eq!(actions.last(), Some(&dial(B)), "{gone:?}");
    }
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.open_backend();
    let actions = without_logs_and_counters(scenario.server_sends(r#"{"type":"goodbye"}"#));
    assert_eq!(actions, [Action::CloseBackend(1001), dial(B)]);
}

#[test]
fn a_stalled_server_is_abandoned_after_3_s_while_another_is_left() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    assert_eq!(scenario.wait(2_999), []);
    let [hang_up, event] = dial_failed(A, BackendStage::Connect, "no answer in 3.0 s");
    // A timeout in the queue of dials or in the resolver does not count as a failure of the server.
    assert_eq!(
        scenario.wait(1),
        [Action::Count(Counter::DialFailed(BackendStage::Connect)), hang_up, event, dial(B)]
    );
    scenario.core.on_dial_stage(SetupStage::Connect, scenario.shell.now);
    let actions = scenario.wait(3_000);
    assert!(matches!(actions[1], Action::Log(LogEvent::ServerFailing { .. })));
    assert_eq!(actions.last(), Some(&dial(C)));
    // The last one has what remains of 8.5 s.
    assert_eq!(scenario.wait(2_499), []);
    let actions = without_logs_and_counters(scenario.wait(1));
    assert_eq!(actions[2..4], call_failed_actions(1));
    assert_eq!(scenario.shell.elapsed_ms(), 8_500);
}

#[test]
fn a_silent_server_gets_the_hello_again_and_is_abandoned_after_4_s_while_another_is_left() {
    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.production = servers(&[A, B]);
    scenario.device_sends(HELLO);
    scenario.open_backend();
    assert_eq!(scenario.wait(2_999), []);
    assert_eq!(scenario.wait(1), [send_text(HELLO_TO_SERVER)]);
    assert_eq!(without_logs_and_counters(scenario.wait(1_000)), [Action::CloseBackend(1001), dial(B)]);
    scenario.wait(100);
    scenario.open_backend();
    assert_eq!(without_logs_and_counters(scenario.wait(3_000)), [send_text(HELLO_TO_SERVER)]);
    // The last one has until the device must get its reply.
    assert_eq!(without_logs_and_counters(scenario.wait(1_399)), []);
    assert_eq!(without_logs_and_counters(scenario.wait(1))[2..4], call_failed_actions(1));
    assert_eq!(scenario.shell.elapsed_ms(), 8_500);
}

#[test]
fn the_last_server_that_spoke_without_a_hello_is_taken_as_live_when_the_device_must_be_told() {
    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.production = servers(&[A]);
    scenario.device_sends(HELLO);
    scenario.wait(5_000);
    scenario.open_backend();
    scenario.server_sends(TTS_START);
    let actions = scenario.wait(3_500);
    assert!(actions.contains(&Action::Log(LogEvent::NoServerHello(A.to_owned()))), "{actions:?}");
    assert!(texts_to_device(&actions)[0].contains(r#""transport":"udp""#), "{actions:?}");
}

#[test]
fn the_stage_of_the_last_server_is_named_on_timeout() {
    for (opens, stage) in [(false, BackendStage::Connect), (true, BackendStage::Hello)] {
        let mut scenario = Scenario::online();
        scenario.shell.config.websocket.production = servers(&[A]);
        scenario.device_sends(HELLO);
        if opens {
            scenario.open_backend();
        }
        assert!(scenario.wait(8_500).contains(&dial_failed(A, stage, "no answer in 8.5 s")[1]), "{stage:?}");
    }
}

#[test]
fn the_last_server_may_answer_late() {
    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.production = servers(&[A]);
    scenario.device_sends(HELLO);
    scenario.wait(5_000);
    scenario.open_backend();
    scenario.wait(3_499);
    assert_eq!(texts_to_device(&scenario.server_sends(SERVER_HELLO)).len(), 1);
}

#[test]
fn a_server_without_a_hello_shows_the_device_no_session_id_but_the_one_it_was_told() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.open_backend();
    let text = |kind: &str| format!(r#"{{"type":"{kind}","state":"start","session_id":"of the server"}}"#);
    let mut actions = scenario.server_sends(&text("tts"));
    actions.extend(scenario.server_sends(&text("llm")));
    actions.extend(scenario.wait(4_000));
    scenario.uplink(1, b"\x08one").unwrap();
    for kind in ["tts", "stt", "mcp", "alert", "system", "custom", "unknown"] {
        actions.extend(scenario.server_sends(&text(kind)));
    }
    actions.extend(scenario.wait(2_000));
    actions.extend(scenario.server_sends(SERVER_HELLO));
    actions.extend(scenario.server_sends(&text("llm")));
    actions.extend(scenario.server_sends(r#"{"type":"goodbye","session_id":"of the server"}"#));
    let texts = texts_to_device(&actions);
    assert_eq!(texts.len(), 10, "{texts:#?}");
    assert!(texts.iter().all(|text| text.contains(r#""session_id":"own-1""#)), "{texts:#?}");
}

#[test]
fn a_server_that_speaks_without_a_hello_is_taken_as_live_after_4_s() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.open_backend();
    scenario.server_sends(r#"{"type":"stt","text":"bind me"}"#);
    scenario.downlink(&frame_with_header(5, b"\x08prompt")).unwrap();
    assert_eq!(without_logs_and_counters(scenario.wait(3_999)), [send_text(HELLO_TO_SERVER)]);
    let actions = scenario.wait(1);
    assert_eq!(actions[0], Action::Log(LogEvent::NoServerHello(A.to_owned())));
    let stt = publish(r#"{"session_id":"own-1","type":"stt","text":"bind me"}"#);
    assert_eq!(
        without_logs_and_counters(actions),
        [hello_reply(1, "own-1", r#"{"format":"opus","sample_rate":16000}"#), stt]
    );
    let (_, heard) = scenario.uplink_from("192.0.2.7:4000", 1, b"\x08x").unwrap();
    assert_eq!(scenario.decrypt_datagrams(&heard), [(1, 5, b"\x08prompt".to_vec())]);
    // Its hello arrives late: it is not forwarded, but its session id is used from now on.
    assert_eq!(scenario.server_sends(SERVER_HELLO), [Action::Count(Counter::RepeatedHello)]);
    assert_eq!(scenario.server_sends(TTS_STOP), [publish(&TTS_STOP.replace("s1", "own-1"))]);
    assert_eq!(scenario.device_sends(&LISTEN.replace("s1", "own-1")), [send_text(LISTEN)]);
}

#[test]
fn a_silent_server_is_taken_as_live_with_its_first_message_after_4_s() {
    for audio in [false, true] {
        let mut scenario = Scenario::online();
        scenario.shell.config.websocket.production = servers(&[A]);
        scenario.device_sends(HELLO);
        scenario.open_backend();
        scenario.server_sends(r#"{"type":"mcp","payload":{}}"#);
        assert_eq!(
            without_logs_and_counters(scenario.wait(4_500)),
            [send_text(HELLO_TO_SERVER)],
            "a request for tools is no speech"
        );
        let actions = match audio {
            true => scenario.downlink(&frame_with_header(1, b"\x08x")).unwrap(),
            false => scenario.server_sends(r#"{"type":"tts","state":"start"}"#),
        };
        assert_eq!(texts_to_device(&actions).len(), 2, "hello and mcp: {actions:?}");
        assert!(texts_to_device(&actions)[1].contains("mcp"));
    }
}

#[test]
fn device_text_sent_meanwhile_follows_our_hello_in_order() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    let abort = r#"{"type":"abort"}"#;
    assert_eq!(scenario.device_sends(LISTEN), []);
    scenario.open_backend();
    assert_eq!(scenario.device_sends(abort), [Action::FlushAudio(0x1001)]);
    assert_eq!(texts_to_server(&scenario.server_sends(SERVER_HELLO)), [LISTEN, abort]);
}

#[test]
fn too_much_text_meanwhile_ends_the_call() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    for _ in 0..128 {
        assert_eq!(scenario.device_sends(LISTEN), []);
    }
    let actions = scenario.device_sends(LISTEN);
    assert_eq!(actions[1..3], call_failed_actions(1));
    assert_eq!(summary(&actions).reason, EndReason::Overflow);
}

#[test]
fn text_before_goodbye_or_disconnect_is_still_sent() {
    for disconnect in [false, true] {
        let mut scenario = Scenario::online();
        scenario.device_sends(HELLO);
        scenario.device_sends(LISTEN);
        let leaves = match disconnect {
            true => scenario.packet(Packet::Disconnect),
            false => scenario.device_sends(r#"{"type":"goodbye","session_id":""}"#),
        };
        assert_eq!(
            leaves,
            if disconnect { vec![Action::CloseDevice(CloseReason::Disconnected)] } else { vec![] }
        );
        assert!(!scenario.core.has_call(), "nobody can take it over");
        assert!(!scenario.core.is_finished(), "but it goes on");
        assert_eq!(
            scenario.lose_connection(),
            if disconnect { vec![] } else { vec![Action::CloseDevice(CloseReason::Disconnected)] }
        );
        assert_eq!(
            without_logs_and_counters(scenario.close_backend(failed(BackendStage::Connect))),
            [Action::CloseBackend(1001), dial(B)]
        );
        assert_eq!(texts_to_server(&scenario.open_backend()), [HELLO_TO_SERVER]);
        let actions = scenario.server_sends(SERVER_HELLO);
        let reason = if disconnect { EndReason::DeviceDisconnected } else { EndReason::DeviceGoodbye };
        assert_eq!(actions[..2], [send_text(LISTEN), server_goodbye("s1", reason, 0)]);
        assert_eq!(actions[2], Action::CloseBackend(1000));
        assert_eq!((summary(&actions).reason, summary(&actions).answered), (reason, false));
        assert!(scenario.core.is_finished());
    }
}

#[test]
fn a_closing_call_that_no_server_takes_ends_at_the_deadline() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.device_sends(LISTEN);
    scenario.packet(Packet::Disconnect);
    let actions = scenario.wait(9_000);
    assert_eq!(texts_to_device(&actions), [""; 0]);
    assert_eq!(summary(&actions).reason, EndReason::DeviceDisconnected);
    assert!(scenario.core.is_finished());
}

#[test]
fn hanging_up_while_dialling_ends_the_dial_when_nothing_was_said() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    let actions = scenario.device_sends(r#"{"type":"goodbye"}"#);
    assert_eq!(actions[0], Action::CloseBackend(1000));
    assert_eq!((actions.len(), summary(&actions).reason), (2, EndReason::DeviceGoodbye));
    assert_eq!(
        scenario.device_sends(r#"{"type":"abort"}"#),
        [publish(r#"{"type":"goodbye"}"#)],
        "no id was ever given"
    );
}

#[test]
fn a_second_hello_replaces_the_call_without_a_goodbye() {
    let mut scenario = Scenario::in_call();
    let actions = scenario.device_sends(HELLO);
    assert_eq!(actions[..2], [server_goodbye("s1", EndReason::Replaced, 0), Action::CloseBackend(1000)]);
    assert_eq!((summary(&actions).reason, summary(&actions).ssrc), (EndReason::Replaced, Some(0x1001)));
    assert_eq!(actions[3..], [Action::GenerateCredentials, dial(B)], "spread over the list");
    assert_eq!(scenario.core.ssrc(), Some(0x1002));
    scenario.open_backend();
    let answer = hello_reply(2, "s2", r#"{"sample_rate":24000}"#);
    assert_eq!(without_logs_and_counters(scenario.server_sends(&SERVER_HELLO.replace("s1", "s2"))), [answer]);
}

#[test]
fn several_hellos_at_once_leave_one_call() {
    let mut scenario = Scenario::online();
    for n in 1..5 {
        let actions = scenario.device_sends(HELLO);
        let ended = actions.iter().filter(|action| matches!(action, Action::CallEnded(_))).count();
        assert_eq!(ended, usize::from(n > 1));
        assert_eq!(texts_to_device(&actions), [""; 0]);
    }
    assert_eq!(scenario.core.ssrc(), Some(0x1004));
}

#[test]
fn a_full_gateway_refuses_the_call() {
    let mut scenario = Scenario::online();
    let mut out = Vec::new();
    let mut cx = scenario.shell.context(&mut out);
    scenario.core.on_packet(publish_packet(HELLO.as_bytes()), &mut cx);
    scenario.core.on_credentials(CallCredentials { allowed: false, ..credentials(1) }, &mut cx);
    assert_eq!(out[2..4], call_failed_actions(1));
    assert_eq!(summary(&out).reason, EndReason::Refused);
    let shown = texts_to_device(&scenario.wait(300)).concat();
    assert!(shown.contains("忙 / Busy"), "{shown}");
    assert_eq!(
        scenario.core.deadline(),
        Some(scenario.shell.start + Duration::from_secs(90)),
        "only its keep alive"
    );
}

#[test]
fn servers_that_failed_lately_are_tried_last_for_a_while() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.close_backend(failed(BackendStage::Connect));
    scenario.open_backend();
    scenario.server_sends(SERVER_HELLO);
    let dials_next = |scenario: &mut Scenario, url| {
        scenario.device_sends(r#"{"type":"goodbye"}"#);
        assert_eq!(scenario.device_sends(HELLO).last(), Some(&dial(url)));
    };
    // The order is b, c, a, then c, b, a; then it is a's turn, but a comes last.
    for url in [B, C, B] {
        dials_next(&mut scenario, url);
    }
    scenario.wait(30_000);
    scenario.drive(|core, cx| core.on_packet(Packet::PingReq, cx));
    for url in [B, C, A] {
        dials_next(&mut scenario, url);
    }
    scenario.open_backend();
    let recovered = LogEvent::ServerRecovered { url: A.to_owned(), after: Duration::from_secs(30) };
    assert_eq!(scenario.server_sends(SERVER_HELLO)[0], Action::Log(recovered));
}

#[test]
fn with_one_server_a_failure_delays_nothing() {
    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.production = servers(&[A]);
    scenario.device_sends(HELLO);
    scenario.close_backend(failed(BackendStage::Connect));
    assert_eq!(scenario.device_sends(HELLO), [Action::GenerateCredentials, dial(A)]);
    let again = scenario.close_backend(failed(BackendStage::Connect));
    let news = again.iter().any(|action| matches!(action, Action::Log(LogEvent::ServerFailing { .. })));
    assert!(!news, "logged once per change");
}

#[test]
fn listed_devices_call_development_servers_and_two_part_ids_sign_a_default_client_id() {
    let mut scenario = Scenario::new();
    scenario.shell.config.websocket.development = servers(&[C]);
    scenario.shell.config.websocket.development_macs = vec![mac()];
    scenario.packet(connect_packet("GID@@@aa_bb_cc_dd_ee_ff", 60));
    for secret in [None, crate::config::Secret::new("secret")] {
        scenario.shell.config.websocket.secret = secret.clone();
        scenario.device_sends(r#"{"type":"goodbye"}"#);
        let actions = scenario.device_sends(HELLO);
        let Some(Action::Dial(request)) = actions.last() else { panic!("{actions:?}") };
        assert_eq!(request.server, server(C));
        assert_eq!(request.client_id.as_deref(), secret.map(|_| "default-client-id"));
    }
}

#[test]
fn without_any_server_the_device_is_told_at_once() {
    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.production.clear();
    assert_eq!(scenario.device_sends(HELLO)[2..4], call_failed_actions(1));
    let alert = message::alert(
        Some("own-1"),
        "连接失败 / Call failed",
        "聊天服务器无法连接，请稍后再试 / No chat server can be reached, try again later",
        "sad",
    );
    assert_eq!(scenario.wait_timed(1_000), [(300, publish(&alert))]);
}
