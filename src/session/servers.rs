//! What is known about the chat servers: which failed lately, and how each frames its audio.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Note;
use crate::config::{Framing, Server};

/// How long a server that failed is tried last by new calls.
const COOL_OFF: Duration = Duration::from_secs(30);

/// Passive health and learnt framing of every server that was ever dialled, by URL.
#[derive(Debug, Default)]
pub struct Servers {
    known: HashMap<String, Known>,
    turn: usize,
}

#[derive(Debug, Default)]
struct Known {
    failing_since: Option<Instant>,
    last_failure: Option<Instant>,
    learnt: Option<Spoken>,
}

/// What a server's binary frames were found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// A 16-byte header before each Opus packet.
    Header,
    /// The Opus packet alone.
    Raw,
}

impl Servers {
    /// The order in which a new call tries the servers of `list`: spread over the list, those that failed lately last.
    pub fn plan(&mut self, list: &[Arc<Server>], now: Instant) -> VecDeque<Arc<Server>> {
        if list.is_empty() {
            return VecDeque::new();
        }
        let start = self.turn % list.len();
        self.turn = self.turn.wrapping_add(1);
        let spread = list[start..].iter().chain(&list[..start]).cloned();
        let (healthy, failing): (Vec<_>, Vec<_>) = spread.partition(|server| !self.cooling_off(server, now));
        healthy.into_iter().chain(failing).collect()
    }

    /// The server that follows `last` in `list`, another one if there is any; the first when `last` is no longer listed.
    pub fn after(list: &[Arc<Server>], last: &Server) -> Option<Arc<Server>> {
        let Some(place) = list.iter().position(|server| server.url == last.url) else {
            return list.first().cloned();
        };
        let following = list[place..].iter().chain(&list[..place]);
        following.clone().find(|server| server.url != last.url).or(following.clone().next()).cloned()
    }

    /// Remembers a failure. A note comes back when this is news, not at every call.
    pub fn failed(&mut self, server: &Server, why: &str, now: Instant) -> Option<Note> {
        let known = self.known.entry(server.url.clone()).or_default();
        known.last_failure = Some(now);
        if known.failing_since.is_some() {
            return None;
        }
        known.failing_since = Some(now);
        Some(Note::ServerFailing { url: server.to_string(), why: why.to_owned() })
    }

    /// Remembers that a server took a call. A note comes back when it had been failing.
    pub fn works(&mut self, server: &Server, now: Instant) -> Option<Note> {
        let known = self.known.get_mut(&server.url)?;
        known.last_failure = None;
        let since = known.failing_since.take()?;
        Some(Note::ServerRecovered { url: server.to_string(), after: now.saturating_duration_since(since) })
    }

    /// How the server frames audio, when that is configured or was learnt.
    pub fn spoken(&self, server: &Server) -> Option<Spoken> {
        match server.framing {
            Framing::Header => Some(Spoken::Header),
            Framing::Raw => Some(Spoken::Raw),
            Framing::Auto => self.known.get(&server.url).and_then(|known| known.learnt),
        }
    }

    /// Remembers how the server frames audio. Headers, once seen, are for good.
    pub fn learn(&mut self, server: &Server, spoken: Spoken) {
        let learnt = &mut self.known.entry(server.url.clone()).or_default().learnt;
        if *learnt != Some(Spoken::Header) {
            *learnt = Some(spoken);
        }
    }

    fn cooling_off(&self, server: &Server, now: Instant) -> bool {
        let last = self.known.get(&server.url).and_then(|known| known.last_failure);
        last.is_some_and(|at| now.saturating_duration_since(at) < COOL_OFF)
    }
}
