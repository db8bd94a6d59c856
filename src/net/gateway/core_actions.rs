//! Calls the core, and carries its actions out.

use std::mem;

use log::Level;

use crate::admin::recent_errors::RecentErrorKind;
use crate::admin::worker_answer::Answer;
use crate::logger::log_about;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::media::credentials;
use crate::proto::mqtt::{ConnectReturnCode, encode};
use crate::session::{Action, Context, Core, LogEvent, RequestIds};

/// Shared by all workers and all gateways of a process, since a device may reconnect to another one.
static REQUEST_IDS: RequestIds = RequestIds::new();

impl Gateway {
    /// Calls the core of a session, and carries out the actions that it returns.
    pub(super) fn drive(&mut self, id: SessionId, decide: impl FnOnce(&mut Core, &mut Context<'_>)) {
        self.drive_device(id, decide);
    }

    /// As [`drive`](Self::drive). Returns the session that has the device's connection afterwards, which is another one
    /// after a take-over.
    pub(super) fn drive_device(
        &mut self,
        id: SessionId,
        decide: impl FnOnce(&mut Core, &mut Context<'_>),
    ) -> SessionId {
        debug_assert!(self.actions.is_empty(), "the actions of the last call were all carried out");
        let Some(session) = self.sessions.live(id) else { return id };
        let mut cx = Context {
            now: self.io.now,
            config: &self.io.config,
            servers: &mut self.servers,
            hellos: &mut self.hellos,
            ended_calls: &mut self.ended_calls,
            ids: &REQUEST_IDS,
            tool_lists: &self.tool_lists,
            out: &mut self.actions,
        };
        decide(&mut session.core, &mut cx);
        let mut device_at = id;
        // An action may call a core again, so the list is taken out meanwhile.
        let mut actions = mem::take(&mut self.actions);
        for action in actions.drain(..) {
            device_at = self.execute(id, action).unwrap_or(device_at);
        }
        self.actions = actions;
        self.sessions.arm_timer(id, &mut self.io);
        self.sessions.reap_if_finished(id);
        device_at
    }

    /// Returns the session that took the device's connection over, if the action caused a take-over.
    fn execute(&mut self, id: SessionId, action: Action) -> Option<SessionId> {
        let (sessions, io) = (&mut self.sessions, &mut self.io);
        match action {
            Action::Admit => return self.admit(id),
            Action::AcceptConnect => {
                self.write_mqtt(id, |out| encode::connack(out, ConnectReturnCode::Accepted));
                self.judge_silence_later(id);
            }
            Action::RefuseConnect(code) => self.refuse_connect(id, code),
            Action::SubAck { packet_id, filters } => {
                self.write_mqtt(id, |out| encode::suback(out, packet_id, filters));
            }
            Action::UnsubAck(packet_id) => {
                self.write_mqtt(id, |out| encode::unsuback(out, packet_id));
            }
            Action::PingResp => self.write_mqtt(id, encode::pingresp),
            Action::Publish(text) => self.publish(id, &text),
            Action::GenerateCredentials => self.generate_credentials(id),
            Action::Dial(request) => self.connector.dial(id, request, sessions, io),
            Action::SendText(text) => self.connector.send_text(id, text, sessions, io),
            Action::SendPing => self.connector.send_ping(id, sessions),
            Action::CloseBackend(code) => self.connector.close(id, code, sessions, io),
            Action::SendDatagram(encrypted, bytes) => self.audio.queue(id, encrypted, &bytes, sessions, io),
            Action::FlushAudio(ssrc) => self.audio.drop_queued(ssrc, io),
            Action::CommandResult { ticket, result } => {
                self.on_command_result(ticket, &result, Answer::Response);
            }
            Action::LateCommandResult { ticket, result } => {
                self.on_command_result(ticket, &result, Answer::LateCommandResult);
            }
            Action::CallEnded(summary) => {
                // The device may be at another gateway, which is told.
                sessions.mark_dirty(id);
                self.on_call_ended(id, &summary);
            }
            Action::Count(counter) => io.metrics.count(counter),
            Action::Log(event) => self.log_event(id, &event),
            Action::CloseDevice(reason) => self.close_device(id, &reason),
        }
        None
    }

    pub(super) fn publish(&mut self, id: SessionId, text: &str) {
        let Some(client_id) = self.sessions.client_id(id) else { return };
        let topic = format!("devices/p2p/{}", client_id.mac().underscored());
        self.write_mqtt(id, |out| encode::publish(out, &topic, text.as_bytes()));
    }

    /// Queues output for the device, which is written at the end of the iteration. A device that does not read loses its connection.
    pub(super) fn write_mqtt(&mut self, id: SessionId, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(mqtt) = self.sessions.mqtt(id) else { return };
        if mqtt.closing {
            return;
        }
        if !mqtt.write(write) {
            // Later, since the actions of the core are in progress.
            self.io.run_queue.push(Task::DeviceBlocked(id));
        }
        self.sessions.mark_dirty(id);
    }

    fn generate_credentials(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else { return };
        let ip = session.core.ip();
        let mut call =
            credentials::generate(&self.sessions.index, self.audio.share).unwrap_or_else(|error| {
                let subject = self.sessions.log_subject(id);
                log_about!(
                    Level::Error,
                    subject,
                    "the system's random source failed, the call is refused: {error}"
                );
                credentials::without_keys()
            });
        let connection = self.sessions.get(id).and_then(|session| session.mqtt.as_ref());
        match credentials::udp_host(&self.io.config.udp, || connection?.local_ip()) {
            Some(host) => call.udp_host = host,
            None => {
                call.udp_host = "127.0.0.1".into();
                self.log_event(id, &LogEvent::NoIpv4Address);
            }
        }
        call.udp_port = self.addresses.udp.port();
        let limit = self.io.config.websocket.max_calls;
        let now = (self.sessions.index.devices(), self.sessions.index.calls());
        if call.allowed && limit > 0 && !self.workers.allow(now, (0, 1), |_, calls| calls <= limit) {
            call.allowed = false;
            let message =
                format!("a call was refused: websocket.max_calls is reached: session={}", call.session_id);
            self.record_session_error(id, RecentErrorKind::TooManyCalls, &message);
            // The end of the call is a line of its own.
            self.publish_limit(Level::Debug, id, "websocket.max_calls", &message);
        }
        if call.allowed {
            self.sessions.index.add_call(call.ssrc, id);
            if let Some(client_id) = self.sessions.client_id(id) {
                self.report_call_started(client_id.mac());
            }
            self.audio.drops.watch(ip);
            if let Some(restart) = &mut self.restart {
                restart.on_call(call.ssrc);
            }
        }
        self.drive(id, |core, cx| core.on_credentials(call, cx));
    }
}
