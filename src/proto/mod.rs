//! Parsers and serialisers of all wire formats. They use no socket, no clock, no random source and no log.

pub mod address_key;
pub mod audio;
pub mod client_id;
pub mod identity;
pub mod mac;
pub mod message;
pub mod mqtt;
pub mod ogg_opus;
pub mod ota;
pub mod proxy_protocol;
