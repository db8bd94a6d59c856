//! Calls in the shell: dials, text and audio between a device and its chat server.

use tungstenite::protocol::frame::coding::CloseCode;

use crate::net::backend::connection::{BackendConnection, DialStep, Dialer, Incoming};
use crate::net::backend::resolver::Lookup;
use crate::net::backend::transport::TlsClient;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::{self, Role, SessionId};
use crate::net::gateway::{Gateway, LINGER};
use crate::session::{
    BackendClosed, BackendFailure, BackendStage, Core, DialRequest, DropReason, Encrypted, UdpPeer, Uplink,
};

/// Messages and bytes of text per dispatch: a chat server that sends without end must let others in.
const MESSAGE_BUDGET: usize = 32;
const TEXT_BYTES: usize = 256 * 1024;
/// Dials begun per dispatch: those that fail at once, thousands of them after an outage, take no place and end at no limit.
const DIALS: usize = 32;
/// Datagrams per dispatch.
const DATAGRAM_BUDGET: usize = 256;
/// A sealed datagram: header and the longest payload.
pub(in crate::net) const DATAGRAM_MAX: usize =
    crate::proto::audio::HEADER_LEN + crate::proto::audio::MAX_PAYLOAD;

impl Gateway {
    // ----- dialling -----------------------------------------------------------------------------------------------

    /// A core asks for a WebSocket: first the name, then a free place, then the connection.
    pub(in crate::net) fn dial(&mut self, id: SessionId, request: Box<DialRequest>) {
        self.drop_backend(id);
        self.metrics.dials += 1;
        let (host, port, fresh) = (request.server.host.clone(), request.server.port, request.skip_dns_cache);
        let Some(session) = self.sessions.live(id) else { return };
        session.backend = Some(Box::new(BackendConnection::new(request)));
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        match self.resolver.lookup(&host, port, ticket, fresh, self.now) {
            Lookup::Ready(addresses) => self.resolved(id, Ok(addresses)),
            Lookup::Failed(why) => self.resolved(id, Err(why)),
            Lookup::Pending => {
                self.tickets.insert(ticket, id);
                if let Some(backend) = self.sessions.live(id).and_then(|session| session.backend.as_mut()) {
                    backend.ticket = ticket;
                }
            }
        }
    }

    /// Hands out what the resolver has found out.
    pub(in crate::net) fn collect_resolved(&mut self) {
        let mut finished = std::mem::take(&mut self.resolved_names);
        self.resolver.take_finished(self.now, &mut finished);
        for (ticket, outcome) in finished.drain(..) {
            let Some(id) = self.tickets.remove(&ticket) else { continue };
            let waits = self.sessions.live(id).and_then(|session| session.backend.as_ref());
            if waits.is_some_and(|backend| backend.ticket == ticket && backend.is_resolving()) {
                self.resolved(id, outcome);
            }
        }
        self.resolved_names = finished;
    }

    /// Queues what comes next. Not now: a core may be in the middle of its actions, and one dial that fails at once leads to
    /// the next.
    fn resolved(&mut self, id: SessionId, outcome: Result<Vec<std::net::SocketAddr>, String>) {
        let Some(backend) = self.sessions.live(id).and_then(|session| session.backend.as_mut()) else {
            return;
        };
        match outcome {
            Ok(addresses) => {
                backend.resolved(addresses);
                self.dial_queue.push_back(id);
                self.run_queue.push(Task::StartDials);
            }
            Err(why) => {
                backend.unresolved(why);
                self.run_queue.push(Task::Backend(id));
            }
        }
    }

    /// Starts dials while there are free places, within the budget.
    pub(in crate::net) fn start_dials(&mut self) {
        for _ in 0..DIALS {
            if self.dialing >= self.config.websocket.max_dials {
                return;
            }
            let Some(id) = self.dial_queue.pop_front() else { return };
            let Some(session) = self.sessions.live(id) else { continue };
            let Some(backend) = session.backend.as_mut().filter(|backend| backend.is_queued()) else {
                continue;
            };
            if backend.holds_dial_slot {
                continue;
            }
            backend.holds_dial_slot = true;
            self.dialing += 1;
            session.core.on_backend_connecting();
            self.advance_dial(id, BackendConnection::connect);
        }
        self.run_queue.push(Task::StartDials);
    }

