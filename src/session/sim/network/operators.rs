//! Operators, drain and shutdown.

use super::*;

impl SimulatedNetwork {
    pub(super) fn check_all_finished(mut self) -> BTreeSet<&'static str> {
        assert!(self.sessions.iter().all(|session| session.core.is_finished()), "no session is left over");
        assert!(self.calls.iter().all(|call| call.ended), "every call has ended");
        assert!(self.pending_commands.is_empty(), "every command has a result");
        std::mem::take(&mut self.coverage)
    }

    /// The gateway drains: no new connections, and a device without a call is disconnected within 5 s.
    pub(super) fn drain(&mut self) {
        // One device in a call has just lost its connection.
        let calls = |s: &usize| self.sessions[*s].connected && self.sessions[*s].core.has_call();
        if let Some(s) = self.session_by_device.into_iter().flatten().find(calls) {
            self.drive(s, Core::on_connection_lost);
            self.coverage.extend(self.sessions[s].core.is_present().then_some("away in a drain"));
        }
        let leave_at = self.shell.now + Duration::from_secs(5);
        self.drain_deadline = Some(leave_at);
        self.coverage.insert("drained");
        self.log(format_args!("drains"));
        (0..self.sessions.len()).for_each(|s| self.drive(s, |core, cx| core.drain(leave_at, cx)));
        let away = self.sessions.iter().any(|session| session.core.is_present() && !session.connected);
        assert!(!away, "no call is kept for a device that cannot reconnect");
        self.check();
    }

    /// The gateway stops: all calls and sessions end at once.
    pub(super) fn shutdown(mut self) -> BTreeSet<&'static str> {
        self.log(format_args!("stops"));
        (0..self.sessions.len()).for_each(|s| self.drive(s, Core::shutdown));
        self.check();
        self.check_all_finished()
    }

    pub(super) fn operator_step(&mut self, device: usize) {
        let Some(s) = self.session_by_device[device] else { return };
        self.log(format_args!("[{s}] an operator acts"));
        match self.rng.below(10) {
            0..2 => self.drive(s, |core, cx| {
                _ = core.operator_hang_up(cx);
            }),
            2 => self.drive(s, Core::operator_disconnect),
            3..6 => self.drive(s, |core, cx| {
                _ = core.send_message(r#"{"type":"notify"}"#, cx);
            }),
            _ => {
                for _ in 0..self.rng.pick(&[1, 3, 20]) {
                    self.serial += 1;
                    let ticket = self.serial;
                    self.pending_commands.insert(ticket, (s, self.shell.now));
                    self.drive(s, |core, cx| core.send_command(ticket, "tools/call", "{}", cx));
                }
            }
        }
    }
}
