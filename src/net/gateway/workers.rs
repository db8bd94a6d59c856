//! Several workers: loops of the same kind, each on a thread of its own, with its own MQTT listener and its own UDP socket on the
//! shared ports. They share each worker's numbers of devices and calls (atomics, stored once an iteration), the connection
//! counts by address, the recent errors, and the calls that have ended (each behind a lock). The audio path uses none of these.
//!
//! A device's MAC determines its worker, so that all connections of a device are in one worker. The system spreads connections
//! over the listeners without knowing devices: a connection whose CONNECT arrives at another worker is handed off together
//! with the bytes received. The first worker is the leader: it watches the configuration file, serves the management API, and
//! passes requests on to the others.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed, Ordering::SeqCst, fence};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{io, iter};

use log::error;

use crate::config::{Config, Mqtt};
use crate::net::backend::dial_slots::DialSlots;
use crate::net::error::BindError;
use crate::net::event_loop::inherited::{Inherited, Purpose};
use crate::net::event_loop::tcp::{self, LINGER};
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::gateway::handle::{Addresses, Command, Handle};
use crate::net::gateway::sockets::WorkerSockets;
use crate::net::gateway::worker_relay::Relay;
use crate::net::mqtt::connection::MqttConnection;
use crate::proto::identity::{ClientId, Mac};

/// A worker's view of all of them.
#[derive(Default)]
pub(crate) struct Workers {
    index: usize,
    /// Of every worker, including this one; empty when there is only one.
    handles: Vec<Handle>,
    counts: Arc<[Counts]>,
    /// What the other workers wait for, until the leader runs; only the leader has them.
    setups: Vec<(mpsc::Sender<WorkerSetup>, WorkerSetup)>,
    /// Of the other workers; only the leader has them.
    threads: Vec<JoinHandle<io::Result<()>>>,
    /// How many of the other workers have ended.
    ended: usize,
    /// How many pings the leader has sent to the other workers.
    pings_sent: usize,
}

/// What a worker publishes, for limits that apply to all workers together.
#[derive(Default)]
struct Counts {
    devices: AtomicUsize,
    calls: AtomicUsize,
    connections: AtomicUsize,
    /// The number of the leader's last ping that its loop has answered.
    last_ping: AtomicUsize,
}

/// Gives a worker what the leader shares with it, before the worker runs.
type WorkerSetup = Box<dyn FnOnce(&mut Gateway) + Send>;

/// A connection that is handed off to the worker of its device.
pub(crate) struct HandOff {
    pub(crate) connection: MqttConnection,
    pub(crate) ip: IpAddr,
    /// Its CONNECT, and the bytes after it.
    pub(crate) bytes: Vec<u8>,
}

impl Workers {
    fn new(index: usize, handles: Vec<Handle>, counts: Arc<[Counts]>) -> Self {
        Self { index, handles, counts, setups: Vec::new(), threads: Vec::new(), ended: 0, pings_sent: 0 }
    }

    #[cfg(test)]
    pub(crate) fn for_test(index: usize, handles: Vec<Handle>) -> Self {
        let counts = handles.iter().map(|_| Counts::default()).collect();
        Self::new(index, handles, counts)
    }

    pub(crate) fn is_single(&self) -> bool {
        self.handles.is_empty()
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.index == 0
    }

    pub(crate) fn index(&self) -> usize {
        self.index
    }

    pub(crate) fn len(&self) -> usize {
        self.handles.len()
    }

    /// The worker of the device; none when it is this one.
    pub(crate) fn other_worker_of(&self, mac: Mac) -> Option<usize> {
        if self.is_single() {
            return None;
        }
        let owner = shard_of(mac, self.handles.len());
        (owner != self.index).then_some(owner)
    }

    /// False when the worker has ended.
    pub(crate) fn send(&self, worker: usize, command: Command) -> bool {
        self.handles.get(worker).is_some_and(|worker| worker.send(command))
    }

    /// Has another worker do this.
    pub(crate) fn run_at(&self, worker: usize, action: impl FnOnce(&mut Gateway) + Send + 'static) {
        self.send(worker, Command::Run(Box::new(action)));
    }

    /// Has all other workers do this. Only the leader does.
    pub(crate) fn broadcast(&self, action: impl FnOnce(&mut Gateway) + Clone + Send + 'static) {
        if self.is_leader() {
            self.handles.iter().skip(1).for_each(|worker| worker.run(action.clone()));
        }
    }

