//! Datagrams that were dropped, by the address they came from: for the log line that says why a call has no audio.

use std::collections::HashMap;
use std::net::IpAddr;

/// The dropped datagrams of one address that has calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UdpDrops {
    calls: u32,
    datagrams: u64,
    last_reason: Option<&'static str>,
}

impl UdpDrops {
    /// What an operator should know when a device has no audio, and what to check.
    pub(crate) fn describe(&self) -> String {
        match self.last_reason {
            None => "nothing was seen from its address: check that this UDP port is open in every firewall \
                and forwarded by every router and tunnel, and that udp.public_ip is right"
                .to_owned(),
            Some(reason) => {
                let count = self.datagrams;
                format!("{count} datagrams came from its address but were dropped, the last as {reason}")
            }
        }
    }
}

/// Dropped datagrams by address, only for addresses that have calls: a flood from elsewhere adds no entries.
#[derive(Default)]
pub(crate) struct DropsByAddress(HashMap<IpAddr, UdpDrops>);

impl DropsByAddress {
    /// Counts the drops of this address until [`forget`](Self::forget) was called as often.
    pub(crate) fn watch(&mut self, ip: IpAddr) {
        self.0.entry(ip).or_default().calls += 1;
    }

    pub(crate) fn forget(&mut self, ip: IpAddr) {
        if let Some(drops) = self.0.get_mut(&ip) {
            drops.calls -= 1;
            if drops.calls == 0 {
                self.0.remove(&ip);
            }
        }
    }

    pub(crate) fn discarded(&mut self, ip: IpAddr, reason: &'static str) {
        if let Some(drops) = self.0.get_mut(&ip) {
            drops.datagrams += 1;
            drops.last_reason = Some(reason);
        }
    }

    pub(crate) fn of(&self, ip: IpAddr) -> UdpDrops {
        self.0.get(&ip).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_counted_while_the_address_has_calls() {
        let (mut drops, ip) = (DropsByAddress::default(), IpAddr::from([192, 0, 2, 1]));
        drops.discarded(ip, "late");
        drops.watch(ip);
        drops.watch(ip);
        assert!(drops.of(ip).describe().starts_with("nothing was seen"));
        drops.discarded(ip, "late");
        drops.discarded(ip, "short");
        drops.forget(ip);
        assert_eq!(
            drops.of(ip).describe(),
            "2 datagrams came from its address but were dropped, the last as short"
        );
        drops.forget(ip);
        assert!(drops.0.is_empty());
    }
}
