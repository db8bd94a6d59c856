//! One device: its MQTT session, and at most one call.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::action::{CloseReason, Context, DropReason, EndReason};
use super::call::{Call, CallResult, DeviceIdentity, Uplink};
use super::deadlines::CoarseInstant;
use super::mcp::ToolCache;
use super::media::{Encrypted, UdpPeer};
use super::server_health::ServerHealth;
use crate::config::Config;
use crate::proto::identity::ClientId;
use crate::proto::message::DeviceHello;

mod commands;
mod connection;
mod device_call;
mod messages;

pub use self::commands::Delivery;
use self::commands::PendingCommand;

/// A connection that has not sent CONNECT by now is closed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// No CONNECT is longer than this.
const MAX_CONNECT_BYTES: usize = 4096;

/// A device's session: what it may do now, and its call. Tens of thousands of them only wait, so it is small.
pub struct Core {
    phase: SessionPhase,
    /// The device's address, as seen by us or told by a trusted load balancer.
    ip: IpAddr,
    /// Of the CONNECT, in seconds; 0 for none.
    keep_alive: u16,
    /// What the phase waits for: CONNECT, a sign of life, or the device's return.
    deadline: CoarseInstant,
    client_id: Option<ClientId>,
    /// When the connection came, or later was let in.
    since: Instant,
    call: Option<Box<Call>>,
    mcp: ToolCache,
    cold: Option<Box<ColdState>>,
}

/// What a device has that did more than log in.
#[derive(Default)]
struct ColdState {
    /// Of a hello for which the shell is minting a grant.
    pending_hello: Option<DeviceHello>,
    /// The session id last given: a goodbye must carry it.
    last_session_id: Option<Box<str>>,
    /// What operators asked the device.
    commands: VecDeque<PendingCommand>,
    /// The gateway drains: without a call the device is to go then.
    drain_deadline: Option<Instant>,
    /// Hellos in a row that were not answered, and when the last of them came.
    unanswered_hellos: Option<(u8, Instant)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionPhase {
    AwaitingConnect,
    /// The credentials are good; the shell looks for a place.
    Admitting,
    Online,
    /// The connection is lost, the call is kept.
    AwaitingReconnect,
    /// Nothing is served any more.
    Closed,
}

impl Core {
    /// A fresh connection from this address.
    pub fn new(ip: IpAddr, now: Instant) -> Self {
        Self {
            phase: SessionPhase::AwaitingConnect,
            ip,
            keep_alive: 0,
            deadline: CoarseInstant::at(now + CONNECT_TIMEOUT, now),
            client_id: None,
            since: now,
            call: None,
            mcp: ToolCache::Disabled,
            cold: None,
        }
    }

    /// The client id of the CONNECT, good or refused.
    pub fn client_id(&self) -> Option<&ClientId> {
        self.client_id.as_ref()
    }

    /// The device's address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Whether the device is connected and let in.
    pub fn is_online(&self) -> bool {
        self.phase == SessionPhase::Online
    }

    /// Whether packets of the device may be decoded: not before the shell has found it a place, not after the end.
    pub fn accepts_packets(&self) -> bool {
        matches!(self.phase, SessionPhase::AwaitingConnect | SessionPhase::Online)
    }

    /// Whether CONNECT is still to come: 4 KiB at most, and nothing but CONNECT.
    pub fn awaits_connect(&self) -> bool {
        self.phase == SessionPhase::AwaitingConnect
    }

    /// The longest remaining length to be decoded now, in bytes.
    pub fn max_packet_bytes(&self, config: &Config) -> usize {
        if self.awaits_connect() { MAX_CONNECT_BYTES } else { config.mqtt.max_payload_size }
    }

    /// Bytes that are kept for the device and its chat server: texts and frames that wait or are said again, tools.
    pub fn retained_bytes(&self) -> usize {
        self.call.as_ref().map_or(0, |call| call.retained_bytes()) + self.mcp.retained_bytes()
    }

    /// Whether a call goes on that another connection of the device could take over.
    pub fn has_call(&self) -> bool {
        self.call.as_ref().is_some_and(|call| !call.is_closing())
    }

    /// Whether the device is gone for good: its client id is free.
    pub fn is_closed(&self) -> bool {
        self.phase == SessionPhase::Closed
    }

    /// Nothing is left to decide: the session only sees to the end of a socket.
    pub fn mark_closed(&mut self) {
        self.phase = SessionPhase::Closed;
        self.deadline = CoarseInstant::NEVER;
    }

    /// Whether anything is left to do: a call may outlive its device.
    pub fn is_finished(&self) -> bool {
        self.phase == SessionPhase::Closed && self.call.is_none()
    }

    /// The ssrc of the call.
    pub fn ssrc(&self) -> Option<u32> {
        self.call.as_ref().map(|call| call.ssrc())
    }

    /// The session id that the device was given in its call.
    fn session_id(&self) -> Option<&str> {
        self.call.as_ref().and_then(|call| call.session_id())
    }

