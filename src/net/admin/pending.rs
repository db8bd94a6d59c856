//! Requests that wait for the answer of a device or of other workers.

use crate::admin::answer::Answer;
use crate::admin::dto;
use crate::admin::http::{Method, RequestHead};
use crate::admin::params::{BadParameter, query_number};
use crate::admin::routes::Endpoint;
use crate::net::admin::connection::{ConnectionState, PendingRequest, Progress};
use crate::net::admin::server::AdminServer;
use crate::net::event_loop::io::Io;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::AdminId;
use crate::proto::identity::{ClientId, Mac};

/// Devices on a page, at most and if nothing else is asked for.
const MAX_PAGE_SIZE: usize = 1000;
/// The largest cursor: what JSON's readers take without loss.
const MAX_CURSOR: u64 = (1 << 53) - 1;

/// A call, as any worker can carry it out.
#[derive(Clone)]
pub(crate) struct AdminRequest {
    /// Names the connection that waits.
    pub(crate) request_id: u64,
    pub(crate) endpoint: Endpoint,
    /// The one in the path; else empty.
    pub(crate) client_id: String,
    pub(crate) query: String,
    pub(crate) body: String,
}

/// A worker's answer.
pub(crate) struct AdminResponse {
    pub(crate) request_id: u64,
    pub(crate) worker: usize,
    pub(crate) answer: Answer,
}

impl AdminRequest {
    /// Whose device it is about, as far as that can be told.
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
    /// Has the connection of a request wait for its answer, or for those of `workers` workers.
    pub(crate) fn wait_for_answer(
        &mut self,
        id: AdminId,
        head: &RequestHead,
        request: &AdminRequest,
        workers: usize,
        io: &Io,
    ) {
        let Some(conn) = self.connection_mut(id) else { return };
        let pending = PendingRequest {
            request_id: request.request_id,
            keep_alive: head.keep_alive,
            head_only: head.method == Method::HEAD,
            answers: (0..workers).map(|_| None).collect(),
            endpoint: request.endpoint,
        };
        conn.set_state(ConnectionState::Pending(Box::new(pending)), io.now);
    }

    /// An answer has come. It is dropped when nobody waits for it any more.
    pub(crate) fn on_response(&mut self, reply: AdminResponse, io: &mut Io) {
        let slot = reply.request_id as u32;
        let Some(conn) = self.connections.get_mut(slot as usize) else { return };
        let ConnectionState::Pending(pending) = &mut conn.state else { return };
        if pending.request_id != reply.request_id {
            return;
        }
        let answer = if pending.answers.is_empty() {
            Some(reply.answer)
        } else {
            let Some(place) = pending.answers.get_mut(reply.worker) else { return };
            *place = Some(reply.answer);
            if pending.answers.iter().any(Option::is_none) {
                return;
            }
            Answer::merge(pending.answers.drain(..).flatten(), first_cursor)
        };
        let Some(response) = answer.map(Answer::into_response) else { return };
        let (keep_alive, head_only) = (pending.keep_alive, pending.head_only);
        let id = AdminId { slot, epoch: conn.epoch };
        if let Progress::Continue = self.respond(id, &response, keep_alive, head_only, io) {
            // Not now: a core may be in the middle of its actions.
            io.run_queue.push(Task::Admin(id));
        }
    }
}

/// The cursor and the length of the page that is asked for.
pub(crate) fn parse_page_query(query: &str) -> Result<(u64, usize), BadParameter> {
    let limit = query_number(query, "limit", MAX_PAGE_SIZE as u64, (1, MAX_PAGE_SIZE as u64))?;
    Ok((query_number(query, "after", 0, (0, MAX_CURSOR))?, limit as usize))
}

/// The cursor of a worker's first slot.
pub(crate) fn first_cursor(worker: usize) -> u64 {
    (worker as u64) << 32
}
