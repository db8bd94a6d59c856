//! What a core tells the shell: [`Action`]s, and the types they carry.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::call_report::{CallReport, CallSeries, SetupTimes};
pub use super::end_reasons::{BackendStage, EndReason};
use super::server_failure_cause::ServerCause;
use crate::config::{ChatServerConfig, MacDenial};
use crate::labels::labelled_enum;
use crate::proto::audio::BadDatagram;
use crate::proto::identity::Mac;
use crate::proto::mqtt::{ConnectReturnCode, Malformed};

mod display;

/// What the shell must do for a core.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// The device's credentials are valid. Look for an older connection with the same client id and check the connection limits,
    /// then call [`Core::on_admission`](super::Core::on_admission) or [`Core::take_over`](super::Core::take_over).
    Admit,
    /// Answer CONNECT with this code, after the delay imposed on addresses with failed logins. [`Action::CloseDevice`] follows.
    RefuseConnect(ConnectReturnCode),
    /// CONNACK 0.
    AcceptConnect,
    /// SUBACK with the code 0x00 for each filter.
    SubAck {
        /// The packet id of the SUBSCRIBE.
        packet_id: u16,
        /// The number of its filters.
        filters: usize,
    },
    /// UNSUBACK.
    UnsubAck(u16),
    /// PINGRESP.
    PingResp,
    /// Publish a JSON text to the device's own topic.
    Publish(String),
    /// The device sent a hello: generate [`CallCredentials`] and call [`Core::on_credentials`](super::Core::on_credentials).
    GenerateCredentials,
    /// Open a WebSocket to a chat server, and drop the previous one, if any.
    Dial(Box<DialRequest>),
    /// Send a text to the chat server.
    SendText(String),
    /// Send a WebSocket ping to the chat server.
    SendPing,
    /// Close the chat server's WebSocket with this code, or abandon the dial.
    CloseBackend(u16),
    /// Send an audio packet that was held.
    SendDatagram(Encrypted, Box<[u8]>),
    /// Drop the audio of this ssrc that is queued for the socket.
    FlushAudio(u32),
    /// The result of an operator's [`Core::send_command`](super::Core::send_command): exactly one for each command.
    CommandResult {
        /// The ticket of the command.
        ticket: u64,
        /// The device's result, raw JSON.
        result: Result<Box<str>, CommandError>,
    },
    /// The device has answered a command after its [`CommandError::Timeout`].
    LateCommandResult {
        /// The ticket of the command.
        ticket: u64,
        /// The device's result, raw JSON.
        result: Result<Box<str>, CommandError>,
    },
    /// A call has ended: release its ssrc and log the summary.
    CallEnded(Box<CallSummary>),
    /// Increment a counter.
    Count(Counter),
    /// Log an event.
    Log(LogEvent),
    /// Close the device's connection after its queued data is written. The session stays as long as its call.
    CloseDevice(CloseReason),
}

/// Why an operator's command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandError {
    /// The device is not connected, or its connection was lost before it answered.
    NotConnected,
    /// The device did not answer within `api.command_timeout_s`.
    Timeout,
    /// Too many commands are pending for this device.
    Busy,
    /// The device answered with an error, whose message this is.
    Device(Box<str>),
}

/// What the shell generates for each hello, from the system's random source.
#[derive(Clone, Debug)]
pub struct CallCredentials {
    /// Identifies the call's datagrams. Unique among the calls of this gateway.
    pub ssrc: u32,
    /// The AES-128 key of the call's audio.
    pub key: [u8; 16],
    /// A new UUID, used when the chat server sends no session id.
    pub session_id: Box<str>,
    /// The host that the device is told to send its datagrams to.
    pub udp_host: Box<str>,
    /// The port that the device is told to send its datagrams to.
    pub udp_port: u16,
    /// False if `max_calls` is reached or the random source failed. The device is told that the call is refused.
    pub allowed: bool,
}

/// The shell's answer to [`Action::Admit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Accepted.
    Accepted,
    /// `max_connections` is reached.
    ConnectionLimit,
    /// `max_connections_per_ip` is reached.
    PerIpLimit,
    /// As many client ids with this MAC are connected as are allowed.
    MacLimit,
}

