//! The OTA port, which devices ask when they start: its HTTP server. What is answered is in [`crate::proto::ota`].

pub(crate) mod connection;
mod container;
pub(crate) mod server;
