//! The audio port: the UDP socket, the datagrams that wait for it, and what was dropped.

use std::io;
use std::net::SocketAddr;

use mio::{Interest, Registry};

use crate::net::event_loop::io::Io;
use crate::net::event_loop::token::{self, SessionId, UDP};
use crate::net::media::socket::{AudioSocket, Flushed};
use crate::net::media::udp_drops::DropsByAddress;
use crate::net::sessions::table::Sessions;
use crate::session::{DropReason, Encrypted};

/// The audio socket of one loop.
pub(crate) struct AudioPort {
    pub(crate) socket: AudioSocket,
    /// What was dropped of addresses that have a call.
    pub(crate) drops: DropsByAddress,
    /// The poll reports when the socket becomes writable.
    watches_writable: bool,
}

impl AudioPort {
    /// Opens the UDP port.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub(crate) fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = AudioSocket::bind(addr)?;
        Ok(Self { socket, drops: DropsByAddress::default(), watches_writable: false })
    }

    pub(crate) fn register(&mut self, registry: &Registry) -> io::Result<()> {
        registry.register(self.socket.source(), token::fixed(UDP), Interest::READABLE)
    }

    /// Queues one datagram for the end of the iteration. Text queued before it leaves first, and before that the audio
    /// queued before that text: a `tts stop` in between must overtake neither.
    pub(crate) fn queue(
        &mut self,
        id: SessionId,
        encrypted: Encrypted,
        bytes: &[u8],
        sessions: &mut Sessions,
        io: &mut Io,
    ) {
        let Some(session) = sessions.live(id) else { return };
        let ssrc = session.core.ssrc().unwrap_or_default();
        if session.mqtt.as_ref().is_some_and(|mqtt| mqtt.has_output()) && !self.flush(io).blocked {
            sessions.flush_mqtt(id, io);
        }
        let to = encrypted.destination;
        match self.socket.queue(to.addr, to.local_ip, ssrc) {
            Some(buffer) => buffer.extend_from_slice(&bytes[..encrypted.datagram_len]),
            None => io.metrics.discarded(DropReason::SocketFull),
        }
    }

    /// Sends what is queued, as far as the socket takes it.
    pub(crate) fn flush(&mut self, io: &mut Io) -> Flushed {
        let flushed = self.socket.flush();
        io.metrics.datagrams_out += flushed.sent as u64;
        io.metrics.datagrams_failed += flushed.failed as u64;
        flushed
    }

    /// Asks for writable events only while datagrams wait: Linux reports one for each datagram that was sent.
    pub(crate) fn watch_writable(&mut self, wanted: bool, registry: &Registry) {
        if wanted != self.watches_writable {
            let interest = if wanted { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            // When it fails, the datagrams wait for the next iteration.
            if registry.reregister(self.socket.source(), token::fixed(UDP), interest).is_ok() {
                self.watches_writable = wanted;
            }
        }
    }

    /// Drops the queued datagrams of one call: its user has interrupted the reply.
    pub(crate) fn drop_queued(&mut self, ssrc: u32, io: &mut Io) {
        for _ in 0..self.socket.drop_queued(ssrc) {
            io.metrics.discarded(DropReason::Aborted);
        }
    }
}
