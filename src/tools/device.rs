//! A simulated device on blocking sockets: what the firmware does, for the demo, the probe, the examples and the tests.
//!
//! ```no_run
//! use std::time::Duration;
//! use mqtt_websocket_proxy::tools::device::{Device, Login};
//!
//! # fn main() -> Result<(), mqtt_websocket_proxy::tools::device::Failure> {
//! let login = Login::new("aa:bb:cc:dd:ee:ff".parse().unwrap(), Some(b"key"));
//! let mut device = Device::connect("127.0.0.1:1883".parse().unwrap(), &login, Duration::from_secs(5))?;
//! let mut call = device.call()?;
//! call.send(0, b"an Opus packet")?;
//! if let Some(audio) = call.receive(Duration::from_secs(1))? {
//!     println!("{} bytes", audio.payload.len());
//! }
//! device.goodbye(&call)?;
//! device.disconnect()
//! # }
//! ```

mod failure;
pub mod voice;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};

pub use self::failure::{Failure, Seen, Step};
use crate::proto::audio::{self, Cipher, Header};
use crate::proto::identity::{self, Mac};
use crate::proto::message::{self, Object};
use crate::proto::mqtt::{self, Connect, Level, Reply, encode};

/// The hello of current firmware, without MCP.
pub const HELLO: &str = r#"{"type":"hello","version":3,"transport":"udp","features":{},"audio_params":{"format":"opus","sample_rate":16000,"channels":1,"frame_duration":60}}"#;
/// How long the firmware waits for the answer to its hello.
pub const HELLO_WAIT: Duration = Duration::from_secs(10);
/// The topic devices publish on; the gateway ignores it.
pub const TOPIC: &str = "device-server";

/// Bound of one packet from the gateway, bytes of its remaining length.
const MAX_PACKET: usize = 1024 * 1024;
/// Texts kept for [`Device::receive_text`] while the device waits for something else.
const MAX_KEPT: usize = 1024;
const NO_WAIT: Duration = Duration::ZERO;

/// What a device presents in CONNECT.
#[derive(Clone, Debug)]
pub struct Login {
    /// `group@@@mac_with_underscores@@@uuid`.
    pub client_id: String,
    /// base64 of a JSON object.
    pub user_name: Option<String>,
    /// The signature over client id and user name.
    pub password: Option<String>,
    /// Seconds; 0 = none.
    pub keep_alive: u16,
}

impl Login {
    /// A device with this MAC, its credentials signed with `key` when there is one.
    pub fn new(mac: Mac, key: Option<&[u8]>) -> Self {
        let client_id = format!("GID_test@@@{mac_}@@@{mac_}", mac_ = mac.underscored());
        Self::signed(client_id, BASE64.encode(br#"{"ip":"127.0.0.1"}"#), key)
    }

    /// A device with this client id and user name; without a key the password is empty.
    pub fn signed(client_id: String, user_name: String, key: Option<&[u8]>) -> Self {
        let password = key.map(|key| identity::password(key, &client_id, &user_name)).unwrap_or_default();
        Self { client_id, user_name: Some(user_name), password: Some(password), keep_alive: 90 }
    }
}

/// A connected device.
#[derive(Debug)]
pub struct Device {
    stream: TcpStream,
    timeout: Duration,
    inbox: Vec<u8>,
    kept: VecDeque<String>,
}

/// What the gateway sends over MQTT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The return code of a CONNACK.
    ConnAck(u8),
    /// A message, and the topic it came on.
    Text {
        /// `devices/p2p/<mac_>`, usually.
        topic: String,
        /// JSON, usually.
        text: String,
    },
    /// Granted QoS, or 0x80, for each filter.
    SubAck {
        /// That of the SUBSCRIBE.
        packet_id: u16,
        /// One for each filter.
        codes: Vec<u8>,
    },
    /// Answer to an UNSUBSCRIBE.
    UnsubAck {
        /// That of the UNSUBSCRIBE.
        packet_id: u16,
    },
    /// Answer to [`Device::ping`].
    Pong,
}

impl Device {
    /// Connects and logs in. `timeout` bounds the TCP connection, each write, and the wait for the CONNACK.
    ///
    /// # Errors
    /// [`Step::Tcp`], [`Step::Mqtt`] or [`Step::Login`].
    pub fn connect(gateway: SocketAddr, login: &Login, timeout: Duration) -> Result<Self, Failure> {
        Self::open(gateway, timeout)?.log_in(login)
    }

