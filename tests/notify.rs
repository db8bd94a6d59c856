//! Sound and words for idle devices, and one message to many of them.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use mqtt_websocket_proxy::config::Config;
use mqtt_websocket_proxy::proto::ogg_opus;
use mqtt_websocket_proxy::tools::device::SimulatedDevice;
use serde_json::{Value, json};
use support::TIMEOUT;
use support::admin::{Fixture, TOKEN, fixture, mac};
use support::http::{RawClient, Reply};

/// The next message of an operator that the device gets. The gateway tells a silent device to end a call of an earlier process.
fn message(device: &mut SimulatedDevice) -> Value {
    loop {
        let text = device.receive_text(TIMEOUT).unwrap().unwrap();
        let message: Value = serde_json::from_str(&text).unwrap();
        if message["type"] == "notify" || message["type"] == "alert" {
            return message;
        }
    }
}

/// Nothing but these words comes next.
fn assert_nothing_more(fixture: &Fixture, mac: &str, device: &mut SimulatedDevice) {
    assert_eq!(notify(fixture, mac, &json!({ "text": "the end" })).0, 200);
    assert_eq!(message(device)["message"], "the end");
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
    let alert = message(&mut device);
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
    assert_eq!(message(&mut device), expected);

    let call = device.call().unwrap();
    let (status, answer) = notify(&fixture, &mac(1), &body);
    assert_eq!((status, &answer["inCall"]), (200, &json!(true)));
    assert_eq!(message(&mut device)["session_id"], json!(&*call.parameters.session_id));
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
                assert_eq!(message(device), alert(text), "{workers} workers, device {n}");
            }
            assert_nothing_more(&fixture, &mac(n as u16), device);
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

/// A request with a body of any bytes.
fn post_bytes(fixture: &Fixture, path: &str, body: &[u8]) -> Reply {
    let mut client = RawClient::open(fixture.api);
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: audio/ogg\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    client.send(head);
    client.send(body);
    client.reply().unwrap()
}

const SOUNDS: [(&str, &[u8]); 3] = [
    ("ffmpeg", include_bytes!("data/notify/ffmpeg.ogg")),
    ("opusenc", include_bytes!("data/notify/opusenc.ogg")),
    ("gstreamer", include_bytes!("data/notify/gstreamer.ogg")),
];

fn with_ota(config: &mut Config) {
    (config.ota.enabled, config.ota.port) = (true, 0);
    config.ota.host = [127, 0, 0, 1].into();
}

