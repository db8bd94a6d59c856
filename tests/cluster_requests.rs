//! Requests of the management API about devices of other gateways: several processes and a real Redis.
//!
//! Needs redis-server (`./setup.sh test` installs it); without it each test prints a line and passes.

#![cfg(all(feature = "cluster", unix))]
#![allow(clippy::unwrap_used)]

mod support;

use std::thread;

use serde_json::{Value, json};
use support::device::{Device, mac};
use support::host::wait_until;
use support::http::http_call;
use support::redis::is_installed;
use support::service::{Gateway, Service, TOKEN};

/// A device answers the command that it gets.
fn answer_command(device: &mut Device, text: &str) {
    let asked = device.json();
    let id = &asked["payload"]["id"];
    assert!(id.is_u64(), "{asked}");
    let result = json!({"content": [{"type": "text", "text": text}], "isError": false});
    let payload = json!({"jsonrpc": "2.0", "id": id, "result": result});
    device.send_text(&json!({"type": "mcp", "payload": payload}).to_string());
}

fn command() -> Value {
    json!({"type": "mcp", "payload": {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "a", "arguments": {}}}})
}

/// Members that are not the same a moment later.
fn without_times(mut session: Value) -> Value {
    let object = session.as_object_mut().unwrap();
    object.retain(|key, _| !key.to_lowercase().contains("seconds") && !key.to_lowercase().contains("age"));
    session
}

#[test]
fn any_gateway_answers_for_every_device_with_one_worker_and_with_several() {
    if !is_installed() {
        return;
    }
    for workers in [1, 3] {
        let service = Service::start(&["one", "two"], |config| config["workers"] = json!(workers));
        let [one, two] = &service.gateways[..] else { panic!() };
        for number in 1..4 {
            let mut device = service.device(1, number);
            let name = device.client_id.clone();
            let (status, shown) = one.get(&format!("/api/sessions/{name}"));
            assert_eq!((status, &shown["clientId"]), (200, &json!(name)), "{shown}");
            let (_, at_owner) = two.get(&format!("/api/sessions/{name}"));
            assert_eq!(without_times(shown), without_times(at_owner));
            // By its MAC.
            let message = json!({"type": "alert", "status": "a", "message": "b", "emotion": "c"});
            let sent = one.post(&format!("/api/messages/{}", device.mac), &message);
            assert_eq!(sent, (200, json!({"clientId": name, "delivery": "sent"})));
            assert_eq!(device.json()["message"], "b");
            let (status, said) = one.post(&format!("/api/notify/{name}"), &json!({"text": "hi"}));
            assert_eq!((status, &said["clientId"]), (200, &json!(name)), "{said}");
            assert_eq!(device.json()["message"], "hi");
            thread::scope(|scope| {
                let path = format!("/api/commands/{name}");
                let api = one.api();
                let body = command().to_string();
                let asked = scope.spawn(move || http_call(api, "POST", &path, Some(&body), Some(TOKEN)));
                answer_command(&mut device, "done");
                let (status, answer) = asked.join().unwrap();
                let answer: Value = serde_json::from_str(&answer).unwrap();
                assert_eq!((status, &answer["success"]), (200, &json!(true)), "{answer}");
                assert_eq!(answer["data"]["content"][0]["text"], "done");
            });
            // What the owner refuses is refused in its words.
            let bad = json!({"type": "tts"});
            let path = format!("/api/messages/{name}");
            assert_eq!(one.post(&path, &bad), two.post(&path, &bad));
            let hung_up = one.call("DELETE", &format!("/api/sessions/{name}"), None);
            assert_eq!((hung_up.0, &hung_up.1["code"]), (409, &json!("no_call")));
            let ended = one.call("DELETE", &format!("/api/sessions/{name}?disconnect=true"), None);
            assert_eq!((ended.0, &ended.1["disconnected"]), (200, &json!(true)));
            device.mqtt.read_until_closed();
            service.redis.wait_for(&["GET", &format!("p:device:{}", device.mac)], |reply| reply == "$-1\r\n");
            assert_is_absent(one, &name);
        }
    }
}

