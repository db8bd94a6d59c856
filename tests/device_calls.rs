//! Calls between devices over real sockets: two devices of one worker or of two, their chat servers, and a console that uses the API.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::{Config, Secret};
use mqtt_websocket_proxy::net::Running;
use serde_json::{Value, json};
use support::audio::Call;
use support::chat_server::{ChatServer, Peer};
use support::device::{Device, HELLO, client_id, mac};
use support::host::wait_until;
use support::http::http_call;
use support::log_capture::{LogCapture, log_field};
use support::mqtt::{Client, Connect, DISCONNECT, PacketError};
use support::{TIMEOUT, gateway_with};

/// 60 ms of silence, as libopus decodes it.
const SILENCE: &[u8] = b"\xfb\x03\xff\xfe\xff\xfe\xff\xfe";

/// Asked for by a gateway with a key only.
const API_TOKEN: &str = "a-static-token-for-tests";

struct Fixture {
    gateway: Running,
    server: ChatServer,
    /// First device number of the test, so that its log lines can be distinguished from those of other tests.
    base: u8,
}

/// Of two workers, one serves the devices with even numbers and the other those with odd ones.
fn at_one_worker_and_two(test: impl Fn(usize)) {
    [1, 2].into_iter().for_each(test);
}

/// A device in a call.
struct Party {
    device: Device,
    call: Call,
    peer: Peer,
}

impl Fixture {
    fn new(workers: usize, base: u8) -> Self {
        Self::with_config(workers, base, |_| {})
    }

    fn with_config(workers: usize, base: u8, change: impl FnOnce(&mut Config)) -> Self {
        let server = ChatServer::start();
        let gateway = gateway_with(&[server.url()], |config| {
            config.websocket.send_goodbye = true;
            config.workers = workers;
            change(config);
        });
        Self { gateway, server, base }
    }

    fn device(&self, number: u8) -> Device {
        Device::connect(self.gateway.addresses().mqtt, self.base + number)
    }

    fn mac(&self, number: u8) -> String {
        mac(self.base + number)
    }

    fn log(&self, number: u8) -> LogCapture {
        LogCapture::containing(client_id(self.base + number))
    }

    /// A device in a call with its chat server, which has received audio.
    fn party_in_call(&self, number: u8) -> Party {
        self.start_call(self.device(number), number)
    }

    fn start_call(&self, mut device: Device, number: u8) -> Party {
        device.send_text(HELLO);
        let mut peer = self.server.accept();
        peer.upgrade();
        peer.exchange_hello(&session_id(number));
        let mut call = device.hello_reply();
        call.send(1, b"\x58first");
        peer.binary();
        Party { device, call, peer }
    }

    /// Two devices, 1 and 2, in a call with each other.
    fn connected_parties(&self) -> (Device, Call, Device, Call) {
        let (a, b) = (self.party_in_call(1), self.party_in_call(2));
        assert_eq!(self.request(1, 2)["status"], "pending");
        assert_eq!(self.accept(2)["status"], "bridged");
        let (Party { device: mut a, call: a_call, .. }, Party { device: mut b, call: b_call, .. }) = (a, b);
        assert_eq!(a.json()["type"], "call_accepted");
        assert_eq!(b.json()["type"], "mcp");
        (a, a_call, b, b_call)
    }

    fn http(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let body = (method == "POST").then_some(body);
        http_call(self.gateway.addresses().api.unwrap(), method, path, body, Some(API_TOKEN))
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.http("POST", path, &body.to_string());
        (status, serde_json::from_str(&text).unwrap())
    }

