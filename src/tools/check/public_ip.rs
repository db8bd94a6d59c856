//! Whether devices can reach the advertised audio address.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use super::report::Finding;
use crate::config::{PublicIp, Udp, unreachable_kind};
use crate::net::media::credentials::local_address;
use crate::net::ota::container_detection::is_container;
use crate::tools::addresses::is_private;
use crate::tools::step_report::StepState;

const SETTING_ADVICE: &str =
    "set PUBLIC_IP or udp.public_ip to the address at which devices reach this machine, or to \"auto\"";
/// How long a datagram to this machine may take, by way of a router that sends it back.
const SELF_TEST_TIMEOUT: Duration = Duration::from_millis(500);

/// A finding about `public_ip`; a failure comes with the general advice.
fn finding(state: StepState, detail: impl Into<String>) -> Finding {
    let finding = Finding::new("public_ip", state, detail);
    if state == StepState::Fail { finding.with_advice(SETTING_ADVICE) } else { finding }
}

/// Whether `public_ip` is plausible: devices can reach it, it resolves, and it belongs to this host or to a NAT before it.
pub(super) fn check_public_ip(udp: &Udp) -> Finding {
    match &udp.public_ip {
        PublicIp::Auto => {
            let here = local_address().map(|ip| format!(", here probably {ip}")).unwrap_or_default();
            finding(StepState::Ok, format!("auto: each device is told the address that it reached{here}"))
        }
        PublicIp::Ip(ip) => check_ip(&ip.to_string(), *ip, udp),
        PublicIp::Host(name) => check_host_name(name, udp),
    }
}

/// In a container's own network "auto" advertises an address that devices cannot reach.
pub(super) fn check_container(udp: &Udp) -> Option<Finding> {
    (is_container() && udp.public_ip == PublicIp::Auto).then(|| {
        let detail =
            "this is a container: unless it uses the host's network, \"auto\" is an address inside of it";
        finding(StepState::Warn, detail)
            .with_advice("set PUBLIC_IP to the host's address, or use network_mode: host")
    })
}

fn check_host_name(name: &str, udp: &Udp) -> Finding {
    let doubt = udp.public_ip.doubt();
    let mut addresses = match (name, udp.port).to_socket_addrs() {
        Ok(addresses) => addresses.map(|address| address.ip()),
        Err(error) => {
            return finding(StepState::Fail, format!("{name} does not resolve here: {error}")).with_advice(
                doubt.unwrap_or_else(|| "is the name spelt right, and does it exist?".to_owned()),
            );
        }
    };
    match addresses.find(IpAddr::is_ipv4) {
        Some(ip) => match (check_ip(&format!("{name} ({ip})"), ip, udp), doubt) {
            (found, Some(doubt)) if found.state != StepState::Fail => {
                finding(StepState::Warn, doubt).with_advice(SETTING_ADVICE)
            }
            (found, _) => found,
        },
        None => finding(StepState::Fail, format!("{name} has no IPv4 address, and devices use no other")),
    }
}

fn check_ip(shown: &str, ip: IpAddr, udp: &Udp) -> Finding {
    let IpAddr::V4(v4) = ip else {
        return finding(StepState::Fail, format!("{shown} is an IPv6 address, and devices use IPv4 only"));
    };
    if let Some(kind) = unreachable_kind(ip) {
        let detail = format!("{shown} is {kind}: no device outside this machine can send audio to it");
        return finding(StepState::Fail, detail);
    }
    let port = udp.port;
    let own = format!("{shown} is this machine's own");
    // No address but this machine's can be bound.
    match (UdpSocket::bind((ip, 0)).is_ok(), datagram_arrives(ip, udp)) {
        (true, Some(false)) => {
            let firewall = "through every firewall and security group; TCP alone is not enough";
            finding(StepState::Warn, format!("{own}, but a datagram to its UDP port {port} does not arrive"))
                .with_advice(format!("let UDP port {port} {firewall}"))
        }
        (true, _) => finding(StepState::Ok, own),
        (false, Some(true)) => {
            finding(StepState::Ok, format!("{shown}: a datagram to its UDP port {port} arrives here"))
        }
        (false, _) => check_behind_nat(shown, v4, port),
    }
}

