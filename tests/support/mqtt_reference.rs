//! A second MQTT decoder for comparison.

use mqtt_websocket_proxy::proto::mqtt::{Malformed, Packet, ProtocolLevel, decode};
use rumqttc::mqttbytes::{self, v4};

const MAX: usize = 65_536;

/// Compares the packets of a client while both decoders continue: rumqttc's codec decodes what this gateway accepts to
/// the same; what only rumqttc accepts, this gateway refuses for a known reason.
pub(crate) fn agrees(mut bytes: &[u8]) {
    loop {
        let own = decode(bytes, MAX);
        let (theirs, used) = other(bytes);
        match (own, theirs) {
            (Ok(Some((Packet::Connect(connect), _))), _) if connect.level == ProtocolLevel::V31 => return,
            (Ok(Some((packet, own_used))), theirs) => {
                assert_eq!(own_used, used, "{packet:?}");
                match theirs {
                    Ok(theirs) => same(&packet, &theirs),
                    Err(error) => assert!(is_theirs(&packet), "{packet:?}: {error}"),
                }
                bytes = &bytes[own_used..];
            }
            (Ok(None), theirs) => return assert!(theirs.is_err(), "{theirs:?} out of a part"),
            (Err(malformed), Ok(theirs)) => {
                return assert!(is_stricter(malformed), "{malformed}: {theirs:?}");
            }
            (Err(_), Err(_)) => return,
        }
    }
}

fn other(bytes: &[u8]) -> (Result<v4::Packet, mqttbytes::Error>, usize) {
    let mut stream = bytes.into();
    let read = v4::Packet::read(&mut stream, MAX);
    (read, bytes.len() - stream.len())
}

/// What rumqttc refuses although the standard allows it.
fn is_theirs(packet: &Packet<'_>) -> bool {
    match packet {
        // It requires a password to be text.
        Packet::Connect(connect) => connect.password.is_some_and(|bytes| std::str::from_utf8(bytes).is_err()),
        _ => false,
    }
}

/// What rumqttc does not check although the standard requires it, or accepts because it is also a client's codec.
fn is_stricter(malformed: Malformed) -> bool {
    use Malformed::*;
    matches!(
        malformed,
        PacketType(_)
            | HeaderFlags(_)
            | DupAtQos0
            | QosNotSupported(_)
            | TrailingBytes
            | Nul
            | UnsupportedLevel(5)
            | ReservedConnectFlag
            | PasswordWithoutUserName
            | TopicName
            | TopicFilter
            | PacketId
            | RequestedQos(_)
            | NoTopicFilter
    )
}

fn same(own: &Packet<'_>, theirs: &v4::Packet) {
    match (own, theirs) {
        (Packet::Connect(own), v4::Packet::Connect(theirs)) => {
            assert_eq!(
                (own.client_id, own.keep_alive, own.clean_session),
                (&*theirs.client_id, theirs.keep_alive, theirs.clean_session)
            );
            let login = theirs.login.as_ref();
            assert_eq!(own.user_name.unwrap_or_default(), login.map_or("", |login| &login.username));
            assert_eq!(
                own.password.unwrap_or_default(),
                login.map_or("", |login| &login.password).as_bytes()
            );
            let own = own.will.map(|will| (will.topic, will.message, will.qos, will.retain));
            let theirs = theirs.last_will.as_ref();
            assert_eq!(own, theirs.map(|will| (&*will.topic, &*will.message, will.qos as u8, will.retain)));
        }
        (Packet::Publish(own), v4::Packet::Publish(theirs)) => {
            assert_eq!(
                (own.topic, own.payload, own.retain),
                (&*theirs.topic, &*theirs.payload, theirs.retain)
            );
        }
        (Packet::Subscribe(own), v4::Packet::Subscribe(theirs)) => {
            let filters = theirs.filters.iter().map(|filter| (&*filter.path, filter.qos as u8));
            assert!(own.packet_id == theirs.pkid && own.filters().eq(filters));
        }
        (Packet::Unsubscribe(own), v4::Packet::Unsubscribe(theirs)) => {
            assert!(
                own.packet_id == theirs.pkid && own.filters().eq(theirs.topics.iter().map(|topic| &**topic))
            );
        }
        (Packet::PingReq, v4::Packet::PingReq) | (Packet::Disconnect, v4::Packet::Disconnect) => {}
        _ => panic!("{own:?} is not {theirs:?}"),
    }
}
