//! What one device may cost: its hellos, its dials, its client ids.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use mqtt_websocket_proxy::config::Secret;
use serde_json::json;
use support::audio::Call;
use support::chat_server::{ChatServer, audio_frame};
use support::device::{Device, HELLO, client_id};
use support::host::connect_from;
use support::log_capture::{LogCapture, log_field};
use support::mqtt::{Client, Connect, DISCONNECT};
use support::{gateway, gateway_with};

/// A chat server that answers every hello, and the number of its sessions so far.
fn counting_server() -> (String, Arc<AtomicUsize>) {
    let (server, sessions) = (ChatServer::start(), Arc::new(AtomicUsize::new(0)));
    let (url, counter) = (server.url(), sessions.clone());
    server.serve(move |mut peer| {
        if peer.try_upgrade() {
            counter.fetch_add(1, Ordering::Relaxed);
            // The gateway may close the connection at any point.
            peer.try_frame(1, br#"{"type":"hello","transport":"websocket"}"#);
            peer.ignore_until_closed();
        }
    });
    (url, sessions)
}

/// Says hello, and waits for the reply.
fn call(client: &mut Client) -> Call {
    client.send_text(HELLO);
    loop {
        let message = client.json();
        if message["type"] == "hello" {
            return Call::new(message);
        }
    }
}

/// Checks that the sessions since `began` are those that `mqtt.hello_limit` allows.
fn assert_limited(sessions: &AtomicUsize, began: Instant) {
    let (sessions, most) = (sessions.load(Ordering::Relaxed), 8 + began.elapsed().as_secs() as usize / 2);
    assert!((8..=most).contains(&sessions), "{sessions} sessions, {most} at most");
}

#[test]
fn a_device_that_says_hello_without_end_gets_few_chat_sessions() {
    let (url, sessions) = counting_server();
    let gateway = gateway(&[url]);
    let began = Instant::now();
    let mut client = Client::log_in(gateway.addresses().mqtt, &Connect::new(&client_id(1)));
    let keys: Vec<[u8; 16]> = (0..1_446).map(|_| call(&mut client).key).collect();
    assert_limited(&sessions, began);
    assert!((1..keys.len()).all(|n| keys[n] != keys[n - 1]), "each reply has a fresh key");
}

/// A connection for each hello, which ends in different ways, and the client id changes.
fn reconnect_for_each_hello(gateway: SocketAddr) {
    for n in 0..160 {
        let id = client_id(2).replacen("GID_test", &format!("GID_{}", n % 3), 1);
        let mut client = Client::log_in(gateway, &Connect::new(&id));
        call(&mut client);
        match n % 4 {
            0 => client.send(&DISCONNECT),
            1 => client.send_text(r#"{"type":"goodbye"}"#),
            2 => client.reset(),
            _ => {}
        }
    }
}

#[test]
fn a_connection_for_each_hello_evades_no_limit() {
    for workers in [1, 2] {
        let (url, sessions) = counting_server();
        let gateway = gateway_with(&[url], |config| config.workers = workers);
        let began = Instant::now();
        reconnect_for_each_hello(gateway.addresses().mqtt);
        assert_limited(&sessions, began);
        // Other devices are not affected.
        let before = sessions.load(Ordering::Relaxed);
        for number in 3..9 {
            call(&mut Client::log_in(gateway.addresses().mqtt, &Connect::new(&client_id(number))));
        }
        assert_eq!(sessions.load(Ordering::Relaxed), before + 6, "{workers} workers");
    }
}

#[test]
fn a_device_over_its_hello_limit_is_told_in_words_and_its_call_ends() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.mqtt.hello_limit = 2);
    let mut log = LogCapture::containing(client_id(10));
    let mut device = Device::connect(gateway.addresses().mqtt, 10);
    let (first, mut old) = device.call(&server);
    let (second, mut peer) = device.call(&server);
    old.expect_close(1000);
    device.send_text(HELLO);
    assert_eq!(peer.expect_close(1000).unwrap()["reason"], "replaced");
    let refused = device.hello_reply();
    assert!(![first.key, second.key].contains(&refused.key) && refused.ssrc() != second.ssrc());
    device.expect_goodbye(&refused.session_id);
    let alert = device.json();
    assert_eq!((&alert["type"], &alert["session_id"]), (&json!("alert"), &json!(refused.session_id)));
    let words = alert["message"].as_str().unwrap();
    assert!(words.contains("太频繁") && words.contains("too often"), "{words}");
    log.wait_for_line("reason=replaced");
    log.wait_for_line("reason=replaced");
    assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "hello_limit");
    // The key is forgotten.
    refused.send_raw(&refused.seal(0, 1, b"\x58x"));
    device.mqtt.assert_nothing_pending();
    assert!(server.is_idle());
    // Another device is served.
    Device::connect(gateway.addresses().mqtt, 11).call(&server);
}

