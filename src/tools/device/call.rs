//! The audio of a call, from the hello reply to the packets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER_PERMISSIVE;
use socket2::SockRef;

use super::error::{self, DeviceError, DeviceStep};
use crate::proto::audio::{self, Cipher, UdpHeader};
use crate::proto::message::JsonObject;

/// What the gateway's hello grants: a session, and where and how to send audio.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallParameters {
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

impl CallParameters {
    /// Reads a hello reply as strictly as the firmware does; the error says what a device could not use.
    ///
    /// # Errors
    /// One clause in English.
    pub fn parse(reply: &str) -> Result<Self, String> {
        let hello = JsonObject::parse(reply).map_err(|error| error.to_string())?;
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
    pub parameters: CallParameters,
    /// What happened so far.
    pub counts: PacketCounts,
    socket: UdpSocket,
    cipher: Cipher,
    /// Sequence numbers last sent and last received.
    sent_sequence: u32,
    received_sequence: u32,
}

/// What a call's audio socket saw.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketCounts {
    /// Packets sent.
    pub sent: u64,
    /// Packets received and accepted.
    pub received: u64,
    /// Sequence numbers from the gateway that were skipped.
    pub lost: u64,
    /// Packets at or below the highest sequence seen: late or twice.
    pub stale: u64,
    /// Datagrams that are no audio packet.
    pub malformed: u64,
}

/// An audio packet from the gateway, decrypted.
#[derive(Clone, Debug)]
pub struct AudioPacket {
    /// As it came.
    pub header: UdpHeader,
    /// One Opus packet.
    pub payload: Vec<u8>,
}

impl Call {
    /// Opens the audio socket, connected to where the grant points.
    ///
    /// # Errors
    /// [`DeviceStep::Udp`]: the name does not resolve, or the system knows no way there.
    pub fn open(parameters: CallParameters) -> Result<Self, DeviceError> {
        let server = (&*parameters.server, parameters.port).to_socket_addrs().map_err(udp_error)?.next();
        let server = server.ok_or_else(|| udp_error(io::ErrorKind::NotFound.into()))?;
        let socket = connect_udp(server).map_err(udp_error)?;
        let cipher = Cipher::new(&parameters.key);
        Ok(Self {
            parameters,
            counts: PacketCounts::default(),
            socket,
            cipher,
            sent_sequence: 0,
            received_sequence: 0,
        })
    }

    /// Goes on from a new socket, towards `server`: what a NAT that forgot the old one does.
    ///
    /// # Errors
    /// [`DeviceStep::Udp`].
    pub fn rebind(&mut self, server: SocketAddr) -> Result<(), DeviceError> {
        self.socket = connect_udp(server).map_err(udp_error)?;
        Ok(())
    }

    /// Where the audio goes.
    ///
    /// # Errors
    /// [`DeviceStep::Udp`].
    pub fn server_addr(&self) -> Result<SocketAddr, DeviceError> {
        self.socket.peer_addr().map_err(udp_error)
    }

    /// Builds the next packet without sending it: for tests that lose, repeat or reorder.
    pub fn encrypt(&mut self, timestamp: u32, payload: &[u8]) -> Vec<u8> {
        self.sent_sequence += 1;
        // As the firmware does: the nonce is the template, three fields of it are overwritten.
        let mut iv = self.parameters.nonce;
        iv[2..4].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        iv[8..12].copy_from_slice(&timestamp.to_be_bytes());
        iv[12..16].copy_from_slice(&self.sent_sequence.to_be_bytes());
        let mut packet = Vec::with_capacity(audio::HEADER_LEN + payload.len());
        packet.extend_from_slice(&iv);
        packet.extend_from_slice(payload);
        self.cipher.apply(&iv, &mut packet[audio::HEADER_LEN..]);
        packet
    }

    /// Sends one Opus packet.
    ///
    /// # Errors
    /// [`DeviceStep::Udp`]. "Connection refused" belongs to an earlier packet: nothing listens there.
    pub fn send(&mut self, timestamp: u32, payload: &[u8]) -> Result<(), DeviceError> {
        let packet = self.encrypt(timestamp, payload);
        self.send_packet(&packet)
    }

    /// Sends a packet made by [`Self::encrypt`], or anything else.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_packet(&mut self, packet: &[u8]) -> Result<(), DeviceError> {
        self.counts.sent += 1;
        self.socket.send(packet).map(drop).map_err(udp_error)
    }

    /// The next audio packet that a device would accept; `None` when none came in time.
    ///
    /// # Errors
    /// [`DeviceStep::Udp`].
    pub fn receive(&mut self, wait: Duration) -> Result<Option<AudioPacket>, DeviceError> {
        let deadline = Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut buffer = [0; 2048];
            let received = receive_within(
                &mut self.socket,
                |socket| socket.into(),
                left,
                |socket| socket.recv(&mut buffer),
            );
            let Some(n) = received.map_err(udp_error)? else { return Ok(None) };
            if let Some(audio) = self.on_datagram(&buffer[..n]) {
                return Ok(Some(audio));
            }
        }
    }

    pub(super) fn on_datagram(&mut self, datagram: &[u8]) -> Option<AudioPacket> {
        let Ok(header) = UdpHeader::parse(datagram) else {
            self.counts.malformed += 1;
            return None;
        };
        // The firmware's rule: only ever forwards.
        if header.sequence <= self.received_sequence {
            self.counts.stale += 1;
            return None;
        }
        self.counts.lost += u64::from(header.sequence - self.received_sequence - 1);
        self.counts.received += 1;
        self.received_sequence = header.sequence;
        let (iv, payload) = datagram.split_first_chunk::<{ audio::HEADER_LEN }>()?;
        let mut payload = payload.to_vec();
        self.cipher.apply(iv, &mut payload);
        Some(AudioPacket { header, payload })
    }
}

fn connect_udp(server: SocketAddr) -> io::Result<UdpSocket> {
    let any =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    Ok(socket)
}

fn udp_error(error: io::Error) -> DeviceError {
    DeviceError::io(DeviceStep::Udp, error, Duration::ZERO)
}

/// What `receive` gives when it waits `wait` for the socket; `None` when that was not enough. No wait means: what is there
/// already.
pub(super) fn receive_within<S>(
    stream: &mut S,
    socket: impl for<'a> Fn(&'a S) -> SockRef<'a>,
    wait: Duration,
    mut receive: impl FnMut(&mut S) -> io::Result<usize>,
) -> io::Result<Option<usize>> {
    // A read timeout of zero is none, so "no wait" is another mode of the socket. Less than a microsecond would become zero.
    socket(stream).set_read_timeout(Some(wait.max(Duration::from_micros(1))))?;
    socket(stream).set_nonblocking(wait.is_zero())?;
    let result = loop {
        match receive(stream) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error::is_timeout(&error) => break Ok(None),
            result => break result.map(Some),
        }
    };
    socket(stream).set_nonblocking(false)?;
    result
}
