//! What two gateways say to each other about a device that is connected to one of them and has its call at the other.
//!
//! The device came back through another gateway in mid-call. That one, which has its connection, passes its packets on to the gateway
//! that has the call, and back. Both name the connection by the number that the gateway with the connection has given to it.

use std::net::{IpAddr, Ipv6Addr};

use crate::proto::identity::Mac;

/// The kinds of frames.
mod kind {
    pub(super) const OFFER: u8 = 24;
    pub(super) const NO_CALL: u8 = 25;
    pub(super) const MOVED: u8 = 26;
    pub(super) const ATTACH: u8 = 27;
    pub(super) const PACKETS: u8 = 28;
    pub(super) const CALL_ENDED: u8 = 29;
    pub(super) const RETURNED: u8 = 30;
    pub(super) const RELEASED: u8 = 31;
    pub(super) const LOST: u8 = 32;
}

/// A message about a device's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionMessage {
    /// The device.
    pub mac: Mac,
    /// The number of its connection, at the gateway that has it.
    pub connection: u32,
    /// What it says.
    pub body: ConnectionBody,
}

/// What a message about a device's connection says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionBody {
    /// From the gateway with the call: here is a call of this device.
    Offer {
        /// The session id that the device knows the call by.
        session_id: String,
        /// The device proved who it is when the call began.
        is_proven: bool,
    },
    /// There is no call of this device here.
    NoCall,
    /// From a gateway that the device was connected to before, to the one with its call: the device is connected to this gateway now.
    Moved {
        /// Its run id.
        to: u64,
    },
    /// From the gateway with the connection: it passes on what the device says from now on.
    Attach {
        /// The device's address.
        ip: IpAddr,
        /// And port.
        port: u16,
    },
    /// MQTT packets of the device, or for it.
    Packets {
        /// The bytes that were sent before these in this direction, modulo 2^32: what follows is of no use if some were lost.
        offset: u32,
        /// Whole packets.
        bytes: Vec<u8>,
    },
    /// From the gateway with the call: it is over, and the device belongs to the other gateway.
    CallEnded,
    /// From the gateway with the call: packets of the device that came after its end.
    Returned {
        /// Whole packets.
        bytes: Vec<u8>,
    },
    /// From the gateway with the connection: it has heard of the end, and passes nothing on any more. The answer is
    /// [`NoCall`](Self::NoCall), behind all that is returned.
    Released,
    /// The sender has lost its part: the connection, or what was passed on. The call is kept for a while, if there is one.
    Lost,
}

impl ConnectionMessage {
    /// Whether a frame of this kind is such a message.
    pub fn is_kind(kind: u8) -> bool {
        (kind::OFFER..=kind::LOST).contains(&kind)
    }

    /// The kind of the frame, its id and its payload.
    pub fn encode(&self) -> (u8, u64, Vec<u8>) {
        let mut payload = self.mac.bytes().to_vec();
        let kind = match &self.body {
            ConnectionBody::Offer { session_id, is_proven } => {
                payload.push(u8::from(*is_proven));
                payload.extend_from_slice(session_id.as_bytes());
                kind::OFFER
            }
            ConnectionBody::NoCall => kind::NO_CALL,
            ConnectionBody::Moved { to } => {
                payload.extend_from_slice(&to.to_be_bytes());
                kind::MOVED
            }
            ConnectionBody::Attach { ip, port } => {
                let ip = match ip {
                    IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                    IpAddr::V6(ip) => *ip,
                };
                payload.extend_from_slice(&ip.octets());
                payload.extend_from_slice(&port.to_be_bytes());
                kind::ATTACH
            }
            ConnectionBody::Packets { offset, bytes } => {
                payload.extend_from_slice(&offset.to_be_bytes());
                payload.extend_from_slice(bytes);
                kind::PACKETS
            }
            ConnectionBody::CallEnded => kind::CALL_ENDED,
            ConnectionBody::Returned { bytes } => {
                payload.extend_from_slice(bytes);
                kind::RETURNED
            }
            ConnectionBody::Released => kind::RELEASED,
            ConnectionBody::Lost => kind::LOST,
        };
        (kind, self.connection.into(), payload)
    }

