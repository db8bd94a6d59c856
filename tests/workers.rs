//! Several workers: devices, calls, limits and the management API on any worker.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::net::Running;
use mqtt_websocket_proxy::tools::device::{Call, DeviceError, Login, SimulatedDevice};
use mqtt_websocket_proxy::tools::echo::EchoServer;
use serde_json::{Value, json};
use support::TIMEOUT;
use support::admin::{Fixture, KEY, TOKEN, fixture, mac};

/// Enough that every worker gets connections and devices.
const DEVICES: u16 = 24;

/// The worker that serves the call: its ssrc, which the nonce holds, says so.
fn worker_of(call: &Call, workers: u32) -> u32 {
    u32::from_be_bytes(call.parameters.nonce[4..8].try_into().unwrap()) % (4 * workers)
}

/// Sends until an echo arrives.
fn wait_for_echo(call: &mut Call) {
    for number in 0..50 {
        call.send(number * 60, b"\x58voice").unwrap();
        if call
            .receive(Duration::from_millis(400))
            .unwrap()
            .is_some_and(|audio| audio.payload == b"\x58voice")
        {
            return;
        }
    }
    panic!("the echo was never heard");
}

fn sessions(fixture: &Fixture, query: &str) -> Value {
    let (status, page) = fixture.request("GET", &format!("/api/sessions{query}"), None);
    assert_eq!(status, 200, "{page}");
    page
}

fn macs(page: &Value) -> Vec<String> {
    let sessions = page["sessions"].as_array().unwrap();
    sessions.iter().map(|session| session["mac"].as_str().unwrap().to_owned()).collect()
}

/// How many of these sessions this worker serves.
fn of_worker(page: &Value, worker: usize) -> f64 {
    let sessions = page["sessions"].as_array().unwrap();
    sessions.iter().filter(|session| session["worker"] == worker).count() as f64
}

fn start_call(device: &mut SimulatedDevice) -> Call {
    let call = device.call().unwrap();
    device.start_listening(&call, "auto").unwrap();
    call
}

/// The samples of `/metrics`.
fn scrape(fixture: &Fixture) -> BTreeMap<String, f64> {
    let (status, text) = fixture.request_with_token("GET", "/metrics", None, Some(TOKEN));
    assert_eq!(status, 200);
    let samples =
        text.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap());
    let all: Vec<_> = samples.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect();
    let by_name: BTreeMap<_, _> = all.iter().cloned().collect();
    assert_eq!(by_name.len(), all.len(), "a sample is there once");
    by_name
}

