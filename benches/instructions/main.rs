//! Counts instructions: of a packet up, of a packet down, and of a call's set-up, in the gateway's own code without the system.
//! Unlike times, they are the same in each run and on each machine of one kind, so a change of a tenth is seen.
//!
//! ```text
//! cargo bench --bench instructions               compares with counts.json; exit code 1 if one is a tenth more
//! cargo bench --bench instructions -- --update   writes counts.json
//! cargo bench --bench instructions -- --misses   cache misses of a packet with 1,000 calls, which do not fit the modelled caches
//! ```
//!
//! It needs valgrind, which counts them.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // A report is what it is for; a failure may end it.

#[path = "../shared/call_fixture.rs"]
mod call_fixture;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, exit};

use mqtt_websocket_proxy::net::backend::websocket_context_pool::ContextPool;
use mqtt_websocket_proxy::proto::audio::{HEADER_LEN, MAX_PAYLOAD};

use self::call_fixture::{CallFixture, audio_frame, datagram, send_frame};

/// Packets of 1,000 calls in turn.
const MANY_CALLS: [&str; 2] = ["packets up", "packets down"];
const SCRIPTS: [&str; 3] = ["packet up", "packet down", "call set-up"];
/// The difference between a short and a long run is without what happens once.
const RUNS: [u32; 2] = [100, 600];
/// Compilers and C libraries differ by a little.
const TOLERANCE: f64 = 0.1;
/// As many as do not fit the modelled caches.
const CALLS: u32 = 1_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args[..] {
        [role, script, times] if role == "script" => run(script, times.parse().unwrap()),
        _ if args.iter().any(|arg| arg == "--misses") => print_misses(),
        _ => compare(args.iter().any(|arg| arg == "--update")),
    }
}

/// Counts all scripts, and compares or writes.
fn compare(update: bool) {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return println!("instructions: not counted, since valgrind is not installed");
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions/counts.json");
    let mut all: BTreeMap<String, BTreeMap<String, u64>> =
        std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let expected = all.entry(std::env::consts::ARCH.to_owned()).or_default();
    let mut worse = false;
    for script in SCRIPTS {
        let [short, long] = RUNS.map(|times| count(script, times));
        let each = (long - short) / u64::from(RUNS[1] - RUNS[0]);
        let before = expected.insert(script.to_owned(), each);
        let ratio = before.map_or(1.0, |before| each as f64 / before as f64);
        println!("{script:12} {each:7} instructions, {ratio:.3} times those of counts.json");
        worse |= ratio > 1.0 + TOLERANCE;
    }
    if update {
        std::fs::write(file, serde_json::to_string_pretty(&all).unwrap() + "\n").unwrap();
    } else if worse {
        println!(
            "more than a tenth above counts.json: make it cheaper, or run it with --update and say why in the commit"
        );
        exit(1);
    }
}

/// The instructions of a script that is run so many times, set-up included.
fn count(script: &str, times: u32) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["script", script, &times.to_string()])
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    let collected = log.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    collected.unwrap_or_else(|| panic!("valgrind failed: {log}"))
}

/// Prints how many reads and writes of a packet miss the caches that cachegrind models: 32 KiB, and 1 MiB of the last level.
fn print_misses() {
    for script in MANY_CALLS {
        // The first packets of a call are without.
        let [short, long] = [3, 13].map(|times| {
            let output = Command::new("valgrind")
                .args(["--tool=cachegrind", "--cache-sim=yes", "--cachegrind-out-file=/dev/null"])
                .args(["--D1=32768,8,64", "--LL=1048576,16,64"])
                .arg(std::env::current_exe().unwrap())
                .args(["script", script, &times.to_string()])
                .output()
                .unwrap();
            let log = String::from_utf8_lossy(&output.stderr).replace(',', "");
            ["D1  misses:", "LLd misses:"].map(|name| {
                let count = log.lines().find_map(|line| line.split_once(name)?.1.split_whitespace().next());
                count.unwrap_or_else(|| panic!("valgrind failed: {log}")).parse::<f64>().unwrap()
            })
        });
        let each = |i: usize| (long[i] - short[i]) / (10.0 * f64::from(CALLS));
        println!("{script:12} {:5.1} misses of the first level, {:5.1} of the last", each(0), each(1));
    }
}

/// `times` packets in each of many calls, by turns.
fn run_many(script: &str, times: u32) {
    let mut cores: Vec<_> = (0..CALLS).map(|_| CallFixture::new().into_core()).collect();
    let mut call = CallFixture::new();
    let (frame, mut out) = (audio_frame(), [0; HEADER_LEN + MAX_PAYLOAD]);
    for sequence in 1..=times {
        let packet = datagram(sequence);
        call.wait();
        for core in &mut cores {
            call.swap_core(core);
            if script == "packets up" || sequence == 1 {
                call.uplink(&mut packet.clone());
            } else {
                call.downlink_now(black_box(&frame), &mut out);
            }
            call.swap_core(core);
        }
    }
}

fn run(script: &str, times: u32) {
    let mut call = CallFixture::new();
    match script {
        "packet up" => {
            let mut contexts = ContextPool::default();
            let mut datagrams: Vec<_> = (1..=RUNS[1]).map(datagram).collect();
            for datagram in &mut datagrams[..times as usize] {
                call.uplink(datagram);
                send_frame(&mut contexts, &datagram[..]);
            }
        }
        "packet down" => {
            call.uplink(&mut datagram(1));
            let (frame, mut out) = (audio_frame(), [0; HEADER_LEN + MAX_PAYLOAD]);
            for _ in 0..times {
                call.downlink(black_box(&frame), &mut out);
            }
        }
        script if MANY_CALLS.contains(&script) => run_many(script, times),
        _ => (0..times).for_each(|_| drop(black_box(CallFixture::new()))),
    }
}
