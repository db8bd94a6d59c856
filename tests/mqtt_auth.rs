//! MQTT logins: credentials, client ids, and the same client id twice.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::thread;

use mqtt_websocket_proxy::config::{Config, Secret};
use support::chat_server::ChatServer;
use support::device::{HELLO, client_id, mac};
use support::host::wait_until;
use support::log_capture::LogCapture;
use support::mqtt::{Client, Connect, PINGREQ, PINGRESP, Packet, password, publish, user_name};
use support::{gateway, gateway_with};

const NO_SERVERS: [&str; 0] = [];
const KEY: &str = "a-Key-of-10";

fn with_key(config: &mut Config) {
    config.mqtt.signature_key = Secret::new(KEY);
}

/// Sends CONNECT and a ping behind it, which must not be answered after a refusal; the return code.
fn connack_code(gateway: SocketAddr, connect: &Connect) -> u8 {
    let mut client = Client::open(gateway);
    client.send(&[&connect.packet()[..], &PINGREQ].concat());
    let answer = client.packet();
    let code = answer.body[1];
    assert_eq!(answer, Packet::connack(code));
    match code {
        0 => assert_eq!(client.packet().first, PINGRESP[0]),
        _ => assert_eq!(client.read_until_closed(), [], "served behind a refused CONNECT"),
    }
    code
}

fn two_part_client_id(number: u8) -> String {
    format!("GID_test@@@{}", mac(number).replace(':', "_"))
}

