//! What is true outside of a core: its sockets, what each side was told, and what must not happen.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::*;
use crate::proto::audio::HEADER;

mod invariants;

/// What a core was told, as far as it decides what must come of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Input {
    /// A message of the device that belongs to no call: it is answered with goodbye.
    Stray,
    /// The connection is lost.
    Lost,
    /// The device is back, from this address.
    Back(IpAddr),
    /// The server's hello, the first of this WebSocket.
    Greets,
    ServerFails,
    Other,
}

/// The shell's end of the chat server's connection.
#[derive(Debug, PartialEq)]
pub(super) enum Ws {
    None,
    Dialing { url: String, since: Instant },
    Open { url: String, since: Instant, greeted: bool, session: Option<String>, hellos: u32 },
}

impl Ws {
    pub(super) fn url(&self) -> &str {
        match self {
            Self::None => "",
            Self::Dialing { url, .. } | Self::Open { url, .. } => url,
        }
    }

    pub(super) fn is_greeted(&self) -> bool {
        matches!(self, Self::Open { greeted: true, .. })
    }
}

/// One connection of the device, and its call.
pub(super) struct Shadow {
    welcomed: bool,
    /// The shell was told to close the connection.
    closed: bool,
    /// But the session goes on: its call is kept for the device.
    away: bool,
    pub(super) home: IpAddr,
    pub(super) ws: Ws,
    pub(super) call: Option<Call>,
    /// What the WebSocket was before it ended.
    was_greeted: bool,
}

/// A call, from its grant to its end.
pub(super) struct Call {
    pub(super) grant: Grant,
    since: Instant,
    /// The id in its hello reply.
    pub(super) id: Option<String>,
    /// The device has left, its last words are still to be sent.
    closing: bool,
    /// Texts of the device that no server has yet, with whether they carry an id.
    to_server: VecDeque<u64>,
    last_listen: Option<u64>,
    redials: u32,
    /// Texts of a server that has not said hello.
    before_hello: Vec<u64>,
    /// Texts of the server that the device does not have yet, since when, and whether it was away meanwhile.
    to_device: VecDeque<(u64, Instant, bool)>,
    pub(super) last_text: u64,
    pub(super) last_audio: u64,
    speaking: bool,
    pub(super) sequence: u32,
    pub(super) headers: HashSet<[u8; HEADER]>,
    pub(super) voice: u32,
    pub(super) accepted: u32,
    pub(super) peer: Option<SocketAddr>,
    pub(super) peer_heard: Option<Instant>,
}

/// What one decision of the core came to.
#[derive(Default)]
struct Tally {
    goodbyes: Vec<Value>,
    /// Ids that calls were known by whose end is news to the device.
    news: Vec<String>,
    ended: Vec<u32>,
    /// The server is there from now on.
    greeted: bool,
    /// The call outlives the connection.
    kept: bool,
    repeated: u32,
    said: Amount,
    told: Amount,
    heard: usize,
}

/// Texts of one decision: what was let go from a queue is not more than it may hold.
#[derive(Default)]
struct Amount {
    texts: usize,
    bytes: usize,
}

impl Amount {
    fn add(&mut self, text: &str) {
        self.texts += 1;
        self.bytes += text.len();
    }

    /// Of so many full queues, and a little that never waited.
    fn is_within(&self, queues: usize) -> bool {
        self.texts <= 128 * queues + 6 && self.bytes <= (256 * queues + 16) * 1024
    }
}

