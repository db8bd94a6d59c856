//! MQTT on the wire: what is accepted, what is refused with a return code, and what closes the connection
//! (MQTT 3.1.1; section numbers are its).

#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;

use support::device::client_id;
use support::mqtt::{
    CONNECT, Client, Connect, DISCONNECT, PINGREQ, PINGRESP, PUBLISH, Packet, SUBACK, SUBSCRIBE, UNSUBACK,
    UNSUBSCRIBE, length_prefixed, packet, publish, subscribe, unsubscribe,
};
use support::{gateway, gateway_with};

const NO_SERVERS: [&str; 0] = [];

fn log_in(gateway: SocketAddr, number: u8) -> Client {
    Client::log_in(gateway, &Connect::new(&client_id(number)))
}

/// A CONNECT made of its parts.
fn raw_connect(name: &[u8], level: u8, flags: u8, fields: &[&[u8]]) -> Vec<u8> {
    let mut body = length_prefixed(name);
    body.extend([level, flags, 0, 60]);
    fields.iter().for_each(|field| body.extend(length_prefixed(field)));
    packet(CONNECT, &body)
}

#[test]
fn every_combination_of_connect_flags_is_understood() {
    let gateway = gateway(&NO_SERVERS);
    let addr = gateway.addresses().mqtt;
    let will = |qos, retain| Some(("a/b".to_owned(), b"gone".to_vec(), qos, retain));
    let wills =
        [None, will(0, false), will(0, true), will(1, false), will(1, true), will(2, false), will(2, true)];
    let logins = [(None, None), (Some("u"), None), (Some("u"), Some("p"))];
    for (name, level) in [("MQTT", 4), ("MQIsdp", 3)] {
        for will in &wills {
            for (user_name, password) in logins {
                for (clean_session, keep_alive) in [(true, 0), (false, 90)] {
                    let connect = Connect {
                        name,
                        level,
                        keep_alive,
                        clean_session,
                        client_id: client_id(1),
                        will: will.clone(),
                        user_name: user_name.map(str::to_owned),
                        password: password.map(|text| text.as_bytes().to_vec()),
                    };
                    let mut client = Client::open(addr);
                    client.send(&connect.packet());
                    assert_eq!(client.packet(), Packet::connack(0), "{connect:?}");
                    client.assert_nothing_pending();
                }
            }
        }
    }
}

#[test]
fn only_level_4_of_mqtt_and_level_3_of_mqisdp_are_spoken() {
    let gateway = gateway(&NO_SERVERS);
    let id = client_id(1);
    let fields: &[&[u8]] = &[id.as_bytes()];
    for (name, level) in
        [("MQTT", 0), ("MQTT", 3), ("MQTT", 5), ("MQTT", 6), ("MQTT", 0x84), ("MQIsdp", 4), ("MQIsdp", 0)]
    {
        let mut client = Client::open(gateway.addresses().mqtt);
        client.send(&raw_connect(name.as_bytes(), level, 2, fields));
        assert_eq!(client.read_until_closed(), [Packet::connack(1)], "{name} {level}");
    }
    for name in ["", "MQT", "mqtt", "MQTTX", "MQISDP", "HTTP"] {
        let mut client = Client::open(gateway.addresses().mqtt);
        client.send(&raw_connect(name.as_bytes(), 4, 2, fields));
        assert_eq!(client.read_until_closed(), [], "{name:?}");
    }
}

#[test]
fn a_client_id_that_names_no_device_is_refused_with_2() {
    let gateway = gateway(&NO_SERVERS);
    for id in [
        "",
        "x",
        "g@@@",
        "g@@@zz_00_00_00_00_01@@@u",
        "g@@@02_00_00_00_00@@@u",
        "g@@@02_00_00_00_00_01_02@@@u",
        "@@@02_00_00_00_00_01@@@u",
        "g@@@02_00_00_00_00_01@@@",
        "g@@@02_00_00_00_00_01@@@u@@@v",
        "g@@@02_00_00_00_00_01@@@u\r\nx: y",
    ] {
        let mut client = Client::open(gateway.addresses().mqtt);
        client.send(&Connect::new(id).packet());
        // Packets behind a refused CONNECT are ignored.
        client.try_send(&PINGREQ);
        assert_eq!(client.read_until_closed(), [Packet::connack(2)], "{id:?}");
    }
}

