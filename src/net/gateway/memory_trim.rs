//! Returns memory to the system after a peak of connections.

use std::time::Duration;

use crate::net::event_loop::io::{Io, TimerKind};

/// Peaks of fewer sessions than this are ignored.
const SESSIONS_MIN: usize = 128;
/// How long to wait once half of the peak's sessions have ended, since more usually end right after.
const DELAY: Duration = Duration::from_secs(5);

/// The largest number of sessions since memory was last returned.
#[derive(Default)]
pub(crate) struct MemoryTrim {
    sessions_max: usize,
    /// The timer is armed.
    armed: bool,
}

impl MemoryTrim {
    /// Arms a timer when half of a peak's sessions have ended. `before` and `now`: how many sessions there were before and
    /// after those that ended in this iteration were freed.
    pub(crate) fn schedule(&mut self, before: usize, now: usize, io: &mut Io) {
        self.sessions_max = self.sessions_max.max(before);
        if self.sessions_max >= SESSIONS_MIN && now <= self.sessions_max / 2 && !self.armed {
            self.armed = true;
            io.timers.arm(io.now + DELAY, TimerKind::TrimMemory);
        }
    }

    /// Returns freed memory to the system.
    pub(crate) fn trim(&mut self, sessions: usize) {
        *self = Self { sessions_max: sessions, armed: false };
        malloc_trim();
    }
}

/// glibc keeps freed memory until it is told to return it. Other C libraries return it by themselves.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn malloc_trim() {
    // SAFETY: malloc_trim(3) takes no pointer, is thread-safe, and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn malloc_trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_a_peak_must_have_ended() {
        let (mut trim, mut io) = (MemoryTrim::default(), Io::for_test());
        trim.schedule(SESSIONS_MIN - 1, 0, &mut io);
        assert_eq!(io.timers.next(), None, "too few sessions");
        trim.schedule(1_000, 501, &mut io);
        assert_eq!(io.timers.next(), None, "too many are left");
        trim.schedule(501, 500, &mut io);
        assert!(io.timers.next().is_some());
        trim.trim(500);
        assert_eq!((trim.sessions_max, trim.armed), (500, false));
    }
}
