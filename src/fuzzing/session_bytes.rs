//! A device and a chat server that say whatever they like, in bytes, and a shell that does what a core wants.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::Fields;
use super::live_call::{CONNECT, cipher, grant};
use crate::config::Config;
use crate::proto::audio::{HEADER, Header, MAX_PAYLOAD};
use crate::proto::message::{Object, Reader, peek};
use crate::proto::mqtt::{Packet, Publish, decode};
use crate::session::{Action, Admission, Core, Cx, Delivery, Failure, Gone, Peer, RequestIds, Servers};

/// First a byte of settings, then steps. The lower half of a step's byte is what happens, as numbered in [`Shell::step`];
/// the upper half says more.
pub fn session_bytes(data: &[u8]) {
    let mut fields = Fields(data);
    let mut shell = Shell::new(fields.byte());
    while !fields.is_empty() {
        shell.step(&mut fields);
        shell.check();
    }
    // Everybody goes away, and time sorts out the rest.
    shell.drive(Core::connection_lost);
    for _ in 0..60 {
        shell.advance(1_000);
        shell.check();
    }
    assert!(shell.core.is_over() && shell.ws == Ws::None, "no call is left without an owner");
    assert!(shell.tickets.is_empty(), "every command is answered");
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Ws {
    None,
    Dialing,
    Open,
}

struct Shell {
    core: Core,
    config: Config,
    servers: Servers,
    ids: RequestIds,
    now: Instant,
    inbox: Vec<u8>,
    /// Let in, and not to be closed.
    connected: bool,
    ws: Ws,
    /// Granted, and not ended.
    call: Option<u32>,
    grants: u32,
    tickets: BTreeSet<u64>,
    asked: u64,
    voice: u32,
    heard: u32,
}

impl Shell {
    fn new(settings: u8) -> Self {
        let now = Instant::now();
        let mut config = Config::default();
        config.mcp.enabled = settings & 1 != 0;
        config.websocket.send_goodbye = settings & 2 == 0;
        if settings & 4 != 0 {
            config.mqtt.resume_grace = Duration::ZERO;
        }
        let urls: &[&str] = if settings & 8 != 0 { &["ws://a/"] } else { &["ws://a/", "wss://b/"] };
        config.websocket.production =
            urls.iter().map(|url| std::sync::Arc::new(url.parse().unwrap())).collect();
        let mut shell = Self {
            core: Core::new([192, 0, 2, 7].into(), now),
            config,
            servers: Servers::default(),
            ids: RequestIds::new(),
            now,
            inbox: Vec::new(),
            connected: false,
            ws: Ws::None,
            call: None,
            grants: 0,
            tickets: BTreeSet::new(),
            asked: 0,
            voice: 0,
            heard: 0,
        };
        // Else the device's own bytes must bring it in.
        if settings & 16 == 0 {
            shell.drive(|core, cx| core.packet(CONNECT, cx));
        }
        shell
    }

    fn step(&mut self, fields: &mut Fields<'_>) {
        let op = fields.byte();
        let more = op >> 4;
        match op & 15 {
            0 => {
                let len = fields.byte().into();
                self.bytes(fields.bytes(len));
            }
            1 => {
                let len = fields.byte().into();
                self.device(fields.bytes(len));
            }
            2 => {
                let len = fields.byte().into();
                self.server(&String::from_utf8_lossy(fields.bytes(len)));
            }
            3 => {
                let len = fields.byte().into();
                self.frame(fields.bytes(len));
            }
            4 => self.datagram(more),
            5 => self.advance(200 * (1 + u64::from(more) * u64::from(more))),
            6 => self.dial_goes_on(more),
            7 if self.ws != Ws::None => {
                let gone =
                    [Gone::Closed(None), Gone::Closed(Some(1000)), Gone::Closed(Some(1011)), failure("live")];
                self.gone(gone[usize::from(more & 3)].clone());
            }
            8 => {
                self.asked += 1;
                let ticket = self.asked;
                self.tickets.insert(ticket);
                self.drive(|core, cx| core.command(ticket, "tools/call", "{}", cx));
            }
            9 => {
                let text =
                    [r#"{"type":"alert"}"#, r#"{"type":"tts","state":"start"}"#][usize::from(more & 1)];
                let delivery = self.drive(|core, cx| core.message(text, cx));
                assert_eq!(delivery == Delivery::NotConnected, !self.core.is_present());
            }
            10 => self.drive(if more == 0 { Core::blocked } else { Core::connection_lost }),
            11 => self.comes_back(),
            12 => self.server(
                [r#"{"type":"hello"}"#, r#"{"type":"hello","session_id":"s"}"#][usize::from(more & 1)],
            ),
            13 => self.device(br#"{"type":"hello","version":3,"transport":"udp","features":{"mcp":true}}"#),
            14 => self.device(match more {
                0..=3 => br#"{"type":"goodbye"}"#,
                4..=7 => br#"{"type":"abort"}"#,
                8..=9 => br#"{"type":"udp_timeout"}"#,
                _ => br#"{"type":"listen","state":"start","session_id":"s"}"#,
            }),
            15 if more == 0 => self.drive(Core::shutdown),
            15 if more == 1 => self.drive(Core::operator_disconnects),
            15 if more == 2 => {
                let had = self.call.is_some() && self.core.has_call();
                assert_eq!(self.drive(Core::operator_hangs_up), had);
            }
            _ => self.drive(Core::timeout),
        }
    }

    // ----- what goes in -------------------------------------------------------------------------------------------

    /// As the shell reads a device's connection.
    fn bytes(&mut self, bytes: &[u8]) {
        self.core.heard(self.now);
        self.inbox.extend(bytes);
        let inbox = std::mem::take(&mut self.inbox);
        let mut rest = &inbox[..];
        while self.core.is_listening() {
            let max = self.core.max_packet(&self.config);
            match decode(rest, max) {
                Ok(Some((packet, used))) => {
                    rest = &rest[used..];
                    self.drive(|core, cx| core.packet(packet, cx));
                }
                Ok(None) => {
                    assert!(rest.len() < max + 5, "a part of a packet has a bound");
                    self.inbox = rest.to_vec();
                    return;
                }
                Err(malformed) => {
                    self.drive(|core, cx| core.malformed(malformed, cx));
                    return assert!(!self.core.is_listening(), "{malformed} closes");
                }
            }
        }
    }

    fn device(&mut self, payload: &[u8]) {
        if self.connected {
            self.core.heard(self.now);
            let publish = Publish { topic: "device-server", payload, retain: false };
            self.drive(|core, cx| core.packet(Packet::Publish(publish), cx));
        }
    }

    fn server(&mut self, text: &str) {
        if self.ws == Ws::Open {
            self.drive(|core, cx| core.backend_text(text, cx));
        }
    }

    fn frame(&mut self, frame: &[u8]) {
        if self.ws != Ws::Open {
            return;
        }
        let mut out = [0; HEADER + MAX_PAYLOAD];
        match self.core.downlink(frame, &mut out, &self.config, &mut self.servers, self.now) {
            Ok(Some(sealed)) => self.hears(&out[..sealed.len]),
            Ok(None) => self.drive(Core::audible),
            Err(_) => {}
        }
    }

    fn datagram(&mut self, skipped: u8) {
        let Some(ssrc) = self.call else { return };
        self.voice += 1 + u32::from(skipped);
        let header = Header { flags: 0, len: 2, ssrc, timestamp: 0, sequence: self.voice };
        let mut datagram = [&header.bytes()[..], &[8, skipped]].concat();
        cipher().apply(&header.bytes(), &mut datagram[HEADER..]);
        let from = Peer { addr: ([192, 0, 2, 7], 4_000).into(), local: None };
        if self.core.uplink(from, &mut datagram, &self.config, self.now).is_ok() {
            assert_eq!(self.ws, Ws::Open, "there is a server to take it");
        }
        self.drive(Core::audible);
    }

    fn dial_goes_on(&mut self, more: u8) {
        match (self.ws, more) {
            (Ws::Dialing, 0) => self.core.backend_connecting(),
            (Ws::Dialing, 1..=3) => {
                self.gone(failure(["resolve", "connect", "upgrade"][usize::from(more - 1)]))
            }
            (Ws::Dialing, _) => {
                self.ws = Ws::Open;
                self.drive(Core::backend_open);
            }
            (Ws::Open, 0..=7) => self.core.backend_alive(self.now),
            (Ws::Open, 8) => self.drive(Core::backend_blocked),
            _ => {}
        }
    }

    fn gone(&mut self, gone: Gone) {
        self.ws = Ws::None;
        self.drive(|core, cx| core.backend_gone(gone, cx));
    }

    /// The same device on another connection.
    fn comes_back(&mut self) {
        let mut newer = Core::new([192, 0, 2, 8].into(), self.now);
        let mut out = Vec::new();
        let mut cx = Cx {
            now: self.now,
            config: &self.config,
            servers: &mut self.servers,
            ids: &self.ids,
            out: &mut out,
        };
        newer.packet(CONNECT, &mut cx);
        assert_eq!(out, [Action::Admit]);
        let keeps = !self.config.mqtt.resume_grace.is_zero();
        if self.core.is_present() && self.core.has_call() && keeps {
            self.connected = true;
            return self.drive(|core, cx| core.take_over(newer, cx));
        }
        self.drive(Core::replaced);
        if self.core.is_over() {
            (self.core, self.inbox) = (newer, Vec::new());
            self.drive(|core, cx| core.admitted(Admission::Welcome, cx));
        }
    }

    fn advance(&mut self, ms: u64) {
        let until = self.now + Duration::from_millis(ms);
        while let Some(due) = self.core.deadline().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.drive(Core::timeout);
            assert!(self.core.deadline().is_none_or(|at| at > self.now), "what is due was done");
        }
        self.now = until;
    }

    // ----- what comes out -----------------------------------------------------------------------------------------

    fn drive<T>(&mut self, decide: impl FnOnce(&mut Core, &mut Cx<'_>) -> T) -> T {
        let mut out = Vec::new();
        let mut cx = Cx {
            now: self.now,
            config: &self.config,
            servers: &mut self.servers,
            ids: &self.ids,
            out: &mut out,
        };
        let result = decide(&mut self.core, &mut cx);
        if cx.out.last() == Some(&Action::Admit) {
            self.core.admitted(Admission::Welcome, &mut cx);
        }
        if cx.out.last() == Some(&Action::Grant) {
            self.grants += 1;
            self.core.granted(grant(self.grants), &mut cx);
        }
        assert!(out.len() <= 1_024, "one step, {} actions", out.len());
        out.into_iter().for_each(|action| self.act(action));
        result
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Welcome => self.connected = true,
            Action::Publish(text) => {
                assert!(self.connected, "told to nobody: {text}");
                let object = Object::parse(&text).unwrap_or_else(|bad| panic!("{bad}: {text}"));
                let id = object.raw("session_id").map(|_| object.string("session_id"));
                assert!(id.is_none_or(|id| id.is_some_and(|id| !id.is_empty())), "{text}");
            }
            Action::SubAck { .. } | Action::UnsubAck(_) | Action::PingResp => assert!(self.connected),
            Action::Grant => {
                assert_eq!(self.call, None, "the call before has ended");
                (self.call, self.voice, self.heard) = (Some(self.grants), 0, 0);
            }
            Action::Dial(_) => {
                assert!(self.call.is_some() && self.ws == Ws::None, "the one before is hung up first");
                self.ws = Ws::Dialing;
            }
            Action::Say(text) => {
                assert_eq!(self.ws, Ws::Open, "said to nobody: {text}");
                assert!(peek(&text, Reader::Server).is_ok(), "{text}");
            }
            Action::Ping => assert_eq!(self.ws, Ws::Open),
            Action::HangUp(_) => self.ws = Ws::None,
            Action::Datagram(sealed, bytes) => {
                assert_eq!(sealed.len, bytes.len());
                self.hears(&bytes);
            }
            Action::Answer { ticket, .. } => assert!(self.tickets.remove(&ticket), "answered once"),
            Action::Ended(summary) => {
                assert_eq!(summary.ssrc, self.call.take(), "a call that is there ends");
                assert_eq!(self.ws, Ws::None, "no WebSocket outlives its call");
            }
            Action::Close(_) => self.connected = false,
            Action::Admit
            | Action::Refuse(_)
            | Action::FlushAudio(_)
            | Action::Count(_)
            | Action::Note(_) => {}
        }
    }

    fn hears(&mut self, datagram: &[u8]) {
        let header = Header::parse(datagram).expect("a good datagram");
        self.heard += 1;
        assert_eq!((Some(header.ssrc), header.sequence), (self.call, self.heard));
    }

    fn check(&self) {
        assert_eq!(self.core.ssrc(), self.call);
        assert_eq!(self.core.is_online(), self.connected);
        assert!(self.tickets.len() <= 16, "commands have a bound");
        assert!(self.call.is_none() || self.core.deadline().is_some(), "a call always waits for something");
    }
}

fn failure(stage: &'static str) -> Gone {
    Gone::Failed(Failure { stage, why: "broken".to_owned() })
}