    /// Goes on with a dial after an event, or when an address took too long.
    pub(in crate::net) fn advance_dial(
        &mut self,
        id: SessionId,
        go_on: impl FnOnce(&mut BackendConnection, &mut Dialer<'_>) -> DialStep,
    ) {
        let Some(backend) = self.sessions.live(id).and_then(|session| session.backend.as_mut()) else {
            return;
        };
        let tls = match self.tls.client(backend.server(), &self.config.websocket) {
            Ok(tls) => tls,
            Err(why) => {
                return self.dial_failed(id, BackendFailure::new(BackendStage::Tls, why));
            }
        };
        let mut dialer = Dialer {
            registry: self.poll.registry(),
            token: token::token(Role::Backend, id.slot as usize),
            now: self.now,
            tls,
            secret: self.config.websocket.secret.as_ref(),
        };
        match go_on(backend, &mut dialer) {
            DialStep::Wait => self.arm_session_timer(id),
            DialStep::Failed(failure) => self.dial_failed(id, failure),
            DialStep::Opened => {
                self.metrics.dials_opened += 1;
                self.release_dial_slot(id);
                self.drive(id, Core::on_backend_open);
                // The first frames may be in a buffer already, and no edge will announce them.
                self.run_queue.push(Task::Backend(id));
            }
        }
    }

    fn dial_failed(&mut self, id: SessionId, failure: BackendFailure) {
        self.drop_backend(id);
        self.drive(id, |core, cx| core.on_backend_closed(BackendClosed::Failed(failure), cx));
    }

    /// The dial gives its place to the next.
    fn release_dial_slot(&mut self, id: SessionId) {
        if let Some(backend) = self.sessions.live(id).and_then(|session| session.backend.as_mut())
            && std::mem::take(&mut backend.holds_dial_slot)
        {
            self.dialing -= 1;
            self.run_queue.push(Task::StartDials);
        }
    }

    /// Drops the connection to the chat server, whatever its state.
    pub(in crate::net) fn drop_backend(&mut self, id: SessionId) {
        self.give_back_read_buffer(id);
        self.release_dial_slot(id);
        if let Some(session) = self.sessions.live(id) {
            session.backend = None;
        }
        self.account(id);
        self.reap_if_finished(id);
    }

    /// Closes the WebSocket properly: Close frame, then a moment for the server's answer, in a session of its own, so
    /// that this one is free for the next call.
    pub(in crate::net) fn close_backend(&mut self, id: SessionId, code: u16) {
        self.give_back_read_buffer(id);
        self.release_dial_slot(id);
        let Some(session) = self.sessions.live(id) else { return };
        let Some(mut backend) = session.backend.take() else { return };
        self.account(id);
        if !backend.is_open() {
            return self.reap_if_finished(id);
        }
        backend.close(CloseCode::from(code), &mut self.context_pool);
        let token = token::token(Role::Backend, self.sessions.next_slot());
        if backend.reregister(self.poll.registry(), token).is_ok() && backend.flush(&mut self.context_pool) {
            let mut core = Core::new(std::net::Ipv4Addr::UNSPECIFIED.into(), self.now);
            core.mark_closed();
            let rest = self.sessions.insert(core, None, Some(backend));
            if let Some(session) = self.sessions.live(rest) {
                session.linger_until = Some(Box::new(self.now + LINGER));
            }
            self.account(rest);
            self.arm_session_timer(rest);
        }
        self.reap_if_finished(id);
    }

    // ----- from the chat server -----------------------------------------------------------------------------------

    /// Goes on with the dial, or reads what has come, within the budget.
    pub(in crate::net) fn on_backend_ready(&mut self, id: SessionId, more: bool) {
        self.advance_dial_if_any(id);
        let chunk = &mut self.read_buffer;
        if let Some(backend) = self.sessions.live(id).and_then(|session| session.backend.as_mut()) {
            backend.borrow_read_buffer(chunk, more);
        }
        self.read_backend(id);
        self.give_back_read_buffer(id);
    }

    /// Whether this session's connection to its chat server can go on when it may write.
    pub(in crate::net) fn waits_to_write(&self, id: SessionId) -> bool {
        let backend = self.sessions.get(id).and_then(|session| session.backend.as_ref());
        backend.is_some_and(|backend| backend.waits_to_write())
    }

    /// The chunk comes home before its borrower goes elsewhere.
    fn give_back_read_buffer(&mut self, id: SessionId) {
        let chunk = &mut self.read_buffer;
        if let Some(backend) = self.sessions.live(id).and_then(|session| session.backend.as_mut()) {
            backend.give_back_read_buffer(chunk);
        }
    }

    fn read_backend(&mut self, id: SessionId) {
        let mut bytes = 0;
        for _ in 0..MESSAGE_BUDGET {
            if bytes > TEXT_BYTES {
                break;
            }
            let Some(backend) = self.sessions.live(id).and_then(|session| session.backend.as_mut()) else {
                return;
            };
            if !backend.is_open() {
                return;
            }
            match backend.read(&mut self.context_pool) {
                Incoming::Blocked => {
                    self.mark_dirty(id);
                    return self.arm_session_timer(id);
                }
                Incoming::OverBudget => break,
                Incoming::Audio(frame) => self.downlink(id, &frame),
                Incoming::Text(text) => {
                    bytes += text.len();
                    self.drive(id, |core, cx| core.on_backend_text(text.as_str(), cx));
                }
                Incoming::Alive => {
                    self.mark_dirty(id);
                    if let Some(session) = self.sessions.live(id) {
                        session.core.on_backend_activity(self.now);
                    }
                }
                Incoming::Gone(gone) => return self.backend_gone(id, gone),
            }
        }
        self.mark_dirty(id);
        self.run_queue.push(Task::Backend(id));
    }

    fn advance_dial_if_any(&mut self, id: SessionId) {
        let backend = self.sessions.live(id).and_then(|session| session.backend.as_ref());
        if backend.is_some_and(|backend| backend.is_dialling()) {
            self.advance_dial(id, BackendConnection::advance);
        }
    }

    pub(in crate::net) fn backend_gone(&mut self, id: SessionId, gone: BackendClosed) {
        // A Close frame of the server is answered; hanging up sends the answer and lingers for the connection's end.
        let lingers = self.sessions.get(id).is_some_and(|session| session.core.is_finished());
        match &gone {
            BackendClosed::CloseFrame(_) if lingers => return self.run_queue.push(Task::Backend(id)),
            BackendClosed::CloseFrame(_) => self.close_backend(id, 1000),
            BackendClosed::Failed(_) => self.drop_backend(id),
        }
        self.drive(id, |core, cx| core.on_backend_closed(gone, cx));
    }

    fn downlink(&mut self, id: SessionId, frame: &[u8]) {
        self.coalescer.count_downlink();
        let mut out = [0; DATAGRAM_MAX];
        let now = self.now;
        let Some(session) = self.sessions.live(id) else { return };
        match session.core.downlink(frame, &mut out, &self.config, &mut self.servers, now) {
            Ok(Some(sealed)) => self.queue_datagram(id, sealed, &out),
            Ok(None) => self.drive(id, Core::release_held),
            Err(discard) => self.metrics.discarded(discard),
        }
    }

    /// Queues one datagram for the end of the turn. Text that came before it leaves first, and before that the audio
    /// that came before the text: a `tts stop` in between must overtake neither.
    pub(in crate::net) fn queue_datagram(&mut self, id: SessionId, sealed: Encrypted, bytes: &[u8]) {
        let Some(session) = self.sessions.live(id) else { return };
        let ssrc = session.core.ssrc().unwrap_or_default();
        if session.mqtt.as_ref().is_some_and(|device| device.has_output()) && !self.flush_datagrams().blocked
        {
            self.flush_device(id);
        }
        match self.udp.queue(sealed.destination.addr, sealed.destination.local_ip, ssrc) {
            Some(buffer) => buffer.extend_from_slice(&bytes[..sealed.datagram_len]),
            None => self.metrics.discarded(DropReason::SocketFull),
        }
    }

    // ----- from the device ----------------------------------------------------------------------------------------

    /// Receives datagrams, within the budget.
    pub(in crate::net) fn drain_udp(&mut self) {
        let mut budget = DATAGRAM_BUDGET;
        while budget > 0 {
            let received = match self.udp.receive() {
                Ok(received) => received,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    log::error!("UDP socket: {error}");
                    return;
                }
            };
            for i in 0..received {
                self.uplink(i);
            }
            if received < crate::net::media::socket::BATCH {
                return;
            }
            budget = budget.saturating_sub(received);
        }
        self.run_queue.push(Task::Udp);
    }

