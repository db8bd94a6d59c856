//! `check`: reads the configuration as the gateway would, tries every chat server as a call would, and reports what is
//! wrong and what to do about it.

mod conversation;
mod diagnosis;
mod ota;
mod ports;
mod public_ip;
#[cfg(feature = "cluster")]
mod redis;
mod report;
mod server;
mod settings;

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use pico_args::Arguments;

use self::diagnosis::ServerDiagnosis;
use self::report::{CheckReporter, Finding, Findings, ServerReport};
use self::server::ServerCheck;
use super::command_line::{self, CommandLine};
use super::step_report::{self, StepState};
use super::terminal::Terminal;
use crate::clock::clock_warning;
use crate::config::{Config, NODE_FILE, Source, unknown_variables};
use crate::proto::identity::{ClientId, Mac};

const HELP: &str = "\
Read the configuration, try every chat server as a call would, and say in words what
is wrong and what to do about it: the settings, the address devices send audio to, and
for each server its name, TCP, TLS, the WebSocket upgrade, the hello and the framing.

Usage: mqtt-websocket-proxy check [options]

Each server gets one short call with a few packets of silence.

Options:
  -c, --config FILE  configuration file, as for the gateway; the Node.js gateway's
                     config/mqtt.json with the .env beside it is understood too
  --migrate          print that configuration as a gateway.json, secrets included,
                     and do nothing else (default FILE: config/mqtt.json)
  --mac MAC          MAC address to show to the servers (default: 02:63:68:65:63:6b);
                     a server may answer only devices that it knows
  --uuid UUID        client id to show to them (default: the MAC)
  --timeout N        seconds to wait at each step, 1 to 60 (default: 5)
  --json             print the report as one line of JSON; all else goes to stderr
  --lang LANG        en or zh: the language of messages (default: the environment's);
                     JSON is English
  -h, --help         show this help

Environment: as for the gateway; see mqtt-websocket-proxy --help.

Exit code: 0 nothing fails, 1 something fails, 2 the configuration cannot be used, or
wrong usage.";

/// Servers that are tried in parallel.
const MAX_CONCURRENT_CHECKS: usize = 8;

/// How long a step may take.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Locally administered, and "check" in ASCII.
const DEFAULT_MAC: [u8; 6] = [0x02, 0x63, 0x68, 0x65, 0x63, 0x6b];

/// What to check, as which device, and with which timeout.
struct CheckOptions {
    config: Option<PathBuf>,
    migrate: bool,
    mac: Mac,
    uuid: String,
    timeout: Duration,
    json: bool,
}

impl CheckOptions {
    fn parse(mut args: CommandLine) -> Result<Self, String> {
        let config = args.config()?;
        let mac = args.value("--mac")?.unwrap_or(Mac::from(DEFAULT_MAC));
        let uuid = args.text("--uuid")?.unwrap_or_else(|| mac.underscored());
        ClientId::parse(&format!("check@@@{mac}@@@{uuid}")).map_err(|error| format!("--uuid: {error}"))?;
        let timeout = args.whole_number("--timeout", 60)?.map(|seconds| Duration::from_secs(seconds.into()));
        let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT);
        let (migrate, json) = (args.flag("--migrate"), args.flag("--json"));
        args.finish()?;
        let node = || (migrate && Path::new(NODE_FILE).exists()).then(|| PathBuf::from(NODE_FILE));
        let config = config.or_else(node);
        Ok(Self { config, migrate, mac, uuid, timeout, json })
    }
}

/// Runs the sub-command with its own arguments.
pub fn run(args: Arguments) -> ExitCode {
    command_line::run("check", HELP, args, CheckOptions::parse, |options| {
        let source = Source::new(options.config.clone(), None, |name| std::env::var_os(name));
        if options.migrate { migrate(&source) } else { Ok(check(&options, &source)) }
    })
}

