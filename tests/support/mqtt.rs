//! An MQTT client on bytes: it sends anything, valid or not, and splits the input into packets.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::ops::Deref;
use std::time::{Duration, Instant};

use openssl::ssl::SslStream;

use super::{TIMEOUT, remaining};

pub const CONNECT: u8 = 0x10;
pub const CONNACK: u8 = 0x20;
pub const PUBLISH: u8 = 0x30;
pub const SUBSCRIBE: u8 = 0x82;
pub const SUBACK: u8 = 0x90;
pub const UNSUBSCRIBE: u8 = 0xa2;
pub const UNSUBACK: u8 = 0xb0;
pub const PINGREQ: [u8; 2] = [0xc0, 0];
pub const PINGRESP: [u8; 2] = [0xd0, 0];
pub const DISCONNECT: [u8; 2] = [0xe0, 0];

/// What a device that has said nothing for two seconds is sent in the first minute of the gateway (`src/session/restart_recovery.rs`).
pub const LEAVE_UNKNOWN_CALL: &str = r#"{"type":"tts","state":"stop"}"#;

/// A packet: its first byte, and the bytes after the remaining length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub first: u8,
    pub body: Vec<u8>,
}

impl Packet {
    /// A CONNACK with this return code, and no session present.
    pub fn connack(code: u8) -> Self {
        Self { first: CONNACK, body: vec![0, code] }
    }

    /// The topic and payload of a PUBLISH with QoS 0.
    pub fn message(&self) -> (&str, &str) {
        assert_eq!(self.first, PUBLISH, "{self:?}");
        let (len, rest) = self.body.split_at(2);
        let (topic, payload) = rest.split_at(usize::from(u16::from_be_bytes([len[0], len[1]])));
        (std::str::from_utf8(topic).unwrap(), std::str::from_utf8(payload).unwrap())
    }
}

/// One connection to the MQTT port.
#[derive(Debug)]
pub struct Client {
    pub stream: ClientStream,
    inbox: Vec<u8>,
    /// Whether [`LEAVE_UNKNOWN_CALL`] is returned too. A test on a slow machine may be silent for two seconds.
    pub hears_leave_unknown_call: bool,
}

/// The transport of a connection.
#[derive(Debug)]
pub enum ClientStream {
    Plain(TcpStream),
    Tls(SslStream<TcpStream>),
}

impl Deref for ClientStream {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref(),
        }
    }
}

impl Read for ClientStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for ClientStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why no packet arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum PacketError {
    Closed,
    Deadline,
}

impl Client {
    pub fn open(gateway: SocketAddr) -> Self {
        TcpStream::connect_timeout(&gateway, TIMEOUT).unwrap().into()
    }

    /// Opens a connection and logs in.
    pub fn log_in(gateway: SocketAddr, connect: &Connect) -> Self {
        let mut client = Self::open(gateway);
        assert_eq!(client.connack_code(connect), 0);
        client
    }

