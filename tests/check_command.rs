//! `check` with common mistakes in configurations and chat servers: it names the cause.

#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use support::chat_server::{ChatServer, Message, Peer, audio_frame};
use support::process::Folder;
use support::refusing_port;
use support::tls::{CertificateAuthority, CertifiedKey, new_key};

const MAC: &str = "02:63:68:65:63:6b";

/// A configuration with these servers, and no other problem.
fn config(servers: Value) -> Value {
    json!({
        "mqtt": {"signature_key": "GoodKeyOfOurs", "host": "127.0.0.1", "port": 0},
        "udp": {"host": "127.0.0.1", "port": 0},
        "api": {"port": 0},
        "websocket": {"production_servers": servers},
    })
}

struct Outcome {
    code: Option<i32>,
    text: String,
    report: Value,
}

/// Runs `check` with the configuration, with text and with JSON output.
fn check(folder: &Folder, line: &str, variables: &[(&str, &str)]) -> Outcome {
    let json = folder.run(&format!("check --timeout 2 {line} --json"), variables);
    let stdout = String::from_utf8(json.stdout).unwrap();
    let stderr = String::from_utf8(json.stderr).unwrap();
    assert_eq!(stdout.lines().count(), 1, "{stdout}{stderr}");
    Outcome { code: json.status.code(), text: stderr, report: serde_json::from_str(&stdout).unwrap() }
}

fn check_config(config: &Value) -> Outcome {
    check(&Folder::new().with_file("gateway.json", config.to_string()), "-c gateway.json", &[])
}

/// The step's state at the first server.
fn step<'a>(outcome: &'a Outcome, name: &str) -> &'a str {
    let steps = outcome.report["servers"][0]["steps"].as_array().unwrap();
    steps.iter().find(|step| step["step"] == name).map_or("", |step| step["state"].as_str().unwrap())
}

fn assert_reported(outcome: &Outcome, code: i32, parts: &[&str]) {
    assert_eq!(outcome.code, Some(code), "{}", outcome.text);
    // The text is wrapped; a cause must still be found as a whole.
    let words = outcome.text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in parts {
        assert!(words.contains(part), "{part:?} is not in {}", outcome.text);
    }
    assert_eq!(outcome.report["ok"], code == 0);
}

/// Answers with speech.
fn serve_call(mut peer: Peer, frame: impl Fn(u32) -> Vec<u8>) {
    peer.upgrade();
    peer.exchange_hello("the-session");
    loop {
        match peer.message_within(Duration::from_secs(10)) {
            Some(Message::Text(text)) if text.contains("detect") => {
                (0..5).for_each(|i| peer.send_binary(&frame(i)))
            }
            Some(Message::Close(_) | Message::End) | None => return,
            Some(_) => {}
        }
    }
}

#[test]
fn a_good_server_passes_every_step_with_the_requests_of_a_call() {
    let server = ChatServer::start();
    let url = server.url();
    let (seen, requests) = std::sync::mpsc::channel();
    server.serve(move |mut peer| {
        let request = peer.upgrade();
        let hello = peer.exchange_hello("the-session");
        let start: Value = peer.json();
        let frame = peer.binary();
        seen.send((request, hello, start, frame.clone())).unwrap();
        peer.send_binary(&frame);
        peer.expect_close(1000);
    });
    let mut config = config(json!([url]));
    config["websocket"]["server_secret"] = json!("hunter2");
    let folder = Folder::new().with_file("gateway.json", config.to_string());
    let outcome = check(&folder, "-c gateway.json --uuid the-uuid", &[]);
    assert_reported(&outcome, 0, &["header"]);
    assert!(outcome.text.contains("UPGRADE") && !outcome.text.contains("FAIL"), "{}", outcome.text);
    for name in ["name", "tcp", "upgrade", "hello", "framing"] {
        assert_eq!(step(&outcome, name), "ok", "{name}: {}", outcome.text);
    }
    assert_eq!(outcome.report["servers"][0]["troubles"], json!([]));
    let (request, hello, start, frame) = requests.recv().unwrap();
    assert_eq!(request.header("device-id"), Some(MAC));
    assert_eq!(request.header("client-id"), Some("the-uuid"));
    assert_eq!(request.header("protocol-version"), Some("2"));
    assert!(request.header("authorization").unwrap().starts_with("Bearer "));
    assert_eq!((&hello["transport"], &hello["version"]), (&json!("websocket"), &json!(2)));
    assert_eq!((&start["type"], &start["session_id"]), (&json!("listen"), &json!("the-session")));
    assert_eq!(frame, audio_frame(0, &[0xf8, 0xff, 0xfe]));
    assert!(!outcome.text.contains("hunter2") && !outcome.report.to_string().contains("hunter2"));
}

