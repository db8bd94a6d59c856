//! `demo`: a complete call in one process, over real sockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pico_args::Arguments;

use super::command_line::{self, CommandLine};
use super::device::{DeviceError, Login, SimulatedDevice};
use super::echo::EchoServer;
use super::init::new_key;
use super::language::{padded, translated};
use super::page::Page;
use super::round_trip::{RoundTripTest, packets_in};
use super::terminal::Terminal;
use crate::config::{Config, PublicIp};
use crate::net::Running;
use crate::proto::identity::Mac;

const HELP: &str = "\
Show a call: a gateway, an echo chat server and a simulated device in one process,
over real sockets on free ports of this machine.

Usage: mqtt-websocket-proxy demo [options]

Options:
  --seconds N   how long the device speaks, 1 to 3600 (default: 8)
  --lang LANG   en or zh: the language of messages (default: the environment's)
  -h, --help    show this help

Exit code: 0 audio came back, 1 it did not, 2 wrong usage.";

const TIMEOUT: Duration = Duration::from_secs(5);
/// Wait after the last packet: far more than a round trip takes.
const LINGER: Duration = Duration::from_millis(500);
/// Between two redraws of the live block, and between two plain lines.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);
const LINE_INTERVAL: Duration = Duration::from_secs(1);
/// Locally administered, so that no real device has it.
const DEMO_MAC: &str = "02:00:00:00:00:01";

/// Runs the sub-command with its own arguments.
pub fn run(args: Arguments) -> ExitCode {
    command_line::run("demo", HELP, args, parse_seconds, |seconds| {
        let mut terminal = Terminal::stdout();
        match demo(seconds, &mut terminal) {
            Ok(true) => return Ok(ExitCode::SUCCESS),
            Ok(false) => {}
            Err(error) => terminal.say(&format!("The demo failed: {error}.")),
        }
        Ok(ExitCode::FAILURE)
    })
}

fn parse_seconds(mut args: CommandLine) -> Result<u32, String> {
    let seconds = args.whole_number("--seconds", 3600)?.unwrap_or(8);
    args.finish()?;
    Ok(seconds)
}

/// Runs the demo; true when audio came back.
fn demo(seconds: u32, terminal: &mut Terminal) -> Result<bool, String> {
    let echo =
        EchoServer::start().map_err(|error| format!("the echo chat server does not start: {error}"))?;
    let key = new_key()?;
    let mut config = Config::default();
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    (config.mqtt.host, config.mqtt.port, config.mqtt.signature_key) = (loopback, 0, Some(key.clone()));
    (config.udp.host, config.udp.port, config.udp.public_ip) = (loopback, 0, PublicIp::Auto);
    (config.api.host, config.api.port) = (Some(loopback), 0);
    let server = echo.url().parse().map_err(|error| format!("the echo chat server's address: {error}"))?;
    config.websocket.production = vec![Arc::new(server)];
    let gateway = Running::start(config.clone(), None)
        .map_err(|error| format!("the gateway does not start: {error}"))?;
    let addresses = gateway.addresses();
    let (mqtt, udp, chat) = (addresses.mqtt.to_string(), addresses.udp.to_string(), echo.addr());
    for line in [
        "A simulated device makes a real call, over sockets of this machine:",
        "",
        &format!("  device --MQTT-> {mqtt:<16} gateway --WebSocket-> chat server (echo)"),
        &format!("         --UDP--> {udp:<16}                       {chat}"),
        "",
    ] {
        terminal.say(line);
    }
    if let Some(api) = addresses.api {
        let page = Page::new(&config, api)?;
        terminal.say("Until the demo is over, the management page shows it (--seconds makes it longer):");
        terminal.print_line(&format!("  {}", page.link));
        terminal.print_line("");
    }
    let call = make_call(addresses.mqtt, key.as_bytes(), seconds, terminal);
    let stopped = gateway.stop(Duration::from_secs(1));
    let (call, round_trip) = call.map_err(|failure| failure.to_string())?;
    stopped.map_err(|error| format!("the gateway stopped with an error: {error}"))?;
    summary(&call, &round_trip).iter().for_each(|line| terminal.say(line));
    Ok(round_trip.echoed > 0)
}

/// The device's call.
struct DemoCall {
    udp: SocketAddr,
    connect_time: Duration,
    setup_time: Duration,
    session_id: String,
    packets: u32,
}

fn make_call(
    mqtt: SocketAddr,
    key: &[u8],
    seconds: u32,
    terminal: &mut Terminal,
) -> Result<(DemoCall, RoundTripTest), DeviceError> {
    let mac = DEMO_MAC.parse::<Mac>().unwrap_or_else(|_| unreachable!("a constant, read in a test"));
    let begin = Instant::now();
    let mut device = SimulatedDevice::connect(mqtt, &Login::new(mac, Some(key)), TIMEOUT)?;
    let connect_time = begin.elapsed();
    terminal.print_plain(&translated(&format!("  MQTT connected in {}", format_ms(connect_time))));
    let begin = Instant::now();
    let mut call = device.call()?;
    let (udp, setup_time) = (call.server_addr()?, begin.elapsed());
    let (session_id, packets) = (call.parameters.session_id.clone(), packets_in(seconds));
    let up = format!("  call up in {}, session {session_id}", format_ms(setup_time));
    terminal.print_plain(&translated(&up));
    let demo_call = DemoCall { udp, connect_time, setup_time, session_id, packets };
    device.start_listening(&call, "realtime")?;
    let started_at = Instant::now();
    let mut next_update = started_at;
    let tick = |round_trip: &RoundTripTest| {
        if Instant::now() < next_update {
            return;
        }
        let interval = if terminal.is_interactive() { REDRAW_INTERVAL } else { LINE_INTERVAL };
        next_update = Instant::now() + interval;
        terminal.redraw(&demo_call.block(round_trip));
        if round_trip.sent > 1 {
            let line = format!(
                "  {:2.0} s: {} packets up, {} down, {} lost, round trip {}",
                started_at.elapsed().as_secs_f64(),
                round_trip.sent,
                round_trip.echoed,
                round_trip.lost_so_far(),
                ms_or_dash(round_trip.round_trips.last().copied()),
            );
            terminal.print_plain(&translated(&line));
        }
    };
    let mut round_trip = RoundTripTest::default();
    round_trip.send_audio(&mut device, &mut call, packets, LINGER, tick)?;
    terminal.redraw(&demo_call.block(&round_trip));
    terminal.keep_block();
    device.goodbye(&call)?;
    device.disconnect()?;
    Ok((demo_call, round_trip))
}

impl DemoCall {
    /// The live view.
    fn block(&self, round_trip: &RoundTripTest) -> Vec<String> {
        const WIDTH: u32 = 30;
        let Self { session_id, packets, .. } = self;
        let done = round_trip.sent * WIDTH / packets;
        let bar = "#".repeat(done as usize) + &"-".repeat((WIDTH - done) as usize);
        let now = ms_or_dash(round_trip.round_trips.last().copied());
        let median = ms_or_dash(round_trip.percentile(0.5));
        let lines = [
            format!("  MQTT         connected in {}", format_ms(self.connect_time)),
            format!("  call         up in {}, session {session_id}", format_ms(self.setup_time)),
            format!("  packets up   [{bar}] {} of {packets}", round_trip.sent),
            format!("  packets down {}", round_trip.echoed),
            format!("  lost         {}", round_trip.lost_so_far()),
            format!("  round trip   {now} now, {median} median"),
        ];
        lines.map(|line| translated(&line).into_owned()).into()
    }
}

fn summary(demo_call: &DemoCall, round_trip: &RoundTripTest) -> Vec<String> {
    let lost = round_trip.sent - round_trip.echoed;
    let verdict = match round_trip.echoed {
        0 => "The call did NOT work: no audio came back.",
        _ if lost > 0 => "The call worked, but some packets were lost.",
        _ => "The call worked: every packet that the device sent came back.",
    };
    let row = |name: &str, value: &str, about: &str| {
        format!("  {} {value:<10} {}", padded(&translated(name), 14), translated(about))
    };
    let percent = 100.0 * f64::from(lost) / f64::from(round_trip.sent.max(1));
    let (up, down) = (round_trip.sent.to_string(), round_trip.echoed.to_string());
    let (connect, setup) = (format_ms(demo_call.connect_time), format_ms(demo_call.setup_time));
    let to_udp = format!("one each 60 ms, encrypted, to UDP {}", demo_call.udp);
    let mut lines = vec![
        String::new(),
        verdict.into(),
        String::new(),
        row("MQTT connect", &connect, "TCP, CONNECT, signed credentials, CONNACK"),
        row("call set-up", &setup, "hello, WebSocket to the chat server, hello reply"),
        row("packets up", &up, &to_udp),
        row("packets down", &down, "the chat server's echo, decrypted and compared"),
        row("lost", &lost.to_string(), &format!("{percent:.1} %")),
    ];
    if let (Some(median), Some(worst)) = (round_trip.percentile(0.5), round_trip.percentile(1.0)) {
        let worst = format!("median, worst {}: to the chat server and back", format_ms(worst));
        lines.push(row("round trip", &format_ms(median), &worst));
    }
    let program = std::env::args().next().unwrap_or_else(|| "mqtt-websocket-proxy".into());
    lines.extend([
        String::new(),
        "The gateway, its sockets, the encryption and the WebSocket were real. The device was".into(),
        "simulated, and the chat server was the built-in one that answers with an echo.".into(),
        String::new(),
        "Next steps".into(),
        format!("  {program} init"),
        "      writes a configuration, and says how a real device is given it".into(),
        format!("  {program}"),
        "      starts the gateway for real devices; without a chat server it echoes".into(),
        format!("  {program} probe HOST"),
        "      tells, from another machine, whether audio gets through to the gateway".into(),
    ]);
    lines
}

fn ms_or_dash(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), format_ms)
}

/// Milliseconds, with two decimals below 10.
fn format_ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_mac_is_valid() {
        DEMO_MAC.parse::<Mac>().unwrap();
    }

    #[test]
    fn arguments() {
        let parse = |args: &[&str]| parse_seconds(CommandLine::new(args));
        assert_eq!(parse(&[]), Ok(8));
        assert_eq!(parse(&["--seconds", "2"]), Ok(2));
        for bad in [&["--seconds", "0"][..], &["--seconds", "x"], &["--seconds"], &["--frob"], &["extra"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn audio_comes_back_and_the_summary_says_so() {
        let mut terminal = Terminal::stderr();
        assert_eq!(demo(1, &mut terminal), Ok(true));
    }
}