/// The server to open a WebSocket to, and the request headers that depend on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct DialRequest {
    /// The chat server.
    pub server: Arc<ChatServerConfig>,
    /// The `device-id` header, also part of the token.
    pub mac: Mac,
    /// The `client-id` header, also part of the token: the uuid of the client id. A two-part id has none, so the header is sent only
    /// if a token is signed.
    pub client_id: Option<String>,
    /// Whether the token may be signed: not for a device that proved nothing while a signature key is set.
    pub sign_token: bool,
    /// The `x-forwarded-for` header: the device's address.
    pub forwarded_for: IpAddr,
    /// The `protocol-version` header: 1 for raw Opus, 2 for Opus with the 16-byte header.
    pub protocol_version: u8,
    /// Resolve the name again, since the server has just failed.
    pub skip_dns_cache: bool,
}

/// How a chat server's WebSocket, or the attempt to open it, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendClosed {
    /// The server sent a Close frame, with this code if it had one, and this reason, which may be empty.
    CloseFrame(Option<u16>, Box<str>),
    /// The connection ended or was reset without a Close frame: how, in words.
    NoCloseFrame(String),
    /// Anything else.
    Failed(BackendFailure),
}

/// Where a chat server failed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendFailure {
    /// How far it was.
    pub stage: BackendStage,
    /// What was seen, for a person to read.
    pub message: String,
    /// The likeliest cause, if the message tells one.
    pub cause: Option<ServerCause>,
}

impl BackendFailure {
    /// A failure at this stage.
    pub fn new(stage: BackendStage, message: impl Into<String>) -> Self {
        let message = message.into();
        let cause = if stage == BackendStage::Tls { ServerCause::of_tls(&message) } else { None };
        Self { stage, message, cause }
    }

    /// The same failure with its likeliest cause.
    #[must_use]
    pub fn with_cause(self, cause: Option<ServerCause>) -> Self {
        Self { cause: cause.or(self.cause), ..self }
    }
}

labelled_enum! {
    /// The state of a call.
    pub enum CallState {
        /// The chat server's WebSocket is being opened.
        Dialing => "dialing",
        /// The WebSocket is open, and the server's hello is awaited.
        AwaitingHello => "greeting",
        /// Both hellos were exchanged.
        Live => "live",
        /// The chat server was lost, and another WebSocket is opened after a pause.
        Redialing => "redialing",
        /// The chat server is closed, and another device is being called.
        Ringing => "ringing",
        /// The chat server is closed, and another device is connected.
        InDeviceCall => "bridged",
    }
}

/// The source of the device's datagrams, and the local address they arrive at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpPeer {
    /// The device's address, to which downlink audio is sent.
    pub addr: SocketAddr,
    /// The local address that the device sends to, if the system reports it. Downlink audio is sent from it.
    pub local_ip: Option<IpAddr>,
}

/// Packet, byte and loss counts of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallStats {
    /// Audio packets of the device that were passed to the chat server or to another device.
    #[serde(rename = "packetsUp")]
    pub up_packets: u64,
    /// Opus bytes in them.
    #[serde(rename = "bytesUp")]
    pub up_bytes: u64,
    /// Audio packets sent to the device.
    #[serde(rename = "packetsDown")]
    pub down_packets: u64,
    /// Opus bytes in them.
    #[serde(rename = "bytesDown")]
    pub down_bytes: u64,
    /// Uplink packets that never arrived.
    pub lost: u64,
    /// Uplink packets that arrived after a later one. They are dropped, since speech recognition needs them in order.
    pub reordered: u64,
    /// Uplink packets that arrived twice.
    pub duplicates: u64,
    /// Audio packets and frames that were dropped for other reasons, in both directions.
    pub dropped: u64,
    /// How often the call continued on a new WebSocket.
    pub redials: u32,
}

/// Datagrams with a call's ssrc that were refused: for the line that says why a call has no audio.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusedDatagrams {
    /// From an address that is not the device's.
    pub foreign: u32,
    /// Of a length that the header does not state.
    pub length: u32,
    /// With flags that are not those of the hello reply.
    pub flags: u32,
    /// Where the last one came from.
    pub last_from: Option<SocketAddr>,
}

impl RefusedDatagrams {
    /// Whether a datagram that was refused for this reason is one of these.
    pub(super) fn counts(reason: DropReason) -> bool {
        Self::default().counter(reason).is_some()
    }

