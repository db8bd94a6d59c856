//! MQTT packets of clients and servers.

use std::fmt::Debug;

use super::split_points;
use crate::proto::identity::ClientId;
use crate::proto::mqtt::{Malformed, Packet, ServerPacket, decode, decode_server_packet, encode};

/// The gateway's default limit.
const MAX: usize = 65_536;

type Decoded<P> = Result<Option<(P, usize)>, Malformed>;

/// The bytes of a client, and the same bytes as those of a server.
pub fn mqtt_decode(data: &[u8]) {
    decode_all(data, decode, |packet, used| {
        let again = encode_client_packet(&packet);
        assert!(again.len() <= used, "{packet:?}: written again it is longer");
        assert_eq!(decode(&again, MAX), Ok(Some((packet, again.len()))), "decode of encode is identity");
        check_documented_fields(&packet);
    });
    decode_all(data, decode_server_packet, |reply, used| {
        if let Some(again) = encode_server_packet(&reply) {
            assert!(again.len() <= used, "{reply:?}: written again it is longer");
            assert_eq!(decode_server_packet(&again, MAX), Ok(Some((reply, again.len()))));
        }
    });
}

/// Decodes packet after packet, and checks what must hold for any packet.
fn decode_all<'a, P: Copy + Debug + PartialEq>(
    mut rest: &'a [u8],
    decode: fn(&'a [u8], usize) -> Decoded<P>,
    mut each: impl FnMut(P, usize),
) {
    loop {
        let whole = decode(rest, MAX);
        check_splits(rest, &whole, decode);
        match whole {
            Ok(Some((packet, used))) => {
                assert!((2..=rest.len()).contains(&used));
                check_limits(&rest[..used], whole, decode);
                each(packet, used);
                rest = &rest[used..];
            }
            Ok(None) => return,
            Err(malformed) => {
                let text = malformed.to_string();
                assert!(!text.is_empty() && !text.contains(char::is_control), "{text:?}");
                return;
            }
        }
    }
}

/// For every prefix, the result is that of all bytes, or that more are needed. Bytes after the packet change nothing.
fn check_splits<'a, P: Copy + Debug + PartialEq>(
    bytes: &'a [u8],
    whole: &Decoded<P>,
    decode: fn(&'a [u8], usize) -> Decoded<P>,
) {
    let mut refused = false;
    for end in split_points(bytes.len()) {
        let part = decode(&bytes[..end], MAX);
        match whole {
            Ok(Some((_, used))) if end >= *used => {
                assert_eq!(part, *whole, "what follows a packet is not its matter")
            }
            Err(_) if refused => assert_eq!(part, *whole, "refused for good"),
            Err(_) if part.is_err() => assert_eq!(part, *whole, "refused for the same reason"),
            _ => assert_eq!(part, Ok(None), "{end} bytes ask for more"),
        }
        refused |= part.is_err();
    }
}

/// A limit refuses only packets that are longer.
fn check_limits<'a, P: Copy + Debug + PartialEq>(
    packet: &'a [u8],
    whole: Decoded<P>,
    decode: fn(&'a [u8], usize) -> Decoded<P>,
) {
    let header = 2 + packet[1..].iter().take_while(|byte| **byte & 0x80 != 0).count();
    let len = packet.len() - header;
    for max in [0, 1, len.saturating_sub(1), len, len + 1] {
        let expected = if len > max { Err(Malformed::TooLarge { len, max }) } else { whole };
        assert_eq!(decode(packet, max), expected, "limit {max}");
    }
}

fn encode_client_packet(packet: &Packet<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    match packet {
        Packet::Connect(connect) => encode::connect(&mut out, connect),
        Packet::Publish(publish) => {
            encode::publish(&mut out, publish.topic, publish.payload);
            out[0] |= u8::from(publish.retain);
        }
        Packet::Subscribe(subscribe) => {
            encode::subscribe(&mut out, subscribe.packet_id, &subscribe.filters().collect::<Vec<_>>());
        }
        Packet::Unsubscribe(unsubscribe) => {
            encode::unsubscribe(&mut out, unsubscribe.packet_id, &unsubscribe.filters().collect::<Vec<_>>());
        }
        Packet::PingReq => encode::pingreq(&mut out),
        Packet::Disconnect => encode::disconnect(&mut out),
    }
    out
}

/// Packets that this gateway can send are decoded as they were.
fn encode_server_packet(reply: &ServerPacket<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match reply {
        ServerPacket::Publish(publish) if !publish.retain => {
            encode::publish(&mut out, publish.topic, publish.payload)
        }
        ServerPacket::SubAck { packet_id, codes } if codes.iter().all(|code| *code == 0) => {
            encode::suback(&mut out, *packet_id, codes.len());
        }
        ServerPacket::UnsubAck { packet_id } => encode::unsuback(&mut out, *packet_id),
        ServerPacket::PingResp => encode::pingresp(&mut out),
        _ => return None,
    }
    Some(out)
}

/// The fields are as documented.
fn check_documented_fields(packet: &Packet<'_>) {
    let is_name = |topic: &str| !topic.is_empty() && !topic.contains(['+', '#', '\0']);
    match packet {
        Packet::Connect(connect) => {
            assert!(connect.password.is_none() || connect.user_name.is_some());
            assert!(connect.will.is_none_or(|will| is_name(will.topic) && will.qos <= 2));
            if let Ok(id) = ClientId::parse(connect.client_id) {
                assert_eq!(id.text(), connect.client_id);
                assert!(!id.text().contains(char::is_control), "it goes into HTTP headers and log lines");
                assert_eq!(id.mac().underscored().parse(), Ok(id.mac()));
            }
        }
        Packet::Publish(publish) => assert!(is_name(publish.topic)),
        Packet::Subscribe(subscribe) => {
            assert_ne!(subscribe.packet_id, 0);
            assert!(subscribe.filters().count() > 0);
            assert!(subscribe.filters().all(|(filter, qos)| !filter.is_empty() && qos <= 2));
        }
        Packet::Unsubscribe(unsubscribe) => {
            assert_ne!(unsubscribe.packet_id, 0);
            assert!(unsubscribe.filters().count() > 0);
        }
        Packet::PingReq | Packet::Disconnect => {}
    }
}
