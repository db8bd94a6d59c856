//! A call in which the other end is a device, not a chat server.

use super::*;
use crate::proto::message;

const GOODBYE: &str = r#"{"session_id":"s1","type":"goodbye"}"#;
const AT: &str = "192.0.2.7:4000";
/// 60 ms of silence.
const SILENCE: &[u8] = b"\xfb\x03\xff\xfe\xff\xfe\xff\xfe";

/// Sequence, timestamp and payload of a packet.
type Heard = (u32, u32, Vec<u8>);

impl Story {
    fn ring(&mut self) -> Vec<Action> {
        self.drive(Core::ring)
    }

    fn bridge(&mut self) -> Vec<Action> {
        self.drive(Core::bridge)
    }

    /// What becomes of a datagram of the device.
    fn uplink(&mut self, from: &str, sequence: u32, payload: &[u8]) -> Result<Option<Vec<u8>>, Discard> {
        let mut datagram = datagram(self.grants, sequence, 7, payload);
        let peer = Peer { addr: addr(from), local: None };
        match self.core.uplink(peer, &mut datagram, &self.config, self.now)? {
            Uplink::Peer(len) => Ok(Some(datagram[audio::HEADER..audio::HEADER + len].to_vec())),
            Uplink::Silence => Ok(None),
            other => panic!("{other:?}"),
        }
    }

    /// What the device hears of the other one, and where it goes.
    fn hears(&mut self, opus: &[u8]) -> Result<(SocketAddr, Heard), Discard> {
        let mut out = [0; audio::HEADER + audio::MAX_PAYLOAD];
        let sealed = self.core.relay(opus, &mut out, &self.config, self.now)?;
        Ok((sealed.peer.addr, unseal(self.grants, &out[..sealed.len])))
    }

    fn hears_silence(&mut self) -> Result<Heard, Discard> {
        let mut out = [0; audio::HEADER + audio::MAX_PAYLOAD];
        let sealed = self.core.silence(&mut out, &self.config)?;
        Ok(unseal(self.grants, &out[..sealed.len]))
    }
}

fn from() -> Mac {
    "02:00:00:00:00:09".parse().unwrap()
}

