//! A token bucket for each key: bounds how many hellos or log lines each device or address can cause.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// When the count of milliseconds begins anew: long before it is too large for 4 bytes.
const COUNT_MAX: Duration = Duration::from_secs(20 * 86_400);
/// Keys that are kept. Beyond that, the half with the most unused tokens is dropped.
const KEYS_MAX: usize = 4096;

/// A token bucket per key.
#[derive(Debug)]
pub struct RateLimiter<K> {
    /// The tokens of a full bucket.
    pub(super) burst: u32,
    /// The time after which there is one token more.
    refill: Duration,
    buckets: HashMap<K, Bucket>,
    /// What the milliseconds of the buckets count from: the first event, at first.
    start: Option<Instant>,
    /// At this many keys, those with a full bucket are dropped.
    prune_at: usize,
}

/// In few bytes, since each call has two.
#[derive(Debug)]
struct Bucket {
    /// When the bucket is full again, in milliseconds.
    full_at: u32,
    refused: u32,
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

impl<K: Eq + Hash> RateLimiter<K> {
    /// Allows `burst` events of a key at once, and one more per `refill`.
    pub fn new(burst: u32, refill: Duration) -> Self {
        Self { burst, refill, buckets: HashMap::new(), start: None, prune_at: 0 }
    }

    /// Takes a token of `key`, and returns how many events before this one were refused. None: this one is refused too.
    pub fn allows(&mut self, key: K, now: Instant) -> Option<u64> {
        let (now, refill) = (self.count(now), milliseconds(self.refill));
        if self.buckets.len() >= self.prune_at {
            self.prune(now);
        }
        let empty = now.saturating_add(refill.saturating_mul(self.burst));
        let bucket = self.buckets.entry(key).or_insert(Bucket { full_at: now, refused: 0 });
        // A bucket that was larger, before a reload, is empty at most.
        bucket.full_at = bucket.full_at.clamp(now, empty);
        let after = bucket.full_at.saturating_add(refill);
        if after > empty {
            bucket.refused = bucket.refused.saturating_add(1);
            return None;
        }
        bucket.full_at = after;
        Some(std::mem::take(&mut bucket.refused).into())
    }

    /// How long it takes until the bucket of `key` is full.
    pub fn full_in(&self, key: &K, now: Instant) -> Duration {
        let now = self.start.map_or(0, |start| milliseconds(now.saturating_duration_since(start)));
        let full_in = self.buckets.get(key).map_or(0, |bucket| bucket.full_at.saturating_sub(now));
        Duration::from_millis(full_in.into())
    }

    /// The bucket of `key` is full in this time at the earliest.
    pub fn delay(&mut self, key: K, full_in: Duration, now: Instant) {
        let now = self.count(now);
        let bucket = self.buckets.entry(key).or_insert(Bucket { full_at: now, refused: 0 });
        bucket.full_at = bucket.full_at.max(now.saturating_add(milliseconds(full_in)));
    }

    /// The milliseconds of now.
    fn count(&mut self, now: Instant) -> u32 {
        let since = now.saturating_duration_since(*self.start.get_or_insert(now));
        if since < COUNT_MAX {
            return milliseconds(since);
        }
        for bucket in self.buckets.values_mut() {
            bucket.full_at = bucket.full_at.saturating_sub(milliseconds(since));
        }
        self.start = Some(now);
        0
    }

    fn prune(&mut self, now: u32) {
        self.buckets.retain(|_, bucket| bucket.full_at > now || bucket.refused > 0);
        if self.buckets.len() >= KEYS_MAX {
            let mut times: Vec<u32> = self.buckets.values().map(|bucket| bucket.full_at).collect();
            let (_, &mut middle, _) = times.select_nth_unstable(KEYS_MAX / 2);
            self.buckets.retain(|_, bucket| bucket.full_at > middle);
        }
        self.buckets.shrink_to_fit();
        self.prune_at = (2 * self.buckets.len()).clamp(64, KEYS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BURST: u32 = 200;
    const REFILL: Duration = Duration::from_millis(100);

    #[test]
    fn a_burst_is_allowed_and_a_flood_is_reduced_and_counted() {
        let (mut limiter, start) = (RateLimiter::new(BURST, REFILL), Instant::now());
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
    fn one_event_in_ten_seconds_says_how_many_were_refused() {
        let (mut limiter, start) = (RateLimiter::new(1, Duration::from_secs(10)), Instant::now());
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
    fn a_bucket_stays_as_it_is_when_the_count_begins_anew() {
        let (mut limiter, start) = (RateLimiter::new(1, Duration::from_secs(10)), Instant::now());
        assert_eq!(limiter.allows(1, start), Some(0));
        let anew = start + COUNT_MAX;
        let ms = Duration::from_millis;
        assert_eq!(limiter.allows(1, anew - ms(5_000)), Some(0));
        assert_eq!(limiter.full_in(&1, anew), ms(5_000));
        for at in [anew - ms(1), anew, anew + ms(4_999)] {
            assert_eq!(limiter.allows(1, at), None);
            assert_eq!(limiter.full_in(&1, at), anew + ms(5_000) - at);
        }
        assert_eq!(limiter.start, Some(anew));
        assert_eq!(limiter.allows(1, anew + ms(5_000)), Some(3));
        assert_eq!(limiter.allows(1, anew + 5 * COUNT_MAX), Some(0));
    }

    #[test]
    fn the_number_of_keys_is_bounded_and_the_noisiest_is_remembered() {
        let (mut limiter, start) = (RateLimiter::new(BURST, REFILL), Instant::now());
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
