//! Calls between devices: carries out what [`DeviceCallTable`] decides.

use log::info;

use crate::net::event_loop::io::{Io, TimerKind};
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::sessions::table::Sessions;
use crate::proto::identity::Mac;
use crate::session::{
    AcceptOutcome, Context, Core, DeviceCallEffect, DeviceCallTable, EndReason, Presence, RequestOutcome,
};

/// The device-to-device calls, and the timer for those that nobody has answered yet.
#[derive(Default)]
pub(crate) struct DeviceCalls {
    table: DeviceCallTable,
    /// The tick of the one live entry in the timer wheel.
    armed_tick: Option<u64>,
}

impl DeviceCalls {
    /// Changes the table, and arms the timer for the earliest deadline in it. The effects are the caller's to carry out.
    fn change<T>(
        &mut self,
        io: &mut Io,
        change: impl FnOnce(&mut DeviceCallTable, &mut Vec<DeviceCallEffect>) -> T,
    ) -> (T, Vec<DeviceCallEffect>) {
        let mut effects = Vec::new();
        let outcome = change(&mut self.table, &mut effects);
        if let Some(deadline) = self.table.deadline() {
            let tick = io.timers.tick(deadline);
            if self.armed_tick.is_none_or(|armed| tick < armed) {
                self.armed_tick = Some(io.timers.arm(deadline, TimerKind::DeviceCalls));
            }
        }
        (outcome, effects)
    }

    /// The timer that was armed for this tick has expired.
    fn expire(&mut self, tick: u64, io: &mut Io) -> Vec<DeviceCallEffect> {
        if self.armed_tick != Some(tick) {
            return Vec::new();
        }
        self.armed_tick = None;
        let now = io.now;
        self.change(io, |table, effects| table.on_timeout(now, effects)).1
    }

    fn are_connected(&self, one: Mac, other: Mac) -> bool {
        self.table.peer(one) == Some(other)
    }
}

/// The session of a MAC: of several, one that proved who it is, of those the one in a device-to-device call, else one in any
/// call, else the latest.
fn session_of(sessions: &Sessions, mac: Mac) -> Option<SessionId> {
    sessions.by_mac(mac).max_by_key(|id| {
        let core = sessions.get(*id).map(|session| &session.core);
        core.map(|core| (core.is_proven(), core.is_in_device_call(), core.presence(), core.online_since()))
    })
}

fn presence(sessions: &Sessions, mac: Mac) -> Presence {
    let session = session_of(sessions, mac).and_then(|id| sessions.get(id));
    session.map_or(Presence::Absent, |session| session.core.presence())
}

impl Gateway {
    // ----- requests of operators ----------------------------------------------------------------------------------

    pub(super) fn request_device_call(&mut self, caller: Mac, target: Mac, nickname: &str) -> RequestOutcome {
        if self.workers.other_worker_of(target).is_some() {
            return RequestOutcome::Refused(
                "两台设备由不同的工作线程服务，需设 workers 为 1 / The devices are served by different workers; set workers to 1",
            );
        }
        let now = self.io.now;
        let caller = (caller, presence(&self.sessions, caller));
        let target = (target, presence(&self.sessions, target));
        let (outcome, effects) = self
            .device_calls
            .change(&mut self.io, |table, effects| table.request(caller, target, nickname, now, effects));
        self.io.metrics.device_calls += u64::from(!effects.is_empty());
        self.apply_effects(effects);
        outcome
    }

    pub(super) fn accept_device_call(&mut self, target: Mac) -> AcceptOutcome {
        self.change_device_calls(|table, sessions, effects| {
            let presence = |mac| presence(sessions, mac);
            table.accept((target, presence(target)), presence, effects)
        })
    }

    /// False when the device takes part in no device-to-device call.
    pub(super) fn hang_up_device_call(&mut self, mac: Mac) -> bool {
        self.change_device_calls(|table, _, effects| table.hang_up(mac, effects))
    }

    fn change_device_calls<T>(
        &mut self,
        change: impl FnOnce(&mut DeviceCallTable, &Sessions, &mut Vec<DeviceCallEffect>) -> T,
    ) -> T {
        let change = |table: &mut _, effects: &mut _| change(table, &self.sessions, effects);
        let (outcome, effects) = self.device_calls.change(&mut self.io, change);
        self.apply_effects(effects);
        outcome
    }

    // ----- events of devices --------------------------------------------------------------------------------------

