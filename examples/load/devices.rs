//! The devices: all in one thread and one loop, so that they cost little compared with the gateway.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::board_tools::Tools;
use mio::event::Event;
use mio::net::{TcpStream, UdpSocket};
use mio::{Events, Interest, Poll, Registry, Token};
use mqtt_websocket_proxy::proto::audio::{Cipher, HEADER_LEN, UdpHeader};
use mqtt_websocket_proxy::proto::message::{self, Reader};
use mqtt_websocket_proxy::proto::mqtt::{ServerPacket, decode_server_packet, encode};
use mqtt_websocket_proxy::tools::device::{
    CallParameters, HELLO, HELLO_TIMEOUT, Login, PUBLISH_TOPIC, test_audio,
};

/// Connections opened at once: below the backlog of most systems.
const CONCURRENT_CONNECTS: usize = 100;
/// A phase fails after this time without progress.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(15);

/// What the devices do.
pub(crate) struct LoadConfig {
    pub(crate) gateway: SocketAddr,
    pub(crate) key: Option<String>,
    /// Time between two packets of one call.
    pub(crate) interval: Duration,
    pub(crate) tools: Tools,
}

/// Counts so far.
#[derive(Default)]
pub(crate) struct LoadStats {
    connected: usize,
    /// From hello to hello reply, one per call.
    pub(crate) call_setup_times: Vec<Duration>,
    pub(crate) round_trips: Vec<Duration>,
    pub(crate) sent: u64,
    pub(crate) echoed: u64,
    /// Sequence numbers of the gateway that were skipped.
    pub(crate) gaps: u64,
    /// Devices whose connection ended.
    pub(crate) disconnected: usize,
}

pub(crate) struct Devices {
    poll: Poll,
    events: Events,
    /// The tokens of this poll's events.
    tokens: Vec<usize>,
    devices: Vec<Device>,
    shared: Shared,
}

/// Shared by all devices.
struct Shared {
    config: LoadConfig,
    registry: Registry,
    /// When each device sends its hello or its next packet.
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    start: Instant,
    stats: LoadStats,
}

struct Device {
    stream: TcpStream,
    /// The received part of a packet.
    inbox: Vec<u8>,
    state: DeviceState,
}

enum DeviceState {
    Connecting(Box<Login>),
    LoggingIn,
    Idle,
    AwaitingHelloReply(Instant),
    InCall(Box<Call>),
    Closed,
}

struct Call {
    udp: UdpSocket,
    cipher: Cipher,
    session_id: String,
    nonce: [u8; HEADER_LEN],
    sent: u32,
    last_received: u32,
}

impl Devices {
    pub(crate) fn new(plan: LoadConfig) -> io::Result<Self> {
        let poll = Poll::new()?;
        let (registry, start) = (poll.registry().try_clone()?, Instant::now());
        let shared =
            Shared { config: plan, registry, timers: BinaryHeap::new(), start, stats: LoadStats::default() };
        let (events, tokens) = (Events::with_capacity(1024), Vec::new());
        Ok(Self { poll, events, tokens, devices: Vec::new(), shared })
    }

    pub(crate) fn stats(&self) -> &LoadStats {
        &self.shared.stats
    }

    /// Connects `many` devices and logs them in; how long it took.
    pub(crate) fn connect(&mut self, many: usize) -> io::Result<Duration> {
        let begin = Instant::now();
        let (mut best, mut since) = (0, begin);
        while self.shared.stats.connected < many {
            while self.devices.len() < many
                && self.devices.len() < self.shared.stats.connected + CONCURRENT_CONNECTS
            {
                self.open()?;
            }
            self.poll_once(Instant::now() + Duration::from_millis(100))?;
            if self.shared.stats.connected > best {
                (best, since) = (self.shared.stats.connected, Instant::now());
            }
            if self.shared.stats.disconnected > 0 || since.elapsed() > PROGRESS_TIMEOUT {
                let what = format!(
                    "{best} of {many} devices connected, {} were refused",
                    self.shared.stats.disconnected
                );
                return Err(io::Error::other(what));
            }
        }
        Ok(begin.elapsed())
    }

    fn open(&mut self) -> io::Result<()> {
        let i = self.devices.len();
        let Shared { config: plan, registry, .. } = &self.shared;
        let mut stream = TcpStream::connect(plan.gateway)?;
        registry.register(&mut stream, Token(2 * i), Interest::READABLE | Interest::WRITABLE)?;
        let [_, a, b, c] = (i as u32).to_be_bytes();
        let mac = format!("02:00:00:{a:02x}:{b:02x}:{c:02x}").parse().map_err(io::Error::other)?;
        let login = Login { keep_alive: 0, ..Login::new(mac, plan.key.as_deref().map(str::as_bytes)) };
        self.devices.push(Device {
            stream,
            inbox: Vec::new(),
            state: DeviceState::Connecting(Box::new(login)),
        });
        Ok(())
    }

