//! The MQTT listeners, and the limits of connections that have not sent CONNECT yet.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};

use log::{info, warn};
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry};

use crate::config::Config;
use crate::net::error::BindError;
use crate::net::event_loop::io::{Io, TimerKind};
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::tcp::{self, ACCEPT_RETRY};
use crate::net::event_loop::token::{self, ListenerKind, MQTT, MQTTS, Role, SessionId};
use crate::net::log_limiter::LogLimiter;
use crate::net::mqtt::auth_throttle::AuthThrottle;
use crate::net::mqtt::connection::MqttConnection;
use crate::net::mqtt::connections_by_address::ConnectionsByAddress;
use crate::net::mqtt::tls_listener::TlsListener;
use crate::net::mqtt::transport::Transport;
use crate::net::sessions::table::Sessions;
use crate::proto::address_key::AddressKey;
use crate::session::Core;

/// How many connections beyond `max_connections` may exist, to log in or to close.
const EXTRA_CONNECTIONS: usize = 512;
/// How many connections beyond `max_connections_per_ip` may exist, to log in: a device may reconnect before its old
/// connection is known to be dead, and replaces that one when it logs in.
pub(crate) const EXTRA_PER_ADDRESS: usize = 8;

/// The MQTT listeners, plain and TLS, and what limits their connections.
pub(crate) struct Listeners {
    /// None while draining, so that a load balancer finds the port closed, and with `mqtt.plain: false`.
    plain: Option<TcpListener>,
    pub(crate) tls: Option<TlsListener>,
    pub(crate) by_address: ConnectionsByAddress,
    pub(crate) auth_throttle: AuthThrottle,
    /// Limits log lines about refused logins and connections, by address; an IPv6 /64 is one address.
    pub(crate) refusal_log: LogLimiter<AddressKey>,
    /// Limits log lines about failed TLS handshakes.
    pub(crate) tls_failure_log: LogLimiter<()>,
    /// Connections, oldest first. Those that have logged in or closed are removed when they reach the front.
    unauthenticated: VecDeque<SessionId>,
    /// TLS connections, oldest first. Some may have finished their handshake or closed.
    handshakes: VecDeque<SessionId>,
    accepting: bool,
    /// Accepting has failed, which was logged.
    accept_failing: bool,
}

/// The result of one attempt to accept a connection.
pub(crate) enum Accepted {
    /// A connection was accepted, or refused. To make room for it, these must be closed.
    Connection { evicted: Vec<SessionId> },
    /// No more connections are waiting, or accepting is paused.
    Nothing,
    /// Accepting has begun to fail, and why. A timer retries it.
    Failed(String),
}

impl Listeners {
    /// Opens the configured ports. Every worker can open the same `shared` ports.
    ///
    /// # Errors
    /// A port that cannot be opened, or a certificate that cannot be used.
    pub(crate) fn bind(config: &Config, shared: bool) -> Result<Self, BindError> {
        let addr = SocketAddr::new(config.mqtt.host, config.mqtt.port);
        let listen = |addr| tcp::listen(addr, shared).map_err(|error| BindError::Port("MQTT", addr, error));
        Ok(Self {
            plain: config.mqtt.plain.then(|| listen(addr)).transpose()?,
            tls: TlsListener::open(config.mqtt.host, &config.mqtt.tls, shared)?,
            by_address: ConnectionsByAddress::default(),
            auth_throttle: AuthThrottle::default(),
            refusal_log: LogLimiter::every_ten_seconds(),
            tls_failure_log: LogLimiter::every_ten_seconds(),
            unauthenticated: VecDeque::new(),
            handshakes: VecDeque::new(),
            accepting: true,
            accept_failing: false,
        })
    }

    /// Registers both listeners with the poll.
    pub(crate) fn register(&mut self, registry: &Registry) -> io::Result<()> {
        let tls = self.tls.as_mut().map(|tls| &mut tls.listener);
        for (slot, listener) in [(MQTT, self.plain.as_mut()), (MQTTS, tls)] {
            if let Some(listener) = listener {
                registry.register(listener, token::fixed(slot), Interest::READABLE)?;
            }
        }
        Ok(())
    }

