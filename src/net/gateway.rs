//! The gateway: it owns everything, and turns.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use std::{fmt, io, mem};

use log::{Level, debug, error, info, log, warn};
use mio::event::Event;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Waker};

use super::backend::Backend;
use super::calls::TlsClients;
use super::datagrams::Datagrams;
use super::doorkeeper::Doorkeeper;
use super::handle::{Addresses, Command, Handle};
use super::index::{Index, Sightings};
use super::metrics::Metrics;
use super::resolver::Resolver;
use super::session::Sessions;
use super::token::{self, Role, SessionId};
use super::watch::{self, Watch};
use super::wheel::Wheel;
use super::{accept, grant};
use crate::config::{self, Config, Source};
use crate::logger;
use crate::proto::mqtt::{ConnectCode, encode};
use crate::session::{Action, Admission, Core, Cx, Note, Reason, Servers, Summary};

const MQTT: usize = 0;
const UDP: usize = 1;
const WAKER: usize = 2;

/// How long a socket waits for its peer's last word.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// Events per poll.
const EVENTS: usize = 1024;
/// One read of a device.
const SCRATCH: usize = 64 * 1024;

/// The whole gateway. It is bound and run on the same thread; [`Running`](super::Running) does both on a thread of its
/// own.
pub struct Gateway {
    pub(super) poll: Poll,
    pub(super) listener: TcpListener,
    pub(super) udp: Datagrams,
    pub(super) sessions: Sessions,
    pub(super) index: Index,
    pub(super) wheel: Wheel<Alarm>,
    pub(super) actions: Vec<Action>,
    dirty: Vec<SessionId>,
    doomed: Vec<SessionId>,
    pub(super) ready: VecDeque<Ready>,
    pub(super) scratch: Box<[u8]>,
    due: Vec<(u64, Alarm)>,
    pub(super) config: Arc<Config>,
    source: Option<Source>,
    watch: Option<Watch>,
    pub(super) servers: Servers,
    pub(super) resolver: Resolver,
    pub(super) tickets: HashMap<u64, SessionId>,
    pub(super) next_ticket: u64,
    pub(super) names: Vec<(u64, Result<Vec<SocketAddr>, String>)>,
    pub(super) tls: TlsClients,
    pub(super) dial_queue: VecDeque<SessionId>,
    pub(super) dialing: usize,
    pub(super) doorkeeper: Doorkeeper,
    pub(super) sightings: Sightings,
    pub(super) per_ip: accept::PerIp,
    pub(super) accepting: bool,
    pub(super) metrics: Metrics,
    /// Where a connection's device went when it took over a call.
    pub(super) moved: Option<SessionId>,
    pub(super) now: Instant,
    addresses: Addresses,
    handle: Handle,
    commands: Receiver<Command>,
    stopping: Option<Instant>,
}

/// What the wheel rings for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    Session(SessionId),
    /// Try accepting again after descriptors ran out.
    Accept,
    /// Look at the configuration file.
    Watch,
    /// The grace of the shutdown is over.
    Stop,
}

/// Work left over from an earlier turn, which no edge will announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    Accept,
    Udp,
    Device(SessionId),
    Backend(SessionId),
    /// A device does not read what it is sent.
    SlowDevice(SessionId),
    /// A chat server does not read its text.
    SlowBackend(SessionId),
    /// A place for a dial became free.
    Dials,
}