impl Shadow {
    pub(super) fn new(home: IpAddr) -> Self {
        Self {
            welcomed: false,
            closed: false,
            away: false,
            home,
            ws: Ws::None,
            call: None,
            was_greeted: false,
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.welcomed && !self.closed
    }

    // ----- what goes in -------------------------------------------------------------------------------------------

    /// The id the device knows, or knew last.
    pub(super) fn session_id(&self) -> Option<String> {
        self.call.as_ref().and_then(|call| call.id.clone())
    }

    pub(super) fn device_says(&mut self, text: &str) -> Input {
        let text: Value = serde_json::from_str(text).unwrap();
        let Some(call) = self.call.as_mut().filter(|call| !call.closing) else {
            let answered = !["goodbye", "hello", "mcp"].map(Value::from).contains(&text["type"]);
            return if answered { Input::Stray } else { Input::Other };
        };
        if let Some(n) = text["n"].as_u64() {
            call.to_server.push_back(n);
            if text["type"] == "listen" {
                call.last_listen = Some(n);
            }
        }
        if text["type"] == "goodbye" {
            self.device_leaves();
        }
        Input::Other
    }

    pub(super) fn device_leaves(&mut self) {
        if let Some(call) = &mut self.call {
            call.closing |= call.id.is_none() && !call.to_server.is_empty();
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.call.as_ref().is_some_and(|call| call.closing)
    }

    pub(super) fn opened(&mut self, since: Instant) {
        let Ws::Dialing { url, .. } = &self.ws else { panic!("not dialling") };
        self.ws = Ws::Open { url: url.clone(), since, greeted: false, session: None, hellos: 0 };
    }

    pub(super) fn server_greets(&mut self, id: Option<String>) -> Input {
        let Ws::Open { greeted, session, .. } = &mut self.ws else { panic!("not open") };
        *session = session.take().or(id);
        if std::mem::replace(greeted, true) { Input::Other } else { Input::Greets }
    }

    /// The id that the server puts into its texts, once it has told it.
    pub(super) fn server_id(&self) -> Option<String> {
        match &self.ws {
            Ws::Open { greeted: true, session, .. } => session.clone(),
            _ => None,
        }
    }

    pub(super) fn server_says(&mut self, n: u64, now: Instant) {
        let away = !self.is_connected();
        match &mut self.call {
            Some(call) if self.ws.is_greeted() => call.to_device.push_back((n, now, away)),
            Some(call) => call.before_hello.push(n),
            None => {}
        }
    }

    pub(super) fn ws_gone(&mut self) {
        self.was_greeted |= self.ws.is_greeted();
        self.ws = Ws::None;
        if let Some(call) = &mut self.call {
            call.before_hello.clear();
        }
    }

    /// What the server said before its hello need not wait for that any more.
    fn server_is_there(&mut self, now: Instant) {
        let away = !self.is_connected();
        if let Some(call) = &mut self.call {
            call.to_device.extend(call.before_hello.drain(..).map(|n| (n, now, away)));
        }
    }

    pub(super) fn ws_was_gone(&mut self) {
        self.was_greeted = false;
    }

    // ----- what comes out -----------------------------------------------------------------------------------------

    /// Follows what the core wants done; returns the calls that have ended.
    pub(super) fn watch(
        &mut self,
        now: Instant,
        input: Input,
        grant: Option<Grant>,
        actions: &[Action],
    ) -> Vec<u32> {
        let connected = self.is_connected();
        if let Input::Back(home) = input {
            (self.home, self.closed, self.away) = (home, false, false);
        }
        let mut tally = Tally { greeted: input == Input::Greets, ..Tally::default() };
        if tally.greeted {
            self.server_is_there(now);
        }
        let mut grant = grant;
        for action in actions {
            match action {
                Action::Welcome => self.welcomed = true,
                Action::Grant => self.granted(grant.take().expect("one grant per hello"), now),
                Action::Publish(text) => self.published(text, &mut tally),
                Action::Dial(request) => {
                    assert_eq!(self.ws, Ws::None, "the one before is hung up first");
                    self.ws = Ws::Dialing { url: request.server.url.clone(), since: now };
                }
                Action::Say(text) => self.said(text, &mut tally),
                Action::Ping => assert!(self.ws.is_greeted()),
                Action::HangUp(_) => self.ws_gone(),
                Action::Datagram(sealed, bytes) => {
                    tally.heard += 1;
                    self.sealed(sealed, bytes);
                }
                Action::Ended(summary) => self.ended(summary, &mut tally),
                Action::Close(_) => {
                    assert!(!self.closed || self.away, "closed once, and once more when its call is over");
                    self.away = !self.closed && tally.kept;
                    self.closed = true;
                }
                Action::Note(Note::Away(_)) => tally.kept = true,
                Action::Note(Note::NoServerHello(_)) => {
                    let Ws::Open { greeted, .. } = &mut self.ws else { panic!("not open") };
                    *greeted = true;
                    tally.greeted = true;
                    self.server_is_there(now);
                }
                Action::Refuse(_) | Action::Admit => panic!("{action:?}"),
                _ => {}
            }
        }
        let stray = usize::from(input == Input::Stray && tally.ended.is_empty());
        assert_eq!(
            tally.goodbyes.len(),
            tally.news.len() + stray,
            "goodbye exactly once, and none otherwise"
        );
        for (goodbye, id) in tally.goodbyes.iter().zip(&tally.news) {
            assert_eq!(goodbye["session_id"], **id, "with the id the device knows");
        }
        assert!(
            tally.said.is_within(1) && tally.told.is_within(1) && tally.heard <= 256,
            "no queue over its bound"
        );
        self.settle(now, input, connected, &tally);
        tally.ended
    }

    fn granted(&mut self, grant: Grant, since: Instant) {
        assert!(self.call.is_none(), "the call before has ended");
        self.call = Some(Call {
            grant,
            since,
            id: None,
            closing: false,
            to_server: VecDeque::new(),
            last_listen: None,
            redials: 0,
            before_hello: Vec::new(),
            to_device: VecDeque::new(),
            last_text: 0,
            last_audio: 0,
            speaking: false,
            sequence: 0,
            headers: HashSet::new(),
            voice: 0,
            accepted: 0,
            peer: None,
            peer_heard: None,
        });
    }

    fn published(&mut self, text: &str, tally: &mut Tally) {
        assert!(self.is_connected(), "told to nobody: {text}");
        tally.told.add(text);
        let value: Value = serde_json::from_str(text).unwrap();
        assert!(value.get("session_id").is_none_or(|id| id.as_str().is_some_and(|id| !id.is_empty())));
        if value["type"] == "goodbye" {
            return tally.goodbyes.push(value);
        }
        let Some(call) = &mut self.call else { return assert_eq!(value["type"], "mcp", "no call") };
        match value["type"].as_str() {
            Some("hello") => {
                assert_eq!(value["udp"]["key"], data_encoding::HEXLOWER.encode(&call.grant.key));
                let id = value["session_id"].as_str().unwrap().to_owned();
                assert_eq!(call.id.replace(id), None, "one hello reply per key");
            }
            Some("tts") => call.speaking = value["state"] == "start",
            _ => {}
        }
        if let Some(n) = value["n"].as_u64() {
            assert_eq!(value["session_id"].as_str(), call.id.as_deref(), "{text}");
            let place = call.to_device.iter().position(|(due, ..)| *due == n).expect("delivered once");
            let (_, _, away) = call.to_device.remove(place).unwrap();
            assert!(n > call.last_text && (away || n > call.last_audio), "text keeps its order: {text}");
            call.last_text = n;
        }
    }

    fn said(&mut self, text: &str, tally: &mut Tally) {
        let Ws::Open { session, hellos, .. } = &mut self.ws else { panic!("said to nobody: {text}") };
        tally.said.add(text);
        let value: Value = serde_json::from_str(text).unwrap();
        if value["type"] == "hello" {
            *hellos += 1;
            assert!(*hellos <= 2, "said hello once more, not twice");
        }
        let call = self.call.as_mut().expect("a call");
        let Some(n) = value["n"].as_u64() else { return };
        assert!(*hellos > 0, "our hello comes first");
        if let Some(id) = value["session_id"].as_str() {
            assert_eq!(Some(id), session.as_deref().or(call.id.as_deref()), "the id the server knows");
        }
        if call.to_server.front() == Some(&n) {
            call.to_server.pop_front();
        } else {
            assert_eq!(Some(n), call.last_listen, "in order and once, but for the last listen");
            tally.repeated += 1;
        }
    }

    fn ended(&mut self, summary: &Summary, tally: &mut Tally) {
        let call = self.call.take().expect("a call that is there ends");
        assert_eq!(summary.ssrc, Some(call.grant.ssrc));
        assert_eq!(self.ws, Ws::None, "no WebSocket outlives its call");
        use EndReason::*;
        let own_doing = matches!(
            summary.reason,
            DeviceGoodbye | DeviceDisconnected | DeviceLost | DeviceError | Replaced
        );
        if self.is_connected() && !call.closing && !own_doing {
            tally.news.push(call.id.clone().expect("a goodbye without a hello ends no wait"));
            if self.was_greeted && summary.reason != Overflow {
                assert!(call.to_device.is_empty(), "text is delivered before the goodbye");
            }
        }
        if call.closing && self.was_greeted {
            assert!(call.to_server.is_empty(), "last words are said");
        }
        tally.ended.push(call.grant.ssrc);
    }
}
