//! The state machines of a device and its call: pure, driven with virtual time.
//!
//! # The invariant
//!
//! Every `&mut` call on a [`Core`] that takes a [`Context`] may push [`Action`]s. The caller carries them out, in order,
//! before it calls this core or any other one again. What a core wants to be woken for is [`Core::deadline`]; waking it
//! early, twice or for nothing is harmless.
//!
//! ```text
//! device            AwaitingConnect -> Online -> Closed
//!                                        |  ^
//!            connection lost in a call   v  |  same client id connects again
//!                                       AwaitingReconnect
//!
//! its call          Dialing -> AwaitingHello -> Live -> (gone)
//!                      ^                         |
//!                      +---- Backoff <-----------+  the chat server failed
//!
//! with a device     any of them once answered -> Ringing -> InDeviceCall -> (gone)
//! ```

mod action;
mod call;
mod core;
mod deadlines;
mod device_calls;
mod jitter;
mod labels;
mod mcp;
mod media;
mod queue;
mod request_ids;
mod server_health;

pub use action::{
    Action, Admission, BackendClosed, BackendFailure, BackendStage, CallCredentials, CallSummary,
    CloseReason, CommandError, Context, Counter, DialRequest, DropReason, EndReason, LogEvent,
};
pub use call::{CallState, CallView, Uplink};
pub use core::{Core, Delivery};
pub use device_calls::{AcceptOutcome, DeviceCallEffect, DeviceCallTable, Presence, RequestOutcome};
pub use media::{CallStats, Encrypted, UdpPeer};
pub use request_ids::RequestIds;
pub use server_health::{ServerHealth, WireFraming};

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) mod sim;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)]
pub(crate) mod testing;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
