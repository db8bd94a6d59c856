//! Turns events of devices' connections into calls of the core.

use std::io::{ErrorKind, Read};

use log::Level;

use crate::admin::event::Event;
use crate::admin::recent_errors::RecentErrorKind;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::tcp;
use crate::net::event_loop::token::{ListenerKind, SessionId};
use crate::net::gateway::Gateway;
use crate::net::gateway::workers::HandOff;
use crate::net::mqtt::handshake::HandshakeOutcome;
use crate::net::mqtt::listener::Accepted;
use crate::proto::mqtt::{self, Packet};
use crate::session::Core;

/// Connections accepted per dispatch: after a power cut all devices reconnect at once.
const ACCEPT_BUDGET: usize = 16;
/// Reads per dispatch, and bytes per read: enough for any message of an ordinary device, but not for so many of the shortest
/// packets that other connections would be delayed.
const READ_BUDGET: usize = 2;
pub(super) const READ_SIZE: usize = 2 * 1024;
/// The packet type of CONNECT.
const CONNECT: u8 = 1;

impl Gateway {
    pub(super) fn accept(&mut self, kind: ListenerKind) {
        self.mqtt.elsewhere = (self.workers.connections_elsewhere(), self.workers.len().max(1));
        for _ in 0..ACCEPT_BUDGET {
            match self.mqtt.accept(kind, &mut self.sessions, &mut self.io) {
                Accepted::Connection { evicted } => {
                    evicted.into_iter().for_each(|id| self.evict(id));
                }
                Accepted::Nothing => return,
                Accepted::Failed(message) => {
                    self.admin.record_error(RecentErrorKind::AcceptFailed, None, &message);
                    return self.publish_event(Level::Warn, &Event::limit_reached("descriptors", message));
                }
            }
        }
        self.io.run_queue.push(Task::Accept(kind));
    }

    pub(super) fn resume_accepting(&mut self) {
        if self.lifecycle.is_serving() {
            self.mqtt.resume(&mut self.io);
        }
    }

    /// Closes a connection before login, because there are too many of them.
    fn evict(&mut self, id: SessionId) {
        self.drive(id, Core::on_connection_lost);
        self.sessions.drop_mqtt(id, &mut self.io);
    }

    /// Registers a connection that another worker or process accepted.
    pub(super) fn accept_hand_off(&mut self, hand_off: HandOff) {
        if !self.lifecycle.is_serving() && !self.upgrades.is_replaced() {
            return;
        }
        let HandOff { connection, ip, bytes } = hand_off;
        if let Some(id) = self.mqtt.add_connection(connection, ip, &mut self.sessions, &mut self.io)
            && let Some(id) = self.on_device_bytes(id, &bytes, Vec::new())
        {
            self.io.run_queue.push(Task::Device(id));
        }
    }

