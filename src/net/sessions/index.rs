//! Finding sessions: by the ssrc of a datagram, and by the client id or MAC of a device.

use std::hash::BuildHasher;
use std::net::IpAddr;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::net::event_loop::token::SessionId;
use crate::proto::identity::Mac;

/// Both indexes. They repeat no key: entries are names of sessions, which hold the keys. What a larger table needs to move an
/// entry is in the entry: thousands of sessions looked up at once would be heard by those who speak.
#[derive(Default)]
pub struct Index {
    /// With the address whose datagrams are looked out for.
    calls: HashTable<CallEntry>,
    /// By MAC: a client id contains it, and several client ids may share it.
    devices: HashTable<DeviceEntry>,
    hasher: DefaultHashBuilder,
}

struct CallEntry {
    ssrc: u32,
    id: SessionId,
    ip: IpAddr,
}

struct DeviceEntry {
    /// Of the MAC.
    hash: u32,
    id: SessionId,
}

impl Index {
    /// The session of the call with this ssrc.
    pub fn call(&self, ssrc: u32) -> Option<SessionId> {
        self.calls.find(spread(ssrc), |call| call.ssrc == ssrc).map(|call| call.id)
    }

    /// A call begins. Its ssrc is nobody else's; datagrams from `ip` are looked out for.
    pub fn add_call(&mut self, ssrc: u32, id: SessionId, ip: IpAddr) {
        self.calls.insert_unique(spread(ssrc), CallEntry { ssrc, id, ip }, |call| spread(call.ssrc));
    }

    /// Forgets the call if it is still this session's, and returns its address.
    pub(crate) fn remove_call(&mut self, ssrc: u32, id: SessionId) -> Option<IpAddr> {
        let entry = self.calls.find_entry(spread(ssrc), |call| call.ssrc == ssrc && call.id == id).ok()?;
        Some(entry.remove().0.ip)
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.len()
    }

    /// Sessions that probably have this MAC; the caller compares.
    pub(crate) fn candidates(&self, mac: Mac) -> impl Iterator<Item = SessionId> {
        let hash = self.hash(mac);
        let alike = self.devices.iter_hash(spread(hash)).filter(move |device| device.hash == hash);
        alike.map(|device| device.id)
    }

    pub(crate) fn add_device(&mut self, mac: Mac, id: SessionId) {
        let hash = self.hash(mac);
        self.devices.insert_unique(spread(hash), DeviceEntry { hash, id }, |device| spread(device.hash));
    }

    /// Forgets the device if the entry is still this session's.
    pub(crate) fn remove_device(&mut self, mac: Mac, id: SessionId) {
        if let Ok(entry) = self.devices.find_entry(spread(self.hash(mac)), |device| device.id == id) {
            entry.remove();
        }
    }

    /// Gives back the memory of those who left.
    pub(crate) fn shrink(&mut self) {
        self.devices.shrink_to_fit(|device| spread(device.hash));
        self.calls.shrink_to_fit(|call| spread(call.ssrc));
    }

    pub(crate) fn devices(&self) -> usize {
        self.devices.len()
    }

    fn hash(&self, mac: Mac) -> u32 {
        self.hasher.hash_one(mac) as u32
    }
}

/// Ssrcs are ours and random, hashes are keyed; this only moves their entropy to where the table looks.
fn spread(ssrc: u32) -> u64 {
    u64::from(ssrc).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
