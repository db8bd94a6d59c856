//! New connections on the MQTT ports.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::{info, warn};
use mio::Interest;
use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::admin::recent_errors::RecentErrorKind;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::{self, Role, SessionId};
use crate::net::gateway::workers::HandOff;
use crate::net::gateway::{Gateway, TimerKind};
use crate::net::mqtt::connection::MqttConnection;
use crate::net::mqtt::transport::Transport;
use crate::session::Core;

/// Connections accepted at a time, when all devices come back at once.
const ACCEPT_BUDGET: usize = 16;
/// Connections beyond `max_connections` that may be on their way in or out.
const EXTRA_CONNECTIONS: usize = 512;
/// Connections beyond `max_connections_per_ip` that may wait to tell who they are: a device that comes back before its old
/// connection is known to be dead takes that one's place.
pub(in crate::net) const EXTRA_PER_ADDRESS: usize = 8;
/// Connections the system keeps for us while we are busy: a power cut brings all devices back at once.
const BACKLOG: i32 = 4096;
/// What is accepted has the options of the listener: five system calls less for each device.
const OPTIONS_ARE_INHERITED: bool = cfg!(target_os = "linux");
/// How long accepting pauses when descriptors ran out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Where a connection comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::net) enum ListenerKind {
    /// `mqtt.port`.
    Plain,
    /// `mqtt.tls.port`.
    Tls,
}

