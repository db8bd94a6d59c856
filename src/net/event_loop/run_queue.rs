//! Work that waits: left over from an earlier turn, which no edge will announce, and what devices say, for which calls
//! need not wait.

use std::collections::{HashSet, VecDeque};

use crate::net::event_loop::token::AdminId;
use crate::net::event_loop::token::ListenerKind;
use crate::net::event_loop::token::SessionId;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    Accept(ListenerKind),
    Udp,
    Device(SessionId),
    Backend(SessionId),
    /// A device does not read what it is sent.
    DeviceBlocked(SessionId),
    /// A chat server does not read its text.
    BackendBlocked(SessionId),
    /// More is kept for a device and its call than their share.
    OverBudget(SessionId),
    /// A place for a dial became free.
    StartDials,
    AcceptAdmin,
    Admin(AdminId),
}

/// What waits, in the order it came, each once: whoever sends without end gets one budget a turn, two in the turn it begins,
/// however many edges it causes meanwhile.
#[derive(Default)]
pub(crate) struct RunQueue {
    /// All of it is done in the next turn.
    high_priority: VecDeque<Task>,
    /// As much of it as there is time for: connections that come, handshakes, logins, hellos. They come by the thousand
    /// after a power cut, and each takes longer than a packet of audio.
    low_priority: VecDeque<Task>,
    queued: HashSet<Task>,
}

impl RunQueue {
    /// Adds work, unless it waits already.
    pub(crate) fn push(&mut self, ready: Task) {
        if self.queued.insert(ready) {
            let queue = match ready {
                Task::Accept(_) | Task::Device(_) => &mut self.low_priority,
                _ => &mut self.high_priority,
            };
            queue.push_back(ready);
        }
    }

    pub(crate) fn pop_high_priority(&mut self) -> Option<Task> {
        self.high_priority.pop_front().inspect(|ready| _ = self.queued.remove(ready))
    }

    pub(crate) fn pop_low_priority(&mut self) -> Option<Task> {
        self.low_priority.pop_front().inspect(|ready| _ = self.queued.remove(ready))
    }

    /// Whether this waits for its turn: an edge that announces it again changes nothing.
    pub(crate) fn contains(&self, ready: Task) -> bool {
        self.queued.contains(&ready)
    }

    pub(crate) fn high_priority_len(&self) -> usize {
        self.high_priority.len()
    }

    pub(crate) fn low_priority_len(&self) -> usize {
        self.low_priority.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.queued.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queued.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_waits_once_and_in_order() {
        let mut left = RunQueue::default();
        let (plain, tls) = (Task::Accept(ListenerKind::Plain), Task::Accept(ListenerKind::Tls));
        for ready in [Task::Udp, Task::StartDials, tls, Task::Udp, plain, tls, Task::StartDials] {
            left.push(ready);
        }
        assert!(left.contains(Task::Udp) && !left.contains(Task::AcceptAdmin));
        assert_eq!((left.high_priority_len(), left.low_priority_len()), (2, 2));
        assert_eq!(left.pop_high_priority(), Some(Task::Udp));
        assert!(!left.contains(Task::Udp));
        left.push(Task::Udp);
        let prompt: Vec<_> = std::iter::from_fn(|| left.pop_high_priority()).collect();
        assert_eq!(prompt, [Task::StartDials, Task::Udp]);
        assert!(!left.is_empty());
        let patient: Vec<_> = std::iter::from_fn(|| left.pop_low_priority()).collect();
        assert_eq!(patient, [tls, plain]);
        assert!(left.is_empty());
    }
}
