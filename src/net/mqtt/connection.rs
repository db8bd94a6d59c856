//! The device's TCP connection: bytes in, packets to the core, bytes out.

use std::io::{ErrorKind, Read};
use std::net::IpAddr;
use std::time::Instant;

use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::SessionId;
use crate::net::event_loop::write_buffer::{Flush, WriteBuffer};
use crate::net::gateway::Gateway;
use crate::net::mqtt::listener::Counted;
use crate::net::mqtt::transport::Transport;
use crate::proto::mqtt::{self, Packet};

/// Reads at a time, and bytes of each: more than any message of a usual device, and not many of the shortest packets. Others
/// wait meanwhile.
const READ_BUDGET: usize = 2;
const READ_SIZE: usize = 2 * 1024;
/// The packet type of CONNECT.
const CONNECT: u8 = 1;

/// One device's connection. Small, since there may be tens of thousands: what is partial or waits is elsewhere.
pub(in crate::net) struct MqttConnection {
    pub(in crate::net) transport: Transport,
    pub(in crate::net) peer_port: u16,
    /// Nothing is served any more: the rest is written, then the connection ends.
    pub(in crate::net) closing: bool,
    /// Its place among the connections of its address, while these are limited and until it closes.
    pub(in crate::net) counted: Option<Box<Counted>>,
    /// Our side is shut down; the peer's last bytes are read and dropped.
    write_shut_down: bool,
    /// The peer has ended its side, or the connection is broken.
    read_closed: bool,
    /// A write failed: what had arrived before is still read, then the connection has ended.
    broken: bool,
    buffers: Option<Box<Buffers>>,
}

/// Bytes on their way in or out; not there between packets.
#[derive(Default)]
struct Buffers {
    read_buffer: Vec<u8>,
    write_buffer: WriteBuffer,
    /// What waits to be written is a refusal that comes late on purpose.
    hold_until: Option<Instant>,
}

/// What came of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum FlushOutcome {
    Done,
    Blocked,
    /// Closed down and no longer needed.
    Closed,
    /// The connection is broken.
    Broken,
}

impl MqttConnection {
    pub(in crate::net) fn new(link: Transport, port: u16) -> Self {
        Self {
            transport: link,
            peer_port: port,
            closing: false,
            counted: None,
            write_shut_down: false,
            read_closed: false,
            broken: false,
            buffers: None,
        }
    }

    /// The local address the device reached, for `public_ip: auto`.
    pub(in crate::net) fn local_ip(&self) -> Option<IpAddr> {
        self.transport.tcp()?.local_addr().ok().map(|addr| addr.ip().to_canonical())
    }

    /// Whether something waits to be written.
    pub(in crate::net) fn has_output(&self) -> bool {
        self.buffers.as_ref().is_some_and(|partial| !partial.write_buffer.is_empty())
    }

    /// Until when output waits on purpose.
    pub(in crate::net) fn hold_until(&self) -> Option<Instant> {
        self.buffers.as_ref().and_then(|partial| partial.hold_until)
    }

    /// Lets the output wait on purpose.
    pub(in crate::net) fn hold(&mut self, until: Instant) {
        self.buffers.get_or_insert_default().hold_until = Some(until);
    }

    /// Bytes that are partial or wait to be written, and room for them.
    pub(in crate::net) fn buffered_bytes(&self) -> usize {
        self.buffers
            .as_ref()
            .map_or(0, |partial| partial.read_buffer.capacity() + partial.write_buffer.capacity())
    }

    fn take_inbox(&mut self) -> Vec<u8> {
        self.buffers.as_mut().map(|partial| std::mem::take(&mut partial.read_buffer)).unwrap_or_default()
    }

    fn keep_inbox(&mut self, rest: Vec<u8>) {
        if !rest.is_empty() {
            self.buffers.get_or_insert_default().read_buffer = rest;
        }
    }

