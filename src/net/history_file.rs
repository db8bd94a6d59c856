//! The file of calls that have ended: one JSON object a line. A thread writes it, so that the loop never waits for a disk.
//!
//! When the file has half of `history.max_mb`, or its first call is half of `history.days` old, it gets the name of the file with `.1`
//! behind it, in place of the one that had that name; that one is deleted when it was last written `history.days` ago.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, SystemTime};

use log::{info, warn};

use crate::admin::call_record::FinishedCall;
use crate::clock::unix_time;
use crate::config;
use crate::logger::flush_queues;
use crate::output_file;

/// Calls that wait to be written; more are lost.
const QUEUE_CAPACITY: usize = 1024;
/// The longest line that is read: the longest that is written has 30 KB.
const MAX_LINE: u64 = 64 * 1024;
/// How often the age of the files is checked.
const AGE_CHECK: Duration = Duration::from_secs(3600);
const DAY_MS: u64 = 86_400_000;

/// Writes calls to the file.
#[derive(Clone)]
pub(crate) struct HistoryFile {
    queue: SyncSender<Entry>,
    /// Not 64 bits: MIPS and older ARM have no such atomic.
    lost: Arc<AtomicUsize>,
}

enum Entry {
    Call(Arc<FinishedCall>),
    /// Dropped when everything before it is written.
    Flush(#[allow(dead_code)] mpsc::Sender<()>),
}

impl HistoryFile {
    /// Reads the calls of earlier processes, the oldest first, and starts the thread.
    ///
    /// # Errors
    /// When the file cannot be opened, or the thread cannot be started.
    pub(crate) fn open(
        path: &Path,
        config: &config::History,
        mut restore: impl FnMut(FinishedCall),
    ) -> io::Result<Self> {
        let lost = Arc::new(AtomicUsize::new(0));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut writer = Writer {
            file: open_for_append(path)?,
            path: path.to_owned(),
            old_path: old_path(path),
            is_regular: false,
            bytes: 0,
            bytes_max: config.max_mb.saturating_mul(1_000_000) / 2,
            days: config.days,
            first_ms: None,
            is_torn: false,
            is_failing: false,
            lost: lost.clone(),
        };
        writer.delete_old();
        let oldest = unix_ms().saturating_sub(writer.keep_ms());
        let (mut read, mut unreadable) = (0_usize, 0_usize);
        let mut take = |call: Option<FinishedCall>| match call {
            Some(call) if call.record.ended_at.unix_ms >= oldest => {
                read += 1;
                restore(call);
            }
            Some(_) => {}
            None => unreadable += 1,
        };
        if let Ok(old) = output_file::open(OpenOptions::new().read(true), &writer.old_path) {
            read_calls(old, &mut take);
        }
        writer.take_over(&mut take)?;
        info!("history: {read} calls are read from {}", path.display());
        if unreadable > 0 {
            warn!("history: {unreadable} lines of {} are no calls, and are ignored", path.display());
        }
        let (queue, entries) = mpsc::sync_channel(QUEUE_CAPACITY);
        let thread = thread::Builder::new().name("call-history".to_owned()).stack_size(256 * 1024);
        thread.spawn(move || writer.run(&entries))?;
        Ok(Self { queue, lost })
    }

