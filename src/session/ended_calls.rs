//! Calls whose end their device may not have heard of, since it had lost its connection.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::proto::identity::ClientId;

/// How long a device that was away is told of the end of its call.
const KEPT_FOR: Duration = Duration::from_secs(3600);
/// Beyond it the older half is forgotten.
const MAX_CALLS: usize = 4_096;

/// The session ids of these calls, by client id.
#[derive(Debug, Default)]
pub struct EndedCalls(HashMap<ClientId, (Instant, Box<str>)>);

impl EndedCalls {
    pub(super) fn remember(&mut self, client_id: &ClientId, session_id: Box<str>, now: Instant) {
        if self.0.len() >= MAX_CALLS && !self.0.contains_key(client_id) {
            self.0.retain(|_, (ended, _)| now.saturating_duration_since(*ended) < KEPT_FOR);
            let mut newest_first: Vec<_> = self.0.values().map(|(ended, _)| *ended).collect();
            if newest_first.len() >= MAX_CALLS {
                let (.., middle, _) = newest_first.select_nth_unstable_by(MAX_CALLS / 2, |a, b| b.cmp(a));
                let (middle, mut surplus) = (*middle, MAX_CALLS / 2);
                self.0.retain(|_, (ended, _)| {
                    let goes = *ended <= middle && surplus > 0;
                    surplus -= usize::from(goes);
                    !goes
                });
            }
        }
        self.0.insert(client_id.clone(), (now, session_id));
    }

    /// The session id of the call of a device that has connected, at most once.
    pub(super) fn take(&mut self, client_id: &ClientId, now: Instant) -> Option<Box<str>> {
        let (ended, session_id) = self.0.remove(client_id)?;
        (now.saturating_duration_since(ended) < KEPT_FOR).then_some(session_id)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fmt::Display;

    use super::*;

    fn id(group: impl Display) -> ClientId {
        ClientId::parse(&format!("{group}@@@aa_bb_cc_dd_ee_ff")).unwrap()
    }

    #[test]
    fn a_call_is_remembered_for_an_hour_and_told_once() {
        let (mut calls, start) = (EndedCalls::default(), Instant::now());
        let mut told = |client_id, after_s| {
            calls.remember(&id("a"), "s".into(), start);
            let at = start + Duration::from_secs(after_s);
            [calls.take(&id(client_id), at), calls.take(&id(client_id), at)]
        };
        assert_eq!(told("a", 3_599), [Some("s".into()), None]);
        assert_eq!(told("a", 3_600), [None, None]);
        assert_eq!(told("b", 0), [None, None]);
    }

    #[test]
    fn the_older_half_of_too_many_is_forgotten() {
        let (mut calls, start) = (EndedCalls::default(), Instant::now());
        for n in 0..=MAX_CALLS {
            calls.remember(&id(n), "s".into(), start + Duration::from_millis(n as u64));
        }
        assert_eq!(calls.0.len(), MAX_CALLS / 2 + 1);
        let now = start + Duration::from_secs(60);
        let taken = [MAX_CALLS / 2 - 1, MAX_CALLS / 2].map(|n| calls.take(&id(n), now).is_some());
        assert_eq!(taken, [false, true]);
        // At one time, as when the power fails: all are older than none.
        for n in 0..3 * MAX_CALLS {
            calls.remember(&id(n), "s".into(), now);
            assert!((MAX_CALLS / 2..=MAX_CALLS).contains(&calls.0.len()));
        }
    }
}
