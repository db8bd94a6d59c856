//! One device: its MQTT session, and at most one call.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::action::{CloseReason, DropReason, Encrypted, EndReason, UdpPeer};
use super::call::{Call, CallResult, DeviceIdentity, FrameSpace, Uplink};
use super::context::Context;
use super::deadlines::CoarseInstant;
use super::mcp::ToolCache;
use super::server_health::ServerHealth;
use crate::config::{Config, KeyFingerprint};
use crate::proto::identity::ClientId;
use crate::proto::message::{self, DeviceHello};

mod commands;
mod connection;
mod device_call;
mod messages;

pub use self::commands::Delivery;
use self::commands::PendingCommand;
pub use self::connection::LoginKey;

/// A connection that sends no CONNECT for this long is closed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after a goodbye the reason is shown: the device clears its screen when it handles the goodbye.
const ALERT_DELAY: Duration = Duration::from_millis(300);
/// The longest CONNECT that is accepted.
const MAX_CONNECT_BYTES: usize = 4096;

/// A device's session and its call. Tens of thousands of them are idle, so it is small.
pub struct Core {
    phase: SessionPhase,
    /// The device's address: that of its connection, or the one in the PROXY header of a trusted load balancer.
    ip: IpAddr,
    /// The keep alive of the CONNECT in seconds; 0 is none.
    keep_alive: u16,
    /// When the phase ends: no CONNECT, nothing received, or no reconnection until then.
    deadline: CoarseInstant,
    client_id: Option<ClientId>,
    /// The signature key of its password; `None` for a device that proved nothing.
    login_key: Option<KeyFingerprint>,
    /// When the connection was opened; from CONNECT on, when it was accepted.
    since: Instant,
    /// The device has published something other than MCP since its CONNECT.
    has_spoken: bool,
    call: Option<Box<Call>>,
    mcp: ToolCache,
    cold: Option<Box<ColdState>>,
}

/// State that only some devices have.
#[derive(Default)]
struct ColdState {
    pending_hello: Option<PendingHello>,
    /// What to send unless the device says hello, and when.
    pending_notice: Option<(Instant, Notice)>,
    /// The session id of the last call, for a goodbye to a message without a call, and when that call ended.
    last_call: Option<(Instant, Box<str>)>,
    /// Commands of operators, oldest first.
    commands: VecDeque<PendingCommand>,
    /// The gateway is draining: the device is disconnected then, or later at the end of its call.
    drain_deadline: Option<Instant>,
    /// Although the gateway is draining, a device that loses its connection can come back to its call.
    may_return: bool,
}

/// What a device is told outside a call.
enum Notice {
    /// What it shows when it has handled the goodbye of its last call.
    Alert(Box<str>),
    /// The session id of a call that ended when the device may not have heard of it.
    CallEnded(Box<str>),
}

/// A hello for which the shell is generating credentials.
struct PendingHello {
    hello: DeviceHello,
    /// The unanswered call that it replaces, whose dial goes on.
    replaced: Option<Box<Call>>,
    /// `mqtt.hello_limit` is exceeded: it is answered without a dial.
    limited: bool,
    /// The device was speaking when its connection was lost: it may still be.
    may_be_speaking: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionPhase {
    AwaitingConnect,
    /// The credentials are valid; the shell checks its limits.
    Admitting,
    Online,
    /// The connection is lost, but the call is kept.
    AwaitingReconnect,
    /// The connection is closed, or is to be closed.
    Closed,
}

impl Core {
    /// A new connection from this address.
    pub fn new(ip: IpAddr, now: Instant) -> Self {
        Self {
            phase: SessionPhase::AwaitingConnect,
            ip,
            keep_alive: 0,
            deadline: CoarseInstant::at(now + CONNECT_TIMEOUT, now),
            client_id: None,
            login_key: None,
            since: now,
            has_spoken: false,
            call: None,
            mcp: ToolCache::Disabled,
            cold: None,
        }
    }

    /// The client id of the CONNECT, even if that was refused.
    pub fn client_id(&self) -> Option<&ClientId> {
        self.client_id.as_ref()
    }

    /// The device's address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Whether the device is connected and accepted.
    pub fn is_online(&self) -> bool {
        self.phase == SessionPhase::Online
    }

    /// Whether packets of the device may be decoded: not while the shell decides about its admission, and not after the end.
    pub fn accepts_packets(&self) -> bool {
        matches!(self.phase, SessionPhase::AwaitingConnect | SessionPhase::Online)
    }

    /// Whether the device has not sent its CONNECT yet.
    pub fn awaits_connect(&self) -> bool {
        self.phase == SessionPhase::AwaitingConnect
    }

    /// The largest remaining length that is accepted now, in bytes.
    pub fn max_packet_bytes(&self, config: &Config) -> usize {
        if self.awaits_connect() { MAX_CONNECT_BYTES } else { config.mqtt.max_payload_size }
    }

