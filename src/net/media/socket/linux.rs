//! Batches on Linux and Android: recvmmsg(2) and sendmmsg(2), with the local address of each datagram in a control
//! message (IP_PKTINFO of ip(7), IPV6_PKTINFO of RFC 3542 section 6).

use std::array;
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, RawFd};

use mio::net::UdpSocket;
use nix::cmsg_space;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike,
    recvmmsg, sendmmsg, setsockopt, sockopt,
};
use socket2::Socket;

use super::{BATCH, BUFFER, DatagramInfo, Outgoing, ReceiveBatch, SOCKET_BUFFER};

/// The headers of a batch, allocated once for all system calls.
pub(super) enum BatchIo {
    V4(Headers<SockaddrIn>),
    V6(Headers<SockaddrIn6>),
}

impl BatchIo {
    pub(super) fn set_options(socket: &Socket, addr: SocketAddr) {
        // Root may exceed the limit in /proc/sys/net/core. For others this fails, and the size already set remains.
        let _ = setsockopt(socket, sockopt::RcvBufForce, &SOCKET_BUFFER);
        let _ = setsockopt(socket, sockopt::SndBufForce, &SOCKET_BUFFER);
        // If this fails, datagrams leave from the address that the routing table chooses.
        if addr.is_ipv4() {
            let _ = setsockopt(socket, sockopt::Ipv4PacketInfo, &true);
        } else {
            // Also applies to IPv4 datagrams at this socket, with a mapped address.
            let _ = setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true);
        }
    }

    pub(super) fn new(is_ipv6: bool) -> Self {
        if is_ipv6 { Self::V6(Headers::new()) } else { Self::V4(Headers::new()) }
    }

    /// Receives a batch. `batch` must be empty.
    pub(super) fn receive(&mut self, socket: &UdpSocket, batch: &mut ReceiveBatch) -> io::Result<()> {
        match self {
            Self::V4(headers) => headers.receive(socket.as_raw_fd(), batch),
            Self::V6(headers) => headers.receive(socket.as_raw_fd(), batch),
        }
    }

    /// Sends datagrams from the front of the queue, and returns how many the system accepted, at least one. An error concerns
    /// the first.
    pub(super) fn send(&mut self, socket: &UdpSocket, queue: &VecDeque<Outgoing>) -> io::Result<usize> {
        match self {
            Self::V4(headers) => headers.send(socket.as_raw_fd(), queue),
            Self::V6(headers) => headers.send(socket.as_raw_fd(), queue),
        }
    }
}

/// Headers for a socket with addresses of type `S`.
pub(super) struct Headers<S> {
    inbound: MultiHeaders<S>,
    /// For datagrams without a source address.
    outbound: MultiHeaders<S>,
    /// For datagrams with a source address. Apart, since the system reads all of a header's space for control messages.
    outbound_from: MultiHeaders<S>,
}

impl<S: Address> Headers<S> {
    fn new() -> Self {
        Self {
            inbound: MultiHeaders::preallocate(BATCH, Some(S::control_space())),
            outbound: MultiHeaders::preallocate(BATCH, None),
            outbound_from: MultiHeaders::preallocate(BATCH, Some(S::control_space())),
        }
    }

    fn receive(&mut self, fd: RawFd, batch: &mut ReceiveBatch) -> io::Result<()> {
        let mut buffers = batch.bytes.chunks_exact_mut(BUFFER);
        let mut slices: [_; BATCH] =
            array::from_fn(|_| [IoSliceMut::new(buffers.next().unwrap_or_default())]);
        let messages = recvmmsg(fd, &mut self.inbound, &mut slices, MsgFlags::MSG_DONTWAIT, None)?;
        for message in messages {
            // Always present, since the socket's domain allows only addresses of this type.
            let Some(from) = message.address else { continue };
            let local = message.cmsgs().ok().and_then(|mut all| all.find_map(S::local));
            batch.filled.push((DatagramInfo::new(from.into(), local), message.bytes));
        }
        Ok(())
    }

