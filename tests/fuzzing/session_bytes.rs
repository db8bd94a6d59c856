//! A session whose device and chat server send arbitrary bytes.

use std::collections::BTreeSet;
use std::time::Duration;

use super::FieldReader;
use super::live_call::{CLIENT_ID, KEY, credentials};
use crate::config::Config;
use crate::proto::audio::UdpHeader;
use crate::proto::message::{JsonObject, Reader, peek};
use crate::proto::mqtt::decode;
use crate::session::harness::{TestShell, connect_packet, encrypt_datagram, publish_packet, servers};
use crate::session::{
    Action, Admission, BackendClosed, BackendFailure, BackendStage, Context, Core, Delivery, EndReason,
    SetupStage,
};

/// First a byte of settings, then steps. The lower half of a step's byte is the kind of step, as in [`SessionHarness::step`]; the
/// upper half is its parameter.
pub fn session_bytes(data: &[u8]) {
    let mut fields = FieldReader(data);
    let mut harness = SessionHarness::new(fields.byte());
    while !fields.is_empty() {
        harness.step(&mut fields);
        harness.check();
    }
    // The device disconnects, and all timers expire.
    harness.drive(Core::on_connection_lost);
    for _ in 0..60 {
        harness.advance(1_000);
        harness.check();
    }
    assert!(harness.core.is_finished() && harness.ws == WebSocketState::None, "no call is left over");
    assert!(harness.tickets.is_empty(), "every command is answered");
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum WebSocketState {
    None,
    Dialing,
    Open,
}

struct SessionHarness {
    core: Core,
    shell: TestShell,
    inbox: Vec<u8>,
    /// The device is accepted, and its connection is not closed.
    connected: bool,
    ws: WebSocketState,
    /// The ssrc of the running call.
    current_ssrc: Option<u32>,
    grants: u32,
    tickets: BTreeSet<u64>,
    commands_sent: u64,
    last_sequence_sent: u32,
    last_sequence_received: u32,
}

impl SessionHarness {
    fn new(settings: u8) -> Self {
        let mut config = Config::default();
        config.mcp.enabled = settings & 1 != 0;
        config.websocket.send_goodbye = settings & 2 == 0;
        if settings & 4 != 0 {
            config.mqtt.resume_grace = Duration::ZERO;
        }
        let urls: &[&str] = if settings & 8 != 0 { &["ws://a/"] } else { &["ws://a/", "wss://b/"] };
        config.websocket.production = servers(urls);
        let shell = TestShell::new(config);
        let mut harness = Self {
            core: Core::new([192, 0, 2, 7].into(), shell.now),
            shell,
            inbox: Vec::new(),
            connected: false,
            ws: WebSocketState::None,
            current_ssrc: None,
            grants: 0,
            tickets: BTreeSet::new(),
            commands_sent: 0,
            last_sequence_sent: 0,
            last_sequence_received: 0,
        };
        // Otherwise the input must contain a CONNECT.
        if settings & 16 == 0 {
            harness.drive(|core, cx| core.on_packet(connect_packet(CLIENT_ID, 0), cx));
        }
        harness
    }

    fn step(&mut self, fields: &mut FieldReader<'_>) {
        let op = fields.byte();
        let more = op >> 4;
        match op & 15 {
            0 => {
                let len = fields.byte().into();
                self.device_bytes(fields.bytes(len));
            }
            1 => {
                let len = fields.byte().into();
                self.device_text(fields.bytes(len));
            }
            2 => {
                let len = fields.byte().into();
                self.server_text(&String::from_utf8_lossy(fields.bytes(len)));
            }
            3 => {
                let len = fields.byte().into();
                self.server_frame(fields.bytes(len));
            }
            4 => self.device_datagram(more),
            5 => self.advance(200 * (1 + u64::from(more) * u64::from(more))),
            6 => self.dial_step(more),
            7 if self.ws != WebSocketState::None => {
                let gone = [
                    BackendClosed::CloseFrame(None, "".into()),
                    BackendClosed::CloseFrame(Some(1000), "".into()),
                    BackendClosed::CloseFrame(Some(1011), "why".into()),
                    BackendClosed::NoCloseFrame("reset".to_owned()),
                    failed_with(BackendStage::Live),
                ];
                self.close_websocket(gone[usize::from(more % 5)].clone());
            }
            8 => {
                self.commands_sent += 1;
                let ticket = self.commands_sent;
                self.tickets.insert(ticket);
                self.drive(|core, cx| core.send_command(ticket, "tools/call", "{}", cx));
            }
            9 => {
                let text =
                    [r#"{"type":"alert"}"#, r#"{"type":"tts","state":"start"}"#][usize::from(more & 1)];
                let delivery = self.drive(|core, cx| core.send_message(text, cx));
                assert_eq!(delivery == Delivery::NotConnected, !self.core.is_present());
            }
            10 => self.drive(if more == 0 { Core::on_slow_reader } else { Core::on_connection_lost }),
            11 => self.reconnect(),
            12 => self.server_text(
                [r#"{"type":"hello"}"#, r#"{"type":"hello","session_id":"s"}"#][usize::from(more & 1)],
            ),
            13 => {
                self.device_text(br#"{"type":"hello","version":3,"transport":"udp","features":{"mcp":true}}"#)
            }
            14 => self.device_text(match more {
                0..=3 => br#"{"type":"goodbye"}"#,
                4..=7 => br#"{"type":"abort"}"#,
                8..=9 => br#"{"type":"udp_timeout"}"#,
                _ => br#"{"type":"listen","state":"start","session_id":"s"}"#,
            }),
            15 if more == 0 => self.drive(Core::shutdown),
            15 if more == 1 => self.drive(Core::operator_disconnect),
            15 if more == 2 => {
                let had = self.current_ssrc.is_some() && self.core.has_call();
                assert_eq!(self.drive(Core::operator_hang_up), had);
            }
            _ => self.drive(Core::on_timeout),
        }
    }

    // ----- inputs -------------------------------------------------------------------------------------------------

    /// Reads the device's bytes as the shell does.
    fn device_bytes(&mut self, bytes: &[u8]) {
        self.core.refresh_keep_alive(self.shell.now);
        self.inbox.extend(bytes);
        let inbox = std::mem::take(&mut self.inbox);
        let mut rest = &inbox[..];
        while self.core.accepts_packets() {
            let max = self.core.max_packet_bytes(&self.shell.config);
            match decode(rest, max) {
                Ok(Some((packet, used))) => {
                    rest = &rest[used..];
                    self.drive(|core, cx| core.on_packet(packet, cx));
                }
                Ok(None) => {
                    assert!(rest.len() < max + 5, "a part of a packet has a bound");
                    self.inbox = rest.to_vec();
                    return;
                }
                Err(malformed) => {
                    self.drive(|core, cx| core.on_malformed_packet(malformed, cx));
                    return assert!(!self.core.accepts_packets(), "{malformed} closes");
                }
            }
        }
    }

    fn device_text(&mut self, payload: &[u8]) {
        if self.connected {
            self.core.refresh_keep_alive(self.shell.now);
            self.drive(|core, cx| core.on_packet(publish_packet(payload), cx));
        }
    }

    fn server_text(&mut self, text: &str) {
        if self.ws == WebSocketState::Open {
            self.drive(|core, cx| core.on_backend_text(text, cx));
        }
    }

    fn server_frame(&mut self, frame: &[u8]) {
        if self.ws != WebSocketState::Open {
            return;
        }
        match self.shell.downlink(&mut self.core, frame) {
            Ok(Some((_, datagram))) => self.on_datagram(&datagram),
            Ok(None) => self.drive(Core::release_held),
            Err(_) => {}
        }
    }

    fn device_datagram(&mut self, skipped: u8) {
        let Some(ssrc) = self.current_ssrc else { return };
        self.last_sequence_sent += 1 + u32::from(skipped);
        let mut datagram = encrypt_datagram(&KEY, ssrc, self.last_sequence_sent, 0, &[8, skipped]);
        let from = ([192, 0, 2, 7], 4_000).into();
        if self.shell.uplink(&mut self.core, from, &mut datagram).is_ok() {
            assert_eq!(self.ws, WebSocketState::Open, "a chat server is connected");
        }
        self.drive(Core::on_device_heard);
    }

    fn dial_step(&mut self, more: u8) {
        match (self.ws, more) {
            (WebSocketState::Dialing, 0) => self.core.on_dial_stage(SetupStage::Connect, self.shell.now),
            (WebSocketState::Dialing, 1..=3) => self.close_websocket(failed_with(
                [BackendStage::Resolve, BackendStage::Connect, BackendStage::Upgrade][usize::from(more - 1)],
            )),
            (WebSocketState::Dialing, _) => {
                self.ws = WebSocketState::Open;
                self.drive(Core::on_backend_open);
            }
            (WebSocketState::Open, 0..=7) => self.core.on_backend_activity(self.shell.now),
            (WebSocketState::Open, 8) => self.drive(Core::on_backend_blocked),
            _ => {}
        }
    }

    fn close_websocket(&mut self, gone: BackendClosed) {
        self.ws = WebSocketState::None;
        self.drive(|core, cx| core.on_backend_closed(gone, cx));
    }

    /// The same device connects again.
    fn reconnect(&mut self) {
        let newer = self.shell.connect([192, 0, 2, 8].into(), connect_packet(CLIENT_ID, 0));
        let keeps = !self.shell.config.mqtt.resume_grace.is_zero();
        if self.core.is_present() && self.core.has_call() && keeps {
            self.connected = true;
            return self.drive(|core, cx| core.take_over(newer, cx));
        }
        self.drive(Core::on_replaced);
        if self.core.is_finished() {
            (self.core, self.inbox) = (newer, Vec::new());
            self.drive(|core, cx| core.on_admission(Admission::Accepted, cx));
        }
    }

    fn advance(&mut self, ms: u64) {
        let until = self.shell.now + Duration::from_millis(ms);
        while let Some(due) = self.core.deadline().filter(|due| *due <= until) {
            self.shell.now = self.shell.now.max(due);
            self.drive(Core::on_timeout);
            assert!(self.core.deadline().is_none_or(|at| at > self.shell.now), "no deadline in the past");
        }
        self.shell.now = until;
    }

    // ----- actions ------------------------------------------------------------------------------------------------

    fn drive<T>(&mut self, decide: impl FnOnce(&mut Core, &mut Context<'_>) -> T) -> T {
        let grants = &mut self.grants;
        let credentials = || {
            *grants += 1;
            credentials(*grants)
        };
        let (result, out) = self.shell.drive(&mut self.core, credentials, decide);
        assert!(out.len() <= 1_024, "one step, {} actions", out.len());
        out.into_iter().for_each(|action| self.apply(action));
        result
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::AcceptConnect => self.connected = true,
            Action::Publish(text) => {
                assert!(self.connected, "sent to a closed connection: {text}");
                let object = JsonObject::parse(&text).unwrap_or_else(|bad| panic!("{bad}: {text}"));
                let id = object.raw("session_id").map(|_| object.string("session_id"));
                assert!(id.is_none_or(|id| id.is_some_and(|id| !id.is_empty())), "{text}");
            }
            Action::SubAck { .. } | Action::UnsubAck(_) | Action::PingResp => assert!(self.connected),
            Action::GenerateCredentials => {
                assert_eq!(self.current_ssrc, None, "the previous call has ended");
                (self.current_ssrc, self.last_sequence_sent, self.last_sequence_received) =
                    (Some(self.grants), 0, 0);
            }
            Action::Dial(_) => {
                assert!(
                    self.current_ssrc.is_some() && self.ws == WebSocketState::None,
                    "the one before is hung up first"
                );
                self.ws = WebSocketState::Dialing;
            }
            Action::SendText(text) => {
                assert_eq!(self.ws, WebSocketState::Open, "sent to a closed WebSocket: {text}");
                assert!(peek(&text, Reader::Server).is_ok(), "{text}");
            }
            Action::SendPing => assert_eq!(self.ws, WebSocketState::Open),
            Action::CloseBackend(_) => self.ws = WebSocketState::None,
            Action::SendDatagram(encrypted, bytes) => {
                assert_eq!(encrypted.datagram_len, bytes.len());
                self.on_datagram(&bytes);
            }
            Action::CommandResult { ticket, .. } => assert!(self.tickets.remove(&ticket), "answered once"),
            Action::LateCommandResult { ticket, .. } => {
                assert!(!self.tickets.contains(&ticket), "it timed out")
            }
            Action::CallEnded(summary) => {
                assert_eq!(summary.ssrc, self.current_ssrc.take(), "only a running call ends");
                let dial_kept = summary.reason == EndReason::Replaced && !summary.answered;
                assert!(dial_kept || self.ws == WebSocketState::None, "no WebSocket outlives its call");
            }
            Action::CloseDevice(_) => self.connected = false,
            Action::Admit
            | Action::RefuseConnect(_)
            | Action::FlushAudio(_)
            | Action::Count(_)
            | Action::Log(_) => {}
        }
    }

    fn on_datagram(&mut self, datagram: &[u8]) {
        let header = UdpHeader::parse(datagram).expect("a good datagram");
        if header.sequence == 0 {
            return assert_eq!(Some(header.ssrc), self.current_ssrc, "a keep-alive");
        }
        self.last_sequence_received += 1;
        assert_eq!((Some(header.ssrc), header.sequence), (self.current_ssrc, self.last_sequence_received));
    }

    fn check(&self) {
        assert_eq!(self.core.ssrc(), self.current_ssrc);
        assert_eq!(self.core.is_online(), self.connected);
        assert!(self.tickets.len() <= 16, "commands have a bound");
        assert!(
            self.current_ssrc.is_none() || self.core.deadline().is_some(),
            "a call always waits for something"
        );
    }
}

fn failed_with(stage: BackendStage) -> BackendClosed {
    BackendClosed::Failed(BackendFailure::new(stage, "broken"))
}
