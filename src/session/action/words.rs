//! What actions and reasons are called in logs and metrics.

use std::fmt;

use super::{Discard, EndReason, Failure, Note, Reason};

impl EndReason {
    /// Stable name, for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::DeviceGoodbye => "device_goodbye",
            Self::DeviceUdpTimeout => "device_udp_timeout",
            Self::DeviceDisconnected => "device_disconnected",
            Self::DeviceLost => "device_lost",
            Self::DeviceError => "device_error",
            Self::Replaced => "replaced",
            Self::ServerClosed => "server_closed",
            Self::NoServer => "no_server",
            Self::ServerLost => "server_lost",
            Self::Idle => "idle",
            Self::Overflow => "overflow",
            Self::Refused => "refused",
            Self::Shutdown => "shutdown",
            Self::Operator => "operator",
            Self::DeviceAbort => "device_abort",
            Self::PeerLeft => "peer_left",
            Self::Unanswered => "unanswered",
        }
    }
}

impl Discard {
    /// Stable name, for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Datagram(bad) => bad.label(),
            Self::UnknownSsrc => "unknown_ssrc",
            Self::Duplicate => "duplicate",
            Self::Late => "late",
            Self::TooOld => "too_old",
            Self::Jump => "jump",
            Self::ForeignSource => "foreign_source",
            Self::NoServer => "no_server",
            Self::ServerBlocked => "server_blocked",
            Self::NoPeer => "no_peer",
            Self::BadFrame => "bad_frame",
            Self::HeldFull => "held_full",
            Self::SocketFull => "socket_full",
            Self::Aborted => "aborted",
            Self::Ringing => "ringing",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {}", self.stage, self.why)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(code, why) => write!(f, "refused with return code {}: {why}", *code as u8),
            Self::ConnectTimeout => f.write_str("no CONNECT in time"),
            Self::KeepAlive => f.write_str("nothing heard for one and a half keep alives"),
            Self::Left => f.write_str("left"),
            Self::TakenOver => f.write_str("the same client id connected again"),
            Self::Protocol(malformed) => write!(f, "protocol error: {malformed}"),
            Self::OutOfPlace(what) => write!(f, "protocol error: {what}"),
            Self::HelloVersion(found) => {
                write!(f, "hello with version {found}, only 3 is known: update the device's firmware")
            }
            Self::SlowReader => f.write_str("the device does not read what it is sent"),
            Self::Shutdown => f.write_str("the gateway stops"),
            Self::Draining => f.write_str("the gateway drains"),
            Self::Operator => f.write_str("disconnected by an operator"),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { resumed: false } => f.write_str("connected"),
            Self::Connected { resumed: true } => f.write_str("connected again, its call goes on"),
            Self::Away(grace) => {
                write!(f, "connection lost in a call, kept for {} s", grace.as_secs())
            }
            Self::CallBegan { session_id, url, after } => {
                write!(
                    f,
                    "call begins: session={session_id} server={url} answered_after={}ms",
                    after.as_millis()
                )
            }
            Self::DialFailed { url, failure } => write!(f, "chat server {url}: {failure}"),
            Self::Redialling { url, failure, pause } => {
                write!(f, "chat server {url}: {failure}; redialling in {} ms", pause.as_millis())
            }
            Self::Redialled { url, after } => {
                write!(f, "call goes on: server={url} gap={}ms", after.as_millis())
            }
            Self::ServerFailing { url, why } => {
                write!(f, "chat server {url} fails, new calls try it last: {why}")
            }
            Self::ServerRecovered { url, after } => {
                write!(f, "chat server {url} works again after {} s", after.as_secs())
            }
            Self::NoServerHello(url) => {
                write!(f, "chat server {url} sent audio or text but no hello: taken as live")
            }
            Self::HeldDropped(frames) => write!(
                f,
                "the device has sent no datagram, so {frames} audio frames for it were dropped: check that UDP reaches this gateway"
            ),
            Self::Unheard { after, advertised } => write!(
                f,
                "no audio: the device listens but no datagram of it came in {} s; it was told to send to udp {advertised}",
                after.as_secs()
            ),
            Self::Tools(Ok(count)) => write!(f, "learned {count} tools of the device"),
            Self::Tools(Err(why)) => {
                write!(f, "the device's tools are not known ({why}): requests are forwarded")
            }
        }
    }
}
