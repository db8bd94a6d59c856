//! A connection to a chat server: the stages of a dial, then an open WebSocket.

use std::collections::VecDeque;
use std::hint::black_box;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, WebSocketContext};
use tungstenite::{Bytes, Error, Message, Utf8Bytes};

use crate::config::{ChatServerConfig, Secret};
use crate::net::backend::dial::{Dial, DialContext, DialProgress};
use crate::net::backend::frame_reader::FrameReader;
use crate::net::backend::upgrade::{self, Upgrade};
use crate::net::backend::websocket_context_pool::{ContextPool, MAX_WRITE_BUFFER};
use crate::net::event_loop::stream::Stream;
use crate::session::{BackendClosed, BackendFailure, BackendStage, DialRequest, SetupStage};

/// After a message longer than this, the buffers that it grew are freed.
const LONG_MESSAGE: usize = 8 * 1024;

/// A WebSocket to a chat server, or a dial that is to open one.
pub(crate) struct BackendConnection {
    server: Arc<ChatServerConfig>,
    /// Taken when the upgrade begins.
    request: Option<Box<DialRequest>>,
    stage: ConnectionStage,
    /// Whether it counts against `max_dials`.
    pub(crate) holds_dial_slot: bool,
    /// A long message was read or written, or much was unwritten: the context's buffers have grown.
    had_long_message: bool,
}

enum ConnectionStage {
    /// Waits for the addresses of a name, which has this lookup.
    Resolving(u64),
    /// The name was not resolved, and why.
    Unresolved(String),
    /// Has addresses, and waits for a dial slot.
    Queued(VecDeque<SocketAddr>),
    Dialing(Dial),
    Upgrading(Box<Upgrade>),
    Open(OpenWebSocket),
    Failed,
}

/// An open WebSocket.
struct OpenWebSocket {
    reader: FrameReader,
    /// Borrowed while a message is read or written.
    context: Option<Box<WebSocketContext>>,
}

/// The result of advancing a dial.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DialStep {
    /// Advance it again at the socket's next event.
    Wait,
    /// The WebSocket is open. `is_drained`: the socket is known to be empty, unless the end of the stream is near, so that a new event
    /// will announce the first frame.
    Opened {
        is_drained: bool,
    },
    Failed(BackendFailure),
}

/// What a chat server sent.
pub(crate) enum Incoming {
    Text(Utf8Bytes),
    Audio(Bytes),
    /// A ping, whose pong must be flushed, or a pong.
    Alive,
    /// Nothing more until the socket's next event.
    Blocked,
    /// The read budget is used up. There may be more.
    OverBudget,
    /// The WebSocket was closed, or has failed.
    Gone(BackendClosed),
}

/// The write buffer is full; the message was not queued.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WriteBufferFull;

/// What advancing a dial requires.
pub(crate) struct Dialer<'a> {
    pub(crate) connect: DialContext<'a>,
    /// Signs the token of the `authorization` header.
    pub(crate) secret: Option<&'a Secret>,
}

