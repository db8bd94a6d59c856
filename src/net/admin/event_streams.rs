//! Streams of events to clients of the management API (server-sent events).
//!
//! A client that does not read costs one buffer: nothing is added before it has taken what there is. It loses the oldest events, and
//! is told how many; one that takes nothing for 30 s is closed, and may resume where it was.

use std::io::{ErrorKind, Read};
use std::time::Instant;

use crate::admin::error::{ApiError, ErrorStyle};
use crate::admin::event::EventRing;
use crate::admin::response::Response;
use crate::net::admin::connection::{Connection, ConnectionState, Progress, connection_mut};
use crate::net::admin::server::AdminServer;
use crate::net::event_loop::io::Io;
use crate::net::event_loop::run_queue::Task;
use crate::net::event_loop::token::AdminId;
use crate::net::event_loop::write_buffer::Flush;
use crate::net::event_ring::EventStream;

/// Streams at once: half of all connections.
const MAX_STREAMS: usize = 64;
/// Bytes that are added to a stream at a time, and one event more.
const CHUNK: usize = 16 * 1024;
const CONTENT_TYPE: &str = "text/event-stream";
/// Shows the client, and whatever is between, that the connection is alive.
const HEARTBEAT: &[u8] = b":\n\n";

impl AdminServer {
    /// Begins a stream behind the event with this id, or with the next event.
    pub(crate) fn start_event_stream(
        &mut self,
        id: AdminId,
        last_event_id: Option<u64>,
        head_only: bool,
        events: &EventStream,
        io: &mut Io,
    ) {
        let streams = self.event_streams();
        if streams >= MAX_STREAMS {
            let sentence = format!("{streams} clients read the events already; try again later.");
            let full = ApiError::new(503, "too_many_streams", sentence).response(ErrorStyle::Coded);
            self.respond(id, &full, false, head_only, io);
            return;
        }
        if head_only {
            self.respond(id, &Response::text(CONTENT_TYPE, ""), false, true, io);
            return;
        }
        io.metrics.api_answers[2] += 1;
        let Some(conn) = connection_mut(&mut self.connections, id) else { return };
        // The buffer is empty, but for `100 Continue` at most. The stream ends with the connection.
        let _ = conn.write_buffer.append(|out| {
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nCache-Control: no-store\r\nConnection: close\r\n\
                 X-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\n\r\n"
            );
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(HEARTBEAT);
        });
        let cursor = last_event_id.unwrap_or_else(|| events.last_id());
        conn.set_state(ConnectionState::Streaming { cursor }, io.now);
    }

    /// Streams that are open.
    pub(crate) fn event_streams(&self) -> usize {
        let is_stream = |conn: &Connection| matches!(conn.state, ConnectionState::Streaming { .. });
        self.connections.iter().filter(|(_, conn)| is_stream(conn)).count()
    }

    /// There are new events: whoever has read the older ones gets them.
    pub(crate) fn wake_event_streams(&self, io: &mut Io) {
        for (slot, conn) in &self.connections {
            if matches!(conn.state, ConnectionState::Streaming { .. }) && conn.write_buffer.is_empty() {
                io.run_queue.push(Task::Admin(AdminId { slot: slot as u32, epoch: conn.epoch }));
            }
        }
    }
}

impl Connection {
    /// Writes what waits, then adds more events, once. What the client sends is read and dropped.
    pub(super) fn advance_stream(
        &mut self,
        cursor: u64,
        events: &EventStream,
        scratch: &mut [u8],
        now: Instant,
    ) -> Progress {
        match self.transport.read(scratch) {
            Ok(0) => return Progress::Close,
            Ok(_) => return Progress::Continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => return Progress::Continue,
            Err(_) => return Progress::Close,
        }
        match self.flush(now) {
            Ok(Flush::Done) => {}
            Ok(Flush::Blocked) => return Progress::Wait,
            Err(_) => return Progress::Close,
        }
        let next = self.add_events(cursor, events);
        self.state = ConnectionState::Streaming { cursor: next };
        if self.write_buffer.is_empty() { Progress::Wait } else { Progress::Continue }
    }

    /// Adds some events behind this one, and says behind which one to go on.
    fn add_events(&mut self, mut cursor: u64, events: &EventStream) -> u64 {
        for _ in 0..EventRing::CAPACITY {
            let (lost, event) = events.after(cursor);
            let Some(event) = event else { break };
            // The buffer was empty, so it takes this.
            let _ = self.write_buffer.append(|out| {
                if lost > 0 {
                    out.extend_from_slice(format!("event: lost\ndata: {{\"lost\":{lost}}}\n\n").as_bytes());
                }
                event.write(out);
            });
            cursor = event.id;
            if self.write_buffer.len() >= CHUNK {
                break;
            }
        }
        cursor
    }

    /// Nothing was to be written for a while.
    pub(super) fn write_heartbeat(&mut self, now: Instant) {
        let _ = self.write_buffer.append(|out| out.extend_from_slice(HEARTBEAT));
        self.progress_at = now;
    }
}
