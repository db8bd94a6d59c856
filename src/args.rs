//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use log::LevelFilter;
use mqtt_websocket_proxy::config::{DEFAULT_FILE, LEVELS, NODE_FILE, VARIABLES, parse_level};
use mqtt_websocket_proxy::tools::command_line::{finish, nearest, path_option};
use mqtt_websocket_proxy::tools::{check, credentials, demo, drain, health, init, language, probe, token};
use pico_args::Arguments;

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// Run the gateway.
    Run(RunOptions),
    /// Run a sub-command with the arguments behind its name.
    Subcommand(RunSubcommand, Arguments),
    /// Print this text.
    Print(String),
}

/// The options of the gateway.
#[derive(Debug, PartialEq)]
pub(crate) struct RunOptions {
    /// The configuration file.
    pub(crate) config: Option<PathBuf>,
    /// The log level, over file and environment.
    pub(crate) log_level: Option<LevelFilter>,
    /// The file that holds the process id while the gateway runs.
    pub(crate) pid_file: Option<PathBuf>,
}

/// Runs a sub-command with its own arguments.
pub(crate) type RunSubcommand = fn(Arguments) -> ExitCode;

/// The sub-commands by their names.
const SUBCOMMANDS: [(&str, RunSubcommand); 8] = [
    ("demo", demo::run),
    ("init", init::run),
    ("probe", probe::run),
    ("check", check::run),
    ("credentials", credentials::run),
    ("token", token::run),
    ("health", health::run),
    ("drain", drain::run),
];

/// Reads the command line, without the program's name.
///
/// # Errors
/// When it is not understood: one line that says why.
pub(crate) fn parse(mut args: Arguments) -> Result<Command, String> {
    language::choose(&mut args, |name| std::env::var_os(name))?;
    let name = args.subcommand().map_err(|error| error.to_string())?;
    if let Some(name) = name.as_deref().filter(|name| !["help", "version"].contains(name)) {
        let known = SUBCOMMANDS.map(|(known, _)| known);
        let found = SUBCOMMANDS.iter().find(|(known, _)| *known == name);
        let unknown = || {
            format!("unknown command {name:?}; the nearest is {}", nearest(name, &known).unwrap_or_default())
        };
        return found.map(|(_, run)| Command::Subcommand(*run, args)).ok_or_else(unknown);
    }
    let name = name.as_deref();
    if name == Some("help") || args.contains(["-h", "--help"]) {
        return Ok(Command::Print(help()));
    }
    if name == Some("version") || args.contains(["-v", "--version"]) || args.contains("-V") {
        return Ok(Command::Print(version().to_owned()));
    }
    let run = RunOptions {
        config: path_option(&mut args, ["-c", "--config"])?,
        log_level: log_level_option(&mut args)?,
        pid_file: path_option(&mut args, ["-p", "--pid"])?,
    };
    finish(args, &["--config", "--log-level", "--pid", "--lang", "--version", "--help"])?;
    Ok(Command::Run(run))
}

fn log_level_option(args: &mut Arguments) -> Result<Option<LevelFilter>, String> {
    let name: Option<String> =
        args.opt_value_from_str(["-l", "--log-level"]).map_err(|error| error.to_string())?;
    let known =
        |name: String| parse_level(&name).ok_or(format!("--log-level: found {name:?}, allowed: {LEVELS}"));
    name.map(known).transpose()
}

