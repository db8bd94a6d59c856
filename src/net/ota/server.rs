//! The server of the OTA port: accepts connections, reads requests and writes responses, all in the gateway's own loop.
//!
//! A connection carries one request. Clients cannot exhaust it: a request must arrive and a response must be read within a time
//! limit, and at the limit of connections one is closed for a new one: first one that has its response, then one of the address
//! with the most connections; an IPv6 /64 is one address.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Waker};
use slab::Slab;
use tz::TimeZone;

use crate::clock::{local_time_zone, unix_time};
use crate::config::{Config, OtaDenial};
#[cfg(target_os = "linux")]
use crate::net::event_loop::inherited::InheritedListener;
use crate::net::event_loop::inherited::{Inherited, Purpose};
use crate::net::event_loop::io::{Io, TimerKind};
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::tcp::{self, ACCEPT_RETRY};
use crate::net::event_loop::token::{self, OTA, OtaId, Role};
use crate::net::log_limiter::LogLimiter;
use crate::net::mqtt::transport::{HandshakeStep, Transport};
use crate::net::ota::connection::{Connection, Progress, connection_mut};
use crate::net::ota::container_detection;
use crate::net::ota::message::OtaResponse;
use crate::net::ota::upstream_connection::UpstreamClient;
use crate::proto::address_key::AddressKey;
use crate::proto::ota::ServerTime;
use crate::proto::proxy_protocol::{MAX_V2_LEN, ProxySource};
use crate::session::RateLimiter;

/// Concurrent connections.
const MAX_CONNECTIONS: usize = 128;
/// Connections accepted per dispatch.
const ACCEPT_BUDGET: usize = 16;
/// Bytes per read; at least a PROXY header.
const READ_SIZE: usize = 4096;
const _: () = assert!(READ_SIZE >= MAX_V2_LEN);
/// How many requests an address may send at once, and after how long one more. Behind a proxy of a container all devices have one
/// address, and after a power cut they all ask; a device that is refused asks again after 10 s.
const REQUESTS_BURST: u32 = 100;
const REQUESTS_REFILL: Duration = Duration::from_millis(200);

/// The listener and its connections.
pub(crate) struct OtaServer {
    /// None when there is no OTA port, and while draining.
    listener: Option<TcpListener>,
    pub(super) connections: Slab<Connection>,
    epoch: u32,
    /// For reads from connections.
    pub(super) scratch: Box<[u8]>,
    pub(super) upstream_client: UpstreamClient,
    /// All devices may seem to have one address.
    in_container: bool,
    time_zone: TimeZone,
    requests: RateLimiter<AddressKey>,
    /// Lines about connections without the PROXY header that they must have.
    proxy_log: LogLimiter<()>,
    /// Lines about devices that were answered.
    pub(crate) answer_log: LogLimiter<()>,
    /// Lines about the other server.
    pub(crate) upstream_log: LogLimiter<()>,
}

impl OtaServer {
    /// Listens on this address. The waker wakes the loop when a name has been resolved.
    ///
    /// # Errors
    /// A port that cannot be listened on.
    pub(crate) fn bind(addr: SocketAddr, waker: Arc<Waker>, inherited: &mut Inherited) -> io::Result<Self> {
        Ok(Self::new(Some(inherited.listen(Purpose::Ota, addr, false)?), waker))
    }

    pub(crate) fn new(listener: Option<TcpListener>, waker: Arc<Waker>) -> Self {
        Self {
            in_container: listener.is_some() && container_detection::is_container(),
            listener,
            connections: Slab::new(),
            epoch: 0,
            scratch: vec![0; READ_SIZE].into_boxed_slice(),
            upstream_client: UpstreamClient::new(waker),
            time_zone: local_time_zone(),
            requests: RateLimiter::new(REQUESTS_BURST, REQUESTS_REFILL),
            proxy_log: LogLimiter::every_ten_seconds(),
            answer_log: LogLimiter::new(20, Duration::from_secs(1)),
            upstream_log: LogLimiter::every_ten_seconds(),
        }
    }

