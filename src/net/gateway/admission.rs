//! Admission of devices after CONNECT, refusals, and the end of their connections.

use std::mem;
use std::net::{IpAddr, Ipv4Addr};

use log::{debug, error, warn};
use mio::Interest;

use crate::admin::recent_errors::RecentErrorKind;
use crate::net::event_loop::tcp::LINGER;
use crate::net::event_loop::token::{self, Role, SessionId};
use crate::net::gateway::Gateway;
use crate::net::log_limiter::suppressed_suffix;
use crate::proto::mqtt::{ConnectReturnCode, encode};
use crate::session::{Admission, CloseReason, Core};

impl Gateway {
    /// Admits a device whose credentials are valid, if the limits allow it. An older connection of the same device is
    /// closed; if it has a call, its session takes the new connection over and is returned.
    pub(super) fn admit(&mut self, id: SessionId) -> Option<SessionId> {
        let client_id = self.sessions.client_id(id)?;
        let mac = client_id.mac();
        let older = self.sessions.by_client_id(client_id);
        if older.is_none()
            && let Some(refused) = self.exceeded_limit(id)
        {
            self.drive(id, |core, cx| core.on_admission(refused, cx));
            return None;
        }
        self.io.metrics.admitted += 1;
        if let Some(older) = older
            && !self.io.config.mqtt.resume_grace.is_zero()
            && self.sessions.get(older).is_some_and(|session| session.core.has_call())
        {
            return self.take_over(id, older);
        }
        // Before the older connection closes, so that the device is connected all the time.
        self.sessions.index.add_device(mac, id);
        if let Some(older) = older {
            self.drive(older, Core::on_replaced);
        }
        self.drive(id, |core, cx| core.on_admission(Admission::Accepted, cx));
        None
    }

    /// The limit that one more device would exceed.
    fn exceeded_limit(&self, id: SessionId) -> Option<Admission> {
        let limits = &self.io.config.mqtt;
        if self.all_devices() >= limits.max_connections {
            return Some(Admission::ConnectionLimit);
        }
        let ip = self.sessions.get(id)?.core.ip();
        let per_ip = limits.max_connections_per_ip;
        (per_ip > 0 && self.mqtt.by_address.of(ip) > per_ip).then_some(Admission::PerIpLimit)
    }

    /// Moves the new connection to the older session, which keeps its call. Returns the older session, or none if that
    /// failed.
    fn take_over(&mut self, id: SessionId, older: SessionId) -> Option<SessionId> {
        let now = self.io.now;
        let session = self.sessions.live(id)?;
        let mut connection = session.mqtt.take()?;
        let mut retired = Core::new(session.core.ip(), now);
        retired.mark_closed();
        let newer = mem::replace(&mut session.core, retired);
        self.sessions.reap_if_finished(id);
        let token = token::token(Role::Device, older.slot as usize);
        let tcp = connection.transport.tcp_mut()?;
        if let Err(error) = self.io.registry.reregister(tcp, token, Interest::READABLE | Interest::WRITABLE) {
            let prefix = self.sessions.log_prefix(older);
            error!("{prefix} cannot take over the device's new connection: {error}");
            return None;
        }
        if let Some(session) = self.sessions.live(older) {
            session.mqtt = Some(connection);
            session.linger_until = None;
        }
        self.drive(older, |core, cx| core.take_over(newer, cx));
        Some(older)
    }

    /// Sends the refusal. After a failed login it is delayed, the longer the more logins from this address have failed.
    pub(super) fn refuse_connect(&mut self, id: SessionId, code: ConnectReturnCode) {
        let now = self.io.now;
        self.io.metrics.refused(code);
        let ip = self.sessions.get(id).map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |session| session.core.ip());
        self.sessions.write_mqtt(id, &mut self.io, |out| encode::connack(out, code));
        if !matches!(code, ConnectReturnCode::BadCredentials | ConnectReturnCode::NotAuthorised) {
            return;
        }
        let delay = self.mqtt.auth_throttle.failed(ip, now);
        if let Some(connection) = self.sessions.live(id).and_then(|session| session.mqtt.as_mut())
            && !delay.is_zero()
        {
            connection.hold(now + delay);
        }
    }

    /// Closes a device's connection after what is queued for it has been written.
    pub(super) fn close_device(&mut self, id: SessionId, reason: &CloseReason) {
        self.log_close(id, reason);
        let now = self.io.now;
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
            // Only devices are worth a warning: anybody can connect and send anything.
            CloseReason::Protocol(_) | CloseReason::UnexpectedPacket(_) | CloseReason::MemoryLimit
                if is_device =>
            {
                (format!("{prefix} closed: {reason}"), None)
            }
            _ => return debug!("{prefix} closed: {reason}"),
        };
        match self.mqtt.refusal_log.allows(ip, self.io.now) {
            Some(suppressed) => {
                warn!("{line}{}", suppressed_suffix(suppressed));
                if let Some((kind, message)) = recent_error {
                    self.record_session_error(id, kind, &message);
                }
            }
            None => debug!("{line}"),
        }
    }
}
