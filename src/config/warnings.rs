//! Warnings about settings that are allowed, but doubtful.

use std::net::ToSocketAddrs;
use std::path::PathBuf;

use super::chat_server::URL_SUFFIX;
use super::error::Problem;
use super::{ChatServerConfig, Config, Network, PublicIp, Udp};

impl Config {
    /// What an operator should know about this configuration, one sentence each. Resolves no name: see
    /// [`Udp::resolution_warning`].
    pub fn warnings(&self) -> Vec<String> {
        let Self { mqtt, udp, websocket, .. } = self;
        let mut warnings = self.source_warnings.clone();
        warnings.extend(self.login_warnings());
        warnings.extend(self.api_warnings());
        let mut warn_if =
            |doubtful: bool, warning: &str| warnings.extend(doubtful.then(|| warning.to_owned()));
        if let PublicIp::Ip(ip) = &udp.public_ip
            && ip.to_canonical().is_ipv6()
        {
            let told =
                "no device sends audio to an IPv6 address, so devices are told this machine's IPv4 address";
            warn_if(true, &format!("udp.public_ip: {ip}: {told}"));
        } else if let Some(doubt) = udp.public_ip.doubt() {
            warn_if(true, &format!("udp.public_ip: {doubt}"));
        }
        warn_if(
            mqtt.proxy_protocol_from.iter().any(Network::contains_all),
            "mqtt.proxy_protocol_from holds every address: whoever connects can claim any address",
        );
        warn_if(
            !mqtt.proxy_protocol_from.is_empty() && udp.public_ip == PublicIp::Auto,
            "udp.public_ip is auto behind a load balancer: devices are told to send audio to the address the \
             balancer reached; set it to the address at which devices reach this gateway",
        );
        warn_if(
            !udp.downlink_flags,
            "udp.downlink_flags is off: packets to a device that someone sends back cannot be told from the device's own",
        );
        warn_if(
            websocket.insecure,
            "websocket.insecure is on: certificates of chat servers are not verified",
        );
        for (_, server) in self.servers() {
            warn_if(server.lacks_suffix(), &suffix_warning(server));
            warn_if(
                server.insecure == Some(true) && !websocket.insecure,
                &format!("the certificate of {server} is not verified: it is marked insecure"),
            );
        }
        warn_if(
            websocket.development.is_empty() && !websocket.development_macs.is_empty(),
            "websocket.development_servers is empty: the devices of development_mac_addresses use production_servers",
        );
        warn_if(
            websocket.production.is_empty() && !websocket.development.is_empty(),
            "websocket.production_servers is empty: devices that are not in development_mac_addresses have no \
             chat server",
        );
        warn_if(
            !self.unused_keys.is_empty(),
            &format!("{}: accepted, but not used by this gateway", self.unused_keys.join(", ")),
        );
        warnings
    }

    /// Who can connect as whom, and who can use the management API.
    fn login_warnings(&self) -> Vec<String> {
        let mqtt = &self.mqtt;
        let mut warnings = Vec::new();
        let mut warn_if =
            |doubtful: bool, warning: &str| warnings.extend(doubtful.then(|| warning.to_owned()));
        warn_if(
            mqtt.signature_key.is_none(),
            "mqtt.signature_key is not set: every device is accepted, whatever its password",
        );
        warn_if(
            mqtt.signature_key.is_some() && mqtt.allow_legacy_ids,
            "mqtt.allow_legacy_ids is on: whoever knows a MAC can connect as its device without a password",
        );
        let ota = &self.ota;
        warn_if(
            ota.enabled
                && mqtt.signature_key.is_some()
                && ota.macs.is_empty()
                && ota.allow.iter().any(Network::contains_all),
            "ota.allow holds every address: whoever reaches ota.port gets the password of any device; name ota.macs, or the \
             networks of the devices",
        );
        warn_if(
            ota.enabled && !mqtt.plain && mqtt.tls.port != 8883,
            "mqtt.plain is off and mqtt.tls.port is not 8883, the only port on which devices that the OTA answer sends here speak TLS",
        );
        for (index, key) in mqtt.previous_signature_keys.iter().enumerate() {
            if let Some(weakness) = key.weakness() {
                let warning = format!(
                    "mqtt.previous_signature_keys[{index}] is easy to guess: the key {weakness}; until it is removed, \
                     whoever guesses it can connect as any device"
                );
                warn_if(true, &warning);
            }
        }
        warnings
    }
}

