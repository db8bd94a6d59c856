//! A model of a device with the stock firmware, of one version: what it does with each message and datagram in each state, and what the
//! person in front of it hears and sees. No sockets and no clock: it gets bytes and the time, and says what it sends.
//!
//! Unlike the devices of the other tests, it is strict: it loses what the firmware loses. The simulations use it, and `tests/support`
//! includes this file to run it on real sockets. It names no other part of the crate.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long the main loop waits for the connection, and then for the hello reply.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A channel on which nothing came for so long counts as closed.
const CHANNEL_TIMEOUT: Duration = Duration::from_secs(120);
const UPLINK_FRAME: Duration = Duration::from_millis(60);
const DEFAULT_FRAME_MS: u64 = 60;
const AUDIO_HEADER_LEN: usize = 16;

/// A version of the firmware. The newest one is not released yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V1_6_0,
    V1_6_2,
    V1_7_5,
    V1_8_9,
    V2_0_5,
    V2_2_6,
    V2_4_2,
    Next,
}

impl Version {
    pub const ALL: [Self; 8] = [
        Self::V1_6_0,
        Self::V1_6_2,
        Self::V1_7_5,
        Self::V1_8_9,
        Self::V2_0_5,
        Self::V2_2_6,
        Self::V2_4_2,
        Self::Next,
    ];

    /// Frames that wait for the decoder. What exceeds this is lost.
    pub fn queue_capacity(self) -> usize {
        match self {
            Self::V1_6_0 => 5,
            Self::V1_6_2 => 10,
            Self::Next => 20,
            _ => 40,
        }
    }

    /// Audio is queued in every state, and not only while the device speaks.
    fn queues_in_any_state(self) -> bool {
        self < Self::V1_7_5
    }

    /// Shorter datagrams are thrown away.
    fn min_datagram(self) -> usize {
        if self < Self::V2_4_2 { 24 } else { AUDIO_HEADER_LEN }
    }

    /// The header's length must be that of the payload, and a repeated sequence is not accepted.
    fn is_strict_on_headers(self) -> bool {
        self >= Self::V2_4_2
    }

    fn accepts_goodbye_without_id(self) -> bool {
        self <= Self::V2_2_6
    }

    /// Answers a goodbye with one.
    fn echoes_goodbye(self) -> bool {
        self <= Self::V2_0_5
    }

    /// `tts stop` throws away what is still queued. Other versions play it out before they listen.
    fn flushes_at_stop(self) -> bool {
        matches!(self, Self::V1_8_9 | Self::V2_0_5)
    }

    /// Ignores what is not for the session of an open channel, and a hello that it does not wait for. Closes the channel when MQTT is
    /// lost.
    pub fn is_strict_on_sessions(self) -> bool {
        self == Self::Next
    }
}

/// When the device stops listening: when the server says so, when the person releases the button, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListeningMode {
    Auto,
    Manual,
    Realtime,
}

impl ListeningMode {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Manual => "manual",
            Self::Realtime => "realtime",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Without power.
    Off,
    Idle,
    /// Waits for its MQTT connection or for the hello reply. The main loop is blocked.
    Connecting,
    Listening,
    Speaking,
}

/// What the device does. Whoever runs the model carries it out, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Opens a new MQTT connection. The result is [`Firmware::on_mqtt_connected`] or [`Firmware::on_mqtt_lost`].
    ConnectMqtt,
    Publish(String),
    /// Opens a UDP socket to where the hello reply says: [`Firmware::channel`].
    OpenUdp,
    CloseUdp,
    /// A datagram with its payload in plain.
    Datagram([u8; AUDIO_HEADER_LEN], Vec<u8>),
}

/// Why a frame was not played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    TooShort,
    WrongType,
    WrongLength,
    OldSequence,
    NotSpeaking,
    Overflow,
    ClearedByStart,
    ClearedByStop,
    ClearedByClose,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LostFrame {
    pub at: Instant,
    pub loss: Loss,
    pub sequence: u32,
    pub payload: Vec<u8>,
    /// The person has interrupted this speech, or ended the call.
    pub wanted: bool,
}

