//! The log: lines to stderr and to a file, written by separate threads, so that logging never blocks on a disk or a
//! terminal.
//!
//! Each output has a bounded queue. A line that does not fit, or that cannot be written, is dropped and counted. The level is `log`'s own maximum and can change at any time, as the format can.
//!
//! A record's fields (`log::kv`) are fields of a JSON line; `device`, `address` and `session` stand in brackets in a text line.

use std::fmt::Arguments;
use std::io;
use std::iter;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use log::kv::Source;
use log::{Level, Log, Metadata, Record};
use tz::TimeZone;

use crate::clock::{local_time_zone, timestamp};
use crate::config::{Config, LogFormat, LogTime};
use line::{TextLines, json_line};
use output::{LogFile, Output, Stderr};
use recent::RecentLines;

mod line;
mod output;
mod recent;

pub use recent::RecentLine;

/// Lines queued for one output.
const QUEUE_CAPACITY: usize = 1024;

/// How long a writer rests after it has written what was queued. To wake it for each line would cost a busy gateway more than the line.
const REST: Duration = Duration::from_millis(2);

/// The modules whose lines are written. Those of libraries are not: a WebSocket library's show request headers, and
/// so the token in them.
const CRATE_TARGET: &str = "mqtt_websocket_proxy";

/// Not 64 bits: MIPS and older ARM have no such atomic.
static LOST_LINES: AtomicUsize = AtomicUsize::new(0);
static QUEUES: OnceLock<Queues> = OnceLock::new();
static SETTINGS: Settings = Settings::new();
static RECENT: Mutex<RecentLines> = Mutex::new(RecentLines::new());

/// Starts logging to stderr and, when given, to the end of `logging.file_path`, whose missing parent folders are made;
/// [`output_file::open`](crate::output_file::open) says with which mode, and which links are refused.
///
/// # Errors
/// When the file cannot be opened, a thread cannot be started, or there is a logger already.
pub fn start(config: &Config) -> io::Result<()> {
    configure(config);
    let file = config.logging.file.as_deref().map(|path| LogFile::open(path, &SETTINGS)).transpose()?;
    let mut queues = vec![spawn_writer("log-stderr", Stderr::detect())?];
    if let Some(file) = file {
        queues.push(spawn_writer("log-file", file)?);
    }
    let queues = QUEUES.get_or_init(|| queues.into());
    let logger = Logger::new(queues, &SETTINGS, &RECENT, local_time_zone());
    log::set_boxed_logger(Box::new(logger)).map_err(io::Error::other)
}

/// Puts the level and everything but the path of section `logging` in force, from the next line on.
pub fn configure(config: &Config) {
    let logging = &config.logging;
    SETTINGS.json.store(logging.format == LogFormat::Json, Ordering::Relaxed);
    SETTINGS.utc.store(logging.time == LogTime::Utc, Ordering::Relaxed);
    SETTINGS.max_mb.store(logging.max_mb, Ordering::Relaxed);
    SETTINGS.keep.store(logging.keep, Ordering::Relaxed);
    log::set_max_level(config.log_level());
}

/// Opens the log file again, as after it was renamed. Its thread does that; when it fails, it says so and goes on with the file
/// that is open.
pub fn reopen() {
    SETTINGS.reopens.fetch_add(1, Ordering::Relaxed);
    for queue in QUEUES.get().into_iter().flat_map(|queues| queues.iter()) {
        // A queue that is full wakes its thread anyhow.
        let _ = queue.try_send(Line::Wake);
    }
}

/// Logs a message about `who`, whose fields are those of the line. [`log_about`] checks the level first.
pub(crate) fn log_fields(level: Level, who: &dyn Source, message: Arguments<'_>) {
    let record = Record::builder().level(level).target(CRATE_TARGET).key_values(&who).args(message).build();
    log::logger().log(&record);
}

/// Logs a message with fields: `log_about!(level, fields, "text {}", value)`, where `fields` is a [`log::kv::Source`] that is only
/// evaluated when the level is logged.
macro_rules! log_about {
    ($level:expr, $fields:expr, $($message:tt)+) => {{
        let level = $level;
        if level <= log::STATIC_MAX_LEVEL && level <= log::max_level() {
            $crate::logger::log_fields(level, &$fields, format_args!($($message)+));
        }
    }};
}
pub(crate) use log_about;

/// The number of lines that were dropped since the start, counted for each output.
pub fn lost_lines() -> u64 {
    LOST_LINES.load(Ordering::Relaxed) as u64
}

/// The last lines behind this id, of this level or a more serious one, and the id of the last of all: up to 500 lines and 512 KiB are
/// kept in memory. None without [`start`].
pub fn recent_lines(after: u64, level: Level) -> (u64, Vec<RecentLine>) {
    RECENT.lock().unwrap_or_else(PoisonError::into_inner).after(after, level)
}

