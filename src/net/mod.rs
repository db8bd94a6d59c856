//! net

pub mod datagrams;
pub mod doorkeeper;
pub mod resolver;
pub mod stream;
pub mod token;
pub mod wheel;
