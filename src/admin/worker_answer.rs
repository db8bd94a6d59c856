//! What a worker answers to a request, and one answer made of those of several workers.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::dto::{DeviceStatus, SessionPage};
use super::messages::MessageCounts;
use super::prometheus::{CONTENT_TYPE, MetricFamilies};
use super::response::Response;
use super::servers::ServerList;
use crate::proto::identity::Mac;

/// One worker's answer. What several workers have to answer together stays typed until all of it is there.
pub enum Answer {
    /// A complete response.
    Response(Response),
    /// The device that the request is about is not connected here. The response if it is connected nowhere.
    NotHere(Response),
    /// The device is connected here, and has its call at the gateway with this run id, which answers.
    AtGateway(u64),
    /// The device that is to be called is not connected here. The response if it is connected nowhere.
    TargetNotHere(Response),
    /// The answer to a command that has timed out, for `GET /api/commands/results/{id}`.
    LateCommandResult(Response),
    /// `GET /metrics`.
    Metrics(MetricFamilies),
    /// `GET /api/sessions`: a page of at most `limit` sessions.
    Sessions {
        /// This worker's page.
        page: SessionPage,
        /// How many sessions the joined page may have.
        limit: usize,
    },
    /// `POST /api/devices/status`, by the names that were asked for.
    DevicesStatus(BTreeMap<String, DeviceStatus>),
    /// `POST /api/devices/disconnect`.
    Disconnected(Disconnected),
    /// `PUT` and `DELETE /api/denied/{clientId}`.
    Denied {
        /// The device.
        mac: Mac,
        /// False when it is allowed again.
        denied: bool,
        /// How many of its connections are closed.
        disconnected: usize,
    },
    /// `POST /api/messages`.
    Messages(MessageCounts),
    /// `GET /api/servers`.
    Servers(ServerList),
}

/// What became of `POST /api/devices/disconnect`.
#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Disconnected {
    /// How many devices are disconnected.
    pub disconnected: usize,
    /// The names for which there was none.
    pub not_connected: BTreeSet<String>,
}

impl Disconnected {
    /// Adds what another worker or gateway has done: a name has no device if none of them has it.
    pub fn add(&mut self, other: &Self) {
        self.disconnected += other.disconnected;
        self.not_connected.retain(|name| other.not_connected.contains(name));
    }
}

impl Answer {
    /// The response to the client.
    pub fn into_response(self) -> Response {
        match self {
            Self::Response(response)
            | Self::NotHere(response)
            | Self::TargetNotHere(response)
            | Self::LateCommandResult(response) => response,
            Self::AtGateway(_) => {
                Response::error(503, "unknown", "The gateway with the device's call cannot be asked.")
            }
            Self::Metrics(families) => Response::text(CONTENT_TYPE, families.to_text()),
            Self::Sessions { page, .. } => json_response(&page),
            Self::DevicesStatus(all) => json_response(&all),
            Self::Messages(counts) => json_response(&counts.to_json()),
            Self::Servers(list) => json_response(&list),
            Self::Denied { mac, denied, disconnected } => json_response(
                &json!({ "mac": mac.to_string(), "denied": denied, "disconnected": disconnected }),
            ),
            Self::Disconnected(counts) => json_response(&counts),
        }
    }

    /// The answer of all workers, from theirs in the workers' order. What one refuses, all do. `first_cursor`: where the
    /// sessions of a worker begin.
    pub fn merge(
        answers: impl IntoIterator<Item = Self>,
        first_cursor: impl Fn(usize) -> u64,
    ) -> Option<Self> {
        let mut answers = answers.into_iter().enumerate();
        let (_, mut merged) = answers.next()?;
        for (worker, answer) in answers {
            match (&mut merged, answer) {
                (Self::Response(_), _) => return Some(merged),
                (Self::Metrics(all), Self::Metrics(more)) => all.add(&more),
                (Self::Sessions { page, limit }, Self::Sessions { page: more, .. }) => {
                    page.append(more, *limit, first_cursor(worker));
                }
                (Self::DevicesStatus(all), Self::DevicesStatus(more)) => {
                    for (name, status) in more.into_iter().filter(|(_, status)| status.exists) {
                        all.insert(name, status);
                    }
                }
                (Self::Disconnected(all), Self::Disconnected(more)) => all.add(&more),
                (Self::Denied { disconnected, .. }, Self::Denied { disconnected: more, .. }) => {
                    *disconnected += more;
                }
                (Self::Messages(all), Self::Messages(more)) => all.add(&more),
                (Self::Servers(all), Self::Servers(more)) => all.add(more),
                (_, other) => merged = other,
            }
        }
        Some(merged)
    }
}

