//! Whether packets come so thick that it pays to let them gather before the next look.
//!
//! At ordinary load a packet means a wake-up, which costs as much as the packet itself. A pause of a millisecond at most
//! shares it among all that came meanwhile, and nobody hears a millisecond; but a quiet loop answers at once.

use std::time::{Duration, Instant};

/// Packets per second, both ways together, from which they count as thick: two in a millisecond.
const PACKETS_PER_SECOND_MIN: u32 = 2_000;
/// Packets that share one wake-up; more of them would save little and wait longer.
const PACKETS_PER_WAKEUP: u32 = 32;
/// A thread sleeps longer than it asked for by about this, on Linux by default.
const SLEEP_OVERSHOOT: Duration = Duration::from_micros(50);
/// How long packets are counted before the rate is judged.
const WINDOW: Duration = Duration::from_millis(20);

/// The present rates of packets, judged window by window.
#[derive(Debug)]
pub(crate) struct Coalescer {
    since: Instant,
    up: u32,
    down: u32,
    /// Packets per second in the last window, both ways.
    rate: u32,
    /// Many of them came from chat servers.
    mostly_downlink: bool,
}

/// How work gathers before the next look.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pause {
    pub(crate) time: Duration,
    /// Only after a look that finds nothing: chat servers may answer at once, and an answer should not wait a whole pause
    /// after what it answers has waited one.
    pub(crate) poll_first: bool,
}

impl Coalescer {
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, up: 0, down: 0, rate: 0, mostly_downlink: false }
    }

    /// One more packet from a device.
    pub(crate) fn count_uplink(&mut self) {
        self.up = self.up.saturating_add(1);
    }

    /// One more packet from a chat server.
    pub(crate) fn count_downlink(&mut self) {
        self.down = self.down.saturating_add(1);
    }

    /// What to let gather before the next look, when the last was at `looked`: looks are `most` apart at most. None when
    /// the loop is quiet, or so busy that enough has gathered.
    pub(crate) fn pause(&mut self, most: Duration, looked: Instant, now: Instant) -> Option<Pause> {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed >= WINDOW {
            let packets = self.up.saturating_add(self.down);
            self.rate = (f64::from(packets) / elapsed.as_secs_f64()) as u32;
            self.mostly_downlink = self.down >= packets / 4;
            (self.since, self.up, self.down) = (now, 0, 0);
        }
        if self.rate < PACKETS_PER_SECOND_MIN {
            return None;
        }
        let apart = most.min(Duration::from_secs(1) * PACKETS_PER_WAKEUP / self.rate);
        let time = apart.checked_sub(now.saturating_duration_since(looked) + SLEEP_OVERSHOOT)?;
        (!time.is_zero()).then_some(Pause { time, poll_first: self.mostly_downlink })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// What is paused after a second of this many packets from devices and from chat servers.
    fn after_a_second_of(up: u32, down: u32, most: Duration) -> Option<Pause> {
        let start = Instant::now();
        let mut pace = Coalescer::new(start);
        let mut pause = None;
        for window in 1..=50 {
            (0..up / 50).for_each(|_| pace.count_uplink());
            (0..down / 50).for_each(|_| pace.count_downlink());
            let now = start + WINDOW * window;
            pause = pace.pause(most, now, now);
        }
        pause
    }

    #[test]
    fn only_frequent_packets_are_coalesced() {
        assert_eq!(after_a_second_of(50, 0, MS(1)), None);
        assert_eq!(after_a_second_of(1_000, 500, MS(1)), None);
        let whole = MS(1) - SLEEP_OVERSHOOT;
        assert_eq!(after_a_second_of(3_000, 0, MS(1)), Some(Pause { time: whole, poll_first: false }));
        let pause = after_a_second_of(50_000, 0, MS(1)).unwrap();
        assert_eq!(pause.time + SLEEP_OVERSHOOT, Duration::from_micros(640), "in which 32 packets come");
        assert_eq!(after_a_second_of(1_000_000, 0, MS(1)), None, "no sleep is that short");
        assert_eq!(after_a_second_of(100_000, 0, Duration::ZERO), None);
    }

    #[test]
    fn with_many_answers_of_chat_servers_the_loop_polls_before_it_pauses() {
        for (up, down, look) in [(8_000, 1_000, false), (8_000, 8_000, true), (1_000, 8_000, true)] {
            assert_eq!(after_a_second_of(up, down, MS(1)).unwrap().poll_first, look, "{up} {down}");
        }
    }

    #[test]
    fn an_iteration_that_took_as_long_is_not_followed_by_a_pause() {
        let start = Instant::now();
        let mut pace = Coalescer::new(start);
        (0..100).for_each(|_| pace.count_uplink());
        let looked = start + WINDOW;
        let time = |took: u64| {
            pace.pause(MS(1), looked, looked + Duration::from_micros(took)).map(|pause| pause.time)
        };
        let times = [0, 400, 949, 950, 2_000].map(time);
        let micros = Duration::from_micros;
        assert_eq!(times, [Some(micros(950)), Some(micros(550)), Some(micros(1)), None, None]);
    }

    #[test]
    fn the_first_quiet_window_ends_it() {
        let start = Instant::now();
        let mut pace = Coalescer::new(start);
        (0..100).for_each(|_| pace.count_uplink());
        let mut at = |since: Duration| pace.pause(MS(1), start + since, start + since);
        assert!(at(WINDOW).is_some());
        assert!(at(WINDOW + MS(1)).is_some());
        assert_eq!(at(WINDOW * 2), None);
    }
}
