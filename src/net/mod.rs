//! The shell: sockets, the event loop, time, random numbers. It executes what the [core](crate::session) decides.
//!
//! ```text
//!  gateway      composes the parts below; calls the core with what they return, and carries its actions out
//!     |
//!     +--> admin                                    management API: HTTP connections, collecting metrics
//!     +--> ota                                      devices' OTA requests: HTTP connections
//!     +--> mqtt, backend, media                     devices, chat servers, audio: listener, connector, UDP socket
//!     |      |
//!     +--> sessions                                 all sessions; each owns its device's and its server's connection
//!     |      |
//!     +--> mqtt::connection, backend::connection    the two connections
//!     |      |
//!     +--> event_loop                               timers, run queue, tokens, and `Io`, which every part may use
//! ```
//!
//! Each part owns its state and is constructed without the others. A method borrows the sessions and `Io`, and returns what
//! happened. Only `gateway` names [`Gateway`].

mod admin;
pub mod backend;
#[cfg(feature = "cluster")]
pub(crate) mod cluster;
mod error;
pub mod event_loop;
mod event_ring;
mod file_watch;
pub mod gateway;
mod history;
mod history_file;
mod log_limiter;
mod log_subject;
pub mod media;
mod metrics;
pub mod mqtt;
pub(crate) mod ota;
pub mod sessions;
#[cfg_attr(not(target_os = "linux"), path = "upgrade_unsupported.rs")]
pub(crate) mod upgrade;
mod webhooks;

pub use error::BindError;
pub use gateway::Gateway;
pub use gateway::handle::{Addresses, Handle, Program, Running};
pub use metrics::Metrics;
pub use upgrade::Predecessor;
