//! Events: the stream of the management API, and webhooks.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use mqtt_websocket_proxy::config::{Config, Secret, Webhook};
use serde_json::{Value, json};
use support::TIMEOUT;
use support::admin::{Fixture, TOKEN, config, fixture, mac};
use support::chat_server::ChatServer;
use support::http::{http_call, sum_of_samples};

/// A client of `GET /api/events`.
struct Events(BufReader<TcpStream>);

impl Events {
    fn open(fixture: &Fixture, last_event_id: Option<u64>) -> Self {
        let mut stream = TcpStream::connect(fixture.api).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let resume = last_event_id.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let request = format!(
            "GET /api/events HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {TOKEN}\r\n{resume}\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut events = Self(BufReader::new(stream));
        let head = events.lines();
        assert!(
            head[0] == "HTTP/1.1 200 OK" && head.contains(&"Content-Type: text/event-stream".to_owned()),
            "{head:?}"
        );
        events
    }

    /// The lines up to an empty one.
    fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "closed after {lines:?}");
            match line.trim_end() {
                "" => return lines,
                line => lines.push(line.to_owned()),
            }
        }
    }

    /// The next event, whose fields agree with those of its data; an event `lost` has an id of 0.
    fn next(&mut self) -> Value {
        loop {
            let lines = self.lines();
            if lines == [":"] {
                continue;
            }
            let field =
                |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            let data: Value = serde_json::from_str(field("data").unwrap()).unwrap();
            if field("event") == Some("lost") {
                return json!({"event": "lost", "id": 0, "lost": data["lost"]});
            }
            assert_eq!(field("id").unwrap(), data["id"].to_string());
            assert_eq!(field("event"), data["event"].as_str());
            return data;
        }
    }

    /// The next event with this name.
    fn next_of(&mut self, name: &str) -> Value {
        loop {
            let event = self.next();
            if event["event"] == name {
                return event;
            }
        }
    }
}

#[test]
fn a_device_and_its_call_are_events_with_their_figures() {
    let fixture = fixture(|_| {});
    let mut events = Events::open(&fixture, None);
    let mut device = fixture.device(&mac(1));
    let online = events.next();
    assert_eq!(
        (&online["event"], &online["new"], &online["resumed"]),
        (&json!("device.online"), &json!(true), &json!(false))
    );
    assert!(online["device"].as_str().unwrap().contains(&mac(1).replace(':', "_")), "{online}");
    assert!(online["address"].as_str().unwrap().starts_with("127.0.0.1:") && online["session"].is_null());
    assert!(online["time"].as_str().unwrap().contains('T'), "{online}");

    let call = device.call().unwrap();
    let started = events.next();
    assert_eq!(started["event"], "call.started");
    let session = started["session"].as_str().unwrap().to_owned();
    assert!(started["message"].as_str().unwrap().contains(&format!("session={session}")), "{started}");
    assert!(started["answered_after_ms"].is_u64() && started["server"].is_string(), "{started}");

    device.send_text(r#"{"jsonrpc":"2.0"}"#).unwrap();
    device.goodbye(&call).unwrap();
    let ended = events.next();
    assert_eq!((&ended["event"], &ended["reason"]), (&json!("call.ended"), &json!("device_goodbye")));
    assert_eq!(
        (&ended["session"], &ended["answered"], &ended["lost"]),
        (&json!(session), &json!(true), &json!(0))
    );
    assert_eq!(ended["device"], online["device"]);

    device.disconnect().unwrap();
    let offline = events.next();
    assert_eq!(
        (&offline["event"], &offline["reason"]),
        (&json!("device.offline"), &json!("the device disconnected"))
    );
    let ids: Vec<_> = [&online, &started, &ended, &offline].map(|event| event["id"].as_u64().unwrap()).into();
    assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1), "{ids:?}");

    // The client comes back, and gets what it has not had.
    drop(events);
    let mut events = Events::open(&fixture, Some(ids[1]));
    assert_eq!(events.next(), ended);
    assert_eq!(events.next(), offline);
    // An id of an earlier process: everything since the start.
    assert_eq!(Events::open(&fixture, Some(1)).next(), online);
}

