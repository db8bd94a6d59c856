//! Draining: the port closes, idle devices are disconnected, calls continue, and the program exits after the last one.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

#[cfg(feature = "tls")]
use mqtt_websocket_proxy::net::Running;
use serde_json::{Value, json};
use support::chat_server::{ChatServer, Message, audio_frame};
use support::device::Device;
use support::host::wait_until;
use support::http::{RawClient, Reply, raw_request};
use support::mqtt::Client;
use support::process::{Folder, Process};
use support::{TIMEOUT, closed_port, gateway};
#[cfg(feature = "tls")]
use support::{config, host::device_over, process_loopback_ip, tls::CertificateAuthority};

const TOKEN: &str = "a-token-for-the-drain";

fn start(server: &ChatServer) -> (Folder, Process) {
    let file = json!({
        "mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "mcp": {"enabled": false},
        "websocket": {"production_servers": [server.url()]}, "api": {"host": "127.0.0.1", "token": TOKEN},
    });
    let folder = Folder::new().with_file("gateway.json", file.to_string());
    let process = folder.start("-c gateway.json", &[]);
    (folder, process)
}

fn http_get(api: SocketAddr, path: &str) -> Reply {
    RawClient::round_trip(api, &raw_request("GET", path, TOKEN, ""))
}

#[test]
fn a_call_continues_while_idle_devices_leave_and_its_end_exits_with_0() {
    let server = ChatServer::start();
    let (_folder, mut process) = start(&server);
    let api = process.api();
    let idle: Vec<_> = (1..=5).map(|n| Device::connect(process.mqtt(), n)).collect();
    let mut unauthenticated = Client::open(process.mqtt());
    let mut device = Device::connect(process.mqtt(), 9);
    let (mut call, mut peer) = device.call(&server);
    wait_until("all six are in", || http_get(api, "/metrics").body.contains("gateway_sessions 7"));
    assert!(http_get(api, "/metrics").body.contains("gateway_draining 0"));
    assert_eq!(http_get(api, "/readyz").status, 200);

    let leaving: Vec<_> = idle
        .into_iter()
        .map(|mut device| thread::spawn(move || (device.mqtt.read_until_closed(), Instant::now())))
        .collect();
    process.signal("USR1");
    process.wait_for_line("draining: 1 calls to finish");
    process.signal("USR1");
    wait_until("the port is closed", || TcpStream::connect(process.mqtt()).is_err());
    assert_eq!(unauthenticated.read_until_closed(), []);
    let ready = http_get(api, "/readyz");
    let waits_for: Value = serde_json::from_str(&ready.body).unwrap();
    assert_eq!(
        (ready.status, &waits_for["status"], &waits_for["calls"]),
        (503, &json!("draining"), &json!(1))
    );
    assert!((1..=6).contains(&waits_for["devices"].as_u64().unwrap()), "{waits_for}");
    assert_eq!(http_get(api, "/healthz").status, 200);
    assert!(http_get(api, "/metrics").body.contains("gateway_draining 1"));
    assert!(http_get(api, "/api/sessions").body.contains(r#""draining":true"#));

    // They leave one after another, not all at once.
    let left: Vec<_> = leaving.into_iter().map(|device| device.join().unwrap()).collect();
    assert!(left.iter().all(|(packets, _)| packets.is_empty()), "{left:?}");
    let (first, last) = (left.iter().map(|(_, at)| at).min(), left.iter().map(|(_, at)| at).max());
    assert!(*last.unwrap() - *first.unwrap() > Duration::from_secs(1), "{left:?}");

    // The call is not disturbed.
    call.send(60, b"up");
    assert_eq!(peer.binary(), audio_frame(60, b"up"));
    peer.send_audio(120, b"down");
    assert_eq!(call.receive().payload, b"down");
    device.send_text(r#"{"type":"abort"}"#);
    assert_eq!(peer.json()["type"], "abort");
    device.mqtt.assert_nothing_pending();

    device.send_text(r#"{"type":"goodbye"}"#);
    peer.expect_close(1000);
    assert_eq!(device.mqtt.read_until_closed(), []);
    let (code, lines) = process.end();
    assert_eq!(code, Some(0));
    let count = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
    assert_eq!((count("draining:"), count("drained:"), count("] stopped")), (1, 1, 1), "{lines:#?}");
}

#[test]
fn without_calls_it_exits_at_once_and_sigterm_ends_a_drain() {
    let server = ChatServer::start();
    let (_folder, mut process) = start(&server);
    process.signal("USR1");
    assert_eq!(process.exit_code(), Some(0));

    let (_folder, mut process) = start(&server);
    let mut device = Device::connect(process.mqtt(), 1);
    let (call, mut peer) = device.call(&server);
    process.signal("USR1");
    process.wait_for_line("draining: 1 calls");
    process.signal("TERM");
    device.expect_goodbye(&call.session_id);
    peer.expect_close(1001);
    device.mqtt.read_until_closed();
    let (code, lines) = process.end();
    assert_eq!(code, Some(0));
    assert!(!lines.iter().any(|line| line.contains("drained:")), "{lines:#?}");
}

#[test]
fn an_idle_device_that_calls_before_its_disconnect_is_served() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mqtt = gateway.addresses().mqtt;
    // Devices are disconnected in the order of arrival.
    let mut others: Vec<_> = (1..=8).map(|n| Device::connect(mqtt, n)).collect();
    let mut device = Device::connect(mqtt, 9);
    gateway.handle().drain();
    others[0].mqtt.read_until_closed();
    let (mut call, mut peer) = device.call(&server);
    others.iter_mut().for_each(|other| drop(other.mqtt.read_until_closed()));
    call.send(60, b"here");
    assert_eq!(peer.binary(), audio_frame(60, b"here"));
    // The server hangs up: the device gets the goodbye before its connection ends.
    peer.send_close(Some(1000));
    device.expect_goodbye(&call.session_id);
    assert_eq!(device.mqtt.read_until_closed(), []);

    let (over, ended) = mpsc::channel();
    thread::spawn(move || over.send(gateway.stop(TIMEOUT).is_ok()));
    assert_eq!(ended.recv_timeout(TIMEOUT), Ok(true), "it has ended by itself");
}

#[test]
fn a_call_of_a_device_that_lost_its_connection_is_not_waited_for() {
    let server = ChatServer::start();
    let (_folder, mut process) = start(&server);
    let mut device = Device::connect(process.mqtt(), 1);
    let (_call, mut peer) = device.call(&server);
    process.signal("USR1");
    process.wait_for_line("draining: 1 calls");
    device.mqtt.reset();
    match peer.message() {
        Message::Text(text) => assert!(text.contains("device_lost"), "{text}"),
        other => panic!("{other:?}"),
    }
    peer.expect_close(1000);
    assert_eq!(process.exit_code(), Some(0));
}

#[test]
fn a_command_begins_a_drain_says_what_it_waits_for_and_limits_it() {
    let server = ChatServer::start();
    let api = closed_port();
    let file = json!({
        "mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "mcp": {"enabled": false},
        "websocket": {"production_servers": [server.url()]},
        "api": {"host": api.ip(), "token": TOKEN},
    });
    let folder = Folder::new().with_file("gateway.json", file.to_string());
    let port = api.port().to_string();
    let variables = [("API_PORT", port.as_str())];
    let ask = |options: &str| {
        let output = folder.run(&format!("drain -c gateway.json {options}"), &variables);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    };
    let (code, said) = ask("");
    assert!(code == 1 && said.contains("no gateway answers"), "{code} {said}");
    let mut process = folder.start("-c gateway.json", &variables);
    let mut device = Device::connect(process.mqtt(), 1);
    let (call, mut peer) = device.call(&server);
    let (code, said) = ask("--status");
    assert!(code == 1 && said.contains(r#"it does not drain: {"status":"ready"}"#), "{code} {said}");
    assert_eq!(ask(""), (0, "draining: waits for 1 calls, 1 devices\n".to_owned()));
    process.wait_for_line("draining: 1 calls to finish");
    assert_eq!(ask("--status"), (0, "draining: waits for 1 calls, 1 devices\n".to_owned()));
    let limited = "draining: waits for 1 calls, 1 devices; calls that go on in 7200 s are ended then\n";
    assert_eq!(ask("--within 2h"), (0, limited.to_owned()));
    // A drain that has a limit keeps it.
    assert!(ask("").1.contains("are ended then"));
    device.mqtt.assert_nothing_pending();

    assert_eq!(ask("--within 1s").0, 0);
    device.expect_goodbye(&call.session_id);
    peer.expect_close(1001);
    device.mqtt.read_until_closed();
    let (code, lines) = process.end();
    assert_eq!(code, Some(0));
    assert!(lines.iter().any(|line| line.contains("the time is over, 1 calls are ended")), "{lines:#?}");
    assert_eq!(ask("--status").0, 1);
    assert!(ask("--help").1.contains("Exit code"));
    for options in ["--within 1d", "--status --within 1m", "--nonsense"] {
        assert_eq!(ask(options).0, 2, "{options}");
    }
}

#[cfg(feature = "tls")]
#[test]
fn the_tls_port_closes_too_and_its_calls_go_on() {
    let (server, authority) = (ChatServer::start(), CertificateAuthority::new());
    let pair = authority.issue("127.0.0.1");
    let folder =
        Folder::new().with_file("cert.pem", pair.certificate_pem()).with_file("key.pem", pair.key_pem());
    let without_tls = config(&[server.url()]);
    let mut settings = without_tls.clone();
    (settings.mqtt.host, settings.udp.host) = (process_loopback_ip().into(), process_loopback_ip().into());
    settings.mqtt.tls.port = 0;
    settings.mqtt.tls.cert_file = Some(folder.0.join("cert.pem"));
    settings.mqtt.tls.key_file = Some(folder.0.join("key.pem"));
    let gateway = Running::start(settings.clone(), None).unwrap();
    let ports = [gateway.addresses().mqtt, gateway.addresses().mqtts.unwrap()];
    let tcp = || TcpStream::connect_timeout(&ports[1], TIMEOUT).unwrap();
    let mut device = device_over(authority.client().connect("127.0.0.1", tcp()).unwrap(), 1);
    let (mut call, mut peer) = device.call(&server);
    let mut in_handshake = Client::from(tcp());

    gateway.handle().drain();
    assert_eq!(in_handshake.read_until_closed(), []);
    let closed = || ports.iter().all(|port| TcpStream::connect(port).is_err());
    assert!(closed());
    // A reload that disables TLS and enables it again does not open the port.
    gateway.handle().reload(without_tls);
    settings.mqtt.tls.port = ports[1].port();
    gateway.handle().reload(settings);
    call.send(60, b"up");
    assert_eq!(peer.binary(), audio_frame(60, b"up"));
    device.mqtt.assert_nothing_pending();
    assert!(closed());

    device.send_text(r#"{"type":"goodbye"}"#);
    peer.expect_close(1000);
    assert_eq!(device.mqtt.read_until_closed(), []);
}
