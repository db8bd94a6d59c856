//! What the gateway keeps for its peers: packets and messages that are partial, output that is not read, text that waits. A
//! device with its call may keep a little; all that the sessions of this loop keep above that shares one budget (each worker
//! has its own), and the fuller it is, the smaller is the share of each. So nobody can make the gateway grow, and
//! those who keep much go first: a chat server loses its WebSocket, a device its connection, whichever keeps more.
//!
//! Counted are a device's partial packet and unread output, the texts, frames and tools its core keeps, and of a WebSocket
//! its upgrade, the message that is not whole yet and what the server has not read. A buffer that grew by doubling may
//! have room for twice of what is in it. What the TLS library and the system keep for a connection is theirs to limit.

use std::mem;

use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::sessions::table::Session;
use crate::session::{BackendClosed, BackendFailure, BackendStage, Core};

/// What a device with its call may keep in any case, in bytes: any ordinary message, and a device's list of tools.
const FREE_PER_CONNECTION: usize = 16 * 1024;
/// What all together may keep above that, in bytes.
const BUDGET: usize = 32 * 1024 * 1024;
/// Each may keep this part of what is left of the budget.
const SHARE_DIVISOR: usize = 16;

/// The sum over all sessions of what each keeps above [`FREE`].
#[derive(Debug, Default)]
pub(in crate::net) struct MemoryBudget(usize);

impl MemoryBudget {
    /// What a session kept changes to `after`; false when that is more than its share.
    fn change(&mut self, before: u32, after: u32) -> bool {
        self.0 = self.0 + after as usize - before as usize;
        after as usize <= BUDGET.saturating_sub(self.0) / SHARE_DIVISOR
    }
}

impl Session {
    /// Bytes that are kept for the device, and texts that wait for either side.
    fn kept_for_device(&self) -> usize {
        self.core.retained_bytes() + self.mqtt.as_ref().map_or(0, |device| device.buffered_bytes())
    }

    /// Bytes that are kept for the WebSocket.
    fn kept_for_server(&self) -> usize {
        self.backend.as_ref().map_or(0, |backend| backend.kept())
    }
}

impl Gateway {
    /// Looks at what is kept for this session; one with more than its share is dealt with in the next turn.
    pub(in crate::net) fn account(&mut self, id: SessionId) {
        if let Some((before, after, false)) = self.reweigh(id)
            && after > before
        {
            self.run_queue.push(Task::OverBudget(id));
        }
    }

    /// What the session kept above [`FREE`] when last looked at, what it keeps now, and whether that is within its share.
    fn reweigh(&mut self, id: SessionId) -> Option<(u32, u32, bool)> {
        let session = self.sessions.live(id)?;
        let kept = session.kept_for_device().saturating_add(session.kept_for_server());
        let after = u32::try_from(kept.saturating_sub(FREE_PER_CONNECTION)).unwrap_or(u32::MAX);
        let before = mem::replace(&mut session.accounted_bytes, after);
        Some((before, after, self.memory_budget.change(before, after)))
    }

    /// Ends what keeps most in a session with more than its share: the WebSocket, or the device's connection. Nothing when
    /// it keeps less by now.
    pub(in crate::net) fn end_hog(&mut self, id: SessionId) {
        if !matches!(self.reweigh(id), Some((_, _, false))) {
            return;
        }
        let Some(session) = self.sessions.get(id) else { return };
        if session.kept_for_server() > session.kept_for_device() {
            let why = "it makes the gateway keep more than its share of the memory".to_owned();
            self.backend_gone(id, BackendClosed::Failed(BackendFailure::new(BackendStage::Live, why)));
        } else {
            self.drive(id, Core::on_memory_limit);
        }
    }

