//! `init`: writes a configuration for a first start, and says what to do next.

mod guide;
mod questions;

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use pico_args::Arguments;

use self::guide::Guide;
use super::command_line::{self, CommandLine};
use super::language::translated;
use super::step_report;
use super::terminal::Terminal;
use crate::config::{ChatServerConfig, Config, DEFAULT_FILE, PublicIp, Secret, Source};
use crate::proto::identity::{MacPrefix, MacPrefixes};

const HELP: &str = "\
Write a configuration for a first start, and say what to do next: the OTA URL that a
device is given and how, the ports to open, and the management page with its token.
A file that exists is left as it is.

Usage: mqtt-websocket-proxy init [options]

In a terminal it asks for what is not given; an empty answer takes the default.

Options:
  -c, --config FILE  the file to write (default: CONFIG_FILE, else config/gateway.json);
                     it holds a new signature key, so only its owner can read it
  --server URL       chat server, ws:// or wss:// (default: the built-in echo server)
  --address HOST     IPv4 address or name at which devices reach this machine, where
                     it is not its own: behind NAT, or in a container
                     (default: PUBLIC_IP, else the address that each device reached)
  --macs LIST        the only devices that get an OTA answer: MAC addresses or their
                     first pairs, with commas between; to be named in a container
                     (default: all devices of private networks)
  --yes              ask nothing
  --json             ask nothing, and print one line of JSON: what was written, and
                     what to do next
  --lang LANG        en or zh: the language of messages (default: the environment's);
                     JSON is English
  -h, --help         show this help

Exit code: 0 written, 1 not written, 2 wrong usage, or the environment makes a
configuration that cannot be used.";

/// The OTA URL's path. The gateway answers on any; this is the one of the Python chat server.
const OTA_PATH: &str = "/xiaozhi/ota/";

struct InitOptions {
    file: PathBuf,
    choices: Choices,
    yes: bool,
    json: bool,
}

/// What stands in the file besides the key. `None` is not chosen yet.
#[derive(Clone)]
struct Choices {
    server: Option<Arc<ChatServerConfig>>,
    address: Option<PublicIp>,
    macs: Option<MacPrefixes>,
}

/// Runs the sub-command with its own arguments.
pub fn run(args: Arguments) -> ExitCode {
    command_line::run("init", HELP, args, InitOptions::parse, |options| match init(&options) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err((code, error)) => {
            Terminal::stderr().print_line(&format!("init: {}", translated(&error)));
            Ok(ExitCode::from(code))
        }
    })
}

