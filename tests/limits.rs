//! Every queue is bounded, and every limit is refused clearly.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::{ChatServerConfig, Config, Secret};
use mqtt_websocket_proxy::net::{Addresses, Gateway, Handle, Running};
use serde_json::json;
use support::chat_server::ChatServer;
use support::device::{Device, HELLO, client_id, mac};
#[cfg(target_os = "linux")]
use support::host::fill_send_buffers;
use support::host::{connect_from, connect_with_small_buffer, device_from, device_over, wait_until};
use support::http::metric_sum;
use support::log_capture::{LogCapture, log_field};
use support::mqtt::{Client, Connect, DISCONNECT, Packet, PacketError};
use support::{TIMEOUT, gateway, gateway_with};

const MS: fn(u64) -> Duration = Duration::from_millis;
const UNREACHABLE_SERVER: [&str; 1] = ["ws://127.0.0.1:9/"];

/// Sends CONNECT and reads the return code.
fn connack_code(mut client: Client, connect: &Connect) -> (u8, Client) {
    (client.connack_code(connect), client)
}

fn connect(gateway: &Running, number: u8) -> (u8, Client) {
    connack_code(Client::open(gateway.addresses().mqtt), &Connect::new(&client_id(number)))
}

/// How many connections were closed for this reason, or for all of these reasons.
fn closed_for_others(gateway: &Running, reason: &str) -> f64 {
    let samples = format!("gateway_connections_closed_for_others_total{{{reason}");
    metric_sum(gateway.addresses().api.unwrap(), &samples, None)
}

#[test]
fn a_device_over_max_connections_is_refused_but_not_its_own_replacement() {
    let gateway = gateway_with(&UNREACHABLE_SERVER, |config| config.mqtt.max_connections = 2);
    let (_, mut first) = connect(&gateway, 1);
    let (_, second) = connect(&gateway, 2);
    for _ in 0..3 {
        let (code, mut refused) = connect(&gateway, 3);
        assert_eq!(code, 3);
        assert_eq!(refused.read_until_closed(), []);
    }
    // The same client id again does not count as a third.
    let (code, mut again) = connect(&gateway, 1);
    assert_eq!((code, first.read_until_closed()), (0, vec![]));
    // A freed place can be taken.
    again.send(&DISCONNECT);
    again.read_until_closed();
    assert_eq!(connect(&gateway, 3).0, 0);
    drop(second);
}

#[test]
fn connections_that_never_connect_are_closed_when_there_are_too_many() {
    let gateway = gateway_with(&UNREACHABLE_SERVER, |config| config.mqtt.max_connections = 1);
    let (_, mut device) = connect(&gateway, 4);
    let begun = Instant::now();
    // The number of connections without CONNECT is limited.
    let mut idle: Vec<Client> = (0..600).map(|_| Client::open(gateway.addresses().mqtt)).collect();
    device.assert_nothing_pending();
    // The last of them may not be accepted yet. If that took longer, the own ten seconds of many are over before.
    if begun.elapsed() < Duration::from_secs(9) {
        support::host::wait_until("80 closed for others", || closed_for_others(&gateway, "") >= 80.0);
    }
    for client in &mut idle[..80] {
        assert_eq!(client.packet_within(TIMEOUT), Err(PacketError::Closed));
    }
    device.assert_nothing_pending();
}

#[test]
fn idle_connections_lock_no_device_out() {
    let gateway = gateway_with(&UNREACHABLE_SERVER, |config| config.mqtt.max_connections = 1);
    let mut idle: Vec<Client> = (0..600).map(|_| Client::open(gateway.addresses().mqtt)).collect();
    let (code, mut device) = connect(&gateway, 5);
    assert_eq!(code, 0, "the oldest that says nothing gives way");
    assert_eq!(idle[0].read_until_closed(), []);
    device.send(&[0xc0, 0]);
    assert_eq!(device.packet().first, 0xd0, "a device that was let in stays");
}

