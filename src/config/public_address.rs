//! Addresses for audio that no device can use, or that were left in from a sample.

use std::net::IpAddr;

use super::PublicIp;

impl PublicIp {
    /// Why devices can hardly use this address, as a sentence about it. Resolves no name.
    pub fn doubt(&self) -> Option<String> {
        match self {
            Self::Auto => None,
            Self::Ip(ip) => match unreachable_kind(*ip) {
                Some(kind) => {
                    Some(format!("{ip} is {kind}: no device outside this machine can send audio to it"))
                }
                None => is_for_examples(*ip)
                    .then(|| format!("{ip} is an address for examples (RFC 5737, RFC 3849): nobody has it")),
            },
            Self::Host(name) => name_doubt(name),
        }
    }
}

/// The kind of an address that no other machine can send to.
pub fn unreachable_kind(ip: IpAddr) -> Option<&'static str> {
    let (is_link_local, is_broadcast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.is_broadcast()),
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), false),
    };
    match ip {
        ip if ip.is_loopback() => Some("a loopback address"),
        ip if ip.is_unspecified() => Some("the unspecified address"),
        ip if ip.is_multicast() || is_broadcast => Some("a broadcast or multicast address"),
        _ if is_link_local => Some("a link-local address"),
        _ => None,
    }
}

fn is_for_examples(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_documentation(),
        IpAddr::V6(ip) => ip.segments()[..2] == [0x2001, 0xdb8],
    }
}

fn name_doubt(name: &str) -> Option<String> {
    let lower = name.trim_end_matches('.').to_ascii_lowercase();
    let labels: Vec<_> = lower.split('.').collect();
    let ends_with = |end: &[&str]| labels.ends_with(end);
    let is_blank = |label: &str| label.bytes().all(|byte| byte == b'x');
    let is_placeholder = |label: &&str| {
        ["your-", "your_", "yourdomain", "yourserver", "yourhost", "yourip"]
            .iter()
            .any(|start| label.starts_with(start))
            || *label == "your"
    };
    if ends_with(&["xiaozhi", "me"]) {
        Some(format!(
            "{name} is the public XiaoZhi service, which samples name and the Node.js gateway takes when PUBLIC_IP is not \
             set: devices are told to send their audio there"
        ))
    } else if labels.iter().any(is_placeholder)
        || labels.last().is_some_and(|label| is_blank(label))
            && labels[0].bytes().all(|byte| byte == b'x' || byte.is_ascii_digit())
        || ends_with(&["example"])
        || ["com", "net", "org"].iter().any(|last| ends_with(&["example", last]))
    {
        Some(format!("{name} is the placeholder of a sample: devices cannot send audio to it"))
    } else if ["internal", "local", "localdomain"].iter().any(|last| ends_with(&[last])) {
        Some(format!(
            "{name} is a name that only this machine, its containers or its network know: devices cannot resolve it"
        ))
    } else if labels.len() == 1 && lower != "localhost" {
        Some(format!(
            "{name} is a name without a dot: devices cannot resolve what only this machine or its containers know"
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_samples_and_those_that_no_device_can_use_are_doubtful() {
        for (address, part) in [
            ("mqtt.xiaozhi.me", "PUBLIC_IP is not set"),
            ("MQTT.xiaozhi.me.", "PUBLIC_IP is not set"),
            ("host.docker.internal", "cannot resolve"),
            ("gw.eu.internal", "cannot resolve"),
            ("raspberrypi.local", "cannot resolve"),
            ("raspberrypi.localdomain", "cannot resolve"),
            ("gateway", "without a dot"),
            ("your-server-ip", "placeholder"),
            ("mqtt.your-domain.com", "placeholder"),
            ("your_public_ip", "placeholder"),
            ("your.domain.com", "placeholder"),
            ("yourdomain.com", "placeholder"),
            ("xxx.xxx.xxx.xxx", "placeholder"),
            ("192.168.1.xx", "placeholder"),
            ("gw.example.com", "placeholder"),
            ("gw.example", "placeholder"),
            ("192.0.2.1", "for examples"),
            ("198.51.100.7", "for examples"),
            ("203.0.113.77", "for examples"),
            ("2001:db8::1", "for examples"),
            ("127.0.0.1", "loopback"),
            ("::", "unspecified"),
            ("224.0.0.1", "multicast"),
            ("169.254.1.1", "link-local"),
            ("fe80::1", "link-local"),
            ("auto", ""),
            ("localhost", ""),
            ("gw.lan", ""),
            ("gw.home.arpa", ""),
            ("yourtown.de", ""),
            ("x.com", ""),
            ("notxiaozhi.me", ""),
            ("local.net", ""),
            ("192.168.1.10", ""),
            ("8.8.8.8", ""),
        ] {
            let public_ip = match address.parse() {
                _ if address == "auto" => PublicIp::Auto,
                Ok(ip) => PublicIp::Ip(ip),
                Err(_) => PublicIp::Host(address.to_owned()),
            };
            let doubt = public_ip.doubt().unwrap_or_default();
            assert!(doubt.contains(part) && doubt.is_empty() == part.is_empty(), "{address}: {doubt}");
        }
    }
}
