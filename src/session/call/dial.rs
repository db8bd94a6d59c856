//! Dials and redials: the choice of a chat server, its timeouts and failures, and the pauses between redials.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::action::{
    Action, BackendClosed, BackendFailure, BackendStage, Counter, DialRequest, DropReason, EndReason,
    LogEvent,
};
use super::super::call_report::SetupStage;
use super::super::context::Context;
use super::super::deadlines::CallTimer;
use super::super::media::{ClassifiedFrame, FramingState};
use super::super::queue::{HeldItem, Speech};
use super::super::server_failure_cause::ServerCause;
use super::{Call, CallResult, CallState, DeviceIdentity, Outage};
use crate::config::{ChatServerConfig, Config, OnDisconnect, Reconnect};
use crate::proto::message;
use crate::text;

/// The device gives up 10 s after its hello, so it is always answered before 9 s.
const HELLO_REPLY_TIMEOUT: Duration = Duration::from_millis(8500);
/// A server whose WebSocket is not open after this time is given up if there is another one to try.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A server that has not sent its hello after this time is given up if there is another one to try. If it has sent audio or speech,
/// the call starts without the hello.
const SERVER_HELLO_TIMEOUT: Duration = Duration::from_secs(4);
/// The timers of one dial.
const SERVER_TIMERS: [CallTimer; 3] = [CallTimer::Connect, CallTimer::ResendHello, CallTimer::ServerHello];
/// Some servers ignore a hello that arrives while they look up the device, so it is sent again after this time.
const HELLO_RESEND_DELAY: Duration = Duration::from_secs(3);
/// How long a redial may take before the device is told.
const REDIAL_NOTICE_DELAY: Duration = Duration::from_secs(3);
/// After a server was live for this long, the next redial starts with the shortest pause again.
const BACKOFF_RESET_AFTER: Duration = Duration::from_secs(10);
/// A random share of the pause, at most this, is subtracted, so that calls that failed together do not redial together.
const BACKOFF_JITTER_MAX: f64 = 0.2;
/// How soon a server that ended its connection after its speech has to take a new one, if it meant the end of the call.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// After so many redials that a server greeted without a word of the user in between, its next failure ends the call.
const GREETED_REDIALS_MAX: u8 = 3;
/// The client id that is signed and sent when the device has none; other gateways send the same.
const DEFAULT_CLIENT_ID: &str = "default-client-id";

impl Call {
    pub(in super::super) fn start(&mut self, device: DeviceIdentity<'_>, cx: &mut Context<'_>) -> CallResult {
        let servers =
            cx.servers.dial_order(cx.config.servers_for(device.id), cx.config.websocket.order, cx.now);
        self.cold.get_or_insert_default().untried_servers = servers;
        self.deadlines.set(CallTimer::HelloReply, self.started_at() + HELLO_REPLY_TIMEOUT);
        self.dial_next(device, cx)
    }

    /// The device said hello again before it was answered: the dial of `replaced` goes on for this call. What the device said
    /// in between was for the call that it has left.
    pub(in super::super) fn continue_dial(&mut self, replaced: Self, cx: &mut Context<'_>) {
        let hello_changed = self.hello != replaced.hello;
        self.state = replaced.state;
        self.connecting = replaced.connecting;
        self.server = replaced.server;
        self.protocol_version = replaced.protocol_version;
        if let (Some(cold), Some(replaced)) = (&mut self.cold, replaced.cold) {
            (cold.untried_servers, cold.early) = (replaced.untried_servers, replaced.early);
        }
        self.server_sent_early_media = replaced.server_sent_early_media;
        self.server_hello_overdue = replaced.server_hello_overdue;
        self.media.framing = replaced.media.framing;
        self.media.quality.continue_dial(&replaced.media.quality);
        self.deadlines.set(CallTimer::HelloReply, self.started_at() + HELLO_REPLY_TIMEOUT);
        for timer in SERVER_TIMERS {
            if let Some(at) = replaced.deadlines.get(timer) {
                self.deadlines.set(timer, at);
            }
        }
        if hello_changed && self.state == CallState::AwaitingHello {
            self.send_hello(cx);
        }
    }

    fn dial_next(&mut self, device: DeviceIdentity<'_>, cx: &mut Context<'_>) -> CallResult {
        let server = self.cold.as_mut().and_then(|cold| cold.untried_servers.pop_front());
        let server = server.ok_or(self.closing.unwrap_or(EndReason::NoServer))?;
        self.dial(server, false, device, cx);
        Ok(())
    }

