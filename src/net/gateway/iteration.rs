//! One iteration of the loop.

use std::time::{Duration, Instant};
use std::{io, mem};

use mio::Events;
use mio::event::Event;

use crate::net::event_loop::io::TimerKind;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::{
    self, API, ListenerKind, MQTT, MQTTS, OTA, OWN_CHANNEL, PREDECESSOR, Role, SessionId, UDP, WAKEUP,
};
use crate::net::gateway::Gateway;
use crate::net::gateway::audio_events::TOUCHED_AT_ONCE;
use crate::net::gateway::handle::Command;
use crate::session::Core;

/// When a timer is this late, the process did not run for a while. Also for how long timers are then delayed at most.
const STALL: Duration = Duration::from_secs(1);
/// How long an iteration serves connections of devices, and TLS handshakes of the management API. The rest waits for the next iteration, so that audio is served in
/// between.
pub(super) const MQTT_BUDGET: Duration = Duration::from_millis(1);

impl Gateway {
    pub(super) fn run_once(&mut self, events: &mut Events) -> io::Result<()> {
        let interrupted = !self.poll_events(events)?;
        self.io.now = Instant::now();
        self.mqtt_time_used = Duration::ZERO;
        // Tasks that are queued from here on belong to the next iteration.
        let queued = self.io.run_queue.high_priority_len();
        let all_read = !interrupted && events.is_empty() && self.io.run_queue.is_empty();
        let mut ahead = events.iter();
        for (i, event) in events.iter().enumerate() {
            if i % TOUCHED_AT_ONCE == 0 {
                self.sessions.touch(ahead.clone().take(TOUCHED_AT_ONCE).filter_map(Self::server_event));
                ahead.nth(TOUCHED_AT_ONCE - 1);
            }
            self.dispatch(event);
        }
        for _ in 0..queued {
            let Some(task) = self.io.run_queue.pop_high_priority() else { break };
            self.run_task(task);
        }
        self.run_low_priority();
        if self.timers_allowed(all_read) {
            self.fire_timers();
        }
        // The dials of this iteration's hellos need no poll in between.
        if self.io.run_queue.take(Task::StartDials) {
            self.start_dials();
        }
        self.serve_event_streams();
        self.advance_cluster();
        if self.flush_relay() {
            // The calls that have ended with a worker may have something for other gateways.
            self.advance_cluster();
            self.flush_relay();
        }
        self.flush();
        self.reap();
        self.workers.publish_connections(self.sessions.without_lingering());
        self.workers.publish(self.sessions.index.devices(), self.sessions.index.calls());
        self.io.metrics.times.iterations.observe(self.io.now.elapsed());
        Ok(())
    }

    /// Runs queued tasks of devices' connections, within the budget.
    fn run_low_priority(&mut self) {
        for _ in 0..self.io.run_queue.low_priority_len() {
            if self.mqtt_time_used >= MQTT_BUDGET {
                break;
            }
            let Some(task) = self.io.run_queue.pop_low_priority() else { break };
            self.run_measured(task);
        }
    }

    /// Runs a task of a device's connection now, or queues it when others wait already or the budget is used up.
    fn run_or_queue(&mut self, task: Task) {
        if self.io.run_queue.low_priority_len() == 0 && self.mqtt_time_used < MQTT_BUDGET {
            self.run_measured(task);
        } else {
            self.io.run_queue.push(task);
        }
    }

    fn run_measured(&mut self, task: Task) {
        let started = Instant::now();
        self.run_task(task);
        self.mqtt_time_used += started.elapsed();
    }

    /// Waits for events. Under load it pauses first, so that packets which arrive meanwhile are served in one batch. False
    /// when a signal interrupted the poll.
    fn poll_events(&mut self, events: &mut Events) -> io::Result<bool> {
        let mut timeout = Some(Duration::ZERO);
        if self.io.run_queue.is_empty() {
            if let Some(pause) =
                self.coalescer.pause(self.io.config.udp.coalesce_max, self.io.now, Instant::now())
            {
                if pause.poll_first {
                    let completed = self.poll_once(events, timeout)?;
                    if !events.is_empty() {
                        return Ok(completed);
                    }
                }
                std::thread::sleep(pause.time);
            }
            timeout = self.wakeup.poll_timeout(self.io.timers.next(), self.io.now);
        }
        self.poll_once(events, timeout)
    }

