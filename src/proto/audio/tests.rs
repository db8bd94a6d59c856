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
    let long2 = |toc: u8, head: u8, len: usize| [&[toc, head][..], &vec![0; len]].concat();
    type Case = (&'static str, Vec<u8>, Option<(u8, u8)>);
    let cases: [Case; 43] = [
        ("nothing", vec![], None),
        ("one frame, lost (DTX)", vec![0xf8], Some((31, 0))),
        ("one frame", vec![0x58, 1, 2, 3], Some((11, 0))),
        ("one frame of 1275", long(0x00, 1275), Some((0, 0))),
        ("one frame of 1276", long(0x00, 1276), None),
        ("two equal frames", vec![0x59, 1, 2], Some((11, 0))),
        ("two equal frames of odd length", vec![0x59, 1, 2, 3], None),
        ("two equal frames of 0", vec![0x59], Some((11, 0))),
        ("two frames of 1275", long(0x01, 2550), Some((0, 0))),
        ("two frames of 1276", long(0x01, 2552), None),
        ("two frames, no length", vec![0x5a], None),
        ("two frames, 1 and 2 bytes", vec![0x5a, 1, 9, 9, 9], Some((11, 0))),
        ("two frames, the first too long", vec![0x5a, 2, 9], None),
        ("two frames, the second empty", vec![0x5a, 2, 9, 9], Some((11, 0))),
        ("two frames, half a length", vec![0x5a, 252], None),
        (
            "two frames, 251 bytes, no second byte of length",
            [&[0x5a, 251][..], &[0; 251]].concat(),
            Some((11, 0)),
        ),
        ("two frames, 252 bytes", [&[0x5a, 252, 0][..], &[0; 253]].concat(), Some((11, 0))),
        ("two frames, 252 of 251", [&[0x5a, 252, 0][..], &[0; 251]].concat(), None),
        ("two frames, 256 bytes", [&[0x5a, 252, 1][..], &[0; 257]].concat(), Some((11, 0))),
        ("two frames, 256 bytes, the second empty", [&[0x5a, 252, 1][..], &[0; 256]].concat(), Some((11, 0))),
        ("two frames, 256 of 255", [&[0x5a, 252, 1][..], &[0; 255]].concat(), None),
        ("two frames, the second of 1275", [&[0x02, 0][..], &[0; 1275]].concat(), Some((0, 0))),
        ("two frames, the second of 1276", [&[0x02, 0][..], &[0; 1276]].concat(), None),
        ("many frames, no count", vec![0x5b], None),
        ("no frames", vec![0x5b, 0xc0, 1], None),
        ("stereo", vec![0x5c, 1], Some((11, 1))),
        ("2 frames of 60 ms", vec![0x5b, 2, 1, 1], Some((11, 0))),
        ("3 frames of 60 ms are more than 120 ms", vec![0x5b, 3, 1, 1, 1], None),
        ("12 frames of 10 ms", long2(0x43, 12, 24), Some((8, 0))),
        ("13 frames of 10 ms", long2(0x43, 13, 26), None),
        ("6 frames of 20 ms, hybrid", long2(0x6b, 6, 6), Some((13, 0))),
        ("7 frames of 20 ms, hybrid", long2(0x6b, 7, 7), None),
        ("48 frames of 2.5 ms", long2(0x83, 48, 48), Some((16, 0))),
        ("49 frames of 2.5 ms", long2(0x83, 49, 49), None),
        ("2 equal frames of odd length", vec![0x5b, 2, 1], None),
        ("one frame of code 3 of 1276", long2(0x5b, 1, 1276), None),
        ("padding", vec![0x5b, 0x42, 3, 1, 1, 0, 0, 0], Some((11, 0))),
        ("more padding than bytes", vec![0x5b, 0x41, 3, 0, 0], None),
        ("padding of 254 bytes and 1", [&[0x5b, 0x41, 255, 1, 9][..], &[0; 255]].concat(), Some((11, 0))),
        ("padding without an end", vec![0x5b, 0x41, 255, 255], None),
        ("2 frames of 1 and 2 bytes", vec![0x5b, 0x82, 1, 9, 9, 9], Some((11, 0))),
        ("2 frames, the first too long", vec![0x5b, 0x82, 3, 9, 9], None),
        ("2 frames, the second of 1276", long2(0x5b, 0x82, 1277), None),
    ];
    for (name, packet, expected) in cases {
        assert_eq!(opus_config(&packet), expected.map(|(config, stereo)| config << 1 | stereo), "{name}");
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
        assert_eq!(opus_config(&expected), Some(config << 1));
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

/// An Opus configuration, another one, and none.
const OPUS: Option<u8> = Some(22);
const OTHER: Option<u8> = Some(24);
const NOISE: Option<u8> = None;
const LIMIT: u32 = 512;

/// The next packet in order, and a provisional one.
const FRESH: SequenceVerdict = fresh(0, true);
const PASSED: SequenceVerdict = fresh(0, false);

const fn fresh(lost: i32, settled: bool) -> SequenceVerdict {
    SequenceVerdict::Fresh { lost, settled }
}

/// The verdicts on these sequences, from the start of a call.
fn verdicts(sequences: &[u32]) -> Vec<SequenceVerdict> {
    let mut window = ReplayWindow::new();
    sequences.iter().map(|&seq| window.accept(seq, OPUS, LIMIT, 1, false)).collect()
}

/// A window that has settled the sequences up to `highest`.
fn window_at(highest: u32) -> ReplayWindow {
    let mut window = ReplayWindow::new();
    for seq in 1..=highest {
        assert_eq!(window.accept(seq, OPUS, LIMIT, 1, false), FRESH, "{seq}");
    }
    window
}

#[test]
fn sequences_scripted() {
    const fn lost(lost: i32) -> SequenceVerdict {
        fresh(lost, true)
    }
    use SequenceVerdict::{Duplicate, Jump, Late, TooOld};

    let cases: [(&str, &[u32], &[SequenceVerdict]); 20] = [
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
        ("65 ahead is provisional", &[1, 66, 2, 3], &[FRESH, PASSED, FRESH, FRESH]),
        ("furthest step", &[1, 513, 514], &[FRESH, PASSED, PASSED]),
        ("one too far", &[1, 514, 2], &[FRESH, Jump, FRESH]),
        ("first one too far", &[513, 1], &[Jump, FRESH]),
        ("the old sequence stands", &[1, 501, 2, 501, 3], &[FRESH, PASSED, FRESH, Duplicate, FRESH]),
        ("of two jumps too", &[1, 501, 101, 2], &[FRESH, PASSED, PASSED, FRESH]),
        (
            "provisional packets are in order",
            &[1, 501, 503, 502, 503, 504],
            &[FRESH, PASSED, PASSED, Late, Duplicate, PASSED],
        ),
        (
            "eight settle a jump",
            &[1, 101, 102, 103, 105, 106, 107, 108, 109, 110, 2, 101],
            &[
                FRESH,
                PASSED,
                PASSED,
                PASSED,
                PASSED,
                PASSED,
                PASSED,
                PASSED,
                lost(100),
                FRESH,
                TooOld,
                Duplicate,
            ],
        ),
    ];
    for (name, sequences, expected) in cases {
        assert_eq!(verdicts(sequences), expected, "{name}");
    }
    assert_eq!(ReplayWindow::new().highest(), 0);
}

#[test]
fn only_a_run_of_one_configuration_settles() {
    for (what, config) in [("another configuration", OTHER), ("no Opus", NOISE)] {
        let mut window = window_at(20);
        for seq in 21..28 {
            assert_eq!(window.accept(seq, config, LIMIT, 1, true), PASSED, "{what}");
        }
        assert_eq!(window.accept(21, OPUS, LIMIT, 1, true), FRESH, "{what}: the old sequence stands");
        // The others were received, so they are not lost.
        assert_eq!(window.accept(28, OPUS, LIMIT, 1, true), FRESH, "{what}");
    }
    let mut window = window_at(20);
    for seq in 21..28 {
        assert_eq!(window.accept(seq, OTHER, LIMIT, 1, true), PASSED);
    }
    assert_eq!(window.accept(28, OTHER, LIMIT, 1, true), FRESH, "the device's encoder has changed");
    assert_eq!(window.accept(21, OTHER, LIMIT, 1, true), SequenceVerdict::Duplicate);
    // Before the first run, any configuration continues the sequence.
    let mut window = ReplayWindow::new();
    let verdicts = [OPUS, OTHER, OPUS, NOISE, OPUS, OPUS];
    let verdicts: Vec<_> =
        (1..).zip(verdicts).map(|(seq, config)| window.accept(seq, config, LIMIT, 1, true)).collect();
    assert_eq!(verdicts, [FRESH, PASSED, PASSED, PASSED, PASSED, FRESH]);
}

/// One forged packet in 80 has the right configuration, and moves the window.
#[test]
fn six_packets_that_continue_what_was_left_take_the_window_back() {
    use SequenceVerdict::{Duplicate, Late, TooOld};
    for forged in [&[84][..], &[30, 94], &[84, 148, 212, 276, 340, 404, 468, 532, 596, 660]] {
        let mut window = window_at(20);
        let mut lost = 0;
        for &seq in forged {
            let verdict = window.accept(seq, OPUS, LIMIT, 1, false);
            let SequenceVerdict::Fresh { lost: skipped, settled: true } = verdict else {
                panic!("{verdict:?}")
            };
            lost += skipped;
        }
        for seq in 21..26 {
            let verdict = window.accept(seq, OPUS, LIMIT, 1, false);
            assert!(matches!(verdict, Late | TooOld), "{forged:?} {seq} {verdict:?}");
        }
        assert_eq!(window.accept(26, OPUS, LIMIT, 1, false), fresh(5 - lost, true), "{forged:?}");
        // What is forged from now on costs nothing.
        for seq in 27..200 {
            assert_eq!(window.accept(seq - 1, OPUS, LIMIT, 1, false), Duplicate);
            for ahead in [3, 64] {
                let verdict = window.accept(seq + ahead, OPUS, LIMIT, 1, false);
                assert!(
                    !matches!(verdict, SequenceVerdict::Fresh { settled: true, .. }),
                    "{forged:?} {seq} {verdict:?}"
                );
            }
            assert_eq!(window.accept(seq, OPUS, LIMIT, 1, false), FRESH, "{forged:?} {seq}");
        }
    }
    // Neither five, nor those that were received, nor random ones, nor those that the window has left long ago.
    let mut window = window_at(20);
    window.accept(40, OPUS, LIMIT, 1, false);
    for seq in [21, 22, 23, 41, 24, 42, 25, 43] {
        window.accept(seq, OPUS, LIMIT, 1, false);
    }
    (26..36).for_each(|seq| assert_eq!(window.accept(seq, OTHER, LIMIT, 1, false), Late));
    assert_eq!(window.highest(), 43);
    (44..52).for_each(|seq| assert_eq!(window.accept(seq, OPUS, LIMIT, 1, false), FRESH));
    (26..36).for_each(|seq| assert_eq!(window.accept(seq, OPUS, LIMIT, 1, false), Late));
    assert_eq!(window.highest(), 51);
}

/// Somebody forges packets, and some of the device's are lost.
#[test]
fn what_is_forged_far_ahead_holds_up_no_packet_after_a_loss() {
    let mut window = window_at(20);
    window.accept(84, OPUS, LIMIT, 1, false);
    for seq in 21..27 {
        window.accept(seq, OPUS, LIMIT, 1, false);
    }
    assert_eq!(window.highest(), 26);
    for seq in 30..40 {
        let verdict = window.accept(seq, OPUS, LIMIT, 2, false);
        assert!(matches!(verdict, SequenceVerdict::Fresh { .. }), "{seq} {verdict:?}");
    }
}

/// Every other packet takes a slower way, as over two links.
#[test]
fn packets_that_are_late_one_by_one_do_not_take_the_window_back() {
    for slower_by in [3, 5, 7, 21] {
        let mut window = ReplayWindow::new();
        let mut lost = 0;
        for odd in (1..2_000).step_by(2) {
            let verdict = window.accept(odd, OPUS, LIMIT, 1, false);
            let SequenceVerdict::Fresh { lost: skipped, settled: true } = verdict else {
                panic!("{verdict:?}")
            };
            lost += skipped;
            if odd > slower_by {
                assert_eq!(window.accept(odd - slower_by, OPUS, LIMIT, 1, false), SequenceVerdict::Late);
                lost -= 1;
            }
        }
        assert_eq!(lost, slower_by as i32 / 2, "those on their way");
    }
}

/// Random packets came first, and were taken since nothing was known.
#[test]
fn a_device_that_begins_behind_a_forged_packet_is_heard() {
    let mut window = ReplayWindow::new();
    assert_eq!(window.accept(40, OTHER, LIMIT, 1, false), fresh(39, true));
    for seq in 1..6 {
        assert_eq!(window.accept(seq, OPUS, LIMIT, 1, false), SequenceVerdict::Late);
    }
    assert_eq!(window.accept(6, OPUS, LIMIT, 1, false), fresh(-34, true));
    for seq in 7..50 {
        window.accept(seq + 30, OTHER, LIMIT, 1, false);
        assert_eq!(window.accept(seq, OPUS, LIMIT, 1, false), FRESH);
    }
}

/// Sequences as a bad network or an attacker would deliver them.
fn any_sequences() -> impl Strategy<Value = Vec<(u32, Option<u8>, bool)>> {
    let step = prop_oneof![
        12 => Just(1_i64),
        4 => 2..6_i64,
        2 => Just(0_i64),
        4 => -70..0_i64,
        1 => 60..70_i64,
        1 => 500..530_i64,
        1 => prop_oneof![Just(1 << 20), Just(-(1 << 20)), Just(1 << 32)],
        1 => Just(-(1 << 32)),
    ];
    let config = prop_oneof![8 => Just(OPUS), 1 => Just(OTHER), 1 => Just(NOISE)];
    (0..1_000_i64, prop::collection::vec((step, config, any::<bool>()), 0..200)).prop_map(|(start, steps)| {
        let mut at = start;
        let mut walk = |(step, config, silent): (i64, _, _)| {
            at = (at + step).clamp(0, u32::MAX.into());
            (at as u32, config, silent)
        };
        steps.into_iter().map(&mut walk).collect()
    })
}

proptest! {
    #[test]
    fn small_steps_agree_with_a_set(steps in prop::collection::vec(-70..=64_i64, 0..200)) {
        let (mut window, mut seen, mut at) = (ReplayWindow::new(), BTreeSet::<u32>::new(), 1_i64);
        for step in steps {
            let last = seen.last().copied().map_or(0, i64::from);
            // Late packets in order would take the window back.
            let step = if (1..3).contains(&step) && at < last { 3 } else { step };
            at = (at + step).max(1).min(seen.last().map_or(64, |last| i64::from(last + 64)));
            let seq = at as u32;
            let highest = seen.last().copied().unwrap_or_default();
            let expected = if seq > highest {
                fresh((seq - highest - 1) as i32, true)
            } else if highest - seq >= 64 {
                SequenceVerdict::TooOld
            } else if seen.contains(&seq) {
                SequenceVerdict::Duplicate
            } else {
                SequenceVerdict::Late
            };
            prop_assert_eq!(window.accept(seq, OPUS, LIMIT, 1, false), expected, "{}", seq);
            if expected != SequenceVerdict::TooOld {
                seen.insert(seq);
            }
            prop_assert_eq!(window.highest(), seen.last().copied().unwrap_or_default());
        }
    }

    /// Whatever came before, the device's next packets are taken after one that is too far ahead or not like them.
    #[test]
    fn one_packet_never_stalls_a_call(before in any_sequences(), forged in any::<u32>(), small in 0..600_u32, near in any::<bool>(), config in prop_oneof![Just(OPUS), Just(OTHER), Just(NOISE)]) {
        let mut window = ReplayWindow::new();
        for (seq, config, silent) in before {
            window.accept(seq, config, LIMIT, 1, silent);
        }
        prop_assume!(window.highest() < u32::MAX - 700);
        for seq in (window.highest() + 1..).take(8) {
            window.accept(seq, OPUS, LIMIT, 1, false);
        }
        let next = window.highest() + 1;
        let forged = if near { next + small } else { forged };
        prop_assume!(config != window.config() || forged > next + 63);
        window.accept(forged, config, LIMIT, 1, false);
        for seq in next..next + 20 {
            let verdict = window.accept(seq, window.config(), LIMIT, 1, false);
            prop_assert!(matches!(verdict, SequenceVerdict::Fresh { settled: true, .. }), "{} after {}: {:?}", seq, forged, verdict);
        }
    }

    /// Nothing is settled twice, unless the window was taken back.
    #[test]
    fn what_is_settled_does_not_pass_again(packets in any_sequences()) {
        let mut window = ReplayWindow::new();
        let mut settled = BTreeSet::new();
        for (seq, config, _) in packets {
            let before = window.highest();
            let verdict = window.accept(seq, config, LIMIT, 1, false);
            if window.highest() < before {
                settled.split_off(&window.highest());
            }
            if let SequenceVerdict::Fresh { settled: true, .. } = verdict {
                prop_assert!(settled.insert(seq), "{} settled twice", seq);
            }
        }
    }

    #[test]
    fn every_sequence_is_counted_once(missing in prop::collection::btree_set(1..400_u32, 0..100), late in any::<bool>()) {
        // A missing packet counts as lost, unless it arrives late. So many late ones that they take the window back are not
        // counted exactly.
        let (mut window, mut lost, mut taken_back) = (ReplayWindow::new(), 0_i64, false);
        let mut receive = |seq| {
            let before = window.highest();
            match window.accept(seq, OPUS, LIMIT, 1, false) {
                SequenceVerdict::Fresh { lost: skipped, .. } => lost += i64::from(skipped),
                SequenceVerdict::Late => lost -= 1,
                other => assert!(taken_back, "{seq} is {other:?}"),
            }
            taken_back |= window.highest() < before;
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
        prop_assert!(taken_back || lost == (missing.len() - returned) as i64);
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
