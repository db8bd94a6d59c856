//! The management port with slow, wrong, many and malicious clients, during calls.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::tools::device::{Call, SimulatedDevice};
use serde_json::json;
use support::TIMEOUT;
use support::admin::{Fixture, TOKEN, fixture, request};
use support::http::RawClient;
use support::real_time::assert_in_real_time;

/// A call whose round trips are measured while something else happens.
struct CallProbe {
    device: SimulatedDevice,
    call: Call,
    sent: u32,
}

impl CallProbe {
    fn start(fixture: &Fixture) -> Self {
        let mut device = fixture.device("aa:bb:cc:dd:ee:01");
        let call = device.call().unwrap();
        Self { device, call, sent: 0 }
    }

    /// The round trip of one packet.
    fn round_trip(&mut self) -> Duration {
        self.sent += 1;
        let begun = Instant::now();
        self.call.send(self.sent, b"\x08n Opus packet").unwrap();
        let audio = self.call.receive(TIMEOUT).unwrap().expect("an echo");
        assert_eq!(audio.payload, b"\x08n Opus packet");
        begun.elapsed()
    }

    /// The longest round trip of so many packets, each sent when the one before is back.
    fn max_round_trip(&mut self, packets: u32) -> Duration {
        (0..packets).map(|_| self.round_trip()).max().unwrap()
    }

    fn hang_up(mut self) {
        self.device.goodbye(&self.call).unwrap();
    }
}

/// How many connections this test can open, leaving file descriptors for the tests that run in parallel.
fn connection_count() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
    let soft: usize = line.split_whitespace().next().and_then(|soft| soft.parse().ok()).unwrap_or(256);
    1000.min(soft.saturating_sub(400))
}

#[test]
fn a_thousand_idle_or_slow_connections_do_not_delay_a_call() {
    assert_in_real_time(|| {
        let worst = worst_round_trip_beside_a_thousand_connections();
        (worst < Duration::from_millis(250)).then_some(()).ok_or_else(|| format!("{worst:?}"))
    });
}

fn worst_round_trip_beside_a_thousand_connections() -> Duration {
    let fixture = fixture(|_| {});
    let mut call = CallProbe::start(&fixture);
    let beginnings: [&[u8]; 4] = [
        b"",
        b"G",
        b"POST /api/commands/x HTTP/1.1\r\nHost: gateway\r\nContent-Length: 9\r\n",
        b"\x16\x03\x01",
    ];
    let mut held = Vec::new();
    let mut worst = Duration::ZERO;
    let begun = Instant::now();
    for n in 0..connection_count() {
        let mut raw = RawClient::open(fixture.api);
        // The gateway may have closed it already, in favour of a newer one.
        let _ = std::io::Write::write_all(&mut raw.stream, beginnings[n % beginnings.len()]);
        held.push(raw);
        if n % 10 == 0 {
            worst = worst.max(call.round_trip());
        }
        if n % 100 == 99 {
            assert_eq!(fixture.request("GET", "/healthz", None).0, 200, "a new client is always served");
        }
    }
    worst = worst.max(call.max_round_trip(200));
    let text = fixture.request_with_token("GET", "/metrics", None, Some(TOKEN)).1;
    let value = |name: &str| -> usize {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).unwrap();
        line.parse().unwrap()
    };
    assert!(value("gateway_api_connections") <= 128);
    // If it takes longer, the time of many is over before others need their place.
    if begun.elapsed() < Duration::from_secs(8) {
        assert!(value("gateway_api_displaced_total") >= held.len().saturating_sub(128) / 2);
    }
    call.hang_up();
    worst
}