/// Why a gateway cannot start: one line for the operator.
#[derive(Debug)]
pub enum BindError {
    /// A port cannot be listened on: what for, where, and the system's word.
    Port(&'static str, SocketAddr, io::Error),
    /// Something else was refused by the system.
    Setup(&'static str, io::Error),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(what, addr, error) => {
                write!(f, "cannot listen on {what} port {} ({addr}): {error}", addr.port())?;
                match error.kind() {
                    io::ErrorKind::AddrInUse => f.write_str("; another program uses it"),
                    io::ErrorKind::PermissionDenied => {
                        f.write_str("; ports below 1024 need a privilege: choose another or grant it")
                    }
                    _ => Ok(()),
                }
            }
            Self::Setup(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for BindError {}

impl Gateway {
    /// Opens all sockets. With a `source`, its file is watched and can be read again.
    ///
    /// # Errors
    /// A port that is in use or not permitted, or a system without descriptors.
    pub fn bind(config: Config, source: Option<Source>) -> Result<Self, BindError> {
        let setup = |what| move |error| BindError::Setup(what, error);
        let poll = Poll::new().map_err(setup("poll"))?;
        let waker =
            Arc::new(Waker::new(poll.registry(), token::fixed(WAKER)).map_err(setup("create a waker"))?);
        let mqtt = SocketAddr::new(config.mqtt.host, config.mqtt.port);
        let mut listener = accept::listen(mqtt).map_err(|error| BindError::Port("MQTT", mqtt, error))?;
        let udp = SocketAddr::new(config.udp.host, config.udp.port);
        let mut datagrams = Datagrams::bind(udp).map_err(|error| BindError::Port("UDP", udp, error))?;
        let addresses = Addresses {
            mqtt: listener.local_addr().map_err(setup("read the MQTT address"))?,
            udp: datagrams.local_addr().map_err(setup("read the UDP address"))?,
        };
        let readable = Interest::READABLE;
        let registry = poll.registry();
        registry.register(&mut listener, token::fixed(MQTT), readable).map_err(setup("register"))?;
        let both = readable | Interest::WRITABLE;
        registry.register(datagrams.source(), token::fixed(UDP), both).map_err(setup("register"))?;
        let (handle, commands) = Handle::new(waker.clone());
        let now = Instant::now();
        let mut gateway = Self {
            poll,
            listener,
            udp: datagrams,
            sessions: Sessions::default(),
            index: Index::default(),
            wheel: Wheel::new(now),
            actions: Vec::new(),
            dirty: Vec::new(),
            doomed: Vec::new(),
            ready: VecDeque::new(),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            due: Vec::new(),
            watch: source.as_ref().and_then(|source| source.path()).map(|path| Watch::new(path.to_owned())),
            config: Arc::new(config),
            source,
            servers: Servers::default(),
            resolver: Resolver::new(waker),
            tickets: HashMap::new(),
            next_ticket: 0,
            names: Vec::new(),
            tls: TlsClients::default(),
            dial_queue: VecDeque::new(),
            dialing: 0,
            doorkeeper: Doorkeeper::default(),
            sightings: Sightings::default(),
            per_ip: accept::PerIp::default(),
            accepting: true,
            metrics: Metrics::default(),
            moved: None,
            now,
            addresses,
            handle,
            commands,
            stopping: None,
        };
        if gateway.watch.is_some() {
            gateway.wheel.arm(now + watch::INTERVAL, Alarm::Watch);
        }
        Ok(gateway)
    }

    /// Where it listens, with the ports the system chose where 0 was configured.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// To steer it from other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// What was counted since the start.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Turns until it is stopped.
    ///
    /// # Errors
    /// When the system's poll fails.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        while !self.is_stopped() {
            self.turn(&mut events)?;
        }
        Ok(())
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    fn is_stopped(&self) -> bool {
        self.stopping.is_some_and(|until| until <= self.now || self.sessions.len() == 0)
    }

    // ----- the turn -----------------------------------------------------------------------------------------------

    fn turn(&mut self, events: &mut Events) -> io::Result<()> {
        let sleep = match self.ready.is_empty() {
            true => self.wheel.next().map(|at| at.saturating_duration_since(Instant::now())),
            false => Some(Duration::ZERO),
        };
        match self.poll.poll(events, sleep) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => events.clear(),
            Err(error) => return Err(error),
        }
        self.now = Instant::now();
        let leftovers = self.ready.len();
        for event in events.iter() {
            self.dispatch(event);
        }
        for _ in 0..leftovers {
            match self.ready.pop_front() {
                Some(ready) => self.go_on(ready),
                None => break,
            }
        }
        self.fire_timers();
        self.flush();
        self.bury();
        Ok(())
    }

    fn dispatch(&mut self, event: &Event) {
        let (role, slot) = token::split(event.token());
        match role {
            Role::Fixed if slot == MQTT => self.accept(),
            Role::Fixed if slot == UDP => {
                self.drain_udp();
                // Its writable edge lets a full queue go at the end of the turn.
            }
            Role::Fixed => self.notes(),
            Role::Device => {
                if let Some(id) = self.sessions.at(slot) {
                    if event.is_writable() {
                        self.touch(id);
                    }
                    self.pump_device(id);
                }
            }
            Role::Backend => {
                if let Some(id) = self.sessions.at(slot) {
                    if event.is_writable() {
                        self.touch(id);
                    }
                    self.pump_backend(id);
                }
            }
            Role::Admin => {}
        }
    }

    fn go_on(&mut self, ready: Ready) {
        match ready {
            Ready::Accept => self.accept(),
            Ready::Udp => self.drain_udp(),
            Ready::Device(id) => self.pump_device(id),
            Ready::Backend(id) => self.pump_backend(id),
            Ready::SlowDevice(id) => self.drive(id, Core::blocked),
            Ready::SlowBackend(id) => self.drive(id, Core::backend_blocked),
            Ready::Dials => self.start_dials(),
        }
    }

    /// What other threads have to say: names that were resolved, commands.
    fn notes(&mut self) {
        self.collect_names();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Stop(grace) => self.stop(grace),
                Command::Reload(config) => self.reload(*config),
                Command::ReloadFile => self.reload_file(),
            }
        }
    }

    fn fire_timers(&mut self) {
        let mut due = mem::take(&mut self.due);
        self.wheel.expire(self.now, &mut due);
        for (tick, alarm) in due.drain(..) {
            match alarm {
                Alarm::Session(id) => self.session_alarm(id, tick),
                Alarm::Accept => self.resume_accepting(),
                Alarm::Watch => self.look_at_file(),
                Alarm::Stop => {}
            }
        }
        self.due = due;
    }

    fn session_alarm(&mut self, id: SessionId, tick: u64) {
        let now = self.now;
        let Some(session) = self.sessions.live(id) else { return };
        if session.alarm != Some(tick) {
            return;
        }
        session.alarm = None;
        let lingered = session.linger.is_some_and(|until| until <= now);
        let refusal =
            session.device.as_ref().and_then(|device| device.hold_until).is_some_and(|at| at <= now);
        let address = session.backend.as_ref().and_then(|backend| backend.next_address_at());
        if lingered {
            session.linger = None;
            if session.device.as_ref().is_some_and(|device| device.closing) {
                self.drop_device(id);
            }
            if self.sessions.get(id).is_some_and(|session| session.core.is_over()) {
                self.drop_backend(id);
            }
        }
        if refusal {
            self.touch(id);
        }
        if address.is_some_and(|at| at <= now) {
            self.advance_dial(id, Backend::advance);
        }
        self.drive(id, Core::timeout);
        self.rearm(id);
    }

    /// Makes sure that the wheel rings for this session's next deadline.
    pub(super) fn rearm(&mut self, id: SessionId) {
        let Some(session) = self.sessions.live(id) else { return };
        let Some(deadline) = session.deadline() else { return };
        let tick = self.wheel.tick(deadline);
        if session.alarm.is_none_or(|armed| tick < armed) {
            session.alarm = Some(self.wheel.arm(deadline, Alarm::Session(id)));
        }
    }

    /// Marks a session for the flush at the end of the turn.
    pub(super) fn touch(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.live(id)
            && !mem::replace(&mut session.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    /// Writes what the turn has queued: datagrams in one batch, then each touched socket once. Text waits for audio
    /// that came before it.
    fn flush(&mut self) {
        let flushed = self.udp.flush();
        self.metrics.datagrams_out += flushed.sent as u64;
        self.metrics.datagrams_failed += flushed.failed as u64;
        let mut touched = mem::take(&mut self.dirty);
        let mut i = 0;
        while i < touched.len() {
            let id = touched[i];
            i += 1;
            let Some(session) = self.sessions.live(id) else { continue };
            if flushed.blocked && session.core.ssrc().is_some() {
                self.dirty.push(id);
                continue;
            }
            session.dirty = false;
            let broken = session.backend.as_mut().is_some_and(|backend| !backend.flush());
            if broken {
                self.ready.push_back(Ready::Backend(id));
            }
            self.flush_device(id);
            if i == touched.len() && !flushed.blocked {
                // Flushing may have touched others.
                touched.append(&mut self.dirty);
            }
        }
        if self.dirty.is_empty() {
            touched.clear();
            self.dirty = touched;
        }
    }

    /// Frees the slots of sessions of which nothing is left.
    fn bury(&mut self) {
        while let Some(id) = self.doomed.pop() {
            let Some(session) = self.sessions.live(id) else { continue };
            session.doomed = false;
            if !session.is_spent() {
                continue;
            }
            self.sessions.remove(id);
        }
    }

    pub(super) fn bury_if_spent(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.live(id)
            && session.is_spent()
            && !mem::replace(&mut session.doomed, true)
        {
            self.doomed.push(id);
        }
    }

    // ----- the core decides, the shell does -----------------------------------------------------------------------

    /// Lets a core decide, then does what it says, then sees to its alarm.
    pub(super) fn drive(&mut self, id: SessionId, decide: impl FnOnce(&mut Core, &mut Cx<'_>)) {
        debug_assert!(self.actions.is_empty(), "no action is left for the next session");
        let Some(session) = self.sessions.live(id) else { return };
        let mut cx =
            Cx { now: self.now, config: &self.config, servers: &mut self.servers, out: &mut self.actions };
        decide(&mut session.core, &mut cx);
        self.apply(id);
    }

    fn apply(&mut self, id: SessionId) {
        if !self.actions.is_empty() {
            let mut actions = mem::take(&mut self.actions);
            for action in actions.drain(..) {
                self.carry_out(id, action);
            }
            if self.actions.is_empty() {
                self.actions = actions;
            }
        }
        self.rearm(id);
        self.bury_if_spent(id);
    }

    fn carry_out(&mut self, id: SessionId, action: Action) {
        match action {
            Action::Admit => self.admit(id),
            Action::Welcome => self.write_device(id, |out| encode::connack(out, ConnectCode::Accepted)),
            Action::Refuse(code) => self.refuse(id, code),
            Action::SubAck { packet_id, filters } => {
                self.write_device(id, |out| encode::suback(out, packet_id, filters));
            }
            Action::UnsubAck(packet_id) => self.write_device(id, |out| encode::unsuback(out, packet_id)),
            Action::PingResp => self.write_device(id, encode::pingresp),
            Action::Publish(text) => self.publish(id, &text),
            Action::Grant => self.grant(id),
            Action::Dial(request) => self.dial(id, request),
            Action::Say(text) => self.say(id, text),
            Action::Ping => {
                if let Some(backend) = self.sessions.live(id).and_then(|session| session.backend.as_mut()) {
                    // A server that takes no ping does not read: its missing pong will tell.
                    let _ = backend.ping();
                    self.touch(id);
                }
            }
            Action::HangUp(code) => self.hang_up(id, code),
            Action::Datagram(sealed, bytes) => self.queue_datagram(id, sealed, &bytes),
            Action::FlushAudio(ssrc) => {
                for _ in 0..self.udp.drop_queued(ssrc) {
                    self.metrics.discarded(crate::session::Discard::Aborted);
                }
            }
            Action::Ended(summary) => self.call_ended(id, &summary),
            Action::Count(counter) => self.metrics.count(counter),
            Action::Note(note) => self.note(id, &note),
            Action::Close(reason) => self.close_device(id, &reason),
        }
    }

    fn publish(&mut self, id: SessionId, text: &str) {
        let Some(client_id) = self.sessions.get(id).and_then(|session| session.core.client_id()) else {
            return;
        };
        let topic = format!("devices/p2p/{}", client_id.mac().underscored());
        self.write_device(id, |out| encode::publish(out, &topic, text.as_bytes()));
    }

    fn say(&mut self, id: SessionId, text: String) {
        let Some(backend) = self.sessions.live(id).and_then(|session| session.backend.as_mut()) else {
            return;
        };
        if backend.send_text(text).is_err() {
            self.ready.push_back(Ready::SlowBackend(id));
        }
        self.touch(id);
    }

    fn grant(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else { return };
        let local = session.device.as_ref().and_then(|device| device.local_ip());
        let ip = session.core.ip();
        let mut grant = match grant::mint(&self.index) {
            Ok(grant) => grant,
            Err(error) => {
                error!("the system's random source failed, the call is refused: {error}");
                return self.drive(id, |core, cx| core.shutdown(cx));
            }
        };
        let limit = self.config.websocket.max_calls;
        grant.allowed = limit == 0 || self.index.calls() < limit;
        grant.udp_host = grant::udp_host(&self.config.udp.public_ip, local);
        grant.udp_port = self.addresses.udp.port();
        self.index.add_call(grant.ssrc, id);
        self.sightings.watch(ip);
        if let Some(session) = self.sessions.live(id) {
            session.call_ip = Some(ip);
        }
        self.drive(id, |core, cx| core.granted(grant, cx));
    }

    fn call_ended(&mut self, id: SessionId, summary: &Summary) {
        if let Some(ssrc) = summary.ssrc {
            self.index.remove_call(ssrc, id);
        }
        if let Some(ip) = self.sessions.live(id).and_then(|session| session.call_ip.take()) {
            self.sightings.forget(ip);
        }
        self.metrics.ended(summary);
        let facts = &summary.facts;
        let server = summary.server.as_ref().map_or("none".to_owned(), |server| server.to_string());
        info!(
            "{} call ends: session={} reason={} duration={:.3}s server={server} up={}p/{}B down={}p/{}B lost={} \
             reordered={} duplicates={} dropped={} redials={}",
            self.prefix(id),
            summary.session_id,
            summary.reason.label(),
            summary.duration.as_secs_f64(),
            facts.up_packets,
            facts.up_bytes,
            facts.down_packets,
            facts.down_bytes,
            facts.lost,
            facts.reordered,
            facts.duplicates,
            facts.dropped,
            facts.redials,
        );
    }

    fn note(&mut self, id: SessionId, note: &Note) {
        let level = match note {
            Note::CallBegan { .. } => Level::Info,
            Note::Redialling { .. } | Note::Redialled { .. } | Note::Away(_) => Level::Info,
            Note::Connected { .. } | Note::DialFailed { .. } | Note::Tools(_) => Level::Debug,
            Note::ServerRecovered { .. } => Level::Info,
            _ => Level::Warn,
        };
        match note {
            Note::ServerFailing { .. } | Note::ServerRecovered { .. } => log!(level, "{note}"),
            Note::Unheard { .. } => {
                let ip = self.sessions.get(id).map(|session| session.core.ip());
                let seen = ip.map(|ip| self.sightings.of(ip)).unwrap_or_default();
                log!(level, "{} {note}; {}", self.prefix(id), grant::seen(&seen));
            }
            _ => log!(level, "{} {note}", self.prefix(id)),
        }
    }

    /// What every line of a session begins with.
    pub(super) fn prefix(&self, id: SessionId) -> String {
        let session = self.sessions.get(id);
        let peer = session.and_then(|session| session.device.as_ref()).map(|device| device.peer);
        let client_id = session.and_then(|session| session.core.client_id()).map(|id| id.as_str());
        match (client_id, peer) {
            (Some(client_id), Some(peer)) => format!("[{client_id} {peer}]"),
            (Some(client_id), None) => format!("[{client_id}]"),
            (None, Some(peer)) => format!("[{peer}]"),
            (None, None) => "[gone]".to_owned(),
        }
    }

    // ----- letting in and out -------------------------------------------------------------------------------------

    /// Credentials are good: an older connection of the same device gives way, or lends its call.
    fn admit(&mut self, id: SessionId) {
        let Some(client_id) = self.sessions.get(id).and_then(|session| session.core.client_id()) else {
            return;
        };
        let mac = client_id.mac();
        let older = self.index.device(client_id, &self.sessions);
        let full = older.is_none() && self.index.devices() >= self.config.mqtt.max_connections;
        if full {
            return self.drive(id, |core, cx| core.admitted(Admission::Full, cx));
        }
        self.metrics.admitted += 1;
        if let Some(older) = older {
            let keep = !self.config.mqtt.resume_grace.is_zero();
            if keep && self.sessions.get(older).is_some_and(|session| session.core.has_call()) {
                return self.take_over(id, older);
            }
            self.drive(older, Core::replaced);
        }
        self.index.add_device(mac, id, &self.sessions);
        self.drive(id, |core, cx| core.admitted(Admission::Welcome, cx));
    }

    /// The call stays where it is; the new connection moves into its session.
    fn take_over(&mut self, id: SessionId, older: SessionId) {
        let now = self.now;
        let Some(session) = self.sessions.live(id) else { return };
        let Some(mut device) = session.device.take() else { return };
        let mut retired = Core::new(session.core.ip(), now);
        retired.retire();
        let newer = mem::replace(&mut session.core, retired);
        self.bury_if_spent(id);
        let token = token::token(Role::Device, older.slot as usize);
        let both = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().reregister(&mut device.tcp, token, both) {
            error!("{} cannot take over: {error}", self.prefix(older));
            return;
        }
        if let Some(session) = self.sessions.live(older) {
            if let Some(left) = session.device.replace(device) {
                self.per_ip.left(left.peer.ip());
            }
            session.linger = None;
        }
        self.moved = Some(older);
        self.drive(older, |core, cx| core.take_over(newer, cx));
    }

    fn refuse(&mut self, id: SessionId, code: ConnectCode) {
        let now = self.now;
        let ip = self.sessions.get(id).map_or(IpAddr::from([0, 0, 0, 0]), |session| session.core.ip());
        self.write_device(id, |out| encode::connack(out, code));
        if !matches!(code, ConnectCode::Credentials | ConnectCode::NotAuthorised) {
            return;
        }
        let delay = self.doorkeeper.failed(ip, now);
        if let Some(device) = self.sessions.live(id).and_then(|session| session.device.as_mut())
            && !delay.is_zero()
        {
            device.hold_until = Some(now + delay);
        }
    }

    fn close_device(&mut self, id: SessionId, reason: &Reason) {
        self.log_close(id, reason);
        let now = self.now;
        let Some(session) = self.sessions.live(id) else { return };
        if session.core.is_gone() {
            if let Some(mac) = session.core.client_id().map(|client_id| client_id.mac()) {
                self.index.remove_device(mac, id);
            }
        }
        let Some(session) = self.sessions.live(id) else { return };
        match &mut session.device {
            Some(device) => {
                device.closing = true;
                let from = device.hold_until.unwrap_or(now);
                session.linger = Some(from + LINGER);
                self.touch(id);
            }
            None => self.bury_if_spent(id),
        }
    }

    fn log_close(&mut self, id: SessionId, reason: &Reason) {
        let prefix = self.prefix(id);
        match reason {
            Reason::Refused(..) => {
                let Some(ip) = self.sessions.get(id).map(|session| session.core.ip()) else { return };
                match self.doorkeeper.log_worthy(ip, self.now) {
                    Some(0) => warn!("{prefix} {reason}"),
                    Some(suppressed) => {
                        warn!("{prefix} {reason} ({suppressed} more refused from this address)")
                    }
                    None => debug!("{prefix} {reason}"),
                }
            }
            Reason::HelloVersion(_) => warn!("{prefix} closed: {reason}"),
            _ => debug!("{prefix} closed: {reason}"),
        }
    }

    pub(super) fn drop_device(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.live(id)
            && let Some(device) = session.device.take()
        {
            session.linger = None;
            self.per_ip.left(device.peer.ip());
        }
        self.bury_if_spent(id);
    }

    // ----- reload and stop ----------------------------------------------------------------------------------------

    fn look_at_file(&mut self) {
        if self.watch.as_mut().is_some_and(Watch::look) {
            self.reload_file();
        }
        self.wheel.arm(self.now + watch::INTERVAL, Alarm::Watch);
    }

    fn reload_file(&mut self) {
        let Some(source) = &self.source else {
            return info!("reload: there is no configuration file to read");
        };
        match source.load() {
            Ok(config) => self.reload(config),
            Err(error) => error!("reload: nothing changes: {error}"),
        }
    }

    fn reload(&mut self, new: Config) {
        let changes = match config::check_reload(&self.config, &new) {
            Ok(changes) => changes,
            Err(error) => return error!("reload: nothing changes: {error}"),
        };
        if changes.is_empty() {
            return info!("reload: nothing has changed");
        }
        let new = new.after_reload(&self.config);
        for warning in new.warnings() {
            warn!("{warning}");
        }
        logger::set_level(new.log_level());
        self.config = Arc::new(new);
        self.tls.clear();
        self.recount();
        info!("reload: applied: {}; needs restart: {}", list(&changes.applied), list(&changes.needs_restart));
        self.start_dials();
    }

    fn stop(&mut self, grace: Duration) {
        if self.stopping.is_some() {
            self.stopping = Some(self.now);
            return;
        }
        info!("stopping: {} calls, {} devices", self.index.calls(), self.index.devices());
        self.stopping = Some(self.now + grace);
        self.wheel.arm(self.now + grace, Alarm::Stop);
        self.accepting = false;
        let _ = self.poll.registry().deregister(&mut self.listener);
        for id in self.sessions.ids() {
            self.drive(id, Core::shutdown);
        }
    }
}

fn list(keys: &[&str]) -> String {
    if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") }
}
