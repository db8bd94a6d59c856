//! Counts connections by address.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many connections each address has, over all workers. Counted only while `max_connections_per_ip` is set.
#[derive(Clone, Default)]
pub(crate) struct ConnectionsByAddress(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// Counts one connection of an address until it is dropped.
pub(crate) struct Counted {
    counts: ConnectionsByAddress,
    ip: IpAddr,
}

impl ConnectionsByAddress {
    /// The number of connections of this address.
    pub(crate) fn of(&self, ip: IpAddr) -> usize {
        self.locked().get(&ip).copied().unwrap_or_default()
    }

    /// Counts a connection of this address.
    pub(crate) fn count(&self, ip: IpAddr) -> Box<Counted> {
        *self.locked().entry(ip).or_default() += 1;
        Box::new(Counted { counts: self.clone(), ip })
    }

    /// Ignores poisoning: the counts are consistent after every change, even when a worker panicked.
    fn locked(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.counts.locked().entry(self.ip) {
            match entry.get() {
                1 => drop(entry.remove()),
                _ => *entry.get_mut() -= 1,
            }
        }
    }
}
