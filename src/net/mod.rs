//! net

pub mod token;
pub mod wheel;
