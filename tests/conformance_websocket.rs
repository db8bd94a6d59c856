//! RFC 6455 for a client, as byte tables (`tests/data/rfc6455.json`) that a chat server sends to a gateway, and
//! the gateway's own frames: masks, keys, and the closing of connections.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use mqtt_websocket_proxy::config::Config;
use mqtt_websocket_proxy::net::Running;
use serde_json::Value;
use support::audio::Call;
use support::byte_table::parse_bytes;
use support::chat_server::{ChatServer, Message, Peer, accept, audio_frame};
use support::device::{Device, HELLO};
use support::gateway_with;
use support::log_capture::LogCapture;

const LIVENESS_MESSAGE: &str = r#"{"type":"stt","session_id":"server-session"}"#;

fn table() -> Value {
    serde_json::from_str(include_str!("data/rfc6455.json")).unwrap()
}

/// A gateway whose devices may say hello as often as they like.
fn gateway(server: &ChatServer, change: impl FnOnce(&mut Config)) -> Running {
    gateway_with(&[server.url()], |config| {
        config.mqtt.hello_limit = 0;
        change(config);
    })
}

/// Redials at once.
fn short_reconnect_delay(config: &mut Config) {
    config.websocket.reconnect.initial = Duration::from_millis(20);
    config.websocket.reconnect.max = Duration::from_millis(40);
}

/// The length of an unmasked frame (section 5.2).
fn frame_length(n: usize) -> Vec<u8> {
    match n {
        0..126 => vec![n as u8],
        126..0x1_0000 => [&[126][..], &(n as u16).to_be_bytes()].concat(),
        _ => [&[127][..], &(n as u64).to_be_bytes()].concat(),
    }
}

fn frame_bytes(line: &Value) -> Vec<u8> {
    parse_bytes(line.as_str().unwrap(), frame_length, &|name| panic!("{name} is no placeholder"))
}

/// A call on `server` after which the gateway knows the device's UDP address.
fn start_call(device: &mut Device, server: &ChatServer) -> (Call, Peer) {
    let (mut call, mut peer) = device.call(server);
    call.send(0, b"\x58a");
    assert_eq!(peer.binary(), audio_frame(0, b"\x58a"));
    (call, peer)
}

#[test]
fn frames_of_a_chat_server() {
    let server = ChatServer::start();
    let gateway = gateway(&server, short_reconnect_delay);
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    for (section, rows) in table()["covered"].as_object().unwrap() {
        for row in rows.as_array().unwrap() {
            let what = format!("{section}: {}", row["name"]);
            eprintln!("{what}");
            run_case(row, &mut device, &server);
            device.mqtt.assert_nothing_pending();
        }
    }
}

