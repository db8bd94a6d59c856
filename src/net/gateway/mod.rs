//! The gateway: the composition of its parts. The parts return what happened; only this module passes it to the core, and
//! carries out the core's actions.

pub(crate) mod admin_handlers;
pub(crate) mod admin_requests;
pub(crate) mod audio_events;
pub(crate) mod backend_events;
pub(crate) mod broadcast;
pub(crate) mod call_log;
pub(crate) mod check_requests;
#[cfg_attr(not(feature = "cluster"), path = "cluster/without_cluster.rs")]
pub(crate) mod cluster;
pub(crate) mod core_actions;
pub(crate) mod dashboard_requests;
pub(crate) mod device_calls;
pub(crate) mod device_close;
pub(crate) mod device_events;
mod device_log;
pub(crate) mod device_reconnect;
pub(crate) mod devices_after_restart;
#[cfg(target_os = "linux")]
pub(crate) mod devices_after_upgrade;
mod drain;
mod events;
pub mod fd_limit;
pub(crate) mod handle;
pub(crate) mod iteration;
pub(crate) mod lifecycle;
pub(crate) mod login;
pub(crate) mod memory_trim;
pub(crate) mod notify_requests;
pub(crate) mod ota_requests;
pub(crate) mod run;
pub(crate) mod sd_notify;
pub(crate) mod sockets;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
#[cfg_attr(not(target_os = "linux"), path = "upgrades_unsupported.rs")]
pub(crate) mod upgrades;
pub(crate) mod worker_relay;
pub(crate) mod workers;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use log::error;
use mio::{Poll, Waker};

use crate::admin::recent_errors::RecentErrorKind;
use crate::config::{Api, Config, Source};
use crate::net::admin::server::AdminServer;
use crate::net::backend::connector::Connector;
use crate::net::backend::health_poll::HealthPoller;
use crate::net::error::BindError;
use crate::net::event_loop::coalesce::Coalescer;
use crate::net::event_loop::inherited::Inherited;
use crate::net::event_loop::io::{Io, TimerKind};
use crate::net::event_loop::token::{self, WAKER, WAKEUP};
use crate::net::event_loop::wakeup::Wakeup;
use crate::net::event_ring::EventStream;
use crate::net::gateway::broadcast::Broadcasts;
use crate::net::gateway::check_requests::Checks;
use crate::net::gateway::cluster::ClusterPart;
use crate::net::gateway::device_calls::DeviceCalls;
use crate::net::gateway::events::CertificatesTold;
use crate::net::gateway::handle::{Addresses, Command, Handle};
use crate::net::gateway::lifecycle::Lifecycle;
use crate::net::gateway::memory_trim::MemoryTrim;
use crate::net::gateway::sd_notify::SdNotify;
use crate::net::gateway::sockets::{OpenSockets, WorkerSockets};
use crate::net::gateway::upgrades::Upgrades;
use crate::net::gateway::worker_relay::Relay;
use crate::net::gateway::workers::Workers;
use crate::net::history::History;
use crate::net::log_limiter::LogLimiter;
use crate::net::media::audio_port::AudioPort;
use crate::net::metrics::Metrics;
use crate::net::mqtt::connection_log::ConnectionLog;
use crate::net::mqtt::listener::Listeners;
use crate::net::mqtt::watched_certificate::WatchedCertificate;
use crate::net::ota::server::OtaServer;
use crate::net::sessions::table::Sessions;
#[cfg(target_os = "linux")]
use crate::net::upgrade::Predecessor;
use crate::net::webhooks::Webhooks;
use crate::proto::identity::Mac;
use crate::proto::proxy_protocol;
use crate::session::{
    Action, EndedCalls, HelloLimiter, RateLimiter, RestartRecovery, ServerHealth, ToolLists,
};

/// The longest read from a device's connection: a PROXY protocol header.
const SCRATCH_LEN: usize = proxy_protocol::MAX_V2_LEN;
/// How many log lines about the calls of one device may be written at once, and after how long one more.
const CALL_LINES_BURST: u32 = 200;
const CALL_LINES_REFILL: Duration = Duration::from_millis(100);

