//! A gateway for one call, that misbehaves to order: what the device and the probe are tested against.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::proto::audio::{Cipher, HEADER_LEN, UdpHeader, nonce};
use crate::proto::message::{self, HelloReply, Reader, hello_reply};
use crate::proto::mqtt::{ConnectReturnCode, Packet, decode, encode};

const KEY: [u8; 16] = *b"sixteen byte key";
const SSRC: u32 = 0x0102_0304;

/// How it behaves. The default is a gateway that works, with an echo server behind it.
#[derive(Clone)]
pub(in crate::tools) struct GatewayScript {
    pub(in crate::tools) connack_code: ConnectReturnCode,
    /// Instead of everything else, these bytes in answer to the first.
    pub(in crate::tools) raw_reply: Option<&'static [u8]>,
    /// `None`: the audio socket's own. Port 0: the audio socket's.
    pub(in crate::tools) advertised_udp: Option<(&'static str, u16)>,
    /// Instead of the hello reply.
    pub(in crate::tools) hello_reply: Option<&'static str>,
    /// Sent right after the hello reply.
    pub(in crate::tools) after_hello: &'static [&'static str],
    /// Audio from the device is received.
    pub(in crate::tools) receives_audio: bool,
    /// Audio to the device is sent.
    pub(in crate::tools) sends_audio: bool,
    /// Every nth packet is not echoed; 0 = all are.
    pub(in crate::tools) drop_every: u32,
    /// Says goodbye after this many packets; 0 = never.
    pub(in crate::tools) hang_up_after: u32,
    /// Sent on `listen` stop, when audio was received and when none was.
    pub(in crate::tools) on_listen_stop: (&'static [&'static str], &'static [&'static str]),
    /// Audio packets that the server says on `listen` detect.
    pub(in crate::tools) speech_packets: usize,
    /// Sent on `listen` detect.
    pub(in crate::tools) on_detect: &'static [&'static str],
    /// On `listen` stop the device's address is forgotten.
    pub(in crate::tools) forgets_path: bool,
}

impl Default for GatewayScript {
    fn default() -> Self {
        Self {
            connack_code: ConnectReturnCode::Accepted,
            raw_reply: None,
            advertised_udp: None,
            hello_reply: None,
            after_hello: &[],
            receives_audio: true,
            sends_audio: true,
            drop_every: 0,
            hang_up_after: 0,
            on_listen_stop: (&[], &[]),
            speech_packets: 0,
            on_detect: &[],
            forgets_path: false,
        }
    }
}

/// A running gateway; its thread ends with the device's connection.
pub(in crate::tools) struct FakeGateway {
    pub(in crate::tools) addr: SocketAddr,
    thread: JoinHandle<()>,
}

impl FakeGateway {
    pub(in crate::tools) fn start(script: GatewayScript) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            FakeConnection::new(script, stream).run();
        });
        Self { addr, thread }
    }

    /// Waits for the end, so that a failed assertion in the thread fails the test.
    pub(in crate::tools) fn join(self) {
        self.thread.join().unwrap();
    }
}

struct FakeConnection {
    script: GatewayScript,
    stream: TcpStream,
    udp: UdpSocket,
    device: Option<SocketAddr>,
    received: u32,
    last_sequence: u32,
    sent: u32,
}