    /// Reads what has arrived, within the budget, and serves each packet.
    pub(super) fn on_device_readable(&mut self, mut id: SessionId) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut reads = 0;
        let mut drained = false;
        while let Some(next) = self.read_device(id, &mut scratch, &mut drained) {
            id = next;
            reads += 1;
            if drained {
                break;
            }
            if reads == READ_BUDGET {
                self.io.run_queue.push(Task::Device(id));
                break;
            }
        }
        self.scratch = scratch;
        self.sessions.account(id, &mut self.io);
        self.sessions.arm_timer(id, &mut self.io);
    }

    /// The session in which there may be more to read: another one than before if it has taken over the connection. `drained`: set
    /// when the read proved that the socket is empty, so that a new event will announce more.
    fn read_device(&mut self, id: SessionId, scratch: &mut [u8], drained: &mut bool) -> Option<SessionId> {
        if self.cluster.remote_calls.holds(id) {
            return None;
        }
        let session = self.sessions.live(id)?;
        let connection = session.mqtt.as_mut()?;
        if !connection.transport.is_open() {
            return if connection.closing { None } else { self.drive_handshake(id, scratch) };
        }
        match connection.transport.read(&mut scratch[..READ_SIZE]) {
            Ok(0) => self.on_device_eof(id),
            Ok(_) if connection.closing => return Some(id),
            Ok(n) => {
                *drained = n < READ_SIZE && connection.short_read_means_empty();
                session.core.refresh_keep_alive(self.io.now);
                let partial = connection.take_partial(&scratch[..n]);
                let had_call = session.core.has_call();
                let next = self.on_device_bytes(id, &scratch[..n], partial);
                if n < READ_SIZE {
                    self.acknowledge(next.unwrap_or(id), had_call);
                }
                return next;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && !connection.broken => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => return Some(id),
            Err(_) => self.on_device_eof(id),
        }
        None
    }

    /// Acknowledges what was read, unless an answer is about to do that. So does the reply to a hello, before which devices say
    /// nothing about the call: what they send all the same waits for it, or for 40 ms.
    fn acknowledge(&mut self, id: SessionId, had_call: bool) {
        let Some(session) = self.sessions.live(id) else { return };
        let was_hello = !had_call && session.core.has_call();
        let Some(connection) = session.mqtt.as_ref().filter(|_| !was_hello) else { return };
        let answers = connection.has_output() && connection.hold_until().is_none();
        if let Some(tcp) = connection.transport.tcp().filter(|_| !answers) {
            tcp::acknowledge(tcp);
        }
    }

    fn drive_handshake(&mut self, id: SessionId, scratch: &mut [u8]) -> Option<SessionId> {
        match self.mqtt.drive_handshake(id, &mut self.sessions, &mut self.io, scratch) {
            HandshakeOutcome::Blocked { evicted } => {
                evicted.into_iter().for_each(|id| self.evict(id));
                None
            }
            HandshakeOutcome::Advanced => Some(id),
            HandshakeOutcome::Failed(message) => {
                if let Some(message) = message {
                    self.record_session_error(id, RecentErrorKind::TlsFailed, &message);
                }
                self.drive(id, Core::on_connection_lost);
                None
            }
        }
    }

    /// The device has closed its side, or the connection is broken. All that it sent before has been served.
    pub(super) fn on_device_eof(&mut self, id: SessionId) {
        if let Some(connection) = self.sessions.mqtt(id) {
            connection.read_closed = true;
        }
        self.drive(id, Core::on_connection_lost);
        self.sessions.mark_dirty(id);
    }

    /// Serves the packets in `bytes`, and keeps an incomplete one at their end. If `partial` is not empty, it contains the
    /// incomplete packet of the last read with `bytes` appended, and replaces them. Returns what [`Self::read_device`] does.
    pub(super) fn on_device_bytes(
        &mut self,
        mut id: SessionId,
        bytes: &[u8],
        partial: Vec<u8>,
    ) -> Option<SessionId> {
        let mut rest = if partial.is_empty() { bytes } else { &partial[..] };
        while !rest.is_empty() {
            let session = self.sessions.live(id)?;
            if !session.core.accepts_packets() {
                return Some(id);
            }
            if self.cluster.remote_calls.holds(id) {
                break;
            }
            let awaits_connect = session.core.awaits_connect();
            if awaits_connect && rest[0] != CONNECT << 4 {
                let first = rest[0];
                self.drive(id, |core, cx| core.on_invalid_first_byte(first, cx));
                return Some(id);
            }
            match mqtt::decode(rest, session.core.max_packet_bytes(&self.io.config)) {
                Ok(Some((Packet::Connect(connect), _)))
                    if awaits_connect
                        && (self.return_to_predecessor(id, connect.client_id, rest)
                            || self.hand_off(id, connect.client_id, rest)) =>
                {
                    return None;
                }
                Ok(Some((packet, length))) => {
                    let (bytes, after) = rest.split_at(length);
                    rest = after;
                    if self.pass_packet_on(id, &packet, bytes) {
                        continue;
                    }
                    id = self.drive_device(id, |core, cx| core.on_packet(packet, cx));
                }
                Ok(None) => break,
                Err(malformed) => {
                    self.drive(id, |core, cx| core.on_malformed_packet(malformed, cx));
                    return Some(id);
                }
            }
        }
        if let Some(connection) = self.sessions.mqtt(id) {
            // A packet that is still incomplete is not copied again: that would be quadratic in its length.
            let is_partial = rest.len() == partial.len();
            connection.keep_partial(if is_partial { partial } else { rest.to_vec() });
        }
        Some(id)
    }
}
