#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// A limit that no case of the tables exceeds.
const MAX: usize = 65_536;

const CONNECT: Connect<'_> = Connect {
    level: ProtocolLevel::V311,
    client_id: "a",
    clean_session: true,
    keep_alive: 60,
    will: None,
    user_name: None,
    password: None,
};
const WILL: Will<'_> = Will { topic: "w", message: b"bye", qos: 0, retain: false };

#[test]
fn connects() {
    let cases: [(&str, &[u8], Connect<'_>); 15] = [
        ("3.1.1", b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01a", CONNECT),
        (
            "3.1",
            b"\x10\x0f\0\x06MQIsdp\x03\x02\0\x3c\0\x01a",
            Connect { level: ProtocolLevel::V31, ..CONNECT },
        ),
        (
            "session kept, no keep alive",
            b"\x10\x0d\0\x04MQTT\x04\x00\0\x00\0\x01a",
            Connect { clean_session: false, keep_alive: 0, ..CONNECT },
        ),
        (
            "no client id",
            b"\x10\x0c\0\x04MQTT\x04\x02\xff\xff\0\0",
            Connect { client_id: "", keep_alive: 65_535, ..CONNECT },
        ),
        (
            "user name",
            b"\x10\x10\0\x04MQTT\x04\x82\0\x3c\0\x01a\0\x01u",
            Connect { user_name: Some("u"), ..CONNECT },
        ),
        (
            "user name and password",
            b"\x10\x15\0\x04MQTT\x04\xc2\0\x3c\0\x01a\0\x01u\0\x03p\0\xff",
            Connect { user_name: Some("u"), password: Some(b"p\0\xff"), ..CONNECT },
        ),
        (
            "both empty",
            b"\x10\x11\0\x04MQTT\x04\xc2\0\x3c\0\x01a\0\0\0\0",
            Connect { user_name: Some(""), password: Some(b""), ..CONNECT },
        ),
        (
            "will",
            b"\x10\x15\0\x04MQTT\x04\x06\0\x3c\0\x01a\0\x01w\0\x03bye",
            Connect { will: Some(WILL), ..CONNECT },
        ),
        (
            "will with QoS 1",
            b"\x10\x15\0\x04MQTT\x04\x0e\0\x3c\0\x01a\0\x01w\0\x03bye",
            Connect { will: Some(Will { qos: 1, ..WILL }), ..CONNECT },
        ),
        (
            "retained will with QoS 2, no message",
            b"\x10\x12\0\x04MQTT\x04\x36\0\x3c\0\x01a\0\x01w\0\0",
            Connect { will: Some(Will { qos: 2, retain: true, message: b"", ..WILL }), ..CONNECT },
        ),
        (
            "everything",
            b"\x10\x1b\0\x04MQTT\x04\xe6\0\x3c\0\x01a\0\x01w\0\x03\0\xffe\0\x01u\0\x01p",
            Connect {
                will: Some(Will { message: b"\0\xffe", retain: true, ..WILL }),
                user_name: Some("u"),
                password: Some(b"p"),
                ..CONNECT
            },
        ),
        (
            "3.1 knows no reserved flag",
            b"\x10\x0f\0\x06MQIsdp\x03\x03\0\x3c\0\x01a",
            Connect { level: ProtocolLevel::V31, ..CONNECT },
        ),
        (
            "3.1 ignores QoS and retain of no will",
            b"\x10\x0f\0\x06MQIsdp\x03\x3a\0\x3c\0\x01a",
            Connect { level: ProtocolLevel::V31, ..CONNECT },
        ),
        (
            "3.1 lets a flagged user name be missing",
            b"\x10\x0f\0\x06MQIsdp\x03\xc2\0\x3c\0\x01a",
            Connect { level: ProtocolLevel::V31, ..CONNECT },
        ),
        (
            "3.1 lets a flagged password be missing",
            b"\x10\x12\0\x06MQIsdp\x03\xc2\0\x3c\0\x01a\0\x01u",
            Connect { level: ProtocolLevel::V31, user_name: Some("u"), ..CONNECT },
        ),
    ];
    for (name, bytes, expected) in cases {
        assert_eq!(decode(bytes, MAX), Ok(Some((Packet::Connect(expected), bytes.len()))), "{name}");
    }
}

#[test]
fn connect_flags_all() {
    // Each of the 256 values of the flags, with the fields that it requires.
    for flags in 0..=255_u8 {
        let (will, qos, retain) = (flags & 4 != 0, flags >> 3 & 3, flags & 32 != 0);
        let (password, user_name) = (flags & 64 != 0, flags & 128 != 0);
        let mut body = b"\0\x04MQTT\x04".to_vec();
        body.extend([flags, 0, 60, 0, 1, b'a']);
        body.extend(if will { &b"\0\x01w\0\x03bye"[..] } else { b"" });
        body.extend(if user_name { &b"\0\x01u"[..] } else { b"" });
        body.extend(if password { &b"\0\x01p"[..] } else { b"" });
        let packet = [&[0x10, body.len() as u8][..], &body].concat();

        let expected = if flags & 1 != 0 {
            Err(Malformed::ReservedConnectFlag)
        } else if !will && (qos != 0 || retain) {
            Err(Malformed::WillFlags)
        } else if will && qos == 3 {
            Err(Malformed::WillQos3)
        } else if password && !user_name {
            Err(Malformed::PasswordWithoutUserName)
        } else {
            let connect = Connect {
                clean_session: flags & 2 != 0,
                will: will.then_some(Will { qos, retain, ..WILL }),
                user_name: user_name.then_some("u"),
                password: password.then_some(&b"p"[..]),
                ..CONNECT
            };
            Ok(Some((Packet::Connect(connect), packet.len())))
        };
        assert_eq!(decode(&packet, MAX), expected, "{flags:#010b}");
    }
}

#[test]
fn packets() {
    let publish = |topic, payload, retain| Packet::Publish(Publish { topic, payload, retain });
    let long = [&b"\x30\xc9\x01\0\x01t"[..], &[7; 198]].concat();
    let cases: [(&str, &[u8], Packet<'_>); 8] = [
        ("publish", b"\x30\x07\0\x03a/bhi", publish("a/b", b"hi", false)),
        ("retained", b"\x31\x07\0\x03a/bhi", publish("a/b", b"hi", true)),
        ("empty payload", b"\x30\x03\0\x01t", publish("t", b"", false)),
        ("payload is binary", b"\x30\x06\0\x01t\0\xff\xc0", publish("t", b"\0\xff\xc0", false)),
        ("length of two bytes", &long, publish("t", &[7; 198], false)),
        ("length longer than needed", b"\x30\x83\x80\x80\x00\0\x01t", publish("t", b"", false)),
        ("pingreq", b"\xc0\0", Packet::PingReq),
        ("disconnect", b"\xe0\0", Packet::Disconnect),
    ];
    for (name, bytes, expected) in cases {
        assert_eq!(decode(bytes, MAX), Ok(Some((expected, bytes.len()))), "{name}");
        let more = [bytes, b"\xc0\0"].concat();
        assert_eq!(decode(&more, MAX), Ok(Some((expected, bytes.len()))), "{name}, then another");
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len], MAX), Ok(None), "{name}, {len} bytes");
        }
    }
}