    fn counter(&mut self, reason: DropReason) -> Option<&mut u32> {
        match reason {
            DropReason::ForeignSource | DropReason::PathHeld => Some(&mut self.foreign),
            DropReason::DatagramLength | DropReason::ShortDatagram => Some(&mut self.length),
            DropReason::DatagramFlags => Some(&mut self.flags),
            _ => None,
        }
    }

    /// Counts it.
    pub(super) fn count(&mut self, reason: DropReason, from: SocketAddr) {
        let Some(counter) = self.counter(reason) else { return };
        *counter += 1;
        // A wrong source says most.
        if self.foreign == 0 || matches!(reason, DropReason::ForeignSource | DropReason::PathHeld) {
            self.last_from = Some(from);
        }
    }
}

/// A datagram that is ready to be sent, in the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encrypted {
    /// Where to send it.
    pub destination: UdpPeer,
    /// Its length in bytes.
    pub datagram_len: usize,
}

/// A call that has ended, for its log line and the metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct CallSummary {
    /// The session id that the device was given, or would have been given.
    pub session_id: Box<str>,
    /// Why it ended.
    pub reason: EndReason,
    /// The time from the device's hello to the end.
    pub duration: Duration,
    /// Whether the device got its hello reply.
    pub answered: bool,
    /// The state at the end. A call with another device ends that device's call too.
    pub state: CallState,
    /// The last chat server.
    pub server: Option<Arc<ChatServerConfig>>,
    /// The ssrc to release.
    pub ssrc: Option<u32>,
    /// Packets, bytes and what went missing.
    pub stats: CallStats,
    /// The most that was lost at the end of any ten seconds, for a counter that never falls.
    pub settled_lost: u64,
    /// Its quality, and what was wrong with it.
    pub report: CallReport,
    /// The course of it.
    pub series: CallSeries,
}