/// Malformed CONNECTs, by the rule they break.
fn broken_connects() -> Vec<(&'static str, Vec<u8>)> {
    let id = client_id(1);
    let id = id.as_bytes();
    let good = Connect::new(&client_id(1)).body();
    let longer = [&good[..], b"x"].concat();
    let mut truncated: Vec<_> =
        (0..good.len()).map(|n| ("cut short (2.2.3)", packet(CONNECT, &good[..n]))).collect();
    truncated.extend([
        ("reserved header flags (2.2.2)", packet(CONNECT | 1, &good)),
        ("reserved header flags (2.2.2)", packet(CONNECT | 8, &good)),
        ("reserved connect flag (3.1.2.3)", raw_connect(b"MQTT", 4, 3, &[id])),
        ("will QoS without will (3.1.2.6)", raw_connect(b"MQTT", 4, 2 | 0x08, &[id])),
        ("will retain without will (3.1.2.7)", raw_connect(b"MQTT", 4, 2 | 0x20, &[id])),
        ("will QoS 3 (3.1.2.6)", raw_connect(b"MQTT", 4, 2 | 0x1c, &[id, b"t", b"m"])),
        ("will without message (3.1.3.3)", raw_connect(b"MQTT", 4, 2 | 0x04, &[id, b"t"])),
        ("empty will topic (4.7.3)", raw_connect(b"MQTT", 4, 2 | 0x04, &[id, b"", b"m"])),
        ("will topic with wildcard (4.7.1)", raw_connect(b"MQTT", 4, 2 | 0x04, &[id, b"a/#", b"m"])),
        ("password without user name (3.1.2.9)", raw_connect(b"MQTT", 4, 2 | 0x40, &[id, b"p"])),
        ("user name missing (3.1.3.4)", raw_connect(b"MQTT", 4, 2 | 0x80, &[id])),
        ("password missing (3.1.3.5)", raw_connect(b"MQTT", 4, 2 | 0xc0, &[id, b"u"])),
        ("bytes after the last field", packet(CONNECT, &longer)),
        ("bytes after the last field", raw_connect(b"MQTT", 4, 2, &[id, b"u"])),
        ("client id not UTF-8 (1.5.3)", raw_connect(b"MQTT", 4, 2, &[b"g@@@\xff"])),
        ("surrogate in the client id (1.5.3)", raw_connect(b"MQTT", 4, 2, &[b"g\xed\xa0\x80"])),
        ("U+0000 in the client id (1.5.3)", raw_connect(b"MQTT", 4, 2, &[b"g\0"])),
        ("U+0000 in the user name (1.5.3)", raw_connect(b"MQTT", 4, 2 | 0x80, &[id, b"u\0"])),
        ("user name not UTF-8 (1.5.3)", raw_connect(b"MQTT", 4, 2 | 0x80, &[id, b"\xc0\x80"])),
        ("remaining length of five bytes (2.2.3)", b"\x10\x80\x80\x80\x80\x01".to_vec()),
        ("over 4 KiB before CONNECT", packet(CONNECT, &[&good[..], &vec![0; 5000]].concat())),
    ]);
    truncated
}

#[test]
fn a_broken_connect_is_closed_without_an_answer() {
    let gateway = gateway(&NO_SERVERS);
    for (rule, bytes) in broken_connects() {
        let mut client = Client::open(gateway.addresses().mqtt);
        client.send(&bytes);
        client.try_send(&PINGREQ);
        assert_eq!(client.read_until_closed(), [], "{rule}: {bytes:02x?}");
    }
}

