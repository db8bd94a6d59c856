//! MCP: JSON-RPC 2.0 in the payload of messages of type `mcp`.

use std::borrow::Cow;

use super::{JsonObject, Reader, envelope, json_quote, offset_in, replace_values};

/// A request; `params` is raw JSON. Devices accept only numbers up to 2^31 - 1 as ids.
pub fn mcp_request(session_id: Option<&str>, id: u32, method: &str, params: &str) -> String {
    mcp_message(session_id, &format!(r#""id":{id},"method":{},"params":{params}"#, json_quote(method)))
}

/// A notification, which has no response.
pub fn mcp_notification(session_id: Option<&str>, method: &str) -> String {
    mcp_message(session_id, &format!(r#""method":{}"#, json_quote(method)))
}

/// The response to a request; `id` and `result` are raw JSON.
pub fn mcp_result(session_id: Option<&str>, id: &str, result: &str) -> String {
    mcp_message(session_id, &format!(r#""id":{id},"result":{result}"#))
}

fn mcp_message(session_id: Option<&str>, rpc: &str) -> String {
    envelope("mcp", session_id, &format!(r#","payload":{{"jsonrpc":"2.0",{rpc}}}"#))
}

/// The payload of an `mcp` message. Everything but the method is raw JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rpc<'a> {
    /// `None` if absent or null: no response is expected.
    pub id: Option<&'a str>,
    /// In requests and notifications.
    pub method: Option<Cow<'a, str>>,
    /// In requests and notifications.
    pub params: Option<&'a str>,
    /// In successful responses.
    pub result: Option<&'a str>,
    /// In error responses.
    pub error: Option<&'a str>,
}

/// Parses the payload of a message of type `mcp`; `None` if it is absent or not an object.
pub fn parse_rpc(text: &str, reader: Reader) -> Option<Rpc<'_>> {
    let payload = JsonObject::parse(JsonObject::parse(text).ok()?.raw_for("payload", reader)?).ok()?;
    let raw = |key| payload.raw_for(key, reader);
    Some(Rpc {
        id: raw("id").filter(|id| *id != "null"),
        method: raw("method").and_then(|raw| reader.parse_string(raw)),
        params: raw("params"),
        result: raw("result"),
        error: raw("error"),
    })
}

impl Rpc<'_> {
    /// The id of the request, if this is its response and the id is a `u32`. Some devices repeat the method in a response.
    pub fn response_id(&self) -> Option<u32> {
        let is_response = self.method.is_none() || self.result.is_some() || self.error.is_some();
        self.id.filter(|_| is_response)?.parse().ok()
    }
}

/// The message with `id` (raw JSON) in place of its payload's id, all else byte for byte; `None` if its payload has no id.
pub fn replace_rpc_id(text: &str, id: &str, reader: Reader) -> Option<String> {
    let payload = JsonObject::parse(text).ok()?.raw_for("payload", reader)?;
    let replaced = replace_values(payload, "id", id, |_| true).ok().filter(|replaced| replaced.found > 0)?;
    let start = offset_in(text, payload);
    Some(format!("{}{}{}", &text[..start], replaced.text, &text[start + payload.len()..]))
}
