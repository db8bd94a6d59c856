//! Calls between devices: which device is calling or connected to which. It only knows MACs, places and times, and returns effects.
//!
//! ```text
//! request(a, b)                 ->  a is calling b: a's chat server is closed and a gets silence, b is woken
//! accept(b), or request(b, a)   ->  a and b are connected: b's chat server is closed too
//! one of them leaves, or b does not answer in time  ->  the other one gets goodbye
//! ```
//!
//! Each place knows only its own devices, and tells the place of the other device by messages. When that is the same place, they
//! take effect at once. Otherwise they arrive later, in their order:
//!
//! ```text
//! place of a                 place of b
//! Asking    -- Ring ------>  Called        or NotRinging
//! Calling   <-- Rings -----
//!           <-- Accept ----  Accepting
//! Talking   -- Connected ->  Talking
//!           -- End --------  either side, at any time
//! ```
//!
//! A message about a call that its place does not know (any more) is answered with `End`, so no side waits for one that left.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::action::EndReason;
use super::device_call_relay::{FarEnd, Place, RelayBody, RelayId, RelayMessage, RequestOutcome};
use crate::proto::identity::Mac;

pub use bytes::{decode_audio, encode_audio};

/// How long a called device has to answer.
const RING_TIMEOUT: Duration = Duration::from_secs(60);
/// How much later the place of the called device gives up by itself.
const CALLED_MARGIN: Duration = Duration::from_secs(5);

/// Whether a device can call, or be called by, another device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    /// Not connected.
    Absent,
    /// Connected, not in a call.
    Idle,
    /// In a call that can become one with another device.
    InCall,
}

/// The devices of this place.
pub trait LocalDevices {
    /// Whether the device can take part.
    fn presence(&self, mac: Mac) -> Presence;
    /// Whether it last listened in realtime mode.
    fn listens_in_realtime(&self, mac: Mac) -> bool;
}

/// What a call of the table works with.
pub struct DeviceCallContext<'a> {
    /// The time.
    pub now: Instant,
    /// The devices of this place.
    pub devices: &'a dyn LocalDevices,
    /// What the shell must do, in this order.
    pub out: &'a mut Vec<DeviceCallEffect>,
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceCallEffect {
    /// Close the device's chat server and send it silence until it is answered.
    Ring(Mac),
    /// Ask the device to wake up and announce the caller to its user.
    Wake {
        /// The called device.
        target: Mac,
        /// The name that the caller gave.
        nickname: Box<str>,
    },
    /// Tell the device that its call was accepted.
    Accepted {
        /// The caller.
        caller: Mac,
        /// The device that accepted.
        from: Mac,
    },
    /// Close the device's chat server, and pass audio both ways.
    Join(JoinedDevice),
    /// End the device's call with the other device, for this reason.
    End(Mac, EndReason),
    /// Send a message to another place.
    Send(Place, RelayMessage),
    /// A request or an accept has its outcome. There is exactly one for each.
    Answer(u64, CallAnswer),
}

/// A device that is connected to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinedDevice {
    /// The device, which this place serves.
    pub mac: Mac,
    /// The other device.
    pub far: FarEnd,
    /// Whether the device last listened in realtime mode.
    pub realtime: bool,
    /// Whether the other one did.
    pub peer_realtime: bool,
}

/// The outcome of what an operator asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallAnswer {
    /// Of [`DeviceCallTable::request`].
    Request(RequestOutcome),
    /// Of [`DeviceCallTable::accept`].
    Accept(AcceptOutcome),
}

/// The result of an accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptOutcome {
    /// The device is connected to this caller.
    Connected(Mac),
    /// No device is calling this one.
    NoIncomingCall,
    /// The caller left before its time to wait was over.
    CallerLeft,
    /// Not possible, for this reason.
    Refused(&'static str),
}

const TO_ITSELF: RequestOutcome = RequestOutcome::Refused("不能呼叫自己 / A device cannot call itself");
const CALLER_IDLE: RequestOutcome = RequestOutcome::Refused("主叫方不在会话中 / The caller is in no call");
const CALLS_ANOTHER: RequestOutcome =
    RequestOutcome::Refused("正在呼叫其他设备 / The caller is calling another device");
const TALKS: RequestOutcome = RequestOutcome::Refused("已在通话中 / The caller is talking to a device");
const IS_CALLED: RequestOutcome =
    RequestOutcome::Refused("有其他设备来电 / The caller is being called by another device");
