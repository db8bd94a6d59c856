//! What is known of the quality of a call, ended or not: plain values, for records, the management API and events.

use serde::{Deserialize, Serialize};

use super::call_verdict::Verdict;
use super::end_reasons::BackendStage;
use crate::labels::labelled_enum;

/// Slices in a series at most; when a call takes longer, each two become one, so that it stays complete.
const MAX_SLICES: usize = 120;
/// The length of a slice, in seconds, until then.
pub(super) const SLICE_S: u32 = 10;

labelled_enum! {
    /// What a call waits for until its device gets the hello reply.
    pub enum SetupStage {
        /// The chat server's name is looked up, or the dial waits for one of `websocket.max_dials`.
        Resolve => "resolve",
        /// The TCP connection is opened.
        Connect => "connect",
        /// The TLS handshake.
        Tls => "tls",
        /// The WebSocket upgrade.
        Upgrade => "upgrade",
        /// The chat server's hello.
        Hello => "hello",
    }
}

/// How long each stage of a call's set-up took, over all chat servers that were tried, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SetupTimes {
    /// From the device's hello to the reply; none when there was no reply.
    pub total_ms: Option<u32>,
    /// See [`SetupStage::Resolve`].
    pub resolve_ms: u32,
    /// See [`SetupStage::Connect`].
    pub connect_ms: u32,
    /// See [`SetupStage::Tls`].
    pub tls_ms: u32,
    /// See [`SetupStage::Upgrade`].
    pub upgrade_ms: u32,
    /// See [`SetupStage::Hello`].
    pub hello_ms: u32,
}

impl SetupTimes {
    /// The time of one stage.
    pub fn of(&self, stage: SetupStage) -> u32 {
        let mut times = *self;
        *times.of_mut(stage)
    }

    pub(super) fn of_mut(&mut self, stage: SetupStage) -> &mut u32 {
        match stage {
            SetupStage::Resolve => &mut self.resolve_ms,
            SetupStage::Connect => &mut self.connect_ms,
            SetupStage::Tls => &mut self.tls_ms,
            SetupStage::Upgrade => &mut self.upgrade_ms,
            SetupStage::Hello => &mut self.hello_ms,
        }
    }
}

/// The quality of a call: of one in progress, so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallReport {
    /// What was wrong.
    pub verdict: Verdict,
    /// How long it took to begin.
    pub setup: SetupTimes,
    /// From the hello reply to the first audio of the device; 0 if that was earlier, none without any.
    pub first_packet_ms: Option<u32>,
    /// Packets of the device that never came, in percent.
    pub loss_percent: f32,
    /// The same in the worst ten seconds with 50 packets or more.
    pub worst_loss_percent: f32,
    /// The jitter of the device's packets: the worst of each ten seconds with packets, and the median of those.
    pub median_jitter_ms: f32,
    /// Its worst value.
    pub worst_jitter_ms: f32,
    /// How often the device had nothing to play in the middle of the server's speech, for 100 ms or more.
    pub gaps: u32,
    /// How long that was in all.
    pub gap_ms: u32,
    /// How long it was at worst.
    pub longest_gap_ms: u32,
    /// The longest time from the user's last word to the first audio of the answer; none without an answer.
    pub slowest_answer_ms: Option<u32>,
    /// How long the device listened at most without any audio of it.
    pub unheard_ms: u32,
    /// How often the device came back after its connection was lost.
    pub resumed: u32,
    /// How long it was away until then, in all.
    pub away_ms: u32,
    /// How often a chat server failed, before the call began or during it.
    pub failure_count: u32,
    /// The first of these failures.
    pub failures: Vec<CallFailure>,
}

/// A chat server failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallFailure {
    /// Time since the device's hello.
    pub after_ms: u32,
    /// The URL, without the secrets in its query.
    pub server: Box<str>,
    /// How far it was.
    pub stage: BackendStage,
    /// What was seen, for a person to read.
    pub cause: Box<str>,
}

/// What came and went in a slice of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallSlice {
    /// Audio packets of the device that were accepted.
    pub packets_up: u32,
    /// Packets of the device that never came.
    pub lost: u32,
    /// The worst jitter.
    pub jitter_ms: f32,
    /// Audio packets for the device.
    pub packets_down: u32,
    /// How long the device had nothing to play in the middle of the server's speech.
    pub gap_ms: u32,
}

