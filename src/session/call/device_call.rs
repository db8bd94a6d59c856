//! A call with another device: its chat server is left, the device is told nothing.

use super::super::action::{Cx, Discard};
use super::super::deadlines::Timer;
use super::super::media::Sealed;
use super::super::queue::Texts;
use super::{Call, Flow, Stage};
use crate::config::Config;
use crate::proto::{audio, message};

/// What a chat server that is left is told as the reason.
const LEFT: &str = "device_call";
/// The usual length of a packet, in milliseconds.
const USUAL_MS: u32 = 60;

impl Call {
    /// Whether another device can be talked to in it: the device was answered, and has not left.
    pub(in crate::session) fn is_bridgeable(&self) -> bool {
        self.id.is_some() && !self.is_closing()
    }

    /// Whether another device, not a chat server, is at the other end or called.
    pub(in crate::session) fn is_with_device(&self) -> bool {
        matches!(self.stage, Stage::Ringing | Stage::Bridged)
    }

    /// Another device is called: silence until it answers.
    pub(in crate::session) fn ring(&mut self, cx: &mut Cx<'_>) -> Flow {
        self.silence = audio::silence(self.hello.frame_duration_ms().unwrap_or(USUAL_MS));
        self.leave_for(Stage::Ringing, cx)
    }

    /// Another device talks.
    pub(in crate::session) fn bridge(&mut self, cx: &mut Cx<'_>) -> Flow {
        self.silence = Box::default();
        self.leave_for(Stage::Bridged, cx)
    }

    fn leave_for(&mut self, stage: Stage, cx: &mut Cx<'_>) -> Flow {
        if self.is_with_device() {
            self.stage = stage;
            return Ok(());
        }
        self.leave_server(Some(LEFT), 1000, cx);
        self.drop_held_audio(Discard::NoServer, cx);
        let flow = self.release_texts(cx);
        self.to_server = Texts::default();
        self.listen_queued = false;
        // What is about the chat server; whether the device is heard and does anything still counts.
        for timer in [
            Timer::Answer,
            Timer::Connect,
            Timer::Greet,
            Timer::Again,
            Timer::Redial,
            Timer::GiveUp,
            Timer::Ping,
            Timer::Pong,
        ] {
            self.deadlines.clear(timer);
        }
        self.stage = stage;
        flow
    }

    /// The device that was called answers.
    pub(in crate::session) fn accepted_by(
        &mut self,
        from: crate::proto::identity::Mac,
        cx: &mut Cx<'_>,
    ) -> Flow {
        let text = message::call_accepted(self.id.as_deref(), from);
        self.publish(text, cx)
    }

    /// One Opus packet of the other device, encrypted for this one. Timestamps are the sender's own, so it gets none.
    pub(in crate::session) fn relay(
        &mut self,
        opus: &[u8],
        out: &mut [u8],
        config: &Config,
        now: std::time::Instant,
    ) -> Result<Sealed, Discard> {
        // Who only listens is not idle.
        self.last_activity = now;
        let Some(peer) = self.media.peer().filter(|_| self.stage == Stage::Bridged) else {
            return self.dropped(Discard::NoPeer);
        };
        Ok(self.media.seal(peer, 0, opus, config.udp.downlink_flags, out))
    }

    /// What the device hears while the other one rings.
    pub(in crate::session) fn silent(&mut self, out: &mut [u8], config: &Config) -> Result<Sealed, Discard> {
        let Some(peer) = self.media.peer().filter(|_| self.stage == Stage::Ringing) else {
            return Err(Discard::NoPeer);
        };
        Ok(self.media.seal(peer, 0, &self.silence, config.udp.downlink_flags, out))
    }
}
