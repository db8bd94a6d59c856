//! Threats of docs/security.md that no other file tests: text of a peer must not become a header, a log line or an address,
//! and no secret leaves the process.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::net::SocketAddr;

use data_encoding::{BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD, HEXLOWER};
use serde_json::{Value, json};
use support::audio::Call;
use support::chat_server::{ChatServer, Message, Peer};
use support::device::{Device, HELLO, client_id, mac};
use support::http::{RawClient, Reply, raw_request};
use support::mqtt::{Client, Connect, password, user_name};
use support::process::{Folder, Process};

/// The headers of an upgrade request: these, each once, and no other.
const HEADERS: [&str; 11] = [
    "authorization",
    "client-id",
    "connection",
    "device-id",
    "host",
    "protocol-version",
    "sec-websocket-key",
    "sec-websocket-version",
    "upgrade",
    "user-agent",
    "x-forwarded-for",
];

fn start(server: &ChatServer) -> (Folder, Process) {
    let file = json!({
        "mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "mcp": {"enabled": false},
        "websocket": {"production_servers": [server.url()]}, "logging": {"level": "debug"},
    });
    let folder = Folder::new().with_file("gateway.json", file.to_string());
    let process = folder.start("-c gateway.json", &[]);
    (folder, process)
}

#[test]
fn client_ids_and_user_names_inject_no_header_and_no_log_line() {
    let server = ChatServer::start();
    let (_folder, process) = start(&server);
    let forged = "\r\nX-Forged: 1\r\n2026-01-01T00:00:00.000Z [ERROR] forged";
    let id = |group: &str, uuid: &str| format!("{group}@@@02_00_00_00_00_01@@@{uuid}");
    let encoded = |text: &str| openssl::base64::encode_block(text.as_bytes());
    for control in [forged, "\n", "\r", "\0", "\u{1b}[31m", "\u{7f}", "\u{85}"] {
        for id in [id(control, "uuid"), id("group", control)] {
            let mut client = Client::open(process.mqtt());
            client.send(&Connect::new(&id).packet());
            // MQTT forbids U+0000 in a text: then not even a CONNACK comes.
            let answer = client.read_until_closed();
            let code = answer.first().map(|packet| packet.body[1]);
            assert!(if control == "\0" { code.is_none() } else { code == Some(2) }, "{id:?}: {answer:?}");
        }
    }
    // A very long one is refused.
    let mut client = Client::open(process.mqtt());
    client.send(&Connect::new(&id(&"g".repeat(300), "uuid")).packet());
    assert_eq!(client.read_until_closed().first().map(|packet| packet.body[1]), Some(2));
    // These are accepted, and stay in their field.
    for (n, (client_id, user_name)) in [
        (id("group: a", "b: c; d, e"), user_name()),
        (id("\u{7ec4}\u{2028}x", "uuid"), user_name()),
        (id("group", "uuid"), encoded(&json!({"ip": forged, "x": "y\r\nX-Forged: 1"}).to_string())),
        (id("group", "uuid"), forged.to_owned()),
        (id("group", "%0d%0aX-Forged:%201"), user_name()),
    ]
    .into_iter()
    .enumerate()
    {
        let connect = Connect { user_name: Some(user_name), ..Connect::new(&client_id) };
        let mut client = Client::log_in(process.mqtt(), &connect);
        let hello = HELLO.replace("\"version\":3", r#""version":3,"x":"\r\nX-Forged: 1""#);
        client.send_text(&hello);
        let mut peer = server.accept();
        let request = peer.upgrade();
        let mut names: Vec<_> = request.headers.iter().map(|(name, _)| name.to_lowercase()).collect();
        names.sort();
        assert_eq!(names, HEADERS, "{n}");
        assert_eq!(request.header("device-id"), Some("02:00:00:00:00:01"));
        peer.reset();
        client.reset();
    }
    process.signal("TERM");
    let (_, lines) = process.end();
    let stamped = |line: &String| line.len() > 33 && line.as_bytes()[10] == b'T' && line.contains("Z [");
    assert!(lines.len() > 10 && lines.iter().all(stamped), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.starts_with("2026-01-01T00:00:00.000Z")), "{lines:#?}");
}

