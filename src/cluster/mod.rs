//! Several gateways that know each other through Redis: the part without sockets. It gets bytes and the time, and returns what
//! should happen.
//!
//! [`Cluster`] speaks to Redis over two connections, one for commands and one that is subscribed to two channels: that of all
//! gateways and its own. What it keeps in Redis, below a prefix:
//!
//! ```text
//! PREFIX:gateway:NAME    the run id of the gateway with this name; 15 s, refreshed every 5 s
//! PREFIX:device:MAC      a Record: where a device is connected; 75 s, refreshed every 25 s
//! PREFIX:hellos:MAC      as long as the device's bucket of hellos is not full
//! PREFIX:all             channel: every gateway announces itself every 3 s
//! PREFIX:to:RUNID        channel: frames for one gateway
//! ```
//!
//! Everything in Redis is a copy that may be lost or foreign. The gateway that a device is connected to has the truth.

mod call_locations;
pub mod check;
mod commands;
mod connection_message;
mod core;
mod device_commands;
mod device_record;
mod frame;
mod frame_bundles;
mod message_kinds;
mod name;
mod peers;
mod presence;
mod redis_connection;
mod resp;
mod seal;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod types;

pub use connection_message::{ConnectionBody, ConnectionMessage};
pub use core::{Cluster, Counters, Settings};
pub use message_kinds::Kind;
pub use redis_connection::{Action, Connection};
pub use types::{
    ClusterState, DeviceConnection, FIRST_KIND, GatewayId, Location, MAX_PAYLOAD, Outcome, OwnInfo, Peer,
    SendError,
};
