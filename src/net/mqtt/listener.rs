//! The MQTT listeners, and the limits of connections that have not sent CONNECT yet.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use log::{info, warn};
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry};

use crate::config::{Config, Tls};
use crate::net::error::BindError;
#[cfg(target_os = "linux")]
use crate::net::event_loop::inherited::InheritedListener;
use crate::net::event_loop::inherited::{Inherited, Purpose};
use crate::net::event_loop::io::{Io, TimerKind};
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::tcp::{self, ACCEPT_RETRY};
use crate::net::event_loop::token::{self, ListenerKind, MQTT, MQTTS, Role, SessionId};
use crate::net::log_limiter::LogLimiter;
use crate::net::metrics::TurnedAway;
use crate::net::mqtt::auth_throttle::AuthThrottle;
use crate::net::mqtt::connection::MqttConnection;
use crate::net::mqtt::connections_by_address::ConnectionsByAddress;
use crate::net::mqtt::eviction::EvictionOrder;
use crate::net::mqtt::refusal_log::RefusalLog;
use crate::net::mqtt::transport::Transport;
use crate::net::mqtt::watched_certificate::WatchedCertificate;
use crate::net::sessions::table::Sessions;
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
    pub(super) tls: Option<TcpListener>,
    /// Of the TLS listener. It stays while draining.
    pub(crate) certificate: Option<WatchedCertificate>,
    pub(crate) by_address: ConnectionsByAddress,
    /// Of all workers.
    pub(crate) refusals: Arc<Mutex<Refusals>>,
    /// Limits log lines about failed TLS handshakes.
    pub(crate) tls_failure_log: LogLimiter<()>,
    /// Connections that have not logged in.
    pub(crate) unauthenticated: EvictionOrder,
    /// Those of them that have begun a TLS handshake and not finished it.
    pub(super) handshakes: EvictionOrder,
    /// Connections that are closing: refused logins that wait for their answer, and what lingers until the peer closes its
    /// side. The first to close are first. Some may be gone.
    closing: VecDeque<SessionId>,
    /// How many connections the other workers have, and how many workers there are.
    pub(crate) elsewhere: (usize, usize),
    accepting: bool,
    /// Accepting has failed, which was logged.
    accept_failing: bool,
}

/// What limits the answers to refused logins, and the lines about them.
#[derive(Default)]
pub(crate) struct Refusals {
    pub(crate) throttle: AuthThrottle,
    pub(crate) log: RefusalLog,
}

/// The result of one attempt to accept a connection.
pub(crate) enum Accepted {
    /// A connection was accepted, or refused. To make room for it, this one must be closed.
    Connection { evicted: Option<SessionId> },
    /// No more connections are waiting, or accepting is paused.
    Nothing,
    /// Accepting has begun to fail, and why. A timer retries it.
    Failed(String),
}

/// Opens the TLS port, if TLS is configured.
///
/// # Errors
/// A port that cannot be opened.
pub(super) fn listen_tls(
    host: IpAddr,
    tls: &Tls,
    shared: bool,
    inherited: &mut Inherited,
) -> Result<Option<TcpListener>, BindError> {
    let addr = SocketAddr::new(host, tls.port);
    let failed = |error| BindError::Port("MQTT over TLS", addr, error);
    let mut listen = || inherited.listen(Purpose::Mqtts, addr, shared).map_err(failed);
    tls.files().map(|_| listen()).transpose()
}

impl Listeners {
    /// Opens the configured ports that are not inherited. Every worker can open the same `shared` ports.
    ///
    /// # Errors
    /// A port that cannot be opened, or a certificate that cannot be used.
    pub(crate) fn bind(config: &Config, shared: bool, inherited: &mut Inherited) -> Result<Self, BindError> {
        let addr = SocketAddr::new(config.mqtt.host, config.mqtt.port);
        let failed = |error| BindError::Port("MQTT", addr, error);
        let mut listen = || inherited.listen(Purpose::Mqtt, addr, shared).map_err(failed);
        Ok(Self {
            plain: config.mqtt.plain.then(&mut listen).transpose()?,
            certificate: WatchedCertificate::load(
                "mqtt.tls",
                config.mqtt.tls.files(),
                Some(&config.udp.public_ip),
            )?,
            tls: listen_tls(config.mqtt.host, &config.mqtt.tls, shared, inherited)?,
            by_address: ConnectionsByAddress::default(),
            refusals: Arc::default(),
            tls_failure_log: LogLimiter::every_ten_seconds(),
            unauthenticated: EvictionOrder::default(),
            handshakes: EvictionOrder::default(),
            closing: VecDeque::new(),
            elsewhere: (0, 1),
            accepting: true,
            accept_failing: false,
        })
    }

    /// Registers both listeners with the poll.
    pub(crate) fn register(&mut self, registry: &Registry) -> io::Result<()> {
        for (slot, listener) in [(MQTT, self.plain.as_mut()), (MQTTS, self.tls.as_mut())] {
            if let Some(listener) = listener {
                registry.register(listener, token::fixed(slot), Interest::READABLE)?;
            }
        }
        Ok(())
    }

