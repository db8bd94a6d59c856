//! The state machines of a device and its call: pure, driven with virtual time.
//!
//! # The invariant
//!
//! Every `&mut` call on a [`Core`] that takes a [`Cx`] may push [`Action`]s. The caller carries them out, in order,
//! before it calls this core or any other one again. What a core wants to be woken for is [`Core::deadline`]; waking it
//! early, twice or for nothing is harmless.
//!
//! ```text
//! device            AwaitingConnect -> Online -> Leaving
//!                                        |  ^
//!            connection lost in a call   v  |  same client id connects again
//!                                       Away
//!
//! its call          Dialing -> Greeting -> Live -> (gone)
//!                      ^                    |
//!                      +---- Backoff <------+  the chat server failed
//!
//! with a device     any of them once answered -> Ringing -> Bridged -> (gone)
//! ```

mod action;
mod call;
mod core;
mod deadlines;
mod device_calls;
mod jitter;
mod mcp;
mod media;
mod queue;
mod request_ids;
mod server_health;

pub use action::{
    Action, Admission, CommandFailed, Counter, Cx, DialRequest, Discard, EndReason, Failure, Gone, Grant,
    Note, OWN_SHORTAGE, Reason, Summary,
};
pub use call::{CallState, CallView, Uplink};
pub use core::{Core, Delivery};
pub use device_calls::{Accepted, Bridges, Effect, Presence, Requested};
pub use media::{Facts, Peer, Sealed};
pub use request_ids::RequestIds;
pub use server_health::{Servers, Spoken};

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) mod sim;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
