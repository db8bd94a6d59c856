//! What is known about the chat servers: which failed lately, and how each frames its audio.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Note;
use crate::config::{Framing, Server};

/// How long a server that failed is tried last by new calls.
const COOL_OFF: Duration = Duration::from_secs(30);
/// A server that fails and works in turns makes news so often in this time; what it is after that is told later.
const NEWS: u8 = 5;
const NEWS_WITHIN: Duration = Duration::from_secs(10);

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
    /// That it fails was told.
    told: bool,
    /// Since when its failures are counted, and how many were told since.
    news: Option<(Instant, u8)>,
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

impl Known {
    fn makes_news(&mut self, now: Instant) -> bool {
        let (since, count) = self.news.unwrap_or((now, 0));
        if now.saturating_duration_since(since) >= NEWS_WITHIN {
            self.news = Some((now, 1));
            return true;
        }
        self.news = Some((since, (count + 1).min(NEWS)));
        count < NEWS
    }
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
        known.failing_since.get_or_insert(now);
        if known.told || !known.makes_news(now) {
            return None;
        }
        known.told = true;
        Some(Note::ServerFailing { url: server.to_string(), why: why.to_owned() })
    }

    /// Remembers that a server took a call. A note comes back when it had been failing.
    pub fn works(&mut self, server: &Server, now: Instant) -> Option<Note> {
        let known = self.known.get_mut(&server.url)?;
        known.last_failure = None;
        let since = known.failing_since.take()?;
        let told = std::mem::take(&mut known.told);
        told.then(|| Note::ServerRecovered {
            url: server.to_string(),
            after: now.saturating_duration_since(since),
        })
    }

    /// How the server frames audio, when that is configured or was learnt.
    pub fn spoken(&self, server: &Server) -> Option<Spoken> {
        match server.framing {
            Framing::Header => Some(Spoken::Header),
            Framing::Raw => Some(Spoken::Raw),
            Framing::Auto => self.known.get(&server.url).and_then(|known| known.learnt),
        }
    }

    /// The version of the WebSocket protocol to speak with the server: 1 has bare Opus, 2 the header.
    pub fn protocol_version(&self, server: &Server) -> u8 {
        match self.spoken(server) {
            Some(Spoken::Raw) => 1,
            Some(Spoken::Header) | None => 2,
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_works_again_has_its_turn_again() {
        let (mut servers, now) = (Servers::default(), Instant::now());
        let list: Vec<Arc<Server>> = ["ws://a/", "ws://b/"].map(|url| Arc::new(url.parse().unwrap())).into();
        let mut first = |act: &dyn Fn(&mut Servers)| {
            act(&mut servers);
            servers.turn = 0;
            servers.plan(&list, now)[0].url.clone()
        };
        let failed = |servers: &mut Servers| drop(servers.failed(&list[0], "reset", now));
        assert_eq!(first(&|_| {}), list[0].url);
        assert_eq!(first(&failed), list[1].url);
        assert_eq!(first(&|servers| drop(servers.works(&list[0], now))), list[0].url);
    }

    #[test]
    fn a_server_that_fails_and_works_in_turns_fills_no_log_and_its_last_state_is_told() {
        let (mut servers, start) = (Servers::default(), Instant::now());
        let server: Server = "ws://a/".parse().unwrap();
        let at = |ms| start + Duration::from_millis(ms);
        let mut news = 0;
        for n in 0..1_000 {
            news += usize::from(servers.failed(&server, "reset", at(n * 5)).is_some());
            news += usize::from(servers.works(&server, at(n * 5)).is_some());
        }
        assert_eq!(news, 2 * usize::from(NEWS));
        // Now it fails for good.
        assert_eq!(servers.failed(&server, "refused", at(5_000)), None);
        assert_eq!(servers.failed(&server, "refused", at(9_999)), None);
        assert!(servers.failed(&server, "refused", at(10_000)).is_some());
        assert_eq!(servers.failed(&server, "refused", at(30_000)), None, "once is enough");
        let after = Duration::from_secs(35);
        let recovered = Note::ServerRecovered { url: server.to_string(), after };
        assert_eq!(servers.works(&server, at(40_000)), Some(recovered));
        assert_eq!(servers.works(&server, at(40_000)), None);
    }

    #[test]
    fn news_of_a_server_is_counted_anew_when_its_time_is_over() {
        let (mut known, start) = (Known::default(), Instant::now());
        let mut count = |from: Duration| (0..50).filter(|_| known.makes_news(start + from)).count();
        assert_eq!(count(Duration::ZERO), usize::from(NEWS));
        assert_eq!(count(NEWS_WITHIN - Duration::from_millis(1)), 0);
        assert_eq!(count(NEWS_WITHIN), usize::from(NEWS));
        assert_eq!(count(2 * NEWS_WITHIN - Duration::from_millis(1)), 0);
        assert_eq!(count(2 * NEWS_WITHIN), usize::from(NEWS));
    }
}