fn assert_is_absent(gateway: &Gateway, name: &str) {
    let (status, shown) = gateway.get(&format!("/api/sessions/{name}"));
    assert_eq!((status, &shown["code"]), (404, &json!("not_connected")));
    let (status, answer) = gateway.post(&format!("/api/commands/{name}"), &command());
    assert_eq!((status, answer), (500, json!({"success": false, "error": "设备未连接"})));
}

#[test]
fn an_answer_after_its_time_is_found_by_its_id() {
    if !is_installed() {
        return;
    }
    let service = Service::start(&["one", "two"], |config| config["api"]["command_timeout_s"] = json!(1));
    let [one, two] = &service.gateways[..] else { panic!() };
    let mut device = service.device(1, 1);
    let (status, late) = one.post(&format!("/api/commands/{}", device.mac), &command());
    assert_eq!((status, &late["error"]), (500, &json!("timeout")), "{late}");
    answer_command(&mut device, "late");
    let path = format!("/api/commands/results/{}", late["id"].as_str().unwrap());
    for asked in [one, two] {
        let (_, result) = asked.wait_for("GET", &path, |(status, _)| *status == 200);
        assert_eq!(result["data"]["content"][0]["text"], "late");
    }
    one.wait_for("GET", "/api/commands/results/7", |(status, _)| *status == 404);
}

#[test]
fn without_redis_a_device_of_another_gateway_is_unknown_and_never_offline() {
    if !is_installed() {
        return;
    }
    let mut service = Service::start(&["one", "two"], |_| {});
    let (here, there) = (service.device(0, 1), service.device(1, 2));
    service.redis.kill();
    let one = &service.gateways[0];
    one.wait_for("GET", "/api/gateways", |(_, list)| list["cluster"]["state"] == "unreachable");
    for path in
        [&there.client_id, &there.mac, "02:00:00:00:00:77"].map(|name| format!("/api/sessions/{name}"))
    {
        let (status, answer) = one.get(&path);
        assert_eq!((status, &answer["code"]), (503, &json!("unknown")), "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("Redis"), "{answer}");
    }
    let (status, answer) = one.post(&format!("/api/commands/{}", there.mac), &command());
    assert_eq!((status, &answer["success"]), (503, &json!(false)));
    // What is no device is none, wherever.
    assert_eq!(one.get("/api/sessions/nobody").0, 404);
    assert_eq!(one.get(&format!("/api/sessions/{}", here.mac)).0, 200);
    service.redis.restart();
    service.wait_until_all_are_known();
    one.wait_for("GET", &format!("/api/sessions/{}", there.mac), |(status, _)| *status == 200);
}

#[test]
fn a_decision_about_a_device_made_without_redis_reaches_the_other_gateways_when_it_is_back() {
    if !is_installed() {
        return;
    }
    const MAC: &str = "02:00:00:00:00:77";
    let mut service = Service::start(&["one", "two"], |_| {});
    for (method, denied) in [("PUT", json!([MAC])), ("DELETE", json!([]))] {
        service.redis.kill();
        let one = &service.gateways[0];
        one.wait_for("GET", "/api/gateways", |(_, list)| list["cluster"]["state"] == "unreachable");
        assert_eq!(one.call(method, &format!("/api/denied/{MAC}"), None).0, 200);
        service.redis.restart();
        let told = |(_, list): &(u16, Value)| list["denied"] == denied;
        service.gateways[1].wait_for("GET", "/api/denied", told);
        service.gateways[0]
            .wait_for("GET", "/api/gateways", |(_, list)| list["cluster"]["state"] == "connected");
        assert!(told(&service.gateways[0].get("/api/denied")));
    }
}

#[test]
fn a_device_of_a_gateway_that_was_killed_is_not_connected_at_once_and_of_one_that_hangs_is_unknown() {
    if !is_installed() {
        return;
    }
    let service = Service::start(&["one", "two", "three"], |_| {});
    let [one, two, three] = &service.gateways[..] else { panic!() };
    let (of_two, of_three) = (service.device(1, 1), service.device(2, 2));
    three.signal("STOP");
    let (status, answer) = one.get(&format!("/api/sessions/{}", of_three.mac));
    assert_eq!((status, &answer["code"]), (504, &json!("gateway_timeout")), "{answer}");
    assert!(answer["error"].as_str().unwrap().starts_with("Gateway three"), "{answer}");
    three.signal("CONT");
    one.wait_for("GET", &format!("/api/sessions/{}", of_three.mac), |(status, _)| *status == 200);
    two.signal("KILL");
    one.wait_for("GET", &format!("/api/sessions/{}", of_two.mac), |(status, _)| *status == 404);
    assert_is_absent(one, &of_two.client_id);
}

/// The answer of all gateways, however slow the machine is.
fn complete(gateway: &Gateway, path: &str) -> (u16, Value) {
    gateway.wait_for("GET", path, |(status, page)| *status == 200 && page["unanswered"] == json!([]))
}

/// Names of devices of all gateways, page by page.
fn listed(gateway: &Gateway, limit: usize, filter: &str) -> Vec<(String, String)> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let path = format!("/api/sessions?limit={limit}{after}{filter}");
        let (_, page) = complete(gateway, &path);
        let sessions = page["sessions"].as_array().unwrap();
        assert!(sessions.len() <= limit, "{page}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        all.extend(sessions.iter().map(|session| (text(&session["gateway"]), text(&session["mac"]))));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return all,
        }
    }
}

