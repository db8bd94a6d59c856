//! Records the quality of a call while it goes on. Nothing here allocates for a packet, nor reads a clock: ten seconds end with the
//! first packet behind them.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::Duration;

use super::action::{BackendFailure, CallStats, EndReason};
use super::call_report::{CallFailure, CallReport, CallSeries, CallSlice, SLICE_S, SetupStage, SetupTimes};
use super::call_verdict::{CallFacts, Verdict};
use super::jitter::Jitter;
use crate::text;

/// A shorter silence in the middle of speech is not counted: the device's own queue may cover it. In milliseconds.
const GAP_MIN_MS: u32 = 100;
/// Packets that ten seconds must have for their loss to count as the worst.
const WORST_LOSS_MIN_PACKETS: u32 = 50;
/// Failures of chat servers that are kept with their causes.
const MAX_FAILURES: usize = 8;
/// Bytes of a cause.
const MAX_CAUSE_BYTES: usize = 200;

/// The recorder of one call. Each call has one, so times are [`Moment`]s and milliseconds.
pub(super) struct CallQuality {
    answered_at: Option<Moment>,
    stage: Option<(SetupStage, Moment)>,
    setup: SetupTimes,
    jitter: Jitter,
    /// Audio packets of the device that were accepted.
    received: u32,
    first_packet_at: Option<Moment>,
    /// The ten seconds that have not ended.
    slice: CallSlice,
    /// The worst jitter in them, in microseconds.
    slice_jitter_us: u32,
    /// In seconds since the start of the call.
    slice_ends_s: u32,
    /// What was lost before them.
    lost_before: u32,
    /// The ten seconds before.
    last_slice: CallSlice,
    series: CallSeries,
    worst_loss_percent: f32,
    /// The most that was lost at the end of any ten seconds: unlike the present number, it never falls.
    settled_lost: u32,
    /// The device was sent audio since speech started.
    is_playing: bool,
    gaps: u32,
    all_gaps_ms: u32,
    longest_gap_ms: u32,
    listen_stopped_at: Option<Moment>,
    /// The user has spoken, and the server has not answered.
    answer_due_since: Option<Moment>,
    slowest_answer_ms: Option<u32>,
    listens_since: Option<Moment>,
    unheard_ms: u32,
    resumed: u32,
    away_ms: u32,
    /// Boxed, since most calls have none.
    failures: Option<Box<Failures>>,
}

/// Failures of chat servers.
#[derive(Default)]
struct Failures {
    count: u32,
    /// Those after the device was answered.
    losses: u32,
    first: Vec<CallFailure>,
}

/// A time in milliseconds since the start of the call, rounded down, in 4 bytes. After 49 days it stands still.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(NonZeroU32);

impl Moment {
    fn new(since_start: Duration) -> Self {
        Self(NonZeroU32::MIN.saturating_add(millis(since_start)))
    }

    fn ms_since(self, earlier: Self) -> u32 {
        self.0.get().saturating_sub(earlier.0.get())
    }
}

/// What a report needs besides.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallSituation {
    /// Why the call ended; none while it goes on.
    pub(super) reason: Option<EndReason>,
    /// The device's connection is lost, or it has not shown since that it is in the call.
    pub(super) is_away: bool,
    /// The device listens, and no audio of it came since it began to.
    pub(super) is_unheard: bool,
    /// Since the device's hello.
    pub(super) age: Duration,
}

impl Default for CallQuality {
    fn default() -> Self {
        Self {
            answered_at: None,
            stage: None,
            setup: SetupTimes::default(),
            jitter: Jitter::default(),
            received: 0,
            first_packet_at: None,
            slice: CallSlice::default(),
            slice_jitter_us: 0,
            slice_ends_s: SLICE_S,
            lost_before: 0,
            last_slice: CallSlice::default(),
            series: CallSeries::default(),
            worst_loss_percent: 0.0,
            settled_lost: 0,
            is_playing: false,
            gaps: 0,
            all_gaps_ms: 0,
            longest_gap_ms: 0,
            listen_stopped_at: None,
            answer_due_since: None,
            slowest_answer_ms: None,
            listens_since: None,
            unheard_ms: 0,
            resumed: 0,
            away_ms: 0,
            failures: None,
        }
    }
}

