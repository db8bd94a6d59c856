//! The memory that is buffered for peers: partial packets and messages, unread output, queued text.
//!
//! Each session may buffer a little for free. All that the sessions of a worker buffer above that shares one budget; the fuller
//! it is, the smaller is the share of each session. A session that exceeds its share loses the WebSocket or the device's
//! connection, whichever buffers more.
//!
//! Counted are: of a device, its partial packet and unread output, and the texts, frames and tools that its core holds; of a
//! WebSocket, its upgrade, the incomplete message and the unread output. The capacity of a buffer counts, which may be twice
//! its content. Memory of the TLS library and of the system is not counted.

use std::mem;

use crate::net::sessions::session::Session;

/// Bytes that each session may buffer for free: enough for any ordinary message and a device's list of tools.
pub(crate) const FREE_PER_CONNECTION: usize = 16 * 1024;
/// Bytes that all sessions together may buffer above that.
pub(crate) const BUDGET: usize = 32 * 1024 * 1024;
/// The share of each session is this fraction of the unused budget.
const SHARE_DIVISOR: usize = 16;

/// The bytes that all sessions together buffer above [`FREE_PER_CONNECTION`] each.
#[derive(Debug, Default)]
pub(crate) struct MemoryBudget(usize);

impl MemoryBudget {
    /// The bytes of a session change from `before` to `after`. False when that is more than its share.
    fn change(&mut self, before: u32, after: u32) -> bool {
        self.0 = self.0 + after as usize - before as usize;
        after as usize <= BUDGET.saturating_sub(self.0) / SHARE_DIVISOR
    }

    /// Accounts for the bytes that `session` buffers now. False when that is more than its share.
    pub(crate) fn account(&mut self, session: &mut Session) -> bool {
        let bytes = session.bytes_for_device().saturating_add(session.bytes_for_backend());
        let after = u32::try_from(bytes.saturating_sub(FREE_PER_CONNECTION)).unwrap_or(u32::MAX);
        let before = mem::replace(&mut session.accounted_bytes, after);
        self.change(before, after)
    }

    /// How many bytes of audio may wait for a device, besides what its session buffers already: half of what it might, so that
    /// waiting audio alone never costs a connection.
    pub(crate) fn room(&self, session: &Session) -> usize {
        let share = BUDGET.saturating_sub(self.0) / SHARE_DIVISOR;
        ((FREE_PER_CONNECTION + share) / 2).saturating_sub(session.accounted_bytes as usize)
    }

    /// A session that buffered this many bytes has ended.
    pub(crate) fn release(&mut self, bytes: u32) {
        self.change(bytes, 0);
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.0
    }

    /// Pretends that other sessions buffer this many bytes more.
    #[cfg(test)]
    pub(crate) fn fill(&mut self, bytes: u32) {
        self.change(0, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sessions_together_stay_within_the_budget() {
        for each in [20_000, 100_000, 1_000_000, BUDGET as u32] {
            let mut memory = MemoryBudget::default();
            let mut accepted = 0;
            for _ in 0..10_000 {
                match memory.change(0, each) {
                    true => accepted += 1,
                    false => drop(memory.change(each, 0)),
                }
            }
            assert!(memory.0 < BUDGET && memory.0 == accepted * each as usize, "{each}: {}", memory.0);
            assert_eq!(accepted > 0, (each as usize) < BUDGET / SHARE_DIVISOR, "{each}: {accepted}");
            // One more session can still buffer something.
            assert!(memory.change(0, 1_000), "{each}: {accepted} use {}", memory.0);
        }
    }
}