    pub(in crate::net) fn flush(&mut self, now: Instant) -> FlushOutcome {
        if self.broken || !self.transport.is_open() {
            return if self.closing { FlushOutcome::Closed } else { FlushOutcome::Blocked };
        }
        let flushed = match &mut self.buffers {
            None => Ok(Flush::Done),
            Some(partial) if partial.hold_until.is_some_and(|at| at > now) => return FlushOutcome::Blocked,
            Some(partial) => {
                partial.hold_until = None;
                partial.write_buffer.flush(&mut self.transport)
            }
        };
        if self
            .buffers
            .as_ref()
            .is_some_and(|partial| partial.read_buffer.is_empty() && partial.write_buffer.is_empty())
        {
            self.buffers = None;
        }
        match flushed {
            Ok(Flush::Done) if !self.closing => FlushOutcome::Done,
            Ok(Flush::Done) if self.read_closed => FlushOutcome::Closed,
            Ok(Flush::Done) => {
                // Dropping now could reset the connection and take with it what was just written.
                if self.write_shut_down {
                    return FlushOutcome::Done;
                }
                match self.transport.shut_down() {
                    Ok(()) => self.write_shut_down = true,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return FlushOutcome::Blocked,
                    Err(_) => return FlushOutcome::Closed,
                }
                FlushOutcome::Done
            }
            Ok(Flush::Blocked) if self.read_closed && self.closing => FlushOutcome::Closed,
            Ok(Flush::Blocked) => FlushOutcome::Blocked,
            Err(_) if self.closing => FlushOutcome::Closed,
            Err(_) => {
                self.broken = true;
                FlushOutcome::Broken
            }
        }
    }
}

/// Appends to the start of a packet. Its room doubles, so that each byte is copied about once however small the pieces are,
/// but not beyond what the packet needs.
fn append(kept: &mut Vec<u8>, more: &[u8]) {
    let needed = kept.len() + more.len();
    if needed > kept.capacity() {
        let whole = mqtt::packet_len(kept).unwrap_or(needed);
        let room = (2 * kept.capacity()).min(whole).max(needed);
        kept.reserve_exact(room - kept.len());
    }
    kept.extend_from_slice(more);
}

