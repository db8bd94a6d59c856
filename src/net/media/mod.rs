//! Audio: the UDP socket and the credentials of a call.

pub(in crate::net) mod credentials;
pub mod socket;
