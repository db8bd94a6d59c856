//! Reload and stop, and which of them is in progress.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{Level, info, warn};

use crate::admin::event::Event;
use crate::admin::recent_errors::RecentErrorKind;
use crate::config::{self, Changes, Config, Source};
use crate::logger;
use crate::net::event_loop::io::{Io, TimerKind};
use crate::net::file_watch::{self, FileWatch};
use crate::net::gateway::Gateway;
use crate::net::gateway::device_calls::DeviceCalls;
use crate::net::gateway::drain::Drain;
use crate::net::mqtt::watched_certificate::{CertificateProblems, WatchedCertificate};
use crate::session::Core;

/// Why a reload changed nothing.
#[derive(Debug)]
pub(crate) enum ReloadError {
    /// The gateway was started without a configuration file.
    NoSource,
    /// The new configuration cannot be used, for this reason.
    Refused(String),
}

/// What the gateway is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    Draining,
    Stopping,
}

impl Phase {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
        }
    }
}

/// Where the configuration comes from, and whether the gateway drains or stops.
pub(crate) struct Lifecycle {
    source: Option<Source>,
    config_watch: Option<FileWatch>,
    /// The timer that checks files is armed.
    watch_armed: bool,
    drain: Option<Drain>,
    /// Until when a stop waits for unwritten data.
    stop_deadline: Option<Instant>,
}

impl Lifecycle {
    pub(crate) fn new(source: Option<Source>) -> Self {
        let path = source.as_ref().and_then(|source| source.path());
        let config_watch = path.map(|path| FileWatch::new(path.to_owned()));
        Self { source, config_watch, watch_armed: false, drain: None, stop_deadline: None }
    }

    pub(crate) fn phase(&self) -> Phase {
        match (self.stop_deadline, self.drain.is_some()) {
            (Some(_), _) => Phase::Stopping,
            (None, true) => Phase::Draining,
            (None, false) => Phase::Serving,
        }
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.phase() == Phase::Serving
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.phase() == Phase::Stopping
    }

    /// Whether a drain has begun, even if a stop followed it.
    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    pub(crate) fn drain(&self) -> Option<&Drain> {
        self.drain.as_ref()
    }

    pub(crate) fn drain_mut(&mut self) -> Option<&mut Drain> {
        self.drain.as_mut()
    }

    pub(crate) fn stop_deadline(&self) -> Option<Instant> {
        self.stop_deadline
    }

    /// False when the gateway already drains or stops.
    pub(crate) fn begin_drain(&mut self, now: Instant) -> bool {
        let begins = self.is_serving();
        if begins {
            self.drain = Some(Drain::new(now));
        }
        begins
    }

    /// The first stop waits `grace` for unwritten data; a second one ends the wait, and returns false.
    fn begin_stop(&mut self, grace: Duration, io: &mut Io) -> bool {
        if self.is_stopping() {
            self.stop_deadline = Some(io.now);
            return false;
        }
        self.stop_deadline = Some(io.now + grace);
        io.timers.arm(io.now + grace, TimerKind::Stop);
        true
    }

    /// Another process has the configuration file now.
    #[cfg(target_os = "linux")]
    pub(crate) fn forget_config_file(&mut self) {
        self.config_watch = None;
    }

    /// Arms the timer that checks for changed files, once, if there are files to watch.
    fn watch_files(&mut self, has_certificate: bool, io: &mut Io) {
        if (self.config_watch.is_some() || has_certificate) && !mem::replace(&mut self.watch_armed, true) {
            io.timers.arm(io.now + file_watch::INTERVAL, TimerKind::CheckFiles);
        }
    }

    /// Whether the configuration file has changed. Arms the timer for the next check.
    fn check_config_file(&mut self, io: &mut Io) -> bool {
        io.timers.arm(io.now + file_watch::INTERVAL, TimerKind::CheckFiles);
        self.config_watch.as_mut().is_some_and(FileWatch::has_changed)
    }
}

impl Gateway {
    pub(super) fn watch_files(&mut self) {
        let has_certificate = self.mqtt.certificate.is_some() || self.admin.certificate.is_some();
        self.lifecycle.watch_files(has_certificate, &mut self.io);
    }

    pub(super) fn check_files(&mut self) {
        if self.lifecycle.check_config_file(&mut self.io) {
            // The outcome is in the log.
            let _ = self.reload_file();
        }
        self.check_certificates();
        let certificates = [&mut self.mqtt.certificate, &mut self.admin.certificate].into_iter().flatten();
        let problems = certificates.flat_map(WatchedCertificate::check_files).collect();
        self.record_certificate_problems(problems);
    }

