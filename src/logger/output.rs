//! Where the log's lines go: stderr, and a file that is rotated and opened again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use log::{Level, error};

use super::Settings;
use super::line::{level_word, priority};
use crate::output_file;

/// An output of the log. Its thread may wait for it.
pub(super) trait Output: Send + 'static {
    /// Writes one whole line.
    fn write(&mut self, level: Level, line: &[u8]) -> io::Result<()>;

    /// Does what was asked for meanwhile.
    fn wake(&mut self) {}
}

/// What is added to the lines on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StderrStyle {
    Plain,
    /// The level's word in colour.
    Colour,
    /// The level's number in front, for the journal, which takes it away.
    Journal,
}

pub(super) struct Stderr(pub(super) StderrStyle);

impl Stderr {
    /// Stderr as it is now: a terminal, the journal, or something else.
    pub(super) fn detect() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let is_terminal = cfg!(unix) && io::stderr().is_terminal();
        let journal = variable("JOURNAL_STREAM").zip(stderr_device_and_inode());
        Self(style(is_terminal, variable("NO_COLOR"), variable("TERM"), journal))
    }
}

impl Output for Stderr {
    fn write(&mut self, level: Level, line: &[u8]) -> io::Result<()> {
        io::stderr().write_all(&styled(self.0, level, line))
    }
}

/// A line as it is shown there.
pub(super) fn styled(style: StderrStyle, level: Level, line: &[u8]) -> Vec<u8> {
    match (style, level_word(line)) {
        (StderrStyle::Journal, _) => [format!("<{}>", priority(level)).as_bytes(), line].concat(),
        (StderrStyle::Colour, Some(word)) => {
            let colour = match level {
                Level::Error => "\x1b[31m",
                Level::Warn => "\x1b[33m",
                Level::Info => "\x1b[32m",
                Level::Debug | Level::Trace => "\x1b[36m",
            };
            let (before, after) = (&line[..word.start], &line[word.end..]);
            [before, colour.as_bytes(), &line[word], b"\x1b[0m", after].concat()
        }
        _ => line.to_vec(),
    }
}

/// `NO_COLOR` counts unless it is empty (no-color.org). `JOURNAL_STREAM` is inherited by whatever a service starts, so it counts
/// only when it names this very stream (systemd.exec(5)).
fn style(
    is_terminal: bool,
    no_color: Option<String>,
    term: Option<String>,
    journal: Option<(String, String)>,
) -> StderrStyle {
    if journal.is_some_and(|(named, found)| named == found) {
        return StderrStyle::Journal;
    }
    let unwanted = no_color.is_some_and(|value| !value.is_empty()) || term.is_some_and(|term| term == "dumb");
    if is_terminal && !unwanted { StderrStyle::Colour } else { StderrStyle::Plain }
}

/// `device:inode` of stderr, in decimal.
#[cfg(unix)]
fn stderr_device_and_inode() -> Option<String> {
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?);
    let found = stderr.metadata().ok()?;
    Some(format!("{}:{}", found.dev(), found.ino()))
}

#[cfg(not(unix))]
fn stderr_device_and_inode() -> Option<String> {
    None
}

/// The log file. When it would grow above `logging.max_mb`, it becomes `path.1`, `path.1` becomes `path.2`, and so on; the oldest
/// beyond `logging.keep` is deleted.
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    /// Bytes in it, as far as known; none when it is no regular file, which cannot be rotated.
    size: Option<u64>,
    /// The last line was written in part, so that the next one begins on a new line.
    is_torn: bool,
    /// How often it was to be opened again, as far as that was done.
    reopened: usize,
    settings: &'static Settings,
}

impl LogFile {
    /// Opens it for appending, and makes its missing parent folders.
    pub(super) fn open(path: &Path, settings: &'static Settings) -> io::Result<Self> {
        let (file, size) = open(path)?;
        let reopened = settings.reopens.load(Ordering::Relaxed);
        Ok(Self { path: path.to_owned(), file, size, is_torn: false, reopened, settings })
    }

