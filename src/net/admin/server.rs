//! The server of the management API: accepts connections, reads requests and writes responses, all in the gateway's own loop.
//!
//! Clients cannot exhaust it: requests must arrive and responses must be read within a time limit, and at the limit of
//! connections, one is closed for a new one: first one that has served its last request, then one that has sent or taken
//! nothing for seconds, then one of the address with the most connections; an IPv6 /64 is one address. One whose request is
//! being answered is closed only if all others' are too.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log::{debug, warn};
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry};
use slab::Slab;
use tz::TimeZone;

use crate::admin::auth;
use crate::admin::body::{Body, Framing};
use crate::admin::command_results::CommandResults;
use crate::admin::error::RequestError;
use crate::admin::error::{ApiError, ErrorStyle};
use crate::admin::http::{self, RequestHead};
use crate::admin::notify_files::NotifyFiles;
use crate::admin::recent_errors::{RecentErrorKind, RecentErrors};
use crate::admin::response::{CONTINUE, Response};
use crate::admin::routes::{self, Access};
use crate::clock::{local_time_zone, unix_time, wall_clock};
use crate::config::Config;
use crate::net::admin::connection::{
    Connection, ConnectionState, PartialRequest, Progress, ReceivedRequest, connection_mut,
};
#[cfg(target_os = "linux")]
use crate::net::event_loop::inherited::InheritedListener;
use crate::net::event_loop::inherited::{Inherited, Purpose};
use crate::net::event_loop::io::{Io, TimerKind};
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::tcp::{self, ACCEPT_RETRY};
use crate::net::event_loop::token::{self, API, AdminId, Role};
use crate::net::event_loop::write_buffer::Flush;
use crate::net::event_ring::EventStream;
use crate::net::log_limiter::LogLimiter;
use crate::net::metrics::ApiDisplaced;
use crate::net::mqtt::transport::Transport;
use crate::net::mqtt::watched_certificate::WatchedCertificate;
use crate::proto::address_key::AddressKey;

/// Concurrent connections.
const MAX_CONNECTIONS: usize = 128;
/// Connections accepted per dispatch.
const ACCEPT_BUDGET: usize = 64;
/// Bytes per read.
const READ_SIZE: usize = 4096;

/// The listeners and their connections.
pub(crate) struct AdminServer {
    /// None when there is no management API.
    listeners: Vec<TcpListener>,
    pub(super) connections: Slab<Connection>,
    /// The API's own certificate; without one, TLS uses that of MQTT.
    pub(crate) certificate: Option<WatchedCertificate>,
    /// Limits log lines about failed TLS handshakes.
    pub(super) tls_failure_log: LogLimiter<()>,
    /// For reads from connections.
    pub(super) scratch: Box<[u8]>,
    epoch: u32,
    /// The number of the last request; part of its id.
    last_request_id: u32,
    /// The local time zone; UTC if it is unknown.
    time_zone: TimeZone,
    /// The recent errors of all workers.
    recent_errors: Arc<Mutex<RecentErrors>>,
    /// Answers to commands that have timed out.
    pub(crate) command_results: CommandResults,
    /// Sounds for devices.
    pub(crate) notify_files: NotifyFiles,
    /// The time since 1970 at the start.
    pub(super) started: Duration,
    /// No connection is kept for another request.
    is_closing: bool,
}

impl AdminServer {
    /// Listens on this address.
    ///
    /// # Errors
    /// A port that cannot be listened on.
    pub(crate) fn bind(addr: SocketAddr, inherited: &mut Inherited) -> io::Result<Self> {
        Ok(Self::new(Some(inherited.listen(Purpose::Api, addr, false)?)))
    }

    pub(crate) fn new(listener: Option<TcpListener>) -> Self {
        Self {
            listeners: listener.into_iter().collect(),
            certificate: None,
            tls_failure_log: LogLimiter::every_ten_seconds(),
            scratch: vec![0; READ_SIZE].into_boxed_slice(),
            connections: Slab::new(),
            epoch: 0,
            // Random, so that a result's id is neither used again soon after a restart, nor by another gateway. The time will do.
            last_request_id: getrandom::u32().unwrap_or_else(|_| unix_time().as_secs() as u32),
            time_zone: local_time_zone(),
            recent_errors: Arc::default(),
            command_results: CommandResults::default(),
            notify_files: NotifyFiles::default(),
            started: unix_time(),
            is_closing: false,
        }
    }