    /// What a session kept that is no more.
    pub(in crate::net) fn release_account(&mut self, kept: u32) {
        self.memory_budget.change(kept, 0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;

    use super::*;
    use crate::net::gateway::harness::{Harness, client_id};
    use crate::proto::mqtt::encode;

    /// A text of a device.
    fn say(client: &mut TcpStream, length: usize) {
        let text = format!(r#"{{"type":"custom","filler":"{}"}}"#, "x".repeat(length));
        let mut packet = Vec::new();
        encode::publish(&mut packet, "t", text.as_bytes());
        client.write_all(&packet).unwrap();
    }

    /// Sends text for a chat server that does not read, of which the system takes some megabytes before any waits here.
    fn fill(harness: &mut Harness, client: &mut TcpStream, done: impl Fn(&Gateway) -> bool) {
        for _ in 0..500 {
            if done(&harness.gateway) {
                return;
            }
            say(client, 40_000);
            harness.serve(client);
        }
        panic!("nothing waits for the server");
    }

    /// So much do others keep that this session's share is gone.
    fn crowd(harness: &mut Harness) -> u32 {
        let others = (BUDGET - 1024) as u32;
        harness.gateway.memory_budget.change(0, others);
        others
    }

    #[track_caller]
    fn assert_websocket_lost(harness: &mut Harness, id: SessionId, others: u32) {
        harness.until("its WebSocket is lost", |gateway| {
            gateway.sessions.get(id).unwrap().backend.as_ref().is_none_or(|backend| !backend.is_open())
        });
        let session = harness.gateway.sessions.get(id).unwrap();
        assert!(session.core.is_online() && session.mqtt.as_ref().is_some_and(|device| !device.closing));
        assert!(session.core.has_call(), "it redials");
        assert_eq!(harness.gateway.memory_budget.0, others as usize);
    }

    #[test]
    fn a_server_that_does_not_read_costs_its_websocket_and_not_the_device() {
        let mut harness = Harness::new(|_| {});
        let (mut client, id, _socket) = harness.live_call(&client_id(1));
        let waits = |gateway: &Gateway| gateway.sessions.get(id).unwrap().kept_for_server();
        fill(&mut harness, &mut client, |gateway| waits(gateway) >= 2 * FREE_PER_CONNECTION);
        assert!(
            harness.gateway.memory_budget.0 >= FREE_PER_CONNECTION,
            "{} bytes",
            harness.gateway.memory_budget.0
        );
        let others = crowd(&mut harness);
        say(&mut client, 100);
        assert_websocket_lost(&mut harness, id, others);
    }

    #[test]
    fn an_unfinished_message_costs_the_server_its_websocket_and_not_the_device() {
        const PART: usize = 50_000;
        let mut harness = Harness::new(|_| {});
        let (_client, id, mut socket) = harness.live_call(&client_id(1));
        let waits = |gateway: &Gateway| gateway.sessions.get(id).unwrap().kept_for_server();
        let mut part = |first: u8| {
            let head = [first, 126, (PART >> 8) as u8, PART as u8];
            socket.get_mut().write_all(&[&head[..], &[b' '; PART]].concat()).unwrap();
        };
        part(0x01);
        harness.until("its start is kept", |gateway| waits(gateway) >= PART);
        assert!(
            harness.gateway.memory_budget.0 >= PART - FREE_PER_CONNECTION,
            "{} bytes",
            harness.gateway.memory_budget.0
        );
        part(0x80);
        harness.until("it is whole", |gateway| gateway.memory_budget.0 == 0);
        let others = crowd(&mut harness);
        part(0x01);
        assert_websocket_lost(&mut harness, id, others);
    }

    #[test]
    fn what_keeps_less_by_its_turn_is_left_alone() {
        let mut harness = Harness::new(|_| {});
        let (mut client, id, _socket) = harness.live_call(&client_id(1));
        crowd(&mut harness);
        harness.gateway.run_queue.push(Task::OverBudget(id));
        say(&mut client, 10);
        harness.serve(&mut client);
        let session = harness.gateway.sessions.get(id).unwrap();
        assert!(
            session.core.is_online() && session.backend.as_ref().is_some_and(|backend| backend.is_open())
        );
    }

    #[test]
    fn a_websocket_that_closes_is_weighed_while_it_lingers() {
        let mut harness = Harness::new(|_| {});
        let (mut client, id, _socket) = harness.live_call(&client_id(1));
        fill(&mut harness, &mut client, |gateway| gateway.memory_budget.0 >= FREE_PER_CONNECTION);
        let kept = harness.gateway.memory_budget.0;
        let mut goodbye = Vec::new();
        encode::publish(&mut goodbye, "t", br#"{"type":"goodbye"}"#);
        client.write_all(&goodbye).unwrap();
        harness.until("the call is over", |gateway| !gateway.sessions.get(id).unwrap().core.has_call());
        assert!(
            harness.gateway.memory_budget.0 >= kept,
            "{} and not {kept}",
            harness.gateway.memory_budget.0
        );
        harness.until("the server had its time", |gateway| gateway.memory_budget.0 == 0);
    }

    #[test]
    fn one_may_keep_much_and_many_may_keep_little_but_all_together_never_more_than_the_budget() {
        for each in [20_000, 100_000, 1_000_000, BUDGET as u32] {
            let mut kept = MemoryBudget::default();
            let mut good = 0;
            for _ in 0..10_000 {
                match kept.change(0, each) {
                    true => good += 1,
                    false => drop(kept.change(each, 0)),
                }
            }
            assert!(kept.0 < BUDGET && kept.0 == good * each as usize, "{each}: {}", kept.0);
            assert_eq!(good > 0, (each as usize) < BUDGET / SHARE_DIVISOR, "{each}: {good}");
            // Whoever comes now still has room for something.
            let newcomer = kept.change(0, 1_000);
            assert!(newcomer, "{each}: {good} keep {}", kept.0);
        }
    }
}
