//! Which of the connections that have not logged in gives up its place to a new one.
//!
//! A connection passes through stages: silence, a PROXY header, a TLS handshake, CONNECT. A real device takes some hundred
//! milliseconds for each of them, on the slowest networks. A flood has many connections that stay in one stage, whether they
//! are silent, stop halfway or send a byte now and then. So the first to go is a connection that has been in its stage for
//! [`STALLED_AFTER`]. If there is none, it is one of the address with the most connections: that which has been in its
//! stage for longest. Devices of other addresses keep their places however fast the flood is; devices of the same address
//! keep theirs as long as each stage takes less time than the flood needs to fill all places.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::net::event_loop::token::SessionId;
use crate::net::metrics::TurnedAway;
use crate::proto::address_key::AddressKey;

/// How long a connection may stay in one stage before it counts as stalled: several times what a slow device takes for a
/// flight of its handshake, and enough for one lost packet to be sent again.
pub(crate) const STALLED_AFTER: Duration = Duration::from_secs(3);

/// Connections by the start of their stage and by address; an IPv6 /64 is one address. Each call takes logarithmic time, so
/// that a flood cannot make evictions slow.
#[derive(Default)]
pub(crate) struct EvictionOrder {
    connections: HashMap<SessionId, (AddressKey, Instant)>,
    by_stage_start: BTreeSet<(Instant, SessionId)>,
    by_address: HashMap<AddressKey, BTreeSet<(Instant, SessionId)>>,
    /// The number of connections of each address, and the start of its oldest stage.
    by_count: BTreeSet<(usize, Reverse<Instant>, AddressKey)>,
}

impl EvictionOrder {
    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Adds a connection whose stage begins now. One that is there already has entered its next stage.
    pub(crate) fn insert(&mut self, id: SessionId, ip: IpAddr, now: Instant) {
        self.remove(id);
        let key = ip.into();
        self.connections.insert(id, (key, now));
        self.by_stage_start.insert((now, id));
        self.change(key, |connections| _ = connections.insert((now, id)));
    }

    pub(crate) fn remove(&mut self, id: SessionId) {
        let Some((key, since)) = self.connections.remove(&id) else { return };
        self.by_stage_start.remove(&(since, id));
        self.change(key, |connections| _ = connections.remove(&(since, id)));
    }

    fn change(&mut self, key: AddressKey, change: impl FnOnce(&mut BTreeSet<(Instant, SessionId)>)) {
        let connections = self.by_address.entry(key).or_default();
        let rank = |connections: &BTreeSet<(Instant, SessionId)>| {
            connections.first().map(|(oldest, _)| (connections.len(), Reverse(*oldest), key))
        };
        rank(connections).map(|rank| self.by_count.remove(&rank));
        change(connections);
        match rank(connections) {
            Some(rank) => _ = self.by_count.insert(rank),
            None => _ = self.by_address.remove(&key),
        }
    }

    /// Frees unused capacity.
    pub(crate) fn shrink(&mut self) {
        self.connections.shrink_to_fit();
        self.by_address.shrink_to_fit();
    }

