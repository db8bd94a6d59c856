//! The messages between the two places of a call between devices.

use super::{
    AcceptOutcome, BUSY, CALLER_IDLE, DeviceCallContext, DeviceCallEffect, DeviceCallTable, JoinedDevice,
    LEFT, Leg, LegState, Presence, RING_TIMEOUT, TARGET_IDLE, Ticket, request_answer,
};
use crate::proto::identity::Mac;
use crate::session::action::EndReason;
use crate::session::device_call_relay::{FarEnd, Place, RelayBody, RelayMessage, RequestOutcome};

impl DeviceCallTable {
    /// For the other device of `mac`. At this place it takes effect at once, so the state of `mac` must be up to date.
    pub(super) fn send(&mut self, mac: Mac, far: FarEnd, body: RelayBody, cx: &mut DeviceCallContext<'_>) {
        let message = RelayMessage { call: far.call, from: mac, to: far.mac, body };
        match far.place {
            Place::Here => self.on_message(Place::Here, message, cx),
            place => cx.out.push(DeviceCallEffect::Send(place, message)),
        }
    }

    /// A message has arrived from a place: of each place, all messages in their order.
    pub fn on_message(&mut self, place: Place, message: RelayMessage, cx: &mut DeviceCallContext<'_>) {
        let RelayMessage { call, from, to, body } = message;
        let far = FarEnd { mac: from, place, call };
        if let RelayBody::Ring { nickname } = body {
            return self.on_ring(to, far, nickname, cx);
        }
        let Some(leg) = self.legs.get(&to).copied().filter(|leg| leg.far == far) else {
            if !matches!(body, RelayBody::NotRinging(_) | RelayBody::End(_)) {
                self.send(to, far, RelayBody::End(EndReason::PeerLeft), cx);
            }
            return;
        };
        let ticket = match leg.state {
            LegState::Asking { ticket, .. } => Some(ticket),
            _ => None,
        };
        match (body, leg.state) {
            (RelayBody::Rings, LegState::Asking { .. })
            | (RelayBody::Accept { .. }, LegState::Asking { .. } | LegState::Calling { .. })
                if cx.devices.presence(to) != Presence::InCall =>
            {
                self.legs.remove(&to);
                cx.out.extend(ticket.map(|ticket| request_answer(ticket, CALLER_IDLE)));
                self.send(to, far, RelayBody::End(EndReason::PeerLeft), cx);
            }
            (RelayBody::Rings, LegState::Asking { ticket, until }) => {
                self.set_state(to, LegState::Calling { until });
                cx.out.push(DeviceCallEffect::Ring(to));
                cx.out.push(request_answer(ticket, RequestOutcome::Ringing));
            }
            (RelayBody::NotRinging(outcome), LegState::Asking { ticket, .. }) => {
                self.legs.remove(&to);
                cx.out.push(request_answer(ticket, outcome));
            }
            (RelayBody::Accept { realtime }, LegState::Asking { .. } | LegState::Calling { .. }) => {
                self.on_accept(to, far, realtime, ticket, cx);
            }
            (RelayBody::Connected { realtime }, LegState::Accepting { ticket, .. }) => {
                self.on_connected(to, far, realtime, ticket, cx);
            }
            (RelayBody::End(reason), state) => self.on_end(to, reason, state, cx),
            // No place sends these.
            _ => {}
        }
    }

    fn on_ring(&mut self, target: Mac, far: FarEnd, nickname: Box<str>, cx: &mut DeviceCallContext<'_>) {
        let caller = far.mac;
        let presence = cx.devices.presence(target);
        if presence == Presence::Absent {
            return self.send(target, far, RelayBody::NotRinging(RequestOutcome::Offline), cx);
        }
        let called = Leg { far, state: LegState::Called { until: cx.now + RING_TIMEOUT } };
        match self.legs.get(&target).map(|leg| (leg.far.mac, leg.state)) {
            // Both call each other, and neither place knew it: the call of the lower MAC counts.
            Some((to, LegState::Asking { .. })) if to == caller && target < caller => return,
            Some((to, LegState::Asking { ticket, .. })) if to == caller => {
                self.legs.insert(target, called);
                if presence == Presence::InCall {
                    return self.start_accept(target, Ticket::Request(ticket), cx);
                }
                cx.out.push(request_answer(ticket, CALLER_IDLE));
            }
            Some(_) => return self.send(target, far, RelayBody::NotRinging(BUSY), cx),
            None => {
                self.missed.remove(&target);
                self.legs.insert(target, called);
            }
        }
        self.send(target, far, RelayBody::Rings, cx);
        cx.out.push(DeviceCallEffect::Wake { target, nickname });
    }

    /// `ticket`: of a request that has no outcome yet.
    fn on_accept(
        &mut self,
        caller: Mac,
        far: FarEnd,
        peer_realtime: bool,
        ticket: Option<u64>,
        cx: &mut DeviceCallContext<'_>,
    ) {
        self.set_state(caller, LegState::Talking);
        let realtime = cx.devices.listens_in_realtime(caller);
        cx.out.push(DeviceCallEffect::Join(JoinedDevice { mac: caller, far, realtime, peer_realtime }));
        self.send(caller, far, RelayBody::Connected { realtime }, cx);
        cx.out.push(DeviceCallEffect::Accepted { caller, from: far.mac });
        cx.out.extend(ticket.map(|ticket| request_answer(ticket, RequestOutcome::Connected)));
    }

    fn on_connected(
        &mut self,
        target: Mac,
        far: FarEnd,
        peer_realtime: bool,
        ticket: Ticket,
        cx: &mut DeviceCallContext<'_>,
    ) {
        if cx.devices.presence(target) != Presence::InCall {
            return self.leave(target, EndReason::PeerLeft, TARGET_IDLE, cx);
        }
        self.set_state(target, LegState::Talking);
        let realtime = cx.devices.listens_in_realtime(target);
        cx.out.push(DeviceCallEffect::Join(JoinedDevice { mac: target, far, realtime, peer_realtime }));
        cx.out.push(ticket.answer(AcceptOutcome::Connected(far.mac)));
    }

    fn on_end(&mut self, mac: Mac, reason: EndReason, state: LegState, cx: &mut DeviceCallContext<'_>) {
        self.legs.remove(&mac);
        match state {
            LegState::Talking | LegState::Calling { .. } => cx.out.push(DeviceCallEffect::End(mac, reason)),
            LegState::Asking { ticket, .. } => cx.out.push(request_answer(ticket, LEFT)),
            LegState::Accepting { ticket, .. } => cx.out.push(ticket.answer(AcceptOutcome::CallerLeft)),
            // Nobody accepts any more what nobody has accepted in time.
            LegState::Called { .. } if reason == EndReason::Unanswered => {}
            LegState::Called { until } => drop(self.missed.insert(mac, until)),
        }
    }

    fn set_state(&mut self, mac: Mac, state: LegState) {
        if let Some(leg) = self.legs.get_mut(&mac) {
            leg.state = state;
        }
    }
}
