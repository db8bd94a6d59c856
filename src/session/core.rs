//! One device: its MQTT session, and at most one call.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::action::{Cx, Discard, EndReason, Reason};
use super::call::{Call, Caller, Flow, Uplink};
use super::deadlines::Due;
use super::mcp::Tools;
use super::media::{Peer, Sealed};
use super::server_health::Servers;
use crate::config::Config;
use crate::proto::identity::ClientId;
use crate::proto::message::DeviceHello;

mod commands;
mod connection;
mod device_call;
mod messages;

pub use self::commands::Delivery;
use self::commands::Pending;

/// A connection that has not sent CONNECT by now is closed.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// No CONNECT is longer than this.
const MAX_CONNECT: usize = 4096;

/// A device's session: what it may do now, and its call. Tens of thousands of them only wait, so it is small.
pub struct Core {
    phase: Phase,
    /// The device's address, as seen by us or told by a trusted load balancer.
    ip: IpAddr,
    /// Of the CONNECT, in seconds; 0 for none.
    keep_alive: u16,
    /// What the phase waits for: CONNECT, a sign of life, or the device's return.
    deadline: Due,
    id: Option<ClientId>,
    /// When the connection came, or later was let in.
    since: Instant,
    call: Option<Box<Call>>,
    mcp: Tools,
    aside: Option<Box<Aside>>,
}

/// What a device has that did more than log in.
#[derive(Default)]
struct Aside {
    /// Of a hello for which the shell is minting a grant.
    hello: Option<Box<DeviceHello>>,
    /// The session id last given: a goodbye must carry it.
    last_id: Option<Box<str>>,
    /// What operators asked the device.
    commands: VecDeque<Pending>,
    /// The gateway drains: without a call the device is to go then.
    leave_at: Option<Instant>,
    /// Hellos in a row that were not answered, and when the last of them came.
    hasty: Option<(u8, Instant)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    AwaitingConnect,
    /// The credentials are good; the shell looks for a place.
    Admitting,
    Online,
    /// The connection is lost, the call is kept.
    Away,
    /// Nothing is served any more.
    Leaving,
}

impl Core {
    /// A fresh connection from this address.
    pub fn new(ip: IpAddr, now: Instant) -> Self {
        Self {
            phase: Phase::AwaitingConnect,
            ip,
            keep_alive: 0,
            deadline: Due::at(now + CONNECT_WITHIN, now),
            id: None,
            since: now,
            call: None,
            mcp: Tools::Off,
            aside: None,
        }
    }

    /// The client id of the CONNECT, good or refused.
    pub fn client_id(&self) -> Option<&ClientId> {
        self.id.as_ref()
    }

    /// The device's address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Whether the device is connected and let in.
    pub fn is_online(&self) -> bool {
        self.phase == Phase::Online
    }

    /// Whether packets of the device may be decoded: not before the shell has found it a place, not after the end.
    pub fn is_listening(&self) -> bool {
        matches!(self.phase, Phase::AwaitingConnect | Phase::Online)
    }

    /// Whether CONNECT is still to come: 4 KiB at most, and nothing but CONNECT.
    pub fn awaits_connect(&self) -> bool {
        self.phase == Phase::AwaitingConnect
    }

    /// The longest remaining length to be decoded now, in bytes.
    pub fn max_packet(&self, config: &Config) -> usize {
        if self.awaits_connect() { MAX_CONNECT } else { config.mqtt.max_payload_size }
    }

    /// Bytes that are kept for the device and its chat server: texts and frames that wait or are said again, tools.
    pub fn kept(&self) -> usize {
        self.call.as_ref().map_or(0, |call| call.kept()) + self.mcp.kept()
    }

    /// Whether a call goes on that another connection of the device could take over.
    pub fn has_call(&self) -> bool {
        self.call.as_ref().is_some_and(|call| !call.is_closing())
    }

    /// Whether the device is gone for good: its client id is free.
    pub fn is_gone(&self) -> bool {
        self.phase == Phase::Leaving
    }

    /// Nothing is left to decide: the session only sees to the end of a socket.
    pub fn retire(&mut self) {
        self.phase = Phase::Leaving;
        self.deadline = Due::NEVER;
    }