const BUSY: RequestOutcome = RequestOutcome::Refused("对方正忙 / The device is busy with another one");
const LEFT: RequestOutcome = RequestOutcome::Refused("一方已离开 / One of the devices has left");
const PLACE_LOST: RequestOutcome = RequestOutcome::Refused(
    "对方设备所在的工作线程或网关没有响应 / The worker or gateway that serves the device does not respond",
);
const TARGET_IDLE: AcceptOutcome = AcceptOutcome::Refused("设备不在会话中 / The device is in no call");
const ACCEPTING: AcceptOutcome = AcceptOutcome::Refused("正在接通 / The call is being connected");

/// What a device calls another one with.
#[derive(Clone, Copy, Debug)]
pub struct CallRequest<'a> {
    /// The caller, which this place serves.
    pub caller: Mac,
    /// The device to be called.
    pub target: Mac,
    /// The place that serves it.
    pub place: Place,
    /// The name of the caller, for the user of the target.
    pub nickname: &'a str,
}

/// Every call between devices of which this place serves at least one.
#[derive(Clone, Debug, Default)]
pub struct DeviceCallTable {
    /// By device of this place.
    legs: HashMap<Mac, Leg>,
    /// The targets whose caller has left, and until when it would have waited.
    missed: HashMap<Mac, Instant>,
    /// The number of the last call that has begun here.
    calls: u64,
}

/// One device's part in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Leg {
    far: FarEnd,
    state: LegState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum LegState {
    /// It calls, and the other place has not said whether the other device rings.
    Asking {
        ticket: u64,
        until: Instant,
    },
    /// It calls, and the other device rings.
    Calling {
        until: Instant,
    },
    /// It is called.
    Called {
        until: Instant,
    },
    /// It has accepted, and the caller's place has not said whether the caller is still there.
    Accepting {
        ticket: Ticket,
        until: Instant,
    },
    Talking,
}

/// Who waits for the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Ticket {
    /// A request, for a device that is calling this one.
    Request(u64),
    Accept(u64),
}

impl Ticket {
    /// The answer when an accept has this outcome.
    fn answer(self, outcome: AcceptOutcome) -> DeviceCallEffect {
        match self {
            Self::Accept(ticket) => DeviceCallEffect::Answer(ticket, CallAnswer::Accept(outcome)),
            Self::Request(ticket) => request_answer(
                ticket,
                match outcome {
                    AcceptOutcome::Connected(_) => RequestOutcome::Connected,
                    AcceptOutcome::Refused(why) => RequestOutcome::Refused(why),
                    AcceptOutcome::NoIncomingCall | AcceptOutcome::CallerLeft => LEFT,
                },
            ),
        }
    }
}

fn request_answer(ticket: u64, outcome: RequestOutcome) -> DeviceCallEffect {
    DeviceCallEffect::Answer(ticket, CallAnswer::Request(outcome))
}

impl DeviceCallTable {
    /// Without a call. The calls that begin here are counted from `first_number`.
    pub fn new(first_number: u64) -> Self {
        Self { calls: first_number, ..Self::default() }
    }

    // ----- operators ----------------------------------------------------------------------------------------------

    /// A device calls another one. The outcome follows as [`DeviceCallEffect::Answer`] with this ticket, at once if this place
    /// serves both.
    pub fn request(&mut self, request: CallRequest<'_>, ticket: u64, cx: &mut DeviceCallContext<'_>) {
        match self.check_request(request, cx) {
            Ok(true) => self.start_accept(request.caller, Ticket::Request(ticket), cx),
            Ok(false) => self.ring(request, ticket, cx),
            Err(outcome) => cx.out.push(request_answer(ticket, outcome)),
        }
    }

    /// True: the target is calling the caller.
    fn check_request(
        &self,
        request: CallRequest<'_>,
        cx: &DeviceCallContext<'_>,
    ) -> Result<bool, RequestOutcome> {
        let CallRequest { caller, target, place, .. } = request;
        if caller == target {
            return Err(TO_ITSELF);
        }
        if cx.devices.presence(caller) != Presence::InCall {
            return Err(CALLER_IDLE);
        }
        if place == Place::Here && cx.devices.presence(target) == Presence::Absent {
            return Err(RequestOutcome::Offline);
        }
        let Some(leg) = self.legs.get(&caller) else { return Ok(false) };
        match leg.state {
            LegState::Asking { .. } | LegState::Calling { .. } if leg.far.mac == target => {
                Err(RequestOutcome::Ringing)
            }
            LegState::Asking { .. } | LegState::Calling { .. } => Err(CALLS_ANOTHER),
            LegState::Talking => Err(TALKS),
            LegState::Called { .. } if leg.far.mac == target => Ok(true),
            LegState::Called { .. } | LegState::Accepting { .. } => Err(IS_CALLED),
        }
    }