/// A gateway. It must be bound and run on the same thread; [`Running`](super::Running) does both on a thread of its own.
pub struct Gateway {
    // The loop.
    poll: Poll,
    io: Io,
    wakeup: Wakeup,
    coalescer: Coalescer,
    /// Expired timers. Empty between iterations; only its memory is reused.
    expired: Vec<(u64, TimerKind)>,
    /// Since when timers are delayed because the process did not run for a while: input that arrived meanwhile is read first.
    stalled_since: Option<Instant>,
    /// How much of [`iteration::MQTT_BUDGET`] this iteration has used.
    mqtt_time_used: Duration,
    /// For reads from devices' connections.
    scratch: Box<[u8]>,
    // The parts.
    sessions: Sessions,
    mqtt: Listeners,
    connector: Connector,
    health: HealthPoller,
    audio: AudioPort,
    admin: AdminServer,
    events: EventStream,
    webhooks: Webhooks,
    certificates_told: CertificatesTold,
    ota: OtaServer,
    device_calls: DeviceCalls,
    relay: Relay,
    broadcasts: Broadcasts,
    checks: Checks,
    cluster: ClusterPart,
    workers: Workers,
    lifecycle: Lifecycle,
    upgrades: Upgrades,
    memory_trim: MemoryTrim,
    sd_notify: SdNotify,
    /// In the first minute.
    restart: Option<RestartRecovery>,
    history: History,
    // State of the core that sessions share, and its output.
    servers: ServerHealth,
    hellos: HelloLimiter,
    ended_calls: EndedCalls,
    tool_lists: ToolLists,
    actions: Vec<Action>,
    /// Lines about devices that connect and leave.
    connection_log: ConnectionLog,
    /// Lines about connections that ended before their login.
    unidentified_log: LogLimiter<()>,
    /// Lines about the calls of each device.
    call_log: LogLimiter<Mac>,
    /// Client ids that moved to another connection while the earlier one was open; the warnings about them.
    client_id_changes: RateLimiter<Mac>,
    client_id_warnings: LogLimiter<Mac>,
    // Other threads.
    addresses: Addresses,
    handle: Handle,
    commands: Receiver<Command>,
}

impl Gateway {
    /// Opens all sockets and starts the other workers. The file of `source`, if there is one, is watched and can be reloaded.
    ///
    /// # Errors
    /// A port is in use or not permitted, a certificate cannot be used, or there are no file descriptors left.
    pub fn bind(config: Config, source: Option<Source>) -> Result<Self, BindError> {
        fd_limit::reserve(config.mqtt.max_connections);
        let sockets = sockets::open(&config)?;
        let mut gateway = Self::bind_with(config, source, sockets)?;
        gateway.start_cluster().map_err(|error| BindError::Setup("choose a random id", error.into()))?;
        Ok(gateway)
    }

    /// Like [`Gateway::bind`], with those sockets of the process that this one replaces that fit the configuration. Call
    /// [`Gateway::replace`] next.
    ///
    /// # Errors
    /// Those of [`Gateway::bind`], and another number of `workers` than the other process has.
    #[cfg(target_os = "linux")]
    pub fn bind_in_place_of(
        predecessor: &mut Predecessor,
        config: Config,
        source: Option<Source>,
    ) -> Result<Self, BindError> {
        fd_limit::reserve(config.mqtt.max_connections);
        let sockets = sockets::inherit(&config, predecessor)?;
        Self::bind_with(config, source, sockets)
    }

    fn bind_with(config: Config, source: Option<Source>, sockets: OpenSockets) -> Result<Self, BindError> {
        if config.workers > 1 {
            Workers::claim_ports(&config.mqtt, &sockets.leaders.listeners)?;
        }
        let mut gateway = Self::open(config, source, sockets.leaders)?;
        gateway.upgrades = sockets.upgrades;
        if !sockets.others.is_empty() {
            Workers::spawn(&mut gateway, sockets.others)?;
        }
        gateway.poll_health();
        gateway.configure_webhooks();
        Ok(gateway)
    }

