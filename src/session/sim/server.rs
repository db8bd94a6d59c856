//! What chat servers do, at any stage of a WebSocket.

use super::*;
use crate::proto::audio::{HEADER, MAX_PAYLOAD, ws_header};

impl World {
    pub(super) fn server_acts(&mut self) {
        let busy: Vec<_> =
            (0..self.sessions.len()).filter(|s| self.sessions[*s].shadow.ws != Ws::None).collect();
        if busy.is_empty() {
            return;
        }
        let s = self.rng.pick(&busy);
        match &self.sessions[s].shadow.ws {
            Ws::None => {}
            Ws::Dialing { .. } => self.dial_goes_on(s),
            Ws::Open { greeted: false, .. } if self.rng.percent(60) => self.greet(s),
            Ws::Open { .. } => self.server_talks(s),
        }
    }

    fn dial_goes_on(&mut self, s: usize) {
        match self.rng.below(10) {
            0..2 => self.sessions[s].core.backend_connecting(),
            2..4 => {
                self.note(format_args!("[{s}] the dial fails"));
                let stage = self.rng.pick(&["resolve", "connect", "tls", "upgrade"]);
                self.gone(s, Gone::Failed(Failure { stage, why: "broken".to_owned() }));
            }
            _ => {
                self.note(format_args!("[{s}] the WebSocket is open"));
                self.sessions[s].core.backend_connecting();
                self.sessions[s].shadow.opened(self.now);
                self.drive(s, Input::Other, Core::backend_open);
            }
        }
    }

    fn greet(&mut self, s: usize) {
        let id = self.rng.percent(80).then(|| format!("srv-{}", self.serial));
        self.serial();
        let field = id.as_ref().map(|id| format!(r#","session_id":"{id}""#)).unwrap_or_default();
        self.note(format_args!("[{s}] the server's hello, session {id:?}"));
        let input = self.sessions[s].shadow.server_greets(id);
        self.drive(s, input, |core, cx| core.backend_text(&format!(r#"{{"type":"hello"{field}}}"#), cx));
    }

    fn server_talks(&mut self, s: usize) {
        match self.rng.below(100) {
            0..10 => self.server_text(s, "tts", "start", ""),
            10..20 => self.server_text(s, "tts", "stop", ""),
            20..30 => self.server_text(s, "llm", "", ""),
            30..80 => self.server_audio(s),
            80..82 => {
                self.note(format_args!("[{s}] bad frames"));
                assert!(self.frame(s, &[0; 15 + HEADER + MAX_PAYLOAD]).is_err());
                assert!(self.frame(s, b"").is_err());
                self.drive(s, Input::Other, |core, cx| core.backend_text("nonsense", cx));
            }
            82..84 => {
                for _ in 0..self.rng.pick(&[20, 150, 300]) {
                    self.server_audio(s);
                }
            }
            84..85 => {
                let filler = "x".repeat(self.rng.pick(&[0, LONG]));
                for _ in 0..self.rng.pick(&MANY) {
                    self.server_text(s, "llm", "", &filler);
                }
            }
            85..88 => self.sessions[s].core.backend_alive(self.now),
            88..90 => self.greet(s),
            90..92 => {
                self.note(format_args!("[{s}] the server's goodbye"));
                self.drive(s, Input::Other, |core, cx| core.backend_text(r#"{"type":"goodbye"}"#, cx));
            }
            92..93 => {
                self.note(format_args!("[{s}] the server does not read"));
                self.drive(s, Input::Other, Core::backend_blocked);
            }
            93..95 => {
                let code = self.rng.pick(&[None, Some(1000)]);
                self.note(format_args!("[{s}] the server closes with {code:?}"));
                self.gone(s, Gone::Closed(code));
            }
            95..96 => {
                let text = r#"{"type":"mcp","payload":{"id":"x","method":"tools/list"}}"#;
                self.drive(s, Input::Other, |core, cx| core.backend_text(text, cx));
            }
            _ => {
                let failure = Failure { stage: "live", why: "reset".to_owned() };
                let gone = self.rng.pick(&[Some(1001), Some(1011), None]);
                self.note(format_args!("[{s}] the server fails: {gone:?}"));
                self.gone(s, gone.map_or(Gone::Failed(failure), |code| Gone::Closed(Some(code))));
            }
        }
    }

    fn gone(&mut self, s: usize, gone: Gone) {
        self.sessions[s].shadow.ws_gone();
        self.drive(s, Input::ServerFails, |core, cx| core.backend_gone(gone, cx));
        self.sessions[s].shadow.ws_was_gone();
    }

    fn server_text(&mut self, s: usize, kind: &str, state: &str, filler: &str) {
        let n = self.serial();
        let id = self.sessions[s].shadow.server_id().filter(|_| self.rng.percent(50));
        let id = id.map(|id| format!(r#","session_id":"{id}""#)).unwrap_or_default();
        self.note(format_args!("[{s}] the server's {kind} {state} {n}"));
        self.sessions[s].shadow.server_says(n, self.now);
        let text = format!(r#"{{"type":"{kind}","state":"{state}","n":{n}{id},"x":"{filler}"}}"#);
        self.drive(s, Input::Other, |core, cx| core.backend_text(&text, cx));
    }

    fn server_audio(&mut self, s: usize) {
        let n = self.serial();
        let payload = [&[0x08][..], &n.to_be_bytes()].concat();
        let frame = match self.sessions[s].shadow.ws.url() {
            "ws://raw/" => payload,
            _ => [&ws_header(n as u32, payload.len())[..], &payload].concat(),
        };
        let outcome = self.frame(s, &frame);
        self.note(format_args!("[{s}] the server's audio {n}: {outcome:?}"));
    }

    fn frame(&mut self, s: usize, frame: &[u8]) -> Result<(), Discard> {
        let Session { core, shadow } = &mut self.sessions[s];
        let mut out = [0; HEADER + MAX_PAYLOAD];
        match core.downlink(frame, &mut out, &self.config, &mut self.servers, self.now)? {
            Some(sealed) => shadow.sealed(&sealed, &out[..sealed.len]),
            None => drop(self.drive(s, Input::Other, Core::audible)),
        }
        Ok(())
    }
}
