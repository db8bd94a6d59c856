//! Recent errors with advice, for `GET /api/errors` and the dashboard.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::json;

use crate::session::{EndReason, LogEvent};
use crate::text;

/// Kept of each kind, so that a frequent one does not push out a rare one.
const MAX_PER_KIND: usize = 8;
/// Bytes of a sentence, before escapes.
const MAX_MESSAGE_BYTES: usize = 800;

/// What kind of error it is. Serializes as its stable code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecentErrorKind {
    /// A chat server cannot be used.
    ServerFailing,
    /// A chat server ended a call, and said why.
    #[serde(rename = "server_ended_call")]
    ServerEndedCall,
    /// A chat server says no hello.
    NoServerHello,
    /// No datagram of a listening device comes.
    NoAudio,
    /// A device that never sent a datagram cannot be sent audio.
    AudioDropped,
    /// A call found no chat server.
    NoServer,
    /// A call lost its chat server and found no other.
    ServerLost,
    /// A device in a call was lost.
    DeviceLost,
    /// A device heard no UDP.
    UdpTimeout,
    /// Text was not read.
    #[serde(rename = "overflow")]
    TextOverflow,
    /// There were too many calls.
    TooManyCalls,
    /// There were too many devices.
    TooManyDevices,
    /// A device's login was refused.
    LoginRefused,
    /// A TLS handshake on the port without TLS.
    TlsOnPlainPort,
    /// A TLS handshake has failed.
    TlsFailed,
    /// A device that asked for its settings was refused.
    OtaRefused,
    /// The OTA server behind this gateway has failed.
    OtaUpstreamFailed,
    /// Two devices use one client id.
    DuplicateClientId,
    /// A device without a call reported something of its own accord.
    DeviceNotification,
    /// A device speaks another version.
    HelloVersion,
    /// The system takes no connection.
    #[serde(rename = "cannot_accept")]
    AcceptFailed,
    /// A changed configuration is not allowed.
    ReloadRefused,
    /// A setting is doubtful.
    #[serde(rename = "setting")]
    SuspectSetting,
}

impl RecentErrorKind {
    /// Every kind.
    #[cfg(test)]
    pub(super) const ALL: [Self; 23] = [
        Self::ServerFailing,
        Self::ServerEndedCall,
        Self::NoServerHello,
        Self::NoAudio,
        Self::AudioDropped,
        Self::NoServer,
        Self::ServerLost,
        Self::DeviceLost,
        Self::UdpTimeout,
        Self::TextOverflow,
        Self::TooManyCalls,
        Self::TooManyDevices,
        Self::LoginRefused,
        Self::TlsOnPlainPort,
        Self::TlsFailed,
        Self::OtaRefused,
        Self::OtaUpstreamFailed,
        Self::DuplicateClientId,
        Self::DeviceNotification,
        Self::HelloVersion,
        Self::AcceptFailed,
        Self::ReloadRefused,
        Self::SuspectSetting,
    ];

    /// The code as a text.
    #[cfg(test)]
    pub(super) fn code(self) -> String {
        json!(self).as_str().unwrap_or_default().to_owned()
    }

    /// The kind of a log event; `None` when it is not an error.
    pub fn from_log_event(note: &LogEvent) -> Option<Self> {
        match note {
            LogEvent::ServerFailing { .. } => Some(Self::ServerFailing),
            // 1000 and none are ordinary ends.
            LogEvent::ServerEndedCall { code: Some(1001..), .. } => Some(Self::ServerEndedCall),
            LogEvent::NoServerHello(_) => Some(Self::NoServerHello),
            LogEvent::NoUdpAudio { .. } => Some(Self::NoAudio),
            LogEvent::NoIpv4Address => Some(Self::NoAudio),
            LogEvent::DeviceNotification(_) => Some(Self::DeviceNotification),
            LogEvent::HeldAudioDropped(_) | LogEvent::HeldAudioFull => Some(Self::AudioDropped),
            _ => None,
        }
    }

    /// The kind and sentence of a call's end; `None` when it is an ordinary one.
    pub fn from_end_reason(reason: EndReason) -> Option<(Self, &'static str)> {
        let (kind, sentence) = match reason {
            EndReason::NoServer => (Self::NoServer, "no chat server could be reached for a call"),
            EndReason::ServerLost => {
                (Self::ServerLost, "a call lost its chat server, and redialling was given up")
            }
            EndReason::DeviceLost => {
                (Self::DeviceLost, "the device was lost in a call and did not come back in time")
            }
            EndReason::DeviceUdpTimeout => {
                (Self::UdpTimeout, "the device ended a call because it heard no UDP")
            }
            EndReason::Overflow => (Self::TextOverflow, "a call ended because its text was not read"),
            _ => return None,
        };
        Some((kind, sentence))
    }

