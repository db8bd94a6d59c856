//! The stream below a WebSocket, read through a large buffer that all WebSockets share.
//!
//! tungstenite reads into a buffer of its own. A small one would cost one or two system calls per frame, a large one memory
//! per call. So the WebSocket that is being read borrows one large buffer, reads from the socket into it, and passes the
//! bytes on to tungstenite frame by frame.

use std::io::{self, ErrorKind, Read, Write};

use mio::net::TcpStream;

use crate::net::event_loop::stream::Stream;

/// Bytes per read.
pub(crate) const READ_SIZE: usize = 16 * 1024;
/// Bytes after which other calls are served: tungstenite continues to read until a message is complete, however many frames
/// that takes.
const READ_BUDGET: u16 = 2 * READ_SIZE as u16;
/// What a read takes from the budget at least, since frames may be empty.
const MIN_COST: usize = 64;

/// A stream with the bytes that were read from it and not yet passed on.
pub(crate) struct FrameReader {
    stream: Stream<TcpStream>,
    /// The borrowed buffer, or what was left over when it was given back.
    buffer: Box<[u8]>,
    /// The bytes of the buffer that are not passed on yet are those from `start` to `end`. It is at most [`READ_SIZE`] long.
    start: u16,
    end: u16,
    /// Bytes until other calls are served.
    budget_left: u16,
    cursor: FrameCursor,
    /// The last read proved that the socket is empty: a new event will announce more.
    drained: bool,
    /// The system said that the end of the stream is near.
    near_end: bool,
    /// Bytes that the socket did not accept in the last write. tungstenite passes all it has to each write.
    unwritten: u32,
}

/// The position of the next byte in the stream of frames (RFC 6455 section 5.2).
#[derive(Default)]
struct FrameCursor {
    /// Bytes of the frame that follow its header. While an extended length is read: its value so far.
    left: u64,
    /// How many of the header's first two bytes have been read; 0 behind the header.
    header_bytes: u8,
    /// How many bytes of the extended length are missing.
    length_bytes: u8,
    /// Bytes of the mask. A server must not send one, but they count until tungstenite rejects the frame.
    mask_bytes: u8,
    /// The last data frame was not the final one of its message.
    unfinished: bool,
    /// The present frame is a control frame, which is not part of a message.
    control: bool,
    /// Payload bytes of the present frame. tungstenite allocates them when it has read the header.
    frame: u32,
    /// Payload bytes of the earlier frames of an unfinished message.
    message: u32,
}

impl FrameCursor {
    /// Advances by `bytes`, but not beyond the end of a frame. Returns by how many bytes.
    fn advance(&mut self, bytes: &[u8]) -> usize {
        for (i, byte) in bytes.iter().enumerate() {
            match self.header_bytes {
                0 if self.left > 0 => {
                    let n = self.left.min((bytes.len() - i) as u64);
                    self.left -= n;
                    if self.left == 0 {
                        self.end_frame();
                    }
                    return i + n as usize;
                }
                0 => {
                    // Control frames may come between the frames of a message.
                    self.control = byte & 0x08 != 0;
                    if !self.control {
                        self.unfinished = byte & 0x80 == 0;
                    }
                    self.header_bytes = 1;
                    continue;
                }
                1 => {
                    self.header_bytes = 2;
                    self.mask_bytes = byte >> 7 << 2;
                    (self.left, self.length_bytes) = match byte & 0x7f {
                        126 => (0, 2),
                        127 => (0, 8),
                        left => (left.into(), 0),
                    };
                }
                _ => {
                    self.left = self.left << 8 | u64::from(*byte);
                    self.length_bytes -= 1;
                }
            }
            if self.length_bytes == 0 {
                self.header_bytes = 0;
                self.frame = self.left.try_into().unwrap_or(u32::MAX);
                self.left = self.left.saturating_add(self.mask_bytes.into());
                if self.left == 0 {
                    self.end_frame();
                    return i + 1;
                }
            }
        }
        bytes.len()
    }

    fn end_frame(&mut self) {
        let frame = std::mem::take(&mut self.frame);
        if !self.control {
            self.message = if self.unfinished { self.message.saturating_add(frame) } else { 0 };
        }
    }

