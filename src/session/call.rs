//! One call: from the device's hello to its end. Dialling, greeting, failover, and the order of text and audio.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::action::{
    Action, Counter, Cx, DialRequest, Discard, EndReason, Failure, Gone, Grant, Note, Summary,
};
use super::deadlines::{Deadlines, Timer};
use super::media::{Frame, Framing, Media, Opened, Peer, Sealed};
use super::queue::{Held, HeldQueue, Overflow, Texts};
use super::servers::Servers;
use crate::config::{Config, Framing as FramingSetting, Reconnect, Server};
use crate::proto::audio;
use crate::proto::identity::ClientId;
use crate::proto::message::{self, DeviceHello, HelloReply, Peek, ServerHello};

/// The device gives up 10 s after its hello; it is answered before 9 s whatever happens.
const ANSWER_WITHIN: Duration = Duration::from_millis(8500);
/// A server that has not finished resolve, connect and upgrade by now is given up while another is left.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// A server that has not answered our hello by now is given up while another is left, or taken as live if it spoke.
const GREET_WITHIN: Duration = Duration::from_secs(4);
/// Some servers drop a hello that comes while they look the device up: say it once more.
const HELLO_AGAIN_AFTER: Duration = Duration::from_secs(3);
/// How long audio and `tts start` wait for the device's first datagram.
const HOLD: Duration = Duration::from_secs(2);
/// A call that has been live so long starts its next redial with the shortest pause again.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// At most this share is taken off a pause, so that calls that failed together do not redial together.
const JITTER: f64 = 0.2;
/// What a device that named none is told in a hello that only announces a failure.
const DEFAULT_AUDIO: &str = r#"{"format":"opus","sample_rate":16000,"channels":1,"frame_duration":60}"#;

/// What the core needs to know of its device to serve a call.
#[derive(Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) id: &'a ClientId,
    pub(super) ip: IpAddr,
}

/// Why a call cannot go on, for [`Core`](super::Core) to end it.
pub(super) type Flow = Result<(), EndReason>;

/// An uplink packet ready for the chat server.
#[derive(Debug, PartialEq, Eq)]
pub struct Uplink<'b> {
    /// The binary WebSocket frame's payload.
    pub frame: &'b [u8],
    /// The device's address became known: call [`Core::audible`](super::Core::audible).
    pub first: bool,
}

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
}

pub(super) struct Call {
    stage: Stage,
    began: Instant,
    hello: DeviceHello,
    /// Fresh for this hello; `session_id` is the gateway's own, used when the server names none.
    grant: Grant,
    media: Media,
    /// The id the device was given: there once its hello reply is out.
    id: Option<Box<str>>,
    /// The id the present server uses.
    server_id: Option<Box<str>>,
    server: Option<Arc<Server>>,
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
    hold_spent: bool,
    listened: bool,
    outage: Option<Outage>,
    live_since: Instant,
    jitter: u64,
    /// The device left before the server was there: what it said is still sent, then the call ends.
    closing: Option<EndReason>,
    /// The server's own goodbye, to be the call's one goodbye.
    farewell: Option<String>,
}

/// A failure that has not yet been lived down.
#[derive(Clone, Copy, Debug)]
struct Outage {
    since: Instant,
    /// When the connection was lost this time.
    lost: Instant,
    attempts: u32,
}

