//! The audio port: the UDP socket with its queue, and the counts of dropped datagrams.

use std::io;

use mio::{Interest, Registry};
use socket2::Socket;

use crate::net::event_loop::io::Io;
use crate::net::event_loop::token::{self, SessionId, UDP};
use crate::net::media::socket::{AudioSocket, Flushed};
use crate::net::media::steering::SsrcShare;
use crate::net::media::udp_drops::DropsByAddress;
use crate::net::sessions::table::Sessions;
use crate::session::{DropReason, Encrypted};

/// The audio socket of one loop.
pub(crate) struct AudioPort {
    pub(crate) socket: AudioSocket,
    /// The ssrcs whose datagrams this socket receives.
    pub(crate) share: SsrcShare,
    /// Dropped datagrams of addresses that have calls.
    pub(crate) drops: DropsByAddress,
    /// The socket is registered for writable events.
    watches_writable: bool,
}

impl AudioPort {
    /// From a bound socket. `dscp`: the class of service of what is sent; 0 is the default class.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub(crate) fn new(socket: Socket, share: SsrcShare, dscp: u8) -> io::Result<Self> {
        let is_ipv6 = socket.local_addr()?.is_ipv6();
        let socket = AudioSocket::new(socket, is_ipv6);
        if dscp > 0 {
            socket.set_dscp(dscp);
        }
        Ok(Self { socket, share, drops: DropsByAddress::default(), watches_writable: false })
    }

    pub(crate) fn register(&mut self, registry: &Registry) -> io::Result<()> {
        registry.register(self.socket.source(), token::fixed(UDP), Interest::READABLE)
    }

    /// Queues one datagram for the end of the iteration. If text for the device is queued, the audio before that text is sent
    /// first, then the text, so that all arrive in order: a `tts stop` must overtake no audio, nor be overtaken.
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
        if let Some(mqtt) = session.mqtt.as_mut().filter(|mqtt| mqtt.has_output())
            && !self.flush(io).blocked
            && mqtt.flush(id, io)
        {
            sessions.drop_mqtt(id, io);
        }
        let to = encrypted.destination;
        match self.socket.queue(to.addr, to.local_ip, ssrc) {
            Some(buffer) => buffer.extend_from_slice(&bytes[..encrypted.datagram_len]),
            None => io.metrics.discarded(DropReason::SocketFull),
        }
    }

    /// Sends the queued datagrams, as far as the socket accepts them.
    pub(crate) fn flush(&mut self, io: &mut Io) -> Flushed {
        let flushed = self.socket.flush();
        io.metrics.datagrams_out += flushed.sent as u64;
        io.metrics.datagrams_failed += flushed.failed as u64;
        flushed
    }

    /// Registers for writable events only while datagrams are queued, since Linux reports one for each datagram sent.
    pub(crate) fn watch_writable(&mut self, wanted: bool, registry: &Registry) {
        if wanted != self.watches_writable {
            let interest = if wanted { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            // If this fails, the datagrams are sent in the next iteration.
            if registry.reregister(self.socket.source(), token::fixed(UDP), interest).is_ok() {
                self.watches_writable = wanted;
            }
        }
    }

    /// Drops the queued datagrams of one call, because its user has interrupted the reply.
    pub(crate) fn drop_queued(&mut self, ssrc: u32, io: &mut Io) {
        for _ in 0..self.socket.drop_queued(ssrc) {
            io.metrics.discarded(DropReason::Aborted);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::net::media::steering::open_first;

    fn audio_port() -> AudioPort {
        let (mut sockets, _) = open_first("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        AudioPort::new(sockets.remove(0), SsrcShare::ALL, 0).unwrap()
    }

    #[test]
    fn queued_datagrams_are_sent_by_the_flush_unless_their_call_was_interrupted() {
        let (mut port, mut io) = (audio_port(), Io::for_test());
        port.register(&io.registry).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        for ssrc in [1, 2, 1] {
            let buffer = port.socket.queue(peer.local_addr().unwrap(), None, ssrc).unwrap();
            buffer.extend_from_slice(&[ssrc as u8]);
        }
        port.drop_queued(1, &mut io);
        assert_eq!(port.flush(&mut io), Flushed { sent: 1, failed: 0, blocked: false });
        let mut received = [0; 16];
        assert_eq!((peer.recv(&mut received).unwrap(), received[0]), (1, 2));
        let dropped: u64 = io.metrics.discards().map(|(_, count)| count).sum();
        assert_eq!((io.metrics.datagrams_out, dropped), (1, 2));
    }

    #[test]
    fn writable_events_are_asked_for_only_when_that_changes() {
        let (mut port, io) = (audio_port(), Io::for_test());
        port.watch_writable(true, &io.registry);
        assert!(!port.watches_writable, "it is not registered yet");
        port.register(&io.registry).unwrap();
        for wanted in [true, true, false] {
            port.watch_writable(wanted, &io.registry);
            assert_eq!(port.watches_writable, wanted);
        }
    }
}
