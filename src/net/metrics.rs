//! Counters of what happened, for the management API. Counting costs no hashing and no allocation.

use std::time::Duration;

use crate::admin::prometheus::Histogram;
use crate::proto::mqtt::ConnectReturnCode;
use crate::session::{BackendStage, CallStats, CallSummary, Counter, DropReason, EndReason};

/// CONNECT's refusals.
const REFUSALS: [(ConnectReturnCode, &str); 5] = [
    (ConnectReturnCode::UnsupportedLevel, "protocol_level"),
    (ConnectReturnCode::IdentifierRejected, "client_id"),
    (ConnectReturnCode::ServerUnavailable, "unavailable"),
    (ConnectReturnCode::BadCredentials, "credentials"),
    (ConnectReturnCode::NotAuthorised, "not_authorised"),
];

/// Everything that is counted since the start.
#[derive(Debug)]
pub struct Metrics {
    /// TCP connections accepted on the MQTT port.
    pub connections: u64,
    /// Of these, closed at once because there were too many.
    pub turned_away: u64,
    /// TLS handshakes of devices that were finished.
    pub tls_handshakes: u64,
    /// TLS handshakes that failed, or were never finished.
    pub tls_failed: u64,
    /// Devices let in.
    pub admitted: u64,
    /// Datagrams received.
    pub datagrams_in: u64,
    /// Datagrams the system took.
    pub datagrams_out: u64,
    /// Datagrams the system refused.
    pub datagrams_failed: u64,
    /// Payloads of devices that are no JSON object.
    pub bad_device_texts: u64,
    /// Texts of chat servers that are no JSON object.
    pub bad_server_texts: u64,
    /// Hellos of chat servers in mid-call.
    pub repeated_hellos: u64,
    /// Calls that went on with another WebSocket.
    pub redials: u64,
    /// WebSockets asked for.
    pub dials: u64,
    /// WebSockets that came to be open.
    pub dials_opened: u64,
    /// Devices that asked for another one.
    pub device_calls: u64,
    /// Of these, answered by it.
    pub device_calls_bridged: u64,
    /// From a device's hello to its reply.
    pub hello_to_reply: Histogram<12>,
    /// The working part of a turn of the loop.
    pub turns: Histogram<12>,
    /// Packets, bytes and losses of the calls that are over.
    pub over: CallStats,
    /// Answers of the management API by hundreds of their status.
    pub api_answers: [u64; 6],
    /// Connections to the management API.
    pub api_connections: u64,
    /// Of these, closed for a newcomer.
    pub api_displaced: u64,
    discards: [u64; DropReason::ALL.len()],
    ends: [u64; EndReason::ALL.len()],
    dial_failures: [u64; BackendStage::ALL.len()],
    refusals: [u64; REFUSALS.len()],
}

impl Default for Metrics {
    fn default() -> Self {
        const fn ms(ms: [u64; 12]) -> Histogram<12> {
            let mut limits = [Duration::ZERO; 12];
            let mut i = 0;
            while i < 12 {
                limits[i] = Duration::from_millis(ms[i]);
                i += 1;
            }
            Histogram::new(limits)
        }
        const fn us(us: [u64; 12]) -> Histogram<12> {
            let mut limits = [Duration::ZERO; 12];
            let mut i = 0;
            while i < 12 {
                limits[i] = Duration::from_micros(us[i]);
                i += 1;
            }
            Histogram::new(limits)
        }
        Self {
            connections: 0,
            turned_away: 0,
            tls_handshakes: 0,
            tls_failed: 0,
            admitted: 0,
            datagrams_in: 0,
            datagrams_out: 0,
            datagrams_failed: 0,
            bad_device_texts: 0,
            bad_server_texts: 0,
            repeated_hellos: 0,
            redials: 0,
            dials: 0,
            dials_opened: 0,
            device_calls: 0,
            device_calls_bridged: 0,
            hello_to_reply: ms([10, 25, 50, 100, 250, 500, 1000, 2000, 4000, 6000, 8000, 10_000]),
            turns: us([25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000, 1_000_000]),
            over: CallStats::default(),
            api_answers: [0; 6],
            api_connections: 0,
            api_displaced: 0,
            discards: [0; DropReason::ALL.len()],
            ends: [0; EndReason::ALL.len()],
            dial_failures: [0; BackendStage::ALL.len()],
            refusals: [0; REFUSALS.len()],
        }
    }
}

impl Metrics {
    /// Audio packets that were dropped, by reason.
    pub fn discards(&self) -> impl Iterator<Item = (&'static str, u64)> {
        DropReason::ALL.map(DropReason::label).into_iter().zip(self.discards)
    }

    /// Calls that ended, by reason.
    pub fn calls_ended(&self) -> impl Iterator<Item = (&'static str, u64)> {
        EndReason::ALL.map(EndReason::label).into_iter().zip(self.ends)
    }

    /// Chat servers that failed, by stage.
    pub fn dial_failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        BackendStage::ALL.map(BackendStage::label).into_iter().zip(self.dial_failures)
    }

    /// Devices that were refused, by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        REFUSALS.iter().zip(self.refusals).map(|((_, label), count)| (*label, count))
    }

    pub(crate) fn discarded(&mut self, discard: DropReason) {
        self.discards[discard as usize] += 1;
    }

    pub(crate) fn count(&mut self, counter: Counter) {
        match counter {
            Counter::Dropped(discard) => self.discarded(discard),
            Counter::Answered(ms) => self.hello_to_reply.observe(Duration::from_millis(ms.into())),
            Counter::BadDeviceText => self.bad_device_texts += 1,
            Counter::BadServerText => self.bad_server_texts += 1,
            Counter::RepeatedHello => self.repeated_hellos += 1,
            Counter::Redialled => self.redials += 1,
            Counter::DialFailed(stage) => self.dial_failures[stage as usize] += 1,
        }
    }

    pub(crate) fn refused(&mut self, code: ConnectReturnCode) {
        if let Some(place) = REFUSALS.iter().position(|(known, _)| *known == code) {
            self.refusals[place] += 1;
        }
    }

    pub(crate) fn ended(&mut self, summary: &CallSummary) {
        self.ends[summary.reason as usize] += 1;
        add(&mut self.over, &summary.stats);
    }
}

/// Adds the facts of one call to those of others.
pub(crate) fn add(sum: &mut CallStats, facts: &CallStats) {
    sum.up_packets += facts.up_packets;
    sum.up_bytes += facts.up_bytes;
    sum.down_packets += facts.down_packets;
    sum.down_bytes += facts.down_bytes;
    sum.lost += facts.lost;
    sum.reordered += facts.reordered;
    sum.duplicates += facts.duplicates;
    sum.dropped += facts.dropped;
    sum.redials += facts.redials;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_a_counter_and_a_label_of_its_own() {
        fn check(counted: impl Iterator<Item = (&'static str, u64)>, len: usize) {
            let counted: Vec<_> = counted.collect();
            assert!(counted.iter().all(|(_, count)| *count == 1), "{counted:?}");
            assert_eq!(counted.iter().map(|(label, _)| label).collect::<BTreeSet<_>>().len(), len);
        }
        let mut metrics = Metrics::default();
        DropReason::ALL.into_iter().for_each(|reason| metrics.count(Counter::Dropped(reason)));
        BackendStage::ALL.into_iter().for_each(|stage| metrics.count(Counter::DialFailed(stage)));
        check(metrics.discards(), DropReason::ALL.len());
        check(metrics.dial_failures(), BackendStage::ALL.len());
    }
}
