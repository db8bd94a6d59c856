//! The connection to a chat server: dial stages, each resumable at any edge, then a WebSocket.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, WebSocketContext};
use tungstenite::{Bytes, Error, Message, Utf8Bytes};

use super::backend_transport::{Handshake, Progress, Stream, TlsClient};
use super::context_pool::{Contexts, MAX_WRITE_BUFFER};
use super::frame_reader::Tap;
use super::upgrade::{self, Upgrade};
use crate::config::{ChatServerConfig, Secret};
use crate::session::{BackendClosed, BackendFailure, DialRequest, LOCAL_SHORTAGE_STAGE};

/// A message longer than this makes the buffers it grew worth giving back.
const BULKY: usize = 8 * 1024;
/// The next address of the same host is tried when this one has not answered by then.
const PER_ADDRESS: Duration = Duration::from_millis(1000);

/// One WebSocket to a chat server, or the way there.
pub(super) struct Backend {
    server: Arc<ChatServerConfig>,
    /// What to ask for; there until the WebSocket is open.
    request: Option<Box<DialRequest>>,
    stage: Stage,
    /// Of the name that is being resolved.
    pub(super) ticket: u64,
    /// Counts against `max_dials`.
    pub(super) counted: bool,
    /// A long message passed, or much waited to be written: free its buffers when they are empty.
    bulky: bool,
}

enum Stage {
    /// Waits for the addresses of a name.
    Resolving,
    /// There are no addresses, and why.
    Unresolved(String),
    /// Waits for its turn.
    Waiting(VecDeque<SocketAddr>),
    Connecting {
        tcp: TcpStream,
        rest: VecDeque<SocketAddr>,
        until: Instant,
    },
    Securing(Box<Handshake>),
    Upgrading(Box<Upgrade>),
    Open(Open),
    Spent,
}

/// An open WebSocket.
struct Open {
    tap: Tap,
    /// There while a message is on its way in or out.
    context: Option<Box<WebSocketContext>>,
}

/// How far a dial came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    Opened,
    Failed(BackendFailure),
}

