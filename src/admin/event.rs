//! Events: what they are called, which fields they have, and the words of their log lines. Nothing else formats them.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::config::{Changes, EventKind};
use crate::proto::message::push_json_string;
use crate::session::{CallSummary, CloseReason, LogEvent};
use crate::text::printable;
use crate::text_ring::TextRing;

/// Bytes of a text in an event, at most.
const MAX_TEXT_BYTES: usize = 1024;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The words of its log line.
    pub message: String,
    /// Its figures, by name.
    pub fields: Vec<(&'static str, Value)>,
}

/// Which device, connection and call an event is about.
#[derive(Clone, Copy, Debug, Default)]
pub struct About<'a> {
    /// The client id.
    pub device: Option<&'a str>,
    /// The address of its connection.
    pub address: Option<&'a str>,
    /// The session id of its call.
    pub session: Option<&'a str>,
}

impl Event {
    fn new(kind: EventKind, message: impl Into<String>, fields: Vec<(&'static str, Value)>) -> Self {
        Self { kind, message: message.into(), fields }
    }

    /// A device has logged in: for the first time since the start or again, or in the middle of its call.
    pub fn device_online(resumed: bool, is_new: bool) -> Self {
        let message = match (resumed, is_new) {
            (true, _) => LogEvent::Connected { resumed }.to_string(),
            (false, true) => "connected, new since the start".to_owned(),
            (false, false) => "connected, back".to_owned(),
        };
        Self::new(EventKind::DeviceOnline, message, vec![("resumed", json!(resumed)), ("new", json!(is_new))])
    }

    /// A device has left, so many seconds after it connected, if that is to be said.
    pub fn device_offline(reason: &CloseReason, seconds: Option<u64>) -> Self {
        let message = match seconds {
            Some(seconds) => format!("closed: {reason}, {seconds} s after it connected"),
            None => format!("closed: {reason}"),
        };
        let mut fields = vec![("reason", json!(reason.to_string())), ("call_kept_s", json!(0))];
        fields.extend(seconds.map(|seconds| ("connected_s", json!(seconds))));
        Self::new(EventKind::DeviceOffline, message, fields)
    }

    /// The event of a line about a session, if it is one.
    pub fn from_log_event(event: &LogEvent) -> Option<Self> {
        let (kind, fields) = match event {
            LogEvent::ConnectionLost { kept, why } => {
                let fields = vec![("reason", json!(why.to_string())), ("call_kept_s", json!(kept.as_secs()))];
                (EventKind::DeviceOffline, fields)
            }
            LogEvent::CallStarted { url, after, .. } => {
                let fields =
                    vec![("server", json!(url)), ("answered_after_ms", json!(after.as_millis() as u64))];
                (EventKind::CallStarted, fields)
            }
            LogEvent::ServerFailing { url, why } => {
                (EventKind::ServerFailed, vec![("server", json!(url)), ("reason", json!(why))])
            }
            LogEvent::ServerRecovered { url, after } => (
                EventKind::ServerRecovered,
                vec![("server", json!(url)), ("after_s", json!(after.as_secs()))],
            ),
            LogEvent::DeviceNotification(text) => (
                EventKind::DeviceNotification,
                vec![("notification", json!(printable(text, MAX_TEXT_BYTES)))],
            ),
            _ => return None,
        };
        // Most are as long. Writing to a string cannot fail.
        let mut message = String::with_capacity(192);
        let _ = write!(message, "{event}");
        Some(Self::new(kind, message, fields))
    }

    /// A call has ended.
    pub fn call_ended(summary: &CallSummary) -> Self {
        let stats = &summary.stats;
        let server = summary.server.as_ref().map_or("none".to_owned(), |server| server.to_string());
        let message = format!(
            "call ends: session={} reason={} verdict={} duration={:.3}s server={server} up={}p/{}B down={}p/{}B lost={} \
             reordered={} duplicates={} dropped={} redials={}",
            summary.session_id,
            summary.reason.label(),
            summary.report.verdict.label(),
            summary.duration.as_secs_f64(),
            stats.up_packets,
            stats.up_bytes,
            stats.down_packets,
            stats.down_bytes,
            stats.lost,
            stats.reordered,
            stats.duplicates,
            stats.dropped,
            stats.redials,
        );
        let fields = vec![
            ("reason", json!(summary.reason.label())),
            ("ended_by", json!(summary.reason.ended_by().label())),
            ("verdict", json!(summary.report.verdict.label())),
            ("answered", json!(summary.answered)),
            ("duration_s", json!(summary.duration.as_millis() as f64 / 1000.0)),
            ("server", json!(server)),
            ("up_packets", json!(stats.up_packets)),
            ("up_bytes", json!(stats.up_bytes)),
            ("down_packets", json!(stats.down_packets)),
            ("down_bytes", json!(stats.down_bytes)),
            ("lost", json!(stats.lost)),
            ("reordered", json!(stats.reordered)),
            ("duplicates", json!(stats.duplicates)),
            ("dropped", json!(stats.dropped)),
            ("redials", json!(stats.redials)),
        ];
        Self::new(EventKind::CallEnded, message, fields)
    }

    /// A chat server is not well: its `health_url` says so, or does not answer.
    pub fn server_unwell(url: &str, why: &str) -> Self {
        let message = format!("chat server {url} is not well, new calls try it last: its health_url: {why}");
        Self::new(EventKind::ServerFailed, message, vec![("server", json!(url)), ("reason", json!(why))])
    }

    /// Its `health_url` says that it is well again.
    pub fn server_well(url: &str) -> Self {
        let message = format!("chat server {url} is well again");
        Self::new(EventKind::ServerRecovered, message, vec![("server", json!(url))])
    }

    /// The certificate of this section, valid for these names until then, expires in so many days; a negative number is the past.
    pub fn certificate_expiring(section: &str, names: &str, expires: &str, days_left: i64) -> Self {
        let message = match days_left {
            0.. => format!(
                "{section}: the certificate for {names} expires on {expires}, in {days_left} days: renew it"
            ),
            _ => format!("{section}: the certificate for {names} expired on {expires}: renew it"),
        };
        let fields = vec![
            ("section", json!(section)),
            ("names", json!(names)),
            ("expires", json!(expires)),
            ("days_left", json!(days_left)),
        ];
        Self::new(EventKind::CertificateExpiring, message, fields)
    }

    /// A changed configuration is in force, as far as it needs no restart.
    pub fn config_reloaded(changes: &Changes) -> Self {
        let list = |keys: &[&str]| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
        let (applied, needs_restart) = (&changes.applied, &changes.needs_restart);
        let message = format!("reload: applied: {}; needs restart: {}", list(applied), list(needs_restart));
        let fields = vec![("applied", json!(applied)), ("needs_restart", json!(needs_restart))];
        Self::new(EventKind::ConfigReloaded, message, fields)
    }

    /// A changed configuration was refused.
    pub fn config_refused(why: &str) -> Self {
        let message = format!("reload: nothing changes: {why}");
        Self::new(EventKind::ConfigRefused, message, vec![("reason", json!(printable(why, MAX_TEXT_BYTES)))])
    }

    /// Somebody was refused because of `limit`, a key of the configuration or a resource.
    pub fn limit_reached(limit: &'static str, message: impl Into<String>) -> Self {
        Self::new(EventKind::LimitReached, message, vec![("limit", json!(limit))])
    }

    /// Writes the event with this id and time as a JSON object to an empty text, its members by name. Without a tree of values, which
    /// took a quarter of a call's set-up, since most events are read by nobody.
    fn write_json(&self, json: &mut String, id: u64, time: &str, about: About<'_>) {
        enum Member<'a> {
            Text(&'a str),
            Value(&'a Value),
        }
        let id = Value::from(id);
        let texts = [("device", about.device), ("address", about.address), ("session", about.session)];
        let mut members = Vec::with_capacity(4 + texts.len() + self.fields.len());
        members.extend([
            ("id", Member::Value(&id)),
            ("time", Member::Text(time)),
            ("event", Member::Text(self.kind.name())),
            ("message", Member::Text(&self.message)),
        ]);
        members.extend(texts.into_iter().filter_map(|(name, text)| Some((name, Member::Text(text?)))));
        members.extend(self.fields.iter().map(|(name, value)| (*name, Member::Value(value))));
        members.sort_unstable_by_key(|(name, _)| *name);
        for (name, member) in members {
            json.extend([if json.is_empty() { "{\"" } else { ",\"" }, name, "\":"]);
            match member {
                Member::Text(text) => push_json_string(json, &printable(text, MAX_TEXT_BYTES)),
                // Writing to a string cannot fail.
                Member::Value(value) => drop(write!(json, "{value}")),
            }
        }
        json.push('}');
    }
}

/// An event as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// Grows by one with each event of this process.
    pub id: u64,
    /// What happened.
    pub kind: EventKind,
    /// The whole event, as a JSON object on one line.
    pub json: Box<str>,
}

impl StoredEvent {
    /// Appends it in the form of server-sent events.
    pub fn write(&self, out: &mut Vec<u8>) {
        let text = format!("id: {}\nevent: {}\ndata: {}\n\n", self.id, self.kind.name(), self.json);
        out.extend_from_slice(text.as_bytes());
    }
}

/// The last events. Whoever reads them keeps the id of the last one it has read, and loses the oldest when it is too slow.
#[derive(Debug)]
pub struct EventRing {
    events: TextRing<EventKind>,
    /// The id before that of the first event.
    base: u64,
    last: u64,
    /// An event while it is written; only its capacity is reused.
    json: String,
}

impl EventRing {
    /// Events that are kept: about 400 bytes each.
    pub const CAPACITY: usize = 512;