    /// Queues a call. It is lost if the queue is full.
    pub(crate) fn write(&self, call: Arc<FinishedCall>) {
        if self.queue.try_send(Entry::Call(call)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything that was queued is written, but no longer than `limit`.
    pub(crate) fn flush(&self, limit: Duration) {
        flush_queues([&self.queue], Entry::Flush, limit);
    }

    /// Calls that could not be written.
    pub(crate) fn lost_records(&self) -> u64 {
        self.lost.load(Ordering::Relaxed) as u64
    }
}

/// The state of the thread.
struct Writer {
    file: File,
    path: PathBuf,
    old_path: PathBuf,
    /// It is no device or pipe, so that it can be renamed.
    is_regular: bool,
    bytes: u64,
    bytes_max: u64,
    days: u32,
    /// When the first call in the file ended.
    first_ms: Option<u64>,
    /// The last line of the file may have no end.
    is_torn: bool,
    /// The last call could not be written.
    is_failing: bool,
    lost: Arc<AtomicUsize>,
}

impl Writer {
    /// Reads the calls that are in the file already.
    fn take_over(&mut self, take: &mut impl FnMut(Option<FinishedCall>)) -> io::Result<()> {
        let found = self.file.metadata()?;
        self.is_regular = found.is_file();
        if !self.is_regular {
            return Ok(());
        }
        self.bytes = found.len();
        let reader = output_file::open(OpenOptions::new().read(true), &self.path)?;
        self.is_torn = ends_in_a_line(&reader, self.bytes)?;
        let mut first_ms = None;
        read_calls(reader, &mut |call| {
            let ended_ms = call.as_ref().map(|call| call.record.ended_at.unix_ms);
            first_ms = first_ms.or(ended_ms);
            take(call);
        });
        self.first_ms = first_ms;
        Ok(())
    }

    fn run(mut self, entries: &Receiver<Entry>) {
        loop {
            match entries.recv_timeout(AGE_CHECK) {
                Ok(Entry::Call(call)) => self.write(&call),
                Ok(Entry::Flush(_)) => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.delete_old();
                    self.rotate_if_due(0);
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn write(&mut self, call: &FinishedCall) {
        let mut line = if self.is_torn { vec![b'\n'] } else { Vec::new() };
        if serde_json::to_writer(&mut line, call).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        line.push(b'\n');
        self.rotate_if_due(line.len() as u64);
        match self.file.write_all(&line) {
            Ok(()) => {
                if std::mem::take(&mut self.is_failing) {
                    info!("history: {} can be written again", self.path.display());
                }
                self.is_torn = false;
                self.bytes += line.len() as u64;
                self.first_ms.get_or_insert(call.record.ended_at.unix_ms);
            }
            Err(error) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                self.is_torn = true;
                if !std::mem::replace(&mut self.is_failing, true) {
                    let path = self.path.display();
                    warn!("history: {path} cannot be written: {error}; calls that end are in memory only");
                }
            }
        }
    }

    fn keep_ms(&self) -> u64 {
        u64::from(self.days) * DAY_MS
    }

    /// Deletes the older file when its time is over.
    fn delete_old(&self) {
        let written = fs::metadata(&self.old_path).and_then(|found| found.modified());
        let age = written.ok().and_then(|written| SystemTime::now().duration_since(written).ok());
        if age.is_some_and(|age| age.as_millis() >= self.keep_ms().into()) {
            let _ = fs::remove_file(&self.old_path);
        }
    }

    /// Whether the file is full with `more` bytes, or old.
    fn is_due(&self, more: u64) -> bool {
        let age = self.first_ms.map_or(0, |first| unix_ms().saturating_sub(first));
        let is_full = self.bytes > 0 && self.bytes + more > self.bytes_max;
        self.is_regular && (is_full || age >= self.keep_ms() / 2)
    }

    /// Begins a new file if the present one is full with `more` bytes, or old.
    fn rotate_if_due(&mut self, more: u64) {
        if !self.is_due(more) {
            return;
        }
        // After an upgrade in place, two processes write to the file, and the other one may have begun a new one.
        if !output_file::is_at(&self.file, &self.path)
            && let Ok(file) = open_for_append(&self.path)
        {
            let bytes = file.metadata().map_or(0, |found| found.len());
            (self.file, self.bytes, self.first_ms, self.is_torn) = (file, bytes, Some(unix_ms()), false);
            if !self.is_due(more) {
                return;
            }
        }
        let rotated = fs::rename(&self.path, &self.old_path).and_then(|()| open_for_append(&self.path));
        match rotated {
            Ok(file) => {
                (self.file, self.bytes, self.first_ms, self.is_torn) = (file, 0, None, false);
            }
            Err(error) => {
                // Tried again when it has grown as much again, so that this is not said for every call.
                (self.bytes, self.first_ms) = (0, None);
                warn!("history: {} cannot be renamed: {error}; it goes on growing", self.path.display());
            }
        }
    }
}

fn open_for_append(path: &Path) -> io::Result<File> {
    output_file::open(OpenOptions::new().create(true).append(true), path)
}

fn old_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn unix_ms() -> u64 {
    unix_time().as_millis() as u64
}

/// Whether the last byte of a file is in a line that has no end. The next read begins at the start.
fn ends_in_a_line(mut file: &File, bytes: u64) -> io::Result<bool> {
    if bytes == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(last != *b"\n")
}

/// The calls of a file, in order; `None` for a line that is none, as the last one of a process that was killed.
fn read_calls(file: File, take: &mut impl FnMut(Option<FinishedCall>)) {
    if !file.metadata().is_ok_and(|found| found.is_file()) {
        return;
    }
    let (mut reader, mut line) = (BufReader::new(file), Vec::new());
    loop {
        line.clear();
        match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if line.trim_ascii().is_empty() => {}
            Ok(_) => take(serde_json::from_slice(&line).ok()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"id":0,"startedAt":"2026-01-31T23:59:50.000+08:00","endedAt":"2026-01-31T23:59:59.999+08:00",
        "seconds":9.999,"clientId":"a","mac":"b","ip":"c","route":"production","server":null,"sessionId":"s","deviceCall":false,
        "peer":null,"answered":true,"reason":"idle","endedBy":"gateway","packetsUp":0,"bytesUp":0,"packetsDown":0,"bytesDown":0,
        "lost":0,"reordered":0,"duplicates":0,"dropped":0,"redials":0,"verdict":"good","setup":{"totalMs":1,"resolveMs":0,
        "connectMs":0,"tlsMs":0,"upgradeMs":0,"helloMs":0},"firstPacketMs":null,"lossPercent":0.0,"worstLossPercent":0.0,
        "medianJitterMs":0.0,"worstJitterMs":0.0,"gaps":0,"gapMs":0,"longestGapMs":0,"slowestAnswerMs":null,"unheardMs":0,
        "resumed":0,"awayMs":0,"failureCount":0,"failures":[],"series":{"sliceSeconds":10,"slices":[]}}"#;

    /// A call that ended so many days ago.
    fn call(id: u64, days_ago: u64) -> Arc<FinishedCall> {
        let mut call: FinishedCall = serde_json::from_str(RECORD).unwrap();
        call.record.id = id;
        call.record.ended_at.unix_ms = unix_ms() - days_ago * DAY_MS;
        Arc::new(call)
    }

    /// A path in a folder of its own.
    fn path(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("gateway-history-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder.join("calls.jsonl")
    }

    fn config(max_mb: u64) -> config::History {
        config::History { max_mb, days: 30, ..config::History::default() }
    }

    fn open(path: &Path, config: &config::History) -> (HistoryFile, Vec<u64>) {
        let mut ids = Vec::new();
        let file = HistoryFile::open(path, config, |call| ids.push(call.record.id)).unwrap();
        (file, ids)
    }

    /// Writes calls, each with its id and its age in days.
    fn write(path: &Path, config: &config::History, calls: &[(u64, u64)]) {
        let (file, _) = open(path, config);
        calls.iter().for_each(|(id, days_ago)| file.write(call(*id, *days_ago)));
        file.flush(Duration::from_secs(60));
        assert_eq!(file.lost_records(), 0);
    }

    fn ids(path: &Path) -> Vec<u64> {
        let mut ids = Vec::new();
        let Ok(file) = File::open(path) else { return ids };
        read_calls(file, &mut |call| ids.extend(call.map(|call| call.record.id)));
        ids
    }

    #[test]
    fn a_full_file_becomes_the_older_one() {
        let path = path("full");
        // Each call alone is more than the half of nothing.
        write(&path, &config(0), &[(1, 0), (2, 0), (3, 0)]);
        assert_eq!((ids(&old_path(&path)), ids(&path)), (vec![2], vec![3]));
        assert_eq!(open(&path, &config(1)).1, [2, 3], "the oldest first");
        write(&path, &config(1), &[(4, 0)]);
        assert_eq!(ids(&path), [3, 4], "there is room");
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn what_is_too_old_is_neither_read_nor_kept() {
        let path = path("old");
        write(&path, &config(64), &[(1, 14), (2, 1)]);
        assert_eq!(ids(&path), [1, 2], "the first is younger than half of the time");
        write(&path, &config(64), &[(3, 0)]);
        fs::remove_file(&path).unwrap();
        write(&path, &config(64), &[(4, 31), (5, 16), (6, 1)]);
        assert_eq!((ids(&old_path(&path)), ids(&path)), (vec![5], vec![6]), "16 days are more than half");
        let month_ago = SystemTime::now() - Duration::from_secs(30 * 86_400);
        File::options().append(true).open(old_path(&path)).unwrap().set_modified(month_ago).unwrap();
        assert_eq!(open(&path, &config(64)).1, [6]);
        assert!(!old_path(&path).exists());
        fs::write(&path, format!("{}\n", serde_json::to_string(&*call(7, 31)).unwrap())).unwrap();
        assert!(open(&path, &config(64)).1.is_empty());
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn lines_that_are_no_calls_are_skipped() {
        let path = path("torn");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let line = |id| serde_json::to_string(&*call(id, 0)).unwrap();
        let long = "x".repeat(3 * MAX_LINE as usize + 5);
        let text = format!("{}\n\n{{}}\n\u{0}\u{0}\n{long}\n{}\n{}", line(1), line(2), &line(3)[..100]);
        fs::write(&path, text).unwrap();
        assert_eq!(open(&path, &config(64)).1, [1, 2]);
        write(&path, &config(64), &[(4, 0)]);
        assert_eq!(open(&path, &config(64)).1, [1, 2, 4], "the torn line got an end");
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn a_link_that_others_could_have_made_is_refused() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let path = path("link");
        let folder = path.parent().unwrap();
        fs::create_dir_all(folder).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
        symlink(folder.join("elsewhere"), &path).unwrap();
        let error = HistoryFile::open(&path, &config(64), |_| {}).err().unwrap().to_string();
        assert!(error.contains("symbolic link"), "{error}");
        fs::remove_dir_all(folder).unwrap();
    }
}
