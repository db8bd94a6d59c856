//! A chat server that does what a test says, step by step, and keeps what it was asked: its own WebSocket (RFC 6455),
//! so that the gateway's library does not talk to itself.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use openssl::ssl::{SslAcceptor, SslStream};
use serde_json::{Value, json};

use super::{TIMEOUT, remaining};

/// A listening chat server. Connections wait for [`ChatServer::accept`].
pub struct ChatServer {
    pub addr: SocketAddr,
    accepted: Receiver<TcpStream>,
    tls: Option<SslAcceptor>,
    stop: Arc<AtomicBool>,
}

impl ChatServer {
    pub fn start() -> Self {
        Self::listen(None)
    }

    /// With TLS.
    pub fn start_tls(acceptor: SslAcceptor) -> Self {
        Self::listen(Some(acceptor))
    }

    /// Further connections get this certificate, and cannot resume sessions of earlier ones.
    pub fn replace_tls(&mut self, acceptor: SslAcceptor) {
        self.tls = Some(acceptor);
    }

    /// On a port that was used before. Waits while another test has it.
    pub fn start_at(addr: SocketAddr) -> Self {
        let end = Instant::now() + TIMEOUT;
        loop {
            match TcpListener::bind(addr) {
                Ok(listener) => return Self::from_listener(listener, None),
                Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < end => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("{addr}: {error}"),
            }
        }
    }

    /// With small receive buffers.
    pub fn start_with_small_buffer() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        // Accepted connections inherit it, before the first window is announced.
        socket2::SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
        Self::from_listener(listener, None)
    }

    fn listen(tls: Option<SslAcceptor>) -> Self {
        Self::from_listener(TcpListener::bind(("127.0.0.1", 0)).unwrap(), tls)
    }

    fn from_listener(listener: TcpListener, tls: Option<SslAcceptor>) -> Self {
        let addr = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, accepted) = mpsc::channel();
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Acquire) || sender.send(stream).is_err() {
                    return;
                }
            }
        });
        Self { addr, accepted, tls, stop }
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        format!("{scheme}://{}/chat?from=mqtt_gateway", self.addr)
    }

    /// The next connection, before any byte of it was read.
    pub fn accept(&self) -> Peer {
        self.accept_within(TIMEOUT).expect("nobody connected to the chat server")
    }

    pub fn accept_within(&self, limit: Duration) -> Option<Peer> {
        let stream = self.accepted.recv_timeout(limit).ok()?;
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let stream = match &self.tls {
            None => Stream::Plain(stream),
            // A client that does not trust the certificate ends the handshake; later reads find the connection closed.
            Some(acceptor) => match acceptor.accept(stream) {
                Ok(stream) => Stream::Tls(Box::new(stream)),
                Err(_) => Stream::HandshakeFailed,
            },
        };
        Some(Peer { stream, inbox: Vec::new(), masking_keys: Vec::new() })
    }

    /// Whether no connection waits to be accepted.
    pub fn is_idle(&self) -> bool {
        self.accepted.try_recv().is_err()
    }

    /// Handles every further connection with `handle`, each in its own thread.
    pub fn serve(self, handle: impl Fn(Peer) + Send + Sync + 'static) {
        let handle = Arc::new(handle);
        thread::spawn(move || {
            while let Some(peer) = self.accept_within(Duration::from_secs(3600)) {
                let handle = Arc::clone(&handle);
                thread::spawn(move || handle(peer));
            }
        });
    }
}

impl Drop for ChatServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect_timeout(&self.addr, Duration::from_secs(1));
    }
}

/// The upgrade request.
#[derive(Clone, Debug)]
pub struct Request {
    pub line: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// The value of the header, which must not occur twice; names are compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} twice in {self:#?}");
        value
    }
}

/// What the gateway sent over the WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>),
    /// The connection's end: a FIN or a reset.
    End,
}

