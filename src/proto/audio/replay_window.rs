//! The check of uplink sequence numbers.

/// The longest step that a sequence takes at once. A longer one is provisional.
const MAX_STEP: u32 = 64;
/// The same for some time after the window was taken back, since somebody forges packets then; more only after a gap in time.
const CAUTIOUS_STEP: u32 = 2;
/// The packets that are settled until longer steps are trusted again.
const CAUTIOUS_PACKETS: u16 = 512;
/// The packets that continue a sequence behind which the window has gone, by which it is taken back.
const TAKE_BACK: u8 = 6;

/// The uplink sequences of one call.
///
/// A packet at or below the highest settled sequence is not forwarded, since speech recognition needs the packets in order; the
/// last 64 sequences only distinguish duplicates from late packets, for the counters.
///
/// Nothing proves that a packet is the device's, so no single one moves the window far. A packet is *provisional* if it is more
/// than 64 ahead, or if its Opus configuration is not that of [`ReplayWindow::RUN`] packets before it in a row. It is forwarded,
/// but the window stays where it is until there is a [`Run`] of them, so a packet that continues the old sequence still does. In
/// the same way the window goes back to a run of late packets, if nothing was settled for a while.
///
/// One forged packet in 80 has the right configuration, and moves the window. So what the window has left behind is remembered until
/// eight packets in order show that it went the right way. Six packets that continue the old sequence take it back, and for the next
/// 512 packets only those in order (one may be missing) move it at once.
#[derive(Debug, Clone, Default)]
pub struct ReplayWindow {
    settled: Track,
    /// The Opus configuration of the last settled packets, and their number up to [`Self::RUN`].
    config: Option<u8>,
    run: u8,
    /// The lowest sequence that the loss count covers. Those below it never existed.
    loss_floor: u32,
    /// Where the window was before a step over missing packets.
    left: Option<Left>,
    /// The packets to be settled until longer steps are trusted.
    cautious: u16,
    /// Provisional packets, or late ones. There are none in most calls.
    provisional: Option<Box<Run>>,
}

/// The sequences that were received up to the highest one.
#[derive(Debug, Clone, Copy, Default)]
struct Track {
    highest: u32,
    /// Bit i: `highest - i` was received. 0 before the first packet.
    seen: u64,
}

/// A sequence that the window has left, and what has continued it since.
#[derive(Debug, Clone, Copy)]
struct Left {
    /// The highest sequence when it was left, and the highest that has continued it.
    base: u32,
    highest: u32,
    /// The Opus configuration of the packets that continue it.
    config: u8,
    /// How many do, less those that continue the window instead.
    packets: u8,
    /// The packets in order since it was left.
    in_order: u8,
    /// The sequences above `base` that were counted as lost.
    lost: i32,
}

/// Packets with ascending sequences.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    track: Track,
    /// The Opus configuration of the last packets, and their number.
    config: Option<u8>,
    packets: u8,
    /// The sequences that were skipped before and between the packets.
    lost: u32,
}

/// What is known about a packet by its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceVerdict {
    /// The next packet to forward.
    Fresh {
        /// The number of skipped sequences, to be counted as lost. Negative: so many of those that were counted are to come yet.
        lost: i32,
        /// It continues what was settled, or settles a run. If not, it does not show that the device is alive.
        settled: bool,
    },
    /// Received before.
    Duplicate,
    /// Received for the first time, but after a higher one. It was counted as lost when it was skipped.
    Late,
    /// Below the window: it is not known whether it was received before.
    TooOld,
    /// Too far ahead.
    Jump,
}

impl ReplayWindow {
    /// The packets in a row, with one Opus configuration, that are taken to be the device's.
    pub const RUN: u8 = 8;

    /// The window of a new call. Its first sequence is expected to be 1.
    pub fn new() -> Self {
        Self { loss_floor: 1, ..Self::default() }
    }

