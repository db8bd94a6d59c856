//! A session holds both its sockets: the pair is the unit of life, death, time and metrics.

use std::time::Instant;

use slab::Slab;

use super::backend_connection::BackendConnection;
use super::mqtt_connection::MqttConnection;
use super::token::SessionId;
use crate::session::Core;

/// No tick of the wheel: later than all.
pub(super) const NOT_ARMED: u64 = u64::MAX;

/// One device with its call, or what is left of them. It is small, since most only wait.
pub(super) struct Session {
    epoch: u32,
    pub(super) core: Core,
    pub(super) mqtt: Option<MqttConnection>,
    pub(super) backend: Option<Box<BackendConnection>>,
    /// Whom the device talks to instead of a chat server. Few do, so it is apart.
    pub(super) peer: Option<Box<SessionId>>,
    /// The tick of the one live entry in the wheel, or [`NO_ALARM`].
    pub(super) armed_tick: u64,
    /// Sockets that only wait for their peer's last word are dropped then. Few do, so it is apart.
    pub(super) linger_until: Option<Box<Instant>>,
    /// Something waits to be written at the end of the turn.
    pub(super) dirty: bool,
    /// On the list of those to be buried at the end of the turn.
    pub(super) closing: bool,
    /// What is kept for its device and its call above what each may keep, in bytes, when last looked at.
    pub(super) accounted_bytes: u32,
}

impl Session {
    /// When something is due, in the core or for a socket.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let refusal = self.mqtt.as_ref().and_then(|device| device.hold_until());
        let address = self.backend.as_ref().and_then(|backend| backend.next_address_at());
        [self.core.deadline(), self.linger_until.as_deref().copied(), refusal, address]
            .into_iter()
            .flatten()
            .min()
    }

    /// Nothing is left: no socket, no call.
    pub(super) fn is_finished(&self) -> bool {
        self.mqtt.is_none() && self.backend.is_none() && self.core.is_finished()
    }
}

/// All sessions, by slot; names that outlive a batch are checked by epoch.
#[derive(Default)]
pub(super) struct Sessions {
    slab: Slab<Session>,
    epoch: u32,
}

impl Sessions {
    pub(super) fn insert(
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
    pub(super) fn next_slot(&self) -> usize {
        self.slab.vacant_key()
    }

    /// The name of whoever is in this slot now.
    pub(super) fn at(&self, slot: usize) -> Option<SessionId> {
        self.slab.get(slot).map(|session| SessionId { slot: slot as u32, epoch: session.epoch })
    }

    pub(super) fn live(&mut self, id: SessionId) -> Option<&mut Session> {
        self.slab.get_mut(id.slot as usize).filter(|session| session.epoch == id.epoch)
    }

    pub(super) fn get(&self, id: SessionId) -> Option<&Session> {
        self.slab.get(id.slot as usize).filter(|session| session.epoch == id.epoch)
    }

    pub(super) fn remove(&mut self, id: SessionId) -> Option<Session> {
        self.live(id)?;
        self.slab.try_remove(id.slot as usize)
    }

    /// Gives back the memory of the slots behind the last session.
    pub(super) fn shrink(&mut self) {
        self.slab.shrink_to_fit();
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn ids(&self) -> Vec<SessionId> {
        self.slab
            .iter()
            .map(|(slot, session)| SessionId { slot: slot as u32, epoch: session.epoch })
            .collect()
    }

    /// All in this slot and those behind it, with their slots.
    pub(super) fn starting_at(&self, slot: usize) -> impl Iterator<Item = (usize, &Session)> {
        let occupied = |slot| self.slab.get(slot).map(|session| (slot, session));
        (slot..self.slab.capacity()).filter_map(occupied)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.slab.iter_mut().map(|(_, session)| session)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Session> {
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
