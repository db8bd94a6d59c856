//! The measured scenarios.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::load::{Load, Outcome};
use super::measured_process::{MeasuredProcess, REVISION, Subject};
use super::report::{Report, percentile};

const HELP: &str = "\
Measure the gateway beside the baseline.

Usage: cargo bench --bench baseline -- [options]

  --rounds N       medians of so many rounds (default: 5)
  --only LIST      some of: audio, scale, saturation, flat, curve, storm, flood
  --subjects LIST  instead of baseline:0,gathering:1000,gateway:0,gateway:1000: the baseline, the same gathering packets by the
                   gateway's rule, the gateway; the number is the longest wait in microseconds
  --compare REV    builds another revision of this repository too, and compares with it: revision:1000,gateway:1000
  --quick          one short round with small numbers: whether it runs at all";

const SUBJECTS: &str = "baseline:0,gathering:1000,gateway:0,gateway:1000";
const COMPARED_SUBJECTS: &str = "revision:1000,gateway:1000";
const NOT_COALESCING: Subject = Subject::Gateway(0);
/// Packets of one call per second.
const PACKETS_PER_CALL_PER_SECOND: f64 = 1000.0 / 60.0;
/// Calls that are set up at a time.
const CONCURRENT_CALL_SETUPS: usize = 32;
/// Connections opened at a time: below the backlog of most systems.
const CONCURRENT_CONNECTS: usize = 100;

const ALL_SCENARIOS: &str = "audio,scale,saturation,flat,curve,storm,flood";

struct Options {
    subjects: Vec<Subject>,
    rounds: usize,
    only: String,
    quick: bool,
}

pub(crate) fn main() -> Outcome<()> {
    let mut args = pico_args::Arguments::from_env();
    if args.contains(["-h", "--help"]) {
        println!("{HELP}");
        return Ok(());
    }
    // `cargo bench` passes --bench, `cargo test` does not: then a short run is enough.
    let quick = !args.contains("--bench") || args.contains("--quick");
    let rounds = args.opt_value_from_str("--rounds")?.unwrap_or(if quick { 1 } else { 5 });
    let only = args.opt_value_from_str("--only")?.unwrap_or_else(|| ALL_SCENARIOS.to_owned());
    let revision: Option<String> = args.opt_value_from_str("--compare")?;
    let subjects: Option<String> = args.opt_value_from_str("--subjects")?;
    let unknown = args.finish();
    if !unknown.is_empty() {
        return Err(format!("unknown arguments {unknown:?}; see --help").into());
    }
    if let Some(revision) = &revision {
        // Set only here.
        let _ = REVISION.set(build_revision(revision)?);
    }
    let default = if revision.is_some() { COMPARED_SUBJECTS } else { SUBJECTS };
    let subjects =
        subjects.as_deref().unwrap_or(default).split(',').map(str::parse).collect::<Result<_, _>>()?;
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most)?;
    run(&Options { subjects, rounds, only, quick })
}

fn run(options: &Options) -> Outcome<()> {
    let mut report = Report::default();
    let wants = |name| options.only.split(',').any(|only| only == name);
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        // Rotate the order.
        let mut subjects = options.subjects.clone();
        subjects.rotate_left(round % options.subjects.len());
        for subject in subjects {
            if wants("audio") {
                audio(options, subject, &mut report)?;
            }
            if wants("scale") && subject != NOT_COALESCING {
                scale(options, subject, &mut report)?;
            }
            if wants("saturation") && subject != NOT_COALESCING {
                saturation(options, subject, &mut report)?;
            }
            if wants("flat") && subject != NOT_COALESCING {
                calls_scaling(options, subject, &mut report)?;
            }
            if wants("storm") && subject != NOT_COALESCING {
                connection_storm(options, subject, &mut report)?;
            }
            if wants("flood") && subject != NOT_COALESCING {
                floods(options, subject, &mut report)?;
            }
        }
        if wants("curve") {
            for most in [0, 200, 500, 1000, 2000] {
                audio(options, Subject::Gateway(most), &mut report)?;
            }
        }
    }
    report.print("500 calls", &AUDIO_FIGURES);
    report.print("set-up and memory", &SCALE_FIGURES);
    report.print("limits", &SATURATION_FIGURES);
    report.print("disturbances", &DISTURBANCE_FIGURES);
    Ok(())
}

