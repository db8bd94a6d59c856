//! The run: threads, samples, and the result.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use crate::chat_servers::{self, ChatServerProcess};
use crate::context::Context;
use crate::gateway::{Gateway, Sample};
use crate::statistics::{Quantiles, slope};
use crate::{background_load, callers};

const HELP: &str = "\
Run a gateway under churn and faults, and tell what that did to it.

Usage: soak --gateway PATH [options]

  --gateway PATH   the gateway's binary
  --seconds N      how long (default: 600)
  --calls N        calls at any time; a third of them lasts all the time (default: 30)
  --devices N      connected devices, those in calls included (default: 200)
  --seed N         other accidents (default: 1)

Exit code: 0 passed, 1 failed, 2 wrong usage.";

/// The limits for cost and loss.
mod limits {
    use std::time::Duration;

    /// Growth of the resident set after the warm-up, by linear regression.
    pub(super) const MEMORY_GROWTH_KIB: f64 = 1024.0;
    /// Packets of steady calls, both ways.
    pub(super) const LOSS: f64 = 0.001;
    /// Time limit for the next echo after a chat server was killed.
    pub(super) const SILENCE: Duration = Duration::from_secs(20);
    /// Latency of the last quarter compared with the first, minus the machine's own change.
    pub(super) const LATENCY_DRIFT_P50: Duration = Duration::from_millis(2);
    pub(super) const LATENCY_DRIFT_P99: Duration = Duration::from_millis(25);
    /// Time limit for the gateway to end its last sessions.
    pub(super) const CLEANUP_TIMEOUT: Duration = Duration::from_secs(30);
}