    /// The connection to close for another one, and why it is this one.
    pub(crate) fn first(&self, now: Instant) -> Option<(SessionId, TurnedAway)> {
        if let Some((since, id)) = self.by_stage_start.first()
            && now.saturating_duration_since(*since) >= STALLED_AFTER
        {
            return Some((*id, TurnedAway::Stalled));
        }
        let (_, _, key) = self.by_count.last()?;
        let (_, id) = self.by_address.get(key)?.first()?;
        Some((*id, TurnedAway::Crowding))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// Connections that are numbered in their order, and a clock.
    struct Places {
        order: EvictionOrder,
        next: u32,
        now: Instant,
    }

    impl Places {
        fn new() -> Self {
            Self { order: EvictionOrder::default(), next: 0, now: Instant::now() }
        }

        fn pass(&mut self, ms: u64) {
            self.now += Duration::from_millis(ms);
        }

        fn add(&mut self, ip: &str) -> SessionId {
            self.next += 1;
            let id = SessionId { slot: self.next, epoch: self.next };
            self.advance(id, ip);
            id
        }

        /// The connection enters its next stage.
        fn advance(&mut self, id: SessionId, ip: &str) {
            self.order.insert(id, ip.parse().unwrap(), self.now);
        }

        fn evict(&mut self) -> Option<(SessionId, TurnedAway)> {
            self.order.first(self.now).inspect(|(id, _)| self.order.remove(*id))
        }
    }

    #[test]
    fn of_connections_accepted_at_the_same_time_the_first_goes_first() {
        let mut order = EvictionOrder::default();
        let now = Instant::now();
        // Slots are reused in any order.
        let ids: Vec<_> =
            [7, 3, 9].into_iter().zip(1..).map(|(slot, epoch)| SessionId { slot, epoch }).collect();
        ids.iter().for_each(|id| order.insert(*id, Ipv4Addr::LOCALHOST.into(), now));
        for id in ids {
            assert_eq!(order.first(now).unwrap().0, id);
            order.remove(id);
        }
    }

    #[test]
    fn a_flood_from_one_address_evicts_itself() {
        let mut places = Places::new();
        let device = places.add("192.0.2.1");
        let mut flood: Vec<_> = (0..3).map(|_| places.add("192.0.2.66")).collect();
        // A place for each of 300 connections a second, during 2 s.
        for _ in 0..600 {
            places.pass(3);
            flood.push(places.add("192.0.2.66"));
            assert_eq!(places.evict(), Some((flood.remove(0), TurnedAway::Crowding)));
        }
        assert!(places.order.connections.contains_key(&device));
    }

    #[test]
    fn a_device_of_the_floods_own_address_stays_while_it_advances() {
        let mut places = Places::new();
        let device = places.add("192.0.2.66");
        for n in 1..=1000 {
            places.pass(3);
            places.add("192.0.2.66");
            // 0.6 s for each of its stages, and 256 places, which take 0.77 s to fill.
            if n % 200 == 0 {
                places.advance(device, "192.0.2.66");
            }
            if places.order.len() > 256 {
                assert_ne!(places.evict().unwrap().0, device, "{n}");
            }
        }
    }

    #[test]
    fn the_stalled_go_first_whatever_their_address() {
        let mut places = Places::new();
        let stalled = [places.add("192.0.2.1"), places.add("192.0.2.2")];
        let advancing = places.add("192.0.2.3");
        places.pass(2_000);
        places.advance(advancing, "192.0.2.3");
        places.pass(1);
        let crowd = [places.add("192.0.2.66"), places.add("192.0.2.66")];
        places.pass(1_000);
        assert_eq!(stalled.map(|_| places.evict()), stalled.map(|id| Some((id, TurnedAway::Stalled))));
        assert_eq!(places.evict(), Some((crowd[0], TurnedAway::Crowding)));
        // Then each address has one: that in its stage for longest.
        assert_eq!(places.evict(), Some((advancing, TurnedAway::Crowding)));
        assert_eq!(places.evict(), Some((crowd[1], TurnedAway::Crowding)));
        assert_eq!(places.evict(), None);
    }

    #[test]
    fn an_ipv6_64_is_one_address_and_a_proxied_client_another_than_its_load_balancer() {
        let mut places = Places::new();
        let device = places.add("2001:db8:0:1::1");
        places.pass(1);
        let crowd = [places.add("2001:db8:0:2::1"), places.add("2001:db8:0:2::2")];
        let proxied = [places.add("192.0.2.1"), places.add("192.0.2.1"), places.add("192.0.2.1")];
        proxied.iter().zip(1..).for_each(|(id, n)| places.advance(*id, &format!("198.51.100.{n}")));
        assert_eq!(places.evict().unwrap().0, crowd[0]);
        assert_eq!(places.evict().unwrap().0, device, "of single ones the oldest");
    }

    #[test]
    fn what_is_removed_leaves_nothing() {
        let mut places = Places::new();
        let ids: Vec<_> = (0..100).map(|n| places.add(&format!("192.0.2.{}", n % 7))).collect();
        places.pass(5);
        ids.iter().step_by(2).for_each(|id| places.advance(*id, "192.0.2.200"));
        ids.iter().chain(&ids).for_each(|id| places.order.remove(*id));
        let EvictionOrder { connections, by_stage_start, by_address, by_count } = places.order;
        assert!(connections.is_empty() && by_stage_start.is_empty());
        assert!(by_address.is_empty() && by_count.is_empty());
    }
}
