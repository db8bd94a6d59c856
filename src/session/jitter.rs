//! The jitter of a device's audio.

use std::time::Duration;

/// A longer gap, in microseconds, is not jitter: the device stopped sending.
const MAX_GAP_US: u32 = 500_000;
/// A new packet has a weight of 1 / this in the averages, as in RFC 3550 section 6.4.1.
const SMOOTHING_FACTOR: i32 = 16;

/// The smoothed deviation of the gaps between packets from their average. RFC 3550 uses the sender's timestamps instead of an
/// average, but those of devices are often zero.
#[derive(Debug)]
pub(super) struct Jitter {
    /// When the last packet came, in microseconds since any time, modulo 2^32; and its sequence.
    last_us: u32,
    last_sequence: u32,
    /// The average gap in microseconds; 0 is unknown.
    gap_us: i32,
    /// The average deviation in microseconds.
    deviation_us: i32,
}

impl Default for Jitter {
    /// Before the first packet: no sequence of a device's first packet follows, and not so soon.
    fn default() -> Self {
        Self { last_us: 1 << 31, last_sequence: u32::MAX, gap_us: 0, deviation_us: 0 }
    }
}

impl Jitter {
    /// Records a packet that came at this time, in microseconds modulo 2^32. The gap is ignored if the packet before is missing.
    pub(super) fn on_packet(&mut self, sequence: u32, now_us: u32) {
        let gap = now_us.wrapping_sub(self.last_us);
        let is_next = sequence == self.last_sequence.wrapping_add(1);
        (self.last_us, self.last_sequence) = (now_us, sequence);
        if !is_next || gap > MAX_GAP_US {
            return;
        }
        let gap = gap as i32;
        if self.gap_us == 0 {
            self.gap_us = gap;
        }
        let off = gap - self.gap_us;
        self.gap_us += off / SMOOTHING_FACTOR;
        self.deviation_us += (off.abs() - self.deviation_us) / SMOOTHING_FACTOR;
    }

    /// The current jitter.
    pub(super) fn value(&self) -> Duration {
        Duration::from_micros(self.micros().into())
    }

    /// The same in microseconds.
    pub(super) fn micros(&self) -> u32 {
        self.deviation_us.max(0) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(gaps: impl IntoIterator<Item = (u32, u32)>) -> u128 {
        // The clock overflows in between.
        let (mut jitter, mut now, mut sequence) = (Jitter::default(), u32::MAX - 300_000, 0);
        jitter.on_packet(sequence, now);
        for (step, gap) in gaps {
            sequence += step;
            now = now.wrapping_add(1_000 * gap);
            jitter.on_packet(sequence, now);
        }
        jitter.value().as_millis()
    }

    #[test]
    fn regular_packets_have_no_jitter_and_irregular_ones_their_deviation() {
        assert_eq!(Jitter::default().value(), Duration::ZERO);
        assert_eq!(after([(1, 60); 200]), 0);
        let uneven = after((0..200).map(|i| (1, if i % 2 == 0 { 40 } else { 80 })));
        assert!((17..=21).contains(&uneven), "{uneven}");
    }

    #[test]
    fn losses_and_pauses_do_not_count() {
        let gaps = (0..200).map(|i| if i % 10 == 5 { (3, 180) } else { (1, 60) });
        assert_eq!(after(gaps), 0);
        let gaps = (0..200).map(|i| (1, if i % 10 == 5 { 4000 } else { 60 }));
        assert_eq!(after(gaps), 0);
    }

    #[test]
    fn a_changed_packet_interval_converges_to_no_jitter() {
        let change = (0..600).map(|i| (1, if i < 100 { 60 } else { 120 }));
        assert!(after(change) <= 1);
    }

    #[test]
    fn half_a_second_is_the_longest_gap_that_counts() {
        let with = |pause| after((0..50).map(|i| (1, if i == 25 { pause } else { 60 })));
        assert!(with(500) > 0);
        assert_eq!(with(501), 0);
    }
}