#[test]
fn every_worker_has_calls_and_the_api_sees_all_of_them() {
    let fixture = fixture(|config| config.workers = 3);
    let mut devices: Vec<SimulatedDevice> = (0..DEVICES).map(|n| fixture.device(&mac(n))).collect();
    let mut calls: Vec<Call> = devices.iter_mut().map(start_call).collect();
    calls.iter_mut().for_each(wait_for_echo);

    let workers: BTreeSet<u32> = calls.iter().map(|call| worker_of(call, 3)).collect();
    assert_eq!(workers, BTreeSet::from([0, 1, 2]));
    let ports: BTreeSet<u16> = calls.iter().map(|call| call.server_addr().unwrap().port()).collect();
    assert_eq!(ports.len(), 1, "all have one audio port");

    let page = sessions(&fixture, "");
    assert_eq!((&page["devices"], &page["calls"], &page["next"]), (&json!(24), &json!(24), &Value::Null));
    let expected: BTreeSet<String> = (0..DEVICES).map(mac).collect();
    assert_eq!(macs(&page).into_iter().collect::<BTreeSet<_>>(), expected);
    assert!(
        page["sessions"].as_array().unwrap().iter().all(|one| one["call"]["packetsUp"].as_u64() > Some(0))
    );
    // With pages of any length, each device is listed once.
    for limit in [1, 2, 5, 23] {
        let (mut seen, mut after) = (Vec::new(), json!(0));
        while !after.is_null() {
            let page = sessions(&fixture, &format!("?after={after}&limit={limit}"));
            assert_eq!(page["devices"], 24);
            let on_page = macs(&page);
            assert!((1..=limit).contains(&on_page.len()), "{} of {limit}", on_page.len());
            seen.extend(on_page);
            after = page["next"].clone();
        }
        assert_eq!(seen.len(), 24);
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), expected);
    }

    let numbers = scrape(&fixture);
    assert_eq!(numbers["gateway_devices_online"], 24.0);
    assert_eq!(numbers["gateway_mqtt_connections_total"], 24.0);
    assert_eq!(numbers["gateway_calls{state=\"live\"}"], 24.0);
    assert!(numbers["gateway_audio_packets_total{direction=\"up\"}"] >= 24.0);
    let of_workers = |name: &str| -> Vec<f64> {
        (0..3).map(|worker| numbers[&format!("{name}{{worker=\"{worker}\"}}")]).collect()
    };
    for name in ["gateway_worker_devices", "gateway_worker_calls"] {
        let shares = of_workers(name);
        assert!(shares.iter().sum::<f64>() == 24.0 && shares.iter().all(|share| *share > 0.0), "{shares:?}");
        assert_eq!(shares, (0..3).map(|worker| of_worker(&page, worker)).collect::<Vec<_>>());
    }
    let datagrams = of_workers("gateway_worker_datagrams_total");
    assert!(datagrams.iter().all(|of| *of > 0.0), "{datagrams:?}");
    assert!(of_workers("gateway_worker_busy_seconds_total").iter().all(|busy| *busy > 0.0));
    assert!(numbers["process_threads"] >= 3.0 && numbers["gateway_log_lines_lost_total"] == 0.0);

    // Requests for one device reach its worker.
    for (n, device) in (0..DEVICES).zip(&mut devices) {
        assert_eq!(fixture.request("GET", &format!("/api/sessions/{}", mac(n)), None).1["mac"], mac(n));
        let message = r#"{"type":"alert","message":"hi"}"#;
        assert_eq!(fixture.request("POST", &format!("/api/messages/{}", mac(n)), Some(message)).0, 200);
        assert_eq!(
            serde_json::from_str::<Value>(&device.wait_for("alert", TIMEOUT).unwrap()).unwrap()["message"],
            "hi"
        );
    }
    let ids: Vec<String> = (0..=DEVICES).map(mac).collect();
    let (_, status) =
        fixture.request("POST", "/api/devices/status", Some(&json!({ "clientIds": ids }).to_string()));
    for id in &ids[..24] {
        assert_eq!(status[id], json!({ "isAlive": true, "inCall": true, "exists": true }));
    }
    assert_eq!(status[&ids[24]], json!({ "isAlive": false, "inCall": false, "exists": false }));
    for (n, device) in (0..DEVICES).zip(&mut devices) {
        assert_eq!(fixture.request("DELETE", &format!("/api/sessions/{}", mac(n)), None).0, 200);
        device.wait_for("goodbye", TIMEOUT).unwrap();
    }
    fixture.poll_until("/api/sessions", |page| page["calls"] == 0);
    assert_eq!(fixture.request("GET", "/api/sessions/aa:bb:cc:00:00:ff", None).0, 404);
}

/// A command reaches the device's worker, and the answer the requester.
#[test]
fn commands_reach_the_worker_of_their_device() {
    let fixture = fixture(|config| config.workers = 2);
    for n in 0..8 {
        let mut device = fixture.device(&mac(n));
        let device = std::thread::spawn(move || {
            let request: Value = serde_json::from_str(&device.wait_for("mcp", TIMEOUT).unwrap()).unwrap();
            let result = json!({ "jsonrpc": "2.0", "id": request["payload"]["id"], "result": { "n": n } });
            device.send_text(&json!({ "type": "mcp", "payload": result }).to_string()).unwrap();
            device
        });
        let command = r#"{"type":"mcp","payload":{"method":"tools/call","params":{}}}"#;
        let (status, answer) = fixture.request("POST", &format!("/api/commands/{}", mac(n)), Some(command));
        assert_eq!((status, &answer["data"]["n"]), (200, &json!(n)), "{answer}");
        drop(device.join().unwrap());
    }
}

