//! A call with another device. The chat server is closed; the device is not told.

use std::time::Instant;

use super::super::action::{DropReason, Encrypted};
use super::super::context::Context;
use super::super::deadlines::{CallTime, CallTimer};
use super::super::queue::{Speech, TextQueue};
use super::{Call, CallResult, CallState};
use crate::config::Config;
use crate::proto::{audio, message};

/// The reason in the goodbye to the chat server.
const DEVICE_CALL_GOODBYE: &str = "device_call";
/// The length of an audio packet, in milliseconds, if the device did not state it.
const DEFAULT_FRAME_MS: u32 = 60;

impl Call {
    /// Whether the call can become one with another device: the device was answered, and has not left.
    pub(in crate::session) fn can_join_device_call(&self) -> bool {
        self.session_id.is_some() && !self.is_closing()
    }

    /// Whether another device is connected or being called.
    pub(in crate::session) fn is_in_device_call(&self) -> bool {
        matches!(self.state, CallState::Ringing | CallState::InDeviceCall)
    }

    /// Another device is being called: the device gets silence until that one answers.
    pub(in crate::session) fn start_ringing(&mut self, cx: &mut Context<'_>) -> CallResult {
        self.cold.get_or_insert_default().silence_packet =
            audio::silence_packet(self.hello.frame_duration_ms().unwrap_or(DEFAULT_FRAME_MS));
        self.switch_from_server(CallState::Ringing, cx)
    }

    /// Another device is connected. `both_realtime`: so that stock firmware plays what the other device sends, it must speak, and
    /// only in realtime mode it sends audio meanwhile.
    pub(in crate::session) fn join_device_call(
        &mut self,
        both_realtime: bool,
        cx: &mut Context<'_>,
    ) -> CallResult {
        if let Some(cold) = &mut self.cold {
            cold.silence_packet = Box::default();
        }
        self.switch_from_server(CallState::InDeviceCall, cx)?;
        match both_realtime {
            true => {
                let text = message::tts(self.session_id(), "start");
                self.deliver_in_order(&text, Some(Speech::Start), cx)
            }
            false => Ok(()),
        }
    }

    fn switch_from_server(&mut self, state: CallState, cx: &mut Context<'_>) -> CallResult {
        if self.is_in_device_call() {
            self.state = state;
            return Ok(());
        }
        self.close_server(Some(DEVICE_CALL_GOODBYE), 1000, cx);
        self.drop_held_audio(DropReason::NoServer, cx);
        self.release_held_texts(cx)?;
        if self.tts_active {
            // The server cannot end its speech any more, and a device that speaks sends nothing in auto mode.
            self.deliver_to_device(&message::tts(self.session_id(), "stop"), cx)?;
        }
        if let Some(cold) = &mut self.cold {
            cold.pending_server_text = TextQueue::default();
        }
        self.listen_queued = false;
        self.ending = None;
        self.deadlines.clear_server_timers();
        self.deadlines.clear(CallTimer::MissingAudio);
        self.state = state;
        Ok(())
    }

    /// The called device has accepted.
    pub(in crate::session) fn on_call_accepted(
        &mut self,
        from: crate::proto::identity::Mac,
        cx: &mut Context<'_>,
    ) -> CallResult {
        let text = message::call_accepted(self.session_id.as_deref(), from);
        self.publish(text, cx)
    }

    /// Encrypts one Opus packet of the other device for this one, without a timestamp, since the other's clock means nothing here.
    pub(in crate::session) fn relay(
        &mut self,
        opus: &[u8],
        out: &mut [u8],
        config: &Config,
        now: Instant,
    ) -> Result<Encrypted, DropReason> {
        // A device that only listens is not idle either.
        let age = self.age(now);
        self.last_activity = CallTime::after(age);
        let peer = match self.state {
            CallState::InDeviceCall if self.playout.next_frame_at(false, &config.udp) > now => {
                // The device has not handled its `tts start` yet.
                Err(DropReason::Ringing)
            }
            CallState::InDeviceCall => self.media.destination(self.is_listening, now),
            _ => Err(DropReason::NoPeer),
        };
        let peer = peer.or_else(|why| self.count_dropped(why))?;
        Ok(self.encrypt(peer, (0, opus), out, config, age))
    }

    /// Encrypts silence for a device that is calling another one.
    pub(in crate::session) fn ringing_silence(
        &mut self,
        out: &mut [u8],
        config: &Config,
        now: Instant,
    ) -> Result<Encrypted, DropReason> {
        match (self.media.peer(), &self.cold) {
            (Some(peer), Some(cold)) if self.state == CallState::Ringing => {
                let sealed =
                    self.media.encrypt(peer, 0, &cold.silence_packet, config.udp.downlink_flags, out);
                self.postpone_keep_alive(config, self.age(now));
                Ok(sealed)
            }
            _ => Err(DropReason::NoPeer),
        }
    }
}
