//! Several gateways that know each other through Redis: the part without sockets. It gets bytes and the time, and returns what
//! should happen.
//!
//! [`Cluster`] speaks to Redis over two connections, one for commands and one that is subscribed to two channels: that of all
//! gateways and its own. What it keeps in Redis, below a prefix:
//!
//! ```text
//! PREFIX:gateway:NAME    the run id of the gateway with this name; 15 s, refreshed every 5 s
//! PREFIX:device:MAC      a Record: where a device is connected; 75 s, refreshed every 25 s
//! PREFIX:all             channel: every gateway announces itself every 3 s
//! PREFIX:to:RUNID        channel: frames for one gateway
//! ```
//!
//! Everything in Redis is a copy that may be lost or foreign. The gateway that a device is connected to has the truth.

#[cfg(feature = "cluster")]
mod commands;
#[cfg(feature = "cluster")]
mod connection_message;
#[cfg(feature = "cluster")]
mod core;
#[cfg(feature = "cluster")]
mod device_commands;
#[cfg(feature = "cluster")]
mod device_record;
#[cfg(feature = "cluster")]
mod frame;
#[cfg(feature = "cluster")]
mod link;
#[cfg(feature = "cluster")]
mod name;
#[cfg(feature = "cluster")]
mod outbox;
#[cfg(feature = "cluster")]
mod peers;
#[cfg(feature = "cluster")]
mod presence;
#[cfg(feature = "cluster")]
mod resp;
#[cfg(all(test, feature = "cluster"))]
#[allow(clippy::unwrap_used)]
mod tests;
mod types;

#[cfg(feature = "cluster")]
pub use connection_message::{ConnectionBody, ConnectionMessage};
#[cfg(feature = "cluster")]
pub use core::{Cluster, Counters, Settings};
#[cfg(feature = "cluster")]
pub use link::{Action, Connection};
pub use types::{
    ClusterState, FIRST_KIND, GatewayId, Location, MAX_PAYLOAD, Outcome, OwnInfo, Peer, SendError,
};
