//! What operators do, and how a gateway ends.

use super::*;

impl Town {
    pub(super) fn all_is_over(mut self) -> BTreeSet<&'static str> {
        assert!(self.links.iter().all(|link| link.core.is_over()), "no session is left without an owner");
        assert!(self.calls.iter().all(|call| call.ended), "every call that was granted has ended");
        assert!(self.asked.is_empty(), "every operator was answered");
        std::mem::take(&mut self.reached)
    }

    /// No new connections; who has no call goes within 5 s.
    pub(super) fn drain(&mut self) {
        // Somebody in a call is away just then.
        let calls = |s: &usize| self.links[*s].connected && self.links[*s].core.has_call();
        if let Some(s) = self.known.into_iter().flatten().find(calls) {
            self.drive(s, Core::connection_lost);
            self.reached.extend(self.links[s].core.is_present().then_some("away in a drain"));
        }
        let leave_at = self.now + Duration::from_secs(5);
        self.leave_at = Some(leave_at);
        self.reached.insert("drained");
        self.note(format_args!("drains"));
        (0..self.links.len()).for_each(|s| self.drive(s, |core, cx| core.drain(leave_at, cx)));
        let away = self.links.iter().any(|link| link.core.is_present() && !link.connected);
        assert!(!away, "a device that cannot come back is waited for");
        self.check();
    }

    /// The gateway stops: all is over at once.
    pub(super) fn shut_down(mut self) -> BTreeSet<&'static str> {
        self.note(format_args!("stops"));
        (0..self.links.len()).for_each(|s| self.drive(s, Core::shutdown));
        self.check();
        self.all_is_over()
    }

    pub(super) fn operator_acts(&mut self, device: usize) {
        let Some(s) = self.known[device] else { return };
        self.note(format_args!("[{s}] an operator acts"));
        match self.rng.below(10) {
            0..2 => self.drive(s, |core, cx| {
                _ = core.operator_hangs_up(cx);
            }),
            2 => self.drive(s, Core::operator_disconnects),
            3..6 => self.drive(s, |core, cx| {
                _ = core.message(r#"{"type":"notify"}"#, cx);
            }),
            _ => {
                for _ in 0..self.rng.pick(&[1, 3, 20]) {
                    self.serial += 1;
                    let ticket = self.serial;
                    self.asked.insert(ticket, (s, self.now));
                    self.drive(s, |core, cx| core.command(ticket, "tools/call", "{}", cx));
                }
            }
        }
    }
}
