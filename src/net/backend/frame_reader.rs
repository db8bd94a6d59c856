//! The stream under a WebSocket, read in large chunks into memory that the loop lends.
//!
//! tungstenite reads into small buffers. Reading from the system in pieces that small costs a system call or two per frame;
//! larger ones cost memory per call. So one chunk, lent for as long as a call is served, takes all that has come, and
//! tungstenite is fed from it, frame by frame.

use std::io::{self, ErrorKind, Read, Write};

use mio::net::TcpStream;

use crate::net::event_loop::stream::Stream;

/// Bytes per read.
pub(crate) const READ_SIZE: usize = 16 * 1024;
/// Bytes after which it is time for other calls: tungstenite reads on until a message is whole, however many frames that
/// takes.
const READ_BUDGET: u16 = 2 * READ_SIZE as u16;
/// A piece costs as much as so many bytes, however short it is: fragments may be empty.
const MIN_COST: usize = 64;

/// A stream with a tap: what was read and not yet passed on, and where in a message it stands.
pub(crate) struct FrameReader {
    stream: Stream<TcpStream>,
    /// The lent chunk, or what was left when it was taken back.
    buffer: Vec<u8>,
    at: usize,
    filled: usize,
    /// Bytes until it is time for other calls.
    budget_left: u16,
    cursor: FrameCursor,
    /// The last read found less than there was room for: a new edge will announce more.
    drained: bool,
    more: bool,
    /// Bytes that the last write found no room for: tungstenite writes all it has each time.
    unwritten: u32,
}

/// Where in the stream of frames (RFC 6455 section 5.2) the next byte stands.
#[derive(Default)]
struct FrameCursor {
    /// Of the frame's payload that is to come; of its length, while that is read.
    left: u64,
    /// Bytes of the header seen, two at most.
    seen: u8,
    /// Bytes of the length that follow these two.
    length: u8,
    /// Bytes of the mask: a server must not send one, but until that is found out they are part of the frame.
    mask: u8,
    /// The last data frame was not the last of its message.
    unfinished: bool,
    /// The present frame is a control frame, of no message.
    control: bool,
    /// Payload of the present frame, for which tungstenite makes room when it has seen the header.
    frame: u32,
    /// Payload of the frames before it in an unfinished message.
    message: u32,
}

