//! Requests that wait for the answer of a device or of other workers.

use crate::admin::error::ApiError;
use crate::admin::http::{Method, RequestHead, Response};
use crate::admin::params::{BadParameter, query_number};
use crate::admin::routes::Endpoint;
use crate::admin::{aggregate, dto};
use crate::net::admin::connection::ConnectionState;
use crate::net::admin::server::{AdminServer, Progress};
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
    pub(crate) response: Response,
}

/// What a connection waits for.
pub(crate) struct PendingRequest {
    pub(crate) request_id: u64,
    pub(crate) keep_alive: bool,
    pub(crate) head_only: bool,
    /// What each worker said; nobody is waited for when empty.
    pub(crate) worker_responses: Vec<Option<Response>>,
    pub(crate) endpoint: Endpoint,
    pub(crate) query: String,
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
            head_only: head.method == Method::Head,
            worker_responses: vec![None; workers],
            endpoint: request.endpoint,
            query: head.query.clone(),
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
        let response = match pending.worker_responses.get_mut(reply.worker) {
            None => reply.response,
            Some(part) => {
                *part = Some(reply.response);
                let parts = pending.worker_responses.iter().map(Option::as_ref);
                let Some(parts) = parts.collect::<Option<Vec<_>>>() else { return };
                aggregate_responses(pending.endpoint, &pending.query, &parts)
            }
        };
        let (keep_alive, head_only) = (pending.keep_alive, pending.head_only);
        let id = AdminId { slot, epoch: conn.epoch };
        if let Progress::Continue = self.respond(id, &response, keep_alive, head_only, io) {
            // Not now: a core may be in the middle of its actions.
            io.run_queue.push(Task::Admin(id));
        }
    }
}

/// One answer out of all workers'.
fn aggregate_responses(endpoint: Endpoint, query: &str, parts: &[&Response]) -> Response {
    let internal = |why| ApiError::new(500, "internal", why).response(endpoint.error_style());
    let Some(first) = parts.first() else { return internal("Nobody answered.") };
    // What one refuses, all do.
    if let Some(refusal) = parts.iter().find(|part| part.status != 200) {
        return (*refusal).clone();
    }
    let bodies: Vec<&[u8]> = parts.iter().map(|part| &part.body[..]).collect();
    let body = match endpoint {
        Endpoint::Metrics => {
            let texts: Result<Vec<&str>, _> = bodies.iter().map(|body| std::str::from_utf8(body)).collect();
            texts.ok().map(|texts| aggregate::metrics(&texts))
        }
        Endpoint::Sessions => parse_page_query(query)
            .ok()
            .and_then(|(_, limit)| aggregate::sessions(&bodies, limit, first_cursor)),
        _ => aggregate::devices_status(&bodies),
    };
    match body {
        Some(body) => Response { body: body.into_bytes(), ..(*first).clone() },
        None => internal("The workers' answers do not fit together."),
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
