//! Calls start and end in every way, and nothing is leaked.
//!
//! Takes some seconds; `CHURN_SECONDS=600 cargo test --test churn` runs ten minutes.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod support;

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use support::chat_server::{ChatServer, Message, Peer};
use support::device::{Device, HELLO};
use support::host::{open_fds, resident_kib, wait_until};
use support::mqtt::{Client, Connect, DISCONNECT};
use support::process::Folder;

/// Threads that simulate devices.
const DEVICES: u8 = 8;
/// Minimum number of calls in each half, even on a slow machine.
const MIN_CALLS_PER_HALF: usize = 50;

#[test]
fn churn_leaks_nothing() {
    let seconds = env::var("CHURN_SECONDS").map_or(3, |text| text.parse().unwrap());
    let server = ChatServer::start();
    let url = server.url();
    let number = AtomicUsize::new(0);
    server.serve(move |peer| run_server(peer, number.fetch_add(1, Ordering::Relaxed)));
    let config = json!({
        "mqtt": {"host": "127.0.0.1", "resume_grace_s": 1, "hello_limit": 0},
        "udp": {"host": "127.0.0.1"},
        "websocket": {
            "production_servers": [url],
            "reconnect": {"initial_ms": 5, "max_ms": 20, "give_up_after_s": 1},
        },
    });
    let folder = Folder::new().with_file("gateway.json", config.to_string());
    let process = folder.start("-c gateway.json", &[]);
    let (gateway, pid) = (process.mqtt(), process.id());
    let idle = open_fds(pid);

    let calls = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let half = began + Duration::from_secs(seconds) / 2;
    let end = began + Duration::from_secs(seconds);
    let threads: Vec<_> = (0..DEVICES)
        .map(|device_number| {
            let calls = Arc::clone(&calls);
            thread::spawn(move || {
                let mut round = usize::from(device_number);
                while Instant::now() < end || calls.load(Ordering::Relaxed) <= 2 * MIN_CALLS_PER_HALF {
                    run_device(gateway, device_number, round);
                    calls.fetch_add(1, Ordering::Relaxed);
                    round += 1;
                }
            })
        })
        .collect();
    thread::sleep(half.saturating_duration_since(Instant::now()));
    wait_until("enough calls", || calls.load(Ordering::Relaxed) > MIN_CALLS_PER_HALF);
    let at_half = (resident_kib(pid), calls.load(Ordering::Relaxed));
    threads.into_iter().for_each(|device_number| device_number.join().unwrap());
    let calls = calls.load(Ordering::Relaxed);

    wait_until("all descriptors are closed again", || open_fds(pid) <= idle);
    let grown = resident_kib(pid).saturating_sub(at_half.0);
    assert!(grown < 2 * 1024, "{grown} KiB more after {calls} calls than after {}", at_half.1);
    // The gateway still works.
    let mut device = Device::connect(gateway, 200);
    device.send_text(HELLO);
    while device.json()["type"] != "hello" {}
}

/// One connection of the gateway, ended in a way that depends on its number.
fn run_server(mut peer: Peer, number: usize) {
    let quick = Duration::from_secs(5);
    match number % 16 {
        3 => return peer.reset(),
        7 => {
            peer.refuse("503 Busy");
            return;
        }
        _ => {}
    }
    // The gateway may close the connection at any point.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        peer.upgrade();
        peer.exchange_hello("s");
        let mut frames = 0;
        loop {
            match peer.message_within(quick) {
                Some(Message::Binary(frame)) => {
                    frames += 1;
                    peer.send_binary(&frame);
                    match (number % 16, frames) {
                        (1, 3) => return peer.shutdown_write(),
                        (2, 3) => return peer.send_close(Some(1011)),
                        (5, 3) => return peer.send_close(Some(1000)),
                        (9, 3) => return peer.send_raw(&[0xff; 40]),
                        (11, 3) => peer
                            .send_text(&json!({"type": "custom", "filler": "x".repeat(200_000)}).to_string()),
                        _ => {}
                    }
                }
                Some(Message::Close(_)) => {
                    peer.send_close(Some(1000));
                    return;
                }
                Some(Message::End) | None => return,
                Some(Message::Ping(payload)) => peer.frame(10, &payload),
                Some(_) => {}
            }
        }
    }));
}

/// One connection of a device, ended in a way that depends on its number.
fn run_device(gateway: std::net::SocketAddr, device_number: u8, round: usize) {
    if round.is_multiple_of(11) {
        // A silent connection, and one that sends garbage.
        drop(Client::open(gateway));
        Client::open(gateway).send(b"GET / HTTP/1.1\r\n\r\n");
    }
    let mut device = Device::connect(gateway, device_number);
    device.send_text(HELLO);
    let quick = Duration::from_millis(500);
    let Some(mut call) = next_hello_reply(&mut device) else { return };
    for _ in 0..6 {
        call.send(0, b"\x58abc");
        let _ = call.receive_within(Duration::from_millis(20));
    }
    match round % 7 {
        0 => device.mqtt.try_send(&DISCONNECT),
        1 => device.mqtt.reset(),
        2 => drop(device),
        3 => {
            // A second call over the same connection.
            device.mqtt.try_send(&support::mqtt::publish("x", HELLO.as_bytes()));
            let _ = next_hello_reply(&mut device);
        }
        4 => {
            // Taken over by another connection, which hangs up.
            let mut next = Client::open(gateway);
            next.try_send(&Connect::new(&device.client_id).packet());
            let _ = next.packet_within(quick);
            next.try_send(&support::mqtt::publish("x", br#"{"type":"goodbye"}"#));
            next.try_send(&DISCONNECT);
        }
        5 => device.mqtt.try_send(&[0xff; 20]),
        _ => {
            device.mqtt.try_send(&support::mqtt::publish("x", br#"{"type":"goodbye"}"#));
            device.mqtt.try_send(&DISCONNECT);
        }
    }
}

/// The next hello reply; skips alerts, goodbyes and MCP requests.
fn next_hello_reply(device: &mut Device) -> Option<support::audio::Call> {
    loop {
        let packet = device.mqtt.packet_within(Duration::from_secs(3)).ok()?;
        let value: serde_json::Value = serde_json::from_str(packet.message().1).unwrap();
        if value["type"] == "hello" {
            return Some(support::audio::Call::new(value));
        }
    }
}
