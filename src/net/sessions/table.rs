//! The session table: all sessions by slot, their indexes, and the lists of those to be flushed or freed at the end of an iteration.

use std::hint::black_box;
use std::mem;
use std::net::SocketAddr;

use slab::Slab;

use crate::net::backend::connection::BackendConnection;
use crate::net::event_loop::io::{Io, TimerKind};
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::timer_wheel::Armed;
use crate::net::event_loop::token::SessionId;
use crate::net::log_subject::LogSubject;
use crate::net::mqtt::connection::MqttConnection;
use crate::net::sessions::index::Index;
use crate::net::sessions::memory_budget::MemoryBudget;
use crate::net::sessions::session::Session;
use crate::proto::identity::{ClientId, Mac};
use crate::session::Core;
use crate::text;

/// All sessions. The epoch of a [`SessionId`] tells whether its session still exists.
#[derive(Default)]
pub(crate) struct Sessions {
    slab: Slab<Session>,
    epoch: u32,
    /// The sessions that are only a chat server's WebSocket, which is closing.
    lingering: usize,
    pub(crate) index: Index,
    pub(crate) memory: MemoryBudget,
    /// Sessions with something to write at the end of the iteration.
    dirty: Vec<SessionId>,
    /// Sessions that may be finished, to be freed at the end of the iteration.
    closing: Vec<SessionId>,
}

impl Sessions {
    pub(crate) fn insert(
        &mut self,
        core: Core,
        mqtt: Option<MqttConnection>,
        backend: Option<Box<BackendConnection>>,
    ) -> SessionId {
        self.epoch = self.epoch.wrapping_add(1);
        let epoch = self.epoch;
        let lingering = backend.is_some();
        self.lingering += usize::from(lingering);
        let session = Session {
            epoch,
            core,
            mqtt,
            backend,
            rare: None,
            armed: Armed::NOT,
            dirty: false,
            closing: false,
            lingering,
            #[cfg(feature = "cluster")]
            connection_number: 0,
            accounted_bytes: 0,
        };
        SessionId { slot: self.slab.insert(session) as u32, epoch }
    }

    /// The slot of the next session, for its token.
    pub(crate) fn next_slot(&self) -> usize {
        self.slab.vacant_key()
    }

    /// The id of the session in this slot.
    pub(crate) fn at(&self, slot: usize) -> Option<SessionId> {
        self.slab.get(slot).map(|session| SessionId { slot: slot as u32, epoch: session.epoch })
    }

    /// The session with this id, if it still exists.
    pub(crate) fn live(&mut self, id: SessionId) -> Option<&mut Session> {
        live(&mut self.slab, id)
    }

    pub(crate) fn get(&self, id: SessionId) -> Option<&Session> {
        self.slab.get(id.slot as usize).filter(|session| session.epoch == id.epoch)
    }

    /// The session of the call with this ssrc.
    pub(crate) fn by_ssrc(&mut self, ssrc: u32) -> Option<(SessionId, &mut Session)> {
        let slot = self.index.call(ssrc)?;
        let session = self.slab.get_mut(slot).filter(|session| session.core.ssrc() == Some(ssrc))?;
        Some((SessionId { slot: slot as u32, epoch: session.epoch }, session))
    }

    /// Reads what packets of the calls of the sessions in these slots need: see [`Core::touch`].
    pub(crate) fn touch(&self, slots: impl Iterator<Item = usize> + Clone) {
        for session in slots.clone().filter_map(|slot| self.slab.get(slot)) {
            black_box((session.mqtt.is_some(), session.backend.is_some(), session.armed, session.dirty));
            black_box(session.core.is_online());
        }
        for session in slots.filter_map(|slot| self.slab.get(slot)) {
            session.core.touch();
            if let Some(backend) = &session.backend {
                backend.touch();
            }
        }
    }

    /// The core of the session with this id, if it still exists.
    pub(crate) fn core(&self, id: SessionId) -> Option<&Core> {
        self.get(id).map(|session| &session.core)
    }

    /// The device's connection, if there is one.
    pub(crate) fn mqtt(&mut self, id: SessionId) -> Option<&mut MqttConnection> {
        self.live(id)?.mqtt.as_mut()
    }

