//! The management API: its HTTP server, and what the metrics are collected from.

pub(in crate::net) mod collect;
mod connection;
pub(in crate::net) mod pending;
mod proc_stats;
pub(in crate::net) mod server;
