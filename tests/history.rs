//! Calls that have ended: faults made on purpose, each with the record and the verdict that names it, and the file.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::{Config, PublicIp, ServerOrder};
use mqtt_websocket_proxy::net::Running;
use serde_json::{Value, json};
use support::chat_server::ChatServer;
use support::device::{Device, HELLO, client_id, mac};
use support::http::{http_call, metric_sum};
use support::log_capture::LogCapture;
use support::{TIMEOUT, gateway_with, refusing_port};

const GOODBYE: &str = r#"{"type":"goodbye"}"#;
const LISTEN: &str = r#"{"type":"listen","state":"start","mode":"auto"}"#;
const TTS_START: &str = r#"{"type":"tts","state":"start"}"#;
const TTS_STOP: &str = r#"{"type":"tts","state":"stop"}"#;
const OPUS: [u8; 20] = [0x88; 20];

/// The management API of a gateway without a key.
struct Api(SocketAddr);

impl Api {
    fn of(gateway: &Running) -> Self {
        Self(gateway.addresses().api.unwrap())
    }

    fn get(&self, path: &str) -> (u16, Value) {
        let (status, text) = http_call(self.0, "GET", path, None, None);
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}")))
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        serde_json::from_str(&http_call(self.0, "POST", path, Some(&body.to_string()), None).1).unwrap()
    }

    /// Repeats a request until the condition holds.
    fn poll(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + TIMEOUT;
        loop {
            let (status, answer) = self.get(path);
            if status == 200 && wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < end, "{path}: {answer}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The calls of this query, when there are so many.
    fn calls(&self, query: &str, count: usize) -> Vec<Value> {
        let has_all = |answer: &Value| answer["calls"].as_array().unwrap().len() == count;
        self.poll(&format!("/api/calls?{query}"), has_all)["calls"].as_array().unwrap().clone()
    }

    /// The only call that has ended.
    fn call(&self) -> Value {
        self.calls("", 1).remove(0)
    }
}

/// The verdict of a call without another fault: on a machine that stood still for seconds, the start of a call was slow.
fn good(call: &Value) -> &'static str {
    if call["setup"]["totalMs"].as_u64().is_some_and(|ms| ms >= 3000) { "server_slow" } else { "good" }
}

#[test]
fn a_good_call_has_a_record_with_everything() {
    let server = ChatServer::start();
    let url = format!("{}&token=hunter2", server.url());
    let gateway = gateway_with(&[&url], |_| {});
    let api = Api::of(&gateway);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, mut peer) = device.call(&server);
    for n in 0..60 {
        call.send(n, &OPUS);
        peer.binary();
    }
    let session = api.get(&format!("/api/sessions/{}", mac(1))).1;
    let so_far = &session["call"];
    assert_eq!((&so_far["packetsUp"], &so_far["last10s"]["packetsUp"]), (&60.into(), &60.into()));
    assert_eq!((&so_far["verdict"], &so_far["lossPercent"]), (&good(so_far).into(), &0.0.into()));
    peer.send_audio(1, &OPUS);
    call.receive();
    device.send_text(GOODBYE);
    let record = api.call();
    for (key, value) in [
        ("clientId", json!(client_id(1))),
        ("mac", json!(mac(1))),
        ("ip", json!("127.0.0.1")),
        ("route", json!("production")),
        ("sessionId", json!("server-session")),
        ("deviceCall", json!(false)),
        ("peer", Value::Null),
        ("answered", json!(true)),
        ("reason", json!("device_goodbye")),
        ("endedBy", json!("device")),
        ("packetsUp", json!(60)),
        ("bytesUp", json!(1200)),
        ("packetsDown", json!(1)),
        ("lost", json!(0)),
        ("worstLossPercent", json!(0.0)),
        ("redials", json!(0)),
        ("resumed", json!(0)),
        ("failures", json!([])),
        ("verdict", json!(good(&record))),
    ] {
        assert_eq!(record[key], value, "{key}: {record}");
    }
    let shown = record["server"].as_str().unwrap();
    assert!(shown.contains("&token=***") && !record.to_string().contains("hunter2"), "{shown}");
    assert!(record["firstPacketMs"].is_u64() && record["setup"]["totalMs"].is_u64(), "{record}");
    assert!(record.get("series").is_none(), "only a call by itself has it");
    // `2026-01-31T23:59:59.999+08:00`
    let times = ["startedAt", "endedAt"].map(|key| record[key].as_str().unwrap());
    assert!(
        times.iter().all(|time| time.len() == 29 && &time[10..11] == "T") && times[0] <= times[1],
        "{times:?}"
    );

    let (status, shown) = api.get(&format!("/api/calls/{}", record["id"]));
    assert_eq!((status, &shown["id"], &shown["sessionId"]), (200, &record["id"], &json!("server-session")));
    let slices = shown["series"]["slices"].as_array().unwrap();
    let packets: u64 = slices.iter().map(|slice| slice["packetsUp"].as_u64().unwrap()).sum();
    assert_eq!((&shown["series"]["sliceSeconds"], packets), (&json!(10), 60));
    assert_eq!(api.get("/api/calls/1").0, 404);
    assert_eq!(api.get("/api/calls/x").0, 404);
    assert_eq!(api.get("/api/calls?verdict=bad").0, 400);
    let metrics = [("gateway_calls_by_verdict_total", 1.0), ("gateway_history_calls", 1.0)];
    for (name, value) in metrics {
        assert_eq!(metric_sum(api.0, name, None).to_bits(), f64::to_bits(value), "{name}");
    }
    let stages = metric_sum(api.0, "gateway_call_setup_seconds_count", None);
    assert_eq!(stages.to_bits(), 5_f64.to_bits(), "each stage of one call");
}

