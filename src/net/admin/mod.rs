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

use self::connection::{Begun, Conn, Stage};
pub(super) use self::dispatch::{Errand, Reply};
use super::gateway::{Alarm, Gateway, LINGER};
use super::listener;
use super::run_queue::Ready;
use super::token::{self, Role};
use super::write_buffer::Flush;
use crate::admin::auth::{self, Clock};
use crate::admin::body::{Body, Framing};
use crate::admin::dashboard;
use crate::admin::error::{ApiError, ErrorStyle};
use crate::admin::http::{self, Head, Refusal, Response};
use crate::admin::recent_errors::{Kind, Troubles};
use crate::admin::routes::{self, Access};

/// Connections at once.
const MAX_CONNECTIONS: usize = 128;
/// Connections accepted per dispatch.
const ACCEPTS: usize = 64;
/// Reads, writes and requests per dispatch and connection: enough for one request, so that many that are sent at once
/// hold up no call.
const STEPS: usize = 4;
/// How long accepting pauses when descriptors ran out.
const PAUSE: Duration = Duration::from_millis(100);

/// A connection that may be gone by the time it is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ConnId {
    slot: u32,
    epoch: u32,
}

/// The listener and its connections.
pub(super) struct Admin {
    listener: Option<TcpListener>,
    conns: Slab<Conn>,
    epoch: u32,
    /// Of requests, so that each has a ticket of its own.
    tickets: u32,
    /// Local time; UTC where the system does not tell.
    zone: TimeZone,
    /// What went wrong lately, at any worker.
    troubles: Arc<Mutex<Troubles>>,
    page_policy: String,
    started: SystemTime,
}

/// What comes after a step.
enum Next {
    Again,
    /// An event or an alarm.
    Wait,
    /// The connection is over.
    Drop,
}

impl Admin {
    /// Listens on this address; not at all without one.
    pub(super) fn bind(addr: Option<SocketAddr>) -> io::Result<Self> {
        Ok(Self {
            listener: addr.map(|addr| listener::listen(addr, false)).transpose()?,
            conns: Slab::new(),
            epoch: 0,
            tickets: 0,
            zone: zone(),
            troubles: Arc::default(),
            page_policy: dashboard::policy(),
            started: SystemTime::now(),
        })
    }

    pub(super) fn listener(&mut self) -> Option<&mut TcpListener> {
        self.listener.as_mut()
    }

    fn live(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(id.slot as usize).filter(|conn| conn.epoch == id.epoch)
    }

    /// Remembers what went wrong, for operators to read.
    pub(super) fn trouble(&mut self, kind: Kind, device: Option<&str>, sentence: &str) {
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.troubles().note(at.as_millis() as u64, kind, device, sentence);
    }

    /// Whole after every note, so that those of a worker that panicked are good too.
    fn troubles(&self) -> MutexGuard<'_, Troubles> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where other workers may note theirs.
    pub(super) fn notebook(&self) -> Arc<Mutex<Troubles>> {
        self.troubles.clone()
    }

    /// Notes trouble at the leader from now on.
    pub(super) fn report_to(&mut self, troubles: Arc<Mutex<Troubles>>) {
        self.troubles = troubles;
    }

    /// Names a request of this connection; the answer may come later.
    fn ticket(&mut self, id: ConnId) -> u64 {
        self.tickets = self.tickets.wrapping_add(1);
        u64::from(self.tickets) << 32 | u64::from(id.slot)
    }

    fn clock(&self) -> Clock {
        let unix =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        let local = self.zone.find_local_time_type(unix);
        Clock { unix, offset: local.map_or(0, |local| local.ut_offset().into()) }
    }
}

/// What `TZ` names, else the system's zone, else UTC.
fn zone() -> TimeZone {
    let named = std::env::var("TZ").ok().filter(|name| !name.is_empty());
    let zone = named.map_or_else(TimeZone::local, |name| TimeZone::from_posix_tz(&name));
    zone.unwrap_or_else(|_| TimeZone::utc())
}

