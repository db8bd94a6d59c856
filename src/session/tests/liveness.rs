//! Liveness: pings, idle calls, and devices without audio.

use super::*;

/// Waits while the device sends PINGREQ, so that its keep alive does not expire.
fn wait_secs(scenario: &mut Scenario, seconds: u64) -> Vec<Action> {
    let mut out = Vec::new();
    for _ in 0..seconds {
        scenario.core.refresh_keep_alive(scenario.shell.now);
        out.extend(scenario.wait(1_000));
    }
    out
}

#[test]
fn servers_are_pinged_and_a_silent_one_is_a_failed_one() {
    let mut scenario = Scenario::with_udp_peer();
    assert_eq!(wait_secs(&mut scenario, 19), []);
    assert_eq!(wait_secs(&mut scenario, 1), [Action::SendPing]);
    scenario.core.on_backend_activity(scenario.shell.now + Duration::from_millis(1));
    assert_eq!(wait_secs(&mut scenario, 20), [Action::SendPing], "a pong");
    assert_eq!(wait_secs(&mut scenario, 20), [Action::SendPing]);
    let actions = wait_secs(&mut scenario, 20);
    let failure = BackendFailure::new(BackendStage::Live, "no pong in 20 s");
    assert_eq!(actions[..2], [Action::SendPing, Action::Count(Counter::DialFailed(BackendStage::Live))]);
    let Some(Action::Log(LogEvent::Redialling { failure: found, .. })) = actions.last() else {
        panic!("{actions:?}")
    };
    assert_eq!((found, scenario.shell.elapsed_ms()), (&failure, 80_000));
}

#[test]
fn any_frame_of_a_server_answers_a_ping() {
    let mut scenario = Scenario::with_udp_peer();
    for _ in 0..100 {
        wait_secs(&mut scenario, 19);
        scenario.downlink(&frame_with_header(1, b"\x08a")).unwrap();
        wait_secs(&mut scenario, 19);
        scenario.server_sends("not even JSON");
    }
    assert!(scenario.core.has_call());
}

#[test]
fn a_frame_before_the_ping_does_not_answer_it() {
    let mut scenario = Scenario::with_udp_peer();
    wait_secs(&mut scenario, 20);
    scenario.server_sends(TTS_STOP);
    scenario.core.on_backend_activity(scenario.shell.now);
    let failed =
        |actions: &[Action]| actions.contains(&Action::Count(Counter::DialFailed(BackendStage::Live)));
    assert!(failed(&wait_secs(&mut scenario, 20)));
}

#[test]
fn pings_can_be_turned_off() {
    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.ping_interval = Duration::ZERO;
    scenario.start_call();
    assert_eq!(wait_secs(&mut scenario, 299), []);
}

