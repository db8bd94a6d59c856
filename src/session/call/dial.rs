//! Finding a chat server: the first one for a hello, the next one when one fails, and the pauses in between.

use std::sync::Arc;
use std::time::Duration;

use super::super::action::{
    Action, Counter, Cx, DialRequest, Discard, EndReason, Failure, Gone, Note, OWN_SHORTAGE,
};
use super::super::deadlines::Timer;
use super::super::media::Framing;
use super::super::queue::HeldQueue;
use super::super::server_health::Servers;
use super::{Call, Caller, Flow, Outage, Stage};
use crate::config::{Config, Reconnect, Server};
use crate::proto::message;

/// The device gives up 10 s after its hello; it is answered before 9 s whatever happens.
const ANSWER_WITHIN: Duration = Duration::from_millis(8500);
/// A server that has not finished resolve, connect and upgrade by now is given up while another is left.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// A server that has not answered our hello by now is given up while another is left, or taken as live if it spoke.
const GREET_WITHIN: Duration = Duration::from_secs(4);
/// Some servers drop a hello that comes while they look the device up: say it once more.
const HELLO_AGAIN_AFTER: Duration = Duration::from_secs(3);
/// A call that has been live so long starts its next redial with the shortest pause again.
const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// At most this share is taken off a pause, so that calls that failed together do not redial together.
const JITTER: f64 = 0.2;
/// The client id that is signed for, and told to the server, when the device has none: what other gateways send.
const NO_UUID: &str = "default-client-id";

impl Call {
    pub(in super::super) fn begin(&mut self, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        self.plan = cx.servers.plan(cx.config.servers_for(caller.id.mac()), cx.now);
        self.deadlines.set(Timer::Answer, self.began() + ANSWER_WITHIN);
        self.dial_next(caller, cx)
    }

    fn dial_next(&mut self, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        let server = self.plan.pop_front().ok_or(self.closing.unwrap_or(EndReason::NoServer))?;
        self.dial(server, false, caller, cx);
        Ok(())
    }

