//! The probe's report: one line for each step while it runs, and the same as JSON.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::ProbeFailed;
use super::options::ProbeOptions;
use crate::tools::language::{padded, translated, width};
use crate::tools::round_trip::RoundTripTest;
use crate::tools::step_report::{StepReport, StepState, milliseconds};
use crate::tools::terminal::Terminal;

/// The steps in their order: the name in JSON, and the one that is shown.
pub(super) const TCP: ProbeStep = ("tcp", "TCP");
pub(super) const TLS: ProbeStep = ("tls", "TLS");
pub(super) const MQTT: ProbeStep = ("mqtt", "MQTT");
pub(super) const AUTHENTICATION: ProbeStep = ("authentication", "authentication");
pub(super) const HELLO: ProbeStep = ("hello", "hello");
pub(super) const UDP_UP: ProbeStep = ("udp_up", "UDP up");
pub(super) const UDP_DOWN: ProbeStep = ("udp_down", "UDP down");
pub(super) const ROUND_TRIP: ProbeStep = ("round_trip", "round trip");
pub(super) const LOSS: ProbeStep = ("loss", "loss");
pub(super) const PAUSE: ProbeStep = ("pause", "after a pause");

const PROBE_STEPS: [ProbeStep; 10] =
    [TCP, TLS, MQTT, AUTHENTICATION, HELLO, UDP_UP, UDP_DOWN, ROUND_TRIP, LOSS, PAUSE];

pub(super) type ProbeStep = (&'static str, &'static str);

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
    pub(super) median: f64,
    p99: f64,
    pub(super) worst: f64,
}

impl RoundTripStats {
    pub(super) fn of(round_trip: &RoundTripTest) -> Self {
        let ms = |share| round_trip.percentile(share).map_or(0.0, milliseconds);
        Self { median: ms(0.5), p99: ms(0.99), worst: ms(1.0) }
    }
}

#[cfg(test)]
impl ProbeReport {
    pub(super) fn to_json(&self) -> String {
        crate::tools::step_report::to_json(self)
    }

    pub(super) fn hints(&self) -> &[String] {
        &self.hints
    }

    #[allow(clippy::unwrap_used)]
    pub(super) fn state(&self, (name, _): ProbeStep) -> StepState {
        self.steps.iter().find(|line| line.step == name).map(|line| line.state).unwrap()
    }
}

/// Prints steps as they come, and keeps them.
pub(super) struct ProbeReporter<'a> {
    pub(super) options: &'a ProbeOptions,
    terminal: Terminal,
    report: ProbeReport,
    next_redraw: Instant,
}

impl<'a> ProbeReporter<'a> {
    pub(super) fn new(mut terminal: Terminal, options: &'a ProbeOptions) -> Self {
        let (target, client_id) = (options.target(), options.login.client_id.clone());
        let over = if options.tls { " over TLS" } else { "" };
        terminal.say(&format!("Probing {target}{over} as device {client_id}"));
        terminal.print_line("");
        let report =
            ProbeReport { target, client_id, ok: false, steps: Vec::new(), audio: None, hints: Vec::new() };
        Self { options, terminal, report, next_redraw: Instant::now() }
    }

    pub(super) fn add_step(
        &mut self,
        (name, label): ProbeStep,
        state: StepState,
        detail: impl AsRef<str>,
        took: Option<Duration>,
    ) {
        let step = StepReport::new(name, state, detail, took);
        let sign = state.mark(if state == StepState::Unknown { "??" } else { "--" });
        let took = step.ms.map(|ms| format!(" ({ms:.1} ms)")).unwrap_or_default();
        let sign = translated(sign);
        let columns = 4 - (width(&sign) - sign.chars().count());
        let (label, detail) = (padded(&translated(label), 15), translated(&step.detail));
        self.terminal.print_line(&format!("  [{sign:^columns$}] {label} {detail}{took}"));
        self.report.steps.push(step);
    }

    pub(super) fn ok(&mut self, step: ProbeStep, detail: impl AsRef<str>, took: Option<Duration>) {
        self.add_step(step, StepState::Ok, detail, took);
    }

    pub(super) fn skipped(&mut self, step: ProbeStep, why: &str) {
        self.add_step(step, StepState::Skipped, why, None);
    }

    /// The step that the probe ends with.
    pub(super) fn fail(&mut self, step: ProbeStep, detail: impl AsRef<str>) -> ProbeFailed {
        self.add_step(step, StepState::Fail, detail, None);
        ProbeFailed
    }

    pub(super) fn add_hint(&mut self, hint: impl Into<String>) {
        self.report.hints.push(hint.into());
    }

    /// The current activity: redrawn in place on a terminal, else a line of its own.
    pub(super) fn progress(&mut self, what: &str) {
        let what = translated(what);
        self.terminal.redraw(&[format!("  [ .. ] {what}")]);
        self.terminal.print_plain(&format!("         {what}"));
    }

    /// Audio so far; on a terminal only.
    pub(super) fn show_audio_progress(&mut self, RoundTripTest { sent, received, .. }: &RoundTripTest) {
        let now = Instant::now();
        if now >= self.next_redraw {
            self.next_redraw = now + Duration::from_millis(100);
            let text = format!("{sent} of {} packets sent, {received} came back", self.options.packets);
            let (label, text) = (padded(&translated("audio"), 15), translated(&text));
            self.terminal.redraw(&[format!("  [ .. ] {label} {text}")]);
        }
    }

    pub(super) fn set_audio(&mut self, round_trip: &RoundTripTest, lost_down: u64) {
        let round_trip_ms = (round_trip.echoed > 0).then(|| RoundTripStats::of(round_trip));
        let (sent, echoed, received) = (round_trip.sent, round_trip.echoed, round_trip.received);
        self.report.audio = Some(AudioReport { sent, received, echoed, lost_down, round_trip_ms });
    }

    /// Adds the steps that were not reached, and shows the result.
    pub(super) fn finish(mut self) -> ProbeReport {
        let tls = self.options.tls;
        for step in PROBE_STEPS.into_iter().filter(|step| tls || *step != TLS) {
            if !self.report.steps.iter().any(|line| line.step == step.0) {
                self.skipped(step, "not reached");
            }
        }
        let all = |states: &[StepState]| self.report.steps.iter().all(|line| states.contains(&line.state));
        self.report.ok = all(&[StepState::Ok, StepState::Skipped]);
        let failed = !all(&[StepState::Ok, StepState::Skipped, StepState::Unknown]);
        self.terminal.print_line("");
        self.terminal.say(match (self.report.ok, failed) {
            (true, _) => "A device's call works from here.",
            (false, true) => "Something fails.",
            (false, false) => "Not everything could be determined from here.",
        });
        let hints: Vec<_> = self.report.hints.iter().map(|hint| translated(hint).into_owned()).collect();
        self.terminal.print_list("What to look at:", "  - ", &hints);
        self.report
    }
}
