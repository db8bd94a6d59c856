//! Responses of the management API.

use http::StatusCode;

use crate::compressed_texts::Packed;

/// What a client is waiting for before it sends the body (RFC 9110 section 15.2.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The media type of JSON.
pub const JSON: &str = "application/json; charset=utf-8";

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The media type of the body.
    pub content_type: &'static str,
    /// A field of its own, with its value: `Allow` and the like.
    pub extra_header: Option<(&'static str, String)>,
    /// The body is in the format of gzip.
    pub is_gzip: bool,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// A JSON text.
    pub fn json(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: JSON,
            extra_header: None,
            is_gzip: false,
            body: body.into().into_bytes(),
        }
    }

    /// Text or HTML of this media type.
    pub fn text(content_type: &'static str, body: impl Into<String>) -> Self {
        Self { content_type, ..Self::json(200, body) }
    }

    /// A text of the program, compressed for a client that accepts that.
    pub fn packed(content_type: &'static str, text: &Packed, accepts_gzip: bool) -> Self {
        match accepts_gzip {
            true => Self { is_gzip: true, body: text.gzip().to_vec(), ..Self::text(content_type, "") },
            false => Self::text(content_type, text.text()),
        }
    }

    /// With a header field of its own.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.extra_header = Some((name, value.into()));
        self
    }

    /// Appends the answer's bytes: without the body in answer to HEAD, which is told its length all the same (RFC 9110
    /// section 9.3.2).
    pub fn write(&self, out: &mut Vec<u8>, keep_alive: bool, head_only: bool) {
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {connection}\r\n\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n",
            self.status,
            reason_phrase(self.status),
            self.content_type,
            self.body.len(),
        );
        out.extend_from_slice(head.as_bytes());
        if self.is_gzip {
            out.extend_from_slice(b"Content-Encoding: gzip\r\nVary: Accept-Encoding\r\n");
        }
        if let Some((name, value)) = &self.extra_header {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        if !head_only {
            out.extend_from_slice(&self.body);
        }
    }
}

/// The phrase for a status (RFC 9110 section 15, which renamed two of them).
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        _ => {
            let known = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
            known.unwrap_or("Unknown")
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_valid_http_1_1() {
        let response =
            Response::error(405, "method", "No \"such\" method.").with_header("Allow", "GET, HEAD");
        for (head_only, body) in [(false, response.body.as_slice()), (true, b"")] {
            let mut out = Vec::new();
            response.write(&mut out, !head_only, head_only);
            let mut fields = [httparse::EMPTY_HEADER; 16];
            let mut read = httparse::Response::new(&mut fields);
            let httparse::Status::Complete(length) = read.parse(&out).unwrap() else { panic!() };
            assert_eq!((read.code, read.reason), (Some(405), Some("Method Not Allowed")));
            let value = |name| {
                let field = read.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name)).unwrap();
                str::from_utf8(field.value).unwrap()
            };
            assert_eq!(value("content-length"), response.body.len().to_string());
            assert_eq!(value("allow"), "GET, HEAD");
            assert_eq!(value("connection"), if head_only { "close" } else { "keep-alive" });
            assert_eq!(&out[length..], body);
        }
        let json: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!(json["error"], "No \"such\" method.");
    }
}
