//! The first minute of the gateway: devices that are still in a call of an earlier process are made to end it.

use std::net::IpAddr;
use std::time::Instant;

use log::Level;

use crate::logger::log_about;
use crate::net::event_loop::io::TimerKind;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::sessions::table::Sessions;
use crate::proto::identity::Mac;
use crate::session::{Core, RestartRecovery};

/// The device's sessions without a call.
fn idle_sessions(sessions: &Sessions, mac: Mac) -> impl Iterator<Item = (SessionId, &Core)> {
    let core = |id| Some((id, sessions.core(id)?));
    sessions.by_mac(mac).filter_map(core).filter(|(_, core)| core.is_idle())
}

/// The one that is connected from this address.
fn idle_session(sessions: &Sessions, ip: IpAddr, mac: Mac) -> Option<(SessionId, &Core)> {
    idle_sessions(sessions, mac).find(|(_, core)| core.ip() == ip)
}

impl Gateway {
    /// The device has logged in.
    pub(super) fn judge_silence_later(&mut self, id: SessionId) {
        let Some(restart) = &mut self.restart else { return };
        let Some(core) = self.sessions.core(id).filter(|core| !core.has_call()) else { return };
        let Some(mac) = core.client_id().map(|client_id| client_id.mac()) else { return };
        if let Some(at) = restart.on_connected(core.ip(), mac, self.io.now) {
            self.io.timers.arm(at, TimerKind::Restart);
        }
    }

    /// The `i`th datagram of the batch has the ssrc of no call.
    pub(super) fn on_unknown_datagram(&mut self, i: usize) {
        let Some(restart) = &mut self.restart else { return };
        let (info, datagram) = self.audio.socket.datagram(i);
        let ip = info.from.ip();
        let is_idle = |mac| idle_session(&self.sessions, ip, mac).is_some();
        if let Some(mac) = restart.on_unknown_datagram(ip, datagram, self.io.now, is_idle)
            && let Some((id, _)) = idle_session(&self.sessions, ip, mac)
        {
            log_about!(
                Level::Info,
                self.sessions.log_subject(id),
                "sends audio of a call that this gateway does not know: it is told to end it"
            );
            self.drive(id, |core, cx| core.leave_unknown_call(true, cx));
        }
    }

    /// Another gateway has ended, and devices that may be in a call of it connect here: for a while it is as if this one had started.
    #[cfg(feature = "cluster")]
    pub(super) fn recover_calls_of_others(&mut self) {
        if !self.lifecycle.is_draining() {
            self.restart.get_or_insert_with(|| RestartRecovery::new(self.io.now)).extend(self.io.now);
            self.io.timers.arm(self.io.now + RestartRecovery::WINDOW, TimerKind::Restart);
        }
    }

    pub(super) fn on_restart_timer(&mut self) {
        let now = self.io.now;
        if self.lifecycle.is_draining() {
            self.restart = None;
        }
        let silent = |sessions: &Sessions, mac, since: Instant| {
            let mut cores = idle_sessions(sessions, mac).map(|(_, core)| core);
            cores.find(|core| core.has_said_nothing_since(since)).map(Core::ip)
        };
        while let Some(restart) = &mut self.restart
            && let Some((ip, mac)) = restart.take_silent(now, |mac, since| silent(&self.sessions, mac, since))
        {
            let Some((id, _)) = idle_session(&self.sessions, ip, mac) else { continue };
            log_about!(
                Level::Debug,
                self.sessions.log_subject(id),
                "may be in a call that this gateway does not know"
            );
            self.drive(id, |core, cx| core.leave_unknown_call(false, cx));
        }
        self.restart.take_if(|restart| restart.is_over(now));
        if let Some(at) = self.restart.as_ref().and_then(RestartRecovery::next_silent_at) {
            self.io.timers.arm(at, TimerKind::Restart);
        }
    }
}
