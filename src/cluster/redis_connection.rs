//! One of the two connections to Redis: when to connect, how long to wait after a failure, and what was read and is to be written.

use std::time::{Duration, Instant};

use super::resp::{self, Reply};

/// How long connecting may take: looking the name up, TCP and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long Redis may take to answer.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(3);
/// The pauses after failures: the first one; each is twice the one before, up to the last. Shorter than a gateway that is not heard
/// is counted as there, so that gateways find each other again after an outage of Redis.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// One of the two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Connection {
    /// Sends commands and gets replies.
    Commands,
    /// Gets the messages of the channels.
    Subscriber,
}

impl Connection {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Commands, Self::Subscriber];
}

/// What is to be done with a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect, and report that it is connected, or that it failed.
    Connect(Connection),
    /// Close it without reporting that.
    Close(Connection),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// For the next attempt.
    Waiting(Instant),
    /// At most until then.
    Connecting(Instant),
    /// Connected, but Redis has not accepted this client. At most until then.
    Greeting(Instant),
    /// Since then.
    Ready(Instant),
}

#[derive(Debug)]
pub(super) struct RedisConnection {
    stage: Stage,
    pause: Duration,
    /// An incomplete reply.
    input: Vec<u8>,
    pub(super) output: Vec<u8>,
    /// Bytes that the socket has not taken.
    pub(super) unwritten: usize,
    /// Varies the pauses, so that not all gateways connect at once.
    random: u64,
}

impl RedisConnection {
    /// `seed` is not 0.
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        Self {
            stage: Stage::Waiting(now),
            pause: PAUSE_MIN,
            input: Vec::new(),
            output: Vec::new(),
            unwritten: 0,
            random: seed,
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready(_))
    }

    /// Since when it is ready.
    pub(super) fn ready_since(&self) -> Option<Instant> {
        match self.stage {
            Stage::Ready(since) => Some(since),
            Stage::Waiting(_) | Stage::Connecting(_) | Stage::Greeting(_) => None,
        }
    }

    /// Whether there is a socket, or one is being connected.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.stage, Stage::Waiting(_))
    }

    /// When [`RedisConnection::starts`] or [`RedisConnection::is_late`] changes.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Waiting(at) | Stage::Connecting(at) | Stage::Greeting(at) => Some(at),
            Stage::Ready(_) => None,
        }
    }

    /// Whether the next attempt begins now.
    pub(super) fn starts(&mut self, now: Instant) -> bool {
        let starts = matches!(self.stage, Stage::Waiting(at) if at <= now);
        if starts {
            self.stage = Stage::Connecting(now + CONNECT_TIMEOUT);
        }
        starts
    }

    /// Why the attempt has taken too long.
    pub(super) fn is_late(&self, now: Instant) -> Option<String> {
        match self.stage {
            Stage::Connecting(until) if until <= now => {
                Some(format!("no connection in {} s", CONNECT_TIMEOUT.as_secs()))
            }
            Stage::Greeting(until) if until <= now => Some(no_answer()),
            _ => None,
        }
    }

    pub(super) fn connected(&mut self, now: Instant) {
        self.stage = Stage::Greeting(now + REPLY_TIMEOUT);
    }

    pub(super) fn accepted(&mut self, now: Instant) {
        self.stage = Stage::Ready(now);
    }

    /// There is no connection any more. The next attempt follows after a pause, which starts short again when a connection was
    /// of use for a while.
    pub(super) fn lost(&mut self, now: Instant) {
        if self.ready_since().is_some_and(|since| now >= since + PAUSE_MAX) {
            self.pause = PAUSE_MIN;
        }
        // xorshift64, by George Marsaglia.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let shortened = self.pause.mul_f64(1.0 - (self.random % 256) as f64 / 1024.0);
        self.stage = Stage::Waiting(now + shortened);
        self.pause = (2 * self.pause).min(PAUSE_MAX);
        (self.input, self.output, self.unwritten) = (Vec::new(), Vec::new(), 0);
    }

    /// Bytes that wait for the socket.
    pub(super) fn queued(&self) -> usize {
        self.output.len() + self.unwritten
    }

    pub(super) fn command(&mut self, parts: &[&[u8]]) {
        resp::command(&mut self.output, parts);
    }

    /// Appends what was read.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// The replies that are complete, and what was found instead of a further one.
    pub(super) fn replies(&mut self) -> (Vec<Reply>, Option<String>) {
        let (mut replies, mut bad, mut at) = (Vec::new(), None, 0);
        loop {
            match resp::reply(&self.input[at..]) {
                Ok(Some((reply, len))) => {
                    replies.push(reply);
                    at += len;
                }
                Ok(None) => break,
                Err(found) => {
                    bad = Some(found);
                    break;
                }
            }
        }
        self.input.drain(..at);
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        (replies, bad)
    }
}

pub(super) fn no_answer() -> String {
    format!("no answer in {} s", REPLY_TIMEOUT.as_secs())
}
