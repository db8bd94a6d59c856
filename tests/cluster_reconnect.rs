//! A device that loses its connection in a call and comes back through another gateway keeps the call.
//!
//! Needs redis-server (`./setup.sh test` installs it); without it each test prints a line and passes.

#![cfg(feature = "cluster")]
#![allow(clippy::unwrap_used)]

mod support;

use mqtt_websocket_proxy::config::{Config, Secret};
use mqtt_websocket_proxy::net::Running;
use serde_json::json;
use support::audio::Call;
use support::chat_server::{ChatServer, Peer, audio_frame};
use support::device::Device;
use support::gateway_with;
use support::host::wait_until;
use support::http::{RawClient, raw_request};
use support::log_capture::LogCapture;
use support::mqtt::{Client, Connect};
use support::redis::{RedisServer, is_installed};

/// Gateways that share a Redis server.
struct Cluster {
    redis: RedisServer,
    server: ChatServer,
    gateways: Vec<Option<Running>>,
}

impl Cluster {
    fn start(gateways: usize, workers: usize, change: impl Fn(&mut Config)) -> Self {
        let redis = RedisServer::start();
        let server = ChatServer::start();
        let mut log = LogCapture::containing(redis.addr().to_string());
        let start = |n: usize| {
            let gateway = gateway_with(&[&server.url()], |config| {
                config.cluster.redis = Some(redis.url().parse().unwrap());
                config.cluster.name = Some(format!("gateway-{n}"));
                config.workers = workers;
                change(config);
            });
            log.wait_for_line(&format!("as gateway-{n}"));
            Some(gateway)
        };
        let gateways = (0..gateways).map(start).collect();
        Self { redis, server, gateways }
    }

    fn connect(&self, gateway: usize, number: u8) -> Device {
        Device::connect(self.gateways[gateway].as_ref().unwrap().addresses().mqtt, number)
    }

    /// A device in a call at the first gateway.
    fn device_in_call(&self, number: u8) -> (Device, Call, Peer) {
        let mut device = self.connect(0, number);
        let (mut call, mut peer) = device.call(&self.server);
        exchange_audio(&mut call, &mut peer, 60);
        (device, call, peer)
    }
}

/// Audio passes in both directions.
fn exchange_audio(call: &mut Call, peer: &mut Peer, timestamp: u32) {
    call.send(timestamp, b"up");
    assert_eq!(peer.binary(), audio_frame(timestamp, b"up"));
    peer.send_audio(timestamp, b"down");
    // A call that was silent for a while gets packets that keep its path open.
    while call.receive().payload != b"down" {}
}