#[test]
fn with_a_key_only_a_good_signature_of_a_json_user_name_is_accepted() {
    let gateway = gateway_with(&NO_SERVERS, with_key);
    let addr = gateway.addresses().mqtt;
    let id = client_id(1);
    let good = Connect::signed(&id, KEY);
    assert_eq!(connack_code(addr, &good), 0);

    let with = |change: &dyn Fn(&mut Connect)| {
        let mut connect = good.clone();
        change(&mut connect);
        connect
    };
    // Signed correctly, but not base64 of a JSON object.
    let named = |name: &str| {
        let password = password(KEY, &id, name).into_bytes();
        with(&move |connect| {
            connect.user_name = Some(name.to_owned());
            connect.password = Some(password.clone());
        })
    };
    let base64 = |text: &[u8]| openssl::base64::encode_block(text);
    assert_eq!(connack_code(addr, &named(&base64(b"{}"))), 0);
    let mut flipped = good.password.clone().unwrap();
    flipped[0] ^= 1;
    let cut = good.password.clone().unwrap()[..43].to_vec();
    let cases = [
        ("another key", Connect::signed(&id, "another key")),
        ("signature of another id", with(&|connect| connect.client_id = client_id(2))),
        (
            "signature of another user name",
            with(&|connect| connect.user_name = Some(base64(br#"{"ip":"x"}"#))),
        ),
        ("one bit wrong", with(&|connect| connect.password = Some(flipped.clone()))),
        ("cut short", with(&|connect| connect.password = Some(cut.clone()))),
        ("empty password", with(&|connect| connect.password = Some(Vec::new()))),
        ("bytes that are no text", with(&|connect| connect.password = Some(vec![0xff; 44]))),
        ("no password", with(&|connect| connect.password = None)),
        (
            "no user name",
            with(&|connect| {
                connect.user_name = None;
                connect.password = None;
            }),
        ),
        ("user name not base64", named("{\"ip\":1}")),
        ("user name empty", named("")),
        ("user name not JSON", named(&base64(b"hello"))),
        ("user name a JSON list", named(&base64(b"[1]"))),
        ("user name a JSON string", named(&base64(b"\"{}\""))),
        ("user name null", named(&base64(b"null"))),
    ];
    // Failed logins from one address are delayed, one second at most; in parallel they wait together.
    thread::scope(|scope| {
        for (what, connect) in cases {
            scope.spawn(move || assert_eq!(connack_code(addr, &connect), 4, "{what}"));
        }
    });
}

#[test]
fn with_a_key_two_part_ids_are_accepted_only_if_configured() {
    let refusing = gateway_with(&NO_SERVERS, with_key);
    for connect in [Connect::new(&two_part_client_id(1)), Connect::signed(&two_part_client_id(1), KEY)] {
        assert_eq!(connack_code(refusing.addresses().mqtt, &connect), 5);
    }
    let allowing = gateway_with(&NO_SERVERS, |config| {
        with_key(config);
        config.mqtt.allow_legacy_ids = true;
    });
    assert_eq!(connack_code(allowing.addresses().mqtt, &Connect::new(&two_part_client_id(1))), 0);
    // Three parts are still checked.
    assert_eq!(connack_code(allowing.addresses().mqtt, &Connect::new(&client_id(1))), 4);
}

#[test]
fn without_a_key_both_forms_are_accepted() {
    let gateway = gateway(&NO_SERVERS);
    for id in [two_part_client_id(1), client_id(1)] {
        let mut connect = Connect::new(&id);
        assert_eq!(connack_code(gateway.addresses().mqtt, &connect), 0);
        connect.user_name = None;
        connect.password = None;
        assert_eq!(connack_code(gateway.addresses().mqtt, &connect), 0);
    }
}

#[test]
fn a_device_may_log_in_with_a_previous_key_until_it_is_removed() {
    let with_keys = |config: &mut Config, previous: &[&str]| {
        config.mqtt.signature_key = Secret::new(KEY);
        config.mqtt.previous_signature_keys = previous.iter().filter_map(|key| Secret::new(key)).collect();
    };
    let gateway = gateway_with(&NO_SERVERS, |config| with_keys(config, &["old", "older"]));
    let addr = gateway.addresses().mqtt;
    for (key, code) in [(KEY, 0), ("old", 0), ("older", 0), ("oldest", 4)] {
        assert_eq!(connack_code(addr, &Connect::signed(&client_id(1), key)), code, "{key}");
    }
    let mut connected = Client::log_in(addr, &Connect::signed(&client_id(2), "old"));
    let mut config = support::config(&NO_SERVERS);
    with_keys(&mut config, &[]);
    gateway.handle().reload(config);
    // The reload is over when this login is answered.
    wait_until("the old key is refused", || connack_code(addr, &Connect::signed(&client_id(1), "old")) == 4);
    connected.assert_nothing_pending();
    assert_eq!(connack_code(addr, &Connect::signed(&client_id(1), KEY)), 0);
}

#[test]
fn only_devices_that_the_lists_of_macs_admit_are_accepted() {
    let gateway = gateway_with(&NO_SERVERS, |config| {
        with_key(config);
        config.mqtt.allow_legacy_ids = true;
        config.mqtt.allowed_macs = vec!["02:00:00:00:00".parse().unwrap()].into();
        config.mqtt.denied_macs = vec![mac(0x77).parse().unwrap()].into();
    });
    let addr = gateway.addresses().mqtt;
    let mut log = LogCapture::containing(client_id(0x77));
    assert_eq!(connack_code(addr, &Connect::signed(&client_id(0x76), KEY)), 0);
    assert_eq!(connack_code(addr, &Connect::signed(&client_id(0x77), KEY)), 5);
    let line = log.wait_for_line("refused");
    assert!(line.ends_with("refused with return code 5: its MAC is in mqtt.denied_macs"), "{line}");
    // Whoever does not know the key does not learn the list.
    assert_eq!(connack_code(addr, &Connect::signed(&client_id(0x77), "wrong")), 4);
    assert_eq!(connack_code(addr, &Connect::new(&two_part_client_id(0x77))), 5);
    assert_eq!(connack_code(addr, &Connect::new("GID_test@@@02_00_00_00_01_01")), 5);
    assert_eq!(connack_code(addr, &Connect::new(&two_part_client_id(0x76))), 0);
}

/// The same MAC, once proven and once not: what the chat server gets of each.
#[test]
fn an_id_that_proved_nothing_gets_no_signed_token_and_replaces_nobody() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |config| {
        with_key(config);
        config.mqtt.allow_legacy_ids = true;
        config.websocket.secret = Secret::new("server-secret");
    });
    let mut proven = Client::log_in(gateway.addresses().mqtt, &Connect::signed(&client_id(1), KEY));
    proven.send_text(HELLO);
    let mut peer = server.accept();
    let request = peer.upgrade();
    assert!(request.header("authorization").unwrap().contains('.'));
    let mut impostor = Client::log_in(gateway.addresses().mqtt, &Connect::new(&two_part_client_id(1)));
    impostor.send_text(HELLO);
    let request = server.accept().upgrade();
    assert_eq!(request.header("device-id"), Some(mac(1).as_str()));
    assert_eq!(
        (request.header("authorization"), request.header("client-id")),
        (Some("Bearer test-token"), None)
    );
    proven.assert_nothing_pending();
}

/// Whoever began it proved nothing, so that it may be a stranger's.
#[test]
fn a_call_from_before_there_was_a_key_is_not_taken_over() {
    let server = ChatServer::start();
    let gateway = gateway(&[server.url()]);
    let addr = gateway.addresses().mqtt;
    let mut stranger = Client::log_in(addr, &Connect::new(&client_id(1)));
    stranger.send_text(HELLO);
    let mut peer = server.accept();
    peer.upgrade();
    peer.exchange_hello("session");
    stranger.json();
    let mut config = support::config(&[server.url()]);
    with_key(&mut config);
    gateway.handle().reload(config);
    wait_until("there is a key", || connack_code(addr, &Connect::new(&client_id(2))) == 4);
    let mut device = Client::log_in(addr, &Connect::signed(&client_id(1), KEY));
    peer.expect_close(1000);
    assert_eq!(stranger.read_until_closed(), []);
    device.assert_nothing_pending();
}

#[test]
fn a_hello_behind_a_refused_connect_reaches_no_chat_server() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], with_key);
    let mut connect = Connect::signed(&client_id(1), KEY);
    connect.password = Some(b"wrong".to_vec());
    let mut client = Client::open(gateway.addresses().mqtt);
    client.send(&[connect.packet(), publish("t", HELLO.as_bytes())].concat());
    assert_eq!(client.read_until_closed(), [Packet::connack(4)]);
    // An accepted call shows that an earlier one would have come first.
    let mut client = Client::log_in(gateway.addresses().mqtt, &Connect::signed(&client_id(2), KEY));
    client.send_text(HELLO);
    let request = server.accept().upgrade();
    assert_eq!(request.header("device-id"), Some(mac(2).as_str()));
    assert!(server.is_idle());
}

