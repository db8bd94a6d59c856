//! Bounds how often a device may say hello, since each hello may cost a dial: `mqtt.hello_limit`.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::rate_limiter::RateLimiter;
use crate::proto::address_key::AddressKey;
use crate::proto::identity::Mac;

/// The time after which a device that has used up its burst may say hello again.
const REFILL: Duration = Duration::from_secs(2);

/// A token bucket of hellos for each device, which its connections and its client ids share. Buckets are kept apart by MAC; those
/// of devices that have not proved who they are by MAC and address, so that nobody uses up the hellos of another device.
#[derive(Debug)]
pub struct HelloLimiter(RateLimiter<(Mac, Option<AddressKey>)>);

impl Default for HelloLimiter {
    fn default() -> Self {
        Self(RateLimiter::new(0, REFILL))
    }
}

impl HelloLimiter {
    /// Takes a token of the device, of `burst` at most. `unproven_from`: the address of a device that has not proved who it is.
    pub(super) fn allows(
        &mut self,
        mac: Mac,
        unproven_from: Option<IpAddr>,
        burst: u32,
        now: Instant,
    ) -> bool {
        self.0.burst = burst;
        burst == 0 || self.0.allows((mac, unproven_from.map(AddressKey::from)), now).is_some()
    }
}

impl HelloLimiter {
    /// How long it takes until the bucket of a device that has proved who it is is full.
    pub fn full_in(&self, mac: Mac, now: Instant) -> Duration {
        self.0.full_in(&(mac, None), now)
    }

    /// A device that has proved who it is has said hello elsewhere: its bucket is full in this time at the earliest.
    pub fn delay(&mut self, mac: Mac, full_in: Duration, now: Instant) {
        self.0.delay((mac, None), full_in, now);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_followed_by_one_hello_in_two_seconds() {
        let (mut limiter, start) = (HelloLimiter::default(), Instant::now());
        let mac = Mac::from([2; 6]);
        let mut allowed = |at_ms: u64| limiter.allows(mac, None, 8, start + Duration::from_millis(at_ms));
        assert_eq!((0..1_446).filter(|n| allowed(n * 2_000 / 1_446)).count(), 8);
        assert!(allowed(2_000) && !allowed(3_999) && allowed(4_000));
        // A device that says hello every two seconds is never limited.
        assert!((0..1_000).all(|n| allowed(6_000 + n * 2_000)));
        // It was quiet for so long that the bucket is full again.
        assert_eq!((0..100).filter(|_| allowed(3_000_000)).count(), 8);
    }

    #[test]
    fn devices_have_buckets_of_their_own_and_unproven_ones_also_by_address() {
        let (mut limiter, now) = (HelloLimiter::default(), Instant::now());
        let address = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let mut allowed = |mac: u8, from: Option<IpAddr>| {
            (0..20).filter(|_| limiter.allows(Mac::from([mac; 6]), from, 8, now)).count()
        };
        for (mac, from, expected) in [
            (1, address("192.0.2.1"), 8),
            (1, address("192.0.2.2"), 8),
            (1, None, 8),
            (1, address("192.0.2.1"), 0),
            (2, None, 8),
            (2, address("2001:db8:0:1::1"), 8),
            (2, address("2001:db8:0:1::2"), 0),
        ] {
            assert_eq!(allowed(mac, from), expected, "{mac} {from:?}");
        }
    }

    #[test]
    fn a_changed_burst_is_in_force_at_once_and_zero_is_no_limit() {
        let (mut limiter, start) = (HelloLimiter::default(), Instant::now());
        let mut allowed = |burst: u32, after_s: u64| {
            let now = start + Duration::from_secs(after_s);
            (0..500).filter(|_| limiter.allows(Mac::from([2; 6]), None, burst, now)).count()
        };
        assert_eq!(allowed(0, 0), 500);
        assert_eq!(allowed(100, 0), 100);
        assert_eq!(allowed(8, 0), 0);
        assert_eq!(allowed(8, 2), 1, "the larger burst of before delays nothing");
    }
}
