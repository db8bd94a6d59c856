//! The device's connection: CONNECT, admission, loss, reconnection, protocol errors.

use std::iter;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::super::action::{Action, Admission, CloseReason, Counter, EndReason, LogEvent};
use super::super::context::Context;
use super::super::deadlines::CoarseInstant;
use super::super::mcp::ToolCache;
use super::{Core, Notice, SessionPhase};
use crate::config::{Config, KeyFingerprint, MacDenial};
use crate::labels::labelled_enum;
use crate::proto::identity::{self, BadClientId, ClientId};
use crate::proto::mqtt::{Connect, ConnectReturnCode, Malformed};

/// A device that was not heard of any more, or for so long only, after the end of its call may not have heard of that.
const END_IS_HEARD: Duration = Duration::from_secs(10);
/// How long a device that may not have heard of the end of its call may say hello before it is told. Firmware up to 2.4 listens or
/// speaks as before after a reconnection, and obeys a goodbye with the id of its call; in no call it ignores it.
const NOTICE_DELAY: Duration = Duration::from_millis(500);

labelled_enum! {
    /// The key that a device's password was made with.
    pub enum LoginKey {
        /// `mqtt.signature_key`.
        Current => "current",
        /// An older key: one of `mqtt.previous_signature_keys`, or one that was replaced after the device had logged in.
        Previous => "previous",
        /// None: there was no key when the device logged in, or its client id is one that carries no signature.
        None => "none",
    }
}

impl Core {
    /// Whether the device proved at login who it is.
    pub fn is_proven(&self) -> bool {
        self.login_key.is_some()
    }

    /// The key that the device logged in with, seen from the current one.
    pub fn login_key(&self, current: Option<KeyFingerprint>) -> LoginKey {
        match self.login_key {
            None => LoginKey::None,
            key if key == current => LoginKey::Current,
            Some(_) => LoginKey::Previous,
        }
    }

    // ----- the device's connection --------------------------------------------------------------------------------

    /// The device sent something. Only that restarts its keep alive timer.
    pub fn refresh_keep_alive(&mut self, now: Instant) {
        if self.phase == SessionPhase::Online {
            let timeout = self.keep_alive_timeout();
            self.deadline = if timeout.is_zero() {
                CoarseInstant::NEVER
            } else {
                CoarseInstant::at(now + timeout, self.since)
            };
        }
    }

    /// When the device was last heard of. Now, if it has no keep alive.
    fn last_received(&self, now: Instant) -> Instant {
        let timeout = self.keep_alive_timeout();
        self.deadline.instant(self.since).unwrap_or(now).checked_sub(timeout).unwrap_or(now).min(now)
    }

    /// MQTT 3.1.1 section 3.1.2.10: 1.5 times the keep alive. Zero: the device has none.
    fn keep_alive_timeout(&self) -> Duration {
        Duration::from_millis(u64::from(self.keep_alive) * 1500)
    }

    /// The connection's first byte cannot begin a CONNECT.
    pub fn on_invalid_first_byte(&mut self, first: u8, cx: &mut Context<'_>) {
        let what = match first {
            22 => CloseReason::TLS_ON_PLAIN_PORT,
            _ => "the first byte is not that of a CONNECT",
        };
        self.reject_packet(what, cx);
    }

    /// A load balancer has sent the client's address in a PROXY header: it replaces the connection's own.
    pub fn set_client_ip(&mut self, ip: IpAddr) {
        if self.phase == SessionPhase::AwaitingConnect {
            self.ip = ip;
        }
    }

    /// The device sent bytes that are no packet.
    pub fn on_malformed_packet(&mut self, malformed: Malformed, cx: &mut Context<'_>) {
        match (self.phase, malformed) {
            (SessionPhase::AwaitingConnect, Malformed::UnsupportedLevel(_)) => {
                self.refuse_connect(ConnectReturnCode::UnsupportedLevel, "protocol level not supported", cx);
            }
            _ => self.close_with_error(CloseReason::Protocol(malformed), cx),
        }
    }

    /// The connection ended without DISCONNECT: its call is kept for `mqtt.resume_grace_s`.
    pub fn on_connection_lost(&mut self, cx: &mut Context<'_>) {
        self.suspend_or_close(CloseReason::Disconnected, cx);
    }

    /// The device does not read what it is sent. Handled like a lost connection.
    pub fn on_slow_reader(&mut self, cx: &mut Context<'_>) {
        self.suspend_or_close(CloseReason::SlowReader, cx);
    }

    /// The device's buffers take more than its share of the memory: its connection is closed and its call ends, which frees them.
    pub fn on_memory_limit(&mut self, cx: &mut Context<'_>) {
        self.close_with_error(CloseReason::MemoryLimit, cx);
    }