impl Config {
    fn api_warnings(&self) -> Vec<String> {
        let Self { mqtt, api, .. } = self;
        let mut warnings = Vec::new();
        if !api.enabled || mqtt.signature_key.is_none() && api.token.is_none() {
            return warnings;
        }
        if let Some(weakness) = mqtt.signature_key.as_ref().and_then(super::Secret::weakness) {
            let rest = match api.token {
                Some(_) => "only api.token opens it",
                None => "it answers every call with 503",
            };
            warnings.push(format!(
                "mqtt.signature_key is too weak for the management API: the key {weakness}; {rest} until the key is changed"
            ));
        }
        let host = self.api_host().to_canonical();
        if !api.tls.enabled && !host.is_loopback() {
            warnings.push(format!(
                "the management API uses clear HTTP on {host}: who reads a token on the network can use it, a daily one for \
                 up to three days, and can guess mqtt.signature_key from it offline; set api.tls.enabled, or api.host to \
                 127.0.0.1 and reach it through a TLS proxy or an SSH tunnel"
            ));
        }
        warnings
    }

    /// Keys that do not go together.
    pub(super) fn conflicts(&self) -> Vec<Problem> {
        let Self { mqtt, api, .. } = self;
        let missing = |section: &str, cert: &Option<PathBuf>, key: &Option<PathBuf>| {
            let (missing, allowed) = match (cert, key) {
                (Some(_), None) => ("key_file", format!("the PEM private key of {section}.cert_file")),
                (None, Some(_)) => ("cert_file", format!("the PEM certificate of {section}.key_file")),
                _ => return None,
            };
            Some(Problem::value(format!("{section}.{missing}"), "none", allowed))
        };
        let both = "mqtt.tls.cert_file and mqtt.tls.key_file";
        let (devices, own) = (mqtt.tls.files().is_some(), api.tls.files().is_some());
        let mqtt_problem = missing("mqtt.tls", &mqtt.tls.cert_file, &mqtt.tls.key_file).or_else(|| {
            let allowed = || format!("true, unless {both} are set");
            (!mqtt.plain && !devices).then(|| Problem::value("mqtt.plain", "false", allowed()))
        });
        let api_problem = missing("api.tls", &api.tls.cert_file, &api.tls.key_file).or_else(|| {
            let allowed = match (api.tls.enabled, own) {
                (true, false) if !devices => {
                    format!("false, unless both files of api.tls, or {both}, are set")
                }
                (false, true) => "true, unless api.tls.cert_file and api.tls.key_file are empty".to_owned(),
                _ => return None,
            };
            Some(Problem::value("api.tls.enabled", api.tls.enabled.to_string(), allowed))
        });
        let unused = mqtt.signature_key.is_none() && !mqtt.previous_signature_keys.is_empty();
        let key_problem = unused.then(|| {
            let allowed = "a key, since without one mqtt.previous_signature_keys accepts every device";
            Problem::value("mqtt.signature_key", "none", allowed)
        });
        [key_problem, mqtt_problem, api_problem].into_iter().flatten().collect()
    }
}

impl Udp {
    /// What is wrong with a `public_ip` that is a name. Asks the system's resolver, so it may block for many seconds.
    pub fn resolution_warning(&self) -> Option<String> {
        // One warning about it is enough.
        let PublicIp::Host(name) = &self.public_ip else { return None };
        if self.public_ip.doubt().is_some() {
            return None;
        }
        match (name.as_str(), self.port).to_socket_addrs() {
            Err(error) => Some(format!("udp.public_ip: {name} does not resolve here: {error}")),
            Ok(mut addresses) => addresses.find_map(|address| {
                let doubt = PublicIp::Ip(address.ip()).doubt()?;
                Some(format!("udp.public_ip: {name} resolves to {doubt}"))
            }),
        }
    }
}

