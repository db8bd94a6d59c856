//! One answer made of those of several workers, given in the order of the workers.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// Adds up Prometheus texts that have the same families: a sample is the sum of its namesakes. What only the first has,
/// such as the process's own numbers, stays as it is.
pub fn metrics(texts: &[&str]) -> String {
    let Some((first, others)) = texts.split_first() else { return String::new() };
    let mut sums: HashMap<&str, f64> = HashMap::new();
    for (name, value) in others.iter().flat_map(|text| text.lines()).filter_map(parse_sample) {
        *sums.entry(name).or_default() += value;
    }
    let mut merged = String::with_capacity(first.len());
    for line in first.lines() {
        match parse_sample(line).and_then(|(name, value)| Some((name, value + sums.get(name)?))) {
            Some((name, sum)) => merged.push_str(&format!("{name} {sum}")),
            None => merged.push_str(line),
        }
        merged.push('\n');
    }
    merged
}

/// A sample's name with its labels, and its value.
fn parse_sample(line: &str) -> Option<(&str, f64)> {
    let (name, value) = line.rsplit_once(' ').filter(|_| !line.starts_with('#'))?;
    Some((name, value.parse().ok()?))
}

/// Joins pages of `GET /api/sessions`: as many whole ones as `limit` has room for, and at least the first that is not
/// empty. `start` names the beginning of a worker's first page, for `next`.
pub fn sessions(pages: &[&[u8]], limit: usize, start: impl Fn(usize) -> u64) -> Option<String> {
    #[derive(Default, Deserialize, Serialize)]
    struct Page<'a> {
        devices: usize,
        calls: usize,
        #[serde(default)]
        draining: bool,
        next: Option<u64>,
        #[serde(borrow)]
        sessions: Vec<&'a RawValue>,
    }

    let pages: Result<Vec<Page<'_>>, _> = pages.iter().map(|page| serde_json::from_slice(page)).collect();
    let mut merged = Page::default();
    for (worker, page) in pages.ok()?.into_iter().enumerate() {
        merged.devices += page.devices;
        merged.calls += page.calls;
        merged.draining |= page.draining;
        if merged.next.is_some() {
            continue;
        }
        if !merged.sessions.is_empty() && merged.sessions.len() + page.sessions.len() > limit {
            merged.next = Some(start(worker));
            continue;
        }
        merged.next = page.next;
        merged.sessions.extend(page.sessions);
    }
    serde_json::to_string(&merged).ok()
}

/// Joins answers of `POST /api/devices/status`: a device exists if a worker has it.
pub fn devices_status(answers: &[&[u8]]) -> Option<String> {
    let mut merged = serde_json::Map::new();
    for answer in answers {
        let Ok(Value::Object(answer)) = serde_json::from_slice(answer) else { return None };
        for (id, status) in answer {
            if status["exists"] == true || !merged.contains_key(&id) {
                merged.insert(id, status);
            }
        }
    }
    Some(Value::Object(merged).to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_by_sample() {
        let first =
            "# HELP a All 3\n# TYPE a counter\na{of=\"x y\"} 1\na{of=\"z\"} 18014398509\nb 0.5\nc 7\n";
        let second = "# HELP a All 3\n# TYPE a counter\na{of=\"x y\"} 2\na{of=\"z\"} 1\nb 0.25\n";
        let merged = "# HELP a All 3\n# TYPE a counter\na{of=\"x y\"} 5\na{of=\"z\"} 18014398511\nb 1\nc 7\n";
        assert_eq!(metrics(&[first, second, second]), merged);
        assert_eq!(metrics(&[first]), first);
    }

    #[test]
    fn pages_are_joined_up_to_the_limit() {
        let page = |devices: usize, next: Option<u64>, of: &[u8]| {
            let sessions: Vec<_> = of.iter().map(|n| serde_json::json!({ "n": n })).collect();
            let page = serde_json::json!({"devices": devices, "calls": 1, "draining": false, "next": next, "sessions": sessions});
            page.to_string().into_bytes()
        };
        let check = |pages: &[Vec<u8>], limit, expected: Vec<u8>| {
            let pages: Vec<&[u8]> = pages.iter().map(Vec::as_slice).collect();
            let merged: Value =
                serde_json::from_str(&sessions(&pages, limit, |worker| worker as u64 * 100).unwrap())
                    .unwrap();
            let mut expected: Value = serde_json::from_slice(&expected).unwrap();
            expected["calls"] = pages.len().into();
            assert_eq!(merged, expected);
        };
        let (one, two, none) = (page(2, None, &[1, 2]), page(2, None, &[3, 4]), page(0, None, &[]));
        check(&[one.clone(), two.clone()], 4, page(4, None, &[1, 2, 3, 4]));
        check(&[one.clone(), two.clone()], 3, page(4, Some(100), &[1, 2]));
        check(&[none.clone(), one.clone(), none.clone(), two.clone()], 2, page(4, Some(300), &[1, 2]));
        check(&[none.clone(), none.clone()], 2, page(0, None, &[]));
        // A worker that has more than a page.
        check(&[page(9, Some(7), &[1, 2]), two.clone()], 2, page(11, Some(7), &[1, 2]));
        check(&[page(2, None, &[]), page(9, Some(107), &[3, 4])], 2, page(11, Some(107), &[3, 4]));
        assert_eq!(sessions(&[b"{}"], 1, |_| 0), None);
    }

    #[test]
    fn a_device_exists_if_a_worker_has_it() {
        let here = br#"{"a":{"isAlive":true,"exists":true},"b":{"isAlive":false,"exists":false}}"#;
        let there = br#"{"a":{"isAlive":false,"exists":false},"b":{"isAlive":null,"exists":true}}"#;
        for answers in [[&here[..], &there[..]], [&there[..], &here[..]]] {
            let merged: Value = serde_json::from_str(&devices_status(&answers).unwrap()).unwrap();
            assert_eq!(merged["a"], serde_json::json!({"isAlive": true, "exists": true}));
            assert_eq!(merged["b"], serde_json::json!({"isAlive": null, "exists": true}));
        }
        assert_eq!(devices_status(&[b"[]"]), None);
    }
}
