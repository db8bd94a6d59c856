//! Requests of the management API about devices of other gateways: what this gateway asks others, and answers to them.
//!
//! The worker of the device says whether the device is here. If not, Redis is asked where it is, and the request goes over the
//! channel of that gateway, which answers it as one of its own clients. A request that has come so is never passed on again.

use std::collections::HashMap;
use std::time::Duration;

use crate::admin::dto;
use crate::admin::error::{ApiError, ErrorStyle};
use crate::admin::requests_between_gateways::{PassedOn, decode_answer, encode_answer};
use crate::admin::response::Response;
use crate::admin::routes::{Endpoint, Reach};
use crate::admin::worker_answer::Answer;
use crate::cluster::{ClusterState, GatewayId, Kind, Location, MAX_PAYLOAD};
use crate::net::admin::request::{AdminRequest, AdminResponse, Answers};
use crate::net::event_loop::io::{Io, TimerKind};
use crate::net::event_loop::token::AdminId;
use crate::net::gateway::Gateway;
use crate::proto::identity::Mac;

/// Requests that wait for Redis or for other gateways; as many may wait for all of them. Those of the API's connections are fewer.
pub(super) const MAX_ASKED: usize = 512;
/// Requests of other gateways that are being answered. More are refused.
const MAX_SERVED: usize = 256;
/// How long another gateway has to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long all gateways have for what they answer together.
const LIST_TIMEOUT: Duration = Duration::from_secs(1);
/// How long they have for a message to many, which they send to some devices at a time.
const MESSAGES_TIMEOUT: Duration = Duration::from_secs(50);
/// How much longer than a device it has when it must wait for one.
const DEVICE_MARGIN: Duration = Duration::from_secs(1);
/// Bytes of an answer in one frame, so that audio between gateways does not wait for a long one.
const PART: usize = 64 << 10;
/// The longest answer, in bytes.
const ANSWER_MAX: usize = 4 << 20;
/// In the ids of requests of other gateways, which no connection waits for.
const SERVED_SLOT: u32 = u32::MAX;

/// Requests on their way between gateways, by the request's id.
#[derive(Default)]
pub(crate) struct GatewayRequests {
    asked: HashMap<u64, Asked>,
    served: HashMap<u64, Served>,
    /// How many were sent to other gateways.
    pub(super) sent: u64,
    /// How many of other gateways were answered.
    pub(super) answered: u64,
}

/// A request that waits for Redis or for another gateway.
struct Asked {
    request: Box<AdminRequest>,
    step: Step,
    /// The answer if the device is connected nowhere.
    otherwise: Response,
}

enum Step {
    /// Where is the device?
    Locate,
    /// Where is the device that is to be called?
    LocateTarget,
    /// This gateway answers. The parts of its answer so far.
    Wait(GatewayId, Vec<u8>),
}

/// A request of another gateway.
struct Served {
    from: GatewayId,
    /// Its id there.
    id: u64,
    request: Box<AdminRequest>,
    answers: Answers,
}

fn is_served(request_id: u64) -> bool {
    request_id as u32 == SERVED_SLOT
}

/// How long another gateway has for it.
pub(crate) fn timeout_of(endpoint: Endpoint, io: &Io) -> Duration {
    match endpoint {
        Endpoint::Messages => MESSAGES_TIMEOUT,
        Endpoint::Disconnect => ANSWER_TIMEOUT,
        _ if matches!(endpoint.reach(), Reach::All | Reach::AnyThatHas) => LIST_TIMEOUT,
        Endpoint::Command | Endpoint::CallRequest | Endpoint::CallAccept => {
            io.config.api.command_timeout + DEVICE_MARGIN
        }
        _ => ANSWER_TIMEOUT,
    }
}

impl Gateway {
    // ----- this gateway asks --------------------------------------------------------------------------------------

