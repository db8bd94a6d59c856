//! What passes between gateways about calls between devices, as bytes. What arrives is checked like a device's bytes.
//!
//! ```text
//! message    the caller's MAC (6), number of the call (8, big endian), the MACs that it is from and for (6 each), what it says (1),
//!            then of Ring the nickname (UTF-8), of Accept and Connected whether realtime (1), of NotRinging and End why (1)
//! audio      the caller's MAC, number of the call, the MAC that it is for, then Opus
//! ```

use super::BUSY;
use crate::proto::identity::Mac;
use crate::session::action::EndReason;
use crate::session::device_call_relay::{RelayBody, RelayId, RelayMessage, RequestOutcome};

/// The longest nickname, in characters, as the API takes it.
const MAX_NICKNAME_CHARS: usize = 64;
/// What devices do not tell each other counts as the first of these.
const END_REASONS: [EndReason; 4] =
    [EndReason::PeerLeft, EndReason::Operator, EndReason::Unanswered, EndReason::PeerLost];
const NOT_RINGING: [RequestOutcome; 2] = [BUSY, RequestOutcome::Offline];

impl RelayMessage {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32);
        write_call(&mut bytes, self.call);
        bytes.extend_from_slice(&self.from.bytes());
        bytes.extend_from_slice(&self.to.bytes());
        let (kind, rest): (u8, &[u8]) = match &self.body {
            RelayBody::Ring { nickname } => (0, nickname.as_bytes()),
            RelayBody::Rings => (1, &[]),
            RelayBody::NotRinging(outcome) => (2, &[number_in(&NOT_RINGING, outcome)]),
            RelayBody::Accept { realtime } => (3, &[u8::from(*realtime)]),
            RelayBody::Connected { realtime } => (4, &[u8::from(*realtime)]),
            RelayBody::End(reason) => (5, &[number_in(&END_REASONS, reason)]),
        };
        bytes.push(kind);
        bytes.extend_from_slice(rest);
        bytes
    }

    /// From bytes; `None` when they are none that a gateway sends.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let (call, from, to) = (read_call(&mut bytes)?, read_mac(&mut bytes)?, read_mac(&mut bytes)?);
        let (kind, rest) = bytes.split_first()?;
        let flag = || match rest {
            [flag @ (0 | 1)] => Some(*flag == 1),
            _ => None,
        };
        let body = match (kind, rest) {
            (0, nickname) => {
                let nickname = std::str::from_utf8(nickname).ok()?;
                (nickname.chars().count() <= MAX_NICKNAME_CHARS)
                    .then(|| RelayBody::Ring { nickname: nickname.into() })?
            }
            (1, []) => RelayBody::Rings,
            (2, [why]) => RelayBody::NotRinging(*NOT_RINGING.get(usize::from(*why))?),
            (3, _) => RelayBody::Accept { realtime: flag()? },
            (4, _) => RelayBody::Connected { realtime: flag()? },
            (5, [why]) => RelayBody::End(*END_REASONS.get(usize::from(*why))?),
            _ => return None,
        };
        let is_from = match body {
            RelayBody::Ring { .. } | RelayBody::Connected { .. } => from == call.caller,
            RelayBody::Rings | RelayBody::NotRinging(_) | RelayBody::Accept { .. } => to == call.caller,
            RelayBody::End(_) => from == call.caller || to == call.caller,
        };
        (is_from && from != to).then_some(Self { call, from, to, body })
    }
}

/// The place in a list of what is the first in it unless it is another.
fn number_in<T: PartialEq>(list: &[T], value: &T) -> u8 {
    list.iter().position(|known| known == value).unwrap_or_default() as u8
}

/// Writes an Opus packet for this device.
pub fn encode_audio(call: RelayId, to: Mac, opus: &[u8], out: &mut Vec<u8>) {
    write_call(out, call);
    out.extend_from_slice(&to.bytes());
    out.extend_from_slice(opus);
}

/// The call, the device, and the Opus packet for it; `None` when the bytes are none that a gateway sends.
pub fn decode_audio(mut bytes: &[u8]) -> Option<(RelayId, Mac, &[u8])> {
    Some((read_call(&mut bytes)?, read_mac(&mut bytes)?, bytes)).filter(|(.., opus)| !opus.is_empty())
}