#[test]
fn what_a_chat_server_writes_stays_short_and_in_its_line() {
    const TOKEN: &str = "Api-Token-18-of-operators";
    let server = ChatServer::start();
    let file = json!({
        "mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "mcp": {"enabled": false},
        "websocket": {"production_servers": [server.url()]}, "logging": {"level": "debug"},
        "api": {"host": "127.0.0.1"},
    });
    let folder = Folder::new().with_file("gateway.json", file.to_string());
    let process = folder.start("-c gateway.json", &[("API_TOKEN", TOKEN)]);
    let api = process.api();
    let mut device = Device::connect(process.mqtt(), 1);
    // A response of 7 KiB to the upgrade, with characters that change the direction of text.
    let (long, odd) = ("x".repeat(3500), "\u{202e}\u{85}\u{2028}");
    for head in [
        format!("HTTP/1.1 500 {long}{long}\r\n\r\n"),
        format!("HTTP/1.1 302 {long}\r\nLocation: http://{odd}{long}\r\n\r\n"),
    ] {
        device.send_text(HELLO);
        let mut peer = server.accept();
        peer.request();
        peer.send_raw(head.as_bytes());
        while device.json()["type"] != "goodbye" {}
    }
    let mut shown = String::new();
    for id in ["x".repeat(900_000), "\"\n2026-01-01T00:00:00.000Z [ERROR] forged".to_owned(), odd.to_owned()]
    {
        device.send_text(HELLO);
        let mut peer = server.accept();
        peer.upgrade();
        peer.exchange_hello(&id);
        let call = device.hello_reply();
        assert_eq!(call.session_id.len(), 36, "{:.40}", call.session_id);
        shown += &http_request(api, "GET", "/api/sessions", TOKEN).body;
        assert!(shown.contains(&call.session_id));
        // The reason of a Close frame is not shown anywhere.
        peer.frame(8, &[&1000_u16.to_be_bytes()[..], odd.repeat(15).as_bytes()].concat());
        while device.json()["type"] != "goodbye" {}
    }
    shown += &http_request(api, "GET", "/api/errors", TOKEN).body;
    shown += &http_request(api, "GET", "/api/calls", TOKEN).body;
    shown += &http_request(api, "GET", "/metrics", TOKEN).body;
    process.signal("TERM");
    let (_, lines) = process.end();
    assert!(lines.len() > 10 && lines.iter().all(|line| line.len() < 1000), "{lines:#?}");
    let stamped = |line: &String| line.len() > 33 && line.as_bytes()[10] == b'T' && line.contains("Z [");
    assert!(lines.iter().all(stamped), "{lines:#?}");
    shown += &lines.concat();
    assert!(shown.contains("http://\\u{202e}"), "{shown}");
    assert!(shown.len() < 40_000 && !shown.contains(|c| odd.contains(c)), "{shown}");
}

#[test]
fn only_the_configuration_decides_where_the_gateway_connects() {
    let (server, elsewhere) = (ChatServer::start(), ChatServer::start());
    let gateway = support::gateway(&[server.url()]);
    let url = elsewhere.url();
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    // A redirect is a failed dial.
    device.send_text(HELLO);
    let mut peer = server.accept();
    peer.request();
    let status = "HTTP/1.1 302 Found";
    peer.send_raw(format!("{status}\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n").as_bytes());
    while device.json()["type"] != "goodbye" {}
    // A device and a chat server name other servers in their hellos.
    let named = json!({
        "type": "hello", "version": 3, "transport": "udp", "url": url, "server": url, "websocket": {"url": url},
        "udp": {"server": elsewhere.addr.ip().to_string(), "port": elsewhere.addr.port()},
    });
    device.send_text(&named.to_string());
    let mut peer = server.accept();
    peer.upgrade();
    peer.json();
    let mut answer = named;
    answer["session_id"] = "s".into();
    peer.send_text(&answer.to_string());
    let call = device.hello_reply();
    assert_eq!(call.gateway, gateway.addresses().udp);
    // When that server fails, the same one is dialled again.
    peer.reset();
    server.accept().upgrade();
    assert!(elsewhere.is_idle());
}

fn http_request(api: SocketAddr, method: &str, path: &str, token: &str) -> Reply {
    RawClient::round_trip(api, &raw_request(method, path, token, ""))
}

fn bearer_token(peer: &mut Peer) -> String {
    let request = peer.upgrade();
    request.header("authorization").unwrap().strip_prefix("Bearer ").unwrap().to_owned()
}

/// The encodings of these bytes.
fn encodings(secret: &[u8]) -> Vec<String> {
    let mut all = vec![HEXLOWER.encode(secret)];
    all.extend([BASE64, BASE64URL, BASE64_NOPAD, BASE64URL_NOPAD].map(|base64| base64.encode(secret)));
    all.push(format!("{secret:?}").trim_matches(['[', ']']).to_owned());
    all.extend(String::from_utf8(secret.to_vec()).ok());
    // Upper and lower case are compared alike.
    all.iter().map(|text| text.to_lowercase()).collect()
}

