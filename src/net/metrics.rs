//! Counters of events, for the management API. Counting needs no hashing and no allocation.

use std::time::Duration;

use crate::admin::prometheus::Histogram;
use crate::config::MacDenial;
use crate::labels::labelled_enum;
use crate::proto::mqtt::ConnectReturnCode;
use crate::session::{
    BackendStage, CallStats, CallSummary, Counter, DropReason, EndReason, SetupStage, Verdict,
};

/// The refusals of CONNECT, and their labels.
const REFUSALS: [(ConnectReturnCode, &str); 5] = [
    (ConnectReturnCode::UnsupportedLevel, "protocol_level"),
    (ConnectReturnCode::IdentifierRejected, "client_id"),
    (ConnectReturnCode::ServerUnavailable, "unavailable"),
    (ConnectReturnCode::BadCredentials, "credentials"),
    (ConnectReturnCode::NotAuthorised, "not_authorised"),
];

/// The codes of errors that say why a caller of the management API was refused.
const API_REFUSALS: [&str; 4] = ["unauthorized", "weak_key", "forwarded", "foreign_origin"];

labelled_enum! {
    /// Why a connection of a device was closed because there were too many.
    pub(crate) enum TurnedAway {
        /// It is new, and its address has too many.
        AddressLimit => "address_limit",
        /// It is new, and no other one could be closed for it.
        Full => "full",
        /// It was closing, and made room.
        Closing => "closing",
        /// It did not advance for seconds, and made room.
        Stalled => "stalled",
        /// Its address had the most connections that had not logged in, or the most handshakes; it made room.
        Crowding => "crowding",
    }
}

labelled_enum! {
    /// Why a connection to the management API was closed to admit another one.
    #[derive(PartialOrd, Ord)]
    pub(crate) enum ApiDisplaced {
        /// It had served its last request.
        Closing => "api_closing",
        /// It sent or took nothing for seconds.
        Stalled => "api_stalled",
        /// Its address had the most connections.
        Crowding => "api_crowding",
        /// All others waited for an answer too.
        Pending => "api_pending",
    }
}

labelled_enum! {
    /// What became of a device's OTA request.
    pub(crate) enum OtaOutcome {
        /// It got this gateway's own answer.
        Answered => "answered",
        /// It got another server's answer, with the settings of this gateway.
        PassedOn => "passed_on",
        /// It got this gateway's own answer, since the other server gave none that can be used.
        UpstreamFailed => "upstream_failed",
        /// Its address or MAC is not to be answered.
        Refused => "refused",
        /// Its address has asked too often.
        Limited => "limited",
        /// It is no request of a device.
        Invalid => "invalid",
        /// It got a sound.
        Sound => "sound",
    }
}

/// Everything that has been counted since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// TCP connections accepted on the MQTT port.
    pub connections: u64,
    /// Failed logins whose answer was delayed.
    pub refusals_delayed: u64,
    /// Failed logins that got no answer.
    pub refusals_unanswered: u64,
    /// Log lines about refused logins and connections that were left out.
    pub refusal_lines_left_out: u64,
    /// Finished TLS handshakes of devices.
    pub tls_handshakes: u64,
    /// TLS handshakes of devices that failed or were never finished.
    pub tls_failed: u64,
    /// Successful logins of devices.
    pub admitted: u64,
    /// Logins when as many client ids with the same MAC were connected as are allowed: refused, or another one was closed.
    pub over_mac_limit: u64,
    /// Datagrams received.
    pub datagrams_in: u64,
    /// Datagrams sent.
    pub datagrams_out: u64,
    /// Datagrams that the system refused to send.
    pub datagrams_failed: u64,
    /// Payloads of devices that were not a JSON object.
    pub bad_device_texts: u64,
    /// JSON-RPC notifications of devices without a call.
    pub device_notifications: u64,
    /// Texts of chat servers that were not a JSON object.
    pub bad_server_texts: u64,
    /// Hellos of chat servers during a call.
    pub repeated_hellos: u64,
    /// Calls that were continued over another WebSocket.
    pub redials: u64,
    /// WebSockets dialled.
    pub dials: u64,
    /// WebSockets that were opened.
    pub dials_opened: u64,
    /// Requests of one device to call another.
    pub device_calls: u64,
    /// Device-to-device calls that were answered.
    pub device_calls_bridged: u64,
    /// Audio packets passed to other workers.
    pub relay_packets: u64,
    /// Batches of messages and audio passed to other workers.
    pub relay_batches: u64,
    /// How long things took.
    pub times: Times,
    /// Packets, bytes and losses of the calls that have ended.
    pub ended_calls: CallStats,
    /// Uplink packets that the ended calls have lost, as they were counted while the calls went on.
    pub audio_lost: u64,
    /// Finished TLS handshakes of the management API.
    pub api_tls_handshakes: u64,
    /// TLS handshakes of the management API that failed or were not finished in time.
    pub api_tls_failed: u64,
    /// Responses of the management API by the first digit of their status.
    pub api_answers: [u64; 6],
    /// Connections to the management API.
    pub api_connections: u64,
    turned_away: [u64; TurnedAway::ALL.len()],
    api_displaced: [u64; ApiDisplaced::ALL.len()],
    ota_outcomes: [u64; OtaOutcome::ALL.len()],
    discards: [u64; DropReason::ALL.len()],
    ends: [u64; EndReason::ALL.len()],
    verdicts: [u64; Verdict::ALL.len()],
    dial_failures: [u64; BackendStage::ALL.len()],
    refusals: [u64; REFUSALS.len()],
    api_refusals: [u64; API_REFUSALS.len()],
    mac_denials: [u64; 3],
}

