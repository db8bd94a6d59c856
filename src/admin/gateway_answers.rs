//! One answer made of those of several gateways.
//!
//! Their bodies are JSON; each item of a list gets the name of its gateway. `unanswered` names the gateways whose answer is missing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::dto::SessionPage;
use super::error::{ApiError, ErrorStyle};
use super::response::Response;
use super::routes::Endpoint;
use super::worker_answer::{Disconnected, json_response};

/// What a gateway has answered.
#[derive(Clone, Debug)]
pub struct GatewayAnswer {
    /// Its name.
    pub name: String,
    /// Identifies its run. The answers are in this order, which is the same whichever gateway is asked.
    pub run: String,
    /// `None` when it has not answered in time.
    pub response: Option<Response>,
}

/// What is missing.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Missing {
    /// The gateways whose answer is missing, by name.
    unanswered: Vec<String>,
    /// `unreachable` when there may be others: Redis cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<&'static str>,
}

type Items = Vec<Box<RawValue>>;

/// A page of `GET /api/calls`.
#[derive(Deserialize, Serialize)]
struct Calls {
    calls: Items,
    next: Option<u64>,
}

/// What `GET /api/servers` and `GET /api/errors` answer. Fields that another version adds do not matter.
#[derive(Deserialize)]
struct List {
    #[serde(alias = "servers", alias = "errors")]
    items: Items,
}

/// What orders an item.
#[derive(Deserialize)]
struct Id {
    #[serde(alias = "at")]
    id: u64,
}

/// The body of what became of a message to many.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Sent {
    sent: usize,
    queued: usize,
    offline: usize,
    refused: usize,
    not_connected: BTreeSet<String>,
}

/// Joins the answers to a call of which all gateways are asked. `limit`: of items on a page.
pub fn join(
    endpoint: Endpoint,
    limit: usize,
    answers: Vec<GatewayAnswer>,
    redis_unreachable: bool,
) -> Response {
    let refused = |answer: &GatewayAnswer| answer.response.clone().filter(|response| response.status != 200);
    let missing = Missing { redis: redis_unreachable.then_some("unreachable"), ..Missing::default() };
    match (answers.iter().all(|answer| refused(answer).is_some()), answers.first().and_then(refused)) {
        // What all refuse is refused.
        (true, Some(refusal)) => refusal,
        _ => match endpoint {
            Endpoint::Sessions => join_sessions(answers, limit, missing),
            Endpoint::Calls => join_calls(answers, limit, missing),
            Endpoint::Servers => join_servers(answers, missing),
            Endpoint::Errors => join_errors(answers, missing),
            Endpoint::Disconnect => join_disconnected(answers, missing),
            Endpoint::Messages => join_sent(answers, missing),
            _ => join_status(answers, missing),
        },
    }
}

/// Each answer that can be read, with name and run of its gateway. The others are missing.
fn read<T: for<'a> Deserialize<'a>>(
    answers: Vec<GatewayAnswer>,
    missing: &mut Missing,
) -> Vec<(String, String, T)> {
    let mut all = Vec::new();
    for GatewayAnswer { name, run, response } in answers {
        let response = response.filter(|response| response.status == 200);
        match response.and_then(|response| serde_json::from_slice(&response.body).ok()) {
            Some(body) => all.push((name, run, body)),
            None => missing.unanswered.push(name),
        }
    }
    all
}

/// With what is missing.
#[derive(Serialize)]
struct Joined<T> {
    #[serde(flatten)]
    body: T,
    #[serde(flatten)]
    missing: Missing,
}

fn respond(body: impl Serialize, missing: Missing) -> Response {
    json_response(&Joined { body, missing })
}

