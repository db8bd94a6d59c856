//! The management API's connections: accepted, read, answered, and closed in time, all in the gateway's own loop.
//!
//! Nobody can occupy it: a request must be there in its time, an answer must be read in its time, and when all places are
//! taken, the connection that has waited longest for its request makes room for a newcomer.

mod collect;
mod connection;
mod dispatch;
mod handlers;
mod proc_stats;

use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use log::{debug, warn};
use mio::Interest;
use mio::net::{TcpListener, TcpStream};
use slab::Slab;
use tz::TimeZone;

use self::connection::{Begun, Connection, ConnectionState};
pub(in crate::net) use self::dispatch::{AdminRequest, AdminResponse};
use crate::admin::auth::{self, WallClock};
use crate::admin::body::{Body, Framing};
use crate::admin::dashboard;
use crate::admin::error::{ApiError, ErrorStyle};
use crate::admin::http::{self, RequestError, RequestHead, Response};
use crate::admin::recent_errors::{RecentErrorKind, RecentErrors};
use crate::admin::routes::{self, Access};
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::{self, Role};
use crate::net::event_loop::write_buffer::Flush;
use crate::net::gateway::{Gateway, LINGER, TimerKind};
use crate::net::mqtt::listener;

/// Connections at once.
const MAX_CONNECTIONS: usize = 128;
/// Connections accepted per dispatch.
const ACCEPT_BUDGET: usize = 64;
/// Reads, writes and requests per dispatch and connection: enough for one request, so that many that are sent at once
/// hold up no call.
const STEP_BUDGET: usize = 4;
/// How long accepting pauses when descriptors ran out.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// A connection that may be gone by the time it is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::net) struct ConnId {
    slot: u32,
    epoch: u32,
}

/// The listener and its connections.
pub(in crate::net) struct AdminServer {
    listener: Option<TcpListener>,
    connections: Slab<Connection>,
    epoch: u32,
    /// Of requests, so that each has a ticket of its own.
    last_request_id: u32,
    /// Local time; UTC where the system does not tell.
    time_zone: TimeZone,
    /// What went wrong lately, at any worker.
    recent_errors: Arc<Mutex<RecentErrors>>,
    content_security_policy: String,
    started_at: SystemTime,
}

/// What comes after a step.
enum Progress {
    Continue,
    /// An event or an alarm.
    Wait,
    /// The connection is over.
    Close,
}

impl AdminServer {
    /// Listens on this address; not at all without one.
    pub(in crate::net) fn bind(addr: Option<SocketAddr>) -> io::Result<Self> {
        Ok(Self {
            listener: addr.map(|addr| listener::listen(addr, false)).transpose()?,
            connections: Slab::new(),
            epoch: 0,
            last_request_id: 0,
            time_zone: local_time_zone(),
            recent_errors: Arc::default(),
            content_security_policy: dashboard::content_security_policy(),
            started_at: SystemTime::now(),
        })
    }

    pub(in crate::net) fn listener(&mut self) -> Option<&mut TcpListener> {
        self.listener.as_mut()
    }

    fn connection_mut(&mut self, id: ConnId) -> Option<&mut Connection> {
        self.connections.get_mut(id.slot as usize).filter(|conn| conn.epoch == id.epoch)
    }

    /// Remembers what went wrong, for operators to read.
    pub(in crate::net) fn record_error(
        &mut self,
        kind: RecentErrorKind,
        device: Option<&str>,
        sentence: &str,
    ) {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.recent_errors().record(at.as_millis() as u64, kind, device, sentence);
    }

    /// Whole after every note, so that those of a worker that panicked are good too.
    fn recent_errors(&self) -> MutexGuard<'_, RecentErrors> {
        self.recent_errors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where other workers may note theirs.
    pub(in crate::net) fn shared_recent_errors(&self) -> Arc<Mutex<RecentErrors>> {
        self.recent_errors.clone()
    }

    /// Notes trouble at the leader from now on.
    pub(in crate::net) fn set_recent_errors(&mut self, errors: Arc<Mutex<RecentErrors>>) {
        self.recent_errors = errors;
    }

    /// Names a request of this connection; the answer may come later.
    fn next_request_id(&mut self, id: ConnId) -> u64 {
        self.last_request_id = self.last_request_id.wrapping_add(1);
        u64::from(self.last_request_id) << 32 | u64::from(id.slot)
    }

    fn wall_clock(&self) -> WallClock {
        let unix =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        let local = self.time_zone.find_local_time_type(unix);
        WallClock {
            unix_seconds: unix,
            utc_offset_seconds: local.map_or(0, |local| local.ut_offset().into()),
        }
    }
}

/// What `TZ` names, else the system's zone, else UTC.
fn local_time_zone() -> TimeZone {
    let named = std::env::var("TZ").ok().filter(|name| !name.is_empty());
    let zone = named.map_or_else(TimeZone::local, |name| TimeZone::from_posix_tz(&name));
    zone.unwrap_or_else(|_| TimeZone::utc())
}

