//! The sub-commands, and the built-in echo chat server and simulated device they are made of.

pub mod check;
pub mod credentials;
pub mod demo;
pub mod device;
pub mod echo;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod fake_gateway;
pub mod health;
pub mod probe;
mod round_trip;
mod terminal;
mod tls_error;