    /// Whether the numbers of devices and calls of all workers are within a limit when this worker has `more` than it has `now`.
    /// They are published first: of two workers that add one at once, at least one sees that of the other.
    pub(crate) fn allow(
        &self,
        now: (usize, usize),
        more: (usize, usize),
        is_within: impl Fn(usize, usize) -> bool,
    ) -> bool {
        let (devices, calls) = (now.0 + more.0, now.1 + more.1);
        self.publish(devices, calls);
        fence(SeqCst);
        let allowed = is_within(devices + self.devices_elsewhere(), calls + self.calls_elsewhere());
        if !allowed {
            self.publish(now.0, now.1);
        }
        allowed
    }

    /// Publishes this worker's numbers of devices and calls.
    pub(crate) fn publish(&self, devices: usize, calls: usize) {
        if let Some(counts) = self.counts.get(self.index) {
            counts.devices.store(devices, Relaxed);
            counts.calls.store(calls, Relaxed);
        }
    }

    /// Publishes this worker's number of connections, including those that have not logged in.
    pub(crate) fn publish_connections(&self, connections: usize) {
        if let Some(counts) = self.counts.get(self.index) {
            counts.connections.store(connections, Relaxed);
        }
    }

    /// Whether all other loops have answered the last ping or have ended. Sends the next ping.
    pub(crate) fn ping(&mut self) -> bool {
        let alive = self.others().all(|counts| counts.last_ping.load(Relaxed) >= self.pings_sent);
        self.pings_sent += 1;
        let number = self.pings_sent;
        self.broadcast(move |worker| worker.workers.on_ping(number));
        alive
    }

    pub(crate) fn on_ping(&self, number: usize) {
        if let Some(counts) = self.counts.get(self.index) {
            counts.last_ping.store(number, Relaxed);
        }
    }

    pub(crate) fn connections_elsewhere(&self) -> usize {
        self.others().map(|counts| counts.connections.load(Relaxed)).sum()
    }

    fn devices_elsewhere(&self) -> usize {
        self.others().map(|counts| counts.devices.load(Relaxed)).sum()
    }

    fn calls_elsewhere(&self) -> usize {
        self.others().map(|counts| counts.calls.load(Relaxed)).sum()
    }

    fn others(&self) -> impl Iterator<Item = &Counts> {
        self.counts.iter().enumerate().filter(|(worker, _)| *worker != self.index).map(|(_, counts)| counts)
    }

    /// Checks that no other program has the MQTT ports: a shared port can be bound although another program shares it.
    ///
    /// # Errors
    /// A port that is in use or not permitted.
    pub(crate) fn claim_ports(mqtt: &Mqtt, inherited: &Inherited) -> Result<(), BindError> {
        let plain = mqtt.plain.then_some(("MQTT", Purpose::Mqtt, mqtt.port));
        let tls = mqtt.tls.files().map(|_| ("MQTT over TLS", Purpose::Mqtts, mqtt.tls.port));
        let is_new = |purpose, port| port != 0 && !inherited.has(purpose, SocketAddr::new(mqtt.host, port));
        for (what, _, port) in
            [plain, tls].into_iter().flatten().filter(|(_, purpose, port)| is_new(*purpose, *port))
        {
            let addr = SocketAddr::new(mqtt.host, port);
            tcp::listen(addr, false).map_err(|error| BindError::Port(what, addr, error))?;
        }
        Ok(())
    }

