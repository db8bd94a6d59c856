//! What calls take and show, as JSON.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::config::{Changes, Server};
use crate::proto::identity::Mac;
use crate::proto::message::{self, Object, Reader};
use crate::session::{Accepted, CallView, CommandFailed, Core, Facts, Requested};

/// Characters of a caller's name: a device's modem takes no long messages.
const MAX_NICKNAME: usize = 64;

/// One device and its call, as `GET /api/sessions` shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Session<'a> {
    client_id: &'a str,
    mac: String,
    ip: IpAddr,
    /// False while its call waits for its return.
    connected: bool,
    online_seconds: f64,
    call: Option<Call<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Call<'a> {
    state: &'static str,
    session_id: Option<&'a str>,
    seconds: f64,
    /// Without its query, where tokens live.
    server: Option<String>,
    audio_from: Option<SocketAddr>,
    packets_up: u64,
    bytes_up: u64,
    packets_down: u64,
    bytes_down: u64,
    lost: u64,
    jitter_ms: f64,
    reordered: u64,
    duplicates: u64,
    dropped: u64,
    redials: u32,
}

/// The view of a device that is let in; `None` for any other session.
pub fn session(core: &Core, now: Instant) -> Option<Session<'_>> {
    let client_id = core.client_id().filter(|_| core.is_present())?;
    let since = |at: Instant| round(now.saturating_duration_since(at));
    Some(Session {
        client_id: client_id.as_str(),
        mac: client_id.mac().to_string(),
        ip: core.ip(),
        connected: core.is_online(),
        online_seconds: core.online_since().map_or(0.0, since),
        call: core.call().map(|call| view(&call, since(call.began))),
    })
}

fn view<'a>(call: &CallView<'a>, seconds: f64) -> Call<'a> {
    let Facts {
        up_packets,
        up_bytes,
        down_packets,
        down_bytes,
        lost,
        reordered,
        duplicates,
        dropped,
        redials,
    } = *call.facts;
    Call {
        state: call.state.label(),
        session_id: call.session_id,
        seconds,
        server: call.server.map(Server::to_string),
        audio_from: call.peer,
        packets_up: up_packets,
        bytes_up: up_bytes,
        packets_down: down_packets,
        bytes_down: down_bytes,
        lost,
        jitter_ms: call.jitter.as_micros() as f64 / 1000.0,
        reordered,
        duplicates,
        dropped,
        redials,
    }
}

/// Seconds, to the millisecond.
fn round(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1000.0
}

/// What `GET /api/sessions` answers.
#[derive(Serialize)]
pub struct Sessions<'a> {
    /// Devices that are let in, on this page or another.
    pub devices: usize,
    /// Calls going on.
    pub calls: usize,
    /// Whether the gateway takes no new devices and ends with its last call.
    pub draining: bool,
    /// `after` for the next page; none on the last.
    pub next: Option<u64>,
    /// This page.
    pub sessions: Vec<Session<'a>>,
}

/// A command for a device, as the consoles send it. The `id` in it is theirs and goes no further.
#[derive(Debug, PartialEq, Eq)]
pub struct Command {
    /// The JSON-RPC method.
    pub method: String,
    /// Its parameters, raw JSON.
    pub params: String,
}

impl Command {
    /// Reads a body; `None` when it is not `{"type":"mcp","payload":{"method":..}}`.
    pub fn parse(body: &str) -> Option<Self> {
        let rpc = message::rpc(body, Reader::Server)
            .filter(|_| message::peek(body, Reader::Server).is_ok_and(|peek| peek.kind == "mcp"))?;
        let method = rpc.method?.into_owned();
        Some(Self { method, params: rpc.params.unwrap_or("{}").to_owned() })
    }
}

/// The ids that `POST /api/devices/status` asks about: `clientIds`, or `deviceIds`. What is no text has no device.
pub fn status_ids(body: &str) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        #[serde(borrow, default)]
        client_ids: Option<&'a RawValue>,
        #[serde(borrow, default)]
        device_ids: Option<&'a RawValue>,
    }
    let body: Body<'_> = serde_json::from_str(body).ok()?;
    let ids: Vec<Value> = [body.client_ids, body.device_ids]
        .into_iter()
        .flatten()
        .find_map(|ids| serde_json::from_str(ids.get()).ok())?;
    let text = |id| if let Value::String(text) = id { text } else { id.to_string() };
    Some(ids.into_iter().map(text).collect())
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
    /// What is missing, or no MAC, in words.
    pub fn parse(body: &str) -> Result<Self, String> {
        let object = Object::parse(body).map_err(|error| format!("the body is {error}"))?;
        let (caller, target) = (object.string("caller_mac"), object.string("target_mac"));
        let Some((caller, target)) = caller.zip(target).filter(|(a, b)| !a.is_empty() && !b.is_empty())
        else {
            return Err("缺少必要参数: caller_mac, target_mac".to_owned());
        };
        let nickname = object.string("caller_nickname").unwrap_or_default();
        let nickname = nickname.chars().take(MAX_NICKNAME).collect();
        Ok(Self { caller: mac("caller_mac", &caller)?, target: mac("target_mac", &target)?, nickname })
    }
}

/// The MAC that `POST /api/call/accept` and `POST /api/call/hangup` are about.
///
/// # Errors
/// Why there is none, in words.
pub fn call_mac(body: &str) -> Result<Mac, String> {
    let object = Object::parse(body).map_err(|error| format!("the body is {error}"))?;
    match object.string("mac").filter(|text| !text.is_empty()) {
        Some(text) => mac("mac", &text),
        None => Err("缺少必要参数: mac".to_owned()),
    }
}

