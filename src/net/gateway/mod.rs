//! The gateway: it owns everything, and turns.

pub(in crate::net) mod admission;
pub(in crate::net) mod apply;
pub(in crate::net) mod device_calls;
pub mod fd_limit;
pub(in crate::net) mod file_watch;
pub(in crate::net) mod handle;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(in crate::net) mod harness;
pub(in crate::net) mod lifecycle;
pub(in crate::net) mod memory_trim;
pub(in crate::net) mod run;
pub(in crate::net) mod sd_notify;
pub(in crate::net) mod workers;

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

use crate::admin::recent_errors::RecentErrorKind;
use crate::config::{Api, Config, Source};
use crate::net::admin::{AdminServer, ConnId};
use crate::net::backend::connection::BackendConnection;
use crate::net::backend::connector::TlsClients;
use crate::net::backend::context_pool::ContextPool;
use crate::net::backend::resolver::Resolver;
use crate::net::call_log_limiter::CallLogLimiter;
use crate::net::event_loop::coalesce::Coalescer;
use crate::net::event_loop::run_queue::{RunQueue, Task};
use crate::net::event_loop::timer_wheel::TimerWheel;
use crate::net::event_loop::token::{self, Role, SessionId};
use crate::net::event_loop::wakeup::Wakeup;
use crate::net::gateway::device_calls::DeviceCalls;
use crate::net::gateway::file_watch::FileWatch;
use crate::net::gateway::handle::{Addresses, Command, Handle};
use crate::net::gateway::memory_trim::MemoryTrim;
use crate::net::gateway::sd_notify::SdNotify;
use crate::net::gateway::workers::Workers;
use crate::net::media::socket::{AudioSocket, Flushed};
use crate::net::metrics::Metrics;
use crate::net::mqtt::auth_throttle::{AuthThrottle, Sparse};
use crate::net::mqtt::certificate::CertificateError;
use crate::net::mqtt::listener::{self, ListenerKind};
use crate::net::mqtt::tls_listener::TlsListener;
use crate::net::sessions::index::{DropsByAddress, Index};
use crate::net::sessions::memory_budget::MemoryBudget;
use crate::net::sessions::table::{NOT_ARMED, Sessions};
use crate::proto::proxy_protocol;
use crate::session::{Action, Core, ServerHealth};

const MQTT: usize = 0;
const UDP: usize = 1;
const WAKER: usize = 2;
const API: usize = 3;
pub(in crate::net) const MQTTS: usize = 4;
const WAKEUP: usize = 5;

/// How long a socket waits for its peer's last word.
pub(in crate::net) const LINGER: Duration = Duration::from_secs(1);
/// Events per poll.
pub(in crate::net) const EVENTS: usize = 1024;
/// An alarm that rings this late was not waited for: the gateway did not run. Also how long it may then read.
const STALL: Duration = Duration::from_secs(1);
/// How long a turn serves devices' connections; what is left waits for the next turn, behind the audio that came.
const MQTT_BUDGET: Duration = Duration::from_millis(1);
/// The longest read from a device's connection: a balancer's header.
const SCRATCH: usize = proxy_protocol::MAX_V2_LEN;

