//! What the device and the chat server say.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use super::super::action::{Action, Counter, Cx, EndReason, Gone, Grant, Reason};
use super::super::call::{Call, Caller};
use super::super::mcp::{FromDevice, FromServer};
use super::Core;
use crate::proto::message::{self, BadHello, Peek, Reader};

/// Hellos that may come one after the other, without an answer to any of them.
const HASTY: u8 = 32;
/// After these, one is taken after so long.
const HASTE: Duration = Duration::from_secs(1);

impl Core {
    // ----- what the device says -----------------------------------------------------------------------------------

    pub(super) fn publish(&mut self, payload: &[u8], cx: &mut Cx<'_>) {
        let parsed = std::str::from_utf8(payload)
            .ok()
            .and_then(|text| Some((text, message::peek(text, Reader::Server).ok()?)));
        let Some((text, peek)) = parsed else {
            cx.out.push(Action::Count(Counter::BadDeviceText));
            return;
        };
        if peek.kind == "hello" {
            return self.hello(text, cx);
        }
        if peek.kind == "mcp" && self.command_answered(text, cx) {
            return;
        }
        let mut forwarded = Cow::Borrowed(text);
        if peek.kind == "mcp"
            && let Some(mcp) = self.mcp.mind(self.since)
        {
            let session_id = self.call.as_ref().and_then(|call| call.session_id());
            match mcp.device_says(text, session_id, cx) {
                FromDevice::Forward => {}
                FromDevice::Taken => return,
                FromDevice::Reply(text) => forwarded = Cow::Owned(text),
            }
        }
        let Some(call) = self.call.as_mut().filter(|call| !call.is_closing()) else {
            return self.without_call(&peek, cx);
        };
        match call.device_text(&forwarded, &peek, cx) {
            Err(EndReason::DeviceGoodbye) => self.hang_up(EndReason::DeviceGoodbye, cx),
            flow => self.ended(flow, cx),
        }
    }

    /// A message that belongs to no call is answered with goodbye, so that the device starts anew.
    fn without_call(&mut self, peek: &Peek<'_>, cx: &mut Cx<'_>) {
        if peek.kind == "goodbye" || peek.kind == "mcp" {
            return;
        }
        let last_id = self.aside.as_ref().and_then(|aside| aside.last_id.as_deref());
        let id = peek.session_id.as_deref().or(last_id);
        cx.out.push(Action::Publish(message::goodbye(id)));
    }

    fn hello(&mut self, text: &str, cx: &mut Cx<'_>) {
        let hello = match message::device_hello(text) {
            Ok(hello) => hello,
            Err(BadHello::Version(found)) => return self.fail(Reason::HelloVersion(found), cx),
            Err(_) => {
                cx.out.push(Action::Count(Counter::BadDeviceText));
                return;
            }
        };
        if self.is_hasty(cx.now) {
            cx.out.push(Action::Count(Counter::BadDeviceText));
            return;
        }
        self.end_call(EndReason::Replaced, cx);
        self.aside.get_or_insert_default().hello = Some(Box::new(hello));
        cx.out.push(Action::Grant);
    }

    /// Whether this is one hello too many: each costs a dial, and one that comes before the answer costs it for nothing.
    fn is_hasty(&self, now: Instant) -> bool {
        let unanswered = match &self.call {
            Some(call) if call.session_id().is_some() => None,
            Some(call) => Some((call.hasty, call.began())),
            None => self.aside.as_ref().and_then(|aside| aside.hasty),
        };
        unanswered.is_some_and(|(count, last)| count >= HASTY && now.saturating_duration_since(last) < HASTE)
    }

    /// The shell's answer to [`Action::Grant`]: the call begins.
    pub fn granted(&mut self, grant: Grant, cx: &mut Cx<'_>) {
        let (hello, hasty) = match &mut self.aside {
            Some(aside) => (aside.hello.take(), aside.hasty.take()),
            None => (None, None),
        };
        self.aside.take_if(|aside| {
            aside.last_id.is_none() && aside.commands.is_empty() && aside.leave_at.is_none()
        });
        let (Some(hello), Some(id)) = (hello, &self.id) else { return };
        let allowed = grant.allowed;
        let call = self.call.insert(Box::new(Call::new(*hello, grant, self.ip, cx.now)));
        call.hasty = hasty.map_or(1, |(count, _)| count.saturating_add(1));
        let flow = match allowed {
            true => call.begin(Caller { id, ip: self.ip }, cx),
            false => Err(EndReason::Refused),
        };
        self.ended(flow, cx);
    }

    /// The device hangs up; what it said before is still sent.
    pub(super) fn hang_up(&mut self, reason: EndReason, cx: &mut Cx<'_>) {
        if !self.call.as_mut().is_some_and(|call| call.hang_up(reason)) {
            self.end_call(reason, cx);
        }
    }

    // ----- what the chat server says ------------------------------------------------------------------------------

    /// The dial left the queue and the resolver: a connection is being made.
    pub fn backend_connecting(&mut self) {
        if let Some(call) = &mut self.call {
            call.connecting();
        }
    }

    /// The WebSocket is open.
    pub fn backend_open(&mut self, cx: &mut Cx<'_>) {
        if let Some(call) = &mut self.call {
            call.opened(cx);
        }
        self.mcp.another_server();
    }

    /// A text message.
    pub fn backend_text(&mut self, text: &str, cx: &mut Cx<'_>) {
        let Some(caller) = self.id.as_ref().map(|id| Caller { id, ip: self.ip }) else { return };
        let Some(call) = self.call.as_mut().filter(|call| call.has_server()) else { return };
        call.server_said(cx.now);
        let Ok(peek) = message::peek(text, Reader::Device) else {
            cx.out.push(Action::Count(Counter::BadServerText));
            return;
        };
        let mut forwarded = Cow::Borrowed(text);
        if peek.kind == "mcp"
            && let Some(mcp) = self.mcp.mind(self.since)
        {
            match mcp.server_says(text, call.server_session_id(), cx) {
                FromServer::Forward => {}
                FromServer::Taken => return,
                FromServer::Answer(reply) => return cx.out.push(Action::Say(reply)),
                FromServer::Translated(text) => forwarded = Cow::Owned(text),
            }
        }
        let flow = call.server_text(&forwarded, &peek, caller, cx);
        self.ended(flow, cx);
    }

    /// A pong, or any other sign of life.
    pub fn backend_alive(&mut self, now: Instant) {
        if let Some(call) = &mut self.call {
            call.server_alive(now);
        }
    }

    /// The WebSocket ended, or could not be opened.
    pub fn backend_gone(&mut self, gone: Gone, cx: &mut Cx<'_>) {
        let Some(caller) = self.id.as_ref().map(|id| Caller { id, ip: self.ip }) else { return };
        let Some(call) = &mut self.call else { return };
        let flow = call.gone(gone, caller, cx);
        self.ended(flow, cx);
    }

    /// The chat server does not read its text: the call ends. News of a WebSocket that is gone already is ignored.
    pub fn backend_blocked(&mut self, cx: &mut Cx<'_>) {
        if self.call.as_ref().is_some_and(|call| call.has_server()) {
            self.end_call(EndReason::Overflow, cx);
        }
    }
}
