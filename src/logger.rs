//! The log: lines to stderr and to a file, written by separate threads, so that logging never blocks on a disk or a
//! terminal.
//!
//! Each output has a bounded queue. A line that does not fit, or that cannot be written, is dropped and counted. The level is `log`'s own maximum and can change at any time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};
use simplelog::{ConfigBuilder, WriteLogger};

use crate::output_file;
use crate::text;

/// Lines queued for one output.
const QUEUE_CAPACITY: usize = 1024;

/// Bytes of a message, at most; the rest is cut off.
const LONGEST: usize = 8 * 1024;

/// The modules whose lines are written. Those of libraries are not: a WebSocket library's show request headers, and
/// so the token in them.
const CRATE_TARGET: &str = "mqtt_websocket_proxy";

/// Not 64 bits: MIPS and older ARM have no such atomic.
static LOST_LINES: AtomicUsize = AtomicUsize::new(0);
static QUEUES: OnceLock<Queues> = OnceLock::new();

/// Starts logging to stderr and, when given, to the end of `file`, whose missing parent folders are made;
/// [`output_file::open`] says with which mode, and which links are refused.
///
/// # Errors
/// When the file cannot be opened, a thread cannot be started, or there is a logger already.
pub fn start(level: LevelFilter, file: Option<&Path>) -> io::Result<()> {
    let file = file.map(open_file).transpose()?;
    let mut queues = vec![spawn_writer("log-stderr", io::stderr())?];
    if let Some(file) = file {
        queues.push(spawn_writer("log-file", file)?);
    }
    let queues = QUEUES.get_or_init(|| queues.into());
    log::set_boxed_logger(Box::new(Logger::new(queues))).map_err(io::Error::other)?;
    set_level(level);
    Ok(())
}

/// Changes which lines are written, from now on.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

/// The number of lines that were dropped since the start, counted for each output.
pub fn lost_lines() -> u64 {
    LOST_LINES.load(Ordering::Relaxed) as u64
}

/// Waits until every line logged so far is written, but no longer than `limit`.
pub fn flush(limit: Duration) {
    let Some(queues) = QUEUES.get() else { return };
    let end = Instant::now() + limit;
    let (done, all_done) = mpsc::channel();
    for queue in queues.iter() {
        let mut marker = Line::Flush(done.clone());
        while let Err(TrySendError::Full(back)) = queue.try_send(marker)
            && Instant::now() < end
        {
            marker = back;
            thread::sleep(Duration::from_millis(1));
        }
    }
    drop(done);
    // Ends when the last marker is gone, whether it was reached or could not be queued.
    let _ = all_done.recv_timeout(end.saturating_duration_since(Instant::now()));
}

type Queues = Arc<[SyncSender<Line>]>;

enum Line {
    Text(Arc<[u8]>),
    /// Dropped when everything before it is written.
    Flush(#[allow(dead_code)] mpsc::Sender<()>),
}

fn open_file(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    output_file::open(OpenOptions::new().create(true).append(true), path)
}

fn spawn_writer(name: &str, mut sink: impl Write + Send + 'static) -> io::Result<SyncSender<Line>> {
    let (sender, lines): (_, Receiver<Line>) = mpsc::sync_channel(QUEUE_CAPACITY);
    let write = move || {
        for line in lines {
            if let Line::Text(text) = line
                && sink.write_all(&text).is_err()
            {
                LOST_LINES.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    thread::Builder::new().name(name.to_owned()).stack_size(128 * 1024).spawn(write)?;
    Ok(sender)
}

/// `2026-01-31T23:59:59.999Z [INFO ] text`
fn log_format() -> simplelog::Config {
    ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_time_level(LevelFilter::Error)
        .set_level_padding(simplelog::LevelPadding::Right)
        .set_thread_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .build()
}

/// Keeps messages to one line each, and to our own modules.
struct Logger {
    inner: Box<WriteLogger<LineWriter>>,
}

impl Logger {
    fn new(queues: &Queues) -> Self {
        let writer = LineWriter { partial: Vec::new(), queues: Arc::clone(queues) };
        Self { inner: WriteLogger::new(LevelFilter::Trace, log_format(), writer) }
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
        let message = record.args().to_string();
        // A peer's text must not look like a log line.
        let text = text::printable(&message, LONGEST);
        let metadata = record.metadata().clone();
        self.inner.log(&Record::builder().metadata(metadata).args(format_args!("{text}")).build());
    }

    fn flush(&self) {
        flush(Duration::from_millis(500));
    }
}

/// Collects a line that is written in pieces, and queues it whole.
struct LineWriter {
    partial: Vec<u8>,
    queues: Queues,
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.partial.extend_from_slice(bytes);
        // A message holds no line feed, so this one is the formatter's own, at the end.
        if self.partial.ends_with(b"\n") {
            fix_milliseconds(&mut self.partial);
            let text: Arc<[u8]> = self.partial.as_slice().into();
            self.partial.clear();
            for queue in self.queues.iter() {
                if queue.try_send(Line::Text(Arc::clone(&text))).is_err() {
                    LOST_LINES.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gives the time at the start of `line` three decimals: the formatter writes as many as are not zero.
fn fix_milliseconds(line: &mut Vec<u8>) {
    const SECONDS: usize = "2026-01-31T23:59:59".len();
    let Some(end) = line.iter().position(|byte| *byte == b'Z').filter(|end| *end >= SECONDS) else { return };
    let mut millis = *b".000";
    for (digit, found) in millis.iter_mut().zip(&line[SECONDS..end]) {
        *digit = *found;
    }
    line.splice(SECONDS..end, millis);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// What was written, and a lock that a writer waits for.
    #[derive(Clone, Default)]
    struct TestSink {
        written: Arc<Mutex<Vec<u8>>>,
        write_lock: Arc<Mutex<()>>,
    }

    impl Write for TestSink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _open = self.write_lock.lock().unwrap();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct FailingWriter;

    impl Write for FailingWriter {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A logger of its own, beside the process's.
    fn logger(queues: Vec<SyncSender<Line>>) -> Logger {
        Logger::new(&queues.into())
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
    fn a_time_has_milliseconds() {
        for (found, expected) in [
            ("2026-01-31T23:59:59Z x", "2026-01-31T23:59:59.000Z x"),
            ("2026-01-31T23:59:59.5Z x", "2026-01-31T23:59:59.500Z x"),
            ("2026-01-31T23:59:59.123456789Z Z", "2026-01-31T23:59:59.123Z Z"),
            ("Z", "Z"),
            ("", ""),
        ] {
            let mut line = found.as_bytes().to_vec();
            fix_milliseconds(&mut line);
            assert_eq!(line, expected.as_bytes(), "{found}");
        }
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
