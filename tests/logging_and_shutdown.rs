//! The program during calls: what it logs, what it never logs, and how it stops.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use support::audio::Call;
use support::chat_server::{ChatServer, Message, audio_frame};
use support::device::{Device, HELLO, client_id};
use support::mqtt::{Client, Connect, password, user_name};
use support::process::{Folder, Process};

fn folder(server: &ChatServer) -> Folder {
    let file = json!({
        "mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "mcp": {"enabled": false},
        "websocket": {"production_servers": [server.url()]},
    });
    Folder::new().with_file("gateway.json", file.to_string())
}

fn start(server: &ChatServer) -> (Folder, Process) {
    let folder = folder(server);
    let process = folder.start("-c gateway.json", &[]);
    (folder, process)
}

#[test]
fn a_signal_says_goodbye_closes_with_1001_and_ends_with_0() {
    for signal in ["TERM", "INT"] {
        let server = ChatServer::start();
        let (_folder, process) = start(&server);
        let mut idle = Device::connect(process.mqtt(), 1);
        let mut device = Device::connect(process.mqtt(), 2);
        let (call, mut peer) = device.call(&server);
        let mut waiting = Device::connect(process.mqtt(), 3);
        waiting.send_text(HELLO);
        let mut stalled = server.accept();
        stalled.request();

        process.signal(signal);
        device.expect_goodbye(&call.session_id);
        assert_eq!(device.mqtt.read_until_closed(), []);
        peer.expect_close(1001);
        // A device whose call is being set up gets an answer; one without a call is just disconnected.
        let mut last = waiting.json();
        while last["type"] != "goodbye" {
            last = waiting.json();
        }
        waiting.mqtt.read_until_closed();
        assert_eq!(idle.mqtt.read_until_closed(), []);
        stalled.ignore_until_closed();
        // Devices and servers close their side, so nothing is left to wait for.
        drop((idle, device, waiting));
        let (code, lines) = process.end();
        assert_eq!(code, Some(0), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("reason=shutdown")), "{lines:#?}");
    }
}

#[test]
fn it_exits_within_the_grace_period_without_answers_from_peers() {
    let server = ChatServer::start();
    let (_folder, process) = start(&server);
    let mut device = Device::connect(process.mqtt(), 1);
    // Both stay connected, read nothing and answer nothing.
    let (_call, _peer) = device.call(&server);
    process.signal("TERM");
    let (code, lines) = process.end();
    assert_eq!(code, Some(0), "{lines:#?}");
}

#[test]
fn logins_are_refused_while_it_stops() {
    let server = ChatServer::start();
    let (_folder, process) = start(&server);
    let addr = process.mqtt();
    let mut device = Device::connect(addr, 1);
    let (call, _peer) = device.call(&server);
    process.signal("TERM");
    device.expect_goodbye(&call.session_id);
    if let Ok(stream) = std::net::TcpStream::connect_timeout(&addr, Duration::from_secs(1)) {
        let mut client = Client::from(stream);
        client.try_send(&Connect::new(&client_id(2)).packet());
        assert_eq!(client.read_until_closed(), []);
    }
    assert_eq!(process.end().0, Some(0));
}

