//! The report of `check`: a table of settings, a table of servers, and advice, for people or as JSON.

use std::time::Duration;

use serde::Serialize;

use crate::config::{Config, ConfigError, Source};
use crate::tools::language::{is_wide, padded, translated, width};
use crate::tools::step_report::{StepReport, StepState};
use crate::tools::terminal::Terminal;

/// The outcome, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct CheckReport {
    config: ConfigOrigin,
    /// Why the configuration cannot be used; nothing else is looked at then.
    pub(super) problems: Vec<String>,
    #[serde(flatten)]
    pub(super) findings: Findings,
}

/// What was found about a configuration that can be used.
#[derive(Debug, Default, Serialize)]
pub(super) struct Findings {
    /// Nothing fails.
    pub(super) ok: bool,
    pub(super) settings: Vec<Finding>,
    pub(super) servers: Vec<ServerReport>,
}

impl Findings {
    pub(super) fn new(settings: Vec<Finding>, servers: Vec<ServerReport>) -> Self {
        let mut findings = Self { ok: false, settings, servers };
        findings.ok = !findings.has(StepState::Fail);
        findings
    }

    fn has(&self, state: StepState) -> bool {
        let settings = self.settings.iter().map(|finding| finding.state);
        settings.chain(self.servers.iter().map(|report| report.state)).any(|found| found == state)
    }
}

#[derive(Debug, Serialize)]
struct ConfigOrigin {
    file: Option<String>,
    /// `gateway`, `node` or `defaults`.
    shape: &'static str,
    /// The variables taken from `.env`, when a file of the Node.js gateway has one.
    env_file: Option<Vec<String>>,
    /// The environment variables that set keys.
    environment: Vec<String>,
}

/// What was found about a setting.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) name: &'static str,
    pub(super) state: StepState,
    pub(super) detail: String,
    /// What to do about it.
    pub(super) advice: Vec<String>,
}

impl Finding {
    pub(super) fn new(name: &'static str, state: StepState, detail: impl Into<String>) -> Self {
        Self { name, state, detail: detail.into(), advice: Vec::new() }
    }

    pub(super) fn with_advice(mut self, advice: impl Into<String>) -> Self {
        self.advice.push(advice.into());
        self
    }
}

/// The steps of checking a chat server, in their order.
pub(super) const SERVER_STEPS: [&str; 6] = ["name", "tcp", "tls", "upgrade", "hello", "framing"];

/// The result for one chat server.
#[derive(Debug, Serialize)]
pub(super) struct ServerReport {
    /// Its URL, without the secrets in its query.
    pub(super) server: String,
    /// `production`, `development`, or the name of its route.
    pub(super) list: String,
    /// The worst of the steps.
    pub(super) state: StepState,
    pub(super) steps: Vec<StepReport>,
    pub(super) troubles: Vec<ServerProblem>,
}

/// What is wrong, and what to do about it.
#[derive(Debug, Serialize)]
pub(super) struct ServerProblem {
    pub(super) cause: String,
    pub(super) advice: Vec<String>,
}

impl ServerProblem {
    pub(super) fn new(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), advice: Vec::new() }
    }

    pub(super) fn with_advice(mut self, advice: impl Into<String>) -> Self {
        self.advice.push(advice.into());
        self
    }
}

impl ServerReport {
    pub(super) fn add_step(
        &mut self,
        step: &'static str,
        state: StepState,
        detail: impl AsRef<str>,
        took: Option<Duration>,
    ) {
        self.steps.push(StepReport::new(step, state, detail, took));
        self.state = match (self.state, state) {
            (StepState::Fail, _) | (_, StepState::Fail) => StepState::Fail,
            (StepState::Warn, _) | (_, StepState::Warn) => StepState::Warn,
            (other, _) => other,
        };
    }

    fn step_cell(&self, name: &str) -> String {
        match self.steps.iter().find(|step| step.step == name) {
            None => "-".to_owned(),
            Some(StepReport { state: StepState::Ok, ms: Some(ms), .. }) => format!("{ms:.1} ms"),
            Some(StepReport { state: StepState::Ok, detail, .. }) => detail.clone(),
            Some(StepReport { state, .. }) => state.mark("?").to_owned(),
        }
    }
}

/// Columns of a line of advice, more or less.
const MAX_LINE_WIDTH: usize = 100;

/// Collects the findings, and shows them.
pub(super) struct CheckReporter {
    terminal: Terminal,
    pub(super) report: CheckReport,
}

