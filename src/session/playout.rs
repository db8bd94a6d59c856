//! When audio may leave for a device.
//!
//! Boards keep 5, 10 or 40 frames and lose what exceeds that, and they throw away audio that arrives before they have handled
//! `tts start`. So a call's audio is never more than [`AHEAD_MAX`] and [`AHEAD_FRAMES`] frames ahead of what the device has
//! played, and follows `tts start` after `udp.speech_lead_ms`. A server that sends in real time is below these limits: its
//! frames never wait.

use std::time::{Duration, Instant};

use crate::config::Udp;

/// How far audio may be ahead of real time: real servers send five frames of 60 ms at once, and then in real time.
const AHEAD_MAX: Duration = Duration::from_millis(300);
/// How many frames audio may be ahead of real time: the smallest queue of a board.
const AHEAD_FRAMES: u32 = 5;
/// How late the loop's timers may be.
const LATE_TIMER: Duration = Duration::from_millis(10);
/// The distance between two frames that waited, or their duration if that is shorter.
const HELD_DISTANCE: Duration = Duration::from_millis(20);
/// The duration of a frame that neither side states.
const DEFAULT_FRAME_MS: u32 = 60;

/// The audio that the device has got and not played yet, as a time.
pub(super) struct Playout {
    frame_ms: u16,
    /// When the device will have played everything that was sent.
    ends_at: Instant,
    /// No audio leaves before.
    not_before: Instant,
}

impl Playout {
    pub(super) fn new(now: Instant) -> Self {
        Self { frame_ms: DEFAULT_FRAME_MS as u16, ends_at: now, not_before: now }
    }

    /// Sets the duration of the server's frames. Opus packets last up to 120 ms (RFC 6716 section 3.2.5); another value is ignored.
    pub(super) fn set_frame_ms(&mut self, ms: Option<u32>) {
        self.frame_ms = ms.filter(|ms| (1..=120).contains(ms)).unwrap_or(DEFAULT_FRAME_MS) as u16;
    }

    /// How many frames last this long.
    pub(super) fn frames_in(&self, time: Duration) -> usize {
        time.as_millis() as usize / usize::from(self.frame_ms)
    }

    /// When the device will have played what it was sent.
    pub(super) fn ends_at(&self) -> Instant {
        self.ends_at
    }

    /// `tts start` was sent. A device that is not speaking yet empties its queue when it handles it.
    pub(super) fn on_speech_start(&mut self, was_speaking: bool, config: &Udp, now: Instant) {
        if !was_speaking {
            self.ends_at = now;
        }
        self.not_before = now + config.speech_lead;
    }

    /// The device stops playing what it was sent.
    pub(super) fn on_abort(&mut self, now: Instant) {
        (self.ends_at, self.not_before) = (now, now);
    }

    /// When the next frame may leave. `waits`: it waits already. One that does not may be ahead by the speech lead too, but by less
    /// than a frame, so that a server that sends in real time is not delayed by it for ever.
    pub(super) fn next_frame_at(&self, waits: bool, config: &Udp) -> Instant {
        if !config.downlink_pace {
            return self.not_before;
        }
        let frame = Duration::from_millis(self.frame_ms.into());
        let lead = if waits {
            Duration::ZERO
        } else {
            (config.speech_lead + LATE_TIMER).min(frame - Duration::from_millis(1))
        };
        let ahead = AHEAD_MAX.min(frame * AHEAD_FRAMES) + lead;
        self.not_before.max((self.ends_at + frame).checked_sub(ahead).unwrap_or(self.not_before))
    }

    /// A frame was sent. `waited`: the next one that waits keeps a distance.
    pub(super) fn on_frame(&mut self, waited: bool, config: &Udp, now: Instant) {
        let frame = Duration::from_millis(self.frame_ms.into());
        self.ends_at = self.ends_at.max(now) + frame;
        if waited && config.downlink_pace {
            // Short frames keep the pace of real time, also behind timers that are late.
            let short = self.not_before.max(now.checked_sub(frame).unwrap_or(now)) + frame;
            self.not_before = if frame > HELD_DISTANCE { now + HELD_DISTANCE } else { short };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// When each of `frames` leaves that arrive at these times, in ms after `tts start`, each handled on time.
    fn departures(frame_ms: u32, arrivals: &[u64], config: &Udp) -> Vec<u64> {
        let start = Instant::now();
        let mut playout = Playout::new(start);
        playout.set_frame_ms(Some(frame_ms));
        playout.on_speech_start(false, config, start);
        let (mut out, mut last): (Vec<u64>, u64) = (Vec::new(), 0);
        for &at in arrivals {
            let arrived = start + MS(at);
            // A frame waits behind one that waits.
            let waits = last > at || playout.next_frame_at(false, config) > arrived;
            let leaves = playout.next_frame_at(waits, config).max(arrived).max(start + MS(last));
            playout.on_frame(waits, config, leaves);
            last = (leaves - start).as_millis() as u64;
            out.push(last);
        }
        out
    }

    #[test]
    fn a_whole_reply_at_once_leaves_in_real_time() {
        let udp = Config::default().udp;
        let times = departures(60, &[0; 12], &udp);
        assert_eq!(times, [30, 50, 70, 90, 110, 130, 150, 210, 270, 330, 390, 450]);
        let times = departures(20, &[0; 10], &udp);
        assert_eq!(times, [30, 50, 70, 90, 110, 130, 150, 170, 190, 210]);
        let times = departures(120, &[0; 5], &udp);
        assert_eq!(times, [30, 50, 90, 210, 330]);
    }

    #[test]
    fn a_server_in_real_time_that_is_five_frames_ahead_waits_at_the_start_only() {
        let udp = Config::default().udp;
        let arrivals: Vec<u64> = (0..5).map(|_| 0).chain((1..40).map(|n| n * 60)).collect();
        let times = departures(60, &arrivals, &udp);
        assert!(times.iter().zip(&arrivals).skip(7).all(|(left, arrived)| left == arrived), "{times:?}");
    }

    #[test]
    fn short_frames_keep_the_pace_of_real_time_behind_late_timers() {
        let udp = Config::default().udp;
        let start = Instant::now();
        let mut playout = Playout::new(start);
        playout.set_frame_ms(Some(20));
        playout.on_speech_start(false, &udp, start);
        let (mut now, mut sent) = (start, 0);
        // Every timer is 8 ms late.
        while sent < 100 {
            now = playout.next_frame_at(true, &udp).max(now) + MS(8);
            while sent < 100 && playout.next_frame_at(true, &udp) <= now {
                playout.on_frame(true, &udp, now);
                sent += 1;
            }
        }
        assert!(now - start < MS(2_100), "{:?}", now - start);
    }

    #[test]
    fn without_pace_only_the_lead_delays_audio() {
        let udp = Udp { downlink_pace: false, ..Config::default().udp };
        assert_eq!(departures(60, &[0, 0, 0, 40, 40], &udp), [30, 30, 30, 40, 40]);
        let udp = Udp { speech_lead: Duration::ZERO, ..udp };
        assert_eq!(departures(60, &[0; 9], &udp), [0; 9]);
    }

    #[test]
    fn a_frame_duration_that_opus_does_not_have_is_ignored() {
        let mut playout = Playout::new(Instant::now());
        for (stated, used) in [(Some(20), 20), (Some(0), 60), (Some(121), 60), (None, 60), (Some(120), 120)] {
            playout.set_frame_ms(stated);
            assert_eq!(u32::from(playout.frame_ms), used, "{stated:?}");
        }
        assert_eq!(playout.frames_in(Duration::from_secs(300)), 2500);
    }
}
