//! One device: its MQTT session, and at most one call.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::action::{Action, Admission, Counter, Cx, Discard, EndReason, Gone, Grant, Note, Reason};
use super::call::{Call, Caller, Flow, Uplink};
use super::mcp::{FromDevice, FromServer, Mcp};
use super::media::{Peer, Sealed};
use super::servers::Servers;
use crate::config::Config;
use crate::proto::identity::{self, ClientId};
use crate::proto::message::{self, BadHello, DeviceHello, Peek};
use crate::proto::mqtt::{Connect, ConnectCode, Malformed, Packet};

mod operator;

use self::operator::Commands;
pub use self::operator::Delivery;

/// A connection that has not sent CONNECT by now is closed.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// No CONNECT is longer than this.
const MAX_CONNECT: usize = 4096;

/// A device's session: what it may do now, and its call.
pub struct Core {
    phase: Phase,
    /// The device's address, as seen by us or told by a trusted load balancer.
    ip: IpAddr,
    id: Option<ClientId>,
    /// One and a half keep alives; zero for none.
    patience: Duration,
    /// What the phase waits for: CONNECT, a sign of life, or the device's return.
    deadline: Option<Instant>,
    call: Option<Box<Call>>,
    mcp: Option<Box<Mcp>>,
    /// Of a hello for which the shell is minting a grant.
    hello: Option<Box<DeviceHello>>,
    /// The session id last given: a goodbye must carry it.
    last_id: Option<Box<str>>,
    /// Since when this connection is let in.
    online_since: Option<Instant>,
    /// What operators asked the device, while there is such a thing.
    commands: Option<Box<Commands>>,
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
            id: None,
            patience: Duration::ZERO,
            deadline: Some(now + CONNECT_WITHIN),
            call: None,
            mcp: None,
            hello: None,
            last_id: None,
            online_since: None,
            commands: None,
        }
    }

    /// The client id, once CONNECT was accepted.
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
        self.deadline = None;
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
        let mcp = self.mcp.as_ref().and_then(|mcp| mcp.deadline());
        let commands = self.commands.as_ref().and_then(|commands| commands.deadline());
        [self.deadline, call, mcp, commands].into_iter().flatten().min()
    }

    // ----- the device's connection --------------------------------------------------------------------------------

    /// Bytes came from the device: the only thing that keeps it alive.
    pub fn heard(&mut self, now: Instant) {
        if self.phase == Phase::Online {
            self.deadline = (!self.patience.is_zero()).then(|| now + self.patience);
        }
    }

    /// One packet of the device.
    pub fn packet(&mut self, packet: Packet<'_>, cx: &mut Cx<'_>) {
        match (self.phase, packet) {
            (Phase::AwaitingConnect, Packet::Connect(connect)) => self.connect(&connect, cx),
            (Phase::AwaitingConnect, _) => self.out_of_place("a packet before CONNECT", cx),
            (Phase::Online, Packet::Connect(_)) => self.out_of_place("a second CONNECT", cx),
            (Phase::Online, Packet::Publish(publish)) => self.publish(publish.payload, cx),
            (Phase::Online, Packet::Subscribe(subscribe)) => {
                let filters = subscribe.filters().count();
                cx.out.push(Action::SubAck { packet_id: subscribe.packet_id, filters });
            }
            (Phase::Online, Packet::Unsubscribe(unsubscribe)) => {
                cx.out.push(Action::UnsubAck(unsubscribe.packet_id));
            }
            (Phase::Online, Packet::PingReq) => cx.out.push(Action::PingResp),
            (Phase::Online, Packet::Disconnect) => {
                self.hang_up(EndReason::DeviceDisconnected, cx);
                self.close(Reason::Left, cx);
            }
            (Phase::Admitting | Phase::Away | Phase::Leaving, _) => {}
        }
    }

    /// A first byte that cannot begin a CONNECT.
    pub fn no_connect(&mut self, cx: &mut Cx<'_>) {
        self.out_of_place("a first byte that is not CONNECT's", cx);
    }

    /// Bytes that are no packet.
    pub fn malformed(&mut self, malformed: Malformed, cx: &mut Cx<'_>) {
        match (self.phase, malformed) {
            (Phase::AwaitingConnect, Malformed::UnsupportedLevel(_)) => {
                self.refuse(ConnectCode::UnsupportedLevel, "protocol level not supported", cx);
            }
            _ => self.fail(Reason::Protocol(malformed), cx),
        }
    }

    /// The connection ended without DISCONNECT: a call is kept for a while.
    pub fn connection_lost(&mut self, cx: &mut Cx<'_>) {
        self.lost(Reason::Left, cx);
    }

    /// The device does not read what it is sent.
    pub fn blocked(&mut self, cx: &mut Cx<'_>) {
        self.lost(Reason::SlowReader, cx);
    }

    fn lost(&mut self, reason: Reason, cx: &mut Cx<'_>) {
        if self.phase == Phase::Leaving || self.phase == Phase::Away {
            return;
        }
        let grace = cx.config.mqtt.resume_grace;
        self.fail_commands(cx);
        if self.has_call()
            && !grace.is_zero()
            && let Some(call) = &mut self.call
        {
            call.device_lost();
            self.phase = Phase::Away;
            self.deadline = Some(cx.now + grace);
            cx.out.push(Action::Note(Note::Away(grace)));
            cx.out.push(Action::Close(reason));
            return;
        }
        self.abandon_call(EndReason::DeviceLost, cx);
        self.close(reason, cx);
    }

    fn out_of_place(&mut self, what: &'static str, cx: &mut Cx<'_>) {
        self.fail(Reason::OutOfPlace(what), cx);
    }

    fn fail(&mut self, reason: Reason, cx: &mut Cx<'_>) {
        self.end_call(EndReason::DeviceError, cx);
        self.close(reason, cx);
    }

    fn close(&mut self, reason: Reason, cx: &mut Cx<'_>) {
        if self.phase == Phase::Leaving {
            return;
        }
        self.phase = Phase::Leaving;
        self.deadline = None;
        self.fail_commands(cx);
        self.mcp = None;
        cx.out.push(Action::Close(reason));
    }

    // ----- letting in ---------------------------------------------------------------------------------------------

    fn connect(&mut self, connect: &Connect<'_>, cx: &mut Cx<'_>) {
        let id = match ClientId::parse(connect.client_id) {
            Ok(id) => id,
            Err(_) => return self.refuse(ConnectCode::ClientId, "client id is not group@@@mac@@@uuid", cx),
        };
        if let Err((code, why)) = authenticate(&id, connect, cx.config) {
            return self.refuse(code, why, cx);
        }
        self.id = Some(id);
        self.patience = Duration::from_millis(u64::from(connect.keep_alive) * 1500);
        self.phase = Phase::Admitting;
        cx.out.push(Action::Admit);
    }

    fn refuse(&mut self, code: ConnectCode, why: &'static str, cx: &mut Cx<'_>) {
        cx.out.push(Action::Refuse(code));
        self.close(Reason::Refused(code, why), cx);
    }

    /// The shell's answer to [`Action::Admit`].
    pub fn admitted(&mut self, admission: Admission, cx: &mut Cx<'_>) {
        if self.phase != Phase::Admitting {
            return;
        }
        let full = match admission {
            Admission::Welcome => return self.welcome(false, cx),
            Admission::Full => "max_connections is reached",
            Admission::Crowded => "max_connections_per_ip is reached",
        };
        self.refuse(ConnectCode::Unavailable, full, cx);
    }

    fn welcome(&mut self, resumed: bool, cx: &mut Cx<'_>) {
        self.phase = Phase::Online;
        self.online_since = Some(cx.now);
        self.heard(cx.now);
        self.deadline = (!self.patience.is_zero()).then(|| cx.now + self.patience);
        cx.out.push(Action::Welcome);
        cx.out.push(Action::Note(Note::Connected { resumed }));
        let session_id = self.call.as_ref().and_then(|call| call.session_id());
        let earlier = self.mcp.take();
        self.mcp = cx.config.mcp.enabled.then(|| Box::new(Mcp::begin(earlier, session_id, cx)));
    }

    /// Another connection with this client id was let in, and this core has a call: it becomes that connection's.
    pub fn take_over(&mut self, newer: Core, cx: &mut Cx<'_>) {
        if self.phase == Phase::Leaving {
            return;
        }
        self.ip = newer.ip;
        self.id = newer.id;
        self.patience = newer.patience;
        self.welcome(true, cx);
        if let Some(call) = &mut self.call {
            call.device_back(newer.ip, cx);
        }
    }

    /// Another connection with this client id was let in, and there is no call to keep.
    pub fn replaced(&mut self, cx: &mut Cx<'_>) {
        self.abandon_call(EndReason::Replaced, cx);
        self.close(Reason::TakenOver, cx);
    }

    // ----- what the device says -----------------------------------------------------------------------------------

    fn publish(&mut self, payload: &[u8], cx: &mut Cx<'_>) {
        let parsed =
            std::str::from_utf8(payload).ok().and_then(|text| Some((text, message::peek(text).ok()?)));
        let Some((text, peek)) = parsed else {
            cx.out.push(Action::Count(Counter::BadDeviceText));
            return;
        };
        if peek.kind == "hello" {
            return self.hello(text, cx);
        }
        if peek.kind == "mcp" && self.command_answered(text, cx) {
            return;
        }
        let mut forwarded = Cow::Borrowed(text);
        if peek.kind == "mcp"
            && let Some(mcp) = &mut self.mcp
        {
            let session_id = self.call.as_ref().and_then(|call| call.session_id());
            match mcp.device_says(text, session_id, cx) {
                FromDevice::Forward => {}
                FromDevice::Taken => return,
                FromDevice::Reply(text) => forwarded = Cow::Owned(text),
            }
        }
        let Some(call) = self.call.as_mut().filter(|call| !call.is_closing()) else {
            return self.without_call(&peek, cx);
        };
        match call.device_text(&forwarded, &peek, cx) {
            Err(EndReason::DeviceGoodbye) => self.hang_up(EndReason::DeviceGoodbye, cx),
            flow => self.ended(flow, cx),
        }
    }

    /// A message that belongs to no call is answered with goodbye, so that the device starts anew.
    fn without_call(&mut self, peek: &Peek<'_>, cx: &mut Cx<'_>) {
        if peek.kind == "goodbye" || peek.kind == "mcp" {
            return;
        }
        let id = peek.session_id.as_deref().or(self.last_id.as_deref());
        cx.out.push(Action::Publish(message::goodbye(id)));
    }

    fn hello(&mut self, text: &str, cx: &mut Cx<'_>) {
        let hello = match message::device_hello(text) {
            Ok(hello) => hello,
            Err(BadHello::Version(found)) => return self.fail(Reason::HelloVersion(found), cx),
            Err(_) => {
                cx.out.push(Action::Count(Counter::BadDeviceText));
                return;
            }
        };
        self.end_call(EndReason::Replaced, cx);
        self.hello = Some(Box::new(hello));
        cx.out.push(Action::Grant);
    }

    /// The shell's answer to [`Action::Grant`]: the call begins.
    pub fn granted(&mut self, grant: Grant, cx: &mut Cx<'_>) {
        let (Some(hello), Some(id)) = (self.hello.take(), &self.id) else { return };
        let allowed = grant.allowed;
        let call = self.call.insert(Box::new(Call::new(*hello, grant, self.ip, cx.now)));
        let flow = match allowed {
            true => call.begin(Caller { id, ip: self.ip }, cx),
            false => Err(EndReason::Refused),
        };
        self.ended(flow, cx);
    }

    /// The device hangs up; what it said before is still sent.
    fn hang_up(&mut self, reason: EndReason, cx: &mut Cx<'_>) {
        if !self.call.as_mut().is_some_and(|call| call.hang_up(reason)) {
            self.end_call(reason, cx);
        }
    }

    // ----- what the chat server says ------------------------------------------------------------------------------

    /// The dial left the queue and the resolver: a connection is being made.
    pub fn backend_connecting(&mut self) {
        if let Some(call) = &mut self.call {
            call.connecting();
        }
    }

    /// The WebSocket is open.
    pub fn backend_open(&mut self, cx: &mut Cx<'_>) {
        if let Some(call) = &mut self.call {
            call.opened(cx);
        }
        if let Some(mcp) = &mut self.mcp {
            mcp.another_server();
        }
    }

    /// A text message.
    pub fn backend_text(&mut self, text: &str, cx: &mut Cx<'_>) {
        let Some(caller) = self.id.as_ref().map(|id| Caller { id, ip: self.ip }) else { return };
        let Some(call) = self.call.as_mut().filter(|call| call.has_server()) else { return };
        call.server_said(cx.now);
        let Ok(peek) = message::peek(text) else {
            cx.out.push(Action::Count(Counter::BadServerText));
            return;
        };
        let mut forwarded = Cow::Borrowed(text);
        if peek.kind == "mcp"
            && let Some(mcp) = &mut self.mcp
        {
            match mcp.server_says(text, call.server_session_id(), cx) {
                FromServer::Forward => {}
                FromServer::Taken => return,
                FromServer::Answer(reply) => return cx.out.push(Action::Say(reply)),
                FromServer::Translated(text) => forwarded = Cow::Owned(text),
            }
        }
        let flow = call.server_text(&forwarded, &peek, caller, cx);
        self.ended(flow, cx);
    }

    /// A pong, or any other sign of life.
    pub fn backend_alive(&mut self, now: Instant) {
        if let Some(call) = &mut self.call {
            call.server_alive(now);
        }
    }

    /// The WebSocket ended, or could not be opened.
    pub fn backend_gone(&mut self, gone: Gone, cx: &mut Cx<'_>) {
        let Some(caller) = self.id.as_ref().map(|id| Caller { id, ip: self.ip }) else { return };
        let Some(call) = &mut self.call else { return };
        let flow = call.gone(gone, caller, cx);
        self.ended(flow, cx);
    }

    /// The chat server does not read its text: the call ends. News of a WebSocket that is gone already is ignored.
    pub fn backend_blocked(&mut self, cx: &mut Cx<'_>) {
        if self.call.as_ref().is_some_and(|call| call.has_server()) {
            self.end_call(EndReason::Overflow, cx);
        }
    }

    // ----- audio, the hot path: no action, no allocation, borrowed results ----------------------------------------

    /// One datagram with this call's ssrc, decrypted in place and framed for the chat server.
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
        if self.deadline.is_some_and(|at| at <= cx.now) {
            self.deadline = None;
            match self.phase {
                Phase::AwaitingConnect => self.close(Reason::ConnectTimeout, cx),
                Phase::Online => self.lost(Reason::KeepAlive, cx),
                Phase::Away => self.end_call(EndReason::DeviceLost, cx),
                Phase::Admitting | Phase::Leaving => {}
            }
        }
        if let Some(mcp) = &mut self.mcp {
            mcp.timeout(cx);
        }
        self.commands_timeout(cx);
        if let (Some(call), Some(id)) = (&mut self.call, &self.id) {
            let flow = call.timeout(Caller { id, ip: self.ip }, cx);
            self.ended(flow, cx);
        }
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
        self.hello = None;
        let Some(call) = self.call.take() else { return };
        self.last_id = call.finish(reason, cx).or(self.last_id.take());
        if self.phase == Phase::Away {
            self.close(Reason::Left, cx);
        }
    }
}

fn authenticate(
    id: &ClientId,
    connect: &Connect<'_>,
    config: &Config,
) -> Result<(), (ConnectCode, &'static str)> {
    let Some(key) = &config.mqtt.signature_key else { return Ok(()) };
    if id.uuid().is_none() {
        return match config.mqtt.allow_legacy_ids {
            true => Ok(()),
            false => Err((
                ConnectCode::NotAuthorised,
                "two-part client ids are not allowed (mqtt.allow_legacy_ids)",
            )),
        };
    }
    let (Some(user_name), Some(password)) = (connect.user_name, connect.password) else {
        return Err((ConnectCode::Credentials, "user name or password missing"));
    };
    if !identity::password_matches(key.as_bytes(), id.as_str(), user_name, password) {
        return Err((ConnectCode::Credentials, "password does not match MQTT_SIGNATURE_KEY"));
    }
    if !identity::is_user_name(user_name) {
        return Err((ConnectCode::Credentials, "user name is not base64 of a JSON object"));
    }
    Ok(())
}