/// Each time is the age of the call, which starts with the device's hello.
impl CallQuality {
    /// See [`Core::touch`](super::Core::touch).
    pub(super) fn touch(&self) {
        black_box((self.received, self.slice_ends_s, self.is_playing, self.answer_due_since));
    }

    // ----- set-up -------------------------------------------------------------------------------------------------

    /// The call waits for this from now on. Without effect once the device is answered.
    pub(super) fn enter(&mut self, stage: SetupStage, age: Duration) {
        if self.answered_at.is_none() && self.stage.is_none_or(|(current, _)| current != stage) {
            self.leave_stage(age);
            self.stage = Some((stage, Moment::new(age)));
        }
    }

    fn leave_stage(&mut self, age: Duration) {
        if let Some((stage, since)) = self.stage.take() {
            let ms = Moment::new(age).ms_since(since);
            let spent = self.setup.of_mut(stage);
            *spent = spent.saturating_add(ms);
        }
    }

    /// The dial of the call that this one replaces, which nobody has answered, goes on.
    pub(super) fn continue_dial(&mut self, replaced: &Self) {
        if let Some((stage, _)) = replaced.stage {
            self.enter(stage, Duration::ZERO);
        }
    }

    /// The device gets its hello reply.
    pub(super) fn on_answered(&mut self, age: Duration) -> SetupTimes {
        self.leave_stage(age);
        self.answered_at = Some(Moment::new(age));
        self.setup.total_ms = Some(millis(age));
        self.setup
    }

    pub(super) fn on_server_failed(&mut self, server: &str, failure: &BackendFailure, age: Duration) {
        self.answer_due_since = None;
        let after_ms = millis(age);
        let failures = self.failures.get_or_insert_default();
        failures.count = failures.count.saturating_add(1);
        failures.losses += u32::from(self.answered_at.is_some());
        if failures.first.len() < MAX_FAILURES {
            failures.first.push(CallFailure {
                after_ms,
                server: server.into(),
                stage: failure.stage,
                cause: text::printable(&failure.message, MAX_CAUSE_BYTES).into(),
            });
        }
    }

    // ----- from the device ----------------------------------------------------------------------------------------

    /// A packet of audio was accepted. `lost`: what has been lost so far.
    pub(super) fn on_uplink(&mut self, sequence: u32, lost: u32, age: Duration) {
        self.roll(lost, age);
        self.first_packet_at.get_or_insert_with(|| Moment::new(age));
        self.jitter.on_packet(sequence, age.as_micros() as u32);
        self.slice_jitter_us = self.slice_jitter_us.max(self.jitter.micros());
        self.received = self.received.saturating_add(1);
        self.slice.packets_up += 1;
    }

    /// A packet that was kept until its source was known is released.
    pub(super) fn on_released(&mut self) {
        self.received = self.received.saturating_add(1);
        self.slice.packets_up += 1;
    }

    /// The device listens. `was_unheard`: it did before, and no audio of it came.
    pub(super) fn on_listen_start(&mut self, was_unheard: bool, age: Duration) {
        self.on_listen_end(was_unheard, age);
        self.listens_since = Some(Moment::new(age));
        (self.listen_stopped_at, self.answer_due_since) = (None, None);
    }

    /// The device listens no more, or cannot be heard.
    pub(super) fn on_listen_end(&mut self, was_unheard: bool, age: Duration) {
        if let Some(since) = self.listens_since.take().filter(|_| was_unheard) {
            self.unheard_ms = self.unheard_ms.max(self.ms_since_answered(since, age));
        }
    }

    /// The device said that the user has finished.
    pub(super) fn on_listen_stop(&mut self, age: Duration) {
        self.listen_stopped_at = Some(Moment::new(age));
    }

    /// The time from then to now, as far as the device could have sent audio.
    fn ms_since_answered(&self, then: Moment, age: Duration) -> u32 {
        let now = Moment::new(age);
        now.ms_since(then.max(self.answered_at.unwrap_or(now)))
    }

