//! What a call is granted: keys and ids from the system's random source, and where its audio goes.

use std::net::IpAddr;

use crate::config::PublicIp;
use crate::net::media::udp_drops::UdpDrops;
use crate::net::sessions::index::Index;
use crate::session::CallCredentials;

/// The random bytes of a grant: key, UUID, seed and ssrc.
const RANDOM: usize = 16 + 16 + 8 + 4;

/// A fresh grant, whose ssrc no other call has.
pub(crate) fn generate(index: &Index) -> Result<CallCredentials, getrandom::Error> {
    // All of it in one system call, but for an ssrc that is taken.
    let mut random = [0; RANDOM];
    getrandom::fill(&mut random)?;
    let mut grant = from_bytes(&random);
    while grant.ssrc == 0 || index.call(grant.ssrc).is_some() {
        grant.ssrc = getrandom::u32()?;
    }
    Ok(grant)
}

/// For a call that is refused since there are no random bytes: nothing in it is secret, and no call has its ssrc of 0.
pub(crate) fn without_keys() -> CallCredentials {
    CallCredentials { allowed: false, ..from_bytes(&[0; RANDOM]) }
}

fn from_bytes(bytes: &[u8; RANDOM]) -> CallCredentials {
    let mut rest = &bytes[..];
    let (key, uuid) = (take(&mut rest), take(&mut rest));
    let (seed, ssrc) = (u64::from_ne_bytes(take(&mut rest)), u32::from_ne_bytes(take(&mut rest)));
    let session_id = uuid::Builder::from_random_bytes(uuid).into_uuid().to_string().into_boxed_str();
    CallCredentials {
        ssrc,
        key,
        session_id,
        jitter_seed: seed,
        udp_host: Box::default(),
        udp_port: 0,
        allowed: true,
    }
}

/// The next `N` of as many bytes as all that are taken.
fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = bytes.split_at(N);
    *bytes = rest;
    std::array::from_fn(|i| taken[i])
}

/// The host a device is told to send its datagrams to. `local` is the address of ours that its connection reached.
pub(crate) fn udp_host(public_ip: &PublicIp, local: Option<IpAddr>) -> Box<str> {
    match public_ip {
        PublicIp::Auto => local.unwrap_or(IpAddr::from([127, 0, 0, 1])).to_string().into_boxed_str(),
        PublicIp::Ip(ip) => ip.to_string().into_boxed_str(),
        PublicIp::Host(host) => host.as_str().into(),
    }
}

/// What the operator of a device without sound should know of its datagrams, and look at.
pub(crate) fn describe_drops(sighting: &UdpDrops) -> String {
    match (sighting.datagrams, sighting.last) {
        (0, _) | (_, None) => {
            "nothing was seen from its address: check that this UDP port is open in every firewall \
            and forwarded by every router and tunnel, and that udp.public_ip is right"
                .to_owned()
        }
        (datagrams, Some(last)) => {
            format!("{datagrams} datagrams came from its address but were dropped, the last as {last}")
        }
    }
}
