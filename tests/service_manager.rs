//! What a service manager hears (sd_notify(3)), on a socket that plays systemd's.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use support::LIMIT;
use support::device::Device;
use support::process::Folder;

/// Pings every 100 ms are asked for.
const WATCHDOG: (&str, &str) = ("WATCHDOG_USEC", "200000");

struct Manager(UnixDatagram);

impl Manager {
    /// On a name without a file, as containers have it.
    fn abstract_named(name: &str) -> Self {
        let manager = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        Self(manager)
    }

    fn message_within(&self, limit: Duration) -> Option<String> {
        let mut buffer = [0; 4096];
        self.0.set_read_timeout(Some(limit)).unwrap();
        match self.0.recv(&mut buffer) {
            Ok(n) => Some(String::from_utf8(buffer[..n].to_vec()).unwrap()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// The next message with this line; others may come before.
    fn line(&self, wanted: &str) -> String {
        let end = Instant::now() + LIMIT;
        let mut seen = Vec::new();
        while let Some(message) = self.message_within(support::left(end)) {
            if message.lines().any(|line| line == wanted) {
                return message;
            }
            seen.push(message);
        }
        panic!("no {wanted}: {seen:#?}")
    }
}

#[test]
fn it_hears_of_the_start_every_turn_that_it_asks_for_reloads_and_the_end() {
    let name = format!("gateway-test-{}", std::process::id());
    let manager = Manager::abstract_named(&name);
    let folder = Folder::new().with("gateway.json", r#"{"mqtt":{"host":"127.0.0.1"}}"#);
    let process = folder.start("-c gateway.json", &[("NOTIFY_SOCKET", &format!("@{name}")), WATCHDOG]);

    let first = manager.message_within(LIMIT).unwrap();
    assert_eq!(first, "READY=1\nSTATUS=serving: 0 devices, 0 calls");
    let _device = Device::connect(process.mqtt(), 1);
    manager.line("STATUS=serving: 1 devices, 0 calls");
    let began = Instant::now();
    (0..3).for_each(|_| drop(manager.line("WATCHDOG=1")));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());

    // A loop that does not turn is silent.
    process.signal("STOP");
    while manager.message_within(Duration::from_millis(400)).is_some() {}
    process.signal("CONT");
    manager.line("WATCHDOG=1");

    process.signal("HUP");
    let reloading = manager.line("RELOADING=1");
    let time = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
    assert!(time.parse::<u64>().unwrap() > 0);
    assert_eq!(manager.message_within(LIMIT).unwrap(), "READY=1");

    process.signal("TERM");
    manager.line("STOPPING=1");
    assert_eq!(process.end().0, Some(0));
}

#[test]
fn a_drain_is_a_status_and_only_its_end_is_the_stop() {
    let folder = Folder::new().with("gateway.json", r#"{"mqtt":{"host":"127.0.0.1"}}"#);
    let path = folder.0.join("notify");
    let manager = Manager(UnixDatagram::bind(&path).unwrap());
    let process = folder.start("-c gateway.json", &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    manager.line("READY=1");
    let mut devices: Vec<_> = (1..=2).map(|n| Device::connect(process.mqtt(), n)).collect();
    process.signal("USR1");
    assert_eq!(manager.message_within(LIMIT).unwrap(), "STATUS=draining: 2 devices, 0 calls");
    devices.iter_mut().for_each(|device| drop(device.mqtt.until_closed()));
    assert_eq!(manager.message_within(LIMIT).unwrap(), "STOPPING=1\nSTATUS=stopping");
    assert_eq!(process.end().0, Some(0));
}

#[test]
fn who_does_not_start_is_not_ready_and_who_is_not_watched_is_silent() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = Folder::new().with("gateway.json", r#"{"mqtt":{"host":"127.0.0.1"}}"#);
    let path = folder.0.join("notify");
    let manager = Manager(UnixDatagram::bind(&path).unwrap());
    let socket = ("NOTIFY_SOCKET", path.to_str().unwrap());
    let output = folder.run("-c gateway.json", &[("MQTT_PORT", &port), ("UDP_PORT", "0"), socket]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(manager.message_within(Duration::from_millis(1)), None);

    // The watchdog is for another process.
    let process = folder.start("-c gateway.json", &[socket, WATCHDOG, ("WATCHDOG_PID", "1")]);
    manager.line("READY=1");
    assert_eq!(manager.message_within(Duration::from_millis(500)), None);
    drop(process);

    // A manager that is not there is a warning, no more.
    let mut process = folder.start("-c gateway.json", &[("NOTIFY_SOCKET", "/nonexistent/notify")]);
    process.line("NOTIFY_SOCKET");
    Device::connect(process.mqtt(), 1);
}
