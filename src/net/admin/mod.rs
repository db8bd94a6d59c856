//! The management API: its HTTP server, pending requests, and the collection of metrics.

pub(crate) mod collect;
#[cfg(feature = "cluster")]
mod collect_cluster;
pub(crate) mod connection;
mod event_streams;
pub(crate) mod list_selection;
pub(crate) mod pending_requests;
mod proc_stats;
pub(crate) mod request;
pub(crate) mod server;
mod tls;
