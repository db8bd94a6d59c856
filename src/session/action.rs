//! What a core is lent and what it answers: [`Context`] in, [`Action`]s out, with the values they carry.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::call::CallState;
use super::labels::labelled_enum;
use super::media::{CallStats, Encrypted};
use super::request_ids::RequestIds;
use super::server_health::ServerHealth;
use crate::config::{ChatServerConfig, Config};
use crate::proto::audio::BadDatagram;
use crate::proto::identity::Mac;
use crate::proto::mqtt::{ConnectReturnCode, Malformed};

mod display;

/// What a core is lent for one call: the time, the configuration of this moment, and where actions go.
pub struct Context<'a> {
    /// The time of this turn.
    pub now: Instant,
    /// Swapped whole by a reload; never stored.
    pub config: &'a Config,
    /// Health and framing of the chat servers, shared by all calls.
    pub servers: &'a mut ServerHealth,
    /// For requests to devices, shared by all sessions of the process.
    pub ids: &'a RequestIds,
    /// To be carried out in order.
    pub out: &'a mut Vec<Action>,
}

impl Context<'_> {
    pub(super) fn count(&mut self, counter: Counter) {
        self.out.push(Action::Count(counter));
    }

    pub(super) fn log(&mut self, event: LogEvent) {
        self.out.push(Action::Log(event));
    }

    pub(super) fn publish(&mut self, text: String) {
        self.out.push(Action::Publish(text));
    }
}

/// What the shell must do for a core.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// The device's credentials are good: look for an older connection of the same client id and for a free place,
    /// then call [`Core::on_admission`](super::Core::on_admission) or [`Core::take_over`](super::Core::take_over).
    Admit,
    /// Answer CONNECT with this code, after the delay that failed logins from this address have earned; then
    /// [`Action::CloseDevice`] follows.
    RefuseConnect(ConnectReturnCode),
    /// CONNACK 0.
    AcceptConnect,
    /// SUBACK with one 0x00 for each of so many filters.
    SubAck {
        /// The packet id of the SUBSCRIBE.
        packet_id: u16,
        /// How many filters it had.
        filters: usize,
    },
    /// UNSUBACK.
    UnsubAck(u16),
    /// PINGRESP.
    PingResp,
    /// A JSON text for the device, to its own topic.
    Publish(String),
    /// A device said hello: generate [`CallCredentials`] and call [`Core::on_credentials`](super::Core::on_credentials).
    GenerateCredentials,
    /// Open a WebSocket to a chat server; the one before, if any, is dropped.
    Dial(Box<DialRequest>),
    /// A text for the chat server.
    SendText(String),
    /// A WebSocket ping for the chat server.
    SendPing,
    /// Close the chat server's WebSocket with this code, or stop dialling.
    CloseBackend(u16),
    /// A held audio packet whose time has come.
    SendDatagram(Encrypted, Box<[u8]>),
    /// Forget audio of this ssrc that waits in the socket's queue.
    FlushAudio(u32),
    /// What became of an operator's [`Core::send_command`](super::Core::send_command): exactly once for each.
    CommandResult {
        /// The command's.
        ticket: u64,
        /// The device's result, raw JSON.
        result: Result<Box<str>, CommandError>,
    },
    /// A call is over: forget its ssrc, log its line.
    CallEnded(Box<CallSummary>),
    /// One more of these.
    Count(Counter),
    /// For the log.
    Log(LogEvent),
    /// Close the device's connection once what is queued for it is written. The session stays while its call does.
    CloseDevice(CloseReason),
}

/// Why an operator's command has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// The device is not connected, or was lost meanwhile.
    NotConnected,
    /// No answer in 5 s.
    Timeout,
    /// Too many commands are under way for this device.
    Busy,
    /// The device answered with an error: its message.
    Device(Box<str>),
}

/// What the shell minted for a hello, from the system's random source.
#[derive(Clone, Debug)]
pub struct CallCredentials {
    /// Unique among the calls of this gateway.
    pub ssrc: u32,
    /// AES-128 key of the call's audio.
    pub key: [u8; 16],
    /// A fresh UUID, for servers that name no session.
    pub session_id: Box<str>,
    /// Seed of the redial jitter.
    pub jitter_seed: u64,
    /// The host this device is told to send its datagrams to.
    pub udp_host: Box<str>,
    /// And the port.
    pub udp_port: u16,
    /// False when `max_calls` is reached, or the random source failed: the device is told that the call is refused.
    pub allowed: bool,
}

/// The shell's answer to [`Action::Admit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// There is room.
    Accepted,
    /// `max_connections` is reached.
    ConnectionLimit,
    /// `max_connections_per_ip` is reached.
    PerIpLimit,
}