    fn poll_once(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<bool> {
        match self.poll.poll(events, timeout) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The slot of the session whose chat server has caused this event.
    fn server_event(event: &Event) -> Option<usize> {
        let (role, slot) = token::from_token(event.token());
        (role == Role::Backend).then_some(slot)
    }

    fn dispatch(&mut self, event: &Event) {
        let (role, slot) = token::from_token(event.token());
        // Reads only on readable events: on Windows, each read that finds nothing causes another writable event.
        let readable = event.is_readable() || event.is_read_closed() || event.is_error();
        match role {
            Role::Fixed if slot == MQTT => self.run_or_queue(Task::Accept(ListenerKind::Plain)),
            Role::Fixed if slot == MQTTS => self.run_or_queue(Task::Accept(ListenerKind::Tls)),
            Role::Fixed if slot == UDP => {
                // On a writable event, the flush at the end of the iteration sends the queue.
                if readable {
                    self.run_unless_queued(Task::Udp);
                }
            }
            Role::Fixed if slot == API => self.run_unless_queued(Task::AcceptAdmin),
            Role::Fixed if slot == OTA => self.run_or_queue(Task::AcceptOta),
            Role::Fixed if slot == WAKEUP => self.wakeup.expired(),
            Role::Fixed if self.on_cluster_event(slot) => {}
            Role::Fixed if slot == OWN_CHANNEL => self.on_own_channel_readable(),
            Role::Fixed if slot >= PREDECESSOR => self.on_predecessor_readable((slot - PREDECESSOR) as u32),
            Role::Fixed => self.drain_commands(),
            Role::Device => {
                if let Some(id) = self.sessions.at(slot) {
                    if event.is_writable() {
                        self.sessions.mark_dirty(id);
                    }
                    if (event.is_read_closed() || event.is_error())
                        && let Some(connection) =
                            self.sessions.live(id).and_then(|session| session.mqtt.as_mut())
                    {
                        connection.near_end = true;
                    }
                    if readable {
                        self.run_or_queue(Task::Device(id));
                    }
                }
            }
            Role::Backend => {
                if let Some(id) = self.sessions.at(slot) {
                    if event.is_writable() {
                        self.sessions.mark_dirty(id);
                    }
                    let near_end = event.is_read_closed() || event.is_error();
                    if (readable || self.sessions.backend(id).is_some_and(|backend| backend.waits_to_write()))
                        && !self.io.run_queue.contains(Task::Backend(id))
                    {
                        self.on_backend_ready(id, near_end);
                    }
                }
            }
            Role::Ota | Role::OtaUpstream => self.on_ota_event(role, slot, readable),
            Role::Admin => {
                if let Some(id) = self.admin.ready_connection(slot, readable) {
                    match self.admin.is_in_handshake(id) {
                        true => self.run_or_queue(Task::AdminHandshake(id)),
                        false => self.run_unless_queued(Task::Admin(id)),
                    }
                }
            }
        }
    }

    fn on_ota_event(&mut self, role: Role, slot: usize, readable: bool) {
        let id = match role {
            Role::OtaUpstream => self.ota.ready_upstream(slot, readable),
            _ => self.ota.ready_connection(slot, readable),
        };
        if let Some(id) = id {
            self.run_or_queue(Task::Ota(id));
        }
    }

    /// Runs a task on an event, unless it is queued and runs in this iteration anyway.
    fn run_unless_queued(&mut self, task: Task) {
        if !self.io.run_queue.contains(task) {
            self.run_task(task);
        }
    }

    fn run_task(&mut self, task: Task) {
        match task {
            Task::Accept(kind) => self.accept(kind),
            Task::Udp => self.drain_udp(),
            Task::Device(id) => self.on_device_readable(id),
            Task::Disconnect(id) => self.drive(id, Core::operator_disconnect),
            Task::Backend(id) => self.on_backend_ready(id, true),
            Task::DeviceBlocked(id) => self.drive(id, Core::on_slow_reader),
            Task::BackendBlocked(id) => self.drive(id, Core::on_backend_blocked),
            Task::OverBudget(id) => self.on_over_budget(id),
            Task::StartDials => self.start_dials(),
            Task::AcceptAdmin => self.admin.accept(&mut self.io),
            Task::Admin(id) | Task::AdminHandshake(id) => self.drive_admin(id),
            Task::AcceptOta => self.ota.accept(&mut self.io),
            Task::Ota(id) => self.drive_ota(id),
            #[cfg(feature = "cluster")]
            Task::Redis(connection) => self.on_redis_ready(connection),
        }
    }

    /// Takes what other threads have sent: resolved names and commands.
    fn drain_commands(&mut self) {
        self.connector.collect_resolved(&mut self.sessions, &mut self.io);
        self.ota.collect_resolved(&mut self.io);
        #[cfg(feature = "cluster")]
        self.cluster.client.collect_resolved(&mut self.io);
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Run(action) => action(self),
                Command::Relay { from, way, batch } => self.on_relay(from, way, *batch),
            }
        }
    }

