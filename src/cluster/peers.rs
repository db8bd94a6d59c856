//! The other gateways, as far as they were heard.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{GatewayId, OwnInfo, Peer};

/// How long a gateway that is not heard counts as there.
pub(super) const STALE: Duration = Duration::from_secs(7);
/// The most gateways; announcements of more are ignored.
const PEERS_MAX: usize = 1000;
/// The longest announcement, in bytes.
const ANNOUNCEMENT_MAX: usize = 2048;
/// The longest text in it, in characters.
const TEXT_MAX: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Peers(BTreeMap<GatewayId, Peer>);

impl Peers {
    pub(super) fn all(&self) -> impl Iterator<Item = &Peer> {
        self.0.values()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// A gateway has announced itself. Whether it was not known; `None` when the announcement is refused.
    pub(super) fn heard(&mut self, id: GatewayId, payload: &[u8], now: Instant) -> Option<bool> {
        let is_new = !self.0.contains_key(&id);
        if payload.len() > ANNOUNCEMENT_MAX || is_new && self.0.len() >= PEERS_MAX {
            return None;
        }
        let info: OwnInfo = serde_json::from_slice(payload).ok()?;
        let texts = [&info.name, &info.version, &info.mqtt, &info.udp, &info.api];
        if info.name.is_empty() || !texts.iter().all(|text| is_plain(text)) {
            return None;
        }
        self.0.insert(id, Peer { id, info, last_heard: now });
        Some(is_new)
    }

    pub(super) fn remove(&mut self, id: GatewayId) -> Option<Peer> {
        self.0.remove(&id)
    }

    /// After an outage of Redis, all have their time to be heard again.
    pub(super) fn wait_again(&mut self, now: Instant) {
        self.0.values_mut().for_each(|peer| peer.last_heard = now);
    }

    /// When the next one is missed, if that is before `hears_until`.
    pub(super) fn deadline(&self, hears_until: Option<Instant>) -> Option<Instant> {
        let next = self.0.values().map(|peer| peer.last_heard + STALE).min();
        next.filter(|at| hears_until.is_some_and(|until| *at < until))
    }

    /// Those that were not heard for too long, by a channel that delivers until `hears_until`.
    pub(super) fn stale(&self, now: Instant, hears_until: Option<Instant>) -> Vec<GatewayId> {
        let Some(until) = hears_until else { return Vec::new() };
        let missed = |peer: &&Peer| peer.last_heard + STALE <= now && peer.last_heard + STALE < until;
        let stale = self.0.values().filter(missed);
        stale.map(|peer| peer.id).collect()
    }
}

/// Fit for a line of the log.
fn is_plain(text: &str) -> bool {
    text.chars().count() <= TEXT_MAX && !text.chars().any(char::is_control)
}
