//! The device's tools: requested when it connects, answered from the cache.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use mqtt_websocket_proxy::config::Config;
use mqtt_websocket_proxy::net::Running;
use serde_json::{Value, json};
use support::audio::Call;
use support::chat_server::{ChatServer, Peer};
use support::device::{Device, client_id};
use support::gateway_with;
use support::log_capture::LogCapture;

struct Fixture {
    _gateway: Running,
    server: ChatServer,
    device: Device,
    log: LogCapture,
}

fn fixture(number: u8, change: impl FnOnce(&mut Config)) -> Fixture {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| {
        config.mcp.enabled = true;
        change(config);
    });
    let log = LogCapture::containing(client_id(number));
    let device = Device::connect(gateway.addresses().mqtt, number);
    Fixture { _gateway: gateway, server, device, log }
}

/// The gateway's next request to the device: id, method, params.
fn next_request(device: &mut Device) -> (Value, String, Value) {
    let message = device.json();
    assert_eq!(
        (&message["type"], &message["payload"]["jsonrpc"]),
        (&"mcp".into(), &"2.0".into()),
        "{message}"
    );
    let payload = &message["payload"];
    (payload["id"].clone(), payload["method"].as_str().unwrap().to_owned(), payload["params"].clone())
}

fn send_result(device: &mut Device, id: &Value, result: Value) {
    let payload = json!({"jsonrpc": "2.0", "id": id, "result": result});
    device.send_text(&json!({"session_id": "", "type": "mcp", "payload": payload}).to_string());
}

fn answer_initialize(device: &mut Device) {
    let (id, method, params) = next_request(device);
    assert_eq!(method, "initialize");
    assert!(params["protocolVersion"].is_string() && params["clientInfo"]["name"].is_string(), "{params}");
    assert!((0x4000_0000..0x8000_0000).contains(&id.as_u64().unwrap()), "{id}");
    send_result(device, &id, json!({"protocolVersion": "2024-11-05", "serverInfo": {"name": "board"}}));
    let (id, method, _) = next_request(device);
    assert_eq!((id, &*method), (Value::Null, "notifications/initialized"));
}

fn tool(name: &str) -> Value {
    json!({"name": name, "inputSchema": {"type": "object"}})
}

/// One page; the cursor it was asked with.
fn answer_tools_page(device: &mut Device, names: &[&str], next: Option<&str>) -> Value {
    let (id, method, params) = next_request(device);
    assert_eq!(method, "tools/list");
    let mut result = json!({"tools": names.iter().map(|name| tool(name)).collect::<Vec<_>>()});
    if let Some(next) = next {
        result["nextCursor"] = next.into();
    }
    send_result(device, &id, result);
    params["cursor"].clone()
}

fn send_request(peer: &mut Peer, id: Value, method: &str, params: Option<Value>) {
    let mut payload = json!({"jsonrpc": "2.0", "id": id, "method": method});
    if let Some(params) = params {
        payload["params"] = params;
    }
    peer.send_text(&json!({"type": "mcp", "payload": payload}).to_string());
}

/// The names of the tools in the answer to this request.
fn tool_names_in_response(peer: &mut Peer, id: &Value) -> Vec<String> {
    let message = peer.json();
    assert_eq!((&message["type"], &message["payload"]["id"]), (&"mcp".into(), id), "{message}");
    let tools = message["payload"]["result"]["tools"].as_array().unwrap_or_else(|| panic!("{message}"));
    tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
}

fn start_call(fixture: &mut Fixture) -> (Call, Peer) {
    fixture.device.call(&fixture.server)
}

/// The request reaches the device, and the device's answer the server, under the server's own id.
fn assert_forwarded(device: &mut Device, peer: &mut Peer, id: &Value) {
    let (seen, method, _) = next_request(device);
    send_result(device, &seen, json!({"from": "device"}));
    let message = peer.json();
    assert_eq!(
        (&message["payload"]["id"], &message["payload"]["result"]["from"]),
        (id, &"device".into()),
        "{method}"
    );
}

