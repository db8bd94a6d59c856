//! One connection to the management API.

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use super::dispatch::Asking;
use super::{LINGER, Next};
use crate::admin::body::Body;
use crate::admin::http::{Head, MAX_HEAD};
use crate::net::write_buffer::Outbox;

/// How long the first request, or one that has begun, may take to be there.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection that was used stays open for the next request.
const IDLE: Duration = Duration::from_secs(60);
/// How long an answer may take to be read.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// A device's answer is there, or given up, after 5 s; this is for what should not happen.
const ANSWER_WITHIN: Duration = Duration::from_secs(7);

pub(super) struct Conn {
    pub(super) epoch: u32,
    pub(super) tcp: TcpStream,
    pub(super) peer: SocketAddr,
    /// What came and is not served yet: at most a head or a body, and the beginning of the next request.
    pub(super) inbox: Vec<u8>,
    /// So much of it has been looked at for a head.
    looked_at: usize,
    pub(super) outbox: Outbox,
    pub(super) stage: Stage,
    /// When the stage began.
    pub(super) since: Instant,
    /// When the first byte of the request came, on a connection that was used before.
    begun: Option<Instant>,
    used: bool,
    /// The tick of the one live entry in the wheel.
    pub(super) alarm: Option<u64>,
}

pub(super) enum Stage {
    /// Waits for a request, or for the rest of this one.
    Reading(Option<Box<Begun>>),
    /// Waits for the answer of a device or of other workers.
    Asking(Box<Asking>),
    /// Waits until the client has read the answer.
    Writing { keep_alive: bool },
    /// Nothing more is served; the client's last bytes are dropped, so that they cost it not the answer.
    Parting,
}

/// A request whose head is there, and whose caller may call.
pub(super) struct Begun {
    pub(super) head: Head,
    pub(super) body: Body,
}

impl Stage {
    /// Who goes last when all places are taken.
    pub(super) fn worth(&self) -> u8 {
        match self {
            Self::Parting => 0,
            Self::Reading(_) => 1,
            Self::Writing { .. } => 2,
            Self::Asking(_) => 3,
        }
    }
}

impl Conn {
    pub(super) fn new(tcp: TcpStream, peer: SocketAddr, epoch: u32, now: Instant) -> Self {
        Self {
            epoch,
            tcp,
            peer,
            inbox: Vec::new(),
            looked_at: 0,
            outbox: Outbox::default(),
            stage: Stage::Reading(None),
            since: now,
            begun: None,
            used: false,
            alarm: None,
        }
    }

    pub(super) fn enter(&mut self, stage: Stage, now: Instant) -> Next {
        self.used = true;
        self.looked_at = 0;
        self.since = now;
        self.begun = (!self.inbox.is_empty()).then_some(now);
        self.stage = stage;
        Next::Again
    }

    /// Ends our side; the other is given a moment to read the answer.
    pub(super) fn part(&mut self, now: Instant) -> Next {
        if self.tcp.shutdown(Shutdown::Write).is_err() {
            return Next::Drop;
        }
        self.inbox = Vec::new();
        self.enter(Stage::Parting, now)
    }

    /// Whether what came since the last look may end a head: only then is all of it parsed again, and not for each byte of a
    /// client that sends them one by one.
    pub(super) fn may_have_head(&mut self) -> bool {
        let came = self.inbox.get(self.looked_at..).unwrap_or_default();
        let may = self.looked_at == 0 || came.contains(&b'\n') || self.inbox.len() > MAX_HEAD;
        self.looked_at = self.inbox.len();
        may
    }

    pub(super) fn deadline(&self) -> Instant {
        match self.stage {
            Stage::Reading(_) => match self.begun {
                Some(begun) if self.used => begun + REQUEST_WITHIN,
                None if self.used => self.since + IDLE,
                _ => self.since + REQUEST_WITHIN,
            },
            Stage::Asking(_) => self.since + ANSWER_WITHIN,
            Stage::Writing { .. } => self.since + READ_WITHIN,
            Stage::Parting => self.since + LINGER,
        }
    }

    /// Reads no more than may be missing of the body of this request, or of a head.
    pub(super) fn read(&mut self, begun: Option<Box<Begun>>, scratch: &mut [u8], now: Instant) -> Next {
        let held = self.inbox.len();
        let wanted =
            begun.as_ref().map_or((MAX_HEAD + 1).saturating_sub(held), |begun| begun.body.wanted(held));
        self.stage = Stage::Reading(begun);
        let room = wanted.clamp(1, scratch.len());
        match self.tcp.read(&mut scratch[..room]) {
            Ok(0) => Next::Drop,
            Ok(n) => {
                self.begun.get_or_insert(now);
                self.inbox.extend_from_slice(&scratch[..n]);
                Next::Again
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Next::Wait,
            Err(error) if error.kind() == ErrorKind::Interrupted => Next::Again,
            Err(_) => Next::Drop,
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
        let mut conn = Conn::new(tcp, addr, 1, Instant::now());
        let text = format!("GET / HTTP/1.1\r\nX-Filler: {}\r\n\r\n", "x".repeat(6000));
        for _ in 0..2 {
            let mut parsed = 0;
            for byte in text.bytes() {
                conn.inbox.push(byte);
                parsed += usize::from(conn.may_have_head());
            }
            assert_eq!(parsed, 1 + text.matches('\n').count());
            // The next request on the same connection.
            conn.inbox.clear();
            conn.enter(Stage::Reading(None), Instant::now());
        }
        conn.inbox = vec![b'x'; MAX_HEAD + 1];
        conn.looked_at = MAX_HEAD;
        assert!(conn.may_have_head(), "too long, which is to be told");
    }
}
