//! Audio from devices to their chat servers or to other devices, and from chat servers to devices.

use std::io::ErrorKind;
use std::ops::Range;

use log::error;

use crate::net::backend::websocket_context_pool::ContextPool;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::gateway::worker_relay::AudioRelay;
use crate::net::media::socket::{self, BATCH};
use crate::net::metrics::Metrics;
use crate::net::sessions::session::{AudioPeer, Session};
use crate::net::sessions::table::Sessions;
use crate::proto::audio::{HEADER_LEN, MAX_PAYLOAD};
use crate::session::{Core, DropReason, Encrypted, FrameSpace, Place, RelayId, UdpPeer, Uplink};

/// Datagrams received per dispatch.
const DATAGRAM_BUDGET: usize = 256;
/// The longest encrypted datagram: header and payload.
const DATAGRAM_MAX: usize = HEADER_LEN + MAX_PAYLOAD;

/// Packets whose calls are read from memory at a time: their hot parts fit the smallest cache.
pub(super) const TOUCHED_AT_ONCE: usize = 16;

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
            let dirty = self.sessions.dirty_len();
            for i in 0..received {
                if i % TOUCHED_AT_ONCE == 0 && received > 1 {
                    self.touch_calls(i..received.min(i + TOUCHED_AT_ONCE));
                }
                self.uplink(i);
            }
            if received < BATCH {
                return;
            }
            self.write_frames(dirty);
            budget = budget.saturating_sub(received);
        }
        self.io.run_queue.push(Task::Udp);
    }

    /// Reads what these datagrams of the batch need.
    fn touch_calls(&mut self, datagrams: Range<usize>) {
        let mut ssrcs = [None; TOUCHED_AT_ONCE];
        for (i, ssrc) in datagrams.zip(&mut ssrcs) {
            *ssrc = socket::ssrc(self.audio.socket.datagram(i).1);
        }
        self.sessions.touch(self.sessions.index.probable_calls(ssrcs).into_iter().flatten());
    }

    /// Writes the frames of a full batch, those of the sessions behind so many dirty ones, before the next batch: so the same few
    /// buffers serve all calls, and are in the CPU cache.
    fn write_frames(&mut self, behind: usize) {
        let Self { sessions, connector, io, .. } = self;
        sessions.visit_dirty(behind, |id, session| {
            if !connector.flush(session) {
                io.run_queue.push(Task::Backend(id));
            }
        });
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
        let session = socket::ssrc(datagram).and_then(|ssrc| self.sessions.by_ssrc(ssrc));
        let Some((id, session)) = session else { return Err(DropReason::UnknownSsrc) };
        let from = UdpPeer { addr: info.from, local_ip: info.local };
        let device_heard = match session.core.uplink(from, datagram, &self.io.config, self.io.now) {
            Ok(Uplink::Server { frame, payload, device_heard }) => {
                let (connector, metrics) = (&mut self.connector, &mut self.io.metrics);
                send_to_server(session, frame, payload, &mut connector.context_pool, metrics);
                device_heard
            }
            Ok(Uplink::OtherDevice(payload_len)) => {
                let payload = &datagram[HEADER_LEN..HEADER_LEN + payload_len];
                let mut out = [0; DATAGRAM_MAX];
                let Self { relay, cluster, workers, io, sessions, .. } = self;
                let mut others = AudioRelay { relay, cluster, workers, io };
                let relayed = relay_audio(id, payload, &mut out, sessions, &mut others);
                self.queue_relayed(relayed, &out);
                return Ok(());
            }
            Ok(Uplink::Silence) => {
                self.answer_with_silence(id);
                return Ok(());
            }
            Ok(Uplink::Path { device_heard }) => {
                self.forward_released(id);
                device_heard
            }
            Err(reason) => {
                if reason == DropReason::PathHeld {
                    // The packet is kept, and accounted for at the end of the iteration.
                    self.sessions.mark_dirty(id);
                }
                return Err(reason);
            }
        };
        self.sessions.mark_dirty(id);
        if device_heard {
            self.drive(id, Core::on_device_heard);
        }
        Ok(())
    }

    /// Forwards the packets that were kept until their source was taken for the device's.
    fn forward_released(&mut self, id: SessionId) {
        let mut datagram = Vec::new();
        while let Some(session) = self.sessions.live(id)
            && let Some(uplink) = session.core.next_released(&mut datagram)
        {
            match uplink {
                Ok(Uplink::Server { frame, payload, .. }) => {
                    let (connector, metrics) = (&mut self.connector, &mut self.io.metrics);
                    send_to_server(session, frame, payload, &mut connector.context_pool, metrics);
                }
                Ok(Uplink::OtherDevice(payload_len)) => {
                    let payload = &datagram[HEADER_LEN..HEADER_LEN + payload_len];
                    let mut out = [0; DATAGRAM_MAX];
                    let Self { relay, cluster, workers, io, sessions, .. } = self;
                    let mut others = AudioRelay { relay, cluster, workers, io };
                    let relayed = relay_audio(id, payload, &mut out, sessions, &mut others);
                    self.queue_relayed(relayed, &out);
                }
                Ok(Uplink::Silence | Uplink::Path { .. }) => self.io.metrics.discarded(DropReason::Ringing),
                Err(reason) => self.io.metrics.discarded(reason),
            }
        }
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

    /// Sends an audio packet of the other device of this call, which that place serves.
    pub(super) fn on_relayed_audio(&mut self, from: Place, call: RelayId, opus: &[u8]) {
        self.coalescer.count_downlink();
        let Some(id) = self.session_in_call_with(from, call) else {
            return self.io.metrics.discarded(DropReason::NoPeer);
        };
        let Some(session) = self.sessions.live(id) else { return };
        let mut out = [0; DATAGRAM_MAX];
        let encrypted = session.core.relay(opus, &mut out, &self.io.config, self.io.now);
        self.queue_relayed(encrypted.map(|encrypted| Some((id, encrypted))), &out);
    }

    fn queue_relayed(&mut self, relayed: Result<Option<(SessionId, Encrypted)>, DropReason>, out: &[u8]) {
        match relayed {
            Ok(Some((peer, encrypted))) => {
                self.audio.queue(peer, encrypted, out, &mut self.sessions, &mut self.io);
            }
            Ok(None) => {}
            Err(reason) => self.io.metrics.discarded(reason),
        }
    }

    /// Answers a packet of a device that waits for another device with one packet of silence.
    fn answer_with_silence(&mut self, id: SessionId) {
        let mut out = [0; DATAGRAM_MAX];
        self.io.metrics.discarded(DropReason::Ringing);
        let Some(session) = self.sessions.live(id) else { return };
        if let Ok(encrypted) = session.core.ringing_silence(&mut out, &self.io.config, self.io.now) {
            self.audio.queue(id, encrypted, &out, &mut self.sessions, &mut self.io);
        }
    }
}