    /// The TCP connection alone, before any MQTT.
    ///
    /// # Errors
    /// [`Step::Tcp`].
    pub fn open(gateway: SocketAddr, timeout: Duration) -> Result<Self, Failure> {
        let open = || {
            let stream = TcpStream::connect_timeout(&gateway, timeout)?;
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(timeout))?;
            Ok(stream)
        };
        match open() {
            Ok(stream) => Ok(Self { stream, timeout, inbox: Vec::new(), kept: VecDeque::new() }),
            Err(error) => Err(Failure::io(Step::Tcp, error, timeout)),
        }
    }

    /// CONNECT and CONNACK.
    ///
    /// # Errors
    /// [`Step::Mqtt`] when what answers is no MQTT server, [`Step::Login`] when it refuses the credentials.
    pub fn log_in(mut self, login: &Login) -> Result<Self, Failure> {
        let mut packet = Vec::new();
        let connect = Connect {
            level: Level::V311,
            client_id: &login.client_id,
            clean_session: true,
            keep_alive: login.keep_alive,
            will: None,
            user_name: login.user_name.as_deref(),
            password: login.password.as_deref().map(str::as_bytes),
        };
        encode::connect(&mut packet, &connect);
        let at_mqtt = |failure: Failure| Failure { step: Step::Mqtt, ..failure };
        self.send_raw(&packet).map_err(at_mqtt)?;
        match self.receive(self.timeout).map_err(at_mqtt)? {
            Some(Incoming::ConnAck(0)) => Ok(self),
            Some(Incoming::ConnAck(code)) => Err(Failure { step: Step::Login, seen: Seen::Refused(code) }),
            Some(other) => {
                Err(Failure { step: Step::Mqtt, seen: Seen::NotMqtt(format!("{other:?} before CONNACK")) })
            }
            None => Err(Failure { step: Step::Mqtt, seen: Seen::Silence(self.timeout) }),
        }
    }

    /// The socket, for what this type has no word for.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Publishes a text to the gateway.
    ///
    /// # Errors
    /// [`Step::Control`].
    pub fn send_text(&mut self, text: &str) -> Result<(), Failure> {
        let mut packet = Vec::new();
        encode::publish(&mut packet, TOPIC, text.as_bytes());
        self.send_raw(&packet)
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// [`Step::Control`].
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(bytes).map_err(|error| Failure::io(Step::Control, error, self.timeout))
    }

    /// PINGREQ; the answer is an [`Incoming::Pong`].
    ///
    /// # Errors
    /// [`Step::Control`].
    pub fn ping(&mut self) -> Result<(), Failure> {
        let mut packet = Vec::new();
        encode::pingreq(&mut packet);
        self.send_raw(&packet)
    }

