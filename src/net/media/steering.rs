//! One UDP port for several event loops. Each loop has a socket of its own on that port, and the system gives a datagram to
//! the socket that its ssrc selects: `ssrc mod places` is the number of the socket (SO_ATTACH_REUSEPORT_CBPF of socket(7)).
//! So a datagram reaches the loop of its call without passing through another one.
//!
//! There are places for [`GENERATIONS`] generations of processes: after an upgrade in place, calls of the process that was replaced
//! still have its ssrcs, and their datagrams still reach its sockets.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use socket2::Socket;

use super::socket::open;

/// How many processes may have calls at the same time: the one that serves, and those that were replaced and finish theirs.
pub(crate) const GENERATIONS: u32 = 16;

/// Which ssrcs belong to one loop: those whose remainder by `places` is `place`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SsrcShare {
    pub(crate) place: u32,
    pub(crate) places: u32,
}

/// The sockets of one port, and who has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Steering {
    /// How many loops each generation has.
    pub(crate) workers: u32,
    /// The generation that gets what belongs to no call.
    pub(crate) newest: u32,
    /// Which generations have calls, including the newest.
    pub(crate) alive: [bool; GENERATIONS as usize],
}

#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
/// The UDP port of all processes, as the leader of one of them has it.
pub(crate) struct SharedPort {
    /// The address in the configuration; its port may be 0.
    pub(crate) configured: SocketAddr,
    pub(crate) steering: Steering,
    /// By place: the sockets that no worker of this process has.
    pub(crate) others: BTreeMap<u32, Socket>,
}

impl SsrcShare {
    /// Of a loop that is alone.
    pub(crate) const ALL: Self = Self { place: 0, places: 1 };

    /// An ssrc of this loop, from a random number; none when that is too close to the largest number.
    pub(crate) fn ssrc(self, random: u32) -> Option<u32> {
        (random - random % self.places).checked_add(self.place)
    }
}

impl Steering {
    /// Of the first generation.
    pub(crate) fn first(workers: usize) -> Self {
        Self { workers: workers as u32, newest: 0, alive: std::array::from_fn(|n| n == 0) }
    }

    /// The number of sockets that the port can have.
    pub(crate) fn places(&self) -> u32 {
        self.workers * GENERATIONS
    }

    /// The ssrcs of a worker of the newest generation.
    pub(crate) fn share(&self, worker: usize) -> SsrcShare {
        SsrcShare { place: self.newest * self.workers + worker as u32, places: self.places() }
    }

    /// Has the system give datagrams to the sockets by this plan, from the next datagram on. `socket` is any socket of the port, or
    /// one that is not bound yet and becomes the port's first.
    ///
    /// # Errors
    /// When the system has no such selection.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(crate) fn attach(&self, socket: &impl std::os::fd::AsFd) -> io::Result<()> {
        use nix::sys::socket::{setsockopt, sockopt};

        let mut filter = self.program();
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        Ok(setsockopt(socket, sockopt::AttachReusePortCbpf, &program)?)
    }

    /// The program that returns the number of the socket. Sockets are numbered in the order of their bind(2).
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn program(&self) -> Vec<libc::sock_filter> {
        use libc::{
            BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_LEN, BPF_MOD, BPF_RET,
            BPF_W,
        };

        let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let first_of = |generation: u32| generation * self.workers;
        let mut program = vec![
            // The program sees the payload. One without an ssrc goes to the newest generation.
            step(BPF_LD | BPF_W | BPF_LEN, 0, 0, 0),
            step(BPF_JMP | BPF_JGE | BPF_K, 1, 0, super::socket::SSRC_END as u32),
            step(BPF_RET | BPF_K, 0, 0, first_of(self.newest)),
            step(BPF_LD | BPF_W | BPF_ABS, 0, 0, super::socket::SSRC_START as u32),
            step(BPF_ALU | BPF_MOD | BPF_K, 0, 0, self.places()),
        ];
        let earlier = (0..GENERATIONS).zip(self.alive).filter(|(of, alive)| *alive && *of != self.newest);
        for (generation, _) in earlier {
            program.extend([
                step(BPF_JMP | BPF_JGE | BPF_K, 0, 2, first_of(generation)),
                step(BPF_JMP | BPF_JGE | BPF_K, 1, 0, first_of(generation + 1)),
                step(BPF_RET | BPF_A, 0, 0, 0),
            ]);
        }
        program.extend([
            // The places of a generation begin at a multiple of the number of workers, so this is the worker.
            step(BPF_ALU | BPF_MOD | BPF_K, 0, 0, self.workers),
            step(BPF_ALU | BPF_ADD | BPF_K, 0, 0, first_of(self.newest)),
            step(BPF_RET | BPF_A, 0, 0, 0),
        ]);
        program
    }
}

