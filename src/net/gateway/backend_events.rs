//! Turns events of the connections to chat servers into calls of the core.

use std::collections::HashSet;

use log::Level;

use crate::admin::event::Event;
use crate::config::EventKind;
use crate::net::backend::connection::{DialStep, Incoming};
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::session::{BackendClosed, BackendFailure, BackendStage, Core};

/// Messages and bytes of text per dispatch, so that a chat server that never stops sending does not delay others.
const MESSAGE_BUDGET: usize = 32;
const TEXT_BUDGET: usize = 256 * 1024;
/// Dials started per dispatch. After an outage thousands may fail immediately, and so never reach the limit of concurrent dials.
const DIAL_BUDGET: usize = 32;

impl Gateway {
    /// Starts queued dials, up to the limit of concurrent dials and within the budget.
    pub(super) fn start_dials(&mut self) {
        for _ in 0..DIAL_BUDGET {
            match self.connector.start_next(&mut self.sessions, &mut self.io) {
                Some((id, step)) => self.on_dial_step(id, step),
                None => {
                    let waiting = self.connector.slots.to_wake(self.io.config.websocket.max_dials);
                    return waiting.for_each(|worker| {
                        self.workers.run_at(worker, |worker| worker.io.run_queue.push(Task::StartDials));
                    });
                }
            }
        }
        self.io.run_queue.push(Task::StartDials);
    }

    fn on_dial_step(&mut self, id: SessionId, step: DialStep) {
        match step {
            DialStep::Wait => {}
            DialStep::Opened { .. } => self.drive(id, Core::on_backend_open),
            DialStep::Failed(failure) => {
                self.drive(id, |core, cx| core.on_backend_closed(BackendClosed::Failed(failure), cx));
            }
        }
    }

    /// Advances the dial, or reads what has arrived, within the budget. `near_end`: the system has reported that the end of
    /// the stream is near.
    pub(super) fn on_backend_ready(&mut self, id: SessionId, near_end: bool) {
        let step = self.connector.advance(id, &mut self.sessions, &mut self.io);
        let is_drained = matches!(step, DialStep::Opened { is_drained: true });
        self.on_dial_step(id, step);
        if is_drained && !near_end {
            return;
        }
        self.connector.begin_read(id, near_end, &mut self.sessions);
        self.read_backend(id);
        self.connector.end_read(id, &mut self.sessions);
    }

    fn read_backend(&mut self, id: SessionId) {
        let mut bytes = 0;
        for _ in 0..MESSAGE_BUDGET {
            if bytes > TEXT_BUDGET {
                break;
            }
            let Some(incoming) = self.connector.read(id, &mut self.sessions) else { return };
            match incoming {
                Incoming::Blocked => {
                    self.sessions.mark_dirty(id);
                    return self.sessions.arm_timer(id, &mut self.io);
                }
                Incoming::OverBudget => break,
                Incoming::Audio(frame) => self.downlink(id, &frame),
                Incoming::Text(text) => {
                    bytes += text.len();
                    self.drive(id, |core, cx| core.on_backend_text(text.as_str(), cx));
                }
                Incoming::Alive => {
                    self.sessions.mark_dirty(id);
                    if let Some(session) = self.sessions.live(id) {
                        session.core.on_backend_activity(self.io.now);
                    }
                }
                Incoming::Gone(closed) => return self.on_backend_closed(id, closed),
            }
        }
        self.sessions.mark_dirty(id);
        self.io.run_queue.push(Task::Backend(id));
    }

    fn on_backend_closed(&mut self, id: SessionId, closed: BackendClosed) {
        // Closing answers the server's Close frame, and lingers until the server has closed the connection.
        let lingers = self.sessions.core(id).is_some_and(|core| core.is_finished());
        match &closed {
            BackendClosed::CloseFrame(..) if lingers => return self.io.run_queue.push(Task::Backend(id)),
            BackendClosed::CloseFrame(..) => self.connector.close(id, 1000, &mut self.sessions, &mut self.io),
            BackendClosed::NoCloseFrame(_) | BackendClosed::Failed(_) => {
                self.connector.drop_connection(id, &mut self.sessions, &mut self.io);
            }
        }
        self.drive(id, |core, cx| core.on_backend_closed(closed, cx));
    }

    /// By their `health_url`s, these chat servers are not well now, and this has changed.
    pub(super) fn on_servers_unwell(&mut self, unwell: HashSet<String>, changes: &[Event]) {
        for change in changes {
            let failed = change.kind == EventKind::ServerFailed;
            self.publish_event(if failed { Level::Warn } else { Level::Info }, change);
        }
        self.at_all_workers(move |worker| worker.servers.set_unwell(unwell));
    }

    /// Closes the WebSocket or the device's connection, whichever buffers more, if the session still exceeds its share of the
    /// memory budget.
    pub(super) fn on_over_budget(&mut self, id: SessionId) {
        if !self.sessions.is_over_budget(id) {
            return;
        }
        let Some(session) = self.sessions.get(id) else { return };
        if session.bytes_for_backend() > session.bytes_for_device() {
            let message = "its buffers take more than its share of the memory".to_owned();
            self.on_backend_closed(
                id,
                BackendClosed::Failed(BackendFailure::new(BackendStage::Live, message)),
            );
        } else {
            self.drive(id, Core::on_memory_limit);
        }
    }
}
