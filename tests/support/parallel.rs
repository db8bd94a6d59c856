//! Cases that run in parallel, and calls in large numbers.

use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use super::TIMEOUT;
use super::chat_server::{ChatServer, Peer};

/// Runs each case in its own thread, and fails with the names of those that failed.
pub fn run_in_parallel(cases: &[(&str, fn())]) {
    let failed: Vec<&str> = thread::scope(|scope| {
        let run = |case: fn()| catch_unwind(AssertUnwindSafe(case)).is_err();
        let threads: Vec<_> = cases
            .iter()
            .map(|&(name, case)| {
                (name, thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, move || run(case)))
            })
            .collect();
        let failed =
            threads.into_iter().filter_map(|(name, thread)| thread.unwrap().join().unwrap().then_some(name));
        failed.collect()
    });
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// Ends a chat server like SIGKILL: every connection is reset, and nothing listens any more.
pub fn kill_server(server: ChatServer, peers: impl IntoIterator<Item = Peer>) -> SocketAddr {
    let addr = server.addr;
    drop(server);
    peers.into_iter().for_each(Peer::reset);
    let end = Instant::now() + TIMEOUT;
    while TcpStream::connect_timeout(&addr, Duration::from_secs(1)).is_ok() {
        assert!(Instant::now() < end, "the chat server still listens");
        thread::yield_now();
    }
    addr
}
