//! The gateway's command: arguments, configuration, log, signals, and the exit code.

use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use log::{error, info, log_enabled, warn};
use mqtt_websocket_proxy::clock::clock_warning;
use mqtt_websocket_proxy::config::{
    Config, ConfigErrors, DEFAULT_FILE, PublicIp, Source, Udp, unknown_variables,
};
use mqtt_websocket_proxy::logger;
use mqtt_websocket_proxy::net::gateway::fd_limit;
use mqtt_websocket_proxy::net::{Gateway, Handle, Predecessor, Program};
use mqtt_websocket_proxy::output_file;
use mqtt_websocket_proxy::tools::check;
use mqtt_websocket_proxy::tools::echo::EchoServer;
use mqtt_websocket_proxy::tools::language;
use mqtt_websocket_proxy::tools::page::page_url;
use pico_args::Arguments;

use crate::args::{Command, RunOptions};

mod args;
#[cfg(small)]
mod no_unwinding;

/// How long calls may take to end after the first signal to stop.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// How long writing the last log lines may take.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let run = match args::parse(Arguments::from_env()) {
        Ok(Command::Run(run)) => run,
        Ok(Command::Subcommand(run, args)) => return run(args),
        Ok(Command::Print(text)) => {
            // A closed pipe, as by `head`, is not a failure.
            let _ = writeln!(io::stdout(), "{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let help = format!("; see {} --help", env!("CARGO_PKG_NAME"));
            return ExitError::usage(error + &help).into_exit_code();
        }
    };
    let mut predecessor = match Predecessor::from_environment() {
        Ok(predecessor) => predecessor,
        Err(error) => {
            return ExitError::runtime(format!("the running gateway cannot be replaced: {error}"))
                .into_exit_code();
        }
    };
    if let Err(failure) = run_gateway(run, predecessor.as_mut()) {
        if let Some(predecessor) = &predecessor {
            predecessor.report_failure(&failure.messages.join("; "));
        }
        return failure.into_exit_code();
    }
    logger::flush(LOG_FLUSH_TIMEOUT);
    ExitCode::SUCCESS
}

/// Runs the gateway until it is told to stop.
fn run_gateway(run: RunOptions, mut predecessor: Option<&mut Predecessor>) -> Result<(), ExitError> {
    let program = program();
    let mut source = Source::new(run.config, run.log_level, |name| std::env::var_os(name));
    let mut config = source.load().map_err(ExitError::configuration)?;
    // This may block, and there is no other thread yet.
    fd_limit::reserve(config.mqtt.max_connections);
    let echo = start_echo(&mut source, &mut config)?;
    start_log(&config)?;
    log_startup(&source, &config, echo.as_ref());

    let mut gateway = match &mut predecessor {
        None => Gateway::bind(config.clone(), Some(source)),
        Some(predecessor) => Gateway::bind_in_place_of(predecessor, config.clone(), Some(source)),
    }
    .map_err(ExitError::runtime)?;
    gateway.set_checker(check::report);
    handle_signals(gateway.handle(), program, run.pid_file.clone())
        .map_err(|error| ExitError::runtime(format!("signals cannot be watched: {error}")))?;
    if let Some(predecessor) = &predecessor {
        let failed = |error| ExitError::runtime(format!("the running gateway cannot be replaced: {error}"));
        gateway.replace(predecessor).map_err(failed)?;
    }
    // Only now, so that a second gateway that finds the port in use leaves the first one's file alone.
    let _pid = run.pid_file.map(PidFile::write).transpose()?;
    let addresses = gateway.addresses();
    info!(
        "{}: {}, UDP on {}, management API {}, public ip {}, chat servers: {}{}",
        args::version(),
        match addresses.mqtts {
            None => format!("MQTT on {}", addresses.mqtt),
            Some(mqtts) if mqtts == addresses.mqtt => format!("MQTT over TLS on {mqtts}"),
            Some(mqtts) => format!("MQTT on {}, over TLS on {mqtts}", addresses.mqtt),
        },
        addresses.udp,
        addresses.api.map_or("off".to_owned(), |api| match config.api.tls.enabled {
            true => format!("over TLS on {api}"),
            false => format!("on {api}"),
        }),
        config.udp.public_ip,
        config.servers().count(),
        config.servers().map(|(_, server)| format!(", {server}")).collect::<String>(),
    );
    if let Some(api) = addresses.api {
        let opened = match (&config.mqtt.signature_key, &config.api.token) {
            (None, None) => "only this machine is served, as there is neither a signature key nor api.token",
            (_, Some(_)) => {
                "it asks for api.token, or for the token that `mqtt-websocket-proxy token` prints"
            }
            (Some(_), None) => "it asks for the token that `mqtt-websocket-proxy token` prints",
        };
        info!("management page: {} ({opened})", page_url(api, config.api.tls.enabled));
    }
    if let Some(predecessor) = predecessor {
        gateway.begin_to_serve(predecessor);
    }
    gateway.notify_service_manager();
    gateway.run().map_err(|error| ExitError::runtime(format!("the gateway failed: {error}")))?;
    info!("stopped");
    Ok(())
}

