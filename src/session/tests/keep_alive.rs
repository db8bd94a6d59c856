//! The datagram that keeps a silent call's path open: when it is sent, and that devices do nothing with it.

use std::collections::HashSet;

use super::*;
use crate::session::sim::firmware::{DeviceState, Firmware, LostFrame, Version};

const TTS_START: &str = r#"{"type":"tts","state":"start","session_id":"s1"}"#;
const GOODBYE: &str = r#"{"session_id":"s1","type":"goodbye"}"#;

/// A device in a call, with a keep-alive after 10 s, and nothing else that happens by itself.
fn in_call() -> Scenario {
    let mut scenario = Scenario::new();
    scenario.shell.config.udp.keep_alive = Duration::from_secs(10);
    scenario.shell.config.websocket.ping_interval = Duration::ZERO;
    scenario.connect();
    scenario.start_call();
    scenario
}

fn with_udp_peer() -> Scenario {
    let mut scenario = in_call();
    scenario.uplink(1, b"\x08one").unwrap();
    scenario
}

/// The datagrams that are sent in so many milliseconds, each with its time.
fn sent(scenario: &mut Scenario, ms: u64) -> Vec<(u64, Box<[u8]>)> {
    let timed = scenario.wait_timed(ms).into_iter();
    let datagrams = timed.filter_map(|(at, action)| match action {
        Action::SendDatagram(_, bytes) => Some((at, bytes)),
        _ => None,
    });
    datagrams.collect()
}

fn times(scenario: &mut Scenario, ms: u64) -> Vec<u64> {
    sent(scenario, ms).into_iter().map(|(at, _)| at).collect()
}

fn keep_alive() -> Box<[u8]> {
    sent(&mut with_udp_peer(), 10_000).remove(0).1
}

#[test]
fn a_call_without_downlink_audio_gets_the_same_datagram_each_time() {
    let mut scenario = with_udp_peer();
    let sent = sent(&mut scenario, 35_000);
    assert_eq!(sent.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [10_000, 20_000, 30_000]);
    assert!(sent.iter().all(|(_, bytes)| *bytes == sent[0].1));
    let (header, payload) = decrypt_datagram(&[1; 16], &sent[0].1);
    assert_eq!(header, UdpHeader { flags: 0x80, payload_len: 8, ssrc: 0x1001, timestamp: 0, sequence: 0 });
    assert_eq!(*payload, *audio::silence_packet(60));
    assert!(sent[0].1.len() >= 24, "firmware before 2.4 drops shorter datagrams");
    // It consumes no sequence, and is not audio.
    let audio = scenario.downlink(&frame_with_header(5, b"\x58z")).unwrap();
    assert_eq!(scenario.decrypt_datagrams(&audio), [(1, 5, b"\x58z".to_vec())]);
    assert_eq!(summary(&scenario.device_sends(GOODBYE)).stats.down_packets, 1);
}

#[test]
fn audio_postpones_it() {
    let mut scenario = with_udp_peer();
    for at in [4_000, 8_000, 12_000] {
        assert_eq!(times(&mut scenario, 4_000), [0; 0], "until {at}");
        scenario.downlink(&frame_with_header(5, b"\x58z")).unwrap();
    }
    assert_eq!(times(&mut scenario, 20_000), [22_000, 32_000]);
}

#[test]
fn it_does_not_keep_a_call_from_being_idle() {
    let mut scenario = with_udp_peer();
    scenario.shell.config.websocket.call_idle = Duration::from_secs(25);
    let actions = scenario.wait_timed(60_000);
    let ended = actions.iter().find(|(_, action)| matches!(action, Action::CallEnded(_)));
    assert_eq!(ended.map(|(at, _)| *at), Some(25_000));
    assert_eq!(actions.iter().filter(|(_, action)| matches!(action, Action::SendDatagram(..))).count(), 2);
}

#[test]
fn none_is_sent_without_an_address_without_the_flags_or_when_it_is_off() {
    let none = [0; 0];
    assert_eq!(times(&mut in_call(), 60_000), none, "the address is not known");
    let mut scenario = with_udp_peer();
    scenario.shell.config.udp.downlink_flags = false;
    assert_eq!(times(&mut scenario, 60_000), none);
    let mut scenario = with_udp_peer();
    scenario.shell.config.udp.keep_alive = Duration::ZERO;
    assert_eq!(times(&mut scenario, 60_000), none);
    scenario.device_sends(GOODBYE);
    assert_eq!(times(&mut scenario, 60_000), none, "the call is over");
}

#[test]
fn calls_between_devices_and_ringing_callers_get_it_too() {
    let mut scenario = with_udp_peer();
    scenario.drive(Core::start_ringing);
    assert_eq!(times(&mut scenario, 10_000), [10_000]);
    let mut out = [0; 64];
    let (config, now) = (&scenario.shell.config, scenario.shell.now + Duration::from_secs(3));
    scenario.core.ringing_silence(&mut out, config, now).unwrap();
    assert_eq!(times(&mut scenario, 10_000), [0; 0], "silence was sent at 13 s");
    assert_eq!(times(&mut scenario, 3_000), [23_000]);
    scenario.drive(|core, cx| core.join_device_call(false, cx));
    assert_eq!(times(&mut scenario, 10_000), [33_000]);
    scenario.core.relay(b"\x58z", &mut out, &scenario.shell.config, scenario.shell.now).unwrap();
    assert_eq!(times(&mut scenario, 10_000), [43_000]);
}

