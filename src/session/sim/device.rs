//! What the device does: over MQTT, over UDP, and with its connection.

use super::*;
use crate::proto::audio::{Cipher, HEADER, Header};
use crate::proto::mqtt::{Connect, Level, Packet, Publish};

impl World {
    pub(super) fn device_acts(&mut self) {
        let Some(s) = self.current.filter(|s| self.sessions[*s].shadow.is_connected()) else {
            return if self.rng.percent(60) { self.connect() } else { self.speak() };
        };
        self.sessions[s].core.heard(self.now);
        match self.rng.below(100) {
            0..12 => self.hello(s),
            12..30 => self.text(s, "listen", ""),
            30..34 => self.text(s, "abort", ""),
            34..36 => self.text(s, "iot", ""),
            36..38 => self.text(s, "mcp", ""),
            38..44 => self.goodbye(s),
            44..45 => self.text_burst(s),
            45..48 => self.leave(s),
            48..54 => {
                self.note(format_args!("[{s}] the connection is lost"));
                let blocked = self.rng.percent(20);
                self.drive(s, Input::Lost, if blocked { Core::blocked } else { Core::connection_lost });
            }
            54..57 => self.connect(),
            57..59 => self.garbage(s),
            59..60 => {
                self.note(format_args!("[{s}] udp_timeout"));
                self.say(s, r#"{"type":"udp_timeout"}"#);
            }
            60..61 => {
                self.note(format_args!("[{s}] a second CONNECT"));
                self.drive(s, Input::Other, |core, cx| core.packet(connect(), cx));
            }
            _ => self.speak(),
        }
    }

    /// A new connection of the same device: the shell lets it take over, or replaces the older one.
    fn connect(&mut self) {
        let ip = self.rng.pick(&["192.0.2.7", "192.0.2.7", "192.0.2.8"]).parse().unwrap();
        let mut newer = Core::new(ip, self.now);
        let mut out = Vec::new();
        let mut cx = Cx {
            now: self.now,
            config: &self.config,
            servers: &mut self.servers,
            ids: &self.ids,
            out: &mut out,
        };
        newer.packet(connect(), &mut cx);
        assert_eq!(out, [Action::Admit]);
        let older = self.current.filter(|s| !self.sessions[*s].core.is_gone());
        let keep = !self.config.mqtt.resume_grace.is_zero();
        if let Some(older) = older.filter(|s| keep && self.sessions[*s].core.has_call()) {
            self.note(format_args!("[{older}] the device connects again from {ip} and takes over"));
            self.drive(older, Input::Back(ip), |core, cx| core.take_over(newer, cx));
            return;
        }
        if let Some(older) = older {
            self.note(format_args!("[{older}] is replaced"));
            self.drive(older, Input::Other, Core::replaced);
        }
        let s = self.sessions.len();
        self.sessions.push(Session { core: newer, shadow: Shadow::new(ip) });
        self.current = Some(s);
        self.note(format_args!("[{s}] the device connects from {ip}"));
        self.drive(s, Input::Other, |core, cx| core.admitted(Admission::Welcome, cx));
    }

    fn say(&mut self, s: usize, text: &str) {
        let input = self.sessions[s].shadow.device_says(text);
        self.drive(s, input, |core, cx| core.packet(publication(text.as_bytes()), cx));
    }

    fn hello(&mut self, s: usize) {
        self.note(format_args!("[{s}] hello"));
        self.say(s, r#"{"type":"hello","version":3,"transport":"udp"}"#);
    }

    fn text(&mut self, s: usize, kind: &str, filler: &str) {
        let n = self.serial();
        let id = self.sessions[s].shadow.session_id().filter(|_| !self.rng.percent(10));
        let id = id.map(|id| format!(r#","session_id":"{id}""#)).unwrap_or_default();
        self.note(format_args!("[{s}] {kind} {n}"));
        self.say(s, &format!(r#"{{"type":"{kind}","state":"start","n":{n}{id},"x":"{filler}"}}"#));
    }

    /// Too many, or too long together.
    fn text_burst(&mut self, s: usize) {
        let filler = "x".repeat(self.rng.pick(&[0, LONG]));
        for _ in 0..self.rng.pick(&MANY) {
            self.text(s, "iot", &filler);
        }
    }

    fn goodbye(&mut self, s: usize) {
        self.note(format_args!("[{s}] goodbye"));
        self.say(s, r#"{"type":"goodbye"}"#);
    }

    fn leave(&mut self, s: usize) {
        self.note(format_args!("[{s}] DISCONNECT"));
        self.sessions[s].shadow.device_leaves();
        self.reached.extend(self.sessions[s].shadow.is_closing().then_some("last words"));
        self.drive(s, Input::Other, |core, cx| core.packet(Packet::Disconnect, cx));
    }

    fn garbage(&mut self, s: usize) {
        let text = self.rng.pick(&["", "{", "[]", "nonsense"]);
        self.note(format_args!("[{s}] {text:?}"));
        self.drive(s, Input::Other, |core, cx| core.packet(publication(text.as_bytes()), cx));
    }

    // ----- audio --------------------------------------------------------------------------------------------------

    fn speak(&mut self) {
        let Some(s) = self.current else { return };
        let Some(mut voice) = self.sessions[s].shadow.voice() else { return };
        match self.rng.below(100) {
            0..55 => {}
            // Lost on the way.
            55..65 => voice.sequence += self.rng.below(5) as u32,
            // Twice, or late.
            65..75 => voice.sequence -= (self.rng.below(80) as u32).min(voice.sequence - 1),
            // Corrupted.
            75..77 => voice.sequence += 1_000_000,
            // Another port of the device.
            77..82 => voice.from.set_port(5_000 + self.rng.below(3) as u16),
            82..92 => return self.spoof(s, voice.sequence),
            _ => return self.roam(s, voice.sequence),
        }
        self.note(format_args!("[{s}] datagram {} from {}", voice.sequence, voice.from));
        let outcome = self.datagram(s, voice.sequence, voice.from);
        self.sessions[s].shadow.heard(voice, outcome, self.now);
    }

    /// Each from another port, so that nobody is ever three times in a row the same.
    fn spoof(&mut self, s: usize, sequence: u32) {
        self.serial();
        let from = std::net::SocketAddr::new([203, 0, 113, 9].into(), 1_000 + (self.serial % 60_000) as u16);
        let sequence = sequence + self.rng.below(3) as u32;
        self.note(format_args!("[{s}] spoofed datagram {sequence} from {from}"));
        assert_eq!(self.datagram(s, sequence, from), Err(Discard::ForeignSource));
        // A short, a long, and a wrong one.
        for bytes in [&mut [][..], &mut [1; 9], &mut [1; 2_000], &mut [9; 40]] {
            let Session { core, .. } = &mut self.sessions[s];
            let outcome = core.uplink(Peer { addr: from, local: None }, bytes, &self.config, self.now);
            assert!(matches!(outcome, Err(Discard::Datagram(_))), "{outcome:?}");
        }
    }

    /// The device's network changes under it: three datagrams from elsewhere.
    fn roam(&mut self, s: usize, sequence: u32) {
        let from = std::net::SocketAddr::new([198, 51, 100, 1].into(), 7_000 + self.rng.below(2) as u16);
        let adopts = self.sessions[s].shadow.would_adopt(from, self.now)
            && self.config.udp.peer_policy == PeerPolicy::Adaptive;
        self.note(format_args!("[{s}] datagrams {sequence}.. from {from}, to be adopted: {adopts}"));
        for n in 0..3 {
            let outcome = self.datagram(s, sequence + n, from);
            self.reached.extend((adopts && n == 2).then_some("adopted"));
            self.sessions[s].shadow.roams(from, sequence + n, adopts && n == 2, outcome, self.now);
        }
    }

    /// What the chat server gets of one datagram.
    fn datagram(&mut self, s: usize, sequence: u32, from: std::net::SocketAddr) -> Result<Vec<u8>, Discard> {
        let Session { core, shadow } = &mut self.sessions[s];
        let (ssrc, key) = shadow.key();
        let mut payload = vec![0x08];
        payload.extend_from_slice(&sequence.to_be_bytes());
        let header = Header { flags: 0, len: payload.len() as u16, ssrc, timestamp: sequence / 3, sequence };
        let mut datagram = header.bytes().to_vec();
        datagram.extend_from_slice(&payload);
        Cipher::new(&key).apply(&header.bytes(), &mut datagram[HEADER..]);
        let uplink = core.uplink(Peer { addr: from, local: None }, &mut datagram, &self.config, self.now)?;
        let Uplink::Server { frame, first, .. } = uplink else { panic!("{uplink:?}") };
        let frame = frame.to_vec();
        assert!(frame.ends_with(&payload), "decrypted");
        shadow.comes_from(from);
        if first {
            self.drive(s, Input::Other, Core::audible);
        }
        Ok(frame)
    }
}

fn connect() -> Packet<'static> {
    Packet::Connect(Connect {
        level: Level::V311,
        client_id: ID,
        clean_session: true,
        keep_alive: 60,
        will: None,
        user_name: None,
        password: None,
    })
}

fn publication(payload: &[u8]) -> Packet<'_> {
    Packet::Publish(Publish { topic: "device-server", payload, retain: false })
}