    /// The bytes that are stored for the device and its chat server: queued texts and frames, texts to be repeated, and the
    /// tools that it has listed so far. Complete lists have a [limit](super::ToolLists) of their own.
    pub fn retained_bytes(&self) -> usize {
        self.call.as_ref().map_or(0, |call| call.retained_bytes()) + self.mcp.retained_bytes()
    }

    /// Whether there is a call that the device has not left.
    pub fn has_call(&self) -> bool {
        self.call.as_ref().is_some_and(|call| !call.is_closing())
    }

    /// Whether the connection was lost in the call, which is kept.
    pub fn awaits_reconnect(&self) -> bool {
        self.phase == SessionPhase::AwaitingReconnect
    }

    /// Whether the connection is closed and will not be resumed.
    pub fn is_closed(&self) -> bool {
        self.phase == SessionPhase::Closed
    }

    /// Closes the session without any action: only its socket remains to be closed.
    pub fn mark_closed(&mut self) {
        self.phase = SessionPhase::Closed;
        self.deadline = CoarseInstant::NEVER;
    }

    /// Whether the session can be removed. A call may outlive its device.
    pub fn is_finished(&self) -> bool {
        self.phase == SessionPhase::Closed && self.call.is_none()
    }

    /// The ssrc of the call, if there is one.
    pub fn ssrc(&self) -> Option<u32> {
        self.call.as_ref().map(|call| call.ssrc())
    }

    /// The session id that the device was given in its call.
    pub fn session_id(&self) -> Option<&str> {
        self.call.as_ref().and_then(|call| call.session_id())
    }

    /// The session id that stands in log lines of the call: the one the device was given, or the gateway's own before that.
    pub fn logged_session_id(&self) -> Option<&str> {
        self.call.as_ref().map(|call| call.session_id().unwrap_or_else(|| call.own_session_id()))
    }

    /// Reads what a packet of the call needs, and does nothing with it. Done for several calls before their packets, these reads wait
    /// for memory at the same time; the packets would wait one after the other.
    pub fn touch(&self) {
        if let Some(call) = &self.call {
            call.touch();
        }
    }

    /// When to call [`Core::on_timeout`] next.
    pub fn deadline(&self) -> Option<Instant> {
        let call = self.call.as_ref().and_then(|call| call.deadline());
        let mcp = self.mcp.deadline(self.since);
        let notice = self.cold.as_ref().and_then(|cold| cold.pending_notice.as_ref()).map(|(at, _)| *at);
        let commands = self.cold.as_ref();
        let commands = commands.and_then(|cold| cold.commands.iter().map(|pending| pending.deadline).min());
        [self.deadline.instant(self.since), call, mcp, commands, notice, self.drain_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    // ----- audio: no actions, no allocations, borrowed results ----------------------------------------------------

    /// Decrypts one datagram with this call's ssrc in place, and frames it if it is for the chat server.
    pub fn uplink<'b>(
        &mut self,
        from: UdpPeer,
        datagram: &'b mut [u8],
        config: &Config,
        now: Instant,
    ) -> Result<Uplink<'b>, DropReason> {
        let call = self.call.as_mut().ok_or(DropReason::UnknownSsrc)?;
        call.uplink(from, datagram, config, now)
    }

