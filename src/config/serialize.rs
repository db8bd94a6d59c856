//! A configuration as the text of `config/gateway.json`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{ChatServerConfig, Config, Framing, PeerPolicy, Secret};

/// Keys that are written although they hold their defaults: what every operator should see.
const ALWAYS_WRITTEN: [&str; 4] = ["mqtt.port", "udp.port", "udp.public_ip", "websocket.production_servers"];

impl Config {
    /// This configuration as a file in the gateway's own shape: what differs from the defaults, and what every operator
    /// should see. **It holds the secrets.** Reading it gives this configuration again, but for [`Config::unused_keys`],
    /// [`Config::node_config`] and the built-in echo server.
    pub fn to_file_text(&self) -> String {
        let mut entries = entries(self);
        let defaults = self::entries(&Self::default());
        entries.retain(|(key, value)| {
            ALWAYS_WRITTEN.contains(key)
                || !defaults.iter().any(|(name, default)| name == key && default == value)
        });
        let entries: Vec<_> = entries.iter().map(|(key, value)| (*key, value)).collect();
        let mut text = String::new();
        write_object(&entries, 0, &mut text);
        text.push('\n');
        text
    }

    /// This configuration in the same shape, with every key, for whoever may not see its secrets: those that are set, and
    /// the queries of servers' URLs, are `***`.
    pub fn to_masked_file_text(&self) -> String {
        let mut masked = self.clone();
        for secret in [&mut masked.mqtt.signature_key, &mut masked.websocket.secret, &mut masked.api.token] {
            *secret = secret.as_ref().and_then(|secret| Secret::new(&secret.to_string()));
        }
        for list in [&mut masked.websocket.production, &mut masked.websocket.development] {
            for server in list {
                let query = if server.path.contains('?') { "?***" } else { "" };
                let url = format!("{server}{query}");
                Arc::make_mut(server).url = url;
            }
        }
        let entries = entries(&masked);
        let entries: Vec<_> = entries.iter().map(|(key, value)| (*key, value)).collect();
        let mut text = String::new();
        write_object(&entries, 0, &mut text);
        text.push('\n');
        text
    }
}

/// The default of a dotted key, as it stands in the documented file; null for what is no key.
pub(super) fn default_value(key: &str) -> Value {
    let mut entries = entries(&Config::default()).into_iter();
    entries.find(|(name, _)| *name == key).map_or(Value::Null, |(_, value)| value)
}

/// Every key of the file, dotted, in the order of the documented file, with its value.
fn entries(config: &Config) -> Vec<(&'static str, Value)> {
    let Config { mqtt, udp, websocket, logging, mcp, api, workers, debug, unused_keys: _, node_config: _ } =
        config;
    let reconnect = &websocket.reconnect;
    vec![
        ("mqtt.host", json!(mqtt.host)),
        ("mqtt.port", json!(mqtt.port)),
        ("mqtt.plain", json!(mqtt.plain)),
        ("mqtt.tls.port", json!(mqtt.tls.port)),
        ("mqtt.tls.cert_file", path(mqtt.tls.cert_file.as_ref())),
        ("mqtt.tls.key_file", path(mqtt.tls.key_file.as_ref())),
        ("mqtt.tls.max_handshakes", json!(mqtt.tls.max_handshakes)),
        (
            "mqtt.proxy_protocol_from",
            mqtt.proxy_protocol_from.iter().map(|network| json!(network.to_string())).collect(),
        ),
        ("mqtt.max_connections", json!(mqtt.max_connections)),
        ("mqtt.max_connections_per_ip", json!(mqtt.max_connections_per_ip)),
        ("mqtt.max_payload_size", json!(mqtt.max_payload_size)),
        ("mqtt.resume_grace_s", seconds(mqtt.resume_grace)),
        ("mqtt.allow_legacy_ids", json!(mqtt.allow_legacy_ids)),
        ("mqtt.signature_key", secret(mqtt.signature_key.as_ref())),
        ("udp.host", json!(udp.host)),
        ("udp.port", json!(udp.port)),
        ("udp.public_ip", json!(udp.public_ip.to_string())),
        (
            "udp.peer_policy",
            json!(match udp.peer_policy {
                PeerPolicy::Adaptive => "adaptive",
                PeerPolicy::Strict => "strict",
            }),
        ),
        ("udp.downlink_flags", json!(udp.downlink_flags)),
        ("udp.first_packet_warn_s", seconds(udp.first_packet_warn)),
        ("udp.first_packet_alert", json!(udp.first_packet_alert)),
        ("udp.coalesce_max_us", json!(udp.coalesce_max.as_micros() as u64)),
        ("websocket.production_servers", servers(&websocket.production)),
        ("websocket.development_servers", servers(&websocket.development)),
        (
            "websocket.development_mac_addresses",
            websocket.development_macs.iter().map(|mac| json!(mac.to_string())).collect(),
        ),
        ("websocket.server_secret", secret(websocket.secret.as_ref())),
        ("websocket.ca_file", path(websocket.ca_file.as_ref())),
        ("websocket.insecure", json!(websocket.insecure)),
        ("websocket.ping_interval_s", seconds(websocket.ping_interval)),
        ("websocket.ping_timeout_s", seconds(websocket.ping_timeout)),
        ("websocket.reconnect.initial_ms", json!(reconnect.initial.as_millis() as u64)),
        ("websocket.reconnect.max_ms", json!(reconnect.max.as_millis() as u64)),
        ("websocket.reconnect.multiplier", float(reconnect.multiplier)),
        ("websocket.reconnect.give_up_after_s", seconds(reconnect.give_up_after)),
        ("websocket.send_goodbye", json!(websocket.send_goodbye)),
        ("websocket.call_idle_s", seconds(websocket.call_idle)),
        ("websocket.max_calls", json!(websocket.max_calls)),
        ("websocket.max_dials", json!(websocket.max_dials)),
        ("logging.enabled", json!(logging.enabled)),
        ("logging.level", json!(logging.level.as_str().to_lowercase())),
        ("logging.file_path", path(logging.file.as_ref())),
        ("mcp.enabled", json!(mcp.enabled)),
        ("mcp.max_tools_count", json!(mcp.max_tools_count)),
        ("mcp.capabilities", object(&mcp.capabilities)),
        ("mcp.client_info", object(&mcp.client_info)),
        ("api.enabled", json!(api.enabled)),
        ("api.host", api.host.map_or(json!("auto"), |host| json!(host))),
        ("api.port", json!(api.port)),
        ("api.token", secret(api.token.as_ref())),
        ("api.metrics_need_token", json!(api.metrics_need_token)),
        ("workers", json!(workers)),
        ("debug", json!(debug)),
    ]
}

