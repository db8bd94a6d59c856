//! Connects to chat servers: resolves their names, queues dials beyond `max_dials`, and advances each dial until its
//! WebSocket is open or it has failed. It also reads and writes the open WebSockets.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::net::Ipv4Addr;
use std::sync::Arc;

use mio::Waker;
use tungstenite::protocol::frame::coding::CloseCode;

use crate::net::backend::connection::{BackendConnection, DialStep, Dialer, Incoming};
use crate::net::backend::dial::DialContext;
use crate::net::backend::dial_slots::DialSlots;
use crate::net::backend::resolver::{Answer, Resolver};
use crate::net::backend::tls_clients::TlsClients;
use crate::net::backend::websocket_context_pool::ContextPool;
use crate::net::event_loop::io::Io;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::tcp::LINGER;
use crate::net::event_loop::token::{self, Role, SessionId};
use crate::net::sessions::session::Session;
use crate::net::sessions::table::Sessions;
use crate::session::{BackendFailure, BackendStage, Core, DialRequest, SetupStage};

/// What the connections to chat servers share.
pub(crate) struct Connector {
    resolver: Resolver,
    /// Which session each pending lookup is for.
    lookups: HashMap<u64, SessionId>,
    last_lookup_id: u64,
    /// Answers of the resolver. Empty between uses; only its capacity is reused.
    resolved: Vec<(u64, Answer)>,
    /// Dials with addresses that wait for a dial slot, in order.
    queue: VecDeque<SessionId>,
    /// Each dial has one, of which there are `max_dials`.
    pub(crate) slots: DialSlots,
    tls_clients: TlsClients,
    /// Lends a context to a WebSocket while it reads or writes a message.
    pub(crate) context_pool: ContextPool,
    /// Borrowed by the WebSocket that is being read.
    read_buffer: Box<[u8]>,
}

