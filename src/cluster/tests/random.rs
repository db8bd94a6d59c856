//! Devices that move at random between gateways, with faults of Redis.

use std::collections::BTreeMap;

use super::*;

const GATEWAYS: usize = 3;
const DEVICES: u32 = 6;

/// A device has one connection that it uses; older ones it has left without a word may still be open.
#[derive(Default)]
struct Device {
    /// By gateway.
    open: BTreeMap<usize, u32>,
    newest: Option<(usize, u32)>,
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// The newest connection is never closed for an older one. In the end, Redis has the newest one of each device that has no other.
#[test]
fn the_newest_connection_wins_whatever_redis_does() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let mut scenario = Scenario::new(GATEWAYS);
        let mut devices: Vec<Device> = (0..DEVICES).map(|_| Device::default()).collect();
        let mut last_connection = 0;
        for _ in 0..60 {
            let (n, gateway) =
                (random.below(DEVICES.into()) as usize, random.below(GATEWAYS as u64) as usize);
            match random.below(12) {
                0..6 => {
                    last_connection += 1;
                    let device = &mut devices[n];
                    if let Some(older) = device.open.insert(gateway, last_connection) {
                        scenario.disconnect_device(gateway, mac(n as u32), older);
                    }
                    device.newest = Some((gateway, last_connection));
                    scenario.connect_device(gateway, mac(n as u32), last_connection);
                }
                6 => {
                    if let Some(connection) = devices[n].open.remove(&gateway) {
                        scenario.disconnect_device(gateway, mac(n as u32), connection);
                        if devices[n].newest == Some((gateway, connection)) {
                            devices[n].newest = None;
                        }
                    }
                }
                7 => scenario.redis.keys.clear(),
                8 => scenario.redis.is_paused = !scenario.redis.is_paused,
                9 => scenario.redis.crash(),
                10 => _ = scenario.redis.wedged.insert(gateway),
                _ => {
                    (scenario.redis.is_down, scenario.redis.is_paused) = (false, false);
                    scenario.redis.wedged.clear();
                }
            }
            // A device needs a moment to connect elsewhere.
            scenario.run_until(scenario.now + Duration::from_millis(2_100 + random.below(20_000)));
            apply(&mut scenario, &mut devices, seed);
        }
        (scenario.redis.is_down, scenario.redis.is_paused) = (false, false);
        scenario.redis.wedged.clear();
        scenario.run_for(150);
        apply(&mut scenario, &mut devices, seed);
        check_end(&mut scenario, &devices, seed);
    }
}

/// Closes what is to be closed.
fn apply(scenario: &mut Scenario, devices: &mut [Device], seed: u64) {
    for gateway in 0..GATEWAYS {
        for outcome in scenario.take(gateway) {
            let Outcome::ConnectedElsewhere { mac: closed, connection, .. } = outcome else { continue };
            let n = (0..DEVICES).find(|n| mac(*n) == closed).unwrap();
            let device = &mut devices[n as usize];
            assert_ne!(device.newest, Some((gateway, connection)), "seed {seed}: the newest is closed");
            if device.open.get(&gateway) == Some(&connection) {
                device.open.remove(&gateway);
                scenario.disconnect_device(gateway, closed, connection);
            }
        }
    }
}

fn check_end(scenario: &mut Scenario, devices: &[Device], seed: u64) {
    for (n, device) in devices.iter().enumerate() {
        let Some((gateway, connection)) = device.newest else { continue };
        assert_eq!(device.open.get(&gateway), Some(&connection), "seed {seed}");
        // One that is open at a single gateway is found there.
        if device.open.len() == 1 {
            let location = scenario.locate(gateway, mac(n as u32));
            assert_eq!(location, crate::cluster::Location::At(id(gateway)), "seed {seed}, device {n}");
        }
    }
}
