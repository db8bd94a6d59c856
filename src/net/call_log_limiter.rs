//! Lines in the log that a device causes by its calls: enough for any user, and no flood.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::proto::identity::Mac;

/// Lines that a device may cause at once.
const BURST: u32 = 200;
/// After that, one more comes after so long.
const REFILL: Duration = Duration::from_millis(100);
/// Devices that are remembered; beyond that those with the most lines left are forgotten.
const DEVICES: usize = 4096;

/// What each device has left. One that has all of it need not be remembered.
#[derive(Default)]
pub(in crate::net) struct CallLogLimiter {
    devices: HashMap<Mac, Allowance>,
    /// So many, and it is time to forget some.
    crowd: usize,
}

struct Allowance {
    /// When all of it is there again.
    whole_at: Instant,
    suppressed: u64,
}

impl CallLogLimiter {
    /// Whether a line about this device's call deserves its place, and how many before it did not.
    pub(in crate::net) fn allows(&mut self, mac: Mac, now: Instant) -> Option<u64> {
        if self.devices.len() >= self.crowd {
            self.forget(now);
        }
        let allowance = self.devices.entry(mac).or_insert(Allowance { whole_at: now, suppressed: 0 });
        let whole_at = allowance.whole_at.max(now) + REFILL;
        if whole_at > now + REFILL * BURST {
            allowance.suppressed += 1;
            return None;
        }
        allowance.whole_at = whole_at;
        Some(std::mem::take(&mut allowance.suppressed))
    }

    fn forget(&mut self, now: Instant) {
        self.devices.retain(|_, allowance| allowance.whole_at > now);
        if self.devices.len() >= DEVICES {
            let mut times: Vec<Instant> = self.devices.values().map(|allowance| allowance.whole_at).collect();
            let (_, &mut middle, _) = times.select_nth_unstable(DEVICES / 2);
            self.devices.retain(|_, allowance| allowance.whole_at > middle);
        }
        self.devices.shrink_to_fit();
        self.crowd = (2 * self.devices.len()).clamp(64, DEVICES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u32) -> Mac {
        let [a, b, c, d] = n.to_be_bytes();
        Mac::from([2, 0, a, b, c, d])
    }

    #[test]
    fn a_burst_passes_and_a_flood_is_thinned_and_counted() {
        let (mut lines, start) = (CallLogLimiter::default(), Instant::now());
        for _ in 0..BURST {
            assert_eq!(lines.allows(mac(1), start), Some(0));
        }
        for _ in 0..5 {
            assert_eq!(lines.allows(mac(1), start), None);
        }
        assert_eq!(lines.allows(mac(2), start), Some(0), "one pays for another");
        assert_eq!(lines.allows(mac(1), start + REFILL), Some(5));
        assert_eq!(lines.allows(mac(1), start + REFILL), None);
        let later = start + REFILL * (BURST + 2);
        assert_eq!(lines.allows(mac(1), later), Some(1));
        for _ in 1..BURST {
            assert_eq!(lines.allows(mac(1), later), Some(0));
        }
        assert_eq!(lines.allows(mac(1), later), None);
    }

    #[test]
    fn it_is_bounded_and_remembers_who_is_loud() {
        let (mut lines, start) = (CallLogLimiter::default(), Instant::now());
        for _ in 0..=BURST {
            lines.allows(mac(0), start);
        }
        for n in 1..20_000 {
            assert_eq!(lines.allows(mac(n), start), Some(0));
            assert!(lines.devices.len() <= DEVICES);
        }
        assert_eq!(lines.allows(mac(0), start), None);
        lines.forget(start + REFILL * BURST);
        assert!(lines.devices.is_empty());
    }
}
