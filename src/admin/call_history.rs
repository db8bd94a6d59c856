//! The calls that have ended: the last ones, in memory, and what `GET /api/calls` picks of them.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Serialize;

use super::auth::WallClock;
use super::call_record::{CallRecord, FinishedCall, LocalTime};
use super::params::{BadParameter, query_number, query_value};
use crate::proto::identity::Mac;
use crate::session::Verdict;

/// Calls on a page: the maximum and the default.
const MAX_PAGE_SIZE: u64 = 1000;
const DEFAULT_PAGE_SIZE: u64 = 100;
/// The largest id: every JSON parser reads it without loss.
const MAX_ID: u64 = (1 << 53) - 1;

/// The last calls that have ended.
#[derive(Debug, Default)]
pub struct CallHistory {
    capacity: usize,
    /// Their ids ascend.
    calls: VecDeque<Arc<FinishedCall>>,
    last_id: u64,
}

impl CallHistory {
    /// Keeps so many calls; more push the oldest out.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, calls: VecDeque::new(), last_id: 0 }
    }

    /// Whether it keeps none.
    pub fn is_off(&self) -> bool {
        self.capacity == 0
    }

    /// How many it keeps now.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether it keeps none now.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Keeps a call, which gets its id.
    pub fn push(&mut self, mut call: FinishedCall) -> Arc<FinishedCall> {
        call.record.id = call.record.ended_at.unix_ms.max(self.last_id + 1).min(MAX_ID);
        self.insert(call)
    }

    /// Keeps a call of an earlier process. Ignored if its id does not follow that of the call before.
    pub fn restore(&mut self, mut call: FinishedCall) {
        if call.record.id > MAX_ID {
            return;
        }
        // After an upgrade in place, two processes wrote to the file, each with ids of its own.
        call.record.id = call.record.id.max(self.last_id + 1);
        if call.record.id <= MAX_ID {
            self.insert(call);
        }
    }

    fn insert(&mut self, call: FinishedCall) -> Arc<FinishedCall> {
        self.last_id = call.record.id;
        let call = Arc::new(call);
        if !self.is_off() {
            let excess = (self.calls.len() + 1).saturating_sub(self.capacity);
            self.calls.drain(..excess);
            self.calls.push_back(call.clone());
        }
        call
    }

    /// The call with this id.
    pub fn get(&self, id: u64) -> Option<Arc<FinishedCall>> {
        let at = self.calls.binary_search_by_key(&id, |call| call.record.id).ok()?;
        self.calls.get(at).cloned()
    }

    /// The calls of a page.
    pub fn page(&self, query: &CallQuery) -> CallPage {
        let before = query.cursor.unwrap_or(u64::MAX);
        let end = self.calls.partition_point(|call| call.record.id < before);
        let mut found = self.calls.range(..end).rev().filter(|call| query.fits(&call.record));
        let calls: Vec<_> = found.by_ref().take(query.limit).cloned().collect();
        let next = found.next().and(calls.last()).map(|call| call.record.id);
        CallPage { calls, next }
    }
}

/// Which calls are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallQuery {
    /// Those of this client id or MAC.
    device: Option<String>,
    /// Those whose last chat server has this in its URL.
    server: Option<String>,
    verdict: Option<Verdict>,
    /// Those that had not ended before, and those that had begun, in milliseconds since 1970.
    since_ms: Option<u64>,
    until_ms: Option<u64>,
    /// Those before this id.
    cursor: Option<u64>,
    limit: usize,
}

