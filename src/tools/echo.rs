//! The built-in chat server: it answers every call with the caller's own voice.
//!
//! It stands in for a real chat server when none is configured, and is the far end of the demo, the examples and the
//! tests. One thread and one loop serve all its peers; what it says to each of them is decided in `talk`.

mod conversation;

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use slab::Slab;
use tungstenite::handshake::MidHandshake;
use tungstenite::handshake::server::{NoCallback, ServerHandshake};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Error, HandshakeError, Message, WebSocket};

pub(super) use self::conversation::NOTHING_HEARD;
use self::conversation::Talk;

/// A running echo server. It stops when dropped.
///
/// It answers `hello` with a session id and the caller's own `audio_params`, and echoes each binary frame at once, byte
/// for byte. Real firmware plays audio only between `tts start` and `tts stop` and mutes its microphone meanwhile, so
/// after `listen` start (mode auto or manual) the server also records, and plays the recording back when the speaker
/// has finished: a person with a device in hand hears themself.
#[derive(Debug)]
pub struct EchoServer {
    addr: SocketAddr,
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
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
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let stop = Arc::new(AtomicBool::new(false));
        let server = Server {
            poll,
            listener,
            stop: Arc::clone(&stop),
            peers: Slab::new(),
            alarms: BTreeSet::new(),
            ready: Vec::new(),
        };
        let thread =
            thread::Builder::new().name("echo".into()).stack_size(STACK).spawn(move || server.run())?;
        Ok(Self { addr, stop, waker, thread: Some(thread) })
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
        self.stop.store(true, Ordering::Release);
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

const STACK: usize = 256 * 1024;
/// Peers beyond this are closed at once.
const MAX_PEERS: usize = 16_384;
/// A peer that has not finished its upgrade by then is closed.
const UPGRADE_TIME: Duration = Duration::from_secs(10);
/// How long accepting rests after an error that is not the peer's, such as no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Accepts, or messages of one peer, per visit: then the others get their turn.
const BUDGET: usize = 64;

/// tungstenite's own defaults are 128 KiB to read, zeroed before each read, and an unlimited queue to write.
fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4 * 1024)
        .write_buffer_size(4 * 1024)
        .max_write_buffer_size(256 * 1024)
        .max_message_size(Some(256 * 1024))
        .max_frame_size(Some(256 * 1024))
}

struct Server {
    poll: Poll,
    listener: TcpListener,
    stop: Arc<AtomicBool>,
    peers: Slab<Peer>,
    /// When to look after which peer (or after the listener). An alarm may ring early or for nothing; it is the peer
    /// that knows what is due.
    alarms: BTreeSet<(Instant, Token)>,
    /// Sources that were left before they said "would block": no event will come for them.
    ready: Vec<Token>,
}

struct Peer {
    link: Link,
    talk: Talk,
    /// Its one entry among the alarms.
    alarm: Option<Instant>,
}

enum Link {
    Upgrading { handshake: MidHandshake<ServerHandshake<TcpStream, NoCallback>>, until: Instant },
    Open(WebSocket<TcpStream>),
    Closed,
}

impl Server {
    fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        while !self.stop.load(Ordering::Acquire) {
            if let Err(error) = self.turn(&mut events) {
                log::error!("built-in echo server: {error}; it stops");
                return;
            }
        }
    }

    fn turn(&mut self, events: &mut Events) -> io::Result<()> {
        let sleep = if self.ready.is_empty() {
            self.alarms.first().map(|(at, _)| at.saturating_duration_since(Instant::now()))
        } else {
            Some(Duration::ZERO)
        };
        match self.poll.poll(events, sleep) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => events.clear(),
            result => result?,
        }
        let now = Instant::now();
        let left_over = std::mem::take(&mut self.ready);
        for event in events.iter() {
            // On Windows every read that finds nothing asks for the writable event again: to read at that one would never end.
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                self.dispatch(event.token(), now);
            } else {
                self.flush(event.token());
            }
        }
        for source in left_over {
            self.dispatch(source, now);
        }
        while let Some(&(at, source)) = self.alarms.first()
            && at <= now
        {
            self.alarms.pop_first();
            if let Some(peer) = self.peers.get_mut(source.0) {
                peer.alarm = None;
            }
            self.dispatch(source, now);
        }
        Ok(())
    }

    fn dispatch(&mut self, source: Token, now: Instant) {
        match source {
            WAKER => {}
            LISTENER => self.accept(now),
            Token(slot) => self.serve(slot, now),
        }
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..BUDGET {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The peer's own misfortune: the next one may be fine.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => {
                    self.alarms.insert((now + ACCEPT_PAUSE, LISTENER));
                    return;
                }
            }
        }
        self.ready.push(LISTENER);
    }

    fn admit(&mut self, mut stream: TcpStream, now: Instant) {
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
        let handshake = ServerHandshake::start(stream, NoCallback, Some(limits()));
        let link = Link::Upgrading { handshake, until: now + UPGRADE_TIME };
        entry.insert(Peer { link, talk: Talk::new(), alarm: None });
        self.serve(slot, now);
    }

    /// Does all there is to do for a peer; called for an event, for an alarm, or for no reason.
    fn serve(&mut self, slot: usize, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        match peer.advance(now) {
            Ok(Progress::Idle) => {}
            Ok(Progress::More) => self.ready.push(Token(slot)),
            Err(Gone) => return self.drop_peer(slot),
        }
        if let Some(due) = peer.deadline()
            && peer.alarm.is_none_or(|at| due < at)
        {
            if let Some(at) = peer.alarm.replace(due) {
                self.alarms.remove(&(at, Token(slot)));
            }
            self.alarms.insert((due, Token(slot)));
        }
    }

    /// Sends what waits in a peer's queue. An upgrade needs none of this: its answer fits into the empty socket.
    fn flush(&mut self, source: Token) {
        if let Some(Peer { link: Link::Open(socket), .. }) = self.peers.get_mut(source.0)
            && flush(socket).is_err()
        {
            self.drop_peer(source.0);
        }
    }

    fn drop_peer(&mut self, slot: usize) {
        if let Some(at) = self.peers.remove(slot).alarm {
            self.alarms.remove(&(at, Token(slot)));
        }
    }
}