/// A value as the body of a response.
pub fn json_response(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => Response::json(200, text),
        Err(error) => Response::error(500, "internal", &error.to_string()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;
    use serde_json::value::to_raw_value;

    use super::*;

    fn merge(answers: Vec<Answer>) -> Value {
        let merged = Answer::merge(answers, |worker| worker as u64 * 100).unwrap();
        serde_json::from_slice(&merged.into_response().body).unwrap()
    }

    #[test]
    fn metrics_are_added_up_sample_by_sample() {
        let families = |x: u64, z: u64, process: bool| {
            let mut families = MetricFamilies::default();
            families.counter("a", "All").by("of", [("x y", x), ("z", z)]);
            families.gauge("b", "A part").value(0.25);
            if process {
                families.gauge("c", "Of the process").value(7_u64);
            }
            Answer::Metrics(families)
        };
        let answers = [families(1, 18_014_398_509, true), families(2, 1, false), families(2, 1, false)];
        let merged = Answer::merge(answers, |_| 0).unwrap().into_response();
        let expected = "# HELP a All\n# TYPE a counter\na{of=\"x y\"} 5\na{of=\"z\"} 18014398511\n\
             # HELP b A part\n# TYPE b gauge\nb 0.75\n# HELP c Of the process\n# TYPE c gauge\nc 7\n";
        assert_eq!(String::from_utf8(merged.body).unwrap(), expected);
    }

    #[test]
    fn pages_are_joined_while_there_is_room() {
        let page = |devices: usize, next: Option<u64>, of: &[u8]| {
            let sessions = of.iter().map(|n| to_raw_value(&json!({ "n": n })).unwrap()).collect();
            SessionPage { devices, calls: 1, draining: false, next, sessions }
        };
        let check = |pages: &[(usize, Option<u64>, &[u8])],
                     limit,
                     (devices, next, of): (usize, Option<u64>, &[u8])| {
            let pages = pages.iter().map(|(devices, next, of)| page(*devices, *next, of));
            let calls = pages.len();
            let merged = merge(pages.map(|page| Answer::Sessions { page, limit }).collect());
            let expected = SessionPage { calls, ..page(devices, next, of) };
            assert_eq!(merged, serde_json::to_value(&expected).unwrap());
        };
        let (one, two, none) = ((2, None, &[1, 2][..]), (2, None, &[3, 4][..]), (0, None, &[][..]));
        check(&[one, two], 4, (4, None, &[1, 2, 3, 4]));
        check(&[one, two], 3, (4, Some(100), &[1, 2]));
        check(&[none, one, none, two], 2, (4, Some(300), &[1, 2]));
        check(&[none, none], 2, (0, None, &[]));
        // A worker that has more than a page.
        check(&[(9, Some(7), &[1, 2]), two], 2, (11, Some(7), &[1, 2]));
        check(&[(2, None, &[]), (9, Some(107), &[3, 4])], 2, (11, Some(107), &[3, 4]));
    }

    #[test]
    fn a_device_exists_if_a_worker_has_it() {
        let status = |is_alive, exists| DeviceStatus { is_alive, exists, in_call: is_alive == Some(true) };
        let absent = status(Some(false), false);
        let here = BTreeMap::from([("a".to_owned(), status(Some(true), true)), ("b".to_owned(), absent)]);
        let there = BTreeMap::from([("a".to_owned(), absent), ("b".to_owned(), status(None, true))]);
        for answers in [[&here, &there], [&there, &here]] {
            let merged = merge(answers.into_iter().cloned().map(Answer::DevicesStatus).collect());
            assert_eq!(merged["a"], json!({"isAlive": true, "exists": true, "inCall": true}));
            assert_eq!(merged["b"], json!({"isAlive": null, "exists": true, "inCall": false}));
        }
    }

    #[test]
    fn a_name_is_not_connected_if_no_worker_has_it() {
        let answer = |disconnected, names: [&str; 2]| {
            let not_connected = names.map(str::to_owned).into();
            Answer::Disconnected(Disconnected { disconnected, not_connected })
        };
        let merged = merge(vec![answer(1, ["a", "b"]), answer(2, ["b", "c"])]);
        assert_eq!(merged, json!({ "disconnected": 3, "notConnected": ["b"] }));
    }

    #[test]
    fn what_one_worker_refuses_all_do() {
        let refused = || Answer::Response(Response::json(400, "{}"));
        let answers = || [refused(), Answer::DevicesStatus(BTreeMap::new())];
        let [one, other] = answers();
        for answers in [vec![one, other], answers().into_iter().rev().collect()] {
            assert_eq!(Answer::merge(answers, |_| 0).unwrap().into_response().status, 400);
        }
    }
}
