//! What the probe shows: one line for each step while it runs, and the same as JSON.

use std::fmt::{self, Display};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Stop;
use super::options::Options;
use crate::text;
use crate::tools::round_trip::Exchange;
use crate::tools::terminal::Screen;

/// Bytes of a detail.
const SHOWN: usize = 1000;

/// The steps, in their order.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Name {
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

const STEPS: [Name; 9] = [
    Name::Tcp,
    Name::Tls,
    Name::Mqtt,
    Name::Authentication,
    Name::Hello,
    Name::UdpUp,
    Name::UdpDown,
    Name::RoundTrip,
    Name::Loss,
];

impl Name {
    fn words(self) -> &'static str {
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
pub(super) enum State {
    Ok,
    Fail,
    /// It was tried, and what was seen fits both.
    Unknown,
    /// Not tried or not measured.
    Skipped,
}

/// The outcome, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    target: String,
    client_id: String,
    pub(super) ok: bool,
    steps: Vec<Line>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audio: Option<Audio>,
    hints: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Line {
    step: Name,
    state: State,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ms: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Audio {
    sent: u32,
    /// Audio packets from the gateway, ours or not.
    received: u64,
    /// Packets of ours that came back.
    echoed: u32,
    lost_down: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    round_trip_ms: Option<RoundTrip>,
}

/// Milliseconds.
#[derive(Copy, Clone, Debug, Serialize)]
pub(super) struct RoundTrip {
    median: f64,
    p99: f64,
    worst: f64,
}

impl RoundTrip {
    pub(super) fn of(exchange: &Exchange) -> Self {
        let ms = |share| exchange.round_trip(share).map_or(0.0, ms);
        Self { median: ms(0.5), p99: ms(0.99), worst: ms(1.0) }
    }
}

impl Display for RoundTrip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ms median, {:.1} ms worst, chat server included", self.median, self.worst)
    }
}

impl Report {
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| format!("{{\"error\":{:?}}}", error.to_string()))
    }

    #[cfg(test)]
    pub(super) fn hints(&self) -> &[String] {
        &self.hints
    }

    #[cfg(test)]
    #[allow(clippy::unwrap_used)]
    pub(super) fn state(&self, name: Name) -> State {
        self.steps.iter().find(|line| line.step == name).map(|line| line.state).unwrap()
    }
}

/// Prints steps as they come, and keeps them.
pub(super) struct Reporter {
    screen: Screen,
    report: Report,
    /// Whether TLS is a step at all.
    tls: bool,
    redraw: Instant,
}

impl Reporter {
    pub(super) fn new(mut screen: Screen, options: &Options) -> Self {
        let (target, client_id) = (options.target(), options.login.client_id.clone());
        let over = if options.tls { " over TLS" } else { "" };
        screen.say(&format!("Probing {target}{over} as device {client_id}"));
        screen.say("");
        let report =
            Report { target, client_id, ok: false, steps: Vec::new(), audio: None, hints: Vec::new() };
        Self { screen, report, tls: options.tls, redraw: Instant::now() }
    }

    pub(super) fn step(&mut self, step: Name, state: State, detail: String, took: Option<Duration>) {
        // The gateway's words, or its chat server's, may be among it.
        let detail = text::printable(&detail, SHOWN).into_owned();
        let ms = took.map(ms);
        let sign = match state {
            State::Ok => " ok ",
            State::Fail => "FAIL",
            State::Unknown => " ?? ",
            State::Skipped => " -- ",
        };
        let took = ms.map(|ms| format!(" ({ms:.1} ms)")).unwrap_or_default();
        self.screen.say(&format!("  [{sign}] {:<15} {detail}{took}", step.words()));
        self.report.steps.push(Line { step, state, detail, ms });
    }

    /// The step that the probe ends with.
    pub(super) fn stop(&mut self, step: Name, detail: String) -> Stop {
        self.step(step, State::Fail, detail, None);
        Stop
    }

    pub(super) fn hint(&mut self, hint: String) {
        self.report.hints.push(hint);
    }

    /// What it does now: in place on a terminal, a line of its own elsewhere.
    pub(super) fn progress(&mut self, what: &str) {
        if self.screen.is_live() {
            self.screen.draw(&[format!("  [ .. ] {what}")]);
        } else {
            self.screen.say(&format!("         {what}"));
        }
    }

    /// Audio so far; on a terminal only.
    pub(super) fn live(&mut self, sent: u32, packets: u32, heard: u64) {
        let now = Instant::now();
        if now >= self.redraw {
            self.redraw = now + Duration::from_millis(100);
            let text =
                format!("  [ .. ] audio           {sent} of {packets} packets sent, {heard} came back");
            self.screen.draw(&[text]);
        }
    }

    pub(super) fn audio(&mut self, exchange: &Exchange, lost_down: u64) {
        let round_trip_ms = (exchange.echoed > 0).then(|| RoundTrip::of(exchange));
        let (sent, echoed, received) = (exchange.sent, exchange.echoed, exchange.heard);
        self.report.audio = Some(Audio { sent, received, echoed, lost_down, round_trip_ms });
    }

    /// Fills in what was not reached, and says what it comes to.
    pub(super) fn finish(mut self) -> Report {
        let tls = self.tls;
        for step in STEPS.into_iter().filter(|step| tls || *step != Name::Tls) {
            if !self.report.steps.iter().any(|line| line.step == step) {
                self.step(step, State::Skipped, "not reached".into(), None);
            }
        }
        let all = |states: &[State]| self.report.steps.iter().all(|line| states.contains(&line.state));
        self.report.ok = all(&[State::Ok, State::Skipped]);
        let failed = !all(&[State::Ok, State::Skipped, State::Unknown]);
        self.screen.say("");
        self.screen.say(match (self.report.ok, failed) {
            (true, _) => "A device's call works from here.",
            (false, true) => "Something fails.",
            (false, false) => "Not everything could be told from here.",
        });
        if !self.report.hints.is_empty() {
            self.screen.say("");
            self.screen.say("What to look at:");
            for hint in &self.report.hints {
                self.screen.say(&format!("  - {hint}"));
            }
        }
        self.report
    }
}

fn ms(duration: Duration) -> f64 {
    // Microseconds are enough, and keep the JSON short.
    duration.as_micros() as f64 / 1000.0
}
