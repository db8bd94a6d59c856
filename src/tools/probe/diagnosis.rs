//! Which way the audio fails, judged from what was seen.
//!
//! A device sees little: its own packets leave, and packets come or do not. That audio comes proves both ways, because a
//! gateway learns where to send it from the audio it received. When none comes, only what the far side says in words
//! can tell the ways apart; where that is not enough, the verdict says that it does not know.

use std::net::{IpAddr, Ipv4Addr};

use super::report::State;

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
    pub(super) heard: u64,
    /// Datagrams that came and were no audio packets.
    pub(super) bad: u64,
    /// Gaps in the sequence of what came.
    pub(super) lost_down: u64,
    /// The system there said that no program listens on the port.
    pub(super) refused: bool,
    pub(super) udp_error: Option<String>,
    /// Whether audio came when it was sent to `host` instead; `None` when that was not tried.
    pub(super) heard_at_host: Option<bool>,
    /// What the chat server recognised in the audio.
    pub(super) recognised: Option<String>,
    /// The echo chat server said that it heard nothing.
    pub(super) nothing_heard: bool,
    /// The chat server announced speech.
    pub(super) speaks: bool,
    /// An alert's or an error's words.
    pub(super) complaint: Option<String>,
    /// The gateway said goodbye before the end.
    pub(super) ended: bool,
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
            heard: 0,
            bad: 0,
            lost_down: 0,
            refused: false,
            udp_error: None,
            heard_at_host: None,
            recognised: None,
            nothing_heard: false,
            speaks: false,
            complaint: None,
            ended: false,
            connection_lost: None,
        }
    }
}

/// Both ways, each with a sentence, and what to look at.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) up: (State, String),
    pub(super) down: (State, String),
    pub(super) hints: Vec<String>,
}

/// The first thing that is certain decides.
pub(super) fn judge(seen: &Evidence) -> Verdict {
    let there = format!("{} port {}", seen.advertised, seen.port);
    if seen.heard > 0 {
        return Verdict {
            up: (State::Ok, format!("the gateway received audio at {there}")),
            down: (State::Ok, format!("{} packets came", seen.heard)),
            hints: Vec::new(),
        };
    }
    if seen.heard_at_host == Some(true) {
        return Verdict {
            up: (State::Fail, format!("audio to {there} does not arrive; to {} it does", seen.host)),
            down: (State::Ok, format!("audio came when it was sent to {}", seen.host)),
            hints: vec![format!(
                "Set udp.public_ip (PUBLIC_IP) of the gateway to {}, or whatever name devices reach it by; it tells them {}.",
                seen.host, seen.advertised
            )],
        };
    }
    if let Some(why) = up_fails(seen, &there) {
        let down =
            (State::Unknown, "nothing came; without audio up the gateway cannot know where to send".into());
        return Verdict { up: (State::Fail, why), down, hints: up_hints(seen) };
    }
    if seen.bad > 0 {
        return Verdict {
            up: (State::Unknown, format!("something at {there} answers, but not with audio")),
            down: (State::Fail, format!("{} datagrams came that are no audio packets", seen.bad)),
            hints: vec![format!(
                "Does UDP port {} really lead to the gateway? A proxy or another program may answer there.",
                seen.port
            )],
        };
    }
    if let Some(text) = &seen.recognised {
        let up = (State::Ok, format!("the chat server reacted to the audio with \"{text}\""));
        return if seen.speaks {
            let down = (State::Fail, "the chat server speaks, and no audio comes".into());
            Verdict { up, down, hints: down_hints(seen) }
        } else {
            let down = (State::Unknown, "no audio came, but the chat server did not announce any".into());
            Verdict { up, down, hints: vec![silent_server()] }
        };
    }
    unclear(seen, &there)
}

