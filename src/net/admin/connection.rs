//! One connection to the management API.

use std::io::{self, ErrorKind, Read};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::admin::body::Body;
use crate::admin::error::MAX_HEAD_BYTES;
use crate::admin::http::RequestHead;
use crate::net::admin::request::{AdminRequest, Answers};
use crate::net::event_loop::tcp::LINGER;
use crate::net::event_loop::token::AdminId;
use crate::net::event_loop::write_buffer::{Flush, WriteBuffer};
use crate::net::metrics::ApiDisplaced;
use crate::net::mqtt::eviction::STALLED_AFTER;
use crate::net::mqtt::transport::Transport;

/// How long the first request on a connection, or one that has begun, may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection stays open for another request.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the client may take to read a response.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// After how long without events a client that reads them is sent something.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);

pub(super) struct Connection {
    pub(super) epoch: u32,
    pub(super) transport: Transport,
    pub(super) peer: SocketAddr,
    /// Bytes not served yet: at most a head or a body, and the beginning of the next request.
    pub(super) read_buffer: Vec<u8>,
    /// How much of it was searched for the end of a head.
    searched: usize,
    pub(super) write_buffer: WriteBuffer,
    pub(super) state: ConnectionState,
    /// When the state was entered.
    pub(super) state_since: Instant,
    /// When the state was entered, or the client last sent or took a byte.
    pub(super) progress_at: Instant,
    /// When the first byte of the request arrived.
    request_started_at: Option<Instant>,
    is_reused: bool,
    /// The tick of the one live entry in the timer wheel.
    pub(super) timer_tick: Option<u64>,
}

pub(super) enum ConnectionState {
    /// Waits for a request, or for the rest of this one's body.
    Reading(Option<Box<PartialRequest>>),
    /// Waits for the answer of a device or of other workers.
    Pending(Box<PendingRequest>),
    /// Waits until the client has read the answer.
    Writing { keep_alive: bool },
    /// Gets events, those behind `cursor` next.
    Streaming { cursor: u64 },
    /// No more requests are served. Bytes of the client are read and dropped, since unread bytes would reset the connection
    /// before the client has read the response.
    Lingering,
}

/// An authorized request whose body is not complete.
pub(super) struct PartialRequest {
    pub(super) head: RequestHead,
    pub(super) body: Body,
}

/// A request whose answer a connection waits for.
pub(crate) struct PendingRequest {
    pub(crate) request: AdminRequest,
    pub(crate) keep_alive: bool,
    pub(crate) head_only: bool,
    pub(crate) answers: Answers,
    pub(crate) deadline: Instant,
}

/// What to do after a step.
pub(crate) enum Progress {
    Continue,
    /// Wait for an event or a timer.
    Wait,
    /// Close the connection.
    Close,
    /// Answer this request, which is complete.
    Request(Box<ReceivedRequest>),
}

/// A complete, authorized request.
pub(crate) struct ReceivedRequest {
    pub(crate) head: RequestHead,
    pub(crate) body: Vec<u8>,
}

/// The connection with this id, if it is still open.
pub(super) fn connection_mut(connections: &mut Slab<Connection>, id: AdminId) -> Option<&mut Connection> {
    connections.get_mut(id.slot as usize).filter(|conn| conn.epoch == id.epoch)
}

impl Connection {
    pub(super) fn new(transport: Transport, peer: SocketAddr, epoch: u32, now: Instant) -> Self {
        Self {
            epoch,
            transport,
            peer,
            read_buffer: Vec::new(),
            searched: 0,
            write_buffer: WriteBuffer::default(),
            state: ConnectionState::Reading(None),
            state_since: now,
            progress_at: now,
            request_started_at: None,
            is_reused: false,
            timer_tick: None,
        }
    }

    /// Whether nobody waits for the end of an answer: no request has begun, or the answer has no end.
    #[cfg(target_os = "linux")]
    pub(super) fn is_idle(&self) -> bool {
        let is_unused = matches!(self.state, ConnectionState::Reading(None))
            && self.read_buffer.is_empty()
            && self.is_reused;
        is_unused || matches!(self.state, ConnectionState::Streaming { .. })
    }

