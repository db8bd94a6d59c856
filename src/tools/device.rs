//! A simulated device on blocking sockets, which behaves like the firmware: for the demo, the probe, examples and tests.
//!
//! ```no_run
//! use std::time::Duration;
//! use mqtt_websocket_proxy::tools::device::{SimulatedDevice, Login};
//!
//! # fn main() -> Result<(), mqtt_websocket_proxy::tools::device::DeviceError> {
//! let login = Login::new("aa:bb:cc:dd:ee:ff".parse().unwrap(), Some(b"key"));
//! let mut device = SimulatedDevice::connect("127.0.0.1:1883".parse().unwrap(), &login, Duration::from_secs(5))?;
//! let mut call = device.call()?;
//! call.send(0, b"\x58\0\0")?;
//! if let Some(audio) = call.receive(Duration::from_secs(1))? {
//!     println!("{} bytes", audio.payload.len());
//! }
//! device.goodbye(&call)?;
//! device.disconnect()
//! # }
//! ```

mod call;
mod error;
pub mod test_audio;
pub(super) mod tls;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use data_encoding::BASE64;

use self::call::receive_within;
pub use self::call::{AudioPacket, Call, CallParameters, PacketCounts};
pub use self::error::{DeviceError, DeviceErrorKind, DeviceStep};

use crate::net::backend::tls::TlsClient;
use crate::net::event_loop::stream::Stream;
use crate::proto::identity::{self, Mac};
use crate::proto::message::{self, Reader};
use crate::proto::mqtt::{self, Connect, ProtocolLevel, ServerPacket, encode};
pub use crate::proto::ota::PUBLISH_TOPIC;

/// The hello of current firmware, without MCP.
pub const HELLO: &str = r#"{"type":"hello","version":3,"transport":"udp","features":{},"audio_params":{"format":"opus","sample_rate":16000,"channels":1,"frame_duration":60}}"#;
/// The fields of a `listen` that makes a chat server speak.
pub(super) const GREETING: &str = r#""state":"detect","text":"你好""#;
/// How long the firmware waits for the answer to its hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Bound of one packet from the gateway, bytes of its remaining length.
const MAX_PACKET: usize = 1024 * 1024;
/// Texts kept for [`SimulatedDevice::receive_text`] while the device waits for something else.
const MAX_QUEUED_TEXTS: usize = 1024;

/// What a device presents in CONNECT. It is a secret: there is no `Debug`.
#[derive(Clone)]
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
        let password =
            key.map(|key| identity::device_password(key, &client_id, &user_name)).unwrap_or_default();
        Self { client_id, user_name: Some(user_name), password: Some(password), keep_alive: 90 }
    }

    /// The CONNECT that logs in so: MQTT 3.1.1, a clean session, no will.
    pub fn connect_packet(&self) -> Vec<u8> {
        let mut packet = Vec::new();
        let connect = Connect {
            level: ProtocolLevel::V311,
            client_id: &self.client_id,
            clean_session: true,
            keep_alive: self.keep_alive,
            will: None,
            user_name: self.user_name.as_deref(),
            password: self.password.as_deref().map(str::as_bytes),
        };
        encode::connect(&mut packet, &connect);
        packet
    }
}

/// A connected device.
#[derive(Debug)]
pub struct SimulatedDevice {
    stream: Stream<TcpStream>,
    timeout: Duration,
    read_buffer: Vec<u8>,
    queued_texts: VecDeque<String>,
}

/// What the gateway sends over MQTT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The return code of a CONNACK.
    ConnAck(u8),
    /// A message: JSON, usually.
    Text(String),
    /// Answer to [`SimulatedDevice::ping`].
    PingResp,
    /// Answer to a packet that this device sends only raw.
    Other,
}

impl SimulatedDevice {
    /// Connects and logs in. `timeout` bounds the TCP connection, each write, and the wait for the CONNACK.
    ///
    /// # Errors
    /// [`DeviceStep::Tcp`], [`DeviceStep::Mqtt`] or [`DeviceStep::Login`].
    pub fn connect(gateway: SocketAddr, login: &Login, timeout: Duration) -> Result<Self, DeviceError> {
        Self::open(gateway, timeout)?.log_in(login)
    }

