//! The tools that simulated devices have, and their answers to MCP requests: shared by the example `load` and the bench
//! `baseline`.
#![allow(dead_code)] // Not each of them uses everything.

use std::str::FromStr;
use std::sync::LazyLock;

use mqtt_websocket_proxy::proto::message::{self, Reader};
use serde_json::value::RawValue;

const INITIALIZE: &str = r#"{"protocolVersion":"2024-11-05","capabilities":{"tools":{}},"serverInfo":{"name":"board","version":"2.0.3"}}"#;

/// Raw, one by one.
static BOARD_TOOLS: LazyLock<Vec<Box<RawValue>>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../tests/data/board_tools.json")).unwrap_or_default()
});

/// Which tools each device has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tools {
    /// All those of a real board.
    Same,
    /// Each device lacks others of them.
    Different,
    /// The devices answer no MCP.
    None,
}

impl Tools {
    /// What device `i` answers to this message, if it is an MCP request.
    pub(crate) fn answer(self, text: &str, i: usize) -> Option<String> {
        if self == Self::None || message::peek(text, Reader::Device).ok()?.kind != "mcp" {
            return None;
        }
        let rpc = message::parse_rpc(text, Reader::Device)?;
        let id = rpc.id?;
        Some(match rpc.method.as_deref()? {
            "initialize" => message::mcp_result(None, id, INITIALIZE),
            "tools/list" => {
                let has = |tool: &usize| self == Self::Same || tool / 16 > 0 || i >> tool & 1 == 0;
                let has = (0..BOARD_TOOLS.len()).filter(has).map(|tool| BOARD_TOOLS[tool].get());
                message::mcp_result(
                    None,
                    id,
                    &format!(r#"{{"tools":[{}]}}"#, has.collect::<Vec<_>>().join(",")),
                )
            }
            _ => return None,
        })
    }
}

impl FromStr for Tools {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "same" => Ok(Self::Same),
            "different" => Ok(Self::Different),
            "none" => Ok(Self::None),
            _ => Err(format!("found {text:?}, allowed: same, different, none")),
        }
    }
}
