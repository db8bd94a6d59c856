//! The PROXY protocol.

use super::split_points;
use crate::proto::proxy_protocol::{MAX_V2_LEN, ProxySource, decode};

/// The first bytes of a connection from a load balancer.
pub fn proxy_header(data: &[u8]) {
    let whole = decode(data);
    for end in split_points(data.len()) {
        let part = decode(&data[..end]);
        match whole {
            Ok(Some((_, used))) if end >= used => assert_eq!(part, whole, "what follows is not its matter"),
            Ok(_) => assert_eq!(part, Ok(None), "{end} bytes ask for more"),
            Err(_) => assert!(part == Ok(None) || part == whole, "refused for one reason: {part:?}"),
        }
    }
    match whole {
        Ok(Some((origin, used))) => {
            assert!((8..=MAX_V2_LEN.min(data.len())).contains(&used));
            let version1 = data.starts_with(b"PROXY ");
            assert_eq!(origin, if version1 { parse_v1(&data[..used]) } else { parse_v2(&data[..used]) });
            check_round_trip(origin);
        }
        Ok(None) => assert!(data.len() < MAX_V2_LEN, "a header has an end"),
        Err(bad) => assert!(!bad.to_string().is_empty()),
    }
}

/// Another implementation of section 2.1.
fn parse_v1(header: &[u8]) -> ProxySource {
    let text = String::from_utf8_lossy(header);
    let words: Vec<_> = text.strip_suffix("\r\n").expect("the line's end").split(' ').collect();
    match words[..] {
        [_, "TCP4" | "TCP6", from, _, port, _] => {
            let from = if from.contains(':') { format!("[{from}]:{port}") } else { format!("{from}:{port}") };
            ProxySource::Client(from.parse().unwrap())
        }
        [_, "UNKNOWN", ..] => ProxySource::LoadBalancer,
        _ => panic!("{text:?}"),
    }
}

/// Another implementation of section 2.2.
fn parse_v2(header: &[u8]) -> ProxySource {
    assert_eq!(usize::from(u16::from_be_bytes([header[14], header[15]])), header.len() - 16);
    match header[12..14] {
        [0x21, 0x11] => {
            let [a, b, c, d] = header[16..20] else { panic!() };
            ProxySource::Client(([a, b, c, d], u16::from_be_bytes([header[24], header[25]])).into())
        }
        [0x21, 0x21] => {
            let ip: [u8; 16] = header[16..32].try_into().unwrap();
            ProxySource::Client((ip, u16::from_be_bytes([header[48], header[49]])).into())
        }
        _ => ProxySource::LoadBalancer,
    }
}

/// A header with the same content is decoded to the same source.
fn check_round_trip(origin: ProxySource) {
    let ProxySource::Client(from) = origin else { return };
    let (family, to) = if from.is_ipv4() { ("TCP4", "192.0.2.1") } else { ("TCP6", "2001:db8::1") };
    let header = format!("PROXY {family} {} {to} {} 1883\r\n", from.ip(), from.port());
    assert_eq!(decode(header.as_bytes()), Ok(Some((origin, header.len()))));
}
