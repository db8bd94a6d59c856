//! Shared by all threads: the clock, the gateway's address, and the counters.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::tools::device::{DeviceError, Login, SimulatedDevice};

use crate::gateway::{Gateway, KEY};
use crate::statistics::{Latencies, Rng};

/// The number of failure messages that are kept.
const MAX_FAILURE_LINES: usize = 20;
/// How long the gateway may take to answer anything.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Context {
    pub(crate) start: Instant,
    pub(crate) mqtt: SocketAddr,
    pub(crate) counters: Counters,
    /// Round trips of audio in steady calls.
    pub(crate) latencies: Latencies,
    /// Round trips of a datagram without the gateway.
    pub(crate) machine_latencies: Latencies,
    end: Instant,
    seed: u64,
}

/// Counts so far.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) calls: AtomicU64,
    pub(crate) steady_sent: AtomicU64,
    pub(crate) steady_echoed: AtomicU64,
    pub(crate) transient_sent: AtomicU64,
    pub(crate) transient_echoed: AtomicU64,
    pub(crate) resumed: AtomicU64,
    pub(crate) vanished: AtomicU64,
    pub(crate) killed: AtomicU64,
    pub(crate) frozen: AtomicU64,
    pub(crate) rejected_connections: AtomicU64,
    pub(crate) bad_datagrams: AtomicU64,
    pub(crate) api_requests: AtomicU64,
    pub(crate) reloads: AtomicU64,
    /// The longest time an established call waited for an echo.
    pub(crate) silence_ms_max: AtomicU64,
    failure_count: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Context {
    pub(crate) fn new(gateway: &Gateway, total: Duration, seed: u64) -> Self {
        let start = Instant::now();
        Self {
            start,
            mqtt: gateway.mqtt,
            counters: Counters::default(),
            latencies: Latencies::new(start, total),
            machine_latencies: Latencies::new(start, total),
            end: start + total,
            seed,
        }
    }

    pub(crate) fn remaining(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.remaining().is_zero()
    }

    /// Waits, but not past the end.
    pub(crate) fn sleep(&self, time: Duration) {
        thread::sleep(time.min(self.remaining()));
    }

    /// The random numbers of one thread.
    pub(crate) fn rng(&self, thread: usize) -> Rng {
        Rng(self.seed.wrapping_mul(0x1_0000).wrapping_add(thread as u64))
    }

    pub(crate) fn connect(&self, login: &Login) -> Result<SimulatedDevice, DeviceError> {
        SimulatedDevice::connect(self.mqtt, login, RESPONSE_TIMEOUT)
    }

    /// Records something that must not happen.
    pub(crate) fn record_failure(&self, what: impl std::fmt::Display) {
        self.counters.failure_count.fetch_add(1, Relaxed);
        let mut wrong = self.counters.failures.lock().expect("nobody panics with it");
        if wrong.len() < MAX_FAILURE_LINES {
            wrong.push(format!("{:.1} s: {what}", self.start.elapsed().as_secs_f64()));
        }
    }
}

/// The credentials of device `number` of this group.
pub(crate) fn login(group: u8, number: usize, keep_alive: u16) -> Login {
    let mac = mac(group, number).parse().expect("it is one");
    Login { keep_alive, ..Login::new(mac, Some(KEY.as_bytes())) }
}

pub(crate) fn mac(group: u8, number: usize) -> String {
    let [.., a, b, c] = (number as u32).to_be_bytes();
    format!("02:00:{group:02x}:{a:02x}:{b:02x}:{c:02x}")
}

impl Counters {
    pub(crate) fn summary(&self) -> String {
        let facts = [
            (&self.calls, "calls begun"),
            (&self.resumed, "resumed or taken over"),
            (&self.vanished, "devices vanished"),
            (&self.killed, "chat servers killed"),
            (&self.frozen, "frozen"),
            (&self.rejected_connections, "rejected MQTT connections"),
            (&self.bad_datagrams, "bad datagrams"),
            (&self.api_requests, "API requests"),
            (&self.reloads, "reloads"),
        ];
        let facts = facts.map(|(number, what)| format!("{} {what}", number.load(Relaxed)));
        facts.join(", ")
    }

    /// The first failure messages, and how many more there are.
    pub(crate) fn failure_lines(&self) -> Vec<String> {
        let mut lines = self.failures.lock().expect("nobody panics with it").clone();
        let more = self.failure_count.load(Relaxed) - lines.len() as u64;
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        lines
    }
}
