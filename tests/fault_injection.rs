//! Real failures around a running gateway: processes that are killed or frozen, networks that go silent, clocks
//! that jump, disks that fill up. The gateway keeps running, and other calls are not disturbed.
//!
//! `FAULTS=long cargo test --test fault_injection` stops the program for a minute instead of seconds. Other faults have files of
//! their own: a log that is not read (`logging_and_shutdown`), descriptors (`resource_limits`), stalled connections,
//! SYNs without an answer and TLS handshakes (`timeouts`), peers that read nothing (`limits`).

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::PublicIp;
use mqtt_websocket_proxy::net::Running;
use mqtt_websocket_proxy::tools::echo::EchoServer;
use serde_json::{Value, json};
use support::audio::Call;
use support::chat_server::{ChatServer, Message, Peer, audio_frame};
use support::device::{Device, HELLO, client_id, mac};
use support::faulty_server::{ServerFault, assert_failure_alert, start_faulty_server};
use support::host::{connect_from, device_from, in_network_namespace, resident_kib, run, wait_until};
use support::mqtt::{Client, Connect, PINGREQ, PINGRESP, Packet, publish};
use support::process::Folder;
use support::{TIMEOUT, gateway_with};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// Whether faults last as long as real ones.
fn is_long_run() -> bool {
    std::env::var("FAULTS").is_ok_and(|value| value == "long")
}

fn config(servers: &[String], change: impl FnOnce(&mut Value)) -> Folder {
    let mut config = json!({
        "mqtt": {"host": "127.0.0.1"},
        "udp": {"host": "127.0.0.1"},
        "websocket": {
            "production_servers": servers,
            "ping_interval_s": 1, "ping_timeout_s": 3,
            "reconnect": {"initial_ms": 20, "max_ms": 200},
        },
        "mcp": {"enabled": false},
    });
    change(&mut config);
    Folder::new().with_file("gateway.json", config.to_string())
}

/// A call whose chat server runs by itself.
fn start_call(device: &mut Device) -> Call {
    device.send_text(HELLO);
    Call::new(device.json())
}

/// Sends until an echo arrives.
fn wait_for_echo(call: &mut Call) {
    let begin = Instant::now();
    while begin.elapsed() < TIMEOUT {
        call.send(0, b"\x58abc");
        if call.receive_within(MS(20)).is_some() {
            while call.receive_within(MS(50)).is_some() {}
            return;
        }
    }
    panic!("not heard again");
}

/// Runs `meanwhile` during a call in which every packet must be echoed once.
fn assert_call_undisturbed(call: &mut Call, meanwhile: impl FnOnce()) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let calm = scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                call.send(0, b"\x58calm");
                assert_eq!(call.receive().payload, b"\x58calm");
                thread::sleep(MS(20));
            }
        });
        meanwhile();
        over.store(true, Ordering::Release);
        calm.join().unwrap();
    });
}

// ----- processes ------------------------------------------------------------------------------------------------------

/// An echo chat server in a separate process.
struct ChatServerProcess {
    child: Child,
    addr: SocketAddr,
}

const ADDRESS_VARIABLE: &str = "FAULTS_CHAT_SERVER";

/// Not a test: this program in the role of a [`ChatProcess`].
#[test]
#[ignore = "the other tests start it"]
fn chat_server_process() {
    let server = EchoServer::start_on(std::env::var(ADDRESS_VARIABLE).unwrap().parse().unwrap()).unwrap();
    // The test runner has written half a line.
    writeln!(std::io::stdout(), "\nlistens on {}", server.addr()).unwrap();
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

impl ChatServerProcess {
    fn start(addr: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "chat_server_process", "--ignored", "--nocapture"])
            .env(ADDRESS_VARIABLE, addr)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.map(Result::unwrap).find(|line| line.starts_with("listens on")).unwrap();
        Self { child, addr: line.rsplit(' ').next().unwrap().parse().unwrap() }
    }

    fn url(&self) -> String {
        format!("ws://{}/", self.addr)
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        *self = Self::start(&self.addr.to_string());
    }

    fn signal(&self, name: &str) {
        run(&format!("kill -{name} {}", self.child.id())).unwrap();
    }
}