/// Waits until every line logged so far is written, but no longer than `limit`.
pub fn flush(limit: Duration) {
    let Some(queues) = QUEUES.get() else { return };
    flush_queues(queues.iter(), Line::Flush, limit);
}

/// Waits until the threads behind these queues have dealt with what is queued so far, but no longer than `limit`. An entry that
/// `marker` makes is dropped when everything before it is done.
pub(crate) fn flush_queues<'a, T: 'a>(
    queues: impl IntoIterator<Item = &'a SyncSender<T>>,
    marker: fn(Sender<()>) -> T,
    limit: Duration,
) {
    let end = Instant::now() + limit;
    let (done, all_done) = mpsc::channel();
    for queue in queues {
        let mut entry = marker(done.clone());
        while let Err(TrySendError::Full(back)) = queue.try_send(entry)
            && Instant::now() < end
        {
            entry = back;
            thread::sleep(Duration::from_millis(1));
        }
    }
    drop(done);
    // Ends when the last marker is gone, whether it was reached or could not be queued.
    let _ = all_done.recv_timeout(end.saturating_duration_since(Instant::now()));
}

type Queues = Arc<[SyncSender<Line>]>;

enum Line {
    Text(Level, Arc<[u8]>),
    /// Something else than a line is to be done.
    Wake,
    /// Dropped when everything before it is written.
    Flush(#[allow(dead_code)] Sender<()>),
}

/// What may change while the program runs; every thread reads it.
struct Settings {
    json: AtomicBool,
    utc: AtomicBool,
    max_mb: AtomicUsize,
    keep: AtomicUsize,
    /// How often the file was to be opened again.
    reopens: AtomicUsize,
}

impl Settings {
    const fn new() -> Self {
        Self {
            json: AtomicBool::new(false),
            utc: AtomicBool::new(false),
            max_mb: AtomicUsize::new(0),
            keep: AtomicUsize::new(0),
            reopens: AtomicUsize::new(0),
        }
    }

    /// The size of a file above which it is rotated; 0 is never.
    fn max_bytes(&self) -> u64 {
        self.max_mb.load(Ordering::Relaxed) as u64 * 1_000_000
    }
}

fn spawn_writer(name: &str, mut output: impl Output) -> io::Result<SyncSender<Line>> {
    let (sender, lines): (_, Receiver<Line>) = mpsc::sync_channel(QUEUE_CAPACITY);
    let write = move || {
        while let Ok(first) = lines.recv() {
            for line in iter::once(first).chain(lines.try_iter()) {
                match line {
                    Line::Text(level, text) if output.write(level, &text).is_err() => count_lost_line(),
                    Line::Text(..) | Line::Flush(_) => {}
                    Line::Wake => output.wake(),
                }
            }
            thread::sleep(REST);
        }
    };
    thread::Builder::new().name(name.to_owned()).stack_size(128 * 1024).spawn(write)?;
    Ok(sender)
}

fn count_lost_line() {
    LOST_LINES.fetch_add(1, Ordering::Relaxed);
}

/// Keeps messages to one line each, and to our own modules.
struct Logger {
    /// Locked until a line is queued, so that lines stand in the order of their times.
    text: Mutex<TextLines>,
    queues: Queues,
    settings: &'static Settings,
    recent: &'static Mutex<RecentLines>,
    zone: TimeZone,
}

impl Logger {
    fn new(
        queues: &Queues,
        settings: &'static Settings,
        recent: &'static Mutex<RecentLines>,
        zone: TimeZone,
    ) -> Self {
        Self { text: Mutex::new(TextLines::new()), queues: Arc::clone(queues), settings, recent, zone }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with(CRATE_TARGET)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        let zone = (!self.settings.utc.load(Ordering::Relaxed)).then_some(&self.zone);
        let time = timestamp(SystemTime::now(), zone);
        let line: Arc<[u8]> = match self.settings.json.load(Ordering::Relaxed) {
            true => json_line(&time, record).into(),
            false => text.line(&time, record).into(),
        };
        for queue in self.queues.iter() {
            if queue.try_send(Line::Text(record.level(), Arc::clone(&line))).is_err() {
                count_lost_line();
            }
        }
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).push(record.level(), &line);
    }