    /// Opens the path again, which may have been renamed; keeps the open file if that fails.
    fn reopen(&mut self) {
        match open(&self.path) {
            Ok((file, size)) => (self.file, self.size, self.is_torn) = (file, size, false),
            Err(error) => error!("the log file {} cannot be opened again: {error}", self.path.display()),
        }
    }

    fn rotate_if_full(&mut self, more: usize) {
        let max = self.settings.max_bytes();
        let full =
            |size: Option<u64>| max > 0 && size.is_some_and(|size| size > 0 && size + more as u64 > max);
        if !full(self.size) {
            return;
        }
        // After an upgrade in place, two processes write to the file, and the other one may have begun a new one.
        if !output_file::is_at(&self.file, &self.path) {
            self.reopen();
        }
        // Another program may have made it shorter.
        self.size = self.file.metadata().ok().map(|found| found.len());
        if !full(self.size) {
            return;
        }
        match self.rename_all() {
            Ok(()) => self.reopen(),
            Err(error) => {
                // Tried again after as many bytes.
                self.size = Some(0);
                error!("the log file {} cannot be rotated: {error}", self.path.display());
            }
        }
    }

    fn rename_all(&self) -> io::Result<()> {
        let numbered = |n: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        let ignore_missing = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        };
        let keep = self.settings.keep.load(Ordering::Relaxed);
        // The oldest is replaced by the one before it.
        for n in (1..keep).rev() {
            ignore_missing(fs::rename(numbered(n), numbered(n + 1)))?;
        }
        ignore_missing(fs::rename(&self.path, numbered(1)))
    }
}

impl Output for LogFile {
    fn write(&mut self, _: Level, line: &[u8]) -> io::Result<()> {
        self.wake();
        self.rotate_if_full(line.len());
        let mut rest = if self.is_torn { [b"\n", line].concat() } else { line.to_vec() };
        let whole = rest.len();
        while !rest.is_empty() {
            match self.file.write(&rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest.drain(..written);
                    self.size = self.size.map(|size| size + written as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.is_torn |= rest.len() < whole;
                    return Err(error);
                }
            }
        }
        self.is_torn = false;
        Ok(())
    }

    fn wake(&mut self) {
        let asked = self.settings.reopens.load(Ordering::Relaxed);
        if asked != self.reopened {
            self.reopened = asked;
            self.reopen();
        }
    }
}