    fn ring(&mut self, request: CallRequest<'_>, ticket: u64, cx: &mut DeviceCallContext<'_>) {
        let CallRequest { caller, target, place, nickname } = request;
        self.calls = self.calls.wrapping_add(1);
        let call = RelayId { caller, number: self.calls };
        let far = FarEnd { mac: target, place, call };
        let state = LegState::Asking { ticket, until: cx.now + RING_TIMEOUT };
        self.legs.insert(caller, Leg { far, state });
        self.send(caller, far, RelayBody::Ring { nickname: nickname.into() }, cx);
    }

    /// The user of `target` accepts the incoming call. The outcome follows as [`DeviceCallEffect::Answer`] with this ticket, at
    /// once if this place serves both.
    pub fn accept(&mut self, target: Mac, ticket: u64, cx: &mut DeviceCallContext<'_>) {
        self.start_accept(target, Ticket::Accept(ticket), cx);
    }

    fn start_accept(&mut self, target: Mac, ticket: Ticket, cx: &mut DeviceCallContext<'_>) {
        let Some(leg) = self.legs.get_mut(&target) else {
            let missed = self.missed.remove(&target).is_some();
            let outcome = if missed { AcceptOutcome::CallerLeft } else { AcceptOutcome::NoIncomingCall };
            return cx.out.push(ticket.answer(outcome));
        };
        let until = match leg.state {
            LegState::Called { until } => until,
            LegState::Accepting { .. } => return cx.out.push(ticket.answer(ACCEPTING)),
            _ => return cx.out.push(ticket.answer(AcceptOutcome::NoIncomingCall)),
        };
        if cx.devices.presence(target) != Presence::InCall {
            return cx.out.push(ticket.answer(TARGET_IDLE));
        }
        leg.state = LegState::Accepting { ticket, until };
        let far = leg.far;
        let realtime = cx.devices.listens_in_realtime(target);
        self.send(target, far, RelayBody::Accept { realtime }, cx);
    }

    /// An operator ends the device's calls with other devices. False if there are none.
    pub fn hang_up(&mut self, mac: Mac, cx: &mut DeviceCallContext<'_>) -> bool {
        let Some(leg) = self.legs.get(&mac) else { return false };
        match leg.state {
            LegState::Called { .. } | LegState::Accepting { .. } => {
                self.leave(mac, EndReason::Operator, AcceptOutcome::NoIncomingCall, cx);
            }
            _ => {
                self.on_call_ended(mac, cx);
                cx.out.push(DeviceCallEffect::End(mac, EndReason::Operator));
            }
        }
        true
    }

    // ----- devices ------------------------------------------------------------------------------------------------

    /// The device's call has ended, for any reason. Has no effect if the device neither calls nor talks to another one: one that is
    /// called may accept in its next call.
    pub fn on_call_ended(&mut self, mac: Mac, cx: &mut DeviceCallContext<'_>) {
        let Some(leg) = self.legs.get(&mac) else { return };
        if !matches!(leg.state, LegState::Called { .. } | LegState::Accepting { .. }) {
            self.leave(mac, EndReason::PeerLeft, AcceptOutcome::CallerLeft, cx);
        }
    }

    /// The device has disconnected: a caller of it need not wait any longer.
    pub fn on_device_disconnected(&mut self, mac: Mac, cx: &mut DeviceCallContext<'_>) {
        self.missed.remove(&mac);
        self.leave(mac, EndReason::PeerLeft, TARGET_IDLE, cx);
    }

    /// The device leaves its call. Its place tells the other one this reason.
    fn leave(&mut self, mac: Mac, reason: EndReason, outcome: AcceptOutcome, cx: &mut DeviceCallContext<'_>) {
        let Some(leg) = self.legs.remove(&mac) else { return };
        match leg.state {
            LegState::Asking { ticket, .. } => cx.out.push(request_answer(ticket, LEFT)),
            LegState::Accepting { ticket, .. } => cx.out.push(ticket.answer(outcome)),
            LegState::Calling { .. } | LegState::Called { .. } | LegState::Talking => {}
        }
        self.send(mac, leg.far, RelayBody::End(reason), cx);
    }

