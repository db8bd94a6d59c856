//! Calls between devices of two gateways, each a process, over a real Redis.
//!
//! Needs redis-server (`./setup.sh test` installs it); without it each test prints a line and passes.

#![cfg(all(feature = "cluster", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::audio::Call;
use support::chat_server::Peer;
use support::device::{Device, HELLO, mac};
use support::http::metric_sum;
use support::redis::is_installed;
use support::service::{Gateway, Service, TOKEN};

/// A device in a call with its chat server, which has received audio.
struct Party {
    device: Device,
    call: Call,
    _peer: Peer,
}

fn session_id(number: u8) -> String {
    format!("session-{number}")
}

fn party(service: &Service, gateway: usize, number: u8) -> Party {
    start_call(service, service.device(gateway, number), number)
}

fn start_call(service: &Service, mut device: Device, number: u8) -> Party {
    device.send_text(HELLO);
    let mut peer = service.server.accept();
    peer.upgrade();
    peer.exchange_hello(&session_id(number));
    let mut call = device.hello_reply();
    call.send(1, b"\x58first");
    peer.binary();
    Party { device, call, _peer: peer }
}

/// Asks any gateway that `caller` calls `target`.
fn request(asked: &Gateway, caller: u8, target: u8) -> Value {
    let body = json!({ "caller_mac": mac(caller), "target_mac": mac(target), "caller_nickname": "小明" });
    let (status, answer) = asked.post("/api/call/request", &body);
    assert_eq!(status, 200, "{answer}");
    answer["status"].clone()
}

fn accept(asked: &Gateway, target: u8) -> Value {
    let (status, answer) = asked.post("/api/call/accept", &json!({ "mac": mac(target) }));
    assert_eq!(status, 200, "{answer}");
    answer["status"].clone()
}

/// Device 1 of the first gateway and device 2 of the second talk to each other.
fn connect(asked: &Gateway, a: &mut Party, b: &mut Party) {
    assert_eq!(request(asked, 1, 2), "pending");
    let wake = b.device.json();
    assert_eq!(wake["type"], "mcp", "{wake}");
    assert!(wake.to_string().contains("小明"), "{wake}");
    assert_eq!(accept(asked, 2), "bridged");
    assert_eq!(a.device.json()["type"], "call_accepted");
}

/// Audio passes, byte for byte.
fn assert_hears(from: &mut Party, to: &mut Party, opus: &[u8]) {
    from.call.send(4711, opus);
    // While it rang, it may have been sent silence.
    assert_eq!(to.call.receive().payload, opus);
}

#[test]
fn devices_of_two_gateways_talk_whichever_gateway_is_asked() {
    if !is_installed() {
        return;
    }
    for workers in [1, 3] {
        let service = Service::start(&["one", "two", "three"], |config| config["workers"] = json!(workers));
        let [a, b] = [party(&service, 0, 1), party(&service, 1, 2)];
        let (mut a, mut b) = (a, b);
        for (n, asked) in service.gateways.iter().enumerate() {
            connect(asked, &mut a, &mut b);
            for n in 0..5_usize {
                assert_hears(&mut a, &mut b, format!("\x58to b {n}").as_bytes());
                assert_hears(&mut b, &mut a, &vec![0x88; 1000 + n]);
            }
            let (_, shown) = asked.get(&format!("/api/sessions/{}", mac(1)));
            assert_eq!(shown["call"]["state"], "bridged", "{shown}");
            let passed = |what: &str| {
                let name = format!(r#"gateway_cluster_passed_total{{what="{what}"}}"#);
                metric_sum(service.gateways[0].api(), &name, Some(TOKEN))
            };
            assert!(passed("audio_sent") >= 5.0 && passed("audio_received") >= 5.0);
            // It ends for both, whoever ends it.
            match n {
                0 => a.device.send_text(r#"{"type":"goodbye"}"#),
                1 => b.device.send_text(r#"{"type":"goodbye"}"#),
                _ => {
                    let ended = asked.post("/api/call/hangup", &json!({ "mac": mac(2) }));
                    assert_eq!(ended, (200, json!({ "status": "ended" })));
                }
            }
            for (party, number, ended_it) in [(&mut a, 1, n == 0), (&mut b, 2, n == 1)] {
                if !ended_it {
                    party.device.expect_goodbye(&session_id(number));
                }
            }
            assert_eq!(accept(asked, 2), "no_pending");
            (a, b) = (start_call(&service, a.device, 1), start_call(&service, b.device, 2));
        }
    }
}

#[test]
fn what_is_not_possible_is_answered_as_at_one_gateway() {
    if !is_installed() {
        return;
    }
    let service = Service::start(&["one", "two"], |_| {});
    let [one, two] = &service.gateways[..] else { panic!() };
    let mut a = party(&service, 0, 1);
    for asked in [one, two] {
        assert_eq!(request(asked, 1, 2), "offline");
        assert_eq!(request(asked, 2, 1), "error", "the caller is in no call");
        assert_eq!(request(asked, 1, 1), "error");
        assert_eq!(accept(asked, 1), "no_pending");
    }
    // One that is connected, but in no call, rings: it accepts in its next call.
    let mut idle = service.device(1, 2);
    assert_eq!(request(two, 1, 2), "pending");
    assert_eq!(idle.json()["type"], "mcp");
    assert_eq!(accept(one, 2), "error", "it is in no call");
    let mut b = start_call(&service, idle, 2);
    assert_eq!(accept(one, 2), "bridged");
    assert_eq!(a.device.json()["type"], "call_accepted");
    assert_hears(&mut b, &mut a, b"\x58b");
    // A third one finds both busy.
    let _c = party(&service, 1, 3);
    assert_eq!(request(one, 3, 1), "error");
    assert_eq!(request(two, 3, 2), "error");
    // The device that called leaves.
    drop(a);
    b.device.expect_goodbye(&session_id(2));
}

#[test]
fn a_call_ends_when_the_other_gateway_or_redis_is_lost_and_can_be_made_again() {
    if !is_installed() {
        return;
    }
    for workers in [1, 3] {
        let mut service = Service::start(&["one", "two"], |config| config["workers"] = json!(workers));
        let (mut a, mut b) = (party(&service, 0, 1), party(&service, 1, 2));
        connect(&service.gateways[1], &mut a, &mut b);
        assert_hears(&mut a, &mut b, b"\x58a");
        service.redis.kill();
        a.device.expect_goodbye(&session_id(1));
        b.device.expect_goodbye(&session_id(2));
        // With their chat servers they talk all the same.
        (a, b) = (start_call(&service, a.device, 1), start_call(&service, b.device, 2));
        let body = json!({ "caller_mac": mac(1), "target_mac": mac(2) });
        let (status, answer) = service.gateways[0].post("/api/call/request", &body);
        assert_eq!(status, 503, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("Redis"), "{answer}");
        service.redis.restart();
        service.wait_until_all_are_known();
        let path = "/api/call/request";
        let body = json!({ "caller_mac": mac(1), "target_mac": mac(2), "caller_nickname": "小明" });
        support::host::wait_until("it is known where devices are", || {
            let (status, answer) = service.gateways[0].post(path, &body);
            status == 200 && answer["status"] == "pending"
        });
        assert_eq!(b.device.json()["type"], "mcp");
        assert_eq!(accept(&service.gateways[1], 2), "bridged");
        assert_eq!(a.device.json()["type"], "call_accepted");
        assert_hears(&mut b, &mut a, b"\x58b");
        service.gateways[1].signal("KILL");
        // Audio finds nobody who receives it.
        a.call.send(1, b"\x58a");
        a.device.expect_goodbye(&session_id(1));
    }
}
