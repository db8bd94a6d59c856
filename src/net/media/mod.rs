//! Audio: the UDP socket and the credentials of a call.

pub(in crate::net) mod audio_port;
pub(in crate::net) mod credentials;
pub mod socket;
pub(in crate::net) mod udp_drops;
