//! The log lines of sessions and their calls, and what they add to the recent errors.

use log::{Level, log};

use crate::admin::recent_errors::RecentErrorKind;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::media::credentials;
use crate::proto::identity::ClientId;
use crate::session::{CallState, CallSummary, Core, LogEvent};

impl Gateway {
    pub(super) fn on_call_ended(&mut self, id: SessionId, summary: &CallSummary) {
        if let Some(ip) = summary.ssrc.and_then(|ssrc| self.sessions.index.remove_call(ssrc, id)) {
            self.audio.drops.forget(ip);
        }
        self.io.metrics.ended(summary);
        if let Some((kind, sentence)) = RecentErrorKind::from_end_reason(summary.reason) {
            let sentence = format!("{sentence}: session={}", summary.session_id);
            self.record_session_error(id, kind, &sentence);
        }
        let stats = &summary.stats;
        let server = summary.server.as_ref().map_or("none".to_owned(), |server| server.to_string());
        let (level, left_out) = self.call_log_level(id);
        log!(
            level,
            "{} call ends: session={} reason={} duration={:.3}s server={server} up={}p/{}B down={}p/{}B lost={} \
             reordered={} duplicates={} dropped={} redials={}{left_out}",
            self.sessions.log_prefix(id),
            summary.session_id,
            summary.reason.label(),
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
        if matches!(summary.state, CallState::Ringing | CallState::InDeviceCall) {
            self.leave_device_call(id);
        }
    }

    pub(super) fn log_event(&mut self, id: SessionId, event: &LogEvent) {
        let level = match event {
            LogEvent::CallStarted { .. } | LogEvent::ServerRecovered { .. } => Level::Info,
            // A server that fails is one warning; that each of its calls redials would be hundreds.
            LogEvent::Redialling { .. } | LogEvent::Redialled { .. } | LogEvent::ConnectionLost(_) => {
                Level::Debug
            }
            LogEvent::Connected { .. } | LogEvent::DialFailed { .. } | LogEvent::ToolDiscovery(_) => {
                Level::Debug
            }
            _ => Level::Warn,
        };
        if let Some(kind) = RecentErrorKind::from_log_event(event) {
            match event {
                LogEvent::ServerFailing { .. } => self.admin.record_error(kind, None, &event.to_string()),
                _ => self.record_session_error(id, kind, &event.to_string()),
            }
        }
        match event {
            LogEvent::ServerFailing { .. } | LogEvent::ServerRecovered { .. } => log!(level, "{event}"),
            LogEvent::NoUdpAudio { .. } => {
                let ip = self.sessions.get(id).map(|session| session.core.ip());
                let seen = ip.map(|ip| self.audio.drops.of(ip)).unwrap_or_default();
                log!(
                    level,
                    "{} {event}; {}",
                    self.sessions.log_prefix(id),
                    credentials::describe_drops(&seen)
                );
            }
            LogEvent::CallStarted { .. } => {
                let (level, left_out) = self.call_log_level(id);
                log!(level, "{} {event}{left_out}", self.sessions.log_prefix(id));
            }
            _ => log!(level, "{} {event}", self.sessions.log_prefix(id)),
        }
    }

    /// The level of a line about a call of this device, and what is appended to it.
    fn call_log_level(&mut self, id: SessionId) -> (Level, String) {
        let mac = self.sessions.client_id(id).map(ClientId::mac);
        match mac.map_or(Some(0), |mac| self.call_log.allows(mac, self.io.now)) {
            Some(0) => (Level::Info, String::new()),
            Some(left_out) => {
                (Level::Info, format!(" ({left_out} lines about this device's calls left out)"))
            }
            None => (Level::Debug, String::new()),
        }
    }

    /// Adds to the recent errors of this device.
    pub(super) fn record_session_error(&mut self, id: SessionId, kind: RecentErrorKind, sentence: &str) {
        let core = self.sessions.get(id).map(|session| &session.core);
        match core.and_then(Core::client_id) {
            Some(client_id) => self.admin.record_error(kind, Some(client_id.as_str()), sentence),
            None => {
                let ip = core.map(|core| core.ip().to_string());
                self.admin.record_error(kind, ip.as_deref(), sentence);
            }
        }
    }
}