/// What a chat server sent.
pub(super) enum Incoming {
    Text(Utf8Bytes),
    Audio(Bytes),
    /// A ping, whose pong must be flushed, or a pong.
    Alive,
    /// Nothing more for now: the socket will tell.
    Blocked,
    /// It was enough for now: there may be more.
    Enough,
    Gone(BackendClosed),
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
            bulky: false,
        }
    }

    pub(super) fn server(&self) -> &Arc<ChatServerConfig> {
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
            Stage::Resolving | Stage::Unresolved(_) => "resolve",
            Stage::Waiting(_) | Stage::Connecting { .. } => "connect",
            Stage::Securing(_) => "tls",
            Stage::Upgrading(_) => "upgrade",
            Stage::Open(_) | Stage::Spent => "live",
        }
    }

    /// Whether [`advance`](Self::advance) may change something: it has a socket that is not open yet, or has failed.
    pub(super) fn is_dialling(&self) -> bool {
        use Stage::{Connecting, Securing, Unresolved, Upgrading};
        matches!(self.stage, Unresolved(_) | Connecting { .. } | Securing(_) | Upgrading(_))
    }

    /// Whether a dial can go on when its socket takes bytes but has none to give. A handshake could; but not on Windows,
    /// where each attempt to read asks for the next such event.
    pub(super) fn waits_to_write(&self) -> bool {
        match &self.stage {
            Stage::Connecting { .. } => true,
            Stage::Securing(_) => !cfg!(windows),
            Stage::Upgrading(upgrade) => !upgrade.is_sent(),
            _ => false,
        }
    }

    /// Bytes that wait to be written, that are partial, or that were not served yet.
    pub(super) fn kept(&self) -> usize {
        match &self.stage {
            Stage::Upgrading(upgrade) => upgrade.kept(),
            Stage::Open(open) => open.tap.kept(),
            _ => 0,
        }
    }

    /// The addresses to be tried once there is a free place.
    pub(super) fn resolved(&mut self, addresses: Vec<SocketAddr>) {
        self.stage = Stage::Waiting(addresses.into());
    }

    /// The name has no addresses: the dial fails when it goes on.
    pub(super) fn unresolved(&mut self, why: String) {
        self.stage = Stage::Unresolved(why);
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
        let stage = if last.as_ref().is_some_and(is_own_shortage) { LOCAL_SHORTAGE_STAGE } else { "connect" };
        let why = last.map_or_else(|| "the name has no address".to_owned(), |error| error.to_string());
        Step::Failed(BackendFailure { stage, message: why })
    }

    /// Goes on as far as the socket allows. Harmless at any time.
    pub(super) fn advance(&mut self, dialer: &mut Dialer<'_>) -> Step {
        loop {
            match std::mem::replace(&mut self.stage, Stage::Spent) {
                Stage::Unresolved(why) => {
                    return Step::Failed(BackendFailure { stage: "resolve", message: why });
                }
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
                        return Step::Failed(BackendFailure { stage: "tls", message: error.to_string() });
                    }
                },
                Stage::Upgrading(mut upgrade) => match upgrade.advance() {
                    Ok(None) => {
                        self.stage = Stage::Upgrading(upgrade);
                        return Step::Wait;
                    }
                    Ok(Some(tail)) => {
                        let tap = Tap::new(upgrade.into_stream(), tail);
                        self.stage = Stage::Open(Open { tap, context: None });
                        return Step::Opened;
                    }
                    Err(why) => return Step::Failed(BackendFailure { stage: "upgrade", message: why }),
                },
                stage => {
                    self.stage = stage;
                    return Step::Wait;
                }
            }
        }
    }

    fn connected(&mut self, tcp: TcpStream, dialer: &mut Dialer<'_>) -> Result<(), BackendFailure> {
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
            Err(error) => Err(BackendFailure { stage: "tls", message: error.to_string() }),
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
            Stage::Open(open) => {
                let tcp = open.tap.stream_mut().tcp_mut();
                registry.reregister(tcp, token, Interest::READABLE | Interest::WRITABLE)
            }
            _ => Err(ErrorKind::NotConnected.into()),
        }
    }

    // ----- the open WebSocket -------------------------------------------------------------------------------------

    /// Lends the loop's chunk for the reads that follow. `more`: the system said that the end of the stream is near, so a
    /// short read proves nothing.
    pub(super) fn lend(&mut self, chunk: &mut Vec<u8>, more: bool) {
        if let Stage::Open(open) = &mut self.stage {
            open.tap.lend(chunk, more);
        }
    }

    /// Takes the chunk back; what was not served yet is kept.
    pub(super) fn reclaim(&mut self, chunk: &mut Vec<u8>) {
        if let Stage::Open(open) = &mut self.stage {
            open.tap.reclaim(chunk);
        }
    }

    /// The next message, if one is there.
    pub(super) fn read(&mut self, contexts: &mut Contexts) -> Incoming {
        let Stage::Open(open) = &mut self.stage else { return Incoming::Blocked };
        match contexts.lend(&mut open.context).read(&mut open.tap) {
            Ok(Message::Text(text)) => {
                self.bulky |= text.len() > BULKY;
                Incoming::Text(text)
            }
            Ok(Message::Binary(bytes)) => {
                self.bulky |= bytes.len() > BULKY;
                Incoming::Audio(bytes)
            }
            Ok(Message::Close(frame)) => {
                Incoming::Gone(BackendClosed::CloseFrame(frame.map(|frame| frame.code.into())))
            }
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => Incoming::Alive,
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                if open.tap.was_enough() {
                    Incoming::Enough
                } else {
                    Incoming::Blocked
                }
            }
            Err(error) => {
                self.fail(&error, contexts);
                Incoming::Gone(BackendClosed::Failed(BackendFailure {
                    stage: "live",
                    message: describe(&error),
                }))
            }
        }
    }

    /// Tells the server what was wrong with its frames, as RFC 6455 section 7.4.1 names it.
    fn fail(&mut self, error: &Error, contexts: &mut Contexts) {
        let code = match error {
            Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => return,
            Error::Protocol(_) => CloseCode::Protocol,
            Error::Utf8(_) => CloseCode::Invalid,
            Error::Capacity(_) => CloseCode::Size,
            _ => return,
        };
        self.close(code, contexts);
    }

    pub(super) fn send_text(&mut self, text: String, contexts: &mut Contexts) -> Result<(), Refused> {
        self.bulky |= text.len() > BULKY;
        self.send(Message::Text(text.into()), contexts)
    }

    pub(super) fn send_audio(&mut self, frame: &[u8], contexts: &mut Contexts) -> Result<(), Refused> {
        let message = contexts.binary(frame);
        self.send(message, contexts)
    }

    pub(super) fn ping(&mut self, contexts: &mut Contexts) -> Result<(), Refused> {
        self.send(Message::Ping(Bytes::new()), contexts)
    }

    /// An error other than a full buffer shows itself at the next read.
    fn send(&mut self, message: Message, contexts: &mut Contexts) -> Result<(), Refused> {
        let Stage::Open(Open { tap, context }) = &mut self.stage else { return Ok(()) };
        let context = contexts.lend(context);
        let Err(Error::WriteBufferFull(message)) = context.write(tap, message) else { return Ok(()) };
        match context.flush(tap) {
            // Nothing waits: the message alone is longer than the buffer, which a reading server need not suffer for.
            Ok(()) => {
                context.set_config(|config| config.max_write_buffer_size = usize::MAX);
                let _ = context.write(tap, *message);
                context.set_config(|config| config.max_write_buffer_size = MAX_WRITE_BUFFER);
                Ok(())
            }
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Err(Refused),
            Err(_) => Ok(()),
        }
    }

    /// Queues a Close frame, after what is queued already.
    pub(super) fn close(&mut self, code: CloseCode, contexts: &mut Contexts) {
        if let Stage::Open(Open { tap, context }) = &mut self.stage {
            let frame = CloseFrame { code, reason: Utf8Bytes::default() };
            let _ = contexts.lend(context).close(tap, Some(frame));
        }
    }

    /// Writes what is queued, and lets others have the context when nothing is left in it. False when the connection is
    /// broken.
    pub(super) fn flush(&mut self, contexts: &mut Contexts) -> bool {
        let Stage::Open(Open { tap, context: lent }) = &mut self.stage else { return true };
        let Some(mut context) = lent.take() else { return true };
        // Twice: a pong that found the buffer full comes with the second.
        let flushed = context.flush(tap).and_then(|()| context.flush(tap));
        self.bulky |= tap.unwritten() > BULKY;
        if flushed.is_ok() && context.can_write() && tap.is_between_messages() {
            contexts.take_back(context, std::mem::take(&mut self.bulky));
        } else {
            *lent = Some(context);
        }
        match flushed {
            Ok(()) => true,
            Err(Error::Io(error)) => error.kind() == ErrorKind::WouldBlock,
            Err(_) => false,
        }
    }
}

/// Whether this process or system ran out of descriptors (EMFILE, ENFILE): no fault of the server.
fn is_own_shortage(error: &io::Error) -> bool {
    cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn what_a_websocket_costs_is_known() {
        assert!(size_of::<Backend>() <= 136, "{}", size_of::<Backend>());
    }
}
