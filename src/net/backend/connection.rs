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

use crate::config::{ChatServerConfig, Secret};
use crate::net::backend::context_pool::{ContextPool, MAX_WRITE_BUFFER};
use crate::net::backend::frame_reader::FrameReader;
use crate::net::backend::tls::{Handshake, Progress, TlsClient};
use crate::net::backend::upgrade::{self, Upgrade};
use crate::net::event_loop::stream::Stream;
use crate::session::{BackendClosed, BackendFailure, BackendStage, DialRequest};

/// A message longer than this makes the buffers it grew worth giving back.
const LONG_MESSAGE: usize = 8 * 1024;
/// The next address of the same host is tried when this one has not answered by then.
const CONNECT_TIMEOUT_PER_ADDRESS: Duration = Duration::from_millis(1000);

/// One WebSocket to a chat server, or the way there.
pub(crate) struct BackendConnection {
    server: Arc<ChatServerConfig>,
    /// What to ask for; there until the WebSocket is open.
    request: Option<Box<DialRequest>>,
    stage: ConnectionStage,
    /// Of the name that is being resolved.
    pub(crate) ticket: u64,
    /// Counts against `max_dials`.
    pub(crate) holds_dial_slot: bool,
    /// A long message passed, or much waited to be written: free its buffers when they are empty.
    had_long_message: bool,
}

enum ConnectionStage {
    /// Waits for the addresses of a name.
    Resolving,
    /// There are no addresses, and why.
    Unresolved(String),
    /// Waits for its turn.
    Queued(VecDeque<SocketAddr>),
    Connecting {
        tcp: TcpStream,
        rest: VecDeque<SocketAddr>,
        until: Instant,
    },
    TlsHandshake(Box<Handshake>),
    Upgrading(Box<Upgrade>),
    Open(OpenWebSocket),
    Spent,
}

/// An open WebSocket.
struct OpenWebSocket {
    reader: FrameReader,
    /// There while a message is on its way in or out.
    context: Option<Box<WebSocketContext>>,
}

/// How far a dial came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DialStep {
    Wait,
    Opened,
    Failed(BackendFailure),
}

/// What a chat server sent.
pub(crate) enum Incoming {
    Text(Utf8Bytes),
    Audio(Bytes),
    /// A ping, whose pong must be flushed, or a pong.
    Alive,
    /// Nothing more for now: the socket will tell.
    Blocked,
    /// It was enough for now: there may be more.
    OverBudget,
    Gone(BackendClosed),
}

/// The write buffer is full: the frame was not queued.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WriteBufferFull;

/// What a dial needs from outside.
pub(crate) struct Dialer<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) token: Token,
    pub(crate) now: Instant,
    pub(crate) tls: &'a mut TlsClient,
    /// Signs the token of the `authorization` header.
    pub(crate) secret: Option<&'a Secret>,
}

impl BackendConnection {
    pub(crate) fn new(request: Box<DialRequest>) -> Self {
        Self {
            server: request.server.clone(),
            request: Some(request),
            stage: ConnectionStage::Resolving,
            ticket: 0,
            holds_dial_slot: false,
            had_long_message: false,
        }
    }