    /// The TCP connection alone, before any MQTT.
    ///
    /// # Errors
    /// [`DeviceStep::Tcp`].
    pub fn open(gateway: SocketAddr, timeout: Duration) -> Result<Self, DeviceError> {
        let open = || {
            let stream = TcpStream::connect_timeout(&gateway, timeout)?;
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(timeout))?;
            Ok(Stream::Plain(stream))
        };
        let stream = open().map_err(|error| DeviceError::io(DeviceStep::Tcp, error, timeout))?;
        Ok(Self { stream, timeout, read_buffer: Vec::new(), queued_texts: VecDeque::new() })
    }

    /// A TLS handshake, before any MQTT: the certificate must be good for `host`, a name or an IP address. It is verified
    /// against the system's authorities and those in `ca_pem`, a bundle of PEM certificates.
    ///
    /// # Errors
    /// [`DeviceStep::Tls`], in the words of the TLS library.
    pub fn start_tls(self, host: &str, ca_pem: Option<Vec<u8>>) -> Result<Self, DeviceError> {
        let Self { stream, timeout, .. } = self;
        let waits = stream.socket().set_read_timeout(Some(timeout));
        waits.map_err(|error| DeviceError::io(DeviceStep::Tls, error, timeout))?;
        let stream = tls::start_tls(stream, host, &mut TlsClient::new(ca_pem, false));
        let stream = stream.map_err(|kind| DeviceError::new(DeviceStep::Tls, kind))?;
        Ok(Self { stream, ..self })
    }

    /// CONNECT and CONNACK.
    ///
    /// # Errors
    /// [`DeviceStep::Mqtt`] when what answers is no MQTT server, [`DeviceStep::Login`] when it refuses the credentials.
    pub fn log_in(mut self, login: &Login) -> Result<Self, DeviceError> {
        use DeviceStep::{Login, Mqtt};
        self.send_raw(&login.connect_packet()).map_err(|error| error.at(Mqtt))?;
        Err(match self.receive(self.timeout).map_err(|error| error.at(Mqtt))? {
            Some(Incoming::ConnAck(0)) => return Ok(self),
            Some(Incoming::ConnAck(code)) => DeviceError::new(Login, DeviceErrorKind::LoginRefused(code)),
            Some(other) => DeviceError::not_mqtt(Mqtt, format_args!("{other:?} before CONNACK")),
            None => DeviceError::new(Mqtt, DeviceErrorKind::Timeout(self.timeout)),
        })
    }

    /// The socket, for operations that this type does not have.
    pub fn stream(&self) -> &TcpStream {
        self.stream.socket()
    }

    /// Publishes a text to the gateway.
    ///
    /// # Errors
    /// [`DeviceStep::MqttConnection`].
    pub fn send_text(&mut self, text: &str) -> Result<(), DeviceError> {
        self.send_packet(|packet| encode::publish(packet, PUBLISH_TOPIC, text.as_bytes()))
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// [`DeviceStep::MqttConnection`].
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<(), DeviceError> {
        self.stream
            .write_all(bytes)
            .map_err(|error| DeviceError::io(DeviceStep::MqttConnection, error, self.timeout))
    }

    /// PINGREQ; the answer is an [`Incoming::PingResp`].
    ///
    /// # Errors
    /// [`DeviceStep::MqttConnection`].
    pub fn ping(&mut self) -> Result<(), DeviceError> {
        self.send_packet(encode::pingreq)
    }

    fn send_packet(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), DeviceError> {
        let mut packet = Vec::new();
        encode(&mut packet);
        self.send_raw(&packet)
    }

    /// The next packet from the gateway; `None` when none came in time. No wait means: what is there already.
    ///
    /// # Errors
    /// [`DeviceStep::MqttConnection`]: the connection ended, or what came is no MQTT.
    pub fn receive(&mut self, wait: Duration) -> Result<Option<Incoming>, DeviceError> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(incoming) = self.decode()? {
                return Ok(Some(incoming));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && !wait.is_zero() {
                return Ok(None);
            }
            if !self.read(left).map_err(|error| DeviceError::io(DeviceStep::MqttConnection, error, wait))? {
                return Ok(None);
            }
        }
    }

    fn decode(&mut self) -> Result<Option<Incoming>, DeviceError> {
        let decoded = mqtt::decode_server_packet(&self.read_buffer, MAX_PACKET)
            .map_err(|error| DeviceError::not_mqtt(DeviceStep::MqttConnection, error))?;
        let Some((reply, used)) = decoded else { return Ok(None) };
        let incoming = match reply {
            ServerPacket::ConnAck { code, .. } => Incoming::ConnAck(code),
            ServerPacket::Publish(publish) => {
                Incoming::Text(String::from_utf8_lossy(publish.payload).into_owned())
            }
            ServerPacket::PingResp => Incoming::PingResp,
            ServerPacket::SubAck { .. } | ServerPacket::UnsubAck { .. } => Incoming::Other,
        };
        self.read_buffer.drain(..used);
        Ok(Some(incoming))
    }

    /// Reads once; false when nothing came in time.
    fn read(&mut self, wait: Duration) -> io::Result<bool> {
        let mut chunk = [0; 4096];
        let read = receive_within(
            &mut self.stream,
            |stream| stream.socket().into(),
            wait,
            |stream| stream.read(&mut chunk),
        );
        let Some(n) = read? else { return Ok(false) };
        self.read_buffer.extend_from_slice(&chunk[..n]);
        if n == 0 { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(true) }
    }

    /// The next text message, other packets passed over; `None` when none came in time.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn receive_text(&mut self, wait: Duration) -> Result<Option<String>, DeviceError> {
        self.receive_text_where(wait, |_| true)
    }

    /// Waits for a text message of this `type`. Others that come first are kept for [`Self::receive_text`].
    ///
    /// # Errors
    /// As [`Self::receive`]; [`DeviceErrorKind::Timeout`] when none came in time.
    pub fn wait_for(&mut self, kind: &str, wait: Duration) -> Result<String, DeviceError> {
        let text = self.receive_text_where(wait, |text| message_type(text) == kind)?;
        text.ok_or(DeviceError::new(DeviceStep::MqttConnection, DeviceErrorKind::Timeout(wait)))
    }

    fn receive_text_where(
        &mut self,
        wait: Duration,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Option<String>, DeviceError> {
        if let Some(i) = self.queued_texts.iter().position(|text| is_wanted(text)) {
            return Ok(self.queued_texts.remove(i));
        }
        let deadline = Instant::now() + wait;
        loop {
            match self.receive(deadline.saturating_duration_since(Instant::now()))? {
                Some(Incoming::Text(text)) if is_wanted(&text) => return Ok(Some(text)),
                Some(Incoming::Text(text)) => {
                    self.queued_texts.push_back(text);
                    self.queued_texts.truncate(MAX_QUEUED_TEXTS);
                }
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Says the firmware's [`HELLO`] and opens the call it is granted.
    ///
    /// # Errors
    /// [`DeviceStep::Hello`]: no answer in 10 s, or not one a device could use. [`DeviceStep::Udp`]: no socket to where it points.
    pub fn call(&mut self) -> Result<Call, DeviceError> {
        Call::open(self.hello(HELLO)?)
    }

    /// Says hello and reads the answer, without opening the audio.
    ///
    /// # Errors
    /// [`DeviceStep::Hello`].
    pub fn hello(&mut self, hello: &str) -> Result<CallParameters, DeviceError> {
        self.send_text(hello).map_err(|error| error.at(DeviceStep::Hello))?;
        let reply = self.wait_for("hello", HELLO_TIMEOUT).map_err(|error| error.at(DeviceStep::Hello))?;
        CallParameters::parse(&reply).map_err(|why| {
            let what = format!("a device could not use the hello reply: {why}");
            DeviceError::new(DeviceStep::Hello, DeviceErrorKind::Other(what))
        })
    }

    /// `listen` start in a mode of the firmware: auto, manual or realtime.
    ///
    /// # Errors
    /// [`DeviceStep::MqttConnection`].
    pub fn start_listening(&mut self, call: &Call, mode: &str) -> Result<(), DeviceError> {
        let mode = message::json_quote(mode);
        let start = format!(r#""state":"start","mode":{mode}"#);
        self.send_text(&listen_message(&call.parameters.session_id, &start))
    }

    /// `listen` stop.
    ///
    /// # Errors
    /// [`DeviceStep::MqttConnection`].
    pub fn stop_listening(&mut self, call: &Call) -> Result<(), DeviceError> {
        self.send_text(&listen_message(&call.parameters.session_id, r#""state":"stop""#))
    }

    /// Hangs up.
    ///
    /// # Errors
    /// [`DeviceStep::MqttConnection`].
    pub fn goodbye(&mut self, call: &Call) -> Result<(), DeviceError> {
        self.send_text(&message::goodbye(Some(&call.parameters.session_id)))
    }

    /// DISCONNECT, then the end of the connection.
    ///
    /// # Errors
    /// [`DeviceStep::MqttConnection`].
    pub fn disconnect(mut self) -> Result<(), DeviceError> {
        self.send_packet(encode::disconnect)?;
        // The gateway may be gone already.
        let _ = self.stream.shut_down_tls();
        Ok(())
    }
}

/// A `listen` with these fields.
pub(super) fn listen_message(session_id: &str, fields: &str) -> String {
    format!(r#"{{"session_id":{},"type":"listen",{fields}}}"#, message::json_quote(session_id))
}

/// The `type` of a message; empty when it is none.
pub(super) fn message_type(text: &str) -> String {
    message::peek(text, Reader::Device).map(|peek| peek.kind.into_owned()).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