    /// Bytes that tungstenite has allocated for an incomplete message or control frame.
    fn allocated(&self) -> usize {
        self.message as usize + self.frame as usize
    }

    fn is_between_messages(&self) -> bool {
        self.header_bytes == 0 && self.left == 0 && !self.unfinished
    }
}

impl FrameReader {
    /// `read`, at most [`READ_SIZE`] bytes, was read from the stream before.
    pub(crate) fn new(stream: Stream<TcpStream>, read: Vec<u8>) -> Self {
        Self {
            stream,
            start: 0,
            end: read.len() as u16,
            buffer: read.into(),
            budget_left: READ_BUDGET,
            cursor: FrameCursor::default(),
            drained: false,
            near_end: true,
            unwritten: 0,
        }
    }

    pub(crate) fn stream_mut(&mut self) -> &mut Stream<TcpStream> {
        &mut self.stream
    }

    /// Whether only complete messages were passed on.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.cursor.is_between_messages()
    }

    /// Bytes that the socket did not accept.
    pub(crate) fn unwritten(&self) -> usize {
        self.unwritten as usize
    }

    /// Bytes of memory that this WebSocket uses: for partial messages, and for what is not handled or not written yet. Not
    /// meaningful while the buffer is borrowed.
    pub(crate) fn buffered_bytes(&self) -> usize {
        self.buffer.len() + self.cursor.allocated() + self.unwritten()
    }

    /// Takes `shared` for the reads that follow. What was left over from earlier reads is copied into it.
    pub(crate) fn borrow_buffer(&mut self, shared: &mut Box<[u8]>, near_end: bool) {
        (self.budget_left, self.drained, self.near_end) = (READ_BUDGET, false, near_end);
        // Leftover bytes are fewer than READ_SIZE, so this length means that the buffer is borrowed already.
        if self.buffer.len() != READ_SIZE {
            let left = std::mem::replace(&mut self.buffer, std::mem::take(shared));
            self.fill_buffer();
            let left = &left[self.start.into()..self.end.into()];
            self.buffer[..left.len()].copy_from_slice(left);
            (self.start, self.end) = (0, left.len() as u16);
        }
    }

    /// Makes the buffer as long as a read, if it is not. What it contains is lost.
    fn fill_buffer(&mut self) {
        if self.buffer.len() != READ_SIZE {
            self.buffer = vec![0; READ_SIZE].into();
        }
    }

    /// Gives the borrowed buffer back, if there is one. Leftover bytes are copied out of it.
    pub(crate) fn give_back_buffer(&mut self, shared: &mut Box<[u8]>) {
        let left: Box<[u8]> = self.buffer[self.start.into()..self.end.into()].into();
        (self.start, self.end) = (0, left.len() as u16);
        let borrowed = std::mem::replace(&mut self.buffer, left);
        if borrowed.len() == READ_SIZE {
            *shared = borrowed;
        }
    }

    /// Whether reading stopped because the budget was used up, so that there may be more. If so, renews the budget.
    pub(crate) fn is_over_budget(&mut self) -> bool {
        let over = self.budget_left == 0;
        if over {
            self.budget_left = READ_BUDGET;
        }
        over
    }

    /// Whether a short read means that the socket is empty. Not over TLS, where the TLS library may hold bytes, and only on
    /// systems that are known to announce every arrival.
    fn short_read_means_empty(&self) -> bool {
        cfg!(target_os = "linux") && matches!(self.stream, Stream::Plain(_)) && !self.near_end
    }
}

impl Read for FrameReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.budget_left == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        if self.start == self.end {
            if self.drained {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.fill_buffer();
            let n = self.stream.read(&mut self.buffer)?;
            (self.start, self.end) = (0, n as u16);
            self.drained = n > 0 && n < READ_SIZE && self.short_read_means_empty();
        }
        // Not beyond the end of the frame, so that tungstenite's buffer is empty when a message is complete.
        let unread = &self.buffer[self.start.into()..self.end.into()];
        let n = self.cursor.advance(&unread[..buffer.len().min(unread.len())]);
        buffer[..n].copy_from_slice(&unread[..n]);
        self.start += n as u16;
        self.budget_left = self.budget_left.saturating_sub(n.max(MIN_COST).min(READ_BUDGET.into()) as u16);
        Ok(n)
    }
}