    pub(crate) fn server(&self) -> &Arc<ChatServerConfig> {
        &self.server
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.stage, ConnectionStage::Open(_))
    }

    pub(crate) fn is_resolving(&self) -> bool {
        matches!(self.stage, ConnectionStage::Resolving)
    }

    pub(crate) fn is_queued(&self) -> bool {
        matches!(self.stage, ConnectionStage::Queued(_))
    }

    /// The stage of the dial, by the name its failure would have; `live` once it is over.
    pub(crate) fn stage(&self) -> BackendStage {
        match &self.stage {
            ConnectionStage::Resolving | ConnectionStage::Unresolved(_) => BackendStage::Resolve,
            ConnectionStage::Queued(_) | ConnectionStage::Connecting { .. } => BackendStage::Connect,
            ConnectionStage::TlsHandshake(_) => BackendStage::Tls,
            ConnectionStage::Upgrading(_) => BackendStage::Upgrade,
            ConnectionStage::Open(_) | ConnectionStage::Spent => BackendStage::Live,
        }
    }

    /// Whether [`advance`](Self::advance) may change something: it has a socket that is not open yet, or has failed.
    pub(crate) fn is_dialling(&self) -> bool {
        use ConnectionStage::{Connecting, TlsHandshake, Unresolved, Upgrading};
        matches!(self.stage, Unresolved(_) | Connecting { .. } | TlsHandshake(_) | Upgrading(_))
    }

    /// Whether a dial can go on when its socket takes bytes but has none to give. A handshake could; but not on Windows,
    /// where each attempt to read asks for the next such event.
    pub(crate) fn waits_to_write(&self) -> bool {
        match &self.stage {
            ConnectionStage::Connecting { .. } => true,
            ConnectionStage::TlsHandshake(_) => !cfg!(windows),
            ConnectionStage::Upgrading(upgrade) => !upgrade.is_sent(),
            _ => false,
        }
    }

    /// Bytes that wait to be written, that are partial, or that were not served yet.
    pub(crate) fn kept(&self) -> usize {
        match &self.stage {
            ConnectionStage::Upgrading(upgrade) => upgrade.kept(),
            ConnectionStage::Open(open) => open.reader.kept(),
            _ => 0,
        }
    }

    /// The addresses to be tried once there is a free place.
    pub(crate) fn resolved(&mut self, addresses: Vec<SocketAddr>) {
        self.stage = ConnectionStage::Queued(addresses.into());
    }

    /// The name has no addresses: the dial fails when it goes on.
    pub(crate) fn unresolved(&mut self, why: String) {
        self.stage = ConnectionStage::Unresolved(why);
    }

    /// When to give this address up for the next.
    pub(crate) fn next_address_at(&self) -> Option<Instant> {
        match &self.stage {
            ConnectionStage::Connecting { rest, until, .. } if !rest.is_empty() => Some(*until),
            _ => None,
        }
    }

    // ----- dialling -----------------------------------------------------------------------------------------------

    /// Leaves the queue: connects to the first address.
    pub(crate) fn connect(&mut self, dialer: &mut Dialer<'_>) -> DialStep {
        match std::mem::replace(&mut self.stage, ConnectionStage::Spent) {
            ConnectionStage::Queued(addresses) => self.connect_to(addresses, None, dialer),
            stage => {
                self.stage = stage;
                DialStep::Wait
            }
        }
    }

    fn connect_to(
        &mut self,
        mut addresses: VecDeque<SocketAddr>,
        mut last: Option<io::Error>,
        dialer: &mut Dialer<'_>,
    ) -> DialStep {
        while let Some(address) = addresses.pop_front() {
            let interest = Interest::READABLE | Interest::WRITABLE;
            let connected = TcpStream::connect(address).and_then(|mut tcp| {
                dialer.registry.register(&mut tcp, dialer.token, interest)?;
                Ok(tcp)
            });
            match connected {
                Ok(tcp) => {
                    let until = dialer.now + CONNECT_TIMEOUT_PER_ADDRESS;
                    self.stage = ConnectionStage::Connecting { tcp, rest: addresses, until };
                    return DialStep::Wait;
                }
                Err(error) => last = Some(error),
            }
        }
        let stage = if last.as_ref().is_some_and(is_out_of_descriptors) {
            BackendStage::LocalShortage
        } else {
            BackendStage::Connect
        };
        let why = last.map_or_else(|| "the name has no address".to_owned(), |error| error.to_string());
        DialStep::Failed(BackendFailure::new(stage, why))
    }

    /// Goes on as far as the socket allows. Harmless at any time.
    pub(crate) fn advance(&mut self, dialer: &mut Dialer<'_>) -> DialStep {
        loop {
            match std::mem::replace(&mut self.stage, ConnectionStage::Spent) {
                ConnectionStage::Unresolved(why) => {
                    return DialStep::Failed(BackendFailure::new(BackendStage::Resolve, why));
                }
                ConnectionStage::Connecting { tcp, rest, until } => {
                    let error = match (tcp.take_error(), tcp.peer_addr()) {
                        (Ok(Some(error)), _) | (Err(error), _) => Some(error),
                        (Ok(None), Ok(_)) => None,
                        (Ok(None), Err(_)) if dialer.now < until || rest.is_empty() => {
                            self.stage = ConnectionStage::Connecting { tcp, rest, until };
                            return DialStep::Wait;
                        }
                        (Ok(None), Err(_)) => Some(ErrorKind::TimedOut.into()),
                    };
                    if let Some(error) = error {
                        drop(tcp);
                        match self.connect_to(rest, Some(error), dialer) {
                            DialStep::Wait => continue,
                            step => return step,
                        }
                    }
                    if let Err(failure) = self.connected(tcp, dialer) {
                        return DialStep::Failed(failure);
                    }
                }
                ConnectionStage::TlsHandshake(handshake) => match handshake.advance() {
                    Ok(Progress::Done(stream)) => self.upgrade(stream, dialer),
                    Ok(Progress::Blocked(handshake)) => {
                        self.stage = ConnectionStage::TlsHandshake(Box::new(handshake));
                        return DialStep::Wait;
                    }
                    Err(error) => {
                        return DialStep::Failed(BackendFailure::new(BackendStage::Tls, error.to_string()));
                    }
                },
                ConnectionStage::Upgrading(mut upgrade) => match upgrade.advance() {
                    Ok(None) => {
                        self.stage = ConnectionStage::Upgrading(upgrade);
                        return DialStep::Wait;
                    }
                    Ok(Some(tail)) => {
                        let tap = FrameReader::new(upgrade.into_stream(), tail);
                        self.stage = ConnectionStage::Open(OpenWebSocket { reader: tap, context: None });
                        return DialStep::Opened;
                    }
                    Err(why) => {
                        return DialStep::Failed(BackendFailure::new(BackendStage::Upgrade, why));
                    }
                },
                stage => {
                    self.stage = stage;
                    return DialStep::Wait;
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
                self.stage = ConnectionStage::TlsHandshake(Box::new(handshake));
                Ok(())
            }
            Err(error) => Err(BackendFailure::new(BackendStage::Tls, error.to_string())),
        }
    }

    fn upgrade(&mut self, stream: Stream<TcpStream>, dialer: &Dialer<'_>) {
        if let Some(request) = self.request.take() {
            let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let authorization = upgrade::authorization(dialer.secret, &request, unix.as_secs());
            self.stage = ConnectionStage::Upgrading(Box::new(Upgrade::new(stream, &request, &authorization)));
        }
    }

    /// Moves the registration of an open WebSocket to another token.
    pub(crate) fn reregister(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.stage {
            ConnectionStage::Open(open) => {
                let tcp = open.reader.stream_mut().socket_mut();
                registry.reregister(tcp, token, Interest::READABLE | Interest::WRITABLE)
            }
            _ => Err(ErrorKind::NotConnected.into()),
        }
    }

    // ----- the open WebSocket -------------------------------------------------------------------------------------

    /// Lends the loop's chunk for the reads that follow. `more`: the system said that the end of the stream is near, so a
    /// short read proves nothing.
    pub(crate) fn borrow_read_buffer(&mut self, chunk: &mut Vec<u8>, more: bool) {
        if let ConnectionStage::Open(open) = &mut self.stage {
            open.reader.borrow_buffer(chunk, more);
        }
    }

    /// Takes the chunk back; what was not served yet is kept.
    pub(crate) fn give_back_read_buffer(&mut self, chunk: &mut Vec<u8>) {
        if let ConnectionStage::Open(open) = &mut self.stage {
            open.reader.give_back_buffer(chunk);
        }
    }

    /// The next message, if one is there.
    pub(crate) fn read(&mut self, contexts: &mut ContextPool) -> Incoming {
        let ConnectionStage::Open(open) = &mut self.stage else { return Incoming::Blocked };
        match contexts.borrow(&mut open.context).read(&mut open.reader) {
            Ok(Message::Text(text)) => {
                self.had_long_message |= text.len() > LONG_MESSAGE;
                Incoming::Text(text)
            }
            Ok(Message::Binary(bytes)) => {
                self.had_long_message |= bytes.len() > LONG_MESSAGE;
                Incoming::Audio(bytes)
            }
            Ok(Message::Close(frame)) => {
                Incoming::Gone(BackendClosed::CloseFrame(frame.map(|frame| frame.code.into())))
            }
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => Incoming::Alive,
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                if open.reader.is_over_budget() { Incoming::OverBudget } else { Incoming::Blocked }
            }
            Err(error) => {
                self.fail(&error, contexts);
                Incoming::Gone(BackendClosed::Failed(BackendFailure::new(
                    BackendStage::Live,
                    describe(&error),
                )))
            }
        }
    }

    /// Tells the server what was wrong with its frames, as RFC 6455 section 7.4.1 names it.
    fn fail(&mut self, error: &Error, contexts: &mut ContextPool) {
        let code = match error {
            Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => return,
            Error::Protocol(_) => CloseCode::Protocol,
            Error::Utf8(_) => CloseCode::Invalid,
            Error::Capacity(_) => CloseCode::Size,
            _ => return,
        };
        self.close(code, contexts);
    }

    pub(crate) fn send_text(
        &mut self,
        text: String,
        contexts: &mut ContextPool,
    ) -> Result<(), WriteBufferFull> {
        self.had_long_message |= text.len() > LONG_MESSAGE;
        self.send(Message::Text(text.into()), contexts)
    }

    pub(crate) fn send_audio(
        &mut self,
        frame: &[u8],
        contexts: &mut ContextPool,
    ) -> Result<(), WriteBufferFull> {
        let message = contexts.binary(frame);
        self.send(message, contexts)
    }

    pub(crate) fn ping(&mut self, contexts: &mut ContextPool) -> Result<(), WriteBufferFull> {
        self.send(Message::Ping(Bytes::new()), contexts)
    }

    /// An error other than a full buffer shows itself at the next read.
    fn send(&mut self, message: Message, contexts: &mut ContextPool) -> Result<(), WriteBufferFull> {
        let ConnectionStage::Open(OpenWebSocket { reader: tap, context }) = &mut self.stage else {
            return Ok(());
        };
        let context = contexts.borrow(context);
        let Err(Error::WriteBufferFull(message)) = context.write(tap, message) else { return Ok(()) };
        match context.flush(tap) {
            // Nothing waits: the message alone is longer than the buffer, which a reading server need not suffer for.
            Ok(()) => {
                context.set_config(|config| config.max_write_buffer_size = usize::MAX);
                let _ = context.write(tap, *message);
                context.set_config(|config| config.max_write_buffer_size = MAX_WRITE_BUFFER);
                Ok(())
            }
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Err(WriteBufferFull),
            Err(_) => Ok(()),
        }
    }

    /// Queues a Close frame, after what is queued already.
    pub(crate) fn close(&mut self, code: CloseCode, contexts: &mut ContextPool) {
        if let ConnectionStage::Open(OpenWebSocket { reader: tap, context }) = &mut self.stage {
            let frame = CloseFrame { code, reason: Utf8Bytes::default() };
            let _ = contexts.borrow(context).close(tap, Some(frame));
        }
    }

    /// Writes what is queued, and lets others have the context when nothing is left in it. False when the connection is
    /// broken.
    pub(crate) fn flush(&mut self, contexts: &mut ContextPool) -> bool {
        let ConnectionStage::Open(OpenWebSocket { reader: tap, context: lent }) = &mut self.stage else {
            return true;
        };
        let Some(mut context) = lent.take() else { return true };
        // Twice: a pong that found the buffer full comes with the second.
        let flushed = context.flush(tap).and_then(|()| context.flush(tap));
        self.had_long_message |= tap.unwritten() > LONG_MESSAGE;
        if flushed.is_ok() && context.can_write() && tap.is_between_messages() {
            contexts.give_back(context, std::mem::take(&mut self.had_long_message));
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
fn is_out_of_descriptors(error: &io::Error) -> bool {
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
        assert!(size_of::<BackendConnection>() <= 136, "{}", size_of::<BackendConnection>());
    }
}