fn seconds(duration: Duration) -> Value {
    float(duration.as_secs_f64())
}

/// Whole numbers without a fraction, as people write them.
fn float(number: f64) -> Value {
    if number.fract() == 0.0 && (0.0..1e9).contains(&number) { json!(number as u64) } else { json!(number) }
}

fn secret(secret: Option<&Secret>) -> Value {
    json!(secret.map_or("", |secret| &secret.0))
}

fn path(path: Option<&PathBuf>) -> Value {
    json!(path.map(|path| path.to_string_lossy()).unwrap_or_default())
}

/// The text was made from an object.
fn object(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| json!({}))
}

fn servers(servers: &[Arc<ChatServerConfig>]) -> Value {
    servers.iter().map(|server| self::server(server)).collect()
}

fn server(server: &ChatServerConfig) -> Value {
    let mut object = json!({ "url": server.url });
    match server.framing {
        Framing::Auto => {}
        Framing::Header => object["framing"] = json!("header"),
        Framing::Raw => object["framing"] = json!("raw"),
    }
    if let Some(insecure) = server.insecure {
        object["insecure"] = json!(insecure);
    }
    if let Some(ca_file) = &server.ca_file {
        object["ca_file"] = path(Some(ca_file));
    }
    if object.as_object().is_some_and(|object| object.len() == 1) { json!(server.url) } else { object }
}