#[test]
fn servers_reloads_and_limits_are_events() {
    let server = ChatServer::start();
    let url = server.url();
    let fixture = fixture(|config| {
        config.websocket.production = vec![Arc::new(url.parse().unwrap())];
        config.mqtt.max_connections = 1;
    });
    let mut events = Events::open(&fixture, None);
    let mut device = fixture.device(&mac(1));
    let dial = thread::spawn(move || {
        server.accept().refuse("401 Unauthorized");
        server
    });
    let _ = device.call();
    let failed = events.next_of("server.failed");
    assert!(failed["reason"].as_str().unwrap().contains("401") && failed["device"].is_null(), "{failed}");
    let ended = events.next_of("call.ended");
    assert_eq!((&ended["reason"], &ended["answered"]), (&json!("no_server"), &json!(false)));
    let server = dial.join().unwrap();
    let dial = thread::spawn(move || {
        let mut peer = server.accept();
        peer.upgrade();
        peer.exchange_hello("s");
        (server, peer)
    });
    let _call = device.call().unwrap();
    let recovered = events.next_of("server.recovered");
    assert_eq!(recovered["server"], failed["server"]);
    let _peer = dial.join().unwrap();

    let login = mqtt_websocket_proxy::tools::device::Login::new(
        mac(2).parse().unwrap(),
        Some(support::admin::KEY.as_bytes()),
    );
    let refused = mqtt_websocket_proxy::tools::device::SimulatedDevice::connect(
        fixture.gateway.addresses().mqtt,
        &login,
        TIMEOUT,
    );
    assert!(refused.is_err());
    let limit = events.next_of("limit.reached");
    assert_eq!(limit["limit"], "mqtt.max_connections");

    let changed = |change: &dyn Fn(&mut Config)| {
        let mut new = config(&fixture.echo, |_| {});
        new.websocket.production = vec![Arc::new(url.parse().unwrap())];
        new.mqtt.max_connections = 1;
        change(&mut new);
        fixture.gateway.handle().reload(new);
    };
    changed(&|config| config.mqtt.max_connections = 9);
    let reloaded = events.next_of("config.reloaded");
    assert_eq!(reloaded["applied"], json!(["mqtt.max_connections"]), "{reloaded}");
    changed(&|config| config.mqtt.signature_key = None);
    let refused = events.next_of("config.refused");
    assert!(refused["reason"].as_str().unwrap().contains("mqtt.signature_key"), "{refused}");
}

#[test]
fn a_server_whose_health_url_fails_is_an_event() {
    let health = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/?key=secret", health.local_addr().unwrap());
    thread::spawn(move || {
        for status in std::iter::once("503 No").chain(std::iter::repeat("200 OK")) {
            let (mut peer, _) = health.accept().unwrap();
            let _ = peer.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes());
        }
    });
    let fixture = fixture(|config| {
        let server = Arc::make_mut(&mut config.websocket.production[0]);
        server.health_url = Some(url.parse().unwrap());
    });
    // It may be an event of before.
    let mut events = Events::open(&fixture, Some(0));
    let failed = events.next_of("server.failed");
    assert!(failed["message"].as_str().unwrap().contains("is not well"), "{failed}");
    assert_eq!(events.next_of("server.recovered")["server"], failed["server"]);
}

#[cfg(feature = "tls")]
#[test]
fn a_certificate_near_its_end_is_an_event() {
    let authority = support::tls::CertificateAuthority::new();
    let issued = authority.issue_for("gw.example", support::tls::new_key(), -1, 3);
    let folder = support::process::Folder::new()
        .with_file("cert.pem", issued.certificate_pem())
        .with_file("key.pem", issued.key_pem());
    let fixture = fixture(|config| {
        config.mqtt.tls.port = 0;
        config.mqtt.tls.cert_file = Some(folder.0.join("cert.pem"));
        config.mqtt.tls.key_file = Some(folder.0.join("key.pem"));
    });
    // It may be an event of before.
    let expiring = Events::open(&fixture, Some(0)).next_of("certificate.expiring");
    assert_eq!((&expiring["section"], &expiring["names"]), (&json!("mqtt.tls"), &json!("gw.example")));
    assert!((2..=3).contains(&expiring["days_left"].as_i64().unwrap()), "{expiring}");
}

#[test]
fn events_of_all_workers_are_in_one_stream() {
    let fixture = fixture(|config| config.workers = 3);
    let mut events = Events::open(&fixture, None);
    let devices: Vec<_> = (0..12).map(|n| fixture.device(&mac(n))).collect();
    let mut online: Vec<_> =
        devices.iter().map(|_| events.next_of("device.online")["device"].to_string()).collect();
    online.sort();
    online.dedup();
    assert_eq!(online.len(), devices.len());
}