    /// Sends CONNECT and reads the return code of its answer.
    pub fn connack_code(&mut self, connect: &Connect) -> u8 {
        self.send(&connect.packet());
        let packet = self.packet();
        let code = packet.body[1];
        assert_eq!(packet, Packet::connack(code));
        code
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends; the gateway may have closed the connection.
    pub fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Publishes a text.
    pub fn send_text(&mut self, text: &str) {
        self.send(&publish("device-server", text.as_bytes()));
    }

    /// The next packet.
    pub fn packet(&mut self) -> Packet {
        self.packet_within(TIMEOUT).unwrap_or_else(|silence| panic!("no packet: {silence:?}"))
    }

    pub fn packet_within(&mut self, limit: Duration) -> Result<Packet, PacketError> {
        let end = Instant::now() + limit;
        loop {
            if let Some((packet, len)) = parse_packet(&self.inbox) {
                self.inbox.drain(..len);
                let leave = packet.first == PUBLISH && packet.message().1 == LEAVE_UNKNOWN_CALL;
                if leave && !self.hears_leave_unknown_call {
                    continue;
                }
                return Ok(packet);
            }
            let mut buffer = [0; 4096];
            self.stream.set_read_timeout(Some(remaining(end))).unwrap();
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(PacketError::Closed),
                Ok(n) => self.inbox.extend_from_slice(&buffer[..n]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() >= end {
                        return Err(PacketError::Deadline);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(PacketError::Closed),
            }
        }
    }

    /// Every packet until the gateway closes the connection.
    pub fn read_until_closed(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        let end = Instant::now() + TIMEOUT;
        loop {
            match self.packet_within(remaining(end)) {
                Ok(packet) => packets.push(packet),
                Err(PacketError::Closed) => {
                    assert!(self.inbox.is_empty(), "half a packet at the end");
                    return packets;
                }
                Err(PacketError::Deadline) => panic!("the connection is still open; so far {packets:?}"),
            }
        }
    }

    /// The payload of the next packet, which must be a PUBLISH.
    pub fn text(&mut self) -> String {
        self.packet().message().1.to_owned()
    }

    pub fn json(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.text()).unwrap()
    }

    /// Nothing else arrives before the answer to a ping.
    pub fn assert_nothing_pending(&mut self) {
        self.send(&PINGREQ);
        assert_eq!(self.packet(), Packet { first: PINGRESP[0], body: Vec::new() });
    }

    /// Ends our side; the gateway's can still be read.
    pub fn shutdown_write(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&*self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

impl From<TcpStream> for Client {
    fn from(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        Self { stream: ClientStream::Plain(stream), inbox: Vec::new(), hears_leave_unknown_call: false }
    }
}

impl From<SslStream<TcpStream>> for Client {
    fn from(stream: SslStream<TcpStream>) -> Self {
        stream.get_ref().set_nodelay(true).unwrap();
        stream.get_ref().set_write_timeout(Some(TIMEOUT)).unwrap();
        Self { stream: ClientStream::Tls(stream), inbox: Vec::new(), hears_leave_unknown_call: false }
    }
}

fn parse_packet(bytes: &[u8]) -> Option<(Packet, usize)> {
    let (&first, rest) = bytes.split_first()?;
    let (mut length, mut i) = (0, 0);
    loop {
        let byte = *rest.get(i)?;
        length |= usize::from(byte & 0x7f) << (7 * i);
        i += 1;
        if byte < 0x80 {
            break;
        }
        assert!(i < 4, "a remaining length of five bytes from the gateway");
    }
    let body = rest.get(i..i + length)?.to_vec();
    Some((Packet { first, body }, 1 + i + length))
}

/// The fields of a CONNECT. The default is like the firmware's.
#[derive(Clone, Debug)]
pub struct Connect {
    pub name: &'static str,
    pub level: u8,
    pub keep_alive: u16,
    pub clean_session: bool,
    pub client_id: String,
    /// Topic, message, QoS, retain.
    pub will: Option<(String, Vec<u8>, u8, bool)>,
    pub user_name: Option<String>,
    pub password: Option<Vec<u8>>,
}

impl Connect {
    pub fn new(client_id: &str) -> Self {
        Self {
            name: "MQTT",
            level: 4,
            keep_alive: 0,
            clean_session: true,
            client_id: client_id.to_owned(),
            will: None,
            user_name: Some(user_name()),
            password: Some(b"x".to_vec()),
        }
    }

    /// With the password for a gateway with this key.
    pub fn signed(client_id: &str, key: &str) -> Self {
        let mut connect = Self::new(client_id);
        connect.password = Some(password(key, client_id, &user_name()).into_bytes());
        connect
    }

    pub fn flags(&self) -> u8 {
        let will = self.will.as_ref().map_or(0, |(_, _, qos, retain)| 4 | qos << 3 | u8::from(*retain) << 5);
        u8::from(self.clean_session) << 1
            | will
            | u8::from(self.password.is_some()) << 6
            | u8::from(self.user_name.is_some()) << 7
    }

    pub fn body(&self) -> Vec<u8> {
        let mut body = length_prefixed(self.name.as_bytes());
        body.push(self.level);
        body.push(self.flags());
        body.extend(self.keep_alive.to_be_bytes());
        body.extend(length_prefixed(self.client_id.as_bytes()));
        if let Some((topic, message, ..)) = &self.will {
            body.extend(length_prefixed(topic.as_bytes()));
            body.extend(length_prefixed(message));
        }
        body.extend(self.user_name.iter().flat_map(|name| length_prefixed(name.as_bytes())));
        body.extend(self.password.iter().flat_map(|password| length_prefixed(password)));
        body
    }

    pub fn packet(&self) -> Vec<u8> {
        packet(CONNECT, &self.body())
    }
}

/// base64 of a JSON object.
pub fn user_name() -> String {
    openssl::base64::encode_block(br#"{"ip":"192.0.2.7"}"#)
}

/// base64(HMAC-SHA256(key, clientId + "|" + userName)), by OpenSSL.
pub fn password(key: &str, client_id: &str, user_name: &str) -> String {
    openssl::base64::encode_block(&hmac(key, &format!("{client_id}|{user_name}")))
}

/// HMAC-SHA256, by OpenSSL.
pub fn hmac(key: &str, text: &str) -> Vec<u8> {
    let key = openssl::pkey::PKey::hmac(key.as_bytes()).unwrap();
    let mut signer = openssl::sign::Signer::new(openssl::hash::MessageDigest::sha256(), &key).unwrap();
    signer.sign_oneshot_to_vec(text.as_bytes()).unwrap()
}

/// A packet with the right remaining length.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    [&[first], &remaining_length(body.len())[..], body].concat()
}

/// A length with seven bits per byte, lowest first.
pub fn remaining_length(mut length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let more = length >= 0x80;
        bytes.push((length & 0x7f) as u8 | u8::from(more) << 7);
        length >>= 7;
        if !more {
            return bytes;
        }
    }
}

/// Bytes behind their length in two bytes.
pub fn length_prefixed(bytes: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

pub fn publish(topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut body = length_prefixed(topic.as_bytes());
    body.extend_from_slice(payload);
    packet(PUBLISH, &body)
}

pub fn subscribe(packet_id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    for (filter, qos) in filters {
        body.extend(length_prefixed(filter.as_bytes()));
        body.push(*qos);
    }
    packet(SUBSCRIBE, &body)
}

pub fn unsubscribe(packet_id: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    filters.iter().for_each(|filter| body.extend(length_prefixed(filter.as_bytes())));
    packet(UNSUBSCRIBE, &body)
}
