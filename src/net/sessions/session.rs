//! A session: the core of one device, with both its connections.

use std::time::Instant;

use crate::net::backend::connection::BackendConnection;
use crate::net::event_loop::timer_wheel::Armed;
use crate::net::event_loop::token::SessionId;
use crate::net::mqtt::connection::MqttConnection;
use crate::session::{Core, FarEnd};

/// A device and its call, or what is left of them: a call whose device is disconnected, a connection that is closing. Small,
/// since most sessions are idle.
pub(crate) struct Session {
    pub(super) epoch: u32,
    pub(crate) core: Core,
    pub(crate) mqtt: Option<MqttConnection>,
    pub(crate) backend: Option<Box<BackendConnection>>,
    pub(super) rare: Option<Box<RareState>>,
    /// Its entry in the timer wheel.
    pub(crate) armed: Armed,
    /// On the list of sessions to be flushed at the end of the iteration.
    pub(crate) dirty: bool,
    /// On the list of sessions to be freed at the end of the iteration.
    pub(crate) closing: bool,
    /// It is only a WebSocket that waits for the chat server to close it.
    pub(super) lingering: bool,
    /// The number of its present or last connection, for the other gateways. 0 when there are none.
    #[cfg(feature = "cluster")]
    pub(crate) connection_number: u32,
    /// Bytes buffered above the free allowance when last accounted.
    pub(crate) accounted_bytes: u32,
}

/// What few sessions have.
#[derive(Clone, Copy, Default)]
pub(super) struct RareState {
    /// The other device of a device-to-device call.
    peer: Option<AudioPeer>,
    /// When connections that only wait for their peer to close are dropped.
    linger_until: Option<Instant>,
}

/// Where the audio of a device goes that talks to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AudioPeer {
    Session(SessionId),
    /// Another place serves the other device.
    Elsewhere(FarEnd),
}

impl Session {
    /// The other device of a device-to-device call.
    pub(crate) fn peer(&self) -> Option<AudioPeer> {
        self.rare.as_ref().and_then(|rare| rare.peer)
    }

    /// The device's call is with this device, or with none.
    pub(crate) fn set_peer(&mut self, peer: Option<AudioPeer>) {
        self.change_rare(|rare| rare.peer = peer);
    }

    /// When connections that only wait for their peer to close are dropped.
    pub(crate) fn linger_until(&self) -> Option<Instant> {
        self.rare.as_ref().and_then(|rare| rare.linger_until)
    }

    /// From now on, connections only wait for their peer to close, at most until then; `None`: they do not.
    pub(crate) fn set_linger_until(&mut self, at: Option<Instant>) {
        self.change_rare(|rare| rare.linger_until = at);
    }

    fn change_rare(&mut self, change: impl FnOnce(&mut RareState)) {
        let mut rare = self.rare.as_deref().copied().unwrap_or_default();
        change(&mut rare);
        self.rare = (rare.peer.is_some() || rare.linger_until.is_some()).then(|| Box::new(rare));
    }

    /// The next deadline of the core or of a connection.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let held_output = self.mqtt.as_ref().and_then(|connection| connection.hold_until());
        let next_address = self.backend.as_ref().and_then(|backend| backend.next_step_at());
        [self.core.deadline(), self.linger_until(), held_output, next_address].into_iter().flatten().min()
    }

    /// Neither a connection nor a call is left.
    pub(crate) fn is_finished(&self) -> bool {
        self.mqtt.is_none() && self.backend.is_none() && self.core.is_finished()
    }

    /// Bytes that are buffered for the device, and texts that the core has queued for either side.
    pub(crate) fn bytes_for_device(&self) -> usize {
        self.core.retained_bytes() + self.mqtt.as_ref().map_or(0, |mqtt| mqtt.buffered_bytes())
    }

    /// Bytes that are buffered for the WebSocket.
    pub(crate) fn bytes_for_backend(&self) -> usize {
        self.backend.as_ref().map_or(0, |backend| backend.buffered_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::event_loop::io::TimerKind;

    /// There may be tens of thousands of idle devices.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn a_session_is_small() {
        // In debug builds, mio's sockets also hold their poll's id.
        let max = if cfg!(debug_assertions) { 184 } else { 176 };
        assert!(size_of::<Session>() <= max, "{}", size_of::<Session>());
        // Each has one.
        assert!(size_of::<TimerKind>() <= 12, "{}", size_of::<TimerKind>());
    }
}
