//! Calls between devices: which device is calling or connected to which. It only knows MACs and times, and returns effects.
//!
//! ```text
//! request(a, b)                 ->  a is calling b: a's chat server is closed and a gets silence, b is woken
//! accept(b), or request(b, a)   ->  a and b are connected: b's chat server is closed too
//! one of them leaves, or b does not answer in time  ->  the other one gets goodbye
//! ```

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::EndReason;
use crate::proto::identity::Mac;

/// How long a called device has to answer.
const RING_TIMEOUT: Duration = Duration::from_secs(60);

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

/// What the shell must do with a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceCallEffect {
    /// Close its chat server and send it silence until it is answered.
    Ring(Mac),
    /// Ask it to wake up and announce the caller to its user.
    Wake {
        /// The called device.
        target: Mac,
        /// The name that the caller gave.
        nickname: String,
    },
    /// Tell it that its call was accepted.
    Accepted {
        /// The caller.
        caller: Mac,
        /// The device that accepted.
        from: Mac,
    },
    /// Close the chat servers of both, and pass the audio of each to the other.
    Connect(Mac, Mac),
    /// End its call with the other device, for this reason.
    End(Mac, EndReason),
}

/// The result of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// The target was calling the caller: they are connected.
    Connected,
    /// The target is being called.
    Ringing,
    /// The target is not connected to the gateway.
    Offline,
    /// Not possible, for this reason.
    Refused(&'static str),
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

/// Every call between devices.
#[derive(Debug, Default)]
pub struct DeviceCallTable {
    /// By caller.
    ringing: HashMap<Mac, Ringing>,
    /// The other device of each connected device.
    connected: HashMap<Mac, Mac>,
    /// The targets whose caller has left, and until when it would have waited.
    missed: HashMap<Mac, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Ringing {
    target: Mac,
    deadline: Instant,
}

impl DeviceCallTable {
    /// `caller` calls `target`.
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

    /// The user of `target` accepts the incoming call.
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

    /// The device's call has ended, for any reason. Has no effect if the device is in no call with another one.
    pub fn on_call_ended(&mut self, mac: Mac, out: &mut Vec<DeviceCallEffect>) {
        if let Some(Ringing { target, deadline: until }) = self.ringing.remove(&mac) {
            self.missed.insert(target, until);
        }
        if let Some(peer) = self.connected.remove(&mac) {
            self.connected.remove(&peer);
            out.push(DeviceCallEffect::End(peer, EndReason::PeerLeft));
        }
    }

    /// The device has disconnected: a caller of it need not wait any longer.
    pub fn on_device_disconnected(&mut self, mac: Mac, out: &mut Vec<DeviceCallEffect>) {
        self.on_call_ended(mac, out);
        self.missed.remove(&mac);
        if let Some(caller) = self.caller_of(mac) {
            self.ringing.remove(&caller);
            out.push(DeviceCallEffect::End(caller, EndReason::PeerLeft));
        }
    }

    /// An operator ends the device's calls with other devices. False if there are none.
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

    /// Ends the calls that were not answered in time.
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

    /// Whether the device is calling or connected to another one.
    fn is_calling_or_connected(&self, mac: Mac) -> bool {
        self.ringing.contains_key(&mac) || self.connected.contains_key(&mac)
    }

    /// The device that this one is connected to.
    pub fn peer(&self, mac: Mac) -> Option<Mac> {
        self.connected.get(&mac).copied()
    }

    /// The device that is calling this one.
    fn caller_of(&self, target: Mac) -> Option<Mac> {
        self.ringing.iter().find(|(_, ringing)| ringing.target == target).map(|(caller, _)| *caller)
    }
}

#[cfg(test)]
mod tests;
