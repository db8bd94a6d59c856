//! Counts connections by address.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many connections each address has, at all workers together; counted only while `max_connections_per_ip` is set.
#[derive(Clone, Default)]
pub(crate) struct ConnectionsByAddress(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection in the count of its address, for as long as this exists: whoever drops the connection need not remember
/// to give it back.
pub(crate) struct Counted {
    counts: ConnectionsByAddress,
    ip: IpAddr,
}

impl ConnectionsByAddress {
    pub(crate) fn of(&self, ip: IpAddr) -> usize {
        self.locked().get(&ip).copied().unwrap_or_default()
    }

    /// Counts one more connection of this address.
    pub(crate) fn count(&self, ip: IpAddr) -> Box<Counted> {
        *self.locked().entry(ip).or_default() += 1;
        Box::new(Counted { counts: self.clone(), ip })
    }

    /// Counts are right after every change, so those of a worker that panicked are too.
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