impl Connector {
    /// The waker wakes the loop when a name has been resolved.
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Self {
            resolver: Resolver::new(waker),
            lookups: HashMap::new(),
            last_lookup_id: 0,
            resolved: Vec::new(),
            queue: VecDeque::new(),
            slots: DialSlots::default(),
            tls_clients: TlsClients::default(),
            context_pool: ContextPool::default(),
            read_buffer: Box::default(),
        }
    }

    /// How many dials wait for a dial slot.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// How many dials wait for the resolver.
    pub(crate) fn pending_lookups(&self) -> usize {
        self.lookups.len()
    }

    /// Drops the TLS clients, so that changed CA files are read again.
    pub(crate) fn forget_tls_clients(&mut self) {
        self.tls_clients.clear();
    }

    /// Frees unused memory.
    pub(crate) fn shrink(&mut self) {
        self.context_pool.shrink();
    }

    // ----- dialing ------------------------------------------------------------------------------------------------

    /// Begins a dial, in place of the session's connection, if any. The name is resolved, then the dial waits for a dial slot,
    /// then it connects. Errors are reported by a later [`advance`](Self::advance), even if they occur at once.
    pub(crate) fn dial(
        &mut self,
        id: SessionId,
        request: Box<DialRequest>,
        sessions: &mut Sessions,
        io: &mut Io,
    ) {
        self.drop_connection(id, sessions, io);
        io.metrics.dials += 1;
        let Some(session) = sessions.live(id) else { return };
        self.last_lookup_id += 1;
        let lookup_id = self.last_lookup_id;
        let server = &request.server;
        let answer =
            self.resolver.lookup(&server.host, server.port, lookup_id, request.skip_dns_cache, io.now);
        session.backend = Some(Box::new(BackendConnection::new(request, lookup_id)));
        match answer {
            Some(answer) => self.on_resolved(id, answer, sessions, io),
            None => drop(self.lookups.insert(lookup_id, id)),
        }
    }

    /// Handles the answers of the resolver.
    pub(crate) fn collect_resolved(&mut self, sessions: &mut Sessions, io: &mut Io) {
        let mut resolved = mem::take(&mut self.resolved);
        self.resolver.take_finished(io.now, &mut resolved);
        for (lookup_id, answer) in resolved.drain(..) {
            let Some(id) = self.lookups.remove(&lookup_id) else { continue };
            if sessions.backend(id).is_some_and(|backend| backend.awaits_lookup(lookup_id)) {
                self.on_resolved(id, answer, sessions, io);
            }
        }
        self.resolved = resolved;
    }

    fn on_resolved(&mut self, id: SessionId, answer: Answer, sessions: &mut Sessions, io: &mut Io) {
        let Some(backend) = sessions.backend(id) else { return };
        match answer {
            Ok(addresses) => {
                backend.resolved(addresses);
                self.queue.push_back(id);
                io.run_queue.push(Task::StartDials);
            }
            Err(why) => {
                backend.unresolved(why);
                io.run_queue.push(Task::Backend(id));
            }
        }
    }

    /// Starts the next queued dial, if there is a dial slot for it.
    pub(crate) fn start_next(
        &mut self,
        sessions: &mut Sessions,
        io: &mut Io,
    ) -> Option<(SessionId, DialStep)> {
        let is_queued = |id: &SessionId| {
            sessions
                .get(*id)
                .is_some_and(|session| session.backend.as_ref().is_some_and(|one| one.is_queued()))
        };
        while self.queue.front().is_some_and(|id| !is_queued(id)) {
            self.queue.pop_front();
        }
        if self.queue.is_empty() {
            self.slots.wait_no_more();
            return None;
        }
        if !self.slots.take(io.config.websocket.max_dials) {
            return None;
        }
        let id = self.queue.pop_front()?;
        let session = sessions.live(id)?;
        if let Some(backend) = &mut session.backend {
            backend.holds_dial_slot = true;
        }
        session.core.on_dial_stage(SetupStage::Connect, io.now);
        Some((id, self.step(id, sessions, io)))
    }

    /// Advances a dial after an event, or when an address took too long. `Wait` also when there is no dial to advance.
    pub(crate) fn advance(&mut self, id: SessionId, sessions: &mut Sessions, io: &mut Io) -> DialStep {
        match sessions.backend(id).is_some_and(|backend| backend.is_dialing()) {
            true => self.step(id, sessions, io),
            false => DialStep::Wait,
        }
    }

    fn step(&mut self, id: SessionId, sessions: &mut Sessions, io: &mut Io) -> DialStep {
        let Some(backend) = sessions.backend(id) else { return DialStep::Wait };
        let websocket = &io.config.websocket;
        let tls = match self.tls_clients.client(backend.server(), websocket) {
            Ok(tls) => tls,
            Err(message) => {
                self.drop_connection(id, sessions, io);
                return DialStep::Failed(BackendFailure::new(BackendStage::Tls, message));
            }
        };
        let token = token::token(Role::Backend, id.slot as usize);
        let secret = websocket.secret.as_ref();
        let connect = DialContext { registry: &io.registry, token, now: io.now, tls };
        let mut dialer = Dialer { connect, secret };
        let step = backend.advance(&mut dialer);
        match &step {
            DialStep::Wait => {
                let stage = backend.setup_stage();
                if let (Some(stage), Some(session)) = (stage, sessions.live(id)) {
                    session.core.on_dial_stage(stage, io.now);
                }
                sessions.arm_timer(id, io);
            }
            DialStep::Failed(_) => self.drop_connection(id, sessions, io),
            DialStep::Opened { .. } => {
                io.metrics.dials_opened += 1;
                self.release_dial_slot(id, sessions, io);
            }
        }
        step
    }

    /// Frees the dial's slot, if it has one, for the next dial.
    fn release_dial_slot(&mut self, id: SessionId, sessions: &mut Sessions, io: &mut Io) {
        if sessions.backend(id).is_some_and(|backend| mem::take(&mut backend.holds_dial_slot)) {
            self.slots.free();
            io.run_queue.push(Task::StartDials);
        }
    }

    // ----- ending -------------------------------------------------------------------------------------------------

    /// Drops the connection to the chat server, whatever its stage.
    pub(crate) fn drop_connection(&mut self, id: SessionId, sessions: &mut Sessions, io: &mut Io) {
        self.end_read(id, sessions);
        self.release_dial_slot(id, sessions, io);
        if let Some(session) = sessions.live(id) {
            session.backend = None;
        }
        sessions.account(id, io);
        sessions.reap_if_finished(id);
    }

    /// Closes the WebSocket: sends a Close frame and waits a moment for the server's. The connection moves to a session of its
    /// own for that, so that this one is free for the next call.
    pub(crate) fn close(&mut self, id: SessionId, code: u16, sessions: &mut Sessions, io: &mut Io) {
        self.end_read(id, sessions);
        self.release_dial_slot(id, sessions, io);
        let Some(mut backend) = sessions.live(id).and_then(|session| session.backend.take()) else { return };
        sessions.account(id, io);
        if backend.is_open() {
            backend.close(CloseCode::from(code), &mut self.context_pool);
            let token = token::token(Role::Backend, sessions.next_slot());
            let moved = backend.reregister(&io.registry, token).is_ok();
            if moved && backend.flush(&mut self.context_pool) {
                let mut core = Core::new(Ipv4Addr::UNSPECIFIED.into(), io.now);
                core.mark_closed();
                let lingering = sessions.insert(core, None, Some(backend));
                if let Some(session) = sessions.live(lingering) {
                    session.set_linger_until(Some(io.now + LINGER));
                }
                sessions.account(lingering, io);
                sessions.arm_timer(lingering, io);
            }
        }
        sessions.reap_if_finished(id);
    }

    // ----- the open WebSocket -------------------------------------------------------------------------------------

    /// Prepares for [`read`](Self::read). `near_end`: the system said that the end of the stream is near, so a short read
    /// does not prove that the socket is empty.
    pub(crate) fn begin_read(&mut self, id: SessionId, near_end: bool, sessions: &mut Sessions) {
        if let Some(backend) = sessions.backend(id) {
            backend.borrow_read_buffer(&mut self.read_buffer, near_end);
        }
    }

    /// Reads the next message; `None` when there is no open WebSocket.
    pub(crate) fn read(&mut self, id: SessionId, sessions: &mut Sessions) -> Option<Incoming> {
        let backend = sessions.backend(id).filter(|backend| backend.is_open())?;
        Some(backend.read(&mut self.context_pool))
    }

    /// Takes the read buffer back. Must precede dropping this connection and reading another one.
    pub(crate) fn end_read(&mut self, id: SessionId, sessions: &mut Sessions) {
        if let Some(backend) = sessions.backend(id) {
            backend.give_back_read_buffer(&mut self.read_buffer);
        }
    }

    /// Queues a text. When the write buffer is full, the server does not read, and its WebSocket will be closed.
    pub(crate) fn send_text(&mut self, id: SessionId, text: String, sessions: &mut Sessions, io: &mut Io) {
        let Some(backend) = sessions.backend(id) else { return };
        if backend.send_text(text, &mut self.context_pool).is_err() {
            io.run_queue.push(Task::BackendBlocked(id));
        }
        sessions.mark_dirty(id);
    }

    /// Queues a ping. A full write buffer is ignored: the server is detected by its missing pong.
    pub(crate) fn send_ping(&mut self, id: SessionId, sessions: &mut Sessions) {
        if let Some(backend) = sessions.backend(id) {
            let _ = backend.ping(&mut self.context_pool);
            sessions.mark_dirty(id);
        }
    }

    /// Writes what is queued. False when the connection is broken, which its next read reports.
    pub(crate) fn flush(&mut self, session: &mut Session) -> bool {
        session.backend.as_mut().is_none_or(|backend| backend.flush(&mut self.context_pool))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use mio::{Poll, Token};

    use super::*;
    use crate::config::Config;
    use crate::session::harness::dial_request;

    fn request(server: &TcpListener) -> Box<DialRequest> {
        Box::new(dial_request(format!("ws://{}/", server.local_addr().unwrap()).parse().unwrap()))
    }

    #[test]
    fn dials_beyond_the_limit_wait_until_an_earlier_one_ends() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::default();
        config.websocket.max_dials = 1;
        let mut io = Io { config: Arc::new(config), ..Io::for_test() };
        let poll = Poll::new().unwrap();
        let mut connector = Connector::new(Arc::new(Waker::new(poll.registry(), Token(0)).unwrap()));
        let mut sessions = Sessions::default();
        let [first, second] = [(); 2].map(|()| {
            let id = sessions.insert(Core::new(Ipv4Addr::LOCALHOST.into(), io.now), None, None);
            connector.dial(id, request(&server), &mut sessions, &mut io);
            id
        });
        assert_eq!((connector.queued(), connector.pending_lookups(), io.metrics.dials), (2, 0, 2));
        let started = connector.start_next(&mut sessions, &mut io);
        assert!(matches!(started, Some((id, DialStep::Wait)) if id == first));
        assert!(connector.start_next(&mut sessions, &mut io).is_none());
        connector.drop_connection(first, &mut sessions, &mut io);
        let started = connector.start_next(&mut sessions, &mut io);
        assert!(matches!(started, Some((id, DialStep::Wait)) if id == second));
        assert_eq!((connector.queued(), connector.slots.own()), (0, 1));
    }
}
