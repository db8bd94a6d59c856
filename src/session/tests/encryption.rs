//! What is sealed on one side is opened on the other, whatever it is.

use proptest::prelude::*;

use super::*;

fn opus() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..=audio::MAX_PAYLOAD)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_server_gets_what_the_device_sealed(packets in prop::collection::vec((opus(), any::<u32>(), 1..50_u32), 1..8)) {
        let mut story = Story::in_call();
        let from = Peer { addr: addr("192.0.2.7:4000"), local: None };
        let mut sequence = 0;
        for (payload, timestamp, step) in packets {
            sequence += step;
            let mut datagram = datagram(story.grants, sequence, timestamp, &payload);
            let found = story.core.uplink(from, &mut datagram, &story.config, story.now);
            let expected = headed(timestamp, &payload);
            prop_assert_eq!(found, Ok(Uplink::Server { frame: &expected, payload: payload.len(), first: sequence == step }));
        }
    }

    #[test]
    fn the_device_opens_what_the_server_sent(frames in prop::collection::vec((opus(), any::<u32>()), 1..8)) {
        let mut story = Story::talking();
        for (sequence, (payload, timestamp)) in (1..).zip(frames) {
            let sealed = story.down(&headed(timestamp, &payload)).unwrap();
            prop_assert_eq!(story.heard(&sealed), [(sequence, timestamp, payload)]);
        }
    }

    #[test]
    fn a_datagram_that_was_changed_is_refused_or_changes_only_what_was_touched(payload in opus(), at in any::<prop::sample::Index>(), with in 1..=255_u8) {
        // Counter mode does not notice; the header is part of the counter, and its length and ssrc are checked.
        let mut story = Story::in_call();
        let from = Peer { addr: addr("192.0.2.7:4000"), local: None };
        let mut datagram = datagram(story.grants, 9, 7, &payload);
        let at = at.index(datagram.len());
        datagram[at] ^= with;
        match story.core.uplink(from, &mut datagram, &story.config, story.now) {
            Ok(Uplink::Server { frame, .. }) => {
                prop_assert!(!matches!(at, 0 | 2 | 3), "byte {} is checked", at);
                prop_assert_eq!(frame.len(), audio::HEADER + payload.len());
                if at >= audio::HEADER {
                    let mut expected = headed(7, &payload);
                    expected[at] ^= with;
                    prop_assert_eq!(frame, &expected[..]);
                }
            }
            Ok(other) => prop_assert!(false, "{:?}", other),
            Err(why) => prop_assert!(at < audio::HEADER, "{:?} for byte {}", why, at),
        }
    }
}

#[test]
fn a_packet_that_found_no_room_was_dropped_and_not_sent() {
    let mut story = Story::in_call();
    story.up(1, b"\x08one").unwrap();
    story.up(2, b"\x08three").unwrap();
    story.core.unsent(6);
    let facts = summary(&story.device(r#"{"type":"goodbye"}"#)).facts;
    assert_eq!((facts.up_packets, facts.up_bytes, facts.dropped), (1, 4, 1));
    story.core.unsent(6); // without a call it is nobody's
}

#[test]
fn audio_that_comes_unevenly_is_shown_to_operators() {
    for (late, uneven) in [(0, false), (40, true)] {
        let mut story = Story::in_call();
        for sequence in 1..60 {
            story.wait(60 + late * u64::from(sequence % 2));
            story.up(sequence, b"\x08x").unwrap();
        }
        assert_eq!(story.core.call().unwrap().jitter > Duration::from_millis(5), uneven, "{late} ms late");
    }
}
