//! The answer to a device's OTA request: what a device asks for when it starts, and where it gets its MQTT credentials from.
//!
//! The shape is that of the firmware's parser (xiaozhi-esp32, `main/ota.cc`): it writes every string and number of section `mqtt` to
//! flash when it differs from what is there, under a name that may have 15 characters at most, and splits `endpoint` at its first
//! colon.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::identity::{Mac, device_password};

/// The first part of the client ids of devices that no console has put into a group.
pub const DEFAULT_GROUP: &str = "GID_default";
/// The topic devices publish on; the gateway ignores it.
pub const PUBLISH_TOPIC: &str = "device-server";
/// The port on which devices speak TLS, which is also what a missing port means to them.
pub const TLS_PORT: u16 = 8883;
/// What marks a request that a gateway has passed on (RFC 9110 section 7.6.3): it is not passed on again, so that a gateway whose
/// upstream is itself asks itself only once.
pub const VIA: &str = "1.1 mqtt-websocket-proxy";
/// The longest group.
const MAX_GROUP: usize = 64;

/// Section `mqtt`. It is the same for each request of a device, so that its flash is not written again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MqttSection {
    /// Where the gateway listens: a host, and a port unless it is [`TLS_PORT`].
    pub endpoint: String,
    /// `group@@@mac@@@third`, the MAC with underscores.
    pub client_id: String,
    /// base64 of a JSON object.
    pub username: String,
    /// The signature over client id and user name; empty without a key.
    pub password: String,
    /// What the device publishes on.
    pub publish_topic: &'static str,
    /// What the device subscribes to, if its firmware subscribes at all.
    pub subscribe_topic: String,
    /// Seconds. Without it the firmware takes 240, and a dead device is noticed after 1.5 times that.
    pub keepalive: u16,
}

impl MqttSection {
    /// The section of the device with this MAC. Without a `third` part of the client id it is the MAC again, as
    /// xiaozhi-esp32-server has it; without a `key` the password is empty.
    pub fn new(
        endpoint: String,
        mac: Mac,
        group: &str,
        third: Option<&str>,
        key: Option<&[u8]>,
        keepalive: u16,
    ) -> Self {
        let mac = mac.underscored();
        let client_id = format!("{group}@@@{mac}@@@{}", third.unwrap_or(&mac));
        // The device's address would change from one request to the next.
        let username = BASE64.encode(br#"{"ip":"0.0.0.0"}"#);
        let password = key.map(|key| device_password(key, &client_id, &username)).unwrap_or_default();
        Self {
            endpoint,
            client_id,
            username,
            password,
            publish_topic: PUBLISH_TOPIC,
            subscribe_topic: format!("devices/p2p/{mac}"),
            keepalive,
        }
    }
}

/// Section `server_time`, by which a device sets its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ServerTime {
    /// Milliseconds since 1970, in UTC.
    pub timestamp: u64,
    /// Minutes, which the device adds to that.
    pub timezone_offset: i32,
}

/// This gateway's own answer.
pub fn answer(mqtt: &MqttSection, server_time: &ServerTime) -> String {
    #[derive(Serialize)]
    struct Answer<'a> {
        mqtt: &'a MqttSection,
        server_time: &'a ServerTime,
    }
    to_json(&Answer { mqtt, server_time })
}

/// Another server's answer with this `mqtt` section in place of its own, without `websocket`, and with `server_time` if it has none.
/// The firmware finds sections in any case of letters, takes U+0000 for the end of a name, and skips a byte order mark; so does this.
/// `None` when `theirs` is no JSON object.
pub fn merge(theirs: &[u8], mqtt: &MqttSection, server_time: &ServerTime) -> Option<String> {
    let theirs = theirs.strip_prefix("\u{feff}".as_bytes()).unwrap_or(theirs);
    let mut sections: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(theirs).ok()?;
    let is_own = |name: &str| {
        let name = name.split('\0').next().unwrap_or_default();
        ["mqtt", "websocket"].iter().any(|own| name.eq_ignore_ascii_case(own))
    };
    sections.retain(|name, _| !is_own(name));
    sections.insert("mqtt".to_owned(), to_raw_value(mqtt).ok()?);
    if !sections.keys().any(|name| name.eq_ignore_ascii_case("server_time")) {
        sections.insert("server_time".to_owned(), to_raw_value(server_time).ok()?);
    }
    Some(to_json(&sections))
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("its keys are strings")
}

/// Whether this can be the first part of a client id.
pub fn is_group(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (1..=MAX_GROUP).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// Where a device reaches the gateway. Displays as it stands in the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an IPv4 address.
    pub host: String,
    /// The port, if one is given.
    pub port: Option<u16>,
}

/// What an [`Endpoint`] may be.
pub const ENDPOINT_ALLOWED: &str =
    "HOST or HOST:PORT, a name or an IPv4 address and a port from 1 to 65535, no scheme and no IPv6 literal";

impl Endpoint {
    /// Whether a device speaks TLS there.
    pub fn is_tls(&self) -> bool {
        self.port.is_none_or(|port| port == TLS_PORT)
    }
}

