//! Reads the response to a request that this gateway has sent to an HTTP server: untrusted, and bounded.

use httparse::Status;

use super::body::{Body, Framing};
use super::error::{MAX_HEAD_BYTES, MAX_HEADERS};

/// The longest response, in bytes, with its head: an OTA answer has 1 to 2 KB.
pub const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// A response that is being received.
#[derive(Debug, Default)]
pub struct ResponseReader {
    inbox: Vec<u8>,
    /// Bytes received in all.
    received: usize,
    head: Option<Head>,
}

/// What follows the head.
#[derive(Debug)]
struct Head {
    status: u16,
    /// None: the body ends with the connection (RFC 9112 section 6.3).
    body: Option<Body>,
}

impl ResponseReader {
    /// Takes what has arrived. Gives status and body when the response is complete.
    ///
    /// # Errors
    /// Why this is no response that can be used, in words.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<(u16, Vec<u8>)>, String> {
        self.received += bytes.len();
        if self.received > MAX_RESPONSE_BYTES {
            return Err(format!("the response has more than {MAX_RESPONSE_BYTES} bytes"));
        }
        // The head is parsed only after line ends, so that one which arrives byte by byte costs no quadratic work.
        let may_have_head = bytes.contains(&b'\n');
        self.inbox.extend_from_slice(bytes);
        while self.head.is_none() {
            if !may_have_head || !self.take_head()? {
                if self.inbox.len() > MAX_HEAD_BYTES {
                    return Err(format!("the response's head has more than {MAX_HEAD_BYTES} bytes"));
                }
                return Ok(None);
            }
        }
        let Some(Head { status, body: Some(body) }) = &mut self.head else { return Ok(None) };
        let body = body.take(&mut self.inbox).map_err(|_| "the response's body is broken".to_owned())?;
        Ok(body.map(|body| (*status, body)))
    }

    /// The server has closed the connection. Gives the response if that is how it ends.
    ///
    /// # Errors
    /// Why this is no response that can be used, in words.
    pub fn end(&mut self) -> Result<(u16, Vec<u8>), String> {
        match self.head.take() {
            Some(Head { status, body: None }) => Ok((status, std::mem::take(&mut self.inbox))),
            Some(_) => Err("the connection was closed in the middle of the response".to_owned()),
            None => Err("the connection was closed without a response".to_owned()),
        }
    }

    /// Takes a head out of the inbox; false when it is incomplete. An interim one (RFC 9110 section 15.2) is skipped.
    fn take_head(&mut self) -> Result<bool, String> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut fields);
        let length = match response.parse(&self.inbox) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return Ok(false),
            Err(error) => return Err(format!("not an HTTP response: {error}")),
        };
        let status = response.code.unwrap_or_default();
        if status == 101 {
            return Err("the server switched protocols".to_owned());
        }
        if status >= 200 {
            self.head = Some(Head { status, body: framing(response.headers, status)?.map(Body::new) });
        }
        self.inbox.drain(..length);
        Ok(true)
    }
}

/// How the body ends; `None` with the connection.
fn framing(fields: &[httparse::Header<'_>], status: u16) -> Result<Option<Framing>, String> {
    let values = |name: &'static str| {
        let found = fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        found.map(|field| str::from_utf8(field.value).unwrap_or("?").trim())
    };
    if status == 204 || status == 304 {
        return Ok(Some(Framing::Length(0)));
    }
    if let Some(coding) = values("transfer-encoding").next() {
        return match coding.eq_ignore_ascii_case("chunked") {
            true => Ok(Some(Framing::Chunked)),
            false => Err("the response's transfer coding is not chunked".to_owned()),
        };
    }
    let mut lengths = values("content-length");
    let Some(first) = lengths.next() else { return Ok(None) };
    let is_number = !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number || lengths.any(|other| other != first) {
        return Err("the response's Content-Length is not one whole number".to_owned());
    }
    let length = first.parse().ok().filter(|length| *length <= MAX_RESPONSE_BYTES);
    let length = length.ok_or_else(|| format!("the response has more than {MAX_RESPONSE_BYTES} bytes"))?;
    Ok(Some(Framing::Length(length)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Outcome = Result<(u16, String), String>;

    /// What becomes of these bytes and the end of the connection, in pieces of this size.
    fn read(text: &[u8], piece: usize) -> Outcome {
        let mut reader = ResponseReader::default();
        let utf8 = |(status, body): (u16, Vec<u8>)| (status, String::from_utf8(body).unwrap());
        for bytes in text.chunks(piece) {
            if let Some(response) = reader.push(bytes)? {
                return Ok(utf8(response));
            }
        }
        reader.end().map(utf8)
    }

    #[test]
    fn responses_are_read_however_they_are_framed_and_split() {
        for (text, status, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, "{}"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nContent-Length: 2\r\n\r\n{}rest", 200, "{}"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n",
                200,
                "{}",
            ),
            ("HTTP/1.0 200 OK\r\n\r\n{}", 200, "{}"),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", 202, ""),
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
            ("HTTP/1.1 302 Found\r\nLocation: http://a/\r\nContent-Length: 0\r\n\r\n", 302, ""),
        ] {
            for piece in 1..=text.len() {
                assert_eq!(read(text.as_bytes(), piece), Ok((status, body.to_owned())), "{piece}: {text}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_a_server_sends_never_panics_and_its_pieces_do_not_matter(
            parts in prop::collection::vec(prop_oneof![
                Just("HTTP/1.1 200 OK\r\n"), Just("HTTP/1.1 100 Continue\r\n\r\n"), Just("\r\n"), Just("{}"),
                Just("Content-Length: 2\r\n"), Just("Transfer-Encoding: chunked\r\n"), Just("2\r\n"), Just("0\r\n\r\n"),
                Just("A"), Just("\n"), Just("\u{0}"),
            ], 0..12),
            piece in 1_usize..9,
        ) {
            let text = parts.concat();
            let whole = read(text.as_bytes(), text.len().max(1));
            // Why it cannot be used may be noticed at different places.
            prop_assert_eq!(read(text.as_bytes(), piece).ok(), whole.ok());
        }
    }

    #[test]
    fn what_cannot_be_used_is_an_error() {
        for (text, why) in [
            ("", "without a response"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{}", "in the middle"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", "in the middle"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "body is broken"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "not chunked"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 2\r\n\r\n{}", "not one whole number"),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "not one whole number"),
            ("HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n", "not one whole number"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n", "more than 65536"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 65537\r\n\r\n", "more than 65536"),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "switched protocols"),
            ("SSH-2.0-OpenSSH\r\n", "not an HTTP response"),
            ("HTTP/1.1 100 Continue\r\n\r\n", "without a response"),
        ] {
            let found = read(text.as_bytes(), 7).unwrap_err();
            assert!(found.contains(why), "{text}: {found}");
        }
    }

    #[test]
    fn responses_without_end_are_cut_off() {
        let endless = |start: &str, more: &str| {
            let mut reader = ResponseReader::default();
            reader.push(start.as_bytes()).unwrap();
            (0..200_000).find_map(|_| reader.push(more.as_bytes()).err()).unwrap()
        };
        assert!(endless("HTTP/1.1 200 OK\r\n", "A: b\r\n").contains("too many headers"));
        assert!(endless("HTTP/1.1 200 OK\r\nA: ", "b").contains("head has more than 8192"));
        assert!(endless("HTTP/1.1 200 OK\r\n\r\n", "xxxx").contains("more than 65536"));
        assert!(
            endless("HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n")
                .contains("more than 65536")
        );
        assert!(
            endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n")
                .contains("more than 65536")
        );
    }
}