    fn dial(&mut self, server: Arc<Server>, fresh: bool, caller: Caller<'_>, cx: &mut Cx<'_>) {
        self.stage = Stage::Dialing { connecting: false };
        self.server_id = None;
        self.server_named = false;
        self.server_spoke = false;
        self.greet_over = false;
        for timer in [Timer::Connect, Timer::Again, Timer::Greet] {
            self.deadlines.clear(timer);
        }
        if self.another_left(&server, caller, cx.config) {
            self.deadlines.set(Timer::Connect, cx.now + CONNECT_WITHIN);
        }
        self.media.framing = match cx.servers.spoken(&server) {
            Some(spoken) => Framing::Known(spoken),
            None => Framing::Unknown(0),
        };
        self.protocol_version = cx.servers.protocol_version(&server);
        let client_id = match caller.id.uuid() {
            Some(uuid) => Some(uuid.to_owned()),
            None => cx.config.websocket.secret.is_some().then(|| NO_UUID.to_owned()),
        };
        let request = DialRequest {
            server: server.clone(),
            mac: caller.id.mac(),
            client_id,
            forwarded_for: caller.ip,
            protocol_version: self.protocol_version,
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
    pub(in super::super) fn connecting(&mut self) {
        if let Stage::Dialing { connecting } = &mut self.stage {
            *connecting = true;
        }
    }

    pub(in super::super) fn opened(&mut self, cx: &mut Cx<'_>) {
        if !matches!(self.stage, Stage::Dialing { .. }) {
            return;
        }
        self.stage = Stage::Greeting;
        self.deadlines.clear(Timer::Connect);
        self.deadlines.set(Timer::Again, cx.now + HELLO_AGAIN_AFTER);
        self.deadlines.set(Timer::Greet, cx.now + GREET_WITHIN);
        self.say_hello(cx);
    }

    pub(super) fn say_hello(&self, cx: &mut Cx<'_>) {
        cx.out.push(Action::Say(self.hello.for_server(self.protocol_version)));
    }

    // ----- a server takes too long --------------------------------------------------------------------------------

    pub(super) fn connect_overdue(&mut self, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        self.failed(timed_out("connect", CONNECT_WITHIN), caller, cx)
    }

    pub(super) fn greet_overdue(&mut self, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        self.greet_over = true;
        if self.server_spoke {
            return self.greet_late(cx);
        }
        let strict = self.server.as_ref().is_some_and(|server| self.another_left(server, caller, cx.config));
        if strict {
            return self.failed(timed_out("hello", GREET_WITHIN), caller, cx);
        }
        Ok(())
    }

    pub(super) fn answer_overdue(&mut self, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        if self.stage == Stage::Greeting && self.server_spoke {
            self.greet_over = true;
            return self.greet_late(cx);
        }
        let stage = if self.stage == Stage::Greeting { "hello" } else { "connect" };
        self.plan.clear();
        self.failed(timed_out(stage, ANSWER_WITHIN), caller, cx)
    }

    // ----- a server fails -----------------------------------------------------------------------------------------

    pub(in super::super) fn gone(&mut self, gone: Gone, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        let stage = match self.stage {
            Stage::Backoff | Stage::Ringing | Stage::Bridged => return Ok(()),
            Stage::Live if matches!(gone, Gone::Closed(None | Some(1000))) => {
                return Err(EndReason::ServerClosed);
            }
            Stage::Live => "live",
            Stage::Greeting | Stage::Dialing { .. } => "hello",
        };
        let failure = match gone {
            Gone::Failed(failure) if self.stage == Stage::Greeting => Failure { stage, ..failure },
            Gone::Failed(failure) => failure,
            Gone::Closed(Some(code)) => {
                Failure { stage, why: format!("the server closed the WebSocket with code {code}") }
            }
            Gone::Closed(None) => Failure { stage, why: "the server closed the WebSocket".to_owned() },
        };
        self.failed(failure, caller, cx)
    }

    /// The present server is of no use any more: on to the next, after a pause if the call was up.
    pub(super) fn failed(&mut self, failure: Failure, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
        let url = self.server_name();
        cx.out.push(Action::Count(Counter::DialFailed(failure.stage)));
        // Waiting for a place among the dials, or for a slow resolver, is no fault of the server; nor is our shortage.
        let waited = self.stage == (Stage::Dialing { connecting: false }) && failure.stage != "resolve";
        let at_fault = !waited && failure.stage != OWN_SHORTAGE;
        if let Some(server) = self.server.as_ref().filter(|_| at_fault)
            && let Some(note) = cx.servers.failed(server, &failure.to_string(), cx.now)
        {
            cx.out.push(Action::Note(note));
        }
        cx.out.push(Action::HangUp(1001));
        self.drop_held_audio(Discard::NoServer, cx);
        if self.id.is_none() {
            self.held = HeldQueue::default();
            self.stage = Stage::Backoff;
            cx.out.push(Action::Note(Note::DialFailed { url, failure }));
            return self.dial_next(caller, cx);
        }
        self.release_texts(cx)?;
        let pause = self.back_off(cx);
        cx.out.push(Action::Note(Note::Redialling { url, failure, pause }));
        self.stop_speech(cx)
    }

    /// Enters the pause before the next redial and says how long it is.
    fn back_off(&mut self, cx: &Cx<'_>) -> Duration {
        let was_live = self.stage == Stage::Live;
        let settled = was_live && cx.now.saturating_duration_since(self.live_since) >= SETTLED_AFTER;
        let mut outage = match self.outage.take() {
            Some(outage) if !settled => outage,
            _ => Box::new(Outage { lost: cx.now, attempts: 0 }),
        };
        let reconnect = &cx.config.websocket.reconnect;
        if was_live {
            // Giving up waits for the first redial to fail: one is tried however long the pause is.
            outage.lost = cx.now;
        } else if !reconnect.give_up_after.is_zero() {
            self.deadlines.set(Timer::GiveUp, outage.lost + reconnect.give_up_after);
        }
        let pause = backoff(reconnect, outage.attempts).mul_f64(1.0 - JITTER * self.random());
        outage.attempts = outage.attempts.saturating_add(1);
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
        match &self.id {
            Some(id) if std::mem::take(&mut self.speaking) => {
                let text = message::tts_stop(id);
                self.publish(text, cx)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn redial(&mut self, caller: Caller<'_>, cx: &mut Cx<'_>) -> Flow {
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
}

/// The pause before attempt number `attempts` (from 0), without jitter.
fn backoff(reconnect: &Reconnect, attempts: u32) -> Duration {
    // Finite, so that a pause of zero stays zero.
    let factor = reconnect.multiplier.powi(attempts.min(1000) as i32).min(1e12);
    let pause = reconnect.initial.as_secs_f64() * factor;
    Duration::from_secs_f64(pause.min(reconnect.max.as_secs_f64()))
}

fn timed_out(stage: &'static str, after: Duration) -> Failure {
    Failure { stage, why: format!("no answer in {:.1} s", after.as_secs_f64()) }
}
