//! Frames that gateways send each other. Several stand behind one another in one message of a channel.
//!
//! ```text
//! 0    version, 1
//! 1    kind
//! 2    two bytes of 0
//! 4    length of the payload, 4 bytes, big endian as all that follows
//! 8    run id of the sender, 8 bytes
//! 16   id, chosen by the sender, 8 bytes
//! 24   payload
//! ```

use super::{GatewayId, MAX_PAYLOAD};

const VERSION: u8 = 1;
pub(super) const HEADER_LEN: usize = 24;

/// Kinds that belong to the cluster itself.
pub(super) mod kind {
    /// To oneself, to see that the own channel delivers; to a gateway, to see that somebody listens.
    pub(in crate::cluster) const PROBE: u8 = 0;
    /// To all: `OwnInfo` as JSON.
    pub(in crate::cluster) const ANNOUNCE: u8 = 1;
    /// To all: this gateway ends.
    pub(in crate::cluster) const LEAVE: u8 = 2;
    /// The device with the MAC in the payload has connected to the sender, whose number of that connection follows, 4 bytes; the id is
    /// the number of the connection to close.
    pub(in crate::cluster) const CLOSE: u8 = 3;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) from: GatewayId,
    pub(super) kind: u8,
    pub(super) id: u64,
    pub(super) payload: &'a [u8],
}

impl Frame<'_> {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[VERSION, self.kind, 0, 0]);
        out.extend_from_slice(&(self.payload.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.from.0.to_be_bytes());
        out.extend_from_slice(&self.id.to_be_bytes());
        out.extend_from_slice(self.payload);
    }
}

/// Takes the first frame off the message; `None` when it does not begin with one.
pub(super) fn take<'a>(message: &mut &'a [u8]) -> Option<Frame<'a>> {
    let (header, rest) = message.split_at_checked(HEADER_LEN)?;
    let number = |at: usize| header[at..at + 8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let len = (number(0) & 0xffff_ffff) as usize;
    if header[0] != VERSION || len > MAX_PAYLOAD {
        return None;
    }
    let (payload, rest) = rest.split_at_checked(len)?;
    *message = rest;
    Some(Frame { from: GatewayId(number(8)), kind: header[1], id: number(16), payload })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn frames_stand_behind_one_another() {
        let one = Frame { from: GatewayId(0x0102_0304_0506_0708), kind: 20, id: 9, payload: b"abc" };
        let two = Frame { from: GatewayId(u64::MAX), kind: 0, id: u64::MAX, payload: b"" };
        let mut bytes = Vec::new();
        one.write(&mut bytes);
        assert_eq!(bytes, b"\x01\x14\0\0\0\0\0\x03\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\0\x09abc");
        two.write(&mut bytes);
        let mut rest = &bytes[..];
        assert_eq!(take(&mut rest), Some(one));
        assert_eq!(take(&mut rest), Some(two));
        assert_eq!((take(&mut rest), rest), (None, &b""[..]));
    }

    #[test]
    fn a_bad_frame_is_refused() {
        let mut good = Vec::new();
        Frame { from: GatewayId(1), kind: 20, id: 9, payload: b"abc" }.write(&mut good);
        for (at, value) in [(0, 0), (0, 2), (4, 1), (5, 5), (7, 4)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(take(&mut &bad[..]), None, "byte {at}");
        }
        for len in 0..good.len() {
            assert_eq!(take(&mut &good[..len]), None, "{len} bytes");
        }
    }
}