/// What came from the gateway, in the order of arrival, and changes of the state.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Message(Value),
    Datagram { sequence: u32, payload: Vec<u8> },
    State(DeviceState),
    Interrupted,
}

/// What the screen shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Screen {
    Empty,
    Text(String),
    Alert { status: String, message: String },
}

/// The channel of a call, as the hello reply describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Channel {
    pub server: String,
    pub port: u16,
    pub key: [u8; 16],
    nonce: [u8; AUDIO_HEADER_LEN],
    local_sequence: u32,
    remote_sequence: u32,
}

/// How long a state has lasted that the person can only end by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck {
    pub why: &'static str,
    pub since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mqtt {
    Off,
    /// esp-mqtt tries again then.
    Waiting(Instant),
    Connecting,
    Connected,
}

#[derive(Debug)]
struct Frame {
    sequence: u32,
    payload: Vec<u8>,
}

/// The queue before the decoder, and the speaker.
#[derive(Debug, Default)]
struct Playback {
    queue: VecDeque<Frame>,
    /// When the frame that is heard now ends.
    playing_until: Option<Instant>,
}

#[derive(Debug)]
pub struct Firmware {
    pub version: Version,
    /// How the button and the wake word listen: auto, or realtime with echo cancellation.
    pub button_mode: ListeningMode,
    /// How much later than a datagram a message takes effect, in milliseconds.
    pub message_delay_ms: RangeInclusive<u64>,
    /// How long esp-mqtt waits before it connects again, in milliseconds.
    pub reconnect_delay_ms: RangeInclusive<u64>,
    /// The time from one uplink datagram to the next: one frame, or more to save time.
    pub uplink_interval: Duration,
    random: u64,
    /// Time does not go back when the main loop has waited.
    clock: Instant,
    state: DeviceState,
    mode: ListeningMode,
    mqtt: Mqtt,
    session_id: String,
    channel: Option<Channel>,
    last_received: Instant,
    /// Messages that the main loop has not handled yet, and when it will.
    main_loop: VecDeque<(Instant, Value)>,
    /// When the state `Connecting` is given up, and whether the hello was sent.
    connecting: Option<(Instant, bool)>,
    /// The wake word that started the call.
    wake_word: bool,
    /// The main loop waits until everything is played, and then listens.
    plays_out: bool,
    next_uplink: Option<Instant>,
    frame: Duration,
    playback: Playback,
    interrupted: bool,
    stuck: Option<Stuck>,
    outputs: Vec<Output>,
    screen: Screen,
    /// Payloads of all frames that were heard, in order.
    pub heard: Vec<Vec<u8>>,
    pub lost: Vec<LostFrame>,
    /// The most frames that waited at once.
    pub max_queued: usize,
    /// In this call a message was lost with its connection, or the gateway did not run: nobody can tell the gateway what the device
    /// takes itself to be in.
    pub is_beyond_knowledge: bool,
    /// What a version of the firmware would have crashed on.
    pub crashes: Vec<String>,
    pub events: Vec<(Instant, Event)>,
}

impl Firmware {
    pub fn new(version: Version, seed: u64, now: Instant) -> Self {
        Self {
            version,
            button_mode: ListeningMode::Auto,
            message_delay_ms: 0..=15,
            reconnect_delay_ms: 10_000..=15_000,
            uplink_interval: UPLINK_FRAME,
            random: seed,
            clock: now,
            state: DeviceState::Off,
            mode: ListeningMode::Auto,
            mqtt: Mqtt::Off,
            session_id: String::new(),
            channel: None,
            last_received: now,
            main_loop: VecDeque::new(),
            connecting: None,
            wake_word: false,
            plays_out: false,
            next_uplink: None,
            frame: Duration::from_millis(DEFAULT_FRAME_MS),
            playback: Playback::default(),
            interrupted: false,
            stuck: None,
            outputs: Vec::new(),
            screen: Screen::Empty,
            heard: Vec::new(),
            lost: Vec::new(),
            max_queued: 0,
            is_beyond_knowledge: false,
            crashes: Vec::new(),
            events: Vec::new(),
        }
    }

