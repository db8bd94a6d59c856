//! Counts instructions: of a packet up, of a packet down, and of a call's set-up, in the gateway's own code without the system.
//! Unlike times, they are the same in each run and on each machine of one kind, so a change of a tenth is seen.
//!
//! ```text
//! cargo bench --bench instructions               compares with counts.json; exit code 1 if one is a tenth more
//! cargo bench --bench instructions -- --update   writes counts.json
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

const SCRIPTS: [&str; 3] = ["packet up", "packet down", "call set-up"];
/// The difference between a short and a long run is without what happens once.
const RUNS: [u32; 2] = [100, 600];
/// Compilers and C libraries differ by a little.
const TOLERANCE: f64 = 0.1;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args[..] {
        [role, script, times] if role == "script" => run(script, times.parse().unwrap()),
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
        _ => (0..times).for_each(|_| drop(black_box(CallFixture::new()))),
    }
}
