use proptest::prelude::*;

use super::*;
use crate::fuzzing::firmware_plays;

const FFMPEG: &[u8] = include_bytes!("../../../tests/data/notify/ffmpeg.ogg");
const OPUSENC: &[u8] = include_bytes!("../../../tests/data/notify/opusenc.ogg");
const GSTREAMER: &[u8] = include_bytes!("../../../tests/data/notify/gstreamer.ogg");

/// 20 ms, CELT, mono: one frame without a byte.
const PACKET: &[u8] = &[31 << 3];

/// A page whose packets are complete, unless the last has a multiple of 255 bytes and `open` is set.
fn page(flags: u8, serial: u32, number: u32, packets: &[&[u8]], open: bool) -> Vec<u8> {
    let mut table = Vec::new();
    for packet in packets {
        table.extend(std::iter::repeat_n(255, packet.len() / 255));
        table.push((packet.len() % 255) as u8);
    }
    if open {
        assert_eq!(table.pop(), Some(0));
    }
    let mut page =
        [b"OggS\0".as_slice(), &[flags], &[0; 8], &serial.to_le_bytes(), &number.to_le_bytes(), &[0; 4]]
            .concat();
    page.push(u8::try_from(table.len()).unwrap());
    page.extend(table);
    page.extend(packets.concat());
    let crc = checksum(0, &page);
    page[22..26].copy_from_slice(&crc.to_le_bytes());
    page
}

fn head(version: u8, channels: u8, mapping: u8) -> Vec<u8> {
    [b"OpusHead".as_slice(), &[version, channels, 0x38, 1, 0x80, 0x3e, 0, 0, 0, 0, mapping]].concat()
}

/// A file with this header, these comments and pages of these packets.
fn file(head: &[u8], tags: &[u8], pages: &[&[&[u8]]]) -> Vec<u8> {
    let mut file = page(FIRST, 7, 0, &[head], false);
    file.extend(page(if pages.is_empty() { LAST } else { 0 }, 7, 1, &[tags], false));
    for (index, packets) in pages.iter().enumerate() {
        let flags = if index + 1 == pages.len() { LAST } else { 0 };
        file.extend(page(flags, 7, 2 + index as u32, packets, false));
    }
    file
}

fn with_packets(packets: &[&[u8]]) -> Result<OggOpus, BadOggOpus> {
    check(&file(&head(1, 1, 0), b"OpusTags", &[packets]))
}

#[test]
fn files_of_three_encoders_are_good() {
    for (name, file, packets, ms) in
        [("ffmpeg", FFMPEG, 17, 60), ("opusenc", OPUSENC, 51, 20), ("GStreamer", GSTREAMER, 26, 40)]
    {
        assert_eq!(check(file), Ok(OggOpus { packets, duration_ms: packets as u64 * ms }), "{name}");
    }
}

#[test]
fn every_damage_of_a_file_is_found() {
    for file in [FFMPEG, OPUSENC, GSTREAMER] {
        for at in (0..file.len()).step_by(7) {
            let mut damaged = file.to_vec();
            damaged[at] ^= 0x10;
            assert!(check(&damaged).is_err(), "byte {at}");
        }
        for length in 0..file.len() {
            assert!(check(&file[..length]).is_err(), "{length} bytes");
        }
    }
}

