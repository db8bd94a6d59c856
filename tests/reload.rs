//! The configuration file changes while the gateway runs.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::chat_server::{ChatServer, Peer, audio_frame};
use support::device::{Device, HELLO, client_id, mac};
use support::mqtt::{Client, Connect};
use support::process::{Folder, Process};

struct Fixture {
    folder: Folder,
    process: Process,
    config: Value,
}

/// A gateway with these chat servers.
fn fixture(servers: &[&ChatServer]) -> Fixture {
    let urls: Vec<String> = servers.iter().map(|server| server.url()).collect();
    let config = json!({
        "mqtt": {"host": "127.0.0.1"},
        "udp": {"host": "127.0.0.1"},
        "websocket": {"production_servers": urls},
        "mcp": {"enabled": false},
    });
    let folder = Folder::new().with_file("gateway.json", config.to_string());
    let process = folder.start("-c gateway.json", &[]);
    Fixture { folder, process, config }
}

impl Fixture {
    fn write(&self, text: &str) {
        fs::write(self.folder.0.join("gateway.json"), text).unwrap();
    }

    /// Sets a dotted key, sends SIGHUP, and waits for the log line of the reload.
    fn set(&mut self, key: &str, value: Value) -> String {
        self.config[key.split_once('.').unwrap().0][key.split_once('.').unwrap().1] = value;
        self.reload(&self.config.to_string())
    }

    fn reload(&mut self, text: &str) -> String {
        self.write(text);
        self.process.signal("HUP");
        self.process.wait_for_line("reload:")
    }

    fn connect(&self, number: u8) -> Device {
        Device::connect(self.process.mqtt(), number)
    }
}

