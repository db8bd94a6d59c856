//! Audio from devices to their chat servers or to other devices, and from chat servers to devices.

use std::io::ErrorKind;

use log::error;

use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::media::socket::{self, BATCH};
use crate::proto::audio::{HEADER_LEN, MAX_PAYLOAD};
use crate::session::{Core, DropReason, FrameSpace, UdpPeer, Uplink};

/// Datagrams received per dispatch.
const DATAGRAM_BUDGET: usize = 256;
/// The longest encrypted datagram: header and payload.
const DATAGRAM_MAX: usize = HEADER_LEN + MAX_PAYLOAD;

impl Gateway {
    /// Receives datagrams, within the budget.
    pub(super) fn drain_udp(&mut self) {
        let mut budget = DATAGRAM_BUDGET;
        while budget > 0 {
            let received = match self.audio.socket.receive() {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return error!("UDP socket: {error}"),
            };
            for i in 0..received {
                self.uplink(i);
            }
            if received < BATCH {
                return;
            }
            budget = budget.saturating_sub(received);
        }
        self.io.run_queue.push(Task::Udp);
    }

    /// Serves the `i`th datagram of the batch.
    fn uplink(&mut self, i: usize) {
        self.io.metrics.datagrams_in += 1;
        self.coalescer.count_uplink();
        if let Err(reason) = self.try_uplink(i) {
            self.io.metrics.discarded(reason);
            let (info, _) = self.audio.socket.datagram(i);
            self.audio.drops.discarded(info.from.ip(), reason.label());
            if reason == DropReason::UnknownSsrc {
                self.on_unknown_datagram(i);
            }
        }
    }

    fn try_uplink(&mut self, i: usize) -> Result<(), DropReason> {
        let (info, datagram) = self.audio.socket.datagram(i);
        let id = socket::ssrc(datagram).and_then(|ssrc| self.sessions.index.call(ssrc));
        let session = id.and_then(|id| Some((id, self.sessions.live(id)?)));
        let Some((id, session)) = session else { return Err(DropReason::UnknownSsrc) };
        let from = UdpPeer { addr: info.from, local_ip: info.local };
        match session.core.uplink(from, datagram, &self.io.config, self.io.now)? {
            Uplink::OtherDevice(payload_len) => self.relay(id, i, payload_len),
            Uplink::Silence => self.answer_with_silence(id),
            Uplink::Server { frame, payload, device_heard } => {
                let contexts = &mut self.connector.context_pool;
                let sent = session.backend.as_mut().map(|backend| backend.send_audio(frame, contexts));
                if !matches!(sent, Some(Ok(()))) {
                    session.core.on_uplink_dropped(payload);
                    let no_room = sent.is_some();
                    let reason = if no_room { DropReason::ServerBlocked } else { DropReason::NoServer };
                    self.io.metrics.discarded(reason);
                }
                self.sessions.mark_dirty(id);
                if device_heard {
                    self.drive(id, Core::on_device_heard);
                }
            }
        }
        Ok(())
    }

    /// Sends one audio frame of the chat server to the device.
    pub(super) fn downlink(&mut self, id: SessionId, frame: &[u8]) {
        self.coalescer.count_downlink();
        let mut out = [0; DATAGRAM_MAX];
        let Some((session, room)) = self.sessions.with_room(id) else { return };
        let space = FrameSpace { datagram: &mut out, room };
        match session.core.downlink(frame, space, &self.io.config, &mut self.servers, self.io.now) {
            Ok(Some(encrypted)) => {
                self.audio.queue(id, encrypted, &out, &mut self.sessions, &mut self.io);
            }
            Ok(None) => self.drive(id, Core::release_held),
            Err(reason) => self.io.metrics.discarded(reason),
        }
    }

    /// Sends the payload of the `i`th datagram, which is decrypted already, to the other device of a device-to-device call.
    fn relay(&mut self, id: SessionId, i: usize, payload_len: usize) {
        let mut out = [0; DATAGRAM_MAX];
        let peer = self.sessions.get(id).and_then(|session| session.peer.as_deref().copied());
        let (_, datagram) = self.audio.socket.datagram(i);
        let payload = &datagram[HEADER_LEN..HEADER_LEN + payload_len];
        let encrypted = match peer.and_then(|peer| Some((peer, self.sessions.live(peer)?))) {
            Some((peer, session)) => {
                let encrypted = session.core.relay(payload, &mut out, &self.io.config, self.io.now);
                encrypted.map(|encrypted| (peer, encrypted))
            }
            None => Err(DropReason::NoPeer),
        };
        match encrypted {
            Ok((peer, encrypted)) => {
                self.audio.queue(peer, encrypted, &out, &mut self.sessions, &mut self.io);
            }
            Err(reason) => self.io.metrics.discarded(reason),
        }
    }

    /// Answers a packet of a device that waits for another device with one packet of silence.
    fn answer_with_silence(&mut self, id: SessionId) {
        let mut out = [0; DATAGRAM_MAX];
        self.io.metrics.discarded(DropReason::Ringing);
        let Some(session) = self.sessions.live(id) else { return };
        if let Ok(encrypted) = session.core.ringing_silence(&mut out, &self.io.config) {
            self.audio.queue(id, encrypted, &out, &mut self.sessions, &mut self.io);
        }
    }
}
