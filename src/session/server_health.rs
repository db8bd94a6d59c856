//! What is known about the chat servers: recent failures, and how each server frames its audio.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::LogEvent;
use super::action::{BackendFailure, BackendStage};
use super::server_failure_cause::ServerCause;
use crate::config::{ChatServerConfig, Framing, ServerOrder};
use crate::labels::labelled_enum;

/// For how long after a failure new calls try other servers first.
const COOLDOWN: Duration = Duration::from_secs(30);
/// The failures of a server that are logged per [`LOG_BURST_WINDOW`]. Further ones are logged when the window is over.
const LOG_BURST: u8 = 5;
const LOG_BURST_WINDOW: Duration = Duration::from_secs(10);

/// Passive health and learned framing of every server that was dialled, by URL.
#[derive(Debug, Default)]
pub struct ServerHealth {
    records: HashMap<String, ServerRecord>,
    next_start: usize,
    /// The URLs of the servers whose `health_url` does not answer 2xx.
    unwell: HashSet<String>,
}

#[derive(Debug, Default)]
struct ServerRecord {
    failing_since: Option<Instant>,
    last_failure: Option<Instant>,
    /// The last failure or answer.
    seen: Option<Instant>,
    failures: u64,
    answered: u64,
    /// How it failed last.
    last_fault: Option<BackendFailure>,
    /// The present failure was logged.
    failure_logged: bool,
    /// The start of the log window, and the failures that were logged in it.
    log_window: Option<(Instant, u8)>,
    framing: Option<WireFraming>,
}

labelled_enum! {
    /// What is known about a chat server.
    pub enum ServerState {
        /// No call has dialled it yet.
        Unknown => "unknown",
        /// It answered the last hello.
        Well => "well",
        /// It has failed since it answered last.
        Failing => "failing",
        /// Its `health_url` says that it is not well, or does not answer.
        Unwell => "unwell",
    }
}

/// What is known about a chat server, for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// Its state.
    pub state: ServerState,
    /// Seconds since it answered or failed; none if no call has dialled it.
    pub seen_seconds: Option<u64>,
    /// Seconds since the first failure that no answer followed.
    pub failing_seconds: Option<u64>,
    /// How far it was at its last failure.
    pub stage: Option<BackendStage>,
    /// What was seen then, for a person to read.
    pub reason: Option<Box<str>>,
    /// Its likeliest cause, if what was seen tells one.
    pub cause: Option<ServerCause>,
    /// What to do about that.
    pub advice: Option<&'static str>,
    /// Hellos that it has answered since the start.
    pub answered: u64,
    /// How often it has failed since the start.
    pub failures: u64,
}

impl ServerStatus {
    /// Adds what another worker knows: whoever saw it last knows its state, and counts add up.
    pub fn add(&mut self, more: Self) {
        let (answered, failures) = (self.answered + more.answered, self.failures + more.failures);
        let is_unwell = [self.state, more.state].contains(&ServerState::Unwell);
        if more.seen_seconds.is_some_and(|seen| self.seen_seconds.is_none_or(|own| seen < own)) {
            *self = more;
        }
        (self.answered, self.failures) = (answered, failures);
        if is_unwell {
            self.state = ServerState::Unwell;
        }
    }
}

/// How a server frames its audio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireFraming {
    /// A 16-byte header before each Opus packet.
    Header,
    /// The Opus packet alone.
    Raw,
}

impl ServerRecord {
    fn should_log(&mut self, now: Instant) -> bool {
        let (since, count) = self.log_window.unwrap_or((now, 0));
        if now.saturating_duration_since(since) >= LOG_BURST_WINDOW {
            self.log_window = Some((now, 1));
            return true;
        }
        self.log_window = Some((since, (count + 1).min(LOG_BURST)));
        count < LOG_BURST
    }
}

impl ServerHealth {
    /// The order in which a new call tries the servers of `list`: round robin or as listed, with recently failed servers, and
    /// those that are not well, last.
    pub fn dial_order(
        &mut self,
        list: &[Arc<ChatServerConfig>],
        order: ServerOrder,
        now: Instant,
    ) -> VecDeque<Arc<ChatServerConfig>> {
        if list.is_empty() {
            return VecDeque::new();
        }
        let start = match order {
            ServerOrder::First => 0,
            ServerOrder::Spread => self.next_start % list.len(),
        };
        self.next_start = self.next_start.wrapping_add(1);
        let rotated = list[start..].iter().chain(&list[..start]).cloned();
        let (healthy, failing): (Vec<_>, Vec<_>) = rotated
            .partition(|server| !self.is_in_cooldown(server, now) && !self.unwell.contains(&server.url));
        healthy.into_iter().chain(failing).collect()
    }

