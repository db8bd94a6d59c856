//! What a reload changes.

use super::error::{ConfigError, Problem};
use super::{Config, WebSocket};

/// The keys two configurations differ in, by what it takes to put them in force. Dotted, as in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys that are in force as soon as the new configuration is.
    pub applied: Vec<&'static str>,
    /// Keys that keep their old values until the gateway is started again.
    pub needs_restart: Vec<&'static str>,
}

impl Changes {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.applied.is_empty() && self.needs_restart.is_empty()
    }
}

/// The keys `old` and `new` differ in.
pub fn diff(old: &Config, new: &Config) -> Changes {
    let mut changes = Changes::default();
    for key in &CONFIG_KEYS {
        if (key.differs)(old, new) {
            let list = if key.fixed { &mut changes.needs_restart } else { &mut changes.applied };
            list.push(key.name);
        }
    }
    changes
}

/// As [`diff`], for a reload that takes the gateway from `old` to `new`.
///
/// # Errors
/// When it would empty a server list that is in use, which is far more often a half-edited file than a wish, or close the
/// only port for devices.
pub fn check_reload(old: &Config, new: &Config) -> Result<Changes, ConfigError> {
    let (then, now) = (&old.websocket, &new.websocket);
    let refused = |key: &str| {
        let allowed = "at least one server, since the list is in use; to run without one, restart";
        Err(Problem::value(key, "an empty list", allowed).at("reload"))
    };
    // The built-in echo server is chosen at start only; it never takes the place of a configured one.
    if has_production_servers(then) && !has_production_servers(now) || now.echo && !then.echo {
        return refused("websocket.production_servers");
    }
    if has_development_devices(then) && now.development.is_empty() && !now.development_macs.is_empty() {
        return refused("websocket.development_servers");
    }
    if !old.mqtt.plain && new.mqtt.tls.files().is_none() {
        let allowed = "a certificate, since mqtt.plain is off until the next start";
        return Err(Problem::value("mqtt.tls.cert_file", "none", allowed).at("reload"));
    }
    Ok(diff(old, new))
}

fn has_production_servers(websocket: &WebSocket) -> bool {
    !websocket.production.is_empty()
}

fn has_development_devices(websocket: &WebSocket) -> bool {
    !websocket.development.is_empty() && !websocket.development_macs.is_empty()
}

impl Config {
    /// This configuration with the values of `running` for all that needs a restart: what is in force after a reload.
    #[must_use]
    pub fn after_reload(mut self, running: &Self) -> Self {
        self.mqtt.host = running.mqtt.host;
        self.mqtt.port = running.mqtt.port;
        self.mqtt.plain = running.mqtt.plain;
        self.udp.host = running.udp.host;
        self.udp.port = running.udp.port;
        self.udp.public_ip = running.udp.public_ip.clone();
        self.logging.file = running.logging.file.clone();
        self.api.enabled = running.api.enabled;
        self.api.host = running.api.host;
        self.api.port = running.api.port;
        self.workers = running.workers;
        self
    }
}

pub(super) struct ConfigKey {
    pub(super) name: &'static str,
    differs: fn(&Config, &Config) -> bool,
    fixed: bool,
}

macro_rules! keys {
    ($($name:literal $($field:ident).+ $kind:ident;)*) => {
        [$(ConfigKey { name: $name, differs: |old, new| old.$($field).+ != new.$($field).+, fixed: keys!($kind) }),*]
    };
    (live) => { false };
    (fixed) => { true };
}

