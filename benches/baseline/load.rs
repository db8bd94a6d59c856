//! The load: many devices and their chat server in one thread. At the usual rate it sleeps between packets, as devices and
//! chat servers do, because waking them is part of a relay's cost. For the highest rate it never sleeps.

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use mqtt_websocket_proxy::net::media::socket::{self, AudioSocket};
use mqtt_websocket_proxy::proto::audio::{Cipher, HEADER_LEN, UdpHeader};
use mqtt_websocket_proxy::proto::mqtt::{ServerPacket, decode_server_packet, encode};
use mqtt_websocket_proxy::tools::device::{CallParameters, HELLO, Login, PUBLISH_TOPIC, test_audio};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tungstenite::handshake::derive_accept_key;

use super::board_tools::Tools;
use super::websocket_frame;

const UDP: Token = Token(0);
const LISTENER: Token = Token(1);
const TIMER: Token = Token(usize::MAX - 1);
/// MQTT events between two reads of audio, which many connections must not delay here.
const MQTT_EVENTS_PER_POLL: usize = 16;
/// Packets per second up to which the load sleeps in between.
const MAX_SLEEPING_RATE: f64 = 10_000.0;
/// The gateway's signature key.
pub(crate) const KEY: &str = "a key for the benchmark";
/// Time limit for connections and calls.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Packets sent at once when the load is late.
const BATCH: usize = 64;
const SERVER_HELLO: &[u8] = br#"{"type":"hello","transport":"websocket","session_id":"1","audio_params":{"format":"opus","sample_rate":24000,"channels":1,"frame_duration":60}}"#;

pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

pub(crate) struct Load {
    /// Audio and chat connections.
    poll: Poll,
    events: Events,
    timer: TimerFd,
    /// Devices' MQTT connections.
    mqtt_poll: Poll,
    mqtt_events: Events,
    tokens: Vec<usize>,
    mqtt: SocketAddr,
    udp: AudioSocket,
    /// Of a device that floods, or is flooded and does not read its socket.
    flood_socket: AudioSocket,
    udp_target: Option<SocketAddr>,
    listener: TcpListener,
    devices: Vec<Device>,
    connected: usize,
    chats: Vec<Option<ChatConnection>>,
    calls: Vec<Call>,
    /// Calls by ssrc.
    ssrcs: std::collections::HashMap<u32, usize>,
    scratch: Vec<u8>,
    reply: Vec<u8>,
    start: Instant,
    /// The number of the next packet since the start of [`Self::speak`].
    next_packet: u64,
    /// The chat server sends every frame back.
    pub(crate) echo: bool,
    /// A chat connection that sends without end.
    flooding_chat: Option<usize>,
    pub(crate) stats: LoadStats,
}

/// Counts since the last reset.
#[derive(Default)]
pub(crate) struct LoadStats {
    pub(crate) sent: u64,
    /// Frames at the chat server.
    pub(crate) uplink_frames: u64,
    /// Packets received by the devices.
    pub(crate) downlink_packets: u64,
    /// From device to chat server, or round trip with `echo`, in nanoseconds.
    pub(crate) delays_ns: Vec<u64>,
    /// From hello to its reply.
    pub(crate) call_setups_ns: Vec<u64>,
    pub(crate) lost_devices: usize,
}

struct Device {
    stream: TcpStream,
    inbox: Vec<u8>,
    state: DeviceState,
}

enum DeviceState {
    Connecting,
    LoggingIn,
    Idle,
    Hello(Instant),
    Call,
    Gone,
}

struct Call {
    cipher: Cipher,
    nonce: [u8; HEADER_LEN],
    sent: u32,
    /// Its delays are not counted: it floods.
    flood: bool,
}

struct ChatConnection {
    stream: TcpStream,
    open: bool,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    written: usize,
}