impl CallSlice {
    fn add(&mut self, more: &Self) {
        self.packets_up = self.packets_up.saturating_add(more.packets_up);
        self.lost = self.lost.saturating_add(more.lost);
        self.jitter_ms = self.jitter_ms.max(more.jitter_ms);
        self.packets_down = self.packets_down.saturating_add(more.packets_down);
        self.gap_ms = self.gap_ms.saturating_add(more.gap_ms);
    }
}

/// A whole call in slices: of 10 s, in a call of more than 20 minutes of 20 s, of more than 40 minutes of 40 s, and so on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallSeries {
    /// The length of a slice.
    pub slice_seconds: u32,
    /// 120 at most, 2.4 KB.
    pub slices: Vec<CallSlice>,
}

impl Default for CallSeries {
    fn default() -> Self {
        Self { slice_seconds: SLICE_S, slices: Vec::new() }
    }
}

impl CallSeries {
    /// Adds the `index`th ten seconds of the call.
    pub(super) fn add(&mut self, index: u32, slice: &CallSlice) {
        let mut at = index / (self.slice_seconds / SLICE_S);
        while at as usize >= MAX_SLICES {
            self.halve();
            at /= 2;
        }
        let at = at as usize;
        if self.slices.len() <= at {
            // Every ten seconds at most, so that nothing is kept for later ones.
            self.slices.reserve_exact(at + 1 - self.slices.len());
            self.slices.resize(at + 1, CallSlice::default());
        }
        self.slices[at].add(slice);
    }

    fn halve(&mut self) {
        let len = self.slices.len().div_ceil(2);
        for at in 0..len {
            let mut merged = self.slices[2 * at];
            if let Some(second) = self.slices.get(2 * at + 1) {
                merged.add(second);
            }
            self.slices[at] = merged;
        }
        self.slices.truncate(len);
        self.slice_seconds = self.slice_seconds.saturating_mul(2);
    }

    /// The median of the jitter of the slices with packets.
    pub(super) fn median_jitter_ms(&self) -> f32 {
        let heard = self.slices.iter().filter(|slice| slice.packets_up > 0);
        let mut jitters: Vec<_> = heard.map(|slice| slice.jitter_ms).collect();
        jitters.sort_by(f32::total_cmp);
        jitters.get(jitters.len() / 2).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(packets_up: u32, jitter_ms: f32) -> CallSlice {
        CallSlice { packets_up, jitter_ms, ..CallSlice::default() }
    }

    #[test]
    fn a_long_call_has_longer_slices_and_loses_none() {
        let mut series = CallSeries::default();
        let packets = |series: &CallSeries| series.slices.iter().map(|slice| slice.packets_up).sum::<u32>();
        for index in 0..1000 {
            series.add(index, &slice(166, 1.0));
            assert!(series.slices.len() <= MAX_SLICES);
            assert_eq!(packets(&series), 166 * (index + 1));
        }
        assert_eq!((series.slice_seconds, series.slices.len()), (160, 1000_usize.div_ceil(16)));
        assert_eq!(series.slices[0].packets_up, 16 * 166);
    }

    #[test]
    fn a_pause_of_days_leaves_empty_slices_within_the_bound() {
        let mut series = CallSeries::default();
        series.add(0, &slice(1, 1.0));
        series.add(7 * 8640, &slice(2, 1.0));
        assert!(series.slices.len() <= MAX_SLICES && series.slices.len() > MAX_SLICES / 2 - 1);
        assert_eq!(series.slices.first().map(|slice| slice.packets_up), Some(1));
        assert_eq!(series.slices.last().map(|slice| slice.packets_up), Some(2));
        series.add(u32::MAX, &slice(3, 1.0));
        assert!(series.slices.len() <= MAX_SLICES);
    }

    #[test]
    fn the_median_leaves_out_what_had_no_packets() {
        let mut series = CallSeries::default();
        assert_eq!(series.median_jitter_ms().to_bits(), 0);
        for (index, (packets, jitter)) in
            [(0, 0.0), (9, 3.0), (0, 0.0), (9, 90.0), (9, 4.0)].into_iter().enumerate()
        {
            series.add(index as u32, &slice(packets, jitter));
        }
        assert!((series.median_jitter_ms() - 4.0).abs() < 0.01);
    }
}
