//! A configuration as the text of `config/gateway.json`.

use std::sync::Arc;

use serde_json::Value;

use super::keys::CONFIG_KEYS;
use super::{Config, Secret};

/// Keys that are written although they hold their defaults: what every operator should see.
const ALWAYS_WRITTEN: [&str; 4] = ["mqtt.port", "udp.port", "udp.public_ip", "websocket.production_servers"];

impl Config {
    /// This configuration as a file in the gateway's own shape: what differs from the defaults, and what every operator
    /// should see. **It holds the secrets.** Reading it gives this configuration again, but for [`Config::unused_keys`],
    /// [`Config::node_config`] and the built-in echo server.
    pub fn to_file_text(&self) -> String {
        let default = Self::default();
        let written = CONFIG_KEYS
            .iter()
            .filter(|key| ALWAYS_WRITTEN.contains(&key.name) || (key.write)(self) != (key.write)(&default));
        file_text(written.map(|key| (key.name, (key.write)(self))).collect())
    }

    /// This configuration in the same shape, with every key, for whoever may not see its secrets: those that are set, and
    /// those in the queries of servers' URLs, are `***`.
    pub fn to_masked_file_text(&self) -> String {
        let mut masked = self.clone();
        for secret in [&mut masked.mqtt.signature_key, &mut masked.websocket.secret, &mut masked.api.token] {
            *secret = secret.as_ref().and_then(|_| Secret::new("***"));
        }
        for key in &mut masked.mqtt.previous_signature_keys {
            *key = Secret("***".into());
        }
        let websocket = &mut masked.websocket;
        let routes = websocket.routes.iter_mut().flat_map(|route| &mut route.servers);
        for server in websocket.production.iter_mut().chain(&mut websocket.development).chain(routes) {
            let url = server.to_string();
            let server = Arc::make_mut(server);
            server.url = url;
            server.token = server.token.as_ref().map(|_| Secret("***".into()));
            if let Some(health) = &mut server.health_url {
                health.url = health.to_string();
            }
        }
        for webhook in &mut masked.webhooks {
            webhook.url.url = webhook.shown_url();
            webhook.secret = webhook.secret.as_ref().and_then(|_| Secret::new("***"));
        }
        if let Some(upstream) = &mut masked.ota.upstream {
            upstream.url = upstream.to_string();
        }
        if let Some(redis) = &mut masked.cluster.redis {
            redis.url = redis.to_string();
        }
        file_text(CONFIG_KEYS.iter().map(|key| (key.name, (key.write)(&masked))).collect())
    }
}

fn file_text(entries: Vec<(&str, Value)>) -> String {
    let mut text = String::new();
    write_object(&entries, 0, &mut text);
    text.push('\n');
    text
}

