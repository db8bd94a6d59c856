//! Operations of the management API on a device: commands, messages, hang up, disconnect, call view.

use std::time::{Duration, Instant};

use super::{ColdState, Core, SessionPhase};
use crate::proto::message::{self, JsonObject, Rpc};
use crate::session::action::{Action, CloseReason, CommandError, EndReason};
use crate::session::call::CallView;
use crate::session::call_report::{CallReport, CallSlice};
use crate::session::context::Context;

/// How long after its timeout a command may still be answered.
const LATE_ANSWER_WAIT: Duration = Duration::from_secs(600);
/// Pending commands per device; of those that have timed out, about as many again.
const MAX_PENDING_COMMANDS: usize = 16;

/// Whether an operator's message reaches the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It was sent.
    Sent,
    /// The device lost its connection during a call: the message is sent when it reconnects.
    Queued,
    /// The device is not connected.
    NotConnected,
}

/// A command that the device has not answered.
pub(super) struct PendingCommand {
    id: u32,
    ticket: u64,
    pub(super) deadline: Instant,
    /// The operator was told that it timed out; the answer is still wanted.
    timed_out: bool,
}

impl Core {
    /// Whether the device is connected and accepted, or its call is kept until it reconnects.
    pub fn is_present(&self) -> bool {
        matches!(self.phase, SessionPhase::Online | SessionPhase::AwaitingReconnect)
    }

    /// When this connection was opened or, once it was accepted, when that was.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// When this connection, or the one that was lost during the call, was accepted.
    pub fn online_since(&self) -> Option<Instant> {
        self.is_present().then_some(self.since)
    }

