//! Which way the audio fails, judged from what was seen.
//!
//! A device sees little: its own packets leave, and packets come or do not. That audio comes proves both ways, because a
//! gateway learns where to send it from the audio it received. When none comes, only what the far side says in words
//! can tell the ways apart; where that is not enough, the verdict says that it does not know.

use std::net::{IpAddr, Ipv4Addr};

use crate::tools::addresses::is_private;
use crate::tools::step_report::StepState;

/// What was seen.
#[derive(Debug)]
pub(super) struct Evidence {
    /// The address MQTT was reached at.
    pub(super) host: IpAddr,
    /// The host the gateway told for audio, and the port.
    pub(super) advertised: String,
    pub(super) port: u16,
    /// The address of `advertised`.
    pub(super) target: Option<IpAddr>,
    /// Audio packets that came from there.
    pub(super) received: u64,
    /// Datagrams that came and were no audio packets.
    pub(super) malformed: u64,
    /// Gaps in the sequence of what came.
    pub(super) lost_down: u64,
    /// The system there said that no program listens on the port.
    pub(super) port_unreachable: bool,
    pub(super) udp_error: Option<String>,
    /// Whether audio came when it was sent to `host` instead; `None` when that was not tried.
    pub(super) received_via_host: Option<bool>,
    /// What the chat server recognised in the audio.
    pub(super) recognised_text: Option<String>,
    /// The echo chat server said that it heard nothing.
    pub(super) server_heard_nothing: bool,
    /// The chat server announced speech.
    pub(super) server_speaks: bool,
    /// An alert's or an error's words.
    pub(super) error_text: Option<String>,
    /// The gateway said goodbye before the end.
    pub(super) call_ended: bool,
    /// How the MQTT connection was lost, when it was.
    pub(super) connection_lost: Option<String>,
}

impl Default for Evidence {
    fn default() -> Self {
        Self {
            host: Ipv4Addr::UNSPECIFIED.into(),
            advertised: String::new(),
            port: 0,
            target: None,
            received: 0,
            malformed: 0,
            lost_down: 0,
            port_unreachable: false,
            udp_error: None,
            received_via_host: None,
            recognised_text: None,
            server_heard_nothing: false,
            server_speaks: false,
            error_text: None,
            call_ended: false,
            connection_lost: None,
        }
    }
}

/// Both ways, each with a sentence, and what to look at.
#[derive(Debug)]
pub(super) struct Diagnosis {
    pub(super) uplink: (StepState, String),
    pub(super) downlink: (StepState, String),
    pub(super) hints: Vec<String>,
}

/// The first thing that is certain decides.
pub(super) fn diagnose(evidence: &Evidence) -> Diagnosis {
    let there = format!("{} port {}", evidence.advertised, evidence.port);
    if evidence.received > 0 {
        return Diagnosis {
            uplink: (StepState::Ok, format!("the gateway received audio at {there}")),
            downlink: (StepState::Ok, format!("{} packets came", evidence.received)),
            hints: Vec::new(),
        };
    }
    if evidence.received_via_host == Some(true) {
        return Diagnosis {
            uplink: (
                StepState::Fail,
                format!("audio to {there} does not arrive; to {} it does", evidence.host),
            ),
            downlink: (StepState::Ok, format!("audio came when it was sent to {}", evidence.host)),
            hints: vec![format!(
                "Set udp.public_ip (PUBLIC_IP) of the gateway to {}, or whatever name devices reach it by; it tells them {}.",
                evidence.host, evidence.advertised
            )],
        };
    }
    if let Some(why) = uplink_failure(evidence, &there) {
        let down = (
            StepState::Unknown,
            "nothing came; without audio up the gateway cannot know where to send".into(),
        );
        return Diagnosis { uplink: (StepState::Fail, why), downlink: down, hints: uplink_hints(evidence) };
    }
    if evidence.malformed > 0 {
        return Diagnosis {
            uplink: (StepState::Unknown, format!("something at {there} answers, but not with audio")),
            downlink: (
                StepState::Fail,
                format!("{} datagrams came that are no audio packets", evidence.malformed),
            ),
            hints: vec![format!(
                "Does UDP port {} really lead to the gateway? A proxy or another program may answer there.",
                evidence.port
            )],
        };
    }
    if let Some(text) = &evidence.recognised_text {
        let up = (StepState::Ok, format!("the chat server reacted to the audio with \"{text}\""));
        return if evidence.server_speaks {
            let down = (StepState::Fail, "the chat server speaks, and no audio comes".into());
            Diagnosis { uplink: up, downlink: down, hints: downlink_hints(evidence) }
        } else {
            let down = (StepState::Unknown, "no audio came, but the chat server did not announce any".into());
            Diagnosis { uplink: up, downlink: down, hints: vec![silent_server_hint()] }
        };
    }
    inconclusive(evidence, &there)
}