    fn flush(&self) {
        flush(Duration::from_millis(500));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::line::LONGEST;
    use super::*;

    /// What was written, and a lock that a writer waits for.
    #[derive(Clone, Default)]
    struct TestSink {
        written: Arc<Mutex<Vec<u8>>>,
        write_lock: Arc<Mutex<()>>,
    }

    impl Output for TestSink {
        fn write(&mut self, _: Level, line: &[u8]) -> io::Result<()> {
            let _open = self.write_lock.lock().unwrap();
            self.written.lock().unwrap().extend_from_slice(line);
            Ok(())
        }
    }

    struct FailingWriter;

    impl Output for FailingWriter {
        fn write(&mut self, _: Level, _: &[u8]) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    /// A logger of its own, beside the process's.
    fn logger(queues: Vec<SyncSender<Line>>) -> Logger {
        let recent = Box::leak(Box::new(Mutex::new(RecentLines::new())));
        Logger::new(&queues.into(), Box::leak(Box::new(Settings::new())), recent, TimeZone::utc())
    }

    fn log_info(logger: &Logger, target: &str, text: &str) {
        let level = log::Level::Info;
        logger.log(&Record::builder().target(target).level(level).args(format_args!("{text}")).build());
    }

    fn flush_queue(queue: &SyncSender<Line>) {
        let (done, all_done) = mpsc::channel();
        queue.send(Line::Flush(done)).unwrap();
        assert!(all_done.recv_timeout(Duration::from_secs(60)).is_err());
    }

    #[test]
    fn a_line_has_time_level_and_escaped_text() {
        let sink = TestSink::default();
        let queue = spawn_writer("test", sink.clone()).unwrap();
        let logger = logger(vec![queue.clone()]);
        log_info(
            &logger,
            "mqtt_websocket_proxy::net",
            "a\r\n2026 [INFO ] b \u{1b}[31m \u{9b} \u{2028} \u{202e} ü",
        );
        log_info(&logger, "tungstenite::protocol", "authorization: Bearer hunter2");
        flush_queue(&queue);
        let written = String::from_utf8(sink.written.lock().unwrap().clone()).unwrap();
        let (time, text) = written.split_once(' ').unwrap();
        assert_eq!(time.len(), "2026-01-31T23:59:59.999Z".len(), "{time}");
        assert!(time.ends_with('Z') && time.as_bytes()[10] == b'T' && time.as_bytes()[19] == b'.', "{time}");
        assert_eq!(text, "[INFO ] a\\r\\n2026 [INFO ] b \\u{1b}[31m \\u{9b} \\u{2028} \\u{202e} ü\n");
    }

    #[test]
    fn a_message_without_end_is_cut() {
        let sink = TestSink::default();
        let queue = spawn_writer("test", sink.clone()).unwrap();
        let logger = logger(vec![queue.clone()]);
        log_info(&logger, CRATE_TARGET, &"x".repeat(900_000));
        log_info(&logger, CRATE_TARGET, "next");
        flush_queue(&queue);
        let written = String::from_utf8(sink.written.lock().unwrap().clone()).unwrap();
        assert!(written.len() < LONGEST + 100 && written.ends_with("] next\n"), "{}", written.len());
    }

    #[test]
    fn the_format_changes_with_the_next_line() {
        let sink = TestSink::default();
        let queue = spawn_writer("test", sink.clone()).unwrap();
        let logger = logger(vec![queue.clone()]);
        log_info(&logger, CRATE_TARGET, "one");
        logger.settings.json.store(true, Ordering::Relaxed);
        log_info(&logger, CRATE_TARGET, "two \"");
        flush_queue(&queue);
        let written = String::from_utf8(sink.written.lock().unwrap().clone()).unwrap();
        let (one, two) = written.split_once('\n').unwrap();
        assert!(one.ends_with("[INFO ] one"), "{one}");
        let two: serde_json::Value = serde_json::from_str(two).unwrap();
        assert_eq!((two["level"].as_str(), two["message"].as_str()), (Some("info"), Some("two \"")));
    }

    // One test for both, since they count in the same place.
    #[test]
    fn lines_that_cannot_be_written_are_counted_and_callers_do_not_block() {
        let stalled = TestSink::default();
        let closed = stalled.write_lock.lock().unwrap();
        let (slow, broken) =
            (spawn_writer("slow", stalled.clone()).unwrap(), spawn_writer("broken", FailingWriter).unwrap());
        let before = lost_lines();
        {
            let logger = logger(vec![slow.clone()]);
            // One line is with the writer or about to be, the queue is full, and ten more come.
            (0..QUEUE_CAPACITY + 11).for_each(|_| log_info(&logger, CRATE_TARGET, "text"));
            let lost = lost_lines() - before;
            assert!((10..=11).contains(&lost), "{lost}");
        }
        let before = lost_lines();
        log_info(&logger(vec![broken.clone()]), CRATE_TARGET, "text");
        flush_queue(&broken);
        assert_eq!(lost_lines() - before, 1);

        drop(closed);
        flush_queue(&slow);
        assert!(stalled.written.lock().unwrap().ends_with(b"text\n"));
    }
}
