//! `demo`: a whole call in one process, over real sockets, to watch.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pico_args::Arguments;

use super::device::{Device, Failure, Login};
use super::echo::EchoServer;
use super::round_trip::{Exchange, PACE};
use super::terminal::Screen;
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
/// After the last packet: far more than the way there and back takes.
const LINGER: Duration = Duration::from_millis(500);
/// Between two views of the live block, and between two plain lines.
const REDRAW: Duration = Duration::from_millis(100);
const LINE_EACH: Duration = Duration::from_secs(1);
/// Locally administered: no real device has it.
const MAC: &str = "02:00:00:00:00:01";

/// Runs the sub-command with its own arguments.
pub fn run(mut args: Arguments) -> ExitCode {
    let mut screen = Screen::stdout();
    if args.contains(["-h", "--help"]) {
        screen.say(HELP);
        return ExitCode::SUCCESS;
    }
    let seconds = match seconds(args) {
        Ok(seconds) => seconds,
        Err(error) => {
            Screen::stderr().say(&format!("demo: {error}; see demo --help"));
            return ExitCode::from(2);
        }
    };
    match Stage::set().and_then(|stage| stage.play(seconds, &mut screen)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            screen.say(&format!("The demo failed: {error}."));
            ExitCode::FAILURE
        }
    }
}

fn seconds(mut args: Arguments) -> Result<u32, String> {
    let seconds = args.opt_value_from_str("--seconds").map_err(|error| error.to_string())?.unwrap_or(8);
    if let Some(unknown) = args.finish().first() {
        return Err(format!("unknown argument {}", unknown.to_string_lossy()));
    }
    if !(1..=3600).contains(&seconds) {
        return Err(format!("--seconds: found {seconds}, allowed: 1 to 3600"));
    }
    Ok(seconds)
}

/// What runs beside the device.
struct Stage {
    echo: EchoServer,
    key: String,
    gateway: Running,
}

/// What the device did.
struct Act {
    udp: SocketAddr,
    connected_in: Duration,
    set_up_in: Duration,
    session_id: String,
    packets: u32,
}

impl Stage {
    fn set() -> Result<Self, String> {
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

    /// The whole demo; true when audio came back.
    fn play(self, seconds: u32, screen: &mut Screen) -> Result<bool, String> {
        let Self { echo, key, gateway } = self;
        let addresses = gateway.addresses();
        screen.say("A simulated device makes a real call, over sockets of this machine:");
        screen.say("");
        let (mqtt, udp) = (addresses.mqtt.to_string(), addresses.udp.to_string());
        screen.say(&format!("  device --MQTT-> {mqtt:<16} gateway --WebSocket-> chat server (echo)"));
        screen.say(&format!("         --UDP--> {udp:<16}                       {}", echo.addr()));
        screen.say("");
        let call = make_call(addresses.mqtt, &key, seconds, screen);
        let stopped = gateway.stop(Duration::from_secs(1));
        let (act, exchange) = call.map_err(|failure| failure.to_string())?;
        stopped.map_err(|error| format!("the gateway stopped with an error: {error}"))?;
        for line in summary(&act, &exchange) {
            screen.say(&line);
        }
        Ok(exchange.echoed > 0)
    }
}

fn make_call(
    mqtt: SocketAddr,
    key: &str,
    seconds: u32,
    screen: &mut Screen,
) -> Result<(Act, Exchange), Failure> {
    let mac = MAC.parse::<Mac>().unwrap_or_else(|_| unreachable!("a constant, read in a test"));
    let begin = Instant::now();
    let mut device = Device::connect(mqtt, &Login::new(mac, Some(key.as_bytes())), TIMEOUT)?;
    let connected_in = begin.elapsed();
    if !screen.is_live() {
        screen.say(&format!("  MQTT connected in {}", ms(connected_in)));
    }
    let begin = Instant::now();
    let mut call = device.call()?;
    let act = Act {
        udp: call.server_addr()?,
        connected_in,
        set_up_in: begin.elapsed(),
        session_id: call.grant.session_id.clone(),
        packets: (Duration::from_secs(seconds.into()).as_millis() / PACE.as_millis()) as u32,
    };
    if !screen.is_live() {
        screen.say(&format!("  call up in {}, session {}", ms(act.set_up_in), act.session_id));
    }
    device.listen(&call, "realtime")?;
    let mut exchange = Exchange::new();
    let mut view = View { act: &act, screen, next: Instant::now(), begin: Instant::now() };
    exchange.speak(&mut device, &mut call, act.packets, LINGER, |exchange| view.show(exchange))?;
    view.finish(&exchange);
    device.goodbye(&call)?;
    device.disconnect()?;
    Ok((act, exchange))
}

/// The live view.
struct View<'a> {
    act: &'a Act,
    screen: &'a mut Screen,
    begin: Instant,
    next: Instant,
}

