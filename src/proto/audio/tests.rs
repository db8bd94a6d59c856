#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use data_encoding::HEXLOWER;
use proptest::prelude::*;

use super::*;

fn hex(text: &str) -> Vec<u8> {
    HEXLOWER.decode(text.as_bytes()).unwrap()
}

fn block(text: &str) -> [u8; 16] {
    hex(text).try_into().unwrap()
}

#[test]
fn header_on_the_wire() {
    let header = UdpHeader {
        flags: 0x81,
        payload_len: 0x0203,
        ssrc: 0x0405_0607,
        timestamp: 0x0809_0a0b,
        sequence: 0x0c0d_0e0f,
    };
    assert_eq!(header.to_bytes(), block("018102030405060708090a0b0c0d0e0f"));
    assert_eq!(nonce(0xdead_beef), block("01000000deadbeef0000000000000000"));

    let mut datagram = header.to_bytes().to_vec();
    datagram.resize(16 + 0x0203, 0);
    assert_eq!(UdpHeader::parse(&datagram), Ok(header));
}

#[test]
fn datagrams_are_checked_for_length_and_type() {
    let datagram = |kind: u8, len: u16, payload: usize| {
        let mut bytes =
            UdpHeader { flags: 0, payload_len: len, ssrc: 1, timestamp: 2, sequence: 3 }.to_bytes().to_vec();
        bytes[0] = kind;
        bytes.resize(16 + payload, 0xaa);
        bytes
    };
    let cases = [
        (vec![], Err(BadDatagram::Empty)),
        (vec![1], Err(BadDatagram::Short)),
        (datagram(1, 0, 0)[..15].to_vec(), Err(BadDatagram::Short)),
        (datagram(0, 4, 4), Err(BadDatagram::Type)),
        (datagram(2, 4, 4), Err(BadDatagram::Type)),
        (datagram(1, 0, 0), Err(BadDatagram::Empty)),
        (datagram(1, 5, 4), Err(BadDatagram::Length)),
        (datagram(1, 3, 4), Err(BadDatagram::Length)),
        (datagram(1, 0, 4), Err(BadDatagram::Length)),
        (datagram(1, 4, 0), Err(BadDatagram::Length)),
        (datagram(1, 1, 1), Ok(1)),
        (datagram(1, 1400, 1400), Ok(1400)),
        (datagram(1, 1401, 1401), Err(BadDatagram::Oversized)),
        (datagram(1, 65535, 65535), Err(BadDatagram::Oversized)),
        (datagram(1, 65535, 65536), Err(BadDatagram::Length)),
    ];
    for (index, (bytes, expected)) in cases.into_iter().enumerate() {
        assert_eq!(UdpHeader::parse(&bytes).map(|header| header.payload_len), expected, "case {index}");
    }
}

#[test]
fn counter_mode_vectors() {
    let cases = [
        // NIST SP 800-38A, F.5.1, CTR-AES128.
        (
            "2b7e151628aed2a6abf7158809cf4f3c",
            "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
            "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51\
             30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710",
            "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff\
             5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee",
        ),
        // RFC 3686 section 6, test vectors 1 to 3.
        (
            "ae6852f8121067cc4bf7a5765577f39e",
            "00000030000000000000000000000001",
            "53696e676c6520626c6f636b206d7367",
            "e4095d4fb7a7b3792d6175a3261311b8",
        ),
        (
            "7e24067817fae0d743d6ce1f32539163",
            "006cb6dbc0543b59da48d90b00000001",
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
            "5104a106168a72d9790d41ee8edad388eb2e1efc46da57c8fce630df9141be28",
        ),
        (
            "7691be035e5020a8ac6e618529f9a0dc",
            "00e0017b27777f3f4a1786f000000001",
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223",
            "c1cf48a89f2ffdd9cf4652e9efdb72d74540a42bde6d7836d59a5ceaaef3105325b2072f",
        ),
    ];
    for (key, iv, plain, sealed) in cases {
        let (cipher, iv, plain, sealed) = (Cipher::new(&block(key)), block(iv), hex(plain), hex(sealed));
        // Every length, since the data is processed in batches.
        for len in 0..=plain.len() {
            let mut data = plain[..len].to_vec();
            cipher.apply(&iv, &mut data);
            assert_eq!(data, sealed[..len], "{key}, {len} bytes");
            cipher.apply(&iv, &mut data);
            assert_eq!(data, plain[..len], "{key}, {len} bytes back");
        }
    }
}

