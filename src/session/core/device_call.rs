//! Calls between devices, as far as one device is concerned; who talks to whom is up to [`DeviceCallTable`](super::super::DeviceCallTable).

use std::time::Instant;

use super::Core;
use crate::config::Config;
use crate::proto::identity::Mac;
use crate::proto::message;
use crate::session::action::{Context, DropReason, EndReason};
use crate::session::device_calls::Presence;
use crate::session::media::Encrypted;

/// Who calls, when nobody says.
const UNKNOWN_CALLER: &str = "未知";

impl Core {
    /// What the device is doing, as far as calls between devices care.
    pub fn presence(&self) -> Presence {
        match &self.call {
            _ if !self.is_present() => Presence::Absent,
            Some(call) if call.can_join_device_call() => Presence::InCall,
            _ => Presence::Idle,
        }
    }

    /// Whether it talks to another device, or calls one.
    pub fn is_in_device_call(&self) -> bool {
        self.call.as_ref().is_some_and(|call| call.is_in_device_call())
    }

    /// It calls another device: its chat server is left, and [`Core::ringing_silence`] answers its audio.
    pub fn start_ringing(&mut self, cx: &mut Context<'_>) {
        self.with_call(cx, |call, _, cx| call.start_ringing(cx));
    }

    /// It talks to another device: its chat server is left, and [`Core::relay`] takes the other one's audio.
    pub fn join_device_call(&mut self, cx: &mut Context<'_>) {
        self.with_call(cx, |call, _, cx| call.join_device_call(cx));
    }

    /// The device that it calls has answered.
    pub fn on_call_accepted(&mut self, from: Mac, cx: &mut Context<'_>) {
        if self.is_in_device_call() {
            self.with_call(cx, |call, _, cx| call.on_call_accepted(from, cx));
        }
    }

    /// Asks the device to wake up and tell its user who calls. Its answer is of no interest: the user's is.
    pub fn wake_for_call(&mut self, nickname: &str, cx: &mut Context<'_>) {
        let nickname = if nickname.is_empty() { UNKNOWN_CALLER } else { nickname };
        let reason = message::json_quote(&format!("[device_call]您收到来自{nickname}的来电，是否接听？"));
        let params =
            format!(r#"{{"name":"self.remote_wakeup","arguments":{{"reason":{reason},"action":"listen"}}}}"#);
        let id = cx.ids.issue();
        let text = message::mcp_request(self.session_id(), id, "tools/call", &params);
        match self.has_call() {
            true => self.with_call(cx, |call, _, cx| call.operator_text(&text, cx)),
            false => cx.publish(text),
        }
    }

    /// The call with another device is over: the device hears goodbye. Any other call goes on.
    pub fn end_device_call(&mut self, reason: EndReason, cx: &mut Context<'_>) {
        if self.is_in_device_call() {
            self.end_call(reason, cx);
        }
    }

    /// One Opus packet of the device that this one talks to, encrypted into `out` (at least 16 + 1,400 bytes).
    ///
    /// # Errors
    /// Nobody knows yet where this device's audio comes from.
    pub fn relay(
        &mut self,
        opus: &[u8],
        out: &mut [u8],
        config: &Config,
        now: Instant,
    ) -> Result<Encrypted, DropReason> {
        self.call.as_mut().ok_or(DropReason::NoPeer)?.relay(opus, out, config, now)
    }

    /// One packet of silence, encrypted into `out` (at least 16 + 14 bytes), while another device rings.
    ///
    /// # Errors
    /// None rings.
    pub fn ringing_silence(&mut self, out: &mut [u8], config: &Config) -> Result<Encrypted, DropReason> {
        self.call.as_mut().ok_or(DropReason::NoPeer)?.ringing_silence(out, config)
    }
}