    /// Opens the other sockets of one worker.
    fn open(config: Config, source: Option<Source>, sockets: WorkerSockets) -> Result<Self, BindError> {
        let setup = |what| move |error| BindError::Setup(what, error);
        let poll = Poll::new().map_err(setup("poll"))?;
        let registry = poll.registry().try_clone().map_err(setup("poll"))?;
        let waker = Waker::new(&registry, token::fixed(WAKER)).map_err(setup("create a waker"))?;
        let waker = Arc::new(waker);
        let WorkerSockets { audio, share, mut listeners } = sockets;
        let mut mqtt = Listeners::bind(&config, config.workers > 1, &mut listeners)?;
        let mut admin = bind_admin(&config, &mut listeners)?;
        let mut ota = ota_requests::bind_ota(&config, waker.clone(), &mut listeners)?;
        let mut audio =
            AudioPort::new(audio, share, config.udp.dscp).map_err(setup("read the UDP address"))?;
        let addresses = local_addresses(&mqtt, &audio, &admin, &ota, &config)?;
        let history = History::open(&config.history).map_err(setup("use history.file"))?;
        mqtt.register(&registry).map_err(setup("register"))?;
        admin.register(&registry).map_err(setup("register"))?;
        ota.register(&registry).map_err(setup("register"))?;
        audio.register(&registry).map_err(setup("register"))?;
        let (handle, commands) = Handle::new(waker.clone());
        let now = Instant::now();
        let mut gateway = Self {
            wakeup: Wakeup::new(&registry, token::fixed(WAKEUP)),
            poll,
            io: Io::new(registry, config, now),
            coalescer: Coalescer::new(now),
            expired: Vec::new(),
            stalled_since: None,
            mqtt_time_used: Duration::ZERO,
            scratch: vec![0; SCRATCH_LEN].into_boxed_slice(),
            sessions: Sessions::default(),
            mqtt,
            connector: Connector::new(waker),
            health: HealthPoller::default(),
            audio,
            admin,
            events: EventStream::default(),
            webhooks: Webhooks::default(),
            certificates_told: CertificatesTold::new(),
            ota,
            device_calls: DeviceCalls::new(getrandom::u64().unwrap_or_default()),
            relay: Relay::default(),
            broadcasts: Broadcasts::default(),
            checks: Checks::default(),
            cluster: ClusterPart::default(),
            workers: Workers::default(),
            lifecycle: Lifecycle::new(source),
            upgrades: Upgrades::default(),
            memory_trim: MemoryTrim::default(),
            sd_notify: SdNotify::default(),
            restart: Some(RestartRecovery::new(now)),
            history,
            servers: ServerHealth::default(),
            hellos: HelloLimiter::default(),
            ended_calls: EndedCalls::default(),
            tool_lists: ToolLists::default(),
            actions: Vec::new(),
            connection_log: ConnectionLog::default(),
            unidentified_log: LogLimiter::new(10, Duration::from_secs(10)),
            call_log: LogLimiter::new(CALL_LINES_BURST, CALL_LINES_REFILL),
            // The third within a minute is one too many.
            client_id_changes: RateLimiter::new(2, Duration::from_secs(60)),
            client_id_warnings: LogLimiter::new(1, Duration::from_secs(3600)),
            addresses,
            handle,
            commands,
        };
        gateway.record_doubts();
        gateway.watch_files();
        gateway.io.timers.arm(now + RestartRecovery::WINDOW, TimerKind::Restart);
        Ok(gateway)
    }

    /// Records what is doubtful about the configuration and the certificates.
    fn record_doubts(&mut self) {
        for warning in self.io.config.warnings() {
            self.admin.record_error(RecentErrorKind::SuspectSetting, None, &warning);
        }
        let certificates = [&self.mqtt.certificate, &self.admin.certificate].into_iter().flatten();
        let problems = certificates.flat_map(WatchedCertificate::describe).collect();
        self.record_certificate_problems(problems);
    }

    /// Asks the chat servers that have a `health_url`; only the leader does.
    fn poll_health(&self) {
        if self.workers.is_leader() {
            let handle = self.handle();
            self.health.poll(&self.io.config, move |unwell, changes| {
                handle.run(move |leader| leader.on_servers_unwell(unwell, &changes));
            });
        }
    }

    /// The addresses it listens on, with the ports that the system chose where 0 was configured.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Controls it from other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// What was counted since the start.
    pub fn metrics(&self) -> &Metrics {
        &self.io.metrics
    }
}

/// The addresses of all sockets, with the ports that the system chose where 0 was configured.
fn local_addresses(
    mqtt: &Listeners,
    audio: &AudioPort,
    admin: &AdminServer,
    ota: &OtaServer,
    config: &Config,
) -> Result<Addresses, BindError> {
    let setup = |what| move |error| BindError::Setup(what, error);
    let (plain, mqtts) = mqtt.local_addrs().map_err(setup("read the MQTT address"))?;
    Ok(Addresses {
        api: admin.local_addr().map_err(setup("read the management address"))?,
        ota: ota.local_addr().map_err(setup("read the OTA address"))?,
        mqtt: plain.or(mqtts).unwrap_or(SocketAddr::new(config.mqtt.host, config.mqtt.port)),
        mqtts,
        udp: audio.socket.local_addr().map_err(setup("read the UDP address"))?,
    })
}

/// Listens on the management port. If the default port cannot be used, the gateway runs without the API: most often another
/// gateway on the same host has the port. If a port that was configured cannot be used, the gateway does not start.
fn bind_admin(config: &Config, inherited: &mut Inherited) -> Result<AdminServer, BindError> {
    let Some(addr) = config.api.enabled.then(|| SocketAddr::new(config.api_host(), config.api.port)) else {
        return Ok(AdminServer::new(None));
    };
    let failed = |error| BindError::Port("management API", addr, error);
    match AdminServer::bind(addr, inherited).map_err(failed) {
        Err(error) if config.api.port == Api::default().port => {
            error!(
                "{error}; there is no management API: free that port or set another api.port, then start again"
            );
            Ok(AdminServer::new(None))
        }
        Err(error) => Err(error),
        Ok(mut admin) => {
            if config.api.host.is_none() {
                admin.listen_on_ipv6_loopback(inherited);
            }
            admin.certificate = admin.load_certificate(None, &config.api)?;
            Ok(admin)
        }
    }
}