impl FrameCursor {
    /// Moves on, to the end of a frame at most; by how many bytes.
    fn advance(&mut self, bytes: &[u8]) -> usize {
        for (i, byte) in bytes.iter().enumerate() {
            match self.seen {
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
                    self.seen = 1;
                    continue;
                }
                1 => {
                    self.seen = 2;
                    self.mask = byte >> 7 << 2;
                    (self.left, self.length) = match byte & 0x7f {
                        126 => (0, 2),
                        127 => (0, 8),
                        left => (left.into(), 0),
                    };
                }
                _ => {
                    self.left = self.left << 8 | u64::from(*byte);
                    self.length -= 1;
                }
            }
            if self.length == 0 {
                self.seen = 0;
                self.frame = self.left.try_into().unwrap_or(u32::MAX);
                self.left = self.left.saturating_add(self.mask.into());
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

    /// Bytes that tungstenite keeps, or has room for, of what is not whole yet.
    fn kept(&self) -> usize {
        self.message as usize + self.frame as usize
    }

    fn is_between_messages(&self) -> bool {
        self.seen == 0 && self.left == 0 && !self.unfinished
    }
}

impl FrameReader {
    /// With what was read of the stream before.
    pub(crate) fn new(stream: Stream<TcpStream>, read: Vec<u8>) -> Self {
        let filled = read.len();
        let place = FrameCursor::default();
        Self {
            stream,
            buffer: read,
            at: 0,
            filled,
            budget_left: READ_BUDGET,
            cursor: place,
            drained: false,
            more: true,
            unwritten: 0,
        }
    }

    pub(crate) fn stream_mut(&mut self) -> &mut Stream<TcpStream> {
        &mut self.stream
    }

    /// Whether all that was passed on are whole messages.
    pub(crate) fn is_between_messages(&self) -> bool {
        self.cursor.is_between_messages()
    }

    /// Bytes that wait for the server to read.
    pub(crate) fn unwritten(&self) -> usize {
        self.unwritten as usize
    }

    /// Bytes of memory that this WebSocket takes: what is partial, what was not served yet, what was not written. To be
    /// asked while no chunk is lent.
    pub(crate) fn kept(&self) -> usize {
        self.buffer.capacity() + self.cursor.kept() + self.unwritten()
    }

    pub(crate) fn borrow_buffer(&mut self, chunk: &mut Vec<u8>, more: bool) {
        (self.budget_left, self.drained, self.more) = (READ_BUDGET, false, more);
        // What was left is less than a chunk.
        if self.buffer.len() != READ_SIZE {
            let kept = std::mem::replace(&mut self.buffer, std::mem::take(chunk));
            let left = &kept[self.at..self.filled];
            self.buffer.resize(READ_SIZE, 0);
            self.buffer[..left.len()].copy_from_slice(left);
            (self.at, self.filled) = (0, left.len());
        }
    }

    pub(crate) fn give_back_buffer(&mut self, chunk: &mut Vec<u8>) {
        let left = self.buffer[self.at..self.filled].to_vec();
        (self.at, self.filled) = (0, left.len());
        let lent = std::mem::replace(&mut self.buffer, left);
        if lent.len() == READ_SIZE {
            *chunk = lent;
        }
    }

    /// Whether it stopped where it had read enough, and there may be more. From now on it may read as much again.
    pub(crate) fn is_over_budget(&mut self) -> bool {
        let enough = self.budget_left == 0;
        if enough {
            self.budget_left = READ_BUDGET;
        }
        enough
    }

    /// Whether a read of less than there was room for means that the socket is empty: not where bytes may wait in the
    /// TLS library, and only where the system is known to announce every arrival.
    fn short_means_empty(&self) -> bool {
        cfg!(target_os = "linux") && matches!(self.stream, Stream::Plain(_)) && !self.more
    }
}

impl Read for FrameReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.budget_left == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        if self.at == self.filled {
            if self.drained {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.buffer.resize(READ_SIZE, 0);
            let n = self.stream.read(&mut self.buffer)?;
            (self.at, self.filled) = (0, n);
            self.drained = n > 0 && n < READ_SIZE && self.short_means_empty();
        }
        // Not beyond the frame, so that nothing is left in tungstenite's buffer when a message is whole.
        let n = buffer.len().min(self.filled - self.at);
        let n = self.cursor.advance(&self.buffer[self.at..self.at + n]);
        buffer[..n].copy_from_slice(&self.buffer[self.at..self.at + n]);
        self.at += n;
        self.budget_left = self.budget_left.saturating_sub(n.max(MIN_COST).min(READ_BUDGET.into()) as u16);
        Ok(n)
    }
}

impl Write for FrameReader {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let outcome = self.stream.write(data);
        self.unwritten = (data.len() - outcome.as_ref().map_or(0, |n| *n)) as u32;
        outcome
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

    fn tap() -> (FrameReader, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        (FrameReader::new(Stream::Plain(mio::net::TcpStream::from_std(client)), Vec::new()), server)
    }

    /// Reads in small pieces until nothing more comes for now, at least `length` bytes.
    fn read(tap: &mut FrameReader, length: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let mut piece = [0; 100];
        loop {
            match tap.read(&mut piece) {
                Ok(0) => return all,
                Ok(n) => all.extend_from_slice(&piece[..n]),
                Err(_) if all.len() >= length => return all,
                Err(_) => (tap.drained, tap.budget_left) = (false, READ_BUDGET),
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
        tap.borrow_buffer(&mut chunk, false);
        let mut piece = [0; 300];
        while all.len() < 1000 {
            if let Ok(n) = tap.read(&mut piece) {
                all.extend_from_slice(&piece[..n]);
            }
        }
        tap.give_back_buffer(&mut chunk);
        assert_eq!(chunk.len(), READ_SIZE);
        assert!(tap.buffer.len() < READ_SIZE);
        // What was left comes first.
        tap.borrow_buffer(&mut chunk, false);
        assert_eq!(chunk.len(), 0);
        let rest = bytes.len() - all.len();
        all.extend(read(&mut tap, rest));
        assert_eq!(all, bytes);
        tap.give_back_buffer(&mut chunk);
        assert_eq!(tap.buffer.capacity(), 0);
    }

    #[test]
    fn it_stops_after_so_many_bytes_or_pieces_and_says_so() {
        let frame = |payload: usize| {
            [&[0x82, 126, (payload >> 8) as u8, payload as u8][..], &vec![7; payload]].concat()
        };
        for (bytes, most) in [
            (frame(60_000).repeat(2), usize::from(READ_BUDGET) + 1000),
            ([0x00, 0].repeat(40_000), 2 * usize::from(READ_BUDGET) / MIN_COST),
        ] {
            let (mut tap, mut server) = tap();
            let all = bytes.len();
            let sent = std::thread::spawn(move || server.write_all(&bytes));
            let (mut chunk, mut piece, mut came) = (Vec::new(), [0; 1000], 0);
            while came < all {
                tap.borrow_buffer(&mut chunk, false);
                let mut lent = 0;
                while let Ok(n) = tap.read(&mut piece) {
                    lent += n;
                }
                assert!(lent <= most, "{lent}");
                assert!(tap.is_over_budget() || lent < most);
                came += lent;
                tap.give_back_buffer(&mut chunk);
            }
            sent.join().unwrap().unwrap();
        }
    }

    #[test]
    fn what_is_passed_on_ends_with_each_frame() {
        // Payload, opcode with the final bit; whether a message is whole after it.
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
            let mut place = FrameCursor::default();
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
                // The next frame's first bytes are there already.
                frame.extend([0x82, 1]);
                let mut at = 0;
                while at < length {
                    assert!(at == 0 || !place.is_between_messages());
                    let n = place.advance(&frame[at..frame.len().min(at.saturating_add(piece))]);
                    assert!(n > 0);
                    at += n;
                }
                assert_eq!(at, length, "{payload} bytes in pieces of {piece}");
                assert_eq!(place.is_between_messages(), whole, "{payload} bytes in pieces of {piece}");
            }
        }
    }