    /// The local addresses of the plain and of the TLS listener.
    pub(crate) fn local_addrs(&self) -> io::Result<(Option<SocketAddr>, Option<SocketAddr>)> {
        let addr = |listener: Option<&TcpListener>| listener.map(TcpListener::local_addr).transpose();
        Ok((addr(self.plain.as_ref())?, addr(self.tls.as_ref().map(|tls| &tls.listener))?))
    }

    /// Accepts at most one connection.
    pub(crate) fn accept(&mut self, kind: ListenerKind, sessions: &mut Sessions, io: &mut Io) -> Accepted {
        let listener = match kind {
            ListenerKind::Plain => self.plain.as_ref(),
            ListenerKind::Tls => self.tls.as_ref().map(|tls| &tls.listener),
        };
        let Some(listener) = listener.filter(|_| self.accepting) else { return Accepted::Nothing };
        match tcp::accept(listener) {
            Ok(Some((tcp, peer))) => {
                if std::mem::take(&mut self.accept_failing) {
                    info!("connections are accepted again");
                }
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                self.on_accepted(tcp, peer, kind, sessions, io)
            }
            Ok(None) => Accepted::Nothing,
            Err(error) if tcp::is_of_connection(&error) => Accepted::Connection { evicted: Vec::new() },
            Err(error) => {
                // Connections that are already waiting cause no further event, so a timer retries.
                self.accepting = false;
                io.timers.arm(io.now + ACCEPT_RETRY, TimerKind::Accept);
                if std::mem::replace(&mut self.accept_failing, true) {
                    return Accepted::Nothing;
                }
                let every_ms = ACCEPT_RETRY.as_millis();
                let message = format!("cannot accept connections: {error}; retrying every {every_ms} ms");
                warn!("{message}");
                Accepted::Failed(message)
            }
        }
    }

    fn on_accepted(
        &mut self,
        tcp: TcpStream,
        peer: SocketAddr,
        kind: ListenerKind,
        sessions: &mut Sessions,
        io: &mut Io,
    ) -> Accepted {
        io.metrics.connections += 1;
        let mut evicted = Vec::new();
        let mqtt = &io.config.mqtt;
        let limit = mqtt.max_connections_per_ip;
        let proxied = mqtt.proxy_protocol_from.iter().any(|network| network.contains(peer.ip()));
        // A load balancer may have many connections. Its clients are counted when the PROXY header has named them.
        let crowded = limit > 0 && !proxied && self.by_address.of(peer.ip()) >= limit + EXTRA_PER_ADDRESS;
        let full = sessions.without_lingering() >= mqtt.max_connections + EXTRA_CONNECTIONS;
        if full && !crowded {
            evicted.extend(self.pop_oldest_unauthenticated(sessions));
        }
        if crowded || (full && evicted.is_empty()) {
            io.metrics.turned_away += 1;
            return Accepted::Connection { evicted };
        }
        tcp::set_accepted_options(&tcp);
        let tls = kind == ListenerKind::Tls;
        if tls {
            self.limit_handshakes(sessions, io.config.mqtt.tls.max_handshakes, &mut evicted);
        }
        io.metrics.turned_away += evicted.len() as u64;
        let connection = MqttConnection::new(Transport::new(tcp, proxied, tls), peer.port());
        let id = self.add_connection(connection, peer.ip(), sessions, io);
        self.handshakes.extend(id.filter(|_| tls));
        Accepted::Connection { evicted }
    }

    /// Creates the session of a connection that has not sent CONNECT yet. None when registration with the poll fails.
    pub(crate) fn add_connection(
        &mut self,
        mut connection: MqttConnection,
        ip: IpAddr,
        sessions: &mut Sessions,
        io: &mut Io,
    ) -> Option<SessionId> {
        let token = token::token(Role::Device, sessions.next_slot());
        let tcp = connection.transport.tcp_mut()?;
        if let Err(error) = io.registry.register(tcp, token, Interest::READABLE | Interest::WRITABLE) {
            warn!("[{ip}] cannot register the connection with the poll: {error}");
            return None;
        }
        let limited = io.config.mqtt.max_connections_per_ip > 0;
        // A connection that another worker accepted is counted already.
        if limited && connection.counted.is_none() {
            connection.counted = Some(self.by_address.count(ip));
        }
        let id = sessions.insert(Core::new(ip, io.now), Some(connection), None);
        self.unauthenticated.push_back(id);
        while self.unauthenticated.front().is_some_and(|id| !sessions.is_unauthenticated(*id)) {
            self.unauthenticated.pop_front();
        }
        sessions.arm_timer(id, io);
        Some(id)
    }

