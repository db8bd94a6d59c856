//! Several workers: loops of the same kind, each on a thread of its own with its own share of the MQTT listener and its own
//! UDP port. They share the numbers of devices and calls of each (atomics, stored once an iteration), the count of connections of
//! each address and the recent errors (each under a lock). Audio touches none of these.
//!
//! A device's MAC decides its worker, so that two connections of one device always meet. The system spreads connections over
//! the listeners without knowing devices: one whose CONNECT reaches another worker is handed over with what it has sent.
//! The first worker leads: it watches the configuration file, has the management API, and asks the others.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{io, iter};

use log::error;

use crate::admin::recent_errors::RecentErrors;
use crate::config::{Config, Mqtt};
use crate::net::error::BindError;
use crate::net::event_loop::tcp::{self, LINGER};
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::gateway::handle::{Addresses, Command, Handle};
use crate::net::mqtt::connection::MqttConnection;
use crate::net::mqtt::connections_by_address::ConnectionsByAddress;
use crate::proto::identity::{ClientId, Mac};

/// A worker's view of all of them.
#[derive(Default)]
pub(crate) struct Workers {
    index: usize,
    /// Every worker, this one too; none when there is only one.
    handles: Vec<Handle>,
    counts: Arc<[Counts]>,
    /// The leader's, of the others.
    threads: Vec<JoinHandle<io::Result<()>>>,
    /// Of these, how many have ended.
    ended: usize,
    /// How often it asked whether their loops run.
    asked: usize,
}

/// What a worker lets the others know, for limits that hold for all together.
#[derive(Default)]
struct Counts {
    devices: AtomicUsize,
    calls: AtomicUsize,
    /// The last of the leader's questions whether its loop runs.
    heard: AtomicUsize,
}

/// What a worker needs to know before it begins.
struct WorkerSetup {
    workers: Workers,
    per_ip: ConnectionsByAddress,
    troubles: Arc<Mutex<RecentErrors>>,
}

/// A connection that is handed over to the worker of its device.
pub(crate) struct HandOff {
    pub(crate) connection: MqttConnection,
    pub(crate) ip: IpAddr,
    /// Its CONNECT, and whatever followed.
    pub(crate) bytes: Vec<u8>,
}

impl Workers {
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

    /// The worker where the device belongs; none when it is this one.
    pub(crate) fn other_worker_of(&self, mac: Mac) -> Option<usize> {
        if self.is_single() {
            return None;
        }
        let owner = shard_of(mac, self.handles.len());
        (owner != self.index).then_some(owner)
    }

    pub(crate) fn send(&self, worker: usize, command: Command) {
        if let Some(worker) = self.handles.get(worker) {
            worker.send(command);
        }
    }

    /// The leader tells everyone else.
    pub(crate) fn broadcast(&self, command: impl Fn() -> Command) {
        if self.is_leader() {
            self.handles.iter().skip(1).for_each(|worker| worker.send(command()));
        }
    }

    /// Publishes this worker's numbers.
    pub(crate) fn publish(&self, devices: usize, calls: usize) {
        if let Some(counts) = self.counts.get(self.index) {
            counts.devices.store(devices, Relaxed);
            counts.calls.store(calls, Relaxed);
        }
    }

    /// Whether all loops have run since this was last asked. Those that have ended count as if they had.
    pub(crate) fn is_alive(&mut self) -> bool {
        let alive = self.others().all(|counts| counts.heard.load(Relaxed) >= self.asked);
        self.asked += 1;
        let asked = self.asked;
        self.broadcast(|| Command::Ping(asked));
        alive
    }

    pub(crate) fn on_ping(&self, asked: usize) {
        if let Some(counts) = self.counts.get(self.index) {
            counts.heard.store(asked, Relaxed);
        }
    }

    fn others(&self) -> impl Iterator<Item = &Counts> {
        self.counts.iter().enumerate().filter(|(worker, _)| *worker != self.index).map(|(_, counts)| counts)
    }

    /// Makes sure that nobody else has the MQTT ports: a shared one could be bound although another program shares it.
    ///
    /// # Errors
    /// A port that is in use or not permitted.
    pub(crate) fn claim_ports(mqtt: &Mqtt) -> Result<(), BindError> {
        let plain = mqtt.plain.then_some(("MQTT", mqtt.port));
        let tls = mqtt.tls.files().map(|_| ("MQTT over TLS", mqtt.tls.port));
        for (what, port) in [plain, tls].into_iter().flatten().filter(|(_, port)| *port != 0) {
            let addr = SocketAddr::new(mqtt.host, port);
            tcp::listen(addr, false).map_err(|error| BindError::Port(what, addr, error))?;
        }
        Ok(())
    }

