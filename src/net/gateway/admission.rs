//! Letting devices in, by their client id, and out.

use std::mem;
use std::net::{IpAddr, Ipv4Addr};

use log::{debug, error, warn};
use mio::Interest;

use crate::admin::recent_errors::RecentErrorKind;
use crate::net::event_loop::tcp::LINGER;
use crate::net::event_loop::token::{self, Role, SessionId};
use crate::net::gateway::Gateway;
use crate::proto::mqtt::{ConnectReturnCode, encode};
use crate::session::{Admission, CloseReason, Core};

impl Gateway {
    /// The credentials are good. An older connection of the same device is replaced; if it has a call, the new connection
    /// takes the call over. Returns the session that has the connection afterwards.
    pub(super) fn admit(&mut self, id: SessionId) -> SessionId {
        let Some(client_id) = self.sessions.client_id(id) else { return id };
        let mac = client_id.mac();
        let older = self.sessions.by_client_id(client_id);
        let limits = &self.io.config.mqtt;
        let from_there =
            || self.sessions.get(id).map_or(0, |session| self.mqtt.by_address.of(session.core.ip()));
        let crowded = limits.max_connections_per_ip > 0 && from_there() > limits.max_connections_per_ip;
        let full = self.all_devices() >= limits.max_connections;
        if older.is_none() && (full || crowded) {
            let admission = if full { Admission::ConnectionLimit } else { Admission::PerIpLimit };
            self.drive(id, |core, cx| core.on_admission(admission, cx));
            return id;
        }
        self.io.metrics.admitted += 1;
        if let Some(older) = older {
            let keep = !self.io.config.mqtt.resume_grace.is_zero();
            if keep && self.sessions.get(older).is_some_and(|session| session.core.has_call()) {
                return self.take_over(id, older);
            }
            // Before the older one is forgotten: the device is not gone.
            self.sessions.index.add_device(mac, id);
            self.drive(older, Core::on_replaced);
        } else {
            self.sessions.index.add_device(mac, id);
        }
        self.drive(id, |core, cx| core.on_admission(Admission::Accepted, cx));
        id
    }

    /// The call stays in its session, and the new connection moves there.
    fn take_over(&mut self, id: SessionId, older: SessionId) -> SessionId {
        let now = self.io.now;
        let Some(session) = self.sessions.live(id) else { return id };
        let Some(mut device) = session.mqtt.take() else { return id };
        let mut retired = Core::new(session.core.ip(), now);
        retired.mark_closed();
        let newer = mem::replace(&mut session.core, retired);
        self.sessions.reap_if_finished(id);
        let token = token::token(Role::Device, older.slot as usize);
        let both = Interest::READABLE | Interest::WRITABLE;
        let Some(tcp) = device.transport.tcp_mut() else { return id };
        if let Err(error) = self.io.registry.reregister(tcp, token, both) {
            error!("{} cannot take over: {error}", self.sessions.log_prefix(older));
            return id;
        }
        if let Some(session) = self.sessions.live(older) {
            session.mqtt = Some(device);
            session.linger_until = None;
        }
        self.drive(older, |core, cx| core.take_over(newer, cx));
        older
    }

    pub(crate) fn refuse_connect(&mut self, id: SessionId, code: ConnectReturnCode) {
        let now = self.io.now;
        self.io.metrics.refused(code);
        let ip = self.sessions.get(id).map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |session| session.core.ip());
        self.sessions.write_mqtt(id, &mut self.io, |out| encode::connack(out, code));
        if !matches!(code, ConnectReturnCode::BadCredentials | ConnectReturnCode::NotAuthorised) {
            return;
        }
        let delay = self.mqtt.auth_throttle.failed(ip, now);
        if let Some(device) = self.sessions.live(id).and_then(|session| session.mqtt.as_mut())
            && !delay.is_zero()
        {
            device.hold(now + delay);
        }
    }

    pub(crate) fn close_device(&mut self, id: SessionId, reason: &CloseReason) {
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
            Some(device) => {
                device.closing = true;
                device.counted = None;
                let from = device.hold_until().unwrap_or(now);
                session.linger_until = Some(Box::new(from + LINGER));
                self.sessions.mark_dirty(id);
            }
            None => self.sessions.reap_if_finished(id),
        }
    }

    fn log_close(&mut self, id: SessionId, reason: &CloseReason) {
        let prefix = self.sessions.log_prefix(id);
        match reason {
            CloseReason::Refused(code, _) => {
                let Some(ip) = self.sessions.get(id).map(|session| session.core.ip()) else { return };
                if !self.warn_of_address(ip, &format!("{prefix} {reason}")) {
                    return;
                }
                let kind = match code {
                    ConnectReturnCode::ServerUnavailable => RecentErrorKind::TooManyDevices,
                    _ => RecentErrorKind::LoginRefused,
                };
                self.record_session_error(id, kind, &format!("{ip} {reason}"));
            }
            CloseReason::HelloVersion(_) => {
                let Some(ip) = self.sessions.get(id).map(|session| session.core.ip()) else { return };
                if !self.warn_of_address(ip, &format!("{prefix} closed: {reason}")) {
                    return;
                }
                self.record_session_error(id, RecentErrorKind::HelloVersion, &reason.to_string());
            }
            // A device that was let in: whoever looks after it should know. Strangers are none of ours.
            CloseReason::Protocol(_) | CloseReason::UnexpectedPacket(_) | CloseReason::MemoryLimit
                if self.sessions.client_id(id).is_some() =>
            {
                let Some(ip) = self.sessions.get(id).map(|session| session.core.ip()) else { return };
                self.warn_of_address(ip, &format!("{prefix} closed: {reason}"));
            }
            _ => debug!("{prefix} closed: {reason}"),
        }
    }

    /// Warns of what an address did, if that deserves a line. Whether it did.
    fn warn_of_address(&mut self, ip: IpAddr, sentence: &str) -> bool {
        let worthy = self.mqtt.refusal_log.allows(ip, self.io.now);
        match worthy {
            Some(0) => warn!("{sentence}"),
            Some(suppressed) => warn!("{sentence} ({suppressed} more from this address)"),
            None => debug!("{sentence}"),
        }
        worthy.is_some()
    }
}