pub(crate) fn main() -> ExitCode {
    let mut args = pico_args::Arguments::from_env();
    if let Ok(Some(addr)) = args.opt_value_from_str(chat_servers::CHAT_SERVER_OPTION) {
        return chat_servers::serve(addr);
    }
    if args.contains(["-h", "--help"]) {
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match Options::parse(args) {
        Err(error) => {
            eprintln!("soak: {error}; see soak --help");
            ExitCode::from(2)
        }
        Ok(options) => match run(&options) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("soak: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

struct Options {
    gateway: PathBuf,
    seconds: u64,
    calls: usize,
    devices: usize,
    seed: u64,
}

impl Options {
    fn parse(mut args: pico_args::Arguments) -> Result<Self, Box<dyn Error>> {
        let options = Self {
            gateway: args.value_from_str("--gateway")?,
            seconds: args.opt_value_from_str("--seconds")?.unwrap_or(600),
            calls: args.opt_value_from_str("--calls")?.unwrap_or(30),
            devices: args.opt_value_from_str("--devices")?.unwrap_or(200),
            seed: args.opt_value_from_str("--seed")?.unwrap_or(1),
        };
        if let Some(unknown) = args.finish().first() {
            return Err(format!("unknown argument {unknown:?}").into());
        }
        if !(20..=86_400).contains(&options.seconds) {
            return Err(format!("--seconds: found {}, allowed: 20 to 86400", options.seconds).into());
        }
        if !(3..=200).contains(&options.calls) || !(options.calls..=800).contains(&options.devices) {
            return Err("allowed: --calls 3 to 200, --devices from --calls to 800".into());
        }
        Ok(options)
    }
}

fn run(options: &Options) -> Result<bool, Box<dyn Error>> {
    let steady = options.calls / 3;
    let steady_server = ChatServerProcess::start()?;
    let mut transient = [ChatServerProcess::start()?, ChatServerProcess::start()?];
    let urls = [transient[0].url(), transient[1].url()];
    let gateway = Gateway::spawn(&options.gateway, steady_server.url(), &urls, steady)?;
    let idle = gateway.sample()?;
    let context = Context::new(&gateway, Duration::from_secs(options.seconds), options.seed);
    println!(
        "{} s, {} calls ({steady} of them steady) among {} devices, gateway in process {}",
        options.seconds,
        options.calls,
        options.devices,
        gateway.pid()
    );
    let mut samples = vec![(Duration::ZERO, idle)];
    thread::scope(|scope| -> Result<(), Box<dyn Error>> {
        (0..steady).for_each(|n| {
            drop(scope.spawn({
                let context = &context;
                move || callers::run_steady_call(context, n)
            }))
        });
        for n in steady..options.calls {
            let context = &context;
            scope.spawn(move || callers::run_transient_calls(context, n));
        }
        scope.spawn(|| background_load::idle_devices(&context, options.devices - options.calls));
        scope.spawn(|| background_load::rejected_connections(&context));
        scope.spawn(|| background_load::bad_datagrams(&context, gateway.udp));
        scope.spawn(|| background_load::api_requests(&context, gateway.api));
        scope.spawn(|| background_load::reloads(&context, &gateway.config, gateway.api));
        scope.spawn(|| background_load::machine_latency(&context));
        let servers = scope.spawn(|| chat_servers::inject_faults(&context, &mut transient));
        let every = Duration::from_secs((options.seconds / 600).max(1));
        while !context.is_over() {
            thread::sleep(every.min(context.remaining()));
            // If the gateway has ended, all threads report failures; the result names the cause.
            if let Ok(sample) = gateway.sample() {
                samples.push((context.start.elapsed(), sample));
            }
        }
        servers.join().map_err(|_| "the chat servers cannot be handled")??;
        Ok(())
    })?;
    let cleared = wait_for_cleanup(&gateway, idle.descriptors);
    let last = gateway.sample();
    let folder = gateway.folder();
    let ending = gateway.end();
    let report = Report {
        options,
        context: &context,
        samples: &samples,
        cleanup_time: cleared,
        last: last.ok(),
        exit: ending,
    };
    let passed = report.print();
    if passed {
        std::fs::remove_dir_all(folder)?;
    } else {
        println!("the gateway's log is in {}", folder.display());
    }
    Ok(passed)
}

/// The time from the last disconnect until all descriptors were closed.
fn wait_for_cleanup(gateway: &Gateway, idle: usize) -> Option<Duration> {
    let begin = Instant::now();
    while begin.elapsed() < limits::CLEANUP_TIMEOUT {
        if gateway.sample().is_ok_and(|sample| sample.descriptors <= idle) {
            return Some(begin.elapsed());
        }
        thread::sleep(Duration::from_millis(100));
    }
    None
}

struct Report<'a> {
    options: &'a Options,
    context: &'a Context,
    samples: &'a [(Duration, Sample)],
    cleanup_time: Option<Duration>,
    last: Option<Sample>,
    exit: Result<(), String>,
}

impl Report<'_> {
    /// Prints the report, with the result last; true if the run has passed.
    fn print(&self) -> bool {
        let mut faults = Vec::new();
        let mut must = |holds: bool, what: &str| {
            if !holds {
                faults.push(what.to_owned());
            }
        };
        println!("\n{:12} {}", "happened", self.context.counters.summary());
        self.memory(&mut must);
        self.descriptors(&mut must);
        self.loss(&mut must);
        self.latency(&mut must);
        let tally = &self.context.counters;
        let silence = Duration::from_millis(tally.silence_ms_max.load(Relaxed));
        println!(
            "{:12} {:.1} s at most without an echo in a call whose chat server failed",
            "silence",
            silence.as_secs_f64()
        );
        must(silence <= limits::SILENCE, "a call was silent for too long");
        let wrong = tally.failure_lines();
        for line in &wrong {
            println!("{:12} {line}", "wrong");
        }
        must(wrong.is_empty(), "something went wrong that should not");
        if let Err(why) = &self.exit {
            println!("{:12} {why}", "end");
            must(false, "the gateway did not end well");
        }
        match faults.is_empty() {
            true => println!("\nPASS"),
            false => println!("\nFAIL: {}", faults.join("; ")),
        }
        faults.is_empty()
    }

    fn memory(&self, must: &mut impl FnMut(bool, &str)) {
        let total = Duration::from_secs(self.options.seconds);
        let warm = (total / 4).min(Duration::from_secs(600));
        let points: Vec<_> = self
            .samples
            .iter()
            .filter(|(at, _)| *at >= warm)
            .map(|(at, sample)| (at.as_secs_f64(), sample.memory_kib as f64))
            .collect();
        let slope = slope(&points);
        let growth = slope * (total - warm).as_secs_f64();
        let at = |i: usize| self.samples.get(i).map_or(0, |(_, sample)| sample.memory_kib);
        let most = self.samples.iter().map(|(_, sample)| sample.memory_kib).max().unwrap_or(0);
        println!(
            "{:12} slope {:+.0} KiB per hour over {} samples after {} s of warm-up: {growth:+.0} KiB; {} KiB idle at the start, at most {most} KiB, {} KiB after all had left",
            "memory",
            slope * 3600.0,
            points.len(),
            warm.as_secs(),
            at(0),
            self.last.map_or(0, |sample| sample.memory_kib),
        );
        must(points.len() > 10 && growth <= limits::MEMORY_GROWTH_KIB, "memory grows");
        let cpu = self.samples.last().map_or(0.0, |(at, sample)| sample.cpu.as_secs_f64() / at.as_secs_f64());
        println!("{:12} {:.1} % of a core", "CPU", 100.0 * cpu);
    }

    fn descriptors(&self, must: &mut impl FnMut(bool, &str)) {
        let idle = self.samples.first().map_or(0, |(_, sample)| sample.descriptors);
        let most = self.samples.iter().map(|(_, sample)| sample.descriptors).max().unwrap_or(0);
        let after = self.last.map_or(0, |sample| sample.descriptors);
        let when = self
            .cleanup_time
            .map_or("never".to_owned(), |after| format!("{:.1} s later", after.as_secs_f64()));
        println!(
            "{:12} {idle} at the start, at most {most}, {after} after all had left ({when})",
            "descriptors"
        );
        must(self.cleanup_time.is_some(), "descriptors are left open");
    }

    fn loss(&self, must: &mut impl FnMut(bool, &str)) {
        let tally = &self.context.counters;
        let share = |name: &str, sent: u64, echoed: u64| {
            let share = 1.0 - echoed as f64 / sent.max(1) as f64;
            println!(
                "{:12} {} of {sent} packets ({:.4} %) in {name} calls",
                "lost",
                sent - echoed,
                100.0 * share
            );
            share
        };
        let loss = share("steady", tally.steady_sent.load(Relaxed), tally.steady_echoed.load(Relaxed));
        must(loss <= limits::LOSS, "steady calls lost audio");
        must(tally.steady_sent.load(Relaxed) > 0, "no steady call spoke");
        share("transient", tally.transient_sent.load(Relaxed), tally.transient_echoed.load(Relaxed));
    }

    fn latency(&self, must: &mut impl FnMut(bool, &str)) {
        let quarters = self.context.latencies.quarters();
        let machine = self.context.machine_latencies.quarters();
        let print = |name: &str, quarters: &[Quantiles; 4]| {
            let each: Vec<_> = quarters.iter().map(Quantiles::to_string).collect();
            println!("{name:12} p50/p99 by quarter, ms: {}", each.join(", "));
        };
        print("latency", &quarters);
        print("machine", &machine);
        let drift = |of: fn(&Quantiles) -> Duration| {
            let grown = |quarters: &[Quantiles; 4]| of(&quarters[3]).saturating_sub(of(&quarters[0]));
            grown(&quarters).saturating_sub(2 * grown(&machine))
        };
        let (p50, p99) = (drift(|quantiles| quantiles.p50), drift(|quantiles| quantiles.p99));
        println!(
            "{:12} p50 {:.2} ms, p99 {:.2} ms beyond twice what the machine's own grew",
            "drift",
            p50.as_secs_f64() * 1e3,
            p99.as_secs_f64() * 1e3
        );
        must(p50 <= limits::LATENCY_DRIFT_P50 && p99 <= limits::LATENCY_DRIFT_P99, "it got slower");
    }
}
