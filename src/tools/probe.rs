//! `probe`: acts as a device against any gateway, and says step by step what works.

mod call;
mod diagnosis;
mod options;
mod report;

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Instant;

use pico_args::Arguments;

use self::call::Session;
use self::options::Options;
use self::report::{Name, Reporter, State};
use super::device::{Device, Failure, Grant, HELLO, Seen, Step};
use super::terminal::Screen;
use super::tls_error::Cause;
use crate::proto::identity::ClientId;
use crate::proto::message::{self, Object, Reader};

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
pub fn run(mut args: Arguments) -> ExitCode {
    if args.contains(["-h", "--help"]) {
        Screen::stdout().say(HELP);
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(args) {
        Ok(options) => options,
        Err(error) => {
            Screen::stderr().say(&format!("probe: {error}; see probe --help"));
            return ExitCode::from(2);
        }
    };
    let screen = if options.json { Screen::stderr() } else { Screen::stdout() };
    let mut reporter = Reporter::new(screen, &options);
    // A stop is on the report already.
    let _ = probe(&options, &mut reporter);
    let report = reporter.finish();
    if options.json {
        Screen::stdout().say(&report.to_json());
    }
    if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The step that failed is on the report; there is no going on.
struct Stop;

fn probe(options: &Options, reporter: &mut Reporter) -> Result<(), Stop> {
    let (device, gateway) = reach(options, reporter)?;
    let device = if options.tls { secure(device, options, reporter)? } else { device };
    let mut device = log_in(device, options, reporter)?;
    let (grant, early) = hello(&mut device, options, reporter)?;
    Session::new(device, gateway, grant, early).talk(options, reporter);
    Ok(())
}

/// Name and TCP: every address the name has is tried.
fn reach(options: &Options, reporter: &mut Reporter) -> Result<(Device, SocketAddr), Stop> {
    let begin = Instant::now();
    let addresses: Vec<SocketAddr> = match (&*options.host, options.port).to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            reporter.hint(format!(
                "Does the name {} exist? It may be spelt wrongly, or known to another network only.",
                options.host
            ));
            return Err(
                reporter.stop(Name::Tcp, format!("the name {} does not resolve: {error}", options.host))
            );
        }
    };
    let mut failures = Vec::new();
    for address in addresses {
        match Device::open(address, options.timeout) {
            Ok(device) => {
                reporter.step(Name::Tcp, State::Ok, format!("connected to {address}"), Some(begin.elapsed()));
                return Ok((device, address));
            }
            Err(failure) => failures.push(format!("{address}: {}", failure.seen)),
        }
    }
    let port = options.port;
    reporter.hint(format!("Does the gateway run, and does it listen on port {port}, on an address that is reached from here (mqtt.host 0.0.0.0)?"));
    reporter.hint(format!("Does a firewall or a cloud's security group let TCP port {port} through?"));
    Err(reporter.stop(Name::Tcp, failures.join("; ")))
}

/// TLS: the certificate is verified, as most devices do.
fn secure(device: Device, options: &Options, reporter: &mut Reporter) -> Result<Device, Stop> {
    let begin = Instant::now();
    match device.secure(&options.host, options.ca_pem.clone()) {
        Ok(device) => {
            let detail = format!("the certificate is good for {}", options.host);
            reporter.step(Name::Tls, State::Ok, detail, Some(begin.elapsed()));
            Ok(device)
        }
        Err(failure) => {
            let why = failure.seen.to_string();
            let (what, hints) = tls_words(Cause::of(&why), options);
            for hint in hints {
                reporter.hint(hint);
            }
            Err(reporter.stop(Name::Tls, format!("{what} ({why})")))
        }
    }
}

/// What was seen, and what to look at.
fn tls_words(cause: Cause, options: &Options) -> (String, Vec<String>) {
    let Options { host, port, .. } = options;
    let (what, hints): (String, &[&str]) = match cause {
        Cause::Expired => (
            "the certificate has expired".into(),
            &[
                "Renew the certificate: the gateway takes it from its files by itself. If it is new, look at this machine's clock.",
            ],
        ),
        Cause::NotYetValid => {
            ("the certificate is not valid yet".into(), &["Look at the clock of this machine."])
        }
        Cause::OtherName => (
            format!("the certificate is for another name than {host}"),
            &[
                "Probe by the name in the certificate. The endpoint in the OTA answer must be that name too: a device looks as closely.",
            ],
        ),
        Cause::UnknownAuthority => (
            "the certificate is from an authority that is not known here".into(),
            &[
                "Does mqtt.tls.cert_file hold the whole chain (fullchain.pem, not cert.pem)?",
                "Your own authority: name its certificate with --ca-file. Devices know public authorities only.",
            ],
        ),
        Cause::NotTls => (
            format!("port {port} does not speak TLS"),
            &[
                "Is mqtt.tls set in the gateway's configuration, and is this its mqtt.tls.port? Without --tls the plain port is probed.",
            ],
        ),
        Cause::Absent | Cause::Other => (
            "no TLS connection".into(),
            &["Is this the gateway's mqtt.tls.port? Its log says from its side why a TLS connection failed."],
        ),
    };
    (what, hints.iter().map(|hint| (*hint).to_owned()).collect())
}