/// The file, and its bytes if it is a regular one.
fn open(path: &Path) -> io::Result<(File, Option<u64>)> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let file = output_file::open(OpenOptions::new().create(true).append(true), path)?;
    let size = file.metadata().ok().filter(fs::Metadata::is_file).map(|found| found.len());
    Ok((file, size))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_for_terminals_and_priorities_are_for_the_journal() {
        let text = |text: &str| Some(text.to_owned());
        let journal = |named: &str, found: &str| Some((named.to_owned(), found.to_owned()));
        for (is_terminal, no_color, term, stream, expected) in [
            (true, None, text("xterm"), None, StderrStyle::Colour),
            (true, text(""), None, None, StderrStyle::Colour),
            (true, text("1"), None, None, StderrStyle::Plain),
            (true, None, text("dumb"), None, StderrStyle::Plain),
            (false, None, text("xterm"), None, StderrStyle::Plain),
            (false, None, None, journal("8:1234", "8:1234"), StderrStyle::Journal),
            // A program that was started by a service, whose output goes elsewhere.
            (false, None, None, journal("8:1234", "9:77"), StderrStyle::Plain),
            (true, None, None, journal("8:1234", "9:77"), StderrStyle::Colour),
        ] {
            assert_eq!(style(is_terminal, no_color, term, stream.clone()), expected, "{stream:?}");
        }
    }

    #[test]
    fn the_style_adds_to_the_line_and_takes_nothing_away() {
        let line = b"2026 [WARN ] a [ERROR] b\n";
        for (style, expected) in [
            (StderrStyle::Plain, "2026 [WARN ] a [ERROR] b\n"),
            (StderrStyle::Journal, "<4>2026 [WARN ] a [ERROR] b\n"),
            (StderrStyle::Colour, "2026 [\u{1b}[33mWARN\u{1b}[0m ] a [ERROR] b\n"),
        ] {
            assert_eq!(String::from_utf8(styled(style, Level::Warn, line)).unwrap(), expected);
        }
        let json = b"{\"level\":\"error\"}\n";
        assert_eq!(styled(StderrStyle::Colour, Level::Error, json), json);
        assert_eq!(styled(StderrStyle::Journal, Level::Error, json), b"<3>{\"level\":\"error\"}\n");
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("gateway-log-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn read(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.0.join(name)).ok()
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn settings(max_mb: usize, keep: usize) -> &'static Settings {
        let settings = Settings::new();
        settings.max_mb.store(max_mb, Ordering::Relaxed);
        settings.keep.store(keep, Ordering::Relaxed);
        Box::leak(Box::new(settings))
    }

    fn line(n: usize) -> Vec<u8> {
        format!("{}{n}\n", "0".repeat(600_000)).into_bytes()
    }

    fn first(text: Option<String>) -> Option<usize> {
        text.map(|text| text.trim().parse().unwrap())
    }

    #[test]
    fn a_full_file_is_rotated_and_the_oldest_is_deleted() {
        let folder = Folder::new("rotation");
        let mut log = LogFile::open(&folder.0.join("a.log"), settings(1, 2)).unwrap();
        // Two lines are more than 1 MB.
        for n in 1..=5 {
            log.write(Level::Info, &line(n)).unwrap();
        }
        assert_eq!(folder.names(), ["a.log", "a.log.1", "a.log.2"]);
        assert_eq!(first(folder.read("a.log")), Some(5));
        assert_eq!(first(folder.read("a.log.1")), Some(4));
        assert_eq!(first(folder.read("a.log.2")), Some(3));
        // The bytes that a restart finds count too.
        let mut log = LogFile::open(&folder.0.join("a.log"), settings(1, 2)).unwrap();
        log.write(Level::Info, &line(6)).unwrap();
        assert_eq!(first(folder.read("a.log.1")), Some(5));
        assert_eq!(first(folder.read("a.log")), Some(6));
    }

    #[test]
    fn zero_is_without_rotation_and_a_shortened_file_is_not_rotated() {
        let folder = Folder::new("unrotated");
        let path = folder.0.join("a.log");
        let mut log = LogFile::open(&path, settings(0, 1)).unwrap();
        (1..=4).for_each(|n| log.write(Level::Info, &line(n)).unwrap());
        assert_eq!(folder.names(), ["a.log"]);
        let mut log = LogFile::open(&path, settings(1, 1)).unwrap();
        // As logrotate does with copytruncate.
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        log.write(Level::Info, &line(5)).unwrap();
        assert_eq!(folder.names(), ["a.log"]);
        assert_eq!(first(folder.read("a.log")), Some(5));
    }

    #[test]
    fn a_renamed_file_is_written_until_it_is_opened_again() {
        let folder = Folder::new("reopened");
        let path = folder.0.join("logs/a.log");
        let settings = settings(1, 1);
        let mut log = LogFile::open(&path, settings).unwrap();
        log.write(Level::Info, b"1\n").unwrap();
        fs::rename(&path, folder.0.join("old")).unwrap();
        log.write(Level::Info, b"2\n").unwrap();
        assert_eq!(folder.read("old").unwrap(), "1\n2\n");
        settings.reopens.fetch_add(1, Ordering::Relaxed);
        log.write(Level::Info, b"3\n").unwrap();
        assert_eq!(folder.read("logs/a.log").unwrap(), "3\n");
        // Opening fails: the lines go on in the file that is open.
        fs::rename(&path, folder.0.join("older")).unwrap();
        fs::create_dir(&path).unwrap();
        settings.reopens.fetch_add(1, Ordering::Relaxed);
        log.wake();
        log.write(Level::Info, b"4\n").unwrap();
        assert_eq!(folder.read("older").unwrap(), "3\n4\n");
        assert_eq!(folder.read("old").unwrap(), "1\n2\n");
    }
}
