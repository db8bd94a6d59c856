//! Text in both directions: hellos, queued texts, and the translation of session ids.

use std::collections::VecDeque;
use std::time::Instant;

use super::super::action::{
    Action, BackendFailure, BackendStage, CallCredentials, Counter, EndReason, LogEvent,
};
use super::super::context::Context;
use super::super::deadlines::CallTimer;
use super::super::queue::Speech;
use super::{Call, CallResult, CallState, DeviceIdentity, LastWords};
use crate::proto::audio;
use crate::proto::message::{self, HelloReply, Peek, Reader, ServerHello};

impl Call {
    // ----- the server's hello -------------------------------------------------------------------------------------

    fn on_server_hello(&mut self, hello: ServerHello, cx: &mut Context<'_>) -> CallResult {
        if self.session_id.is_none() && self.device_has_given_up(cx.now) {
            return Err(EndReason::NoServer);
        }
        self.state = CallState::Live;
        self.live_since = self.deadlines.time(cx.now);
        self.server_last_seen = self.live_since;
        self.cold.get_or_insert_default().untried_servers = VecDeque::new();
        self.set_server_session_id(hello.session_id);
        let frame_ms = hello.audio_params.as_deref().and_then(message::frame_duration_ms);
        self.playout.set_frame_ms(frame_ms.or_else(|| self.hello.frame_duration_ms()));
        self.aborted = false;
        self.held.append(&mut self.cold.get_or_insert_default().early);
        self.deadlines.clear_server_timers();
        let websocket = &cx.config.websocket;
        if !websocket.ping_interval.is_zero() && self.server.as_ref().is_none_or(|server| server.ping) {
            self.deadlines.set(CallTimer::Ping, cx.now + websocket.ping_interval);
        }
        if let Some(server) = &self.server
            && let Some(event) = cx.servers.on_success(server, cx.now)
        {
            cx.log(event);
        }
        if self.closing.is_some() {
            // The device has left, so it gets no reply.
        } else if self.session_id.is_none() {
            self.send_hello_reply(hello.audio_params, cx)?;
        } else {
            self.resume_with_server(cx)?;
        }
        for text in self.cold.get_or_insert_default().pending_server_text.take() {
            self.send_to_server(&text, cx);
        }
        self.listen_queued = false;
        match self.closing {
            Some(reason) => Err(reason),
            None => self.release_ready(cx),
        }
    }

    /// Sends the hello reply to the device.
    fn send_hello_reply(&mut self, audio_params: Option<Box<str>>, cx: &mut Context<'_>) -> CallResult {
        let Some(cold) = &mut self.cold else { return Ok(()) };
        let Some(credentials) = &cold.credentials else { return Ok(()) };
        let id = cold.server_session_id.take_if(|id| message::is_for_devices(id));
        let id = id.unwrap_or_else(|| credentials.session_id.clone());
        let audio_params = audio_params.or_else(|| self.hello.audio_params());
        let reply = hello_reply(credentials, &id, audio_params.as_deref());
        self.session_id = Some(id.clone());
        self.publish(reply, cx)?;
        if std::mem::take(&mut self.device_may_be_speaking) {
            self.publish(message::tts(Some(&id), "stop"), cx)?;
        }
        let after = cx.now.saturating_duration_since(self.started_at());
        let url = self.server_name();
        cx.count(Counter::Answered(self.media.quality.on_answered(after)));
        cx.log(LogEvent::CallStarted { session_id: id, url, after });
        self.last_activity = self.deadlines.time(cx.now);
        self.update_idle_deadline(cx.config);
        self.postpone_keep_alive(cx.config, after);
        if self.is_listening {
            self.expect_audio(cx);
        }
        Ok(())
    }

    /// Stores the current server's session id, unless it equals the device's.
    fn set_server_session_id(&mut self, id: Option<Box<str>>) {
        self.server_sent_session_id = id.is_some();
        self.cold.get_or_insert_default().server_session_id =
            id.filter(|id| self.session_id.as_ref() != Some(id));
    }