/// Builds another revision, and returns its program. Its source and what the compiler makes are kept in the build folder, for the
/// next time.
fn build_revision(revision: &str) -> Outcome<PathBuf> {
    let run = |command: &mut Command| -> Outcome<String> {
        let output = command.stderr(Stdio::inherit()).output()?;
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout)?.trim().to_owned()),
            false => Err(format!("{command:?} failed").into()),
        }
    };
    let mut git = Command::new("git");
    git.args(["-C", env!("CARGO_MANIFEST_DIR")]);
    let commit = run(git.args(["rev-parse", "--verify", &format!("{revision}^{{commit}}")]))?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("revision");
    let source = folder.join(&commit);
    std::fs::create_dir_all(&source)?;
    let archive = folder.join("source.tar");
    let mut git = Command::new("git");
    git.args(["-C", env!("CARGO_MANIFEST_DIR"), "archive", "-o"]).arg(&archive).arg(&commit);
    run(&mut git)?;
    run(Command::new("tar").arg("xf").arg(&archive).arg("-C").arg(&source))?;
    eprintln!("building {commit}");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--locked", "--bin", "mqtt-websocket-proxy", "--target-dir"]);
    run(cargo.arg(folder.join("target")).current_dir(&source))?;
    Ok(folder.join("target/release/mqtt-websocket-proxy"))
}

/// A subject, and its load.
fn start(subject: Subject) -> Outcome<(MeasuredProcess, Load)> {
    let mut load = Load::new()?;
    let target = MeasuredProcess::start(subject, load.chat_server_addr()?)?;
    load.set_gateway(target.mqtt);
    Ok((target, load))
}

// ----- audio at the usual pace ----------------------------------------------------------------------------------------

const AUDIO_FIGURES: [&str; 9] = [
    "CPU per packet, uplink, us",
    "uplink delay p50, ms",
    "uplink delay p99, ms",
    "CPU per packet, echo, us",
    "echo p50, ms",
    "echo p99, ms",
    "echo p99.9, ms",
    "lost, %",
    "iterations up to 5 ms, %",
];

/// 500 calls at the pace of a device.
fn audio(options: &Options, subject: Subject, report: &mut Report) -> Outcome<()> {
    let (calls, time) = if options.quick { (20, 300) } else { (500, 3000) };
    let (target, mut load) = start(subject)?;
    load.connect(calls, CONCURRENT_CONNECTS)?;
    load.start_calls(calls, CONCURRENT_CALL_SETUPS)?;
    let (rate, time) = (calls as f64 * PACKETS_PER_CALL_PER_SECOND, Duration::from_millis(time));
    load.measure(calls, rate, time / 4)?;
    let [cpu, up, up_99, cpu_echo, p50, p99, p999, lost, slow] = AUDIO_FIGURES;
    let cost = cpu_us_per_packet(&target, &mut load, calls, rate, time)?;
    report.add(cpu, subject, cost);
    report.add(up, subject, delay_ms_percentile(&load, 0.5));
    report.add(up_99, subject, delay_ms_percentile(&load, 0.99));
    load.echo = true;
    load.measure(calls, rate, time / 4)?;
    let cost = cpu_us_per_packet(&target, &mut load, calls, rate, time)?;
    report.add(cpu_echo, subject, cost);
    for (figure, share) in [(p50, 0.5), (p99, 0.99), (p999, 0.999)] {
        report.add(figure, subject, delay_ms_percentile(&load, share));
    }
    load.drain(Duration::from_millis(20))?;
    report.add(lost, subject, 100.0 * (1.0 - load.stats.downlink_packets as f64 / load.stats.sent as f64));
    if matches!(subject, Subject::Gateway(_) | Subject::Revision(_)) {
        let iterations = target.iteration_histogram()?;
        let of =
            |limit: f64| iterations.iter().find(|(at, _)| *at >= limit).map_or(f64::NAN, |(_, count)| *count);
        report.add(slow, subject, 100.0 * of(0.005) / of(f64::INFINITY));
    }
    target.stop()
}

