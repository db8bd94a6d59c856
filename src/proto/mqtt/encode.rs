//! Encoding of packets. Each function appends one packet to a buffer.
//!
//! Strings and binary fields have at most 65,535 bytes (section 1.5.3), and packets 268,435,455 after the fixed header (section
//! 2.2.3). What the gateway sends is far smaller. A longer field is cut.

use super::{
    CLEAN_SESSION, CONNACK, CONNECT, Connect, ConnectReturnCode, DISCONNECT, PASSWORD, PINGREQ, PINGRESP,
    PUBLISH, ProtocolLevel, SUBACK, UNSUBACK, USER_NAME, WILL, WILL_RETAIN,
};

/// CONNACK. Session present is not set, since there are no stored sessions.
pub fn connack(out: &mut Vec<u8>, code: ConnectReturnCode) {
    out.extend([CONNACK << 4, 2, 0, code as u8]);
}

/// SUBACK that grants QoS 0 to this many filters.
pub fn suback(out: &mut Vec<u8>, packet_id: u16, filters: usize) {
    fixed_header(out, SUBACK << 4, 2 + filters);
    out.extend(packet_id.to_be_bytes());
    out.resize(out.len() + filters, 0);
}

/// UNSUBACK.
pub fn unsuback(out: &mut Vec<u8>, packet_id: u16) {
    fixed_header(out, UNSUBACK << 4, 2);
    out.extend(packet_id.to_be_bytes());
}

/// PINGRESP.
pub fn pingresp(out: &mut Vec<u8>) {
    fixed_header(out, PINGRESP << 4, 0);
}

/// PUBLISH with QoS 0, not retained.
pub fn publish(out: &mut Vec<u8>, topic: &str, payload: &[u8]) {
    fixed_header(out, PUBLISH << 4, length_prefixed_len(topic.as_bytes()) + payload.len());
    length_prefixed(out, topic.as_bytes());
    out.extend(payload);
}

/// CONNECT.
pub fn connect(out: &mut Vec<u8>, connect: &Connect<'_>) {
    let (name, level) = match connect.level {
        ProtocolLevel::V31 => ("MQIsdp", 3),
        ProtocolLevel::V311 => ("MQTT", 4),
    };
    let mut flags = if connect.clean_session { CLEAN_SESSION } else { 0 };
    let mut payload = vec![connect.client_id.as_bytes()];
    if let Some(will) = connect.will {
        flags |= WILL | will.qos << 3 | if will.retain { WILL_RETAIN } else { 0 };
        payload.extend([will.topic.as_bytes(), will.message]);
    }
    if let Some(user_name) = connect.user_name {
        flags |= USER_NAME;
        payload.push(user_name.as_bytes());
    }
    if let Some(password) = connect.password {
        flags |= PASSWORD;
        payload.push(password);
    }
    let fixed = length_prefixed_len(name.as_bytes()) + 4;
    fixed_header(
        out,
        CONNECT << 4,
        fixed + payload.iter().map(|bytes| length_prefixed_len(bytes)).sum::<usize>(),
    );
    length_prefixed(out, name.as_bytes());
    out.extend([level, flags]);
    out.extend(connect.keep_alive.to_be_bytes());
    for bytes in payload {
        length_prefixed(out, bytes);
    }
}

/// SUBSCRIBE to filters, each with its requested QoS.
#[cfg(any(test, fuzzing))]
pub fn subscribe(out: &mut Vec<u8>, packet_id: u16, filters: &[(&str, u8)]) {
    let len = filters.iter().map(|(filter, _)| length_prefixed_len(filter.as_bytes()) + 1).sum::<usize>();
    fixed_header(out, super::SUBSCRIBE << 4 | 0b0010, 2 + len);
    out.extend(packet_id.to_be_bytes());
    for (filter, qos) in filters {
        length_prefixed(out, filter.as_bytes());
        out.push(*qos);
    }
}

/// UNSUBSCRIBE from filters.
#[cfg(any(test, fuzzing))]
pub fn unsubscribe(out: &mut Vec<u8>, packet_id: u16, filters: &[&str]) {
    let len = filters.iter().map(|filter| length_prefixed_len(filter.as_bytes())).sum::<usize>();
    fixed_header(out, super::UNSUBSCRIBE << 4 | 0b0010, 2 + len);
    out.extend(packet_id.to_be_bytes());
    for filter in filters {
        length_prefixed(out, filter.as_bytes());
    }
}

/// PINGREQ.
pub fn pingreq(out: &mut Vec<u8>) {
    fixed_header(out, PINGREQ << 4, 0);
}

/// DISCONNECT.
pub fn disconnect(out: &mut Vec<u8>) {
    fixed_header(out, DISCONNECT << 4, 0);
}

/// The fixed header: first byte and remaining length (section 2.2).
fn fixed_header(out: &mut Vec<u8>, first: u8, mut remaining: usize) {
    debug_assert!(remaining < 1 << 28, "no remaining length of four bytes holds {remaining}");
    out.reserve(1 + 4 + remaining);
    out.push(first);
    while remaining > 0x7f {
        out.push(remaining as u8 | 0x80);
        remaining >>= 7;
    }
    out.push(remaining as u8);
}

/// The length of the bytes, and the bytes.
fn length_prefixed(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend(len.to_be_bytes());
    out.extend(&bytes[..len.into()]);
}

/// The number of bytes that [`length_prefixed`] appends.
fn length_prefixed_len(bytes: &[u8]) -> usize {
    2 + bytes.len().min(u16::MAX.into())
}