/// Which server to open a WebSocket to, with the request headers that depend on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct DialRequest {
    /// The chat server.
    pub server: Arc<ChatServerConfig>,
    /// `device-id`, and part of the token.
    pub mac: Mac,
    /// `client-id`, and part of the token: the uuid of the client id. A two-part id has none, unless a token is signed.
    pub client_id: Option<String>,
    /// `x-forwarded-for`: the device's address.
    pub forwarded_for: IpAddr,
    /// `protocol-version`: 1 for bare Opus, 2 for the header.
    pub protocol_version: u8,
    /// Skip cached addresses: the server just failed.
    pub skip_dns_cache: bool,
}

/// How a chat server's WebSocket, or the attempt to open one, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendClosed {
    /// A Close frame came, with its code if it had one.
    CloseFrame(Option<u16>),
    /// Anything else.
    Failed(BackendFailure),
}

labelled_enum! {
    /// How far a chat server's WebSocket was when it failed.
    pub enum BackendStage {
        /// Looking up its name.
        Resolve => "resolve",
        /// Connecting by TCP.
        Connect => "connect",
        /// The TLS handshake.
        Tls => "tls",
        /// The WebSocket upgrade.
        Upgrade => "upgrade",
        /// Waiting for its hello.
        Hello => "hello",
        /// In the call.
        Live => "live",
        /// Not the chat server's fault: this system has no file descriptor left.
        LocalShortage => "shortage",
    }
}

/// Where a chat server failed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendFailure {
    /// How far it was.
    pub stage: BackendStage,
    /// The cause, for a person to read.
    pub message: String,
}

impl BackendFailure {
    /// A failure at this stage.
    pub fn new(stage: BackendStage, message: impl Into<String>) -> Self {
        Self { stage, message: message.into() }
    }
}

labelled_enum! {
    /// Why a call ended: the log line and the metric label.
    pub enum EndReason {
        /// The device said goodbye.
        DeviceGoodbye => "device_goodbye",
        /// The device said that it hears no UDP.
        DeviceUdpTimeout => "device_udp_timeout",
        /// The device sent DISCONNECT.
        DeviceDisconnected => "device_disconnected",
        /// The device's connection was lost and did not come back in time.
        DeviceLost => "device_lost",
        /// The device broke the protocol.
        DeviceError => "device_error",
        /// The device, or another connection with its client id, began anew.
        Replaced => "replaced",
        /// The chat server closed its WebSocket normally, or said goodbye.
        ServerClosed => "server_closed",
        /// No chat server could be reached for the hello.
        NoServer => "no_server",
        /// Redialling was given up.
        ServerLost => "server_lost",
        /// Neither audio nor text for `call_idle_s`.
        Idle => "idle",
        /// A queue of text was full.
        Overflow => "overflow",
        /// `max_calls` was reached, or the random source failed.
        Refused => "refused",
        /// The gateway stops.
        Shutdown => "shutdown",
        /// An operator hung up.
        Operator => "operator",
        /// The device aborted what it took for speech, in a call with another device.
        DeviceAbort => "device_abort",
        /// The other device of the call hung up, or left.
        PeerLeft => "peer_left",
        /// The device that was called did not answer.
        Unanswered => "unanswered",
    }
}

/// A call's end, for its log line and the metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct CallSummary {
    /// The id the device knew, or would have known.
    pub session_id: Box<str>,
    /// Why it ended.
    pub reason: EndReason,
    /// From the device's hello to the end.
    pub duration: Duration,
    /// Whether the device ever had its hello reply.
    pub answered: bool,
    /// How far it was: who talks to a device takes that one along.
    pub state: CallState,
    /// URL of the last chat server.
    pub server: Option<Arc<ChatServerConfig>>,
    /// The ssrc to forget.
    pub ssrc: Option<u32>,
    /// Packets, bytes and what went missing.
    pub stats: CallStats,
}

