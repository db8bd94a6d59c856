//! Datagrams that were dropped, by the address they came from: for the log line that says why a call has no audio.

use std::collections::HashMap;
use std::net::IpAddr;

/// What was dropped of the datagrams of an address that has a call.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UdpDrops {
    calls: u32,
    pub(crate) datagrams: u64,
    pub(crate) last: Option<&'static str>,
}

/// Drops by address, only for addresses that have calls: a flood from elsewhere costs nothing.
#[derive(Default)]
pub(crate) struct DropsByAddress(HashMap<IpAddr, UdpDrops>);

impl DropsByAddress {
    pub(crate) fn watch(&mut self, ip: IpAddr) {
        self.0.entry(ip).or_default().calls += 1;
    }

    pub(crate) fn forget(&mut self, ip: IpAddr) {
        if let Some(sighting) = self.0.get_mut(&ip) {
            sighting.calls -= 1;
            if sighting.calls == 0 {
                self.0.remove(&ip);
            }
        }
    }

    pub(crate) fn discarded(&mut self, ip: IpAddr, why: &'static str) {
        if let Some(sighting) = self.0.get_mut(&ip) {
            sighting.datagrams += 1;
            sighting.last = Some(why);
        }
    }

    pub(crate) fn of(&self, ip: IpAddr) -> UdpDrops {
        self.0.get(&ip).copied().unwrap_or_default()
    }
}