#[test]
fn hellos_before_the_reply_share_one_dial() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let mut device = Device::connect(gateway.addresses().mqtt, 12);
    device.send_text(HELLO);
    let mut peer = server.accept();
    device.send_text(r#"{"type":"listen","state":"detect","text":"for nobody"}"#);
    device.send_text(HELLO);
    peer.upgrade();
    device.send_text(HELLO);
    device.mqtt.assert_nothing_pending();
    peer.exchange_hello("s");
    let mut call = device.hello_reply();
    device.mqtt.assert_nothing_pending();
    assert!(server.is_idle(), "one dial");
    call.send(7, b"\x58voice");
    assert_eq!(peer.binary(), audio_frame(7, b"\x58voice"), "neither a second hello nor a text");
    peer.send_audio(8, b"\x58answer");
    assert_eq!(call.receive().payload, b"\x58answer");
}

fn connack(gateway: SocketAddr, connect: &Connect) -> (u8, Client) {
    let mut client = Client::open(gateway);
    (client.connack_code(connect), client)
}

/// The n-th client id with the same MAC.
fn nth_client_id(n: usize) -> String {
    client_id(13).replacen("GID_test", &format!("GID_{n}"), 1)
}

#[test]
fn sixteen_client_ids_may_have_the_same_mac() {
    let gateway = gateway_with(&["ws://127.0.0.1:9/"], |config| config.workers = 2);
    let address = gateway.addresses().mqtt;
    let mut clients: Vec<Client> = (0..16)
        .map(|n| {
            let (code, client) = connack(address, &Connect::new(&nth_client_id(n)));
            assert_eq!(code, 0, "{n}");
            client
        })
        .collect();
    let mut log = LogCapture::containing(nth_client_id(16));
    let (code, mut refused) = connack(address, &Connect::new(&nth_client_id(16)));
    assert_eq!((code, refused.read_until_closed()), (3, vec![]));
    log.wait_for_line("16 client ids with its MAC are connected");
    // One that is connected may connect again, and another MAC is not affected.
    let (code, again) = connack(address, &Connect::new(&nth_client_id(0)));
    assert_eq!((code, clients[0].read_until_closed()), (0, vec![]));
    assert_eq!(connack(address, &Connect::new(&client_id(14))).0, 0);
    // A place that is free again can be taken.
    clients[1].send(&DISCONNECT);
    clients[1].read_until_closed();
    assert_eq!(connack(address, &Connect::new(&nth_client_id(17))).0, 0);
    clients[2..].iter_mut().for_each(Client::assert_nothing_pending);
    drop(again);
}

