//! What the probe shows: one line for each step while it runs, and the same as JSON.

use std::fmt::{self, Display};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::ProbeFailed;
use super::options::ProbeOptions;
use crate::text;
use crate::tools::round_trip::RoundTripTest;
use crate::tools::terminal::Terminal;

/// Bytes of a detail.
const SHOWN: usize = 1000;

/// The steps, in their order.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ProbeStep {
    Tcp,
    Tls,
    Mqtt,
    Authentication,
    Hello,
    UdpUp,
    UdpDown,
    RoundTrip,
    Loss,
}

const PROBE_STEPS: [ProbeStep; 9] = [
    ProbeStep::Tcp,
    ProbeStep::Tls,
    ProbeStep::Mqtt,
    ProbeStep::Authentication,
    ProbeStep::Hello,
    ProbeStep::UdpUp,
    ProbeStep::UdpDown,
    ProbeStep::RoundTrip,
    ProbeStep::Loss,
];

impl ProbeStep {
    fn label(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Mqtt => "MQTT",
            Self::Authentication => "authentication",
            Self::Hello => "hello",
            Self::UdpUp => "UDP up",
            Self::UdpDown => "UDP down",
            Self::RoundTrip => "round trip",
            Self::Loss => "loss",
        }
    }
}

/// What is known about a step.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ProbeState {
    Ok,
    Fail,
    /// It was tried, and what was seen fits both.
    Unknown,
    /// Not tried or not measured.
    Skipped,
}

/// The outcome, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct ProbeReport {
    target: String,
    client_id: String,
    pub(super) ok: bool,
    steps: Vec<StepReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audio: Option<AudioReport>,
    hints: Vec<String>,
}

#[derive(Debug, Serialize)]
struct StepReport {
    step: ProbeStep,
    state: ProbeState,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ms: Option<f64>,
}

#[derive(Debug, Serialize)]
struct AudioReport {
    sent: u32,
    /// Audio packets from the gateway, ours or not.
    received: u64,
    /// Packets of ours that came back.
    echoed: u32,
    lost_down: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    round_trip_ms: Option<RoundTripStats>,
}

/// Milliseconds.
#[derive(Copy, Clone, Debug, Serialize)]
pub(super) struct RoundTripStats {
    median: f64,
    p99: f64,
    worst: f64,
}

impl RoundTripStats {
    pub(super) fn of(round_trip: &RoundTripTest) -> Self {
        let ms = |share| round_trip.percentile(share).map_or(0.0, ms);
        Self { median: ms(0.5), p99: ms(0.99), worst: ms(1.0) }
    }
}

impl Display for RoundTripStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ms median, {:.1} ms worst, chat server included", self.median, self.worst)
    }
}

impl ProbeReport {
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string()))
    }

    #[cfg(test)]
    pub(super) fn hints(&self) -> &[String] {
        &self.hints
    }

    #[cfg(test)]
    #[allow(clippy::unwrap_used)]
    pub(super) fn state(&self, name: ProbeStep) -> ProbeState {
        self.steps.iter().find(|line| line.step == name).map(|line| line.state).unwrap()
    }
}

/// Prints steps as they come, and keeps them.
pub(super) struct ProbeReporter {
    terminal: Terminal,
    report: ProbeReport,
    /// Whether TLS is a step at all.
    tls: bool,
    next_redraw: Instant,
}

impl ProbeReporter {
    pub(super) fn new(mut terminal: Terminal, options: &ProbeOptions) -> Self {
        let (target, client_id) = (options.target(), options.login.client_id.clone());
        let over = if options.tls { " over TLS" } else { "" };
        terminal.print_line(&format!("Probing {target}{over} as device {client_id}"));
        terminal.print_line("");
        let report =
            ProbeReport { target, client_id, ok: false, steps: Vec::new(), audio: None, hints: Vec::new() };
        Self { terminal, report, tls: options.tls, next_redraw: Instant::now() }
    }

    pub(super) fn add_step(
        &mut self,
        step: ProbeStep,
        state: ProbeState,
        detail: String,
        took: Option<Duration>,
    ) {
        // The gateway's words, or its chat server's, may be among it.
        let detail = text::printable(&detail, SHOWN).into_owned();
        let ms = took.map(ms);
        let sign = match state {
            ProbeState::Ok => " ok ",
            ProbeState::Fail => "FAIL",
            ProbeState::Unknown => " ?? ",
            ProbeState::Skipped => " -- ",
        };
        let took = ms.map(|ms| format!(" ({ms:.1} ms)")).unwrap_or_default();
        self.terminal.print_line(&format!("  [{sign}] {:<15} {detail}{took}", step.label()));
        self.report.steps.push(StepReport { step, state, detail, ms });
    }

    /// The step that the probe ends with.
    pub(super) fn fail(&mut self, step: ProbeStep, detail: String) -> ProbeFailed {
        self.add_step(step, ProbeState::Fail, detail, None);
        ProbeFailed
    }

    pub(super) fn add_hint(&mut self, hint: String) {
        self.report.hints.push(hint);
    }

    /// What it does now: in place on a terminal, a line of its own elsewhere.
    pub(super) fn progress(&mut self, what: &str) {
        if self.terminal.is_interactive() {
            self.terminal.redraw(&[format!("  [ .. ] {what}")]);
        } else {
            self.terminal.print_line(&format!("         {what}"));
        }
    }

    /// Audio so far; on a terminal only.
    pub(super) fn show_audio_progress(&mut self, sent: u32, packets: u32, heard: u64) {
        let now = Instant::now();
        if now >= self.next_redraw {
            self.next_redraw = now + Duration::from_millis(100);
            let text =
                format!("  [ .. ] audio           {sent} of {packets} packets sent, {heard} came back");
            self.terminal.redraw(&[text]);
        }
    }

    pub(super) fn set_audio(&mut self, round_trip: &RoundTripTest, lost_down: u64) {
        let round_trip_ms = (round_trip.echoed > 0).then(|| RoundTripStats::of(round_trip));
        let (sent, echoed, received) = (round_trip.sent, round_trip.echoed, round_trip.received);
        self.report.audio = Some(AudioReport { sent, received, echoed, lost_down, round_trip_ms });
    }

    /// Fills in what was not reached, and says what it comes to.
    pub(super) fn finish(mut self) -> ProbeReport {
        let tls = self.tls;
        for step in PROBE_STEPS.into_iter().filter(|step| tls || *step != ProbeStep::Tls) {
            if !self.report.steps.iter().any(|line| line.step == step) {
                self.add_step(step, ProbeState::Skipped, "not reached".into(), None);
            }
        }
        let all = |states: &[ProbeState]| self.report.steps.iter().all(|line| states.contains(&line.state));
        self.report.ok = all(&[ProbeState::Ok, ProbeState::Skipped]);
        let failed = !all(&[ProbeState::Ok, ProbeState::Skipped, ProbeState::Unknown]);
        self.terminal.print_line("");
        self.terminal.print_line(match (self.report.ok, failed) {
            (true, _) => "A device's call works from here.",
            (false, true) => "Something fails.",
            (false, false) => "Not everything could be told from here.",
        });
        if !self.report.hints.is_empty() {
            self.terminal.print_line("");
            self.terminal.print_line("What to look at:");
            for hint in &self.report.hints {
                self.terminal.print_line(&format!("  - {hint}"));
            }
        }
        self.report
    }
}

fn ms(duration: Duration) -> f64 {
    // Microseconds are enough, and keep the JSON short.
    duration.as_micros() as f64 / 1000.0
}