#[test]
fn a_packet_before_connect_closes_at_its_first_byte() {
    let gateway = gateway(&NO_SERVERS);
    for first in (0..=0xff).filter(|first| first >> 4 != 1) {
        let mut client = Client::open(gateway.addresses().mqtt);
        client.send(&[first]);
        assert_eq!(client.read_until_closed(), [], "{first:#04x}");
    }
    let mut client = Client::open(gateway.addresses().mqtt);
    let connect = Connect::new(&client_id(1)).packet();
    client.send(&[&PINGREQ[..], &connect].concat());
    assert_eq!(client.read_until_closed(), []);
}

/// Packets that close an accepted connection, by the rule they break.
fn broken_packets() -> Vec<(&'static str, Vec<u8>)> {
    let id_1 = [0, 1];
    let with_qos = |qos: u8| packet(SUBSCRIBE, &[&id_1[..], &length_prefixed(b"a"), &[qos]].concat());
    vec![
        ("a second CONNECT (3.1)", Connect::new(&client_id(1)).packet()),
        ("packet type 0 (2.2.1)", packet(0x00, b"")),
        ("packet type 15 (2.2.1)", packet(0xf0, b"")),
        ("CONNACK from a client", packet(0x20, &[0, 0])),
        ("SUBACK from a client", packet(0x90, &[0, 1, 0])),
        ("UNSUBACK from a client", packet(0xb0, &[0, 1])),
        ("PINGRESP from a client", packet(0xd0, b"")),
        ("PUBACK", packet(0x40, &id_1)),
        ("PUBREC", packet(0x50, &id_1)),
        ("PUBREL", packet(0x62, &id_1)),
        ("PUBCOMP", packet(0x70, &id_1)),
        ("QoS 1", packet(0x32, &[&length_prefixed(b"t")[..], &id_1, b"{}"].concat())),
        ("QoS 2", packet(0x34, &[&length_prefixed(b"t")[..], &id_1, b"{}"].concat())),
        ("QoS 3 (3.3.1.2)", packet(0x36, &[&length_prefixed(b"t")[..], &id_1, b"{}"].concat())),
        ("DUP at QoS 0 (3.3.1.1)", packet(0x38, &[&length_prefixed(b"t")[..], b"{}"].concat())),
        ("empty topic (4.7.3)", publish("", b"{}")),
        ("wildcard in PUBLISH (3.3.2.1)", publish("a/+", b"{}")),
        ("wildcard in PUBLISH (3.3.2.1)", publish("#", b"{}")),
        ("wildcard in PUBLISH (3.3.2.1)", publish("a+b", b"{}")),
        ("topic past the packet", packet(PUBLISH, &[0, 9, b't'])),
        ("topic without length", packet(PUBLISH, &[0])),
        ("PUBLISH without a byte", packet(PUBLISH, b"")),
        ("topic not UTF-8", packet(PUBLISH, &length_prefixed(b"\xff"))),
        ("topic with U+0000", packet(PUBLISH, &length_prefixed(b"a\0b"))),
        ("topic with a surrogate", packet(PUBLISH, &length_prefixed(b"\xed\xa0\x80"))),
        ("SUBSCRIBE with flags 0 (3.8.1)", packet(0x80, &[&id_1[..], &length_prefixed(b"a"), &[0]].concat())),
        ("SUBSCRIBE with flags 3 (3.8.1)", packet(0x83, &[&id_1[..], &length_prefixed(b"a"), &[0]].concat())),
        ("SUBSCRIBE without filter (3.8.3)", packet(SUBSCRIBE, &id_1)),
        ("SUBSCRIBE with id 0 (2.3.1)", subscribe(0, &[("a", 0)])),
        ("SUBSCRIBE without id", packet(SUBSCRIBE, b"")),
        ("SUBSCRIBE without QoS", packet(SUBSCRIBE, &[&id_1[..], &length_prefixed(b"a")].concat())),
        ("requested QoS 3 (3.8.3)", with_qos(3)),
        ("requested QoS with reserved bits (3.8.3)", with_qos(4)),
        ("requested QoS with reserved bits (3.8.3)", with_qos(0x80)),
        ("empty filter (4.7.3)", subscribe(1, &[("", 0)])),
        ("filter past the packet", packet(SUBSCRIBE, &[0, 1, 0, 9, b'a', 0])),
        ("filter not UTF-8", packet(SUBSCRIBE, &[&id_1[..], &length_prefixed(b"\xfe"), &[0]].concat())),
        ("filter with U+0000", subscribe(1, &[("a\0", 0)])),
        ("# not last (4.7.1)", subscribe(1, &[("a/#/b", 0)])),
        ("+ within a level (4.7.1)", subscribe(1, &[("a/b+", 0)])),
        ("a bad filter behind a good one", subscribe(1, &[("a", 0), ("", 0)])),
        ("UNSUBSCRIBE with flags 0 (3.10.1)", packet(0xa0, &[&id_1[..], &length_prefixed(b"a")].concat())),
        ("UNSUBSCRIBE without filter (3.10.3)", packet(UNSUBSCRIBE, &id_1)),
        ("UNSUBSCRIBE with id 0 (2.3.1)", unsubscribe(0, &["a"])),
        ("bytes after UNSUBSCRIBE's last filter", packet(UNSUBSCRIBE, &[0, 1, 0, 1, b'a', 0])),
        ("PINGREQ with flags (2.2.2)", packet(0xc1, b"")),
        ("PINGREQ with a body", packet(0xc0, b"x")),
        ("DISCONNECT with flags (2.2.2)", packet(0xe1, b"")),
        ("DISCONNECT with a body", packet(0xe0, b"x")),
        ("remaining length of five bytes (2.2.3)", b"\x30\xff\xff\xff\xff\x01".to_vec()),
        ("remaining length of five bytes (2.2.3)", b"\x30\x80\x80\x80\x80".to_vec()),
    ]
}