#[test]
fn a_raw_server_is_told_protocol_version_1() {
    for (framing, version) in [("raw", 1), ("header", 2), ("auto", 2)] {
        let server = ChatServer::start();
        let url = server.url();
        let (seen, requests) = std::sync::mpsc::channel();
        server.serve(move |mut peer| {
            let request = peer.upgrade();
            let hello = peer.exchange_hello("the-session");
            seen.send((request, hello)).unwrap();
            let _ = peer.message_within(Duration::from_secs(10));
        });
        check_config(&config(json!([{"url": url, "framing": framing}])));
        let (request, hello) = requests.recv().unwrap();
        assert_eq!(request.header("protocol-version"), Some(&*version.to_string()), "{framing}");
        assert_eq!(hello["version"], version, "{framing}");
    }
}

#[test]
fn the_built_in_echo_server_passes() {
    let echo = mqtt_websocket_proxy::tools::echo::EchoServer::start().unwrap();
    let url = format!("{}?from=mqtt_gateway", echo.url());
    let outcome = check_config(&config(json!([url, {"url": url, "framing": "header"}])));
    assert_reported(&outcome, 0, &["header"]);
    let framing = |i: usize| outcome.report["servers"][i]["steps"][4]["detail"].clone();
    assert_eq!([framing(0), framing(1)], [json!("header"), json!("header")]);
}

#[test]
fn a_dead_server_is_named() {
    let closed = refusing_port();
    let url = format!("ws://{closed}/x?from=mqtt_gateway");
    let outcome = check_config(&config(json!([url])));
    let nothing = format!("nothing listens on {} port", closed.ip());
    assert_reported(&outcome, 1, &[&nothing, "not running", "in a container", "refused"]);
    assert_eq!((step(&outcome, "tcp"), step(&outcome, "upgrade")), ("fail", ""));
}

#[test]
fn a_name_that_does_not_resolve_is_named() {
    let outcome = check_config(&config(json!(["ws://no-such-host.invalid/?from=mqtt_gateway"])));
    assert_reported(&outcome, 1, &["no-such-host.invalid does not resolve"]);
    assert_eq!(step(&outcome, "name"), "fail");
}

