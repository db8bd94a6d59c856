//! The QoS 0 part of MQTT 3.1.1 (OASIS, 29 October 2014) and 3.1, for a server and for a simple client.
//!
//! Decoding borrows from the received bytes and copies nothing. Section numbers in this module are those of MQTT 3.1.1.

use std::fmt;

mod decode;
pub mod encode;

pub use decode::{decode, decode_server_packet, packet_len};

/// The protocol version of a connection. Other versions are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolLevel {
    /// `MQIsdp` with level 3.
    V31,
    /// `MQTT` with level 4.
    V311,
}

/// A packet of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Section 3.1.
    Connect(Connect<'a>),
    /// Section 3.3, with QoS 0.
    Publish(Publish<'a>),
    /// Section 3.8.
    Subscribe(Subscribe<'a>),
    /// Section 3.10.
    Unsubscribe(Unsubscribe<'a>),
    /// Section 3.12.
    PingReq,
    /// Section 3.14.
    Disconnect,
}

/// CONNECT, section 3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connect<'a> {
    /// Protocol version.
    pub level: ProtocolLevel,
    /// May be empty in MQTT.
    pub client_id: &'a str,
    /// The client wants no stored session.
    pub clean_session: bool,
    /// Seconds; 0 turns the keep alive off.
    pub keep_alive: u16,
    /// The message to publish if the connection is lost.
    pub will: Option<Will<'a>>,
    /// User name.
    pub user_name: Option<&'a str>,
    /// The password: any bytes, and never without a user name.
    pub password: Option<&'a [u8]>,
}

/// The will in a CONNECT, section 3.1.3.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Will<'a> {
    /// Topic name, not empty and without wildcards.
    pub topic: &'a str,
    /// Any bytes.
    pub message: &'a [u8],
    /// 0, 1 or 2.
    pub qos: u8,
    /// Whether the message is to be retained.
    pub retain: bool,
}

/// PUBLISH with QoS 0, section 3.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Topic name, not empty and without wildcards.
    pub topic: &'a str,
    /// Any bytes, may be empty.
    pub payload: &'a [u8],
    /// Whether the message is to be retained.
    pub retain: bool,
}

/// SUBSCRIBE, section 3.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// Never 0.
    pub packet_id: u16,
    /// Checked pairs of filter and QoS.
    raw_filters: &'a [u8],
}

impl<'a> Subscribe<'a> {
    /// The topic filters, at least one, each with the requested QoS.
    pub fn filters(&self) -> impl Iterator<Item = (&'a str, u8)> + use<'a> {
        decode::filters(self.raw_filters, true)
    }
}

/// UNSUBSCRIBE, section 3.10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// Never 0.
    pub packet_id: u16,
    /// Checked filters.
    raw_filters: &'a [u8],
}

impl<'a> Unsubscribe<'a> {
    /// The topic filters, at least one.
    pub fn filters(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        decode::filters(self.raw_filters, false).map(|(filter, _)| filter)
    }
}

/// A packet of a server to a client that subscribes with QoS 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerPacket<'a> {
    /// Section 3.2.
    ConnAck {
        /// The server has a stored session of this client.
        session_present: bool,
        /// See [`ConnectReturnCode`].
        code: u8,
    },
    /// Section 3.3, with QoS 0.
    Publish(Publish<'a>),
    /// Section 3.9.
    SubAck {
        /// The packet id of the SUBSCRIBE.
        packet_id: u16,
        /// One per filter: the granted QoS, or 0x80.
        codes: &'a [u8],
    },
    /// Section 3.11.
    UnsubAck {
        /// The packet id of the UNSUBSCRIBE.
        packet_id: u16,
    },
    /// Section 3.13.
    PingResp,
}

/// Return codes of CONNACK, section 3.2.2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectReturnCode {
    /// Connection accepted.
    Accepted = 0,
    /// Unacceptable protocol version.
    UnsupportedLevel = 1,
    /// Identifier rejected.
    IdentifierRejected = 2,
    /// Server unavailable.
    ServerUnavailable = 3,
    /// Bad user name or password.
    BadCredentials = 4,
    /// Not authorised.
    NotAuthorised = 5,
}

