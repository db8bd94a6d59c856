//! The audio part of the model: every header that was used, every sequence, and the device's address.

use std::net::SocketAddr;

use super::model::Model;
use super::*;
use crate::session::harness::decrypt_datagram;

/// The next datagram of the device.
#[derive(Clone, Copy)]
pub(super) struct DeviceDatagram {
    pub(super) sequence: u32,
    pub(super) from: SocketAddr,
}

impl Model {
    /// The core sends a datagram to the device.
    pub(super) fn on_encrypted(&mut self, encrypted: &Encrypted, bytes: &[u8]) {
        let call = self.call.as_mut().expect("a call");
        assert_eq!((Some(encrypted.destination.addr), encrypted.datagram_len), (call.peer, bytes.len()));
        let (header, payload) = decrypt_datagram(&call.credentials.key, bytes);
        if header.sequence == 0 {
            let first = call.keep_alive.get_or_insert_with(|| bytes.into());
            assert_eq!(**first, *bytes, "a keep-alive always has the same bytes");
            return;
        }
        call.sequence += 1;
        assert_eq!((header.sequence, header.ssrc), (call.sequence, call.credentials.ssrc));
        assert!(call.headers_used.insert(header.to_bytes()), "no key and header are used twice");
        let n = u64::from_be_bytes(payload[1..].try_into().unwrap());
        assert!(n > call.last_audio && n > call.last_text, "audio keeps its order");
        call.last_audio = n;
    }

    pub(super) fn ssrc_and_key(&self) -> (u32, [u8; 16]) {
        let call = self.call.as_ref().expect("a call");
        (call.credentials.ssrc, call.credentials.key)
    }

    /// The next datagram of a device that knows its key.
    pub(super) fn next_datagram(&self) -> Option<DeviceDatagram> {
        let call = self.call.as_ref().filter(|call| call.session_id.is_some())?;
        Some(DeviceDatagram {
            sequence: call.last_sequence_sent + 1,
            from: SocketAddr::new(self.mqtt_ip, 4_000),
        })
    }

    /// The core has accepted a datagram from this address.
    pub(super) fn set_peer(&mut self, from: SocketAddr) {
        self.call.as_mut().expect("a call").peer = Some(from);
    }

    pub(super) fn on_uplink(
        &mut self,
        datagram: DeviceDatagram,
        outcome: Result<Vec<Vec<u8>>, DropReason>,
        now: Instant,
    ) {
        let greeted = self.ws.is_live();
        let call = self.call.as_mut().expect("a call");
        if datagram.sequence > call.last_sequence_accepted + 900_000 {
            return assert_eq!(outcome, Err(DropReason::Jump));
        }
        if datagram.sequence <= call.last_sequence_accepted {
            let refused =
                matches!(outcome, Err(DropReason::Duplicate | DropReason::Late | DropReason::TooOld));
            return assert!(refused, "{outcome:?}");
        }
        if std::mem::take(&mut self.unproven) {
            call.to_device.iter_mut().for_each(|due| due.1 = now);
        }
        self.on_accepted(datagram, now);
        match greeted {
            true => assert!(outcome.is_ok(), "{outcome:?}"),
            false => assert_eq!(outcome, Err(DropReason::NoServer)),
        }
    }

    /// Whether datagrams of this address are accepted at once.
    pub(super) fn is_known(&self, from: SocketAddr) -> bool {
        let call = self.call.as_ref().expect("a call");
        call.peer.map_or(from.ip() == self.mqtt_ip, |peer| peer == from)
    }

    /// Whether this is the known source, and a run of its datagrams was accepted.
    pub(super) fn is_confirmed(&self, from: SocketAddr) -> bool {
        let call = self.call.as_ref().expect("a call");
        call.peer == Some(from) && call.accepted >= 8
    }

    /// Whether the core may take this address, which is not the known one.
    pub(super) fn may_move_to(&self, from: SocketAddr, policy: PeerPolicy, now: Instant) -> bool {
        let call = self.call.as_ref().expect("a call");
        let at_mqtt_ip = from.ip() == self.mqtt_ip;
        let silence = Duration::from_secs(if at_mqtt_ip { 1 } else { 2 });
        let silent = call.peer_last_seen.is_none_or(|at| now.duration_since(at) >= silence);
        (silent && (at_mqtt_ip || policy == PeerPolicy::Adaptive)) || call.home == Some(from)
    }

    /// The core has taken this address.
    pub(super) fn on_move(&mut self, datagram: DeviceDatagram, now: Instant) {
        let mqtt_ip = self.mqtt_ip;
        let call = self.call.as_mut().expect("a call");
        if datagram.from.ip() == mqtt_ip {
            call.home = None;
        } else if let Some(peer) = call.peer_before_move.filter(|peer| peer.ip() == mqtt_ip) {
            call.home = Some(peer);
        }
        call.accepted = 8;
        self.on_accepted(datagram, now);
    }

    fn on_accepted(&mut self, datagram: DeviceDatagram, now: Instant) {
        let call = self.call.as_mut().expect("a call");
        (call.last_sequence_sent, call.last_sequence_accepted) = (datagram.sequence, datagram.sequence);
        (call.peer, call.peer_last_seen) = (Some(datagram.from), Some(now));
        call.peer_before_move = call.peer;
        call.accepted += 1;
    }
}
