//! Delays the response to failed logins. The delay grows with the number of recent failures from the same address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::proto::address_key::AddressKey;

const DELAY_MIN: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(1);
const FORGET_AFTER: Duration = Duration::from_secs(60);
const ADDRESSES: usize = 4096;

/// The recent failed logins of up to 4096 addresses; an IPv6 /64 is one address. The addresses whose last failure is oldest are removed first.
#[derive(Default)]
pub struct AuthThrottle {
    addresses: HashMap<AddressKey, Record>,
}

struct Record {
    last: Instant,
    failures: u32,
}

impl AuthThrottle {
    /// Counts a failed login from `ip` and returns the delay of its response: none for the first failure, then 100, 200, 400
    /// and 800 ms, then always 1 s. After 60 s without a failure the count starts again. Successful logins are not delayed.
    pub fn failed(&mut self, ip: IpAddr, now: Instant) -> Duration {
        let record = self.record(ip.into(), now);
        if now.saturating_duration_since(record.last) >= FORGET_AFTER {
            record.failures = 0;
        }
        record.last = now;
        record.failures = record.failures.saturating_add(1);
        match record.failures {
            1 => Duration::ZERO,
            n => (DELAY_MIN * 2_u32.pow((n - 2).min(4))).min(DELAY_MAX),
        }
    }

    fn record(&mut self, key: AddressKey, now: Instant) -> &mut Record {
        if self.addresses.len() >= ADDRESSES && !self.addresses.contains_key(&key) {
            self.make_room();
        }
        self.addresses.entry(key).or_insert(Record { last: now, failures: 0 })
    }

    /// Removes the older half at once, so that the amortized cost per address is low.
    fn make_room(&mut self) {
        let mut times: Vec<Instant> = self.addresses.values().map(|record| record.last).collect();
        let (_, &mut middle, _) = times.select_nth_unstable(ADDRESSES / 2);
        self.addresses.retain(|_, record| record.last > middle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn ip(n: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_delay_grows_to_a_second_and_a_minute_without_failures_ends_it() {
        let (mut throttle, mut now) = (AuthThrottle::default(), Instant::now());
        for expected in [0, 100, 200, 400, 800, 1_000, 1_000] {
            assert_eq!(throttle.failed(ip(1), now), ms(expected));
            now += ms(59_999);
        }
        for _ in 0..100 {
            assert_eq!(throttle.failed(ip(1), now), ms(1_000));
        }
        assert_eq!(throttle.failed(ip(2), now), ms(0), "one address is delayed for the failures of another");
        now += FORGET_AFTER;
        assert_eq!(throttle.failed(ip(1), now), ms(0));
        assert_eq!(throttle.failed(ip(1), now), ms(100));
    }

    #[test]
    fn an_address_and_its_ipv6_mapped_form_are_one() {
        let (mut throttle, now) = (AuthThrottle::default(), Instant::now());
        throttle.failed(ip(1), now);
        let mapped = Ipv4Addr::from(0x0a00_0001).to_ipv6_mapped().into();
        assert_eq!(throttle.failed(mapped, now), ms(100));
    }

    #[test]
    fn the_addresses_of_an_ipv6_64_are_one() {
        let (mut throttle, now) = (AuthThrottle::default(), Instant::now());
        let mut failed = |network: u16, host: u16| {
            throttle.failed(Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 0, host).into(), now)
        };
        assert_eq!([1, 2, 3].map(|host| failed(1, host)), [ms(0), ms(100), ms(200)]);
        assert_eq!(failed(2, 1), ms(0), "another network is not delayed");
    }

    #[test]
    fn the_number_of_addresses_is_bounded_and_the_oldest_are_removed() {
        let (mut throttle, start) = (AuthThrottle::default(), Instant::now());
        for n in 0..20_000 {
            let now = start + ms(u64::from(n));
            throttle.failed(ip(n), now);
            assert!(throttle.addresses.len() <= ADDRESSES);
        }
        let now = start + ms(20_000);
        assert_eq!(throttle.failed(ip(19_999), now), ms(100), "the newest is still there");
        assert_eq!(throttle.failed(ip(0), now), ms(0), "the oldest has been removed");
        // All at the same instant: still bounded.
        for n in 0..10_000 {
            throttle.failed(ip(100_000 + n), now);
            assert!(throttle.addresses.len() <= ADDRESSES);
        }
    }
}
