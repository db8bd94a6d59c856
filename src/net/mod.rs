//! net

pub mod datagrams;
pub mod token;
pub mod wheel;
