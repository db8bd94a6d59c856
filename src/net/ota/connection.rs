//! One connection to the OTA port: a request, its response, and no more.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::admin::body::{Body, Framing};
use crate::admin::error::{MAX_HEAD_BYTES, RequestError};
use crate::admin::http;
use crate::admin::response::CONTINUE;
use crate::net::event_loop::tcp::LINGER;
use crate::net::event_loop::token::OtaId;
use crate::net::mqtt::transport::Transport;
use crate::net::ota::message::{OtaRequest, OtaResponse};
use crate::net::ota::upstream_connection::{Finished, Upstream};

/// How long a request may take to arrive, with the PROXY header before it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the client may take no byte of its response. A device reads a sound while it plays.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest body of a request: a device's description of itself has 1 to 4 KB.
const MAX_BODY_BYTES: usize = 16 * 1024;

/// Bytes per write, so that a client which reads a long body fast does not hold the loop up.
const MAX_WRITE: usize = 64 * 1024;

pub(super) struct Connection {
    pub(super) epoch: u32,
    pub(super) transport: Transport,
    /// Of the device, also behind a load balancer that says so.
    pub(super) ip: IpAddr,
    /// Of this end.
    pub(super) local: IpAddr,
    /// Bytes of the request that are not used up.
    inbox: Vec<u8>,
    state: State,
    /// When the connection was accepted.
    accepted_at: Instant,
    /// When the state was entered, or the client last took a byte of its response.
    pub(super) progress_at: Instant,
    /// The tick of the one live entry in the timer wheel.
    pub(super) timer_tick: Option<u64>,
}

enum State {
    /// Waits for the rest of the head.
    Head,
    /// Waits for the rest of the body.
    Body(Box<(OtaRequest, Body)>),
    /// The request was returned, and is responded to at once.
    Returned,
    /// Waits for the answer of another server.
    Waiting(Box<Upstream>),
    /// Waits until the client has read the response.
    Writing(Output),
    /// Bytes of the client are read and dropped, since unread bytes would reset the connection before it has read the response.
    Lingering,
}

/// A response that is being written.
struct Output {
    head: Vec<u8>,
    body: Arc<[u8]>,
    written: usize,
}

impl Output {
    /// Writes once. Gives whether there is more.
    fn write_some(&mut self, to: &mut impl Write) -> io::Result<bool> {
        let rest = match self.written.checked_sub(self.head.len()) {
            None => &self.head[self.written..],
            Some(of_body) => &self.body[of_body..],
        };
        if rest.is_empty() {
            return Ok(false);
        }
        match to.write(&rest[..rest.len().min(MAX_WRITE)])? {
            0 => Err(ErrorKind::WriteZero.into()),
            n => {
                self.written += n;
                Ok(true)
            }
        }
    }
}

/// What to do after a step.
pub(crate) enum Progress {
    Continue,
    /// Wait for an event or a timer.
    Wait,
    /// Close the connection.
    Close,
    /// This request is complete. Respond to it, or let it wait.
    Request(Box<OtaRequest>),
    /// The other server has answered, or not. Respond to the request.
    Finished(Box<Finished>),
}

/// What a connection would lose if it were closed; what loses least goes first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Worth {
    /// It has its response.
    Served,
    /// It is sending its request or reading its response.
    Open,
    /// Its response is being made.
    Waiting,
}

/// The connection with this id, if it is still open.
pub(super) fn connection_mut(connections: &mut Slab<Connection>, id: OtaId) -> Option<&mut Connection> {
    connections.get_mut(id.slot as usize).filter(|conn| conn.epoch == id.epoch)
}

impl Connection {
    pub(super) fn new(
        transport: Transport,
        peer: SocketAddr,
        local: IpAddr,
        epoch: u32,
        now: Instant,
    ) -> Self {
        Self {
            epoch,
            transport,
            ip: peer.ip().to_canonical(),
            local: local.to_canonical(),
            inbox: Vec::new(),
            state: State::Head,
            accepted_at: now,
            progress_at: now,
            timer_tick: None,
        }
    }

    pub(super) fn worth(&self) -> Worth {
        match self.state {
            State::Lingering => Worth::Served,
            State::Waiting(_) => Worth::Waiting,
            State::Head | State::Body(_) | State::Returned | State::Writing(_) => Worth::Open,
        }
    }

    /// Whether an event for it has to be served: a writable event matters only while a response is written.
    pub(super) fn is_ready(&self, readable: bool) -> bool {
        readable || matches!(self.state, State::Writing(_)) || !self.transport.is_open()
    }

    pub(super) fn deadline(&self) -> Instant {
        match self.state {
            State::Head | State::Body(_) | State::Returned => self.accepted_at + REQUEST_TIMEOUT,
            State::Waiting(ref upstream) => upstream.next_step_at(),
            State::Writing(_) => self.progress_at + STALL_TIMEOUT,
            State::Lingering => self.progress_at + LINGER,
        }
    }

