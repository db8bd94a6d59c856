//! Which uplink sequence numbers go on, and what to count for the others.

/// The uplink sequences of one call, from its hello on.
///
/// A packet at or below the highest accepted sequence is never forwarded: recognisers need order. The window of the last
/// 64 sequences only tells a duplicate from a late packet, for the counters. A jump of more than 65,536 ahead is
/// taken for a corrupted header until three packets in a row have consecutive sequences.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReplayWindow {
    /// The highest sequence accepted; 0 also before the first.
    highest: u32,
    /// Bit i: `highest - i` has been seen. 0 before the first packet.
    seen: u64,
    /// The lowest sequence the loss count covers: those before it were jumped over, or never existed.
    loss_floor: u32,
    jump_run: JumpRun,
}

/// Packets in a row that all are too far ahead.
#[derive(Debug, Clone, Copy, Default)]
struct JumpRun {
    last: u32,
    len: u8,
}

/// What a sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceVerdict {
    /// The next packet to forward.
    Fresh {
        /// Sequences skipped before it, to be counted as lost.
        lost: u32,
    },
    /// Seen before, not to be forwarded.
    Duplicate,
    /// Seen for the first time but after a higher one. It was counted as lost when it was skipped.
    Late,
    /// Below the window, or before a jump: it cannot be told whether it was seen.
    TooOld,
    /// Too far ahead to be believed yet.
    Jump,
}

impl ReplayWindow {
    /// The furthest step ahead that one packet is believed.
    const MAX_AHEAD: u32 = 65_536;
    /// How many consecutive packets make a jump believed.
    const JUMP_CONFIRMATIONS: u8 = 3;

    /// A call that has received nothing. Its first sequence is expected to be 1.
    pub fn new() -> Self {
        Self { loss_floor: 1, ..Self::default() }
    }

    /// What [`Self::accept`] would say to `seq`, changing nothing.
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

    /// Judge `seq` and remember it.
    pub fn accept(&mut self, seq: u32) -> SequenceVerdict {
        let verdict = self.check(seq);
        match verdict {
            SequenceVerdict::Fresh { .. } => {
                let ahead = seq - self.highest;
                if ahead > Self::MAX_AHEAD {
                    // The two packets that led to this one were seen, and nothing before them is missed.
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

    /// The highest sequence accepted, 0 when there was none.
    #[cfg(test)]
    pub fn highest(&self) -> u32 {
        self.highest
    }
}

impl JumpRun {
    /// The run after `seq`. A packet that the network doubled neither lengthens nor breaks it.
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
