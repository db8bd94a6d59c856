//! The shell: sockets, the loop, time, randomness. It does what the [core](crate::session) decides.
//!
//! ```text
//!             accept          device            calls, backend, upgrade
//!   devices ----------> MQTT, TLS, TCP \       / WebSocket ------------> chat servers
//!                        datagrams     gateway
//!   devices <---------> audio by UDP  /    |   \ resolver (threads), wheel (time), watch (file)
//! operators ----------> admin (HTTP) /   Core
//! ```

mod accept;
mod actions;
mod admin;
mod admission;
mod backend;
mod bell;
mod calls;
pub mod certificate;
pub mod contexts;
pub mod datagrams;
pub mod descriptors;
mod device;
mod device_calls;
pub mod doorkeeper;
mod early;
mod gateway;
mod grant;
mod handle;
#[cfg(test)]
mod harness;
pub mod index;
mod leftovers;
mod lines;
mod link;
mod memory;
mod metrics;
mod outbox;
mod pace;
mod relief;
pub mod resolver;
mod run;
mod session;
mod steer;
pub mod stream;
mod supervisor;
mod tap;
mod team;
mod tls_door;
pub mod token;
pub(crate) mod upgrade;
pub mod visit;
mod watch;
pub mod wheel;

pub use gateway::{BindError, Gateway};
pub use handle::{Addresses, Handle, Running};
pub use metrics::Metrics;
