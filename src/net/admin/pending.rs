//! Requests that wait for the answer of a device or of other workers.

use std::time::Duration;

use crate::admin::answer::Answer;
use crate::admin::dto;
use crate::admin::http::{Method, RequestHead};
use crate::admin::params::{BadParameter, query_number};
use crate::admin::routes::Endpoint;
use crate::net::admin::connection::{ConnectionState, PendingRequest, Progress, connection_mut};
use crate::net::admin::server::AdminServer;
use crate::net::event_loop::io::Io;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::AdminId;
use crate::proto::identity::{ClientId, Mac};

/// Devices on a page: the maximum and the default.
const MAX_PAGE_SIZE: usize = 1000;
/// How much longer than a command a request may wait for its answer.
const ANSWER_MARGIN: Duration = Duration::from_secs(2);
/// How long a message to many may take: that to 10,000 devices takes 4 s.
const BROADCAST_TIMEOUT: Duration = Duration::from_secs(60);
/// The largest cursor: every JSON parser reads it without loss.
pub(crate) const MAX_CURSOR: u64 = (1 << 53) - 1;

/// A request in a form that any worker can handle.
#[derive(Clone)]
pub(crate) struct AdminRequest {
    /// Identifies the connection that waits for the answer.
    pub(crate) request_id: u64,
    pub(crate) endpoint: Endpoint,
    /// The client id, or another id, in the path; empty without one.
    pub(crate) client_id: String,
    pub(crate) query: String,
    /// Whether the client accepts a body in the format of gzip.
    pub(crate) accepts_gzip: bool,
    /// Empty when the body is a sound.
    pub(crate) body: String,
    pub(crate) sound: Option<KeptSound>,
}

/// A sound that the worker with the management API keeps for a device.
#[derive(Clone)]
pub(crate) struct KeptSound {
    /// Its name in the path.
    pub(crate) id: String,
    /// The port from which the device fetches it.
    pub(crate) port: u16,
    /// In bytes.
    pub(crate) length: usize,
    pub(crate) duration_ms: u64,
}

/// A worker's answer.
pub(crate) struct AdminResponse {
    pub(crate) request_id: u64,
    pub(crate) worker: usize,
    pub(crate) answer: Answer,
}

impl AdminRequest {
    /// The MAC of the device that it concerns, if it is valid.
    pub(crate) fn device_mac(&self) -> Option<Mac> {
        match self.endpoint {
            Endpoint::CallRequest => dto::CallRequest::parse(&self.body).ok().map(|request| request.caller),
            Endpoint::CallAccept | Endpoint::CallHangUp => dto::parse_call_mac(&self.body).ok(),
            _ => {
                let client_id = ClientId::parse(&self.client_id).map(|client_id| client_id.mac());
                client_id.or_else(|_| self.client_id.parse()).ok()
            }
        }
    }
}

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
            request_id: request.request_id,
            keep_alive: head.keep_alive,
            head_only: head.method == Method::HEAD,
            answers: (0..workers).map(|_| None).collect(),
            endpoint: request.endpoint,
            // A safeguard: the gateway answers earlier.
            deadline: io.now
                + match request.endpoint {
                    Endpoint::Messages => BROADCAST_TIMEOUT,
                    _ => ANSWER_MARGIN + io.config.api.command_timeout,
                },
        };
        conn.set_state(ConnectionState::Pending(Box::new(pending)), io.now);
    }

    /// An answer has arrived. It is dropped when no connection waits for it any more.
    pub(crate) fn on_response(&mut self, response: AdminResponse, io: &mut Io) {
        if let Answer::LateCommandResult(result) = response.answer {
            return self.command_results.insert(response.request_id, result, io.now);
        }
        let slot = response.request_id as u32;
        let Some(conn) = self.connections.get_mut(slot as usize) else { return };
        let ConnectionState::Pending(pending) = &mut conn.state else { return };
        if pending.request_id != response.request_id {
            return;
        }
        let answer = if pending.answers.is_empty() {
            Some(response.answer)
        } else {
            let Some(entry) = pending.answers.get_mut(response.worker) else { return };
            *entry = Some(response.answer);
            if pending.answers.iter().any(Option::is_none) {
                return;
            }
            Answer::merge(pending.answers.drain(..).flatten(), first_cursor)
        };
        let Some(response) = answer.map(Answer::into_response) else { return };
        if pending.endpoint == Endpoint::Notify && response.status >= 400 {
            self.notify_files.forget(pending.request_id);
        }
        let (keep_alive, head_only) = (pending.keep_alive, pending.head_only);
        let id = AdminId { slot, epoch: conn.epoch };
        if let Progress::Continue = self.respond(id, &response, keep_alive, head_only, io) {
            // Written later: the actions of a core may be in progress.
            io.run_queue.push(Task::Admin(id));
        }
    }
}

/// The cursor and the length of the requested page.
pub(crate) fn parse_page_query(query: &str) -> Result<(u64, usize), BadParameter> {
    let limit = query_number(query, "limit", MAX_PAGE_SIZE as u64, (1, MAX_PAGE_SIZE as u64))?;
    Ok((query_number(query, "after", 0, (0, MAX_CURSOR))?, limit as usize))
}

/// The cursor of a worker's first slot.
pub(crate) fn first_cursor(worker: usize) -> u64 {
    (worker as u64) << 32
}