    /// An empty ring. Ids begin above those of an earlier process, whose clock was behind `unix_seconds`: a client that resumes
    /// behind an id of that process gets every event of this one. JavaScript reads them without loss until 2242.
    pub fn new(unix_seconds: u64) -> Self {
        let base = unix_seconds << 20;
        Self { events: TextRing::new(), base, last: base, json: String::new() }
    }

    /// Adds an event; the oldest one makes room for it.
    pub fn push(&mut self, event: &Event, time: &str, about: About<'_>) {
        self.last += 1;
        if self.events.len() >= Self::CAPACITY {
            self.events.remove_oldest();
        }
        self.json.clear();
        event.write_json(&mut self.json, self.last, time, about);
        self.events.push(event.kind, self.json.as_bytes());
    }

    /// The id of the last event, or the one before the first.
    pub fn last_id(&self) -> u64 {
        self.last
    }

    /// The first kept event behind this id that is `wanted`, and how many events behind it are no longer kept. An id that this
    /// process has not given stands for its start.
    pub fn after(&self, id: u64, wanted: impl Fn(EventKind) -> bool) -> (u64, Option<StoredEvent>) {
        let id = if (self.base..=self.last).contains(&id) { id } else { self.base };
        let first = self.last - self.events.len() as u64 + 1;
        let lost = first.saturating_sub(id + 1);
        let skipped = (id + 1).saturating_sub(first) as usize;
        let mut behind = self.events.items().enumerate().skip(skipped);
        let next = behind.find(|(_, kind)| wanted(**kind)).map(|(place, kind)| {
            let json = String::from_utf8(self.events.text(place)).expect("a text was put there");
            StoredEvent { id: first + place as u64, kind: *kind, json: json.into() }
        });
        (lost, next)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::session::{CallReport, CallSeries, CallState, CallStats, EndReason, SetupTimes, Verdict};

    fn parsed(event: &Event, about: About<'_>) -> Value {
        let mut json = String::new();
        event.write_json(&mut json, 7, "T", about);
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn every_kind_has_its_name_words_and_fields() {
        let summary = CallSummary {
            session_id: "s".into(),
            reason: EndReason::ServerLost,
            duration: Duration::from_millis(1_500),
            answered: true,
            state: CallState::Live,
            server: Some(Arc::new("ws://a/?token=secret".parse().unwrap())),
            ssrc: None,
            stats: CallStats { up_packets: 3, lost: 1, ..CallStats::default() },
            settled_lost: 1,
            report: CallReport {
                verdict: Verdict::LossyUplink,
                setup: SetupTimes::default(),
                first_packet_ms: None,
                loss_percent: 25.0,
                worst_loss_percent: 25.0,
                median_jitter_ms: 0.0,
                worst_jitter_ms: 0.0,
                gaps: 0,
                gap_ms: 0,
                longest_gap_ms: 0,
                slowest_answer_ms: None,
                unheard_ms: 0,
                resumed: 0,
                away_ms: 0,
                failure_count: 0,
                failures: Vec::new(),
            },
            series: CallSeries::default(),
        };
        let changes = Changes { applied: vec!["a"], needs_restart: vec![] };
        let url = || "ws://a/".to_owned();
        let of = |event: LogEvent| Event::from_log_event(&event).unwrap();
        let after = Duration::from_secs(2);
        for (event, name, words, fields) in [
            (
                Event::device_online(false, true),
                "device.online",
                "connected, new since the start",
                json!({"new": true}),
            ),
            (
                Event::device_online(true, false),
                "device.online",
                "connected again, its call goes on",
                json!({"resumed": true}),
            ),
            (
                Event::device_offline(&CloseReason::KeepAlive, Some(9)),
                "device.offline",
                "closed: nothing received for 1.5 times the keep alive, 9 s after it connected",
                json!({"connected_s": 9, "call_kept_s": 0}),
            ),
            (
                of(LogEvent::ConnectionLost { kept: after, why: CloseReason::Disconnected }),
                "device.offline",
                "connection lost in a call, kept for 2 s: the device disconnected",
                json!({"reason": "the device disconnected", "call_kept_s": 2}),
            ),
            (
                of(LogEvent::DeviceNotification("\"x\"".into())),
                "device.notification",
                "the device reports \"x\"",
                json!({"notification": "\"x\""}),
            ),
            (
                of(LogEvent::CallStarted { session_id: "s".into(), url: url(), after }),
                "call.started",
                "call begins: session=s server=ws://a/ answered_after=2000ms",
                json!({"server": "ws://a/", "answered_after_ms": 2000}),
            ),
            (
                Event::call_ended(&summary),
                "call.ended",
                "call ends: session=s reason=server_lost verdict=lossy_uplink duration=1.500s server=ws://a/?token=*** up=3p/0B down=0p/0B lost=1 \
                 reordered=0 duplicates=0 dropped=0 redials=0",
                json!({"reason": "server_lost", "ended_by": "server", "answered": true, "duration_s": 1.5, "up_packets": 3, "verdict": "lossy_uplink"}),
            ),
            (
                of(LogEvent::ServerFailing { url: url(), why: "refused".to_owned() }),
                "server.failed",
                "chat server ws://a/ is failing (refused); new calls try other servers first",
                json!({"server": "ws://a/", "reason": "refused"}),
            ),
            (
                of(LogEvent::ServerRecovered { url: url(), after }),
                "server.recovered",
                "chat server ws://a/ works again after 2 s",
                json!({"after_s": 2}),
            ),
            (
                Event::server_unwell("ws://a/", "HTTP 503"),
                "server.failed",
                "chat server ws://a/ is not well, new calls try it last: its health_url: HTTP 503",
                json!({"server": "ws://a/", "reason": "HTTP 503"}),
            ),
            (
                Event::server_well("ws://a/"),
                "server.recovered",
                "chat server ws://a/ is well again",
                json!({"server": "ws://a/"}),
            ),
            (
                Event::certificate_expiring("mqtt.tls", "gw", "May 1", 3),
                "certificate.expiring",
                "mqtt.tls: the certificate for gw expires on May 1, in 3 days: renew it",
                json!({"days_left": 3}),
            ),
            (
                Event::certificate_expiring("mqtt.tls", "gw", "May 1", -1),
                "certificate.expiring",
                "mqtt.tls: the certificate for gw expired on May 1: renew it",
                json!({"section": "mqtt.tls", "names": "gw"}),
            ),
            (
                Event::config_reloaded(&changes),
                "config.reloaded",
                "reload: applied: a; needs restart: nothing",
                json!({"applied": ["a"], "needs_restart": []}),
            ),
            (
                Event::config_refused("x"),
                "config.refused",
                "reload: nothing changes: x",
                json!({"reason": "x"}),
            ),
            (
                Event::limit_reached("websocket.max_calls", "y"),
                "limit.reached",
                "y",
                json!({"limit": "websocket.max_calls"}),
            ),
        ] {
            let json = parsed(&event, About { device: Some("d\n"), address: None, session: Some("s") });
            assert_eq!(
                (json["event"].as_str(), json["id"].as_u64(), &json["time"]),
                (Some(name), Some(7), &json!("T"))
            );
            assert_eq!(
                (&json["message"], &json["device"], &json["session"]),
                (&json!(words), &json!("d\\n"), &json!("s"))
            );
            assert!(json.get("address").is_none());
            for (name, value) in fields.as_object().unwrap() {
                assert_eq!(json[name], *value, "{words} {name}");
            }
            assert!(!json.to_string().contains("secret"));
        }
        assert_eq!(Event::from_log_event(&LogEvent::HeldAudioFull), None);
    }

    #[test]
    fn a_server_sent_event_is_three_lines_whatever_it_holds() {
        let mut ring = EventRing::new(1);
        ring.push(&Event::config_refused("a\r\n\ndata: x\u{2028}"), "T", About::default());
        let mut out = Vec::new();
        ring.after(0, |_| true).1.unwrap().write(&mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("id: 1048577\nevent: config.refused\ndata: {"), "{text}");
        assert!(text.ends_with("}\n\n") && text.lines().count() == 4, "{text}");
    }

    #[test]
    fn the_oldest_events_are_lost_and_counted() {
        let mut ring = EventRing::new(1_700_000_000);
        let base = ring.last_id();
        assert_eq!(ring.after(base, |_| true), (0, None));
        let push = |ring: &mut EventRing, n: usize| {
            for n in 0..n {
                let event = match n % 2 {
                    0 => Event::config_refused("x"),
                    _ => Event::limit_reached("a", "b"),
                };
                ring.push(&event, "T", About::default());
            }
        };
        push(&mut ring, 3);
        let id = |found: (u64, Option<StoredEvent>)| (found.0, found.1.map(|event| event.id - base));
        assert_eq!(id(ring.after(base, |_| true)), (0, Some(1)));
        assert_eq!(id(ring.after(base + 1, |_| true)), (0, Some(2)));
        assert_eq!(id(ring.after(base + 1, |kind| kind == EventKind::ConfigRefused)), (0, Some(3)));
        assert_eq!(id(ring.after(base + 3, |_| true)), (0, None));
        push(&mut ring, EventRing::CAPACITY + 7);
        assert_eq!(ring.events.len(), EventRing::CAPACITY);
        assert_eq!(id(ring.after(base + 2, |_| true)), (8, Some(11)));
        assert_eq!(id(ring.after(base + 10, |_| true)), (0, Some(11)));
        assert_eq!(id(ring.after(ring.last_id(), |_| true)), (0, None));
        // Of an earlier process, or of none.
        for unknown in [0, base - 1, ring.last_id() + 1, u64::MAX] {
            assert_eq!(id(ring.after(unknown, |_| true)), (10, Some(11)), "{unknown}");
        }
        assert!(ring.last_id() < 1 << 53);
    }
}
