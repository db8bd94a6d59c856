//! Whether packets come so thick that it pays to let them gather before the next look.
//!
//! At ordinary load a packet means a wake-up, which costs as much as the packet itself. A pause of a millisecond at most
//! shares it among all that came meanwhile, and nobody hears a millisecond; but a quiet loop answers at once.

use std::time::{Duration, Instant};

/// Packets per second, both ways together, from which they count as thick: two in a millisecond.
const THICK: u32 = 2_000;
/// Packets that share one wake-up; more of them would save little and wait longer.
const GATHER: u32 = 32;
/// A thread sleeps longer than it asked for by about this, on Linux by default.
const OVERSLEPT: Duration = Duration::from_micros(50);
/// How long packets are counted before the rate is judged.
const WINDOW: Duration = Duration::from_millis(20);

/// The present rate of packets, judged window by window.
#[derive(Debug)]
pub(super) struct Pace {
    since: Instant,
    packets: u32,
    /// Packets per second in the last window.
    rate: u32,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, packets: 0, rate: 0 }
    }

    /// One more packet.
    pub(super) fn packet(&mut self) {
        self.packets = self.packets.saturating_add(1);
    }

    /// How long to let work gather before the next look, at most `most`; None when the loop is quiet.
    pub(super) fn pause(&mut self, most: Duration, now: Instant) -> Option<Duration> {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            self.rate = (f64::from(self.packets) / elapsed.as_secs_f64()) as u32;
            (self.since, self.packets) = (now, 0);
        }
        let pause = most.min(Duration::from_secs(1) * GATHER / self.rate.max(1));
        let pause = pause.saturating_sub(OVERSLEPT);
        (self.rate >= THICK && !pause.is_zero()).then_some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is paused after a second at this rate.
    fn after_a_second_at(rate: u32, most: Duration) -> Option<Duration> {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut pause = None;
        for n in 0..rate {
            pace.packet();
            pause = pace.pause(most, start + Duration::from_secs(1) * n / rate);
        }
        pause
    }

    #[test]
    fn only_thick_packets_gather() {
        let most = Duration::from_millis(1);
        assert_eq!(after_a_second_at(50, most), None);
        assert_eq!(after_a_second_at(1_500, most), None);
        assert_eq!(after_a_second_at(3_000, most), Some(most - OVERSLEPT));
        let pause = after_a_second_at(50_000, most).unwrap() + OVERSLEPT;
        assert!((620..660).contains(&pause.as_micros()), "32 packets come in 640 us: {pause:?}");
        assert_eq!(after_a_second_at(1_000_000, most), None, "no sleep is that short");
        assert_eq!(after_a_second_at(100_000, Duration::ZERO), None);
    }

    #[test]
    fn the_first_quiet_window_ends_it() {
        let start = Instant::now();
        let most = Duration::from_millis(1);
        let mut pace = Pace::new(start);
        (0..100).for_each(|_| pace.packet());
        assert!(pace.pause(most, start + WINDOW).is_some());
        assert!(pace.pause(most, start + WINDOW + most).is_some());
        assert_eq!(pace.pause(most, start + WINDOW * 2), None);
    }
}