    fn request(&self, caller: u8, target: u8) -> Value {
        let body = json!({ "caller_mac": self.mac(caller), "target_mac": self.mac(target), "caller_nickname": "Ann" });
        let (status, answer) = self.post("/api/call/request", &body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    fn accept(&self, target: u8) -> Value {
        let (status, answer) = self.post("/api/call/accept", &json!({ "mac": self.mac(target) }));
        assert_eq!(status, 200, "{answer}");
        answer
    }

    fn hang_up(&self, number: u8) -> u16 {
        self.post("/api/call/hangup", &json!({ "mac": self.mac(number) })).0
    }

    /// The value of this sample in `/metrics`.
    fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.http("GET", "/metrics", "");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("{name} in {text}"));
        line.trim().parse().unwrap()
    }
}

fn session_id(number: u8) -> String {
    format!("session-{number}")
}

/// Audio passes both ways, byte for byte, each with the receiver's ssrc and next sequence.
fn assert_audio_delivered(from: &mut Call, to: &Call, opus: &[u8]) -> u32 {
    from.send(4711, opus);
    let heard = to.receive();
    assert_eq!(heard.payload, opus);
    assert_eq!((heard.ssrc(), heard.timestamp()), (to.ssrc(), 0));
    assert_eq!(heard.flags(), 0x80 | (heard.sequence() & 0x7f) as u8);
    heard.sequence()
}