impl Gateway {
    pub(super) fn accept_admin(&mut self) {
        for _ in 0..ACCEPTS {
            let Some(listener) = &self.admin.listener else { return };
            match listener.accept() {
                Ok((tcp, peer)) => self.let_admin_in(tcp, peer),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    // Out of descriptors: one that only waits may have one to give.
                    if !self.displace_admin() {
                        warn!(
                            "management API: cannot accept: {error}; trying again in {} ms",
                            PAUSE.as_millis()
                        );
                        self.wheel.arm(self.now + PAUSE, Alarm::AcceptAdmin);
                        return;
                    }
                }
            }
        }
        self.ready.push(Ready::AcceptAdmin);
    }

    fn let_admin_in(&mut self, mut tcp: TcpStream, peer: SocketAddr) {
        self.metrics.api_connections += 1;
        if self.admin.conns.len() >= MAX_CONNECTIONS {
            self.displace_admin();
        }
        let entry = self.admin.conns.vacant_entry();
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
        entry.insert(Conn::new(tcp, peer, id.epoch, self.now));
        self.rearm_admin(id);
    }

    /// Closes the connection that is least of a loss. False when there is none.
    fn displace_admin(&mut self) -> bool {
        let Some((slot, conn)) =
            self.admin.conns.iter().min_by_key(|(_, conn)| (conn.stage.worth(), conn.since, conn.epoch))
        else {
            return false;
        };
        debug!("management API: [{}] makes room for a newcomer", conn.peer);
        self.admin.conns.remove(slot);
        self.metrics.api_displaced += 1;
        true
    }

    pub(super) fn admin_event(&mut self, slot: usize, readable: bool) {
        if let Some(conn) = self.admin.conns.get(slot)
            && (readable || matches!(conn.stage, Stage::Writing { .. }))
        {
            self.begin(Ready::Admin(ConnId { slot: slot as u32, epoch: conn.epoch }));
        }
    }

    /// Reads, answers and writes as far as the socket allows, within the budget. Harmless at any time.
    pub(super) fn pump_admin(&mut self, id: ConnId) {
        for _ in 0..STEPS {
            match self.step_admin(id) {
                Next::Again => {}
                Next::Wait => return self.rearm_admin(id),
                Next::Drop => {
                    self.drop_admin(id);
                    return;
                }
            }
        }
        self.ready.push(Ready::Admin(id));
        self.rearm_admin(id);
    }

    fn drop_admin(&mut self, id: ConnId) {
        if self.admin.live(id).is_some() {
            self.admin.conns.try_remove(id.slot as usize);
        }
    }

    fn step_admin(&mut self, id: ConnId) -> Next {
        let now = self.now;
        let Some(conn) = self.admin.live(id) else { return Next::Wait };
        match &conn.stage {
            Stage::Reading(_) => self.read_request(id),
            Stage::Asking(_) => Next::Wait,
            Stage::Writing { keep_alive } => match (conn.outbox.flush(&mut conn.tcp), keep_alive) {
                (Ok(Flush::Done), true) => conn.enter(Stage::Reading(None), now),
                (Ok(Flush::Done), false) => conn.part(now),
                (Ok(Flush::Blocked), _) => Next::Wait,
                (Err(_), _) => Next::Drop,
            },
            Stage::Parting => match conn.tcp.read(&mut self.scratch) {
                Ok(0) => Next::Drop,
                Ok(_) => Next::Again,
                Err(error) if error.kind() == ErrorKind::WouldBlock => Next::Wait,
                Err(error) if error.kind() == ErrorKind::Interrupted => Next::Again,
                Err(_) => Next::Drop,
            },
        }
    }

    /// Serves the request if it is all there, else reads some more.
    fn read_request(&mut self, id: ConnId) -> Next {
        let Some(conn) = self.admin.live(id) else { return Next::Wait };
        let Stage::Reading(begun) = &mut conn.stage else { return Next::Wait };
        if let Some(begun) = begun.take() {
            return self.read_body(id, begun);
        }
        if !conn.may_have_head() {
            return conn.read(None, &mut self.scratch, self.now);
        }
        let head = match http::head(&conn.inbox) {
            Ok(Some(head)) => head,
            Ok(None) => return conn.read(None, &mut self.scratch, self.now),
            Err(refusal) => {
                return self.respond(id, &refusal.error().response(ErrorStyle::Coded), false, false);
            }
        };
        conn.inbox.drain(..head.length);
        let peer = conn.peer.ip();
        match self.check(&head, peer) {
            Ok(framing) => {
                let Some(conn) = self.admin.live(id) else { return Next::Wait };
                if framing != Framing::Length(0) && head.expects_continue && conn.inbox.is_empty() {
                    // A client may go on without it.
                    let _ = io::Write::write(&mut conn.tcp, http::CONTINUE);
                }
                self.read_body(id, Box::new(Begun { head, body: Body::new(framing) }))
            }
            Err((refusal, keep_alive)) => self.refuse_request(id, &head, refusal, keep_alive),
        }
    }

    fn read_body(&mut self, id: ConnId, mut begun: Box<Begun>) -> Next {
        let Some(conn) = self.admin.live(id) else { return Next::Wait };
        match begun.body.take(&mut conn.inbox) {
            Ok(None) => conn.read(Some(begun), &mut self.scratch, self.now),
            Ok(Some(body)) => self.answer(id, &begun.head, &body),
            Err(refusal) => self.refuse_request(id, &begun.head, refusal.error(), false),
        }
    }

    /// Whether this is a request of HTTP, whether the caller may call at all, and then how the body ends. Else the error, and whether the connection can
    /// stay.
    fn check(&self, head: &Head, peer: std::net::IpAddr) -> Result<Framing, (ApiError, bool)> {
        if let Some(why) = head.malformed {
            return Err((Refusal::Malformed(why).error(), false));
        }
        let needs_token = match routes::access(&head.path) {
            Access::Open => false,
            Access::Metrics => self.config.api.metrics_need_token,
            Access::Token => true,
        };
        if needs_token {
            // A body that came along is not read, so what follows it is not found.
            let keep_alive = head.keep_alive && head.body == Ok(Framing::Length(0));
            auth::admit(head, peer, &self.config, self.admin.clock())
                .map_err(|refusal| (refusal, keep_alive))?;
        }
        head.body.map_err(|refusal| (refusal.error(), false))
    }

    fn refuse_request(&mut self, id: ConnId, head: &Head, refusal: ApiError, keep_alive: bool) -> Next {
        let response = refusal.response(routes::error_style(&head.path));
        self.respond(id, &response, keep_alive, head.method == http::Method::Head)
    }

    fn respond(&mut self, id: ConnId, response: &Response, keep_alive: bool, to_head: bool) -> Next {
        let now = self.now;
        let class = usize::from(response.status / 100).min(self.metrics.api_answers.len() - 1);
        self.metrics.api_answers[class] += 1;
        let Some(conn) = self.admin.live(id) else { return Next::Wait };
        // Nothing else waits, so it is taken however long it is.
        let _ = conn.outbox.append(|out| response.write(out, keep_alive, to_head));
        conn.enter(Stage::Writing { keep_alive }, now)
    }

    pub(super) fn admin_alarm(&mut self, id: ConnId, tick: u64) {
        let now = self.now;
        let Some(conn) = self.admin.live(id).filter(|conn| conn.alarm == Some(tick)) else { return };
        conn.alarm = None;
        if conn.deadline() > now {
            return self.rearm_admin(id);
        }
        match &conn.stage {
            Stage::Reading(begun) if begun.is_some() || !conn.inbox.is_empty() => {
                let style =
                    begun.as_ref().map_or(ErrorStyle::Coded, |begun| routes::error_style(&begun.head.path));
                let late = ApiError::new(408, "request_timeout", "The request did not come in its time.");
                self.respond(id, &late.response(style), false, false);
                self.pump_admin(id);
            }
            Stage::Asking(asking) => {
                let (keep_alive, to_head) = (asking.keep_alive, asking.to_head);
                let late = ApiError::new(500, "timeout", "timeout").response(asking.endpoint.error_style());
                self.respond(id, &late, keep_alive, to_head);
                self.pump_admin(id);
            }
            Stage::Reading(_) | Stage::Writing { .. } | Stage::Parting => self.drop_admin(id),
        }
    }

    /// Makes sure that the wheel rings for this connection's deadline.
    fn rearm_admin(&mut self, id: ConnId) {
        let Some(conn) = self.admin.live(id) else { return };
        let deadline = conn.deadline();
        let armed = conn.alarm;
        let tick = self.wheel.tick(deadline);
        if armed.is_none_or(|armed| tick < armed) {
            let tick = self.wheel.arm(deadline, Alarm::Admin(id));
            if let Some(conn) = self.admin.live(id) {
                conn.alarm = Some(tick);
            }
        }
    }
}
