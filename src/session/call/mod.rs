//! One call, from the device's hello to its end: its state and its timers.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::action::{
    Action, BackendFailure, BackendStage, CallCredentials, CallState, EndReason, LogEvent, RefusedDatagrams,
};
use super::context::Context;
use super::deadlines::{CallTime, CallTimer, Deadlines};
use super::media::Media;
use super::playout::Playout;
use super::queue::{HeldQueue, QueueOverflow, TextQueue};
use super::tool_lists::SharedText;
use crate::config::{ChatServerConfig, Config};
use crate::proto::identity::ClientId;
use crate::proto::message::DeviceHello;

mod audio;
mod device_call;
mod dial;
mod end;
mod reconnect;
mod text;
mod view;

use reconnect::Attachment;

pub use audio::{FrameSpace, Uplink};
pub use view::CallView;

/// What a call needs to know about its device.
#[derive(Clone, Copy)]
pub(super) struct DeviceIdentity<'a> {
    pub(super) id: &'a ClientId,
    pub(super) ip: IpAddr,
    pub(super) is_proven: bool,
}

/// `Err`: the call cannot continue, and [`Core`](super::Core) ends it for this reason.
pub(super) type CallResult = Result<(), EndReason>;

pub(super) struct Call {
    /// During a redial too it is `Dialing` and then `AwaitingHello`; the view for operators shows both as `Redialing`.
    state: CallState,
    /// The current dial has left the queue and the resolver: the TCP connection is being opened.
    connecting: bool,
    hello: DeviceHello<SharedText>,
    media: Media,
    /// The id that the device was given. `None` until its hello reply is sent.
    session_id: Option<Box<str>>,
    /// The current server sent a session id.
    server_sent_session_id: bool,
    server: Option<Arc<ChatServerConfig>>,
    /// The protocol version of the current dial. Upgrade and hello must state the same one, even if the framing is learned in between.
    protocol_version: u8,
    deadlines: Deadlines,
    last_activity: CallTime,
    server_last_seen: CallTime,
    ping_sent_at: CallTime,
    /// Texts and audio for the device that have to wait.
    held: HeldQueue,
    playout: Playout,
    held_audio: HeldAudio,
    /// The device's abort was not answered with `tts stop` yet: audio of that speech is dropped.
    aborted: bool,
    /// The device was speaking when its connection was lost in an earlier call.
    pub(super) device_may_be_speaking: bool,
    /// The device was told that its audio does not arrive.
    no_audio_shown: bool,
    /// The call ends for this reason when the device has played what is held.
    ending: Option<EndReason>,
    attachment: Attachment,
    /// The device's last `listen`, which is repeated to a new server.
    last_listen: Option<Box<str>>,
    /// The last `listen` is in `pending_server_text`, so it need not be repeated.
    listen_queued: bool,
    /// The device was told that speech started, and not that it ended.
    tts_active: bool,
    /// The server sent audio, `tts` or `stt` before its hello.
    server_sent_early_media: bool,
    /// The server did not send its hello in time.
    server_hello_overdue: bool,
    /// The hold for the device's first datagram has ended. There is only one per call.
    hold_expired: bool,
    /// A datagram was accepted since the device's last `listen` with the state `start`.
    heard_since_listen: bool,
    /// After the device's last `listen` with the state `start` came neither one with `stop` nor `tts start`: it sends audio.
    is_listening: bool,
    /// That `listen` had the mode `realtime`: the device can play and listen at once.
    pub(super) listens_in_realtime: bool,
    live_since: CallTime,
    /// The device has left, and its texts are not sent yet: the call ends with this reason when they are.
    closing: Option<EndReason>,
    /// The server's last message was `tts stop`.
    speech_ended: bool,
    /// Redials that a server greeted since the last word of the user.
    greeted_redials: u8,
    cold: Option<Box<ColdState>>,
}