/// The peer left, or is beyond use.
struct Gone;

enum Progress {
    Idle,
    More,
}

impl Peer {
    fn deadline(&self) -> Option<Instant> {
        match &self.link {
            Link::Upgrading { until, .. } => Some(*until),
            Link::Open(_) => self.talk.deadline(),
            Link::Closed => None,
        }
    }

    fn advance(&mut self, now: Instant) -> Result<Progress, Gone> {
        if let Link::Upgrading { .. } = self.link {
            self.upgrade(now)?;
        }
        let Link::Open(socket) = &mut self.link else { return Ok(Progress::Idle) };
        let mut replies = Vec::new();
        if self.talk.deadline().is_some_and(|due| due <= now) {
            self.talk.timeout(now, &mut replies);
            send(socket, &mut replies)?;
        }
        let progress = converse(socket, &mut self.talk, &mut replies, now)?;
        flush(socket)?;
        Ok(progress)
    }

    fn upgrade(&mut self, now: Instant) -> Result<(), Gone> {
        let Link::Upgrading { handshake, until } = std::mem::replace(&mut self.link, Link::Closed) else {
            return Ok(());
        };
        if now >= until {
            return Err(Gone);
        }
        self.link = match handshake.handshake() {
            Ok(socket) => Link::Open(socket),
            Err(HandshakeError::Interrupted(handshake)) => Link::Upgrading { handshake, until },
            Err(HandshakeError::Failure(_)) => return Err(Gone),
        };
        Ok(())
    }
}

/// Reads what the peer says, up to the budget, and answers.
fn converse(
    socket: &mut WebSocket<TcpStream>,
    talk: &mut Talk,
    replies: &mut Vec<Message>,
    now: Instant,
) -> Result<Progress, Gone> {
    for _ in 0..BUDGET {
        match socket.read() {
            Ok(Message::Text(text)) => talk.text(&text, now, replies),
            Ok(Message::Binary(frame)) => talk.frame(frame, now, replies),
            // Pings are answered, and a close is confirmed, by the reads that follow.
            Ok(_) => {}
            Err(error) if would_block(&error) => return Ok(Progress::Idle),
            Err(_) => return Err(Gone),
        }
        send(socket, replies)?;
    }
    Ok(Progress::More)
}

/// Queues the replies. A peer that does not read loses audio first; when not even text fits, it is closed.
fn send(socket: &mut WebSocket<TcpStream>, replies: &mut Vec<Message>) -> Result<(), Gone> {
    for reply in replies.drain(..) {
        match socket.write(reply) {
            Ok(()) => {}
            // "Would block" says that the message waits in the socket's own queue.
            Err(error) if would_block(&error) => {}
            Err(Error::WriteBufferFull(refused)) if is_audio(&refused) => {}
            Err(_) => return Err(Gone),
        }
    }
    Ok(())
}

fn flush(socket: &mut WebSocket<TcpStream>) -> Result<(), Gone> {
    match socket.flush() {
        Err(error) if !would_block(&error) => Err(Gone),
        _ => Ok(()),
    }
}

fn is_audio(message: &Message) -> bool {
    use tungstenite::protocol::frame::coding::{Data, OpCode};
    match message {
        Message::Binary(_) => true,
        Message::Frame(frame) => frame.header().opcode == OpCode::Data(Data::Binary),
        _ => false,
    }
}

fn would_block(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
