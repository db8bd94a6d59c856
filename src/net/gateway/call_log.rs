//! The log lines about sessions and calls, and the recent errors that they cause.

use log::Level;

use crate::admin::call_record::{CallPlace, FinishedCall};
use crate::admin::event::Event;
use crate::admin::recent_errors::RecentErrorKind;
use crate::config::EventKind;
use crate::logger::log_about;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::log_subject::LogSubject;
use crate::net::mqtt::connection_log::Change;
use crate::net::sessions::session::AudioPeer;
use crate::proto::identity::ClientId;
use crate::session::{CallState, CallSummary, LogEvent, ToolCount};
use crate::text::shown;

impl Gateway {
    pub(super) fn on_call_ended(&mut self, id: SessionId, summary: &CallSummary) {
        if summary.ssrc.is_some_and(|ssrc| self.sessions.index.remove_call(ssrc, id))
            && let Some(session) = self.sessions.get(id)
        {
            self.audio.drops.forget(session.core.ip());
        }
        self.io.metrics.ended(summary);
        self.record_call(id, summary);
        if let Some(client_id) = self.sessions.client_id(id) {
            self.report_call_ended(client_id.mac());
        }
        if let Some((kind, message)) = RecentErrorKind::from_end_reason(summary.reason) {
            let message = format!("{message}: session={}", summary.session_id);
            self.record_session_error(id, kind, &message);
        }
        let (level, suffix) = self.call_log_level(id);
        let session = Some(shown(&summary.session_id).into_owned());
        let subject = LogSubject { session, ..self.sessions.log_subject(id) };
        self.publish_about(level, &subject, &Event::call_ended(summary), &suffix);
        if matches!(summary.state, CallState::Ringing | CallState::InDeviceCall) {
            self.leave_device_call(id);
        }
    }

    /// The one place where the record of a call is made.
    fn record_call(&self, id: SessionId, summary: &CallSummary) {
        let session = self.sessions.get(id);
        let Some((session, client_id)) =
            session.and_then(|session| Some((session, session.core.client_id()?)))
        else {
            return;
        };
        let peer = session.peer().and_then(|peer| match peer {
            AudioPeer::Session(peer) => self.sessions.client_id(peer).map(ClientId::mac),
            AudioPeer::Elsewhere(far) => Some(far.mac),
        });
        let call = FinishedCall::new(
            summary,
            &CallPlace {
                ended_at: self.history.local_time(),
                client_id,
                ip: session.core.ip(),
                mask_address: self.io.config.history.mask_addresses,
                route: self.io.config.route_name(client_id),
                peer,
            },
        );
        self.history.record(call);
    }

    pub(super) fn log_event(&mut self, id: SessionId, event: &LogEvent) {
        let level = match event {
            LogEvent::Connected { resumed } => {
                self.register_device(id);
                return self.log_connected(id, *resumed);
            }
            LogEvent::ConnectionLost { .. } => self.change_level(Change::Left),
            LogEvent::CallStarted { .. }
            | LogEvent::Resumed(_)
            | LogEvent::NotResumed(_)
            | LogEvent::ServerEndedCall { code: None | Some(1000), .. }
            | LogEvent::ServerRecovered { .. } => Level::Info,
            // A failing server causes one warning; its calls redialling could cause hundreds.
            LogEvent::Redialling { .. }
            | LogEvent::Redialled { .. }
            | LogEvent::DialFailed { .. }
            | LogEvent::DeviceNotification(_)
            | LogEvent::ToolDiscovery(Err(_) | Ok(ToolCount { forwarded: 0, .. })) => Level::Debug,
            _ => Level::Warn,
        };
        if let Some(kind) = RecentErrorKind::from_log_event(event) {
            match event {
                LogEvent::ServerFailing { .. } => self.admin.record_error(kind, None, &event.to_string()),
                _ => self.record_session_error(id, kind, &event.to_string()),
            }
        }
        if let Some(published) = Event::from_log_event(event) {
            return self.publish_session_event(id, level, &published);
        }
        match event {
            // Of a device that was heard before, nothing can be said about firewalls.
            LogEvent::NoUdpAudio { advertised: Some(_), .. } => {
                let ip = self.sessions.core(id).map(|core| core.ip());
                let drops = ip.map(|ip| self.audio.drops.of(ip)).unwrap_or_default();
                log_about!(level, self.sessions.log_subject(id), "{event}; {}", drops.describe());
            }
            LogEvent::ToolDiscovery(Ok(ToolCount { forwarded: 1.., .. })) => {
                let (level, suffix) = self.call_log_level(id);
                log_about!(level, self.sessions.log_subject(id), "{event}{suffix}");
            }
            _ => log_about!(level, self.sessions.log_subject(id), "{event}"),
        }
    }

    fn publish_session_event(&mut self, id: SessionId, level: Level, event: &Event) {
        let (mut level, mut suffix) = (level, String::new());
        if event.kind == EventKind::CallStarted {
            (level, suffix) = self.call_log_level(id);
        }
        let subject = match event.kind {
            EventKind::ServerFailed | EventKind::ServerRecovered => LogSubject::default(),
            _ => self.sessions.log_subject(id),
        };
        self.publish_about(level, &subject, event, &suffix);
    }

    /// The level and the suffix of a log line about a call of this device.
    fn call_log_level(&mut self, id: SessionId) -> (Level, String) {
        match self.sessions.client_id(id).map(ClientId::mac) {
            Some(mac) => self.call_log.level(mac, self.io.now),
            None => (Level::Info, String::new()),
        }
    }

    /// Adds to the recent errors, under this device's client id or else its address.
    pub(super) fn record_session_error(&mut self, id: SessionId, kind: RecentErrorKind, message: &str) {
        let Some(session) = self.sessions.get(id) else { return };
        match session.core.client_id() {
            Some(client_id) => self.admin.record_error(kind, Some(&client_id.text()), message),
            None => self.admin.record_error(kind, Some(&session.core.ip().to_string()), message),
        }
    }
}
