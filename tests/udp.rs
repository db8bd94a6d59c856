//! Datagrams as networks deliver them, and as nobody should send them.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use mqtt_websocket_proxy::config::{Config, PeerPolicy};
use mqtt_websocket_proxy::net::Running;
use serde_json::json;
use support::audio::Call;
use support::chat::{ChatServer, Message, Peer, headed};
use support::device::{Device, client_id};
use support::gateway_with;
use support::logged::{Logged, fact};

const MS: fn(u64) -> Duration = Duration::from_millis;

struct Scene {
    gateway: Running,
    _server: ChatServer,
    device: Device,
    call: Call,
    peer: Peer,
    log: Logged,
}

fn scene(number: u8, change: impl FnOnce(&mut Config)) -> Scene {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], change);
    let log = Logged::about(client_id(number));
    let mut device = Device::connect(gateway.addresses().mqtt, number);
    let (call, peer) = device.call(&server);
    Scene { gateway, _server: server, device, call, peer, log }
}

impl Scene {
    /// Sends packets with these sequences; each has its sequence as timestamp.
    fn send(&self, sequences: &[u32]) {
        for &sequence in sequences {
            self.call.send_raw(&self.call.seal(sequence, sequence, b"\x58a"));
        }
    }

    fn send_from(&self, socket: &UdpSocket, sequences: &[u32]) {
        for &sequence in sequences {
            socket.send_to(&self.call.seal(sequence, sequence, b"\x58a"), self.call.gateway).unwrap();
        }
    }

