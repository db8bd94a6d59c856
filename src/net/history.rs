//! The calls that have ended: shared by all workers, and written to a file by a thread of its own.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tz::TimeZone;

use crate::admin::auth::WallClock;
use crate::admin::call_history::CallHistory;
use crate::admin::call_record::{FinishedCall, LocalTime};
use crate::clock::{local_time_zone, unix_time, wall_clock};
use crate::config;
use crate::net::history_file::HistoryFile;

/// The calls that have ended. Clones share them.
#[derive(Clone)]
pub(crate) struct History {
    /// Locked when a call ends, and when calls are asked for.
    calls: Arc<Mutex<CallHistory>>,
    file: Option<HistoryFile>,
    /// The local time zone; UTC if it is unknown.
    time_zone: TimeZone,
}

impl History {
    /// With a file, reads the last calls in it, and starts the thread that writes it.
    ///
    /// # Errors
    /// When the file cannot be opened, or no thread can be started.
    pub(crate) fn open(config: &config::History) -> io::Result<Self> {
        let mut calls = CallHistory::new(config.calls);
        let file = match &config.file {
            Some(path) if config.calls > 0 => {
                Some(HistoryFile::open(path, config, |call| calls.restore(call))?)
            }
            _ => None,
        };
        Ok(Self { calls: Arc::new(Mutex::new(calls)), file, time_zone: local_time_zone() })
    }

    /// Keeps a call that has ended, and gives it its id. Does not wait for the file.
    pub(crate) fn record(&self, call: FinishedCall) -> Arc<FinishedCall> {
        // Locked until it is queued, so that the ids in the file ascend too.
        let mut calls = self.calls();
        let call = calls.push(call);
        if let Some(file) = &self.file {
            file.write(call.clone());
        }
        call
    }

    /// The list is consistent after every change, so it can be used although a worker panicked while it held the lock.
    pub(crate) fn calls(&self) -> MutexGuard<'_, CallHistory> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that could not be written to the file.
    pub(crate) fn lost_records(&self) -> u64 {
        self.file.as_ref().map_or(0, HistoryFile::lost_records)
    }

    /// Waits until every call so far is in the file, but no longer than `limit`.
    pub(crate) fn flush(&self, limit: Duration) {
        if let Some(file) = &self.file {
            file.flush(limit);
        }
    }

    /// The time now, in the local zone.
    pub(crate) fn local_time(&self) -> LocalTime {
        let offset = self.wall_clock().utc_offset_seconds;
        LocalTime {
            unix_ms: unix_time().as_millis() as u64,
            utc_offset_s: offset.try_into().unwrap_or_default(),
        }
    }

    pub(crate) fn wall_clock(&self) -> WallClock {
        wall_clock(&self.time_zone)
    }
}