    pub(crate) fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        self.listener.as_ref().map(TcpListener::local_addr).transpose()
    }

    pub(crate) fn register(&mut self, registry: &Registry) -> io::Result<()> {
        let Some(listener) = &mut self.listener else { return Ok(()) };
        registry.register(listener, token::fixed(OTA), Interest::READABLE)
    }

    /// Its listener, to be handed on.
    ///
    /// # Errors
    /// There is no free descriptor.
    #[cfg(target_os = "linux")]
    pub(crate) fn share(&self, config: &Config) -> io::Result<Option<InheritedListener>> {
        let addr = SocketAddr::new(config.ota.host, config.ota.port);
        self.listener
            .as_ref()
            .map(|listener| InheritedListener::new(Purpose::Ota, addr, listener))
            .transpose()
    }

    /// Stops accepting connections, without closing the port.
    #[cfg(target_os = "linux")]
    pub(crate) fn pause(&mut self, registry: &Registry) {
        if let Some(listener) = &mut self.listener {
            let _ = registry.deregister(listener);
        }
    }

    /// Closes the port: devices that start now are to find another gateway.
    pub(crate) fn close(&mut self) {
        self.listener = None;
    }

    /// Why a device at this address gets no answer. `forwarded`: an HTTP proxy has passed its request on.
    pub(crate) fn denial(&self, ip: IpAddr, forwarded: bool, config: &Config) -> Option<OtaDenial> {
        let is_shared = self.in_container || forwarded;
        config.ota.address_denial(ip, config.mqtt.signature_key.is_some(), is_shared)
    }

    /// Whether this address may send another request now.
    pub(crate) fn may_ask(&mut self, ip: IpAddr, now: Instant) -> bool {
        self.requests.allows(ip.into(), now).is_some()
    }

    /// The time as devices are told it.
    pub(crate) fn server_time(&self) -> ServerTime {
        let now = unix_time();
        let local = self.time_zone.find_local_time_type(now.as_secs() as i64);
        ServerTime {
            timestamp: now.as_millis() as u64,
            timezone_offset: local.map_or(0, |local| local.ut_offset() / 60),
        }
    }

    /// Accepts connections, within the budget.
    pub(crate) fn accept(&mut self, io: &mut Io) {
        for _ in 0..ACCEPT_BUDGET {
            let Some(listener) = &self.listener else { return };
            match tcp::accept(listener) {
                Ok(Some((tcp, peer))) => self.add_connection(tcp, peer, io),
                Ok(None) => return,
                Err(error) if tcp::is_of_connection(&error) => {}
                // Out of descriptors: closing another connection frees one.
                Err(_) if self.evict() => {}
                Err(error) => {
                    warn!("OTA: cannot accept: {error}; trying again in {} ms", ACCEPT_RETRY.as_millis());
                    io.timers.arm(io.now + ACCEPT_RETRY, TimerKind::AcceptOta);
                    return;
                }
            }
        }
        io.run_queue.push(Task::AcceptOta);
    }

    fn add_connection(&mut self, mut tcp: TcpStream, peer: SocketAddr, io: &mut Io) {
        if self.connections.len() >= MAX_CONNECTIONS {
            self.evict();
        }
        // It fails when the peer has gone already.
        let Ok(local) = tcp.local_addr() else { return };
        tcp::set_accepted_options(&tcp);
        let entry = self.connections.vacant_entry();
        let token = token::token(Role::Ota, entry.key());
        if let Err(error) = io.registry.register(&mut tcp, token, Interest::READABLE | Interest::WRITABLE) {
            return warn!("OTA: [{peer}] cannot register: {error}");
        }
        self.epoch = self.epoch.wrapping_add(1);
        let id = OtaId { slot: entry.key() as u32, epoch: self.epoch };
        let proxied = io.config.mqtt.proxy_protocol_from.iter().any(|network| network.contains(peer.ip()));
        let transport = Transport::new(tcp, proxied, false);
        entry.insert(Connection::new(transport, peer, local.ip(), id.epoch, io.now));
        self.arm_timer(id, io);
    }

    /// Closes a connection for another one. False when there is none.
    fn evict(&mut self) -> bool {
        let mut of_address: HashMap<AddressKey, usize> = HashMap::new();
        for (_, conn) in &self.connections {
            *of_address.entry(conn.ip.into()).or_default() += 1;
        }
        let first = self.connections.iter().min_by_key(|(_, conn)| {
            let crowd = of_address.get(&conn.ip.into());
            (conn.worth(), Reverse(crowd), conn.progress_at, conn.epoch)
        });
        let Some((slot, _)) = first else { return false };
        self.connections.remove(slot);
        true
    }

    /// The connection in this slot, if an event for it has to be served.
    pub(crate) fn ready_connection(&self, slot: usize, readable: bool) -> Option<OtaId> {
        let conn = self.connections.get(slot).filter(|conn| conn.is_ready(readable))?;
        Some(OtaId { slot: slot as u32, epoch: conn.epoch })
    }

    /// The device's address, and the local one that it reached.
    pub(crate) fn addresses(&self, id: OtaId) -> Option<(IpAddr, IpAddr)> {
        let conn = self.connections.get(id.slot as usize).filter(|conn| conn.epoch == id.epoch)?;
        Some((conn.ip, conn.local))
    }

    /// Closes this connection.
    pub(crate) fn close_connection(&mut self, id: OtaId) {
        if connection_mut(&mut self.connections, id).is_some() {
            self.connections.try_remove(id.slot as usize);
        }
    }

    /// Reads or writes once. May be called at any time.
    pub(crate) fn advance(&mut self, id: OtaId, io: &Io) -> Progress {
        if let Some(progress) = self.advance_upstream(id, io) {
            return progress;
        }
        let Some(conn) = connection_mut(&mut self.connections, id) else { return Progress::Wait };
        if conn.transport.is_open() {
            return conn.advance(&mut self.scratch, io.now);
        }
        match conn.transport.advance(None, &mut self.scratch) {
            HandshakeStep::Blocked => Progress::Wait,
            HandshakeStep::ProxiedFor(source) => {
                if let ProxySource::Client(client) = source {
                    conn.ip = client.ip().to_canonical();
                }
                Progress::Continue
            }
            HandshakeStep::Done => Progress::Continue,
            HandshakeStep::BadProxyHeader(bad) => {
                if self.proxy_log.allows((), io.now).is_some() {
                    let ip = conn.ip;
                    warn!(
                        "OTA: [{ip}] refused a connection from an address in mqtt.proxy_protocol_from: {bad}"
                    );
                }
                Progress::Close
            }
            HandshakeStep::PeerClosed | HandshakeStep::NotTls(..) | HandshakeStep::TlsFailed(_) => {
                Progress::Close
            }
        }
    }

    /// Queues the response to the request of this connection; with `head_only`, without its body.
    pub(crate) fn respond(&mut self, id: OtaId, response: &OtaResponse, head_only: bool, io: &Io) {
        if let Some(conn) = connection_mut(&mut self.connections, id) {
            conn.respond(response, head_only, io.now);
        }
    }

    /// The timer of a connection has expired. True: it is to be advanced.
    pub(crate) fn on_timer(&mut self, id: OtaId, tick: u64, io: &mut Io) -> bool {
        let Some(conn) =
            connection_mut(&mut self.connections, id).filter(|conn| conn.timer_tick == Some(tick))
        else {
            return false;
        };
        conn.timer_tick = None;
        if conn.deadline() > io.now {
            self.arm_timer(id, io);
            return false;
        }
        if conn.upstream().is_some() {
            return true;
        }
        self.close_connection(id);
        false
    }

    /// Makes sure that a timer expires at this connection's deadline.
    pub(crate) fn arm_timer(&mut self, id: OtaId, io: &mut Io) {
        let Some(conn) = connection_mut(&mut self.connections, id) else { return };
        let deadline = conn.deadline();
        let tick = io.timers.tick(deadline);
        if conn.timer_tick.is_none_or(|armed| tick < armed) {
            conn.timer_tick = Some(io.timers.arm(deadline, TimerKind::Ota(id)));
        }
    }
}