    fn dial(
        &mut self,
        server: Arc<ChatServerConfig>,
        fresh: bool,
        device: DeviceIdentity<'_>,
        cx: &mut Context<'_>,
    ) {
        self.state = CallState::Dialing;
        self.connecting = false;
        self.media.quality.enter(SetupStage::Resolve, self.age(cx.now));
        self.server_sent_session_id = false;
        self.server_sent_early_media = false;
        self.server_hello_overdue = false;
        SERVER_TIMERS.into_iter().for_each(|timer| self.deadlines.clear(timer));
        if self.has_alternative(&server, device, cx.config) {
            self.deadlines.set(CallTimer::Connect, cx.now + CONNECT_TIMEOUT);
        }
        self.media.framing = match cx.servers.framing(&server) {
            Some(framing) => FramingState::Known(framing),
            None => FramingState::Unknown(0),
        };
        self.protocol_version = cx.servers.protocol_version(&server);
        if let Some(cold) = &mut self.cold {
            (cold.server_session_id, cold.last_words) = (None, None);
        }
        let request = self.dial_request(server.clone(), fresh, device, cx);
        self.server = Some(server);
        cx.out.push(Action::Dial(request));
    }

    fn dial_request(
        &self,
        server: Arc<ChatServerConfig>,
        fresh: bool,
        device: DeviceIdentity<'_>,
        cx: &Context<'_>,
    ) -> Box<DialRequest> {
        let sign_token = device.is_proven || cx.config.mqtt.signature_key.is_none();
        let client_id = match device.id.uuid() {
            Some(uuid) => Some(uuid.into_owned()),
            None => {
                (sign_token && cx.config.websocket.secret.is_some()).then(|| DEFAULT_CLIENT_ID.to_owned())
            }
        };
        Box::new(DialRequest {
            server,
            mac: device.id.mac(),
            client_id,
            sign_token,
            forwarded_for: device.ip,
            protocol_version: self.protocol_version,
            skip_dns_cache: fresh,
        })
    }

    /// Whether another server could be tried instead of this one.
    fn has_alternative(
        &self,
        server: &ChatServerConfig,
        device: DeviceIdentity<'_>,
        config: &Config,
    ) -> bool {
        if self.session_id.is_none() {
            return self.cold.as_ref().is_some_and(|cold| !cold.untried_servers.is_empty());
        }
        config.servers_for(device.id).iter().any(|other| other.url != server.url)
    }

    /// The dial has come to this stage: from the TCP connection on, a failure is the server's fault.
    pub(in super::super) fn on_dial_stage(&mut self, stage: SetupStage, now: Instant) {
        if self.state == CallState::Dialing {
            self.connecting |= stage != SetupStage::Resolve;
            self.media.quality.enter(stage, self.age(now));
        }
    }

    pub(in super::super) fn on_backend_open(&mut self, cx: &mut Context<'_>) -> CallResult {
        if self.state != CallState::Dialing {
            return Ok(());
        }
        if self.take_probe().is_some() {
            self.state = CallState::Live;
            self.deadlines.clear(CallTimer::Connect);
            return self.end_after_playout(EndReason::ServerClosed, cx);
        }
        self.state = CallState::AwaitingHello;
        self.media.quality.enter(SetupStage::Hello, self.age(cx.now));
        self.deadlines.clear(CallTimer::Connect);
        self.deadlines.set(CallTimer::ResendHello, cx.now + HELLO_RESEND_DELAY);
        self.deadlines.set(CallTimer::ServerHello, cx.now + SERVER_HELLO_TIMEOUT);
        self.send_hello(cx);
        Ok(())
    }

    pub(super) fn send_hello(&self, cx: &mut Context<'_>) {
        cx.out.push(Action::SendText(self.hello.for_server(self.protocol_version)));
    }

    // ----- timeouts -----------------------------------------------------------------------------------------------

    pub(super) fn on_server_hello_timeout(
        &mut self,
        device: DeviceIdentity<'_>,
        cx: &mut Context<'_>,
    ) -> CallResult {
        self.server_hello_overdue = true;
        if self.server_sent_early_media {
            return self.accept_missing_hello(cx);
        }
        let strict =
            self.server.as_ref().is_some_and(|server| self.has_alternative(server, device, cx.config));
        if strict {
            return self.on_server_failed(
                timeout_failure(BackendStage::Hello, SERVER_HELLO_TIMEOUT),
                device,
                cx,
            );
        }
        Ok(())
    }