/// How long things took.
#[derive(Debug)]
pub struct Times {
    /// The time from a device's hello to the reply.
    pub hello_to_reply: Histogram<12>,
    /// The part of it that each stage took.
    pub setup_stages: [Histogram<12>; SetupStage::ALL.len()],
    /// The time an iteration of the loop takes, without waiting for events.
    pub iterations: Histogram<12>,
}

impl Default for Times {
    fn default() -> Self {
        let ms = |limits: [u64; 12]| Histogram::new(limits.map(Duration::from_millis));
        let us = |limits: [u64; 12]| Histogram::new(limits.map(Duration::from_micros));
        Self {
            hello_to_reply: ms([10, 25, 50, 100, 250, 500, 1000, 2000, 4000, 6000, 8000, 10_000]),
            setup_stages: SetupStage::ALL
                .map(|_| ms([1, 5, 10, 25, 50, 100, 250, 500, 1000, 2000, 4000, 8000])),
            iterations: us([25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 100_000, 1_000_000]),
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

    /// Calls that ended, by what was wrong with them.
    pub fn verdicts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Verdict::ALL.map(Verdict::label).into_iter().zip(self.verdicts)
    }

    /// Chat servers that failed, by stage.
    pub fn dial_failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        BackendStage::ALL.map(BackendStage::label).into_iter().zip(self.dial_failures)
    }

    /// Devices that were refused, by reason.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        REFUSALS.iter().zip(self.refusals).map(|((_, label), count)| (*label, count))
    }

    /// Callers of the management API that were refused, by reason.
    pub fn api_refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        API_REFUSALS.into_iter().zip(self.api_refusals)
    }

    /// Counts a refusal with this code, if it is about the caller.
    pub(crate) fn api_refused(&mut self, code: &str) {
        let counters = API_REFUSALS.iter().zip(&mut self.api_refusals);
        counters.filter(|(reason, _)| **reason == code).for_each(|(_, count)| *count += 1);
    }

    /// Devices that may not connect, by the list that says so.
    pub fn mac_denials(&self) -> impl Iterator<Item = (&'static str, u64)> {
        ["denied_macs", "allowed_macs", "operator"].into_iter().zip(self.mac_denials)
    }

    pub(crate) fn discarded(&mut self, discard: DropReason) {
        self.discards[discard as usize] += 1;
    }

    pub(crate) fn count(&mut self, counter: Counter) {
        match counter {
            Counter::Dropped(discard) => self.discarded(discard),
            Counter::Answered(setup) => {
                let ms = |ms: u32| Duration::from_millis(ms.into());
                self.times.hello_to_reply.observe(ms(setup.total_ms.unwrap_or_default()));
                for (stage, histogram) in SetupStage::ALL.iter().zip(&mut self.times.setup_stages) {
                    histogram.observe(ms(setup.of(*stage)));
                }
            }
            Counter::BadDeviceText => self.bad_device_texts += 1,
            Counter::DeviceNotification => self.device_notifications += 1,
            Counter::BadServerText => self.bad_server_texts += 1,
            Counter::RepeatedHello => self.repeated_hellos += 1,
            Counter::Redialled => self.redials += 1,
            Counter::MacDenied(MacDenial::Denied) => self.mac_denials[0] += 1,
            Counter::MacDenied(MacDenial::NotAllowed) => self.mac_denials[1] += 1,
            Counter::MacDenied(MacDenial::Operator) => self.mac_denials[2] += 1,
            Counter::DialFailed(stage) => self.dial_failures[stage as usize] += 1,
        }
    }

    /// MQTT connections that were closed before login because there were too many, by reason.
    pub fn turned_away_by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
        TurnedAway::ALL.map(TurnedAway::label).into_iter().zip(self.turned_away)
    }

    /// Connections to the management API that were closed to admit another one, by reason.
    pub fn api_displaced_by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
        ApiDisplaced::ALL.map(ApiDisplaced::label).into_iter().zip(self.api_displaced)
    }

    /// OTA requests, by what became of them.
    pub fn ota_outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OtaOutcome::ALL.map(OtaOutcome::label).into_iter().zip(self.ota_outcomes)
    }

    pub(crate) fn ota_outcome(&mut self, outcome: OtaOutcome) {
        self.ota_outcomes[outcome as usize] += 1;
    }

    pub(crate) fn turned_away(&mut self, why: TurnedAway) {
        self.turned_away[why as usize] += 1;
    }

    pub(crate) fn api_displaced(&mut self, why: ApiDisplaced) {
        self.api_displaced[why as usize] += 1;
    }

    pub(crate) fn refused(&mut self, code: ConnectReturnCode) {
        if let Some(i) = REFUSALS.iter().position(|(known, _)| *known == code) {
            self.refusals[i] += 1;
        }
    }

    pub(crate) fn ended(&mut self, summary: &CallSummary) {
        self.ends[summary.reason as usize] += 1;
        self.verdicts[summary.report.verdict as usize] += 1;
        add(&mut self.ended_calls, &summary.stats);
        self.audio_lost += summary.stats.lost.max(summary.settled_lost);
    }
}

/// Adds the statistics of one call to a sum.
pub(crate) fn add(sum: &mut CallStats, stats: &CallStats) {
    sum.up_packets += stats.up_packets;
    sum.up_bytes += stats.up_bytes;
    sum.down_packets += stats.down_packets;
    sum.down_bytes += stats.down_bytes;
    sum.lost += stats.lost;
    sum.reordered += stats.reordered;
    sum.duplicates += stats.duplicates;
    sum.dropped += stats.dropped;
    sum.redials += stats.redials;
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
