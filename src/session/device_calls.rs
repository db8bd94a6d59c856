//! Device-to-device calls: who rings whom, who talks to whom. Pure: it knows MACs and times, and answers with effects.
//!
//! ```text
//! request(a, b)  ->  a rings b: a leaves its chat server and hears silence, b is woken
//! accept(b), or request(b, a)  ->  a and b are bridged: b leaves its chat server too
//! one of them leaves, or nobody answers in time  ->  the other hears goodbye
//! ```

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::EndReason;
use crate::proto::identity::Mac;

/// How long a caller waits for an answer.
const RING_TIMEOUT: Duration = Duration::from_secs(60);

/// What a device is doing, as far as calls between devices care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    /// Not connected.
    Absent,
    /// Connected, not in a call.
    Idle,
    /// In a call that can be bridged.
    InCall,
}

/// What must be done for a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceCallEffect {
    /// It leaves its chat server and hears silence until it is answered.
    Ring(Mac),
    /// It is asked to wake up and tell its user who calls.
    Wake {
        /// The device that is called.
        target: Mac,
        /// Who calls, in the caller's words.
        nickname: String,
    },
    /// It is told that its call was accepted.
    Accepted {
        /// The caller.
        caller: Mac,
        /// Who accepted.
        from: Mac,
    },
    /// Both leave their chat servers and hear each other.
    Connect(Mac, Mac),
    /// Its call with the other device is over, and why.
    End(Mac, EndReason),
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// Both had called each other: they talk.
    Connected,
    /// The other one rings.
    Ringing,
    /// The other one is not connected.
    Offline,
    /// It cannot be, and why.
    Refused(&'static str),
}

/// The answer to an accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptOutcome {
    /// They talk.
    Connected(Mac),
    /// Nobody calls this device.
    NoIncomingCall,
    /// Whoever called has left, and would still wait.
    CallerLeft,
    /// It cannot be, and why.
    Refused(&'static str),
}

/// Every call between devices.
#[derive(Debug, Default)]
pub struct DeviceCallTable {
    /// Callers that wait.
    ringing: HashMap<Mac, Ringing>,
    /// Both ways.
    connected: HashMap<Mac, Mac>,
    /// Targets whose caller has left, until when it would have waited.
    missed: HashMap<Mac, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Ringing {
    target: Mac,
    deadline: Instant,
}

impl DeviceCallTable {
    /// `caller` wants to talk to `target`.
    pub fn request(
        &mut self,
        (caller, calling): (Mac, Presence),
        (target, called): (Mac, Presence),
        nickname: &str,
        now: Instant,
        out: &mut Vec<DeviceCallEffect>,
    ) -> RequestOutcome {
        if caller == target {
            return RequestOutcome::Refused("不能呼叫自己 / A device cannot call itself");
        }
        if calling != Presence::InCall {
            return RequestOutcome::Refused("主叫方不在会话中 / The caller is in no call");
        }
        if called == Presence::Absent {
            return RequestOutcome::Offline;
        }
        match self.ringing.get(&caller) {
            Some(ringing) if ringing.target == target => return RequestOutcome::Ringing,
            Some(_) => {
                return RequestOutcome::Refused("正在呼叫其他设备 / The caller is calling another device");
            }
            None => {}
        }
        if self.connected.contains_key(&caller) {
            return RequestOutcome::Refused("已在通话中 / The caller is talking to a device");
        }
        if self.ringing.get(&target).is_some_and(|ringing| ringing.target == caller) {
            self.ringing.remove(&target);
            self.connect(target, caller, out);
            return RequestOutcome::Connected;
        }
        if self.caller_of(caller).is_some() {
            return RequestOutcome::Refused("有其他设备来电 / The caller is being called by another device");
        }
        if self.is_calling_or_connected(target) || self.caller_of(target).is_some() {
            return RequestOutcome::Refused("对方正忙 / The device is busy with another one");
        }
        self.missed.remove(&target);
        self.ringing.insert(caller, Ringing { target, deadline: now + RING_TIMEOUT });
        out.push(DeviceCallEffect::Ring(caller));
        out.push(DeviceCallEffect::Wake { target, nickname: nickname.to_owned() });
        RequestOutcome::Ringing
    }

