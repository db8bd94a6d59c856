//! What takes seconds by its nature. All of it waits at the same time.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::Config;
use serde_json::json;
use support::chat_server::{ChatServer, Message, audio_frame};
use support::device::{Device, HELLO, client_id, mac};
use support::log_capture::{LogCapture, log_field};
use support::mqtt::{Client, Connect, PINGREQ, PacketError};
use support::parallel::run_in_parallel;
use support::process::Folder;
use support::{gateway, gateway_with};

const MS: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn timeouts_run_in_parallel() {
    run_in_parallel(&[
        ("settled", a_call_up_for_ten_seconds_restarts_at_the_shortest_backoff),
        ("flapping", a_flapping_chat_server_is_dialled_with_growing_backoff),
        ("silent dial", a_chat_server_that_takes_dials_but_never_answers_is_passed_over),
        ("stalled TLS", a_stalled_tls_handshake_is_passed_over),
        ("no CONNECT", a_connection_without_connect_is_closed_after_ten_seconds),
        ("hello again", a_chat_server_that_does_not_answer_our_hello_gets_it_once_more),
        ("greeting", a_chat_server_that_never_says_hello_is_passed_over),
        ("hold", speech_waits_two_seconds_for_the_first_datagram),
        ("hold audio", audio_without_a_device_address_is_dropped_and_logged_once),
        ("adopted", another_ip_is_adopted_when_the_device_is_silent),
        ("discovery", tool_discovery_without_an_answer_times_out),
        ("keep alive", keep_alive_counts_what_comes_in_only),
        ("watched", the_configuration_file_is_watched),
        ("dials", no_call_waits_for_a_free_dial_past_its_own_deadline),
    ]);
}

// ----- redials --------------------------------------------------------------------------------------------------------

fn reconnect_backoff(config: &mut Config) {
    config.websocket.reconnect.initial = MS(100);
    config.websocket.reconnect.max = MS(5000);
    config.websocket.reconnect.multiplier = 3.0;
}

fn backoff_ms(line: &str) -> u64 {
    line.split("redialling in ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
}

fn a_call_up_for_ten_seconds_restarts_at_the_shortest_backoff() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], reconnect_backoff);
    let mut log = LogCapture::containing(client_id(1));
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (_call, peer) = device.call(&server);
    peer.reset();
    assert!(backoff_ms(&log.wait_for_line("redialling")) <= 100);
    server.accept().reset();
    assert!(backoff_ms(&log.wait_for_line("redialling")) > 200);
    let mut peer = server.accept();
    peer.upgrade();
    peer.exchange_hello("x");
    log.wait_for_line("call goes on");
    thread::sleep(MS(10_050));
    peer.reset();
    assert!(backoff_ms(&log.wait_for_line("redialling")) <= 100);
}

fn a_flapping_chat_server_is_dialled_with_growing_backoff() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], reconnect_backoff);
    let mut log = LogCapture::containing(client_id(2));
    let mut device = Device::connect(gateway.addresses().mqtt, 2);
    let (_call, mut peer) = device.call(&server);
    for nominal in [100, 300, 900] {
        peer.reset();
        let pause = backoff_ms(&log.wait_for_line("redialling"));
        assert!((nominal * 4 / 5..=nominal).contains(&pause), "{pause}");
        peer = server.accept();
        peer.upgrade();
        peer.exchange_hello("x");
        log.wait_for_line("call goes on");
    }
}