    /// Whether timers may be served. When the process did not run for a while (it was stopped, or the machine was suspended),
    /// the input that timers wait for may have arrived in time: it is read first, for at most [`STALL`].
    fn timers_allowed(&mut self, all_read: bool) -> bool {
        if all_read || self.io.timers.next().is_none_or(|at| self.io.now < at + STALL) {
            self.stalled_since = None;
            return true;
        }
        let since = *self.stalled_since.get_or_insert(self.io.now);
        self.io.now >= since + STALL
    }

    fn fire_timers(&mut self) {
        let mut expired = mem::take(&mut self.expired);
        self.io.timers.expire(self.io.now, &mut expired);
        for (tick, timer) in expired.drain(..) {
            match timer {
                TimerKind::Session(id) => self.on_session_timer(id, tick),
                TimerKind::Accept => self.resume_accepting(),
                TimerKind::Admin(id) => self.on_admin_timer(id, tick),
                TimerKind::DeviceCalls => self.on_device_calls_timer(tick),
                TimerKind::Relay => self.on_relay_timer(),
                TimerKind::Broadcast => self.on_broadcast_timer(),
                TimerKind::NotifyFallback => self.on_notify_timer(),
                TimerKind::AcceptAdmin => self.io.run_queue.push(Task::AcceptAdmin),
                TimerKind::Ota(id) => self.on_ota_timer(id, tick),
                TimerKind::AcceptOta => self.io.run_queue.push(Task::AcceptOta),
                TimerKind::CheckFiles => self.check_files(),
                TimerKind::Watchdog => self.notify_watchdog(),
                TimerKind::RefusalSummary => self.mqtt.refusals().log.summarize(),
                TimerKind::ConnectionSummary => self.connection_log.write_summary(),
                TimerKind::Restart => self.on_restart_timer(),
                TimerKind::TrimMemory => self.trim_memory(),
                #[cfg(feature = "cluster")]
                TimerKind::AwaitOtherGateway(id) => self.on_hold_timer(id),
                #[cfg(feature = "cluster")]
                TimerKind::Redis => self.on_redis_timer(tick),
                #[cfg(feature = "cluster")]
                TimerKind::GatewayRequest(request_id) => {
                    self.on_gateway_request_timer(u64::from_be_bytes(request_id));
                }
                TimerKind::Drain => self.on_drain_timer(),
                TimerKind::Stop => {}
            }
        }
        self.expired = expired;
    }

    fn on_session_timer(&mut self, id: SessionId, tick: u64) {
        let now = self.io.now;
        let Some(session) = self.sessions.live(id) else { return };
        session.armed.on_expired(tick);
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let held_output = is_due(session.mqtt.as_ref().and_then(|connection| connection.hold_until()));
        let next_address = is_due(session.backend.as_ref().and_then(|backend| backend.next_step_at()));
        if is_due(session.linger_until()) {
            session.set_linger_until(None);
            if session.mqtt.as_ref().is_some_and(|connection| connection.closing) {
                self.sessions.drop_mqtt(id, &mut self.io);
            }
            if self.sessions.core(id).is_some_and(|core| core.is_finished()) {
                self.connector.drop_connection(id, &mut self.sessions, &mut self.io);
            }
        }
        if held_output {
            self.sessions.mark_dirty(id);
        }
        if next_address {
            self.on_backend_ready(id, true);
        }
        self.drive(id, Core::on_timeout);
    }

    /// Writes what this iteration has queued: all datagrams in one batch, then the text of each dirty session. While the UDP
    /// socket is full, a device's text waits for its own queued audio, which must leave first.
    fn flush(&mut self) {
        let flushed = self.audio.flush(&mut self.io);
        self.audio.watch_writable(flushed.blocked, &self.io.registry);
        let Self { sessions, connector, audio, io, .. } = self;
        sessions.flush_dirty(|sessions, id| {
            let Some(session) = sessions.live(id) else { return true };
            if !connector.flush(session) {
                io.run_queue.push(Task::Backend(id));
            }
            if flushed.blocked && session.core.ssrc().is_some_and(|ssrc| audio.socket.holds(ssrc)) {
                return false;
            }
            session.dirty = false;
            if session.mqtt.as_mut().is_some_and(|mqtt| mqtt.flush(id, io)) {
                sessions.drop_mqtt(id, io);
            }
            sessions.account(id, io);
            true
        });
    }

    /// Frees the slots of finished sessions.
    fn reap(&mut self) {
        let before = self.sessions.len();
        self.sessions.reap();
        if self.sessions.len() < before {
            self.memory_trim.schedule(before, self.sessions.len(), &mut self.io);
        }
    }

    /// Returns the memory that only a peak needed.
    fn trim_memory(&mut self) {
        self.sessions.shrink();
        self.io.timers.shrink();
        self.connector.shrink();
        self.mqtt.shrink();
        self.memory_trim.trim(self.sessions.len());
    }
}
