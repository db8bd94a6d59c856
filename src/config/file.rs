//! The configuration file: which keys it may hold, and what each may be.

use std::sync::Arc;

use super::error::Problem;
use super::node_config;
use super::value::{
    self, JsonValue, Section, boolean, ip, level, micros, millis, number, path, port, seconds, secret, text,
    whole_number,
};
use super::{Api, ChatServerConfig, Config, Framing, Logging, Mcp, Mqtt, PeerPolicy, Udp, WebSocket};

const SECONDS_PER_DAY: u32 = 86_400;
const MAX_COUNT: usize = 10_000_000;

/// The longest remaining length four bytes can tell (MQTT 3.1.1 section 2.2.3).
pub(super) const MQTT_MAX_REMAINING_LENGTH: usize = 268_435_455;

/// Reads the text of a configuration file, in this gateway's own shape or in that of the Node.js gateway. What it leaves
/// out keeps its default, and so does what is refused: that goes to `problems`.
pub(super) fn parse(text: &str, problems: &mut Vec<Problem>) -> Config {
    // Some editors begin a file with a byte order mark, which JSON does not allow.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match JsonValue::root(text).and_then(|root| root.section()) {
        Ok(root) if node_config::is_node_config(&root) => node_config::read(root, problems),
        Ok(root) => {
            let mut config = Config::default();
            read_into(root, &mut config, problems);
            config
        }
        Err(problem) => {
            problems.push(problem);
            Config::default()
        }
    }
}

/// As [`parse`] for a text in this gateway's own shape: what it leaves out keeps its value in `config`.
pub(super) fn parse_into(text: &str, config: &mut Config, problems: &mut Vec<Problem>) {
    match JsonValue::root(text).and_then(|root| root.section()) {
        Ok(root) => read_into(root, config, problems),
        Err(problem) => problems.push(problem),
    }
}

fn read_into(mut root: Section<'_>, config: &mut Config, problems: &mut Vec<Problem>) {
    root.take("$schema");
    root.nested("mqtt", |section| mqtt(section, &mut config.mqtt));
    root.nested("udp", |section| udp(section, &mut config.udp));
    root.nested("websocket", |section| websocket(section, &mut config.websocket));
    root.nested("logging", |section| logging(section, &mut config.logging));
    root.nested("mcp", |section| mcp(section, &mut config.mcp));
    root.nested("api", |section| api(section, &mut config.api));
    root.set("workers", &mut config.workers, whole_number(1..=64));
    root.set("debug", &mut config.debug, boolean);
    root.nested("gateway", |section| {
        for (key, dotted) in [("device_id", "gateway.device_id"), ("client_id", "gateway.client_id")] {
            config.unused_keys.extend(section.take(key).map(|_| dotted.to_owned()));
        }
    });
    problems.extend(root.finish());
}

fn mqtt(section: &mut Section<'_>, mqtt: &mut Mqtt) {
    section.set("host", &mut mqtt.host, ip);
    section.set("port", &mut mqtt.port, port);
    section.set("plain", &mut mqtt.plain, boolean);
    section.nested("tls", |section| {
        let tls = &mut mqtt.tls;
        section.set("port", &mut tls.port, port);
        section.set("cert_file", &mut tls.cert_file, path);
        section.set("key_file", &mut tls.key_file, path);
        section.set("max_handshakes", &mut tls.max_handshakes, whole_number(1..=MAX_COUNT));
    });
    let networks = &mut mqtt.proxy_protocol_from;
    section.set_list("proxy_protocol_from", "a list of networks", networks, value::network);
    section.set("max_connections", &mut mqtt.max_connections, whole_number(1..=MAX_COUNT));
    section.set("max_connections_per_ip", &mut mqtt.max_connections_per_ip, whole_number(0..=MAX_COUNT));
    section.set("max_payload_size", &mut mqtt.max_payload_size, whole_number(1..=MQTT_MAX_REMAINING_LENGTH));
    section.set("resume_grace_s", &mut mqtt.resume_grace, seconds(0..=SECONDS_PER_DAY));
    section.set("allow_legacy_ids", &mut mqtt.allow_legacy_ids, boolean);
    section.set("signature_key", &mut mqtt.signature_key, secret);
}

fn udp(section: &mut Section<'_>, udp: &mut Udp) {
    section.set("host", &mut udp.host, ip);
    section.set("port", &mut udp.port, port);
    section.set("public_ip", &mut udp.public_ip, value::public_ip);
    let policies = [("adaptive", PeerPolicy::Adaptive), ("strict", PeerPolicy::Strict)];
    section.set("peer_policy", &mut udp.peer_policy, value::one_of(&policies));
    section.set("downlink_flags", &mut udp.downlink_flags, boolean);
    section.set("first_packet_warn_s", &mut udp.first_packet_warn, seconds(0..=SECONDS_PER_DAY));
    section.set("first_packet_alert", &mut udp.first_packet_alert, boolean);
    section.set("coalesce_max_us", &mut udp.coalesce_max, micros(0..=10_000));
}