/// Opens the first sockets of a port, one for each worker. A port that another program has, another gateway included, is in use.
/// Where the system cannot select sockets by ssrc, one worker gets a socket without selection; several are refused.
///
/// # Errors
/// Those of socket(2) and bind(2), and Unsupported when several workers cannot share the port.
pub(crate) fn open_first(addr: SocketAddr, workers: usize) -> io::Result<(Vec<Socket>, Option<Steering>)> {
    let steering = Steering::first(workers);
    // A socket with a program of its own cannot join the sockets of another program, so that this also finds out whether the port
    // is free.
    match open(addr, |socket| prepare_first(socket, &steering)) {
        Ok(first) => {
            let bound = first.local_addr()?.as_socket().unwrap_or(addr);
            let mut sockets = vec![first];
            for _ in 1..workers {
                sockets.push(open_next(bound)?);
            }
            Ok((sockets, Some(steering)))
        }
        Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(error),
        Err(_) if workers == 1 => Ok((vec![open(addr, |_| Ok(()))?], None)),
        Err(error) => Err(error),
    }
}

/// Opens the next socket of a port that has one.
///
/// # Errors
/// Those of socket(2) and bind(2).
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn open_next(addr: SocketAddr) -> io::Result<Socket> {
    open(addr, |socket| socket.set_reuse_port(true))
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn prepare_first(socket: &Socket, steering: &Steering) -> io::Result<()> {
    socket.set_reuse_port(true)?;
    steering.attach(socket).map_err(unsupported)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn open_next(_: SocketAddr) -> io::Result<Socket> {
    Err(unsupported(io::ErrorKind::Unsupported.into()))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn prepare_first(_: &Socket, _: &Steering) -> io::Result<()> {
    Err(unsupported(io::ErrorKind::Unsupported.into()))
}

fn unsupported(error: io::Error) -> io::Error {
    let why = format!("several workers cannot share it on this system ({error}): set `workers` to 1");
    io::Error::new(io::ErrorKind::Unsupported, why)
}

#[cfg(test)]
#[cfg(any(target_os = "linux", target_os = "android"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashMap;
    use std::io::ErrorKind;
    use std::net::UdpSocket;

    use super::*;

    /// Sends one datagram for each ssrc, and returns which socket received it.
    fn received(
        sockets: &[UdpSocket],
        datagrams: impl IntoIterator<Item = Vec<u8>>,
    ) -> HashMap<Vec<u8>, usize> {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = sockets[0].local_addr().unwrap().port();
        // On loopback a datagram is in the receiver's queue when send(2) returns.
        for data in datagrams {
            peer.send_to(&data, ("127.0.0.1", port)).unwrap();
        }
        let mut all = HashMap::new();
        for (n, socket) in sockets.iter().enumerate() {
            let mut buffer = [0; 64];
            while let Ok(len) = socket.recv(&mut buffer) {
                all.insert(buffer[..len].to_vec(), n);
            }
        }
        all
    }

    fn datagram(ssrc: u32) -> Vec<u8> {
        [&[1, 0, 0, 0][..], &ssrc.to_be_bytes(), &[0; 8]].concat()
    }

    fn open_port(addr: &str, workers: usize) -> (Vec<UdpSocket>, Steering) {
        let (sockets, steering) = open_first(addr.parse().unwrap(), workers).unwrap();
        (sockets.into_iter().map(UdpSocket::from).collect(), steering.unwrap())
    }

    fn add_generations(sockets: &mut Vec<UdpSocket>, steering: &Steering) {
        let addr = sockets[0].local_addr().unwrap();
        while sockets.len() < steering.places() as usize {
            sockets.push(open_next(addr).unwrap().into());
        }
    }

    #[test]
    fn each_ssrc_reaches_the_loop_that_chose_it() {
        for addr in ["127.0.0.1:0", "[::]:0"] {
            for workers in [1, 2, 3] {
                let (sockets, steering) = open_port(addr, workers);
                let shares: Vec<_> = (0..workers).map(|worker| steering.share(worker)).collect();
                let ssrcs =
                    |share: SsrcShare| [7, 1 << 31, u32::MAX - 64].map(|random| share.ssrc(random).unwrap());
                let sent = shares.iter().flat_map(|share| ssrcs(*share)).map(datagram);
                let received = received(&sockets, sent);
                for (worker, share) in shares.iter().enumerate() {
                    assert!(
                        ssrcs(*share).iter().all(|ssrc| received[&datagram(*ssrc)] == worker),
                        "{addr} {received:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_datagrams_of_each_living_generation_stay_with_it_and_all_others_reach_the_newest() {
        for workers in [1, 3] {
            let (mut sockets, first) = open_port("127.0.0.1:0", workers);
            add_generations(&mut sockets, &first);
            let places = first.places();
            let sent =
                || (0..places).map(|place| datagram(1000 * places + place)).chain([vec![], vec![1; 7]]);
            let before = received(&sockets, sent());
            assert!(before.values().all(|n| *n < workers), "others join without getting any: {before:?}");
            let all: Vec<u32> = (0..GENERATIONS).collect();
            for (newest, living) in
                [(1, &[0, 1][..]), (2, &[0, 1, 2]), (9, &[2, 9]), (0, &[15, 0]), (15, &all)]
            {
                let alive = std::array::from_fn(|n| living.contains(&(n as u32)));
                let steering = Steering { workers: workers as u32, newest, alive };
                steering.attach(&sockets[0]).unwrap();
                let received = received(&sockets, sent());
                for place in 0..places {
                    let (generation, worker) = (place / workers as u32, place % workers as u32);
                    let owner = if alive[generation as usize] { generation } else { newest };
                    let expected = (owner * workers as u32 + worker) as usize;
                    assert_eq!(
                        received[&datagram(1000 * places + place)],
                        expected,
                        "{steering:?} place {place}"
                    );
                }
                assert_eq!(received[&vec![1; 7]], newest as usize * workers, "too short for an ssrc");
            }
        }
    }

    #[test]
    fn a_port_of_another_gateway_or_program_is_in_use() {
        let (sockets, _) = open_port("127.0.0.1:0", 2);
        let taken = sockets[0].local_addr().unwrap();
        let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
        for (addr, workers) in [(taken, 1), (taken, 2), (plain.local_addr().unwrap(), 1)] {
            let error = open_first(addr, workers).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AddrInUse, "{error}");
        }
        assert_eq!(UdpSocket::bind(taken).unwrap_err().kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn a_share_has_only_its_own_ssrcs() {
        let share = SsrcShare { place: 5, places: 12 };
        for random in [0, 1, 11, 12, 0x8000_0000, u32::MAX - 12] {
            assert_eq!(share.ssrc(random).unwrap() % 12, 5);
        }
        assert_eq!(SsrcShare { place: 11, places: 12 }.ssrc(u32::MAX), None, "it would be beyond 32 bits");
        assert_eq!(SsrcShare::ALL.ssrc(77), Some(77));
    }
}