/// Every key of the file.
pub(super) static CONFIG_KEYS: [ConfigKey; 52] = keys! {
    "mqtt.host" mqtt.host fixed;
    "mqtt.port" mqtt.port fixed;
    "mqtt.plain" mqtt.plain fixed;
    "mqtt.tls.port" mqtt.tls.port live;
    "mqtt.tls.cert_file" mqtt.tls.cert_file live;
    "mqtt.tls.key_file" mqtt.tls.key_file live;
    "mqtt.tls.max_handshakes" mqtt.tls.max_handshakes live;
    "mqtt.proxy_protocol_from" mqtt.proxy_protocol_from live;
    "mqtt.max_connections" mqtt.max_connections live;
    "mqtt.max_connections_per_ip" mqtt.max_connections_per_ip live;
    "mqtt.max_payload_size" mqtt.max_payload_size live;
    "mqtt.resume_grace_s" mqtt.resume_grace live;
    "mqtt.allow_legacy_ids" mqtt.allow_legacy_ids live;
    "mqtt.signature_key" mqtt.signature_key live;
    "udp.host" udp.host fixed;
    "udp.port" udp.port fixed;
    "udp.public_ip" udp.public_ip fixed;
    "udp.peer_policy" udp.peer_policy live;
    "udp.downlink_flags" udp.downlink_flags live;
    "udp.first_packet_warn_s" udp.first_packet_warn live;
    "udp.first_packet_alert" udp.first_packet_alert live;
    "udp.coalesce_max_us" udp.coalesce_max live;
    "websocket.production_servers" websocket.production live;
    "websocket.development_servers" websocket.development live;
    "websocket.development_mac_addresses" websocket.development_macs live;
    "websocket.server_secret" websocket.secret live;
    "websocket.ca_file" websocket.ca_file live;
    "websocket.insecure" websocket.insecure live;
    "websocket.ping_interval_s" websocket.ping_interval live;
    "websocket.ping_timeout_s" websocket.ping_timeout live;
    "websocket.reconnect.initial_ms" websocket.reconnect.initial live;
    "websocket.reconnect.max_ms" websocket.reconnect.max live;
    "websocket.reconnect.multiplier" websocket.reconnect.multiplier live;
    "websocket.reconnect.give_up_after_s" websocket.reconnect.give_up_after live;
    "websocket.send_goodbye" websocket.send_goodbye live;
    "websocket.call_idle_s" websocket.call_idle live;
    "websocket.max_calls" websocket.max_calls live;
    "websocket.max_dials" websocket.max_dials live;
    "logging.enabled" logging.enabled live;
    "logging.level" logging.level live;
    "logging.file_path" logging.file fixed;
    "mcp.enabled" mcp.enabled live;
    "mcp.max_tools_count" mcp.max_tools_count live;
    "mcp.capabilities" mcp.capabilities live;
    "mcp.client_info" mcp.client_info live;
    "api.enabled" api.enabled fixed;
    "api.host" api.host fixed;
    "api.port" api.port fixed;
    "api.token" api.token live;
    "api.metrics_need_token" api.metrics_need_token live;
    "workers" workers fixed;
    "debug" debug live;
};

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn config(production: &[&str], development: &[&str], macs: &[&str]) -> Config {
        let servers =
            |urls: &[&str]| urls.iter().map(|url| Arc::new(url.parse().unwrap())).collect::<Vec<_>>();
        let mut config = Config::default();
        config.websocket.production = servers(production);
        config.websocket.development = servers(development);
        config.websocket.development_macs = macs.iter().map(|mac| mac.parse().unwrap()).collect();
        config
    }

    #[test]
    fn keys_bound_at_start_need_a_restart() {
        let old = Config::default();
        let mut new = config(&["ws://a"], &[], &[]);
        new.mqtt.port = 1884;
        new.mqtt.max_connections = 5;
        new.udp.public_ip = super::super::PublicIp::Host("a".to_owned());
        let changes = diff(&old, &new);
        assert_eq!(changes.applied, ["mqtt.max_connections", "websocket.production_servers"]);
        assert_eq!(changes.needs_restart, ["mqtt.port", "udp.public_ip"]);
        assert!(!changes.is_empty());
        assert!(diff(&new, &new).is_empty());

        let running = new.clone().after_reload(&old);
        assert_eq!(diff(&running, &new), Changes { applied: vec![], ..changes.clone() });
        assert_eq!(diff(&old, &running), Changes { needs_restart: vec![], ..changes });
    }

    #[test]
    fn a_reload_never_empties_a_server_list_in_use() {
        let mac = "aa:bb:cc:dd:ee:ff";
        let both = config(&["ws://a"], &["ws://b"], &[mac]);
        let unlisted = config(&["ws://a"], &["ws://b"], &[]);
        let none = config(&[], &[], &[]);
        let mut echo = config(&["ws://127.0.0.1:1"], &[], &[]);
        echo.websocket.echo = true;
        for (old, new, refused) in [
            (&both, &both, None),
            (&both, &config(&[], &["ws://b"], &[mac]), Some("websocket.production_servers")),
            (&both, &config(&["ws://a"], &[], &[mac]), Some("websocket.development_servers")),
            (&both, &config(&["ws://a"], &[], &[]), None),
            (&both, &config(&["ws://c"], &["ws://d"], &[mac]), None),
            (&unlisted, &config(&["ws://a"], &[], &[]), None),
            (&unlisted, &config(&["ws://a"], &[], &[mac]), None),
            (&none, &none, None),
            (&none, &both, None),
            (&echo, &both, None),
            (&echo, &echo, None),
            (&both, &echo, Some("websocket.production_servers")),
        ] {
            let error = check_reload(old, new).err().map(|error| error.to_string());
            match (&error, refused) {
                (None, None) => {}
                (Some(error), Some(key)) => assert!(error.contains(key), "{error}"),
                _ => panic!("{error:?}, expected {refused:?}, from {old:?} to {new:?}"),
            }
        }
    }
}