#[test]
fn counter_carries_past_the_sequence() {
    use sha2::{Digest, Sha256};

    // The digest was computed with another AES (OpenSSL's).
    let cipher = Cipher::new(&block("000102030405060708090a0b0c0d0e0f"));
    let mut data: Vec<u8> = (0..1400).map(|i| (i % 251) as u8).collect();
    cipher.apply(&block("01000578deadbeef0000000affffffff"), &mut data);
    let digest = HEXLOWER.encode(&Sha256::digest(&data));
    assert_eq!(digest, "470094e0cc830ad73a672c752a2c73bed3e557867e6921f42632def43971424b");
}

#[test]
fn debug_output_hides_the_key() {
    assert_eq!(format!("{:?}", Cipher::new(&[7; 16])), "Cipher(..)");
}

#[test]
fn websocket_header() {
    assert_eq!(ws_frame_header(0x0102_0304, 0x0578), block("00020000000000000102030400000578"));
    let frame = |head: &str, payload: &[u8]| [&hex(head), payload].concat();
    for (frame, expected) in [
        (frame("00020000000000000102030400000003", b"abc"), Some((0x0102_0304, &b"abc"[..]))),
        // Some servers write length and sequence into the first eight bytes.
        (frame("0100000300000009ffffffff00000003", b"abc"), Some((u32::MAX, b"abc"))),
        (frame("00020000000000000000000000000000", b""), Some((0, b""))),
        (frame("00020000000000000102030400000002", b"abc"), None),
        (frame("00020000000000000102030400000004", b"abc"), None),
        (frame("0002000000000000010203040000", b""), None),
        (vec![], None),
    ] {
        assert_eq!(parse_ws_frame(&frame), expected, "{frame:x?}");
    }
}

#[test]
fn opus_packets_are_recognised_by_their_structure() {
    let long = |toc: u8, len: usize| [&[toc][..], &vec![0; len]].concat();
    let cases: [(&str, Vec<u8>, Option<u8>); 27] = [
        ("nothing", vec![], None),
        ("one frame, lost (DTX)", vec![0xf8], Some(31)),
        ("one frame", vec![0x58, 1, 2, 3], Some(11)),
        ("one frame of 1275", long(0x00, 1275), Some(0)),
        ("one frame of 1276", long(0x00, 1276), None),
        ("two equal frames", vec![0x59, 1, 2], Some(11)),
        ("two equal frames of odd length", vec![0x59, 1, 2, 3], None),
        ("two equal frames of 0", vec![0x59], Some(11)),
        ("two frames of 1275", long(0x01, 2550), Some(0)),
        ("two frames of 1276", long(0x01, 2552), None),
        ("two frames, no length", vec![0x5a], None),
        ("two frames, 1 and 2 bytes", vec![0x5a, 1, 9, 9, 9], Some(11)),
        ("two frames, the first too long", vec![0x5a, 2, 9], None),
        ("two frames, the second empty", vec![0x5a, 2, 9, 9], Some(11)),
        ("two frames, half a length", vec![0x5a, 252], None),
        ("two frames, 251 bytes, no second byte of length", [&[0x5a, 251][..], &[0; 251]].concat(), Some(11)),
        ("two frames, 252 bytes", [&[0x5a, 252, 0][..], &[0; 253]].concat(), Some(11)),
        ("two frames, 252 of 251", [&[0x5a, 252, 0][..], &[0; 251]].concat(), None),
        ("two frames, 256 bytes", [&[0x5a, 252, 1][..], &[0; 257]].concat(), Some(11)),
        ("two frames, 256 bytes, the second empty", [&[0x5a, 252, 1][..], &[0; 256]].concat(), Some(11)),
        ("two frames, 256 of 255", [&[0x5a, 252, 1][..], &[0; 255]].concat(), None),
        ("two frames, the second of 1275", [&[0x02, 0][..], &[0; 1275]].concat(), Some(0)),
        ("two frames, the second of 1276", [&[0x02, 0][..], &[0; 1276]].concat(), None),
        ("many frames, no count", vec![0x5b], None),
        ("no frames", vec![0x5b, 0xc0, 1], None),
        ("48 frames", vec![0x5b, 48, 1], Some(11)),
        ("49 frames", vec![0x5b, 49, 1], None),
    ];
    for (name, packet, expected) in cases {
        assert_eq!(opus_config(&packet), expected, "{name}");
    }
}

