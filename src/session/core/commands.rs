//! What operators do with a device: ask its tools, send it messages, hang up, disconnect, look.

use std::time::{Duration, Instant};

use super::{Aside, Core, Phase};
use crate::proto::message::{self, Object, Reader, Rpc};
use crate::session::action::{Action, CommandFailed, Cx, EndReason, Reason};
use crate::session::call::CallView;
use crate::session::mcp::Tools;

/// The consoles' own limit is 10 s for the whole way there and back.
const WITHIN: Duration = Duration::from_secs(5);
/// Commands under way at once for one device.
const MAX_PENDING: usize = 16;

/// What became of an operator's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is on its way.
    Sent,
    /// The device lost its connection in a call: it waits there for its return.
    Queued,
    /// The device is not connected.
    NotConnected,
}

/// An operator's command under way.
pub(super) struct Pending {
    id: u32,
    ticket: u64,
    pub(super) until: Instant,
}

impl Core {
    /// Whether the device is let in, or its call waits for its return.
    pub fn is_present(&self) -> bool {
        matches!(self.phase, Phase::Online | Phase::Away)
    }

    /// Since when this connection, or the one that was lost in a call, is let in.
    pub fn online_since(&self) -> Option<Instant> {
        self.is_present().then_some(self.since)
    }

    /// The call, unless the device has left it.
    pub fn call(&self) -> Option<CallView<'_>> {
        self.call.as_ref().filter(|call| !call.is_closing()).map(|call| call.view())
    }

    /// An operator asks the device something by JSON-RPC; `params` is raw JSON. [`Action::Answer`] follows in 5 s at the
    /// latest.
    pub fn command(&mut self, ticket: u64, method: &str, params: &str, cx: &mut Cx<'_>) {
        let failed = |why| Action::Answer { ticket, result: Err(why) };
        if self.phase != Phase::Online {
            return cx.out.push(failed(CommandFailed::NotConnected));
        }
        let commands = &mut self.aside.get_or_insert_default().commands;
        if commands.len() >= MAX_PENDING {
            return cx.out.push(failed(CommandFailed::Busy));
        }
        let id = cx.ids.issue();
        commands.push_back(Pending { id, ticket, until: cx.now + WITHIN });
        let session_id = self.call.as_ref().and_then(|call| call.session_id());
        cx.out.push(Action::Publish(message::mcp_request(session_id, id, method, params)));
    }

    /// An `mcp` message of the device. True: it answered a request of the gateway, and is for nobody else.
    pub(super) fn command_answered(&mut self, text: &str, cx: &mut Cx<'_>) -> bool {
        let Some(rpc) = message::rpc(text, Reader::Server).filter(|rpc| rpc.method.is_none()) else {
            return false;
        };
        let Some(id) = rpc.id.and_then(|id| id.parse::<u32>().ok()) else { return false };
        if let Some(Aside { commands, .. }) = self.aside.as_deref_mut()
            && let Some(place) = commands.iter().position(|pending| pending.id == id)
            && let Some(Pending { ticket, .. }) = commands.remove(place)
        {
            cx.out.push(Action::Answer { ticket, result: result(&rpc) });
            return true;
        }
        // What comes too late is nobody else's either. With tools, they see to that.
        matches!(self.mcp, Tools::Off) && cx.ids.is_issued(id)
    }

    pub(super) fn commands_timeout(&mut self, cx: &mut Cx<'_>) {
        let Some(Aside { commands, .. }) = self.aside.as_deref_mut() else { return };
        while commands.front().is_some_and(|pending| pending.until <= cx.now)
            && let Some(Pending { ticket, .. }) = commands.pop_front()
        {
            cx.out.push(Action::Answer { ticket, result: Err(CommandFailed::Timeout) });
        }
    }

    /// The device is gone: nobody will answer.
    pub(super) fn fail_commands(&mut self, cx: &mut Cx<'_>) {
        let Some(aside) = &mut self.aside else { return };
        cx.out.extend(std::mem::take(&mut aside.commands).into_iter().map(|pending| Action::Answer {
            ticket: pending.ticket,
            result: Err(CommandFailed::NotConnected),
        }));
    }

    /// An operator's message for the device: a JSON object, which gets the session id of the call, if there is one.
    pub fn message(&mut self, text: &str, cx: &mut Cx<'_>) -> Delivery {
        let delivery = match self.phase {
            Phase::Online => Delivery::Sent,
            Phase::Away => Delivery::Queued,
            _ => return Delivery::NotConnected,
        };
        match self.call.as_mut().filter(|call| !call.is_closing()) {
            Some(call) => {
                if let Err(reason) = call.operator_text(text, cx) {
                    // It waited with others, and was one too many: the call ends, and all of them go with it.
                    self.end_call(reason, cx);
                    return Delivery::NotConnected;
                }
            }
            None => cx.out.push(Action::Publish(message::with_session_id(text, None).into_owned())),
        }
        delivery
    }

    /// An operator ends the call. False when there is none.
    pub fn operator_hangs_up(&mut self, cx: &mut Cx<'_>) -> bool {
        let had_call = self.has_call();
        if had_call {
            self.end_call(EndReason::Operator, cx);
        }
        had_call
    }

    /// An operator ends the call, if there is one, and the device's connection.
    pub fn operator_disconnects(&mut self, cx: &mut Cx<'_>) {
        self.end_call(EndReason::Operator, cx);
        if self.phase != Phase::Leaving {
            self.close(Reason::Operator, cx);
        }
    }
}

