//! Buffers bytes for a peer whose socket does not accept them all at once.

use std::io::{self, ErrorKind, Write};

/// The most that may be unwritten: several of the largest messages known (100 KB). With more, the peer does not read.
const MAX_UNWRITTEN: usize = 512 * 1024;

/// A bounded queue of bytes. It owns no memory while it is empty.
#[derive(Debug, Default)]
pub(crate) struct WriteBuffer {
    bytes: Vec<u8>,
    written: usize,
}

/// The result of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    Done,
    Blocked,
}

impl WriteBuffer {
    /// Appends what `write` appends. False when too much is unwritten then: the peer does not read.
    #[must_use]
    pub(crate) fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        // A peer may read as fast as this is filled, so that it never becomes empty.
        if self.written > self.bytes.len() / 2 {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        let before = self.bytes.len();
        write(&mut self.bytes);
        // When nothing was unwritten the peer is not slow, however large this message is.
        before == self.written || self.bytes.len() - self.written <= MAX_UNWRITTEN
    }

    /// Bytes of allocated memory.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Unwritten bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.len() == self.written
    }

    /// Writes as much as `to` accepts.
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

    /// Accepts three bytes, then blocks once.
    struct SlowPeer(Vec<u8>, bool);

    impl Write for SlowPeer {
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
        let mut buffer = WriteBuffer::default();
        let mut peer = SlowPeer(Vec::new(), false);
        assert!(buffer.append(|bytes| bytes.extend_from_slice(b"abcdefgh")));
        assert_eq!(buffer.flush(&mut peer).unwrap(), Flush::Blocked);
        assert!(buffer.append(|bytes| bytes.extend_from_slice(b"ij")));
        while buffer.flush(&mut peer).unwrap() == Flush::Blocked {}
        assert_eq!(peer.0, b"abcdefghij");
        assert_eq!(buffer.bytes.capacity(), 0);
    }

    #[test]
    fn a_buffer_that_never_becomes_empty_does_not_grow() {
        let mut buffer = WriteBuffer::default();
        let (mut peer, mut sent) = (SlowPeer(Vec::new(), false), Vec::new());
        for n in 0..100_000_u32 {
            let bytes = &n.to_be_bytes()[1..];
            sent.extend_from_slice(bytes);
            assert!(buffer.append(|out| out.extend_from_slice(bytes)));
            if n > 100 {
                // Three bytes are appended and three are written: a hundred messages are always unwritten.
                peer.1 = false;
                assert_eq!(buffer.flush(&mut peer).unwrap(), Flush::Blocked);
            }
        }
        assert!(buffer.capacity() < 4 * 1024, "{} bytes", buffer.capacity());
        while buffer.flush(&mut peer).unwrap() == Flush::Blocked {}
        assert!(peer.0 == sent);
    }

    #[test]
    fn one_large_message_is_accepted_but_not_a_second_behind_it() {
        let mut buffer = WriteBuffer::default();
        assert!(buffer.append(|bytes| bytes.resize(MAX_UNWRITTEN * 2, 0)));
        assert!(!buffer.append(|bytes| bytes.push(0)));
    }
}
