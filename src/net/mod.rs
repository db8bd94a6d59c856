//! net

pub mod datagrams;
pub mod resolver;
pub mod stream;
pub mod token;
pub mod wheel;
