//! Calls between devices, as far as one device is concerned; who talks to whom is up to [`Bridges`](super::super::Bridges).

use std::time::Instant;

use super::Core;
use crate::config::Config;
use crate::proto::identity::Mac;
use crate::proto::message;
use crate::session::action::{Action, Cx, Discard, EndReason};
use crate::session::device_calls::Presence;
use crate::session::media::Sealed;

/// Who calls, when nobody says.
const NOBODY: &str = "未知";

impl Core {
    /// What the device is doing, as far as calls between devices care.
    pub fn presence(&self) -> Presence {
        match &self.call {
            _ if !self.is_present() => Presence::Absent,
            Some(call) if call.is_bridgeable() => Presence::InCall,
            _ => Presence::Idle,
        }
    }

    /// Whether it talks to another device, or calls one.
    pub fn is_with_device(&self) -> bool {
        self.call.as_ref().is_some_and(|call| call.is_with_device())
    }

    /// It calls another device: its chat server is left, and [`Core::silence`] answers its audio.
    pub fn ring(&mut self, cx: &mut Cx<'_>) {
        if let Some(call) = &mut self.call {
            let flow = call.ring(cx);
            self.ended(flow, cx);
        }
    }

    /// It talks to another device: its chat server is left, and [`Core::relay`] takes the other one's audio.
    pub fn bridge(&mut self, cx: &mut Cx<'_>) {
        if let Some(call) = &mut self.call {
            let flow = call.bridge(cx);
            self.ended(flow, cx);
        }
    }

    /// The device that it calls has answered.
    pub fn accepted_by(&mut self, from: Mac, cx: &mut Cx<'_>) {
        if let Some(call) = self.call.as_mut().filter(|call| call.is_with_device()) {
            let flow = call.accepted_by(from, cx);
            self.ended(flow, cx);
        }
    }

    /// Asks the device to wake up and tell its user who calls. Its answer is of no interest: the user's is.
    pub fn wake(&mut self, nickname: &str, cx: &mut Cx<'_>) {
        let nickname = if nickname.is_empty() { NOBODY } else { nickname };
        let reason = message::quote(&format!("[device_call]您收到来自{nickname}的来电，是否接听？"));
        let params =
            format!(r#"{{"name":"self.remote_wakeup","arguments":{{"reason":{reason},"action":"listen"}}}}"#);
        let id = cx.ids.issue();
        match self.call.as_mut().filter(|call| !call.is_closing()) {
            Some(call) => {
                let text = message::mcp_request(call.session_id(), id, "tools/call", &params);
                let flow = call.operator_text(&text, cx);
                self.ended(flow, cx);
            }
            None => {
                cx.out.push(Action::Publish(message::mcp_request(None, id, "tools/call", &params)));
            }
        }
    }

    /// The call with another device is over: the device hears goodbye. Any other call goes on.
    pub fn device_call_over(&mut self, reason: EndReason, cx: &mut Cx<'_>) {
        if self.is_with_device() {
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
    ) -> Result<Sealed, Discard> {
        self.call.as_mut().ok_or(Discard::NoPeer)?.relay(opus, out, config, now)
    }

    /// One packet of silence, encrypted into `out` (at least 16 + 14 bytes), while another device rings.
    ///
    /// # Errors
    /// None rings.
    pub fn silence(&mut self, out: &mut [u8], config: &Config) -> Result<Sealed, Discard> {
        self.call.as_mut().ok_or(Discard::NoPeer)?.silent(out, config)
    }
}