    /// The call that the device is in.
    pub fn call(&self) -> Option<CallView<'_>> {
        self.call.as_ref().filter(|call| !call.is_closing()).map(|call| call.view())
    }

    /// The quality of that call so far, and its last ten seconds.
    pub fn call_report(&self, now: Instant) -> Option<(CallReport, CallSlice)> {
        let call = self.call.as_ref().filter(|call| !call.is_closing())?;
        Some((call.report(None, now), call.last_slice(now)))
    }

    /// Sends a JSON-RPC request to the device; `params` is raw JSON. [`Action::CommandResult`] follows within
    /// `api.command_timeout_s`, and [`Action::LateCommandResult`] if the device answers after that.
    pub fn send_command(&mut self, ticket: u64, method: &str, params: &str, cx: &mut Context<'_>) {
        let failed = |why| Action::CommandResult { ticket, result: Err(why) };
        if self.phase != SessionPhase::Online {
            return cx.out.push(failed(CommandError::NotConnected));
        }
        let commands = &mut self.cold.get_or_insert_default().commands;
        if commands.iter().filter(|pending| !pending.timed_out).count() >= MAX_PENDING_COMMANDS {
            return cx.out.push(failed(CommandError::Busy));
        }
        if commands.len() >= 2 * MAX_PENDING_COMMANDS
            && let Some(oldest) = commands.iter().position(|pending| pending.timed_out)
        {
            commands.remove(oldest);
        }
        let id = cx.ids.issue();
        let deadline = cx.now + cx.config.api.command_timeout;
        commands.push_back(PendingCommand { id, ticket, deadline, timed_out: false });
        let session_id = self.session_id();
        cx.publish(message::mcp_request(session_id, id, method, params));
    }

    /// Handles the response to a command. False if no pending command has this id.
    pub(super) fn on_command_response(&mut self, id: u32, rpc: &Rpc<'_>, cx: &mut Context<'_>) -> bool {
        if let Some(ColdState { commands, .. }) = self.cold.as_deref_mut()
            && let Some(index) = commands.iter().position(|pending| pending.id == id)
            && let Some(PendingCommand { ticket, timed_out, .. }) = commands.remove(index)
        {
            let result = command_result(rpc);
            cx.out.push(match timed_out {
                false => Action::CommandResult { ticket, result },
                true => Action::LateCommandResult { ticket, result },
            });
            return true;
        }
        false
    }

    pub(super) fn expire_commands(&mut self, cx: &mut Context<'_>) {
        let Some(ColdState { commands, .. }) = self.cold.as_deref_mut() else { return };
        commands.retain_mut(|pending| {
            if pending.deadline > cx.now || pending.timed_out {
                return pending.deadline > cx.now;
            }
            let PendingCommand { ticket, .. } = *pending;
            cx.out.push(Action::CommandResult { ticket, result: Err(CommandError::Timeout) });
            (pending.timed_out, pending.deadline) = (true, cx.now + LATE_ANSWER_WAIT);
            true
        });
    }

    /// The device's connection is lost, so no pending command will be answered.
    pub(super) fn fail_commands(&mut self, cx: &mut Context<'_>) {
        let Some(cold) = &mut self.cold else { return };
        let failed = std::mem::take(&mut cold.commands).into_iter().filter(|pending| !pending.timed_out);
        cx.out.extend(failed.map(|PendingCommand { ticket, .. }| Action::CommandResult {
            ticket,
            result: Err(CommandError::NotConnected),
        }));
    }

    /// Sends an operator's message to the device: a JSON object, which gets the session id of the call, if there is one.
    pub fn send_message(&mut self, text: &str, cx: &mut Context<'_>) -> Delivery {
        let delivery = match self.phase {
            SessionPhase::Online => Delivery::Sent,
            SessionPhase::AwaitingReconnect => Delivery::Queued,
            _ => return Delivery::NotConnected,
        };
        match self.call.as_mut().filter(|call| !call.is_closing()) {
            Some(call) => {
                if let Err(reason) = call.operator_text(text, cx) {
                    // The queue for the disconnected device is full: the call ends, and the queued messages are lost.
                    self.end_call(reason, cx);
                    return Delivery::NotConnected;
                }
            }
            None => cx.publish(message::with_session_id(text, None).into_owned()),
        }
        delivery
    }

    /// Ends the call for an operator. False if there is none.
    pub fn operator_hang_up(&mut self, cx: &mut Context<'_>) -> bool {
        let had_call = self.has_call();
        if had_call {
            self.end_call(EndReason::Operator, cx);
        }
        had_call
    }

    /// Ends the call, if there is one, and closes the device's connection, for an operator.
    pub fn operator_disconnect(&mut self, cx: &mut Context<'_>) {
        self.end_call(EndReason::Operator, cx);
        if self.phase != SessionPhase::Closed {
            self.close(CloseReason::Operator, cx);
        }
    }
}

