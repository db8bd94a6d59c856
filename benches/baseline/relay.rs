//! The baseline: the minimum of any relay between devices and chat servers. One thread, one poll, datagrams received
//! in batches; each is decrypted and leaves as one masked frame with one write. No authentication, no replay window, no
//! timers, no MCP, and one key for all. A gateway's additional cost is the cost of these features.

use std::error::Error;
use std::io::{self, IoSliceMut, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use mio::net::{TcpListener, TcpStream, UdpSocket};
use mio::{Events, Interest, Poll, Token};
use mqtt_websocket_proxy::net::event_loop::coalesce::Coalescer;
use mqtt_websocket_proxy::proto::audio::{self, Cipher, HEADER_LEN, UdpHeader};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg};

const LISTENER: Token = Token(0);
const UDP: Token = Token(1);
/// The key of every call.
const KEY: [u8; 16] = *b"a key of no use ";
/// The mask of every frame.
const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];
/// Datagrams per system call.
const BATCH: usize = 32;
const DATAGRAM_BUFFER_LEN: usize = 2048;
/// Length of a frame header with a mask and a two-byte length, for which each datagram's buffer leaves room.
const FRAME_HEADER_LEN: usize = 8;
const UPGRADE_REQUEST: &str = "GET / HTTP/1.1\r\nHost: chat\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// The program: `relay MQTT UDP CHAT WAIT GATHER`, two ports, an address, and microseconds: of its wait before each poll, and at most
/// between two polls when it gathers packets by the gateway's own rule.
pub(crate) fn main(args: &[String]) -> Result<(), Box<dyn Error>> {
    let [mqtt, udp, chat, wait, gather] = args else { return Err("relay MQTT UDP CHAT WAIT GATHER".into()) };
    let here =
        |port: &str| -> Result<SocketAddr, Box<dyn Error>> { Ok(([127, 0, 0, 1], port.parse()?).into()) };
    let mut relay = Relay::bind(here(mqtt)?, here(udp)?, chat.parse()?)?;
    let [wait, gather] = [Duration::from_micros(wait.parse()?), Duration::from_micros(gather.parse()?)];
    let mut events = Events::with_capacity(1024);
    loop {
        if !wait.is_zero() {
            thread::sleep(wait);
        }
        relay.poll_events(&mut events, gather)?;
        for event in &events {
            relay.dispatch(event.token())?;
        }
    }
}

struct Relay {
    poll: Poll,
    listener: TcpListener,
    udp: UdpSocket,
    udp_port: u16,
    chat: SocketAddr,
    cipher: Cipher,
    headers: MultiHeaders<SockaddrIn>,
    datagrams: Vec<u8>,
    scratch: Vec<u8>,
    coalescer: Coalescer,
    last_poll: Instant,
    /// Indexed by ssrc.
    devices: Vec<Option<Device>>,
}

struct Device {
    mqtt: TcpStream,
    call: Option<Box<Call>>,
}

struct Call {
    stream: TcpStream,
    state: BackendState,
    peer: Option<SocketAddr>,
    sequence: u32,
    /// The received part of a frame.
    partial: Vec<u8>,
}

#[derive(PartialEq)]
enum BackendState {
    Connecting,
    Upgrading,
    Live,
}

