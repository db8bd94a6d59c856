//! Reload, drain and stop.

use std::sync::Arc;
use std::time::Duration;

use log::{error, info, warn};

use crate::admin::recent_errors::RecentErrorKind;
use crate::config::{self, Changes, Config};
use crate::logger;
use crate::net::gateway::device_calls::DeviceCalls;
use crate::net::gateway::file_watch::{self, FileWatch};
use crate::net::gateway::handle::Command;
use crate::net::gateway::{Gateway, TimerKind};
use crate::session::Core;

/// Devices without a call leave a draining gateway one after another over this time: all at once would storm the gateways
/// that take them.
const DRAIN_SPREAD: Duration = Duration::from_secs(5);

/// Why a reload changed nothing.
#[derive(Debug)]
pub(in crate::net) enum ReloadError {
    /// There is no configuration to read again.
    NoSource,
    /// It is not allowed: why.
    Refused(String),
}

impl Gateway {
    /// Lets the wheel ring for a look at the files that may change, unless it does.
    pub(in crate::net) fn watch_files(&mut self) {
        let any = self.file_watch.is_some() || self.tls_listener.is_some();
        if any && !std::mem::replace(&mut self.file_watch_armed, true) {
            self.timers.arm(self.now + file_watch::INTERVAL, TimerKind::CheckFiles);
        }
    }

    pub(in crate::net) fn check_files(&mut self) {
        if self.file_watch.as_mut().is_some_and(FileWatch::has_changed) {
            // What comes of it is in the log.
            let _ = self.reload_file();
        }
        self.check_certificate_files();
        self.timers.arm(self.now + file_watch::INTERVAL, TimerKind::CheckFiles);
    }

    pub(in crate::net) fn reload_file(&mut self) -> Result<Changes, ReloadError> {
        let Some(source) = &self.source else {
            info!("reload: there is no configuration file to read");
            return Err(ReloadError::NoSource);
        };
        self.sd_notify.reloading();
        let outcome = match source.load() {
            Ok(config) => self.reload(config),
            Err(error) => Err(self.reload_refused(error.to_string())),
        };
        self.sd_notify.reloaded();
        outcome
    }

    pub(in crate::net) fn reload(&mut self, new: Config) -> Result<Changes, ReloadError> {
        let changes = match config::check_reload(&self.config, &new) {
            Ok(changes) => changes,
            Err(error) => return Err(self.reload_refused(error.to_string())),
        };
        if let Err(error) = self.reload_tls(&new) {
            return Err(self.reload_refused(error.to_string()));
        }
        self.workers.broadcast(|| Command::Reload(Box::new(new.clone())));
        // Certificates may be new in files of the same name.
        self.tls.clear();
        if changes.is_empty() {
            if self.workers.is_leader() {
                info!("reload: nothing has changed");
            }
            return Ok(changes);
        }
        let new = new.after_reload(&self.config);
        if self.workers.is_leader() {
            self.log_reload(&new, &changes);
        }
        logger::set_level(new.log_level());
        self.config = Arc::new(new);
        self.recount_addresses();
        self.start_dials();
        // Limits that are deadlines of running calls.
        for id in self.sessions.ids() {
            self.drive(id, Core::on_timeout);
        }
        Ok(changes)
    }

    fn log_reload(&mut self, new: &Config, changes: &Changes) {
        for warning in new.warnings() {
            warn!("{warning}");
            self.admin.record_error(RecentErrorKind::SuspectSetting, None, &warning);
        }
        info!("reload: applied: {}; needs restart: {}", list(&changes.applied), list(&changes.needs_restart));
    }

    fn reload_refused(&mut self, why: String) -> ReloadError {
        error!("reload: nothing changes: {why}");
        self.admin.record_error(RecentErrorKind::ReloadRefused, None, &why);
        ReloadError::Refused(why)
    }

    pub(in crate::net) fn drain(&mut self) {
        if self.draining || self.is_stopping() {
            return;
        }
        self.draining = true;
        self.accepting = false;
        // Closed, not only deaf: the system would go on to take connections for us.
        (self.listener, self.tls_listener) = (None, None);
        if self.workers.is_leader() {
            info!(
                "draining: {} calls to finish; devices without one are disconnected within {} s",
                self.all_calls(),
                DRAIN_SPREAD.as_secs()
            );
        }
        self.workers.broadcast(|| Command::Drain);
        let ids = self.sessions.ids();
        let count = ids.len().max(1) as u32;
        for (place, id) in ids.into_iter().enumerate() {
            let leave_at = self.now + DRAIN_SPREAD * place as u32 / count;
            self.drive(id, |core, cx| core.drain(leave_at, cx));
        }
        self.notify_status();
    }

    pub(in crate::net) fn stop(&mut self, grace: Duration) {
        if self.stopping.is_some() {
            self.workers.broadcast(|| Command::Stop(grace));
            self.stopping = Some(self.now);
            return;
        }
        if self.workers.is_leader() {
            info!("stopping: {} calls, {} devices", self.all_calls(), self.all_devices());
        }
        self.workers.broadcast(|| Command::Stop(grace));
        self.sd_notify.stopping();
        self.stopping = Some(self.now + grace);
        self.timers.arm(self.now + grace, TimerKind::Stop);
        self.accepting = false;
        let doors = [self.listener.as_mut(), self.tls_listener.as_mut().map(|door| &mut door.listener)];
        for listener in doors.into_iter().flatten() {
            let _ = self.poll.registry().deregister(listener);
        }
        // Each device is told by its own end.
        self.device_calls = DeviceCalls::default();
        for id in self.sessions.ids() {
            self.drive(id, Core::shutdown);
        }
    }
}

fn list(keys: &[&str]) -> String {
    if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") }
}