impl Write for FrameReader {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let result = self.stream.write(data);
        self.unwritten = (data.len() - result.as_ref().map_or(0, |n| *n)) as u32;
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use proptest::prelude::*;

    use super::*;

    fn reader() -> (FrameReader, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        (FrameReader::new(Stream::Plain(mio::net::TcpStream::from_std(client)), Vec::new()), server)
    }

    /// Reads in small pieces until nothing more arrives, at least `length` bytes.
    fn read_all(reader: &mut FrameReader, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let mut piece = [0; 100];
        loop {
            match reader.read(&mut piece) {
                Ok(0) => return all,
                Ok(n) => all.extend_from_slice(&piece[..n]),
                Err(_) if all.len() >= length => return all,
                Err(_) => (reader.drained, reader.budget_left) = (false, READ_BUDGET),
            }
        }
    }

    #[test]
    fn every_byte_is_read_once_across_borrowing_and_giving_back() {
        let (mut reader, mut server) = reader();
        let bytes: Vec<u8> = (0..40_000u32).map(|i| (i % 251) as u8).collect();
        server.write_all(&bytes).unwrap();
        let mut shared = Box::default();
        let mut all = Vec::new();
        reader.borrow_buffer(&mut shared, false);
        let mut piece = [0; 300];
        while all.len() < 1000 {
            if let Ok(n) = reader.read(&mut piece) {
                all.extend_from_slice(&piece[..n]);
            }
        }
        reader.give_back_buffer(&mut shared);
        assert_eq!(shared.len(), READ_SIZE);
        assert!(reader.buffer.len() < READ_SIZE);
        // What was left over is read first.
        reader.borrow_buffer(&mut shared, false);
        assert_eq!(shared.len(), 0);
        let rest = bytes.len() - all.len();
        all.extend(read_all(&mut reader, rest));
        assert_eq!(all, bytes);
        reader.give_back_buffer(&mut shared);
        assert_eq!(reader.buffer.len(), 0);
    }

    #[test]
    fn reading_stops_when_the_budget_is_used_up() {
        let frame = |payload: usize| {
            [&[0x82, 126, (payload >> 8) as u8, payload as u8][..], &vec![7; payload]].concat()
        };
        for (bytes, max) in [
            (frame(60_000).repeat(2), usize::from(READ_BUDGET) + 1000),
            ([0x00, 0].repeat(40_000), 2 * usize::from(READ_BUDGET) / MIN_COST),
        ] {
            let (mut reader, mut server) = reader();
            let all = bytes.len();
            let sent = std::thread::spawn(move || server.write_all(&bytes));
            let (mut shared, mut piece, mut total) = (Box::default(), [0; 1000], 0);
            while total < all {
                reader.borrow_buffer(&mut shared, false);
                let mut read = 0;
                while let Ok(n) = reader.read(&mut piece) {
                    read += n;
                }
                assert!(read <= max, "{read}");
                assert!(reader.is_over_budget() || read < max);
                total += read;
                reader.give_back_buffer(&mut shared);
            }
            sent.join().unwrap().unwrap();
        }
    }

    #[test]
    fn a_read_does_not_pass_the_end_of_a_frame() {
        // Payload length, opcode with the final bit, whether a message is complete after the frame.
        let table = [
            (0, 0x82, true),
            (5, 0x81, true),
            (125, 0x02, false),
            (126, 0x00, false),
            (7, 0x89, false),
            (0, 0x80, true),
            (65_535, 0x82, true),
            (65_536, 0x02, false),
            (1, 0x8a, false),
            (3, 0x80, true),
            (0, 0x89, true),
        ];
        for (piece, mask) in [1, 2, 3, 100, usize::MAX].into_iter().flat_map(|n| [(n, 0), (n, 0x80)]) {
            let mut cursor = FrameCursor::default();
            for (payload, opcode, whole) in table {
                let mut frame = vec![opcode];
                match payload {
                    0..=125 => frame.push(payload as u8),
                    126..=0xffff => frame.extend([126, (payload >> 8) as u8, payload as u8]),
                    _ => frame.extend([127, 0, 0, 0, 0, 0, (payload >> 16) as u8, (payload >> 8) as u8, 0]),
                }
                frame[1] |= mask;
                frame.resize(frame.len() + payload + if mask == 0 { 0 } else { 4 }, 0xff);
                let length = frame.len();
                // The next frame's first bytes have arrived too.
                frame.extend([0x82, 1]);
                let mut at = 0;
                while at < length {
                    assert!(at == 0 || !cursor.is_between_messages());
                    let n = cursor.advance(&frame[at..frame.len().min(at.saturating_add(piece))]);
                    assert!(n > 0);
                    at += n;
                }
                assert_eq!(at, length, "{payload} bytes in pieces of {piece}");
                assert_eq!(cursor.is_between_messages(), whole, "{payload} bytes in pieces of {piece}");
            }
        }
    }