    /// Whether anything is left to do: a call may outlive its device.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Leaving && self.call.is_none()
    }

    /// The ssrc of the call.
    pub fn ssrc(&self) -> Option<u32> {
        self.call.as_ref().map(|call| call.ssrc())
    }

    /// When to call [`Core::timeout`] next.
    pub fn deadline(&self) -> Option<Instant> {
        let call = self.call.as_ref().and_then(|call| call.deadline());
        let mcp = self.mcp.deadline(self.since);
        let commands =
            self.aside.as_ref().and_then(|aside| aside.commands.front().map(|pending| pending.until));
        [self.deadline.instant(self.since), call, mcp, commands, self.leaves_at()].into_iter().flatten().min()
    }

    // ----- audio, the hot path: no action, no allocation, borrowed results ----------------------------------------

    /// One datagram with this call's ssrc, decrypted in place, and framed if it goes to the chat server.
    pub fn uplink<'b>(
        &mut self,
        from: Peer,
        datagram: &'b mut [u8],
        config: &Config,
        now: Instant,
    ) -> Result<Uplink<'b>, Discard> {
        let call = self.call.as_mut().ok_or(Discard::UnknownSsrc)?;
        call.uplink(from, datagram, config, now)
    }

    /// The packet that [`Core::uplink`] returned, of so many Opus bytes, found no room in the chat server's connection.
    pub fn unsent(&mut self, payload: usize) {
        if let Some(call) = &mut self.call {
            call.unsent(payload);
        }
    }

    /// One binary frame of the chat server, encrypted into `out` (at least 16 + 1,400 bytes). None: it waits, and
    /// [`Core::audible`] must be called.
    pub fn downlink(
        &mut self,
        frame: &[u8],
        out: &mut [u8],
        config: &Config,
        servers: &mut Servers,
        now: Instant,
    ) -> Result<Option<Sealed>, Discard> {
        let call = self.call.as_mut().ok_or(Discard::NoPeer)?;
        call.downlink(frame, out, config, servers, now)
    }

    /// After a datagram that made the device's address known, or a frame that was held: lets go what need not wait.
    pub fn audible(&mut self, cx: &mut Cx<'_>) {
        if let Some(call) = &mut self.call {
            let flow = call.settle(cx);
            self.ended(flow, cx);
        }
    }

    // ----- time and the end ---------------------------------------------------------------------------------------

    /// Does what is due. Calling it early, or for nothing, is harmless.
    pub fn timeout(&mut self, cx: &mut Cx<'_>) {
        if self.deadline.instant(self.since).is_some_and(|at| at <= cx.now) {
            self.deadline = Due::NEVER;
            match self.phase {
                Phase::AwaitingConnect => self.close(Reason::ConnectTimeout, cx),
                Phase::Online => self.lost(Reason::KeepAlive, cx),
                Phase::Away => self.end_call(EndReason::DeviceLost, cx),
                Phase::Admitting | Phase::Leaving => {}
            }
        }
        self.mcp.timeout(self.since, cx);
        self.commands_timeout(cx);
        if let (Some(call), Some(id)) = (&mut self.call, &self.id) {
            let flow = call.timeout(Caller { id, ip: self.ip }, cx);
            self.ended(flow, cx);
        }
        if self.leaves_at().is_some_and(|at| at <= cx.now) {
            self.close(Reason::Draining, cx);
        }
    }

    /// The gateway drains. A device in a call keeps it to its end; without one it is disconnected at `leave_at`, and a
    /// call that it begins until then is served. Who is not let in yet goes at once, and so does a call whose device lost
    /// its connection: it cannot come back here.
    pub fn drain(&mut self, leave_at: Instant, cx: &mut Cx<'_>) {
        self.aside.get_or_insert_default().leave_at = Some(leave_at);
        match self.phase {
            Phase::AwaitingConnect | Phase::Admitting => self.close(Reason::Draining, cx),
            Phase::Away => self.end_call(EndReason::DeviceLost, cx),
            Phase::Online | Phase::Leaving => {}
        }
    }

    fn leaves_at(&self) -> Option<Instant> {
        let aside = self.aside.as_ref()?;
        let is_idle = self.phase == Phase::Online && !self.has_call() && aside.hello.is_none();
        aside.leave_at.filter(|_| is_idle)
    }

    /// The gateway takes no device back.
    fn is_draining(&self) -> bool {
        self.aside.as_ref().is_some_and(|aside| aside.leave_at.is_some())
    }

    /// The gateway stops: the device in a call is told goodbye, the chat server gets 1001.
    pub fn shutdown(&mut self, cx: &mut Cx<'_>) {
        self.end_call(EndReason::Shutdown, cx);
        self.close(Reason::Shutdown, cx);
    }

    fn ended(&mut self, flow: Flow, cx: &mut Cx<'_>) {
        if let Err(reason) = flow {
            self.end_call(reason, cx);
        }
    }

    /// The device is gone. A call that only waits to pass on its last words goes on without it.
    fn abandon_call(&mut self, reason: EndReason, cx: &mut Cx<'_>) {
        if !self.call.as_ref().is_some_and(|call| call.is_closing()) {
            self.end_call(reason, cx);
        }
    }

    fn end_call(&mut self, reason: EndReason, cx: &mut Cx<'_>) {
        if let Some(aside) = &mut self.aside {
            aside.hello = None;
        }
        let Some(call) = self.call.take() else { return };
        if call.session_id().is_none() {
            self.aside.get_or_insert_default().hasty = Some((call.hasty, call.began()));
        }
        if let Some(id) = call.finish(reason, cx) {
            self.aside.get_or_insert_default().last_id = Some(id);
        }
        if self.phase == Phase::Away {
            self.close(Reason::Left, cx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tens of thousands of them only wait.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn what_an_idle_device_costs_is_known() {
        assert!(size_of::<Core>() <= 88, "{}", size_of::<Core>());
    }
}