/// The system may assign each connection of a device to another worker.
#[test]
fn a_client_id_is_taken_over_from_wherever_it_was() {
    let fixture = fixture(|config| config.workers = 4);
    let mut older = fixture.device(&mac(1));
    let mut held = start_call(&mut older);
    wait_for_echo(&mut held);
    for _ in 0..24 {
        let newer = fixture.device(&mac(1));
        // The call goes on with the same key and port, and the new connection gets no message.
        wait_for_echo(&mut held);
        assert!(matches!(older.wait_for("goodbye", TIMEOUT), Err(failure) if failure.is_closed()));
        older = newer;
    }
    let page = sessions(&fixture, "");
    assert_eq!((&page["devices"], &page["calls"]), (&json!(1), &json!(1)));
    older.goodbye(&held).unwrap();
    fixture.poll_until("/api/sessions", |page| page["calls"] == 0);
}

/// MQTT 3.1.1, section 3.1.0-2; a connection that is handed to another worker has not logged in.
#[test]
fn a_second_connect_closes_the_connection_whichever_worker_its_device_belongs_to() {
    let fixture = fixture(|config| (config.workers, config.mqtt.signature_key) = (3, None));
    for n in 0..DEVICES {
        let mut connection = TcpStream::connect(fixture.gateway.addresses().mqtt).unwrap();
        connection.set_read_timeout(Some(TIMEOUT)).unwrap();
        for n in [n, n + DEVICES] {
            let client_id = format!("GID_test@@@{}@@@uuid", mac(n).replace(':', "_"));
            let body = [
                b"\x00\x04MQTT\x04\x02\x00\x3c\x00".as_slice(),
                &[client_id.len() as u8],
                client_id.as_bytes(),
            ];
            let body = body.concat();
            connection.write_all(&[[0x10, body.len() as u8].as_slice(), &body].concat()).unwrap();
        }
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"\x20\x02\x00\x00", "{n}");
    }
    fixture.poll_until("/api/sessions", |page| page["devices"] == 0);
}

/// `None` if CONNECT was refused because of a limit.
fn try_connect(fixture: &Fixture, n: u16) -> Option<SimulatedDevice> {
    let login = Login::new(mac(n).parse().unwrap(), Some(KEY.as_bytes()));
    let tried: Result<SimulatedDevice, DeviceError> =
        SimulatedDevice::connect(fixture.gateway.addresses().mqtt, &login, TIMEOUT);
    tried.ok()
}

#[test]
fn limits_hold_for_all_workers_together() {
    let full = fixture(|config| (config.workers, config.mqtt.max_connections) = (3, 10));
    let mut inside: Vec<SimulatedDevice> = Vec::new();
    for n in 0..30 {
        inside.extend(try_connect(&full, n));
        let online = inside.len();
        full.poll_until("/api/sessions", |page| page["devices"] == online);
    }
    assert_eq!(inside.len(), 10);
    drop(inside);
    full.poll_until("/api/sessions", |page| page["devices"] == 0);
    assert!(try_connect(&full, 40).is_some());

    let crowded = fixture(|config| (config.workers, config.mqtt.max_connections_per_ip) = (3, 7));
    let inside: Vec<SimulatedDevice> = (0..30).filter_map(|n| try_connect(&crowded, n)).collect();
    assert_eq!(inside.len(), 7);
    drop(inside);
    crowded.poll_until("/api/sessions", |page| page["devices"] == 0);
    assert_eq!((0..7).filter_map(|n| try_connect(&crowded, n)).count(), 7);

    let busy = fixture(|config| (config.workers, config.websocket.max_calls) = (3, 5));
    let mut devices: Vec<SimulatedDevice> = (0..20).map(|n| busy.device(&mac(n))).collect();
    let mut calls = Vec::new();
    for device in &mut devices {
        // One call too many is answered, and ended with an alert.
        calls.push(device.call().unwrap());
        let going_on = calls.len().min(5);
        busy.poll_until("/api/sessions", |page| page["calls"] == going_on);
    }
    for device in &mut devices[5..] {
        device.wait_for("goodbye", TIMEOUT).unwrap();
    }
}

