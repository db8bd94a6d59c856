//! Chat servers: name resolution, dials, TLS, the WebSocket.

pub mod blocking_client;
pub(crate) mod connection;
pub(crate) mod connector;
pub mod context_pool;
pub(crate) mod frame_reader;
pub mod resolver;
pub mod tls;
pub(crate) mod tls_clients;

pub(crate) mod upgrade;
