//! One call: from the device's hello to its end. Here are its state and its time.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::action::{Action, Cx, EndReason, Failure, Grant, Note};
use super::deadlines::{Deadlines, Timer};
use super::media::Media;
use super::queue::{HeldQueue, Overflow, Texts};
use crate::config::{Config, Server};
use crate::proto::identity::ClientId;
use crate::proto::message::{self, DeviceHello};

mod audio;
mod device_call;
mod dial;
mod end;
mod text;
mod view;

pub use audio::Uplink;
pub use view::{CallState, CallView};

/// What the core needs to know of its device to serve a call.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) id: &'a ClientId,
    pub(super) ip: IpAddr,
}

/// Why a call cannot go on, for [`Core`](super::Core) to end it.
pub(super) type Flow = Result<(), EndReason>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A server is being resolved, connected to and upgraded; `connecting` once it is more than a queue or a name.
    Dialing { connecting: bool },
    /// Our hello is out, the server's is awaited.
    Greeting,
    /// Both sides talk.
    Live,
    /// Waiting to redial.
    Backoff,
    /// The chat server was left, another device is called.
    Ringing,
    /// The chat server was left, another device talks.
    Bridged,
}

pub(super) struct Call {
    stage: Stage,
    hello: DeviceHello,
    /// Fresh for this hello; `session_id` is the gateway's own, used when the server names none that a device can be shown. There until the device
    /// was answered and has shown that it understood.
    grant: Option<Box<Grant>>,
    media: Media,
    /// The id the device was given: there once its hello reply is out.
    id: Option<Box<str>>,
    /// The id the present server uses, if it is another one.
    server_id: Option<Box<str>>,
    /// The present server named a session.
    server_named: bool,
    server: Option<Arc<Server>>,
    /// Of the present dial: its upgrade and its hello say the same, whatever is learnt in between.
    protocol_version: u8,
    /// Servers not yet tried for this hello.
    plan: VecDeque<Arc<Server>>,
    deadlines: Deadlines,
    last_activity: Instant,
    server_heard: Instant,
    pinged: Instant,
    /// Text for the server that is not there yet.
    to_server: Texts,
    /// Text and audio for the device that must wait.
    held: HeldQueue,
    /// Text for a device whose connection is lost.
    away: Option<Texts>,
    last_listen: Option<Box<str>>,
    /// The last listen waits in `to_server` and need not be repeated.
    listen_queued: bool,
    speaking: bool,
    /// The server sent audio or speech before its hello.
    server_spoke: bool,
    /// The server had its time to say hello.
    greet_over: bool,
    /// Text and audio have waited for the device's first datagram, once and for all.
    hold_spent: bool,
    /// The device began to listen.
    listened: bool,
    outage: Option<Box<Outage>>,
    live_since: Instant,
    jitter: u64,
    /// Hellos in a row, to this call's, that were not answered.
    pub(super) hasty: u8,
    /// The device left before the server was there: what it said is still sent, then the call ends.
    closing: Option<EndReason>,
    /// The server's own goodbye, to be the call's one goodbye.
    farewell: Option<String>,
    /// What the device hears while another one rings: an Opus packet, empty before.
    silence: Box<[u8]>,
}

/// A failure that has not yet been lived down.
#[derive(Clone, Copy, Debug)]
struct Outage {
    /// When the connection was lost the last time.
    lost: Instant,
    /// Redials, of earlier losses too until a server lives for a while.
    attempts: u32,
}

impl Call {
    pub(super) fn new(hello: DeviceHello, grant: Grant, ip: IpAddr, now: Instant) -> Self {
        Self {
            stage: Stage::Dialing { connecting: false },
            hello,
            media: Media::new(&grant, ip, now),
            id: None,
            server_id: None,
            server_named: false,
            server: None,
            protocol_version: 2,
            plan: VecDeque::new(),
            deadlines: Deadlines::new(now),
            last_activity: now,
            server_heard: now,
            pinged: now,
            to_server: Texts::default(),
            held: HeldQueue::default(),
            away: None,
            last_listen: None,
            listen_queued: false,
            speaking: false,
            server_spoke: false,
            greet_over: false,
            hold_spent: false,
            listened: false,
            outage: None,
            live_since: now,
            jitter: grant.seed | 1,
            hasty: 0,
            closing: None,
            farewell: None,
            silence: Box::default(),
            grant: Some(Box::new(grant)),
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.next()
    }

    pub(super) fn ssrc(&self) -> u32 {
        self.media.ssrc()
    }

    pub(super) fn session_id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// When the device said hello.
    pub(super) fn began(&self) -> Instant {
        self.deadlines.start()
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began())
    }

    /// The gateway's own name for the session, until the device knows one.
    fn own_id(&self) -> &str {
        self.grant.as_ref().map_or("", |grant| &grant.session_id)
    }

    /// The id towards the present server.
    pub(super) fn server_session_id(&self) -> Option<&str> {
        self.server_id.as_deref().or(self.id.as_deref())
    }