/// A value has exactly the members that the description of the API requires of this schema, those of objects in it included.
fn assert_described(schemas: &Value, schema: &Value, value: &Value) {
    let name = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next());
    let schema = name.map_or(schema, |name| &schemas[name]);
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        return values.iter().for_each(|value| assert_described(schemas, items, value));
    }
    let (Some(members), Some(described)) = (value.as_object(), schema["properties"].as_object()) else {
        return;
    };
    let required: BTreeSet<_> =
        schema["required"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(members.keys().map(String::as_str).collect::<BTreeSet<_>>(), required);
    for (name, value) in members {
        assert_described(schemas, &described[name], value);
    }
}

#[test]
fn calls_are_as_the_description_of_the_api_says() {
    let server = ChatServer::start();
    let down = format!("ws://{}/", refusing_port());
    let gateway = gateway_with(&[down, server.url()], |config| config.websocket.order = ServerOrder::First);
    let api = Api::of(&gateway);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (mut call, mut peer) = device.call(&server);
    call.send(0, &OPUS);
    peer.binary();
    let schemas = api.get("/openapi.json").1["components"]["schemas"].take();
    let so_far = api.get(&format!("/api/sessions/{}", mac(1))).1;
    assert_described(&schemas, &schemas["Call"], &so_far["call"]);
    device.send_text(GOODBYE);
    let record = api.call();
    assert_eq!(record["failures"].as_array().unwrap().len(), 1, "{record}");
    assert_described(&schemas, &schemas["CallRecord"], &record);
    assert_described(&schemas, &schemas["Calls"], &api.get("/api/calls").1);
    let mut shown = api.get(&format!("/api/calls/{}", record["id"])).1;
    let series = shown.as_object_mut().unwrap().remove("series").unwrap();
    assert_described(&schemas, &schemas["CallRecord"], &shown);
    assert_described(&schemas, &schemas["FinishedCall"]["allOf"][1], &json!({ "series": series }));
}

/// Passes datagrams on to the gateway, except each eleventh.
fn lossy_relay(gateway: SocketAddr, stopped: Arc<AtomicBool>) -> SocketAddr {
    let relay = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    relay.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let addr = relay.local_addr().unwrap();
    thread::spawn(move || {
        let (mut datagram, mut number) = ([0; 2048], 0);
        while !stopped.load(Ordering::Relaxed) {
            let Ok(length) = relay.recv(&mut datagram) else { continue };
            number += 1;
            if number % 11 != 5 {
                relay.send_to(&datagram[..length], gateway).unwrap();
            }
        }
    });
    addr
}

