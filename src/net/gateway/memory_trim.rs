//! Returns memory to the system after a peak of connections.

use std::time::Duration;

use crate::net::event_loop::io::{Io, TimerKind};

/// Fewer sessions than this are no peak.
const SESSIONS_MIN: usize = 128;
/// How long to wait after half of the peak has left: most often, more are about to leave.
const DELAY: Duration = Duration::from_secs(5);

/// The largest number of sessions since memory was last returned.
#[derive(Default)]
pub(crate) struct MemoryTrim {
    sessions_max: usize,
    /// The timer is armed.
    armed: bool,
}

impl MemoryTrim {
    /// Arms a timer when half of a peak's sessions have left. `before`: how many there were before this iteration's left.
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
    // SAFETY: malloc_trim(3) takes no pointer, may be called by any thread at any time, and touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn malloc_trim() {}