impl BackendConnection {
    pub(crate) fn new(request: Box<DialRequest>, lookup_id: u64) -> Self {
        Self {
            server: request.server.clone(),
            request: Some(request),
            stage: ConnectionStage::Resolving(lookup_id),
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

    /// See [`Core::touch`](crate::session::Core::touch).
    pub(crate) fn touch(&self) {
        if let ConnectionStage::Open(open) = &self.stage {
            black_box((
                open.context.is_some(),
                open.reader.unwritten(),
                open.reader.is_between_messages(),
                self.had_long_message,
            ));
        }
    }

    /// Whether it waits for this lookup.
    pub(crate) fn awaits_lookup(&self, lookup_id: u64) -> bool {
        matches!(self.stage, ConnectionStage::Resolving(id) if id == lookup_id)
    }

    pub(crate) fn is_queued(&self) -> bool {
        matches!(self.stage, ConnectionStage::Queued(_))
    }

    /// The present stage for a [`BackendFailure`]; `Live` after the dial has ended.
    pub(crate) fn stage(&self) -> BackendStage {
        match &self.stage {
            ConnectionStage::Resolving(_) | ConnectionStage::Unresolved(_) => BackendStage::Resolve,
            ConnectionStage::Queued(_) => BackendStage::Connect,
            ConnectionStage::Dialing(dial) => dial.stage(),
            ConnectionStage::Upgrading(_) => BackendStage::Upgrade,
            ConnectionStage::Open(_) | ConnectionStage::Failed => BackendStage::Live,
        }
    }

    /// The present stage of a dial whose call is not answered yet; none without a dial.
    pub(crate) fn setup_stage(&self) -> Option<SetupStage> {
        match self.stage() {
            BackendStage::Resolve => Some(SetupStage::Resolve),
            BackendStage::Connect => Some(SetupStage::Connect),
            BackendStage::Tls => Some(SetupStage::Tls),
            BackendStage::Upgrade => Some(SetupStage::Upgrade),
            BackendStage::Hello | BackendStage::Live | BackendStage::LocalShortage => None,
        }
    }

    /// Whether a dial can be advanced: it has begun to connect, or its name was not resolved.
    pub(crate) fn is_dialing(&self) -> bool {
        use ConnectionStage::{Dialing, Unresolved, Upgrading};
        matches!(self.stage, Unresolved(_) | Dialing(_) | Upgrading(_))
    }

    /// Whether to advance the dial when its socket is writable but not readable.
    pub(crate) fn waits_to_write(&self) -> bool {
        match &self.stage {
            ConnectionStage::Dialing(dial) => dial.waits_to_write(),
            ConnectionStage::Upgrading(upgrade) => !upgrade.is_sent(),
            _ => false,
        }
    }

    /// Bytes that are not written or not handled yet, partial messages included.
    pub(crate) fn buffered_bytes(&self) -> usize {
        match &self.stage {
            ConnectionStage::Upgrading(upgrade) => upgrade.buffered_bytes(),
            ConnectionStage::Open(open) => open.reader.buffered_bytes(),
            _ => 0,
        }
    }

    /// Sets the addresses to try.
    pub(crate) fn resolved(&mut self, addresses: Vec<SocketAddr>) {
        self.stage = ConnectionStage::Queued(addresses.into());
    }

    /// The name was not resolved: the dial fails when it is advanced.
    pub(crate) fn unresolved(&mut self, why: String) {
        self.stage = ConnectionStage::Unresolved(why);
    }

    /// When to advance the dial although its socket has no event: to try the next address, or not to wait any longer for the
    /// words of a server that refuses the upgrade.
    pub(crate) fn next_step_at(&self) -> Option<Instant> {
        match &self.stage {
            ConnectionStage::Dialing(dial) => dial.next_step_at(),
            ConnectionStage::Upgrading(upgrade) => upgrade.waits_until(),
            _ => None,
        }
    }

    // ----- dialing ------------------------------------------------------------------------------------------------

    /// Continues as far as the socket allows. A queued dial connects, for which it needs a dial slot; one that waits for
    /// addresses, and an open WebSocket, are left alone.
    pub(crate) fn advance(&mut self, dialer: &mut Dialer<'_>) -> DialStep {
        loop {
            match std::mem::replace(&mut self.stage, ConnectionStage::Failed) {
                ConnectionStage::Unresolved(why) => return failed(BackendStage::Resolve, why),
                ConnectionStage::Queued(addresses) => match Dial::start(addresses, &dialer.connect) {
                    Ok(dial) => {
                        self.stage = ConnectionStage::Dialing(dial);
                        return DialStep::Wait;
                    }
                    Err(failure) => return DialStep::Failed(failure),
                },
                ConnectionStage::Dialing(dial) => match dial.advance(&self.server, &mut dialer.connect) {
                    Ok(DialProgress::Connected(stream)) => self.start_upgrade(stream, dialer),
                    Ok(DialProgress::Blocked(dial)) => {
                        self.stage = ConnectionStage::Dialing(dial);
                        return DialStep::Wait;
                    }
                    Err(failure) => return DialStep::Failed(failure),
                },
                ConnectionStage::Upgrading(mut upgrade) => match upgrade.advance(dialer.connect.now) {
                    Ok(None) => {
                        self.stage = ConnectionStage::Upgrading(upgrade);
                        return DialStep::Wait;
                    }
                    Ok(Some(first)) => {
                        let stream = upgrade.into_stream();
                        let is_plain = matches!(stream, Stream::Plain(_));
                        let is_drained =
                            first.bytes.is_empty() && first.was_all && is_plain && cfg!(target_os = "linux");
                        let reader = FrameReader::new(stream, first.bytes);
                        self.stage = ConnectionStage::Open(OpenWebSocket { reader, context: None });
                        return DialStep::Opened { is_drained };
                    }
                    Err(failure) => return DialStep::Failed(failure),
                },
                stage => {
                    self.stage = stage;
                    return DialStep::Wait;
                }
            }
        }
    }

    fn start_upgrade(&mut self, stream: Stream<TcpStream>, dialer: &Dialer<'_>) {
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

    /// Borrows `buffer` for the reads that follow. `near_end`: the system said that the end of the stream is near, so a short
    /// read does not prove that the socket is empty.
    pub(crate) fn borrow_read_buffer(&mut self, buffer: &mut Box<[u8]>, near_end: bool) {
        if let ConnectionStage::Open(open) = &mut self.stage {
            open.reader.borrow_buffer(buffer, near_end);
        }
    }

    /// Gives the buffer back. A copy of what was not handled yet stays here.
    pub(crate) fn give_back_read_buffer(&mut self, buffer: &mut Box<[u8]>) {
        if let ConnectionStage::Open(open) = &mut self.stage {
            open.reader.give_back_buffer(buffer);
        }
    }

    /// Reads the next message, if a whole one has arrived.
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
                let reason = frame.as_ref().map_or("", |frame| frame.reason.as_str()).into();
                Incoming::Gone(BackendClosed::CloseFrame(frame.map(|frame| frame.code.into()), reason))
            }
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => Incoming::Alive,
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {
                if open.reader.is_over_budget() { Incoming::OverBudget } else { Incoming::Blocked }
            }
            Err(error) => {
                self.close_after_error(&error, contexts);
                Incoming::Gone(match is_end(&error) {
                    true => BackendClosed::NoCloseFrame(describe(&error)),
                    false => BackendClosed::Failed(BackendFailure::new(BackendStage::Live, describe(&error))),
                })
            }
        }
    }

