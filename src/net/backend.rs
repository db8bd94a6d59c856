//! The connection to a chat server: dial stages, each resumable at any edge, then a WebSocket.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Bytes, Error, Message, Utf8Bytes, WebSocket};

use super::stream::{Handshake, Progress, Stream, TlsClient};
use super::tap::Tap;
use super::upgrade::{self, Upgrade};
use crate::config::{Secret, Server};
use crate::session::{DialRequest, Failure, Gone, OWN_SHORTAGE};

/// What tungstenite takes at a time from the chunk that was read; every call owns a buffer of this size.
const READ_BUFFER: usize = 128;
/// Frames gather up to here before they are written; the end of the turn writes them anyway.
const WRITE_BUFFER: usize = 16 * 1024;
/// What a chat server that does not read may let pile up: then audio is dropped, and text ends the call.
const MAX_WRITE_BUFFER: usize = 128 * 1024;
/// The longest message of a chat server.
const MAX_MESSAGE: usize = 1024 * 1024;
/// A message longer than this makes the buffers it grew worth giving back.
const BULKY: usize = 8 * 1024;
/// The next address of the same host is tried when this one has not answered by then.
const PER_ADDRESS: Duration = Duration::from_millis(1000);

/// One WebSocket to a chat server, or the way there.
pub(super) struct Backend {
    server: Arc<Server>,
    /// What to ask for; there until the WebSocket is open.
    request: Option<Box<DialRequest>>,
    stage: Stage,
    /// Of the name that is being resolved.
    pub(super) ticket: u64,
    /// Counts against `max_dials`.
    pub(super) counted: bool,
    /// Bytes taken from the stream, minus those accounted for by whole messages: zero between messages.
    unread: u64,
    /// A long message passed: give its buffers back when they are empty.
    bulky: bool,
}

enum Stage {
    /// Waits for the addresses of a name.
    Resolving,
    /// Waits for its turn.
    Waiting(VecDeque<SocketAddr>),
    Connecting {
        tcp: TcpStream,
        rest: VecDeque<SocketAddr>,
        until: Instant,
    },
    Securing(Box<Handshake>),
    Upgrading(Box<Upgrade>),
    Open(Box<WebSocket<Tap>>),
    Spent,
}

/// How far a dial came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    Opened,
    Failed(Failure),
}

/// What a chat server sent.
pub(super) enum Incoming {
    Text(Utf8Bytes),
    Audio(Bytes),
    /// A ping, whose pong must be flushed, or a pong.
    Alive,
    /// Nothing more for now.
    Blocked,
    Gone(Gone),
}

/// The write buffer is full: the frame was not queued.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// What a dial needs from outside.
pub(super) struct Dialer<'a> {
    pub(super) registry: &'a Registry,
    pub(super) token: Token,
    pub(super) now: Instant,
    pub(super) tls: &'a mut TlsClient,
    /// Signs the token of the `authorization` header.
    pub(super) secret: Option<&'a Secret>,
}

impl Backend {
    pub(super) fn new(request: Box<DialRequest>) -> Self {
        Self {
            server: request.server.clone(),
            request: Some(request),
            stage: Stage::Resolving,
            ticket: 0,
            counted: false,
            unread: 0,
            bulky: false,
        }
    }

    pub(super) fn server(&self) -> &Arc<Server> {
        &self.server
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }

    pub(super) fn is_resolving(&self) -> bool {
        matches!(self.stage, Stage::Resolving)
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.stage, Stage::Waiting(_))
    }

    /// The stage of the dial, by the name its failure would have; `live` once it is over.
    pub(super) fn stage(&self) -> &'static str {
        match &self.stage {
            Stage::Resolving => "resolve",
            Stage::Waiting(_) | Stage::Connecting { .. } => "connect",
            Stage::Securing(_) => "tls",
            Stage::Upgrading(_) => "upgrade",
            Stage::Open(_) | Stage::Spent => "live",
        }
    }

    /// Whether it has a socket, but is not open yet.
    pub(super) fn is_dialling(&self) -> bool {
        matches!(self.stage, Stage::Connecting { .. } | Stage::Securing(_) | Stage::Upgrading(_))
    }

    /// The addresses to be tried once there is a free place.
    pub(super) fn resolved(&mut self, addresses: Vec<SocketAddr>) {
        self.stage = Stage::Waiting(addresses.into());
    }

    /// When to give this address up for the next.
    pub(super) fn next_address_at(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Connecting { rest, until, .. } if !rest.is_empty() => Some(*until),
            _ => None,
        }
    }

    // ----- dialling -----------------------------------------------------------------------------------------------

    /// Leaves the queue: connects to the first address.
    pub(super) fn connect(&mut self, dialer: &mut Dialer<'_>) -> Step {
        match std::mem::replace(&mut self.stage, Stage::Spent) {
            Stage::Waiting(addresses) => self.connect_to(addresses, None, dialer),
            stage => {
                self.stage = stage;
                Step::Wait
            }
        }
    }

    fn connect_to(
        &mut self,
        mut addresses: VecDeque<SocketAddr>,
        mut last: Option<io::Error>,
        dialer: &mut Dialer<'_>,
    ) -> Step {
        while let Some(address) = addresses.pop_front() {
            let interest = Interest::READABLE | Interest::WRITABLE;
            let connected = TcpStream::connect(address).and_then(|mut tcp| {
                dialer.registry.register(&mut tcp, dialer.token, interest)?;
                Ok(tcp)
            });
            match connected {
                Ok(tcp) => {
                    let until = dialer.now + PER_ADDRESS;
                    self.stage = Stage::Connecting { tcp, rest: addresses, until };
                    return Step::Wait;
                }
                Err(error) => last = Some(error),
            }
        }
        let stage = if last.as_ref().is_some_and(is_own_shortage) { OWN_SHORTAGE } else { "connect" };
        let why = last.map_or_else(|| "the name has no address".to_owned(), |error| error.to_string());
        Step::Failed(Failure { stage, why })
    }

    /// Goes on as far as the socket allows. Harmless at any time.
    pub(super) fn advance(&mut self, dialer: &mut Dialer<'_>) -> Step {
        loop {
            match std::mem::replace(&mut self.stage, Stage::Spent) {
                Stage::Connecting { tcp, rest, until } => {
                    let error = match (tcp.take_error(), tcp.peer_addr()) {
                        (Ok(Some(error)), _) | (Err(error), _) => Some(error),
                        (Ok(None), Ok(_)) => None,
                        (Ok(None), Err(_)) if dialer.now < until || rest.is_empty() => {
                            self.stage = Stage::Connecting { tcp, rest, until };
                            return Step::Wait;
                        }
                        (Ok(None), Err(_)) => Some(ErrorKind::TimedOut.into()),
                    };
                    if let Some(error) = error {
                        drop(tcp);
                        match self.connect_to(rest, Some(error), dialer) {
                            Step::Wait => continue,
                            step => return step,
                        }
                    }
                    if let Err(failure) = self.connected(tcp, dialer) {
                        return Step::Failed(failure);
                    }
                }
                Stage::Securing(handshake) => match handshake.advance() {
                    Ok(Progress::Done(stream)) => self.upgrade(stream, dialer),
                    Ok(Progress::Blocked(handshake)) => {
                        self.stage = Stage::Securing(Box::new(handshake));
                        return Step::Wait;
                    }
                    Err(error) => {
                        return Step::Failed(Failure { stage: "tls", why: error.to_string() });
                    }
                },
                Stage::Upgrading(mut upgrade) => match upgrade.advance() {
                    Ok(None) => {
                        self.stage = Stage::Upgrading(upgrade);
                        return Step::Wait;
                    }
                    Ok(Some(tail)) => {
                        self.unread = tail.len() as u64;
                        let stream = Tap::new(upgrade.into_stream());
                        let socket = WebSocket::from_partially_read(
                            stream,
                            tail,
                            Role::Client,
                            Some(websocket_config()),
                        );
                        self.stage = Stage::Open(Box::new(socket));
                        return Step::Opened;
                    }
                    Err(why) => return Step::Failed(Failure { stage: "upgrade", why }),
                },
                stage => {
                    self.stage = stage;
                    return Step::Wait;
                }
            }
        }
    }

    fn connected(&mut self, tcp: TcpStream, dialer: &mut Dialer<'_>) -> Result<(), Failure> {
        // Frames leave when their turn ends, not when Nagle's algorithm likes; a socket without the option still works.
        let _ = tcp.set_nodelay(true);
        if !self.server.tls {
            self.upgrade(Stream::Plain(tcp), dialer);
            return Ok(());
        }
        match dialer.tls.start(&self.server.host, tcp) {
            Ok(handshake) => {
                self.stage = Stage::Securing(Box::new(handshake));
                Ok(())
            }
            Err(error) => Err(Failure { stage: "tls", why: error.to_string() }),
        }
    }

    fn upgrade(&mut self, stream: Stream, dialer: &Dialer<'_>) {
        if let Some(request) = self.request.take() {
            let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let authorization = upgrade::authorization(dialer.secret, &request, unix.as_secs());
            self.stage = Stage::Upgrading(Box::new(Upgrade::new(stream, &request, &authorization)));
        }
    }

    /// Moves the registration of an open WebSocket to another token.
    pub(super) fn reregister(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.stage {
            Stage::Open(socket) => {
                let tcp = socket.get_mut().stream_mut().tcp_mut();
                registry.reregister(tcp, token, Interest::READABLE | Interest::WRITABLE)
            }
            _ => Err(ErrorKind::NotConnected.into()),
        }
    }

    // ----- the open WebSocket -------------------------------------------------------------------------------------

    /// Lends the loop's chunk for the reads that follow. `more`: the system said that the end of the stream is near, so a
    /// short read proves nothing.
    pub(super) fn lend(&mut self, chunk: &mut Vec<u8>, more: bool) {
        if let Stage::Open(socket) = &mut self.stage {
            socket.get_mut().lend(chunk, more);
        }
    }

    /// Takes the chunk back; what was not served yet is kept.
    pub(super) fn reclaim(&mut self, chunk: &mut Vec<u8>) {
        if let Stage::Open(socket) = &mut self.stage {
            socket.get_mut().reclaim(chunk);
        }
    }

    /// The next message, if one is there.
    pub(super) fn read(&mut self) -> Incoming {
        let Stage::Open(socket) = &mut self.stage else { return Incoming::Blocked };
        let outcome = socket.read();
        self.unread += socket.get_mut().take_count();
        match outcome {
            Ok(Message::Text(text)) => {
                self.account(text.len());
                Incoming::Text(text)
            }
            Ok(Message::Binary(bytes)) => {
                self.account(bytes.len());
                Incoming::Audio(bytes)
            }
            Ok(Message::Ping(bytes) | Message::Pong(bytes)) => {
                self.account(bytes.len());
                Incoming::Alive
            }
            Ok(Message::Close(frame)) => Incoming::Gone(Gone::Closed(frame.map(|frame| frame.code.into()))),
            Ok(Message::Frame(_)) => Incoming::Alive,
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                self.slim();
                Incoming::Blocked
            }
            Err(error) => {
                self.fail(&error);
                Incoming::Gone(Gone::Failed(Failure { stage: "live", why: describe(&error) }))
            }
        }
    }

    /// Tells the server what was wrong with its frames, as RFC 6455 section 7.4.1 names it.
    fn fail(&mut self, error: &Error) {
        let code = match error {
            Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => return,
            Error::Protocol(_) => CloseCode::Protocol,
            Error::Utf8(_) => CloseCode::Invalid,
            Error::Capacity(_) => CloseCode::Size,
            _ => return,
        };
        self.close(code);
    }

    pub(super) fn send_text(&mut self, text: String) -> Result<(), Refused> {
        self.bulky |= text.len() > BULKY;
        self.send(Message::Text(text.into()))
    }

    pub(super) fn send_audio(&mut self, frame: &[u8]) -> Result<(), Refused> {
        self.send(Message::Binary(Bytes::copy_from_slice(frame)))
    }

    pub(super) fn ping(&mut self) -> Result<(), Refused> {
        self.send(Message::Ping(Bytes::new()))
    }

    /// An error other than a full buffer shows itself at the next read.
    fn send(&mut self, message: Message) -> Result<(), Refused> {
        let Stage::Open(socket) = &mut self.stage else { return Ok(()) };
        let Err(Error::WriteBufferFull(message)) = socket.write(message) else { return Ok(()) };
        match socket.flush() {
            // Nothing waits: the message alone is longer than the buffer, which a reading server need not suffer for.
            Ok(()) => {
                socket.set_config(|config| config.max_write_buffer_size = usize::MAX);
                let _ = socket.write(*message);
                socket.set_config(|config| config.max_write_buffer_size = MAX_WRITE_BUFFER);
                Ok(())
            }
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Err(Refused),
            Err(_) => Ok(()),
        }
    }

    /// Queues a Close frame, after what is queued already.
    pub(super) fn close(&mut self, code: CloseCode) {
        if let Stage::Open(socket) = &mut self.stage {
            let _ = socket.close(Some(CloseFrame { code, reason: Utf8Bytes::default() }));
        }
    }

    /// Writes what is queued. False when the connection is broken.
    pub(super) fn flush(&mut self) -> bool {
        let Stage::Open(socket) = &mut self.stage else { return true };
        match socket.flush() {
            Ok(()) => true,
            Err(Error::Io(error)) => error.kind() == ErrorKind::WouldBlock,
            Err(_) => false,
        }
    }

    /// A whole message was read: its frame is accounted for, if it was one frame with the shortest header.
    fn account(&mut self, payload: usize) {
        let header = match payload {
            0..=125 => 2,
            126..=0xffff => 4,
            _ => 10,
        };
        // What came in many frames may have had shorter headers than one long frame: then the count is no more to be trusted.
        self.unread = self.unread.checked_sub(payload as u64 + header).unwrap_or(u64::MAX / 2);
        self.bulky |= payload > BULKY;
    }

    /// Gives back buffers that grew for one long message. tungstenite never shrinks its own, so it is made anew, which
    /// loses nothing exactly when every byte read was part of a message handed out and every byte written has left.
    fn slim(&mut self) {
        let Stage::Open(socket) = &mut self.stage else { return };
        if !self.bulky || self.unread != 0 || !socket.can_write() || !socket.can_read() {
            return;
        }
        // All of it, not only what the system takes now.
        if socket.flush().is_err() {
            return;
        }
        if let Stage::Open(socket) = std::mem::replace(&mut self.stage, Stage::Spent) {
            let stream = socket.into_inner();
            let socket = WebSocket::from_raw_socket(stream, Role::Client, Some(websocket_config()));
            self.stage = Stage::Open(Box::new(socket));
            self.bulky = false;
        }
    }
}

/// Whether this process or system ran out of descriptors (EMFILE, ENFILE): no fault of the server.
fn is_own_shortage(error: &io::Error) -> bool {
    cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24))
}

fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(MAX_WRITE_BUFFER)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

fn describe(error: &Error) -> String {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => "the connection ended".to_owned(),
        Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
            "the connection ended without a Close frame (1006)".to_owned()
        }
        error => error.to_string(),
    }
}
