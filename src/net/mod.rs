//! net

pub mod datagrams;
pub mod resolver;
pub mod token;
pub mod wheel;
