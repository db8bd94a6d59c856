//! The PROXY protocol, versions 1 and 2: a load balancer sends the client's address at the start of a connection.
//!
//! Section numbers are those of HAProxy's "The PROXY protocol, versions 1 & 2". Extensions (TLVs) are skipped.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The longest header of version 2 that is accepted, in bytes, with extensions. The format allows 65,551, but headers in practice
/// have a few hundred bytes, and other receivers have this limit too.
pub const MAX_V2_LEN: usize = 4096;

/// The longest line of version 1 with its CRLF (section 2.1).
const MAX_V1_LEN: usize = 107;
const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The length of the fixed part: signature, version and command, family and protocol, length.
const V2_FIXED_LEN: usize = 16;

/// The source that a header states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxySource {
    /// The load balancer itself (a health check), or an unknown client: the connection's own address is used.
    LoadBalancer,
    /// A client with this address.
    Client(SocketAddr),
}

/// Why bytes are not a PROXY header. The connection must be closed (section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BadProxyHeader {
    /// The signature of neither version.
    NoSignature,
    /// Version 1: the line does not end within 107 bytes.
    V1TooLong,
    /// Version 1: a protocol other than `TCP4`, `TCP6` and `UNKNOWN`.
    V1Protocol,
    /// Version 1: not two addresses and two ports with a single space before each.
    V1Fields,
    /// Version 1: an address that is not of the stated family.
    V1Address,
    /// Version 1: a port that is not a decimal number up to 65535.
    V1Port,
    /// The signature of version 2 with another version.
    V2Version(u8),
    /// Version 2: a command other than 0 (LOCAL) and 1 (PROXY).
    V2Command(u8),
    /// Version 2: the byte of address family and protocol, one of which is unknown.
    V2Family(u8),
    /// Version 2: a header longer than [`MAX_V2_LEN`].
    V2TooLong {
        /// The length of the header.
        len: usize,
    },
    /// Version 2: too short for the addresses of its family.
    V2TooShort {
        /// The stated length after the fixed part.
        len: usize,
        /// The length of the addresses.
        needed: usize,
    },
}

impl fmt::Display for BadProxyHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSignature => f.write_str("does not begin with a PROXY protocol header"),
            Self::V1TooLong => write!(f, "PROXY line of more than {MAX_V1_LEN} bytes"),
            Self::V1Protocol => f.write_str("PROXY line with a protocol other than TCP4, TCP6 and UNKNOWN"),
            Self::V1Fields => f.write_str("PROXY line without exactly two addresses and two ports"),
            Self::V1Address => f.write_str("PROXY line with an address that is not one of its protocol"),
            Self::V1Port => f.write_str("PROXY line with a port that is not a number up to 65535"),
            Self::V2Version(version) => write!(f, "PROXY header of version {version}, 1 and 2 are known"),
            Self::V2Command(command) => write!(f, "PROXY header with command {command}, 0 and 1 are known"),
            Self::V2Family(byte) => write!(f, "PROXY header with unknown family and protocol {byte:#04x}"),
            Self::V2TooLong { len } => write!(f, "PROXY header of {len} bytes, {MAX_V2_LEN} are allowed"),
            Self::V2TooShort { len, needed } => {
                write!(f, "PROXY header with {len} bytes for addresses that take {needed}")
            }
        }
    }
}

impl std::error::Error for BadProxyHeader {}

/// Decodes the header at the start of `bytes`. Returns the source and the length of the header, or `None` if more bytes are needed.
///
/// # Errors
/// The bytes are not the start of a header.
pub fn decode(bytes: &[u8]) -> Result<Option<(ProxySource, usize)>, BadProxyHeader> {
    let begins = |signature: &[u8]| bytes.iter().zip(signature).all(|(byte, expected)| byte == expected);
    match bytes.len() {
        len if begins(V1_SIGNATURE) && len >= V1_SIGNATURE.len() => decode_v1(bytes),
        len if begins(V2_SIGNATURE) && len >= V2_SIGNATURE.len() => decode_v2(bytes),
        _ if begins(V1_SIGNATURE) || begins(V2_SIGNATURE) => Ok(None),
        _ => Err(BadProxyHeader::NoSignature),
    }
}

