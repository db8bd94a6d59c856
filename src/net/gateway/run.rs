//! Runs a gateway until it is stopped or drained, or until a worker fails.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;
use std::{io, mem};

use log::info;
use mio::Events;

use crate::net::event_loop::tcp::LINGER;
use crate::net::gateway::Gateway;
use crate::net::gateway::lifecycle::Phase;

/// Events per poll.
const EVENTS: usize = 1024;
/// How long webhooks may take for the last events after a drain.
const WEBHOOKS_GRACE: Duration = Duration::from_secs(10);

impl Gateway {
    /// Runs until it is stopped or drained.
    ///
    /// # Errors
    /// When the poll of any worker fails, or its loop panics: then all workers end, and the devices of the others get a
    /// goodbye. The error names the worker, counted from 0, when there are several.
    pub fn run(mut self) -> io::Result<()> {
        // After a panic, the gateway is only dropped.
        let ended = panic::catch_unwind(AssertUnwindSafe(|| self.run_until_stopped()));
        let outcome = ended.unwrap_or_else(|panic| Err(panicked(&*panic)));
        let mut workers = mem::take(&mut self.workers);
        // Closes its sockets before it waits for the other workers, so that its devices can reconnect elsewhere.
        let (history, webhooks) = (self.history.clone(), mem::take(&mut self.webhooks));
        // Nobody waits for the end of a drain.
        let is_stopped = self.lifecycle.is_stopping() || outcome.is_err();
        drop(self);
        let outcome = workers.end(outcome);
        if workers.is_leader() {
            history.flush(LINGER);
            webhooks.finish(if is_stopped { LINGER } else { WEBHOOKS_GRACE });
        }
        outcome
    }

    fn run_until_stopped(&mut self) -> io::Result<()> {
        self.workers.run_others();
        let mut events = Events::with_capacity(EVENTS);
        while !self.is_stopped() {
            self.run_once(&mut events)?;
        }
        self.connection_log.write_summary();
        self.leave_cluster();
        if self.lifecycle.phase() == Phase::Draining && self.workers.is_leader() {
            info!("drained: the last call has ended");
            self.sd_notify.stopping();
        }
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        let is_empty = self.sessions.len() == 0;
        let is_drained = self.lifecycle.is_draining() && is_empty && self.workers.others_ended();
        self.lifecycle.stop_deadline().map_or(is_drained, |deadline| deadline <= self.io.now || is_empty)
    }

    /// Another worker has ended. If it failed, all workers end, since nobody else can serve its devices.
    pub(super) fn worker_ended(&mut self, failed: bool) {
        self.workers.worker_ended();
        if failed && !self.lifecycle.is_stopping() {
            self.stop(LINGER);
        }
    }
}

/// A panic as an error. The panic hook has printed its location to stderr.
fn panicked(panic: &(dyn Any + Send)) -> io::Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    io::Error::other(format!("the loop panicked: {}", text.unwrap_or("no message")))
}
