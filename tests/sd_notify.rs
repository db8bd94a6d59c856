//! Notifications to the service manager (sd_notify(3)), on a socket that replaces systemd's.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use support::TIMEOUT;
use support::device::Device;
use support::process::Folder;

/// The watchdog interval asks for a ping every 100 ms.
const WATCHDOG: (&str, &str) = ("WATCHDOG_USEC", "200000");

struct NotifySocket(UnixDatagram);

impl NotifySocket {
    /// An abstract socket, as in containers.
    fn bind_abstract(name: &str) -> Self {
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
    fn wait_for_line(&self, wanted: &str) -> String {
        let end = Instant::now() + TIMEOUT;
        let mut seen = Vec::new();
        while let Some(message) = self.message_within(support::remaining(end)) {
            if message.lines().any(|line| line == wanted) {
                return message;
            }
            seen.push(message);
        }
        panic!("no {wanted}: {seen:#?}")
    }
}

#[test]
fn ready_watchdog_reloading_and_stopping_are_notified() {
    let name = format!("gateway-test-{}", std::process::id());
    let manager = NotifySocket::bind_abstract(&name);
    let folder = Folder::new().with_file("gateway.json", r#"{"mqtt":{"host":"127.0.0.1"}}"#);
    let process = folder.start("-c gateway.json", &[("NOTIFY_SOCKET", &format!("@{name}")), WATCHDOG]);

    let first = manager.message_within(TIMEOUT).unwrap();
    assert_eq!(first, "READY=1\nSTATUS=serving: 0 devices, 0 calls");
    let _device = Device::connect(process.mqtt(), 1);
    manager.wait_for_line("STATUS=serving: 1 devices, 0 calls");
    (0..3).for_each(|_| drop(manager.wait_for_line("WATCHDOG=1")));

    // A loop that hangs sends nothing.
    process.signal("STOP");
    while manager.message_within(Duration::from_millis(400)).is_some() {}
    process.signal("CONT");
    manager.wait_for_line("WATCHDOG=1");

    process.signal("HUP");
    let reloading = manager.wait_for_line("RELOADING=1");
    let time = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
    assert!(time.parse::<u64>().unwrap() > 0);
    assert_eq!(manager.message_within(TIMEOUT).unwrap(), "READY=1");

    process.signal("TERM");
    manager.wait_for_line("STOPPING=1");
    assert_eq!(process.end().0, Some(0));
}

#[test]
fn a_drain_notifies_status_and_its_end_notifies_stopping() {
    let folder = Folder::new().with_file("gateway.json", r#"{"mqtt":{"host":"127.0.0.1"}}"#);
    let path = folder.0.join("notify");
    let manager = NotifySocket(UnixDatagram::bind(&path).unwrap());
    let process = folder.start("-c gateway.json", &[("NOTIFY_SOCKET", path.to_str().unwrap())]);
    manager.wait_for_line("READY=1");
    let mut devices: Vec<_> = (1..=2).map(|n| Device::connect(process.mqtt(), n)).collect();
    process.signal("USR1");
    assert_eq!(manager.message_within(TIMEOUT).unwrap(), "STATUS=draining: 2 devices, 0 calls");
    devices.iter_mut().for_each(|device| drop(device.mqtt.read_until_closed()));
    assert_eq!(manager.message_within(TIMEOUT).unwrap(), "STOPPING=1\nSTATUS=stopping");
    assert_eq!(process.end().0, Some(0));
}

#[test]
fn no_ready_without_a_start_and_no_watchdog_unless_requested() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = Folder::new().with_file("gateway.json", r#"{"mqtt":{"host":"127.0.0.1"}}"#);
    let path = folder.0.join("notify");
    let manager = NotifySocket(UnixDatagram::bind(&path).unwrap());
    let socket = ("NOTIFY_SOCKET", path.to_str().unwrap());
    let output = folder.run("-c gateway.json", &[("MQTT_PORT", &port), ("UDP_PORT", "0"), socket]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(manager.message_within(Duration::from_millis(1)), None);

    // The watchdog is for another process.
    let process = folder.start("-c gateway.json", &[socket, WATCHDOG, ("WATCHDOG_PID", "1")]);
    manager.wait_for_line("READY=1");
    assert_eq!(manager.message_within(Duration::from_millis(500)), None);
    drop(process);

    // A missing service manager only causes a warning.
    let mut process = folder.start("-c gateway.json", &[("NOTIFY_SOCKET", "/nonexistent/notify")]);
    process.wait_for_line("NOTIFY_SOCKET");
    Device::connect(process.mqtt(), 1);
}