/// A reason that is certain, or as good as.
fn uplink_failure(evidence: &Evidence, there: &str) -> Option<String> {
    if evidence.target.is_none() {
        let error = evidence.udp_error.as_deref().unwrap_or("no address");
        return Some(format!("the advertised {} cannot be used: {error}", evidence.advertised));
    }
    if evidence.port_unreachable {
        return Some(format!("no program listens at {there}: the host there says so"));
    }
    if let Some(error) = &evidence.udp_error {
        return Some(format!("audio cannot be sent to {there}: {error}"));
    }
    if evidence.server_heard_nothing {
        return Some(format!("the chat server heard nothing of the audio sent to {there}"));
    }
    if let Some(words) = evidence.error_text.as_deref().filter(|words| mentions_audio(words)) {
        return Some(format!("the gateway says: {words}"));
    }
    unreachable_from_outside(evidence).map(|why| format!("most likely: {why}"))
}

/// True of an alert that says that a device's audio does not arrive.
pub(super) fn mentions_audio(words: &str) -> bool {
    let words = words.to_lowercase();
    ["udp", "audio", "音频", "语音"].iter().any(|sign| words.contains(sign))
}

/// Why the advertised address cannot be the right one for a device that reaches MQTT at `host`.
fn unreachable_from_outside(evidence: &Evidence) -> Option<String> {
    let (target, host) = (evidence.target?, evidence.host);
    let advertised = &evidence.advertised;
    if target.is_unspecified() {
        Some(format!("the gateway advertises {advertised}, which is no address to send to"))
    } else if target.is_loopback() && !host.is_loopback() {
        Some(format!("the gateway advertises {advertised}, which is every device itself"))
    } else if is_private(target) && !is_private(host) && !host.is_loopback() {
        Some(format!(
            "the gateway advertises {advertised}, a private address, and is reached at the public {host}"
        ))
    } else {
        None
    }
}

fn inconclusive(evidence: &Evidence, there: &str) -> Diagnosis {
    let mut hints = uplink_hints(evidence);
    let (up, down);
    if let Some(lost) = &evidence.connection_lost {
        up = format!("not known: the MQTT connection was lost meanwhile ({lost})");
        down = "no audio came before that".into();
        hints = vec!["The gateway's log says why it closed the connection, if it did.".into()];
    } else if evidence.call_ended {
        let said = evidence.error_text.as_ref().map(|words| format!(": {words}")).unwrap_or_default();
        up = format!("not known: the gateway ended the call meanwhile{said}");
        down = "no audio came before that".into();
        hints = vec!["The gateway's log has a line for the end of the call, with the reason.".into()];
    } else if evidence.server_speaks {
        up = format!("not known: audio was sent to {there}, and nothing said that it arrived");
        down = "the chat server speaks, and no audio comes: up or down fails, and from here it cannot be told which".into();
        hints.extend(downlink_hints(evidence));
    } else {
        up = format!("not known: audio was sent to {there}, and nothing said that it arrived");
        down = "not known: no audio came, and the chat server did not say that it sends any".into();
        hints.push(silent_server_hint());
    }
    Diagnosis { uplink: (StepState::Unknown, up), downlink: (StepState::Unknown, down), hints }
}

fn silent_server_hint() -> String {
    "A chat server that only answers real speech says nothing to the probe's silence: run the gateway without a chat server (it echoes then) and probe again.".into()
}

fn uplink_hints(evidence: &Evidence) -> Vec<String> {
    let (advertised, port) = (&evidence.advertised, evidence.port);
    let mut hints = Vec::new();
    if evidence.target.is_none() || evidence.target != Some(evidence.host) {
        hints.push(format!(
            "public_ip: the gateway tells devices to send audio to {advertised}, while MQTT is reached at {}. Set udp.public_ip (PUBLIC_IP) to what devices reach.",
            evidence.host
        ));
    }
    if evidence.port_unreachable {
        hints.push(format!("Does {advertised} port {port} lead to the gateway? Its host answers, and no program listens on that UDP port there."));
    }
    hints.extend([
        format!("Firewall: UDP port {port} must be open at the gateway and in its cloud's security group, for UDP and not only for TCP."),
        format!("Container: the port must be published for UDP (-p {port}:{port}/udp)."),
        format!("Tunnel: one that carries only TCP does not carry audio; it needs a UDP tunnel for port {port} too."),
    ]);
    hints
}