    /// An answer of this gateway is complete; what it has no device for is asked of another gateway.
    pub(crate) fn on_own_answer(&mut self, request_id: u64, answer: Answer) {
        let answer = match is_served(request_id) {
            true => Some(answer),
            false => self.gather_own(request_id, answer),
        };
        let Some(answer) = answer else { return };
        if let Answer::AtGateway(gateway) = answer {
            return self.ask_gateway_with_call(request_id, GatewayId(gateway));
        }
        self.tell_denied(request_id, &answer);
        let (step, otherwise) = match answer {
            Answer::NotHere(otherwise) if !is_served(request_id) => (Step::Locate, otherwise),
            Answer::TargetNotHere(otherwise) => (Step::LocateTarget, otherwise),
            answer => return self.finish_request(request_id, answer.into_response()),
        };
        let request = self.original_request(request_id).cloned().map(Box::new);
        let request =
            request.filter(|request| self.cluster.client.is_on() && request.target_gateway.is_none());
        let mac = request.as_ref().and_then(|request| match step {
            Step::LocateTarget => dto::CallRequest::parse(&request.body).ok().map(|request| request.target),
            Step::Locate | Step::Wait(..) => request.device_mac(),
        });
        let (Some(request), Some(mac)) = (request, mac) else {
            return self.finish_request(request_id, otherwise);
        };
        self.ask(Asked { request, step, otherwise }, mac);
    }

    /// The device of the request is connected here, and has its call at another gateway.
    fn ask_gateway_with_call(&mut self, request_id: u64, gateway: GatewayId) {
        let otherwise = Answer::AtGateway(gateway.0).into_response();
        let Some(request) = self.original_request(request_id).cloned().map(Box::new) else { return };
        if self.may_ask(&request) {
            self.pass_request_on(gateway, Asked { request, step: Step::Locate, otherwise });
        }
    }

    /// Asks Redis where the device is.
    fn ask(&mut self, asked: Asked, mac: Mac) {
        let request_id = asked.request.request_id;
        if !self.may_ask(&asked.request) {
            return;
        }
        self.cluster.requests.asked.insert(request_id, asked);
        if self.cluster.client.state() != ClusterState::Connected {
            // No answer of another gateway would arrive.
            return self.on_request_located(request_id, Location::Unknown);
        }
        self.cluster.client.tell(&self.io, |cluster, now| cluster.locate(mac, request_id, now));
    }

    /// Whether one more request may wait, until a timer expires.
    fn may_ask(&mut self, request: &AdminRequest) -> bool {
        let has_room = self.cluster.requests.asked.len() < MAX_ASKED;
        if has_room {
            let at = self.io.now + timeout_of(request.endpoint, &self.io);
            self.io.timers.arm(at, TimerKind::GatewayRequest(request.request_id.to_be_bytes()));
        } else {
            self.refuse(request, 503, "busy", "Too many requests wait for other gateways.");
        }
        has_room
    }

    pub(crate) fn on_request_located(&mut self, request_id: u64, location: Location) {
        let Some(mut asked) = self.cluster.requests.asked.remove(&request_id) else { return };
        match location {
            Location::At(id) if Some(id) != self.cluster.client.id() => {
                if !matches!(asked.step, Step::LocateTarget) {
                    return self.pass_request_on(id, asked);
                }
                asked.request.target_gateway = Some(id.0);
                if let Some(original) = self.original_request(request_id) {
                    original.target_gateway = Some(id.0);
                }
                self.hand_to_workers(*asked.request);
            }
            Location::At(_) | Location::Nowhere => self.finish_request(request_id, asked.otherwise),
            Location::Unknown => self.refuse_unknown(&asked.request),
        }
    }

