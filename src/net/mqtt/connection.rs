//! A device's MQTT connection: its transport and its buffers.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Instant;

use crate::net::event_loop::io::Io;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::SessionId;
use crate::net::event_loop::write_buffer::{Flush, WriteBuffer};
use crate::net::mqtt::connections_by_address::Counted;
use crate::net::mqtt::transport::Transport;
use crate::proto::mqtt;

/// One device's connection. It is small, since there may be tens of thousands: its buffers are allocated when needed.
pub(crate) struct MqttConnection {
    pub(crate) transport: Transport,
    pub(crate) peer_port: u16,
    /// Packets are no longer handled: the rest is written, then the connection is closed.
    pub(crate) closing: bool,
    /// Counts it among the connections of its address, if these are limited, until it closes.
    pub(crate) counted: Option<Box<Counted>>,
    /// This side is closed for writing. What the peer still sends is discarded.
    write_shut_down: bool,
    /// The peer has closed its side, or the connection is broken.
    pub(crate) read_closed: bool,
    /// The system has reported that the end of the stream is near: a short read does not prove that the socket is empty.
    pub(crate) near_end: bool,
    /// A write failed. What had arrived before is still read, then the connection is closed.
    pub(crate) broken: bool,
    buffers: Option<Box<Buffers>>,
}

/// Partial packets, and output that is not written yet. Freed when both are empty.
#[derive(Default)]
struct Buffers {
    read_buffer: Vec<u8>,
    write_buffer: WriteBuffer,
    /// Until when the output is delayed: it refuses a login.
    hold_until: Option<Instant>,
}

impl MqttConnection {
    pub(crate) fn new(transport: Transport, peer_port: u16) -> Self {
        Self {
            transport,
            peer_port,
            closing: false,
            counted: None,
            write_shut_down: false,
            read_closed: false,
            near_end: false,
            broken: false,
            buffers: None,
        }
    }

    /// The local address the device reached, for `public_ip: auto`.
    pub(crate) fn local_ip(&self) -> Option<IpAddr> {
        self.transport.tcp()?.local_addr().ok().map(|addr| addr.ip().to_canonical())
    }

    /// Whether a read of fewer bytes than there was room for emptied the socket. Not over TLS, where the TLS library may hold bytes,
    /// and only on systems that are known to announce every arrival.
    pub(crate) fn short_read_means_empty(&self) -> bool {
        cfg!(target_os = "linux") && !self.near_end && self.transport.is_plain()
    }

    /// Whether there is output that is not written yet.
    pub(crate) fn has_output(&self) -> bool {
        self.buffers.as_ref().is_some_and(|buffers| !buffers.write_buffer.is_empty())
    }

    /// Until when the output is delayed.
    pub(crate) fn hold_until(&self) -> Option<Instant> {
        self.buffers.as_ref().and_then(|buffers| buffers.hold_until)
    }

    /// Delays the output.
    pub(crate) fn hold(&mut self, until: Instant) {
        self.buffers.get_or_insert_default().hold_until = Some(until);
    }

    /// The capacity of both buffers in bytes.
    pub(crate) fn buffered_bytes(&self) -> usize {
        self.buffers
            .as_ref()
            .map_or(0, |buffers| buffers.read_buffer.capacity() + buffers.write_buffer.capacity())
    }

    /// Takes the partial packet that was read before, with `more` appended; empty if there is none.
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

    /// Keeps a partial packet until more is read. Without one, nothing is kept: often nothing is written afterwards.
    pub(crate) fn keep_partial(&mut self, rest: Vec<u8>) {
        if rest.is_empty() {
            self.free_empty_buffers();
        } else {
            self.buffers.get_or_insert_default().read_buffer = rest;
        }
    }

    fn free_empty_buffers(&mut self) {
        self.buffers.take_if(|buffers| {
            buffers.read_buffer.is_empty() && buffers.write_buffer.is_empty() && buffers.hold_until.is_none()
        });
    }

    /// Queues what `write` appends. False when too much is unwritten then: the device does not read.
    #[must_use]
    pub(crate) fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        self.buffers.get_or_insert_default().write_buffer.append(write)
    }

    /// Writes what is queued. When the connection is closing, closes this side after that. True when nothing is left to do, so that
    /// the connection is to be dropped.
    pub(crate) fn flush(&mut self, id: SessionId, io: &mut Io) -> bool {
        if self.broken || !self.transport.is_open() {
            return self.closing;
        }
        let flushed = match &mut self.buffers {
            None => Ok(Flush::Done),
            Some(buffers) if buffers.hold_until.is_some_and(|at| at > io.now) => return false,
            Some(buffers) => {
                buffers.hold_until = None;
                buffers.write_buffer.flush(&mut self.transport)
            }
        };
        self.free_empty_buffers();
        match flushed {
            Ok(Flush::Done) if self.closing && !self.read_closed => !self.shut_down_write(),
            Ok(_) => self.closing && self.read_closed,
            Err(_) if self.closing => true,
            Err(_) => {
                self.broken = true;
                // A DISCONNECT may have arrived before the reset, so it is read first.
                io.run_queue.push(Task::Device(id));
                false
            }
        }
    }

    /// Closes this side only: dropping the socket could reset the connection, and the peer would lose what was just written. False
    /// when the connection is broken.
    fn shut_down_write(&mut self) -> bool {
        if self.write_shut_down {
            return true;
        }
        match self.transport.shut_down() {
            Ok(()) => {
                self.write_shut_down = true;
                true
            }
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// Appends to a partial packet. The capacity doubles, but not beyond the packet's length: so each byte is copied about once,
/// however small the pieces are.
fn append(partial: &mut Vec<u8>, more: &[u8]) {
    let needed = partial.len() + more.len();
    if needed > partial.capacity() {
        let packet_len = mqtt::packet_len(partial).unwrap_or(needed);
        let capacity = (2 * partial.capacity()).min(packet_len).max(needed);
        partial.reserve_exact(capacity - partial.len());
    }
    partial.extend_from_slice(more);
}
