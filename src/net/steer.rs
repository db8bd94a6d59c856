//! Reload and stop.

use std::sync::Arc;
use std::time::Duration;

use log::{error, info, warn};

use super::gateway::{Alarm, Gateway};
use super::watch::{self, Watch};
use crate::config::{self, Config};
use crate::logger;
use crate::session::Core;

impl Gateway {
    pub(super) fn look_at_file(&mut self) {
        if self.watch.as_mut().is_some_and(Watch::look) {
            self.reload_file();
        }
        self.wheel.arm(self.now + watch::INTERVAL, Alarm::Watch);
    }

    pub(super) fn reload_file(&mut self) {
        let Some(source) = &self.source else {
            return info!("reload: there is no configuration file to read");
        };
        match source.load() {
            Ok(config) => self.reload(config),
            Err(error) => error!("reload: nothing changes: {error}"),
        }
    }

    pub(super) fn reload(&mut self, new: Config) {
        let changes = match config::check_reload(&self.config, &new) {
            Ok(changes) => changes,
            Err(error) => return error!("reload: nothing changes: {error}"),
        };
        if changes.is_empty() {
            return info!("reload: nothing has changed");
        }
        let new = new.after_reload(&self.config);
        for warning in new.warnings() {
            warn!("{warning}");
        }
        logger::set_level(new.log_level());
        self.config = Arc::new(new);
        self.tls.clear();
        self.recount();
        info!("reload: applied: {}; needs restart: {}", list(&changes.applied), list(&changes.needs_restart));
        self.start_dials();
        // Limits that are deadlines of running calls.
        for id in self.sessions.ids() {
            self.drive(id, Core::timeout);
        }
    }

    pub(super) fn stop(&mut self, grace: Duration) {
        if self.stopping.is_some() {
            self.stopping = Some(self.now);
            return;
        }
        info!("stopping: {} calls, {} devices", self.index.calls(), self.index.devices());
        self.stopping = Some(self.now + grace);
        self.wheel.arm(self.now + grace, Alarm::Stop);
        self.accepting = false;
        let _ = self.poll.registry().deregister(&mut self.listener);
        for id in self.sessions.ids() {
            self.drive(id, Core::shutdown);
        }
    }
}

fn list(keys: &[&str]) -> String {
    if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") }
}