    #[test]
    fn what_tungstenite_keeps_of_a_message_is_known() {
        let frame = |first: u8, payload: usize| {
            let head = [first, 126, (payload >> 8) as u8, payload as u8];
            [&head[..], &vec![7; payload]].concat()
        };
        // A frame, how many of its bytes come, what is kept then: whole frames of an unfinished message, and the room that a
        // frame's header asks for.
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
            let (mut place, mut bytes, mut came) = (FrameCursor::default(), Vec::new(), 0_usize);
            for (frame, end, kept) in table.clone() {
                if !frame.is_empty() {
                    (bytes, came) = (frame, 0);
                }
                while came < end {
                    came += place.advance(&bytes[came..end.min(came.saturating_add(step))]);
                }
                assert_eq!(place.kept(), kept, "{end} bytes of {}, {step} at a time", bytes.len());
            }
        }
    }

    #[test]
    fn the_end_is_seen() {
        let (mut tap, mut server) = tap();
        server.write_all(b"last").unwrap();
        drop(server);
        let mut chunk = Vec::new();
        tap.borrow_buffer(&mut chunk, true);
        assert_eq!(read(&mut tap, usize::MAX), b"last");
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// So many bytes arrive.
        Arrive(usize),
        Lend(bool),
        Reclaim,
        /// The WebSocket asks for so many bytes.
        Read(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..20_000_usize).prop_map(Step::Arrive),
            (1..300_usize).prop_map(Step::Arrive),
            any::<bool>().prop_map(Step::Lend),
            Just(Step::Reclaim),
            (1..400_usize).prop_map(Step::Read),
            (1..20_000_usize).prop_map(Step::Read),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_stream_is_the_same_however_it_is_cut(steps in prop::collection::vec(step(), 1..40)) {
            let (mut tap, mut server) = tap();
            let (mut sent, mut all, mut chunk, mut buffer) = (Vec::new(), Vec::new(), Vec::new(), vec![0; READ_SIZE + 4000]);
            for step in steps {
                match step {
                    // No more than the system holds for a reader that does not read.
                    Step::Arrive(n) if sent.len() - all.len() + n < 60_000 => {
                        let bytes: Vec<u8> = (sent.len()..sent.len() + n).map(|i| (i % 251) as u8).collect();
                        server.write_all(&bytes).unwrap();
                        sent.extend(bytes);
                    }
                    Step::Arrive(_) => {}
                    Step::Lend(more) => tap.borrow_buffer(&mut chunk, more),
                    Step::Reclaim => tap.give_back_buffer(&mut chunk),
                    Step::Read(n) => {
                        if let Ok(n) = tap.read(&mut buffer[..n]) {
                            all.extend_from_slice(&buffer[..n]);
                        }
                    }
                }
                prop_assert!(sent.starts_with(&all));
            }
            tap.borrow_buffer(&mut chunk, true);
            let rest = sent.len() - all.len();
            all.extend(read(&mut tap, rest));
            prop_assert!(all == sent);
        }
    }
}
