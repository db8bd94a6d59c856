//! Calls on their way: answered here, by a device, or by other workers.

use super::connection::ConnectionState;
use super::handlers::{first_cursor, parse_page_query};
use super::{ConnId, Progress};
use crate::admin::error::ApiError;
use crate::admin::http::{Method, RequestHead, Response};
use crate::admin::routes::{self, Endpoint, RouteMatch, Scope};
use crate::admin::{aggregate, dto};
use crate::net::event_loop::run_queue::Task;
use crate::net::gateway::Gateway;
use crate::net::gateway::handle::Command;
use crate::proto::identity::{ClientId, Mac};

/// A call, as any worker can carry it out.
#[derive(Clone)]
pub(in crate::net) struct AdminRequest {
    /// Names the connection that waits.
    pub(super) request_id: u64,
    pub(super) endpoint: Endpoint,
    /// The one in the path; else empty.
    pub(super) client_id: String,
    pub(super) query: String,
    pub(super) body: String,
}

/// A worker's answer.
pub(in crate::net) struct AdminResponse {
    request_id: u64,
    worker: usize,
    response: Response,
}

/// What a connection waits for.
pub(super) struct PendingRequest {
    pub(super) request_id: u64,
    pub(super) keep_alive: bool,
    pub(super) head_only: bool,
    /// What each worker said; nobody is waited for when empty.
    worker_responses: Vec<Option<Response>>,
    pub(super) endpoint: Endpoint,
    query: String,
}

impl AdminRequest {
    /// Whose device it is about, as far as that can be told.
    fn device_mac(&self) -> Option<Mac> {
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

impl Gateway {
    /// Answers a call, or sees to it that it will be.
    pub(super) fn dispatch_request(&mut self, id: ConnId, head: &RequestHead, body: &[u8]) -> Progress {
        let head_only = head.method == Method::HEAD;
        let found = routes::match_route(&head.method, &head.path);
        if let Some(refusal) = found.error_response() {
            let response = refusal.response(routes::error_style(&head.path));
            return self.respond(id, &response, head.keep_alive, head_only);
        }
        let RouteMatch::Found(endpoint, client_id) = found else { return Progress::Wait };
        let Ok(body) = std::str::from_utf8(body) else {
            let refusal = ApiError::new(400, "bad_json", "The body is not UTF-8.");
            return self.respond(id, &refusal.response(endpoint.error_style()), head.keep_alive, head_only);
        };
        let request = AdminRequest {
            request_id: self.admin.next_request_id(id),
            endpoint,
            client_id: client_id.unwrap_or_default().into_owned(),
            query: head.query.clone(),
            body: body.to_owned(),
        };
        let now = self.now;
        let worker_count = match endpoint.scope() {
            Scope::AllWorkers => self.workers.len(),
            Scope::AnyWorker | Scope::DeviceWorker => 0,
        };
        let Some(conn) = self.admin.connection_mut(id) else { return Progress::Wait };
        let pending = PendingRequest {
            request_id: request.request_id,
            keep_alive: head.keep_alive,
            head_only,
            worker_responses: vec![None; worker_count],
            endpoint,
            query: head.query.clone(),
        };
        conn.set_state(ConnectionState::Pending(Box::new(pending)), now);
        let owner = match endpoint.scope() {
            Scope::DeviceWorker => request.device_mac().and_then(|mac| self.workers.other_worker_of(mac)),
            Scope::AnyWorker | Scope::AllWorkers => None,
        };
        if let Some(owner) = owner {
            self.workers.send(owner, Command::Errand(Box::new(request)));
            return Progress::Continue;
        }
        if worker_count > 0 {
            self.workers.broadcast(|| Command::Errand(Box::new(request.clone())));
        }
        match self.handle_admin_request(&request) {
            Some(response) if worker_count == 0 => self.respond(id, &response, head.keep_alive, head_only),
            Some(response) => {
                self.send_admin_response(request.request_id, response);
                Progress::Continue
            }
            None => Progress::Continue,
        }
    }

    /// Carries a call out for a connection of the leader's.
    pub(in crate::net) fn run_admin_request(&mut self, request: &AdminRequest) {
        if let Some(response) = self.handle_admin_request(request) {
            self.send_admin_response(request.request_id, response);
        }
    }

    pub(super) fn send_admin_response(&mut self, request_id: u64, response: Response) {
        let reply = AdminResponse { request_id, worker: self.workers.index(), response };
        match self.workers.is_leader() {
            true => self.on_admin_response(reply),
            false => self.workers.send(0, Command::Reply(Box::new(reply))),
        }
    }

    /// An answer is there; it is dropped when nobody waits for it any more.
    pub(in crate::net) fn on_admin_response(&mut self, reply: AdminResponse) {
        let slot = reply.request_id as u32;
        let Some(conn) = self.admin.connections.get_mut(slot as usize) else { return };
        let ConnectionState::Pending(pending) = &mut conn.state else { return };
        if pending.request_id != reply.request_id {
            return;
        }
        let response = match pending.worker_responses.get_mut(reply.worker) {
            None => reply.response,
            Some(part) => {
                *part = Some(reply.response);
                let Some(parts) =
                    pending.worker_responses.iter().map(Option::as_ref).collect::<Option<Vec<_>>>()
                else {
                    return;
                };
                aggregate_responses(pending.endpoint, &pending.query, &parts)
            }
        };
        let (keep_alive, head_only) = (pending.keep_alive, pending.head_only);
        let id = ConnId { slot, epoch: conn.epoch };
        if let Progress::Continue = self.respond(id, &response, keep_alive, head_only) {
            // Not now: a core may be in the middle of its actions.
            self.run_queue.push(Task::Admin(id));
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