impl CallQuery {
    /// Reads the query of `GET /api/calls`.
    ///
    /// # Errors
    /// A parameter that is not allowed.
    pub fn parse(query: &str, clock: WallClock) -> Result<Self, BadParameter> {
        let text = |key| Ok(query_value(query, key)?.map(|value| value.into_owned()));
        let device: Option<String> = text("device")?;
        let mac = device.as_deref().and_then(|device| device.parse::<Mac>().ok());
        let cursor = query_number(query, "cursor", MAX_ID, (1, MAX_ID))?;
        Ok(Self {
            device: mac.map(|mac| mac.to_string()).or(device),
            server: text("server")?,
            verdict: query_value(query, "verdict")?.map(|verdict| parse_verdict(&verdict)).transpose()?,
            since_ms: parse_time(query, "since", clock)?,
            until_ms: parse_time(query, "until", clock)?,
            cursor: (cursor < MAX_ID).then_some(cursor),
            limit: query_number(query, "limit", DEFAULT_PAGE_SIZE, (1, MAX_PAGE_SIZE))? as usize,
        })
    }

    fn fits(&self, call: &CallRecord) -> bool {
        let is_device = |device: &String| **device == *call.client_id || **device == *call.mac;
        let is_server = |wanted: &String| call.server.as_ref().is_some_and(|server| server.contains(wanted));
        self.device.as_ref().is_none_or(is_device)
            && self.server.as_ref().is_none_or(is_server)
            && self.verdict.is_none_or(|verdict| verdict == call.report.verdict)
            && self.since_ms.is_none_or(|since| call.ended_at.unix_ms >= since)
            && self.until_ms.is_none_or(|until| call.started_at.unix_ms <= until)
    }
}

fn parse_verdict(text: &str) -> Result<Verdict, BadParameter> {
    let verdict = Verdict::ALL.into_iter().find(|verdict| verdict.label() == text);
    verdict.ok_or_else(|| {
        let allowed = Verdict::ALL.map(Verdict::label).join(", ");
        BadParameter::new("verdict", &format!("{text:?}"), format!("one of {allowed}"))
    })
}

fn parse_time(query: &str, key: &str, clock: WallClock) -> Result<Option<u64>, BadParameter> {
    let Some(text) = query_value(query, key)? else { return Ok(None) };
    let offset = i32::try_from(clock.utc_offset_seconds).unwrap_or_default();
    match LocalTime::parse(&text, offset) {
        Some(time) => Ok(Some(time.unix_ms)),
        None => Err(BadParameter::new(
            key,
            &format!("{text:?}"),
            "a time like 2026-01-31T21:00, with Z or %2B08:00 behind it unless it is local",
        )),
    }
}

/// A page of calls, the latest first.
#[derive(Clone, Debug)]
pub struct CallPage {
    calls: Vec<Arc<FinishedCall>>,
    /// `cursor` of the next page; none on the last.
    next: Option<u64>,
}

impl CallPage {
    /// What `GET /api/calls` answers: the records without their series.
    pub fn to_json(&self) -> impl Serialize {
        #[derive(Serialize)]
        struct Page<'a> {
            calls: Vec<&'a CallRecord>,
            next: Option<u64>,
        }
        Page { calls: self.calls.iter().map(|call| &call.record).collect(), next: self.next }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::call_record::tests::finished_call;
    use super::*;

    const CLOCK: WallClock = WallClock { unix_seconds: 1_769_875_200, utc_offset_seconds: 28_800 };

    fn history(capacity: usize, calls: &[(u64, &str)]) -> CallHistory {
        let mut history = CallHistory::new(capacity);
        for (ended_ms, verdict) in calls {
            history.push(finished_call(*ended_ms, verdict));
        }
        history
    }

    fn ids(history: &CallHistory, query: &str) -> (Vec<u64>, Option<u64>) {
        let page = history.page(&CallQuery::parse(query, CLOCK).unwrap());
        (page.calls.iter().map(|call| call.record.id).collect(), page.next)
    }

    #[test]
    fn the_oldest_call_makes_room() {
        let mut history = history(3, &[(10, "good"), (20, "good"), (30, "good"), (40, "good")]);
        assert_eq!(ids(&history, ""), (vec![40, 30, 20], None));
        assert_eq!((history.get(10), history.get(30).unwrap().record.id), (None, 30));
        assert_eq!(history.push(finished_call(35, "good")).record.id, 41, "the clock was set back");
        assert_eq!(history.push(finished_call(35, "good")).record.id, 42);
        assert_eq!(history.len(), 3);
    }