    /// Whether a run of one Opus configuration was settled.
    pub fn is_confirmed(&self) -> bool {
        self.run == Self::RUN
    }

    /// The Opus configuration of the last settled packets.
    pub fn config(&self) -> Option<u8> {
        self.config
    }

    /// Whether this sequence follows the highest settled one.
    pub fn is_next(&self, seq: u32) -> bool {
        seq.wrapping_sub(1) == self.settled.highest
    }

    /// Checks and records a packet of the known source with this Opus configuration, if it is valid Opus. `max_ahead`: how far it
    /// may be ahead. `expected`: how many packets are to be expected since one was settled. `silent`: nothing has been settled for so
    /// long that the window may go back.
    pub fn accept(
        &mut self,
        seq: u32,
        config: Option<u8>,
        max_ahead: u32,
        expected: u32,
        silent: bool,
    ) -> SequenceVerdict {
        let Some(ahead) = self.settled.ahead(seq) else { return self.accept_behind(seq, config, silent) };
        let same = config.is_some() && config == self.config;
        let (max_step, any) = match self.cautious {
            0 => (MAX_STEP, !self.is_confirmed()),
            _ => (expected.clamp(CAUTIOUS_STEP, MAX_STEP), false),
        };
        if ahead <= max_step && (same || any) {
            return self.accept_next(seq, ahead, config, same);
        }
        if ahead > max_ahead && !self.provisional.as_ref().is_some_and(|run| run.follows(seq)) {
            return SequenceVerdict::Jump;
        }
        // Random packets neither displace a run of the settled configuration, nor hold it up.
        match &mut self.provisional {
            Some(run) if run.config != self.config && same => self.provisional = None,
            Some(run) if run.config == self.config && !same => {
                return SequenceVerdict::Fresh { lost: 0, settled: false };
            }
            Some(run) => match run.track.receive_behind(seq) {
                Some(true) => return SequenceVerdict::Duplicate,
                // What is far ahead may be forged, and holds up none that is nearer.
                Some(false) if self.cautious == 0 => return SequenceVerdict::Late,
                _ => {}
            },
            None => {}
        }
        let run = self.extend_provisional(seq, config);
        let settled = run.packets >= Self::RUN;
        let lost = if settled { self.settle(&run) as i32 } else { 0 };
        SequenceVerdict::Fresh { lost, settled }
    }

    /// The packet moves the window.
    fn accept_next(&mut self, seq: u32, ahead: u32, config: Option<u8>, same: bool) -> SequenceVerdict {
        let (first, before) = (self.settled.seen == 0, self.settled.highest);
        self.settled.advance(ahead);
        let mut lost = ahead.saturating_sub(1);
        if let Some(run) = &mut self.provisional {
            let between = u64::MAX.checked_shr(u64::BITS - ahead).unwrap_or(0) & !1;
            let passed = run.track.seen_from(seq) & between;
            self.settled.seen |= passed;
            lost -= passed.count_ones();
            if same {
                // The old sequence stands. What has passed does not pass again.
                run.packets = 0;
            }
            self.provisional.take_if(|run| run.track.highest <= seq);
        }
        match &mut self.left {
            Some(left) => {
                left.step(if same { ahead } else { u32::MAX }, lost);
                self.left.take_if(|left| left.in_order >= Self::RUN);
            }
            None if ahead > 1 => self.left.insert(Left::new(before)).step(ahead, lost),
            None => {}
        }
        self.cautious = self.cautious.saturating_sub(1);
        self.loss_floor = self.loss_floor.min(seq);
        self.run = if same { (self.run + 1).min(Self::RUN) } else { config.is_some().into() };
        self.config = config;
        SequenceVerdict::Fresh { lost: lost as i32, settled: same || first }
    }

