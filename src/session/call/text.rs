//! Text both ways: the hello of each side, what waits for it, and session ids where the two sides' differ.

use std::collections::VecDeque;

use super::super::action::{Action, Counter, Cx, Discard, EndReason, Failure, Grant, Note};
use super::super::deadlines::Timer;
use super::{Call, Caller, Flow, Stage};
use crate::proto::audio;
use crate::proto::message::{self, HelloReply, Peek, Reader, ServerHello};

impl Call {
    // ----- the server is there ------------------------------------------------------------------------------------

    fn greeted(&mut self, hello: ServerHello, cx: &mut Cx<'_>) -> Flow {
        self.stage = Stage::Live;
        self.live_since = cx.now;
        self.server_heard = cx.now;
        self.plan = VecDeque::new();
        self.server_named(hello.session_id);
        for timer in [Timer::Answer, Timer::Greet, Timer::Again, Timer::GiveUp] {
            self.deadlines.clear(timer);
        }
        let websocket = &cx.config.websocket;
        if !websocket.ping_interval.is_zero() {
            self.deadlines.set(Timer::Ping, cx.now + websocket.ping_interval);
        }
        if let Some(server) = &self.server
            && let Some(note) = cx.servers.works(server, cx.now)
        {
            cx.out.push(Action::Note(note));
        }
        if self.closing.is_some() {
            // Nobody is left to be answered.
        } else if self.id.is_none() {
            self.answer(hello.audio_params, cx)?;
        } else {
            self.resume(cx);
        }
        for text in self.to_server.take() {
            self.say(&text, cx);
        }
        self.listen_queued = false;
        match self.closing {
            Some(reason) => Err(reason),
            None => self.release(cx),
        }
    }

    /// The hello reply: the call is up.
    fn answer(&mut self, audio_params: Option<Box<str>>, cx: &mut Cx<'_>) -> Flow {
        let Some(grant) = &self.grant else { return Ok(()) };
        let id = self.server_id.take_if(|id| message::is_for_devices(id));
        let id = id.unwrap_or_else(|| grant.session_id.clone());
        let audio_params = audio_params.or_else(|| self.hello.audio_params());
        let reply = hello_reply(grant, &id, audio_params.as_deref());
        self.id = Some(id.clone());
        self.publish(reply, cx)?;
        let after = cx.now.saturating_duration_since(self.began());
        let url = self.server_name();
        cx.out.push(Action::Count(Counter::Answered(after.as_millis() as u32)));
        cx.out.push(Action::Note(Note::CallBegan { session_id: id, url, after }));
        self.last_activity = cx.now;
        self.mind_idleness(cx.config);
        if self.listened {
            self.expect_datagram(cx);
        }
        Ok(())
    }

    /// The present server calls the session by this id. What is the device's own is not kept twice.
    fn server_named(&mut self, id: Option<Box<str>>) {
        self.server_named = id.is_some();
        self.server_id = id.filter(|id| self.id.as_ref() != Some(id));
    }

    /// The call goes on with another WebSocket: the new server learns what the device was saying.
    fn resume(&mut self, cx: &mut Cx<'_>) {
        self.media.facts.redials += 1;
        let lost = self.outage.as_ref().map_or(cx.now, |outage| outage.lost);
        let url = self.server_name();
        cx.out.push(Action::Count(Counter::Redialled));
        cx.out.push(Action::Note(Note::Redialled { url, after: cx.now.saturating_duration_since(lost) }));
        if let Some(listen) = self.last_listen.as_deref().filter(|_| !self.listen_queued) {
            self.say(listen, cx);
        }
    }

    /// A server that spoke, but said no hello in its time, is taken as live.
    pub(super) fn greet_late(&mut self, cx: &mut Cx<'_>) -> Flow {
        if !(self.server_spoke && self.greet_over) {
            return Ok(());
        }
        cx.out.push(Action::Note(Note::NoServerHello(self.server_name())));
        self.greeted(ServerHello::default(), cx)
    }

    // ----- from the server ----------------------------------------------------------------------------------------

