//! Work that waits: left over from an earlier turn, which no edge will announce, and what devices say, for which calls
//! need not wait.

use std::collections::{HashSet, VecDeque};

use super::admin::ConnId;
use super::listener::Door;
use super::token::SessionId;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ready {
    Accept(Door),
    Udp,
    Device(SessionId),
    Backend(SessionId),
    /// A device does not read what it is sent.
    SlowDevice(SessionId),
    /// A chat server does not read its text.
    SlowBackend(SessionId),
    /// More is kept for a device and its call than their share.
    Hog(SessionId),
    /// A place for a dial became free.
    Dials,
    AcceptAdmin,
    Admin(ConnId),
}

/// What waits, in the order it came, each once: whoever sends without end gets one budget a turn, two in the turn it begins,
/// however many edges it causes meanwhile.
#[derive(Default)]
pub(super) struct Leftovers {
    /// All of it is done in the next turn.
    prompt: VecDeque<Ready>,
    /// As much of it as there is time for: connections that come, handshakes, logins, hellos. They come by the thousand
    /// after a power cut, and each takes longer than a packet of audio.
    patient: VecDeque<Ready>,
    waiting: HashSet<Ready>,
}

impl Leftovers {
    /// Adds work, unless it waits already.
    pub(super) fn push(&mut self, ready: Ready) {
        if self.waiting.insert(ready) {
            let queue = match ready {
                Ready::Accept(_) | Ready::Device(_) => &mut self.patient,
                _ => &mut self.prompt,
            };
            queue.push_back(ready);
        }
    }

    pub(super) fn pop_prompt(&mut self) -> Option<Ready> {
        self.prompt.pop_front().inspect(|ready| _ = self.waiting.remove(ready))
    }

    pub(super) fn pop_patient(&mut self) -> Option<Ready> {
        self.patient.pop_front().inspect(|ready| _ = self.waiting.remove(ready))
    }

    /// Whether this waits for its turn: an edge that announces it again changes nothing.
    pub(super) fn holds(&self, ready: Ready) -> bool {
        self.waiting.contains(&ready)
    }

    pub(super) fn prompt(&self) -> usize {
        self.prompt.len()
    }

    pub(super) fn patient(&self) -> usize {
        self.patient.len()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_waits_once_and_in_order() {
        let mut left = Leftovers::default();
        let (plain, tls) = (Ready::Accept(Door::Plain), Ready::Accept(Door::Tls));
        for ready in [Ready::Udp, Ready::Dials, tls, Ready::Udp, plain, tls, Ready::Dials] {
            left.push(ready);
        }
        assert!(left.holds(Ready::Udp) && !left.holds(Ready::AcceptAdmin));
        assert_eq!((left.prompt(), left.patient()), (2, 2));
        assert_eq!(left.pop_prompt(), Some(Ready::Udp));
        assert!(!left.holds(Ready::Udp));
        left.push(Ready::Udp);
        let prompt: Vec<_> = std::iter::from_fn(|| left.pop_prompt()).collect();
        assert_eq!(prompt, [Ready::Dials, Ready::Udp]);
        assert!(!left.is_empty());
        let patient: Vec<_> = std::iter::from_fn(|| left.pop_patient()).collect();
        assert_eq!(patient, [tls, plain]);
        assert!(left.is_empty());
    }
}
