//! The check of uplink sequence numbers.

/// The uplink sequences of one call.
///
/// A packet at or below the highest accepted sequence is never forwarded, since speech recognition needs the packets in order.
/// The window of the last 64 sequences only distinguishes duplicates from late packets, for the counters. A jump of more than
/// 65,536 ahead is taken for a corrupted header until three packets in a row have consecutive sequences.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReplayWindow {
    /// The highest accepted sequence; 0 before the first packet.
    highest: u32,
    /// Bit i: `highest - i` was received. 0 before the first packet.
    seen: u64,
    /// The lowest sequence that the loss count covers. Those below it were skipped by a jump, or never existed.
    loss_floor: u32,
    jump_run: JumpRun,
}

/// Consecutive packets that are too far ahead.
#[derive(Debug, Clone, Copy, Default)]
struct JumpRun {
    last: u32,
    len: u8,
}

/// What is known about a packet by its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceVerdict {
    /// The next packet to forward.
    Fresh {
        /// The number of skipped sequences, to be counted as lost.
        lost: u32,
    },
    /// Received before.
    Duplicate,
    /// Received for the first time, but after a higher one. It was counted as lost when it was skipped.
    Late,
    /// Below the window, or before a jump: it is not known whether it was received before.
    TooOld,
    /// Too far ahead, and not confirmed yet.
    Jump,
}

impl ReplayWindow {
    /// The largest step ahead that needs no confirmation.
    const MAX_AHEAD: u32 = 65_536;
    /// The number of consecutive packets that confirm a jump.
    const JUMP_CONFIRMATIONS: u8 = 3;

    /// The window of a new call. Its first sequence is expected to be 1.
    pub fn new() -> Self {
        Self { loss_floor: 1, ..Self::default() }
    }

    /// Checks `seq` as [`Self::accept`] does, but changes nothing.
    pub fn check(&self, seq: u32) -> SequenceVerdict {
        let fresh = seq > self.highest || self.seen == 0;
        if fresh && seq - self.highest <= Self::MAX_AHEAD {
            return SequenceVerdict::Fresh { lost: (seq - self.highest).saturating_sub(1) };
        }
        if fresh {
            let confirmed = self.jump_run.extended_by(seq).len >= Self::JUMP_CONFIRMATIONS;
            return if confirmed { SequenceVerdict::Fresh { lost: 0 } } else { SequenceVerdict::Jump };
        }
        let behind = self.highest - seq;
        if seq < self.loss_floor || behind >= u64::BITS {
            SequenceVerdict::TooOld
        } else if self.seen & 1 << behind != 0 {
            SequenceVerdict::Duplicate
        } else {
            SequenceVerdict::Late
        }
    }

    /// Checks `seq` and records it.
    pub fn accept(&mut self, seq: u32) -> SequenceVerdict {
        let verdict = self.check(seq);
        match verdict {
            SequenceVerdict::Fresh { .. } => {
                let ahead = seq - self.highest;
                if ahead > Self::MAX_AHEAD {
                    // The two packets before this one were received, and those before them are not counted as lost.
                    self.seen = 0b111;
                    self.loss_floor = seq - 2;
                } else {
                    self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
                    self.loss_floor = self.loss_floor.min(seq);
                }
                self.highest = seq;
                self.jump_run = JumpRun::default();
            }
            SequenceVerdict::Jump => self.jump_run = self.jump_run.extended_by(seq),
            SequenceVerdict::Late => {
                self.seen |= 1 << (self.highest - seq);
                self.jump_run = JumpRun::default();
            }
            SequenceVerdict::Duplicate | SequenceVerdict::TooOld => self.jump_run = JumpRun::default(),
        }
        verdict
    }

    /// The highest accepted sequence, 0 if there was none.
    #[cfg(test)]
    pub fn highest(&self) -> u32 {
        self.highest
    }
}

impl JumpRun {
    /// The run including `seq`. A duplicate neither extends nor ends it.
    fn extended_by(self, seq: u32) -> Self {
        let len = match self {
            Self { len: 0, .. } => 1,
            Self { last, len } if last == seq => len,
            Self { last, len } if last.checked_add(1) == Some(seq) => len + 1,
            _ => 1,
        };
        Self { last: seq, len }
    }
}
