//! The built-in chat server: it echoes every call's audio.
//!
//! It stands in for a real chat server when none is configured, and is the far end of the demo, the examples and the
//! tests. One thread and one loop serve all its peers; `conversation` decides what it sends to each of them.

mod conversation;

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;
use tungstenite::handshake::MidHandshake;
use tungstenite::handshake::server::{NoCallback, ServerHandshake};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, HandshakeError, Message, WebSocket};

use self::conversation::Conversation;
pub(super) use self::conversation::NOTHING_HEARD;
use crate::net::event_loop::tcp;

/// A running echo server. It stops when dropped.
///
/// It answers `hello` with a session id and the caller's own `audio_params`, and echoes each binary frame at once, byte
/// for byte. Real firmware plays audio only between `tts start` and `tts stop` and mutes its microphone meanwhile, so
/// after `listen` start (mode auto or manual) the server also records, and plays the recording back when the speaker
/// has finished.
#[derive(Debug)]
pub struct EchoServer {
    addr: SocketAddr,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    /// Starts on a free loopback port.
    ///
    /// # Errors
    /// When the system gives no socket or thread.
    pub fn start() -> io::Result<Self> {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into())
    }

    /// Starts on `addr`; port 0 is any free port.
    ///
    /// # Errors
    /// When the address cannot be bound, or the system gives no thread.
    pub fn start_on(addr: SocketAddr) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(addr)?;
        let addr = listener.local_addr()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let server = EchoEventLoop {
            poll,
            listener,
            peers: Slab::new(),
            timers: BTreeSet::new(),
            run_queue: Vec::new(),
        };
        let thread =
            thread::Builder::new().name("echo".into()).stack_size(STACK_SIZE).spawn(move || server.run())?;
        Ok(Self { addr, waker, thread: Some(thread) })
    }

    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its address as a chat server of the configuration: `ws://127.0.0.1:port/`.
    pub fn url(&self) -> String {
        format!("ws://{}/", self.addr)
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        // A waker that fails leaves the thread asleep: then joining it would hang the caller.
        if self.waker.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);

const STACK_SIZE: usize = 256 * 1024;
/// Peers beyond this are closed at once.
const MAX_PEERS: usize = 16_384;
/// A peer that has not finished its upgrade by then is closed.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long accepting pauses after an error that is not the peer's, such as no file descriptor left.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// Accepts, or messages of one peer, per dispatch.
const EVENT_BUDGET: usize = 64;

/// tungstenite's own defaults are 128 KiB to read, zeroed before each read, and an unlimited queue to write.
fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4 * 1024)
        .write_buffer_size(4 * 1024)
        .max_write_buffer_size(256 * 1024)
        .max_message_size(Some(256 * 1024))
        .max_frame_size(Some(256 * 1024))
}

struct EchoEventLoop {
    poll: Poll,
    listener: TcpListener,
    peers: Slab<Peer>,
    /// When to dispatch which peer, or the listener. A timer may expire early or for no reason; the peer knows its
    /// deadline.
    timers: BTreeSet<(Instant, Token)>,
    /// Sources that were left before they returned WouldBlock: no event will come for them.
    run_queue: Vec<Token>,
}

struct Peer {
    state: PeerState,
    conversation: Conversation,
    /// Its entry in `timers` that counts: the earliest.
    timer_at: Option<Instant>,
}

enum PeerState {
    Upgrading { handshake: MidHandshake<ServerHandshake<TcpStream, NoCallback>>, until: Instant },
    Open(WebSocket<TcpStream>),
    Closed,
}

