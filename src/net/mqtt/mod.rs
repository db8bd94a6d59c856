//! MQTT connections of devices: listeners, handshakes, transports, and limits before login.

pub mod auth_throttle;
pub mod certificate;
#[cfg(all(feature = "tls", not(any(windows, target_vendor = "apple"))))]
pub(crate) mod certificate_chain;
pub(crate) mod certificate_info;
pub(crate) mod connection;
pub(crate) mod connection_log;
pub(crate) mod connections_by_address;
pub(crate) mod eviction;
pub(crate) mod handshake;
pub(crate) mod listener;
#[cfg(feature = "cluster")]
pub(crate) mod output_for_other_gateway;
pub(crate) mod refusal_log;
mod tls_reload;
pub(crate) mod transport;
pub(crate) mod watched_certificate;