    /// One system call sends datagrams with one source address, so a batch ends where the source address changes.
    fn send(&mut self, fd: RawFd, queue: &VecDeque<Outgoing>) -> io::Result<usize> {
        let local = queue.front().and_then(|first| first.local);
        let info = local.and_then(S::info);
        let mut batch = queue.iter().take_while(|outgoing| outgoing.local == local);
        let mut addresses = [None; BATCH];
        let slices: [_; BATCH] = array::from_fn(|i| {
            let next = batch.next();
            addresses[i] = next.and_then(|outgoing| S::reach(outgoing.to));
            [IoSlice::new(next.map_or(&[], |outgoing| &outgoing.data))]
        });
        // The batch also ends before a destination that the socket's domain cannot reach.
        let count = addresses.iter().position(Option::is_none).unwrap_or(BATCH);
        if count == 0 {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let (addresses, flags) = (&addresses[..count], MsgFlags::MSG_DONTWAIT);
        // The results of a send contain nothing but their number.
        let sent = match &info {
            Some(info) => {
                sendmmsg(fd, &mut self.outbound_from, &slices, addresses, [S::message(info)], flags)?.count()
            }
            None => sendmmsg(fd, &mut self.outbound, &slices, addresses, [], flags)?.count(),
        };
        Ok(sent)
    }
}

/// The differences between IPv4 and IPv6 sockets.
pub(super) trait Address: SockaddrLike + Copy + Into<SocketAddr> {
    /// The control message with the local address.
    type Info;

    /// A buffer of exactly the size of that control message.
    fn control_space() -> Vec<u8>;
    /// The address of `to` in the socket's domain.
    fn reach(to: SocketAddr) -> Option<Self>;
    /// The local address in a received control message.
    fn local(message: ControlMessageOwned) -> Option<IpAddr>;
    /// The control message that makes `local` the source address.
    fn info(local: IpAddr) -> Option<Self::Info>;
    fn message(info: &Self::Info) -> ControlMessage<'_>;
}

impl Address for SockaddrIn {
    type Info = in_pktinfo;

    fn control_space() -> Vec<u8> {
        cmsg_space!(in_pktinfo)
    }

    fn reach(to: SocketAddr) -> Option<Self> {
        match to {
            SocketAddr::V4(to) => Some(to.into()),
            SocketAddr::V6(_) => None,
        }
    }

    fn local(message: ControlMessageOwned) -> Option<IpAddr> {
        match message {
            // Not ipi_addr, which is the broadcast address for a datagram that was sent to one.
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()).into())
            }
            _ => None,
        }
    }

    fn info(local: IpAddr) -> Option<in_pktinfo> {
        match local {
            IpAddr::V4(local) => Some(in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr { s_addr: u32::from_ne_bytes(local.octets()) },
                ipi_addr: in_addr { s_addr: 0 },
            }),
            IpAddr::V6(_) => None,
        }
    }

    fn message(info: &in_pktinfo) -> ControlMessage<'_> {
        ControlMessage::Ipv4PacketInfo(info)
    }
}

impl Address for SockaddrIn6 {
    type Info = in6_pktinfo;

    fn control_space() -> Vec<u8> {
        cmsg_space!(in6_pktinfo)
    }

    fn reach(to: SocketAddr) -> Option<Self> {
        Some(match to {
            SocketAddr::V4(to) => SocketAddrV6::new(to.ip().to_ipv6_mapped(), to.port(), 0, 0).into(),
            SocketAddr::V6(to) => to.into(),
        })
    }

    fn local(message: ControlMessageOwned) -> Option<IpAddr> {
        match message {
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).to_canonical())
            }
            _ => None,
        }
    }

    fn info(local: IpAddr) -> Option<in6_pktinfo> {
        let local = match local {
            IpAddr::V4(local) => local.to_ipv6_mapped(),
            IpAddr::V6(local) => local,
        };
        Some(in6_pktinfo { ipi6_addr: in6_addr { s6_addr: local.octets() }, ipi6_ifindex: 0 })
    }

    fn message(info: &in6_pktinfo) -> ControlMessage<'_> {
        ControlMessage::Ipv6PacketInfo(info)
    }
}
