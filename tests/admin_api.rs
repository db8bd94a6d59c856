//! The management API over real sockets, as used by consoles and operators.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::{Secret, Source};
use mqtt_websocket_proxy::net::Running;
use mqtt_websocket_proxy::tools::device::{Login, SimulatedDevice};
use mqtt_websocket_proxy::tools::echo::EchoServer;
use serde_json::{Value, json};
use support::TIMEOUT;
use support::admin::{
    Fixture, KEY, TOKEN, assert_no_text, config, fixture, fixture_with_source, mac, request,
};
use support::http::RawClient;

const MAC: &str = "aa:bb:cc:dd:ee:01";
const CLIENT_ID: &str = "GID_test@@@aa_bb_cc_dd_ee_01@@@aa_bb_cc_dd_ee_01";

/// The daily token as a console makes it, with the date from another program.
#[cfg(target_os = "linux")]
fn console_token(date: &str) -> String {
    use sha2::Digest as _;

    let output = std::process::Command::new("date").args(["-u", "-d", date, "+%Y-%m-%d"]).output().unwrap();
    let date = String::from_utf8(output.stdout).unwrap();
    let digest = sha2::Sha256::digest(format!("{}{KEY}", date.trim()));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A device that answers `many` MCP requests with the result of `reply`.
fn answering(
    mut device: SimulatedDevice,
    times: usize,
    reply: impl Fn(&Value) -> Value + Send + 'static,
) -> thread::JoinHandle<SimulatedDevice> {
    thread::spawn(move || {
        for _ in 0..times {
            let request: Value = serde_json::from_str(&device.wait_for("mcp", TIMEOUT).unwrap()).unwrap();
            let mut payload = reply(&request["payload"]);
            payload["jsonrpc"] = "2.0".into();
            payload["id"] = request["payload"]["id"].clone();
            device.send_text(&json!({ "type": "mcp", "payload": payload }).to_string()).unwrap();
        }
        device
    })
}

#[cfg(target_os = "linux")]
#[test]
fn a_console_finds_its_devices_and_uses_their_tools() {
    let fixture = fixture(|config| config.api.token = None);
    let status = |day: &str, id: &str| {
        let body = json!({ "clientIds": [id] }).to_string();
        let (code, text) =
            fixture.request_with_token("POST", "/api/devices/status", Some(&body), Some(&console_token(day)));
        (code, serde_json::from_str::<Value>(&text).unwrap()[id].clone())
    };
    for day in ["today", "yesterday", "tomorrow"] {
        assert_eq!(
            status(day, CLIENT_ID),
            (200, json!({ "isAlive": false, "exists": false, "inCall": false })),
            "{day}"
        );
    }
    for day in ["2 days ago", "3 days"] {
        assert_eq!(status(day, CLIENT_ID).0, 401, "{day}");
    }

    let mut device = fixture.device(MAC);
    // Connected and idle is null: false would be shown as offline.
    assert_eq!(
        status("today", CLIENT_ID),
        (200, json!({ "isAlive": null, "exists": true, "inCall": false }))
    );
    // The console derives the group from the board, which changes when a device is bound.
    assert_eq!(status("today", "other@@@aa_bb_cc_dd_ee_01@@@aa_bb_cc_dd_ee_01").1["exists"], true);
    let call = device.call().unwrap();
    assert_eq!(status("today", CLIENT_ID), (200, json!({ "isAlive": true, "exists": true, "inCall": true })));
    device.goodbye(&call).unwrap();
    let end = Instant::now() + TIMEOUT;
    while status("today", CLIENT_ID).1["isAlive"] != Value::Null {
        assert!(Instant::now() < end);
    }

    let device = answering(device, 2, |payload| match payload["method"].as_str() {
        Some("tools/list") => json!({ "result": { "tools": [payload["params"]], "nextCursor": "" } }),
        _ => json!({ "result": { "content": [{ "type": "text", "text": "done" }] } }),
    });
    let token = console_token("today");
    for path in [
        "/api/commands/GID_test@@@aa_bb_cc_dd_ee_01@@@aa_bb_cc_dd_ee_01",
        "/api/commands/GID_other%40%40%40aa_bb_cc_dd_ee_01%40%40%40aa_bb_cc_dd_ee_01",
    ] {
        let list = json!({ "type": "mcp", "payload": { "jsonrpc": "2.0", "id": 1, "method": "tools/list",
            "params": { "withUserTools": true, "cursor": "" } } });
        // Like the console: the id is not percent-encoded in the path.
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        );
        let list = list.to_string();
        let reply = RawClient::round_trip(
            fixture.api,
            &format!("{head}Content-Length: {}\r\n\r\n{list}", list.len()),
        );
        assert_eq!(reply.status, 200, "{reply:?}");
        let expected = json!({ "success": true,
            "data": { "tools": [{ "withUserTools": true, "cursor": "" }], "nextCursor": "" } });
        assert_eq!(reply.json(), expected);
    }
    device.join().unwrap();
}

#[test]
fn every_command_failure_is_reported_in_the_console_format() {
    let fixture = fixture(|config| config.api.command_timeout = Duration::from_secs(5));
    let path = format!("/api/commands/{CLIENT_ID}");
    let tool = r#"{"type":"mcp","payload":{"method":"tools/call","params":{"name":"x"}}}"#;
    let failure = |error: &str| json!({ "success": false, "error": error });
    assert_eq!(fixture.request("POST", &path, Some(tool)), (500, failure("设备未连接")));

    let device = answering(
        fixture.device(MAC),
        1,
        |_| json!({ "error": { "code": -32601, "message": "Unknown tool: x" } }),
    );
    assert_eq!(fixture.request("POST", &path, Some(tool)), (500, failure("Unknown tool: x")));
    for body in [r#"{"type":"iot","payload":{}}"#, r#"{"type":"mcp"}"#, "{}"] {
        let (status, answer) = fixture.request("POST", &path, Some(body));
        let error = answer["error"].as_str().unwrap();
        assert_eq!(status, 500, "{body}");
        assert!(error.starts_with("指令类型无效: ") && error.contains("/api/messages"), "{body}: {error}");
    }
    for body in ["", "{", "[]", "\"x\""] {
        let (status, answer) = fixture.request("POST", &path, Some(body));
        assert_eq!((status, &answer["success"]), (400, &json!(false)), "{body}");
    }

    // A device does not answer in time; others are served meanwhile.
    let mut device = device.join().unwrap();
    let begun = Instant::now();
    let mut silent = RawClient::open(fixture.api);
    silent.send(request("POST", &path, tool));
    assert_eq!(fixture.request("GET", "/healthz", None).0, 200);
    let reply = silent.reply().unwrap();
    let mut timeout = reply.json();
    let id = timeout["id"].take();
    assert_eq!((reply.status, timeout), (500, json!({ "success": false, "error": "timeout", "id": null })));
    assert!(begun.elapsed() >= Duration::from_secs(5), "{:?}", begun.elapsed());
    // A later answer is kept.
    let result = format!("/api/commands/results/{}", id.as_str().unwrap());
    let (status, answer) = fixture.request("GET", &result, None);
    assert_eq!((status, &answer["code"]), (404, &json!("no_result")));
    let request_text = device.wait_for("mcp", TIMEOUT).unwrap();
    let asked: Value = serde_json::from_str(&request_text).unwrap();
    let payload = json!({ "id": asked["payload"]["id"], "method": "tools/call", "result": { "photo": 1 } });
    device.send_text(&json!({ "type": "mcp", "payload": payload }).to_string()).unwrap();
    support::host::wait_until("the late answer is kept", || fixture.request("GET", &result, None).0 == 200);
    for _ in 0..2 {
        let kept = json!({ "success": true, "data": { "photo": 1 } });
        assert_eq!(fixture.request("GET", &result, None), (200, kept));
    }
    assert_eq!(fixture.request_with_token("GET", &result, None, None).0, 401);
    // The connection still works, and a device that disconnects is reported before the time is over.
    silent.send(request("POST", &path, tool));
    fixture.request("GET", "/healthz", None);
    device.disconnect().unwrap();
    let reply = silent.reply().unwrap();
    assert_eq!((reply.status, reply.json()), (500, failure("设备未连接")));
}

