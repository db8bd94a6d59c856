//! A gateway between XiaoZhi voice devices and WebSocket chat servers.
//!
//! A device uses MQTT (QoS 0) for control and sends its voice as AES-CTR encrypted UDP packets; a chat server gets one
//! WebSocket per call with JSON and Opus frames. The gateway translates between them, and keeps a call alive when either
//! connection fails. It forwards and stores nothing; it is not a broker. One device hears another only in a call between the two.
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
//! configuration from anywhere. Log lines appear only when a logger for the `log` crate is installed: yours, or [`logger`].
//!
//! # Principles
//!
//! 1. *One loop owns its state.* Sockets, sessions and timers belong to one thread, and no packet of audio takes a lock. Other
//!    threads exist for calls that block (name lookups, writing the log, waiting for signals) and for further workers, which
//!    are event loops of the same kind. What they share is listed below.
//! 2. *The core decides, the shell executes.* [`proto`] and [`session`] use no socket, clock or random source. They get bytes
//!    and the current time and return what should happen, so their behaviour is tested without a network, in virtual time.
//! 3. *Readiness is a hint.* An event only says that an operation may succeed. Every handler may be called without reason,
//!    twice, or for a connection that no longer exists; the result of the read or write decides.
//! 4. *A handler that stops early continues later by itself.* Events are edge-triggered. A handler reads until the socket is
//!    empty, or puts its task on the run queue.
//! 5. *Sessions are freed at the end of an iteration.* No event of the same batch can reach another session in a reused slot.
//! 6. *Deadlines are in the session.* The timer wheel only wakes the loop, and may do so too early.
//! 7. *Every queue has a bound and a defined overflow.* Audio that does not fit is dropped and counted; text that does not fit
//!    ends the call.
//! 8. *Input from a peer never causes a panic,* an allocation without limit, or a warning per packet.
//! 9. *An idle device costs a few hundred bytes.* Buffers exist only while a packet is incomplete or output waits.
//! 10. *A signature shows what a function may change.* Each part of [`net`] owns its state and returns what happened; one place,
//!     [`net::gateway`], connects the parts.
//! 11. *The device is modelled.* What the gateway sends is chosen by what the firmware does with it in its current state.
//!
//! # What threads share
//!
//! * Every event loop has a channel of commands and a waker. Each [`Handle`] and each other worker sends commands through them.
//! * The resolver's two threads get names through a channel, whose receiving end they share under a mutex, and return addresses
//!   through another channel and the waker. The loop never takes that mutex.
//! * The logger has one bounded queue and one thread for each output, an atomic count of lost lines, and the `log` crate's
//!   atomic level. Logging never waits for an output.
//! * Request ids for devices come from one atomic counter of the process (a static).
//! * Workers share four things, none of which audio touches:
//!   * connections per IP address (IPv6: per /64), in a map under a mutex, used while `mqtt.max_connections_per_ip` is set when a connection
//!     is accepted, logs in or closes;
//!   * the recent errors, in a list under a mutex, used when an error is recorded or the list is read;
//!   * the numbers of devices and calls of each worker, as atomics: written at the end of an iteration, read for limits on all;
//!   * an atomic per worker that shows the first worker that the loop runs.
//!
//! Configurations and commands are sent by value. Copies of a configuration share the immutable addresses of chat servers.
//!
//! # The tree
//!
//! ```text
//!   main ----> tools ---------------> sub-commands; echo server, simulated device
//!    |           |
//!    |           v
//!    +--------> net ----------------> sockets, the event loop, time, random numbers    (impure)
//!    |           |
//!    |           v
//!    |         admin ---------------> HTTP, tokens, routes and JSON of the management API   (pure)
//!    |           |
//!    |           v
//!    |        session --------------> state machines of a device and its call          (pure)
//!    |        cluster --------------> other gateways, through Redis                     (pure)
//!    |           |
//!    |           v
//!    |         proto ---------------> MQTT, audio, JSON messages, identities            (pure)
//!    |           ^
//!    +--------> config -------------> checked settings, used by all but proto
//! ```
//!
//! Arrows are imports, and none points up; `tests/architecture.rs` checks that. `docs/architecture.md` describes each file of
//! [`net`] and the files that the main flows pass.
//!
//! * [`proto`]: bytes to values and back.
//! * [`session`]: the state machines of one device and its call. [`Core`](session::Core) gets an event with a
//!   [`Context`](session::Context), and pushes [`Action`](session::Action)s.
//! * [`net`]: executes the actions. [`Gateway`] composes the parts that own sockets, sessions and timers.
//! * `cluster`: what gateways tell each other through Redis, without its sockets, which are in `net::cluster`. With the feature
//!   `cluster`, which is on by default.
//! * [`admin`]: the management API without its sockets, which are in `net::admin`.
//! * [`config`]: reads file, environment and command line into one [`Config`], and compares two of them for a reload.
//! * [`logger`]: one line per message, written outside of the loop.
//! * [`output_file`]: opens the log and the pid file.
//! * [`tools`]: the sub-commands, and what they share with tests and examples.
//!
//! # One iteration of the loop
//!
//! 1. *Poll* until an event or the next timer; do not wait when work is deferred. Under load, first let packets gather for a
//!    bounded time. An interrupted poll is an empty batch.
//! 2. *Read the clock* once; all code of this iteration uses this time.
//! 3. *Dispatch* each event to its source: UDP socket, chat server, device, listener, management API, commands of other threads.
//!    Each handler does a bounded amount of work. Devices and new connections have one millisecond in each iteration; beyond it
//!    they are queued.
//! 4. *Continue deferred work* of earlier iterations, then queued devices and connections while their millisecond lasts.
//! 5. *Fire timers*, however busy the sockets are; after the process was suspended, first read what arrived meanwhile.
//! 6. *Flush*: all datagrams in one batch, then each connection with output once.
//! 7. *Free* finished sessions, and publish the numbers of devices and calls for the other workers.

pub mod admin;
pub mod clock;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod compressed_texts;
pub mod config;
#[cfg(any(test, fuzzing))]
#[path = "../tests/fuzzing/mod.rs"]
pub mod fuzzing;
mod labels;
pub mod logger;
pub mod net;
pub mod output_file;
pub mod proto;
pub mod session;
mod text;
mod text_ring;
pub mod tools;

pub use config::Config;
pub use net::{Gateway, Handle, Running};

/// The Rust in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