    pub(super) fn suspend_or_close(&mut self, reason: CloseReason, cx: &mut Context<'_>) {
        if self.phase == SessionPhase::Closed || self.phase == SessionPhase::AwaitingReconnect {
            return;
        }
        let grace = cx.config.mqtt.resume_grace;
        self.fail_commands(cx);
        if self.has_call()
            && !grace.is_zero()
            && !self.cannot_return()
            && let Some(call) = &mut self.call
        {
            call.on_device_lost(cx.now);
            self.phase = SessionPhase::AwaitingReconnect;
            self.deadline = CoarseInstant::at(cx.now + grace, self.since);
            cx.log(LogEvent::ConnectionLost { kept: grace, why: reason.clone() });
            cx.out.push(Action::CloseDevice(reason));
            return;
        }
        self.end_call_unless_closing(EndReason::DeviceLost, cx);
        self.close(reason, cx);
    }

    /// The device did not reconnect in time. The call is kept while its datagrams arrive.
    pub(super) fn on_grace_expired(&mut self, cx: &mut Context<'_>) {
        let kept_until = self.call.as_ref().and_then(|call| call.kept_until(cx.config.mqtt.resume_grace));
        match kept_until.filter(|at| *at > cx.now) {
            Some(at) => self.deadline = CoarseInstant::at(at, self.since),
            None => self.end_call(EndReason::DeviceLost, cx),
        }
    }

    pub(super) fn reject_packet(&mut self, what: &'static str, cx: &mut Context<'_>) {
        self.close_with_error(CloseReason::UnexpectedPacket(what), cx);
    }

    pub(super) fn close_with_error(&mut self, reason: CloseReason, cx: &mut Context<'_>) {
        self.end_call(EndReason::DeviceError, cx);
        self.close(reason, cx);
    }

    pub(super) fn close(&mut self, reason: CloseReason, cx: &mut Context<'_>) {
        if self.phase == SessionPhase::Closed {
            return;
        }
        let heard_at = self.last_received(cx.now);
        self.phase = SessionPhase::Closed;
        self.deadline = CoarseInstant::NEVER;
        self.fail_commands(cx);
        self.mcp = ToolCache::Disabled;
        if let Some(cold) = &mut self.cold {
            let untold = match cold.pending_notice.take() {
                Some((_, Notice::CallEnded(id))) => Some(id),
                _ => cold
                    .last_call
                    .take_if(|(ended, _)| *ended == cx.now || *ended + END_IS_HEARD > heard_at)
                    .map(|(_, id)| id),
            };
            if let (Some(client_id), Some(session_id)) = (&self.client_id, untold) {
                cx.ended_calls.remember(client_id, session_id, cx.now);
            }
        }
        cx.out.push(Action::CloseDevice(reason));
    }

    // ----- admission ----------------------------------------------------------------------------------------------

    pub(super) fn on_connect(&mut self, connect: &Connect<'_>, cx: &mut Context<'_>) {
        let id = match ClientId::parse(connect.client_id) {
            Ok(id) => id,
            Err(bad) => {
                let why = match bad {
                    BadClientId::Long => "client id is longer than 256 bytes",
                    _ => "client id is not group@@@mac@@@uuid",
                };
                return self.refuse_connect(ConnectReturnCode::IdentifierRejected, why, cx);
            }
        };
        let checked = authenticate(&id, connect, cx.config);
        // The log names refused devices too.
        self.client_id = Some(id);
        self.login_key = match checked {
            Ok(key) => key,
            Err((code, why)) => return self.refuse_connect(code, why, cx),
        };
        if let Some(denial) = self.mac_denial(cx) {
            return self.refuse_connect(ConnectReturnCode::NotAuthorised, denial.reason(), cx);
        }
        self.keep_alive = connect.keep_alive;
        self.phase = SessionPhase::Admitting;
        cx.out.push(Action::Admit);
    }

    /// Why the device may not connect, which is counted. Only asked about devices whose login is good otherwise: nobody else
    /// learns the lists.
    fn mac_denial(&self, cx: &mut Context<'_>) -> Option<MacDenial> {
        let denial = cx.config.mqtt.mac_denial(self.client_id.as_ref()?.mac())?;
        cx.count(Counter::MacDenied(denial));
        Some(denial)
    }

    /// The configuration has changed. A device that may not connect any more is disconnected; time limits are deadlines of
    /// running calls.
    pub fn on_reload(&mut self, cx: &mut Context<'_>) {
        if self.is_present()
            && let Some(denial) = self.mac_denial(cx)
        {
            self.end_call(EndReason::Operator, cx);
            self.close(CloseReason::MacDenied(denial), cx);
        }
        self.on_timeout(cx);
    }

    fn refuse_connect(&mut self, code: ConnectReturnCode, why: &'static str, cx: &mut Context<'_>) {
        cx.out.push(Action::RefuseConnect(code));
        self.close(CloseReason::Refused(code, why), cx);
    }

