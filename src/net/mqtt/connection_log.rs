//! Limits the log lines about devices that connect and leave: ten a second, since thousands may come at once when a network or a
//! gateway is back. What that leaves out is counted in one line at the end of the second.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashSet};
use log::info;

use crate::net::event_loop::io::{Io, TimerKind};
use crate::net::log_limiter::LinesPerSecond;
use crate::proto::identity::Mac;

/// MACs that are remembered. At this many all are forgotten, so that whoever may choose a MAC cannot fill the memory.
const KNOWN_MAX: usize = 65_536;

/// What a device did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It connected, for the first time since the start.
    New,
    /// It connected, not for the first time.
    Back,
    /// It left.
    Left,
}

#[derive(Default)]
pub(crate) struct ConnectionLog {
    /// Hashes of the MACs of devices that have been connected since the start. They are smaller, and beside 10,000 devices one new one
    /// in 400,000 is taken for one of them.
    known: HashSet<u32>,
    hasher: DefaultHashBuilder,
    lines: LinesPerSecond,
    /// Lines about each [`Change`] that were left out since the last summary.
    left_out: [u64; 3],
}

impl ConnectionLog {
    /// Whether a device that connects is new or back.
    pub(crate) fn connected(&mut self, mac: Mac) -> Change {
        if self.known.len() >= KNOWN_MAX {
            self.known = HashSet::new();
        }
        if self.known.insert(self.hasher.hash_one(mac) as u32) { Change::New } else { Change::Back }
    }

    /// Whether a line about this may be written. If not, [`TimerKind::ConnectionSummary`] may be armed.
    pub(crate) fn allows(&mut self, change: Change, io: &mut Io) -> bool {
        match self.lines.has_room(io.now) {
            Ok(()) => {
                self.lines.count();
                true
            }
            Err(end) => {
                if self.left_out == [0; 3] {
                    io.timers.arm(end, TimerKind::ConnectionSummary);
                }
                self.left_out[change as usize] += 1;
                false
            }
        }
    }

    /// Writes the summary. Called when the timer expires, and before the log ends.
    pub(crate) fn write_summary(&mut self) {
        if let Some(summary) = self.summary() {
            info!("{summary}");
        }
    }

    fn summary(&mut self) -> Option<String> {
        let [new, back, left] = std::mem::take(&mut self.left_out);
        (new + back + left > 0).then(|| {
            format!(
                "{} more devices connected ({new} new since the start, {back} back) and {left} left in the last second, not \
                 logged one by one",
                new + back
            )
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn mac(n: u32) -> Mac {
        let [a, b, c, d] = n.to_be_bytes();
        Mac::from([2, 0, a, b, c, d])
    }

    #[test]
    fn a_device_is_new_once() {
        let mut log = ConnectionLog::default();
        assert_eq!(
            [1, 2, 1, 1].map(|n| log.connected(mac(n))),
            [Change::New, Change::New, Change::Back, Change::Back]
        );
    }

    #[test]
    fn remembered_devices_are_bounded() {
        let mut log = ConnectionLog::default();
        for n in 0..2 * KNOWN_MAX as u32 {
            log.connected(mac(n));
            assert!(log.known.len() <= KNOWN_MAX);
        }
    }

    #[test]
    fn hundreds_at_once_are_ten_lines_and_a_count() {
        let (mut log, mut io) = (ConnectionLog::default(), Io::for_test());
        let start = io.now;
        for second in 0..3 {
            io.now = start + Duration::from_secs(1) * second;
            let changes = (0..500).map(|n| match n % 5 {
                0 => Change::New,
                1 | 2 => Change::Back,
                _ => Change::Left,
            });
            assert_eq!(changes.filter(|change| log.allows(*change, &mut io)).count(), 10);
            let mut expired = Vec::new();
            io.timers.expire(io.now + Duration::from_millis(900), &mut expired);
            assert_eq!(expired, []);
            io.timers.expire(io.now + Duration::from_secs(1), &mut expired);
            assert!(matches!(expired[..], [(_, TimerKind::ConnectionSummary)]), "{expired:?}");
            let expected = "294 more devices connected (98 new since the start, 196 back) and 196 left in the last second, not \
                            logged one by one";
            assert_eq!(log.summary().as_deref(), Some(expected));
            assert_eq!(log.summary(), None);
        }
    }

    #[test]
    fn ten_a_second_are_all_logged() {
        let (mut log, mut io) = (ConnectionLog::default(), Io::for_test());
        let start = io.now;
        for second in 0..3 {
            for tenth in 0..10 {
                io.now = start + Duration::from_millis(1000 * second + 100 * tenth);
                assert!(log.allows(Change::New, &mut io));
            }
        }
        assert_eq!(log.summary(), None);
    }
}
