//! The socket of a connection to Redis.

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use socket2::SockRef;

use crate::config::ChatServerConfig;
use crate::net::backend::dial::DialContext;
use crate::net::backend::dialed_stream::{DialedStream, StreamProgress};
use crate::net::backend::resolver::Answer;
use crate::net::event_loop::tcp;
use crate::net::event_loop::write_buffer::WriteBuffer;

/// How long written bytes may be unacknowledged: packets may be lost in silence.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(5);

/// No connection, one that is being made, or one that is open.
#[derive(Default)]
pub(super) struct Socket {
    connection: DialedStream,
    /// The lookup that it waits for.
    lookup_id: u64,
    unwritten: WriteBuffer,
}

impl Socket {
    pub(super) fn resolving(lookup_id: u64) -> Self {
        Self { connection: DialedStream::Resolving, lookup_id, unwritten: WriteBuffer::default() }
    }

    /// Whether this is the answer that it waits for.
    pub(super) fn resolved(&mut self, lookup_id: u64, answer: &Answer) -> bool {
        let waits = matches!(self.connection, DialedStream::Resolving) && self.lookup_id == lookup_id;
        if waits {
            self.connection = DialedStream::Resolved(answer.clone());
        }
        waits
    }

    pub(super) fn is_dialing(&self) -> bool {
        matches!(self.connection, DialedStream::Dialing(_))
    }

    /// Whether it has bytes that were not written.
    pub(super) fn waits_to_write(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// When to try the next address although the socket has no event.
    pub(super) fn next_step_at(&self) -> Option<Instant> {
        self.connection.next_step_at()
    }

    /// Continues to connect.
    ///
    /// # Errors
    /// Why there is no connection, in words.
    pub(super) fn dial(
        &mut self,
        server: &ChatServerConfig,
        cx: &mut DialContext<'_>,
    ) -> Result<StreamProgress, String> {
        let progress = self.connection.advance(server, cx)?;
        if let (StreamProgress::Connected, DialedStream::Open(stream)) = (&progress, &self.connection) {
            set_options(stream.socket());
        }
        Ok(progress)
    }

    /// Reads once; 0 at the end, `None` when there is nothing to read now.
    ///
    /// # Errors
    /// Those of the socket.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let DialedStream::Open(stream) = &mut self.connection else { return Ok(None) };
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
        let DialedStream::Open(stream) = &mut self.connection else { return Ok(0) };
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