#[test]
fn the_tools_are_learned_on_connect_and_answered_from_memory() {
    let mut fixture = fixture(1, |_| {});
    answer_initialize(&mut fixture.device);
    assert_eq!(answer_tools_page(&mut fixture.device, &["a", "b"], Some("c")), "");
    assert_eq!(answer_tools_page(&mut fixture.device, &["c", "d"], Some("e")), "c");
    assert_eq!(answer_tools_page(&mut fixture.device, &["e"], Some("")), "e");
    fixture.device.mqtt.assert_nothing_pending();
    let (_call, mut peer) = start_call(&mut fixture);
    for (id, params) in [
        (json!(2), None),
        (json!(3), Some(json!({}))),
        (json!("four"), Some(json!({"cursor": ""}))),
        (json!(0x4000_0000), Some(json!({"cursor": null}))),
    ] {
        send_request(&mut peer, id.clone(), "tools/list", params);
        assert_eq!(tool_names_in_response(&mut peer, &id), ["a", "b", "c", "d", "e"]);
    }
    fixture.device.mqtt.assert_nothing_pending();
    // Requests that the cache cannot answer go to the device.
    for (id, params) in
        [(json!(7), json!({"cursor": "c"})), (json!(8), json!({"cursor": "", "withUserTools": true}))]
    {
        send_request(&mut peer, id.clone(), "tools/list", Some(params));
        assert_forwarded(&mut fixture.device, &mut peer, &id);
    }
}

#[test]
fn the_answer_keeps_the_message_order_and_does_not_wait_for_the_hello() {
    // Some servers send requests before their hello.
    let mut fixture = fixture(2, |_| {});
    answer_initialize(&mut fixture.device);
    answer_tools_page(&mut fixture.device, &["a"], None);
    fixture.device.send_text(support::device::HELLO);
    let mut peer = fixture.server.accept();
    peer.upgrade();
    send_request(&mut peer, json!(1), "tools/list", None);
    assert_eq!(peer.json()["type"], "hello");
    assert_eq!(tool_names_in_response(&mut peer, &json!(1)), ["a"]);
}