#[test]
fn a_call_that_has_lost_its_server_or_its_connection_gets_it_too() {
    let mut scenario = with_udp_peer();
    scenario.shell.config.mqtt.resume_grace = Duration::from_secs(60);
    scenario.close_backend(failed(BackendStage::Live));
    assert_eq!(times(&mut scenario, 10_000), [10_000]);
    scenario.lose_connection();
    assert_eq!(times(&mut scenario, 10_000), [20_000]);
}

#[test]
fn its_counter_block_is_that_of_no_other_packet() {
    let mut blocks: HashSet<[u8; 16]> = HashSet::from([keep_alive()[..16].try_into().unwrap()]);
    let mut use_blocks = |header: [u8; 16], len: u128| {
        let first = u128::from_be_bytes(header);
        (0..len.div_ceil(16)).for_each(|block| assert!(blocks.insert((first + block).to_be_bytes())));
    };
    // Equal lengths and timestamps in both directions, and a client whose first sequence is 0: the worst case.
    for payload in [&[0x58; 8][..], &[0x58; audio::MAX_PAYLOAD]] {
        let mut scenario = with_udp_peer();
        for sequence in 0..=300 {
            let down = scenario.downlink(&frame_with_header(0, payload)).unwrap();
            let [Action::SendDatagram(_, bytes)] = &down[..] else { panic!("{down:?}") };
            use_blocks(bytes[..16].try_into().unwrap(), payload.len() as u128);
            let uplink = datagram(1, sequence, 0, payload);
            // Blocks of uplink packets overlap each other, since the device chooses their timestamps.
            if sequence % 100 == 0 {
                use_blocks(uplink[..16].try_into().unwrap(), payload.len() as u128);
            }
        }
    }
}

#[test]
fn it_is_not_taken_for_audio_when_it_is_sent_back() {
    let mut scenario = with_udp_peer();
    let (mut datagram, from) = (keep_alive(), addr("192.0.2.7:4000"));
    let refused = scenario.shell.uplink(&mut scenario.core, from, &mut datagram);
    assert_eq!(refused, Err(DropReason::DatagramFlags));
}

/// What a receiver checks of a datagram: header, length of the datagram, last sequence (protocol 3.2).
type Check = fn(&UdpHeader, usize, u32) -> bool;

#[test]
fn every_receiver_drops_it_or_plays_nothing_and_goes_on_with_the_next_sequence() {
    let (header, payload) = decrypt_datagram(&[1; 16], &keep_alive());
    // Whoever accepts it plays silence.
    assert_eq!(*payload, *audio::silence_packet(60));
    let len = audio::HEADER_LEN + payload.len();
    let receivers: [(&str, Check, [bool; 2]); 4] = [
        ("firmware before 2.4", |header, len, last| len >= 24 && header.sequence >= last, [true, false]),
        (
            "firmware since 2.4",
            |header, len, last| {
                usize::from(header.payload_len) == len - audio::HEADER_LEN && header.sequence > last
            },
            [false, false],
        ),
        ("py-xiaozhi", |_, _, _| true, [true, true]),
        ("SiFli", |_, _, _| true, [true, true]),
    ];
    for (name, accepts, expected) in receivers {
        assert_eq!([accepts(&header, len, 0), accepts(&header, len, 7)], expected, "{name}");
    }
    for version in Version::ALL {
        for speaks in [false, true] {
            for before in [0, 3] {
                let device = after_keep_alive(version, speaks, before, header.to_bytes(), &payload);
                let context = format!("{version:?}, speaks: {speaks}, after {before} frames");
                let heard = device.heard.iter().filter(|heard| **heard != payload);
                let frames = if speaks || version < Version::V1_7_5 { before + 1 } else { 0 };
                assert_eq!(heard.count(), frames, "{context}");
                let lost: Vec<&LostFrame> = device.speech_lost().collect();
                assert_eq!(lost.len(), before + 1 - frames, "{context}: {lost:?}");
                assert_eq!(device.crashes, [""; 0], "{context}");
            }
        }
    }
}

/// A device that gets so many frames, a keep-alive after 10 s, and one more frame.
fn after_keep_alive(
    version: Version,
    speaks: bool,
    before: usize,
    header: [u8; 16],
    payload: &[u8],
) -> Firmware {
    let mut now = std::time::Instant::now();
    let mut device = Firmware::new(version, 1, now);
    device.message_delay_ms = 0..=0;
    device.power_on(now);
    device.on_mqtt_connected(now);
    device.press_button(now);
    let udp = r#"{"server":"127.0.0.1","port":9,"key":"01010101010101010101010101010101","nonce":"01000000000010010000000000000000"}"#;
    device.on_message(now, &format!(r#"{{"type":"hello","transport":"udp","session_id":"s1","udp":{udp}}}"#));
    if speaks {
        device.on_message(now, TTS_START);
    }
    let audio = |device: &mut Firmware, sequence: u32, now| {
        let header = UdpHeader { flags: 0x80, payload_len: 40, ssrc: 0x1001, timestamp: 0, sequence };
        device.on_datagram(now, header.to_bytes(), &[sequence as u8; 40]);
    };
    for sequence in 1..=before {
        now += Duration::from_millis(60);
        audio(&mut device, sequence as u32, now);
    }
    now += Duration::from_secs(10);
    device.on_datagram(now, header, payload);
    now += Duration::from_millis(60);
    audio(&mut device, before as u32 + 1, now);
    device.tick(now + Duration::from_millis(200));
    assert_eq!(device.state() == DeviceState::Speaking, speaks);
    device
}
