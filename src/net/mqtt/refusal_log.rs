//! Limits the log lines about refused logins and connections: one in ten seconds about each address, and ten a second in all,
//! since a flood can have many addresses. What that leaves out is summed up in one line at the end of the second.

use std::net::IpAddr;

use log::warn;

use crate::net::event_loop::io::{Io, TimerKind};
use crate::net::log_limiter::{LinesPerSecond, LogLimiter, suppressed_suffix};
use crate::proto::address_key::AddressKey;

pub(crate) struct RefusalLog {
    /// An IPv6 /64 is one address.
    by_address: LogLimiter<AddressKey>,
    lines: LinesPerSecond,
    /// Lines that were left out since the last summary.
    left_out: u64,
}

impl Default for RefusalLog {
    fn default() -> Self {
        Self { by_address: LogLimiter::every_ten_seconds(), lines: LinesPerSecond::default(), left_out: 0 }
    }
}

impl RefusalLog {
    /// Whether a line about this address may be written, and with which suffix. If not, [`TimerKind::RefusalSummary`] may
    /// be armed.
    pub(crate) fn allows(&mut self, ip: IpAddr, io: &mut Io) -> Option<String> {
        let suffix = match self.lines.has_room(io.now) {
            Ok(()) => self.by_address.allows(ip.into(), io.now).map(suppressed_suffix),
            Err(end) => {
                if self.left_out == 0 {
                    io.timers.arm(end, TimerKind::RefusalSummary);
                }
                self.left_out += 1;
                None
            }
        };
        if suffix.is_some() {
            self.lines.count();
        }
        io.metrics.refusal_lines_left_out += u64::from(suffix.is_none());
        suffix
    }

    /// Writes the summary. Called when the timer expires.
    pub(crate) fn summarize(&mut self) {
        match std::mem::take(&mut self.left_out) {
            0 => {}
            n => warn!("{n} more refused logins or connections in the last second were not logged"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ip(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0xc000_0200 + n).into()
    }

    #[test]
    fn many_addresses_cause_ten_lines_a_second_and_a_summary() {
        let (mut log, mut io) = (RefusalLog::default(), Io::for_test());
        let start = io.now;
        for second in 0..3 {
            io.now = start + SECOND * second;
            let lines = (0..500).filter_map(|n| log.allows(ip(500 * second + n), &mut io));
            assert_eq!(lines.count(), 10);
            assert_eq!(log.left_out, 490);
            let mut expired = Vec::new();
            io.timers.expire(io.now + SECOND, &mut expired);
            assert!(matches!(expired[..], [(_, TimerKind::RefusalSummary)]), "{expired:?}");
            log.summarize();
            assert_eq!(log.left_out, 0);
        }
        assert_eq!(io.metrics.refusal_lines_left_out, 3 * 490);
    }

    #[test]
    fn the_lines_of_one_address_do_not_use_the_common_budget_up() {
        let (mut log, mut io) = (RefusalLog::default(), Io::for_test());
        let lines = (0..500).filter_map(|_| log.allows(ip(1), &mut io));
        assert_eq!(lines.count(), 1);
        assert_eq!(log.allows(ip(2), &mut io).as_deref(), Some(""));
        io.now += SECOND * 10;
        assert_eq!(log.allows(ip(1), &mut io).as_deref(), Some(" (499 more were not logged)"));
    }

    #[test]
    fn refusals_of_one_ipv6_64_share_a_line() {
        let (mut log, mut io) = (RefusalLog::default(), Io::for_test());
        let mut allows = |ip: &str| log.allows(ip.parse().unwrap(), &mut io).is_some();
        assert!(allows("2001:db8:0:1::1") && !allows("2001:db8:0:1::2") && allows("2001:db8:0:2::1"));
        assert!(allows("192.0.2.1") && allows("192.0.2.2"));
    }
}
