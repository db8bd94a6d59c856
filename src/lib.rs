//! A gateway between XiaoZhi voice devices and WebSocket chat servers.
//!
//! A device speaks MQTT (QoS 0) for control and sends its voice as AES-CTR encrypted UDP packets; a chat server wants one
//! WebSocket per call with JSON and Opus frames on it. The gateway stands between them, and keeps the call alive when
//! either side falters. It is a forwarder and no broker: it stores nothing, and no device hears another but in a
//! call between the two.
//!
//! # Inside another program
//!
//! ```
//! use std::net::Ipv4Addr;
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use mqtt_websocket_proxy::{Config, Running};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = Config::default();
//! config.websocket.production = vec![Arc::new("ws://127.0.0.1:8000/xiaozhi/v1/".parse()?)];
//! (config.mqtt.host, config.mqtt.port) = (Ipv4Addr::LOCALHOST.into(), 0); // 0 is any free port
//! (config.udp.host, config.udp.port) = (Ipv4Addr::LOCALHOST.into(), 0);
//! config.api.port = 0;
//!
//! let gateway = Running::start(config, None)?;
//! println!("devices connect to {}", gateway.addresses().mqtt);
//! assert_ne!(gateway.addresses().mqtt.port(), 0);
//!
//! gateway.stop(Duration::from_secs(3))?; // goodbye to devices in a call, 1001 to their chat servers
//! # Ok(())
//! # }
//! ```
//!
//! [`Running`] gives the gateway a thread of its own; [`Gateway`] runs it on yours. [`Handle`] stops it and changes its
//! configuration from anywhere. Nothing is logged unless a logger of the `log` crate is there: yours, or [`logger`].
//!
//! # Principles
//!
//! 1. *One thread owns everything.* Sockets, sessions and timers belong to one loop, and no packet of audio takes a lock. Other
//!    threads exist for what blocks and cannot be made not to (looking up names, writing the log, waiting for signals), and
//!    for further workers, which are loops of the same kind. What threads share is listed below.
//! 2. *The core decides, the shell does.* [`proto`] and [`session`] know no socket, no clock and no random source. Bytes
//!    and the time go in, decisions come out; so all behaviour is tested without a network, in virtual time.
//! 3. *An event is a hint.* It says "try", no more. Every handler may be called for nothing, twice, or for a connection
//!    that is gone; what counts is what the read or the write itself returns.
//! 4. *Who stops early says so.* Sockets announce news once. A loop over one ends when the system has no more, or puts
//!    its source on a list of those to go on with.
//! 5. *Nobody is buried in mid-batch.* A session that has ended is removed at the end of a turn, so that no event of the
//!    batch meets a stranger in its place.
//! 6. *The session knows the time.* Its deadlines are the truth; the timer wheel is an alarm clock that may ring early.
//! 7. *Every queue has an end and a stated loser.* Audio that does not fit is dropped and counted; text that does not
//!    fit ends the call.
//! 8. *A peer cannot hurt.* Whatever it sends, there is no panic, no memory without limit, no warning line per packet.
//! 9. *Idle is nearly free.* A device that only waits costs less than a kilobyte: buffers exist while something is
//!    partial, and not longer.
//!
//! # What threads share
//!
//! * Each loop has a channel of commands and a waker, for every [`Handle`] and every other worker.
//! * The resolver's threads get names and return addresses through channels. They take names in turn under a lock, which the
//!   loop never takes.
//! * The log is global, as the `log` crate wants it: its level, a bounded queue for each place it is written to, and the
//!   count of lost lines. Who logs never waits for a writer.
//! * Connections of each address are counted under a lock (`ConnectionsByAddress`), taken when a connection comes, is let in or
//!   goes, while `max_connections_per_ip` is set. The workers share one count.
//! * Recent errors are kept under a lock (`RecentErrors`), taken when one is recorded or read. The workers share one.
//! * Each worker stores its numbers of devices and calls in atomics at the end of a turn; the others read them for limits that
//!   hold for all together. By another one the leader sees that a worker turns.
//!
//! # The house
//!
//! ```text
//!   main ----> tools ---------------> sub-commands: demo, probe, check, credentials, health; echo server, simulated device
//!    |           |
//!    |           v
//!    +--------> net ----------------> sockets, the loop, time, randomness     (impure: the shell)
//!    |           |
//!    |           v
//!    |         admin ---------------> HTTP, tokens, calls of operators, views (pure)
//!    |           |
//!    |           v
//!    |        session --------------> a device, its call, its tools           (pure: the core)
//!    |           |
//!    |           v
//!    |         proto ---------------> MQTT, audio, JSON, identities           (pure: bytes and values)
//!    |           ^
//!    +--------> config -------------> checked settings, lent to all of them
//! ```
//!
//! Arrows are imports, and none points up; `tests/architecture.rs` holds them.
//!
//! * [`proto`]: bytes to values and back.
//! * [`session`]: the state machines of one device and its call. [`Core`](session::Core) takes what happened together
//!   with a [`Context`](session::Context), and pushes [`Action`](session::Action)s.
//! * [`net`]: carries the actions out. [`Gateway`] owns the poll, the listeners, every session with both its sockets,
//!   the indexes and the wheel.
//! * [`admin`]: the management API without its sockets, which are in `net::admin`: requests, tokens, the table of calls,
//!   what they show, and the text of the metrics.
//! * [`config`]: reads file, environment and command line into one [`Config`], and compares two of them for a reload.
//! * [`logger`]: one line per message, written off the loop.
//! * [`tools`]: what the sub-commands do, and the parts they share with tests and examples.
//!
//! # The turn
//!
//! The loop is one function that is called again and again. Each turn:
//!
//! 1. *Sleep* until a socket has news or the wheel rings; not at all when somebody has more to do. While packets come thick,
//!    pause first.
//! 2. *Poll.* An interrupted poll is an empty batch.
//! 3. *Look at the clock,* once. This is `now` for everybody in this turn.
//! 4. *Dispatch* each event to its source: UDP socket, chat server, device, listener, management API, or notes from other
//!    threads. Each does a bounded amount of work. When devices and new connections have had their millisecond of this turn, or others of them
//!    wait already, they stand in line.
//! 5. *Go on* with those who stopped early in an earlier turn, so that none of them starves the others; then with the line
//!    of devices, as long as their millisecond lasts.
//! 6. *Fire timers,* however busy the sockets are; but after a time in which the gateway did not run, read first what came
//!    meanwhile.
//! 7. *Flush:* all datagrams together, then each socket that was written to, once.
//! 8. *Bury* the sessions that have ended, and tell the other workers how many devices and calls there are.

pub mod admin;
pub mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod logger;
pub mod net;
pub mod proto;
pub mod session;
mod text;
pub mod tools;

pub use config::Config;
pub use net::{Gateway, Handle, Running};

/// The Rust in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
