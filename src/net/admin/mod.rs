//! The management API: its HTTP server, and what the metrics are collected from.

pub(crate) mod collect;
pub(crate) mod connection;
pub(crate) mod pending;
mod proc_stats;
pub(crate) mod server;