/// Text and audio pass both ways.
fn assert_undisturbed(device: &mut Device, call: &mut support::audio::Call, peer: &mut Peer) {
    call.send(1, b"\x58a");
    assert_eq!(peer.binary(), audio_frame(1, b"\x58a"));
    peer.send_audio(2, b"\x58b");
    assert_eq!(call.receive().payload, b"\x58b");
    peer.send_text(r#"{"type":"stt"}"#);
    assert_eq!(device.json()["type"], "stt");
    device.mqtt.assert_nothing_pending();
}

#[test]
fn a_bad_file_changes_nothing_and_says_why() {
    let (first, second) = (ChatServer::start(), ChatServer::start());
    let mut fixture = fixture(&[&first]);
    let mut device = fixture.connect(3);
    let (mut call, mut peer) = device.call(&first);
    let good = fixture.config.clone();
    let with = |key: &str, value: Value| {
        let mut config = good.clone();
        // A valid change in the same file must not be applied either.
        config["websocket"]["production_servers"] = json!([second.url()]);
        config["websocket"][key] = value;
        config.to_string()
    };
    for (text, why) in [
        ("", "the file is empty"),
        ("{", "line 1"),
        ("[]", "object"),
        (r#"{"mqtt":{"max_connections":0}}"#, "gateway.json: mqtt.max_connections: found 0"),
        // Without its list of servers.
        ("{}", "websocket.production_servers"),
        (&with("max_call", json!(1)), "websocket.max_call"),
        (&with("max_calls", json!("many")), "websocket.max_calls"),
        (&with("ping_interval_s", json!(-1)), "websocket.ping_interval_s"),
        (&with("development_mac_addresses", json!(["x"])), "websocket.development_mac_addresses[0]"),
        (&with("ca_file", json!("nothing.pem")), "websocket.ca_file"),
        (&with("production_servers", json!(["http://x"])), "websocket.production_servers[0]"),
        // A list in use cannot be emptied: the echo server is chosen at start only.
        (&with("production_servers", json!([])), "websocket.production_servers"),
    ] {
        let line = fixture.reload(text);
        assert!(line.contains("nothing changes") && line.contains(why), "{text}: {line}");
        device.mqtt.assert_nothing_pending();
    }
    fs::remove_file(fixture.folder.0.join("gateway.json")).unwrap();
    fixture.process.signal("HUP");
    assert!(fixture.process.wait_for_line("reload:").contains("nothing changes"));
    assert_undisturbed(&mut device, &mut call, &mut peer);
    let mut other = fixture.connect(4);
    other.call(&first);
    let line = fixture.reload(&good.to_string());
    assert!(line.contains("nothing has changed"), "{line}");
}

#[test]
fn changes_that_need_no_restart_apply_at_once() {
    let (production, development) = (ChatServer::start(), ChatServer::start());
    let mut fixture = fixture(&[&production]);
    let mut device = fixture.connect(5);
    let (mut call, mut peer) = device.call(&production);

    fixture.config["websocket"]["development_mac_addresses"] = json!([mac(6)]);
    let line = fixture.set("websocket.development_servers", json!([development.url()]));
    assert!(
        line.contains("applied: websocket.development_servers, websocket.development_mac_addresses"),
        "{line}"
    );
    fixture.connect(6).call(&development);

    assert!(
        fixture.set("websocket.server_secret", json!("s3cret")).contains("applied: websocket.server_secret")
    );
    let mut other = fixture.connect(7);
    other.send_text(HELLO);
    let mut dialled = production.accept();
    let bearer = dialled.upgrade().header("authorization").unwrap().to_owned();
    assert_ne!(bearer, "Bearer test-token");
    assert!(!fixture.process.seen.iter().any(|line| line.contains("s3cret")));

    fixture.set("websocket.max_calls", json!(1));
    let mut third = fixture.connect(9);
    third.send_text(HELLO);
    third.expect_failure();
    fixture.set("websocket.max_calls", json!(0));

    fixture.set("mqtt.max_connections", json!(1));
    let mut client = Client::open(fixture.process.mqtt());
    assert_eq!(client.connack_code(&Connect::new(&client_id(10))), 3);
    fixture.set("mqtt.max_connections", json!(100));

    fixture.set("mcp.enabled", json!(true));
    assert_eq!(fixture.connect(11).json()["payload"]["method"], "initialize");
    fixture.set("mcp.enabled", json!(false));

    assert_undisturbed(&mut device, &mut call, &mut peer);

    // Settings also apply to existing calls: here the pause before a redial.
    fixture.config["websocket"]["reconnect"] = json!({"initial_ms": 20, "max_ms": 20});
    let line = fixture.set("logging.level", json!("debug"));
    assert!(
        line.contains("websocket.reconnect.initial_ms, websocket.reconnect.max_ms, logging.level"),
        "{line}"
    );
    peer.reset();
    let redial = fixture.process.wait_for_line("redialling in");
    assert!(
        ["16", "17", "18", "19", "20"].iter().any(|ms| redial.contains(&format!("in {ms} ms"))),
        "{redial}"
    );
    assert!(redial.contains("DEBUG"), "the new level: {redial}");

    // Last, since it cannot be removed again.
    fixture.set("mqtt.signature_key", json!("key"));
    let mut client = Client::open(fixture.process.mqtt());
    assert_eq!(client.connack_code(&Connect::signed(&client_id(8), "other")), 4);
    Client::log_in(fixture.process.mqtt(), &Connect::signed(&client_id(8), "key"));
}

#[test]
fn ports_are_named_as_needing_a_restart() {
    let server = ChatServer::start();
    let mut fixture = fixture(&[&server]);
    fixture.config["udp"]["host"] = json!("127.0.0.2");
    fixture.config["udp"]["public_ip"] = json!("127.0.0.3");
    fixture.config["logging"]["file_path"] = json!("log.txt");
    let line = fixture.set("mqtt.host", json!("127.0.0.2"));
    assert!(line.contains("applied: nothing"), "{line}");
    assert!(line.contains("needs restart: mqtt.host, udp.host, udp.public_ip, logging.file_path"), "{line}");
    let mut device = fixture.connect(20);
    let (call, _peer) = device.call(&server);
    assert_eq!(call.reply["udp"]["server"], "127.0.0.1");
    // Both kinds in one file: what needs no restart is applied.
    fixture.config["mqtt"]["host"] = json!("127.0.0.1");
    let line = fixture.set("mqtt.max_connections", json!(50));
    assert!(line.contains("applied: mqtt.max_connections; needs restart: udp.host, udp.public_ip"), "{line}");
}

#[test]
fn the_port_of_a_file_needs_a_restart() {
    let server = ChatServer::start();
    let text = |port: u16| {
        json!({
            "mqtt": {"host": "127.0.0.1", "port": port}, "udp": {"host": "127.0.0.1", "port": port},
            "api": {"port": 0}, "websocket": {"production_servers": [server.url()]}, "mcp": {"enabled": false},
        })
        .to_string()
    };
    let folder = Folder::new().with_file("gateway.json", text(0));
    let mut process = folder.spawn("-c gateway.json", &[]);
    process.wait_for_line("MQTT on");
    let folder = folder.with_file("gateway.json", text(5555));
    process.signal("HUP");
    assert!(process.wait_for_line("reload:").contains("needs restart: mqtt.port, udp.port"));
    Device::connect(process.mqtt(), 21).call(&server);
    drop(folder);
}

#[test]
fn the_echo_is_chosen_at_start_only() {
    let server = ChatServer::start();
    let mut fixture = fixture(&[]);
    // No server is configured: the echo server answers.
    let mut device = fixture.connect(30);
    device.send_text(HELLO);
    let mut call = device.hello_reply();
    // A list that is not in use may stay empty.
    assert!(fixture.set("websocket.max_calls", json!(9)).contains("applied: websocket.max_calls"));
    let line = fixture.set("websocket.production_servers", json!([server.url()]));
    assert!(line.contains("applied: websocket.production_servers"), "{line}");
    call.send(0, b"\x58a");
    device.mqtt.send(&support::mqtt::PINGREQ);
    fixture.connect(31).call(&server);
    // Going back is refused.
    let line = fixture.set("websocket.production_servers", json!([]));
    assert!(line.contains("nothing changes") && line.contains("websocket.production_servers"), "{line}");
    fixture.connect(32).call(&server);
}

#[test]
fn the_development_list_is_not_emptied_either() {
    let (production, development) = (ChatServer::start(), ChatServer::start());
    let mut fixture = fixture(&[&production]);
    fixture.config["websocket"]["development_mac_addresses"] = json!([mac(40)]);
    fixture.set("websocket.development_servers", json!([development.url()]));
    let line = fixture.set("websocket.development_servers", json!([]));
    assert!(line.contains("nothing changes") && line.contains("websocket.development_servers"), "{line}");
    fixture.connect(40).call(&development);
    // With the devices taken off the list it is no longer in use.
    fixture.config["websocket"]["development_mac_addresses"] = json!([]);
    let line = fixture.set("websocket.development_servers", json!([]));
    assert!(line.contains("applied: websocket.development_servers"), "{line}");
}

#[test]
fn the_signature_key_is_not_removed_either() {
    let server = ChatServer::start();
    let mut fixture = fixture(&[&server]);
    fixture.set("mqtt.signature_key", json!("key"));
    let code = |fixture: &Fixture, number, key| {
        Client::open(fixture.process.mqtt()).connack_code(&Connect::signed(&client_id(number), key))
    };
    let mut without = fixture.config.clone();
    without["mqtt"].as_object_mut().unwrap().remove("signature_key");
    // A valid change in the same file must not be applied either.
    without["websocket"]["production_servers"] = json!(["ws://127.0.0.1:1"]);
    let mut empty = without.clone();
    empty["mqtt"]["signature_key"] = json!("");
    for text in [without.to_string(), empty.to_string()] {
        let line = fixture.reload(&text);
        assert!(line.contains("nothing changes") && line.contains("mqtt.signature_key"), "{line}");
        assert_eq!((code(&fixture, 42, "other"), code(&fixture, 43, "key")), (4, 0));
    }
    // Another key is in force at once.
    assert!(fixture.set("mqtt.signature_key", json!("other")).contains("applied: mqtt.signature_key"));
    assert_eq!((code(&fixture, 44, "other"), code(&fixture, 45, "key")), (0, 4));
}

#[test]
fn a_reload_locks_a_lost_device_out_at_once() {
    let server = ChatServer::start();
    let mut fixture = fixture(&[&server]);
    let (mut lost, mut idle, mut other) = (fixture.connect(46), fixture.connect(47), fixture.connect(48));
    let (lost_call, mut lost_peer) = lost.call(&server);
    let (mut call, mut peer) = other.call(&server);
    let line = fixture.set("mqtt.denied_macs", json!([mac(46), "02-00-00-00-00-2f"]));
    assert!(line.contains("applied: mqtt.denied_macs;"), "{line}");
    lost.expect_goodbye(&lost_call.session_id);
    assert_eq!(lost.mqtt.read_until_closed(), []);
    assert_eq!(idle.mqtt.read_until_closed(), []);
    assert_eq!(lost_peer.expect_close(1000).unwrap()["reason"], "operator");
    let code = |number| Client::open(fixture.process.mqtt()).connack_code(&Connect::new(&client_id(number)));
    assert_eq!((code(46), code(47), code(49)), (5, 5, 0));
    assert_undisturbed(&mut other, &mut call, &mut peer);
    // The other list, and a mistake in it.
    fixture.set("mqtt.allowed_macs", json!(["03"]));
    other.expect_goodbye(&call.session_id);
    let line = fixture.set("mqtt.allowed_macs", json!(["02:"]));
    assert!(line.contains("mqtt.allowed_macs[0]: found \"02:\", allowed: a MAC address"), "{line}");
    fixture.set("mqtt.allowed_macs", json!([]));
    fixture.connect(48).call(&server);
}

#[test]
fn a_new_key_is_rolled_out_beside_the_previous_one() {
    let mut fixture = fixture(&[&ChatServer::start()]);
    let code = |fixture: &Fixture, key| {
        Client::open(fixture.process.mqtt()).connack_code(&Connect::signed(&client_id(50), key))
    };
    fixture.set("mqtt.signature_key", json!("first"));
    fixture.config["mqtt"]["previous_signature_keys"] = json!(["first"]);
    let line = fixture.set("mqtt.signature_key", json!("second"));
    assert!(line.contains("applied: mqtt.signature_key, mqtt.previous_signature_keys"), "{line}");
    assert_eq!((code(&fixture, "first"), code(&fixture, "second")), (0, 0));
    // Without a current key, nothing is gained by the previous one.
    let line = fixture.set("mqtt.signature_key", json!(""));
    assert!(line.contains("nothing changes") && line.contains("mqtt.signature_key: found none"), "{line}");
    fixture.config["mqtt"]["signature_key"] = json!("second");
    fixture.set("mqtt.previous_signature_keys", json!([]));
    assert_eq!((code(&fixture, "first"), code(&fixture, "second")), (4, 0));
    assert!(!fixture.process.seen.iter().any(|line| line.contains("\"first\"")));
}

#[test]
fn reloads_under_load_affect_no_call() {
    let server = ChatServer::start();
    let mut fixture = fixture(&[&server]);
    let mut calls: Vec<_> = (50..70)
        .map(|number| {
            let mut device = fixture.connect(number);
            let (call, peer) = device.call(&server);
            (device, call, peer)
        })
        .collect();
    for round in 0..10 {
        fixture.config["websocket"]["max_dials"] = json!(100 + round);
        fixture.write(&fixture.config.to_string());
        fixture.process.signal("HUP");
        for (device, call, peer) in &mut calls {
            assert_undisturbed(device, call, peer);
        }
        fixture.process.wait_for_line("reload:");
    }
}

#[cfg(feature = "tls")]
#[test]
fn certificates_are_read_again_although_the_file_is_the_same() {
    use support::tls::CertificateAuthority;
    let (old, new) = (CertificateAuthority::new(), CertificateAuthority::new());
    let server = ChatServer::start_tls(new.server("127.0.0.1"));
    let folder = Folder::new().with_file("ca.pem", old.pem());
    let config = json!({
        "mqtt": {"host": "127.0.0.1"}, "udp": {"host": "127.0.0.1"}, "mcp": {"enabled": false},
        "websocket": {"production_servers": [server.url()], "ca_file": "ca.pem"},
    });
    let folder = folder.with_file("gateway.json", config.to_string());
    let mut process = folder.start("-c gateway.json", &[]);
    let mut device = Device::connect(process.mqtt(), 80);
    device.send_text(HELLO);
    server.accept().expect_end();
    device.expect_failure();
    let folder = folder.with_file("ca.pem", new.pem());
    process.signal("HUP");
    process.wait_for_line("reload: nothing has changed");
    device.call(&server);
    drop(folder);
}