    pub(super) fn reload_file(&mut self) -> Result<Changes, ReloadError> {
        if self.upgrades.is_replaced() {
            // The configuration is another process's now.
            return Err(ReloadError::NoSource);
        }
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

    /// What a reload of the file would change.
    pub(super) fn preview_reload(&self) -> Result<Changes, ReloadError> {
        let source = self.lifecycle.source.as_ref().ok_or(ReloadError::NoSource)?;
        let config = source.load().map_err(|error| ReloadError::Refused(error.to_string()))?;
        config::check_reload(&self.io.config, &config)
            .map_err(|error| ReloadError::Refused(error.to_string()))
    }

    pub(super) fn reload(&mut self, new: Config) -> Result<Changes, ReloadError> {
        let changes = match config::check_reload(&self.io.config, &new) {
            Ok(changes) => changes,
            Err(error) => return Err(self.reload_refused(error.to_string())),
        };
        let api_certificate = match self.admin.load_certificate(Some(&self.io.config.api), &new.api) {
            Ok(loaded) => loaded,
            Err(error) => return Err(self.reload_refused(error.to_string())),
        };
        if self.lifecycle.is_serving() {
            match self.mqtt.reload_tls(&new, !self.workers.is_single(), &self.io) {
                Ok(problems) => self.record_certificate_problems(problems),
                Err(error) => return Err(self.reload_refused(error.to_string())),
            }
        }
        let problems = self.admin.set_certificate(&new.api, api_certificate);
        self.record_certificate_problems(problems);
        self.watch_files();
        let same = new.clone();
        self.workers.broadcast(move |worker| _ = worker.reload(same));
        // The certificates in files of the same name may have changed.
        self.connector.forget_tls_clients();
        self.ota.forget_tls_clients();
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
        logger::configure(&new);
        self.io.config = Arc::new(new);
        self.poll_health();
        self.configure_webhooks();
        self.cluster.client.on_reload(&self.io.config);
        let limited = self.io.config.mqtt.max_connections_per_ip > 0;
        self.mqtt.recount(&mut self.sessions, limited);
        self.start_dials();
        for id in self.sessions.ids() {
            self.drive(id, Core::on_reload);
        }
        Ok(changes)
    }

    fn log_reload(&mut self, new: &Config, changes: &Changes) {
        for warning in new.warnings() {
            warn!("{warning}");
            self.admin.record_error(RecentErrorKind::SuspectSetting, None, &warning);
        }
        self.publish_event(Level::Info, &Event::config_reloaded(changes));
    }

    pub(super) fn record_certificate_problems(&mut self, problems: CertificateProblems) {
        for problem in problems {
            self.admin.record_error(RecentErrorKind::SuspectSetting, None, &problem);
        }
    }

    fn reload_refused(&mut self, why: String) -> ReloadError {
        self.publish_event(Level::Error, &Event::config_refused(&why));
        self.admin.record_error(RecentErrorKind::ReloadRefused, None, &why);
        ReloadError::Refused(why)
    }

    pub(super) fn stop(&mut self, grace: Duration) {
        self.workers.broadcast(move |worker| worker.stop(grace));
        if !self.lifecycle.begin_stop(grace, &mut self.io) {
            return;
        }
        if self.workers.is_leader() {
            info!("stopping: {} calls, {} devices", self.all_calls(), self.all_devices());
        }
        self.sd_notify.stopping();
        self.mqtt.pause(&self.io.registry);
        // The shutdown ends these calls like all others: each device gets its own goodbye.
        self.device_calls = DeviceCalls::default();
        for id in self.sessions.ids() {
            self.drive(id, Core::shutdown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(3);

    #[test]
    fn a_drain_begins_once_and_a_stop_follows_it() {
        let (mut lifecycle, mut io) = (Lifecycle::new(None), Io::for_test());
        assert_eq!(lifecycle.phase(), Phase::Serving);
        assert!(lifecycle.begin_drain(io.now));
        assert!(!lifecycle.begin_drain(io.now));
        assert_eq!(lifecycle.phase(), Phase::Draining);
        assert!(lifecycle.begin_stop(GRACE, &mut io));
        assert_eq!((lifecycle.phase(), lifecycle.is_draining()), (Phase::Stopping, true));
    }

    #[test]
    fn a_second_stop_ends_the_grace_of_the_first() {
        let (mut lifecycle, mut io) = (Lifecycle::new(None), Io::for_test());
        assert!(lifecycle.begin_stop(GRACE, &mut io));
        assert_eq!(lifecycle.stop_deadline(), Some(io.now + GRACE));
        assert!(!lifecycle.begin_drain(io.now));
        io.now += Duration::from_secs(1);
        assert!(!lifecycle.begin_stop(GRACE, &mut io));
        assert_eq!(lifecycle.stop_deadline(), Some(io.now));
    }

    #[test]
    fn without_files_to_watch_there_is_no_timer() {
        let (mut lifecycle, mut io) = (Lifecycle::new(None), Io::for_test());
        lifecycle.watch_files(false, &mut io);
        assert_eq!(io.timers.next(), None);
        lifecycle.watch_files(true, &mut io);
        assert!(io.timers.next().is_some());
        assert!(!lifecycle.check_config_file(&mut io));
    }
}