fn command_result(rpc: &Rpc<'_>) -> Result<Box<str>, CommandError> {
    match (rpc.error, rpc.result) {
        (Some(error), _) if error != "null" => {
            let message = JsonObject::parse(error)
                .ok()
                .and_then(|error| error.string("message").map(|text| text.into()));
            Err(CommandError::Device(message.unwrap_or_else(|| error.into())))
        }
        (_, result) => Ok(result.unwrap_or("null").into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::proto::message::Reader;
    use crate::session::Admission;
    use crate::session::harness::{TestShell, connect_packet, publish_packet};
    use crate::session::tests::credentials;

    /// A core, and the actions of the last decision.
    struct Harness {
        core: Core,
        shell: TestShell,
        out: Vec<Action>,
    }

    impl Harness {
        fn online() -> Self {
            let mut config = Config::default();
            config.mcp.enabled = false;
            let mut shell = TestShell::new(config);
            let connect = connect_packet("g@@@aa_bb_cc_dd_ee_ff@@@u", 0);
            let core = shell.connect([192, 0, 2, 1].into(), connect);
            let mut harness = Self { core, shell, out: Vec::new() };
            harness.run(|core, cx| core.on_admission(Admission::Accepted, cx));
            harness
        }

        fn run<T>(&mut self, decide: impl FnOnce(&mut Core, &mut Context<'_>) -> T) -> T {
            self.out.clear();
            self.shell.decide(&mut self.core, &mut self.out, decide)
        }

        fn device_sends(&mut self, text: &str) {
            self.run(|core, cx| core.on_packet(publish_packet(text.as_bytes()), cx));
        }

        /// The id of the one request that was just published.
        fn published_request_id(&self) -> u32 {
            let [Action::Publish(text)] = &self.out[..] else { panic!("{:?}", self.out) };
            message::parse_rpc(text, Reader::Device).unwrap().id.unwrap().parse().unwrap()
        }

        fn command_results(&self) -> Vec<(u64, Result<&str, CommandError>)> {
            let answer = |action: &'_ Action| match action {
                Action::CommandResult { ticket, result } => Some((*ticket, result.clone())),
                _ => None,
            };
            let answers = self.out.iter().filter_map(answer);
            answers.map(|(ticket, result)| (ticket, result.map(|text| &*Box::leak(text)))).collect()
        }
    }

    #[test]
    fn a_command_gets_the_devices_result_or_its_error_once() {
        let mut harness = Harness::online();
        for (reply, expected) in [
            (r#""result":{"tools":[]}"#, Ok(r#"{"tools":[]}"#)),
            (r#""result":null"#, Ok("null")),
            (r#""neither":1"#, Ok("null")),
            (r#""error":null"#, Ok("null")),
            (
                r#""error":{"code":-32601,"message":"no \"such\" tool"}"#,
                Err(CommandError::Device("no \"such\" tool".into())),
            ),
            (r#""error":"broken""#, Err(CommandError::Device("\"broken\"".into()))),
        ] {
            harness.run(|core, cx| core.send_command(7, "tools/list", r#"{"withUserTools":true}"#, cx));
            let [Action::Publish(text)] = &harness.out[..] else { panic!("{:?}", harness.out) };
            let rpc = message::parse_rpc(text, Reader::Device).unwrap();
            assert_eq!(
                (rpc.method.as_deref(), rpc.params),
                (Some("tools/list"), Some(r#"{"withUserTools":true}"#))
            );
            let reply = format!(
                r#"{{"type":"mcp","payload":{{"jsonrpc":"2.0","id":{},{reply}}}}}"#,
                harness.published_request_id()
            );
            harness.device_sends(&reply);
            assert_eq!(harness.command_results(), [(7, expected)]);
            harness.device_sends(&reply);
            assert!(harness.out.is_empty(), "{:?}", harness.out);
        }
    }

    #[test]
    fn commands_end_after_their_timeout_or_with_the_connection() {
        const COMMAND_TIMEOUT: Duration = Duration::from_secs(9);
        let mut harness = Harness::online();
        for ticket in 0..MAX_PENDING_COMMANDS as u64 {
            harness.run(|core, cx| core.send_command(ticket, "m", "{}", cx));
        }
        harness.run(|core, cx| core.send_command(99, "m", "{}", cx));
        assert_eq!(harness.command_results(), [(99, Err(CommandError::Busy))]);
        assert_eq!(harness.core.deadline(), Some(harness.shell.now + COMMAND_TIMEOUT));
        harness.shell.now += COMMAND_TIMEOUT;
        harness.run(Core::on_timeout);
        assert_eq!(harness.command_results().len(), MAX_PENDING_COMMANDS);
        assert!(harness.command_results().iter().all(|answer| answer.1 == Err(CommandError::Timeout)));
        assert_eq!(harness.core.deadline(), Some(harness.shell.now + LATE_ANSWER_WAIT));
        harness.shell.now += LATE_ANSWER_WAIT;
        harness.run(Core::on_timeout);
        assert_eq!((&harness.out[..], harness.core.deadline()), (&[][..], None));

        harness.run(|core, cx| core.send_command(1, "m", "{}", cx));
        harness.run(Core::on_connection_lost);
        assert_eq!(harness.command_results(), [(1, Err(CommandError::NotConnected))]);
        harness.run(|core, cx| core.send_command(2, "m", "{}", cx));
        assert_eq!(harness.command_results(), [(2, Err(CommandError::NotConnected))]);
    }

    #[test]
    fn an_answer_after_the_timeout_is_reported_once_and_few_are_awaited() {
        let mut harness = Harness::online();
        let mut ids = Vec::new();
        for ticket in 0..40 {
            harness.run(|core, cx| core.send_command(ticket, "m", "{}", cx));
            ids.push(harness.published_request_id());
            harness.shell.now += Duration::from_secs(9);
            harness.run(Core::on_timeout);
            assert_eq!(harness.command_results(), [(ticket, Err(CommandError::Timeout))]);
        }
        let answer = |id: u32| message::mcp_result(None, &id.to_string(), "7");
        for (ticket, id) in ids.iter().enumerate() {
            harness.device_sends(&answer(*id));
            let late = Action::LateCommandResult { ticket: ticket as u64, result: Ok("7".into()) };
            let expected = if ticket < 40 - 2 * MAX_PENDING_COMMANDS { vec![] } else { vec![late] };
            assert_eq!(harness.out, expected);
            harness.device_sends(&answer(*id));
            assert_eq!(harness.out, []);
        }
        harness.run(|core, cx| core.send_command(50, "m", "{}", cx));
        harness.shell.now += Duration::from_secs(9);
        harness.run(Core::on_timeout);
        harness.run(Core::on_connection_lost);
        assert_eq!(harness.command_results(), [], "it had its result");
    }

    #[test]
    fn the_oldest_command_times_out_first() {
        let mut harness = Harness::online();
        harness.shell.config.api.command_timeout = Duration::from_secs(30);
        let started = harness.shell.now;
        harness.run(|core, cx| core.send_command(1, "m", "{}", cx));
        harness.shell.now += Duration::from_secs(1);
        harness.run(|core, cx| core.send_command(2, "m", "{}", cx));
        for ticket in [1, 2] {
            let due = started + Duration::from_secs(30 + ticket - 1);
            assert_eq!(harness.core.deadline(), Some(due));
            harness.shell.now = due;
            harness.run(Core::on_timeout);
            assert_eq!(harness.command_results(), [(ticket, Err(CommandError::Timeout))]);
        }
    }

    #[test]
    fn empty_cold_state_is_freed() {
        let mut harness = Harness::online();
        harness.shell.config.websocket.production = vec![std::sync::Arc::new("ws://a/".parse().unwrap())];
        harness.device_sends(r#"{"type":"hello","version":3}"#);
        assert!(harness.core.cold.is_some());
        harness.run(|core, cx| core.on_credentials(credentials(1), cx));
        assert!(harness.core.cold.is_none() && harness.core.has_call());
    }

    #[test]
    fn a_message_is_forwarded_unchanged_while_there_is_no_call() {
        let mut harness = Harness::online();
        let text = r#"{ "type":"alert","message":"你好" }"#;
        assert_eq!(harness.run(|core, cx| core.send_message(text, cx)), Delivery::Sent);
        assert_eq!(harness.out.len(), 1);
        assert!(matches!(&harness.out[0], Action::Publish(sent) if sent == text));
        assert!(!harness.run(Core::operator_hang_up));
        assert!(harness.out.is_empty());
        harness.run(Core::operator_disconnect);
        assert!(matches!(harness.out[..], [Action::CloseDevice(CloseReason::Operator)]), "{:?}", harness.out);
        harness.run(Core::operator_disconnect);
        assert!(harness.out.is_empty());
        assert_eq!(harness.run(|core, cx| core.send_message(text, cx)), Delivery::NotConnected);
    }
}