    /// Reads a frame; `None` if it is no such message.
    pub fn decode(kind: u8, id: u64, payload: &[u8]) -> Option<Self> {
        let connection = u32::try_from(id).ok()?;
        let (mac, rest) = payload.split_first_chunk()?;
        let body = match kind {
            kind::OFFER => {
                let (is_proven, session_id) = rest.split_first()?;
                let session_id = std::str::from_utf8(session_id).ok()?.to_owned();
                ConnectionBody::Offer { session_id, is_proven: *is_proven == 1 }
            }
            kind::NO_CALL if rest.is_empty() => ConnectionBody::NoCall,
            kind::MOVED => ConnectionBody::Moved { to: u64::from_be_bytes(rest.try_into().ok()?) },
            kind::ATTACH => {
                let (ip, port) = rest.split_first_chunk::<16>()?;
                let ip = Ipv6Addr::from(*ip).to_canonical();
                ConnectionBody::Attach { ip, port: u16::from_be_bytes(port.try_into().ok()?) }
            }
            kind::PACKETS => {
                let (offset, bytes) = rest.split_first_chunk()?;
                ConnectionBody::Packets { offset: u32::from_be_bytes(*offset), bytes: bytes.to_vec() }
            }
            kind::CALL_ENDED if rest.is_empty() => ConnectionBody::CallEnded,
            kind::RETURNED => ConnectionBody::Returned { bytes: rest.to_vec() },
            kind::RELEASED if rest.is_empty() => ConnectionBody::Released,
            kind::LOST if rest.is_empty() => ConnectionBody::Lost,
            _ => return None,
        };
        Some(Self { mac: Mac::from(*mac), connection, body })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn all() -> Vec<ConnectionMessage> {
        let bodies = [
            ConnectionBody::Offer { session_id: "id-1".to_owned(), is_proven: true },
            ConnectionBody::Offer { session_id: String::new(), is_proven: false },
            ConnectionBody::NoCall,
            ConnectionBody::Moved { to: 0x0102_0304_0506_0708 },
            ConnectionBody::Attach { ip: [192, 0, 2, 7].into(), port: 1883 },
            ConnectionBody::Attach { ip: "2001:db8::7".parse().unwrap(), port: 65_535 },
            ConnectionBody::Packets { offset: u32::MAX, bytes: b"\xc0\0".to_vec() },
            ConnectionBody::CallEnded,
            ConnectionBody::Returned { bytes: b"\xc0\0".to_vec() },
            ConnectionBody::Released,
            ConnectionBody::Lost,
        ];
        let mac = Mac::from([2, 0, 0, 0, 0, 9]);
        bodies.into_iter().map(|body| ConnectionMessage { mac, connection: 7, body }).collect()
    }

    #[test]
    fn a_message_is_read_as_it_was_written() {
        for message in all() {
            let (kind, id, payload) = message.encode();
            assert!(ConnectionMessage::is_kind(kind));
            assert_eq!(ConnectionMessage::decode(kind, id, &payload), Some(message));
        }
    }

    #[test]
    fn what_is_too_short_or_too_long_or_unknown_is_none() {
        for message in all() {
            let (kind, id, payload) = message.encode();
            let shortest = 6 + match message.body {
                ConnectionBody::Offer { .. } => 1,
                ConnectionBody::Moved { .. } => 8,
                ConnectionBody::Attach { .. } => 18,
                ConnectionBody::Packets { .. } => 4,
                _ => 0,
            };
            for len in 0..shortest {
                assert_eq!(ConnectionMessage::decode(kind, id, &payload[..len]), None, "{message:?} {len}");
            }
            assert_eq!(ConnectionMessage::decode(kind, 1 << 32, &payload), None);
            assert_eq!(ConnectionMessage::decode(kind::LOST + 1, id, &payload), None);
        }
        let (kind, id, mut payload) = all()[3].encode();
        payload.push(0);
        assert_eq!(ConnectionMessage::decode(kind, id, &payload), None);
        let bad_text = [&[2, 0, 0, 0, 0, 9, 1][..], b"\xff"].concat();
        assert_eq!(ConnectionMessage::decode(kind::OFFER, 7, &bad_text), None);
    }
}
