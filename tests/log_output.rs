//! Where the log goes, and in which format.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::chat_server::ChatServer;
use support::device::{Device, HELLO};
use support::host::wait_until;
use support::process::{Folder, Process};

fn folder(server: &ChatServer, logging: Value) -> Folder {
    let file = json!({
        "mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "mcp": {"enabled": false},
        "websocket": {"production_servers": [server.url()]}, "logging": logging,
    });
    Folder::new().with_file("gateway.json", file.to_string())
}

fn read(folder: &Folder, name: &str) -> String {
    fs::read_to_string(folder.0.join(name)).unwrap_or_default()
}

#[test]
fn every_line_of_a_call_carries_its_session_id() {
    let server = ChatServer::start();
    let folder = folder(&server, json!({}));
    let mut process = folder.start("-c gateway.json -l debug", &[]);
    let mut device = Device::connect(process.mqtt(), 1);
    let (_call, peer) = device.call(&server);
    // It loses its server, gets another, and then its device.
    peer.reset();
    let mut peer = server.accept();
    peer.upgrade();
    peer.exchange_hello("another-session");
    process.wait_for_line("call goes on");
    device.mqtt.reset();
    process.wait_for_line("connection lost");
    process.signal("TERM");
    let (_, lines) = process.end();
    let place = |part: &str| lines.iter().position(|line| line.contains(part)).unwrap();
    let (begin, end) = (place("call begins"), place("call ends"));
    let of_call: Vec<_> = lines[begin..=end].iter().filter(|line| line.contains(&device.client_id)).collect();
    assert!(of_call.len() >= 5, "{lines:#?}");
    for line in of_call {
        assert_eq!(line.matches("session=server-session").count(), 1, "{line}");
    }
    // A device without a call has none.
    assert!(!lines[place("connected, new")].contains("session="), "{lines:#?}");
}

