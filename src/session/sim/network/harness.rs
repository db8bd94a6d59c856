//! What the shell does for cores and for calls between devices, and what must hold whenever it has done it.

use std::net::SocketAddr;

use super::*;

/// More than any core may keep: its queues are full.
pub(super) const KEPT: usize = 1024 * 1024;

/// One session of a device: its connection, its core, its chat server's connection.
pub(super) struct Link {
    pub(super) core: Core,
    pub(super) device: usize,
    pub(super) connected: bool,
    pub(super) ws: Option<Ws>,
    /// When the last that the device sent arrives.
    pub(super) uplink: Instant,
    pub(super) since: Instant,
    /// Another session took its device.
    pub(super) moved: bool,
}

/// A chat server's connection, or the attempt at one.
pub(super) struct Ws {
    pub(super) number: u64,
    pub(super) url: String,
    pub(super) open: bool,
    /// When the last that the server sent arrives.
    pub(super) arrives: Instant,
    pub(super) greeted: bool,
    pub(super) since: Instant,
    pub(super) opened: Instant,
    /// Another server could be tried instead.
    pub(super) strict: bool,
}

impl Link {
    pub(super) fn new(core: Core, device: usize, now: Instant) -> Self {
        Self { core, device, connected: true, ws: None, uplink: now, since: now, moved: false }
    }
}

/// A call that was granted; its place in the list is its ssrc.
pub(super) struct Granted {
    pub(super) device: usize,
    pub(super) key: [u8; 16],
    /// The id in the hello reply.
    pub(super) id: Option<String>,
    /// Datagrams the device sent, and the newest that was let through.
    pub(super) spoken: u32,
    heard: u32,
    pub(super) ended: bool,
    /// Datagrams for the device.
    sealed: u32,
    /// The device hung up: it expects no goodbye.
    hung_up: bool,
    goodbyes: u32,
}

impl Town {
    /// A new connection: it takes over a call, or replaces the older one, as in `net::admission`.
    pub(super) fn connect(&mut self, device: usize) {
        let mac_ = mac(device).underscored();
        let id = format!("GID_test@@@{mac_}@@@{mac_}");
        let mut newer = Core::new([192, 0, 2, device as u8].into(), self.now);
        let mut out = Vec::new();
        let mut cx = Cx {
            now: self.now,
            config: &self.config,
            servers: &mut self.servers,
            ids: &self.ids,
            out: &mut out,
        };
        newer.packet(super::connect(&id), &mut cx);
        assert_eq!(out, [Action::Admit]);
        let older = self.known[device];
        let keep = !self.config.mqtt.resume_grace.is_zero();
        if let Some(older) = older.filter(|s| keep && self.links[*s].core.has_call()) {
            self.note(format_args!("[{older}] device {device} is back"));
            self.reached.insert("resumed");
            // What the older connection had under way is lost with it.
            self.mail.retain(|_, mail| !matches!(mail, Mail::Text(s, _) | Mail::Disconnect(s) | Mail::Lost(s) if *s == older));
            (self.links[older].connected, self.links[older].uplink) = (true, self.now);
            return self.drive(older, |core, cx| core.take_over(newer, cx));
        }
        let s = self.links.len();
        self.links.push(Link::new(newer, device, self.now));
        self.known[device] = Some(s);
        self.note(format_args!("[{s}] device {device} connects"));
        if let Some(older) = older {
            self.links[older].moved = true;
            self.drive(older, Core::replaced);
        }
        self.drive(s, |core, cx| core.admitted(Admission::Welcome, cx));
    }