#[test]
fn max_connections_per_ip_counts_one_address_only() {
    let gateway = gateway_with(&UNREACHABLE_SERVER, |config| config.mqtt.max_connections_per_ip = 2);
    let (_, mut first) = connect(&gateway, 5);
    let (_, _second) = connect(&gateway, 6);
    assert_eq!(connect(&gateway, 7).0, 3);
    let mut other = device_from([127, 0, 0, 2], gateway.addresses().mqtt, 7);
    other.mqtt.assert_nothing_pending();
    // Its own replacement is accepted here too.
    let (code, mut again) = connect(&gateway, 5);
    assert_eq!((code, first.read_until_closed()), (0, vec![]));
    again.send(&DISCONNECT);
    again.read_until_closed();
    assert_eq!(connect(&gateway, 8).0, 0);
    // Connections that send nothing count too, and their number is bounded.
    let gateway = gateway_with(&UNREACHABLE_SERVER, |config| config.mqtt.max_connections_per_ip = 2);
    let mut idle: Vec<Client> = (0..20).map(|_| Client::open(gateway.addresses().mqtt)).collect();
    let mut last = idle.pop().unwrap();
    assert_eq!(last.packet_within(TIMEOUT), Err(PacketError::Closed));
    assert!(closed_for_others(&gateway, "reason=\"address_limit\"") >= 1.0);
    let address = gateway.addresses().mqtt;
    assert_connack_code(Client::from(connect_from([127, 0, 0, 3], address)), 0);
}

fn assert_connack_code(client: Client, expected: u8) {
    assert_eq!(connack_code(client, &Connect::new(&client_id(9))).0, expected);
}

#[test]
fn there_is_no_limit_per_ip_by_default() {
    let gateway = gateway(&UNREACHABLE_SERVER);
    let devices: Vec<_> = (0..200).map(|number| connect(&gateway, number)).collect();
    assert!(devices.iter().all(|(code, _)| *code == 0));
}

#[test]
fn a_call_over_max_calls_is_refused_with_an_alert() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.websocket.max_calls = 1);
    let mut log = LogCapture::containing(client_id(11));
    let mut first = Device::connect(gateway.addresses().mqtt, 10);
    let (_call, mut peer) = first.call(&server);
    let mut second = Device::connect(gateway.addresses().mqtt, 11);
    second.send_text(HELLO);
    second.expect_failure();
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "refused");
    assert!(server.is_idle());
    // A new hello of the first replaces its own call.
    first.send_text(HELLO);
    peer.expect_close(1000);
    let (mut peer, _) = (server.accept(), ());
    peer.upgrade();
    peer.exchange_hello("again");
    first.hello_reply();
    first.send_text(r#"{"type":"goodbye"}"#);
    peer.expect_close(1000);
    second.call(&server);
}

#[test]
fn a_dial_waits_for_a_free_slot() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.websocket.max_dials = 1);
    let mut first = Device::connect(gateway.addresses().mqtt, 12);
    let mut second = Device::connect(gateway.addresses().mqtt, 13);
    first.send_text(HELLO);
    let mut peer = server.accept();
    second.send_text(HELLO);
    second.mqtt.assert_nothing_pending();
    assert!(server.accept_within(MS(100)).is_none(), "two dials at once");
    peer.upgrade();
    // Only connecting counts, not waiting for the hello.
    let mut other = server.accept();
    other.upgrade();
    other.exchange_hello("second");
    second.hello_reply();
    peer.exchange_hello("first");
    first.hello_reply();
}

#[test]
fn a_dial_whose_device_disconnects_frees_its_slot() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.websocket.max_dials = 1);
    let mut first = Device::connect(gateway.addresses().mqtt, 14);
    first.send_text(HELLO);
    let stuck = server.accept();
    let mut second = Device::connect(gateway.addresses().mqtt, 15);
    second.send_text(HELLO);
    second.mqtt.assert_nothing_pending();
    first.mqtt.send(&DISCONNECT);
    let mut peer = server.accept();
    peer.upgrade();
    peer.exchange_hello("s");
    second.hello_reply();
    drop(stuck);
}