#[test]
fn a_wrong_secret_is_named_however_the_server_refuses_it() {
    type Refuse = fn(Peer);
    let refusals: [(&str, Refuse); 6] = [
        ("HTTP 401", |peer| drop(peer.refuse("401 Unauthorized"))),
        ("HTTP 403", |peer| drop(peer.refuse("403 Forbidden"))),
        // Like xiaozhi-esp32-server: a plain text, then a close.
        ("认证失败", |mut peer| {
            peer.upgrade();
            peer.send_text("认证失败");
            peer.send_close(None);
            peer.expect_close(1000);
        }),
        ("Authentication failed", |mut peer| {
            peer.upgrade();
            peer.json();
            peer.send_text("Authentication failed");
            peer.send_close(Some(1000));
        }),
        ("unauthorized", |mut peer| {
            peer.upgrade();
            peer.json();
            peer.send_text(r#"{"type":"error","message":"unauthorized"}"#);
            peer.shutdown_write();
        }),
        ("1008", |mut peer| {
            peer.upgrade();
            peer.json();
            peer.send_close(Some(1008));
        }),
    ];
    for (words, refuse) in refusals {
        for (secret, cause) in [
            ("", "it asks for a token, and SERVER_SECRET is not set"),
            ("hunter2", "it refuses the token: SERVER_SECRET is the wrong secret"),
        ] {
            let server = ChatServer::start();
            let url = server.url();
            server.serve(refuse);
            let folder = Folder::new().with_file("gateway.json", config(json!([url])).to_string());
            let outcome = check(&folder, "-c gateway.json", &[("SERVER_SECRET", secret)]);
            assert_reported(&outcome, 1, &[words, cause, "server.auth_key", "server.secret"]);
            assert!(!outcome.text.contains("hunter2"), "{}", outcome.text);
        }
    }
}

#[test]
fn a_bad_certificate_is_named_with_what_is_bad_about_it() {
    let authority = CertificateAuthority::new();
    for (host, trusted, cause) in [
        ("127.0.0.1", true, None),
        ("127.0.0.1", false, Some("its certificate is not from an authority known here")),
        ("chat.example", true, Some("its certificate is for another name than 127.0.0.1")),
    ] {
        let server = ChatServer::start_tls(authority.server(host));
        let url = server.url();
        server.serve(|peer| {
            // A client that does not trust the certificate has disconnected already.
            if peer.is_tls() {
                serve_call(peer, |i| audio_frame(i, b"opus"));
            }
        });
        let mut config = config(json!([url]));
        if trusted {
            config["websocket"]["ca_file"] = json!("ca.pem");
        }
        let folder =
            Folder::new().with_file("gateway.json", config.to_string()).with_file("ca.pem", authority.pem());
        let outcome = check(&folder, "-c gateway.json", &[]);
        match cause {
            None => assert_reported(&outcome, 0, &["header"]),
            Some(cause) => {
                assert_reported(&outcome, 1, &[cause]);
                assert_eq!((step(&outcome, "tcp"), step(&outcome, "tls")), ("ok", "fail"));
            }
        }
    }
}

#[test]
fn a_tls_and_plain_mismatch_is_named() {
    let plain = ChatServer::start();
    let url = plain.url().replace("ws://", "wss://");
    plain.serve(|mut peer| {
        peer.send_raw(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        peer.expect_end();
    });
    assert_reported(
        &check_config(&config(json!([url]))),
        1,
        &["does not speak TLS", "write ws:// instead of wss://"],
    );

    let tls = ChatServer::start_tls(CertificateAuthority::new().server("127.0.0.1"));
    let url = tls.url().replace("wss://", "ws://");
    tls.serve(drop);
    assert_reported(
        &check_config(&config(json!([url]))),
        1,
        &["does not speak WebSocket", "write wss:// instead"],
    );
}

#[test]
fn a_missing_suffix_is_named() {
    let raw = |i: u32| vec![0xf8, 0xff, i as u8];
    let suffix = "its URL lacks ?from=mqtt_gateway";
    let exactly = "let the URL end with exactly ?from=mqtt_gateway (ws://127.0.0.1:";
    let noise = "takes the gateway's 16-byte header for sound";
    // Path, framing of the server (none: no audio), exit code, expected text.
    let table: [(&str, Option<bool>, i32, &[&str]); 8] = [
        ("/xiaozhi/v1/", Some(true), 1, &[suffix, exactly, noise]),
        ("/", Some(true), 1, &[suffix, exactly, "\"framing\": \"raw\""]),
        ("/xiaozhi/v1/?token=hunter2", Some(true), 1, &[suffix, "in the place of its query"]),
        ("/xiaozhi/v1/?from=mqtt_gateway", Some(true), 1, &["although its URL ends with", "before 0.7.7"]),
        ("/xiaozhi/v1/?from=mqtt_gateway", Some(false), 0, &[]),
        ("/other", Some(false), 0, &[]),
        ("/xiaozhi/v1/", None, 1, &[suffix, exactly]),
        ("/other", None, 0, &[suffix]),
    ];
    for (path, speaks_raw, code, parts) in table {
        let server = ChatServer::start();
        let url = format!("ws://{}{path}", server.addr);
        server.serve(move |peer| match speaks_raw {
            Some(true) => serve_call(peer, raw),
            Some(false) => serve_call(peer, |i| audio_frame(i, b"opus")),
            None => {
                let mut peer = peer;
                peer.upgrade();
                peer.exchange_hello("the-session");
                while !matches!(peer.message(), Message::Close(_) | Message::End) {}
            }
        });
        let outcome = check_config(&config(json!([url])));
        assert_reported(&outcome, code, parts);
        assert_eq!(outcome.text.contains("lacks ?from="), parts.contains(&suffix), "{}", outcome.text);
        assert!(!outcome.text.contains("hunter2"));
    }
}

#[test]
fn a_framing_that_contradicts_the_configuration_is_named() {
    for (framing, is_raw, code, part) in [
        ("raw", true, 0, "raw"),
        ("raw", false, 1, "\"framing\" is set to \"raw\""),
        ("header", true, 1, "it sends bare Opus"),
    ] {
        let server = ChatServer::start();
        let url = format!("ws://{}/", server.addr);
        server.serve(move |peer| {
            serve_call(peer, |i| if is_raw { vec![0xf8, 1, 2] } else { audio_frame(i, b"opus") })
        });
        let outcome = check_config(&config(json!([{"url": url, "framing": framing}])));
        assert_reported(&outcome, code, &[part]);
    }
}

#[test]
fn a_server_that_is_something_else_is_named() {
    type Behave = fn(Peer);
    let table: [(Behave, &[&str]); 15] = [
        (|peer| drop(peer.refuse("404 Not Found")), &["there is no WebSocket at the path", "/xiaozhi/v1/"]),
        (
            |peer| drop(peer.refuse("200 OK")),
            &["a proxy in between does not pass the upgrade on", "proxy_http_version 1.1", "it said \"no\""],
        ),
        (|peer| drop(peer.refuse("502 Bad Gateway")), &["the chat server behind it does not"]),
        (|peer| drop(peer.refuse("301 Moved")), &["it redirects"]),
        (|peer| drop(peer.refuse("426 Upgrade Required")), &["does not pass the upgrade on"]),
        (|peer| drop(peer.refuse("429 Too Many Requests")), &["limits the number of requests"]),
        (|peer| drop(peer.refuse("500 Internal Server Error")), &["the chat server itself fails"]),
        (
            |mut peer| {
                peer.request();
                peer.send_raw(
                    b"HTTP/1.1 301 Moved\r\nLocation: https://chat.example/ws\r\nContent-Length: 0\r\n\r\n",
                );
            },
            &["redirected to wss://chat.example/ws?from=mqtt_gateway: use that address"],
        ),
        (
            |mut peer| {
                peer.request();
                // The body comes in a packet of its own.
                peer.send_raw(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 48\r\n\r\n");
                peer.send_raw(b"Client sent an HTTP request to an HTTPS server.\n");
            },
            &["the port wants TLS", "write wss:// instead of ws://", "it said \"Client sent"],
        ),
        (
            |mut peer| {
                peer.request();
                peer.send_raw(&[0, 0, 18, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100]);
            },
            &["it speaks HTTP/2 only"],
        ),
        (
            |mut peer| {
                peer.request();
                peer.send_raw(b"SSH-2.0-OpenSSH_9.2\r\n");
            },
            &["does not speak WebSocket"],
        ),
        (|mut peer| drop(peer.request()), &["does not speak WebSocket", "write wss://"]),
        // Accepts the connection and does nothing else.
        (
            |mut peer| {
                peer.request();
                peer.expect_end();
            },
            &["says nothing", "no answer within 2 s"],
        ),
        (
            |mut peer| {
                peer.upgrade();
                while !matches!(peer.message(), Message::Close(_) | Message::End) {}
            },
            &["does not answer the hello: none within 2 s"],
        ),
        (
            |mut peer| {
                peer.upgrade();
                peer.json();
                peer.shutdown_write();
            },
            &["it ends the connection before its hello", "--mac"],
        ),
    ];
    for (behave, parts) in table {
        let server = ChatServer::start();
        let url = server.url();
        server.serve(behave);
        assert_reported(&check_config(&config(json!([url]))), 1, parts);
    }
}

#[test]
fn a_server_that_requires_device_binding_is_no_failure() {
    let server = ChatServer::start();
    let url = server.url();
    server.serve(|mut peer| {
        peer.upgrade();
        peer.json();
        peer.send_text(r#"{"type":"stt","text":"请登录控制面板添加设备"}"#);
        (0..5).for_each(|i| peer.send_binary(&audio_frame(i, b"opus")));
        while !matches!(peer.message(), Message::Close(_) | Message::End) {}
    });
    let outcome = check_config(&config(json!([url])));
    assert_reported(&outcome, 0, &["it does not know this device", "--mac", "WARN"]);
    assert_eq!((step(&outcome, "hello"), step(&outcome, "framing")), ("warn", "ok"));
}

#[test]
fn a_server_that_greets_and_does_not_speak_is_a_warning_in_words() {
    let server = ChatServer::start();
    let url = server.url();
    server.serve(|mut peer| {
        assert!(peer.upgrade().header("user-agent").unwrap().starts_with("mqtt-websocket-proxy/"));
        assert_eq!(peer.exchange_hello("the-session")["features"], json!({"mcp": true}));
        peer.send_text(r#"{"type":"mcp","payload":{"jsonrpc":"2.0","id":7,"method":"tools/list"}}"#);
        loop {
            match peer.message() {
                Message::Text(text) if text.contains("mcp") => {
                    let answer: Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(
                        (&answer["payload"]["id"], &answer["payload"]["result"]["tools"]),
                        (&json!(7), &json!([]))
                    );
                }
                Message::Close(_) | Message::End => return,
                _ => {}
            }
        }
    });
    let outcome = check_config(&config(json!([url])));
    assert_reported(
        &outcome,
        0,
        &["it greets, and does not speak within 2 s", "its model and its speech synthesis"],
    );
    assert_eq!((step(&outcome, "hello"), step(&outcome, "framing")), ("ok", "warn"));
    assert!(outcome.text.contains("WARN"), "{}", outcome.text);
}

#[test]
fn the_words_of_a_server_are_quoted_and_its_own_token_is_named() {
    for (token, cause) in [(None, "SERVER_SECRET is not set"), (Some("fixed"), "\"token\" of this server")] {
        let server = ChatServer::start();
        let url = format!("{}&key=hunter2", server.url());
        server.serve(|mut peer| {
            let request = peer.upgrade();
            peer.json();
            let token = request.header("authorization").unwrap().to_owned();
            peer.frame(8, &[&1008_u16.to_be_bytes()[..], format!("令牌 \"{token}\"").as_bytes()].concat());
        });
        let mut own = json!({"url": url});
        token.into_iter().for_each(|token| own["token"] = json!(token));
        let outcome = check_config(&config(json!([own])));
        let said =
            format!("it closes with code 1008: \"令牌 \\\"Bearer {}\\\"\"", token.unwrap_or("test-token"));
        assert_reported(&outcome, 1, &[cause, &said, "&key=***"]);
        assert!(!outcome.text.contains("hunter2"));
    }
}

#[test]
fn a_server_that_never_stops_sending_is_abandoned_in_time() {
    let server = ChatServer::start();
    let url = server.url();
    server.serve(|mut peer| {
        peer.upgrade();
        // Ends when the other side closes.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            loop {
                peer.send_text(r#"{"type":"llm","text":"..."}"#);
            }
        }));
    });
    assert_reported(&check_config(&config(json!([url]))), 1, &["does not answer the hello"]);
}

#[test]
fn a_public_ip_that_no_device_can_reach_is_named() {
    let echo = mqtt_websocket_proxy::tools::echo::EchoServer::start().unwrap();
    for (public_ip, part) in [
        ("127.0.0.1", "127.0.0.1 is a loopback address: no device outside this machine can send audio to it"),
        ("localhost", "localhost (127.0.0.1) is a loopback address"),
        ("0.0.0.0", "0.0.0.0 is the unspecified address"),
        ("no-such-host.invalid", "no-such-host.invalid does not resolve here"),
    ] {
        let folder = Folder::new().with_file("gateway.json", config(json!([echo.url()])).to_string());
        let outcome = check(&folder, "-c gateway.json", &[("PUBLIC_IP", public_ip)]);
        assert_reported(&outcome, 1, &[part, "set PUBLIC_IP or udp.public_ip"]);
    }
}

/// The machine's public authorities are those in this file.
#[test]
fn a_certificate_for_devices_is_judged_as_an_esp32_does() {
    let (public, old) = (CertificateAuthority::new(), CertificateAuthority::named("Old authority"));
    let intermediate = public.intermediate();
    let good = intermediate.issue("mqtt.example");
    let chain = |last: &[u8]| [&good.certificate_pem()[..], &intermediate.pem(), last].concat();
    let direct = public.issue("mqtt.example");
    let private = CertificateAuthority::named("Private authority");
    let issued_privately = private.issue("mqtt.example");
    let itself = CertificateAuthority::self_signed("mqtt.example");
    let soon = public.issue_for("mqtt.example", new_key(), -9, 13);
    let (wildcard, other) = (public.issue("*.example"), public.issue("other.example"));
    let alone = CertifiedKey::certificate_pem;
    for (pair, pem, state, part) in [
        (&good, chain(&[]), "ok", "certificate for mqtt.example, valid until"),
        (&good, chain(&public.pem()), "ok", "valid until"),
        (&direct, alone(&direct), "ok", "valid until"),
        (&wildcard, alone(&wildcard), "ok", "certificate for *.example, valid until"),
        (&good, alone(&good), "warn", "is not followed by that of its issuer, Test intermediate"),
        (
            &good,
            chain(&old.cross_signed(&public)),
            "warn",
            "ends with Test authority as signed by Old authority",
        ),
        (&itself, alone(&itself), "warn", "is self-signed"),
        (
            &issued_privately,
            [alone(&issued_privately), private.pem()].concat(),
            "warn",
            "comes from Private authority, which is none of the public authorities",
        ),
        (&soon, alone(&soon), "warn", " days: renew it"),
        (&other, alone(&other), "warn", "is not for mqtt.example (udp.public_ip)"),
    ] {
        let mut config = config(json!([]));
        config["udp"] = json!({ "public_ip": "mqtt.example" });
        config["mqtt"]["tls"] = json!({ "cert_file": "cert.pem", "key_file": "key.pem" });
        let folder = Folder::new()
            .with_file("gateway.json", config.to_string())
            .with_file("roots.pem", public.pem())
            .with_file("cert.pem", pem)
            .with_file("key.pem", pair.key_pem());
        let outcome = check(&folder, "--config gateway.json", &[("SSL_CERT_FILE", "roots.pem")]);
        let settings = outcome.report["settings"].as_array().unwrap();
        let found: Vec<_> = settings.iter().filter(|finding| finding["name"] == "TLS for devices").collect();
        assert_eq!(found.len(), 1, "{part}: {found:?}");
        assert_eq!(found[0]["state"], state, "{part}: {found:?}");
        assert!(found[0]["detail"].as_str().unwrap().contains(part), "{part}: {found:?}");
    }
}

#[test]
fn a_public_ip_of_a_sample_is_never_plausible() {
    let echo = mqtt_websocket_proxy::tools::echo::EchoServer::start().unwrap();
    for (public_ip, part) in [
        ("mqtt.xiaozhi.me", "is the public XiaoZhi service"),
        ("host.docker.internal", "devices cannot resolve it"),
        ("gateway.local", "devices cannot resolve it"),
        ("your-server.com", "is the placeholder of a sample"),
        ("gateway", "is a name without a dot"),
        ("198.51.100.7", "an address for examples"),
    ] {
        let folder = Folder::new().with_file("gateway.json", config(json!([echo.url()])).to_string());
        let outcome = check(&folder, "-c gateway.json", &[("PUBLIC_IP", public_ip)]);
        let words = outcome.text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(part) && !words.contains("plausible"), "{}", outcome.text);
        let settings = outcome.report["settings"].as_array().unwrap();
        let states: Vec<_> =
            settings.iter().filter(|row| row["name"] == "public_ip").map(|row| &row["state"]).collect();
        assert!(!states.is_empty() && !states.contains(&&json!("ok")), "{states:?}");
    }
}

#[test]
fn doubtful_secrets_and_misspelt_variables_are_named() {
    let echo = mqtt_websocket_proxy::tools::echo::EchoServer::start().unwrap();
    let folder = Folder::new().with_file("gateway.json", config(json!([echo.url()])).to_string());
    let variables = [("MQTT_SIGNATURE_KEY", "'hunter2-Key'"), ("MQTT_SIGNATURE_KY", "hunter2")];
    let outcome = check(&folder, "-c gateway.json", &variables);
    let parts = [
        "environment: MQTT_SIGNATURE_KEY begins or ends with a quote",
        "MQTT_SIGNATURE_KY is not a variable of this gateway; the nearest is MQTT_SIGNATURE_KEY",
    ];
    assert_reported(&outcome, 0, &parts);
    assert!(!outcome.text.contains("hunter2"), "{}", outcome.text);
}

#[test]
fn a_port_that_is_taken_is_named_with_who_has_it() {
    let echo = mqtt_websocket_proxy::tools::echo::EchoServer::start().unwrap();
    let tcp = ["mqtt", "api"].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let [mqtt_port, api_port] = [0, 1].map(|i| tcp[i].local_addr().unwrap().port());
    let udp_port = udp.local_addr().unwrap().port();
    let mut config = config(json!([echo.url()]));
    config["mqtt"]["port"] = json!(mqtt_port);
    config["udp"]["port"] = json!(udp_port);
    config["api"] = json!({"host": "127.0.0.1", "port": api_port});
    let folder = Folder::new().with_file("gateway.json", config.to_string());
    let ports = [
        format!("TCP port {mqtt_port} (MQTT)"),
        format!("TCP port {api_port} (management API)"),
        format!("UDP port {udp_port} (audio)"),
    ];
    let parts = |end: &str| ports.clone().map(|port| format!("{port} {end}"));
    fn as_str(parts: &[String; 3]) -> [&str; 3] {
        parts.each_ref().map(String::as_str)
    }

    // The one that holds the management port ends what connects to it, as servers of other protocols do.
    let api = tcp[1].try_clone().unwrap();
    std::thread::spawn(move || api.incoming().for_each(drop));
    let outcome = check(&folder, "-c gateway.json", &[]);
    let by_another = parts("is in use by another program");
    assert_reported(&outcome, 0, &[&as_str(&by_another)[..], &["set mqtt.port to another port"]].concat());
    config["api"] = json!({"enabled": false});
    let folder = folder.with_file("no-api.json", config.to_string());
    assert_reported(
        &check(&folder, "-c no-api.json", &[]),
        0,
        &["another program, or this gateway runs already"],
    );
}

#[test]
fn the_ports_of_the_running_gateway_are_its_own() {
    let echo = mqtt_websocket_proxy::tools::echo::EchoServer::start().unwrap();
    let mut config = config(json!([echo.url()]));
    config["api"] = json!({"host": "127.0.0.1", "port": 0});
    let folder = Folder::new().with_file("gateway.json", config.to_string());
    assert_eq!(check(&folder, "-c gateway.json", &[]).text.matches("in use").count(), 0);
    let process = folder.start("-c gateway.json", &[]);
    let addresses = [process.mqtt(), process.udp(), process.api()].map(|addr| addr.port().to_string());
    let variables = [("MQTT_PORT", &*addresses[0]), ("UDP_PORT", &addresses[1]), ("API_PORT", &addresses[2])];
    let outcome = check(&folder, "-c gateway.json", &variables);
    assert_eq!(
        outcome.text.matches("is in use by this gateway, which runs already").count(),
        3,
        "{}",
        outcome.text
    );
}

#[test]
fn the_ota_port_is_asked_as_a_device_asks_it() {
    let echo = mqtt_websocket_proxy::tools::echo::EchoServer::start().unwrap();
    let mut config = config(json!([echo.url()]));
    // A console that would be asked about a real device.
    config["ota"] =
        json!({"enabled": true, "port": 0, "allow": ["127.0.0.0/8"], "upstream": "http://127.0.0.1:9/"});
    let folder = Folder::new().with_file("gateway.json", config.to_string());
    assert_reported(
        &check(&folder, "-c gateway.json", &[]),
        0,
        &["not asked, since this gateway does not run"],
    );
    let process = folder.start("-c gateway.json", &[]);
    let port = process.ota().port().to_string();
    let told = format!("a device is told to connect to 127.0.0.1 port {}", process.mqtt().port());
    let outcome = check(&folder, "-c gateway.json", &[("MQTT_PROXY_OTA_PORT", &port)]);
    assert_reported(&outcome, 0, &[&told]);
    drop(process);
    config["ota"]["allow"] = json!(["192.0.2.0/24"]);
    let folder = folder.with_file("gateway.json", config.to_string());
    let process = folder.start("-c gateway.json", &[]);
    let port = process.ota().port().to_string();
    assert_reported(
        &check(&folder, "-c gateway.json", &[("MQTT_PROXY_OTA_PORT", &port)]),
        0,
        &["HTTP 403", "ota.allow"],
    );
    // Another program on that port.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port().to_string();
    std::thread::spawn(move || other.incoming().for_each(drop));
    assert_reported(&check(&folder, "-c gateway.json", &[("MQTT_PROXY_OTA_PORT", &port)]), 1, &["OTA"]);
}

#[test]
fn settings_that_are_too_small_get_advice() {
    let echo = mqtt_websocket_proxy::tools::echo::EchoServer::start().unwrap();
    let mut config_with_small_values = config(json!([echo.url()]));
    config_with_small_values["mqtt"]["max_payload_size"] = json!(8192);
    let outcome = check_config(&config_with_small_values);
    assert_reported(&outcome, 0, &["8192 bytes is too small", "set mqtt.max_payload_size to 65536"]);
    config_with_small_values["mqtt"]["signature_key"] = json!("test");
    assert_reported(
        &check_config(&config_with_small_values),
        0,
        &["too weak for the management API: it is shorter than 8 characters"],
    );
}

#[test]
fn an_unusable_configuration_is_reported_in_full_and_nothing_is_dialled() {
    let server = ChatServer::start();
    let text = json!({"mqtt": {"port": "x", "prt": 1}, "websocket": {"production_servers": [server.url(), "http://a"]}});
    let folder = Folder::new().with_file("gateway.json", text.to_string());
    let outcome = check(&folder, "-c gateway.json", &[("UDP_PORT", "-1")]);
    let parts = ["mqtt.port: found \"x\"", "mqtt.prt", "did you mean ws://", "UDP_PORT"];
    assert_reported(&outcome, 2, &parts);
    assert_eq!(outcome.report["problems"].as_array().unwrap().len(), parts.len());
    assert!(server.is_idle());
    assert_reported(&check(&folder, "-c absent.json", &[]), 2, &["absent.json: cannot be read"]);
    for line in ["check --frob", "check --timeout 0", "check --mac x", "check -c"] {
        let output = folder.run(line, &[]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{line}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("check --help"), "{line}");
    }
}

#[test]
fn the_human_readable_table_goes_to_stdout() {
    let echo = mqtt_websocket_proxy::tools::echo::EchoServer::start().unwrap();
    let dead = format!("ws://{}/", refusing_port());
    let servers = json!([format!("{}?from=mqtt_gateway", echo.url()), dead]);
    let folder = Folder::new().with_file("gateway.json", config(servers).to_string());
    let output = folder.run("check -c gateway.json", &[]);
    assert_eq!((output.status.code(), output.stderr.len()), (Some(1), 0));
    let text = String::from_utf8(output.stdout).unwrap();
    let row =
        |start: &str| text.lines().find(|line| line.trim_start().starts_with(start)).unwrap().to_owned();
    let (head, good, bad) = (row("CHAT SERVER"), row(echo.url().as_str()), row(&dead));
    let column = |name: &str| head.find(name).unwrap();
    assert!(good[column("FRAMING")..].starts_with("header"), "{text}");
    assert!(bad[column("TCP")..].starts_with("FAIL") && bad.trim_end().ends_with('-'), "{text}");
    assert!(text.lines().all(|line| line.trim_end() == line), "{text}");
    let mut help = folder.command("check --help", &[]);
    let mut shown = String::new();
    let mut child = help.stdout(std::process::Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    assert!(child.wait().unwrap().success());
    for option in ["--config", "--migrate", "--mac", "--uuid", "--timeout", "--json", "--help", "Exit code"] {
        assert!(shown.contains(option), "{option}");
    }
}

const NODE: &str = r#"{"production":{"chat_servers":["ws://127.0.0.1:9/xiaozhi/v1/?from=mqtt_gateway"]},
    "development":{"chat_servers":["http://127.0.0.1:10"],"mac_addresss":["AA:BB:CC:DD:EE:FF"]},"debug":true,
    "max_mqtt_payload_size":8192,"mcp_client":{"max_tools_count":64},"_comment":"x"}"#;

#[test]
fn a_node_configuration_is_checked_and_migrated() {
    let env = "PUBLIC_IP=192.0.2.9\nMQTT_PORT=2883\nMQTT_SIGNATURE_KEY='Key$with#all'\nSERVER_SECRET=s\n";
    let folder = Folder::new().with_file("config/mqtt.json", NODE).with_file(".env", env);
    let outcome = check(&folder, "--config config/mqtt.json", &[]);
    assert_reported(&outcome, 1, &["Node.js", ".env gives MQTT_PORT", "_comment"]);
    assert_eq!(outcome.report["config"]["shape"], "node");

    let output = folder.run("check --migrate", &[("API_PORT", "9007")]);
    assert_eq!(output.status.code(), Some(0));
    let migrated: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = json!({
        "mqtt": {"port": 2883, "signature_key": "Key$with#all"},
        "udp": {"port": 2883, "public_ip": "192.0.2.9"},
        "websocket": {
            "production_servers": ["ws://127.0.0.1:9/xiaozhi/v1/?from=mqtt_gateway"],
            "development_servers": ["ws://127.0.0.1:10"],
            "development_mac_addresses": ["aa:bb:cc:dd:ee:ff"],
            "server_secret": "s",
        },
        "mcp": {"max_tools_count": 64},
        "api": {"port": 9007},
        "debug": true,
    });
    assert_eq!(migrated, expected);
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(notes.contains("_comment") && notes.contains("your keys"), "{notes}");

    let folder = folder.with_file("gateway.json", output.stdout);
    assert_eq!(check(&folder, "-c gateway.json", &[]).report["config"]["shape"], "gateway");
    let again = folder.run("check --migrate -c gateway.json", &[]);
    assert_eq!((again.status.code(), again.stdout.len()), (Some(2), 0));
}