    fn uplink(&mut self, i: usize) {
        let now = self.now;
        let (meta, datagram) = self.udp.datagram(i);
        self.metrics.datagrams_in += 1;
        self.coalescer.count_uplink();
        let outcome = match crate::net::media::socket::ssrc(datagram).and_then(|ssrc| self.index.call(ssrc)) {
            None => Err(DropReason::UnknownSsrc),
            Some(id) => match self.sessions.live(id) {
                None => Err(DropReason::UnknownSsrc),
                Some(session) => {
                    let from = UdpPeer { addr: meta.from, local_ip: meta.local };
                    match session.core.uplink(from, datagram, &self.config, now) {
                        Err(discard) => Err(discard),
                        Ok(Uplink::OtherDevice(payload)) => return self.relay(id, i, payload),
                        Ok(Uplink::Silence) => return self.answer_with_silence(id),
                        Ok(Uplink::Server { frame, payload, peer_learned: first }) => {
                            let backend = session.backend.as_mut();
                            let sent =
                                backend.map(|backend| backend.send_audio(frame, &mut self.context_pool));
                            if !matches!(sent, Some(Ok(()))) {
                                session.core.on_uplink_dropped(payload);
                                self.metrics.discarded(match sent {
                                    Some(_) => DropReason::ServerBlocked,
                                    None => DropReason::NoServer,
                                });
                            }
                            Ok((id, first))
                        }
                    }
                }
            },
        };
        match outcome {
            Ok((id, first)) => {
                self.mark_dirty(id);
                if first {
                    self.drive(id, Core::release_held);
                }
            }
            Err(discard) => {
                self.metrics.discarded(discard);
                self.udp_drops.discarded(meta.from.ip(), discard.label());
            }
        }
    }
}

/// TLS clients by what they trust; each loads its roots once, when first needed.
#[derive(Default)]
pub(in crate::net) struct TlsClients(
    std::collections::HashMap<(Option<std::path::PathBuf>, bool), TlsClient>,
);

impl TlsClients {
    /// The client for this server. CA files are read when first needed.
    ///
    /// # Errors
    /// Why the CA file cannot be read, in words.
    pub(in crate::net) fn client(
        &mut self,
        server: &crate::config::ChatServerConfig,
        defaults: &crate::config::WebSocket,
    ) -> Result<&mut TlsClient, String> {
        let ca_file = server.ca_file.as_ref().or(defaults.ca_file.as_ref()).filter(|_| server.tls);
        let key = (ca_file.cloned(), server.insecure.unwrap_or(defaults.insecure));
        match self.0.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let (ca_file, insecure) = entry.key();
                let pem = match ca_file {
                    Some(path) => {
                        Some(std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?)
                    }
                    None => None,
                };
                let client = TlsClient::new(pem, *insecure);
                Ok(entry.insert(client))
            }
        }
    }

    /// Forgets all, so that changed files are read again.
    pub(in crate::net) fn clear(&mut self) {
        self.0.clear();
    }
}
