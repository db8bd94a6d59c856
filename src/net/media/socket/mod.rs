//! The UDP socket, in batches.
//!
//! Received datagrams are in buffers that are reused, so the audio path can decrypt them in place. Outgoing datagrams are queued
//! during an iteration of the loop and sent together. The system calls are in a file per platform: on Linux, many datagrams
//! per call, each with the local address it arrived at; elsewhere, one by one.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};

use log::debug;
use mio::net::UdpSocket;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux;
#[cfg(any(target_os = "linux", target_os = "android"))]
use linux::BatchIo;

#[cfg(any(test, not(any(target_os = "linux", target_os = "android"))))]
mod portable;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
use portable::BatchIo;

/// The most datagrams that one [`AudioSocket::receive`] returns.
pub const BATCH: usize = 32;

/// The most datagrams that are queued while the socket is full.
pub const QUEUE: usize = 256;

/// Bytes per receive buffer: more than any valid audio packet, so that an oversized one is recognised.
const BUFFER: usize = 2048;

/// Requested size of the system's buffer for each direction, so that no audio is lost while the loop is busy.
const SOCKET_BUFFER: usize = 4 << 20;

/// After this many errors in a row, the socket itself is considered broken.
const ERRORS: usize = 1024;

/// Where the ssrc begins in a datagram.
pub(super) const SSRC_START: usize = 4;
/// Where it ends.
pub(super) const SSRC_END: usize = 8;

/// The ssrc of a datagram, which identifies its call; none when the datagram is too short.
pub fn ssrc(datagram: &[u8]) -> Option<u32> {
    datagram.get(SSRC_START..SSRC_END)?.try_into().ok().map(u32::from_be_bytes)
}

/// The UDP socket with its incoming batch and its outgoing queue.
pub struct AudioSocket {
    socket: UdpSocket,
    io: BatchIo,
    received: ReceiveBatch,
    receive_errors: u64,
    send_queue: VecDeque<Outgoing>,
    /// Empty buffers for reuse.
    spare: Vec<Vec<u8>>,
    /// The counts since the last [`flush`](Self::flush), and whether the socket is full.
    flushed: Flushed,
}

/// The source and the destination of a received datagram.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct DatagramInfo {
    /// The sender. An IPv4 sender at an IPv6 socket is given as IPv4.
    pub from: SocketAddr,
    /// The local address that it arrived at, if the system reports it.
    pub local: Option<IpAddr>,
}

/// The outcome of [`AudioSocket::flush`].
#[derive(Copy, Clone, PartialEq, Eq, Debug, Default)]
pub struct Flushed {
    /// Datagrams sent.
    pub sent: usize,
    /// Datagrams that the system refused (no route, too long, port 0 ..) and that were dropped.
    pub failed: usize,
    /// The socket is full: the rest is sent when it is writable again.
    pub blocked: bool,
}

/// Buffers for one batch, and the source and length of the datagram in each.
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

/// Opens a UDP socket: non-blocking, with large buffers if the system allows it, and for IPv4 too when `addr` is `[::]`. `prepare`
/// sets what must be set before bind(2).
///
/// # Errors
/// Those of socket(2), bind(2) and `prepare`.
pub(super) fn open(addr: SocketAddr, prepare: impl FnOnce(&Socket) -> io::Result<()>) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    // A smaller buffer is no reason not to start.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    // Must apply to the first datagram already.
    BatchIo::set_options(&socket, addr);
    prepare(&socket)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

impl AudioSocket {
    /// Opens a socket that has its port alone.
    ///
    /// # Errors
    /// Those of socket(2) and bind(2).
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        Ok(Self::new(open(addr, |_| Ok(()))?, addr.is_ipv6()))
    }

    /// From a bound socket.
    pub(crate) fn new(socket: Socket, is_ipv6: bool) -> Self {
        Self {
            socket: UdpSocket::from_std(socket.into()),
            io: BatchIo::new(is_ipv6),
            received: ReceiveBatch::new(),
            receive_errors: 0,
            send_queue: VecDeque::new(),
            spare: Vec::new(),
            flushed: Flushed::default(),
        }
    }

    /// Sets the class of service (RFC 2474) of the datagrams sent. Audio also arrives without it, so errors are ignored.
    pub fn set_dscp(&self, dscp: u8) {
        // The lower two bits of the octet are those of congestion notification (RFC 3168).
        let (socket, octet) = (SockRef::from(&self.socket), u32::from(dscp) << 2);
        #[cfg_attr(not(unix), allow(unused_mut))]
        let mut set = socket.set_tos_v4(octet);
        // An IPv6 socket needs both: the one above for mapped IPv4 addresses.
        #[cfg(unix)]
        if self.socket.local_addr().is_ok_and(|local| local.is_ipv6()) {
            set = socket.set_tclass_v6(octet).and(set);
        }
        if let Err(error) = set {
            debug!("audio is sent without the class of udp.dscp: {error}");
        }
    }

    /// The bound address, with the port that the system chose if it was 0.
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

    /// Receives a batch and returns the number of datagrams in it, 1 to [`BATCH`]. Fewer than [`BATCH`], like WouldBlock, means
    /// that the socket is empty, and that later datagrams will cause a new event.
    ///
    /// An error that belongs to an earlier send (ECONNREFUSED ..) is counted and skipped.
    ///
    /// # Errors
    /// WouldBlock when there is no datagram; any other error means that the socket itself is broken.
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

    /// Errors that [`receive`](Self::receive) has skipped since the start.
    pub fn receive_errors(&self) -> u64 {
        self.receive_errors
    }

    /// The `i`th datagram of the last batch, which may be changed in place. It may be empty.
    ///
    /// # Panics
    /// When the last batch had no such datagram.
    pub fn datagram(&mut self, i: usize) -> (DatagramInfo, &mut [u8]) {
        let (info, len) = self.received.filled[i];
        (info, &mut self.received.buffer(i)[..len])
    }

    /// Queues a datagram of the call `ssrc` for `to`, and returns its empty buffer for the caller to fill. Its source address
    /// is `local`, if that is given and the system supports it.
    ///
    /// None when [`QUEUE`] datagrams are queued already and the socket is full.
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

    /// Sends the queued datagrams. One that the system refuses is dropped and does not delay the others. The counts include what
    /// was sent since the last call, because a long queue is also sent in between.
    pub fn flush(&mut self) -> Flushed {
        self.flushed.blocked = false;
        self.send();
        let blocked = self.flushed.blocked;
        std::mem::replace(&mut self.flushed, Flushed { blocked, ..Flushed::default() })
    }

    /// The number of queued datagrams.
    pub fn queued(&self) -> usize {
        self.send_queue.len()
    }

    /// Whether a datagram of the call `ssrc` is queued.
    pub fn holds(&self, ssrc: u32) -> bool {
        self.send_queue.iter().any(|outgoing| outgoing.ssrc == ssrc)
    }

    /// Drops the queued datagrams of the call `ssrc`, and returns their number.
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
                    self.remove_first(sent);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.flushed.blocked = true;
                    return;
                }
                // The local address may have changed: sends from another one rather than not at all.
                Err(_) if had_local => self.send_queue[0].local = None,
                Err(_) => {
                    self.flushed.failed += 1;
                    self.remove_first(1);
                }
            }
        }
    }

    fn remove_first(&mut self, count: usize) {
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
            // Includes the scope id, which replies to a link-local address need.
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
