use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::Config;
use crate::net::Running;
use crate::net::gateway::Gateway;
use crate::tools::device::{Login, SimulatedDevice};
use crate::tools::echo::EchoServer;

/// The time limit for everything that must happen.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

pub(super) fn gateway(workers: usize, echo: &EchoServer, api: bool) -> Running {
    let mut config = Config::default();
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    (config.mqtt.host, config.mqtt.port) = (loopback, 0);
    (config.udp.host, config.udp.port) = (loopback, 0);
    (config.api.enabled, config.mcp.enabled, config.workers) = (api, false, workers);
    (config.api.host, config.api.port) = (Some(loopback), 0);
    config.websocket.production = vec![Arc::new(echo.url().parse().unwrap())];
    Running::start(config, None).unwrap()
}

/// Has a worker of the gateway do this.
pub(super) fn at_worker(
    gateway: &Running,
    worker: usize,
    action: impl FnOnce(&mut Gateway) + Send + 'static,
) {
    gateway.handle().run(move |leader| match worker {
        0 => action(leader),
        _ => leader.workers.run_at(worker, action),
    });
}

/// Devices in calls, so many that each worker has some.
fn devices(gateway: &Running) -> Vec<SimulatedDevice> {
    let in_call = |n: u8| {
        let login = Login::new(format!("aa:bb:cc:00:00:{n:02x}").parse().unwrap(), None);
        let mut device = SimulatedDevice::connect(gateway.addresses().mqtt, &login, LIMIT).unwrap();
        device.call().unwrap();
        device
    };
    (0..12).map(in_call).collect()
}

/// The error with which the gateway ends.
fn error_of(gateway: Running) -> String {
    let (ended, outcome) = mpsc::channel();
    let wait = thread::spawn(move || ended.send(gateway.wait()).unwrap());
    let outcome = outcome.recv_timeout(LIMIT).expect("it has not ended");
    wait.join().unwrap();
    outcome.unwrap_err().to_string()
}

#[test]
fn a_panic_of_any_worker_ends_all_with_an_error_that_names_it() {
    let echo = EchoServer::start().unwrap();
    for worker in [0, 1] {
        let gateway = gateway(2, &echo, false);
        let mut devices = devices(&gateway);
        let addr = gateway.addresses().mqtt;
        at_worker(&gateway, worker, |_| panic!("injected"));
        assert_eq!(error_of(gateway), format!("worker {worker}: the loop panicked: injected"));
        // The devices of the other worker get a goodbye, and the connections of all are closed.
        let goodbyes = devices.iter_mut().filter_map(|device| match device.wait_for("goodbye", LIMIT) {
            Ok(goodbye) => Some(goodbye),
            Err(failure) => {
                assert!(failure.is_closed(), "{failure}");
                None
            }
        });
        assert!((1..12).contains(&goodbyes.count()));
        assert!(TcpStream::connect(addr).is_err(), "it still listens");
    }
}

#[test]
fn a_drain_or_a_stop_ends_although_a_worker_has_panicked() {
    let echo = EchoServer::start().unwrap();
    let [panic, drain, stop]: [fn(&Running); 3] = [
        |gateway| at_worker(gateway, 1, |_| panic!("injected")),
        |gateway| gateway.handle().drain(),
        |gateway| gateway.handle().stop(LIMIT),
    ];
    for order in [[panic, drain], [drain, panic], [panic, stop]] {
        let gateway = gateway(2, &echo, false);
        let _devices = devices(&gateway);
        order.iter().for_each(|step| step(&gateway));
        assert_eq!(error_of(gateway), "worker 1: the loop panicked: injected");
    }
}

#[test]
fn a_panic_of_the_only_worker_is_an_error() {
    let gateway = gateway(1, &EchoServer::start().unwrap(), false);
    at_worker(&gateway, 0, |_| panic!("injected"));
    assert_eq!(error_of(gateway), "the loop panicked: injected");
}