    /// Removes the oldest connection without CONNECT, which is to be closed so that idle connections do not block devices.
    fn pop_oldest_unauthenticated(&mut self, sessions: &Sessions) -> Option<SessionId> {
        std::iter::from_fn(|| self.unauthenticated.pop_front()).find(|id| sessions.is_unauthenticated(*id))
    }

    /// Makes room for one more handshake: of `max` or more unfinished ones, evicts the oldest.
    fn limit_handshakes(&mut self, sessions: &Sessions, max: usize, evicted: &mut Vec<SessionId>) {
        if self.handshakes.len() < max {
            return;
        }
        self.handshakes.retain(|id| {
            let connection = sessions.get(*id).and_then(|session| session.mqtt.as_ref());
            connection.is_some_and(|connection| connection.transport.awaits_tls())
        });
        while self.handshakes.len() >= max
            && let Some(id) = self.handshakes.pop_front()
        {
            if !evicted.contains(&id) {
                evicted.push(id);
            }
        }
    }

    /// Whether connections are accepted.
    pub(crate) fn is_accepting(&self) -> bool {
        self.accepting
    }

    /// Accepts connections again, after accepting failed.
    pub(crate) fn resume(&mut self, io: &mut Io) {
        self.accepting = true;
        for kind in [ListenerKind::Plain, ListenerKind::Tls] {
            io.run_queue.push(Task::Accept(kind));
        }
    }

    /// Closes both ports.
    pub(crate) fn close(&mut self) {
        self.accepting = false;
        (self.plain, self.tls) = (None, None);
    }

    /// Stops accepting connections, without closing the ports.
    pub(crate) fn pause(&mut self, registry: &Registry) {
        self.accepting = false;
        let tls = self.tls.as_mut().map(|tls| &mut tls.listener);
        for listener in [self.plain.as_mut(), tls].into_iter().flatten() {
            let _ = registry.deregister(listener);
        }
    }

    /// Starts or stops counting the connections of each address, after a reload that may have set or removed the limit.
    pub(crate) fn recount(&self, sessions: &mut Sessions, limited: bool) {
        for session in sessions.iter_mut() {
            let ip = session.core.ip();
            let Some(connection) = session.mqtt.as_mut().filter(|connection| !connection.closing) else {
                continue;
            };
            if !limited {
                connection.counted = None;
            } else if connection.counted.is_none() {
                connection.counted = Some(self.by_address.count(ip));
            }
        }
    }

    /// Frees unused capacity.
    pub(crate) fn shrink(&mut self) {
        self.unauthenticated.shrink_to_fit();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream as Client};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::net::backend::connection::BackendConnection;
    use crate::session::DialRequest;

    fn listeners(change: impl FnOnce(&mut Config)) -> (Listeners, Sessions, Io) {
        let mut config = Config::default();
        (config.mqtt.host, config.mqtt.port) = (Ipv4Addr::LOCALHOST.into(), 0);
        change(&mut config);
        let listeners = Listeners::bind(&config, false).unwrap();
        (listeners, Sessions::default(), Io { config: Arc::new(config), ..Io::for_test() })
    }

