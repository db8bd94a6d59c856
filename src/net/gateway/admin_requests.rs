//! Routes requests of the management API to the workers that answer them, and their answers to the connections that wait.

use crate::admin::error::{ApiError, MAX_BODY_BYTES, RequestError};
use crate::admin::http::{Method, RequestHead};
use crate::admin::response::Response;
use crate::admin::routes::{self, Endpoint, Reach, RouteMatch, Scope};
use crate::admin::worker_answer::Answer;
use crate::net::admin::connection::{Progress, ReceivedRequest};
use crate::net::admin::list_selection::Selection;
use crate::net::admin::request::{AdminRequest, AdminResponse};
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::AdminId;
use crate::net::gateway::Gateway;
use crate::net::gateway::notify_requests::no_sound;
use crate::proto::ogg_opus::CAPTURE_PATTERN;

/// Reads, writes and requests per dispatch and connection: enough for one request; pipelined ones wait for the next dispatch.
const STEP_BUDGET: usize = 4;

impl Gateway {
    /// Reads, answers and writes as far as the socket allows, within the budget. May be called at any time.
    pub(super) fn drive_admin(&mut self, id: AdminId) {
        for _ in 0..STEP_BUDGET {
            match self.admin.advance(id, self.mqtt.certificate.as_ref(), &self.events, &mut self.io) {
                Progress::Continue => {}
                Progress::Wait => return self.admin.arm_timer(id, &mut self.io),
                Progress::Close => return self.admin.close(id),
                Progress::Request(request) => {
                    let ReceivedRequest { head, body } = *request;
                    self.dispatch_request(id, &head, body);
                }
            }
        }
        self.io.run_queue.push(Task::Admin(id));
        self.admin.arm_timer(id, &mut self.io);
    }

    pub(super) fn on_admin_timer(&mut self, id: AdminId, tick: u64) {
        if self.admin.on_timer(id, tick, &mut self.io) {
            self.drive_admin(id);
        }
    }

    /// Answers a request, or passes it on and makes its connection wait for the answer.
    fn dispatch_request(&mut self, id: AdminId, head: &RequestHead, body: Vec<u8>) {
        let (endpoint, client_id) = match routes::match_route(&head.method, &head.path) {
            RouteMatch::Found(endpoint, client_id) => (endpoint, client_id.unwrap_or_default().into_owned()),
            refused => {
                let Some(error) = refused.error_response() else { return };
                return self.respond(id, head, &error.response(routes::error_style(&head.path)));
            }
        };
        if endpoint == Endpoint::Events {
            return self.start_event_stream(id, head);
        }
        let request_id = self.admin.next_request_id(id);
        let mut request = AdminRequest::new(request_id, endpoint, client_id, head.query.clone());
        request.accepts_gzip = head.accepts_gzip;
        if let Err(error) = self.take_body(&mut request, body) {
            return self.respond(id, head, &error.response(endpoint.error_style()));
        }
        let workers = self.workers_asked(endpoint);
        self.admin.wait_for_answer(id, head, &request, workers, &self.io);
        if endpoint.reach() == Reach::All {
            match self.ask_gateways(&mut request) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let response = error.response(endpoint.error_style());
                    return self.admin.finish(request.request_id, &response, &mut self.io);
                }
            }
        }
        self.hand_to_workers(request);
    }

    /// Asks the gateways that the query selects. Whether this one is one of them.
    fn ask_gateways(&mut self, request: &mut AdminRequest) -> Result<bool, ApiError> {
        let selection = Selection::parse(request.endpoint, &request.query)
            .map_err(|bad| ApiError::new(400, "bad_parameter", format!("{bad}.")))?;
        let (with_own, with_others) = self.ask_all_gateways(request, &selection);
        if !with_own && !with_others {
            let sentence = "No gateway of this name is known; GET /api/gateways lists them.";
            return Err(ApiError::new(404, "no_such_gateway", sentence));
        }
        if request.endpoint == Endpoint::Sessions {
            request.query = selection.page_of(self.own_run(), self.own_run(), selection.limit);
        }
        Ok(with_own)
    }

    /// How many workers answer such a request together; 0 for any one of them.
    pub(super) fn workers_asked(&self, endpoint: Endpoint) -> usize {
        if endpoint.scope() == Scope::AllWorkers { self.workers.len() } else { 0 }
    }

    /// Gives a request to the workers that answer it, this one or others.
    pub(super) fn hand_to_workers(&mut self, request: AdminRequest) {
        match (request.endpoint.scope(), request.device_mac()) {
            (Scope::AllWorkers, _) => self.at_all_workers(move |worker| worker.run_admin_request(&request)),
            (Scope::DeviceWorker, Some(mac)) => {
                self.at_worker_of(mac, move |worker| worker.run_admin_request(&request));
            }
            _ => self.run_admin_request(&request),
        }
    }

    /// Adds the body to the request: text, or a sound for a device, which begins as no text in JSON does.
    pub(super) fn take_body(&mut self, request: &mut AdminRequest, body: Vec<u8>) -> Result<(), ApiError> {
        if request.endpoint == Endpoint::Notify && body.starts_with(CAPTURE_PATTERN) {
            return self.keep_sound(request, body);
        }
        let is_short = body.len() <= MAX_BODY_BYTES;
        request.body = match String::from_utf8(body) {
            // Also of a long one: most likely it is a sound in another format.
            Err(_) if request.endpoint == Endpoint::Notify => return Err(no_sound()),
            _ if !is_short => return Err(RequestError::BodyTooLong.error()),
            Err(_) => return Err(ApiError::new(400, "bad_json", "The body is not UTF-8.")),
            Ok(text) => text,
        };
        Ok(())
    }

    fn respond(&mut self, id: AdminId, head: &RequestHead, response: &Response) {
        let head_only = head.method == Method::HEAD;
        self.admin.respond(id, response, head.keep_alive, head_only, &mut self.io);
    }

    /// Handles a request, which the leader has passed on if this is another worker.
    fn run_admin_request(&mut self, request: &AdminRequest) {
        if let Some(answer) = self.handle_admin_request(request) {
            self.send_admin_response(request.request_id, answer);
        }
    }

    pub(super) fn send_admin_response(&mut self, request_id: u64, answer: Answer) {
        let response = AdminResponse { request_id, worker: self.workers.index(), answer };
        self.at_leader(move |leader| leader.on_admin_response(response));
    }

    /// A worker has answered.
    fn on_admin_response(&mut self, response: AdminResponse) {
        let request_id = response.request_id;
        if let Some(answer) = self.collect_answer(response) {
            self.on_own_answer(request_id, answer);
        }
    }
}