impl FakeConnection {
    fn new(script: GatewayScript, stream: TcpStream) -> Self {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        udp.set_nonblocking(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        Self { script, stream, udp, device: None, received: 0, last_sequence: 0, sent: 0 }
    }

    fn run(mut self) {
        let mut inbox = Vec::new();
        loop {
            let mut chunk = [0; 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return,
                Ok(n) => inbox.extend_from_slice(&chunk[..n]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                Err(_) => return,
            }
            if let Some(bytes) = self.script.raw_reply
                && !inbox.is_empty()
            {
                self.stream.write_all(bytes).unwrap();
                return;
            }
            while let Some((packet, used)) = decode(&inbox, 65536).unwrap() {
                if !self.on_packet(packet) {
                    return;
                }
                inbox.drain(..used);
            }
            self.receive_datagrams();
        }
    }

    fn on_packet(&mut self, packet: Packet<'_>) -> bool {
        let mut out = Vec::new();
        match packet {
            Packet::Connect(_) => encode::connack(&mut out, self.script.connack_code),
            Packet::PingReq => encode::pingresp(&mut out),
            Packet::Publish(publish) => self.on_text(std::str::from_utf8(publish.payload).unwrap()),
            Packet::Disconnect => return false,
            _ => {}
        }
        let _ = self.stream.write_all(&out);
        self.script.connack_code == ConnectReturnCode::Accepted
    }

    fn on_text(&mut self, text: &str) {
        let peek = message::peek(text, Reader::Server).unwrap();
        match (&*peek.kind, peek.state.as_deref()) {
            ("hello", _) => {
                let port = self.udp.local_addr().unwrap().port();
                let (server, other) = self.script.advertised_udp.unwrap_or(("127.0.0.1", port));
                let port = if other == 0 { port } else { other };
                let reply = hello_reply(&HelloReply {
                    session_id: "the-session",
                    audio_params: None,
                    server,
                    port,
                    key: &KEY,
                    nonce: &nonce(SSRC),
                });
                // What comes before the hello must be kept by the device.
                self.send_texts(&[r#"{"type":"mcp","payload":{}}"#]);
                let reply = self.script.hello_reply.map_or(reply, str::to_owned);
                self.send_texts(&[&reply]);
                self.send_texts(self.script.after_hello);
            }
            ("listen", Some("stop")) => {
                let (heard, deaf) = self.script.on_listen_stop;
                self.device = self.device.filter(|_| !self.script.forgets_path);
                self.send_texts(if self.received > 0 { heard } else { deaf });
            }
            ("listen", Some("detect")) => {
                self.send_texts(self.script.on_detect);
                for _ in 0..self.script.speech_packets {
                    self.send_audio(b"speech", 0);
                }
            }
            _ => {}
        }
    }

    fn send_texts(&mut self, texts: &[&str]) {
        for text in texts {
            let mut out = Vec::new();
            encode::publish(&mut out, "devices/p2p/x", text.as_bytes());
            let _ = self.stream.write_all(&out);
        }
    }

    fn receive_datagrams(&mut self) {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = self.udp.recv_from(&mut buffer) {
            if !self.script.receives_audio {
                continue;
            }
            let header = UdpHeader::parse(&buffer[..n]).unwrap();
            assert!(header.sequence > self.last_sequence);
            self.last_sequence = header.sequence;
            assert_eq!(header.ssrc, SSRC);
            self.device = Some(from);
            self.received += 1;
            let mut payload = buffer[HEADER_LEN..n].to_vec();
            Cipher::new(&KEY).apply(&header.to_bytes(), &mut payload);
            if self.received == self.script.hang_up_after {
                self.send_texts(&[r#"{"type":"goodbye","session_id":"the-session"}"#]);
            }
            if self.script.drop_every == 0 || !self.received.is_multiple_of(self.script.drop_every) {
                self.send_audio(&payload, header.timestamp);
            }
        }
    }

    fn send_audio(&mut self, payload: &[u8], timestamp: u32) {
        let Some(device) = self.device.filter(|_| self.script.sends_audio) else { return };
        self.sent += 1;
        let header = UdpHeader {
            flags: 0x80,
            payload_len: payload.len() as u16,
            ssrc: SSRC,
            timestamp,
            sequence: self.sent,
        };
        let mut packet = header.to_bytes().to_vec();
        packet.extend_from_slice(payload);
        Cipher::new(&KEY).apply(&header.to_bytes(), &mut packet[HEADER_LEN..]);
        self.udp.send_to(&packet, device).unwrap();
    }
}
