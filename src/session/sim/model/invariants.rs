//! What must hold, after each decision and at any time.

use std::time::{Duration, Instant};

use super::{Core, Input, LATE, Shadow, Tally, Ws};

impl Shadow {
    /// What must hold between the call before and after this decision.
    pub(super) fn settle(&mut self, now: Instant, input: Input, connected: bool, tally: &Tally) {
        let connected_now = self.is_connected();
        let greeted = self.ws.is_greeted();
        let failed = std::mem::take(&mut self.was_greeted) && !greeted;
        let Some(call) = &mut self.call else { return };
        if tally.greeted {
            let expected = call.redials > 0 && call.last_listen.is_some();
            assert!(
                tally.repeated <= u32::from(expected),
                "the last listen is repeated once, after a redial"
            );
        }
        if failed {
            call.redials += 1;
            assert!(!connected_now || call.to_device.is_empty(), "text outlives its server");
            assert!(!connected_now || !call.speaking, "speech is ended");
        }
        if greeted {
            assert!(call.to_server.is_empty(), "nothing waits for a server that is there");
        }
        if connected && !connected_now {
            call.to_device.iter_mut().for_each(|due| due.2 = true);
        }
        if matches!(input, Input::Back(_)) {
            call.to_device.iter_mut().for_each(|due| due.1 = now);
        }
    }

    pub(in super::super) fn check(&self, now: Instant, core: &Core) {
        let late = Duration::from_millis(2 * LATE);
        assert_eq!(core.ssrc(), self.call.as_ref().map(|call| call.grant.ssrc));
        assert_eq!(core.is_online(), self.is_connected());
        match &self.ws {
            Ws::Dialing { since, .. } | Ws::Open { since, greeted: false, .. } => {
                assert!(now <= *since + Duration::from_millis(8_500) + late, "every dial ends");
            }
            Ws::None | Ws::Open { .. } => {}
        }
        let Some(call) = &self.call else { return assert_eq!(self.ws, Ws::None, "a WebSocket of nobody") };
        assert!(core.deadline().is_some(), "a call always waits for something");
        if core.is_gone() {
            assert!(call.closing, "a call without an owner");
        }
        if self.ws == Ws::None {
            let next = core.deadline().expect("checked above");
            assert!(next <= now + Duration::from_secs(30), "a call without a server gets one");
        }
        if !self.is_connected() || call.closing {
            return;
        }
        let wait = now.duration_since(call.since);
        assert!(call.id.is_some() || wait < Duration::from_secs(9), "answered before 9 s");
        if self.ws.is_greeted() {
            for (n, since, _) in &call.to_device {
                assert!(now <= *since + Duration::from_secs(2) + late, "text {n} waits at most 2 s");
            }
        }
    }
}