    /// The next packet of a source that was just taken for the device's ([`Uplink::Path`]). It is written to `datagram`.
    pub fn next_released<'b>(&mut self, datagram: &'b mut Vec<u8>) -> Option<Result<Uplink<'b>, DropReason>> {
        self.call.as_mut()?.next_released(datagram)
    }

    /// The packet that [`Core::uplink`] returned, with this many Opus bytes, did not fit into the chat server's write buffer.
    pub fn on_uplink_dropped(&mut self, payload: usize) {
        if let Some(call) = &mut self.call {
            call.on_uplink_dropped(payload);
        }
    }

    /// Encrypts one binary frame of the chat server. `None`: the frame is held, and [`Core::release_held`] must be called.
    pub fn downlink(
        &mut self,
        frame: &[u8],
        space: FrameSpace<'_>,
        config: &Config,
        servers: &mut ServerHealth,
        now: Instant,
    ) -> Result<Option<Encrypted>, DropReason> {
        let call = self.call.as_mut().ok_or(DropReason::NoPeer)?;
        call.downlink(frame, space, config, servers, now)
    }

    /// The device's first datagram, or the first after a reconnection: releases what waited for it.
    pub fn on_device_heard(&mut self, cx: &mut Context<'_>) {
        self.with_call(cx, |call, _, cx| call.on_device_heard(cx));
    }

    /// Releases held audio and text that need not wait any longer. To be called after each held frame.
    pub fn release_held(&mut self, cx: &mut Context<'_>) {
        self.with_call(cx, |call, _, cx| call.release_held(cx));
    }

    // ----- timers and the end -------------------------------------------------------------------------------------

    /// Handles the deadlines that have passed. Without one, it does nothing.
    pub fn on_timeout(&mut self, cx: &mut Context<'_>) {
        if self.deadline.instant(self.since).is_some_and(|at| at <= cx.now) {
            self.deadline = CoarseInstant::NEVER;
            match self.phase {
                SessionPhase::AwaitingConnect => self.close(CloseReason::ConnectTimeout, cx),
                SessionPhase::Online => self.suspend_or_close(CloseReason::KeepAlive, cx),
                SessionPhase::AwaitingReconnect => self.on_grace_expired(cx),
                SessionPhase::Admitting | SessionPhase::Closed => {}
            }
        }
        self.mcp.on_timeout(self.since, cx);
        self.expire_commands(cx);
        self.with_call(cx, Call::on_timeout);
        let cold = self.cold.as_mut();
        match cold.and_then(|cold| cold.pending_notice.take_if(|(at, _)| *at <= cx.now)) {
            Some((_, Notice::Alert(text))) => cx.publish(text.into()),
            Some((_, Notice::CallEnded(_))) if self.call.is_some() => {}
            Some((_, Notice::CallEnded(id))) => {
                // A device that speaks in no call listens then, and its message is answered with goodbye. An idle one ignores both.
                cx.publish(message::tts(Some(&id), "stop"));
                cx.publish(message::goodbye(Some(&id)));
            }
            None => {}
        }
        if self.drain_deadline().is_some_and(|at| at <= cx.now) {
            self.close(CloseReason::Draining, cx);
        }
    }

    /// The gateway is draining. A device is disconnected at `leave_at`, or at the end of its call if that is later. A connection
    /// that is not accepted yet is closed at once. A call whose device lost its connection ends at once, since the device cannot
    /// reconnect here.
    pub fn drain(&mut self, leave_at: Instant, cx: &mut Context<'_>) {
        self.cold.get_or_insert_default().drain_deadline = Some(leave_at);
        match self.phase {
            SessionPhase::AwaitingConnect | SessionPhase::Admitting => self.close(CloseReason::Draining, cx),
            SessionPhase::AwaitingReconnect => self.end_call(EndReason::DeviceLost, cx),
            SessionPhase::Online | SessionPhase::Closed => {}
        }
    }

    /// Another process has replaced this gateway. A device is disconnected at `leave_at`, or at the end of its call if that is later.
    /// One that loses its connection in a call can come back, since the other process hands its new connection on.
    pub fn retire(&mut self, leave_at: Instant) {
        let cold = self.cold.get_or_insert_default();
        (cold.drain_deadline, cold.may_return) = (Some(leave_at), true);
    }

    fn drain_deadline(&self) -> Option<Instant> {
        let cold = self.cold.as_ref()?;
        let is_idle = self.phase == SessionPhase::Online && !self.has_call() && cold.pending_hello.is_none();
        cold.drain_deadline.filter(|_| is_idle)
    }

    /// Whether a device that loses its connection cannot come back, since the gateway is draining.
    fn cannot_return(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| cold.drain_deadline.is_some() && !cold.may_return)
    }

    /// The gateway is stopping: a device in a call gets goodbye, its chat server is closed with 1001.
    pub fn shutdown(&mut self, cx: &mut Context<'_>) {
        self.end_call(EndReason::Shutdown, cx);
        self.close(CloseReason::Shutdown, cx);
    }

    /// Calls `act` with the call, if there is one, and ends the call if that fails.
    fn with_call(
        &mut self,
        cx: &mut Context<'_>,
        act: impl FnOnce(&mut Call, DeviceIdentity<'_>, &mut Context<'_>) -> CallResult,
    ) {
        if let (Some(call), Some(id)) = (&mut self.call, &self.client_id)
            && let Err(reason) =
                act(call, DeviceIdentity { id, ip: self.ip, is_proven: self.login_key.is_some() }, cx)
        {
            self.end_call(reason, cx);
        }
    }

    /// Ends the call, unless the device has left it already and it is only kept until the device's last texts are sent.
    fn end_call_unless_closing(&mut self, reason: EndReason, cx: &mut Context<'_>) {
        if !self.call.as_ref().is_some_and(|call| call.is_closing()) {
            self.end_call(reason, cx);
        }
    }

    fn end_call(&mut self, reason: EndReason, cx: &mut Context<'_>) {
        if let Some(cold) = &mut self.cold {
            cold.pending_hello = None;
        }
        let Some(call) = self.call.take() else { return };
        self.mcp.on_call_ended();
        let finished = call.finish(reason, cx);
        if let Some(id) = finished.session_id {
            self.cold.get_or_insert_default().last_call = Some((cx.now, id));
        }
        match finished.alert {
            Some(alert) if reason == EndReason::Shutdown => cx.publish(alert),
            Some(alert) if self.phase == SessionPhase::Online => {
                let notice = (cx.now + ALERT_DELAY, Notice::Alert(alert.into()));
                self.cold.get_or_insert_default().pending_notice = Some(notice);
            }
            _ => {}
        }
        if self.phase == SessionPhase::AwaitingReconnect {
            self.close(CloseReason::Disconnected, cx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tens of thousands of them are idle.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn an_idle_device_takes_at_most_96_bytes() {
        assert!(size_of::<Core>() <= 96, "{}", size_of::<Core>());
    }
}