    /// Starts the other workers and makes `leader` one of them.
    ///
    /// # Errors
    /// Those of [`Gateway::bind`], of any worker.
    pub(crate) fn spawn(leader: &mut Gateway) -> Result<(), BindError> {
        let count = leader.io.config.workers;
        let mut workers = Self::default();
        workers.counts = (0..count).map(|_| Counts::default()).collect();
        workers.handles.push(leader.handle());
        let mut waiting = Vec::new();
        for me in 1..count {
            let (told, hears) = mpsc::channel();
            let (bound, outcome) = mpsc::channel();
            let (boss, counts) = (leader.handle(), workers.counts.clone());
            let config = worker_config(me, &leader.io.config, &leader.addresses());
            let run = move || -> io::Result<()> {
                let mut gateway = match Gateway::open(config, None) {
                    Ok(gateway) => gateway,
                    Err(error) => {
                        let _ = bound.send(Err(error));
                        return Ok(());
                    }
                };
                let _ = bound.send(Ok(gateway.handle()));
                // The leader gave up when nothing comes.
                let Ok(joining) = hears.recv() else { return Ok(()) };
                gateway.set_up_worker(joining);
                let outcome = gateway.run();
                counts[me].heard.store(usize::MAX, Relaxed);
                boss.send(Command::WorkerEnded { failed: outcome.is_err() });
                outcome
            };
            let thread = thread::Builder::new().name(format!("worker-{me}")).spawn(run);
            workers.threads.push(thread.map_err(|error| BindError::Setup("start a worker", error))?);
            let gone = || BindError::Setup("start a worker", io::Error::other("its thread ended"));
            workers.handles.push(outcome.recv().map_err(|_| gone())??);
            waiting.push(told);
        }
        for (told, me) in waiting.iter().zip(1..) {
            let handles = workers.handles.clone();
            let counts = workers.counts.clone();
            let workers = Self { index: me, handles, counts, threads: Vec::new(), ended: 0, asked: 0 };
            let (per_ip, troubles) = (leader.mqtt.by_address.clone(), leader.admin.shared_recent_errors());
            let _ = told.send(WorkerSetup { workers, per_ip, troubles });
        }
        leader.workers = workers;
        Ok(())
    }

    pub(crate) fn worker_ended(&mut self) {
        self.ended += 1;
    }

    pub(crate) fn others_ended(&self) -> bool {
        self.ended == self.threads.len()
    }

    /// This worker has ended. The leader waits for the others, for all of them even if one failed, and ends them if it
    /// failed itself.
    ///
    /// # Errors
    /// What ended this worker, or for the leader any of them, by its number.
    pub(crate) fn end(&mut self, outcome: io::Result<()>) -> io::Result<()> {
        if !self.is_leader() || self.is_single() {
            return outcome;
        }
        if outcome.is_err() {
            self.broadcast(|| Command::Stop(LINGER));
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
        if !self.threads.is_empty() {
            self.broadcast(|| Command::Stop(Duration::ZERO));
            let _ = self.end(Ok(()));
        }
    }
}

/// The same for all workers, and spread evenly whatever the vendor's part of a MAC.
fn shard_of(mac: Mac, workers: usize) -> usize {
    let hash = mac.bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash % workers as u64) as usize
}

/// What worker `me` listens on: the leader's MQTT ports, and a UDP port of its own.
fn worker_config(me: usize, leader: &Config, addresses: &Addresses) -> Config {
    let mut config = leader.clone();
    config.mqtt.port = addresses.mqtt.port();
    config.mqtt.tls.port = addresses.mqtts.map_or(config.mqtt.tls.port, |mqtts| mqtts.port());
    config.udp.port = match leader.udp.port {
        0 => 0,
        // `Config` has no ports beyond the last one.
        first => first + me as u16,
    };
    config.api.enabled = false;
    config
}

impl Gateway {
    /// Devices that are let in, at any worker.
    pub(crate) fn all_devices(&self) -> usize {
        self.sessions.index.devices()
            + self.workers.others().map(|counts| counts.devices.load(Relaxed)).sum::<usize>()
    }

    /// Calls going on, at any worker.
    pub(crate) fn all_calls(&self) -> usize {
        self.sessions.index.calls()
            + self.workers.others().map(|counts| counts.calls.load(Relaxed)).sum::<usize>()
    }

    fn set_up_worker(&mut self, joining: WorkerSetup) {
        self.workers = joining.workers;
        self.mqtt.by_address = joining.per_ip;
        self.admin.set_recent_errors(joining.troubles);
    }

    /// Hands a connection to the worker where its device belongs. False when that is here.
    pub(crate) fn hand_off(&mut self, id: SessionId, client_id: &str, bytes: &[u8]) -> bool {
        if self.workers.is_single() {
            return false;
        }
        let Ok(client_id) = ClientId::parse(client_id) else { return false };
        let Some(owner) = self.workers.other_worker_of(client_id.mac()) else { return false };
        let Some(session) = self.sessions.live(id) else { return false };
        let ip = session.core.ip();
        let Some(mut device) = session.mqtt.take() else { return false };
        session.core.mark_closed();
        self.sessions.reap_if_finished(id);
        let Some(tcp) = device.transport.tcp_mut() else { return true };
        if let Err(error) = self.io.registry.deregister(tcp) {
            error!("[{ip}] cannot be handed to worker {owner}: {error}");
            return true;
        }
        self.workers.send(
            owner,
            Command::HandOff(Box::new(HandOff { connection: device, ip, bytes: bytes.to_vec() })),
        );
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