fn decode_v1(bytes: &[u8]) -> Result<Option<(ProxySource, usize)>, BadProxyHeader> {
    let within = &bytes[..bytes.len().min(MAX_V1_LEN)];
    let Some(end) = within.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() < MAX_V1_LEN { Ok(None) } else { Err(BadProxyHeader::V1TooLong) };
    };
    let mut fields = bytes[V1_SIGNATURE.len()..end].split(|byte| *byte == b' ');
    let parse = match fields.next() {
        Some(b"TCP4") => |text: &str| text.parse().map(IpAddr::V4),
        Some(b"TCP6") => |text: &str| text.parse().map(IpAddr::V6),
        // The rest of the line must be ignored.
        Some(b"UNKNOWN") => return Ok(Some((ProxySource::LoadBalancer, end + 2))),
        _ => return Err(BadProxyHeader::V1Protocol),
    };
    let four = [(); 4].map(|()| fields.next().and_then(|field| std::str::from_utf8(field).ok()));
    let ([Some(from), Some(to), Some(from_port), Some(to_port)], None) = (four, fields.next()) else {
        return Err(BadProxyHeader::V1Fields);
    };
    let ip = |text| parse(text).map_err(|_| BadProxyHeader::V1Address);
    let (from, _) = (ip(from)?, ip(to)?);
    let (from_port, _) = (parse_port(from_port)?, parse_port(to_port)?);
    Ok(Some((ProxySource::Client(SocketAddr::new(from, from_port)), end + 2)))
}

fn parse_port(text: &str) -> Result<u16, BadProxyHeader> {
    match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().map_err(|_| BadProxyHeader::V1Port),
        false => Err(BadProxyHeader::V1Port),
    }
}

fn decode_v2(bytes: &[u8]) -> Result<Option<(ProxySource, usize)>, BadProxyHeader> {
    let Some(&version_and_command) = bytes.get(V2_SIGNATURE.len()) else { return Ok(None) };
    let (version, command) = (version_and_command >> 4, version_and_command & 0xf);
    match (version, command) {
        (2, 0 | 1) => {}
        (2, _) => return Err(BadProxyHeader::V2Command(command)),
        _ => return Err(BadProxyHeader::V2Version(version)),
    }
    let Some(&family) = bytes.get(V2_SIGNATURE.len() + 1) else { return Ok(None) };
    // The length of two addresses and, except for Unix sockets, two ports.
    let needed = match (command, family >> 4, family & 0xf) {
        (0, ..) | (1, 0, 0..=2) => 0,
        (_, 1, 0..=2) => 12,
        (_, 2, 0..=2) => 36,
        (_, 3, 0..=2) => 216,
        _ => return Err(BadProxyHeader::V2Family(family)),
    };
    let Some((fixed, rest)) = bytes.split_first_chunk::<V2_FIXED_LEN>() else { return Ok(None) };
    let len = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if V2_FIXED_LEN + len > MAX_V2_LEN {
        return Err(BadProxyHeader::V2TooLong { len: V2_FIXED_LEN + len });
    }
    if len < needed {
        return Err(BadProxyHeader::V2TooShort { len, needed });
    }
    if rest.len() < len {
        return Ok(None);
    }
    // Only TCP addresses can be those of this connection's client.
    let origin = match (command, family) {
        (1, 0x11) => source_address::<4>(rest),
        (1, 0x21) => source_address::<16>(rest),
        _ => None,
    };
    Ok(Some((origin.map_or(ProxySource::LoadBalancer, ProxySource::Client), V2_FIXED_LEN + len)))
}

