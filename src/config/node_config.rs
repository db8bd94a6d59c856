//! The configuration of the Node.js gateway, taken as it is: the shape of its `config/mqtt.json`, and its `.env`.
//!
//! That gateway reads its values with JavaScript's `||`, so `null`, `0`, `false` and `""` count as absent here too, and it
//! takes no notice of keys it does not know, so they are accepted and said to be unused.

use std::fmt;
use std::sync::Arc;

use super::error::Problem;
use super::file::{MQTT_MAX_REMAINING_LENGTH, SERVERS_ALLOWED, parse_url};
use super::value::{self, JsonValue, Section, boolean, text, whole_number};
use super::{ChatServerConfig, Config, PublicIp};

/// What devices are told when `PUBLIC_IP` is not set.
pub(super) const DEFAULT_PUBLIC_IP: &str = "mqtt.xiaozhi.me";

/// The variables that the Node.js gateway reads.
pub(super) const VARIABLES: [&str; 6] =
    ["MQTT_PORT", "UDP_PORT", "PUBLIC_IP", "API_PORT", "MQTT_SIGNATURE_KEY", "SERVER_SECRET"];

/// How a configuration of the Node.js gateway was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeConfig {
    /// The variables that came from `.env`; `None` when there is no such file in the working directory.
    pub env_file: Option<Vec<&'static str>>,
}

impl fmt::Display for NodeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the Node.js gateway's own shape, used as it is; ")?;
        match &self.env_file {
            None => f.write_str("no .env in the working directory"),
            Some(names) if names.is_empty() => f.write_str(".env adds nothing"),
            Some(names) => write!(f, ".env gives {}", names.join(", ")),
        }
    }
}

/// Whether the file is in the Node.js gateway's shape: it has keys of its own, and none of ours.
pub(super) fn is_node_config(root: &Section<'_>) -> bool {
    let has = |keys: &[&str]| keys.iter().any(|key| root.has(key));
    has(&["production", "development", "max_mqtt_payload_size", "mcp_client"])
        && !has(&["mqtt", "udp", "websocket", "logging", "mcp", "api", "gateway"])
}

/// Reads a file in that shape.
pub(super) fn read(mut root: Section<'_>, problems: &mut Vec<Problem>) -> Config {
    let mut config = Config { node_config: Some(NodeConfig::default()), ..Config::default() };
    config.udp.public_ip = PublicIp::Host(DEFAULT_PUBLIC_IP.to_owned());
    let mut unused = Vec::new();
    let websocket = &mut config.websocket;
    root.remove_falsy();
    root.nested_lenient("production", &mut unused, |section, _| {
        section.set_list("chat_servers", SERVERS_ALLOWED, &mut websocket.production, server);
    });
    root.nested_lenient("development", &mut unused, |section, unused| {
        section.set_list("chat_servers", SERVERS_ALLOWED, &mut websocket.development, server);
        let mut listed = Vec::new();
        section.set_list("mac_addresss", "a list of MAC addresses", &mut listed, |item| {
            let mac = text(item).ok().and_then(|text| text.trim().parse().ok());
            if mac.is_none() {
                unused.push(item.display_path().to_owned());
            }
            Ok(mac)
        });
        websocket.development_macs = listed.into_iter().flatten().collect();
    });
    root.set(
        "max_mqtt_payload_size",
        &mut config.mqtt.max_payload_size,
        whole_number(1..=MQTT_MAX_REMAINING_LENGTH),
    );
    root.nested_lenient("mcp_client", &mut unused, |section, _| {
        section.set("capabilities", &mut config.mcp.capabilities, value::object);
        section.set("client_info", &mut config.mcp.client_info, value::object);
        section.set("max_tools_count", &mut config.mcp.max_tools_count, whole_number(1..=10_000));
    });
    root.set("debug", &mut config.debug, boolean);
    problems.extend(root.finish_lenient(&mut unused));
    config.unused_keys = unused;
    config
}

/// That gateway's WebSocket library takes `http://` for `ws://` and `https://` for `wss://`.
fn server(value: &JsonValue<'_>) -> Result<Arc<ChatServerConfig>, Problem> {
    let text = text(value).map_err(|_| value.invalid("a ws:// or wss:// URL"))?;
    let text = text.trim();
    let url = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => format!("ws://{rest}"),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => format!("wss://{rest}"),
        _ => text.to_owned(),
    };
    parse_url(value, &url).map(Arc::new)
}
