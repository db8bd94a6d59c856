//! What the reports of `check` and `probe` have in common: steps with their states, for people and as JSON.

use std::time::Duration;

use serde::Serialize;

use crate::text;

/// Bytes of a detail.
const MAX_DETAIL_BYTES: usize = 1000;

/// What is known about a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StepState {
    Ok,
    /// It works, or may work, but should be looked at.
    Warn,
    Fail,
    /// It was tried, and what was seen fits both.
    Unknown,
    /// Not tried, or not measured.
    Skipped,
}

impl StepState {
    /// A short word for tables.
    pub(super) fn mark(self, undecided: &'static str) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
            Self::Unknown | Self::Skipped => undecided,
        }
    }
}

/// A step of a report.
#[derive(Debug, Serialize)]
pub(super) struct StepReport {
    pub(super) step: &'static str,
    pub(super) state: StepState,
    pub(super) detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ms: Option<f64>,
}

impl StepReport {
    /// The detail may hold a peer's text: it is made printable.
    pub(super) fn new(
        step: &'static str,
        state: StepState,
        detail: impl AsRef<str>,
        took: Option<Duration>,
    ) -> Self {
        let detail = text::printable(detail.as_ref(), MAX_DETAIL_BYTES).into_owned();
        Self { step, state, detail, ms: took.map(milliseconds) }
    }
}

/// Milliseconds with three decimals, which keeps the JSON short.
pub(super) fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// A report as one line of JSON.
pub(super) fn to_json(report: &impl Serialize) -> String {
    serde_json::to_string(report).unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string()))
}