/// The source address, of `N` bytes, and the source port, which follows the destination address.
fn source_address<const N: usize>(block: &[u8]) -> Option<SocketAddr>
where
    IpAddr: From<[u8; N]>,
{
    let (ip, rest) = block.split_first_chunk::<N>()?;
    let port = rest.get(N..)?.first_chunk()?;
    Some(SocketAddr::new(IpAddr::from(*ip), u16::from_be_bytes(*port)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client_at(address: &str) -> ProxySource {
        ProxySource::Client(address.parse().unwrap())
    }

    /// A header of version 2.
    fn v2(version_and_command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let mut bytes = [V2_SIGNATURE, &[version_and_command, family]].concat();
        bytes.extend((block.len() as u16).to_be_bytes());
        bytes.extend(block);
        bytes
    }

    const FOUR: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0x30, 0x39, 0x07, 0x5b];

    fn six() -> Vec<u8> {
        let mut block = vec![0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        block.extend([0; 15]);
        block.extend([1, 0x30, 0x39, 0x07, 0x5b]);
        block
    }

    fn valid_headers() -> Vec<(Vec<u8>, ProxySource)> {
        let v1 = |line: &str| line.as_bytes().to_vec();
        let with_extensions = |block: &[u8], more: usize| [block, &vec![4; more]].concat();
        let longest = "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        let longest_unknown = "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_eq!(longest_unknown.len(), MAX_V1_LEN);
        vec![
            (v1("PROXY TCP4 192.0.2.7 198.51.100.1 12345 1883\r\n"), client_at("192.0.2.7:12345")),
            (v1("PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n"), client_at("0.0.0.0:0")),
            (v1("PROXY TCP6 2001:db8::1 ::1 12345 1883\r\n"), client_at("[2001:db8::1]:12345")),
            (v1("PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n"), client_at("[::ffff:192.0.2.7]:1")),
            (v1(longest), client_at("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")),
            (v1("PROXY UNKNOWN\r\n"), ProxySource::LoadBalancer),
            (b"PROXY UNKNOWN \n\r any thing \xff\r\n".to_vec(), ProxySource::LoadBalancer),
            (v1(longest_unknown), ProxySource::LoadBalancer),
            (v2(0x21, 0x11, &FOUR), client_at("192.0.2.7:12345")),
            (v2(0x21, 0x11, &with_extensions(&FOUR, 300)), client_at("192.0.2.7:12345")),
            (v2(0x21, 0x11, &with_extensions(&FOUR, MAX_V2_LEN - 28)), client_at("192.0.2.7:12345")),
            (v2(0x21, 0x21, &six()), client_at("[2001:db8::1]:12345")),
            (v2(0x21, 0x21, &with_extensions(&six(), 1)), client_at("[2001:db8::1]:12345")),
            // UDP, Unix sockets and an unspecified family do not state a TCP client.
            (v2(0x21, 0x12, &FOUR), ProxySource::LoadBalancer),
            (v2(0x21, 0x22, &six()), ProxySource::LoadBalancer),
            (v2(0x21, 0x31, &[7; 216]), ProxySource::LoadBalancer),
            (v2(0x21, 0x00, &[]), ProxySource::LoadBalancer),
            (v2(0x21, 0x00, &[9; 40]), ProxySource::LoadBalancer),
            // LOCAL: family and addresses are ignored, known or not.
            (v2(0x20, 0x00, &[]), ProxySource::LoadBalancer),
            (v2(0x20, 0x11, &FOUR), ProxySource::LoadBalancer),
            (v2(0x20, 0x11, &[]), ProxySource::LoadBalancer),
            (v2(0x20, 0xff, &[1; 99]), ProxySource::LoadBalancer),
        ]
    }

    #[test]
    fn valid_headers_are_decoded() {
        for (header, origin) in valid_headers() {
            let shown = header.escape_ascii();
            assert_eq!(decode(&header), Ok(Some((origin, header.len()))), "{shown}");
            let followed = [&header[..], b"\x10\x0c"].concat();
            assert_eq!(decode(&followed), Ok(Some((origin, header.len()))), "{shown}");
            for len in 0..header.len() {
                assert_eq!(decode(&header[..len]), Ok(None), "{len} bytes of {shown}");
            }
        }
    }

    /// Each with its error, and the number of bytes after which it is found.
    #[test]
    fn invalid_headers_are_refused_early() {
        use BadProxyHeader::*;
        let v1 = |line: &str| line.as_bytes().to_vec();
        let fixed = |len: u16| [V2_SIGNATURE, &[0x21, 0x11], &len.to_be_bytes()].concat();
        for (header, error, seen) in [
            (vec![0x10, 0x0c], NoSignature, 1),
            (vec![0x16, 3, 1], NoSignature, 1),
            (v1("PROXX"), NoSignature, 5),
            (v1("proxy TCP4"), NoSignature, 1),
            (v1("\r\n\r\n\0\r\nQUIX\n"), NoSignature, 11),
            (v1("PROXY TCP5 192.0.2.7 192.0.2.8 1 2\r\n"), V1Protocol, 36),
            (v1("PROXY \r\n"), V1Protocol, 8),
            (v1("PROXY  TCP4 192.0.2.7 192.0.2.8 1 2\r\n"), V1Protocol, 37),
            (v1("PROXY tcp4 192.0.2.7 192.0.2.8 1 2\r\n"), V1Protocol, 36),
            (v1("PROXY UNKNOWNS\r\n"), V1Protocol, 16),
            (v1("PROXY TCP4\r\n"), V1Fields, 12),
            (v1("PROXY TCP4 192.0.2.7 192.0.2.8 1\r\n"), V1Fields, 34),
            (v1("PROXY TCP4 192.0.2.7 192.0.2.8 1 2 \r\n"), V1Fields, 37),
            (v1("PROXY TCP4 192.0.2.7 192.0.2.8 1 2 3\r\n"), V1Fields, 38),
            (v1("PROXY TCP4  192.0.2.7 192.0.2.8 1\r\n"), V1Address, 35),
            (v1("PROXY TCP4 192.0.2.07 192.0.2.8 1 2\r\n"), V1Address, 37),
            (v1("PROXY TCP4 ::1 ::2 1 2\r\n"), V1Address, 24),
            (v1("PROXY TCP6 192.0.2.7 192.0.2.8 1 2\r\n"), V1Address, 36),
            (v1("PROXY TCP4 192.0.2.7 host 1 2\r\n"), V1Address, 31),
            (v1("PROXY TCP4 192.0.2.7 192.0.2.8 65536 2\r\n"), V1Port, 40),
            (v1("PROXY TCP4 192.0.2.7 192.0.2.8 1 +2\r\n"), V1Port, 37),
            (v1("PROXY TCP4 192.0.2.7 192.0.2.8 1 \r\n"), V1Port, 35),
            (format!("PROXY UNKNOWN {}\r\n", "x".repeat(92)).into_bytes(), V1TooLong, 107),
            ([V1_SIGNATURE, &[b'T'; 200]].concat(), V1TooLong, 107),
            (v2(0x11, 0x11, &FOUR), V2Version(1), 13),
            (v2(0x31, 0x11, &FOUR), V2Version(3), 13),
            (v2(0x22, 0x11, &FOUR), V2Command(2), 13),
            (v2(0x21, 0x41, &FOUR), V2Family(0x41), 14),
            (v2(0x21, 0x13, &FOUR), V2Family(0x13), 14),
            (fixed(11), V2TooShort { len: 11, needed: 12 }, 16),
            (v2(0x21, 0x21, &FOUR), V2TooShort { len: 12, needed: 36 }, 16),
            (v2(0x21, 0x31, &[0; 215]), V2TooShort { len: 215, needed: 216 }, 16),
            (fixed(4081), V2TooLong { len: 4097 }, 16),
            (fixed(65_535), V2TooLong { len: 65_551 }, 16),
        ] {
            let shown = header.escape_ascii();
            assert_eq!(decode(&header), Err(error), "{shown}");
            for len in 0..header.len() {
                let expected = if len < seen { Ok(None) } else { Err(error) };
                assert_eq!(decode(&header[..len]), expected, "{len} bytes of {shown}");
            }
        }
    }

    /// All 256 values of family and protocol, with the exact length of their addresses, and one byte less.
    #[test]
    fn every_family_and_protocol_byte() {
        for byte in 0..=255 {
            let needed = [0, 12, 36, 216].get(usize::from(byte >> 4)).copied();
            let Some(needed) = needed.filter(|_| byte & 0xf <= 2) else {
                assert_eq!(decode(&v2(0x21, byte, &[0; 300])), Err(BadProxyHeader::V2Family(byte)));
                continue;
            };
            let origin = match byte {
                0x11 => client_at("0.0.0.0:0"),
                0x21 => client_at("[::]:0"),
                _ => ProxySource::LoadBalancer,
            };
            let header = v2(0x21, byte, &vec![0; needed]);
            assert_eq!(decode(&header), Ok(Some((origin, header.len()))), "{byte:#04x}");
            if let Some(len) = needed.checked_sub(1) {
                let short = BadProxyHeader::V2TooShort { len, needed };
                assert_eq!(decode(&v2(0x21, byte, &vec![0; len])), Err(short), "{byte:#04x}");
            }
        }
        for version_and_command in 0..=255_u8 {
            let expected = match (version_and_command >> 4, version_and_command & 0xf) {
                (2, 0) => Ok(Some((ProxySource::LoadBalancer, 28))),
                (2, 1) => Ok(Some((client_at("192.0.2.7:12345"), 28))),
                (2, command) => Err(BadProxyHeader::V2Command(command)),
                (version, _) => Err(BadProxyHeader::V2Version(version)),
            };
            assert_eq!(decode(&v2(version_and_command, 0x11, &FOUR)), expected, "{version_and_command:#04x}");
        }
    }

    #[test]
    fn invalid_headers_as_text() {
        use BadProxyHeader::*;
        for (bad, words) in [
            (NoSignature, "does not begin with a PROXY protocol header"),
            (V1TooLong, "PROXY line of more than 107 bytes"),
            (V1Protocol, "PROXY line with a protocol other than TCP4, TCP6 and UNKNOWN"),
            (V1Fields, "PROXY line without exactly two addresses and two ports"),
            (V1Address, "PROXY line with an address that is not one of its protocol"),
            (V1Port, "PROXY line with a port that is not a number up to 65535"),
            (V2Version(3), "PROXY header of version 3, 1 and 2 are known"),
            (V2Command(2), "PROXY header with command 2, 0 and 1 are known"),
            (V2Family(0x41), "PROXY header with unknown family and protocol 0x41"),
            (V2TooLong { len: 4097 }, "PROXY header of 4097 bytes, 4096 are allowed"),
            (V2TooShort { len: 11, needed: 12 }, "PROXY header with 11 bytes for addresses that take 12"),
        ] {
            assert_eq!(bad.to_string(), words);
        }
    }

    /// Valid headers with a few bytes changed reach more code than random bytes.
    fn corrupted_header() -> impl Strategy<Value = Vec<u8>> {
        let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
        (prop::sample::select(valid_headers()), changes).prop_map(|((mut bytes, _), changes)| {
            for (index, byte) in changes {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn more_bytes_do_not_change_the_result(bytes in prop_oneof![corrupted_header(), prop::collection::vec(any::<u8>(), 0..130)]) {
            let whole = decode(&bytes);
            for len in 0..bytes.len() {
                let part = decode(&bytes[..len]);
                prop_assert!(part == Ok(None) || part == whole, "{} bytes: {:?}, all: {:?}", len, part, whole);
            }
            if let Ok(Some((_, used))) = whole {
                prop_assert!(used <= bytes.len() && used <= MAX_V2_LEN);
            }
        }

        #[test]
        fn addresses_round_trip(ip in any::<std::net::IpAddr>(), port: u16, to_port: u16, more in 0..500_usize) {
            let from = ProxySource::Client(SocketAddr::new(ip, port));
            let (name, family, own) = match ip {
                IpAddr::V4(ip) => ("TCP4", 0x11, ip.octets().to_vec()),
                IpAddr::V6(ip) => ("TCP6", 0x21, ip.octets().to_vec()),
            };
            let line = format!("PROXY {name} {ip} {ip} {port} {to_port}\r\n");
            prop_assert_eq!(decode(line.as_bytes()), Ok(Some((from, line.len()))));
            let block = [&own[..], &own, &port.to_be_bytes(), &to_port.to_be_bytes(), &vec![0; more]].concat();
            let header = v2(0x21, family, &block);
            prop_assert_eq!(decode(&header), Ok(Some((from, header.len()))));
        }

        /// At the maximum length, decoding always ends with a header or an error.
        #[test]
        fn a_full_length_header_is_always_decided(bytes in corrupted_header()) {
            let mut bytes = bytes;
            bytes.resize(MAX_V2_LEN, 0);
            prop_assert!(decode(&bytes) != Ok(None));
        }
    }
}
