use super::*;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket as Peer};
use std::time::{Duration, Instant};

const SSRC: u32 = 7;

/// A blocking socket of a peer, with a read timeout.
fn peer(addr: &str) -> Peer {
    let peer = Peer::bind(addr).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // Enough for more than a full queue.
    socket2::SockRef::from(&peer).set_recv_buffer_size(1 << 20).unwrap();
    peer
}

fn bind(addr: &str) -> (AudioSocket, u16) {
    let datagrams = AudioSocket::bind(addr.parse().unwrap()).unwrap();
    let port = datagrams.local_addr().unwrap().port();
    (datagrams, port)
}

/// A copy of the next batch.
fn receive(datagrams: &mut AudioSocket) -> Vec<(DatagramInfo, Vec<u8>)> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match datagrams.receive() {
            Ok(count) => {
                return (0..count)
                    .map(|i| {
                        let (info, data) = datagrams.datagram(i);
                        (info, data.to_vec())
                    })
                    .collect();
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        assert!(Instant::now() < deadline, "no datagram arrived");
        std::thread::yield_now();
    }
}

fn queue(datagrams: &mut AudioSocket, to: SocketAddr, local: Option<IpAddr>, data: &[u8]) {
    datagrams.queue(to, local, SSRC).unwrap().extend_from_slice(data);
}

#[test]
fn a_burst_comes_in_full_batches_in_order() {
    let (mut datagrams, port) = bind("127.0.0.1:0");
    assert_eq!(datagrams.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let peer = peer("127.0.0.1:0");
    for n in 0..70u8 {
        peer.send_to(&vec![n; usize::from(n)], ("127.0.0.1", port)).unwrap();
    }
    let mut all = Vec::new();
    let mut batches = Vec::new();
    while all.len() < 70 {
        let batch = receive(&mut datagrams);
        batches.push(batch.len());
        all.extend(batch);
    }
    assert_eq!(batches[..2], [BATCH, BATCH]);
    for (n, (info, data)) in all.into_iter().enumerate() {
        // The first is empty, which must not end the batch.
        assert_eq!(data, vec![n as u8; n]);
        assert_eq!(info.from, peer.local_addr().unwrap());
    }
    assert_eq!(datagrams.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!(datagrams.receive_errors(), 0);
}

#[test]
fn an_oversized_datagram_is_cut_and_its_neighbours_are_not() {
    let (mut datagrams, port) = bind("127.0.0.1:0");
    let peer = peer("127.0.0.1:0");
    for len in [100, BUFFER - 1, BUFFER + 1, 9_000, 3] {
        peer.send_to(&vec![1; len], ("127.0.0.1", port)).unwrap();
    }
    let mut all = Vec::new();
    while all.len() < 5 {
        all.extend(receive(&mut datagrams).into_iter().map(|(_, data)| data.len()));
    }
    assert_eq!(all, [100, BUFFER - 1, BUFFER, BUFFER, 3]);
}

#[test]
fn received_datagrams_can_be_changed_in_place() {
    let (mut datagrams, port) = bind("127.0.0.1:0");
    peer("127.0.0.1:0").send_to(b"abc", ("127.0.0.1", port)).unwrap();
    receive(&mut datagrams);
    datagrams.datagram(0).1.reverse();
    assert_eq!(datagrams.datagram(0).1, b"cba");
}

#[test]
fn what_is_queued_arrives_in_order_and_buffers_are_used_again() {
    let (mut datagrams, _) = bind("127.0.0.1:0");
    let peer = peer("127.0.0.1:0");
    let to = peer.local_addr().unwrap();
    for round in 0..3u8 {
        for n in 0..40 {
            queue(&mut datagrams, to, None, &[round, n]);
        }
        assert_eq!(datagrams.queued(), 40);
        assert_eq!(datagrams.flush(), Flushed { sent: 40, failed: 0, blocked: false });
        assert_eq!(datagrams.queued(), 0);
        let mut buffer = [0; 16];
        for n in 0..40 {
            let (len, _) = peer.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..len], [round, n]);
        }
    }
    assert_eq!(datagrams.spare.len(), 40);
}

#[test]
fn one_bad_target_does_not_disturb_the_others() {
    let (mut datagrams, _) = bind("127.0.0.1:0");
    let peer = peer("127.0.0.1:0");
    let to = peer.local_addr().unwrap();
    // A port where nobody listens: the ICMP error must not affect later datagrams.
    let closed = Peer::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let bad = ["127.0.0.1:0", "255.255.255.255:9", "[::1]:9"].map(|addr| addr.parse::<SocketAddr>().unwrap());
    for round in 0..10u8 {
        queue(&mut datagrams, closed, None, b"x");
        queue(&mut datagrams, to, None, &[round, 0]);
        queue(&mut datagrams, bad[usize::from(round) % bad.len()], None, b"x");
        queue(&mut datagrams, to, None, &vec![0; 70_000]);
        queue(&mut datagrams, to, None, &[round, 1]);
    }
    assert_eq!(datagrams.flush(), Flushed { sent: 30, failed: 20, blocked: false });
    let mut buffer = [0; 16];
    for round in 0..10 {
        for half in 0..2 {
            let (len, _) = peer.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..len], [round, half]);
        }
    }
    assert_eq!(datagrams.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(datagrams.spare.iter().all(|data| data.capacity() <= BUFFER), "a large buffer was not freed");
}

