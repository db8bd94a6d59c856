//! The stream under a WebSocket, read in large chunks into memory that the loop lends.
//!
//! tungstenite reads into a buffer that each call owns. Reading from the system in pieces that small costs a system call
//! or two per frame; owning large ones costs memory per call. So one chunk, lent for as long as a call is served, takes
//! all that has come, and tungstenite is fed from it.

use std::io::{self, ErrorKind, Read, Write};

use super::stream::Stream;

/// Bytes per read.
pub(super) const CHUNK: usize = 16 * 1024;

/// A stream with a tap: what was read and not yet passed on, and a count of what was.
pub(super) struct Tap {
    stream: Stream,
    /// The lent chunk, or what was left when it was taken back.
    chunk: Vec<u8>,
    at: usize,
    filled: usize,
    /// The last read found less than there was room for: a new edge will announce more.
    drained: bool,
    more: bool,
    count: u64,
}

impl Tap {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, chunk: Vec::new(), at: 0, filled: 0, drained: false, more: true, count: 0 }
    }

    pub(super) fn stream_mut(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// Bytes passed on since the last call.
    pub(super) fn take_count(&mut self) -> u64 {
        std::mem::take(&mut self.count)
    }

    pub(super) fn lend(&mut self, chunk: &mut Vec<u8>, more: bool) {
        (self.drained, self.more) = (false, more);
        if self.at == self.filled && self.chunk.len() != CHUNK {
            self.chunk = std::mem::take(chunk);
            self.chunk.resize(CHUNK, 0);
        }
    }

    pub(super) fn reclaim(&mut self, chunk: &mut Vec<u8>) {
        let left = self.chunk[self.at..self.filled].to_vec();
        (self.at, self.filled) = (0, left.len());
        let lent = std::mem::replace(&mut self.chunk, left);
        if lent.len() == CHUNK {
            *chunk = lent;
        }
    }

    /// Whether a read of less than there was room for means that the socket is empty: not where bytes may wait in the
    /// TLS library, and only where the system is known to announce every arrival.
    fn short_means_empty(&self) -> bool {
        cfg!(target_os = "linux") && matches!(self.stream, Stream::Plain(_)) && !self.more
    }
}

impl Read for Tap {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.filled {
            if self.drained {
                return Err(ErrorKind::WouldBlock.into());
            }
            if self.chunk.len() != CHUNK {
                let n = self.stream.read(buffer)?;
                self.count += n as u64;
                return Ok(n);
            }
            let n = self.stream.read(&mut self.chunk)?;
            (self.at, self.filled) = (0, n);
            self.drained = n > 0 && n < CHUNK && self.short_means_empty();
        }
        let n = buffer.len().min(self.filled - self.at);
        buffer[..n].copy_from_slice(&self.chunk[self.at..self.at + n]);
        self.at += n;
        self.count += n as u64;
        Ok(n)
    }
}

impl Write for Tap {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.stream.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn tap() -> (Tap, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        (Tap::new(Stream::Plain(mio::net::TcpStream::from_std(client))), server)
    }

    /// Reads in small pieces until nothing more comes for now, at least `length` bytes.
    fn read(tap: &mut Tap, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let mut piece = [0; 100];
        loop {
            match tap.read(&mut piece) {
                Ok(0) => return all,
                Ok(n) => all.extend_from_slice(&piece[..n]),
                Err(_) if all.len() >= length => return all,
                Err(_) => tap.drained = false,
            }
        }
    }

    #[test]
    fn every_byte_comes_once_whatever_is_lent_and_taken_back() {
        let (mut tap, mut server) = tap();
        let bytes: Vec<u8> = (0..40_000u32).map(|i| (i % 251) as u8).collect();
        server.write_all(&bytes).unwrap();
        let mut chunk = Vec::new();
        let mut all = Vec::new();
        tap.lend(&mut chunk, false);
        let mut piece = [0; 300];
        while all.len() < 1000 {
            if let Ok(n) = tap.read(&mut piece) {
                all.extend_from_slice(&piece[..n]);
            }
        }
        tap.reclaim(&mut chunk);
        assert_eq!(chunk.len(), CHUNK);
        assert!(tap.chunk.len() < CHUNK);
        // What was left comes first, without the chunk and with it.
        tap.lend(&mut chunk, false);
        assert_eq!(chunk.len(), CHUNK, "not lent while something is left");
        let rest = bytes.len() - all.len();
        all.extend(read(&mut tap, rest));
        assert_eq!(all, bytes);
        assert_eq!(tap.take_count(), bytes.len() as u64);
        tap.reclaim(&mut chunk);
        assert_eq!(tap.chunk.capacity(), 0);
    }

    #[test]
    fn the_end_is_seen() {
        let (mut tap, mut server) = tap();
        server.write_all(b"last").unwrap();
        drop(server);
        let mut chunk = Vec::new();
        tap.lend(&mut chunk, true);
        assert_eq!(read(&mut tap, usize::MAX), b"last");
    }
}