impl Gateway {
    pub(in crate::net) fn accept_admin(&mut self) {
        for _ in 0..ACCEPT_BUDGET {
            let Some(listener) = &self.admin.listener else { return };
            match listener.accept() {
                Ok((tcp, peer)) => self.register_admin(tcp, peer),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    // Out of descriptors: one that only waits may have one to give.
                    if !self.evict_admin() {
                        warn!(
                            "management API: cannot accept: {error}; trying again in {} ms",
                            ACCEPT_RETRY_DELAY.as_millis()
                        );
                        self.timers.arm(self.now + ACCEPT_RETRY_DELAY, TimerKind::AcceptAdmin);
                        return;
                    }
                }
            }
        }
        self.run_queue.push(Task::AcceptAdmin);
    }

    fn register_admin(&mut self, mut tcp: TcpStream, peer: SocketAddr) {
        self.metrics.api_connections += 1;
        if self.admin.connections.len() >= MAX_CONNECTIONS {
            self.evict_admin();
        }
        let entry = self.admin.connections.vacant_entry();
        let token = token::token(Role::Admin, entry.key());
        if let Err(error) =
            self.poll.registry().register(&mut tcp, token, Interest::READABLE | Interest::WRITABLE)
        {
            return warn!("management API: [{peer}] cannot register: {error}");
        }
        // A connection without the option still works.
        let _ = tcp.set_nodelay(true);
        self.admin.epoch = self.admin.epoch.wrapping_add(1);
        let id = ConnId { slot: entry.key() as u32, epoch: self.admin.epoch };
        entry.insert(Connection::new(tcp, peer, id.epoch, self.now));
        self.arm_admin_timer(id);
    }

    /// Closes the connection that is least of a loss. False when there is none.
    fn evict_admin(&mut self) -> bool {
        let Some((slot, conn)) = self
            .admin
            .connections
            .iter()
            .min_by_key(|(_, conn)| (conn.state.eviction_priority(), conn.state_since, conn.epoch))
        else {
            return false;
        };
        debug!("management API: [{}] makes room for a newcomer", conn.peer);
        self.admin.connections.remove(slot);
        self.metrics.api_displaced += 1;
        true
    }

    pub(in crate::net) fn on_admin_event(&mut self, slot: usize, readable: bool) {
        if let Some(conn) = self.admin.connections.get(slot)
            && (readable || matches!(conn.state, ConnectionState::Writing { .. }))
        {
            self.run_unless_queued(Task::Admin(ConnId { slot: slot as u32, epoch: conn.epoch }));
        }
    }

    /// Reads, answers and writes as far as the socket allows, within the budget. Harmless at any time.
    pub(in crate::net) fn drive_admin(&mut self, id: ConnId) {
        for _ in 0..STEP_BUDGET {
            match self.advance_admin(id) {
                Progress::Continue => {}
                Progress::Wait => return self.arm_admin_timer(id),
                Progress::Close => {
                    self.close_admin(id);
                    return;
                }
            }
        }
        self.run_queue.push(Task::Admin(id));
        self.arm_admin_timer(id);
    }

    fn close_admin(&mut self, id: ConnId) {
        if self.admin.connection_mut(id).is_some() {
            self.admin.connections.try_remove(id.slot as usize);
        }
    }

    fn advance_admin(&mut self, id: ConnId) -> Progress {
        let now = self.now;
        let Some(conn) = self.admin.connection_mut(id) else { return Progress::Wait };
        match &conn.state {
            ConnectionState::Reading(_) => self.read_request(id),
            ConnectionState::Pending(_) => Progress::Wait,
            ConnectionState::Writing { keep_alive } => {
                match (conn.write_buffer.flush(&mut conn.tcp), keep_alive) {
                    (Ok(Flush::Done), true) => conn.set_state(ConnectionState::Reading(None), now),
                    (Ok(Flush::Done), false) => conn.start_linger(now),
                    (Ok(Flush::Blocked), _) => Progress::Wait,
                    (Err(_), _) => Progress::Close,
                }
            }
            ConnectionState::Lingering => match conn.tcp.read(&mut self.scratch) {
                Ok(0) => Progress::Close,
                Ok(_) => Progress::Continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => Progress::Wait,
                Err(error) if error.kind() == ErrorKind::Interrupted => Progress::Continue,
                Err(_) => Progress::Close,
            },
        }
    }

    /// Serves the request if it is all there, else reads some more.
    fn read_request(&mut self, id: ConnId) -> Progress {
        let Some(conn) = self.admin.connection_mut(id) else { return Progress::Wait };
        let ConnectionState::Reading(begun) = &mut conn.state else { return Progress::Wait };
        if let Some(begun) = begun.take() {
            return self.read_body(id, begun);
        }
        if !conn.may_have_head() {
            return conn.read(None, &mut self.scratch, self.now);
        }
        let head = match http::parse_head(&conn.read_buffer) {
            Ok(Some(head)) => head,
            Ok(None) => return conn.read(None, &mut self.scratch, self.now),
            Err(refusal) => {
                return self.respond(id, &refusal.error().response(ErrorStyle::Coded), false, false);
            }
        };
        conn.read_buffer.drain(..head.length);
        let peer = conn.peer.ip();
        match self.authorize_request(&head, peer) {
            Ok(framing) => {
                let Some(conn) = self.admin.connection_mut(id) else { return Progress::Wait };
                if framing != Framing::Length(0) && head.expects_continue && conn.read_buffer.is_empty() {
                    // A client may go on without it.
                    let _ = io::Write::write(&mut conn.tcp, http::CONTINUE);
                }
                self.read_body(id, Box::new(Begun { head, body: Body::new(framing) }))
            }
            Err((refusal, keep_alive)) => self.reject_request(id, &head, refusal, keep_alive),
        }
    }

    fn read_body(&mut self, id: ConnId, mut begun: Box<Begun>) -> Progress {
        let Some(conn) = self.admin.connection_mut(id) else { return Progress::Wait };
        match begun.body.take(&mut conn.read_buffer) {
            Ok(None) => conn.read(Some(begun), &mut self.scratch, self.now),
            Ok(Some(body)) => self.dispatch_request(id, &begun.head, &body),
            Err(refusal) => self.reject_request(id, &begun.head, refusal.error(), false),
        }
    }

    /// Whether this is a request of HTTP, whether the caller may call at all, and then how the body ends. Else the error, and whether the connection can
    /// stay.
    fn authorize_request(
        &self,
        head: &RequestHead,
        peer: std::net::IpAddr,
    ) -> Result<Framing, (ApiError, bool)> {
        if let Some(why) = head.malformed {
            return Err((RequestError::Malformed(why).error(), false));
        }
        let needs_token = match routes::required_access(&head.path) {
            Access::Public => false,
            Access::Metrics => self.config.api.metrics_need_token,
            Access::Token => true,
        };
        if needs_token {
            // A body that came along is not read, so what follows it is not found.
            let keep_alive = head.keep_alive && head.body == Ok(Framing::Length(0));
            auth::authorize(head, peer, &self.config, self.admin.wall_clock())
                .map_err(|refusal| (refusal, keep_alive))?;
        }
        head.body.map_err(|refusal| (refusal.error(), false))
    }

    fn reject_request(
        &mut self,
        id: ConnId,
        head: &RequestHead,
        refusal: ApiError,
        keep_alive: bool,
    ) -> Progress {
        let response = refusal.response(routes::error_style(&head.path));
        self.respond(id, &response, keep_alive, head.method == http::Method::HEAD)
    }

    fn respond(&mut self, id: ConnId, response: &Response, keep_alive: bool, head_only: bool) -> Progress {
        let now = self.now;
        let class = usize::from(response.status / 100).min(self.metrics.api_answers.len() - 1);
        self.metrics.api_answers[class] += 1;
        let Some(conn) = self.admin.connection_mut(id) else { return Progress::Wait };
        // Nothing else waits, so it is taken however long it is.
        let _ = conn.write_buffer.append(|out| response.write(out, keep_alive, head_only));
        conn.set_state(ConnectionState::Writing { keep_alive }, now)
    }

    pub(in crate::net) fn on_admin_timer(&mut self, id: ConnId, tick: u64) {
        let now = self.now;
        let Some(conn) = self.admin.connection_mut(id).filter(|conn| conn.timer_tick == Some(tick)) else {
            return;
        };
        conn.timer_tick = None;
        if conn.deadline() > now {
            return self.arm_admin_timer(id);
        }
        match &conn.state {
            ConnectionState::Reading(begun) if begun.is_some() || !conn.read_buffer.is_empty() => {
                let style =
                    begun.as_ref().map_or(ErrorStyle::Coded, |begun| routes::error_style(&begun.head.path));
                let late = ApiError::new(408, "request_timeout", "The request did not come in its time.");
                self.respond(id, &late.response(style), false, false);
                self.drive_admin(id);
            }
            ConnectionState::Pending(pending) => {
                let (keep_alive, head_only) = (pending.keep_alive, pending.head_only);
                let late = ApiError::new(500, "timeout", "timeout").response(pending.endpoint.error_style());
                self.respond(id, &late, keep_alive, head_only);
                self.drive_admin(id);
            }
            ConnectionState::Reading(_) | ConnectionState::Writing { .. } | ConnectionState::Lingering => {
                self.close_admin(id)
            }
        }
    }

    /// Makes sure that the wheel rings for this connection's deadline.
    fn arm_admin_timer(&mut self, id: ConnId) {
        let Some(conn) = self.admin.connection_mut(id) else { return };
        let deadline = conn.deadline();
        let armed = conn.timer_tick;
        let tick = self.timers.tick(deadline);
        if armed.is_none_or(|armed| tick < armed) {
            let tick = self.timers.arm(deadline, TimerKind::Admin(id));
            if let Some(conn) = self.admin.connection_mut(id) {
                conn.timer_tick = Some(tick);
            }
        }
    }
}