#[test]
fn subscriptions() {
    let bytes = b"\x82\x10\x12\x34\0\x01a\0\0\x03b/#\x02\0\x01+\x01";
    let Ok(Some((Packet::Subscribe(subscribe), 18))) = decode(bytes, MAX) else {
        panic!("{:?}", decode(bytes, MAX));
    };
    assert_eq!(subscribe.packet_id, 0x1234);
    assert_eq!(subscribe.filters().collect::<Vec<_>>(), [("a", 0), ("b/#", 2), ("+", 1)]);

    let bytes = b"\xa2\x0a\0\x01\0\x01a\0\x03b/#";
    let Ok(Some((Packet::Unsubscribe(unsubscribe), 12))) = decode(bytes, MAX) else {
        panic!("{:?}", decode(bytes, MAX));
    };
    assert_eq!(unsubscribe.packet_id, 1);
    assert_eq!(unsubscribe.filters().collect::<Vec<_>>(), ["a", "b/#"]);
}

#[test]
fn topic_filters() {
    let good = [
        "a", "/", "a/b", "#", "/#", "a/#", "a/b/#", "+", "/+", "+/+", "a/+/b", "+/#", "+/a/#", " ", "$SYS/#",
        "//", "ä",
    ];
    let bad = [
        "", "a#", "#a", "a/#/b", "#/", "##", "#/#", "a+", "+a", "a/b+", "++", "+#", "a/+b/c", "a+/b", "a/##",
    ];
    for (filter, ok) in good.map(|filter| (filter, true)).into_iter().chain(bad.map(|filter| (filter, false)))
    {
        let (mut subscribe, mut unsubscribe) = (Vec::new(), Vec::new());
        encode::subscribe(&mut subscribe, 1, &[("first", 0), (filter, 0)]);
        encode::unsubscribe(&mut unsubscribe, 1, &["first", filter]);
        for packet in [subscribe, unsubscribe] {
            let found = decode(&packet, MAX).map(|packet| packet.is_some());
            assert_eq!(found, if ok { Ok(true) } else { Err(Malformed::TopicFilter) }, "{filter:?}");
        }
    }
}

