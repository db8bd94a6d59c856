//! Calls between devices, over real sockets: two devices, their chat servers, and a console that calls the API.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::Config;
use mqtt_websocket_proxy::net::Running;
use serde_json::{Value, json};
use support::audio::Call;
use support::chat::{ChatServer, Peer};
use support::device::{Device, HELLO, client_id, mac};
use support::host::eventually;
use support::logged::{Logged, fact};
use support::mqtt::{DISCONNECT, Silence};
use support::{LIMIT, gateway_with};

/// 60 ms of silence, as libopus decodes it.
const SILENCE: &[u8] = b"\xfb\x03\xff\xfe\xff\xfe\xff\xfe";

struct Scene {
    gateway: Running,
    server: ChatServer,
    /// Of the test, so that its log lines are told from those of others: its devices are this one's successors.
    base: u8,
}

/// A device in a call of its own.
struct Side {
    device: Device,
    call: Call,
    peer: Peer,
}

impl Scene {
    fn new(base: u8) -> Self {
        Self::with(base, |_| {})
    }

    fn with(base: u8, change: impl FnOnce(&mut Config)) -> Self {
        let server = ChatServer::start();
        let gateway = gateway_with(&[server.url()], |config| {
            config.websocket.send_goodbye = true;
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

    fn log(&self, number: u8) -> Logged {
        Logged::about(client_id(self.base + number))
    }

    /// A device in a call with its chat server, which has heard its audio.
    fn side(&self, number: u8) -> Side {
        self.begin(self.device(number), number)
    }

    fn begin(&self, mut device: Device, number: u8) -> Side {
        device.say(HELLO);
        let mut peer = self.server.accept();
        peer.upgrade();
        peer.greet(&session(number));
        let mut call = device.answered();
        call.send(1, b"\x58first");
        peer.binary();
        Side { device, call, peer }
    }

    /// Two devices, 1 and 2, that talk to each other.
    fn talking(&self) -> (Device, Call, Device, Call) {
        let (a, b) = (self.side(1), self.side(2));
        assert_eq!(self.request(1, 2)["status"], "pending");
        assert_eq!(self.accept(2)["status"], "bridged");
        let (Side { device: mut a, call: a_call, .. }, Side { device: mut b, call: b_call, .. }) = (a, b);
        assert_eq!(a.json()["type"], "call_accepted");
        assert_eq!(b.json()["type"], "mcp");
        (a, a_call, b, b_call)
    }

    fn http(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(LIMIT))
            .build()
            .into();
        let uri = format!("http://{}{path}", self.gateway.addresses().api.unwrap());
        let request = ureq::http::Request::builder().method(method).uri(uri);
        let response = match method {
            "POST" => {
                agent.run(request.header("Content-Type", "application/json").body(body.to_owned()).unwrap())
            }
            _ => agent.run(request.body(()).unwrap()),
        };
        let mut response = response.unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
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

    /// The number behind this in `/metrics`.
    fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.http("GET", "/metrics", "");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("{name} in {text}"));
        line.trim().parse().unwrap()
    }
}

fn session(number: u8) -> String {
    format!("session-{number}")
}

/// Both hear each other, byte for byte, each with its own ssrc and next sequence.
fn assert_talk(from: &mut Call, to: &Call, opus: &[u8]) -> u32 {
    from.send(4711, opus);
    let heard = to.receive();
    assert_eq!(heard.payload, opus);
    assert_eq!((heard.ssrc(), heard.timestamp()), (to.ssrc(), 0));
    assert_eq!(heard.flags(), 0x80 | (heard.sequence() & 0x7f) as u8);
    heard.sequence()
}

#[test]
fn a_call_from_request_to_hang_up() {
    let scene = Scene::new(10);
    let mut log = scene.log(1);
    let (mut a, mut b) = (scene.side(1), scene.side(2));
    b.peer.send_audio(9, b"\x58tts");
    assert_eq!(b.call.receive().sequence(), 1);

    // Macs as consoles write them.
    let body = json!({ "caller_mac": "02-00-00-00-00-0B", "target_mac": "02_00_00_00_00_0c", "caller_nickname": "小\"明" });
    let (status, answer) = scene.post("/api/call/request", &body);
    assert_eq!((status, &answer["status"]), (200, &json!("pending")));
    assert!(answer["message"].is_string());
    let goodbye = a.peer.expect_close(1000).unwrap();
    assert_eq!((&goodbye["session_id"], &goodbye["reason"]), (&json!(session(1)), &json!("device_call")));

    let wake = b.device.json();
    assert_eq!((&wake["type"], &wake["session_id"]), (&json!("mcp"), &json!(session(2))));
    let id = wake["payload"]["id"].as_u64().unwrap();
    assert_eq!(
        wake["payload"],
        json!({
            "jsonrpc": "2.0", "id": id, "method": "tools/call",
            "params": { "name": "self.remote_wakeup", "arguments": {
                "reason": "[device_call]您收到来自小\"明的来电，是否接听？", "action": "listen" } }
        })
    );
    b.device
        .say(&json!({ "type": "mcp", "payload": { "jsonrpc": "2.0", "id": id, "result": {} } }).to_string());
    // The one that is called still talks to its chat server, which learns nothing of the wake-up.
    b.device.say(r#"{"type":"listen","state":"detect","text":"[device_call]"}"#);
    assert_eq!(b.peer.json()["type"], "listen");

    for n in 1..4 {
        a.call.send(7, b"\x58hello?");
        let heard = a.call.receive();
        assert_eq!((heard.payload.as_slice(), heard.sequence(), heard.timestamp()), (SILENCE, n, 0));
    }
    a.device.say(r#"{"type":"listen","state":"start"}"#);
    a.device.mqtt.assert_quiet();
    assert_eq!(scene.metric(r#"gateway_calls{state="ringing"}"#), 1);

    let (status, answer) = scene.post("/api/call/accept", &json!({ "mac": "02:00:00:00:00:0C" }));
    assert_eq!((status, answer), (200, json!({ "status": "bridged", "peerMac": scene.mac(1) })));
    assert_eq!(b.peer.expect_close(1000).unwrap()["reason"], "device_call");
    assert_eq!(
        a.device.json(),
        json!({ "type": "call_accepted", "session_id": session(1), "from": scene.mac(2) })
    );
    log.line("talks to");

    for n in 0..3 {
        assert_eq!(assert_talk(&mut a.call, &b.call, format!("\x58to b {n}").as_bytes()), 2 + n);
        assert_eq!(assert_talk(&mut b.call, &a.call, &[0x58; 1400][..1000 + n as usize]), 4 + n);
    }
    // A new mapping on the way: the next packet tells where b is.
    b.call.udp = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    assert_talk(&mut b.call, &a.call, b"\x58moved");
    assert_talk(&mut a.call, &b.call, b"\x58found");
    assert_eq!(scene.metric(r#"gateway_calls{state="bridged"}"#), 2);
    assert_eq!(scene.metric(r#"gateway_device_calls_total{outcome="requested"}"#), 1);
    assert_eq!(scene.metric(r#"gateway_device_calls_total{outcome="bridged"}"#), 1);
    let (_, shown) = scene.http("GET", &format!("/api/sessions/{}", scene.mac(1)), "");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["call"]["state"], &shown["call"]["server"]), (&json!("bridged"), &Value::Null));

    a.device.say(&json!({ "type": "goodbye", "session_id": session(1) }).to_string());
    b.device.expect_goodbye(&session(2));
    a.device.mqtt.assert_quiet();
    b.device.mqtt.assert_quiet();
    let line = log.line("call ends");
    assert_eq!((fact(&line, "reason"), fact(&line, "session")), ("device_goodbye", &*session(1)));
    assert!(scene.server.is_idle());
    assert_eq!(scene.accept(2)["status"], "no_pending");
    // Both can go on as before.
    let (a, b) = (scene.begin(a.device, 1), scene.begin(b.device, 2));
    assert_eq!(scene.request(2, 1)["status"], "pending");
    drop((a, b));
}

/// How a call between 1 and 2 ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Goodbye,
    Abort,
    Hello,
    Disconnect,
    HangUp,
    Delete,
    Expel,
}

const ENDS: [End; 7] =
    [End::Goodbye, End::Abort, End::Hello, End::Disconnect, End::HangUp, End::Delete, End::Expel];

impl End {
    /// Number `number` ends it; sees what that one is told.
    fn bring_about(self, scene: &Scene, number: u8, device: &mut Device) {
        let path = format!("/api/sessions/{}", client_id(scene.base + number));
        match self {
            Self::Goodbye => device.say(r#"{"type":"goodbye"}"#),
            Self::Abort => device.say(r#"{"type":"abort"}"#),
            Self::Hello => device.say(HELLO),
            Self::Disconnect => device.mqtt.send(&DISCONNECT),
            Self::HangUp => assert_eq!(scene.hang_up(number), 200),
            Self::Delete => assert_eq!(scene.http("DELETE", &path, "").0, 200),
            Self::Expel => assert_eq!(scene.http("DELETE", &format!("{path}?disconnect=1"), "").0, 200),
        }
        if matches!(self, Self::Abort | Self::HangUp | Self::Delete | Self::Expel) {
            device.expect_goodbye(&session(number));
        }
        match self {
            Self::Hello => {
                let mut peer = scene.server.accept();
                peer.upgrade();
                peer.greet("another");
                assert_eq!(device.answered().session_id, "another");
                drop(peer);
            }
            Self::Disconnect | Self::Expel => {
                assert_eq!(device.mqtt.packet_within(LIMIT), Err(Silence::Closed))
            }
            _ => device.mqtt.assert_quiet(),
        }
    }
}

#[test]
fn whoever_ends_it_both_are_told_once_with_their_own_id() {
    for (n, end) in (0..).zip(ENDS) {
        for ender in [1, 2] {
            let scene = Scene::new(150 + 10 * n + 5 * (ender - 1));
            let mut logs = [scene.log(1), scene.log(2)];
            let (mut a, mut a_call, mut b, b_call) = scene.talking();
            assert_talk(&mut a_call, &b_call, b"\x58x");
            let (one, other) = if ender == 1 { (&mut a, &mut b) } else { (&mut b, &mut a) };
            end.bring_about(&scene, ender, one);
            other.expect_goodbye(&session(3 - ender));
            other.mqtt.assert_quiet();
            let reason = fact(&logs[usize::from(2 - ender)].line("call ends"), "reason").to_owned();
            assert_eq!(reason, "peer_left", "{end:?} {ender}");
            logs[usize::from(ender - 1)].line("call ends");
            assert_eq!(scene.hang_up(3 - ender), 409, "{end:?} {ender}");
            assert_eq!(scene.accept(2)["status"], "no_pending", "{end:?} {ender}");
        }
    }
}

#[test]
fn a_caller_that_stops_waiting_disturbs_nobody() {
    for end in ENDS {
        let scene = Scene::new(30);
        let (mut a, mut b) = (scene.side(1), scene.side(2));
        scene.request(1, 2);
        assert_eq!(b.device.json()["type"], "mcp");
        end.bring_about(&scene, 1, &mut a.device);
        b.device.mqtt.assert_quiet();
        b.call.send(1, b"\x58still");
        b.peer.binary();
        assert_eq!(scene.accept(2)["status"], "caller_gone", "{end:?}");
        assert_eq!(scene.accept(2)["status"], "no_pending", "{end:?}");
    }
}

#[test]
fn a_call_that_is_declined_or_cannot_be_answered_any_more_ends_for_the_caller() {
    for (end, ends) in [
        (End::HangUp, true),
        (End::Disconnect, true),
        (End::Expel, true),
        (End::Goodbye, false),
        (End::Hello, false),
        (End::Delete, false),
    ] {
        let scene = Scene::new(40);
        let (mut a, mut b) = (scene.side(1), scene.side(2));
        scene.request(1, 2);
        assert_eq!(b.device.json()["type"], "mcp");
        match end {
            // Nothing of its own ends.
            End::HangUp => {
                assert_eq!(scene.hang_up(2), 200);
                b.device.mqtt.assert_quiet();
                b.call.send(1, b"\x58still");
                b.peer.binary();
            }
            _ => end.bring_about(&scene, 2, &mut b.device),
        }
        if ends {
            a.device.expect_goodbye(&session(1));
        } else {
            a.device.mqtt.assert_quiet();
            a.call.send(1, b"\x58a");
            assert_eq!(a.call.receive().payload, SILENCE, "{end:?}");
            // Who is called may answer out of a later call.
            if end != End::Hello {
                assert_eq!(scene.accept(2)["status"], "error", "{end:?}");
                b = scene.begin(b.device, 2);
            }
            assert_eq!(scene.accept(2)["status"], "bridged", "{end:?}");
            assert_eq!(a.device.json()["type"], "call_accepted");
        }
        drop(b);
    }
}

#[test]
fn both_call_each_other() {
    let scene = Scene::new(50);
    let (mut a, mut b) = (scene.side(1), scene.side(2));
    assert_eq!(scene.request(1, 2)["status"], "pending");
    assert_eq!(b.device.json()["type"], "mcp");
    let answer = scene.request(2, 1);
    assert_eq!(answer["status"], "bridged", "{answer}");
    assert_eq!(a.device.json()["from"], scene.mac(2));
    b.device.mqtt.assert_quiet();
    assert_talk(&mut a.call, &b.call, b"\x58x");
    assert_talk(&mut b.call, &a.call, b"\x58y");
}

#[test]
fn who_cannot_be_called_and_who_cannot_call() {
    let scene = Scene::new(60);
    let (mut a, mut b, mut c) = (scene.side(1), scene.side(2), scene.side(3));
    let mut idle = scene.device(4);
    for (caller, target, expected) in [(1, 9, "offline"), (1, 1, "error"), (4, 1, "error"), (9, 1, "error")] {
        assert_eq!(scene.request(caller, target)["status"], expected, "{caller} {target}");
    }
    // Nothing has happened to anybody.
    for side in [&mut a, &mut b, &mut c] {
        side.device.mqtt.assert_quiet();
        side.call.send(1, b"\x58x");
        side.peer.binary();
    }
    assert_eq!(scene.request(1, 4)["status"], "pending", "who is idle is woken");
    assert_eq!(idle.json()["payload"]["params"]["name"], "self.remote_wakeup");
    assert_eq!(scene.request(1, 4)["status"], "pending", "asking again changes nothing");
    idle.mqtt.assert_quiet();
    for (caller, target) in [(2, 1), (2, 4), (1, 2)] {
        let answer = scene.request(caller, target);
        assert_eq!(answer["status"], "error", "{caller} {target}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|message| !message.is_empty()));
    }
    assert_eq!(scene.accept(4)["status"], "error", "it is in no call");
    let mut idle = scene.begin(idle, 4);
    assert_eq!(scene.accept(4)["status"], "bridged");
    for (caller, target) in [(2, 1), (2, 4), (1, 2), (4, 2)] {
        assert_eq!(scene.request(caller, target)["status"], "error", "{caller} {target}");
    }
    assert_eq!(a.device.json()["type"], "call_accepted");
    assert_talk(&mut a.call, &idle.call, b"\x58x");
    assert_talk(&mut idle.call, &a.call, b"\x58y");
    for side in [&mut b, &mut c] {
        side.device.mqtt.assert_quiet();
    }
}

#[test]
fn requests_that_are_none() {
    let scene = Scene::new(70);
    for path in ["/api/call/request", "/api/call/accept", "/api/call/hangup"] {
        for body in [
            json!({}),
            json!([]),
            json!({ "caller_mac": "x", "target_mac": scene.mac(1), "mac": "02:00" }),
            json!({ "mac": 7 }),
        ] {
            let (status, answer) = scene.post(path, &body);
            assert_eq!(status, 400, "{path} {body}");
            assert!(answer["error"].is_string(), "{answer}");
        }
        assert_eq!(scene.http("POST", path, "{").0, 400);
        assert_eq!(scene.http("GET", path, "").0, 405);
    }
    let (_, answer) = scene.post("/api/call/request", &json!({ "caller_mac": scene.mac(1) }));
    assert_eq!(answer, json!({ "error": "缺少必要参数: caller_mac, target_mac" }));
    assert_eq!(scene.post("/api/call/hangup", &json!({ "mac": scene.mac(1) })).1["code"], "no_call");
}

#[test]
fn a_lost_connection_that_comes_back_changes_nothing() {
    let scene = Scene::new(80);
    let (a, mut a_call, b, mut b_call) = scene.talking();
    let mut log = scene.log(1);
    a.mqtt.reset();
    log.line("connection lost in a call");
    // Audio needs no MQTT connection.
    assert_talk(&mut a_call, &b_call, b"\x58one");
    assert_talk(&mut b_call, &a_call, b"\x58two");
    let mut a = scene.device(1);
    // The other one is taken over without having been lost.
    let mut b_new = scene.device(2);
    drop(b);
    for device in [&mut a, &mut b_new] {
        device.mqtt.assert_quiet();
    }
    assert_talk(&mut a_call, &b_call, b"\x58three");
    assert_talk(&mut b_call, &a_call, b"\x58four");
    b_new.say(r#"{"type":"goodbye"}"#);
    a.expect_goodbye(&session(1));
    b_new.mqtt.assert_quiet();
}

#[test]
fn a_connection_that_stays_lost_ends_the_call_after_the_grace() {
    let scene = Scene::with(90, |config| config.mqtt.resume_grace = Duration::from_millis(300));
    let (a, _a_call, mut b, _b_call) = scene.talking();
    let mut log = scene.log(1);
    a.mqtt.reset();
    b.expect_goodbye(&session(2));
    assert_eq!(fact(&log.line("call ends"), "reason"), "device_lost");
    b.mqtt.assert_quiet();
}

#[test]
fn a_device_that_is_called_may_reconnect_while_it_is_idle() {
    let scene = Scene::new(100);
    let mut a = scene.side(1);
    let mut old = scene.device(2);
    scene.request(1, 2);
    assert_eq!(old.json()["type"], "mcp");
    let b = scene.device(2);
    assert_eq!(old.mqtt.packet_within(LIMIT), Err(Silence::Closed));
    a.device.mqtt.assert_quiet();
    let b = scene.begin(b, 2);
    assert_eq!(scene.accept(2)["status"], "bridged");
    assert_eq!(a.device.json()["type"], "call_accepted");
    assert_talk(&mut a.call, &b.call, b"\x58x");
}

#[test]
fn audio_for_a_device_that_has_sent_none_is_dropped_and_counted() {
    let scene = Scene::new(110);
    let mut a = scene.side(1);
    let mut b = scene.device(2);
    let (mut b_call, _peer) = b.call(&scene.server);
    scene.request(1, 2);
    scene.accept(2);
    a.call.send(1, b"\x58lost");
    eventually("the packet is dropped", || {
        scene.metric(r#"gateway_audio_discarded_total{reason="no_peer"}"#) == 1
    });
    assert_talk(&mut b_call, &a.call, b"\x58here I am");
    assert_talk(&mut a.call, &b_call, b"\x58there you are");
}

#[test]
fn when_the_gateway_stops_each_is_told_once() {
    let scene = Scene::new(120);
    let (mut a, _a_call, mut b, _b_call) = scene.talking();
    let mut c = scene.side(3);
    let mut idle = scene.device(4);
    scene.request(3, 4);
    assert_eq!(idle.json()["type"], "mcp");
    scene.gateway.stop(Duration::from_secs(3)).unwrap();
    for (number, device) in [(1, &mut a), (2, &mut b), (3, &mut c.device)] {
        device.expect_goodbye(&session(number));
        assert_eq!(device.mqtt.packet_within(LIMIT), Err(Silence::Closed));
    }
}

/// Takes its time: run it with `--ignored`.
#[test]
#[ignore = "waits a minute"]
fn nobody_answers_for_a_minute() {
    let scene = Scene::new(140);
    let (mut a, mut idle) = (scene.side(1), scene.device(2));
    let begun = Instant::now();
    scene.request(1, 2);
    assert_eq!(idle.json()["type"], "mcp");
    let told = a.device.mqtt.packet_within(Duration::from_secs(70)).unwrap();
    let told: Value = serde_json::from_str(told.message().1).unwrap();
    assert_eq!(told, json!({ "type": "goodbye", "session_id": session(1) }));
    assert!((59..65).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    for device in [&mut a.device, &mut idle] {
        device.mqtt.assert_quiet();
    }
    assert_eq!(scene.accept(2)["status"], "no_pending");
}