    // ----- times and places ---------------------------------------------------------------------------------------

    /// Ends the calls that were not answered in time.
    pub fn on_timeout(&mut self, cx: &mut DeviceCallContext<'_>) {
        let now = cx.now;
        let due = |(mac, leg): (&Mac, &Leg)| leg.deadline().is_some_and(|at| at <= now).then_some(*mac);
        let due: Vec<Mac> = self.legs.iter().filter_map(due).collect();
        for mac in due {
            let Some(leg) = self.legs.get(&mac) else { continue };
            if matches!(leg.state, LegState::Asking { .. } | LegState::Calling { .. }) {
                cx.out.push(DeviceCallEffect::End(mac, EndReason::Unanswered));
                self.leave(mac, EndReason::Unanswered, AcceptOutcome::CallerLeft, cx);
            } else {
                self.leave(mac, EndReason::PeerLeft, AcceptOutcome::CallerLeft, cx);
            }
        }
        self.missed.retain(|_, until| *until > now);
    }

    /// When to call [`DeviceCallTable::on_timeout`] next.
    pub fn deadline(&self) -> Option<Instant> {
        let legs = self.legs.values().filter_map(Leg::deadline);
        legs.chain(self.missed.values().copied()).min()
    }

    /// A place has ended or does not respond: the calls with its devices end. It is told all the same, since it may respond later.
    pub fn on_place_lost(&mut self, place: Place, cx: &mut DeviceCallContext<'_>) {
        let with_it: Vec<Mac> =
            self.legs.iter().filter(|(_, leg)| leg.far.place == place).map(|(mac, _)| *mac).collect();
        for mac in with_it {
            let Some(leg) = self.legs.get(&mac) else { continue };
            match leg.state {
                LegState::Asking { ticket, .. } => {
                    let far = leg.far;
                    self.legs.remove(&mac);
                    cx.out.push(request_answer(ticket, PLACE_LOST));
                    self.send(mac, far, RelayBody::End(EndReason::PeerLost), cx);
                    continue;
                }
                LegState::Called { until } => drop(self.missed.insert(mac, until)),
                LegState::Accepting { .. } => {}
                LegState::Calling { .. } | LegState::Talking => {
                    cx.out.push(DeviceCallEffect::End(mac, EndReason::PeerLost));
                }
            }
            self.leave(mac, EndReason::PeerLost, AcceptOutcome::CallerLeft, cx);
        }
    }

    /// The outcome of a request of a caller that is connected nowhere.
    pub fn absent_caller(caller: Mac, target: Mac) -> RequestOutcome {
        if caller == target { TO_ITSELF } else { CALLER_IDLE }
    }

    /// The outcome of a request for a device of a place that does not respond.
    pub fn refuse_lost_place(ticket: u64) -> DeviceCallEffect {
        request_answer(ticket, PLACE_LOST)
    }

    /// The gateways with whose devices devices of this place call or talk.
    pub fn gateways(&self) -> BTreeSet<u64> {
        let number = |leg: &Leg| match leg.far.place {
            Place::Gateway(number) => Some(number),
            Place::Here | Place::Worker(_) => None,
        };
        self.legs.values().filter_map(number).collect()
    }

    /// Whether a device of this place calls, is called by or talks to one of that place.
    pub fn has_calls_with(&self, place: Place) -> bool {
        self.legs.values().any(|leg| leg.far.place == place)
    }

    /// The device that this one is connected to.
    pub fn peer(&self, mac: Mac) -> Option<Mac> {
        self.legs.get(&mac).filter(|leg| leg.state == LegState::Talking).map(|leg| leg.far.mac)
    }

    /// Whether the device is connected to another one in this call.
    pub fn talks_in(&self, mac: Mac, call: RelayId) -> bool {
        self.legs.get(&mac).is_some_and(|leg| leg.state == LegState::Talking && leg.far.call == call)
    }
}

impl Leg {
    /// When it ends by itself. A call between devices of one place is ended by the caller's part.
    fn deadline(&self) -> Option<Instant> {
        match self.state {
            LegState::Asking { until, .. } | LegState::Calling { until } => Some(until),
            LegState::Called { until } | LegState::Accepting { until, .. }
                if self.far.place != Place::Here =>
            {
                Some(until + CALLED_MARGIN)
            }
            LegState::Called { .. } | LegState::Accepting { .. } | LegState::Talking => None,
        }
    }
}

mod bytes;
mod messages;
#[cfg(test)]
mod tests;
