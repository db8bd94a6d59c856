//! What passes between the two ends of a call between devices when different places serve them: messages and audio.

use std::fmt;

use crate::proto::identity::Mac;

use super::action::EndReason;

/// The most bytes of audio on their way to one place: 2,000 packets of usual size. What does not fit is dropped.
const RELAY_LIMIT: usize = 256 * 1024;
/// What each audio packet counts for besides its bytes.
const ITEM_BYTES: usize = size_of::<RelayItem>();

/// Which event loop serves a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// This one.
    Here,
    /// Another worker of this gateway, counted from 0.
    Worker(usize),
    /// Another gateway, by the number of its run.
    Gateway(u64),
}

impl fmt::Display for Place {
    /// As in "which .. serves".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.write_str("this worker"),
            Self::Worker(worker) => write!(f, "worker {worker}"),
            Self::Gateway(run) => write!(f, "gateway (run {run:016x})"),
        }
    }
}

/// Identifies a call between devices at both its places, and is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayId {
    /// The device that called.
    pub caller: Mac,
    /// The number of this call among those that its place has begun, counted from a number that others cannot guess.
    pub number: u64,
}

/// The other device of a call, as the place of one of them knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FarEnd {
    /// The other device.
    pub mac: Mac,
    /// Where it is served.
    pub place: Place,
    /// Their call.
    pub call: RelayId,
}

/// A message about a call between devices, for the place of one of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RelayMessage {
    /// The call that it is about.
    pub call: RelayId,
    /// The device whose place sends it.
    pub from: Mac,
    /// The device that it is for.
    pub to: Mac,
    /// What it says.
    pub body: RelayBody,
}

/// What a message between places says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RelayBody {
    /// To the called device: it is called.
    Ring {
        /// The name that the caller gave.
        nickname: Box<str>,
    },
    /// To the caller: the called device rings.
    Rings,
    /// To the caller: the called device does not ring, for this reason.
    NotRinging(RequestOutcome),
    /// To the caller: the called device accepts.
    Accept {
        /// It last listened in realtime mode.
        realtime: bool,
    },
    /// To the called device: the caller is still there, so they are connected.
    Connected {
        /// The caller last listened in realtime mode.
        realtime: bool,
    },
    /// To either: the other device has left, for this reason.
    End(EndReason),
}

/// The result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestOutcome {
    /// The target was calling the caller: they are connected.
    Connected,
    /// The target is being called.
    Ringing,
    /// The target is not connected to the gateway.
    Offline,
    /// Not possible, for this reason.
    Refused(&'static str),
}

/// What one iteration has for another place, in its order.
#[derive(Debug, Default)]
pub struct RelayBatch {
    items: Vec<RelayItem>,
    audio: Vec<u8>,
    audio_packets: usize,
}

#[derive(Debug)]
enum RelayItem {
    Message(Box<RelayMessage>),
    /// For this device, the next so many bytes of `audio`.
    Audio(RelayId, Mac, u16),
}

/// One item of a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Relayed<'a> {
    /// A message, which is never dropped.
    Message(RelayMessage),
    /// An Opus packet for this device of this call.
    Audio(RelayId, Mac, &'a [u8]),
}

impl RelayBatch {
    /// Adds a message.
    pub fn push_message(&mut self, message: RelayMessage) {
        self.items.push(RelayItem::Message(Box::new(message)));
    }

    /// Adds an Opus packet. `on_their_way`: the [bytes of audio](Self::audio_bytes) that the place has not taken yet. False if it
    /// does not fit.
    #[must_use]
    pub fn push_audio(&mut self, call: RelayId, to: Mac, opus: &[u8], on_their_way: usize) -> bool {
        let Ok(len) = u16::try_from(opus.len()) else { return false };
        if on_their_way + self.audio_bytes() + opus.len() + ITEM_BYTES > RELAY_LIMIT {
            return false;
        }
        self.items.push(RelayItem::Audio(call, to, len));
        self.audio.extend_from_slice(opus);
        self.audio_packets += 1;
        true
    }

    /// What its audio counts for, in bytes.
    pub fn audio_bytes(&self) -> usize {
        self.audio.len() + self.audio_packets * ITEM_BYTES
    }

    /// How many packets of audio there are.
    pub fn audio_packets(&self) -> usize {
        self.audio_packets
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Calls `take` with each item, in order.
    pub fn take_all(self, mut take: impl FnMut(Relayed<'_>)) {
        let mut rest = self.audio.as_slice();
        for item in self.items {
            match item {
                RelayItem::Message(message) => take(Relayed::Message(*message)),
                RelayItem::Audio(call, to, len) => {
                    let (opus, after) = rest.split_at(len.into());
                    rest = after;
                    take(Relayed::Audio(call, to, opus));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: u64) -> RelayId {
        RelayId { caller: Mac::from([2, 0, 0, 0, 0, 1]), number }
    }

    fn mac() -> Mac {
        Mac::from([2, 0, 0, 0, 0, 2])
    }

    fn end(number: u64) -> RelayMessage {
        let [from, to] = [1, 2].map(|n| Mac::from([2, 0, 0, 0, 0, n]));
        RelayMessage { call: call(number), from, to, body: RelayBody::End(EndReason::PeerLeft) }
    }

    #[test]
    fn messages_and_audio_keep_their_order() {
        let mut batch = RelayBatch::default();
        assert!(batch.is_empty());
        assert!(batch.push_audio(call(1), mac(), b"one", 0));
        batch.push_message(end(1));
        assert!(batch.push_audio(call(2), mac(), b"", 0));
        assert!(batch.push_audio(call(2), mac(), b"three", 0));
        assert_eq!((batch.audio_packets(), batch.is_empty()), (3, false));
        let mut taken = Vec::new();
        batch.take_all(|item| taken.push(format!("{item:?}")));
        let expected = [
            Relayed::Audio(call(1), mac(), b"one"),
            Relayed::Message(end(1)),
            Relayed::Audio(call(2), mac(), b""),
            Relayed::Audio(call(2), mac(), b"three"),
        ];
        assert_eq!(taken, expected.map(|item| format!("{item:?}")));
    }

    #[test]
    fn audio_that_does_not_fit_is_refused_and_messages_never() {
        let mut batch = RelayBatch::default();
        let mut pushed = 0;
        while batch.push_audio(call(1), mac(), &[7; 1400], 1000) {
            pushed += 1;
        }
        assert_eq!(batch.audio_packets(), pushed);
        assert!((RELAY_LIMIT - 1500..=RELAY_LIMIT).contains(&(1000 + batch.audio_bytes())));
        batch.push_message(end(1));
        let mut last = None;
        batch.take_all(|item| last = Some(matches!(item, Relayed::Message(_))));
        assert_eq!(last, Some(true));
        assert!(!RelayBatch::default().push_audio(call(1), mac(), &[7; 70_000], 0), "longer than any packet");
        assert!(!RelayBatch::default().push_audio(call(1), mac(), b"x", RELAY_LIMIT));
    }
}
