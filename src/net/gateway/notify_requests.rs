//! Sound and words for idle devices: `POST /api/notify/{clientId}`.
//!
//! The worker with the management API checks and keeps the sound, and serves it on the OTA port; the worker of the device writes
//! the message.

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use crate::admin::answer::Answer;
use crate::admin::error::ApiError;
use crate::admin::notify::NotifyRequest;
use crate::admin::notify_files::{FETCH_WAIT, NewFile};
use crate::admin::params::Members;
use crate::admin::response::Response;
use crate::admin::routes::Endpoint;
use crate::net::admin::pending::{AdminRequest, KeptSound};
use crate::net::event_loop::io::TimerKind;
use crate::net::gateway::Gateway;
use crate::net::gateway::admin_handlers::{bad_json, bad_parameter, delivered, not_connected};
use crate::net::gateway::handle::Command;
use crate::net::media::credentials;
use crate::proto::ogg_opus;

/// Where the OTA port serves sounds; a name and [`EXTENSION`] follow.
const PATH: &str = "/notify/";
const EXTENSION: &str = ".ogg";
/// The request id of messages that nobody waits for the answer of.
const NOBODY: u64 = 0;

impl Gateway {
    /// Checks and keeps the sound that is the body of `request`, for the device to fetch.
    ///
    /// # Errors
    /// A sound that devices do not play, parameters that are not allowed, no OTA port, or no room.
    pub(super) fn keep_sound(&mut self, request: &mut AdminRequest, bytes: Vec<u8>) -> Result<(), ApiError> {
        let wanted = NotifyRequest::parse_query(&request.query)
            .map_err(|bad| ApiError::new(400, "bad_parameter", format!("{bad}.")))?;
        let found = ogg_opus::check(&bytes).map_err(|bad| {
            ApiError::new(422, "bad_sound", format!("Devices do not play this file: {bad}."))
        })?;
        let Some(port) = self.ota_port() else {
            let why = "Devices fetch a sound from the OTA port, and there is none: set ota.enabled to true and restart.";
            return Err(ApiError::new(409, "ota_off", why));
        };
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|error| ApiError::new(500, "internal", format!("No random numbers: {error}.")))?;
        let id = HEXLOWER.encode(&random);
        let sound = KeptSound { id: id.clone(), port, length: bytes.len(), duration_ms: found.duration_ms };
        let (request_id, device) = (request.request_id, request.client_id.clone());
        let fallback = wanted.alert_message().filter(|_| wanted.falls_back);
        let has_fallback = fallback.is_some();
        let file = NewFile { id, request_id, device, bytes, found, fallback };
        if self.admin.notify_files.insert(file, self.io.now).is_err() {
            let why = "The sounds of the last 10 minutes that no device has fetched take up all room (32 MiB, 4096 files).";
            return Err(ApiError::new(503, "no_room", why));
        }
        if has_fallback {
            self.io.timers.arm(self.io.now + FETCH_WAIT, TimerKind::NotifyFallback);
        }
        request.sound = Some(sound);
        Ok(())
    }

    /// Sends the device its message. The answer always goes through the pending request, which forgets the sound of a device that
    /// was not told of it.
    pub(super) fn handle_notify(&mut self, request: &AdminRequest) {
        let response = self.notify(request).unwrap_or_else(|refusal| refusal);
        self.send_admin_response(request.request_id, Answer::Response(response));
    }

    fn notify(&mut self, request: &AdminRequest) -> Result<Response, Response> {
        let wanted = match &request.sound {
            Some(_) => NotifyRequest::parse_query(&request.query),
            None => NotifyRequest::parse(&Members::of_body(&request.body).map_err(|_| bad_json())?),
        };
        let wanted = wanted.map_err(|bad| bad_parameter(&bad))?;
        let device = self.find_device(&request.client_id).ok_or_else(not_connected)?;
        let session = self.sessions.get(device).ok_or_else(not_connected)?;
        let in_call = session.core.has_call();
        let local = session.mqtt.as_ref().and_then(|connection| connection.local_ip());
        let mut answer = json!({ "clientId": self.client_id_of(device), "inCall": in_call });
        let url = match &request.sound {
            Some(sound) => {
                let host = credentials::udp_host(&self.io.config.udp, local).ok_or_else(no_address)?;
                let KeptSound { id, port, length, duration_ms } = sound;
                answer["id"] = Value::from(id.as_str());
                answer["bytes"] = Value::from(*length);
                answer["durationMs"] = Value::from(*duration_ms);
                Some(format!("http://{host}:{port}{PATH}{id}{EXTENSION}"))
            }
            None => wanted.audio_url.clone(),
        };
        let message = match &url {
            Some(url) => Some(wanted.notify_message(url)),
            None => wanted.alert_message(),
        };
        let delivery = self.deliver_message(device, &message.unwrap_or_default());
        let (status, delivery) = delivered(delivery).ok_or_else(not_connected)?;
        answer["delivery"] = Value::from(delivery);
        answer["message"] = Value::from(if url.is_some() { "notify" } else { "alert" });
        answer["audioUrl"] = Value::from(url);
        Ok(Response::json(status, answer.to_string()))
    }

    /// Sends the text to the devices that have not fetched their sound in time.
    pub(super) fn on_notify_timer(&mut self) {
        for (client_id, body) in self.admin.notify_files.take_fallbacks(self.io.now) {
            let (query, sound) = (String::new(), None);
            let request = AdminRequest {
                request_id: NOBODY,
                endpoint: Endpoint::Message,
                client_id,
                query,
                body,
                sound,
            };
            match request.device_mac().and_then(|mac| self.workers.other_worker_of(mac)) {
                Some(owner) => self.workers.send(owner, Command::AdminRequest(Box::new(request))),
                None => _ = self.handle_admin_request(&request),
            }
        }
    }

    /// The port from which devices fetch sounds.
    fn ota_port(&self) -> Option<u16> {
        None
    }
}

fn no_address() -> Response {
    Response::error(500, "no_address", "There is no IPv4 address to tell the device: set udp.public_ip.")
}
