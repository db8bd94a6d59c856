//! The invariants of the network.

use super::harness::MAX_RETAINED_BYTES;
use super::*;

impl SimulatedNetwork {
    pub(super) fn check(&self) {
        let mut owners = vec![0; self.calls.len()];
        for (s, session) in self.sessions.iter().enumerate() {
            assert!(
                session.core.retained_bytes() < MAX_RETAINED_BYTES,
                "no queue over its bound: {} bytes",
                session.core.retained_bytes()
            );
            assert!(
                session.core.is_finished() || !session.core.is_closed() || session.core.deadline().is_some(),
                "{s} has no deadline"
            );
            assert!(
                !session.core.is_finished() || session.core.deadline().is_none(),
                "{s} is finished and has a deadline"
            );
            let idle = session.connected && !session.replaced && session.core.ssrc().is_none();
            if idle && !session.core.is_present() {
                let timeout = Duration::from_millis(10_000 + 2 * MAX_TIMER_DELAY_MS);
                assert!(self.shell.now <= session.since + timeout, "{s} has sent no CONNECT for too long");
            }
            if let Some(leave_at) = self.drain_deadline.filter(|_| idle) {
                let due = session.core.deadline().is_some_and(|at| at <= self.shell.now);
                assert!(
                    due || self.shell.now <= leave_at + Duration::from_millis(2 * MAX_TIMER_DELAY_MS),
                    "{s} is still connected while draining"
                );
            }
            let asked = self.pending_commands.values().filter(|(session, _)| *session == s);
            assert!(asked.count() <= 16, "no queue over its bound: commands");
            if let Some(ws) = session.websocket.as_ref().filter(|ws| ws.has_alternative && !ws.hello_sent) {
                let (since, ms) = if ws.open { (ws.opened_at, 4_000) } else { (ws.dialled_at, 3_000) };
                let live = session.core.call().is_some_and(|call| call.state == CallState::Live);
                let until = since + Duration::from_millis(ms + 2 * MAX_TIMER_DELAY_MS);
                assert!(live || self.shell.now <= until, "a dial ends in time if there is another server");
            }
            if let Some(ws) = &session.websocket {
                let late = Duration::from_millis(8_500 + 2 * MAX_TIMER_DELAY_MS);
                assert!(
                    ws.hello_sent
                        || self.shell.now <= ws.dialled_at + late
                        || session.core.call().is_some_and(|call| call.state == CallState::Live),
                    "every dial ends"
                );
                assert!(session.core.ssrc().is_some(), "a WebSocket without a call");
            }
            if let Some(ssrc) = session.core.ssrc() {
                owners[ssrc as usize] += 1;
                assert!(session.core.deadline().is_some(), "a call always has a deadline");
            }
        }
        let timeout = Duration::from_millis(9_000 + 2 * MAX_TIMER_DELAY_MS);
        assert!(
            self.pending_commands.values().all(|(_, since)| self.shell.now <= *since + timeout),
            "commands end within 9 s"
        );
        for (ssrc, call) in self.calls.iter().enumerate() {
            assert_eq!(
                owners[ssrc],
                u32::from(!call.ended),
                "call {ssrc} belongs to one session until it ends"
            );
        }
        for device in 0..DEVICES {
            let core = self.session_by_device[device].map(|s| &self.sessions[s].core);
            let Some(peer) = self.device_calls.peer(mac(device)) else { continue };
            assert_eq!(self.device_calls.peer(peer), Some(mac(device)), "both or none");
            assert!(core.is_some_and(Core::is_in_device_call), "a connected device is in a call");
        }
    }
}