impl Call {
    pub(super) fn new(hello: DeviceHello, grant: Grant, ip: IpAddr, now: Instant) -> Self {
        Self {
            stage: Stage::Dialing { connecting: false },
            began: now,
            hello,
            media: Media::new(&grant, ip, now),
            id: None,
            server_id: None,
            server: None,
            plan: VecDeque::new(),
            deadlines: Deadlines::default(),
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
            closing: None,
            farewell: None,
            grant,
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

    /// The id towards the present server.
    pub(super) fn server_session_id(&self) -> Option<&str> {
        self.server_id.as_deref().or(self.id.as_deref())
    }

    /// The server for logs: without its query, where tokens live.
    fn server_name(&self) -> String {
        self.server.as_ref().map(|server| server.to_string()).unwrap_or_default()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// The device hangs up. True: the call must go on by itself until what the device said is sent.
    pub(super) fn hang_up(&mut self, reason: EndReason) -> bool {
        if self.id.is_some() || self.to_server.is_empty() {
            return false;
        }
        self.closing = Some(reason);
        self.away = Some(Texts::default());
        true
    }

    // ----- dialling -----------------------------------------------------------------------------------------------

    pub(super) fn begin(&mut self, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        self.plan = cx.servers.plan(cx.config.servers_for(caller.id.mac()), cx.now);
        self.deadlines.set(Timer::Answer, self.began + ANSWER_WITHIN);
        self.dial_next(caller, cx)
    }

    fn dial_next(&mut self, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        let server = self.plan.pop_front().ok_or(EndReason::NoServer)?;
        self.dial(server, false, caller, cx);
        Ok(())
    }

    fn dial(&mut self, server: Arc<Server>, fresh: bool, caller: Caller<'_>, cx: &mut Cx<'_>) {
        self.stage = Stage::Dialing { connecting: false };
        self.server_id = None;
        self.server_spoke = false;
        self.greet_over = false;
        for timer in [Timer::Connect, Timer::Again, Timer::Greet, Timer::Ping, Timer::Pong] {
            self.deadlines.clear(timer);
        }
        if self.another_left(&server, caller, cx.config) {
            self.deadlines.set(Timer::Connect, cx.now + CONNECT_WITHIN);
        }
        self.media.framing = match cx.servers.spoken(&server) {
            Some(spoken) => Framing::Known(spoken),
            None => Framing::Unknown(0),
        };
        let client_id = match caller.id.uuid() {
            Some(uuid) => Some(uuid.to_owned()),
            None => cx.config.websocket.secret.is_some().then(|| "default-client-id".to_owned()),
        };
        let request = DialRequest {
            server: server.clone(),
            mac: caller.id.mac(),
            client_id,
            forwarded_for: caller.ip,
            fresh,
        };
        self.server = Some(server);
        cx.out.push(Action::Dial(Box::new(request)));
    }

    /// Whether to be strict with this server, since another can be tried.
    fn another_left(&self, server: &Server, caller: Caller<'_>, config: &Config) -> bool {
        if self.id.is_none() {
            return !self.plan.is_empty();
        }
        config.servers_for(caller.id.mac()).iter().any(|other| other.url != server.url)
    }

    /// The dial left the queue and the resolver: from now on its failure is the server's.
    pub(super) fn connecting(&mut self) {
        if let Stage::Dialing { connecting } = &mut self.stage {
            *connecting = true;
        }
    }

    pub(super) fn opened(&mut self, cx: &mut Cx<'_>) {
        if !matches!(self.stage, Stage::Dialing { .. }) {
            return;
        }
        self.stage = Stage::Greeting;
        self.deadlines.clear(Timer::Connect);
        self.deadlines.set(Timer::Again, cx.now + HELLO_AGAIN_AFTER);
        self.deadlines.set(Timer::Greet, cx.now + GREET_WITHIN);
        cx.out.push(Action::Say(self.hello.to_server.to_string()));
    }

    // ----- the server fails ---------------------------------------------------------------------------------------

    pub(super) fn gone(&mut self, gone: Gone, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        let failure = match (gone, self.stage) {
            (Gone::Closed(None | Some(1000)), Stage::Live) => return Err(EndReason::ServerClosed),
            (_, Stage::Backoff) => return Ok(()),
            (Gone::Failed(failure), _) => failure,
            (Gone::Closed(code), stage) => Failure {
                stage: if stage == Stage::Live { "live" } else { "hello" },
                why: match code {
                    Some(code) => format!("the server closed the WebSocket with code {code}"),
                    None => "the server closed the WebSocket".to_owned(),
                },
            },
        };
        self.failed(failure, caller, cx)
    }

    /// The present server is of no use any more: on to the next, after a pause if the call was up.
    fn failed(&mut self, failure: Failure, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        let url = self.server_name();
        cx.out.push(Action::Count(Counter::DialFailed(failure.stage)));
        if let Some(server) = &self.server
            && self.stage != (Stage::Dialing { connecting: false })
            && let Some(note) = cx.servers.failed(server, &failure.to_string(), cx.now)
        {
            cx.out.push(Action::Note(note));
        }
        cx.out.push(Action::HangUp(1001));
        self.forget_held(cx);
        if self.id.is_none() {
            cx.out.push(Action::Note(Note::DialFailed { url, failure }));
            return self.dial_next(caller, cx).map_err(|reason| self.closing.unwrap_or(reason));
        }
        let pause = self.back_off(cx);
        cx.out.push(Action::Note(Note::Redialling { url, failure, pause }));
        self.stop_speech(cx)
    }

    /// Enters the pause before the next redial and says how long it is.
    fn back_off(&mut self, cx: &mut Cx<'_>) -> Duration {
        let was_live = self.stage == Stage::Live;
        let settled = was_live && cx.now.saturating_duration_since(self.live_since) >= SETTLED_AFTER;
        let mut outage = match self.outage {
            Some(outage) if !settled => outage,
            _ => Outage { since: cx.now, lost: cx.now, attempts: 0 },
        };
        if was_live {
            outage.lost = cx.now;
        }
        let reconnect = &cx.config.websocket.reconnect;
        let pause = backoff(reconnect, outage.attempts).mul_f64(1.0 - JITTER * self.random());
        outage.attempts = outage.attempts.saturating_add(1);
        if !reconnect.give_up_after.is_zero() {
            self.deadlines.set(Timer::GiveUp, outage.since + reconnect.give_up_after);
        }
        self.outage = Some(outage);
        self.stage = Stage::Backoff;
        for timer in [Timer::Connect, Timer::Again, Timer::Greet, Timer::Answer, Timer::Ping, Timer::Pong] {
            self.deadlines.clear(timer);
        }
        self.deadlines.set(Timer::Redial, cx.now + pause);
        pause
    }

    /// Speech that was cut off would leave the device waiting for its end with a deaf microphone.
    fn stop_speech(&mut self, cx: &mut Cx<'_>) -> Flow {
        if !std::mem::take(&mut self.speaking) {
            return Ok(());
        }
        let Some(id) = &self.id else { return Ok(()) };
        let text = message::tts_stop(id);
        self.publish(text, cx)
    }

    fn redial(&mut self, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        let list = cx.config.servers_for(caller.id.mac());
        let next = match &self.server {
            Some(last) => Servers::after(list, last),
            None => list.first().cloned(),
        };
        let server = next.ok_or(EndReason::ServerLost)?;
        self.deadlines.set(Timer::Answer, cx.now + ANSWER_WITHIN);
        self.dial(server, true, caller, cx);
        Ok(())
    }

    /// Uniform in 0..1, by xorshift: good enough to keep redials apart.
    fn random(&mut self) -> f64 {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        (self.jitter >> 11) as f64 / (1u64 << 53) as f64
    }

    // ----- the server is there ------------------------------------------------------------------------------------

    fn greeted(&mut self, hello: ServerHello, cx: &mut Cx<'_>) -> Flow {
        self.stage = Stage::Live;
        self.live_since = cx.now;
        self.server_heard = cx.now;
        self.server_id = hello.session_id;
        for timer in [Timer::Answer, Timer::Connect, Timer::Greet, Timer::Again, Timer::GiveUp] {
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
        self.flush_to_server(cx);
        match self.closing {
            Some(reason) => Err(reason),
            None => self.release(cx),
        }
    }

    fn flush_to_server(&mut self, cx: &mut Cx<'_>) {
        for text in self.to_server.take() {
            self.say(&text, cx);
        }
        self.listen_queued = false;
    }

    /// The hello reply: the call is up.
    fn answer(&mut self, audio_params: Option<Box<str>>, cx: &mut Cx<'_>) -> Flow {
        let id = self.server_id.clone().unwrap_or_else(|| self.grant.session_id.clone());
        let audio_params = audio_params.or_else(|| self.hello.audio_params.clone());
        let reply = self.hello_reply(&id, audio_params.as_deref());
        self.id = Some(id.clone());
        self.publish(reply, cx)?;
        let after = cx.now.saturating_duration_since(self.began);
        let url = self.server_name();
        cx.out.push(Action::Count(Counter::Answered(after.as_millis() as u32)));
        cx.out.push(Action::Note(Note::CallBegan { session_id: id, url, after }));
        self.last_activity = cx.now;
        if !cx.config.websocket.call_idle.is_zero() {
            self.deadlines.set(Timer::Idle, cx.now + cx.config.websocket.call_idle);
        }
        Ok(())
    }

    /// The call goes on with another WebSocket: the new server learns what the device was saying.
    fn resume(&mut self, cx: &mut Cx<'_>) {
        self.media.facts.redials += 1;
        let lost = self.outage.map_or(cx.now, |outage| outage.lost);
        let url = self.server_name();
        cx.out.push(Action::Count(Counter::Redialled));
        cx.out.push(Action::Note(Note::Redialled { url, after: cx.now.saturating_duration_since(lost) }));
        if let Some(listen) = self.last_listen.take().filter(|_| !self.listen_queued) {
            self.say(&listen, cx);
            self.last_listen = Some(listen);
        }
    }

    fn hello_reply(&self, id: &str, audio_params: Option<&str>) -> String {
        message::hello_reply(&HelloReply {
            session_id: id,
            audio_params,
            server: &self.grant.udp_host,
            port: self.grant.udp_port,
            key: &self.grant.key,
            nonce: &audio::nonce(self.grant.ssrc),
        })
    }

    pub(super) fn server_text(
        &mut self,
        text: &str,
        peek: &Peek<'_>,
        caller: Caller<'_>,
        cx: &mut Cx<'_>,
    ) -> Flow {
        self.server_heard = cx.now;
        self.last_activity = cx.now;
        let speech = matches!(&*peek.kind, "tts" | "stt");
        let tts_start = &*peek.kind == "tts" && peek.state.as_deref() == Some("start");
        match (&*peek.kind, self.stage) {
            ("hello", Stage::Greeting) => return self.greeted(message::server_hello(text), cx),
            ("hello", _) => {
                cx.out.push(Action::Count(Counter::RepeatedHello));
                return Ok(());
            }
            ("goodbye", Stage::Greeting) => {
                let failure = Failure { stage: "hello", why: "the server said goodbye instead".to_owned() };
                return self.failed(failure, caller, cx);
            }
            ("goodbye", _) => {
                self.farewell = self.own_goodbye(text, peek);
                return Err(EndReason::ServerClosed);
            }
            (_, Stage::Greeting) => {
                self.held.push_text(text, tts_start)?;
                self.server_spoke |= speech;
                return self.greet_late(cx);
            }
            _ => {}
        }
        if !self.held.is_empty() || (tts_start && self.must_hold()) {
            self.held.push_text(text, tts_start)?;
            self.hold(cx.now);
            return Ok(());
        }
        self.deliver(text, cx)
    }

    /// A server that spoke, but said no hello in its time, is taken as live.
    fn greet_late(&mut self, cx: &mut Cx<'_>) -> Flow {
        if !(self.server_spoke && self.greet_over) {
            return Ok(());
        }
        let url = self.server_name();
        cx.out.push(Action::Note(Note::NoServerHello(url)));
        self.greeted(ServerHello { session_id: None, audio_params: self.hello.audio_params.clone() }, cx)
    }

    /// A server's text goes to the device, with the id the device knows.
    fn deliver(&mut self, text: &str, cx: &mut Cx<'_>) -> Flow {
        let Some(id) = &self.id else { return Ok(()) };
        let mapped = match &self.server_id {
            Some(server_id) if server_id != id => message::replace_session_id(text, server_id, id),
            _ => text.into(),
        };
        let text = message::ensure_session_id(&mapped, id).into_owned();
        if let Ok(Peek { kind, state: Some(state), .. }) = message::peek(&text)
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

    /// The server's goodbye with the id the device knows, if it speaks of this call.
    fn own_goodbye(&self, text: &str, peek: &Peek<'_>) -> Option<String> {
        let id = self.id.as_deref()?;
        match peek.session_id.as_deref() {
            None => Some(message::ensure_session_id(text, id).into_owned()),
            Some(given) if given == id || self.server_id.as_deref() == Some(given) => {
                Some(message::replace_session_id(text, given, id).into_owned())
            }
            Some(_) => None,
        }
    }

    fn publish(&mut self, text: String, cx: &mut Cx<'_>) -> Flow {
        match &mut self.away {
            Some(away) => away.push(&text)?,
            None => cx.out.push(Action::Publish(text)),
        }
        Ok(())
    }

    // ----- from the device ----------------------------------------------------------------------------------------

    pub(super) fn device_text(&mut self, text: &str, peek: &Peek<'_>, cx: &mut Cx<'_>) -> Flow {
        self.last_activity = cx.now;
        match &*peek.kind {
            "goodbye" => return Err(EndReason::DeviceGoodbye),
            "udp_timeout" => return Err(EndReason::DeviceUdpTimeout),
            "abort" => {
                self.drop_held_audio(Discard::Aborted, cx);
                cx.out.push(Action::FlushAudio(self.ssrc()));
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
        let warn = cx.config.udp.first_packet_warn;
        let starts = peek.state.as_deref() == Some("start");
        if starts
            && !std::mem::replace(&mut self.listened, true)
            && self.media.peer().is_none()
            && !warn.is_zero()
        {
            self.deadlines.set(Timer::Unheard, cx.now + warn);
        }
    }

    /// A device's text goes to the server, with the id the server knows.
    pub(super) fn say(&self, text: &str, cx: &mut Cx<'_>) {
        let text = match (&self.id, &self.server_id) {
            (Some(id), Some(server_id)) if id != server_id => {
                message::replace_session_id(text, id, server_id)
            }
            _ => text.into(),
        };
        cx.out.push(Action::Say(text.into_owned()));
    }

    // ----- audio --------------------------------------------------------------------------------------------------

    /// One datagram of the device, decrypted in place and framed for the chat server.
    pub(super) fn uplink<'b>(
        &mut self,
        from: Peer,
        datagram: &'b mut [u8],
        config: &Config,
        now: Instant,
    ) -> Result<Uplink<'b>, Discard> {
        let opened: Opened = self.media.open(from, datagram, config.udp.peer_policy, now)?;
        self.last_activity = now;
        if self.stage != Stage::Live {
            self.media.facts.dropped += 1;
            return Err(Discard::NoServer);
        }
        Ok(Uplink { frame: self.media.to_server(&opened, datagram), first: opened.first })
    }

    /// One binary frame of the chat server, encrypted into `out`. None: it waits.
    pub(super) fn downlink(
        &mut self,
        frame: &[u8],
        out: &mut [u8],
        config: &Config,
        servers: &mut Servers,
        now: Instant,
    ) -> Result<Option<Sealed>, Discard> {
        self.server_heard = now;
        self.last_activity = now;
        let fixed = self.server.as_ref().is_some_and(|server| server.framing != FramingSetting::Auto);
        let before = self.media.framing;
        let found = self.media.classify(frame, fixed, now);
        if let (Framing::Known(spoken), Some(server)) = (self.media.framing, &self.server)
            && self.media.framing != before
        {
            servers.learn(server, spoken);
        }
        if matches!(found, Frame::Bad) {
            return Err(Discard::BadFrame);
        }
        if self.stage == Stage::Greeting {
            self.server_spoke = true;
            return self.hold_frame(frame);
        }
        let Frame::Audio(timestamp, payload) = found else {
            if self.hold_spent {
                return self.dropped(Discard::NoPeer);
            }
            self.hold(now);
            return self.hold_frame(frame);
        };
        if !self.held.is_empty() || self.must_hold() {
            self.hold(now);
            return self.hold_frame(frame);
        }
        let Some(peer) = self.media.peer() else { return self.dropped(Discard::NoPeer) };
        Ok(Some(self.media.seal(peer, timestamp, payload, config.udp.downlink_flags, out)))
    }

    fn dropped<T>(&mut self, discard: Discard) -> Result<T, Discard> {
        self.media.facts.dropped += 1;
        Err(discard)
    }

    fn hold_frame(&mut self, frame: &[u8]) -> Result<Option<Sealed>, Discard> {
        if self.held.push_frame(frame) {
            return Ok(None);
        }
        self.dropped(Discard::HeldFull)
    }

    /// There is nowhere to send audio to yet, and it has not waited its time.
    fn must_hold(&self) -> bool {
        self.media.peer().is_none() && !self.hold_spent
    }

    fn hold(&mut self, now: Instant) {
        if !self.deadlines.is_set(Timer::Hold) {
            self.deadlines.set(Timer::Hold, now + HOLD);
        }
    }

    /// Something changed that may let waiting text and audio go: the framing, the device's address, or the hello.
    pub(super) fn settle(&mut self, cx: &mut Cx<'_>) -> Flow {
        if self.stage == Stage::Greeting {
            return self.greet_late(cx);
        }
        self.release(cx)
    }

    /// Lets go, in order, all that need not wait any more.
    fn release(&mut self, cx: &mut Cx<'_>) -> Flow {
        if self.stage != Stage::Live || self.held.is_empty() {
            return Ok(());
        }
        while let Some(front) = self.held.front() {
            let waits = match front {
                Held::Text { tts_start, .. } => *tts_start && self.must_hold(),
                Held::Frame(frame) => {
                    self.must_hold() || matches!(self.media.reconsider(frame, cx.now), Frame::Undecided)
                }
            };
            if waits {
                self.hold(cx.now);
                return Ok(());
            }
            match self.held.pop() {
                Some(Held::Text { text, .. }) => self.deliver(&text, cx)?,
                Some(Held::Frame(frame)) => self.release_frame(&frame, cx),
                None => {}
            }
        }
        self.deadlines.clear(Timer::Hold);
        Ok(())
    }

    fn release_frame(&mut self, frame: &[u8], cx: &mut Cx<'_>) {
        let found = self.media.reconsider(frame, cx.now);
        let (Frame::Audio(timestamp, payload), Some(peer)) = (found, self.media.peer()) else {
            self.media.facts.dropped += 1;
            cx.out.push(Action::Count(Counter::Dropped(Discard::BadFrame)));
            return;
        };
        let mut datagram = vec![0; audio::HEADER + payload.len()];
        let sealed = self.media.seal(peer, timestamp, payload, cx.config.udp.downlink_flags, &mut datagram);
        cx.out.push(Action::Datagram(sealed, datagram.into_boxed_slice()));
    }

    /// Forgets waiting audio; says how much.
    fn drop_held_audio(&mut self, why: Discard, cx: &mut Cx<'_>) -> usize {
        let frames = self.held.drop_frames();
        self.media.facts.dropped += frames as u64;
        cx.out.extend((0..frames).map(|_| Action::Count(Counter::Dropped(why))));
        frames
    }

    /// Forgets all that waits: it came from a server that failed.
    fn forget_held(&mut self, cx: &mut Cx<'_>) {
        self.drop_held_audio(Discard::NoServer, cx);
        self.held = HeldQueue::default();
        self.deadlines.clear(Timer::Hold);
    }

    /// Waited long enough: text goes on, audio is dropped.
    fn hold_over(&mut self, cx: &mut Cx<'_>) -> Flow {
        self.hold_spent = true;
        let frames = self.drop_held_audio(Discard::NoPeer, cx);
        if frames > 0 {
            cx.out.push(Action::Note(Note::HeldDropped(frames)));
        }
        self.release(cx)
    }

    // ----- time ---------------------------------------------------------------------------------------------------

    pub(super) fn timeout(&mut self, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        while let Some(timer) = self.deadlines.take_due(cx.now) {
            self.due(timer, caller, cx)?;
        }
        Ok(())
    }

    fn due(&mut self, timer: Timer, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        match timer {
            Timer::Answer => self.answer_overdue(caller, cx),
            Timer::Connect => self.failed(timed_out("connect", CONNECT_WITHIN), caller, cx),
            Timer::Greet => self.greet_overdue(caller, cx),
            Timer::Again => {
                cx.out.push(Action::Say(self.hello.to_server.to_string()));
                Ok(())
            }
            Timer::Hold => self.hold_over(cx),
            Timer::Unheard => self.unheard(cx),
            Timer::Idle => self.idle(cx),
            Timer::Redial => self.redial(caller, cx),
            Timer::GiveUp => Err(EndReason::ServerLost),
            Timer::Ping => {
                self.ping(cx);
                Ok(())
            }
            Timer::Pong if self.server_heard >= self.pinged => Ok(()),
            Timer::Pong => {
                let silent = cx.config.websocket.ping_timeout;
                let failure = Failure { stage: "live", why: format!("no pong in {} s", silent.as_secs()) };
                self.failed(failure, caller, cx)
            }
        }
    }

    fn answer_overdue(&mut self, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        if self.stage == Stage::Greeting && self.server_spoke {
            self.greet_over = true;
            return self.greet_late(cx);
        }
        let stage = if self.stage == Stage::Greeting { "hello" } else { "connect" };
        self.plan.clear();
        self.failed(timed_out(stage, ANSWER_WITHIN), caller, cx)
    }

    fn greet_overdue(&mut self, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        self.greet_over = true;
        if self.server_spoke {
            return self.greet_late(cx);
        }
        let strict = self.server.clone().is_some_and(|server| self.another_left(&server, caller, cx.config));
        if strict {
            return self.failed(timed_out("hello", GREET_WITHIN), caller, cx);
        }
        Ok(())
    }

    fn unheard(&mut self, cx: &mut Cx<'_>) -> Flow {
        if self.media.peer().is_some() {
            return Ok(());
        }
        let advertised = format!("{}:{}", self.grant.udp_host, self.grant.udp_port);
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

    fn idle(&mut self, cx: &mut Cx<'_>) -> Flow {
        let limit = cx.config.websocket.call_idle;
        let due = self.last_activity + limit;
        if limit.is_zero() {
            return Ok(());
        }
        if due <= cx.now {
            return Err(EndReason::Idle);
        }
        self.deadlines.set(Timer::Idle, due);
        Ok(())
    }

    fn ping(&mut self, cx: &mut Cx<'_>) {
        let websocket = &cx.config.websocket;
        if self.stage != Stage::Live || websocket.ping_interval.is_zero() {
            return;
        }
        cx.out.push(Action::Ping);
        self.deadlines.set(Timer::Ping, cx.now + websocket.ping_interval);
        if !self.deadlines.is_set(Timer::Pong) && !websocket.ping_timeout.is_zero() {
            self.pinged = cx.now;
            self.deadlines.set(Timer::Pong, cx.now + websocket.ping_timeout);
        }
    }

    /// Any frame of the server, a pong above all.
    pub(super) fn server_alive(&mut self, now: Instant) {
        self.server_heard = now;
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

    // ----- the end ------------------------------------------------------------------------------------------------

    /// Says goodbye to both sides as the reason demands, and sums the call up. Returns the id the device knows.
    pub(super) fn finish(mut self, reason: EndReason, cx: &mut Cx<'_>) -> Box<str> {
        let duration = cx.now.saturating_duration_since(self.began);
        self.leave_server(reason, duration, cx);
        let answered = self.id.is_some();
        let id = self.id.clone().unwrap_or_else(|| self.grant.session_id.clone());
        if self.away.is_none() && reason.is_news_to_device() {
            while let Some(held) = self.held.pop() {
                if let (Held::Text { text, .. }, true) = (held, answered) {
                    let _ = self.deliver(&text, cx);
                }
            }
            if !answered {
                let audio_params = self.hello.audio_params.as_deref().unwrap_or(DEFAULT_AUDIO);
                let (status, why) = reason.words();
                cx.out.push(Action::Publish(message::alert(Some(&id), status, why, "sad")));
                cx.out.push(Action::Publish(self.hello_reply(&id, Some(audio_params))));
            } else if reason == EndReason::ServerLost {
                let (status, why) = reason.words();
                cx.out.push(Action::Publish(message::alert(Some(&id), status, why, "sad")));
            }
            let goodbye = self.farewell.take().unwrap_or_else(|| message::goodbye(Some(&id)));
            cx.out.push(Action::Publish(goodbye));
        }
        let summary = Summary {
            session_id: id.clone(),
            reason,
            duration,
            answered,
            server: self.server.take(),
            ssrc: Some(self.media.ssrc()),
            facts: self.media.facts,
        };
        cx.out.push(Action::Ended(Box::new(summary)));
        id
    }

    fn leave_server(&mut self, reason: EndReason, duration: Duration, cx: &mut Cx<'_>) {
        let open = matches!(self.stage, Stage::Greeting | Stage::Live);
        if open && reason != EndReason::ServerClosed && cx.config.websocket.send_goodbye {
            let id = self.server_id.as_deref().or(self.id.as_deref());
            cx.out.push(Action::Say(message::server_goodbye(
                id,
                reason.label(),
                duration.as_millis() as u64,
            )));
        }
        cx.out.push(Action::HangUp(if reason == EndReason::Shutdown { 1001 } else { 1000 }));
    }
}

impl From<Overflow> for EndReason {
    fn from(_: Overflow) -> Self {
        Self::Overflow
    }
}

impl EndReason {
    /// Whether the device must hear of it: it did not bring it about.
    fn is_news_to_device(self) -> bool {
        match self {
            Self::ServerClosed
            | Self::NoServer
            | Self::ServerLost
            | Self::Idle
            | Self::Overflow
            | Self::Refused
            | Self::Shutdown
            | Self::Operator
            | Self::DeviceUdpTimeout => true,
            Self::DeviceGoodbye
            | Self::DeviceDisconnected
            | Self::DeviceLost
            | Self::DeviceError
            | Self::Replaced => false,
        }
    }

    /// Status and message for the device's screen, in the two languages its users read.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::NoServer => (
                "连接失败 / Call failed",
                "聊天服务器无法连接，请稍后再试 / No chat server can be reached, try again later",
            ),
            Self::ServerLost => (
                "连接中断 / Call lost",
                "与聊天服务器的连接中断 / The connection to the chat server was lost",
            ),
            Self::Refused => {
                ("忙 / Busy", "网关通话数已满，请稍后再试 / The gateway has no free line, try again later")
            }
            Self::Shutdown => {
                ("网关重启 / Restart", "网关正在重启，请稍后再试 / The gateway restarts, try again later")
            }
            _ => ("通话结束 / Call ended", "通话无法继续 / The call cannot go on"),
        }
    }
}

/// The pause before attempt number `attempts` (from 0), without jitter.
fn backoff(reconnect: &Reconnect, attempts: u32) -> Duration {
    let factor = reconnect.multiplier.powi(attempts.min(1000) as i32);
    let pause = reconnect.initial.as_secs_f64() * factor;
    Duration::from_secs_f64(pause.min(reconnect.max.as_secs_f64()))
}

fn timed_out(stage: &'static str, after: Duration) -> Failure {
    Failure { stage, why: format!("no answer in {:.1} s", after.as_secs_f64()) }
}