/// Why bytes are not a valid packet. The connection must be closed (section 4.8). Only [`Self::UnsupportedLevel`] is answered
/// before that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// A packet type that this side does not accept (section 2.2.1), including those of QoS 1 and 2.
    PacketType(u8),
    /// Wrong reserved flags in the first byte, which this is (section 2.2.2).
    HeaderFlags(u8),
    /// DUP on a PUBLISH with QoS 0 (section 3.3.1.1).
    DupAtQos0,
    /// A PUBLISH with QoS 3 (section 3.3.1.2).
    Qos3,
    /// A PUBLISH with QoS 1 or 2: legal MQTT, but not served here.
    QosNotSupported(u8),
    /// A remaining length of more than four bytes (section 2.2.3).
    RemainingLength,
    /// A packet that is too long.
    TooLarge {
        /// Its remaining length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A field exceeds its packet.
    Truncated,
    /// Bytes are left after a packet's last field.
    TrailingBytes,
    /// A string is not UTF-8 (section 1.5.3).
    Utf8,
    /// A string contains U+0000 (section 1.5.3).
    Nul,
    /// A CONNECT of another protocol (section 3.1.2.1). It is not answered.
    ProtocolName,
    /// A protocol level other than 4 of `MQTT` and 3 of `MQIsdp` (section 3.1.2.2). It is answered with return code 1.
    UnsupportedLevel(u8),
    /// The reserved connect flag is set (section 3.1.2.3).
    ReservedConnectFlag,
    /// Will QoS or will retain without a will (sections 3.1.2.6 and 3.1.2.7).
    WillFlags,
    /// Will QoS 3 (section 3.1.2.6).
    WillQos3,
    /// A password without a user name (section 3.1.2.9).
    PasswordWithoutUserName,
    /// A topic name that is empty or has a wildcard (section 4.7).
    TopicName,
    /// A topic filter that is empty or has a misplaced wildcard (section 4.7).
    TopicFilter,
    /// Packet identifier 0 (section 2.3.1).
    PacketId,
    /// SUBSCRIBE or UNSUBSCRIBE without a filter (sections 3.8.3 and 3.10.3).
    NoTopicFilter,
    /// A requested QoS above 2 or with reserved bits (section 3.8.3.1).
    RequestedQos(u8),
    /// Reserved flags in CONNACK (section 3.2.2.1).
    ConnAckFlags(u8),
    /// A return code that SUBACK does not have (section 3.9.3).
    SubAckCode(u8),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PacketType(kind) => write!(f, "packet type {kind} is not expected here"),
            Self::HeaderFlags(byte) => write!(f, "reserved flags in first byte {byte:#04x}"),
            Self::DupAtQos0 => f.write_str("DUP on a PUBLISH with QoS 0"),
            Self::Qos3 => f.write_str("PUBLISH with QoS 3, 0 is allowed"),
            Self::QosNotSupported(qos) => write!(f, "PUBLISH with QoS {qos}, only 0 is supported"),
            Self::RemainingLength => f.write_str("remaining length of more than four bytes"),
            Self::TooLarge { len, max } => write!(f, "packet of {len} bytes, {max} are allowed"),
            Self::Truncated => f.write_str("a field runs past the end of its packet"),
            Self::TrailingBytes => f.write_str("bytes left after the last field"),
            Self::Utf8 => f.write_str("a string is not UTF-8"),
            Self::Nul => f.write_str("a string holds U+0000"),
            Self::ProtocolName => f.write_str("protocol name is neither MQTT nor MQIsdp"),
            Self::UnsupportedLevel(level) => {
                write!(f, "protocol level {level}, only 4 (MQTT) and 3 (MQIsdp) are supported")
            }
            Self::ReservedConnectFlag => f.write_str("reserved connect flag is set"),
            Self::WillFlags => f.write_str("will QoS or will retain without a will"),
            Self::WillQos3 => f.write_str("will QoS 3, at most 2 is allowed"),
            Self::PasswordWithoutUserName => f.write_str("password without a user name"),
            Self::TopicName => f.write_str("topic name is empty or has a wildcard"),
            Self::TopicFilter => f.write_str("topic filter is empty or has a misplaced wildcard"),
            Self::PacketId => f.write_str("packet identifier 0"),
            Self::NoTopicFilter => f.write_str("no topic filter"),
            Self::RequestedQos(qos) => write!(f, "requested QoS byte {qos:#04x}, at most 2 is allowed"),
            Self::ConnAckFlags(flags) => write!(f, "reserved flags {flags:#04x} in CONNACK"),
            Self::SubAckCode(code) => write!(f, "return code {code:#04x} in SUBACK"),
        }
    }
}

impl std::error::Error for Malformed {}

// Packet types, section 2.2.1.
const CONNECT: u8 = 1;
const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;
const SUBSCRIBE: u8 = 8;
const SUBACK: u8 = 9;
const UNSUBSCRIBE: u8 = 10;
const UNSUBACK: u8 = 11;
const PINGREQ: u8 = 12;
const PINGRESP: u8 = 13;
const DISCONNECT: u8 = 14;

// Connect flags, section 3.1.2.3. Bits 3 and 4 are the will's QoS.
const RESERVED_FLAG: u8 = 1;
const CLEAN_SESSION: u8 = 1 << 1;
const WILL: u8 = 1 << 2;
const WILL_RETAIN: u8 = 1 << 5;
const PASSWORD: u8 = 1 << 6;
const USER_NAME: u8 = 1 << 7;

#[cfg(test)]
mod tests;
