//! The JSON that requests and responses carry.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::params::{BadParameter, Members};
use super::response::Response;
use crate::config::{Changes, ChatServerConfig, Config, KeyFingerprint};
use crate::proto::identity::Mac;
use crate::session::{
    AcceptOutcome, CallReport, CallSlice, CallStats, CallView, CommandError, Core, RequestOutcome,
};

/// Characters of a caller's name: a device's modem takes no long messages.
const MAX_NICKNAME_CHARS: usize = 64;
/// Devices that one call disconnects by name.
const MAX_DISCONNECTED: usize = 1000;

/// One device and its call, as `GET /api/sessions` shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionDto<'a> {
    client_id: Cow<'a, str>,
    mac: String,
    ip: IpAddr,
    /// False while its call waits for its return.
    connected: bool,
    online_seconds: f64,
    /// The signature key that it logged in with.
    signature_key: &'static str,
    /// The list or route that its chat servers come from.
    route: &'a str,
    /// The worker that serves it, counted from 0.
    worker: usize,
    call: Option<CallDto<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CallDto<'a> {
    state: &'static str,
    session_id: Option<&'a str>,
    seconds: f64,
    /// Without its query, where tokens live.
    server: Option<String>,
    audio_from: Option<SocketAddr>,
    jitter_ms: f64,
    #[serde(flatten)]
    stats: CallStats,
    /// So far.
    #[serde(flatten)]
    report: CallReport,
    last_10s: CallSlice,
}

/// A connected device and its call, which this worker serves; `None` for any other session.
pub fn session_dto<'a>(
    core: &'a Core,
    worker: usize,
    config: &'a Config,
    current_key: Option<KeyFingerprint>,
    now: Instant,
) -> Option<SessionDto<'a>> {
    let client_id = core.client_id().filter(|_| core.is_present())?;
    let since = |at: Instant| seconds(now.saturating_duration_since(at));
    Some(SessionDto {
        client_id: client_id.text(),
        mac: client_id.mac().to_string(),
        ip: core.ip(),
        connected: core.is_online(),
        online_seconds: core.online_since().map_or(0.0, since),
        signature_key: core.login_key(current_key).label(),
        route: config.route_name(client_id),
        worker,
        call: core.call().zip(core.call_report(now)).map(|(call, report)| call_dto(&call, report, now)),
    })
}

fn call_dto<'a>(
    call: &CallView<'a>,
    (report, last_10s): (CallReport, CallSlice),
    now: Instant,
) -> CallDto<'a> {
    CallDto {
        state: call.state.label(),
        session_id: call.session_id,
        seconds: seconds(now.saturating_duration_since(call.started_at)),
        server: call.server.map(ChatServerConfig::to_string),
        audio_from: call.peer,
        jitter_ms: call.jitter.as_micros() as f64 / 1000.0,
        stats: call.stats,
        report,
        last_10s,
    }
}

/// Seconds, to the millisecond.
fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}

/// What `GET /api/sessions` answers, of one worker or gateway, or joined.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct SessionPage<Next = u64> {
    /// Connected devices, on this page or another.
    pub devices: usize,
    /// Calls going on.
    pub calls: usize,
    /// Whether the gateway takes no new devices and ends with its last call.
    pub draining: bool,
    /// `after` for the next page; none on the last.
    pub next: Option<Next>,
    /// This page.
    pub sessions: Vec<Box<RawValue>>,
}

impl SessionPage {
    /// Appends the page of the next worker if all of it fits, or if there is nothing yet. `start`: where its sessions begin.
    pub fn append(&mut self, more: Self, limit: usize, start: u64) {
        self.devices += more.devices;
        self.calls += more.calls;
        self.draining |= more.draining;
        if self.next.is_some() {
            return;
        }
        if !self.sessions.is_empty() && self.sessions.len() + more.sessions.len() > limit {
            self.next = Some(start);
        } else {
            self.next = more.next;
            self.sessions.extend(more.sessions);
        }
    }
}

/// What `POST /api/devices/status` says of one device.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    /// Whether it is in a call; null while it is connected without one.
    pub is_alive: Option<bool>,
    /// Whether it is connected.
    pub exists: bool,
    /// Whether it is in a call.
    pub in_call: bool,
}