    pub(super) fn on_resumed(&mut self, away: Duration) {
        self.resumed = self.resumed.saturating_add(1);
        self.away_ms = self.away_ms.saturating_add(millis(away));
    }

    // ----- from the server ----------------------------------------------------------------------------------------

    /// The server has recognized what the user said.
    pub(super) fn on_recognized(&mut self, age: Duration) {
        let since = self.listen_stopped_at.take().unwrap_or_else(|| Moment::new(age));
        self.answer_due_since.get_or_insert(since);
    }

    /// The server sent audio, or ended its speech: that is an answer.
    pub(super) fn on_answer(&mut self, age: Duration) {
        if let Some(since) = self.answer_due_since.take() {
            self.slowest_answer_ms = self.slowest_answer_ms.max(Some(Moment::new(age).ms_since(since)));
        }
    }

    /// Speech begins or ends, or is interrupted.
    pub(super) fn on_speech_change(&mut self) {
        self.is_playing = false;
    }

    /// The user has interrupted the server.
    pub(super) fn on_abort(&mut self) {
        self.is_playing = false;
        (self.listen_stopped_at, self.answer_due_since) = (None, None);
    }

    /// Speech goes on with a frame that leaves this long after the device has played all before it.
    pub(super) fn on_speech_frame(&mut self, gap: Duration) {
        let gap = millis(gap);
        if std::mem::replace(&mut self.is_playing, true) && gap >= GAP_MIN_MS {
            self.gaps = self.gaps.saturating_add(1);
            self.all_gaps_ms = self.all_gaps_ms.saturating_add(gap);
            self.longest_gap_ms = self.longest_gap_ms.max(gap);
            self.slice.gap_ms = self.slice.gap_ms.saturating_add(gap);
        }
    }

    /// A packet of audio leaves for the device. `lost`: what has been lost of the device's packets so far.
    pub(super) fn on_downlink(&mut self, lost: u32, age: Duration) {
        self.roll(lost, age);
        self.slice.packets_down += 1;
    }

    // ----- ten seconds --------------------------------------------------------------------------------------------

    /// Ends the ten seconds if they are over.
    fn roll(&mut self, lost: u32, age: Duration) {
        if age.as_secs() < self.slice_ends_s.into() {
            return;
        }
        let ended = self.ended_slice(lost);
        let ended_index = self.slice_index();
        self.series.add(ended_index, &ended);
        self.worst_loss_percent = self.worst_loss_with(&ended);
        self.settled_lost = self.settled_lost.max(lost);
        let index = u32::try_from(age.as_secs()).unwrap_or(u32::MAX) / SLICE_S;
        self.last_slice = if index == ended_index + 1 { ended } else { CallSlice::default() };
        (self.slice, self.slice_jitter_us) = (CallSlice::default(), 0);
        self.lost_before = lost;
        self.slice_ends_s = (index + 1).saturating_mul(SLICE_S);
    }

    /// How many ten seconds came before the present ones.
    fn slice_index(&self) -> u32 {
        self.slice_ends_s / SLICE_S - 1
    }

    /// The ten seconds that have not ended, as if they ended now.
    fn ended_slice(&self, lost: u32) -> CallSlice {
        CallSlice {
            lost: lost.saturating_sub(self.lost_before),
            jitter_ms: round(self.slice_jitter_us as f32 / 1000.0),
            ..self.slice
        }
    }

    fn worst_loss_with(&self, slice: &CallSlice) -> f32 {
        match slice.packets_up.saturating_add(slice.lost) {
            expected if expected < WORST_LOSS_MIN_PACKETS => self.worst_loss_percent,
            expected => self.worst_loss_percent.max(percent(slice.lost.into(), expected.into())),
        }
    }

    // ----- reports ------------------------------------------------------------------------------------------------

    /// The jitter of the device's audio.
    pub(super) fn jitter(&self) -> Duration {
        self.jitter.value()
    }

