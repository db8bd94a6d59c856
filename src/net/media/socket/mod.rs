//! The UDP socket, in batches.
//!
//! Received datagrams lie in buffers that are used again, so the audio path can decrypt them in place. Outgoing ones are
//! collected during a turn of the loop and sent together. How a batch meets the system is the platform's file: many
//! datagrams per call and the address each one arrived at on Linux, one by one elsewhere.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};

use mio::net::UdpSocket;
use socket2::{Domain, Protocol, Socket, Type};

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux;
#[cfg(any(target_os = "linux", target_os = "android"))]
use linux::BatchIo;

#[cfg(any(test, not(any(target_os = "linux", target_os = "android"))))]
mod portable;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
use portable::BatchIo;

/// The most datagrams one [`AudioSocket::receive`] returns.
pub const BATCH: usize = 32;

/// The most datagrams that wait for a full socket.
pub const QUEUE: usize = 256;

/// Bytes per receive buffer: more than any valid audio packet, so an oversized one is recognised.
const BUFFER: usize = 2048;

/// Asked of the system for each direction: a stall of the loop must not cost audio.
const SOCKET_BUFFER: usize = 4 << 20;

/// Errors in a row after which the socket, and not one of its peers, is taken to be broken.
const ERRORS: usize = 1024;

/// The ssrc of a datagram, if it is long enough to have one: which call it is for.
pub fn ssrc(datagram: &[u8]) -> Option<u32> {
    datagram.get(4..8)?.try_into().ok().map(u32::from_be_bytes)
}

/// The UDP socket with its incoming batch and its outgoing queue.
pub struct AudioSocket {
    socket: UdpSocket,
    io: BatchIo,
    received: ReceiveBatch,
    receive_errors: u64,
    send_queue: VecDeque<Outgoing>,
    spare: Vec<Vec<u8>>,
    /// What was sent and lost since the last [`flush`](Self::flush) was answered, and whether the socket is full.
    flushed: Flushed,
}

/// Where a datagram came from and where it went.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct DatagramInfo {
    /// The sender. An IPv4 sender at an IPv6 socket is given as IPv4.
    pub from: SocketAddr,
    /// The address of ours that it arrived at, where the system tells.
    pub local: Option<IpAddr>,
}

/// The outcome of [`AudioSocket::flush`].
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Flushed {
    /// Datagrams the system has taken.
    pub sent: usize,
    /// Datagrams the system refused (no route, too long, port 0 ..): they are gone.
    pub failed: usize,
    /// The socket is full: the rest waits for its writable edge.
    pub blocked: bool,
}

/// Buffers for one batch, and what each was filled with.
struct ReceiveBatch {
    bytes: Box<[u8]>,
    filled: Vec<(DatagramInfo, usize)>,
}

struct Outgoing {
    to: SocketAddr,
    local: Option<IpAddr>,
    ssrc: u32,
    data: Vec<u8>,
}

