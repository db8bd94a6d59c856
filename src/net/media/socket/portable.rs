//! Sends and receives datagrams one by one, where nix has no calls for batches. Their local addresses are unknown.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, SocketAddrV6};

use mio::net::UdpSocket;

use super::{BATCH, DatagramInfo, Outgoing, ReceiveBatch};

/// The domain of the socket.
pub(super) struct BatchIo {
    ipv6: bool,
}

impl BatchIo {
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(super) fn set_options(_: &socket2::Socket, _: SocketAddr) {}

    pub(super) fn new(ipv6: bool) -> Self {
        Self { ipv6 }
    }

    /// Fills the rest of the batch.
    pub(super) fn receive(&mut self, socket: &UdpSocket, batch: &mut ReceiveBatch) -> io::Result<()> {
        while batch.filled.len() < BATCH {
            match socket.recv_from(batch.buffer(batch.filled.len())) {
                // A datagram that fills the buffer may have been longer. No valid packet does.
                Ok((len, from)) => batch.filled.push((DatagramInfo::new(from, None), len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !batch.filled.is_empty() => break,
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
            let mut batch_io = BatchIo::new(bound.starts_with('['));
            let socket = UdpSocket::from_std(socket);
            let peer = Peer::bind("127.0.0.1:0").unwrap();
            let mut batch = ReceiveBatch::new();
            let empty = batch_io.receive(&socket, &mut batch).unwrap_err();
            assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
            for n in 0..BATCH + 1 {
                peer.send_to(&vec![1; n], ("127.0.0.1", port)).unwrap();
            }
            for expected in [BATCH, 1] {
                batch.filled.clear();
                batch_io.receive(&socket, &mut batch).unwrap();
                assert_eq!(batch.filled.len(), expected);
                assert_eq!(batch.filled[0].0.from, peer.local_addr().unwrap());
            }
            assert_eq!(batch.filled[0].1, BATCH);
            let to = peer.local_addr().unwrap();
            let queue = VecDeque::from([Outgoing { to, local: None, ssrc: 0, data: b"down".to_vec() }]);
            assert_eq!(batch_io.send(&socket, &queue).unwrap(), 1);
            assert_eq!(peer.recv_from(&mut [0; 16]).unwrap().0, 4);
        }
    }
}
