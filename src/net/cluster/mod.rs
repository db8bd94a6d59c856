//! This gateway's two connections to Redis, which know nothing of what passes over them: [`Cluster`] decides.

mod socket;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::debug;
use mio::Waker;

use crate::admin::prometheus::Histogram;
use crate::cluster::{
    Action, Cluster, ClusterState, Connection, GatewayId, Outcome, Peer, SendError, Settings,
};
use crate::config::Config;
use crate::net::backend::dial::DialContext;
use crate::net::backend::dialed_stream::StreamProgress;
use crate::net::backend::resolver::Resolver;
use crate::net::backend::tls::TlsClient;
use crate::net::cluster::socket::Socket;
use crate::net::event_loop::io::{Io, TimerKind};
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::{self, REDIS};

/// Bytes per read.
const READ_SIZE: usize = 64 << 10;
/// The limits of the histogram, in microseconds.
const ROUND_TRIPS_US: [u64; 12] =
    [100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 500_000, 2_000_000];
/// Reads per connection and iteration.
const READ_BUDGET: usize = 8;

/// The way to the other gateways; off unless there is a `cluster.redis`, and in all workers but the first.
#[derive(Default)]
pub(crate) struct ClusterClient(Option<Box<Client>>);

struct Client {
    cluster: Cluster,
    /// By [`Connection`].
    sockets: [Socket; 2],
    resolver: Resolver,
    tls: TlsClient,
    read_buffer: Box<[u8]>,
    last_lookup_id: u64,
    /// The tick of the one live entry in the timer wheel.
    armed_tick: Option<u64>,
    round_trips: Histogram<12>,
}

impl ClusterClient {
    /// Begins to connect at the first [`ClusterClient::advance`]. The waker wakes the loop when a name has been resolved.
    pub(crate) fn start(&mut self, id: GatewayId, host_name: &str, waker: Arc<Waker>, io: &Io) {
        let config = &io.config.cluster;
        let Some(redis) = &config.redis else { return };
        let settings = Settings {
            name: config.name.clone().unwrap_or_else(|| host_name.to_owned()),
            prefix: config.prefix.clone(),
            user: redis.user.clone(),
            password: redis.password.as_ref().map(|password| password.as_bytes().to_vec()),
            database: redis.database,
            keys: keys(&io.config),
        };
        self.0 = Some(Box::new(Client {
            cluster: Cluster::new(id, settings, io.now),
            sockets: Default::default(),
            resolver: Resolver::new(waker),
            tls: TlsClient::new(None, false),
            read_buffer: vec![0; READ_SIZE].into_boxed_slice(),
            last_lookup_id: 0,
            armed_tick: None,
            round_trips: Histogram::new(ROUND_TRIPS_US.map(Duration::from_micros)),
        }));
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// What it knows; `None` without a cluster.
    pub(crate) fn cluster(&self) -> Option<&Cluster> {
        self.0.as_ref().map(|client| &client.cluster)
    }

    fn cluster_mut(&mut self) -> Option<&mut Cluster> {
        self.0.as_mut().map(|client| &mut client.cluster)
    }

    pub(crate) fn state(&self) -> ClusterState {
        self.cluster().map_or(ClusterState::Off, Cluster::state)
    }

    /// This run of this gateway.
    pub(crate) fn id(&self) -> Option<GatewayId> {
        self.cluster().map(Cluster::id)
    }

    pub(crate) fn name(&self) -> Option<String> {
        self.cluster().map(Cluster::name)
    }

    /// The other gateways.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.cluster().into_iter().flat_map(Cluster::peers)
    }

    /// How long Redis took to answer; `None` without a cluster.
    pub(crate) fn round_trips(&self) -> Option<&Histogram<12>> {
        self.0.as_ref().map(|client| &client.round_trips)
    }

    /// The configuration was read again.
    pub(crate) fn on_reload(&mut self, config: &Config) {
        if let Some(cluster) = self.cluster_mut() {
            cluster.set_keys(keys(config));
        }
    }

    /// Tells the core something, if there is a cluster.
    pub(crate) fn tell(&mut self, io: &Io, tell: impl FnOnce(&mut Cluster, Instant)) {
        if let Some(cluster) = self.cluster_mut() {
            tell(cluster, io.now);
        }
    }

    /// Sends a payload; see [`Cluster::send`].
    ///
    /// # Errors
    /// Why it is not sent.
    pub(crate) fn send(
        &mut self,
        to: GatewayId,
        kind: u8,
        id: u64,
        payload: &[u8],
        io: &Io,
    ) -> Result<(), SendError> {
        self.cluster_mut().ok_or(SendError::Unreachable)?.send(to, kind, id, payload, io.now)
    }

    /// This gateway ends: the others are told.
    pub(crate) fn leave(&mut self, io: &mut Io) {
        if let Some(client) = &mut self.0 {
            client.cluster.leave(io.now);
            client.write(io);
        }
    }

    /// Reads from a connection, or continues to make it.
    pub(crate) fn on_ready(&mut self, connection: Connection, io: &mut Io) {
        if let Some(client) = &mut self.0 {
            client.on_ready(connection, io);
        }
    }

    /// Handles the answers of the resolver.
    pub(crate) fn collect_resolved(&mut self, io: &mut Io) {
        let Some(client) = &mut self.0 else { return };
        let mut resolved = Vec::new();
        client.resolver.take_finished(io.now, &mut resolved);
        for (id, answer) in resolved {
            for connection in Connection::ALL {
                if client.socket(connection).resolved(id, &answer) {
                    client.on_ready(connection, io);
                }
            }
        }
    }

