//! What calls take and show, as JSON.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::config::{Changes, Config, Framing, PeerPolicy, Secret, Server};
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

/// The configuration in the shape of its file, without what is secret.
pub fn config(config: &Config) -> Value {
    let Config { mqtt, udp, websocket, logging, mcp, api, debug, unused: _ } = config;
    let servers =
        |list: &[std::sync::Arc<Server>]| list.iter().map(|server| masked(server)).collect::<Vec<_>>();
    json!({
        "mqtt": {
            "host": mqtt.host,
            "port": mqtt.port,
            "max_connections": mqtt.max_connections,
            "max_connections_per_ip": mqtt.max_connections_per_ip,
            "max_payload_size": mqtt.max_payload_size,
            "resume_grace_s": seconds(mqtt.resume_grace),
            "allow_legacy_ids": mqtt.allow_legacy_ids,
            "signature_key": secret(mqtt.signature_key.as_ref()),
        },
        "udp": {
            "host": udp.host,
            "port": udp.port,
            "public_ip": udp.public_ip.to_string(),
            "peer_policy": match udp.peer_policy {
                PeerPolicy::Adaptive => "adaptive",
                PeerPolicy::Strict => "strict",
            },
            "downlink_flags": udp.downlink_flags,
            "first_packet_warn_s": seconds(udp.first_packet_warn),
            "first_packet_alert": udp.first_packet_alert,
        },
        "websocket": {
            "production_servers": servers(&websocket.production),
            "development_servers": servers(&websocket.development),
            "development_mac_addresses": websocket.development_macs.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "server_secret": secret(websocket.secret.as_ref()),
            "ca_file": path(websocket.ca_file.as_deref()),
            "insecure": websocket.insecure,
            "ping_interval_s": seconds(websocket.ping_interval),
            "ping_timeout_s": seconds(websocket.ping_timeout),
            "reconnect": {
                "initial_ms": websocket.reconnect.initial.as_millis() as u64,
                "max_ms": websocket.reconnect.max.as_millis() as u64,
                "multiplier": whole(websocket.reconnect.multiplier),
                "give_up_after_s": seconds(websocket.reconnect.give_up_after),
            },
            "send_goodbye": websocket.send_goodbye,
            "call_idle_s": seconds(websocket.call_idle),
            "max_calls": websocket.max_calls,
            "max_dials": websocket.max_dials,
        },
        "logging": {
            "enabled": logging.enabled,
            "level": logging.level.as_str().to_ascii_lowercase(),
            "file_path": path(logging.file.as_deref()),
        },
        "mcp": {
            "enabled": mcp.enabled,
            "max_tools_count": mcp.max_tools_count,
            "capabilities": raw(&mcp.capabilities),
            "client_info": raw(&mcp.client_info),
        },
        "api": {
            "enabled": api.enabled,
            "host": api.host.map_or("auto".to_owned(), |host| host.to_string()),
            "port": api.port,
            "token": secret(api.token.as_ref()),
            "metrics_need_token": api.metrics_need_token,
        },
        "debug": debug,
    })
}

/// A URL's query may hold a token.
fn masked(server: &Server) -> Value {
    let query = if server.path.contains('?') { "?***" } else { "" };
    let url = format!("{server}{query}");
    if server.framing == Framing::Auto && server.insecure.is_none() && server.ca_file.is_none() {
        return url.into();
    }
    let framing = match server.framing {
        Framing::Auto => "auto",
        Framing::Header => "header",
        Framing::Raw => "raw",
    };
    let mut object = json!({ "url": url, "framing": framing });
    if let Some(insecure) = server.insecure {
        object["insecure"] = insecure.into();
    }
    if let Some(ca_file) = &server.ca_file {
        object["ca_file"] = path(Some(ca_file)).into();
    }
    object
}

fn secret(secret: Option<&Secret>) -> String {
    secret.map(Secret::to_string).unwrap_or_default()
}

fn path(path: Option<&Path>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

fn raw(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

fn seconds(duration: Duration) -> Value {
    whole(duration.as_secs_f64())
}

/// As an operator would write it: 20, not 20.0.
fn whole(number: f64) -> Value {
    if number.fract() == 0.0 { Value::from(number as u64) } else { Value::from(number) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_configuration_is_shown_as_its_file_says_it() {
        let mut sample: Value = serde_json::from_str(include_str!("../../config/gateway.json")).unwrap();
        sample.as_object_mut().unwrap().remove("$schema").unwrap();
        assert_eq!(config(&Config::default()), sample);
    }

    #[test]
    fn no_secret_is_shown() {
        let mut config = Config::default();
        config.mqtt.signature_key = Secret::new("hunter2");
        config.websocket.secret = Secret::new("hunter2");
        config.api.token = Secret::new("hunter2");
        let mut server: Server = "wss://chat.example:99/a?token=hunter2".parse().unwrap();
        config.websocket.production = vec![Arc::new(server.clone())];
        (server.framing, server.insecure) = (Framing::Raw, Some(true));
        config.websocket.development = vec![Arc::new(server)];
        let shown = super::config(&config);
        assert!(!shown.to_string().contains("hunter2"), "{shown}");
        assert_eq!(shown["mqtt"]["signature_key"], "***");
        assert_eq!(shown["websocket"]["production_servers"][0], "wss://chat.example:99/a?***");
        let expected = json!({ "url": "wss://chat.example:99/a?***", "framing": "raw", "insecure": true });
        assert_eq!(shown["websocket"]["development_servers"][0], expected);
    }

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
