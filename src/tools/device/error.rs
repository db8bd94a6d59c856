//! Errors of a simulated device.

use std::fmt::{self, Display};
use std::io;
use std::time::Duration;

/// The step a device has reached.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum DeviceStep {
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
    MqttConnection,
}

/// What was seen instead of what was expected.
#[derive(Debug)]
pub enum DeviceErrorKind {
    /// The system's error.
    Io(io::Error),
    /// No answer within this time.
    Timeout(Duration),
    /// The end of the connection.
    Closed,
    /// A CONNACK with this return code.
    LoginRefused(u8),
    /// Something else, in words: of the TLS library, or why an answer is not MQTT or cannot be used by a device.
    Other(String),
}

/// The step that failed and what was seen.
#[derive(Debug)]
pub struct DeviceError {
    /// The step that failed.
    pub step: DeviceStep,
    /// What was seen.
    pub kind: DeviceErrorKind,
}

impl DeviceError {
    pub(super) fn new(step: DeviceStep, kind: DeviceErrorKind) -> Self {
        Self { step, kind }
    }

    /// The same error, seen at another step.
    pub(super) fn at(self, step: DeviceStep) -> Self {
        Self { step, ..self }
    }

    pub(super) fn not_mqtt(step: DeviceStep, why: impl Display) -> Self {
        let what = format!("the answer is not MQTT as a gateway speaks it: {why}");
        Self { step, kind: DeviceErrorKind::Other(what) }
    }

    pub(super) fn io(step: DeviceStep, error: io::Error, waited: Duration) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        let kind = match error.kind() {
            _ if is_timeout(&error) => DeviceErrorKind::Timeout(waited),
            ConnectionReset | BrokenPipe if step != DeviceStep::Tcp => DeviceErrorKind::Closed,
            _ => DeviceErrorKind::Io(error),
        };
        Self { step, kind }
    }

    /// True when the gateway ended the connection.
    pub fn is_closed(&self) -> bool {
        matches!(self.kind, DeviceErrorKind::Closed)
    }
}

impl std::error::Error for DeviceError {}

impl Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.kind)
    }
}

impl Display for DeviceStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP connection",
            Self::Tls => "TLS",
            Self::Mqtt => "MQTT",
            Self::Login => "login",
            Self::Hello => "hello",
            Self::Udp => "UDP audio",
            Self::MqttConnection => "MQTT connection",
        })
    }
}

impl Display for DeviceErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Timeout(waited) => write!(f, "no answer within {:.1} s", waited.as_secs_f64()),
            Self::Closed => f.write_str("the other side closed the connection"),
            Self::LoginRefused(code) => write!(f, "refused with CONNACK {code}: {}", connack_text(*code)),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// MQTT 3.1.1 table 3.1.
fn connack_text(code: u8) -> &'static str {
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
