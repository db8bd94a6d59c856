//! Upgrade in place: a running gateway starts the program again, hands its sockets on, and finishes its calls.
//!
//! ```text
//!   process that serves                      its successor
//!   -------------------                      -------------
//!   starts the program ---------------->     its stdin is one end of a socket pair
//!   Offer, then the sockets ----------->     reads the configuration, takes the sockets that fit it
//!                         <-------------     Ready
//!   stops accepting
//!   Go -------------------------------->     steers datagrams without a call to itself, writes the pid file
//!                         <-------------     Serving
//!   tells systemd who serves
//!   Go -------------------------------->     tells systemd that it is ready
//!   drains: calls go on until they end       accepts connections
//! ```
//!
//! Until `Serving` the first process can take everything back: when the other one ends, says `Failed` or says nothing, the first
//! one goes on as before. Listening sockets are the same in both processes, so that connections wait in their queue meanwhile. Each
//! process has an own socket of the UDP port, whose datagrams the kernel selects by ssrc (`net/media/steering.rs`).

pub(crate) mod channel;
pub(crate) mod predecessor;
pub(crate) mod successor;

pub use predecessor::Predecessor;
