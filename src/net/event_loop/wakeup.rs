//! Wakes the loop for the next timer of its wheel.
//!
//! The timeout of a poll would do, and does on other systems. But Linux arms and cancels an hrtimer for each poll with a
//! timeout. When every poll ends with a packet, that is more than a tenth of the packet's cost. A timerfd(2) is armed only
//! when a timer is due before the time it is armed for; after a timer was postponed it causes one early wake-up.

use std::time::{Duration, Instant};

use mio::{Registry, Token};

#[cfg(any(target_os = "linux", target_os = "android"))]
use timer::Timer;

/// The timerfd of one poll, where there is one.
pub(crate) struct Wakeup {
    /// None when the system has no timerfd or does not grant one.
    timer: Option<Timer>,
    /// When it expires; none when it is not armed.
    armed_for: Option<Instant>,
}

impl Wakeup {
    pub(crate) fn new(registry: &Registry, token: Token) -> Self {
        Self { timer: Timer::new(registry, token), armed_for: None }
    }

    /// The timeout of a poll when the next timer is due at `next`. None (for ever) when the timerfd ends the poll.
    pub(crate) fn poll_timeout(&mut self, next: Option<Instant>, now: Instant) -> Option<Duration> {
        let next = next?;
        let Some(timer) = self.timer.as_ref().filter(|_| next > now) else {
            return Some(next.saturating_duration_since(Instant::now()));
        };
        if self.armed_for.is_none_or(|at| next < at) {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() || !timer.arm(left) {
                return Some(left);
            }
            self.armed_for = Some(next);
        }
        None
    }

    /// To be called for the timerfd's event.
    pub(crate) fn expired(&mut self) {
        self.armed_for = None;
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod timer {
    use std::os::fd::{AsFd, AsRawFd};
    use std::time::Duration;

    use mio::unix::SourceFd;
    use mio::{Interest, Registry, Token};
    use nix::sys::time::TimeSpec;
    use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

    pub(crate) struct Timer(TimerFd);

    impl Timer {
        pub(crate) fn new(registry: &Registry, token: Token) -> Option<Self> {
            let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
            let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).ok()?;
            let fd = timer.as_fd().as_raw_fd();
            registry.register(&mut SourceFd(&fd), token, Interest::READABLE).ok()?;
            Some(Self(timer))
        }

        /// Each expiration causes an edge-triggered event, so the timerfd need not be read.
        pub(crate) fn arm(&self, left: Duration) -> bool {
            let once = Expiration::OneShot(TimeSpec::from_duration(left));
            self.0.set(once, TimerSetTimeFlags::empty()).is_ok()
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
enum Timer {}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
impl Timer {
    fn new(_: &Registry, _: Token) -> Option<Self> {
        None
    }

    fn arm(&self, _: Duration) -> bool {
        match *self {}
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use mio::{Events, Poll};

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn it_is_armed_for_the_earliest_timer() {
        let poll = Poll::new().unwrap();
        let mut wakeup = Wakeup::new(poll.registry(), Token(7));
        let start = Instant::now();
        assert_eq!(wakeup.poll_timeout(None, start), None);
        for (next, armed_for) in [(600, 600), (700, 600), (300, 300), (400, 300)] {
            let at = |s| start + Duration::from_secs(s);
            assert_eq!(wakeup.poll_timeout(Some(at(next)), start), None);
            assert_eq!(wakeup.armed_for, Some(at(armed_for)), "{next}");
        }
    }

    #[test]
    fn it_ends_a_poll_without_timeout_each_time_it_is_armed() {
        let mut poll = Poll::new().unwrap();
        let mut wakeup = Wakeup::new(poll.registry(), Token(7));
        let mut events = Events::with_capacity(8);
        let mut expirations = 0;
        while expirations < 2 {
            let now = Instant::now();
            let next = now + MS(20);
            // On a machine under load it may be due already.
            if wakeup.poll_timeout(Some(next), now).is_none() {
                poll.poll(&mut events, None).unwrap();
                assert_eq!(events.iter().map(mio::event::Event::token).collect::<Vec<_>>(), [Token(7)]);
                assert!(Instant::now() >= next);
                wakeup.expired();
                expirations += 1;
            }
        }
    }

    #[test]
    fn a_timer_that_is_due_is_not_waited_for() {
        let poll = Poll::new().unwrap();
        let mut wakeup = Wakeup::new(poll.registry(), Token(7));
        let now = Instant::now();
        assert_eq!(wakeup.poll_timeout(Some(now), now), Some(Duration::ZERO));
        // It became due after the iteration had begun.
        let start = now.checked_sub(MS(10)).unwrap();
        assert_eq!(wakeup.poll_timeout(Some(start + MS(5)), start), Some(Duration::ZERO));
        assert_eq!(wakeup.armed_for, None);
    }

    #[test]
    fn without_a_timer_the_poll_has_a_timeout() {
        let mut wakeup = Wakeup { timer: None, armed_for: None };
        let now = Instant::now();
        let timeout = wakeup.poll_timeout(Some(now + MS(60_000)), now).unwrap();
        assert!(MS(50_000) < timeout && timeout <= MS(60_000), "{timeout:?}");
        assert_eq!(wakeup.poll_timeout(None, now), None);
    }
}