#[test]
fn lists_are_of_all_gateways_with_one_worker_and_with_several() {
    if !is_installed() {
        return;
    }
    for workers in [1, 3] {
        let service = Service::start(&["one", "two", "three"], |config| config["workers"] = json!(workers));
        let devices: Vec<_> = (1..12).map(|number| service.device(usize::from(number) % 3, number)).collect();
        let name = |number: u8| ["one", "two", "three"][usize::from(number) % 3].to_owned();
        let mut expected: Vec<_> = (1..12).map(|number| (name(number), mac(number))).collect();
        expected.sort();
        for gateway in &service.gateways {
            for limit in [1, 2, 3, 7, 1000] {
                let mut found = listed(gateway, limit, "");
                found.sort();
                assert_eq!(found, expected, "{limit}");
            }
            let of_two: Vec<_> = expected.iter().filter(|(name, _)| name == "two").cloned().collect();
            let mut found = listed(gateway, 2, "&gateway=two");
            found.sort();
            assert_eq!(found, of_two);
            assert!(listed(gateway, 9, "&gateway=self").iter().all(|(name, _)| *name == gateway.name));
            let (_, page) = complete(gateway, "/api/sessions?limit=1");
            assert_eq!((&page["devices"], &page["calls"]), (&json!(11), &json!(0)));
        }
        let one = &service.gateways[0];
        let (status, nobody) = one.get("/api/sessions?gateway=nobody");
        assert_eq!((status, &nobody["code"]), (404, &json!("no_such_gateway")));
        assert_eq!(one.get("/api/sessions?after=x").0, 400);
        assert_eq!(one.get("/api/sessions?limit=0").0, 400);
        // Their states, and a message to all.
        let names = json!({"clientIds": [devices[0].client_id, devices[1].mac, "02:00:00:00:00:77"]});
        let mut states = Value::Null;
        wait_until("all have answered", || {
            let (status, answer) = one.post("/api/devices/status", &names);
            states = answer;
            status == 200
        });
        let exists = |name: &str| states[name]["exists"].clone();
        assert_eq!([exists(&devices[0].client_id), exists(&devices[1].mac)], [json!(true), json!(true)]);
        assert_eq!(exists("02:00:00:00:00:77"), json!(false));
        let message =
            json!({"to": "all", "message": {"type": "alert", "status": "a", "message": "b", "emotion": "c"}});
        let (status, sent) = one.post("/api/messages", &message);
        let expected = json!({"sent": 11, "queued": 0, "offline": 0, "refused": 0, "notConnected": [], "unanswered": []});
        assert_eq!((status, sent), (200, expected));
        let (status, servers) = complete(one, "/api/servers");
        assert_eq!((status, servers["servers"].as_array().unwrap().len()), (200, 3), "{servers}");
        let named = json!({"clientIds": [devices[0].mac, devices[1].mac, "02:00:00:00:00:77"]});
        let (status, left) = one.post("/api/devices/disconnect", &named);
        let expected = json!({"disconnected": 2, "notConnected": ["02:00:00:00:00:77"], "unanswered": []});
        assert_eq!((status, left), (200, expected));
    }
}