impl Relay {
    fn bind(mqtt: SocketAddr, udp: SocketAddr, chat: SocketAddr) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = super::listen(mqtt)?;
        let mut udp = UdpSocket::bind(udp)?;
        let _ = nix::sys::socket::setsockopt(&udp, nix::sys::socket::sockopt::RcvBufForce, &(4 << 20));
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        poll.registry().register(&mut udp, UDP, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            udp_port: udp.local_addr()?.port(),
            udp,
            chat,
            cipher: Cipher::new(&KEY),
            headers: MultiHeaders::preallocate(BATCH, None),
            datagrams: vec![0; BATCH * DATAGRAM_BUFFER_LEN],
            scratch: vec![0; 64 * 1024],
            coalescer: Coalescer::new(Instant::now()),
            last_poll: Instant::now(),
            devices: Vec::new(),
        })
    }

    /// As the gateway does, when `gather` is not zero.
    fn poll_events(&mut self, events: &mut Events, gather: Duration) -> io::Result<()> {
        if !gather.is_zero() {
            if let Some(pause) = self.coalescer.pause(gather, self.last_poll, Instant::now()) {
                if pause.poll_first {
                    self.poll.poll(events, Some(Duration::ZERO))?;
                    if !events.is_empty() {
                        self.last_poll = Instant::now();
                        return Ok(());
                    }
                }
                thread::sleep(pause.time);
            }
            self.poll.poll(events, None)?;
            self.last_poll = Instant::now();
            return Ok(());
        }
        self.poll.poll(events, None)
    }

    fn dispatch(&mut self, token: Token) -> io::Result<()> {
        match token {
            LISTENER => self.accept(),
            UDP => self.on_datagrams(),
            Token(n) => {
                let slot = n / 2 - 1;
                let done = if n % 2 == 0 { self.on_mqtt_event(slot) } else { self.on_chat_event(slot) };
                if done.is_err() {
                    self.devices[slot] = None;
                }
                Ok(())
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let (mut mqtt, _) = match self.listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                accepted => accepted?,
            };
            let _ = mqtt.set_nodelay(true);
            self.poll.registry().register(
                &mut mqtt,
                Token(self.devices.len() * 2 + 2),
                Interest::READABLE,
            )?;
            self.devices.push(Some(Device { mqtt, call: None }));
        }
    }

    /// Assumes that a device's packets arrive whole, which holds on loopback.
    fn on_mqtt_event(&mut self, slot: usize) -> io::Result<()> {
        let Some(device) = self.devices[slot].as_mut() else { return Ok(()) };
        loop {
            let len = match device.mqtt.read(&mut self.scratch) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                read => read?,
            };
            match self.scratch[0] >> 4 {
                1 => device.mqtt.write_all(&[0x20, 2, 0, 0])?,
                3 if contains(&self.scratch[..len], b"\"hello\"") => {
                    let mut stream = TcpStream::connect(self.chat)?;
                    let both = Interest::READABLE | Interest::WRITABLE;
                    self.poll.registry().register(&mut stream, Token(slot * 2 + 3), both)?;
                    let (state, partial) = (BackendState::Connecting, Vec::new());
                    device.call = Some(Box::new(Call { stream, state, peer: None, sequence: 0, partial }));
                }
                3 => {}
                12 => device.mqtt.write_all(&[0xd0, 0])?,
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
            if len < self.scratch.len() {
                return Ok(());
            }
        }
    }

    fn on_datagrams(&mut self) -> io::Result<()> {
        loop {
            let mut rooms = self.datagrams.chunks_exact_mut(DATAGRAM_BUFFER_LEN);
            let mut slices: [_; BATCH] = std::array::from_fn(|_| {
                [IoSliceMut::new(&mut rooms.next().unwrap_or_default()[FRAME_HEADER_LEN..])]
            });
            let flags = MsgFlags::MSG_DONTWAIT;
            let received = match recvmmsg(self.udp.as_raw_fd(), &mut self.headers, &mut slices, flags, None) {
                Err(nix::Error::EAGAIN) => return Ok(()),
                received => received?,
            };
            let mut lens = [(0, None); BATCH];
            let mut count = 0;
            for (len, message) in lens.iter_mut().zip(received) {
                *len = (message.bytes, message.address);
                count += 1;
            }
            for (i, (len, from)) in lens[..count].iter().enumerate() {
                let room = &mut self.datagrams[i * DATAGRAM_BUFFER_LEN..][..FRAME_HEADER_LEN + len];
                let Ok(header) = UdpHeader::parse(&room[FRAME_HEADER_LEN..]) else { continue };
                let Some(call) =
                    self.devices.get_mut(header.ssrc as usize).and_then(|d| d.as_mut()?.call.as_mut())
                else {
                    continue;
                };
                self.coalescer.count_uplink();
                call.peer = from.map(SocketAddr::from);
                self.cipher.apply(&header.to_bytes(), &mut room[FRAME_HEADER_LEN + HEADER_LEN..]);
                room[FRAME_HEADER_LEN..FRAME_HEADER_LEN + HEADER_LEN]
                    .copy_from_slice(&audio::ws_frame_header(header.timestamp, header.payload_len.into()));
                // If the socket is full the frame is lost; errors are noticed when it is read.
                let _ = call.stream.write(build_frame(room, 2));
            }
            if count < BATCH {
                return Ok(());
            }
        }
    }

    fn on_chat_event(&mut self, slot: usize) -> io::Result<()> {
        let Some(device) = self.devices[slot].as_mut() else { return Ok(()) };
        let Some(call) = &mut device.call else { return Ok(()) };
        if call.state == BackendState::Connecting {
            if call.stream.peer_addr().is_err() {
                return Ok(());
            }
            let _ = call.stream.set_nodelay(true);
            call.stream.write_all(UPGRADE_REQUEST.as_bytes())?;
            call.state = BackendState::Upgrading;
        }
        loop {
            let kept = call.partial.len();
            self.scratch[..kept].copy_from_slice(&call.partial);
            let len = match call.stream.read(&mut self.scratch[kept..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                read => kept + read?,
            };
            let mut rest = &mut self.scratch[..len];
            if call.state == BackendState::Upgrading && rest.ends_with(b"\r\n\r\n") {
                call.state = BackendState::Live;
                let hello = br#"{"type":"hello","version":1,"transport":"websocket","audio_params":{"format":"opus","sample_rate":16000,"channels":1,"frame_duration":60}}"#;
                let mut room = [0; 256];
                room[FRAME_HEADER_LEN..FRAME_HEADER_LEN + hello.len()].copy_from_slice(hello);
                let _ = call.stream.write(build_frame(&mut room[..FRAME_HEADER_LEN + hello.len()], 1))?;
                rest = &mut [];
            }
            while let Some((opcode, start, end)) = super::websocket_frame::parse_header(rest) {
                let (this, others) = std::mem::take(&mut rest).split_at_mut(end);
                match opcode {
                    1 if contains(this, b"\"hello\"") => {
                        let reply = hello_reply(slot as u32, self.udp_port);
                        let mut packet = Vec::new();
                        mqtt_websocket_proxy::proto::mqtt::encode::publish(
                            &mut packet,
                            "devices/p2p/device",
                            reply.as_bytes(),
                        );
                        device.mqtt.write_all(&packet)?;
                    }
                    2 if this.len() > start + HEADER_LEN => {
                        let Some(peer) = call.peer else { break };
                        self.coalescer.count_downlink();
                        call.sequence += 1;
                        let [.., t0, t1, t2, t3, _, _, _, _] = this[..start + HEADER_LEN] else { break };
                        let header = UdpHeader {
                            flags: 0x80,
                            payload_len: (end - start - HEADER_LEN) as u16,
                            ssrc: slot as u32,
                            timestamp: u32::from_be_bytes([t0, t1, t2, t3]),
                            sequence: call.sequence,
                        };
                        let bytes = header.to_bytes();
                        this[start..start + HEADER_LEN].copy_from_slice(&bytes);
                        self.cipher.apply(&bytes, &mut this[start + HEADER_LEN..]);
                        let _ = self.udp.send_to(&this[start..], peer);
                    }
                    _ => {}
                }
                rest = others;
            }
            call.partial = rest.to_vec();
            if len < self.scratch.len() {
                return Ok(());
            }
        }
    }
}