/// The server's URL lacks the suffix that the Python server wants.
fn suffix_warning(server: &ChatServerConfig) -> String {
    format!(
        "{server} does not end with {URL_SUFFIX}: xiaozhi-esp32-server then takes the gateway's audio header for sound, and \
         only noise is heard; for another server set its \"framing\" to \"header\" or \"raw\""
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    use crate::config::Secret;

    #[test]
    fn each_doubtful_setting_gets_one_warning() {
        let mut config = Config::default();
        config.mqtt.signature_key = Secret::new("A-good-Key");
        config.api.host = Some(Ipv4Addr::LOCALHOST.into());
        assert_eq!(config.warnings(), Vec::<String>::new());

        config.mqtt.signature_key = Secret::new("key");
        for (enabled, token, part) in
            [(true, None, "503"), (true, Secret::new("a static token, long"), "api.token"), (false, None, "")]
        {
            (config.api.enabled, config.api.token) = (enabled, token);
            let warnings = config.warnings().join("; ");
            assert_eq!(warnings.is_empty(), part.is_empty(), "{warnings}");
            assert!(warnings.contains(part), "{warnings}");
        }

        config.mqtt.signature_key = Secret::new("A-good-Key");
        (config.ota.enabled, config.ota.allow) = (true, vec!["0.0.0.0/0".parse().unwrap()]);
        assert!(config.warnings().join("; ").starts_with("ota.allow holds every address"));
        config.ota.macs = vec!["aa:bb:cc".parse().unwrap()].into();
        assert_eq!(config.warnings(), [""; 0]);
        (config.mqtt.plain, config.mqtt.tls.port) = (false, 8884);
        assert!(config.warnings().join("; ").contains("speak TLS"), "{:?}", config.warnings());
        (config.mqtt.plain, config.mqtt.tls.port) = (true, 8883);
        config.ota = crate::config::Ota::default();
        config.mqtt.allow_legacy_ids = true;
        config.mqtt.previous_signature_keys =
            ["Another-Key", "weak"].into_iter().filter_map(Secret::new).collect();
        let warnings = config.warnings();
        assert_eq!(warnings.len(), 2, "{warnings:#?}");
        assert!(warnings[0].starts_with("mqtt.allow_legacy_ids is on"), "{warnings:#?}");
        assert!(warnings[1].starts_with("mqtt.previous_signature_keys[1] is easy to guess"), "{warnings:#?}");

        config.mqtt = crate::config::Mqtt::default();
        config.mqtt.allow_legacy_ids = true;
        config.udp.public_ip = PublicIp::Ip(Ipv4Addr::LOCALHOST.into());
        config.udp.downlink_flags = false;
        config.websocket.insecure = true;
        config.websocket.development_macs = vec!["aa:bb:cc:dd:ee:ff".parse().unwrap()];
        config.unused_keys = vec!["gateway.device_id".to_owned()];
        let warnings = config.warnings();
        assert_eq!(warnings.len(), 6, "{warnings:#?}");
        for text in [
            "mqtt.signature_key",
            "loopback",
            "udp.downlink_flags",
            "insecure",
            "development_servers",
            "gateway.device_id",
        ] {
            assert_eq!(warnings.iter().filter(|warning| warning.contains(text)).count(), 1, "{text}");
        }
    }

    #[test]
    fn clear_http_for_other_machines_is_warned_about() {
        let key = Some("A-good-Key");
        for (key, token, host, enabled, tls, expected) in [
            (key, None, None, true, false, true),
            (None, Some("a static token, long"), None, true, false, true),
            (key, None, Some("::"), true, false, true),
            (key, None, Some("192.0.2.1"), true, false, true),
            (key, None, Some("127.0.0.5"), true, false, false),
            (key, None, Some("::1"), true, false, false),
            (key, None, Some("::ffff:127.0.0.1"), true, false, false),
            (key, None, None, true, true, false),
            (key, None, None, false, false, false),
            // Whoever is served then is on this machine, and sends no token.
            (None, None, Some("0.0.0.0"), true, false, false),
        ] {
            let mut config = Config::default();
            config.mqtt.signature_key = key.and_then(Secret::new);
            config.api.token = token.and_then(Secret::new);
            config.api.host = host.map(|host| host.parse().unwrap());
            (config.api.enabled, config.api.tls.enabled) = (enabled, tls);
            let warnings = config.warnings().join("; ");
            assert_eq!(warnings.contains("clear HTTP"), expected, "{host:?} {enabled} {tls}: {warnings}");
        }
    }

    #[test]
    fn tls_keys_that_do_not_go_together_are_refused() {
        for (mqtt, enabled, (cert, key), expected) in [
            (false, false, ("", ""), ""),
            (false, true, ("c", "k"), ""),
            (true, true, ("", ""), ""),
            (false, true, ("", ""), "api.tls.enabled"),
            (true, false, ("c", "k"), "api.tls.enabled"),
            (true, true, ("c", ""), "api.tls.key_file"),
            (true, true, ("", "k"), "api.tls.cert_file"),
        ] {
            let mut config = Config::default();
            let file = |name: &str| (!name.is_empty()).then(|| PathBuf::from(name));
            (config.api.tls.cert_file, config.api.tls.key_file) = (file(cert), file(key));
            config.api.tls.enabled = enabled;
            if mqtt {
                (config.mqtt.tls.cert_file, config.mqtt.tls.key_file) = (file("c"), file("k"));
            }
            let problems = config.conflicts();
            let fields: Vec<_> = problems.iter().map(|problem| problem.field.as_str()).collect();
            assert_eq!(fields.join(", "), expected, "{mqtt} {enabled} {cert} {key}");
        }
    }
}