#[test]
fn malformed_packets() {
    use Malformed::*;

    let cases: [(&str, &[u8], Malformed); 61] = [
        ("a length of five bytes", b"\x30\x80\x80\x80\x80", RemainingLength),
        ("a length of five bytes, the fifth there", b"\xc0\x80\x80\x80\x80\x00", RemainingLength),
        ("too large", b"\x30\x81\x80\x04", TooLarge { len: MAX + 1, max: MAX }),
        ("the largest length there is", b"\x30\xff\xff\xff\x7f", TooLarge { len: 268_435_455, max: MAX }),
        // CONNECT.
        ("name of another protocol", b"\x10\x0d\0\x04MQTX\x04\x02\0\x3c\0\x01a", ProtocolName),
        ("name in lower case", b"\x10\x0d\0\x04mqtt\x04\x02\0\x3c\0\x01a", ProtocolName),
        ("no name", b"\x10\x09\0\0\x04\x02\0\x3c\0\x01a", ProtocolName),
        ("name that is not UTF-8", b"\x10\x0d\0\x04MQT\xff\x04\x02\0\x3c\0\x01a", ProtocolName),
        ("level 3 of MQTT", b"\x10\x0d\0\x04MQTT\x03\x02\0\x3c\0\x01a", UnsupportedLevel(3)),
        ("level 4 of MQIsdp", b"\x10\x0f\0\x06MQIsdp\x04\x02\0\x3c\0\x01a", UnsupportedLevel(4)),
        ("level 5", b"\x10\x0e\0\x04MQTT\x05\x02\0\x3c\0\0\x01a", UnsupportedLevel(5)),
        ("level 0", b"\x10\x0d\0\x04MQTT\x00\x02\0\x3c\0\x01a", UnsupportedLevel(0)),
        ("a bridge's level", b"\x10\x0d\0\x04MQTT\x84\x02\0\x3c\0\x01a", UnsupportedLevel(0x84)),
        ("level before all that follows", b"\x10\x08\0\x04MQTT\x05\xff", UnsupportedLevel(5)),
        ("level, the rest still to come", b"\x10\x7f\0\x04MQTT\x05", UnsupportedLevel(5)),
        ("name, the rest still to come", b"\x10\x7f\0\x03foo", ProtocolName),
        ("reserved flag", b"\x10\x0d\0\x04MQTT\x04\x03\0\x3c\0\x01a", ReservedConnectFlag),
        ("will QoS of no will", b"\x10\x0d\0\x04MQTT\x04\x0a\0\x3c\0\x01a", WillFlags),
        ("will retain of no will", b"\x10\x0d\0\x04MQTT\x04\x22\0\x3c\0\x01a", WillFlags),
        ("will QoS 3", b"\x10\x13\0\x04MQTT\x04\x1e\0\x3c\0\x01a\0\x01w\0\x01m", WillQos3),
        ("will QoS 3 in 3.1", b"\x10\x15\0\x06MQIsdp\x03\x1e\0\x3c\0\x01a\0\x01w\0\x01m", WillQos3),
        ("password alone", b"\x10\x10\0\x04MQTT\x04\x42\0\x3c\0\x01a\0\x01p", PasswordWithoutUserName),
        (
            "password alone in 3.1",
            b"\x10\x12\0\x06MQIsdp\x03\x42\0\x3c\0\x01a\0\x01p",
            PasswordWithoutUserName,
        ),
        ("empty CONNECT", b"\x10\0", Truncated),
        ("nothing after the level", b"\x10\x07\0\x04MQTT\x04", Truncated),
        ("no client id", b"\x10\x0a\0\x04MQTT\x04\x02\0\x3c", Truncated),
        ("client id past the end", b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x02a", Truncated),
        ("name past the end", b"\x10\x06\0\x07MQTT", Truncated),
        ("no user name", b"\x10\x0d\0\x04MQTT\x04\x82\0\x3c\0\x01a", Truncated),
        ("no password", b"\x10\x10\0\x04MQTT\x04\xc2\0\x3c\0\x01a\0\x01u", Truncated),
        ("half a user name in 3.1", b"\x10\x10\0\x06MQIsdp\x03\x82\0\x3c\0\x01a\0", Truncated),
        ("no will message", b"\x10\x10\0\x04MQTT\x04\x06\0\x3c\0\x01a\0\x01w", Truncated),
        ("a byte too many", b"\x10\x0e\0\x04MQTT\x04\x02\0\x3c\0\x01a\0", TrailingBytes),
        ("a password not announced", b"\x10\x13\0\x04MQTT\x04\x82\0\x3c\0\x01a\0\x01u\0\x01p", TrailingBytes),
        ("client id with U+0000", b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01\0", Nul),
        ("will topic with U+0000", b"\x10\x14\0\x04MQTT\x04\x06\0\x3c\0\x01a\0\x02w\0\0\x01m", Nul),
        ("user name with U+0000", b"\x10\x11\0\x04MQTT\x04\x82\0\x3c\0\x01a\0\x02u\0", Nul),
        ("client id not UTF-8", b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01\xff", Utf8),
        ("client id with a surrogate", b"\x10\x0f\0\x04MQTT\x04\x02\0\x3c\0\x03\xed\xa0\x80", Utf8),
        ("user name not UTF-8", b"\x10\x11\0\x04MQTT\x04\x82\0\x3c\0\x01a\0\x02\xc3\x28", Utf8),
        ("will topic with a wildcard", b"\x10\x13\0\x04MQTT\x04\x06\0\x3c\0\x01a\0\x01#\0\x01m", TopicName),
        ("empty will topic", b"\x10\x12\0\x04MQTT\x04\x06\0\x3c\0\x01a\0\0\0\x01m", TopicName),
        // PUBLISH.
        ("empty topic", b"\x30\x04\0\0hi", TopicName),
        ("topic +", b"\x30\x05\0\x03a/+", TopicName),
        ("topic #", b"\x30\x05\0\x03#/a", TopicName),
        ("topic past the end", b"\x30\x03\0\x02t", Truncated),
        ("empty PUBLISH", b"\x30\0", Truncated),
        ("topic with U+0000", b"\x30\x04\0\x02t\0", Nul),
        ("topic not UTF-8", b"\x30\x04\0\x02\xc0\x80", Utf8),
        // SUBSCRIBE and UNSUBSCRIBE.
        ("subscribe without a filter", b"\x82\x02\0\x01", NoTopicFilter),
        ("unsubscribe without a filter", b"\xa2\x02\0\x01", NoTopicFilter),
        ("subscribe with id 0", b"\x82\x06\0\0\0\x01a\0", PacketId),
        ("unsubscribe with id 0", b"\xa2\x05\0\0\0\x01a", PacketId),
        ("empty SUBSCRIBE", b"\x82\0", Truncated),
        ("no QoS after the second filter", b"\x82\x09\0\x01\0\x01a\0\0\x01b", Truncated),
        ("filter past the end", b"\xa2\x05\0\x01\0\x02a", Truncated),
        ("filter with U+0000", b"\x82\x06\0\x01\0\x01\0\0", Nul),
        ("QoS 3", b"\x82\x06\0\x01\0\x01a\x03", RequestedQos(3)),
        ("reserved bits beside QoS", b"\x82\x06\0\x01\0\x01a\x81", RequestedQos(0x81)),
        // The rest.
        ("pingreq with a body", b"\xc0\x01\0", TrailingBytes),
        ("disconnect with a body, still to come", b"\xe0\x01", TrailingBytes),
    ];
    for (name, bytes, expected) in cases {
        assert_eq!(decode(bytes, MAX), Err(expected), "{name}");
        assert!(!expected.to_string().is_empty());
    }
}

#[test]
fn first_byte_alone() {
    for first in 0..=255_u8 {
        let (kind, flags) = (first >> 4, first & 0x0f);
        let expected = match (kind, flags) {
            (1 | 12 | 14, 0) | (8 | 10, 2) | (3, 0 | 1) => Ok(None),
            (3, 8 | 9) => Err(Malformed::DupAtQos0),
            (3, 6 | 7 | 14 | 15) => Err(Malformed::Qos3),
            (3, _) => Err(Malformed::QosNotSupported(flags >> 1 & 3)),
            (1 | 8 | 10 | 12 | 14, _) => Err(Malformed::HeaderFlags(first)),
            _ => Err(Malformed::PacketType(kind)),
        };
        assert_eq!(decode(&[first], MAX), expected, "{first:#04x}");
        if let Err(malformed) = expected {
            let named = [format!("{first:#04x}"), format!(" {kind} "), "QoS".to_owned()];
            assert!(named.iter().any(|word| malformed.to_string().contains(word)), "{malformed}");
        }

        let expected = match (kind, flags) {
            (3, _) => expected,
            (2 | 9 | 11 | 13, 0) => Ok(None),
            (2 | 9 | 11 | 13, _) => Err(Malformed::HeaderFlags(first)),
            _ => Err(Malformed::PacketType(kind)),
        };
        assert_eq!(decode_server_packet(&[first], MAX).map(|_| None), expected, "reply {first:#04x}");
    }
}

#[test]
fn limit_counts_the_remaining_length() {
    let packet = b"\x30\x05\0\x01thi";
    assert_eq!(decode(packet, 5).map(|packet| packet.is_some()), Ok(true));
    for len in 2..=packet.len() {
        assert_eq!(decode(&packet[..len], 4), Err(Malformed::TooLarge { len: 5, max: 4 }));
    }
}

#[test]
fn server_packets() {
    use ConnectReturnCode::*;

    let encoded = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = b"before".to_vec();
        write(&mut out);
        out.split_off(6)
    };
    for (code, byte) in [
        (Accepted, 0),
        (UnsupportedLevel, 1),
        (IdentifierRejected, 2),
        (ServerUnavailable, 3),
        (BadCredentials, 4),
        (NotAuthorised, 5),
    ] {
        let bytes = encoded(&|out| encode::connack(out, code));
        assert_eq!(bytes, [0x20, 2, 0, byte]);
        let reply = ServerPacket::ConnAck { session_present: false, code: byte };
        assert_eq!(decode_server_packet(&bytes, MAX), Ok(Some((reply, 4))));
    }
    let cases: [(Vec<u8>, &[u8], ServerPacket<'_>); 6] = [
        (
            encoded(&|out| encode::suback(out, 0x1234, 1)),
            b"\x90\x03\x12\x34\0",
            ServerPacket::SubAck { packet_id: 0x1234, codes: &[0] },
        ),
        (
            encoded(&|out| encode::suback(out, 1, 3)),
            b"\x90\x05\0\x01\0\0\0",
            ServerPacket::SubAck { packet_id: 1, codes: &[0; 3] },
        ),
        (
            encoded(&|out| encode::unsuback(out, 0xfffe)),
            b"\xb0\x02\xff\xfe",
            ServerPacket::UnsubAck { packet_id: 0xfffe },
        ),
        (encoded(&encode::pingresp), b"\xd0\0", ServerPacket::PingResp),
        (
            encoded(&|out| encode::publish(out, "a/b", b"hi")),
            b"\x30\x07\0\x03a/bhi",
            ServerPacket::Publish(Publish { topic: "a/b", payload: b"hi", retain: false }),
        ),
        (
            b"\x20\x02\x01\x00".to_vec(),
            b"\x20\x02\x01\0",
            ServerPacket::ConnAck { session_present: true, code: 0 },
        ),
    ];
    for (bytes, expected, reply) in cases {
        assert_eq!(bytes, expected);
        assert_eq!(decode_server_packet(&bytes, MAX), Ok(Some((reply, bytes.len()))));
        for len in 0..bytes.len() {
            assert_eq!(decode_server_packet(&bytes[..len], MAX), Ok(None), "{reply:?}, {len} bytes");
        }
    }
    let malformed: [(&[u8], Malformed); 8] = [
        (b"\x20\x01\0", Malformed::Truncated),
        (b"\x20\x03\0\0\0", Malformed::TrailingBytes),
        (b"\x20\x02\x02\0", Malformed::ConnAckFlags(2)),
        (b"\x90\x03\0\x01\x03", Malformed::SubAckCode(3)),
        (b"\x90\x03\0\0\0", Malformed::PacketId),
        (b"\xb0\x03\0\x01\0", Malformed::TrailingBytes),
        (b"\xd0\x01\0", Malformed::TrailingBytes),
        (b"\x30\x04\0\x02a#", Malformed::TopicName),
    ];
    for (bytes, expected) in malformed {
        assert_eq!(decode_server_packet(bytes, MAX), Err(expected), "{bytes:x?}");
    }
}

#[test]
fn return_codes_of_suback() {
    for code in 0..=255 {
        let bytes = [0x90, 4, 0, 1, 0, code];
        let expected = match code {
            0 | 1 | 2 | 0x80 => Ok(Some((ServerPacket::SubAck { packet_id: 1, codes: &[0, code] }, 6))),
            _ => Err(Malformed::SubAckCode(code)),
        };
        assert_eq!(decode_server_packet(&bytes, MAX), expected, "{code}");
    }
}

#[test]
fn malformed_packets_as_text() {
    use Malformed::*;

    for (malformed, words) in [
        (PacketType(5), "packet type 5 is not expected here"),
        (HeaderFlags(0xc1), "reserved flags in first byte 0xc1"),
        (DupAtQos0, "DUP on a PUBLISH with QoS 0"),
        (Qos3, "PUBLISH with QoS 3, 0 is allowed"),
        (QosNotSupported(1), "PUBLISH with QoS 1, only 0 is supported"),
        (RemainingLength, "remaining length of more than four bytes"),
        (TooLarge { len: 5000, max: 4096 }, "packet of 5000 bytes, 4096 are allowed"),
        (Truncated, "a field runs past the end of its packet"),
        (TrailingBytes, "bytes left after the last field"),
        (Utf8, "a string is not UTF-8"),
        (Nul, "a string holds U+0000"),
        (ProtocolName, "protocol name is neither MQTT nor MQIsdp"),
        (UnsupportedLevel(5), "protocol level 5, only 4 (MQTT) and 3 (MQIsdp) are supported"),
        (ReservedConnectFlag, "reserved connect flag is set"),
        (WillFlags, "will QoS or will retain without a will"),
        (WillQos3, "will QoS 3, at most 2 is allowed"),
        (PasswordWithoutUserName, "password without a user name"),
        (TopicName, "topic name is empty or has a wildcard"),
        (TopicFilter, "topic filter is empty or has a misplaced wildcard"),
        (PacketId, "packet identifier 0"),
        (NoTopicFilter, "no topic filter"),
        (RequestedQos(3), "requested QoS byte 0x03, at most 2 is allowed"),
        (ConnAckFlags(2), "reserved flags 0x02 in CONNACK"),
        (SubAckCode(0x81), "return code 0x81 in SUBACK"),
    ] {
        assert_eq!(malformed.to_string(), words);
    }
}

#[test]
fn client_packets() {
    let mut out = Vec::new();
    let will = Some(Will { qos: 2, retain: true, ..WILL });
    encode::connect(&mut out, &Connect { will, user_name: Some("u"), password: Some(b"p"), ..CONNECT });
    encode::connect(&mut out, &Connect { level: ProtocolLevel::V31, clean_session: false, ..CONNECT });
    encode::subscribe(&mut out, 258, &[("a", 0), ("b/#", 2)]);
    encode::unsubscribe(&mut out, 3, &["a"]);
    encode::pingreq(&mut out);
    encode::disconnect(&mut out);
    let expected: [&[u8]; 6] = [
        b"\x10\x1b\0\x04MQTT\x04\xf6\0\x3c\0\x01a\0\x01w\0\x03bye\0\x01u\0\x01p",
        b"\x10\x0f\0\x06MQIsdp\x03\x00\0\x3c\0\x01a",
        b"\x82\x0c\x01\x02\0\x01a\0\0\x03b/#\x02",
        b"\xa2\x05\0\x03\0\x01a",
        b"\xc0\0",
        b"\xe0\0",
    ];
    assert_eq!(out, expected.concat());
}

#[test]
fn remaining_length_boundaries() {
    let cases: [(usize, &[u8]); 8] = [
        (3, b"\x03"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (16_383, b"\xff\x7f"),
        (16_384, b"\x80\x80\x01"),
        (100_000, b"\xa0\x8d\x06"),
        (2_097_151, b"\xff\xff\x7f"),
        (2_097_152, b"\x80\x80\x80\x01"),
    ];
    for (len, expected) in cases {
        let (mut out, payload) = (Vec::new(), vec![7; len - 3]);
        encode::publish(&mut out, "t", &payload);
        assert_eq!(&out[1..1 + expected.len()], expected, "{len}");
        let publish = Publish { topic: "t", payload: &payload, retain: false };
        assert_eq!(decode(&out, len), Ok(Some((Packet::Publish(publish), out.len()))), "{len}");
        assert_eq!(decode(&out[..out.len() - 1], len), Ok(None), "{len}");
    }
}

#[test]
fn overlong_fields_are_truncated() {
    let long = "x".repeat(70_000);
    let mut out = Vec::new();
    encode::publish(&mut out, &long, b"hi");
    let publish = Publish { topic: &long[..65_535], payload: b"hi", retain: false };
    assert_eq!(decode(&out, usize::MAX), Ok(Some((Packet::Publish(publish), out.len()))));
}

/// The owned fields of a packet of any type.
#[derive(Debug, Clone)]
enum OwnedPacket {
    Connect {
        v31: bool,
        clean: bool,
        keep_alive: u16,
        client_id: String,
        will: Option<(String, Vec<u8>, u8, bool)>,
        user: Option<(String, Option<Vec<u8>>)>,
    },
    Publish(String, Vec<u8>),
    Subscribe(u16, Vec<(String, u8)>),
    Unsubscribe(u16, Vec<String>),
    PingReq,
    Disconnect,
}

fn any_packet() -> impl Strategy<Value = OwnedPacket> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..200);
    let text = || "[^\0]{0,40}";
    let topic = || "[^\0+#]{1,40}";
    let filter = || prop_oneof![topic(), Just("#".into()), Just("a/+/b".into()), Just("a/#".into())];
    let will = prop::option::of((topic(), bytes(), 0..3_u8, any::<bool>()));
    let user = prop::option::of((text(), prop::option::of(bytes())));
    prop_oneof![
        (any::<bool>(), any::<bool>(), any::<u16>(), text(), will, user).prop_map(
            |(v31, clean, keep_alive, client_id, will, user)| OwnedPacket::Connect {
                v31,
                clean,
                keep_alive,
                client_id,
                will,
                user
            }
        ),
        (topic(), bytes()).prop_map(|(topic, payload)| OwnedPacket::Publish(topic, payload)),
        (1_u16.., prop::collection::vec((filter(), 0..3_u8), 1..8))
            .prop_map(|(id, list)| OwnedPacket::Subscribe(id, list)),
        (1_u16.., prop::collection::vec(filter(), 1..8))
            .prop_map(|(id, list)| OwnedPacket::Unsubscribe(id, list)),
        Just(OwnedPacket::PingReq),
        Just(OwnedPacket::Disconnect),
    ]
}

impl OwnedPacket {
    fn connect(&self) -> Option<Connect<'_>> {
        let Self::Connect { v31, clean, keep_alive, client_id, will, user } = self else {
            return None;
        };
        Some(Connect {
            level: if *v31 { ProtocolLevel::V31 } else { ProtocolLevel::V311 },
            client_id,
            clean_session: *clean,
            keep_alive: *keep_alive,
            will: will.as_ref().map(|(topic, message, qos, retain)| Will {
                topic,
                message,
                qos: *qos,
                retain: *retain,
            }),
            user_name: user.as_ref().map(|(name, _)| &**name),
            password: user.as_ref().and_then(|(_, password)| password.as_deref()),
        })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Connect { .. } => encode::connect(out, &self.connect().unwrap()),
            Self::Publish(topic, payload) => encode::publish(out, topic, payload),
            Self::Subscribe(id, list) => {
                let list: Vec<_> = list.iter().map(|(filter, qos)| (&**filter, *qos)).collect();
                encode::subscribe(out, *id, &list);
            }
            Self::Unsubscribe(id, list) => {
                encode::unsubscribe(out, *id, &list.iter().map(|filter| &**filter).collect::<Vec<_>>());
            }
            Self::PingReq => encode::pingreq(out),
            Self::Disconnect => encode::disconnect(out),
        }
    }

    fn is(&self, packet: Packet<'_>) -> bool {
        match (self, packet) {
            (Self::Connect { .. }, Packet::Connect(connect)) => self.connect() == Some(connect),
            (Self::Publish(topic, payload), Packet::Publish(publish)) => {
                publish == Publish { topic, payload, retain: false }
            }
            (Self::Subscribe(id, list), Packet::Subscribe(subscribe)) => {
                subscribe.packet_id == *id
                    && subscribe.filters().eq(list.iter().map(|(filter, qos)| (&**filter, *qos)))
            }
            (Self::Unsubscribe(id, list), Packet::Unsubscribe(unsubscribe)) => {
                unsubscribe.packet_id == *id && unsubscribe.filters().eq(list)
            }
            (Self::PingReq, Packet::PingReq) | (Self::Disconnect, Packet::Disconnect) => true,
            _ => false,
        }
    }
}

