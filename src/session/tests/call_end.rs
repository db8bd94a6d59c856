//! All ends of a call: one goodbye to each side that is told, its session id, and the close code of the WebSocket.

use super::*;

/// An end as seen from outside: the reason, the messages to the server and its close code, the messages to the device.
fn assert_end(actions: &[Action], reason: EndReason, server: &[String], code: u16, device: &[&str]) {
    assert_eq!(summary(actions).reason, reason, "{actions:?}");
    assert_eq!(texts_to_server(actions), server, "{reason:?}");
    let codes: Vec<_> = actions.iter().filter(|action| matches!(action, Action::CloseBackend(_))).collect();
    assert_eq!(codes, [&Action::CloseBackend(code)], "{reason:?}");
    assert_eq!(texts_to_device(actions), device, "{reason:?}");
}

fn server_goodbyes(reason: EndReason) -> Vec<String> {
    vec![message::server_goodbye(Some("s1"), reason.label(), 1_500)]
}

fn in_call_with_goodbye() -> Scenario {
    let mut scenario = Scenario::with_udp_peer();
    scenario.wait(1_500);
    scenario
}

const GOODBYE: &str = r#"{"type":"goodbye","session_id":"s1"}"#;

#[test]
fn the_device_ends_the_call() {
    use EndReason::*;
    let actions = in_call_with_goodbye().device_sends(r#"{"type":"goodbye","session_id":"s1"}"#);
    assert_end(&actions, DeviceGoodbye, &server_goodbyes(DeviceGoodbye), 1000, &[]);
    let actions = in_call_with_goodbye().device_sends(r#"{"type":"goodbye"}"#);
    assert_end(&actions, DeviceGoodbye, &server_goodbyes(DeviceGoodbye), 1000, &[]);
    let actions = in_call_with_goodbye().device_sends(r#"{"type":"udp_timeout"}"#);
    assert_end(&actions, DeviceUdpTimeout, &server_goodbyes(DeviceUdpTimeout), 1000, &[GOODBYE]);
    let actions = in_call_with_goodbye().packet(Packet::Disconnect);
    assert_end(&actions, DeviceDisconnected, &server_goodbyes(DeviceDisconnected), 1000, &[]);
    let actions = in_call_with_goodbye().device_sends(HELLO);
    assert_end(&actions, Replaced, &server_goodbyes(Replaced), 1000, &[]);
    let actions = in_call_with_goodbye().connect();
    assert_end(&actions, DeviceError, &server_goodbyes(DeviceError), 1000, &[]);
}

#[test]
fn the_server_ends_the_call() {
    use EndReason::ServerClosed;
    assert_end(
        &in_call_with_goodbye().close_backend(BackendClosed::CloseFrame(None, "".into())),
        ServerClosed,
        &[],
        1000,
        &[GOODBYE],
    );
    let own = r#"{"type":"goodbye","session_id":"s1","why":"bye"}"#;
    assert_end(&in_call_with_goodbye().server_sends(own), ServerClosed, &[], 1000, &[own]);
    let bare = in_call_with_goodbye().server_sends(r#"{"type":"goodbye"}"#);
    assert_end(&bare, ServerClosed, &[], 1000, &[r#"{"session_id":"s1","type":"goodbye"}"#]);
    let other = in_call_with_goodbye().server_sends(r#"{"type":"goodbye","session_id":"of another call"}"#);
    assert_end(&other, ServerClosed, &[], 1000, &[GOODBYE]);
}

#[test]
fn a_goodbye_after_a_redial_carries_the_id_the_device_knows() {
    let mut scenario = in_call_with_goodbye();
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(250);
    scenario.open_backend();
    scenario.server_sends(r#"{"type":"hello","session_id":"s2"}"#);
    let actions = scenario.server_sends(r#"{"type":"goodbye","session_id":"s2"}"#);
    assert_end(&actions, EndReason::ServerClosed, &[], 1000, &[GOODBYE]);
}

#[test]
fn the_gateway_ends_the_call() {
    use EndReason::*;
    let actions = in_call_with_goodbye().drive(Core::shutdown);
    assert_end(&actions, Shutdown, &server_goodbyes(Shutdown), 1001, &[GOODBYE]);
    assert_eq!(actions.last(), Some(&Action::CloseDevice(CloseReason::Shutdown)));
    let mut scenario = in_call_with_goodbye();
    let actions = scenario.drive(Core::on_backend_blocked);
    let alert =
        message::alert(Some("s1"), "通话结束 / Call ended", "通话无法继续 / The call cannot go on", "sad");
    assert_end(&actions, Overflow, &server_goodbyes(Overflow), 1000, &[GOODBYE]);
    assert_eq!(scenario.wait(299), []);
    assert_eq!(scenario.wait(1), [publish(&alert)], "when the device has cleared its screen");
    // A hello takes its place.
    let mut scenario = in_call_with_goodbye();
    scenario.drive(Core::on_backend_blocked);
    scenario.device_sends(HELLO);
    assert_eq!(texts_to_device(&scenario.wait(300)), [""; 0]);
}

#[test]
fn a_device_that_is_in_no_call_ends_it_with_an_empty_session_id() {
    for kind in [r#""type":"listen","state":"start""#, r#""type":"abort""#] {
        let mut scenario = in_call_with_goodbye();
        for id in ["", r#","session_id":null"#, r#","session_id":"s""#, r#","session_id":"another""#] {
            let text = format!("{{{kind}{id}}}");
            assert!(scenario.device_sends(&text).contains(&send_text(&text)), "{text}");
        }
        let actions = scenario.device_sends(&format!(r#"{{{kind},"session_id":""}}"#));
        let goodbye = r#"{"type":"goodbye","session_id":""}"#;
        let reason = EndReason::DeviceNotInCall;
        assert_end(&actions, reason, &server_goodbyes(reason), 1000, &[goodbye]);
        // And without a call.
        assert_eq!(
            texts_to_device(&scenario.device_sends(&format!(r#"{{{kind},"session_id":""}}"#))),
            [goodbye]
        );
    }
}

#[test]
fn a_goodbye_that_may_have_crossed_tts_start_is_followed_by_tts_stop() {
    let mut scenario = in_call_with_goodbye();
    scenario.server_sends(TTS_START);
    let actions = scenario.device_sends(r#"{"type":"goodbye","session_id":"s1"}"#);
    assert_eq!(texts_to_device(&actions), [r#"{"type":"tts","session_id":"s1","state":"stop"}"#]);
    // So is a hello.
    let mut scenario = in_call_with_goodbye();
    scenario.server_sends(TTS_START);
    scenario.device_sends(HELLO);
    scenario.open_backend();
    let told = scenario.server_sends(SERVER_HELLO);
    assert_eq!(texts_to_device(&told)[1], r#"{"type":"tts","session_id":"s1","state":"stop"}"#);
}

#[test]
fn without_send_goodbye_the_server_is_only_closed() {
    let mut scenario = in_call_with_goodbye();
    scenario.shell.config.websocket.send_goodbye = false;
    assert_end(&scenario.device_sends(r#"{"type":"goodbye"}"#), EndReason::DeviceGoodbye, &[], 1000, &[]);
}

#[test]
fn shutdown_closes_once_in_every_phase() {
    let close = || Action::CloseDevice(CloseReason::Shutdown);
    assert_eq!(Scenario::new().drive(Core::shutdown), [close()]);
    let mut scenario = Scenario::online();
    assert_eq!(scenario.drive(Core::shutdown), [close()]);
    assert_eq!(scenario.drive(Core::shutdown), []);

    let mut scenario = in_call_with_goodbye();
    scenario.lose_connection();
    let actions = scenario.drive(Core::shutdown);
    assert_end(&actions, EndReason::Shutdown, &server_goodbyes(EndReason::Shutdown), 1001, &[]);
    assert_eq!(actions.last(), Some(&Action::CloseDevice(CloseReason::Disconnected)));
    assert!(scenario.core.is_finished());

    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.device_sends(LISTEN);
    scenario.packet(Packet::Disconnect);
    let actions = scenario.drive(Core::shutdown);
    assert_end(&actions, EndReason::Shutdown, &[], 1001, &[]);
    assert!(!actions.iter().any(|action| matches!(action, Action::CloseDevice(_))), "closed before");

    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    let actions = scenario.drive(Core::shutdown);
    assert_eq!(
        (texts_to_device(&actions).len(), texts_to_device(&actions)[1]),
        (3, r#"{"type":"goodbye","session_id":"own-1"}"#)
    );
}

#[test]
fn queued_text_is_delivered_before_the_goodbye() {
    let mut scenario = Scenario::in_call();
    scenario.server_sends(TTS_START);
    scenario.downlink(&frame_with_header(1, b"\x08a")).unwrap();
    scenario.server_sends(TTS_STOP);
    let actions = scenario.close_backend(BackendClosed::CloseFrame(Some(1000), "".into()));
    assert_eq!(texts_to_device(&actions), [TTS_START, TTS_STOP, GOODBYE]);
    assert_eq!(summary(&actions).stats.dropped, 1);
}

#[test]
fn a_message_without_a_call_is_answered_with_goodbye_but_not_every_one() {
    let mut scenario = Scenario::online();
    assert_eq!(scenario.device_sends(r#"{"type":"listen"}"#), [publish(r#"{"type":"goodbye"}"#)]);
    assert_eq!(scenario.device_sends(r#"{"type":"listen","session_id":"x"}"#), [goodbye("x")]);
    assert_eq!(
        scenario.device_sends(r#"{"type":"listen","session_id":null}"#),
        [publish(r#"{"type":"goodbye"}"#)]
    );
    scenario.start_call();
    scenario.device_sends(r#"{"type":"goodbye"}"#);
    assert_eq!(scenario.device_sends(r#"{"type":"listen"}"#), [goodbye("s1")], "the last one given");
    assert_eq!(scenario.device_sends(r#"{"type":"listen","session_id":"x"}"#), [goodbye("x")]);
    assert_eq!(scenario.device_sends(r#"{"type":"goodbye","session_id":"s1"}"#), []);
    assert_eq!(scenario.device_sends(r#"{"type":"mcp","payload":{"id":1,"result":{}}}"#), []);
    // This call was not answered, so the device does not know its id.
    scenario.device_sends(HELLO);
    scenario.device_sends(r#"{"type":"goodbye"}"#);
    assert_eq!(scenario.device_sends(r#"{"type":"listen"}"#), [goodbye("s1")]);
}

#[test]
fn the_summary_describes_the_call() {
    let mut scenario = Scenario::online();
    scenario.start_call();
    scenario.wait(500);
    scenario.uplink(1, b"\x08one").unwrap();
    scenario.uplink(3, b"\x08three").unwrap();
    scenario.downlink(&frame_with_header(1, b"\x08four5")).unwrap();
    scenario.wait(11_845);
    let actions = scenario.device_sends(r#"{"type":"goodbye"}"#);
    let stats = CallStats {
        up_packets: 2,
        up_bytes: 10,
        down_packets: 1,
        down_bytes: 6,
        lost: 1,
        ..CallStats::default()
    };
    let Some(Action::CallEnded(summary)) = actions.last() else { panic!("{actions:?}") };
    assert_eq!((summary.report.verdict, summary.report.loss_percent), (Verdict::Good, 33.3));
    assert_eq!(summary.series.slices.iter().map(|slice| slice.packets_up).sum::<u32>(), 2);
    let expected = CallSummary {
        session_id: "s1".into(),
        reason: EndReason::DeviceGoodbye,
        duration: Duration::from_millis(12_345),
        answered: true,
        state: CallState::Live,
        server: Some(server(A)),
        ssrc: Some(0x1001),
        stats,
        ..(**summary).clone()
    };
    assert_eq!(**summary, expected);
}

#[test]
fn a_draining_gateway_disconnects_a_device_at_the_deadline_or_after_its_call() {
    let close = || Action::CloseDevice(CloseReason::Draining);
    let drain = |scenario: &mut Scenario, ms| {
        let leave_at = scenario.shell.now + Duration::from_millis(ms);
        scenario.drive(|core, cx| core.drain(leave_at, cx))
    };

    let mut scenario = Scenario::new();
    assert_eq!(drain(&mut scenario, 1000), [close()], "not let in yet");

    let mut scenario = Scenario::online();
    assert_eq!(drain(&mut scenario, 1000), []);
    assert_eq!(scenario.wait_timed(5000), [(1000, close())]);
    assert!(scenario.core.is_finished());

    // During a call the device stays, however long that takes.
    let mut scenario = in_call_with_goodbye();
    scenario.shell.config.websocket.ping_interval = Duration::ZERO;
    assert_eq!(drain(&mut scenario, 1000), []);
    assert_eq!(scenario.wait_timed(20_000), []);
    let actions = scenario.device_sends(r#"{"type":"goodbye"}"#);
    assert!(summary(&actions).reason == EndReason::DeviceGoodbye && !actions.contains(&close()));
    assert!(scenario.core.deadline().is_some_and(|at| at <= scenario.shell.now), "the alarm rings at once");
    assert_eq!(scenario.drive(Core::on_timeout), [close()]);

    // Calls that begin before the deadline are served.
    let mut scenario = Scenario::online();
    drain(&mut scenario, 1000);
    scenario.start_call();
    scenario.start_call();
    assert!(!scenario.wait(2000).contains(&close()));
    assert!(scenario.core.has_call());

    // The device is disconnected at the end of such a call.
    let mut scenario = Scenario::online();
    drain(&mut scenario, 1000);
    scenario.start_call();
    assert!(!scenario.wait(2000).contains(&close()));
    scenario.device_sends(r#"{"type":"goodbye"}"#);
    assert_eq!(scenario.drive(Core::on_timeout), [close()]);
}

#[test]
fn a_draining_gateway_keeps_no_call_for_a_device_that_is_lost() {
    for lost_before in [true, false] {
        let mut scenario = in_call_with_goodbye();
        let lost = |scenario: &mut Scenario| scenario.drive(Core::on_connection_lost);
        let leave_at = scenario.shell.now + Duration::from_secs(1);
        let drain = |scenario: &mut Scenario| scenario.drive(|core, cx| core.drain(leave_at, cx));
        let mut actions = if lost_before { lost(&mut scenario) } else { drain(&mut scenario) };
        assert!(!actions.iter().any(|action| matches!(action, Action::CallEnded(_))));
        actions = if lost_before { drain(&mut scenario) } else { lost(&mut scenario) };
        assert_eq!(summary(&actions).reason, EndReason::DeviceLost);
        assert!(scenario.core.is_finished());
    }
}

#[test]
fn a_servers_goodbye_is_forwarded_with_the_session_that_the_device_knows() {
    let theirs = |id: &str| format!(r#"{{"type":"goodbye","session_id":"{id}","why":"theirs"}}"#);
    for (sent, expected) in [
        (theirs("s1"), theirs("s1")),
        (r#"{"type":"goodbye"}"#.to_owned(), r#"{"session_id":"s1","type":"goodbye"}"#.to_owned()),
        (theirs("another"), theirs("s1")),
    ] {
        let mut scenario = Scenario::with_udp_peer();
        assert_eq!(texts_to_device(&scenario.server_sends(&sent)), [expected], "{sent}");
    }
}

#[test]
fn operators_see_the_call_state() {
    let mut scenario = Scenario::online();
    let state = |scenario: &Scenario| scenario.core.call().map(|call| call.state);
    assert_eq!(state(&scenario), None);
    let mut seen = Vec::new();
    let mut see = |scenario: &Scenario| seen.push(state(scenario).unwrap().label());
    scenario.device_sends(HELLO);
    see(&scenario);
    scenario.open_backend();
    see(&scenario);
    scenario.server_sends(SERVER_HELLO);
    see(&scenario);
    scenario.close_backend(failed(BackendStage::Live));
    see(&scenario);
    scenario.wait(250);
    see(&scenario);
    scenario.open_backend();
    see(&scenario);
    scenario.server_sends(SERVER_HELLO);
    scenario.drive(Core::start_ringing);
    see(&scenario);
    scenario.drive(device_call::join_device_call);
    see(&scenario);
    let expected =
        ["dialing", "greeting", "live", "redialing", "redialing", "redialing", "ringing", "bridged"];
    assert_eq!(seen, expected);
    assert_eq!(
        CallState::ALL.map(CallState::label),
        ["dialing", "greeting", "live", "redialing", "ringing", "bridged"]
    );
}

#[test]
fn a_device_awaiting_its_hello_reply_is_told_why_the_call_failed() {
    for (end, status, why) in [
        (
            Core::shutdown as fn(&mut Core, &mut Context<'_>),
            "网关重启 / Restart",
            "网关正在重启，请稍后再试 / The gateway restarts, try again later",
        ),
        (
            |core, cx| assert!(core.operator_hang_up(cx)),
            "通话结束 / Call ended",
            "通话无法继续 / The call cannot go on",
        ),
    ] {
        let mut scenario = Scenario::online();
        scenario.device_sends(HELLO);
        let mut actions = scenario.drive(end);
        actions.extend(scenario.wait(300));
        assert_eq!(
            *texts_to_device(&actions).last().unwrap(),
            message::alert(Some("own-1"), status, why, "sad")
        );
    }
}

#[test]
fn an_operators_message_is_queued_for_a_disconnected_device() {
    let mut scenario = Scenario::with_udp_peer();
    assert_eq!(scenario.core.online_since(), Some(scenario.shell.start));
    let deliver = |scenario: &mut Scenario| {
        let mut delivery = None;
        let out = scenario.drive(|core, cx| delivery = Some(core.send_message(r#"{"type":"alert"}"#, cx)));
        (delivery.unwrap(), texts_to_device(&out).join(""))
    };
    let text = r#"{"session_id":"s1","type":"alert"}"#;
    assert_eq!(deliver(&mut scenario), (Delivery::Sent, text.to_owned()));
    scenario.lose_connection();
    assert_eq!(deliver(&mut scenario), (Delivery::Queued, String::new()));
    scenario.reconnect("192.0.2.7");
    assert_eq!(texts_to_device(&scenario.wait(500)), [text]);
}

#[test]
fn a_null_error_is_no_error() {
    let mut scenario = Scenario::online();
    let asked = scenario.drive(|core, cx| core.send_command(7, "x", "{}", cx));
    let request: serde_json::Value = serde_json::from_str(texts_to_device(&asked)[0]).unwrap();
    let id = &request["payload"]["id"];
    let answer =
        format!(r#"{{"type":"mcp","payload":{{"jsonrpc":"2.0","id":{id},"error":null,"result":5}}}}"#);
    assert_eq!(scenario.device_sends(&answer), [Action::CommandResult { ticket: 7, result: Ok("5".into()) }]);
}