impl EchoEventLoop {
    fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        while self.run_once(&mut events).unwrap_or_else(|error| {
            log::error!("built-in echo server: {error}; it stops");
            false
        }) {}
    }

    /// False when it was told to stop.
    fn run_once(&mut self, events: &mut Events) -> io::Result<bool> {
        let sleep = if self.run_queue.is_empty() {
            self.timers.first().map(|(at, _)| at.saturating_duration_since(Instant::now()))
        } else {
            Some(Duration::ZERO)
        };
        match self.poll.poll(events, sleep) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => events.clear(),
            result => result?,
        }
        let now = Instant::now();
        let requeued = std::mem::take(&mut self.run_queue);
        for event in events.iter() {
            if event.token() == WAKER {
                return Ok(false);
            }
            // On Windows every read that finds nothing asks for the writable event again: to read at that one would never end.
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                self.dispatch(event.token(), now);
            } else {
                self.flush(event.token());
            }
        }
        for source in requeued {
            self.dispatch(source, now);
        }
        while let Some(&(at, source)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            if let Some(peer) = self.peers.get_mut(source.0) {
                peer.timer_at = None;
            }
            self.dispatch(source, now);
        }
        Ok(true)
    }

    fn dispatch(&mut self, source: Token, now: Instant) {
        match source {
            LISTENER => self.accept(now),
            Token(slot) => self.drive_peer(slot, now),
        }
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..EVENT_BUDGET {
            match tcp::accept(&self.listener) {
                Ok(Some((stream, _))) => self.register_peer(stream, now),
                Ok(None) => return,
                Err(error) if tcp::is_of_connection(&error) => {}
                Err(_) => {
                    self.timers.insert((now + ACCEPT_RETRY_DELAY, LISTENER));
                    return;
                }
            }
        }
        self.run_queue.push(LISTENER);
    }

    fn register_peer(&mut self, mut stream: TcpStream, now: Instant) {
        if self.peers.len() >= MAX_PEERS {
            return;
        }
        let entry = self.peers.vacant_entry();
        let slot = entry.key();
        let _ = stream.set_nodelay(true);
        let both = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut stream, Token(slot), both).is_err() {
            return;
        }
        let handshake = ServerHandshake::start(stream, NoCallback, Some(websocket_config()));
        let state = PeerState::Upgrading { handshake, until: now + UPGRADE_TIMEOUT };
        entry.insert(Peer { state, conversation: Conversation::new(), timer_at: None });
        self.drive_peer(slot, now);
    }

    /// Advances a peer; called for an event, for a timer, or for no reason.
    fn drive_peer(&mut self, slot: usize, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        match peer.advance(now) {
            Ok(true) => self.run_queue.push(Token(slot)),
            Ok(false) => {}
            Err(PeerClosed) => return drop(self.peers.remove(slot)),
        }
        if let Some(due) = peer.deadline()
            && peer.timer_at.is_none_or(|at| due < at)
        {
            peer.timer_at = Some(due);
            self.timers.insert((due, Token(slot)));
        }
    }

    /// Sends what is queued for a peer. An upgrade needs no flush: its answer fits into the empty socket buffer.
    fn flush(&mut self, source: Token) {
        if let Some(Peer { state: PeerState::Open(socket), .. }) = self.peers.get_mut(source.0)
            && flush(socket).is_err()
        {
            self.peers.remove(source.0);
        }
    }
}

/// The peer closed the connection, or it cannot be used any more.
struct PeerClosed;

impl Peer {
    fn deadline(&self) -> Option<Instant> {
        match &self.state {
            PeerState::Upgrading { until, .. } => Some(*until),
            PeerState::Open(_) => self.conversation.deadline(),
            PeerState::Closed => None,
        }
    }

    /// True when it stopped before there was nothing left to do.
    fn advance(&mut self, now: Instant) -> Result<bool, PeerClosed> {
        self.upgrade(now)?;
        let PeerState::Open(socket) = &mut self.state else { return Ok(false) };
        let mut replies = Vec::new();
        self.conversation.on_timeout(now, &mut replies);
        send(socket, &mut replies)?;
        let more = read_messages(socket, &mut self.conversation, &mut replies, now)?;
        flush(socket).map(|()| more)
    }

    /// Goes on with the upgrade, if it is not done.
    fn upgrade(&mut self, now: Instant) -> Result<(), PeerClosed> {
        self.state = match std::mem::replace(&mut self.state, PeerState::Closed) {
            PeerState::Upgrading { until, .. } if now >= until => return Err(PeerClosed),
            PeerState::Upgrading { handshake, until } => match handshake.handshake() {
                Ok(socket) => PeerState::Open(socket),
                Err(HandshakeError::Interrupted(handshake)) => PeerState::Upgrading { handshake, until },
                Err(HandshakeError::Failure(_)) => return Err(PeerClosed),
            },
            other => other,
        };
        Ok(())
    }
}

/// Reads the peer's messages and answers; true when the budget ended first.
fn read_messages(
    socket: &mut WebSocket<TcpStream>,
    conversation: &mut Conversation,
    replies: &mut Vec<Message>,
    now: Instant,
) -> Result<bool, PeerClosed> {
    for _ in 0..EVENT_BUDGET {
        match socket.read() {
            Ok(Message::Text(text)) => conversation.on_text(&text, now, replies),
            Ok(Message::Binary(frame)) => conversation.on_frame(frame, now, replies),
            // Pings are answered, and a close is confirmed, by the reads that follow.
            Ok(_) => {}
            Err(error) if would_block(&error) => return Ok(false),
            Err(_) => return Err(PeerClosed),
        }
        send(socket, replies)?;
    }
    Ok(true)
}

/// Queues the replies. A peer that does not read loses audio first; when not even text fits, it is closed.
fn send(socket: &mut WebSocket<TcpStream>, replies: &mut Vec<Message>) -> Result<(), PeerClosed> {
    for reply in replies.drain(..) {
        let is_audio = reply.is_binary();
        match socket.write(reply) {
            Ok(()) => {}
            // WouldBlock: the message is in the WebSocket's own queue.
            Err(error) if would_block(&error) => {}
            Err(Error::WriteBufferFull(_)) if is_audio => {}
            Err(_) => return Err(PeerClosed),
        }
    }
    Ok(())
}

fn flush(socket: &mut WebSocket<TcpStream>) -> Result<(), PeerClosed> {
    match socket.flush() {
        Err(error) if !would_block(&error) => Err(PeerClosed),
        _ => Ok(()),
    }
}

fn would_block(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