    pub fn state(&self) -> DeviceState {
        self.state
    }

    pub fn screen(&self) -> &Screen {
        &self.screen
    }

    /// The id of its call; empty when it has none.
    pub fn session_id(&self) -> &str {
        &self.session_id
    }

    pub fn channel(&self) -> Option<&Channel> {
        self.channel.as_ref()
    }

    pub fn is_connected(&self) -> bool {
        self.mqtt == Mqtt::Connected
    }

    /// The frames that wait to be played.
    pub fn queued(&self) -> usize {
        self.playback.queue.len()
    }

    /// What is to be carried out now.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Frames that were lost although the person wanted to hear them. Keep-alives (sequence 0) are no speech.
    pub fn speech_lost(&self) -> impl Iterator<Item = &LostFrame> {
        self.lost.iter().filter(|lost| lost.wanted && lost.sequence != 0)
    }

    /// The law of every device, to be told at least once a second: with its network up and a chat server at hand it is not for long
    /// in a state that only a person can end. `call` is the session id of the call that the gateway has for it.
    pub fn observe(&mut self, now: Instant, call: Option<&str>) -> Option<Stuck> {
        let in_call = self.channel.is_some() && call == Some(self.session_id.as_str());
        let why = match self.state {
            DeviceState::Speaking if !in_call => Some("speaking without a call"),
            DeviceState::Listening if !in_call => Some("listening to a call that does not exist"),
            DeviceState::Connecting => Some("connecting"),
            _ => None,
        };
        self.stuck = why.map(|why| match self.stuck {
            Some(stuck) if stuck.why == why => stuck,
            _ => Stuck { why, since: now },
        });
        self.stuck
    }

    // ----- the person -----------------------------------------------------------------------------------------------

    pub fn power_on(&mut self, now: Instant) {
        self.set_state(DeviceState::Idle, now);
        self.connect_mqtt();
    }

    /// Everything is lost. The connections are not closed: nobody tells the gateway.
    pub fn power_cut(&mut self, now: Instant) {
        self.clear_playback(Loss::ClearedByClose, now, false);
        self.close_channel();
        self.outputs.clear();
        self.main_loop.clear();
        (self.mqtt, self.connecting, self.screen) = (Mqtt::Off, None, Screen::Empty);
        (self.plays_out, self.next_uplink, self.stuck) = (false, None, None);
        // A device that comes back so soon may as well still wait for its hello reply.
        self.is_beyond_knowledge |= self.state == DeviceState::Connecting;
        self.set_state(DeviceState::Off, now);
    }

    /// Starts a call, interrupts the speech, or ends the call.
    pub fn press_button(&mut self, now: Instant) {
        self.tick(now);
        match self.state {
            DeviceState::Idle => self.start_call(self.button_mode, false, now),
            DeviceState::Speaking => self.abort(None, now),
            DeviceState::Listening => self.hang_up(now),
            DeviceState::Connecting | DeviceState::Off => {}
        }
    }

    /// Listens for as long as the button is held.
    pub fn hold_button(&mut self, now: Instant) {
        self.tick(now);
        match self.state {
            DeviceState::Idle => self.start_call(ListeningMode::Manual, false, now),
            DeviceState::Speaking => {
                self.abort(None, now);
                self.mode = ListeningMode::Manual;
                self.listen(now);
            }
            DeviceState::Listening | DeviceState::Connecting | DeviceState::Off => {}
        }
    }

    pub fn release_button(&mut self, now: Instant) {
        self.tick(now);
        if self.state == DeviceState::Listening && self.mode == ListeningMode::Manual {
            self.publish(&json!({"session_id": self.session_id, "type": "listen", "state": "stop"}));
            self.set_state(DeviceState::Idle, now);
        }
    }