    /// The call continues on a new WebSocket: the device's last `listen` is repeated.
    fn resume_with_server(&mut self, cx: &mut Context<'_>) -> CallResult {
        self.media.counts.redials += 1;
        self.greeted_redials = self.greeted_redials.saturating_add(1);
        let outage = self.cold.as_mut().and_then(|cold| cold.outage.as_mut());
        let (lost, was_shown) =
            outage.map_or((cx.now, false), |outage| (outage.lost_at, std::mem::take(&mut outage.shown)));
        let url = self.server_name();
        cx.count(Counter::Redialled);
        cx.log(LogEvent::Redialled { url, after: cx.now.saturating_duration_since(lost) });
        if was_shown {
            let text = message::alert(
                self.session_id(),
                "已恢复 / Connected",
                "已重新连接聊天服务器 / The chat server is connected again",
                "neutral",
            );
            self.publish(text, cx)?;
        }
        if let Some(listen) = self.last_listen.as_deref().filter(|_| !self.listen_queued) {
            self.send_to_server(listen, cx);
        }
        Ok(())
    }

    /// A server that sent audio or speech but no hello in time is treated as if it had sent one.
    pub(super) fn accept_missing_hello(&mut self, cx: &mut Context<'_>) -> CallResult {
        if !(self.server_sent_early_media && self.server_hello_overdue) {
            return Ok(());
        }
        cx.log(LogEvent::NoServerHello(self.server_name()));
        self.on_server_hello(ServerHello::default(), cx)
    }

    // ----- from the server ----------------------------------------------------------------------------------------

    pub(in super::super) fn on_server_text(
        &mut self,
        text: &str,
        peek: &Peek<'_>,
        device: DeviceIdentity<'_>,
        cx: &mut Context<'_>,
    ) -> CallResult {
        let age = self.age(cx.now);
        self.on_server_message(age);
        let speech = match (&*peek.kind, peek.state.as_deref()) {
            ("tts", Some("start")) => Some(Speech::Start),
            ("tts", Some("stop")) => Some(Speech::Stop),
            ("tts", _) => Some(Speech::Other),
            _ => None,
        };
        self.speech_ended = speech == Some(Speech::Stop);
        if peek.kind == "stt" {
            self.greeted_redials = 0;
            self.media.quality.on_recognized(age);
        }
        if speech == Some(Speech::Stop) {
            self.media.quality.on_answer(age);
        }
        match (&*peek.kind, self.state) {
            (_, CallState::Dialing | CallState::Redialing | CallState::Ringing | CallState::InDeviceCall) => {
                Ok(())
            }
            ("hello", CallState::AwaitingHello) => {
                self.on_server_hello(message::parse_server_hello(&peek.object), cx)
            }
            ("hello", CallState::Live) => {
                cx.count(Counter::RepeatedHello);
                // A hello that is late: its session id is used.
                if !self.server_sent_session_id {
                    self.set_server_session_id(message::parse_server_hello(&peek.object).session_id);
                }
                Ok(())
            }
            ("goodbye", CallState::AwaitingHello) => {
                let failure =
                    BackendFailure::new(BackendStage::Hello, "the server sent goodbye instead of hello");
                self.on_server_failed(failure, device, cx)
            }
            ("goodbye", CallState::Live) => {
                let goodbye = message::with_session_id(text, self.session_id()).into_owned();
                self.cold.get_or_insert_default().last_words = Some(LastWords::Goodbye(goodbye.into()));
                self.end_after_playout(EndReason::ServerClosed, cx)
            }
            (kind, CallState::AwaitingHello) => {
                self.server_sent_early_media |= matches!(kind, "tts" | "stt");
                self.cold.get_or_insert_default().early.push_text(text, speech)?;
                self.accept_missing_hello(cx)
            }
            (_, CallState::Live) => {
                self.aborted &= !matches!(speech, Some(Speech::Start | Speech::Stop));
                self.deliver_in_order(text, speech, cx)
            }
        }
    }

    /// Sends a server's text to the device, with the session id that the device knows.
    pub(super) fn deliver_to_device(&mut self, text: &str, cx: &mut Context<'_>) -> CallResult {
        let Some(id) = &self.session_id else { return Ok(()) };
        let text = message::with_session_id(text, Some(id)).into_owned();
        if let Ok(Peek { kind, state: Some(state), .. }) = message::peek(&text, Reader::Device)
            && kind == "tts"
        {
            match &*state {
                "start" => {
                    let was_speaking = std::mem::replace(&mut self.tts_active, true);
                    if !was_speaking {
                        self.media.quality.on_speech_change();
                    }
                    self.stop_listening(cx.now);
                    self.deadlines.clear(CallTimer::MissingAudio);
                    self.playout.on_speech_start(was_speaking, &cx.config.udp, cx.now);
                }
                "stop" => {
                    self.tts_active = false;
                    self.media.quality.on_speech_change();
                }
                _ => {}
            }
        }
        self.publish(text, cx)
    }