/// Starts the built-in echo server when no chat server is configured.
fn start_echo(source: &mut Source, config: &mut Config) -> Result<Option<EchoServer>, ExitError> {
    if config.servers().next().is_some() {
        return Ok(None);
    }
    let failed =
        |error: &dyn Display| ExitError::runtime(format!("the built-in echo server failed: {error}"));
    let echo = EchoServer::start().map_err(|error| failed(&error))?;
    source.set_echo(Arc::new(echo.url().parse().map_err(|error| failed(&error))?));
    *config = source.load().map_err(ExitError::configuration)?;
    Ok(Some(echo))
}

fn start_log(config: &Config) -> Result<(), ExitError> {
    let file = config.logging.file.as_deref();
    logger::start(config).map_err(|error| {
        ExitError::runtime(match file {
            Some(path) => format!("the log file {} cannot be opened: {error}", path.display()),
            None => format!("the log cannot be started: {error}"),
        })
    })
}

/// Logs where the configuration comes from, and warnings about it.
fn log_startup(source: &Source, config: &Config, echo: Option<&EchoServer>) {
    match source.path() {
        Some(path) => match &config.node_config {
            None => info!("configuration: {}", path.display()),
            Some(node) => info!("configuration: {}: {node}", path.display()),
        },
        None => info!("no configuration file ({DEFAULT_FILE}): running on defaults"),
    }
    let variables = source.variables();
    if !variables.is_empty() {
        info!("set by the environment: {}", variables.join(", "));
    }
    unknown_variables(std::env::vars_os().map(|(name, _)| name)).iter().for_each(|what| warn!("{what}"));
    if echo.is_some() {
        info!(
            "no chat server is configured: the built-in echo server answers calls with the device's own voice"
        );
    }
    config.warnings().iter().chain(&clock_warning()).for_each(|warning| warn!("{warning}"));
    if let PublicIp::Host(_) = config.udp.public_ip {
        resolve_public_ip(config.udp.clone());
    }
}

/// Resolving can take long, and nothing waits for it: devices resolve the name themselves.
fn resolve_public_ip(udp: Udp) {
    let resolve = move || udp.resolution_warning().into_iter().for_each(|warning| warn!("{warning}"));
    let spawned = thread::Builder::new().name("public-ip".to_owned()).stack_size(256 * 1024).spawn(resolve);
    if let Err(error) = spawned {
        warn!("udp.public_ip was not resolved: {error}");
    }
}

/// The file with our process id; removed when dropped.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: PathBuf) -> Result<Self, ExitError> {
        let mut options = OpenOptions::new();
        output_file::open(options.create(true).write(true), &path)
            .and_then(|mut file| {
                file.set_len(0)?;
                file.write_all(format!("{}\n", process::id()).as_bytes())
            })
            .map_err(|error| {
                ExitError::runtime(format!("the pid file {} cannot be written: {error}", path.display()))
            })?;
        Ok(Self(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        remove_pid_file(&self.0);
    }
}