    pub fn say_wake_word(&mut self, now: Instant) {
        self.tick(now);
        match self.state {
            DeviceState::Idle => self.start_call(self.button_mode, true, now),
            DeviceState::Speaking => self.abort(Some("wake_word_detected"), now),
            DeviceState::Listening | DeviceState::Connecting | DeviceState::Off => {}
        }
    }

    fn start_call(&mut self, mode: ListeningMode, wake_word: bool, now: Instant) {
        (self.mode, self.wake_word, self.screen) = (mode, wake_word, Screen::Empty);
        self.is_beyond_knowledge = false;
        let is_open = now.saturating_duration_since(self.last_received) <= CHANNEL_TIMEOUT;
        if self.channel.is_some() && is_open {
            return self.begin_listening(now);
        }
        self.close_channel();
        self.set_state(DeviceState::Connecting, now);
        self.connecting = Some((now + HELLO_TIMEOUT, false));
        match self.mqtt {
            Mqtt::Connected => self.send_hello(now),
            Mqtt::Connecting => {}
            Mqtt::Waiting(_) | Mqtt::Off => self.connect_mqtt(),
        }
    }

    fn send_hello(&mut self, now: Instant) {
        self.connecting = Some((now + HELLO_TIMEOUT, true));
        let mut hello = json!({
            "type": "hello", "version": 3, "transport": "udp",
            "audio_params": {"format": "opus", "sample_rate": 16000, "channels": 1, "frame_duration": 60},
        });
        if self.version >= Version::V1_7_5 {
            hello["features"] = json!({"mcp": true});
        }
        if self.version >= Version::V2_4_2 {
            hello["text_font"] = json!({"bundle": "x", "charset": "y", "size": 16, "bpp": 1});
        }
        if self.button_mode == ListeningMode::Realtime {
            hello["features"]["aec"] = true.into();
        }
        self.publish(&hello);
    }

    fn abort(&mut self, reason: Option<&str>, now: Instant) {
        let mut abort = json!({"session_id": self.session_id, "type": "abort"});
        if let Some(reason) = reason {
            abort["reason"] = reason.into();
        }
        self.interrupt(now);
        self.publish(&abort);
    }

    fn hang_up(&mut self, now: Instant) {
        self.interrupt(now);
        self.publish(&json!({"session_id": self.session_id, "type": "goodbye"}));
        self.end_call(now);
    }

    fn interrupt(&mut self, now: Instant) {
        self.interrupted = true;
        self.events.push((now, Event::Interrupted));
    }

    // ----- its connections --------------------------------------------------------------------------------------------

    fn connect_mqtt(&mut self) {
        self.mqtt = Mqtt::Connecting;
        self.outputs.push(Output::ConnectMqtt);
    }

    /// The new connection has its CONNACK.
    pub fn on_mqtt_connected(&mut self, now: Instant) {
        self.tick(now);
        if self.mqtt == Mqtt::Connecting {
            self.mqtt = Mqtt::Connected;
            if matches!(self.connecting, Some((_, false))) {
                self.send_hello(now);
            }
        }
    }

    /// The connection is lost, or was not made.
    pub fn on_mqtt_lost(&mut self, now: Instant) {
        self.tick(now);
        if !matches!(self.mqtt, Mqtt::Connecting | Mqtt::Connected) {
            return;
        }
        let delay = Duration::from_millis(self.random_in(self.reconnect_delay_ms.clone()));
        self.mqtt = Mqtt::Waiting(now + delay);
        if matches!(self.connecting, Some((_, false))) {
            self.give_up_connecting("SERVER_NOT_CONNECTED", now);
        }
        if self.version.is_strict_on_sessions() && self.channel.is_some() {
            self.interrupted = true;
            self.end_call(now);
        }
    }

    fn publish(&mut self, message: &Value) {
        // What it publishes without a connection is lost.
        match self.mqtt {
            Mqtt::Connected => self.outputs.push(Output::Publish(message.to_string())),
            _ => self.is_beyond_knowledge = true,
        }
    }

    // ----- messages ---------------------------------------------------------------------------------------------------