#[test]
fn initialize_is_forwarded_with_capabilities_and_answered_without() {
    let mut fixture = fixture(3, |_| {});
    answer_initialize(&mut fixture.device);
    answer_tools_page(&mut fixture.device, &["a"], None);
    let (_call, mut peer) = start_call(&mut fixture);
    for params in [None, Some(json!({"capabilities": {}}))] {
        send_request(&mut peer, json!(1), "initialize", params);
        let message = peer.json();
        assert_eq!(message["payload"]["result"]["serverInfo"]["name"], "board", "{message}");
    }
    // The gateway has initialized the device already; the device does not get it again.
    peer.send_text(r#"{"type":"mcp","payload":{"jsonrpc":"2.0","method":"notifications/initialized"}}"#);
    fixture.device.mqtt.assert_nothing_pending();
    let vision = json!({"capabilities": {"vision": {"url": "http://x", "token": "t"}}});
    send_request(&mut peer, json!(1), "initialize", Some(vision.clone()));
    let (id, method, params) = next_request(&mut fixture.device);
    assert_eq!((&*method, params), ("initialize", vision));
    send_result(&mut fixture.device, &id, json!({"x": 1}));
    assert_eq!(peer.json()["payload"], json!({"jsonrpc": "2.0", "id": 1, "result": {"x": 1}}));
    peer.send_text(r#"{"type":"mcp","payload":{"jsonrpc":"2.0","method":"notifications/initialized"}}"#);
    assert_eq!(next_request(&mut fixture.device).1, "notifications/initialized");
}

#[test]
fn of_a_long_list_the_pages_that_fit_are_remembered_and_the_device_has_the_rest() {
    let mut log = support::log_capture::LogCapture::containing("INFO");
    let mut fixture = fixture(4, |config| config.mcp.max_tools_count = 3);
    answer_initialize(&mut fixture.device);
    answer_tools_page(&mut fixture.device, &["a", "b"], Some("c"));
    answer_tools_page(&mut fixture.device, &["c", "d", "e"], Some("f"));
    answer_tools_page(&mut fixture.device, &["f"], None);
    log.wait_for_line("the device has 6 tools: the first 2 are cached");
    fixture.device.mqtt.assert_nothing_pending();
    let (_call, mut peer) = start_call(&mut fixture);
    send_request(&mut peer, json!(1), "tools/list", None);
    let first = &peer.json()["payload"]["result"];
    let names: Vec<_> = first["tools"].as_array().unwrap().iter().map(|tool| &tool["name"]).collect();
    assert_eq!((names, &first["nextCursor"]), (vec![&json!("a"), &json!("b")], &json!("c")));
    send_request(&mut peer, json!(2), "tools/list", Some(json!({"cursor": "c"})));
    let (id, method, params) = next_request(&mut fixture.device);
    assert_eq!((&*method, params), ("tools/list", json!({"cursor": "c"})));
    send_result(&mut fixture.device, &id, json!({"tools": [{"name": "c"}], "nextCursor": "f"}));
    assert_eq!(peer.json()["payload"]["result"]["nextCursor"], "f");
}

#[test]
fn a_failed_discovery_means_forwarding() {
    type Fail = fn(&mut Device);
    let table: [(&str, Fail); 6] = [
        ("no answer yet", |device| {
            next_request(device);
        }),
        ("initialize fails", |device| {
            let (id, ..) = next_request(device);
            device.send_text(
                &json!({"type": "mcp", "payload": {"jsonrpc": "2.0", "id": id, "error": {"message": "no"}}})
                    .to_string(),
            );
        }),
        ("a page fails", |device| {
            answer_initialize(device);
            answer_tools_page(device, &["a"], Some("b"));
            let (id, ..) = next_request(device);
            device.send_text(
                &json!({"type": "mcp", "payload": {"jsonrpc": "2.0", "id": id, "error": {"message": "no"}}})
                    .to_string(),
            );
        }),
        ("a page is none", |device| {
            answer_initialize(device);
            let (id, ..) = next_request(device);
            send_result(device, &id, json!({"tools": 5}));
        }),
        ("its pages go in circles", |device| {
            answer_initialize(device);
            answer_tools_page(device, &["a"], Some("b"));
            answer_tools_page(device, &["b"], Some("c"));
            answer_tools_page(device, &["c"], Some("b"));
        }),
        ("its pages are empty and never end", |device| {
            // The wait for what does not come takes long enough that a silent device would be told something else.
            device.say_something();
            answer_initialize(device);
            // 64 pages at most.
            for n in 0..80 {
                if n > 0 && device.mqtt.stream.peek(&mut [0]).is_err() {
                    break;
                }
                device.mqtt.stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
                answer_tools_page(device, &[], Some(&format!("c{n}")));
                device.mqtt.stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            }
        }),
    ];
    for (number, (how, fail)) in (10..).zip(table) {
        let mut fixture = fixture(number, |_| {});
        fail(&mut fixture.device);
        fixture.device.mqtt.assert_nothing_pending();
        let (_call, mut peer) = start_call(&mut fixture);
        send_request(&mut peer, json!(2), "tools/list", None);
        let (id, method, _) = next_request(&mut fixture.device);
        assert_eq!((&id, &*method), (&json!(2), "tools/list"), "{how}");
        send_result(&mut fixture.device, &id, json!({"tools": [tool("z")]}));
        assert_eq!(tool_names_in_response(&mut peer, &json!(2)), ["z"], "{how}");
    }
}

#[test]
fn request_ids_do_not_collide() {
    let mut fixture = fixture(5, |_| {});
    let (ours, ..) = next_request(&mut fixture.device);
    let (_call, mut peer) = start_call(&mut fixture);
    // The server uses the id of the gateway's own request, which is still open.
    for id in [ours.clone(), json!("text"), json!(2.5), json!(-1), json!(4_294_967_296_u64)] {
        send_request(&mut peer, id.clone(), "tools/call", Some(json!({"name": "x"})));
        let (seen, method, params) = next_request(&mut fixture.device);
        assert_eq!((&*method, &params["name"]), ("tools/call", &"x".into()));
        let number = seen.as_u64().unwrap_or_else(|| panic!("{seen}, which devices do not answer"));
        assert!(number <= 0x7fff_ffff && seen != ours, "{seen}");
        send_result(&mut fixture.device, &seen, json!({"for": id}));
        assert_eq!(peer.json()["payload"], json!({"jsonrpc": "2.0", "id": id, "result": {"for": id}}));
    }
    // The discovery continues.
    send_result(&mut fixture.device, &ours, json!({}));
    assert_eq!(next_request(&mut fixture.device).1, "notifications/initialized");
    answer_tools_page(&mut fixture.device, &["a"], None);
    send_request(&mut peer, json!(1), "tools/list", None);
    assert_eq!(tool_names_in_response(&mut peer, &json!(1)), ["a"]);
    assert!(fixture.log.wait_for_line("1 tool").contains("DEBUG"));
}

#[test]
fn an_error_of_the_device_reaches_the_server_under_its_id() {
    let mut fixture = fixture(6, |_| {});
    next_request(&mut fixture.device);
    let (_call, mut peer) = start_call(&mut fixture);
    send_request(&mut peer, json!("x"), "tools/call", None);
    let (id, ..) = next_request(&mut fixture.device);
    let error = json!({"message": "Unknown tool"});
    fixture.device.send_text(
        &json!({"type": "mcp", "payload": {"jsonrpc": "2.0", "id": id, "error": error}}).to_string(),
    );
    assert_eq!(peer.json()["payload"], json!({"jsonrpc": "2.0", "id": "x", "error": error}));
}

#[test]
fn what_the_device_says_by_itself_is_forwarded() {
    let mut fixture = fixture(7, |_| {});
    next_request(&mut fixture.device);
    let (_call, mut peer) = start_call(&mut fixture);
    for payload in [
        json!({"jsonrpc": "2.0", "method": "notifications/state_changed", "params": {"a": 1}}),
        json!({"jsonrpc": "2.0", "id": 5, "method": "ask"}),
        json!({"jsonrpc": "2.0", "id": 5, "result": {}}),
    ] {
        fixture.device.send_text(&json!({"type": "mcp", "payload": payload}).to_string());
        assert_eq!(peer.json()["payload"], payload);
    }
    // Without a payload it is forwarded to the server.
    fixture.device.send_text(r#"{"type":"mcp"}"#);
    assert_eq!(peer.json(), json!({"type": "mcp"}));
}

#[test]
fn no_discovery_when_disabled() {
    let mut fixture = fixture(8, |config| config.mcp.enabled = false);
    fixture.device.mqtt.assert_nothing_pending();
    let (_call, mut peer) = start_call(&mut fixture);
    send_request(&mut peer, json!(1), "initialize", None);
    assert_forwarded(&mut fixture.device, &mut peer, &json!(1));
}

#[test]
fn a_large_list_is_answered_from_memory_without_ending_the_call() {
    let mut fixture = fixture(9, |config| config.mcp.max_tools_count = 100);
    answer_initialize(&mut fixture.device);
    let long = "x".repeat(7000);
    let names: Vec<String> = (0..30).map(|n| format!("{n:02}{long}")).collect();
    for (n, name) in names.iter().enumerate() {
        let next = (n + 1 < names.len()).then(|| format!("cursor-{n}"));
        answer_tools_page(&mut fixture.device, &[name], next.as_deref());
    }
    let (_call, mut peer) = start_call(&mut fixture);
    send_request(&mut peer, json!(1), "tools/list", None);
    assert_eq!(tool_names_in_response(&mut peer, &json!(1)), names);
    fixture.device.mqtt.assert_nothing_pending();
}

#[test]
fn a_device_that_connects_again_is_asked_again() {
    let mut fixture = fixture(20, |_| {});
    answer_initialize(&mut fixture.device);
    answer_tools_page(&mut fixture.device, &["old"], None);
    let (_call, mut peer) = start_call(&mut fixture);
    fixture.device.mqtt.reset();
    fixture.device = Device::connect(fixture._gateway.addresses().mqtt, 20);
    answer_initialize(&mut fixture.device);
    answer_tools_page(&mut fixture.device, &["new"], None);
    send_request(&mut peer, json!(1), "tools/list", None);
    assert_eq!(tool_names_in_response(&mut peer, &json!(1)), ["new"]);
}
