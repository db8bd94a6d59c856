//! The credentials of a call: keys and ids from the system's random source, and the host for its audio.

use std::net::IpAddr;

use crate::config::PublicIp;
use crate::net::sessions::index::Index;
use crate::session::CallCredentials;

/// The random bytes of one call: key, UUID, seed and ssrc.
const RANDOM_LEN: usize = 16 + 16 + 8 + 4;

/// Fresh credentials, with an ssrc that no other call has.
pub(crate) fn generate(index: &Index) -> Result<CallCredentials, getrandom::Error> {
    // One system call, unless the ssrc is in use.
    let mut random = [0; RANDOM_LEN];
    getrandom::fill(&mut random)?;
    let mut call = from_bytes(&random);
    while call.ssrc == 0 || index.call(call.ssrc).is_some() {
        call.ssrc = getrandom::u32()?;
    }
    Ok(call)
}

/// For a call that is refused because there are no random bytes. Nothing in it is secret, and no call has the ssrc 0.
pub(crate) fn without_keys() -> CallCredentials {
    CallCredentials { allowed: false, ..from_bytes(&[0; RANDOM_LEN]) }
}

fn from_bytes(bytes: &[u8; RANDOM_LEN]) -> CallCredentials {
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

/// Takes the next `N` bytes.
fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = bytes.split_at(N);
    *bytes = rest;
    std::array::from_fn(|i| taken[i])
}

/// The host that a device must send its datagrams to. `local` is the local address of its MQTT connection.
pub(crate) fn udp_host(public_ip: &PublicIp, local: Option<IpAddr>) -> Box<str> {
    match public_ip {
        PublicIp::Auto => local.unwrap_or(IpAddr::from([127, 0, 0, 1])).to_string().into_boxed_str(),
        PublicIp::Ip(ip) => ip.to_string().into_boxed_str(),
        PublicIp::Host(host) => host.as_str().into(),
    }
}
