//! Every numbered statement of MQTT 3.1.1, and the differences of MQTT 3.1, as byte tables (`tests/data/mqtt_*.json`), run
//! against a gateway over sockets and against the codec without one.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::Secret;
use mqtt_websocket_proxy::proto::mqtt;
use serde_json::Value;
use support::byte_table::parse_bytes;
use support::device::{client_id, mac};
use support::mqtt::{
    Connect, PINGREQ, PINGRESP, length_prefixed, password, publish, remaining_length, subscribe, user_name,
};
use support::{TIMEOUT, gateway_with};

const KEY: &str = "conformance";
/// The device of the tables, and one that observes it.
const DEVICE: u8 = 1;
const OBSERVER: u8 = 2;

/// One row of a table.
struct Case<'a> {
    statement: &'a str,
    row: &'a Value,
}

impl<'a> Case<'a> {
    fn has_flag(&self, key: &str) -> bool {
        self.row[key] == true
    }

    /// A row that is not written in steps is one step.
    fn steps(&self) -> Vec<&'a Value> {
        self.row["steps"].as_array().map_or_else(|| vec![self.row], |steps| steps.iter().collect())
    }
}

impl fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.statement, self.row["name"])
    }
}

fn tables() -> [Value; 2] {
    [include_str!("data/mqtt_3_1_1.json"), include_str!("data/mqtt_3_1.json")]
        .map(|text| serde_json::from_str(text).unwrap())
}

fn cases(table: &Value) -> Vec<Case<'_>> {
    let covered = table["covered"].as_object().unwrap().iter();
    let deviating = table["deviates"].as_object().unwrap().iter();
    covered
        .chain(deviating.map(|(statement, entry)| (statement, &entry["cases"])))
        .flat_map(|(statement, rows)| rows.as_array().unwrap().iter().map(move |row| Case { statement, row }))
        .collect()
}

fn case_bytes(line: &Value, number: u8) -> Vec<u8> {
    let connect = Connect::signed(&client_id(number), KEY);
    let named = |name: &str| match name {
        "connect" => connect.packet(),
        "id" => length_prefixed(client_id(number).as_bytes()),
        "user" => length_prefixed(user_name().as_bytes()),
        "password" => length_prefixed(password(KEY, &client_id(number), &user_name()).as_bytes()),
        "topic" => length_prefixed(format!("devices/p2p/{}", mac(number).replace(':', "_")).as_bytes()),
        _ => panic!("{name} is no placeholder"),
    };
    parse_bytes(line.as_str().unwrap_or_default(), remaining_length, &named)
}

#[test]
fn every_statement_is_covered_or_left_out_for_a_reason() {
    let [table, older] = tables();
    let numbered = |(section, count): (&String, &Value)| {
        let section = section.clone();
        (1..=count.as_u64().unwrap()).map(move |n| format!("MQTT-{section}-{n}"))
    };
    let mut missing: BTreeMap<String, usize> =
        table["statements"].as_object().unwrap().iter().flat_map(numbered).map(|id| (id, 0)).collect();
    assert_eq!(missing.len(), 141, "the statements of appendix B");
    for part in ["covered", "deviates", "left_out"] {
        for id in table[part].as_object().unwrap().keys() {
            *missing.get_mut(id).unwrap_or_else(|| panic!("{id} is no statement")) += 1;
        }
    }
    missing.retain(|_, times| *times != 1);
    assert!(missing.is_empty(), "not exactly once: {missing:?}");
    for table in [&table, &older] {
        let why = |reason: &Value| reason.as_str().is_some_and(|why| why.len() > 10);
        assert!(table["left_out"].as_object().unwrap().values().all(why));
        assert!(table["deviates"].as_object().unwrap().values().all(|entry| why(&entry["why"])));
        let empty = |rows: &Value| rows.as_array().is_none_or(Vec::is_empty);
        assert!(!table["covered"].as_object().unwrap().values().any(empty));
    }
}

#[test]
fn the_codec_agrees_with_each_table() {
    for table in &tables() {
        for case in cases(table) {
            let mut verdict = None;
            for (at, step) in case.steps().into_iter().enumerate() {
                let stream = case_bytes(&step["send"], DEVICE);
                let fresh = step["fresh"] == true || (at == 0 && case.has_flag("fresh"));
                verdict = verdict.or(first_error(&stream, fresh));
            }
            let verdict = verdict.map(|malformed| format!("{malformed:?}"));
            let found = verdict.as_deref().and_then(|text| text.split(['(', ' ']).next());
            assert_eq!(found, case.row["malformed"].as_str(), "{case}");
        }
    }
}

