//! The actions of chat servers, in every state of a WebSocket.

use super::*;
use crate::proto::audio::{HEADER_LEN, MAX_PAYLOAD};
use crate::session::harness::frame_with_header;

impl Simulation {
    pub(super) fn server_step(&mut self) {
        let busy: Vec<_> =
            (0..self.sessions.len()).filter(|s| self.sessions[*s].model.ws != WebSocketState::None).collect();
        if busy.is_empty() {
            return;
        }
        let s = self.rng.pick(&busy);
        match &self.sessions[s].model.ws {
            WebSocketState::None => {}
            WebSocketState::Dialing { .. } => self.dial_step(s),
            WebSocketState::Open { hello_received: false, .. } if self.rng.percent(60) => {
                self.send_server_hello(s)
            }
            WebSocketState::Open { .. } => self.open_server_step(s),
        }
    }

    fn dial_step(&mut self, s: usize) {
        match self.rng.below(10) {
            0..2 => self.sessions[s].core.on_dial_stage(SetupStage::Connect, self.shell.now),
            2..4 => {
                self.log(format_args!("[{s}] the dial fails"));
                let stage = self.rng.pick(&[
                    BackendStage::Resolve,
                    BackendStage::Connect,
                    BackendStage::Tls,
                    BackendStage::Upgrade,
                ]);
                self.close_websocket(s, BackendClosed::Failed(BackendFailure::new(stage, "broken")));
            }
            _ => {
                self.log(format_args!("[{s}] the WebSocket is open"));
                self.sessions[s].core.on_dial_stage(SetupStage::Connect, self.shell.now);
                self.sessions[s].model.on_websocket_open(self.shell.now);
                self.drive(s, Input::Other, Core::on_backend_open);
            }
        }
    }

    fn send_server_hello(&mut self, s: usize) {
        let id = self.rng.percent(80).then(|| format!("srv-{}", self.serial));
        self.next_serial();
        let field = id.as_ref().map(|id| format!(r#","session_id":"{id}""#)).unwrap_or_default();
        self.log(format_args!("[{s}] the server's hello, session {id:?}"));
        let input = self.sessions[s].model.on_server_hello(id);
        self.drive(s, input, |core, cx| core.on_backend_text(&format!(r#"{{"type":"hello"{field}}}"#), cx));
    }

    fn open_server_step(&mut self, s: usize) {
        match self.rng.below(100) {
            0..10 => self.send_server_text(s, "tts", "start", ""),
            10..20 => self.send_server_text(s, "tts", "stop", ""),
            20..30 => self.send_server_text(s, "llm", "", ""),
            30..80 => self.send_server_audio(s),
            80..82 => {
                self.log(format_args!("[{s}] bad frames"));
                assert!(self.downlink(s, &[0; 15 + HEADER_LEN + MAX_PAYLOAD]).is_err());
                assert!(self.downlink(s, b"").is_err());
                self.drive(s, Input::Other, |core, cx| core.on_backend_text("nonsense", cx));
            }
            82..84 => {
                for _ in 0..self.rng.pick(&[20, 150, 300]) {
                    self.send_server_audio(s);
                }
            }
            84..85 => {
                let filler = "x".repeat(self.rng.pick(&[0, LONG_TEXT_BYTES]));
                for _ in 0..self.rng.pick(&TEXT_BURST_SIZES) {
                    self.send_server_text(s, "llm", "", &filler);
                }
            }
            85..88 => self.sessions[s].core.on_backend_activity(self.shell.now),
            88..90 => self.send_server_hello(s),
            90..92 => {
                self.log(format_args!("[{s}] the server's goodbye"));
                self.drive(s, Input::Other, |core, cx| core.on_backend_text(r#"{"type":"goodbye"}"#, cx));
            }
            92..93 => {
                self.log(format_args!("[{s}] the server does not read"));
                self.drive(s, Input::Other, Core::on_backend_blocked);
            }
            93..95 => {
                let code = self.rng.pick(&[None, Some(1000), Some(1008), Some(4000)]);
                self.log(format_args!("[{s}] the server closes with {code:?}"));
                self.close_websocket(s, BackendClosed::CloseFrame(code, "".into()));
            }
            95..96 => {
                let text = r#"{"type":"mcp","payload":{"id":"x","method":"tools/list"}}"#;
                self.drive(s, Input::Other, |core, cx| core.on_backend_text(text, cx));
            }
            _ => {
                let reset = || BackendClosed::NoCloseFrame("reset".to_owned());
                let gone = self.rng.pick(&[Some(1001), Some(1011), None]);
                self.log(format_args!("[{s}] the server fails: {gone:?}"));
                self.close_websocket(
                    s,
                    gone.map_or_else(reset, |code| BackendClosed::CloseFrame(Some(code), "".into())),
                );
            }
        }
    }

    fn close_websocket(&mut self, s: usize, gone: BackendClosed) {
        self.sessions[s].model.before_websocket_close();
        self.drive(s, Input::ServerFailed, |core, cx| core.on_backend_closed(gone, cx));
        self.sessions[s].model.after_websocket_close();
    }

    fn send_server_text(&mut self, s: usize, kind: &str, state: &str, filler: &str) {
        let n = self.next_serial();
        let id = self.sessions[s].model.server_id().filter(|_| self.rng.percent(50));
        let id = id.map(|id| format!(r#","session_id":"{id}""#)).unwrap_or_default();
        self.log(format_args!("[{s}] the server's {kind} {state} {n}"));
        self.sessions[s].model.on_server_text(n, kind, self.shell.now);
        let text = format!(r#"{{"type":"{kind}","state":"{state}","n":{n}{id},"x":"{filler}"}}"#);
        self.drive(s, Input::Other, |core, cx| core.on_backend_text(&text, cx));
    }

    fn send_server_audio(&mut self, s: usize) {
        let n = self.next_serial();
        let payload = [&[0x08][..], &n.to_be_bytes()].concat();
        let frame = match self.sessions[s].model.ws.url() {
            "ws://raw/" => payload,
            _ => frame_with_header(n as u32, &payload),
        };
        let outcome = self.downlink(s, &frame);
        self.log(format_args!("[{s}] the server's audio {n}: {outcome:?}"));
    }

    fn downlink(&mut self, s: usize, frame: &[u8]) -> Result<(), DropReason> {
        let ModelledSession { core, model } = &mut self.sessions[s];
        match self.shell.downlink(core, frame)? {
            Some((encrypted, datagram)) => {
                model.on_encrypted(&encrypted, &datagram);
                self.send_to_firmware(s, &Action::SendDatagram(encrypted, datagram));
            }
            None => drop(self.drive(s, Input::Other, Core::release_held)),
        }
        Ok(())
    }
}
