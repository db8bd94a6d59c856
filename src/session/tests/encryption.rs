//! Audio that one side encrypts is decrypted by the other.

use proptest::prelude::*;

use super::*;

fn any_opus_packet() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..=audio::MAX_PAYLOAD)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_server_gets_what_the_device_encrypted(packets in prop::collection::vec((any_opus_packet(), any::<u32>(), 1..50_u32), 1..8)) {
        let mut scenario = Scenario::in_call();
        let from = UdpPeer { addr: addr("192.0.2.7:4000"), local_ip: None };
        let mut sequence = 0;
        for (payload, timestamp, step) in packets {
            sequence += step;
            let mut datagram = datagram(scenario.credentials_issued, sequence, timestamp, &payload);
            let found = scenario.core.uplink(from, &mut datagram, &scenario.shell.config, scenario.shell.now);
            let expected = frame_with_header(timestamp, &payload);
            prop_assert_eq!(found, Ok(Uplink::Server { frame: &expected, payload: payload.len(), device_heard: sequence == step }));
        }
    }

    #[test]
    fn the_device_decrypts_what_the_server_sent(frames in prop::collection::vec((any_opus_packet(), any::<u32>()), 1..8)) {
        let mut scenario = Scenario::with_udp_peer();
        for (sequence, (payload, timestamp)) in (1..).zip(frames) {
            let encrypted = scenario.downlink(&frame_with_header(timestamp, &payload)).unwrap();
            prop_assert_eq!(scenario.decrypt_datagrams(&encrypted), [(sequence, timestamp, payload)]);
        }
    }

    #[test]
    fn a_datagram_that_was_changed_is_refused_or_changes_only_what_was_touched(payload in any_opus_packet(), at in any::<prop::sample::Index>(), with in 1..=255_u8) {
        // Counter mode does not detect changes. The header is the counter block, and its flags, length and ssrc are checked.
        let mut scenario = Scenario::in_call();
        let from = UdpPeer { addr: addr("192.0.2.7:4000"), local_ip: None };
        let mut datagram = datagram(scenario.credentials_issued, 9, 7, &payload);
        let at = at.index(datagram.len());
        datagram[at] ^= with;
        match scenario.core.uplink(from, &mut datagram, &scenario.shell.config, scenario.shell.now) {
            Ok(Uplink::Server { frame, .. }) => {
                prop_assert!(!matches!(at, 0..=3), "byte {} is checked", at);
                prop_assert_eq!(frame.len(), audio::HEADER_LEN + payload.len());
                if at >= audio::HEADER_LEN {
                    let mut expected = frame_with_header(7, &payload);
                    expected[at] ^= with;
                    prop_assert_eq!(frame, &expected[..]);
                }
            }
            Ok(other) => prop_assert!(false, "{:?}", other),
            Err(why) => prop_assert!(at < audio::HEADER_LEN, "{:?} for byte {}", why, at),
        }
    }
}

#[test]
fn a_packet_without_room_counts_as_dropped_not_sent() {
    let mut scenario = Scenario::in_call();
    scenario.uplink(1, b"\x08one").unwrap();
    scenario.uplink(2, b"\x08three").unwrap();
    scenario.core.on_uplink_dropped(6);
    let stats = summary(&scenario.device_sends(r#"{"type":"goodbye"}"#)).stats;
    assert_eq!((stats.up_packets, stats.up_bytes, stats.dropped), (1, 4, 1));
    scenario.core.on_uplink_dropped(6); // without a call it is nobody's
}

#[test]
fn operators_see_the_jitter() {
    for (late, uneven) in [(0, false), (40, true)] {
        let mut scenario = Scenario::in_call();
        for sequence in 1..60 {
            scenario.wait(60 + late * u64::from(sequence % 2));
            scenario.uplink(sequence, b"\x08x").unwrap();
        }
        assert_eq!(scenario.core.call().unwrap().jitter > Duration::from_millis(5), uneven, "{late} ms late");
    }
}