/// CPU microseconds per packet that the devices sent.
fn cpu_us_per_packet(
    target: &MeasuredProcess,
    load: &mut Load,
    calls: usize,
    rate: f64,
    time: Duration,
) -> Outcome<f64> {
    let before = target.cpu_us();
    load.measure(calls, rate, time)?;
    Ok((target.cpu_us() - before) / load.stats.sent as f64)
}

fn delay_ms_percentile(load: &Load, share: f64) -> f64 {
    let mut delays: Vec<_> = load.stats.delays_ns.iter().map(|nanos| *nanos as f64 / 1e6).collect();
    percentile(&mut delays, share)
}

// ----- many devices, many calls ---------------------------------------------------------------------------------------

const SCALE_FIGURES: [&str; 12] = [
    "start to first CONNACK, ms",
    "RSS at start, KB",
    "connects/s",
    "CPU per connect, us",
    "memory per idle device, bytes",
    "CPU of 5,000 idle devices, us/s",
    "call set-ups/s",
    "set-up p50, ms",
    "set-up p99, ms",
    "CPU per set-up, us",
    "memory per call, bytes",
    "memory after they left, KB",
];

/// 5,000 devices: 1,000 of them in calls, then all.
fn scale(options: &Options, subject: Subject, report: &mut Report) -> Outcome<()> {
    let (devices, calls) = if options.quick { (100, 40) } else { (5000, 1000) };
    let (target, mut load) = start(subject)?;
    report.add(SCALE_FIGURES[0], subject, target.start_up.as_secs_f64() * 1e3);
    let at_start = target.memory()?;
    report.add(SCALE_FIGURES[1], subject, at_start.rss_kib);

    // The first ones include one-time costs.
    load.connect(devices / 10, CONCURRENT_CONNECTS)?;
    let (begin, cpu, memory, before) = (Instant::now(), target.cpu_us(), target.memory()?, load.connected());
    load.connect(devices, CONCURRENT_CONNECTS)?;
    let many = (devices - before) as f64;
    report.add(SCALE_FIGURES[2], subject, many / begin.elapsed().as_secs_f64());
    report.add(SCALE_FIGURES[3], subject, (target.cpu_us() - cpu) / many);
    load.drain(Duration::from_millis(300))?;
    report.add(
        SCALE_FIGURES[4],
        subject,
        (target.memory()?.anonymous_kib - memory.anonymous_kib) * 1024.0 / many,
    );
    let idle = target.cpu_us();
    load.drain(Duration::from_secs(1))?;
    report.add(SCALE_FIGURES[5], subject, target.cpu_us() - idle);

    load.start_calls(calls / 10, CONCURRENT_CALL_SETUPS)?;
    load.measure(calls / 10, calls as f64 / 10.0 * PACKETS_PER_CALL_PER_SECOND, Duration::from_millis(200))?;
    let memory = target.memory()?;
    load.start_calls(calls, CONCURRENT_CALL_SETUPS)?;
    load.echo = true;
    load.measure(calls, calls as f64 * PACKETS_PER_CALL_PER_SECOND, Duration::from_millis(500))?;
    load.drain(Duration::from_millis(100))?;
    report.add(
        SCALE_FIGURES[10],
        subject,
        (target.memory()?.anonymous_kib - memory.anonymous_kib) * 1024.0 / (calls - calls / 10) as f64,
    );

    // Of all others: those of the calls before took 50 ms in all, in which one event of the host shows.
    load.echo = false;
    load.stats.call_setups_ns.clear();
    let (cpu, begin) = (target.cpu_us(), Instant::now());
    load.start_calls(devices, CONCURRENT_CALL_SETUPS)?;
    let (many, took) = ((devices - calls) as f64, begin.elapsed());
    report.add(SCALE_FIGURES[9], subject, (target.cpu_us() - cpu) / many);
    report.add(SCALE_FIGURES[6], subject, many / took.as_secs_f64());
    let mut set_ups: Vec<_> = load.stats.call_setups_ns.iter().map(|nanos| *nanos as f64 / 1e6).collect();
    report.add(SCALE_FIGURES[7], subject, percentile(&mut set_ups, 0.5));
    report.add(SCALE_FIGURES[8], subject, percentile(&mut set_ups, 0.99));
    drop(load);
    std::thread::sleep(Duration::from_millis(1500));
    report.add(SCALE_FIGURES[11], subject, target.memory()?.rss_kib);
    target.stop()
}

