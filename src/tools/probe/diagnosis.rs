//! Which direction of the audio fails, derived from what was observed.
//!
//! A device observes little: it sends packets, and receives packets or not. Received audio proves both directions, because
//! a gateway learns where to send from the audio it received. When none is received, only text from the gateway or the
//! chat server can tell the directions apart; where that is not enough, the diagnosis is "unknown".

use std::net::IpAddr;

use super::error_text;
use crate::proto::message::{self, Peek, Reader};
use crate::tools::addresses::is_private;
use crate::tools::device::PacketCounts;
use crate::tools::echo::NOTHING_HEARD;
use crate::tools::round_trip::RoundTripTest;
use crate::tools::step_report::StepState;

/// Where audio was sent.
#[derive(Clone, Debug)]
pub(super) struct AudioPath {
    /// The address MQTT was reached at.
    pub(super) host: IpAddr,
    /// The host the gateway advertised for audio, and the port.
    pub(super) advertised: String,
    pub(super) port: u16,
    /// The address of `advertised`.
    pub(super) target: Option<IpAddr>,
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    /// The test at the advertised address.
    pub(super) round_trip: RoundTripTest,
    pub(super) counts: PacketCounts,
    /// Whether audio arrived when it was sent to `host` instead; `None` when that was not tried.
    pub(super) received_via_host: Option<bool>,
    /// What the chat server said it recognised in the audio.
    pub(super) recognised_text: Option<String>,
    /// How the MQTT connection was lost, when it was.
    pub(super) connection_lost: Option<String>,
}

impl Evidence {
    /// The echo chat server reported that it received no audio.
    pub(super) fn server_heard_nothing(&self) -> bool {
        self.recognised_text.as_deref() == Some(NOTHING_HEARD)
    }

    /// The text of an alert or an error.
    pub(super) fn error_text(&self) -> Option<String> {
        self.round_trip.texts.iter().find_map(|(_, text)| error_text(text))
    }
}

/// The chat server announced speech.
pub(super) fn announces_speech(texts: &[(u32, String)]) -> bool {
    let is_start = |peek: Peek<'_>| peek.kind == "tts" && peek.state.as_deref() == Some("start");
    texts.iter().any(|(_, text)| message::peek(text, Reader::Device).is_ok_and(is_start))
}

/// Both directions, each with a sentence, and what to look at.
#[derive(Debug)]
pub(super) struct Diagnosis {
    pub(super) uplink: (StepState, String),
    pub(super) downlink: (StepState, String),
    pub(super) hints: Vec<String>,
}

impl Diagnosis {
    fn new(
        (uplink, up): (StepState, impl Into<String>),
        (downlink, down): (StepState, impl Into<String>),
        hints: Vec<String>,
    ) -> Self {
        Self { uplink: (uplink, up.into()), downlink: (downlink, down.into()), hints }
    }
}

/// The first thing that is certain decides.
pub(super) fn diagnose(path: &AudioPath, evidence: &Evidence) -> Diagnosis {
    use StepState::{Fail, Ok, Unknown};
    let AudioPath { host, advertised, port, .. } = path;
    let there = format!("{advertised} port {port}");
    if evidence.round_trip.received > 0 {
        let up = format!("the gateway received audio at {there}");
        return Diagnosis::new(
            (Ok, up),
            (Ok, format!("{} packets arrived", evidence.round_trip.received)),
            Vec::new(),
        );
    }
    if evidence.received_via_host == Some(true) {
        let up = format!("audio to {there} does not arrive; to {host} it does");
        let hint = format!(
            "Set udp.public_ip (PUBLIC_IP) of the gateway to {host}, or to a name that devices reach it by; it advertises {advertised}."
        );
        let down = format!("audio arrived when it was sent to {host}");
        return Diagnosis::new((Fail, up), (Ok, down), vec![hint]);
    }
    if let Some(why) = uplink_failure(path, evidence, &there) {
        let down = "nothing arrived; without uplink audio the gateway does not know where to send";
        return Diagnosis::new((Fail, why), (Unknown, down), path.uplink_hints(evidence));
    }
    if evidence.counts.malformed > 0 {
        let up = format!("something at {there} answers, but not with audio");
        let down = format!("{} datagrams arrived that are not audio packets", evidence.counts.malformed);
        let hint = format!(
            "Does UDP port {port} really lead to the gateway? A proxy or another program may answer there."
        );
        return Diagnosis::new((Unknown, up), (Fail, down), vec![hint]);
    }
    if let Some(text) = &evidence.recognised_text {
        let up = (Ok, format!("the chat server reacted to the audio with \"{text}\""));
        return if announces_speech(&evidence.round_trip.texts) {
            Diagnosis::new(up, (Fail, "the chat server speaks, but no audio arrives"), path.downlink_hints())
        } else {
            let down = "no audio arrived, but the chat server did not announce any";
            Diagnosis::new(up, (Unknown, down), vec![SILENT_SERVER_HINT.to_owned()])
        };
    }
    inconclusive(path, evidence, &there)
}