#[test]
fn a_broken_packet_closes_the_connection_and_nothing_behind_it_is_served() {
    let gateway = gateway(&NO_SERVERS);
    for (rule, bytes) in broken_packets() {
        let mut client = log_in(gateway.addresses().mqtt, 1);
        client.send(&[&bytes[..], &PINGREQ].concat());
        assert_eq!(client.read_until_closed(), [], "{rule}: {bytes:02x?}");
    }
    // Other devices are not affected.
    log_in(gateway.addresses().mqtt, 2).assert_nothing_pending();
}

#[test]
fn disconnect_closes_and_nothing_behind_it_is_served() {
    let gateway = gateway(&NO_SERVERS);
    let mut client = log_in(gateway.addresses().mqtt, 1);
    client.send(&[&DISCONNECT[..], &PINGREQ].concat());
    assert_eq!(client.read_until_closed(), []);
}

#[test]
fn every_filter_is_answered_and_qos_0_is_granted() {
    let gateway = gateway(&NO_SERVERS);
    let mut client = log_in(gateway.addresses().mqtt, 1);
    let long = "x/".repeat(100);
    for (id, filters) in [
        (1, vec![("null", 0)]),
        (0xffff, vec![("devices/p2p/+", 1)]),
        (2, vec![("#", 2), ("+/a/#", 1), ("$SYS/x", 0), ("/", 2)]),
        // A remaining length of two bytes.
        (3, vec![(long.as_str(), 2)]),
        (4, vec![("a", 2); 200]),
    ] {
        client.send(&subscribe(id, &filters));
        let body = [&id.to_be_bytes()[..], &vec![0; filters.len()]].concat();
        assert_eq!(client.packet(), Packet { first: SUBACK, body });
    }
    client.send(&unsubscribe(7, &["a", "b/#"]));
    assert_eq!(client.packet(), Packet { first: UNSUBACK, body: vec![0, 7] });
    client.assert_nothing_pending();
}

