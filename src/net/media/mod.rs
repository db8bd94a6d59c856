//! Audio: the UDP socket and the credentials of a call.

pub(crate) mod audio_port;
pub(crate) mod credentials;
pub mod socket;
pub(crate) mod udp_drops;