#[test]
fn failed_logins_get_a_growing_delay_and_good_ones_do_not() {
    let gateway = gateway_with(&UNREACHABLE_SERVER, |config| {
        config.mqtt.signature_key = Secret::new("key");
        config.api.metrics_need_token = false;
    });
    let mut log = LogCapture::containing("127.0.0.4");
    let address = gateway.addresses().mqtt;
    let bad = || {
        let mut client = Client::from(connect_from([127, 0, 0, 4], address));
        client.send(&Connect::signed(&client_id(20), "wrong").packet());
        client
    };
    // With a delay, none would be quick.
    let good = |number| {
        wait_until("a good login is quick", || {
            let began = Instant::now();
            let client = Client::from(connect_from([127, 0, 0, 4], address));
            assert_eq!(connack_code(client, &Connect::signed(&client_id(number), "key")).0, 0);
            began.elapsed() < MS(80)
        });
    };
    let refused = Packet::connack(4);
    for delay in [0, 100, 200, 400] {
        let began = Instant::now();
        let mut client = bad();
        if delay > 0 {
            good(21);
        }
        let answers = client.read_until_closed();
        let took = began.elapsed();
        assert!(took >= MS(delay), "{took:?} instead of {delay} ms");
        // A gateway that was not run for a second closes the connection before it answers.
        assert!(answers == [refused.clone()] || took > MS(delay + 900), "{answers:?}");
    }
    // Many failed logins at once wait a second at most, most of them for nothing; a valid one does not wait.
    let began = Instant::now();
    let mut waiting: Vec<Client> = (0..50).map(|_| bad()).collect();
    good(22);
    let answers: Vec<_> = waiting.iter_mut().flat_map(Client::read_until_closed).collect();
    // 4 were answered before. If the guesses take seconds, one more is answered in each.
    let most = 12 + began.elapsed().as_secs() as usize;
    let least = if began.elapsed() < Duration::from_secs(2) { 12 } else { 0 };
    assert!((least..=most).contains(&answers.len()), "{} of {most}", answers.len());
    assert!(answers.iter().all(|answer| *answer == refused), "{answers:?}");
    // Another address has no delay.
    let delayed = || {
        let api = gateway.addresses().api.unwrap();
        metric_sum(api, "gateway_logins_refused_late_total{answer=\"delayed\"}", None)
    };
    let before = delayed();
    let mut other = Client::from(connect_from([127, 0, 0, 5], address));
    other.send(&Connect::signed(&client_id(20), "wrong").packet());
    assert_eq!((other.packet(), delayed()), (refused, before));
    log.wait_for_line("WARN");
    assert_eq!(log.count("WARN"), 0, "one line in 10 s");
}

#[cfg(target_os = "linux")]
#[test]
fn a_chat_server_that_stops_reading_loses_audio_and_then_the_call() {
    let server = ChatServer::start_with_small_buffer();
    let gateway = gateway(&[server.url()]);
    let mut log = LogCapture::containing(client_id(30));
    let mut device = Device::connect(gateway.addresses().mqtt, 30);
    let (mut call, mut peer) = device.call(&server);
    fill_send_buffers(&mut device, &mut peer);
    // Audio that does not fit is dropped, and the call goes on.
    for n in 0..300 {
        call.send(n, &[0x88; 1400]);
        if n % 32 == 0 {
            device.mqtt.assert_nothing_pending();
        }
    }
    peer.send_text(r#"{"type":"stt"}"#);
    assert_eq!(device.json()["type"], "stt");
    // Text that does not fit ends the call.
    let text = json!({"type": "custom", "filler": "x".repeat(60_000)}).to_string();
    device.send_text(&text);
    device.send_text(&text);
    device.send_text(&text);
    device.expect_goodbye("server-session");
    // Texts that came without a call are answered too.
    while device.json()["type"] != "alert" {}
    let end = log.wait_for_line("call ends");
    assert_eq!(log_field(&end, "reason"), "overflow");
    let dropped: u32 = log_field(&end, "dropped").parse().unwrap();
    let up: u32 = log_field(&end, "up").split('p').next().unwrap().parse().unwrap();
    assert!(dropped >= 50, "{end}");
    assert_eq!(up + dropped, 300, "what was dropped did not reach the chat server: {end}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_long_message_of_the_chat_server_drops_nothing_queued_for_it() {
    let server = ChatServer::start_with_small_buffer();
    let gateway = gateway_with(&[server.url()], |config| config.websocket.ping_interval = MS(0));
    let mut device = Device::connect(gateway.addresses().mqtt, 33);
    let (_call, mut peer) = device.call(&server);
    let sent = fill_send_buffers(&mut device, &mut peer);
    let long =
        json!({"type": "custom", "session_id": "server-session", "filler": "y".repeat(20_000)}).to_string();
    peer.send_text(&long);
    assert_eq!(device.mqtt.text(), long);
    device.mqtt.assert_nothing_pending();
    for n in 0..sent {
        assert_eq!(peer.json()["n"], n);
    }
}

#[test]
fn a_chat_server_that_reads_gets_texts_of_any_size() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.mqtt.max_payload_size = 1_000_000);
    let mut device = Device::connect(gateway.addresses().mqtt, 31);
    let (_call, mut peer) = device.call(&server);
    for size in [100_000, 200_000, 300_000, 10] {
        let text = json!({"type": "custom", "filler": "x".repeat(size)}).to_string();
        device.send_text(&text);
        assert_eq!(peer.text(), text);
    }
}