#[test]
fn a_long_queue_is_sent_in_between_and_only_a_full_socket_refuses() {
    let (mut datagrams, _) = bind("127.0.0.1:0");
    let peer = peer("127.0.0.1:0");
    let to = peer.local_addr().unwrap();
    let mut buffer = [0; 16];
    for _ in 0..QUEUE + 1 {
        queue(&mut datagrams, to, None, b"x");
    }
    assert_eq!(datagrams.queued(), 1);
    assert_eq!(datagrams.flush(), Flushed { sent: QUEUE + 1, failed: 0, blocked: false });
    for _ in 0..QUEUE + 1 {
        peer.recv_from(&mut buffer).unwrap();
    }
    // A loopback socket is never full, so the test pretends it.
    datagrams.flushed.blocked = true;
    for n in 0..QUEUE {
        queue(&mut datagrams, to, None, &[n as u8]);
    }
    assert!(datagrams.queue(to, None, SSRC).is_none());
    assert_eq!(datagrams.queued(), QUEUE);
    assert_eq!(datagrams.flush(), Flushed { sent: QUEUE, failed: 0, blocked: false });
    peer.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer[0], 0, "the newest are the ones refused");
}

#[test]
fn the_queued_datagrams_of_one_call_can_be_dropped() {
    let (mut datagrams, _) = bind("127.0.0.1:0");
    let peer = peer("127.0.0.1:0");
    let to = peer.local_addr().unwrap();
    for ssrc in [1, 2, 1, 3, 1, 2] {
        datagrams.queue(to, None, ssrc).unwrap().push(ssrc as u8);
    }
    assert_eq!(datagrams.drop_queued(1), 3);
    assert_eq!(datagrams.drop_queued(1), 0);
    assert_eq!(datagrams.flush().sent, 3);
    let mut buffer = [0; 16];
    for expected in [2, 3, 2] {
        assert_eq!(peer.recv_from(&mut buffer).unwrap().0, 1);
        assert_eq!(buffer[0], expected);
    }
}

#[test]
fn an_ipv6_socket_serves_both_and_shows_ipv4_as_such() {
    let Ok(mut datagrams) = AudioSocket::bind((Ipv6Addr::UNSPECIFIED, 0).into()) else {
        return; // A machine without IPv6.
    };
    let port = datagrams.local_addr().unwrap().port();
    for (address, target) in
        [("127.0.0.1:0", IpAddr::V4(Ipv4Addr::LOCALHOST)), ("[::1]:0", Ipv6Addr::LOCALHOST.into())]
    {
        let Ok(peer) = Peer::bind(address) else { continue };
        peer.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        peer.send_to(b"up", (target, port)).unwrap();
        let (info, data) = receive(&mut datagrams).remove(0);
        assert_eq!((info.from, data), (peer.local_addr().unwrap(), b"up".to_vec()));
        for local in [info.local, None] {
            queue(&mut datagrams, info.from, local, b"down");
            assert_eq!(datagrams.flush(), Flushed { sent: 1, failed: 0, blocked: false });
            let (len, from) = peer.recv_from(&mut [0; 16]).unwrap();
            assert_eq!((len, from), (4, (target, port).into()));
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[test]
fn replies_leave_from_the_address_that_the_device_sent_to() {
    for bound in ["0.0.0.0:0", "[::]:0"] {
        let Ok(mut datagrams) = AudioSocket::bind(bound.parse().unwrap()) else { continue };
        let port = datagrams.local_addr().unwrap().port();
        let peer = peer("127.0.0.1:0");
        let local: Vec<IpAddr> = (2..6).map(|n| Ipv4Addr::new(127, 0, 0, n).into()).collect();
        // In one batch, some of them twice in a row.
        for ip in &local {
            peer.send_to(b"up", (*ip, port)).unwrap();
            peer.send_to(b"up", (*ip, port)).unwrap();
        }
        let mut all = Vec::new();
        while all.len() < 2 * local.len() {
            all.extend(receive(&mut datagrams));
        }
        for (i, (info, _)) in all.iter().enumerate() {
            assert_eq!(info.local, Some(local[i / 2]), "at {bound}");
            queue(&mut datagrams, info.from, info.local, b"down");
        }
        assert_eq!(datagrams.flush(), Flushed { sent: 2 * local.len(), failed: 0, blocked: false });
        for i in 0..2 * local.len() {
            let (_, from) = peer.recv_from(&mut [0; 16]).unwrap();
            assert_eq!(from, (local[i / 2], port).into(), "at {bound}");
        }
    }
}

#[test]
fn an_address_that_is_not_ours_falls_back_to_the_routes_choice() {
    for bound in ["0.0.0.0:0", "[::]:0"] {
        let Ok(mut datagrams) = AudioSocket::bind(bound.parse().unwrap()) else { continue };
        let peer = peer("127.0.0.1:0");
        for local in ["198.51.100.1", "2001:db8::1"] {
            queue(&mut datagrams, peer.local_addr().unwrap(), Some(local.parse().unwrap()), b"down");
            queue(&mut datagrams, peer.local_addr().unwrap(), None, b"after");
        }
        assert_eq!(datagrams.flush(), Flushed { sent: 4, failed: 0, blocked: false });
        for expected in [4, 5, 4, 5] {
            let (len, from) = peer.recv_from(&mut [0; 16]).unwrap();
            assert_eq!((len, from.ip()), (expected, Ipv4Addr::LOCALHOST.into()));
        }
    }
}

#[test]
fn a_port_in_use_is_an_error() {
    let (_datagrams, port) = bind("127.0.0.1:0");
    let error = AudioSocket::bind((Ipv4Addr::LOCALHOST, port).into()).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
}