    fn pass_request_on(&mut self, to: GatewayId, mut asked: Asked) {
        let request = &asked.request;
        let request_id = request.request_id;
        let sound = self.admin.notify_files.of_request(request_id).filter(|_| request.sound.is_some());
        let (endpoint, name, query) = (request.endpoint, request.client_id.clone(), request.query.clone());
        let body = sound.as_deref().unwrap_or(request.body.as_bytes());
        let payload = PassedOn { endpoint, name, query, body }.encode();
        if payload.len() > MAX_PAYLOAD {
            let sentence = format!(
                "The device is connected to another gateway, to which a request may have {} KiB.",
                MAX_PAYLOAD >> 10
            );
            return self.refuse(&asked.request, 413, "body_too_long", sentence);
        }
        self.admin.notify_files.forget(request_id);
        let sent = self.cluster.client.send(to, Kind::Request as u8, request_id, &payload, &self.io);
        if let Err(error) = sent {
            let sentence =
                format!("The device is connected to another gateway, which cannot be asked: {error}.");
            return self.refuse(&asked.request, 503, "unknown", sentence);
        }
        self.cluster.requests.sent += 1;
        asked.step = Step::Wait(to, Vec::new());
        self.cluster.requests.asked.insert(request_id, asked);
    }

    /// A part of an answer, or its rest.
    pub(crate) fn on_answer_of_gateway(
        &mut self,
        from: GatewayId,
        request_id: u64,
        payload: &[u8],
        is_rest: bool,
    ) {
        let Some(asked) = self.cluster.requests.asked.get_mut(&request_id) else {
            return self.on_gathered(from, request_id, payload, is_rest);
        };
        let Step::Wait(gateway, parts) = &mut asked.step else { return };
        if *gateway != from {
            return;
        }
        parts.extend_from_slice(payload);
        let response = if parts.len() > ANSWER_MAX {
            None
        } else if is_rest {
            decode_answer(parts)
        } else {
            return;
        };
        let Some(asked) = self.cluster.requests.asked.remove(&request_id) else { return };
        match response {
            Some(response) => self.finish_request(request_id, response),
            None => {
                let sentence = "The gateway of the device has sent an answer that cannot be read.";
                self.refuse(&asked.request, 503, "bad_answer", sentence);
            }
        }
    }

    /// A request may have waited long enough.
    pub(crate) fn on_gateway_request_timer(&mut self, request_id: u64) {
        self.cluster.requests.served.remove(&request_id);
        self.on_gathering_timer(request_id);
        let Some(asked) = self.cluster.requests.asked.remove(&request_id) else { return };
        let Step::Wait(id, _) = asked.step else { return self.refuse_unknown(&asked.request) };
        let name = self.gateway_name(id);
        let seconds = timeout_of(asked.request.endpoint, &self.io).as_secs();
        let sentence = format!(
            "Gateway {name}, to which the device is connected, has not answered in {seconds} s: what became of the request is not known."
        );
        self.refuse(&asked.request, 504, "gateway_timeout", sentence);
    }

    /// A gateway has ended: its devices are connected nowhere.
    pub(crate) fn on_asked_gateway_gone(&mut self, gone: GatewayId) {
        let of_it = |asked: &Asked| matches!(asked.step, Step::Wait(id, _) if id == gone);
        for (request_id, asked) in self.take_asked(of_it) {
            self.finish_request(request_id, asked.otherwise);
        }
        self.cluster.requests.served.retain(|_, served| served.from != gone);
        self.give_up_gathering(|_, id| id == gone);
    }

    /// Redis is lost, and with it all answers.
    pub(crate) fn on_asked_redis_lost(&mut self) {
        for (_, asked) in self.take_asked(|_| true) {
            self.refuse_unknown(&asked.request);
        }
        self.give_up_gathering(|_, _| true);
    }

    fn take_asked(&mut self, which: impl Fn(&Asked) -> bool) -> Vec<(u64, Asked)> {
        self.cluster.requests.asked.extract_if(|_, asked| which(asked)).collect()
    }

    fn gateway_name(&self, id: GatewayId) -> String {
        let peer = self.cluster.client.peers().find(|peer| peer.id == id);
        peer.map_or_else(|| id.to_string(), |peer| peer.info.name.clone())
    }