    /// When to call [`Core::on_timeout`] next.
    pub fn deadline(&self) -> Option<Instant> {
        let call = self.call.as_ref().and_then(|call| call.deadline());
        let mcp = self.mcp.deadline(self.since);
        let commands =
            self.cold.as_ref().and_then(|cold| cold.commands.front().map(|pending| pending.deadline));
        [self.deadline.instant(self.since), call, mcp, commands, self.drain_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    // ----- audio, the hot path: no action, no allocation, borrowed results ----------------------------------------

    /// One datagram with this call's ssrc, decrypted in place, and framed if it goes to the chat server.
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

    /// The packet that [`Core::uplink`] returned, of so many Opus bytes, found no room in the chat server's connection.
    pub fn on_uplink_dropped(&mut self, payload: usize) {
        if let Some(call) = &mut self.call {
            call.on_uplink_dropped(payload);
        }
    }

    /// One binary frame of the chat server, encrypted into `out` (at least 16 + 1,400 bytes). None: it waits, and
    /// [`Core::release_held`] must be called.
    pub fn downlink(
        &mut self,
        frame: &[u8],
        out: &mut [u8],
        config: &Config,
        servers: &mut ServerHealth,
        now: Instant,
    ) -> Result<Option<Encrypted>, DropReason> {
        let call = self.call.as_mut().ok_or(DropReason::NoPeer)?;
        call.downlink(frame, out, config, servers, now)
    }

    /// After a datagram that made the device's address known, or a frame that was held: lets go what need not wait.
    pub fn release_held(&mut self, cx: &mut Context<'_>) {
        self.with_call(cx, |call, _, cx| call.release_held(cx));
    }

    // ----- time and the end ---------------------------------------------------------------------------------------

    /// Does what is due. Calling it early, or for nothing, is harmless.
    pub fn on_timeout(&mut self, cx: &mut Context<'_>) {
        if self.deadline.instant(self.since).is_some_and(|at| at <= cx.now) {
            self.deadline = CoarseInstant::NEVER;
            match self.phase {
                SessionPhase::AwaitingConnect => self.close(CloseReason::ConnectTimeout, cx),
                SessionPhase::Online => self.suspend_or_close(CloseReason::KeepAlive, cx),
                SessionPhase::AwaitingReconnect => self.end_call(EndReason::DeviceLost, cx),
                SessionPhase::Admitting | SessionPhase::Closed => {}
            }
        }
        self.mcp.on_timeout(self.since, cx);
        self.expire_commands(cx);
        self.with_call(cx, Call::on_timeout);
        if self.drain_deadline().is_some_and(|at| at <= cx.now) {
            self.close(CloseReason::Draining, cx);
        }
    }

    /// The gateway drains. A device in a call keeps it to its end; without one it is disconnected at `leave_at`, and a
    /// call that it begins until then is served. Who is not let in yet goes at once, and so does a call whose device lost
    /// its connection: it cannot come back here.
    pub fn drain(&mut self, leave_at: Instant, cx: &mut Context<'_>) {
        self.cold.get_or_insert_default().drain_deadline = Some(leave_at);
        match self.phase {
            SessionPhase::AwaitingConnect | SessionPhase::Admitting => self.close(CloseReason::Draining, cx),
            SessionPhase::AwaitingReconnect => self.end_call(EndReason::DeviceLost, cx),
            SessionPhase::Online | SessionPhase::Closed => {}
        }
    }

    fn drain_deadline(&self) -> Option<Instant> {
        let cold = self.cold.as_ref()?;
        let is_idle = self.phase == SessionPhase::Online && !self.has_call() && cold.pending_hello.is_none();
        cold.drain_deadline.filter(|_| is_idle)
    }

    /// The gateway takes no device back.
    fn is_draining(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| cold.drain_deadline.is_some())
    }

    /// The gateway stops: the device in a call is told goodbye, the chat server gets 1001.
    pub fn shutdown(&mut self, cx: &mut Context<'_>) {
        self.end_call(EndReason::Shutdown, cx);
        self.close(CloseReason::Shutdown, cx);
    }

    /// Lets the call act, and ends it if it cannot go on.
    fn with_call(
        &mut self,
        cx: &mut Context<'_>,
        act: impl FnOnce(&mut Call, DeviceIdentity<'_>, &mut Context<'_>) -> CallResult,
    ) {
        if let (Some(call), Some(id)) = (&mut self.call, &self.client_id)
            && let Err(reason) = act(call, DeviceIdentity { id, ip: self.ip }, cx)
        {
            self.end_call(reason, cx);
        }
    }

    /// The device is gone. A call that only waits to pass on its last words goes on without it.
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
        if call.session_id().is_none() {
            self.cold.get_or_insert_default().unanswered_hellos =
                Some((call.unanswered_hellos, call.started_at()));
        }
        if let Some(id) = call.finish(reason, cx) {
            self.cold.get_or_insert_default().last_session_id = Some(id);
        }
        if self.phase == SessionPhase::AwaitingReconnect {
            self.close(CloseReason::Disconnected, cx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tens of thousands of them only wait.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn an_idle_device_takes_at_most_88_bytes() {
        assert!(size_of::<Core>() <= 88, "{}", size_of::<Core>());
    }
}