    /// A message has arrived on the MQTT task. That task handles hellos and alerts; all else waits for the main loop.
    pub fn on_message(&mut self, now: Instant, text: &str) {
        self.tick(now);
        if self.mqtt != Mqtt::Connected {
            self.is_beyond_knowledge = true;
            return;
        }
        let Ok(message) = serde_json::from_str::<Value>(text) else {
            return self.crashes.push(format!("not JSON: {text}"));
        };
        self.events.push((now, Event::Message(message.clone())));
        let kind = message["type"].as_str().unwrap_or_default();
        let id = message.get("session_id");
        let is_own = id.and_then(Value::as_str) == Some(self.session_id.as_str());
        let needs_session = !matches!(kind, "hello" | "goodbye" | "notify");
        if self.version.is_strict_on_sessions() && needs_session && !(is_own && self.channel.is_some()) {
            return;
        }
        self.last_received = now;
        match kind {
            "hello" => return self.on_hello(&message, now),
            "alert" => return self.on_alert(&message),
            "mcp" => return self.answer_mcp(&message),
            "tts" if message["state"] == "start" => self.interrupted = false,
            "goodbye"
                if id.is_some_and(|id| !id.is_string()) && self.version.accepts_goodbye_without_id() =>
            {
                return self.crashes.push(format!("a session id that is no string: {text}"));
            }
            "goodbye" if !is_own && (id.is_some() || !self.version.accepts_goodbye_without_id()) => return,
            _ => {}
        }
        let due = now + Duration::from_millis(self.random_in(self.message_delay_ms.clone()));
        let due = self.main_loop.back().map_or(due, |(last, _)| due.max(*last));
        self.main_loop.push_back((due, message));
    }

    fn on_hello(&mut self, hello: &Value, now: Instant) {
        if hello["transport"] != "udp" {
            return;
        }
        let is_awaited = matches!(self.connecting, Some((_, true)));
        if self.version.is_strict_on_sessions() && !is_awaited {
            return;
        }
        let udp = &hello["udp"];
        let channel = (|| {
            Some(Channel {
                server: udp["server"].as_str()?.to_owned(),
                port: u16::try_from(udp["port"].as_u64()?).ok().filter(|port| *port > 0)?,
                key: hex(udp["key"].as_str()?)?,
                nonce: hex(udp["nonce"].as_str()?)?,
                local_sequence: 0,
                remote_sequence: 0,
            })
        })();
        let (Some(channel), Some(id)) = (channel, hello["session_id"].as_str()) else {
            return self.crashes.push(format!("a hello reply with missing fields: {hello}"));
        };
        id.clone_into(&mut self.session_id);
        let frame = hello["audio_params"]["frame_duration"].as_u64().unwrap_or(DEFAULT_FRAME_MS);
        self.frame = Duration::from_millis(frame);
        if is_awaited {
            (self.channel, self.connecting, self.interrupted) = (Some(channel), None, false);
            self.outputs.push(Output::OpenUdp);
            self.begin_listening(now);
        } else if let Some(open) = &mut self.channel {
            // Its socket stays connected to where it was.
            let (server, port) = (std::mem::take(&mut open.server), open.port);
            *open = Channel { server, port, ..channel };
        }
    }

    fn on_alert(&mut self, alert: &Value) {
        if let [Some(status), Some(message), Some(_)] =
            ["status", "message", "emotion"].map(|field| alert[field].as_str())
        {
            self.screen = Screen::Alert { status: status.to_owned(), message: message.to_owned() };
        }
    }

    fn answer_mcp(&mut self, message: &Value) {
        let payload = &message["payload"];
        if let Some(id) = payload["id"].as_i64() {
            let result = match payload["method"].as_str() {
                Some("tools/list") => json!({"tools": []}),
                _ => json!({}),
            };
            let payload = json!({"jsonrpc": "2.0", "id": id, "result": result});
            self.publish(&json!({"session_id": self.session_id, "type": "mcp", "payload": payload}));
        }
    }