    fn accept_behind(&mut self, seq: u32, config: Option<u8>, silent: bool) -> SequenceVerdict {
        let mut track = self.settled;
        let received = track.receive_behind(seq).filter(|_| seq >= self.loss_floor);
        let was_left = self.left.is_some_and(|left| seq > left.base);
        if received == Some(true) {
            return SequenceVerdict::Duplicate;
        }
        let verdict = match received {
            None => SequenceVerdict::TooOld,
            Some(_) => SequenceVerdict::Late,
        };
        if received.is_none() && !was_left || self.is_confirmed() && config != self.config {
            return verdict;
        }
        self.settled = track;
        if let (Some(config), Some(left)) = (config, self.left.as_mut().filter(|_| was_left)) {
            left.count(seq, config);
            if left.packets >= TAKE_BACK {
                return self.take_back();
            }
            left.lost -= i32::from(received.is_some());
        }
        if silent && config.is_some() {
            let run = self.extend_provisional(seq, config);
            if run.packets >= Self::RUN {
                self.settle(&run);
                return SequenceVerdict::Fresh { lost: 0, settled: true };
            }
        }
        verdict
    }

    /// The window stands again where it was left, behind the packets that continued from there.
    fn take_back(&mut self) -> SequenceVerdict {
        let Some(left) = self.left.take() else { return SequenceVerdict::Late };
        let track = Track { highest: left.highest, seen: self.settled.seen_from(left.highest) | 1 };
        let passed = std::mem::replace(&mut self.settled, track);
        let config = Some(left.config);
        self.provisional = Some(Box::new(Run { track: passed, config, packets: 0, lost: 0 }));
        (self.config, self.run, self.cautious) = (config, Self::RUN, CAUTIOUS_PACKETS);
        let beyond = left.highest - left.base;
        let received = (track.seen & !u64::MAX.checked_shl(beyond).unwrap_or(0)).count_ones();
        let missing = i32::try_from(beyond.saturating_sub(received)).unwrap_or(i32::MAX);
        let lost = missing.saturating_sub(left.lost);
        SequenceVerdict::Fresh { lost, settled: true }
    }

    fn extend_provisional(&mut self, seq: u32, config: Option<u8>) -> Run {
        let run = match self.provisional.as_deref() {
            Some(run) if run.follows(seq) => run.extended(seq, config),
            _ => Run::new(seq, config, self.settled.highest),
        };
        **self.provisional.get_or_insert_with(|| Box::new(run)) = run;
        run
    }

    /// Whether this packet is not known to have been received, and is ahead by at most `max_ahead` of what is confirmed.
    pub fn is_ahead(&self, seq: u32, max_ahead: u32) -> bool {
        let (base, highest) = match self.left {
            _ if !self.is_confirmed() => (0, 0),
            Some(left) => (left.base, self.settled.highest),
            None => (self.settled.highest, self.settled.highest),
        };
        let is_known = { self.settled }.receive_behind(seq) == Some(true);
        !is_known && seq > base && seq.saturating_sub(highest) <= max_ahead
    }

    /// The same for a source that is not known, whose packets may be repetitions. What is not confirmed may be anybody's, and does not
    /// count against it.
    pub fn is_ahead_elsewhere(&self, seq: u32, max_ahead: u32) -> bool {
        if !self.is_confirmed() {
            return (1..=max_ahead).contains(&seq);
        }
        let is_new = seq > self.settled.highest || { self.settled }.receive_behind(seq).is_some();
        is_new && self.is_ahead(seq, max_ahead)
    }

    /// A run for packets of a source that is not known.
    pub fn start_run(&self, seq: u32, config: u8) -> Run {
        Run::new(seq, Some(config), self.settled.highest)
    }

    /// The window stands at the end of this run, and nowhere else. Returns the number of lost packets.
    pub fn settle(&mut self, run: &Run) -> u32 {
        let before = self.settled.highest;
        if run.track.highest < before {
            (self.left, self.cautious) = (None, CAUTIOUS_PACKETS);
        } else if run.is_in_order() {
            self.left = None;
        } else {
            self.left.get_or_insert_with(|| Left::new(before)).step(u32::MAX, run.lost);
        }
        self.settled.seen = run.track.seen | self.settled.seen_from(run.track.highest);
        self.settled.highest = run.track.highest;
        (self.config, self.run, self.provisional) = (run.config, Self::RUN, None);
        run.lost
    }