#[test]
fn silence_has_the_duration_of_the_devices_packets_and_never_fewer_than_eight_bytes() {
    for (duration_ms, config, frames) in [
        (5, 29, 1),
        (15, 29, 3),
        (10, 30, 1),
        (50, 30, 5),
        (20, 31, 1),
        (40, 31, 2),
        (60, 31, 3),
        (80, 31, 4),
        (100, 31, 5),
        (115, 29, 23),
        (120, 31, 6),
        (0, 31, 3),
        (7, 31, 3),
        (140, 31, 3),
        (u32::MAX, 31, 3),
    ] {
        // CELT, fullband, 20, 10 or 5 ms, mono, code 3; then the count, and the padding if there is any.
        let padding: &[u8] = match frames {
            1 => &[0; 3],
            2 => &[0; 1],
            _ => &[],
        };
        let head = match padding {
            [] => vec![config << 3 | 3, frames],
            _ => vec![config << 3 | 3, 0x40 | frames, padding.len() as u8],
        };
        let expected = [&head[..], &[0xff, 0xfe].repeat(frames.into()), padding].concat();
        assert_eq!(*silence_packet(duration_ms), expected, "{duration_ms} ms");
        assert!(expected.len() >= 8, "{duration_ms} ms");
        assert_eq!(opus_config(&expected), Some(config));
    }
}

#[test]
fn bad_datagrams_as_text() {
    use BadDatagram::*;
    for (bad, words) in [
        (Short, "fewer than the 16 bytes of a header"),
        (Type, "the first byte is not 1"),
        (Length, "the length field does not match the length of the datagram"),
        (Oversized, "more than 1400 bytes of payload"),
        (Empty, "no payload"),
    ] {
        assert_eq!(bad.to_string(), words);
    }
}

/// The verdicts on these sequences, from the start of a call.
fn verdicts(sequences: &[u32]) -> Vec<SequenceVerdict> {
    let mut window = ReplayWindow::new();
    sequences
        .iter()
        .map(|&seq| {
            let seen = window.check(seq);
            assert_eq!(window.accept(seq), seen, "{seq}: peeking and accepting differ");
            seen
        })
        .collect()
}