impl Drop for ChatServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn killed_or_frozen_chat_servers_affect_no_other_call() {
    let mut servers = [ChatServerProcess::start("127.0.0.1:0"), ChatServerProcess::start("127.0.0.1:0")];
    let calm = ChatServerProcess::start("127.0.0.1:0");
    let folder = config(&[servers[0].url(), servers[1].url()], |config| {
        config["websocket"]["development_servers"] = json!([calm.url()]);
        config["websocket"]["development_mac_addresses"] = json!([mac(2)]);
    });
    let process = folder.start("-c gateway.json", &[]);
    let mut device = Device::connect(process.mqtt(), 1);
    let mut fickle = start_call(&mut device);
    // Without a word of the user, a call is not redialled for ever.
    let mut user_speaks = || device.send_text(r#"{"type":"listen","state":"detect","text":"hi"}"#);
    let mut other = Device::connect(process.mqtt(), 2);
    assert_call_undisturbed(&mut start_call(&mut other), || {
        for round in 0..4 {
            let server = &mut servers[round % 2];
            server.kill();
            wait_for_echo(&mut fickle);
            user_speaks();
            server.restart();
        }
        for server in &servers {
            server.signal("STOP");
            // A ping gets no answer; a dial may try a frozen server first.
            wait_for_echo(&mut fickle);
            user_speaks();
            server.signal("CONT");
        }
    });
    other.mqtt.assert_nothing_pending();
}

#[test]
fn after_sigstop_pending_input_is_read_before_timeouts_fire() {
    let time = if is_long_run() { Duration::from_secs(60) } else { MS(6_000) };
    let server = ChatServer::start();
    let folder = config(&[server.url()], |_| {});
    let process = folder.start("-c gateway.json", &[]);
    let addr = process.mqtt();
    // Many, since not all fit into one poll.
    let pinging = |number| {
        let connect = Connect { keep_alive: 3, ..Connect::new(&client_id(number)) };
        Client::log_in(addr, &connect)
    };
    let mut idle: Vec<Client> = (10..40).map(pinging).collect();
    let mut device = connect_with_keep_alive(addr, 1);
    let (mut voice, mut peer) = device.call(&server);
    while !matches!(peer.message(), Message::Ping(_)) {
        device.mqtt.send(&PINGREQ);
        idle.iter_mut().for_each(|client| client.send(&PINGREQ));
    }

    // Each peer sends while the gateway is stopped: no device is late, and the chat server answers.
    process.signal("STOP");
    peer.frame(10, b"");
    let begin = Instant::now();
    let mut pings = 0;
    while begin.elapsed() < time {
        pings += 1;
        device.mqtt.send(&PINGREQ);
        idle.iter_mut().for_each(|client| client.send(&PINGREQ));
        thread::sleep(MS(300));
    }
    voice.send(7, b"\x58abc");
    peer.send_text(r#"{"type":"stt","text":"still there"}"#);
    process.signal("CONT");

    let pong = Packet { first: PINGRESP[0], body: Vec::new() };
    idle.iter_mut().for_each(|client| (0..pings).for_each(|_| assert_eq!(client.packet(), pong)));
    let mut text = Value::Null;
    while text["type"] != "stt" {
        match device.mqtt.packet() {
            packet if packet == pong => {}
            packet => text = serde_json::from_str(packet.message().1).unwrap(),
        }
    }
    loop {
        match peer.message() {
            Message::Ping(payload) => peer.frame(10, &payload),
            message => break assert_eq!(message, Message::Binary(audio_frame(7, b"\x58abc"))),
        }
    }
    assert!(server.is_idle(), "nobody was dialled");
}

fn connect_with_keep_alive(gateway: SocketAddr, number: u8) -> Device {
    let client_id = client_id(number);
    let connect = Connect { keep_alive: 3, ..Connect::new(&client_id) };
    Device { mqtt: Client::log_in(gateway, &connect), mac: mac(number), client_id }
}

// ----- networks -------------------------------------------------------------------------------------------------------

/// Drops all packets to this address silently.
fn add_blackhole_route(ip: &str) {
    run(&format!("ip route add blackhole {ip}/32 table local")).unwrap();
}

#[test]
fn peers_whose_network_goes_silent_time_out_and_reconnect() {
    in_network_namespace(|| {
        let servers = [ChatServerProcess::start("127.0.0.11:0"), ChatServerProcess::start("127.0.0.12:0")];
        let debug = |config: &mut Value| config["logging"]["level"] = "debug".into();
        let folder = config(&[servers[0].url(), servers[1].url()], debug);
        let mut process = folder.start("-c gateway.json", &[]);
        let addr = process.mqtt();
        let mut device = device_from([127, 0, 0, 2], addr, 1);
        let mut voice = start_call(&mut device);
        wait_for_echo(&mut voice);
        // One chat server after the other, so that it is certainly this call's.
        add_blackhole_route("127.0.0.11");
        wait_for_echo(&mut voice);
        run("ip route del blackhole 127.0.0.11/32 table local").unwrap();
        add_blackhole_route("127.0.0.12");
        wait_for_echo(&mut voice);
        device.mqtt.assert_nothing_pending();

        // The device vanishes, and reconnects from another address before the gateway notices.
        add_blackhole_route("127.0.0.2");
        let mut back = Client::from(connect_from([127, 0, 0, 3], addr));
        back.send(&Connect::new(&device.client_id).packet());
        assert_eq!(back.packet().body, [0, 0]);
        wait_for_echo(&mut voice);
        back.assert_nothing_pending();
        // Another one does not return: its keep alive expires.
        let connect = Connect { keep_alive: 1, ..Connect::new(&client_id(2)) };
        let mut gone = Client::from(connect_from([127, 0, 0, 4], addr));
        gone.send(&connect.packet());
        assert_eq!(gone.packet().body, [0, 0]);
        add_blackhole_route("127.0.0.4");
        process.wait_for_line(&format!("[{} 127.0.0.4:", client_id(2)));
        let line = process.wait_for_line("closed: ");
        assert!(line.contains("127.0.0.4") && line.contains("keep alive"), "{line}");
    });
}

/// A gateway whose UDP socket is full of one call's audio: the device, its chat server's end, and the gateway.
fn with_a_full_udp_socket(test: impl FnOnce(&mut Device, &mut Peer, &Running, &ChatServer) + Send) {
    in_network_namespace(|| {
        // 10.9.0.9 does not answer ARP: packets to it wait while the sender's socket has room.
        let settings = [("unres_qlen_bytes", "100000000"), ("mcast_solicit", "10000")];
        let ready = run("ip link add v0 type veth peer name v1").and_then(|()| {
            let file = |name| format!("/proc/sys/net/ipv4/neigh/v0/{name}");
            settings
                .iter()
                .try_for_each(|(name, value)| fs::write(file(name), value))
                .map_err(|error| error.to_string())
        });
        if let Err(error) = ready {
            return eprintln!("SKIPPED: it needs a pair of network devices, and their settings: {error}");
        }
        for line in
            ["link set v0 up", "link set v1 up", "addr add 10.9.0.1/24 dev v0", "addr add 10.9.0.9/32 dev lo"]
        {
            run(&format!("ip {line}")).unwrap();
        }
        let server = ChatServer::start();
        let gateway = gateway_with(&[server.url()], |config| {
            config.udp.host = [0, 0, 0, 0].into();
            config.udp.public_ip = PublicIp::Ip([10, 9, 0, 1].into());
            config.websocket.ping_interval = Duration::from_secs(3600);
            config.udp.downlink_pace = false;
        });
        let mut device = Device::connect(gateway.addresses().mqtt, 1);
        let (mut voice, mut peer) = device.call(&server);
        voice.udp = UdpSocket::bind("10.9.0.9:0").unwrap();
        // Its audio comes from another address than MQTT: eight packets are needed.
        (0..8).for_each(|_| voice.send(0, b"\x58abc"));
        (0..8).for_each(|_| drop(peer.binary()));
        peer.send_audio(0, b"\x58abc");
        voice.receive();

        // The device's address is reachable through v0 now.
        run("ip addr del 10.9.0.9/32 dev lo").unwrap();
        (0..60_000).for_each(|n| peer.send_audio(n, &[0x58; 100]));
        // Text does not overtake audio.
        peer.send_text(r#"{"type":"stt","text":"behind it"}"#);
        let waiting = || {
            let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
            table.lines().skip(1).any(|line| line.split_whitespace().nth(4) != Some("00000000:00000000"))
        };
        wait_until("all frames are read", || !waiting());
        test(&mut device, &mut peer, &gateway, &server);
        run("ip neigh replace 10.9.0.9 lladdr 02:00:00:00:00:09 dev v0 nud permanent").unwrap();
        assert_eq!(device.json()["text"], "behind it");
    });
}

#[test]
fn audio_blocked_by_the_network_continues_when_it_is_writable() {
    with_a_full_udp_socket(|device, _, _, _| {
        // The deadline for CONNECT is over then, and no timer is near: only the socket wakes the gateway.
        assert!(device.mqtt.packet_within(Duration::from_secs(11)).is_err(), "it overtook audio");
    });
}

#[test]
fn while_the_udp_socket_is_full_only_text_behind_audio_waits() {
    with_a_full_udp_socket(|device, peer, gateway, server| {
        let text = r#"{"type":"custom","text":"up"}"#;
        device.send_text(text);
        while peer.json()["text"] != "up" {}
        // No audio of this device waits.
        let mut other = Device::connect(gateway.addresses().mqtt, 2);
        let (_, mut peer) = other.call(server);
        peer.send_text(r#"{"type":"stt","text":"down"}"#);
        assert_eq!(other.json()["text"], "down");
        assert!(device.mqtt.packet_within(MS(100)).is_err(), "it overtook audio");
    });
}

#[test]
fn unanswered_dns_lookups_block_nobody_else() {
    in_network_namespace(|| {
        let echo_server = EchoServer::start().unwrap();
        let hangs = "ws://chat.example:8000/".to_owned();
        let folder = config(&[hangs.clone(), echo_server.url()], |config| {
            config["websocket"]["development_servers"] = json!([hangs]);
            config["websocket"]["development_mac_addresses"] = json!([mac(9)]);
        })
        .with_file("resolv.conf", "nameserver 127.0.0.1\n");
        run(&format!("mount --bind {} /etc/resolv.conf", folder.0.join("resolv.conf").display())).unwrap();
        let silent = UdpSocket::bind("127.0.0.1:53").unwrap();
        let process = folder.start("-c gateway.json", &[]);
        let mut asking = Device::connect(process.mqtt(), 1);
        let mut voice = start_call(&mut asking);
        assert_call_undisturbed(&mut voice, || {
            // Some start with the name: a lookup has the same time limit as the other steps of a dial.
            for number in 2..6 {
                let mut device = Device::connect(process.mqtt(), number);
                wait_for_echo(&mut start_call(&mut device));
            }
            let mut without = Device::connect(process.mqtt(), 9);
            assert_failure_alert(&mut without);
        });
        silent.set_nonblocking(true).unwrap();
        assert!(silent.recv(&mut [0; 512]).is_ok(), "it was asked");
    });
}

#[test]
fn a_dial_that_waited_for_its_place_tries_the_next_address_in_time() {
    in_network_namespace(|| {
        let (url, _kept) = start_faulty_server(ServerFault::StallsAtConnect);
        let port = url.trim_end_matches('/').rsplit_once(':').unwrap().1;
        let (occupied, answers) =
            (ChatServer::start(), ChatServer::start_at(format!("127.0.0.5:{port}").parse().unwrap()));
        let folder = Folder::new().with_file("hosts", "127.0.0.1 chat.example\n127.0.0.5 chat.example\n");
        run(&format!("mount --bind {} /etc/hosts", folder.0.join("hosts").display())).unwrap();
        let gateway = gateway_with(&[format!("ws://chat.example:{port}/")], |config| {
            config.websocket.max_dials = 1;
            config.websocket.development = vec![Arc::new(occupied.url().parse().unwrap())];
            config.websocket.development_macs = [mac(1).parse().unwrap()].into();
        });
        let mut first = Device::connect(gateway.addresses().mqtt, 1);
        first.send_text(HELLO);
        let held = occupied.accept();
        let mut second = Device::connect(gateway.addresses().mqtt, 2);
        second.send_text(HELLO);
        second.mqtt.assert_nothing_pending();
        let begin = Instant::now();
        drop((first, held));
        let mut peer = answers.accept();
        assert!(begin.elapsed() >= MS(900), "{:?}", begin.elapsed());
        peer.upgrade();
        peer.exchange_hello("s");
        second.hello_reply();
    });
}

// ----- memory ---------------------------------------------------------------------------------------------------------

#[test]
fn a_flood_under_a_memory_limit_is_refused_and_affects_no_call() {
    const MANY: usize = 400;
    let (echo_server, stalls) = (EchoServer::start().unwrap(), ChatServer::start());
    let folder = config(&[stalls.url()], |config| {
        config["websocket"]["development_servers"] = json!([echo_server.url()]);
        config["websocket"]["development_mac_addresses"] = json!([mac(1), mac(2)]);
    });
    // Threads and libraries reserve 200 MB of address space, of which 6 MB are used.
    let process = folder.start_with_ulimit("-v 300000", "-c gateway.json");
    let addr = process.mqtt();
    let mut device = Device::connect(addr, 1);
    let mut voice = start_call(&mut device);
    wait_for_echo(&mut voice);
    let before = resident_kib(process.id());
    let mut most = 0;
    assert_call_undisturbed(&mut voice, || {
        let text = json!({"type": "custom", "filler": "x".repeat(60_000)}).to_string();
        let text = publish("t", text.as_bytes());
        let mut crowd = Vec::new();
        for number in 0..MANY {
            let id = format!("GID_test@@@02_00_00_01_{:02x}_{:02x}@@@uuid", number >> 8, number & 0xff);
            let mut client = Client::log_in(addr, &Connect::new(&id));
            // Text for a chat server that does not answer, and an incomplete packet.
            client.try_send(&publish("t", HELLO.as_bytes()));
            (0..4).for_each(|_| client.try_send(&text));
            client.try_send(&text[..text.len() - 1]);
            crowd.push(client);
            most = most.max(resident_kib(process.id()));
        }
        let mut late = Device::connect(addr, 2);
        wait_for_echo(&mut start_call(&mut late));
    });
    let grown = most - before;
    assert!(grown < 48 * 1024, "{grown} KiB more for {MANY} times 300 kB");
    device.mqtt.assert_nothing_pending();
}

// ----- the random source ------------------------------------------------------------------------------------------------

/// A library whose `getrandom` fails while a file with this name exists in the working directory.
const RANDOM_SOURCE: &str = r#"
    #define _GNU_SOURCE
    #include <errno.h>
    #include <sys/syscall.h>
    #include <sys/types.h>
    #include <unistd.h>
    ssize_t getrandom(void *buffer, size_t length, unsigned flags) {
        if (access("no-random", F_OK) == 0) { errno = EIO; return -1; }
        return syscall(SYS_getrandom, buffer, length, flags);
    }
"#;

#[test]
#[cfg(target_env = "gnu")]
fn a_random_source_that_fails_refuses_calls_and_costs_no_connection() {
    let server = ChatServer::start();
    let folder = config(&[server.url()], |_| {}).with_file("random.c", RANDOM_SOURCE);
    let (source, library) = (folder.0.join("random.c"), folder.0.join("random.so"));
    let compiler = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    if !compiler.is_ok_and(|status| status.success()) {
        return eprintln!("SKIPPED: a random source that fails needs a C compiler");
    }
    let mut process = folder.start("-c gateway.json", &[("LD_PRELOAD", library.to_str().unwrap())]);
    // One call goes on meanwhile.
    let mut other = Device::connect(process.mqtt(), 1);
    let (mut voice, mut peer) = other.call(&server);
    let mut device = Device::connect(process.mqtt(), 2);
    fs::write(folder.0.join("no-random"), "").unwrap();
    for _ in 0..2 {
        device.send_text(HELLO);
        assert_eq!(device.expect_failure()["status"], "忙 / Busy");
        let line = process.wait_for_line("random source failed");
        assert!(line.contains("ERROR") && line.contains("the call is refused"), "{line}");
        let line = process.wait_for_line("call ends");
        assert!(line.contains("reason=refused"), "{line}");
    }
    voice.send(0, b"\x58abc");
    while !matches!(peer.message(), Message::Binary(_)) {}
    fs::remove_file(folder.0.join("no-random")).unwrap();
    device.mqtt.send(&PINGREQ);
    assert_eq!(device.mqtt.packet(), Packet { first: PINGRESP[0], body: Vec::new() }, "its connection stays");
    let _call = device.call(&server);
    assert!(!process.lines().iter().any(|line| line.contains("closed")), "nobody lost a connection");
}

// ----- the clock and the disk -----------------------------------------------------------------------------------------

/// The library that fakes the clock of a process, where it is installed.
fn clock_library() -> Option<String> {
    let folders = fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let mut files = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    let found = files.find(|file| file.exists());
    if found.is_none() {
        eprintln!("SKIPPED: a clock that jumps needs faketime: ./setup.sh test installs it");
    }
    found.map(|file| file.display().to_string())
}

#[test]
fn a_clock_jump_affects_no_call() {
    let Some(library) = clock_library() else { return };
    let server = ChatServer::start();
    let long_timeout = |config: &mut Value| config["websocket"]["ping_timeout_s"] = 60.into();
    let folder = config(&[server.url()], long_timeout).with_file("clock", "+0");
    let clock = folder.0.join("clock").display().to_string();
    let variables = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", &clock),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let mut process = folder.start("-c gateway.json", &variables);
    let mut device = Device::connect(process.mqtt(), 1);
    let (mut voice, mut peer) = device.call(&server);
    let year = |line: &str| line[..13].to_owned();
    let mut before = year(&process.wait_for_line("call begins"));
    for jump in ["-3600", "+86400", "-100d"] {
        fs::write(&clock, jump).unwrap();
        // Timers use the elapsed time: a ping each second, and its answer.
        for _ in 0..2 {
            while !matches!(peer.message(), Message::Ping(_)) {}
            peer.frame(10, b"");
        }
        voice.send(0, b"\x58abc");
        while !matches!(peer.message(), Message::Binary(_)) {}
        peer.send_audio(0, b"\x58def");
        assert_eq!(voice.receive().payload, b"\x58def");
        device.mqtt.assert_nothing_pending();
        let connect = Connect { keep_alive: 1, ..Connect::new(&client_id(2)) };
        let since = Instant::now();
        let mut late = Client::log_in(process.mqtt(), &connect);
        late.read_until_closed();
        assert!(since.elapsed() >= MS(1_400), "{jump}: {:?}", since.elapsed());
        // The log shows the jump of the clock.
        let mut other = Device::connect(process.mqtt(), 3);
        let (_, mut second) = other.call(&server);
        let after = year(&process.wait_for_line("call begins"));
        assert_ne!(after, before, "the clock has jumped");
        before = after;
        other.send_text(r#"{"type":"goodbye"}"#);
        second.expect_close(1000);
    }
    assert!(server.is_idle(), "nobody was dialled");
}

#[test]
fn a_full_disk_loses_log_lines_only() {
    in_network_namespace(|| {
        let echo_server = EchoServer::start().unwrap();
        let folder = config(&[echo_server.url()], |config| {
            config["logging"] = json!({"file_path": "disk/gateway.log", "level": "debug"});
        })
        .with_file("disk/x", "");
        let disk = folder.0.join("disk");
        run(&format!("mount -t tmpfs -o size=64k none {}", disk.display())).unwrap();
        let mut process = folder.start("-c gateway.json", &[]);
        let addr = process.mqtt();
        let talk = |number| {
            let mut device = Device::connect(addr, number);
            wait_for_echo(&mut start_call(&mut device));
            device.send_text(r#"{"type":"goodbye"}"#);
            device.mqtt.assert_nothing_pending();
            device.client_id
        };
        let written =
            |client_id: &str| fs::read_to_string(disk.join("gateway.log")).unwrap().contains(client_id);
        let first = talk(1);
        wait_until("the first call is in the log", || written(&first));
        let mut filler = fs::File::create(disk.join("filler")).unwrap();
        while filler.write_all(&[0; 64]).is_ok() {}
        let lost: Vec<_> = (2..40).map(talk).collect();
        assert!(!written(lost.last().unwrap()), "the disk was full");
        fs::remove_file(disk.join("filler")).unwrap();
        drop(filler);
        wait_until("lines are written again", || {
            let later = talk(50);
            written(&later)
        });
        process.signal("TERM");
        assert_eq!(process.exit_code(), Some(0));
        run(&format!("umount {}", disk.display())).unwrap();
    });
}
