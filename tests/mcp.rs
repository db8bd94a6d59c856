//! The device's tools: learned when it connects, answered from memory.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use mqtt_websocket_proxy::config::Config;
use mqtt_websocket_proxy::net::Running;
use serde_json::{Value, json};
use support::audio::Call;
use support::chat::{ChatServer, Peer};
use support::device::{Device, client_id};
use support::gateway_with;
use support::logged::Logged;

struct Scene {
    _gateway: Running,
    server: ChatServer,
    device: Device,
    log: Logged,
}

fn scene(number: u8, change: impl FnOnce(&mut Config)) -> Scene {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| {
        config.mcp.enabled = true;
        change(config);
    });
    let log = Logged::about(client_id(number));
    let device = Device::connect(gateway.addresses().mqtt, number);
    Scene { _gateway: gateway, server, device, log }
}

/// What the gateway asks of the device next: id, method, params.
fn asked(device: &mut Device) -> (Value, String, Value) {
    let message = device.json();
    assert_eq!(
        (&message["type"], &message["payload"]["jsonrpc"]),
        (&"mcp".into(), &"2.0".into()),
        "{message}"
    );
    let payload = &message["payload"];
    (payload["id"].clone(), payload["method"].as_str().unwrap().to_owned(), payload["params"].clone())
}

fn reply(device: &mut Device, id: &Value, result: Value) {
    let payload = json!({"jsonrpc": "2.0", "id": id, "result": result});
    device.say(&json!({"session_id": "", "type": "mcp", "payload": payload}).to_string());
}

fn initialize(device: &mut Device) {
    let (id, method, params) = asked(device);
    assert_eq!(method, "initialize");
    assert!(params["protocolVersion"].is_string() && params["clientInfo"]["name"].is_string(), "{params}");
    assert!((0x4000_0000..0x8000_0000).contains(&id.as_u64().unwrap()), "{id}");
    reply(device, &id, json!({"protocolVersion": "2024-11-05", "serverInfo": {"name": "board"}}));
    let (id, method, _) = asked(device);
    assert_eq!((id, &*method), (Value::Null, "notifications/initialized"));
}

fn tool(name: &str) -> Value {
    json!({"name": name, "inputSchema": {"type": "object"}})
}

/// One page; the cursor it was asked with.
fn page(device: &mut Device, names: &[&str], next: Option<&str>) -> Value {
    let (id, method, params) = asked(device);
    assert_eq!(method, "tools/list");
    let mut result = json!({"tools": names.iter().map(|name| tool(name)).collect::<Vec<_>>()});
    if let Some(next) = next {
        result["nextCursor"] = next.into();
    }
    reply(device, &id, result);
    params["cursor"].clone()
}

fn ask(peer: &mut Peer, id: Value, method: &str, params: Option<Value>) {
    let mut payload = json!({"jsonrpc": "2.0", "id": id, "method": method});
    if let Some(params) = params {
        payload["params"] = params;
    }
    peer.say(&json!({"type": "mcp", "payload": payload}).to_string());
}

/// The names of the tools in the answer to this request.
fn answered(peer: &mut Peer, id: &Value) -> Vec<String> {
    let message = peer.json();
    assert_eq!((&message["type"], &message["payload"]["id"]), (&"mcp".into(), id), "{message}");
    let tools = message["payload"]["result"]["tools"].as_array().unwrap_or_else(|| panic!("{message}"));
    tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
}

fn call(scene: &mut Scene) -> (Call, Peer) {
    scene.device.call(&scene.server)
}

/// The request reaches the device, and the device's answer the server, under the server's own id.
fn assert_forwarded(device: &mut Device, peer: &mut Peer, id: &Value) {
    let (seen, method, _) = asked(device);
    reply(device, &seen, json!({"from": "device"}));
    let message = peer.json();
    assert_eq!(
        (&message["payload"]["id"], &message["payload"]["result"]["from"]),
        (id, &"device".into()),
        "{method}"
    );
}

#[test]
fn the_tools_are_learned_on_connect_and_answered_from_memory() {
    let mut scene = scene(1, |_| {});
    initialize(&mut scene.device);
    assert_eq!(page(&mut scene.device, &["a", "b"], Some("c")), "");
    assert_eq!(page(&mut scene.device, &["c", "d"], Some("e")), "c");
    assert_eq!(page(&mut scene.device, &["e"], Some("")), "e");
    scene.device.mqtt.assert_quiet();
    let (_call, mut peer) = call(&mut scene);
    for (id, params) in [
        (json!(2), None),
        (json!(3), Some(json!({}))),
        (json!("four"), Some(json!({"cursor": ""}))),
        (json!(0x4000_0000), Some(json!({"cursor": null}))),
    ] {
        ask(&mut peer, id.clone(), "tools/list", params);
        assert_eq!(answered(&mut peer, &id), ["a", "b", "c", "d", "e"]);
    }
    scene.device.mqtt.assert_quiet();
    // What asks for more than memory holds goes to the device.
    for (id, params) in
        [(json!(7), json!({"cursor": "c"})), (json!(8), json!({"cursor": "", "withUserTools": true}))]
    {
        ask(&mut peer, id.clone(), "tools/list", Some(params));
        assert_forwarded(&mut scene.device, &mut peer, &id);
    }
}

