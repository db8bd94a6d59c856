//! `demo`: a complete call in one process, over real sockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pico_args::Arguments;

use super::command_line::{self, CommandLine};
use super::device::{DeviceError, Login, SimulatedDevice};
use super::echo::EchoServer;
use super::round_trip::{RoundTripTest, packets_in};
use super::terminal::Terminal;
use crate::config::{Config, PublicIp, Secret};
use crate::net::Running;
use crate::proto::identity::Mac;

const HELP: &str = "\
Show a call: a gateway, an echo chat server and a simulated device in one process,
over real sockets on free ports of this machine.

Usage: mqtt-websocket-proxy demo [options]

Options:
  --seconds N   how long the device speaks, 1 to 3600 (default: 8)
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
        match Demo::start().and_then(|demo| demo.run(seconds, &mut terminal)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                terminal.print_line(&format!("The demo failed: {error}."));
                ExitCode::FAILURE
            }
        }
    })
}

fn parse_seconds(mut args: CommandLine) -> Result<u32, String> {
    let seconds = args.whole_number("--seconds", 3600)?.unwrap_or(8);
    args.finish()?;
    Ok(seconds)
}

/// The echo server and the gateway of the demo.
struct Demo {
    echo: EchoServer,
    key: String,
    gateway: Running,
}

/// The device's call.
struct DemoCall {
    udp: SocketAddr,
    connect_time: Duration,
    setup_time: Duration,
    session_id: String,
    packets: u32,
}

impl Demo {
    fn start() -> Result<Self, String> {
        let echo =
            EchoServer::start().map_err(|error| format!("the echo chat server does not start: {error}"))?;
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|error| format!("the system gives no random bytes: {error}"))?;
        let key = data_encoding::HEXLOWER.encode(&random);
        let mut config = Config::default();
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        (config.mqtt.host, config.mqtt.port, config.mqtt.signature_key) = (loopback, 0, Secret::new(&key));
        (config.udp.host, config.udp.port, config.udp.public_ip) = (loopback, 0, PublicIp::Auto);
        config.api.port = 0;
        let server =
            echo.url().parse().map_err(|error| format!("the echo chat server's address: {error}"))?;
        config.websocket.production = vec![Arc::new(server)];
        let gateway =
            Running::start(config, None).map_err(|error| format!("the gateway does not start: {error}"))?;
        Ok(Self { echo, key, gateway })
    }

    /// Runs the demo; true when audio came back.
    fn run(self, seconds: u32, terminal: &mut Terminal) -> Result<bool, String> {
        let Self { echo, key, gateway } = self;
        let addresses = gateway.addresses();
        terminal.print_line("A simulated device makes a real call, over sockets of this machine:");
        terminal.print_line("");
        let (mqtt, udp) = (addresses.mqtt.to_string(), addresses.udp.to_string());
        terminal
            .print_line(&format!("  device --MQTT-> {mqtt:<16} gateway --WebSocket-> chat server (echo)"));
        terminal.print_line(&format!("         --UDP--> {udp:<16}                       {}", echo.addr()));
        terminal.print_line("");
        let call = make_call(addresses.mqtt, &key, seconds, terminal);
        let stopped = gateway.stop(Duration::from_secs(1));
        let (demo_call, round_trip) = call.map_err(|failure| failure.to_string())?;
        stopped.map_err(|error| format!("the gateway stopped with an error: {error}"))?;
        for line in summary(&demo_call, &round_trip) {
            terminal.print_line(&line);
        }
        Ok(round_trip.echoed > 0)
    }
}