/// A non-blocking listener, for IPv4 too when the address is `[::]`. A shared one is one of several on the same port,
/// among which the system spreads connections.
pub(in crate::net) fn listen(addr: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    // On Windows the option would let two programs share the port.
    #[cfg(not(windows))]
    socket.set_reuse_address(true)?;
    #[cfg(unix)]
    socket.set_reuse_port(shared)?;
    #[cfg(windows)]
    if shared {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "Windows does not share a port: set `workers` to 1",
        ));
    }
    socket.set_nonblocking(true)?;
    if OPTIONS_ARE_INHERITED {
        set_options(&socket);
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// How many connections each address has, at all workers together; counted only while `max_connections_per_ip` is set.
#[derive(Clone, Default)]
pub(in crate::net) struct ConnectionsByAddress(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection in the count of its address, for as long as this exists: whoever drops the connection need not remember
/// to give it back.
pub(in crate::net) struct Counted {
    counts: ConnectionsByAddress,
    ip: IpAddr,
}

impl ConnectionsByAddress {
    pub(in crate::net) fn of(&self, ip: IpAddr) -> usize {
        self.locked().get(&ip).copied().unwrap_or_default()
    }

    /// Counts one more connection of this address.
    pub(in crate::net) fn count(&self, ip: IpAddr) -> Box<Counted> {
        *self.locked().entry(ip).or_default() += 1;
        Box::new(Counted { counts: self.clone(), ip })
    }

    /// Counts are right after every change, so those of a worker that panicked are too.
    fn locked(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.counts.locked().entry(self.ip) {
            match entry.get() {
                1 => drop(entry.remove()),
                _ => *entry.get_mut() -= 1,
            }
        }
    }
}

impl Gateway {
    pub(in crate::net) fn accept(&mut self, door: ListenerKind) {
        for _ in 0..ACCEPT_BUDGET {
            if !self.accepting {
                return;
            }
            let listener = match door {
                ListenerKind::Plain => self.listener.as_ref(),
                ListenerKind::Tls => self.tls_listener.as_ref().map(|door| &door.listener),
            };
            match listener.map_or(Err(ErrorKind::WouldBlock.into()), TcpListener::accept) {
                Ok((tcp, peer)) => {
                    if std::mem::take(&mut self.accept_failing) {
                        info!("connections are accepted again");
                    }
                    self.on_accepted(tcp, peer, door);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The peer left while it waited; the next one may still be there.
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    // Out of descriptors: those who wait bring no further edge, so the wheel does.
                    if !std::mem::replace(&mut self.accept_failing, true) {
                        let sentence = format!(
                            "cannot accept connections: {error}; trying again every {} ms",
                            ACCEPT_RETRY.as_millis()
                        );
                        warn!("{sentence}");
                        self.admin.record_error(RecentErrorKind::AcceptFailed, None, &sentence);
                    }
                    self.accepting = false;
                    self.timers.arm(self.now + ACCEPT_RETRY, TimerKind::Accept);
                    return;
                }
            }
        }
        self.run_queue.push(Task::Accept(door));
    }

    pub(in crate::net) fn resume_accepting(&mut self) {
        if !self.draining && !self.is_stopping() {
            self.accepting = true;
            for door in [ListenerKind::Plain, ListenerKind::Tls] {
                self.run_queue.push(Task::Accept(door));
            }
        }
    }

    fn on_accepted(&mut self, tcp: TcpStream, peer: SocketAddr, door: ListenerKind) {
        self.metrics.connections += 1;
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let limit = self.config.mqtt.max_connections_per_ip;
        let proxied = self.config.mqtt.proxy_protocol_from.iter().any(|network| network.contains(peer.ip()));
        // A balancer may have many; its clients are counted when it has named them.
        let crowded =
            limit > 0 && !proxied && self.connections_by_address.of(peer.ip()) >= limit + EXTRA_PER_ADDRESS;
        let full = self.sessions.len() >= self.config.mqtt.max_connections + EXTRA_CONNECTIONS;
        if crowded || (full && !self.evict_oldest_unauthenticated()) {
            self.metrics.turned_away += 1;
            return;
        }
        if !OPTIONS_ARE_INHERITED {
            set_options(&SockRef::from(&tcp));
        }
        let secured = door == ListenerKind::Tls;
        if secured {
            self.limit_handshakes();
        }
        let device = MqttConnection::new(Transport::new(tcp, proxied, secured), peer.port());
        let id = self.register(device, peer.ip());
        self.handshakes.extend(id.filter(|_| secured));
    }

    /// Makes a session of a connection that still owes its CONNECT.
    pub(in crate::net) fn register(&mut self, mut device: MqttConnection, ip: IpAddr) -> Option<SessionId> {
        let token = token::token(Role::Device, self.sessions.next_slot());
        let both = Interest::READABLE | Interest::WRITABLE;
        let tcp = device.transport.tcp_mut()?;
        if let Err(error) = self.poll.registry().register(tcp, token, both) {
            warn!("[{ip}] cannot register: {error}");
            return None;
        }
        let limited = self.config.mqtt.max_connections_per_ip > 0;
        // One that another worker accepted is counted already.
        if limited && device.counted.is_none() {
            device.counted = Some(self.connections_by_address.count(ip));
        }
        let id = self.sessions.insert(Core::new(ip, self.now), Some(device), None);
        self.unauthenticated.push_back(id);
        while self.unauthenticated.front().is_some_and(|id| !self.is_unauthenticated(*id)) {
            self.unauthenticated.pop_front();
        }
        self.arm_session_timer(id);
        Some(id)
    }

    /// Takes in a connection that another worker accepted.
    pub(in crate::net) fn accept_hand_off(&mut self, adopted: HandOff) {
        if self.is_stopping() || self.draining {
            return;
        }
        if let Some(mut id) = self.register(adopted.device, adopted.ip) {
            self.on_device_bytes(&mut id, &adopted.bytes, Vec::new());
            self.run_queue.push(Task::Device(id));
        }
    }

    /// Makes room among connections that say nothing: the one that has had the most time for its CONNECT goes, so that
    /// idle connections shut no device out. False when there is none.
    fn evict_oldest_unauthenticated(&mut self) -> bool {
        while let Some(id) = self.unauthenticated.pop_front() {
            if self.is_unauthenticated(id) {
                self.metrics.turned_away += 1;
                self.drive(id, Core::on_connection_lost);
                self.drop_device(id);
                return true;
            }
        }
        false
    }

    fn is_unauthenticated(&self, id: SessionId) -> bool {
        self.sessions.get(id).is_some_and(|session| session.mqtt.is_some() && session.core.awaits_connect())
    }

    /// Counts the connections of each address, or no longer, after a reload that may have set or unset the limit.
    pub(in crate::net) fn recount_addresses(&mut self) {
        let limited = self.config.mqtt.max_connections_per_ip > 0;
        for session in self.sessions.iter_mut() {
            let Some(device) = session.mqtt.as_mut().filter(|device| !device.closing) else { continue };
            if !limited {
                device.counted = None;
            } else if device.counted.is_none() {
                device.counted = Some(self.connections_by_address.count(session.core.ip()));
            }
        }
    }
}

/// A connection without these options still works.
fn set_options(socket: &Socket) {
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive());
}

/// Finds devices that vanished without a word while their keep alive is long or none.
fn keepalive() -> TcpKeepalive {
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10));
    #[cfg(not(any(windows, target_os = "openbsd")))]
    let keepalive = keepalive.with_retries(3);
    keepalive
}
