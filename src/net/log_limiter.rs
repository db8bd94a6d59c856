//! Bounds how many log lines each device or address can cause.

use std::hash::Hash;
use std::time::Duration;

use crate::session::RateLimiter;

/// Log lines per key. What [`RateLimiter::allows`] returns is the number of lines that were suppressed before.
pub(crate) type LogLimiter<K> = RateLimiter<K>;

impl<K: Eq + Hash> RateLimiter<K> {
    /// One line in ten seconds.
    pub(crate) fn every_ten_seconds() -> Self {
        Self::new(1, Duration::from_secs(10))
    }
}

/// The suffix of a line that tells how many lines before it were suppressed.
pub(crate) fn suppressed_suffix(suppressed: u64) -> String {
    match suppressed {
        0 => String::new(),
        n => format!(" ({n} more were not logged)"),
    }
}
