//! Requests that one gateway passes on to another, and their answers, as bytes.
//!
//! ```text
//! request    a JSON object in one line: method, path (as in ROUTES), name (what stands in the path's braces), query; then the body
//! answer     the status, 2 bytes, big endian; then the body
//! ```

use serde::{Deserialize, Serialize};

use super::error::{ApiError, RequestError};
use super::response::Response;
use super::routes::{Endpoint, ROUTES, Reach};

/// The longest first line, in bytes.
const MAX_LINE: usize = 16 << 10;

/// A request that another gateway has authorized.
#[derive(Debug, PartialEq, Eq)]
pub struct PassedOn<'a> {
    /// What it is for: a call that may be passed on.
    pub endpoint: Endpoint,
    /// The client id, or another id, in the path; empty without one.
    pub name: String,
    /// The query.
    pub query: String,
    /// The body.
    pub body: &'a [u8],
}

#[derive(Serialize, Deserialize)]
struct Line {
    method: String,
    path: String,
    name: String,
    query: String,
}

impl<'a> PassedOn<'a> {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let route = ROUTES.iter().find(|route| route.endpoint == self.endpoint);
        let (method, path) =
            route.map(|route| (route.method.to_string(), route.path.to_owned())).unwrap_or_default();
        let line = Line { method, path, name: self.name.clone(), query: self.query.clone() };
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        bytes.push(b'\n');
        bytes.extend_from_slice(self.body);
        bytes
    }

    /// From the bytes that another gateway has sent.
    ///
    /// # Errors
    /// Bytes that are no such request, and calls that are not passed on.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, ApiError> {
        let malformed = || RequestError::Malformed("it was passed on in an unknown form").error();
        let end = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n').ok_or_else(malformed)?;
        let line: Line = serde_json::from_slice(&bytes[..end]).map_err(|_| malformed())?;
        let is_it =
            |route: &&super::routes::Route| route.method.as_str() == line.method && route.path == line.path;
        match ROUTES.iter().find(is_it).map(|route| route.endpoint) {
            Some(endpoint) if endpoint.reach() != Reach::Asked => {
                Ok(Self { endpoint, name: line.name, query: line.query, body: &bytes[end + 1..] })
            }
            _ => {
                Err(ApiError::new(501, "not_passed_on", "This gateway answers no such call to another one."))
            }
        }
    }
}

/// An answer as bytes.
pub fn encode_answer(response: &Response) -> Vec<u8> {
    [&response.status.to_be_bytes(), &response.body[..]].concat()
}

/// The answer of another gateway; `None` when the bytes are none.
pub fn decode_answer(bytes: &[u8]) -> Option<Response> {
    let (status, body) = bytes.split_first_chunk()?;
    let status = u16::from_be_bytes(*status);
    // What was passed on is answered in JSON, in whatever version of the gateway.
    serde_json::from_slice::<serde::de::IgnoredAny>(body).ok().filter(|_| (200..600).contains(&status))?;
    Some(Response::json(status, std::str::from_utf8(body).ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_request_arrives_as_it_was() {
        for body in [&b""[..], b"{\n}", b"OggS\xff\0"] {
            let request = PassedOn {
                endpoint: Endpoint::Command,
                name: "g@@@\n\"组".to_owned(),
                query: "a=b%20c".to_owned(),
                body,
            };
            assert_eq!(PassedOn::decode(&request.encode()).unwrap(), request);
        }
    }

    /// Whoever can write to Redis must not be able to do more than this.
    #[test]
    fn only_calls_about_devices_are_passed_on() {
        for route in &ROUTES {
            let bytes =
                PassedOn { endpoint: route.endpoint, name: "x".to_owned(), query: String::new(), body: b"" };
            let allowed = PassedOn::decode(&bytes.encode()).is_ok();
            assert_eq!(allowed, route.endpoint.reach() != Reach::Asked, "{}", route.path);
        }
        for path in ["/api/reload", "/api/drain", "/api/credentials", "/api/config", "/metrics"] {
            let endpoint = ROUTES.iter().find(|route| route.path == path).unwrap().endpoint;
            assert_eq!(endpoint.reach(), Reach::Asked, "{path}");
        }
    }

    #[test]
    fn bad_bytes_are_refused() {
        let line = r#"{"method":"GET","path":"/api/sessions/{clientId}","name":"x","query":""}"#;
        assert!(PassedOn::decode(format!("{line}\n").as_bytes()).is_ok());
        for bad in [
            "",
            "\n",
            "{}\n",
            line,
            r#"{"method":"PUT","path":"/api/sessions/{clientId}","name":"x","query":""}"#,
        ] {
            assert!(PassedOn::decode(bad.as_bytes()).is_err(), "{bad}");
        }
        let long = format!("{}{line}\n", " ".repeat(MAX_LINE));
        assert!(PassedOn::decode(long.as_bytes()).is_err());
    }

    #[test]
    fn an_answer_arrives_as_it_was() {
        let answer = Response::json(409, r#"{"code":"no_call"}"#);
        assert_eq!(decode_answer(&encode_answer(&answer)), Some(answer));
        for bad in [&b""[..], b"\0", b"\0\xc8", b"\0\xc8{", b"\0\x63{}", b"\x02\x58{}", b"\0\xc8\"\xff\""] {
            assert_eq!(decode_answer(bad), None, "{bad:?}");
        }
    }
}