#[test]
fn no_secret_is_in_the_log_or_the_api_in_any_encoding() {
    const KEY: &str = "Signature-Key-17";
    const TOKEN: &str = "Api-Token-18-of-operators";
    const SECRET: &str = "server-Secret-19";
    let server = ChatServer::start();
    let url = format!("ws://{}/chat?token=url-Secret-20", server.addr);
    let file = json!({
        "mqtt": {"host": "127.0.0.1", "previous_signature_keys": ["Previous-Key-16"]},
        "udp": {"host": "127.0.0.1"}, "debug": true,
        "api": {"host": "127.0.0.1"},
        "websocket": {"production_servers": [url], "reconnect": {"initial_ms": 20, "max_ms": 20}},
        "logging": {"file_path": "gateway.log"}, "history": {"file": "calls.jsonl"},
    });
    let folder = Folder::new().with_file("gateway.json", file.to_string());
    let variables = [("MQTT_SIGNATURE_KEY", KEY), ("SERVER_SECRET", SECRET), ("API_TOKEN", TOKEN)];
    let process = folder.start("-c gateway.json -l trace", &variables);
    let api = process.api();
    let mut secrets: Vec<Vec<u8>> =
        [KEY, "Previous-Key-16", SECRET, TOKEN, "url-Secret-20"].map(|text| text.into()).into();

    // Wrong and valid logins and tokens.
    let id = client_id(1);
    let wrong = Connect { password: Some(b"wrong-Password-21".to_vec()), ..Connect::new(&id) };
    let mut client = Client::open(process.mqtt());
    client.send(&wrong.packet());
    client.read_until_closed();
    assert_eq!(http_request(api, "GET", "/api/sessions", "wrong-Token-22").status, 401);
    secrets.extend(["wrong-Password-21", "wrong-Token-22"].map(|text| text.into()));
    secrets.push(password(KEY, &id, &user_name()).into());
    let mqtt = Client::log_in(process.mqtt(), &Connect::signed(&id, KEY));
    let mut device = Device { mqtt, mac: mac(1), client_id: id.clone() };

    // A dial that fails, a call, its redial, and errors on the way.
    device.send_text(HELLO);
    let mut peer = server.accept();
    secrets.push(bearer_token(&mut peer).into());
    peer.reset();
    while device.json()["type"] != "goodbye" {}
    device.send_text(HELLO);
    let mut peer = server.accept();
    secrets.push(bearer_token(&mut peer).into());
    peer.exchange_hello("s");
    let mut reply = Value::Null;
    while reply["type"] != "hello" {
        reply = device.json();
    }
    let mut call = Call::new(reply);
    secrets.push(call.key.to_vec());
    call.send(0, b"\x58x");
    call.send_raw(&[1; 40]);
    while !matches!(peer.message(), Message::Binary(_)) {}
    peer.send_text("nonsense");
    peer.reset();
    let mut peer = server.accept();
    secrets.push(bearer_token(&mut peer).into());
    peer.exchange_hello("t");

    let mut all = String::new();
    for line in [
        "GET /metrics",
        "GET /api/config",
        "GET /api/sessions",
        &format!("GET /api/sessions/{id}"),
        "GET /api/errors",
        "GET /api/calls",
        "GET /openapi.json",
        "GET /",
        "POST /api/reload",
        "GET /nowhere",
    ] {
        let (method, path) = line.split_once(' ').unwrap();
        let reply = http_request(api, method, path, TOKEN);
        assert_eq!(reply.status, if path == "/nowhere" { 404 } else { 200 }, "{line}: {reply:?}");
        all += &(reply.head + &reply.body);
    }
    device.send_text(r#"{"type":"goodbye"}"#);
    process.signal("HUP");
    process.signal("TERM");
    let (code, lines) = process.end();
    assert_eq!(code, Some(0));
    assert!(lines.iter().any(|line| line.contains("[DEBUG]")), "{lines:#?}");
    all += &lines.join("\n");
    all += &fs::read_to_string(folder.0.join("gateway.log")).unwrap();
    let calls = fs::read_to_string(folder.0.join("calls.jsonl")).unwrap();
    assert!(calls.lines().count() == 2 && calls.contains("token=***"), "{calls}");
    all += &calls;
    // The output of the subcommands too.
    for line in ["config show", "config check", "check"] {
        let output = folder.run(&format!("{line} -c gateway.json"), &variables);
        all += &String::from_utf8_lossy(&[output.stdout, output.stderr].concat());
    }
    // A token's signature is secret too.
    let signatures: Vec<_> = secrets
        .iter()
        .filter_map(|secret| std::str::from_utf8(secret).ok()?.split_once('.'))
        .map(|(signature, _)| signature.as_bytes().to_vec())
        .collect();
    assert_eq!(signatures.len(), 3);
    secrets.extend(signatures);
    let all = all.to_lowercase();
    assert!(all.contains(&id.to_lowercase()), "what is no secret is found");
    for secret in secrets {
        for spelling in encodings(&secret) {
            assert!(!all.contains(&spelling), "{} as {spelling}", String::from_utf8_lossy(&secret));
        }
    }
}
