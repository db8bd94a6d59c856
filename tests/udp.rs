//! Which datagrams count: lost, duplicated, reordered, spoofed and malformed ones, and changes of the source address.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::{Config, PeerPolicy};
use mqtt_websocket_proxy::net::Running;
use serde_json::json;
use support::audio::Call;
use support::chat_server::{ChatServer, Message, Peer, audio_frame};
use support::device::{Device, HELLO, client_id};
use support::gateway_with;
use support::http::http_call;
use support::log_capture::{LogCapture, log_field};

const MS: fn(u64) -> Duration = Duration::from_millis;

struct Fixture {
    gateway: Running,
    server: ChatServer,
    device: Device,
    call: Call,
    peer: Peer,
    log: LogCapture,
}

fn fixture(number: u8, change: impl FnOnce(&mut Config)) -> Fixture {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], change);
    let log = LogCapture::containing(client_id(number));
    let mut device = Device::connect(gateway.addresses().mqtt, number);
    let (call, peer) = device.call(&server);
    Fixture { gateway, server, device, call, peer, log }
}

impl Fixture {
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

    /// The chat server got exactly these.
    fn assert_arrived(&mut self, sequences: &[u32]) {
        for &sequence in sequences {
            assert_eq!(self.peer.binary(), audio_frame(sequence, b"\x58a"), "instead of {sequence}");
        }
        // The datagrams were sent before this text, so the loop has read them when the text arrives.
        self.device.send_text(r#"{"type":"custom","mark":1}"#);
        assert_eq!(self.peer.json()["mark"], 1);
    }

    /// The device goes on from a new port of this IP, until that is known.
    fn move_to(&mut self, ip: &str) {
        self.call.move_to(socket(ip), |limit| self.peer.binary_within(limit));
    }

    /// The call's end line.
    fn hang_up(mut self) -> String {
        self.device.send_text(r#"{"type":"goodbye"}"#);
        self.log.wait_for_line("call ends")
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
    let mut fixture = fixture(1, |_| {});
    fixture.send(&[1, 2, 2, 5, 4, 4, 3, 1, 6, 10]);
    fixture.assert_arrived(&[1, 2, 5, 6, 10]);
    let end = fixture.hang_up();
    let facts = ["up", "lost", "reordered", "duplicates"].map(|key| log_field(&end, key));
    // 4 and 3 arrived late, so they are not lost; 7, 8 and 9 never arrived.
    assert_eq!(facts, ["5p/10B", "3", "2", "3"], "{end}");
}

#[test]
fn a_replayed_call_is_dropped_whole() {
    let mut fixture = fixture(2, |_| {});
    let all: Vec<u32> = (1..=200).collect();
    fixture.send(&all);
    fixture.assert_arrived(&all);
    fixture.send(&all);
    fixture.send(&[0]);
    fixture.assert_arrived(&[]);
    fixture.send(&[201]);
    fixture.assert_arrived(&[201]);
    let end = fixture.hang_up();
    assert_eq!((log_field(&end, "duplicates"), log_field(&end, "lost")), ("64", "0"), "{end}");
}

/// One forged or damaged packet does not stall the call, and the policy makes no difference.
#[test]
fn a_far_jump_is_dropped_and_a_near_one_is_provisional() {
    for (number, policy) in [(3, PeerPolicy::Adaptive), (4, PeerPolicy::Strict)] {
        let mut fixture = fixture(number, |config| config.udp.peer_policy = policy);
        fixture.send(&[1, 2]);
        // Beyond the limit, however many.
        fixture.send(&[0x8000_0000, 65_539, 65_540, 65_541, u32::MAX, 3]);
        fixture.assert_arrived(&[1, 2, 3]);
        // Up to it: it passes, and what continues the old sequence does too.
        fixture.send(&[400, 4, 5, 6]);
        fixture.assert_arrived(&[400, 4, 5, 6]);
        // From another port of the device's address it is another source.
        fixture.send_from(&socket("127.0.0.1"), &[300, 65_000]);
        fixture.send(&[7]);
        fixture.assert_arrived(&[7]);
        // The device goes on behind a gap: eight packets settle that.
        fixture.send(&(200..=208).collect::<Vec<_>>());
        fixture.send(&[8, 209]);
        fixture.assert_arrived(&[200, 201, 202, 203, 204, 205, 206, 207, 208, 209]);
    }
}

#[test]
fn invalid_datagrams_are_dropped_and_get_no_answer() {
    let mut fixture = fixture(5, |config| config.udp.keep_alive = Duration::ZERO);
    let from = socket("127.0.0.1");
    let good = fixture.call.seal(1, 1, b"\x58a");
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let table = [
        ("empty", Vec::new()),
        ("one byte", vec![1]),
        ("half a header", good[..8].to_vec()),
        ("a header without its payload", good[..16].to_vec()),
        ("a byte short", good[..good.len() - 1].to_vec()),
        ("a byte long", [&good[..], &[0]].concat()),
        ("another type", with(0, 2)),
        ("type 0", with(0, 0)),
        ("length zero", with(3, 0)),
        ("a length that is too short", with(3, good[3] - 1)),
        ("a length that is too long", with(3, good[3] + 1)),
        ("too long a payload", fixture.call.seal(1, 1, &[0x58; 1401])),
        ("longer than the buffer", fixture.call.seal(1, 1, &[0x58; 3000])),
        ("as long as UDP allows", vec![1; 65_507]),
        ("an unknown ssrc", with(4, good[4] ^ 1)),
        ("noise", vec![0xff; 60]),
    ];
    for (what, datagram) in &table {
        // From the device's own port, and from another one of its address.
        for socket in [&from, &fixture.call.udp] {
            for _ in 0..3 {
                socket.send_to(datagram, fixture.call.gateway).unwrap();
            }
        }
        assert_eq!(fixture.peer.message_within(MS(1)), None, "{what}");
    }
    assert!(is_silent(&from));
    // None of them set the device's address.
    fixture.peer.send_audio(1, b"\x58x");
    fixture.send(&[1]);
    fixture.assert_arrived(&[1]);
    assert_eq!(fixture.call.receive().payload, b"\x58x");
    assert!(is_silent(&from));
    let end = fixture.hang_up();
    assert_eq!((log_field(&end, "up"), log_field(&end, "lost")), ("1p/2B", "0"), "{end}");
}

#[test]
fn downlink_packets_that_are_sent_back_change_nothing_and_are_counted() {
    for (number, ip) in [(20, "127.0.0.1"), (21, "127.0.0.2")] {
        let mut fixture = fixture(number, |config| {
            config.api.host = Some([127, 0, 0, 1].into());
        });
        let api = fixture.gateway.addresses().api.unwrap();
        let attacker = socket(ip);
        fixture.send(&[1]);
        fixture.assert_arrived(&[1]);
        let mut buffer = [0; 2048];
        let downlink: Vec<_> = (1..=6)
            .map(|n| {
                fixture.peer.send_audio(n, b"\x58x");
                let len = fixture.call.udp.recv(&mut buffer).unwrap();
                buffer[..len].to_vec()
            })
            .collect();
        // From then on another address may be adopted.
        std::thread::sleep(MS(2_100));
        for datagram in &downlink {
            attacker.send_to(datagram, fixture.call.gateway).unwrap();
        }
        if ip == "127.0.0.1" {
            // From the device's own port too.
            downlink.iter().for_each(|datagram| fixture.call.send_raw(datagram));
        }
        fixture.assert_arrived(&[]);
        let count = if ip == "127.0.0.1" { 12 } else { 6 };
        let (_, metrics) = http_call(api, "GET", "/metrics", None, None);
        let sample = format!("gateway_audio_discarded_total{{reason=\"flags\"}} {count}\n");
        assert!(metrics.contains(&sample), "{metrics}");
        fixture.peer.send_audio(7, b"\x58y");
        assert_eq!(fixture.call.receive().payload, b"\x58y");
        assert!(is_silent(&attacker));
        fixture.send(&[2]);
        fixture.assert_arrived(&[2]);
        let end = fixture.hang_up();
        let facts = ["up", "lost", "duplicates"].map(|key| log_field(&end, key));
        assert_eq!(facts, ["2p/4B", "0", "0"], "{end}");
    }
}

/// As when a NAT forgets the flow, and with `strict` too.
#[test]
fn a_new_port_is_taken_when_the_old_one_is_silent_and_no_packet_is_lost() {
    for (number, policy) in [(7, PeerPolicy::Adaptive), (19, PeerPolicy::Strict)] {
        let mut fixture = fixture(number, |config| config.udp.peer_policy = policy);
        let old = fixture.call.udp.try_clone().unwrap();
        let heard = Instant::now();
        fixture.call.send(0, b"\x58a");
        fixture.peer.binary();
        fixture.move_to("127.0.0.1");
        assert!(heard.elapsed() >= MS(990), "{:?}", heard.elapsed());
        fixture.peer.send_audio(2, b"\x58y");
        assert_eq!(fixture.call.receive().payload, b"\x58y");
        old.set_read_timeout(Some(MS(150))).unwrap();
        assert!(is_silent(&old));
        let end = fixture.hang_up();
        assert_eq!((log_field(&end, "lost"), log_field(&end, "dropped")), ("0", "0"), "{end}");
    }
}

/// As when a device changes to another Wi-Fi: its MQTT connection is still that of the old one.
#[test]
fn another_ip_is_taken_when_the_device_is_silent_and_the_device_takes_its_call_back() {
    let mut fixture = fixture(8, |_| {});
    let old = fixture.call.udp.try_clone().unwrap();
    let heard = Instant::now();
    fixture.call.send(0, b"\x58a");
    fixture.peer.binary();
    fixture.move_to("127.0.0.2");
    assert!(heard.elapsed() >= MS(1_990), "{:?}", heard.elapsed());
    fixture.peer.send_audio(2, b"\x58y");
    assert_eq!(fixture.call.receive().payload, b"\x58y");
    // The address of the MQTT connection needs two, with any sequence above its own.
    fixture.send_from(&old, &[2]);
    fixture.assert_arrived(&[]);
    fixture.send_from(&old, &[3, 4]);
    fixture.assert_arrived(&[2, 3, 4]);
    let roamed = std::mem::replace(&mut fixture.call.udp, old);
    fixture.peer.send_audio(3, b"\x58z");
    assert_eq!(fixture.call.receive().payload, b"\x58z");
    roamed.set_read_timeout(Some(MS(150))).unwrap();
    assert!(is_silent(&roamed));
}

/// As through Docker's bridge: MQTT comes from one address, audio from another.
#[test]
fn another_ip_is_taken_after_eight_good_packets_when_none_is_known() {
    let mut fixture = fixture(9, |_| {});
    let foreign = socket("127.0.0.2");
    fixture.send_from(&foreign, &[1, 2, 3, 4, 5, 6, 7]);
    fixture.assert_arrived(&[]);
    fixture.peer.send_audio(1, b"\x58x");
    assert!(is_silent(&foreign), "not before it is taken");
    fixture.send_from(&foreign, &[8, 9]);
    fixture.assert_arrived(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    fixture.call.udp = foreign;
    assert_eq!(fixture.call.receive().payload, b"\x58x");
}

#[test]
fn another_ip_is_not_taken_when_its_packets_are_not_plausible() {
    let mut fixture = fixture(22, |_| {});
    let foreign = socket("127.0.0.2");
    // Other sockets in between; another Opus configuration each time; no Opus.
    let others = [socket("127.0.0.2"), socket("127.0.0.3")];
    for sequence in 20..34 {
        fixture.send_from(&others[sequence as usize % 2], &[sequence]);
    }
    for sequence in 40..60u32 {
        let opus = [(sequence as u8) << 3, 1];
        foreign.send_to(&fixture.call.seal(0, sequence, &opus), fixture.call.gateway).unwrap();
        foreign.send_to(&fixture.call.seal(0, sequence, b"\x5b\x31"), fixture.call.gateway).unwrap();
    }
    // Wrong keys make noise, whose first bytes differ.
    let mut wrong = fixture.call.seal(0, 60, b"\x58a");
    for sequence in 60..80u32 {
        wrong[12..16].copy_from_slice(&sequence.to_be_bytes());
        foreign.send_to(&wrong, fixture.call.gateway).unwrap();
    }
    fixture.assert_arrived(&[]);
    // The device's own first packet is still accepted.
    fixture.send(&[1]);
    fixture.assert_arrived(&[1]);
    assert!(is_silent(&foreign));
}

#[test]
fn no_other_source_is_taken_while_the_device_sends() {
    let mut fixture = fixture(10, |config| config.api.host = Some([127, 0, 0, 1].into()));
    let api = fixture.gateway.addresses().api.unwrap();
    fixture.send(&[1]);
    let others = [socket("127.0.0.2"), socket("127.0.0.1")];
    let sequences: Vec<_> = (2..40).collect();
    others.iter().for_each(|other| fixture.send_from(other, &sequences));
    fixture.assert_arrived(&[1]);
    // They did not advance the sequence either.
    fixture.send(&[2]);
    fixture.assert_arrived(&[2]);
    fixture.peer.send_audio(1, b"\x58x");
    assert_eq!(fixture.call.receive().payload, b"\x58x");
    assert!(others.iter().all(is_silent));
    let (_, metrics) = http_call(api, "GET", "/metrics", None, None);
    let sample = "gateway_audio_discarded_total{reason=\"path_held\"} 76\n";
    assert!(metrics.contains(sample), "{metrics}");
    let end = fixture.hang_up();
    let facts = ["up", "lost", "duplicates", "dropped"].map(|key| log_field(&end, key));
    assert_eq!(facts, ["2p/4B", "0", "0", "76"], "{end}");
}

/// Packets of somebody who knows the ssrc, but not the key.
#[test]
fn a_flood_of_random_packets_wins_no_call() {
    for (number, ip, known) in [(23, "127.0.0.2", true), (24, "127.0.0.1", true), (25, "127.0.0.2", false)] {
        let mut fixture = fixture(number, |_| {});
        if known {
            fixture.send(&[1]);
            fixture.assert_arrived(&[1]);
        }
        let attacker = socket(ip);
        let mut datagram = fixture.call.seal(0, 1, &[0; 48]);
        for n in 0..27_000_u32 {
            datagram[12..16].copy_from_slice(&(2 + n / 54).to_be_bytes());
            for (at, byte) in datagram[16..].iter_mut().enumerate() {
                *byte = (n.wrapping_mul(0x9e37_79b9) >> (at % 24)) as u8 ^ at as u8;
            }
            attacker.send_to(&datagram, fixture.call.gateway).unwrap();
            if n % 64 == 63 {
                // As fast as the gateway reads, since the system drops what it cannot queue.
                fixture.assert_arrived(&[]);
            }
        }
        fixture.peer.send_audio(1, b"\x58x");
        fixture.send(&[2]);
        fixture.assert_arrived(&[2]);
        assert_eq!(fixture.call.receive().payload, b"\x58x");
        assert!(is_silent(&attacker));
    }
}

/// One in 80 of the packets of somebody who has not the key looks like the device's.
#[test]
fn what_is_forged_as_if_from_the_device_is_taken_back_by_six_packets() {
    for forged in [&[84][..], &[84, 148, 212, 276, 340, 404, 468, 532, 596, 660]] {
        let mut fixture = fixture(26, |_| {});
        let sequences: Vec<_> = (1..=20).collect();
        fixture.send(&sequences);
        fixture.assert_arrived(&sequences);
        fixture.send(forged);
        fixture.assert_arrived(forged);
        fixture.send(&(21..=60).collect::<Vec<_>>());
        fixture.assert_arrived(&(26..=60).collect::<Vec<_>>());
        let end = fixture.hang_up();
        assert_eq!(
            log_field(&end, "up"),
            format!("{0}p/{1}B", 55 + forged.len(), 2 * (55 + forged.len())),
            "{end}"
        );
    }
}

/// Such as another machine behind the same router, or on Docker's bridge.
#[test]
fn whoever_was_the_first_at_the_devices_ip_does_not_keep_its_call() {
    let mut fixture = fixture(27, |_| {});
    let attacker = socket("127.0.0.1");
    fixture.send_from(&attacker, &[1]);
    fixture.assert_arrived(&[1]);
    for sequence in 1..=40_u32 {
        let random = [(sequence * 23 % 64) as u8 * 4, 1];
        attacker.send_to(&fixture.call.seal(0, sequence + 1, &random), fixture.call.gateway).unwrap();
        fixture.send(&[sequence]);
    }
    fixture.peer.send_audio(1, b"\x58x");
    assert_eq!(fixture.call.receive().payload, b"\x58x");
    assert!(is_silent(&attacker));
}

#[test]
fn a_strict_policy_takes_no_other_ip() {
    let mut fixture = fixture(11, |config| config.udp.peer_policy = PeerPolicy::Strict);
    let foreign = socket("127.0.0.2");
    fixture.send_from(&foreign, &(1..40).collect::<Vec<_>>());
    fixture.assert_arrived(&[]);
    fixture.send_from(&socket("127.0.0.1"), &[1]);
    fixture.assert_arrived(&[1]);
}

#[test]
fn each_hello_resets_the_source_address_and_the_sequence() {
    let mut fixture = fixture(12, |_| {});
    fixture.send(&[1, 2, 3]);
    fixture.assert_arrived(&[1, 2, 3]);
    fixture.device.send_text(HELLO);
    let mut peer = fixture.server.accept();
    peer.upgrade();
    // The old call ends with the hello, before the reply.
    fixture.call.send_raw(&fixture.call.seal(4, 4, b"\x58a"));
    peer.exchange_hello("next");
    let old = std::mem::replace(&mut fixture.call, fixture.device.hello_reply());
    let mut old_peer = std::mem::replace(&mut fixture.peer, peer);
    assert_ne!((fixture.call.key, fixture.call.ssrc()), (old.key, old.ssrc()));
    assert!(old_peer.expect_close(1000).is_some());
    // Packets of the old call that are still on their way are dropped.
    old.send_raw(&old.seal(5, 5, b"\x58a"));
    fixture.peer.send_audio(5, b"\x58x");
    fixture.assert_arrived(&[]);
    fixture.send(&[1]);
    fixture.assert_arrived(&[1]);
    assert_eq!(fixture.call.receive().sequence(), 1);
    assert_eq!(old.receive_within(MS(1)), None);
}

#[cfg(target_os = "linux")]
#[test]
fn the_answer_leaves_from_the_address_the_device_sends_to() {
    let mut fixture = fixture(13, |config| config.udp.host = [0, 0, 0, 0].into());
    let port = fixture.call.gateway.port();
    for (n, address) in [(1, [127, 0, 0, 5]), (2, [127, 0, 0, 1]), (3, [127, 0, 0, 9])] {
        fixture.call.gateway = SocketAddr::from((address, port));
        fixture.send(&[n]);
        assert_eq!(fixture.peer.binary(), audio_frame(n, b"\x58a"));
        fixture.peer.send_audio(n, b"\x58x");
        // Also checks the source address.
        assert_eq!(fixture.call.receive().timestamp(), n);
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

fn fixture_with_alert(number: u8, alert: bool, warn_after: Duration) -> Fixture {
    fixture(number, |config| {
        config.udp.first_packet_warn = warn_after;
        config.udp.first_packet_alert = alert;
    })
}

#[test]
fn a_device_without_incoming_audio_gets_an_alert_for_each_listen() {
    let mut fixture = fixture_with_alert(15, true, MS(300));
    // Before it listens, no audio is expected.
    assert!(fixture.device.mqtt.packet_within(MS(400)).is_err());
    // Invalid datagrams arrive from its IP.
    let other = socket("127.0.0.1");
    (0..3).for_each(|_| drop(other.send_to(b"junk", fixture.call.gateway)));
    fixture.device.send_text(r#"{"type":"listen","state":"start","mode":"auto"}"#);
    fixture.peer.json();
    let alert = fixture.device.json();
    assert_eq!((&alert["type"], &alert["session_id"]), (&"alert".into(), &"server-session".into()));
    assert!(["status", "message", "emotion"].iter().all(|key| alert[*key].is_string()), "{alert}");
    let line = fixture.log.wait_for_line(&fixture.call.gateway.to_string());
    assert!(line.starts_with("WARN") && line.contains("3 datagrams"), "{line}");
    assert!(fixture.device.mqtt.packet_within(MS(500)).is_err(), "once");
    fixture.device.send_text(r#"{"type":"listen","state":"start","mode":"auto"}"#);
    assert_eq!(fixture.device.json()["type"], "alert");
    fixture.log.wait_for_line(&fixture.call.gateway.to_string());
}

#[test]
fn the_alert_can_be_switched_off_but_not_the_line() {
    let mut fixture = fixture_with_alert(16, false, MS(300));
    fixture.device.send_text(r#"{"type":"listen","state":"start","mode":"auto"}"#);
    let line = fixture.log.wait_for_line(&fixture.call.gateway.to_string());
    assert!(line.contains("no UDP packet"), "{line}");
    fixture.device.mqtt.assert_nothing_pending();
}

#[test]
fn a_device_with_incoming_audio_gets_no_alert() {
    let mut fixture = fixture_with_alert(17, true, MS(3_000));
    fixture.device.send_text(r#"{"type":"listen","state":"start","mode":"auto"}"#);
    fixture.send(&[1]);
    assert!(fixture.device.mqtt.packet_within(MS(3_200)).is_err());
    assert_eq!(fixture.log.count("WARN"), 0);
}

#[test]
fn a_flood_of_unknown_datagrams_does_not_starve_a_call() {
    let mut fixture = fixture(18, |_| {});
    let gateway = fixture.call.gateway;
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
        fixture.send(&[n]);
        fixture.peer.send_audio(n, b"\x58x");
        if let Some(Message::Binary(_)) = fixture.peer.message_within(MS(100)) {
            heard += 1;
        }
    }
    fixture.peer.send_text(&json!({"type": "stt"}).to_string());
    assert_eq!(fixture.device.json()["type"], "stt");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    flood.join().unwrap();
    // The system may drop some of what it cannot queue.
    assert!(heard > 50, "{heard} of 200");
}
