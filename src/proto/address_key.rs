//! What counts as one address in counts and limits.

use std::net::IpAddr;

/// The key under which an address is counted: an IPv4 address, also one that is written as IPv6, or the /64 network of an
/// IPv6 address, one customer or one LAN, since each of its hosts can use as many addresses of it as it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressKey(Key);

/// Nine bytes: there is one for each device that proves nothing and says hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    V4([u8; 4]),
    /// The bytes of the network.
    V6([u8; 8]),
}

impl From<IpAddr> for AddressKey {
    fn from(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V4(ip) => Key::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Key::V6([a, b, c, d, e, f, g, h])
            }
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(ip: &str) -> AddressKey {
        ip.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn the_ipv6_addresses_of_a_64_are_one_and_ipv4_addresses_are_each_their_own() {
        assert_eq!(key("2001:db8:0:1::1"), key("2001:db8:0:1:ffff:ffff:ffff:ffff"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8:0:2::1"));
        assert_ne!(key("2001:db8::1"), key("2001:db9::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("::ffff:192.0.2.1"), key("::ffff:192.0.2.2"), "all mapped addresses are in one /64");
    }
}
