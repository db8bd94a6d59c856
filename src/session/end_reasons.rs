//! Why calls end, who ends them, and how far a chat server was when it failed.

use crate::labels::labelled_enum;

labelled_enum! {
    /// Why a call ended: the log line and the metric label.
    pub enum EndReason {
        /// The device sent goodbye.
        DeviceGoodbye => "device_goodbye",
        /// The device reported that it receives no UDP audio.
        DeviceUdpTimeout => "device_udp_timeout",
        /// The device sent DISCONNECT.
        DeviceDisconnected => "device_disconnected",
        /// The device's connection was lost, and the device did not reconnect in time.
        DeviceLost => "device_lost",
        /// The device reconnected during the call, and did not show in time that it is still in it.
        NotResumed => "not_resumed",
        /// The device showed that it is in no call: its message had the session id "".
        DeviceNotInCall => "device_not_in_call",
        /// The device violated the protocol.
        DeviceError => "device_error",
        /// The device sent another hello, or another connection with its client id replaced it.
        Replaced => "replaced",
        /// The chat server closed its WebSocket normally, or sent goodbye.
        ServerClosed => "server_closed",
        /// No chat server answered the hello.
        NoServer => "no_server",
        /// The chat server was lost, and redialling was given up.
        ServerLost => "server_lost",
        /// Neither audio nor text for `call_idle_s`.
        Idle => "idle",
        /// A queue of text was full.
        Overflow => "overflow",
        /// `max_calls` was reached, or the random source failed.
        Refused => "refused",
        /// The device said hello more often than `mqtt.hello_limit` allows.
        HelloLimit => "hello_limit",
        /// The gateway is stopping.
        Shutdown => "shutdown",
        /// An operator ended the call.
        Operator => "operator",
        /// The device sent abort in a call with another device.
        DeviceAbort => "device_abort",
        /// The other device hung up or disconnected.
        PeerLeft => "peer_left",
        /// The called device did not answer.
        Unanswered => "unanswered",
        /// The worker that serves the other device ended or does not respond.
        PeerLost => "peer_lost",
    }
}

labelled_enum! {
    /// Who ended a call.
    pub enum EndedBy {
        /// The device, also by disappearing.
        Device => "device",
        /// The device that it talked to.
        OtherDevice => "other_device",
        /// The chat server, also by failing.
        Server => "server",
        /// The gateway: a limit, a time limit, or its end.
        Gateway => "gateway",
        /// A request to the management API, or a reload that no longer allows the device.
        Operator => "operator",
    }
}

impl EndReason {
    /// Who ended a call that ended for this reason.
    pub fn ended_by(self) -> EndedBy {
        match self {
            Self::DeviceGoodbye
            | Self::DeviceUdpTimeout
            | Self::DeviceDisconnected
            | Self::DeviceLost
            | Self::NotResumed
            | Self::DeviceNotInCall
            | Self::DeviceError
            | Self::Replaced
            | Self::DeviceAbort => EndedBy::Device,
            Self::ServerClosed | Self::NoServer | Self::ServerLost => EndedBy::Server,
            Self::Idle
            | Self::Overflow
            | Self::Refused
            | Self::HelloLimit
            | Self::Shutdown
            | Self::Unanswered
            | Self::PeerLost => EndedBy::Gateway,
            Self::Operator => EndedBy::Operator,
            Self::PeerLeft => EndedBy::OtherDevice,
        }
    }
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
