//! Calls between devices: carries out what [`DeviceCallTable`] decides.

use log::info;

use crate::net::event_loop::io::TimerKind;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::proto::identity::Mac;
use crate::session::{AcceptOutcome, DeviceCallEffect, DeviceCallTable, Presence, RequestOutcome};

/// The device-to-device calls, and the timer of those that ring.
#[derive(Default)]
pub(crate) struct DeviceCalls {
    table: DeviceCallTable,
    /// The tick of the one live entry in the timer wheel.
    armed_tick: Option<u64>,
}

impl Gateway {
    /// The session that is meant by a MAC: of several, the one in a call with a device, or in any call, or the latest.
    fn session_of(&self, mac: Mac) -> Option<SessionId> {
        self.sessions.by_mac(mac).max_by_key(|id| {
            let core = self.sessions.get(*id).map(|session| &session.core);
            core.map(|core| (core.is_in_device_call(), core.presence(), core.online_since()))
        })
    }

    fn presence(&self, mac: Mac) -> Presence {
        let session = self.session_of(mac).and_then(|id| self.sessions.get(id));
        session.map_or(Presence::Absent, |session| session.core.presence())
    }

    // ----- what operators ask for ---------------------------------------------------------------------------------

    pub(super) fn request_device_call(&mut self, caller: Mac, target: Mac, nickname: &str) -> RequestOutcome {
        if self.workers.other_worker_of(target).is_some() {
            return RequestOutcome::Refused(
                "两台设备由不同的工作线程服务，需设 workers 为 1 / The devices are served by different workers; set workers to 1",
            );
        }
        let (calling, called) = (self.presence(caller), self.presence(target));
        let mut effects = Vec::new();
        let table = &mut self.device_calls.table;
        let outcome = table.request((caller, calling), (target, called), nickname, self.io.now, &mut effects);
        self.io.metrics.device_calls += u64::from(!effects.is_empty());
        self.apply_effects(effects);
        self.rearm_device_calls();
        outcome
    }

    pub(super) fn accept_device_call(&mut self, target: Mac) -> AcceptOutcome {
        let mut table = std::mem::take(&mut self.device_calls.table);
        let mut effects = Vec::new();
        let called = self.presence(target);
        let outcome = table.accept((target, called), |caller| self.presence(caller), &mut effects);
        self.device_calls.table = table;
        self.apply_effects(effects);
        outcome
    }

    /// False when the device takes part in no call with another one.
    pub(super) fn hang_up_device_call(&mut self, mac: Mac) -> bool {
        let mut effects = Vec::new();
        let hung_up = self.device_calls.table.hang_up(mac, &mut effects);
        self.apply_effects(effects);
        hung_up
    }

    // ----- what happens to devices --------------------------------------------------------------------------------

    /// The call of a device that called, or talked to, another one is over.
    pub(super) fn leave_device_call(&mut self, id: SessionId) {
        let Some(session) = self.sessions.live(id) else { return };
        session.peer = None;
        let Some(mac) = session.core.client_id().map(|client_id| client_id.mac()) else { return };
        let mut effects = Vec::new();
        self.device_calls.table.on_call_ended(mac, &mut effects);
        self.apply_effects(effects);
    }

    /// A connection of the device is gone; nobody need wait for it when it was the last.
    pub(super) fn on_device_absent(&mut self, mac: Mac) {
        if self.sessions.by_mac(mac).next().is_some() {
            return;
        }
        let mut effects = Vec::new();
        self.device_calls.table.on_device_disconnected(mac, &mut effects);
        self.apply_effects(effects);
    }

    pub(super) fn on_device_calls_timer(&mut self, tick: u64) {
        if self.device_calls.armed_tick != Some(tick) {
            return;
        }
        self.device_calls.armed_tick = None;
        let mut effects = Vec::new();
        self.device_calls.table.on_timeout(self.io.now, &mut effects);
        self.apply_effects(effects);
        self.rearm_device_calls();
    }

    fn rearm_device_calls(&mut self) {
        let Some(deadline) = self.device_calls.table.deadline() else { return };
        let tick = self.io.timers.tick(deadline);
        if self.device_calls.armed_tick.is_none_or(|armed| tick < armed) {
            self.device_calls.armed_tick = Some(self.io.timers.arm(deadline, TimerKind::DeviceCalls));
        }
    }

    fn apply_effects(&mut self, effects: Vec<DeviceCallEffect>) {
        for effect in effects {
            match effect {
                DeviceCallEffect::Ring(caller) => self.drive_mac(caller, |core, cx| core.start_ringing(cx)),
                DeviceCallEffect::Wake { target, nickname } => {
                    if let Some(id) = self.session_of(target) {
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
        let (Some(a), Some(b)) = (self.session_of(one), self.session_of(other)) else { return };
        for (id, peer) in [(a, b), (b, a)] {
            // Leaving the chat server may have ended the first one's call.
            if self.device_calls.table.peer(one) != Some(other) {
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

    fn drive_mac(
        &mut self,
        mac: Mac,
        decide: impl FnOnce(&mut crate::session::Core, &mut crate::session::Context<'_>),
    ) {
        if let Some(id) = self.session_of(mac) {
            self.drive(id, decide);
        }
    }
}