/// A command for a device, as the consoles send it. The `id` in it is theirs and goes no further.
#[derive(Debug, PartialEq, Eq)]
pub struct McpCommand {
    /// The JSON-RPC method.
    pub method: String,
    /// Its parameters, raw JSON.
    pub params: String,
}

impl McpCommand {
    /// Reads a body; `None` when it is not `{"type":"mcp","payload":{"method":..}}`.
    ///
    /// # Errors
    /// What is wrong with the body or a member, in words.
    pub fn parse(body: &str) -> Result<Option<Self>, String> {
        let members = members(body)?;
        let kind = members.string("type", "\"mcp\"")?;
        let payload = members.object("payload", "payload.")?;
        let Some(payload) = payload.filter(|_| kind.is_some_and(|kind| kind == "mcp")) else {
            return Ok(None);
        };
        let method = payload.string("method", "a string")?;
        payload.object("params", "payload.params.")?;
        let params = payload.raw("params")?.unwrap_or("{}");
        Ok(method.map(|method| Self { method: method.into_owned(), params: params.to_owned() }))
    }
}

/// The ids that `POST /api/devices/status` asks about: `clientIds`, or `deviceIds`.
///
/// # Errors
/// What is wrong with them, in words.
pub fn parse_status_ids(body: &str) -> Result<Vec<String>, String> {
    let missing = || "clientIds必须是一个数组".to_owned();
    let members = Members::of_body(body).map_err(|_| missing())?;
    let client_ids = array(&members, "clientIds").map_err(|error| format!("{}: {error}", missing()))?;
    let device_ids = array(&members, "deviceIds")?;
    client_ids.or(device_ids).ok_or_else(missing)
}

/// A member that is an array of strings.
fn array(members: &Members<'_>, key: &str) -> Result<Option<Vec<String>>, BadParameter> {
    let Some(raw) = members.raw(key)? else { return Ok(None) };
    let items: Vec<&RawValue> =
        serde_json::from_str(raw).map_err(|_| BadParameter::new(key, raw, "an array of strings"))?;
    let item = |(index, raw): (usize, &&RawValue)| {
        let bad = |_| BadParameter::new(format!("{key}[{index}]"), raw.get(), "a string");
        serde_json::from_str(raw.get()).map_err(bad)
    };
    items.iter().enumerate().map(item).collect::<Result<_, _>>().map(Some)
}

/// Whom `POST /api/devices/disconnect` disconnects.
#[derive(Debug, PartialEq, Eq)]
pub enum DisconnectRequest {
    /// Every device.
    All,
    /// Those that logged in with an older signature key.
    PreviousKey,
    /// Those with these client ids or MACs.
    Named(BTreeSet<String>),
}

impl DisconnectRequest {
    /// Reads the members of a body, of which exactly one says who.
    ///
    /// # Errors
    /// What is missing, too much, or not allowed.
    pub fn parse(members: &Members<'_>) -> Result<Self, BadParameter> {
        let all = members.raw("all")?;
        let names = array(members, "clientIds")?;
        let key = members.string("signatureKey", "\"previous\"")?;
        match (all, names, key.as_deref()) {
            (Some("true"), None, None) => Ok(Self::All),
            (Some(raw), None, None) => Err(BadParameter::new("all", raw, "true")),
            (None, None, Some("previous")) => Ok(Self::PreviousKey),
            (None, None, Some(other)) => {
                Err(BadParameter::new("signatureKey", &format!("{other:?}"), "\"previous\""))
            }
            (None, Some(names), None) if names.len() <= MAX_DISCONNECTED => {
                Ok(Self::Named(names.into_iter().collect()))
            }
            (None, Some(names), None) => Err(BadParameter::new(
                "clientIds",
                &format!("{} of them", names.len()),
                format!("{MAX_DISCONNECTED} at most"),
            )),
            (all, names, key) => {
                let given =
                    usize::from(all.is_some()) + usize::from(names.is_some()) + usize::from(key.is_some());
                Err(BadParameter::new(
                    "all, clientIds, signatureKey",
                    &format!("{given} of them"),
                    "exactly one",
                ))
            }
        }
    }
}

/// What `POST /api/call/request` asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct CallRequest {
    /// The device that calls.
    pub caller: Mac,
    /// The device that is called.
    pub target: Mac,
    /// Who calls, in words; empty when nobody says.
    pub nickname: String,
}

