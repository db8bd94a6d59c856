//! The events of all workers, in one bounded ring.
//!
//! Workers add to it; the management API's streams and the webhooks' threads read from it, each from its own place. Nobody waits
//! for a reader: the oldest event makes room for a new one, and a reader that was too slow is told how many it has lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::admin::event::{About, Event, EventRing, StoredEvent};
use crate::clock::unix_time;
use crate::config::EventKind;

/// Shared by all workers.
#[derive(Clone)]
pub(crate) struct EventStream(Arc<Shared>);

struct Shared {
    ring: Mutex<EventRing>,
    /// There is an event, or a reader is to end.
    changed: Condvar,
    /// There are events that the leader has not offered to the management API's streams.
    is_news: AtomicBool,
}

/// When a reader on a thread of its own ends.
#[derive(Default)]
pub(crate) struct ReaderEnd {
    now: AtomicBool,
    /// When it has read all events.
    after_last: AtomicBool,
}

impl ReaderEnd {
    pub(crate) fn end_now(&self) {
        self.now.store(true, Ordering::Relaxed);
    }

    pub(crate) fn end_after_last(&self) {
        self.after_last.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_now(&self) -> bool {
        self.now.load(Ordering::Relaxed)
    }
}

impl Default for EventStream {
    fn default() -> Self {
        Self(Arc::new(Shared {
            ring: Mutex::new(EventRing::new(unix_time().as_secs())),
            changed: Condvar::new(),
            is_news: AtomicBool::new(false),
        }))
    }
}

impl EventStream {
    /// Adds an event. True when the leader is to be told that there are some.
    pub(crate) fn push(&self, event: &Event, time: &str, about: About<'_>) -> bool {
        self.ring().push(event, time, about);
        self.0.changed.notify_all();
        !self.0.is_news.swap(true, Ordering::Relaxed)
    }

    /// Whether there are events since the last call.
    pub(crate) fn take_news(&self) -> bool {
        self.0.is_news.load(Ordering::Relaxed) && self.0.is_news.swap(false, Ordering::Relaxed)
    }

    /// The id of the last event.
    pub(crate) fn last_id(&self) -> u64 {
        self.ring().last_id()
    }

    /// The first event behind this id, and how many behind it are lost.
    pub(crate) fn after(&self, id: u64) -> (u64, Option<StoredEvent>) {
        self.ring().after(id, |_| true)
    }

    /// Waits for the first `wanted` event behind `cursor`; also says how many events behind it, of all kinds, were lost meanwhile. None
    /// when `end` says so. The cursor moves over what is not wanted, which is not lost.
    pub(crate) fn wait_after(
        &self,
        cursor: &mut u64,
        wanted: impl Fn(EventKind) -> bool,
        end: &ReaderEnd,
    ) -> Option<(u64, StoredEvent)> {
        let (mut ring, mut all_lost) = (self.ring(), 0);
        loop {
            if end.is_now() {
                return None;
            }
            let (lost, event) = ring.after(*cursor, &wanted);
            all_lost += lost;
            *cursor = event.as_ref().map_or(ring.last_id(), |event| event.id);
            if let Some(event) = event {
                return Some((all_lost, event));
            }
            if end.after_last.load(Ordering::Relaxed) {
                return None;
            }
            ring = self.0.changed.wait(ring).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for so long, or until `end` is now.
    pub(crate) fn pause(&self, time: Duration, end: &ReaderEnd) {
        let until = Instant::now() + time;
        let mut ring = self.ring();
        while !end.is_now() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            ring = self.0.changed.wait_timeout(ring, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes readers that wait look at their `end`.
    pub(crate) fn wake_readers(&self) {
        // With the lock: not between a reader's look and its wait.
        let _ring = self.ring();
        self.0.changed.notify_all();
    }

    /// The ring is consistent after every change, so it can be used although a worker panicked while it held the lock.
    fn ring(&self) -> MutexGuard<'_, EventRing> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