// ----- the most there is ----------------------------------------------------------------------------------------------

const SATURATION_FIGURES: [&str; 10] = [
    "most uplink packets/s under 1 % loss",
    "CPU per packet there, us",
    "of a core there, %",
    "iterations up to 5 ms there, %",
    "CPU per packet, 100 calls, us",
    "CPU per packet, 9,000 calls, us",
    "9,000 calls to 100",
    "of it outside the system, 100 calls, us",
    "of it outside the system, 9,000 calls, us",
    "9,000 calls to 100, outside the system",
];

/// The highest uplink rate, 500 calls.
fn saturation(options: &Options, subject: Subject, report: &mut Report) -> Outcome<()> {
    let (calls, time) = if options.quick { (20, 100) } else { (500, 700) };
    let (target, mut load) = start(subject)?;
    load.connect(calls, CONCURRENT_CONNECTS)?;
    load.start_calls(calls, CONCURRENT_CALL_SETUPS)?;
    let (mut best, mut rate, mut step) = ((0.0, 0.0, 0.0), 40_000.0, 1.3);
    loop {
        let (cpu, begin) = (target.cpu_us(), Instant::now());
        load.measure(calls, rate, Duration::from_millis(time))?;
        load.drain(Duration::from_millis(30))?;
        let (seen, took) = (&load.stats, begin.elapsed().as_secs_f64() - 0.03);
        let (sent, cpu) = (seen.sent as f64, target.cpu_us() - cpu);
        let achieved = sent / took;
        eprintln!(
            "  {achieved:.0} packets/s: {:.2} % lost, {:.1} us each",
            100.0 - 100.0 * seen.uplink_frames as f64 / sent,
            cpu / sent
        );
        let works = seen.uplink_frames as f64 >= 0.99 * sent;
        if works && achieved > best.0 {
            best = (achieved, cpu / sent, cpu / took / 1e4);
        }
        // Twice with small steps, once with large ones, up to the limit of the load itself.
        if works && achieved > 0.9 * rate && !options.quick {
            rate *= step;
        } else if step > 1.1 && !options.quick {
            step = 1.06;
            rate = best.0.max(20_000.0) * step;
        } else {
            break;
        }
    }
    report.add(SATURATION_FIGURES[0], subject, best.0);
    report.add(SATURATION_FIGURES[1], subject, best.1);
    report.add(SATURATION_FIGURES[2], subject, best.2);
    if matches!(subject, Subject::Gateway(_) | Subject::Revision(_)) {
        let iterations = target.iteration_histogram()?;
        let of =
            |limit: f64| iterations.iter().find(|(at, _)| *at >= limit).map_or(f64::NAN, |(_, count)| *count);
        report.add(SATURATION_FIGURES[3], subject, 100.0 * of(0.005) / of(f64::INFINITY));
    }
    target.stop()
}

/// The same packet rate from few calls and from many.
fn calls_scaling(options: &Options, subject: Subject, report: &mut Report) -> Outcome<()> {
    let (few, many, rate) = if options.quick { (10, 100, 2000.0) } else { (100, 9000, 30_000.0) };
    // Long, since the system counts time outside of it in hundredths of a second.
    let time = Duration::from_millis(if options.quick { 100 } else { 3000 });
    // A process for each. Both are measured in turn, since the speed of the host changes.
    let mut sides = Vec::new();
    for calls in [few, many] {
        let (target, mut load) = start(subject)?;
        load.connect(calls, CONCURRENT_CONNECTS)?;
        load.start_calls(calls, CONCURRENT_CALL_SETUPS)?;
        load.measure(calls, rate, time / 2)?;
        sides.push((target, load, calls, [0.0; 3]));
    }
    for _ in 0..4 {
        for (target, load, calls, [cost, user, sent]) in &mut sides {
            let before = (target.cpu_us(), target.user_us());
            load.measure(*calls, rate, time)?;
            *cost += target.cpu_us() - before.0;
            *user += target.user_us() - before.1;
            *sent += load.stats.sent as f64;
        }
    }
    let of = |place: usize| sides.iter().map(move |(.., sums)| sums[place] / sums[2]).collect::<Vec<_>>();
    for (place, cost) in [(4, of(0)), (7, of(1))] {
        report.add(SATURATION_FIGURES[place], subject, cost[0]);
        report.add(SATURATION_FIGURES[place + 1], subject, cost[1]);
        report.add(SATURATION_FIGURES[place + 2], subject, cost[1] / cost[0]);
    }
    sides.into_iter().try_for_each(|(target, ..)| target.stop())
}