/// Unless a process that has replaced this one has written its own id.
fn remove_pid_file(path: &Path) {
    if fs::read_to_string(path).is_ok_and(|text| text.trim() != process::id().to_string()) {
        return;
    }
    if let Err(error) = fs::remove_file(path) {
        warn!("the pid file {} cannot be removed: {error}", path.display());
    }
}

/// The program that an upgrade starts: the file that this one was started from, even if another one has taken its place since.
fn program() -> io::Result<Program> {
    let mut args = std::env::args_os();
    let name = PathBuf::from(args.next().unwrap_or_default());
    let current = std::env::current_exe()?;
    // The name may be a link to a version, which current_exe(3) follows.
    let is_this = |path: &PathBuf| path.canonicalize().is_ok_and(|path| path == current);
    let found = match name.components().count() {
        1 => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .map(|folder| folder.join(&name))
            .find(is_this),
        _ => std::path::absolute(&name).ok().filter(is_this),
    };
    Ok(Program { path: found.unwrap_or(current), args: args.collect() })
}

/// SIGINT and SIGTERM stop, a SIGINT after them ends the process at once, SIGHUP reloads, SIGUSR1 drains, SIGUSR2 upgrades.
#[cfg(unix)]
fn handle_signals(handle: Handle, program: io::Result<Program>, pid_file: Option<PathBuf>) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};

    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2])?;
    let watch = move || {
        let mut stopping = false;
        for signal in signals.forever() {
            match signal {
                SIGHUP => {
                    // The file may have been renamed, as logrotate does.
                    logger::reopen();
                    handle.reload_file();
                }
                SIGUSR1 => handle.drain(),
                SIGUSR2 => match &program {
                    Ok(program) => handle.upgrade(program.clone()),
                    Err(error) => {
                        error!("the upgrade is refused: the program's own file is unknown: {error}")
                    }
                },
                SIGINT if stopping => exit_immediately(pid_file.as_deref()),
                _ => stop(&handle, &mut stopping),
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).stack_size(128 * 1024).spawn(watch)?;
    Ok(())
}

/// Ctrl-C stops, another one ends the process at once.
#[cfg(windows)]
fn handle_signals(handle: Handle, _: io::Result<Program>, pid_file: Option<PathBuf>) -> io::Result<()> {
    let mut stopping = false;
    let watch = move || match stopping {
        true => exit_immediately(pid_file.as_deref()),
        false => stop(&handle, &mut stopping),
    };
    ctrlc::set_handler(watch).map_err(io::Error::other)
}

fn stop(handle: &Handle, stopping: &mut bool) {
    if !*stopping {
        info!("stopping: {} s for calls to end", STOP_GRACE.as_secs());
    }
    *stopping = true;
    handle.stop(STOP_GRACE);
}

fn exit_immediately(pid_file: Option<&Path>) -> ! {
    warn!("stopped at once, calls in progress are cut off");
    if let Some(path) = pid_file {
        remove_pid_file(path);
    }
    logger::flush(LOG_FLUSH_TIMEOUT);
    process::exit(1)
}

/// Why the program ends, and with which code.
struct ExitError {
    code: u8,
    messages: Vec<String>,
}

impl ExitError {
    fn usage(message: impl Display) -> Self {
        Self { code: 2, messages: vec![message.to_string()] }
    }

    fn configuration(errors: ConfigErrors) -> Self {
        Self { code: 2, messages: errors.0.iter().map(ToString::to_string).collect() }
    }

    fn runtime(message: impl Display) -> Self {
        Self { code: 1, messages: vec![message.to_string()] }
    }

    /// Reports it, a line for each message: in the log, which is English, and on stderr, unless that would repeat the log.
    fn into_exit_code(self) -> ExitCode {
        for message in &self.messages {
            let is_logged = log_enabled!(log::Level::Error);
            if is_logged {
                error!("{message}");
            }
            if !is_logged || !language::is_english() {
                let message = format!("error: {message}");
                // Nothing can be done when this fails.
                let _ = writeln!(io::stderr(), "{}", language::translated(&message));
            }
        }
        logger::flush(LOG_FLUSH_TIMEOUT);
        ExitCode::from(self.code)
    }
}