    /// What to look at.
    fn advice(self) -> &'static str {
        match self {
            Self::ServerFailing | Self::NoServer | Self::ServerLost => {
                "Is the chat server up, and is its URL right? The sub-command check dials every one and says what is wrong."
            }
            Self::ServerEndedCall => "The chat server said why: its own log says more.",
            Self::NoServerHello => {
                "The call goes on. The chat server should answer a hello with its own: look at the path in its URL."
            }
            Self::NoAudio | Self::AudioDropped | Self::UdpTimeout => {
                "Open the UDP port in every firewall and security group, publish it with /udp in Docker, and set \
                 udp.public_ip to an address that the device reaches. A tunnel that carries only TCP carries no sound."
            }
            Self::DeviceLost => "Look at the device's Wi-Fi and power.",
            Self::TextOverflow => {
                "The device or the chat server did not read its text: look at the line between, and at its load."
            }
            Self::TooManyCalls => "Raise websocket.max_calls, or set it to 0 for no limit.",
            Self::TooManyDevices => "Raise mqtt.max_connections or mqtt.max_connections_per_ip.",
            Self::LoginRefused => {
                "The key here (mqtt.signature_key) and where credentials are issued must be the same."
            }
            Self::TlsOnPlainPort => {
                "A device whose endpoint is HOST:1883 uses no TLS; one whose endpoint is HOST or HOST:8883 does. Correct the endpoint in the OTA answer, or set mqtt.tls."
            }
            Self::TlsFailed => {
                "`mqtt-websocket-proxy probe HOST --tls` says why devices refuse the certificate. A device without TLS needs the endpoint HOST:1883."
            }
            Self::OtaRefused => {
                "If it is one of yours, name its MAC in ota.macs, or its network in ota.allow."
            }
            Self::OtaUpstreamFailed => {
                "Is the server of ota.upstream up, and is its URL right? Devices work meanwhile, but get no activation and no firmware update."
            }
            Self::DuplicateClientId => {
                "Give each device credentials of its own: a copied flash or configuration holds those of another device."
            }
            Self::DeviceNotification => "No error: devices report events of their own accord.",
            Self::HelloVersion => "Update the device's firmware.",
            Self::AcceptFailed => {
                "Raise the limit of open files: ulimit -n, or LimitNOFILE in the systemd unit."
            }
            Self::ReloadRefused => {
                "The settings before are still in force. Correct the file; it is read again when saved."
            }
            Self::SuspectSetting => "Change the setting if this is not meant.",
        }
    }
}

/// An error and how often it occurred, as `GET /api/errors` shows it.
#[derive(Debug, Serialize)]
struct RecentError {
    /// What to look at.
    advice: &'static str,
    /// Milliseconds since 1970, of the last time.
    at: u64,
    code: RecentErrorKind,
    /// The device's client id, or the address of one that has none.
    device: Option<Box<str>>,
    /// What happened.
    sentence: Box<str>,
    /// How often the same error occurred.
    times: u32,
}

/// The last few of each kind.
#[derive(Debug, Default)]
pub struct RecentErrors(VecDeque<RecentError>);

impl RecentErrors {
    /// Records one; beyond the limit the oldest of its kind is dropped.
    pub fn record(&mut self, at: u64, kind: RecentErrorKind, device: Option<&str>, sentence: &str) {
        let sentence = text::printable(sentence, MAX_MESSAGE_BYTES);
        let of_kind = |error: &RecentError| error.code == kind;
        let same = self.0.iter().position(|known| {
            of_kind(known) && known.device.as_deref() == device && *known.sentence == *sentence
        });
        let full = self.0.iter().filter(|known| of_kind(known)).count() >= MAX_PER_KIND;
        let leaves = same.or_else(|| self.0.iter().position(of_kind).filter(|_| full));
        let left = leaves.and_then(|place| self.0.remove(place));
        let times = match (same, left) {
            (Some(_), Some(left)) => left.times.saturating_add(1),
            _ => 1,
        };
        let (device, sentence) = (device.map(Box::from), sentence.into());
        self.0.push_back(RecentError { advice: kind.advice(), at, code: kind, device, sentence, times });
    }

    /// What `GET /api/errors` answers: the newest first.
    pub fn to_json(&self) -> String {
        json!({ "errors": self.0.iter().rev().collect::<Vec<_>>() }).to_string()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn listed(errors: &RecentErrors) -> Vec<Value> {
        let answer: Value = serde_json::from_str(&errors.to_json()).unwrap();
        answer["errors"].as_array().unwrap().clone()
    }

    #[test]
    fn the_newest_comes_first_and_a_frequent_kind_does_not_evict_the_others() {
        let mut errors = RecentErrors::default();
        errors.record(1, RecentErrorKind::ServerFailing, None, "ws://a fails");
        for i in 0..100 {
            errors.record(2 + i, RecentErrorKind::NoServer, Some(&format!("device-{i}")), "no server");
        }
        let listed_errors = listed(&errors);
        assert_eq!(listed_errors.len(), MAX_PER_KIND + 1);
        assert_eq!(
            (&listed_errors[0]["device"], &listed_errors[0]["at"]),
            (&"device-99".into(), &101.into())
        );
        assert_eq!(listed_errors[MAX_PER_KIND]["code"], "server_failing");
        assert_eq!(listed_errors[MAX_PER_KIND]["device"], Value::Null);
    }

    #[test]
    fn repetitions_are_counted_and_messages_are_bounded() {
        let mut errors = RecentErrors::default();
        for at in 1..=3 {
            errors.record(at, RecentErrorKind::NoAudio, Some("a"), &"长".repeat(1000));
        }
        errors.record(4, RecentErrorKind::NoAudio, Some("b"), "x\n\u{85}\u{202e}");
        let listed_errors = listed(&errors);
        assert_eq!(listed_errors.len(), 2);
        assert_eq!((&listed_errors[1]["times"], &listed_errors[1]["at"]), (&3.into(), &3.into()));
        assert_eq!(listed_errors[1]["sentence"].as_str().unwrap().len(), MAX_MESSAGE_BYTES / 3 * 3);
        assert_eq!(listed_errors[0]["sentence"], "x\\n\\u{85}\\u{202e}");
    }

    #[test]
    fn every_kind_has_a_unique_code_and_advice() {
        let codes: BTreeSet<_> = RecentErrorKind::ALL.iter().map(|kind| kind.code()).collect();
        assert_eq!(codes.len(), RecentErrorKind::ALL.len());
        assert!(RecentErrorKind::ALL.iter().all(|kind| kind.advice().ends_with('.')));
    }
}