/// Checks a configuration in use, and returns what `--json` prints, without where it came from.
pub fn report(config: &Config) -> String {
    let mac = Mac::from(DEFAULT_MAC);
    let options = CheckOptions {
        config: None,
        migrate: false,
        mac,
        uuid: mac.underscored(),
        timeout: DEFAULT_TIMEOUT,
        json: true,
    };
    let settings = find_settings(config, &options);
    let report = Findings::new(settings, try_servers(config, &options));
    step_report::to_json(&report)
}

fn check(options: &CheckOptions, source: &Source) -> ExitCode {
    let terminal = if options.json { Terminal::stderr() } else { Terminal::stdout() };
    let (config, errors) = source.load_with_errors();
    let mut reporter = CheckReporter::new(terminal, source, &config);
    let report = if errors.is_empty() {
        reporter.progress(&format!("trying {} chat servers ...", config.servers().count()));
        let settings = find_settings(&config, options);
        reporter.finish(Findings::new(settings, try_servers(&config, options)))
    } else {
        reporter.config_rejected(&errors)
    };
    if options.json {
        Terminal::stdout().print_line(&step_report::to_json(&report));
    }
    match (report.findings.ok, report.problems.is_empty()) {
        (true, _) => ExitCode::SUCCESS,
        (false, true) => ExitCode::FAILURE,
        (false, false) => ExitCode::from(2),
    }
}

/// What there is to say about everything but the chat servers.
fn find_settings(config: &Config, options: &CheckOptions) -> Vec<Finding> {
    let mut findings = settings::check_settings(config);
    findings.extend(ports::check_ports(config));
    findings.extend(ota::check_ota(config, options.mac, options.timeout));
    #[cfg(feature = "cluster")]
    findings.extend(redis::check_redis(&config.cluster, options.timeout));
    findings.push(public_ip::check_public_ip(&config.udp));
    let unknown = unknown_variables(std::env::vars_os().map(|(name, _)| name));
    findings.extend(unknown.into_iter().map(|what| Finding::new("configuration", StepState::Warn, what)));
    findings.extend(clock_warning().map(|warning| Finding::new("clock", StepState::Warn, warning)));
    findings.extend(public_ip::check_container(&config.udp));
    findings
}

fn try_servers(config: &Config, options: &CheckOptions) -> Vec<ServerReport> {
    let mut reports = Vec::new();
    for some in config.servers().collect::<Vec<_>>().chunks(MAX_CONCURRENT_CHECKS) {
        reports.extend(thread::scope(|scope| {
            let start = |&(list, server)| {
                let check = ServerCheck { options, diagnosis: ServerDiagnosis { server, config } };
                scope.spawn(move || check.run(list))
            };
            let threads: Vec<_> = some.iter().map(start).collect();
            let reports =
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            reports.collect::<Vec<_>>()
        }));
    }
    reports
}

/// Prints the configuration as a file in the gateway's own shape.
///
/// # Errors
/// The configuration cannot be used, or is in that shape already.
fn migrate(source: &Source) -> Result<ExitCode, String> {
    let config = source.load().map_err(|error| error.to_string())?;
    let Some(node) = &config.node_config else {
        let path = source.path().map_or_else(|| "there".into(), |path| path.display().to_string());
        return Err(format!(
            "{path}: no configuration of the Node.js gateway, so there is nothing to migrate"
        ));
    };
    let mut notes = Terminal::stderr();
    if !config.unused_keys.is_empty() {
        let unused = config.unused_keys.join(", ");
        let note = format!("note: left out, as this gateway does not use it: {unused}");
        notes.say(&note);
    }
    if node.env_file.is_none() {
        let note =
            "note: there is no .env in the working directory; run this where the Node.js gateway is started";
        notes.say(note);
    }
    if config.mqtt.signature_key.is_some() || config.websocket.secret.is_some() {
        notes.say("note: it holds your keys: let nobody but the gateway read it");
    }
    Terminal::stdout().print_line(config.to_file_text().trim_end());
    Ok(ExitCode::SUCCESS)
}
