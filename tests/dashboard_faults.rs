//! What users suffer from: of each fault the first screen of the dashboard names the cause, in English and in Chinese.
//!
//! Needs Chromium, as `dashboard.rs` does.

#![allow(clippy::unwrap_used)]

mod support;

use std::any::Any;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mqtt_websocket_proxy::config::{Config, ServerOrder, Source};
use mqtt_websocket_proxy::tools::device::{Login, SimulatedDevice};
use serde_json::json;
use support::TIMEOUT;
use support::admin::{Fixture, KEY, TOKEN, fixture, fixture_with_source, mac};
use support::browser::Browser;
use support::chat_server::{ChatServer, Peer};
use support::faulty_server::{ServerFault, start_faulty_server};
use support::http::RawClient;
use support::process::Folder;
use support::tls::{CertificateAuthority, CertificateFiles, new_key};

/// A gateway with a fault, and what must live as long.
struct Scene(Fixture, Vec<Box<dyn Any>>);

/// A fault, how it is brought about, and what the first screen must say.
type Fault = (&'static str, fn() -> Scene, &'static [&'static str]);

/// The screen of an operator: everything above the fold.
const FIRST_SCREEN: &str = r#"[...document.querySelectorAll('#health, #troubles')].filter((part) => part.getBoundingClientRect().top < innerHeight).map((part) => part.innerText).join('\n')"#;
/// Words in English that are neither names, addresses, commands nor what a peer has said.
const ENGLISH: &str = r#"((text) => text.replace(/"[^"]*"|“[^”]*”|`[^`]*`|（[^（）]*(?:os error|HTTP)[^）]*）|\S+[:\/@]\S*/g, ' ').match(/[a-z]+ [a-z]+ [a-z]+/g) ?? [])"#;

/// Brings each fault about, and looks at the page as an operator would.
fn assert_named(faults: &[Fault]) {
    let Some(mut browser) = Browser::start() else { return };
    let mut wrong = Vec::new();
    for (name, inflict, wanted) in faults {
        let Scene(fixture, _kept) = inflict();
        browser.call("Page.navigate", json!({ "url": "about:blank" }));
        let link = format!("http://{}/#token={TOKEN}", fixture.api);
        browser.call("Page.navigate", json!({ "url": link }));
        browser.until("typeof poll === 'function' && state === 'live'");
        let says = |text: &&&str| !browser.comes_true(&format!("{FIRST_SCREEN}.includes({})", json!(text)));
        if let Some(missing) = wanted.iter().find(says) {
            wrong.push(format!("{name}: no {missing:?} in {}", browser.text(FIRST_SCREEN)));
        }
        let level = browser.text("$('health').className");
        if !level.contains("bad") && !level.contains("warn") {
            wrong.push(format!("{name}: the first line is {level}"));
        }
        browser.screenshot(&format!("fault-{}", name.replace(' ', "-")));
        browser.click("#language");
        browser.until("catalogue !== null");
        let english = browser.value(&format!("{ENGLISH}({FIRST_SCREEN})"));
        if english != json!([]) {
            wrong.push(format!("{name}: {english} in {}", browser.text(FIRST_SCREEN)));
        }
        browser.click("#language");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

/// A gateway whose chat server has this URL, after a call of a device.
fn with_server(url: &str, change: impl FnOnce(&mut Config)) -> Scene {
    let fixture = fixture(|config| {
        config.websocket.production = vec![Arc::new(url.parse().unwrap())];
        change(config);
    });
    let mut device = fixture.device(&mac(1));
    let _ = device.call();
    Scene(fixture, vec![Box::new(device)])
}

/// A gateway whose chat server fails in this way.
fn failing(fault: ServerFault) -> Scene {
    let (url, kept) = start_faulty_server(fault);
    let Scene(fixture, mut all) = with_server(&url, |_| {});
    all.extend(kept.into_iter().map(|kept| kept as Box<dyn Any>));
    Scene(fixture, all)
}

/// A gateway whose chat server answers the upgrade with this.
fn refusing(answer: &'static str) -> Scene {
    let server = ChatServer::start();
    let url = server.url();
    server.serve(move |mut peer: Peer| {
        peer.request();
        peer.send_raw(answer.as_bytes());
    });
    with_server(&url, |_| {})
}

/// A gateway whose chat server does this with each connection.
fn serving(handle: impl Fn(Peer) + Send + Sync + 'static) -> Scene {
    let server = ChatServer::start();
    let url = server.url();
    server.serve(handle);
    with_server(&url, |_| {})
}

/// A gateway to which a device with this login could not connect.
fn refused_login(login: impl FnOnce() -> Login, change: impl FnOnce(&mut Config)) -> Scene {
    let fixture = fixture(change);
    assert!(SimulatedDevice::connect(fixture.gateway.addresses().mqtt, &login(), TIMEOUT).is_err());
    Scene(fixture, Vec::new())
}

fn login(number: u16, key: &[u8]) -> Login {
    Login::new(mac(number).parse().unwrap(), Some(key))
}

#[test]
fn faults_of_chat_servers_are_named() {
    assert_named(&[
        (
            "nothing listens",
            || failing(ServerFault::Refused),
            &["No chat server works", "Connection refused"],
        ),
        ("no such name", || failing(ServerFault::Unresolvable), &["does-not-exist.invalid", "(name lookup)"]),
        ("no route", || failing(ServerFault::StallsAtConnect), &["(connecting)", "no answer in"]),
        (
            "ws to a TLS port",
            || {
                refusing(
                    "HTTP/1.1 400 Bad Request\r\nContent-Length: 46\r\n\r\nThe plain HTTP request was sent to HTTPS port.",
                )
            },
            &["the port wants TLS, and the URL says ws://"],
        ),
        (
            "wss to a plain port",
            || {
                let server = ChatServer::start();
                let addr = server.addr;
                server.serve(|mut peer| peer.send_raw(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
                with_server(&format!("wss://{addr}/"), |_| {})
            },
            &["the port does not speak TLS, and the URL says wss://", "write ws:// instead"],
        ),
        (
            "unknown authority",
            || {
                let server = ChatServer::start_tls(CertificateAuthority::new().server("127.0.0.1"));
                let url = server.url();
                server.serve(drop);
                with_server(&url, |_| {})
            },
            &["its certificate is not from an authority known here", "websocket.ca_file"],
        ),
        ("token refused", || failing(ServerFault::Status("401 Unauthorized")), &["it refuses the token"]),
        (
            "forbidden",
            || failing(ServerFault::Status("403 Forbidden")),
            &["it refuses the path, or the token"],
        ),
        (
            "wrong path",
            || failing(ServerFault::Status("404 Not Found")),
            &["there is no WebSocket at the path"],
        ),
        ("web page", || failing(ServerFault::Status("200 OK")), &["the port is that of a web page"]),
        (
            "upgrade not passed",
            || failing(ServerFault::Status("426 Upgrade Required")),
            &["a proxy in between"],
        ),
        (
            "bad gateway",
            || failing(ServerFault::Status("502 Bad Gateway")),
            &["the chat server behind it does not"],
        ),
        (
            "server error",
            || failing(ServerFault::Status("500 Internal Server Error")),
            &["the chat server itself fails"],
        ),
        ("redirect", || failing(ServerFault::Status("302 Found")), &["it redirects"]),
        (
            "too many requests",
            || failing(ServerFault::Status("429 Too Many Requests")),
            &["limits the number of requests"],
        ),
        ("not a web server", || failing(ServerFault::NotHttp), &["(WebSocket upgrade)", "SSH-2.0"]),
        ("no hello", || failing(ServerFault::StallsAtHello), &["(hello)", "no answer in"]),
        ("goodbye instead of hello", || failing(ServerFault::Goodbye), &["goodbye instead of hello"]),
        (
            "device not bound",
            || {
                serving(|mut peer| {
                    peer.upgrade();
                    peer.exchange_hello("s");
                    peer.frame(8, b"\x03\xf0device not bound");
                    peer.ignore_until_closed();
                })
            },
            &["A chat server ended a call", "device not bound"],
        ),
    ]);
}

#[test]
fn faults_of_calls_are_named() {
    assert_named(&[
        (
            "server lost in a call",
            || {
                let server = ChatServer::start();
                let fixture = fixture(|config| {
                    config.websocket.production = vec![Arc::new(server.url().parse().unwrap())];
                });
                let mut device = fixture.device(&mac(1));
                let call = thread::spawn(move || {
                    let call = device.call();
                    (device, call)
                });
                let mut peer = server.accept();
                peer.upgrade();
                peer.exchange_hello("s");
                let (device, call) = call.join().unwrap();
                peer.reset();
                drop(server);
                Scene(fixture, vec![Box::new(device), Box::new(call)])
            },
            &["are being connected to a chat server again", "No chat server works"],
        ),
        (
            "one of two servers",
            || {
                let (url, _) = start_faulty_server(ServerFault::Refused);
                let fixture = fixture(|config| {
                    config.websocket.production.insert(0, Arc::new(url.parse().unwrap()));
                    config.websocket.order = ServerOrder::First;
                });
                let mut device = fixture.device(&mac(1));
                device.call().unwrap();
                Scene(fixture, vec![Box::new(device)])
            },
            &["1 of 2 chat servers of production fail", "Connection refused"],
        ),
        (
            "slow server",
            || {
                serving(|mut peer| {
                    peer.upgrade();
                    thread::sleep(Duration::from_millis(3300));
                    peer.exchange_hello("s");
                    peer.ignore_until_closed();
                })
            },
            &["The chat server is slow in 1 of 1 calls"],
        ),
        (
            "no audio",
            || {
                let fixture = fixture(|_| {});
                let mut device = fixture.device(&mac(1));
                let call = device.call().unwrap();
                device.start_listening(&call, "auto").unwrap();
                Scene(fixture, vec![Box::new(device), Box::new(call)])
            },
            &["No audio from the device in 1 of 1 calls", "Open the UDP port"],
        ),
        (
            "lost packets",
            || {
                let fixture = fixture(|_| {});
                let mut device = fixture.device(&mac(1));
                let mut call = device.call().unwrap();
                device.start_listening(&call, "auto").unwrap();
                for round in 0..200 {
                    let packet = call.encrypt(round * 60, &[0x88; 60]);
                    if round % 10 != 3 {
                        call.send_packet(&packet).unwrap();
                        thread::sleep(Duration::from_millis(2));
                    }
                }
                Scene(fixture, vec![Box::new(device), Box::new(call)])
            },
            &["Packets of the device are lost in 1 of 1 calls", "Wi-Fi"],
        ),
        (
            "device lost",
            || {
                let fixture = fixture(|_| {});
                let mut device = fixture.device(&mac(1));
                device.call().unwrap();
                device.stream().shutdown(std::net::Shutdown::Both).unwrap();
                Scene(fixture, vec![Box::new(device)])
            },
            &["The device was lost in 1 of 1 calls", "Wi-Fi"],
        ),
        (
            "too many calls",
            || {
                let fixture = fixture(|config| config.websocket.max_calls = 1);
                let mut devices = [fixture.device(&mac(1)), fixture.device(&mac(2))];
                let calls: Vec<_> = devices.iter_mut().map(SimulatedDevice::call).collect();
                Scene(fixture, vec![Box::new(devices), Box::new(calls)])
            },
            &["Too many calls", "Raise websocket.max_calls"],
        ),
        (
            "too many hellos",
            || {
                let fixture = fixture(|config| config.mqtt.hello_limit = 1);
                let mut device = fixture.device(&mac(1));
                for _ in 0..3 {
                    let _ = device.call();
                }
                Scene(fixture, vec![Box::new(device)])
            },
            &["refused by a limit (Too many hellos)", "mqtt.hello_limit"],
        ),
    ]);
}

#[test]
fn faults_of_devices_and_of_the_gateway_are_named() {
    assert_named(&[
        (
            "wrong key",
            || refused_login(|| login(1, b"Another-Key-1"), |_| {}),
            &["Login refused", "password does not match MQTT_SIGNATURE_KEY", "mqtt.signature_key"],
        ),
        (
            "no credentials",
            || refused_login(|| Login { user_name: None, password: None, ..login(1, b"") }, |_| {}),
            &["Login refused", "user name or password missing"],
        ),
        (
            "bad client id",
            || {
                refused_login(
                    || Login::signed("nobody".to_owned(), "e30=".to_owned(), Some(KEY.as_bytes())),
                    |_| {},
                )
            },
            &["Login refused", "client id is not group@@@mac@@@uuid"],
        ),
        (
            "old client id",
            || {
                refused_login(
                    || Login::signed("g@@@aa_bb_cc_00_00_01".to_owned(), "e30=".to_owned(), None),
                    |_| {},
                )
            },
            &["Login refused", "two-part client ids are not allowed"],
        ),
        (
            "denied device",
            || {
                refused_login(
                    || login(1, KEY.as_bytes()),
                    |config| config.mqtt.denied_macs = vec!["aa:bb:cc".parse().unwrap()].into(),
                )
            },
            &["Login refused", "its MAC is in mqtt.denied_macs"],
        ),
        (
            "TLS on the plain port",
            || {
                let fixture = fixture(|_| {});
                let mut stream = TcpStream::connect(fixture.gateway.addresses().mqtt).unwrap();
                stream.write_all(&[22, 3, 1, 0, 50]).unwrap();
                Scene(fixture, vec![Box::new(stream)])
            },
            &["TLS on the port without TLS", "Correct the endpoint in the OTA answer"],
        ),
        (
            "distrusted certificate",
            || {
                let files = CertificateFiles::new();
                files.write(&CertificateAuthority::new().issue("localhost"));
                let fixture = fixture(|config| {
                    (config.mqtt.tls.cert_file, config.mqtt.tls.key_file) =
                        (Some(files.cert()), Some(files.key()));
                    config.mqtt.tls.port = 0;
                });
                let mqtts = fixture.gateway.addresses().mqtts.unwrap();
                let device = SimulatedDevice::open(mqtts, TIMEOUT).unwrap();
                assert!(device.start_tls("localhost", None).is_err());
                Scene(fixture, vec![Box::new(files)])
            },
            &["No TLS connection", "probe HOST --tls"],
        ),
        (
            "certificate near its end",
            || {
                let files = CertificateFiles::new();
                let key = new_key();
                files.write(&CertificateAuthority::new().issue_for("localhost", key, -30, 5));
                let fixture = fixture(|config| {
                    (config.mqtt.tls.cert_file, config.mqtt.tls.key_file) =
                        (Some(files.cert()), Some(files.key()));
                    config.mqtt.tls.port = 0;
                });
                Scene(fixture, vec![Box::new(files)])
            },
            &["The certificate for devices expires in 5 days"],
        ),
        (
            "device not listed for OTA",
            || {
                let fixture = fixture(|config| {
                    config.ota.enabled = true;
                    (config.ota.host, config.ota.port) = ([127, 0, 0, 1].into(), 0);
                    config.ota.macs = vec!["02".parse().unwrap()].into();
                });
                let ota = fixture.gateway.addresses().ota.unwrap();
                let request = format!(
                    "GET /xiaozhi/ota/ HTTP/1.1\r\nHost: x\r\nDevice-Id: {}\r\nConnection: close\r\n\r\n",
                    mac(1)
                );
                assert_eq!(RawClient::round_trip(ota, &request).status, 403);
                Scene(fixture, Vec::new())
            },
            &["A device gets no settings", "its MAC is not in ota.macs"],
        ),
        (
            "two devices with one id",
            || {
                let fixture = fixture(|_| {});
                let devices: Vec<_> = (0..5).map(|_| fixture.device(&mac(1))).collect();
                Scene(fixture, vec![Box::new(devices)])
            },
            &["Two devices, one client id", "Give each device credentials of its own"],
        ),
        (
            "too many devices",
            || {
                let fixture = fixture(|config| config.mqtt.max_connections_per_ip = 1);
                let device = fixture.device(&mac(1));
                let mqtt = fixture.gateway.addresses().mqtt;
                assert!(SimulatedDevice::connect(mqtt, &login(2, KEY.as_bytes()), TIMEOUT).is_err());
                Scene(fixture, vec![Box::new(device)])
            },
            &["Too many devices", "max_connections_per_ip is reached"],
        ),
        (
            "old firmware",
            || {
                let fixture = fixture(|_| {});
                let mut device = fixture.device(&mac(1));
                let _ = device.hello(r#"{"type":"hello","version":1,"transport":"udp"}"#);
                Scene(fixture, vec![Box::new(device)])
            },
            &["Firmware too old", "Update the device's firmware"],
        ),
        (
            "broken configuration",
            || {
                let folder = Folder::new().with_file("gateway.json", "{}");
                let path = folder.0.join("gateway.json");
                let source = Source::new(Some(path.clone()), None, |_| None);
                let fixture = fixture_with_source(Some(source), |_| {});
                fs::write(&path, r#"{"mqtt":{"port":"many"}}"#).unwrap();
                assert_eq!(fixture.request("POST", "/api/reload", None).0, 422);
                Scene(fixture, vec![Box::new(folder)])
            },
            &["Configuration not applied", "mqtt.port: found \"many\", allowed: a whole number"],
        ),
        (
            "no chat server",
            || Scene(fixture(|config| config.websocket.production.clear()), Vec::new()),
            &["No chat server is configured", "websocket.production_servers"],
        ),
        (
            "draining",
            || {
                let fixture = fixture(|_| {});
                let mut device = fixture.device(&mac(1));
                device.call().unwrap();
                assert_eq!(fixture.request("POST", "/api/drain", None).0, 200);
                Scene(fixture, vec![Box::new(device)])
            },
            &["The gateway drains", "Start another gateway"],
        ),
    ]);
}
