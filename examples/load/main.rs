//! Many devices on one gateway on this machine: speed, memory, and loss.
//!
//! ```text
//! cargo run --example load                                        a gateway in this process, small numbers
//! cargo run --release --example load -- --spawn target/release/mqtt-websocket-proxy --devices 10000 --calls 1000 --seconds 20
//! cargo run --release --example load -- --gateway 127.0.0.1:1883 --pid 4242 --calls 100
//! ```
//!
//! The gateway's chat server must echo, like the one that this program starts.
#![allow(clippy::print_stdout)] // A report is what it is for.

#[path = "../shared/board_tools.rs"]
mod board_tools;
mod devices;
mod gateway;
#[path = "../shared/process.rs"]
mod process;

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use self::board_tools::Tools;
use self::devices::{Devices, LoadConfig};
use self::gateway::Gateway;

const HELP: &str = "\
Load a gateway on this machine with devices, calls and audio.

Usage: load [options]

  --devices N           connected devices (default: 20)
  --calls N             calls among them (default: 10)
  --seconds N           how long all calls speak (default: 2)
  --call-rate N         calls begun per second (default: 200)
  --interval N          milliseconds between two packets of a call (default: 60)
  --tools KIND          the tools of the devices: same (25, as a real board has; default), different
                        (each device lacks others of them), none (they answer no MCP)
  --spawn PATH          start this gateway binary as a process of its own
  --gateway HOST:PORT   use a gateway that runs already; its chat server must echo
  --pid PID             the process of that gateway, to measure it
  --key KEY             its signature key

Without --spawn and --gateway, the gateway runs in this process.
Exit code: 0 all calls worked, 1 some did not or over 1 % was lost, 2 wrong usage.";

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = pico_args::Arguments::from_env();
    if args.contains(["-h", "--help"]) {
        println!("{HELP}");
        return Ok(());
    }
    let options = Options::parse(args).unwrap_or_else(|error| {
        eprintln!("load: {error}; see load --help");
        std::process::exit(2)
    });
    gateway::raise_descriptor_limit(options.devices + options.calls * 2);
    let mut gateway = match (&options.spawn, options.gateway) {
        (Some(path), _) => Gateway::spawn(path, options.devices)?,
        (None, Some(address)) => Gateway::external(address, options.pid),
        (None, None) => Gateway::in_process(options.devices)?,
    };
    let works = run(&options, &mut gateway)?;
    gateway.stop()?;
    if works { Ok(()) } else { std::process::exit(1) }
}

struct Options {
    devices: usize,
    calls: usize,
    seconds: u64,
    call_rate: u32,
    interval: Duration,
    tools: Tools,
    spawn: Option<PathBuf>,
    gateway: Option<SocketAddr>,
    pid: Option<u32>,
    key: Option<String>,
}

impl Options {
    fn parse(mut args: pico_args::Arguments) -> Result<Self, Box<dyn Error>> {
        let mut number =
            |name, default| args.opt_value_from_str(name).map(|number| number.unwrap_or(default));
        let (devices, calls) = (number("--devices", 20)?, number("--calls", 10)?);
        let (seconds, call_rate, interval) =
            (number("--seconds", 2)?, number("--call-rate", 200)?, number("--interval", 60)?);
        let options = Self {
            devices: devices.max(calls),
            calls,
            seconds: seconds as u64,
            call_rate: call_rate as u32,
            interval: Duration::from_millis(interval as u64),
            tools: args.opt_value_from_str("--tools")?.unwrap_or(Tools::Same),
            spawn: args.opt_value_from_str("--spawn")?,
            gateway: args.opt_value_from_str("--gateway")?,
            pid: args.opt_value_from_str("--pid")?,
            key: args.opt_value_from_str("--key")?,
        };
        if let Some(unknown) = args.finish().first() {
            return Err(format!("unknown argument {unknown:?}").into());
        }
        if options.gateway.is_some_and(|address| !address.ip().is_loopback()) {
            return Err("--gateway: found an address of another machine, allowed: loopback".into());
        }
        let bounds =
            [(devices, 60_000), (calls, 20_000), (seconds, 3600), (call_rate, 100_000), (interval, 10_000)];
        if bounds.iter().any(|(number, most)| !(1..=*most).contains(number)) {
            return Err("a number is 0 or too large".into());
        }
        Ok(options)
    }
}

