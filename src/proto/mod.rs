//! Bytes to values and back: no socket, no clock, no random source, no log.

pub mod audio;
pub mod identity;
pub mod message;
pub mod mqtt;
pub mod proxy_protocol;