#[test]
fn readers_that_do_not_read_lose_the_oldest_events_and_delay_nobody() {
    const SILENT: usize = 50;
    const LOGINS: usize = 600;
    let fixture = fixture(|config| config.mqtt.max_connections_per_ip = 0);
    let silent: Vec<_> = (0..SILENT).map(|_| Events::open(&fixture, None)).collect();
    let mut reader = Events::open(&fixture, None);
    let mut caller = fixture.device(&mac(9_999));
    let call = caller.call().unwrap();
    let before = reader.next()["id"].as_u64().unwrap();
    let mut late = Events::open(&fixture, Some(before));
    for n in 0..LOGINS {
        fixture.device(&mac(n as u16)).disconnect().unwrap();
    }
    caller.goodbye(&call).unwrap();
    // One that reads gets the last event, and knows of each one that it has not got.
    for (events, first) in [(&mut reader, before), (&mut late, before)] {
        let (mut last, mut is_over) = (first, false);
        while !is_over {
            let event = events.next();
            match event["lost"].as_u64().filter(|_| event["event"] == "lost") {
                Some(lost) => last += lost,
                None => {
                    last += 1;
                    assert_eq!(event["id"].as_u64(), Some(last));
                    is_over = event["event"] == "call.ended";
                }
            }
        }
    }
    // A client that comes now gets what is kept.
    let mut again = Events::open(&fixture, Some(before));
    let lost = again.next();
    assert!(lost["event"] == "lost" && lost["lost"].as_u64().unwrap() >= 600, "{lost}");
    let (_, metrics) = http_call(fixture.api, "GET", "/metrics", None, Some(TOKEN));
    assert!(sum_of_samples(&metrics, "gateway_event_streams") >= SILENT as f64, "{metrics}");
    drop(silent);
}