/// State of a call that is not up yet, or to which something has happened.
#[derive(Default)]
struct ColdState {
    /// Generated for this call. Freed when the device was answered and has sent a datagram.
    credentials: Option<CallCredentials>,
    /// Servers that were not tried for this hello yet.
    untried_servers: VecDeque<Arc<ChatServerConfig>>,
    /// The id that the current server uses, if it differs from the device's.
    server_session_id: Option<Box<str>>,
    /// Texts for a server that is not connected yet.
    pending_server_text: TextQueue,
    /// What the current server sent before its hello.
    early: HeldQueue,
    /// Datagrams of this call that were refused.
    refused: Option<RefusedDatagrams>,
    /// Texts for the device while its connection is lost, or while it is not known to be in the call.
    pending_device_text: Option<TextQueue>,
    outage: Option<Outage>,
    /// What the server said last, if it ended the call by it or may explain its end by it.
    last_words: Option<LastWords>,
    /// The server ended the connection after its speech, in this way: a dial without hello shows whether it meant that.
    probe: Option<BackendFailure>,
    /// The Opus packet that the device gets while it is calling another one; empty otherwise.
    silence_packet: Box<[u8]>,
}

impl ColdState {
    fn is_empty(&self) -> bool {
        self.credentials.is_none()
            && self.untried_servers.is_empty()
            && self.server_session_id.is_none()
            && self.pending_server_text.is_empty()
            && self.early.is_empty()
            && self.refused.is_none()
            && self.pending_device_text.is_none()
            && self.outage.is_none()
            && self.last_words.is_none()
            && self.probe.is_none()
            && self.silence_packet.is_empty()
    }
}

/// Whether all frames fitted into the queue for the device, and whether it was logged that one did not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HeldAudio {
    Fits,
    Full,
    FullLogged,
}

/// The last words of a server.
enum LastWords {
    /// Its goodbye, which is passed to the device instead of the gateway's own.
    Goodbye(Box<str>),
    /// A text that is no message of the protocol, or the reason in its Close frame: its beginning.
    Said(Box<str>),
}

/// Loss of the chat server. It is kept until a server was live for a while, so that the pauses grow.
#[derive(Clone, Copy, Debug)]
struct Outage {
    /// When the connection was last lost.
    lost_at: Instant,
    /// Redials so far, including those of earlier losses.
    attempts: u32,
    /// The device was told.
    shown: bool,
}

impl Call {
    pub(super) fn new(
        hello: DeviceHello<SharedText>,
        credentials: CallCredentials,
        ip: IpAddr,
        now: Instant,
    ) -> Self {
        Self {
            state: CallState::Dialing,
            connecting: false,
            hello,
            media: Media::new(&credentials, ip, now),
            session_id: None,
            server_sent_session_id: false,
            server: None,
            protocol_version: 2,
            deadlines: Deadlines::new(now),
            last_activity: CallTime::START,
            server_last_seen: CallTime::START,
            ping_sent_at: CallTime::START,
            held: HeldQueue::default(),
            playout: Playout::new(now),
            held_audio: HeldAudio::Fits,
            aborted: false,
            device_may_be_speaking: false,
            no_audio_shown: false,
            ending: None,
            attachment: Attachment::Attached,
            last_listen: None,
            listen_queued: false,
            tts_active: false,
            server_sent_early_media: false,
            server_hello_overdue: false,
            hold_expired: false,
            heard_since_listen: false,
            is_listening: false,
            listens_in_realtime: false,
            live_since: CallTime::START,
            closing: None,
            speech_ended: false,
            greeted_redials: 0,
            cold: Some(Box::new(ColdState { credentials: Some(credentials), ..ColdState::default() })),
        }
    }

    /// Frees what a call that is up needs no more.
    fn free_cold_state(&mut self) {
        let Some(cold) = &mut self.cold else { return };
        if self.session_id.is_some() && self.media.peer().is_some() {
            cold.credentials = None;
        }
        if cold.is_empty() {
            self.cold = None;
        }
    }