/// Writes the entries, whose keys are dotted from this depth on, as an object; those of a section stand together.
fn write_object(entries: &[(&str, Value)], depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth + 1);
    out.push('{');
    let section = |key: &str| key.split('.').next().unwrap_or_default().to_owned();
    for (index, group) in entries.chunk_by(|(a, _), (b, _)| section(a) == section(b)).enumerate() {
        let name = section(group[0].0);
        out.push_str(if index == 0 { "\n" } else { ",\n" });
        out.push_str(&format!("{indent}\"{name}\": "));
        let inner: Vec<_> =
            group.iter().filter_map(|(key, value)| Some((key.split_once('.')?.1, value.clone()))).collect();
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
    use serde_json::json;

    use super::*;
    use crate::config::file;

    fn parsed(text: &str) -> Config {
        let mut problems = Vec::new();
        let config = file::parse(text, false, &mut problems);
        assert_eq!(problems, [], "{text}");
        config
    }

    #[test]
    fn a_written_file_parses_to_the_same_config() {
        for text in [
            "{}",
            include_str!("../../config/gateway.json"),
            r#"{"mqtt":{"host":"::1","port":1,"max_connections":2,"max_connections_per_ip":3,"max_payload_size":4,
                "resume_grace_s":0.25,"allow_legacy_ids":true,"signature_key":"a\"\\$ä",
                "allowed_macs":["aa"],"denied_macs":["AA-BB-CC-DD-EE-FF","aa_00"],"previous_signature_keys":["ä,","b"]},
                "udp":{"host":"127.0.0.1","port":5,"public_ip":"gw.example","peer_policy":"strict","downlink_flags":false,
                "speech_lead_ms":60,"downlink_pace":false,"keep_alive_s":2.5,"dscp":0,"first_packet_warn_s":6,"first_packet_alert":false,"coalesce_max_us":7},
                "websocket":{"production_servers":["ws://a/?from=mqtt_gateway",{"url":"wss://b","framing":"raw","insecure":false},
                {"url":"ws://c","framing":"header","on_disconnect":"end","token":"t","send_goodbye":false,"ping":false,
                "health_url":"http://c/h"}],"development_servers":["ws://d"],
                "routes":[{"name":"r","groups":["a*","b"],"macs":["AA-BB","*"],"servers":["ws://e",{"url":"ws://f","framing":"raw"}]}],
                "order":"first",
                "development_mac_addresses":["AA-BB-CC-DD-EE-FF"],"server_secret":"s","insecure":true,"ping_interval_s":7,
                "ping_timeout_s":8,"reconnect":{"initial_ms":9,"max_ms":10,"multiplier":1.5,"give_up_after_s":0},
                "send_goodbye":false,"call_idle_s":11,"max_calls":12,"max_dials":13},
                "logging":{"enabled":false,"level":"warn","format":"json","time":"utc","file_path":"a b.log","max_mb":0,"keep":9},
                "mcp":{"enabled":false,"max_tools_count":14,"capabilities":{"x":[1,{"y":null}]},"client_info":{"name":"n"}},
                "api":{"enabled":false,"host":"::1","port":15,"tls":{"enabled":true,"cert_file":"c","key_file":"k"},"token":"a-token-long-enough","command_timeout_s":16,"metrics_need_token":false,"issue_credentials":false,"trusted_proxies":["127.0.0.0/8","::1/128"]},
                "ota":{"enabled":true,"host":"::1","port":17,"allow":["10.0.0.0/8"],"macs":["aa"],"endpoint":"gw:1883","keepalive":18,
                "group":"GID_x","upstream":"https://console/ota/?k=v"},
                "cluster":{"redis":"redis://u:p@r:1/2","name":"gw-1","prefix":"x","ca_file":"ca.pem"},
                "webhooks":[{"url":"https://a/hook?k=v","secret":"s","events":["call.*","server.failed"]},{"url":"http://b/"}],
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
            r#"{"mqtt":{"signature_key":"hunter2","previous_signature_keys":["hunter2","hunter2"]},"api":{"token":"hunter2-hunter2-hunter2"},
                "websocket":{"server_secret":"hunter2","production_servers":["wss://a:99/b?token=hunter2","ws://c"],
                "development_servers":[{"url":"ws://a/?hunter2","framing":"raw","token":"hunter2","health_url":"https://h/?key=hunter2"}],
                "routes":[{"macs":["*"],"servers":["ws://r/?key=hunter2"]}]},
                "ota":{"upstream":"http://console/ota/?key=hunter2"},
                "cluster":{"redis":"redis://u:hunter2@r"},
                "webhooks":[{"url":"https://a/?key=hunter2","secret":"hunter2"}]}"#,
        );
        let shown = config.to_masked_file_text();
        assert!(!shown.contains("hunter2"), "{shown}");
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(shown["mqtt"]["signature_key"], "***");
        assert_eq!(shown["mqtt"]["previous_signature_keys"], json!(["***", "***"]));
        assert_eq!(shown["websocket"]["production_servers"], json!(["wss://a:99/b?token=***", "ws://c/"]));
        assert_eq!(shown["webhooks"], json!([{ "url": "https://a/***", "secret": "***" }]));
        assert_eq!(shown["ota"]["upstream"], "http://console/ota/?key=***");
        assert_eq!(shown["cluster"]["redis"], "redis://u:***@r:6379/0");
        let health_url = "https://h/?key=***";
        let server =
            json!({ "url": "ws://a/?***", "framing": "raw", "token": "***", "health_url": health_url });
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