#[test]
fn a_stream_needs_a_token_and_there_are_at_most_64() {
    let fixture = fixture(|_| {});
    assert_eq!(http_call(fixture.api, "GET", "/api/events", None, None).0, 401);
    let streams: Vec<_> = (0..64).map(|_| Events::open(&fixture, None)).collect();
    let (status, body) = http_call(fixture.api, "GET", "/api/events", None, Some(TOKEN));
    assert!(status == 503 && body.contains("too_many_streams"), "{status} {body}");
    // A client that leaves makes room.
    drop(streams);
    let mut status = 503;
    while status != 200 {
        let mut stream = TcpStream::connect(fixture.api).unwrap();
        let request =
            format!("HEAD /api/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    }
    Events::open(&fixture, None);
}

/// A server for webhooks: answers so, one request after another, then with 200; without an answer it keeps the connection open.
struct Hooks {
    url: String,
    requests: Receiver<(Vec<String>, Value)>,
}

impl Hooks {
    fn start(answers: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook?key=k", listener.local_addr().unwrap());
        let (sender, requests) = mpsc::channel();
        thread::spawn(move || {
            let mut answers = answers.iter();
            let mut open = Vec::new();
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let mut events = Events(BufReader::new(stream));
                let head = events.lines();
                let length = head.iter().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
                let mut body = vec![0; length.parse().unwrap()];
                events.0.read_exact(&mut body).unwrap();
                let request = (head, serde_json::from_slice(&body).unwrap());
                match *answers.next().unwrap_or(&"200 OK") {
                    "" => open.push(events),
                    status => {
                        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                        events.0.get_mut().write_all(answer.as_bytes()).unwrap();
                    }
                }
                if sender.send(request).is_err() {
                    return;
                }
            }
        });
        Self { url, requests }
    }

    fn webhook(&self, events: &[&str]) -> Webhook {
        Webhook {
            url: self.url.parse().unwrap(),
            secret: Secret::new("key"),
            events: events.iter().map(|event| (*event).to_owned()).collect(),
        }
    }

    fn next(&self) -> (Vec<String>, Value) {
        self.requests.recv_timeout(TIMEOUT).unwrap()
    }
}

#[test]
fn a_webhook_gets_its_events_in_order_signed_and_again_after_a_failure() {
    let hooks = Hooks::start(&["500 Oops", "200 OK", "404 Not Found"]);
    let fixture = fixture(|config| config.webhooks = vec![hooks.webhook(&["call.*", "config.reloaded"])]);
    let mut device = fixture.device(&mac(1));
    let call = device.call().unwrap();
    device.goodbye(&call).unwrap();
    let (head, started) = hooks.next();
    assert_eq!(head[0], "POST /hook?key=k HTTP/1.1");
    let field = |name: &str| {
        head.iter()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .unwrap_or_else(|| panic!("no {name} in {head:?}"))
    };
    assert_eq!((field("X-Webhook-Event"), field("Content-Type")), ("call.started", "application/json"));
    assert_eq!(field("X-Webhook-Id"), started["id"].to_string());
    let key = openssl::pkey::PKey::hmac(b"key").unwrap();
    let mut signer = openssl::sign::Signer::new(openssl::hash::MessageDigest::sha256(), &key).unwrap();
    let signature = signer.sign_oneshot_to_vec(started.to_string().as_bytes()).unwrap();
    assert_eq!(
        field("X-Webhook-Signature"),
        format!("sha256={}", data_encoding::HEXLOWER.encode(&signature))
    );
    // The same one again, since it failed; the next one is refused for good.
    assert_eq!(hooks.next().1, started);
    let ended = hooks.next().1;
    assert_eq!((&ended["event"], &ended["session"]), (&json!("call.ended"), &started["session"]));
    // A reload that leaves the webhook as it is.
    let change = |config: &mut Config| {
        config.webhooks = vec![hooks.webhook(&["call.*", "config.reloaded"])];
        config.mqtt.max_connections = 7;
    };
    fixture.gateway.handle().reload(config(&fixture.echo, change));
    let reloaded = hooks.next().1;
    assert_eq!(reloaded["event"], "config.reloaded");
    let metrics = http_call(fixture.api, "GET", "/metrics", None, Some(TOKEN)).1;
    for (result, expected) in [("refused", 1.0), ("failed", 1.0), ("lost", 0.0)] {
        let name = format!("gateway_webhook_events_total{{result=\"{result}\"}}");
        assert_eq!(sum_of_samples(&metrics, &name), expected, "{result}");
    }
}

#[test]
fn a_webhook_that_never_answers_delays_neither_another_one_nor_a_call() {
    let (silent, hooks) = (Hooks::start(&[""; 9]), Hooks::start(&[]));
    let fixture =
        fixture(|config| config.webhooks = vec![silent.webhook(&[]), hooks.webhook(&["call.ended"])]);
    let mut device = fixture.device(&mac(1));
    assert_eq!(silent.next().1["event"], "device.online");
    for _ in 0..5 {
        let mut call = device.call().unwrap();
        device.start_listening(&call, "realtime").unwrap();
        device.wait_for("tts", TIMEOUT).unwrap();
        let packet = call.encrypt(0, &[0x88; 60]);
        call.send_packet(&packet).unwrap();
        assert!(call.receive(TIMEOUT).unwrap().is_some());
        device.goodbye(&call).unwrap();
        let ended = hooks.next().1;
        assert_eq!((&ended["event"], &ended["lost"]), (&json!("call.ended"), &json!(0)));
    }
    drop(device);
    // The gateway ends all the same.
    drop(fixture);
}

#[cfg(feature = "tls")]
#[test]
fn a_webhook_over_tls_verifies_its_server() {
    let authority = support::tls::CertificateAuthority::new();
    let folder = support::process::Folder::new().with_file("ca.pem", authority.pem());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/hook", listener.local_addr().unwrap());
    let acceptor = authority.server("127.0.0.1");
    let (sender, bodies) = mpsc::channel::<Option<String>>();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = acceptor.accept(stream.unwrap()) else {
                let _ = sender.send(None);
                continue;
            };
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                let mut buffer = [0; 4096];
                let length = stream.read(&mut buffer).unwrap_or_default();
                if length == 0 {
                    break;
                }
                request.extend_from_slice(&buffer[..length]);
            }
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
            let _ = sender.send(String::from_utf8(request).ok());
        }
    });
    let webhook =
        || Webhook { url: url.parse().unwrap(), secret: None, events: vec!["device.online".to_owned()] };
    let next = || bodies.recv_timeout(TIMEOUT).unwrap();
    // An authority that is not known: the server is not told.
    let unknown = fixture(|config| config.webhooks = vec![webhook()]);
    let _device = unknown.device(&mac(1));
    assert_eq!(next(), None);
    drop(unknown);
    let known = fixture(|config| {
        config.webhooks = vec![webhook()];
        config.websocket.ca_file = Some(folder.0.join("ca.pem"));
    });
    let _device = known.device(&mac(1));
    let request = std::iter::repeat_with(next).flatten().next().unwrap();
    assert!(request.starts_with("POST /hook HTTP/1.1\r\n") && !request.contains("Signature"), "{request}");
}
