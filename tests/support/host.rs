//! What the system reports about processes and sockets, and connections from other loopback addresses.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::TIMEOUT;
use super::chat_server::Peer;
use super::device::{Device, client_id, mac};
use super::mqtt::{Client, Connect};

/// A TCP connection from this local address.
pub fn connect_from(ip: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(IpAddr::from(ip), 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// A TCP connection with a small receive buffer.
pub fn connect_with_small_buffer(to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // Before the first window is announced.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// Open descriptors of a process.
pub fn open_fds(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Memory of a process that is in use, in KiB.
pub fn resident_kib(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().split(' ').next().unwrap().parse().unwrap()
}

/// Runs a test in its own network and mount namespace, which it can change freely. If the system does not allow
/// that, prints a message and skips the test.
#[cfg(target_os = "linux")]
pub fn in_network_namespace(test: impl FnOnce() + Send) {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let alone = || -> Result<(), String> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(|error| error.to_string())?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .map_err(|error| error.to_string())?;
        run("ip link set lo up")
    };
    // A separate thread, because a thread cannot leave the namespace again.
    let inside = || match alone() {
        Ok(()) => test(),
        Err(error) => {
            let name = thread::current().name().unwrap_or_default().to_owned();
            eprintln!("SKIPPED {name}: it needs root and a network of its own: {error}");
        }
    };
    thread::scope(|scope| {
        let name = thread::current().name().unwrap_or_default().to_owned();
        let thread = thread::Builder::new().name(name).spawn_scoped(scope, inside).unwrap();
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs a command of the system to its end.
pub fn run(line: &str) -> Result<(), String> {
    let mut words = line.split(' ');
    let output = std::process::Command::new(words.next().unwrap()).args(words).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim_end())),
        Err(error) => Err(format!("{line}: {error}")),
    }
}

/// Polls until the condition holds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A device whose MQTT connection comes from this local address.
pub fn device_from(ip: [u8; 4], gateway: SocketAddr, number: u8) -> Device {
    device_over(connect_from(ip, gateway), number)
}

/// A device over this connection.
pub fn device_over(stream: impl Into<Client>, number: u8) -> Device {
    let client_id = client_id(number);
    let mut mqtt = stream.into();
    assert_eq!(mqtt.connack_code(&Connect::new(&client_id)), 0);
    Device { mqtt, mac: mac(number), client_id }
}

/// The fields of the line in /proc/net/tcp for the TCP connection between these two addresses, as seen from the
/// first.
#[cfg(target_os = "linux")]
pub fn proc_net_tcp_entry(local: SocketAddr, remote: SocketAddr) -> Vec<String> {
    let end = |addr: SocketAddr| match addr.ip() {
        IpAddr::V4(ip) => format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), addr.port()),
        IpAddr::V6(_) => panic!("{addr}"),
    };
    let pair = format!("{} {}", end(local), end(remote));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let line = table.lines().find(|line| line.contains(&pair)).unwrap_or_else(|| panic!("no {pair}"));
    line.split_whitespace().map(str::to_owned).collect()
}

/// Sends texts to a chat server that does not read, until the system's buffers are full and the last of them wait
/// in the gateway itself. Returns the number of texts, which are numbered from 0.
#[cfg(target_os = "linux")]
pub fn fill_send_buffers(device: &mut Device, peer: &mut Peer) -> usize {
    const LONG: usize = 60_000;
    let tcp = peer.tcp().unwrap();
    let (server, gateway) = (tcp.local_addr().unwrap(), tcp.peer_addr().unwrap());
    let (mut before, mut grown) = (0, LONG);
    for n in 0.. {
        // Data from the server lets the system adjust its send buffer.
        peer.send_text(r#"{"type":"stt"}"#);
        device.json();
        let text = serde_json::json!({"type": "custom", "n": n, "filler": "x".repeat(LONG)});
        device.send_text(&text.to_string());
        device.mqtt.assert_nothing_pending();
        // At least half a text waits, and now a whole one behind it: there is room for two.
        if grown < LONG / 2 && n > 3 {
            return n + 1;
        }
        let queues = proc_net_tcp_entry(gateway, server)[4].clone();
        let sent = usize::from_str_radix(queues.split(':').next().unwrap(), 16).unwrap();
        (grown, before) = (sent - before, sent);
    }
    unreachable!()
}
