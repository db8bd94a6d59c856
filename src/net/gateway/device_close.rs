//! Closing devices' connections, and the log lines about it.

use log::{debug, warn};

use crate::admin::recent_errors::RecentErrorKind;
use crate::net::event_loop::tcp::LINGER;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::proto::mqtt::ConnectReturnCode;
use crate::session::CloseReason;

impl Gateway {
    /// Closes a device's connection after what is queued for it has been written.
    pub(super) fn close_device(&mut self, id: SessionId, reason: &CloseReason) {
        self.log_close(id, reason);
        let now = self.io.now;
        self.mqtt.forget(id);
        let Some(session) = self.sessions.live(id) else { return };
        if session.core.is_closed()
            && let Some(mac) = session.core.client_id().map(|client_id| client_id.mac())
        {
            self.sessions.index.remove_device(mac, id);
            self.on_device_absent(mac);
        }
        let Some(session) = self.sessions.live(id) else { return };
        match &mut session.mqtt {
            Some(connection) => {
                connection.closing = true;
                connection.counted = None;
                let from = connection.hold_until().unwrap_or(now);
                session.linger_until = Some(Box::new(from + LINGER));
                self.sessions.mark_dirty(id);
                self.mqtt.add_closing(id, &self.sessions);
            }
            None => self.sessions.reap_if_finished(id),
        }
    }

    fn log_close(&mut self, id: SessionId, reason: &CloseReason) {
        let prefix = self.sessions.log_prefix(id);
        let Some(session) = self.sessions.get(id) else { return };
        let ip = session.core.ip();
        let is_device = session.core.client_id().is_some();
        let (line, recent_error) = match reason {
            CloseReason::Refused(code, _) => {
                let kind = match code {
                    ConnectReturnCode::ServerUnavailable => RecentErrorKind::TooManyDevices,
                    _ => RecentErrorKind::LoginRefused,
                };
                (format!("{prefix} {reason}"), Some((kind, format!("{ip} {reason}"))))
            }
            CloseReason::HelloVersion(_) => {
                let error = (RecentErrorKind::HelloVersion, reason.to_string());
                (format!("{prefix} closed: {reason}"), Some(error))
            }
            CloseReason::MacDenied(_) => (format!("{prefix} closed: {reason}"), None),
            // Only devices are worth a warning: anybody can connect and send anything.
            CloseReason::Protocol(_)
            | CloseReason::UnexpectedPacket(_)
            | CloseReason::MemoryLimit
            | CloseReason::Displaced
                if is_device =>
            {
                (format!("{prefix} closed: {reason}"), None)
            }
            _ => return debug!("{prefix} closed: {reason}"),
        };
        let suffix = self.mqtt.refusals().log.allows(ip, &mut self.io);
        match suffix {
            Some(suffix) => {
                warn!("{line}{suffix}");
                if let Some((kind, message)) = recent_error {
                    self.record_session_error(id, kind, &message);
                }
            }
            None => debug!("{line}"),
        }
    }
}
