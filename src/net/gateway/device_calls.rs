//! Calls between devices: carries out what [`DeviceCallTable`] decides.

use log::Level;

use crate::logger::log_about;
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

/// Why stock firmware will not play the sound of a call between devices, of which `macs` do not listen in realtime.
fn silence_note(macs: &str) -> String {
    format!(
        "官方固件听不到对方的声音：{macs} 最近一次聆听不是 realtime 模式，而官方固件只有在该模式（回声消除 AEC）下才能边听边播 / Stock \
         firmware will not play the sound of this call: {macs} did not last listen in realtime mode, the only one (echo cancellation, \
         AEC) in which it plays and listens at once"
    )
}

fn presence(sessions: &Sessions, mac: Mac) -> Presence {
    let session = session_of(sessions, mac).and_then(|id| sessions.get(id));
    session.map_or(Presence::Absent, |session| session.core.presence())
}

impl Gateway {
    // ----- requests of operators ----------------------------------------------------------------------------------

    /// Returns also what the operator should know about the call that was made.
    pub(super) fn request_device_call(
        &mut self,
        caller: Mac,
        target: Mac,
        nickname: &str,
    ) -> (RequestOutcome, Option<String>) {
        if self.workers.other_worker_of(target).is_some() {
            let refused = RequestOutcome::Refused(
                "两台设备由不同的工作线程服务，需设 workers 为 1 / The devices are served by different workers; set workers to 1",
            );
            return (refused, None);
        }
        let now = self.io.now;
        let caller = (caller, presence(&self.sessions, caller));
        let target = (target, presence(&self.sessions, target));
        let (outcome, effects) = self
            .device_calls
            .change(&mut self.io, |table, effects| table.request(caller, target, nickname, now, effects));
        self.io.metrics.device_calls += u64::from(!effects.is_empty());
        (outcome, self.apply_effects(effects))
    }

    /// As [`request_device_call`](Self::request_device_call).
    pub(super) fn accept_device_call(&mut self, target: Mac) -> (AcceptOutcome, Option<String>) {
        self.change_device_calls(|table, sessions, effects| {
            let presence = |mac| presence(sessions, mac);
            table.accept((target, presence(target)), presence, effects)
        })
    }

    /// False when the device takes part in no device-to-device call.
    pub(super) fn hang_up_device_call(&mut self, mac: Mac) -> bool {
        self.change_device_calls(|table, _, effects| table.hang_up(mac, effects)).0
    }

    fn change_device_calls<T>(
        &mut self,
        change: impl FnOnce(&mut DeviceCallTable, &Sessions, &mut Vec<DeviceCallEffect>) -> T,
    ) -> (T, Option<String>) {
        let change = |table: &mut _, effects: &mut _| change(table, &self.sessions, effects);
        let (outcome, effects) = self.device_calls.change(&mut self.io, change);
        (outcome, self.apply_effects(effects))
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

    /// Returns what the operator should know about the call that was made, if one was.
    fn apply_effects(&mut self, effects: Vec<DeviceCallEffect>) -> Option<String> {
        let mut note = None;
        for effect in effects {
            match effect {
                DeviceCallEffect::Ring(caller) => self.drive_mac(caller, |core, cx| core.start_ringing(cx)),
                DeviceCallEffect::Wake { target, nickname } => {
                    if let Some(id) = session_of(&self.sessions, target) {
                        log_about!(Level::Info, self.sessions.log_subject(id), "is called by another device");
                    }
                    self.drive_mac(target, |core, cx| core.wake_for_call(&nickname, cx));
                }
                DeviceCallEffect::Accepted { caller, from } => {
                    self.drive_mac(caller, |core, cx| core.on_call_accepted(from, cx));
                }
                DeviceCallEffect::Connect(one, other) => note = self.bridge(one, other),
                DeviceCallEffect::End(mac, reason) => {
                    self.drive_mac(mac, |core, cx| core.end_device_call(reason, cx));
                }
            }
        }
        note
    }

    /// Returns why stock firmware will not play the sound of this call, unless it will.
    fn bridge(&mut self, one: Mac, other: Mac) -> Option<String> {
        let (a, b) = (session_of(&self.sessions, one)?, session_of(&self.sessions, other)?);
        let realtime = |id| self.sessions.get(id).is_some_and(|session| session.core.listens_in_realtime());
        let silent: Vec<_> = [(a, one), (b, other)]
            .into_iter()
            .filter(|(id, _)| !realtime(*id))
            .map(|(_, mac)| mac.to_string())
            .collect();
        for (id, peer) in [(a, b), (b, a)] {
            // Leaving its chat server may have ended the first device's call.
            if !self.device_calls.are_connected(one, other) {
                return None;
            }
            if let Some(session) = self.sessions.live(id) {
                session.peer = Some(Box::new(peer));
            }
            self.drive(id, |core, cx| core.join_device_call(silent.is_empty(), cx));
        }
        self.io.metrics.device_calls_bridged += 1;
        let subject = self.sessions.log_subject(a);
        log_about!(Level::Info, subject, "talks to {}", self.sessions.log_subject(b));
        let note = (!silent.is_empty()).then(|| silence_note(&silent.join(", ")))?;
        log_about!(Level::Info, subject, "{note}");
        Some(note)
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
