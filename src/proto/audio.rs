//! Audio on the wire: UDP packets with AES-128-CTR encryption, WebSocket frames, and the check of sequence numbers.
//!
//! A UDP packet is `type u8 = 1 | flags u8 | payload length u16 | ssrc u32 | timestamp u32 | sequence u32 | payload`, all big
//! endian. Its payload is encrypted with AES-128-CTR, and the 16 header bytes are the initial counter block. A WebSocket frame is
//! `version u16 = 2 | type u16 = 0 | reserved u32 = 0 | timestamp u32 | payload size u32 | payload`. Both headers have 16 bytes, so a
//! packet can be turned into a frame in place.

use std::fmt;

mod cipher;
mod replay_window;

pub use cipher::Cipher;
pub use replay_window::{ReplayWindow, Run, SequenceVerdict};

/// The length of both headers, in bytes.
pub const HEADER_LEN: usize = 16;

/// The longest payload in either direction, in bytes. The modems of devices cannot receive longer packets.
pub const MAX_PAYLOAD: usize = 1400;

/// The flags of the nonce, and so of every packet of a device.
pub const UPLINK_FLAGS: u8 = 0;

/// The longest Opus frame, in bytes.
const MAX_FRAME: usize = 1275;

/// The first byte of every UDP packet.
const PACKET_TYPE: u8 = 1;

/// The header of a UDP packet whose type is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpHeader {
    /// A device sends [`UPLINK_FLAGS`], and no known one reads those of the gateway's packets. Since they are part of the counter
    /// block, they separate the keystreams of the two directions.
    pub flags: u8,
    /// Payload length in bytes.
    pub payload_len: u16,
    /// Identifies the call.
    pub ssrc: u32,
    /// Milliseconds. A device sends 0 or, for echo cancellation by the server, the timestamp that it last played.
    pub timestamp: u32,
    /// Counts the packets in each direction of a call from 1.
    pub sequence: u32,
}

impl UdpHeader {
    /// Parses the header of a datagram: type 1, a payload of 1 to [`MAX_PAYLOAD`] bytes, and exactly the length that it states.
    pub fn parse(datagram: &[u8]) -> Result<Self, BadDatagram> {
        if datagram.is_empty() {
            return Err(BadDatagram::Empty);
        }
        let Some((head, payload)) = datagram.split_first_chunk::<HEADER_LEN>() else {
            return Err(BadDatagram::Short);
        };
        let [kind, flags, l0, l1, s0, s1, s2, s3, t0, t1, t2, t3, q0, q1, q2, q3] = *head;
        let len = u16::from_be_bytes([l0, l1]);
        if kind != PACKET_TYPE {
            Err(BadDatagram::Type)
        } else if usize::from(len) != payload.len() {
            Err(BadDatagram::Length)
        } else if payload.is_empty() {
            Err(BadDatagram::Empty)
        } else if payload.len() > MAX_PAYLOAD {
            Err(BadDatagram::Oversized)
        } else {
            Ok(Self {
                flags,
                payload_len: len,
                ssrc: u32::from_be_bytes([s0, s1, s2, s3]),
                timestamp: u32::from_be_bytes([t0, t1, t2, t3]),
                sequence: u32::from_be_bytes([q0, q1, q2, q3]),
            })
        }
    }

    /// The header as bytes, which are also the initial counter block of the payload.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let [l0, l1] = self.payload_len.to_be_bytes();
        let [s0, s1, s2, s3] = self.ssrc.to_be_bytes();
        let [t0, t1, t2, t3] = self.timestamp.to_be_bytes();
        let [q0, q1, q2, q3] = self.sequence.to_be_bytes();
        [PACKET_TYPE, self.flags, l0, l1, s0, s1, s2, s3, t0, t1, t2, t3, q0, q1, q2, q3]
    }
}

/// Why a datagram is not an audio packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BadDatagram {
    /// Fewer bytes than a header.
    Short,
    /// The first byte is not 1.
    Type,
    /// The length field does not match the length of the datagram.
    Length,
    /// A payload longer than [`MAX_PAYLOAD`].
    Oversized,
    /// No payload. Load balancers send empty datagrams as health checks.
    Empty,
}

impl fmt::Display for BadDatagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => write!(f, "fewer than the {HEADER_LEN} bytes of a header"),
            Self::Type => write!(f, "the first byte is not {PACKET_TYPE}"),
            Self::Length => write!(f, "the length field does not match the length of the datagram"),
            Self::Oversized => write!(f, "more than {MAX_PAYLOAD} bytes of payload"),
            Self::Empty => write!(f, "no payload"),
        }
    }
}

impl std::error::Error for BadDatagram {}

/// The nonce in the hello reply: a header in which the device overwrites length, timestamp and sequence.
pub fn nonce(ssrc: u32) -> [u8; HEADER_LEN] {
    UdpHeader { flags: UPLINK_FLAGS, payload_len: 0, ssrc, timestamp: 0, sequence: 0 }.to_bytes()
}

/// The header of a WebSocket audio frame with a payload of `len` bytes.
pub fn ws_frame_header(timestamp: u32, len: usize) -> [u8; HEADER_LEN] {
    let [t0, t1, t2, t3] = timestamp.to_be_bytes();
    let [l0, l1, l2, l3] = (len as u32).to_be_bytes();
    [0, 2, 0, 0, 0, 0, 0, 0, t0, t1, t2, t3, l0, l1, l2, l3]
}