/// A reason that is certain, or as good as.
fn up_fails(seen: &Evidence, there: &str) -> Option<String> {
    if seen.target.is_none() {
        let error = seen.udp_error.as_deref().unwrap_or("no address");
        return Some(format!("the advertised {} cannot be used: {error}", seen.advertised));
    }
    if seen.refused {
        return Some(format!("no program listens at {there}: the host there says so"));
    }
    if let Some(error) = &seen.udp_error {
        return Some(format!("audio cannot be sent to {there}: {error}"));
    }
    if seen.nothing_heard {
        return Some(format!("the chat server heard nothing of the audio sent to {there}"));
    }
    if let Some(words) = seen.complaint.as_deref().filter(|words| blames_audio(words)) {
        return Some(format!("the gateway says: {words}"));
    }
    unreachable_from_outside(seen).map(|why| format!("most likely: {why}"))
}

/// True of an alert that says that a device's audio does not arrive.
pub(super) fn blames_audio(words: &str) -> bool {
    let words = words.to_lowercase();
    ["udp", "audio", "音频", "语音"].iter().any(|sign| words.contains(sign))
}

/// Why the advertised address cannot be the right one for a device that reaches MQTT at `host`.
fn unreachable_from_outside(seen: &Evidence) -> Option<String> {
    let (target, host) = (seen.target?, seen.host);
    let advertised = &seen.advertised;
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

/// Addresses that lead nowhere from the internet (RFC 1918, RFC 6598, RFC 3927, RFC 4193, RFC 4291).
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let carrier_nat = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            ip.is_private() || ip.is_link_local() || carrier_nat
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

fn unclear(seen: &Evidence, there: &str) -> Verdict {
    let mut hints = up_hints(seen);
    let (up, down);
    if let Some(lost) = &seen.connection_lost {
        up = format!("not known: the MQTT connection was lost meanwhile ({lost})");
        down = "no audio came before that".into();
        hints = vec!["The gateway's log says why it closed the connection, if it did.".into()];
    } else if seen.ended {
        let said = seen.complaint.as_ref().map(|words| format!(": {words}")).unwrap_or_default();
        up = format!("not known: the gateway ended the call meanwhile{said}");
        down = "no audio came before that".into();
        hints = vec!["The gateway's log has a line for the end of the call, with the reason.".into()];
    } else if seen.speaks {
        up = format!("not known: audio was sent to {there}, and nothing said that it arrived");
        down = "the chat server speaks, and no audio comes: up or down fails, and from here it cannot be told which".into();
        hints.extend(down_hints(seen));
    } else {
        up = format!("not known: audio was sent to {there}, and nothing said that it arrived");
        down = "not known: no audio came, and the chat server did not say that it sends any".into();
        hints.push(silent_server());
    }
    Verdict { up: (State::Unknown, up), down: (State::Unknown, down), hints }
}

fn silent_server() -> String {
    "A chat server that only answers real speech says nothing to the probe's silence: run the gateway without a chat server (it echoes then) and probe again.".into()
}

fn up_hints(seen: &Evidence) -> Vec<String> {
    let (advertised, port) = (&seen.advertised, seen.port);
    let mut hints = Vec::new();
    if seen.target.is_none() || seen.target != Some(seen.host) {
        hints.push(format!(
            "public_ip: the gateway tells devices to send audio to {advertised}, while MQTT is reached at {}. Set udp.public_ip (PUBLIC_IP) to what devices reach.",
            seen.host
        ));
    }
    if seen.refused {
        hints.push(format!("Does {advertised} port {port} lead to the gateway? Its host answers, and no program listens on that UDP port there."));
    }
    hints.extend([
        format!("Firewall: UDP port {port} must be open at the gateway and in its cloud's security group, for UDP and not only for TCP."),
        format!("Container: the port must be published for UDP (-p {port}:{port}/udp)."),
        format!("Tunnel: one that carries only TCP does not carry audio; it needs a UDP tunnel for port {port} too."),
    ]);
    hints
}

fn down_hints(seen: &Evidence) -> Vec<String> {
    vec![
        "Firewall: the one here must let answers from the gateway's UDP port in.".into(),
        format!(
            "Address: the answers must come from {} port {}. A gateway with several addresses, behind NAT or behind a UDP proxy may send them from another.",
            seen.advertised, seen.port
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Evidence {
        Evidence {
            host: [203, 0, 113, 7].into(),
            advertised: "203.0.113.7".into(),
            port: 8884,
            target: Some([203, 0, 113, 7].into()),
            ..Evidence::default()
        }
    }

    #[test]
    fn each_sign_leads_to_its_verdict() {
        use State::{Fail, Ok, Unknown};
        let at = |ip: [u8; 4]| Evidence { target: Some(ip.into()), ..seen() };
        let words = |text: &str| Some(text.to_owned());
        let cases = [
            (Evidence { heard: 3, ..seen() }, Ok, Ok, "received audio"),
            (Evidence { heard: 3, refused: true, ..seen() }, Ok, Ok, "received audio"),
            (
                Evidence { heard_at_host: Some(true), ..at([192, 168, 1, 2]) },
                Fail,
                Ok,
                "to 203.0.113.7 it does",
            ),
            (Evidence { heard_at_host: Some(false), ..at([192, 168, 1, 2]) }, Fail, Unknown, "private"),
            (Evidence { target: None, ..seen() }, Fail, Unknown, "cannot be used"),
            (Evidence { refused: true, ..seen() }, Fail, Unknown, "no program listens"),
            (Evidence { udp_error: words("no route"), ..seen() }, Fail, Unknown, "no route"),
            (Evidence { nothing_heard: true, ..seen() }, Fail, Unknown, "heard nothing"),
            (
                Evidence { complaint: words("No UDP audio arrives"), ..seen() },
                Fail,
                Unknown,
                "the gateway says",
            ),
            (Evidence { complaint: words("Low battery"), ..seen() }, Unknown, Unknown, "not known"),
            (at([127, 0, 0, 1]), Fail, Unknown, "every device itself"),
            (at([10, 0, 0, 1]), Fail, Unknown, "private"),
            (at([100, 64, 0, 1]), Fail, Unknown, "private"),
            (at([0, 0, 0, 0]), Fail, Unknown, "no address"),
            (at([203, 0, 113, 8]), Unknown, Unknown, "not known"),
            (Evidence { bad: 2, ..seen() }, Unknown, Fail, "not with audio"),
            (Evidence { recognised: words("hi"), speaks: true, ..seen() }, Ok, Fail, "hi"),
            (Evidence { recognised: words("hi"), ..seen() }, Ok, Unknown, "hi"),
            (Evidence { speaks: true, ..seen() }, Unknown, Unknown, "not known"),
            (Evidence { ended: true, ..seen() }, Unknown, Unknown, "ended the call"),
            (Evidence { connection_lost: words("reset"), ..seen() }, Unknown, Unknown, "reset"),
            (seen(), Unknown, Unknown, "not known"),
        ];
        for (evidence, up, down, says) in cases {
            let verdict = judge(&evidence);
            assert_eq!((verdict.up.0, verdict.down.0), (up, down), "{evidence:?}: {verdict:?}");
            assert!(verdict.up.1.contains(says), "{evidence:?}: {verdict:?}");
            let all_well = (up, down) == (Ok, Ok);
            assert_eq!(verdict.hints.is_empty(), all_well, "{evidence:?}: {verdict:?}");
        }
    }

    #[test]
    fn a_gateway_in_the_same_network_may_advertise_a_private_address() {
        let home =
            Evidence { host: [192, 168, 1, 2].into(), target: Some([192, 168, 1, 2].into()), ..seen() };
        assert_eq!(judge(&home).up.0, State::Unknown);
        let here = Evidence { host: [127, 0, 0, 1].into(), target: Some([192, 168, 1, 2].into()), ..seen() };
        assert_eq!(judge(&here).up.0, State::Unknown);
    }
}
