//! What is written to a device that is connected to another gateway. The packets are passed on to that one.

use std::io::{self, ErrorKind, Write};

/// Bytes that may wait, for a device that reads slowly.
const LIMIT: usize = 64 << 10;

/// The output for such a device, until it is taken.
#[derive(Default)]
pub(crate) struct PassedOn(Vec<u8>);

impl PassedOn {
    /// Takes what was written.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

impl Write for PassedOn {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let len = data.len().min(LIMIT.saturating_sub(self.0.len()));
        if len == 0 && !data.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.0.extend_from_slice(&data[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn output_is_bounded_until_it_is_taken() {
        let mut output = PassedOn::default();
        output.write_all(b"one").unwrap();
        output.write_all(b"two").unwrap();
        assert_eq!(output.write(&vec![7; LIMIT]).unwrap(), LIMIT - 6);
        assert_eq!(output.write(b"x").unwrap_err().kind(), ErrorKind::WouldBlock);
        let taken = output.take();
        assert_eq!((taken.len(), &taken[..6]), (LIMIT, &b"onetwo"[..]));
        assert_eq!(output.write(b"x").unwrap(), 1);
    }
}
