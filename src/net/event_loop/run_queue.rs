//! Tasks that wait for a later iteration: work left over when a budget was used up, which no edge-triggered event will
//! announce again, and low-priority work, which must not delay audio.

use std::collections::VecDeque;

use hashbrown::HashSet;

#[cfg(feature = "cluster")]
use crate::cluster::Connection;
use crate::net::event_loop::token::{AdminId, ListenerKind, OtaId, SessionId};

/// A unit of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    Accept(ListenerKind),
    Udp,
    Device(SessionId),
    /// An operator disconnects a device, perhaps together with thousands of others.
    Disconnect(SessionId),
    Backend(SessionId),
    /// A device does not read: its write buffer is full.
    DeviceBlocked(SessionId),
    /// A chat server does not read: its write buffer is full.
    BackendBlocked(SessionId),
    /// A session uses more than its share of the memory.
    OverBudget(SessionId),
    /// A dial may start: one has joined the queue, or another has ended.
    StartDials,
    AcceptAdmin,
    Admin(AdminId),
    AdminHandshake(AdminId),
    AcceptOta,
    Ota(OtaId),
    /// Redis has sent more than is read at once.
    #[cfg(feature = "cluster")]
    Redis(Connection),
}

/// Waiting tasks, in order of arrival. A task is queued only once, so a peer that sends without end gets one budget per
/// iteration (two in the first), however many events it causes.
#[derive(Default)]
pub(crate) struct RunQueue {
    /// All of these run in the next iteration.
    high_priority: VecDeque<Task>,
    /// As many of these run as the time budget allows: accepts, handshakes, OTA requests, logins, hellos, disconnections. After a power cut there are
    /// thousands, and each takes longer than an audio packet.
    low_priority: VecDeque<Task>,
    queued: HashSet<Task>,
}

impl RunQueue {
    /// Adds a task, unless it is queued already.
    pub(crate) fn push(&mut self, task: Task) {
        if self.queued.insert(task) {
            let queue = match task {
                Task::Accept(_)
                | Task::Device(_)
                | Task::AdminHandshake(_)
                | Task::Disconnect(_)
                | Task::AcceptOta
                | Task::Ota(_) => &mut self.low_priority,
                _ => &mut self.high_priority,
            };
            queue.push_back(task);
        }
    }

    pub(crate) fn pop_high_priority(&mut self) -> Option<Task> {
        self.high_priority.pop_front().inspect(|task| _ = self.queued.remove(task))
    }

    pub(crate) fn pop_low_priority(&mut self) -> Option<Task> {
        self.low_priority.pop_front().inspect(|task| _ = self.queued.remove(task))
    }

    /// Removes a task of high priority. Whether it was there.
    pub(crate) fn take(&mut self, task: Task) -> bool {
        let queued = self.queued.remove(&task);
        if queued {
            self.high_priority.retain(|other| *other != task);
        }
        queued
    }

    /// Whether the task is queued, so that an event for it need not be handled now.
    pub(crate) fn contains(&self, task: Task) -> bool {
        self.queued.contains(&task)
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
    fn each_task_is_queued_once_and_in_order() {
        let mut queue = RunQueue::default();
        let (plain, tls) = (Task::Accept(ListenerKind::Plain), Task::Accept(ListenerKind::Tls));
        for task in [Task::Udp, Task::StartDials, tls, Task::Udp, plain, tls, Task::StartDials] {
            queue.push(task);
        }
        queue.push(Task::AcceptAdmin);
        assert!(queue.take(Task::AcceptAdmin) && !queue.take(Task::AcceptAdmin));
        assert!(queue.contains(Task::Udp) && !queue.contains(Task::AcceptAdmin));
        assert_eq!((queue.high_priority_len(), queue.low_priority_len()), (2, 2));
        assert_eq!(queue.pop_high_priority(), Some(Task::Udp));
        assert!(!queue.contains(Task::Udp));
        queue.push(Task::Udp);
        let high: Vec<_> = std::iter::from_fn(|| queue.pop_high_priority()).collect();
        assert_eq!(high, [Task::StartDials, Task::Udp]);
        assert!(!queue.is_empty());
        let low: Vec<_> = std::iter::from_fn(|| queue.pop_low_priority()).collect();
        assert_eq!(low, [tls, plain]);
        assert!(queue.is_empty());
    }
}