impl CallRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// What is missing, or of the wrong type, in words.
    pub fn parse(body: &str) -> Result<Self, String> {
        let members = members(body)?;
        let (caller, target) = (parse_mac(&members, "caller_mac")?, parse_mac(&members, "target_mac")?);
        let Some((caller, target)) = caller.zip(target) else {
            return Err("缺少必要参数: caller_mac, target_mac".to_owned());
        };
        let nickname = members.string("caller_nickname", "a string")?;
        let nickname = nickname.unwrap_or_default().chars().take(MAX_NICKNAME_CHARS).collect();
        Ok(Self { caller, target, nickname })
    }
}

/// The MAC that `POST /api/call/accept` and `POST /api/call/hangup` are about.
///
/// # Errors
/// Why there is none, in words.
pub fn parse_call_mac(body: &str) -> Result<Mac, String> {
    parse_mac(&members(body)?, "mac")?.ok_or_else(|| "缺少必要参数: mac".to_owned())
}

fn members(body: &str) -> Result<Members<'_>, String> {
    Members::of_body(body).map_err(|error| format!("the body is {error}"))
}

/// A member that is a MAC; an empty one is as good as absent.
fn parse_mac(members: &Members<'_>, key: &str) -> Result<Option<Mac>, String> {
    let allowed = "a MAC address like aa:bb:cc:dd:ee:ff";
    let text = members.string(key, allowed)?;
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let bad = |_| BadParameter::new(key, &format!("{text:?}"), allowed).to_string();
    text.trim_ascii().parse().map(Some).map_err(bad)
}

/// What a drain waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainStatus {
    /// What the gateway is doing.
    pub status: &'static str,
    /// Calls in progress.
    pub calls: usize,
    /// Devices that are connected.
    pub devices: usize,
    /// The time after which the calls are ended, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
}

/// What became of a request, as the consoles expect it, and what the operator should know about the call.
pub fn call_request_body(outcome: RequestOutcome, note: Option<String>) -> String {
    let (status, message) = match outcome {
        RequestOutcome::Connected => ("bridged", "通话已接通"),
        RequestOutcome::Ringing => ("pending", "正在等待对方接听"),
        RequestOutcome::Offline => ("offline", "对方设备不在线，请稍后重试"),
        RequestOutcome::Refused(why) => ("error", why),
    };
    with_note(json!({ "status": status, "message": message }), note)
}

fn with_note(mut body: Value, note: Option<String>) -> String {
    if let Some(note) = note {
        body["note"] = note.into();
    }
    body.to_string()
}

/// As [`call_request_body`], for an answer.
pub fn call_accept_body(outcome: AcceptOutcome, note: Option<String>) -> String {
    let (status, message) = match outcome {
        AcceptOutcome::Connected(peer) => {
            return with_note(json!({ "status": "bridged", "peerMac": peer.to_string() }), note);
        }
        AcceptOutcome::NoIncomingCall => ("no_pending", "没有等待中的通话"),
        AcceptOutcome::CallerLeft => ("caller_gone", "主叫方已离开或通话已超时"),
        AcceptOutcome::Refused(why) => ("error", why),
    };
    json!({ "status": status, "message": message }).to_string()
}

/// An error as the compatible calls say it.
pub fn error_body(why: &str) -> String {
    json!({ "error": why }).to_string()
}

