//! Counts connections by address.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::proto::address_key::AddressKey;

/// How many connections each address has, over all workers; an IPv6 /64 is one address. Counted only while `max_connections_per_ip` is set.
#[derive(Clone, Default)]
pub(crate) struct ConnectionsByAddress(Arc<Mutex<HashMap<AddressKey, usize>>>);

/// Counts one connection of an address until it is dropped.
pub(crate) struct Counted {
    counts: ConnectionsByAddress,
    key: AddressKey,
}

impl ConnectionsByAddress {
    /// The number of connections of this address.
    pub(crate) fn of(&self, ip: IpAddr) -> usize {
        self.locked().get(&ip.into()).copied().unwrap_or_default()
    }

    /// Counts a connection of this address.
    pub(crate) fn count(&self, ip: IpAddr) -> Box<Counted> {
        let key = ip.into();
        *self.locked().entry(key).or_default() += 1;
        Box::new(Counted { counts: self.clone(), key })
    }

    /// Ignores poisoning: the counts are consistent after every change, even when a worker panicked.
    fn locked(&self) -> MutexGuard<'_, HashMap<AddressKey, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.counts.locked().entry(self.key) {
            match entry.get() {
                1 => drop(entry.remove()),
                _ => *entry.get_mut() -= 1,
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_connections_of_an_ipv6_64_are_counted_together_and_uncounted() {
        let counts = ConnectionsByAddress::default();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = counts.count(ip("2001:db8:0:1::1"));
        let second = counts.count(ip("2001:db8:0:1::2"));
        let other = counts.count(ip("2001:db8:0:2::1"));
        assert_eq!([1, 2, 3].map(|n| counts.of(ip(&format!("2001:db8:0:{n}::9")))), [2, 1, 0]);
        drop(first);
        assert_eq!(counts.of(ip("2001:db8:0:1::1")), 1);
        drop((second, other));
        assert!(counts.locked().is_empty());
        let _mapped = counts.count(ip("::ffff:192.0.2.1"));
        assert_eq!(["192.0.2.1", "::ffff:192.0.2.2"].map(|text| counts.of(ip(text))), [1, 0]);
    }
}