    /// Reads or writes once, as the state asks.
    pub(super) fn advance(&mut self, scratch: &mut [u8], now: Instant) -> Progress {
        match &mut self.state {
            State::Head | State::Body(_) => match self.take_request() {
                Ok(Some(request)) => Progress::Request(request),
                Ok(None) => self.read(scratch),
                Err(refusal) => {
                    let (status, sentence) = describe(refusal);
                    self.respond(&OtaResponse::error(status, &sentence), false, now)
                }
            },
            State::Returned | State::Waiting(_) => Progress::Wait,
            State::Writing(output) => match output.write_some(&mut self.transport) {
                Ok(true) => {
                    self.progress_at = now;
                    Progress::Continue
                }
                Ok(false) => self.linger(now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Progress::Wait,
                Err(error) if error.kind() == ErrorKind::Interrupted => Progress::Continue,
                Err(_) => Progress::Close,
            },
            State::Lingering => {
                self.inbox.clear();
                self.read(scratch)
            }
        }
    }

    fn read(&mut self, scratch: &mut [u8]) -> Progress {
        match self.transport.read(scratch) {
            Ok(0) => Progress::Close,
            Ok(n) => {
                self.inbox.extend_from_slice(&scratch[..n]);
                Progress::Continue
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Progress::Wait,
            Err(error) if error.kind() == ErrorKind::Interrupted => Progress::Continue,
            Err(_) => Progress::Close,
        }
    }

    /// The request, once it is complete.
    fn take_request(&mut self) -> Result<Option<Box<OtaRequest>>, RequestError> {
        if matches!(self.state, State::Head) {
            let Some(head) = http::parse_head(&self.inbox)? else { return Ok(None) };
            if let Some(why) = head.malformed {
                return Err(RequestError::Malformed(why));
            }
            let framing = head.body?;
            if matches!(framing, Framing::Length(length) if length > MAX_BODY_BYTES) {
                return Err(RequestError::BodyTooLong);
            }
            let fields = http::header_fields(&self.inbox[..head.length]);
            self.inbox.drain(..head.length);
            if head.expects_continue && self.inbox.is_empty() {
                // A client may send its body without it.
                let _ = self.transport.write(CONTINUE);
            }
            let request = OtaRequest { head, fields, body: Vec::new() };
            self.state = State::Body(Box::new((request, Body::new(framing))));
        }
        let State::Body(partial) = &mut self.state else { return Ok(None) };
        let (request, body) = &mut **partial;
        let Some(body) = body.take(&mut self.inbox)? else { return Ok(None) };
        if body.len() > MAX_BODY_BYTES {
            return Err(RequestError::BodyTooLong);
        }
        request.body = body;
        match std::mem::replace(&mut self.state, State::Returned) {
            State::Body(partial) => Ok(Some(Box::new(partial.0))),
            _ => Ok(None),
        }
    }

    /// Lets the request wait for the answer of another server.
    pub(super) fn wait_for(&mut self, upstream: Upstream) {
        self.state = State::Waiting(Box::new(upstream));
    }

    /// The request to another server that this one waits for.
    pub(super) fn upstream(&mut self) -> Option<&mut Upstream> {
        match &mut self.state {
            State::Waiting(upstream) => Some(upstream),
            _ => None,
        }
    }

    /// What became of the request to another server. A response must follow.
    pub(super) fn finish(&mut self, answer: Result<(u16, Vec<u8>), String>) -> Progress {
        match std::mem::replace(&mut self.state, State::Returned) {
            State::Waiting(upstream) => {
                Progress::Finished(Box::new(Finished { asked: upstream.asked, answer }))
            }
            state => {
                self.state = state;
                Progress::Wait
            }
        }
    }

    /// Queues the response; with `head_only`, without its body.
    pub(super) fn respond(&mut self, response: &OtaResponse, head_only: bool, now: Instant) -> Progress {
        let body = if head_only { Arc::default() } else { response.body.clone() };
        self.state = State::Writing(Output { head: response.head(), body, written: 0 });
        self.progress_at = now;
        Progress::Continue
    }

    /// Shuts our side down, and gives the client a moment to read the response.
    fn linger(&mut self, now: Instant) -> Progress {
        if self.transport.shut_down().is_err() {
            return Progress::Close;
        }
        self.inbox = Vec::new();
        self.progress_at = now;
        self.state = State::Lingering;
        Progress::Continue
    }
}

/// The status and a sentence about a request that is not served, whoever sends it.
fn describe(refusal: RequestError) -> (u16, String) {
    match refusal {
        RequestError::HeadTooLong => (431, format!("A request's head may have {MAX_HEAD_BYTES} bytes.")),
        RequestError::BodyTooLong => (413, format!("A request's body may have {MAX_BODY_BYTES} bytes.")),
        other => {
            let error = other.error();
            (error.status, error.sentence.into_owned())
        }
    }
}