impl FromStr for Endpoint {
    /// What is allowed.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let (host, port) = match text.split_once(':') {
            None => (text, None),
            Some((host, port)) => (host, Some(port)),
        };
        let is_digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let port = match port {
            None => None,
            Some(port) if is_digits(port) => {
                Some(port.parse().ok().filter(|port| *port != 0).ok_or(ENDPOINT_ALLOWED)?)
            }
            Some(_) => return Err(ENDPOINT_ALLOWED),
        };
        let is_host = (1..=253).contains(&host.len()) && host.bytes().all(is_host_byte);
        if is_host { Ok(Self { host: host.to_owned(), port }) } else { Err(ENDPOINT_ALLOWED) }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::super::identity::{ClientId, is_valid_user_name, verify_password};
    use super::*;

    const TIME: ServerTime = ServerTime { timestamp: 1_700_000_000_123, timezone_offset: 480 };

    fn section(key: Option<&[u8]>) -> MqttSection {
        let mac = "AA:BB:CC:DD:EE:FF".parse().unwrap();
        MqttSection::new("gw.lan:1883".to_owned(), mac, DEFAULT_GROUP, None, key, 60)
    }

    #[test]
    fn the_firmware_can_store_every_setting_and_the_gateway_accepts_them() {
        let answer = answer(&section(Some(b"Secret1")), &TIME);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let sections: Vec<_> = answer.as_object().unwrap().keys().collect();
        assert_eq!(sections, ["mqtt", "server_time"]);
        assert_eq!(
            answer["server_time"],
            json!({"timestamp": 1_700_000_000_123_u64, "timezone_offset": 480})
        );
        for (name, value) in answer["mqtt"].as_object().unwrap() {
            // A longer name aborts the firmware each time it starts, and it stores strings and numbers only.
            assert!(name.len() <= 15 && (value.is_string() || value.is_u64()), "{name}: {value}");
        }
        let field = |name: &str| answer["mqtt"][name].as_str().unwrap();
        assert_eq!(field("endpoint").split_once(':'), Some(("gw.lan", "1883")));
        assert_eq!(field("client_id"), "GID_default@@@aa_bb_cc_dd_ee_ff@@@aa_bb_cc_dd_ee_ff");
        assert_eq!(
            (field("publish_topic"), field("subscribe_topic")),
            (PUBLISH_TOPIC, "devices/p2p/aa_bb_cc_dd_ee_ff")
        );
        assert_eq!(answer["mqtt"]["keepalive"], 60);
        ClientId::parse(field("client_id")).unwrap();
        assert!(is_valid_user_name(field("username")));
        assert!(verify_password(
            b"Secret1",
            field("client_id"),
            field("username"),
            field("password").as_bytes()
        ));
        assert_eq!(section(None).password, "");
    }

    #[test]
    fn another_servers_answer_keeps_all_but_where_to_connect() {
        let theirs = r#"{"firmware":{"version":"1.0.0","size":1e400},"Activation":{"code":"123456","message":"喂"},
            "mqtt":{"a_name_that_is_too_long":"x"},"MQTT":1,"MQTT\u0000":{"endpoint":"a"},"websocket":{"url":"ws://a"},"WebSocket":{},"x":18446744073709551616}"#;
        let mine = section(None);
        let merged = merge(theirs.as_bytes(), &mine, &TIME).unwrap();
        assert!(merged.contains(r#""firmware":{"version":"1.0.0","size":1e400}"#), "{merged}");
        assert!(merged.contains(r#""x":18446744073709551616"#) && merged.contains("喂"), "{merged}");
        let sections: BTreeMap<String, Box<RawValue>> = serde_json::from_str(&merged).unwrap();
        let names: Vec<_> = sections.keys().map(String::as_str).collect();
        assert_eq!(names, ["Activation", "firmware", "mqtt", "server_time", "x"]);
        assert_eq!(sections["mqtt"].get(), serde_json::to_string(&mine).unwrap());

        let theirs = "\u{feff}{\"server_time\":{\"timestamp\":5}}".as_bytes();
        let merged: Value = serde_json::from_str(&merge(theirs, &mine, &TIME).unwrap()).unwrap();
        assert_eq!(merged["server_time"], json!({"timestamp": 5}));
    }

    #[test]
    fn what_is_no_json_object_is_not_merged() {
        for theirs in ["", "[]", "null", "\"x\"", "{", "{}x", "<html>", "{\"a\":}", "{\"a\":1"] {
            assert_eq!(merge(theirs.as_bytes(), &section(None), &TIME), None, "{theirs}");
        }
        assert_eq!(merge(b"{\"a\":\"\xff\"}", &section(None), &TIME), None);
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(30_000), "]".repeat(30_000));
        // Whatever becomes of it, it is no stack overflow.
        let _ = merge(deep.as_bytes(), &section(None), &TIME);
    }

    #[test]
    fn an_endpoint_is_a_host_and_perhaps_a_port() {
        for (text, host, port, tls) in [
            ("gw.example.com", "gw.example.com", None, true),
            ("gw:8883", "gw", Some(8883), true),
            ("10.0.0.1:1883", "10.0.0.1", Some(1883), false),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!((endpoint.host.as_str(), endpoint.port, endpoint.is_tls()), (host, port, tls));
            assert_eq!(endpoint.to_string(), text);
        }
        let long = "a".repeat(254);
        for text in [
            "",
            ":1883",
            "mqtt://gw",
            "[::1]:1883",
            "::1",
            "gw:0",
            "gw:65536",
            "gw:+1",
            "gw:",
            "a b",
            "a/b",
            &long,
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(ENDPOINT_ALLOWED), "{text}");
        }
    }

    #[test]
    fn a_group_can_stand_in_a_client_id() {
        for (text, good) in
            [("GID_default", true), ("kids-1.a", true), ("", false), ("a@@@b", false), ("a b", false)]
        {
            assert_eq!(is_group(text), good, "{text}");
        }
        assert!(is_group(&"a".repeat(64)) && !is_group(&"a".repeat(65)));
    }
}
