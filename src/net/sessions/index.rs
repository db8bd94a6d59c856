//! Finding sessions: by the ssrc of a datagram, and by the client id or MAC of a device.

use std::hash::BuildHasher;
use std::net::IpAddr;

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use crate::net::event_loop::token::SessionId;
use crate::net::sessions::table::Sessions;
use crate::proto::identity::{ClientId, Mac};

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
    pub(in crate::net) fn remove_call(&mut self, ssrc: u32, id: SessionId) -> Option<IpAddr> {
        let entry = self.calls.find_entry(spread(ssrc), |call| call.ssrc == ssrc && call.id == id).ok()?;
        Some(entry.remove().0.ip)
    }

    pub(in crate::net) fn calls(&self) -> usize {
        self.calls.len()
    }

    /// The session of exactly this client id.
    pub(in crate::net) fn device(&self, client_id: &ClientId, sessions: &Sessions) -> Option<SessionId> {
        self.of_mac(client_id.mac(), sessions)
            .find(|id| client_id_of(*id, sessions).is_some_and(|found| found == client_id))
    }

    /// The session that operators mean by a client id, or else by the MAC in it, or by a MAC alone: a client id changes with
    /// the device's group, and of several connections the latest counts.
    pub(in crate::net) fn named(&self, name: &str, sessions: &Sessions) -> Option<SessionId> {
        let client_id = ClientId::parse(name);
        if let Some(exact) = client_id.as_ref().ok().and_then(|client_id| self.device(client_id, sessions)) {
            return Some(exact);
        }
        let mac = client_id.map(|client_id| client_id.mac()).or_else(|_| name.parse()).ok()?;
        self.of_mac(mac, sessions)
            .max_by_key(|id| sessions.get(*id).and_then(|session| session.core.online_since()))
    }

    /// Every session of this MAC.
    pub(in crate::net) fn of_mac(&self, mac: Mac, sessions: &Sessions) -> impl Iterator<Item = SessionId> {
        let hash = self.hash(mac);
        let same = move |id: &SessionId| client_id_of(*id, sessions).is_some_and(|found| found.mac() == mac);
        let alike = self.devices.iter_hash(spread(hash)).filter(move |device| device.hash == hash);
        alike.map(|device| device.id).filter(same)
    }

    pub(in crate::net) fn add_device(&mut self, mac: Mac, id: SessionId) {
        let hash = self.hash(mac);
        self.devices.insert_unique(spread(hash), DeviceEntry { hash, id }, |device| spread(device.hash));
    }

    /// Forgets the device if the entry is still this session's.
    pub(in crate::net) fn remove_device(&mut self, mac: Mac, id: SessionId) {
        if let Ok(entry) = self.devices.find_entry(spread(self.hash(mac)), |device| device.id == id) {
            entry.remove();
        }
    }

    /// Gives back the memory of those who left.
    pub(in crate::net) fn shrink(&mut self) {
        self.devices.shrink_to_fit(|device| spread(device.hash));
        self.calls.shrink_to_fit(|call| spread(call.ssrc));
    }

    pub(in crate::net) fn devices(&self) -> usize {
        self.devices.len()
    }

    fn hash(&self, mac: Mac) -> u32 {
        self.hasher.hash_one(mac) as u32
    }
}

fn client_id_of(id: SessionId, sessions: &Sessions) -> Option<&ClientId> {
    sessions.get(id)?.core.client_id()
}

/// Ssrcs are ours and random, hashes are keyed; this only moves their entropy to where the table looks.
fn spread(ssrc: u32) -> u64 {
    u64::from(ssrc).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// What was seen from an IP address that should have sent audio: for the line that says why there is none.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::net) struct UdpDrops {
    calls: u32,
    pub(in crate::net) datagrams: u64,
    pub(in crate::net) last: Option<&'static str>,
}

/// Sightings of the addresses that have calls, and of no others: a flood from elsewhere costs nothing.
#[derive(Default)]
pub(in crate::net) struct DropsByAddress(HashMap<IpAddr, UdpDrops>);

impl DropsByAddress {
    pub(in crate::net) fn watch(&mut self, ip: IpAddr) {
        self.0.entry(ip).or_default().calls += 1;
    }

    pub(in crate::net) fn forget(&mut self, ip: IpAddr) {
        if let Some(sighting) = self.0.get_mut(&ip) {
            sighting.calls -= 1;
            if sighting.calls == 0 {
                self.0.remove(&ip);
            }
        }
    }

    pub(in crate::net) fn discarded(&mut self, ip: IpAddr, why: &'static str) {
        if let Some(sighting) = self.0.get_mut(&ip) {
            sighting.datagrams += 1;
            sighting.last = Some(why);
        }
    }

    pub(in crate::net) fn of(&self, ip: IpAddr) -> UdpDrops {
        self.0.get(&ip).copied().unwrap_or_default()
    }
}