fn make_call(
    mqtt: SocketAddr,
    key: &str,
    seconds: u32,
    terminal: &mut Terminal,
) -> Result<(DemoCall, RoundTripTest), DeviceError> {
    let mac = DEMO_MAC.parse::<Mac>().unwrap_or_else(|_| unreachable!("a constant, read in a test"));
    let begin = Instant::now();
    let mut device = SimulatedDevice::connect(mqtt, &Login::new(mac, Some(key.as_bytes())), TIMEOUT)?;
    let connected_in = begin.elapsed();
    if !terminal.is_interactive() {
        terminal.print_line(&format!("  MQTT connected in {}", format_ms(connected_in)));
    }
    let begin = Instant::now();
    let mut call = device.call()?;
    let demo_call = DemoCall {
        udp: call.server_addr()?,
        connect_time: connected_in,
        setup_time: begin.elapsed(),
        session_id: call.parameters.session_id.clone(),
        packets: packets_in(seconds),
    };
    if !terminal.is_interactive() {
        terminal.print_line(&format!(
            "  call up in {}, session {}",
            format_ms(demo_call.setup_time),
            demo_call.session_id
        ));
    }
    device.start_listening(&call, "realtime")?;
    let mut round_trip = RoundTripTest::default();
    let mut view = ProgressView {
        demo_call: &demo_call,
        terminal,
        next_update: Instant::now(),
        started_at: Instant::now(),
    };
    round_trip
        .send_audio(&mut device, &mut call, demo_call.packets, LINGER, |round_trip| view.show(round_trip))?;
    view.finish(&round_trip);
    device.goodbye(&call)?;
    device.disconnect()?;
    Ok((demo_call, round_trip))
}

/// The live view.
struct ProgressView<'a> {
    demo_call: &'a DemoCall,
    terminal: &'a mut Terminal,
    started_at: Instant,
    next_update: Instant,
}

impl ProgressView<'_> {
    fn show(&mut self, round_trip: &RoundTripTest) {
        let now = Instant::now();
        if now < self.next_update {
            return;
        }
        if self.terminal.is_interactive() {
            self.next_update = now + REDRAW_INTERVAL;
            self.terminal.redraw(&self.block(round_trip));
        } else {
            self.next_update = now + LINE_INTERVAL;
            if round_trip.sent > 1 {
                self.terminal.print_line(&format!(
                    "  {:2.0} s: {} packets up, {} down, {} lost, round trip {}",
                    self.started_at.elapsed().as_secs_f64(),
                    round_trip.sent,
                    round_trip.echoed,
                    round_trip.lost_so_far(),
                    ms_or_dash(round_trip.round_trips.last().copied()),
                ));
            }
        }
    }

    /// Shows the last state, which stays on the screen.
    fn finish(&mut self, round_trip: &RoundTripTest) {
        let block = self.block(round_trip);
        self.terminal.redraw(&block);
        self.terminal.keep_block();
    }

    fn block(&self, round_trip: &RoundTripTest) -> Vec<String> {
        const WIDTH: u32 = 30;
        let done = round_trip.sent * WIDTH / self.demo_call.packets.max(1);
        let bar = "#".repeat(done as usize) + &"-".repeat((WIDTH - done) as usize);
        let now = ms_or_dash(round_trip.round_trips.last().copied());
        let median = ms_or_dash(round_trip.percentile(0.5));
        vec![
            format!("  MQTT         connected in {}", format_ms(self.demo_call.connect_time)),
            format!(
                "  call         up in {}, session {}",
                format_ms(self.demo_call.setup_time),
                self.demo_call.session_id
            ),
            format!("  packets up   [{bar}] {} of {}", round_trip.sent, self.demo_call.packets),
            format!("  packets down {}", round_trip.echoed),
            format!("  lost         {}", round_trip.lost_so_far()),
            format!("  round trip   {now} now, {median} median"),
        ]
    }
}

fn summary(demo_call: &DemoCall, round_trip: &RoundTripTest) -> Vec<String> {
    let lost = round_trip.sent - round_trip.echoed;
    let verdict = match round_trip.echoed {
        0 => "The call did NOT work: no audio came back.",
        _ if lost > 0 => "The call worked, but some packets were lost.",
        _ => "The call worked: every packet that the device sent came back.",
    };
    let row = |name: &str, value: &str, about: &str| format!("  {name:<14} {value:<10} {about}");
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
        format!("  {program}"),
        "      starts the gateway for real devices; without a chat server it echoes".into(),
        format!("  {program} credentials --mac aa:bb:cc:dd:ee:ff"),
        "      prints what a device's OTA answer must carry to connect here".into(),
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
        assert_eq!(Demo::start().unwrap().run(1, &mut terminal), Ok(true));
    }
}
