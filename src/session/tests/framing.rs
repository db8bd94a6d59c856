//! The framing of a server's audio: configured, or learned from its frames.

use super::*;
use crate::config::Framing;

/// A call whose server is set to this framing; the device has sent a datagram.
fn with_framing(framing: Framing) -> Scenario {
    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.production =
        vec![Arc::new(ChatServerConfig { framing, ..A.parse().unwrap() })];
    scenario.start_call();
    scenario.uplink(1, b"\x08x").unwrap();
    scenario
}

fn payloads(scenario: &Scenario, actions: &[Action]) -> Vec<Vec<u8>> {
    scenario.decrypt_datagrams(actions).into_iter().map(|(_, _, payload)| payload).collect()
}

#[test]
fn headers_are_taken_off_and_their_timestamps_carried_through() {
    let mut scenario = Scenario::with_udp_peer();
    // The first eight bytes are ignored, since some servers put other values there.
    let mut frame = frame_with_header(0xfedc_ba98, b"\x08a");
    frame[..8].copy_from_slice(&[1, 0, 0, 2, 9, 9, 9, 9]);
    let heard = scenario.downlink(&frame).unwrap();
    assert_eq!(scenario.decrypt_datagrams(&heard), [(1, 0xfedc_ba98, b"\x08a".to_vec())]);
    assert_eq!(scenario.uplink(2, b"\x08y"), Ok(frame_with_header(7, b"\x08y")));
}

