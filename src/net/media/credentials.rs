//! The credentials of a call: keys and ids from the system's random source, and the host for its audio.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use crate::config::{PublicIp, Udp};
use crate::net::media::steering::SsrcShare;
use crate::net::sessions::index::Index;
use crate::session::CallCredentials;

/// The random bytes of one call: key, UUID and ssrc.
const RANDOM_LEN: usize = 16 + 16 + 4;

/// Fresh credentials, with an ssrc of this share that no other call has.
pub(crate) fn generate(index: &Index, share: SsrcShare) -> Result<CallCredentials, getrandom::Error> {
    // One system call, unless the ssrc is in use.
    let mut random = [0; RANDOM_LEN];
    getrandom::fill(&mut random)?;
    let mut call = from_bytes(&random);
    loop {
        match share.ssrc(call.ssrc) {
            Some(ssrc) if ssrc != 0 && index.call(ssrc).is_none() => {
                return Ok(CallCredentials { ssrc, ..call });
            }
            _ => call.ssrc = getrandom::u32()?,
        }
    }
}

/// For a call that is refused because there are no random bytes. Nothing in it is secret, and no call has the ssrc 0.
pub(crate) fn without_keys() -> CallCredentials {
    CallCredentials { allowed: false, ..from_bytes(&[0; RANDOM_LEN]) }
}

fn from_bytes(bytes: &[u8; RANDOM_LEN]) -> CallCredentials {
    let mut rest = &bytes[..];
    let (key, uuid) = (take(&mut rest), take(&mut rest));
    let ssrc = u32::from_ne_bytes(take(&mut rest));
    let session_id = uuid::Builder::from_random_bytes(uuid).into_uuid().to_string().into_boxed_str();
    CallCredentials { ssrc, key, session_id, udp_host: Box::default(), udp_port: 0, allowed: true }
}

/// Takes the next `N` bytes.
fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = bytes.split_at(N);
    *bytes = rest;
    std::array::from_fn(|i| taken[i])
}

/// The host that a device must send its datagrams to. `local` is the local address of its MQTT connection. Never an IPv6
/// address, since no firmware sends to one; `None` if this machine has no other.
pub(crate) fn udp_host(udp: &Udp, local: impl FnOnce() -> Option<IpAddr>) -> Option<Box<str>> {
    match &udp.public_ip {
        PublicIp::Host(host) => return Some(host.as_str().into()),
        PublicIp::Ip(ip) if ip.to_canonical().is_ipv4() => return Some(ip.to_canonical().to_string().into()),
        PublicIp::Ip(_) | PublicIp::Auto => {}
    }
    let ip = match (local().unwrap_or(Ipv4Addr::LOCALHOST.into()), udp.host.to_canonical()) {
        (IpAddr::V4(ip), _) => ip,
        (local, _) if local.is_loopback() => Ipv4Addr::LOCALHOST,
        (_, IpAddr::V4(ip)) if !ip.is_unspecified() => ip,
        _ => local_address()?,
    };
    Some(ip.to_string().into())
}

/// The address this machine would send from; nothing is sent.
pub(crate) fn local_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // TEST-NET-1 (RFC 5737): connecting a datagram socket only asks the routing table.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(ip) if !ip.is_unspecified() => Some(ip),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_never_told_an_ipv6_address() {
        let here = local_address().map(|ip| ip.to_string());
        let here = here.as_deref();
        for (public_ip, bound, local, expected) in [
            ("auto", "0.0.0.0", "192.0.2.7", Some("192.0.2.7")),
            ("auto", "::", "2001:db8::7", here),
            ("auto", "::", "fe80::7", here),
            ("auto", "::", "::1", Some("127.0.0.1")),
            ("auto", "192.0.2.9", "2001:db8::7", Some("192.0.2.9")),
            ("2001:db8::1", "::", "192.0.2.7", Some("192.0.2.7")),
            ("2001:db8::1", "::", "2001:db8::7", here),
            ("::ffff:192.0.2.1", "::", "2001:db8::7", Some("192.0.2.1")),
            ("192.0.2.1", "::", "2001:db8::7", Some("192.0.2.1")),
            ("gw.example", "::", "2001:db8::7", Some("gw.example")),
        ] {
            let public_ip = match (public_ip, public_ip.parse()) {
                ("auto", _) => PublicIp::Auto,
                (_, Ok(ip)) => PublicIp::Ip(ip),
                (name, Err(_)) => PublicIp::Host(name.to_owned()),
            };
            let udp = Udp { public_ip, host: bound.parse().unwrap(), ..Udp::default() };
            let told = udp_host(&udp, || local.parse().ok());
            assert_eq!(told.as_deref(), expected, "{:?} {bound} {local}", udp.public_ip);
        }
    }
}