impl Load {
    pub(crate) fn new() -> Outcome<Self> {
        let poll = Poll::new()?;
        let mut listener = super::listen((Ipv4Addr::LOCALHOST, 0).into())?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        let mut udp = AudioSocket::bind((Ipv4Addr::LOCALHOST, 0).into())?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        poll.registry().register(udp.source(), UDP, Interest::READABLE)?;
        let fd = timer.as_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), TIMER, Interest::READABLE)?;
        Ok(Self {
            poll,
            events: Events::with_capacity(1024),
            timer,
            mqtt_poll: Poll::new()?,
            mqtt_events: Events::with_capacity(MQTT_EVENTS_PER_POLL),
            flood_socket: AudioSocket::bind((Ipv4Addr::LOCALHOST, 0).into())?,
            tokens: Vec::new(),
            mqtt: (Ipv4Addr::LOCALHOST, 0).into(),
            udp,
            udp_target: None,
            listener,
            devices: Vec::new(),
            connected: 0,
            chats: Vec::new(),
            calls: Vec::new(),
            ssrcs: Default::default(),
            scratch: vec![0; 64 * 1024],
            reply: Vec::new(),
            start: Instant::now(),
            next_packet: 0,
            echo: false,
            flooding_chat: None,
            stats: LoadStats::default(),
        })
    }

    /// Where the chat server listens.
    pub(crate) fn chat_server_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Where the devices connect to.
    pub(crate) fn set_gateway(&mut self, mqtt: SocketAddr) {
        self.mqtt = mqtt;
    }

    pub(crate) fn connected(&self) -> usize {
        self.connected
    }

    /// Connects until there are `many` devices, at most `at_once` at a time.
    pub(crate) fn connect(&mut self, many: usize, at_once: usize) -> Outcome<()> {
        let begin = Instant::now();
        while self.connected < many {
            self.connect_more(many, at_once)?;
            self.poll_once()?;
            if begin.elapsed() > TIMEOUT {
                return Err(format!("only {} of {many} devices connected", self.connected).into());
            }
        }
        Ok(())
    }

    /// Opens one more connection if allowed.
    pub(crate) fn connect_more(&mut self, many: usize, at_once: usize) -> io::Result<()> {
        let i = self.devices.len();
        if i < many && i < self.connected + at_once {
            let mut stream = TcpStream::connect(self.mqtt)?;
            let both = Interest::READABLE | Interest::WRITABLE;
            self.mqtt_poll.registry().register(&mut stream, Token(2 * i + 2), both)?;
            self.devices.push(Device { stream, inbox: Vec::new(), state: DeviceState::Connecting });
        }
        Ok(())
    }

    /// Starts calls for the first `many` devices, `at_once` at a time.
    pub(crate) fn start_calls(&mut self, many: usize, at_once: usize) -> Outcome<()> {
        let (begin, mut asked) = (Instant::now(), self.calls.len());
        while self.calls.len() < many {
            if asked < many && asked < self.calls.len() + at_once {
                let mut packet = Vec::new();
                encode::publish(&mut packet, PUBLISH_TOPIC, HELLO.as_bytes());
                self.devices[asked].state = DeviceState::Hello(Instant::now());
                self.devices[asked].stream.write_all(&packet)?;
                asked += 1;
            }
            self.poll_once()?;
            if begin.elapsed() > TIMEOUT {
                return Err(format!("only {} of {many} calls came to be", self.calls.len()).into());
            }
        }
        Ok(())
    }

    /// The calls `0..many` send `rate` packets per second together, evenly spread, one call after the other; `also` is
    /// called in between.
    pub(crate) fn send_audio(
        &mut self,
        many: usize,
        rate: f64,
        time: Duration,
        mut also: impl FnMut(&mut Self) -> Outcome<()>,
    ) -> Outcome<()> {
        let begin = Instant::now();
        let mut said = 0;
        loop {
            let elapsed = begin.elapsed();
            if elapsed >= time {
                return Ok(());
            }
            let due = (elapsed.as_secs_f64() * rate) as u64;
            for _ in 0..(due - said).min(BATCH as u64) {
                let call = (self.next_packet % many as u64) as usize;
                self.next_packet += 1;
                said += 1;
                self.send_packet(call)?;
            }
            self.udp.flush();
            also(self)?;
            match Duration::from_secs_f64((said + 1) as f64 / rate).saturating_sub(begin.elapsed()) {
                pause if rate <= MAX_SLEEPING_RATE && !pause.is_zero() => self.poll_for(pause)?,
                _ => self.poll_once()?,
            }
        }
    }

    /// Waits for events, at most this long.
    fn poll_for(&mut self, pause: Duration) -> Outcome<()> {
        self.timer.set(Expiration::OneShot(TimeSpec::from_duration(pause)), TimerSetTimeFlags::empty())?;
        self.poll(None)
    }

    pub(crate) fn poll_once(&mut self) -> Outcome<()> {
        self.poll(Some(Duration::ZERO))
    }

    /// Resets the counts, sends, and waits for what is on its way.
    pub(crate) fn measure(&mut self, many: usize, rate: f64, time: Duration) -> Outcome<()> {
        self.stats = LoadStats::default();
        self.send_audio(many, rate, time, |_| Ok(()))
    }

    /// Waits for what is on its way.
    pub(crate) fn drain(&mut self, time: Duration) -> Outcome<()> {
        let begin = Instant::now();
        while begin.elapsed() < time {
            self.poll_once()?;
        }
        Ok(())
    }

    /// Sends `count` packets of one call at once, which floods from now on.
    pub(crate) fn flood(&mut self, call: usize, count: usize) -> Outcome<()> {
        self.calls[call].flood = true;
        for _ in 0..count {
            self.send_packet(call)?;
        }
        self.flood_socket.flush();
        Ok(())
    }

    /// The latest chat connection sends without end.
    pub(crate) fn start_chat_flood(&mut self) {
        self.flooding_chat = Some(self.chats.len() - 1);
    }

    fn send_packet(&mut self, call: usize) -> Outcome<()> {
        let target = self.udp_target.ok_or("no call was granted")?;
        let nanos = self.start.elapsed().as_nanos() as u64;
        let call = &mut self.calls[call];
        call.sent += 1;
        let mut head = call.nonce;
        head[2..4].copy_from_slice(&(test_audio::PACKET_LEN as u16).to_be_bytes());
        head[12..].copy_from_slice(&call.sent.to_be_bytes());
        // The number 0 means that its delay is not measured.
        let mut payload = test_audio::packet(u32::from(!call.flood), nanos);
        call.cipher.apply(&head, &mut payload);
        let udp = if call.flood { &mut self.flood_socket } else { &mut self.udp };
        if let Some(room) = udp.queue(target, None, 0) {
            room.extend_from_slice(&head);
            room.extend_from_slice(&payload);
        }
        self.stats.sent += u64::from(!call.flood);
        Ok(())
    }

    fn poll(&mut self, wait: Option<Duration>) -> Outcome<()> {
        if let Err(error) = self.poll.poll(&mut self.events, wait)
            && error.kind() != ErrorKind::Interrupted
        {
            return Err(error.into());
        }
        self.mqtt_poll.poll(&mut self.mqtt_events, Some(Duration::ZERO))?;
        let mut tokens = std::mem::take(&mut self.tokens);
        tokens.extend(self.events.iter().chain(&self.mqtt_events).map(|event| event.token().0));
        for token in tokens.drain(..) {
            match token {
                0 => self.receive_audio()?,
                1 => self.accept()?,
                n if Token(n) == TIMER => {}
                n if n % 2 == 0 => self.on_mqtt_event(n / 2 - 1)?,
                n => self.on_chat_event(n / 2 - 1)?,
            }
        }
        self.tokens = tokens;
        if let Some(i) = self.flooding_chat {
            self.send_chat_flood(i)?;
        }
        Ok(())
    }

    // ----- devices ------------------------------------------------------------------------------------------------

    fn on_mqtt_event(&mut self, i: usize) -> Outcome<()> {
        let device = &mut self.devices[i];
        if matches!(device.state, DeviceState::Connecting) {
            if device.stream.peer_addr().is_err() {
                return Ok(());
            }
            let [_, a, b, c] = (i as u32).to_be_bytes();
            let mac = format!("02:00:00:{a:02x}:{b:02x}:{c:02x}").parse()?;
            device.stream.set_nodelay(true)?;
            device.stream.write_all(&Login::new(mac, Some(KEY.as_bytes())).connect_packet())?;
            device.state = DeviceState::LoggingIn;
        }
        let len = match device.stream.read(&mut self.scratch) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Ok(len) if len > 0 => len,
            _ => {
                self.stats.lost_devices += usize::from(!matches!(device.state, DeviceState::Gone));
                device.state = DeviceState::Gone;
                return Ok(());
            }
        };
        device.inbox.extend_from_slice(&self.scratch[..len]);
        let inbox = std::mem::take(&mut device.inbox);
        let mut rest = &inbox[..];
        while let Some((reply, used)) = decode_server_packet(rest, 1 << 20)? {
            rest = &rest[used..];
            match (reply, &self.devices[i].state) {
                (ServerPacket::ConnAck { code: 0, .. }, _) => {
                    self.devices[i].state = DeviceState::Idle;
                    self.connected += 1;
                }
                (ServerPacket::Publish(publish), DeviceState::Hello(since)) => {
                    let since = since.elapsed();
                    if let Ok(grant) = CallParameters::parse(std::str::from_utf8(publish.payload)?) {
                        self.stats.call_setups_ns.push(since.as_nanos() as u64);
                        self.on_hello_reply(i, &grant);
                    }
                }
                (ServerPacket::Publish(publish), _) => {
                    if let Some(answer) = Tools::Same.answer(std::str::from_utf8(publish.payload)?, i) {
                        let mut packet = Vec::new();
                        encode::publish(&mut packet, PUBLISH_TOPIC, answer.as_bytes());
                        self.devices[i].stream.write_all(&packet)?;
                    }
                }
                _ => {}
            }
        }
        self.devices[i].inbox = rest.to_vec();
        Ok(())
    }

    fn on_hello_reply(&mut self, i: usize, grant: &CallParameters) {
        self.devices[i].state = DeviceState::Call;
        self.udp_target = Some((Ipv4Addr::LOCALHOST, grant.port).into());
        self.ssrcs.extend(socket::ssrc(&grant.nonce).map(|ssrc| (ssrc, self.calls.len())));
        self.calls.push(Call { cipher: Cipher::new(&grant.key), nonce: grant.nonce, sent: 0, flood: false });
    }

    fn receive_audio(&mut self) -> Outcome<()> {
        loop {
            let count = match self.udp.receive() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                count => count?,
            };
            let now = self.start.elapsed().as_nanos() as u64;
            for n in 0..count {
                let datagram = self.udp.datagram(n).1;
                let Ok(header) = UdpHeader::parse(datagram) else { continue };
                let Some(call) = self.ssrcs.get(&header.ssrc) else { continue };
                self.calls[*call].cipher.apply(&header.to_bytes(), &mut datagram[HEADER_LEN..]);
                if let Some((1, nanos)) = test_audio::parse(&datagram[HEADER_LEN..]) {
                    self.stats.downlink_packets += 1;
                    self.stats.delays_ns.push(now.saturating_sub(nanos));
                }
            }
            if count < socket::BATCH {
                return Ok(());
            }
        }
    }

    // ----- the chat server ----------------------------------------------------------------------------------------

    fn accept(&mut self) -> Outcome<()> {
        loop {
            let (mut stream, _) = match self.listener.accept() {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                accepted => accepted?,
            };
            stream.set_nodelay(true)?;
            let token = Token(2 * self.chats.len() + 3);
            self.poll.registry().register(&mut stream, token, Interest::READABLE)?;
            let (inbox, outbox) = (Vec::new(), Vec::new());
            self.chats.push(Some(ChatConnection { stream, open: false, inbox, outbox, written: 0 }));
        }
    }

    fn on_chat_event(&mut self, i: usize) -> Outcome<()> {
        let Some(chat) = &mut self.chats[i] else { return Ok(()) };
        loop {
            let kept = chat.inbox.len();
            self.scratch[..kept].copy_from_slice(&chat.inbox);
            let len = match chat.stream.read(&mut self.scratch[kept..]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Ok(len) if len > 0 => kept + len,
                _ => {
                    self.chats[i] = None;
                    return Ok(());
                }
            };
            let now = self.start.elapsed().as_nanos() as u64;
            let mut rest = &mut self.scratch[..len];
            self.reply.clear();
            if !chat.open {
                let request = String::from_utf8_lossy(rest);
                let Some(end) = request.find("\r\n\r\n") else { return Err("half a request came".into()) };
                let key = request.lines().find_map(|line| {
                    line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"))
                });
                let accept = derive_accept_key(key.map_or("", |(_, key)| key).as_bytes());
                self.reply.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ");
                self.reply.extend_from_slice(accept.as_bytes());
                self.reply.extend_from_slice(b"\r\n\r\n");
                chat.open = true;
                rest = &mut self.scratch[end + 4..len];
            }
            while let Some((opcode, start, end)) = websocket_frame::parse_header(rest) {
                let (this, others) = std::mem::take(&mut rest).split_at_mut(end);
                let (head, payload) = this.split_at_mut(start);
                if let Some(mask) = head.last_chunk() {
                    websocket_frame::apply_mask(payload, *mask);
                }
                match opcode {
                    1 if payload.windows(7).any(|word| word == b"\"hello\"") => {
                        websocket_frame::append_frame(&mut self.reply, 1, SERVER_HELLO);
                    }
                    2 => {
                        if let Some((1, nanos)) = payload.get(HEADER_LEN..).and_then(test_audio::parse) {
                            self.stats.uplink_frames += 1;
                            if !self.echo {
                                self.stats.delays_ns.push(now.saturating_sub(nanos));
                            }
                            if self.echo {
                                websocket_frame::append_frame(&mut self.reply, 2, payload);
                            }
                        }
                    }
                    9 => websocket_frame::append_frame(&mut self.reply, 10, payload),
                    _ => {}
                }
                rest = others;
            }
            chat.inbox = rest.to_vec();
            if !self.reply.is_empty() {
                chat.write(&self.reply)?;
            }
            if len < self.scratch.len() {
                return Ok(());
            }
        }
    }

    fn send_chat_flood(&mut self, i: usize) -> Outcome<()> {
        let Some(chat) = &mut self.chats[i] else { return Err("the flooding chat server was left".into()) };
        if chat.outbox.is_empty() {
            let mut audio =
                mqtt_websocket_proxy::proto::audio::ws_frame_header(1, test_audio::PACKET_LEN).to_vec();
            audio.extend_from_slice(&test_audio::packet(0, 0));
            self.reply.clear();
            (0..64).for_each(|_| websocket_frame::append_frame(&mut self.reply, 2, &audio));
            return chat.write(&self.reply);
        }
        chat.write(&[])
    }
}

impl ChatConnection {
    /// Writes, and keeps what the socket does not take.
    fn write(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.outbox.extend_from_slice(bytes);
        while self.written < self.outbox.len() {
            match self.stream.write(&self.outbox[self.written..]) {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The error is noticed when the socket is read.
                Err(_) => break,
            }
        }
        self.outbox.clear();
        self.written = 0;
        Ok(())
    }
}
