//! Measurements that only hold on a machine that keeps up with real time.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A machine that wakes a thread so late is too slow, or too busy, for a measurement.
const LATE: Duration = Duration::from_millis(10);
/// How long the observing thread sleeps each time.
const NAP: Duration = Duration::from_millis(2);

/// Measures up to three times, until the measurement holds. If it never does, the test fails on a machine that woke threads in
/// time, and is skipped with a message on one that did not.
pub fn assert_in_real_time(mut measure: impl FnMut() -> Result<(), String>) {
    let mut failures = Vec::new();
    for _ in 0..3 {
        let (outcome, late) = with_latest_wake_up(&mut measure);
        match outcome {
            Ok(()) => return,
            Err(what) => failures.push((what, late)),
        }
    }
    assert!(failures.iter().any(|(_, late)| *late > LATE), "{failures:?}");
    let name = thread::current().name().unwrap_or_default().to_owned();
    eprintln!(
        "SKIPPED {name}: this machine is too slow for it, by these delays of a sleeping thread: {failures:?}"
    );
}

/// Runs this, and returns how much too late a sleeping thread was woken meanwhile, at most.
fn with_latest_wake_up<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let observer = scope.spawn(|| {
            let mut latest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let begin = Instant::now();
                thread::sleep(NAP);
                latest = latest.max(begin.elapsed().saturating_sub(NAP));
            }
            latest
        });
        let outcome = catch_unwind(AssertUnwindSafe(run));
        over.store(true, Ordering::Relaxed);
        let latest = observer.join().unwrap();
        (outcome.unwrap_or_else(|panic| resume_unwind(panic)), latest)
    })
}