#[test]
fn dials_are_limited_for_all_workers_together() {
    // Nothing is read from it, so each dial waits for the answer to its upgrade.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("ws://{}/", silent.local_addr().unwrap());
    for workers in [2, 3] {
        let fixture = fixture(|config| {
            (config.workers, config.websocket.max_dials) = (workers, 4);
            config.websocket.production = vec![std::sync::Arc::new(url.parse().unwrap())];
        });
        let mut devices: Vec<SimulatedDevice> = (0..DEVICES).map(|n| fixture.device(&mac(n))).collect();
        for device in &mut devices {
            device.send_text(r#"{"type":"hello","version":3,"transport":"udp","audio_params":{}}"#).unwrap();
        }
        // The listener is blocking, so this waits for the four that come, and not for a fifth.
        let opened: Vec<_> = (0..4).map(|_| silent.accept().unwrap()).collect();
        let end = Instant::now() + TIMEOUT;
        while scrape(&fixture)["gateway_queue_length{queue=\"dials\"}"] != f64::from(DEVICES) - 4.0 {
            assert!(Instant::now() < end, "{:?}", scrape(&fixture));
        }
        silent.set_nonblocking(true).unwrap();
        assert!(silent.accept().is_err(), "a fifth dial");
        silent.set_nonblocking(false).unwrap();
        drop(opened);
        // Each that ends makes room for the next one, at whichever worker that waits.
        (4..DEVICES).for_each(|_| drop(silent.accept().unwrap()));
    }
}

/// A device has its bucket of hellos at its own worker, whichever one accepts its connections.
#[test]
fn hellos_are_limited_over_all_connections_of_a_device() {
    let fixture = fixture(|config| (config.workers, config.mqtt.hello_limit) = (3, 1));
    for n in 0..3 {
        for _ in 0..8 {
            // Each takes the call of the one before over; a hello starts the next call.
            let mut device = fixture.device(&mac(n));
            device.send_text(r#"{"type":"hello","version":3,"transport":"udp","audio_params":{}}"#).unwrap();
            device.wait_for("hello", TIMEOUT).unwrap();
        }
    }
    let limited = scrape(&fixture)["gateway_calls_ended_total{reason=\"hello_limit\"}"];
    // Fewer if the connections take so long that the bucket gets one back.
    assert!((1.0..=21.0).contains(&limited), "{limited}");
}

#[test]
fn a_reload_and_a_stop_reach_every_worker() {
    let fixture = fixture(|config| config.workers = 3);
    let mut devices: Vec<SimulatedDevice> = (0..DEVICES).map(|n| fixture.device(&mac(n))).collect();
    let other = EchoServer::start().unwrap();
    let mut config = support::admin::config(&other, |config| config.workers = 3);
    config.api.host = None;
    fixture.gateway.handle().reload(config);
    fixture.poll_until("/api/config", |config| {
        config["websocket"]["production_servers"][0].to_string().contains(&other.addr().port().to_string())
    });
    let _calls: Vec<Call> = devices.iter_mut().map(start_call).collect();
    let page = sessions(&fixture, "");
    let at = |session: &Value| session["call"]["server"].as_str().unwrap().to_owned();
    for session in page["sessions"].as_array().unwrap() {
        assert!(at(session).contains(&other.addr().port().to_string()), "{session}");
    }

    fixture.gateway.stop(TIMEOUT).unwrap();
    for device in &mut devices {
        device.wait_for("goodbye", TIMEOUT).unwrap();
    }
}

#[test]
fn devices_of_every_worker_are_locked_out_or_disconnected() {
    let fixture = fixture(|config| config.workers = 3);
    let closed = |device: &mut SimulatedDevice| {
        assert!(device.wait_for("nothing", TIMEOUT).is_err_and(|failure| failure.is_closed()));
    };
    let mut devices: Vec<SimulatedDevice> = (0..DEVICES).map(|n| fixture.device(&mac(n))).collect();
    let _call = start_call(&mut devices[0]);
    let mut config = support::admin::config(&fixture.echo, |config| config.workers = 3);
    config.mqtt.denied_macs = (0..8).map(|n| mac(n).parse().unwrap()).collect::<Vec<_>>().into();
    fixture.gateway.handle().reload(config);
    devices[0].wait_for("goodbye", TIMEOUT).unwrap();
    devices[..8].iter_mut().for_each(closed);
    assert!((0..8).all(|n| try_connect(&fixture, n).is_none()));
    assert_eq!(scrape(&fixture)["gateway_macs_denied_total{list=\"denied_macs\"}"], 16.0);

    let disconnect = |body: Value| {
        let (status, answer) = fixture.request("POST", "/api/devices/disconnect", Some(&body.to_string()));
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let names: Vec<String> = (0..16).map(mac).collect();
    let answer = disconnect(json!({ "clientIds": names }));
    assert_eq!(answer, json!({ "disconnected": 8, "notConnected": names[..8] }));
    devices[8..16].iter_mut().for_each(closed);
    assert_eq!(disconnect(json!({ "all": true }))["disconnected"], 8);
    devices[16..].iter_mut().for_each(closed);
    assert!(try_connect(&fixture, 20).is_some());
}

/// A shared port could be bound twice: a second gateway must still fail because it is in use.
#[test]
fn a_second_gateway_on_the_same_port_is_refused() {
    let fixture = fixture(|config| config.workers = 2);
    for workers in [1, 2] {
        let second = support::admin::config(&fixture.echo, |config| {
            (config.workers, config.mqtt.port) = (workers, fixture.gateway.addresses().mqtt.port());
        });
        let error = Running::start(second, None).map(drop).unwrap_err().to_string();
        assert!(error.contains("another program uses it"), "{error}");
    }
}

/// Sends until the other device hears it.
fn assert_hears(from: &mut Call, to: &mut Call, opus: &[u8]) {
    for number in 0..50 {
        from.send(number * 60, opus).unwrap();
        let mut limit = Duration::from_millis(400);
        while let Some(audio) = to.receive(limit).unwrap() {
            if audio.payload == opus {
                return;
            }
            limit = Duration::from_millis(100);
        }
    }
    panic!("it was never heard");
}

#[test]
fn devices_of_all_workers_call_one_another() {
    for workers in [2, 3] {
        let fixture = fixture(|config| config.workers = workers);
        let mut devices: Vec<SimulatedDevice> = (0..DEVICES).map(|n| fixture.device(&mac(n))).collect();
        let mut calls: Vec<Call> = devices.iter_mut().map(start_call).collect();
        calls.iter_mut().for_each(wait_for_echo);
        let post = |path: &str, body: Value| fixture.request("POST", path, Some(&body.to_string())).1;
        for n in (0..DEVICES).step_by(2) {
            let body = json!({ "caller_mac": mac(n), "target_mac": mac(n + 1), "caller_nickname": "me" });
            assert_eq!(post("/api/call/request", body)["status"], "pending");
            let accepted = post("/api/call/accept", json!({ "mac": mac(n + 1) }));
            assert_eq!(
                (&accepted["status"], &accepted["peerMac"]),
                (&json!("bridged"), &json!(mac(n))),
                "{accepted}"
            );
            // Neither listens in realtime mode, as far as the worker of the one knows of the other.
            assert!(accepted["note"].as_str().unwrap().contains(&format!("{}, {}", mac(n), mac(n + 1))));
            devices[usize::from(n)].wait_for("call_accepted", TIMEOUT).unwrap();
        }
        for (n, pair) in calls.chunks_mut(2).enumerate() {
            let [one, other] = pair else { unreachable!() };
            assert_hears(one, other, format!("\x58from {n}").as_bytes());
            assert_hears(other, one, format!("\x58to {n}").as_bytes());
        }
        let numbers = scrape(&fixture);
        assert_eq!(numbers["gateway_calls{state=\"bridged\"}"], f64::from(DEVICES));
        assert_eq!(numbers["gateway_device_calls_total{outcome=\"bridged\"}"], f64::from(DEVICES) / 2.0);
        assert_eq!(numbers["gateway_device_calls_total{outcome=\"requested\"}"], f64::from(DEVICES) / 2.0);
        // Of two workers, each serves one device of each pair; of three, at least one pair is apart.
        let least = if workers == 2 { f64::from(DEVICES) } else { 2.0 };
        assert!(numbers["gateway_worker_relay_total{of=\"packets\"}"] >= least, "{numbers:?}");
        for n in (0..DEVICES).step_by(2) {
            let (ender, other) = if n % 4 == 0 { (n, n + 1) } else { (n + 1, n) };
            assert_eq!(post("/api/call/hangup", json!({ "mac": mac(ender) })), json!({ "status": "ended" }));
            devices[usize::from(ender)].wait_for("goodbye", TIMEOUT).unwrap();
            devices[usize::from(other)].wait_for("goodbye", TIMEOUT).unwrap();
        }
        fixture.poll_until("/api/sessions", |page| page["calls"] == 0);
        assert_eq!(
            scrape(&fixture)["gateway_calls_ended_total{reason=\"peer_left\"}"],
            f64::from(DEVICES) / 2.0
        );
    }
}

#[test]
fn a_drain_ends_with_the_last_call_of_any_worker() {
    let fixture = fixture(|config| config.workers = 3);
    let mut devices: Vec<SimulatedDevice> = (0..DEVICES).map(|n| fixture.device(&mac(n))).collect();
    let mut calls: Vec<Call> = devices[..8].iter_mut().map(start_call).collect();
    fixture.gateway.handle().drain();
    for idle in &mut devices[8..] {
        assert!(idle.wait_for("goodbye", TIMEOUT).is_err_and(|failure| failure.is_closed()));
    }
    assert_eq!(fixture.request_with_token("GET", "/readyz", None, None).0, 503);
    // The API stays available until the last call is over.
    for (device, call) in devices[..8].iter_mut().zip(&mut calls) {
        wait_for_echo(call);
        assert_eq!(sessions(&fixture, "")["draining"], true);
        device.goodbye(call).unwrap();
    }
    let end = Instant::now() + TIMEOUT;
    while TcpStream::connect(fixture.api).is_ok() {
        assert!(Instant::now() < end, "it goes on without a call");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_drain_says_what_all_workers_wait_for_and_ends_their_calls_in_time() {
    let fixture = fixture(|config| config.workers = 3);
    let mut devices: Vec<SimulatedDevice> = (0..DEVICES).map(|n| fixture.device(&mac(n))).collect();
    let _calls: Vec<Call> = devices[..8].iter_mut().map(start_call).collect();
    for query in ["?within=0", "?within=604801", "?within=1m"] {
        assert_eq!(fixture.request("POST", &format!("/api/drain{query}"), None).0, 400, "{query}");
    }
    assert_eq!(fixture.request_with_token("POST", "/api/drain", None, None).0, 401);
    let (status, answer) = fixture.request("POST", "/api/drain?within=3600", None);
    let expected = json!({ "status": "draining", "calls": 8, "devices": 24, "secondsLeft": 3600 });
    assert_eq!((status, answer), (200, expected));
    let ready = fixture.poll_until("/readyz", |ready| ready["devices"] == 8);
    assert_eq!((&ready["status"], &ready["calls"]), (&json!("draining"), &json!(8)));
    assert!(ready["secondsLeft"].as_u64() > Some(3000), "{ready}");

    assert_eq!(fixture.request("POST", "/api/drain?within=1", None).0, 200);
    for device in &mut devices[..8] {
        device.wait_for("goodbye", TIMEOUT).unwrap();
    }
    fixture.gateway.wait().unwrap();
}

#[test]
fn ids_of_requests_repeat_at_no_worker_and_after_no_reconnection() {
    let fixture = fixture(|config| (config.workers, config.mcp.enabled) = (3, true));
    let mut ids = BTreeSet::new();
    for _ in 0..2 {
        let mut devices: Vec<SimulatedDevice> = (0..DEVICES).map(|n| fixture.device(&mac(n))).collect();
        for device in &mut devices {
            let request: Value = serde_json::from_str(&device.wait_for("mcp", TIMEOUT).unwrap()).unwrap();
            let id = request["payload"]["id"].as_u64().unwrap();
            assert!((0x4000_0000..0x8000_0000).contains(&id), "{id}");
            assert!(ids.insert(id), "{id} again");
        }
    }
}
