//! The gateway: it owns everything, and turns.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use std::{fmt, io, mem};

use log::error;
use mio::event::Event;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Waker};

use super::admin::{AdminServer, ConnId};
use super::auth_throttle::{Doorkeeper, Sparse};
use super::backend_connection::Backend;
use super::call_log_limiter::Lines;
use super::certificate::CertificateError;
use super::coalesce::Pace;
use super::connector::TlsClients;
use super::context_pool::Contexts;
use super::device_calls::DeviceCalls;
use super::fd_limit;
use super::file_watch::Watch;
use super::handle::{Addresses, Command, Handle};
use super::index::{Index, Sightings};
use super::listener::{self, Door};
use super::memory_budget::Kept;
use super::memory_trim::Peak;
use super::metrics::Metrics;
use super::resolver::Resolver;
use super::run_queue::{Leftovers, Ready};
use super::sd_notify::Supervisor;
use super::socket::{Datagrams, Flushed};
use super::table::{NO_ALARM, Sessions};
use super::timer_wheel::Wheel;
use super::tls_listener::TlsDoor;
use super::token::{self, Role, SessionId};
use super::wakeup::Bell;
use super::workers::Team;
use crate::admin::recent_errors::RecentErrorKind;
use crate::config::{Api, Config, Source};
use crate::proto::proxy_protocol;
use crate::session::{Action, Core, ServerHealth};

const MQTT: usize = 0;
const UDP: usize = 1;
const WAKER: usize = 2;
const API: usize = 3;
pub(super) const MQTTS: usize = 4;
const BELL: usize = 5;

/// How long a socket waits for its peer's last word.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// Events per poll.
pub(super) const EVENTS: usize = 1024;
/// An alarm that rings this late was not waited for: the gateway did not run. Also how long it may then read.
const LATE: Duration = Duration::from_secs(1);
/// How long a turn serves devices' connections; what is left waits for the next turn, behind the audio that came.
const SLICE: Duration = Duration::from_millis(1);
/// The longest read from a device's connection: a balancer's header.
const SCRATCH: usize = proxy_protocol::MAX_V2_LEN;

/// The whole gateway. It is bound and run on the same thread; [`Running`](super::Running) does both on a thread of its
/// own.
pub struct Gateway {
    pub(super) poll: Poll,
    /// None once the gateway drains: a balancer must find the port closed. Nor while only TLS is wanted.
    pub(super) listener: Option<TcpListener>,
    pub(super) tls_door: Option<TlsDoor>,
    pub(super) udp: Datagrams,
    /// Its writable edge is asked for.
    udp_blocked: bool,
    pub(super) sessions: Sessions,
    pub(super) index: Index,
    pub(super) wheel: Wheel<Alarm>,
    bell: Bell,
    pub(super) actions: Vec<Action>,
    dirty: Vec<SessionId>,
    doomed: Vec<SessionId>,
    pub(super) ready: Leftovers,
    /// How much of this turn devices' connections had.
    given: Duration,
    pub(super) scratch: Box<[u8]>,
    /// Lent to the WebSocket that is read.
    pub(super) chunk: Vec<u8>,
    pub(super) contexts: Contexts,
    due: Vec<(u64, Alarm)>,
    pub(super) config: Arc<Config>,
    pub(super) source: Option<Source>,
    pub(super) watch: Option<Watch>,
    /// The wheel rings for a look at the files.
    pub(super) watching: bool,
    pub(super) servers: ServerHealth,
    pub(super) device_calls: DeviceCalls,
    pub(super) resolver: Resolver,
    pub(super) tickets: HashMap<u64, SessionId>,
    pub(super) next_ticket: u64,
    pub(super) names: Vec<(u64, Result<Vec<SocketAddr>, String>)>,
    pub(super) tls: TlsClients,
    pub(super) dial_queue: VecDeque<SessionId>,
    pub(super) dialing: usize,
    pub(super) doorkeeper: Doorkeeper,
    pub(super) lines: Lines,
    pub(super) sightings: Sightings,
    pub(super) per_ip: listener::PerIp,
    /// Connections in the order they came, as far as they may still owe their CONNECT.
    pub(super) strangers: VecDeque<SessionId>,
    /// Connections in the order they came, as far as their TLS may not be there yet.
    pub(super) handshakes: VecDeque<SessionId>,
    pub(super) tls_failures: Sparse,
    pub(super) accepting: bool,
    /// Descriptors ran out, and the log knows.
    pub(super) accept_failing: bool,
    pub(super) kept: Kept,
    pub(super) metrics: Metrics,
    pub(super) admin: AdminServer,
    /// Where a connection's device went when it took over a call.
    pub(super) moved: Option<SessionId>,
    pub(super) peak: Peak,
    pub(super) pace: Pace,
    /// Since when alarms wait until everything is read that came while the gateway did not run.
    late_since: Option<Instant>,
    pub(super) now: Instant,
    pub(super) addresses: Addresses,
    handle: Handle,
    commands: Receiver<Command>,
    pub(super) supervisor: Supervisor,
    pub(super) draining: bool,
    pub(super) stopping: Option<Instant>,
    pub(super) team: Team,
}

