//! Closing devices' connections.

use crate::net::event_loop::tcp::LINGER;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
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
            self.unregister_device(id, mac);
            self.leave_remote_call(id, reason);
            self.on_device_absent(mac);
        }
        let Some(session) = self.sessions.live(id) else { return };
        match &mut session.mqtt {
            Some(connection) => {
                connection.closing = true;
                connection.counted = None;
                let from = connection.hold_until().unwrap_or(now);
                session.set_linger_until(Some(from + LINGER));
                self.sessions.mark_dirty(id);
                self.mqtt.add_closing(id, &self.sessions);
            }
            None => self.sessions.reap_if_finished(id),
        }
    }
}
