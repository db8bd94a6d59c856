//! The log texts of events and reasons.

use std::fmt;
use std::time::Duration;

use super::{BackendFailure, CloseReason, LogEvent, RefusedDatagrams, ToolCount};
use crate::text;

impl fmt::Display for BackendFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = self.stage.label();
        match self.cause {
            Some(cause) => write!(f, "{stage} failed: {} ({})", cause.words(), self.message),
            None => write!(f, "{stage} failed: {}", self.message),
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(code, why) => write!(f, "refused with return code {}: {why}", *code as u8),
            Self::ConnectTimeout => f.write_str("no CONNECT in time"),
            Self::KeepAlive => f.write_str("nothing received for 1.5 times the keep alive"),
            Self::Disconnected => f.write_str("the device disconnected"),
            Self::TakenOver => f.write_str("the same client id connected again"),
            Self::AtOtherGateway => f.write_str("the call is over, and the device is connected to another gateway"),
            Self::Displaced => f.write_str(
                "16 client ids with its MAC are connected, and another one has proved who it is, unlike this one",
            ),
            Self::Protocol(malformed) => write!(f, "protocol error: {malformed}"),
            Self::UnexpectedPacket(what) => write!(f, "protocol error: {what}"),
            Self::HelloVersion(found) => {
                let found = text::shown(found);
                write!(f, "hello with version {found}, only 3 is supported: update the device's firmware")
            }
            Self::SlowReader => f.write_str("the device does not read what it is sent"),
            Self::MemoryLimit => f.write_str("its buffers take more than its share of the memory"),
            Self::Shutdown => f.write_str("the gateway is stopping"),
            Self::Draining => f.write_str("the gateway is draining"),
            Self::Operator => f.write_str("disconnected by an operator"),
            Self::MacDenied(denial) => f.write_str(denial.reason()),
        }
    }
}

impl fmt::Display for RefusedDatagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, what) in [
            (self.foreign, "came from an address that is not the device's (udp.peer_policy)"),
            (self.length, "had a wrong length"),
            (self.flags, "had wrong flags"),
        ] {
            if count > 0 {
                write!(f, "; {count} datagrams of this call {what}")?;
            }
        }
        match self.last_from {
            Some(from) => write!(f, "; the last came from {from}"),
            None => Ok(()),
        }
    }
}

fn fmt_no_audio(
    after: Duration,
    advertised: Option<&str>,
    refused: &RefusedDatagrams,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let seconds = after.as_secs();
    write!(f, "no audio: no UDP packet arrived from the listening device within {seconds} s")?;
    if let Some(advertised) = advertised {
        write!(f, "; it was told to send to udp {advertised}")?;
    }
    write!(f, "{refused}")
}