/// Why a device's connection is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// CONNECT was refused.
    Refused(ConnectReturnCode, &'static str),
    /// No CONNECT in time.
    ConnectTimeout,
    /// Nothing came for one and a half keep alives.
    KeepAlive,
    /// DISCONNECT, or the connection's end.
    Disconnected,
    /// The same client id connected again.
    TakenOver,
    /// A broken packet.
    Protocol(Malformed),
    /// A packet that has no place here, in words.
    UnexpectedPacket(&'static str),
    /// A hello with another version than 3.
    HelloVersion(String),
    /// The device does not read what it is sent.
    SlowReader,
    /// Too much is kept for it while others need the room.
    MemoryLimit,
    /// The gateway stops.
    Shutdown,
    /// The gateway drains, and the device has no call.
    Draining,
    /// An operator disconnected it.
    Operator,
}

labelled_enum! {
    /// Why an audio packet was dropped: the metric label.
    pub enum DropReason {
        /// A datagram shorter than a header.
        ShortDatagram => "short",
        /// A datagram whose first byte is not the packet type.
        DatagramType => "type",
        /// A datagram whose length field does not match its length.
        DatagramLength => "length",
        /// A datagram with too much payload.
        OversizedDatagram => "oversized",
        /// A datagram without payload.
        EmptyDatagram => "empty",
        /// No call has this ssrc.
        UnknownSsrc => "unknown_ssrc",
        /// Came before.
        Duplicate => "duplicate",
        /// Came after a later one.
        Late => "late",
        /// Below the replay window.
        TooOld => "too_old",
        /// Too far ahead to believe at once.
        Jump => "jump",
        /// From an address that is not, or not yet, the device's.
        ForeignSource => "foreign_source",
        /// No chat server to take it.
        NoServer => "no_server",
        /// The chat server does not read.
        ServerBlocked => "server_blocked",
        /// The device has not sent a datagram yet, so there is nowhere to send to.
        NoPeer => "no_peer",
        /// A binary frame that is neither headed nor raw audio, or too long.
        BadFrame => "bad_frame",
        /// The queue of held audio is full.
        HeldFull => "held_full",
        /// The socket's queue is full.
        SocketFull => "socket_full",
        /// Flushed by the device's abort.
        Aborted => "aborted",
        /// From a device that waits for another one to answer: silence goes back instead.
        Ringing => "ringing",
    }
}

impl From<BadDatagram> for DropReason {
    fn from(bad: BadDatagram) -> Self {
        match bad {
            BadDatagram::Short => Self::ShortDatagram,
            BadDatagram::Type => Self::DatagramType,
            BadDatagram::Length => Self::DatagramLength,
            BadDatagram::Oversized => Self::OversizedDatagram,
            BadDatagram::Empty => Self::EmptyDatagram,
        }
    }
}

/// Things that are counted and have no other effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    /// A payload from a device that is not a JSON object.
    BadDeviceText,
    /// A text from a chat server that is not a JSON object.
    BadServerText,
    /// A chat server said hello again in mid-call.
    RepeatedHello,
    /// An audio packet was dropped.
    Dropped(DropReason),
    /// An attempt to reach a chat server failed at this stage.
    DialFailed(BackendStage),
    /// A chat server took a call, so long after the device's hello, in milliseconds.
    Answered(u32),
    /// A call went on with another WebSocket.
    Redialled,
}

/// A line for the log; the shell adds the session's prefix.
#[derive(Clone, Debug, PartialEq)]
pub enum LogEvent {
    /// A device was let in.
    Connected {
        /// It took over the call of a lost connection.
        resumed: bool,
    },
    /// The connection was lost in a call that is kept for a while.
    ConnectionLost(Duration),
    /// A call is up.
    CallStarted {
        /// The session id the device was given.
        session_id: Box<str>,
        /// The chat server's URL.
        url: String,
        /// Since the device's hello.
        after: Duration,
    },
    /// The chat server could not be used for this call.
    DialFailed {
        /// Its URL.
        url: String,
        /// Where and why.
        failure: BackendFailure,
    },
    /// The chat server failed in mid-call; the call redials after this pause.
    Redialling {
        /// The URL of the server that failed.
        url: String,
        /// Where and why.
        failure: BackendFailure,
        /// Pause before the next attempt.
        pause: Duration,
    },
    /// The call goes on.
    Redialled {
        /// The new server's URL.
        url: String,
        /// Since the failure.
        after: Duration,
    },
    /// A server is from now on tried last by new calls.
    ServerFailing {
        /// Its URL.
        url: String,
        /// Why.
        why: String,
    },
    /// It works again.
    ServerRecovered {
        /// Its URL.
        url: String,
        /// Since its first failure.
        after: Duration,
    },
    /// The server sent no hello but audio or text: the call is up without one.
    NoServerHello(String),
    /// Audio was held for the device's first datagram, and dropped.
    HeldAudioDropped(usize),
    /// The device listens, but no datagram of it came.
    NoUdpAudio {
        /// Since the device began to listen.
        after: Duration,
        /// `host:port` it was told to send to.
        advertised: String,
    },
    /// The device's tools are known, or why not.
    ToolDiscovery(Result<usize, &'static str>),
}
