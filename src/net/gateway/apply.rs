//! The core decides, the shell does: carrying out a session's actions, and the lines they leave in the log.

use std::mem;
use std::net::SocketAddr;

use log::{Level, error, log};

use crate::admin::recent_errors::RecentErrorKind;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::media::credentials;
use crate::proto::identity::ClientId;
use crate::proto::mqtt::{ConnectReturnCode, encode};
use crate::session::{Action, CallState, CallSummary, Context, Core, DropReason, LogEvent, RequestIds};

/// One source for all workers, and for all gateways of a process: a device may come back to another one.
static REQUEST_IDS: RequestIds = RequestIds::new();

impl Gateway {
    /// Lets a core decide, then does what it says, then sees to its alarm.
    pub(in crate::net) fn drive(&mut self, id: SessionId, decide: impl FnOnce(&mut Core, &mut Context<'_>)) {
        debug_assert!(self.actions.is_empty(), "no action is left for the next session");
        let Some(session) = self.sessions.live(id) else { return };
        let mut cx = Context {
            now: self.now,
            config: &self.config,
            servers: &mut self.servers,
            ids: &REQUEST_IDS,
            out: &mut self.actions,
        };
        decide(&mut session.core, &mut cx);
        self.apply(id);
    }

    fn apply(&mut self, id: SessionId) {
        if !self.actions.is_empty() {
            let mut actions = mem::take(&mut self.actions);
            for action in actions.drain(..) {
                self.execute(id, action);
            }
            if self.actions.is_empty() {
                self.actions = actions;
            }
        }
        self.arm_session_timer(id);
        self.reap_if_finished(id);
    }

    fn execute(&mut self, id: SessionId, action: Action) {
        match action {
            Action::Admit => self.admit(id),
            Action::AcceptConnect => {
                self.write_device(id, |out| encode::connack(out, ConnectReturnCode::Accepted))
            }
            Action::RefuseConnect(code) => self.refuse_connect(id, code),
            Action::SubAck { packet_id, filters } => {
                self.write_device(id, |out| encode::suback(out, packet_id, filters));
            }
            Action::UnsubAck(packet_id) => self.write_device(id, |out| encode::unsuback(out, packet_id)),
            Action::PingResp => self.write_device(id, encode::pingresp),
            Action::Publish(text) => self.publish(id, &text),
            Action::GenerateCredentials => self.grant(id),
            Action::Dial(request) => self.dial(id, request),
            Action::SendText(text) => self.say(id, text),
            Action::SendPing => {
                if let Some(backend) = self.sessions.live(id).and_then(|session| session.backend.as_mut()) {
                    // A server that takes no ping does not read: its missing pong will tell.
                    let _ = backend.ping(&mut self.context_pool);
                    self.mark_dirty(id);
                }
            }
            Action::CloseBackend(code) => self.close_backend(id, code),
            Action::SendDatagram(sealed, bytes) => self.queue_datagram(id, sealed, &bytes),
            Action::FlushAudio(ssrc) => {
                for _ in 0..self.udp.drop_queued(ssrc) {
                    self.metrics.discarded(DropReason::Aborted);
                }
            }
            Action::CommandResult { ticket, result } => self.on_command_result(ticket, &result),
            Action::CallEnded(summary) => self.call_ended(id, &summary),
            Action::Count(counter) => self.metrics.count(counter),
            Action::Log(note) => self.log_event(id, &note),
            Action::CloseDevice(reason) => self.close_device(id, &reason),
        }
    }

    fn publish(&mut self, id: SessionId, text: &str) {
        let Some(client_id) = self.sessions.get(id).and_then(|session| session.core.client_id()) else {
            return;
        };
        let topic = format!("devices/p2p/{}", client_id.mac().underscored());
        self.write_device(id, |out| encode::publish(out, &topic, text.as_bytes()));
    }

    fn say(&mut self, id: SessionId, text: String) {
        let Some(backend) = self.sessions.live(id).and_then(|session| session.backend.as_mut()) else {
            return;
        };
        if backend.send_text(text, &mut self.context_pool).is_err() {
            self.run_queue.push(Task::BackendBlocked(id));
        }
        self.mark_dirty(id);
    }

    fn grant(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else { return };
        let local = session.mqtt.as_ref().and_then(|device| device.local_ip());
        let ip = session.core.ip();
        let mut grant = match credentials::generate(&self.index) {
            Ok(grant) => grant,
            Err(error) => {
                error!(
                    "{} the system's random source failed, the call is refused: {error}",
                    self.log_prefix(id)
                );
                credentials::without_keys()
            }
        };
        grant.udp_host = credentials::udp_host(&self.config.udp.public_ip, local);
        grant.udp_port = self.addresses.udp.port();
        let limit = self.config.websocket.max_calls;
        if grant.allowed && limit > 0 && self.all_calls() >= limit {
            grant.allowed = false;
            let sentence =
                format!("a call was refused: websocket.max_calls is reached: session={}", grant.session_id);
            self.trouble_of(id, RecentErrorKind::TooManyCalls, &sentence);
        }
        if grant.allowed {
            self.index.add_call(grant.ssrc, id, ip);
            self.udp_drops.watch(ip);
        }
        self.drive(id, |core, cx| core.on_credentials(grant, cx));
    }

    fn call_ended(&mut self, id: SessionId, summary: &CallSummary) {
        if let Some(ip) = summary.ssrc.and_then(|ssrc| self.index.remove_call(ssrc, id)) {
            self.udp_drops.forget(ip);
        }
        self.metrics.ended(summary);
        if let Some((kind, sentence)) = RecentErrorKind::from_end_reason(summary.reason) {
            let sentence = format!("{sentence}: session={}", summary.session_id);
            self.trouble_of(id, kind, &sentence);
        }
        let facts = &summary.stats;
        let server = summary.server.as_ref().map_or("none".to_owned(), |server| server.to_string());
        let (level, left_out) = self.call_log_level(id);
        log!(
            level,
            "{} call ends: session={} reason={} duration={:.3}s server={server} up={}p/{}B down={}p/{}B lost={} \
             reordered={} duplicates={} dropped={} redials={}{left_out}",
            self.log_prefix(id),
            summary.session_id,
            summary.reason.label(),
            summary.duration.as_secs_f64(),
            facts.up_packets,
            facts.up_bytes,
            facts.down_packets,
            facts.down_bytes,
            facts.lost,
            facts.reordered,
            facts.duplicates,
            facts.dropped,
            facts.redials,
        );
        if matches!(summary.state, CallState::Ringing | CallState::InDeviceCall) {
            self.leave_device_call(id);
        }
    }

    fn log_event(&mut self, id: SessionId, note: &LogEvent) {
        let level = match note {
            LogEvent::CallStarted { .. } | LogEvent::ServerRecovered { .. } => Level::Info,
            // A server that fails is one warning; that each of its calls redials would be hundreds.
            LogEvent::Redialling { .. } | LogEvent::Redialled { .. } | LogEvent::ConnectionLost(_) => {
                Level::Debug
            }
            LogEvent::Connected { .. } | LogEvent::DialFailed { .. } | LogEvent::ToolDiscovery(_) => {
                Level::Debug
            }
            _ => Level::Warn,
        };
        if let Some(kind) = RecentErrorKind::from_log_event(note) {
            match note {
                LogEvent::ServerFailing { .. } => self.admin.record_error(kind, None, &note.to_string()),
                _ => self.trouble_of(id, kind, &note.to_string()),
            }
        }
        match note {
            LogEvent::ServerFailing { .. } | LogEvent::ServerRecovered { .. } => log!(level, "{note}"),
            LogEvent::NoUdpAudio { .. } => {
                let ip = self.sessions.get(id).map(|session| session.core.ip());
                let seen = ip.map(|ip| self.udp_drops.of(ip)).unwrap_or_default();
                log!(level, "{} {note}; {}", self.log_prefix(id), credentials::describe_drops(&seen));
            }
            LogEvent::CallStarted { .. } => {
                let (level, left_out) = self.call_log_level(id);
                log!(level, "{} {note}{left_out}", self.log_prefix(id));
            }
            _ => log!(level, "{} {note}", self.log_prefix(id)),
        }
    }

    /// At which level a line about a call of this device is logged, and what it ends with.
    fn call_log_level(&mut self, id: SessionId) -> (Level, String) {
        let mac = self.sessions.get(id).and_then(|session| session.core.client_id()).map(ClientId::mac);
        match mac.map_or(Some(0), |mac| self.call_log_limiter.allows(mac, self.now)) {
            Some(0) => (Level::Info, String::new()),
            Some(left_out) => {
                (Level::Info, format!(" ({left_out} lines about this device's calls left out)"))
            }
            None => (Level::Debug, String::new()),
        }
    }

    /// Remembers a trouble of this device.
    pub(in crate::net) fn trouble_of(&mut self, id: SessionId, kind: RecentErrorKind, sentence: &str) {
        let core = self.sessions.get(id).map(|session| &session.core);
        match core.and_then(Core::client_id) {
            Some(client_id) => self.admin.record_error(kind, Some(client_id.as_str()), sentence),
            None => {
                let ip = core.map(|core| core.ip().to_string());
                self.admin.record_error(kind, ip.as_deref(), sentence);
            }
        }
    }

    /// What every line of a session begins with.
    pub(in crate::net) fn log_prefix(&self, id: SessionId) -> String {
        let session = self.sessions.get(id);
        let peer = session
            .and_then(|session| Some(SocketAddr::new(session.core.ip(), session.mqtt.as_ref()?.peer_port)));
        let client_id = session.and_then(|session| session.core.client_id()).map(|id| id.as_str());
        match (client_id, peer) {
            (Some(client_id), Some(peer)) => format!("[{client_id} {peer}]"),
            (Some(client_id), None) => format!("[{client_id}]"),
            (None, Some(peer)) => format!("[{peer}]"),
            (None, None) => "[gone]".to_owned(),
        }
    }
}
