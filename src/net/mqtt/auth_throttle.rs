//! Delays the answers to failed logins, so that an address learns little by guessing passwords.
//!
//! The delay grows with the number of recent failures from the same address. After 16 of them, each answer also
//! waits for the one before, so that parallel guesses are slowed in total: the address gets one answer a second, however many
//! connections it uses. No answer waits longer than a second: a failed login whose turn comes later gets none, and its
//! connection closes after that time.
//!
//! A good login is answered at once, also while others from its address fail: many devices can share an address. So the
//! silence of the first milliseconds tells a guesser that a password is wrong; passwords are therefore not what people choose
//! but 256-bit signatures.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::proto::address_key::AddressKey;

const DELAY_MIN: Duration = Duration::from_millis(100);
/// The longest that the answer to a failed login is delayed.
pub(crate) const DELAY_MAX: Duration = Duration::from_secs(1);
/// So many failures of an address may wait for their answers at the same time: several devices that have the same mistake.
const IN_PARALLEL: u32 = 16;
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
    /// When the last answer was sent or is going to be sent.
    answered_at: Instant,
}

impl AuthThrottle {
    /// Counts a failed login from `ip` and returns the delay of its answer; none when it gets no answer. There is no delay for
    /// the first failure, then 100, 200, 400 and 800 ms, then always 1 s, from the 17th on after the last answer. After 60 s
    /// without a failure the count starts again.
    pub fn failed(&mut self, ip: IpAddr, now: Instant) -> Option<Duration> {
        let record = self.record(ip.into(), now);
        if now.saturating_duration_since(record.last) >= FORGET_AFTER {
            record.failures = 0;
        }
        record.last = now;
        record.failures = record.failures.saturating_add(1);
        let delay = match record.failures {
            1 => Duration::ZERO,
            n => (DELAY_MIN * 2_u32.pow((n - 2).min(4))).min(DELAY_MAX),
        };
        let at = match record.failures {
            0..=IN_PARALLEL => now + delay,
            _ => record.answered_at.max(now) + delay,
        };
        (at <= now + DELAY_MAX).then(|| {
            record.answered_at = record.answered_at.max(at);
            at - now
        })
    }

    fn record(&mut self, key: AddressKey, now: Instant) -> &mut Record {
        if self.addresses.len() >= ADDRESSES && !self.addresses.contains_key(&key) {
            self.make_room();
        }
        self.addresses.entry(key).or_insert(Record { last: now, failures: 0, answered_at: now })
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
            assert_eq!(throttle.failed(ip(1), now), Some(ms(expected)));
            now += ms(59_999);
        }
        assert_eq!(
            throttle.failed(ip(2), now),
            Some(ms(0)),
            "one address is delayed for the failures of another"
        );
        now += ms(1);
        assert_eq!([(); 2].map(|()| throttle.failed(ip(1), now)), [Some(ms(0)), Some(ms(100))]);
    }

    #[test]
    fn failures_in_parallel_are_answered_one_a_second_and_the_others_not_at_all() {
        let (mut throttle, start) = (AuthThrottle::default(), Instant::now());
        let mut answers = Vec::new();
        // 600 guesses a second.
        for n in 0..6_000 {
            let at = ms(n * 1_000 / 600);
            answers.extend(throttle.failed(ip(1), start + at).map(|delay| {
                assert!(delay <= DELAY_MAX);
                at + delay
            }));
        }
        let burst = IN_PARALLEL as usize;
        let pauses: Vec<_> = answers[burst - 1..].windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(
            (8..=10).contains(&pauses.len()) && pauses.iter().all(|pause| *pause >= DELAY_MAX),
            "{pauses:?}"
        );
    }

    #[test]
    fn an_address_and_its_ipv6_mapped_form_are_one() {
        let (mut throttle, now) = (AuthThrottle::default(), Instant::now());
        throttle.failed(ip(1), now);
        let mapped = Ipv4Addr::from(0x0a00_0001).to_ipv6_mapped().into();
        assert_eq!(throttle.failed(mapped, now), Some(ms(100)));
    }

    #[test]
    fn the_addresses_of_an_ipv6_64_are_one() {
        let (mut throttle, now) = (AuthThrottle::default(), Instant::now());
        let mut failed = |network: u16, host: u16| {
            throttle.failed(Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 0, host).into(), now)
        };
        assert_eq!([1, 2, 3].map(|host| failed(1, host)), [0, 100, 200].map(|n| Some(ms(n))));
        assert_eq!(failed(2, 1), Some(ms(0)), "another network is not delayed");
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
        assert_eq!(throttle.failed(ip(19_999), now), Some(ms(100)), "the newest is still there");
        assert_eq!(throttle.failed(ip(0), now), Some(ms(0)), "the oldest has been removed");
        // All at the same instant: still bounded.
        for n in 0..10_000 {
            throttle.failed(ip(100_000 + n), now);
            assert!(throttle.addresses.len() <= ADDRESSES);
        }
    }
}
