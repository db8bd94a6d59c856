//! The sub-commands, and the echo chat server and simulated device that they use.

mod addresses;
pub mod check;
pub mod command_line;
pub mod credentials;
pub mod demo;
pub mod device;
pub mod drain;
pub mod echo;
pub mod health;
pub mod init;
pub mod language;
pub mod page;
pub mod probe;
mod qr;
mod round_trip;
mod step_report;
mod terminal;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
pub mod token;