#[test]
fn a_network_that_loses_nine_percent() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |_| {});
    let api = Api::of(&gateway);
    let mut device = Device::connect(gateway.addresses().mqtt, 2);
    let (mut call, mut peer) = device.call(&server);
    let stopped = Arc::new(AtomicBool::new(false));
    call.gateway = lossy_relay(call.gateway, stopped.clone());
    for n in 0..110 {
        call.send(n, &OPUS);
        if n % 11 != 4 {
            peer.binary();
        }
    }
    let so_far = api.get(&format!("/api/sessions/{}", mac(2))).1;
    assert_eq!(so_far["call"]["verdict"], "lossy_uplink", "{so_far}");
    device.send_text(GOODBYE);
    let record = api.call();
    stopped.store(true, Ordering::Relaxed);
    assert_eq!((&record["lost"], &record["lossPercent"]), (&10.into(), &9.1.into()), "{record}");
    assert_eq!(record["verdict"], "lossy_uplink");
    assert_eq!(metric_sum(api.0, "gateway_audio_lost_total", None).to_bits(), 10_f64.to_bits());
}

#[test]
fn a_firewall_that_drops_udp() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |_| {});
    let api = Api::of(&gateway);
    let mut device = Device::connect(gateway.addresses().mqtt, 3);
    let (_call, mut peer) = device.call(&server);
    device.send_text(LISTEN);
    peer.text();
    // Not before the device has listened for 3 s.
    api.poll(&format!("/api/sessions/{}", mac(3)), |answer| answer["call"]["verdict"] == "no_audio");
    device.send_text(GOODBYE);
    let record = api.call();
    assert_eq!(
        (&record["verdict"], &record["firstPacketMs"]),
        (&"no_audio".into(), &Value::Null),
        "{record}"
    );
    assert!(record["unheardMs"].as_u64().unwrap() >= 3000, "{record}");
}

#[test]
fn chat_servers_that_are_down() {
    let urls = [refusing_port(), refusing_port()].map(|addr| format!("ws://{addr}/chat"));
    let gateway = gateway_with(&urls, |config| config.websocket.order = ServerOrder::First);
    let api = Api::of(&gateway);
    let mut device = Device::connect(gateway.addresses().mqtt, 4);
    device.send_text(HELLO);
    device.expect_failure();
    let record = api.call();
    assert_eq!((&record["verdict"], &record["reason"]), (&"server_failed".into(), &"no_server".into()));
    assert_eq!((&record["answered"], &record["endedBy"]), (&false.into(), &"server".into()));
    assert_eq!((&record["setup"]["totalMs"], &record["failureCount"]), (&Value::Null, &2.into()), "{record}");
    for (failure, url) in record["failures"].as_array().unwrap().iter().zip(&urls) {
        assert_eq!((&failure["server"], &failure["stage"]), (&url.as_str().into(), &"connect".into()));
        assert!(failure["cause"].as_str().unwrap().contains("refused"), "{failure}");
    }
    assert!(!record["sessionId"].as_str().unwrap().is_empty());
}

#[test]
fn a_chat_server_that_is_lost_and_replaced() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |_| {});
    let api = Api::of(&gateway);
    let mut device = Device::connect(gateway.addresses().mqtt, 5);
    let (mut call, mut peer) = device.call(&server);
    call.send(0, &OPUS);
    peer.binary();
    peer.reset();
    let mut peer = server.accept();
    peer.upgrade();
    peer.exchange_hello("second");
    api.poll(&format!("/api/sessions/{}", mac(5)), |answer| answer["call"]["redials"] == 1);
    call.send(0, &OPUS);
    peer.binary();
    device.send_text(GOODBYE);
    let record = api.call();
    assert_eq!((&record["verdict"], &record["redials"]), (&"server_failed".into(), &1.into()), "{record}");
    assert_eq!(record["failures"][0]["stage"], "live", "{record}");
}

#[test]
fn a_chat_server_that_is_slow_to_greet() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |_| {});
    let api = Api::of(&gateway);
    let mut device = Device::connect(gateway.addresses().mqtt, 6);
    device.send_text(HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    // The fault itself.
    thread::sleep(Duration::from_millis(3050));
    peer.exchange_hello("late");
    let mut call = device.hello_reply();
    call.send(0, &OPUS);
    device.send_text(GOODBYE);
    let record = api.call();
    assert_eq!((&record["verdict"], &record["answered"]), (&"server_slow".into(), &true.into()), "{record}");
    let setup = &record["setup"];
    assert!(
        setup["totalMs"].as_u64().unwrap() >= 3050 && setup["helloMs"].as_u64().unwrap() >= 3000,
        "{setup}"
    );
}

