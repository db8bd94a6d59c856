//! Requests that all gateways answer together, and ids that any of them may know.
//!
//! All are asked at once. After a second, the answer is made of what there is, and names those that have not answered.

use std::collections::BTreeMap;

use crate::admin::gateway_answers::{GatewayAnswer, join, unknown};
use crate::admin::requests_between_gateways::{PassedOn, decode_answer};
use crate::admin::response::Response;
use crate::admin::routes::{Endpoint, Reach};
use crate::admin::worker_answer::Answer;
use crate::cluster::{ClusterState, GatewayId, Kind};
use crate::net::admin::list_selection::Selection;
use crate::net::admin::request::AdminRequest;
use crate::net::event_loop::io::TimerKind;
use crate::net::gateway::Gateway;
use crate::net::gateway::cluster::requests::{MAX_ASKED, timeout_of};

/// Devices of each other gateway on a page.
const OTHER_PAGE: usize = 200;
/// Bytes of all answers to one request. Those that come later are missing.
const GATHERED_MAX: usize = 16 << 20;

/// A request that waits for the answers of gateways.
pub(crate) struct Gathering {
    endpoint: Endpoint,
    /// Items on a page.
    limit: usize,
    /// Whether this gateway answers too.
    with_own: bool,
    own: Option<Response>,
    others: BTreeMap<GatewayId, Other>,
    redis_unreachable: bool,
    /// Bytes of the answers.
    bytes: usize,
}

struct Other {
    name: String,
    parts: Vec<u8>,
    response: Option<Response>,
    /// Nothing more is expected.
    done: bool,
}

impl Gathering {
    fn is_complete(&self) -> bool {
        let found = self.endpoint.reach() == Reach::AnyThatHas && self.found().is_some();
        found || (self.own.is_some() || !self.with_own) && self.others.values().all(|other| other.done)
    }

    fn found(&self) -> Option<&Response> {
        let responses = self.others.values().filter_map(|other| other.response.as_ref());
        responses.into_iter().find(|response| response.status == 200)
    }

    /// Those that have not answered will not.
    fn give_up(&mut self, which: impl Fn(GatewayId) -> bool) {
        self.others.iter_mut().filter(|(id, _)| which(**id)).for_each(|(_, other)| other.done = true);
    }

    fn into_response(self, own_name: String, own_run: GatewayId) -> Response {
        if self.endpoint.reach() == Reach::AnyThatHas {
            let missing = self.others.values().filter(|other| other.response.is_none());
            let unanswered: Vec<String> = missing.map(|other| other.name.clone()).collect();
            let is_unknown = self.redis_unreachable || !unanswered.is_empty();
            return match (self.found().cloned(), self.own) {
                (Some(found), _) => found,
                (None, Some(own)) if !is_unknown => own,
                _ => unknown(&unanswered, self.redis_unreachable).response(self.endpoint.error_style()),
            };
        }
        let mut answers: BTreeMap<GatewayId, GatewayAnswer> = self
            .others
            .into_iter()
            .map(|(id, Other { name, response, .. })| {
                (id, GatewayAnswer { name, run: id.to_string(), response })
            })
            .collect();
        if self.with_own {
            let answer = GatewayAnswer { name: own_name, run: own_run.to_string(), response: self.own };
            answers.insert(own_run, answer);
        }
        join(self.endpoint, self.limit, answers.into_values().collect(), self.redis_unreachable)
    }
}

impl Gateway {
    /// Asks the other gateways what all answer together. Whether this gateway is to answer, and whether others are.
    pub(crate) fn ask_all_gateways(&mut self, request: &AdminRequest, selection: &Selection) -> (bool, bool) {
        let own_name = self.cluster.client.name().unwrap_or_default();
        let with_own = selection.contains(&own_name, true);
        if !self.cluster.client.is_on() {
            return (with_own, false);
        }
        let peers = self.cluster.client.peers().filter(|peer| selection.contains(&peer.info.name, false));
        let others: Vec<_> = peers.map(|peer| (peer.id, peer.info.name.clone())).collect();
        let with_others = !others.is_empty();
        if with_own || with_others {
            self.gather(request, with_own, selection, others);
        }
        (with_own, with_others)
    }

    /// Identifies this run of the gateway.
    pub(crate) fn own_run(&self) -> u64 {
        self.cluster.client.id().map_or(0, |GatewayId(run)| run)
    }

