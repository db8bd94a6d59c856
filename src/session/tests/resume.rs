//! Loss of the device's MQTT connection during a call, with and without a reconnection.

use super::*;

const GRACE: Duration = Duration::from_secs(35);

#[test]
fn a_call_is_kept_and_taken_over() {
    let mut scenario = Scenario::with_udp_peer();
    let why = CloseReason::Disconnected;
    let away =
        [Action::Log(LogEvent::ConnectionLost { kept: GRACE, why: why.clone() }), Action::CloseDevice(why)];
    assert_eq!(scenario.lose_connection(), away);
    assert!(scenario.core.has_call() && !scenario.core.is_online() && !scenario.core.is_closed());
    // Texts for the device are queued, and audio continues in both directions.
    assert_eq!(scenario.server_sends(TTS_STOP), []);
    assert_eq!(scenario.server_sends(r#"{"type":"llm"}"#), []);
    assert_eq!(scenario.downlink(&frame_with_header(1, b"\x08a")).unwrap().len(), 1);
    assert!(scenario.uplink(2, b"\x08x").is_ok());
    assert_eq!(scenario.wait(34_000), [Action::SendPing]);
    assert!(scenario.uplink(3, b"\x08y").is_ok());
    assert_eq!(scenario.wait(999), []);
    let welcome = [Action::AcceptConnect, Action::Log(LogEvent::Connected { resumed: true })];
    let actions = scenario.reconnect(DEVICE_IP);
    assert_eq!(actions[..2], welcome);
    assert_eq!(actions[2], Action::Log(LogEvent::Resumed(Duration::from_millis(34_999))));
    assert_eq!(actions[3..], [publish(TTS_STOP), publish(r#"{"session_id":"s1","type":"llm"}"#)]);
    assert!(scenario.core.is_online());
    assert_eq!(scenario.device_sends(LISTEN), [send_text(LISTEN)]);
    assert_eq!(scenario.server_sends(TTS_START), [publish(TTS_START)]);
    // The keep alive of the new connection is used: 30 s.
    assert_eq!(scenario.wait(45_000).last(), Some(&Action::CloseDevice(CloseReason::KeepAlive)));
}

#[test]
fn the_order_in_which_the_sockets_close_does_not_matter() {
    let mut scenario = Scenario::with_udp_peer();
    assert_eq!(
        without_logs_and_counters(scenario.reconnect(DEVICE_IP)),
        [Action::AcceptConnect],
        "the old one is still there"
    );
    assert_eq!(without_logs_and_counters(scenario.device_sends(LISTEN)), [send_text(LISTEN)]);
    assert_eq!(
        scenario.wait(40_000).iter().filter(|action| matches!(action, Action::CallEnded(_))).count(),
        0
    );
}

#[test]
fn no_reconnect_in_time_ends_the_call_with_a_normal_close() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.lose_connection();
    assert_eq!(scenario.wait(34_999), [Action::SendPing]);
    let actions = scenario.wait(1);
    assert_eq!(
        actions[..3],
        [
            server_goodbye("s1", EndReason::DeviceLost, 35_000),
            Action::CloseBackend(1000),
            Action::Log(LogEvent::NotResumed(GRACE))
        ]
    );
    assert_eq!(summary(&actions).reason, EndReason::DeviceLost);
    assert_eq!(actions[4..], [Action::CloseDevice(CloseReason::Disconnected)]);
    assert!(scenario.core.is_finished());
}

/// Firmware up to 2.4 listens or speaks as before after its reconnection.
#[test]
fn a_device_that_comes_back_too_late_is_told_that_its_call_has_ended() {
    type End = fn(&mut Scenario);
    let ends: [(&str, End); 6] = [
        ("the grace is over", |scenario| {
            scenario.lose_connection();
            scenario.wait(40_000);
        }),
        ("the server has ended it meanwhile", |scenario| {
            scenario.lose_connection();
            scenario.server_sends(r#"{"type":"goodbye"}"#);
        }),
        ("there is no grace", |scenario| {
            scenario.shell.config.mqtt.resume_grace = Duration::ZERO;
            scenario.lose_connection();
        }),
        ("another connection took its place", |scenario| {
            scenario.drive(Core::on_replaced);
        }),
        ("its connection was dead long before that was seen", |scenario| {
            scenario.wait(5_000);
            scenario.server_sends(r#"{"type":"goodbye"}"#);
            scenario.wait(60_000);
            scenario.drive(Core::on_replaced);
        }),
        ("it was not understood", |scenario| {
            scenario.connect();
        }),
    ];
    for (what, end) in ends {
        let after_end = || {
            let mut scenario = Scenario::with_udp_peer();
            end(&mut scenario);
            assert!(scenario.core.is_finished() || scenario.core.is_closed(), "{what}");
            scenario
        };
        let mut scenario = after_end();
        assert_eq!(texts_to_device(&scenario.connect_anew()).len(), 0, "{what}: it may say hello");
        assert_eq!(scenario.wait(499), [], "{what}");
        assert_eq!(
            scenario.wait(1),
            [publish(r#"{"type":"tts","session_id":"s1","state":"stop"}"#), goodbye("s1")],
            "{what}"
        );
        assert_eq!(texts_to_device(&scenario.connect_anew()).len(), 0, "{what}");
        assert_eq!(scenario.wait(20_000), [], "{what}: it is told once");
        // Unless it has lost its connection before that.
        let mut scenario = after_end();
        for _ in 0..3 {
            scenario.connect_anew();
            scenario.wait(499);
            scenario.lose_connection();
        }
        scenario.connect_anew();
        assert_eq!(texts_to_device(&scenario.wait(500)).len(), 2, "{what}");
        // A device that says hello knows.
        let mut scenario = after_end();
        scenario.connect_anew();
        scenario.device_sends(HELLO);
        assert_eq!(texts_to_device(&scenario.wait(1_000)).len(), 0, "{what}");
    }
    // A device that was heard of so long after it has hung up, or was told, knows.
    for end in [r#"{"type":"goodbye"}"#, LISTEN] {
        let mut scenario = Scenario::with_udp_peer();
        if end == LISTEN {
            scenario.server_sends(r#"{"type":"goodbye"}"#);
        } else {
            scenario.device_sends(end);
        }
        scenario.wait(10_000);
        scenario.core.refresh_keep_alive(scenario.shell.now);
        scenario.lose_connection();
        scenario.connect_anew();
        assert_eq!(scenario.wait(5_000), []);
        // Nor is one told that leaves with DISCONNECT.
        let mut scenario = Scenario::with_udp_peer();
        scenario.device_sends(r#"{"type":"goodbye"}"#);
        scenario.packet(Packet::Disconnect);
        scenario.connect_anew();
        assert_eq!(scenario.wait(5_000), []);
    }
}

#[test]
fn without_a_grace_a_lost_or_replaced_connection_ends_its_call_at_once() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.shell.config.mqtt.resume_grace = Duration::ZERO;
    let actions = scenario.lose_connection();
    assert_eq!(summary(&actions).reason, EndReason::DeviceLost);
    assert_eq!(actions.last(), Some(&Action::CloseDevice(CloseReason::Disconnected)));
    let mut scenario = Scenario::with_udp_peer();
    let actions = scenario.drive(Core::on_replaced);
    assert_eq!((summary(&actions).reason, texts_to_device(&actions).len()), (EndReason::Replaced, 0));
    assert_eq!(actions.last(), Some(&Action::CloseDevice(CloseReason::TakenOver)));
}

#[test]
fn disconnect_and_protocol_errors_keep_nothing() {
    let mut scenario = Scenario::with_udp_peer();
    let actions = scenario.packet(Packet::Disconnect);
    assert_eq!(
        actions[..2],
        [server_goodbye("s1", EndReason::DeviceDisconnected, 0), Action::CloseBackend(1000)]
    );
    assert_eq!(actions.last(), Some(&Action::CloseDevice(CloseReason::Disconnected)));
    assert_eq!(scenario.lose_connection(), []);
    let mut scenario = Scenario::with_udp_peer();
    let actions = scenario.connect();
    assert_eq!((summary(&actions).reason, texts_to_device(&actions).len()), (EndReason::DeviceError, 0));
    assert!(scenario.core.is_finished());
}

#[test]
fn a_slow_reader_loses_its_connection_and_keeps_its_call() {
    let mut scenario = Scenario::with_udp_peer();
    let why = CloseReason::SlowReader;
    let away =
        [Action::Log(LogEvent::ConnectionLost { kept: GRACE, why: why.clone() }), Action::CloseDevice(why)];
    assert_eq!(scenario.drive(Core::on_slow_reader), away);
    assert_eq!(scenario.drive(Core::on_slow_reader), []);
    assert_eq!(scenario.lose_connection(), []);
}

#[test]
fn a_taken_over_call_takes_the_new_address_as_its_own() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.lose_connection();
    scenario.reconnect("192.0.2.200");
    assert_eq!(scenario.core.ip(), "192.0.2.200".parse::<IpAddr>().unwrap());
    scenario.close_backend(failed(BackendStage::Live));
    let actions = scenario.wait(250);
    let [Action::Dial(request)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(request.forwarded_for, scenario.core.ip());
}

#[test]
fn a_reconnected_device_may_start_a_new_call() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.lose_connection();
    scenario.reconnect(DEVICE_IP);
    let actions = scenario.device_sends(HELLO);
    assert_eq!((summary(&actions).reason, texts_to_device(&actions).len()), (EndReason::Replaced, 0));
    assert_eq!(scenario.core.ssrc(), Some(0x1002));
}

#[test]
fn a_hello_is_answered_after_the_reconnect() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.lose_connection();
    scenario.open_backend();
    assert_eq!(texts_to_device(&scenario.server_sends(SERVER_HELLO)), [""; 0]);
    assert_eq!(without_logs_and_counters(scenario.reconnect(DEVICE_IP))[1..], []);
    assert_eq!(
        without_logs_and_counters(scenario.wait(500)),
        [hello_reply(1, "s1", r#"{"sample_rate":24000}"#)]
    );
}

#[test]
fn a_server_may_fail_or_close_while_the_device_is_disconnected() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.server_sends(TTS_START);
    scenario.lose_connection();
    scenario.close_backend(failed(BackendStage::Live));
    assert_eq!(scenario.wait(250), [redial(B)]);
    scenario.open_backend();
    scenario.server_sends(SERVER_HELLO);
    let stop = r#"{"type":"tts","session_id":"s1","state":"stop"}"#;
    assert_eq!(texts_to_device(&scenario.reconnect(DEVICE_IP)), [stop]);

    let mut scenario = Scenario::with_udp_peer();
    scenario.lose_connection();
    let actions = scenario.close_backend(BackendClosed::CloseFrame(None, "".into()));
    assert_eq!((summary(&actions).reason, texts_to_device(&actions).len()), (EndReason::ServerClosed, 0));
    assert_eq!(actions.last(), Some(&Action::CloseDevice(CloseReason::Disconnected)));
    assert!(scenario.core.is_finished());
}

#[test]
fn too_much_text_for_a_disconnected_device_ends_the_call() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.lose_connection();
    for _ in 0..128 {
        assert_eq!(scenario.server_sends(TTS_STOP), []);
    }
    let actions = scenario.server_sends(TTS_STOP);
    assert_eq!((summary(&actions).reason, texts_to_device(&actions).len()), (EndReason::Overflow, 0));
}

#[test]
fn the_text_of_a_closing_call_survives_a_new_connection() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.device_sends(LISTEN);
    scenario.device_sends(r#"{"type":"goodbye"}"#);
    assert_eq!(scenario.drive(Core::on_replaced), [Action::CloseDevice(CloseReason::TakenOver)]);
    scenario.open_backend();
    assert_eq!(texts_to_server(&scenario.server_sends(SERVER_HELLO))[0], LISTEN);
    assert!(scenario.core.is_finished());
}

/// The message is not reported as queued.
#[test]
fn an_operators_message_that_overflows_the_queue_of_a_disconnected_device_is_not_delivered() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.drive(Core::on_connection_lost);
    let mut message = || {
        let mut delivery = None;
        let actions =
            scenario.drive(|core, cx| delivery = Some(core.send_message(r#"{"type":"alert"}"#, cx)));
        (delivery.unwrap(), actions)
    };
    for _ in 0..128 {
        assert_eq!(message(), (Delivery::Queued, vec![]));
    }
    let (delivery, actions) = message();
    assert_eq!(delivery, Delivery::NotConnected);
    assert!(
        actions.iter().any(
            |action| matches!(action, Action::CallEnded(summary) if summary.reason == EndReason::Overflow)
        )
    );
    assert_eq!(message(), (Delivery::NotConnected, vec![]));
}