    /// The connection to the chat server, if there is one.
    pub(crate) fn backend(&mut self, id: SessionId) -> Option<&mut BackendConnection> {
        self.live(id)?.backend.as_deref_mut()
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    /// The sessions without the WebSockets that are closing: those do not count against the limits of devices.
    pub(crate) fn without_lingering(&self) -> usize {
        self.slab.len() - self.lingering
    }

    pub(crate) fn ids(&self) -> Vec<SessionId> {
        let id = |(slot, session): (usize, &Session)| SessionId { slot: slot as u32, epoch: session.epoch };
        self.slab.iter().map(id).collect()
    }

    /// The sessions in this slot and the later ones, with their slots.
    pub(crate) fn starting_at(&self, slot: usize) -> impl Iterator<Item = (usize, &Session)> {
        let occupied = |slot| self.slab.get(slot).map(|session| (slot, session));
        (slot..self.slab.capacity()).filter_map(occupied)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.slab.iter_mut().map(|(_, session)| session)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.slab.iter().map(|(_, session)| session)
    }

    /// Whether nothing but a connection that is closing is left of this session.
    pub(crate) fn is_closing(&self, id: SessionId) -> bool {
        self.get(id).is_some_and(|session| {
            session.mqtt.as_ref().is_some_and(|connection| connection.closing)
                && session.backend.is_none()
                && session.core.is_finished()
        })
    }

    /// Returns the memory that only a peak needed.
    pub(crate) fn shrink(&mut self) {
        self.slab.shrink_to_fit();
        self.index.shrink();
    }

    // ----- lookup -------------------------------------------------------------------------------------------------

    /// The session with exactly this client id.
    pub(crate) fn by_client_id(&self, client_id: &ClientId) -> Option<SessionId> {
        self.by_mac(client_id.mac()).find(|id| self.client_id(*id).is_some_and(|found| found == client_id))
    }

    /// The sessions of a client id, else of the MAC in it, else of a plain MAC: a client id changes with the device's group, so
    /// operators may use an old one.
    pub(crate) fn all_by_name(&self, name: &str) -> Vec<SessionId> {
        let client_id = ClientId::parse(name);
        if let Some(exact) = client_id.as_ref().ok().and_then(|client_id| self.by_client_id(client_id)) {
            return vec![exact];
        }
        let mac = client_id.map(|client_id| client_id.mac()).or_else(|_| name.parse());
        mac.map_or_else(|_| Vec::new(), |mac| self.by_mac(mac).collect())
    }

    /// Of [these sessions](Self::all_by_name) the one that proved who it is, of several the latest.
    pub(crate) fn by_name(&self, name: &str) -> Option<SessionId> {
        let rank = |id: &SessionId| {
            self.get(*id).map(|session| (session.core.is_proven(), session.core.online_since()))
        };
        self.all_by_name(name).into_iter().max_by_key(rank)
    }

    /// All sessions with this MAC.
    pub(crate) fn by_mac(&self, mac: Mac) -> impl Iterator<Item = SessionId> {
        let has_mac = move |id: &SessionId| self.client_id(*id).is_some_and(|found| found.mac() == mac);
        self.index.candidates(mac).filter_map(|slot| self.at(slot)).filter(has_mac)
    }

    pub(crate) fn client_id(&self, id: SessionId) -> Option<&ClientId> {
        self.core(id)?.client_id()
    }

    /// Who all log lines about this session are about.
    pub(crate) fn log_subject(&self, id: SessionId) -> LogSubject {
        let Some(session) = self.get(id) else { return LogSubject::default() };
        let address = session.mqtt.as_ref().map(|mqtt| SocketAddr::new(session.core.ip(), mqtt.peer_port));
        LogSubject {
            device: session.core.client_id().map(|client_id| text::shown(&client_id.text()).into_owned()),
            address: address.map(|address| address.to_string()),
            session: session.core.logged_session_id().map(|session_id| text::shown(session_id).into_owned()),
        }
    }

    // ----- timers, flushing, freeing ------------------------------------------------------------------------------

    /// Makes sure that a timer expires at this session's next deadline.
    pub(crate) fn arm_timer(&mut self, id: SessionId, io: &mut Io) {
        let Some(session) = self.live(id) else { return };
        let Some(deadline) = session.deadline() else { return };
        io.timers.arm_by(&mut session.armed, deadline, TimerKind::Session(id));
    }

    /// Puts the session on the list to be flushed at the end of the iteration.
    pub(crate) fn mark_dirty(&mut self, id: SessionId) {
        if let Some(session) = self.live(id)
            && !mem::replace(&mut session.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    /// How many sessions are on this list.
    pub(crate) fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// Calls `visit` for those on the list that came behind so many others. They stay on it.
    pub(crate) fn visit_dirty(&mut self, behind: usize, mut visit: impl FnMut(SessionId, &mut Session)) {
        for id in self.dirty.iter().skip(behind) {
            if let Some(session) = live(&mut self.slab, *id) {
                visit(*id, session);
            }
        }
    }

    /// The sessions on that list.
    #[cfg(feature = "cluster")]
    pub(crate) fn dirty(&self) -> impl Iterator<Item = SessionId> {
        self.dirty.iter().copied()
    }

    /// Calls `flush` for each dirty session. Those for which it returns false stay on the list for the next iteration.
    pub(crate) fn flush_dirty(&mut self, mut flush: impl FnMut(&mut Self, SessionId) -> bool) {
        let mut dirty = mem::take(&mut self.dirty);
        dirty.retain(|id| !flush(self, *id));
        dirty.append(&mut self.dirty);
        self.dirty = dirty;
    }

    /// Puts the session on the list to be freed at the end of the iteration, if it is finished.
    pub(crate) fn reap_if_finished(&mut self, id: SessionId) {
        if let Some(session) = self.live(id)
            && session.is_finished()
            && !mem::replace(&mut session.closing, true)
        {
            self.closing.push(id);
        }
    }

    /// Frees the slots of finished sessions.
    pub(crate) fn reap(&mut self) {
        while let Some(id) = self.closing.pop() {
            let Some(session) = live(&mut self.slab, id) else { continue };
            session.closing = false;
            if session.is_finished() {
                let bytes = session.accounted_bytes;
                self.lingering -= usize::from(session.lingering);
                self.slab.remove(id.slot as usize);
                self.memory.release(bytes);
            }
        }
    }

    // ----- memory -------------------------------------------------------------------------------------------------

    /// The session, and how many bytes of audio may still wait for its device.
    pub(crate) fn with_room(&mut self, id: SessionId) -> Option<(&mut Session, usize)> {
        let session = live(&mut self.slab, id)?;
        let room = self.memory.room(session);
        Some((session, room))
    }

    /// Accounts for the bytes that this session buffers. If they exceed its share, it is dealt with in the next iteration.
    pub(crate) fn account(&mut self, id: SessionId, io: &mut Io) {
        let Some(session) = live(&mut self.slab, id) else { return };
        let before = session.accounted_bytes;
        if !self.memory.account(session) && session.accounted_bytes > before {
            io.run_queue.push(Task::OverBudget(id));
        }
    }

    /// Accounts again, and returns whether this session still exceeds its share.
    pub(crate) fn is_over_budget(&mut self, id: SessionId) -> bool {
        live(&mut self.slab, id).is_some_and(|session| !self.memory.account(session))
    }

    // ----- the device's connection --------------------------------------------------------------------------------

    /// Drops the device's connection.
    pub(crate) fn drop_mqtt(&mut self, id: SessionId, io: &mut Io) {
        if let Some(session) = self.live(id)
            && let Some(mqtt) = session.mqtt.take()
        {
            session.set_linger_until(None);
            io.metrics.tls_failed += u64::from(mqtt.transport.is_in_tls_handshake());
        }
        self.reap_if_finished(id);
    }
}

/// Borrows only the slab, so that the other fields stay usable.
fn live(slab: &mut Slab<Session>, id: SessionId) -> Option<&mut Session> {
    slab.get_mut(id.slot as usize).filter(|session| session.epoch == id.epoch)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn insert(sessions: &mut Sessions, io: &Io) -> SessionId {
        sessions.insert(Core::new(Ipv4Addr::LOCALHOST.into(), io.now), None, None)
    }

    #[test]
    fn a_finished_session_is_freed_at_the_end_and_its_id_never_names_another() {
        let (mut sessions, io) = (Sessions::default(), Io::for_test());
        let id = insert(&mut sessions, &io);
        sessions.reap_if_finished(id);
        sessions.live(id).unwrap().core.mark_closed();
        sessions.reap();
        assert_eq!(sessions.len(), 1, "it was not finished");
        sessions.reap_if_finished(id);
        assert!(sessions.get(id).is_some(), "until the end of the iteration");
        sessions.reap();
        assert!(sessions.get(id).is_none());
        let next = insert(&mut sessions, &io);
        assert_eq!((next.slot, sessions.at(next.slot as usize)), (id.slot, Some(next)));
        assert!(sessions.get(id).is_none() && sessions.live(id).is_none());
    }

    #[test]
    fn a_dirty_session_is_listed_once_and_stays_until_it_is_flushed() {
        let (mut sessions, io) = (Sessions::default(), Io::for_test());
        let [a, b] = [(); 2].map(|()| insert(&mut sessions, &io));
        for id in [a, b, a] {
            sessions.mark_dirty(id);
        }
        let mut seen = Vec::new();
        sessions.flush_dirty(|sessions, id| {
            seen.push(id);
            let flushed = id == a;
            sessions.live(id).unwrap().dirty = !flushed;
            flushed
        });
        assert_eq!(seen, [a, b]);
        sessions.mark_dirty(b);
        seen.clear();
        sessions.flush_dirty(|_, id| {
            seen.push(id);
            true
        });
        assert_eq!(seen, [b]);
    }

    #[test]
    fn an_entry_of_a_call_that_is_gone_finds_no_session() {
        let (mut sessions, io) = (Sessions::default(), Io::for_test());
        let id = insert(&mut sessions, &io);
        sessions.index.add_call(7, id);
        assert_eq!(sessions.index.call(7), Some(id.slot as usize));
        assert!(sessions.by_ssrc(7).is_none(), "no call has this ssrc");
    }

    #[test]
    fn a_timer_is_armed_for_the_earliest_deadline_only() {
        let (mut sessions, mut io) = (Sessions::default(), Io::for_test());
        let id = insert(&mut sessions, &io);
        sessions.arm_timer(id, &mut io);
        let armed = io.timers.next();
        assert_ne!(armed, None, "the time limit for CONNECT");
        sessions.live(id).unwrap().set_linger_until(Some(io.now));
        sessions.arm_timer(id, &mut io);
        assert!(io.timers.next().is_some_and(|at| Some(at) < armed));
    }
}
