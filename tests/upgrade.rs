//! Upgrade in place: SIGUSR2 starts the program again, which takes the ports over, while the process before finishes its calls.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::chat_server::{ChatServer, Peer, audio_frame};
use support::device::{Device, client_id};
use support::host::{open_fds, wait_until};
use support::http::{RawClient, raw_request};
use support::mqtt::{Client, Connect, Packet};
use support::process::{Folder, Process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_mqtt-websocket-proxy");
const TOKEN: &str = "a-token-for-the-upgrade";

/// A gateway whose program can be replaced.
struct Gateway {
    folder: Folder,
    process: Process,
    /// The processes that have replaced the first one, the last of which serves.
    successors: Vec<Pid>,
}

/// A process that does not outlive its test.
struct Pid(u32);

impl Drop for Pid {
    fn drop(&mut self) {
        signal(self.0, "KILL");
    }
}

fn signal(pid: u32, name: &str) {
    let kill = format!("kill -{name} {pid}");
    let _ = Command::new("sh").args(["-c", &kill]).stderr(Stdio::null()).status();
}

/// Copies the program, in a process of its own: a process that another test starts meanwhile would inherit the file, open for writing,
/// and what is open for writing cannot be executed.
fn copy_program(from: &Path, to: &Path) {
    let copied = Command::new("cp").args([from, to]).status();
    assert!(copied.unwrap().success());
}

fn config(server: &ChatServer, workers: usize) -> Value {
    json!({
        "mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "mcp": {"enabled": false}, "workers": workers,
        "websocket": {"production_servers": [server.url()]},
        "api": {"host": "127.0.0.1", "token": TOKEN},
    })
}

impl Gateway {
    fn start(server: &ChatServer, workers: usize) -> Self {
        Self::start_with(server, workers, &[])
    }

    fn start_with(server: &ChatServer, workers: usize, variables: &[(&str, &str)]) -> Self {
        let folder = Folder::new().with_file("gateway.json", config(server, workers).to_string());
        copy_program(PROGRAM.as_ref(), &folder.0.join("gateway"));
        let mut command = Command::new("./gateway");
        command.args(["-c", "gateway.json", "--pid", "pid"]).current_dir(&folder.0).env_clear();
        let ports = [("MQTT_PORT", "0"), ("UDP_PORT", "0"), ("API_PORT", "0")];
        command.envs(ports).envs(variables.iter().copied()).stdin(Stdio::null());
        let mut process = Process::spawn(command);
        process.wait_for_line("MQTT on");
        process.wait_for_line("management page");
        wait_until("it runs", || folder.0.join("pid").exists());
        Self { folder, process, successors: Vec::new() }
    }

    fn program(&self) -> PathBuf {
        self.folder.0.join("gateway")
    }

    /// Replaces the program as a package does: another file with the same name.
    fn replace_program(&self, script: Option<&str>) {
        let new = self.folder.0.join("new");
        match script {
            Some(script) => {
                let text = self.folder.0.join("text");
                fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
                fs::set_permissions(&text, PermissionsExt::from_mode(0o755)).unwrap();
                copy_program(&text, &new);
            }
            None => copy_program(PROGRAM.as_ref(), &new),
        }
        fs::rename(new, self.program()).unwrap();
    }

    fn newest(&self) -> u32 {
        self.successors.last().map_or(self.process.id(), |successor| successor.0)
    }

    fn upgrade(&mut self) {
        signal(self.newest(), "USR2");
        let line = self.process.wait_for_line("upgraded: process ");
        let pid = line.split("upgraded: process ").nth(1).unwrap().split(' ').next().unwrap();
        self.successors.push(Pid(pid.parse().unwrap()));
    }

    /// An upgrade that fails; returns the line that says why.
    fn fail_to_upgrade(&mut self) -> String {
        signal(self.newest(), "USR2");
        self.process.wait_for_line("the upgrade ")
    }

    fn device(&self, number: u8) -> Device {
        Device::connect(self.process.mqtt(), number)
    }

    fn devices_here(&self) -> Value {
        let reply =
            RawClient::round_trip(self.process.api(), &raw_request("GET", "/api/sessions", TOKEN, ""));
        serde_json::from_str::<Value>(&reply.body).unwrap()["devices"].clone()
    }
}

/// Audio passes in both directions.
fn exchange_audio(call: &mut support::audio::Call, peer: &mut Peer, timestamp: u32) {
    call.send(timestamp, b"up");
    assert_eq!(peer.binary(), audio_frame(timestamp, b"up"));
    peer.send_audio(timestamp, b"down");
    // A call that was silent for a while gets packets that keep its path open.
    while call.receive().payload != b"down" {}
}

fn goodbye(device: &mut Device, peer: &mut Peer) {
    device.send_text(r#"{"type":"goodbye"}"#);
    peer.expect_close(1000);
}

#[test]
fn calls_stay_idle_devices_reconnect_and_the_process_before_ends_with_its_last_call() {
    for workers in [1, 2] {
        let server = ChatServer::start();
        let mut gateway = Gateway::start(&server, workers);
        let mut calling: Vec<_> = (1..=3).map(|n| gateway.device(n)).collect();
        let mut calls: Vec<_> = calling.iter_mut().map(|device| device.call(&server)).collect();
        calls.iter_mut().for_each(|(call, peer)| exchange_audio(call, peer, 60));
        let mut idle = gateway.device(9);
        wait_until("all are in", || gateway.devices_here() == 4);

        gateway.replace_program(None);
        gateway.upgrade();
        // Nothing needs to wait for the devices that leave.
        let mut new = gateway.device(10);
        let (mut new_call, mut new_peer) = new.call(&server);
        exchange_audio(&mut new_call, &mut new_peer, 60);
        calls.iter_mut().for_each(|(call, peer)| exchange_audio(call, peer, 120));
        assert_eq!(idle.mqtt.read_until_closed(), []);
        let mut idle = gateway.device(9);
        wait_until("the new process has the others", || gateway.devices_here() == 2);
        let (mut idle_call, mut idle_peer) = idle.call(&server);
        exchange_audio(&mut idle_call, &mut idle_peer, 60);

        // Each device leaves at the end of its call.
        for (device, (call, peer)) in calling.iter_mut().zip(&mut calls) {
            exchange_audio(call, peer, 180);
            goodbye(device, peer);
            assert_eq!(device.mqtt.read_until_closed(), []);
        }
        assert_eq!(gateway.process.exit_code(), Some(0));
        gateway.process.wait_for_line_from_start("a process that was replaced has finished its calls");
        exchange_audio(&mut new_call, &mut new_peer, 120);
        let mut again = gateway.device(1);
        let (mut call, mut peer) = again.call(&server);
        exchange_audio(&mut call, &mut peer, 60);
    }
}

#[test]
#[cfg(feature = "cluster")]
fn the_new_process_gets_the_name_in_the_cluster_and_the_one_before_is_another_gateway() {
    if !support::redis::is_installed() {
        return;
    }
    let redis = support::redis::RedisServer::start();
    let server = ChatServer::start();
    let variables = [("MQTT_PROXY_CLUSTER_REDIS", redis.url()), ("MQTT_PROXY_CLUSTER_NAME", "gw".to_owned())];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut gateway = Gateway::start_with(&server, 1, &variables);
    gateway.process.wait_for_line_from_start(" as gw");
    let mut device = gateway.device(1);
    let (mut call, mut peer) = device.call(&server);
    let gateways = |gateway: &Gateway| {
        let request = raw_request("GET", "/api/gateways", TOKEN, "");
        let reply = RawClient::round_trip(gateway.process.api(), &request).json();
        let names = reply["gateways"].as_array().unwrap().iter().map(|gateway| gateway["name"].clone());
        names.collect::<Vec<_>>()
    };
    wait_until("it is in the list", || gateways(&gateway) == ["gw"]);
    gateway.upgrade();
    wait_until("both are in the list", || gateways(&gateway) == ["gw", "gw-old"]);
    exchange_audio(&mut call, &mut peer, 60);
    goodbye(&mut device, &mut peer);
    wait_until("the one before has left", || gateways(&gateway) == ["gw"]);
    assert!(!gateway.process.lines().iter().any(|line| line.contains("has the name")));
}

#[test]
fn a_program_that_does_not_start_leaves_the_running_one_as_it_was() {
    for workers in [1, 2] {
        let server = ChatServer::start();
        let mut gateway = Gateway::start(&server, workers);
        let (mut device, mut idle) = (gateway.device(1), gateway.device(2));
        let (mut call, mut peer) = device.call(&server);
        let mut number = 3;
        let mut still_serves = |gateway: &Gateway| {
            exchange_audio(&mut call, &mut peer, 60 * u32::from(number));
            drop(gateway.device(number));
            number += 1;
            assert_ne!(gateway.devices_here(), Value::Null);
        };
        for (script, reason) in [
            ("exit 7", "it ended before it was ready: exit status: 7"),
            ("kill -SEGV $$", "it ended before it was ready: signal: 11"),
            ("sleep 600", "it was not ready within 10 s"),
        ] {
            gateway.replace_program(Some(script));
            let line = gateway.fail_to_upgrade();
            assert!(
                line.contains("ERROR") && line.contains("this process goes on") && line.contains(reason),
                "{line}"
            );
            still_serves(&gateway);
        }
        // The sockets of later processes stay open.
        let fds = open_fds(gateway.newest());
        fs::remove_file(gateway.program()).unwrap();
        let line = gateway.fail_to_upgrade();
        assert!(line.contains("gateway: No such file"), "{line}");
        gateway.replace_program(None);
        let mut other = config(&server, workers + 1);
        fs::write(gateway.folder.0.join("gateway.json"), other.to_string()).unwrap();
        let line = gateway.fail_to_upgrade();
        assert!(
            line.contains(&format!("`workers` is {}, and {workers} in the process", workers + 1)),
            "{line}"
        );
        fs::write(gateway.folder.0.join("gateway.json"), "{\"mqtt\": 1}").unwrap();
        let line = gateway.fail_to_upgrade();
        assert!(line.contains("gateway.json"), "{line}");
        still_serves(&gateway);
        wait_until("no descriptor is left behind", || open_fds(gateway.newest()) <= fds);
        idle.mqtt.assert_nothing_pending();

        // A second port is taken by somebody else.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        other["workers"] = workers.into();
        other["ota"] =
            json!({"enabled": true, "host": "127.0.0.1", "port": taken.local_addr().unwrap().port()});
        fs::write(gateway.folder.0.join("gateway.json"), other.to_string()).unwrap();
        let line = gateway.fail_to_upgrade();
        assert!(line.contains("another program uses it"), "{line}");
        still_serves(&gateway);

        fs::write(gateway.folder.0.join("gateway.json"), config(&server, workers).to_string()).unwrap();
        gateway.upgrade();
        still_serves(&gateway);
    }
}

#[test]
fn several_generations_have_calls_at_once_and_one_too_many_is_refused() {
    let server = ChatServer::start();
    let mut gateway = Gateway::start(&server, 1);
    let mut calls = Vec::new();
    for generation in 0..16 {
        let mut device = gateway.device(generation);
        let (call, peer) = device.call(&server);
        calls.push((device, call, peer));
        if generation < 15 {
            gateway.upgrade();
        }
    }
    let line = gateway.fail_to_upgrade();
    assert!(line.contains("refused: 16 processes have calls already"), "{line}");
    calls.iter_mut().for_each(|(_, call, peer)| exchange_audio(call, peer, 60));
    // The second one ends first; then there is a place for another.
    let (mut device, call, mut peer) = calls.remove(1);
    goodbye(&mut device, &mut peer);
    drop(call);
    gateway.process.wait_for_line_from_start("a process that was replaced has finished its calls");
    gateway.upgrade();
    let mut device = gateway.device(99);
    let (mut call, mut peer) = device.call(&server);
    calls.iter_mut().for_each(|(_, call, peer)| exchange_audio(call, peer, 120));
    exchange_audio(&mut call, &mut peer, 60);
}

#[test]
fn no_connection_is_refused_and_no_packet_lost_while_calls_and_logins_go_on() {
    let server = ChatServer::start();
    let mut gateway = Gateway::start(&server, 2);
    let mut devices: Vec<_> = (0..8).map(|n| gateway.device(n)).collect();
    let mut calls: Vec<_> = devices.iter_mut().map(|device| device.call(&server)).collect();
    let mqtt = gateway.process.mqtt();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let stopped = || stop.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        let logins = scope.spawn(|| {
            let mut count = 0;
            while !stopped() {
                // Panics when the connection is refused, closed or not answered.
                drop(Device::connect(mqtt, 100 + (count % 100) as u8));
                count += 1;
            }
            count
        });
        let streams: Vec<_> = calls
            .iter_mut()
            .map(|(call, peer)| {
                scope.spawn(|| {
                    let mut number = 1;
                    while !stopped() {
                        exchange_audio(call, peer, 60 * number);
                        number += 1;
                    }
                    number
                })
            })
            .collect();
        gateway.upgrade();
        gateway.upgrade();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(logins.join().unwrap() > 0);
        assert!(streams.into_iter().all(|stream| stream.join().unwrap() > 1));
    });
}

