//! Decoding of packets.

use super::{
    CLEAN_SESSION, CONNACK, CONNECT, Connect, DISCONNECT, Malformed, PASSWORD, PINGREQ, PINGRESP, PUBLISH,
    Packet, ProtocolLevel, Publish, RESERVED_FLAG, SUBACK, SUBSCRIBE, ServerPacket, Subscribe, UNSUBACK,
    UNSUBSCRIBE, USER_NAME, Unsubscribe, WILL, WILL_RETAIN, Will,
};

/// Decodes a client's packet at the start of `bytes`. Returns the packet and its length, or `None` if more bytes are needed.
///
/// Each check is made as soon as possible: type and flags after the first byte, `max_remaining` (the limit of the remaining length)
/// after the fixed header, the protocol of a CONNECT after its level.
pub fn decode(bytes: &[u8], max_remaining: usize) -> Result<Option<(Packet<'_>, usize)>, Malformed> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    match first >> 4 {
        CONNECT | PINGREQ | DISCONNECT => check_header_flags(first, 0)?,
        SUBSCRIBE | UNSUBSCRIBE => check_header_flags(first, 0b0010)?,
        PUBLISH => check_publish_flags(first)?,
        other => return Err(Malformed::PacketType(other)),
    }
    let Some((start, len)) = remaining_length(bytes, max_remaining)? else {
        return Ok(None);
    };
    if matches!(first >> 4, PINGREQ | DISCONNECT) && len != 0 {
        return Err(Malformed::TrailingBytes);
    }
    let Some(body) = bytes.get(start..start + len) else {
        if first >> 4 == CONNECT {
            // A client of another version or protocol is refused before it has sent the rest.
            match decode_protocol(&mut FieldReader(&bytes[start..])) {
                Ok(_) | Err(Malformed::Truncated) => {}
                Err(malformed) => return Err(malformed),
            }
        }
        return Ok(None);
    };
    let packet = match first >> 4 {
        CONNECT => Packet::Connect(decode_connect(body)?),
        PUBLISH => Packet::Publish(decode_publish(first, body)?),
        SUBSCRIBE => {
            let (packet_id, body) = decode_subscriptions(body, true)?;
            Packet::Subscribe(Subscribe { packet_id, raw_filters: body })
        }
        UNSUBSCRIBE => {
            let (packet_id, body) = decode_subscriptions(body, false)?;
            Packet::Unsubscribe(Unsubscribe { packet_id, raw_filters: body })
        }
        PINGREQ => Packet::PingReq,
        _ => Packet::Disconnect,
    };
    Ok(Some((packet, start + len)))
}

/// The length of the packet at the start of `bytes`, with its fixed header. `None` if more bytes are needed, or it is no packet.
pub fn packet_len(bytes: &[u8]) -> Option<usize> {
    let (start, len) = remaining_length(bytes, usize::MAX).ok()??;
    Some(start + len)
}

/// Decodes a server's packet at the start of `bytes`, as [`decode`] does for a client's.
pub fn decode_server_packet(
    bytes: &[u8],
    max_remaining: usize,
) -> Result<Option<(ServerPacket<'_>, usize)>, Malformed> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    match first >> 4 {
        CONNACK | SUBACK | UNSUBACK | PINGRESP => check_header_flags(first, 0)?,
        PUBLISH => check_publish_flags(first)?,
        other => return Err(Malformed::PacketType(other)),
    }
    let Some((start, len)) = remaining_length(bytes, max_remaining)? else {
        return Ok(None);
    };
    let Some(body) = bytes.get(start..start + len) else {
        return Ok(None);
    };
    let mut fields = FieldReader(body);
    let reply = match first >> 4 {
        CONNACK => {
            let flags = fields.byte()?;
            if flags > 1 {
                return Err(Malformed::ConnAckFlags(flags));
            }
            ServerPacket::ConnAck { session_present: flags == 1, code: fields.byte()? }
        }
        PUBLISH => return Ok(Some((ServerPacket::Publish(decode_publish(first, body)?), start + len))),
        SUBACK => {
            let packet_id = fields.packet_id()?;
            let codes = std::mem::take(&mut fields.0);
            if let Some(&code) = codes.iter().find(|code| !matches!(code, 0..=2 | 0x80)) {
                return Err(Malformed::SubAckCode(code));
            }
            ServerPacket::SubAck { packet_id, codes }
        }
        UNSUBACK => ServerPacket::UnsubAck { packet_id: fields.packet_id()? },
        _ => ServerPacket::PingResp,
    };
    fields.expect_end()?;
    Ok(Some((reply, start + len)))
}