    /// The first `many` devices send a hello, `rate` per second; returns when all calls are up or at the time limit.
    pub(crate) fn start_calls(&mut self, many: usize, rate: u32) -> io::Result<()> {
        let begin = Instant::now();
        for i in 0..many {
            self.shared.timers.push(Reverse((begin + Duration::from_secs(i as u64) / rate, i)));
        }
        let until = begin + Duration::from_secs(many as u64) / rate + HELLO_TIMEOUT;
        while self.shared.stats.call_setup_times.len() < many && Instant::now() < until {
            self.poll_once(until.min(Instant::now() + Duration::from_millis(100)))?;
        }
        Ok(())
    }

    /// Runs the loop; returns the actual time.
    pub(crate) fn run_for(&mut self, time: Duration) -> io::Result<Duration> {
        let begin = Instant::now();
        while begin.elapsed() < time {
            self.poll_once(begin + time)?;
        }
        Ok(begin.elapsed())
    }

    /// Stops sending; packets on their way still count.
    pub(crate) fn stop_audio(&mut self, time: Duration) -> io::Result<()> {
        self.shared.timers.clear();
        self.run_for(time).map(drop)
    }

    /// goodbye and DISCONNECT.
    pub(crate) fn hang_up(&mut self) {
        for device in &mut self.devices {
            if let DeviceState::InCall(call) = &device.state {
                let goodbye = message::goodbye(Some(&call.session_id));
                // A closed connection needs no goodbye.
                let _ = device.publish(&goodbye);
            }
            let mut packet = Vec::new();
            encode::disconnect(&mut packet);
            let _ = device.write(&packet);
        }
    }

    fn poll_once(&mut self, limit: Instant) -> io::Result<()> {
        let wake = self.shared.timers.peek().map_or(limit, |Reverse((at, _))| limit.min(*at));
        match self.poll.poll(&mut self.events, Some(wake.saturating_duration_since(Instant::now()))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.events.clear(),
            result => result?,
        }
        // Devices have even tokens, their audio has odd ones.
        let mut tokens = std::mem::take(&mut self.tokens);
        // Writable events only matter while a device connects; on Windows each read without data causes one.
        let devices = &self.devices;
        let matters = |event: &&Event| {
            let connecting = || matches!(devices[event.token().0 / 2].state, DeviceState::Connecting(_));
            event.is_readable() || event.is_read_closed() || event.is_error() || connecting()
        };
        tokens.extend(self.events.iter().filter(matters).map(|event| event.token().0));
        for token in tokens.drain(..) {
            let i = token / 2;
            if token % 2 == 1 {
                self.devices[i].receive_audio(&mut self.shared);
            } else {
                self.with_device(i, Device::on_mqtt_event);
            }
        }
        self.tokens = tokens;
        let now = Instant::now();
        while let Some(Reverse((at, i))) = self.shared.timers.peek().copied()
            && at <= now
        {
            self.shared.timers.pop();
            self.with_device(i, |device, i, shared| device.on_timer(at, i, shared));
        }
        Ok(())
    }

    /// Runs one step of a device, and closes the device on an error.
    fn with_device(
        &mut self,
        i: usize,
        step: impl FnOnce(&mut Device, usize, &mut Shared) -> io::Result<()>,
    ) {
        let device = &mut self.devices[i];
        if !matches!(device.state, DeviceState::Closed) && step(device, i, &mut self.shared).is_err() {
            device.state = DeviceState::Closed;
            self.shared.stats.disconnected += 1;
        }
    }
}

impl Device {
    /// Reads and handles the gateway's MQTT packets.
    fn on_mqtt_event(&mut self, i: usize, shared: &mut Shared) -> io::Result<()> {
        if let DeviceState::Connecting(login) = &self.state {
            if let Some(error) = self.stream.take_error()? {
                return Err(error);
            }
            if self.stream.peer_addr().is_err() {
                return Ok(());
            }
            let packet = login.connect_packet();
            self.state = DeviceState::LoggingIn;
            self.write(&packet)?;
        }
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.inbox.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let inbox = std::mem::take(&mut self.inbox);
        let mut rest = &inbox[..];
        while let Some((reply, used)) = decode_server_packet(rest, 1 << 20).map_err(io::Error::other)? {
            self.on_packet(reply, i, shared)?;
            rest = &rest[used..];
        }
        self.inbox = rest.to_vec();
        Ok(())
    }