/// What the firmware does with `audio_url` (`main/application.cc`): one GET, no redirect, a successful status, a length or chunks;
/// it reads some bytes at a time. The status, and the body as it was read.
fn firmware_get(url: &str) -> (u16, Vec<u8>) {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let request = format!(
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: board/2.3.0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let (mut bytes, mut some) = (Vec::new(), [0; 512]);
    let end = loop {
        let n = stream.read(&mut some).unwrap();
        assert!(n > 0, "{:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&some[..n]);
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
    let mut body = bytes.split_off(end + 4);
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let length: usize = length.parse().unwrap();
    while body.len() < length {
        let n = stream.read(&mut some).unwrap();
        assert!(n > 0, "cut off after {} bytes", body.len());
        body.extend_from_slice(&some[..n]);
    }
    assert!(head.contains("connection: close"), "{head}");
    (head[9..12].parse().unwrap(), body)
}

#[test]
fn a_sound_is_fetched_and_played_as_firmware_does() {
    for workers in [1, 3] {
        let fixture = fixture(|config| {
            with_ota(config);
            config.workers = workers;
        });
        // On any worker.
        for n in 0..6 {
            let mut device = fixture.device(&mac(n));
            let (name, sound) = SOUNDS[usize::from(n) % 3];
            let reply =
                post_bytes(&fixture, &format!("/api/notify/{}?text=%E4%BD%A0%E5%A5%BD", mac(n)), sound);
            let answer = reply.json();
            assert_eq!(reply.status, 200, "{answer}");
            let told = message(&mut device);
            let found = ogg_opus::check(sound).unwrap();
            assert_eq!((&answer["delivery"], &answer["inCall"]), (&json!("sent"), &json!(false)));
            assert_eq!(answer["durationMs"], found.duration_ms);
            assert_eq!((&answer["bytes"], &answer["audioUrl"]), (&json!(sound.len()), &told["audio_url"]));
            assert_eq!(told["subtitles"], json!([{ "start_ms": 0, "text": "你好" }]));

            let state = |fixture: &Fixture| {
                let id = answer["id"].as_str().unwrap();
                fixture.request("GET", &format!("/api/notify/{id}"), None).1
            };
            let before = state(&fixture);
            assert_eq!((&before["fetched"], &before["lastFetchMsAgo"]), (&json!(false), &Value::Null));
            assert_eq!((&before["device"], &before["fallback"]), (&json!(mac(n)), &json!("none")));
            let (status, body) = firmware_get(told["audio_url"].as_str().unwrap());
            assert_eq!((status, body.as_slice()), (200, sound), "{name}");
            let after = state(&fixture);
            assert_eq!((&after["fetched"], &after["fetches"]), (&json!(true), &json!(1)));
            assert!(after["lastFetchMsAgo"].as_u64() <= after["createdMsAgo"].as_u64(), "{after}");
        }
    }
}

#[test]
fn only_the_name_that_the_device_was_told_opens_a_sound() {
    let fixture = fixture(with_ota);
    let _device = fixture.device(&mac(1));
    let answer = post_bytes(&fixture, &format!("/api/notify/{}", mac(1)), SOUNDS[0].1).json();
    let (url, id) = (answer["audioUrl"].as_str().unwrap(), answer["id"].as_str().unwrap());
    assert_eq!((id.len(), url.ends_with(&format!("/notify/{id}.ogg"))), (32, true), "{url}");
    let ota = fixture.gateway.addresses().ota.unwrap();
    let base = format!("http://{ota}");
    for path in
        ["/notify/", "/notify/.ogg", &format!("/notify/{id}"), &format!("/notify/{}.ogg", "0".repeat(32))]
    {
        assert_eq!(firmware_get(&format!("{base}{path}")).0, 404, "{path}");
    }
    let post = format!("POST /notify/{id}.ogg HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(RawClient::round_trip(ota, &post).status, 405);
    let (status, state) = fixture.request("GET", &format!("/api/notify/{id}"), None);
    assert_eq!((status, &state["fetches"]), (200, &json!(0)));
    assert_eq!(fixture.request("GET", "/api/notify/0", None).1["code"], "no_file");
    assert_eq!(fixture.request_with_token("GET", &format!("/api/notify/{id}"), None, None).0, 401);
}

#[test]
fn a_sound_that_devices_do_not_play_is_refused_with_the_reason() {
    let fixture = fixture(with_ota);
    let mut device = fixture.device(&mac(1));
    let path = format!("/api/notify/{}", mac(1));
    let sound = SOUNDS[0].1;
    let chained = [sound, sound].concat();
    let long = [sound, &vec![0; 1024 * 1024][..]].concat();
    let longest = &long[..1024 * 1024];
    let mp3 = b"\xff\xfb\x90\x64".repeat(64 * 1024);
    for (query, body, expected) in [
        ("", b"RIFF\x24\0\0\0WAVEfmt ".as_slice(), (400, "bad_json", "neither")),
        ("", &mp3, (400, "bad_json", "neither a JSON object nor an Ogg file")),
        ("", &sound[..sound.len() - 1], (422, "bad_sound", "it is cut off within page 2")),
        ("", &chained, (422, "bad_sound", "a second stream begins on page 3, allowed: one")),
        ("", longest, (422, "bad_sound", "what follows its first 3 pages is no Ogg page")),
        ("", &long, (413, "body_too_long", "a sound for a device 1048576")),
        ("?fallback=alert", sound, (400, "bad_parameter", "text")),
        ("?text=", sound, (400, "bad_parameter", "text")),
        ("?audio_url=http://a/", sound, (400, "bad_parameter", "audio_url")),
    ] {
        let reply = post_bytes(&fixture, &format!("{path}{query}"), body);
        let answer = reply.json();
        assert_eq!((reply.status, answer["code"].as_str().unwrap()), (expected.0, expected.1), "{query}");
        assert!(answer["error"].as_str().unwrap().contains(expected.2), "{answer}");
    }
    // In chunks, which say their length late.
    for (body, expected) in [(longest, 422), (long.as_slice(), 413)] {
        let mut client = RawClient::open(fixture.api);
        client.send(format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"
        ));
        for chunk in body.chunks(100_000) {
            client.send([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
        }
        client.send("0\r\n\r\n");
        assert_eq!(client.reply().unwrap().status, expected);
    }
    // Neither another call nor another body takes such a length.
    for path in [&path, &format!("/api/messages/{}", mac(1))] {
        assert_eq!(post_bytes(&fixture, path, &vec![b' '; 128 * 1024 + 1]).status, 413, "{path}");
    }
    // A sound for a device that is not there is not kept.
    let reply = post_bytes(&fixture, &format!("/api/notify/{}", mac(2)), sound);
    assert_eq!(reply.json()["code"], "not_connected");
    assert_nothing_more(&fixture, &mac(1), &mut device);
}

#[test]
fn without_an_ota_port_there_is_no_sound_and_the_reason_is_said() {
    let fixture = fixture(|_| {});
    let _device = fixture.device(&mac(1));
    let reply = post_bytes(&fixture, &format!("/api/notify/{}", mac(1)), SOUNDS[0].1);
    let answer = reply.json();
    assert_eq!((reply.status, &answer["code"]), (409, &json!("ota_off")));
    assert!(answer["error"].as_str().unwrap().contains("ota.enabled"), "{answer}");
}

#[test]
fn a_device_that_ignores_notify_gets_the_text() {
    let fixture = fixture(|config| {
        with_ota(config);
        config.workers = 2;
    });
    let mut old: Vec<_> = (0..4).map(|n| fixture.device(&mac(n))).collect();
    let mut new = fixture.device(&mac(9));
    let path = |n| format!("/api/notify/{}?fallback=alert&text=Dinner", mac(n));
    let fetched = post_bytes(&fixture, &path(9), SOUNDS[0].1).json();
    assert_eq!(firmware_get(message(&mut new)["audio_url"].as_str().unwrap()).0, 200);
    let ids: Vec<_> =
        (0..4).map(|n| post_bytes(&fixture, &path(n), SOUNDS[0].1).json()["id"].clone()).collect();
    for device in &mut old {
        message(device);
        assert_eq!(message(device)["message"], "Dinner");
    }
    for id in &ids {
        let path = format!("/api/notify/{}", id.as_str().unwrap());
        assert_eq!(fixture.request("GET", &path, None).1["fallback"], "sent");
    }
    let path = format!("/api/notify/{}", fetched["id"].as_str().unwrap());
    assert_eq!(fixture.request("GET", &path, None).1["fallback"], "not_needed");
    assert_nothing_more(&fixture, &mac(9), &mut new);
}
