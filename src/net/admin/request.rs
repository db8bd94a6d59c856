//! A request and its answers in the form in which workers exchange them.

use crate::admin::dto;
use crate::admin::params::{BadParameter, query_number};
use crate::admin::routes::Endpoint;
use crate::admin::worker_answer::Answer;
use crate::proto::identity::{ClientId, Mac};

/// Devices on a page: the maximum and the default.
pub(crate) const MAX_PAGE_SIZE: usize = 1000;
/// The largest cursor: every JSON parser reads it without loss.
pub(crate) const MAX_CURSOR: u64 = (1 << 53) - 1;

/// A request in a form that any worker can handle.
#[derive(Clone)]
pub(crate) struct AdminRequest {
    /// Identifies the connection that waits for the answer.
    pub(crate) request_id: u64,
    pub(crate) endpoint: Endpoint,
    /// The client id, or another id, in the path; empty without one.
    pub(crate) client_id: String,
    pub(crate) query: String,
    /// Whether the client accepts a body in the format of gzip.
    pub(crate) accepts_gzip: bool,
    /// Empty when the body is a sound.
    pub(crate) body: String,
    pub(crate) sound: Option<KeptSound>,
    /// The gateway, by its run id, to which the device is connected that is to be called; `None` when it is this one.
    pub(crate) target_gateway: Option<u64>,
}

/// A sound that the worker with the management API keeps for a device.
#[derive(Clone)]
pub(crate) struct KeptSound {
    /// Its name in the path.
    pub(crate) id: String,
    /// The port from which the device fetches it.
    pub(crate) port: u16,
    /// In bytes.
    pub(crate) length: usize,
    pub(crate) duration_ms: u64,
}

/// A worker's answer.
pub(crate) struct AdminResponse {
    pub(crate) request_id: u64,
    pub(crate) worker: usize,
    pub(crate) answer: Answer,
}

/// The answers of workers to one request.
pub(crate) struct Answers(Vec<Option<Answer>>);

impl Answers {
    /// Of all of so many workers; 0 for the one answer of any worker.
    pub(crate) fn of_workers(workers: usize) -> Self {
        Self((0..workers).map(|_| None).collect())
    }

    /// Adds one. The answer to the request when it was the last.
    pub(crate) fn add(&mut self, response: AdminResponse) -> Option<Answer> {
        if self.0.is_empty() {
            return Some(response.answer);
        }
        *self.0.get_mut(response.worker)? = Some(response.answer);
        if self.0.iter().any(Option::is_none) {
            return None;
        }
        Answer::merge(self.0.drain(..).flatten(), first_cursor)
    }
}

impl AdminRequest {
    /// Without a body.
    pub(crate) fn new(request_id: u64, endpoint: Endpoint, client_id: String, query: String) -> Self {
        Self {
            request_id,
            endpoint,
            client_id,
            query,
            accepts_gzip: false,
            body: String::new(),
            sound: None,
            target_gateway: None,
        }
    }

    /// The MAC of the device that it concerns, if it is valid.
    pub(crate) fn device_mac(&self) -> Option<Mac> {
        match self.endpoint {
            Endpoint::CallRequest => dto::CallRequest::parse(&self.body).ok().map(|request| request.caller),
            Endpoint::CallAccept | Endpoint::CallHangUp => dto::parse_call_mac(&self.body).ok(),
            _ => {
                let client_id = ClientId::parse(&self.client_id).map(|client_id| client_id.mac());
                client_id.or_else(|_| self.client_id.parse()).ok()
            }
        }
    }
}

/// The cursor and the length of the requested page.
pub(crate) fn parse_page_query(query: &str) -> Result<(u64, usize), BadParameter> {
    let limit = query_number(query, "limit", MAX_PAGE_SIZE as u64, (1, MAX_PAGE_SIZE as u64))?;
    Ok((query_number(query, "after", 0, (0, MAX_CURSOR))?, limit as usize))
}

/// The cursor of a worker's first slot.
pub(crate) fn first_cursor(worker: usize) -> u64 {
    (worker as u64) << 32
}