    /// Listens on `::1` too, the address that many programs try first for `localhost`. Where there is no IPv6, there is
    /// nothing to do.
    pub(crate) fn listen_on_ipv6_loopback(&mut self, inherited: &mut Inherited) {
        let Ok(Some(addr)) = self.local_addr() else { return };
        let addr = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), addr.port());
        match inherited.listen(Purpose::Api, addr, false) {
            Ok(listener) => self.listeners.push(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                warn!("management API: {addr} is in use by another program, which answers on it: {error}");
            }
            Err(_) => {}
        }
    }

    pub(super) fn has_listener(&self) -> bool {
        !self.listeners.is_empty()
    }

    pub(crate) fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.listeners.first().map(TcpListener::local_addr).transpose()
    }

    pub(crate) fn register(&mut self, registry: &Registry) -> io::Result<()> {
        let mut listeners = self.listeners.iter_mut();
        listeners.try_for_each(|listener| registry.register(listener, token::fixed(API), Interest::READABLE))
    }

    /// Its listeners, to be handed on.
    ///
    /// # Errors
    /// There is no free descriptor.
    #[cfg(target_os = "linux")]
    pub(crate) fn share(&self, config: &Config) -> io::Result<Vec<InheritedListener>> {
        let configured = SocketAddr::new(config.api_host(), config.api.port);
        let share = |(n, listener): (usize, &TcpListener)| {
            // Only the first can have another port in the configuration.
            let addr = if n == 0 { configured } else { listener.local_addr()? };
            InheritedListener::new(Purpose::Api, addr, listener)
        };
        self.listeners.iter().enumerate().map(share).collect()
    }

    /// Stops accepting connections, without closing the ports.
    #[cfg(target_os = "linux")]
    pub(crate) fn pause(&mut self, registry: &Registry) {
        self.listeners.iter_mut().for_each(|listener| drop(registry.deregister(listener)));
    }

    /// Closes the ports, and each connection at the end of its request. Clients that read events find the next process.
    #[cfg(target_os = "linux")]
    pub(crate) fn retire(&mut self) {
        self.listeners.clear();
        self.is_closing = true;
        self.connections.retain(|_, conn| !conn.is_idle());
    }

    /// Adds to the list of recent errors, which operators read.
    pub(crate) fn record_error(&mut self, kind: RecentErrorKind, device: Option<&str>, message: &str) {
        self.recent_errors().record(unix_time().as_millis() as u64, kind, device, message);
    }

    /// The list is consistent after every change, so it can be used although a worker panicked while it held the lock.
    pub(crate) fn recent_errors(&self) -> MutexGuard<'_, RecentErrors> {
        self.recent_errors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The list, to be shared with other workers.
    pub(crate) fn shared_recent_errors(&self) -> Arc<Mutex<RecentErrors>> {
        self.recent_errors.clone()
    }

    /// Replaces the list by the leader's.
    pub(crate) fn set_recent_errors(&mut self, errors: Arc<Mutex<RecentErrors>>) {
        self.recent_errors = errors;
    }

    /// The local time zone.
    pub(crate) fn time_zone(&self) -> &TimeZone {
        &self.time_zone
    }

    /// A new id for a request of this connection, by which an answer finds the connection.
    pub(crate) fn next_request_id(&mut self, id: AdminId) -> u64 {
        self.last_request_id = self.last_request_id.wrapping_add(1);
        u64::from(self.last_request_id) << 32 | u64::from(id.slot)
    }
}

impl AdminServer {
    /// Accepts connections, within the budget.
    pub(crate) fn accept(&mut self, io: &mut Io) {
        for _ in 0..ACCEPT_BUDGET {
            let mut accepted = self.listeners.iter().map(tcp::accept);
            match accepted.find(|accepted| !matches!(accepted, Ok(None))).unwrap_or(Ok(None)) {
                Ok(Some((tcp, peer))) => self.add_connection(tcp, peer, io),
                Ok(None) => return,
                Err(error) if tcp::is_of_connection(&error) => {}
                // Out of descriptors: closing another connection frees one.
                Err(_) if self.evict(io) => {}
                Err(error) => {
                    let ms = ACCEPT_RETRY.as_millis();
                    warn!("management API: cannot accept: {error}; trying again in {ms} ms");
                    io.timers.arm(io.now + ACCEPT_RETRY, TimerKind::AcceptAdmin);
                    return;
                }
            }
        }
        io.run_queue.push(Task::AcceptAdmin);
    }