    pub(super) fn publish(&mut self, text: String, cx: &mut Context<'_>) -> CallResult {
        match self.cold.as_mut().and_then(|cold| cold.pending_device_text.as_mut()) {
            Some(away) => away.push(&text)?,
            None => cx.publish(text),
        }
        Ok(())
    }

    // ----- from the device ----------------------------------------------------------------------------------------

    pub(in super::super) fn on_device_text(
        &mut self,
        text: &str,
        peek: &Peek<'_>,
        cx: &mut Context<'_>,
    ) -> CallResult {
        self.last_activity = self.deadlines.time(cx.now);
        let id = peek.session_id.as_deref();
        if id.is_some() && id == self.session_id() && peek.kind != "mcp" {
            self.on_proof(cx)?;
        }
        if peek.kind == "listen" && peek.state.as_deref() == Some("start") {
            let mode = peek.object.string("mode");
            self.listens_in_realtime = mode.as_deref() == Some("realtime");
        }
        match &*peek.kind {
            // A device that is in no call has the id "" (firmware since 2.3).
            "listen" | "abort" if id == Some("") && self.session_id.is_some() => {
                return Err(EndReason::DeviceNotInCall);
            }
            "udp_timeout" => return Err(EndReason::DeviceUdpTimeout),
            // It can only be meant for the other device's speech.
            "abort" if self.is_in_device_call() => return Err(EndReason::DeviceAbort),
            // There is no chat server to read it.
            _ if self.is_in_device_call() => return Ok(()),
            "abort" => {
                self.greeted_redials = 0;
                self.deadlines.clear(CallTimer::MissingAudio);
                self.interrupt(cx)?;
            }
            "listen" => self.on_listen(text, peek, cx),
            _ => {}
        }
        if self.ending.is_some() {
            return Ok(());
        }
        if self.state == CallState::Live {
            self.send_to_server(text, cx);
            return Ok(());
        }
        self.cold.get_or_insert_default().pending_server_text.push(text)?;
        self.listen_queued |= peek.kind == "listen";
        Ok(())
    }

    fn on_listen(&mut self, text: &str, peek: &Peek<'_>, cx: &Context<'_>) {
        self.last_listen = Some(text.into());
        let age = self.age(cx.now);
        match peek.state.as_deref() {
            Some("start") => {
                let was_unheard = self.is_listening && !self.heard_since_listen;
                self.media.quality.on_listen_start(was_unheard, age);
                (self.is_listening, self.heard_since_listen) = (true, false);
                self.expect_audio(cx);
            }
            Some("detect") => self.greeted_redials = 0,
            Some("stop") => {
                self.stop_listening(cx.now);
                self.media.quality.on_listen_stop(age);
                self.deadlines.clear(CallTimer::MissingAudio);
            }
            _ => {}
        }
    }

    fn stop_listening(&mut self, now: Instant) {
        let was_listening = std::mem::take(&mut self.is_listening);
        let age = self.age(now);
        self.media.quality.on_listen_end(was_listening && !self.heard_since_listen, age);
    }

    /// Starts the timer for the audio of a device that listens.
    fn expect_audio(&mut self, cx: &Context<'_>) {
        let warn = cx.config.udp.first_packet_warn;
        if self.session_id.is_some() && !warn.is_zero() {
            self.deadlines.set(CallTimer::MissingAudio, cx.now + warn);
        }
    }

    /// Sends a device's text to the server, with the session id that the server knows.
    fn send_to_server(&self, text: &str, cx: &mut Context<'_>) {
        let server_id = self.cold.as_ref().and_then(|cold| cold.server_session_id.as_deref());
        let text = match (&self.session_id, server_id) {
            (Some(id), Some(server_id)) => message::replace_session_id(text, id, server_id),
            _ => text.into(),
        };
        cx.out.push(Action::SendText(text.into_owned()));
    }
}

pub(super) fn hello_reply(credentials: &CallCredentials, id: &str, audio_params: Option<&str>) -> String {
    message::hello_reply(&HelloReply {
        session_id: id,
        audio_params,
        server: &credentials.udp_host,
        port: credentials.udp_port,
        key: &credentials.key,
        nonce: &audio::nonce(credentials.ssrc),
    })
}