/// Timestamp and payload of a binary WebSocket frame whose header states the length of its payload correctly.
///
/// The first eight bytes are ignored, since some servers put other values than version and type there.
pub fn parse_ws_frame(frame: &[u8]) -> Option<(u32, &[u8])> {
    let (head, payload) = frame.split_first_chunk::<HEADER_LEN>()?;
    let [.., t0, t1, t2, t3, l0, l1, l2, l3] = *head;
    let len = u32::from_be_bytes([l0, l1, l2, l3]);
    (usize::try_from(len) == Ok(payload.len())).then_some((u32::from_be_bytes([t0, t1, t2, t3]), payload))
}

/// Whether a payload is text rather than Opus: 8 or more bytes, all of them printable ASCII. The test client of the Python server
/// sends `ping:` and its session id first.
pub fn is_text(payload: &[u8]) -> bool {
    payload.len() >= 8 && payload.iter().all(|byte| matches!(byte, b' '..=b'~'))
}

/// An Opus packet of silence with this duration: a multiple of 5 ms up to 120 ms, otherwise 60 ms. It has at least 8 bytes, since
/// firmware before 2.4 drops datagrams of fewer than 24.
///
/// Its first byte means CELT, fullband, frames of 20, 10 or 5 ms, mono, with the number of frames in the second byte (RFC 6716
/// section 3.2.5: code 3, constant length, padding where it would be too short). Each frame is `ff fe`, which the range coder
/// decodes as a set silence flag (section 4.3). libopus decodes it to zeros at every sample rate.
pub fn silence_packet(duration_ms: u32) -> Box<[u8]> {
    const CONFIGS: [(u32, u8); 3] = [(20, 31), (10, 30), (5, 29)];
    const PADDING: u8 = 0x40;
    const LEN_MIN: usize = 8;

    let duration_ms = Some(duration_ms).filter(|ms| (5..=120).contains(ms)).unwrap_or(60);
    let config = CONFIGS.into_iter().find(|(frame_ms, _)| duration_ms.is_multiple_of(*frame_ms));
    let (frames, config) =
        config.map_or((3, 31), |(frame_ms, config)| ((duration_ms / frame_ms) as u8, config));
    let mut packet = vec![config << 3 | 3, frames];
    let missing = LEN_MIN.saturating_sub(2 + 2 * usize::from(frames));
    if missing > 0 {
        // The length of the padding takes one byte of what is missing.
        packet = vec![config << 3 | 3, PADDING | frames, missing as u8 - 1];
    }
    packet.extend([0xff, 0xfe].repeat(frames.into()));
    packet.resize(packet.len().max(LEN_MIN), 0);
    packet.into_boxed_slice()
}

/// The configuration number and the stereo bit (`number << 1 | stereo`) of a well-formed Opus packet: RFC 6716 section 3, with the
/// requirements R1 to R7 of section 3.4.
///
/// Four of five packets of random bytes pass at best, but only one in 64 of these has a given configuration.
pub fn opus_config(payload: &[u8]) -> Option<u8> {
    let (&toc, rest) = payload.split_first()?;
    let well_formed = match toc & 0b11 {
        0 => rest.len() <= MAX_FRAME,
        1 => rest.len().is_multiple_of(2) && rest.len() / 2 <= MAX_FRAME,
        2 => {
            let (first, frames) = opus_frame_len(rest)?;
            frames.len().checked_sub(first).is_some_and(|second| second <= MAX_FRAME)
        }
        _ => are_opus_frames(toc >> 3, rest)?,
    };
    well_formed.then_some(toc >> 2)
}

/// How long a well-formed Opus packet plays, in microseconds: a multiple of 2,500 up to 120,000.
pub fn opus_duration_us(payload: &[u8]) -> Option<u32> {
    let config = opus_config(payload)? >> 1;
    let frames = match payload[0] & 0b11 {
        0 => 1,
        1 | 2 => 2,
        _ => payload.get(1)? & 0x3f,
    };
    Some(2500 * u32::from(opus_frame_units(config)) * u32::from(frames))
}

/// How long one frame of this configuration plays, in units of 2.5 ms (RFC 6716 section 3.1).
fn opus_frame_units(config: u8) -> u8 {
    match config {
        0..12 => [4, 8, 16, 24][usize::from(config & 3)],
        12..16 => [4, 8][usize::from(config & 1)],
        _ => [1, 2, 4, 8][usize::from(config & 3)],
    }
}

/// The length of a frame, one or two bytes, and what follows it.
fn opus_frame_len(bytes: &[u8]) -> Option<(usize, &[u8])> {
    match *bytes {
        [short @ 0..252, ref rest @ ..] => Some((short.into(), rest)),
        [low, high, ref rest @ ..] => Some((usize::from(low) + 4 * usize::from(high), rest)),
        _ => None,
    }
}

/// Whether this follows the first byte of a packet with code 3: `None` or false if not.
fn are_opus_frames(config: u8, bytes: &[u8]) -> Option<bool> {
    /// 120 ms, in units of 2.5 ms.
    const MAX_DURATION: u8 = 48;
    let (&head, mut rest) = bytes.split_first()?;
    let frames = head & 0x3f;
    if frames == 0 || frames > MAX_DURATION / opus_frame_units(config) {
        return None;
    }
    if head & 0x40 != 0 {
        let mut padding = 0;
        loop {
            let (&len, after) = rest.split_first()?;
            rest = after;
            padding += usize::from(len.min(254));
            if len < 255 {
                break;
            }
        }
        rest = rest.get(..rest.len().checked_sub(padding)?)?;
    }
    if head & 0x80 == 0 {
        let frames = usize::from(frames);
        return Some(rest.len().is_multiple_of(frames) && rest.len() / frames <= MAX_FRAME);
    }
    let mut before_last = 0;
    for _ in 1..frames {
        let (len, after) = opus_frame_len(rest)?;
        (before_last, rest) = (before_last + len, after);
    }
    Some(rest.len().checked_sub(before_last)? <= MAX_FRAME)
}

#[cfg(test)]
mod tests;