#[test]
fn sequences_scripted() {
    const FRESH: SequenceVerdict = SequenceVerdict::Fresh { lost: 0 };
    const fn lost(lost: u32) -> SequenceVerdict {
        SequenceVerdict::Fresh { lost }
    }
    use SequenceVerdict::{Duplicate, Jump, Late, TooOld};

    let cases: [(&str, &[u32], &[SequenceVerdict]); 21] = [
        ("in order", &[1, 2, 3], &[FRESH, FRESH, FRESH]),
        ("first lost", &[3, 4], &[lost(2), FRESH]),
        ("a client that starts at 0", &[0, 1, 0], &[FRESH, FRESH, Duplicate]),
        ("0 is no sequence after others", &[5, 0], &[lost(4), TooOld]),
        ("gap", &[1, 5, 6], &[FRESH, lost(3), FRESH]),
        ("duplicate of the highest", &[1, 1], &[FRESH, Duplicate]),
        ("duplicate of an older one", &[1, 2, 3, 1], &[FRESH, FRESH, FRESH, Duplicate]),
        ("late, then again", &[1, 3, 2, 2], &[FRESH, lost(1), Late, Duplicate]),
        ("late before the first seen", &[3, 1, 1, 2], &[lost(2), Late, Duplicate, Late]),
        ("edge of the window", &[1, 65, 2, 1], &[FRESH, lost(63), Late, TooOld]),
        ("edge of the window, seen", &[1, 64, 1], &[FRESH, lost(62), Duplicate]),
        ("64 ahead empties it", &[1, 65, 64, 65], &[FRESH, lost(63), Late, Duplicate]),
        ("furthest step", &[1, 65_537, 65_538], &[FRESH, lost(65_535), FRESH]),
        ("one too far", &[1, 65_538, 2], &[FRESH, Jump, FRESH]),
        ("first one too far", &[65_536, 131_072], &[lost(65_535), lost(65_535)]),
        (
            "three in a row are believed",
            &[1, 900_000, 900_001, 900_002, 900_003, 900_000, 899_999, 2],
            &[FRESH, Jump, Jump, FRESH, FRESH, Duplicate, TooOld, TooOld],
        ),
        (
            "not when another comes between",
            &[1, 900_000, 900_001, 2, 900_002, 900_003, 900_004],
            &[FRESH, Jump, Jump, FRESH, Jump, Jump, FRESH],
        ),
        (
            "nor a late one",
            &[3, 900_000, 900_001, 2, 900_002, 900_003, 900_004],
            &[lost(2), Jump, Jump, Late, Jump, Jump, FRESH],
        ),
        (
            "nor a stale one",
            &[1, 900_000, 900_001, 1, 900_002, 900_003, 0, 900_004, 900_005, 900_006],
            &[FRESH, Jump, Jump, Duplicate, Jump, Jump, TooOld, Jump, Jump, FRESH],
        ),
        (
            "not when they are not consecutive",
            &[1, 900_000, 900_002, 900_004, 900_005, 900_005, 900_006],
            &[FRESH, Jump, Jump, Jump, Jump, Jump, FRESH],
        ),
        (
            "at the end of numbers",
            &[u32::MAX - 1, u32::MAX, 0, u32::MAX, u32::MAX - 2, u32::MAX - 1, u32::MAX, u32::MAX],
            &[Jump, Jump, FRESH, Jump, Jump, Jump, FRESH, Duplicate],
        ),
    ];
    for (name, sequences, expected) in cases {
        assert_eq!(verdicts(sequences), expected, "{name}");
    }
    assert_eq!(ReplayWindow::new().highest(), 0);
}

/// A simple and slow implementation of [`ReplayWindow`].
#[derive(Default)]
struct Model {
    seen: BTreeSet<u32>,
    highest: Option<u32>,
    /// Lower sequences are not in the loss count.
    first: u32,
    /// Consecutive sequences that are too far ahead, without duplicates.
    doubtful: Vec<u32>,
}

impl Model {
    fn accept(&mut self, seq: u32) -> SequenceVerdict {
        let highest = i64::from(self.highest.unwrap_or(0));
        let ahead = i64::from(seq) - highest;
        if self.highest.is_some() && ahead <= 0 {
            self.doubtful.clear();
            return if seq < self.first || ahead <= -64 {
                SequenceVerdict::TooOld
            } else if self.seen.insert(seq) {
                SequenceVerdict::Late
            } else {
                SequenceVerdict::Duplicate
            };
        }
        if ahead > 65_536 {
            if self.doubtful.last() != Some(&seq) {
                self.doubtful.push(seq);
            }
            let confirmed = match self.doubtful[..] {
                [.., a, b, c] => a.checked_add(1) == Some(b) && b.checked_add(1) == Some(c),
                _ => false,
            };
            if !confirmed {
                return SequenceVerdict::Jump;
            }
            self.seen = [seq - 2, seq - 1].into();
            self.first = seq - 2;
        } else if self.highest.is_none() {
            self.first = seq.min(1);
        }
        self.doubtful.clear();
        self.seen.insert(seq);
        self.highest = Some(seq);
        SequenceVerdict::Fresh { lost: if ahead > 65_536 { 0 } else { (ahead - 1).max(0) as u32 } }
    }
}

