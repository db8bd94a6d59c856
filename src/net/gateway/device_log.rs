//! The log lines about devices that connect and leave.

use log::Level;

use crate::admin::event::Event;
use crate::admin::recent_errors::RecentErrorKind;
use crate::logger::log_about;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::log_subject::LogSubject;
use crate::net::mqtt::connection_log::Change;
use crate::proto::mqtt::ConnectReturnCode;
use crate::session::CloseReason;

impl Gateway {
    /// A device was accepted; with `resumed` it continues the call of its lost connection.
    pub(super) fn log_connected(&mut self, id: SessionId, resumed: bool) {
        let Some(mac) = self.sessions.client_id(id).map(|client_id| client_id.mac()) else { return };
        let change = self.connection_log.connected(mac);
        let (level, subject) = (self.change_level(change), self.sessions.log_subject(id));
        self.publish_about(level, &subject, &Event::device_online(resumed, change == Change::New), "");
    }

    /// The level of a line about a device that connected or left.
    pub(super) fn change_level(&mut self, change: Change) -> Level {
        if self.connection_log.allows(change, &mut self.io) { Level::Info } else { Level::Debug }
    }

    /// A connection ended before anything was known about who it is. Anybody can cause this, so it is no warning.
    fn log_unidentified(&mut self, id: SessionId, subject: &LogSubject, reason: &CloseReason) {
        let (level, more) = self.unidentified_log.level((), self.io.now);
        log_about!(level, subject, "closed: {reason}{more}");
        let is_tls = *reason == CloseReason::UnexpectedPacket(CloseReason::TLS_ON_PLAIN_PORT);
        if level == Level::Info && is_tls {
            self.record_session_error(id, RecentErrorKind::TlsOnPlainPort, &reason.to_string());
        }
    }

    pub(super) fn log_close(&mut self, id: SessionId, reason: &CloseReason) {
        let subject = self.sessions.log_subject(id);
        let Some(session) = self.sessions.get(id) else { return };
        let ip = session.core.ip();
        let is_device = session.core.client_id().is_some();
        let recent_error = match reason {
            CloseReason::Refused(code, why) => {
                let kind = match code {
                    ConnectReturnCode::ServerUnavailable => RecentErrorKind::TooManyDevices,
                    _ => RecentErrorKind::LoginRefused,
                };
                Some((kind, format!("{ip} refused with return code {}: {why}", *code as u8)))
            }
            CloseReason::HelloVersion(_) => Some((RecentErrorKind::HelloVersion, reason.to_string())),
            CloseReason::MacDenied(_) => None,
            // Only devices are worth a warning: anybody can connect and send anything.
            CloseReason::Protocol(_)
            | CloseReason::UnexpectedPacket(_)
            | CloseReason::MemoryLimit
            | CloseReason::Displaced
                if is_device =>
            {
                None
            }
            CloseReason::Protocol(_) | CloseReason::UnexpectedPacket(_) | CloseReason::ConnectTimeout => {
                return self.log_unidentified(id, &subject, reason);
            }
            // The core has logged a lost connection whose call is kept.
            _ if !is_device || !session.core.is_closed() => {
                return log_about!(Level::Debug, subject, "closed: {reason}");
            }
            _ => {
                let seconds = self.io.now.saturating_duration_since(session.core.since()).as_secs();
                let level = self.change_level(Change::Left);
                let event = Event::device_offline(reason, Some(seconds));
                return self.publish_about(level, &subject, &event, "");
            }
        };
        let suffix = self.mqtt.refusals().log.allows(ip, &mut self.io);
        let level = if suffix.is_some() { Level::Warn } else { Level::Debug };
        let more = suffix.as_deref().unwrap_or_default();
        match reason {
            CloseReason::Refused(ConnectReturnCode::ServerUnavailable, why) if suffix.is_some() => {
                let event = Event::limit_reached(limit_of(why), reason.to_string());
                self.publish_about(level, &subject, &event, more);
            }
            CloseReason::Refused(..) => log_about!(level, subject, "{reason}{more}"),
            _ => self.publish_about(level, &subject, &Event::device_offline(reason, None), more),
        }
        if let (Some(_), Some((kind, message))) = (&suffix, recent_error) {
            self.record_session_error(id, kind, &message);
        }
    }
}

/// The limit that a login was refused for, by the words of the refusal.
fn limit_of(why: &str) -> &'static str {
    match why.split(' ').next() {
        Some("max_connections") => "mqtt.max_connections",
        Some("max_connections_per_ip") => "mqtt.max_connections_per_ip",
        _ => "client_ids_of_mac",
    }
}
