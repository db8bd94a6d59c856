//! The table of the file's keys: reading, writing, comparing and reloading a configuration all go by it.

use serde_json::Value;

use super::Config;
use super::error::Problem;
use super::value::JsonValue;
use super::value_kind::{
    api_host, boolean, endpoint, gateway_name, group, http_url, ip, key_prefix, level, log_format, log_time,
    mac_prefixes, macs, micros, millis, networks, number, object, path, peer_policy, port, public_ip,
    redis_url, routes, seconds, secret, secrets, server, server_order, servers, token, webhooks,
    whole_number,
};

const DAY: u32 = 86_400;
const MAX_COUNT: usize = 10_000_000;
const MAX_HELLOS: u32 = 1_000;

/// The longest remaining length four bytes can tell (MQTT 3.1.1 section 2.2.3).
const MQTT_MAX_REMAINING_LENGTH: usize = 268_435_455;

/// A key of the file.
pub(super) struct ConfigKey {
    /// Dotted, from the top of the file.
    pub(super) name: &'static str,
    /// Whether a new value is in force only after a restart.
    pub(super) needs_restart: bool,
    /// Reads the value into the configuration, which keeps what it has when the value is refused.
    pub(super) read: fn(&JsonValue<'_>, &mut Config, &mut Vec<Problem>),
    /// The value as it stands in the file.
    pub(super) write: fn(&Config) -> Value,
    pub(super) differs: fn(&Config, &Config) -> bool,
    /// Copies the value from the second configuration to the first.
    pub(super) copy: fn(&mut Config, &Config),
}

impl ConfigKey {
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        CONFIG_KEYS.iter().find(|key| key.name == name)
    }

    /// Whether its value is a secret.
    pub(super) fn is_secret(&self) -> bool {
        SECRET_KEYS.contains(&self.name)
    }
}

const SECRET_KEYS: [&str; 5] = [
    "mqtt.signature_key",
    "mqtt.previous_signature_keys",
    "websocket.server_secret",
    "api.token",
    "cluster.redis",
];

macro_rules! keys {
    ($($name:literal $when:ident $($field:ident).+: $kind:expr;)*) => {
        [$(ConfigKey {
            name: $name,
            needs_restart: keys!($when),
            read: |value, config, problems| ($kind).read_into(value, &mut config.$($field).+, problems),
            write: |config| ($kind).write(&config.$($field).+),
            differs: |one, other| one.$($field).+ != other.$($field).+,
            copy: |to, from| to.$($field).+.clone_from(&from.$($field).+),
        }),*]
    };
    (live) => { false };
    (restart) => { true };
}