    pub(super) fn on_hello_reply_timeout(
        &mut self,
        device: DeviceIdentity<'_>,
        cx: &mut Context<'_>,
    ) -> CallResult {
        if self.state == CallState::AwaitingHello && self.server_sent_early_media {
            self.server_hello_overdue = true;
            return self.accept_missing_hello(cx);
        }
        let stage =
            if self.state == CallState::AwaitingHello { BackendStage::Hello } else { BackendStage::Connect };
        self.cold.get_or_insert_default().untried_servers.clear();
        self.on_server_failed(timeout_failure(stage, HELLO_REPLY_TIMEOUT), device, cx)
    }

    // ----- failures -----------------------------------------------------------------------------------------------

    pub(in super::super) fn on_backend_closed(
        &mut self,
        gone: BackendClosed,
        device: DeviceIdentity<'_>,
        cx: &mut Context<'_>,
    ) -> CallResult {
        let stage = match self.state {
            _ if self.ending.is_some() => return Ok(()),
            CallState::Redialing | CallState::Ringing | CallState::InDeviceCall => return Ok(()),
            CallState::Live => BackendStage::Live,
            CallState::AwaitingHello | CallState::Dialing => BackendStage::Hello,
        };
        let next = match (stage, &self.server) {
            (BackendStage::Live, Some(server)) => {
                AfterClose::of(&gone, server.on_disconnect, self.speech_ended)
            }
            _ => AfterClose::Redial,
        };
        if let BackendClosed::CloseFrame(code, reason) = &gone {
            if !reason.is_empty() {
                self.on_server_words(reason);
            }
            if next == AfterClose::End {
                self.note_end(*code, cx);
            }
        }
        let failure = match gone {
            BackendClosed::Failed(failure) if self.is_probing() => {
                return self.on_probe_failed(&failure.message, device, cx);
            }
            BackendClosed::Failed(failure) if self.state == CallState::AwaitingHello => {
                BackendFailure { stage, ..failure }
            }
            BackendClosed::Failed(failure) => failure,
            BackendClosed::NoCloseFrame(how) => BackendFailure::new(stage, how),
            BackendClosed::CloseFrame(code, _) => {
                let with = code.map(|code| format!(" with code {code}")).unwrap_or_default();
                BackendFailure::new(stage, format!("the server closed the WebSocket{with}"))
                    .with_cause(ServerCause::of_close(code, self.server_said().unwrap_or_default()))
            }
        };
        match next {
            AfterClose::End => self.end_after_playout(EndReason::ServerClosed, cx),
            AfterClose::Probe => self.start_probe(failure, device, cx),
            AfterClose::Redial => self.on_server_failed(failure, device, cx),
        }
    }

    /// Logs why the server ended the call, if it said so, and keeps it for the device's screen.
    fn note_end(&mut self, code: Option<u16>, cx: &mut Context<'_>) {
        if let (None, Some(code @ (1008 | 4000..=4999))) = (self.server_said(), code) {
            self.on_server_words(&format!("code {code}"));
        }
        if let Some(said) = self.server_said() {
            cx.log(LogEvent::ServerEndedCall { url: self.server_name(), code, said: said.into() });
        }
    }

    /// The server ended the connection after its speech. If it takes a new one at once, it meant the end of the call.
    fn start_probe(
        &mut self,
        failure: BackendFailure,
        device: DeviceIdentity<'_>,
        cx: &mut Context<'_>,
    ) -> CallResult {
        let Some(server) = self.server.clone() else { return Ok(()) };
        self.drop_held_of_server(cx)?;
        (self.state, self.connecting) = (CallState::Dialing, false);
        self.deadlines.clear_server_timers();
        self.deadlines.set(CallTimer::Connect, cx.now + PROBE_TIMEOUT);
        self.cold.get_or_insert_default().probe = Some(failure);
        cx.out.push(Action::Dial(self.dial_request(server, false, device, cx)));
        self.release_ready(cx)
    }

