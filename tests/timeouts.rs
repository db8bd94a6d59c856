//! Timeouts that take seconds. One test runs all cases in parallel.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::Config;
use serde_json::json;
use support::chat_server::{ChatServer, Message, audio_frame};
use support::device::{Device, HELLO, client_id, mac};
use support::faulty_server::{STALLING_FAULTS, ServerFault, assert_failure_alert, start_faulty_server};
use support::host::wait_until;
use support::log_capture::{LogCapture, log_field};
use support::mqtt::{Client, Connect, PINGREQ, PINGRESP, Packet, PacketError, publish};
use support::parallel::run_in_parallel;
use support::process::Folder;
use support::{TIMEOUT, gateway, gateway_with};

const MS: fn(u64) -> Duration = Duration::from_millis;

// Cases that read the log have a device number of their own: the log is read by client id.

#[test]
fn timeouts_run_in_parallel() {
    run_in_parallel(&[
        ("backoff reset", a_call_up_for_ten_seconds_restarts_at_the_shortest_backoff),
        ("backoff", a_flapping_chat_server_is_dialled_with_growing_backoff),
        ("silent redial", a_redial_that_gets_no_answer_is_given_up_after_three_seconds),
        ("stalled, alone", a_stalled_server_alone_costs_the_call_but_the_device_is_answered),
        ("stalled, four", four_stalled_servers_cost_the_call_but_the_device_is_answered),
        ("stalled, with another", a_stalled_server_is_abandoned_for_the_next),
        ("no server", a_hello_is_answered_when_no_server_can_be_dialled),
        ("dial queue", no_call_waits_for_a_free_dial_past_its_own_deadline),
        ("hello resent", a_chat_server_that_does_not_answer_our_hello_gets_it_once_more),
        ("no hello", a_chat_server_that_never_says_hello_is_passed_over),
        ("text, no hello", a_chat_server_that_speaks_but_says_no_hello_gets_the_call),
        ("no CONNECT", a_connection_without_connect_is_closed_after_ten_seconds),
        ("keep alive", a_silent_device_is_closed_after_one_and_a_half_keep_alives),
        ("keep alive, bytes", each_received_byte_restarts_the_keep_alive),
        ("keep alive 0", keep_alive_zero_means_no_limit),
        ("keep alive, call", what_is_sent_to_a_device_does_not_keep_it_alive),
        ("held speech", speech_waits_two_seconds_for_the_first_datagram),
        ("lost audio", audio_without_a_device_address_is_dropped_and_logged_once),
        ("other IP", another_ip_is_adopted_when_the_device_is_silent),
        ("tool discovery", tool_discovery_without_an_answer_times_out),
        ("file watch", the_configuration_file_is_watched),
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

fn a_redial_that_gets_no_answer_is_given_up_after_three_seconds() {
    let (first, silent) = (ChatServer::start(), ChatServer::start());
    let gateway = gateway_with(&[first.url(), silent.url()], reconnect_backoff);
    let mut device = Device::connect(gateway.addresses().mqtt, 3);
    let (mut call, peer) = device.call(&first);
    let began = Instant::now();
    peer.reset();
    let stuck = silent.accept();
    let mut peer = first.accept();
    assert!(began.elapsed() >= MS(2950), "{:?}", began.elapsed());
    peer.upgrade();
    peer.exchange_hello("x");
    peer.send_text(r#"{"type":"stt"}"#);
    // The device was told of the outage, and of its end.
    for expected in ["alert", "alert", "stt"] {
        assert_eq!(device.json()["type"], expected);
    }
    call.send(1, b"\x58a");
    assert_eq!(peer.binary(), audio_frame(1, b"\x58a"));
    drop(stuck);
}

// ----- dials ----------------------------------------------------------------------------------------------------------

/// Runs a check for each way to stall, all in parallel.
fn for_each_stalling_fault(check: fn(ServerFault)) {
    thread::scope(|scope| {
        for fault in STALLING_FAULTS {
            scope.spawn(move || check(fault));
        }
    });
}

fn a_stalled_server_alone_costs_the_call_but_the_device_is_answered() {
    for_each_stalling_fault(|fault| {
        let (url, _kept) = start_faulty_server(fault);
        let gateway = gateway(&[url]);
        // The only server may use all the time there is.
        let took = assert_failure_alert(&mut Device::connect(gateway.addresses().mqtt, 50));
        assert!(took >= MS(5000), "{fault:?}: {took:?}");
    });
}

fn four_stalled_servers_cost_the_call_but_the_device_is_answered() {
    for_each_stalling_fault(|fault| {
        let faulty: Vec<_> = (0..4).map(|_| start_faulty_server(fault)).collect();
        let urls: Vec<_> = faulty.iter().map(|(url, _)| url.clone()).collect();
        let gateway = gateway(&urls);
        assert_failure_alert(&mut Device::connect(gateway.addresses().mqtt, 50));
    });
}

fn a_stalled_server_is_abandoned_for_the_next() {
    for_each_stalling_fault(|fault| {
        let good = ChatServer::start();
        let (url, _kept) = start_faulty_server(fault);
        let mut log = LogCapture::containing(url.clone());
        let gateway = gateway(&[url, good.url()]);
        // Three seconds to connect and upgrade, four for the hello.
        let not_before = if let ServerFault::StallsAtHello = fault { MS(3900) } else { MS(2950) };
        let began = Instant::now();
        let mut device = Device::connect(gateway.addresses().mqtt, 51);
        let (call, _peer) = device.call(&good);
        assert_eq!(call.session_id, "server-session", "{fault:?}");
        assert!(began.elapsed() >= not_before, "{fault:?}: {:?}", began.elapsed());
        log.wait_for_line("new calls try other servers first");
        log.wait_for_line("no answer in");
        // The second call goes to the good server at once.
        let (call, _peer) = Device::connect(gateway.addresses().mqtt, 52).call(&good);
        assert_eq!(call.session_id, "server-session", "{fault:?}");
        assert_eq!(log.count(""), 0, "{fault:?}");
    });
}

fn a_hello_is_answered_when_no_server_can_be_dialled() {
    let unused = gateway(&[] as &[&str]);
    assert_failure_alert(&mut Device::connect(unused.addresses().mqtt, 50));
    let (url, _) = start_faulty_server(ServerFault::Unresolvable);
    let gateway = gateway(&[url]);
    assert_failure_alert(&mut Device::connect(gateway.addresses().mqtt, 50));
}

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
        let call = device.hello_reply();
        assert!(began.elapsed() >= MS(8000), "{:?}", began.elapsed());
        device.expect_goodbye(&call.session_id);
    }
    drop(stuck);
}

// ----- the chat server's hello ----------------------------------------------------------------------------------------

fn a_chat_server_that_does_not_answer_our_hello_gets_it_once_more() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 7);
    let began = Instant::now();
    device.send_text(HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    let hello = peer.json();
    assert_eq!(peer.json(), hello);
    assert!(began.elapsed() >= MS(2950), "{:?}", began.elapsed());
    // Only once; a hello that comes late is still taken, until eight seconds are over.
    assert_eq!(peer.message_within(MS(1000)), None);
    peer.send_text(r#"{"type":"hello","session_id":"late"}"#);
    assert_eq!(device.hello_reply().session_id, "late");
    device.send_text(r#"{"type":"abort"}"#);
    assert_eq!(peer.json()["type"], "abort");
}

fn a_chat_server_that_never_says_hello_is_passed_over() {
    let (silent, good) = (ChatServer::start(), ChatServer::start());
    let gateway = gateway(&[silent.url(), good.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 8);
    let began = Instant::now();
    device.send_text(HELLO);
    let mut peer = silent.accept();
    peer.upgrade();
    peer.send_text(r#"{"type":"mcp","payload":{"jsonrpc":"2.0","id":1,"method":"tools/list"}}"#);
    let mut other = good.accept();
    assert!(began.elapsed() >= MS(3900), "{:?}", began.elapsed());
    other.upgrade();
    other.exchange_hello("s");
    device.hello_reply();
    // What the first server sent is dropped.
    device.mqtt.assert_nothing_pending();
    assert_eq!((peer.json()["type"].clone(), peer.json()["type"].clone()), ("hello".into(), "hello".into()));
}

/// Text other than MCP shows that the server serves the call.
fn a_chat_server_that_speaks_but_says_no_hello_gets_the_call() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 50);
    device.send_text(HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    peer.json();
    peer.send_text(r#"{"type":"stt","text":"123456"}"#);
    let call = device.hello_reply();
    assert_eq!(device.json(), json!({"type": "stt", "text": "123456", "session_id": call.session_id}));
}

// ----- devices --------------------------------------------------------------------------------------------------------

fn a_connection_without_connect_is_closed_after_ten_seconds() {
    let gateway = gateway(&["ws://127.0.0.1:9/"]);
    let mut log = LogCapture::containing("closed: no CONNECT in time");
    let began = Instant::now();
    let mut silent = Client::open(gateway.addresses().mqtt);
    let mut slow = Client::open(gateway.addresses().mqtt);
    let mut later = None;
    // A CONNECT that arrives byte by byte gets no more time.
    let packet = Connect::new(&client_id(5)).packet();
    for byte in packet.iter().take(packet.len() - 1) {
        slow.try_send(&[*byte]);
        thread::sleep(MS(70));
        if began.elapsed() > MS(2000) && later.is_none() {
            later = Some(Client::open(gateway.addresses().mqtt));
        }
        if began.elapsed() > MS(9500) {
            break;
        }
    }
    let mut later = later.unwrap();
    for client in [&mut silent, &mut slow] {
        assert_eq!(client.packet_within(TIMEOUT), Err(PacketError::Closed));
        assert!(began.elapsed() >= MS(9950), "{:?}", began.elapsed());
    }
    assert_eq!(later.packet_within(TIMEOUT), Err(PacketError::Closed));
    // In this order.
    for client in [silent, slow, later] {
        log.wait_for_line(&client.stream.local_addr().unwrap().to_string());
    }
}

/// Logs in with this keep alive, in seconds.
fn connect_with_keep_alive(gateway: std::net::SocketAddr, number: u8, keep_alive: u16) -> Device {
    let client_id = client_id(number);
    let connect = Connect { keep_alive, ..Connect::new(&client_id) };
    let mut device = Device { mqtt: Client::log_in(gateway, &connect), mac: mac(number), client_id };
    device.say_something();
    device
}

fn assert_closed_after(client: &mut Client, since: Instant, expected: Duration) {
    client.read_until_closed();
    let took = since.elapsed();
    assert!(took >= expected - MS(50), "{took:?} instead of {expected:?}");
}

fn a_silent_device_is_closed_after_one_and_a_half_keep_alives() {
    let gateway = gateway(&["ws://127.0.0.1:9/"]);
    for (keep_alive, expected) in [(1, MS(1500)), (2, MS(3000))] {
        let since = Instant::now();
        let mut device = connect_with_keep_alive(gateway.addresses().mqtt, 20, keep_alive);
        assert_closed_after(&mut device.mqtt, since, expected);
    }
}

fn each_received_byte_restarts_the_keep_alive() {
    let gateway = gateway(&["ws://127.0.0.1:9/"]);
    let mut device = connect_with_keep_alive(gateway.addresses().mqtt, 21, 4);
    let mut since = Instant::now();
    // The first bytes of a packet that never ends.
    for byte in &publish("t", &[b'x'; 100])[..3] {
        assert_eq!(device.mqtt.packet_within(MS(2500)), Err(PacketError::Deadline));
        since = Instant::now();
        device.mqtt.send(&[*byte]);
    }
    assert_closed_after(&mut device.mqtt, since, MS(6000));
}

fn keep_alive_zero_means_no_limit() {
    let gateway = gateway(&["ws://127.0.0.1:9/"]);
    let mut device = connect_with_keep_alive(gateway.addresses().mqtt, 22, 0);
    assert_eq!(device.mqtt.packet_within(MS(5000)), Err(PacketError::Deadline));
    device.mqtt.assert_nothing_pending();
}

/// The call is kept for the device's return, or ends with the connection when there is no grace period.
fn what_is_sent_to_a_device_does_not_keep_it_alive() {
    for (number, kept) in [(14, true), (23, false)] {
        let server = ChatServer::start();
        let gateway = gateway_with(&[server.url()], |config| {
            if !kept {
                config.mqtt.resume_grace = Duration::ZERO;
            }
        });
        let mut log = LogCapture::containing(client_id(number));
        let mut device = connect_with_keep_alive(gateway.addresses().mqtt, number, 1);
        let (_call, mut peer) = device.call(&server);
        // The last sign of life; its answer arrived after the gateway's timer was set.
        let sent = Instant::now();
        device.mqtt.send(&PINGREQ);
        assert_eq!(device.mqtt.packet(), Packet { first: PINGRESP[0], body: Vec::new() });
        let answered = Instant::now();
        let mut texts = 0;
        while device.mqtt.packet_within(MS(50)) != Err(PacketError::Closed) {
            peer.try_frame(1, br#"{"type":"llm"}"#);
            texts += 1;
            assert!(answered.elapsed() < TIMEOUT, "still open");
        }
        assert!(texts > 2, "{texts}");
        assert!(sent.elapsed() >= MS(1490), "closed after {:?}", sent.elapsed());
        if kept {
            log.wait_for_line("connection lost in a call, kept");
        } else {
            while !matches!(peer.message_within(TIMEOUT), Some(Message::Close(_) | Message::End)) {}
        }
    }
}

fn tool_discovery_without_an_answer_times_out() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.mcp.enabled = true);
    let mut log = LogCapture::containing(client_id(6));
    let asked = Instant::now();
    let mut device = Device::connect(gateway.addresses().mqtt, 6);
    device.say_something();
    let id = device.json()["payload"]["id"].clone();
    log.wait_for_line("no answer");
    assert!(asked.elapsed() >= MS(9950), "{:?}", asked.elapsed());
    // A late answer is ignored.
    device.send_text(
        &json!({"type": "mcp", "payload": {"jsonrpc": "2.0", "id": id, "result": {}}}).to_string(),
    );
    device.mqtt.assert_nothing_pending();
    let (_call, mut peer) = device.call(&server);
    peer.send_text(r#"{"type":"mcp","payload":{"jsonrpc":"2.0","id":1,"method":"tools/list"}}"#);
    assert_eq!(device.json()["payload"]["method"], "tools/list");
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
    assert!(began.elapsed() >= MS(1950), "{:?}", began.elapsed());
    assert_eq!(device.json()["state"], "stop");
    let line = log.wait_for_line("no UDP packet");
    assert!(line.starts_with("WARN") && line.contains(" 3 "), "{line}");
    // Once per call: later speech and its audio are not held.
    wait_until("later speech does not wait", || {
        let later = Instant::now();
        peer.send_text(r#"{"type":"tts","state":"start"}"#);
        assert_eq!(device.json()["state"], "start");
        later.elapsed() < MS(1000)
    });
    call.send(0, b"\x58u");
    peer.binary();
    peer.send_audio(3, b"\x58heard");
    let audio = call.receive();
    assert_eq!((audio.timestamp(), audio.sequence()), (3, 1));
    device.send_text(r#"{"type":"goodbye"}"#);
    let end = log.wait_for_line("call ends");
    assert_eq!(log_field(&end, "dropped"), "3", "{end}");
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
    let heard = Instant::now();
    let foreign = std::net::UdpSocket::bind(("127.0.0.2", 0)).unwrap();
    let send = |sequence: u32, opus: &[u8]| {
        foreign.send_to(&call.seal(sequence, sequence, opus), call.gateway).unwrap();
    };
    // Not while the known source was heard less than two seconds ago.
    for n in 2..20 {
        if heard.elapsed() < MS(1800) {
            send(n, b"\x58x");
            thread::sleep(MS(100));
        }
    }
    thread::sleep(MS(2050).saturating_sub(heard.elapsed()));
    // Packets of another Opus configuration end the run, and are none themselves.
    (20..27).for_each(|n| send(n, if n % 2 == 0 { b"\x08x" } else { b"\x09xx" }));
    send(27, b"\x50x");
    // Eight in a row do.
    (28..37).for_each(|n| send(n, b"\x58b"));
    for n in 28..37 {
        assert_eq!(peer.binary(), audio_frame(n, b"\x58b"));
    }
    peer.send_audio(7, b"\x58y");
    call.udp = foreign;
    assert_eq!(call.receive().payload, b"\x58y");
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
    // Removed and written again.
    fs::remove_file(&file).unwrap();
    fs::write(&file, text(&second, 8)).unwrap();
    assert!(process.wait_for_line("reload:").contains("applied: websocket.max_calls"));
    // The first call is not disturbed.
    call.send(1, b"\x58a");
    assert_eq!(peer.binary(), audio_frame(1, b"\x58a"));
    peer.send_audio(2, b"\x58b");
    assert_eq!(call.receive().payload, b"\x58b");
    device.mqtt.assert_nothing_pending();
}