/// Packets with a few bytes changed, which reach more code than random bytes.
fn corrupted_packet() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (any_packet(), changes).prop_map(|(packet, changes)| {
        let mut bytes = Vec::new();
        packet.encode(&mut bytes);
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn packets_round_trip(packets in prop::collection::vec(any_packet(), 1..5)) {
        let mut stream = Vec::new();
        packets.iter().for_each(|packet| packet.encode(&mut stream));
        let mut rest = &stream[..];
        for expected in &packets {
            let (packet, used) = decode(rest, MAX).unwrap().unwrap();
            prop_assert!(expected.is(packet), "{:?} became {:?}", expected, packet);
            for len in 0..used {
                prop_assert_eq!(decode(&rest[..len], MAX), Ok(None));
            }
            rest = &rest[used..];
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn any_split_gives_the_same_packets(packets in prop::collection::vec(any_packet(), 1..6), sizes in prop::collection::vec(1..40_usize, 1..20)) {
        let mut stream = Vec::new();
        packets.iter().for_each(|packet| packet.encode(&mut stream));
        // As a connection does it: the bytes of an incomplete packet are kept until more arrive.
        let (mut waits, mut found, mut sizes) = (Vec::new(), 0, sizes.iter().cycle());
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (part, after) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
            waits.extend_from_slice(part);
            rest = after;
            while let Some((packet, used)) = decode(&waits, MAX).unwrap() {
                prop_assert!(packets[found].is(packet), "{:?} became {:?}", packets[found], packet);
                found += 1;
                waits.drain(..used);
            }
        }
        prop_assert_eq!((found, waits.len()), (packets.len(), 0));
    }

    #[test]
    fn more_bytes_do_not_change_the_result(bytes in prop_oneof![corrupted_packet(), prop::collection::vec(any::<u8>(), 0..60)], max in 0..400_usize) {
        let (whole, whole_reply) = (decode(&bytes, max), decode_server_packet(&bytes, max));
        for len in 0..bytes.len() {
            let part = decode(&bytes[..len], max);
            prop_assert!(part == Ok(None) || part == whole, "{} bytes: {:?}, all: {:?}", len, part, whole);
            let part = decode_server_packet(&bytes[..len], max);
            prop_assert!(part == Ok(None) || part == whole_reply, "{} bytes: {:?}, all: {:?}", len, part, whole_reply);
        }
        if let Ok(Some((_, used))) = whole {
            prop_assert!(used <= bytes.len() && used <= max + 5);
        }
    }
}