    fn add_connection(&mut self, mut tcp: TcpStream, peer: SocketAddr, io: &mut Io) {
        io.metrics.api_connections += 1;
        if self.connections.len() >= MAX_CONNECTIONS {
            self.evict(io);
        }
        let entry = self.connections.vacant_entry();
        let token = token::token(Role::Admin, entry.key());
        if let Err(error) = io.registry.register(&mut tcp, token, Interest::READABLE | Interest::WRITABLE) {
            return warn!("management API: [{peer}] cannot register: {error}");
        }
        // A connection without the option still works.
        let _ = tcp.set_nodelay(true);
        self.epoch = self.epoch.wrapping_add(1);
        let id = AdminId { slot: entry.key() as u32, epoch: self.epoch };
        let transport = Transport::new(tcp, false, io.config.api.tls.enabled);
        entry.insert(Connection::new(transport, peer, id.epoch, io.now));
        self.arm_timer(id, io);
    }

    /// Closes a connection for another one. False when there is none.
    fn evict(&mut self, io: &mut Io) -> bool {
        let mut of_address: HashMap<AddressKey, usize> = HashMap::new();
        for (_, conn) in &self.connections {
            *of_address.entry(conn.peer.ip().into()).or_default() += 1;
        }
        let first = self.connections.iter().min_by_key(|(_, conn)| {
            let why = conn.displaced_as(io.now);
            let crowd = of_address.get(&conn.peer.ip().into()).filter(|_| why == ApiDisplaced::Crowding);
            let is_writing = matches!(conn.state, ConnectionState::Writing { .. });
            (why, Reverse(crowd), is_writing, conn.progress_at, conn.epoch)
        });
        let Some((slot, conn)) = first else { return false };
        debug!("management API: [{}] closed to admit another connection", conn.peer);
        io.metrics.api_displaced(conn.displaced_as(io.now));
        self.connections.remove(slot);
        true
    }

    /// The connection in this slot, if an event for it has to be served.
    pub(crate) fn ready_connection(&self, slot: usize, readable: bool) -> Option<AdminId> {
        let conn = self.connections.get(slot)?;
        let is_ready = readable
            || matches!(conn.state, ConnectionState::Writing { .. } | ConnectionState::Streaming { .. })
            || !conn.transport.is_open();
        is_ready.then_some(AdminId { slot: slot as u32, epoch: conn.epoch })
    }

    /// Closes this connection.
    pub(crate) fn close(&mut self, id: AdminId) {
        if connection_mut(&mut self.connections, id).is_some() {
            self.connections.try_remove(id.slot as usize);
        }
    }

    /// Reads or writes once. May be called at any time.
    pub(crate) fn advance(
        &mut self,
        id: AdminId,
        mqtt_certificate: Option<&WatchedCertificate>,
        events: &EventStream,
        io: &mut Io,
    ) -> Progress {
        let now = io.now;
        if self.is_in_handshake(id) {
            return self.advance_handshake(id, mqtt_certificate, io);
        }
        let Some(conn) = connection_mut(&mut self.connections, id) else { return Progress::Wait };
        match &conn.state {
            ConnectionState::Reading(_) => self.read_request(id, io),
            ConnectionState::Pending(_) => Progress::Wait,
            &ConnectionState::Streaming { cursor } => {
                conn.advance_stream(cursor, events, &mut self.scratch, now)
            }
            &ConnectionState::Writing { keep_alive } => match (conn.flush(now), keep_alive) {
                (Ok(Flush::Done), true) => conn.set_state(ConnectionState::Reading(None), now),
                (Ok(Flush::Done), false) => conn.start_linger(now),
                (Ok(Flush::Blocked), _) => Progress::Wait,
                (Err(_), _) => Progress::Close,
            },
            ConnectionState::Lingering => match conn.transport.read(&mut self.scratch) {
                Ok(0) => Progress::Close,
                Ok(_) => Progress::Continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => Progress::Wait,
                Err(error) if error.kind() == ErrorKind::Interrupted => Progress::Continue,
                Err(_) => Progress::Close,
            },
        }
    }