/// The help text.
fn help() -> String {
    let variables = VARIABLES.map(|(name, meaning)| format!("  {name:<22}{meaning}\n")).concat();
    format!(
        "\
{version}
Gateway between XiaoZhi voice devices (MQTT, encrypted UDP audio) and WebSocket chat servers.

Usage:
  mqtt-websocket-proxy [options]
  mqtt-websocket-proxy demo [options]               show a call: gateway, echo server and device in one
  mqtt-websocket-proxy init [options]               write a configuration, say what to do next
  mqtt-websocket-proxy probe HOST[:PORT] [options]  be a device: say what works at a gateway, step by step
  mqtt-websocket-proxy check [options]              say what is wrong with configuration and chat servers
  mqtt-websocket-proxy credentials [options]        print what a device must be given to log in
  mqtt-websocket-proxy token [options]              print today's token of the management page, and its URL
  mqtt-websocket-proxy health [options]             ask the gateway on this machine whether it runs
  mqtt-websocket-proxy drain [options]              let its calls end, and it with the last; what it waits for
Each command has a --help of its own.

Options:
  -c, --config FILE       configuration file (default: {DEFAULT_FILE}, else {NODE_FILE} of the
                          Node.js gateway, which works as it is, with its .env; else defaults)
  -l, --log-level LEVEL   {LEVELS}
  -p, --pid FILE          write the process id to FILE, and remove it at the end
  --lang LANG             en or zh: the language of messages (default: the first of LC_ALL,
                          LC_MESSAGES and LANG); the log is English
  -v, --version           print the version, as -V and version do
  -h, --help              print this text, as help does

Environment, over the file and under the options:
{variables}  MQTT_PROXY_...        any key of the file, in upper case with _ for dots, as in
                        MQTT_PROXY_WEBSOCKET_PRODUCTION_SERVERS=ws://one/,ws://two/
                        a list has commas or is JSON, an object is JSON
  ..._FILE              for signature keys, server secret and API token: the file that holds it

Signals: SIGINT and SIGTERM stop, SIGHUP reads the configuration file and opens the log file again, SIGUSR1
drains: no new devices, and the end when the last call is over. SIGUSR2 upgrades in place
(Linux): the program file is started again and takes the ports over, and this process ends when its last
call is over.
Log: coloured on a terminal, unless NO_COLOR is set; with priorities under systemd.
Exit codes: 0 stopped as asked, 1 failed to start or to run, 2 wrong command line or configuration.",
        version = version(),
    )
}

/// Name and version.
pub(crate) fn version() -> &'static str {
    concat!("mqtt-websocket-proxy ", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(Arguments::from_vec(line.split_whitespace().map(Into::into).collect()))
    }

    #[test]
    fn short_and_long_options_are_parsed() {
        for line in ["-c a.json -l DEBUG -p a.pid", "--pid a.pid --log-level debug --config a.json"] {
            let Ok(Command::Run(run)) = parsed(line) else { panic!("{line}") };
            assert_eq!(run.config, Some("a.json".into()));
            assert_eq!(run.log_level, Some(LevelFilter::Debug));
            assert_eq!(run.pid_file, Some("a.pid".into()));
        }
        let Ok(Command::Run(run)) = parsed("") else { panic!() };
        assert_eq!(run, RunOptions { config: None, log_level: None, pid_file: None });
        assert!(matches!(parsed("-h"), Ok(Command::Print(text)) if text == help()));
        assert!(matches!(parsed("-c x --version"), Ok(Command::Print(text)) if text == version()));
    }

    #[test]
    fn a_subcommand_gets_the_remaining_arguments() {
        for (name, _) in SUBCOMMANDS {
            let Ok(Command::Subcommand(_, rest)) = parsed(&format!("{name} host:1883 --help")) else {
                panic!("{name}")
            };
            assert_eq!(rest.finish(), ["host:1883", "--help"]);
        }
    }

    #[test]
    fn unknown_arguments_are_named() {
        for (line, part) in [
            ("--nonsense", "--nonsense"),
            ("-l info extra", "extra"),
            ("nonsense", "nonsense"),
            ("-c", "-c"),
            ("-l loud", "--log-level: found \"loud\", allowed: off, error"),
            ("-c a -c b", "-c"),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(error.contains(part) && !error.contains('\n'), "{line}: {error}");
        }
    }

    #[test]
    fn the_help_text_names_every_option_and_variable() {
        let help = help();
        let options = [
            "--config",
            "--log-level",
            "--pid",
            "--lang",
            "--version",
            "--help",
            "demo",
            "probe HOST[:PORT]",
            "init",
            "check",
            "token",
            "health",
            "drain",
        ];
        for name in options.into_iter().chain(VARIABLES.map(|(name, _)| name)) {
            assert!(help.contains(name), "{name}");
        }
        assert!(help.lines().all(|line| line.len() <= 110), "{help}");
    }
}