impl Gateway {
    /// Reads what has come, within the budget, and serves each packet.
    pub(in crate::net) fn on_device_readable(&mut self, id: SessionId) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut id = id;
        let mut reads = 0;
        while self.read_device(&mut id, &mut scratch) {
            reads += 1;
            if reads == READ_BUDGET {
                self.run_queue.push(Task::Device(id));
                break;
            }
        }
        self.scratch = scratch;
        self.account(id);
        self.arm_session_timer(id);
    }

    /// One read. False when there is nothing more to do now. `id` moves on when the connection takes over a call.
    fn read_device(&mut self, id: &mut SessionId, scratch: &mut [u8]) -> bool {
        let now = self.now;
        let Some(session) = self.sessions.live(*id) else { return false };
        let Some(device) = &mut session.mqtt else { return false };
        if !device.transport.is_open() {
            return !device.closing && self.drive_handshake(*id, scratch);
        }
        match device.transport.read(&mut scratch[..READ_SIZE]) {
            Ok(0) => self.on_device_eof(*id),
            Ok(_) if device.closing => return true,
            Ok(n) => {
                session.core.refresh_keep_alive(now);
                let mut kept = device.take_inbox();
                return match kept.is_empty() {
                    true => self.on_device_bytes(id, &scratch[..n], kept),
                    false => {
                        append(&mut kept, &scratch[..n]);
                        self.on_device_bytes(id, &[], kept)
                    }
                };
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && !device.broken => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => return true,
            Err(_) => self.on_device_eof(*id),
        }
        false
    }

    /// The peer's side is over: what it sent before has been served.
    fn on_device_eof(&mut self, id: SessionId) {
        if let Some(device) = self.sessions.live(id).and_then(|session| session.mqtt.as_mut()) {
            device.read_closed = true;
        }
        self.drive(id, |core, cx| core.on_connection_lost(cx));
        self.mark_dirty(id);
    }

    /// Serves the packets in `bytes`, or in `kept` when there was a partial packet before; keeps what is left over.
    pub(in crate::net) fn on_device_bytes(
        &mut self,
        id: &mut SessionId,
        bytes: &[u8],
        kept: Vec<u8>,
    ) -> bool {
        let mut rest = if kept.is_empty() { bytes } else { &kept[..] };
        while !rest.is_empty() {
            let Some(session) = self.sessions.live(*id) else { return false };
            if !session.core.accepts_packets() {
                return true;
            }
            if session.core.awaits_connect() && rest[0] >> 4 != CONNECT {
                let first = rest[0];
                self.drive(*id, |core, cx| core.on_invalid_first_byte(first, cx));
                return true;
            }
            match mqtt::decode(rest, session.core.max_packet_bytes(&self.config)) {
                Ok(Some((Packet::Connect(connect), _)))
                    if !self.workers.is_single() && self.hand_off(*id, connect.client_id, rest) =>
                {
                    return false;
                }
                Ok(Some((packet, length))) => {
                    rest = &rest[length..];
                    self.drive(*id, |core, cx| core.on_packet(packet, cx));
                    *id = self.moved.take().unwrap_or(*id);
                }
                Ok(None) => break,
                Err(malformed) => {
                    self.drive(*id, |core, cx| core.on_malformed_packet(malformed, cx));
                    return true;
                }
            }
        }
        if let Some(device) = self.sessions.live(*id).and_then(|session| session.mqtt.as_mut()) {
            // A packet that is not whole yet stays where it is: to copy it each time would be work without end.
            let begun = rest.len() == kept.len();
            device.keep_inbox(if begun { kept } else { rest.to_vec() });
        }
        true
    }

    /// Appends to what the device is sent. A device that does not read loses its connection.
    pub(in crate::net) fn write_device(&mut self, id: SessionId, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(device) = self.sessions.live(id).and_then(|session| session.mqtt.as_mut()) else { return };
        if device.closing {
            return;
        }
        let fits = device.buffers.get_or_insert_default().write_buffer.append(write);
        self.mark_dirty(id);
        if !fits {
            device_is_slow(self, id);
        }
    }

    /// Writes what waits for the device, at the end of the turn or before audio that must come later.
    pub(in crate::net) fn flush_device(&mut self, id: SessionId) {
        let now = self.now;
        let Some(session) = self.sessions.live(id) else { return };
        let Some(device) = &mut session.mqtt else { return };
        match device.flush(now) {
            FlushOutcome::Done | FlushOutcome::Blocked => {}
            FlushOutcome::Closed => self.drop_device(id),
            // A DISCONNECT may have come before the reset: only reading tells.
            FlushOutcome::Broken => self.run_queue.push(Task::Device(id)),
        }
    }
}

/// Deferred to its own list: the core is in the middle of its actions.
fn device_is_slow(gateway: &mut Gateway, id: SessionId) {
    gateway.run_queue.push(Task::DeviceBlocked(id));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::net::gateway::harness::{Harness, client_id};
    use crate::proto::mqtt::encode;

    #[test]
    fn a_long_packet_is_copied_a_few_times_and_not_once_for_each_piece() {
        const LONG: usize = 1024 * 1024;
        let mut harness = Harness::new(|config| config.mqtt.max_payload_size = 2 * LONG);
        let (mut client, id) = harness.online(&client_id(1));
        let device = |gateway: &Gateway| {
            let device = gateway.sessions.get(id).unwrap().mqtt.as_ref().unwrap();
            (device.buffers.as_ref().map_or(0, |partial| partial.read_buffer.len()), device.buffered_bytes())
        };
        let mut packet = Vec::new();
        encode::publish(&mut packet, "t", &vec![b' '; LONG]);
        let (last, begin) = packet.split_last().unwrap();
        let (mut came, mut room, mut moves) = (0, 0, 0);
        for piece in begin.chunks(READ_SIZE) {
            client.write_all(piece).unwrap();
            came += piece.len();
            harness.until("it is read", |gateway| device(gateway).0 == came);
            let now = device(&harness.gateway).1;
            moves += usize::from(now != room);
            room = now;
        }
        assert!(moves <= 12, "moved {moves} times");
        assert_eq!(room, packet.len(), "no more room than the packet takes");
        // Its end comes with the next packet, and the start of another.
        client.write_all(&[*last, 0xc0, 0, 0x30, 5]).unwrap();
        harness.until("both are served", |gateway| device(gateway).0 == 2);
        assert!(harness.gateway.sessions.get(id).unwrap().core.is_online());
    }
}