fn write_call(bytes: &mut Vec<u8>, call: RelayId) {
    bytes.extend_from_slice(&call.caller.bytes());
    bytes.extend_from_slice(&call.number.to_be_bytes());
}

fn read_call(bytes: &mut &[u8]) -> Option<RelayId> {
    let caller = read_mac(bytes)?;
    let (number, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(RelayId { caller, number: u64::from_be_bytes(*number) })
}

fn read_mac(bytes: &mut &[u8]) -> Option<Mac> {
    let (mac, rest) = bytes.split_first_chunk::<6>()?;
    *bytes = rest;
    Some(Mac::from(*mac))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn mac(n: u8) -> Mac {
        Mac::from([2, 0, 0, 0, 0, n])
    }

    fn call() -> RelayId {
        RelayId { caller: mac(1), number: 0x0102_0304_0506_0708 }
    }

    fn all() -> Vec<RelayMessage> {
        let to_target = [
            RelayBody::Ring { nickname: "小明".into() },
            RelayBody::Ring { nickname: "".into() },
            RelayBody::Connected { realtime: true },
            RelayBody::Connected { realtime: false },
        ];
        let to_caller = [
            RelayBody::Rings,
            RelayBody::NotRinging(RequestOutcome::Offline),
            RelayBody::NotRinging(BUSY),
            RelayBody::Accept { realtime: true },
            RelayBody::Accept { realtime: false },
        ];
        let ends = END_REASONS.map(RelayBody::End);
        let message = |from, to| {
            move |body: RelayBody| RelayMessage { call: call(), from: mac(from), to: mac(to), body }
        };
        let ends = ends.into_iter().flat_map(|end| [message(1, 2)(end.clone()), message(2, 1)(end)]);
        let messages = to_target.map(message(1, 2)).into_iter().chain(to_caller.map(message(2, 1)));
        messages.chain(ends).collect()
    }

    #[test]
    fn messages_arrive_as_they_were() {
        for message in all() {
            assert_eq!(RelayMessage::decode(&message.encode()), Some(message));
        }
        let other = RelayMessage { body: RelayBody::End(EndReason::Shutdown), ..all().pop().unwrap() };
        let arrived = RelayMessage::decode(&other.encode()).unwrap();
        assert_eq!(arrived.body, RelayBody::End(EndReason::PeerLeft));
    }

    #[test]
    fn bad_messages_are_refused() {
        for message in all() {
            let good = message.encode();
            for len in 0..good.len() {
                let is_shorter_nickname = matches!(message.body, RelayBody::Ring { .. }) && len >= 27;
                let decoded = RelayMessage::decode(&good[..len]);
                assert!(decoded.is_none() || is_shorter_nickname, "{message:?} {len}");
            }
            // Of two others, of one to itself, and of one that must not say it.
            let [other, own, turned] = [(3, 4), (1, 1), (2, 1)].map(|(from, to)| {
                let bytes = RelayMessage { from: mac(from), to: mac(to), ..message.clone() }.encode();
                RelayMessage::decode(&bytes)
            });
            assert_eq!((other, own), (None, None), "{message:?}");
            let may_be_turned = !matches!(message.body, RelayBody::Ring { .. } | RelayBody::Connected { .. });
            assert_eq!(turned.is_some(), may_be_turned, "{message:?}");
            for kind in 6..=255 {
                let mut bad = good.clone();
                bad[26] = kind;
                assert_eq!(RelayMessage::decode(&bad), None);
            }
            let mut long = good.clone();
            long.resize(good.len() + 65, b'x');
            assert_eq!(RelayMessage::decode(&long), None, "{message:?}");
            *long.last_mut().unwrap() = 0xff;
            assert_eq!(RelayMessage::decode(&long[..good.len() + 65]), None);
        }
    }

    #[test]
    fn audio_arrives_as_it_was() {
        let mut bytes = Vec::new();
        encode_audio(call(), mac(2), b"\x58opus", &mut bytes);
        assert_eq!(decode_audio(&bytes), Some((call(), mac(2), &b"\x58opus"[..])));
        for len in 0..=20 {
            assert_eq!(decode_audio(&bytes[..len]), None, "{len}");
        }
    }
}
