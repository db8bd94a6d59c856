//! What is received from a chat server.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::net::backend::blocking_client::{BlockingClient, ServerMessage};
use crate::proto::audio;
use crate::session::BackendClosed;
use crate::tools::device::message_type;

/// Binary frames kept to determine the framing.
const MAX_FRAMES: usize = 3;
/// Texts kept of those a server sends instead of a hello.
const MAX_TEXTS: usize = 5;

/// What a server said before its hello, or instead of it.
pub(super) struct Conversation {
    pub(super) client: BlockingClient,
    pub(super) start: Instant,
    pub(super) hello: Option<(String, Duration)>,
    /// Texts that are no hello, the first few.
    pub(super) texts: Vec<String>,
    pub(super) frames: Vec<Vec<u8>>,
    pub(super) closed: Option<BackendClosed>,
}

impl Conversation {
    pub(super) fn new(client: BlockingClient) -> Self {
        let start = Instant::now();
        Self { client, start, hello: None, texts: Vec::new(), frames: Vec::new(), closed: None }
    }

    /// Listens until `until`, the end, or `enough`.
    pub(super) fn receive_until(&mut self, until: Instant, enough: impl Fn(&Self) -> bool) {
        while self.closed.is_none() && !enough(self) {
            match self.client.receive(until) {
                None => return,
                Some(ServerMessage::Gone(gone)) => self.closed = Some(gone),
                Some(ServerMessage::Audio(frame)) if self.frames.len() < MAX_FRAMES => {
                    self.frames.push(frame)
                }
                Some(ServerMessage::Audio(_)) => {}
                Some(ServerMessage::Text(text)) => {
                    self.answer_mcp(&text);
                    if self.hello.is_none() && message_type(&text) == "hello" {
                        self.hello = Some((text, self.start.elapsed()));
                    } else if self.texts.len() < MAX_TEXTS {
                        self.texts.push(text);
                    }
                }
            }
            // A server that sends without a pause must not extend the wait.
            if Instant::now() >= until {
                return;
            }
        }
    }

    /// Answers a request like a device without tools.
    fn answer_mcp(&mut self, text: &str) {
        let Ok(message) = serde_json::from_str::<Value>(text) else { return };
        if message["type"] != "mcp" || message["payload"]["id"].is_null() {
            return;
        }
        let result = json!({
            "protocolVersion": "2024-11-05", "capabilities": {"tools": {}}, "tools": [],
            "serverInfo": {"name": "check", "version": env!("CARGO_PKG_VERSION")},
        });
        let payload = json!({"jsonrpc": "2.0", "id": message["payload"]["id"], "result": result});
        let session = &message["session_id"];
        self.client.send_text(json!({"type": "mcp", "session_id": session, "payload": payload}).to_string());
    }

    pub(super) fn framing_is_known(&self) -> bool {
        self.frames.len() >= MAX_FRAMES
            || self.frames.iter().any(|frame| audio::parse_ws_frame(frame).is_some())
    }
}
