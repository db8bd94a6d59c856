//! Gateways that share a model of Redis, in virtual time.

mod devices;
mod hostile;
mod names;
mod peers;
mod random;
mod redis_connection;
mod redis_model;

use std::time::{Duration, Instant};

use super::{Action, Cluster, Connection, GatewayId, Outcome, OwnInfo, Settings};
use crate::proto::identity::Mac;
use redis_model::RedisModel;

const BOTH: [Connection; 2] = [Connection::Commands, Connection::Subscriber];
/// What tells client ids apart.
const CLIENT: u64 = 7;

/// Some gateways and their Redis.
struct Scenario {
    redis: RedisModel,
    gateways: Vec<Cluster>,
    now: Instant,
    /// By gateway, what has happened since it was last asked for.
    outcomes: Vec<Vec<Outcome>>,
    /// Every [`Outcome::Registered`].
    registered: Vec<Outcome>,
}

fn device(mac: Mac, connection: u32, client: u64) -> super::DeviceConnection {
    super::DeviceConnection { mac, connection, client, since: 1_000 }
}

impl Scenario {
    /// That many gateways with names of their own, connected.
    fn new(gateways: usize) -> Self {
        let mut scenario = Self::stopped();
        for index in 0..gateways {
            scenario.add(&format!("gw-{index}"));
        }
        scenario.run_for(1);
        for index in 0..gateways {
            assert_eq!(scenario.state(index), "connected");
            scenario.take(index);
        }
        scenario
    }

    fn stopped() -> Self {
        let now = Instant::now();
        Self {
            redis: RedisModel::new(now),
            gateways: Vec::new(),
            now,
            outcomes: Vec::new(),
            registered: Vec::new(),
        }
    }

    /// Adds a gateway of this name, whose run id is its number.
    fn add(&mut self, name: &str) -> usize {
        let settings = Settings {
            name: name.to_owned(),
            prefix: "p".to_owned(),
            user: None,
            password: None,
            database: 0,
            keys: Vec::new(),
        };
        self.add_with(settings)
    }

    fn add_with(&mut self, settings: Settings) -> usize {
        let index = self.gateways.len();
        let mut cluster = Cluster::new(id(index), settings, self.now);
        cluster.set_info(OwnInfo { version: "1".to_owned(), ..OwnInfo::default() });
        self.gateways.push(cluster);
        self.outcomes.push(Vec::new());
        index
    }

    /// A gateway does not run any more, without a word.
    fn kill(&mut self, index: usize) {
        for connection in BOTH {
            self.redis.disconnect(index, connection);
        }
        self.redis.dead.insert(index);
    }

    /// Everything that happens without time passing.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let mut is_quiet = true;
            for index in 0..self.gateways.len() {
                if !self.redis.dead.contains(&index) {
                    is_quiet &= !self.exchange(index);
                }
            }
            if is_quiet {
                return;
            }
        }
        panic!("the gateways do not come to rest");
    }

    /// Carries out what a gateway wants. False when it wants nothing.
    fn exchange(&mut self, index: usize) -> bool {
        let (cluster, now) = (&mut self.gateways[index], self.now);
        let mut active = false;
        for action in cluster.take_actions() {
            active = true;
            match action {
                Action::Connect(connection) => match self.redis.connect(index, connection) {
                    Ok(()) => cluster.on_connected(connection, now),
                    Err(reason) => cluster.on_lost(connection, reason, now),
                },
                Action::Close(connection) => self.redis.disconnect(index, connection),
            }
        }
        cluster.flush(now);
        for connection in BOTH {
            let output = cluster.take_output(connection);
            self.redis.receive(index, connection, &output, now);
        }
        for connection in BOTH {
            let input = self.redis.take_output(index, connection);
            active |= !input.is_empty();
            cluster.on_bytes(connection, &input, now);
            if self.redis.take_closed(index, connection) {
                active = true;
                cluster.on_lost(connection, "closed", now);
            }
        }
        let outcomes = cluster.take_outcomes();
        let (registered, others): (Vec<_>, Vec<_>) =
            outcomes.into_iter().partition(|outcome| matches!(outcome, Outcome::Registered { .. }));
        self.registered.extend(registered);
        self.outcomes[index].extend(others);
        active
    }

    /// Passes time, from deadline to deadline.
    fn run_for(&mut self, seconds: u64) {
        self.run_until(self.now + Duration::from_secs(seconds));
    }

    fn run_until(&mut self, end: Instant) {
        let mut steps = 0;
        loop {
            self.settle();
            let alive = (0..self.gateways.len()).filter(|index| !self.redis.dead.contains(index));
            let next = alive.map(|index| self.gateways[index].deadline()).min().unwrap_or(end);
            if next > end {
                self.now = end;
                return;
            }
            steps += 1;
            assert!(steps < 100_000, "deadlines do not advance");
            self.now = self.now.max(next);
            for index in 0..self.gateways.len() {
                if !self.redis.dead.contains(&index) && self.gateways[index].deadline() <= self.now {
                    self.gateways[index].on_timeout(self.now);
                }
            }
        }
    }

    fn take(&mut self, index: usize) -> Vec<Outcome> {
        std::mem::take(&mut self.outcomes[index])
    }

    fn state(&self, index: usize) -> &'static str {
        match self.gateways[index].state() {
            super::ClusterState::Off => "off",
            super::ClusterState::Unreachable(_) => "unreachable",
            super::ClusterState::Connected => "connected",
        }
    }

    fn connect_device(&mut self, index: usize, mac: Mac, connection: u32) {
        self.gateways[index].device_connected(device(mac, connection, CLIENT), self.now);
    }

    fn disconnect_device(&mut self, index: usize, mac: Mac, connection: u32) {
        self.gateways[index].device_disconnected(mac, connection, self.now);
    }

    /// Where a gateway is told that the device is.
    fn locate(&mut self, index: usize, mac: Mac) -> super::Location {
        self.gateways[index].locate(mac, 99, self.now);
        self.settle();
        let outcomes = self.take(index);
        let located = outcomes.iter().find_map(|outcome| match outcome {
            Outcome::Located { token: 99, location } => Some(*location),
            _ => None,
        });
        located.unwrap_or_else(|| panic!("no answer in {outcomes:?}"))
    }
}

fn id(index: usize) -> GatewayId {
    GatewayId(0x1000 + index as u64)
}

fn mac(n: u32) -> Mac {
    let [_, a, b, c] = n.to_be_bytes();
    Mac::from([2, 0, 0, a, b, c])
}