#[test]
fn durations_are_those_of_the_firmware() {
    // Configurations 28 to 31: CELT, fullband, 2.5, 5, 10 and 20 ms. Code 3 with this many empty frames.
    for (config, frames, us) in [
        (28, 1, Err(2500)),
        (28, 2, Ok(5000)),
        (29, 1, Ok(5000)),
        (29, 3, Err(15_000)),
        (30, 1, Ok(10_000)),
        (30, 3, Err(30_000)),
        (31, 1, Ok(20_000)),
        (31, 2, Ok(40_000)),
        (31, 3, Ok(60_000)),
        (31, 4, Ok(80_000)),
        (31, 5, Ok(100_000)),
        (31, 6, Ok(120_000)),
    ] {
        let packet = [config << 3 | 3, frames];
        let expected = match us {
            Ok(us) => Ok(OggOpus { packets: 2, duration_ms: 20 + us / 1000 }),
            Err(us) => Err(BadOggOpus::Duration(1, us)),
        };
        assert_eq!(with_packets(&[PACKET, &packet]), expected, "{config} {frames}");
    }
    let why = BadOggOpus::Duration(1, 2500).to_string();
    assert_eq!(why, "packet 1 plays for 2.5 ms, allowed: 5, 10, 20, 40, 60, 80, 100, 120");
}

#[test]
fn what_is_wrong_is_said() {
    use BadOggOpus::*;

    let good = head(1, 1, 0);
    let ok = file(&good, b"OpusTags", &[&[PACKET]]);
    assert!(check(&ok).is_ok());
    let mut wrong_version = ok.clone();
    wrong_version[4] = 1;
    let long = [PACKET, &[0; MAX_PACKET]].concat();
    let cases: Vec<(Vec<u8>, BadOggOpus)> = vec![
        (Vec::new(), NotOgg),
        (b"RIFF....WAVEfmt ".to_vec(), NotOgg),
        (b"ID3".to_vec(), NotOgg),
        (b"Og".to_vec(), Cut(0)),
        (ok[..ok.len() - 1].to_vec(), Cut(2)),
        ([&ok[..], b"TAG"].concat(), NotPage(3)),
        (wrong_version, Version(1)),
        ([&ok[..], &ok].concat(), SecondStream(3)),
        ([page(FIRST, 7, 0, &[&good], false), page(FIRST, 8, 0, &[&good], false)].concat(), SecondStream(1)),
        (
            [page(FIRST, 7, 0, &[&good], false), page(0, 8, 1, &[b"OpusTags"], false)].concat(),
            SecondStream(1),
        ),
        ([ok.clone(), page(0, 7, 3, &[PACKET], false)].concat(), AfterEnd(3)),
        ([page(FIRST, 7, 0, &[&good], false), page(0, 7, 2, &[b"OpusTags"], false)].concat(), Order(1)),
        (
            [page(FIRST, 7, 0, &[&good], false), page(CONTINUED, 7, 1, &[b"OpusTags"], false)].concat(),
            Order(1),
        ),
        (page(0, 7, 0, &[&good], false), Order(0)),
        (page(FIRST, 7, 0, &[&good], false), NoEnd),
        (file(&good, b"OpusTags", &[&[&long]]), LongPacket(2)),
        (file(&good, &[b"OpusTags".as_slice(), &[0; MAX_PACKET]].concat(), &[&[PACKET]]), LongPacket(1)),
        (file(b"\x01vorbis", b"", &[]), NotOpus),
        (file(b"OpusHea", b"", &[]), NotOpus),
        (file(&head(2, 1, 0), b"", &[]), Header),
        (file(&head(1, 1, 255), b"", &[]), Header),
        (file(&good[..18], b"", &[]), Header),
        (file(&head(1, 2, 0), b"", &[]), Channels(2)),
        (file(&[head(1, 6, 1), vec![4, 2, 0, 4, 1, 2, 3, 5]].concat(), b"", &[]), Channels(6)),
        (file(&good, PACKET, &[&[PACKET]]), NoTags),
        (file(&good, b"OpusTags", &[]), NoAudio),
        (
            [page(FIRST, 7, 0, &[&good], false), page(LAST, 7, 1, &[b"OpusTags", PACKET], false)].concat(),
            SharedPage(1),
        ),
        (file(&good, b"OpusTags", &[&[PACKET, b""]]), Packet(1)),
        (file(&good, b"OpusTags", &[&[&[31 << 3 | 3, 0]]]), Packet(0)),
    ];
    for (file, expected) in cases {
        assert_eq!(check(&file), Err(expected));
        let sentence = expected.to_string();
        assert!(sentence.len() > 10 && !sentence.ends_with('.') && !sentence.contains('\n'), "{sentence}");
    }
    let mut damaged = ok;
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    assert_eq!(check(&damaged), Err(Checksum(2)));
}