    /// The server takes no new connection, so that it failed.
    pub(super) fn on_probe_failed(
        &mut self,
        why: &str,
        device: DeviceIdentity<'_>,
        cx: &mut Context<'_>,
    ) -> CallResult {
        let Some(mut failure) = self.take_probe() else { return Ok(()) };
        failure.message.push_str(&format!(", and the server takes no new connection ({why})"));
        self.state = CallState::Live;
        self.on_server_failed(failure, device, cx)
    }

    /// Why the call ends when its server fails now, instead of being redialled.
    fn gives_up(&self) -> Option<&'static str> {
        if self.state != CallState::Live {
            return None;
        }
        let ends = self.server.as_ref().is_some_and(|server| server.on_disconnect == OnDisconnect::End);
        let used_up = self.greeted_redials >= GREETED_REDIALS_MAX;
        ends.then_some("on_disconnect is end")
            .or(used_up.then_some("three redials were answered, and the user said nothing in between"))
    }

    /// Gives up the current server and dials the next one, after a pause if the device was answered already.
    pub(super) fn on_server_failed(
        &mut self,
        mut failure: BackendFailure,
        device: DeviceIdentity<'_>,
        cx: &mut Context<'_>,
    ) -> CallResult {
        let url = self.server_name();
        if let Some(said) = self.server_said() {
            let words = format!("; it said {}", text::quoted(said));
            failure = failure.with_cause(ServerCause::of_close(None, said));
            failure.message.push_str(&words);
            self.forget_last_words();
        }
        cx.count(Counter::DialFailed(failure.stage));
        let age = self.age(cx.now);
        self.media.quality.on_server_failed(&url, &failure, age);
        // A timeout in the queue of dials or in the resolver is not the server's fault, nor is a local shortage.
        let waited =
            self.state == CallState::Dialing && !self.connecting && failure.stage != BackendStage::Resolve;
        let at_fault = !waited && failure.stage != BackendStage::LocalShortage;
        if let Some(server) = self.server.as_ref().filter(|_| at_fault)
            && let Some(event) = cx.servers.on_failure(server, &failure, cx.now)
        {
            cx.log(event);
        }
        if let Some(why) = self.gives_up() {
            cx.log(LogEvent::ServerGivenUp { url, failure, why });
            self.drop_held_of_server(cx)?;
            self.state = CallState::Redialing;
            return self.end_after_playout(EndReason::ServerLost, cx);
        }
        cx.out.push(Action::CloseBackend(1001));
        self.drop_held_of_server(cx)?;
        if self.session_id.is_none() {
            self.state = CallState::Redialing;
            cx.log(LogEvent::DialFailed { url, failure });
            return self.dial_next(device, cx);
        }
        let pause = self.enter_backoff(cx);
        cx.log(LogEvent::Redialling { url, failure, pause });
        self.end_speech(cx)
    }

    /// Drops what the server that is given up sent before its hello. What it said after that is played out, if audio is paced.
    fn drop_held_of_server(&mut self, cx: &mut Context<'_>) -> CallResult {
        let early = self.cold.as_mut().map(|cold| std::mem::take(&mut cold.early));
        let mut frames = early.map_or(0, |mut early| early.drop_frames());
        if !cx.config.udp.downlink_pace {
            frames += self.held.drop_frames();
            self.count_held_dropped(frames, DropReason::NoServer, cx);
            return self.release_held_texts(cx);
        }
        let before = self.held.frames();
        let (media, age) = (&self.media, self.age(cx.now));
        self.held.change(|item| match &item {
            HeldItem::Frame(frame) => match media.classify(frame, age) {
                ClassifiedFrame::Audio(timestamp, opus) => {
                    Some(HeldItem::Packet { timestamp, opus: opus.into() })
                }
                _ => None,
            },
            _ => Some(item),
        });
        self.count_held_dropped(frames + before - self.held.frames(), DropReason::NoServer, cx);
        Ok(())
    }

    /// Starts the pause before the next redial and returns its length.
    fn enter_backoff(&mut self, cx: &Context<'_>) -> Duration {
        self.deadlines.clear_server_timers();
        let was_live = self.state == CallState::Live;
        let settled = was_live
            && cx.now.saturating_duration_since(self.deadlines.instant(self.live_since))
                >= BACKOFF_RESET_AFTER;
        let outage = self.cold.as_mut().and_then(|cold| cold.outage).filter(|_| !settled);
        let mut outage = outage.unwrap_or(Outage { lost_at: cx.now, attempts: 0, shown: false });
        let reconnect = &cx.config.websocket.reconnect;
        if was_live {
            // The time limit starts when the first redial fails, so that at least one is tried.
            outage.lost_at = cx.now;
        } else if !reconnect.give_up_after.is_zero() {
            self.deadlines.set(CallTimer::GiveUp, outage.lost_at + reconnect.give_up_after);
        }
        if !outage.shown {
            self.deadlines.set(CallTimer::RedialNotice, outage.lost_at + REDIAL_NOTICE_DELAY);
        }
        let pause = backoff_delay(reconnect, outage.attempts)
            .mul_f64(1.0 - BACKOFF_JITTER_MAX * random_fraction(self.ssrc(), outage.attempts));
        outage.attempts = outage.attempts.saturating_add(1);
        self.cold.get_or_insert_default().outage = Some(outage);
        self.state = CallState::Redialing;
        self.deadlines.set(CallTimer::Redial, cx.now + pause);
        pause
    }

    /// The call has no server for a while: the device is told.
    pub(super) fn on_long_outage(&mut self, cx: &mut Context<'_>) -> CallResult {
        if let Some(outage) = self.cold.as_mut().and_then(|cold| cold.outage.as_mut()) {
            outage.shown = true;
        }
        let text = message::alert(
            self.session_id(),
            "重新连接 / Reconnecting",
            "与聊天服务器的连接中断，正在重新连接 / The connection to the chat server was lost, connecting again",
            "neutral",
        );
        self.publish(text, cx)
    }

    /// Ends speech that was cut off, after what was said of it. The device does not listen until it gets `tts stop`.
    fn end_speech(&mut self, cx: &mut Context<'_>) -> CallResult {
        match &self.session_id {
            Some(id) if self.held.speech_goes_on().unwrap_or(self.tts_active) => {
                let text = message::tts(Some(id), "stop");
                self.deliver_in_order(&text, Some(Speech::Stop), cx)
            }
            _ => self.release_ready(cx),
        }
    }

    pub(super) fn redial(&mut self, device: DeviceIdentity<'_>, cx: &mut Context<'_>) -> CallResult {
        let list = cx.config.servers_for(device.id);
        let next = match &self.server {
            Some(last) => cx.servers.next_after(list, last),
            None => list.first().cloned(),
        };
        let server = next.ok_or(EndReason::ServerLost)?;
        self.deadlines.set(CallTimer::HelloReply, cx.now + HELLO_REPLY_TIMEOUT);
        self.dial(server, true, device, cx);
        Ok(())
    }
}

