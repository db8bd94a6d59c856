//! One connection to the management API.

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use crate::admin::answer::Answer;
use crate::admin::body::Body;
use crate::admin::error::MAX_HEAD_BYTES;
use crate::admin::http::RequestHead;
use crate::admin::routes::Endpoint;
use crate::net::event_loop::tcp::LINGER;
use crate::net::event_loop::write_buffer::WriteBuffer;

/// How long the first request, or one that has begun, may take to be there.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection that was used stays open for the next request.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an answer may take to be read.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// A device's answer is there, or given up, after 5 s; this is for what should not happen.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(7);

pub(super) struct Connection {
    pub(super) epoch: u32,
    pub(super) tcp: TcpStream,
    pub(super) peer: SocketAddr,
    /// What came and is not served yet: at most a head or a body, and the beginning of the next request.
    pub(super) read_buffer: Vec<u8>,
    /// So much of it has been looked at for a head.
    looked_at: usize,
    pub(super) write_buffer: WriteBuffer,
    pub(super) state: ConnectionState,
    /// When the stage began.
    pub(super) state_since: Instant,
    /// When the first byte of the request came, on a connection that was used before.
    request_started_at: Option<Instant>,
    is_reused: bool,
    /// The tick of the one live entry in the wheel.
    pub(super) timer_tick: Option<u64>,
}

pub(super) enum ConnectionState {
    /// Waits for a request, or for the rest of this one.
    Reading(Option<Box<Begun>>),
    /// Waits for the answer of a device or of other workers.
    Pending(Box<PendingRequest>),
    /// Waits until the client has read the answer.
    Writing { keep_alive: bool },
    /// Nothing more is served; the client's last bytes are dropped, so that they cost it not the answer.
    Lingering,
}

/// A request whose head is there, and whose caller may call.
pub(super) struct Begun {
    pub(super) head: RequestHead,
    pub(super) body: Body,
}

/// What a connection waits for.
pub(crate) struct PendingRequest {
    pub(crate) request_id: u64,
    pub(crate) keep_alive: bool,
    pub(crate) head_only: bool,
    /// What each worker said; nobody is waited for when empty.
    pub(crate) answers: Vec<Option<Answer>>,
    pub(crate) endpoint: Endpoint,
}

/// What comes after a step.
pub(crate) enum Progress {
    Continue,
    /// An event or a timer has to come first.
    Wait,
    /// The connection is over.
    Close,
    /// A request is complete and has to be answered.
    Request(Box<ReceivedRequest>),
}

/// A request whose caller may call.
pub(crate) struct ReceivedRequest {
    pub(crate) head: RequestHead,
    pub(crate) body: Vec<u8>,
}

impl ConnectionState {
    /// Who goes last when all places are taken.
    pub(super) fn eviction_priority(&self) -> u8 {
        match self {
            Self::Lingering => 0,
            Self::Reading(_) => 1,
            Self::Writing { .. } => 2,
            Self::Pending(_) => 3,
        }
    }
}

impl Connection {
    pub(super) fn new(tcp: TcpStream, peer: SocketAddr, epoch: u32, now: Instant) -> Self {
        Self {
            epoch,
            tcp,
            peer,
            read_buffer: Vec::new(),
            looked_at: 0,
            write_buffer: WriteBuffer::default(),
            state: ConnectionState::Reading(None),
            state_since: now,
            request_started_at: None,
            is_reused: false,
            timer_tick: None,
        }
    }

    pub(super) fn set_state(&mut self, stage: ConnectionState, now: Instant) -> Progress {
        self.is_reused = true;
        self.looked_at = 0;
        self.state_since = now;
        self.request_started_at = (!self.read_buffer.is_empty()).then_some(now);
        self.state = stage;
        Progress::Continue
    }

    /// Ends our side; the other is given a moment to read the answer.
    pub(super) fn start_linger(&mut self, now: Instant) -> Progress {
        if self.tcp.shutdown(Shutdown::Write).is_err() {
            return Progress::Close;
        }
        self.read_buffer = Vec::new();
        self.set_state(ConnectionState::Lingering, now)
    }

    /// Whether what came since the last look may end a head: only then is all of it parsed again, and not for each byte of a
    /// client that sends them one by one.
    pub(super) fn may_have_head(&mut self) -> bool {
        let came = self.read_buffer.get(self.looked_at..).unwrap_or_default();
        let may = self.looked_at == 0 || came.contains(&b'\n') || self.read_buffer.len() > MAX_HEAD_BYTES;
        self.looked_at = self.read_buffer.len();
        may
    }

    pub(super) fn deadline(&self) -> Instant {
        match self.state {
            ConnectionState::Reading(_) => match self.request_started_at {
                Some(begun) if self.is_reused => begun + REQUEST_TIMEOUT,
                None if self.is_reused => self.state_since + KEEP_ALIVE_TIMEOUT,
                _ => self.state_since + REQUEST_TIMEOUT,
            },
            ConnectionState::Pending(_) => self.state_since + RESPONSE_TIMEOUT,
            ConnectionState::Writing { .. } => self.state_since + SEND_TIMEOUT,
            ConnectionState::Lingering => self.state_since + LINGER,
        }
    }

    /// Reads no more than may be missing of the body of this request, or of a head.
    pub(super) fn read(&mut self, begun: Option<Box<Begun>>, scratch: &mut [u8], now: Instant) -> Progress {
        let held = self.read_buffer.len();
        let wanted =
            begun.as_ref().map_or((MAX_HEAD_BYTES + 1).saturating_sub(held), |begun| begun.body.wanted(held));
        self.state = ConnectionState::Reading(begun);
        let room = wanted.clamp(1, scratch.len());
        match self.tcp.read(&mut scratch[..room]) {
            Ok(0) => Progress::Close,
            Ok(n) => {
                self.request_started_at.get_or_insert(now);
                self.read_buffer.extend_from_slice(&scratch[..n]);
                Progress::Continue
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Progress::Wait,
            Err(error) if error.kind() == ErrorKind::Interrupted => Progress::Continue,
            Err(_) => Progress::Close,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_comes_byte_by_byte_is_parsed_once_a_line() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let tcp = TcpStream::from_std(std::net::TcpStream::connect(addr).unwrap());
        let mut conn = Connection::new(tcp, addr, 1, Instant::now());
        let text = format!("GET / HTTP/1.1\r\nX-Filler: {}\r\n\r\n", "x".repeat(6000));
        for _ in 0..2 {
            let mut parsed = 0;
            for byte in text.bytes() {
                conn.read_buffer.push(byte);
                parsed += usize::from(conn.may_have_head());
            }
            assert_eq!(parsed, 1 + text.matches('\n').count());
            // The next request on the same connection.
            conn.read_buffer.clear();
            conn.set_state(ConnectionState::Reading(None), Instant::now());
        }
        conn.read_buffer = vec![b'x'; MAX_HEAD_BYTES + 1];
        conn.looked_at = MAX_HEAD_BYTES;
        assert!(conn.may_have_head(), "too long, which is to be told");
    }
}