    /// The highest settled sequence, 0 if there was none.
    #[cfg(test)]
    pub fn highest(&self) -> u32 {
        self.settled.highest
    }
}

impl Left {
    fn new(base: u32) -> Self {
        Self { base, highest: base, config: 0, packets: 0, in_order: 0, lost: 0 }
    }

    /// The window has moved on, by so much.
    fn step(&mut self, ahead: u32, lost: u32) {
        self.lost = self.lost.saturating_add_unsigned(lost);
        self.in_order = if ahead == 1 { self.in_order + 1 } else { 0 };
        self.packets -= u8::from(ahead <= CAUTIOUS_STEP && self.packets > 0);
    }

    /// A packet above `base` and behind the window.
    fn count(&mut self, seq: u32, config: u8) {
        let ahead = seq.wrapping_sub(self.highest);
        if ahead == 0 {
            return;
        }
        if ahead <= CAUTIOUS_STEP && (self.packets == 0 || config == self.config) {
            self.packets += 1;
            self.in_order = 0;
        } else if self.packets > 1 {
            self.packets -= 1;
            return;
        } else {
            self.packets = 1;
        }
        (self.highest, self.config) = (seq, config);
    }
}

impl Run {
    fn new(seq: u32, config: Option<u8>, highest: u32) -> Self {
        let track = Track { highest: seq, seen: 1 };
        let lost = seq.saturating_sub(highest).saturating_sub(1);
        Self { track, config, packets: config.is_some().into(), lost }
    }

    /// The number of packets in a row with the same Opus configuration.
    pub fn packets(&self) -> u8 {
        self.packets
    }

    /// The Opus configuration of the last packet.
    pub fn config(&self) -> Option<u8> {
        self.config
    }

    /// Whether its last packets, as many as make a run, came without a gap.
    fn is_in_order(&self) -> bool {
        let all = (1 << ReplayWindow::RUN) - 1;
        self.track.seen & all == all
    }

    /// Whether this sequence is above those of the run.
    pub fn is_below(&self, seq: u32) -> bool {
        seq > self.track.highest
    }

    /// Whether this sequence is above those of the run, by one step.
    pub fn follows(&self, seq: u32) -> bool {
        self.is_below(seq) && seq - self.track.highest <= MAX_STEP
    }

    /// The run with one more packet, whose sequence is higher.
    #[must_use]
    pub fn extended(mut self, seq: u32, config: Option<u8>) -> Self {
        let ahead = seq - self.track.highest;
        self.track.advance(ahead);
        self.lost += ahead - 1;
        let same = config.is_some() && config == self.config;
        self.packets = if same { self.packets.saturating_add(1) } else { config.is_some().into() };
        self.config = config;
        self
    }
}

impl Track {
    /// How far this sequence is ahead, if it is.
    fn ahead(&self, seq: u32) -> Option<u32> {
        (seq > self.highest || self.seen == 0).then(|| seq - self.highest)
    }

    fn advance(&mut self, ahead: u32) {
        self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
        self.highest += ahead;
    }

    /// Records a sequence that is not ahead. Whether it was received before; `None` if it is below the window or ahead.
    fn receive_behind(&mut self, seq: u32) -> Option<bool> {
        let bit = 1_u64.checked_shl(self.highest.checked_sub(seq)?)?;
        let received = self.seen & bit != 0;
        self.seen |= bit;
        Some(received)
    }

    /// [`Track::seen`] if this were the highest sequence.
    fn seen_from(&self, highest: u32) -> u64 {
        match highest.checked_sub(self.highest) {
            Some(above) => self.seen.checked_shl(above),
            None => self.seen.checked_shr(self.highest - highest),
        }
        .unwrap_or(0)
    }
}
