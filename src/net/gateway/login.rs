//! Devices that log in: their limits, and refusals.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use log::warn;

use crate::admin::recent_errors::RecentErrorKind;

use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::mqtt::auth_throttle;
use crate::proto::identity::{ClientId, Mac};
use crate::proto::mqtt::{ConnectReturnCode, encode};
use crate::session::{Admission, Core};
use crate::text;

/// Client ids with one MAC that may be connected at once. A device changes its id when it is bound to an account, and has one
/// after that; sessions are found by MAC, which must not take long.
const CLIENT_IDS_PER_MAC: usize = 16;

impl Gateway {
    /// Admits a device whose credentials are valid, if the limits allow it. An older connection of the same device is
    /// closed; if it has a call, its session takes the new connection over and is returned.
    pub(super) fn admit(&mut self, id: SessionId) -> Option<SessionId> {
        let client_id = self.sessions.client_id(id)?;
        let mac = client_id.mac();
        let older = self.sessions.by_client_id(client_id);
        if older.is_none() {
            match self.check_limits(id, mac) {
                Ok(Some(displaced)) => self.drive(displaced, Core::on_displaced),
                Ok(None) => {}
                Err(refused) => {
                    self.drive(id, |core, cx| core.on_admission(refused, cx));
                    return None;
                }
            }
        }
        self.mqtt.forget(id);
        self.io.metrics.admitted += 1;
        let is_proven = self.sessions.core(id)?.is_proven();
        if is_proven {
            self.end_unproven_device_calls(mac);
        }
        if let Some(older) = older {
            self.watch_client_id_changes(mac, older, id);
        }
        if let Some(older) = older
            && !self.io.config.mqtt.resume_grace.is_zero()
            && let Some(core) = self.sessions.core(older)
            && core.has_call()
            // A call from before there was a key may be a stranger's.
            && (core.is_proven() || !is_proven)
        {
            return self.take_over(id, older);
        }
        // Before the older connection closes, so that the device is connected all the time.
        self.sessions.index.add_device(mac, id);
        if let Some(older) = older {
            self.drive(older, Core::on_replaced);
        }
        self.drive(id, |core, cx| core.on_admission(Admission::Accepted, cx));
        self.drain_if_draining(id);
        None
    }

    /// Warns, once an hour, of a client id that moves from one open connection to another for the third time in a minute.
    fn watch_client_id_changes(&mut self, mac: Mac, older: SessionId, newer: SessionId) {
        let now = self.io.now;
        let address = |id| {
            let session = self.sessions.get(id)?;
            let port = session.mqtt.as_ref().filter(|mqtt| !mqtt.read_closed)?.peer_port;
            Some(SocketAddr::new(session.core.ip(), port))
        };
        let Some((older, other)) = address(older).zip(address(newer)) else { return };
        if self.client_id_changes.allows(mac, now).is_some()
            || self.client_id_warnings.allows(mac, now).is_none()
        {
            return;
        }
        let Some(client_id) = self.sessions.client_id(newer).map(ClientId::text) else { return };
        let client_id = text::shown(&client_id);
        let message = format!(
            "client id {client_id} changed its connection 3 times within a minute, last from {older} to {other}: two \
             devices with the same credentials, or one that keeps losing its connection"
        );
        warn!("{message}");
        self.record_session_error(newer, RecentErrorKind::DuplicateClientId, &message);
    }

    /// Whether one more device may log in, and the session that must be closed first, if any.
    ///
    /// # Errors
    /// The limit that the device would exceed.
    fn check_limits(&mut self, id: SessionId, mac: Mac) -> Result<Option<SessionId>, Admission> {
        let limits = &self.io.config.mqtt;
        let now = (self.sessions.index.devices(), self.sessions.index.calls());
        if !self.workers.allow(now, (1, 0), |devices, _| devices <= limits.max_connections) {
            return Err(Admission::ConnectionLimit);
        }
        let per_ip = limits.max_connections_per_ip;
        if per_ip > 0
            && self.sessions.core(id).is_some_and(|core| self.mqtt.by_address.of(core.ip()) > per_ip)
        {
            return Err(Admission::PerIpLimit);
        }
        if self.sessions.by_mac(mac).count() < CLIENT_IDS_PER_MAC {
            return Ok(None);
        }
        let is_proven = |id| self.sessions.core(id).is_some_and(|core| core.is_proven());
        let unproven = self.sessions.by_mac(mac).filter(|other| is_proven(id) && !is_proven(*other));
        let oldest = unproven.min_by_key(|other| self.sessions.core(*other).and_then(Core::online_since));
        self.io.metrics.over_mac_limit += 1;
        oldest.map(Some).ok_or(Admission::MacLimit)
    }

    /// Sends the refusal. After a failed login it is delayed, the longer the more logins from this address have failed, or not
    /// sent at all.
    pub(super) fn refuse_connect(&mut self, id: SessionId, code: ConnectReturnCode) {
        let now = self.io.now;
        self.io.metrics.refused(code);
        let ip = self.sessions.core(id).map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), Core::ip);
        let delay = match code {
            ConnectReturnCode::BadCredentials | ConnectReturnCode::NotAuthorised => {
                self.mqtt.refusals().throttle.failed(ip, now)
            }
            _ => Some(Duration::ZERO),
        };
        if delay.is_some() {
            self.write_mqtt(id, |out| encode::connack(out, code));
        }
        self.io.metrics.refusals_delayed += u64::from(delay.is_some_and(|delay| !delay.is_zero()));
        self.io.metrics.refusals_unanswered += u64::from(delay.is_none());
        let delay = delay.unwrap_or(auth_throttle::DELAY_MAX);
        if let Some(connection) = self.sessions.mqtt(id)
            && !delay.is_zero()
        {
            connection.hold(now + delay);
        }
    }
}