    /// The local addresses of the plain and of the TLS listener.
    pub(crate) fn local_addrs(&self) -> io::Result<(Option<SocketAddr>, Option<SocketAddr>)> {
        let addr = |listener: Option<&TcpListener>| listener.map(TcpListener::local_addr).transpose();
        Ok((addr(self.plain.as_ref())?, addr(self.tls.as_ref())?))
    }

    /// Its listeners, to be handed on.
    ///
    /// # Errors
    /// There is no free descriptor.
    #[cfg(target_os = "linux")]
    pub(crate) fn share(&self, config: &Config) -> io::Result<Vec<InheritedListener>> {
        let mqtt = &config.mqtt;
        let all = [(Purpose::Mqtt, mqtt.port, &self.plain), (Purpose::Mqtts, mqtt.tls.port, &self.tls)];
        let open = all.into_iter().filter_map(|(purpose, port, listener)| {
            let listener = listener.as_ref()?;
            Some(InheritedListener::new(purpose, SocketAddr::new(mqtt.host, port), listener))
        });
        open.collect()
    }

    /// Accepts at most one connection.
    pub(crate) fn accept(&mut self, kind: ListenerKind, sessions: &mut Sessions, io: &mut Io) -> Accepted {
        let listener = match kind {
            ListenerKind::Plain => self.plain.as_ref(),
            ListenerKind::Tls => self.tls.as_ref(),
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
            Err(error) if tcp::is_of_connection(&error) => Accepted::Connection { evicted: None },
            Err(error) => {
                // Connections that are already waiting cause no further event, so a timer retries.
                self.accepting = false;
                io.timers.arm(io.now + ACCEPT_RETRY, TimerKind::Accept);
                if std::mem::replace(&mut self.accept_failing, true) {
                    return Accepted::Nothing;
                }
                let every_ms = ACCEPT_RETRY.as_millis();
                let message = format!("cannot accept connections: {error}; retrying every {every_ms} ms");
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
        let mqtt = &io.config.mqtt;
        let limit = mqtt.max_connections_per_ip;
        let proxied = mqtt.proxy_protocol_from.iter().any(|network| network.contains(peer.ip()));
        // A load balancer may have many connections. Its clients are counted when the PROXY header has named them.
        let crowded = limit > 0 && !proxied && self.by_address.of(peer.ip()) >= limit + EXTRA_PER_ADDRESS;
        let full = self.is_full(sessions, mqtt.max_connections + EXTRA_CONNECTIONS);
        if crowded {
            io.metrics.turned_away(TurnedAway::AddressLimit);
            return Accepted::Connection { evicted: None };
        }
        let evicted = if full { self.make_room(sessions, io) } else { None };
        if full && evicted.is_none() {
            io.metrics.turned_away(TurnedAway::Full);
            return Accepted::Connection { evicted };
        }
        tcp::set_accepted_options(&tcp);
        let transport = Transport::new(tcp, proxied, kind == ListenerKind::Tls);
        self.add_connection(MqttConnection::new(transport, peer.port()), peer.ip(), sessions, io);
        Accepted::Connection { evicted }
    }

    /// Whether there are so many connections, of all workers, that another one needs room. Each worker may always have its share of
    /// those that have not logged in, so that nobody keeps devices from one worker through another.
    fn is_full(&self, sessions: &Sessions, max: usize) -> bool {
        let ((elsewhere, workers), own) = (self.elsewhere, sessions.without_lingering());
        let has_share = self.unauthenticated.len() >= EXTRA_CONNECTIONS / workers;
        own >= max || (own + elsewhere >= max && has_share)
    }

    /// The connection to close for a new one: first one that is closing already.
    fn make_room(&mut self, sessions: &Sessions, io: &mut Io) -> Option<SessionId> {
        let closing = std::iter::from_fn(|| self.closing.pop_front()).find(|id| sessions.is_closing(*id));
        let (id, why) =
            closing.map(|id| (id, TurnedAway::Closing)).or_else(|| self.unauthenticated.first(io.now))?;
        self.forget(id);
        io.metrics.turned_away(why);
        Some(id)
    }

    /// A connection has logged in, or is closing.
    pub(crate) fn forget(&mut self, id: SessionId) {
        self.unauthenticated.remove(id);
        self.handshakes.remove(id);
    }

    /// A connection is closing, and remains for a while.
    pub(crate) fn add_closing(&mut self, id: SessionId, sessions: &Sessions) {
        while self.closing.front().is_some_and(|id| !sessions.is_closing(*id)) {
            self.closing.pop_front();
        }
        self.closing.push_back(id);
    }

    /// Locks what all workers share about refusals.
    pub(crate) fn refusals(&self) -> MutexGuard<'_, Refusals> {
        // It is consistent after every change, even when a worker panicked.
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.unauthenticated.insert(id, ip, io.now);
        sessions.arm_timer(id, io);
        Some(id)
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
        for listener in [self.plain.as_mut(), self.tls.as_mut()].into_iter().flatten() {
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
        self.unauthenticated.shrink();
        self.handshakes.shrink();
        self.closing.shrink_to_fit();
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
    use crate::session::harness::dial_request;

    fn listeners(change: impl FnOnce(&mut Config)) -> (Listeners, Sessions, Io) {
        let mut config = Config::default();
        (config.mqtt.host, config.mqtt.port) = (Ipv4Addr::LOCALHOST.into(), 0);
        change(&mut config);
        let listeners = Listeners::bind(&config, false, &mut Inherited::default()).unwrap();
        (listeners, Sessions::default(), Io { config: Arc::new(config), ..Io::for_test() })
    }

    /// Connects and accepts; returns the client and the evicted sessions.
    fn accept(
        listeners: &mut Listeners,
        sessions: &mut Sessions,
        io: &mut Io,
    ) -> (Client, Option<SessionId>) {
        let client = Client::connect(listeners.local_addrs().unwrap().0.unwrap()).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            match listeners.accept(ListenerKind::Plain, sessions, io) {
                Accepted::Connection { evicted } => return (client, evicted),
                Accepted::Nothing => assert!(Instant::now() < end, "no connection to accept"),
                Accepted::Failed(message) => panic!("{message}"),
            }
        }
    }

    fn turned_away(io: &Io, reason: &str) -> u64 {
        io.metrics.turned_away_by_reason().find(|(label, _)| *label == reason).unwrap().1
    }

    #[test]
    fn at_the_limit_the_oldest_connection_before_login_is_evicted() {
        let (mut listeners, mut sessions, mut io) = listeners(|config| config.mqtt.max_connections = 1);
        for _ in 0..=EXTRA_CONNECTIONS {
            let core = Core::new(Ipv4Addr::LOCALHOST.into(), io.now);
            sessions.insert(core, None, None);
        }
        let (_client, evicted) = accept(&mut listeners, &mut sessions, &mut io);
        assert!(evicted.is_none(), "none of the others is a connection, so the new one is closed");
        assert_eq!((io.metrics.connections, turned_away(&io, "full")), (1, 1));
        io.config = Arc::new(Config {
            mqtt: crate::config::Mqtt { max_connections: 2, ..io.config.mqtt.clone() },
            ..Config::clone(&io.config)
        });
        let (_first, evicted) = accept(&mut listeners, &mut sessions, &mut io);
        assert!(evicted.is_none());
        let (_second, evicted) = accept(&mut listeners, &mut sessions, &mut io);
        assert!(evicted.is_some_and(|id| sessions.get(id).unwrap().mqtt.is_some()));
    }

    #[test]
    fn the_connections_of_all_workers_are_limited_together_and_each_has_its_share() {
        let (mut listeners, mut sessions, mut io) = listeners(|config| config.mqtt.max_connections = 1);
        listeners.elsewhere = (EXTRA_CONNECTIONS + 1, EXTRA_CONNECTIONS / 2);
        let (_first, evicted) = accept(&mut listeners, &mut sessions, &mut io);
        let (_second, evicted_then) = accept(&mut listeners, &mut sessions, &mut io);
        assert_eq!((evicted, evicted_then, turned_away(&io, "full")), (None, None, 0), "its share is two");
        let (_third, evicted) = accept(&mut listeners, &mut sessions, &mut io);
        assert!(evicted.is_some());
        listeners.elsewhere.0 = EXTRA_CONNECTIONS - 10;
        let (_fourth, evicted) = accept(&mut listeners, &mut sessions, &mut io);
        assert_eq!(evicted, None, "all together have room");
    }

    #[test]
    fn websockets_that_are_closing_take_no_place_of_a_device() {
        let (mut listeners, mut sessions, mut io) = listeners(|config| config.mqtt.max_connections = 1);
        for _ in 0..2 * EXTRA_CONNECTIONS {
            let request = Box::new(dial_request("ws://a/".parse().unwrap()));
            let mut core = Core::new(Ipv4Addr::LOCALHOST.into(), io.now);
            core.mark_closed();
            sessions.insert(core, None, Some(Box::new(BackendConnection::new(request, 0))));
        }
        let (_first, evicted) = accept(&mut listeners, &mut sessions, &mut io);
        let (_second, evicted_then) = accept(&mut listeners, &mut sessions, &mut io);
        assert_eq!((evicted, evicted_then, turned_away(&io, "full")), (None, None, 0));
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
        assert_eq!((sessions.len(), turned_away(&io, "address_limit")), (EXTRA_PER_ADDRESS + 1, 2));
        assert_eq!(listeners.by_address.of(Ipv4Addr::LOCALHOST.into()), EXTRA_PER_ADDRESS + 1);
        drop((clients, sessions));
        assert_eq!(listeners.by_address.of(Ipv4Addr::LOCALHOST.into()), 0);
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