    fn on_packet(&mut self, reply: ServerPacket<'_>, i: usize, shared: &mut Shared) -> io::Result<()> {
        match (reply, &self.state) {
            (ServerPacket::ConnAck { code: 0, .. }, DeviceState::LoggingIn) => {
                self.state = DeviceState::Idle;
                shared.stats.connected += 1;
            }
            (ServerPacket::ConnAck { code, .. }, _) => {
                return Err(io::Error::other(format!("CONNACK {code}")));
            }
            (ServerPacket::Publish(publish), DeviceState::AwaitingHelloReply(since)) => {
                let text = std::str::from_utf8(publish.payload).unwrap_or_default();
                if message::peek(text, Reader::Device).is_ok_and(|peek| peek.kind == "hello") {
                    shared.stats.call_setup_times.push(since.elapsed());
                    let grant = CallParameters::parse(text).map_err(io::Error::other)?;
                    self.state = DeviceState::InCall(Box::new(Call::open(&grant, i, shared)?));
                    shared.timers.push(Reverse((Instant::now(), i)));
                }
            }
            (ServerPacket::Publish(publish), _) => {
                let text = std::str::from_utf8(publish.payload).unwrap_or_default();
                if let Some(answer) = shared.config.tools.answer(text, i) {
                    self.publish(&answer)?;
                }
            }
            // Everything else is ignored.
            _ => {}
        }
        Ok(())
    }

    /// The hello, or the next packet of audio, that was due at `at`.
    fn on_timer(&mut self, at: Instant, i: usize, shared: &mut Shared) -> io::Result<()> {
        match &mut self.state {
            DeviceState::Idle => {
                self.state = DeviceState::AwaitingHelloReply(Instant::now());
                self.publish(HELLO)
            }
            DeviceState::InCall(call) => {
                call.send(shared)?;
                shared.timers.push(Reverse((at + shared.config.interval, i)));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Reads received audio.
    fn receive_audio(&mut self, shared: &mut Shared) {
        let DeviceState::InCall(call) = &mut self.state else { return };
        let mut buffer = [0; 2048];
        loop {
            match call.udp.recv(&mut buffer) {
                Ok(n) => call.on_datagram(&mut buffer[..n], shared),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The error of an earlier send.
                Err(_) => {}
            }
        }
    }

    fn publish(&mut self, text: &str) -> io::Result<()> {
        let mut packet = Vec::new();
        encode::publish(&mut packet, PUBLISH_TOPIC, text.as_bytes());
        self.write(&packet)
    }

    /// The packets are much smaller than the socket's buffer.
    fn write(&mut self, packet: &[u8]) -> io::Result<()> {
        match self.stream.write(packet)? {
            n if n == packet.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

impl Call {
    fn open(grant: &CallParameters, i: usize, shared: &Shared) -> io::Result<Self> {
        let server = (&*grant.server, grant.port).to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
        let mut udp = UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        udp.connect(server)?;
        shared.registry.register(&mut udp, Token(2 * i + 1), Interest::READABLE)?;
        let (cipher, session_id) = (Cipher::new(&grant.key), grant.session_id.clone());
        Ok(Self { udp, cipher, session_id, nonce: grant.nonce, sent: 0, last_received: 0 })
    }

    fn send(&mut self, shared: &mut Shared) -> io::Result<()> {
        let payload = test_audio::packet(self.sent, shared.start.elapsed().as_micros() as u64);
        self.sent += 1;
        let mut packet = [0; HEADER_LEN + test_audio::PACKET_LEN];
        packet[..HEADER_LEN].copy_from_slice(&self.nonce);
        packet[2..4].copy_from_slice(&(test_audio::PACKET_LEN as u16).to_be_bytes());
        packet[12..16].copy_from_slice(&self.sent.to_be_bytes());
        let mut iv = [0; HEADER_LEN];
        iv.copy_from_slice(&packet[..HEADER_LEN]);
        packet[HEADER_LEN..].copy_from_slice(&payload);
        self.cipher.apply(&iv, &mut packet[HEADER_LEN..]);
        shared.stats.sent += 1;
        match self.udp.send(&packet) {
            // If the socket is full the packet is lost, as on a real network.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    fn on_datagram(&mut self, datagram: &mut [u8], shared: &mut Shared) {
        let Ok(UdpHeader { sequence, .. }) = UdpHeader::parse(datagram) else { return };
        if sequence <= self.last_received {
            return;
        }
        shared.stats.gaps += u64::from(sequence - self.last_received - 1);
        self.last_received = sequence;
        let Some((iv, payload)) = datagram.split_first_chunk_mut::<HEADER_LEN>() else { return };
        self.cipher.apply(iv, payload);
        if let Some((_, micros)) = test_audio::parse(payload) {
            shared.stats.echoed += 1;
            let said = shared.start + Duration::from_micros(micros);
            shared.stats.round_trips.push(said.elapsed());
        }
    }
}