/// Sequences as a bad network or an attacker would deliver them.
fn any_sequences() -> impl Strategy<Value = Vec<u32>> {
    let step = prop_oneof![
        12 => Just(1_i64),
        4 => 2..6_i64,
        2 => Just(0_i64),
        4 => -70..0_i64,
        1 => 60..70_i64,
        1 => 65_530..65_545_i64,
        1 => prop_oneof![Just(1 << 20), Just(-(1 << 20)), Just(1 << 32)],
        1 => Just(-(1 << 32)),
    ];
    (prop_oneof![Just(0_i64), 0..200_000_i64], prop::collection::vec(step, 0..200)).prop_map(
        |(start, steps)| {
            let mut at = start;
            let mut walk = |step: i64| {
                at = (at + step).clamp(0, u32::MAX.into());
                at as u32
            };
            steps.into_iter().map(&mut walk).collect()
        },
    )
}

proptest! {
    #[test]
    fn window_agrees_with_the_model(sequences in any_sequences()) {
        let (mut window, mut model, mut forwarded) = (ReplayWindow::new(), Model::default(), None);
        for seq in sequences {
            let expected = model.accept(seq);
            prop_assert_eq!(window.check(seq), expected, "peek at {}", seq);
            prop_assert_eq!(window.accept(seq), expected, "{}", seq);
            prop_assert_eq!(window.highest(), model.highest.unwrap_or(0));
            if let SequenceVerdict::Fresh { .. } = expected {
                prop_assert!(forwarded < Some(seq), "{} after {:?}", seq, forwarded);
                forwarded = Some(seq);
            }
        }
    }

    #[test]
    fn every_sequence_is_counted_once(missing in prop::collection::btree_set(1..400_u32, 0..100), late in any::<bool>()) {
        // A missing packet counts as lost, unless it arrives late.
        let (mut window, mut lost) = (ReplayWindow::new(), 0_i64);
        let mut receive = |seq| match window.accept(seq) {
            SequenceVerdict::Fresh { lost: skipped } => lost += i64::from(skipped),
            SequenceVerdict::Late => lost -= 1,
            other => panic!("{seq} is {other:?}"),
        };
        for seq in 1..=400 {
            if !missing.contains(&seq) {
                receive(seq);
            }
            // It is sent thirty packets later, after the packet at that position.
            if late && seq > 30 && missing.contains(&(seq - 30)) && !missing.contains(&seq) {
                receive(seq - 30);
            }
        }
        let returned = missing.iter().filter(|seq| late && **seq <= 370 && !missing.contains(&(**seq + 30))).count();
        prop_assert_eq!(lost, (missing.len() - returned) as i64);
    }

    #[test]
    fn header_round_trips(flags in any::<u8>(), ssrc in any::<u32>(), timestamp in any::<u32>(), sequence in any::<u32>(),
                       payload in prop::collection::vec(any::<u8>(), 1..=MAX_PAYLOAD)) {
        let header = UdpHeader { flags, payload_len: payload.len() as u16, ssrc, timestamp, sequence };
        prop_assert_eq!(UdpHeader::parse(&[&header.to_bytes()[..], &payload].concat()), Ok(header));
        let frame = [&ws_frame_header(timestamp, payload.len())[..], &payload].concat();
        prop_assert_eq!(parse_ws_frame(&frame), Some((timestamp, &payload[..])));
    }

    #[test]
    fn any_bytes_are_parsed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(header) = UdpHeader::parse(&bytes) {
            prop_assert_eq!(&header.to_bytes()[..], &bytes[..16]);
        }
        let _ = (parse_ws_frame(&bytes), opus_config(&bytes));
    }

    #[test]
    fn cipher_is_its_own_inverse(key in any::<[u8; 16]>(), iv in any::<[u8; 16]>(), plain in prop::collection::vec(any::<u8>(), 0..300)) {
        let (cipher, mut data) = (Cipher::new(&key), plain.clone());
        cipher.apply(&iv, &mut data);
        cipher.apply(&iv, &mut data);
        prop_assert_eq!(data, plain);
    }
}
