//! Events: their log lines, the management API's streams of them, and the webhooks.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use log::Level;
use log::kv::{Error, Key, Source, Value, VisitSource};

use crate::admin::event::{About, Event};
use crate::admin::http::{Method, RequestHead};
use crate::clock::timestamp;
use crate::config::LogTime;
use crate::logger::log_about;
use crate::net::event_loop::token::{AdminId, SessionId};
use crate::net::gateway::Gateway;
use crate::net::log_subject::LogSubject;
use crate::net::mqtt::watched_certificate::WatchedCertificate;

/// How long before the end of a certificate it is told, once a day.
const CERTIFICATE_DAYS: i64 = 14;
const DAY: Duration = Duration::from_secs(86_400);

/// When the end of the certificate of each section was told.
pub(super) type CertificatesTold = HashMap<&'static str, Instant>;

impl Gateway {
    /// Logs an event that is about no device, and adds it to the stream.
    pub(super) fn publish_event(&mut self, level: Level, event: &Event) {
        self.publish_about(level, &LogSubject::default(), event, "");
    }

    /// Logs an event, with `suffix` behind its words, and adds it to the stream.
    pub(super) fn publish_about(&mut self, level: Level, subject: &LogSubject, event: &Event, suffix: &str) {
        log_about!(level, EventFields(subject, event), "{}{suffix}", event.message);
        let zone = (self.io.config.logging.time == LogTime::Local).then(|| self.admin.time_zone());
        let time = timestamp(SystemTime::now(), zone);
        let about = About {
            device: subject.device.as_deref(),
            address: subject.address.as_deref(),
            session: subject.session.as_deref(),
        };
        // The leader looks at the end of its iteration.
        if self.events.push(event, &time, about) && !self.workers.is_leader() {
            self.workers.run_at(0, |_| {});
        }
    }

    /// Adds an event about a session to the stream, whose log line is written elsewhere or limited.
    pub(super) fn publish_limit(&mut self, level: Level, id: SessionId, limit: &'static str, message: &str) {
        let subject = self.sessions.log_subject(id);
        self.publish_about(level, &subject, &Event::limit_reached(limit, message), "");
    }

    /// Answers a request for the stream of events.
    pub(super) fn start_event_stream(&mut self, id: AdminId, head: &RequestHead) {
        let head_only = head.method == Method::HEAD;
        self.admin.start_event_stream(id, head.last_event_id, head_only, &self.events, &mut self.io);
    }

    /// Offers new events to the clients of the management API.
    pub(super) fn serve_event_streams(&mut self) {
        if self.workers.is_leader() && self.events.take_news() {
            self.admin.wake_event_streams(&mut self.io);
        }
    }

    /// Tells the webhooks of this configuration of the events from now on.
    pub(super) fn configure_webhooks(&mut self) {
        if self.workers.is_leader() {
            self.webhooks.configure(&self.io.config, &self.events);
        }
    }

    /// Tells of certificates that expire soon, once a day; the log said so when they were loaded.
    pub(super) fn check_certificates(&mut self) {
        let unix =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        let certificates = [&self.mqtt.certificate, &self.admin.certificate].into_iter().flatten();
        let ending: Vec<_> = certificates
            .filter_map(|certificate: &WatchedCertificate| {
                let (section, info) = certificate.info()?;
                let days_left = (info.expires.1 - unix).div_euclid(86_400);
                (days_left < CERTIFICATE_DAYS).then(|| {
                    (section, Event::certificate_expiring(section, &info.names, &info.expires.0, days_left))
                })
            })
            .collect();
        for (section, event) in ending {
            let told = self.certificates_told.get(section);
            if told.is_some_and(|told| self.io.now.saturating_duration_since(*told) < DAY) {
                continue;
            }
            let level = if told.is_none() { Level::Debug } else { Level::Warn };
            self.certificates_told.insert(section, self.io.now);
            self.publish_event(level, &event);
        }
    }
}

/// The fields of an event's log line.
struct EventFields<'a>(&'a LogSubject, &'a Event);

impl Source for EventFields<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), Error> {
        let Self(subject, event) = self;
        subject.visit(visitor)?;
        visitor.visit_pair(Key::from("event"), Value::from(event.kind.name()))?;
        for (name, value) in &event.fields {
            visitor.visit_pair(Key::from(*name), kv_value(value))?;
        }
        Ok(())
    }
}

fn kv_value(value: &serde_json::Value) -> Value<'_> {
    use serde_json::Value as Json;
    match value {
        Json::Bool(value) => Value::from(*value),
        Json::String(text) => Value::from(text.as_str()),
        Json::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), ..) => Value::from(number),
            (_, Some(number), _) => Value::from(number),
            (.., number) => Value::from(number.unwrap_or_default()),
        },
        list_or_null => Value::from_display(list_or_null),
    }
}
