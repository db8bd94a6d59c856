//! Named deadlines of a call: the truth about its time. The timer wheel is only an alarm clock for the earliest.

use std::time::Instant;

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

/// One optional deadline per [`Timer`].
#[derive(Clone, Debug, Default)]
pub(super) struct Deadlines([Option<Instant>; COUNT]);

impl Deadlines {
    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        self.0[timer as usize] = Some(at);
    }

    pub(super) fn clear(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.0[timer as usize].is_some()
    }

    /// The earliest of all.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }

    /// Takes one deadline that has passed, the earliest first; equal ones in the order of [`Timer`].
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Timer> {
        let due = ALL
            .into_iter()
            .filter_map(|timer| self.0[timer as usize].map(|at| (at, timer)))
            .filter(|&(at, _)| at <= now)
            .min_by_key(|&(at, timer)| (at, timer as u8))?
            .1;
        self.clear(due);
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn due_timers_come_out_in_order_and_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut deadlines = Deadlines::default();
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
