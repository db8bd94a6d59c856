//! Deadlines of a session and its call. The shell's timer wheel only decides when to look at them.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// An optional deadline in 4 bytes: tenths of a second, rounded up, since a start time that its owner keeps. `Option<Instant>`
/// would take 16 bytes per idle device, which has 300 in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CoarseInstant(u32);

impl CoarseInstant {
    pub(super) const NEVER: Self = Self(u32::MAX);
    const UNIT: Duration = Duration::from_millis(100);

    /// A deadline more than 13 years after the start is shortened to that.
    pub(super) fn at(at: Instant, start: Instant) -> Self {
        let units = at.saturating_duration_since(start).as_nanos().div_ceil(Self::UNIT.as_nanos());
        Self(u32::try_from(units).unwrap_or(u32::MAX).min(u32::MAX - 1))
    }

    pub(super) fn instant(self, start: Instant) -> Option<Instant> {
        (self != Self::NEVER).then(|| start + Self::UNIT * self.0)
    }
}

/// A time in a call in 4 bytes: milliseconds since its start, rounded up. After 49 days it stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CallTime(u32);

impl CallTime {
    pub(super) const START: Self = Self(0);

    /// So long after the start.
    pub(super) fn after(since_start: Duration) -> Self {
        // Cheap, since each packet sets one.
        let ms = since_start.as_secs().saturating_mul(1000);
        let ms = ms.saturating_add(since_start.subsec_nanos().div_ceil(1_000_000).into());
        Self(u32::try_from(ms).unwrap_or(u32::MAX))
    }
}

/// The timers of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum CallTimer {
    /// The device must get its hello reply by then; it gives up after 10 s.
    HelloReply,
    /// The chat server's WebSocket must be open by then.
    Connect,
    /// The chat server must have sent its hello, or at least audio or text, by then.
    ServerHello,
    /// Send the hello to the chat server once more.
    ResendHello,
    /// Stop holding audio and text for the device's first datagram.
    HoldMedia,
    /// The next of what waits for its time may be sent to the device.
    Playout,
    /// A device that has reconnected should have shown by then that it is in the call.
    Reattach,
    /// Send a keep-alive if no datagram was sent to the device until then.
    KeepAlive,
    /// A device that listens should have sent audio by then.
    MissingAudio,
    /// End the call if there was neither audio nor text until then.
    Idle,
    /// End of the pause before the next redial.
    Redial,
    /// Tell the device that the call is being redialled.
    RedialNotice,
    /// Give up redialling.
    GiveUp,
    /// Ping the chat server.
    Ping,
    /// The chat server must have answered the ping, or sent something else, by then.
    Pong,
}

const TIMER_COUNT: usize = CallTimer::Pong as usize + 1;

const ALL_TIMERS: [CallTimer; TIMER_COUNT] = [
    CallTimer::HelloReply,
    CallTimer::Connect,
    CallTimer::ServerHello,
    CallTimer::ResendHello,
    CallTimer::HoldMedia,
    CallTimer::Playout,
    CallTimer::Reattach,
    CallTimer::KeepAlive,
    CallTimer::MissingAudio,
    CallTimer::Idle,
    CallTimer::Redial,
    CallTimer::RedialNotice,
    CallTimer::GiveUp,
    CallTimer::Ping,
    CallTimer::Pong,
];

/// One optional deadline per [`CallTimer`], in milliseconds, rounded up, since the call's start. They take 4 bytes each instead of
/// 16.
#[derive(Clone, Debug)]
pub(super) struct Deadlines {
    start: Instant,
    /// The milliseconds plus one.
    offsets_ms: [Option<NonZeroU32>; TIMER_COUNT],
}

impl Deadlines {
    pub(super) fn new(start: Instant) -> Self {
        Self { start, offsets_ms: [None; TIMER_COUNT] }
    }

    pub(super) fn start(&self) -> Instant {
        self.start
    }

    pub(super) fn time(&self, at: Instant) -> CallTime {
        CallTime::after(at.saturating_duration_since(self.start))
    }

    pub(super) fn instant(&self, time: CallTime) -> Instant {
        self.start + Duration::from_millis(time.0.into())
    }

    /// A deadline more than 49 days after the call's start is shortened to that.
    pub(super) fn set(&mut self, timer: CallTimer, at: Instant) {
        self.set_after(timer, at.saturating_duration_since(self.start));
    }

    /// The same for a deadline so long after the call's start.
    pub(super) fn set_after(&mut self, timer: CallTimer, since_start: Duration) {
        let CallTime(ms) = CallTime::after(since_start);
        self.offsets_ms[timer as usize] = Some(NonZeroU32::MIN.saturating_add(ms));
    }

    pub(super) fn clear(&mut self, timer: CallTimer) {
        self.offsets_ms[timer as usize] = None;
    }

    /// Clears every deadline that is about the chat server; those about the device stay.
    pub(super) fn clear_server_timers(&mut self) {
        use CallTimer::{HoldMedia, Idle, KeepAlive, MissingAudio, Playout, Reattach};
        for timer in ALL_TIMERS {
            if !matches!(timer, MissingAudio | HoldMedia | Idle | KeepAlive | Playout | Reattach) {
                self.clear(timer);
            }
        }
    }

    pub(super) fn is_set(&self, timer: CallTimer) -> bool {
        self.offsets_ms[timer as usize].is_some()
    }

    pub(super) fn get(&self, timer: CallTimer) -> Option<Instant> {
        self.offsets_ms[timer as usize].map(|after| self.instant_of(after))
    }

    fn instant_of(&self, after: NonZeroU32) -> Instant {
        self.start + Duration::from_millis(u64::from(after.get()) - 1)
    }

    /// The earliest deadline.
    pub(super) fn earliest(&self) -> Option<Instant> {
        self.offsets_ms.iter().flatten().min().map(|&after| self.instant_of(after))
    }

    /// Removes one deadline that has passed, the earliest first, equal ones in the order of [`CallTimer`].
    pub(super) fn take_expired(&mut self, now: Instant) -> Option<CallTimer> {
        let due = ALL_TIMERS
            .into_iter()
            .filter_map(|timer| self.offsets_ms[timer as usize].map(|after| (self.instant_of(after), timer)))
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
    fn coarse_instants_are_rounded_up_and_saturate() {
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
            assert_eq!(
                CoarseInstant::at(start + after, start).instant(start),
                Some(start + expected),
                "{after:?}"
            );
        }
        assert_eq!(CoarseInstant::at(start, start + ms(1)).instant(start), Some(start));
        assert_eq!(CoarseInstant::NEVER.instant(start), None);
    }

    #[test]
    fn expired_timers_are_taken_in_order_and_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut deadlines = Deadlines::new(start);
        deadlines.set(CallTimer::ServerHello, at(40));
        deadlines.set(CallTimer::ResendHello, at(30));
        deadlines.set(CallTimer::Idle, at(900));
        deadlines.set(CallTimer::HelloReply, at(40));
        assert_eq!(deadlines.earliest(), Some(at(30)));
        let fired: Vec<_> = std::iter::from_fn(|| deadlines.take_expired(at(40))).collect();
        assert_eq!(fired, [CallTimer::ResendHello, CallTimer::HelloReply, CallTimer::ServerHello]);
        assert_eq!(deadlines.earliest(), Some(at(900)));
        assert!(!deadlines.is_set(CallTimer::ServerHello));
    }
}
