//! Packets and messages of the device, messages of the chat server.

use std::borrow::Cow;
use std::time::Instant;

use super::super::action::{
    Action, BackendClosed, CallCredentials, CloseReason, Counter, EndReason, LogEvent,
};
use super::super::call::Call;
use super::super::call_report::SetupStage;
use super::super::context::Context;
use super::super::mcp::ServerMessageOutcome;
use super::super::request_ids::RequestIds;
use super::{Core, PendingHello, SessionPhase};
use crate::proto::message::{self, BadHelloVersion, JsonObject, Peek, Reader};
use crate::proto::mqtt::Packet;
use crate::text;

/// Bytes of a notification that are shown.
const MAX_NOTIFICATION_BYTES: usize = 300;

impl Core {
    // ----- the device ---------------------------------------------------------------------------------------------

    /// Handles one packet of the device.
    pub fn on_packet(&mut self, packet: Packet<'_>, cx: &mut Context<'_>) {
        match (self.phase, packet) {
            (SessionPhase::AwaitingConnect, Packet::Connect(connect)) => self.on_connect(&connect, cx),
            (SessionPhase::AwaitingConnect, _) => self.reject_packet("a packet before CONNECT", cx),
            (SessionPhase::Online, Packet::Connect(_)) => self.reject_packet("a second CONNECT", cx),
            (SessionPhase::Online, Packet::Publish(publish)) => self.on_publish(publish.payload, cx),
            (SessionPhase::Online, Packet::Subscribe(subscribe)) => {
                let filters = subscribe.filters().count();
                cx.out.push(Action::SubAck { packet_id: subscribe.packet_id, filters });
            }
            (SessionPhase::Online, Packet::Unsubscribe(unsubscribe)) => {
                cx.out.push(Action::UnsubAck(unsubscribe.packet_id));
            }
            (SessionPhase::Online, Packet::PingReq) => cx.out.push(Action::PingResp),
            (SessionPhase::Online, Packet::Disconnect) => {
                self.hang_up(EndReason::DeviceDisconnected, cx);
                // It leaves on purpose, and is in no call.
                if let Some(cold) = &mut self.cold {
                    (cold.pending_notice, cold.last_call) = (None, None);
                }
                self.close(CloseReason::Disconnected, cx);
            }
            (SessionPhase::Admitting | SessionPhase::AwaitingReconnect | SessionPhase::Closed, _) => {}
        }
    }

    fn on_publish(&mut self, payload: &[u8], cx: &mut Context<'_>) {
        let parsed = std::str::from_utf8(payload)
            .ok()
            .and_then(|text| Some((text, message::peek(text, Reader::Server).ok()?)));
        let Some((text, peek)) = parsed else {
            cx.count(Counter::BadDeviceText);
            return;
        };
        self.has_spoken |= peek.kind != "mcp";
        match &*peek.kind {
            "hello" => self.on_device_hello(peek.object, cx),
            "mcp" => self.on_device_mcp(text, &peek, cx),
            "goodbye" if self.has_call() => self.hang_up(EndReason::DeviceGoodbye, cx),
            _ => self.forward_to_server(text, &peek, cx),
        }
    }

    /// A response to a request of the gateway is handled here; all else is for the chat server.
    fn on_device_mcp(&mut self, text: &str, peek: &Peek<'_>, cx: &mut Context<'_>) {
        let Some(rpc) = message::parse_rpc(text, Reader::Server) else {
            return self.forward_to_server(text, peek, cx);
        };
        let Some(id) = rpc.response_id().filter(|id| RequestIds::contains(*id)) else {
            if let (false, None, Some(method)) = (self.has_call(), rpc.id, &rpc.method) {
                let text = format!("{method} {}", rpc.params.unwrap_or_default());
                let text = text::printable(text.trim_end(), MAX_NOTIFICATION_BYTES);
                cx.count(Counter::DeviceNotification);
                cx.log(LogEvent::DeviceNotification(text.into()));
            }
            return self.forward_to_server(text, peek, cx);
        };
        if self.on_command_response(id, &rpc, cx) {
            return;
        }
        let session_id = self.call.as_ref().and_then(|call| call.session_id());
        match self.mcp.activate(self.since) {
            Some(mcp) => {
                let reply = mcp.on_response(text, id, &rpc, session_id, cx);
                self.mcp.compact();
                if let Some(reply) = reply {
                    self.forward_to_server(&reply, peek, cx);
                }
            }
            // The response to a command that has timed out.
            None if cx.ids.is_issued(id) => {}
            None => self.forward_to_server(text, peek, cx),
        }
    }

