//! The configuration of the Node.js gateway: the shape of its `config/mqtt.json`, and its `.env`.
//!
//! That gateway reads its values with JavaScript's `||`, so `null`, `0`, `false` and `""` count as absent here too, and it
//! takes no notice of keys it does not know, so they are accepted and reported as unused.

use std::fmt;

use super::error::Problem;
use super::keys::ConfigKey;
use super::value::JsonValue;
use super::value_kind::{MACS_ALLOWED, server_url, servers};
use super::{Config, Mqtt, PublicIp};

/// What devices are told when `PUBLIC_IP` is not set.
const DEFAULT_PUBLIC_IP: &str = "mqtt.xiaozhi.me";

/// The variables that the Node.js gateway and its forks read; a later one of the same key wins.
pub(super) const VARIABLES: [&str; 11] = [
    "MQTT_HOST",
    "MQTT_PORT",
    "UDP_HOST",
    "UDP_PORT",
    "PUBLIC_IP",
    "HTTP_HOST",
    "HTTP_PORT",
    "API_HOST",
    "API_PORT",
    "MQTT_SIGNATURE_KEY",
    "SERVER_SECRET",
];

/// How a configuration of the Node.js gateway was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeConfig {
    /// The variables that came from `.env`; `None` when there is no such file in the working directory.
    pub env_file: Option<Vec<String>>,
}

impl fmt::Display for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let env_file = match &self.env_file {
            None => "no .env in the working directory".to_owned(),
            Some(names) if names.is_empty() => ".env adds nothing".to_owned(),
            Some(names) => format!(".env gives {}", names.join(", ")),
        };
        write!(f, "the Node.js gateway's own shape, used as it is; {env_file}")
    }
}

/// The keys of that file that mean the same here, with their names here.
const SHARED_KEYS: [(&str, &str); 5] = [
    ("max_mqtt_payload_size", "mqtt.max_payload_size"),
    ("mcp_client.capabilities", "mcp.capabilities"),
    ("mcp_client.client_info", "mcp.client_info"),
    ("mcp_client.max_tools_count", "mcp.max_tools_count"),
    ("debug", "debug"),
];

/// Whether the file is in the Node.js gateway's shape: it has keys of that gateway, or its name, and no section of ours.
pub(super) fn is_node_config(root: &JsonValue<'_>, named_node: bool) -> bool {
    let members = root.members().unwrap_or_default();
    let has = |keys: &[&str]| members.iter().any(|(name, _)| keys.contains(&name.as_str()));
    (named_node || has(&["production", "development", "max_mqtt_payload_size", "mcp_client"]))
        && !has(&["mqtt", "udp", "websocket", "logging", "mcp", "api", "gateway"])
}

/// Reads a file in that shape.
pub(super) fn read(root: &JsonValue<'_>, problems: &mut Vec<Problem>) -> Config {
    let mut config = Config { node_config: Some(NodeConfig::default()), ..Config::default() };
    config.udp.public_ip = PublicIp::Host(DEFAULT_PUBLIC_IP.to_owned());
    read_section(root, &mut config, problems);
    // That gateway's usual limit, 8192, is less than a device's own list of tools, and what is longer ends the connection.
    config.mqtt.max_payload_size = config.mqtt.max_payload_size.max(Mqtt::default().max_payload_size);
    config
}

fn read_section(section: &JsonValue<'_>, config: &mut Config, problems: &mut Vec<Problem>) {
    let Ok(members) = section.members().map_err(|problem| problems.push(problem)) else { return };
    let servers = servers(server_url(websocket_url));
    for (_, value) in members.iter().filter(|(_, value)| !value.is_falsy()) {
        match value.path.as_str() {
            "production" | "development" | "mcp_client" => read_section(value, config, problems),
            "production.chat_servers" => {
                servers.read_into(value, &mut config.websocket.production, problems);
            }
            "development.chat_servers" => {
                servers.read_into(value, &mut config.websocket.development, problems);
            }
            "development.mac_addresss" => read_macs(value, config, problems),
            path => match SHARED_KEYS.iter().find(|(name, _)| *name == path) {
                Some((_, ours)) => {
                    ConfigKey::find(ours).into_iter().for_each(|key| (key.read)(value, config, problems));
                }
                None => config.unused_keys.push(path.to_owned()),
            },
        }
    }
}

/// Items that are no MAC address are unused: the file is delivered with a placeholder.
fn read_macs(value: &JsonValue<'_>, config: &mut Config, problems: &mut Vec<Problem>) {
    let Ok(items) = value.items(MACS_ALLOWED).map_err(|problem| problems.push(problem)) else { return };
    for item in items {
        let text: Option<String> = item.deserialize().ok();
        match text.and_then(|text| text.trim().parse().ok()) {
            Some(mac) => config.websocket.development_macs.push(mac),
            None => config.unused_keys.push(item.path),
        }
    }
}

/// That gateway's WebSocket library takes `http://` for `ws://` and `https://` for `wss://`.
fn websocket_url(url: &str) -> String {
    match url.trim().split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => format!("ws://{rest}"),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => format!("wss://{rest}"),
        _ => url.trim().to_owned(),
    }
}
