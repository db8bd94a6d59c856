//! Handles the requests of the management API.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::sync::MutexGuard;
use std::time::Duration;

use log::{Level, info};
use serde_json::json;
use serde_json::value::to_raw_value;

use crate::admin::call_history::{CallHistory, CallQuery};
use crate::admin::dashboard;
use crate::admin::dto::{self, DeviceStatus, DisconnectRequest, McpCommand};
use crate::admin::params::{BadParameter, Members, query_flag, query_number, query_value};
use crate::admin::prometheus::MetricFamilies;
use crate::admin::response::{JSON, Response};
use crate::admin::routes::{Endpoint, MAX_DRAIN_SECONDS, Reach};
use crate::admin::worker_answer::{Answer, Disconnected, json_response};
use crate::compressed_texts;
use crate::logger::{self, log_about};
use crate::net::admin::collect::MetricSources;
use crate::net::admin::request::{AdminRequest, MAX_CURSOR, first_cursor, parse_page_query};
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::gateway::lifecycle::{Phase, ReloadError};
use crate::net::sessions::session::Session;
use crate::proto::identity::ClientId;
use crate::proto::message::{self, Reader};
use crate::session::{AcceptOutcome, CommandError, Delivery, DeviceCallTable, LoginKey};

/// The message types that an operator may send to a device. Others are reserved for the gateway and the chat server.
const MESSAGE_TYPES: [&str; 4] = ["alert", "system", "custom", "notify"];

impl Gateway {
    /// None: the answer follows later, by [`send_admin_response`](Self::send_admin_response).
    pub(super) fn handle_admin_request(&mut self, request: &AdminRequest) -> Option<Answer> {
        if request.endpoint.reach() == Reach::Device
            && !self.disconnects(request)
            && let Some(gateway) = self.gateway_with_call_of(request)
        {
            return Some(Answer::AtGateway(gateway));
        }
        let is_absent = request.endpoint.reach() == Reach::Device && !self.has_device_of(request);
        let refused = |response| Some(Answer::Response(response));
        let answer = self.answer_admin_request(request).unwrap_or_else(refused)?;
        Some(match answer {
            // Other errors are the client's, wherever the device is.
            Answer::Response(response) if is_absent && !matches!(response.status, 400 | 422) => {
                Answer::NotHere(response)
            }
            answer => answer,
        })
    }

