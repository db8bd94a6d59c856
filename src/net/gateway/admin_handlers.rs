//! Handles the requests of the management API.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use log::{Level, info};
use serde_json::json;
use serde_json::value::to_raw_value;

use crate::admin::answer::{Answer, json_response};
use crate::admin::call_history::CallQuery;
use crate::admin::dashboard;
use crate::admin::dto::{self, DeviceStatus, DisconnectRequest, McpCommand};
use crate::admin::params::{BadParameter, Members, query_flag, query_number, query_value};
use crate::admin::prometheus::MetricFamilies;
use crate::admin::response::{JSON, Response};
use crate::admin::routes::{Endpoint, MAX_DRAIN_SECONDS, Reach};
use crate::logger::{self, log_about};
use crate::net::admin::collect::MetricSources;
use crate::net::admin::request::{AdminRequest, MAX_CURSOR, first_cursor, parse_page_query};
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::SessionId;
use crate::net::gateway::Gateway;
use crate::net::gateway::lifecycle::{Phase, ReloadError};
use crate::net::sessions::session::Session;
use crate::packed;
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
        let answer = self.answer_admin_request(request)?;
        Some(match answer {
            // Other errors are the client's, wherever the device is.
            Answer::Response(response) if is_absent && !matches!(response.status, 400 | 422) => {
                Answer::NotHere(response)
            }
            answer => answer,
        })
    }

    fn answer_admin_request(&mut self, request: &AdminRequest) -> Option<Answer> {
        let AdminRequest { request_id, endpoint, client_id, query, body, .. } = request;
        Some(Answer::Response(match endpoint {
            Endpoint::Metrics => return Some(Answer::Metrics(self.collect_metrics())),
            Endpoint::DevicesStatus => return Some(self.handle_devices_status(body)),
            Endpoint::Disconnect => return Some(self.handle_disconnect(body)),
            Endpoint::Sessions => return Some(self.handle_list_sessions(query)),
            Endpoint::Health => Response::json(200, r#"{"status":"ok"}"#),
            Endpoint::Ready => self.handle_ready(),
            Endpoint::OpenApi => Response::packed(JSON, &packed::OPENAPI, request.accepts_gzip),
            Endpoint::Command => {
                return self.handle_command(*request_id, client_id, body).map(Answer::Response);
            }
            Endpoint::CommandResult => self.admin.command_results.response(client_id, self.io.now),
            Endpoint::CallRequest => {
                return self.handle_call_request(request).map(Answer::Response);
            }
            Endpoint::CallAccept => {
                return self.handle_call_accept(*request_id, body).map(Answer::Response);
            }
            Endpoint::CallHangUp => self.handle_call_hang_up(body),
            Endpoint::Message => self.handle_message(client_id, body),
            Endpoint::Messages => return self.handle_broadcast(*request_id, body),
            Endpoint::Notify => self.notify(request).unwrap_or_else(|refusal| refusal),
            Endpoint::NotifyState => self.admin.notify_files.response(client_id, self.io.now),
            Endpoint::Calls => self.handle_list_calls(query),
            Endpoint::Call => self.handle_show_call(client_id),
            Endpoint::Session => self.handle_show_session(client_id),
            Endpoint::EndSession => self.handle_end_session(client_id, query),
            Endpoint::Servers => return Some(self.handle_servers()),
            Endpoint::Gateways => self.handle_gateways(),
            Endpoint::Denied => self.handle_list_denied(),
            Endpoint::Deny => return Some(self.handle_deny(client_id, true)),
            Endpoint::Allow => return Some(self.handle_deny(client_id, false)),
            Endpoint::Credentials => self.handle_credentials(body),
            Endpoint::Check => self.handle_start_check(),
            Endpoint::CheckReport => self.handle_show_check(),
            Endpoint::Reload => self.handle_reload(query),
            // Is no request with one answer: see `start_event_stream`.
            Endpoint::Events => return None,
            Endpoint::Drain => self.handle_drain(query),
            Endpoint::Log => handle_log(query),
            Endpoint::Errors => Response::json(200, self.admin.recent_errors().to_json()),
            Endpoint::Dashboard => {
                Response::packed(dashboard::CONTENT_TYPE, &packed::DASHBOARD, request.accepts_gzip)
                    .with_header("Content-Security-Policy", dashboard::content_security_policy())
            }
            Endpoint::Catalogue => {
                Response::packed("text/plain; charset=utf-8", &packed::CHINESE, request.accepts_gzip)
            }
            Endpoint::Config => Response::json(200, self.io.config.to_masked_file_text()),
        }))
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
        self.sessions.get(found).is_some_and(|session| session.core.is_present()).then_some(found)
    }

    /// Whether this worker has the device that the request is about.
    /// Whether it closes the connection of a device, which the gateway with the connection does.
    fn disconnects(&self, request: &AdminRequest) -> bool {
        request.endpoint == Endpoint::EndSession && query_flag(&request.query, "disconnect") == Ok(true)
    }

    fn has_device_of(&self, request: &AdminRequest) -> bool {
        match request.endpoint {
            Endpoint::CallRequest | Endpoint::CallAccept | Endpoint::CallHangUp => {
                request.device_mac().is_some_and(|mac| self.sessions.by_mac(mac).next().is_some())
            }
            _ => self.find_device(&request.client_id).is_some(),
        }
    }

    pub(super) fn client_id_of(&self, id: SessionId) -> &str {
        self.sessions.client_id(id).map_or("", ClientId::as_str)
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

    fn handle_command(&mut self, request_id: u64, client_id: &str, body: &str) -> Option<Response> {
        let command = match McpCommand::parse(body) {
            Ok(command) => command,
            Err(error) => return Some(dto::command_error(400, &error)),
        };
        let Some(device) = self.find_device(client_id) else {
            return Some(dto::command_response(&Err(CommandError::NotConnected), request_id));
        };
        let Some(command) = command else {
            return Some(self.handle_message_command(request_id, device, body));
        };
        self.drive(device, |core, cx| core.send_command(request_id, &command.method, &command.params, cx));
        None
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
    fn handle_message_command(&mut self, request_id: u64, device: SessionId, body: &str) -> Response {
        let members = Members::of_body(body).ok();
        let Some(members) = members.filter(|members| check_message_type(members, body).is_ok()) else {
            let error = r#"指令类型无效: a command is {"type":"mcp","payload":{"method":..}}; alert, system, custom and notify are messages (POST /api/messages/{clientId}), and taken here too"#;
            return dto::command_error(500, error);
        };
        if let Err(bad) = members.string("session_id", "a string") {
            return dto::command_error(400, &bad.to_string());
        }
        match delivered(self.deliver_message(device, body)) {
            Some((_, delivery)) => {
                let data = json!({ "delivery": delivery });
                Response::json(200, json!({ "success": true, "data": data }).to_string())
            }
            None => dto::command_response(&Err(CommandError::NotConnected), request_id),
        }
    }

    fn handle_devices_status(&self, body: &str) -> Answer {
        let names = match dto::parse_status_ids(body) {
            Ok(names) => names,
            Err(error) => return Answer::Response(Response::json(400, dto::error_body(&error))),
        };
        let status = |name: &str| {
            let session = self.find_device(name).and_then(|id| self.sessions.get(id));
            match session.map(|session| session.core.has_call()) {
                Some(in_call) => DeviceStatus { is_alive: in_call.then_some(true), exists: true, in_call },
                None => DeviceStatus { is_alive: Some(false), exists: false, in_call: false },
            }
        };
        Answer::DevicesStatus(names.into_iter().map(|name| (name.clone(), status(&name))).collect())
    }

    fn handle_call_request(&mut self, request: &AdminRequest) -> Option<Response> {
        match dto::CallRequest::parse(&request.body) {
            Ok(call) if !self.has_device_of(request) => return Some(refuse_absent_caller(&call)),
            Ok(call) => self.request_device_call(request, &call),
            Err(error) => return Some(Response::json(400, dto::error_body(&error))),
        }
        None
    }

    fn handle_call_accept(&mut self, request_id: u64, body: &str) -> Option<Response> {
        match dto::parse_call_mac(body) {
            Ok(mac) if self.sessions.by_mac(mac).next().is_none() => {
                return Some(Response::json(200, dto::call_accept_body(AcceptOutcome::NoIncomingCall, None)));
            }
            Ok(mac) => self.accept_device_call(request_id, mac),
            Err(error) => return Some(Response::json(400, dto::error_body(&error))),
        }
        None
    }

    fn handle_call_hang_up(&mut self, body: &str) -> Response {
        let mac = match dto::parse_call_mac(body) {
            Ok(mac) => mac,
            Err(error) => return Response::error(400, "bad_mac", &format!("{error}.")),
        };
        match self.hang_up_device_call(mac) {
            true => Response::json(200, r#"{"status":"ended"}"#),
            false => Response::error(409, "no_call", "The device neither talks to another one nor rings."),
        }
    }

    // ----- devices ------------------------------------------------------------------------------------------------

    fn handle_message(&mut self, client_id: &str, body: &str) -> Response {
        let Ok(members) = Members::of_body(body) else {
            return bad_json();
        };
        if let Err(bad) = check_message_type(&members, body) {
            return bad_type(&bad);
        }
        if let Err(bad) = members.string("session_id", "a string") {
            return bad_parameter(&bad);
        }
        let Some(device) = self.find_device(client_id) else { return not_connected() };
        let Some((status, delivery)) = delivered(self.deliver_message(device, body)) else {
            return not_connected();
        };
        let client_id = self.client_id_of(device);
        Response::json(status, json!({ "clientId": client_id, "delivery": delivery }).to_string())
    }

    /// Sends a device a message.
    pub(super) fn deliver_message(&mut self, device: SessionId, message: &str) -> Delivery {
        let mut delivery = Delivery::NotConnected;
        self.drive(device, |core, cx| delivery = core.send_message(message.trim_ascii(), cx));
        delivery
    }

    fn handle_list_sessions(&self, query: &str) -> Answer {
        let (after, limit) = match parse_page_query(query) {
            Ok(page) => page,
            Err(bad) => return Answer::Response(bad_parameter(&bad)),
        };
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
        Answer::Sessions { page, limit }
    }

    fn handle_show_session(&self, client_id: &str) -> Response {
        let session = self.find_device(client_id).and_then(|id| self.sessions.get(id));
        session
            .and_then(|session| {
                let config = &self.io.config;
                let current_key = config.mqtt.key_fingerprint();
                dto::session_dto(&session.core, self.workers.index(), config, current_key, self.io.now)
            })
            .map_or_else(not_connected, |view| json_response(&view))
    }

    fn handle_list_calls(&self, query: &str) -> Response {
        let query = match CallQuery::parse(query, self.history.wall_clock()) {
            Ok(query) => query,
            Err(bad) => return bad_parameter(&bad),
        };
        let calls = self.history.calls();
        if calls.is_off() {
            return history_off();
        }
        let page = calls.page(&query);
        drop(calls);
        json_response(&page.to_json())
    }

    fn handle_show_call(&self, id: &str) -> Response {
        let calls = self.history.calls();
        if calls.is_off() {
            return history_off();
        }
        let call = id.parse().ok().and_then(|id| calls.get(id));
        drop(calls);
        call.map_or_else(
            || Response::error(404, "no_such_call", "No call that has ended with this id is kept."),
            |call| json_response(&*call),
        )
    }

    fn handle_end_session(&mut self, client_id: &str, query: &str) -> Response {
        let disconnect = match query_flag(query, "disconnect") {
            Ok(disconnect) => disconnect,
            Err(bad) => return bad_parameter(&bad),
        };
        let Some(device) = self.find_device(client_id) else { return not_connected() };
        let hung_up = self.sessions.get(device).is_some_and(|session| session.core.has_call());
        if !hung_up && !disconnect {
            return Response::error(
                409,
                "no_call",
                "The device is in no call; ?disconnect=true ends its connection.",
            );
        }
        let client_id = self.client_id_of(device).to_owned();
        let what = if disconnect { "disconnected" } else { "hung up" };
        log_about!(Level::Info, self.sessions.log_subject(device), "{what} by an operator");
        self.drive(device, |core, cx| match disconnect {
            true => core.operator_disconnect(cx),
            false => {
                core.operator_hang_up(cx);
            }
        });
        let done = json!({ "clientId": client_id, "hungUp": hung_up, "disconnected": disconnect });
        Response::json(200, done.to_string())
    }

    /// The devices are only counted here: each gets its goodbye and is disconnected as soon as audio leaves time for it.
    fn handle_disconnect(&mut self, body: &str) -> Answer {
        let Ok(members) = Members::of_body(body) else {
            return Answer::Response(bad_json());
        };
        let request = match DisconnectRequest::parse(&members) {
            Ok(request) => request,
            Err(bad) => return Answer::Response(bad_parameter(&bad)),
        };
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
            self.sessions.get(*id).is_some_and(|Session { core, .. }| {
                core.is_present() && (!only_previous_key || core.login_key(current_key) == LoginKey::Previous)
            })
        });
        if !chosen.is_empty() {
            info!("{} devices are disconnected by an operator", chosen.len());
        }
        let count = chosen.len();
        chosen.into_iter().for_each(|id| self.io.run_queue.push(Task::Disconnect(id)));
        Answer::Disconnected { count, not_connected }
    }

    // ----- the gateway --------------------------------------------------------------------------------------------

    fn handle_drain(&mut self, query: &str) -> Response {
        // Nothing is given for 0, which is not allowed.
        match query_number(query, "within", 0, (1, MAX_DRAIN_SECONDS)) {
            Ok(0) => self.drain(None),
            Ok(seconds) => self.drain(Some(Duration::from_secs(seconds))),
            Err(bad) => return bad_parameter(&bad),
        }
        json_response(&self.drain_status())
    }

    fn handle_reload(&mut self, query: &str) -> Response {
        let outcome = match query_flag(query, "preview") {
            Ok(true) => self.preview_reload(),
            Ok(false) => self.reload_file(),
            Err(bad) => return bad_parameter(&bad),
        };
        match outcome {
            Ok(changes) => Response::json(200, dto::reload_body(&changes)),
            Err(ReloadError::NoSource) => Response::error(
                409,
                "no_source",
                "This gateway was started without a configuration to read again.",
            ),
            Err(ReloadError::Refused(error)) => {
                Response::error(422, "bad_config", &format!("Nothing has changed: {error}."))
            }
        }
    }
}

/// The last lines of this process's log, which hold no secret.
fn handle_log(query: &str) -> Response {
    let level = query_value(query, "level").and_then(|value| {
        let text = value.as_deref().unwrap_or("trace");
        let allowed = "error, warn, info, debug or trace";
        text.parse().map_err(|_| BadParameter::new("level", &format!("{text:?}"), allowed))
    });
    let (after, level) =
        match query_number(query, "after", 0, (0, MAX_CURSOR)).and_then(|after| Ok((after, level?))) {
            Ok(wanted) => wanted,
            Err(bad) => return bad_parameter(&bad),
        };
    let (last, lines) = logger::recent_lines(after, level);
    let lines: Vec<_> = lines
        .iter()
        .map(|line| {
            let level = line.level.as_str().to_ascii_lowercase();
            json!({ "id": line.id, "level": level, "line": String::from_utf8_lossy(&line.line).trim_end() })
        })
        .collect();
    json_response(&json!({ "last": last, "lines": lines }))
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

pub(super) fn bad_type(bad: &BadParameter) -> Response {
    Response::error(400, "bad_type", &format!("{bad}."))
}

pub(super) fn bad_json() -> Response {
    Response::error(400, "bad_json", "The body is no JSON object.")
}

pub(super) fn bad_parameter(bad: &BadParameter) -> Response {
    Response::error(400, "bad_parameter", &format!("{bad}."))
}

fn refuse_absent_caller(call: &dto::CallRequest) -> Response {
    let outcome = DeviceCallTable::absent_caller(call.caller, call.target);
    Response::json(200, dto::call_request_body(outcome, None))
}

fn history_off() -> Response {
    Response::error(409, "history_off", "Calls that have ended are not kept: history.calls is 0.")
}

pub(super) fn not_connected() -> Response {
    Response::error(404, "not_connected", "No device with this client id or MAC is connected.")
}
