//! Sound and words for idle devices: `POST /api/notify/{clientId}`.
//!
//! The worker with the management API checks and keeps the sound, and serves it on the OTA port; the worker of the device writes
//! the message.

use std::net::{IpAddr, Ipv4Addr};

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use crate::admin::error::{ApiError, ErrorStyle};
use crate::admin::http::{Method, RequestHead};
use crate::admin::notify::NotifyRequest;
use crate::admin::notify_files::{FETCH_WAIT, NewFile};
use crate::admin::params::Members;
use crate::admin::response::Response;
use crate::admin::routes::Endpoint;
use crate::net::admin::request::{AdminRequest, KeptSound};
use crate::net::event_loop::io::TimerKind;
use crate::net::event_loop::token::OtaId;
use crate::net::gateway::Gateway;
use crate::net::gateway::admin_handlers::{bad_parameter, delivered, not_connected};
use crate::net::media::credentials::local_address;
use crate::net::metrics::OtaOutcome;
use crate::net::ota::message::OtaResponse;
use crate::proto::ogg_opus;

/// Where the OTA port serves sounds; a name and [`EXTENSION`] follow.
const PATH: &str = "/notify/";
const EXTENSION: &str = ".ogg";
/// The request id of messages that nobody waits for the answer of.
pub(super) const NOBODY: u64 = 0;

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
        let Some(port) = self.addresses.ota.map(|ota| ota.port()) else {
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
        let file = NewFile { id, request_id, device, bytes: bytes.into(), found, fallback };
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

    /// Sends the device its message.
    ///
    /// # Errors
    /// The response that says why not.
    pub(super) fn notify(&mut self, request: &AdminRequest) -> Result<Response, Response> {
        let wanted = match &request.sound {
            Some(_) => NotifyRequest::parse_query(&request.query),
            None => {
                let members = Members::of_body(&request.body);
                NotifyRequest::parse(&members.map_err(|_| no_sound().response(ErrorStyle::Coded))?)
            }
        };
        let wanted = wanted.map_err(bad_parameter)?;
        let device = self.find_device(&request.client_id).ok_or_else(not_connected)?;
        let session = self.sessions.get(device).ok_or_else(not_connected)?;
        let in_call = session.core.has_call();
        let local = session.mqtt.as_ref().and_then(|connection| connection.local_ip());
        let mut answer = json!({ "clientId": self.client_id_of(device), "inCall": in_call });
        let url = match &request.sound {
            Some(sound) => {
                let host = self.sound_host(local).ok_or_else(no_address)?;
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

    /// The host at which a device reaches the OTA port, when its MQTT connection has reached this local address.
    fn sound_host(&self, local: Option<IpAddr>) -> Option<String> {
        let local = local.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let host = self.io.config.ota_endpoint(None, local).map(|(host, _)| host);
        host.or_else(|| Some(local_address()?.to_string()))
    }

    /// Sends the text to the devices that have not fetched their sound in time.
    pub(super) fn on_notify_timer(&mut self) {
        for (client_id, body) in self.admin.notify_files.take_fallbacks(self.io.now) {
            let query = String::new();
            let request =
                AdminRequest { body, ..AdminRequest::new(NOBODY, Endpoint::Message, client_id, query) };
            self.hand_to_workers(request);
        }
    }

    /// Answers a request for a sound; `None` when it is for something else. Whoever knows the name may fetch it: the device, which was
    /// told it, may be in any network.
    pub(super) fn answer_sound(
        &mut self,
        id: OtaId,
        head: &RequestHead,
    ) -> Option<(OtaOutcome, OtaResponse)> {
        let name = head.path.strip_prefix(PATH)?;
        if head.method != Method::GET {
            return Some((OtaOutcome::Invalid, OtaResponse::error(405, "A sound is fetched with GET.")));
        }
        let name = name.strip_suffix(EXTENSION).unwrap_or_default();
        if let Some(body) = self.admin.notify_files.fetch(name, self.io.now) {
            return Some((OtaOutcome::Sound, OtaResponse { status: 200, content_type: "audio/ogg", body }));
        }
        let (ip, _) = self.ota.addresses(id)?;
        Some(match self.ota.may_ask(ip, self.io.now) {
            true => (OtaOutcome::Invalid, OtaResponse::error(404, "There is no such sound any more.")),
            false => (OtaOutcome::Limited, OtaResponse::error(429, "This address has asked too often.")),
        })
    }
}

/// The body of a request is no sound that devices know, and no JSON.
pub(super) fn no_sound() -> ApiError {
    let why = "The body is neither a JSON object nor an Ogg file, which begins with OggS; devices play Ogg Opus only.";
    ApiError::new(400, "bad_json", why)
}

pub(super) fn no_address() -> Response {
    Response::error(500, "no_address", "There is no IPv4 address to tell the device: set ota.endpoint.")
}