/// A reason that is certain, or nearly so.
fn uplink_failure(path: &AudioPath, evidence: &Evidence, there: &str) -> Option<String> {
    if path.target.is_none() {
        let error = evidence.round_trip.udp_error.as_deref().unwrap_or("no address");
        return Some(format!("the advertised {} cannot be used: {error}", path.advertised));
    }
    if evidence.round_trip.port_unreachable {
        return Some(format!("no program listens at {there}: the host reports the port unreachable"));
    }
    if let Some(error) = &evidence.round_trip.udp_error {
        return Some(format!("audio cannot be sent to {there}: {error}"));
    }
    if evidence.server_heard_nothing() {
        return Some(format!("the chat server heard nothing of the audio sent to {there}"));
    }
    if let Some(text) = evidence.error_text().filter(|text| mentions_audio(text)) {
        return Some(format!("the gateway says: {text}"));
    }
    path.unreachable_reason().map(|why| format!("most likely: {why}"))
}

/// Whether an alert says that a device's audio does not arrive.
pub(super) fn mentions_audio(text: &str) -> bool {
    let text = text.to_lowercase();
    ["udp", "audio", "音频", "语音"].iter().any(|sign| text.contains(sign))
}

fn inconclusive(path: &AudioPath, evidence: &Evidence, there: &str) -> Diagnosis {
    use StepState::Unknown;
    if let Some(lost) = &evidence.connection_lost {
        let up = format!("not known: the MQTT connection was lost meanwhile ({lost})");
        let hint = "The gateway's log says why it closed the connection, if it did.";
        return Diagnosis::new((Unknown, up), (Unknown, NO_AUDIO_BEFORE), vec![hint.into()]);
    }
    if evidence.round_trip.call_ended {
        let said = evidence.error_text().map(|text| format!(": {text}")).unwrap_or_default();
        let up = format!("not known: the gateway ended the call meanwhile{said}");
        return Diagnosis::new((Unknown, up), (Unknown, NO_AUDIO_BEFORE), vec![CALL_END_HINT.into()]);
    }
    let up = format!("not known: audio was sent to {there}, and nothing said that it arrived");
    let mut hints = path.uplink_hints(evidence);
    let down = if announces_speech(&evidence.round_trip.texts) {
        hints.extend(path.downlink_hints());
        "the chat server speaks, but no audio arrives: uplink or downlink fails, and it cannot be told from here which"
    } else {
        hints.push(SILENT_SERVER_HINT.to_owned());
        "not known: no audio arrived, and the chat server did not say that it sends any"
    };
    Diagnosis::new((Unknown, up), (Unknown, down), hints)
}

const NO_AUDIO_BEFORE: &str = "no audio arrived before that";
pub(super) const CALL_END_HINT: &str =
    "The gateway's log has a line for the end of the call, with the reason.";
const SILENT_SERVER_HINT: &str = "A chat server that only answers real speech does not answer the probe's silence: run the gateway without a chat server (it echoes then) and probe again.";

impl AudioPath {
    /// Why the advertised address cannot be the right one for a device that reaches MQTT at `host`.
    fn unreachable_reason(&self) -> Option<String> {
        let Self { advertised, host, .. } = self;
        let target = self.target?;
        let problem = if target.is_unspecified() {
            "which is not an address to send to".to_owned()
        } else if target.is_loopback() && !host.is_loopback() {
            "which is every device itself".to_owned()
        } else if is_private(target) && !is_private(*host) && !host.is_loopback() {
            format!("a private address, and is reached at the public {host}")
        } else {
            return None;
        };
        Some(format!("the gateway advertises {advertised}, {problem}"))
    }

    fn uplink_hints(&self, evidence: &Evidence) -> Vec<String> {
        let Self { host, advertised, port, target } = self;
        let mut hints = Vec::new();
        if *target != Some(*host) {
            hints.push(format!(
                "public_ip: the gateway tells devices to send audio to {advertised}, while MQTT is reached at {host}. Set udp.public_ip (PUBLIC_IP) to an address that devices reach."
            ));
        }
        if evidence.round_trip.port_unreachable {
            hints.push(format!("Does {advertised} port {port} lead to the gateway? Its host answers, but no program listens on that UDP port there."));
        }
        hints.extend([
            format!("Firewall: UDP port {port} must be open at the gateway and in its cloud's security group, for UDP and not only for TCP."),
            format!("Container: the port must be published for UDP (-p {port}:{port}/udp)."),
            format!("Tunnel: one that carries only TCP does not carry audio; it needs a UDP tunnel for port {port} too."),
        ]);
        hints
    }