#[test]
fn a_message_in_the_form_of_a_command_is_delivered() {
    let fixture = fixture(|_| {});
    let path = format!("/api/commands/{CLIENT_ID}");
    let alert = r#"{"type":"alert","status":"x","message":"你好","emotion":"happy"}"#;
    let failure = json!({ "success": false, "error": "设备未连接" });
    assert_eq!(fixture.request("POST", &path, Some(alert)), (500, failure));
    let mut device = fixture.device(MAC);
    for (kind, body) in [
        ("alert", alert),
        ("system", r#"{"type":"system","command":"reboot"}"#),
        ("custom", r#"{"type":"custom","payload":{"a":[1]}}"#),
        ("notify", r#"{"type":"notify","audio_url":"http://192.0.2.1/a.ogg"}"#),
    ] {
        let sent = json!({ "success": true, "data": { "delivery": "sent" } });
        assert_eq!(fixture.request("POST", &path, Some(body)), (200, sent), "{body}");
        assert_eq!(device.wait_for(kind, TIMEOUT).unwrap(), body);
    }
    let (status, answer) = fixture.request("POST", &path, Some(r#"{"type":"alert","session_id":7}"#));
    assert_eq!((status, &answer["success"]), (400, &json!(false)), "{answer}");
    // The device would read the first member that is called type in any case.
    let (status, answer) = fixture.request("POST", &path, Some(r#"{"TYPE":"goodbye","type":"alert"}"#));
    assert!(status == 500 && answer["error"].as_str().unwrap().contains("/api/messages"), "{answer}");
}

#[test]
fn a_notification_of_an_idle_device_is_among_the_recent_errors() {
    let fixture = fixture(|_| {});
    let mut device = fixture.device(MAC);
    let payload = json!({ "jsonrpc": "2.0", "method": "notifications/battery", "params": { "level": 7 } });
    device.send_text(&json!({ "type": "mcp", "payload": payload }).to_string()).unwrap();
    support::host::wait_until("the notification is listed", || {
        let (_, answer) = fixture.request("GET", "/api/errors", None);
        answer["errors"].as_array().unwrap().iter().any(|error| {
            error["code"] == "device_notification"
                && error["device"] == CLIENT_ID
                && error["sentence"].as_str().unwrap().contains(r#"notifications/battery {"level":7}"#)
        })
    });
    let metrics = fixture.request_with_token("GET", "/metrics", None, Some(TOKEN)).1;
    assert!(metrics.contains("\ngateway_device_notifications_total 1\n"), "{metrics}");
    device.ping().unwrap();
    let next = device.receive(TIMEOUT).unwrap();
    assert_eq!(next, Some(mqtt_websocket_proxy::tools::device::Incoming::PingResp), "no goodbye");
}

#[test]
fn a_late_answer_of_a_device_is_not_given_to_another_operators_command() {
    let fixture = fixture(|_| {});
    let tool = r#"{"type":"mcp","payload":{"method":"tools/call","params":{"name":"x"}}}"#;
    let asked = |device: &mut SimulatedDevice| {
        let request: Value = serde_json::from_str(&device.wait_for("mcp", TIMEOUT).unwrap()).unwrap();
        request["payload"]["id"].clone()
    };
    let answer = |device: &mut SimulatedDevice, id: &Value, result: &str| {
        let payload = json!({ "jsonrpc": "2.0", "id": id, "result": result });
        device.send_text(&json!({ "type": "mcp", "payload": payload }).to_string()).unwrap();
    };
    let mut device = fixture.device(MAC);
    let mut first = RawClient::open(fixture.api);
    first.send(request("POST", &format!("/api/commands/{MAC}"), tool));
    let late = asked(&mut device);
    device.disconnect().unwrap();
    assert_eq!(first.reply().unwrap().json()["error"], "设备未连接");

    let mut device = fixture.device(MAC);
    let mut second = RawClient::open(fixture.api);
    second.send(request("POST", &format!("/api/commands/{MAC}"), tool));
    let id = asked(&mut device);
    answer(&mut device, &late, "to the first operator");
    answer(&mut device, &id, "to the second operator");
    assert_eq!(second.reply().unwrap().json(), json!({ "success": true, "data": "to the second operator" }));
}

#[test]
fn a_command_and_tool_discovery_do_not_disturb_each_other() {
    let fixture = fixture(|config| config.mcp.enabled = true);
    let mut device = fixture.device(MAC);
    let asked = thread::scope(|scope| {
        let command = scope.spawn(|| {
            let body = r#"{"type":"mcp","payload":{"method":"tools/call","params":{"name":"a"}}}"#;
            fixture.request("POST", &format!("/api/commands/{MAC}"), Some(body))
        });
        // initialize, tools/list and the operator's request, in the order of arrival.
        let mut asked = Vec::new();
        while asked.len() < 3 {
            let request: Value = serde_json::from_str(&device.wait_for("mcp", TIMEOUT).unwrap()).unwrap();
            let payload = &request["payload"];
            if payload["id"].is_null() {
                continue;
            }
            let method = payload["method"].as_str().unwrap().to_owned();
            let result = match method.as_str() {
                "tools/list" => json!({ "tools": [{ "name": "a" }], "nextCursor": "" }),
                method => json!({ "of": method }),
            };
            let reply = json!({ "jsonrpc": "2.0", "id": payload["id"], "result": result });
            device.send_text(&json!({ "type": "mcp", "payload": reply }).to_string()).unwrap();
            asked.push(method);
        }
        let answer = json!({ "success": true, "data": { "of": "tools/call" } });
        assert_eq!(command.join().unwrap(), (200, answer));
        asked
    });
    let mut asked = asked;
    asked.sort();
    assert_eq!(asked, ["initialize", "tools/call", "tools/list"]);
}

#[test]
fn status_is_asked_for_many_devices_at_once() {
    let fixture = fixture(|_| {});
    let _device = fixture.device(MAC);
    // An invalid id has no device; deviceIds is accepted too, and so is a MAC alone.
    let (status, answer) =
        fixture.request("POST", "/api/devices/status", Some(r#"{"deviceIds":["aa:bb:cc:dd:ee:01","x",""]}"#));
    let (present, absent) = (
        json!({ "isAlive": null, "exists": true, "inCall": false }),
        json!({ "isAlive": false, "exists": false, "inCall": false }),
    );
    assert_eq!((status, answer), (200, json!({ "aa:bb:cc:dd:ee:01": present, "x": absent, "": absent })));

    let ids: Vec<_> = (0..1200)
        .map(|n| format!("GID_default@@@aa_bb_cc_dd_{:02x}_{:02x}@@@aa_bb_cc_dd_ee_ff", n / 256, n % 256))
        .collect();
    let (status, answer) =
        fixture.request("POST", "/api/devices/status", Some(&json!({ "clientIds": ids }).to_string()));
    assert_eq!((status, answer.as_object().unwrap().len()), (200, 1200));

    for body in ["{}", r#"{"clientIds":"x"}"#, "{", ""] {
        let (status, answer) = fixture.request("POST", "/api/devices/status", Some(body));
        let sentence = answer["error"].as_str().unwrap();
        assert!(status == 400 && sentence.starts_with("clientIds必须是一个数组"), "{body}: {answer}");
    }
}

#[test]
fn a_mac_selects_the_device_that_connected_last() {
    let fixture = fixture(|_| {});
    let _first = fixture.device_with_client_id("one@@@aa_bb_cc_dd_ee_01@@@u");
    let mut second = fixture.device_with_client_id("two@@@aa_bb_cc_dd_ee_01@@@u");
    let found =
        |name: &str| fixture.request("GET", &format!("/api/sessions/{name}"), None).1["clientId"].clone();
    assert_eq!(found("aa:bb:cc:dd:ee:01"), "two@@@aa_bb_cc_dd_ee_01@@@u");
    assert_eq!(found("three@@@aa_bb_cc_dd_ee_01"), "two@@@aa_bb_cc_dd_ee_01@@@u");
    assert_eq!(found("one@@@aa_bb_cc_dd_ee_01@@@u"), "one@@@aa_bb_cc_dd_ee_01@@@u");
    let _third = fixture.device_with_client_id("one@@@aa_bb_cc_dd_ee_01@@@v");
    assert_eq!(found("aa-bb-cc-dd-ee-01"), "one@@@aa_bb_cc_dd_ee_01@@@v");
    assert_eq!(
        fixture.request("POST", "/api/messages/AA:BB:CC:DD:EE:01", Some(r#"{"type":"system"}"#)).1["delivery"],
        "sent"
    );
    assert_no_text(&mut second);
}

/// While two-part ids are allowed, whoever knows a MAC can connect with it.
#[test]
fn a_mac_selects_the_device_that_proved_who_it_is() {
    let fixture = fixture(|config| config.mqtt.allow_legacy_ids = true);
    let found =
        |name: &str| fixture.request("GET", &format!("/api/sessions/{name}"), None).1["clientId"].clone();
    let mut device = fixture.device(MAC);
    // Later, and in a call.
    let legacy = "GID_test@@@aa_bb_cc_dd_ee_01";
    let mut impostor = fixture.device_with_client_id(legacy);
    let _call = impostor.call().unwrap();
    assert_eq!((found(MAC), found("other@@@aa_bb_cc_dd_ee_01@@@u")), (json!(CLIENT_ID), json!(CLIENT_ID)));
    assert_eq!(found(legacy), legacy);
    let keys =
        |name: &str| fixture.request("GET", &format!("/api/sessions/{name}"), None).1["signatureKey"].clone();
    assert_eq!((keys(MAC), keys(legacy)), (json!("current"), json!("none")));
    let message = fixture.request("POST", &format!("/api/messages/{MAC}"), Some(r#"{"type":"system"}"#));
    assert_eq!(message.1["clientId"], CLIENT_ID);
    assert!(device.wait_for("system", TIMEOUT).is_ok());
    let status =
        fixture.request("POST", "/api/devices/status", Some(&json!({ "deviceIds": [MAC] }).to_string()));
    assert_eq!(status.1[MAC]["isAlive"], Value::Null);
    assert_no_text(&mut impostor);
    device.disconnect().unwrap();
    fixture.poll_until(&format!("/api/sessions/{MAC}"), |session| session["clientId"] == legacy);
}

fn disconnect(fixture: &Fixture, body: &Value) -> (u16, Value) {
    fixture.request("POST", "/api/devices/disconnect", Some(&body.to_string()))
}

#[test]
fn devices_are_disconnected_by_name_all_at_once_or_by_their_key() {
    let fixture =
        fixture(|config| config.mqtt.previous_signature_keys = vec![Secret::new("Old-Key-7").unwrap()]);
    let closed = |device: &mut SimulatedDevice| {
        device.wait_for("nothing", TIMEOUT).is_err_and(|failure| failure.is_closed())
    };
    let with_old_key = |mac: &str| {
        let login = Login::new(mac.parse().unwrap(), Some(b"Old-Key-7"));
        SimulatedDevice::connect(fixture.gateway.addresses().mqtt, &login, TIMEOUT).unwrap()
    };
    let key_of =
        |mac: &str| fixture.request("GET", &format!("/api/sessions/{mac}"), None).1["signatureKey"].clone();
    let count = |key: &str| {
        let text = fixture.request_with_token("GET", "/metrics", None, Some(TOKEN)).1;
        let sample = format!("gateway_devices_by_signature_key{{key=\"{key}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&sample)).unwrap().to_owned()
    };
    let [mut a, mut b, mut old, mut twice] =
        [fixture.device(&mac(1)), fixture.device(&mac(2)), with_old_key(&mac(3)), fixture.device(&mac(4))];
    let mut twice_too = fixture.device_with_client_id(&format!("other@@@{}@@@u", mac(4).replace(':', "_")));
    assert_eq!((key_of(&mac(1)), key_of(&mac(3))), (json!("current"), json!("previous")));
    assert_eq!((count("current"), count("previous"), count("none")), ("4".into(), "1".into(), "0".into()));

    // A device in a call gets its goodbye first; one that is named twice counts once; a MAC is all its connections.
    let call = a.call().unwrap();
    let names = json!([mac(1), "nobody", mac(1).to_uppercase(), mac(9), mac(4)]);
    let answer = disconnect(&fixture, &json!({ "clientIds": names }));
    assert_eq!(answer, (200, json!({ "disconnected": 3, "notConnected": [mac(9), "nobody"] })));
    assert!(a.wait_for("goodbye", TIMEOUT).unwrap().contains(&*call.parameters.session_id));
    assert!(closed(&mut a) && closed(&mut twice) && closed(&mut twice_too));

    assert_eq!(disconnect(&fixture, &json!({ "signatureKey": "previous" })).1["disconnected"], 1);
    assert!(closed(&mut old));
    b.ping().unwrap();
    assert_eq!(disconnect(&fixture, &json!({ "signatureKey": "previous" })).1["disconnected"], 0);

    assert_eq!(
        disconnect(&fixture, &json!({ "all": true })),
        (200, json!({ "disconnected": 1, "notConnected": [] }))
    );
    assert!(closed(&mut b));
    for (body, code) in [("[]", "bad_json"), ("{}", "bad_parameter"), (r#"{"all":false}"#, "bad_parameter")] {
        let (status, answer) = fixture.request("POST", "/api/devices/disconnect", Some(body));
        assert_eq!((status, &answer["code"]), (400, &json!(code)), "{body}");
    }
}

#[test]
fn a_device_that_an_operator_denies_is_locked_out_until_allowed_again() {
    let fixture = fixture(|config| {
        config.mqtt.denied_macs = vec!["aa:bb:cd".parse().unwrap()].into();
        config.workers = if cfg!(target_os = "linux") { 2 } else { 1 };
    });
    let denied = |mac: &str| {
        let login = Login::new(mac.parse().unwrap(), Some(KEY.as_bytes()));
        SimulatedDevice::connect(fixture.gateway.addresses().mqtt, &login, TIMEOUT).is_err()
    };
    let ask = |method: &str, name: &str| fixture.request(method, &format!("/api/denied/{name}"), None);
    // By MAC and by client id, on both workers, connected or not.
    let mut devices: Vec<_> = (0..4).map(|n| fixture.device(&mac(n))).collect();
    let call = devices[0].call().unwrap();
    for n in 0..4 {
        let answer = json!({ "mac": mac(n), "denied": true, "disconnected": 1 });
        assert_eq!(ask("PUT", &mac(n)), (200, answer));
    }
    assert_eq!(ask("PUT", "g@@@aa_bb_cc_00_00_09@@@u").1["disconnected"], 0);
    assert_eq!(ask("PUT", &mac(1)).1["disconnected"], 0, "twice is once");
    assert!(devices[0].wait_for("goodbye", TIMEOUT).unwrap().contains(&*call.parameters.session_id));
    for device in &mut devices {
        assert!(device.wait_for("nothing", TIMEOUT).is_err_and(|failure| failure.is_closed()));
    }
    assert!(denied(&mac(0)) && denied(&mac(3)) && denied(&mac(9)) && !denied(&mac(8)));
    let list = fixture.request("GET", "/api/denied", None).1;
    let macs: Vec<_> = [0, 1, 2, 3, 9].into_iter().map(mac).collect();
    assert_eq!(list, json!({ "denied": macs, "configured": ["aa:bb:cd"] }));
    let metrics = fixture.request_with_token("GET", "/metrics", None, Some(TOKEN)).1;
    let count = "gateway_macs_denied_total{list=\"operator\"} ";
    let count = metrics.lines().find_map(|line| line.strip_prefix(count)).unwrap();
    // Four connections were closed, and three logins refused.
    assert_eq!(count, "7");

    assert_eq!(ask("DELETE", &mac(0)).1, json!({ "mac": mac(0), "denied": false, "disconnected": 0 }));
    fixture.device(&mac(0));
    for (method, name, status, code) in [
        ("DELETE", "aa:bb:cc:00:00:00", 404, "not_denied"),
        ("DELETE", "aa:bb:cd:00:00:00", 409, "denied_by_config"),
        ("PUT", "nobody", 404, "bad_client_id"),
    ] {
        let (found, answer) = ask(method, name);
        assert_eq!((found, &answer["code"]), (status, &json!(code)), "{method} {name}");
    }
    // The list has a limit.
    let answers = (0..1000).map(|n| ask("PUT", &format!("02:00:00:00:{:02x}:{:02x}", n >> 8, n & 255)));
    let refused: Vec<_> = answers.filter(|(status, _)| *status != 200).map(|(_, answer)| answer).collect();
    assert_eq!((refused.len(), &refused[0]["code"]), (4, &json!("too_many_denied")));
}

#[cfg(target_os = "linux")]
#[test]
fn a_previous_key_makes_no_token_for_the_api() {
    let fixture = fixture(|config| {
        config.api.token = None;
        config.mqtt.signature_key = Secret::new("Another-Key-9");
        config.mqtt.previous_signature_keys = vec![Secret::new(KEY).unwrap()];
    });
    let _device = fixture.device(MAC);
    let token = console_token("today");
    assert_eq!(fixture.request_with_token("GET", "/api/sessions", None, Some(&token)).0, 401);
}

#[test]
fn a_message_reaches_the_device_idle_or_in_a_call() {
    let fixture = fixture(|_| {});
    let mut device = fixture.device(MAC);
    let path = format!("/api/messages/{CLIENT_ID}");
    for kind in ["alert", "system", "custom", "notify"] {
        let text = format!(r#"{{ "type":"{kind}", "message":"你好","n":1.50 }}"#);
        let sent = (200, json!({ "clientId": CLIENT_ID, "delivery": "sent" }));
        assert_eq!(fixture.request("POST", &path, Some(&text)), sent);
        assert_eq!(device.wait_for(kind, TIMEOUT).unwrap(), text);
    }
    let call = device.call().unwrap();
    fixture.request("POST", &path, Some(r#"{"type":"alert","status":"x"}"#));
    let expected =
        format!(r#"{{"session_id":"{}","type":"alert","status":"x"}}"#, call.parameters.session_id);
    assert_eq!(device.wait_for("alert", TIMEOUT).unwrap(), expected);
    fixture.request(
        "POST",
        &path,
        Some(r#"{"Session_Id":"mine","type":"alert","status":"x","session_id":null}"#),
    );
    assert_eq!(device.wait_for("alert", TIMEOUT).unwrap(), expected);

    for (path, body, status, code) in [
        (path.as_str(), r#"{"type":"goodbye"}"#, 400, "bad_type"),
        (&path, r#"{"Type":"hello","type":"alert"}"#, 400, "bad_type"),
        (&path, r#"{"type\u0000":"goodbye","type":"alert"}"#, 400, "bad_type"),
        (&path, r#"{"type":7}"#, 400, "bad_type"),
        (&path, "{}", 400, "bad_type"),
        (&path, "[]", 400, "bad_json"),
        (&path, "", 400, "bad_json"),
        ("/api/messages/aa:bb:cc:dd:ee:99", r#"{"type":"alert"}"#, 404, "not_connected"),
        ("/api/messages/nobody", r#"{"type":"alert"}"#, 404, "not_connected"),
    ] {
        let (found, answer) = fixture.request("POST", path, Some(body));
        assert_eq!((found, &answer["code"]), (status, &json!(code)), "{body}");
        assert!(answer["error"].as_str().is_some_and(|sentence| sentence.ends_with('.')), "{answer}");
    }

    // The connection is lost during the call: the message waits.
    drop(device);
    let queued = |answer: &Value| answer["connected"] == json!(false);
    fixture.poll_until(&format!("/api/sessions/{CLIENT_ID}"), queued);
    let (status, answer) = fixture.request("POST", &path, Some(r#"{"type":"alert","status":"later"}"#));
    assert_eq!((status, &answer["delivery"]), (202, &json!("queued")));
    let mut device = fixture.device(MAC);
    assert!(device.wait_for("alert", TIMEOUT).unwrap().contains("later"));
}

#[test]
fn sessions_are_shown_hung_up_and_disconnected() {
    let fixture = fixture(|_| {});
    assert_eq!(
        fixture.request("GET", "/api/sessions", None),
        (200, json!({ "devices": 0, "calls": 0, "draining": false, "next": null, "sessions": [] }))
    );
    let mut device = fixture.device(MAC);
    let mut call = device.call().unwrap();
    call.send(0, b"audio").unwrap();
    assert!(call.receive(TIMEOUT).unwrap().is_some());
    let path = format!("/api/sessions/{CLIENT_ID}");
    let (_, shown) = fixture.request("GET", &path, None);
    let (_, list) = fixture.request("GET", "/api/sessions", None);
    assert_eq!((&list["devices"], &list["calls"]), (&json!(1), &json!(1)));
    for view in [&shown, &list["sessions"][0]] {
        assert_eq!((&view["clientId"], &view["mac"]), (&json!(CLIENT_ID), &json!(MAC)));
        assert_eq!((&view["ip"], &view["connected"]), (&json!("127.0.0.1"), &json!(true)));
        let shown = &view["call"];
        assert_eq!(
            (&shown["state"], &shown["sessionId"]),
            (&json!("live"), &json!(call.parameters.session_id))
        );
        assert_eq!((&shown["packetsUp"], &shown["bytesUp"]), (&json!(1), &json!(5)));
        assert_eq!((&shown["packetsDown"], &shown["lost"]), (&json!(1), &json!(0)));
        assert!(fixture.echo.url().starts_with(shown["server"].as_str().unwrap()), "{shown}");
        assert!(shown["audioFrom"].as_str().unwrap().starts_with("127.0.0.1:"), "{shown}");
    }

    let done = |hung_up, disconnected| {
        (200, json!({ "clientId": CLIENT_ID, "hungUp": hung_up, "disconnected": disconnected }))
    };
    assert_eq!(fixture.request("DELETE", &path, None), done(true, false));
    let goodbye: Value = serde_json::from_str(&device.wait_for("goodbye", TIMEOUT).unwrap()).unwrap();
    assert_eq!(goodbye["session_id"], json!(call.parameters.session_id));
    let (status, refused) = fixture.request("DELETE", &path, None);
    assert_eq!((status, &refused["code"]), (409, &json!("no_call")));
    // Still connected, and free for the next call.
    let call = device.call().unwrap();
    assert_eq!(fixture.request("DELETE", &format!("{path}?disconnect=true"), None), done(true, true));
    let goodbye = device.wait_for("goodbye", TIMEOUT).unwrap();
    assert!(goodbye.contains(&call.parameters.session_id), "{goodbye}");
    assert!(device.receive(TIMEOUT).is_err(), "the connection ends");
    for method in ["GET", "DELETE"] {
        let (status, refused) = fixture.request(method, &path, None);
        assert_eq!((status, &refused["code"]), (404, &json!("not_connected")), "{method}");
    }
    let mut device = fixture.device(MAC);
    assert_eq!(fixture.request("DELETE", &format!("{path}?disconnect"), None), done(false, true));
    assert!(device.receive(TIMEOUT).is_err());
}

#[test]
fn sessions_come_in_pages() {
    let fixture = fixture(|_| {});
    let devices: Vec<_> = (0..25).map(|n| fixture.device(&format!("aa:bb:cc:dd:ee:{n:02x}"))).collect();
    let (mut seen, mut after) = (Vec::new(), 0);
    loop {
        let (_, page) = fixture.request("GET", &format!("/api/sessions?limit=10&after={after}"), None);
        assert_eq!(page["devices"], 25);
        let sessions = page["sessions"].as_array().unwrap();
        assert!(sessions.len() <= 10);
        seen.extend(sessions.iter().map(|session| session["mac"].as_str().unwrap().to_owned()));
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => break,
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), devices.len());
    for query in ["limit=0", "limit=1001", "limit=x", "after=-1", "after=%"] {
        let (status, refused) = fixture.request("GET", &format!("/api/sessions?{query}"), None);
        assert_eq!((status, &refused["code"]), (400, &json!("bad_parameter")), "{query}");
    }
    assert_eq!(fixture.request("GET", "/api/sessions?after=99999999999", None).1["sessions"], json!([]));
}

#[test]
fn a_reload_says_what_it_did() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("admin-{}.json", std::process::id()));
    let write = |value: Value| fs::write(&path, value.to_string()).unwrap();
    let source = Source::new(Some(path.clone()), None, |_| None);
    let file = |echo: &EchoServer, loopback: &str, max: u32| {
        json!({
            "mqtt": { "host": loopback, "port": 0, "signature_key": KEY, "max_connections": max },
            "udp": { "host": loopback, "port": 0 },
            "api": { "host": "127.0.0.1", "port": 0, "token": TOKEN },
            "mcp": { "enabled": false },
            "websocket": { "production_servers": [echo.url()] },
        })
    };
    let fixture = fixture_with_source(Some(source), |_| {});
    write(file(&fixture.echo, "127.0.0.1", 77));
    let expected = json!({ "applied": ["mqtt.max_connections"], "needsRestart": [] });
    assert_eq!(fixture.request("POST", "/api/reload?preview=true", None), (200, expected.clone()));
    assert_ne!(fixture.request("GET", "/api/config", None).1["mqtt"]["max_connections"], 77, "only shown");
    assert_eq!(fixture.request("POST", "/api/reload", None), (200, expected));
    let (_, shown) = fixture.request("GET", "/api/config", None);
    assert_eq!(shown["mqtt"]["max_connections"], 77);
    assert_eq!((&shown["mqtt"]["signature_key"], &shown["api"]["token"]), (&json!("***"), &json!("***")));

    write(file(&fixture.echo, "127.0.0.2", 77));
    let expected = json!({ "applied": [], "needsRestart": ["mqtt.host", "udp.host"] });
    assert_eq!(fixture.request("POST", "/api/reload", None), (200, expected));
    assert_eq!(
        fixture.request("GET", "/api/config", None).1["mqtt"]["host"],
        "127.0.0.1",
        "what is in force"
    );

    write(file(&fixture.echo, "127.0.0.1", 0));
    let (status, refused) = fixture.request("POST", "/api/reload", None);
    assert_eq!((status, &refused["code"]), (422, &json!("bad_config")));
    assert!(refused["error"].as_str().unwrap().contains("mqtt.max_connections: found 0"), "{refused}");
    assert_eq!(fixture.request("GET", "/api/config", None).1["mqtt"]["max_connections"], 77);

    // A new token applies at once.
    let mut other = file(&fixture.echo, "127.0.0.1", 77);
    other["api"]["token"] = json!("another-token-for-tests");
    write(other);
    assert_eq!(fixture.request("POST", "/api/reload", None).0, 200);
    assert_eq!(fixture.request_with_token("GET", "/api/config", None, Some(TOKEN)).0, 401);
    assert_eq!(
        fixture.request_with_token("GET", "/api/config", None, Some("another-token-for-tests")).0,
        200
    );
    fs::remove_file(&path).unwrap();
}

#[test]
fn without_a_source_there_is_nothing_to_reload() {
    let fixture = fixture(|_| {});
    let (status, refused) = fixture.request("POST", "/api/reload", None);
    assert_eq!((status, &refused["code"]), (409, &json!("no_source")));
}

#[test]
fn the_token_is_checked_before_path_body_and_length() {
    let fixture = fixture(|_| {});
    for request in [
        "GET /api/sessions HTTP/1.1\r\nHost: gateway\r\n\r\n",
        "GET /nothing/here HTTP/1.1\r\nHost: gateway\r\n\r\n",
        "PATCH /api/reload HTTP/1.1\r\nHost: gateway\r\n\r\n",
        "POST /api/reload HTTP/1.1\r\nHost: gateway\r\nContent-Length: 999999999\r\n\r\n",
        "POST /api/reload HTTP/1.1\r\nHost: gateway\r\nContent-Length: nonsense\r\n\r\n",
        "POST /api/reload HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /api/commands/x HTTP/1.1\r\nHost: gateway\r\nContent-Length: 5\r\n\r\n",
        "POST /api/commands/x HTTP/1.1\r\nHost: gateway\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        "POST /api/devices/status HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer wrong\r\nContent-Length: 1\r\n\r\n{",
    ] {
        let reply = RawClient::round_trip(fixture.api, request);
        assert_eq!(reply.status, 401, "{request}");
        assert_eq!(reply.field("www-authenticate"), Some("Bearer"));
        let compatible = request.contains("/api/commands/") || request.contains("/api/devices/");
        assert_eq!(reply.json()["code"] == "unauthorized", !compatible, "{request}");
        assert!(reply.json()["error"].is_string());
    }
    let with = |line: &str| {
        RawClient::round_trip(
            fixture.api,
            &format!("{line} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"),
        )
    };
    assert_eq!(with("GET /nothing/here").json()["code"], "not_found");
    let reply = with("PATCH /api/sessions/x");
    assert_eq!((reply.status, reply.field("allow")), (405, Some("GET, DELETE")));
}

#[test]
fn health_and_readiness_need_no_token_and_metrics_only_if_so_configured() {
    for need in [false, true] {
        let fixture = fixture(|config| config.api.metrics_need_token = need);
        let without = |path: &str| fixture.request_with_token("GET", path, None, None).0;
        assert_eq!((without("/healthz"), without("/readyz"), without("/openapi.json")), (200, 200, 200));
        assert_eq!(without("/metrics"), if need { 401 } else { 200 });
        assert_eq!(fixture.request_with_token("GET", "/metrics", None, Some(TOKEN)).0, 200);
        let reply = RawClient::round_trip(fixture.api, "GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n");
        assert_eq!(reply.json(), json!({ "status": "ok" }));
        let mut raw = RawClient::open(fixture.api);
        raw.send("HEAD /healthz HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut raw.stream, &mut text).unwrap();
        assert!(text.contains("Content-Length: 15\r\n") && text.ends_with("\r\n\r\n"), "{text}");
    }
}

#[test]
fn a_weak_key_disables_the_api_and_the_port_answers_why() {
    let fixture = fixture(|config| {
        config.mqtt.signature_key = Secret::new("my-test-key");
        config.api.token = None;
    });
    for path in ["/api/sessions", "/api/messages/x", "/nothing"] {
        let (status, text) = fixture.request_with_token("GET", path, None, Some("whatever"));
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &answer["code"]), (503, &json!("weak_key")));
        assert!(answer["error"].as_str().unwrap().contains("no upper-case letter"), "{answer}");
    }
    assert_eq!(fixture.request_with_token("GET", "/healthz", None, None).0, 200);
}

#[test]
fn without_key_and_token_this_machine_may_call_but_no_web_page() {
    let fixture = fixture(|config| {
        config.mqtt.signature_key = None;
        config.api.token = None;
    });
    assert_eq!(fixture.request_with_token("GET", "/api/sessions", None, None).0, 200);
    let reply = RawClient::round_trip(
        fixture.api,
        "POST /api/reload HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://evil.example\r\n\r\n",
    );
    assert_eq!((reply.status, &reply.json()["code"]), (403, &json!("foreign_origin")));
}

/// Fields and targets of requests that do not come from this machine, and the code of the refusal.
const FROM_ELSEWHERE: [(&str, &str, &str); 14] = [
    ("", "Host: localhost\r\nForwarded: for=127.0.0.1", "forwarded"),
    ("", "Host: localhost\r\nX-Forwarded-For: 127.0.0.1", "forwarded"),
    ("", "Host: localhost\r\nX-FORWARDED-HOST: localhost", "forwarded"),
    ("", "Host: localhost\r\nx-forwarded-proto: https", "forwarded"),
    ("", "Host: localhost\r\nX-Forwarded-Anything: 1", "forwarded"),
    ("", "Host: localhost\r\nX-Real-IP: 127.0.0.1", "forwarded"),
    ("", "Host: localhost\r\nVia: 1.1 proxy", "forwarded"),
    ("", "Host: localhost\r\nSec-Fetch-Site: cross-site", "foreign_origin"),
    ("", "Host: localhost\r\nSec-Fetch-Site: same-site", "foreign_origin"),
    ("", "Host: lured.example:8007", "foreign_origin"),
    ("", "Host: 192.168.1.10:8007", "foreign_origin"),
    ("", "Host: localhost\r\nOrigin: http://lured.example", "foreign_origin"),
    ("http://lured.example", "Host: localhost", "foreign_origin"),
    ("http://localhost", "Host: lured.example", "foreign_origin"),
];

#[test]
fn without_a_token_what_does_not_come_from_this_machine_is_refused_in_words() {
    let open = fixture(|config| (config.mqtt.signature_key, config.api.token) = (None, None));
    let closed = fixture(|_| {});
    for (authority, fields, code) in FROM_ELSEWHERE {
        let get = |api, path: &str, more: &str| {
            RawClient::round_trip(api, &format!("GET {authority}{path} HTTP/1.1\r\n{fields}\r\n{more}\r\n"))
        };
        let refused = get(open.api, "/api/sessions", "");
        assert_eq!((refused.status, &refused.json()["code"]), (403, &json!(code)), "{authority} {fields}");
        assert!(refused.json()["error"].as_str().unwrap().contains("Set api.token"), "{refused:?}");
        // What needs no token stays open, and with a token these fields change nothing.
        for (api, path, more) in [
            (open.api, "/healthz", String::new()),
            (open.api, "/readyz", String::new()),
            (closed.api, "/readyz", String::new()),
            (closed.api, "/api/sessions", format!("Authorization: Bearer {TOKEN}\r\n")),
        ] {
            assert_eq!(get(api, path, &more).status, 200, "{path} {authority} {fields}");
        }
        assert_eq!(get(closed.api, "/api/sessions", "").status, 401);
    }
    let metrics = RawClient::round_trip(open.api, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").body;
    for reason in ["forwarded", "foreign_origin"] {
        let line = format!("gateway_api_refused_total{{reason=\"{reason}\"}} 7\n");
        assert!(metrics.contains(&line), "{reason} in {metrics}");
    }
    // Bare and in full, by the names of this machine.
    for (target, host) in [
        ("/api/sessions", "127.0.0.1:8007"),
        ("/api/sessions", "[::1]"),
        ("/api/sessions", "localhost\r\nSec-Fetch-Site: same-origin"),
        ("http://localhost:8007/api/sessions", "localhost:8007"),
    ] {
        let text = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(RawClient::round_trip(open.api, &text).status, 200, "{text}");
    }
}

#[test]
fn a_trusted_proxy_forwards_for_this_machine_and_for_no_other() {
    let with = |proxy: &str| {
        fixture(|config| {
            (config.mqtt.signature_key, config.api.token) = (None, None);
            config.api.trusted_proxies = vec![proxy.parse().unwrap()];
        })
    };
    let (listed, other) = (with("127.0.0.0/8"), with("192.0.2.1"));
    for (fields, expected) in [
        ("X-Forwarded-For: 127.0.0.1", 200),
        ("X-Real-IP: ::1\r\nVia: 1.1 proxy\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: localhost", 200),
        ("Forwarded: for=\"[::1]:4711\";host=localhost;proto=http", 200),
        // A client that forges the field in front of, or behind, what the proxy writes.
        ("X-Forwarded-For: 127.0.0.1, 203.0.113.9", 403),
        ("X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-For: 203.0.113.9", 403),
        ("X-Forwarded-For: 203.0.113.9\r\nX-Real-IP: 127.0.0.1", 403),
        ("X-Forwarded-For: 203.0.113.9", 403),
        ("Forwarded: for=203.0.113.9", 403),
        ("X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: lured.example", 403),
        ("Via: 1.1 proxy", 403),
    ] {
        let text = format!("GET /api/sessions HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n\r\n");
        assert_eq!(RawClient::round_trip(listed.api, &text).status, expected, "{fields}");
        assert_eq!(RawClient::round_trip(other.api, &text).status, 403, "{fields}");
    }
}

#[test]
fn the_gateway_starts_without_the_api_if_the_default_port_is_in_use() {
    let fixture = fixture(|_| {});
    // It is taken by this test or by another program on this machine.
    let _taken = std::net::TcpListener::bind("127.0.0.1:8007");
    let second = Running::start(
        config(&fixture.echo, |config| {
            config.api.port = 8007;
            config.api.host = Some([127, 0, 0, 1].into());
        }),
        None,
    );
    assert_eq!(second.unwrap().addresses().api, None);
}

#[test]
fn a_port_in_use_is_a_clear_error_and_the_api_can_be_switched_off() {
    let fixture = fixture(|_| {});
    let error = Running::start(config(&fixture.echo, |config| config.api.port = fixture.api.port()), None)
        .unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("management API port") && error.contains(&fixture.api.port().to_string()),
        "{error}"
    );
    assert!(error.contains("in use"), "{error}");
    let other = config(&fixture.echo, |config| {
        config.api.port = fixture.api.port();
        config.api.enabled = false;
    });
    assert_eq!(Running::start(other, None).unwrap().addresses().api, None);
}

/// The calls of the Node.js gateway report every error in its format.
#[test]
fn compatible_calls_answer_every_error_in_their_own_form() {
    let fixture = fixture(|_| {});
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    let not_utf8: &[u8] = b"{\"type\":\"\xff\xfe\"}";
    for (path, is_command) in [
        ("/api/commands/x", true),
        ("/api/devices/status", false),
        ("/api/call/request", false),
        ("/api/call/accept", false),
    ] {
        for (method, fields, body, status) in [
            ("POST", "", not_utf8, 400),
            ("POST", "", b"{", 400),
            ("POST", "", b"[]", 400),
            ("POST", "", b"", 400),
            ("PUT", "", b"{}", 405),
            ("GET", "", b"", 405),
            ("POST", "Authorization: Bearer wrong\r\n", b"", 401),
            ("POST", "Expect: a-miracle\r\n", b"", 417),
            ("POST", "Transfer-Encoding: br\r\n", b"", 501),
            ("POST", "Content-Length: 131073\r\n", b"", 413),
            ("POST", "Content-Length: nonsense\r\n", b"", 400),
        ] {
            let length = format!("Content-Length: {}\r\n", body.len());
            let framing = fields.starts_with("Content-Length") || fields.starts_with("Transfer-Encoding");
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: gateway\r\n{token}{fields}{}\r\n",
                if framing { "" } else { &length }
            );
            let mut raw = RawClient::open(fixture.api);
            raw.send([head.as_bytes(), body].concat());
            let reply = raw.reply().unwrap();
            assert_eq!(reply.status, status, "{head} {reply:?}");
            own_form(&reply.json(), is_command);
        }
    }
}

/// `{success: false, error}` for commands, `{error}` for the others, and nothing else.
fn own_form(answer: &Value, is_command: bool) {
    let mut members: Vec<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    let expected: &[&str] = if is_command { &["error", "success"] } else { &["error"] };
    assert_eq!(members, expected, "{answer}");
    assert!(answer["error"].is_string() && (!is_command || answer["success"] == json!(false)), "{answer}");
}

#[test]
fn compatible_calls_answer_in_their_own_form_who_may_not_call() {
    let weak = fixture(|config| {
        config.mqtt.signature_key = Secret::new("my-test-key");
        config.api.token = None;
    });
    let open = fixture(|config| {
        config.mqtt.signature_key = None;
        config.api.token = None;
    });
    for (path, is_command) in [("/api/commands/x", true), ("/api/devices/status", false)] {
        let request = format!("POST {path} HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 0\r\n\r\n");
        for (api, status) in [(weak.api, 503), (open.api, 403)] {
            let reply = RawClient::round_trip(api, &request);
            assert_eq!(reply.status, status);
            own_form(&reply.json(), is_command);
        }
    }
}

#[test]
fn a_query_parameter_with_an_unknown_value_or_there_twice_is_named() {
    let fixture = fixture(|_| {});
    let _device = fixture.device(MAC);
    let end = format!("/api/sessions/{CLIENT_ID}");
    for (method, path, query, sentence) in [
        (
            "DELETE",
            &*end,
            "disconnect=yes",
            "disconnect: found \"yes\", allowed: true, false, 1, 0 or no value.",
        ),
        (
            "DELETE",
            &end,
            "disconnect=True",
            "disconnect: found \"True\", allowed: true, false, 1, 0 or no value.",
        ),
        ("DELETE", &end, "disconnect=%", "disconnect: found \"%\", allowed: percent-encoded UTF-8."),
        (
            "DELETE",
            &end,
            "disconnect&disconnect=0",
            "disconnect: found it more than once, allowed: one value.",
        ),
        // Even when there is no such device.
        (
            "DELETE",
            "/api/sessions/nobody",
            "disconnect=2",
            "disconnect: found \"2\", allowed: true, false, 1, 0 or no value.",
        ),
        ("GET", "/api/sessions", "limit=0", "limit: found \"0\", allowed: a whole number from 1 to 1000."),
        (
            "GET",
            "/api/sessions",
            "limit=%2B5",
            "limit: found \"+5\", allowed: a whole number from 1 to 1000.",
        ),
        ("GET", "/api/sessions", "limit=1&limit=2", "limit: found it more than once, allowed: one value."),
        (
            "GET",
            "/api/sessions",
            "after=",
            "after: found \"\", allowed: a whole number from 0 to 9007199254740991.",
        ),
        ("GET", "/api/sessions", "after=%", "after: found \"%\", allowed: percent-encoded UTF-8."),
    ] {
        let reply = RawClient::round_trip(fixture.api, &request(method, &format!("{path}?{query}"), ""));
        assert_eq!(reply.status, 400, "{query} {reply:?}");
        assert_eq!(reply.json(), json!({ "code": "bad_parameter", "error": sentence }), "{query}");
    }
    // The device is still connected, and valid values work.
    for value in ["false", "0"] {
        let (status, refused) = fixture.request("DELETE", &format!("{end}?disconnect={value}"), None);
        assert_eq!((status, &refused["code"]), (409, &json!("no_call")));
    }
    assert_eq!(fixture.request("DELETE", &format!("{end}?disconnect=1"), None).1["disconnected"], true);
}

#[test]
fn a_json_member_of_the_wrong_type_or_there_twice_is_named() {
    let fixture = fixture(|_| {});
    let mut device = fixture.device(MAC);
    let (command, message) = (format!("/api/commands/{CLIENT_ID}"), format!("/api/messages/{CLIENT_ID}"));
    let mac = "allowed: a MAC address like aa:bb:cc:dd:ee:ff";
    let types = "allowed: alert, system, custom or notify.";
    for (path, body, sentence) in [
        (&*command, r#"{"type":7}"#, "type: found 7, allowed: \"mcp\"".to_owned()),
        (&command, r#"{"type":"mcp","payload":[]}"#, "payload: found [], allowed: an object".to_owned()),
        (
            &command,
            r#"{"type":"mcp","payload":{"method":{}}}"#,
            "payload.method: found {}, allowed: a string".to_owned(),
        ),
        (
            &command,
            r#"{"type":"mcp","payload":{"method":"a","params":"b"}}"#,
            "payload.params: found \"b\", allowed: an object".to_owned(),
        ),
        (
            &command,
            r#"{"type":"mcp","type":"mcp","payload":{"method":"a"}}"#,
            "type: found it more than once, allowed: one value".to_owned(),
        ),
        (
            "/api/devices/status",
            r#"{"deviceIds":[true]}"#,
            "deviceIds[0]: found true, allowed: a string".to_owned(),
        ),
        ("/api/call/request", r#"{"caller_mac":7}"#, format!("caller_mac: found 7, {mac}")),
        (
            "/api/call/request",
            r#"{"caller_mac":"aa:bb:cc:dd:ee:01","target_mac":"aa:bb:cc:dd:ee:02","caller_nickname":{}}"#,
            "caller_nickname: found {}, allowed: a string".to_owned(),
        ),
        ("/api/call/accept", r#"{"mac":["a"]}"#, format!("mac: found [\"a\"], {mac}")),
        ("/api/call/accept", r#"{"mac":"a"}"#, format!("mac: found \"a\", {mac}")),
        ("/api/call/hangup", r#"{"mac":false}"#, format!("mac: found false, {mac}.")),
        (&message, r#"{"type":7}"#, format!("type: found 7, {types}")),
        (&message, r#"{"type":"goodbye"}"#, format!("type: found \"goodbye\", {types}")),
        (&message, "{}", format!("type: found nothing, {types}")),
        // A device reads the first, so the last must not decide.
        (
            &message,
            r#"{"type":"goodbye","type":"alert"}"#,
            "type: found it more than once, allowed: one value.".to_owned(),
        ),
        (
            &message,
            r#"{"type":"alert","session_id":7}"#,
            "session_id: found 7, allowed: a string.".to_owned(),
        ),
    ] {
        let (status, answer) = fixture.request("POST", path, Some(body));
        assert_eq!((status, &answer["error"]), (400, &json!(sentence)), "{body}");
    }
    assert_no_text(&mut device);
}