/// Runs the phases and prints their results; true if all calls worked.
fn run(options: &Options, gateway: &mut Gateway) -> Result<bool, Box<dyn Error>> {
    let Options { devices, calls, seconds, .. } = *options;
    let per_second = 1000.0 / options.interval.as_millis() as f64;
    println!(
        "{devices} devices, {calls} of them in calls, {seconds} s of {per_second:.1} packets/s each way in each call"
    );
    println!("gateway {}\n", gateway.name());
    if let Some(start_up) = gateway.start_up {
        println!("start-up     {:.1} ms from its start to the first accepted connection", ms(start_up));
    }
    let plan = LoadConfig {
        gateway: gateway.mqtt,
        key: options.key.clone(),
        interval: options.interval,
        tools: options.tools,
    };
    let mut fleet = Devices::new(plan)?;
    let at_start = gateway.private_kib();

    // The first ones include one-time costs.
    let first = devices / 10;
    let mut connecting = fleet.connect(first)?;
    fleet.run_for(Duration::from_millis(500))?;
    let with_first = gateway.private_kib();
    connecting += fleet.connect(devices)?;
    println!("connected    {devices} devices in {:.2} s", connecting.as_secs_f64());
    fleet.run_for(Duration::from_millis(500))?;
    let idle = gateway.private_kib();

    fleet.start_calls(calls, options.call_rate)?;
    let stats = fleet.stats();
    println!(
        "call set-up  p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms; {} of {calls} calls up",
        percentile(&stats.call_setup_times, 0.5),
        percentile(&stats.call_setup_times, 0.99),
        percentile(&stats.call_setup_times, 1.0),
        stats.call_setup_times.len(),
    );

    let (cpu, up, down) = (gateway.cpu_time(), fleet.stats().sent, fleet.stats().echoed);
    let measured = fleet.run_for(Duration::from_secs(seconds))?;
    let (up, down) = (fleet.stats().sent - up, fleet.stats().echoed - down);
    let cpu = cpu.zip(gateway.cpu_time()).map(|(before, after)| after.saturating_sub(before));
    let busy = gateway.private_kib();
    fleet.stop_audio(Duration::from_millis(500))?;

    let stats = fleet.stats();
    let each = |packets: u64| packets as f64 / measured.as_secs_f64();
    println!("packets      {:.0}/s up, {:.0}/s down", each(up), each(down));
    println!(
        "round trip   p50 {:.2} ms, p99 {:.2} ms, worst {:.2} ms; device, gateway, chat server and back",
        percentile(&stats.round_trips, 0.5),
        percentile(&stats.round_trips, 0.99),
        percentile(&stats.round_trips, 1.0),
    );
    let lost = stats.sent - stats.echoed;
    let share = lost as f64 / stats.sent.max(1) as f64;
    println!(
        "lost         {lost} of {} ({:.3} %); {} gaps on the way down",
        stats.sent,
        100.0 * share,
        stats.gaps
    );
    match cpu {
        Some(cpu) => println!(
            "gateway CPU  {:.2} us per packet, {:.1} % of a core",
            cpu.as_secs_f64() * 1e6 / (up + down).max(1) as f64,
            100.0 * cpu.as_secs_f64() / measured.as_secs_f64(),
        ),
        None => println!("gateway CPU  not measured: no process given, or no /proc"),
    }
    match (at_start, with_first, idle, busy) {
        (Some(start), Some(with_first), Some(idle), Some(busy)) if gateway.is_separate_process() => println!(
            "memory       {start} KiB at start, {idle} KiB with all devices, {busy} KiB with all calls: {:.0} bytes per idle device, {:.0} bytes per call",
            per(with_first, idle, devices - first),
            per(idle, busy, calls),
        ),
        _ => println!("memory       not measured: it needs a gateway process of its own, and /proc"),
    }
    let gone = fleet.stats().disconnected;
    if gone > 0 {
        println!("gone         {gone} devices lost their connection");
    }
    let works = fleet.stats().call_setup_times.len() == calls && gone == 0 && share <= 0.01;
    fleet.hang_up();
    Ok(works)
}

/// The memory of each of `many`, in bytes, from the memory before and after in KiB.
fn per(before: u64, after: u64, many: usize) -> f64 {
    (after as f64 - before as f64) * 1024.0 / many as f64
}

/// In milliseconds.
fn percentile(durations: &[Duration], share: f64) -> f64 {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).map_or(f64::NAN, |duration| ms(*duration))
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