// ----- disturbances ---------------------------------------------------------------------------------------------------

const DISTURBANCE_FIGURES: [&str; 9] = [
    "echo p99 before, ms",
    "storm: devices/s",
    "storm: echo p99, ms",
    "storm: calls' packets lost, %",
    "storm: devices lost",
    "one device floods: echo p99, ms",
    "one device floods: lost of others, %",
    "one chat server floods: echo p99, ms",
    "one chat server floods: lost of others, %",
];

/// Calls that send audio while something else happens.
const BACKGROUND_CALLS: usize = 200;

fn start_background_calls(options: &Options, subject: Subject) -> Outcome<(MeasuredProcess, Load, usize)> {
    let calls = if options.quick { 10 } else { BACKGROUND_CALLS };
    let (target, mut load) = start(subject)?;
    load.connect(calls + 1, CONCURRENT_CONNECTS)?;
    load.start_calls(calls + 1, CONCURRENT_CALL_SETUPS)?;
    load.echo = true;
    load.measure(calls, calls as f64 * PACKETS_PER_CALL_PER_SECOND, Duration::from_millis(300))?;
    Ok((target, load, calls))
}

fn lost_percent(load: &mut Load) -> Outcome<f64> {
    load.drain(Duration::from_millis(100))?;
    Ok(100.0 * (1.0 - load.stats.downlink_packets as f64 / load.stats.sent as f64))
}

/// After a power cut: all devices connect at once.
fn connection_storm(options: &Options, subject: Subject, report: &mut Report) -> Outcome<()> {
    let (target, mut load, calls) = start_background_calls(options, subject)?;
    let (all, time) = if options.quick { (calls + 200, 500) } else { (calls + 15_000, 2000) };
    let (rate, time) = (calls as f64 * PACKETS_PER_CALL_PER_SECOND, Duration::from_millis(time));
    load.measure(calls, rate, time)?;
    report.add(DISTURBANCE_FIGURES[0], subject, delay_ms_percentile(&load, 0.99));
    load.drain(Duration::from_millis(100))?;
    load.stats = Default::default();
    let (begin, mut took) = (Instant::now(), None);
    while took.is_none() {
        load.send_audio(calls, rate, Duration::from_millis(20), |load| Ok(load.connect_more(all, all)?))?;
        took = (load.connected() >= all).then(|| begin.elapsed());
        if begin.elapsed() > Duration::from_secs(20) {
            return Err(format!("{} of {all} devices came back", load.connected()).into());
        }
    }
    let took = took.unwrap_or_default().as_secs_f64();
    report.add(DISTURBANCE_FIGURES[1], subject, (all - calls) as f64 / took);
    report.add(DISTURBANCE_FIGURES[2], subject, delay_ms_percentile(&load, 0.99));
    report.add(DISTURBANCE_FIGURES[3], subject, lost_percent(&mut load)?);
    report.add(DISTURBANCE_FIGURES[4], subject, load.stats.lost_devices as f64);
    target.stop()
}

/// One device, then one chat server, sends as fast as it can.
fn floods(options: &Options, subject: Subject, report: &mut Report) -> Outcome<()> {
    let time = Duration::from_millis(if options.quick { 300 } else { 2000 });
    for chat in [false, true] {
        let (target, mut load, calls) = start_background_calls(options, subject)?;
        let rate = calls as f64 * PACKETS_PER_CALL_PER_SECOND;
        load.flood(calls, 1)?;
        load.drain(Duration::from_millis(50))?;
        if chat {
            load.start_chat_flood();
        }
        load.stats = Default::default();
        load.send_audio(calls, rate, time, |load| if chat { Ok(()) } else { load.flood(calls, 8) })?;
        let place = if chat { 7 } else { 5 };
        report.add(DISTURBANCE_FIGURES[place], subject, delay_ms_percentile(&load, 0.99));
        report.add(DISTURBANCE_FIGURES[place + 1], subject, lost_percent(&mut load)?);
        target.stop()?;
    }
    Ok(())
}