    /// What was lost, for a counter: a packet that comes late after all does not make it fall.
    pub(super) fn settled_lost(&self) -> u64 {
        self.settled_lost.into()
    }

    /// The last ten seconds that are over; before there are any, the time so far.
    pub(super) fn last_slice(&self, lost: u32, age: Duration) -> CallSlice {
        let ends_s = u64::from(self.slice_ends_s);
        match age.as_secs() {
            seconds if seconds < ends_s && self.slice_index() > 0 => self.last_slice,
            seconds if seconds < ends_s + u64::from(SLICE_S) => self.ended_slice(lost),
            _ => CallSlice::default(),
        }
    }

    /// The whole call in slices.
    pub(super) fn series(&self, lost: u32) -> CallSeries {
        let mut series = self.series.clone();
        series.add(self.slice_index(), &self.ended_slice(lost));
        series
    }

    pub(super) fn report(&self, stats: &CallStats, call: &CallSituation) -> CallReport {
        let lost = u32::try_from(stats.lost).unwrap_or(u32::MAX);
        let facts = self.facts(stats, lost, call);
        let series = self.series(lost);
        let median_jitter_ms = series.median_jitter_ms();
        let first_packet = self.answered_at.zip(self.first_packet_at);
        let mut setup = self.setup;
        if let Some((stage, since)) = self.stage {
            let spent = setup.of_mut(stage);
            *spent = spent.saturating_add(Moment::new(call.age).ms_since(since));
        }
        let failures = self.failures.as_ref();
        CallReport {
            verdict: Verdict::of(&facts),
            setup,
            first_packet_ms: first_packet.map(|(answered_at, first)| first.ms_since(answered_at)),
            loss_percent: facts.loss_percent,
            worst_loss_percent: facts.worst_loss_percent,
            median_jitter_ms,
            worst_jitter_ms: series.slices.iter().fold(0.0, |worst, slice| slice.jitter_ms.max(worst)),
            gaps: self.gaps,
            gap_ms: self.all_gaps_ms,
            longest_gap_ms: self.longest_gap_ms,
            slowest_answer_ms: self.slowest_answer_ms,
            unheard_ms: millis(facts.unheard),
            resumed: self.resumed,
            away_ms: self.away_ms,
            failure_count: failures.map_or(0, |failures| failures.count),
            failures: failures.map_or_else(Vec::new, |failures| failures.first.clone()),
        }
    }

    fn facts(&self, stats: &CallStats, lost: u32, call: &CallSituation) -> CallFacts {
        let expected = u64::from(self.received) + stats.lost + stats.reordered;
        let unheard_ms = match self.listens_since.filter(|_| call.is_unheard && !call.is_away) {
            Some(since) => self.unheard_ms.max(self.ms_since_answered(since, call.age)),
            None => self.unheard_ms,
        };
        let now = Moment::new(call.age);
        let waits_ms = self.answer_due_since.map(|since| now.ms_since(since));
        let time = |ms: u32| Duration::from_millis(ms.into());
        CallFacts {
            reason: call.reason,
            is_away: call.is_away,
            setup: time(self.answered_at.unwrap_or(now).ms_since(Moment(NonZeroU32::MIN))),
            expected,
            loss_percent: percent(stats.lost, expected),
            worst_loss_percent: self.worst_loss_with(&self.ended_slice(lost)),
            unheard: time(unheard_ms),
            server_losses: self.failures.as_ref().map_or(0, |failures| failures.losses),
            longest_gap: time(self.longest_gap_ms),
            all_gaps: time(self.all_gaps_ms),
            slowest_answer: time(self.slowest_answer_ms.max(waits_ms).unwrap_or_default()),
        }
    }
}

fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// How many percent of `all` these are, to one decimal.
fn percent(part: u64, all: u64) -> f32 {
    if all == 0 { 0.0 } else { round(part as f32 * 100.0 / all as f32) }
}

fn round(number: f32) -> f32 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn the_recorder_of_a_call_is_small() {
        assert!(size_of::<CallQuality>() <= 216, "{}", size_of::<CallQuality>());
    }
}
