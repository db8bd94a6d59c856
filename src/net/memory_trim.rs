//! Memory goes back to the system after a peak.

use std::time::Duration;

use super::gateway::{Alarm, Gateway};

/// Sessions that make a peak.
const CROWD: usize = 128;
/// From the drop to half of the peak until the memory goes: most often, more are about to leave.
const AFTER: Duration = Duration::from_secs(5);

/// How many sessions there were.
#[derive(Default)]
pub(super) struct Peak {
    most: usize,
    /// The wheel will ring.
    armed: bool,
}

impl Gateway {
    /// Looks whether half of a crowd has left, at the end of a turn that buried somebody.
    pub(super) fn mind_peak(&mut self, before: usize) {
        self.peak.most = self.peak.most.max(before);
        if self.peak.most >= CROWD && self.sessions.len() <= self.peak.most / 2 && !self.peak.armed {
            self.peak.armed = true;
            self.wheel.arm(self.now + AFTER, Alarm::Relief);
        }
    }

    /// Frees what only the peak needed.
    pub(super) fn relieve(&mut self) {
        self.peak = Peak { most: self.sessions.len(), armed: false };
        self.sessions.shrink();
        self.wheel.shrink();
        self.index.shrink();
        self.contexts.shrink();
        self.strangers.shrink_to_fit();
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
