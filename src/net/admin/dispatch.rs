//! Calls on their way: answered here, by a device, or by other workers.

use super::connection::Stage;
use super::handlers::{page_asked_for, page_start};
use super::{ConnId, Next};
use crate::admin::error::ApiError;
use crate::admin::http::{Head, Method, Response};
use crate::admin::routes::{self, Endpoint, Found, Scope};
use crate::admin::{aggregate, dto};
use crate::net::gateway::Gateway;
use crate::net::handle::Command;
use crate::net::run_queue::Ready;
use crate::proto::identity::{ClientId, Mac};

/// A call, as any worker can carry it out.
#[derive(Clone)]
pub(in crate::net) struct Errand {
    /// Names the connection that waits.
    pub(super) ticket: u64,
    pub(super) endpoint: Endpoint,
    /// The one in the path; else empty.
    pub(super) client_id: String,
    pub(super) query: String,
    pub(super) body: String,
}

/// A worker's answer.
pub(in crate::net) struct Reply {
    ticket: u64,
    worker: usize,
    response: Response,
}

/// What a connection waits for.
pub(super) struct Asking {
    pub(super) ticket: u64,
    pub(super) keep_alive: bool,
    pub(super) to_head: bool,
    /// What each worker said; nobody is waited for when empty.
    parts: Vec<Option<Response>>,
    pub(super) endpoint: Endpoint,
    query: String,
}

impl Errand {
    /// Whose device it is about, as far as that can be told.
    fn mac(&self) -> Option<Mac> {
        match self.endpoint {
            Endpoint::CallRequest => dto::CallRequest::parse(&self.body).ok().map(|request| request.caller),
            Endpoint::CallAccept | Endpoint::CallHangUp => dto::call_mac(&self.body).ok(),
            _ => {
                let client_id = ClientId::parse(&self.client_id).map(|client_id| client_id.mac());
                client_id.or_else(|_| self.client_id.parse()).ok()
            }
        }
    }
}

impl Gateway {
    /// Answers a call, or sees to it that it will be.
    pub(super) fn answer(&mut self, id: ConnId, head: &Head, body: &[u8]) -> Next {
        let to_head = head.method == Method::Head;
        let found = routes::find(head.method, &head.path);
        if let Some(refusal) = found.refusal() {
            let response = refusal.response(routes::error_style(&head.path));
            return self.respond(id, &response, head.keep_alive, to_head);
        }
        let Found::Call(endpoint, client_id) = found else { return Next::Wait };
        let Ok(body) = std::str::from_utf8(body) else {
            let refusal = ApiError::new(400, "bad_json", "The body is not UTF-8.");
            return self.respond(id, &refusal.response(endpoint.error_style()), head.keep_alive, to_head);
        };
        let errand = Errand {
            ticket: self.admin.ticket(id),
            endpoint,
            client_id: client_id.unwrap_or_default().into_owned(),
            query: head.query.clone(),
            body: body.to_owned(),
        };
        let now = self.now;
        let everyone = match endpoint.scope() {
            Scope::Everyone => self.team.len(),
            Scope::Gateway | Scope::Device => 0,
        };
        let Some(conn) = self.admin.live(id) else { return Next::Wait };
        let asking = Asking {
            ticket: errand.ticket,
            keep_alive: head.keep_alive,
            to_head,
            parts: vec![None; everyone],
            endpoint,
            query: head.query.clone(),
        };
        conn.enter(Stage::Asking(Box::new(asking)), now);
        let home = match endpoint.scope() {
            Scope::Device => errand.mac().and_then(|mac| self.team.elsewhere(mac)),
            Scope::Gateway | Scope::Everyone => None,
        };
        if let Some(home) = home {
            self.team.send(home, Command::Errand(Box::new(errand)));
            return Next::Again;
        }
        if everyone > 0 {
            self.team.tell(|| Command::Errand(Box::new(errand.clone())));
        }
        match self.serve_errand(&errand) {
            Some(response) if everyone == 0 => self.respond(id, &response, head.keep_alive, to_head),
            Some(response) => {
                self.send_reply(errand.ticket, response);
                Next::Again
            }
            None => Next::Again,
        }
    }

    /// Carries a call out for a connection of the leader's.
    pub(in crate::net) fn run_errand(&mut self, errand: &Errand) {
        if let Some(response) = self.serve_errand(errand) {
            self.send_reply(errand.ticket, response);
        }
    }

    pub(super) fn send_reply(&mut self, ticket: u64, response: Response) {
        let reply = Reply { ticket, worker: self.team.me(), response };
        match self.team.leads() {
            true => self.reply(reply),
            false => self.team.send(0, Command::Reply(Box::new(reply))),
        }
    }

    /// An answer is there; it is dropped when nobody waits for it any more.
    pub(in crate::net) fn reply(&mut self, reply: Reply) {
        let slot = reply.ticket as u32;
        let Some(conn) = self.admin.conns.get_mut(slot as usize) else { return };
        let Stage::Asking(asking) = &mut conn.stage else { return };
        if asking.ticket != reply.ticket {
            return;
        }
        let response = match asking.parts.get_mut(reply.worker) {
            None => reply.response,
            Some(part) => {
                *part = Some(reply.response);
                let Some(parts) = asking.parts.iter().map(Option::as_ref).collect::<Option<Vec<_>>>() else {
                    return;
                };
                joined(asking.endpoint, &asking.query, &parts)
            }
        };
        let (keep_alive, to_head) = (asking.keep_alive, asking.to_head);
        let id = ConnId { slot, epoch: conn.epoch };
        if let Next::Again = self.respond(id, &response, keep_alive, to_head) {
            // Not now: a core may be in the middle of its actions.
            self.ready.push(Ready::Admin(id));
        }
    }
}

/// One answer out of all workers'.
fn joined(endpoint: Endpoint, query: &str, parts: &[&Response]) -> Response {
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
        Endpoint::Sessions => {
            page_asked_for(query).ok().and_then(|(_, limit)| aggregate::sessions(&bodies, limit, page_start))
        }
        _ => aggregate::devices_status(&bodies),
    };
    match body {
        Some(body) => Response { body: body.into_bytes(), ..(*first).clone() },
        None => internal("The workers' answers do not fit together."),
    }
}
