//! One request to another OTA server, whose answer a device waits for.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Waker;

use crate::admin::http::Method;
use crate::admin::response_parser::ResponseReader;
use crate::config::{ChatServerConfig, HttpUrl};
use crate::net::backend::dial::DialContext;
use crate::net::backend::dialed_stream::{DialedStream, StreamProgress};
use crate::net::backend::resolver::{Answer, Resolver};
use crate::net::backend::tls_clients::TlsClients;
use crate::net::backend::upgrade::USER_AGENT;
use crate::net::event_loop::token::OtaId;
use crate::net::ota::message::OtaRequest;
use crate::proto::ota::{MqttSection, VIA};

/// How long the other server may take, from the device's request to the end of its answer.
pub(crate) const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// Fields of one connection (RFC 9110 section 7.6.1), and those that this gateway sets itself.
const NOT_PASSED_ON: [&str; 13] = [
    "host",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
    "expect",
    "accept-encoding",
    "via",
];

/// What the device has asked for.
pub(crate) enum Asked {
    /// Its settings: whatever the other server says, this is its `mqtt` section.
    Settings(MqttSection),
    /// Whether its user has activated it.
    Activation,
}

/// What became of a request to the other server.
pub(crate) struct Finished {
    pub(crate) asked: Asked,
    /// Status and body; or why there is no answer, in words.
    pub(crate) answer: Result<(u16, Vec<u8>), String>,
}

/// A request to the other server.
pub(crate) struct Upstream {
    server: HttpUrl,
    pub(super) asked: Asked,
    request: Vec<u8>,
    sent: usize,
    connection: DialedStream,
    response: ResponseReader,
    pub(super) deadline: Instant,
    /// Identifies the lookup of the server's name.
    pub(super) lookup_id: u64,
}

impl Upstream {
    pub(super) fn new(server: HttpUrl, asked: Asked, request: &OtaRequest, now: Instant) -> Self {
        Self {
            request: write_request(request, &server.target, matches!(asked, Asked::Activation)),
            server,
            asked,
            sent: 0,
            connection: DialedStream::Resolving,
            response: ResponseReader::default(),
            deadline: now + UPSTREAM_TIMEOUT,
            lookup_id: 0,
        }
    }

    pub(super) fn server(&self) -> &ChatServerConfig {
        &self.server.target
    }

    /// When to continue although no socket has an event: to try the next address, or to give up.
    pub(super) fn next_step_at(&self) -> Instant {
        self.connection.next_step_at().map_or(self.deadline, |next| next.min(self.deadline))
    }

    /// Whether an event matters: a writable one only while something is to be written.
    pub(super) fn is_ready(&self, readable: bool) -> bool {
        readable
            || match &self.connection {
                DialedStream::Dialing(dial) => dial.waits_to_write(),
                DialedStream::Open(_) => self.sent < self.request.len(),
                _ => false,
            }
    }

    /// The name was resolved, or not. [`Upstream::advance`] goes on from there.
    pub(super) fn resolved(&mut self, answer: Answer) {
        self.connection = DialedStream::Resolved(answer);
    }

    /// Continues as far as the socket allows. Gives status and body of a complete response.
    ///
    /// # Errors
    /// Why there is no answer, in words.
    pub(super) fn advance(
        &mut self,
        scratch: &mut [u8],
        cx: &mut DialContext<'_>,
    ) -> Result<Option<(u16, Vec<u8>)>, String> {
        if cx.now >= self.deadline {
            return Err(format!("no answer in {} s", UPSTREAM_TIMEOUT.as_secs()));
        }
        match self.connection.advance(&self.server.target, cx)? {
            StreamProgress::Waiting => Ok(None),
            StreamProgress::Connected | StreamProgress::Open => self.exchange(scratch),
        }
    }