/// The whole gateway. It is bound and run on the same thread; [`Running`](super::Running) does both on a thread of its
/// own.
pub struct Gateway {
    pub(in crate::net) poll: Poll,
    /// None once the gateway drains: a balancer must find the port closed. Nor while only TLS is wanted.
    pub(in crate::net) listener: Option<TcpListener>,
    pub(in crate::net) tls_listener: Option<TlsListener>,
    pub(in crate::net) udp: AudioSocket,
    /// Its writable edge is asked for.
    udp_blocked: bool,
    pub(in crate::net) sessions: Sessions,
    pub(in crate::net) index: Index,
    pub(in crate::net) timers: TimerWheel<TimerKind>,
    wakeup: Wakeup,
    pub(in crate::net) actions: Vec<Action>,
    dirty: Vec<SessionId>,
    closing: Vec<SessionId>,
    pub(in crate::net) run_queue: RunQueue,
    /// How much of this turn devices' connections had.
    mqtt_time_used: Duration,
    pub(in crate::net) scratch: Box<[u8]>,
    /// Lent to the WebSocket that is read.
    pub(in crate::net) read_buffer: Vec<u8>,
    pub(in crate::net) context_pool: ContextPool,
    due: Vec<(u64, TimerKind)>,
    pub(in crate::net) config: Arc<Config>,
    pub(in crate::net) source: Option<Source>,
    pub(in crate::net) file_watch: Option<FileWatch>,
    /// The wheel rings for a look at the files.
    pub(in crate::net) file_watch_armed: bool,
    pub(in crate::net) servers: ServerHealth,
    pub(in crate::net) device_calls: DeviceCalls,
    pub(in crate::net) resolver: Resolver,
    pub(in crate::net) tickets: HashMap<u64, SessionId>,
    pub(in crate::net) next_ticket: u64,
    pub(in crate::net) resolved_names: Vec<(u64, Result<Vec<SocketAddr>, String>)>,
    pub(in crate::net) tls: TlsClients,
    pub(in crate::net) dial_queue: VecDeque<SessionId>,
    pub(in crate::net) dialing: usize,
    pub(in crate::net) auth_throttle: AuthThrottle,
    pub(in crate::net) call_log_limiter: CallLogLimiter,
    pub(in crate::net) udp_drops: DropsByAddress,
    pub(in crate::net) connections_by_address: listener::ConnectionsByAddress,
    /// Connections in the order they came, as far as they may still owe their CONNECT.
    pub(in crate::net) unauthenticated: VecDeque<SessionId>,
    /// Connections in the order they came, as far as their TLS may not be there yet.
    pub(in crate::net) handshakes: VecDeque<SessionId>,
    pub(in crate::net) tls_failures: Sparse,
    pub(in crate::net) accepting: bool,
    /// Descriptors ran out, and the log knows.
    pub(in crate::net) accept_failing: bool,
    pub(in crate::net) memory_budget: MemoryBudget,
    pub(in crate::net) metrics: Metrics,
    pub(in crate::net) admin: AdminServer,
    /// Where a connection's device went when it took over a call.
    pub(in crate::net) moved: Option<SessionId>,
    pub(in crate::net) memory_trim: MemoryTrim,
    pub(in crate::net) coalescer: Coalescer,
    /// Since when alarms wait until everything is read that came while the gateway did not run.
    stalled_since: Option<Instant>,
    pub(in crate::net) now: Instant,
    pub(in crate::net) addresses: Addresses,
    handle: Handle,
    commands: Receiver<Command>,
    pub(in crate::net) sd_notify: SdNotify,
    pub(in crate::net) draining: bool,
    pub(in crate::net) stopping: Option<Instant>,
    pub(in crate::net) workers: Workers,
}