    /// The chat server got these, and no others.
    fn assert_arrived(&mut self, sequences: &[u32]) {
        for &sequence in sequences {
            assert_eq!(self.peer.binary(), headed(sequence, b"\x58a"), "instead of {sequence}");
        }
        // Datagrams were all received before this text: the loop has seen them when it answers on the same socket.
        self.device.say(r#"{"type":"custom","mark":1}"#);
        assert_eq!(self.peer.json()["mark"], 1);
    }

    /// The call's end line.
    fn end(mut self) -> String {
        self.device.say(r#"{"type":"goodbye"}"#);
        self.log.line("call ends")
    }
}

fn socket(ip: &str) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.set_read_timeout(Some(MS(150))).unwrap();
    socket
}

fn is_silent(socket: &UdpSocket) -> bool {
    socket.recv(&mut [0; 2048]).is_err()
}

#[test]
fn duplicates_late_and_lost_packets_are_told_apart() {
    let mut scene = scene(1, |_| {});
    scene.send(&[1, 2, 2, 5, 4, 4, 3, 1, 6, 10]);
    scene.assert_arrived(&[1, 2, 5, 6, 10]);
    let end = scene.end();
    let facts = ["up", "lost", "reordered", "duplicates"].map(|key| fact(&end, key));
    // 4 and 3 came late and are lost no more; 7, 8 and 9 never came.
    assert_eq!(facts, ["5p/10B", "3", "2", "3"], "{end}");
}

#[test]
fn a_replayed_call_is_dropped_whole() {
    let mut scene = scene(2, |_| {});
    let all: Vec<u32> = (1..=200).collect();
    scene.send(&all);
    scene.assert_arrived(&all);
    scene.send(&all);
    scene.send(&[0]);
    scene.assert_arrived(&[]);
    scene.send(&[201]);
    scene.assert_arrived(&[201]);
    let end = scene.end();
    assert_eq!((fact(&end, "duplicates"), fact(&end, "lost")), ("64", "0"), "{end}");
}

#[test]
fn a_jump_needs_three_packets_in_a_row() {
    let mut scene = scene(3, |_| {});
    scene.send(&[1, 65_537, 65_538]);
    scene.assert_arrived(&[1, 65_537, 65_538]);
    // Further than 65,536 ahead: one corrupted packet moves nothing ..
    let far = 0x8000_0000;
    scene.send(&[far, 65_539, far + 5, far + 6, 65_540, far + 7, 65_541]);
    scene.assert_arrived(&[65_539, 65_540, 65_541]);
    // .. three are believed, and only the third is forwarded.
    scene.send(&[far, far + 1, far + 2, far + 3, 65_542]);
    scene.assert_arrived(&[far + 2, far + 3]);
}

#[test]
fn the_last_sequences_do_not_overflow() {
    let mut scene = scene(4, |_| {});
    let top = u32::MAX;
    scene.send(&[top - 3, top - 2, top - 1, top, 0, 1]);
    scene.assert_arrived(&[top - 1, top]);
}

#[test]
fn datagrams_that_are_none_cost_nothing_and_get_no_answer() {
    let mut scene = scene(5, |_| {});
    let from = socket("127.0.0.1");
    let good = scene.call.seal(1, 1, b"\x58a");
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let long = scene.call.seal(1, 1, &[0x58; 1401]);
    let huge = scene.call.seal(1, 1, &[0x58; 3000]);
    let table = [
        ("empty", Vec::new()),
        ("one byte", vec![1]),
        ("half a header", good[..8].to_vec()),
        ("a header alone", scene.call.seal(1, 1, b"")),
        ("truncated", good[..good.len() - 1].to_vec()),
        ("with a tail", [&good[..], &[0]].concat()),
        ("another type", with(0, 2)),
        ("length zero", with(3, 0)),
        ("too long a payload", long),
        ("longer than the buffer", huge),
        ("an unknown ssrc", with(4, good[4] ^ 1)),
        ("noise", vec![0xff; 60]),
    ];
    for (what, datagram) in &table {
        for _ in 0..3 {
            from.send_to(datagram, scene.call.gateway).unwrap();
        }
        scene.send_from(&from, &[]);
        assert_eq!(scene.peer.message_within(MS(1)), None, "{what}");
    }
    assert!(is_silent(&from));
    // None of them was taken for the device.
    scene.peer.send_audio(1, b"\x58x");
    scene.send(&[1]);
    scene.assert_arrived(&[1]);
    assert_eq!(scene.call.receive().payload, b"\x58x");
    assert!(is_silent(&from));
    let end = scene.end();
    assert_eq!((fact(&end, "up"), fact(&end, "lost")), ("1p/2B", "0"), "{end}");
}

#[test]
fn payloads_of_1400_bytes_pass_both_ways() {
    let mut scene = scene(6, |_| {});
    let opus = [&[0x58][..], &[7; 1399]].concat();
    scene.call.send(1, &opus);
    assert_eq!(scene.peer.binary(), headed(1, &opus));
    scene.peer.send_audio(1, &[&opus[..], &[0]].concat());
    scene.peer.send_audio(2, &opus);
    let audio = scene.call.receive();
    assert_eq!((audio.timestamp(), audio.sequence(), audio.payload), (2, 1, opus));
}

#[test]
fn a_new_port_is_followed_at_once_on_a_newer_sequence() {
    let mut scene = scene(7, |_| {});
    scene.send(&[1, 2]);
    scene.assert_arrived(&[1, 2]);
    let (old, new) = (socket("127.0.0.1"), socket("127.0.0.1"));
    // An old packet from elsewhere moves nothing.
    scene.send_from(&old, &[2]);
    scene.assert_arrived(&[]);
    scene.peer.send_audio(1, b"\x58x");
    assert_eq!(scene.call.receive().payload, b"\x58x");
    scene.send_from(&new, &[3]);
    scene.assert_arrived(&[3]);
    scene.peer.send_audio(2, b"\x58y");
    scene.call.udp = new;
    assert_eq!(scene.call.receive().payload, b"\x58y");
    assert!(is_silent(&old));
}

#[test]
fn another_ip_is_adopted_after_three_good_packets_when_none_is_known() {
    let mut scene = scene(8, |_| {});
    let foreign = socket("127.0.0.2");
    scene.send_from(&foreign, &[1, 2]);
    scene.assert_arrived(&[]);
    scene.peer.send_audio(1, b"\x58x");
    assert!(is_silent(&foreign), "not before it is adopted");
    scene.send_from(&foreign, &[3, 4]);
    scene.assert_arrived(&[3, 4]);
    scene.call.udp = foreign;
    assert_eq!(scene.call.receive().payload, b"\x58x");
}

#[test]
fn another_ip_is_not_adopted_when_its_packets_are_not_plausible() {
    let mut scene = scene(9, |_| {});
    let foreign = socket("127.0.0.2");
    // Not consecutive; other sockets in between; another Opus configuration each time.
    scene.send_from(&foreign, &[1, 3, 5, 7, 9, 11]);
    let others = [socket("127.0.0.2"), socket("127.0.0.3")];
    for sequence in 20..30 {
        scene.send_from(&others[sequence as usize % 2], &[sequence]);
    }
    for sequence in 40..50u32 {
        let opus = [(sequence as u8) << 3, 1];
        foreign.send_to(&scene.call.seal(0, sequence, &opus), scene.call.gateway).unwrap();
    }
    // Wrong keys make noise, whose first bytes differ.
    let mut wrong = scene.call.seal(0, 60, b"\x58a");
    for sequence in 60..70u32 {
        wrong[12..16].copy_from_slice(&sequence.to_be_bytes());
        foreign.send_to(&wrong, scene.call.gateway).unwrap();
    }
    scene.assert_arrived(&[]);
    // And the device's own first packet is as good as ever.
    scene.send(&[1]);
    scene.assert_arrived(&[1]);
    assert!(is_silent(&foreign));
}

#[test]
fn another_ip_is_not_adopted_while_the_device_is_heard() {
    let mut scene = scene(10, |_| {});
    scene.send(&[1]);
    let foreign = socket("127.0.0.2");
    scene.send_from(&foreign, &[2, 3, 4, 5, 6]);
    scene.assert_arrived(&[1]);
    // The sequence was not moved by them either.
    scene.send(&[2]);
    scene.assert_arrived(&[2]);
    scene.peer.send_audio(1, b"\x58x");
    assert_eq!(scene.call.receive().payload, b"\x58x");
    assert!(is_silent(&foreign));
    let end = scene.end();
    assert_eq!(
        (fact(&end, "up"), fact(&end, "lost"), fact(&end, "duplicates")),
        ("2p/4B", "0", "0"),
        "{end}"
    );
}

#[test]
fn a_strict_policy_adopts_nobody() {
    let mut scene = scene(11, |config| config.udp.peer_policy = PeerPolicy::Strict);
    let foreign = socket("127.0.0.2");
    scene.send_from(&foreign, &[1, 2, 3, 4, 5]);
    scene.assert_arrived(&[]);
    scene.send_from(&socket("127.0.0.1"), &[1]);
    scene.assert_arrived(&[1]);
}

#[test]
fn each_hello_forgets_the_address_and_the_sequence() {
    let mut scene = scene(12, |_| {});
    scene.send(&[1, 2, 3]);
    scene.assert_arrived(&[1, 2, 3]);
    let old = scene.call;
    let server = ChatServer::start();
    let mut config = support::config(&[server.url()]);
    config.mcp.enabled = false;
    scene.gateway.handle().reload(config);
    // Whatever server takes it: the reload applies to the next dial.
    scene.device.mqtt.assert_quiet();
    scene.device.say(support::device::HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    peer.greet("next");
    scene.call = scene.device.answered();
    scene.peer = peer;
    assert_ne!((scene.call.key, scene.call.ssrc()), (old.key, old.ssrc()));
    // Packets of the old call, which may still be on their way, are unknown.
    old.send_raw(&old.seal(4, 4, b"\x58a"));
    scene.peer.send_audio(5, b"\x58x");
    scene.assert_arrived(&[]);
    scene.send(&[1]);
    scene.assert_arrived(&[1]);
    assert_eq!(scene.call.receive().sequence(), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn the_answer_leaves_from_the_address_the_device_sends_to() {
    let mut scene = scene(13, |config| config.udp.host = [0, 0, 0, 0].into());
    let port = scene.call.gateway.port();
    for (n, address) in [(1, [127, 0, 0, 5]), (2, [127, 0, 0, 1]), (3, [127, 0, 0, 9])] {
        scene.call.gateway = SocketAddr::from((address, port));
        scene.send(&[n]);
        assert_eq!(scene.peer.binary(), headed(n, b"\x58a"));
        scene.peer.send_audio(n, b"\x58x");
        // Asserts where it came from.
        assert_eq!(scene.call.receive().timestamp(), n);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_device_is_told_the_address_it_reached() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| {
        config.mqtt.host = [0, 0, 0, 0].into();
        config.udp.host = [0, 0, 0, 0].into();
    });
    let port = gateway.addresses().mqtt.port();
    let mut device = Device::connect(SocketAddr::from(([127, 0, 0, 6], port)), 14);
    let (mut call, mut peer) = device.call(&server);
    assert_eq!(call.reply["udp"]["server"], "127.0.0.6");
    call.send(1, b"\x58a");
    peer.binary();
    peer.send_audio(2, b"\x58b");
    assert_eq!(call.receive().payload, b"\x58b");
}

fn warned(number: u8, alert: bool) -> Scene {
    scene(number, |config| {
        config.udp.first_packet_warn = MS(300);
        config.udp.first_packet_alert = alert;
    })
}

#[test]
fn a_device_that_is_not_heard_is_told_once() {
    let mut scene = warned(15, true);
    // Before it listens nothing is expected of it.
    assert!(scene.device.mqtt.packet_within(MS(400)).is_err());
    // Something comes from its IP, but nothing that counts.
    let other = socket("127.0.0.1");
    (0..3).for_each(|_| drop(other.send_to(b"junk", scene.call.gateway)));
    scene.device.say(r#"{"type":"listen","state":"start","mode":"auto"}"#);
    scene.peer.json();
    let alert = scene.device.json();
    assert_eq!((&alert["type"], &alert["session_id"]), (&"alert".into(), &"server-session".into()));
    assert!(["status", "message", "emotion"].iter().all(|key| alert[*key].is_string()), "{alert}");
    let line = scene.log.line(&scene.call.gateway.to_string());
    assert!(line.starts_with("WARN") && line.contains("3 datagrams"), "{line}");
    // Only the first listen of a call counts.
    scene.device.say(r#"{"type":"listen","state":"start","mode":"auto"}"#);
    assert!(scene.device.mqtt.packet_within(MS(500)).is_err());
    assert_eq!(scene.log.count(&scene.call.gateway.to_string()), 0);
}

#[test]
fn the_alert_can_be_switched_off_but_not_the_line() {
    let mut scene = warned(16, false);
    scene.device.say(r#"{"type":"listen","state":"start","mode":"auto"}"#);
    let line = scene.log.line(&scene.call.gateway.to_string());
    assert!(line.contains("no datagram"), "{line}");
    scene.device.mqtt.assert_quiet();
}

#[test]
fn a_device_that_is_heard_is_told_nothing() {
    let mut scene = warned(17, true);
    scene.device.say(r#"{"type":"listen","state":"start","mode":"auto"}"#);
    scene.send(&[1]);
    assert!(scene.device.mqtt.packet_within(MS(500)).is_err());
    assert_eq!(scene.log.count("WARN"), 0);
}

#[test]
fn a_flood_of_unknown_datagrams_does_not_starve_a_call() {
    let mut scene = scene(18, |_| {});
    let gateway = scene.call.gateway;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let flood = std::thread::spawn(move || {
        let socket = socket("127.0.0.1");
        let mut datagram = [1; 100];
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            for n in 0..64u8 {
                datagram[5] = n;
                let _ = socket.send_to(&datagram, gateway);
            }
            std::thread::yield_now();
        }
    });
    let mut heard = 0;
    for n in 1..=200 {
        scene.send(&[n]);
        scene.peer.send_audio(n, b"\x58x");
        if let Some(Message::Binary(_)) = scene.peer.message_within(MS(100)) {
            heard += 1;
        }
    }
    scene.peer.say(&json!({"type": "stt"}).to_string());
    assert_eq!(scene.device.json()["type"], "stt");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flood.join().unwrap();
    // The system may drop some of what it cannot queue.
    assert!(heard > 150, "{heard} of 200");
}
