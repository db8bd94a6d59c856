//! Requests that all gateways answer together, and ids that any of them may know.
//!
//! All are asked at once. After a second, the answer is made of what there is, and names those that have not answered.

use std::collections::BTreeMap;

use crate::admin::answer::Answer;
use crate::admin::error::ApiError;
use crate::admin::gateway_answers::{GatewayAnswer, join, unknown};
use crate::admin::params::{BadParameter, query_number, query_value};
use crate::admin::passed_on::{PassedOn, decode_answer};
use crate::admin::response::Response;
use crate::admin::routes::{Endpoint, Reach};
use crate::cluster::{ClusterState, GatewayId, Kind};
use crate::net::admin::request::{AdminRequest, MAX_CURSOR, parse_page_query};
use crate::net::event_loop::io::TimerKind;
use crate::net::gateway::Gateway;
use crate::net::gateway::admin_handlers::bad_parameter;
use crate::net::gateway::far_requests::{MAX_ASKED, timeout_of};

/// Devices of each other gateway on a page.
const FAR_PAGE: usize = 200;
/// Calls on a page, as `GET /api/calls` says.
const CALLS_PAGE: (u64, u64) = (100, 1000);
/// Bytes of all answers to one request. Those that come later are missing.
const GATHERED_MAX: usize = 16 << 20;
/// In `?gateway=`, the gateway that is asked.
const SELF: &str = "self";

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
    /// Asks the other gateways what all answer together. Whether this gateway is to answer too.
    pub(super) fn ask_all_gateways(&mut self, request: &mut AdminRequest) -> bool {
        let Some(own) = self.cluster.client.id().filter(|_| request.endpoint.reach() == Reach::All) else {
            return true;
        };
        let wanted = match Wanted::parse(request) {
            Ok(wanted) => wanted,
            Err(bad) => {
                self.finish_request(request.request_id, bad_parameter(&bad));
                return false;
            }
        };
        let own_name = self.cluster.client.name();
        let name = wanted.gateway.clone();
        let with_own = name.is_none() || name.as_deref() == Some(SELF) || name == own_name;
        let is_other = |other: &str| name.as_deref().is_none_or(|name| name != SELF && name == other);
        let peers = self.cluster.client.peers().filter(|peer| is_other(&peer.info.name));
        let others: Vec<_> = peers.map(|peer| (peer.id, peer.info.name.clone())).collect();
        if !with_own && others.is_empty() {
            let error = ApiError::new(
                404,
                "no_such_gateway",
                "No gateway of this name is known; GET /api/gateways lists them.",
            );
            self.finish_request(request.request_id, error.response(request.endpoint.error_style()));
            return false;
        }
        // What one other gateway may have, another one that is not known may not.
        let asks_all = name.is_none();
        self.gather(request, with_own, asks_all, &wanted, others);
        if request.endpoint == Endpoint::Sessions {
            request.query = wanted.page_of(own, wanted.limit);
        }
        with_own
    }

    fn gather(
        &mut self,
        request: &AdminRequest,
        with_own: bool,
        asks_all: bool,
        wanted: &Wanted,
        others: Vec<(GatewayId, String)>,
    ) {
        let is_connected = self.cluster.client.state() == ClusterState::Connected;
        let mut gathering = Gathering {
            endpoint: request.endpoint,
            limit: wanted.limit,
            with_own,
            own: None,
            others: BTreeMap::new(),
            redis_unreachable: asks_all && !is_connected,
            bytes: 0,
        };
        for (id, name) in others {
            let query = match request.endpoint {
                Endpoint::Sessions => wanted.page_of(id, wanted.limit.min(FAR_PAGE)),
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
        self.io.timers.arm(at, TimerKind::FarRequest(request.request_id));
        self.cluster.gatherings.insert(request.request_id, gathering);
        self.finish_gathering(request.request_id);
    }

    /// This gateway's answer, if other gateways are asked too. Gives it back if they are not.
    pub(super) fn gather_own(&mut self, request_id: u64, answer: Answer) -> Option<Answer> {
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
        self.gather(&request, true, true, &Wanted::default(), others);
        self.gather_own(request_id, Answer::Response(response))
    }

    /// A part of the answer of another gateway, or its rest.
    pub(super) fn on_gathered(&mut self, from: GatewayId, request_id: u64, payload: &[u8], is_rest: bool) {
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
    pub(super) fn give_up_gathering(&mut self, which: impl Fn(u64, GatewayId) -> bool) {
        let ids: Vec<u64> = self.cluster.gatherings.keys().copied().collect();
        for request_id in ids {
            if let Some(gathering) = self.cluster.gatherings.get_mut(&request_id) {
                gathering.give_up(|id| which(request_id, id));
            }
            self.finish_gathering(request_id);
        }
    }

    /// The time for the other gateways is over.
    pub(super) fn on_gathering_timer(&mut self, request_id: u64) {
        self.give_up_gathering(|of, _| of == request_id);
        // Nobody waits any longer than that for this gateway.
        if self.cluster.gatherings.contains_key(&request_id)
            && self.admin.original_request(request_id).is_none()
        {
            self.cluster.gatherings.remove(&request_id);
        } else if self.cluster.gatherings.contains_key(&request_id) {
            let again = self.io.now + timeout_of(Endpoint::Sessions, &self.io);
            self.io.timers.arm(again, TimerKind::FarRequest(request_id));
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

/// What the query says to all.
#[derive(Default)]
struct Wanted {
    gateway: Option<String>,
    limit: usize,
    /// Where the page begins: a gateway, and a cursor there.
    after: Option<(GatewayId, u64)>,
}

impl Wanted {
    fn parse(request: &AdminRequest) -> Result<Self, BadParameter> {
        let query = &request.query;
        let gateway = query_value(query, "gateway")?.map(|name| name.into_owned());
        let (limit, after) = match request.endpoint {
            Endpoint::Sessions => {
                let after = query_value(query, "after")?.unwrap_or_default();
                let bad =
                    || BadParameter::new("after", &format!("{after:?}"), "the `next` of the page before");
                let after = match after.split_once('-') {
                    _ if after.is_empty() || after == "0" => None,
                    Some((run, cursor)) => {
                        let cursor = cursor.parse().ok().filter(|cursor| *cursor <= MAX_CURSOR);
                        Some((run.parse().map_err(|()| bad())?, cursor.ok_or_else(bad)?))
                    }
                    None => return Err(bad()),
                };
                (parse_page_query(&without(query, "after"))?.1, after)
            }
            Endpoint::Calls => {
                (query_number(query, "limit", CALLS_PAGE.0, (1, CALLS_PAGE.1))? as usize, None)
            }
            _ => (0, None),
        };
        Ok(Self { gateway, limit, after })
    }

    /// The query for the part of a page that this gateway has. One before the beginning of the page only counts.
    fn page_of(&self, id: GatewayId, limit: usize) -> String {
        let after = match self.after {
            Some((first, _)) if id < first => MAX_CURSOR,
            Some((first, cursor)) if id == first => cursor,
            _ => 0,
        };
        format!("limit={limit}&after={after}")
    }
}

/// The query without this parameter.
fn without(query: &str, key: &str) -> String {
    let is_other = |part: &&str| part.split_once('=').map_or(*part, |(name, _)| name) != key;
    query.split('&').filter(is_other).collect::<Vec<_>>().join("&")
}