impl View<'_> {
    fn show(&mut self, exchange: &Exchange) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        if self.screen.is_live() {
            self.next = now + REDRAW;
            self.screen.draw(&self.block(exchange));
        } else {
            self.next = now + LINE_EACH;
            if exchange.sent > 1 {
                self.screen.say(&format!(
                    "  {:2.0} s: {} packets up, {} down, {} lost, round trip {}",
                    self.begin.elapsed().as_secs_f64(),
                    exchange.sent,
                    exchange.echoed,
                    exchange.lost_so_far(),
                    exchange.round_trips.last().map_or("-".into(), |last| ms(*last)),
                ));
            }
        }
    }

    /// Leaves the last state on the screen.
    fn finish(&mut self, exchange: &Exchange) {
        let block = self.block(exchange);
        self.screen.draw(&block);
        self.screen.keep();
    }

    fn block(&self, exchange: &Exchange) -> Vec<String> {
        const WIDTH: u32 = 30;
        let done = exchange.sent * WIDTH / self.act.packets.max(1);
        let bar = "#".repeat(done as usize) + &"-".repeat((WIDTH - done) as usize);
        let now = exchange.round_trips.last().map_or("-".into(), |last| ms(*last));
        let median = exchange.round_trip(0.5).map_or("-".into(), ms);
        vec![
            format!("  MQTT         connected in {}", ms(self.act.connected_in)),
            format!("  call         up in {}, session {}", ms(self.act.set_up_in), self.act.session_id),
            format!("  packets up   [{bar}] {} of {}", exchange.sent, self.act.packets),
            format!("  packets down {}", exchange.echoed),
            format!("  lost         {}", exchange.lost_so_far()),
            format!("  round trip   {now} now, {median} median"),
        ]
    }
}

fn summary(act: &Act, exchange: &Exchange) -> Vec<String> {
    let lost = exchange.sent - exchange.echoed;
    let verdict = match exchange.echoed {
        0 => "The call did NOT work: no audio came back.",
        _ if lost > 0 => "The call worked, but not every packet came back.",
        _ => "The call worked: everything the device said came back to it.",
    };
    let mut lines = vec![
        String::new(),
        verdict.into(),
        String::new(),
        format!("  MQTT connect   {:<10} TCP, CONNECT, signed credentials, CONNACK", ms(act.connected_in)),
        format!(
            "  call set-up    {:<10} hello, WebSocket to the chat server, hello reply",
            ms(act.set_up_in)
        ),
        format!("  packets up     {:<10} one each 60 ms, encrypted, to UDP {}", exchange.sent, act.udp),
        format!("  packets down   {:<10} the chat server's echo, decrypted and compared", exchange.echoed),
        format!(
            "  lost           {lost:<10} {:.1} %",
            100.0 * f64::from(lost) / f64::from(exchange.sent.max(1))
        ),
    ];
    if let (Some(median), Some(worst)) = (exchange.round_trip(0.5), exchange.round_trip(1.0)) {
        let worst = format!("median, worst {}: to the chat server and back", ms(worst));
        lines.push(format!("  round trip     {:<10} {worst}", ms(median)));
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

/// Milliseconds with as many digits as mean something.
fn ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_is_one() {
        MAC.parse::<Mac>().unwrap();
    }

    #[test]
    fn arguments() {
        let parse = |args: &[&str]| seconds(Arguments::from_vec(args.iter().map(Into::into).collect()));
        assert_eq!(parse(&[]), Ok(8));
        assert_eq!(parse(&["--seconds", "2"]), Ok(2));
        for bad in [&["--seconds", "0"][..], &["--seconds", "x"], &["--seconds"], &["--frob"], &["extra"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn audio_comes_back_and_the_summary_says_so() {
        let mut screen = Screen::stderr();
        assert_eq!(Stage::set().unwrap().play(1, &mut screen), Ok(true));
    }
}
