//! Why a simulated device got no further, in words for the person who runs it.

use std::fmt::{self, Display};
use std::io;
use std::time::Duration;

/// How far the device came.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The TCP connection.
    Tcp,
    /// The TLS handshake.
    Tls,
    /// The first MQTT answer.
    Mqtt,
    /// The credentials.
    Login,
    /// The answer to the hello.
    Hello,
    /// The audio socket.
    Udp,
    /// The MQTT connection after login.
    Control,
}

/// What was seen instead of what was expected.
#[derive(Debug)]
pub enum Seen {
    /// The system's error.
    Io(io::Error),
    /// Nothing, for that long.
    Silence(Duration),
    /// The end of the connection.
    Closed,
    /// A CONNACK with this return code.
    Refused(u8),
    /// No TLS, in the words of the library: the certificate was refused, the other side does not speak TLS ..
    BadTls(String),
    /// Bytes that are no MQTT packet a server sends, or not in this place.
    NotMqtt(String),
    /// A hello reply that a device could not use.
    BadReply(String),
}

/// The step that failed and what was seen.
#[derive(Debug)]
pub struct Failure {
    /// The step that failed.
    pub step: Step,
    /// What was seen.
    pub seen: Seen,
}

impl Failure {
    pub(super) fn io(step: Step, error: io::Error, waited: Duration) -> Self {
        let seen = match error.kind() {
            _ if is_timeout(&error) => Seen::Silence(waited),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe if step != Step::Tcp => Seen::Closed,
            _ => Seen::Io(error),
        };
        Self { step, seen }
    }

    /// True when the gateway ended the connection.
    pub fn is_closed(&self) -> bool {
        matches!(self.seen, Seen::Closed)
    }
}

impl std::error::Error for Failure {}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.seen)
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP connection",
            Self::Tls => "TLS",
            Self::Mqtt => "MQTT",
            Self::Login => "login",
            Self::Hello => "hello",
            Self::Udp => "UDP audio",
            Self::Control => "MQTT connection",
        })
    }
}

impl Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Silence(waited) => write!(f, "no answer within {:.1} s", waited.as_secs_f64()),
            Self::Closed => f.write_str("the other side closed the connection"),
            Self::Refused(code) => write!(f, "refused with CONNACK {code}: {}", connack_words(*code)),
            Self::BadTls(what) => f.write_str(what),
            Self::NotMqtt(what) => write!(f, "the answer is not MQTT as a gateway speaks it: {what}"),
            Self::BadReply(what) => write!(f, "a device could not use the hello reply: {what}"),
        }
    }
}

/// MQTT 3.1.1 table 3.1.
fn connack_words(code: u8) -> &'static str {
    match code {
        0 => "accepted",
        1 => "unacceptable protocol version",
        2 => "client id rejected",
        3 => "server unavailable",
        4 => "bad user name or password",
        5 => "not authorised",
        _ => "a code MQTT 3.1.1 does not define",
    }
}

/// Both of the kinds that systems report when a socket's timeout is over.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