#[test]
fn json_lines_are_valid_and_have_fields_whatever_a_peer_sends() {
    let server = ChatServer::start();
    let folder = folder(&server, json!({"format": "json", "file_path": "gateway.log"}));
    let mut process = folder.start("-c gateway.json", &[("TZ", "CST-8")]);
    let mut device = Device::connect(process.mqtt(), 1);
    let (_call, mut peer) = device.call(&server);
    peer.send_text(r#"{"type":"goodbye","reason":"\"}\n{\"level\":\"error\" \u202e"}"#);
    drop(peer);
    device.send_text(r#"{"type":"goodbye"}"#);
    process.wait_for_line("call ends");
    device.send_text(&HELLO.replace("\"version\":3", r#""version":"\"}\r\n{\u0000\u001b[31m\u202e""#));
    process.wait_for_line("hello with version");
    process.signal("TERM");
    let client_id = device.client_id.clone();
    drop(device);
    let (_, lines) = process.end();
    let parsed: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str(line).expect(line.as_str())).collect();
    for line in &parsed {
        let time = line["time"].as_str().unwrap();
        assert!(time.len() == "2026-01-31T23:59:59.999+08:00".len() && time.ends_with("+08:00"), "{line}");
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
    let with =
        |part: &str| parsed.iter().find(|line| line["message"].as_str().unwrap().contains(part)).unwrap();
    for part in ["call begins", "call ends"] {
        let line = with(part);
        assert_eq!(line["level"], "info");
        assert_eq!(line["device"], *client_id);
        assert!(line["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        assert_eq!(line["session"], "server-session", "{line}");
    }
    assert!(with("connected, new")["session"].is_null());
    assert_eq!(with("hello with version")["level"], "warn");
    // The file has the same lines.
    let written = read(&folder, "gateway.log");
    assert_eq!(written.lines().collect::<Vec<_>>(), lines);
}

#[test]
fn the_time_is_local_with_its_offset_or_utc_and_changes_at_a_reload() {
    let server = ChatServer::start();
    let (text, variables) = (json!({}), [("TZ", "NST3:30")]);
    let folder = folder(&server, text);
    let mut process = folder.start("-c gateway.json", &variables);
    let line = process.seen.last().unwrap().clone();
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(time.ends_with("-03:30") && rest.starts_with("[INFO ] "), "{line}");
    let mut file: Value = serde_json::from_str(&read(&folder, "gateway.json")).unwrap();
    file["logging"] = json!({"time": "utc", "format": "text"});
    fs::write(folder.0.join("gateway.json"), file.to_string()).unwrap();
    process.signal("HUP");
    process.wait_for_line("reload: applied: logging.time");
    process.signal("TERM");
    let line = process.wait_for_line("stopped");
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(time.ends_with('Z') && rest.starts_with("[INFO ] "), "{line}");
}

#[test]
fn lines_for_the_journal_have_priorities_and_others_do_not() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = Folder::new().with_file("gateway.json", r#"{"mqtt": {"host": "127.0.0.1"}}"#);
    for is_journal in [true, false] {
        let stderr = File::create(folder.0.join("stderr")).unwrap();
        let found = stderr.metadata().unwrap();
        let inode = found.ino() + u64::from(!is_journal);
        let stream = format!("{}:{inode}", found.dev());
        let variables = [("JOURNAL_STREAM", &*stream), ("MQTT_PORT", &port)];
        let status = folder.command("-c gateway.json", &variables).stderr(stderr).status().unwrap();
        assert_eq!(status.code(), Some(1));
        let lines = read(&folder, "stderr");
        let last = lines.lines().last().unwrap();
        assert!(last.contains("[ERROR] "), "{lines}");
        assert_eq!(last.starts_with("<3>2"), is_journal, "{lines}");
        assert_eq!(lines.starts_with("<6>2"), is_journal, "{lines}");
    }
}

/// A gateway with a log file, after its first lines.
fn with_file(logging: Value) -> (Folder, Process) {
    let server = ChatServer::start();
    let folder = folder(&server, logging);
    let process = folder.start("-c gateway.json", &[]);
    (folder, process)
}

fn reload(process: &mut Process) {
    process.signal("HUP");
    process.wait_for_line("reload: nothing has changed");
}

#[test]
fn a_renamed_file_is_opened_again_at_sighup() {
    let (folder, mut process) = with_file(json!({"file_path": "gateway.log", "max_mb": 0}));
    reload(&mut process);
    fs::rename(folder.0.join("gateway.log"), folder.0.join("gateway.log.1")).unwrap();
    reload(&mut process);
    process.signal("TERM");
    assert_eq!(process.end().0, Some(0));
    let (old, new) = (read(&folder, "gateway.log.1"), read(&folder, "gateway.log"));
    assert!(old.contains("MQTT on") && !old.contains("stopped"), "{old}");
    assert!(new.contains("reload: nothing has changed") && new.contains("stopped"), "{new}");
    assert_eq!(old.matches("nothing has changed").count() + new.matches("nothing has changed").count(), 2);
}

#[test]
fn the_shipped_logrotate_file_loses_no_line() {
    let logrotate =
        ["/usr/sbin/logrotate", "/usr/bin/logrotate"].into_iter().find(|path| Path::new(path).exists());
    let Some(logrotate) = logrotate else { return eprintln!("skipped: logrotate is not installed") };
    let (folder, mut process) = with_file(json!({"file_path": "logs/gateway.log", "max_mb": 0}));
    let sample = include_str!("../config/mqtt-websocket-proxy.logrotate");
    let kill = "systemctl kill --signal=HUP --kill-whom=all mqtt-websocket-proxy.service";
    assert!(sample.contains(kill) && sample.contains("/var/log/mqtt-websocket-proxy/"));
    let logs = folder.0.join("logs");
    let sample = sample
        .replace(kill, &format!("kill -HUP {}", process.id()))
        .replace("/var/log/mqtt-websocket-proxy", logs.to_str().unwrap());
    fs::write(folder.0.join("logrotate.conf"), sample).unwrap();
    for _ in 0..3 {
        let mut command = Command::new(logrotate);
        command.args(["--force", "--state", "state", "logrotate.conf"]).current_dir(&folder.0);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        process.wait_for_line("reload: nothing has changed");
        // An empty file is not rotated.
        let has_lines = || fs::metadata(logs.join("gateway.log")).is_ok_and(|found| found.len() > 0);
        wait_until("the new file has the line", has_lines);
    }
    process.signal("TERM");
    let (_, lines) = process.end();
    assert!(logs.join("gateway.log.2.gz").exists() && logs.join("gateway.log.3.gz").exists());
    let unpacked = Command::new("sh")
        .args(["-c", "zcat gateway.log.3.gz gateway.log.2.gz && cat gateway.log.1 gateway.log"])
        .current_dir(&logs)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(unpacked.stdout).unwrap().lines().collect::<Vec<_>>(), lines);
}
