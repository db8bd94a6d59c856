//! OTA requests that are passed on to another server: one that works, and those that are slow, dead, huge or hostile.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use mqtt_websocket_proxy::net::Running;
use serde_json::{Value, json};
use support::device::mac;
use support::http::{RawClient, http_call};
use support::log_capture::LogCapture;
use support::mqtt::Client;
use support::ota::{BODY, ask, connect, request, with_key};
use support::{TIMEOUT, config, gateway_with, refusing_port};

fn gateway(upstream: &str) -> Running {
    gateway_with(&["ws://127.0.0.1:9/"], |config| {
        with_key(config);
        config.ota.upstream = Some(upstream.parse().unwrap());
    })
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// One connection, and the request on it.
fn accept(listener: &TcpListener) -> (TcpStream, String) {
    let (mut peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(TIMEOUT)).unwrap();
    let request = read_request(&mut peer);
    (peer, request)
}

fn read_request(peer: &mut impl Read) -> String {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap_or("0");
            if body.len() == length.parse::<usize>().unwrap() {
                return text;
            }
        }
        let mut chunk = [0; 4096];
        let n = peer.read(&mut chunk).unwrap();
        assert!(n > 0, "cut off: {text}");
        request.extend_from_slice(&chunk[..n]);
    }
}

fn response(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A device that asks in a thread of its own.
fn ask_aside(ota: SocketAddr, number: u8) -> JoinHandle<Value> {
    thread::spawn(move || {
        let reply = ask(ota, number);
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    })
}

/// Whether this is what the gateway answers on its own: a device can log in with it.
fn assert_own(gateway: &Running, answer: &Value) {
    let names: Vec<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["mqtt", "server_time"], "{answer}");
    Client::log_in(gateway.addresses().mqtt, &connect(answer));
}

#[test]
fn the_console_keeps_activation_and_firmware_and_the_gateway_gives_the_credentials() {
    let (console, addr) = listener();
    let gateway = gateway(&format!("http://{addr}/xiaozhi/ota/?a=b"));
    let ota = gateway.addresses().ota.unwrap();
    let device = ask_aside(ota, 1);
    let (mut peer, request_text) = accept(&console);
    let (head, body) = request_text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /xiaozhi/ota/?a=b HTTP/1.1\r\n"), "{head}");
    for field in [
        format!("Host: {addr}"),
        format!("Device-Id: {}", mac(1)),
        "Activation-Version: 1".to_owned(),
        "Client-Id: 01234567-89ab-cdef-0123-456789abcdef".to_owned(),
        "User-Agent: bread-compact-wifi/2.0.5".to_owned(),
        "Content-Type: application/json".to_owned(),
    ] {
        assert_eq!(head.lines().filter(|line| *line == field).count(), 1, "{field}: {head}");
    }
    assert_eq!(body, BODY);
    let theirs = json!({
        "activation": {"code": "123456", "message": "控制台\n123456"},
        "firmware": {"version": "2.0.6", "url": "http://console/f.bin"},
        "mqtt": {"endpoint": "mqtt.console", "a_name_that_is_much_too_long": "x"},
        "websocket": {"url": "ws://console/"},
    });
    peer.write_all(response("200 OK", &theirs.to_string()).as_bytes()).unwrap();
    let answer = device.join().unwrap();
    assert_eq!((&answer["activation"], &answer["firmware"]), (&theirs["activation"], &theirs["firmware"]));
    assert!(answer.get("websocket").is_none() && answer["server_time"]["timestamp"].is_u64());
    Client::log_in(gateway.addresses().mqtt, &connect(&answer));

    for (status, body) in
        [("202 Accepted", "wait"), ("401 Unauthorized", "{\"error\":\"no\"}"), ("200 OK", "success")]
    {
        let activate = thread::spawn(move || {
            RawClient::round_trip(ota, &request("POST", "/xiaozhi/ota/activate", &mac(1), "{\"Payload\":1}"))
        });
        let (mut peer, request_text) = accept(&console);
        assert!(request_text.starts_with("POST /xiaozhi/ota/activate?a=b HTTP/1.1\r\n"), "{request_text}");
        assert!(request_text.ends_with("{\"Payload\":1}"));
        peer.write_all(response(status, body).as_bytes()).unwrap();
        let reply = activate.join().unwrap();
        assert_eq!((reply.status.to_string().as_str(), reply.body.as_str()), (&status[..3], body));
    }
}