#[test]
fn a_device_that_stops_reading_loses_its_connection() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut log = LogCapture::containing(client_id(32));
    let mut device = device_over(connect_with_small_buffer(gateway.addresses().mqtt), 32);
    let (_call, mut peer) = device.call(&server);
    let text = json!({"type": "custom", "filler": "x".repeat(100_000)}).to_string();
    while log.count("does not read") == 0 {
        peer.try_frame(1, text.as_bytes());
    }
    log.wait_for_line("does not read");
    // Text that waits for its return is bounded too.
    (0..3).for_each(|_| peer.try_frame(1, text.as_bytes()));
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "overflow");
    drop(device);
}

/// Runs a gateway on a thread with a small stack, so that recursion over hundreds of dials overflows it: each takes kilobytes. Unoptimised, the
/// start of a gateway takes a quarter of a megabyte.
fn on_a_small_stack(config: Config) -> (Addresses, Handle, JoinHandle<()>) {
    let (bound, outcome) = mpsc::channel();
    let run = move || {
        let gateway = Gateway::bind(config, None).unwrap();
        bound.send((gateway.addresses(), gateway.handle())).unwrap();
        gateway.run().unwrap();
    };
    let thread = thread::Builder::new().stack_size(512 << 10).spawn(run).unwrap();
    let (addresses, handle) = outcome.recv().unwrap();
    (addresses, handle, thread)
}

/// Chat servers that fail without a packet, each in another step: a broadcast address that TCP refuses, a name
/// that is too long for a query, a CA file that cannot be read.
fn failing_at_once(path: usize) -> [Arc<ChatServerConfig>; 3] {
    let urls = ["ws://255.255.255.255:9", "ws://name", "wss://127.0.0.1:9"];
    let mut servers = urls.map(|url| format!("{url}/{path}").parse::<ChatServerConfig>().unwrap());
    servers[1].host = vec!["a".repeat(63); 5].join(".");
    servers[2].ca_file = Some("/nowhere/ca.pem".into());
    servers.map(Arc::new)
}

#[test]
fn dials_that_wait_and_fail_at_once_do_not_pile_up_on_the_stack() {
    const MANY: usize = 400;
    let stalls = ChatServer::start();
    let mut config = support::config(&[stalls.url()]);
    config.websocket.max_dials = 1;
    config.websocket.development = std::mem::take(&mut config.websocket.production);
    config.websocket.development_macs = [mac(1).parse().unwrap()].into();
    config.websocket.production = failing_at_once(0).into();
    let (addresses, handle, thread) = on_a_small_stack(config);

    let mut first = Device::connect(addresses.mqtt, 1);
    let log_in = |number: usize| {
        let id = format!("GID_test@@@02_00_00_01_{:02x}_{:02x}@@@uuid", number >> 8, number & 0xff);
        Client::log_in(addresses.mqtt, &Connect::new(&id))
    };
    let mut others: Vec<Client> = (0..MANY).map(log_in).collect();
    let began = Instant::now();
    first.send_text(HELLO);
    let stalled = stalls.accept();
    others.iter_mut().for_each(|other| other.send_text(HELLO));
    // All wait for the only place, until the first call fails after eight seconds.
    if began.elapsed() < Duration::from_secs(2) {
        others.iter_mut().for_each(Client::assert_nothing_pending);
    }
    first.mqtt.send(&DISCONNECT);
    for other in &mut others {
        assert_eq!(other.json()["type"], "hello");
        assert_eq!(other.json()["type"], "goodbye");
    }
    drop(stalled);
    handle.stop(Duration::ZERO);
    thread.join().unwrap();
}

#[test]
fn a_long_list_of_servers_that_fail_at_once_does_not_pile_up_on_the_stack() {
    let mut config = support::config(&UNREACHABLE_SERVER);
    config.websocket.production = (0..400).flat_map(failing_at_once).collect();
    let (addresses, handle, thread) = on_a_small_stack(config);
    let mut device = Device::connect(addresses.mqtt, 1);
    device.send_text(HELLO);
    device.expect_failure();
    handle.stop(Duration::ZERO);
    thread.join().unwrap();
}
