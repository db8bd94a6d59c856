//! `probe`: acts as a device against any gateway, and reports step by step what works.

mod call;
mod diagnosis;
mod options;
mod report;

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Instant;

use pico_args::Arguments;

use self::call::ProbeCall;
use self::options::ProbeOptions;
use self::report::{AUTHENTICATION, HELLO, MQTT, ProbeReporter, TCP, TLS};
use super::command_line;
use super::device::{
    CallParameters, DeviceError, DeviceErrorKind, DeviceStep, HELLO as FIRMWARE_HELLO, SimulatedDevice,
};
use super::step_report::{self, message_type};
use super::terminal::Terminal;
use super::tls_error::TlsErrorCause;
use crate::proto::identity::ClientId;
use crate::proto::message::JsonObject;

const HELP: &str = "\
Act as a device against a gateway and say, step by step, what works: TCP, TLS, MQTT,
authentication, hello, UDP up, UDP down, round trip, loss.

Usage: mqtt-websocket-proxy probe HOST[:PORT] [options]

The port is that of MQTT (default: 1883, with --tls 8883).

Options:
  --key KEY          the gateway's signature key (default: MQTT_SIGNATURE_KEY)
  --mac MAC          MAC address to show (default: 02:70:72:6f:62:65); that of a
                     device that is connected takes its place for the while
  --uuid UUID        last part of the client id (default: the MAC)
  --group GROUP      first part of the client id (default: GID_probe)
  --client-id ID     the whole client id, instead of --mac, --uuid and --group
  --user-name NAME   user name, base64 of a JSON object
  --password WORD    password as it is, instead of one signed with the key
  --tls              MQTT over TLS, as mqtts://HOST is: the certificate must be
                     good for HOST and come from an authority known here
  --ca-file FILE     PEM certificates of authorities known beside the system's
  --seconds N        how long to send audio, 1 to 3600 (default: 3)
  --packets N        the same as a number of packets of 60 ms, 1 to 60000
  --timeout N        seconds to wait for TCP and for the CONNACK (default: 5)
  --json             one JSON object on stdout, progress on stderr
  -h, --help         show this help

Environment:
  MQTT_SIGNATURE_KEY the signature key, so that it is on no command line

Exit code: 0 everything works, 1 something fails, 2 wrong usage.";

/// Runs the sub-command with its own arguments.
pub fn run(args: Arguments) -> ExitCode {
    command_line::run("probe", HELP, args, ProbeOptions::parse, |options| {
        let terminal = if options.json { Terminal::stderr() } else { Terminal::stdout() };
        let mut reporter = ProbeReporter::new(terminal, &options);
        // A failure is in the report already.
        let _ = probe(&options, &mut reporter);
        let report = reporter.finish();
        if options.json {
            Terminal::stdout().print_line(&step_report::to_json(&report));
        }
        if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    })
}

/// A step failed and is in the report; the probe cannot continue.
struct ProbeFailed;

fn probe(options: &ProbeOptions, reporter: &mut ProbeReporter) -> Result<(), ProbeFailed> {
    let (device, gateway) = connect(options, reporter)?;
    let device = if options.tls { start_tls(device, options, reporter)? } else { device };
    let mut device = log_in(device, options, reporter)?;
    let (parameters, early) = hello(&mut device, options, reporter)?;
    ProbeCall::new(device, gateway, parameters, early).run(options, reporter);
    Ok(())
}

