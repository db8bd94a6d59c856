//! A call with another device: its chat server is left, the device is told nothing.

use super::super::action::{Context, DropReason};
use super::super::media::Encrypted;
use super::super::queue::TextQueue;
use super::{Call, CallResult, CallState};
use crate::config::Config;
use crate::proto::{audio, message};

/// What a chat server that is left is told as the reason.
const DEVICE_CALL_GOODBYE: &str = "device_call";
/// The usual length of a packet, in milliseconds.
const DEFAULT_FRAME_MS: u32 = 60;

impl Call {
    /// Whether another device can be talked to in it: the device was answered, and has not left.
    pub(in crate::session) fn can_join_device_call(&self) -> bool {
        self.session_id.is_some() && !self.is_closing()
    }

    /// Whether another device, not a chat server, is at the other end or called.
    pub(in crate::session) fn is_in_device_call(&self) -> bool {
        matches!(self.state, CallState::Ringing | CallState::InDeviceCall)
    }

    /// Another device is called: silence until it answers.
    pub(in crate::session) fn start_ringing(&mut self, cx: &mut Context<'_>) -> CallResult {
        self.silence_packet =
            audio::silence_packet(self.hello.frame_duration_ms().unwrap_or(DEFAULT_FRAME_MS));
        self.switch_from_server(CallState::Ringing, cx)
    }

    /// Another device talks.
    pub(in crate::session) fn join_device_call(&mut self, cx: &mut Context<'_>) -> CallResult {
        self.silence_packet = Box::default();
        self.switch_from_server(CallState::InDeviceCall, cx)
    }

    fn switch_from_server(&mut self, state: CallState, cx: &mut Context<'_>) -> CallResult {
        if self.is_in_device_call() {
            self.state = state;
            return Ok(());
        }
        self.close_server(Some(DEVICE_CALL_GOODBYE), 1000, cx);
        self.drop_held_audio(DropReason::NoServer, cx);
        let flow = self.release_held_texts(cx);
        self.pending_server_text = TextQueue::default();
        self.listen_queued = false;
        self.deadlines.clear_server_timers();
        self.state = state;
        flow
    }

    /// The device that was called answers.
    pub(in crate::session) fn on_call_accepted(
        &mut self,
        from: crate::proto::identity::Mac,
        cx: &mut Context<'_>,
    ) -> CallResult {
        let text = message::call_accepted(self.session_id.as_deref(), from);
        self.publish(text, cx)
    }

    /// One Opus packet of the other device, encrypted for this one. Timestamps are the sender's own, so it gets none.
    pub(in crate::session) fn relay(
        &mut self,
        opus: &[u8],
        out: &mut [u8],
        config: &Config,
        now: std::time::Instant,
    ) -> Result<Encrypted, DropReason> {
        // Who only listens is not idle.
        self.last_activity = now;
        let Some(peer) = self.media.peer().filter(|_| self.state == CallState::InDeviceCall) else {
            return self.count_dropped(DropReason::NoPeer);
        };
        Ok(self.media.encrypt(peer, 0, opus, config.udp.downlink_flags, out))
    }

    /// What the device hears while the other one rings.
    pub(in crate::session) fn ringing_silence(
        &mut self,
        out: &mut [u8],
        config: &Config,
    ) -> Result<Encrypted, DropReason> {
        let Some(peer) = self.media.peer().filter(|_| self.state == CallState::Ringing) else {
            return Err(DropReason::NoPeer);
        };
        Ok(self.media.encrypt(peer, 0, &self.silence_packet, config.udp.downlink_flags, out))
    }
}