#[test]
fn a_chat_server_that_pauses_in_its_speech() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |_| {});
    let api = Api::of(&gateway);
    let mut device = Device::connect(gateway.addresses().mqtt, 7);
    let (mut call, mut peer) = device.call(&server);
    call.send(0, &OPUS);
    peer.binary();
    peer.send_text(TTS_START);
    device.json();
    peer.send_audio(1, &OPUS);
    call.receive();
    // The fault itself: the frame lasts 60 ms.
    thread::sleep(Duration::from_millis(600));
    peer.send_audio(2, &OPUS);
    call.receive();
    peer.send_text(TTS_STOP);
    device.json();
    device.send_text(GOODBYE);
    let record = api.call();
    assert_eq!((&record["verdict"], &record["gaps"]), (&"server_gaps".into(), &1.into()), "{record}");
    assert!(record["longestGapMs"].as_u64().unwrap() >= 500, "{record}");
}

#[test]
fn a_device_without_power() {
    let server = ChatServer::start();
    let gateway =
        gateway_with(&[server.url()], |config| config.mqtt.resume_grace = Duration::from_millis(50));
    let api = Api::of(&gateway);
    let mut device = Device::connect(gateway.addresses().mqtt, 8);
    let (_call, _peer) = device.call(&server);
    drop(device);
    let record = api.call();
    assert_eq!(
        (&record["verdict"], &record["endedBy"]),
        (&"device_lost".into(), &"device".into()),
        "{record}"
    );
}

#[test]
fn a_limit_that_is_reached() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.websocket.max_calls = 1);
    let api = Api::of(&gateway);
    let mut first = Device::connect(gateway.addresses().mqtt, 9);
    let (_call, _peer) = first.call(&server);
    let mut second = Device::connect(gateway.addresses().mqtt, 10);
    second.send_text(HELLO);
    second.expect_failure();
    let record = api.call();
    assert_eq!((&record["verdict"], &record["reason"]), (&"limited".into(), &"refused".into()), "{record}");
    assert_eq!((&record["mac"], &record["endedBy"]), (&mac(10).into(), &"gateway".into()));
}

#[test]
fn a_call_between_two_devices_leaves_two_records() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |_| {});
    let api = Api::of(&gateway);
    let mut devices = [11, 12].map(|number| Device::connect(gateway.addresses().mqtt, number));
    let mut calls: Vec<_> = devices.iter_mut().map(|device| device.call(&server)).collect();
    for (call, peer) in &mut calls {
        call.send(0, &OPUS);
        peer.binary();
    }
    for (caller, target) in [(11, 12), (12, 11)] {
        api.post("/api/call/request", &json!({ "caller_mac": mac(caller), "target_mac": mac(target) }));
    }
    let (call, _) = &mut calls[0];
    call.send(0, &OPUS);
    calls[1].0.receive();
    devices[0].send_text(GOODBYE);
    let records = api.calls("", 2);
    for (record, (own, other, reason, by)) in
        records.iter().zip([(12, 11, "peer_left", "other_device"), (11, 12, "device_goodbye", "device")])
    {
        assert_eq!((&record["mac"], &record["peer"]), (&mac(own).into(), &mac(other).into()), "{record}");
        assert_eq!((&record["reason"], &record["endedBy"]), (&reason.into(), &by.into()));
        assert_eq!(
            (&record["deviceCall"], &record["verdict"]),
            (&true.into(), &good(record).into()),
            "{record}"
        );
    }
}

/// One call of this device, with a goodbye.
fn short_call(gateway: &Running, server: &ChatServer, number: u8) {
    let mut device = Device::connect(gateway.addresses().mqtt, number);
    let (mut call, mut peer) = device.call(server);
    call.send(0, &OPUS);
    peer.binary();
    device.send_text(GOODBYE);
    peer.expect_close(1000);
}