    #[test]
    fn a_history_that_is_off_keeps_nothing_but_gives_ids() {
        let mut history = CallHistory::new(0);
        assert_eq!(history.push(finished_call(7, "good")).record.id, 7);
        assert!(history.is_off() && history.is_empty());
    }

    #[test]
    fn calls_of_earlier_processes_are_all_kept_with_ids_that_ascend() {
        let mut history = CallHistory::new(9);
        for id in [5, 9, 9, 7, 12, MAX_ID + 1] {
            let mut call = finished_call(id, "good");
            call.record.id = id;
            history.restore(call);
        }
        assert_eq!(ids(&history, ""), (vec![12, 11, 10, 9, 5], None));
        assert_eq!(history.push(finished_call(3, "good")).record.id, 13);
    }

    #[test]
    fn pages_follow_one_another_while_calls_end() {
        let mut history =
            history(100, &[(1, "good"), (2, "good"), (3, "no_audio"), (4, "good"), (5, "good")]);
        assert_eq!(ids(&history, "limit=2"), (vec![5, 4], Some(4)));
        history.push(finished_call(6, "good"));
        assert_eq!(ids(&history, "limit=2&cursor=4"), (vec![3, 2], Some(2)));
        assert_eq!(ids(&history, "limit=2&cursor=2"), (vec![1], None));
        assert_eq!(ids(&history, "limit=1&verdict=no_audio"), (vec![3], None), "no empty page follows");
        assert_eq!(ids(&history, "limit=5&verdict=good&cursor=6"), (vec![5, 4, 2, 1], None));
    }

    #[test]
    fn calls_are_picked_by_device_server_and_time() {
        // From 23:59:50 to 23:59:59.999 local time.
        let history = history(100, &[(1_769_875_199_999, "good")]);
        for (query, found) in [
            ("device=aa:bb:cc:dd:ee:ff", true),
            ("device=AA-BB-CC-DD-EE-FF", true),
            ("device=GID_test@@@aa_bb_cc_dd_ee_ff@@@11111111-2222-4333-8444-555555555555", true),
            ("device=GID_test", false),
            ("device=aa:bb:cc:dd:ee:fe", false),
            ("server=ws://a/chat", true),
            ("server=a", true),
            ("server=ws://b", false),
            ("verdict=good", true),
            ("verdict=limited", false),
            ("since=2026-01-31T23:59:55", true),
            ("since=2026-01-31T15:59:55Z", true),
            ("since=2026-02-01", false),
            ("until=2026-01-31T23:59:55", true),
            ("until=2026-01-31T23:59:49%2B08:00", false),
            ("since=2026-01-31T21:00&until=2026-02-01&server=a&verdict=good", true),
        ] {
            assert_eq!(ids(&history, query).0.len(), usize::from(found), "{query}");
        }
    }

    #[test]
    fn what_is_not_allowed_is_named() {
        for (query, error) in [
            ("limit=0", "limit: found \"0\", allowed: a whole number from 1 to 1000"),
            ("limit=1001", "limit: found \"1001\", allowed: a whole number from 1 to 1000"),
            ("cursor=x", "cursor: found \"x\", allowed: a whole number from 1 to 9007199254740991"),
            (
                "verdict=bad",
                "verdict: found \"bad\", allowed: one of good, no_audio, lossy_uplink, server_gaps, server_slow, \
                 server_failed, device_lost, limited",
            ),
            (
                "since=yesterday",
                "since: found \"yesterday\", allowed: a time like 2026-01-31T21:00, with Z or %2B08:00 behind it unless \
                 it is local",
            ),
            ("until=1&until=2", "until: found it more than once, allowed: one value"),
        ] {
            assert_eq!(CallQuery::parse(query, CLOCK).unwrap_err().to_string(), error);
        }
    }
}
