//! A session holds both its sockets: the pair is the unit of life, time and metrics.

use std::time::Instant;

use crate::net::backend::connection::BackendConnection;
use crate::net::event_loop::token::SessionId;
use crate::net::mqtt::connection::MqttConnection;
use crate::session::Core;

/// No tick of the timer wheel: later than all.
pub(crate) const NOT_ARMED: u64 = u64::MAX;

/// One device with its call, or what is left of them. It is small, since most sessions are idle.
pub(crate) struct Session {
    pub(super) epoch: u32,
    pub(crate) core: Core,
    pub(crate) mqtt: Option<MqttConnection>,
    pub(crate) backend: Option<Box<BackendConnection>>,
    /// The other device of a device-to-device call. Boxed, since few sessions have one.
    pub(crate) peer: Option<Box<SessionId>>,
    /// The tick of the one live entry in the timer wheel, or [`NOT_ARMED`].
    pub(crate) armed_tick: u64,
    /// When sockets that only wait for the peer to close are dropped. Boxed, since few sessions have one.
    pub(crate) linger_until: Option<Box<Instant>>,
    /// Something waits to be written at the end of the iteration.
    pub(crate) dirty: bool,
    /// On the list of those to be freed at the end of the iteration.
    pub(crate) closing: bool,
    /// Bytes kept for its device and its call above the free allowance, when last accounted.
    pub(crate) accounted_bytes: u32,
}

impl Session {
    /// When something is due, in the core or for a socket.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let refusal = self.mqtt.as_ref().and_then(|device| device.hold_until());
        let address = self.backend.as_ref().and_then(|backend| backend.next_address_at());
        [self.core.deadline(), self.linger_until.as_deref().copied(), refusal, address]
            .into_iter()
            .flatten()
            .min()
    }

    /// Nothing is left: no socket, no call.
    pub(crate) fn is_finished(&self) -> bool {
        self.mqtt.is_none() && self.backend.is_none() && self.core.is_finished()
    }

    /// Bytes that are kept for the device, and texts that wait for either side.
    pub(crate) fn bytes_for_device(&self) -> usize {
        self.core.retained_bytes() + self.mqtt.as_ref().map_or(0, |mqtt| mqtt.buffered_bytes())
    }

    /// Bytes that are kept for the WebSocket.
    pub(crate) fn bytes_for_backend(&self) -> usize {
        self.backend.as_ref().map_or(0, |backend| backend.buffered_bytes())
    }

    /// Whether it is a connection that has not logged in yet.
    pub(crate) fn is_unauthenticated(&self) -> bool {
        self.mqtt.is_some() && self.core.awaits_connect()
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
