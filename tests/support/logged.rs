//! What gateways in this process have logged, by the text that tells one test's lines from another's: a client id, or
//! the URL of a chat server.

use std::sync::{Condvar, Mutex, Once};
use std::time::Instant;

use log::{LevelFilter, Log, Metadata, Record};

use super::{LIMIT, left};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static CAME: Condvar = Condvar::new();
static START: Once = Once::new();

/// The lines with one text in them, from now on. Must exist before the gateway that writes them.
pub struct Logged {
    about: String,
    from: usize,
}

impl Logged {
    pub fn about(text: impl Into<String>) -> Self {
        START.call_once(|| {
            log::set_logger(&Collector).unwrap();
            log::set_max_level(LevelFilter::Debug);
        });
        Self { about: text.into(), from: LINES.lock().unwrap().len() }
    }

    /// Waits for the next line with this in it; `LEVEL text`.
    pub fn line(&mut self, part: &str) -> String {
        let end = Instant::now() + LIMIT;
        let mut lines = LINES.lock().unwrap();
        loop {
            let found =
                lines[self.from..].iter().position(|line| line.contains(part) && line.contains(&self.about));
            if let Some(at) = found {
                self.from += at + 1;
                return lines[self.from - 1].clone();
            }
            if Instant::now() >= end {
                let about: Vec<_> = lines.iter().filter(|line| line.contains(&self.about)).cloned().collect();
                // The other tests go on.
                drop(lines);
                panic!("no {part:?} about {:?} in {about:#?}", self.about);
            }
            lines = CAME.wait_timeout(lines, left(end)).unwrap().0;
        }
    }

    /// How many lines with this in them there are after those that were waited for.
    pub fn count(&self, part: &str) -> usize {
        let lines = LINES.lock().unwrap();
        lines[self.from..].iter().filter(|line| line.contains(part) && line.contains(&self.about)).count()
    }
}

/// The value of `key=value` in a line.
pub fn fact<'a>(line: &'a str, key: &str) -> &'a str {
    let word = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    word.unwrap_or_else(|| panic!("no {key} in {line}"))
}

struct Collector;

impl Log for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("mqtt_websocket_proxy")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            LINES.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
            CAME.notify_all();
        }
    }

    fn flush(&self) {}
}