    /// Closes with the code of RFC 6455 section 7.4.1 for what was wrong with the server's frames.
    fn close_after_error(&mut self, error: &Error, contexts: &mut ContextPool) {
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

    /// Queues a message. The next read reports any error other than a full buffer.
    fn send(&mut self, message: Message, contexts: &mut ContextPool) -> Result<(), WriteBufferFull> {
        let ConnectionStage::Open(OpenWebSocket { reader, context }) = &mut self.stage else {
            return Ok(());
        };
        let context = contexts.borrow(context);
        let Err(Error::WriteBufferFull(message)) = context.write(reader, message) else { return Ok(()) };
        match context.flush(reader) {
            // The buffer is empty now. The message alone is longer than its limit, which is no fault of a server that reads.
            Ok(()) => {
                context.set_config(|config| config.max_write_buffer_size = usize::MAX);
                let _ = context.write(reader, *message);
                context.set_config(|config| config.max_write_buffer_size = MAX_WRITE_BUFFER);
                Ok(())
            }
            Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => Err(WriteBufferFull),
            Err(_) => Ok(()),
        }
    }

    /// Queues a Close frame, after what is queued already.
    pub(crate) fn close(&mut self, code: CloseCode, contexts: &mut ContextPool) {
        if let ConnectionStage::Open(OpenWebSocket { reader, context }) = &mut self.stage {
            let frame = CloseFrame { code, reason: Utf8Bytes::default() };
            let _ = contexts.borrow(context).close(reader, Some(frame));
        }
    }

    /// Writes what is queued, and gives the context back if it has no state then. False when the connection is broken.
    pub(crate) fn flush(&mut self, contexts: &mut ContextPool) -> bool {
        let ConnectionStage::Open(OpenWebSocket { reader, context: borrowed }) = &mut self.stage else {
            return true;
        };
        let Some(mut context) = borrowed.take() else { return true };
        // Twice: the second flush writes a pong that did not fit into the buffer before.
        let flushed = context.flush(reader).and_then(|()| context.flush(reader));
        self.had_long_message |= reader.unwritten() > LONG_MESSAGE;
        if flushed.is_ok() && context.can_write() && reader.is_between_messages() {
            contexts.give_back(context, std::mem::take(&mut self.had_long_message));
        } else {
            *borrowed = Some(context);
        }
        match flushed {
            Ok(()) => true,
            Err(Error::Io(error)) => error.kind() == ErrorKind::WouldBlock,
            Err(_) => false,
        }
    }
}

fn failed(stage: BackendStage, message: impl ToString) -> DialStep {
    DialStep::Failed(BackendFailure::new(stage, message.to_string()))
}

/// Whether the connection has ended or was reset, and no Close frame came before.
fn is_end(error: &Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    match error {
        Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => true,
        // OpenSSL's error for an end without close_notify has no kind.
        Error::Io(error) => {
            matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
                || error.to_string().contains("unexpected eof")
        }
        _ => false,
    }
}

fn describe(error: &Error) -> String {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => "the connection was closed".to_owned(),
        Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
            "the connection was closed without a Close frame (1006)".to_owned()
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_pointer_width = "64")]
    fn the_size_of_a_connection_is_bounded() {
        assert!(size_of::<BackendConnection>() <= 104, "{}", size_of::<BackendConnection>());
    }
}
