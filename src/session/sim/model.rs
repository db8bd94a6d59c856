//! The model of a session: its sockets, and what each side was sent. It checks each action of the core.

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::*;
use crate::proto::audio::HEADER_LEN;

mod invariants;

/// The input of a decision, as far as the expected actions depend on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Input {
    /// A message of the device outside a call: it is answered with goodbye.
    TextWithoutCall,
    /// The device's connection is lost.
    ConnectionLost,
    /// The device has reconnected from this address.
    Reconnected(IpAddr),
    /// The first hello of the server on this WebSocket.
    ServerHello,
    ServerFailed,
    Other,
}

/// The chat server's WebSocket.
#[derive(Debug, PartialEq)]
pub(super) enum WebSocketState {
    None,
    Dialing { url: String, since: Instant },
    Open { url: String, since: Instant, hello_received: bool, session: Option<String>, hellos: u32 },
}

impl WebSocketState {
    pub(super) fn url(&self) -> &str {
        match self {
            Self::None => "",
            Self::Dialing { url, .. } | Self::Open { url, .. } => url,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Open { hello_received: true, .. })
    }
}

/// One connection of the device, and its call.
pub(super) struct Model {
    connack_sent: bool,
    /// The shell was told to close the connection.
    closed: bool,
    /// The connection is closed, but the call is kept.
    awaiting_reconnect: bool,
    pub(super) mqtt_ip: IpAddr,
    pub(super) ws: WebSocketState,
    pub(super) call: Option<CallModel>,
    /// The WebSocket that was just closed had received the server's hello.
    had_server_hello: bool,
    /// The device has reconnected, and has not shown that it is in the call: texts wait for that.
    pub(super) unproven: bool,
    /// The server's texts about speech.
    speech: HashSet<u64>,
    /// The texts before its hello of a server whose dial goes on for another hello.
    carried_over: Vec<u64>,
}

/// A call, from its credentials to its end.
pub(super) struct CallModel {
    pub(super) credentials: CallCredentials,
    since: Instant,
    /// The id in its hello reply.
    pub(super) session_id: Option<String>,
    /// The device has left, and its texts are not sent yet.
    closing: bool,
    /// Texts of the device that were not sent to a server yet.
    to_server: VecDeque<u64>,
    last_listen: Option<u64>,
    redials: u32,
    /// Texts of a server that has not sent its hello.
    before_hello: Vec<u64>,
    /// Texts about speech that the device aborted before they were delivered.
    aborted: HashSet<u64>,
    /// Texts of the server that the device has not got yet, when they arrived, and whether the device was disconnected since then.
    pub(super) to_device: VecDeque<(u64, Instant, bool)>,
    pub(super) last_text: u64,
    pub(super) last_audio: u64,
    tts_active: bool,
    pub(super) sequence: u32,
    pub(super) headers_used: HashSet<[u8; HEADER_LEN]>,
    pub(super) keep_alive: Option<Box<[u8]>>,
    pub(super) last_sequence_sent: u32,
    pub(super) last_sequence_accepted: u32,
    pub(super) peer: Option<SocketAddr>,
    pub(super) peer_last_seen: Option<Instant>,
    /// The number of datagrams of the peer that were accepted.
    pub(super) accepted: u32,
    /// The peer, before a datagram that may change it.
    pub(super) peer_before_move: Option<SocketAddr>,
    /// The address of the MQTT peer's IP from which the call moved to another IP.
    pub(super) home: Option<SocketAddr>,
}

/// A summary of the actions of one decision.
#[derive(Default)]
struct DecisionSummary {
    goodbyes: Vec<Value>,
    /// The session ids of ended calls whose end the device did not cause.
    ids_to_notify: Vec<String>,
    ended_ssrcs: Vec<u32>,
    /// The call became live.
    server_is_live: bool,
    /// A call ended before it was answered, because the device said hello again within `mqtt.hello_limit`.
    dial_kept: bool,
    /// The device said hello.
    hello: bool,
    /// An unanswered call was replaced, and its dial abandoned.
    dial_abandoned: bool,
    /// The device said hello too often.
    limited: bool,
    dials: u32,
    /// The call is kept after the loss of the connection.
    call_kept: bool,
    listens_repeated: u32,
    to_server: TextVolume,
    to_device: TextVolume,
    datagrams: usize,
}