    fn forward_to_server(&mut self, text: &str, peek: &Peek<'_>, cx: &mut Context<'_>) {
        match self.has_call() {
            true => self.with_call(cx, |call, _, cx| call.on_device_text(text, peek, cx)),
            false => self.on_message_without_call(peek, cx),
        }
    }

    /// A message outside a call is answered with goodbye, so that the device starts a new call.
    fn on_message_without_call(&mut self, peek: &Peek<'_>, cx: &mut Context<'_>) {
        if peek.kind == "goodbye" || peek.kind == "mcp" {
            return;
        }
        let last_id = self.cold.as_ref().and_then(|cold| Some(&*cold.last_call.as_ref()?.1));
        let id = peek.session_id.as_deref().or(last_id);
        cx.publish(message::goodbye(id));
    }

    /// Whether the device is connected, without a call.
    pub fn is_idle(&self) -> bool {
        self.is_online() && self.call.is_none()
    }

    /// Whether the device was connected by then, and has published nothing but MCP.
    pub fn has_said_nothing_since(&self, then: Instant) -> bool {
        self.since <= then && !self.has_spoken
    }

    /// The device may be in a call that the gateway does not know: it is told to stop speaking, so that it says which. `listens`:
    /// that has an effect only if it speaks, so it is told to speak first.
    pub fn leave_unknown_call(&mut self, listens: bool, cx: &mut Context<'_>) {
        if listens {
            cx.publish(message::tts(None, "start"));
        }
        cx.publish(message::tts(None, "stop"));
    }

    fn on_device_hello(&mut self, hello: JsonObject<'_>, cx: &mut Context<'_>) {
        let hello = match message::parse_device_hello(hello) {
            Ok(hello) => hello,
            Err(BadHelloVersion(found)) => {
                return self.close_with_error(CloseReason::HelloVersion(found), cx);
            }
        };
        if let Some(cold) = &mut self.cold {
            cold.pending_notice = None;
        }
        let limited = self.exceeds_hello_limit(cx);
        let may_be_speaking = self.call.as_ref().is_some_and(|call| call.may_be_speaking());
        let replaced = self.call.take_if(|call| !limited && call.session_id().is_none());
        match &replaced {
            // The dial goes on for this hello.
            Some(call) => cx.out.push(Action::CallEnded(call.summary(EndReason::Replaced, cx.now))),
            None => self.end_call(EndReason::Replaced, cx),
        }
        let pending = PendingHello { hello, replaced, limited, may_be_speaking };
        self.cold.get_or_insert_default().pending_hello = Some(pending);
        cx.out.push(Action::GenerateCredentials);
    }

    fn exceeds_hello_limit(&self, cx: &mut Context<'_>) -> bool {
        let Some(id) = &self.client_id else { return false };
        let unproven_from = (!self.is_proven()).then_some(self.ip);
        !cx.hellos.allows(id.mac(), unproven_from, cx.config.mqtt.hello_limit, cx.now)
    }