/// What the wheel rings for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::net) enum TimerKind {
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
    CheckFiles,
    /// Tell the service manager that the loop turns.
    Watchdog,
    /// Give memory back after a peak.
    TrimMemory,
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
            Workers::claim_ports(&config.mqtt)?;
        }
        let mut gateway = Self::open(config, source)?;
        if gateway.config.workers > 1 {
            Workers::spawn(&mut gateway)?;
        }
        Ok(gateway)
    }

    /// Opens the sockets of one worker.
    pub(in crate::net) fn open(config: Config, source: Option<Source>) -> Result<Self, BindError> {
        let setup = |what| move |error| BindError::Setup(what, error);
        let poll = Poll::new().map_err(setup("poll"))?;
        let waker =
            Arc::new(Waker::new(poll.registry(), token::fixed(WAKER)).map_err(setup("create a waker"))?);
        let mqtt = SocketAddr::new(config.mqtt.host, config.mqtt.port);
        let shared = config.workers > 1;
        let listen =
            |addr| listener::listen(addr, shared).map_err(|error| BindError::Port("MQTT", addr, error));
        let mut listener = config.mqtt.plain.then(|| listen(mqtt)).transpose()?;
        let mut tls_door = TlsListener::open(config.mqtt.host, &config.mqtt.tls, shared)?;
        let udp = SocketAddr::new(config.udp.host, config.udp.port);
        let mut datagrams = AudioSocket::bind(udp).map_err(|error| BindError::Port("UDP", udp, error))?;
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
        let bell = Wakeup::new(registry, token::fixed(WAKEUP));
        let mut gateway = Self {
            poll,
            listener,
            tls_listener: tls_door,
            udp: datagrams,
            udp_blocked: false,
            sessions: Sessions::default(),
            index: Index::default(),
            timers: TimerWheel::new(now),
            wakeup: bell,
            actions: Vec::new(),
            dirty: Vec::new(),
            closing: Vec::new(),
            run_queue: RunQueue::default(),
            mqtt_time_used: Duration::ZERO,
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            read_buffer: Vec::new(),
            context_pool: ContextPool::default(),
            due: Vec::new(),
            file_watch: source
                .as_ref()
                .and_then(|source| source.path())
                .map(|path| FileWatch::new(path.to_owned())),
            file_watch_armed: false,
            config: Arc::new(config),
            source,
            servers: ServerHealth::default(),
            device_calls: DeviceCalls::default(),
            resolver: Resolver::new(waker),
            tickets: HashMap::new(),
            next_ticket: 0,
            resolved_names: Vec::new(),
            tls: TlsClients::default(),
            dial_queue: VecDeque::new(),
            dialing: 0,
            auth_throttle: AuthThrottle::default(),
            call_log_limiter: CallLogLimiter::default(),
            udp_drops: DropsByAddress::default(),
            connections_by_address: listener::ConnectionsByAddress::default(),
            unauthenticated: VecDeque::new(),
            handshakes: VecDeque::new(),
            tls_failures: Sparse::default(),
            accepting: true,
            accept_failing: false,
            memory_budget: MemoryBudget::default(),
            metrics: Metrics::default(),
            admin,
            moved: None,
            memory_trim: MemoryTrim::default(),
            coalescer: Coalescer::new(now),
            stalled_since: None,
            now,
            addresses,
            handle,
            commands,
            sd_notify: SdNotify::default(),
            draining: false,
            stopping: None,
            workers: Workers::default(),
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

    pub(in crate::net) fn run_once(&mut self, events: &mut Events) -> io::Result<()> {
        let interrupted = !self.poll_events(events)?;
        self.now = Instant::now();
        self.mqtt_time_used = Duration::ZERO;
        let leftovers = self.run_queue.high_priority_len();
        let all_read = !interrupted && events.is_empty() && self.run_queue.is_empty();
        for event in events.iter() {
            self.dispatch(event);
        }
        for _ in 0..leftovers {
            let Some(ready) = self.run_queue.pop_high_priority() else { break };
            self.run_task(ready);
        }
        self.run_low_priority();
        if self.timers_allowed(all_read) {
            self.fire_timers();
        }
        self.flush();
        self.reap();
        self.workers.publish(self.index.devices(), self.index.calls());
        self.metrics.turns.observe(self.now.elapsed());
        Ok(())
    }

    /// What devices have to say, as long as calls can wait for it.
    fn run_low_priority(&mut self) {
        for _ in 0..self.run_queue.low_priority_len() {
            if self.mqtt_time_used >= MQTT_BUDGET {
                break;
            }
            let Some(ready) = self.run_queue.pop_low_priority() else { break };
            self.run_measured(ready);
        }
    }

    /// Serves a device in the order of what came, unless others wait already or the turn's time for devices is spent.
    fn run_or_queue(&mut self, ready: Task) {
        if self.run_queue.low_priority_len() == 0 && self.mqtt_time_used < MQTT_BUDGET {
            self.run_measured(ready);
        } else {
            self.run_queue.push(ready);
        }
    }

    fn run_measured(&mut self, ready: Task) {
        let begin = Instant::now();
        self.run_task(ready);
        self.mqtt_time_used += begin.elapsed();
    }

    /// Sleeps until there is news. When packets come thick, what comes during a pause is taken at once after it. False when a
    /// signal cut it short.
    fn poll_events(&mut self, events: &mut Events) -> io::Result<bool> {
        let mut sleep = Some(Duration::ZERO);
        if self.run_queue.is_empty() {
            if let Some(pause) = self.coalescer.pause(self.config.udp.coalesce_max, self.now, Instant::now())
            {
                if pause.poll_first {
                    let whole = self.poll_once(events, sleep)?;
                    if !events.is_empty() {
                        return Ok(whole);
                    }
                }
                std::thread::sleep(pause.time);
            }
            sleep = self.wakeup.poll_timeout(self.timers.next(), self.now);
        }
        self.poll_once(events, sleep)
    }

    fn poll_once(&mut self, events: &mut Events, sleep: Option<Duration>) -> io::Result<bool> {
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
        let (role, slot) = token::from_token(event.token());
        // On Windows every read that finds nothing asks for the writable event again: to read at that one would never end.
        let readable = event.is_readable() || event.is_read_closed() || event.is_error();
        match role {
            Role::Fixed if slot == MQTT => self.run_or_queue(Task::Accept(ListenerKind::Plain)),
            Role::Fixed if slot == MQTTS => self.run_or_queue(Task::Accept(ListenerKind::Tls)),
            Role::Fixed if slot == UDP => {
                // Its writable edge lets a full queue go at the end of the turn.
                if readable {
                    self.run_unless_queued(Task::Udp);
                }
            }
            Role::Fixed if slot == API => self.run_unless_queued(Task::AcceptAdmin),
            Role::Fixed if slot == WAKEUP => self.wakeup.expired(),
            Role::Fixed => self.drain_commands(),
            Role::Device => {
                if let Some(id) = self.sessions.at(slot) {
                    if event.is_writable() {
                        self.mark_dirty(id);
                    }
                    if readable {
                        self.run_or_queue(Task::Device(id));
                    }
                }
            }
            Role::Backend => {
                if let Some(id) = self.sessions.at(slot) {
                    if event.is_writable() {
                        self.mark_dirty(id);
                    }
                    let more = event.is_read_closed() || event.is_error();
                    if (readable || self.waits_to_write(id)) && !self.run_queue.contains(Task::Backend(id)) {
                        self.on_backend_ready(id, more);
                    }
                }
            }
            Role::Admin => self.on_admin_event(slot, readable),
        }
    }

    /// Does what an edge announces; what waits from an earlier turn anyway is not done twice in this one.
    pub(in crate::net) fn run_unless_queued(&mut self, ready: Task) {
        if !self.run_queue.contains(ready) {
            self.run_task(ready);
        }
    }

    fn run_task(&mut self, ready: Task) {
        match ready {
            Task::Accept(door) => self.accept(door),
            Task::Udp => self.drain_udp(),
            Task::Device(id) => self.on_device_readable(id),
            Task::Backend(id) => self.on_backend_ready(id, true),
            Task::DeviceBlocked(id) => self.drive(id, Core::on_slow_reader),
            Task::BackendBlocked(id) => self.drive(id, Core::on_backend_blocked),
            Task::OverBudget(id) => self.end_hog(id),
            Task::StartDials => self.start_dials(),
            Task::AcceptAdmin => self.accept_admin(),
            Task::Admin(id) => self.drive_admin(id),
        }
    }

    /// What other threads have to say: names that were resolved, commands.
    fn drain_commands(&mut self) {
        self.collect_resolved();
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
                Command::HandOff(adopted) => self.accept_hand_off(*adopted),
                Command::Errand(errand) => self.run_admin_request(&errand),
                Command::Reply(reply) => self.on_admin_response(*reply),
                Command::Ping(asked) => self.workers.on_ping(asked),
                Command::WorkerEnded { failed } => self.worker_ended(failed),
                #[cfg(test)]
                Command::Panic(worker) if worker != self.workers.index() => {
                    self.workers.send(worker, command)
                }
                #[cfg(test)]
                Command::Panic(_) => panic!("injected"),
            }
        }
    }

    /// Whether deadlines may be acted on. When the gateway has not run for a while (the process was stopped, the machine
    /// slept), what they waited for may have come long ago: all of it is read first, but not for ever.
    fn timers_allowed(&mut self, all_read: bool) -> bool {
        if all_read || self.timers.next().is_none_or(|at| self.now < at + STALL) {
            self.stalled_since = None;
            return true;
        }
        let since = *self.stalled_since.get_or_insert(self.now);
        self.now >= since + STALL
    }

    fn fire_timers(&mut self) {
        let mut due = mem::take(&mut self.due);
        self.timers.expire(self.now, &mut due);
        for (tick, alarm) in due.drain(..) {
            match alarm {
                TimerKind::Session(id) => self.on_session_timer(id, tick),
                TimerKind::Accept => self.resume_accepting(),
                TimerKind::Admin(id) => self.on_admin_timer(id, tick),
                TimerKind::DeviceCalls => self.on_device_calls_timer(tick),
                TimerKind::AcceptAdmin => self.run_queue.push(Task::AcceptAdmin),
                TimerKind::CheckFiles => self.check_files(),
                TimerKind::Watchdog => self.notify_watchdog(),
                TimerKind::TrimMemory => self.trim_memory(),
                TimerKind::Stop => {}
            }
        }
        self.due = due;
    }

    fn on_session_timer(&mut self, id: SessionId, tick: u64) {
        let now = self.now;
        let Some(session) = self.sessions.live(id) else { return };
        if session.armed_tick != tick {
            return;
        }
        session.armed_tick = NOT_ARMED;
        let lingered = session.linger_until.as_deref().is_some_and(|until| *until <= now);
        let refusal =
            session.mqtt.as_ref().and_then(|device| device.hold_until()).is_some_and(|at| at <= now);
        let address = session.backend.as_ref().and_then(|backend| backend.next_address_at());
        if lingered {
            session.linger_until = None;
            if session.mqtt.as_ref().is_some_and(|device| device.closing) {
                self.drop_device(id);
            }
            if self.sessions.get(id).is_some_and(|session| session.core.is_finished()) {
                self.drop_backend(id);
            }
        }
        if refusal {
            self.mark_dirty(id);
        }
        if address.is_some_and(|at| at <= now) {
            self.advance_dial(id, BackendConnection::advance);
        }
        self.drive(id, Core::on_timeout);
        self.arm_session_timer(id);
    }

    /// Makes sure that the wheel rings for this session's next deadline.
    pub(in crate::net) fn arm_session_timer(&mut self, id: SessionId) {
        let Some(session) = self.sessions.live(id) else { return };
        let Some(deadline) = session.deadline() else { return };
        let tick = self.timers.tick(deadline);
        if tick < session.armed_tick {
            session.armed_tick = self.timers.arm(deadline, TimerKind::Session(id));
        }
    }

    /// Marks a session for the flush at the end of the turn.
    pub(in crate::net) fn mark_dirty(&mut self, id: SessionId) {
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
        self.watch_udp_writable(flushed.blocked);
        let mut touched = mem::take(&mut self.dirty);
        let mut i = 0;
        while i < touched.len() {
            let id = touched[i];
            i += 1;
            let Some(session) = self.sessions.live(id) else { continue };
            let contexts = &mut self.context_pool;
            let broken = session.backend.as_mut().is_some_and(|backend| !backend.flush(contexts));
            if broken {
                self.run_queue.push(Task::Backend(id));
            }
            if flushed.blocked && session.core.ssrc().is_some_and(|ssrc| self.udp.holds(ssrc)) {
                self.dirty.push(id);
                continue;
            }
            session.dirty = false;
            self.flush_device(id);
            self.account(id);
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

    pub(in crate::net) fn flush_datagrams(&mut self) -> Flushed {
        let flushed = self.udp.flush();
        self.metrics.datagrams_out += flushed.sent as u64;
        self.metrics.datagrams_failed += flushed.failed as u64;
        flushed
    }

    /// Asks for the writable edge of the UDP socket only while datagrams wait for it: Linux has one for each that was sent.
    fn watch_udp_writable(&mut self, blocked: bool) {
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
    fn reap(&mut self) {
        let before = self.sessions.len();
        while let Some(id) = self.closing.pop() {
            let Some(session) = self.sessions.live(id) else { continue };
            session.closing = false;
            if !session.is_finished() {
                continue;
            }
            let kept = session.accounted_bytes;
            self.sessions.remove(id);
            self.release_account(kept);
        }
        if self.sessions.len() < before {
            self.schedule_trim(before);
        }
    }

    pub(in crate::net) fn reap_if_finished(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.live(id)
            && session.is_finished()
            && !mem::replace(&mut session.closing, true)
        {
            self.closing.push(id);
        }
    }
}
