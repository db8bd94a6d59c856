//! What counts as one address in counts and limits.

use std::net::{IpAddr, Ipv6Addr};

/// The bits of an IPv6 address that name its network: one customer or one LAN, and 2^64 addresses.
const NETWORK: u128 = !0 << 64;

/// The key under which an address is counted: an IPv4 address, also one that is written as IPv6, or the /64 network of an
/// IPv6 address, since each of its hosts can use as many addresses of it as it wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressKey(IpAddr);

impl From<IpAddr> for AddressKey {
    fn from(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & NETWORK).into(),
            v4 @ IpAddr::V4(_) => v4,
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