/// Resolves the name and connects: every address of the name is tried.
fn connect(
    options: &ProbeOptions,
    reporter: &mut ProbeReporter,
) -> Result<(SimulatedDevice, SocketAddr), ProbeFailed> {
    let begin = Instant::now();
    let addresses: Vec<SocketAddr> = match (&*options.host, options.port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            reporter.add_hint(format!(
                "Does the name {} exist? It may be spelt wrongly, or known to another network only.",
                options.host
            ));
            return Err(reporter.fail(TCP, format!("the name {} does not resolve: {error}", options.host)));
        }
    };
    let mut failures = Vec::new();
    for address in addresses {
        match SimulatedDevice::open(address, options.timeout) {
            Ok(device) => {
                reporter.ok(TCP, format!("connected to {address}"), Some(begin.elapsed()));
                return Ok((device, address));
            }
            Err(failure) => failures.push(format!("{address}: {}", failure.kind)),
        }
    }
    let port = options.port;
    reporter.add_hint(format!("Does the gateway run, and does it listen on port {port}, on an address that is reached from here (mqtt.host 0.0.0.0)?"));
    reporter.add_hint(format!("Does a firewall or a cloud's security group let TCP port {port} through?"));
    Err(reporter.fail(TCP, failures.join("; ")))
}

/// TLS handshake; the certificate is verified, as most devices do.
fn start_tls(
    device: SimulatedDevice,
    options: &ProbeOptions,
    reporter: &mut ProbeReporter,
) -> Result<SimulatedDevice, ProbeFailed> {
    let begin = Instant::now();
    match device.start_tls(&options.host, options.ca_pem.clone()) {
        Ok(device) => {
            let detail = format!("the certificate is good for {}", options.host);
            reporter.ok(TLS, detail, Some(begin.elapsed()));
            Ok(device)
        }
        Err(failure) => {
            let why = failure.kind.to_string();
            let (what, hints) = diagnose_tls(TlsErrorCause::from_message(&why), options);
            for hint in hints {
                reporter.add_hint(hint);
            }
            Err(reporter.fail(TLS, format!("{what} ({why})")))
        }
    }
}

/// What is wrong, and what to look at.
fn diagnose_tls(cause: TlsErrorCause, options: &ProbeOptions) -> (String, Vec<String>) {
    let ProbeOptions { host, port, .. } = options;
    let (what, hints): (String, &[&str]) = match cause {
        TlsErrorCause::Expired => (
            "the certificate has expired".into(),
            &[
                "Renew the certificate: the gateway takes it from its files by itself. If it is new, look at this machine's clock.",
            ],
        ),
        TlsErrorCause::NotYetValid => {
            ("the certificate is not valid yet".into(), &["Look at the clock of this machine."])
        }
        TlsErrorCause::NameMismatch => (
            format!("the certificate is for another name than {host}"),
            &[
                "Probe by the name in the certificate. The endpoint in the OTA answer must be that name too: devices verify it in the same way.",
            ],
        ),
        TlsErrorCause::UnknownAuthority => (
            "the certificate is from an authority that is not known here".into(),
            &[
                "Does mqtt.tls.cert_file hold the whole chain (fullchain.pem, not cert.pem)?",
                "Your own authority: name its certificate with --ca-file. Devices know public authorities only.",
            ],
        ),
        TlsErrorCause::NotTls => (
            format!("port {port} does not speak TLS"),
            &[
                "Is mqtt.tls set in the gateway's configuration, and is this its mqtt.tls.port? Without --tls the plain port is probed.",
            ],
        ),
        TlsErrorCause::NotBuiltIn | TlsErrorCause::Other => (
            "no TLS connection".into(),
            &["Is this the gateway's mqtt.tls.port? Its log says why the TLS connection failed on its side."],
        ),
    };
    (what, hints.iter().map(|hint| (*hint).to_owned()).collect())
}

fn log_in(
    device: SimulatedDevice,
    options: &ProbeOptions,
    reporter: &mut ProbeReporter,
) -> Result<SimulatedDevice, ProbeFailed> {
    let begin = Instant::now();
    match device.log_in(&options.login) {
        Ok(device) => {
            reporter.ok(MQTT, "it speaks MQTT", Some(begin.elapsed()));
            let how = if options.has_key { "signed credentials accepted" } else { "accepted without a key" };
            reporter.ok(AUTHENTICATION, how, None);
            Ok(device)
        }
        Err(DeviceError { step: DeviceStep::Login, kind: seen }) => {
            reporter.ok(MQTT, "it speaks MQTT", Some(begin.elapsed()));
            if let DeviceErrorKind::LoginRefused(code) = seen {
                for hint in login_hints(code, options) {
                    reporter.add_hint(hint);
                }
            }
            Err(reporter.fail(AUTHENTICATION, seen.to_string()))
        }
        Err(failure) => {
            if !options.tls {
                reporter.add_hint("Does this port speak TLS, as 8883 does? Then probe it with --tls.");
            }
            reporter.add_hint(format!(
                "Is {} the MQTT port? A tunnel or proxy may accept connections without a gateway behind it.",
                options.port
            ));
            Err(reporter.fail(MQTT, failure.kind.to_string()))
        }
    }
}