#[test]
fn a_call_from_request_to_hang_up() {
    at_one_worker_and_two(|workers| {
        let fixture = Fixture::new(workers, 10);
        let mut log = fixture.log(1);
        let (mut a, mut b) = (fixture.party_in_call(1), fixture.party_in_call(2));
        b.peer.send_audio(9, b"\x58tts");
        assert_eq!(b.call.receive().sequence(), 1);

        // Macs as consoles write them.
        let body = json!({ "caller_mac": "02-00-00-00-00-0B", "target_mac": "02_00_00_00_00_0c", "caller_nickname": "小\"明" });
        let (status, answer) = fixture.post("/api/call/request", &body);
        assert_eq!((status, &answer["status"]), (200, &json!("pending")));
        assert!(answer["message"].is_string());
        let goodbye = a.peer.expect_close(1000).unwrap();
        assert_eq!(
            (&goodbye["session_id"], &goodbye["reason"]),
            (&json!(session_id(1)), &json!("device_call"))
        );

        let wake = b.device.json();
        assert_eq!((&wake["type"], &wake["session_id"]), (&json!("mcp"), &json!(session_id(2))));
        let id = wake["payload"]["id"].as_u64().unwrap();
        assert_eq!(
            wake["payload"],
            json!({
                "jsonrpc": "2.0", "id": id, "method": "tools/call",
                "params": { "name": "self.remote_wakeup", "arguments": {
                    "reason": "[device_call]您收到来自小\"明的来电，是否接听？", "action": "listen" } }
            })
        );
        b.device.send_text(
            &json!({ "type": "mcp", "payload": { "jsonrpc": "2.0", "id": id, "result": {} } }).to_string(),
        );
        // The callee is still in a call with its chat server, which does not see the wake-up.
        b.device.send_text(r#"{"type":"listen","state":"detect","text":"[device_call]"}"#);
        assert_eq!(b.peer.json()["type"], "listen");

        for n in 1..4 {
            a.call.send(7, b"\x58hello?");
            let heard = a.call.receive();
            assert_eq!((heard.payload.as_slice(), heard.sequence(), heard.timestamp()), (SILENCE, n, 0));
        }
        a.device.send_text(r#"{"type":"listen","state":"start"}"#);
        a.device.mqtt.assert_nothing_pending();
        assert_eq!(fixture.metric(r#"gateway_calls{state="ringing"}"#), 1);

        let (status, answer) = fixture.post("/api/call/accept", &json!({ "mac": "02:00:00:00:00:0C" }));
        let note = answer["note"].as_str().unwrap().to_owned();
        assert!(
            note.contains("realtime") && note.contains(&format!("{}, {}", fixture.mac(1), fixture.mac(2)))
        );
        let expected = json!({ "status": "bridged", "peerMac": fixture.mac(1), "note": note });
        assert_eq!((status, answer), (200, expected));
        assert_eq!(b.peer.expect_close(1000).unwrap()["reason"], "device_call");
        assert_eq!(
            a.device.json(),
            json!({ "type": "call_accepted", "session_id": session_id(1), "from": fixture.mac(2) })
        );
        log.wait_for_line("talks to");
        assert!(log.wait_for_line("did not last listen").ends_with(&note));

        for n in 0..3 {
            assert_eq!(
                assert_audio_delivered(&mut a.call, &b.call, format!("\x58to b {n}").as_bytes()),
                2 + n
            );
            assert_eq!(
                assert_audio_delivered(&mut b.call, &a.call, &[0x88; 1400][..1000 + n as usize]),
                4 + n
            );
        }
        // A new NAT mapping.
        let udp = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        b.call.move_to(udp, |limit| a.call.receive_within(limit).map(|audio| audio.payload));
        assert_audio_delivered(&mut a.call, &b.call, b"\x58found");
        assert_eq!(fixture.metric(r#"gateway_calls{state="bridged"}"#), 2);
        assert_eq!(fixture.metric(r#"gateway_device_calls_total{outcome="requested"}"#), 1);
        assert_eq!(fixture.metric(r#"gateway_device_calls_total{outcome="bridged"}"#), 1);
        let (_, shown) = fixture.http("GET", &format!("/api/sessions/{}", fixture.mac(1)), "");
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!((&shown["call"]["state"], &shown["call"]["server"]), (&json!("bridged"), &Value::Null));

        a.device.send_text(&json!({ "type": "goodbye", "session_id": session_id(1) }).to_string());
        b.device.expect_goodbye(&session_id(2));
        a.device.mqtt.assert_nothing_pending();
        b.device.mqtt.assert_nothing_pending();
        let line = log.wait_for_line("call ends");
        assert_eq!(
            (log_field(&line, "reason"), log_field(&line, "session")),
            ("device_goodbye", &*session_id(1))
        );
        assert!(fixture.server.is_idle());
        assert_eq!(fixture.accept(2)["status"], "no_pending");
        // Both can start new calls.
        let (a, b) = (fixture.start_call(a.device, 1), fixture.start_call(b.device, 2));
        assert_eq!(fixture.request(2, 1)["status"], "pending");
        drop((a, b));
    });
}

/// While two-part ids are allowed, whoever knows a MAC can connect with it.
#[test]
fn an_id_that_proved_nothing_is_in_no_call_of_the_device_with_its_mac() {
    at_one_worker_and_two(|workers| {
        let key = "Device-Calls-Key";
        let fixture = Fixture::with_config(workers, 60, |config| {
            config.mqtt.signature_key = Secret::new(key);
            config.mqtt.allow_legacy_ids = true;
            config.api.token = Secret::new(API_TOKEN);
        });
        let addr = fixture.gateway.addresses().mqtt;
        let log_in = |number: u8, connect: &Connect| Device {
            mqtt: Client::log_in(addr, connect),
            mac: fixture.mac(number),
            client_id: connect.client_id.clone(),
        };
        let proven = |number: u8| log_in(number, &Connect::signed(&client_id(fixture.base + number), key));
        let legacy = format!("GID_test@@@{}", fixture.mac(1).replace(':', "_"));
        let mut impostor = fixture.start_call(log_in(1, &Connect::new(&legacy)), 3);
        let mut b = fixture.start_call(proven(2), 2);
        // Alone, it can take part in a call.
        assert_eq!(fixture.request(1, 2)["status"], "pending");
        assert_eq!(b.device.json()["type"], "mcp");
        // It leaves the call when the device logs in.
        let a = proven(1);
        impostor.device.expect_goodbye(&session_id(3));
        assert_eq!(fixture.accept(2)["status"], "caller_gone");
        let mut a = fixture.start_call(a, 1);
        // Even later, it is not chosen.
        let mut impostor = fixture.start_call(log_in(1, &Connect::new(&legacy)), 3);
        assert_eq!(fixture.request(2, 1)["status"], "pending");
        assert_eq!(a.device.json()["type"], "mcp");
        assert_eq!(fixture.accept(1)["status"], "bridged");
        assert_eq!(b.device.json()["type"], "call_accepted");
        assert_audio_delivered(&mut a.call, &b.call, b"\x58a");
        // Its end is not the end of the device's call.
        impostor.device.send_text(r#"{"type":"goodbye"}"#);
        impostor.peer.expect_close(1000);
        impostor.device.mqtt.send(&DISCONNECT);
        assert_eq!(impostor.device.mqtt.packet_within(TIMEOUT), Err(PacketError::Closed));
        assert_audio_delivered(&mut b.call, &a.call, b"\x58b");
    });
}

/// How a call between 1 and 2 ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum CallEnding {
    Goodbye,
    Abort,
    Hello,
    Disconnect,
    HangUp,
    Delete,
    Expel,
}

const CALL_ENDINGS: [CallEnding; 7] = [
    CallEnding::Goodbye,
    CallEnding::Abort,
    CallEnding::Hello,
    CallEnding::Disconnect,
    CallEnding::HangUp,
    CallEnding::Delete,
    CallEnding::Expel,
];

impl CallEnding {
    /// Device `number` ends the call; checks what that device gets.
    fn trigger(self, fixture: &Fixture, number: u8, device: &mut Device) {
        let path = format!("/api/sessions/{}", client_id(fixture.base + number));
        match self {
            Self::Goodbye => device.send_text(r#"{"type":"goodbye"}"#),
            Self::Abort => device.send_text(r#"{"type":"abort"}"#),
            Self::Hello => device.send_text(HELLO),
            Self::Disconnect => device.mqtt.send(&DISCONNECT),
            Self::HangUp => assert_eq!(fixture.hang_up(number), 200),
            Self::Delete => assert_eq!(fixture.http("DELETE", &path, "").0, 200),
            Self::Expel => assert_eq!(fixture.http("DELETE", &format!("{path}?disconnect=1"), "").0, 200),
        }
        if matches!(self, Self::Abort | Self::HangUp | Self::Delete | Self::Expel) {
            device.expect_goodbye(&session_id(number));
        }
        match self {
            Self::Hello => {
                let mut peer = fixture.server.accept();
                peer.upgrade();
                peer.exchange_hello("another");
                assert_eq!(device.hello_reply().session_id, "another");
                drop(peer);
            }
            Self::Disconnect | Self::Expel => {
                assert_eq!(device.mqtt.packet_within(TIMEOUT), Err(PacketError::Closed))
            }
            _ => device.mqtt.assert_nothing_pending(),
        }
    }
}

#[test]
fn both_devices_are_told_once_with_their_own_id_whoever_ends_the_call() {
    at_one_worker_and_two(|workers| {
        for (n, end) in (0..).zip(CALL_ENDINGS) {
            for ender in [1, 2] {
                let fixture = Fixture::new(workers, 150 + 10 * n + 5 * (ender - 1));
                let mut logs = [fixture.log(1), fixture.log(2)];
                let (mut a, mut a_call, mut b, b_call) = fixture.connected_parties();
                assert_audio_delivered(&mut a_call, &b_call, b"\x58x");
                let (one, other) = if ender == 1 { (&mut a, &mut b) } else { (&mut b, &mut a) };
                end.trigger(&fixture, ender, one);
                other.expect_goodbye(&session_id(3 - ender));
                other.mqtt.assert_nothing_pending();
                let reason =
                    log_field(&logs[usize::from(2 - ender)].wait_for_line("call ends"), "reason").to_owned();
                assert_eq!(reason, "peer_left", "{end:?} {ender}");
                logs[usize::from(ender - 1)].wait_for_line("call ends");
                assert_eq!(fixture.hang_up(3 - ender), 409, "{end:?} {ender}");
                assert_eq!(fixture.accept(2)["status"], "no_pending", "{end:?} {ender}");
            }
        }
    });
}

#[test]
fn a_caller_that_stops_waiting_affects_no_other_call() {
    at_one_worker_and_two(|workers| {
        for end in CALL_ENDINGS {
            let fixture = Fixture::new(workers, 30);
            let (mut a, mut b) = (fixture.party_in_call(1), fixture.party_in_call(2));
            fixture.request(1, 2);
            assert_eq!(b.device.json()["type"], "mcp");
            end.trigger(&fixture, 1, &mut a.device);
            b.device.mqtt.assert_nothing_pending();
            b.call.send(1, b"\x58still");
            b.peer.binary();
            assert_eq!(fixture.accept(2)["status"], "caller_gone", "{end:?}");
            assert_eq!(fixture.accept(2)["status"], "no_pending", "{end:?}");
        }
    });
}

#[test]
fn a_call_that_is_declined_or_cannot_be_answered_any_more_ends_for_the_caller() {
    at_one_worker_and_two(|workers| {
        for (end, ends) in [
            (CallEnding::HangUp, true),
            (CallEnding::Disconnect, true),
            (CallEnding::Expel, true),
            (CallEnding::Goodbye, false),
            (CallEnding::Hello, false),
            (CallEnding::Delete, false),
        ] {
            let fixture = Fixture::new(workers, 40);
            let (mut a, mut b) = (fixture.party_in_call(1), fixture.party_in_call(2));
            fixture.request(1, 2);
            assert_eq!(b.device.json()["type"], "mcp");
            match end {
                // Its own call does not end.
                CallEnding::HangUp => {
                    assert_eq!(fixture.hang_up(2), 200);
                    b.device.mqtt.assert_nothing_pending();
                    b.call.send(1, b"\x58still");
                    b.peer.binary();
                }
                _ => end.trigger(&fixture, 2, &mut b.device),
            }
            if ends {
                a.device.expect_goodbye(&session_id(1));
            } else {
                a.device.mqtt.assert_nothing_pending();
                a.call.send(1, b"\x58a");
                assert_eq!(a.call.receive().payload, SILENCE, "{end:?}");
                // The callee can accept during a later call.
                if end != CallEnding::Hello {
                    assert_eq!(fixture.accept(2)["status"], "error", "{end:?}");
                    b = fixture.start_call(b.device, 2);
                }
                assert_eq!(fixture.accept(2)["status"], "bridged", "{end:?}");
                assert_eq!(a.device.json()["type"], "call_accepted");
            }
            drop(b);
        }
    });
}

#[test]
fn both_call_each_other() {
    at_one_worker_and_two(|workers| {
        let fixture = Fixture::new(workers, 50);
        let (mut a, mut b) = (fixture.party_in_call(1), fixture.party_in_call(2));
        assert_eq!(fixture.request(1, 2)["status"], "pending");
        assert_eq!(b.device.json()["type"], "mcp");
        let answer = fixture.request(2, 1);
        assert_eq!(answer["status"], "bridged", "{answer}");
        assert_eq!(a.device.json()["from"], fixture.mac(2));
        b.device.mqtt.assert_nothing_pending();
        assert_audio_delivered(&mut a.call, &b.call, b"\x58x");
        assert_audio_delivered(&mut b.call, &a.call, b"\x58y");
    });
}

#[test]
fn who_cannot_be_called_and_who_cannot_call() {
    at_one_worker_and_two(|workers| {
        let fixture = Fixture::new(workers, 60);
        let (mut a, mut b, mut c) =
            (fixture.party_in_call(1), fixture.party_in_call(2), fixture.party_in_call(3));
        let mut idle = fixture.device(4);
        for (caller, target, expected) in
            [(1, 9, "offline"), (1, 1, "error"), (4, 1, "error"), (9, 1, "error")]
        {
            assert_eq!(fixture.request(caller, target)["status"], expected, "{caller} {target}");
        }
        // Nothing has changed for either device.
        for side in [&mut a, &mut b, &mut c] {
            side.device.mqtt.assert_nothing_pending();
            side.call.send(1, b"\x58x");
            side.peer.binary();
        }
        assert_eq!(fixture.request(1, 4)["status"], "pending", "who is idle is woken");
        assert_eq!(idle.json()["payload"]["params"]["name"], "self.remote_wakeup");
        assert_eq!(fixture.request(1, 4)["status"], "pending", "asking again changes nothing");
        idle.mqtt.assert_nothing_pending();
        for (caller, target) in [(2, 1), (2, 4), (1, 2)] {
            let answer = fixture.request(caller, target);
            assert_eq!(answer["status"], "error", "{caller} {target}: {answer}");
            assert!(answer["message"].as_str().is_some_and(|message| !message.is_empty()));
        }
        assert_eq!(fixture.accept(4)["status"], "error", "it is in no call");
        let mut idle = fixture.start_call(idle, 4);
        assert_eq!(fixture.accept(4)["status"], "bridged");
        for (caller, target) in [(2, 1), (2, 4), (1, 2), (4, 2)] {
            assert_eq!(fixture.request(caller, target)["status"], "error", "{caller} {target}");
        }
        assert_eq!(a.device.json()["type"], "call_accepted");
        assert_audio_delivered(&mut a.call, &idle.call, b"\x58x");
        assert_audio_delivered(&mut idle.call, &a.call, b"\x58y");
        for side in [&mut b, &mut c] {
            side.device.mqtt.assert_nothing_pending();
        }
    });
}

#[test]
fn invalid_requests_are_refused() {
    let fixture = Fixture::new(1, 70);
    for path in ["/api/call/request", "/api/call/accept", "/api/call/hangup"] {
        for body in [
            json!({}),
            json!([]),
            json!({ "caller_mac": "x", "target_mac": fixture.mac(1), "mac": "02:00" }),
            json!({ "mac": 7 }),
        ] {
            let (status, answer) = fixture.post(path, &body);
            assert_eq!(status, 400, "{path} {body}");
            assert!(answer["error"].is_string(), "{answer}");
        }
        assert_eq!(fixture.http("POST", path, "{").0, 400);
        assert_eq!(fixture.http("GET", path, "").0, 405);
    }
    let (_, answer) = fixture.post("/api/call/request", &json!({ "caller_mac": fixture.mac(1) }));
    assert_eq!(answer, json!({ "error": "缺少必要参数: caller_mac, target_mac" }));
    assert_eq!(fixture.post("/api/call/hangup", &json!({ "mac": fixture.mac(1) })).1["code"], "no_call");
}

#[test]
fn a_lost_connection_that_comes_back_changes_nothing() {
    at_one_worker_and_two(|workers| {
        let fixture = Fixture::new(workers, 80);
        let (a, mut a_call, b, mut b_call) = fixture.connected_parties();
        let mut log = fixture.log(1);
        a.mqtt.reset();
        log.wait_for_line("connection lost in a call");
        // Audio needs no MQTT connection.
        assert_audio_delivered(&mut a_call, &b_call, b"\x58one");
        assert_audio_delivered(&mut b_call, &a_call, b"\x58two");
        let mut a = fixture.device(1);
        // The other device's connection is replaced without having been lost.
        let mut b_new = fixture.device(2);
        drop(b);
        for device in [&mut a, &mut b_new] {
            device.mqtt.assert_nothing_pending();
        }
        assert_audio_delivered(&mut a_call, &b_call, b"\x58three");
        assert_audio_delivered(&mut b_call, &a_call, b"\x58four");
        b_new.send_text(r#"{"type":"goodbye"}"#);
        a.expect_goodbye(&session_id(1));
        b_new.mqtt.assert_nothing_pending();
    });
}

#[test]
fn a_connection_that_stays_lost_ends_the_call_after_the_grace() {
    at_one_worker_and_two(|workers| {
        let fixture =
            Fixture::with_config(workers, 90, |config| config.mqtt.resume_grace = Duration::from_millis(300));
        let (a, _a_call, mut b, _b_call) = fixture.connected_parties();
        let mut log = fixture.log(1);
        a.mqtt.reset();
        b.expect_goodbye(&session_id(2));
        assert_eq!(log_field(&log.wait_for_line("call ends"), "reason"), "device_lost");
        b.mqtt.assert_nothing_pending();
    });
}

#[test]
fn a_device_that_is_called_may_reconnect_while_it_is_idle() {
    at_one_worker_and_two(|workers| {
        let fixture = Fixture::new(workers, 100);
        let mut a = fixture.party_in_call(1);
        let mut old = fixture.device(2);
        fixture.request(1, 2);
        assert_eq!(old.json()["type"], "mcp");
        let b = fixture.device(2);
        assert_eq!(old.mqtt.packet_within(TIMEOUT), Err(PacketError::Closed));
        a.device.mqtt.assert_nothing_pending();
        let b = fixture.start_call(b, 2);
        assert_eq!(fixture.accept(2)["status"], "bridged");
        assert_eq!(a.device.json()["type"], "call_accepted");
        assert_audio_delivered(&mut a.call, &b.call, b"\x58x");
    });
}

#[test]
fn audio_for_a_device_that_has_sent_none_is_dropped_and_counted() {
    at_one_worker_and_two(|workers| {
        let fixture = Fixture::new(workers, 110);
        let mut a = fixture.party_in_call(1);
        let mut b = fixture.device(2);
        let (mut b_call, _peer) = b.call(&fixture.server);
        fixture.request(1, 2);
        fixture.accept(2);
        a.call.send(1, b"\x58lost");
        wait_until("the packet is dropped", || {
            fixture.metric(r#"gateway_audio_discarded_total{reason="no_peer"}"#) == 1
        });
        assert_audio_delivered(&mut b_call, &a.call, b"\x88here I am");
        assert_audio_delivered(&mut a.call, &b_call, b"\x88there you are");
    });
}

#[test]
fn when_the_gateway_stops_each_is_told_once() {
    at_one_worker_and_two(|workers| {
        let fixture = Fixture::new(workers, 120);
        let (mut a, _a_call, mut b, _b_call) = fixture.connected_parties();
        let mut c = fixture.party_in_call(3);
        let mut idle = fixture.device(4);
        fixture.request(3, 4);
        assert_eq!(idle.json()["type"], "mcp");
        fixture.gateway.stop(Duration::from_secs(3)).unwrap();
        for (number, device) in [(1, &mut a), (2, &mut b), (3, &mut c.device)] {
            device.expect_goodbye(&session_id(number));
            assert_eq!(device.mqtt.packet_within(TIMEOUT), Err(PacketError::Closed));
        }
    });
}

/// Slow: run it with `--ignored`.
#[test]
#[ignore = "waits a minute"]
fn nobody_answers_for_a_minute() {
    at_one_worker_and_two(|workers| {
        let fixture = Fixture::new(workers, 140);
        let (mut a, mut idle) = (fixture.party_in_call(1), fixture.device(2));
        let begun = Instant::now();
        fixture.request(1, 2);
        assert_eq!(idle.json()["type"], "mcp");
        let told = a.device.mqtt.packet_within(2 * TIMEOUT).unwrap();
        let told: Value = serde_json::from_str(told.message().1).unwrap();
        assert_eq!(told, json!({ "type": "goodbye", "session_id": session_id(1) }));
        assert!(begun.elapsed().as_secs() >= 59, "{:?}", begun.elapsed());
        for device in [&mut a.device, &mut idle] {
            device.mqtt.assert_nothing_pending();
        }
        assert_eq!(fixture.accept(2)["status"], "no_pending");
    });
}