impl InitOptions {
    fn parse(mut args: CommandLine) -> Result<Self, String> {
        let named = || std::env::var_os("CONFIG_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
        let file = args.config()?.or_else(named).unwrap_or_else(|| DEFAULT_FILE.into());
        let choices = Choices {
            server: parse_option(args.text("--server")?, "--server", parse_server)?,
            address: parse_option(args.text("--address")?, "--address", parse_address)?,
            macs: parse_option(args.text("--macs")?, "--macs", parse_macs)?,
        };
        let (yes, json) = (args.flag("--yes"), args.flag("--json"));
        args.finish()?;
        Ok(Self { file, choices, yes, json })
    }
}

fn parse_option<T>(
    text: Option<String>,
    name: &str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<Option<T>, String> {
    text.map(|text| parse(&text).map_err(|error| format!("{name}: {error}"))).transpose()
}

fn parse_server(text: &str) -> Result<Arc<ChatServerConfig>, String> {
    // What was found is not shown: the query of a URL may hold a token.
    text.parse().map(Arc::new).map_err(|error| format!("found a text that is not shown, allowed: {error}"))
}

/// No firmware sends audio to an IPv6 address.
fn parse_address(text: &str) -> Result<PublicIp, String> {
    let address = text.parse().ok().filter(|address| !matches!(address, PublicIp::Ip(ip) if ip.is_ipv6()));
    address.ok_or_else(|| format!("found {text:?}, allowed: an IPv4 address or a host name, without a port"))
}

fn parse_macs(text: &str) -> Result<MacPrefixes, String> {
    let prefixes: Option<Vec<MacPrefix>> = text.split(',').map(|text| text.trim().parse().ok()).collect();
    let allowed = "MAC addresses (aa:bb:cc:dd:ee:ff) or their first pairs (aa:bb:cc), with commas between";
    prefixes.map(MacPrefixes::from).ok_or_else(|| format!("found {text:?}, allowed: {allowed}"))
}

/// Writes the file and prints what follows.
///
/// # Errors
/// The exit code, and why.
fn init(options: &InitOptions) -> Result<(), (u8, String)> {
    let exists = || {
        (1, format!("{} exists and is left as it is; --config FILE writes another", options.file.display()))
    };
    if fs::symlink_metadata(&options.file).is_ok() {
        return Err(exists());
    }
    let mut terminal = Terminal::stdout();
    let mut choices = options.choices.clone();
    if !options.yes && !options.json {
        questions::ask_missing(&mut terminal, &mut choices);
    }
    let mut config = Config::default();
    config.mqtt.signature_key = Some(new_key().map_err(|error| (1, error))?);
    config.udp.public_ip = choices.address.unwrap_or(PublicIp::Auto);
    config.websocket.production.extend(choices.server);
    config.ota.enabled = true;
    config.ota.macs = choices.macs.unwrap_or_default();
    write_new(&options.file, &config.to_file_text()).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => exists(),
        _ => (1, format!("{} cannot be written: {error}", options.file.display())),
    })?;
    // As the gateway will see it, with the environment.
    let source = Source::new(Some(options.file.clone()), None, |name| std::env::var_os(name));
    let config = source.load().map_err(|error| (2, error.to_string()))?;
    let guide = Guide::new(&options.file, &source, &config);
    match options.json {
        true => terminal.print_line(&step_report::to_json(&guide)),
        false => guide.print(&mut terminal),
    }
    Ok(())
}

/// A key that the gateway and the consoles accept, without characters that a shell or a file treats specially.
pub(super) fn new_key() -> Result<Secret, String> {
    loop {
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|error| format!("the system gives no random bytes: {error}"))?;
        let text = data_encoding::BASE64.encode(&random);
        let key = Secret::new(&text).filter(|key| key.weakness().is_none());
        if let Some(key) = key.filter(|_| text.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
            return Ok(key);
        }
    }
}

/// Writes a file that does not exist yet, and its folder. Nobody but its owner may read it.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(path)?.write_all(text.as_bytes());
    if written.is_err() {
        // Half a configuration would be in the way of the next attempt.
        let _ = fs::remove_file(path);
    }
    written
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_strong_and_plain_and_never_the_same() {
        let keys: Vec<_> = (0..50).map(|_| new_key().unwrap()).collect();
        for (i, key) in keys.iter().enumerate() {
            assert_eq!(key.weakness(), None);
            assert_eq!(key.as_bytes().len(), 32);
            assert!(key.as_bytes().iter().all(u8::is_ascii_alphanumeric));
            assert!(!keys[..i].contains(key));
        }
    }

    #[test]
    fn arguments() {
        let parse = |args: &[&str]| InitOptions::parse(CommandLine::new(args)).map(|_| ());
        assert_eq!(
            parse(&["--server", "wss://chat/x", "--address", "gw.example", "--yes", "--json"]),
            Ok(())
        );
        assert_eq!(parse(&["--address", "192.0.2.1"]), Ok(()));
        assert_eq!(parse(&["--macs", "aa:bb:cc, 02:00:00:00:00:01"]), Ok(()));
        for (args, named) in [
            (["--macs", "aa:bb,x"], "--macs: found \"aa:bb,x\", allowed: MAC addresses"),
            (
                ["--server", "http://chat?token=secret"],
                "--server: found a text that is not shown, allowed: a ws:// or",
            ),
            (["--address", "2001:db8::1"], "--address: found \"2001:db8::1\", allowed: an IPv4 address"),
            (["--address", "gw:1883"], "without a port"),
            (["--yes", "extra"], "extra"),
        ] {
            let error = parse(&args).unwrap_err();
            assert!(error.contains(named) && !error.contains("secret"), "{error}");
        }
    }
}