    /// The shell's answer to [`Action::GenerateCredentials`]: the call starts.
    pub fn on_credentials(&mut self, credentials: CallCredentials, cx: &mut Context<'_>) {
        let pending = self.cold.as_mut().and_then(|cold| cold.pending_hello.take());
        self.cold.take_if(|cold| {
            cold.last_call.is_none() && cold.commands.is_empty() && cold.drain_deadline.is_none()
        });
        let Some(PendingHello { hello, replaced, limited, may_be_speaking }) = pending else { return };
        let refused = match (limited, credentials.allowed) {
            (true, _) => Some(EndReason::HelloLimit),
            (false, allowed) => (!allowed).then_some(EndReason::Refused),
        };
        let hello = message::DeviceHello { forwarded: cx.tool_lists.text(&hello.forwarded) };
        let call = self.call.insert(Box::new(Call::new(hello, credentials, self.ip, cx.now)));
        call.device_may_be_speaking = may_be_speaking;
        match (refused, replaced) {
            (Some(reason), _) => self.end_call(reason, cx),
            (None, Some(replaced)) => call.continue_dial(*replaced, cx),
            (None, None) => self.with_call(cx, Call::start),
        }
    }

    /// The device hangs up. Texts that it sent before are still sent to the chat server.
    pub(super) fn hang_up(&mut self, reason: EndReason, cx: &mut Context<'_>) {
        // A `tts start` of the call before may have crossed the hello, and the reply to that would have ended the speech.
        if reason == EndReason::DeviceGoodbye
            && self.call.as_mut().is_some_and(|call| std::mem::take(&mut call.device_may_be_speaking))
        {
            cx.publish(message::tts(None, "stop"));
        }
        if !self.call.as_mut().is_some_and(|call| call.hang_up(reason)) {
            self.end_call(reason, cx);
        }
    }

    // ----- the chat server ----------------------------------------------------------------------------------------

    /// The dial has come to this stage. May be repeated.
    pub fn on_dial_stage(&mut self, stage: SetupStage, now: Instant) {
        if let Some(call) = &mut self.call {
            call.on_dial_stage(stage, now);
        }
    }

    /// The WebSocket is open.
    pub fn on_backend_open(&mut self, cx: &mut Context<'_>) {
        self.with_call(cx, |call, _, cx| call.on_backend_open(cx));
        self.mcp.on_new_server();
    }

    /// The chat server sent a text message.
    pub fn on_backend_text(&mut self, text: &str, cx: &mut Context<'_>) {
        let Some(call) = self.call.as_mut().filter(|call| call.has_server()) else { return };
        call.on_server_message(call.age(cx.now));
        let Ok(peek) = message::peek(text, Reader::Device) else {
            call.on_server_words(text);
            cx.count(Counter::BadServerText);
            return;
        };
        let mut forwarded = Cow::Borrowed(text);
        if peek.kind == "mcp"
            && let Some(mcp) = self.mcp.activate(self.since)
        {
            match mcp.on_server_message(text, call.server_session_id(), cx) {
                ServerMessageOutcome::Forward(text) => forwarded = text,
                ServerMessageOutcome::Consumed => return,
                ServerMessageOutcome::Answer(reply) => return cx.out.push(Action::SendText(reply)),
            }
        }
        self.with_call(cx, |call, device, cx| call.on_server_text(&forwarded, &peek, device, cx));
    }

    /// The chat server sent something, for example a pong.
    pub fn on_backend_activity(&mut self, now: Instant) {
        if let Some(call) = &mut self.call {
            call.on_server_frame(now);
        }
    }

    /// The WebSocket was closed, or could not be opened.
    pub fn on_backend_closed(&mut self, closed: BackendClosed, cx: &mut Context<'_>) {
        self.with_call(cx, |call, device, cx| call.on_backend_closed(closed, device, cx));
    }

    /// The chat server does not read what it is sent: the call ends. Ignored if its WebSocket is closed already.
    pub fn on_backend_blocked(&mut self, cx: &mut Context<'_>) {
        if self.call.as_ref().is_some_and(|call| call.has_server()) {
            self.end_call(EndReason::Overflow, cx);
        }
    }
}