    fn gather(
        &mut self,
        request: &AdminRequest,
        with_own: bool,
        selection: &Selection,
        others: Vec<(GatewayId, String)>,
    ) {
        let is_connected = self.cluster.client.state() == ClusterState::Connected;
        let mut gathering = Gathering {
            endpoint: request.endpoint,
            limit: selection.limit,
            with_own,
            own: None,
            others: BTreeMap::new(),
            redis_unreachable: selection.is_all() && !is_connected,
            bytes: 0,
        };
        for (id, name) in others {
            let query = match request.endpoint {
                Endpoint::Sessions => {
                    selection.page_of(id.0, self.own_run(), selection.limit.min(OTHER_PAGE))
                }
                _ => request.query.clone(),
            };
            let (endpoint, name_in_path) = (request.endpoint, request.client_id.clone());
            let payload =
                PassedOn { endpoint, name: name_in_path, query, body: request.body.as_bytes() }.encode();
            let kind = Kind::Request as u8;
            let asked = is_connected
                && self.cluster.gatherings.len() < MAX_ASKED
                && self.cluster.client.send(id, kind, request.request_id, &payload, &self.io).is_ok();
            self.cluster.requests.sent += u64::from(asked);
            let other = Other { name, parts: Vec::new(), response: None, done: !asked };
            gathering.others.insert(id, other);
        }
        let at = self.io.now + timeout_of(request.endpoint, &self.io);
        self.io.timers.arm(at, TimerKind::GatewayRequest(request.request_id.to_be_bytes()));
        self.cluster.gatherings.insert(request.request_id, gathering);
        self.finish_gathering(request.request_id);
    }

    /// This gateway's answer, if other gateways are asked too. Gives it back if they are not.
    pub(crate) fn gather_own(&mut self, request_id: u64, answer: Answer) -> Option<Answer> {
        if let Some(gathering) = self.cluster.gatherings.get_mut(&request_id) {
            gathering.own = Some(answer.into_response());
            self.finish_gathering(request_id);
            return None;
        }
        let response = match answer {
            Answer::Response(response) if matches!(response.status, 404 | 409) => response,
            answer => return Some(answer),
        };
        let request = self.admin.original_request(request_id).cloned();
        let request = request
            .filter(|request| request.endpoint.reach() == Reach::AnyThatHas && self.cluster.client.is_on());
        let Some(request) = request else { return Some(Answer::Response(response)) };
        // Another one may have what has this id.
        let others: Vec<_> =
            self.cluster.client.peers().map(|peer| (peer.id, peer.info.name.clone())).collect();
        self.gather(&request, true, &Selection::default(), others);
        self.gather_own(request_id, Answer::Response(response))
    }

    /// A part of the answer of another gateway, or its rest.
    pub(crate) fn on_gathered(&mut self, from: GatewayId, request_id: u64, payload: &[u8], is_rest: bool) {
        let Some(gathering) = self.cluster.gatherings.get_mut(&request_id) else { return };
        let Some(other) = gathering.others.get_mut(&from).filter(|other| !other.done) else { return };
        gathering.bytes += payload.len();
        other.parts.extend_from_slice(payload);
        if is_rest || gathering.bytes > GATHERED_MAX {
            let parts = std::mem::take(&mut other.parts);
            (other.response, other.done) = (decode_answer(&parts).filter(|_| is_rest), true);
        }
        self.finish_gathering(request_id);
    }

    /// These gateways will not answer.
    pub(crate) fn give_up_gathering(&mut self, which: impl Fn(u64, GatewayId) -> bool) {
        let ids: Vec<u64> = self.cluster.gatherings.keys().copied().collect();
        for request_id in ids {
            if let Some(gathering) = self.cluster.gatherings.get_mut(&request_id) {
                gathering.give_up(|id| which(request_id, id));
            }
            self.finish_gathering(request_id);
        }
    }

    /// The time for the other gateways is over.
    pub(crate) fn on_gathering_timer(&mut self, request_id: u64) {
        self.give_up_gathering(|of, _| of == request_id);
        // Nobody waits any longer than that for this gateway.
        if self.cluster.gatherings.contains_key(&request_id)
            && self.admin.original_request(request_id).is_none()
        {
            self.cluster.gatherings.remove(&request_id);
        } else if self.cluster.gatherings.contains_key(&request_id) {
            let again = self.io.now + timeout_of(Endpoint::Sessions, &self.io);
            self.io.timers.arm(again, TimerKind::GatewayRequest(request_id.to_be_bytes()));
        }
    }

    /// Answers the request if everything is there.
    fn finish_gathering(&mut self, request_id: u64) {
        if !self.cluster.gatherings.get(&request_id).is_some_and(Gathering::is_complete) {
            return;
        }
        let Some(gathering) = self.cluster.gatherings.remove(&request_id) else { return };
        let own_name = self.cluster.client.name().unwrap_or_default();
        let own_run = self.cluster.client.id().unwrap_or(GatewayId(0));
        self.finish_request(request_id, gathering.into_response(own_name, own_run));
    }
}