/// Sends an audio frame to the device's chat server.
fn send_to_server(
    session: &mut Session,
    frame: &[u8],
    payload: usize,
    contexts: &mut ContextPool,
    metrics: &mut Metrics,
) {
    let sent = session.backend.as_mut().map(|backend| backend.send_audio(frame, contexts));
    if !matches!(sent, Some(Ok(()))) {
        session.core.on_uplink_dropped(payload);
        let no_room = sent.is_some();
        metrics.discarded(if no_room { DropReason::ServerBlocked } else { DropReason::NoServer });
    }
}

/// Encrypts an Opus packet of one device for the other one of a device-to-device call into `out`. `None` if another place serves
/// that one, and gets the packet.
fn relay_audio(
    id: SessionId,
    payload: &[u8],
    out: &mut [u8],
    sessions: &mut Sessions,
    others: &mut AudioRelay<'_>,
) -> Result<Option<(SessionId, Encrypted)>, DropReason> {
    let peer = sessions.get(id).and_then(Session::peer);
    match peer.ok_or(DropReason::NoPeer)? {
        AudioPeer::Session(peer) => {
            let session = sessions.live(peer).ok_or(DropReason::NoPeer)?;
            Ok(Some((peer, session.core.relay(payload, out, &others.io.config, others.io.now)?)))
        }
        AudioPeer::Elsewhere(far) => {
            let sent = others.send(far, payload);
            if let (Err(_), Some(session)) = (sent, sessions.live(id)) {
                session.core.on_uplink_dropped(payload.len());
            }
            sent.map(|()| None)
        }
    }
}
