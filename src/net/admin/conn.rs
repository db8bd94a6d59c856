//! One connection to the management API.

use std::io::{ErrorKind, Read};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use super::errand::Asking;
use super::{LINGER, Next};
use crate::admin::body::Body;
use crate::admin::http::{Head, MAX_HEAD};
use crate::net::outbox::Outbox;

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
