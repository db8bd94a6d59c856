//! Calls with another device.

use super::*;
use crate::proto::message;

const GOODBYE: &str = r#"{"session_id":"s1","type":"goodbye"}"#;
const DEVICE_UDP: &str = "192.0.2.7:4000";
/// The gateway's own.
const OWN_TTS_START: &str = r#"{"type":"tts","session_id":"s1","state":"start"}"#;
const OWN_TTS_STOP: &str = r#"{"type":"tts","session_id":"s1","state":"stop"}"#;
/// 60 ms of silence.
const SILENCE_PACKET: &[u8] = b"\xfb\x03\xff\xfe\xff\xfe\xff\xfe";

/// Sequence, timestamp and payload of a packet.
type DecryptedPacket = (u32, u32, Vec<u8>);

impl Scenario {
    fn start_ringing(&mut self) -> Vec<Action> {
        self.drive(Core::start_ringing)
    }

    fn join_device_call(&mut self) -> Vec<Action> {
        self.drive(join_device_call)
    }

    /// Both devices listen in realtime.
    fn join_in_realtime(&mut self) -> Vec<Action> {
        self.drive(|core, cx| core.join_device_call(true, cx))
    }

    /// The Opus packet for the other device, or `None` if the device is answered with silence.
    fn uplink_to_device(
        &mut self,
        from: &str,
        sequence: u32,
        payload: &[u8],
    ) -> Result<Option<Vec<u8>>, DropReason> {
        let mut datagram = datagram(self.credentials_issued, sequence, 7, payload);
        let peer = UdpPeer { addr: addr(from), local_ip: None };
        match self.core.uplink(peer, &mut datagram, &self.shell.config, self.shell.now)? {
            Uplink::OtherDevice(len) => {
                Ok(Some(datagram[audio::HEADER_LEN..audio::HEADER_LEN + len].to_vec()))
            }
            Uplink::Silence => Ok(None),
            other => panic!("{other:?}"),
        }
    }

    /// The packet of the other device as this one decrypts it, and its destination.
    fn relay(&mut self, opus: &[u8]) -> Result<(SocketAddr, DecryptedPacket), DropReason> {
        let mut out = [0; audio::HEADER_LEN + audio::MAX_PAYLOAD];
        let encrypted = self.core.relay(opus, &mut out, &self.shell.config, self.shell.now)?;
        Ok((encrypted.destination.addr, decrypt(self.credentials_issued, &out[..encrypted.datagram_len])))
    }

    fn ringing_silence(&mut self) -> Result<DecryptedPacket, DropReason> {
        let mut out = [0; audio::HEADER_LEN + audio::MAX_PAYLOAD];
        let encrypted = self.core.ringing_silence(&mut out, &self.shell.config, self.shell.now)?;
        Ok(decrypt(self.credentials_issued, &out[..encrypted.datagram_len]))
    }
}

/// At least one device does not listen in realtime.
pub(super) fn join_device_call(core: &mut Core, cx: &mut Context<'_>) {
    core.join_device_call(false, cx);
}

fn other_mac() -> Mac {
    "02:00:00:00:00:09".parse().unwrap()
}

