//! The memory that is buffered for peers: partial packets and messages, unread output, queued text.
//!
//! Each session may buffer a little for free. All that the sessions of all workers buffer above that shares one budget; the fuller
//! it is, the smaller is the share of each session. A worker reserves its part in chunks, so that workers seldom write what they
//! share. A session that exceeds its share loses the WebSocket or the device's
//! connection, whichever buffers more.
//!
//! Counted are: of a device, its partial packet and unread output, and the texts and frames that its core holds, with tools that are being listed; of a
//! WebSocket, its upgrade, the incomplete message and the unread output. The capacity of a buffer counts, which may be twice
//! its content. Memory of the TLS library and of the system is not counted.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::net::sessions::session::Session;

/// Bytes that each session may buffer for free: enough for any ordinary message and for listing a device's tools.
pub(crate) const FREE_PER_CONNECTION: usize = 16 * 1024;
/// Bytes that all sessions together may buffer above that.
pub(crate) const BUDGET: usize = 32 * 1024 * 1024;
/// The share of each session is this fraction of the unused budget.
const SHARE_DIVISOR: usize = 16;

/// What a worker reserves at once.
const CHUNK: usize = 256 * 1024;

/// The bytes that all sessions together buffer above [`FREE_PER_CONNECTION`] each.
#[derive(Debug, Default)]
pub(crate) struct MemoryBudget {
    /// Those of this worker.
    own: usize,
    /// Whole chunks.
    reserved: usize,
    reserved_by_all: Arc<AtomicUsize>,
}

impl MemoryBudget {
    /// The budget of another worker, which shares this one.
    pub(crate) fn shared(&self) -> Self {
        Self { own: 0, reserved: 0, reserved_by_all: self.reserved_by_all.clone() }
    }

    /// The bytes of a session change from `before` to `after`. False when that is more than its share.
    fn change(&mut self, before: u32, after: u32) -> bool {
        self.own = self.own + after as usize - before as usize;
        let reserved = self.own.next_multiple_of(CHUNK);
        if reserved != self.reserved {
            // Wraps around where it becomes less.
            self.reserved_by_all.fetch_add(reserved.wrapping_sub(self.reserved), Relaxed);
            self.reserved = reserved;
        }
        after as usize <= self.share()
    }

    /// What one session may buffer.
    fn share(&self) -> usize {
        let elsewhere = self.reserved_by_all.load(Relaxed).saturating_sub(self.reserved);
        BUDGET.saturating_sub(self.own + elsewhere) / SHARE_DIVISOR
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
        ((FREE_PER_CONNECTION + self.share()) / 2).saturating_sub(session.accounted_bytes as usize)
    }

    /// A session that buffered this many bytes has ended.
    pub(crate) fn release(&mut self, bytes: u32) {
        self.change(bytes, 0);
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.own
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
            assert!(memory.own < BUDGET && memory.own == accepted * each as usize, "{each}: {}", memory.own);
            assert_eq!(accepted > 0, (each as usize) < BUDGET / SHARE_DIVISOR, "{each}: {accepted}");
            // One more session can still buffer something.
            assert!(memory.change(0, 1_000), "{each}: {accepted} use {}", memory.own);
        }
    }

    #[test]
    fn the_workers_share_one_budget() {
        let mut one = MemoryBudget::default();
        let mut others = [one.shared(), one.shared()];
        let largest = (BUDGET / SHARE_DIVISOR) as u32;
        assert!(others[0].change(0, largest * 15 / 16) && !others[0].change(0, largest));
        let before = one.share();
        for other in &mut others {
            other.fill(BUDGET as u32 / 4);
        }
        assert!(one.share() <= before - BUDGET / 2 / SHARE_DIVISOR, "{} {before}", one.share());
        assert!(!one.change(0, before as u32));
        // Others count by whole chunks, of which none stays reserved.
        let (own, full) = (one.own as u32, BUDGET / SHARE_DIVISOR);
        one.release(own);
        for other in &mut others {
            other.release(other.own as u32);
        }
        assert_eq!([one.share(), others[0].share(), others[1].share()], [full; 3]);
    }
}