fn log_in(device: Device, options: &Options, reporter: &mut Reporter) -> Result<Device, Stop> {
    let begin = Instant::now();
    match device.log_in(&options.login) {
        Ok(device) => {
            reporter.step(Name::Mqtt, State::Ok, "it speaks MQTT".into(), Some(begin.elapsed()));
            let how = if options.has_key { "signed credentials accepted" } else { "accepted without a key" };
            reporter.step(Name::Authentication, State::Ok, how.into(), None);
            Ok(device)
        }
        Err(Failure { step: Step::Login, seen }) => {
            reporter.step(Name::Mqtt, State::Ok, "it speaks MQTT".into(), Some(begin.elapsed()));
            if let Seen::Refused(code) = seen {
                for hint in login_hints(code, options) {
                    reporter.hint(hint);
                }
            }
            Err(reporter.stop(Name::Authentication, seen.to_string()))
        }
        Err(failure) => {
            if !options.tls {
                reporter.hint("Does this port speak TLS, as 8883 does? Then probe it with --tls.".into());
            }
            reporter.hint(format!("Is {} the MQTT port? A tunnel or proxy may accept connections and have no gateway behind it.", options.port));
            Err(reporter.stop(Name::Mqtt, failure.seen.to_string()))
        }
    }
}

fn login_hints(code: u8, options: &Options) -> Vec<String> {
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
type Texts = Vec<(u32, String)>;

fn hello(device: &mut Device, options: &Options, reporter: &mut Reporter) -> Result<(Grant, Texts), Stop> {
    let begin = Instant::now();
    reporter.progress("saying hello; the gateway now dials its chat server ...");
    let answer = device.hello(HELLO);
    let took = begin.elapsed();
    let mut texts = Vec::new();
    let until = Instant::now() + options.waits.refusal;
    while let Ok(Some(text)) = device.receive_text(until.saturating_duration_since(Instant::now())) {
        texts.push(text);
    }
    let said = texts.iter().find_map(|text| complaint(text));
    let said_so = said.as_ref().map(|said| format!("; it said: {said}")).unwrap_or_default();
    let ended = texts.iter().any(|text| kind(text) == "goodbye");
    match answer {
        Ok(grant) if !ended => {
            let Grant { session_id, server, port, .. } = &grant;
            let detail = format!("session {session_id}, audio goes to {server} port {port}");
            reporter.step(Name::Hello, State::Ok, detail, Some(took));
            Ok((grant, texts.into_iter().map(|text| (0, text)).collect()))
        }
        Ok(_) => {
            reporter.hint("The gateway reached no chat server, or its chat server refused the call: its log says which and why.".into());
            Err(reporter
                .stop(Name::Hello, format!("the gateway answered and ended the call at once{said_so}")))
        }
        Err(failure) => {
            match failure.seen {
                Seen::Silence(_) => reporter.hint("A device shows \"server timeout\" now. Does the gateway's chat server answer? The gateway's log says what it dials.".into()),
                Seen::Closed => {
                    reporter.hint("Some gateways accept any login and close the connection afterwards when the signature is bad: is the key right?".into());
                    if !options.has_key {
                        reporter.hint("No key was given: see --key.".into());
                    }
                }
                _ => {}
            }
            Err(reporter.stop(Name::Hello, format!("{}{said_so}", failure.seen)))
        }
    }
}

fn kind(text: &str) -> String {
    message::peek(text, Reader::Device).map(|peek| peek.kind.into_owned()).unwrap_or_default()
}

/// The words of an `alert`, or of the `error` that some gateways send.
fn complaint(text: &str) -> Option<String> {
    let object = Object::parse(text).ok()?;
    let kind = object.string("type")?;
    (kind == "alert" || kind == "error").then(|| {
        let words = object.string("message").filter(|words| !words.is_empty());
        words.map_or_else(|| text.to_owned(), |words| words.into_owned())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