#[test]
fn the_answer_waits_for_the_order_of_things_but_not_for_the_hello() {
    // Some servers ask before they greet.
    let mut scene = scene(2, |_| {});
    initialize(&mut scene.device);
    page(&mut scene.device, &["a"], None);
    scene.device.say(support::device::HELLO);
    let mut peer = scene.server.accept();
    peer.upgrade();
    ask(&mut peer, json!(1), "tools/list", None);
    assert_eq!(peer.json()["type"], "hello");
    assert_eq!(answered(&mut peer, &json!(1)), ["a"]);
}

#[test]
fn initialize_is_forwarded_with_capabilities_and_answered_without() {
    let mut scene = scene(3, |_| {});
    initialize(&mut scene.device);
    page(&mut scene.device, &["a"], None);
    let (_call, mut peer) = call(&mut scene);
    for params in [None, Some(json!({"capabilities": {}}))] {
        ask(&mut peer, json!(1), "initialize", params);
        let message = peer.json();
        assert_eq!(message["payload"]["result"]["serverInfo"]["name"], "board", "{message}");
    }
    // The device was initialized by us; it need not hear it again.
    peer.say(r#"{"type":"mcp","payload":{"jsonrpc":"2.0","method":"notifications/initialized"}}"#);
    scene.device.mqtt.assert_quiet();
    let vision = json!({"capabilities": {"vision": {"url": "http://x", "token": "t"}}});
    ask(&mut peer, json!(1), "initialize", Some(vision.clone()));
    let (id, method, params) = asked(&mut scene.device);
    assert_eq!((&*method, params), ("initialize", vision));
    reply(&mut scene.device, &id, json!({"x": 1}));
    assert_eq!(peer.json()["payload"], json!({"jsonrpc": "2.0", "id": 1, "result": {"x": 1}}));
    peer.say(r#"{"type":"mcp","payload":{"jsonrpc":"2.0","method":"notifications/initialized"}}"#);
    assert_eq!(asked(&mut scene.device).1, "notifications/initialized");
}

#[test]
fn a_list_is_cut_at_its_limit_and_complete_then() {
    let mut scene = scene(4, |config| config.mcp.max_tools_count = 3);
    initialize(&mut scene.device);
    page(&mut scene.device, &["a", "b"], Some("c"));
    page(&mut scene.device, &["c", "d", "e"], Some("f"));
    scene.device.mqtt.assert_quiet();
    let (_call, mut peer) = call(&mut scene);
    ask(&mut peer, json!(1), "tools/list", None);
    assert_eq!(answered(&mut peer, &json!(1)), ["a", "b", "c"]);
}

#[test]
fn a_failed_discovery_means_forwarding() {
    type Fail = fn(&mut Device);
    let table: [(&str, Fail); 6] = [
        ("no answer yet", |device| {
            asked(device);
        }),
        ("initialize fails", |device| {
            let (id, ..) = asked(device);
            device.say(
                &json!({"type": "mcp", "payload": {"jsonrpc": "2.0", "id": id, "error": {"message": "no"}}})
                    .to_string(),
            );
        }),
        ("a page fails", |device| {
            initialize(device);
            page(device, &["a"], Some("b"));
            let (id, ..) = asked(device);
            device.say(
                &json!({"type": "mcp", "payload": {"jsonrpc": "2.0", "id": id, "error": {"message": "no"}}})
                    .to_string(),
            );
        }),
        ("a page is none", |device| {
            initialize(device);
            let (id, ..) = asked(device);
            reply(device, &id, json!({"tools": 5}));
        }),
        ("its pages go in circles", |device| {
            initialize(device);
            page(device, &["a"], Some("b"));
            page(device, &["b"], Some("c"));
            page(device, &["c"], Some("b"));
        }),
        ("its pages are empty and never end", |device| {
            initialize(device);
            // 64 pages at most.
            for n in 0..80 {
                if n > 0 && device.mqtt.stream.peek(&mut [0]).is_err() {
                    break;
                }
                device.mqtt.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                page(device, &[], Some(&format!("c{n}")));
                device.mqtt.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            }
        }),
    ];
    for (number, (how, fail)) in (10..).zip(table) {
        let mut scene = scene(number, |_| {});
        fail(&mut scene.device);
        scene.device.mqtt.assert_quiet();
        let (_call, mut peer) = call(&mut scene);
        ask(&mut peer, json!(2), "tools/list", None);
        let (id, method, _) = asked(&mut scene.device);
        assert_eq!((&id, &*method), (&json!(2), "tools/list"), "{how}");
        reply(&mut scene.device, &id, json!({"tools": [tool("z")]}));
        assert_eq!(answered(&mut peer, &json!(2)), ["z"], "{how}");
    }
}

#[test]
fn nobody_s_ids_collide() {
    let mut scene = scene(5, |_| {});
    let (ours, ..) = asked(&mut scene.device);
    let (_call, mut peer) = call(&mut scene);
    // The server uses the id of the gateway's own request, which is still open.
    for id in [ours.clone(), json!("text"), json!(2.5), json!(-1), json!(4_294_967_296_u64)] {
        ask(&mut peer, id.clone(), "tools/call", Some(json!({"name": "x"})));
        let (seen, method, params) = asked(&mut scene.device);
        assert_eq!((&*method, &params["name"]), ("tools/call", &"x".into()));
        let number = seen.as_u64().unwrap_or_else(|| panic!("{seen}, which devices do not answer"));
        assert!(number <= 0x7fff_ffff && seen != ours, "{seen}");
        reply(&mut scene.device, &seen, json!({"for": id}));
        assert_eq!(peer.json()["payload"], json!({"jsonrpc": "2.0", "id": id, "result": {"for": id}}));
    }
    // The discovery goes on as if nothing had been.
    reply(&mut scene.device, &ours, json!({}));
    assert_eq!(asked(&mut scene.device).1, "notifications/initialized");
    page(&mut scene.device, &["a"], None);
    ask(&mut peer, json!(1), "tools/list", None);
    assert_eq!(answered(&mut peer, &json!(1)), ["a"]);
    assert!(scene.log.line("1 tool").contains("DEBUG"));
}

#[test]
fn an_error_of_the_device_reaches_the_server_under_its_id() {
    let mut scene = scene(6, |_| {});
    asked(&mut scene.device);
    let (_call, mut peer) = call(&mut scene);
    ask(&mut peer, json!("x"), "tools/call", None);
    let (id, ..) = asked(&mut scene.device);
    let error = json!({"message": "Unknown tool"});
    scene
        .device
        .say(&json!({"type": "mcp", "payload": {"jsonrpc": "2.0", "id": id, "error": error}}).to_string());
    assert_eq!(peer.json()["payload"], json!({"jsonrpc": "2.0", "id": "x", "error": error}));
}

#[test]
fn what_the_device_says_by_itself_is_forwarded() {
    let mut scene = scene(7, |_| {});
    asked(&mut scene.device);
    let (_call, mut peer) = call(&mut scene);
    for payload in [
        json!({"jsonrpc": "2.0", "method": "notifications/state_changed", "params": {"a": 1}}),
        json!({"jsonrpc": "2.0", "id": 5, "method": "ask"}),
        json!({"jsonrpc": "2.0", "id": 5, "result": {}}),
    ] {
        scene.device.say(&json!({"type": "mcp", "payload": payload}).to_string());
        assert_eq!(peer.json()["payload"], payload);
    }
    // Without a payload it is still the server's to judge.
    scene.device.say(r#"{"type":"mcp"}"#);
    assert_eq!(peer.json(), json!({"type": "mcp"}));
}

#[test]
fn nothing_is_asked_when_switched_off() {
    let mut scene = scene(8, |config| config.mcp.enabled = false);
    scene.device.mqtt.assert_quiet();
    let (_call, mut peer) = call(&mut scene);
    ask(&mut peer, json!(1), "initialize", None);
    assert_forwarded(&mut scene.device, &mut peer, &json!(1));
}

#[test]
fn a_large_list_is_answered_from_memory_without_ending_the_call() {
    let mut scene = scene(9, |config| config.mcp.max_tools_count = 100);
    initialize(&mut scene.device);
    let long = "x".repeat(7000);
    let names: Vec<String> = (0..30).map(|n| format!("{n:02}{long}")).collect();
    for (n, name) in names.iter().enumerate() {
        let next = (n + 1 < names.len()).then(|| format!("cursor-{n}"));
        page(&mut scene.device, &[name], next.as_deref());
    }
    let (_call, mut peer) = call(&mut scene);
    ask(&mut peer, json!(1), "tools/list", None);
    assert_eq!(answered(&mut peer, &json!(1)), names);
    scene.device.mqtt.assert_quiet();
}

#[test]
fn a_device_that_connects_again_is_asked_again() {
    let mut scene = scene(20, |_| {});
    initialize(&mut scene.device);
    page(&mut scene.device, &["old"], None);
    let (_call, mut peer) = call(&mut scene);
    scene.device.mqtt.reset();
    scene.device = Device::connect(scene._gateway.addresses().mqtt, 20);
    initialize(&mut scene.device);
    page(&mut scene.device, &["new"], None);
    ask(&mut peer, json!(1), "tools/list", None);
    assert_eq!(answered(&mut peer, &json!(1)), ["new"]);
}