    #[test]
    fn the_bytes_that_tungstenite_allocates_are_counted() {
        let frame = |first: u8, payload: usize| {
            let head = [first, 126, (payload >> 8) as u8, payload as u8];
            [&head[..], &vec![7; payload]].concat()
        };
        // A frame (none: the same one), how many of its bytes have arrived, what is allocated then: for the frames of an
        // unfinished message, and for the frame whose header has arrived.
        let table = [
            (frame(0x01, 1000), 3, 0),
            (Vec::new(), 4, 1000),
            (Vec::new(), 1004, 1000),
            (frame(0x89, 100), 4, 1100),
            (Vec::new(), 104, 1000),
            (frame(0x00, 5000), 5004, 6000),
            (frame(0x80, 200), 100, 6200),
            (Vec::new(), 204, 0),
            (frame(0x8a, 50), 20, 50),
            (Vec::new(), 54, 0),
            (frame(0x82, 300), 304, 0),
        ];
        for step in [1, 7, usize::MAX] {
            let (mut cursor, mut bytes, mut at) = (FrameCursor::default(), Vec::new(), 0_usize);
            for (frame, end, allocated) in table.clone() {
                if !frame.is_empty() {
                    (bytes, at) = (frame, 0);
                }
                while at < end {
                    at += cursor.advance(&bytes[at..end.min(at.saturating_add(step))]);
                }
                assert_eq!(cursor.allocated(), allocated, "{end} bytes of {}, {step} at a time", bytes.len());
            }
        }
    }

    #[test]
    fn the_end_of_the_stream_is_read() {
        let (mut reader, mut server) = reader();
        server.write_all(b"last").unwrap();
        drop(server);
        let mut shared = Box::default();
        reader.borrow_buffer(&mut shared, true);
        assert_eq!(read_all(&mut reader, usize::MAX), b"last");
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// This many bytes arrive.
        Arrive(usize),
        Borrow(bool),
        GiveBack,
        /// Read up to this many bytes.
        Read(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..20_000_usize).prop_map(Step::Arrive),
            (1..300_usize).prop_map(Step::Arrive),
            any::<bool>().prop_map(Step::Borrow),
            Just(Step::GiveBack),
            (1..400_usize).prop_map(Step::Read),
            (1..20_000_usize).prop_map(Step::Read),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_stream_is_read_unchanged_however_it_is_cut(steps in prop::collection::vec(step(), 1..40)) {
            let (mut reader, mut server) = reader();
            let (mut sent, mut all, mut shared, mut buffer) = (Vec::new(), Vec::new(), Box::default(), vec![0; READ_SIZE + 4000]);
            for step in steps {
                match step {
                    // No more than the system buffers.
                    Step::Arrive(n) if sent.len() - all.len() + n < 60_000 => {
                        let bytes: Vec<u8> = (sent.len()..sent.len() + n).map(|i| (i % 251) as u8).collect();
                        server.write_all(&bytes).unwrap();
                        sent.extend(bytes);
                    }
                    Step::Arrive(_) => {}
                    Step::Borrow(near_end) => reader.borrow_buffer(&mut shared, near_end),
                    Step::GiveBack => reader.give_back_buffer(&mut shared),
                    Step::Read(n) => {
                        if let Ok(n) = reader.read(&mut buffer[..n]) {
                            all.extend_from_slice(&buffer[..n]);
                        }
                    }
                }
                prop_assert!(sent.starts_with(&all));
            }
            reader.borrow_buffer(&mut shared, true);
            let rest = sent.len() - all.len();
            all.extend(read_all(&mut reader, rest));
            prop_assert!(all == sent);
        }
    }
}
