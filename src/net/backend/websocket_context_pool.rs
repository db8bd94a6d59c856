//! A pool of tungstenite contexts, shared by all WebSockets.
//!
//! Between two messages a context has no state: its buffers are empty. So a WebSocket borrows one only while it reads or
//! writes a message, and the next WebSocket uses the same memory, which is in the CPU cache.

use tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Bytes, Message};

use bytes::BytesMut;

/// How much tungstenite reads at a time from the frame reader.
const READ_BUFFER: usize = 512;
/// How many bytes of frames tungstenite gathers before it writes them. The end of the iteration flushes them anyway.
const WRITE_BUFFER: usize = 16 * 1024;
/// The most bytes that wait for a chat server that does not read. Beyond that, audio is dropped, and text ends the call.
pub(crate) const MAX_WRITE_BUFFER: usize = 128 * 1024;
/// The longest message that is accepted from a chat server.
const MAX_MESSAGE: usize = 1024 * 1024;
/// The most unused contexts to keep: as many WebSockets as a batch of datagrams is for, after which they are flushed.
const SPARE_MAX: usize = 32;

/// The contexts that no WebSocket has borrowed.
#[derive(Default)]
pub struct ContextPool {
    #[expect(clippy::vec_box, reason = "a box moves between the pool and a WebSocket without a copy")]
    spare: Vec<Box<WebSocketContext>>,
    /// Memory for the payloads of binary messages.
    payload: BytesMut,
}

impl ContextPool {
    /// The context of a WebSocket; borrows one if it has none.
    pub fn borrow<'a>(&mut self, context: &'a mut Option<Box<WebSocketContext>>) -> &'a mut WebSocketContext {
        context.get_or_insert_with(|| self.spare.pop().unwrap_or_else(fresh))
    }

    /// Takes back a context without state. One whose buffers `grew` for a long message is freed.
    pub fn give_back(&mut self, context: Box<WebSocketContext>, grew: bool) {
        if !grew && self.spare.len() < SPARE_MAX {
            self.spare.push(context);
        }
    }

    /// Frees the unused contexts.
    pub(crate) fn shrink(&mut self) {
        self.spare = Vec::new();
    }

    /// A binary message. Its memory is reused after it has been written.
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