#[test]
fn bad_frames_are_dropped_and_the_call_goes_on() {
    let mut scenario = with_framing(Framing::Header);
    let mut long = frame_with_header(1, &[8; 1401]);
    for bad in [&b""[..], b"\x08short", &[8; 40], &frame_with_header(1, b""), &long] {
        assert_eq!(scenario.downlink(bad), Err(DropReason::BadFrame), "{} bytes", bad.len());
    }
    long.truncate(0);
    assert!(scenario.downlink(&frame_with_header(1, &[8; 1400])).is_ok());
    assert_eq!(summary(&scenario.device_sends(r#"{"type":"goodbye"}"#)).stats.dropped, 5);
}

#[test]
fn raw_servers_get_and_send_bare_opus_with_timestamps_of_ours() {
    let mut scenario = with_framing(Framing::Raw);
    assert_eq!(scenario.uplink(2, b"\x08y"), Ok(b"\x08y".to_vec()));
    let first = scenario.downlink(b"\x08a").unwrap();
    scenario.wait(60);
    let second = scenario.downlink(&frame_with_header(1, b"looks like a header")).unwrap();
    assert_eq!(scenario.decrypt_datagrams(&first), [(1, 1, b"\x08a".to_vec())], "never zero");
    assert_eq!(scenario.decrypt_datagrams(&second), [(2, 60, frame_with_header(1, b"looks like a header"))]);
    assert_eq!(scenario.downlink(b""), Err(DropReason::BadFrame));
    assert_eq!(scenario.downlink(&[8; 1401]), Err(DropReason::BadFrame));
}

#[test]
fn three_frames_without_a_header_mean_raw_framing() {
    let mut scenario = Scenario::with_udp_peer();
    assert_eq!(scenario.downlink(b"\x08a"), Ok(vec![]));
    assert_eq!(scenario.server_sends(TTS_STOP), [], "text behind them waits");
    assert_eq!(scenario.downlink(b"\x08b"), Ok(vec![]));
    assert_eq!(scenario.uplink(2, b"\x08y"), Ok(frame_with_header(7, b"\x08y")), "headers until it is known");
    let released = scenario.downlink(b"\x08c").unwrap();
    assert_eq!(payloads(&scenario, &released), [b"\x08a", b"\x08b", b"\x08c"]);
    assert_eq!(released[1], publish(TTS_STOP));
    assert_eq!(scenario.uplink(3, b"\x08y"), Ok(b"\x08y".to_vec()));
    // Stored for that server, and used by the next call.
    scenario.shell.config.websocket.production = servers(&[A]);
    scenario.start_call();
    assert_eq!(scenario.uplink(1, b"\x08y"), Ok(b"\x08y".to_vec()));
    let at_once = scenario.downlink(b"\x08d").unwrap();
    assert_eq!(payloads(&scenario, &at_once), [b"\x08d"]);
}

#[test]
fn the_longest_packets_mean_raw_framing_and_longer_ones_are_ignored() {
    let longest = [8; audio::MAX_PAYLOAD];
    let mut scenario = Scenario::with_udp_peer();
    assert_eq!(scenario.downlink(&[8; audio::MAX_PAYLOAD + 1]), Err(DropReason::BadFrame));
    assert_eq!(scenario.downlink(&longest), Ok(vec![]));
    assert_eq!(scenario.downlink(&longest), Ok(vec![]));
    let released = scenario.downlink(&longest).unwrap();
    assert_eq!(payloads(&scenario, &released), [longest; 3]);
}

#[test]
fn one_header_decides_the_framing_for_good() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.downlink(b"\x08a").unwrap();
    scenario.downlink(b"\x08b").unwrap();
    let bad = || Action::Count(Counter::Dropped(DropReason::BadFrame));
    let released = scenario.downlink(&frame_with_header(5, b"\x08c")).unwrap();
    assert_eq!(released[..2], [bad(), bad()], "the ones without are dropped");
    assert_eq!(payloads(&scenario, &released), [b"\x08c"]);
    for _ in 0..4 {
        assert_eq!(scenario.downlink(b"\x08d"), Err(DropReason::BadFrame));
    }
    assert_eq!(summary(&scenario.device_sends(r#"{"type":"goodbye"}"#)).stats.dropped, 6);
}

#[test]
fn a_raw_server_that_sends_a_header_uses_headers_from_then_on() {
    let mut scenario = Scenario::with_udp_peer();
    for _ in 0..3 {
        scenario.downlink(b"\x08a").unwrap();
    }
    let heard = scenario.downlink(&frame_with_header(5, b"\x08c")).unwrap();
    assert_eq!(scenario.decrypt_datagrams(&heard), [(4, 5, b"\x08c".to_vec())]);
    assert_eq!(scenario.downlink(b"\x08d"), Err(DropReason::BadFrame));
    assert_eq!(scenario.uplink(2, b"\x08y"), Ok(frame_with_header(7, b"\x08y")));
    assert_eq!(scenario.shell.servers.framing(&server(A)), Some(WireFraming::Header));
    scenario.shell.servers.learn_framing(&server(A), WireFraming::Raw);
    assert_eq!(scenario.shell.servers.framing(&server(A)), Some(WireFraming::Header));
}

#[test]
fn frames_of_unknown_framing_are_held_for_2_s() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.downlink(b"\x08a").unwrap();
    scenario.server_sends(TTS_STOP);
    let dropped = Action::Count(Counter::Dropped(DropReason::NoPeer));
    assert_eq!(
        scenario.wait(2_000),
        [dropped, Action::Log(LogEvent::HeldAudioDropped(1)), publish(TTS_STOP)]
    );
    assert_eq!(scenario.downlink(b"\x08b"), Err(DropReason::NoPeer));
    let third = scenario.downlink(b"\x08c").unwrap();
    assert_eq!(payloads(&scenario, &third), [b"\x08c"], "what is learnt still counts");
}

#[test]
fn framing_is_learnt_before_the_hello_too_and_anew_for_each_server() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.open_backend();
    for payload in [b"\x08a", b"\x08b", b"\x08c"] {
        assert_eq!(scenario.downlink(payload), Ok(vec![]));
    }
    scenario.server_sends(SERVER_HELLO);
    let (frame, released) = scenario.uplink_from("192.0.2.7:4000", 1, b"\x08x").unwrap();
    assert_eq!(frame, b"\x08x");
    assert_eq!(payloads(&scenario, &released), [b"\x08a", b"\x08b", b"\x08c"]);
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(250);
    scenario.open_backend();
    scenario.server_sends(SERVER_HELLO);
    assert_eq!(scenario.uplink(2, b"\x08y"), Ok(frame_with_header(7, b"\x08y")), "another server");
}

#[test]
fn flags_of_the_downlink_can_be_turned_off() {
    let mut scenario = Scenario::with_udp_peer();
    let actions = scenario.downlink(&frame_with_header(5, b"\x08a")).unwrap();
    let [Action::SendDatagram(_, with)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(with[1], 0x81);
    scenario.shell.config.udp.downlink_flags = false;
    let actions = scenario.downlink(&frame_with_header(5, b"\x08a")).unwrap();
    let [Action::SendDatagram(encrypted, without)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!((without[1], encrypted.datagram_len), (0, without.len()));
}

/// The URL and the protocol version of the dial among the actions.
fn dialled(actions: &[Action]) -> (&str, u8) {
    let mut dials = actions.iter().filter_map(|action| match action {
        Action::Dial(request) => Some((&*request.server.url, request.protocol_version)),
        _ => None,
    });
    dials.next().unwrap()
}

fn hello_up(version: u8) -> String {
    HELLO_TO_SERVER.replace(r#""version":2"#, &format!(r#""version":{version}"#))
}

#[test]
fn a_configured_framing_decides_the_protocol_version_of_upgrade_and_hello() {
    for (framing, version) in [(Framing::Raw, 1), (Framing::Header, 2), (Framing::Auto, 2)] {
        let mut scenario = Scenario::online();
        scenario.shell.config.websocket.production =
            vec![Arc::new(ChatServerConfig { framing, ..A.parse().unwrap() })];
        assert_eq!(dialled(&scenario.device_sends(HELLO)), (A, version), "{framing:?}");
        assert_eq!(scenario.open_backend(), [send_text(&hello_up(version))], "{framing:?}");
        assert_eq!(scenario.wait(3_000), [send_text(&hello_up(version))], "{framing:?}: once more");
        scenario.server_sends(SERVER_HELLO);
        scenario.close_backend(failed(BackendStage::Live));
        assert_eq!(dialled(&scenario.wait(250)), (A, version), "{framing:?}: a redial");
        assert_eq!(scenario.open_backend(), [send_text(&hello_up(version))], "{framing:?}: a redial");
    }
}

#[test]
fn a_learnt_framing_decides_the_protocol_version_of_later_dials() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.shell.config.websocket.production = servers(&[A, B]);
    for _ in 0..3 {
        scenario.downlink(b"\x08a").unwrap();
    }
    // Redials of the same call, each to the next server.
    for (pause, url, version) in [(250, B, 2), (500, A, 1), (1_000, B, 2)] {
        scenario.close_backend(failed(BackendStage::Live));
        assert_eq!(dialled(&scenario.wait(pause)), (url, version));
        assert_eq!(scenario.open_backend(), [send_text(&hello_up(version))]);
        scenario.server_sends(SERVER_HELLO);
    }
    // Later calls, until the server sends a header after all.
    scenario.shell.config.websocket.production = servers(&[A]);
    assert_eq!(dialled(&scenario.device_sends(HELLO)), (A, 1));
    assert_eq!(scenario.open_backend(), [send_text(&hello_up(1))]);
    scenario.server_sends(SERVER_HELLO);
    scenario.downlink(&frame_with_header(5, b"\x08c")).unwrap();
    assert_eq!(dialled(&scenario.device_sends(HELLO)), (A, 2));
}

#[test]
fn a_hello_says_the_protocol_version_of_its_upgrade_whatever_is_learnt_in_between() {
    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.production = servers(&[A]);
    assert_eq!(dialled(&scenario.device_sends(HELLO)), (A, 2));
    assert_eq!(scenario.open_backend(), [send_text(&hello_up(2))]);
    for _ in 0..3 {
        scenario.downlink(b"\x08a").unwrap();
    }
    assert_eq!(scenario.wait(3_000), [send_text(&hello_up(2))]);
}