impl DecisionSummary {
    fn check_messages(&self, input: Input) {
        let stray = usize::from(input == Input::TextWithoutCall && self.ended_ssrcs.is_empty());
        let expected = self.ids_to_notify.len() + stray;
        // Half a second after it has connected, a device is told that its call ended while it was away.
        let belated = input == Input::Other && expected == 0 && self.goodbyes.len() == 1;
        assert!(self.goodbyes.len() == expected || belated, "goodbye exactly once, and none otherwise");
        assert!(!self.limited || !self.dial_kept && self.dials == 0, "no dial beyond the limit");
        assert!(
            (!self.dial_kept || self.dials == 0) && (!self.dial_abandoned || !self.hello || self.limited),
            "a hello before the reply causes no second dial"
        );
        for (goodbye, id) in self.goodbyes.iter().zip(&self.ids_to_notify) {
            assert_eq!(goodbye["session_id"], **id, "with the id the device knows");
        }
        assert!(
            self.to_server.is_within(1) && self.to_device.is_within(1) && self.datagrams <= 5_000,
            "no queue over its bound"
        );
    }
}

/// The texts of one decision. They cannot exceed what a queue may hold.
#[derive(Default)]
struct TextVolume {
    texts: usize,
    bytes: usize,
}

impl TextVolume {
    fn add(&mut self, text: &str) {
        self.texts += 1;
        self.bytes += text.len();
    }

    /// Whether these are the texts of so many full queues, and a few that were not queued.
    fn is_within(&self, queues: usize) -> bool {
        self.texts <= 640 * queues + 6 && self.bytes <= (256 * queues + 16) * 1024
    }
}