    // ----- other gateways ask -------------------------------------------------------------------------------------

    /// Another gateway passes a request on.
    pub(crate) fn on_request_of_gateway(&mut self, from: GatewayId, id: u64, payload: &[u8]) {
        let passed_on = match PassedOn::decode(payload) {
            Ok(passed_on) => passed_on,
            Err(error) => return self.answer_gateway(from, id, &error.response(ErrorStyle::Coded)),
        };
        let style = passed_on.endpoint.error_style();
        if self.cluster.requests.served.len() >= MAX_SERVED {
            let busy =
                ApiError::new(503, "busy", "The gateway of the device answers too many requests already.");
            return self.answer_gateway(from, id, &busy.response(style));
        }
        let PassedOn { endpoint, name, query, body } = passed_on;
        let request_id = self.admin.next_request_id(AdminId { slot: SERVED_SLOT, epoch: 0 });
        let mut request = AdminRequest::new(request_id, endpoint, name, query);
        if let Err(error) = self.take_body(&mut request, body.to_vec()) {
            return self.answer_gateway(from, id, &error.response(style));
        }
        let at = self.io.now + timeout_of(endpoint, &self.io) + DEVICE_MARGIN;
        self.io.timers.arm(at, TimerKind::GatewayRequest(request_id.to_be_bytes()));
        let answers = Answers::of_workers(self.workers_asked(endpoint));
        let served = Served { from, id, request: Box::new(request.clone()), answers };
        self.cluster.requests.served.insert(request_id, served);
        self.hand_to_workers(request);
    }

    fn answer_gateway(&mut self, to: GatewayId, id: u64, response: &Response) {
        self.cluster.requests.answered += 1;
        let bytes = encode_answer(response);
        let mut parts = bytes.chunks(PART).peekable();
        while let Some(part) = parts.next() {
            let kind = if parts.peek().is_some() { Kind::AnswerPart } else { Kind::Answer };
            // Without its answer, that gateway waits until its time is over.
            if self.cluster.client.send(to, kind as u8, id, part, &self.io).is_err() {
                return;
            }
        }
    }

    // ----- both ---------------------------------------------------------------------------------------------------

    /// Adds a worker's answer to those of a request. `None` while others are missing.
    pub(crate) fn collect_answer(&mut self, response: AdminResponse) -> Option<Answer> {
        if !is_served(response.request_id) || matches!(response.answer, Answer::LateCommandResult(_)) {
            return self.admin.collect(response, &self.io);
        }
        self.cluster.requests.served.get_mut(&response.request_id)?.answers.add(response)
    }

    /// The request as it has come, as long as its answer is awaited.
    fn original_request(&mut self, request_id: u64) -> Option<&mut AdminRequest> {
        match is_served(request_id) {
            true => self.cluster.requests.served.get_mut(&request_id).map(|served| &mut *served.request),
            false => self.admin.original_request(request_id),
        }
    }

    /// Sends the response to whoever has asked.
    pub(crate) fn finish_request(&mut self, request_id: u64, response: Response) {
        if !is_served(request_id) {
            return self.admin.finish(request_id, &response, &mut self.io);
        }
        let Some(served) = self.cluster.requests.served.remove(&request_id) else { return };
        if response.status >= 400 {
            self.admin.notify_files.forget(request_id);
        }
        self.answer_gateway(served.from, served.id, &response);
    }

    fn refuse(
        &mut self,
        request: &AdminRequest,
        status: u16,
        code: &'static str,
        sentence: impl Into<String>,
    ) {
        let error = ApiError::new(status, code, sentence.into());
        self.finish_request(request.request_id, error.response(request.endpoint.error_style()));
    }

    fn refuse_unknown(&mut self, request: &AdminRequest) {
        let sentence = "The device is not connected to this gateway, and whether it is to another one is not known: Redis cannot be \
                        used, or has lost its data a moment ago.";
        self.refuse(request, 503, "unknown", sentence);
    }
}