/// Writes the entries, whose keys are dotted from this depth on, as an object; those of a section stand together.
fn write_object(entries: &[(&str, &Value)], depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth + 1);
    out.push('{');
    let section = |key: &str| key.split('.').next().unwrap_or_default().to_owned();
    for (index, group) in entries.chunk_by(|(a, _), (b, _)| section(a) == section(b)).enumerate() {
        let name = section(group[0].0);
        out.push_str(if index == 0 { "\n" } else { ",\n" });
        out.push_str(&format!("{indent}\"{name}\": "));
        let inner: Vec<_> =
            group.iter().filter_map(|(key, value)| Some((key.split_once('.')?.1, *value))).collect();
        if inner.is_empty() {
            // A JSON value displays without an error.
            out.push_str(&format!("{:#}", group[0].1).replace('\n', &format!("\n{indent}")));
        } else {
            write_object(&inner, depth + 1, out);
        }
    }
    out.push_str(&format!("\n{}}}", "  ".repeat(depth)));
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::diff::CONFIG_KEYS;
    use crate::config::file;

    fn parsed(text: &str) -> Config {
        let mut problems = Vec::new();
        let config = file::parse(text, &mut problems);
        assert_eq!(problems, [], "{text}");
        config
    }

    #[test]
    fn every_key_is_serialized() {
        let mut known: Vec<_> = entries(&Config::default()).into_iter().map(|(key, _)| key).collect();
        let mut all: Vec<_> = CONFIG_KEYS.iter().map(|key| key.name).collect();
        known.sort_unstable();
        all.sort_unstable();
        assert_eq!(known, all);
    }

    #[test]
    fn a_written_file_parses_to_the_same_config() {
        for text in [
            "{}",
            include_str!("../../config/gateway.json"),
            r#"{"mqtt":{"host":"::1","port":1,"max_connections":2,"max_connections_per_ip":3,"max_payload_size":4,
                "resume_grace_s":0.25,"allow_legacy_ids":true,"signature_key":"a\"\\$ä"},
                "udp":{"host":"127.0.0.1","port":5,"public_ip":"gw.example","peer_policy":"strict","downlink_flags":false,
                "first_packet_warn_s":6,"first_packet_alert":false,"coalesce_max_us":7},
                "websocket":{"production_servers":["ws://a/?from=mqtt_gateway",{"url":"wss://b","framing":"raw","insecure":false},
                {"url":"ws://c","framing":"header"}],"development_servers":["ws://d"],
                "development_mac_addresses":["AA-BB-CC-DD-EE-FF"],"server_secret":"s","insecure":true,"ping_interval_s":7,
                "ping_timeout_s":8,"reconnect":{"initial_ms":9,"max_ms":10,"multiplier":1.5,"give_up_after_s":0},
                "send_goodbye":false,"call_idle_s":11,"max_calls":12,"max_dials":13},
                "logging":{"enabled":false,"level":"warn","file_path":"a b.log"},
                "mcp":{"enabled":false,"max_tools_count":14,"capabilities":{"x":[1,{"y":null}]},"client_info":{"name":"n"}},
                "api":{"enabled":false,"host":"::1","port":15,"token":"a-token-long-enough","metrics_need_token":false},
                "debug":true}"#,
            r#"{"production":{"chat_servers":["ws://a/"]},"development":{"chat_servers":["ws://b"],
                "mac_addresss":["aa:bb:cc:dd:ee:ff"]},"max_mqtt_payload_size":8192,"debug":true,
                "mcp_client":{"capabilities":{"a":{}},"client_info":{"name":"x"},"max_tools_count":128}}"#,
        ] {
            let config = parsed(text);
            let written = config.to_file_text();
            let again = parsed(&written);
            assert_eq!(again, Config { node_config: None, ..config }, "{written}");
        }
    }

    #[test]
    fn a_number_with_many_digits_keeps_every_digit() {
        let digits = "14444444444444444444444444444444444444444444444444444444444444444444444444444";
        let config = parsed(&format!(r#"{{"mcp":{{"capabilities":{{"a":{digits}}}}}}}"#));
        assert_eq!(parsed(&config.to_file_text()), config);
    }

    #[test]
    fn the_masked_file_holds_every_key_and_no_secret() {
        assert_eq!(serde_json::from_str::<Value>(&Config::default().to_masked_file_text()).unwrap(), {
            let mut sample: Value = serde_json::from_str(include_str!("../../config/gateway.json")).unwrap();
            sample.as_object_mut().unwrap().remove("$schema").unwrap();
            sample
        });
        let config = parsed(
            r#"{"mqtt":{"signature_key":"hunter2"},"api":{"token":"hunter2-hunter2-hunter2"},
                "websocket":{"server_secret":"hunter2","production_servers":["wss://a:99/b?token=hunter2","ws://c"],
                "development_servers":[{"url":"ws://a/?hunter2","framing":"raw"}]}}"#,
        );
        let shown = config.to_masked_file_text();
        assert!(!shown.contains("hunter2"), "{shown}");
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown["mqtt"]["signature_key"], "***");
        assert_eq!(shown["websocket"]["production_servers"], json!(["wss://a:99/b?***", "ws://c/"]));
        let server = json!({ "url": "ws://a/?***", "framing": "raw" });
        assert_eq!(shown["websocket"]["development_servers"][0], server);
    }

    #[test]
    fn only_values_that_differ_from_the_defaults_are_written() {
        let config =
            parsed(r#"{"production":{"chat_servers":["ws://a/"]},"mcp_client":{"max_tools_count":64}}"#);
        let expected = r#"{
  "mqtt": {
    "port": 1883
  },
  "udp": {
    "port": 8884,
    "public_ip": "mqtt.xiaozhi.me"
  },
  "websocket": {
    "production_servers": [
      "ws://a/"
    ]
  },
  "mcp": {
    "max_tools_count": 64
  }
}
"#;
        assert_eq!(config.to_file_text(), expected);
    }
}
