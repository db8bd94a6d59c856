//! `probe`: acts as a device against any gateway, and says step by step what works.

mod options;
mod report;
mod verdict;

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Instant;

use pico_args::Arguments;

use self::options::Options;
use self::report::{Name, Reporter, RoundTrip, State};
use self::verdict::{Evidence, Verdict, blames_audio, judge};
use super::device::{Call, Device, Failure, Grant, HELLO, Seen, Step};
use super::echo::NOTHING_HEARD;
use super::exchange::Exchange;
use super::screen::Screen;
use crate::proto::identity::ClientId;
use crate::proto::message::Object;

const HELP: &str = "\
Act as a device against a gateway and say, step by step, what works: TCP, MQTT,
authentication, hello, UDP up, UDP down, round trip, loss.

Usage: mqtt-websocket-proxy probe HOST[:PORT] [options]

The port is that of MQTT over TCP (default: 1883).

Options:
  --key KEY          the gateway's signature key (default: MQTT_SIGNATURE_KEY)
  --mac MAC          MAC address to show (default: 02:70:72:6f:62:65); that of a
                     device that is connected takes its place for the while
  --uuid UUID        last part of the client id (default: the MAC)
  --group GROUP      first part of the client id (default: GID_probe)
  --client-id ID     the whole client id, instead of --mac, --uuid and --group
  --user-name NAME   user name, base64 of a JSON object
  --password WORD    password as it is, instead of one signed with the key
  --seconds N        how long to send audio, 1 to 3600 (default: 3)
  --packets N        the same as a number of packets of 60 ms, 1 to 60000
  --timeout N        seconds to wait for TCP and for the CONNACK (default: 5)
  --json             one JSON object on stdout, progress on stderr
  -h, --help         show this help

Environment:
  MQTT_SIGNATURE_KEY the signature key, so that it is on no command line

Exit code: 0 everything works, 1 something fails, 2 wrong usage.";