#[test]
fn a_device_whose_call_is_at_another_gateway_is_listed_once_and_gets_a_message_to_all_once() {
    if !is_installed() {
        return;
    }
    let service = Service::start(&["one", "two"], |_| {});
    let call_and_move = || {
        let mut device = service.device(0, 1);
        let (call, mut peer) = device.call(&service.server);
        drop(device);
        let mut device = service.device(1, 1);
        // It is passed on, so the gateways have agreed.
        device.send_text(r#"{"type":"listen","state":"start","mode":"auto"}"#);
        while peer.json()["state"] != "start" {}
        (device, call, peer)
    };
    let (mut device, _call, mut peer) = call_and_move();
    for asked in &service.gateways {
        let (_, page) = asked.get("/api/sessions");
        assert_eq!((&page["devices"], &page["calls"]), (&json!(1), &json!(1)), "{page}");
        assert_eq!(listed(asked, 7, ""), [("one".to_owned(), mac(1))]);
        for to in [json!("all"), json!([mac(1)])] {
            let alert = |text| json!({"type": "alert", "status": "a", "message": text, "emotion": "c"});
            let (_, sent) = asked.post("/api/messages", &json!({"to": to, "message": alert("all")}));
            assert_eq!((&sent["sent"], &sent["notConnected"]), (&json!(1), &json!([])), "{sent}");
            assert_eq!(device.json()["message"], "all");
        }
    }
    device.send_text(r#"{"type":"goodbye"}"#);
    peer.expect_close(1000);
    let at_two = [("two".to_owned(), mac(1))];
    service.gateways[0].wait_for("GET", "/api/sessions", |(_, page)| page["calls"] == 0);
    while listed(&service.gateways[0], 7, "") != at_two {}
    // And it is disconnected once, with its call.
    let (mut device, _call, mut peer) = call_and_move();
    let (_, answer) = service.gateways[0].post("/api/devices/disconnect", &json!({"all": true}));
    assert_eq!(answer["disconnected"], 1, "{answer}");
    peer.expect_close(1000);
    device.mqtt.read_until_closed();
}

#[test]
fn lists_name_the_gateways_that_do_not_answer_and_say_that_redis_is_lost() {
    if !is_installed() {
        return;
    }
    let mut service = Service::start(&["one", "two"], |_| {});
    let (here, there) = (service.device(0, 1), service.device(1, 2));
    let both = json!({"clientIds": [here.mac, there.mac]});
    let status = |service: &Service, names: &Value| service.gateways[0].post("/api/devices/status", names);
    service.gateways[1].signal("STOP");
    let (_, page) = service.gateways[0].get("/api/sessions");
    assert_eq!((&page["devices"], &page["unanswered"]), (&json!(1), &json!(["two"])));
    let (code, answer) = status(&service, &both);
    assert_eq!(code, 503, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("two"), "{answer}");
    assert_eq!(status(&service, &json!({"clientIds": [here.mac]})).0, 200);
    service.gateways[1].signal("CONT");
    service.gateways[0].wait_for("GET", "/api/sessions", |(_, page)| page["devices"] == 2);
    service.redis.kill();
    let one = &service.gateways[0];
    one.wait_for("GET", "/api/gateways", |(_, list)| list["cluster"]["state"] == "unreachable");
    let (_, page) = one.get("/api/sessions");
    assert_eq!((&page["devices"], &page["redis"]), (&json!(1), &json!("unreachable")), "{page}");
    let (code, answer) = status(&service, &both);
    assert_eq!(code, 503, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("Redis"), "{answer}");
    assert_eq!(one.get("/api/sessions?gateway=self").1["redis"], Value::Null);
}

#[test]
fn a_call_that_has_ended_is_found_at_any_gateway() {
    if !is_installed() {
        return;
    }
    let service = Service::start(&["one", "two"], |_| {});
    let [one, two] = &service.gateways[..] else { panic!() };
    for (gateway, number) in [(0, 1), (1, 2), (1, 3)] {
        let mut device = service.device(gateway, number);
        let (_call, mut peer) = device.call(&service.server);
        device.send_text(r#"{"type":"goodbye"}"#);
        peer.expect_close(1000);
    }
    for asked in [one, two] {
        let (_, page) = asked.wait_for("GET", "/api/calls", |(_, page)| {
            page["calls"].as_array().is_some_and(|calls| calls.len() == 3)
        });
        let calls = page["calls"].as_array().unwrap();
        assert_eq!((&page["next"], &page["unanswered"]), (&Value::Null, &json!([])));
        let ids: Vec<_> = calls.iter().map(|call| call["id"].as_u64().unwrap()).collect();
        assert!(ids.is_sorted_by(|a, b| a >= b), "{ids:?}");
        for call in calls {
            let gateway = if call["mac"] == mac(1) { "one" } else { "two" };
            assert_eq!(call["gateway"], gateway, "{call}");
            let (status, shown) = asked.get(&format!("/api/calls/{}", call["id"]));
            assert_eq!((status, &shown["mac"]), (200, &call["mac"]), "{shown}");
        }
        asked.wait_for("GET", "/api/calls/1", |(status, _)| *status == 404);
        let first = complete(asked, "/api/calls?limit=1").1;
        let rest = complete(asked, &format!("/api/calls?cursor={}", first["next"])).1;
        let seen = [&first, &rest].map(|page| page["calls"].as_array().unwrap().len());
        assert_eq!(seen.iter().sum::<usize>(), 3, "{first} {rest}");
    }
}

/// Frames as another program may write them.
#[test]
fn what_a_stranger_sends_over_redis_does_nothing_but_what_the_api_allows_for_devices() {
    if !is_installed() {
        return;
    }
    let service = Service::start(&["one", "two"], |_| {});
    let [one, two] = &service.gateways[..] else { panic!() };
    let (_, list) = one.get("/api/gateways");
    let own = list["gateways"].as_array().unwrap().iter().find(|gateway| gateway["self"] == true).unwrap();
    let channel = format!("p:to:{}", own["run"].as_str().unwrap());
    let drain = r#"{"method":"POST","path":"/api/drain","name":"","query":""}"#;
    let messages = [&b"{}\n"[..], b"\n", b"", b"\xff\xff", drain.as_bytes()];
    for kind in (16..32).chain([255]) {
        for payload in messages.iter().map(|text| [text, &b"\n"[..]].concat()).chain([vec![0; 4000]]) {
            let mut frame = vec![1, kind, 0, 0];
            frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
            // From the other gateway, as it seems, and from nobody.
            for from in [two, one].map(|gateway| gateway.get("/api/gateways").1["gateways"][0]["run"].clone())
            {
                let run = u64::from_str_radix(from.as_str().unwrap(), 16).unwrap();
                let mut frame = frame.clone();
                frame.extend_from_slice(&run.to_be_bytes());
                frame.extend_from_slice(&7_u64.to_be_bytes());
                frame.extend_from_slice(&payload);
                service.redis.publish(&channel, &frame);
            }
        }
    }
    let device = service.device(1, 1);
    assert_eq!(one.get(&format!("/api/sessions/{}", device.mac)).0, 200);
    assert_eq!(one.get("/readyz"), (200, json!({"status": "ready"})));
}
