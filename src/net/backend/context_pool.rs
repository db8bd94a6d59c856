//! What tungstenite keeps of a WebSocket, shared by all calls.
//!
//! Between two messages that is the same for every call: an open connection and empty buffers. So a call has a context only
//! while a message is on its way in or out, and the next call goes on with the same warm memory.

use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Bytes, Message};

use bytes::BytesMut;

/// What tungstenite takes at a time from the chunk that was read.
const READ_BUFFER: usize = 512;
/// Frames gather up to here before they are written; the end of the turn writes them anyway.
const WRITE_BUFFER: usize = 16 * 1024;
/// What a chat server that does not read may let pile up: then audio is dropped, and text ends the call.
pub(crate) const MAX_WRITE_BUFFER: usize = 128 * 1024;
/// The longest message of a chat server.
const MAX_MESSAGE: usize = 1024 * 1024;
/// More contexts than this are not kept: so many calls in one turn are rare.
const SPARE_MAX: usize = 256;

/// The contexts that no call has.
#[derive(Default)]
pub struct ContextPool {
    #[expect(clippy::vec_box, reason = "a box moves between here and a call as it is")]
    spare: Vec<Box<WebSocketContext>>,
    /// Audio on its way into a frame.
    payload: BytesMut,
}

impl ContextPool {
    /// The context of a call, which it gets now if it has none.
    pub fn borrow<'a>(&mut self, context: &'a mut Option<Box<WebSocketContext>>) -> &'a mut WebSocketContext {
        context.get_or_insert_with(|| self.spare.pop().unwrap_or_else(fresh))
    }

    /// Takes back a context that is as good as new. One that grew for a long message (`bulky`) is freed.
    pub fn give_back(&mut self, context: Box<WebSocketContext>, bulky: bool) {
        if !bulky && self.spare.len() < SPARE_MAX {
            self.spare.push(context);
        }
    }

    /// Frees what no call has.
    pub(crate) fn shrink(&mut self) {
        self.spare = Vec::new();
    }

    /// A binary message; its memory is used again once it is written.
    pub fn binary(&mut self, payload: &[u8]) -> Message {
        self.payload.extend_from_slice(payload);
        let payload: Bytes = self.payload.split().freeze();
        Message::Binary(payload)
    }
}

fn fresh() -> Box<WebSocketContext> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(MAX_WRITE_BUFFER)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    Box::new(WebSocketContext::new(Role::Client, Some(config)))
}