/// What the wheel rings for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alarm {
    Session(SessionId),
    /// Try accepting again after descriptors ran out.
    Accept,
    /// A connection to the management API.
    Admin(ConnId),
    /// Nobody answered a device that calls another one.
    DeviceCalls,
    /// Try accepting on the management port again.
    AcceptAdmin,
    /// Look at the configuration file and the certificate.
    Watch,
    /// Tell the service manager that the loop turns.
    Supervisor,
    /// Give memory back after a peak.
    Relief,
    /// The grace of the shutdown is over.
    Stop,
}

/// Why a gateway cannot start: one line for the operator.
#[derive(Debug)]
pub enum BindError {
    /// A port cannot be listened on: what for, where, and the system's word.
    Port(&'static str, SocketAddr, io::Error),
    /// There is no certificate to use for devices.
    Certificate(CertificateError),
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
            Self::Certificate(error) => error.fmt(f),
            Self::Setup(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for BindError {}

impl Gateway {
    /// Opens all sockets, and starts the other workers. With a `source`, its file is watched and can be read again.
    ///
    /// # Errors
    /// A port that is in use or not permitted, a certificate that cannot be used, or a system without descriptors.
    pub fn bind(config: Config, source: Option<Source>) -> Result<Self, BindError> {
        fd_limit::reserve(config.mqtt.max_connections);
        if config.workers > 1 {
            Team::claim_ports(&config.mqtt)?;
        }
        let mut gateway = Self::open(config, source)?;
        if gateway.config.workers > 1 {
            Team::gather(&mut gateway)?;
        }
        Ok(gateway)
    }

    /// Opens the sockets of one worker.
    pub(super) fn open(config: Config, source: Option<Source>) -> Result<Self, BindError> {
        let setup = |what| move |error| BindError::Setup(what, error);
        let poll = Poll::new().map_err(setup("poll"))?;
        let waker =
            Arc::new(Waker::new(poll.registry(), token::fixed(WAKER)).map_err(setup("create a waker"))?);
        let mqtt = SocketAddr::new(config.mqtt.host, config.mqtt.port);
        let shared = config.workers > 1;
        let listen =
            |addr| listener::listen(addr, shared).map_err(|error| BindError::Port("MQTT", addr, error));
        let mut listener = config.mqtt.plain.then(|| listen(mqtt)).transpose()?;
        let mut tls_door = TlsDoor::open(config.mqtt.host, &config.mqtt.tls, shared)?;
        let udp = SocketAddr::new(config.udp.host, config.udp.port);
        let mut datagrams = Datagrams::bind(udp).map_err(|error| BindError::Port("UDP", udp, error))?;
        let api = config.api.enabled.then(|| SocketAddr::new(config.api_host(), config.api.port));
        let port = |error| BindError::Port("management API", api.unwrap_or(mqtt), error);
        let mut admin = match AdminServer::bind(api).map_err(port) {
            // A port that nobody chose: a second gateway on the same host, most often. Calls matter more.
            Err(error) if config.api.port == Api::default().port => {
                error!(
                    "{error}; there is no management API: free that port or set another api.port, then start again"
                );
                AdminServer::bind(None).map_err(setup("prepare the management API"))?
            }
            bound => bound?,
        };
        let local = |listener: Option<&TcpListener>| listener.map(TcpListener::local_addr).transpose();
        let no_address = || setup("read the MQTT address");
        let mqtts = local(tls_door.as_ref().map(|door| &door.listener)).map_err(no_address())?;
        let plain = local(listener.as_ref()).map_err(no_address())?;
        let addresses = Addresses {
            api: match admin.listener() {
                Some(listener) => Some(listener.local_addr().map_err(setup("read the management address"))?),
                None => None,
            },
            mqtt: plain.or(mqtts).unwrap_or(mqtt),
            mqtts,
            udp: datagrams.local_addr().map_err(setup("read the UDP address"))?,
        };
        let readable = Interest::READABLE;
        let registry = poll.registry();
        let doors = [(MQTT, listener.as_mut()), (MQTTS, tls_door.as_mut().map(|door| &mut door.listener))];
        for (place, listener) in doors {
            if let Some(listener) = listener {
                registry.register(listener, token::fixed(place), readable).map_err(setup("register"))?;
            }
        }
        if let Some(listener) = admin.listener() {
            registry.register(listener, token::fixed(API), readable).map_err(setup("register"))?;
        }
        registry.register(datagrams.source(), token::fixed(UDP), readable).map_err(setup("register"))?;
        let (handle, commands) = Handle::new(waker.clone());
        let now = Instant::now();
        let bell = Bell::new(registry, token::fixed(BELL));
        let mut gateway = Self {
            poll,
            listener,
            tls_door,
            udp: datagrams,
            udp_blocked: false,
            sessions: Sessions::default(),
            index: Index::default(),
            wheel: Wheel::new(now),
            bell,
            actions: Vec::new(),
            dirty: Vec::new(),
            doomed: Vec::new(),
            ready: Leftovers::default(),
            given: Duration::ZERO,
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            chunk: Vec::new(),
            contexts: Contexts::default(),
            due: Vec::new(),
            watch: source.as_ref().and_then(|source| source.path()).map(|path| Watch::new(path.to_owned())),
            watching: false,
            config: Arc::new(config),
            source,
            servers: ServerHealth::default(),
            device_calls: DeviceCalls::default(),
            resolver: Resolver::new(waker),
            tickets: HashMap::new(),
            next_ticket: 0,
            names: Vec::new(),
            tls: TlsClients::default(),
            dial_queue: VecDeque::new(),
            dialing: 0,
            doorkeeper: Doorkeeper::default(),
            lines: Lines::default(),
            sightings: Sightings::default(),
            per_ip: listener::PerIp::default(),
            strangers: VecDeque::new(),
            handshakes: VecDeque::new(),
            tls_failures: Sparse::default(),
            accepting: true,
            accept_failing: false,
            kept: Kept::default(),
            metrics: Metrics::default(),
            admin,
            moved: None,
            peak: Peak::default(),
            pace: Pace::new(now),
            late_since: None,
            now,
            addresses,
            handle,
            commands,
            supervisor: Supervisor::default(),
            draining: false,
            stopping: None,
            team: Team::default(),
        };
        for warning in gateway.config.warnings() {
            gateway.admin.record_error(RecentErrorKind::SuspectSetting, None, &warning);
        }
        gateway.describe_certificate();
        gateway.watch_files();
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

    // ----- the turn -----------------------------------------------------------------------------------------------

    pub(super) fn turn(&mut self, events: &mut Events) -> io::Result<()> {
        let interrupted = !self.wait(events)?;
        self.now = Instant::now();
        self.given = Duration::ZERO;
        let leftovers = self.ready.prompt();
        let all_read = !interrupted && events.is_empty() && self.ready.is_empty();
        for event in events.iter() {
            self.dispatch(event);
        }
        for _ in 0..leftovers {
            let Some(ready) = self.ready.pop_prompt() else { break };
            self.go_on(ready);
        }
        self.serve_devices();
        if self.may_ring(all_read) {
            self.fire_timers();
        }
        self.flush();
        self.bury();
        self.team.publish(self.index.devices(), self.index.calls());
        self.metrics.turns.observe(self.now.elapsed());
        Ok(())
    }

    /// What devices have to say, as long as calls can wait for it.
    fn serve_devices(&mut self) {
        for _ in 0..self.ready.patient() {
            if self.given >= SLICE {
                break;
            }
            let Some(ready) = self.ready.pop_patient() else { break };
            self.give(ready);
        }
    }

    /// Serves a device in the order of what came, unless others wait already or the turn's time for devices is spent.
    fn serve_device(&mut self, ready: Ready) {
        if self.ready.patient() == 0 && self.given < SLICE {
            self.give(ready);
        } else {
            self.ready.push(ready);
        }
    }

    fn give(&mut self, ready: Ready) {
        let begin = Instant::now();
        self.go_on(ready);
        self.given += begin.elapsed();
    }

    /// Sleeps until there is news. When packets come thick, what comes during a pause is taken at once after it. False when a
    /// signal cut it short.
    fn wait(&mut self, events: &mut Events) -> io::Result<bool> {
        let mut sleep = Some(Duration::ZERO);
        if self.ready.is_empty() {
            if let Some(pause) = self.pace.pause(self.config.udp.coalesce_max, self.now, Instant::now()) {
                if pause.look {
                    let whole = self.look(events, sleep)?;
                    if !events.is_empty() {
                        return Ok(whole);
                    }
                }
                std::thread::sleep(pause.time);
            }
            sleep = self.bell.patience(self.wheel.next(), self.now);
        }
        self.look(events, sleep)
    }

    fn look(&mut self, events: &mut Events, sleep: Option<Duration>) -> io::Result<bool> {
        match self.poll.poll(events, sleep) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn dispatch(&mut self, event: &Event) {
        let (role, slot) = token::split(event.token());
        // On Windows every read that finds nothing asks for the writable event again: to read at that one would never end.
        let readable = event.is_readable() || event.is_read_closed() || event.is_error();
        match role {
            Role::Fixed if slot == MQTT => self.serve_device(Ready::Accept(Door::Plain)),
            Role::Fixed if slot == MQTTS => self.serve_device(Ready::Accept(Door::Tls)),
            Role::Fixed if slot == UDP => {
                // Its writable edge lets a full queue go at the end of the turn.
                if readable {
                    self.begin(Ready::Udp);
                }
            }
            Role::Fixed if slot == API => self.begin(Ready::AcceptAdmin),
            Role::Fixed if slot == BELL => self.bell.rang(),
            Role::Fixed => self.notes(),
            Role::Device => {
                if let Some(id) = self.sessions.at(slot) {
                    if event.is_writable() {
                        self.touch(id);
                    }
                    if readable {
                        self.serve_device(Ready::Device(id));
                    }
                }
            }
            Role::Backend => {
                if let Some(id) = self.sessions.at(slot) {
                    if event.is_writable() {
                        self.touch(id);
                    }
                    let more = event.is_read_closed() || event.is_error();
                    if (readable || self.waits_to_write(id)) && !self.ready.holds(Ready::Backend(id)) {
                        self.pump_backend(id, more);
                    }
                }
            }
            Role::Admin => self.on_admin_event(slot, readable),
        }
    }

    /// Does what an edge announces; what waits from an earlier turn anyway is not done twice in this one.
    pub(super) fn begin(&mut self, ready: Ready) {
        if !self.ready.holds(ready) {
            self.go_on(ready);
        }
    }

    fn go_on(&mut self, ready: Ready) {
        match ready {
            Ready::Accept(door) => self.accept(door),
            Ready::Udp => self.drain_udp(),
            Ready::Device(id) => self.pump_device(id),
            Ready::Backend(id) => self.pump_backend(id, true),
            Ready::SlowDevice(id) => self.drive(id, Core::on_slow_reader),
            Ready::SlowBackend(id) => self.drive(id, Core::on_backend_blocked),
            Ready::Hog(id) => self.end_hog(id),
            Ready::Dials => self.start_dials(),
            Ready::AcceptAdmin => self.accept_admin(),
            Ready::Admin(id) => self.drive_admin(id),
        }
    }

    /// What other threads have to say: names that were resolved, commands.
    fn notes(&mut self) {
        self.collect_names();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Stop(grace) => self.stop(grace),
                Command::Drain => self.drain(),
                // What comes of it is in the log.
                Command::Reload(config) => {
                    let _ = self.reload(*config);
                }
                Command::ReloadFile => {
                    let _ = self.reload_file();
                }
                Command::Adopt(adopted) => self.adopt(*adopted),
                Command::Errand(errand) => self.run_admin_request(&errand),
                Command::Reply(reply) => self.on_admin_response(*reply),
                Command::Ping(asked) => self.team.heard(asked),
                Command::WorkerEnded { failed } => self.worker_ended(failed),
                #[cfg(test)]
                Command::Panic(worker) if worker != self.team.me() => self.team.send(worker, command),
                #[cfg(test)]
                Command::Panic(_) => panic!("injected"),
            }
        }
    }

    /// Whether deadlines may be acted on. When the gateway has not run for a while (the process was stopped, the machine
    /// slept), what they waited for may have come long ago: all of it is read first, but not for ever.
    fn may_ring(&mut self, all_read: bool) -> bool {
        if all_read || self.wheel.next().is_none_or(|at| self.now < at + LATE) {
            self.late_since = None;
            return true;
        }
        let since = *self.late_since.get_or_insert(self.now);
        self.now >= since + LATE
    }

    fn fire_timers(&mut self) {
        let mut due = mem::take(&mut self.due);
        self.wheel.expire(self.now, &mut due);
        for (tick, alarm) in due.drain(..) {
            match alarm {
                Alarm::Session(id) => self.session_alarm(id, tick),
                Alarm::Accept => self.resume_accepting(),
                Alarm::Admin(id) => self.on_admin_timer(id, tick),
                Alarm::DeviceCalls => self.device_calls_alarm(tick),
                Alarm::AcceptAdmin => self.ready.push(Ready::AcceptAdmin),
                Alarm::Watch => self.look_at_files(),
                Alarm::Supervisor => self.reassure_supervisor(),
                Alarm::Relief => self.relieve(),
                Alarm::Stop => {}
            }
        }
        self.due = due;
    }

    fn session_alarm(&mut self, id: SessionId, tick: u64) {
        let now = self.now;
        let Some(session) = self.sessions.live(id) else { return };
        if session.alarm != tick {
            return;
        }
        session.alarm = NO_ALARM;
        let lingered = session.linger.as_deref().is_some_and(|until| *until <= now);
        let refusal =
            session.device.as_ref().and_then(|device| device.hold_until()).is_some_and(|at| at <= now);
        let address = session.backend.as_ref().and_then(|backend| backend.next_address_at());
        if lingered {
            session.linger = None;
            if session.device.as_ref().is_some_and(|device| device.closing) {
                self.drop_device(id);
            }
            if self.sessions.get(id).is_some_and(|session| session.core.is_finished()) {
                self.drop_backend(id);
            }
        }
        if refusal {
            self.touch(id);
        }
        if address.is_some_and(|at| at <= now) {
            self.advance_dial(id, Backend::advance);
        }
        self.drive(id, Core::on_timeout);
        self.rearm(id);
    }

    /// Makes sure that the wheel rings for this session's next deadline.
    pub(super) fn rearm(&mut self, id: SessionId) {
        let Some(session) = self.sessions.live(id) else { return };
        let Some(deadline) = session.deadline() else { return };
        let tick = self.wheel.tick(deadline);
        if tick < session.alarm {
            session.alarm = self.wheel.arm(deadline, Alarm::Session(id));
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

    /// Writes what the turn has queued: datagrams in one batch, then each touched socket once. A device's text waits for
    /// its audio that came before it; nothing else waits for a full UDP socket.
    fn flush(&mut self) {
        let flushed = self.flush_datagrams();
        self.await_room(flushed.blocked);
        let mut touched = mem::take(&mut self.dirty);
        let mut i = 0;
        while i < touched.len() {
            let id = touched[i];
            i += 1;
            let Some(session) = self.sessions.live(id) else { continue };
            let contexts = &mut self.contexts;
            let broken = session.backend.as_mut().is_some_and(|backend| !backend.flush(contexts));
            if broken {
                self.ready.push(Ready::Backend(id));
            }
            if flushed.blocked && session.core.ssrc().is_some_and(|ssrc| self.udp.holds(ssrc)) {
                self.dirty.push(id);
                continue;
            }
            session.dirty = false;
            self.flush_device(id);
            self.weigh(id);
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

    pub(super) fn flush_datagrams(&mut self) -> Flushed {
        let flushed = self.udp.flush();
        self.metrics.datagrams_out += flushed.sent as u64;
        self.metrics.datagrams_failed += flushed.failed as u64;
        flushed
    }

    /// Asks for the writable edge of the UDP socket only while datagrams wait for it: Linux has one for each that was sent.
    fn await_room(&mut self, blocked: bool) {
        if blocked != self.udp_blocked {
            let interest = if blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            let registry = self.poll.registry();
            // When it fails, they wait for the next turn.
            let done = registry.reregister(self.udp.source(), token::fixed(UDP), interest);
            if done.is_ok() {
                self.udp_blocked = blocked;
            }
        }
    }

    /// Frees the slots of sessions of which nothing is left.
    fn bury(&mut self) {
        let before = self.sessions.len();
        while let Some(id) = self.doomed.pop() {
            let Some(session) = self.sessions.live(id) else { continue };
            session.doomed = false;
            if !session.is_spent() {
                continue;
            }
            let kept = session.kept;
            self.sessions.remove(id);
            self.forget(kept);
        }
        if self.sessions.len() < before {
            self.mind_peak(before);
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
}
