//! The log lines of gateways in this process, filtered by a text that only one test's lines contain: a client id, or
//! the URL of a chat server.

use std::sync::{Condvar, Mutex, Once};
use std::time::Instant;

use log::kv::{Error, Key, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};

use super::{TIMEOUT, remaining};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static LINE_ADDED: Condvar = Condvar::new();
static START: Once = Once::new();

/// The lines with this text, from now on. Create it before the gateway.
pub struct LogCapture {
    filter: String,
    from: usize,
}

impl LogCapture {
    pub fn containing(text: impl Into<String>) -> Self {
        START.call_once(|| {
            log::set_logger(&CaptureLogger).unwrap();
            log::set_max_level(LevelFilter::Debug);
        });
        Self { filter: text.into(), from: LINES.lock().unwrap().len() }
    }

    /// Waits for the next line with this in it; `LEVEL text`.
    pub fn wait_for_line(&mut self, part: &str) -> String {
        let end = Instant::now() + TIMEOUT;
        let mut lines = LINES.lock().unwrap();
        loop {
            let found =
                lines[self.from..].iter().position(|line| line.contains(part) && line.contains(&self.filter));
            if let Some(at) = found {
                self.from += at + 1;
                return lines[self.from - 1].clone();
            }
            if Instant::now() >= end {
                let about: Vec<_> =
                    lines.iter().filter(|line| line.contains(&self.filter)).cloned().collect();
                // Do not poison the lock for other tests.
                drop(lines);
                panic!("no {part:?} about {:?} in {about:#?}", self.filter);
            }
            lines = LINE_ADDED.wait_timeout(lines, remaining(end)).unwrap().0;
        }
    }

    /// The number of lines with this text after the last one that was waited for.
    pub fn count(&self, part: &str) -> usize {
        let lines = LINES.lock().unwrap();
        lines[self.from..].iter().filter(|line| line.contains(part) && line.contains(&self.filter)).count()
    }
}

/// The value of `key=value` in a line.
pub fn log_field<'a>(line: &'a str, key: &str) -> &'a str {
    let word = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    word.unwrap_or_else(|| panic!("no {key} in {line}"))
}

struct CaptureLogger;

impl Log for CaptureLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("mqtt_websocket_proxy")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut who = Who::default();
            record.key_values().visit(&mut who).unwrap();
            let who = if who.0.is_empty() { String::new() } else { format!("[{}] ", who.0.join(" ")) };
            LINES.lock().unwrap().push(format!("{} {who}{}", record.level(), record.args()));
            LINE_ADDED.notify_all();
        }
    }

    fn flush(&self) {}
}

/// The device and the address that a line is about.
#[derive(Default)]
struct Who(Vec<String>);

impl<'a> VisitSource<'a> for Who {
    fn visit_pair(&mut self, key: Key<'a>, value: Value<'a>) -> Result<(), Error> {
        if ["device", "address"].contains(&key.as_str()) {
            self.0.push(value.to_string());
        }
        Ok(())
    }
}
