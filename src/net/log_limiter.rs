//! Bounds how many log lines each device or address can cause, and all of them together.

use std::hash::Hash;
use std::time::{Duration, Instant};

use log::Level;

use crate::session::RateLimiter;

/// Log lines per key. What [`RateLimiter::allows`] returns is the number of lines that were suppressed before.
pub(crate) type LogLimiter<K> = RateLimiter<K>;

impl<K: Eq + Hash> RateLimiter<K> {
    /// One line in ten seconds.
    pub(crate) fn every_ten_seconds() -> Self {
        Self::new(1, Duration::from_secs(10))
    }

    /// The level of a line about this key, which is Debug for one too many, and the suffix about those before it.
    pub(crate) fn level(&mut self, key: K, now: Instant) -> (Level, String) {
        match self.allows(key, now) {
            Some(suppressed) => (Level::Info, suppressed_suffix(suppressed)),
            None => (Level::Debug, String::new()),
        }
    }
}

/// The suffix of a line that tells how many lines before it were suppressed.
pub(crate) fn suppressed_suffix(suppressed: u64) -> String {
    match suppressed {
        0 => String::new(),
        n => format!(" ({n} more were not logged)"),
    }
}

/// Lines of one kind that may be written in a second.
const LINES_PER_SECOND: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// Lines of one kind in the current second. What it leaves out is for a summary at the end of that second.
#[derive(Default)]
pub(crate) struct LinesPerSecond {
    /// When the current second began; none before the first line.
    start: Option<Instant>,
    /// Lines written in it.
    written: u32,
}

impl LinesPerSecond {
    /// Whether there is room for a line now.
    ///
    /// # Errors
    /// When there is none: the end of this second.
    pub(crate) fn has_room(&mut self, now: Instant) -> Result<(), Instant> {
        let mut start = *self.start.get_or_insert(now);
        if now.saturating_duration_since(start) >= SECOND {
            (start, self.written) = (now, 0);
            self.start = Some(start);
        }
        if self.written < LINES_PER_SECOND { Ok(()) } else { Err(start + SECOND) }
    }

    /// A line was written.
    pub(crate) fn count(&mut self) {
        self.written += 1;
    }
}
