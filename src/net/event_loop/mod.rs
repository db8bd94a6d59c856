//! Building blocks of the event loop: timers, the wake-up, the run queue, coalescing, tokens, streams.

pub mod coalesce;
pub(crate) mod inherited;
pub(crate) mod io;
pub(crate) mod run_queue;
pub(crate) mod stream;
pub(crate) mod tcp;
pub mod timer_wheel;
pub(crate) mod tls_handshake;
#[cfg(openssl_client)]
pub(crate) mod tls_sessions;
pub mod token;
pub(crate) mod wakeup;
pub(crate) mod write_buffer;