    /// Sends the request, and reads the response, which is bounded, and so is the time that this takes.
    fn exchange(&mut self, scratch: &mut [u8]) -> Result<Option<(u16, Vec<u8>)>, String> {
        let DialedStream::Open(stream) = &mut self.connection else { return Ok(None) };
        while self.sent < self.request.len() {
            match stream.write(&self.request[self.sent..]) {
                Ok(0) => return Err("the connection accepts no more data".to_owned()),
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        loop {
            match stream.read(scratch) {
                Ok(0) => return self.response.end().map(Some),
                Ok(n) => {
                    if let Some(response) = self.response.push(&scratch[..n])? {
                        return Ok(Some(response));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// What requests to the other server share.
pub(super) struct UpstreamClient {
    pub(super) resolver: Resolver,
    pub(super) tls: TlsClients,
    /// Which connection each pending lookup is for.
    pub(super) lookups: HashMap<u64, OtaId>,
    pub(super) last_lookup_id: u64,
}

impl UpstreamClient {
    /// The waker wakes the loop when a name has been resolved.
    pub(super) fn new(waker: Arc<Waker>) -> Self {
        Self {
            resolver: Resolver::new(waker),
            tls: TlsClients::default(),
            lookups: HashMap::new(),
            last_lookup_id: 0,
        }
    }
}

/// Whether a gateway has passed this request on.
pub(crate) fn is_passed_on(request: &OtaRequest) -> bool {
    request.field("via").is_some_and(|via| via.contains(VIA))
}

/// The device's request, to this server.
fn write_request(request: &OtaRequest, server: &ChatServerConfig, activation: bool) -> Vec<u8> {
    let path = if activation { activation_path(&server.path) } else { server.path.clone() };
    let mut text = format!(
        "{} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nVia: {VIA}\r\n",
        request.head.method, server.authority
    )
    .into_bytes();
    if request.field("user-agent").is_none() {
        text.extend_from_slice(format!("User-Agent: {USER_AGENT}\r\n").as_bytes());
    }
    for (name, value) in &request.fields {
        if !NOT_PASSED_ON.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            text.extend_from_slice(name.as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value);
            text.extend_from_slice(b"\r\n");
        }
    }
    if request.head.method == Method::POST {
        text.extend_from_slice(format!("Content-Length: {}\r\n", request.body.len()).as_bytes());
    }
    text.extend_from_slice(b"\r\n");
    if request.head.method == Method::POST {
        text.extend_from_slice(&request.body);
    }
    text
}

/// Where the firmware sends its question whether it is activated: the URL and `/activate`, in front of the query.
fn activation_path(path: &str) -> String {
    let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    format!("{}/activate{query}", path.trim_end_matches('/'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::admin::http::{header_fields, parse_head};

    fn request(text: &str) -> OtaRequest {
        let head = parse_head(text.as_bytes()).unwrap().unwrap();
        let (fields, length) = (header_fields(text.as_bytes()), head.length);
        OtaRequest { head, fields, body: text.as_bytes()[length..].to_vec() }
    }

    #[test]
    fn a_request_is_passed_on_without_what_belongs_to_its_connection() {
        let server: HttpUrl = "http://console:8002/xiaozhi/ota/?a=b".parse().unwrap();
        let text = "POST /x HTTP/1.1\r\nHost: gw:8006\r\nDevice-Id: aa:bb:cc:dd:ee:ff\r\nUser-Agent: board/1\r\n\
                    Connection: close\r\nAccept-Encoding: gzip\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}";
        let written = String::from_utf8(write_request(&request(text), &server.target, false)).unwrap();
        assert_eq!(
            written,
            "POST /xiaozhi/ota/?a=b HTTP/1.1\r\nHost: console:8002\r\nConnection: close\r\nVia: 1.1 mqtt-websocket-proxy\r\n\
             Device-Id: aa:bb:cc:dd:ee:ff\r\nUser-Agent: board/1\r\nContent-Length: 2\r\n\r\n{}"
        );
        assert!(is_passed_on(&request(&written)) && !is_passed_on(&request(text)));
        let text = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let written = String::from_utf8(write_request(&request(text), &server.target, true)).unwrap();
        assert!(written.starts_with("GET /xiaozhi/ota/activate?a=b HTTP/1.1\r\nHost: console:8002\r\n"));
        assert!(written.contains(USER_AGENT) && !written.contains("Content-Length"), "{written}");
    }

    #[test]
    fn activation_is_asked_below_the_url() {
        for (path, expected) in
            [("/", "/activate"), ("/ota", "/ota/activate"), ("/ota/?k=v", "/ota/activate?k=v")]
        {
            assert_eq!(activation_path(path), expected);
        }
    }
}
