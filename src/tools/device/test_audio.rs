//! The simulated device's voice: valid Opus packets that sound like nothing and carry a number and a time, so that an
//! echo tells what was lost and how long the way took.

/// Bytes of one packet: about what 60 ms of speech take.
pub const LEN: usize = 120;

/// SILK, wide band, 60 ms, mono, and an arbitrary number of frames follows (RFC 6716 section 3.1).
const TOC: u8 = (11 << 3) | 3;
/// One frame, and padding (RFC 6716 section 3.2.5).
const ONE_PADDED: u8 = 0x40 | 1;
/// The rest is padding, whose values a decoder ignores: the one frame is empty, which is silence.
const PADDING: u8 = (LEN - HEAD) as u8;
const HEAD: usize = 3;
const MARK: [u8; 4] = *b"echo";

/// A packet with this number, said at `micros`.
pub fn packet(number: u32, micros: u64) -> [u8; LEN] {
    let mut packet = [0x55; LEN];
    packet[..HEAD].copy_from_slice(&[TOC, ONE_PADDED, PADDING]);
    packet[HEAD..HEAD + 4].copy_from_slice(&MARK);
    packet[HEAD + 4..HEAD + 8].copy_from_slice(&number.to_be_bytes());
    packet[HEAD + 8..HEAD + 16].copy_from_slice(&micros.to_be_bytes());
    packet
}

/// Number and time of a packet made by [`packet`], every byte of which is compared; `None` for any other voice.
pub fn parse(said: &[u8]) -> Option<(u32, u64)> {
    let number = u32::from_be_bytes(*said.get(HEAD + 4..)?.first_chunk()?);
    let micros = u64::from_be_bytes(*said.get(HEAD + 8..)?.first_chunk()?);
    (packet(number, micros) == said).then_some((number, micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_plausible_opus_and_reads_back() {
        let packet = packet(7, 1_234_567);
        assert_eq!(crate::proto::audio::opus_config(&packet), Some(11));
        assert_eq!(parse(&packet), Some((7, 1_234_567)));
        assert_eq!(parse(&packet[1..]), None);
        assert_eq!(parse(&[0; LEN]), None);
    }
}