#[test]
fn all_workers_calls_are_in_one_list_that_is_read_page_by_page() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| {
        config.workers = 3;
        config.history.mask_addresses = true;
    });
    let api = Api::of(&gateway);
    for number in 20..32 {
        short_call(&gateway, &server, number);
    }
    let all = api.calls("", 12);
    assert!(all.iter().all(|call| call["ip"] == "127.0.0.0/24"), "{all:?}");
    let (mut ids, mut path) = (Vec::new(), "/api/calls?limit=5".to_owned());
    loop {
        let page = api.get(&path).1;
        ids.extend(page["calls"].as_array().unwrap().iter().map(|call| call["id"].as_u64().unwrap()));
        let Some(next) = page["next"].as_u64() else { break };
        path = format!("/api/calls?limit=5&cursor={next}");
    }
    assert_eq!(ids, all.iter().map(|call| call["id"].as_u64().unwrap()).collect::<Vec<_>>());
    assert!(ids.is_sorted_by(|one, other| one > other), "the latest first: {ids:?}");
    assert_eq!(api.calls(&format!("device={}", mac(25)), 1)[0]["mac"], mac(25));
    let since = all[3]["endedAt"].as_str().unwrap().replace('+', "%2B");
    assert!(
        (4..=12)
            .contains(&api.get(&format!("/api/calls?since={since}")).1["calls"].as_array().unwrap().len())
    );
}

#[test]
fn a_history_that_is_off_says_so() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| config.history.calls = 0);
    let api = Api::of(&gateway);
    short_call(&gateway, &server, 40);
    for path in ["/api/calls", "/api/calls/1"] {
        let (status, answer) = api.get(path);
        assert_eq!((status, &answer["code"]), (409, &"history_off".into()), "{path}");
    }
}

// ----- the file ---------------------------------------------------------------------------------------------------

/// A path of its own in a folder of this test's, which does not exist yet.
fn history_path(name: &str) -> PathBuf {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("history-{name}-{}", std::process::id()));
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("{error}"),
        _ => folder.join("calls.jsonl"),
    }
}

fn with_file(path: &Path) -> impl FnOnce(&mut Config) {
    let file = Some(path.to_owned());
    |config| {
        config.history.file = file;
        config.udp.public_ip = PublicIp::Auto;
    }
}

#[test]
fn the_last_calls_are_back_after_a_restart_that_tore_a_line() {
    let server = ChatServer::start();
    let path = history_path("restart");
    let gateway = gateway_with(&[server.url()], with_file(&path));
    for number in [50, 51] {
        short_call(&gateway, &server, number);
    }
    let before = Api::of(&gateway).calls("", 2);
    gateway.stop(Duration::from_secs(3)).unwrap();
    let lines = fs::read_to_string(&path).unwrap();
    assert_eq!((lines.lines().count(), lines.ends_with('\n')), (2, true), "{lines}");
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"id\":17,\"start").unwrap();

    let gateway = gateway_with(&[server.url()], with_file(&path));
    let api = Api::of(&gateway);
    assert_eq!(api.calls("", 2), before);
    assert!(api.get(&format!("/api/calls/{}", before[0]["id"])).1["series"]["slices"].is_array());
    short_call(&gateway, &server, 52);
    let after = api.calls("", 3);
    assert_eq!((&after[1..], &after[0]["mac"]), (&before[..], &mac(52).into()));
    gateway.stop(Duration::from_secs(3)).unwrap();
    let lines = fs::read_to_string(&path).unwrap();
    let records: Vec<_> = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect();
    assert_eq!((records.len(), lines.lines().count()), (3, 4), "the torn line stands alone: {lines}");
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_said_once_and_costs_no_call() {
    let server = ChatServer::start();
    let mut log = LogCapture::containing("/dev/full");
    let gateway = gateway_with(&[server.url()], with_file(Path::new("/dev/full")));
    let api = Api::of(&gateway);
    for number in 60..64 {
        short_call(&gateway, &server, number);
    }
    api.calls("", 4);
    let end = Instant::now() + TIMEOUT;
    while metric_sum(api.0, "gateway_history_records_lost_total", None) < 4.0 {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(5));
    }
    log.wait_for_line("cannot be written");
    assert_eq!(log.count("cannot be written"), 0, "once");
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error_at_the_start() {
    let mut config = support::config(&["ws://127.0.0.1:1/"]);
    config.history.file = Some(env!("CARGO_TARGET_TMPDIR").into());
    let error = Running::start(config, None).err().unwrap().to_string();
    assert!(error.starts_with("cannot use history.file: "), "{error}");
}
