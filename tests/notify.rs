//! Sound and words for idle devices, and one message to many of them.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use mqtt_websocket_proxy::tools::device::SimulatedDevice;
use serde_json::{Value, json};
use support::TIMEOUT;
use support::admin::{Fixture, fixture, mac};

/// The next message of this type that the device gets.
fn message(device: &mut SimulatedDevice, kind: &str) -> Value {
    serde_json::from_str(&device.wait_for(kind, TIMEOUT).unwrap()).unwrap()
}

fn notify(fixture: &Fixture, device: &str, body: &Value) -> (u16, Value) {
    fixture.request("POST", &format!("/api/notify/{device}"), Some(&body.to_string()))
}

fn send(fixture: &Fixture, to: &Value, message: &Value) -> (u16, Value) {
    fixture.request("POST", "/api/messages", Some(&json!({ "to": to, "message": message }).to_string()))
}

#[test]
fn words_alone_are_an_alert_that_all_firmware_shows() {
    let fixture = fixture(|_| {});
    let mut device = fixture.device(&mac(1));
    let (status, answer) = notify(&fixture, &mac(1), &json!({ "text": "饭好了", "title": "厨房" }));
    let client_id = answer["clientId"].clone();
    let expected = json!({ "clientId": client_id, "delivery": "sent", "inCall": false, "message": "alert", "audioUrl": null });
    assert_eq!((status, answer), (200, expected));
    let alert = message(&mut device, "alert");
    let expected = json!({ "type": "alert", "status": "厨房", "message": "饭好了", "emotion": "neutral" });
    assert_eq!(alert, expected);

    for (name, body, expected) in [
        (mac(2), json!({ "text": "a" }), (404, "not_connected")),
        (mac(1), json!({}), (400, "bad_parameter")),
        (mac(1), json!({ "text": "a", "fallback": "alert" }), (400, "bad_parameter")),
        (mac(1), json!([]), (400, "bad_json")),
    ] {
        let (status, answer) = notify(&fixture, &name, &body);
        assert_eq!((status, answer["code"].as_str().unwrap()), expected, "{body}");
    }
}

#[test]
fn a_sound_elsewhere_is_named_to_the_device_and_the_answer_says_whether_it_is_in_a_call() {
    let fixture = fixture(|_| {});
    let mut device = fixture.device(&mac(1));
    let url = "https://cdn.example.com/done.ogg";
    let body = json!({ "audio_url": url, "text": "Done" });
    let (status, answer) = notify(&fixture, &mac(1), &body);
    assert_eq!((status, &answer["message"], &answer["audioUrl"]), (200, &json!("notify"), &json!(url)));
    assert_eq!((&answer["inCall"], answer.get("id")), (&json!(false), None));
    let expected =
        json!({ "type": "notify", "audio_url": url, "subtitles": [{ "start_ms": 0, "text": "Done" }] });
    assert_eq!(message(&mut device, "notify"), expected);

    let call = device.call().unwrap();
    let (status, answer) = notify(&fixture, &mac(1), &body);
    assert_eq!((status, &answer["inCall"]), (200, &json!(true)));
    assert_eq!(message(&mut device, "notify")["session_id"], json!(&*call.parameters.session_id));
}

#[test]
fn a_message_reaches_all_a_group_or_those_named() {
    for workers in [1, 3] {
        let fixture = fixture(|config| config.workers = workers);
        let client_id = |group: &str, n: u16| format!("{group}@@@{}@@@u", mac(n).replace(':', "_"));
        let open = |n: u16| {
            let group = if n.is_multiple_of(2) { "GID_kids" } else { "GID_other" };
            fixture.device_with_client_id(&client_id(group, n))
        };
        // More than are served at a time.
        let mut devices: Vec<_> = (0..50).map(open).collect();
        let alert =
            |text: &str| json!({ "type": "alert", "status": "s", "message": text, "emotion": "happy" });
        let counts = |sent: usize, missing: &[String]| json!({ "sent": sent, "queued": 0, "offline": missing.len(), "refused": 0, "notConnected": missing });

        assert_eq!(send(&fixture, &json!("all"), &alert("all")), (200, counts(50, &[])));
        assert_eq!(send(&fixture, &json!({ "group": "GID_kids" }), &alert("kids")), (200, counts(25, &[])));
        let named = json!([mac(3), mac(99), client_id("GID_other", 5), mac(3).to_uppercase()]);
        assert_eq!(send(&fixture, &named, &alert("named")), (200, counts(2, &[mac(99)])));
        assert_eq!(send(&fixture, &json!({ "group": "GID" }), &alert("none")), (200, counts(0, &[])));
        assert_eq!(send(&fixture, &json!([]), &alert("none")), (200, counts(0, &[])));

        for (n, device) in devices.iter_mut().enumerate() {
            let mut expected = vec!["all"];
            expected.extend((n.is_multiple_of(2)).then_some("kids"));
            expected.extend([3, 5].contains(&n).then_some("named"));
            for text in expected {
                assert_eq!(message(device, "alert"), alert(text), "{workers} workers, device {n}");
            }
            device.ping().unwrap();
            assert_eq!(device.receive_text(Duration::from_millis(1)).unwrap(), None, "device {n}: no more");
        }
    }
}

#[test]
fn a_message_to_many_is_checked_as_one_to_a_device_is() {
    let fixture = fixture(|config| config.workers = 2);
    let ok = json!({ "type": "alert" });
    for (to, message, expected) in [
        (json!("all"), json!({ "type": "tts" }), "bad_type"),
        (json!("all"), json!({}), "bad_type"),
        (json!("all"), json!({ "type": "alert", "session_id": 7 }), "bad_parameter"),
        (json!("all"), json!("alert"), "bad_parameter"),
        (json!("all"), Value::Null, "bad_parameter"),
        (json!("nobody"), ok.clone(), "bad_parameter"),
        (Value::Null, ok, "bad_parameter"),
    ] {
        let (status, answer) = send(&fixture, &to, &message);
        assert_eq!((status, answer["code"].as_str().unwrap()), (400, expected), "{to} {message}");
    }
    assert_eq!(fixture.request("POST", "/api/messages", Some("[]")).1["code"], "bad_json");
}
