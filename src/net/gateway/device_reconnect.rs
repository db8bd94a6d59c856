//! A device that reconnects during a call takes the call over.

use std::mem;
use std::net::IpAddr;

use log::Level;
use mio::Interest;

use crate::logger::log_about;
use crate::net::event_loop::token::{self, Role, SessionId};
use crate::net::gateway::Gateway;
use crate::session::Core;

impl Gateway {
    /// Moves the new connection to the older session, which keeps its call. Returns the older session, or none if that
    /// failed.
    pub(super) fn take_over(&mut self, id: SessionId, older: SessionId) -> Option<SessionId> {
        let now = self.io.now;
        let session = self.sessions.live(id)?;
        let mut connection = session.mqtt.take()?;
        let mut retired = Core::new(session.core.ip(), now);
        retired.mark_closed();
        let newer = mem::replace(&mut session.core, retired);
        self.sessions.reap_if_finished(id);
        self.cluster.remote_devices.forget(older);
        let token = token::token(Role::Device, older.slot as usize);
        let tcp = connection.transport.tcp_mut()?;
        if let Err(error) = self.io.registry.reregister(tcp, token, Interest::READABLE | Interest::WRITABLE) {
            let subject = self.sessions.log_subject(older);
            log_about!(Level::Error, subject, "cannot take over the device's new connection: {error}");
            return None;
        }
        if let Some(session) = self.sessions.live(older) {
            session.mqtt = Some(connection);
            session.set_linger_until(None);
        }
        self.watch_address(older, newer.ip());
        self.drive(older, |core, cx| core.take_over(newer, cx));
        Some(older)
    }

    /// The device of this call comes from another address from now on: dropped datagrams of that one are counted.
    pub(super) fn watch_address(&mut self, id: SessionId, ip: IpAddr) {
        let Some(session) = self.sessions.get(id) else { return };
        let core = &session.core;
        let slot = core.ssrc().and_then(|ssrc| self.sessions.index.call(ssrc));
        if !core.is_closed() && slot == Some(id.slot as usize) {
            self.audio.drops.forget(core.ip());
            self.audio.drops.watch(ip);
        }
    }
}