/// Every key, in the order of the documented file: its name, when a new value is in force, where the value is kept, and
/// what it may be.
pub(super) static CONFIG_KEYS: [ConfigKey; 91] = keys! {
    "mqtt.host" restart mqtt.host: ip();
    "mqtt.port" restart mqtt.port: port();
    "mqtt.plain" restart mqtt.plain: boolean();
    "mqtt.tls.port" live mqtt.tls.port: port();
    "mqtt.tls.cert_file" live mqtt.tls.cert_file: path();
    "mqtt.tls.key_file" live mqtt.tls.key_file: path();
    "mqtt.tls.max_handshakes" live mqtt.tls.max_handshakes: whole_number(1..=MAX_COUNT);
    "mqtt.proxy_protocol_from" live mqtt.proxy_protocol_from: networks();
    "mqtt.max_connections" live mqtt.max_connections: whole_number(1..=MAX_COUNT);
    "mqtt.max_connections_per_ip" live mqtt.max_connections_per_ip: whole_number(0..=MAX_COUNT);
    "mqtt.max_payload_size" live mqtt.max_payload_size: whole_number(1..=MQTT_MAX_REMAINING_LENGTH);
    "mqtt.hello_limit" live mqtt.hello_limit: whole_number(0..=MAX_HELLOS);
    "mqtt.resume_grace_s" live mqtt.resume_grace: seconds(0..=DAY);
    "mqtt.allow_legacy_ids" live mqtt.allow_legacy_ids: boolean();
    "mqtt.allowed_macs" live mqtt.allowed_macs: mac_prefixes();
    "mqtt.denied_macs" live mqtt.denied_macs: mac_prefixes();
    "mqtt.signature_key" live mqtt.signature_key: secret();
    "mqtt.previous_signature_keys" live mqtt.previous_signature_keys: secrets();
    "udp.host" restart udp.host: ip();
    "udp.port" restart udp.port: port();
    "udp.public_ip" restart udp.public_ip: public_ip();
    "udp.peer_policy" live udp.peer_policy: peer_policy();
    "udp.downlink_flags" live udp.downlink_flags: boolean();
    "udp.speech_lead_ms" live udp.speech_lead: millis(0..=1_000);
    "udp.downlink_pace" live udp.downlink_pace: boolean();
    "udp.keep_alive_s" live udp.keep_alive: seconds(0..=DAY);
    "udp.dscp" restart udp.dscp: whole_number(0..=63);
    "udp.first_packet_warn_s" live udp.first_packet_warn: seconds(0..=DAY);
    "udp.first_packet_alert" live udp.first_packet_alert: boolean();
    "udp.coalesce_max_us" live udp.coalesce_max: micros(0..=10_000);
    "websocket.production_servers" live websocket.production: servers(server());
    "websocket.development_servers" live websocket.development: servers(server());
    "websocket.development_mac_addresses" live websocket.development_macs: macs();
    "websocket.routes" live websocket.routes: routes();
    "websocket.order" live websocket.order: server_order();
    "websocket.server_secret" live websocket.secret: secret();
    "websocket.ca_file" live websocket.ca_file: path();
    "websocket.insecure" live websocket.insecure: boolean();
    "websocket.ping_interval_s" live websocket.ping_interval: seconds(0..=DAY);
    "websocket.ping_timeout_s" live websocket.ping_timeout: seconds(1..=DAY);
    "websocket.reconnect.initial_ms" live websocket.reconnect.initial: millis(1..=600_000);
    "websocket.reconnect.max_ms" live websocket.reconnect.max: millis(1..=3_600_000);
    "websocket.reconnect.multiplier" live websocket.reconnect.multiplier: number(1..=100);
    "websocket.reconnect.give_up_after_s" live websocket.reconnect.give_up_after: seconds(0..=DAY);
    "websocket.send_goodbye" live websocket.send_goodbye: boolean();
    "websocket.call_idle_s" live websocket.call_idle: seconds(0..=DAY);
    "websocket.max_calls" live websocket.max_calls: whole_number(0..=MAX_COUNT);
    "websocket.max_dials" live websocket.max_dials: whole_number(1..=MAX_COUNT);
    "logging.enabled" live logging.enabled: boolean();
    "logging.level" live logging.level: level();
    "logging.format" live logging.format: log_format();
    "logging.time" live logging.time: log_time();
    "logging.file_path" restart logging.file: path();
    "logging.max_mb" live logging.max_mb: whole_number(0..=1_000_000);
    "logging.keep" live logging.keep: whole_number(1..=1_000);
    "history.calls" restart history.calls: whole_number(0..=1_000_000);
    "history.file" restart history.file: path();
    "history.max_mb" restart history.max_mb: whole_number(1..=1_000_000);
    "history.days" restart history.days: whole_number(1..=3_650);
    "history.mask_addresses" live history.mask_addresses: boolean();
    "mcp.enabled" live mcp.enabled: boolean();
    "mcp.max_tools_count" live mcp.max_tools_count: whole_number(1..=10_000);
    "mcp.capabilities" live mcp.capabilities: object();
    "mcp.client_info" live mcp.client_info: object();
    "api.enabled" restart api.enabled: boolean();
    "api.host" restart api.host: api_host();
    "api.port" restart api.port: port();
    "api.tls.enabled" live api.tls.enabled: boolean();
    "api.tls.cert_file" live api.tls.cert_file: path();
    "api.tls.key_file" live api.tls.key_file: path();
    "api.token" live api.token: token();
    "api.command_timeout_s" live api.command_timeout: seconds(1..=300);
    "api.metrics_need_token" live api.metrics_need_token: boolean();
    "api.issue_credentials" live api.issue_credentials: boolean();
    "api.trusted_proxies" live api.trusted_proxies: networks();
    "ota.enabled" restart ota.enabled: boolean();
    "ota.host" restart ota.host: ip();
    "ota.port" restart ota.port: port();
    "ota.allow" live ota.allow: networks();
    "ota.macs" live ota.macs: mac_prefixes();
    "ota.endpoint" live ota.endpoint: endpoint();
    "ota.keepalive" live ota.keepalive: whole_number(10..=3_600);
    "ota.group" live ota.group: group();
    "ota.upstream" live ota.upstream: http_url();
    "webhooks" live webhooks: webhooks();
    "cluster.redis" restart cluster.redis: redis_url();
    "cluster.name" restart cluster.name: gateway_name();
    "cluster.prefix" restart cluster.prefix: key_prefix();
    "cluster.ca_file" restart cluster.ca_file: path();
    "workers" restart workers: whole_number(1..=64);
    "debug" live debug: boolean();
};