    /// The call of a device that called, or was connected to, another device has ended.
    pub(super) fn leave_device_call(&mut self, id: SessionId) {
        let Some(session) = self.sessions.live(id) else { return };
        session.peer = None;
        let Some(mac) = session.core.client_id().map(|client_id| client_id.mac()) else { return };
        self.change_device_calls(|table, _, effects| table.on_call_ended(mac, effects));
    }

    /// The device logs in and has proved who it is: a session with its MAC that proved nothing leaves its device-to-device call,
    /// which from now on is up to this one.
    pub(super) fn end_unproven_device_calls(&mut self, mac: Mac) {
        let is_impostor = |id: &SessionId| {
            let core = self.sessions.get(*id).map(|session| &session.core);
            core.is_some_and(|core| !core.is_proven() && core.is_in_device_call())
        };
        let impostors: Vec<_> = self.sessions.by_mac(mac).filter(is_impostor).collect();
        for id in impostors {
            self.drive(id, |core, cx| core.end_device_call(EndReason::PeerLeft, cx));
        }
    }

    /// A session of the device has ended. When it was the last one, calls to the device end.
    pub(super) fn on_device_absent(&mut self, mac: Mac) {
        if self.sessions.by_mac(mac).next().is_none() {
            self.change_device_calls(|table, _, effects| table.on_device_disconnected(mac, effects));
        }
    }

    pub(super) fn on_device_calls_timer(&mut self, tick: u64) {
        let effects = self.device_calls.expire(tick, &mut self.io);
        self.apply_effects(effects);
    }

    fn apply_effects(&mut self, effects: Vec<DeviceCallEffect>) {
        for effect in effects {
            match effect {
                DeviceCallEffect::Ring(caller) => self.drive_mac(caller, |core, cx| core.start_ringing(cx)),
                DeviceCallEffect::Wake { target, nickname } => {
                    if let Some(id) = session_of(&self.sessions, target) {
                        info!("{} is called by another device", self.sessions.log_prefix(id));
                    }
                    self.drive_mac(target, |core, cx| core.wake_for_call(&nickname, cx));
                }
                DeviceCallEffect::Accepted { caller, from } => {
                    self.drive_mac(caller, |core, cx| core.on_call_accepted(from, cx));
                }
                DeviceCallEffect::Connect(one, other) => self.bridge(one, other),
                DeviceCallEffect::End(mac, reason) => {
                    self.drive_mac(mac, |core, cx| core.end_device_call(reason, cx));
                }
            }
        }
    }

    fn bridge(&mut self, one: Mac, other: Mac) {
        let sessions = (session_of(&self.sessions, one), session_of(&self.sessions, other));
        let (Some(a), Some(b)) = sessions else { return };
        for (id, peer) in [(a, b), (b, a)] {
            // Leaving its chat server may have ended the first device's call.
            if !self.device_calls.are_connected(one, other) {
                return;
            }
            if let Some(session) = self.sessions.live(id) {
                session.peer = Some(Box::new(peer));
            }
            self.drive(id, |core, cx| core.join_device_call(cx));
        }
        self.io.metrics.device_calls_bridged += 1;
        info!("{} talks to {}", self.sessions.log_prefix(a), self.sessions.log_prefix(b));
    }

    fn drive_mac(&mut self, mac: Mac, decide: impl FnOnce(&mut Core, &mut Context<'_>)) {
        if let Some(id) = session_of(&self.sessions, mac) {
            self.drive(id, decide);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_unanswered_call_ends_when_its_timer_expires() {
        let (mut calls, mut io) = (DeviceCalls::default(), Io::for_test());
        let [caller, target] = ["02:00:00:00:00:01", "02:00:00:00:00:02"].map(|mac| mac.parse().unwrap());
        let now = io.now;
        let (_, effects) = calls.change(&mut io, |table, effects| {
            table.request((caller, Presence::InCall), (target, Presence::InCall), "n", now, effects)
        });
        assert!(!effects.is_empty());
        let deadline = calls.table.deadline().unwrap();
        let tick = io.timers.tick(deadline);
        assert!(calls.expire(tick + 1, &mut io).is_empty(), "this timer was replaced");
        io.now = deadline + Duration::from_secs(1);
        let ended = calls.expire(tick, &mut io);
        assert!(matches!(ended[..], [DeviceCallEffect::End(mac, _), ..] if mac == caller), "{ended:?}");
        assert!(calls.expire(tick, &mut io).is_empty());
    }
}
