//! `check` as a management request: on a thread of its own, since it blocks, and one at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::SystemTime;

use log::info;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::admin::response::Response;
use crate::admin::worker_answer::json_response;
use crate::clock::timestamp;
use crate::config::Config;
use crate::net::gateway::Gateway;

/// The check that runs, and the last report. The management API belongs to one worker, so this does too.
#[derive(Default)]
pub(crate) struct Checks {
    /// Tries a configuration, and returns the report as JSON; it blocks.
    checker: Option<fn(&Config) -> String>,
    state: Arc<Mutex<CheckState>>,
}

/// What `GET /api/check` answers.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct CheckState {
    running: bool,
    finished_at: Option<String>,
    report: Option<Box<RawValue>>,
}

/// The end of a check, however its thread ends.
struct Running(Arc<Mutex<CheckState>>);

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.0).running = false;
    }
}

/// The state is consistent after every change, so it can be used although a thread panicked.
fn lock(state: &Mutex<CheckState>) -> MutexGuard<'_, CheckState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gateway {
    /// What `POST /api/check` does; without it there is no such check. The program's is that of its sub-command `check`.
    pub fn set_checker(&mut self, checker: fn(&Config) -> String) {
        self.checks.checker = Some(checker);
    }

    pub(super) fn handle_show_check(&self) -> Response {
        json_response(&*lock(&self.checks.state))
    }

    /// Starts a check of the configuration in force, unless one runs already.
    pub(super) fn handle_start_check(&mut self) -> Response {
        let Some(checker) = self.checks.checker else {
            let why = "This gateway runs inside of another program, which has no check.";
            return Response::error(409, "no_check", why);
        };
        let state = Arc::clone(&self.checks.state);
        if std::mem::replace(&mut lock(&state).running, true) {
            return Response::json(202, r#"{"running":true}"#);
        }
        let (running, config) = (Running(Arc::clone(&state)), Arc::clone(&self.io.config));
        let started = thread::Builder::new().name("check".into()).spawn(move || {
            let _running = running;
            let report = RawValue::from_string(checker(&config)).ok();
            let mut state = lock(&state);
            (state.report, state.finished_at) = (report, Some(timestamp(SystemTime::now(), None)));
        });
        match started {
            Ok(_) => {
                info!("an operator has chat servers and settings checked");
                Response::json(202, r#"{"running":true}"#)
            }
            Err(error) => Response::error(500, "internal", &format!("The check cannot start: {error}.")),
        }
    }
}