    /// None: the answer follows later.
    fn answer_admin_request(&mut self, request: &AdminRequest) -> Result<Option<Answer>, Response> {
        let AdminRequest { request_id, endpoint, client_id, query, body, .. } = request;
        Ok(Some(Answer::Response(match endpoint {
            Endpoint::Metrics => return Ok(Some(Answer::Metrics(self.collect_metrics()))),
            Endpoint::DevicesStatus => return self.handle_devices_status(body).map(Some),
            Endpoint::Disconnect => return self.handle_disconnect(body).map(Some),
            Endpoint::Sessions => return self.handle_list_sessions(query).map(Some),
            Endpoint::Health => Response::json(200, r#"{"status":"ok"}"#),
            Endpoint::Ready => self.handle_ready(),
            Endpoint::OpenApi => Response::packed(JSON, &compressed_texts::OPENAPI, request.accepts_gzip),
            Endpoint::Command => {
                let response = self.handle_command(*request_id, client_id, body)?;
                return Ok(response.map(Answer::Response));
            }
            Endpoint::CommandResult => self.admin.command_results.response(client_id, self.io.now),
            Endpoint::CallRequest => return self.handle_call_request(request).map(|()| None),
            Endpoint::CallAccept => return self.handle_call_accept(*request_id, body).map(|()| None),
            Endpoint::CallHangUp => self.handle_call_hang_up(body)?,
            Endpoint::Message => self.handle_message(client_id, body)?,
            Endpoint::Messages => return self.handle_broadcast(*request_id, body),
            Endpoint::Notify => self.notify(request)?,
            Endpoint::NotifyState => self.admin.notify_files.response(client_id, self.io.now),
            Endpoint::Calls => self.handle_list_calls(query)?,
            Endpoint::Call => self.handle_show_call(client_id)?,
            Endpoint::Session => self.handle_show_session(client_id)?,
            Endpoint::EndSession => self.handle_end_session(client_id, query)?,
            Endpoint::Servers => return Ok(Some(self.handle_servers())),
            Endpoint::Gateways => self.handle_gateways(),
            Endpoint::Denied => self.handle_list_denied(),
            Endpoint::Deny => return self.handle_deny(client_id, true).map(Some),
            Endpoint::Allow => return self.handle_deny(client_id, false).map(Some),
            Endpoint::Credentials => self.handle_credentials(body)?,
            Endpoint::Check => self.handle_start_check(),
            Endpoint::CheckReport => self.handle_show_check(),
            Endpoint::Reload => self.handle_reload(query)?,
            // Is no request with one answer: see `start_event_stream`.
            Endpoint::Events => return Ok(None),
            Endpoint::Drain => self.handle_drain(query)?,
            Endpoint::Log => handle_log(query)?,
            Endpoint::Errors => Response::json(200, self.admin.recent_errors().to_json()),
            Endpoint::Dashboard => {
                Response::packed(dashboard::CONTENT_TYPE, &compressed_texts::DASHBOARD, request.accepts_gzip)
                    .with_header("Content-Security-Policy", dashboard::content_security_policy())
            }
            Endpoint::Catalogue => Response::packed(
                "text/plain; charset=utf-8",
                &compressed_texts::CHINESE,
                request.accepts_gzip,
            ),
            Endpoint::Config => Response::json(200, self.io.config.to_masked_file_text()),
        })))
    }

    fn handle_ready(&self) -> Response {
        let (code, status) = match self.lifecycle.phase() {
            Phase::Serving if self.mqtt.is_accepting() => (200, "ready"),
            Phase::Serving => (503, "exhausted"),
            Phase::Draining => return Response { status: 503, ..json_response(&self.drain_status()) },
            Phase::Stopping => (503, Phase::Stopping.label()),
        };
        Response::json(code, format!(r#"{{"status":"{status}"}}"#))
    }

    /// The present device with this client id or MAC.
    pub(super) fn find_device(&self, name: &str) -> Option<SessionId> {
        let found = self.sessions.by_name(name)?;
        self.sessions.core(found).is_some_and(|core| core.is_present()).then_some(found)
    }

    /// Whether it closes the connection of a device, which the gateway with the connection does.
    fn disconnects(&self, request: &AdminRequest) -> bool {
        request.endpoint == Endpoint::EndSession && query_flag(&request.query, "disconnect") == Ok(true)
    }

    /// Whether this worker has the device that the request is about.
    fn has_device_of(&self, request: &AdminRequest) -> bool {
        match request.endpoint {
            Endpoint::CallRequest | Endpoint::CallAccept | Endpoint::CallHangUp => {
                request.device_mac().is_some_and(|mac| self.sessions.by_mac(mac).next().is_some())
            }
            _ => self.find_device(&request.client_id).is_some(),
        }
    }

    pub(super) fn client_id_of(&self, id: SessionId) -> Cow<'_, str> {
        self.sessions.client_id(id).map(ClientId::text).unwrap_or_default()
    }

    fn collect_metrics(&self) -> MetricFamilies {
        let sources = MetricSources {
            sessions: &self.sessions,
            io: &self.io,
            mqtt: &self.mqtt,
            connector: &self.connector,
            audio: &self.audio,
            admin: &self.admin,
            webhooks: &self.webhooks,
            #[cfg(feature = "cluster")]
            cluster: &self.cluster.client,
            #[cfg(feature = "cluster")]
            passed: self.cluster.passed(),
            draining: self.lifecycle.is_draining(),
            history: &self.history,
            worker: self.workers.index(),
            workers: self.workers.len().max(1),
        };
        sources.collect()
    }

    // ----- requests that the Node.js gateway had ------------------------------------------------------------------

    fn handle_command(
        &mut self,
        request_id: u64,
        client_id: &str,
        body: &str,
    ) -> Result<Option<Response>, Response> {
        let command = McpCommand::parse(body).map_err(|error| dto::command_error(400, &error))?;
        let not_connected = || dto::command_response(&Err(CommandError::NotConnected), request_id);
        let device = self.find_device(client_id).ok_or_else(not_connected)?;
        let Some(command) = command else {
            return self.handle_message_command(request_id, device, body).map(Some);
        };
        self.drive(device, |core, cx| core.send_command(request_id, &command.method, &command.params, cx));
        Ok(None)
    }

    /// A device has answered a command, or the command has failed.
    pub(crate) fn on_command_result(
        &mut self,
        request_id: u64,
        result: &Result<Box<str>, CommandError>,
        answer: fn(Response) -> Answer,
    ) {
        self.send_admin_response(request_id, answer(dto::command_response(result, request_id)));
    }

    /// A message in the form of a command, which some consoles send.
    fn handle_message_command(
        &mut self,
        request_id: u64,
        device: SessionId,
        body: &str,
    ) -> Result<Response, Response> {
        let members = Members::of_body(body).ok();
        let Some(members) = members.filter(|members| check_message_type(members, body).is_ok()) else {
            let error = r#"指令类型无效: a command is {"type":"mcp","payload":{"method":..}}; alert, system, custom and notify are messages (POST /api/messages/{clientId}), and taken here too"#;
            return Err(dto::command_error(500, error));
        };
        let bad = |bad: BadParameter| dto::command_error(400, &bad.to_string());
        members.string("session_id", "a string").map_err(bad)?;
        let not_connected = || dto::command_response(&Err(CommandError::NotConnected), request_id);
        let (_, delivery) = delivered(self.deliver_message(device, body)).ok_or_else(not_connected)?;
        let data = json!({ "delivery": delivery });
        Ok(Response::json(200, json!({ "success": true, "data": data }).to_string()))
    }

    fn handle_devices_status(&self, body: &str) -> Result<Answer, Response> {
        let names = dto::parse_status_ids(body).map_err(|error| bad_body(&error))?;
        let status = |name: &str| {
            let session = self.find_device(name).and_then(|id| self.sessions.get(id));
            match session.map(|session| session.core.has_call()) {
                Some(in_call) => DeviceStatus { is_alive: in_call.then_some(true), exists: true, in_call },
                None => DeviceStatus { is_alive: Some(false), exists: false, in_call: false },
            }
        };
        let all = names.into_iter().map(|name| (name.clone(), status(&name))).collect();
        Ok(Answer::DevicesStatus(all))
    }

    fn handle_call_request(&mut self, request: &AdminRequest) -> Result<(), Response> {
        let call = dto::CallRequest::parse(&request.body).map_err(|error| bad_body(&error))?;
        if !self.has_device_of(request) {
            let outcome = DeviceCallTable::absent_caller(call.caller, call.target);
            return Err(Response::json(200, dto::call_request_body(outcome, None)));
        }
        self.request_device_call(request, &call);
        Ok(())
    }

    fn handle_call_accept(&mut self, request_id: u64, body: &str) -> Result<(), Response> {
        let mac = dto::parse_call_mac(body).map_err(|error| bad_body(&error))?;
        if self.sessions.by_mac(mac).next().is_none() {
            return Err(Response::json(200, dto::call_accept_body(AcceptOutcome::NoIncomingCall, None)));
        }
        self.accept_device_call(request_id, mac);
        Ok(())
    }

    fn handle_call_hang_up(&mut self, body: &str) -> Result<Response, Response> {
        let bad_mac = |error| Response::error(400, "bad_mac", &format!("{error}."));
        let mac = dto::parse_call_mac(body).map_err(bad_mac)?;
        match self.hang_up_device_call(mac) {
            true => Ok(Response::json(200, r#"{"status":"ended"}"#)),
            false => {
                Err(Response::error(409, "no_call", "The device neither talks to another one nor rings."))
            }
        }
    }

    // ----- devices ------------------------------------------------------------------------------------------------

    fn handle_message(&mut self, client_id: &str, body: &str) -> Result<Response, Response> {
        let members = Members::of_body(body).map_err(|_| bad_json())?;
        check_message_type(&members, body).map_err(bad_type)?;
        members.string("session_id", "a string").map_err(bad_parameter)?;
        let device = self.find_device(client_id).ok_or_else(not_connected)?;
        let (status, delivery) = delivered(self.deliver_message(device, body)).ok_or_else(not_connected)?;
        let client_id = self.client_id_of(device);
        Ok(Response::json(status, json!({ "clientId": client_id, "delivery": delivery }).to_string()))
    }

    /// Sends a device a message.
    pub(super) fn deliver_message(&mut self, device: SessionId, message: &str) -> Delivery {
        let mut delivery = Delivery::NotConnected;
        self.drive(device, |core, cx| delivery = core.send_message(message.trim_ascii(), cx));
        delivery
    }

    fn handle_list_sessions(&self, query: &str) -> Result<Answer, Response> {
        let (after, limit) = parse_page_query(query).map_err(bad_parameter)?;
        let own_cursor = first_cursor(self.workers.index());
        // A cursor of an earlier worker selects all sessions of this one, a cursor of a later worker none.
        let first_slot = match after.checked_sub(own_cursor) {
            None => 0,
            Some(slot) if slot < first_cursor(1) => slot as usize,
            Some(_) => usize::MAX,
        };
        let mut page = dto::SessionPage {
            devices: self.sessions.index.devices().saturating_sub(self.cluster.remote_calls.len()),
            calls: self.sessions.index.calls(),
            draining: self.lifecycle.is_draining(),
            next: None,
            sessions: Vec::new(),
        };
        let (worker, config) = (self.workers.index(), &self.io.config);
        let current_key = config.mqtt.key_fingerprint();
        for (slot, session) in self.sessions.starting_at(first_slot) {
            if self.sessions.at(slot).is_some_and(|id| self.cluster.remote_calls.contains(id)) {
                continue;
            }
            let Some(view) = dto::session_dto(&session.core, worker, config, current_key, self.io.now) else {
                continue;
            };
            if page.sessions.len() == limit {
                page.next = Some(own_cursor + slot as u64);
                break;
            }
            page.sessions.extend(to_raw_value(&view));
        }
        Ok(Answer::Sessions { page, limit })
    }

    fn handle_show_session(&self, client_id: &str) -> Result<Response, Response> {
        let session = self.find_device(client_id).and_then(|id| self.sessions.get(id));
        let Session { core, .. } = session.ok_or_else(not_connected)?;
        let (worker, config) = (self.workers.index(), &self.io.config);
        let view = dto::session_dto(core, worker, config, config.mqtt.key_fingerprint(), self.io.now);
        Ok(json_response(&view.ok_or_else(not_connected)?))
    }

    fn handle_list_calls(&self, query: &str) -> Result<Response, Response> {
        let query = CallQuery::parse(query, self.history.wall_clock()).map_err(bad_parameter)?;
        let page = self.kept_calls()?.page(&query);
        Ok(json_response(&page.to_json()))
    }

    fn handle_show_call(&self, id: &str) -> Result<Response, Response> {
        let calls = self.kept_calls()?;
        let call = id.parse().ok().and_then(|id| calls.get(id));
        drop(calls);
        let no_such_call =
            || Response::error(404, "no_such_call", "No call that has ended with this id is kept.");
        Ok(json_response(&*call.ok_or_else(no_such_call)?))
    }

    fn kept_calls(&self) -> Result<MutexGuard<'_, CallHistory>, Response> {
        let calls = self.history.calls();
        match calls.is_off() {
            false => Ok(calls),
            true => {
                let why = "Calls that have ended are not kept: history.calls is 0.";
                Err(Response::error(409, "history_off", why))
            }
        }
    }

    fn handle_end_session(&mut self, client_id: &str, query: &str) -> Result<Response, Response> {
        let disconnect = query_flag(query, "disconnect").map_err(bad_parameter)?;
        let device = self.find_device(client_id).ok_or_else(not_connected)?;
        let hung_up = self.sessions.core(device).is_some_and(|core| core.has_call());
        if !hung_up && !disconnect {
            let why = "The device is in no call; ?disconnect=true ends its connection.";
            return Err(Response::error(409, "no_call", why));
        }
        let client_id = self.client_id_of(device).into_owned();
        let what = if disconnect { "disconnected" } else { "hung up" };
        log_about!(Level::Info, self.sessions.log_subject(device), "{what} by an operator");
        self.drive(device, |core, cx| match disconnect {
            true => core.operator_disconnect(cx),
            false => {
                core.operator_hang_up(cx);
            }
        });
        let done = json!({ "clientId": client_id, "hungUp": hung_up, "disconnected": disconnect });
        Ok(Response::json(200, done.to_string()))
    }

    /// The devices are only counted here: each gets its goodbye and is disconnected as soon as audio leaves time for it.
    fn handle_disconnect(&mut self, body: &str) -> Result<Answer, Response> {
        let members = Members::of_body(body).map_err(|_| bad_json())?;
        let request = DisconnectRequest::parse(&members).map_err(bad_parameter)?;
        let only_previous_key = request == DisconnectRequest::PreviousKey;
        let (mut chosen, mut not_connected) = (HashSet::new(), BTreeSet::new());
        match request {
            DisconnectRequest::All | DisconnectRequest::PreviousKey => chosen.extend(self.sessions.ids()),
            DisconnectRequest::Named(names) => {
                for name in names {
                    let found = self.sessions.all_by_name(&name);
                    if found.is_empty() {
                        not_connected.insert(name);
                    }
                    chosen.extend(found);
                }
            }
        }
        let current_key = self.io.config.mqtt.key_fingerprint();
        // The gateway that a device is connected to disconnects it.
        chosen.retain(|id| !self.cluster.remote_devices.is_attached(*id));
        chosen.retain(|id| {
            self.sessions.core(*id).is_some_and(|core| {
                core.is_present() && (!only_previous_key || core.login_key(current_key) == LoginKey::Previous)
            })
        });
        if !chosen.is_empty() {
            info!("{} devices are disconnected by an operator", chosen.len());
        }
        let disconnected = chosen.len();
        chosen.into_iter().for_each(|id| self.io.run_queue.push(Task::Disconnect(id)));
        Ok(Answer::Disconnected(Disconnected { disconnected, not_connected }))
    }

    // ----- the gateway --------------------------------------------------------------------------------------------

    fn handle_drain(&mut self, query: &str) -> Result<Response, Response> {
        // Nothing is given for 0, which is not allowed.
        let within = query_number(query, "within", 0, (1, MAX_DRAIN_SECONDS)).map_err(bad_parameter)?;
        self.drain((within > 0).then(|| Duration::from_secs(within)));
        Ok(json_response(&self.drain_status()))
    }

    fn handle_reload(&mut self, query: &str) -> Result<Response, Response> {
        let outcome = match query_flag(query, "preview").map_err(bad_parameter)? {
            true => self.preview_reload(),
            false => self.reload_file(),
        };
        let changes = outcome.map_err(|error| match error {
            ReloadError::NoSource => {
                let why = "This gateway was started without a configuration to read again.";
                Response::error(409, "no_source", why)
            }
            ReloadError::Refused(error) => {
                Response::error(422, "bad_config", &format!("Nothing has changed: {error}."))
            }
        })?;
        Ok(Response::json(200, dto::reload_body(&changes)))
    }
}

/// The last lines of this process's log, which hold no secret.
fn handle_log(query: &str) -> Result<Response, Response> {
    let level = query_value(query, "level").and_then(|value| {
        let text = value.as_deref().unwrap_or("trace");
        let allowed = "error, warn, info, debug or trace";
        text.parse().map_err(|_| BadParameter::new("level", &format!("{text:?}"), allowed))
    });
    let after = query_number(query, "after", 0, (0, MAX_CURSOR)).map_err(bad_parameter)?;
    let level = level.map_err(bad_parameter)?;
    let (last, lines) = logger::recent_lines(after, level);
    let lines: Vec<_> = lines
        .iter()
        .map(|line| {
            let level = line.level.as_str().to_ascii_lowercase();
            json!({ "id": line.id, "level": level, "line": String::from_utf8_lossy(&line.line).trim_end() })
        })
        .collect();
    Ok(json_response(&json!({ "last": last, "lines": lines })))
}

/// Checks that an operator may send a message of this type. The device reads the first member named `type` in any case, so that
/// one is checked too.
pub(super) fn check_message_type(members: &Members<'_>, body: &str) -> Result<(), BadParameter> {
    let allowed = || format!("{} or {}", MESSAGE_TYPES[..3].join(", "), MESSAGE_TYPES[3]);
    match members.string("type", allowed())? {
        Some(kind) if MESSAGE_TYPES.contains(&&*kind) => {
            match message::peek(body, Reader::Device).ok().filter(|peek| peek.kind != kind) {
                None => Ok(()),
                Some(peek) => Err(BadParameter::new("type", &format!("{:?}", peek.kind), allowed())),
            }
        }
        Some(kind) => Err(BadParameter::new("type", &format!("{kind:?}"), allowed())),
        None => Err(BadParameter::new("type", "nothing", allowed())),
    }
}

/// The status of the response, and what became of the message; `None` if the device is not connected.
pub(super) fn delivered(delivery: Delivery) -> Option<(u16, &'static str)> {
    match delivery {
        Delivery::Sent => Some((200, "sent")),
        Delivery::Queued => Some((202, "queued")),
        Delivery::NotConnected => None,
    }
}

pub(super) fn bad_type(bad: BadParameter) -> Response {
    Response::error(400, "bad_type", &format!("{bad}."))
}

pub(super) fn bad_json() -> Response {
    Response::error(400, "bad_json", "The body is no JSON object.")
}

pub(super) fn bad_parameter(bad: BadParameter) -> Response {
    Response::error(400, "bad_parameter", &format!("{bad}."))
}

/// Of a request that the Node.js gateway had.
fn bad_body(error: &str) -> Response {
    Response::json(400, dto::error_body(error))
}

pub(super) fn not_connected() -> Response {
    Response::error(404, "not_connected", "No device with this client id or MAC is connected.")
}
