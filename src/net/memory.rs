//! What the gateway keeps for its peers: packets that are partial, output that is not read, text that waits. Each
//! connection may keep a little; all that is kept above that shares one budget, and the fuller it is, the smaller is the
//! share of each. So nobody can make the gateway grow, and those who keep much go first.

use std::mem;

use super::gateway::Gateway;
use super::leftovers::Ready;
use super::token::SessionId;

/// What a connection may keep in any case, in bytes: any ordinary message, and a device's list of tools.
const FREE: usize = 16 * 1024;
/// What all connections together may keep above that, in bytes.
const BUDGET: usize = 32 * 1024 * 1024;
/// A connection may keep this part of what is left of the budget.
const PART: usize = 16;

/// The sum over all connections of what each keeps above [`FREE`].
#[derive(Debug, Default)]
pub(super) struct Kept(usize);

impl Kept {
    /// What a connection kept changes to `after`; false when that is more than its share.
    fn change(&mut self, before: u32, after: u32) -> bool {
        self.0 = self.0 + after as usize - before as usize;
        after as usize <= BUDGET.saturating_sub(self.0) / PART
    }
}

impl Gateway {
    /// Looks at what is kept for this connection; one with more than its share is ended.
    pub(super) fn weigh(&mut self, id: SessionId) {
        let Some(session) = self.sessions.live(id) else { return };
        let kept = session.core.kept() + session.device.as_ref().map_or(0, |device| device.kept());
        let above = u32::try_from(kept.saturating_sub(FREE)).unwrap_or(u32::MAX);
        let before = mem::replace(&mut session.kept, above);
        if above == before {
            return;
        }
        if !self.kept.change(before, above) && above > before {
            self.ready.push(Ready::Hog(id));
        }
    }

    /// What a session kept that is no more.
    pub(super) fn forget(&mut self, kept: u32) {
        self.kept.change(kept, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_may_keep_much_and_many_may_keep_little_but_all_together_never_more_than_the_budget() {
        for each in [20_000, 100_000, 1_000_000, BUDGET as u32] {
            let mut kept = Kept::default();
            let mut good = 0;
            for _ in 0..10_000 {
                match kept.change(0, each) {
                    true => good += 1,
                    false => drop(kept.change(each, 0)),
                }
            }
            assert!(kept.0 < BUDGET && kept.0 == good * each as usize, "{each}: {}", kept.0);
            assert_eq!(good > 0, (each as usize) < BUDGET / PART, "{each}: {good}");
            // Whoever comes now still has room for something.
            let newcomer = kept.change(0, 1_000);
            assert!(newcomer, "{each}: {good} keep {}", kept.0);
        }
    }
}