fn login_hints(code: u8, options: &ProbeOptions) -> Vec<String> {
    let id = &options.login.client_id;
    match code {
        2 => vec![format!("The client id must be group@@@mac_with_underscores@@@uuid; it was {id}.")],
        3 => vec!["The gateway is at its limit of connections (mqtt.max_connections).".into()],
        4 | 5 if ClientId::parse(id).is_ok_and(|id| id.uuid().is_none()) => {
            vec![
                "A client id of two parts carries no signature; a gateway with a key refuses it by default."
                    .into(),
            ]
        }
        4 | 5 if options.has_key => {
            vec!["The key must be the gateway's own (MQTT_SIGNATURE_KEY or mqtt.signature_key there).".into()]
        }
        4 | 5 => vec![
            "The gateway asks for signed credentials: give its key with --key or MQTT_SIGNATURE_KEY.".into(),
        ],
        _ => Vec::new(),
    }
}

/// Texts, with the number of packets sent before each.
type ReceivedTexts = Vec<(u32, String)>;

fn hello(
    device: &mut SimulatedDevice,
    options: &ProbeOptions,
    reporter: &mut ProbeReporter,
) -> Result<(CallParameters, ReceivedTexts), ProbeFailed> {
    let begin = Instant::now();
    reporter.progress("saying hello; the gateway now dials its chat server ...");
    let answer = device.hello(FIRMWARE_HELLO);
    let took = begin.elapsed();
    let mut texts = Vec::new();
    let until = Instant::now() + options.timeouts.refusal;
    while let Ok(Some(text)) = device.receive_text(until.saturating_duration_since(Instant::now())) {
        texts.push(text);
    }
    let said = texts.iter().find_map(|text| error_text(text));
    let said_so = said.as_ref().map(|said| format!("; it said: {said}")).unwrap_or_default();
    let ended = texts.iter().any(|text| message_type(text) == "goodbye");
    match answer {
        Ok(parameters) if !ended => {
            let CallParameters { session_id, server, port, .. } = &parameters;
            let detail = format!("session {session_id}, audio goes to {server} port {port}");
            reporter.ok(HELLO, detail, Some(took));
            Ok((parameters, texts.into_iter().map(|text| (0, text)).collect()))
        }
        Ok(_) => {
            reporter.add_hint("The gateway reached no chat server, or its chat server refused the call: its log says which and why.");
            Err(reporter.fail(HELLO, format!("the gateway answered and ended the call at once{said_so}")))
        }
        Err(failure) => {
            match failure.kind {
                DeviceErrorKind::Timeout(_) => reporter.add_hint("A device shows \"server timeout\" now. Does the gateway's chat server answer? The gateway's log says what it dials."),
                DeviceErrorKind::Closed => {
                    reporter.add_hint("Some gateways accept any login and close the connection afterwards when the signature is bad: is the key right?");
                    if !options.has_key {
                        reporter.add_hint("No key was given: see --key.");
                    }
                }
                _ => {}
            }
            Err(reporter.fail(HELLO, format!("{}{said_so}", failure.kind)))
        }
    }
}

/// The text of an `alert`, or of the `error` that some gateways send.
fn error_text(text: &str) -> Option<String> {
    let object = JsonObject::parse(text).ok()?;
    let kind = object.string("type")?;
    (kind == "alert" || kind == "error").then(|| {
        let words = object.string("message").filter(|words| !words.is_empty());
        words.map_or_else(|| text.to_owned(), |words| words.into_owned())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