fn result(rpc: &Rpc<'_>) -> Result<Box<str>, CommandFailed> {
    match (rpc.error, rpc.result) {
        (Some(error), _) if error != "null" => {
            let message =
                Object::parse(error).ok().and_then(|error| error.string("message").map(|text| text.into()));
            Err(CommandFailed::Device(message.unwrap_or_else(|| error.into())))
        }
        (_, result) => Ok(result.unwrap_or("null").into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::proto::mqtt::{Connect, Level, Packet, Publish};
    use crate::session::tests::grant;
    use crate::session::{Admission, RequestIds, Servers};

    /// A core with the actions of its last call.
    struct Bench {
        core: Core,
        config: Config,
        servers: Servers,
        ids: RequestIds,
        now: Instant,
        out: Vec<Action>,
    }

    impl Bench {
        fn online() -> Self {
            let (now, mut config) = (Instant::now(), Config::default());
            config.mcp.enabled = false;
            let core = Core::new([192, 0, 2, 1].into(), now);
            let mut bench = Self {
                core,
                config,
                servers: Servers::default(),
                ids: RequestIds::new(),
                now,
                out: Vec::new(),
            };
            let connect = Connect {
                level: Level::V311,
                client_id: "g@@@aa_bb_cc_dd_ee_ff@@@u",
                clean_session: true,
                keep_alive: 0,
                will: None,
                user_name: None,
                password: None,
            };
            bench.act(|core, cx| core.packet(Packet::Connect(connect), cx));
            bench.act(|core, cx| core.admitted(Admission::Welcome, cx));
            bench
        }

        fn act<T>(&mut self, act: impl FnOnce(&mut Core, &mut Cx<'_>) -> T) -> T {
            self.out.clear();
            let mut cx = Cx {
                now: self.now,
                config: &self.config,
                servers: &mut self.servers,
                ids: &self.ids,
                out: &mut self.out,
            };
            act(&mut self.core, &mut cx)
        }

        fn device_says(&mut self, text: &str) {
            let publish = Publish { topic: "t", payload: text.as_bytes(), retain: false };
            self.act(|core, cx| core.packet(Packet::Publish(publish), cx));
        }

        /// The id of the one request that was just published.
        fn asked(&self) -> u32 {
            let [Action::Publish(text)] = &self.out[..] else { panic!("{:?}", self.out) };
            message::rpc(text, Reader::Device).unwrap().id.unwrap().parse().unwrap()
        }

        fn answers(&self) -> Vec<(u64, Result<&str, CommandFailed>)> {
            let answer = |action: &'_ Action| match action {
                Action::Answer { ticket, result } => Some((*ticket, result.clone())),
                _ => None,
            };
            let answers = self.out.iter().filter_map(answer);
            answers.map(|(ticket, result)| (ticket, result.map(|text| &*Box::leak(text)))).collect()
        }
    }

    #[test]
    fn a_command_gets_the_devices_result_or_its_error_once() {
        let mut bench = Bench::online();
        for (reply, expected) in [
            (r#""result":{"tools":[]}"#, Ok(r#"{"tools":[]}"#)),
            (r#""result":null"#, Ok("null")),
            (r#""neither":1"#, Ok("null")),
            (r#""error":null"#, Ok("null")),
            (
                r#""error":{"code":-32601,"message":"no \"such\" tool"}"#,
                Err(CommandFailed::Device("no \"such\" tool".into())),
            ),
            (r#""error":"broken""#, Err(CommandFailed::Device("\"broken\"".into()))),
        ] {
            bench.act(|core, cx| core.command(7, "tools/list", r#"{"withUserTools":true}"#, cx));
            let [Action::Publish(text)] = &bench.out[..] else { panic!("{:?}", bench.out) };
            let rpc = message::rpc(text, Reader::Device).unwrap();
            assert_eq!(
                (rpc.method.as_deref(), rpc.params),
                (Some("tools/list"), Some(r#"{"withUserTools":true}"#))
            );
            let reply =
                format!(r#"{{"type":"mcp","payload":{{"jsonrpc":"2.0","id":{},{reply}}}}}"#, bench.asked());
            bench.device_says(&reply);
            assert_eq!(bench.answers(), [(7, expected)]);
            bench.device_says(&reply);
            assert!(bench.out.is_empty(), "{:?}", bench.out);
        }
    }

    #[test]
    fn commands_end_in_five_seconds_or_with_the_connection() {
        let mut bench = Bench::online();
        for ticket in 0..MAX_PENDING as u64 {
            bench.act(|core, cx| core.command(ticket, "m", "{}", cx));
        }
        bench.act(|core, cx| core.command(99, "m", "{}", cx));
        assert_eq!(bench.answers(), [(99, Err(CommandFailed::Busy))]);
        assert_eq!(bench.core.deadline(), Some(bench.now + WITHIN));
        bench.now += WITHIN;
        bench.act(Core::timeout);
        assert_eq!(bench.answers().len(), MAX_PENDING);
        assert!(bench.answers().iter().all(|answer| answer.1 == Err(CommandFailed::Timeout)));
        assert_eq!(bench.core.deadline(), None);

        bench.act(|core, cx| core.command(1, "m", "{}", cx));
        bench.act(Core::connection_lost);
        assert_eq!(bench.answers(), [(1, Err(CommandFailed::NotConnected))]);
        bench.act(|core, cx| core.command(2, "m", "{}", cx));
        assert_eq!(bench.answers(), [(2, Err(CommandFailed::NotConnected))]);
    }

    #[test]
    fn the_oldest_command_is_the_first_to_be_late() {
        let mut bench = Bench::online();
        let begun = bench.now;
        bench.act(|core, cx| core.command(1, "m", "{}", cx));
        bench.now += Duration::from_secs(1);
        bench.act(|core, cx| core.command(2, "m", "{}", cx));
        for ticket in [1, 2] {
            let due = begun + WITHIN + Duration::from_secs(ticket - 1);
            assert_eq!(bench.core.deadline(), Some(due));
            bench.now = due;
            bench.act(Core::timeout);
            assert_eq!(bench.answers(), [(ticket, Err(CommandFailed::Timeout))]);
        }
    }

    #[test]
    fn what_is_empty_again_is_given_back() {
        let mut bench = Bench::online();
        bench.config.websocket.production = vec![std::sync::Arc::new("ws://a/".parse().unwrap())];
        bench.device_says(r#"{"type":"hello","version":3}"#);
        assert!(bench.core.aside.is_some());
        bench.act(|core, cx| core.granted(grant(1), cx));
        assert!(bench.core.aside.is_none() && bench.core.has_call());
    }

    #[test]
    fn a_message_goes_out_as_it_came_while_there_is_no_call() {
        let mut bench = Bench::online();
        let text = r#"{ "type":"alert","message":"你好" }"#;
        assert_eq!(bench.act(|core, cx| core.message(text, cx)), Delivery::Sent);
        assert_eq!(bench.out.len(), 1);
        assert!(matches!(&bench.out[0], Action::Publish(sent) if sent == text));
        assert!(!bench.act(Core::operator_hangs_up));
        assert!(bench.out.is_empty());
        bench.act(Core::operator_disconnects);
        assert!(matches!(bench.out[..], [Action::Close(Reason::Operator)]), "{:?}", bench.out);
        bench.act(Core::operator_disconnects);
        assert!(bench.out.is_empty());
        assert_eq!(bench.act(|core, cx| core.message(text, cx)), Delivery::NotConnected);
    }
}
