//! Audio: the UDP socket, and the credentials of calls.

pub(crate) mod audio_port;
pub(crate) mod credentials;
pub mod socket;
pub(crate) mod udp_drops;
