//! MQTT connections of devices: listeners, handshakes, transports, and limits before login.

pub mod auth_throttle;
pub mod certificate;
pub(crate) mod certificate_renewal;
pub(crate) mod connection;
pub(crate) mod connections_by_address;
pub(crate) mod handshake;
pub(crate) mod listener;
pub(crate) mod tls_listener;
pub(crate) mod transport;