/// The call goes on: audio and text pass in both directions, in order.
fn assert_goes_on(device: &mut Device, call: &mut Call, peer: &mut Peer, timestamp: u32) {
    exchange_audio(call, peer, timestamp);
    // What is sent to a device before its new connection is known goes to the old one.
    device.send_text(r#"{"type":"listen","state":"start","mode":"auto"}"#);
    while peer.json()["state"] != "start" {}
    for n in 0..20 {
        peer.send_text(&json!({"type": "llm", "emotion": n}).to_string());
        device.send_text(&json!({"type": "listen", "state": "detect", "text": n.to_string()}).to_string());
    }
    for n in 0..20 {
        assert_eq!(device.json()["emotion"], n);
        assert_eq!(peer.json()["text"], n.to_string());
    }
}

#[test]
fn a_device_that_comes_back_through_another_gateway_keeps_its_call_until_that_ends() {
    if !is_installed() {
        return;
    }
    for workers in [1, 3] {
        let cluster = Cluster::start(2, workers, |_| {});
        for number in 1..5 {
            let (device, mut call, mut peer) = cluster.device_in_call(number);
            drop(device);
            let mut device = cluster.connect(1, number);
            assert_goes_on(&mut device, &mut call, &mut peer, 120);
            device.send_text(r#"{"type":"goodbye"}"#);
            peer.expect_close(1000);
            // It belongs to the other gateway now, whatever the first one does.
            let (mut call, mut peer) = device.call(&cluster.server);
            exchange_audio(&mut call, &mut peer, 60);
            device.send_text(r#"{"type":"goodbye"}"#);
            peer.expect_close(1000);
        }
    }
}

#[test]
fn the_call_follows_its_device_to_any_gateway_and_back() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::start(3, 2, |_| {});
    for number in 1..4 {
        let (first, mut call, mut peer) = cluster.device_in_call(number);
        // Those before are still connected when the device comes back, or are not any more.
        let mut second = cluster.connect(1, number);
        assert_goes_on(&mut second, &mut call, &mut peer, 120);
        let mut third = cluster.connect(2, number);
        assert_goes_on(&mut third, &mut call, &mut peer, 180);
        drop((first, second, third));
        let mut fourth = cluster.connect(1, number);
        assert_goes_on(&mut fourth, &mut call, &mut peer, 240);
        let mut fifth = cluster.connect(0, number);
        assert_goes_on(&mut fifth, &mut call, &mut peer, 300);
        fourth.mqtt.read_until_closed();
        let mut sixth = cluster.connect(2, number);
        assert_goes_on(&mut sixth, &mut call, &mut peer, 360);
        sixth.send_text(r#"{"type":"goodbye"}"#);
        peer.expect_close(1000);
    }
}

#[test]
fn a_device_that_came_back_hears_of_the_end_of_its_call_and_begins_another_one() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::start(2, 1, |_| {});
    let (device, _, mut peer) = cluster.device_in_call(1);
    drop(device);
    let mut device = cluster.connect(1, 1);
    peer.send_text(r#"{"type":"llm","emotion":"happy"}"#);
    assert_eq!(device.json()["emotion"], "happy");
    peer.send_close(Some(1000));
    device.expect_goodbye("server-session");
    let (mut call, mut peer) = device.call(&cluster.server);
    exchange_audio(&mut call, &mut peer, 60);
}

#[test]
fn when_the_gateway_with_the_call_ends_the_device_is_told_by_the_other_one() {
    if !is_installed() {
        return;
    }
    let mut cluster = Cluster::start(2, 1, |_| {});
    let (device, mut call, mut peer) = cluster.device_in_call(1);
    drop(device);
    let mut device = cluster.connect(1, 1);
    assert_goes_on(&mut device, &mut call, &mut peer, 120);
    cluster.gateways[0] = None;
    device.expect_goodbye("server-session");
    let (mut call, mut peer) = device.call(&cluster.server);
    exchange_audio(&mut call, &mut peer, 60);
}

#[test]
fn when_the_gateway_with_the_connection_ends_the_device_comes_back_to_its_call() {
    if !is_installed() {
        return;
    }
    let mut cluster = Cluster::start(3, 1, |_| {});
    let (device, mut call, mut peer) = cluster.device_in_call(1);
    drop(device);
    let mut device = cluster.connect(1, 1);
    assert_goes_on(&mut device, &mut call, &mut peer, 120);
    cluster.gateways[1] = None;
    device.mqtt.read_until_closed();
    let mut device = cluster.connect(2, 1);
    assert_goes_on(&mut device, &mut call, &mut peer, 180);
}

#[test]
fn while_the_gateway_with_the_call_or_with_the_connection_drains_the_device_comes_back_to_its_call() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::start(3, 1, |_| {});
    let (device, mut call, mut peer) = cluster.device_in_call(1);
    cluster.gateways[0].as_ref().unwrap().handle().drain();
    drop(device);
    let mut device = cluster.connect(1, 1);
    assert_goes_on(&mut device, &mut call, &mut peer, 120);
    // There it has a connection, and no call.
    cluster.gateways[1].as_ref().unwrap().handle().drain();
    device.mqtt.read_until_closed();
    let mut device = cluster.connect(2, 1);
    assert_goes_on(&mut device, &mut call, &mut peer, 180);
    device.send_text(r#"{"type":"goodbye"}"#);
    peer.expect_close(1000);
}

#[test]
fn without_redis_a_device_logs_in_and_calls_and_a_call_elsewhere_ends_in_words() {
    if !is_installed() {
        return;
    }
    let mut cluster = Cluster::start(2, 1, |_| {});
    let (device, mut call, mut peer) = cluster.device_in_call(1);
    let (mut other, mut other_call, mut other_peer) = cluster.device_in_call(2);
    drop(device);
    let mut device = cluster.connect(1, 1);
    assert_goes_on(&mut device, &mut call, &mut peer, 120);
    cluster.redis.kill();
    // The audio needs no Redis; what the device says does.
    exchange_audio(&mut call, &mut peer, 180);
    device.send_text(r#"{"type":"listen","state":"stop"}"#);
    device.expect_goodbye("server-session");
    assert_goes_on(&mut other, &mut other_call, &mut other_peer, 120);
    let (mut call, mut peer) = device.call(&cluster.server);
    exchange_audio(&mut call, &mut peer, 60);
    let mut third = cluster.connect(1, 3);
    let (mut call, mut peer) = third.call(&cluster.server);
    exchange_audio(&mut call, &mut peer, 60);
}

#[test]
fn any_gateway_answers_for_a_device_that_came_back_through_another_one() {
    if !is_installed() {
        return;
    }
    const TOKEN: &str = "a-token-for-the-cluster";
    let cluster = Cluster::start(3, 2, |config| {
        config.api.enabled = true;
        config.api.token = Secret::new(TOKEN);
    });
    let ask = |gateway: usize, method: &str, path: &str, body: &str| {
        let api = cluster.gateways[gateway].as_ref().unwrap().addresses().api.unwrap();
        let reply = RawClient::round_trip(api, &raw_request(method, path, TOKEN, body));
        (reply.status, serde_json::from_str::<serde_json::Value>(&reply.body).unwrap())
    };
    for gateway in 0..3 {
        let number = 1 + gateway as u8;
        let (device, mut call, mut peer) = cluster.device_in_call(number);
        drop(device);
        let mut device = cluster.connect(1, number);
        assert_goes_on(&mut device, &mut call, &mut peer, 120);
        let path = format!("/api/sessions/{}", device.mac);
        let (status, details) = ask(gateway, "GET", &path, "");
        assert_eq!((status, &details["call"]["sessionId"]), (200, &"server-session".into()), "{details}");
        assert_eq!(ask(gateway, "DELETE", &path, "").0, 200);
        device.expect_goodbye("server-session");
        peer.expect_close(1000);
        wait_until("it belongs to its own gateway", || {
            ask(gateway, "GET", &path, "").1["call"] == serde_json::Value::Null
        });
        // A denial holds everywhere.
        let denied = format!("/api/denied/{}", device.mac);
        assert_eq!(ask(gateway, "PUT", &denied, "").0, 200);
        device.mqtt.read_until_closed();
        for other in 0..3 {
            wait_until("it is told", || {
                ask(other, "GET", "/api/denied", "").1["denied"] == json!([device.mac])
            });
            let mut client = Client::open(cluster.gateways[other].as_ref().unwrap().addresses().mqtt);
            assert_eq!(client.connack_code(&Connect::new(&device.client_id)), 5, "gateway {other}");
        }
        assert_eq!(ask((gateway + 1) % 3, "DELETE", &denied, "").0, 200);
        for other in 0..3 {
            wait_until("it is told", || ask(other, "GET", "/api/denied", "").1["denied"] == json!([]));
        }
    }
}