    /// Returns the request if it is complete, else reads more of it.
    fn read_request(&mut self, id: AdminId, io: &mut Io) -> Progress {
        let Some(conn) = connection_mut(&mut self.connections, id) else { return Progress::Wait };
        let ConnectionState::Reading(partial) = &mut conn.state else { return Progress::Wait };
        if let Some(partial) = partial.take() {
            return self.read_body(id, partial, io);
        }
        if !conn.may_have_head() {
            return conn.read(None, &mut self.scratch, io.now);
        }
        let head = match http::parse_head(&conn.read_buffer) {
            Ok(Some(head)) => head,
            Ok(None) => return conn.read(None, &mut self.scratch, io.now),
            Err(refusal) => {
                return self.respond(id, &refusal.error().response(ErrorStyle::Coded), false, false, io);
            }
        };
        conn.read_buffer.drain(..head.length);
        let peer = conn.peer.ip();
        match self.authorize_request(&head, peer, &io.config) {
            Ok(framing) => {
                let Some(conn) = connection_mut(&mut self.connections, id) else { return Progress::Wait };
                if framing != Framing::Length(0) && head.expects_continue && conn.read_buffer.is_empty() {
                    // A client may send its body without it.
                    let _ = conn.write_buffer.append(|out| out.extend_from_slice(CONTINUE));
                    let _ = conn.write_buffer.flush(&mut conn.transport);
                }
                let body = Body::with_limit(framing, routes::max_body_bytes(&head.path));
                self.read_body(id, Box::new(PartialRequest { head, body }), io)
            }
            Err((refusal, keep_alive)) => self.reject_request(id, &head, refusal, keep_alive, io),
        }
    }

    fn read_body(&mut self, id: AdminId, mut partial: Box<PartialRequest>, io: &mut Io) -> Progress {
        let Some(conn) = connection_mut(&mut self.connections, id) else { return Progress::Wait };
        match partial.body.take(&mut conn.read_buffer) {
            Ok(None) => conn.read(Some(partial), &mut self.scratch, io.now),
            Ok(Some(body)) => Progress::Request(Box::new(ReceivedRequest { head: partial.head, body })),
            Err(refusal) => self.reject_request(id, &partial.head, refusal.error(), false, io),
        }
    }

    /// Checks that the request is valid and authorized, and returns the framing of its body; else the error, and whether the
    /// connection can stay open.
    fn authorize_request(
        &self,
        head: &RequestHead,
        peer: IpAddr,
        config: &Config,
    ) -> Result<Framing, (ApiError, bool)> {
        if let Some(reason) = head.malformed {
            return Err((RequestError::Malformed(reason).error(), false));
        }
        let needs_token = match routes::required_access(&head.path) {
            Access::Public => false,
            Access::Metrics => config.api.metrics_need_token,
            Access::Token => true,
        };
        if needs_token {
            // The body is not read, so the start of a request after it would be unknown.
            let keep_alive = head.keep_alive && head.body == Ok(Framing::Length(0));
            auth::authorize(head, peer, config, wall_clock(&self.time_zone))
                .map_err(|refusal| (refusal, keep_alive))?;
        }
        match head.body {
            // Before the client is told to continue.
            Ok(Framing::Length(length)) if length > routes::max_body_bytes(&head.path) => {
                Err((RequestError::BodyTooLong.error(), false))
            }
            framing => framing.map_err(|refusal| (refusal.error(), false)),
        }
    }

    fn reject_request(
        &mut self,
        id: AdminId,
        head: &RequestHead,
        refusal: ApiError,
        keep_alive: bool,
        io: &mut Io,
    ) -> Progress {
        io.metrics.api_refused(refusal.code);
        let response = refusal.response(routes::error_style(&head.path));
        self.respond(id, &response, keep_alive, head.method == http::Method::HEAD, io)
    }

