//! Counters of what happened, for the management API.

use std::collections::HashMap;

use crate::session::{Counter, Discard, EndReason, Summary};

/// Everything that is counted since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// TCP connections accepted on the MQTT port.
    pub connections: u64,
    /// Of these, closed at once because there were too many.
    pub turned_away: u64,
    /// Devices let in.
    pub admitted: u64,
    /// Datagrams received.
    pub datagrams_in: u64,
    /// Datagrams the system took.
    pub datagrams_out: u64,
    /// Datagrams the system refused.
    pub datagrams_failed: u64,
    /// Audio that was dropped, by reason.
    pub discards: HashMap<Discard, u64>,
    /// Everything else a core counts.
    pub counters: HashMap<Counter, u64>,
    /// Calls that ended, by reason.
    pub calls_ended: HashMap<EndReason, u64>,
}

impl Metrics {
    pub(super) fn discarded(&mut self, discard: Discard) {
        *self.discards.entry(discard).or_default() += 1;
    }

    pub(super) fn count(&mut self, counter: Counter) {
        match counter {
            Counter::Dropped(discard) => self.discarded(discard),
            Counter::Answered(_) => {}
            counter => *self.counters.entry(counter).or_default() += 1,
        }
    }

    pub(super) fn ended(&mut self, summary: &Summary) {
        *self.calls_ended.entry(summary.reason).or_default() += 1;
    }
}