fn a_chat_server_that_takes_dials_but_never_answers_is_passed_over() {
    let (first, silent) = (ChatServer::start(), ChatServer::start());
    let gateway = gateway_with(&[first.url(), silent.url()], reconnect_backoff);
    let mut device = Device::connect(gateway.addresses().mqtt, 3);
    let (mut call, peer) = device.call(&first);
    peer.reset();
    let stuck = silent.accept();
    let began = Instant::now();
    let mut peer = first.accept();
    let waited = began.elapsed();
    assert!((MS(2950)..MS(4500)).contains(&waited), "{waited:?}");
    peer.upgrade();
    peer.exchange_hello("x");
    peer.send_text(r#"{"type":"stt"}"#);
    assert_eq!(device.json()["type"], "stt");
    call.send(1, b"\x58a");
    assert_eq!(peer.binary(), audio_frame(1, b"\x58a"));
    drop(stuck);
}

fn a_stalled_tls_handshake_is_passed_over() {
    let (stalled, good) = (ChatServer::start(), ChatServer::start());
    let stalled_url = stalled.url().replace("ws://", "wss://");
    let gateway = gateway(&[stalled_url, good.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 4);
    let began = Instant::now();
    device.send_text(HELLO);
    let mut peer = good.accept();
    peer.upgrade();
    peer.exchange_hello("s");
    device.hello_reply();
    assert!((MS(2950)..MS(4500)).contains(&began.elapsed()), "{:?}", began.elapsed());
    drop(stalled);
}

// ----- devices --------------------------------------------------------------------------------------------------------

fn a_connection_without_connect_is_closed_after_ten_seconds() {
    let gateway = gateway(&["ws://127.0.0.1:9/"]);
    let began = Instant::now();
    let mut silent = Client::open(gateway.addresses().mqtt);
    let mut slow = Client::open(gateway.addresses().mqtt);
    // A CONNECT that comes byte by byte gains no time.
    let packet = Connect::new(&client_id(5)).packet();
    for byte in packet.iter().take(packet.len() - 1) {
        slow.try_send(&[*byte]);
        thread::sleep(MS(70));
        if began.elapsed() > MS(9500) {
            break;
        }
    }
    for client in [&mut silent, &mut slow] {
        assert_eq!(client.packet_within(MS(15_000)), Err(PacketError::Closed));
        assert!((MS(9950)..MS(12_000)).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}

fn tool_discovery_without_an_answer_times_out() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.mcp.enabled = true);
    let mut log = LogCapture::containing(client_id(6));
    let mut device = Device::connect(gateway.addresses().mqtt, 6);
    let asked = Instant::now();
    let id = device.json()["payload"]["id"].clone();
    log.wait_for_line("no answer");
    assert!((MS(9950)..MS(12_000)).contains(&asked.elapsed()), "{:?}", asked.elapsed());
    // A late answer is nobody's.
    device.send_text(
        &json!({"type": "mcp", "payload": {"jsonrpc": "2.0", "id": id, "result": {}}}).to_string(),
    );
    device.mqtt.assert_nothing_pending();
    let (_call, mut peer) = device.call(&server);
    peer.send_text(r#"{"type":"mcp","payload":{"jsonrpc":"2.0","id":1,"method":"tools/list"}}"#);
    assert_eq!(device.json()["payload"]["method"], "tools/list");
}

fn keep_alive_counts_what_comes_in_only() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let client_id = client_id(14);
    let connect = Connect { keep_alive: 1, ..Connect::new(&client_id) };
    let mqtt = Client::log_in(gateway.addresses().mqtt, &connect);
    let mut log = LogCapture::containing(&client_id);
    let mut device = Device { mqtt, mac: mac(14), client_id };
    let (_call, mut peer) = device.call(&server);
    // Half a packet now and then is as good as a ping.
    let began = Instant::now();
    for byte in PINGREQ {
        assert!(device.mqtt.packet_within(MS(900)).is_err());
        device.mqtt.send(&[byte]);
    }
    device.mqtt.packet();
    let heard = Instant::now();
    assert!(heard - began > MS(1600));
    // What is sent to the device does not keep it alive.
    while device.mqtt.packet_within(MS(100)) != Err(PacketError::Closed) {
        peer.send_text(r#"{"type":"stt","text":"x"}"#);
        assert!(heard.elapsed() < MS(2500), "still open");
    }
    assert!(heard.elapsed() >= MS(1490), "closed after {:?}", heard.elapsed());
    log.wait_for_line("connection lost in a call, kept");
}

// ----- the greeting ---------------------------------------------------------------------------------------------------

fn a_chat_server_that_does_not_answer_our_hello_gets_it_once_more() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 7);
    device.send_text(HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    let hello = peer.json();
    let began = Instant::now();
    assert_eq!(peer.exchange_hello("s"), hello);
    assert!((MS(2950)..MS(4000)).contains(&began.elapsed()), "{:?}", began.elapsed());
    device.hello_reply();
    // Once: what comes next is what the device says.
    device.send_text(r#"{"type":"abort"}"#);
    assert_eq!(peer.json()["type"], "abort");
}

fn a_chat_server_that_never_says_hello_is_passed_over() {
    let (silent, good) = (ChatServer::start(), ChatServer::start());
    let gateway = gateway(&[silent.url(), good.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 8);
    device.send_text(HELLO);
    let mut peer = silent.accept();
    peer.upgrade();
    let began = Instant::now();
    peer.send_text(r#"{"type":"mcp","payload":{"jsonrpc":"2.0","id":1,"method":"tools/list"}}"#);
    let mut other = good.accept();
    assert!((MS(3900)..MS(5500)).contains(&began.elapsed()), "{:?}", began.elapsed());
    other.upgrade();
    other.exchange_hello("s");
    device.hello_reply();
    // What the first one sent was for a call that never was.
    device.mqtt.assert_nothing_pending();
    assert_eq!((peer.json()["type"].clone(), peer.json()["type"].clone()), ("hello".into(), "hello".into()));
}

// ----- the first datagram ---------------------------------------------------------------------------------------------

fn speech_waits_two_seconds_for_the_first_datagram() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut log = LogCapture::containing(client_id(9));
    let mut device = Device::connect(gateway.addresses().mqtt, 9);
    let (mut call, mut peer) = device.call(&server);
    let began = Instant::now();
    peer.send_text(r#"{"type":"tts","state":"start"}"#);
    (0..3).for_each(|_| peer.send_audio(1, b"\x58lost"));
    peer.send_text(r#"{"type":"tts","state":"stop"}"#);
    assert_eq!(device.json()["state"], "start");
    assert!((MS(1950)..MS(3000)).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert_eq!(device.json()["state"], "stop");
    let line = log.wait_for_line("no UDP packet");
    assert!(line.starts_with("WARN") && line.contains(" 3 "), "{line}");
    // Once per call: later speech is not held, its audio not either.
    let later = Instant::now();
    peer.send_text(r#"{"type":"tts","state":"start"}"#);
    peer.send_audio(2, b"\x58lost");
    assert_eq!(device.json()["state"], "start");
    assert!(later.elapsed() < MS(1000));
    call.send(0, b"\x58u");
    peer.binary();
    peer.send_audio(3, b"\x58heard");
    let audio = call.receive();
    assert_eq!((audio.timestamp(), audio.sequence()), (3, 1));
    device.send_text(r#"{"type":"goodbye"}"#);
    let end = log.wait_for_line("call ends");
    assert_eq!(log_field(&end, "dropped"), "4", "{end}");
    assert_eq!(log.count("no UDP packet"), 0);
}

fn audio_without_a_device_address_is_dropped_and_logged_once() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut log = LogCapture::containing(client_id(10));
    let mut device = Device::connect(gateway.addresses().mqtt, 10);
    let (_call, mut peer) = device.call(&server);
    for n in 0..100 {
        peer.send_audio(n, b"\x58lost");
        thread::sleep(MS(30));
    }
    log.wait_for_line("no UDP packet");
    device.send_text(r#"{"type":"goodbye"}"#);
    while !matches!(peer.message(), Message::Close(_)) {}
    assert_eq!(log.count("no UDP packet"), 0);
    assert_eq!(log_field(&log.wait_for_line("call ends"), "dropped"), "100");
}

fn another_ip_is_adopted_when_the_device_is_silent() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 11);
    let (mut call, mut peer) = device.call(&server);
    call.send(1, b"\x58a");
    peer.binary();
    let foreign = std::net::UdpSocket::bind(("127.0.0.2", 0)).unwrap();
    let send = |sequence: u32, opus: &[u8]| {
        foreign.send_to(&call.seal(sequence, sequence, opus), call.gateway).unwrap();
    };
    // The known source was heard a moment ago.
    (2..6).for_each(|n| send(n, b"\x58x"));
    thread::sleep(MS(2050));
    // Another Opus configuration is no proof.
    (6..12).for_each(|n| send(n, b"\x08x"));
    // Three in a row are; the third is forwarded.
    (12..16).for_each(|n| send(n, b"\x58b"));
    for n in [14, 15] {
        assert_eq!(peer.binary(), audio_frame(n, b"\x58b"));
    }
    peer.send_audio(7, b"\x58y");
    call.udp = foreign;
    assert_eq!(call.receive().payload, b"\x58y");
}

// ----- dials ----------------------------------------------------------------------------------------------------------

fn no_call_waits_for_a_free_dial_past_its_own_deadline() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.websocket.max_dials = 1);
    let mut first = Device::connect(gateway.addresses().mqtt, 12);
    let mut second = Device::connect(gateway.addresses().mqtt, 13);
    let began = Instant::now();
    first.send_text(HELLO);
    let stuck = server.accept();
    second.send_text(HELLO);
    for device in [&mut first, &mut second] {
        assert_eq!(device.json()["type"], "alert");
        let took = began.elapsed();
        assert!((MS(8000)..MS(9500)).contains(&took), "{took:?}");
        let call = device.hello_reply();
        device.expect_goodbye(&call.session_id);
    }
    drop(stuck);
}

// ----- the configuration file -----------------------------------------------------------------------------------------

fn the_configuration_file_is_watched() {
    let (first, second) = (ChatServer::start(), ChatServer::start());
    let text = |server: &ChatServer, max_calls: u32| {
        json!({
            "mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "mcp": {"enabled": false},
            "websocket": {"production_servers": [server.url()], "max_calls": max_calls},
        })
        .to_string()
    };
    let folder = Folder::new().with_file("gateway.json", text(&first, 0));
    let file = folder.0.join("gateway.json");
    let mut process = folder.start("-c gateway.json", &[]);
    let mut device = Device::connect(process.mqtt(), 15);
    let (mut call, mut peer) = device.call(&first);
    // Edited in place.
    fs::write(&file, text(&second, 0)).unwrap();
    let line = process.wait_for_line("reload:");
    assert!(line.contains("applied: websocket.production_servers"), "{line}");
    let mut other = Device::connect(process.mqtt(), 16);
    other.call(&second);
    // Replaced by rename, as editors and configuration tools do.
    fs::write(folder.0.join("new"), text(&second, 7)).unwrap();
    fs::rename(folder.0.join("new"), &file).unwrap();
    assert!(process.wait_for_line("reload:").contains("applied: websocket.max_calls"));
    // Removed and written anew.
    fs::remove_file(&file).unwrap();
    fs::write(&file, text(&second, 8)).unwrap();
    assert!(process.wait_for_line("reload:").contains("applied: websocket.max_calls"));
    // The first call noticed nothing.
    call.send(1, b"\x58a");
    assert_eq!(peer.binary(), audio_frame(1, b"\x58a"));
    peer.send_audio(2, b"\x58b");
    assert_eq!(call.receive().payload, b"\x58b");
    device.mqtt.assert_nothing_pending();
}