    /// The main loop handles a message.
    fn take_effect(&mut self, message: &Value, now: Instant) {
        match (message["type"].as_str(), message["state"].as_str()) {
            (Some("tts"), Some("start")) if self.state != DeviceState::Speaking => {
                self.clear_playback(Loss::ClearedByStart, now, true);
                self.set_state(DeviceState::Speaking, now);
            }
            (Some("tts"), Some("stop")) if self.state == DeviceState::Speaking => self.stop_speaking(now),
            (Some("tts"), Some("sentence_start")) | (Some("stt"), _) => {
                if let Some(text) = message["text"].as_str() {
                    self.screen = Screen::Text(text.to_owned());
                }
            }
            (Some("goodbye"), _) => {
                if self.version.echoes_goodbye() {
                    self.publish(&json!({"session_id": self.session_id, "type": "goodbye"}));
                }
                self.end_call(now);
            }
            _ => {}
        }
    }

    fn stop_speaking(&mut self, now: Instant) {
        if self.version.flushes_at_stop() {
            self.clear_playback(Loss::ClearedByStop, now, !self.interrupted);
        }
        match self.mode {
            ListeningMode::Manual => self.set_state(DeviceState::Idle, now),
            ListeningMode::Auto if self.playback.playing_until.is_some() => {
                self.plays_out = true;
                self.set_state(DeviceState::Listening, now);
            }
            ListeningMode::Auto | ListeningMode::Realtime => self.listen(now),
        }
    }

    fn begin_listening(&mut self, now: Instant) {
        if std::mem::take(&mut self.wake_word) {
            let detect =
                json!({"session_id": self.session_id, "type": "listen", "state": "detect", "text": "hi"});
            self.publish(&detect);
        }
        self.listen(now);
    }

    fn listen(&mut self, now: Instant) {
        self.plays_out = false;
        let (id, mode) = (&self.session_id, self.mode.name());
        self.publish(&json!({"session_id": id, "type": "listen", "state": "start", "mode": mode}));
        self.set_state(DeviceState::Listening, now);
    }

    fn end_call(&mut self, now: Instant) {
        self.clear_playback(Loss::ClearedByClose, now, !self.interrupted);
        self.close_channel();
        (self.plays_out, self.screen) = (false, Screen::Empty);
        self.set_state(DeviceState::Idle, now);
    }

    fn close_channel(&mut self) {
        self.session_id.clear();
        if self.channel.take().is_some() {
            self.outputs.push(Output::CloseUdp);
        }
    }

    fn give_up_connecting(&mut self, status: &str, now: Instant) {
        self.connecting = None;
        self.screen = Screen::Alert { status: status.to_owned(), message: String::new() };
        self.set_state(DeviceState::Idle, now);
    }

    fn set_state(&mut self, state: DeviceState, now: Instant) {
        if self.state != state {
            self.state = state;
            self.events.push((now, Event::State(state)));
        }
        let sends = match state {
            DeviceState::Listening => !self.plays_out,
            DeviceState::Speaking => self.mode == ListeningMode::Realtime,
            _ => false,
        };
        let sends = sends && self.channel.is_some();
        self.next_uplink = sends.then(|| self.next_uplink.unwrap_or(now));
    }

    // ----- audio ------------------------------------------------------------------------------------------------------

    /// A datagram has arrived on the channel's socket, which is connected: header, and decrypted payload.
    pub fn on_datagram(&mut self, now: Instant, header: [u8; AUDIO_HEADER_LEN], payload: &[u8]) {
        self.tick(now);
        let Some(channel) = &mut self.channel else { return };
        self.last_received = now;
        let sequence = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
        self.events.push((now, Event::Datagram { sequence, payload: payload.to_vec() }));
        let strict = self.version.is_strict_on_headers();
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let is_old = sequence < channel.remote_sequence || strict && sequence == channel.remote_sequence;
        let loss = if AUDIO_HEADER_LEN + payload.len() < self.version.min_datagram() {
            Some(Loss::TooShort)
        } else if header[0] != 1 {
            Some(Loss::WrongType)
        } else if strict && length != payload.len() {
            Some(Loss::WrongLength)
        } else if is_old {
            Some(Loss::OldSequence)
        } else {
            channel.remote_sequence = sequence;
            let accepts = self.state == DeviceState::Speaking || self.version.queues_in_any_state();
            (!accepts).then_some(Loss::NotSpeaking)
        };
        let frame = Frame { sequence, payload: payload.to_vec() };
        match loss {
            Some(loss) => self.lose(frame, loss, now, !self.interrupted),
            None => self.play(frame, now),
        }
    }

