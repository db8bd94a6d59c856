//! Wakes the loop for the next alarm of its wheel.
//!
//! The timeout of a poll does that everywhere. But Linux sets a clock of the hardware for each wait that has one and takes
//! it back after it: where every wait ends with a packet, that is more than a tenth of the packet's cost. A timerfd(2) is only set when
//! an alarm comes before all that are known; one that was put off rings too early, once.

use std::time::{Duration, Instant};

use mio::{Registry, Token};

#[cfg(any(target_os = "linux", target_os = "android"))]
use timer::Timer;

/// The bell of one poll.
pub(crate) struct Wakeup {
    /// None where the system refuses one.
    timer: Option<Timer>,
    /// When it rings, as long as it has not.
    armed_for: Option<Instant>,
}

impl Wakeup {
    pub(crate) fn new(registry: &Registry, token: Token) -> Self {
        Self { timer: Timer::new(registry, token), armed_for: None }
    }

    /// How long a poll may wait when the next alarm is this one: for ever where the bell ends it.
    pub(crate) fn poll_timeout(&mut self, next: Option<Instant>, now: Instant) -> Option<Duration> {
        let next = next?;
        let Some(timer) = self.timer.as_ref().filter(|_| next > now) else {
            return Some(next.saturating_duration_since(Instant::now()));
        };
        if self.armed_for.is_none_or(|at| next < at) {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() || !timer.set(left) {
                return Some(left);
            }
            self.armed_for = Some(next);
        }
        None
    }

    /// It rang.
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

        /// Each ring is an edge, so nobody needs to read how many there were.
        pub(crate) fn set(&self, left: Duration) -> bool {
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

    fn set(&self, _: Duration) -> bool {
        match *self {}
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use mio::{Events, Poll};

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn it_is_set_for_the_earliest() {
        let poll = Poll::new().unwrap();
        let mut bell = Wakeup::new(poll.registry(), Token(7));
        let start = Instant::now();
        assert_eq!(bell.poll_timeout(None, start), None);
        for (next, set) in [(600, 600), (700, 600), (300, 300), (400, 300)] {
            let at = |s| start + Duration::from_secs(s);
            assert_eq!(bell.poll_timeout(Some(at(next)), start), None);
            assert_eq!(bell.armed_for, Some(at(set)), "{next}");
        }
    }

    #[test]
    fn it_ends_a_wait_without_end_each_time_it_is_set() {
        let mut poll = Poll::new().unwrap();
        let mut bell = Wakeup::new(poll.registry(), Token(7));
        let mut events = Events::with_capacity(8);
        let mut rung = 0;
        while rung < 2 {
            let now = Instant::now();
            let next = now + MS(20);
            // On a machine that was held up it may be due already.
            if bell.poll_timeout(Some(next), now).is_none() {
                poll.poll(&mut events, None).unwrap();
                assert_eq!(events.iter().map(mio::event::Event::token).collect::<Vec<_>>(), [Token(7)]);
                assert!(Instant::now() >= next);
                bell.expired();
                rung += 1;
            }
        }
    }

    #[test]
    fn what_is_due_is_waited_for_no_more() {
        let poll = Poll::new().unwrap();
        let mut bell = Wakeup::new(poll.registry(), Token(7));
        let now = Instant::now();
        assert_eq!(bell.poll_timeout(Some(now), now), Some(Duration::ZERO));
        // It became due after the turn had begun.
        let turn = now.checked_sub(MS(10)).unwrap();
        assert_eq!(bell.poll_timeout(Some(turn + MS(5)), turn), Some(Duration::ZERO));
        assert_eq!(bell.armed_for, None);
    }

    #[test]
    fn without_a_timer_the_poll_has_a_timeout() {
        let mut bell = Wakeup { timer: None, armed_for: None };
        let now = Instant::now();
        let patience = bell.poll_timeout(Some(now + MS(60_000)), now).unwrap();
        assert!(MS(50_000) < patience && patience <= MS(60_000), "{patience:?}");
        assert_eq!(bell.poll_timeout(None, now), None);
    }
}
