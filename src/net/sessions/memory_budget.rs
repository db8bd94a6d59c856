//! The memory kept for peers: partial packets and messages, output that is not read, text that waits.
//!
//! Each device with its call may keep a little. What the sessions of this loop keep above that shares one budget (each worker
//! has its own); the fuller it is, the smaller is the share of each. A session over its share loses whichever keeps more:
//! the WebSocket, or the device's connection.
//!
//! Counted are a device's partial packet and unread output, the texts, frames and tools its core keeps, and of a WebSocket
//! its upgrade, the incomplete message and what the server has not read. A buffer that grew by doubling may have room for
//! twice of what is in it. The memory of the TLS library and of the system is not counted.

use std::mem;

use crate::net::sessions::session::Session;

/// What a device with its call may keep in any case, in bytes: any ordinary message, and a device's list of tools.
pub(crate) const FREE_PER_CONNECTION: usize = 16 * 1024;
/// What all together may keep above that, in bytes.
pub(crate) const BUDGET: usize = 32 * 1024 * 1024;
/// Each may keep this part of what is left of the budget.
const SHARE_DIVISOR: usize = 16;

/// The sum over all sessions of what each keeps above [`FREE_PER_CONNECTION`].
#[derive(Debug, Default)]
pub(crate) struct MemoryBudget(usize);

impl MemoryBudget {
    /// What a session kept changes to `after`; false when that is more than its share.
    fn change(&mut self, before: u32, after: u32) -> bool {
        self.0 = self.0 + after as usize - before as usize;
        after as usize <= BUDGET.saturating_sub(self.0) / SHARE_DIVISOR
    }

    /// Accounts for the bytes that `session` keeps now; false when that is more than its share.
    pub(crate) fn account(&mut self, session: &mut Session) -> bool {
        let bytes = session.bytes_for_device().saturating_add(session.bytes_for_backend());
        let after = u32::try_from(bytes.saturating_sub(FREE_PER_CONNECTION)).unwrap_or(u32::MAX);
        let before = mem::replace(&mut session.accounted_bytes, after);
        self.change(before, after)
    }

    /// A session that kept this much is gone.
    pub(crate) fn release(&mut self, bytes: u32) {
        self.change(bytes, 0);
    }

    /// The bytes that all sessions keep above their free allowance.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.0
    }

    /// Has others use this much more.
    #[cfg(test)]
    pub(crate) fn fill(&mut self, bytes: u32) {
        self.change(0, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_may_keep_much_and_many_may_keep_little_but_all_together_never_more_than_the_budget() {
        for each in [20_000, 100_000, 1_000_000, BUDGET as u32] {
            let mut kept = MemoryBudget::default();
            let mut good = 0;
            for _ in 0..10_000 {
                match kept.change(0, each) {
                    true => good += 1,
                    false => drop(kept.change(each, 0)),
                }
            }
            assert!(kept.0 < BUDGET && kept.0 == good * each as usize, "{each}: {}", kept.0);
            assert_eq!(good > 0, (each as usize) < BUDGET / SHARE_DIVISOR, "{each}: {good}");
            // Whoever comes now still has room for something.
            let newcomer = kept.change(0, 1_000);
            assert!(newcomer, "{each}: {good} keep {}", kept.0);
        }
    }
}
