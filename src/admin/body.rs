//! The body of a request: by length, or chunked (RFC 9112 section 7.1).

use httparse::Status;

use super::error::{MAX_BODY_BYTES, MAX_HEAD_BYTES, RequestError};

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// It has so many bytes.
    Length(usize),
    /// It comes in chunks, the last of which is empty.
    Chunked,
}

/// A body that is being received.
#[derive(Debug)]
pub struct Body {
    framing: Framing,
    /// The most bytes that it may have.
    limit: usize,
    chunked: Chunked,
}

impl Body {
    /// A body of which nothing was received yet, of [`MAX_BODY_BYTES`] at most.
    pub fn new(framing: Framing) -> Self {
        Self::with_limit(framing, MAX_BODY_BYTES)
    }

    /// A body of which nothing was received yet, of this many bytes at most.
    pub fn with_limit(framing: Framing, limit: usize) -> Self {
        let chunked = Chunked { state: State::Size, decoded: Vec::new(), limit, spare: MAX_HEAD_BYTES };
        Self { framing, limit, chunked }
    }

    /// Takes the body's bytes out of `inbox`, and returns the body when it is complete. What follows it stays.
    ///
    /// # Errors
    /// When it is malformed or too long.
    pub fn take(&mut self, inbox: &mut Vec<u8>) -> Result<Option<Vec<u8>>, RequestError> {
        match self.framing {
            Framing::Length(length) if length > self.limit => Err(RequestError::BodyTooLong),
            Framing::Length(length) if inbox.len() < length => Ok(None),
            Framing::Length(length) => {
                let rest = inbox.split_off(length);
                Ok(Some(std::mem::replace(inbox, rest)))
            }
            Framing::Chunked => {
                let used = self.chunked.decode(inbox)?;
                inbox.drain(..used);
                let is_done = matches!(self.chunked.state, State::Done);
                Ok(is_done.then(|| std::mem::take(&mut self.chunked.decoded)))
            }
        }
    }

    /// How many bytes to read next, when so many are in the inbox.
    pub fn wanted(&self, held: usize) -> usize {
        match self.framing {
            Framing::Length(length) => length.saturating_sub(held),
            Framing::Chunked => MAX_HEAD_BYTES,
        }
    }
}

/// A chunk size of 16 digits and its line end: what is longer has an extension.
const SIZE_LINE: usize = 18;

const BROKEN: RequestError = RequestError::Malformed("its chunked body is broken");
const TOO_MUCH: RequestError = RequestError::Malformed("its chunk extensions and trailers are too long");

#[derive(Debug)]
struct Chunked {
    state: State,
    decoded: Vec<u8>,
    limit: usize,
    /// Bytes that extensions and trailers may still have; both are ignored.
    spare: usize,
}

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum State {
    /// A line with the size of a chunk.
    Size,
    /// So many bytes of a chunk, at least one.
    Data(usize),
    /// The line end behind a chunk.
    DataEnd,
    /// Trailer fields and an empty line: whether this line is empty so far, and whether its CR was there.
    Trailer {
        empty: bool,
        cr: bool,
    },
    Done,
}