    /// Queues the response to the request of this connection.
    pub(crate) fn respond(
        &mut self,
        id: AdminId,
        response: &Response,
        keep_alive: bool,
        head_only: bool,
        io: &mut Io,
    ) -> Progress {
        let now = io.now;
        let class = usize::from(response.status / 100).min(io.metrics.api_answers.len() - 1);
        io.metrics.api_answers[class] += 1;
        let Some(conn) = connection_mut(&mut self.connections, id) else { return Progress::Wait };
        // The buffer is empty, but for `100 Continue` at most, so it accepts a response of any length.
        let keep_alive = keep_alive && !self.is_closing;
        let _ = conn.write_buffer.append(|out| response.write(out, keep_alive, head_only));
        conn.set_state(ConnectionState::Writing { keep_alive }, now)
    }

    /// The timer of a connection has expired. True: a response was queued.
    pub(crate) fn on_timer(&mut self, id: AdminId, tick: u64, io: &mut Io) -> bool {
        let now = io.now;
        let Some(conn) =
            connection_mut(&mut self.connections, id).filter(|conn| conn.timer_tick == Some(tick))
        else {
            return false;
        };
        conn.timer_tick = None;
        if conn.deadline() > now {
            self.arm_timer(id, io);
            return false;
        }
        match &conn.state {
            ConnectionState::Reading(partial) if partial.is_some() || !conn.read_buffer.is_empty() => {
                let path = partial.as_ref().map(|partial| &partial.head.path);
                let style = path.map_or(ErrorStyle::Coded, |path| routes::error_style(path));
                let late = ApiError::new(408, "request_timeout", "The request did not come in its time.");
                self.respond(id, &late.response(style), false, false, io);
                true
            }
            ConnectionState::Pending(pending) => {
                let (keep_alive, head_only) = (pending.keep_alive, pending.head_only);
                let late =
                    ApiError::new(500, "timeout", "timeout").response(pending.request.endpoint.error_style());
                self.respond(id, &late, keep_alive, head_only, io);
                true
            }
            ConnectionState::Streaming { .. } if conn.write_buffer.is_empty() => {
                conn.write_heartbeat(now);
                true
            }
            ConnectionState::Streaming { .. }
            | ConnectionState::Reading(_)
            | ConnectionState::Writing { .. }
            | ConnectionState::Lingering => {
                io.metrics.api_tls_failed += u64::from(conn.transport.is_in_tls_handshake());
                self.close(id);
                false
            }
        }
    }

