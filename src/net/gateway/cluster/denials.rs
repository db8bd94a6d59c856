//! Operators' denials of devices hold at all gateways: each tells the others what it was asked, and a new one what holds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::admin::routes::Endpoint;
use crate::admin::worker_answer::Answer;
use crate::cluster::{GatewayId, Kind};
use crate::net::admin::request::AdminRequest;
use crate::net::gateway::Gateway;
use crate::net::gateway::notify_requests::NOBODY;
use crate::proto::identity::Mac;

/// Bytes of a MAC.
const MAC_LEN: usize = 6;

/// The frame has an operator's decision, and not all that a gateway denies.
const DECISION: u64 = 1;

/// A decision is told so often, at intervals of this: whoever has just lost Redis, or is only heard again, gets it then. A repetition
/// changes nothing.
const TIMES: u8 = 12;
const INTERVAL: Duration = Duration::from_secs(5);

/// How many decisions are repeated. Only operators make them.
const DECISIONS_MAX: usize = 1_000;

/// What operators have decided at this gateway a moment ago.
#[derive(Default)]
pub(crate) struct RecentDecisions {
    decisions: VecDeque<Decision>,
    repeat_at: Option<Instant>,
}

struct Decision {
    mac: Mac,
    is_denied: bool,
    times_left: u8,
}

impl RecentDecisions {
    fn add(&mut self, mac: Mac, is_denied: bool, now: Instant) {
        self.forget(mac);
        if self.decisions.len() == DECISIONS_MAX {
            self.decisions.pop_front();
        }
        self.decisions.push_back(Decision { mac, is_denied, times_left: TIMES });
        self.repeat_at = self.repeat_at.or(Some(now + INTERVAL));
    }

    /// Another gateway's operator has decided anew.
    fn forget(&mut self, mac: Mac) {
        self.decisions.retain(|decision| decision.mac != mac);
    }

    fn contains(&self, mac: Mac) -> bool {
        self.decisions.iter().any(|decision| decision.mac == mac)
    }

    /// Those that are to be repeated now, while Redis can be used.
    fn take_due(&mut self, now: Instant) -> Vec<(Mac, bool)> {
        if self.repeat_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        let due = self.decisions.iter().map(|decision| (decision.mac, decision.is_denied)).collect();
        self.decisions.iter_mut().for_each(|decision| decision.times_left -= 1);
        self.decisions.retain(|decision| decision.times_left > 0);
        self.repeat_at = (!self.decisions.is_empty()).then(|| now + INTERVAL);
        due
    }
}

impl Gateway {
    /// An operator has asked this gateway.
    pub(crate) fn tell_denied(&mut self, request_id: u64, answer: &Answer) {
        let Answer::Denied { mac, denied, .. } = answer else { return };
        if request_id != NOBODY {
            self.cluster.decisions.add(*mac, *denied, self.io.now);
            self.send_decision(*mac, *denied);
        }
    }

    fn send_decision(&mut self, mac: Mac, is_denied: bool) {
        let kind = if is_denied { Kind::Denied } else { Kind::Allowed };
        let gateways: Vec<_> = self.cluster.client.peers().map(|peer| peer.id).collect();
        for gateway in gateways {
            // One that does not get it is told again soon.
            let _ = self.cluster.client.send(gateway, kind as u8, DECISION, &mac.bytes(), &self.io);
        }
    }

    /// While Redis can be used, some times a minute.
    pub(crate) fn repeat_decisions(&mut self) {
        for (mac, is_denied) in self.cluster.decisions.take_due(self.io.now) {
            self.send_decision(mac, is_denied);
        }
    }

    /// Another gateway was heard for the first time.
    pub(crate) fn tell_all_denied(&mut self, gateway: GatewayId) {
        let denied: Vec<u8> =
            self.io.config.mqtt.denied_by_operator.iter().flat_map(|mac| mac.bytes()).collect();
        if !denied.is_empty() {
            let _ = self.cluster.client.send(gateway, Kind::Denied as u8, 0, &denied, &self.io);
        }
    }

    /// `id`: of the frame.
    pub(crate) fn on_denied_elsewhere(&mut self, macs: &[u8], denied: bool, id: u64) {
        let endpoint = if denied { Endpoint::Deny } else { Endpoint::Allow };
        for mac in macs.as_chunks::<MAC_LEN>().0 {
            let mac = Mac::from(*mac);
            if id == DECISION {
                self.cluster.decisions.forget(mac);
            } else if self.cluster.decisions.contains(mac) {
                // That gateway has not heard of it yet.
                continue;
            }
            if self.io.config.mqtt.denied_by_operator.contains(&mac) != denied {
                let request = AdminRequest::new(NOBODY, endpoint, mac.to_string(), String::new());
                self.hand_to_workers(request);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_repeated_for_a_minute_and_the_newest_holds() {
        let (mut decisions, now) = (RecentDecisions::default(), Instant::now());
        let mac = |n: u32| {
            let [a, b, c, d] = n.to_be_bytes();
            Mac::from([2, 0, a, b, c, d])
        };
        let at = |interval: u32| now + INTERVAL * interval;
        decisions.add(mac(1), true, now);
        decisions.add(mac(2), true, now);
        decisions.add(mac(1), false, now);
        assert_eq!(decisions.take_due(now), []);
        assert_eq!(decisions.take_due(at(1)), [(mac(2), true), (mac(1), false)]);
        assert_eq!(decisions.take_due(at(1)), []);
        decisions.forget(mac(2));
        for interval in 2..=TIMES.into() {
            assert!(decisions.contains(mac(1)));
            assert_eq!(decisions.take_due(at(interval)), [(mac(1), false)]);
        }
        assert!(!decisions.contains(mac(1)));
        assert_eq!(decisions.take_due(at(100)), []);
        (0..5_000).for_each(|n| decisions.add(mac(n), true, now));
        assert_eq!(decisions.take_due(at(100)).len(), DECISIONS_MAX);
    }
}
