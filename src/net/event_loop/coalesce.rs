//! Decides when to batch packets: under load, the loop pauses before it polls.
//!
//! At ordinary load each packet costs one wake-up, as much as the packet itself. A pause of at most a millisecond spreads
//! that cost over all packets that arrive during it, and a millisecond is not audible. A loop with little to do never pauses.

use std::time::{Duration, Instant};

/// The lowest rate, in both directions together, at which packets are batched: two in a millisecond.
const PACKETS_PER_SECOND_MIN: u32 = 2_000;
/// Packets per wake-up to aim at. More would save little and add latency.
const PACKETS_PER_WAKEUP: u32 = 32;
/// How much longer than requested a thread sleeps, by Linux's default timer slack.
const SLEEP_OVERSHOOT: Duration = Duration::from_micros(50);
/// The period over which the rate is measured.
const WINDOW: Duration = Duration::from_millis(20);

/// Measures the packet rate, window by window.
#[derive(Debug)]
pub struct Coalescer {
    window_start: Instant,
    up: u32,
    down: u32,
    /// Packets per second in the last window, in both directions.
    rate: u32,
    /// At least a quarter of them came from chat servers.
    much_downlink: bool,
}

/// A pause before the next poll.
#[derive(Debug, PartialEq, Eq)]
pub struct Pause {
    /// How long.
    pub time: Duration,
    /// Poll without waiting first, and pause only if there is nothing: a chat server may have answered at once, and its
    /// answer should not wait for a second pause.
    pub poll_first: bool,
}

impl Coalescer {
    /// Without packets so far.
    pub fn new(now: Instant) -> Self {
        Self { window_start: now, up: 0, down: 0, rate: 0, much_downlink: false }
    }

    /// Counts a packet from a device.
    pub fn count_uplink(&mut self) {
        self.up = self.up.saturating_add(1);
    }

    /// Counts a packet from a chat server.
    pub fn count_downlink(&mut self) {
        self.down = self.down.saturating_add(1);
    }

    /// The pause before the next poll. Polls are at most `max_interval` apart; the last one was at `last_poll`. None when
    /// there are few packets, or when this iteration took so long that enough have arrived.
    pub fn pause(&mut self, max_interval: Duration, last_poll: Instant, now: Instant) -> Option<Pause> {
        let elapsed = now.saturating_duration_since(self.window_start);
        if elapsed >= WINDOW {
            let packets = self.up.saturating_add(self.down);
            self.rate = (f64::from(packets) / elapsed.as_secs_f64()) as u32;
            self.much_downlink = self.down >= packets / 4;
            (self.window_start, self.up, self.down) = (now, 0, 0);
        }
        if self.rate < PACKETS_PER_SECOND_MIN {
            return None;
        }
        let interval = max_interval.min(Duration::from_secs(1) * PACKETS_PER_WAKEUP / self.rate);
        let time = interval.checked_sub(now.saturating_duration_since(last_poll) + SLEEP_OVERSHOOT)?;
        (!time.is_zero()).then_some(Pause { time, poll_first: self.much_downlink })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// The pause after a second of this many packets from devices and from chat servers.
    fn after_a_second_of(up: u32, down: u32, max_interval: Duration) -> Option<Pause> {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(start);
        let mut pause = None;
        for window in 1..=50 {
            (0..up / 50).for_each(|_| coalescer.count_uplink());
            (0..down / 50).for_each(|_| coalescer.count_downlink());
            let now = start + WINDOW * window;
            pause = coalescer.pause(max_interval, now, now);
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
        assert_eq!(pause.time + SLEEP_OVERSHOOT, Duration::from_micros(640), "in which 32 packets arrive");
        assert_eq!(after_a_second_of(1_000_000, 0, MS(1)), None, "no sleep is that short");
        assert_eq!(after_a_second_of(100_000, 0, Duration::ZERO), None);
    }

    #[test]
    fn with_many_answers_of_chat_servers_the_loop_polls_before_it_pauses() {
        for (up, down, poll_first) in [(8_000, 1_000, false), (8_000, 8_000, true), (1_000, 8_000, true)] {
            assert_eq!(after_a_second_of(up, down, MS(1)).unwrap().poll_first, poll_first, "{up} {down}");
        }
    }

    #[test]
    fn an_iteration_that_took_as_long_is_not_followed_by_a_pause() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(start);
        (0..100).for_each(|_| coalescer.count_uplink());
        let last_poll = start + WINDOW;
        let time = |took: u64| {
            coalescer.pause(MS(1), last_poll, last_poll + Duration::from_micros(took)).map(|pause| pause.time)
        };
        let times = [0, 400, 949, 950, 2_000].map(time);
        let micros = Duration::from_micros;
        assert_eq!(times, [Some(micros(950)), Some(micros(550)), Some(micros(1)), None, None]);
    }

    #[test]
    fn a_window_with_few_packets_ends_coalescing() {
        let start = Instant::now();
        let mut coalescer = Coalescer::new(start);
        (0..100).for_each(|_| coalescer.count_uplink());
        let mut at = |since: Duration| coalescer.pause(MS(1), start + since, start + since);
        assert!(at(WINDOW).is_some());
        assert!(at(WINDOW + MS(1)).is_some());
        assert_eq!(at(WINDOW * 2), None);
    }
}
