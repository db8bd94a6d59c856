//! A blocking client of a chat server, for `check`. It uses the same code as the gateway's calls, so that it finds what the
//! gateway would find.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use tungstenite::protocol::frame::coding::CloseCode;

use crate::config::WebSocket;
use crate::net::backend::connection::{BackendConnection, DialStep, Dialer, Incoming};
use crate::net::backend::dial::DialContext;
use crate::net::backend::tls_clients::TlsClients;
use crate::net::backend::websocket_context_pool::ContextPool;
use crate::session::{BackendClosed, BackendFailure, BackendStage, DialRequest};

const SERVER: Token = Token(0);

/// An open WebSocket to a chat server. Its methods block the thread.
pub(crate) struct BlockingClient {
    poll: Poll,
    backend: BackendConnection,
    contexts: ContextPool,
}

/// How far a dial has come.
pub(crate) struct DialReport {
    /// The completed stages, of `connect`, `tls` and `upgrade`, and how long each took.
    pub stages: Vec<(BackendStage, Duration)>,
    /// The open WebSocket, or the stage that failed.
    pub outcome: Result<BlockingClient, BackendFailure>,
}

/// What a chat server sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ServerMessage {
    /// A text message.
    Text(String),
    /// A binary message.
    Audio(Vec<u8>),
    /// The WebSocket was closed, or has failed.
    Gone(BackendClosed),
}

impl BlockingClient {
    /// Connects to the first of `addresses` that answers, with TLS and the upgrade that `request` and `websocket` define.
    /// Blocks for `limit` at most.
    pub(crate) fn open(
        request: DialRequest,
        addresses: Vec<SocketAddr>,
        websocket: &WebSocket,
        limit: Duration,
    ) -> DialReport {
        let mut stages = Vec::new();
        let outcome = dial(request, addresses, websocket, limit, &mut stages);
        DialReport { stages, outcome }
    }

    /// Sends a text. [`receive`](Self::receive) reports errors.
    pub(crate) fn send_text(&mut self, text: String) {
        let _ = self.backend.send_text(text, &mut self.contexts);
        self.backend.flush(&mut self.contexts);
    }

    /// Sends a binary message. [`receive`](Self::receive) reports errors.
    pub(crate) fn send_audio(&mut self, frame: &[u8]) {
        let _ = self.backend.send_audio(frame, &mut self.contexts);
        self.backend.flush(&mut self.contexts);
    }

    /// Waits for the next message until `until`.
    pub(crate) fn receive(&mut self, until: Instant) -> Option<ServerMessage> {
        loop {
            match self.backend.read(&mut self.contexts) {
                Incoming::Text(text) => return Some(ServerMessage::Text(text.as_str().to_owned())),
                Incoming::Audio(frame) => return Some(ServerMessage::Audio(frame.to_vec())),
                Incoming::Gone(gone) => return Some(ServerMessage::Gone(gone)),
                Incoming::Alive | Incoming::OverBudget => continue,
                Incoming::Blocked => {}
            }
            self.backend.flush(&mut self.contexts);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || wait(&mut self.poll, left).is_err() {
                return None;
            }
        }
    }

    /// Closes the WebSocket with 1000, and waits for the server's Close frame for `limit` at most.
    pub(crate) fn close(mut self, limit: Duration) {
        self.backend.close(CloseCode::Normal, &mut self.contexts);
        let until = Instant::now() + limit;
        while !matches!(self.receive(until), None | Some(ServerMessage::Gone(_))) {}
    }
}

fn dial(
    request: DialRequest,
    addresses: Vec<SocketAddr>,
    websocket: &WebSocket,
    limit: Duration,
    stages: &mut Vec<(BackendStage, Duration)>,
) -> Result<BlockingClient, BackendFailure> {
    let order = if request.server.tls {
        &[BackendStage::Connect, BackendStage::Tls, BackendStage::Upgrade][..]
    } else {
        &[BackendStage::Connect, BackendStage::Upgrade]
    };
    let failure = |stage, why: &dyn ToString| BackendFailure::new(stage, why.to_string());
    let mut tls = TlsClients::default();
    let tls = tls.client(&request.server, websocket).map_err(|why| failure(BackendStage::Tls, &why))?;
    // Loading the authorities takes time that is not the server's.
    if request.server.tls {
        tls.prepare().map_err(|error| failure(BackendStage::Tls, &error))?;
    }
    let start = Instant::now();
    let mut stage_start = start;
    let mut poll = Poll::new().map_err(|error| failure(BackendStage::Connect, &error))?;
    let mut backend = BackendConnection::new(Box::new(request), 0);
    backend.resolved(addresses);
    loop {
        let now = Instant::now();
        let secret = websocket.secret.as_ref();
        let connect = DialContext { registry: poll.registry(), token: SERVER, now, tls };
        let mut dialer = Dialer { connect, secret };
        let step = backend.advance(&mut dialer);
        let stage = match &step {
            DialStep::Wait => backend.stage(),
            DialStep::Opened { .. } => BackendStage::Live,
            DialStep::Failed(failure) => failure.stage,
        };
        let completed = order.iter().take_while(|name| **name != stage).skip(stages.len()).copied();
        for name in completed.collect::<Vec<_>>() {
            stages.push((name, stage_start.elapsed()));
            stage_start = Instant::now();
        }
        match step {
            DialStep::Wait => {}
            DialStep::Opened { .. } => {
                return Ok(BlockingClient { poll, backend, contexts: ContextPool::default() });
            }
            DialStep::Failed(failure) => return Err(failure),
        }
        let left = (start + limit).saturating_duration_since(now);
        if left.is_zero() {
            return Err(failure(stage, &format!("no answer within {} s", limit.as_secs())));
        }
        let timeout = backend.next_step_at().map_or(left, |at| at.saturating_duration_since(now).min(left));
        wait(&mut poll, timeout).map_err(|error| failure(stage, &error))?;
    }
}

fn wait(poll: &mut Poll, limit: Duration) -> io::Result<()> {
    match poll.poll(&mut Events::with_capacity(4), Some(limit)) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}