    /// Connects and accepts; returns the client and the evicted sessions.
    fn accept(listeners: &mut Listeners, sessions: &mut Sessions, io: &mut Io) -> (Client, Vec<SessionId>) {
        let client = Client::connect(listeners.local_addrs().unwrap().0.unwrap()).unwrap();
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            match listeners.accept(ListenerKind::Plain, sessions, io) {
                Accepted::Connection { evicted } => return (client, evicted),
                Accepted::Nothing => assert!(Instant::now() < end, "no connection to accept"),
                Accepted::Failed(message) => panic!("{message}"),
            }
        }
    }

    #[test]
    fn at_the_limit_the_oldest_connection_before_login_is_evicted() {
        let (mut listeners, mut sessions, mut io) = listeners(|config| config.mqtt.max_connections = 1);
        for _ in 0..=EXTRA_CONNECTIONS {
            let core = Core::new(Ipv4Addr::LOCALHOST.into(), io.now);
            sessions.insert(core, None, None);
        }
        let (_client, evicted) = accept(&mut listeners, &mut sessions, &mut io);
        assert!(evicted.is_empty(), "none of the others is a connection, so the new one is closed");
        assert_eq!((io.metrics.connections, io.metrics.turned_away), (1, 1));
        io.config = Arc::new(Config {
            mqtt: crate::config::Mqtt { max_connections: 2, ..io.config.mqtt.clone() },
            ..Config::clone(&io.config)
        });
        let (_first, evicted) = accept(&mut listeners, &mut sessions, &mut io);
        assert!(evicted.is_empty());
        let (_second, evicted) = accept(&mut listeners, &mut sessions, &mut io);
        assert!(evicted.len() == 1 && sessions.is_unauthenticated(evicted[0]));
    }

    #[test]
    fn websockets_that_are_closing_take_no_place_of_a_device() {
        let (mut listeners, mut sessions, mut io) = listeners(|config| config.mqtt.max_connections = 1);
        for _ in 0..2 * EXTRA_CONNECTIONS {
            let request = Box::new(DialRequest {
                server: Arc::new("ws://a/".parse().unwrap()),
                mac: "02:00:00:00:00:01".parse().unwrap(),
                client_id: None,
                forwarded_for: Ipv4Addr::LOCALHOST.into(),
                protocol_version: 1,
                skip_dns_cache: false,
            });
            let mut core = Core::new(Ipv4Addr::LOCALHOST.into(), io.now);
            core.mark_closed();
            sessions.insert(core, None, Some(Box::new(BackendConnection::new(request))));
        }
        let (_first, evicted) = accept(&mut listeners, &mut sessions, &mut io);
        let (_second, evicted_then) = accept(&mut listeners, &mut sessions, &mut io);
        assert_eq!((evicted.len() + evicted_then.len(), io.metrics.turned_away), (0, 0));
        assert_eq!((sessions.len(), sessions.without_lingering()), (2 * EXTRA_CONNECTIONS + 2, 2));
        for id in sessions.ids() {
            sessions.live(id).unwrap().backend = None;
            sessions.reap_if_finished(id);
        }
        sessions.reap();
        assert_eq!((sessions.len(), sessions.without_lingering()), (2, 2));
    }

    #[test]
    fn a_crowded_address_gets_no_more_connections() {
        let (mut listeners, mut sessions, mut io) =
            listeners(|config| config.mqtt.max_connections_per_ip = 1);
        let clients: Vec<_> =
            (0..EXTRA_PER_ADDRESS + 3).map(|_| accept(&mut listeners, &mut sessions, &mut io)).collect();
        assert_eq!((sessions.len(), io.metrics.turned_away), (EXTRA_PER_ADDRESS + 1, 2));
        assert_eq!(listeners.by_address.of(Ipv4Addr::LOCALHOST.into()), EXTRA_PER_ADDRESS + 1);
        drop((clients, sessions));
        assert_eq!(listeners.by_address.of(Ipv4Addr::LOCALHOST.into()), 0);
    }

    #[test]
    fn refusals_of_one_ipv6_64_share_a_log_line() {
        let (mut listeners, _, io) = listeners(|_| {});
        let mut allows = |ip: &str| {
            let ip: IpAddr = ip.parse().unwrap();
            listeners.refusal_log.allows(ip.into(), io.now).is_some()
        };
        assert!(allows("2001:db8:0:1::1") && !allows("2001:db8:0:1::2") && allows("2001:db8:0:2::1"));
        assert!(allows("192.0.2.1") && allows("192.0.2.2"));
    }

    #[test]
    fn a_closed_listener_accepts_nothing() {
        let (mut listeners, mut sessions, mut io) = listeners(|_| {});
        listeners.close();
        assert!(!listeners.is_accepting());
        let accepted = listeners.accept(ListenerKind::Plain, &mut sessions, &mut io);
        assert!(matches!(accepted, Accepted::Nothing));
    }
}