/// The items, each with the name of its gateway.
fn named(items: Items, gateway: &str) -> impl Iterator<Item = Box<RawValue>> {
    let name = Value::from(gateway);
    items.into_iter().filter_map(move |item| {
        let rest = item.get().strip_prefix('{')?.trim_start();
        let comma = if rest.starts_with('}') { "" } else { "," };
        RawValue::from_string(format!(r#"{{"gateway":{name}{comma}{rest}"#)).ok()
    })
}

/// A page goes on with the next gateway while all of that one's page fits, so that `next` is a place at one gateway.
fn join_sessions(answers: Vec<GatewayAnswer>, limit: usize, mut missing: Missing) -> Response {
    let mut joined = SessionPage::<String>::default();
    for (name, run, page) in read::<SessionPage>(answers, &mut missing) {
        joined.devices += page.devices;
        joined.calls += page.calls;
        joined.draining |= page.draining;
        if joined.next.is_some() || page.sessions.is_empty() && page.next.is_none() {
            continue;
        }
        if !joined.sessions.is_empty() && joined.sessions.len() + page.sessions.len() > limit {
            joined.next = Some(format!("{run}-0"));
            continue;
        }
        joined.sessions.extend(named(page.sessions, &name));
        joined.next = page.next.map(|next| format!("{run}-{next}"));
    }
    respond(joined, missing)
}

/// The latest first. Calls of two gateways with the same id, the millisecond in which they ended, are on one page.
fn join_calls(answers: Vec<GatewayAnswer>, limit: usize, mut missing: Missing) -> Response {
    let mut all = Vec::new();
    // Before the end of the page of a gateway that has more, others may have calls that it has not shown.
    let mut shown_to = 0;
    for (name, _, page) in read::<Calls>(answers, &mut missing) {
        shown_to = page.next.map_or(shown_to, |next| shown_to.max(next));
        all.extend(named(page.calls, &name).filter_map(|call| Some((id_of(&call)?, call))));
    }
    all.sort_by_key(|(id, _)| Reverse(*id));
    let total = all.len();
    all.retain(|(id, _)| *id >= shown_to);
    let end = match all.get(limit.wrapping_sub(1)) {
        Some((last, _)) => all.partition_point(|(id, _)| id >= last),
        None => all.len(),
    };
    let has_more = end < total || shown_to > 0;
    all.truncate(end);
    let next = all.last().map(|(id, _)| *id).filter(|_| has_more);
    respond(Calls { calls: all.into_iter().map(|(_, call)| call).collect(), next }, missing)
}

fn id_of(item: &RawValue) -> Option<u64> {
    serde_json::from_str::<Id>(item.get()).ok().map(|id| id.id)
}

/// The items of all lists, in the order of the gateways.
fn join_lists(answers: Vec<GatewayAnswer>, missing: &mut Missing) -> Items {
    let all = read::<List>(answers, missing).into_iter();
    all.flat_map(|(name, _, list)| named(list.items, &name).collect::<Vec<_>>()).collect()
}

fn join_servers(answers: Vec<GatewayAnswer>, mut missing: Missing) -> Response {
    let servers = join_lists(answers, &mut missing);
    respond(BTreeMap::from([("servers", servers)]), missing)
}

/// The newest first.
fn join_errors(answers: Vec<GatewayAnswer>, mut missing: Missing) -> Response {
    let mut errors = join_lists(answers, &mut missing);
    errors.sort_by_cached_key(|error| Reverse(id_of(error)));
    respond(BTreeMap::from([("errors", errors)]), missing)
}

fn join_disconnected(answers: Vec<GatewayAnswer>, mut missing: Missing) -> Response {
    let all = read::<Disconnected>(answers, &mut missing).into_iter().map(|(.., body)| body);
    let joined = all.reduce(|mut joined, more| {
        joined.add(&more);
        joined
    });
    joined.map_or_else(|| nobody(ErrorStyle::Coded, &missing), |joined| respond(joined, missing.clone()))
}

fn join_sent(answers: Vec<GatewayAnswer>, mut missing: Missing) -> Response {
    let all = read::<Sent>(answers, &mut missing).into_iter().map(|(.., body)| body);
    let joined = all.reduce(|mut joined, more| {
        let left = |sent: &Sent| sent.offline.saturating_sub(sent.not_connected.len());
        let have_left = left(&joined) + left(&more);
        joined.sent += more.sent;
        joined.queued += more.queued;
        joined.refused += more.refused;
        joined.not_connected.retain(|name| more.not_connected.contains(name));
        joined.offline = have_left + joined.not_connected.len();
        joined
    });
    joined.map_or_else(|| nobody(ErrorStyle::Coded, &missing), |joined| respond(joined, missing.clone()))
}

/// A device is where a gateway says that it exists. While an answer is missing, one that no gateway knows is not said to be away.
fn join_status(answers: Vec<GatewayAnswer>, mut missing: Missing) -> Response {
    let mut joined: BTreeMap<String, Box<RawValue>> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for (.., body) in read::<BTreeMap<String, Value>>(answers, &mut missing) {
        for (name, status) in body {
            let exists = status["exists"] == true;
            if exists || !joined.contains_key(&name) {
                joined.extend(to_raw_value(&status).ok().map(|status| (name.clone(), status)));
            }
            if exists {
                found.insert(name);
            }
        }
    }
    let is_known = missing.unanswered.is_empty() && missing.redis.is_none();
    if !is_known && (joined.is_empty() || found.len() < joined.len()) {
        return nobody(ErrorStyle::Plain, &missing);
    }
    json_response(&joined)
}

/// Nobody who is left can say it.
fn nobody(style: ErrorStyle, missing: &Missing) -> Response {
    unknown(&missing.unanswered, missing.redis.is_some()).response(style)
}

/// What another gateway may know is not known.
pub fn unknown(unanswered: &[String], redis_unreachable: bool) -> ApiError {
    let why = match redis_unreachable {
        true => "Redis cannot be used, over which gateways ask each other".to_owned(),
        false => format!("no answer of {}", unanswered.join(", ")),
    };
    ApiError::new(503, "unknown", format!("It is not known what other gateways have: {why}."))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn joined(endpoint: Endpoint, limit: usize, bodies: &[Value]) -> (u16, Value) {
        let answer = |(n, body): (usize, &Value)| GatewayAnswer {
            name: format!("g{n}"),
            run: format!("{n:016x}"),
            response: (!body.is_null()).then(|| Response::json(200, body.to_string())),
        };
        let response = join(endpoint, limit, bodies.iter().enumerate().map(answer).collect(), false);
        (response.status, serde_json::from_slice(&response.body).unwrap())
    }

    #[test]
    fn sessions_are_joined_gateway_by_gateway_and_the_page_ends_at_one_of_them() {
        let page = |devices: usize, next: Option<u64>, ids: &[u64]| {
            let sessions: Vec<_> = ids.iter().map(|id| json!({ "n": id })).collect();
            json!({"devices": devices, "calls": 1, "draining": false, "next": next, "sessions": sessions})
        };
        let item = |gateway: &str, n: u64| json!({"gateway": gateway, "n": n});
        let (one, two) = (page(2, None, &[1, 2]), page(3, Some(7), &[3]));
        for (limit, bodies, next, sessions) in [
            (3, [&one, &two], json!("0000000000000001-7"), vec![item("g0", 1), item("g0", 2), item("g1", 3)]),
            (2, [&one, &two], json!("0000000000000001-0"), vec![item("g0", 1), item("g0", 2)]),
            (9, [&two, &one], json!("0000000000000000-7"), vec![item("g0", 3)]),
        ] {
            let (_, answer) = joined(Endpoint::Sessions, limit, &bodies.map(Clone::clone));
            let expected = json!({"devices": 5, "calls": 2, "draining": false, "next": next, "sessions": sessions, "unanswered": []});
            assert_eq!(answer, expected);
        }
        let (_, answer) = joined(Endpoint::Sessions, 9, &[one, Value::Null, page(0, None, &[]), json!(7)]);
        assert_eq!((&answer["next"], &answer["unanswered"]), (&Value::Null, &json!(["g1", "g3"])));
    }

    #[test]
    fn lists_are_joined_also_with_fields_of_another_version() {
        let one = json!({"servers": [{"url": "ws://a"}], "since": 7});
        let (_, answer) =
            joined(Endpoint::Servers, 9, &[one, json!({}), json!({"servers": [{"url": "ws://b"}]})]);
        let expected = json!([{"gateway": "g0", "url": "ws://a"}, {"gateway": "g2", "url": "ws://b"}]);
        assert_eq!(answer, json!({"servers": expected, "unanswered": ["g1"]}));
    }

    #[test]
    fn calls_are_joined_by_time_and_no_page_leaves_one_out() {
        let ids = [vec![9_u64, 7, 6, 3, 1], vec![8, 7, 7, 2], vec![], vec![6, 5, 4, 3, 2, 1]];
        for limit in 1..20 {
            let (mut cursor, mut seen) = (u64::MAX, Vec::new());
            loop {
                let page = |ids: &Vec<u64>| {
                    let rest: Vec<_> = ids.iter().filter(|id| **id < cursor).collect();
                    let calls: Vec<_> = rest.iter().take(limit).map(|id| json!({ "id": id })).collect();
                    let next = (rest.len() > limit).then(|| rest[limit - 1]);
                    json!({"calls": calls, "next": next})
                };
                let bodies: Vec<_> = ids.iter().map(page).collect();
                let (_, answer) = joined(Endpoint::Calls, limit, &bodies);
                let calls = answer["calls"].as_array().unwrap();
                seen.extend(calls.iter().map(|call| call["id"].as_u64().unwrap()));
                let Some(next) = answer["next"].as_u64() else { break };
                assert!(next < cursor);
                cursor = next;
            }
            let mut all = ids.concat();
            all.sort_by_key(|id| Reverse(*id));
            // One gateway gives each of its calls an id of its own.
            let own = |ids: &[u64]| ids.iter().filter(|id| **id != 7).copied().collect::<Vec<_>>();
            assert_eq!(own(&seen), own(&all), "{limit}");
        }
    }

    #[test]
    fn errors_servers_and_counts_are_joined() {
        let errors = |at: &[u64]| {
            let errors: Vec<_> = at.iter().map(|at| json!({"at": at, "code": "x"})).collect();
            json!({ "errors": errors })
        };
        let (_, answer) = joined(Endpoint::Errors, 0, &[errors(&[5, 2]), errors(&[4])]);
        let at: Vec<_> = answer["errors"].as_array().unwrap().iter().map(|error| &error["at"]).collect();
        assert_eq!((json!(at), &answer["errors"][1]["gateway"]), (json!([5, 4, 2]), &json!("g1")));
        let servers = json!({"servers": [{"url": "a"}]});
        let (_, answer) = joined(Endpoint::Servers, 0, &[servers.clone(), servers]);
        let expected = json!([{"gateway": "g0", "url": "a"}, {"gateway": "g1", "url": "a"}]);
        assert_eq!(answer, json!({"servers": expected, "unanswered": []}));
        let disconnected = |n: u64, names: &[&str]| json!({"disconnected": n, "notConnected": names});
        let bodies = [disconnected(1, &["a", "b"]), disconnected(2, &["b", "c"]), Value::Null];
        let (_, answer) = joined(Endpoint::Disconnect, 0, &bodies);
        assert_eq!(answer, json!({"disconnected": 3, "notConnected": ["b"], "unanswered": ["g2"]}));
        let sent = |left: u64, names: &[&str]| json!({"sent": 1, "queued": 2, "refused": 3, "offline": left + names.len() as u64, "notConnected": names});
        let (_, answer) = joined(Endpoint::Messages, 0, &[sent(1, &["a", "b"]), sent(2, &["b"])]);
        let expected = json!({"sent": 2, "queued": 4, "refused": 6, "offline": 4, "notConnected": ["b"], "unanswered": []});
        assert_eq!(answer, expected);
    }

    #[test]
    fn a_device_that_is_found_nowhere_is_away_only_if_all_have_answered() {
        let status = |alive: bool, exists: bool| json!({"isAlive": alive, "exists": exists, "inCall": alive});
        let (away, there) = (status(false, false), status(true, true));
        let one = json!({"a": away, "b": there});
        let two = json!({"a": there, "b": away});
        assert_eq!(
            joined(Endpoint::DevicesStatus, 0, &[one.clone(), two.clone()]).1,
            json!({"a": there, "b": there})
        );
        assert_eq!(joined(Endpoint::DevicesStatus, 0, &[one.clone(), one.clone()]).1, one);
        let (status, answer) = joined(Endpoint::DevicesStatus, 0, &[one.clone(), Value::Null]);
        assert_eq!(status, 503);
        assert!(answer["error"].as_str().unwrap().contains("g1"), "{answer}");
        // All that were asked for are found.
        let (status, _) = joined(Endpoint::DevicesStatus, 0, &[one, two, Value::Null]);
        assert_eq!(status, 200);
    }

    #[test]
    fn what_all_refuse_is_refused_and_what_one_refuses_is_missing() {
        let refused = |name: &str| GatewayAnswer {
            name: name.to_owned(),
            run: name.to_owned(),
            response: Some(Response::error(409, "history_off", "x")),
        };
        let all = join(Endpoint::Calls, 9, vec![refused("a"), refused("b")], false);
        assert_eq!(all.status, 409);
        let calls = Response::json(200, r#"{"calls":[{"id":1}],"next":null}"#);
        let answers = vec![refused("a"), GatewayAnswer { response: Some(calls), ..refused("b") }];
        let joined = join(Endpoint::Calls, 9, answers, true);
        let body: Value = serde_json::from_slice(&joined.body).unwrap();
        let expected = json!({"calls": [{"gateway": "b", "id": 1}], "next": null, "unanswered": ["a"], "redis": "unreachable"});
        assert_eq!((joined.status, body), (200, expected));
    }
}
