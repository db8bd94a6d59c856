//! Drain: no new devices, and the end when the last call is over or the time for it.

use std::time::{Duration, Instant};

use log::info;

use crate::admin::dto::DrainStatus;
use crate::net::event_loop::io::TimerKind;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::gateway::lifecycle::Phase;
use crate::net::sessions::session::Session;
use crate::session::Core;

/// A draining gateway disconnects its devices without a call one by one over this time, since all at once would overload the
/// gateways that they reconnect to.
const DRAIN_SPREAD: Duration = Duration::from_secs(5);
/// How often the log says what a drain waits for.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);
/// How long the last calls may take to end when the time is over, as after SIGTERM.
const STOP_GRACE: Duration = Duration::from_secs(3);

/// A drain in progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    since: Instant,
    /// When it ends although calls go on.
    deadline: Option<Instant>,
    next_report: Instant,
}

/// What a drain needs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DrainStep {
    Wait,
    Report,
    TimeIsOver,
}

impl Drain {
    pub(crate) fn new(now: Instant) -> Self {
        Self { since: now, deadline: None, next_report: now + REPORT_INTERVAL }
    }

    fn step(&mut self, now: Instant) -> DrainStep {
        if self.deadline.is_some_and(|at| at <= now) {
            return DrainStep::TimeIsOver;
        }
        if now < self.next_report {
            return DrainStep::Wait;
        }
        self.next_report = now + REPORT_INTERVAL;
        DrainStep::Report
    }

    /// The time until its deadline, if it has one.
    fn time_left(&self, now: Instant) -> Option<Duration> {
        self.deadline.map(|at| at.saturating_duration_since(now))
    }
}

impl Gateway {
    /// Begins a drain. `within`: it ends after this time although calls go on; given again, it counts from then on. Without it
    /// nothing changes when the gateway drains already.
    pub(super) fn drain(&mut self, within: Option<Duration>) {
        let now = self.io.now;
        let begins = self.lifecycle.begin_drain(now);
        if self.lifecycle.phase() != Phase::Draining {
            return;
        }
        if let (Some(within), Some(drain)) = (within, self.lifecycle.drain_mut()) {
            drain.deadline = Some(now + within);
            self.io.timers.arm(now + within, TimerKind::Drain);
            info!("draining: calls that go on in {} s are ended then", within.as_secs());
        }
        if begins {
            self.begin_drain();
        }
    }

    fn begin_drain(&mut self) {
        // While a port is open, the system accepts connections on it.
        self.mqtt.close();
        self.ota.close();
        if self.workers.is_leader() {
            info!(
                "draining: {} calls to finish; devices without one are disconnected within {} s",
                self.all_calls(),
                DRAIN_SPREAD.as_secs()
            );
            self.io.timers.arm(self.io.now + REPORT_INTERVAL, TimerKind::Drain);
        }
        self.workers.broadcast(|worker| worker.drain(None));
        self.drain_sessions(|_| true);
        self.notify_status();
    }

    /// Lets devices without a call go over some seconds.
    fn drain_sessions(&mut self, is_included: impl Fn(&Core) -> bool) {
        let mut ids = self.sessions.ids();
        ids.retain(|id| self.sessions.core(*id).is_some_and(&is_included));
        let count = ids.len().max(1) as u32;
        for (n, id) in ids.into_iter().enumerate() {
            let leave_at = self.io.now + DRAIN_SPREAD * n as u32 / count;
            self.drain_session(id, leave_at);
        }
    }

    fn drain_session(&mut self, id: SessionId, leave_at: Instant) {
        // The keys of TLS are in this process, so that another one cannot pass such a connection on.
        let is_tls = |session: &Session| session.mqtt.as_ref().is_some_and(|mqtt| !mqtt.transport.is_plain());
        let may_return = self.io.config.cluster.redis.is_some()
            || self.upgrades.is_replaced() && !self.sessions.get(id).is_some_and(is_tls);
        self.drive(id, |core, cx| match may_return {
            true => core.retire(leave_at),
            false => core.drain(leave_at, cx),
        });
    }

    /// A device has logged in; when the gateway drains, it does not stay.
    pub(super) fn drain_if_draining(&mut self, id: SessionId) {
        if self.lifecycle.is_draining() {
            self.drain_session(id, self.io.now + DRAIN_SPREAD);
        }
    }

    /// Another process has the ports of this one: devices reconnect to it when they have no call.
    #[cfg(target_os = "linux")]
    pub(super) fn let_devices_go(&mut self) {
        if !self.lifecycle.begin_drain(self.io.now) {
            return;
        }
        self.mqtt.close();
        self.ota.close();
        self.lifecycle.forget_config_file();
        if self.workers.is_leader() {
            self.io.timers.arm(self.io.now + REPORT_INTERVAL, TimerKind::Drain);
        }
        // Those that are logging in may do that first.
        self.drain_sessions(|core| core.client_id().is_some());
    }

    /// The first worker ends the drain of all in time, and says meanwhile what it waits for.
    pub(super) fn on_drain_timer(&mut self) {
        let now = self.io.now;
        let is_draining = self.lifecycle.phase() == Phase::Draining;
        let Some(drain) = self.lifecycle.drain_mut().filter(|_| is_draining) else { return };
        match drain.step(now) {
            DrainStep::Wait => {}
            DrainStep::Report => {
                let (since, next) = (now - drain.since, drain.next_report);
                let left = drain.time_left(now);
                let left = left.map(|left| format!(", {} s left", left.as_secs())).unwrap_or_default();
                let (calls, devices) = (self.all_calls(), self.all_devices());
                info!("draining for {} s: waits for {calls} calls, {devices} devices{left}", since.as_secs());
                self.io.timers.arm(next, TimerKind::Drain);
                self.notify_status();
            }
            DrainStep::TimeIsOver => {
                info!("draining: the time is over, {} calls are ended", self.all_calls());
                self.stop(STOP_GRACE);
            }
        }
    }

    /// What a drain waits for, at all workers.
    pub(super) fn drain_status(&self) -> DrainStatus {
        let left = self.lifecycle.drain().and_then(|drain| drain.time_left(self.io.now));
        DrainStatus {
            status: self.lifecycle.phase().label(),
            calls: self.all_calls(),
            devices: self.all_devices(),
            seconds_left: left.map(|left| left.as_secs()),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_reports_once_a_minute_until_its_time_is_over() {
        let now = Instant::now();
        let after = |s| now + Duration::from_secs(s);
        let mut drain = Drain::new(now);
        assert_eq!(
            [0, 59, 60, 61, 119].map(|s| drain.step(after(s)) == DrainStep::Report),
            [false, false, true, false, false]
        );
        // The loop was busy: no two lines at once.
        assert_eq!(drain.step(after(300)), DrainStep::Report);
        assert_eq!((drain.step(after(359)), drain.time_left(after(359))), (DrainStep::Wait, None));
        drain.deadline = Some(after(400));
        assert_eq!(drain.step(after(360)), DrainStep::Report);
        assert_eq!(drain.time_left(after(360)), Some(Duration::from_secs(40)));
        assert_eq!(drain.step(after(400)), DrainStep::TimeIsOver);
        assert_eq!(drain.time_left(after(500)), Some(Duration::ZERO));
    }
}
