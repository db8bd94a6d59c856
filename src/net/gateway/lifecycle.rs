//! Reload, drain and stop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, warn};

use crate::admin::recent_errors::RecentErrorKind;
use crate::config::{self, Changes, Config, Source};
use crate::logger;
use crate::net::event_loop::io::TimerKind;
use crate::net::file_watch::{self, FileWatch};
use crate::net::gateway::Gateway;
use crate::net::gateway::device_calls::DeviceCalls;
use crate::net::gateway::handle::Command;
use crate::net::mqtt::tls_listener::CertificateProblems;
use crate::session::Core;

/// Devices without a call leave a draining gateway one after another over this time: all at once would overload the gateways
/// that they connect to.
const DRAIN_SPREAD: Duration = Duration::from_secs(5);

/// Why a reload changed nothing.
#[derive(Debug)]
pub(crate) enum ReloadError {
    /// There is no configuration to read again.
    NoSource,
    /// It is not allowed: why.
    Refused(String),
}

/// Where the configuration comes from, and whether the gateway drains or stops.
pub(crate) struct Lifecycle {
    source: Option<Source>,
    config_watch: Option<FileWatch>,
    /// The timer for checking files is armed.
    watch_armed: bool,
    draining: bool,
    /// When a stop gives up on what is not yet written.
    stop_deadline: Option<Instant>,
}

impl Lifecycle {
    pub(crate) fn new(source: Option<Source>) -> Self {
        let path = source.as_ref().and_then(|source| source.path());
        let config_watch = path.map(|path| FileWatch::new(path.to_owned()));
        Self { source, config_watch, watch_armed: false, draining: false, stop_deadline: None }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop_deadline.is_some()
    }

    pub(crate) fn stop_deadline(&self) -> Option<Instant> {
        self.stop_deadline
    }
}

impl Gateway {
    /// Arms the timer that checks for changed files, where there are any to watch.
    pub(crate) fn watch_files(&mut self) {
        let any = self.lifecycle.config_watch.is_some() || self.mqtt.tls.is_some();
        if any && !std::mem::replace(&mut self.lifecycle.watch_armed, true) {
            self.io.timers.arm(self.io.now + file_watch::INTERVAL, TimerKind::CheckFiles);
        }
    }

    pub(crate) fn check_files(&mut self) {
        if self.lifecycle.config_watch.as_mut().is_some_and(FileWatch::has_changed) {
            // What comes of it is in the log.
            let _ = self.reload_file();
        }
        let problems = self.mqtt.check_certificate_files(&self.io);
        self.record_certificate_problems(problems);
        self.io.timers.arm(self.io.now + file_watch::INTERVAL, TimerKind::CheckFiles);
    }

    pub(crate) fn reload_file(&mut self) -> Result<Changes, ReloadError> {
        let Some(source) = &self.lifecycle.source else {
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

    pub(crate) fn reload(&mut self, new: Config) -> Result<Changes, ReloadError> {
        let changes = match config::check_reload(&self.io.config, &new) {
            Ok(changes) => changes,
            Err(error) => return Err(self.reload_refused(error.to_string())),
        };
        if !self.lifecycle.draining && !self.lifecycle.is_stopping() {
            match self.mqtt.reload_tls(&new, !self.workers.is_single(), &self.io) {
                Ok(problems) => self.record_certificate_problems(problems),
                Err(error) => return Err(self.reload_refused(error.to_string())),
            }
            self.watch_files();
        }
        self.workers.broadcast(|| Command::Reload(Box::new(new.clone())));
        // Certificates may be new in files of the same name.
        self.connector.forget_tls_clients();
        if changes.is_empty() {
            if self.workers.is_leader() {
                info!("reload: nothing has changed");
            }
            return Ok(changes);
        }
        let new = new.after_reload(&self.io.config);
        if self.workers.is_leader() {
            self.log_reload(&new, &changes);
        }
        logger::set_level(new.log_level());
        self.io.config = Arc::new(new);
        let limited = self.io.config.mqtt.max_connections_per_ip > 0;
        self.mqtt.recount(&mut self.sessions, limited);
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

    pub(super) fn record_certificate_problems(&mut self, problems: CertificateProblems) {
        for problem in problems {
            self.admin.record_error(RecentErrorKind::SuspectSetting, None, &problem);
        }
    }

    fn reload_refused(&mut self, why: String) -> ReloadError {
        error!("reload: nothing changes: {why}");
        self.admin.record_error(RecentErrorKind::ReloadRefused, None, &why);
        ReloadError::Refused(why)
    }

    pub(crate) fn drain(&mut self) {
        if self.lifecycle.draining || self.lifecycle.is_stopping() {
            return;
        }
        self.lifecycle.draining = true;
        // Without closing its ports, the system would go on to accept connections for us.
        self.mqtt.close();
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
            let leave_at = self.io.now + DRAIN_SPREAD * place as u32 / count;
            self.drive(id, |core, cx| core.drain(leave_at, cx));
        }
        self.notify_status();
    }

    pub(crate) fn stop(&mut self, grace: Duration) {
        if self.lifecycle.is_stopping() {
            self.workers.broadcast(|| Command::Stop(grace));
            self.lifecycle.stop_deadline = Some(self.io.now);
            return;
        }
        if self.workers.is_leader() {
            info!("stopping: {} calls, {} devices", self.all_calls(), self.all_devices());
        }
        self.workers.broadcast(|| Command::Stop(grace));
        self.sd_notify.stopping();
        self.lifecycle.stop_deadline = Some(self.io.now + grace);
        self.io.timers.arm(self.io.now + grace, TimerKind::Stop);
        self.mqtt.pause(&self.io.registry);
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