    /// Makes sure that a timer expires at this connection's deadline.
    pub(crate) fn arm_timer(&mut self, id: AdminId, io: &mut Io) {
        let Some(conn) = connection_mut(&mut self.connections, id) else { return };
        let deadline = conn.deadline();
        let tick = io.timers.tick(deadline);
        if conn.timer_tick.is_none_or(|armed| tick < armed) {
            conn.timer_tick = Some(io.timers.arm(deadline, TimerKind::Admin(id)));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream as Client;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::admin::routes::Endpoint;
    use crate::net::admin::connection::PendingRequest;
    use crate::net::admin::request::{AdminRequest, Answers};
    use crate::net::mqtt::eviction::STALLED_AFTER;

    /// Accepts a connection of a new client, and returns its id.
    fn connect(server: &mut AdminServer, io: &mut Io) -> (Client, AdminId) {
        let client = Client::connect(server.local_addr().unwrap().unwrap()).unwrap();
        let before = server.epoch;
        let end = Instant::now() + Duration::from_secs(60);
        while server.epoch == before {
            assert!(Instant::now() < end, "no connection to accept");
            server.accept(io);
        }
        let (slot, conn) = server.connections.iter().max_by_key(|(_, conn)| conn.epoch).unwrap();
        (client, AdminId { slot: slot as u32, epoch: conn.epoch })
    }

    fn displaced(io: &Io) -> Vec<u64> {
        io.metrics.api_displaced_by_reason().map(|(_, count)| count).collect()
    }

    fn request(server: &mut AdminServer, id: AdminId, io: &mut Io) -> Box<ReceivedRequest> {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            match server.advance(id, None, &EventStream::default(), io) {
                Progress::Request(request) => return request,
                Progress::Close => panic!("closed"),
                Progress::Continue | Progress::Wait => assert!(Instant::now() < end, "no request"),
            }
        }
    }

    #[test]
    fn a_request_is_read_and_answered_on_the_same_connection() {
        let mut server =
            AdminServer::bind("127.0.0.1:0".parse().unwrap(), &mut Inherited::default()).unwrap();
        let mut io = Io::for_test();
        let (mut client, id) = connect(&mut server, &mut io);
        for _ in 0..2 {
            client.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let request = request(&mut server, id, &mut io);
            assert_eq!((&*request.head.path, &request.body[..]), ("/healthz", &b""[..]));
            server.respond(id, &Response::json(200, "{}"), true, false, &mut io);
            assert!(matches!(server.advance(id, None, &EventStream::default(), &mut io), Progress::Continue));
            let mut response = [0; 512];
            let len = client.read(&mut response).unwrap();
            assert!(response[..len].starts_with(b"HTTP/1.1 200 ") && response[..len].ends_with(b"{}"));
        }
        assert_eq!(io.metrics.api_answers[2], 2);
    }

    #[test]
    fn at_the_limit_the_oldest_idle_connection_is_closed() {
        let mut server =
            AdminServer::bind("127.0.0.1:0".parse().unwrap(), &mut Inherited::default()).unwrap();
        let mut io = Io::for_test();
        let clients: Vec<_> = (0..=MAX_CONNECTIONS).map(|_| connect(&mut server, &mut io)).collect();
        assert_eq!((server.connections.len(), displaced(&io)), (MAX_CONNECTIONS, vec![0, 0, 1, 0]));
        assert!(connection_mut(&mut server.connections, clients[0].1).is_none());
    }

    #[test]
    fn stalled_ones_go_first_then_the_crowd_and_never_one_that_waits_for_its_answer() {
        let mut server =
            AdminServer::bind("127.0.0.1:0".parse().unwrap(), &mut Inherited::default()).unwrap();
        let mut io = Io::for_test();
        let peers =
            ["192.0.2.1", "2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.2", "192.0.2.3", "192.0.2.4"];
        let (_clients, ids): (Vec<_>, Vec<_>) =
            peers.map(|_| connect(&mut server, &mut io)).into_iter().unzip();
        let [slow, first, second, writing, _silent, closing, asking] = ids[..] else { panic!() };
        for (id, peer) in ids.iter().zip(peers) {
            connection_mut(&mut server.connections, *id).unwrap().peer.set_ip(peer.parse().unwrap());
        }
        let pending = PendingRequest {
            request: AdminRequest::new(1, Endpoint::Command, String::new(), String::new()),
            keep_alive: true,
            head_only: false,
            answers: Answers::of_workers(0),
            deadline: io.now + Duration::from_secs(9),
        };
        for (id, state) in [
            (writing, ConnectionState::Writing { keep_alive: true }),
            (closing, ConnectionState::Lingering),
            (asking, ConnectionState::Pending(Box::new(pending))),
        ] {
            connection_mut(&mut server.connections, id).unwrap().set_state(state, io.now);
        }
        io.now += STALLED_AFTER;
        // All but the silent one go on, one after another.
        for (id, ms) in [slow, first, second, writing].into_iter().zip(1..) {
            let conn = connection_mut(&mut server.connections, id).unwrap();
            conn.progress_at = io.now + Duration::from_millis(ms);
        }
        let left = |server: &AdminServer| -> Vec<_> {
            let rest = server.connections.iter().map(|(_, conn)| conn.peer.ip().to_string());
            peers.iter().filter(|peer| rest.clone().any(|rest| rest == **peer)).copied().collect()
        };
        let evicted: Vec<_> = (0..peers.len())
            .map(|_| {
                let before = left(&server);
                assert!(server.evict(&mut io));
                let after = left(&server);
                before.into_iter().find(|peer| !after.contains(peer)).unwrap()
            })
            .collect();
        assert_eq!(evicted, [5, 4, 1, 2, 0, 3, 6].map(|n: usize| peers[n]));
        assert!(!server.evict(&mut io));
        assert_eq!(displaced(&io), [1, 1, 4, 1]);
    }
}