impl Chunked {
    /// Decodes what has come; gives how many bytes of it are used up. Each is looked at once, but for those of a size line
    /// that is not whole.
    fn decode(&mut self, bytes: &[u8]) -> Result<usize, RequestError> {
        let mut rest = bytes;
        while !rest.is_empty() && !matches!(self.state, State::Done) {
            match self.step(rest)? {
                0 => break,
                used => rest = &rest[used..],
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// One step; gives how many bytes it used. None when more must come.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, RequestError> {
        let (state, used) = match (self.state, bytes) {
            (State::Size, _) => return self.size_line(bytes),
            (State::Data(left), _) => {
                let used = left.min(bytes.len());
                self.decoded.extend_from_slice(&bytes[..used]);
                (if used == left { State::DataEnd } else { State::Data(left - used) }, used)
            }
            (State::DataEnd, [b'\r', b'\n', ..]) => (State::Size, 2),
            (State::DataEnd, [b'\r']) => (State::DataEnd, 0),
            (State::Trailer { empty, cr: true }, [b'\n', ..]) => {
                self.spend(1)?;
                (if empty { State::Done } else { State::Trailer { empty: true, cr: false } }, 1)
            }
            (State::Trailer { empty, cr: false }, [first, ..]) if *first != b'\n' => {
                self.spend(1)?;
                let cr = *first == b'\r';
                (State::Trailer { empty: empty && cr, cr }, 1)
            }
            (State::DataEnd | State::Trailer { .. } | State::Done, _) => return Err(BROKEN),
        };
        self.state = state;
        Ok(used)
    }

    fn size_line(&mut self, bytes: &[u8]) -> Result<usize, RequestError> {
        // httparse takes a line without a digit for a zero, and a bare LF for a part of an extension.
        if !bytes.first().is_some_and(u8::is_ascii_hexdigit) {
            return Err(BROKEN);
        }
        let limit = SIZE_LINE + self.spare;
        let window = &bytes[..bytes.len().min(limit + 1)];
        let (length, size) = match httparse::parse_chunk_size(window).map_err(|_| BROKEN)? {
            Status::Complete(found) => found,
            Status::Partial if window.len() > limit => return Err(TOO_MUCH),
            Status::Partial => return Ok(0),
        };
        if bytes[..length - 1].contains(&b'\n') {
            return Err(BROKEN);
        }
        self.spend(length.saturating_sub(SIZE_LINE))?;
        let room = self.limit - self.decoded.len();
        let size =
            usize::try_from(size).ok().filter(|size| *size <= room).ok_or(RequestError::BodyTooLong)?;
        self.state = if size == 0 { State::Trailer { empty: true, cr: false } } else { State::Data(size) };
        Ok(length)
    }

    fn spend(&mut self, bytes: usize) -> Result<(), RequestError> {
        self.spare = self.spare.checked_sub(bytes).ok_or(TOO_MUCH)?;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Verdict = Result<Option<(Vec<u8>, Vec<u8>)>, RequestError>;

    /// The result for these bytes when they arrive in pieces of this length, and what follows the body.
    fn decoded(bytes: &[u8], piece: usize) -> Verdict {
        let (mut body, mut inbox) = (Body::new(Framing::Chunked), Vec::new());
        let mut pieces = bytes.chunks(piece);
        while let Some(piece) = pieces.next() {
            inbox.extend_from_slice(piece);
            if let Some(whole) = body.take(&mut inbox)? {
                return Ok(Some((whole, [inbox, pieces.flatten().copied().collect()].concat())));
            }
        }
        Ok(None)
    }

    #[test]
    fn chunks_are_joined_and_extensions_and_trailers_are_ignored() {
        for (text, expected) in [
            ("0\r\n\r\nnext", ""),
            ("5\r\nhello\r\n0\r\n\r\nnext", "hello"),
            ("5\r\nhello\r\n00006\r\n, you \r\nA\r\n0123456789\r\n0\r\n\r\nnext", "hello, you 0123456789"),
            ("a;name=value;q=\"x\"\r\n0123456789\r\n0;last\r\n\r\nnext", "0123456789"),
            ("1 ;x\r\na\r\n0\r\nTrailer: 1\r\nOther: 2\r\n\r\nnext", "a"),
            ("2\r\n\r\n\r\n0\r\n\r\nnext", "\r\n"),
        ] {
            for piece in 1..=text.len() {
                let expected = Ok(Some((expected.as_bytes().to_vec(), b"next".to_vec())));
                assert_eq!(decoded(text.as_bytes(), piece), expected, "{text:?} by {piece}");
            }
            let whole = text.len() - "next".len();
            for end in 0..whole {
                assert_eq!(decoded(&text.as_bytes()[..end], 3), Ok(None), "{text:?} up to {end}");
            }
        }
    }

    #[test]
    fn what_is_not_chunked_is_refused() {
        for text in [
            "\r\n\r\n",
            ";x\r\n\r\n",
            " 1\r\na\r\n0\r\n\r\n",
            "-1\r\n",
            "0x1\r\na\r\n",
            "g\r\n",
            "1\na\n0\n\n",
            "1;x\n\r\na\r\n0\r\n\r\n",
            "1;\rx\r\na\r\n",
            "1\r\nab\r\n0\r\n\r\n",
            "1\r\na0\r\n\r\n",
            "1\r\na\n0\r\n\r\n",
            "1\r\na\rx",
            "00000000000000001\r\na\r\n",
            "0\r\n\n",
            "0\r\nx: y\n\r\n",
            "0\r\nx: y\rz",
        ] {
            for piece in 1..=text.len() {
                assert_eq!(decoded(text.as_bytes(), piece), Err(BROKEN), "{text:?} by {piece}");
            }
        }
    }

    #[test]
    fn a_chunked_body_is_bounded_as_any_other_and_so_is_what_is_ignored() {
        let bytes = |count: usize| "x".repeat(count);
        let chunk = |count: usize| format!("{count:x}\r\n{}\r\n", bytes(count));
        let end = "0\r\n\r\n";
        let fits = format!("{}{}{end}", chunk(MAX_BODY_BYTES - 1), chunk(1));
        for piece in [1, 1000, fits.len()] {
            assert_eq!(decoded(fits.as_bytes(), piece).unwrap().unwrap().0.len(), MAX_BODY_BYTES);
        }
        for text in [
            format!("{:x}\r\n", MAX_BODY_BYTES + 1),
            format!("{}1\r\n", chunk(MAX_BODY_BYTES)),
            "ffffffffffffffff\r\n".to_owned(),
        ] {
            assert_eq!(decoded(text.as_bytes(), 1000), Err(RequestError::BodyTooLong));
        }
        // With the digit, the semicolon and the line end, and with the last line end.
        let extension = |count: usize| format!("1;{}\r\na\r\n{end}", bytes(count));
        let trailer = |count: usize| format!("0\r\n{}\r\n\r\n", bytes(count));
        for piece in [1, 100, 100_000] {
            for (text, is_taken) in [
                (extension(MAX_HEAD_BYTES + SIZE_LINE - 4 - 2), true),
                (extension(MAX_HEAD_BYTES + SIZE_LINE - 4 - 1), false),
                (trailer(MAX_HEAD_BYTES - 4), true),
                (trailer(MAX_HEAD_BYTES - 3), false),
                (bytes(0) + "1;" + &bytes(2 * MAX_HEAD_BYTES), false),
                (format!("1;{}\r\na\r\n", bytes(100)).repeat(200), false),
                (format!("0\r\n{}", "a: b\r\n".repeat(2000)), false),
            ] {
                let expected = if is_taken { Ok(true) } else { Err(TOO_MUCH) };
                let found = decoded(text.as_bytes(), piece).map(|body| body.is_some());
                assert_eq!(found, expected, "{text:.20} of {} by {piece}", text.len());
            }
        }
    }

    #[test]
    fn a_body_of_many_chunks_is_decoded_in_linear_time() {
        let text = "1\r\nx\r\n".repeat(MAX_BODY_BYTES) + "0\r\n\r\n";
        let (mut body, mut inbox, mut moved) = (Body::new(Framing::Chunked), Vec::new(), 0);
        let mut whole = None;
        for piece in text.as_bytes().chunks(1000) {
            inbox.extend_from_slice(piece);
            whole = body.take(&mut inbox).unwrap();
            // What is left is decoded again: never more than a line that is not whole.
            moved = moved.max(inbox.len());
        }
        assert_eq!((whole.map(|whole| whole.len()), moved < 4), (Some(MAX_BODY_BYTES), true), "{moved}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn pieces_change_no_verdict(
            parts in proptest::collection::vec(prop_oneof![
                "[0-9a-f]{1,3}", "\r\n|\r|\n", "[;: x]{1,3}", Just("0\r\n\r\n".to_owned()), Just("1\r\na\r\n".to_owned()),
            ], 0..20),
            piece in 1..20_usize,
        ) {
            let text = parts.concat();
            prop_assert_eq!(decoded(text.as_bytes(), piece), decoded(text.as_bytes(), text.len().max(1)), "{:?}", text);
        }

        #[test]
        fn decoding_undoes_chunking(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..10), piece in 1..100_usize) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend(format!("{:X}\r\n", chunk.len()).into_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
            prop_assert_eq!(decoded(&bytes, piece), Ok(Some((chunks.concat(), Vec::new()))));
        }
    }
}