#[test]
fn others_are_served_while_the_console_thinks() {
    let (console, addr) = listener();
    let gateway = gateway(&format!("http://{addr}/"));
    let ota = gateway.addresses().ota.unwrap();
    let first = ask_aside(ota, 1);
    let (mut slow, _) = accept(&console);
    // A second device is answered, a third one logs in with what it has, and only then the first one is.
    let second = ask_aside(ota, 2);
    let (mut fast, _) = accept(&console);
    fast.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{\"for\":2}\r\n0\r\n\r\n")
        .unwrap();
    let answer = second.join().unwrap();
    assert_eq!(answer["for"], 2);
    Client::log_in(gateway.addresses().mqtt, &connect(&answer));
    assert!(!first.is_finished());
    // Without a length the answer ends with the connection.
    slow.write_all(b"HTTP/1.1 200 OK\r\n\r\n{\"for\"").unwrap();
    slow.write_all(b":1}").unwrap();
    drop(slow);
    assert_eq!(first.join().unwrap()["for"], 1);
}

#[test]
fn a_console_that_gives_no_answer_costs_no_device_its_start() {
    type Fault = (&'static str, fn(TcpStream));
    fn say(mut peer: TcpStream, text: &str) {
        let _ = peer.write_all(text.as_bytes());
        // Until the gateway has enough.
        let _ = peer.read_to_end(&mut Vec::new());
    }
    /// The gateway ends it.
    fn say_for_ever(mut peer: TcpStream, start: &str, more: &str) {
        let _ = peer.write_all(start.as_bytes());
        while peer.write_all(more.repeat(64).as_bytes()).is_ok() {}
    }
    let faults: [Fault; 14] = [
        ("without a response", drop),
        ("HTTP 500", |peer| say(peer, "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")),
        ("HTTP 302", |peer| {
            say(peer, "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n")
        }),
        ("not an HTTP response", |peer| say(peer, "SSH-2.0-OpenSSH\r\n")),
        ("no JSON object", |peer| say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")),
        ("no JSON object", |peer| say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{\"a\":1}")),
        ("in the middle of the response", |mut peer| {
            peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}").unwrap();
        }),
        ("not one whole number", |peer| say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\n{}")),
        ("more than 65536", |peer| say(peer, "HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n{}")),
        ("body is broken", |peer| say(peer, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}")),
        ("more than 65536", |peer| {
            say_for_ever(peer, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n")
        }),
        ("more than 65536", |peer| say_for_ever(peer, "HTTP/1.1 200 OK\r\n\r\n", "{\"a\":[[[[[[[[[[[[")),
        ("too many headers", |peer| say_for_ever(peer, "HTTP/1.1 200 OK\r\n", "A: b\r\n")),
        ("head has more than", |peer| say_for_ever(peer, "HTTP/1.1 200 OK\r\nA: ", "bbbbbbbb")),
    ];
    for (why, fault) in faults {
        let (console, addr) = listener();
        let mut log = LogCapture::containing(format!("{addr}"));
        let gateway = gateway(&format!("http://{addr}/ota"));
        let server = thread::spawn(move || {
            for _ in 0..2 {
                fault(accept(&console).0);
            }
        });
        let ota = gateway.addresses().ota.unwrap();
        assert_own(&gateway, &ask(ota, 1).json());
        let line = log.wait_for_line("WARN OTA: http://");
        assert!(line.contains(why) && line.contains("own answer"), "{why}: {line}");
        let reply = RawClient::round_trip(ota, &request("POST", "/activate", &mac(1), "{}"));
        let kept = [500, 302, 200].contains(&reply.status);
        assert!(kept || reply.status == 502, "{why}: {reply:?}");
        server.join().unwrap();
        assert_eq!(log.count("WARN"), 0, "one line");
    }
}

#[test]
fn a_console_that_is_away_or_silent_is_not_waited_for_without_end() {
    let (silent, silent_addr) = listener();
    let (_unfinished, unfinished_addr) = listener();
    let consoles = [
        (format!("http://{}/", refusing_port()), "refused"),
        ("http://does-not-exist.invalid/".to_owned(), "cannot resolve"),
        (format!("http://{silent_addr}/"), "no answer in 5 s"),
        (
            format!("https://{unfinished_addr}/"),
            if cfg!(feature = "tls") { "no answer in 5 s" } else { "built without TLS" },
        ),
    ];
    let keep = thread::spawn(move || {
        let (mut peer, _) = accept(&silent);
        // It drips, which does not extend its time.
        while peer.write_all(b"H").is_ok() {
            thread::sleep(std::time::Duration::from_millis(100));
        }
    });
    thread::scope(|scope| {
        for (url, why) in &consoles {
            scope.spawn(move || {
                let mut log = LogCapture::containing(url.trim_end_matches('/'));
                let gateway = gateway(url);
                let asking = ask_aside(gateway.addresses().ota.unwrap(), 1);
                // Meanwhile a device without the key is answered too.
                let mut other = Client::open(gateway.addresses().mqtt);
                assert_ne!(
                    other.connack_code(&support::mqtt::Connect::new("GID_a@@@aa_bb_cc_dd_ee_ff@@@u")),
                    0
                );
                assert_own(&gateway, &asking.join().unwrap());
                let line = log.wait_for_line("WARN OTA: ");
                // What a missing name is called differs.
                assert!(line.contains(why) || url.contains("invalid"), "{why}: {line}");
            });
        }
    });
    keep.join().unwrap();
}

#[cfg(feature = "tls")]
#[test]
fn an_https_console_is_verified_as_chat_servers_are() {
    use support::process::Folder;
    use support::tls::CertificateAuthority;

    let authority = CertificateAuthority::new();
    let folder = Folder::new().with_file("ca.pem", authority.pem());
    let (console, addr) = listener();
    let acceptor = authority.server("127.0.0.1");
    let server = thread::spawn(move || {
        // The first gateway does not know the authority.
        assert!(acceptor.accept(console.accept().unwrap().0).is_err());
        let mut tls = acceptor.accept(console.accept().unwrap().0).unwrap();
        let request = read_request(&mut tls);
        assert!(request.contains(&mac(2)), "{request}");
        tls.write_all(response("200 OK", "{\"from\":\"console\"}").as_bytes()).unwrap();
    });
    let upstream = format!("https://{addr}/");
    let mut log = LogCapture::containing(upstream.clone());
    let unknown = gateway(&upstream);
    assert_own(&unknown, &ask(unknown.addresses().ota.unwrap(), 1).json());
    assert!(log.wait_for_line("WARN OTA").contains("certificate"));
    let known = gateway_with(&["ws://127.0.0.1:9/"], |config| {
        with_key(config);
        config.ota.upstream = Some(upstream.parse().unwrap());
        config.websocket.ca_file = Some(folder.0.join("ca.pem"));
    });
    assert_eq!(ask(known.addresses().ota.unwrap(), 2).json()["from"], "console");
    server.join().unwrap();
}

#[test]
fn a_gateway_that_is_its_own_upstream_asks_itself_once() {
    let gateway = gateway("http://127.0.0.1:1/");
    let ota = gateway.addresses().ota.unwrap();
    let mut log = LogCapture::containing("ota.upstream");
    let mut own = config(&["ws://127.0.0.1:9/"]);
    with_key(&mut own);
    own.api.metrics_need_token = false;
    own.ota.upstream = Some(format!("http://{ota}/").parse().unwrap());
    gateway.handle().reload(own);
    log.wait_for_line("ota.upstream; needs restart");
    let answer = ask(ota, 1).json();
    Client::log_in(gateway.addresses().mqtt, &connect(&answer));
    let (_, metrics) = http_call(gateway.addresses().api.unwrap(), "GET", "/metrics", None, None);
    for (result, count) in [("passed_on", 1), ("answered", 1), ("upstream_failed", 0)] {
        let line = format!("gateway_ota_requests_total{{result=\"{result}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
}