#[test]
fn the_connection_idle_longest_is_evicted_first() {
    let fixture = fixture(|_| {});
    let mut device = fixture.device("aa:bb:cc:dd:ee:01");
    // The first waits for a device's answer.
    let mut asking = RawClient::open(fixture.api);
    let tool = r#"{"type":"mcp","payload":{"method":"tools/list"}}"#;
    asking.send(request("POST", "/api/commands/aa:bb:cc:dd:ee:01", tool));
    let asked = device.wait_for("mcp", TIMEOUT).unwrap();
    let begun = Instant::now();
    let mut oldest = RawClient::open(fixture.api);
    oldest.send("GET /healthz HTTP/1.1\r\nHost: gateway\r\n");
    let mut others: Vec<_> = (0..200).map(|_| RawClient::open(fixture.api)).collect();
    if begun.elapsed() > Duration::from_secs(8) {
        return eprintln!(
            "SKIPPED: this machine is too slow: {:?}, and each has ten seconds",
            begun.elapsed()
        );
    }
    // Not answered with 408, as when its time is over.
    assert!(oldest.reply().is_none(), "closed");
    // The newest are still open.
    for raw in others.iter_mut().rev().take(100) {
        let sent =
            std::io::Write::write_all(&mut raw.stream, b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n");
        let reply = sent.ok().and_then(|()| raw.reply());
        if reply.is_none() && begun.elapsed() > Duration::from_secs(8) {
            eprintln!("SKIPPED: this machine is too slow: {:?}, and each has ten seconds", begun.elapsed());
            break;
        }
        assert_eq!(reply.unwrap().status, 200);
    }
    let id = asked.split("\"id\":").nth(1).unwrap().split(',').next().unwrap();
    device
        .send_text(&format!(r#"{{"type":"mcp","payload":{{"jsonrpc":"2.0","id":{id},"result":7}}}}"#))
        .unwrap();
    assert_eq!(asking.reply().unwrap().json(), json!({ "success": true, "data": 7 }));
}

#[test]
fn a_request_that_times_out_is_closed() {
    let fixture = fixture(|_| {});
    let begun = Instant::now();
    let trickle = |mut raw: RawClient, bytes: &'static [u8]| {
        thread::spawn(move || {
            let mut writer = raw.stream.try_clone().unwrap();
            thread::spawn(move || {
                for byte in bytes.iter().cycle() {
                    if std::io::Write::write_all(&mut writer, &[*byte]).is_err() {
                        return;
                    }
                    thread::sleep(Duration::from_millis(200));
                }
            });
            let reply = raw.reply().map(|reply| (reply.status, reply.json()["success"] == json!(false)));
            (reply, raw.reply().is_none())
        })
    };
    let head = trickle(RawClient::open(fixture.api), b"x");
    let with_body = |path: &str| {
        let mut raw = RawClient::open(fixture.api);
        raw.send(format!(
            "POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100000\r\n\r\n"
        ));
        trickle(raw, b" ")
    };
    let (body, command) = (with_body("/api/reload"), with_body("/api/commands/x"));
    let mut silent = RawClient::open(fixture.api);
    assert!(silent.reply().is_none());
    for (late, in_the_form_of_commands) in [(head, false), (body, false), (command, true)] {
        assert_eq!(late.join().unwrap(), (Some((408, in_the_form_of_commands)), true));
    }
    assert!(begun.elapsed() >= Duration::from_secs(9), "{:?}", begun.elapsed());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let fixture = fixture(|_| {});
    let mut raw = RawClient::open(fixture.api);
    let mut all = String::new();
    for n in 0..200 {
        let body = json!({ "clientIds": [n.to_string()] }).to_string();
        all.push_str(&request("POST", "/api/devices/status", &body));
    }
    all.push_str("GET /healthz HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\nGET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n");
    raw.send(all);
    for n in 0..200 {
        let reply = raw.reply().unwrap();
        assert_eq!(
            reply.json(),
            json!({ n.to_string(): { "isAlive": false, "inCall": false, "exists": false } })
        );
        assert_eq!(reply.field("connection"), Some("keep-alive"));
    }
    let last = raw.reply().unwrap();
    assert_eq!((last.json(), last.field("connection")), (json!({ "status": "ok" }), Some("close")));
    assert!(raw.reply().is_none(), "nothing is served behind close");
}

#[test]
fn a_request_may_be_split_at_any_byte() {
    let fixture = fixture(|_| {});
    let text = request("POST", "/api/devices/status", r#"{"clientIds":["组"]}"#);
    for cut in 1..text.len() {
        let mut raw = RawClient::open(fixture.api);
        raw.send(&text.as_bytes()[..cut]);
        raw.send(&text.as_bytes()[cut..]);
        raw.stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(raw.reply().unwrap().status, 200, "{cut}");
        assert!(raw.reply().is_none());
    }
}

#[test]
fn a_malformed_request_is_answered_and_closes_the_connection() {
    let fixture = fixture(|_| {});
    let mut call = CallProbe::start(&fixture);
    let auth = format!("Authorization: Bearer {TOKEN}\r\n");
    let post = |fields: &str| format!("POST /api/reload HTTP/1.1\r\nHost: gateway\r\n{auth}{fields}\r\n");
    for (request, status, code) in [
        (format!("GET /{} HTTP/1.1\r\nHost: gateway\r\n\r\n", "x".repeat(10_000)), 431, "head_too_long"),
        (format!("GET / HTTP/1.1\r\nHost: gateway\r\nx: {}", "y".repeat(1_000_000)), 431, "head_too_long"),
        (format!("GET / HTTP/1.1\r\nHost: gateway\r\n{}\r\n", "a: b\r\n".repeat(200)), 431, "head_too_long"),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(), 400, "bad_request"),
        ("GET / HTTP/3.0\r\n\r\n".to_owned(), 400, "bad_request"),
        ("nonsense\r\n\r\n".to_owned(), 400, "bad_request"),
        (post("Content-Length: 131073\r\n"), 413, "body_too_long"),
        (post("Content-Length: 1\r\nContent-Length: 1\r\n"), 400, "bad_request"),
        (post("Content-Length: -5\r\n"), 400, "bad_request"),
        (post("Transfer-Encoding: br\r\n"), 501, "coding_unknown"),
        (post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), 400, "bad_request"),
        (post("Expect: a-miracle\r\n"), 417, "expectation_failed"),
    ] {
        let mut raw = RawClient::open(fixture.api);
        // The answer may come before everything is sent.
        let _ = std::io::Write::write_all(&mut raw.stream, request.as_bytes());
        let reply = raw.reply().unwrap_or_else(|| panic!("no answer to {request:.80}"));
        assert_eq!((reply.status, &reply.json()["code"]), (status, &json!(code)), "{request:.80}");
        assert_eq!(reply.field("connection"), Some("close"), "{request:.80}");
        assert!(raw.reply().is_none(), "{request:.80}");
        call.round_trip();
    }
    call.hang_up();
}

#[test]
fn invalid_bodies_are_refused_and_the_connection_stays_open() {
    let fixture = fixture(|_| {});
    let mut raw = RawClient::open(fixture.api);
    let deep = format!("{}{}", "[".repeat(60_000), "]".repeat(60_000));
    let nested = format!(r#"{{"clientIds":[{deep}]}}"#);
    let long = format!(r#"{{"clientIds":["{}"]}}"#, "x".repeat(100_000));
    for (path, body, status) in [
        ("/api/devices/status", "{", 400),
        ("/api/devices/status", &deep, 400),
        ("/api/devices/status", &nested, 400),
        ("/api/devices/status", &long, 200),
        ("/api/devices/status", r#"{"clientIds":["\ud800"]}"#, 400),
        ("/api/messages/x", &deep, 400),
        ("/api/messages/x", r#"{"type":"alert"}"#, 404),
        ("/api/commands/x", &deep, 400),
        ("/api/commands/%", "{}", 404),
        ("/api/commands/..%2F..%2Fetc", "{}", 500),
    ] {
        raw.send(request("POST", path, body));
        let reply = raw.reply().unwrap();
        assert_eq!(reply.status, status, "{path} {body:.60} {reply:?}");
        assert_eq!(reply.field("connection"), Some("keep-alive"));
        reply.json();
    }
    let mut bytes = request("POST", "/api/messages/x", "12").into_bytes();
    bytes.truncate(bytes.len() - 2);
    bytes.extend([0xff, 0xfe]);
    raw.send(bytes);
    assert_eq!(raw.reply().unwrap().status, 400);
}

#[test]
fn a_client_that_does_not_read_responses_blocks_nobody() {
    let fixture = fixture(|_| {});
    let mut call = CallProbe::start(&fixture);
    let mut raw = RawClient::open(fixture.api);
    raw.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let many = request("GET", "/metrics", "").repeat(200);
    let mut written = 0;
    // Endless requests whose answers are not read: at some point the gateway stops reading.
    while written < 64 << 20 {
        match std::io::Write::write(&mut raw.stream, many.as_bytes()) {
            Ok(n) => written += n,
            Err(_) => break,
        }
    }
    assert!(written < 64 << 20, "{written}");
    assert_in_real_time(|| {
        let worst = call.max_round_trip(20);
        (worst < Duration::from_millis(250)).then_some(()).ok_or_else(|| format!("{worst:?}"))
    });
    assert_eq!(fixture.request("GET", "/healthz", None).0, 200);
    // All answers so far are complete.
    for _ in 0..20 {
        let reply = raw.reply().unwrap();
        assert!(reply.status == 200 && reply.body.ends_with('\n'));
    }
    call.hang_up();
}

#[test]
fn expect_100_continue_is_answered() {
    let fixture = fixture(|_| {});
    let mut raw = RawClient::open(fixture.api);
    let body = r#"{"clientIds":[]}"#;
    let text = request("POST", "/api/devices/status", body).replace("Host:", "Expect: 100-continue\r\nHost:");
    raw.send(&text[..text.len() - body.len()]);
    let mut told = [0; 25];
    raw.stream.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    raw.send(body);
    assert_eq!(raw.reply().unwrap().json(), json!({}));
}

#[test]
fn closed_connections_leak_nothing() {
    let fixture = fixture(|_| {});
    let mut device = fixture.device("aa:bb:cc:dd:ee:01");
    let tool = r#"{"type":"mcp","payload":{"method":"tools/list"}}"#;
    for _ in 0..10 {
        let mut raw = RawClient::open(fixture.api);
        raw.send(request("POST", "/api/commands/aa:bb:cc:dd:ee:01", tool));
        let asked = device.wait_for("mcp", TIMEOUT).unwrap();
        drop(raw);
        let id = asked.split("\"id\":").nth(1).unwrap().split(',').next().unwrap();
        device
            .send_text(&format!(r#"{{"type":"mcp","payload":{{"jsonrpc":"2.0","id":{id},"result":7}}}}"#))
            .unwrap();
    }
    let end = Instant::now() + TIMEOUT;
    loop {
        let text = fixture.request_with_token("GET", "/metrics", None, Some(TOKEN)).1;
        if text.contains("gateway_api_connections 1\n") {
            break;
        }
        assert!(Instant::now() < end, "{text}");
    }
}

#[test]
fn a_request_without_one_valid_host_is_refused() {
    let fixture = fixture(|_| {});
    let auth = format!("Authorization: Bearer {TOKEN}\r\n");
    for (request, status) in [
        ("GET /healthz HTTP/1.1\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: a\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nhost: b\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a/b\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a b\r\n", 400),
        ("GET /healthz HTTP/1.0\r\nHost: a b\r\n", 400),
        ("GET /healthz HTTP/1.0\r\nHost: a\r\nHost: a\r\n", 400),
        // Checked before the token, which is missing.
        ("GET /api/sessions HTTP/1.1\r\n", 400),
        ("GET /healthz HTTP/1.0\r\n", 200),
        ("GET /healthz HTTP/1.1\r\nHost:\r\n", 200),
        ("GET /healthz HTTP/1.1\r\nHost: [::1]:8007\r\n", 200),
    ] {
        let mut raw = RawClient::open(fixture.api);
        raw.send(format!("{request}Connection: keep-alive\r\n\r\n"));
        let reply = raw.reply().unwrap();
        assert_eq!(reply.status, status, "{request}");
        let stays = if status == 200 { "keep-alive" } else { "close" };
        assert_eq!(reply.field("connection"), Some(stays), "{request}");
        assert_eq!(reply.json()["code"] == json!("bad_request"), status == 400, "{request}");
    }
    let reply = RawClient::round_trip(fixture.api, &format!("POST /api/commands/x HTTP/1.1\r\n{auth}\r\n"));
    assert_eq!((reply.status, &reply.json()["success"]), (400, &json!(false)));
}

#[test]
fn a_contradictory_length_or_a_bad_request_line_is_refused() {
    let fixture = fixture(|_| {});
    let fields = format!("Host: a\r\nAuthorization: Bearer {TOKEN}\r\n");
    for start in [
        "POST /api/reload HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
        "POST /api/reload HTTP/1.1\r\nContent-Length: 1, 2\r\n",
        "POST /api/reload HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        "POST /api/reload HTTP/1.0\r\nTransfer-Encoding: chunked\r\n",
        "POST /api/reload HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "POST /api/reload HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n",
        "POST /api/reload HTTP/1.1\r\nTransfer-Encoding:\r\n",
        "GET healthz HTTP/1.1\r\n",
        "GET * HTTP/1.1\r\n",
        "GET https://a/healthz HTTP/1.1\r\n",
        "GET  /healthz HTTP/1.1\r\n",
        "GET /healthz  HTTP/1.1\r\n",
        "GET /health z HTTP/1.1\r\n",
        "GET /healthz\r\n",
        "GET /healthz HTTP/1\r\n",
        "GET /healthz http/1.1\r\n",
        " GET /healthz HTTP/1.1\r\n",
        "G@T /healthz HTTP/1.1\r\n",
        "CONNECT a:80 HTTP/1.1\r\n",
    ] {
        let reply = RawClient::round_trip(fixture.api, &format!("{start}{fields}\r\n"));
        assert_eq!((reply.status, &reply.json()["code"]), (400, &json!("bad_request")), "{start}");
        assert_eq!(reply.field("connection"), Some("close"), "{start}");
    }
}

/// The head of a call with a chunked body.
fn chunked_head(path: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
}

#[test]
fn a_chunked_body_is_taken_in_any_pieces() {
    let fixture = fixture(|_| {});
    let head = chunked_head("/api/devices/status");
    let chunks = "10;sig=\"x\"\r\n{\"clientIds\":[\"a\r\n3\r\n\"]}\r\n0\r\nChecksum: 1\r\n\r\n";
    let text = head.clone() + chunks + &request("GET", "/healthz", "");
    let expected = json!({ "a": { "isAlive": false, "inCall": false, "exists": false } });
    for cut in (1..text.len()).step_by(3) {
        let mut raw = RawClient::open(fixture.api);
        raw.send(&text.as_bytes()[..cut]);
        raw.send(&text.as_bytes()[cut..]);
        let reply = raw.reply().unwrap();
        assert_eq!((reply.status, reply.json()), (200, expected.clone()), "{cut}");
        assert_eq!(reply.field("connection"), Some("keep-alive"));
        assert_eq!(raw.reply().unwrap().json(), json!({ "status": "ok" }), "{cut}: what follows is served");
    }

    // The longest allowed body, in chunks of one byte.
    let body = r#"{"clientIds":[]}"#.to_owned() + &" ".repeat(131_056);
    let chunks: String = body.chars().map(|c| format!("1\r\n{c}\r\n")).collect();
    let mut raw = RawClient::open(fixture.api);
    raw.send(head + &chunks + "0\r\n\r\n");
    assert_eq!(raw.reply().unwrap().json(), json!({}));

    // A client that waits for 100 Continue.
    let mut raw = RawClient::open(fixture.api);
    raw.send(chunked_head("/api/devices/status").replace("Host:", "Expect: 100-continue\r\nHost:"));
    let mut told = [0; 25];
    raw.stream.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    raw.send("10\r\n{\"clientIds\":[]}\r\n0\r\n\r\n");
    assert_eq!(raw.reply().unwrap().json(), json!({}));
}

#[test]
fn a_broken_or_endless_chunked_body_is_refused_and_ends_the_connection() {
    let fixture = fixture(|_| {});
    let mut call = CallProbe::start(&fixture);
    let long = "x".repeat(1_000_000);
    for (chunks, status) in [
        ("\r\n\r\n".to_owned(), 400),
        ("g\r\n".to_owned(), 400),
        ("-1\r\n".to_owned(), 400),
        ("2\r\n{}0\r\n\r\n".to_owned(), 400),
        ("2\n{}\n0\n\n".to_owned(), 400),
        ("2;x\n\r\n{}\r\n0\r\n\r\n".to_owned(), 400),
        ("11111111111111111\r\n".to_owned(), 400),
        (format!("1;{long}"), 400),
        (format!("0\r\nx: {long}"), 400),
        ("20001\r\n".to_owned(), 413),
        ("ffffffffffffffff\r\n".to_owned(), 413),
        (format!("20000\r\n{}\r\n1\r\n", &long[..0x20000]), 413),
        ("1000\r\n".to_owned() + &format!("{}\r\n1000\r\n", &long[..0x1000]).repeat(100), 413),
    ] {
        for (path, is_command) in [("/api/messages/x", false), ("/api/commands/x", true)] {
            let mut raw = RawClient::open(fixture.api);
            // The answer may come before everything is sent.
            let request = chunked_head(path) + &chunks;
            let _ = std::io::Write::write_all(&mut raw.stream, request.as_bytes());
            let reply = raw.reply().unwrap_or_else(|| panic!("no answer to {chunks:.40}"));
            assert_eq!(reply.status, status, "{chunks:.40}");
            assert_eq!(reply.json()["success"] == json!(false), is_command, "{chunks:.40}");
            assert_eq!(reply.field("connection"), Some("close"), "{chunks:.40}");
            assert!(raw.reply().is_none(), "{chunks:.40}");
        }
        call.round_trip();
    }
    call.hang_up();
}