#[test]
fn the_chat_server_is_closed_and_the_device_is_told_nothing() {
    for (send_goodbye, act) in [
        (true, Core::start_ringing as fn(&mut Core, &mut Context<'_>)),
        (true, join_device_call),
        (false, Core::start_ringing),
    ] {
        let mut scenario = Scenario::with_udp_peer();
        scenario.shell.config.websocket.send_goodbye = send_goodbye;
        scenario.wait(1_000);
        let mut expected = vec![Action::CloseBackend(1000)];
        if send_goodbye {
            let text = message::server_goodbye(Some("s1"), "device_call", 1_000);
            expected.insert(0, send_text(&text));
        }
        assert_eq!(scenario.drive(act), expected);
        assert_eq!(scenario.drive(act), [], "once");
        assert!(scenario.core.is_in_device_call() && scenario.core.has_call());
        assert_eq!(scenario.core.call().unwrap().session_id, Some("s1"));
        assert_eq!(scenario.core.call().unwrap().server, None);
        // No timer for chat servers is set, and late events of one are ignored.
        assert_eq!(scenario.close_backend(failed(BackendStage::Live)), []);
        assert_eq!(scenario.server_sends(TTS_START), []);
        assert_eq!(scenario.drive(Core::on_backend_open), []);
        assert_eq!(scenario.drive(Core::on_backend_blocked), []);
        scenario.shell.config.websocket.call_idle = Duration::from_secs(3_600);
        scenario.packet(Packet::PingReq);
        assert_eq!(scenario.wait_timed(59_000), []);
    }
}

#[test]
fn held_text_is_delivered_first_and_audio_is_dropped() {
    let mut scenario = Scenario::in_call();
    scenario.server_sends(TTS_START);
    assert_eq!(scenario.downlink(&frame_with_header(1, b"\x08x")), Ok(vec![]));
    let out = scenario.start_ringing();
    assert_eq!(texts_to_device(&out), [TTS_START, OWN_TTS_STOP], "nobody else ends this speech");
    assert!(out.contains(&Action::Count(Counter::Dropped(DropReason::NoServer))));
    assert_eq!(summary(&scenario.device_sends(GOODBYE)).stats.dropped, 1);
}

#[test]
fn a_redialling_call_can_ring_too() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.close_backend(failed(BackendStage::Live));
    scenario.device_sends(LISTEN);
    assert_eq!(scenario.start_ringing(), [Action::CloseBackend(1000)]);
    scenario.packet(Packet::PingReq);
    assert_eq!(scenario.wait_timed(60_000), [], "no redial, no giving up");
}

#[test]
fn a_ringing_caller_gets_silence_of_its_own_packet_duration() {
    for (duration, ms) in [
        ("", 60),
        (r#","frame_duration":20"#, 20),
        (r#","frame_duration":120"#, 120),
        (r#","frame_duration":71"#, 60),
    ] {
        let mut scenario = Scenario::online();
        scenario.device_sends(
            &HELLO.replace(r#""sample_rate":16000"#, &format!(r#""sample_rate":16000{duration}"#)),
        );
        scenario.open_backend();
        scenario.server_sends(SERVER_HELLO);
        scenario.start_ringing();
        assert_eq!(scenario.ringing_silence(), Err(DropReason::NoPeer));
        for n in 1..4 {
            assert_eq!(scenario.uplink_to_device(DEVICE_UDP, n, b"\x08one"), Ok(None));
            assert_eq!(scenario.ringing_silence(), Ok((n, 0, audio::silence_packet(ms).into_vec())));
        }
        let stats = summary(&scenario.device_sends(GOODBYE)).stats;
        assert_eq!((stats.up_packets, stats.dropped, stats.down_packets), (0, 3, 3));
    }
    assert_eq!(&*audio::silence_packet(60), SILENCE_PACKET);
}

#[test]
fn relayed_audio_is_re_encrypted_with_its_own_sequence_and_follows_the_device() {
    let mut scenario = Scenario::in_call();
    scenario.join_device_call();
    assert_eq!(scenario.relay(b"\x58a"), Err(DropReason::NoPeer), "nowhere to send to yet");
    assert_eq!(scenario.uplink_to_device(DEVICE_UDP, 1, b"\x08one"), Ok(Some(b"\x08one".to_vec())));
    assert_eq!(scenario.relay(b"\x58b"), Ok((addr(DEVICE_UDP), (1, 0, b"\x58b".to_vec()))));
    // Another port: a NAT has changed its mapping.
    scenario.shell.now += Duration::from_secs(1);
    for n in 2..9 {
        let outcome = scenario.uplink_to_device("192.0.2.7:4999", n, b"\x08two");
        assert_eq!(outcome, Err(DropReason::PathHeld));
    }
    let mut datagram = datagram(scenario.credentials_issued, 9, 7, b"\x08two");
    let outcome = scenario.shell.uplink(&mut scenario.core, addr("192.0.2.7:4999"), &mut datagram);
    assert_eq!(outcome, Ok(Uplink::Path { device_heard: false }));
    let mut released = Vec::new();
    for _ in 2..=9 {
        assert_eq!(scenario.core.next_released(&mut released), Some(Ok(Uplink::OtherDevice(4))));
        assert_eq!(released[audio::HEADER_LEN..], *b"\x08two");
    }
    assert_eq!(scenario.core.next_released(&mut released), None);
    assert_eq!(scenario.relay(b"\x58c"), Ok((addr("192.0.2.7:4999"), (2, 0, b"\x58c".to_vec()))));
    assert_eq!(scenario.uplink_to_device("192.0.2.7:4999", 9, b"\x08two"), Err(DropReason::Duplicate));
    assert_eq!(scenario.ringing_silence(), Err(DropReason::NoPeer), "nobody rings");
    let stats = summary(&scenario.device_sends(GOODBYE)).stats;
    assert_eq!((stats.up_packets, stats.down_packets, stats.dropped, stats.duplicates), (9, 2, 1, 1));
    assert_eq!(scenario.relay(b"\x58d"), Err(DropReason::NoPeer));
}

#[test]
fn downlink_sequences_continue_from_the_chat_servers() {
    let mut scenario = Scenario::with_udp_peer();
    let down = scenario.downlink(&frame_with_header(5, b"\x58z")).unwrap();
    assert_eq!(scenario.decrypt_datagrams(&down), [(1, 5, b"\x58z".to_vec())]);
    scenario.start_ringing();
    scenario.uplink_to_device(DEVICE_UDP, 2, b"\x08two").unwrap();
    assert_eq!(scenario.ringing_silence().unwrap().0, 2);
    scenario.join_device_call();
    assert_eq!(scenario.relay(b"\x58y").unwrap().1.0, 3);
    assert_eq!(
        scenario.downlink(&frame_with_header(6, b"\x58x")),
        Err(DropReason::NoServer),
        "a frame of the server that was left"
    );
}

#[test]
fn only_goodbyes_of_the_device_are_handled() {
    for state in [Core::start_ringing as fn(&mut Core, &mut Context<'_>), join_device_call] {
        for (text, reason, goodbyes) in [
            (GOODBYE, EndReason::DeviceGoodbye, 0),
            (r#"{"type":"goodbye"}"#, EndReason::DeviceGoodbye, 0),
            (r#"{"session_id":"s1","type":"udp_timeout"}"#, EndReason::DeviceUdpTimeout, 1),
            (r#"{"session_id":"s1","type":"abort"}"#, EndReason::DeviceAbort, 1),
        ] {
            let mut scenario = Scenario::with_udp_peer();
            scenario.drive(state);
            for other in [LISTEN, r#"{"type":"iot"}"#, r#"{"type":"mcp","payload":{"method":"x"}}"#] {
                assert_eq!(scenario.device_sends(other), [], "{other}");
            }
            let much = format!(r#"{{"type":"iot","much":"{}"}}"#, "x".repeat(60_000));
            for _ in 0..10 {
                assert_eq!(scenario.device_sends(&much), [], "it waits for nobody, so no queue runs over");
            }
            let out = scenario.device_sends(text);
            assert_eq!(summary(&out).reason, reason);
            assert_eq!(texts_to_device(&out), vec![message::goodbye(Some("s1")); goodbyes]);
            assert_eq!(texts_to_server(&out), Vec::<&str>::new());
            assert!(!scenario.core.is_in_device_call());
        }
    }
}

#[test]
fn tool_calls_are_answered_during_a_device_call() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.join_device_call();
    let asked = scenario.drive(|core, cx| core.send_command(7, "tools/list", "{}", cx));
    let id = message::parse_rpc(texts_to_device(&asked)[0], message::Reader::Device)
        .unwrap()
        .id
        .unwrap()
        .to_owned();
    let reply = format!(r#"{{"type":"mcp","payload":{{"jsonrpc":"2.0","id":{id},"result":{{}}}}}}"#);
    assert_eq!(scenario.device_sends(&reply), [Action::CommandResult { ticket: 7, result: Ok("{}".into()) }]);
}

#[test]
fn an_end_caused_by_others_is_announced_once_with_the_own_session_id() {
    for reason in [EndReason::PeerLeft, EndReason::Unanswered, EndReason::Operator] {
        let mut scenario = Scenario::with_udp_peer();
        let over = |scenario: &mut Scenario| scenario.drive(|core, cx| core.end_device_call(reason, cx));
        assert_eq!(over(&mut scenario), [], "a call with a chat server goes on");
        scenario.join_device_call();
        let out = over(&mut scenario);
        assert_eq!(texts_to_device(&out), [message::goodbye(Some("s1"))]);
        let summary = summary(&out);
        assert_eq!((summary.reason, summary.state), (reason, CallState::InDeviceCall));
        assert_eq!(over(&mut scenario), []);
    }
}

#[test]
fn a_new_hello_starts_with_a_chat_server_again() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.join_device_call();
    let out = scenario.device_sends(HELLO);
    assert_eq!((summary(&out).reason, summary(&out).state), (EndReason::Replaced, CallState::InDeviceCall));
    assert_eq!(texts_to_device(&out), Vec::<&str>::new(), "who begins anew needs no goodbye");
    assert!(!scenario.core.is_in_device_call());
    assert!(matches!(out.last(), Some(Action::Dial(_))), "{out:?}");
}

#[test]
fn a_lost_connection_is_waited_for_and_then_the_call_ends() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.start_ringing();
    scenario.lose_connection();
    assert!(scenario.core.is_in_device_call());
    assert_eq!(scenario.core.presence(), Presence::InCall);
    assert_eq!(scenario.drive(|core, cx| core.on_call_accepted(other_mac(), cx)), [], "it waits");
    scenario.join_device_call();
    let back = without_logs_and_counters(scenario.reconnect("192.0.2.8"));
    assert_eq!(back[0], Action::AcceptConnect);
    assert_eq!(
        texts_to_device(&scenario.wait(500)),
        [r#"{"type":"call_accepted","session_id":"s1","from":"02:00:00:00:00:09"}"#]
    );
    assert!(scenario.core.is_in_device_call());
    assert_eq!(scenario.relay(b"\x58y").unwrap().0, addr(DEVICE_UDP));
    scenario.lose_connection();
    let grace = scenario.shell.config.mqtt.resume_grace.as_millis() as u64;
    let out = scenario.wait(grace + 100);
    assert_eq!((summary(&out).reason, summary(&out).state), (EndReason::DeviceLost, CallState::InDeviceCall));
    assert_eq!(scenario.core.presence(), Presence::Absent);
}

#[test]
fn the_called_device_is_woken_in_a_call_or_idle_and_its_response_is_consumed() {
    let wake = |scenario: &mut Scenario| {
        let out = scenario.drive(|core, cx| core.wake_for_call("An\"n", cx));
        let text: serde_json::Value = serde_json::from_str(texts_to_device(&out)[0]).unwrap();
        assert_eq!(out.len(), 1);
        text
    };
    let check = |scenario: &mut Scenario, text: &serde_json::Value| {
        assert_eq!(text["type"], "mcp");
        assert_eq!(text["payload"]["method"], "tools/call");
        assert_eq!(text["payload"]["params"]["name"], "self.remote_wakeup");
        assert_eq!(
            text["payload"]["params"]["arguments"],
            serde_json::json!({ "reason": "[device_call]您收到来自An\"n的来电，是否接听？", "action": "listen" })
        );
        let id = text["payload"]["id"].as_u64().unwrap();
        assert!((0x4000_0000..0x8000_0000).contains(&id));
        let reply = format!(r#"{{"type":"mcp","payload":{{"jsonrpc":"2.0","id":{id},"result":{{}}}}}}"#);
        assert_eq!(scenario.device_sends(&reply), []);
    };
    let mut scenario = Scenario::online();
    assert_eq!(scenario.core.presence(), Presence::Idle);
    let text = wake(&mut scenario);
    assert!(text.get("session_id").is_none());
    check(&mut scenario, &text);
    scenario.device_sends(HELLO);
    assert_eq!(scenario.core.presence(), Presence::Idle, "not answered yet");
    scenario.open_backend();
    scenario.server_sends(SERVER_HELLO);
    assert_eq!(scenario.core.presence(), Presence::InCall);
    let text = wake(&mut scenario);
    assert_eq!(text["session_id"], "s1");
    check(&mut scenario, &text);
    let out = scenario.drive(|core, cx| core.wake_for_call("", cx));
    assert!(texts_to_device(&out)[0].contains("来自未知的来电"));
}

#[test]
fn a_listening_device_is_not_idle_while_the_other_one_speaks() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.shell.config.websocket.call_idle = Duration::from_secs(10);
    // As a reload does.
    scenario.drive(Core::on_timeout);
    scenario.join_device_call();
    for _ in 0..4 {
        scenario.wait(9_000);
        scenario.packet(Packet::PingReq);
        assert!(scenario.relay(b"\x58y").is_ok());
    }
    assert_eq!(summary(&scenario.wait(10_000)).reason, EndReason::Idle);
}

#[test]
fn a_device_in_realtime_speaks_from_the_start_of_a_device_call_and_gets_goodbye_at_its_end() {
    let mut scenario = Scenario::with_udp_peer();
    assert!(!scenario.core.listens_in_realtime());
    for (listen, realtime) in [
        (r#"{"session_id":"s1","type":"listen","state":"start","mode":"realtime"}"#, true),
        (r#"{"session_id":"s1","type":"listen","state":"detect","text":"hi"}"#, true),
        (r#"{"session_id":"s1","type":"listen","state":"stop"}"#, true),
        (LISTEN, false),
        (r#"{"session_id":"s1","type":"listen","state":"start","mode":"realtime"}"#, true),
        (r#"{"session_id":"s1","type":"listen","state":"start"}"#, false),
    ] {
        scenario.device_sends(listen);
        assert_eq!(scenario.core.listens_in_realtime(), realtime, "{listen}");
    }
    // It listens anew when it is told that the chat server's speech is over.
    scenario.server_sends(TTS_START);
    assert_eq!(texts_to_device(&scenario.start_ringing()), [OWN_TTS_STOP]);
    scenario.device_sends(r#"{"session_id":"s1","type":"listen","state":"start","mode":"realtime"}"#);
    assert!(scenario.core.listens_in_realtime());
    assert_eq!(texts_to_device(&scenario.join_in_realtime()), [OWN_TTS_START]);
    let out = scenario.drive(|core, cx| core.end_device_call(EndReason::PeerLeft, cx));
    assert_eq!(texts_to_device(&out), [message::goodbye(Some("s1"))]);
}

#[test]
fn a_device_that_is_away_speaks_in_a_device_call_when_it_has_shown_that_it_is_in_it() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.lose_connection();
    assert_eq!(texts_to_device(&scenario.join_in_realtime()), Vec::<&str>::new());
    assert_eq!(texts_to_device(&scenario.reconnect("192.0.2.7")), Vec::<&str>::new());
    scenario.wait(100);
    scenario.uplink_to_device(DEVICE_UDP, 2, b"\x08two").unwrap();
    assert_eq!(texts_to_device(&scenario.wait(400)), [OWN_TTS_START]);
    // A device whose audio arrives is in the call, even if it says nothing.
    scenario.lose_connection();
    scenario.reconnect("192.0.2.7");
    for sequence in 3..60 {
        scenario.wait(1_000);
        scenario.packet(Packet::PingReq);
        scenario.uplink_to_device(DEVICE_UDP, sequence, b"\x08x").unwrap();
    }
    assert!(scenario.core.is_in_device_call());
}

#[test]
fn a_call_that_was_about_to_end_with_its_servers_speech_goes_on_as_a_device_call() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.shell.config.udp.downlink_pace = true;
    scenario.server_sends(TTS_START);
    for n in 0..10 {
        scenario.downlink(&frame_with_header(n, b"\x58x")).unwrap();
    }
    scenario.server_sends(GOODBYE);
    assert!(scenario.core.has_call(), "its speech is played first");
    scenario.join_in_realtime();
    scenario.wait(2_000);
    scenario.lose_connection();
    scenario.reconnect("192.0.2.7");
    scenario.wait(100);
    scenario.uplink_to_device(DEVICE_UDP, 2, b"\x08two").unwrap();
    scenario.wait(1_000);
    assert!(scenario.core.is_in_device_call());
}