fn run_case(row: &Value, device: &mut Device, server: &ChatServer) {
    let (call, mut peer) = start_call(device, server);
    peer.try_raw(&frame_bytes(&row["send"]));
    if let Some(code) = row["fails"].as_u64() {
        assert_eq!(peer.message(), Message::Close(Some(code as u16)));
        peer.shutdown_write();
        assert_eq!(peer.message(), Message::End);
        let mut again = server.accept();
        again.upgrade();
        again.exchange_hello("again");
        device.send_text(r#"{"type":"goodbye"}"#);
        again.expect_close(1000);
    } else if let Some(code) = row["ends"].as_u64() {
        assert_eq!(peer.message(), Message::Close(Some(code as u16).filter(|code| *code != 0)));
        peer.shutdown_write();
        assert_eq!(peer.message(), Message::End);
        device.expect_goodbye("server-session");
        // Any code but 1000 and none is a reason to be shown.
        if ![0, 1000].contains(&code) {
            assert_eq!(device.json()["type"], "alert");
        }
    } else {
        if row["pong"].is_string() {
            assert_eq!(peer.message(), Message::Pong(frame_bytes(&row["pong"])));
        }
        if let Some(text) = row["device"].as_str() {
            assert_eq!(device.mqtt.text(), text);
        }
        if row["audio"].is_string() {
            assert_eq!(call.receive().payload, frame_bytes(&row["audio"]));
        }
        peer.send_text(LIVENESS_MESSAGE);
        assert_eq!(device.mqtt.text(), LIVENESS_MESSAGE);
        device.send_text(r#"{"type":"goodbye"}"#);
        peer.expect_close(1000);
    }
}

#[test]
fn answers_to_the_upgrade() {
    let server = ChatServer::start();
    let mut log = LogCapture::containing(server.url().split('?').next().unwrap());
    let gateway = gateway(&server, |_| {});
    let mut device = Device::connect(gateway.addresses().mqtt, 2);
    for row in table()["4.1 the answer to the upgrade"].as_array().unwrap() {
        eprintln!("{}", row["name"]);
        device.send_text(HELLO);
        let mut peer = server.accept();
        let accept = accept(&peer.request());
        let lines = row["answer"].as_array().unwrap().iter().map(|line| line.as_str().unwrap());
        let head: String = lines
            .map(|line| format!("{}\r\n", expand_response(&line.replace("{accept}", &accept))))
            .collect();
        peer.try_raw(format!("{head}\r\n").as_bytes());
        if let Some(says) = row["says"].as_str() {
            log.wait_for_line(says);
            device.expect_failure();
            peer.expect_end();
        } else {
            peer.exchange_hello("server-session");
            device.hello_reply();
            device.send_text(r#"{"type":"goodbye"}"#);
            peer.expect_close(1000);
        }
    }
}

/// `X-{n}: y*3` is three headers with different names; `{z*9}` is nine letters.
fn expand_response(line: &str) -> String {
    if let Some((header, times)) = line.strip_prefix("X-{n}: ").and_then(|rest| rest.split_once('*')) {
        let headers: Vec<_> = (0..times.parse().unwrap()).map(|n: u32| format!("X-{n}: {header}")).collect();
        return headers.join("\r\n");
    }
    match line.split_once("{z*") {
        Some((name, times)) => format!("{name}{}", "z".repeat(times.trim_end_matches('}').parse().unwrap())),
        None => line.to_owned(),
    }
}

/// Section 5.3: each frame has a masking key that cannot be predicted from earlier ones. The keys come from the
/// ChaCha12 generator of the `rand` crate, seeded by the system, through tungstenite.
#[test]
fn masking_keys_are_fresh_and_unpredictable() {
    const FRAMES: usize = 1000;
    let server = ChatServer::start();
    let gateway = gateway(&server, |_| {});
    let mut device = Device::connect(gateway.addresses().mqtt, 3);
    let (_, mut peer) = device.call(&server);
    for _ in 0..FRAMES {
        device.send_text(LIVENESS_MESSAGE);
        peer.text();
    }
    let masks: Vec<u32> = peer.masking_keys.iter().map(|mask| u32::from_be_bytes(*mask)).collect();
    assert!(masks.len() > FRAMES);
    // One pair in a thousand random keys is equal once in 8,600 runs; two pairs never.
    let distinct = |list: &[u32]| list.iter().collect::<BTreeSet<_>>().len();
    assert!(distinct(&masks) + 1 >= masks.len(), "keys occur again");
    for (how, step) in [
        ("difference", (|a, b| b.wrapping_sub(a)) as fn(u32, u32) -> u32),
        ("bits that change", |a, b| a ^ b),
    ] {
        let steps: Vec<u32> = masks.windows(2).map(|pair| step(pair[0], pair[1])).collect();
        assert!(distinct(&steps) + 1 >= steps.len(), "the {how} between keys occurs again");
    }
    // Each bit is set in half of the keys: 8 sigma are 4 in 10,000,000,000,000,000.
    for bit in 0..32 {
        let set = masks.iter().filter(|mask| *mask >> bit & 1 == 1).count() as f64;
        let (half, sigma) = (masks.len() as f64 / 2.0, (masks.len() as f64).sqrt() / 2.0);
        assert!((set - half).abs() < 8.0 * sigma, "bit {bit} is set in {set} of {} keys", masks.len());
    }
}

/// Section 4.1, item 7: 16 random bytes for each connection.
#[test]
fn the_key_of_the_upgrade_is_sixteen_bytes_and_new_each_time() {
    let server = ChatServer::start();
    let gateway = gateway(&server, |_| {});
    let mut device = Device::connect(gateway.addresses().mqtt, 4);
    let mut keys = BTreeSet::new();
    for _ in 0..20 {
        device.send_text(HELLO);
        let mut peer = server.accept();
        let request = peer.upgrade();
        let key = request.header("sec-websocket-key").unwrap().to_owned();
        assert_eq!(openssl::base64::decode_block(&key).unwrap().len(), 16, "{key}");
        assert!(keys.insert(key));
        peer.exchange_hello("server-session");
        device.hello_reply();
        device.send_text(r#"{"type":"goodbye"}"#);
        peer.expect_close(1000);
    }
}

/// Sections 5.5.1 and 7.1.1: after its Close the gateway sends nothing more, waits for the server to end the connection,
/// and does not wait for ever.
#[test]
fn after_its_close_the_gateway_sends_nothing_and_disconnects() {
    let server = ChatServer::start();
    let gateway = gateway(&server, |_| {});
    let mut device = Device::connect(gateway.addresses().mqtt, 5);
    let (_, mut peer) = device.call(&server);
    device.send_text(r#"{"type":"goodbye"}"#);
    assert!(matches!(peer.message(), Message::Text(_)), "its goodbye");
    assert_eq!(peer.message(), Message::Close(Some(1000)));
    peer.try_frame(9, b"still there?");
    peer.try_frame(1, LIVENESS_MESSAGE.as_bytes());
    assert_eq!(peer.message(), Message::End, "no pong, and no second Close");
    device.mqtt.assert_nothing_pending();
}

/// Section 7.4.1: 1001 when the gateway stops.
#[test]
fn a_stopping_gateway_closes_its_websockets() {
    let server = ChatServer::start();
    let gateway = gateway(&server, |_| {});
    let mut device = Device::connect(gateway.addresses().mqtt, 6);
    let (_, mut peer) = device.call(&server);
    let stopping = std::thread::spawn(move || gateway.stop(Duration::from_secs(10)));
    peer.expect_close(1001);
    device.expect_goodbye("server-session");
    stopping.join().unwrap().unwrap();
}
