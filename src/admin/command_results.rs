//! Answers of devices to commands that had timed out, for `GET /api/commands/results/{id}`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::response::Response;

/// How long an answer is kept.
const KEPT_FOR: Duration = Duration::from_secs(600);
/// Answers that are kept.
const MAX_RESULTS: usize = 256;
/// Bytes of them together. One has 64 KiB by default (`mqtt.max_payload_size`).
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// The last few, by the id that the timeout named.
#[derive(Debug, Default)]
pub struct CommandResults(VecDeque<(u64, Instant, Response)>);

impl CommandResults {
    /// Keeps one; beyond a limit the oldest are dropped.
    pub fn insert(&mut self, id: u64, response: Response, now: Instant) {
        self.0.push_back((id, now + KEPT_FOR, response));
        let mut bytes: usize = self.0.iter().map(|(.., response)| response.body.len()).sum();
        while let Some((_, until, response)) = self.0.front()
            && (*until <= now || self.0.len() > MAX_RESULTS || bytes > MAX_BYTES)
        {
            bytes -= response.body.len();
            self.0.pop_front();
        }
    }

    /// The response to the command with this id, as the device's answer in time would have been.
    pub fn response(&self, id: &str, now: Instant) -> Response {
        let id = id.parse::<u64>().ok();
        let found = self.0.iter().find(|(known, until, _)| Some(*known) == id && *until > now);
        found.map_or_else(
            || {
                Response::error(
                    404,
                    "no_result",
                    "No answer to a command of this id has come in the last 10 minutes.",
                )
            },
            |(.., response)| response.clone(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_kept_for_ten_minutes_and_bounded_in_number_and_bytes() {
        let (mut results, start) = (CommandResults::default(), Instant::now());
        let answer = |body: &str| Response::json(200, body.to_owned());
        let status = |results: &CommandResults, id: &str, after| {
            results.response(id, start + Duration::from_secs(after)).status
        };
        results.insert(7, answer("{}"), start);
        assert_eq!(results.response("7", start).body, b"{}");
        assert_eq!((status(&results, "7", 599), status(&results, "7", 600)), (200, 404));
        for unknown in ["8", "", "x", "-7", "18446744073709551616"] {
            assert_eq!(status(&results, unknown, 0), 404, "{unknown}");
        }
        for id in 8..=7 + MAX_RESULTS as u64 {
            results.insert(id, answer("{}"), start);
        }
        assert_eq!((status(&results, "7", 0), status(&results, "8", 0)), (404, 200));
        let long = "x".repeat(MAX_BYTES / 2);
        for id in [1000, 1001, 1002] {
            results.insert(id, answer(&long), start);
        }
        assert_eq!(["1000", "1001", "1002"].map(|id| status(&results, id, 0)), [404, 200, 200]);
        results.insert(2000, answer("{}"), start + KEPT_FOR);
        assert_eq!(results.0.len(), 1, "the expired are dropped");
    }
}