impl fmt::Display for LogEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { resumed: false } => f.write_str("connected"),
            Self::Connected { resumed: true } => f.write_str("connected again, its call goes on"),
            Self::ConnectionLost { kept, why } => {
                write!(f, "connection lost in a call, kept for {} s: {why}", kept.as_secs())
            }
            Self::Resumed(after) => write!(f, "the call is resumed after {:.1} s", after.as_secs_f64()),
            Self::NotResumed(after) => {
                write!(f, "the call is not resumed: its connection was lost {:.1} s ago", after.as_secs_f64())
            }
            Self::CallStarted { session_id, url, after } => {
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
            Self::ServerGivenUp { url, failure, why } => {
                write!(f, "chat server {url}: {failure}; the call ends: {why}")
            }
            Self::ServerEndedCall { url, code, said } => {
                let code = code.map(|code| format!(" with code {code}")).unwrap_or_default();
                write!(f, "chat server {url} ended the call{code}: it said {}", text::quoted(said))
            }
            Self::Redialled { url, after } => {
                write!(f, "call goes on: server={url} gap={}ms", after.as_millis())
            }
            Self::ServerFailing { url, why } => {
                write!(f, "chat server {url} is failing ({why}); new calls try other servers first")
            }
            Self::ServerRecovered { url, after } => {
                write!(f, "chat server {url} works again after {} s", after.as_secs())
            }
            Self::NoServerHello(url) => {
                write!(f, "chat server {url} sent audio or text but no hello: the call starts without it")
            }
            Self::HeldAudioDropped(frames) => write!(
                f,
                "no UDP packet has arrived from the device, so {frames} audio frames for it were dropped: check that UDP reaches this gateway"
            ),
            Self::HeldAudioFull => f.write_str(
                "the chat server sent more audio than can wait for the device (five minutes, or the memory limit): the rest is dropped",
            ),
            Self::NoUdpAudio { after, advertised, refused } => {
                fmt_no_audio(*after, advertised.as_deref(), refused, f)
            }
            Self::ToolDiscovery(Ok(ToolCount { cached, forwarded: 0 })) => write!(f, "the device has {cached} tools"),
            Self::ToolDiscovery(Ok(ToolCount { cached, forwarded })) => write!(
                f,
                "the device has {} tools: the first {cached} are cached (mcp.max_tools_count), chat servers get the rest \
                 from the device",
                cached + forwarded
            ),
            Self::NoIpv4Address => f.write_str(
                "the device came over IPv6 and sends audio over IPv4 only, but this machine has no IPv4 address: set \
                 udp.public_ip to one or to a name at which devices reach it",
            ),
            Self::DeviceNotification(text) => write!(f, "the device reports {text}"),
            Self::ToolDiscovery(Err(why)) => {
                write!(f, "tool discovery failed ({why}): requests are forwarded to the device")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{BackendStage, DropReason, EndReason};
    use super::*;
    use crate::config::MacDenial;
    use crate::proto::mqtt::{ConnectReturnCode, Malformed};

    #[test]
    fn labels_are_stable() {
        assert_eq!(
            EndReason::ALL.map(EndReason::label),
            [
                "device_goodbye",
                "device_udp_timeout",
                "device_disconnected",
                "device_lost",
                "not_resumed",
                "device_not_in_call",
                "device_error",
                "replaced",
                "server_closed",
                "no_server",
                "server_lost",
                "idle",
                "overflow",
                "refused",
                "hello_limit",
                "shutdown",
                "operator",
                "device_abort",
                "peer_left",
                "unanswered",
                "peer_lost",
            ]
        );
        assert_eq!(
            DropReason::ALL.map(DropReason::label),
            [
                "short",
                "type",
                "length",
                "oversized",
                "empty",
                "flags",
                "unknown_ssrc",
                "duplicate",
                "late",
                "too_old",
                "jump",
                "foreign_source",
                "path_held",
                "no_server",
                "server_blocked",
                "no_peer",
                "peer_silent",
                "bad_frame",
                "held_full",
                "socket_full",
                "relay_full",
                "aborted",
                "ringing",
            ]
        );
        assert_eq!(
            BackendStage::ALL.map(BackendStage::label),
            ["resolve", "connect", "tls", "upgrade", "hello", "live", "shortage"]
        );
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
    }

    #[test]
    fn close_reasons_as_text() {
        for (reason, words) in [
            (
                CloseReason::Refused(ConnectReturnCode::BadCredentials, "no key"),
                "refused with return code 4: no key",
            ),
            (CloseReason::ConnectTimeout, "no CONNECT in time"),
            (CloseReason::KeepAlive, "nothing received for 1.5 times the keep alive"),
            (CloseReason::Disconnected, "the device disconnected"),
            (CloseReason::TakenOver, "the same client id connected again"),
            (CloseReason::AtOtherGateway, "the call is over, and the device is connected to another gateway"),
            (
                CloseReason::Displaced,
                "16 client ids with its MAC are connected, and another one has proved who it is, unlike this one",
            ),
            (CloseReason::Protocol(Malformed::Nul), "protocol error: a string holds U+0000"),
            (CloseReason::UnexpectedPacket("a second CONNECT"), "protocol error: a second CONNECT"),
            (
                CloseReason::HelloVersion("9".to_owned()),
                "hello with version 9, only 3 is supported: update the device's firmware",
            ),
            (CloseReason::SlowReader, "the device does not read what it is sent"),
            (CloseReason::MemoryLimit, "its buffers take more than its share of the memory"),
            (CloseReason::Shutdown, "the gateway is stopping"),
            (CloseReason::Draining, "the gateway is draining"),
            (CloseReason::Operator, "disconnected by an operator"),
            (CloseReason::MacDenied(MacDenial::Denied), "its MAC is in mqtt.denied_macs"),
            (CloseReason::MacDenied(MacDenial::NotAllowed), "its MAC is not in mqtt.allowed_macs"),
            (CloseReason::MacDenied(MacDenial::Operator), "an operator has denied it"),
        ] {
            assert_eq!(reason.to_string(), words);
        }
    }

    #[test]
    fn log_events_as_text() {
        let (after, pause) = (Duration::from_millis(12_345), Duration::from_millis(250));
        let url = || "ws://a/".to_owned();
        let failure = || BackendFailure::new(BackendStage::Tls, "expired");
        for (event, words) in [
            (LogEvent::Connected { resumed: false }, "connected"),
            (LogEvent::Connected { resumed: true }, "connected again, its call goes on"),
            (
                LogEvent::ConnectionLost { kept: after, why: CloseReason::Disconnected },
                "connection lost in a call, kept for 12 s: the device disconnected",
            ),
            (
                LogEvent::CallStarted { session_id: "s".into(), url: url(), after },
                "call begins: session=s server=ws://a/ answered_after=12345ms",
            ),
            (
                LogEvent::DialFailed { url: url(), failure: failure() },
                "chat server ws://a/: tls failed: its certificate has expired (expired)",
            ),
            (
                LogEvent::Redialling { url: url(), failure: failure(), pause },
                "chat server ws://a/: tls failed: its certificate has expired (expired); redialling in 250 ms",
            ),
            (
                LogEvent::ServerGivenUp { url: url(), failure: failure(), why: "enough" },
                "chat server ws://a/: tls failed: its certificate has expired (expired); the call ends: enough",
            ),
            (
                LogEvent::ServerEndedCall { url: url(), code: Some(4001), said: "再见\n\"a\"".into() },
                "chat server ws://a/ ended the call with code 4001: it said \"再见\\n\\\"a\\\"\"",
            ),
            (LogEvent::Redialled { url: url(), after }, "call goes on: server=ws://a/ gap=12345ms"),
            (
                LogEvent::ServerFailing { url: url(), why: "refused".to_owned() },
                "chat server ws://a/ is failing (refused); new calls try other servers first",
            ),
            (LogEvent::ServerRecovered { url: url(), after }, "chat server ws://a/ works again after 12 s"),
            (
                LogEvent::NoServerHello(url()),
                "chat server ws://a/ sent audio or text but no hello: the call starts without it",
            ),
            (
                LogEvent::HeldAudioDropped(7),
                "no UDP packet has arrived from the device, so 7 audio frames for it were dropped: check that UDP reaches this gateway",
            ),
            (
                LogEvent::NoUdpAudio {
                    after,
                    advertised: Some("192.0.2.1:8884".to_owned()),
                    refused: RefusedDatagrams::default(),
                },
                "no audio: no UDP packet arrived from the listening device within 12 s; it was told to send to udp 192.0.2.1:8884",
            ),
            (LogEvent::ToolDiscovery(Ok(ToolCount { cached: 3, forwarded: 0 })), "the device has 3 tools"),
            (
                LogEvent::ToolDiscovery(Ok(ToolCount { cached: 128, forwarded: 22 })),
                "the device has 150 tools: the first 128 are cached (mcp.max_tools_count), chat servers get the rest from the \
                 device",
            ),
            (LogEvent::DeviceNotification("x {}".into()), "the device reports x {}"),
            (
                LogEvent::ToolDiscovery(Err("the pages do not end")),
                "tool discovery failed (the pages do not end): requests are forwarded to the device",
            ),
        ] {
            assert_eq!(event.to_string(), words);
        }
    }
}
