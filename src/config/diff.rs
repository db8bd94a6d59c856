//! The differences between two configurations, and which of them a reload applies.

use super::Config;
use super::error::{ConfigError, Problem};
use super::keys::CONFIG_KEYS;

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
            let list = if key.needs_restart { &mut changes.needs_restart } else { &mut changes.applied };
            list.push(key.name);
        }
    }
    changes
}

/// As [`diff`], for a reload that takes the gateway from `old` to `new`.
///
/// # Errors
/// When it would empty a server list that is in use or remove the signature key, which is most likely a half-edited file, or
/// close the only port for devices.
pub fn check_reload(old: &Config, new: &Config) -> Result<Changes, ConfigError> {
    let (then, now) = (&old.websocket, &new.websocket);
    let refused = |key, found, allowed| Err(Problem::value(key, found, allowed).at("reload"));
    const SERVERS: &str = "at least one server, since the list is in use; to run without one, restart";
    // The built-in echo server is chosen at start only; it never takes the place of a configured one.
    if !then.production.is_empty() && now.production.is_empty() || now.echo && !then.echo {
        return refused("websocket.production_servers", "an empty list", SERVERS);
    }
    let has_devices = !then.development_macs.is_empty() && !now.development_macs.is_empty();
    if has_devices && !then.development.is_empty() && now.development.is_empty() {
        return refused("websocket.development_servers", "an empty list", SERVERS);
    }
    if old.mqtt.signature_key.is_some() && new.mqtt.signature_key.is_none() {
        let allowed = "a key, since logins are verified with one; to accept every device, restart";
        return refused("mqtt.signature_key", "none", allowed);
    }
    if !old.mqtt.plain && new.mqtt.tls.files().is_none() {
        let allowed = "a certificate, since mqtt.plain is off until the next start";
        return refused("mqtt.tls.cert_file", "none", allowed);
    }
    Ok(diff(old, new))
}

impl Config {
    /// This configuration with the values of `running` for all that needs a restart: what is in force after a reload.
    #[must_use]
    pub fn after_reload(mut self, running: &Self) -> Self {
        for key in CONFIG_KEYS.iter().filter(|key| key.needs_restart) {
            (key.copy)(&mut self, running);
        }
        self.mqtt.denied_by_operator.clone_from(&running.mqtt.denied_by_operator);
        self
    }
}

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
    fn a_reload_keeps_the_devices_that_an_operator_has_denied() {
        let mut running = Config::default();
        running.mqtt.denied_by_operator.insert([1; 6].into());
        let kept = Config::default().after_reload(&running).mqtt;
        assert_eq!(kept.denied_by_operator, running.mqtt.denied_by_operator);
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

    #[test]
    fn a_reload_never_removes_the_signature_key() {
        let with = |key: Option<&str>| {
            let mut config = Config::default();
            config.mqtt.signature_key = key.and_then(super::super::Secret::new);
            config
        };
        for (old, new, refused) in [
            (None, None, false),
            (None, Some("key"), false),
            (Some("key"), Some("key"), false),
            (Some("key"), Some("another"), false),
            (Some("key"), None, true),
            // An empty key is none.
            (Some("key"), Some(""), true),
        ] {
            let error = check_reload(&with(old), &with(new)).err().map(|error| error.to_string());
            let expected = "reload: mqtt.signature_key: found none, allowed: a key, since logins are verified with one; \
                            to accept every device, restart";
            assert_eq!(error.as_deref(), refused.then_some(expected), "{old:?} to {new:?}");
        }
    }
}
