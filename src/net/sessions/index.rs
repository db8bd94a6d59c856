//! Finding sessions: by the ssrc of a datagram, and by the client id or MAC of a device.

use std::hash::BuildHasher;
use std::hint::black_box;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::net::event_loop::token::SessionId;
use crate::proto::identity::Mac;

/// Both indexes. An entry is small, to save memory, and since each packet of thousands of calls looks for another one outside the caches.
#[derive(Default)]
pub struct Index {
    /// By ssrc.
    calls: HashTable<Entry>,
    /// By the hash of the MAC. A client id contains one, and several client ids may have the same.
    devices: HashTable<Entry>,
    hasher: DefaultHashBuilder,
}

struct Entry {
    /// What growing the table needs to move the entry, because looking up thousands of sessions at once would interrupt the audio of
    /// calls.
    key: u32,
    /// Of the session, whose entry is removed before its slot is free for another one.
    slot: u32,
}

impl Entry {
    /// The hash for the table. Ssrcs and hashes are random already; the table also needs entropy in the upper bits.
    fn hash(&self) -> u64 {
        spread(self.key)
    }
}

impl Index {
    /// The slot of the session of the call with this ssrc.
    pub fn call(&self, ssrc: u32) -> Option<usize> {
        self.calls.find(spread(ssrc), |call| call.key == ssrc).map(|call| call.slot as usize)
    }

    /// The slots of the sessions of these calls; one in a hundred may be that of another call. With thousands of calls no entry is in the caches:
    /// the tables' tags of all are read, then all entries, so that the processor waits for those of one step at the same time.
    pub(crate) fn probable_calls<const N: usize>(&self, ssrcs: [Option<u32>; N]) -> [Option<usize>; N] {
        let entries = ssrcs.map(|ssrc| self.calls.find(spread(ssrc?), |_| true));
        black_box(entries).map(|entry| entry.map(|entry| entry.slot as usize))
    }

    /// Adds a call. No other call has its ssrc.
    pub fn add_call(&mut self, ssrc: u32, id: SessionId) {
        self.calls.insert_unique(spread(ssrc), Entry { key: ssrc, slot: id.slot }, Entry::hash);
    }

    /// Removes the call if it is still this session's, and returns whether it was.
    pub(crate) fn remove_call(&mut self, ssrc: u32, id: SessionId) -> bool {
        let entry = self.calls.find_entry(spread(ssrc), |call| call.key == ssrc && call.slot == id.slot);
        entry.map(|entry| entry.remove()).is_ok()
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.len()
    }

    /// The slots of sessions that may have this MAC; the caller must compare.
    pub(crate) fn candidates(&self, mac: Mac) -> impl Iterator<Item = usize> {
        let hash = self.hash(mac);
        let same_hash = self.devices.iter_hash(spread(hash)).filter(move |device| device.key == hash);
        same_hash.map(|device| device.slot as usize)
    }

    pub(crate) fn add_device(&mut self, mac: Mac, id: SessionId) {
        let hash = self.hash(mac);
        self.devices.insert_unique(spread(hash), Entry { key: hash, slot: id.slot }, Entry::hash);
    }

    /// Removes the device's entry of this session.
    pub(crate) fn remove_device(&mut self, mac: Mac, id: SessionId) {
        if let Ok(entry) = self.devices.find_entry(spread(self.hash(mac)), |device| device.slot == id.slot) {
            entry.remove();
        }
    }

    /// Returns the memory that only a peak needed.
    pub(crate) fn shrink(&mut self) {
        self.devices.shrink_to_fit(Entry::hash);
        self.calls.shrink_to_fit(Entry::hash);
    }

    pub(crate) fn devices(&self) -> usize {
        self.devices.len()
    }

    fn hash(&self, mac: Mac) -> u32 {
        self.hasher.hash_one(mac) as u32
    }
}

fn spread(value: u32) -> u64 {
    u64::from(value).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
