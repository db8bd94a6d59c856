//! Warnings about settings that are allowed, but doubtful.

use std::net::{IpAddr, ToSocketAddrs};

use super::error::Problem;
use super::{Config, Mqtt, Network, PublicIp, Udp, node_config};

impl Config {
    /// What an operator should know about this configuration, one sentence each. Resolves no name: see
    /// [`Udp::resolution_warning`].
    pub fn warnings(&self) -> Vec<String> {
        let Self { mqtt, udp, websocket, .. } = self;
        let mut warnings = self.login_warnings();
        let mut warn_if =
            |doubtful: bool, warning: &str| warnings.extend(doubtful.then(|| warning.to_owned()));
        if let PublicIp::Ip(ip) = &udp.public_ip
            && let Some(warning) = unreachable_warning(&ip.to_string(), *ip)
        {
            warn_if(true, &warning);
        }
        let default_name = node_config::DEFAULT_PUBLIC_IP;
        warn_if(
            self.node_config.is_some() && udp.public_ip == PublicIp::Host(default_name.to_owned()),
            &format!(
                "PUBLIC_IP is not set: devices are told to send audio to {default_name}, as the Node.js gateway does"
            ),
        );
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
        for server in websocket.production.iter().chain(&websocket.development) {
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
        let Self { mqtt, api, .. } = self;
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
        for (index, key) in mqtt.previous_signature_keys.iter().enumerate() {
            if let Some(weakness) = key.weakness() {
                let warning = format!(
                    "mqtt.previous_signature_keys[{index}] is easy to guess: the key {weakness}; until it is removed, \
                     whoever guesses it can connect as any device"
                );
                warn_if(true, &warning);
            }
        }
        if let Some(weakness) = mqtt.signature_key.as_ref().and_then(super::Secret::weakness) {
            let rest = match api.token {
                Some(_) => "only api.token opens it",
                None => "it answers every call with 503",
            };
            let warning = format!(
                "mqtt.signature_key is too weak for the management API: the key {weakness}; {rest} until the key is changed"
            );
            warn_if(api.enabled, &warning);
        }
        warnings
    }
}

impl Mqtt {
    /// Keys that do not go together.
    pub(super) fn conflict(&self) -> Option<Problem> {
        if self.signature_key.is_none() && !self.previous_signature_keys.is_empty() {
            let allowed = "a key, since without one mqtt.previous_signature_keys accepts every device";
            return Some(Problem::value("mqtt.signature_key", "none", allowed));
        }
        let missing = match (&self.tls.cert_file, &self.tls.key_file) {
            (Some(_), None) => Some(("mqtt.tls.key_file", "the PEM private key of mqtt.tls.cert_file")),
            (None, Some(_)) => Some(("mqtt.tls.cert_file", "the PEM certificate of mqtt.tls.key_file")),
            _ => None,
        };
        if let Some((key, allowed)) = missing {
            return Some(Problem::value(key, "none", allowed));
        }
        let silent = !self.plain && self.tls.files().is_none();
        silent.then(|| {
            let allowed = "true, unless mqtt.tls.cert_file and mqtt.tls.key_file are set";
            Problem::value("mqtt.plain", "false", allowed)
        })
    }
}

impl Udp {
    /// What is wrong with a `public_ip` that is a name. Asks the system's resolver, so it may block for many seconds.
    pub fn resolution_warning(&self) -> Option<String> {
        let PublicIp::Host(name) = &self.public_ip else { return None };
        match (name.as_str(), self.port).to_socket_addrs() {
            Err(error) => Some(format!("udp.public_ip: {name} does not resolve here: {error}")),
            Ok(mut addresses) => addresses
                .find_map(|address| unreachable_warning(&format!("{name} ({})", address.ip()), address.ip())),
        }
    }
}

fn unreachable_warning(shown: &str, ip: IpAddr) -> Option<String> {
    let kind = match ip {
        ip if ip.is_loopback() => "a loopback address",
        ip if ip.is_unspecified() => "the unspecified address",
        _ => return None,
    };
    Some(format!("udp.public_ip: {shown} is {kind}: no device outside this machine can send audio to it"))
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
        config.mqtt.allow_legacy_ids = true;
        config.mqtt.previous_signature_keys =
            ["Another-Key", "weak"].into_iter().filter_map(Secret::new).collect();
        let warnings = config.warnings();
        assert_eq!(warnings.len(), 2, "{warnings:#?}");
        assert!(warnings[0].starts_with("mqtt.allow_legacy_ids is on"), "{warnings:#?}");
        assert!(warnings[1].starts_with("mqtt.previous_signature_keys[1] is easy to guess"), "{warnings:#?}");

        config.mqtt = Mqtt::default();
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
}
