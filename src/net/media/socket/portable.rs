//! Datagrams one by one, where the system has no batches that nix knows of. Their local addresses stay unknown.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};

use mio::net::UdpSocket;
use socket2::Socket;

use super::{BATCH, DatagramInfo, Outgoing, ReceiveBatch};

/// Remembers which kind of address the socket takes.
pub(super) struct BatchIo {
    ipv6: bool,
}

impl BatchIo {
    pub(super) fn new(_: &Socket, addr: SocketAddr) -> Self {
        Self { ipv6: addr.is_ipv6() }
    }

    /// Fills the rest of the inbox.
    pub(super) fn receive(&mut self, socket: &UdpSocket, inbox: &mut ReceiveBatch) -> io::Result<()> {
        while inbox.filled.len() < BATCH {
            match socket.recv_from(inbox.buffer(inbox.filled.len())) {
                // What fills the buffer may have been longer; no valid packet fills it.
                Ok((len, from)) => inbox.filled.push((DatagramInfo::new(from, None), len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !inbox.filled.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends the first datagram of the queue.
    pub(super) fn send(&mut self, socket: &UdpSocket, queue: &VecDeque<Outgoing>) -> io::Result<usize> {
        let Some(Outgoing { to, data, .. }) = queue.front() else { return Ok(0) };
        let to = match *to {
            SocketAddr::V4(to) if self.ipv6 => {
                SocketAddrV6::new(to.ip().to_ipv6_mapped(), to.port(), 0, 0).into()
            }
            to => to,
        };
        socket.send_to(data, to)?;
        Ok(1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::UdpSocket as Peer;

    #[test]
    fn serves_the_same_batches() {
        for bound in ["127.0.0.1:0", "[::]:0"] {
            let Ok(socket) = Peer::bind(bound) else { continue };
            socket.set_nonblocking(true).unwrap();
            let port = socket.local_addr().unwrap().port();
            let mut wire = BatchIo::new(&socket2::SockRef::from(&socket), bound.parse().unwrap());
            let socket = UdpSocket::from_std(socket);
            let peer = Peer::bind("127.0.0.1:0").unwrap();
            let mut inbox = ReceiveBatch::new();
            let empty = wire.receive(&socket, &mut inbox).unwrap_err();
            assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
            for n in 0..BATCH + 1 {
                peer.send_to(&vec![1; n], ("127.0.0.1", port)).unwrap();
            }
            for expected in [BATCH, 1] {
                inbox.filled.clear();
                wire.receive(&socket, &mut inbox).unwrap();
                assert_eq!(inbox.filled.len(), expected);
                assert_eq!(inbox.filled[0].0.from, peer.local_addr().unwrap());
            }
            assert_eq!(inbox.filled[0].1, BATCH);
            let to = peer.local_addr().unwrap();
            let queue = VecDeque::from([Outgoing { to, local: None, ssrc: 0, data: b"down".to_vec() }]);
            assert_eq!(wire.send(&socket, &queue).unwrap(), 1);
            assert_eq!(peer.recv_from(&mut [0; 16]).unwrap().0, 4);
        }
    }
}
