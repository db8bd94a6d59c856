//! The OTA port, which devices ask when they start: its HTTP server. What is answered is in [`crate::proto::ota`].

pub(crate) mod connection;
pub(crate) mod container_detection;
pub(crate) mod message;
pub(crate) mod server;
pub(crate) mod upstream_connection;
mod upstream_requests;
