//! Calls between devices: carries out what [`DeviceCallTable`] decides.

use std::collections::HashMap;

use log::Level;

use crate::admin::dto;
use crate::admin::response::Response;
use crate::admin::worker_answer::Answer;
use crate::logger::log_about;
use crate::net::admin::request::AdminRequest;
use crate::net::event_loop::io::{Io, TimerKind};
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::sessions::session::AudioPeer;
use crate::net::sessions::table::Sessions;
use crate::proto::identity::Mac;
use crate::session::{
    CallAnswer, CallRequest, Context, Core, DeviceCallContext, DeviceCallEffect, DeviceCallTable, EndReason,
    JoinedDevice, LocalDevices, Place, Presence, RelayId, RelayMessage, RequestOutcome,
};

/// The device-to-device calls, and the timer for those that nobody has answered yet.
#[derive(Default)]
pub(crate) struct DeviceCalls {
    table: DeviceCallTable,
    /// The sessions that talk to devices of other places, by place and call.
    sessions: HashMap<(Place, RelayId), SessionId>,
    /// The tick of the one live entry in the timer wheel.
    armed_tick: Option<u64>,
}

impl DeviceCalls {
    /// Without calls, which are counted from a random number: only who is part of one shall know it.
    pub(crate) fn new(first_number: u64) -> Self {
        Self { table: DeviceCallTable::new(first_number), ..Self::default() }
    }

    /// Changes the table, and arms the timer for the earliest deadline in it. The effects are the caller's to carry out.
    fn change<T>(
        &mut self,
        devices: &dyn LocalDevices,
        io: &mut Io,
        change: impl FnOnce(&mut DeviceCallTable, &mut DeviceCallContext<'_>) -> T,
    ) -> (T, Vec<DeviceCallEffect>) {
        let mut effects = Vec::new();
        let mut cx = DeviceCallContext { now: io.now, devices, out: &mut effects };
        let outcome = change(&mut self.table, &mut cx);
        if let Some(deadline) = self.table.deadline() {
            let tick = io.timers.tick(deadline);
            if self.armed_tick.is_none_or(|armed| tick < armed) {
                self.armed_tick = Some(io.timers.arm(deadline, TimerKind::DeviceCalls));
            }
        }
        (outcome, effects)
    }

    /// The timer that was armed for this tick has expired.
    fn expire(&mut self, tick: u64, devices: &dyn LocalDevices, io: &mut Io) -> Vec<DeviceCallEffect> {
        if self.armed_tick != Some(tick) {
            return Vec::new();
        }
        self.armed_tick = None;
        self.change(devices, io, DeviceCallTable::on_timeout).1
    }
}

impl LocalDevices for Sessions {
    fn presence(&self, mac: Mac) -> Presence {
        let session = session_of(self, mac).and_then(|id| self.get(id));
        session.map_or(Presence::Absent, |session| session.core.presence())
    }

