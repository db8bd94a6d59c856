//! Runs a gateway for hours with calls that start and end in every way, and with faults around it: does
//! its memory grow, does it leak descriptors, does it lose audio, does it get slower?
//!
//! ```text
//! .ci/soak 600                                                    builds what it needs, then this
//! cargo run --release --example soak -- --gateway target/release/mqtt-websocket-proxy --seconds 600
//! ```
//!
//! A third of the calls is steady: they last for the whole run, their chat server has no faults, so nothing may
//! happen to them. The others use two chat servers that are killed and frozen in turn, and end in ten ways.
#![allow(clippy::print_stdout)] // A report is what it is for.

#[cfg(unix)]
mod background_load;
#[cfg(unix)]
mod callers;
#[cfg(unix)]
mod chat_servers;
#[cfg(unix)]
mod context;
#[cfg(unix)]
mod gateway;
#[cfg(unix)]
#[path = "../shared/process.rs"]
mod process;
#[cfg(unix)]
mod runner;
#[cfg(unix)]
mod statistics;

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    runner::main()
}

#[cfg(not(unix))]
fn main() {
    eprintln!("soak: it needs signals and /proc: run it on Linux");
}
