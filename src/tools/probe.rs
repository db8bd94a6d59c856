//! `probe`: acts as a device against any gateway, and reports step by step what works.

mod call;
mod certificate;
mod diagnosis;
mod options;
mod report;

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pico_args::Arguments;

use self::call::ProbeCall;
use self::certificate::judge_served_chain;
use self::diagnosis::Evidence;
use self::options::ProbeOptions;
use self::report::{AUTHENTICATION, HELLO, MQTT, ProbeReporter, TCP, TLS};
use super::command_line;
use super::device::{
    CallParameters, DeviceError, DeviceErrorKind, DeviceStep, HELLO as FIRMWARE_HELLO, SimulatedDevice,
    message_type,
};
use super::round_trip::RoundTripTest;
use super::step_report::{self, StepState};
use super::terminal::Terminal;
use crate::proto::identity::ClientId;
use crate::proto::message::JsonObject;
use crate::session::TlsErrorCause;

const HELP: &str = "\
Act as a device against a gateway and say, step by step, what works: TCP, TLS, MQTT,
authentication, hello, UDP up, UDP down, round trip, loss, and audio after a pause.

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
  --no-pause         do not wait 20 s to see whether routers forget the audio's path
  --timeout N        seconds to wait for TCP and for the CONNACK (default: 5)
  --json             one JSON object on stdout, progress on stderr
  --lang LANG        en or zh: the language of messages (default: the environment's);
                     JSON is English
  -h, --help         show this help

Environment:
  MQTT_SIGNATURE_KEY the signature key, so that it is on no command line

Exit code: 0 everything works, 1 something fails, 2 wrong usage.";

/// A call that is refused in words is ended within this time of its hello reply.
const REFUSAL_WAIT: Duration = Duration::from_millis(200);

/// Runs the sub-command with its own arguments.
pub fn run(args: Arguments) -> ExitCode {
    command_line::run("probe", HELP, args, ProbeOptions::parse, |options| {
        let terminal = if options.json { Terminal::stderr() } else { Terminal::stdout() };
        let mut reporter = ProbeReporter::new(terminal, &options);
        // A failure is in the report already.
        let _ = probe(&mut reporter);
        let report = reporter.finish();
        if options.json {
            Terminal::stdout().print_line(&step_report::to_json(&report));
        }
        Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// A step failed and is in the report; the probe cannot continue.
struct ProbeFailed;

fn probe(reporter: &mut ProbeReporter<'_>) -> Result<(), ProbeFailed> {
    let (device, gateway) = connect(reporter)?;
    let device = if reporter.options.tls { start_tls(device, gateway, reporter)? } else { device };
    let mut device = log_in(device, reporter)?;
    let (parameters, round_trip) = hello(&mut device, reporter)?;
    ProbeCall { device, gateway, parameters, round_trip, evidence: Evidence::default() }.run(reporter);
    Ok(())
}

/// Resolves the name and connects: every address of the name is tried.
fn connect(reporter: &mut ProbeReporter<'_>) -> Result<(SimulatedDevice, SocketAddr), ProbeFailed> {
    let ProbeOptions { host, port, timeout, .. } = reporter.options;
    let begin = Instant::now();
    let addresses = (host.as_str(), *port).to_socket_addrs().map_err(|error| {
        let hint = "It may be spelt wrongly, or known to another network only.";
        reporter.add_hint(format!("Does the name {host} exist? {hint}"));
        reporter.fail(TCP, format!("the name {host} does not resolve: {error}"))
    })?;
    let mut failures = Vec::new();
    for address in addresses {
        match SimulatedDevice::open(address, *timeout) {
            Ok(device) => {
                reporter.ok(TCP, format!("connected to {address}"), Some(begin.elapsed()));
                return Ok((device, address));
            }
            Err(failure) => failures.push(format!("{address}: {}", failure.kind)),
        }
    }
    reporter.add_hint(format!("Does the gateway run, and does it listen on port {port}, on an address that is reached from here (mqtt.host 0.0.0.0)?"));
    reporter.add_hint(format!("Does a firewall or a cloud's security group let TCP port {port} through?"));
    Err(reporter.fail(TCP, failures.join("; ")))
}

/// TLS handshake; the certificate is verified, as most devices do.
fn start_tls(
    device: SimulatedDevice,
    gateway: SocketAddr,
    reporter: &mut ProbeReporter<'_>,
) -> Result<SimulatedDevice, ProbeFailed> {
    let ProbeOptions { host, port, ca_pem, .. } = reporter.options;
    let begin = Instant::now();
    let result = device.start_tls(host, ca_pem.clone());
    let took = begin.elapsed();
    let info = judge_served_chain(gateway, reporter.options);
    let is_refused = info.as_ref().is_some_and(|info| info.refused);
    for warning in info.map(|info| info.warnings).unwrap_or_default() {
        let first = warning.chars().take(1).flat_map(char::to_uppercase);
        reporter.add_hint(format!("{}{}.", first.collect::<String>(), warning.get(1..).unwrap_or_default()));
    }
    let failure = match result {
        Ok(device) if is_refused => {
            // Other devices may be able to connect, so the probe goes on.
            let detail = format!("the certificate is good for {host}, but an ESP32 refuses it");
            reporter.add_step(TLS, StepState::Fail, detail, Some(took));
            return Ok(device);
        }
        Ok(device) => {
            reporter.ok(TLS, format!("the certificate is good for {host}"), Some(took));
            return Ok(device);
        }
        Err(failure) => failure.kind.to_string(),
    };
    let (what, hint) = match TlsErrorCause::from_message(&failure) {
        TlsErrorCause::Expired => (
            "the certificate has expired",
            "Renew the certificate: the gateway takes it from its files by itself. If it is new, look at this machine's clock.",
        ),
        TlsErrorCause::NotYetValid => {
            ("the certificate is not valid yet", "Look at the clock of this machine.")
        }
        TlsErrorCause::NameMismatch => (
            &*format!("the certificate is for another name than {host}"),
            "Probe by the name in the certificate. The endpoint in the OTA answer must be that name too: devices verify it in the same way.",
        ),
        TlsErrorCause::UnknownAuthority => {
            reporter.add_hint("Does mqtt.tls.cert_file hold the whole chain (fullchain.pem, not cert.pem)?");
            let hint = "Your own authority: name its certificate with --ca-file. Devices know public authorities only.";
            ("the certificate is from an authority that is not known here", hint)
        }
        TlsErrorCause::NotTls => (
            &*format!("port {port} does not speak TLS"),
            "Is mqtt.tls set in the gateway's configuration, and is this its mqtt.tls.port? Without --tls the plain port is probed.",
        ),
        TlsErrorCause::NotBuiltIn | TlsErrorCause::Other => (
            "no TLS connection",
            "Is this the gateway's mqtt.tls.port? Its log says why the TLS connection failed on its side.",
        ),
    };
    reporter.add_hint(hint);
    Err(reporter.fail(TLS, format!("{what} ({failure})")))
}

fn log_in(device: SimulatedDevice, reporter: &mut ProbeReporter<'_>) -> Result<SimulatedDevice, ProbeFailed> {
    let ProbeOptions { login, has_key, tls, port, .. } = reporter.options;
    let begin = Instant::now();
    let result = device.log_in(login);
    if let Err(DeviceError { step: DeviceStep::Mqtt, kind }) = result {
        if !tls {
            reporter.add_hint("Does this port speak TLS, as 8883 does? Then probe it with --tls.");
        }
        let hint = "A tunnel or proxy may accept connections without a gateway behind it.";
        reporter.add_hint(format!("Is {port} the MQTT port? {hint}"));
        return Err(reporter.fail(MQTT, kind.to_string()));
    }
    reporter.ok(MQTT, "it speaks MQTT", Some(begin.elapsed()));
    let device = result.map_err(|refused| {
        if let DeviceErrorKind::LoginRefused(code) = refused.kind
            && let Some(hint) = login_hint(code, reporter.options)
        {
            reporter.add_hint(hint);
        }
        reporter.fail(AUTHENTICATION, refused.kind.to_string())
    })?;
    let how = if *has_key { "signed credentials accepted" } else { "accepted without a key" };
    reporter.ok(AUTHENTICATION, how, None);
    Ok(device)
}

fn login_hint(code: u8, options: &ProbeOptions) -> Option<String> {
    let id = &options.login.client_id;
    let hint = match code {
        2 => return Some(format!("The client id must be group@@@mac_with_underscores@@@uuid; it was {id}.")),
        3 => "The gateway is at its limit of connections (mqtt.max_connections).",
        4 | 5 if ClientId::parse(id).is_ok_and(|id| id.uuid().is_none()) => {
            "A client id of two parts carries no signature; a gateway with a key refuses it by default."
        }
        4 | 5 if options.has_key => {
            "The key must be the gateway's own (MQTT_SIGNATURE_KEY or mqtt.signature_key there)."
        }
        4 | 5 => "The gateway asks for signed credentials: give its key with --key or MQTT_SIGNATURE_KEY.",
        _ => return None,
    };
    Some(hint.to_owned())
}

/// The call that the gateway grants, and a test with the texts that arrived before the audio.
fn hello(
    device: &mut SimulatedDevice,
    reporter: &mut ProbeReporter<'_>,
) -> Result<(CallParameters, RoundTripTest), ProbeFailed> {
    let begin = Instant::now();
    reporter.progress("saying hello; the gateway now dials its chat server ...");
    let answer = device.hello(FIRMWARE_HELLO);
    let took = begin.elapsed();
    let mut round_trip = RoundTripTest::default();
    let until = Instant::now() + REFUSAL_WAIT;
    while let Ok(Some(text)) = device.receive_text(until.saturating_duration_since(Instant::now())) {
        round_trip.texts.push((0, text));
    }
    let texts = &round_trip.texts;
    let said = texts.iter().find_map(|(_, text)| error_text(text));
    let said_so = said.map(|said| format!("; it said: {said}")).unwrap_or_default();
    match answer {
        Ok(parameters) if !texts.iter().any(|(_, text)| message_type(text) == "goodbye") => {
            let CallParameters { session_id, server, port, .. } = &parameters;
            let detail = format!("session {session_id}, audio goes to {server} port {port}");
            reporter.ok(HELLO, detail, Some(took));
            Ok((parameters, round_trip))
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
                    if !reporter.options.has_key {
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
