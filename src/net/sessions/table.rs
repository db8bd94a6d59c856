//! A session holds both its sockets: the pair is the unit of life, death, time and metrics.

use std::time::Instant;

use slab::Slab;

use crate::net::backend::connection::BackendConnection;
use crate::net::event_loop::token::SessionId;
use crate::net::mqtt::connection::MqttConnection;
use crate::session::Core;

/// No tick of the wheel: later than all.
pub(in crate::net) const NOT_ARMED: u64 = u64::MAX;

/// One device with its call, or what is left of them. It is small, since most only wait.
pub(in crate::net) struct Session {
    epoch: u32,
    pub(in crate::net) core: Core,
    pub(in crate::net) mqtt: Option<MqttConnection>,
    pub(in crate::net) backend: Option<Box<BackendConnection>>,
    /// Whom the device talks to instead of a chat server. Few do, so it is apart.
    pub(in crate::net) peer: Option<Box<SessionId>>,
    /// The tick of the one live entry in the wheel, or [`NO_ALARM`].
    pub(in crate::net) armed_tick: u64,
    /// Sockets that only wait for their peer's last word are dropped then. Few do, so it is apart.
    pub(in crate::net) linger_until: Option<Box<Instant>>,
    /// Something waits to be written at the end of the turn.
    pub(in crate::net) dirty: bool,
    /// On the list of those to be buried at the end of the turn.
    pub(in crate::net) closing: bool,
    /// What is kept for its device and its call above what each may keep, in bytes, when last looked at.
    pub(in crate::net) accounted_bytes: u32,
}

impl Session {
    /// When something is due, in the core or for a socket.
    pub(in crate::net) fn deadline(&self) -> Option<Instant> {
        let refusal = self.mqtt.as_ref().and_then(|device| device.hold_until());
        let address = self.backend.as_ref().and_then(|backend| backend.next_address_at());
        [self.core.deadline(), self.linger_until.as_deref().copied(), refusal, address]
            .into_iter()
            .flatten()
            .min()
    }

    /// Nothing is left: no socket, no call.
    pub(in crate::net) fn is_finished(&self) -> bool {
        self.mqtt.is_none() && self.backend.is_none() && self.core.is_finished()
    }
}

/// All sessions, by slot; names that outlive a batch are checked by epoch.
#[derive(Default)]
pub(in crate::net) struct Sessions {
    slab: Slab<Session>,
    epoch: u32,
}

impl Sessions {
    pub(in crate::net) fn insert(
        &mut self,
        core: Core,
        device: Option<MqttConnection>,
        backend: Option<Box<BackendConnection>>,
    ) -> SessionId {
        self.epoch = self.epoch.wrapping_add(1);
        let epoch = self.epoch;
        let session = Session {
            epoch,
            core,
            mqtt: device,
            backend,
            peer: None,
            armed_tick: NOT_ARMED,
            linger_until: None,
            dirty: false,
            closing: false,
            accounted_bytes: 0,
        };
        SessionId { slot: self.slab.insert(session) as u32, epoch }
    }

    /// The slot the next session will get, for its token.
    pub(in crate::net) fn next_slot(&self) -> usize {
        self.slab.vacant_key()
    }

    /// The name of whoever is in this slot now.
    pub(in crate::net) fn at(&self, slot: usize) -> Option<SessionId> {
        self.slab.get(slot).map(|session| SessionId { slot: slot as u32, epoch: session.epoch })
    }

    pub(in crate::net) fn live(&mut self, id: SessionId) -> Option<&mut Session> {
        self.slab.get_mut(id.slot as usize).filter(|session| session.epoch == id.epoch)
    }

    pub(in crate::net) fn get(&self, id: SessionId) -> Option<&Session> {
        self.slab.get(id.slot as usize).filter(|session| session.epoch == id.epoch)
    }

    pub(in crate::net) fn remove(&mut self, id: SessionId) -> Option<Session> {
        self.live(id)?;
        self.slab.try_remove(id.slot as usize)
    }

    /// Gives back the memory of the slots behind the last session.
    pub(in crate::net) fn shrink(&mut self) {
        self.slab.shrink_to_fit();
    }

    pub(in crate::net) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(in crate::net) fn ids(&self) -> Vec<SessionId> {
        self.slab
            .iter()
            .map(|(slot, session)| SessionId { slot: slot as u32, epoch: session.epoch })
            .collect()
    }

    /// All in this slot and those behind it, with their slots.
    pub(in crate::net) fn starting_at(&self, slot: usize) -> impl Iterator<Item = (usize, &Session)> {
        let occupied = |slot| self.slab.get(slot).map(|session| (slot, session));
        (slot..self.slab.capacity()).filter_map(occupied)
    }

    pub(in crate::net) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.slab.iter_mut().map(|(_, session)| session)
    }

    pub(in crate::net) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.slab.iter().map(|(_, session)| session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tens of thousands of them only wait.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn what_an_idle_device_costs_is_known() {
        // In debug builds, mio's sockets remember their poll.
        let most = if cfg!(debug_assertions) { 184 } else { 176 };
        assert!(size_of::<Session>() <= most, "{}", size_of::<Session>());
    }
}
