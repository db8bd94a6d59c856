//! Bytes on their way to a peer that may not take them all at once.

use std::io::{self, ErrorKind, Write};

/// The most that waits for a device: several of the largest messages known (100 KB), then it does not read.
const MAX: usize = 512 * 1024;

/// A bounded queue of bytes; it owns no memory while it is empty.
#[derive(Debug, Default)]
pub(crate) struct WriteBuffer {
    bytes: Vec<u8>,
    written: usize,
}

/// What became of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    Done,
    Blocked,
}

impl WriteBuffer {
    /// Appends what `write` appends. False when that is too much: the peer does not read.
    #[must_use]
    pub(crate) fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        // A peer may read as fast as it is written to and never have read all.
        if self.written > self.bytes.len() / 2 {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        let before = self.bytes.len();
        write(&mut self.bytes);
        // A peer that had nothing to read yet is not slow, however large its first message.
        before == self.written || self.bytes.len() - self.written <= MAX
    }

    /// Bytes of memory it owns.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.len() == self.written
    }

    pub(crate) fn flush(&mut self, to: &mut impl Write) -> io::Result<Flush> {
        while !self.is_empty() {
            match to.write(&self.bytes[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.written += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Flush::Blocked),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        *self = Self::default();
        Ok(Flush::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes three bytes, then blocks until asked again.
    struct Trickle(Vec<u8>, bool);

    impl Write for Trickle {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if !self.1 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let n = bytes.len().min(3);
            self.0.extend_from_slice(&bytes[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn partial_writes_lose_and_repeat_nothing() {
        let mut outbox = WriteBuffer::default();
        let mut peer = Trickle(Vec::new(), false);
        assert!(outbox.append(|bytes| bytes.extend_from_slice(b"abcdefgh")));
        assert_eq!(outbox.flush(&mut peer).unwrap(), Flush::Blocked);
        assert!(outbox.append(|bytes| bytes.extend_from_slice(b"ij")));
        while outbox.flush(&mut peer).unwrap() == Flush::Blocked {}
        assert_eq!(peer.0, b"abcdefghij");
        assert_eq!(outbox.bytes.capacity(), 0);
    }

    #[test]
    fn a_peer_that_never_has_read_all_does_not_make_it_grow() {
        let mut outbox = WriteBuffer::default();
        let (mut peer, mut sent) = (Trickle(Vec::new(), false), Vec::new());
        for n in 0..100_000_u32 {
            let bytes = &n.to_be_bytes()[1..];
            sent.extend_from_slice(bytes);
            assert!(outbox.append(|out| out.extend_from_slice(bytes)));
            if n > 100 {
                // Three bytes come, three are taken: a hundred messages always wait.
                peer.1 = false;
                assert_eq!(outbox.flush(&mut peer).unwrap(), Flush::Blocked);
            }
        }
        assert!(outbox.capacity() < 4 * 1024, "{} bytes", outbox.capacity());
        while outbox.flush(&mut peer).unwrap() == Flush::Blocked {}
        assert!(peer.0 == sent);
    }

    #[test]
    fn one_large_message_passes_but_not_a_growing_heap() {
        let mut outbox = WriteBuffer::default();
        assert!(outbox.append(|bytes| bytes.resize(MAX * 2, 0)));
        assert!(!outbox.append(|bytes| bytes.push(0)));
    }
}