fn mac(key: &str, text: &str) -> Result<Mac, String> {
    let shown: String = text.chars().take(40).collect();
    text.trim_ascii()
        .parse()
        .map_err(|_| format!("{key} is no MAC address like aa:bb:cc:dd:ee:ff: {shown:?}"))
}

/// What became of a request, as the consoles expect it.
pub fn call_requested(outcome: Requested) -> String {
    let (status, message) = match outcome {
        Requested::Bridged => ("bridged", "通话已接通"),
        Requested::Pending => ("pending", "正在等待对方接听"),
        Requested::Offline => ("offline", "对方设备不在线，请稍后重试"),
        Requested::Refused(why) => ("error", why),
    };
    json!({ "status": status, "message": message }).to_string()
}

/// What became of an answer, as the consoles expect it.
pub fn call_accepted(outcome: Accepted) -> String {
    let (status, message) = match outcome {
        Accepted::Bridged(peer) => {
            return json!({ "status": "bridged", "peerMac": peer.to_string() }).to_string();
        }
        Accepted::NoPending => ("no_pending", "没有等待中的通话"),
        Accepted::CallerGone => ("caller_gone", "主叫方已离开或通话已超时"),
        Accepted::Refused(why) => ("error", why),
    };
    json!({ "status": status, "message": message }).to_string()
}

/// An error as the compatible calls say it.
pub fn plain_error(why: &str) -> String {
    json!({ "error": why }).to_string()
}

/// What became of a command, as the consoles expect it.
pub fn command_answer(result: &Result<Box<str>, CommandFailed>) -> (u16, String) {
    let why = match result {
        Ok(result) => return (200, format!(r#"{{"success":true,"data":{result}}}"#)),
        Err(CommandFailed::NotConnected) => "设备未连接",
        Err(CommandFailed::Timeout) => "timeout",
        Err(CommandFailed::Busy) => "too many commands are under way for this device",
        Err(CommandFailed::Device(message)) => message,
    };
    (500, json!({ "success": false, "error": why }).to_string())
}

/// What a reload changed.
pub fn changes(changes: &Changes) -> String {
    json!({ "applied": changes.applied, "needsRestart": changes.needs_restart }).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_as_the_consoles_send_them() {
        let command =
            |method: &str, params: &str| Some(Command { method: method.into(), params: params.into() });
        for (body, expected) in [
            (
                r#"{"type":"mcp","payload":{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"withUserTools": true}}}"#,
                command("tools/list", r#"{"withUserTools": true}"#),
            ),
            (r#"{"payload":{"method":"a\"b"},"type":"mcp"}"#, command("a\"b", "{}")),
            (r#"{"type":"mcp","payload":{"method":7}}"#, None),
            (r#"{"type":"mcp","payload":{}}"#, None),
            (r#"{"type":"mcp","payload":"x"}"#, None),
            (r#"{"type":"mcp"}"#, None),
            (r#"{"type":"iot","payload":{"method":"a"}}"#, None),
            ("[]", None),
            ("", None),
            ("{", None),
        ] {
            assert_eq!(Command::parse(body), expected, "{body}");
        }
    }

    #[test]
    fn status_is_asked_by_either_name() {
        let ids = |ids: &[&str]| Some(ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
        for (body, expected) in [
            (r#"{"clientIds":["a","b"]}"#, ids(&["a", "b"])),
            (r#"{"deviceIds":["a"]}"#, ids(&["a"])),
            (r#"{"clientIds":null,"deviceIds":["a"]}"#, ids(&["a"])),
            (r#"{"clientIds":[]}"#, ids(&[])),
            (r#"{"clientIds":["a",7,null]}"#, ids(&["a", "7", "null"])),
            (r#"{"clientIds":"a"}"#, None),
            (r#"{"clientIds":{}}"#, None),
            ("{}", None),
            ("[]", None),
            ("", None),
        ] {
            assert_eq!(status_ids(body), expected, "{body}");
        }
    }

    #[test]
    fn call_requests_name_two_macs_however_they_are_written() {
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
            (r#"{"caller_mac":"","target_mac":"x"}"#, "缺少必要参数: caller_mac, target_mac"),
            (r#"{"caller_mac":7,"target_mac":8}"#, "缺少必要参数: caller_mac, target_mac"),
            (
                r#"{"caller_mac":"x","target_mac":"y"}"#,
                "caller_mac is no MAC address like aa:bb:cc:dd:ee:ff: \"x\"",
            ),
        ] {
            assert_eq!(CallRequest::parse(body), Err(expected.to_owned()), "{body}");
        }
        assert_eq!(call_mac(r#"{"mac":"AA_BB_CC_DD_EE_01"}"#), Ok(a));
        assert_eq!(call_mac(r#"{"mac":null}"#), Err("缺少必要参数: mac".to_owned()));
    }

    #[test]
    fn command_answers_are_those_of_the_node_js_gateway() {
        for (result, expected) in [
            (Ok(r#"{"content":[]}"#.into()), (200, r#"{"success":true,"data":{"content":[]}}"#)),
            (Err(CommandFailed::NotConnected), (500, r#"{"error":"设备未连接","success":false}"#)),
            (Err(CommandFailed::Timeout), (500, r#"{"error":"timeout","success":false}"#)),
            (Err(CommandFailed::Device("a \"b\"".into())), (500, r#"{"error":"a \"b\"","success":false}"#)),
        ] {
            assert_eq!(command_answer(&result), (expected.0, expected.1.to_owned()));
        }
    }
}