impl AudioSocket {
    /// Opens the socket: non-blocking, with large buffers as far as the system grants them, for IPv4 too when `addr` is
    /// `[::]`.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if addr.is_ipv6() {
            socket.set_only_v6(!addr.ip().is_unspecified())?;
        }
        // Less than was asked for is no reason not to start.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
        // Before bind, so that not even the first datagram lacks what the options add.
        let wire = BatchIo::new(&socket, addr);
        socket.bind(&addr.into())?;
        Ok(Self {
            socket: UdpSocket::from_std(socket.into()),
            io: wire,
            received: ReceiveBatch::new(),
            receive_errors: 0,
            send_queue: VecDeque::new(),
            spare: Vec::new(),
            flushed: Flushed::default(),
        })
    }

    /// The bound address, with the port the system chose when 0 was asked.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The socket, for registration with the poll.
    pub fn source(&mut self) -> &mut UdpSocket {
        &mut self.socket
    }

    /// Receives a batch and returns the number of datagrams in it, 1 to [`BATCH`]. Fewer than [`BATCH`] means that the
    /// socket was found empty, as WouldBlock does: what comes later comes with a new edge.
    ///
    /// An error that belongs to an earlier send (ECONNREFUSED ..) is counted and passed over.
    ///
    /// # Errors
    /// WouldBlock when nothing is queued; any other error means that the socket itself is broken.
    pub fn receive(&mut self) -> io::Result<usize> {
        self.received.filled.clear();
        let mut errors = 0;
        loop {
            match self.io.receive(&self.socket, &mut self.received) {
                Ok(()) => return Ok(self.received.filled.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock || errors == ERRORS => {
                    return Err(error);
                }
                Err(_) => {
                    errors += 1;
                    self.receive_errors += 1;
                }
            }
        }
    }

    /// Errors that [`receive`](Self::receive) has passed over since the start.
    pub fn receive_errors(&self) -> u64 {
        self.receive_errors
    }

    /// The `i`th datagram of the last batch, to be changed in place. Empty datagrams are datagrams.
    ///
    /// # Panics
    /// When the last batch had no such datagram.
    pub fn datagram(&mut self, i: usize) -> (DatagramInfo, &mut [u8]) {
        let (meta, len) = self.received.filled[i];
        (meta, &mut self.received.buffer(i)[..len])
    }

    /// An empty buffer to write one datagram for `to` into. It leaves from address `local` when one is given and the
    /// system can do that, and belongs to call `ssrc` (see [`drop_queued`](Self::drop_queued)).
    ///
    /// None when [`QUEUE`] datagrams already wait for a full socket.
    pub fn queue(&mut self, to: SocketAddr, local: Option<IpAddr>, ssrc: u32) -> Option<&mut Vec<u8>> {
        if self.send_queue.len() >= QUEUE && !self.flushed.blocked {
            self.send();
        }
        if self.send_queue.len() >= QUEUE {
            return None;
        }
        let data = self.spare.pop().unwrap_or_default();
        self.send_queue.push_back(Outgoing { to, local, ssrc, data });
        self.send_queue.back_mut().map(|outgoing| &mut outgoing.data)
    }

    /// Sends what is queued. A datagram the system refuses is passed over and does not hold up the others. The result
    /// covers everything since the last call, since a long queue is also sent in between.
    pub fn flush(&mut self) -> Flushed {
        self.flushed.blocked = false;
        self.send();
        let blocked = self.flushed.blocked;
        std::mem::replace(&mut self.flushed, Flushed { blocked, ..Flushed::default() })
    }

    /// Datagrams that wait.
    pub fn queued(&self) -> usize {
        self.send_queue.len()
    }

    /// Whether a datagram of call `ssrc` waits.
    pub fn holds(&self, ssrc: u32) -> bool {
        self.send_queue.iter().any(|outgoing| outgoing.ssrc == ssrc)
    }

    /// Forgets the datagrams queued for call `ssrc` and returns how many they were.
    pub fn drop_queued(&mut self, ssrc: u32) -> usize {
        let before = self.send_queue.len();
        for _ in 0..before {
            match self.send_queue.pop_front() {
                Some(outgoing) if outgoing.ssrc == ssrc => self.recycle(outgoing),
                Some(outgoing) => self.send_queue.push_back(outgoing),
                None => break,
            }
        }
        before - self.send_queue.len()
    }

    fn send(&mut self) {
        while let Some(first) = self.send_queue.front_mut() {
            let had_local = first.local.is_some();
            match self.io.send(&self.socket, &self.send_queue) {
                Ok(sent) => {
                    self.flushed.sent += sent;
                    self.forget(sent);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.flushed.blocked = true;
                    return;
                }
                // Perhaps the address is ours no more. From another one is better than not at all.
                Err(_) if had_local => self.send_queue[0].local = None,
                Err(_) => {
                    self.flushed.failed += 1;
                    self.forget(1);
                }
            }
        }
    }

    fn forget(&mut self, count: usize) {
        for _ in 0..count {
            if let Some(outgoing) = self.send_queue.pop_front() {
                self.recycle(outgoing);
            }
        }
    }

    fn recycle(&mut self, outgoing: Outgoing) {
        let mut data = outgoing.data;
        if data.capacity() <= BUFFER {
            data.clear();
            self.spare.push(data);
        }
    }
}

impl DatagramInfo {
    fn new(from: SocketAddr, local: Option<IpAddr>) -> Self {
        let from = match from.ip().to_canonical() {
            IpAddr::V4(ip) => SocketAddr::new(ip.into(), from.port()),
            // With the scope that answers to a link-local address need.
            IpAddr::V6(_) => from,
        };
        Self { from, local }
    }
}

impl ReceiveBatch {
    fn new() -> Self {
        Self { bytes: vec![0; BATCH * BUFFER].into_boxed_slice(), filled: Vec::with_capacity(BATCH) }
    }

    fn buffer(&mut self, i: usize) -> &mut [u8] {
        &mut self.bytes[i * BUFFER..][..BUFFER]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
