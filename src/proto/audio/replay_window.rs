//! The check of uplink sequence numbers.

/// The longest step that a sequence takes at once. A longer one is provisional.
const MAX_STEP: u32 = 64;

/// The uplink sequences of one call.
///
/// A packet at or below the highest settled sequence is not forwarded, since speech recognition needs the packets in order; the
/// last 64 sequences only distinguish duplicates from late packets, for the counters.
///
/// Nothing proves that a packet is the device's, so no single one moves the window far. A packet is *provisional* if it is more
/// than 64 ahead, or if its Opus configuration is not that of [`ReplayWindow::RUN`] packets before it in a row. It is forwarded,
/// but the window stays where it is until there is a [`Run`] of them, so a packet that continues the old sequence still does. In
/// the same way the window goes back to a run of late packets, if nothing was settled for a while.
#[derive(Debug, Clone, Default)]
pub struct ReplayWindow {
    settled: Track,
    /// The Opus configuration of the last settled packets, and their number up to [`Self::RUN`].
    config: Option<u8>,
    run: u8,
    /// The lowest sequence that the loss count covers. Those below it never existed.
    loss_floor: u32,
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
        /// The number of skipped sequences, to be counted as lost.
        lost: u32,
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
    /// may be ahead. `silent`: nothing has been settled for so long that the window may go back.
    pub fn accept(&mut self, seq: u32, config: Option<u8>, max_ahead: u32, silent: bool) -> SequenceVerdict {
        let Some(ahead) = self.settled.ahead(seq) else { return self.accept_behind(seq, config, silent) };
        let same = config.is_some() && config == self.config;
        if ahead <= MAX_STEP && (same || !self.is_confirmed()) {
            let first = self.settled.seen == 0;
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
            self.loss_floor = self.loss_floor.min(seq);
            self.run = if same { (self.run + 1).min(Self::RUN) } else { config.is_some().into() };
            self.config = config;
            return SequenceVerdict::Fresh { lost, settled: same || first };
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
                Some(false) => return SequenceVerdict::Late,
                None => {}
            },
            None => {}
        }
        let run = self.extend_provisional(seq, config);
        let settled = run.packets >= Self::RUN;
        let lost = if settled { self.settle(&run) } else { 0 };
        SequenceVerdict::Fresh { lost, settled }
    }

    fn accept_behind(&mut self, seq: u32, config: Option<u8>, silent: bool) -> SequenceVerdict {
        let mut track = self.settled;
        match track.receive_behind(seq).filter(|_| seq >= self.loss_floor) {
            None => return SequenceVerdict::TooOld,
            Some(true) => return SequenceVerdict::Duplicate,
            Some(false) => {}
        }
        if self.is_confirmed() && config != self.config {
            return SequenceVerdict::Late;
        }
        self.settled = track;
        if silent && config.is_some() {
            let run = self.extend_provisional(seq, config);
            if run.packets >= Self::RUN {
                self.settle(&run);
                return SequenceVerdict::Fresh { lost: 0, settled: true };
            }
        }
        SequenceVerdict::Late
    }

    fn extend_provisional(&mut self, seq: u32, config: Option<u8>) -> Run {
        let run = match self.provisional.as_deref() {
            Some(run) if run.follows(seq) => run.extended(seq, config),
            _ => Run::new(seq, config, self.settled.highest),
        };
        **self.provisional.get_or_insert_with(|| Box::new(run)) = run;
        run
    }

    /// Whether a packet of a source that is not known may be new: not received, above what is confirmed by at most `max_ahead`.
    pub fn is_ahead(&self, seq: u32, max_ahead: u32) -> bool {
        let base = if self.is_confirmed() { self.settled.highest } else { 0 };
        (seq > base || self.settled.seen == 0)
            && seq - base <= max_ahead
            && self.settled.seen_from(seq) & 1 == 0
    }

    /// A run for packets of a source that is not known.
    pub fn start_run(&self, seq: u32, config: u8) -> Run {
        Run::new(seq, Some(config), self.settled.highest)
    }

    /// The window stands at the end of this run, and nowhere else. Returns the number of lost packets.
    pub fn settle(&mut self, run: &Run) -> u32 {
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
