//! What must hold at any time.

use super::harness::KEPT;
use super::*;

impl Town {
    pub(super) fn check(&self) {
        let mut owners = vec![0; self.calls.len()];
        for (s, link) in self.links.iter().enumerate() {
            assert!(link.core.kept() < KEPT, "no queue over its bound: {} bytes", link.core.kept());
            assert!(
                link.core.is_over() || !link.core.is_gone() || link.core.deadline().is_some(),
                "{s} waits for nothing"
            );
            assert!(
                !link.core.is_over() || link.core.deadline().is_none(),
                "{s} is over and waits for something"
            );
            let idle = link.connected && !link.moved && link.core.ssrc().is_none();
            if idle && !link.core.is_present() {
                let patience = Duration::from_millis(10_000 + 2 * LATE);
                assert!(self.now <= link.since + patience, "{s} has said nothing for too long");
            }
            if let Some(leave_at) = self.leave_at.filter(|_| idle) {
                let due = link.core.deadline().is_some_and(|at| at <= self.now);
                assert!(
                    due || self.now <= leave_at + Duration::from_millis(2 * LATE),
                    "{s} stays in a drain"
                );
            }
            let asked = self.asked.values().filter(|(session, _)| *session == s);
            assert!(asked.count() <= 16, "no queue over its bound: commands");
            if let Some(ws) = link.ws.as_ref().filter(|ws| ws.strict && !ws.greeted) {
                let (since, ms) = if ws.open { (ws.opened, 4_000) } else { (ws.since, 3_000) };
                let live = link.core.call().is_some_and(|call| call.state == CallState::Live);
                let until = since + Duration::from_millis(ms + 2 * LATE);
                assert!(live || self.now <= until, "a dial ends for the sake of another server");
            }
            if let Some(ws) = &link.ws {
                let late = Duration::from_millis(8_500 + 2 * LATE);
                assert!(
                    ws.greeted
                        || self.now <= ws.since + late
                        || link.core.call().is_some_and(|call| call.state == CallState::Live),
                    "every dial ends"
                );
                assert!(link.core.ssrc().is_some(), "a WebSocket of nobody");
            }
            if let Some(ssrc) = link.core.ssrc() {
                owners[ssrc as usize] += 1;
                assert!(link.core.deadline().is_some(), "a call always waits for something");
            }
        }
        let patience = Duration::from_millis(5_000 + 2 * LATE);
        assert!(
            self.asked.values().all(|(_, since)| self.now <= *since + patience),
            "operators are answered in 5 s"
        );
        for (ssrc, call) in self.calls.iter().enumerate() {
            assert_eq!(owners[ssrc], u32::from(!call.ended), "call {ssrc} has one owner while it lasts");
        }
        for device in 0..DEVICES {
            let core = self.known[device].map(|s| &self.links[s].core);
            let Some(peer) = self.bridges.peer(mac(device)) else { continue };
            assert_eq!(self.bridges.peer(peer), Some(mac(device)), "both or none");
            assert!(core.is_some_and(Core::is_with_device), "who talks is in a call");
        }
    }
}
