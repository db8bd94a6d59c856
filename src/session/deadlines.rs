//! Deadlines: the truth about time. The timer wheel is only an alarm clock for the earliest.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// One optional deadline in 4 bytes: tenths of a second since a start that its owner knows, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due(u32);

impl Due {
    pub(super) const NEVER: Self = Self(u32::MAX);
    const UNIT: Duration = Duration::from_millis(100);

    /// A deadline more than 13 years after the start rings then.
    pub(super) fn at(at: Instant, start: Instant) -> Self {
        let units = at.saturating_duration_since(start).as_nanos().div_ceil(Self::UNIT.as_nanos());
        Self(u32::try_from(units).unwrap_or(u32::MAX).min(u32::MAX - 1))
    }

    pub(super) fn instant(self, start: Instant) -> Option<Instant> {
        (self != Self::NEVER).then(|| start + Self::UNIT * self.0)
    }
}

/// What a call may be waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Timer {
    /// The device must have its hello reply by now (it gives up at 10 s).
    Answer,
    /// Name, connection, TLS and upgrade must be done by now.
    Connect,
    /// The chat server must have said hello, or at least something, by now.
    Greet,
    /// Say hello to the chat server once more.
    Again,
    /// Audio and text held for the device's first datagram are let go.
    Hold,
    /// The device should have sent its first datagram by now.
    Unheard,
    /// Neither audio nor text for too long.
    Idle,
    /// The pause before the next redial is over.
    Redial,
    /// Redialling has lasted long enough.
    GiveUp,
    /// Ping the chat server.
    Ping,
    /// The chat server should have shown life by now.
    Pong,
}

const COUNT: usize = Timer::Pong as usize + 1;

const ALL: [Timer; COUNT] = [
    Timer::Answer,
    Timer::Connect,
    Timer::Greet,
    Timer::Again,
    Timer::Hold,
    Timer::Unheard,
    Timer::Idle,
    Timer::Redial,
    Timer::GiveUp,
    Timer::Ping,
    Timer::Pong,
];

/// One optional deadline per [`Timer`], in whole milliseconds since the call's start: a third of the memory, and never
/// early, since they are rounded up.
#[derive(Clone, Debug)]
pub(super) struct Deadlines {
    start: Instant,
    /// One more than the milliseconds.
    after: [Option<NonZeroU32>; COUNT],
}

impl Deadlines {
    pub(super) fn new(start: Instant) -> Self {
        Self { start, after: [None; COUNT] }
    }

    pub(super) fn start(&self) -> Instant {
        self.start
    }

    /// A deadline more than 49 days after the call's start rings then.
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        let millis = at.saturating_duration_since(self.start).as_nanos().div_ceil(1_000_000);
        let after = u32::try_from(millis + 1).unwrap_or(u32::MAX);
        self.after[timer as usize] = NonZeroU32::new(after);
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        self.after[timer as usize] = None;
    }

    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.after[timer as usize].is_some()
    }

    fn at(&self, after: NonZeroU32) -> Instant {
        self.start + Duration::from_millis(u64::from(after.get()) - 1)
    }

    /// The earliest of all.
    pub(super) fn next(&self) -> Option<Instant> {
        self.after.iter().flatten().min().map(|&after| self.at(after))
    }

    /// Takes one deadline that has passed, the earliest first; equal ones in the order of [`Timer`].
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Timer> {
        let due = ALL
            .into_iter()
            .filter_map(|timer| self.after[timer as usize].map(|after| (self.at(after), timer)))
            .filter(|&(at, _)| at <= now)
            .min_by_key(|&(at, timer)| (at, timer as u8))?
            .1;
        self.clear(due);
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenths_are_rounded_up_and_end_with_the_number() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let longest = ms(100 * (u64::from(u32::MAX) - 1));
        for (after, expected) in [
            (ms(0), ms(0)),
            (Duration::from_nanos(1), ms(100)),
            (ms(99), ms(100)),
            (ms(100), ms(100)),
            (ms(101), ms(200)),
            (longest, longest),
            (longest + ms(1), longest),
            (longest * 2, longest),
        ] {
            assert_eq!(Due::at(start + after, start).instant(start), Some(start + expected), "{after:?}");
        }
        assert_eq!(Due::at(start, start + ms(1)).instant(start), Some(start));
        assert_eq!(Due::NEVER.instant(start), None);
    }

    #[test]
    fn due_timers_come_out_in_order_and_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut deadlines = Deadlines::new(start);
        deadlines.set(Timer::Greet, at(40));
        deadlines.set(Timer::Again, at(30));
        deadlines.set(Timer::Idle, at(900));
        deadlines.set(Timer::Answer, at(40));
        assert_eq!(deadlines.next(), Some(at(30)));
        let fired: Vec<_> = std::iter::from_fn(|| deadlines.take_due(at(40))).collect();
        assert_eq!(fired, [Timer::Again, Timer::Answer, Timer::Greet]);
        assert_eq!(deadlines.next(), Some(at(900)));
        assert!(!deadlines.is_set(Timer::Greet));
    }
}
