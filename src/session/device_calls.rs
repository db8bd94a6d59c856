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
const RING: Duration = Duration::from_secs(60);

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
pub enum Effect {
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
    Bridge(Mac, Mac),
    /// Its call with the other device is over, and why.
    End(Mac, EndReason),
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requested {
    /// Both had called each other: they talk.
    Bridged,
    /// The other one rings.
    Pending,
    /// The other one is not connected.
    Offline,
    /// It cannot be, and why.
    Refused(&'static str),
}

/// The answer to an accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// They talk.
    Bridged(Mac),
    /// Nobody calls this device.
    NoPending,
    /// Whoever called has left, and would still wait.
    CallerGone,
    /// It cannot be, and why.
    Refused(&'static str),
}

/// Every call between devices.
#[derive(Debug, Default)]
pub struct Bridges {
    /// Callers that wait.
    ringing: HashMap<Mac, Ringing>,
    /// Both ways.
    talking: HashMap<Mac, Mac>,
    /// Targets whose caller has left, until when it would have waited.
    missed: HashMap<Mac, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Ringing {
    target: Mac,
    until: Instant,
}

impl Bridges {
    /// `caller` wants to talk to `target`.
    pub fn request(
        &mut self,
        (caller, calling): (Mac, Presence),
        (target, called): (Mac, Presence),
        nickname: &str,
        now: Instant,
        out: &mut Vec<Effect>,
    ) -> Requested {
        if caller == target {
            return Requested::Refused("不能呼叫自己 / A device cannot call itself");
        }
        if calling != Presence::InCall {
            return Requested::Refused("主叫方不在会话中 / The caller is in no call");
        }
        if called == Presence::Absent {
            return Requested::Offline;
        }
        match self.ringing.get(&caller) {
            Some(ringing) if ringing.target == target => return Requested::Pending,
            Some(_) => return Requested::Refused("正在呼叫其他设备 / The caller is calling another device"),
            None => {}
        }
        if self.talking.contains_key(&caller) {
            return Requested::Refused("已在通话中 / The caller is talking to a device");
        }
        if self.ringing.get(&target).is_some_and(|ringing| ringing.target == caller) {
            self.ringing.remove(&target);
            self.connect(target, caller, out);
            return Requested::Bridged;
        }
        if self.ringing_for(caller).is_some() {
            return Requested::Refused("有其他设备来电 / The caller is being called by another device");
        }
        if self.takes_part(target) || self.ringing_for(target).is_some() {
            return Requested::Refused("对方正忙 / The device is busy with another one");
        }
        self.missed.remove(&target);
        self.ringing.insert(caller, Ringing { target, until: now + RING });
        out.push(Effect::Ring(caller));
        out.push(Effect::Wake { target, nickname: nickname.to_owned() });
        Requested::Pending
    }

    /// The user of `target` wants to talk to whoever calls.
    pub fn accept(
        &mut self,
        (target, called): (Mac, Presence),
        presence: impl Fn(Mac) -> Presence,
        out: &mut Vec<Effect>,
    ) -> Accepted {
        let Some(caller) = self.ringing_for(target) else {
            return match self.missed.remove(&target) {
                Some(_) => Accepted::CallerGone,
                None => Accepted::NoPending,
            };
        };
        if presence(caller) != Presence::InCall {
            self.ringing.remove(&caller);
            return Accepted::CallerGone;
        }
        if called != Presence::InCall {
            return Accepted::Refused("设备不在会话中 / The device is in no call");
        }
        self.ringing.remove(&caller);
        self.connect(caller, target, out);
        Accepted::Bridged(caller)
    }

    fn connect(&mut self, caller: Mac, target: Mac, out: &mut Vec<Effect>) {
        self.talking.insert(caller, target);
        self.talking.insert(target, caller);
        out.push(Effect::Bridge(caller, target));
        out.push(Effect::Accepted { caller, from: target });
    }

    /// The device's call is over, for whatever reason: so is its part in all of this. Harmless for any device.
    pub fn left(&mut self, mac: Mac, out: &mut Vec<Effect>) {
        if let Some(Ringing { target, until }) = self.ringing.remove(&mac) {
            self.missed.insert(target, until);
        }
        if let Some(peer) = self.talking.remove(&mac) {
            self.talking.remove(&peer);
            out.push(Effect::End(peer, EndReason::PeerLeft));
        }
    }

    /// The device is not connected any more: who called it need not wait.
    pub fn absent(&mut self, mac: Mac, out: &mut Vec<Effect>) {
        self.left(mac, out);
        self.missed.remove(&mac);
        if let Some(caller) = self.ringing_for(mac) {
            self.ringing.remove(&caller);
            out.push(Effect::End(caller, EndReason::PeerLeft));
        }
    }

    /// An operator hangs up. False when the device takes part in nothing.
    pub fn hang_up(&mut self, mac: Mac, out: &mut Vec<Effect>) -> bool {
        let before = out.len();
        if self.takes_part(mac) {
            self.left(mac, out);
            out.push(Effect::End(mac, EndReason::Operator));
        }
        if let Some(caller) = self.ringing_for(mac) {
            self.ringing.remove(&caller);
            out.push(Effect::End(caller, EndReason::Operator));
        }
        out.len() > before
    }

    /// Ends what nobody answered.
    pub fn timeout(&mut self, now: Instant, out: &mut Vec<Effect>) {
        self.ringing.retain(|caller, ringing| {
            let waits = ringing.until > now;
            if !waits {
                out.push(Effect::End(*caller, EndReason::Unanswered));
            }
            waits
        });
        self.missed.retain(|_, until| *until > now);
    }

    /// When to call [`Bridges::timeout`] next.
    pub fn deadline(&self) -> Option<Instant> {
        let ringing = self.ringing.values().map(|ringing| ringing.until);
        ringing.chain(self.missed.values().copied()).min()
    }

    /// Whether the device calls or talks to another one.
    fn takes_part(&self, mac: Mac) -> bool {
        self.ringing.contains_key(&mac) || self.talking.contains_key(&mac)
    }

    /// Whom the device talks to.
    pub fn peer(&self, mac: Mac) -> Option<Mac> {
        self.talking.get(&mac).copied()
    }

    /// Who calls the device.
    fn ringing_for(&self, target: Mac) -> Option<Mac> {
        self.ringing.iter().find(|(_, ringing)| ringing.target == target).map(|(caller, _)| *caller)
    }
}

#[cfg(test)]
mod tests;