    /// The user of `target` wants to talk to whoever calls.
    pub fn accept(
        &mut self,
        (target, called): (Mac, Presence),
        presence: impl Fn(Mac) -> Presence,
        out: &mut Vec<DeviceCallEffect>,
    ) -> AcceptOutcome {
        let Some(caller) = self.caller_of(target) else {
            return match self.missed.remove(&target) {
                Some(_) => AcceptOutcome::CallerLeft,
                None => AcceptOutcome::NoIncomingCall,
            };
        };
        if presence(caller) != Presence::InCall {
            self.ringing.remove(&caller);
            return AcceptOutcome::CallerLeft;
        }
        if called != Presence::InCall {
            return AcceptOutcome::Refused("设备不在会话中 / The device is in no call");
        }
        self.ringing.remove(&caller);
        self.connect(caller, target, out);
        AcceptOutcome::Connected(caller)
    }

    fn connect(&mut self, caller: Mac, target: Mac, out: &mut Vec<DeviceCallEffect>) {
        self.connected.insert(caller, target);
        self.connected.insert(target, caller);
        out.push(DeviceCallEffect::Connect(caller, target));
        out.push(DeviceCallEffect::Accepted { caller, from: target });
    }

    /// The device's call is over, for whatever reason: so is its part in all of this. Harmless for any device.
    pub fn on_call_ended(&mut self, mac: Mac, out: &mut Vec<DeviceCallEffect>) {
        if let Some(Ringing { target, deadline: until }) = self.ringing.remove(&mac) {
            self.missed.insert(target, until);
        }
        if let Some(peer) = self.connected.remove(&mac) {
            self.connected.remove(&peer);
            out.push(DeviceCallEffect::End(peer, EndReason::PeerLeft));
        }
    }

    /// The device is not connected any more: who called it need not wait.
    pub fn on_device_disconnected(&mut self, mac: Mac, out: &mut Vec<DeviceCallEffect>) {
        self.on_call_ended(mac, out);
        self.missed.remove(&mac);
        if let Some(caller) = self.caller_of(mac) {
            self.ringing.remove(&caller);
            out.push(DeviceCallEffect::End(caller, EndReason::PeerLeft));
        }
    }

    /// An operator hangs up. False when the device takes part in nothing.
    pub fn hang_up(&mut self, mac: Mac, out: &mut Vec<DeviceCallEffect>) -> bool {
        let before = out.len();
        if self.is_calling_or_connected(mac) {
            self.on_call_ended(mac, out);
            out.push(DeviceCallEffect::End(mac, EndReason::Operator));
        }
        if let Some(caller) = self.caller_of(mac) {
            self.ringing.remove(&caller);
            out.push(DeviceCallEffect::End(caller, EndReason::Operator));
        }
        out.len() > before
    }

    /// Ends what nobody answered.
    pub fn on_timeout(&mut self, now: Instant, out: &mut Vec<DeviceCallEffect>) {
        self.ringing.retain(|caller, ringing| {
            let waits = ringing.deadline > now;
            if !waits {
                out.push(DeviceCallEffect::End(*caller, EndReason::Unanswered));
            }
            waits
        });
        self.missed.retain(|_, until| *until > now);
    }

    /// When to call [`DeviceCallTable::on_timeout`] next.
    pub fn deadline(&self) -> Option<Instant> {
        let ringing = self.ringing.values().map(|ringing| ringing.deadline);
        ringing.chain(self.missed.values().copied()).min()
    }

    /// Whether the device calls or talks to another one.
    fn is_calling_or_connected(&self, mac: Mac) -> bool {
        self.ringing.contains_key(&mac) || self.connected.contains_key(&mac)
    }

    /// Whom the device talks to.
    pub fn peer(&self, mac: Mac) -> Option<Mac> {
        self.connected.get(&mac).copied()
    }

    /// Who calls the device.
    fn caller_of(&self, target: Mac) -> Option<Mac> {
        self.ringing.iter().find(|(_, ringing)| ringing.target == target).map(|(caller, _)| *caller)
    }
}

#[cfg(test)]
mod tests;