    pub(super) fn deliver(&mut self, mail: Mail) {
        self.note(format_args!("{mail:?}"));
        match mail {
            Mail::Text(s, text) if self.links[s].connected => {
                if let Some(ssrc) = self.links[s].core.ssrc().filter(|_| text.contains("goodbye")) {
                    self.calls[ssrc as usize].hung_up = true;
                }
                // What belongs to no call is answered with a goodbye that ends none.
                let stray = !self.links[s].core.has_call();
                let before: u32 = self.calls.iter().map(|call| call.goodbyes).sum();
                self.drive(s, |core, cx| core.packet(publication(text.as_bytes()), cx));
                let after: u32 = self.calls.iter().map(|call| call.goodbyes).sum();
                assert!(!stray || text.contains("hello") || before == after, "{text}");
            }
            Mail::Disconnect(s) if self.links[s].connected => {
                if let Some(ssrc) = self.links[s].core.ssrc() {
                    self.calls[ssrc as usize].hung_up = true;
                }
                self.drive(s, |core, cx| core.packet(Packet::Disconnect, cx));
            }
            Mail::Lost(s) if self.links[s].connected => self.drive(s, Core::connection_lost),
            Mail::Datagram(ssrc, datagram) => self.datagram(ssrc, datagram),
            Mail::Dialled(s, number, outcome) if self.is_present(s, number) => match outcome {
                Ok(()) => {
                    let now = self.now;
                    let ws = self.ws(s);
                    (ws.open, ws.opened) = (true, now);
                    self.links[s].core.backend_connecting();
                    self.drive(s, Core::backend_open);
                }
                Err(stage) => {
                    self.reached.extend((stage == "resolve").then_some("resolve failed"));
                    self.gone(s, Gone::Failed(Failure { stage, why: "broken".to_owned() }));
                }
            },
            Mail::Says(s, number, text) if self.is_present(s, number) && self.ws(s).open => {
                self.ws(s).greeted |= text.contains("hello");
                self.drive(s, |core, cx| core.backend_text(&text, cx));
            }
            Mail::Audio(s, number, n) if self.is_present(s, number) && self.ws(s).open => {
                let mut out = [0; HEADER + MAX_PAYLOAD];
                let core = &mut self.links[s].core;
                let frame = frame(n);
                match core.downlink(&frame, &mut out, &self.config, &mut self.servers, self.now) {
                    Ok(Some(sealed)) => self.sealed(s, &out[..sealed.len]),
                    Ok(None) => self.drive(s, Core::audible),
                    Err(_) => {}
                }
            }
            Mail::Ends(s, number, gone) if self.is_present(s, number) => self.gone(s, gone),
            // It comes to a connection that is no more.
            _ => {}
        }
    }

    fn gone(&mut self, s: usize, gone: Gone) {
        self.links[s].ws = None;
        self.drive(s, |core, cx| core.backend_gone(gone, cx));
    }

    fn is_present(&self, s: usize, number: u64) -> bool {
        self.links[s].ws.as_ref().is_some_and(|ws| ws.number == number)
    }

    fn ws(&mut self, s: usize) -> &mut Ws {
        self.links[s].ws.as_mut().expect("it is present")
    }

    fn datagram(&mut self, ssrc: u32, mut datagram: Vec<u8>) {
        let Some(s) = self.links.iter().position(|link| link.core.ssrc() == Some(ssrc)) else { return };
        let from = SocketAddr::new(self.links[s].core.ip(), 4_000);
        let sequence = Header::parse(&datagram).unwrap().sequence;
        let peer = Peer { addr: from, local: None };
        let outcome = self.links[s].core.uplink(peer, &mut datagram, &self.config, self.now);
        let call = &mut self.calls[ssrc as usize];
        let expected = match sequence.cmp(&call.heard) {
            std::cmp::Ordering::Greater => None,
            _ => Some(()),
        };
        match outcome {
            Err(Discard::Duplicate | Discard::Late | Discard::TooOld) => {
                assert!(expected.is_some(), "a new packet was taken for an old one");
                self.reached.insert("twice");
                return;
            }
            Err(Discard::NoServer) => call.heard = sequence,
            Err(other) => panic!("{other:?}"),
            Ok(_) => {
                assert!(expected.is_none(), "each packet once, and only forwards");
                call.heard = sequence;
            }
        }
        match outcome {
            Ok(Uplink::Server { first: true, .. }) => self.drive(s, Core::audible),
            Ok(Uplink::Peer(payload)) => self.relay(s, &datagram[HEADER..HEADER + payload]),
            Ok(Uplink::Silence) => {
                let mut out = [0; HEADER + MAX_PAYLOAD];
                if let Ok(sealed) = self.links[s].core.silence(&mut out, &self.config) {
                    self.sealed(s, &out[..sealed.len]);
                }
            }
            _ => {}
        }
    }

    fn relay(&mut self, s: usize, opus: &[u8]) {
        let peer = self.bridges.peer(mac(self.links[s].device)).expect("who talks has a peer");
        let other = self.session_of(peer).expect("it has a session");
        let mut out = [0; HEADER + MAX_PAYLOAD];
        if let Ok(sealed) = self.links[other].core.relay(opus, &mut out, &self.config, self.now) {
            self.reached.insert("talked");
            self.sealed(other, &out[..sealed.len]);
        }
    }

