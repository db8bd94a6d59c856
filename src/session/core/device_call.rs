//! Calls between devices, as far as one device is concerned. [`DeviceCallTable`](super::super::DeviceCallTable) decides which devices
//! are in a call.

use std::time::Instant;

use super::Core;
use crate::config::Config;
use crate::proto::identity::Mac;
use crate::proto::message;
use crate::session::action::{DropReason, Encrypted, EndReason};
use crate::session::context::Context;
use crate::session::device_calls::Presence;

/// The caller's name if the request has none: "unknown".
const UNKNOWN_CALLER: &str = "未知";

impl Core {
    /// Whether the device can call, or be called by, another device.
    pub fn presence(&self) -> Presence {
        match &self.call {
            _ if !self.is_present() => Presence::Absent,
            Some(call) if call.can_join_device_call() => Presence::InCall,
            _ => Presence::Idle,
        }
    }

    /// Whether the device is in a call with another device, or is calling one.
    pub fn is_in_device_call(&self) -> bool {
        self.call.as_ref().is_some_and(|call| call.is_in_device_call())
    }

    /// The device calls another one: its chat server is closed, and its audio is answered with [`Core::ringing_silence`].
    pub fn start_ringing(&mut self, cx: &mut Context<'_>) {
        self.with_call(cx, |call, _, cx| call.start_ringing(cx));
    }

    /// The device is connected to another one: its chat server is closed, and [`Core::relay`] takes the other device's audio.
    /// `both_realtime`: both [listen in realtime](Core::listens_in_realtime).
    pub fn join_device_call(&mut self, both_realtime: bool, cx: &mut Context<'_>) {
        self.with_call(cx, |call, _, cx| call.join_device_call(both_realtime, cx));
    }

    /// Whether the device last listened in the mode `realtime`, in which stock firmware can play and listen at once.
    pub fn listens_in_realtime(&self) -> bool {
        self.call.as_ref().is_some_and(|call| call.listens_in_realtime)
    }

    /// The called device has accepted.
    pub fn on_call_accepted(&mut self, from: Mac, cx: &mut Context<'_>) {
        if self.is_in_device_call() {
            self.with_call(cx, |call, _, cx| call.on_call_accepted(from, cx));
        }
    }

    /// Asks the device to wake up and announce the caller to its user. The response to this request is ignored.
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

    /// Ends the call with another device, if there is one, and sends goodbye. A call with a chat server is not affected.
    pub fn end_device_call(&mut self, reason: EndReason, cx: &mut Context<'_>) {
        if self.is_in_device_call() {
            self.end_call(reason, cx);
        }
    }

    /// Encrypts one Opus packet of the other device into `out` (at least 16 + 1,400 bytes).
    ///
    /// # Errors
    /// The address of this device is not known yet, or it is in no call with another device.
    pub fn relay(
        &mut self,
        opus: &[u8],
        out: &mut [u8],
        config: &Config,
        now: Instant,
    ) -> Result<Encrypted, DropReason> {
        self.call.as_mut().ok_or(DropReason::NoPeer)?.relay(opus, out, config, now)
    }

    /// Encrypts one packet of silence into `out` (at least 16 + 50 bytes), while this device is calling another one.
    ///
    /// # Errors
    /// The address of this device is not known yet, or it is calling no other device.
    pub fn ringing_silence(
        &mut self,
        out: &mut [u8],
        config: &Config,
        now: Instant,
    ) -> Result<Encrypted, DropReason> {
        self.call.as_mut().ok_or(DropReason::NoPeer)?.ringing_silence(out, config, now)
    }
}