    /// Starts the other workers with these sockets, and makes `leader` the first one.
    ///
    /// # Errors
    /// Those of [`Gateway::bind`], of any worker.
    pub(crate) fn spawn(leader: &mut Gateway, sockets: Vec<WorkerSockets>) -> Result<(), BindError> {
        let count = leader.io.config.workers;
        let counts = (0..count).map(|_| Counts::default()).collect();
        let mut workers = Self::new(0, vec![leader.handle()], counts);
        let mut setups = Vec::new();
        for (sockets, index) in sockets.into_iter().zip(1..) {
            let (setup, setup_receiver) = mpsc::channel::<WorkerSetup>();
            let (bound, bound_receiver) = mpsc::channel();
            let (leader_handle, counts) = (leader.handle(), workers.counts.clone());
            let config = worker_config(&leader.io.config, &leader.addresses());
            let run = move || {
                let mut gateway = match Gateway::open(config, None, sockets) {
                    Ok(gateway) => gateway,
                    Err(error) => {
                        let _ = bound.send(Err(error));
                        return Ok(());
                    }
                };
                let _ = bound.send(Ok(gateway.handle()));
                // The leader drops the sender when another worker cannot be started.
                let Ok(setup) = setup_receiver.recv() else { return Ok(()) };
                setup(&mut gateway);
                let outcome = gateway.run();
                counts[index].last_ping.store(usize::MAX, Relaxed);
                let failed = outcome.is_err();
                leader_handle.run(move |leader| leader.worker_ended(failed));
                outcome
            };
            let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(run);
            workers.threads.push(thread.map_err(|error| BindError::Setup("start a worker", error))?);
            let ended = || BindError::Setup("start a worker", io::Error::other("its thread ended"));
            workers.handles.push(bound_receiver.recv().map_err(|_| ended())??);
            setups.push(setup);
        }
        let relay = Relay::counters(count);
        leader.connector.slots = DialSlots::for_workers(count);
        for (sender, index) in setups.into_iter().zip(1..) {
            let shared_workers = Self::new(index, workers.handles.clone(), workers.counts.clone());
            let relay = Relay::new(index, relay.clone());
            let slots = leader.connector.slots.of_worker(index);
            let memory = leader.sessions.memory.shared();
            let by_address = leader.mqtt.by_address.clone();
            let refusals = leader.mqtt.refusals.clone();
            let recent_errors = leader.admin.shared_recent_errors();
            let (history, events) = (leader.history.clone(), leader.events.clone());
            let upgrades = leader.upgrades.of_worker();
            let setup: WorkerSetup = Box::new(move |worker| {
                (worker.workers, worker.relay) = (shared_workers, relay);
                (worker.connector.slots, worker.sessions.memory) = (slots, memory);
                (worker.mqtt.by_address, worker.mqtt.refusals) = (by_address, refusals);
                worker.admin.set_recent_errors(recent_errors);
                (worker.history, worker.events, worker.upgrades) = (history, events, upgrades);
            });
            workers.setups.push((sender, setup));
        }
        leader.workers = workers;
        leader.relay = Relay::new(0, relay);
        Ok(())
    }

    /// Lets the other workers run.
    pub(crate) fn run_others(&mut self) {
        for (sender, setup) in self.setups.drain(..) {
            let _ = sender.send(setup);
        }
    }

    /// Of every worker, including this one; empty when there is only one.
    #[cfg(target_os = "linux")]
    pub(crate) fn handles(&self) -> &[Handle] {
        &self.handles
    }

    pub(crate) fn worker_ended(&mut self) {
        self.ended += 1;
    }

    pub(crate) fn others_ended(&self) -> bool {
        self.ended == self.threads.len()
    }

    /// This worker has ended with `outcome`. The leader waits until all others have ended too; if it has failed, it stops them.
    ///
    /// # Errors
    /// That of this worker; for the leader, that of the first worker with an error, with the worker's number.
    pub(crate) fn end(&mut self, outcome: io::Result<()>) -> io::Result<()> {
        if !self.is_leader() || self.is_single() {
            return outcome;
        }
        if outcome.is_err() {
            self.broadcast(|worker| worker.stop(LINGER));
        }
        let panicked = |_| Err(io::Error::other("its thread panicked"));
        let others = self.threads.drain(..).map(|thread| thread.join().unwrap_or_else(panicked));
        let all: Vec<_> = iter::once(outcome).chain(others).collect();
        let named = |(worker, outcome): (usize, io::Result<()>)| {
            outcome.map_err(|error| io::Error::new(error.kind(), format!("worker {worker}: {error}")))
        };
        all.into_iter().enumerate().try_for_each(named)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // Those that do not run yet end without their setup.
        self.setups.clear();
        if !self.threads.is_empty() {
            self.broadcast(|worker| worker.stop(Duration::ZERO));
            let _ = self.end(Ok(()));
        }
    }
}

/// The worker of a MAC: the FNV-1a hash spreads MACs evenly although many begin with the same vendor's octets.
fn shard_of(mac: Mac, workers: usize) -> usize {
    let hash = mac.bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash % workers as u64) as usize
}

/// The configuration of another worker: it listens on the leader's MQTT ports.
fn worker_config(leader: &Config, addresses: &Addresses) -> Config {
    let mut config = leader.clone();
    config.mqtt.port = addresses.mqtt.port();
    config.mqtt.tls.port = addresses.mqtts.map_or(config.mqtt.tls.port, |mqtts| mqtts.port());
    config.api.enabled = false;
    config.ota.enabled = false;
    // The leader shares its own.
    config.history.file = None;
    config
}