/// An address that is not this machine's, and from which no datagram came back.
fn check_behind_nat(shown: &str, ip: Ipv4Addr, port: u16) -> Finding {
    if let Some(doubt) = PublicIp::Ip(ip.into()).doubt() {
        return finding(StepState::Fail, doubt);
    }
    let here = local_address();
    let inner = here.map_or_else(|| "unknown".to_owned(), |ip| ip.to_string());
    let forward = format!(
        "the router, or the container's host, must forward UDP port {port} to this machine ({inner})"
    );
    let probe = "run `mqtt-websocket-proxy probe` from outside: it says whether audio gets through";
    if here.is_some_and(|here| is_private(here.into())) && !is_private(ip.into()) {
        let detail = format!("{shown} is not this machine's own ({inner}): plausible behind NAT");
        return finding(StepState::Ok, detail).with_advice(forward).with_advice(probe);
    }
    finding(StepState::Warn, format!("{shown} is not an address of this machine ({inner})"))
        .with_advice(SETTING_ADVICE)
        .with_advice(format!("if it is right, {forward}"))
        .with_advice(probe)
}

/// Whether a datagram to the audio port of `ip` arrives at the audio socket of this machine; `None` when that cannot be
/// tried, for the gateway itself runs.
fn datagram_arrives(ip: IpAddr, udp: &Udp) -> Option<bool> {
    let receiver = UdpSocket::bind((udp.host, udp.port)).ok()?;
    let port = receiver.local_addr().ok()?.port();
    receiver.set_read_timeout(Some(SELF_TEST_TIMEOUT / 5)).ok()?;
    let sender = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    let words = format!("check {} {:?}", std::process::id(), Instant::now());
    let until = Instant::now() + SELF_TEST_TIMEOUT;
    let mut buffer = [0; 256];
    while Instant::now() < until {
        if sender.send_to(words.as_bytes(), SocketAddr::new(ip, port)).is_err() {
            return Some(false);
        }
        match receiver.recv_from(&mut buffer) {
            Ok((length, _)) if buffer[..length] == *words.as_bytes() => return Some(true),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // On some systems this is an ICMP error for the last datagram.
            Err(_) => std::thread::sleep(SELF_TEST_TIMEOUT / 10),
        }
    }
    Some(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn checked(public_ip: &str) -> Finding {
        let public_ip = match public_ip.parse() {
            Ok(ip) => PublicIp::Ip(ip),
            Err(_) => PublicIp::Host(public_ip.to_owned()),
        };
        check_public_ip(&Udp { public_ip, port: 0, ..Udp::default() })
    }

    #[test]
    fn unusable_addresses_fail_with_their_kind() {
        for (ip, part) in [
            ("127.0.0.1", "a loopback address"),
            ("127.1.2.3", "a loopback address"),
            ("localhost", "localhost (127.0.0.1) is a loopback address"),
            ("0.0.0.0", "the unspecified address"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("203.0.113.77", "for examples"),
            ("169.254.1.1", "link-local"),
            ("::1", "IPv6"),
            ("no-such-host.invalid", "does not resolve"),
        ] {
            let finding = checked(ip);
            assert_eq!(finding.state, StepState::Fail, "{ip}: {}", finding.detail);
            assert!(finding.detail.contains(part) && !finding.advice.is_empty(), "{ip}: {}", finding.detail);
        }
    }

    #[test]
    fn a_local_address_is_accepted_and_verified_with_a_datagram() {
        if let Some(ip) = local_address() {
            let finding = checked(&ip.to_string());
            assert_eq!(finding.state, StepState::Ok, "{}", finding.detail);
            assert!(finding.detail.contains("this machine's own"), "{}", finding.detail);
        }
        let here = Udp { port: 0, ..Udp::default() };
        assert_eq!(datagram_arrives(Ipv4Addr::LOCALHOST.into(), &here), Some(true));
        let taken = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let busy = Udp { port: taken.local_addr().unwrap().port(), ..Udp::default() };
        assert_eq!(datagram_arrives(Ipv4Addr::LOCALHOST.into(), &busy), None);
    }
}
