//! The shell: sockets, the loop, time, randomness. It does what the [core](crate::session) decides.
//!
//! ```text
//!             accept          device            calls, backend, upgrade
//!   devices ----------> MQTT, TLS, TCP \       / WebSocket ------------> chat servers
//!                        datagrams     gateway
//!   devices <---------> audio by UDP  /    |   \ resolver (threads), wheel (time), watch (file)
//! operators ----------> admin (HTTP) /   Core
//! ```

mod admin;
pub mod backend;
mod error;
pub mod event_loop;
mod file_watch;
pub mod gateway;
mod log_limiter;
pub mod media;
mod metrics;
pub mod mqtt;
pub mod sessions;

pub use error::BindError;
pub use gateway::Gateway;
pub use gateway::handle::{Addresses, Handle, Running};
pub use metrics::Metrics;