/// What became of a command, as the consoles expect it. A timeout names the id of a later result.
pub fn command_response(result: &Result<Box<str>, CommandError>, id: u64) -> Response {
    let why = match result {
        Ok(result) => return Response::json(200, format!(r#"{{"success":true,"data":{result}}}"#)),
        Err(CommandError::NotConnected) => "设备未连接",
        Err(CommandError::Timeout) => {
            let body = json!({ "success": false, "error": "timeout", "id": id.to_string() });
            return Response::json(500, body.to_string());
        }
        Err(CommandError::Busy) => "too many commands are under way for this device",
        Err(CommandError::Device(message)) => message,
    };
    command_error(500, why)
}

/// An error as the command call says it.
pub fn command_error(status: u16, why: &str) -> Response {
    Response::json(status, json!({ "success": false, "error": why }).to_string())
}

/// What a reload changed.
pub fn reload_body(changes: &Changes) -> String {
    json!({ "applied": changes.applied, "needsRestart": changes.needs_restart }).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_the_consoles_send_them() {
        let command = |method: &str, params: &str| {
            Ok(Some(McpCommand { method: method.into(), params: params.into() }))
        };
        for (body, expected) in [
            (
                r#"{"type":"mcp","payload":{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"withUserTools": true}}}"#,
                command("tools/list", r#"{"withUserTools": true}"#),
            ),
            (r#"{"payload":{"method":"a\"b"},"type":"mcp"}"#, command("a\"b", "{}")),
            (r#"{"type":"mcp","payload":{"method":"a","params":null}}"#, command("a", "{}")),
            (r#"{"type":"mcp","payload":{}}"#, Ok(None)),
            (r#"{"type":"mcp"}"#, Ok(None)),
            (r#"{"type":"iot","payload":{"method":"a"}}"#, Ok(None)),
            ("[]", Err("the body is JSON, but not an object")),
            ("", Err("the body is not JSON")),
            ("{", Err("the body is not JSON")),
            (r#"{"type":7}"#, Err("type: found 7, allowed: \"mcp\"")),
            (r#"{"type":"a","type":"mcp"}"#, Err("type: found it more than once, allowed: one value")),
            (r#"{"type":"mcp","payload":"x"}"#, Err("payload: found \"x\", allowed: an object")),
            (r#"{"type":"mcp","payload":{"method":7}}"#, Err("payload.method: found 7, allowed: a string")),
            (
                r#"{"type":"mcp","payload":{"method":"a","params":[1]}}"#,
                Err("payload.params: found [1], allowed: an object"),
            ),
            (
                r#"{"type":"mcp","payload":{"method":"a","params":{},"params":{}}}"#,
                Err("payload.params: found it more than once, allowed: one value"),
            ),
        ] {
            assert_eq!(McpCommand::parse(body), expected.map_err(str::to_owned), "{body}");
        }
    }

    #[test]
    fn client_ids_and_device_ids_are_both_accepted() {
        let ids = |ids: &[&str]| Ok(ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
        for (body, expected) in [
            (r#"{"clientIds":["a","b"]}"#, ids(&["a", "b"])),
            (r#"{"deviceIds":["a"]}"#, ids(&["a"])),
            (r#"{"clientIds":null,"deviceIds":["a"]}"#, ids(&["a"])),
            (r#"{"clientIds":[]}"#, ids(&[])),
            (r#"{"clientIds":["a"],"deviceIds":["b"]}"#, ids(&["a"])),
            ("{}", Err("clientIds必须是一个数组")),
            ("[]", Err("clientIds必须是一个数组")),
            ("", Err("clientIds必须是一个数组")),
            (
                r#"{"clientIds":"a"}"#,
                Err("clientIds必须是一个数组: clientIds: found \"a\", allowed: an array of strings"),
            ),
            (
                r#"{"clientIds":["a",7,null]}"#,
                Err("clientIds必须是一个数组: clientIds[1]: found 7, allowed: a string"),
            ),
            (r#"{"deviceIds":{}}"#, Err("deviceIds: found {}, allowed: an array of strings")),
            (r#"{"clientIds":["a"],"deviceIds":7}"#, Err("deviceIds: found 7, allowed: an array of strings")),
            (
                r#"{"deviceIds":[],"deviceIds":[]}"#,
                Err("deviceIds: found it more than once, allowed: one value"),
            ),
        ] {
            assert_eq!(parse_status_ids(body), expected.map_err(str::to_owned), "{body}");
        }
    }

    #[test]
    fn whom_to_disconnect_is_said_once() {
        let parse = |body: &str| {
            DisconnectRequest::parse(&Members::of_body(body).unwrap()).map_err(|bad| bad.to_string())
        };
        let named =
            |names: &[&str]| DisconnectRequest::Named(names.iter().map(|name| (*name).to_owned()).collect());
        let many = format!(r#"{{"clientIds":[{}"x"]}}"#, r#""x","#.repeat(MAX_DISCONNECTED));
        for (body, expected) in [
            (r#"{"all":true}"#, Ok(DisconnectRequest::All)),
            (r#"{"all":null,"signatureKey":"previous"}"#, Ok(DisconnectRequest::PreviousKey)),
            (r#"{"clientIds":["b","a","b"]}"#, Ok(named(&["a", "b"]))),
            (r#"{"clientIds":[]}"#, Ok(named(&[]))),
            ("{}", Err("all, clientIds, signatureKey: found 0 of them, allowed: exactly one")),
            (
                r#"{"all":true,"clientIds":["a"]}"#,
                Err("all, clientIds, signatureKey: found 2 of them, allowed: exactly one"),
            ),
            (r#"{"all":false}"#, Err("all: found false, allowed: true")),
            (r#"{"all":"true"}"#, Err("all: found \"true\", allowed: true")),
            (r#"{"all":true,"all":true}"#, Err("all: found it more than once, allowed: one value")),
            (r#"{"signatureKey":"current"}"#, Err("signatureKey: found \"current\", allowed: \"previous\"")),
            (r#"{"signatureKey":1}"#, Err("signatureKey: found 1, allowed: \"previous\"")),
            (r#"{"clientIds":"a"}"#, Err("clientIds: found \"a\", allowed: an array of strings")),
            (r#"{"clientIds":[7]}"#, Err("clientIds[0]: found 7, allowed: a string")),
            (&many, Err("clientIds: found 1001 of them, allowed: 1000 at most")),
        ] {
            assert_eq!(parse(body), expected.map_err(str::to_owned), "{body}");
        }
    }

    #[test]
    fn macs_in_call_requests_are_accepted_in_every_notation() {
        let (a, b) = ("aa:bb:cc:dd:ee:01".parse().unwrap(), "aa:bb:cc:dd:ee:02".parse().unwrap());
        let request = |nickname: &str| Ok(CallRequest { caller: a, target: b, nickname: nickname.into() });
        for (body, expected) in [
            (
                r#"{"caller_mac":"AA:BB:CC:DD:EE:01","target_mac":"aa_bb_cc_dd_ee_02","caller_nickname":"\u5f20"}"#,
                request("张"),
            ),
            (
                r#"{"caller_mac":"AA-bb-CC-dd-EE-01","target_mac":" aa:bb:cc:dd:ee:02","caller_nickname":null}"#,
                request(""),
            ),
        ] {
            assert_eq!(CallRequest::parse(body), expected, "{body}");
        }
        for (body, expected) in [
            ("", "the body is not JSON"),
            ("[]", "the body is JSON, but not an object"),
            ("{}", "缺少必要参数: caller_mac, target_mac"),
            (r#"{"caller_mac":"aa:bb:cc:dd:ee:01"}"#, "缺少必要参数: caller_mac, target_mac"),
            (r#"{"caller_mac":"","target_mac":"aa:bb:cc:dd:ee:01"}"#, "缺少必要参数: caller_mac, target_mac"),
            (
                r#"{"caller_mac":7,"target_mac":8}"#,
                "caller_mac: found 7, allowed: a MAC address like aa:bb:cc:dd:ee:ff",
            ),
            (
                r#"{"caller_mac":"x","target_mac":"y"}"#,
                "caller_mac: found \"x\", allowed: a MAC address like aa:bb:cc:dd:ee:ff",
            ),
            (
                r#"{"caller_mac":"aa:bb:cc:dd:ee:01","target_mac":"aa:bb:cc:dd:ee:02","caller_nickname":7}"#,
                "caller_nickname: found 7, allowed: a string",
            ),
            (
                r#"{"caller_mac":"a","caller_mac":"b"}"#,
                "caller_mac: found it more than once, allowed: one value",
            ),
        ] {
            assert_eq!(CallRequest::parse(body), Err(expected.to_owned()), "{body}");
        }
        assert_eq!(parse_call_mac(r#"{"mac":"AA_BB_CC_DD_EE_01"}"#), Ok(a));
        assert_eq!(parse_call_mac(r#"{"mac":null}"#), Err("缺少必要参数: mac".to_owned()));
    }

    #[test]
    fn command_responses_match_the_node_js_gateway() {
        for (result, expected) in [
            (Ok(r#"{"content":[]}"#.into()), (200, r#"{"success":true,"data":{"content":[]}}"#)),
            (Err(CommandError::NotConnected), (500, r#"{"error":"设备未连接","success":false}"#)),
            (
                Err(CommandError::Timeout),
                (500, r#"{"error":"timeout","id":"18446744073709551615","success":false}"#),
            ),
            (Err(CommandError::Device("a \"b\"".into())), (500, r#"{"error":"a \"b\"","success":false}"#)),
        ] {
            let response = command_response(&result, u64::MAX);
            assert_eq!((response.status, str::from_utf8(&response.body).unwrap()), expected);
        }
    }
}