#[test]
fn a_packet_may_go_on_over_pages_and_have_2048_bytes() {
    // 31 << 3: one frame, of up to 1275 bytes; code 3 with padding allows more.
    let longest =
        [&[31 << 3 | 3, 0x41, 255, 255, 255, 255, 255, 255, 255, 252], [0; MAX_PACKET - 10].as_slice()]
            .concat();
    assert_eq!(longest.len(), MAX_PACKET);
    let (first, second) = longest.split_at(1020);
    let mut whole = page(FIRST, 7, 0, &[&head(1, 1, 0)], false);
    whole.extend(page(0, 7, 1, &[b"OpusTags"], false));
    whole.extend(page(0, 7, 2, &[PACKET, first], true));
    let open = whole.clone();
    whole.extend(page(CONTINUED | LAST, 7, 3, &[second, PACKET], false));
    assert_eq!(check(&whole), Ok(OggOpus { packets: 3, duration_ms: 60 }));
    assert_eq!(check(&open), Err(BadOggOpus::NoEnd));
    let without_flag = [open.clone(), page(LAST, 7, 3, &[second, PACKET], false)].concat();
    assert_eq!(check(&without_flag), Err(BadOggOpus::Order(3)));
    // The last page is marked so, but its packet goes on.
    let unfinished = [open, page(CONTINUED | LAST, 7, 3, &[&[0; 255]], true)].concat();
    assert_eq!(check(&unfinished), Err(BadOggOpus::NoEnd));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = check(&bytes);
        let _ = check(&[CAPTURE_PATTERN, &bytes].concat());
        prop_assert!(check(&page(FIRST, 7, 0, &[&bytes], false)).is_err());
        if let Ok(found) = with_packets(&[PACKET, &bytes]) {
            prop_assert_eq!(found.packets, 2);
            prop_assert!(found.duration_ms <= 140);
        }
    }

    #[test]
    fn a_changed_file_is_refused_or_played(
        changes in proptest::collection::vec((0..FFMPEG.len(), any::<u8>()), 0..4),
        cut in 0..40_usize,
    ) {
        let mut file = FFMPEG.to_vec();
        changes.iter().for_each(|(at, byte)| file[*at] = *byte);
        file.truncate(file.len() - cut);
        let found = check(&file);
        if let Ok(found) = found {
            prop_assert_eq!(firmware_plays(&file), Some(found.packets));
        }
        prop_assert_eq!(found.is_ok(), file == FFMPEG);
    }

    #[test]
    fn the_checksum_is_that_of_single_bits(bytes in proptest::collection::vec(any::<u8>(), 0..40), start in any::<u32>()) {
        let bit_by_bit = bytes.iter().fold(start, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte) << 24, |crc, _| (crc << 1) ^ ((crc >> 31) * 0x04c1_1db7))
        });
        prop_assert_eq!(checksum(start, &bytes), bit_by_bit);
    }

    #[test]
    fn packets_on_any_pages_are_counted(pages in proptest::collection::vec(1..200_usize, 1..5)) {
        let packets = [PACKET; 200];
        let split: Vec<&[&[u8]]> = pages.iter().map(|count| &packets[..*count]).collect();
        let file = file(&head(1, 1, 0), b"OpusTags\0\0", &split);
        let count = pages.iter().sum::<usize>();
        prop_assert_eq!(check(&file), Ok(OggOpus { packets: count, duration_ms: 20 * count as u64 }));
        prop_assert_eq!(firmware_plays(&file), Some(count));
    }
}