    pub(in super::super) fn server_text(
        &mut self,
        text: &str,
        peek: &Peek<'_>,
        caller: Caller<'_>,
        cx: &mut Cx<'_>,
    ) -> Flow {
        self.server_said(cx.now);
        let tts_start = &*peek.kind == "tts" && peek.state.as_deref() == Some("start");
        match (&*peek.kind, self.stage) {
            (_, Stage::Dialing { .. } | Stage::Backoff | Stage::Ringing | Stage::Bridged) => Ok(()),
            ("hello", Stage::Greeting) => self.greeted(message::server_hello(text), cx),
            ("hello", Stage::Live) => {
                cx.out.push(Action::Count(Counter::RepeatedHello));
                // The first one of a server that was taken as live without: what it names its session counts.
                if !self.server_named {
                    self.server_named(message::server_hello(text).session_id);
                }
                Ok(())
            }
            ("goodbye", Stage::Greeting) => {
                let failure = Failure { stage: "hello", why: "the server said goodbye instead".to_owned() };
                self.failed(failure, caller, cx)
            }
            ("goodbye", Stage::Live) => {
                self.farewell = Some(message::with_session_id(text, self.session_id()).into_owned());
                Err(EndReason::ServerClosed)
            }
            (kind, Stage::Greeting) => {
                self.server_spoke |= matches!(kind, "tts" | "stt");
                self.held.push_text(text, tts_start)?;
                self.greet_late(cx)
            }
            (_, Stage::Live) if !self.held.is_empty() || (tts_start && self.must_hold()) => {
                self.held.push_text(text, tts_start)?;
                self.hold(cx.now);
                Ok(())
            }
            (_, Stage::Live) => self.deliver(text, cx),
        }
    }

    /// A server's text goes to the device, with the id the device knows: one WebSocket speaks of one session.
    pub(super) fn deliver(&mut self, text: &str, cx: &mut Cx<'_>) -> Flow {
        let Some(id) = &self.id else { return Ok(()) };
        let text = message::with_session_id(text, Some(id)).into_owned();
        if let Ok(Peek { kind, state: Some(state), .. }) = message::peek(&text, Reader::Device)
            && kind == "tts"
        {
            match &*state {
                "start" => self.speaking = true,
                "stop" => self.speaking = false,
                _ => {}
            }
        }
        self.publish(text, cx)
    }

    pub(super) fn publish(&mut self, text: String, cx: &mut Cx<'_>) -> Flow {
        match &mut self.away {
            Some(away) => away.push(&text)?,
            None => cx.out.push(Action::Publish(text)),
        }
        Ok(())
    }

    // ----- from the device ----------------------------------------------------------------------------------------

    pub(in super::super) fn device_text(&mut self, text: &str, peek: &Peek<'_>, cx: &mut Cx<'_>) -> Flow {
        self.last_activity = cx.now;
        match &*peek.kind {
            "goodbye" => return Err(EndReason::DeviceGoodbye),
            "udp_timeout" => return Err(EndReason::DeviceUdpTimeout),
            // The other device's voice is all that can be meant by it.
            "abort" if self.is_with_device() => return Err(EndReason::DeviceAbort),
            // Nobody is there to read it.
            _ if self.is_with_device() => return Ok(()),
            "abort" => {
                self.drop_held_audio(Discard::Aborted, cx);
                cx.out.push(Action::FlushAudio(self.ssrc()));
                // What waited behind the audio need not wait any more.
                self.release(cx)?;
            }
            "listen" => self.listens(text, peek, cx),
            _ => {}
        }
        if self.stage == Stage::Live {
            self.say(text, cx);
            return Ok(());
        }
        self.to_server.push(text)?;
        self.listen_queued |= peek.kind == "listen";
        Ok(())
    }

    fn listens(&mut self, text: &str, peek: &Peek<'_>, cx: &Cx<'_>) {
        self.last_listen = Some(text.into());
        let starts = peek.state.as_deref() == Some("start");
        if starts && !std::mem::replace(&mut self.listened, true) && self.id.is_some() {
            self.expect_datagram(cx);
        }
    }

    /// A device that listens sends datagrams, if it knows where to.
    fn expect_datagram(&mut self, cx: &Cx<'_>) {
        let warn = cx.config.udp.first_packet_warn;
        if self.media.peer().is_none() && !warn.is_zero() {
            self.deadlines.set(Timer::Unheard, cx.now + warn);
        }
    }

    /// A device's text goes to the server, with the id the server knows.
    fn say(&self, text: &str, cx: &mut Cx<'_>) {
        let text = match (&self.id, &self.server_id) {
            (Some(id), Some(server_id)) => message::replace_session_id(text, id, server_id),
            _ => text.into(),
        };
        cx.out.push(Action::Say(text.into_owned()));
    }
}

pub(super) fn hello_reply(grant: &Grant, id: &str, audio_params: Option<&str>) -> String {
    message::hello_reply(&HelloReply {
        session_id: id,
        audio_params,
        server: &grant.udp_host,
        port: grant.udp_port,
        key: &grant.key,
        nonce: &audio::nonce(grant.ssrc),
    })
}