fn websocket(section: &mut Section<'_>, websocket: &mut WebSocket) {
    let server = |value: &JsonValue<'_>| server(value).map(Arc::new);
    section.set_list("production_servers", SERVERS_ALLOWED, &mut websocket.production, server);
    section.set_list("development_servers", SERVERS_ALLOWED, &mut websocket.development, server);
    let macs = &mut websocket.development_macs;
    section.set_list("development_mac_addresses", "a list of MAC addresses", macs, |item| {
        let allowed = "a MAC address such as \"aa:bb:cc:dd:ee:ff\"";
        text(item)?.parse().map_err(|_| item.invalid(allowed))
    });
    section.set("server_secret", &mut websocket.secret, secret);
    section.set("ca_file", &mut websocket.ca_file, path);
    section.set("insecure", &mut websocket.insecure, boolean);
    section.set("ping_interval_s", &mut websocket.ping_interval, seconds(0..=SECONDS_PER_DAY));
    section.set("ping_timeout_s", &mut websocket.ping_timeout, seconds(1..=SECONDS_PER_DAY));
    section.nested("reconnect", |section| {
        let reconnect = &mut websocket.reconnect;
        section.set("initial_ms", &mut reconnect.initial, millis(1..=600_000));
        section.set("max_ms", &mut reconnect.max, millis(1..=3_600_000));
        section.set("multiplier", &mut reconnect.multiplier, number(1..=100));
        section.set("give_up_after_s", &mut reconnect.give_up_after, seconds(0..=SECONDS_PER_DAY));
    });
    section.set("send_goodbye", &mut websocket.send_goodbye, boolean);
    section.set("call_idle_s", &mut websocket.call_idle, seconds(0..=SECONDS_PER_DAY));
    section.set("max_calls", &mut websocket.max_calls, whole_number(0..=MAX_COUNT));
    section.set("max_dials", &mut websocket.max_dials, whole_number(1..=MAX_COUNT));
}

fn logging(section: &mut Section<'_>, logging: &mut Logging) {
    section.set("enabled", &mut logging.enabled, boolean);
    section.set("level", &mut logging.level, level);
    section.set("file_path", &mut logging.file, path);
}

fn mcp(section: &mut Section<'_>, mcp: &mut Mcp) {
    section.set("enabled", &mut mcp.enabled, boolean);
    section.set("max_tools_count", &mut mcp.max_tools_count, whole_number(1..=10_000));
    section.set("capabilities", &mut mcp.capabilities, value::object);
    section.set("client_info", &mut mcp.client_info, value::object);
}

pub(super) const SERVERS_ALLOWED: &str = "a list of chat servers";

fn api(section: &mut Section<'_>, api: &mut Api) {
    section.set("enabled", &mut api.enabled, boolean);
    section.set("host", &mut api.host, value::api_host);
    section.set("port", &mut api.port, port);
    section.set("token", &mut api.token, value::token);
    section.set("metrics_need_token", &mut api.metrics_need_token, boolean);
}

/// A server is given as its URL, or as an object with the URL and settings of its own.
fn server(value: &JsonValue<'_>) -> Result<ChatServerConfig, Problem> {
    if !value.is_object() {
        return url(value);
    }
    let mut section = value.section()?;
    let mut server = match section.take("url") {
        Some(value) => url(&value)?,
        None => return Err(value.invalid("an object with a \"url\"")),
    };
    let framings = [("auto", Framing::Auto), ("header", Framing::Header), ("raw", Framing::Raw)];
    section.set("framing", &mut server.framing, value::one_of(&framings));
    section.set("insecure", &mut server.insecure, |value| boolean(value).map(Some));
    section.set("ca_file", &mut server.ca_file, path);
    section.finish().into_iter().next().map_or(Ok(server), Err)
}

fn url(value: &JsonValue<'_>) -> Result<ChatServerConfig, Problem> {
    let text = text(value).map_err(|_| value.invalid("a ws:// or wss:// URL"))?;
    parse_url(value, &text)
}

/// The server of the URL `text`, which stands in `value`.
pub(super) fn parse_url(value: &JsonValue<'_>, text: &str) -> Result<ChatServerConfig, Problem> {
    text.parse().map_err(|error: super::UrlError| {
        // A password before the host, or a token in the query, belongs in no message.
        if text.contains(['@', '?']) {
            value.invalid_redacted("a URL with parts that are not shown", error.to_string())
        } else {
            value.invalid(error.to_string())
        }
    })
}