    fn downlink_hints(&self) -> Vec<String> {
        let Self { advertised, port, .. } = self;
        vec![
            "Firewall: the one here must let answers from the gateway's UDP port in.".into(),
            format!(
                "Address: the answers must come from {advertised} port {port}. A gateway with several addresses, behind NAT or behind a UDP proxy may send them from another."
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(host: [u8; 4], target: Option<[u8; 4]>) -> AudioPath {
        let target = target.map(IpAddr::from);
        AudioPath { host: host.into(), advertised: "203.0.113.7".into(), port: 8884, target }
    }

    #[test]
    fn each_symptom_leads_to_its_diagnosis() {
        use StepState::{Fail, Ok, Unknown};
        let usual = Some([203, 0, 113, 7]);
        let words = |text: &str| Some(text.to_owned());
        let seen = |change: &dyn Fn(&mut Evidence)| {
            let mut evidence = Evidence::default();
            change(&mut evidence);
            evidence
        };
        let says = |text: &str| vec![(9, text.to_owned())];
        let speech = r#"{"type":"tts","state":"start"}"#;
        let cases = [
            (usual, seen(&|e| e.round_trip.received = 3), Ok, Ok, "received audio"),
            (
                usual,
                seen(&|e| {
                    e.round_trip.received = 3;
                    e.round_trip.port_unreachable = true
                }),
                Ok,
                Ok,
                "received audio",
            ),
            (
                Some([192, 168, 1, 2]),
                seen(&|e| e.received_via_host = Some(true)),
                Fail,
                Ok,
                "to 203.0.113.7 it does",
            ),
            (Some([192, 168, 1, 2]), seen(&|e| e.received_via_host = Some(false)), Fail, Unknown, "private"),
            (None, Evidence::default(), Fail, Unknown, "cannot be used"),
            (usual, seen(&|e| e.round_trip.port_unreachable = true), Fail, Unknown, "no program listens"),
            (usual, seen(&|e| e.round_trip.udp_error = words("no route")), Fail, Unknown, "no route"),
            (usual, seen(&|e| e.recognised_text = words(NOTHING_HEARD)), Fail, Unknown, "heard nothing"),
            (
                usual,
                seen(&|e| e.round_trip.texts = says(r#"{"type":"alert","message":"No UDP audio arrives"}"#)),
                Fail,
                Unknown,
                "the gateway says",
            ),
            (
                usual,
                seen(&|e| e.round_trip.texts = says(r#"{"type":"alert","message":"Low battery"}"#)),
                Unknown,
                Unknown,
                "not known",
            ),
            (Some([127, 0, 0, 1]), Evidence::default(), Fail, Unknown, "every device itself"),
            (Some([10, 0, 0, 1]), Evidence::default(), Fail, Unknown, "private"),
            (Some([100, 64, 0, 1]), Evidence::default(), Fail, Unknown, "private"),
            (Some([0, 0, 0, 0]), Evidence::default(), Fail, Unknown, "not an address"),
            (Some([203, 0, 113, 8]), Evidence::default(), Unknown, Unknown, "not known"),
            (usual, seen(&|e| e.counts.malformed = 2), Unknown, Fail, "not with audio"),
            (
                usual,
                seen(&|e| {
                    e.recognised_text = words("hi");
                    e.round_trip.texts = says(speech)
                }),
                Ok,
                Fail,
                "hi",
            ),
            (usual, seen(&|e| e.recognised_text = words("hi")), Ok, Unknown, "hi"),
            (usual, seen(&|e| e.round_trip.texts = says(speech)), Unknown, Unknown, "not known"),
            (usual, seen(&|e| e.round_trip.call_ended = true), Unknown, Unknown, "ended the call"),
            (usual, seen(&|e| e.connection_lost = words("reset")), Unknown, Unknown, "reset"),
            (usual, Evidence::default(), Unknown, Unknown, "not known"),
        ];
        for (target, evidence, up, down, expected) in cases {
            let diagnosis = diagnose(&path([203, 0, 113, 7], target), &evidence);
            assert_eq!((diagnosis.uplink.0, diagnosis.downlink.0), (up, down), "{evidence:?}: {diagnosis:?}");
            assert!(diagnosis.uplink.1.contains(expected), "{evidence:?}: {diagnosis:?}");
            let all_well = (up, down) == (Ok, Ok);
            assert_eq!(diagnosis.hints.is_empty(), all_well, "{evidence:?}: {diagnosis:?}");
        }
    }

    #[test]
    fn a_gateway_in_the_same_network_may_advertise_a_private_address() {
        for host in [[192, 168, 1, 2], [127, 0, 0, 1]] {
            let path = path(host, Some([192, 168, 1, 2]));
            assert_eq!(diagnose(&path, &Evidence::default()).uplink.0, StepState::Unknown);
        }
    }
}
