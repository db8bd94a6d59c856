//! Bounds how many log lines each device or address can cause.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Keys that are kept. Beyond that, the half with the most unused lines is dropped.
const KEYS_MAX: usize = 4096;

/// A token bucket of log lines per key.
pub(crate) struct LogLimiter<K> {
    burst: u32,
    refill: Duration,
    buckets: HashMap<K, Bucket>,
    /// At this many keys, those with a full bucket are dropped.
    prune_at: usize,
}

struct Bucket {
    /// When the bucket is full again.
    full_at: Instant,
    suppressed: u64,
}

impl<K: Eq + Hash> LogLimiter<K> {
    /// Allows `burst` lines at once, and one more per `refill`.
    pub(crate) fn new(burst: u32, refill: Duration) -> Self {
        Self { burst, refill, buckets: HashMap::new(), prune_at: 0 }
    }

    /// One line in ten seconds.
    pub(crate) fn every_ten_seconds() -> Self {
        Self::new(1, Duration::from_secs(10))
    }

    /// Whether a line about `key` may be written, and how many lines before it were suppressed.
    pub(crate) fn allows(&mut self, key: K, now: Instant) -> Option<u64> {
        if self.buckets.len() >= self.prune_at {
            self.prune(now);
        }
        let bucket = self.buckets.entry(key).or_insert(Bucket { full_at: now, suppressed: 0 });
        let full_at = bucket.full_at.max(now) + self.refill;
        if full_at > now + self.refill * self.burst {
            bucket.suppressed += 1;
            return None;
        }
        bucket.full_at = full_at;
        Some(std::mem::take(&mut bucket.suppressed))
    }

    fn prune(&mut self, now: Instant) {
        self.buckets.retain(|_, bucket| bucket.full_at > now || bucket.suppressed > 0);
        if self.buckets.len() >= KEYS_MAX {
            let mut times: Vec<Instant> = self.buckets.values().map(|bucket| bucket.full_at).collect();
            let (_, &mut middle, _) = times.select_nth_unstable(KEYS_MAX / 2);
            self.buckets.retain(|_, bucket| bucket.full_at > middle);
        }
        self.buckets.shrink_to_fit();
        self.prune_at = (2 * self.buckets.len()).clamp(64, KEYS_MAX);
    }
}

/// The suffix of a line that tells how many lines before it were suppressed.
pub(crate) fn suppressed_suffix(suppressed: u64) -> String {
    match suppressed {
        0 => String::new(),
        n => format!(" ({n} more were not logged)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: u32 = 200;
    const REFILL: Duration = Duration::from_millis(100);

    #[test]
    fn a_burst_is_allowed_and_a_flood_is_reduced_and_counted() {
        let (mut limiter, start) = (LogLimiter::new(BURST, REFILL), Instant::now());
        for _ in 0..BURST {
            assert_eq!(limiter.allows(1, start), Some(0));
        }
        for _ in 0..5 {
            assert_eq!(limiter.allows(1, start), None);
        }
        assert_eq!(limiter.allows(2, start), Some(0), "each key has its own bucket");
        assert_eq!(limiter.allows(1, start + REFILL), Some(5));
        assert_eq!(limiter.allows(1, start + REFILL), None);
        let later = start + REFILL * (BURST + 2);
        assert_eq!(limiter.allows(1, later), Some(1));
        for _ in 1..BURST {
            assert_eq!(limiter.allows(1, later), Some(0));
        }
        assert_eq!(limiter.allows(1, later), None);
    }

    #[test]
    fn one_line_in_ten_seconds_says_how_many_were_suppressed() {
        let (mut limiter, start) = (LogLimiter::every_ten_seconds(), Instant::now());
        let ms = Duration::from_millis;
        assert_eq!(limiter.allows(1, start), Some(0));
        for n in 1..=5 {
            assert_eq!(limiter.allows(1, start + ms(n * 1_999)), None);
        }
        assert_eq!(limiter.allows(2, start), Some(0));
        assert_eq!(limiter.allows(1, start + ms(10_000)), Some(5));
        assert_eq!(limiter.allows(1, start + ms(20_000)), Some(0));
    }

    #[test]
    fn the_number_of_keys_is_bounded_and_the_noisiest_is_remembered() {
        let (mut limiter, start) = (LogLimiter::new(BURST, REFILL), Instant::now());
        for _ in 0..=BURST {
            limiter.allows(0, start);
        }
        for n in 1..20_000 {
            assert_eq!(limiter.allows(n, start), Some(0));
            assert!(limiter.buckets.len() <= KEYS_MAX);
        }
        assert_eq!(limiter.allows(0, start), None);
    }
}