#[test]
fn the_same_client_id_again_replaces_the_older_connection() {
    let gateway = gateway(&NO_SERVERS);
    let connect = Connect::new(&client_id(1));
    let mut older = Client::log_in(gateway.addresses().mqtt, &connect);
    for _ in 0..5 {
        let mut newer = Client::log_in(gateway.addresses().mqtt, &connect);
        assert_eq!(older.read_until_closed(), []);
        newer.assert_nothing_pending();
        older = newer;
    }
    // Another device, and the same MAC in another group, are not affected.
    Client::log_in(gateway.addresses().mqtt, &Connect::new(&client_id(2)));
    older.assert_nothing_pending();
}

#[test]
fn a_refused_connect_does_not_replace_a_connection() {
    let gateway = gateway_with(&NO_SERVERS, with_key);
    let mut older = Client::log_in(gateway.addresses().mqtt, &Connect::signed(&client_id(1), KEY));
    assert_eq!(connack_code(gateway.addresses().mqtt, &Connect::signed(&client_id(1), "wrong")), 4);
    older.assert_nothing_pending();
}

#[test]
fn a_flood_of_garbage_does_not_keep_others_from_being_served() {
    let gateway = gateway(&NO_SERVERS);
    let addr = gateway.addresses().mqtt;
    let flood = || {
        let mut client = Client::log_in(addr, &Connect::new(&client_id(9)));
        let bytes = publish("t", b"not JSON").repeat(5000);
        (0..20).for_each(|_| client.try_send(&bytes));
    };
    thread::scope(|scope| {
        scope.spawn(flood);
        let mut client = Client::log_in(addr, &Connect::new(&client_id(1)));
        for _ in 0..200 {
            client.assert_nothing_pending();
        }
    });
}

#[test]
fn the_test_user_name_matches_the_node_gateways_example() {
    // The Node.js gateway's own example, checked by hand: base64 of {"ip":"192.0.2.7"}.
    assert_eq!(user_name(), "eyJpcCI6IjE5Mi4wLjIuNyJ9");
}