impl Model {
    pub(super) fn new(home: IpAddr) -> Self {
        Self {
            connack_sent: false,
            closed: false,
            awaiting_reconnect: false,
            mqtt_ip: home,
            ws: WebSocketState::None,
            call: None,
            had_server_hello: false,
            unproven: false,
            speech: HashSet::new(),
            carried_over: Vec::new(),
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connack_sent && !self.closed
    }

    // ----- inputs -------------------------------------------------------------------------------------------------

    /// The session id that the device was given.
    pub(super) fn session_id(&self) -> Option<String> {
        self.call.as_ref().and_then(|call| call.session_id.clone())
    }

    pub(super) fn on_device_text(&mut self, text: &str) -> Input {
        let text: Value = serde_json::from_str(text).unwrap();
        let Some(call) = self.call.as_mut().filter(|call| !call.closing) else {
            let answered = !["goodbye", "hello", "mcp"].map(Value::from).contains(&text["type"]);
            return if answered { Input::TextWithoutCall } else { Input::Other };
        };
        if let Some(n) = text["n"].as_u64() {
            call.to_server.push_back(n);
            if text["type"] == "listen" {
                call.last_listen = Some(n);
            }
        }
        if text["type"] == "goodbye" {
            self.on_device_disconnect();
        }
        Input::Other
    }

    pub(super) fn on_device_disconnect(&mut self) {
        if let Some(call) = &mut self.call {
            call.closing |= call.session_id.is_none() && !call.to_server.is_empty();
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.call.as_ref().is_some_and(|call| call.closing)
    }

    pub(super) fn on_websocket_open(&mut self, since: Instant) {
        let WebSocketState::Dialing { url, .. } = &self.ws else { panic!("not dialling") };
        self.ws =
            WebSocketState::Open { url: url.clone(), since, hello_received: false, session: None, hellos: 0 };
    }

    pub(super) fn on_server_hello(&mut self, id: Option<String>) -> Input {
        let WebSocketState::Open { hello_received: greeted, session, .. } = &mut self.ws else {
            panic!("not open")
        };
        *session = session.take().or(id);
        if std::mem::replace(greeted, true) { Input::Other } else { Input::ServerHello }
    }

    /// The session id in the server's hello.
    pub(super) fn server_id(&self) -> Option<String> {
        match &self.ws {
            WebSocketState::Open { hello_received: true, session, .. } => session.clone(),
            _ => None,
        }
    }

    pub(super) fn on_server_text(&mut self, n: u64, kind: &str, now: Instant) {
        if kind == "tts" {
            self.speech.insert(n);
        }
        let away = !self.is_connected() || self.unproven;
        match &mut self.call {
            Some(call) if self.ws.is_live() => call.to_device.push_back((n, now, away)),
            Some(call) => call.before_hello.push(n),
            None => {}
        }
    }

    /// The device interrupts the speech: what waits of it is dropped, but for its end.
    pub(super) fn on_abort(&mut self) {
        if let Some(call) = self.call.as_mut().filter(|_| self.connack_sent) {
            let speech = &self.speech;
            call.aborted.extend(call.to_device.iter().map(|due| due.0).filter(|n| speech.contains(n)));
            call.to_device.retain(|due| !speech.contains(&due.0));
        }
    }

    pub(super) fn before_websocket_close(&mut self) {
        self.had_server_hello |= self.ws.is_live();
        self.ws = WebSocketState::None;
        if let Some(call) = &mut self.call {
            call.before_hello.clear();
        }
    }

    /// The server's texts before its hello are due now.
    fn release_early_texts(&mut self, now: Instant) {
        let away = !self.is_connected() || self.unproven;
        if let Some(call) = &mut self.call {
            call.to_device.extend(call.before_hello.drain(..).map(|n| (n, now, away)));
        }
    }

    pub(super) fn after_websocket_close(&mut self) {
        self.had_server_hello = false;
    }

    // ----- actions ------------------------------------------------------------------------------------------------

    /// Checks the actions of one decision and returns the ssrcs of the calls that have ended.
    pub(super) fn observe(
        &mut self,
        now: Instant,
        input: Input,
        credentials: Option<CallCredentials>,
        actions: &[Action],
    ) -> Vec<u32> {
        let connected = self.is_connected();
        if let Input::Reconnected(home) = input {
            if let Some(call) = self.call.as_mut().filter(|_| home != self.mqtt_ip) {
                call.home = None;
            }
            (self.mqtt_ip, self.closed, self.awaiting_reconnect) = (home, false, false);
        }
        let mut decision =
            DecisionSummary { server_is_live: input == Input::ServerHello, ..DecisionSummary::default() };
        if decision.server_is_live {
            self.release_early_texts(now);
        }
        let mut credentials = credentials;
        for action in actions {
            match action {
                Action::AcceptConnect => self.connack_sent = true,
                Action::GenerateCredentials => {
                    decision.hello = true;
                    self.on_credentials(credentials.take().expect("one set of credentials per hello"), now)
                }
                Action::Publish(text) => self.on_publish(text, &mut decision),
                Action::Dial(request) => {
                    assert_eq!(self.ws, WebSocketState::None, "the previous WebSocket is closed first");
                    self.ws = WebSocketState::Dialing { url: request.server.url.clone(), since: now };
                    decision.dials += 1;
                }
                Action::SendText(text) => self.on_text_to_server(text, &mut decision),
                Action::SendPing => assert!(self.ws.is_live()),
                Action::CloseBackend(_) => self.before_websocket_close(),
                Action::SendDatagram(encrypted, bytes) => {
                    decision.datagrams += 1;
                    self.on_encrypted(encrypted, bytes);
                }
                Action::CallEnded(summary) => self.on_call_ended(summary, &mut decision),
                Action::CloseDevice(_) => {
                    assert!(
                        !self.closed || self.awaiting_reconnect,
                        "closed once, and once more when its call is over"
                    );
                    self.awaiting_reconnect = !self.closed && decision.call_kept;
                    self.closed = true;
                }
                Action::Log(LogEvent::ConnectionLost { .. }) => decision.call_kept = true,
                Action::Log(LogEvent::NoServerHello(_)) => {
                    let WebSocketState::Open { hello_received: greeted, .. } = &mut self.ws else {
                        panic!("not open")
                    };
                    *greeted = true;
                    decision.server_is_live = true;
                    self.release_early_texts(now);
                }
                Action::RefuseConnect(_) | Action::Admit => panic!("{action:?}"),
                _ => {}
            }
        }
        decision.check_messages(input);
        self.check_transition(input, connected, &decision);
        decision.ended_ssrcs
    }

    fn on_credentials(&mut self, credentials: CallCredentials, since: Instant) {
        assert!(self.call.is_none(), "the call before has ended");
        self.call = Some(CallModel {
            credentials,
            since,
            session_id: None,
            closing: false,
            to_server: VecDeque::new(),
            last_listen: None,
            redials: 0,
            before_hello: std::mem::take(&mut self.carried_over),
            aborted: HashSet::new(),
            to_device: VecDeque::new(),
            last_text: 0,
            last_audio: 0,
            tts_active: false,
            sequence: 0,
            headers_used: HashSet::new(),
            keep_alive: None,
            last_sequence_sent: 0,
            last_sequence_accepted: 0,
            peer: None,
            peer_last_seen: None,
            accepted: 0,
            peer_before_move: None,
            home: None,
        });
    }

    fn on_publish(&mut self, text: &str, decision: &mut DecisionSummary) {
        assert!(self.is_connected(), "sent to a closed connection: {text}");
        decision.to_device.add(text);
        let value: Value = serde_json::from_str(text).unwrap();
        let id_of_none = value["type"] == "goodbye";
        let is_id = |id: &Value| id.as_str().is_some_and(|id| id_of_none || !id.is_empty());
        assert!(value.get("session_id").is_none_or(is_id), "{text}");
        if value["type"] == "goodbye" {
            return decision.goodbyes.push(value);
        }
        let Some(call) = &mut self.call else {
            // The reason of the last call's end, after its goodbye; or that end, before a belated goodbye.
            let is_end = value["type"] == "tts" && value["state"] == "stop";
            let is_known = value["type"] == "mcp" || value["type"] == "alert";
            return assert!(is_known || is_end, "no call: {text}");
        };
        match value["type"].as_str() {
            Some("hello") => {
                assert_eq!(value["udp"]["key"], data_encoding::HEXLOWER.encode(&call.credentials.key));
                let id = value["session_id"].as_str().unwrap().to_owned();
                assert_eq!(call.session_id.replace(id), None, "one hello reply per key");
            }
            Some("tts") => call.tts_active = value["state"] == "start",
            _ => {}
        }
        if let Some(n) = value["n"].as_u64() {
            assert_eq!(value["session_id"].as_str(), call.session_id.as_deref(), "{text}");
            let away = match call.to_device.iter().position(|(due, ..)| *due == n) {
                Some(place) => call.to_device.remove(place).unwrap().2,
                None => {
                    assert!(call.aborted.remove(&n), "delivered once: {text}");
                    true
                }
            };
            assert!(n > call.last_text && (away || n > call.last_audio), "text keeps its order: {text}");
            call.last_text = n;
        }
    }

    fn on_text_to_server(&mut self, text: &str, decision: &mut DecisionSummary) {
        let WebSocketState::Open { session, hellos, .. } = &mut self.ws else {
            panic!("sent to a closed WebSocket: {text}")
        };
        decision.to_server.add(text);
        let value: Value = serde_json::from_str(text).unwrap();
        if value["type"] == "hello" {
            *hellos += 1;
            assert!(*hellos <= 2, "the hello is repeated once at most");
        }
        let call = self.call.as_mut().expect("a call");
        let Some(n) = value["n"].as_u64() else { return };
        assert!(*hellos > 0, "our hello comes first");
        // The modelled firmware, whose texts have no filler, may have no id, or that of an earlier call.
        if let Some(id) = value["session_id"].as_str().filter(|_| value["x"].is_string()) {
            assert_eq!(
                Some(id),
                session.as_deref().or(call.session_id.as_deref()),
                "the id the server knows"
            );
        }
        if call.to_server.front() == Some(&n) {
            call.to_server.pop_front();
        } else {
            assert_eq!(Some(n), call.last_listen, "each text once and in order, except the last listen");
            decision.listens_repeated += 1;
        }
    }

    fn on_call_ended(&mut self, summary: &CallSummary, decision: &mut DecisionSummary) {
        let call = self.call.take().expect("only a running call ends");
        assert_eq!(summary.ssrc, Some(call.credentials.ssrc));
        use EndReason::*;
        decision.limited |= summary.reason == HelloLimit;
        if summary.reason == Replaced && !summary.answered && self.ws != WebSocketState::None {
            decision.dial_kept = true;
            self.carried_over = call.before_hello.clone();
        } else {
            decision.dial_abandoned |= summary.reason == Replaced && !summary.answered;
            assert_eq!(self.ws, WebSocketState::None, "no WebSocket outlives its call");
        }
        let own_doing = matches!(
            summary.reason,
            DeviceGoodbye | DeviceDisconnected | DeviceLost | DeviceError | Replaced
        );
        if self.is_connected() && !call.closing && !own_doing {
            let id = call.session_id.clone().expect("a hello reply comes before the goodbye");
            let id = if summary.reason == DeviceNotInCall { String::new() } else { id };
            decision.ids_to_notify.push(id);
            if self.had_server_hello && summary.reason != Overflow && !self.unproven {
                assert!(call.to_device.is_empty(), "text is delivered before the goodbye");
            }
        }
        if call.closing && self.had_server_hello {
            assert!(call.to_server.is_empty(), "the texts of a closing call are sent");
        }
        decision.ended_ssrcs.push(call.credentials.ssrc);
    }
}
