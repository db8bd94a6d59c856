//! Memory goes back to the system after a peak.

use std::time::Duration;

use crate::net::gateway::{Gateway, TimerKind};

/// Sessions that make a peak.
const SESSIONS_MIN: usize = 128;
/// From the drop to half of the peak until the memory goes: most often, more are about to leave.
const DELAY: Duration = Duration::from_secs(5);

/// How many sessions there were.
#[derive(Default)]
pub(in crate::net) struct MemoryTrim {
    sessions_max: usize,
    /// The wheel will ring.
    armed: bool,
}

impl Gateway {
    /// Looks whether half of a crowd has left, at the end of a turn that buried somebody.
    pub(in crate::net) fn schedule_trim(&mut self, before: usize) {
        self.memory_trim.sessions_max = self.memory_trim.sessions_max.max(before);
        if self.memory_trim.sessions_max >= SESSIONS_MIN
            && self.sessions.len() <= self.memory_trim.sessions_max / 2
            && !self.memory_trim.armed
        {
            self.memory_trim.armed = true;
            self.timers.arm(self.now + DELAY, TimerKind::TrimMemory);
        }
    }

    /// Frees what only the peak needed.
    pub(in crate::net) fn trim_memory(&mut self) {
        self.memory_trim = MemoryTrim { sessions_max: self.sessions.len(), armed: false };
        self.sessions.shrink();
        self.timers.shrink();
        self.index.shrink();
        self.context_pool.shrink();
        self.unauthenticated.shrink_to_fit();
        trim();
    }
}

/// glibc keeps what was freed, unless it is asked. Other C libraries give it back by themselves.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn trim() {
    // SAFETY: malloc_trim(3) takes no pointer, may be called by any thread at any time, and touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}
