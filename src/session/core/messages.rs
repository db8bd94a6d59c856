//! Messages of the device and of the chat server.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use super::super::action::{Action, BackendClosed, CallCredentials, CloseReason, Counter, EndReason};
use super::super::call::Call;
use super::super::context::Context;
use super::super::mcp::ServerMessageOutcome;
use super::super::request_ids::RequestIds;
use super::Core;
use crate::proto::message::{self, BadHello, Peek, Reader};

/// So many consecutive hellos without a reply are handled at once.
const MAX_UNANSWERED_HELLOS: u8 = 32;
/// After [`MAX_UNANSWERED_HELLOS`], one hello is handled per interval.
const UNANSWERED_HELLO_INTERVAL: Duration = Duration::from_secs(1);

impl Core {
    // ----- the device ---------------------------------------------------------------------------------------------

    pub(super) fn on_publish(&mut self, payload: &[u8], cx: &mut Context<'_>) {
        let parsed = std::str::from_utf8(payload)
            .ok()
            .and_then(|text| Some((text, message::peek(text, Reader::Server).ok()?)));
        let Some((text, peek)) = parsed else {
            cx.count(Counter::BadDeviceText);
            return;
        };
        match &*peek.kind {
            "hello" => self.on_device_hello(text, cx),
            "mcp" => self.on_device_mcp(text, &peek, cx),
            "goodbye" if self.has_call() => self.hang_up(EndReason::DeviceGoodbye, cx),
            _ => self.forward_to_server(text, &peek, cx),
        }
    }

    /// A response to a request of the gateway is handled here; all else is for the chat server.
    fn on_device_mcp(&mut self, text: &str, peek: &Peek<'_>, cx: &mut Context<'_>) {
        let response = message::parse_response(text).filter(|(id, _)| RequestIds::contains(*id));
        let Some((id, rpc)) = response else { return self.forward_to_server(text, peek, cx) };
        if self.on_command_response(id, &rpc, cx) {
            return;
        }
        let session_id = self.call.as_ref().and_then(|call| call.session_id());
        match self.mcp.activate(self.since) {
            Some(mcp) => {
                if let Some(reply) = mcp.on_response(text, id, &rpc, session_id, cx) {
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
        let last_id = self.cold.as_ref().and_then(|cold| cold.last_session_id.as_deref());
        let id = peek.session_id.as_deref().filter(|id| !id.is_empty()).or(last_id);
        cx.publish(message::goodbye(id));
    }

    fn on_device_hello(&mut self, text: &str, cx: &mut Context<'_>) {
        let hello = match message::parse_device_hello(text) {
            Ok(hello) => hello,
            Err(BadHello::Version(found)) => {
                return self.close_with_error(CloseReason::HelloVersion(found), cx);
            }
            Err(_) => {
                cx.count(Counter::BadDeviceText);
                return;
            }
        };
        if self.exceeds_hello_limit(cx.now) {
            cx.count(Counter::BadDeviceText);
            return;
        }
        let may_be_speaking = self.call.as_ref().is_some_and(|call| call.may_be_speaking());
        self.end_call(EndReason::Replaced, cx);
        let cold = self.cold.get_or_insert_default();
        (cold.pending_hello, cold.may_be_speaking) = (Some(hello), may_be_speaking);
        cx.out.push(Action::GenerateCredentials);
    }

    /// Whether the device repeats its hello too often without waiting for a reply. Each hello costs a dial.
    fn exceeds_hello_limit(&self, now: Instant) -> bool {
        let unanswered = match &self.call {
            Some(call) if call.session_id().is_some() => None,
            Some(call) => Some((call.unanswered_hellos, call.started_at())),
            None => self.cold.as_ref().and_then(|cold| cold.unanswered_hellos),
        };
        unanswered.is_some_and(|(count, last)| {
            count >= MAX_UNANSWERED_HELLOS && now.saturating_duration_since(last) < UNANSWERED_HELLO_INTERVAL
        })
    }

    /// The shell's answer to [`Action::GenerateCredentials`]: the call starts.
    pub fn on_credentials(&mut self, credentials: CallCredentials, cx: &mut Context<'_>) {
        let (hello, may_be_speaking, unanswered) = match &mut self.cold {
            Some(cold) => (cold.pending_hello.take(), cold.may_be_speaking, cold.unanswered_hellos.take()),
            None => (None, false, None),
        };
        self.cold.take_if(|cold| {
            cold.last_session_id.is_none() && cold.commands.is_empty() && cold.drain_deadline.is_none()
        });
        let Some(hello) = hello else { return };
        let allowed = credentials.allowed;
        let call = self.call.insert(Box::new(Call::new(hello, credentials, self.ip, cx.now)));
        call.device_may_be_speaking = may_be_speaking;
        call.unanswered_hellos = unanswered.map_or(1, |(count, _)| count.saturating_add(1));
        match allowed {
            true => self.with_call(cx, Call::start),
            false => self.end_call(EndReason::Refused, cx),
        }
    }

    /// The device hangs up. Texts that it sent before are still sent to the chat server.
    pub(super) fn hang_up(&mut self, reason: EndReason, cx: &mut Context<'_>) {
        if !self.call.as_mut().is_some_and(|call| call.hang_up(reason)) {
            self.end_call(reason, cx);
        }
    }

    // ----- the chat server ----------------------------------------------------------------------------------------

    /// The server's name is resolved, and the TCP connection is being opened.
    pub fn on_backend_connecting(&mut self) {
        if let Some(call) = &mut self.call {
            call.on_backend_connecting();
        }
    }

    /// The WebSocket is open.
    pub fn on_backend_open(&mut self, cx: &mut Context<'_>) {
        if let Some(call) = &mut self.call {
            call.on_backend_open(cx);
        }
        self.mcp.on_new_server();
    }

    /// The chat server sent a text message.
    pub fn on_backend_text(&mut self, text: &str, cx: &mut Context<'_>) {
        let Some(call) = self.call.as_mut().filter(|call| call.has_server()) else { return };
        call.on_server_message(cx.now);
        let Ok(peek) = message::peek(text, Reader::Device) else {
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
