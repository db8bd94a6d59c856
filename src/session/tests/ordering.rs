//! Order of messages: the hello reply, the hold for the first datagram, speech and its end.

use super::*;

const STT: &str = r#"{"session_id":"s1","type":"stt","text":"hi"}"#;

#[test]
fn everything_from_the_server_is_held_until_the_hello_reply() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.open_backend();
    assert_eq!(scenario.server_sends(r#"{"type":"mcp","payload":{"method":"tools/list","id":2}}"#), []);
    assert_eq!(scenario.server_sends(TTS_START), []);
    assert_eq!(scenario.downlink(&frame_with_header(1, b"\x08a")), Ok(vec![]));
    assert_eq!(scenario.server_sends("nonsense"), [Action::Count(Counter::BadServerText)]);
    let mcp = publish(r#"{"session_id":"s1","type":"mcp","payload":{"method":"tools/list","id":2}}"#);
    assert_eq!(
        without_logs_and_counters(scenario.server_sends(SERVER_HELLO)),
        [hello_reply(1, "s1", r#"{"sample_rate":24000}"#), mcp]
    );
    let (_, released) = scenario.uplink_from("192.0.2.7:4000", 1, b"\x08x").unwrap();
    assert_eq!(released[0], publish(TTS_START));
    assert_eq!(scenario.decrypt_datagrams(&released), [(1, 1, b"\x08a".to_vec())]);
}

#[test]
fn speech_is_held_until_the_first_datagram_and_keeps_its_order() {
    let mut scenario = Scenario::in_call();
    assert_eq!(scenario.server_sends(STT), [publish(STT)], "text that is no speech does not wait");
    assert_eq!(scenario.server_sends(TTS_START), []);
    assert_eq!(scenario.server_sends(STT), [], "but it does behind speech");
    scenario.downlink(&frame_with_header(10, b"\x08a")).unwrap();
    scenario.downlink(&frame_with_header(70, b"\x08b")).unwrap();
    assert_eq!(scenario.server_sends(TTS_STOP), []);
    scenario.wait(1_999);
    let (frame, released) = scenario.uplink_from("192.0.2.7:4000", 1, b"\x08x").unwrap();
    assert_eq!(frame, frame_with_header(7, b"\x08x"));
    let [start, stt, Action::SendDatagram(first, _), Action::SendDatagram(..), stop] = &released[..] else {
        panic!("{released:?}");
    };
    assert_eq!([start, stt, stop], [&publish(TTS_START), &publish(STT), &publish(TTS_STOP)]);
    assert_eq!(first.destination.addr, addr("192.0.2.7:4000"));
    assert_eq!(
        scenario.decrypt_datagrams(&released),
        [(1, 10, b"\x08a".to_vec()), (2, 70, b"\x08b".to_vec())]
    );
    assert_eq!(scenario.wait(10_000), [], "nothing is left of the waiting");
    let now = scenario.downlink(&frame_with_header(130, b"\x08c")).unwrap();
    assert_eq!(scenario.decrypt_datagrams(&now), [(3, 130, b"\x08c".to_vec())]);
    assert_eq!(scenario.server_sends(TTS_STOP), [publish(TTS_STOP)]);
}

#[test]
fn after_2_s_text_is_released_and_audio_dropped_with_one_log_line() {
    let mut scenario = Scenario::in_call();
    scenario.server_sends(TTS_START);
    scenario.downlink(&frame_with_header(10, b"\x08a")).unwrap();
    scenario.downlink(&frame_with_header(70, b"\x08b")).unwrap();
    scenario.server_sends(TTS_STOP);
    assert_eq!(scenario.wait(1_999), []);
    let dropped = || Action::Count(Counter::Dropped(DropReason::NoPeer));
    assert_eq!(
        scenario.wait(1),
        [
            dropped(),
            dropped(),
            Action::Log(LogEvent::HeldAudioDropped(2)),
            publish(TTS_START),
            publish(TTS_STOP)
        ]
    );
    // Once per call.
    assert_eq!(scenario.server_sends(TTS_START), [publish(TTS_START)]);
    assert_eq!(scenario.downlink(&frame_with_header(130, b"\x08c")), Err(DropReason::NoPeer));
    scenario.uplink(1, b"\x08x").unwrap();
    let heard = scenario.downlink(&frame_with_header(190, b"\x08d")).unwrap();
    assert_eq!(scenario.decrypt_datagrams(&heard), [(1, 190, b"\x08d".to_vec())], "sequence from 1");
    let end = scenario.device_sends(r#"{"type":"goodbye"}"#);
    assert_eq!((summary(&end).stats.dropped, summary(&end).stats.down_packets), (3, 1));
}

#[test]
fn held_audio_is_bounded_and_the_newest_is_dropped() {
    let mut scenario = Scenario::in_call();
    for n in 0..5_000 {
        scenario.downlink(&frame_with_header(n, b"\x08a")).unwrap();
    }
    assert_eq!(scenario.downlink(&frame_with_header(5_000, b"\x08a")), Err(DropReason::HeldFull));
    let (_, released) = scenario.uplink_from("192.0.2.7:4000", 1, b"\x08x").unwrap();
    let heard = scenario.decrypt_datagrams(&released);
    assert_eq!(heard.len(), 5_000);
    assert!(
        heard.iter().enumerate().all(|(i, (sequence, at, _))| (*sequence, *at) == (i as u32 + 1, i as u32))
    );
}

#[test]
fn too_much_held_text_ends_the_call() {
    let mut scenario = Scenario::in_call();
    scenario.server_sends(TTS_START);
    for _ in 0..511 {
        assert_eq!(scenario.server_sends(STT), []);
    }
    let actions = scenario.server_sends(STT);
    assert_eq!(summary(&actions).reason, EndReason::Overflow);
    let told = texts_to_device(&actions);
    assert_eq!((told.len(), told[0]), (513, TTS_START), "512 that waited, goodbye");
    assert_eq!(told[512], message::goodbye(Some("s1")));
}

#[test]
fn an_abort_flushes_held_audio_and_releases_text() {
    let mut scenario = Scenario::in_call();
    scenario.downlink(&frame_with_header(10, b"\x08a")).unwrap();
    scenario.server_sends(TTS_STOP);
    let abort = r#"{"session_id":"s1","type":"abort"}"#;
    let aborted = Action::Count(Counter::Dropped(DropReason::Aborted));
    let flush = Action::FlushAudio(0x1001);
    assert_eq!(scenario.device_sends(abort), [aborted, flush, publish(TTS_STOP), send_text(abort)]);
    // Nothing is held any longer, so the timer of the hold is not set.
    scenario.wait(3_000);
    assert_eq!(scenario.server_sends(TTS_START), [], "this still waits");
    assert_eq!(scenario.wait(2_000), [publish(TTS_START)]);
}

#[test]
fn missing_session_ids_are_inserted_and_all_else_is_unchanged() {
    let mut scenario = Scenario::in_call();
    for (text, told) in [
        (r#"{ "type" : "llm" }"#, r#"{"session_id":"s1", "type" : "llm" }"#),
        (r#"{"type":"llm","session_id":""}"#, r#"{"type":"llm","session_id":"s1"}"#),
        ("{}", r#"{"session_id":"s1"}"#),
    ] {
        assert_eq!(scenario.server_sends(text), [publish(told)]);
    }
    for text in ["", "认证失败", "42", "[]", "{"] {
        assert_eq!(scenario.server_sends(text), [Action::Count(Counter::BadServerText)], "{text}");
    }
    let odd = r#"{ "session_id":"x", "type":"listen" , "mode":1}"#;
    assert_eq!(scenario.device_sends(odd), [send_text(odd)]);
}

#[test]
fn a_repeated_hello_of_the_server_is_not_forwarded() {
    let mut scenario = Scenario::in_call();
    let again = SERVER_HELLO.replace("s1", "s9");
    assert_eq!(scenario.server_sends(&again), [Action::Count(Counter::RepeatedHello)]);
    assert_eq!(scenario.device_sends(LISTEN), [send_text(LISTEN)], "and changes nothing");
}

#[test]
fn uplink_audio_is_framed_and_counted() {
    let mut scenario = Scenario::in_call();
    assert_eq!(scenario.uplink(1, b"\x08one"), Ok(frame_with_header(7, b"\x08one")));
    assert_eq!(scenario.uplink(4, b"\x08two"), Ok(frame_with_header(7, b"\x08two")));
    assert_eq!(scenario.uplink(4, b"\x08two"), Err(DropReason::Duplicate));
    assert_eq!(scenario.uplink(3, b"\x08six"), Err(DropReason::Late));
    assert_eq!(scenario.uplink(100_000, b"\x08far"), Err(DropReason::Jump));
    for bad in [&b""[..], b"\x01", &[1; 20], &[2; 17]] {
        let peer = UdpPeer { addr: addr("192.0.2.7:4000"), local_ip: None };
        let expected = UdpHeader::parse(bad).unwrap_err().into();
        let mut bytes = bad.to_vec();
        let outcome = scenario.core.uplink(peer, &mut bytes, &scenario.shell.config, scenario.shell.now);
        assert_eq!(outcome, Err(expected), "{bad:?}");
    }
    let end = scenario.device_sends(r#"{"type":"goodbye"}"#);
    let expected = CallStats {
        up_packets: 2,
        up_bytes: 8,
        lost: 1,
        reordered: 1,
        duplicates: 1,
        ..CallStats::default()
    };
    assert_eq!(summary(&end).stats, expected);
}
