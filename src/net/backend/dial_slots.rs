//! Limits how many WebSockets are being opened at once: `websocket.max_dials`, over all workers.
//!
//! While a worker with less than its share waits, others with their share take no more, so that none waits for ever. Whoever frees a
//! slot wakes those that wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

/// A worker's view of the slots.
#[derive(Debug)]
pub(crate) struct DialSlots {
    index: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Slots that are taken.
    taken: AtomicUsize,
    workers: Box<[WorkerSlots]>,
}

#[derive(Debug, Default)]
struct WorkerSlots {
    taken: AtomicUsize,
    waits: AtomicBool,
}

impl Default for DialSlots {
    fn default() -> Self {
        Self::for_workers(1)
    }
}

impl DialSlots {
    /// The first of so many workers' views.
    pub(crate) fn for_workers(workers: usize) -> Self {
        let workers = (0..workers).map(|_| WorkerSlots::default()).collect();
        Self { index: 0, shared: Arc::new(Shared { taken: AtomicUsize::new(0), workers }) }
    }

    /// The view of another worker.
    pub(crate) fn of_worker(&self, index: usize) -> Self {
        Self { index, shared: self.shared.clone() }
    }

    /// How many this worker has taken.
    #[cfg(test)]
    pub(crate) fn own(&self) -> usize {
        self.shared.workers[self.index].taken.load(SeqCst)
    }

    /// Takes a slot if one of `max` is free. Else this worker waits: it is among those that [`to_wake`](Self::to_wake) names.
    pub(crate) fn take(&self, max: usize) -> bool {
        let own = &self.shared.workers[self.index];
        // Before the slots are looked at: whoever frees one after that sees that this worker waits.
        own.waits.store(true, SeqCst);
        let share = max.div_ceil(self.shared.workers.len());
        if own.taken.load(SeqCst) >= share && self.waiting().any(|worker| self.taken_by(worker) < share) {
            return false;
        }
        let one_more = |taken| (taken < max).then_some(taken + 1);
        if self.shared.taken.fetch_update(SeqCst, SeqCst, one_more).is_err() {
            return false;
        }
        own.taken.fetch_add(1, SeqCst);
        own.waits.store(false, SeqCst);
        true
    }

    /// Nothing waits for a slot here.
    pub(crate) fn wait_no_more(&self) {
        self.shared.workers[self.index].waits.store(false, SeqCst);
    }

    /// Frees a slot.
    pub(crate) fn free(&self) {
        self.shared.workers[self.index].taken.fetch_sub(1, SeqCst);
        self.shared.taken.fetch_sub(1, SeqCst);
    }

    /// The other workers that wait although one of `max` slots is free.
    pub(crate) fn to_wake(&self, max: usize) -> impl Iterator<Item = usize> {
        let is_free = self.shared.taken.load(SeqCst) < max;
        self.waiting().filter(move |_| is_free)
    }

    /// The other workers that wait.
    fn waiting(&self) -> impl Iterator<Item = usize> {
        let workers = self.shared.workers.iter().enumerate();
        workers
            .filter(|(worker, slots)| *worker != self.index && slots.waits.load(SeqCst))
            .map(|(worker, _)| worker)
    }

    fn taken_by(&self, worker: usize) -> usize {
        self.shared.workers[worker].taken.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_worker_that_waits_gets_its_share() {
        let first = DialSlots::for_workers(2);
        let second = first.of_worker(1);
        assert!((0..5).all(|_| first.take(5)), "alone it may take all");
        assert!(!first.take(5) && !second.take(5));
        assert_eq!(second.to_wake(5).count(), 0, "there is none");
        first.free();
        assert_eq!(first.to_wake(5).collect::<Vec<_>>(), [1]);
        assert!(!first.take(5), "the other one waits and has less than its share");
        assert!(second.take(5) && !second.take(5));
        assert_eq!((first.own(), second.own()), (4, 1));
        first.free();
        second.wait_no_more();
        assert!(first.take(5), "nobody else waits");
        assert_eq!(first.to_wake(9).count(), 0);
    }

    #[test]
    fn no_slot_stays_free_while_all_who_wait_have_their_share() {
        let workers = DialSlots::for_workers(3);
        let [one, other] = [workers.of_worker(1), workers.of_worker(2)];
        assert!(one.take(3) && other.take(3));
        // The third worker has nothing to dial.
        assert!(one.take(3) && !other.take(3));
        one.free();
        assert!(one.take(3) || other.take(3));
    }

    #[test]
    fn workers_never_have_more_than_all_together() {
        let slots = DialSlots::for_workers(3);
        let highest = AtomicUsize::new(0);
        thread::scope(|scope| {
            for index in 0..3 {
                let (slots, highest) = (slots.of_worker(index), &highest);
                scope.spawn(move || {
                    for n in 0..20_000 {
                        if slots.take(4) {
                            highest.fetch_max(slots.shared.taken.load(SeqCst), SeqCst);
                            if n % 3 == 0 {
                                thread::yield_now();
                            }
                            slots.free();
                        }
                    }
                    slots.wait_no_more();
                });
            }
        });
        assert!((1..=4).contains(&highest.into_inner()));
        assert_eq!(slots.shared.taken.load(SeqCst), 0);
    }
}
