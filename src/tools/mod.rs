//! The sub-commands, and the built-in echo chat server and simulated device they are made of.

pub mod device;
pub mod echo;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod fake;