/// Writes the frame header before its payload, and masks the payload.
fn build_frame(room: &mut [u8], opcode: u8) -> &[u8] {
    let len = room.len() - FRAME_HEADER_LEN;
    for (byte, mask) in room[FRAME_HEADER_LEN..].iter_mut().zip(MASK.iter().cycle()) {
        *byte ^= mask;
    }
    let start = if len < 126 {
        room[2..4].copy_from_slice(&[0x80 | opcode, 0x80 | len as u8]);
        2
    } else {
        room[..2].copy_from_slice(&[0x80 | opcode, 0x80 | 126]);
        room[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        0
    };
    room[4..FRAME_HEADER_LEN].copy_from_slice(&MASK);
    &room[start..]
}

fn hello_reply(ssrc: u32, port: u16) -> String {
    format!(
        r#"{{"type":"hello","version":3,"transport":"udp","session_id":"{ssrc}","audio_params":{{"format":"opus","sample_rate":16000,"channels":1,"frame_duration":60}},"udp":{{"server":"127.0.0.1","port":{port},"encryption":"aes-128-ctr","key":"{}","nonce":"{}"}}}}"#,
        HEXLOWER.encode(&KEY),
        HEXLOWER.encode(&audio::nonce(ssrc)),
    )
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|part| part == word)
}