    fn credentials(&self) -> Option<&CallCredentials> {
        self.cold.as_ref()?.credentials.as_ref()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.earliest()
    }

    pub(super) fn ssrc(&self) -> u32 {
        self.media.ssrc()
    }

    pub(super) fn session_id(&self) -> Option<&str> {
        self.session_id.as_deref()
    }

    /// When the device said hello.
    pub(super) fn started_at(&self) -> Instant {
        self.deadlines.start()
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started_at())
    }

    /// The gateway's own session id, until the device was given one.
    pub(super) fn own_session_id(&self) -> &str {
        self.credentials().map_or("", |credentials| &credentials.session_id)
    }

    /// The session id that the current server knows.
    pub(super) fn server_session_id(&self) -> Option<&str> {
        self.cold.as_ref().and_then(|cold| cold.server_session_id.as_deref()).or(self.session_id())
    }

    /// The server's URL for the log, without the secrets in its query.
    fn server_name(&self) -> String {
        self.server.as_ref().map(|server| server.to_string()).unwrap_or_default()
    }

    /// The bytes of queued texts, frames and packets, and of the texts that may be repeated.
    pub(super) fn retained_bytes(&self) -> usize {
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        let cold = self.cold.as_ref().map_or(0, |cold| {
            cold.pending_server_text.bytes()
                + cold.early.bytes()
                + cold.pending_device_text.as_ref().map_or(0, TextQueue::bytes)
                + text(&cold.server_session_id)
        });
        cold + self.held.bytes()
            + self.media.retained_bytes()
            + self.hello.forwarded.own_bytes()
            + text(&self.last_listen)
            + text(&self.session_id)
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Whether the server's WebSocket is open.
    pub(super) fn has_server(&self) -> bool {
        self.ending.is_none() && matches!(self.state, CallState::AwaitingHello | CallState::Live)
    }

    // ----- timers -------------------------------------------------------------------------------------------------

    pub(super) fn on_timeout(&mut self, device: DeviceIdentity<'_>, cx: &mut Context<'_>) -> CallResult {
        self.free_cold_state();
        self.update_idle_deadline(cx.config);
        while let Some(timer) = self.deadlines.take_expired(cx.now) {
            self.on_timer(timer, device, cx)?;
        }
        Ok(())
    }

    fn on_timer(&mut self, timer: CallTimer, device: DeviceIdentity<'_>, cx: &mut Context<'_>) -> CallResult {
        match timer {
            CallTimer::HelloReply => self.on_hello_reply_timeout(device, cx),
            CallTimer::Connect if self.is_probing() => self.on_probe_failed("no answer in 1 s", device, cx),
            CallTimer::Connect => {
                let failure = dial::timeout_failure(BackendStage::Connect, dial::CONNECT_TIMEOUT);
                self.on_server_failed(failure, device, cx)
            }
            CallTimer::ServerHello => self.on_server_hello_timeout(device, cx),
            CallTimer::ResendHello => {
                self.send_hello(cx);
                Ok(())
            }
            CallTimer::HoldMedia => self.on_hold_timeout(cx),
            CallTimer::Playout => self.release_ready(cx),
            CallTimer::Reattach => self.on_reattach_timeout(cx),
            CallTimer::KeepAlive => {
                self.send_keep_alive(cx);
                Ok(())
            }
            CallTimer::MissingAudio => self.on_missing_audio(cx),
            CallTimer::RedialNotice => self.on_long_outage(cx),
            CallTimer::Idle => Err(EndReason::Idle),
            CallTimer::Redial => self.redial(device, cx),
            CallTimer::GiveUp => self.end_after_playout(EndReason::ServerLost, cx),
            CallTimer::Ping => {
                self.send_ping(cx);
                Ok(())
            }
            CallTimer::Pong => self.on_pong_timeout(device, cx),
        }
    }

    /// Each packet would move this deadline, and a reload may change it, so it is computed when timers are handled.
    fn update_idle_deadline(&mut self, config: &Config) {
        let limit = config.websocket.call_idle;
        if self.session_id.is_none() || limit.is_zero() {
            self.deadlines.clear(CallTimer::Idle);
        } else {
            self.deadlines.set(CallTimer::Idle, self.deadlines.instant(self.last_activity) + limit);
        }
    }

    /// The device listens, and should have sent audio by now.
    fn on_missing_audio(&mut self, cx: &mut Context<'_>) -> CallResult {
        let after = cx.config.udp.first_packet_warn;
        if self.heard_since_listen || self.attachment != Attachment::Attached {
            return Ok(());
        }
        let unheard = self.credentials().filter(|_| self.media.peer().is_none());
        cx.log(LogEvent::NoUdpAudio {
            after,
            advertised: unheard.map(|unheard| format!("{}:{}", unheard.udp_host, unheard.udp_port)),
            refused: self.cold.as_ref().and_then(|cold| cold.refused.clone()).unwrap_or_default(),
        });
        if !cx.config.udp.first_packet_alert {
            return Ok(());
        }
        self.no_audio_shown = true;
        let alert = end::no_audio_alert(self.session_id());
        self.publish(alert, cx)
    }

    fn send_ping(&mut self, cx: &mut Context<'_>) {
        let websocket = &cx.config.websocket;
        if websocket.ping_interval.is_zero() || self.server.as_ref().is_some_and(|server| !server.ping) {
            return;
        }
        cx.out.push(Action::SendPing);
        self.deadlines.set(CallTimer::Ping, cx.now + websocket.ping_interval);
        if !self.deadlines.is_set(CallTimer::Pong) && !websocket.ping_timeout.is_zero() {
            self.ping_sent_at = self.deadlines.time(cx.now);
            self.deadlines.set(CallTimer::Pong, cx.now + websocket.ping_timeout);
        }
    }

    fn on_pong_timeout(&mut self, device: DeviceIdentity<'_>, cx: &mut Context<'_>) -> CallResult {
        if self.server_last_seen > self.ping_sent_at {
            return Ok(());
        }
        let silent = cx.now.saturating_duration_since(self.deadlines.instant(self.ping_sent_at));
        let failure = BackendFailure::new(BackendStage::Live, format!("no pong in {} s", silent.as_secs()));
        self.on_server_failed(failure, device, cx)
    }

    /// The server sent a frame, for example a pong.
    pub(super) fn on_server_frame(&mut self, now: Instant) {
        self.server_last_seen = self.deadlines.time(now);
    }

    /// The server sent a text or audio, so long after the call's start.
    pub(super) fn on_server_message(&mut self, age: Duration) {
        self.server_last_seen = CallTime::after(age);
        self.last_activity = self.server_last_seen;
        self.speech_ended = false;
        self.forget_last_words();
    }

    fn is_probing(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| cold.probe.is_some())
    }

    fn take_probe(&mut self) -> Option<BackendFailure> {
        self.cold.as_mut()?.probe.take()
    }

    fn forget_last_words(&mut self) {
        if let Some(cold) = &mut self.cold {
            cold.last_words = None;
        }
    }

    /// The server sent a text that is no message of the protocol.
    pub(super) fn on_server_words(&mut self, words: &str) {
        let words = crate::text::cut(words.trim(), crate::text::SHOWN_MAX_BYTES);
        match words {
            "" => self.forget_last_words(),
            _ => self.cold.get_or_insert_default().last_words = Some(LastWords::Said(words.into())),
        }
    }

    fn server_said(&self) -> Option<&str> {
        match &self.cold.as_ref()?.last_words {
            Some(LastWords::Said(words)) => Some(words),
            _ => None,
        }
    }
}

impl From<QueueOverflow> for EndReason {
    fn from(_: QueueOverflow) -> Self {
        Self::Overflow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn a_call_takes_at_most_696_bytes() {
        assert!(size_of::<Call>() <= 696, "{}", size_of::<Call>());
    }
}
