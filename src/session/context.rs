//! What a core borrows from the shell.

use std::time::Instant;

use super::action::{Action, Counter, LogEvent};
use super::ended_calls::EndedCalls;
use super::hello_limiter::HelloLimiter;
use super::request_ids::RequestIds;
use super::server_health::ServerHealth;
use super::tool_lists::ToolLists;
use crate::config::Config;

/// What a core borrows for one method call: the time, the current configuration, and where actions go.
pub struct Context<'a> {
    /// The time of this iteration of the loop.
    pub now: Instant,
    /// The current configuration. A reload replaces it, so no core keeps a reference.
    pub config: &'a Config,
    /// Health and framing of the chat servers, shared by all calls.
    pub servers: &'a mut ServerHealth,
    /// Hellos of all devices, over their connections.
    pub hellos: &'a mut HelloLimiter,
    /// Calls whose end their devices may not have heard of.
    pub ended_calls: &'a mut EndedCalls,
    /// Ids of requests to devices, shared by all sessions of the process.
    pub ids: &'a RequestIds,
    /// The tools of all devices.
    pub tool_lists: &'a ToolLists,
    /// To be carried out in order, see [the invariant](super#the-invariant).
    pub out: &'a mut Vec<Action>,
}

impl Context<'_> {
    pub(super) fn count(&mut self, counter: Counter) {
        self.out.push(Action::Count(counter));
    }

    pub(super) fn log(&mut self, event: LogEvent) {
        self.out.push(Action::Log(event));
    }

    pub(super) fn publish(&mut self, text: String) {
        self.out.push(Action::Publish(text));
    }
}
