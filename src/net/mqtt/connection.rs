//! The device's TCP connection: bytes in, packets to the core, bytes out.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Instant;

use crate::net::event_loop::write_buffer::{Flush, WriteBuffer};
use crate::net::mqtt::connections_by_address::Counted;
use crate::net::mqtt::transport::Transport;
use crate::proto::mqtt;

/// One device's connection. Small, since there may be tens of thousands: what is partial or waits is elsewhere.
pub(crate) struct MqttConnection {
    pub(crate) transport: Transport,
    pub(crate) peer_port: u16,
    /// Nothing is served any more: the rest is written, then the connection ends.
    pub(crate) closing: bool,
    /// Its place among the connections of its address, while these are limited and until it closes.
    pub(crate) counted: Option<Box<Counted>>,
    /// Our side is shut down; the peer's last bytes are read and dropped.
    write_shut_down: bool,
    /// The peer has ended its side, or the connection is broken.
    pub(crate) read_closed: bool,
    /// A write failed: what had arrived before is still read, then the connection has ended.
    pub(crate) broken: bool,
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
pub(crate) enum FlushOutcome {
    Done,
    Blocked,
    /// Closed down and no longer needed.
    Closed,
    /// The connection is broken.
    Broken,
}

impl MqttConnection {
    pub(crate) fn new(link: Transport, port: u16) -> Self {
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
    pub(crate) fn local_ip(&self) -> Option<IpAddr> {
        self.transport.tcp()?.local_addr().ok().map(|addr| addr.ip().to_canonical())
    }

    /// Whether something waits to be written.
    pub(crate) fn has_output(&self) -> bool {
        self.buffers.as_ref().is_some_and(|partial| !partial.write_buffer.is_empty())
    }

    /// Until when output waits on purpose.
    pub(crate) fn hold_until(&self) -> Option<Instant> {
        self.buffers.as_ref().and_then(|partial| partial.hold_until)
    }

    /// Lets the output wait on purpose.
    pub(crate) fn hold(&mut self, until: Instant) {
        self.buffers.get_or_insert_default().hold_until = Some(until);
    }

    /// Bytes that are partial or wait to be written, and room for them.
    pub(crate) fn buffered_bytes(&self) -> usize {
        self.buffers
            .as_ref()
            .map_or(0, |partial| partial.read_buffer.capacity() + partial.write_buffer.capacity())
    }

    /// Takes the partial packet that came before, with `more` appended.
    pub(crate) fn take_partial(&mut self, more: &[u8]) -> Vec<u8> {
        let Some(buffers) = &mut self.buffers else { return Vec::new() };
        let mut partial = std::mem::take(&mut buffers.read_buffer);
        if !partial.is_empty() {
            append(&mut partial, more);
        }
        partial
    }

    /// Bytes of the partial packet.
    #[cfg(test)]
    pub(crate) fn partial_len(&self) -> usize {
        self.buffers.as_ref().map_or(0, |buffers| buffers.read_buffer.len())
    }

    /// Keeps the start of a packet.
    pub(crate) fn keep_partial(&mut self, rest: Vec<u8>) {
        if !rest.is_empty() {
            self.buffers.get_or_insert_default().read_buffer = rest;
        }
    }

    /// Queues what `write` appends. False when too much waits already: the device does not read.
    #[must_use]
    pub(crate) fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.buffers.get_or_insert_default().write_buffer.append(write)
    }

    /// Writes what is queued, and closes our side behind it when the connection is closing.
    pub(crate) fn flush(&mut self, now: Instant) -> FlushOutcome {
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
