//! The OTA port, which devices ask when they start: its HTTP server. What is answered is in [`crate::proto::ota`].

pub(crate) mod connection;
pub(crate) mod container;
pub(crate) mod message;
mod pass_on;
pub(crate) mod server;
pub(crate) mod upstream;
