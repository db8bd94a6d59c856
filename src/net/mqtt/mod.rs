//! Devices: listeners, handshakes, connections, and what limits them before they have logged in.

pub mod auth_throttle;
pub mod certificate;
pub(in crate::net) mod connection;
pub(in crate::net) mod connections_by_address;
pub(in crate::net) mod handshake;
pub(in crate::net) mod listener;
pub(in crate::net) mod tls_listener;
pub(in crate::net) mod transport;