/// The filters of a body that was checked before, each with its QoS if it is that of a SUBSCRIBE.
pub(super) fn filters(body: &[u8], with_qos: bool) -> impl Iterator<Item = (&str, u8)> {
    let mut fields = FieldReader(body);
    std::iter::from_fn(move || {
        let filter = fields.string().ok()?;
        let qos = if with_qos { fields.byte().ok()? } else { 0 };
        Some((filter, qos))
    })
}

/// Checks the flags of a packet with reserved flags (section 2.2.2).
fn check_header_flags(first: u8, expected: u8) -> Result<(), Malformed> {
    if first & 0x0f == expected { Ok(()) } else { Err(Malformed::HeaderFlags(first)) }
}

/// Checks DUP, QoS and RETAIN of a PUBLISH (section 3.3.1).
fn check_publish_flags(first: u8) -> Result<(), Malformed> {
    let dup = first & 0b1000 != 0;
    match first >> 1 & 0b11 {
        0 if dup => Err(Malformed::DupAtQos0),
        0 => Ok(()),
        3 => Err(Malformed::Qos3),
        qos => Err(Malformed::QosNotSupported(qos)),
    }
}

/// The length of the fixed header, and the remaining length (section 2.2.3).
fn remaining_length(bytes: &[u8], max: usize) -> Result<Option<(usize, usize)>, Malformed> {
    let mut len = 0;
    for index in 0..4 {
        let Some(&byte) = bytes.get(1 + index) else {
            return Ok(None);
        };
        len |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return if len > max {
                Err(Malformed::TooLarge { len, max })
            } else {
                Ok(Some((2 + index, len)))
            };
        }
    }
    Err(Malformed::RemainingLength)
}

fn decode_connect(body: &[u8]) -> Result<Connect<'_>, Malformed> {
    let mut fields = FieldReader(body);
    let level = decode_protocol(&mut fields)?;
    let flags = fields.byte()?;
    if level == ProtocolLevel::V311 && flags & RESERVED_FLAG != 0 {
        return Err(Malformed::ReservedConnectFlag);
    }
    let keep_alive = fields.u16()?;
    let client_id = fields.string()?;
    let will = decode_will(level, flags, &mut fields)?;
    // MQTT 3.1, section 3.1, "User name and password flags": the remaining length takes precedence over these flags.
    let present = |flag, fields: &FieldReader<'_>| {
        flags & flag != 0 && !(level == ProtocolLevel::V31 && fields.0.is_empty())
    };
    if flags & USER_NAME == 0 && flags & PASSWORD != 0 {
        return Err(Malformed::PasswordWithoutUserName);
    }
    let user_name = if present(USER_NAME, &fields) { Some(fields.string()?) } else { None };
    let password = if present(PASSWORD, &fields) { Some(fields.binary()?) } else { None };
    fields.expect_end()?;
    let clean_session = flags & CLEAN_SESSION != 0;
    Ok(Connect { level, client_id, clean_session, keep_alive, will, user_name, password })
}

