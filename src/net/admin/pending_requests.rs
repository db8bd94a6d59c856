//! Requests that wait for the answer of a device or of other workers.

use std::time::Duration;

use crate::admin::http::{Method, RequestHead};
use crate::admin::response::Response;
use crate::admin::routes::Endpoint;
use crate::admin::worker_answer::Answer;
use crate::net::admin::connection::{ConnectionState, PendingRequest, Progress, connection_mut};
use crate::net::admin::request::{AdminRequest, AdminResponse, Answers};
use crate::net::admin::server::AdminServer;
use crate::net::event_loop::io::Io;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::AdminId;

/// How much longer than a command a request may wait for its answer.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);
/// How long a message to many may take: that to 10,000 devices takes 4 s.
const BROADCAST_TIMEOUT: Duration = Duration::from_secs(60);

impl AdminServer {
    /// Makes the connection of a request wait for an answer, or for those of `workers` workers when there are several.
    pub(crate) fn wait_for_answer(
        &mut self,
        id: AdminId,
        head: &RequestHead,
        request: &AdminRequest,
        workers: usize,
        io: &Io,
    ) {
        let Some(conn) = connection_mut(&mut self.connections, id) else { return };
        let pending = PendingRequest {
            request: request.clone(),
            keep_alive: head.keep_alive,
            head_only: head.method == Method::HEAD,
            answers: Answers::of_workers(workers),
            // A safeguard: the gateway answers earlier.
            deadline: io.now
                + match request.endpoint {
                    Endpoint::Messages => BROADCAST_TIMEOUT,
                    _ => ANSWER_MARGIN + io.config.api.command_timeout,
                },
        };
        conn.set_state(ConnectionState::Pending(Box::new(pending)), io.now);
    }

    /// Adds an answer to those of its request. `None` while others are missing, or when no connection waits for it any more.
    pub(crate) fn collect(&mut self, response: AdminResponse, io: &Io) -> Option<Answer> {
        if let Answer::LateCommandResult(result) = response.answer {
            self.command_results.insert(response.request_id, result, io.now);
            return None;
        }
        self.pending(response.request_id)?.answers.add(response)
    }

    /// The request that a connection waits for the answer of.
    #[cfg(feature = "cluster")]
    pub(crate) fn original_request(&mut self, request_id: u64) -> Option<&mut AdminRequest> {
        Some(&mut self.pending(request_id)?.request)
    }

    fn pending(&mut self, request_id: u64) -> Option<&mut PendingRequest> {
        match &mut self.connections.get_mut(request_id as u32 as usize)?.state {
            ConnectionState::Pending(pending) if pending.request.request_id == request_id => Some(pending),
            _ => None,
        }
    }

    /// Answers a request. The answer is dropped when no connection waits for it any more.
    pub(crate) fn finish(&mut self, request_id: u64, response: &Response, io: &mut Io) {
        let Some(pending) = self.pending(request_id) else { return };
        let (keep_alive, head_only) = (pending.keep_alive, pending.head_only);
        if pending.request.endpoint == Endpoint::Notify && response.status >= 400 {
            self.notify_files.forget(request_id);
        }
        let slot = request_id as u32;
        let Some(conn) = self.connections.get(slot as usize) else { return };
        let id = AdminId { slot, epoch: conn.epoch };
        if let Progress::Continue = self.respond(id, response, keep_alive, head_only, io) {
            // Written later: the actions of a core may be in progress.
            io.run_queue.push(Task::Admin(id));
        }
    }
}