/// What follows when a server ends its connection in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum AfterClose {
    /// It meant the end of the call.
    End,
    /// It meant that if it takes a new connection at once.
    Probe,
    /// It failed.
    Redial,
}

impl AfterClose {
    /// `speech_ended`: its last message was `tts stop`.
    pub(in super::super) fn of(gone: &BackendClosed, policy: OnDisconnect, speech_ended: bool) -> Self {
        match (policy, gone) {
            (_, BackendClosed::Failed(_)) | (OnDisconnect::Redial, _) => Self::Redial,
            (OnDisconnect::End, _) => Self::End,
            (_, BackendClosed::CloseFrame(None | Some(1000 | 1008 | 4000..=4999), _)) => Self::End,
            (_, BackendClosed::NoCloseFrame(_)) if speech_ended => Self::Probe,
            _ => Self::Redial,
        }
    }
}

/// The pause before attempt `attempts` (the first is 0), without the random part.
fn backoff_delay(reconnect: &Reconnect, attempts: u32) -> Duration {
    // The factor is finite, so that a pause of zero stays zero.
    let factor = reconnect.multiplier.powi(attempts.min(1000) as i32).min(1e12);
    let pause = reconnect.initial.as_secs_f64() * factor;
    Duration::from_secs_f64(pause.min(reconnect.max.as_secs_f64()))
}

/// A number in 0..1 that differs from call to call and from attempt to attempt: an ssrc is random.
fn random_fraction(ssrc: u32, attempts: u32) -> f64 {
    let mixed =
        (u64::from(ssrc) << 32 | u64::from(attempts)).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

pub(super) fn timeout_failure(stage: BackendStage, after: Duration) -> BackendFailure {
    BackendFailure::new(stage, format!("no answer in {:.1} s", after.as_secs_f64()))
}
