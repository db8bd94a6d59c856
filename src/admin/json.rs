//! What calls take and show, as JSON.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::config::{Changes, Server};
use crate::proto::message;
use crate::session::{CallView, CommandFailed, Core, Facts};

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
    /// `after` for the next page; none on the last.
    pub next: Option<usize>,
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
        let rpc = message::rpc(body).filter(|_| message::peek(body).is_ok_and(|peek| peek.kind == "mcp"))?;
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
