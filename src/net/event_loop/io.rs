//! What every part of the gateway may use.

use std::sync::Arc;
use std::time::Instant;

use mio::Registry;

use super::run_queue::RunQueue;
use super::timer_wheel::TimerWheel;
use super::token::{AdminId, OtaId, SessionId};
use crate::config::Config;
use crate::net::metrics::Metrics;

/// Registration with the poll, timers, deferred work, the time, counters and the configuration.
pub(crate) struct Io {
    pub(crate) registry: Registry,
    pub(crate) timers: TimerWheel<TimerKind>,
    pub(crate) run_queue: RunQueue,
    /// The time at the start of this iteration.
    pub(crate) now: Instant,
    pub(crate) metrics: Metrics,
    pub(crate) config: Arc<Config>,
}

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimerKind {
    /// A deadline of a session or one of its sockets.
    Session(SessionId),
    /// Accept MQTT connections again after accepting failed.
    Accept,
    /// A deadline of a connection to the management API.
    Admin(AdminId),
    /// A device that was called by another one has not answered.
    DeviceCalls,
    /// Check that the workers with whose devices devices of this one talk respond.
    Relay,
    /// Send the next devices a message to many.
    Broadcast,
    /// Devices that have not fetched their sound get the text instead.
    NotifyFallback,
    /// Accept management connections again after accepting failed.
    AcceptAdmin,
    /// A deadline of a connection to the OTA port.
    Ota(OtaId),
    /// Accept connections to the OTA port again after accepting failed.
    AcceptOta,
    /// Check whether the configuration file or the certificate has changed.
    CheckFiles,
    /// Tell the service manager that the loop is running.
    Watchdog,
    /// Sum up the log lines about refusals that were left out.
    RefusalSummary,
    /// Sum up the log lines about devices that connected or left that were left out.
    ConnectionSummary,
    /// Another gateway has not said whether it has a call of this device.
    #[cfg(feature = "cluster")]
    AwaitOtherGateway(SessionId),
    /// A device may still be in a call of an earlier process of the gateway.
    Restart,
    /// Give memory back after a peak.
    TrimMemory,
    /// A deadline of the connections to Redis.
    #[cfg(feature = "cluster")]
    Redis,
    /// A request that other gateways are asked, or have asked, may have waited long enough.
    ///
    /// Its number in bytes: as one integer it would make all timers take 16 bytes instead of 12, and each device has one.
    #[cfg(feature = "cluster")]
    GatewayRequest([u8; 8]),
    /// Say what a drain waits for, or end it.
    Drain,
    /// The grace period of the shutdown is over.
    Stop,
}

impl Io {
    pub(crate) fn new(registry: mio::Registry, config: Config, now: Instant) -> Self {
        Self {
            registry,
            timers: TimerWheel::new(now),
            run_queue: RunQueue::default(),
            now,
            metrics: Metrics::default(),
            config: Arc::new(config),
        }
    }

    /// With the registry of a poll that nobody polls.
    #[cfg(test)]
    #[allow(clippy::unwrap_used)]
    pub(crate) fn for_test() -> Self {
        let registry = mio::Poll::new().unwrap().registry().try_clone().unwrap();
        Self::new(registry, Config::default(), Instant::now())
    }
}
