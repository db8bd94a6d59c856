//! The state machines of a device and its call. They do no I/O and read no clock: the caller passes events and the time.
//!
//! # The invariant
//!
//! Every `&mut` method of a [`Core`] that takes a [`Context`] may push [`Action`]s. The caller carries them out, in order,
//! before it calls this core or another one again. After that it calls [`Core::on_timeout`] at [`Core::deadline`]; an early or
//! repeated call has no effect.
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
//! to a device       any state, once answered -> Ringing -> InDeviceCall -> (gone)
//! ```

mod action;
mod call;
mod call_quality;
mod call_report;
mod call_verdict;
mod context;
mod core;
mod deadlines;
mod device_call_relay;
mod device_calls;
mod end_reasons;
mod ended_calls;
mod hello_limiter;
mod jitter;
mod mcp;
mod media;
mod playout;
mod queue;
mod rate_limiter;
mod request_ids;
mod restart_recovery;
mod server_failure_cause;
mod server_health;
mod tls_error;
mod tool_lists;

pub use action::{
    Action, Admission, BackendClosed, BackendFailure, BackendStage, CallCredentials, CallState, CallStats,
    CallSummary, CloseReason, CommandError, Counter, DialRequest, DropReason, Encrypted, EndReason, LogEvent,
    RefusedDatagrams, ToolCount, UdpPeer,
};
pub use call::{CallView, FrameSpace, Uplink};
pub use call_report::{CallFailure, CallReport, CallSeries, CallSlice, SetupStage, SetupTimes};
pub use call_verdict::Verdict;
pub use context::Context;
pub use core::{Core, Delivery, LoginKey};
pub use device_call_relay::{
    FarEnd, Place, RelayBatch, RelayBody, RelayId, RelayMessage, Relayed, RequestOutcome,
};
pub use device_calls::{
    AcceptOutcome, CallAnswer, CallRequest, DeviceCallContext, DeviceCallEffect, DeviceCallTable,
    JoinedDevice, LocalDevices, Presence, decode_audio, encode_audio,
};
pub use end_reasons::EndedBy;
pub use ended_calls::EndedCalls;
pub use hello_limiter::HelloLimiter;
pub use rate_limiter::RateLimiter;
pub use request_ids::RequestIds;
pub use restart_recovery::RestartRecovery;
pub use server_failure_cause::{HttpAnswer, ServerCause};
pub use server_health::{ServerHealth, ServerState, ServerStatus, WireFraming};
pub use tls_error::TlsErrorCause;
pub use tool_lists::ToolLists;

#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)]
pub(crate) mod harness;
#[cfg(any(test, fuzzing))]
#[allow(clippy::unwrap_used)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) mod sim;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
