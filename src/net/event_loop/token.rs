//! Identifiers of event sources and of sessions.
//!
//! A [`mio::Token`] identifies a slot in a slab and which of its sockets an event is for. It is only valid within one batch
//! of events. Whatever outlives a batch holds a [`SessionId`] instead.

use mio::Token;

/// Identifies a session, which may have ended by the time it is looked up. Ordered by age, the oldest first, until the epoch
/// wraps around.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct SessionId {
    /// The number of sessions there were until this one: distinguishes the successive sessions of a slot.
    pub epoch: u32,
    /// The index in the slab of sessions.
    pub slot: u32,
}

/// The listener that accepted a device's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ListenerKind {
    /// `mqtt.port`.
    Plain,
    /// `mqtt.tls.port`.
    Tls,
}

/// Identifies a connection to the management port, which may have ended by the time it is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AdminId {
    pub(crate) slot: u32,
    pub(crate) epoch: u32,
}

/// Identifies a connection to the OTA port, which may have ended by the time it is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OtaId {
    pub(crate) slot: u32,
    pub(crate) epoch: u32,
}

/// Which kind of socket an event is for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Role {
    /// Listeners, the UDP socket, the waker: one of each, for the life of the gateway.
    Fixed,
    /// A session's MQTT connection.
    Device,
    /// A session's connection to its chat server.
    Backend,
    /// A connection to the management port.
    Admin,
    /// A connection to the OTA port.
    Ota,
    /// The request to another OTA server that a connection to the OTA port waits for.
    OtaUpstream,
}

/// By the number that they have in tokens.
const ROLES: [Role; 6] =
    [Role::Fixed, Role::Device, Role::Backend, Role::Admin, Role::Ota, Role::OtaUpstream];

/// The token of socket `role` at `slot`: `slot << 3 | role`, which also fits the `usize` of 32-bit routers.
pub fn token(role: Role, slot: usize) -> Token {
    Token(slot << 3 | role as usize)
}

/// The token of the `n`th fixed source.
pub const fn fixed(n: usize) -> Token {
    Token(n << 3)
}

/// The plain MQTT listener.
pub(crate) const MQTT: usize = 0;
/// The audio socket.
pub(crate) const UDP: usize = 1;
/// The waker: another thread has sent a command or resolved a name.
pub(crate) const WAKER: usize = 2;
/// The management listener.
pub(crate) const API: usize = 3;
/// The TLS listener of MQTT.
pub(crate) const MQTTS: usize = 4;
/// The timerfd.
pub(crate) const WAKEUP: usize = 5;
/// The OTA listener.
pub(crate) const OTA: usize = 6;

/// The channel to the processes that have replaced this one.
pub(crate) const OWN_CHANNEL: usize = 7;
/// The two connections to Redis, in the order of `cluster::Connection`.
#[cfg(feature = "cluster")]
pub(crate) const REDIS: usize = 8;
/// The channel to the earlier process of generation 0; those of the other generations follow.
pub(crate) const PREDECESSOR: usize = 10;

/// The reverse of [`token`].
pub fn from_token(token: Token) -> (Role, usize) {
    let role = ROLES.get(token.0 & 7).copied().unwrap_or(Role::Fixed);
    (role, token.0 >> 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_encodes_role_and_slot() {
        for role in [Role::Fixed, Role::Device, Role::Backend, Role::Admin, Role::Ota, Role::OtaUpstream] {
            for slot in [0, 1, 9_999, (1 << 29) - 1] {
                assert_eq!(from_token(token(role, slot)), (role, slot));
            }
        }
        assert_eq!(from_token(fixed(2)), (Role::Fixed, 2));
        assert_ne!(token(Role::Device, 7), token(Role::Backend, 7));
    }
}
