//! A sound for a device.

use crate::proto::ogg_opus::{BadOggOpus, check, checksum};

/// The bytes of a file, as they are and with good checksums.
pub fn ogg_opus(data: &[u8]) {
    judge(data);
    let mut file = data.to_vec();
    repair_checksums(&mut file);
    judge(&file);
}

fn judge(file: &[u8]) {
    match check(file) {
        Ok(found) => {
            assert_eq!(firmware_plays(file), Some(found.packets), "a device plays it to its end");
            let packets = found.packets as u64;
            assert!((5 * packets..=120 * packets).contains(&found.duration_ms) && packets > 0);
            for end in 0..file.len() {
                assert!(check(&file[..end]).is_err(), "{end} bytes are not the whole file");
            }
        }
        Err(why) => {
            let sentence = why.to_string();
            assert!(!sentence.contains('\n') && (10..200).contains(&sentence.len()), "{sentence}");
            assert_eq!(why == BadOggOpus::NotOgg, file.is_empty() || !begins_as_ogg(file));
        }
    }
}

fn begins_as_ogg(file: &[u8]) -> bool {
    file.iter().zip(b"OggS").all(|(found, expected)| found == expected)
}

/// As far as there are pages.
fn repair_checksums(file: &mut [u8]) {
    let mut rest = file;
    while rest.len() >= 27 && rest.starts_with(b"OggS") {
        let table = 27 + usize::from(rest[26]);
        let Some(lengths) = rest.get(27..table) else { return };
        let length = table + lengths.iter().map(|length| usize::from(*length)).sum::<usize>();
        let Some((page, after)) = rest.split_at_mut_checked(length) else { return };
        page[22..26].fill(0);
        let crc = checksum(0, page);
        page[22..26].copy_from_slice(&crc.to_le_bytes());
        rest = after;
    }
}

/// The firmware's demuxer (`ogg_demuxer.cc` of 78/xiaozhi-esp32, commit 77500b8), as far as it decides what is played: how many
/// packets, or `None` when it stops with an error.
pub fn firmware_plays(file: &[u8]) -> Option<usize> {
    let (mut at, mut packet, mut packets, mut headers) = (0, Vec::new(), 0, 0);
    while at < file.len() {
        // It looks for the next page; here nothing may be skipped.
        let page = &file[at..];
        if !page.starts_with(b"OggS") || page.len() < 27 || page[4] != 0 {
            return None;
        }
        let table = page.get(27..27 + usize::from(page[26]))?;
        at += 27 + table.len();
        for length in table {
            packet.extend(file.get(at..at + usize::from(*length))?);
            at += usize::from(*length);
            if packet.len() > 2048 {
                return None;
            }
            if *length == 255 {
                continue;
            }
            match headers {
                0 if packet.starts_with(b"OpusHead") && packet.len() >= 19 && packet[9] == 1 => headers = 1,
                1 if packet.starts_with(b"OpusTags") => headers = 2,
                2 if firmware_duration(&packet).is_some() => packets += 1,
                _ => return None,
            }
            packet.clear();
        }
    }
    (headers == 2 && packets > 0 && packet.is_empty()).then_some(packets)
}

/// `GetOpusPacketDurationMs`.
fn firmware_duration(packet: &[u8]) -> Option<u32> {
    let toc = *packet.first()?;
    let config = usize::from(toc >> 3);
    let frame_us = match config {
        ..12 => [10_000, 20_000, 40_000, 60_000][config & 3],
        12..16 => [10_000, 20_000][config & 1],
        _ => [2500, 5000, 10_000, 20_000][config & 3],
    };
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => u32::from(packet.get(1)? & 0x3f),
    };
    let us = frame_us * frames;
    (frames > 0 && us <= 120_000 && us % 1000 == 0).then_some(us / 1000)
}
