//! The invariants of the model.

use std::time::{Duration, Instant};

use super::{Core, DecisionSummary, Input, MAX_TIMER_DELAY_MS, Model, WebSocketState};

impl Model {
    /// Checks the call before and after a decision.
    pub(super) fn check_transition(&mut self, input: Input, connected: bool, decision: &DecisionSummary) {
        let connected_now = self.is_connected();
        let greeted = self.ws.is_live();
        let failed = std::mem::take(&mut self.had_server_hello) && !greeted;
        let Some(call) = &mut self.call else { return };
        if decision.server_is_live {
            let expected = call.redials > 0 && call.last_listen.is_some();
            assert!(
                decision.listens_repeated <= u32::from(expected),
                "the last listen is repeated once, after a redial"
            );
        }
        if failed {
            call.redials += 1;
            assert!(!connected_now || self.unproven || call.to_device.is_empty(), "text outlives its server");
            assert!(!connected_now || self.unproven || !call.tts_active, "speech is ended");
        }
        if greeted {
            assert!(call.to_server.is_empty(), "no text waits for a live server");
        }
        if connected && !connected_now {
            call.to_device.iter_mut().for_each(|due| due.2 = true);
        }
        if matches!(input, Input::Reconnected(_)) {
            self.unproven = true;
        }
    }

    pub(in super::super) fn check_state(&self, now: Instant, core: &Core) {
        let late = Duration::from_millis(2 * MAX_TIMER_DELAY_MS);
        assert_eq!(core.ssrc(), self.call.as_ref().map(|call| call.credentials.ssrc));
        assert_eq!(core.is_online(), self.is_connected());
        match &self.ws {
            WebSocketState::Dialing { since, .. }
            | WebSocketState::Open { since, hello_received: false, .. } => {
                // It goes on for the device's last hello.
                let since = self.call.as_ref().map_or(*since, |call| call.since.max(*since));
                assert!(now <= since + Duration::from_millis(8_500) + late, "every dial ends");
            }
            WebSocketState::None | WebSocketState::Open { .. } => {}
        }
        let Some(call) = &self.call else {
            return assert_eq!(self.ws, WebSocketState::None, "a WebSocket without a call");
        };
        assert!(core.deadline().is_some(), "a call always has a deadline");
        if core.is_closed() {
            assert!(call.closing, "a closed session keeps only a closing call");
        }
        if self.ws == WebSocketState::None {
            let next = core.deadline().expect("checked above");
            assert!(next <= now + Duration::from_secs(30), "a call without a server dials again");
        }
        if !self.is_connected() || call.closing {
            return;
        }
        let wait = now.duration_since(call.since);
        assert!(call.session_id.is_some() || wait < Duration::from_secs(9), "answered before 9 s");
        if self.ws.is_live() && !self.unproven {
            for (n, since, _) in &call.to_device {
                assert!(now <= *since + Duration::from_secs(2) + late, "text {n} waits at most 2 s");
            }
        }
    }
}