#[test]
fn ids_that_proved_nothing_give_way_to_the_device() {
    const KEY: &str = "A-good-Key-9";
    let gateway = gateway_with(&["ws://127.0.0.1:9/"], |config| {
        config.mqtt.signature_key = Secret::new(KEY);
        config.mqtt.allow_legacy_ids = true;
    });
    let address = gateway.addresses().mqtt;
    let legacy = |n: usize| Connect::new(&format!("GID_{n}@@@02_00_00_00_00_0d"));
    let from = |n: u8| Client::from(connect_from([127, 0, 0, n], address));
    let mut strangers: Vec<Client> = (0..16)
        .map(|n| {
            let mut client = from(9);
            assert_eq!(client.connack_code(&legacy(n)), 0);
            client
        })
        .collect();
    assert_eq!(from(9).connack_code(&legacy(16)), 3);
    let mut log = LogCapture::containing("GID_0@@@02_00_00_00_00_0d");
    let mut devices: Vec<Client> = (0..16)
        .map(|n| {
            let mut device = from(10);
            assert_eq!(device.connack_code(&Connect::signed(&nth_client_id(n), KEY)), 0);
            assert_eq!(strangers.remove(0).read_until_closed(), [], "the oldest one");
            strangers.iter_mut().for_each(Client::assert_nothing_pending);
            device
        })
        .collect();
    log.wait_for_line("has proved who it is");
    // The device itself gives way to nobody.
    assert_eq!(from(9).connack_code(&legacy(17)), 3);
    assert_eq!(from(10).connack_code(&Connect::signed(&nth_client_id(16), KEY)), 3);
    devices.iter_mut().for_each(Client::assert_nothing_pending);
}

#[test]
fn two_devices_with_one_client_id_cause_one_warning_with_both_addresses() {
    let fixture = support::admin::fixture(|config| config.mqtt.signature_key = None);
    let gateway = fixture.gateway.addresses().mqtt;
    let mut log = LogCapture::containing(format!("client id {} changed its connection", client_id(0x77)));
    let log_in = |from: u8| {
        let mut client = Client::from(connect_from([127, 0, 0, from], gateway));
        assert_eq!(client.connack_code(&Connect::new(&client_id(0x77))), 0);
        client
    };
    let mut open = log_in(21);
    for from in [22, 21] {
        let next = log_in(from);
        assert_eq!(open.read_until_closed(), []);
        open = next;
    }
    // One that has closed its connection before is no second device.
    open.send(&DISCONNECT);
    assert_eq!(open.read_until_closed(), []);
    open = log_in(21);
    assert_eq!(log.count(""), 0);
    for from in [22, 21, 22] {
        let next = log_in(from);
        assert_eq!(open.read_until_closed(), []);
        open = next;
    }
    let line = log.wait_for_line("WARN");
    assert!(line.contains("from 127.0.0.21:") && line.contains(" to 127.0.0.22:"), "{line}");
    assert_eq!(log.count(""), 0, "one");
    let (_, errors) = fixture.request("GET", "/api/errors", None);
    assert_eq!(errors["errors"][0]["code"], "duplicate_client_id", "{errors}");
}

#[test]
fn limited_hellos_and_refused_client_ids_are_counted() {
    let fixture = support::admin::fixture(|config| config.mqtt.hello_limit = 1);
    let mac = support::admin::mac(1);
    let id = |n: usize| format!("GID_{n}@@@{}@@@u", mac.replace(':', "_"));
    let mut devices: Vec<_> = (0..16).map(|n| fixture.device_with_client_id(&id(n))).collect();
    devices[0].call().unwrap();
    devices[1].call().unwrap();
    let refused = Connect::signed(&id(16), support::admin::KEY);
    assert_eq!(connack(fixture.gateway.addresses().mqtt, &refused).0, 3);
    let (_, metrics) = fixture.request_with_token("GET", "/metrics", None, Some(support::admin::TOKEN));
    for sample in [
        r#"gateway_calls_ended_total{reason="hello_limit"} 1"#,
        "gateway_mac_limit_total 1",
        r#"gateway_logins_refused_total{reason="unavailable"} 1"#,
        "gateway_dials_total 1",
    ] {
        assert!(metrics.lines().any(|line| line == sample), "{sample} in {metrics}");
    }
}
