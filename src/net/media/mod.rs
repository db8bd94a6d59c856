//! Audio: the UDP port with its sockets, and the credentials of calls.

pub(crate) mod audio_port;
pub(crate) mod credentials;
pub mod socket;
pub(crate) mod steering;
pub(crate) mod udp_drops;
