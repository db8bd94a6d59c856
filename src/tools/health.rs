//! `health`: asks a running gateway whether it is alive, for containers without an HTTP client.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use pico_args::Arguments;

use super::command_line::{self, CommandLine};
use super::device::tls::start_tls;
use super::terminal::Terminal;
use crate::config::{Config, Source};
use crate::net::backend::tls::TlsClient;
use crate::net::event_loop::stream::Stream;

const HELP: &str = "\
Ask the gateway on this machine whether it runs: GET /healthz on the management port.

Usage: mqtt-websocket-proxy health [options]

Options:
  -c, --config FILE  configuration file, as for the gateway, which names the port
  --ready            ask whether it takes devices instead: GET /readyz
  -h, --help         show this help

Environment: as for the gateway; see mqtt-websocket-proxy --help.

Exit code: 0 yes, 1 no, 2 the configuration cannot be used, or wrong usage.";

/// A gateway that takes longer is not healthy.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Runs the sub-command with its own arguments.
pub fn run(args: Arguments) -> ExitCode {
    command_line::run("health", HELP, args, parse, |(source, path)| Ok(check(&load(&source)?, path)))
}

fn parse(mut args: CommandLine) -> Result<(Source, &'static str), String> {
    let path = if args.flag("--ready") { "/readyz" } else { "/healthz" };
    let source = Source::new(args.config()?, None, |name| std::env::var_os(name));
    args.finish()?;
    Ok((source, path))
}

fn check(config: &Config, path: &str) -> ExitCode {
    let answer = http_request(config, "GET", path, None).unwrap_or_else(|error| error.to_string());
    let text = answer.lines().last().unwrap_or_default();
    if answer.starts_with("HTTP/1.1 200 ") {
        Terminal::stdout().print_line(text);
        return ExitCode::SUCCESS;
    }
    Terminal::stderr().print_line(&format!("health: {}: {text}", local_api_address(config)));
    ExitCode::FAILURE
}

/// The configuration of a gateway that can be asked.
fn load(source: &Source) -> Result<Config, String> {
    let config = source.load().map_err(|error| error.to_string())?;
    if !config.api.enabled || config.api.port == 0 {
        return Err("the management API must be on (api.enabled) and have a fixed port (api.port)".to_owned());
    }
    Ok(config)
}

/// The address at which this machine reaches the management listener.
pub(super) fn local_api_address(config: &Config) -> SocketAddr {
    let ip = match config.api_host() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, config.api.port)
}

/// What a gateway of this configuration on this machine responds, or the first 4 KiB of that.
pub(super) fn http_request(
    config: &Config,
    method: &str,
    path: &str,
    token: Option<&str>,
) -> io::Result<String> {
    let address = local_api_address(config);
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut stream = Stream::Plain(stream);
    if config.api.tls.enabled {
        // The certificate names the host by which others reach this machine, and nothing leaves this machine.
        let client = &mut TlsClient::new(None, true);
        stream = start_tls(stream, "localhost", client)
            .map_err(|error| io::Error::other(format!("TLS: {error}")))?;
    }
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\n{token}{length}Connection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.take(4096).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
