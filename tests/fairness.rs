//! A chat server or a hundred devices that send as fast as they can do not delay others, and older work is done
//! first. The tests check the order in which data leaves the gateway, not times.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use support::audio::Call;
use support::chat_server::{ChatServer, Peer, audio_frame};
use support::device::{Device, client_id};
use support::mqtt::{Client, Connect, PINGREQ};
use support::process::{Folder, Process};

/// Frames of the loud chat server that wait when the quiet one sends its first.
const FLOOD: usize = 400;
/// Of these, so many may come first: two rounds of a chat server's budget.
const MAX_FRAMES_BEFORE: usize = 64;

fn start_program(server: &ChatServer) -> (Process, Folder) {
    let config = format!(
        r#"{{"mqtt":{{"host":"127.0.0.1"}},"udp":{{"host":"127.0.0.1"}},"websocket":{{"production_servers":["{}"]}},"mcp":{{"enabled":false}}}}"#,
        server.url()
    );
    let folder = Folder::new().with_file("gateway.json", config);
    let process = folder.start("-c gateway.json", &[]);
    (process, folder)
}

/// The program, and two calls with their chat servers. Both devices share one UDP socket, which receives packets in
/// the order in which the gateway sent them.
fn two_calls() -> (Process, Folder, [(Call, Peer); 2]) {
    let server = ChatServer::start();
    let (process, folder) = start_program(&server);
    let mut calls = [1, 2].map(|number| {
        let mut device = Device::connect(process.mqtt(), number);
        let call = device.call(&server);
        // Keeps its connection open.
        std::mem::forget(device);
        call
    });
    calls[1].0.udp = calls[0].0.udp.try_clone().unwrap();
    for (call, peer) in &mut calls {
        call.send(0, b"\x58abc");
        peer.binary();
    }
    (process, folder, calls)
}

/// How many packets of the loud call come before the first of the quiet one.
fn frames_before_quiet_call(loud: &Call) -> usize {
    loud.udp.set_read_timeout(Some(support::TIMEOUT)).unwrap();
    let mut datagram = [0; 2048];
    let before = (0..FLOOD).take_while(|_| {
        loud.udp.recv(&mut datagram).unwrap();
        datagram[4..8] == loud.nonce[4..8]
    });
    before.count()
}

#[test]
fn a_frame_does_not_wait_for_the_flood_of_another_call() {
    let (process, _folder, [(loud, mut loud_server), (_quiet, mut quiet_server)]) = two_calls();
    process.signal("STOP");
    for _ in 0..FLOOD {
        loud_server.send_audio(0, b"\x58loud");
    }
    quiet_server.send_audio(0, b"\x58quiet");
    process.signal("CONT");
    let before = frames_before_quiet_call(&loud);
    assert!(before <= MAX_FRAMES_BEFORE, "{before} frames of the other call came first");
}

#[test]
fn a_flood_is_queued_once_however_many_readiness_events_it_causes() {
    let server = ChatServer::start();
    let gateway = support::gateway_with(&[server.url()], |config| config.api.metrics_need_token = false);
    let metrics = format!("http://{}/metrics", gateway.addresses().api.unwrap());
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, mut peer) = device.call(&server);
    call.send(0, b"\x58abc");
    peer.binary();

    let flooding = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            let end = Instant::now() + support::TIMEOUT;
            while flooding.load(Ordering::Relaxed) && Instant::now() < end {
                peer.send_audio(0, b"\x58loud");
            }
        });
        let waits = |_| {
            let text = ureq::get(&metrics).call().unwrap().body_mut().read_to_string().unwrap();
            let line =
                text.lines().find_map(|line| line.strip_prefix("gateway_queue_length{queue=\"leftovers\"} "));
            line.unwrap().parse::<usize>().unwrap()
        };
        let most = (0..100).map(waits).max();
        flooding.store(false, Ordering::Relaxed);
        // The chat server's connection, and the one of the resolver.
        assert!(most <= Some(2), "{most:?} pieces of work wait");
    });
}

/// The WebSocket library reads on until a fragmented message is complete.
#[test]
fn a_frame_does_not_wait_for_fragments_without_end() {
    let (process, _folder, [(loud, mut loud_server), (_quiet, mut quiet_server)]) = two_calls();
    process.signal("STOP");
    let first = audio_frame(0, b"\x58loud");
    let mut message = vec![0x02, first.len() as u8];
    message.extend(first);
    // Empty ones, so that the message never gets too long.
    message.extend([0x00, 0].repeat(80_000));
    message.extend([0x80, 0]);
    // Everything has arrived before the gateway polls.
    let tcp = loud_server.tcp().unwrap();
    SockRef::from(tcp).set_send_buffer_size(1 << 20).unwrap();
    tcp.set_nonblocking(true).unwrap();
    loud_server.send_raw(&message);
    quiet_server.send_audio(0, b"\x58quiet");
    process.signal("CONT");
    assert_eq!(frames_before_quiet_call(&loud), 0);
}

/// The loop serves each connection a little at a time.
#[test]
fn a_ping_does_not_wait_for_all_that_a_hundred_devices_send() {
    const DEVICES: u8 = 100;
    const PINGS: usize = 8192;
    let folder = Folder::new().with_file(
        "gateway.json",
        r#"{"mqtt":{"host":"127.0.0.1"},"udp":{"host":"127.0.0.1"},"mcp":{"enabled":false}}"#,
    );
    let process = folder.start("-c gateway.json", &[]);
    let connect = |number| Client::log_in(process.mqtt(), &Connect::new(&client_id(number)));
    let mut quiet = connect(0);
    let mut loud: Vec<Client> = (1..=DEVICES).map(connect).collect();
    process.signal("STOP");
    for client in &mut loud {
        client.send(&PINGREQ.repeat(PINGS));
    }
    quiet.send(&PINGREQ);
    process.signal("CONT");
    quiet.packet();
    process.signal("STOP");
    let mut answered = 0;
    for client in &mut loud {
        while client.packet_within(Duration::from_millis(1)).is_ok() {
            answered += 1;
        }
    }
    process.signal("CONT");
    assert!(answered < usize::from(DEVICES) * PINGS / 2, "{answered} pings of others were answered first");
}

#[test]
fn device_messages_sent_earlier_are_handled_before_its_server() {
    let server = ChatServer::start();
    let (process, _folder) = start_program(&server);
    let mut device = Device::connect(process.mqtt(), 1);
    let (_call, mut peer) = device.call(&server);

    // One poll returns both: the end of the call, then a message of its chat server.
    process.signal("STOP");
    device.send_text(r#"{"type":"goodbye"}"#);
    peer.send_text(r#"{"type":"stt","text":"too late"}"#);
    process.signal("CONT");
    peer.expect_close(1000);
    device.mqtt.assert_nothing_pending();
}