/// The error in a stream of whole packets.
fn first_error(mut stream: &[u8], fresh: bool) -> Option<mqtt::Malformed> {
    let mut max = if fresh { 4096 } else { 65_536 };
    while !stream.is_empty() {
        match mqtt::decode(stream, max) {
            Ok(Some((_, length))) => stream = &stream[length..],
            Ok(None) => panic!("half a packet: {stream:02x?}"),
            Err(malformed) => return Some(malformed),
        }
        max = 65_536;
    }
    None
}

#[test]
fn the_gateway_answers_each_table_as_written() {
    for table in &tables() {
        for case in cases(table) {
            run_case(&case, false);
            if !case.has_flag("once") {
                run_case(&case, true);
            }
        }
    }
}

/// Runs a case on its own gateway, so that cases do not delay each other's refused logins.
fn run_case(case: &Case<'_>, byte_by_byte: bool) {
    let none: [&str; 0] = [];
    let gateway = gateway_with(&none, |config| {
        config.mqtt.signature_key = Some(KEY).filter(|_| !case.has_flag("keyless")).and_then(Secret::new);
    });
    let mut device = Connection::open(gateway.addresses().mqtt, DEVICE);
    if !case.has_flag("fresh") {
        device.log_in();
    }
    let mut connections = BTreeMap::from([("device", device)]);
    for (at, step) in case.steps().into_iter().enumerate() {
        let name = step["on"].as_str().unwrap_or("device");
        let connection = connections.entry(name).or_insert_with(|| match name {
            "watcher" => Connection::open_observer(gateway.addresses().mqtt),
            _ => Connection::open(gateway.addresses().mqtt, DEVICE),
        });
        let what = format!("{case}, step {}{}", at + 1, if byte_by_byte { ", byte by byte" } else { "" });
        connection.send(&case_bytes(&step["send"], connection.number), byte_by_byte);
        connection.expect(&case_bytes(&step["expect"], connection.number), &what);
        if step["end"] == true {
            connection.stream.shutdown(Shutdown::Write).unwrap();
            connection.expect_end(&what);
        } else if step["closed"] == true {
            if let Some(ms) = step["not_before_ms"].as_u64() {
                let silent = connection.expect_end(&what);
                assert!(silent >= Duration::from_millis(ms), "{what}: closed after {silent:?}");
            } else {
                connection.send(&PINGREQ, false);
                connection.expect_end(&what);
            }
        } else {
            connection.send(&PINGREQ, false);
            connection.expect(&PINGRESP, &format!("{what}: still served"));
        }
    }
}

/// One TCP connection of a case.
struct Connection {
    stream: TcpStream,
    number: u8,
    /// When it last sent something.
    sent: Instant,
}

impl Connection {
    fn open(gateway: SocketAddr, number: u8) -> Self {
        let stream = TcpStream::connect_timeout(&gateway, TIMEOUT).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { stream, number, sent: Instant::now() }
    }

    /// Another device, subscribed to everything.
    fn open_observer(gateway: SocketAddr) -> Self {
        let mut watcher = Self::open(gateway, OBSERVER);
        watcher.log_in();
        watcher.send(&subscribe(1, &[("#", 0)]), false);
        watcher.expect(&[0x90, 3, 0, 1, 0], "SUBACK");
        watcher
    }

    fn log_in(&mut self) {
        // With a text that gets no answer, so that it is not taken for a device in a call of an earlier gateway if it is slow.
        let packets =
            [Connect::signed(&client_id(self.number), KEY).packet(), publish("t", br#"{"type":"goodbye"}"#)];
        self.send(&packets.concat(), false);
        self.expect(&[0x20, 2, 0, 0], "CONNACK");
    }

    /// The gateway may close the connection before it has read everything.
    fn send(&mut self, bytes: &[u8], byte_by_byte: bool) {
        let size = if byte_by_byte { 1 } else { bytes.len().max(1) };
        for part in bytes.chunks(size) {
            self.sent = Instant::now();
            if self.stream.write_all(part).is_err() {
                return;
            }
        }
    }

    fn expect(&mut self, expected: &[u8], what: &str) {
        let mut found = Vec::new();
        while found.len() < expected.len() {
            let mut buffer = vec![0; expected.len() - found.len()];
            match self.stream.read(&mut buffer) {
                Ok(n @ 1..) => found.extend_from_slice(&buffer[..n]),
                end => panic!("{what}: {found:02x?} instead of {expected:02x?}, then {end:?}"),
            }
        }
        assert_eq!(found, expected, "{what}");
    }

    /// Only the end of the connection arrives; how long after the last send.
    fn expect_end(&mut self, what: &str) -> Duration {
        match self.stream.read(&mut [0; 64]) {
            Ok(0) => {}
            Ok(n) => panic!("{what}: {n} bytes more than expected"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what}"),
        }
        self.sent.elapsed()
    }
}
