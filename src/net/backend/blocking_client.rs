//! One visit to a chat server, outside of the loop: dialled, upgraded and read by the code that calls use, but waited for.
//!
//! It is how `check` looks at a server exactly as the gateway would.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};
use tungstenite::protocol::frame::coding::CloseCode;

use crate::config::WebSocket;
use crate::net::backend::connection::{BackendConnection, DialStep, Dialer, Incoming};
use crate::net::backend::context_pool::ContextPool;
use crate::net::backend::tls_clients::TlsClients;
use crate::session::{BackendClosed, BackendFailure, BackendStage, DialRequest};

const SERVER: Token = Token(0);

/// An open WebSocket to a chat server, for one thread that has nothing else to do.
pub struct BlockingClient {
    poll: Poll,
    backend: BackendConnection,
    contexts: ContextPool,
}

/// How far a dial came.
pub struct DialReport {
    /// The stages that were done, of `connect`, `tls` and `upgrade`, and how long each took.
    pub stages: Vec<(BackendStage, Duration)>,
    /// The open WebSocket, or the stage that failed.
    pub outcome: Result<BlockingClient, BackendFailure>,
}

/// What a chat server says.
#[derive(Debug, PartialEq, Eq)]
pub enum ServerMessage {
    /// A text message.
    Text(String),
    /// A binary message.
    Audio(Vec<u8>),
    /// Its WebSocket ended.
    Gone(BackendClosed),
}

impl BlockingClient {
    /// Connects to the first of `addresses` that answers, secures and upgrades the connection as `request` and
    /// `websocket` say. Blocks for `limit` at most.
    pub fn open(
        request: DialRequest,
        addresses: Vec<SocketAddr>,
        websocket: &WebSocket,
        limit: Duration,
    ) -> DialReport {
        let mut stages = Vec::new();
        let outcome = dial(request, addresses, websocket, limit, &mut stages);
        DialReport { stages, outcome }
    }

    /// Sends a text. An error shows itself in what is heard next.
    pub fn send_text(&mut self, text: String) {
        let _ = self.backend.send_text(text, &mut self.contexts);
        self.backend.flush(&mut self.contexts);
    }

    /// Sends a binary message. An error shows itself in what is heard next.
    pub fn send_audio(&mut self, frame: &[u8]) {
        let _ = self.backend.send_audio(frame, &mut self.contexts);
        self.backend.flush(&mut self.contexts);
    }

    /// The next thing the server says; `None` when nothing comes until `until`.
    pub fn receive(&mut self, until: Instant) -> Option<ServerMessage> {
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

    /// Closes the WebSocket with 1000, and gives the server `limit` to agree.
    pub fn close(mut self, limit: Duration) {
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
    // Loading the authorities takes time of its own, which is no server's.
    if request.server.tls {
        tls.prepare().map_err(|error| failure(BackendStage::Tls, &error))?;
    }
    let (start, mut mark) = (Instant::now(), Instant::now());
    let mut poll = Poll::new().map_err(|error| failure(BackendStage::Connect, &error))?;
    let mut backend = BackendConnection::new(Box::new(request));
    backend.resolved(addresses);
    let mut go_on: fn(&mut BackendConnection, &mut Dialer<'_>) -> DialStep = BackendConnection::connect;
    loop {
        let now = Instant::now();
        let step = go_on(
            &mut backend,
            &mut Dialer {
                registry: poll.registry(),
                token: SERVER,
                now,
                tls,
                secret: websocket.secret.as_ref(),
            },
        );
        go_on = BackendConnection::advance;
        let stage = match &step {
            DialStep::Wait => backend.stage(),
            DialStep::Opened => BackendStage::Live,
            DialStep::Failed(failure) => failure.stage,
        };
        let done = order.iter().take_while(|name| **name != stage).skip(stages.len()).copied();
        for name in done.collect::<Vec<_>>() {
            stages.push((name, mark.elapsed()));
            mark = Instant::now();
        }
        match step {
            DialStep::Wait => {}
            DialStep::Opened => {
                return Ok(BlockingClient { poll, backend, contexts: ContextPool::default() });
            }
            DialStep::Failed(failure) => return Err(failure),
        }
        let left = (start + limit).saturating_duration_since(now);
        if left.is_zero() {
            return Err(failure(stage, &format!("no answer within {} s", limit.as_secs())));
        }
        let next = backend.next_address_at().map_or(left, |at| at.saturating_duration_since(now).min(left));
        wait(&mut poll, next).map_err(|error| failure(stage, &error))?;
    }
}

fn wait(poll: &mut Poll, limit: Duration) -> io::Result<()> {
    match poll.poll(&mut Events::with_capacity(4), Some(limit)) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}
