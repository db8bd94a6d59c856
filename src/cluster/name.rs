//! The name of this gateway, which no other one that runs has.

use std::time::{Duration, Instant};

/// How long a name stays taken without being refreshed, in seconds.
pub(super) const NAME_TTL_S: &str = "15";
pub(super) const REFRESH: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);
/// Names that are tried before the first one again.
const SUFFIX_MAX: u32 = 99;

#[derive(Debug)]
pub(super) struct OwnName {
    wanted: String,
    /// 1 for the name that is wanted, else `-2`, `-3` and so on behind it.
    suffix: u32,
    /// It was left to another process.
    is_resigned: bool,
    /// The name that is wanted was found taken.
    was_taken: bool,
    /// Redis has it as this gateway's.
    pub(super) is_held: bool,
    /// When to refresh it.
    pub(super) next: Instant,
}

/// What a command about a name was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NameStep {
    /// Take or refresh it.
    Hold(String),
    /// See whether this holder of it, as it stands in Redis, runs.
    Probe(String, Vec<u8>),
    /// Take it from a holder that does not run.
    TakeOver(String),
}

impl OwnName {
    pub(super) fn new(wanted: String, now: Instant) -> Self {
        Self { wanted, suffix: 1, is_resigned: false, was_taken: false, is_held: false, next: now }
    }

    pub(super) fn current(&self) -> String {
        match self.is_resigned {
            true => format!("{}-old", self.wanted),
            false => self.with_suffix(self.suffix),
        }
    }

    /// Leaves the name to another process. From now on this one is called after it, without asking anybody.
    pub(super) fn resign(&mut self) {
        (self.is_resigned, self.is_held) = (true, true);
    }

    pub(super) fn is_resigned(&self) -> bool {
        self.is_resigned
    }

    pub(super) fn wanted(&self) -> &str {
        &self.wanted
    }

    fn with_suffix(&self, suffix: u32) -> String {
        match suffix {
            1 => self.wanted.clone(),
            suffix => format!("{}-{suffix}", self.wanted),
        }
    }

    /// Another gateway has the current one. Returns the next one; `None` to ask again first, since a process that was replaced gives its
    /// name away.
    pub(super) fn take_next(&mut self, now: Instant) -> Option<String> {
        if !std::mem::replace(&mut self.was_taken, true) {
            self.next = now + RETRY;
            return None;
        }
        self.suffix = self.suffix % SUFFIX_MAX + 1;
        (self.is_held, self.next) = (false, now);
        Some(self.current())
    }

    /// The name that is wanted is this gateway's now. Returns the one before, if that was another one.
    pub(super) fn hold(&mut self, name: &str) -> Option<String> {
        let before = self.current();
        if name == self.wanted {
            self.suffix = 1;
        }
        self.is_held |= name == self.current();
        (before != self.current()).then_some(before)
    }
}