    /// The server for logs: without its query, where tokens live.
    fn server_name(&self) -> String {
        self.server.as_ref().map(|server| server.to_string()).unwrap_or_default()
    }

    /// Bytes that wait or are said again.
    pub(super) fn kept(&self) -> usize {
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        self.to_server.bytes()
            + self.held.bytes()
            + self.away.as_ref().map_or(0, Texts::bytes)
            + self.hello.to_server.len()
            + text(&self.last_listen)
            + text(&self.id)
            + text(&self.server_id)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Whether a WebSocket is open: only then can its server say anything.
    pub(super) fn has_server(&self) -> bool {
        matches!(self.stage, Stage::Greeting | Stage::Live)
    }

    // ----- time ---------------------------------------------------------------------------------------------------

    pub(super) fn timeout(&mut self, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        self.mind_idleness(cx.config);
        while let Some(timer) = self.deadlines.take_due(cx.now) {
            self.due(timer, caller, cx)?;
        }
        Ok(())
    }

    fn due(&mut self, timer: Timer, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        match timer {
            Timer::Answer => self.answer_overdue(caller, cx),
            Timer::Connect => self.connect_overdue(caller, cx),
            Timer::Greet => self.greet_overdue(caller, cx),
            Timer::Again => {
                self.say_hello(cx);
                Ok(())
            }
            Timer::Hold => self.hold_over(cx),
            Timer::Unheard => self.unheard(cx),
            Timer::Idle => Err(EndReason::Idle),
            Timer::Redial => self.redial(caller, cx),
            Timer::GiveUp => Err(EndReason::ServerLost),
            Timer::Ping => {
                self.ping(cx);
                Ok(())
            }
            Timer::Pong => self.pong_due(caller, cx),
        }
    }

    /// Activity moves this deadline too often to store it each time, and a reload may change it.
    fn mind_idleness(&mut self, config: &Config) {
        let limit = config.websocket.call_idle;
        if self.id.is_none() || limit.is_zero() {
            self.deadlines.clear(Timer::Idle);
        } else {
            self.deadlines.set(Timer::Idle, self.last_activity + limit);
        }
    }

    fn unheard(&mut self, cx: &mut Cx<'_>) -> Flow {
        if self.media.peer().is_some() {
            return Ok(());
        }
        let Some(grant) = &self.grant else { return Ok(()) };
        let advertised = format!("{}:{}", grant.udp_host, grant.udp_port);
        cx.out.push(Action::Note(Note::Unheard { after: cx.config.udp.first_packet_warn, advertised }));
        if !cx.config.udp.first_packet_alert {
            return Ok(());
        }
        let text = message::alert(
            self.id.as_deref(),
            "没有声音 / No audio",
            "网关收不到设备的 UDP 音频，请检查防火墙和 UDP 端口 / The gateway receives no UDP audio: check firewall and UDP port",
            "sad",
        );
        self.publish(text, cx)
    }

    fn ping(&mut self, cx: &mut Cx<'_>) {
        let websocket = &cx.config.websocket;
        if websocket.ping_interval.is_zero() {
            return;
        }
        cx.out.push(Action::Ping);
        self.deadlines.set(Timer::Ping, cx.now + websocket.ping_interval);
        if !self.deadlines.is_set(Timer::Pong) && !websocket.ping_timeout.is_zero() {
            self.pinged = cx.now;
            self.deadlines.set(Timer::Pong, cx.now + websocket.ping_timeout);
        }
    }

    fn pong_due(&mut self, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        if self.server_heard > self.pinged {
            return Ok(());
        }
        let silent = cx.now.saturating_duration_since(self.pinged);
        let failure = Failure { stage: "live", why: format!("no pong in {} s", silent.as_secs()) };
        self.failed(failure, caller, cx)
    }

    /// Any frame of the server, a pong above all.
    pub(super) fn server_alive(&mut self, now: Instant) {
        self.server_heard = now;
    }

    /// A text of the server, whatever becomes of it.
    pub(super) fn server_said(&mut self, now: Instant) {
        self.server_heard = now;
        self.last_activity = now;
    }

    // ----- the device's connection comes and goes -----------------------------------------------------------------

    pub(super) fn device_lost(&mut self) {
        self.away.get_or_insert_with(Texts::default);
    }

    pub(super) fn device_back(&mut self, ip: IpAddr, cx: &mut Cx<'_>) {
        self.media.rehome(ip);
        for text in self.away.take().map(|mut away| away.take()).unwrap_or_default() {
            cx.out.push(Action::Publish(text.into_string()));
        }
    }
}

impl From<Overflow> for EndReason {
    fn from(_: Overflow) -> Self {
        Self::Overflow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn what_a_call_costs_is_known() {
        // On x86-64 and ARMv8; the expanded key alone is 176 bytes.
        assert!(size_of::<Call>() <= 768, "{}", size_of::<Call>());
    }
}