impl CheckReporter {
    pub(super) fn new(mut terminal: Terminal, source: &Source, config: &Config) -> Self {
        let file = source.path().map(|path| path.display().to_string());
        let (shape, heading) = match (&file, &config.node_config) {
            (None, _) => ("defaults", "Checking the defaults: there is no configuration file".to_owned()),
            (Some(file), None) => ("gateway", format!("Checking {file}")),
            (Some(file), Some(node)) => ("node", format!("Checking {file}: {node}")),
        };
        terminal.say(&heading);
        let environment: Vec<_> = source.variables().into_iter().map(str::to_owned).collect();
        if !environment.is_empty() {
            let set = format!("Set by the environment: {}", environment.join(", "));
            terminal.say(&set);
        }
        let env_file = config.node_config.as_ref().and_then(|node| node.env_file.clone());
        let config = ConfigOrigin { file, shape, env_file, environment };
        let report = CheckReport { config, problems: Vec::new(), findings: Findings::default() };
        Self { terminal, report }
    }

    /// The current activity, on a terminal.
    pub(super) fn progress(&mut self, what: &str) {
        self.terminal.redraw(&[translated(what).into_owned()]);
    }

    /// The configuration cannot be used.
    pub(super) fn config_rejected(mut self, errors: &[ConfigError]) -> CheckReport {
        self.report.problems = errors.iter().map(ToString::to_string).collect();
        let problems: Vec<_> =
            self.report.problems.iter().map(|problem| translated(problem).into()).collect();
        self.terminal.print_list("The configuration cannot be used:", "  - ", &problems);
        self.report
    }

    /// Shows all findings and the result.
    pub(super) fn finish(mut self, findings: Findings) -> CheckReport {
        let result = (findings.ok, findings.has(StepState::Warn));
        self.report.findings = findings;
        self.show_settings();
        self.show_servers();
        self.show_advice();
        self.terminal.print_line("");
        self.terminal.say(match result {
            (false, _) => "Something fails.",
            (true, true) => "Nothing fails, but there are warnings.",
            (true, false) => "Everything works.",
        });
        self.report
    }

    fn show_settings(&mut self) {
        self.terminal.print_line("");
        let row = |name: &str, result: &str, found: &str| {
            let (name, result) = (padded(&translated(name), 16), padded(&translated(result), 6));
            format!("  {name}  {result}  {}", translated(found))
        };
        self.terminal.print_line(&row("SETTING", "RESULT", "FOUND"));
        for Finding { name, state, detail, .. } in &self.report.findings.settings {
            self.terminal.print_line(&row(name, state.mark("-"), detail));
        }
    }

    fn show_servers(&mut self) {
        let servers = &self.report.findings.servers;
        if servers.is_empty() {
            return;
        }
        let widest = servers.iter().map(|report| report.server.len()).max().unwrap_or_default().max(11);
        let row = |name: &str, cells: &[String]| {
            let cells: Vec<_> = cells.iter().map(|cell| padded(&translated(cell), 9)).collect();
            format!("  {}  {}", padded(&translated(name), widest), cells.join(" ")).trim_end().to_owned()
        };
        self.terminal.print_line("");
        self.terminal.print_line(&row("CHAT SERVER", &SERVER_STEPS.map(heading)));
        for report in servers {
            let cells = SERVER_STEPS.map(|step| report.step_cell(step));
            self.terminal.print_line(&row(&report.server, &cells));
        }
    }

    fn show_advice(&mut self) {
        let advised = self.report.findings.settings.iter().filter(|finding| !finding.advice.is_empty());
        let settings = advised.map(|finding| (finding.name, &finding.detail, &finding.advice));
        let troubles = self.report.findings.servers.iter().flat_map(|report| {
            report.troubles.iter().map(|problem| (report.server.as_str(), &problem.cause, &problem.advice))
        });
        let mut lines = Vec::new();
        for (name, cause, advice) in settings.chain(troubles) {
            let cause = format!("{}: {}", translated(name), translated(cause));
            wrap("  ", "  ", &cause, &mut lines);
            advice.iter().for_each(|advice| wrap("    -> ", "       ", &translated(advice), &mut lines));
        }
        self.terminal.print_list("What to look at:", "", &lines);
    }
}

/// The heading of a step's column.
fn heading(step: &str) -> String {
    let translated = translated(step);
    if translated == step { step.to_uppercase() } else { translated.into_owned() }
}

/// Breaks a text into lines of about 100 columns, the first and the others begun as told: behind spaces and wide characters.
fn wrap(first: &str, other: &str, text: &str, lines: &mut Vec<String>) {
    let mut line = first.to_owned();
    for word in text.split_inclusive(|c| c == ' ' || is_wide(c)) {
        // Punctuation stays on the line of what it ends.
        let can_begin = !word.starts_with(['，', '。', '；', '：', '、', '）', '？', '”']);
        if can_begin && width(&line) > other.len() && width(&line) + width(word.trim_end()) > MAX_LINE_WIDTH {
            lines.push(line.trim_end().to_owned());
            line = other.to_owned();
        }
        line.push_str(word);
    }
    lines.push(line.trim_end().to_owned());
}
