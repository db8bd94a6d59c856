//! MQTT connections of devices: listeners, handshakes, transports, and limits before login.

mod address_key;
pub mod auth_throttle;
pub mod certificate;
pub(crate) mod connection;
pub(crate) mod connections_by_address;
pub(crate) mod handshake;
pub(crate) mod listener;
mod tls_reload;
pub(crate) mod transport;
pub(crate) mod watched_certificate;