    /// The server after `last` in `list`: a different one that is well if possible, or the first one if `last` is not listed any longer.
    pub fn next_after(
        &self,
        list: &[Arc<ChatServerConfig>],
        last: &ChatServerConfig,
    ) -> Option<Arc<ChatServerConfig>> {
        let Some(place) = list.iter().position(|server| server.url == last.url) else {
            return list.first().cloned();
        };
        let following = list[place..].iter().chain(&list[..place]);
        let mut others = following.clone().filter(|server| server.url != last.url);
        let well = others.clone().find(|server| !self.unwell.contains(&server.url));
        well.or_else(|| others.next()).or_else(|| following.clone().next()).cloned()
    }

    /// What is known about a server.
    pub fn status(&self, server: &ChatServerConfig, now: Instant) -> ServerStatus {
        let unknown = ServerRecord::default();
        let record = self.records.get(&server.url).unwrap_or(&unknown);
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at).as_secs());
        let fault = record.last_fault.as_ref();
        ServerStatus {
            state: match (record.failing_since, record.seen) {
                (Some(_), _) => ServerState::Failing,
                _ if self.unwell.contains(&server.url) => ServerState::Unwell,
                (None, Some(_)) => ServerState::Well,
                (None, None) => ServerState::Unknown,
            },
            seen_seconds: since(record.seen),
            failing_seconds: since(record.failing_since),
            stage: fault.map(|fault| fault.stage),
            reason: fault.map(|fault| fault.to_string().into()),
            cause: fault.and_then(|fault| fault.cause),
            advice: fault.and_then(|fault| fault.cause).map(ServerCause::advice),
            answered: record.answered,
            failures: record.failures,
        }
    }

    /// Records a failure. Returns a log event if the server worked before.
    pub fn on_failure(
        &mut self,
        server: &ChatServerConfig,
        failure: &BackendFailure,
        now: Instant,
    ) -> Option<LogEvent> {
        let record = self.records.entry(server.url.clone()).or_default();
        record.last_failure = Some(now);
        record.seen = Some(now);
        record.failures += 1;
        record.last_fault = Some(failure.clone());
        record.failing_since.get_or_insert(now);
        if record.failure_logged || !record.should_log(now) {
            return None;
        }
        record.failure_logged = true;
        Some(LogEvent::ServerFailing { url: server.to_string(), why: failure.to_string() })
    }

    /// Records that a server answered a hello. Returns a log event if its failure was logged.
    pub fn on_success(&mut self, server: &ChatServerConfig, now: Instant) -> Option<LogEvent> {
        if !self.records.contains_key(&server.url) {
            self.records.insert(server.url.clone(), ServerRecord::default());
        }
        let record = self.records.get_mut(&server.url)?;
        record.last_failure = None;
        record.seen = Some(now);
        record.answered += 1;
        let since = record.failing_since.take()?;
        let was_logged = std::mem::take(&mut record.failure_logged);
        was_logged.then(|| LogEvent::ServerRecovered {
            url: server.to_string(),
            after: now.saturating_duration_since(since),
        })
    }

    /// How the server frames audio, if that is configured or was learned.
    pub fn framing(&self, server: &ChatServerConfig) -> Option<WireFraming> {
        match server.framing {
            Framing::Header => Some(WireFraming::Header),
            Framing::Raw => Some(WireFraming::Raw),
            Framing::Auto => self.records.get(&server.url).and_then(|record| record.framing),
        }
    }

    /// The version of the WebSocket protocol for the server: 1 for raw Opus, 2 for Opus with the header.
    pub fn protocol_version(&self, server: &ChatServerConfig) -> u8 {
        match self.framing(server) {
            Some(WireFraming::Raw) => 1,
            Some(WireFraming::Header) | None => 2,
        }
    }

    /// Records how the server frames audio. A server that has sent a header is never taken to send raw Opus again.
    pub fn learn_framing(&mut self, server: &ChatServerConfig, framing: WireFraming) {
        let stored = &mut self.records.entry(server.url.clone()).or_default().framing;
        if *stored != Some(WireFraming::Header) {
            *stored = Some(framing);
        }
    }

    /// The URLs of the servers whose `health_url` does not answer 2xx.
    pub fn set_unwell(&mut self, unwell: HashSet<String>) {
        self.unwell = unwell;
    }

    fn is_in_cooldown(&self, server: &ChatServerConfig, now: Instant) -> bool {
        let last = self.records.get(&server.url).and_then(|record| record.last_failure);
        last.is_some_and(|at| now.saturating_duration_since(at) < COOLDOWN)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_recovered_server_is_tried_in_normal_order_again() {
        let (mut servers, now) = (ServerHealth::default(), Instant::now());
        let list: Vec<Arc<ChatServerConfig>> =
            ["ws://a/", "ws://b/"].map(|url| Arc::new(url.parse().unwrap())).into();
        let mut first = |act: &dyn Fn(&mut ServerHealth)| {
            act(&mut servers);
            servers.next_start = 0;
            servers.dial_order(&list, ServerOrder::Spread, now)[0].url.clone()
        };
        let failed = |servers: &mut ServerHealth| {
            drop(servers.on_failure(&list[0], &BackendFailure::new(BackendStage::Connect, "reset"), now))
        };
        assert_eq!(first(&|_| {}), list[0].url);
        assert_eq!(first(&failed), list[1].url);
        assert_eq!(first(&|servers| drop(servers.on_success(&list[0], now))), list[0].url);
        assert_eq!(first(&|servers| servers.set_unwell([list[0].url.clone()].into())), list[1].url);
        assert_eq!(first(&|servers| servers.set_unwell(HashSet::new())), list[0].url);
    }

    #[test]
    fn calls_are_spread_over_the_list_or_begin_with_its_first() {
        let now = Instant::now();
        let list: Vec<Arc<ChatServerConfig>> =
            ["ws://a/", "ws://b/"].map(|url| Arc::new(url.parse().unwrap())).into();
        for (order, expected) in [(ServerOrder::Spread, [0, 1, 0]), (ServerOrder::First, [0, 0, 0])] {
            let mut servers = ServerHealth::default();
            for first in expected {
                assert_eq!(servers.dial_order(&list, order, now)[0].url, list[first].url, "{order:?}");
            }
            servers.on_failure(&list[0], &BackendFailure::new(BackendStage::Connect, "reset"), now);
            assert_eq!(servers.dial_order(&list, ServerOrder::First, now)[0].url, list[1].url);
        }
    }

    #[test]
    fn a_flapping_server_is_logged_at_a_limited_rate_and_its_last_state_is_logged() {
        let (mut servers, start) = (ServerHealth::default(), Instant::now());
        let server: ChatServerConfig = "ws://a/".parse().unwrap();
        let at = |ms| start + Duration::from_millis(ms);
        let mut events = 0;
        for n in 0..1_000 {
            events += usize::from(
                servers
                    .on_failure(&server, &BackendFailure::new(BackendStage::Connect, "reset"), at(n * 5))
                    .is_some(),
            );
            events += usize::from(servers.on_success(&server, at(n * 5)).is_some());
        }
        assert_eq!(events, 2 * usize::from(LOG_BURST));
        // From now on it only fails.
        assert_eq!(
            servers.on_failure(&server, &BackendFailure::new(BackendStage::Connect, "refused"), at(5_000)),
            None
        );
        assert_eq!(
            servers.on_failure(&server, &BackendFailure::new(BackendStage::Connect, "refused"), at(9_999)),
            None
        );
        assert!(
            servers
                .on_failure(&server, &BackendFailure::new(BackendStage::Connect, "refused"), at(10_000))
                .is_some()
        );
        assert_eq!(
            servers.on_failure(&server, &BackendFailure::new(BackendStage::Connect, "refused"), at(30_000)),
            None,
            "once is enough"
        );
        let after = Duration::from_secs(35);
        let recovered = LogEvent::ServerRecovered { url: server.to_string(), after };
        assert_eq!(servers.on_success(&server, at(40_000)), Some(recovered));
        assert_eq!(servers.on_success(&server, at(40_000)), None);
    }

    #[test]
    fn the_log_burst_is_counted_anew_in_each_window() {
        let (mut record, start) = (ServerRecord::default(), Instant::now());
        let mut count = |from: Duration| (0..50).filter(|_| record.should_log(start + from)).count();
        assert_eq!(count(Duration::ZERO), usize::from(LOG_BURST));
        assert_eq!(count(LOG_BURST_WINDOW - Duration::from_millis(1)), 0);
        assert_eq!(count(LOG_BURST_WINDOW), usize::from(LOG_BURST));
        assert_eq!(count(2 * LOG_BURST_WINDOW - Duration::from_millis(1)), 0);
        assert_eq!(count(2 * LOG_BURST_WINDOW), usize::from(LOG_BURST));
    }

    #[test]
    fn operators_see_what_calls_have_shown() {
        let (mut servers, start) = (ServerHealth::default(), Instant::now());
        let server: ChatServerConfig = "ws://a/".parse().unwrap();
        let at = |seconds| start + Duration::from_secs(seconds);
        let brief = |servers: &ServerHealth, seconds| {
            let status = servers.status(&server, at(seconds));
            (status.state, status.seen_seconds, status.failing_seconds, status.stage)
        };
        assert_eq!(brief(&servers, 0), (ServerState::Unknown, None, None, None));
        servers.on_failure(&server, &BackendFailure::new(BackendStage::Connect, "refused"), at(1));
        servers.on_failure(&server, &BackendFailure::new(BackendStage::Tls, "expired"), at(3));
        let failing = (ServerState::Failing, Some(1), Some(3), Some(BackendStage::Tls));
        assert_eq!(brief(&servers, 4), failing);
        assert_eq!(
            servers.status(&server, at(4)).reason.as_deref(),
            Some("tls failed: its certificate has expired (expired)")
        );
        assert_eq!(servers.status(&server, at(4)).cause, Some(ServerCause::CertificateExpired));
        servers.on_success(&server, at(5));
        assert_eq!(brief(&servers, 9), (ServerState::Well, Some(4), None, Some(BackendStage::Tls)));
        servers.set_unwell([server.url.clone()].into());
        let status = servers.status(&server, at(9));
        assert_eq!((status.state, status.answered, status.failures), (ServerState::Unwell, 1, 2));
    }
}