    /// One datagram that leaves for the device of this session.
    fn sealed(&mut self, s: usize, bytes: &[u8]) {
        let header = Header::parse(bytes).unwrap();
        assert_eq!(self.links[s].core.ssrc(), Some(header.ssrc), "sealed for its own device");
        let call = &mut self.calls[header.ssrc as usize];
        call.sealed += 1;
        assert_eq!(header.sequence, call.sealed, "downlink sequences go up by one");
        let key = call.key;
        assert!(self.sealed.insert((key, header.bytes())), "no (key, header) is used twice");
    }

    // ----- actions ------------------------------------------------------------------------------------------------

    /// Lets a core decide, does what it says, and sees that each call that ended by it was ended properly.
    pub(super) fn drive(&mut self, s: usize, decide: impl FnOnce(&mut Core, &mut Cx<'_>)) {
        let mut out = Vec::new();
        let mut cx = Cx {
            now: self.now,
            config: &self.config,
            servers: &mut self.servers,
            ids: &self.ids,
            out: &mut out,
        };
        decide(&mut self.links[s].core, &mut cx);
        let connected = self.links[s].connected;
        let mut ended = Vec::new();
        for action in out {
            if let Some(trail) = &mut self.trail {
                trail.push(format!("{:>8} [{s}]   {action:?}", (self.now - self.start).as_millis()));
            }
            self.reached.extend(turn(&action));
            if let Action::Ended(summary) = &action {
                ended.push((summary.ssrc.expect("it was granted") as usize, summary.reason));
            }
            self.carry_out(s, action);
        }
        for (ssrc, reason) in ended {
            use EndReason::*;
            let call = &self.calls[ssrc];
            let own =
                matches!(reason, DeviceGoodbye | DeviceDisconnected | DeviceLost | DeviceError | Replaced);
            let expected = u32::from(connected && !own && !call.hung_up);
            assert_eq!(call.goodbyes, expected, "goodbye once for call {ssrc}, which ended by {reason:?}");
        }
    }

    fn carry_out(&mut self, s: usize, action: Action) {
        match action {
            Action::Grant => {
                let grant = mint(self.calls.len() as u32, &mut self.rng);
                self.calls.push(Granted {
                    device: self.links[s].device,
                    key: grant.key,
                    id: None,
                    spoken: 0,
                    heard: 0,
                    sealed: 0,
                    ended: false,
                    hung_up: false,
                    goodbyes: 0,
                });
                self.drive(s, |core, cx| core.granted(grant, cx));
            }
            Action::Publish(text) => self.published(s, &text),
            Action::Dial(request) => self.dial(s, request.server.url.clone()),
            Action::Say(text) => {
                let number = self.links[s].ws.as_ref().filter(|ws| ws.open).expect("said to somebody").number;
                if text.contains(r#""hello""#) && self.rng.percent(90) {
                    let id = self.rng.percent(80).then(|| format!(r#","session_id":"srv-{number}""#));
                    let hello = format!(r#"{{"type":"hello"{}}}"#, id.unwrap_or_default());
                    self.post_from_server(s, Mail::Says(s, number, hello));
                }
            }
            Action::Ping => {
                let url = self.links[s].ws.as_ref().map(|ws| ws.url.clone()).expect("pinged somebody");
                if !self.down.contains(&url) {
                    self.links[s].core.backend_alive(self.now);
                }
            }
            Action::HangUp(_) => self.links[s].ws = None,
            Action::Answer { ticket, result } => {
                self.asked.remove(&ticket).expect("an operator is answered once");
                self.reached.insert(if result == Err(CommandFailed::Busy) { "busy" } else { "asked" });
            }
            Action::Datagram(_, bytes) => self.sealed(s, &bytes),
            Action::Ended(summary) => {
                let ssrc = summary.ssrc.expect("it was granted") as usize;
                assert!(!std::mem::replace(&mut self.calls[ssrc].ended, true), "a call ends once");
                assert!(self.links[s].ws.is_none(), "no WebSocket outlives its call");
                if matches!(summary.state, CallState::Ringing | CallState::Bridged) {
                    let mut effects = Vec::new();
                    self.bridges.left(mac(self.links[s].device), &mut effects);
                    self.bring_about(effects);
                }
            }
            Action::Close(_) => {
                self.links[s].connected = false;
                let device = self.links[s].device;
                if self.links[s].core.is_gone() && self.known[device] == Some(s) {
                    self.known[device] = None;
                    let mut effects = Vec::new();
                    self.bridges.absent(mac(device), &mut effects);
                    self.bring_about(effects);
                }
            }
            _ => {}
        }
    }

    fn published(&mut self, s: usize, text: &str) {
        assert!(self.links[s].connected && !self.links[s].moved, "told to nobody: {text}");
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        let call = self.links[s].core.ssrc().map(|ssrc| ssrc as usize);
        match value["type"].as_str() {
            Some("hello") => {
                let id = value["session_id"].as_str().unwrap().to_owned();
                let key = value["udp"]["key"].as_str().unwrap();
                // When all servers have failed, the hello's own call is over already.
                let told =
                    self.calls.iter_mut().rev().find(|call| data_encoding::HEXLOWER.encode(&call.key) == key);
                let told = told.expect("a key that was minted");
                assert_eq!(told.id.replace(id), None, "one hello reply per call");
                assert!(self.told.insert(told.key), "no key is used for two hellos");
            }
            Some("goodbye") => {
                let id = value["session_id"].as_str().unwrap_or_default();
                let named =
                    self.calls.iter_mut().rev().find(|call| call.id.as_deref() == Some(id) && !call.ended);
                match (named, call) {
                    (Some(named), _) => named.goodbyes += 1,
                    // An answer to what came without a call, or after it was hung up.
                    (None, call) => assert!(call.is_none_or(|ssrc| self.calls[ssrc].hung_up), "{text}"),
                }
            }
            _ => {}
        }
    }

    fn dial(&mut self, s: usize, url: String) {
        assert!(self.links[s].ws.is_none(), "the one before is hung up first");
        self.serial += 1;
        let number = self.serial;
        let (open, greeted, now) = (false, false, self.now);
        let answered = self.links[s].core.call().is_some_and(|call| call.session_id.is_some());
        let others = self.config.websocket.production.iter().any(|server| server.url != url);
        let ws = Ws {
            number,
            open,
            greeted,
            since: now,
            opened: now,
            strict: answered && others,
            arrives: now,
            url: url.clone(),
        };
        self.links[s].ws = Some(ws);
        let outcome = match self.rng.below(20) {
            // The resolver, the server's network or the server says nothing for ever.
            0..2 => return,
            2 => Err("resolve"),
            _ if self.down.contains(&url) => Err("connect"),
            3 => Err("upgrade"),
            _ => Ok(()),
        };
        self.post_from_server(s, Mail::Dialled(s, number, outcome));
    }

    // ----- calls between devices, as in `net::device_calls` ---------------------------------------------------------

    fn session_of(&self, mac: Mac) -> Option<usize> {
        self.known[usize::from(mac.bytes()[5])]
    }

    pub(super) fn presence(&self, mac: Mac) -> Presence {
        self.session_of(mac).map_or(Presence::Absent, |s| self.links[s].core.presence())
    }

    pub(super) fn bring_about(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Ring(caller) => self.drive_mac(caller, Core::ring),
                Effect::Wake { target, nickname } => {
                    self.drive_mac(target, |core, cx| core.wake(&nickname, cx))
                }
                Effect::Accepted { caller, from } => {
                    self.drive_mac(caller, |core, cx| core.accepted_by(from, cx));
                }
                Effect::Bridge(one, other) => {
                    for (who, peer) in [(one, other), (other, one)] {
                        if self.bridges.peer(who) == Some(peer) {
                            self.reached.insert("bridged");
                            self.drive_mac(who, Core::bridge);
                        }
                    }
                }
                Effect::End(mac, reason) => {
                    self.drive_mac(mac, |core, cx| core.device_call_over(reason, cx));
                }
            }
        }
    }

    fn drive_mac(&mut self, mac: Mac, decide: impl FnOnce(&mut Core, &mut Cx<'_>)) {
        if let Some(s) = self.session_of(mac) {
            self.drive(s, decide);
        }
    }
}

/// The name of this turn of events, if it has one.
fn turn(action: &Action) -> Option<&'static str> {
    match action {
        Action::Ended(summary) => Some(summary.reason.label()),
        Action::Note(Note::Redialled { .. }) => Some("redialled"),
        _ => None,
    }
}

fn publication(payload: &[u8]) -> Packet<'_> {
    Packet::Publish(Publish { topic: "device-server", payload, retain: false })
}
