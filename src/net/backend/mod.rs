//! Chat servers: name resolution, dials, TLS, the WebSocket.

pub mod blocking_client;
pub(in crate::net) mod connection;
pub(in crate::net) mod connector;
pub mod context_pool;
pub(in crate::net) mod frame_reader;
pub mod resolver;
pub(in crate::net) mod tls_clients;
pub mod transport;
pub(crate) mod upgrade;
