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
mod admission;
mod apply;
pub mod auth_throttle;
mod backend_connection;
pub mod backend_transport;
pub mod blocking_client;
mod call_log_limiter;
pub mod certificate;
mod coalesce;
mod connector;
pub mod context_pool;
mod credentials;
mod device_calls;
pub mod fd_limit;
mod file_watch;
mod frame_reader;
mod gateway;
mod handle;
mod handshake;
#[cfg(test)]
mod harness;
pub mod index;
mod lifecycle;
mod listener;
mod memory_budget;
mod memory_trim;
mod metrics;
mod mqtt_connection;
mod mqtt_transport;
pub mod resolver;
mod run;
mod run_queue;
mod sd_notify;
pub mod socket;
mod table;
pub mod timer_wheel;
mod tls_listener;
pub mod token;
pub(crate) mod upgrade;
mod wakeup;
mod workers;
mod write_buffer;

pub use gateway::{BindError, Gateway};
pub use handle::{Addresses, Handle, Running};
pub use metrics::Metrics;
