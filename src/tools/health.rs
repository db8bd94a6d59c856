//! `health`: asks a running gateway whether its loop turns, for containers that have no other program to ask with.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use pico_args::Arguments;

use super::terminal::Terminal;
use crate::config::Source;

const HELP: &str = "\
Ask the gateway on this machine whether it runs: GET /healthz on the management port.

Usage: mqtt-websocket-proxy health [options]

Options:
  -c, --config FILE  configuration file, as for the gateway, which names the port
  --ready            ask whether it takes devices instead: GET /readyz
  -h, --help         show this help

Environment: as for the gateway; see mqtt-websocket-proxy --help.

Exit code: 0 yes, 1 no, 2 the configuration cannot be used, or wrong usage.";

/// A loop that takes longer is not well.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Runs the sub-command with its own arguments.
pub fn run(mut args: Arguments) -> ExitCode {
    if args.contains(["-h", "--help"]) {
        Terminal::stdout().print_line(HELP);
        return ExitCode::SUCCESS;
    }
    let path = if args.contains("--ready") { "/readyz" } else { "/healthz" };
    let address = match api_address(args) {
        Ok(address) => address,
        Err(error) => {
            Terminal::stderr().print_line(&format!("health: {error}"));
            return ExitCode::from(2);
        }
    };
    match http_get(address, path) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => {
            Terminal::stdout().print_line(answer.lines().last().unwrap_or_default());
            ExitCode::SUCCESS
        }
        Ok(answer) => unhealthy(address, answer.lines().last().unwrap_or_default()),
        Err(error) => unhealthy(address, &error.to_string()),
    }
}

fn unhealthy(address: SocketAddr, why: &str) -> ExitCode {
    Terminal::stderr().print_line(&format!("health: {address}: {why}"));
    ExitCode::FAILURE
}

/// Where the gateway of this configuration listens for management calls.
fn api_address(mut args: Arguments) -> Result<SocketAddr, String> {
    let path = |text: &OsStr| Ok::<_, Infallible>(PathBuf::from(text));
    let config = args.opt_value_from_os_str(["-c", "--config"], path).map_err(|error| error.to_string())?;
    if let Some(unknown) = args.finish().first() {
        return Err(format!("unknown argument {}; see health --help", unknown.to_string_lossy()));
    }
    let config = Source::new(config, None, |name| std::env::var_os(name)).load();
    let config = config.map_err(|error| error.to_string())?;
    if !config.api.enabled || config.api.port == 0 {
        return Err("api.enabled and a fixed api.port are needed to ask".to_owned());
    }
    let ip = match config.api_host() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(SocketAddr::new(ip, config.api.port))
}

/// The whole answer; it is short.
fn http_get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    Ok(answer)
}