fn downlink_hints(evidence: &Evidence) -> Vec<String> {
    vec![
        "Firewall: the one here must let answers from the gateway's UDP port in.".into(),
        format!(
            "Address: the answers must come from {} port {}. A gateway with several addresses, behind NAT or behind a UDP proxy may send them from another.",
            evidence.advertised, evidence.port
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_audio_evidence() -> Evidence {
        Evidence {
            host: [203, 0, 113, 7].into(),
            advertised: "203.0.113.7".into(),
            port: 8884,
            target: Some([203, 0, 113, 7].into()),
            ..Evidence::default()
        }
    }

    #[test]
    fn each_symptom_leads_to_its_diagnosis() {
        use StepState::{Fail, Ok, Unknown};
        let at = |ip: [u8; 4]| Evidence { target: Some(ip.into()), ..no_audio_evidence() };
        let words = |text: &str| Some(text.to_owned());
        let cases = [
            (Evidence { received: 3, ..no_audio_evidence() }, Ok, Ok, "received audio"),
            (
                Evidence { received: 3, port_unreachable: true, ..no_audio_evidence() },
                Ok,
                Ok,
                "received audio",
            ),
            (
                Evidence { received_via_host: Some(true), ..at([192, 168, 1, 2]) },
                Fail,
                Ok,
                "to 203.0.113.7 it does",
            ),
            (Evidence { received_via_host: Some(false), ..at([192, 168, 1, 2]) }, Fail, Unknown, "private"),
            (Evidence { target: None, ..no_audio_evidence() }, Fail, Unknown, "cannot be used"),
            (Evidence { port_unreachable: true, ..no_audio_evidence() }, Fail, Unknown, "no program listens"),
            (Evidence { udp_error: words("no route"), ..no_audio_evidence() }, Fail, Unknown, "no route"),
            (Evidence { server_heard_nothing: true, ..no_audio_evidence() }, Fail, Unknown, "heard nothing"),
            (
                Evidence { error_text: words("No UDP audio arrives"), ..no_audio_evidence() },
                Fail,
                Unknown,
                "the gateway says",
            ),
            (
                Evidence { error_text: words("Low battery"), ..no_audio_evidence() },
                Unknown,
                Unknown,
                "not known",
            ),
            (at([127, 0, 0, 1]), Fail, Unknown, "every device itself"),
            (at([10, 0, 0, 1]), Fail, Unknown, "private"),
            (at([100, 64, 0, 1]), Fail, Unknown, "private"),
            (at([0, 0, 0, 0]), Fail, Unknown, "no address"),
            (at([203, 0, 113, 8]), Unknown, Unknown, "not known"),
            (Evidence { malformed: 2, ..no_audio_evidence() }, Unknown, Fail, "not with audio"),
            (
                Evidence { recognised_text: words("hi"), server_speaks: true, ..no_audio_evidence() },
                Ok,
                Fail,
                "hi",
            ),
            (Evidence { recognised_text: words("hi"), ..no_audio_evidence() }, Ok, Unknown, "hi"),
            (Evidence { server_speaks: true, ..no_audio_evidence() }, Unknown, Unknown, "not known"),
            (Evidence { call_ended: true, ..no_audio_evidence() }, Unknown, Unknown, "ended the call"),
            (Evidence { connection_lost: words("reset"), ..no_audio_evidence() }, Unknown, Unknown, "reset"),
            (no_audio_evidence(), Unknown, Unknown, "not known"),
        ];
        for (evidence, up, down, says) in cases {
            let diagnosis = diagnose(&evidence);
            assert_eq!((diagnosis.uplink.0, diagnosis.downlink.0), (up, down), "{evidence:?}: {diagnosis:?}");
            assert!(diagnosis.uplink.1.contains(says), "{evidence:?}: {diagnosis:?}");
            let all_well = (up, down) == (Ok, Ok);
            assert_eq!(diagnosis.hints.is_empty(), all_well, "{evidence:?}: {diagnosis:?}");
        }
    }

    #[test]
    fn a_gateway_in_the_same_network_may_advertise_a_private_address() {
        let home = Evidence {
            host: [192, 168, 1, 2].into(),
            target: Some([192, 168, 1, 2].into()),
            ..no_audio_evidence()
        };
        assert_eq!(diagnose(&home).uplink.0, StepState::Unknown);
        let here = Evidence {
            host: [127, 0, 0, 1].into(),
            target: Some([192, 168, 1, 2].into()),
            ..no_audio_evidence()
        };
        assert_eq!(diagnose(&here).uplink.0, StepState::Unknown);
    }
}