    /// The next packet from the gateway; `None` when none came in time. No wait means: what is there already.
    ///
    /// # Errors
    /// [`Step::Control`]: the connection ended, or what came is no MQTT.
    pub fn receive(&mut self, wait: Duration) -> Result<Option<Incoming>, Failure> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(incoming) = self.decode()? {
                return Ok(Some(incoming));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && !wait.is_zero() {
                return Ok(None);
            }
            match self.read(left) {
                Ok(0) => return Err(Failure { step: Step::Control, seen: Seen::Closed }),
                Ok(_) => {}
                Err(error) if failure::is_timeout(&error) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::io(Step::Control, error, wait)),
            }
        }
    }

    fn decode(&mut self) -> Result<Option<Incoming>, Failure> {
        let decoded = mqtt::decode_reply(&self.inbox, MAX_PACKET)
            .map_err(|error| Failure { step: Step::Control, seen: Seen::NotMqtt(error.to_string()) })?;
        let Some((reply, used)) = decoded else { return Ok(None) };
        let incoming = match reply {
            Reply::ConnAck { code, .. } => Incoming::ConnAck(code),
            Reply::Publish(publish) => Incoming::Text {
                topic: publish.topic.to_owned(),
                text: String::from_utf8_lossy(publish.payload).into_owned(),
            },
            Reply::SubAck { packet_id, codes } => Incoming::SubAck { packet_id, codes: codes.to_vec() },
            Reply::UnsubAck { packet_id } => Incoming::UnsubAck { packet_id },
            Reply::PingResp => Incoming::Pong,
        };
        self.inbox.drain(..used);
        Ok(Some(incoming))
    }

    fn read(&mut self, wait: Duration) -> io::Result<usize> {
        let mut chunk = [0; 4096];
        // A read timeout of zero is an error, so "no wait" is another mode of the socket.
        let result = if wait.is_zero() {
            self.stream.set_nonblocking(true)?;
            let result = self.stream.read(&mut chunk);
            self.stream.set_nonblocking(false)?;
            result
        } else {
            self.stream.set_read_timeout(Some(wait))?;
            self.stream.read(&mut chunk)
        };
        if let Ok(n) = result {
            self.inbox.extend_from_slice(&chunk[..n]);
        }
        result
    }

    /// The next text message, other packets passed over; `None` when none came in time.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn receive_text(&mut self, wait: Duration) -> Result<Option<String>, Failure> {
        if let Some(text) = self.kept.pop_front() {
            return Ok(Some(text));
        }
        let deadline = Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)? {
                Some(Incoming::Text { text, .. }) => return Ok(Some(text)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Waits for a text message of this `type`. Others that come first are kept for [`Self::receive_text`].
    ///
    /// # Errors
    /// As [`Self::receive`]; [`Seen::Silence`] when none came in time.
    pub fn wait_for(&mut self, kind: &str, wait: Duration) -> Result<String, Failure> {
        let deadline = Instant::now() + wait;
        if let Some(i) = self.kept.iter().position(|text| is_kind(text, kind))
            && let Some(text) = self.kept.remove(i)
        {
            return Ok(text);
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive(left)? {
                Some(Incoming::Text { text, .. }) if is_kind(&text, kind) => return Ok(text),
                Some(Incoming::Text { text, .. }) => {
                    self.kept.push_back(text);
                    self.kept.truncate(MAX_KEPT);
                }
                Some(_) => {}
                None => return Err(Failure { step: Step::Control, seen: Seen::Silence(wait) }),
            }
        }
    }

    /// Says the firmware's [`HELLO`] and opens the call it is granted.
    ///
    /// # Errors
    /// [`Step::Hello`]: no answer in 10 s, or not one a device could use. [`Step::Udp`]: no socket to where it points.
    pub fn call(&mut self) -> Result<Call, Failure> {
        Call::open(self.hello(HELLO)?)
    }

    /// Says hello and reads the answer, without opening the audio.
    ///
    /// # Errors
    /// [`Step::Hello`].
    pub fn hello(&mut self, hello: &str) -> Result<Grant, Failure> {
        let at_hello = |failure: Failure| Failure { step: Step::Hello, ..failure };
        self.send_text(hello).map_err(at_hello)?;
        let reply = self.wait_for("hello", HELLO_WAIT).map_err(at_hello)?;
        Grant::parse(&reply).map_err(|seen| Failure { step: Step::Hello, seen: Seen::BadReply(seen) })
    }

    /// `listen` start in a mode of the firmware: auto, manual or realtime.
    ///
    /// # Errors
    /// [`Step::Control`].
    pub fn listen(&mut self, call: &Call, mode: &str) -> Result<(), Failure> {
        let (id, mode) = (message::quote(&call.grant.session_id), message::quote(mode));
        self.send_text(&format!(r#"{{"session_id":{id},"type":"listen","state":"start","mode":{mode}}}"#))
    }

    /// `listen` stop.
    ///
    /// # Errors
    /// [`Step::Control`].
    pub fn stop_listening(&mut self, call: &Call) -> Result<(), Failure> {
        let id = message::quote(&call.grant.session_id);
        self.send_text(&format!(r#"{{"session_id":{id},"type":"listen","state":"stop"}}"#))
    }

    /// Hangs up.
    ///
    /// # Errors
    /// [`Step::Control`].
    pub fn goodbye(&mut self, call: &Call) -> Result<(), Failure> {
        self.send_text(&message::goodbye(Some(&call.grant.session_id)))
    }

    /// DISCONNECT, then the end of the connection.
    ///
    /// # Errors
    /// [`Step::Control`].
    pub fn disconnect(mut self) -> Result<(), Failure> {
        let mut packet = Vec::new();
        encode::disconnect(&mut packet);
        self.send_raw(&packet)
    }
}

fn is_kind(text: &str, kind: &str) -> bool {
    message::peek(text).is_ok_and(|peek| peek.kind == kind)
}

/// What the gateway's hello grants: a session, and where and how to send audio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Never empty.
    pub session_id: String,
    /// Host name or address the gateway advertises.
    pub server: String,
    /// Never 0.
    pub port: u16,
    /// AES-128 key of both directions.
    pub key: [u8; 16],
    /// Template of the packet header.
    pub nonce: [u8; 16],
    /// The server's `audio_params`, raw JSON.
    pub audio_params: Option<String>,
}

impl Grant {
    /// Reads a hello reply as strictly as the firmware does; the error says what a device could not use.
    ///
    /// # Errors
    /// One clause in English.
    pub fn parse(reply: &str) -> Result<Self, String> {
        let hello = Object::parse(reply).map_err(|error| error.to_string())?;
        if hello.string("transport").as_deref() != Some("udp") {
            let found = hello.raw("transport").unwrap_or("nothing");
            return Err(format!("transport is {found}, a device accepts only \"udp\""));
        }
        let session_id = hello.string("session_id").filter(|id| !id.is_empty());
        let session_id = session_id.ok_or("it holds no session_id")?.into_owned();
        let udp = hello.object("udp").ok_or("it holds no udp object")?;
        let server = udp.string("server").filter(|server| !server.is_empty());
        let port = udp.number("port").filter(|port| (1.0..=65535.0).contains(port));
        let hex16 = |field: &str| {
            let text = udp.string(field)?;
            HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()
        };
        Ok(Self {
            session_id,
            server: server.ok_or("udp.server is missing")?.into_owned(),
            port: port.ok_or("udp.port is not a number from 1 to 65535")? as u16,
            key: hex16("key").ok_or("udp.key is not 16 bytes in hex")?,
            nonce: hex16("nonce").ok_or("udp.nonce is not 16 bytes in hex")?,
            audio_params: hello.raw("audio_params").map(str::to_owned),
        })
    }
}

/// The audio of one call.
pub struct Call {
    /// What the gateway granted.
    pub grant: Grant,
    /// What happened so far.
    pub counts: Counts,
    socket: UdpSocket,
    cipher: Cipher,
    /// Sequence numbers last sent and last received.
    sent: u32,
    heard: u32,
}

/// What a call's audio socket saw.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets sent.
    pub sent: u64,
    /// Packets received and accepted.
    pub received: u64,
    /// Sequence numbers from the gateway that were skipped.
    pub lost: u64,
    /// Packets at or below the highest sequence seen: late or twice.
    pub stale: u64,
    /// Datagrams that are no audio packet.
    pub bad: u64,
}

/// An audio packet from the gateway, decrypted.
#[derive(Clone, Debug)]
pub struct Audio {
    /// As it came.
    pub header: Header,
    /// One Opus packet.
    pub payload: Vec<u8>,
}

impl Call {
    /// Opens the audio socket, connected to where the grant points.
    ///
    /// # Errors
    /// [`Step::Udp`]: the name does not resolve, or the system knows no way there.
    pub fn open(grant: Grant) -> Result<Self, Failure> {
        let at_udp = |error| Failure::io(Step::Udp, error, NO_WAIT);
        let server = (&*grant.server, grant.port).to_socket_addrs().map_err(at_udp)?.next();
        let server = server.ok_or_else(|| at_udp(io::ErrorKind::NotFound.into()))?;
        let socket = connect_udp(server).map_err(at_udp)?;
        let cipher = Cipher::new(&grant.key);
        Ok(Self { grant, counts: Counts::default(), socket, cipher, sent: 0, heard: 0 })
    }

    /// Goes on from a new socket, towards `server`: what a NAT that forgot the old one does.
    ///
    /// # Errors
    /// [`Step::Udp`].
    pub fn rebind(&mut self, server: SocketAddr) -> Result<(), Failure> {
        self.socket = connect_udp(server).map_err(|error| Failure::io(Step::Udp, error, NO_WAIT))?;
        Ok(())
    }

    /// Where the audio goes.
    ///
    /// # Errors
    /// [`Step::Udp`].
    pub fn server_addr(&self) -> Result<SocketAddr, Failure> {
        self.socket.peer_addr().map_err(|error| Failure::io(Step::Udp, error, NO_WAIT))
    }

    /// The socket, for what this type has no word for.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Builds the next packet without sending it: for tests that lose, repeat or reorder.
    pub fn seal(&mut self, timestamp: u32, payload: &[u8]) -> Vec<u8> {
        self.sent += 1;
        // As the firmware does: the nonce is the template, three fields of it are overwritten.
        let mut iv = self.grant.nonce;
        iv[2..4].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        iv[8..12].copy_from_slice(&timestamp.to_be_bytes());
        iv[12..16].copy_from_slice(&self.sent.to_be_bytes());
        let mut packet = Vec::with_capacity(audio::HEADER + payload.len());
        packet.extend_from_slice(&iv);
        packet.extend_from_slice(payload);
        self.cipher.apply(&iv, &mut packet[audio::HEADER..]);
        packet
    }

    /// Sends one Opus packet.
    ///
    /// # Errors
    /// [`Step::Udp`]. "Connection refused" belongs to an earlier packet: nothing listens there.
    pub fn send(&mut self, timestamp: u32, payload: &[u8]) -> Result<(), Failure> {
        let packet = self.seal(timestamp, payload);
        self.send_packet(&packet)
    }

    /// Sends a packet made by [`Self::seal`], or anything else.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_packet(&mut self, packet: &[u8]) -> Result<(), Failure> {
        self.counts.sent += 1;
        self.socket.send(packet).map(drop).map_err(|error| Failure::io(Step::Udp, error, NO_WAIT))
    }

    /// The next audio packet that a device would accept; `None` when none came in time.
    ///
    /// # Errors
    /// [`Step::Udp`].
    pub fn receive(&mut self, wait: Duration) -> Result<Option<Audio>, Failure> {
        let deadline = Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut buffer = [0; 2048];
            match receive_udp(&self.socket, &mut buffer, left) {
                Ok(n) => {
                    if let Some(audio) = self.accept(&buffer[..n]) {
                        return Ok(Some(audio));
                    }
                }
                Err(error) if failure::is_timeout(&error) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::io(Step::Udp, error, wait)),
            }
        }
    }

    fn accept(&mut self, datagram: &[u8]) -> Option<Audio> {
        let Ok(header) = Header::parse(datagram) else {
            self.counts.bad += 1;
            return None;
        };
        // The firmware's rule: only ever forwards.
        if header.sequence <= self.heard {
            self.counts.stale += 1;
            return None;
        }
        self.counts.lost += u64::from(header.sequence - self.heard - 1);
        self.counts.received += 1;
        self.heard = header.sequence;
        let (iv, payload) = datagram.split_first_chunk::<{ audio::HEADER }>()?;
        let mut payload = payload.to_vec();
        self.cipher.apply(iv, &mut payload);
        Some(Audio { header, payload })
    }
}

