//! Compares the gateway with the baseline, a minimal relay: both in turn, under the same load, on this machine.
//!
//! ```text
//! cargo bench --bench baseline                          every figure, about ten minutes
//! cargo bench --bench baseline -- --only audio,curve    some of them
//! cargo bench --bench baseline -- --compare HEAD~5      with another revision, which it builds
//! cargo bench --bench baseline -- --quick               a short run that only shows that it works
//! ```
#![allow(clippy::print_stdout)] // A report is what it is for.

#[cfg(target_os = "linux")]
#[path = "../../examples/shared/board_tools.rs"]
mod board_tools;
#[cfg(target_os = "linux")]
mod load;
#[cfg(target_os = "linux")]
mod measured_process;
#[cfg(target_os = "linux")]
#[path = "../../examples/shared/process.rs"]
mod process;
#[cfg(target_os = "linux")]
mod relay;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod scenarios;
#[cfg(target_os = "linux")]
mod websocket_frame;

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((role, rest)) if role == "relay" => relay::main(rest),
        _ => scenarios::main(),
    }
}

/// A listener with a backlog for many connections at once.
#[cfg(target_os = "linux")]
fn listen(at: std::net::SocketAddr) -> std::io::Result<mio::net::TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    socket.listen(4096)?;
    Ok(mio::net::TcpListener::from_std(socket.into()))
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("baseline: it reads /proc and batches datagrams, which needs Linux");
}
