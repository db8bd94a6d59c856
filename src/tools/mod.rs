//! The sub-commands, and the built-in echo chat server and simulated device they are made of.

pub mod check;
pub mod credentials;
pub mod demo;
pub mod device;
pub mod echo;
mod exchange;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod fake;
pub mod health;
pub mod probe;
mod screen;
mod tls_words;