impl Gateway {
    /// Devices that are logged in, at all workers.
    pub(crate) fn all_devices(&self) -> usize {
        self.sessions.index.devices() + self.workers.devices_elsewhere()
    }

    /// Calls in progress, at all workers.
    pub(crate) fn all_calls(&self) -> usize {
        self.sessions.index.calls() + self.workers.calls_elsewhere()
    }

    /// Does this at the leader.
    pub(super) fn at_leader(&mut self, action: impl FnOnce(&mut Self) + Send + 'static) {
        match self.workers.is_leader() {
            true => action(self),
            false => self.workers.run_at(0, action),
        }
    }

    /// Does this at the worker of a device.
    pub(super) fn at_worker_of(&mut self, mac: Mac, action: impl FnOnce(&mut Self) + Send + 'static) {
        match self.workers.other_worker_of(mac) {
            Some(worker) => self.workers.run_at(worker, action),
            None => action(self),
        }
    }

    /// Does this at all workers. Only the leader does.
    pub(super) fn at_all_workers(&mut self, action: impl FnOnce(&mut Self) + Clone + Send + 'static) {
        self.workers.broadcast(action.clone());
        action(self);
    }

    /// Takes a connection that has not logged in out of its session, which ends, unless it is not `wanted`.
    pub(super) fn take_connection(
        &mut self,
        id: SessionId,
        wanted: impl FnOnce(&MqttConnection) -> bool,
    ) -> Option<(IpAddr, MqttConnection)> {
        let session = self.sessions.live(id)?;
        let ip = session.core.ip();
        let connection = session.mqtt.take_if(|connection| wanted(connection))?;
        session.core.mark_closed();
        self.mqtt.forget(id);
        self.sessions.reap_if_finished(id);
        Some((ip, connection))
    }

    /// Hands a connection off to the worker of its device. False when that is this worker.
    pub(crate) fn hand_off(&mut self, id: SessionId, client_id: &str, bytes: &[u8]) -> bool {
        if self.workers.is_single() {
            return false;
        }
        let Ok(client_id) = ClientId::parse(client_id) else { return false };
        let Some(owner) = self.workers.other_worker_of(client_id.mac()) else { return false };
        let Some((ip, mut connection)) = self.take_connection(id, |_| true) else { return false };
        let Some(tcp) = connection.transport.tcp_mut() else { return true };
        if let Err(error) = self.io.registry.deregister(tcp) {
            error!("[{ip}] cannot hand the connection off to worker {owner}: {error}");
            return true;
        }
        let hand_off = HandOff { connection, ip, bytes: bytes.to_vec() };
        self.workers.run_at(owner, move |owner| owner.accept_hand_off(hand_off));
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn limits_count_the_devices_and_calls_of_the_other_workers() {
        let counts: Arc<[Counts]> = (0..3).map(|_| Counts::default()).collect();
        let workers = [0, 1, 2].map(|index| Workers::new(index, Vec::new(), counts.clone()));
        for (worker, devices) in workers.iter().zip([1, 10, 100]) {
            worker.publish(devices, 2 * devices);
        }
        assert_eq!(workers.each_ref().map(Workers::devices_elsewhere), [110, 101, 11]);
        assert_eq!(workers.each_ref().map(Workers::calls_elsewhere), [220, 202, 22]);
    }

    #[test]
    fn a_loop_that_answers_no_ping_is_noticed() {
        let counts: Arc<[Counts]> = (0..2).map(|_| Counts::default()).collect();
        let [mut leader, other] = [0, 1].map(|index| Workers::new(index, Vec::new(), counts.clone()));
        assert!(leader.ping(), "the first ping has none before it");
        assert!(!leader.ping());
        other.on_ping(2);
        assert!(leader.ping());
    }

    #[test]
    fn shards_are_spread_evenly() {
        for workers in [2, 3, 8] {
            let mut devices = vec![0_usize; workers];
            for n in 0..10_000_u32 {
                let mac: Mac = format!("24:6f:28:{:02x}:{:02x}:{:02x}", n >> 16, n >> 8 & 0xff, n & 0xff)
                    .parse()
                    .unwrap();
                devices[shard_of(mac, workers)] += 1;
            }
            let fair = 10_000 / workers;
            assert!(devices.iter().all(|of| (fair * 4 / 5..fair * 6 / 5).contains(of)), "{devices:?}");
        }
    }
}