#[test]
fn a_call_without_audio_and_text_ends() {
    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.ping_interval = Duration::ZERO;
    scenario.shell.config.udp.first_packet_warn = Duration::ZERO;
    scenario.start_call();
    scenario.uplink(1, b"\x08x").unwrap();
    let activities: [fn(&mut Scenario); 6] = [
        |scenario| drop(scenario.device_sends(LISTEN)),
        |scenario| drop(scenario.server_sends(TTS_STOP)),
        |scenario| drop(scenario.downlink(&frame_with_header(1, b"\x08a"))),
        |scenario| drop(scenario.uplink(2, b"\x08x")),
        |scenario| drop(scenario.server_sends(r#"{"type":"mcp","payload":{}}"#)),
        |scenario| drop(scenario.device_sends(r#"{"type":"mcp","payload":{}}"#)),
    ];
    for activity in activities {
        assert_eq!(wait_secs(&mut scenario, 299), []);
        activity(&mut scenario);
    }
    // PINGREQs of the device and pongs of the server do not count as activity.
    assert_eq!(wait_secs(&mut scenario, 299), []);
    scenario.core.on_backend_activity(scenario.shell.now);
    assert_eq!(scenario.uplink(2, b"\x08x"), Err(DropReason::Duplicate));
    let actions = wait_secs(&mut scenario, 1);
    assert_eq!(summary(&actions).reason, EndReason::Idle);
    assert_eq!(texts_to_device(&actions), [r#"{"type":"goodbye","session_id":"s1"}"#]);
    assert_eq!(actions[0], server_goodbye("s1", EndReason::Idle, scenario.shell.elapsed_ms()));
}

#[test]
fn a_changed_idle_limit_reaches_a_running_call() {
    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.ping_interval = Duration::ZERO;
    scenario.shell.config.websocket.call_idle = Duration::ZERO;
    scenario.start_call();
    assert_eq!(wait_secs(&mut scenario, 1_000), []);
    scenario.shell.config.websocket.call_idle = Duration::from_secs(1_500);
    assert_eq!(scenario.drive(Core::on_timeout), [], "the shell wakes each session after a reload");
    assert_eq!(wait_secs(&mut scenario, 499), []);
    scenario.shell.config.websocket.call_idle = Duration::from_secs(5_000);
    assert_eq!(wait_secs(&mut scenario, 3_500), [], "longer is longer");
    assert_eq!(summary(&wait_secs(&mut scenario, 1)).reason, EndReason::Idle);
}

#[test]
fn a_listening_device_without_udp_audio_is_alerted_and_logged_once() {
    let mut scenario = Scenario::in_call();
    scenario.wait(1_000);
    scenario.device_sends(LISTEN);
    assert_eq!(scenario.wait(2_999), []);
    let actions = scenario.wait(1);
    let event = LogEvent::NoUdpAudio {
        after: Duration::from_secs(3),
        advertised: Some("10.0.0.9:8884".to_owned()),
        refused: RefusedDatagrams::default(),
    };
    assert_eq!(actions[0], Action::Log(event));
    let alert = message::alert(
        Some("s1"),
        "没有声音 / No audio",
        "网关收不到设备的 UDP 音频，请检查防火墙和 UDP 端口 / The gateway receives no UDP audio: check firewall and UDP port",
        "sad",
    );
    assert_eq!(actions[1..], [publish(&alert)]);
    assert_eq!(scenario.wait(10_000), [], "once");
    // It is shown again after the goodbye, since no audio ever came.
    scenario.device_sends(r#"{"type":"goodbye","session_id":"s1"}"#);
    assert_eq!(scenario.wait_timed(1_000), [(14_300, publish(&alert))]);
}

#[test]
fn audio_that_stops_in_mid_call_is_logged_with_where_it_comes_from_instead() {
    let mut scenario = Scenario::with_udp_peer();
    let no_audio = |actions: &[Action]| {
        actions.iter().find_map(|action| match action {
            Action::Log(event @ LogEvent::NoUdpAudio { .. }) => Some(event.to_string()),
            _ => None,
        })
    };
    scenario.device_sends(LISTEN);
    scenario.uplink(2, b"\x08x").unwrap();
    assert_eq!(no_audio(&scenario.wait(4_000)), None);
    scenario.server_sends(TTS_START);
    scenario.server_sends(TTS_STOP);
    scenario.device_sends(LISTEN);
    scenario.wait(1_000);
    scenario.shell.config.udp.peer_policy = crate::config::PeerPolicy::Strict;
    assert!(scenario.uplink_from("203.0.113.9:4000", 3, b"\x08x").is_err());
    let line = no_audio(&scenario.wait(2_000)).unwrap();
    let expected = "no audio: no UDP packet arrived from the listening device within 3 s; 1 datagrams of this call \
        came from an address that is not the device's (udp.peer_policy); the last came from 203.0.113.9:4000";
    assert_eq!(line, expected);
    // What ends the listening stops the clock.
    let stop = r#"{"session_id":"s1","type":"listen","state":"stop"}"#;
    let abort = r#"{"session_id":"s1","type":"abort"}"#;
    for end in ["tts start", stop, abort] {
        scenario.device_sends(LISTEN);
        scenario.wait(2_000);
        match end {
            "tts start" => scenario.server_sends(TTS_START),
            text => scenario.device_sends(text),
        };
        assert_eq!(no_audio(&scenario.wait(5_000)), None);
    }
}

#[test]
fn a_device_with_udp_audio_or_not_listening_is_not_alerted() {
    let mut scenario = Scenario::in_call();
    assert_eq!(scenario.wait(10_000), []);
    scenario.device_sends(LISTEN);
    scenario.uplink(1, b"\x08x").unwrap();
    assert_eq!(scenario.wait(5_000), []);

    let mut scenario = Scenario::in_call();
    scenario.device_sends(r#"{"type":"listen","state":"detect"}"#);
    assert_eq!(scenario.wait(5_000), []);

    let mut scenario = Scenario::in_call();
    scenario.shell.config.udp.first_packet_warn = Duration::ZERO;
    scenario.device_sends(LISTEN);
    assert_eq!(scenario.wait(5_000), []);

    let mut scenario = Scenario::in_call();
    scenario.shell.config.udp.first_packet_alert = false;
    scenario.device_sends(LISTEN);
    assert_eq!(texts_to_device(&scenario.wait(5_000)), [""; 0]);
}

#[test]
fn udp_audio_is_expected_only_after_the_hello_reply() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.device_sends(LISTEN);
    scenario.wait(2_500);
    scenario.open_backend();
    scenario.wait(2_500);
    scenario.server_sends(SERVER_HELLO);
    assert_eq!(scenario.wait(2_999), []);
    assert_eq!(texts_to_device(&scenario.wait(1)).len(), 1);
}

#[test]
fn a_call_without_a_server_hello_is_idle_from_its_hello_reply() {
    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.production = servers(&[A]);
    scenario.shell.config.websocket.call_idle = Duration::from_secs(10);
    scenario.device_sends(HELLO);
    scenario.open_backend();
    scenario.wait(1_000);
    scenario.server_sends(TTS_START);
    scenario.wait(12_999);
    assert!(scenario.core.has_call(), "answered at 4 s");
    assert_eq!(summary(&scenario.wait(1)).reason, EndReason::Idle);
}