fn connect_udp(server: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    Ok(socket)
}

fn receive_udp(socket: &UdpSocket, buffer: &mut [u8], wait: Duration) -> io::Result<usize> {
    if wait.is_zero() {
        socket.set_nonblocking(true)?;
        let result = socket.recv(buffer);
        socket.set_nonblocking(false)?;
        result
    } else {
        socket.set_read_timeout(Some(wait))?;
        socket.recv(buffer)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::proto::mqtt::ConnectCode;
    use crate::tools::fake::{Fake, Script};

    const WAIT: Duration = Duration::from_secs(10);

    fn login() -> Login {
        Login::new("02:00:00:00:00:01".parse().unwrap(), Some(b"key"))
    }

    #[test]
    fn a_call() {
        let gateway = Fake::start(Script::default());
        let mut device = Device::connect(gateway.addr, &login(), WAIT).unwrap();
        let mut call = device.call().unwrap();
        assert_eq!(call.grant.session_id, "the-session");
        for i in 1..=5 {
            call.send(i, &voice::packet(i, 0)).unwrap();
            let audio = call.receive(WAIT).unwrap().unwrap();
            assert_eq!((audio.header.sequence, audio.header.timestamp), (i, i));
            assert_eq!(voice::parse(&audio.payload), Some((i, 0)));
        }
        assert_eq!(call.counts, Counts { sent: 5, received: 5, ..Counts::default() });
        let kept = device.receive_text(WAIT).unwrap().unwrap();
        assert!(kept.contains("mcp"), "what came before the hello: {kept}");
        device.ping().unwrap();
        assert_eq!(device.receive(WAIT).unwrap(), Some(Incoming::Pong));
        assert_eq!(device.receive(Duration::ZERO).unwrap(), None);
        device.goodbye(&call).unwrap();
        device.disconnect().unwrap();
        gateway.join();
    }

    #[test]
    fn gaps_and_stale_packets_are_counted() {
        let grant = Grant {
            session_id: "s".into(),
            server: "127.0.0.1".into(),
            port: 9,
            key: [1; 16],
            nonce: audio::nonce(5),
            audio_params: None,
        };
        let mut call = Call::open(grant).unwrap();
        let packets: Vec<_> = (0..9).map(|_| call.seal(0, b"x")).collect();
        for i in [0, 3, 2, 3, 8] {
            call.accept(&packets[i]);
        }
        call.accept(&packets[0][..10]);
        assert_eq!(call.counts, Counts { sent: 0, received: 3, lost: 6, stale: 2, bad: 1 });
    }

    #[test]
    fn a_failure_names_the_step_and_what_was_seen() {
        let refused = Script { code: ConnectCode::Credentials, ..Script::default() };
        let http = Script { not_mqtt: Some(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ..Script::default() };
        let closes = Script { not_mqtt: Some(b""), ..Script::default() };
        let old = Script { reply: Some(r#"{"type":"hello","transport":"websocket"}"#), ..Script::default() };
        let cases = [
            (refused, "login: refused with CONNACK 4: bad user name or password"),
            (http, "MQTT: the answer is not MQTT as a gateway speaks it"),
            (closes, "MQTT: the other side closed the connection"),
            (old, "hello: a device could not use the hello reply: transport is \"websocket\""),
        ];
        for (script, expected) in cases {
            let gateway = Fake::start(script);
            let result =
                Device::connect(gateway.addr, &login(), WAIT).and_then(|mut device| device.hello(HELLO));
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = Device::connect(nobody, &login(), WAIT).unwrap_err();
        assert_eq!(error.step, Step::Tcp, "{error}");
    }

    #[test]
    fn a_grant_is_read_as_strictly_as_the_firmware_reads_it() {
        let good = r#"{"type":"hello","transport":"udp","session_id":"s","audio_params":{"sample_rate":24000},"udp":{"server":"h","port":8884,"key":"000102030405060708090a0b0c0d0e0F","nonce":"01000000000000010000000000000000"}}"#;
        let grant = Grant::parse(good).unwrap();
        assert_eq!((grant.port, grant.key[15]), (8884, 15));
        assert_eq!(grant.audio_params.as_deref(), Some(r#"{"sample_rate":24000}"#));
        for (from, to) in [
            (r#""s""#, r#""""#),
            (r#""s""#, "null"),
            (r#""udp","s"#, r#""tcp","s"#),
            ("8884", "0"),
            ("8884", "65536"),
            ("8884", "\"8884\""),
            ("0001", "00"),
            ("0100", "01xx"),
            (r#""h""#, "7"),
            ("}}", ""),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good, "{from}");
            assert!(Grant::parse(&bad).is_err(), "{bad}");
        }
    }
}