/// One connection of the gateway.
pub struct Peer {
    stream: Stream,
    inbox: Vec<u8>,
    /// The masking key of every frame so far.
    pub masking_keys: Vec<[u8; 4]>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<SslStream<TcpStream>>),
    HandshakeFailed,
}

impl Stream {
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref()),
            Self::HandshakeFailed => None,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
            Self::HandshakeFailed => Ok(0),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes),
            Self::Tls(stream) => stream.write_all(bytes),
            Self::HandshakeFailed => Err(ErrorKind::NotConnected.into()),
        }
    }
}

impl Peer {
    // ----- the handshake --------------------------------------------------------------------------------------------

    /// Reads the upgrade request, and checks what RFC 6455 section 4.1 demands of it.
    pub fn request(&mut self) -> Request {
        let end = Instant::now() + TIMEOUT;
        let length = loop {
            if let Some(at) = self.inbox.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.fill(end).expect("no request in time"), "closed instead of a request");
        };
        let head = String::from_utf8(self.inbox.drain(..length).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let line = lines.next().unwrap().to_owned();
        let header = |line: &str| {
            let (key, value) = line.split_once(':').unwrap();
            (key.to_owned(), value.trim().to_owned())
        };
        let request = Request { line, headers: lines.map(header).collect() };
        assert!(request.line.starts_with("GET /") && request.line.ends_with(" HTTP/1.1"), "{request:#?}");
        for (name, value) in
            [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-version", "13")]
        {
            assert_eq!(request.header(name), Some(value), "{request:#?}");
        }
        assert_eq!(request.header("sec-websocket-key").map(str::len), Some(24), "{request:#?}");
        assert_eq!(request.header("sec-websocket-extensions"), None, "{request:#?}");
        assert_eq!(request.header("sec-websocket-protocol"), None, "{request:#?}");
        request
    }

    /// Reads the request and accepts it.
    pub fn upgrade(&mut self) -> Request {
        let request = self.request();
        let answer = upgrade_response(&request);
        self.send_raw(answer.as_bytes());
        request
    }

    /// Accepts the upgrade unless the gateway has abandoned this connection.
    pub fn try_upgrade(&mut self) -> bool {
        let end = Instant::now() + TIMEOUT;
        while !self.inbox.ends_with(b"\r\n\r\n") {
            if self.fill(end) != Some(true) {
                return false;
            }
        }
        let request = self.request();
        let agreed = self.stream.write_all(upgrade_response(&request).as_bytes()).is_ok();
        // The hello follows, or the end.
        agreed && self.fill(end) == Some(true)
    }

    /// Reads the request and answers it with this status, such as `403 Forbidden`, and closes.
    pub fn refuse(mut self, status: &str) -> Request {
        let request = self.request();
        self.send_raw(
            format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno").as_bytes(),
        );
        request
    }

    /// Waits for the gateway's hello and answers it; the hello.
    pub fn exchange_hello(&mut self, session_id: &str) -> Value {
        let hello = self.json();
        assert_eq!(hello["type"], "hello", "{hello}");
        let answer = json!({
            "type": "hello", "version": 1, "transport": "websocket", "session_id": session_id,
            "audio_params": {"format": "opus", "sample_rate": 24000, "channels": 1, "frame_duration": 60},
        });
        self.send_text(&answer.to_string());
        hello
    }

    // ----- messages ---------------------------------------------------------------------------------------------------

    /// The next message.
    pub fn message(&mut self) -> Message {
        self.message_within(TIMEOUT).expect("no message from the gateway")
    }

    /// `None` when nothing arrived.
    pub fn message_within(&mut self, limit: Duration) -> Option<Message> {
        let end = Instant::now() + limit;
        loop {
            if let Some(message) = self.parse_frame() {
                return Some(message);
            }
            if !self.fill(end)? {
                assert!(self.inbox.is_empty(), "half a frame at the end");
                return Some(Message::End);
            }
        }
    }

    /// The next message that is not a ping, which a slow test may get. Answers pings.
    fn answer_pings_until_message(&mut self, limit: Duration) -> Option<Message> {
        loop {
            match self.message_within(limit)? {
                Message::Ping(payload) => self.try_frame(10, &payload),
                message => return Some(message),
            }
        }
    }

    pub fn text(&mut self) -> String {
        match self.answer_pings_until_message(TIMEOUT).expect("no text from the gateway") {
            Message::Text(text) => text,
            other => panic!("{other:?} instead of a text"),
        }
    }

    pub fn json(&mut self) -> Value {
        serde_json::from_str(&self.text()).unwrap()
    }

    pub fn binary(&mut self) -> Vec<u8> {
        match self.answer_pings_until_message(TIMEOUT).expect("no audio from the gateway") {
            Message::Binary(frame) => frame,
            other => panic!("{other:?} instead of a binary frame"),
        }
    }

    /// A binary frame, if one comes within this time.
    pub fn binary_within(&mut self, limit: Duration) -> Option<Vec<u8>> {
        match self.answer_pings_until_message(limit)? {
            Message::Binary(frame) => Some(frame),
            other => panic!("{other:?} instead of a binary frame"),
        }
    }

    /// Waits for the gateway's Close with this code, with only a goodbye before it, and answers it; the goodbye.
    pub fn expect_close(&mut self, code: u16) -> Option<Value> {
        let mut goodbye = None;
        loop {
            match self.answer_pings_until_message(TIMEOUT).expect("no close from the gateway") {
                Message::Text(text) if goodbye.is_none() => {
                    let value: Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(value["type"], "goodbye", "{value}");
                    goodbye = Some(value);
                }
                Message::Close(found) => {
                    assert_eq!(found, Some(code));
                    self.try_frame(8, &code.to_be_bytes());
                    self.shutdown_write();
                    assert_eq!(self.message(), Message::End);
                    return goodbye;
                }
                other => panic!("{other:?} instead of a close"),
            }
        }
    }

    /// Waits for the end of the connection.
    pub fn expect_end(&mut self) {
        assert_eq!(self.message(), Message::End);
    }

    pub fn send_text(&mut self, text: &str) {
        self.frame(1, text.as_bytes());
    }

    pub fn send_binary(&mut self, frame: &[u8]) {
        self.frame(2, frame);
    }

    /// An Opus packet behind the 16-byte header.
    pub fn send_audio(&mut self, timestamp: u32, opus: &[u8]) {
        self.frame(2, &audio_frame(timestamp, opus));
    }

    pub fn ping(&mut self, payload: &[u8]) {
        self.frame(9, payload);
    }

    /// A Close frame; the connection stays, as RFC 6455 wants, until the gateway has answered.
    pub fn send_close(&mut self, code: Option<u16>) {
        self.frame(8, &code.map(u16::to_be_bytes).unwrap_or_default()[..code.map_or(0, |_| 2)]);
    }

    pub fn frame(&mut self, opcode: u8, payload: &[u8]) {
        self.send_raw(&frame(opcode, payload));
    }

    /// Sends; the gateway may have closed the connection.
    pub fn try_frame(&mut self, opcode: u8, payload: &[u8]) {
        let _ = self.stream.write_all(&frame(opcode, payload));
    }

    /// Sends; the gateway may close the connection before it has read everything.
    pub fn try_raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The TCP connection, to set its options.
    pub fn tcp(&self) -> Option<&TcpStream> {
        self.stream.tcp()
    }

    /// Ends our side of the TCP connection.
    pub fn shutdown_write(&mut self) {
        if let Some(tcp) = self.stream.tcp() {
            let _ = tcp.shutdown(std::net::Shutdown::Write);
        }
    }

    /// Ends the TCP connection with a reset.
    pub fn reset(self) {
        if let Some(tcp) = self.stream.tcp() {
            socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }

    /// Reads and ignores everything until the gateway closes the connection.
    pub fn ignore_until_closed(mut self) {
        let end = Instant::now() + TIMEOUT;
        while self.fill(end) == Some(true) {
            self.inbox.clear();
        }
    }

    /// Limits how much the system receives before it is read.
    pub fn shrink_receive_buffer(&self) {
        let tcp = self.stream.tcp().unwrap();
        socket2::SockRef::from(tcp).set_recv_buffer_size(128 * 1024).unwrap();
    }

    /// Whether TLS is on.
    pub fn is_tls(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }

    /// Whether the TLS session of an earlier connection was resumed.
    pub fn is_resumed(&self) -> bool {
        matches!(&self.stream, Stream::Tls(stream) if stream.ssl().session_reused())
    }

    // ----- bytes ------------------------------------------------------------------------------------------------------

    /// Reads more. `Some(false)` at the end, `None` when `end` passes first.
    fn fill(&mut self, end: Instant) -> Option<bool> {
        let mut buffer = [0; 8192];
        loop {
            if let Some(tcp) = self.stream.tcp() {
                tcp.set_read_timeout(Some(remaining(end))).unwrap();
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Some(false),
                Ok(n) => {
                    self.inbox.extend_from_slice(&buffer[..n]);
                    return Some(true);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if Instant::now() >= end {
                        return None;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.inbox.clear();
                    return Some(false);
                }
            }
        }
    }

    /// Takes the first frame from the inbox: unfragmented, and masked as a client's must be (section 5.3).
    fn parse_frame(&mut self) -> Option<Message> {
        let [first, second, ..] = *self.inbox.as_slice() else { return None };
        assert_eq!(first & 0xf0, 0x80, "a fragment, or reserved bits");
        assert_eq!(second & 0x80, 0x80, "a frame without mask");
        let (length, at) = match second & 0x7f {
            126 => (usize::from(u16::from_be_bytes(self.inbox.get(2..4)?.try_into().unwrap())), 4),
            127 => (u64::from_be_bytes(self.inbox.get(2..10)?.try_into().unwrap()) as usize, 10),
            short => (usize::from(short), 2),
        };
        let mask: [u8; 4] = self.inbox.get(at..at + 4)?.try_into().unwrap();
        let masked = self.inbox.get(at + 4..at + 4 + length)?;
        let payload: Vec<u8> =
            masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        self.inbox.drain(..at + 4 + length);
        self.masking_keys.push(mask);
        Some(match first & 0x0f {
            1 => Message::Text(String::from_utf8(payload).unwrap()),
            2 => Message::Binary(payload),
            8 => Message::Close(payload.first_chunk().copied().map(u16::from_be_bytes)),
            9 => Message::Ping(payload),
            10 => Message::Pong(payload),
            other => panic!("opcode {other}"),
        })
    }
}

/// The 16-byte header the gateway and its servers put before Opus, and the Opus.
pub fn audio_frame(timestamp: u32, opus: &[u8]) -> Vec<u8> {
    let mut frame = vec![0, 2, 0, 0, 0, 0, 0, 0];
    frame.extend(timestamp.to_be_bytes());
    frame.extend((opus.len() as u32).to_be_bytes());
    frame.extend_from_slice(opus);
    frame
}

/// A whole message in one frame, not masked.
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode];
    match payload.len() {
        length @ ..126 => bytes.push(length as u8),
        length @ ..0x1_0000 => {
            bytes.push(126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// The response that accepts an upgrade (section 4.2.2).
pub fn upgrade_response(request: &Request) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        accept(request)
    )
}

/// The Sec-WebSocket-Accept for this request.
pub fn accept(request: &Request) -> String {
    let key = request.header("sec-websocket-key").unwrap();
    let hash = openssl::sha::sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes());
    openssl::base64::encode_block(&hash)
}