    pub(super) fn set_state(&mut self, state: ConnectionState, now: Instant) -> Progress {
        self.is_reused = true;
        self.searched = 0;
        (self.state_since, self.progress_at) = (now, now);
        self.request_started_at = (!self.read_buffer.is_empty()).then_some(now);
        self.state = state;
        Progress::Continue
    }

    /// Shuts our side down, and gives the client a moment to read the response.
    pub(super) fn start_linger(&mut self, now: Instant) -> Progress {
        if self.transport.shut_down().is_err() {
            return Progress::Close;
        }
        self.read_buffer = Vec::new();
        self.set_state(ConnectionState::Lingering, now)
    }

    /// What it would be closed as for another connection; the first of these go first.
    pub(super) fn displaced_as(&self, now: Instant) -> ApiDisplaced {
        match self.state {
            ConnectionState::Lingering => ApiDisplaced::Closing,
            ConnectionState::Pending(_) => ApiDisplaced::Pending,
            // Not one that has no events to read.
            ConnectionState::Streaming { .. } if self.write_buffer.is_empty() => ApiDisplaced::Pending,
            _ if now.saturating_duration_since(self.progress_at) >= STALLED_AFTER => ApiDisplaced::Stalled,
            _ => ApiDisplaced::Crowding,
        }
    }

    /// Whether the bytes since the last call may complete a head. Only then is the head parsed, so that a client which sends
    /// single bytes does not cause quadratic work.
    pub(super) fn may_have_head(&mut self) -> bool {
        let new = self.read_buffer.get(self.searched..).unwrap_or_default();
        let may = self.searched == 0 || new.contains(&b'\n') || self.read_buffer.len() > MAX_HEAD_BYTES;
        self.searched = self.read_buffer.len();
        may
    }

    pub(super) fn deadline(&self) -> Instant {
        match self.state {
            ConnectionState::Reading(_) => match self.request_started_at {
                Some(started) if self.is_reused => started + REQUEST_TIMEOUT,
                None if self.is_reused => self.state_since + KEEP_ALIVE_TIMEOUT,
                _ => self.state_since + REQUEST_TIMEOUT,
            },
            ConnectionState::Pending(ref pending) => pending.deadline,
            ConnectionState::Writing { .. } => self.state_since + SEND_TIMEOUT,
            ConnectionState::Streaming { .. } if self.write_buffer.is_empty() => {
                self.progress_at + HEARTBEAT_INTERVAL
            }
            ConnectionState::Streaming { .. } => self.progress_at + SEND_TIMEOUT,
            ConnectionState::Lingering => self.state_since + LINGER,
        }
    }

    /// Writes what waits to be written, as far as the client takes it.
    pub(super) fn flush(&mut self, now: Instant) -> io::Result<Flush> {
        let unwritten = self.write_buffer.len();
        let flushed = self.write_buffer.flush(&mut self.transport);
        if self.write_buffer.len() < unwritten {
            self.progress_at = now;
        }
        flushed
    }

    /// Reads at most what is missing of the body of `partial`, or of a head.
    pub(super) fn read(
        &mut self,
        partial: Option<Box<PartialRequest>>,
        scratch: &mut [u8],
        now: Instant,
    ) -> Progress {
        let held = self.read_buffer.len();
        let wanted = match &partial {
            Some(partial) => partial.body.wanted(held),
            None => (MAX_HEAD_BYTES + 1).saturating_sub(held),
        };
        self.state = ConnectionState::Reading(partial);
        let len = wanted.clamp(1, scratch.len());
        match self.transport.read(&mut scratch[..len]) {
            Ok(0) => Progress::Close,
            Ok(n) => {
                self.progress_at = now;
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
    fn a_head_that_arrives_byte_by_byte_is_parsed_once_a_line() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let tcp = mio::net::TcpStream::from_std(std::net::TcpStream::connect(addr).unwrap());
        let mut conn = Connection::new(Transport::new(tcp, false, false), addr, 1, Instant::now());
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
        conn.searched = MAX_HEAD_BYTES;
        assert!(conn.may_have_head(), "too long, which is an error");
    }
}
