//! Connections to chat servers: name resolution, dialing, TLS, WebSocket.

pub(crate) mod blocking_client;
pub(crate) mod connection;
pub(crate) mod connector;
pub(crate) mod dial;
pub(crate) mod dial_slots;
pub(crate) mod dialed_stream;
pub(crate) mod frame_reader;
pub(crate) mod health_poll;
pub(crate) mod http_client;
pub(crate) mod resolver;
pub(crate) mod tls;
pub(crate) mod tls_clients;
pub(crate) mod upgrade;
pub mod websocket_context_pool;