/// The new process has its connection, the one before has its call.
#[test]
fn a_device_that_loses_its_connection_in_a_call_comes_back_to_it() {
    for workers in [1, 3] {
        let server = ChatServer::start();
        let mut gateway = Gateway::start(&server, workers);
        let mut devices: Vec<_> = (1..=4).map(|n| gateway.device(n)).collect();
        let mut calls: Vec<_> = devices.iter_mut().map(|device| device.call(&server)).collect();
        gateway.upgrade();
        gateway.upgrade();
        // Of two processes that were replaced, the first has the calls.
        let mut later = gateway.device(9);
        let (mut later_call, mut later_peer) = later.call(&server);
        gateway.upgrade();
        drop(devices);
        devices = (1..=4).map(|n| gateway.device(n)).collect();
        drop(later);
        let mut later = gateway.device(9);
        for ((call, peer), device) in calls.iter_mut().zip(&mut devices) {
            exchange_audio(call, peer, 60);
            peer.send_text(r#"{"type":"llm","emotion":"happy"}"#);
            while device.json()["emotion"] != "happy" {}
        }
        exchange_audio(&mut later_call, &mut later_peer, 60);
        goodbye(&mut later, &mut later_peer);
        for ((_, peer), device) in calls.iter_mut().zip(&mut devices) {
            goodbye(device, peer);
        }
        assert_eq!(gateway.process.exit_code(), Some(0));
        // Its call is over: it connects to the process that serves.
        let mut again = gateway.device(1);
        let (mut call, mut peer) = again.call(&server);
        exchange_audio(&mut call, &mut peer, 60);
        wait_until("the new process has it", || gateway.devices_here() == 1);
    }
}

#[test]
fn a_device_that_comes_back_before_an_earlier_process_has_reported_its_call_keeps_it() {
    for workers in [1, 3] {
        let server = ChatServer::start();
        let mut gateway = Gateway::start(&server, workers);
        let mut device = gateway.device(1);
        let (mut call, mut peer) = device.call(&server);
        gateway.upgrade();
        // The new process serves.
        gateway.device(2);
        // The process with the call cannot report it.
        gateway.process.signal("STOP");
        gateway.upgrade();
        drop(device);
        let mut client = Client::open(gateway.process.mqtt());
        client.send(&Connect::new(&client_id(1)).packet());
        gateway.process.signal("CONT");
        assert_eq!(client.packet(), Packet::connack(0));
        exchange_audio(&mut call, &mut peer, 60);
        peer.send_text(r#"{"type":"llm","emotion":"happy"}"#);
        while client.json()["emotion"] != "happy" {}
        client.send_text(r#"{"type":"goodbye"}"#);
        peer.expect_close(1000);
    }
}

/// The successor's `READY=1` counts only when systemd knows already that it is the main process.
#[test]
fn the_service_manager_and_the_pid_file_learn_of_the_new_process() {
    let name = format!("upgrade-test-{}", std::process::id());
    let addr = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let manager = UnixDatagram::bind_addr(&addr).unwrap();
    manager.set_read_timeout(Some(support::TIMEOUT)).unwrap();
    let message = || {
        let mut buffer = [0; 4096];
        let n = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..n].to_vec()).unwrap()
    };
    let server = ChatServer::start();
    let variables = [("NOTIFY_SOCKET", &*format!("@{name}")), ("WATCHDOG_USEC", "200000")];
    let mut gateway = Gateway::start_with(&server, 1, &variables);
    let pid_file = gateway.folder.0.join("pid");
    let written = || fs::read_to_string(&pid_file).unwrap().trim().parse::<u32>().unwrap();
    assert_eq!(written(), gateway.process.id());
    let mut device = gateway.device(1);
    let (_call, mut peer) = device.call(&server);
    gateway.upgrade();
    let new = gateway.newest();
    assert_eq!(written(), new);
    while message() != format!("MAINPID={new}") {}
    loop {
        let next = message();
        if next.starts_with("READY=1") {
            break;
        }
        assert!(next.starts_with("WATCHDOG=1"), "{next}");
    }
    // The one that is watched now pings, and the other one says nothing.
    goodbye(&mut device, &mut peer);
    assert_eq!(gateway.process.exit_code(), Some(0));
    assert_eq!(written(), new, "the first process leaves the file of the other");
    for _ in 0..3 {
        assert!(message().starts_with("WATCHDOG=1"));
    }
    signal(new, "TERM");
    wait_until("the pid file is removed", || !pid_file.exists());
}

#[test]
fn another_port_in_the_configuration_is_opened_and_the_earlier_one_closed() {
    let server = ChatServer::start();
    let mut gateway = Gateway::start(&server, 1);
    let before = gateway.process.mqtt();
    let mut device = gateway.device(1);
    let (mut call, mut peer) = device.call(&server);
    let mut other = config(&server, 1);
    other["mqtt"]["host"] = "127.0.0.2".into();
    other["udp"]["host"] = "127.0.0.2".into();
    fs::write(gateway.folder.0.join("gateway.json"), other.to_string()).unwrap();
    gateway.upgrade();
    wait_until("the earlier port is closed", || TcpStream::connect(before).is_err());
    // The lines of two processes can come in either order.
    gateway.process.wait_for_line_from_start("MQTT on 127.0.0.2");
    let line = gateway.process.seen.iter().rfind(|line| line.contains("MQTT on ")).unwrap();
    let at = line.split("MQTT on ").nth(1).unwrap().split(',').next().unwrap();
    let mut new = Device::connect(at.parse::<SocketAddr>().unwrap(), 2);
    let (mut new_call, mut new_peer) = new.call(&server);
    exchange_audio(&mut new_call, &mut new_peer, 60);
    exchange_audio(&mut call, &mut peer, 60);
}

#[test]
fn calls_of_all_generations_go_on_after_a_change_of_the_udp_port() {
    let server = ChatServer::start();
    let mut gateway = Gateway::start(&server, 2);
    let mut calls = Vec::new();
    for number in (0..12).step_by(4) {
        // Of each worker.
        for device in number..number + 4 {
            let mut device = gateway.device(device);
            let (call, peer) = device.call(&server);
            calls.push((device, call, peer));
        }
        if number == 8 {
            let mut other = config(&server, 2);
            other["udp"]["host"] = "127.0.0.3".into();
            fs::write(gateway.folder.0.join("gateway.json"), other.to_string()).unwrap();
        }
        gateway.upgrade();
    }
    calls.iter_mut().for_each(|(_, call, peer)| exchange_audio(call, peer, 60));
    let line = gateway.fail_to_upgrade();
    assert!(line.contains("refused: a process still has calls on the earlier UDP port"), "{line}");
    // The generation in the middle ends first.
    for (mut device, _call, mut peer) in calls.drain(4..8) {
        goodbye(&mut device, &mut peer);
    }
    gateway.process.wait_for_line_from_start("a process that was replaced has finished its calls");
    calls.iter_mut().for_each(|(_, call, peer)| exchange_audio(call, peer, 120));
}

#[test]
fn a_signal_to_stop_during_an_upgrade_stops_both_processes() {
    let server = ChatServer::start();
    let mut gateway = Gateway::start(&server, 1);
    copy_program(PROGRAM.as_ref(), &gateway.folder.0.join("real"));
    // It goes on when the test says so.
    gateway.replace_program(Some("until [ -e go ]; do sleep 0.05; done; exec ./real \"$@\""));
    signal(gateway.newest(), "USR2");
    gateway.process.wait_for_line("upgrade: starting");
    gateway.process.signal("TERM");
    assert_eq!(gateway.process.exit_code(), Some(0));
    fs::write(gateway.folder.0.join("go"), "").unwrap();
    gateway.process.wait_for_line("the running gateway cannot be replaced: it has ended");
    assert!(TcpStream::connect(gateway.process.mqtt()).is_err());
}

/// Their clients connect again, to the process that serves.
#[test]
fn streams_of_events_end_with_the_upgrade() {
    let server = ChatServer::start();
    let mut gateway = Gateway::start(&server, 1);
    let mut device = gateway.device(1);
    let (_call, _peer) = device.call(&server);
    let mut stream = TcpStream::connect(gateway.process.api()).unwrap();
    stream.set_read_timeout(Some(support::TIMEOUT)).unwrap();
    stream.write_all(raw_request("GET", "/api/events", TOKEN, "").as_bytes()).unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    gateway.upgrade();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
}

#[test]
fn the_variable_of_an_upgrade_in_an_ordinary_environment_is_named() {
    let folder = Folder::new();
    let output = folder.run("", &[("MQTT_WEBSOCKET_PROXY_UPGRADE", "1")]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("MQTT_WEBSOCKET_PROXY_UPGRADE") && text.contains("unset it"), "{text}");
}
