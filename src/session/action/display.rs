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
            Self::Memory => f.write_str("it makes the gateway keep more than its share of the memory"),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proto::audio::BadDatagram;
    use crate::proto::mqtt::{ConnectCode, Malformed};

    #[test]
    fn names_in_metrics_are_stable() {
        use EndReason::*;
        let ends = [
            (DeviceGoodbye, "device_goodbye"),
            (DeviceUdpTimeout, "device_udp_timeout"),
            (DeviceDisconnected, "device_disconnected"),
            (DeviceLost, "device_lost"),
            (DeviceError, "device_error"),
            (Replaced, "replaced"),
            (ServerClosed, "server_closed"),
            (NoServer, "no_server"),
            (ServerLost, "server_lost"),
            (Idle, "idle"),
            (Overflow, "overflow"),
            (Refused, "refused"),
            (Shutdown, "shutdown"),
            (Operator, "operator"),
            (DeviceAbort, "device_abort"),
            (PeerLeft, "peer_left"),
            (Unanswered, "unanswered"),
        ];
        for (reason, label) in ends {
            assert_eq!(reason.label(), label);
        }
        let discards = [
            (Discard::Datagram(BadDatagram::Short), "short"),
            (Discard::UnknownSsrc, "unknown_ssrc"),
            (Discard::Duplicate, "duplicate"),
            (Discard::Late, "late"),
            (Discard::TooOld, "too_old"),
            (Discard::Jump, "jump"),
            (Discard::ForeignSource, "foreign_source"),
            (Discard::NoServer, "no_server"),
            (Discard::ServerBlocked, "server_blocked"),
            (Discard::NoPeer, "no_peer"),
            (Discard::BadFrame, "bad_frame"),
            (Discard::HeldFull, "held_full"),
            (Discard::SocketFull, "socket_full"),
            (Discard::Aborted, "aborted"),
            (Discard::Ringing, "ringing"),
        ];
        for (discard, label) in discards {
            assert_eq!(discard.label(), label);
        }
    }

    #[test]
    fn reasons_in_words() {
        for (reason, words) in [
            (Reason::Refused(ConnectCode::Credentials, "no key"), "refused with return code 4: no key"),
            (Reason::ConnectTimeout, "no CONNECT in time"),
            (Reason::KeepAlive, "nothing heard for one and a half keep alives"),
            (Reason::Left, "left"),
            (Reason::TakenOver, "the same client id connected again"),
            (Reason::Protocol(Malformed::Nul), "protocol error: a string holds U+0000"),
            (Reason::OutOfPlace("a second CONNECT"), "protocol error: a second CONNECT"),
            (
                Reason::HelloVersion("9".to_owned()),
                "hello with version 9, only 3 is known: update the device's firmware",
            ),
            (Reason::SlowReader, "the device does not read what it is sent"),
            (Reason::Memory, "it makes the gateway keep more than its share of the memory"),
            (Reason::Shutdown, "the gateway stops"),
            (Reason::Draining, "the gateway drains"),
            (Reason::Operator, "disconnected by an operator"),
        ] {
            assert_eq!(reason.to_string(), words);
        }
    }

    #[test]
    fn lines_of_the_log() {
        let (after, pause) = (Duration::from_millis(12_345), Duration::from_millis(250));
        let url = || "ws://a/".to_owned();
        let failure = || Failure { stage: "tls", why: "expired".to_owned() };
        for (note, words) in [
            (Note::Connected { resumed: false }, "connected"),
            (Note::Connected { resumed: true }, "connected again, its call goes on"),
            (Note::Away(after), "connection lost in a call, kept for 12 s"),
            (
                Note::CallBegan { session_id: "s".into(), url: url(), after },
                "call begins: session=s server=ws://a/ answered_after=12345ms",
            ),
            (Note::DialFailed { url: url(), failure: failure() }, "chat server ws://a/: tls failed: expired"),
            (
                Note::Redialling { url: url(), failure: failure(), pause },
                "chat server ws://a/: tls failed: expired; redialling in 250 ms",
            ),
            (Note::Redialled { url: url(), after }, "call goes on: server=ws://a/ gap=12345ms"),
            (
                Note::ServerFailing { url: url(), why: "refused".to_owned() },
                "chat server ws://a/ fails, new calls try it last: refused",
            ),
            (Note::ServerRecovered { url: url(), after }, "chat server ws://a/ works again after 12 s"),
            (
                Note::NoServerHello(url()),
                "chat server ws://a/ sent audio or text but no hello: taken as live",
            ),
            (
                Note::HeldDropped(7),
                "the device has sent no datagram, so 7 audio frames for it were dropped: check that UDP reaches this gateway",
            ),
            (
                Note::Unheard { after, advertised: "192.0.2.1:8884".to_owned() },
                "no audio: the device listens but no datagram of it came in 12 s; it was told to send to udp 192.0.2.1:8884",
            ),
            (Note::Tools(Ok(3)), "learned 3 tools of the device"),
            (
                Note::Tools(Err("its pages never end")),
                "the device's tools are not known (its pages never end): requests are forwarded",
            ),
        ] {
            assert_eq!(note.to_string(), words);
        }
    }
}