/// Why a device's connection is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// CONNECT was refused.
    Refused(ConnectReturnCode, &'static str),
    /// It sent no CONNECT in time.
    ConnectTimeout,
    /// It sent nothing for 1.5 times its keep alive.
    KeepAlive,
    /// It sent DISCONNECT, or closed the connection.
    Disconnected,
    /// The same client id connected again.
    TakenOver,
    /// The call is over, and the device is connected to another gateway.
    AtOtherGateway,
    /// It has not proved who it is, and gives its place among the client ids with its MAC to a device that has.
    Displaced,
    /// It sent a malformed packet.
    Protocol(Malformed),
    /// It sent a packet that is not allowed here: which one.
    UnexpectedPacket(&'static str),
    /// It sent a hello with a version other than 3.
    HelloVersion(String),
    /// It does not read what it is sent.
    SlowReader,
    /// Its buffers take more than its share of the memory.
    MemoryLimit,
    /// The gateway is stopping.
    Shutdown,
    /// The gateway is draining, and the device has no call.
    Draining,
    /// An operator disconnected it.
    Operator,
    /// A reload no longer allows its MAC.
    MacDenied(MacDenial),
}

impl CloseReason {
    /// What an unexpected first packet was: a device whose endpoint has another port than the gateway.
    pub const TLS_ON_PLAIN_PORT: &'static str = "a TLS handshake on the port without TLS";
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
        /// A packet whose flags are not those of the nonce: the gateway's own packets, sent back to it, have others.
        DatagramFlags => "flags",
        /// No call has this ssrc.
        UnknownSsrc => "unknown_ssrc",
        /// A packet with this sequence was received before.
        Duplicate => "duplicate",
        /// A packet with a higher sequence was received before.
        Late => "late",
        /// Below the replay window.
        TooOld => "too_old",
        /// Too far ahead of the highest sequence.
        Jump => "jump",
        /// From an address that is not known as the device's.
        ForeignSource => "foreign_source",
        /// Kept until its source is taken for the device's. Then it is forwarded, otherwise it is dropped.
        PathHeld => "path_held",
        /// No chat server is connected.
        NoServer => "no_server",
        /// The chat server does not read what it is sent.
        ServerBlocked => "server_blocked",
        /// The device has sent no datagram yet, so its address is not known.
        NoPeer => "no_peer",
        /// For an address other than the device's MQTT address, from which no packet has come for too long.
        PeerSilent => "peer_silent",
        /// A binary frame that is not audio, or too long.
        BadFrame => "bad_frame",
        /// The queue of held audio is full.
        HeldFull => "held_full",
        /// The socket's queue is full.
        SocketFull => "socket_full",
        /// The worker that serves the other device of a call takes too little.
        RelayFull => "relay_full",
        /// The device sent abort.
        Aborted => "aborted",
        /// From a device that is calling another one; it gets silence in return.
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

/// Events that are only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    /// A payload from a device that is not a JSON object.
    BadDeviceText,
    /// A text from a chat server that is not a JSON object.
    BadServerText,
    /// A chat server repeated its hello during a call.
    RepeatedHello,
    /// An audio packet was dropped.
    Dropped(DropReason),
    /// A chat server failed at this stage.
    DialFailed(BackendStage),
    /// The device got its hello reply, after this time.
    Answered(SetupTimes),
    /// A call continued on a new WebSocket.
    Redialled,
    /// A device may not connect: it was refused at CONNECT, or disconnected by a reload.
    MacDenied(MacDenial),
    /// A device without a call sent a JSON-RPC notification.
    DeviceNotification,
}

/// A line for the log; the shell adds the session's prefix.
#[derive(Clone, Debug, PartialEq)]
pub enum LogEvent {
    /// A device was accepted.
    Connected {
        /// It continues the call of its lost connection.
        resumed: bool,
    },
    /// The connection was lost during a call.
    ConnectionLost {
        /// For how long the call is kept.
        kept: Duration,
        /// Why the connection is closed.
        why: CloseReason,
    },
    /// The device was away for this long, and is in the call again.
    Resumed(Duration),
    /// The call ends: the device, whose connection was lost so long ago, did not resume it.
    NotResumed(Duration),
    /// The device got its hello reply.
    CallStarted {
        /// The session id the device was given.
        session_id: Box<str>,
        /// The chat server's URL.
        url: String,
        /// Time since the device's hello.
        after: Duration,
    },
    /// The chat server could not be used for this call.
    DialFailed {
        /// Its URL.
        url: String,
        /// The stage and the cause.
        failure: BackendFailure,
    },
    /// The chat server failed during a call, which redials after this pause.
    Redialling {
        /// The URL of the server that failed.
        url: String,
        /// The stage and the cause.
        failure: BackendFailure,
        /// The pause before the next attempt.
        pause: Duration,
    },
    /// The chat server failed during a call, which ends.
    ServerGivenUp {
        /// The URL of the server that failed.
        url: String,
        /// The stage and the cause.
        failure: BackendFailure,
        /// Why it is not redialled.
        why: &'static str,
    },
    /// The chat server ended a call, and said this of it.
    ServerEndedCall {
        /// Its URL.
        url: String,
        /// The code of its Close frame.
        code: Option<u16>,
        /// Its words.
        said: Box<str>,
    },
    /// The call continues on a new WebSocket.
    Redialled {
        /// The new server's URL.
        url: String,
        /// Time since the failure.
        after: Duration,
    },
    /// A chat server started to fail: new calls try other servers first.
    ServerFailing {
        /// Its URL.
        url: String,
        /// The cause.
        why: String,
    },
    /// A chat server works again.
    ServerRecovered {
        /// Its URL.
        url: String,
        /// Time since its first failure.
        after: Duration,
    },
    /// The server sent audio or text but no hello in time: the call starts without it.
    NoServerHello(String),
    /// So many audio frames waited in vain for the device's first datagram.
    HeldAudioDropped(usize),
    /// Audio was dropped because five minutes of it, or as much as the memory allows, waited already. Once per call.
    HeldAudioFull,
    /// The device is listening, but no datagram of it was accepted.
    NoUdpAudio {
        /// Time since the device began to listen.
        after: Duration,
        /// The `host:port` that the device was told to send to; none when it has reached it before.
        advertised: Option<String>,
        /// Datagrams of the call that were refused.
        refused: RefusedDatagrams,
    },
    /// The number of the device's tools, or why they are not known.
    ToolDiscovery(Result<ToolCount, &'static str>),
    /// The device was reached over IPv6, and there is no IPv4 address that it could be told for its audio.
    NoIpv4Address,
    /// A device without a call sent this JSON-RPC notification: the method and its parameters.
    DeviceNotification(Box<str>),
}

/// The tools of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ToolCount {
    /// Those that are answered from the cache.
    pub cached: usize,
    /// Those on later pages, for which chat servers ask the device.
    pub forwarded: usize,
}