    /// The shell's answer to [`Action::Admit`].
    pub fn on_admission(&mut self, admission: Admission, cx: &mut Context<'_>) {
        if self.phase != SessionPhase::Admitting {
            return;
        }
        let full = match admission {
            Admission::Accepted => return self.accept_connect(false, cx),
            Admission::ConnectionLimit => "max_connections is reached",
            Admission::PerIpLimit => "max_connections_per_ip is reached",
            Admission::MacLimit => "16 client ids with its MAC are connected",
        };
        self.refuse_connect(ConnectReturnCode::ServerUnavailable, full, cx);
    }

    fn accept_connect(&mut self, resumed: bool, cx: &mut Context<'_>) {
        self.phase = SessionPhase::Online;
        self.since = cx.now;
        self.has_spoken = false;
        self.refresh_keep_alive(cx.now);
        cx.out.push(Action::AcceptConnect);
        cx.log(LogEvent::Connected { resumed });
        if let Some(client_id) = &self.client_id
            && let Some(ended) = cx.ended_calls.take(client_id, cx.now)
        {
            let notice = (cx.now + NOTICE_DELAY, Notice::CallEnded(ended));
            self.cold.get_or_insert_default().pending_notice = Some(notice);
        }
        let earlier = std::mem::replace(&mut self.mcp, ToolCache::Disabled);
        self.mcp = ToolCache::start(earlier, self.session_id(), cx);
    }

    /// `newer`, with the same client id, is accepted, and this core has a call: this core continues with that connection.
    pub fn take_over(&mut self, newer: Core, cx: &mut Context<'_>) {
        if self.phase == SessionPhase::Closed {
            return;
        }
        self.ip = newer.ip;
        self.client_id = newer.client_id;
        self.login_key = newer.login_key;
        self.keep_alive = newer.keep_alive;
        self.accept_connect(true, cx);
        self.with_call(cx, |call, device, cx| call.on_device_reconnected(device.ip, cx));
    }

    /// The device of this call has connected to another gateway, which passes its packets on: from this address.
    pub fn continue_through_other_gateway(&mut self, ip: IpAddr, cx: &mut Context<'_>) {
        if self.phase != SessionPhase::AwaitingReconnect {
            return;
        }
        self.ip = ip;
        // The other gateway closes a connection that is silent.
        self.keep_alive = 0;
        self.accept_connect(true, cx);
        self.with_call(cx, |call, device, cx| call.on_device_reconnected(device.ip, cx));
    }

    /// Whether there is a call, or something to be shown at its end.
    pub fn has_call_or_notice(&self) -> bool {
        self.has_call() || self.cold.as_ref().is_some_and(|cold| cold.pending_notice.is_some())
    }

    /// The call is over, and the device belongs to the gateway that it is connected to.
    pub fn leave_to_other_gateway(&mut self, cx: &mut Context<'_>) {
        if let Some(cold) = &mut self.cold {
            (cold.pending_notice, cold.last_call) = (None, None);
        }
        self.close(CloseReason::AtOtherGateway, cx);
    }

    /// Another connection with the same client id was accepted, and there is no call to continue.
    pub fn on_replaced(&mut self, cx: &mut Context<'_>) {
        self.end_call_unless_closing(EndReason::Replaced, cx);
        self.close(CloseReason::TakenOver, cx);
    }

    /// Another client id with this MAC takes its place.
    pub fn on_displaced(&mut self, cx: &mut Context<'_>) {
        self.end_call_unless_closing(EndReason::Replaced, cx);
        self.close(CloseReason::Displaced, cx);
    }
}

/// The key that the password was made with; `None` when the device is accepted without proof.
fn authenticate(
    id: &ClientId,
    connect: &Connect<'_>,
    config: &Config,
) -> Result<Option<KeyFingerprint>, (ConnectReturnCode, &'static str)> {
    let Some(key) = &config.mqtt.signature_key else { return Ok(None) };
    if id.uuid().is_none() {
        return match config.mqtt.allow_legacy_ids {
            true => Ok(None),
            false => Err((
                ConnectReturnCode::NotAuthorised,
                "two-part client ids are not allowed (mqtt.allow_legacy_ids)",
            )),
        };
    }
    let (Some(user_name), Some(password)) = (connect.user_name, connect.password) else {
        return Err((ConnectReturnCode::BadCredentials, "user name or password missing"));
    };
    let mut keys = iter::once(key).chain(&config.mqtt.previous_signature_keys);
    let key = keys
        .find(|key| identity::verify_password(key.as_bytes(), connect.client_id, user_name, password))
        .ok_or((ConnectReturnCode::BadCredentials, "password does not match MQTT_SIGNATURE_KEY"))?;
    if !identity::is_valid_user_name(user_name) {
        return Err((ConnectReturnCode::BadCredentials, "user name is not base64 of a JSON object"));
    }
    Ok(Some(key.fingerprint()))
}
