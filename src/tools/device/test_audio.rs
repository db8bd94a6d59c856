//! The simulated device's audio: valid Opus packets of silence that carry a number and a time, so that an echo shows
//! what was lost and how long the round trip took.

/// Bytes of one packet: about what 60 ms of speech take.
pub const PACKET_LEN: usize = 120;

/// SILK, wide band, 60 ms, mono, and an arbitrary number of frames follows (RFC 6716 section 3.1).
const TOC: u8 = (11 << 3) | 3;
/// One frame, and padding (RFC 6716 section 3.2.5).
const FRAME_COUNT_PADDED: u8 = 0x40 | 1;
/// The rest is padding, whose values a decoder ignores: the one frame is empty, which is silence.
const PADDING_LEN: u8 = (PACKET_LEN - HEADER_LEN) as u8;
const HEADER_LEN: usize = 3;
const MAGIC: [u8; 4] = *b"echo";

/// A packet with this number and time.
pub fn packet(number: u32, micros: u64) -> [u8; PACKET_LEN] {
    let mut packet = [0x55; PACKET_LEN];
    packet[..HEADER_LEN].copy_from_slice(&[TOC, FRAME_COUNT_PADDED, PADDING_LEN]);
    packet[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&MAGIC);
    packet[HEADER_LEN + 4..HEADER_LEN + 8].copy_from_slice(&number.to_be_bytes());
    packet[HEADER_LEN + 8..HEADER_LEN + 16].copy_from_slice(&micros.to_be_bytes());
    packet
}

/// Number and time of a packet made by [`packet`], every byte of which is compared; `None` for any other audio.
pub fn parse(said: &[u8]) -> Option<(u32, u64)> {
    let number = u32::from_be_bytes(*said.get(HEADER_LEN + 4..)?.first_chunk()?);
    let micros = u64::from_be_bytes(*said.get(HEADER_LEN + 8..)?.first_chunk()?);
    (packet(number, micros) == said).then_some((number, micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_plausible_opus_and_reads_back() {
        let packet = packet(7, 1_234_567);
        assert_eq!(crate::proto::audio::opus_config(&packet), Some(11 << 1));
        assert_eq!(parse(&packet), Some((7, 1_234_567)));
        assert_eq!(parse(&packet[1..]), None);
        assert_eq!(parse(&[0; PACKET_LEN]), None);
    }
}
