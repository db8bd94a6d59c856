//! The socket of a connection to Redis.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use socket2::SockRef;

use crate::config::ChatServerConfig;
use crate::net::backend::dial::{Dial, DialContext, DialProgress};
use crate::net::backend::resolver::Answer;
use crate::net::event_loop::stream::Stream;
use crate::net::event_loop::tcp;
use crate::net::event_loop::write_buffer::WriteBuffer;

/// How long written bytes may be unacknowledged: packets may be lost in silence.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(5);

/// No connection, one that is being made, or one that is open.
#[derive(Default)]
pub(super) struct Socket {
    stage: Stage,
    unwritten: WriteBuffer,
}

#[derive(Default)]
enum Stage {
    #[default]
    Closed,
    /// Waits for the lookup with this id.
    Resolving(u64),
    Resolved(Answer),
    Dialing(Dial),
    Open(Stream<TcpStream>),
}

/// How far the connection has come.
pub(super) enum Progress {
    /// Continue at the next event or time.
    Waiting,
    /// Just now.
    Connected,
    Open,
}

impl Socket {
    pub(super) fn resolving(lookup_id: u64) -> Self {
        Self { stage: Stage::Resolving(lookup_id), unwritten: WriteBuffer::default() }
    }

    /// Whether this is the answer that it waits for.
    pub(super) fn resolved(&mut self, lookup_id: u64, answer: &Answer) -> bool {
        let waits = matches!(self.stage, Stage::Resolving(id) if id == lookup_id);
        if waits {
            self.stage = Stage::Resolved(answer.clone());
        }
        waits
    }

    pub(super) fn is_dialing(&self) -> bool {
        matches!(self.stage, Stage::Dialing(_))
    }

    /// Whether it has bytes that were not written.
    pub(super) fn waits_to_write(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// When to try the next address although the socket has no event.
    pub(super) fn next_step_at(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Dialing(dial) => dial.next_step_at(),
            Stage::Closed | Stage::Resolving(_) | Stage::Resolved(_) | Stage::Open(_) => None,
        }
    }

    /// Continues to connect.
    ///
    /// # Errors
    /// Why there is no connection, in words.
    pub(super) fn dial(
        &mut self,
        server: &ChatServerConfig,
        cx: &mut DialContext<'_>,
    ) -> Result<Progress, String> {
        let dial = match std::mem::take(&mut self.stage) {
            Stage::Resolved(answer) => {
                self.stage =
                    Stage::Dialing(Dial::start(answer?.into(), cx).map_err(|failure| failure.message)?);
                return Ok(Progress::Waiting);
            }
            Stage::Dialing(dial) => dial,
            Stage::Open(stream) => {
                self.stage = Stage::Open(stream);
                return Ok(Progress::Open);
            }
            other @ (Stage::Closed | Stage::Resolving(_)) => {
                self.stage = other;
                return Ok(Progress::Waiting);
            }
        };
        match dial.advance(server, cx).map_err(|failure| failure.message)? {
            DialProgress::Blocked(dial) => {
                self.stage = Stage::Dialing(dial);
                Ok(Progress::Waiting)
            }
            DialProgress::Connected(stream) => {
                set_options(stream.socket());
                self.stage = Stage::Open(stream);
                Ok(Progress::Connected)
            }
        }
    }

    /// Reads once; 0 at the end, `None` when there is nothing to read now.
    ///
    /// # Errors
    /// Those of the socket.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Stage::Open(stream) = &mut self.stage else { return Ok(None) };
        loop {
            match stream.read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => return read.map(Some),
            }
        }
    }

    /// Writes these bytes behind those that wait already. Returns how many wait then.
    ///
    /// # Errors
    /// Those of the socket.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Stage::Open(stream) = &mut self.stage else { return Ok(0) };
        if !bytes.is_empty() {
            // The cluster limits what waits.
            let _ = self.unwritten.append(|unwritten| unwritten.extend_from_slice(bytes));
        }
        self.unwritten.flush(stream)?;
        stream.flush().or_else(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(()),
            _ => Err(error),
        })?;
        Ok(self.unwritten.len())
    }
}

/// Finds a server that has disappeared. Ignores errors: the cluster looks whether Redis answers.
fn set_options(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_keepalive(&tcp::keepalive(Duration::from_secs(2), Duration::from_secs(1)));
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
}