/// Packets sent to the host itself when the address it advertises gave no audio.
const RETRY_PACKETS: u32 = 10;
/// From this share of lost packets on speech breaks up.
const BAD_LOSS: f64 = 0.1;

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
    let mut reporter = Reporter::new(screen, &options.target(), &options.login.client_id);
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
    let mut device = log_in(device, options, reporter)?;
    let (grant, early) = hello(&mut device, options, reporter)?;
    let mut session = Session { device, gateway, grant, exchange: Exchange::new(), stt: None };
    session.exchange.texts = early;
    session.talk(options, reporter);
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
            if options.port == 8883 {
                reporter.hint(
                    "Port 8883 speaks TLS, and the probe does not: probe the gateway's plain MQTT port."
                        .into(),
                );
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
    crate::proto::message::peek(text).map(|peek| peek.kind.into_owned()).unwrap_or_default()
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

/// A call, and what was learnt from it.
struct Session {
    device: Device,
    gateway: SocketAddr,
    grant: Grant,
    exchange: Exchange,
    /// What the chat server said it recognised in the audio.
    stt: Option<String>,
}

impl Session {
    fn talk(mut self, options: &Options, reporter: &mut Reporter) {
        let mut evidence = Evidence {
            host: self.gateway.ip(),
            advertised: self.grant.server.clone(),
            port: self.grant.port,
            ..Evidence::default()
        };
        match Call::open(self.grant.clone()) {
            Ok(mut call) => {
                evidence.target = call.server_addr().ok().map(|address| address.ip());
                if let Err(failure) = self.converse(&mut call, options, &mut evidence, reporter) {
                    evidence.connection_lost = Some(failure.seen.to_string());
                }
                self.collect(&call, &mut evidence);
                // The gateway may be gone: then there is nobody to say goodbye to.
                let _ = self.device.goodbye(&call);
            }
            Err(failure) => evidence.udp_error = Some(failure.seen.to_string()),
        }
        self.tell(&evidence, reporter);
        let _ = self.device.disconnect();
    }

    fn converse(
        &mut self,
        call: &mut Call,
        options: &Options,
        evidence: &mut Evidence,
        reporter: &mut Reporter,
    ) -> Result<(), Failure> {
        let Self { device, exchange, .. } = self;
        let begin = Instant::now();
        reporter.progress(&format!("sending {} packets of audio, one each 60 ms ...", options.packets));
        device.listen(call, "auto")?;
        let tick = |exchange: &Exchange| reporter.live(exchange.sent, options.packets, exchange.heard);
        exchange.speak(device, call, options.packets, options.waits.linger, tick)?;
        if exchange.heard > 0 || exchange.ended {
            return Ok(());
        }
        reporter.progress("no audio so far; waiting for what the gateway and the chat server say ...");
        device.stop_listening(call)?;
        let until = (begin + options.waits.alert).max(Instant::now() + options.waits.reaction);
        let enough = options.packets.min(5);
        let blamed = |exchange: &Exchange| {
            exchange.texts.iter().filter_map(|(_, text)| complaint(text)).any(|words| blames_audio(&words))
        };
        let spoke = |exchange: &Exchange| {
            exchange.heard > 0 || speech(&exchange.texts, enough).is_some() || blamed(exchange)
        };
        exchange.listen(device, call, until, |_| {}, spoke)?;
        self.stt = speech(&exchange.texts, enough);
        let known = self.stt.as_deref() == Some(NOTHING_HEARD) || blamed(exchange);
        if exchange.heard == 0 && !exchange.ended && !known {
            reporter.progress("asking the chat server to speak ...");
            let id = crate::proto::message::quote(&call.grant.session_id);
            device.send_text(&format!(
                r#"{{"session_id":{id},"type":"listen","state":"detect","text":"你好"}}"#
            ))?;
            let until = Instant::now() + options.waits.speech;
            exchange.listen(device, call, until, |_| {}, |exchange| exchange.heard > 0)?;
        }
        // By now the verdict on the advertised address is fixed; the host's own address may tell why.
        evidence.heard = exchange.heard;
        if exchange.heard == 0 && !exchange.ended && evidence.target != Some(self.gateway.ip()) {
            reporter.progress(&format!("sending some packets to {} itself ...", self.gateway.ip()));
            call.rebind((self.gateway.ip(), call.grant.port).into())?;
            device.listen(call, "auto")?;
            exchange.speak(device, call, RETRY_PACKETS, options.waits.linger, |_| {})?;
            evidence.heard_at_host = Some(exchange.heard > 0);
        }
        Ok(())
    }

    fn collect(&self, call: &Call, evidence: &mut Evidence) {
        let exchange = &self.exchange;
        if evidence.heard_at_host.is_none() {
            evidence.heard = exchange.heard;
        }
        evidence.bad = call.counts.bad;
        evidence.refused = exchange.refused;
        evidence.udp_error = exchange.udp_error.clone();
        evidence.ended = exchange.ended;
        evidence.nothing_heard = self.stt.as_deref() == Some(NOTHING_HEARD);
        evidence.recognised = self.stt.clone().filter(|_| !evidence.nothing_heard);
        evidence.complaint = exchange.texts.iter().find_map(|(_, text)| complaint(text));
        evidence.speaks = exchange.texts.iter().any(|(_, text)| {
            Object::parse(text).is_ok_and(|object| {
                object.string("type").as_deref() == Some("tts")
                    && object.string("state").as_deref() == Some("start")
            })
        });
        evidence.lost_down = call.counts.lost;
    }

    fn tell(&self, evidence: &Evidence, reporter: &mut Reporter) {
        let Verdict { up, down, hints } = judge(evidence);
        let works = down.0 == State::Ok && up.0 == State::Ok;
        reporter.step(Name::UdpUp, up.0, up.1, None);
        reporter.step(Name::UdpDown, down.0, down.1, None);
        for hint in hints {
            reporter.hint(hint);
        }
        let exchange = &self.exchange;
        reporter.audio(exchange, evidence.lost_down);
        if exchange.echoed == 0 {
            let why = if works { "not measured: the chat server does not echo" } else { "not measured" };
            reporter.step(Name::RoundTrip, State::Skipped, why.into(), None);
            reporter.step(Name::Loss, State::Skipped, why.into(), None);
            return;
        }
        let round_trip = RoundTrip::of(exchange);
        reporter.step(Name::RoundTrip, State::Ok, round_trip.to_string(), None);
        if !works {
            let why = "not measured: most of the audio went to the advertised address";
            reporter.step(Name::Loss, State::Skipped, why.into(), None);
            return;
        }
        let lost = exchange.sent - exchange.echoed;
        let share = f64::from(lost) / f64::from(exchange.sent);
        let down = evidence.lost_down.min(lost.into());
        let detail = match lost {
            0 => format!("none of {} packets", exchange.sent),
            _ => format!(
                "{lost} of {} packets ({:.1} %), about {} on the way up and {down} on the way down",
                exchange.sent,
                100.0 * share,
                u64::from(lost) - down,
            ),
        };
        let state = if share < BAD_LOSS { State::Ok } else { State::Fail };
        if state == State::Fail {
            reporter.hint("So much loss breaks speech up: look at the Wi-Fi or mobile line here first, then at the gateway's own network.".into());
        }
        reporter.step(Name::Loss, state, detail, None);
    }
}

/// What the chat server said it recognised, once enough audio was sent for that. A server may say such a thing unasked
/// right after the hello, which proves nothing.
fn speech(texts: &[(u32, String)], enough: u32) -> Option<String> {
    texts.iter().filter(|(sent, _)| *sent >= enough).find_map(|(_, text)| {
        let object = Object::parse(text).ok()?;
        let is_stt = object.string("type").as_deref() == Some("stt");
        is_stt.then(|| object.string("text").unwrap_or_default().into_owned())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
