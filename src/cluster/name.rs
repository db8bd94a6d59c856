//! The name of this gateway, which no other one that runs has.

use std::time::{Duration, Instant};

/// How long a name stays taken without being refreshed, in seconds.
pub(super) const NAME_TTL_S: &str = "15";
pub(super) const REFRESH: Duration = Duration::from_secs(5);
/// Names that are tried before the first one again.
const SUFFIX_MAX: u32 = 99;

#[derive(Debug)]
pub(super) struct OwnName {
    wanted: String,
    /// 1 for the name that is wanted, else `-2`, `-3` and so on behind it.
    suffix: u32,
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
        Self { wanted, suffix: 1, is_held: false, next: now }
    }

    pub(super) fn current(&self) -> String {
        self.with_suffix(self.suffix)
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

    /// Another gateway has the current one. Returns the next.
    pub(super) fn take_next(&mut self, now: Instant) -> String {
        self.suffix = self.suffix % SUFFIX_MAX + 1;
        (self.is_held, self.next) = (false, now);
        self.current()
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