    /// The timer has expired.
    pub(crate) fn on_timer(&mut self, tick: u64, io: &mut Io) {
        let Some(client) = self.0.as_mut().filter(|client| client.armed_tick == Some(tick)) else { return };
        client.armed_tick = None;
        for connection in Connection::ALL {
            // It may be time for the next address.
            if client.socket(connection).is_dialing() {
                client.on_ready(connection, io);
            }
        }
        client.cluster.on_timeout(io.now);
    }

    /// At the end of an iteration: what has happened. To be called again until that is nothing; then everything is written.
    pub(crate) fn advance(&mut self, io: &mut Io) -> Vec<Outcome> {
        let Some(client) = &mut self.0 else { return Vec::new() };
        client.act(io);
        for round_trip in client.cluster.take_round_trips() {
            client.round_trips.observe(round_trip);
        }
        let outcomes = client.cluster.take_outcomes();
        if outcomes.is_empty() {
            client.cluster.flush(io.now);
            client.write(io);
            client.arm(io);
        }
        outcomes
    }
}

impl Client {
    fn socket(&mut self, connection: Connection) -> &mut Socket {
        &mut self.sockets[connection as usize]
    }

    /// Carries out what the cluster has decided about the sockets.
    fn act(&mut self, io: &mut Io) {
        for action in self.cluster.take_actions() {
            match action {
                Action::Connect(connection) => self.connect(connection, io),
                Action::Close(connection) => *self.socket(connection) = Socket::default(),
            }
        }
    }

    fn connect(&mut self, connection: Connection, io: &mut Io) {
        let config = io.config.clone();
        let Some(redis) = &config.cluster.redis else { return };
        if connection == Connection::Commands {
            // Read again each time, since it may have been renewed.
            match tls_client(&config) {
                Ok(tls) => self.tls = tls,
                Err(reason) => return self.cluster.on_lost(connection, &reason, io.now),
            }
        }
        self.last_lookup_id += 1;
        let (id, target) = (self.last_lookup_id, &redis.target);
        // The name may stand for another server after a failover.
        let answer = self.resolver.lookup(&target.host, target.port, id, true, io.now);
        *self.socket(connection) = Socket::resolving(id);
        if let Some(answer) = answer {
            self.socket(connection).resolved(id, &answer);
            self.on_ready(connection, io);
        }
    }

    fn on_ready(&mut self, connection: Connection, io: &mut Io) {
        let config = io.config.clone();
        let Some(redis) = &config.cluster.redis else { return };
        let token = token::fixed(REDIS + connection as usize);
        let Self { cluster, sockets, tls, read_buffer, .. } = self;
        let socket = &mut sockets[connection as usize];
        let mut cx = DialContext { registry: &io.registry, token, now: io.now, tls };
        match socket.dial(&redis.target, &mut cx) {
            Ok(StreamProgress::Connected) => {
                debug!("redis: connected to {redis}");
                cluster.on_connected(connection, io.now);
            }
            Ok(StreamProgress::Open) => {}
            Ok(StreamProgress::Waiting) => return,
            Err(reason) => {
                *socket = Socket::default();
                return cluster.on_lost(connection, &reason, io.now);
            }
        }
        for _ in 0..READ_BUDGET {
            let reason = match socket.read(read_buffer) {
                Ok(Some(0)) => "Redis has closed the connection".to_owned(),
                Ok(Some(len)) => {
                    cluster.on_bytes(connection, &read_buffer[..len], io.now);
                    continue;
                }
                Ok(None) => return,
                Err(error) => error.to_string(),
            };
            *socket = Socket::default();
            return cluster.on_lost(connection, &reason, io.now);
        }
        io.run_queue.push(Task::Redis(connection));
    }

    /// Writes what the sockets take.
    fn write(&mut self, io: &mut Io) {
        for connection in Connection::ALL {
            let output = self.cluster.take_output(connection);
            if output.is_empty() && !self.socket(connection).waits_to_write() {
                continue;
            }
            match self.socket(connection).write(&output) {
                Ok(unwritten) => self.cluster.set_unwritten(connection, unwritten),
                Err(error) => {
                    *self.socket(connection) = Socket::default();
                    self.cluster.on_lost(connection, &error.to_string(), io.now);
                }
            }
        }
    }

    fn arm(&mut self, io: &mut Io) {
        let dials = self.sockets.iter().filter_map(Socket::next_step_at);
        let at = dials.fold(self.cluster.deadline(), |at, dial| at.min(dial));
        let tick = io.timers.tick(at);
        if self.armed_tick.is_none_or(|armed| tick < armed) {
            self.armed_tick = Some(io.timers.arm(at, TimerKind::Redis));
        }
    }
}

/// The keys that sign messages between gateways.
fn keys(config: &Config) -> Vec<Vec<u8>> {
    let keys = config.mqtt.signature_key.iter().chain(&config.mqtt.previous_signature_keys);
    keys.map(|key| key.as_bytes().to_vec()).collect()
}

/// Reads the CA file, if there is one.
fn tls_client(config: &Config) -> Result<TlsClient, String> {
    let path = config.cluster.ca_file.as_ref();
    let read = |path: &PathBuf| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    Ok(TlsClient::new(path.map(read).transpose()?, false))
}