#[test]
fn a_call_is_two_lines_with_session_duration_packets_and_loss() {
    let server = ChatServer::start();
    let (_folder, mut process) = start(&server);
    let mut device = Device::connect(process.mqtt(), 1);
    let started = Instant::now();
    let (call, mut peer) = device.call(&server);
    let begin = process.wait_for_line("call begins");
    for part in
        ["[INFO ]", &format!("[{} 127.0.0.1:", device.client_id), "session=server-session", "answered_after="]
    {
        assert!(begin.contains(part), "{part:?} is not in {begin}");
    }
    assert!(begin.contains(&format!("server=ws://{}/chat", server.addr)), "{begin}");

    // Sequences 1 2 3 6 5 6: 4 is lost, 5 comes late, 6 comes twice.
    for sequence in [1, 2, 3, 6, 5, 6] {
        call.send_raw(&call.seal(0, sequence, b"\x58abc"));
    }
    (0..4).for_each(|_| assert_eq!(peer.binary(), audio_frame(0, b"\x58abc")));
    for n in 0..5 {
        peer.send_audio(n, b"\x58ab");
        call.receive();
    }
    // Long enough for a visible duration.
    assert_eq!(call.receive_within(Duration::from_millis(150)), None);
    device.send_text(r#"{"type":"goodbye"}"#);
    peer.expect_close(1000);
    let took = started.elapsed().as_secs_f64();
    let end = process.wait_for_line("call ends");
    for part in [
        "[INFO ]",
        &format!("[{} 127.0.0.1:", device.client_id),
        "session=server-session",
        "reason=device_goodbye",
        "up=4p/16B",
        "down=5p/15B",
        "lost=1 ",
        "reordered=1 ",
        "duplicates=1 ",
    ] {
        assert!(end.contains(part), "{part:?} is not in {end}");
    }
    let duration = end.split("duration=").nth(1).and_then(|rest| rest.split('s').next()).unwrap();
    let (whole, decimals) = duration.split_once('.').unwrap();
    assert!(whole.parse::<u32>().is_ok() && decimals.len() == 3, "{duration}");
    let duration: f64 = duration.parse().unwrap();
    assert!(duration >= 0.15 && duration <= took + 0.001, "{duration} s of {took} s");
    process.signal("TERM");
    let (_, lines) = process.end();
    assert_eq!(lines.iter().filter(|line| line.contains("server-session")).count(), 2, "{lines:#?}");
}

#[test]
fn a_failed_call_is_logged_with_its_reason() {
    let server = ChatServer::start();
    let (_folder, mut process) = start(&server);
    let mut device = Device::connect(process.mqtt(), 1);
    device.send_text(HELLO);
    server.accept().refuse("401 Unauthorized");
    let line = process.wait_for_line("is failing");
    assert!(line.contains("[WARN ]") && line.contains("401") && line.contains("SERVER_SECRET"), "{line}");
    let end = process.wait_for_line("call ends");
    assert!(end.contains("reason=no_server"), "{end}");
}

#[test]
fn no_secret_is_in_any_line_at_any_level() {
    const KEY: &str = "signature-Key-17";
    const SECRET: &str = "server-Secret-18";
    let server = ChatServer::start();
    let url = format!("ws://{}/chat?token=url-Secret-19", server.addr);
    let file = json!({
        "mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "debug": true,
        "websocket": {"production_servers": [url]}, "logging": {"file_path": "gateway.log"},
    });
    let folder = Folder::new().with_file("gateway.json", file.to_string());
    let variables =
        [("MQTT_SIGNATURE_KEY", KEY), ("SERVER_SECRET", SECRET), ("RUST_LOG", "trace"), ("DEBUG", "1")];
    let process = folder.start("-c gateway.json -l trace", &variables);
    let id = client_id(1);
    let mut secrets: Vec<String> = [KEY, SECRET, "url-Secret-19"].map(str::to_owned).into();

    // A login that fails and one that does not.
    let wrong = Connect { password: Some(b"wrong-Password-20".to_vec()), ..Connect::new(&id) };
    let mut client = Client::open(process.mqtt());
    client.send(&wrong.packet());
    client.read_until_closed();
    secrets.extend(["wrong-Password-20".to_owned(), password(KEY, &id, &user_name())]);
    let mqtt = Client::log_in(process.mqtt(), &Connect::signed(&id, KEY));
    let mut device = Device { mqtt, mac: String::new(), client_id: id };

    // A dial that is refused, one that is not, and a redial.
    device.send_text(HELLO);
    let request = server.accept().refuse("403 Forbidden");
    let bearer = |request: &support::chat_server::Request| {
        request.header("authorization").unwrap().strip_prefix("Bearer ").unwrap().to_owned()
    };
    secrets.push(bearer(&request));
    while device.json()["type"] != "goodbye" {}
    device.send_text(HELLO);
    let mut peer = server.accept();
    secrets.push(bearer(&peer.upgrade()));
    peer.exchange_hello("s");
    let mut reply = device.json();
    while reply["type"] != "hello" {
        reply = device.json();
    }
    secrets.push(reply["udp"]["key"].as_str().unwrap().to_owned());
    secrets.push(reply["udp"]["nonce"].as_str().unwrap().to_owned());
    let mut call = Call::new(reply);
    call.send(0, b"\x58x");
    peer.binary();
    peer.reset();
    let mut peer = server.accept();
    secrets.push(bearer(&peer.upgrade()));
    peer.exchange_hello("t");
    device.send_text(r#"{"type":"goodbye"}"#);
    while !matches!(peer.message(), Message::Close(_)) {}
    process.signal("HUP");
    process.signal("TERM");
    let (code, lines) = process.end();
    assert_eq!(code, Some(0));
    let written = fs::read_to_string(folder.0.join("gateway.log")).unwrap();
    let all = lines.join("\n") + &written;
    assert!(all.contains("[DEBUG]") && all.contains("call ends"), "{all}");
    // A token's signature is secret too, and the bytes of a key can be written in several ways.
    let signatures: Vec<_> = secrets
        .iter()
        .filter_map(|secret| secret.split_once('.').map(|(signature, _)| signature.to_owned()))
        .collect();
    assert_eq!(signatures.len(), 3);
    secrets.extend(signatures);
    secrets.push(format!("{:?}", call.key).trim_matches(['[', ']']).to_owned());
    for secret in secrets {
        assert!(!all.to_lowercase().contains(&secret.to_lowercase()), "{secret:?} is in {all}");
    }
}

#[test]
fn peer_input_cannot_forge_a_log_line() {
    let server = ChatServer::start();
    let (_folder, mut process) = start(&server);
    let mut device = Device::connect(process.mqtt(), 1);
    device.send_text(HELLO);
    let mut peer = server.accept();
    peer.request();
    peer.send_raw(b"HTTP/1.1 302 Found\r\nLocation: http://x/\x0b2026 [ERROR] forged\r\n\r\n");
    peer.shutdown_write();
    process.wait_for_line("call ends");
    // A hello version is quoted in the log.
    device.send_text(&HELLO.replace("\"version\":3", r#""version":"\n2026 [ERROR] forged""#));
    assert_eq!(device.mqtt.read_until_closed().last().map(|packet| packet.first), Some(0x30));
    process.wait_for_line("hello with version");
    process.signal("TERM");
    let (_, lines) = process.end();
    let stamped = |line: &String| line.len() > 33 && line.as_bytes()[10] == b'T' && line.contains("Z [");
    assert!(lines.iter().all(stamped), "{lines:#?}");
}

#[test]
fn a_blocked_or_unwritable_log_stalls_nothing() {
    let server = ChatServer::start();
    let file = json!({
        "mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "mcp": {"enabled": false},
        "websocket": {"production_servers": [server.url()]}, "logging": {"file_path": "/dev/full"},
    });
    let folder = Folder::new().with_file("gateway.json", file.to_string());
    let mut process = folder.start("-c gateway.json -l debug", &[]);
    let ear = process.pause_reading();
    let ear = ear.lock().unwrap();
    // Each connection logs some lines: far more than a pipe holds.
    thread::scope(|scope| {
        for number in 0..4 {
            let addr = process.mqtt();
            scope.spawn(move || {
                for _ in 0..400 {
                    let mut client = Client::log_in(addr, &Connect::new(&client_id(number)));
                    client.send(&[0xff, 0]);
                    client.read_until_closed();
                }
            });
        }
    });
    let mut device = Device::connect(process.mqtt(), 9);
    let (mut call, mut peer) = device.call(&server);
    call.send(0, b"\x58x");
    peer.binary();
    process.signal("TERM");
    device.expect_goodbye(&call.session_id);
    peer.expect_close(1001);
    drop(device);
    assert_eq!(process.exit_code(), Some(0));
    drop(ear);
}

#[test]
fn endless_hellos_do_not_flood_the_log() {
    let server = ChatServer::start();
    let (_folder, process) = start(&server);
    let mut device = Device::connect(process.mqtt(), 1);
    for _ in 0..2_000 {
        device.send_text(HELLO);
        // The answers are read up to that to a ping.
        device.mqtt.send(&[0xc0, 0]);
        while device.mqtt.packet().first != 0xd0 {}
    }
    // Another connection each time, with a hello of older firmware.
    for _ in 0..50 {
        let mut device = Device::connect(process.mqtt(), 2);
        device.send_text(r#"{"type":"hello","version":2}"#);
        device.mqtt.read_until_closed();
    }
    process.signal("TERM");
    let (_, lines) = process.end();
    let count = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
    // 200 at once, then ten a second, and the machine may be slow.
    assert!((200..300).contains(&count("call ends")), "{lines:#?}");
    // One in ten seconds, and the machine may be slow.
    assert!((1..5).contains(&count("hello with version 2")), "{lines:#?}");
}

#[test]
fn closing_a_logged_in_device_is_logged_at_a_limited_rate() {
    let server = ChatServer::start();
    let (_folder, mut process) = start(&server);
    for _ in 0..20 {
        let mut device = Device::connect(process.mqtt(), 1);
        // A PUBLISH with QoS 1.
        device.mqtt.send(&[0x32, 7, 0, 1, b't', 0, 1, b'{', b'}']);
        device.mqtt.read_until_closed();
    }
    let line = process.wait_for_line("closed: protocol error");
    assert!(line.contains("WARN") && line.contains(&client_id(1)) && line.contains("QoS 1"), "{line}");
    // Garbage before CONNECT is no warning: anybody can send it.
    let mut unauthenticated = Client::open(process.mqtt());
    unauthenticated.try_send(b"garbage");
    unauthenticated.read_until_closed();
    let line = process.wait_for_line("the first byte is not that of a CONNECT");
    assert!(line.contains("[INFO ] [127.0.0.1:"), "{line}");
    process.signal("TERM");
    let (_, lines) = process.end();
    let warnings = lines.iter().filter(|line| line.contains("protocol error")).count();
    assert!((1..5).contains(&warnings), "{lines:#?}");
}

#[test]
fn garbage_from_anybody_is_some_lines_whoever_sends_it() {
    let server = ChatServer::start();
    let (_folder, process) = start(&server);
    for _ in 0..100 {
        let mut unauthenticated = Client::open(process.mqtt());
        unauthenticated.try_send(b"\x16\x03\x01\x02\x00\x01");
        unauthenticated.read_until_closed();
    }
    process.signal("TERM");
    let (_, lines) = process.end();
    let lines = lines.iter().filter(|line| line.contains("a TLS handshake on the port without TLS")).count();
    // Ten at once, then one in ten seconds, and the machine may be slow.
    assert!((10..20).contains(&lines), "{lines}");
}

#[test]
fn a_device_that_connects_and_leaves_is_a_line_each_with_who_where_and_why() {
    let server = ChatServer::start();
    let (_folder, mut process) = start(&server);
    let who = format!("[INFO ] [{} 127.0.0.1:", client_id(1));
    let mut device = Device::connect(process.mqtt(), 1);
    let line = process.wait_for_line("connected");
    assert!(line.contains(&who) && line.ends_with("] connected, new since the start"), "{line}");
    // DISCONNECT.
    device.mqtt.send(&[0xe0, 0]);
    device.mqtt.read_until_closed();
    let line = process.wait_for_line("closed");
    assert!(line.contains(&who) && line.contains("] closed: the device disconnected, "), "{line}");
    assert!(line.ends_with(" s after it connected") && !line.contains("duration"), "{line}");

    let mut device = Device::connect(process.mqtt(), 1);
    let line = process.wait_for_line("connected");
    assert!(line.contains(&who) && line.ends_with("] connected, back"), "{line}");
    // It loses its connection in a call, and is there again.
    let (_call, _peer) = device.call(&server);
    device.mqtt.reset();
    let line = process.wait_for_line("connection lost");
    assert!(line.contains(&who) && line.ends_with("kept for 35 s: the device disconnected"), "{line}");
    let _device = Device::connect(process.mqtt(), 1);
    let line = process.wait_for_line("connected");
    assert!(line.contains(&who) && line.ends_with("] connected again, its call goes on"), "{line}");
    process.signal("TERM");
    let line = process.wait_for_line("the gateway is stopping");
    assert!(line.contains(&who), "{line}");
}

#[test]
fn hundreds_of_devices_at_once_are_some_lines_and_their_number() {
    const DEVICES: usize = 250;
    let server = ChatServer::start();
    let (_folder, process) = start(&server);
    let begin = Instant::now();
    let devices: Vec<_> = (0..DEVICES).map(|n| Device::connect(process.mqtt(), n as u8)).collect();
    process.signal("TERM");
    drop(devices);
    let (_, lines) = process.end();
    let seconds = begin.elapsed().as_secs() as usize;
    let written = |part: &str| lines.iter().filter(|line| line.contains(part)).count();
    // "N more devices connected (N new since the start, N back) and N left in the last second, not logged one by one"
    let numbers = |line: &String| {
        let words = line.split([' ', '(']).filter_map(|word| word.parse().ok());
        words.collect::<Vec<usize>>()
    };
    let summaries: Vec<_> =
        lines.iter().filter(|line| line.contains("not logged one by one")).map(numbers).collect();
    let counted = |n: usize| summaries.iter().map(|numbers| numbers[n]).sum::<usize>();
    let (connected, left) = (written("] connected, new"), written("] closed: "));
    assert_eq!(connected + counted(0), DEVICES, "{lines:#?}");
    assert_eq!((counted(1), counted(2)), (counted(0), 0), "{lines:#?}");
    assert_eq!(left + counted(3), DEVICES, "{lines:#?}");
    // Ten a second, and a summary of each.
    assert!(
        connected + left <= 10 * (seconds + 2) && summaries.len() <= seconds + 2,
        "{seconds} s: {lines:#?}"
    );
}