#[test]
fn publishes_that_are_legal_are_taken_whatever_their_topic_retain_and_payload() {
    let gateway = gateway(&NO_SERVERS);
    let mut client = log_in(gateway.addresses().mqtt, 1);
    let retained = packet(PUBLISH | 1, &[&length_prefixed(b"a")[..], b"[]"].concat());
    for bytes in [
        retained,
        publish("device-server", b""),
        publish("$share", b"not JSON"),
        publish("/", &[0xff, 0, 1]),
        publish("a b", br#"{"type":"goodbye"}"#),
        publish("t", b"[1,2"),
    ] {
        client.send(&bytes);
        client.assert_nothing_pending();
    }
}

#[test]
fn packets_may_be_split_at_any_byte() {
    let gateway = gateway(&NO_SERVERS);
    let script = script(3);
    for at in 1..script.bytes.len() {
        let mut client = Client::open(gateway.addresses().mqtt);
        client.send(&script.bytes[..at]);
        // The first part is answered before the rest is sent, so that the two parts are two reads.
        let before = script.answers_within(at);
        let mut found: Vec<_> = (0..before).map(|_| client.packet()).collect();
        client.send(&script.bytes[at..]);
        found.extend((before..script.answers.len()).map(|_| client.packet()));
        assert_eq!(found, script.answers, "split at {at}");
    }
    let mut client = Client::open(gateway.addresses().mqtt);
    script.bytes.iter().for_each(|byte| client.send(&[*byte]));
    let found: Vec<_> = script.answers.iter().map(|_| client.packet()).collect();
    assert_eq!(found, script.answers, "byte by byte");
}

#[test]
fn many_packets_may_come_in_one_segment() {
    let gateway = gateway(&NO_SERVERS);
    let script = script(2000);
    let mut client = Client::open(gateway.addresses().mqtt);
    client.send(&script.bytes);
    let found: Vec<_> = script.answers.iter().map(|_| client.packet()).collect();
    assert!(found == script.answers);
}

/// The bytes of a connection, and the expected answer.
struct Script {
    bytes: Vec<u8>,
    answers: Vec<Packet>,
    /// Where each answered packet ends.
    ends: Vec<usize>,
}

impl Script {
    fn answers_within(&self, bytes: usize) -> usize {
        self.ends.iter().filter(|end| **end <= bytes).count()
    }

    fn push(&mut self, bytes: &[u8], answer: Packet) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.answers.push(answer);
    }
}

fn script(rounds: u16) -> Script {
    let mut script = Script { bytes: Vec::new(), answers: Vec::new(), ends: Vec::new() };
    script.push(&Connect::new(&client_id(1)).packet(), Packet::connack(0));
    for id in 1..=rounds {
        script.bytes.extend(publish("t", b"not JSON"));
        let [high, low] = id.to_be_bytes();
        script.push(&subscribe(id, &[("a", 1)]), Packet { first: SUBACK, body: vec![high, low, 0] });
        script.push(&PINGREQ, Packet { first: PINGRESP[0], body: Vec::new() });
        script.push(&unsubscribe(id, &["a"]), Packet { first: UNSUBACK, body: vec![high, low] });
    }
    script
}

#[test]
fn a_packet_over_max_payload_size_closes_and_one_of_that_size_does_not() {
    for limit in [65_536, 1000] {
        let gateway = gateway_with(&NO_SERVERS, |config| config.mqtt.max_payload_size = limit);
        let sized = |remaining: usize| publish("t", &vec![b'x'; remaining - 3]);
        let mut client = log_in(gateway.addresses().mqtt, 1);
        client.send(&sized(limit));
        client.assert_nothing_pending();
        client.try_send(&sized(limit + 1));
        client.try_send(&PINGREQ);
        assert_eq!(client.read_until_closed(), [], "{limit}");

        // The connection is closed as soon as the length is known.
        let mut client = log_in(gateway.addresses().mqtt, 1);
        client.send(&sized(limit + 1)[..6]);
        assert_eq!(client.read_until_closed(), [], "{limit}");
    }
}

#[test]
fn what_the_gateway_publishes_unasked_goes_to_the_devices_own_topic() {
    let gateway = gateway(&NO_SERVERS);
    let mut client = log_in(gateway.addresses().mqtt, 0x1f);
    client.send_text(r#"{"type":"listen","session_id":"x","state":"start"}"#);
    let packet = client.packet();
    assert_eq!(packet.message(), ("devices/p2p/02_00_00_00_00_1f", r#"{"type":"goodbye","session_id":"x"}"#));
}