    fn play(&mut self, frame: Frame, now: Instant) {
        if self.playback.playing_until.is_none() {
            self.heard.push(frame.payload);
            self.playback.playing_until = Some(now + self.frame);
        } else if self.playback.queue.len() >= self.version.queue_capacity() {
            self.lose(frame, Loss::Overflow, now, !self.interrupted);
        } else {
            self.playback.queue.push_back(frame);
            self.max_queued = self.max_queued.max(self.playback.queue.len());
        }
    }

    fn clear_playback(&mut self, loss: Loss, now: Instant, wanted: bool) {
        self.playback.playing_until = None;
        for frame in std::mem::take(&mut self.playback.queue) {
            self.lose(frame, loss, now, wanted);
        }
    }

    fn lose(&mut self, frame: Frame, loss: Loss, at: Instant, wanted: bool) {
        let Frame { sequence, payload } = frame;
        self.lost.push(LostFrame { at, loss, sequence, payload, wanted });
    }

    fn send_audio(&mut self) {
        let Some(channel) = &mut self.channel else { return };
        channel.local_sequence += 1;
        // 60 ms of one Opus frame.
        let mut payload = vec![0x58; 40];
        payload[1..5].copy_from_slice(&channel.local_sequence.to_be_bytes());
        let mut header = channel.nonce;
        header[2..4].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        header[12..].copy_from_slice(&channel.local_sequence.to_be_bytes());
        self.outputs.push(Output::Datagram(header, payload));
    }

    // ----- time -------------------------------------------------------------------------------------------------------

    /// When [`Firmware::tick`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        let retry = if let Mqtt::Waiting(at) = self.mqtt { Some(at) } else { None };
        let is_blocked = self.state == DeviceState::Connecting || self.plays_out;
        let message = self.main_loop.front().filter(|_| !is_blocked).map(|(at, _)| *at);
        let connecting = self.connecting.map(|(at, _)| at);
        [retry, message, connecting, self.next_uplink, self.playback.playing_until]
            .into_iter()
            .flatten()
            .min()
    }

    /// Everything that is due by now, in the order in which it is due.
    pub fn tick(&mut self, now: Instant) {
        while let Some(at) = self.next_deadline().filter(|at| *at <= now) {
            self.clock = self.clock.max(at);
            self.step(self.clock);
        }
        self.clock = self.clock.max(now);
    }

    fn step(&mut self, at: Instant) {
        let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= at);
        let is_blocked = self.state == DeviceState::Connecting || self.plays_out;
        if is_due(self.playback.playing_until) {
            let end = self.playback.playing_until.unwrap_or(at);
            let next = self.playback.queue.pop_front();
            self.playback.playing_until = next.is_some().then_some(end + self.frame);
            self.heard.extend(next.map(|frame| frame.payload));
            if self.plays_out && self.playback.playing_until.is_none() {
                self.listen(at);
            }
        } else if is_due(self.connecting.map(|(until, _)| until)) {
            self.give_up_connecting("SERVER_TIMEOUT", at);
        } else if !is_blocked && is_due(self.main_loop.front().map(|(due, _)| *due)) {
            if let Some((_, message)) = self.main_loop.pop_front() {
                self.take_effect(&message, at);
            }
        } else if is_due(self.next_uplink) {
            self.next_uplink = self.next_uplink.map(|due| due + self.uplink_interval);
            self.send_audio();
        } else {
            self.connect_mqtt();
        }
    }

    /// splitmix64.
    fn random_in(&mut self, range: RangeInclusive<u64>) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        range.start() + (z ^ (z >> 31)) % (range.end() - range.start() + 1)
    }
}

fn hex(text: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}
