//! What the system tells of a process and its sockets, and addresses of its loopback network.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::LIMIT;
use super::device::{Device, client_id, mac};
use super::mqtt::{Client, Connect};

/// A TCP connection that leaves from this address of ours.
pub fn connect_from(ip: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(IpAddr::from(ip), 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// Open descriptors of a process.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Memory of a process that is in use, in KiB.
pub fn resident(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().split(' ').next().unwrap().parse().unwrap()
}

/// Waits until something that changes by itself is so.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A device whose MQTT connection comes from this address of ours.
pub fn device_from(ip: [u8; 4], gateway: SocketAddr, number: u8) -> Device {
    let client_id = client_id(number);
    let mut mqtt = Client::from(connect_from(ip, gateway));
    mqtt.send(&Connect::new(&client_id).packet());
    assert_eq!(mqtt.packet().body, [0, 0]);
    Device { mqtt, mac: mac(number), client_id }
}