#[test]
fn the_chat_server_is_left_without_a_word_to_the_device() {
    for (send_goodbye, act) in
        [(true, Core::ring as fn(&mut Core, &mut Cx<'_>)), (true, Core::bridge), (false, Core::ring)]
    {
        let mut story = Story::talking();
        story.config.websocket.send_goodbye = send_goodbye;
        story.wait(1_000);
        let mut expected = vec![Action::HangUp(1000)];
        if send_goodbye {
            let text = message::server_goodbye(Some("s1"), "device_call", 1_000);
            expected.insert(0, say(&text));
        }
        assert_eq!(story.drive(act), expected);
        assert_eq!(story.drive(act), [], "once");
        assert!(story.core.is_with_device() && story.core.has_call());
        assert_eq!(story.core.call().unwrap().session_id, Some("s1"));
        assert_eq!(story.core.call().unwrap().server, None);
        // Nothing that is about chat servers comes due, and late news of one changes nothing.
        assert_eq!(story.gone(failed("live")), []);
        assert_eq!(story.server(TTS_START), []);
        assert_eq!(story.drive(Core::backend_open), []);
        assert_eq!(story.drive(Core::backend_blocked), []);
        story.config.websocket.call_idle = Duration::from_secs(3_600);
        story.packet(Packet::PingReq);
        assert_eq!(story.watch(59_000), []);
    }
}

#[test]
fn text_that_waited_is_told_before_and_audio_is_dropped() {
    let mut story = Story::in_call();
    story.server(TTS_START);
    assert_eq!(story.down(&headed(1, b"\x08x")), Ok(vec![]));
    let out = story.ring();
    assert_eq!(told(&out), [TTS_START]);
    assert!(out.contains(&Action::Count(Counter::Dropped(Discard::NoServer))));
    assert_eq!(summary(&story.device(GOODBYE)).facts.dropped, 1);
}

#[test]
fn a_call_that_redials_rings_too() {
    let mut story = Story::talking();
    story.gone(failed("live"));
    story.device(LISTEN);
    assert_eq!(story.ring(), [Action::HangUp(1000)]);
    story.packet(Packet::PingReq);
    assert_eq!(story.watch(60_000), [], "no redial, no giving up");
}

#[test]
fn the_waiting_caller_hears_silence_of_its_own_packets_length() {
    for (duration, frames) in [
        ("", 3),
        (r#","frame_duration":20"#, 1),
        (r#","frame_duration":120"#, 6),
        (r#","frame_duration":70"#, 3),
    ] {
        let mut story = Story::online();
        story.device(&HELLO.replace(r#""sample_rate":16000"#, &format!(r#""sample_rate":16000{duration}"#)));
        story.open();
        story.server(SERVER_HELLO);
        story.ring();
        assert_eq!(story.hears_silence(), Err(Discard::NoPeer));
        for n in 1..4 {
            assert_eq!(story.uplink(AT, n, b"\x08one"), Ok(None));
            let mut silence = vec![0xfb, frames];
            silence.extend([0xff, 0xfe].repeat(frames.into()));
            assert_eq!(story.hears_silence(), Ok((n, 0, silence)));
        }
        let facts = summary(&story.device(GOODBYE)).facts;
        assert_eq!((facts.up_packets, facts.dropped, facts.down_packets), (0, 3, 3));
    }
    assert_eq!(&*audio::silence(60), SILENCE);
}

#[test]
fn voices_are_encrypted_anew_with_own_sequence_and_follow_the_device() {
    let mut story = Story::in_call();
    story.bridge();
    assert_eq!(story.hears(b"\x58a"), Err(Discard::NoPeer), "nowhere to send to yet");
    assert_eq!(story.uplink(AT, 1, b"\x08one"), Ok(Some(b"\x08one".to_vec())));
    assert_eq!(story.hears(b"\x58b"), Ok((addr(AT), (1, 0, b"\x58b".to_vec()))));
    // Another port: the network between has a new mapping.
    assert_eq!(story.uplink("192.0.2.7:4999", 2, b"\x08two"), Ok(Some(b"\x08two".to_vec())));
    assert_eq!(story.hears(b"\x58c"), Ok((addr("192.0.2.7:4999"), (2, 0, b"\x58c".to_vec()))));
    assert_eq!(story.uplink(AT, 2, b"\x08two"), Err(Discard::Duplicate));
    assert_eq!(story.hears_silence(), Err(Discard::NoPeer), "nobody rings");
    let facts = summary(&story.device(GOODBYE)).facts;
    assert_eq!((facts.up_packets, facts.down_packets, facts.dropped, facts.duplicates), (2, 2, 1, 1));
    assert_eq!(story.hears(b"\x58d"), Err(Discard::NoPeer));
}

#[test]
fn downlink_sequences_go_on_from_the_chat_servers() {
    let mut story = Story::talking();
    let down = story.down(&headed(5, b"\x58z")).unwrap();
    assert_eq!(story.heard(&down), [(1, 5, b"\x58z".to_vec())]);
    story.ring();
    story.uplink(AT, 2, b"\x08two").unwrap();
    assert_eq!(story.hears_silence().unwrap().0, 2);
    story.bridge();
    assert_eq!(story.hears(b"\x58y").unwrap().1.0, 3);
    assert_eq!(
        story.down(&headed(6, b"\x58x")),
        Err(Discard::NoServer),
        "a frame of the server that was left"
    );
}

#[test]
fn of_the_devices_texts_only_its_goodbyes_count() {
    for state in [Core::ring as fn(&mut Core, &mut Cx<'_>), Core::bridge] {
        for (text, reason, goodbyes) in [
            (GOODBYE, EndReason::DeviceGoodbye, 0),
            (r#"{"type":"goodbye"}"#, EndReason::DeviceGoodbye, 0),
            (r#"{"session_id":"s1","type":"udp_timeout"}"#, EndReason::DeviceUdpTimeout, 1),
            (r#"{"session_id":"s1","type":"abort"}"#, EndReason::DeviceAbort, 1),
        ] {
            let mut story = Story::talking();
            story.drive(state);
            for other in [LISTEN, r#"{"type":"iot"}"#, r#"{"type":"mcp","payload":{"method":"x"}}"#] {
                assert_eq!(story.device(other), [], "{other}");
            }
            let much = format!(r#"{{"type":"iot","much":"{}"}}"#, "x".repeat(60_000));
            for _ in 0..10 {
                assert_eq!(story.device(&much), [], "it waits for nobody, so no queue runs over");
            }
            let out = story.device(text);
            assert_eq!(summary(&out).reason, reason);
            assert_eq!(told(&out), vec![message::goodbye(Some("s1")); goodbyes]);
            assert_eq!(said(&out), Vec::<&str>::new());
            assert!(!story.core.is_with_device());
        }
    }
}

#[test]
fn tools_answer_in_mid_call() {
    let mut story = Story::talking();
    story.bridge();
    let asked = story.drive(|core, cx| core.command(7, "tools/list", "{}", cx));
    let id = message::rpc(told(&asked)[0], message::Reader::Device).unwrap().id.unwrap().to_owned();
    let reply = format!(r#"{{"type":"mcp","payload":{{"jsonrpc":"2.0","id":{id},"result":{{}}}}}}"#);
    assert_eq!(story.device(&reply), [Action::Answer { ticket: 7, result: Ok("{}".into()) }]);
}

#[test]
fn ends_that_others_bring_about_are_told_once_with_the_own_id() {
    for reason in [EndReason::PeerLeft, EndReason::Unanswered, EndReason::Operator] {
        let mut story = Story::talking();
        let over = |story: &mut Story| story.drive(|core, cx| core.device_call_over(reason, cx));
        assert_eq!(over(&mut story), [], "a call with a chat server goes on");
        story.bridge();
        let out = over(&mut story);
        assert_eq!(told(&out), [message::goodbye(Some("s1"))]);
        let summary = summary(&out);
        assert_eq!((summary.reason, summary.state), (reason, CallState::Bridged));
        assert_eq!(over(&mut story), []);
    }
}

#[test]
fn a_new_hello_begins_with_a_chat_server_again() {
    let mut story = Story::talking();
    story.bridge();
    let out = story.device(HELLO);
    assert_eq!((summary(&out).reason, summary(&out).state), (EndReason::Replaced, CallState::Bridged));
    assert_eq!(told(&out), Vec::<&str>::new(), "who begins anew needs no goodbye");
    assert!(!story.core.is_with_device());
    assert!(matches!(out.last(), Some(Action::Dial(_))), "{out:?}");
}

#[test]
fn a_lost_connection_is_waited_for_and_then_the_call_ends() {
    let mut story = Story::talking();
    story.ring();
    story.lost();
    assert!(story.core.is_with_device());
    assert_eq!(story.core.presence(), Presence::InCall);
    assert_eq!(story.drive(|core, cx| core.accepted_by(from(), cx)), [], "it waits");
    story.bridge();
    let back = traffic(story.come_back("192.0.2.8"));
    assert_eq!(back[0], Action::Welcome);
    assert_eq!(told(&back), [r#"{"type":"call_accepted","session_id":"s1","from":"02:00:00:00:00:09"}"#]);
    assert!(story.core.is_with_device());
    story.uplink("192.0.2.8:1", 2, b"\x08two").unwrap();
    assert_eq!(story.hears(b"\x58y").unwrap().0, addr("192.0.2.8:1"));
    story.lost();
    let grace = story.config.mqtt.resume_grace.as_millis() as u64;
    let out = story.wait(grace);
    assert_eq!((summary(&out).reason, summary(&out).state), (EndReason::DeviceLost, CallState::Bridged));
    assert_eq!(story.core.presence(), Presence::Absent);
}

#[test]
fn who_is_called_is_woken_in_a_call_and_idle_and_its_answer_goes_nowhere() {
    let wake = |story: &mut Story| {
        let out = story.drive(|core, cx| core.wake("An\"n", cx));
        let text: serde_json::Value = serde_json::from_str(told(&out)[0]).unwrap();
        assert_eq!(out.len(), 1);
        text
    };
    let check = |story: &mut Story, text: &serde_json::Value| {
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
        assert_eq!(story.device(&reply), []);
    };
    let mut story = Story::online();
    assert_eq!(story.core.presence(), Presence::Idle);
    let text = wake(&mut story);
    assert!(text.get("session_id").is_none());
    check(&mut story, &text);
    story.device(HELLO);
    assert_eq!(story.core.presence(), Presence::Idle, "not answered yet");
    story.open();
    story.server(SERVER_HELLO);
    assert_eq!(story.core.presence(), Presence::InCall);
    let text = wake(&mut story);
    assert_eq!(text["session_id"], "s1");
    check(&mut story, &text);
    let out = story.drive(|core, cx| core.wake("", cx));
    assert!(told(&out)[0].contains("来自未知的来电"));
}

#[test]
fn a_listener_is_not_idle_while_the_other_one_speaks() {
    let mut story = Story::talking();
    story.config.websocket.call_idle = Duration::from_secs(10);
    // As a reload does.
    story.drive(Core::timeout);
    story.bridge();
    for _ in 0..4 {
        story.wait(9_000);
        story.packet(Packet::PingReq);
        assert!(story.hears(b"\x58y").is_ok());
    }
    assert_eq!(summary(&story.wait(10_000)).reason, EndReason::Idle);
}