/// Protocol name and level (sections 3.1.2.1 and 3.1.2.2).
fn decode_protocol(fields: &mut FieldReader<'_>) -> Result<ProtocolLevel, Malformed> {
    let name = fields.binary()?;
    if !matches!(name, b"MQTT" | b"MQIsdp") {
        return Err(Malformed::ProtocolName);
    }
    match (name, fields.byte()?) {
        (b"MQTT", 4) => Ok(ProtocolLevel::V311),
        (b"MQIsdp", 3) => Ok(ProtocolLevel::V31),
        (_, level) => Err(Malformed::UnsupportedLevel(level)),
    }
}

/// The will and its flags (sections 3.1.2.5 to 3.1.2.7). Without a will, MQTT 3.1 ignores the flags for QoS and retain.
fn decode_will<'a>(
    level: ProtocolLevel,
    flags: u8,
    fields: &mut FieldReader<'a>,
) -> Result<Option<Will<'a>>, Malformed> {
    let qos = flags >> 3 & 0b11;
    let retain = flags & WILL_RETAIN != 0;
    if flags & WILL == 0 {
        let stray = level == ProtocolLevel::V311 && (qos != 0 || retain);
        return if stray { Err(Malformed::WillFlags) } else { Ok(None) };
    }
    if qos == 3 {
        return Err(Malformed::WillQos3);
    }
    Ok(Some(Will { topic: fields.topic_name()?, message: fields.binary()?, qos, retain }))
}

fn decode_publish(first: u8, body: &[u8]) -> Result<Publish<'_>, Malformed> {
    let mut fields = FieldReader(body);
    Ok(Publish { topic: fields.topic_name()?, payload: fields.0, retain: first & 1 != 0 })
}

/// The packet identifier and the bytes of the filters, at least one, all checked.
fn decode_subscriptions(body: &[u8], with_qos: bool) -> Result<(u16, &[u8]), Malformed> {
    let mut fields = FieldReader(body);
    let packet_id = fields.packet_id()?;
    let body = fields.0;
    if body.is_empty() {
        return Err(Malformed::NoTopicFilter);
    }
    while !fields.0.is_empty() {
        if !is_topic_filter(fields.string()?) {
            return Err(Malformed::TopicFilter);
        }
        if with_qos && let qos @ 3.. = fields.byte()? {
            return Err(Malformed::RequestedQos(qos));
        }
    }
    Ok((packet_id, body))
}

/// A wildcard must be a whole level, and `#` the last one (section 4.7.1).
fn is_topic_filter(filter: &str) -> bool {
    let mut levels = filter.split('/').rev();
    let fits = |level: &str| level == "+" || !level.contains(['+', '#']);
    !filter.is_empty() && levels.next().is_some_and(|last| last == "#" || fits(last)) && levels.all(fits)
}

/// The fields of a packet that were not read yet.
struct FieldReader<'a>(&'a [u8]);

impl<'a> FieldReader<'a> {
    fn byte(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.0.split_first().ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let (&bytes, rest) = self.0.split_first_chunk().ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(bytes))
    }

    /// Bytes after their length.
    fn binary(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u16()?;
        let (bytes, rest) = self.0.split_at_checked(len.into()).ok_or(Malformed::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A string (section 1.5.3).
    fn string(&mut self) -> Result<&'a str, Malformed> {
        let text = str::from_utf8(self.binary()?).map_err(|_| Malformed::Utf8)?;
        if text.contains('\0') { Err(Malformed::Nul) } else { Ok(text) }
    }

    /// Not empty, no wildcard (section 4.7).
    fn topic_name(&mut self) -> Result<&'a str, Malformed> {
        let name = self.string()?;
        if name.is_empty() || name.contains(['+', '#']) { Err(Malformed::TopicName) } else { Ok(name) }
    }

    fn packet_id(&mut self) -> Result<u16, Malformed> {
        match self.u16()? {
            0 => Err(Malformed::PacketId),
            id => Ok(id),
        }
    }

    fn expect_end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed::TrailingBytes) }
    }
}
