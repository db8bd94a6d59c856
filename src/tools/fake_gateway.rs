//! A gateway for one call, that misbehaves to order: what the device and the probe are tested against.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::proto::audio::{Cipher, HEADER, Header, nonce};
use crate::proto::message::{self, HelloReply, Reader, hello_reply};
use crate::proto::mqtt::{ConnectCode, Packet, decode, encode};

const KEY: [u8; 16] = *b"sixteen byte key";
const SSRC: u32 = 0x0102_0304;

/// How it behaves. The default is a gateway that works, with an echo server behind it.
#[derive(Clone)]
pub(super) struct Script {
    pub(super) code: ConnectCode,
    /// Instead of everything else, these bytes in answer to the first.
    pub(super) not_mqtt: Option<&'static [u8]>,
    /// `None`: the audio socket's own. Port 0: the audio socket's.
    pub(super) advertised: Option<(&'static str, u16)>,
    /// Instead of the hello reply.
    pub(super) reply: Option<&'static str>,
    /// Sent right after the hello reply.
    pub(super) after_hello: &'static [&'static str],
    /// Audio from the device is received.
    pub(super) up: bool,
    /// Audio to the device is sent.
    pub(super) down: bool,
    /// Every nth packet is not echoed; 0 = all are.
    pub(super) lose: u32,
    /// Says goodbye after this many packets; 0 = never.
    pub(super) hang_up_after: u32,
    /// Sent on `listen` stop, when audio was received and when none was.
    pub(super) reaction: (&'static [&'static str], &'static [&'static str]),
    /// Audio packets that the server says on `listen` detect.
    pub(super) speech: usize,
    /// Sent on `listen` detect.
    pub(super) on_detect: &'static [&'static str],
}

impl Default for Script {
    fn default() -> Self {
        Self {
            code: ConnectCode::Accepted,
            not_mqtt: None,
            advertised: None,
            reply: None,
            after_hello: &[],
            up: true,
            down: true,
            lose: 0,
            hang_up_after: 0,
            reaction: (&[], &[]),
            speech: 0,
            on_detect: &[],
        }
    }
}

/// A running gateway; its thread ends with the device's connection.
pub(super) struct Fake {
    pub(super) addr: SocketAddr,
    thread: JoinHandle<()>,
}

impl Fake {
    pub(super) fn start(script: Script) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let thread = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            Served::new(script, stream).run();
        });
        Self { addr, thread }
    }

    /// Waits for the end, so that a failed assertion in the thread fails the test.
    pub(super) fn join(self) {
        self.thread.join().unwrap();
    }
}

struct Served {
    script: Script,
    stream: TcpStream,
    udp: UdpSocket,
    device: Option<SocketAddr>,
    heard: u32,
    sequence: u32,
    sent: u32,
}

impl Served {
    fn new(script: Script, stream: TcpStream) -> Self {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        udp.set_nonblocking(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        Self { script, stream, udp, device: None, heard: 0, sequence: 0, sent: 0 }
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
            if let Some(bytes) = self.script.not_mqtt
                && !inbox.is_empty()
            {
                self.stream.write_all(bytes).unwrap();
                return;
            }
            while let Some((packet, used)) = decode(&inbox, 65536).unwrap() {
                if !self.packet(packet) {
                    return;
                }
                inbox.drain(..used);
            }
            self.datagrams();
        }
    }

    fn packet(&mut self, packet: Packet<'_>) -> bool {
        let mut out = Vec::new();
        match packet {
            Packet::Connect(_) => encode::connack(&mut out, self.script.code),
            Packet::PingReq => encode::pingresp(&mut out),
            Packet::Publish(publish) => self.text(std::str::from_utf8(publish.payload).unwrap()),
            Packet::Disconnect => return false,
            _ => {}
        }
        let _ = self.stream.write_all(&out);
        self.script.code == ConnectCode::Accepted
    }

    fn text(&mut self, text: &str) {
        let peek = message::peek(text, Reader::Server).unwrap();
        match (&*peek.kind, peek.state.as_deref()) {
            ("hello", _) => {
                let port = self.udp.local_addr().unwrap().port();
                let (server, other) = self.script.advertised.unwrap_or(("127.0.0.1", port));
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
                self.say(&[r#"{"type":"mcp","payload":{}}"#]);
                let reply = self.script.reply.map_or(reply, str::to_owned);
                self.say(&[&reply]);
                self.say(self.script.after_hello);
            }
            ("listen", Some("stop")) => {
                let (heard, deaf) = self.script.reaction;
                self.say(if self.heard > 0 { heard } else { deaf });
            }
            ("listen", Some("detect")) => {
                self.say(self.script.on_detect);
                for _ in 0..self.script.speech {
                    self.answer(b"speech", 0);
                }
            }
            _ => {}
        }
    }

    fn say(&mut self, texts: &[&str]) {
        for text in texts {
            let mut out = Vec::new();
            encode::publish(&mut out, "devices/p2p/x", text.as_bytes());
            let _ = self.stream.write_all(&out);
        }
    }

    fn datagrams(&mut self) {
        let mut buffer = [0; 2048];
        while let Ok((n, from)) = self.udp.recv_from(&mut buffer) {
            if !self.script.up {
                continue;
            }
            let header = Header::parse(&buffer[..n]).unwrap();
            assert!(header.sequence > self.sequence);
            self.sequence = header.sequence;
            assert_eq!(header.ssrc, SSRC);
            self.device = Some(from);
            self.heard += 1;
            let mut payload = buffer[HEADER..n].to_vec();
            Cipher::new(&KEY).apply(&header.bytes(), &mut payload);
            if self.heard == self.script.hang_up_after {
                self.say(&[r#"{"type":"goodbye","session_id":"the-session"}"#]);
            }
            if self.script.lose == 0 || !self.heard.is_multiple_of(self.script.lose) {
                self.answer(&payload, header.timestamp);
            }
        }
    }

    fn answer(&mut self, payload: &[u8], timestamp: u32) {
        let Some(device) = self.device.filter(|_| self.script.down) else { return };
        self.sent += 1;
        let header =
            Header { flags: 0x80, len: payload.len() as u16, ssrc: SSRC, timestamp, sequence: self.sent };
        let mut packet = header.bytes().to_vec();
        packet.extend_from_slice(payload);
        Cipher::new(&KEY).apply(&header.bytes(), &mut packet[HEADER..]);
        self.udp.send_to(&packet, device).unwrap();
    }
}
