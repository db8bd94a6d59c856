//! Whether a request was sent on this machine, as far as its header fields tell.

use std::net::{IpAddr, SocketAddr};

/// What the header fields that proxies add say about who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarded {
    /// There are none: the peer itself sent it.
    No,
    /// They name a client, and every client and host that they name is this machine.
    ForThisMachine,
    /// They name another client or host, or no client.
    ForAnother,
}

/// Fields whose value is an address of a client, or several with commas between them.
const CLIENT_FIELDS: [&str; 5] =
    ["x-forwarded-for", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"];

/// Whether a field of this name says for whom a proxy has passed a request on.
pub fn names_client(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == "forwarded" || name.starts_with("x-forwarded") || CLIENT_FIELDS.contains(&name.as_str())
}

impl Forwarded {
    /// By `Forwarded` (RFC 7239), `Via`, `X-Forwarded-*`, `X-Real-IP` and the like. A client can send any of them, so every
    /// value counts and not only the last: what names another machine never becomes this one by what is added.
    pub(super) fn of(fields: &[httparse::Header<'_>]) -> Self {
        let (mut is_forwarded, mut clients, mut others) = (false, 0, 0);
        for field in fields {
            let name = field.name.to_ascii_lowercase();
            // What is not UTF-8 is no address of this machine.
            let value = str::from_utf8(field.value).unwrap_or("?");
            let is_client = CLIENT_FIELDS.contains(&name.as_str());
            if name == "forwarded" {
                for pair in value.split([',', ';']) {
                    let (key, value) = pair.split_once('=').unwrap_or(("for", ""));
                    let is_client = key.trim().eq_ignore_ascii_case("for");
                    if is_client || key.trim().eq_ignore_ascii_case("host") {
                        clients += usize::from(is_client);
                        others += usize::from(!is_this_machine(value.trim().trim_matches('"')));
                    }
                }
            } else if is_client || name == "x-forwarded-host" {
                clients += usize::from(is_client);
                others += value.split(',').filter(|value| !is_this_machine(value.trim())).count();
            } else if name != "via" && !name.starts_with("x-forwarded") {
                continue;
            }
            is_forwarded = true;
        }
        match (is_forwarded, clients > 0 && others == 0) {
            (false, _) => Self::No,
            (true, true) => Self::ForThisMachine,
            (true, false) => Self::ForAnother,
        }
    }
}

/// Whether `host` or `host:port` is localhost or a loopback address, which no other machine and no web site can have.
pub(super) fn is_this_machine(authority: &str) -> bool {
    let bare = authority.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(authority);
    let with_port = authority.parse::<SocketAddr>().map(|address| address.ip());
    match with_port.or_else(|_| bare.parse::<IpAddr>()) {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => authority.split(':').next().is_some_and(|name| name.eq_ignore_ascii_case("localhost")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_localhost_and_loopback_addresses_are_this_machine() {
        for (authority, expected) in [
            ("localhost", true),
            ("LocalHost:8007", true),
            ("127.0.0.1", true),
            ("127.9.9.9:80", true),
            ("::1", true),
            ("[::1]", true),
            ("[::1]:8007", true),
            ("[::ffff:127.0.0.1]:8007", true),
            ("", false),
            (":8007", false),
            ("0.0.0.0:8007", false),
            ("192.168.1.10:8007", false),
            ("[fe80::1]", false),
            ("::1:80", false),
            ("127.1", false),
            ("127.0.0.1.nip.example", false),
            ("localhost.example", false),
            ("unknown", false),
            ("_hidden", false),
        ] {
            assert_eq!(is_this_machine(authority), expected, "{authority}");
        }
    }

    #[test]
    fn every_named_client_and_host_must_be_this_machine() {
        use Forwarded::{ForAnother, ForThisMachine, No};
        for (fields, expected) in [
            (&[][..], No),
            (&[("Host", "gateway"), ("X-Request-Id", "1"), ("X-Forward", "1")], No),
            (&[("X-Forwarded-For", "127.0.0.1")], ForThisMachine),
            (&[("x-forwarded-for", "::1, 127.0.0.1:4711"), ("Via", "1.1 proxy")], ForThisMachine),
            (&[("X-Real-IP", "127.0.0.1"), ("X-Forwarded-Host", "localhost:8007")], ForThisMachine),
            (&[("Forwarded", "for=127.0.0.1;proto=http;by=10.0.0.1, For=\"[::1]:4711\"")], ForThisMachine),
            (&[("Via", "1.1 proxy")], ForAnother),
            (&[("X-Forwarded-Proto", "https")], ForAnother),
            (&[("X-Forwarded", "1")], ForAnother),
            (&[("X-Forwarded-Host", "localhost")], ForAnother),
            (&[("X-Forwarded-For", "")], ForAnother),
            (&[("X-Forwarded-For", "203.0.113.9")], ForAnother),
            (&[("X-Forwarded-For", "203.0.113.9, 127.0.0.1")], ForAnother),
            (&[("X-Forwarded-For", "127.0.0.1, 203.0.113.9")], ForAnother),
            (&[("X-Forwarded-For", "203.0.113.9"), ("X-Forwarded-For", "127.0.0.1")], ForAnother),
            (&[("X-Forwarded-For", "127.0.0.1"), ("X-Real-IP", "203.0.113.9")], ForAnother),
            (&[("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-Host", "lured.example")], ForAnother),
            (&[("X-Forwarded-For", "127.0.0.1"), ("Forwarded", "for=203.0.113.9")], ForAnother),
            (&[("CF-Connecting-IP", "203.0.113.9")], ForAnother),
            (&[("Forwarded", "")], ForAnother),
            (&[("Forwarded", "proto=http")], ForAnother),
            (&[("Forwarded", "for=unknown")], ForAnother),
            (&[("Forwarded", "for=_hidden")], ForAnother),
            (&[("Forwarded", "for=127.0.0.1, for=203.0.113.9")], ForAnother),
            (&[("Forwarded", "for=127.0.0.1;host=lured.example")], ForAnother),
            (&[("Forwarded", "for=127.0.0.1, 203.0.113.9")], ForAnother),
        ] {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| httparse::Header { name, value: value.as_bytes() })
                .collect();
            assert_eq!(Forwarded::of(&fields), expected, "{fields:?}");
        }
        let no_text = [httparse::Header { name: "X-Forwarded-For", value: b"\xff" }];
        assert_eq!(Forwarded::of(&no_text), ForAnother);
    }
}
