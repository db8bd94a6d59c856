//! What a shadow knows of audio: every header ever sealed, every sequence, and whose address is the device's.

use std::net::SocketAddr;

use super::model::Shadow;
use super::*;
use crate::proto::audio::{Cipher, HEADER, Header};

/// The next datagram of the device.
#[derive(Clone, Copy)]
pub(super) struct Voice {
    pub(super) sequence: u32,
    pub(super) from: SocketAddr,
}

impl Shadow {
    /// One datagram for the device.
    pub(super) fn sealed(&mut self, sealed: &Sealed, bytes: &[u8]) {
        let call = self.call.as_mut().expect("a call");
        assert_eq!((Some(sealed.peer.addr), sealed.len), (call.peer, bytes.len()));
        let header = Header::parse(bytes).unwrap();
        call.sequence += 1;
        assert_eq!((header.sequence, header.ssrc), (call.sequence, call.grant.ssrc));
        assert!(call.headers.insert(header.bytes()), "no key and header are used twice");
        let mut payload = bytes[HEADER..].to_vec();
        Cipher::new(&call.grant.key).apply(&header.bytes(), &mut payload);
        let n = u64::from_be_bytes(payload[1..].try_into().unwrap());
        assert!(n > call.last_audio && n > call.last_text, "audio keeps its order");
        call.last_audio = n;
    }

    pub(super) fn key(&self) -> (u32, [u8; 16]) {
        let call = self.call.as_ref().expect("a call");
        (call.grant.ssrc, call.grant.key)
    }

    /// The next datagram of a device that knows its key.
    pub(super) fn voice(&self) -> Option<Voice> {
        let call = self.call.as_ref().filter(|call| call.id.is_some())?;
        Some(Voice { sequence: call.voice + 1, from: SocketAddr::new(self.home, 4_000) })
    }

    /// The core has accepted a datagram from there.
    pub(super) fn comes_from(&mut self, from: SocketAddr) {
        self.call.as_mut().expect("a call").peer = Some(from);
    }

    pub(super) fn heard(&mut self, voice: Voice, outcome: Result<Vec<u8>, Discard>, now: Instant) {
        let greeted = self.ws.is_greeted();
        let call = self.call.as_mut().expect("a call");
        if voice.sequence > call.accepted + 65_536 {
            return assert_eq!(outcome, Err(Discard::Jump));
        }
        if voice.sequence <= call.accepted {
            let refused = matches!(outcome, Err(Discard::Duplicate | Discard::Late | Discard::TooOld));
            return assert!(refused, "{outcome:?}");
        }
        (call.voice, call.accepted) = (voice.sequence, voice.sequence);
        (call.peer, call.peer_heard) = (Some(voice.from), Some(now));
        match greeted {
            true => assert!(outcome.is_ok(), "{outcome:?}"),
            false => assert_eq!(outcome, Err(Discard::NoServer)),
        }
    }

    /// Whether three datagrams in a row from there make it the device's address.
    pub(super) fn would_adopt(&self, from: SocketAddr, now: Instant) -> bool {
        let call = self.call.as_ref().expect("a call");
        let silent = call.peer_heard.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(2));
        silent && call.peer != Some(from)
    }

    pub(super) fn roams(
        &mut self,
        from: SocketAddr,
        sequence: u32,
        adopts: bool,
        outcome: Result<Vec<u8>, Discard>,
        now: Instant,
    ) {
        let call = self.call.as_mut().expect("a call");
        let known = call.peer == Some(from) && outcome != Err(Discard::ForeignSource);
        if !adopts && !known {
            return assert_eq!(outcome, Err(Discard::ForeignSource));
        }
        assert!(outcome.is_ok() || outcome == Err(Discard::NoServer), "{outcome:?}");
        (call.voice, call.accepted) = (sequence, sequence);
        (call.peer, call.peer_heard) = (Some(from), Some(now));
    }
}