    fn listens_in_realtime(&self, mac: Mac) -> bool {
        let session = session_of(self, mac).and_then(|id| self.get(id));
        session.is_some_and(|session| session.core.listens_in_realtime())
    }
}

/// The session of a MAC: of several, one that proved who it is, of those the one in a device-to-device call, else one in any
/// call, else the latest.
fn session_of(sessions: &Sessions, mac: Mac) -> Option<SessionId> {
    sessions.by_mac(mac).max_by_key(|id| {
        sessions
            .core(*id)
            .map(|core| (core.is_proven(), core.is_in_device_call(), core.presence(), core.online_since()))
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

impl Gateway {
    // ----- requests of operators ----------------------------------------------------------------------------------

    /// The answer follows, at once if this worker serves both devices.
    pub(super) fn request_device_call(&mut self, request: &AdminRequest, call: &dto::CallRequest) {
        let request_id = request.request_id;
        let worker = self.workers.other_worker_of(call.target);
        let place = request.target_gateway.map_or(worker.map_or(Place::Here, Place::Worker), Place::Gateway);
        if let Place::Worker(worker) = place
            && self.relay.is_lost(worker)
        {
            return self.apply_effects(vec![DeviceCallTable::refuse_lost_place(request_id)]);
        }
        let dto::CallRequest { caller, target, nickname } = call;
        let request = CallRequest { caller: *caller, target: *target, place, nickname };
        self.change_device_calls(|table, cx| table.request(request, request_id, cx));
    }

    /// As [`request_device_call`](Self::request_device_call).
    pub(super) fn accept_device_call(&mut self, request_id: u64, target: Mac) {
        self.change_device_calls(|table, cx| table.accept(target, request_id, cx));
    }

    /// False when the device takes part in no device-to-device call.
    pub(super) fn hang_up_device_call(&mut self, mac: Mac) -> bool {
        self.change_device_calls(|table, cx| table.hang_up(mac, cx))
    }

    fn change_device_calls<T>(
        &mut self,
        change: impl FnOnce(&mut DeviceCallTable, &mut DeviceCallContext<'_>) -> T,
    ) -> T {
        let (outcome, effects) = self.device_calls.change(&self.sessions, &mut self.io, change);
        self.apply_effects(effects);
        outcome
    }

    // ----- other places -------------------------------------------------------------------------------------------

    pub(super) fn on_relay_message(&mut self, from: Place, message: RelayMessage) {
        self.change_device_calls(|table, cx| table.on_message(from, message, cx));
    }

    /// The session that is in this call with a device of that place.
    pub(super) fn session_in_call_with(&self, place: Place, call: RelayId) -> Option<SessionId> {
        let id = *self.device_calls.sessions.get(&(place, call))?;
        let peer = self.sessions.get(id)?.peer()?;
        matches!(peer, AudioPeer::Elsewhere(far) if (far.place, far.call) == (place, call)).then_some(id)
    }

    /// Whether there are calls with devices of this worker, or over it: the leader passes on what is for other gateways.
    pub(super) fn has_calls_with(&self, worker: usize) -> bool {
        let table = &self.device_calls.table;
        table.has_calls_with(Place::Worker(worker))
            || worker == 0 && !self.workers.is_leader() && !table.gateways().is_empty()
    }

    pub(super) fn end_calls_with(&mut self, worker: usize) {
        self.change_device_calls(|table, cx| table.on_place_lost(Place::Worker(worker), cx));
        if worker == 0 && !self.workers.is_leader() {
            self.end_calls_with_gateways(None);
        }
    }

    /// Ends the calls with devices of this gateway, or of all others.
    pub(super) fn end_calls_with_gateways(&mut self, which: Option<u64>) {
        let mut lost = self.device_calls.table.gateways();
        lost.retain(|gateway| which.is_none_or(|which| which == *gateway));
        for gateway in lost {
            self.change_device_calls(|table, cx| table.on_place_lost(Place::Gateway(gateway), cx));
        }
    }

    // ----- events of devices --------------------------------------------------------------------------------------

    /// The call of a device that called, or was connected to, another device has ended.
    pub(super) fn leave_device_call(&mut self, id: SessionId) {
        let Some(session) = self.sessions.live(id) else { return };
        let peer = session.peer();
        session.set_peer(None);
        if let Some(AudioPeer::Elsewhere(far)) = peer {
            self.device_calls.sessions.remove(&(far.place, far.call));
        }
        let Some(mac) = session.core.client_id().map(|client_id| client_id.mac()) else { return };
        self.change_device_calls(|table, cx| table.on_call_ended(mac, cx));
    }

    /// The device logs in and has proved who it is: a session with its MAC that proved nothing leaves its device-to-device call,
    /// which from now on is up to this one.
    pub(super) fn end_unproven_device_calls(&mut self, mac: Mac) {
        let is_impostor = |id: &SessionId| {
            self.sessions.core(*id).is_some_and(|core| !core.is_proven() && core.is_in_device_call())
        };
        let impostors: Vec<_> = self.sessions.by_mac(mac).filter(is_impostor).collect();
        for id in impostors {
            self.drive(id, |core, cx| core.end_device_call(EndReason::PeerLeft, cx));
        }
    }

    /// A session of the device has ended. When it was the last one, calls to the device end.
    pub(super) fn on_device_absent(&mut self, mac: Mac) {
        if self.sessions.by_mac(mac).next().is_none() {
            self.change_device_calls(|table, cx| table.on_device_disconnected(mac, cx));
        }
    }

    pub(super) fn on_device_calls_timer(&mut self, tick: u64) {
        let effects = self.device_calls.expire(tick, &self.sessions, &mut self.io);
        self.apply_effects(effects);
    }

    fn apply_effects(&mut self, effects: Vec<DeviceCallEffect>) {
        let mut note = None;
        for effect in effects {
            match effect {
                DeviceCallEffect::Ring(caller) => {
                    self.io.metrics.device_calls += 1;
                    self.drive_mac(caller, |core, cx| core.start_ringing(cx));
                }
                DeviceCallEffect::Wake { target, nickname } => {
                    if let Some(id) = session_of(&self.sessions, target) {
                        log_about!(Level::Info, self.sessions.log_subject(id), "is called by another device");
                    }
                    self.drive_mac(target, |core, cx| core.wake_for_call(&nickname, cx));
                }
                DeviceCallEffect::Accepted { caller, from } => {
                    self.drive_mac(caller, |core, cx| core.on_call_accepted(from, cx));
                }
                DeviceCallEffect::Join(joined) => note = self.join(joined),
                DeviceCallEffect::End(mac, reason) => {
                    self.drive_mac(mac, |core, cx| core.end_device_call(reason, cx));
                }
                DeviceCallEffect::Send(place, message) => self.send_relay_message(place, message),
                DeviceCallEffect::Answer(request_id, answer) => {
                    self.answer_operator(request_id, answer, note.take());
                }
            }
        }
    }

    fn answer_operator(&mut self, request_id: u64, answer: CallAnswer, note: Option<String>) {
        let body = match answer {
            CallAnswer::Request(outcome) => {
                self.io.metrics.device_calls += u64::from(outcome == RequestOutcome::Connected);
                dto::call_request_body(outcome, note)
            }
            CallAnswer::Accept(outcome) => dto::call_accept_body(outcome, note),
        };
        let response = Response::json(200, body);
        let is_offline = matches!(answer, CallAnswer::Request(RequestOutcome::Offline));
        let answer = if is_offline { Answer::TargetNotHere(response) } else { Answer::Response(response) };
        self.send_admin_response(request_id, answer);
    }

    /// Returns why stock firmware will not play the sound of this call, unless it will.
    fn join(&mut self, joined: JoinedDevice) -> Option<String> {
        let JoinedDevice { mac, far, realtime, peer_realtime } = joined;
        // The first device's call may have ended when it left its chat server.
        let id =
            session_of(&self.sessions, mac).filter(|_| self.device_calls.table.talks_in(mac, far.call))?;
        let peer = match far.place {
            Place::Here => AudioPeer::Session(session_of(&self.sessions, far.mac)?),
            place => {
                self.device_calls.sessions.insert((place, far.call), id);
                AudioPeer::Elsewhere(far)
            }
        };
        if let Some(session) = self.sessions.live(id) {
            session.set_peer(Some(peer));
        }
        let both_realtime = realtime && peer_realtime;
        self.drive(id, |core, cx| core.join_device_call(both_realtime, cx));
        let is_caller = mac == far.call.caller;
        // At one worker, both devices have joined when the target has.
        let counts = is_caller != (far.place == Place::Here);
        self.io.metrics.device_calls_bridged += u64::from(counts);
        let silent: Vec<_> =
            [(far.call.caller, is_caller), (if is_caller { far.mac } else { mac }, !is_caller)]
                .into_iter()
                .filter(|(_, own)| if *own { !realtime } else { !peer_realtime })
                .map(|(mac, _)| mac.to_string())
                .collect();
        let note = (!silent.is_empty()).then(|| silence_note(&silent.join(", ")));
        let subject = match peer {
            AudioPeer::Session(_) if is_caller => return note,
            AudioPeer::Session(caller) => {
                let subject = self.sessions.log_subject(caller);
                log_about!(Level::Info, subject, "talks to {}", self.sessions.log_subject(id));
                subject
            }
            AudioPeer::Elsewhere(far) => {
                let subject = self.sessions.log_subject(id);
                log_about!(Level::Info, subject, "talks to {}, which {} serves", far.mac, far.place);
                subject
            }
        };
        if let Some(note) = &note {
            log_about!(Level::Info, subject, "{note}");
        }
        note
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

    struct AllInCall;

    impl LocalDevices for AllInCall {
        fn presence(&self, _: Mac) -> Presence {
            Presence::InCall
        }

        fn listens_in_realtime(&self, _: Mac) -> bool {
            false
        }
    }

    #[test]
    fn an_unanswered_call_ends_when_its_timer_expires() {
        let (mut calls, mut io) = (DeviceCalls::default(), Io::for_test());
        let [caller, target] = ["02:00:00:00:00:01", "02:00:00:00:00:02"].map(|mac| mac.parse().unwrap());
        let devices = AllInCall;
        let request = CallRequest { caller, target, place: Place::Here, nickname: "n" };
        let (_, effects) = calls.change(&devices, &mut io, |table, cx| table.request(request, 1, cx));
        assert!(!effects.is_empty());
        let deadline = calls.table.deadline().unwrap();
        let tick = io.timers.tick(deadline);
        assert!(calls.expire(tick + 1, &devices, &mut io).is_empty(), "this timer was replaced");
        io.now = deadline + Duration::from_secs(1);
        let ended = calls.expire(tick, &devices, &mut io);
        assert!(matches!(ended[..], [DeviceCallEffect::End(mac, _), ..] if mac == caller), "{ended:?}");
        assert!(calls.expire(tick, &devices, &mut io).is_empty());
    }
}
