//! Who is answered on the OTA port, and where devices are told to reach the gateway.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use super::chat_server::is_host_name;
use super::{Config, Ota, PublicIp};
use crate::proto::identity::Mac;

/// Why a device gets no answer. Displays as words that follow "refused: ".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtaDenial {
    /// Its address is in none of the networks that are answered.
    Address,
    /// Its MAC is not in `ota.macs`.
    Mac,
    /// Whoever asks gets a password, and nothing says who may.
    Unprotected,
}

impl fmt::Display for OtaDenial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "its address is not in ota.allow, which is private networks if it is empty",
            Self::Mac => "its MAC is not in ota.macs",
            Self::Unprotected => {
                "mqtt.signature_key is set, and in a container or behind an HTTP proxy every device may seem to come from a \
                 private network: name ota.allow or ota.macs"
            }
        })
    }
}

impl Ota {
    /// Why a device at this address gets no answer, whatever its MAC. `is_shared`: the address may be that of a proxy which all
    /// devices pass, as in a container.
    pub fn address_denial(&self, ip: IpAddr, has_key: bool, is_shared: bool) -> Option<OtaDenial> {
        if has_key && is_shared && self.allow.is_empty() && self.macs.is_empty() {
            return Some(OtaDenial::Unprotected);
        }
        let ip = ip.to_canonical();
        let is_allowed = match self.allow.is_empty() {
            true => is_private(ip),
            false => self.allow.iter().any(|network| network.contains(ip)),
        };
        (!is_allowed).then_some(OtaDenial::Address)
    }

    /// Why this device gets no answer, whatever its address.
    pub fn mac_denial(&self, mac: Mac) -> Option<OtaDenial> {
        (!self.macs.is_empty() && !self.macs.contains(mac)).then_some(OtaDenial::Mac)
    }
}

/// Private (RFC 1918, RFC 4193), link-local and loopback addresses.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_loopback(),
    }
}

impl Config {
    /// The host that a device is told, and the port if one was configured: `ota.endpoint`, else `udp.public_ip` if it is set, else
    /// the host that the device asked, by the `Host` field of its request, else the local address of its connection. Never an IPv6
    /// address, since the firmware splits the endpoint at its first colon; `None` if there is no other.
    pub fn ota_endpoint(&self, asked: Option<&str>, local: IpAddr) -> Option<(String, Option<u16>)> {
        if let Some(endpoint) = &self.ota.endpoint {
            return Some((endpoint.host.clone(), endpoint.port));
        }
        let public = match &self.udp.public_ip {
            PublicIp::Auto => None,
            PublicIp::Ip(ip) => ipv4(*ip).map(|ip| ip.to_string()),
            PublicIp::Host(host) => Some(host.clone()),
        };
        let asked = || asked.and_then(|asked| asked.split(':').next()).filter(|host| is_host_name(host));
        let host = public.or_else(|| asked().map(str::to_owned));
        host.or_else(|| ipv4(local).map(|ip| ip.to_string())).map(|host| (host, None))
    }
}

fn ipv4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip.to_canonical() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::proto::identity::MacPrefixes;

    #[test]
    fn private_networks_are_answered_unless_others_are_named() {
        let open = Ota::default();
        let named = Ota { allow: vec!["203.0.113.0/24".parse().unwrap()], ..Ota::default() };
        for (ip, private, in_named) in [
            ("192.168.1.7", true, false),
            ("10.0.0.1", true, false),
            ("172.31.0.1", true, false),
            ("172.32.0.1", false, false),
            ("169.254.3.4", true, false),
            ("127.0.0.1", true, false),
            ("::1", true, false),
            ("::ffff:192.168.1.7", true, false),
            ("fe80::1", true, false),
            ("fd00::1", true, false),
            ("2001:db8::1", false, false),
            ("203.0.113.9", false, true),
            ("::ffff:203.0.113.9", false, true),
            ("100.64.0.1", false, false),
            ("0.0.0.0", false, false),
        ] {
            let ip = ip.parse().unwrap();
            for has_key in [false, true] {
                assert_eq!(open.address_denial(ip, has_key, false).is_none(), private, "{ip}");
                assert_eq!(named.address_denial(ip, has_key, true).is_none(), in_named, "{ip}");
            }
        }
    }

    #[test]
    fn with_a_key_in_a_container_somebody_must_be_named() {
        let lan = "192.168.1.7".parse().unwrap();
        let mac: Mac = "aa:bb:cc:dd:ee:ff".parse().unwrap();
        let mut ota = Ota::default();
        assert_eq!(ota.address_denial(lan, true, true), Some(OtaDenial::Unprotected));
        assert_eq!(ota.address_denial(lan, false, true), None);
        assert_eq!(ota.address_denial(lan, true, false), None);
        ota.macs = MacPrefixes::from(vec!["aa:bb:cc".parse().unwrap()]);
        assert_eq!(ota.address_denial(lan, true, true), None);
        assert_eq!(ota.mac_denial(mac), None);
        assert_eq!(ota.mac_denial("11:22:33:44:55:66".parse().unwrap()), Some(OtaDenial::Mac));
        assert_eq!(Ota::default().mac_denial(mac), None);
    }

    #[test]
    fn the_first_host_that_is_known_is_told() {
        let local: IpAddr = "192.0.2.1".parse().unwrap();
        let mut config = Config::default();
        let host = |config: &Config, asked| config.ota_endpoint(asked, local).map(|(host, _)| host);
        for (asked, told) in [
            (Some("gw.lan:8006"), "gw.lan"),
            (Some("10.1.2.3"), "10.1.2.3"),
            (Some("[2001:db8::1]:8006"), "192.0.2.1"),
            (Some(""), "192.0.2.1"),
            (Some("a b"), "192.0.2.1"),
            (None, "192.0.2.1"),
        ] {
            assert_eq!(host(&config, asked).as_deref(), Some(told), "{asked:?}");
        }
        assert_eq!(config.ota_endpoint(None, "2001:db8::1".parse().unwrap()), None);
        assert_eq!(config.ota_endpoint(None, "::ffff:10.0.0.1".parse().unwrap()).unwrap().0, "10.0.0.1");
        config.udp.public_ip = PublicIp::Ip("2001:db8::9".parse().unwrap());
        assert_eq!(host(&config, Some("gw.lan")).as_deref(), Some("gw.lan"));
        config.udp.public_ip = PublicIp::Ip("198.51.100.7".parse().unwrap());
        assert_eq!(host(&config, Some("gw.lan")).as_deref(), Some("198.51.100.7"));
        config.udp.public_ip = PublicIp::Host("audio.example".to_owned());
        assert_eq!(host(&config, Some("gw.lan")).as_deref(), Some("audio.example"));
        config.ota.endpoint = Some("mqtt.example:2883".parse().unwrap());
        assert_eq!(config.ota_endpoint(Some("gw.lan"), local), Some(("mqtt.example".to_owned(), Some(2883))));
    }
}
