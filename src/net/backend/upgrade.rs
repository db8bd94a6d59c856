//! The WebSocket upgrade: an HTTP request and its response (RFC 6455 section 4.1).
//!
//! tungstenite's own handshake would keep 4 KiB per connection for its lifetime. Only its key functions are used.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;

use crate::config::{ChatServerConfig, Secret};
use crate::net::event_loop::stream::Stream;
use crate::proto::identity;
use crate::session::{BackendFailure, BackendStage, DialRequest, HttpAnswer, ServerCause};
use crate::text;

/// The longest response head that is accepted.
const MAX_HEAD: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;

/// How much of the body of a refusal is read, and how long its first bytes may take after the head.
const MAX_REFUSAL: usize = 512;
const BODY_TIMEOUT: Duration = Duration::from_millis(200);

/// An upgrade in progress.
pub(crate) struct Upgrade {
    stream: Stream<TcpStream>,
    server: Arc<ChatServerConfig>,
    request: Vec<u8>,
    sent: usize,
    /// The response; its head, unless the upgrade is refused.
    head: Vec<u8>,
    accept: String,
    /// The server has refused the upgrade by a head of this length: until when to wait for its words.
    refused: Option<(usize, Instant)>,
}

/// What came behind the response.
pub(crate) struct FirstFrames {
    pub(crate) bytes: Vec<u8>,
    /// The read found less than it had room for.
    pub(crate) was_all: bool,
}

/// Why a response does not accept the upgrade.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BadResponse {
    /// A status other than 101, in a head of this length.
    Refused(usize),
    /// Anything else, in words.
    Invalid(String),
}

impl Upgrade {
    pub(crate) fn new(stream: Stream<TcpStream>, dial: &DialRequest, authorization: &str) -> Self {
        let key = generate_key();
        Self {
            stream,
            server: dial.server.clone(),
            request: request(dial, authorization, &key).into_bytes(),
            sent: 0,
            head: Vec::new(),
            accept: derive_accept_key(key.as_bytes()),
            refused: None,
        }
    }

    pub(crate) fn into_stream(self) -> Stream<TcpStream> {
        self.stream
    }

    /// Until when the words of a refusal are waited for.
    pub(crate) fn waits_until(&self) -> Option<Instant> {
        self.refused.map(|(_, until)| until)
    }

    /// Continues as far as the socket allows. After the whole response, returns the bytes behind it: the first frames.
    ///
    /// # Errors
    /// Why the upgrade failed.
    pub(crate) fn advance(&mut self, now: Instant) -> Result<Option<FirstFrames>, BackendFailure> {
        if !self.send().map_err(|why| failure(why, None))? {
            return Ok(None);
        }
        let mut buffer = [0; 2048];
        loop {
            let read = match self.stream.read(&mut buffer) {
                Ok(n) => Ok(n),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            if let Some((length, until)) = self.refused {
                match read {
                    Ok(n) if n > 0 => self.head.extend_from_slice(&buffer[..n]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock && now < until => return Ok(None),
                    _ => return Err(refusal(&self.head, length, &self.server)),
                }
                if has_words(&self.head, length) {
                    return Err(refusal(&self.head, length, &self.server));
                }
                continue;
            }
            let n = match read {
                Ok(0) => {
                    let why = "the server closed the connection instead of answering";
                    return Err(failure(why, ServerCause::of_bytes(&self.head)));
                }
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(failure(error, None)),
            };
            match append(&mut self.head, &buffer[..n], |head| parse_response(head, &self.accept)) {
                Ok(Some(bytes)) => return Ok(Some(FirstFrames { bytes, was_all: n < buffer.len() })),
                Ok(None) => {}
                Err(BadResponse::Refused(length)) if has_words(&self.head, length) => {
                    return Err(refusal(&self.head, length, &self.server));
                }
                Err(BadResponse::Refused(length)) => self.refused = Some((length, now + BODY_TIMEOUT)),
                Err(BadResponse::Invalid(why)) => return Err(invalid(&why, &self.head)),
            }
        }
    }

    /// Bytes of allocated memory.
    pub(crate) fn buffered_bytes(&self) -> usize {
        self.request.capacity() + self.head.capacity()
    }

    /// Whether the whole request has been sent.
    pub(crate) fn is_sent(&self) -> bool {
        self.sent == self.request.len()
    }

    fn send(&mut self) -> Result<bool, String> {
        while self.sent < self.request.len() {
            match self.stream.write(&self.request[self.sent..]) {
                Ok(0) => return Err("the connection accepts no more data".to_owned()),
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        match self.stream.flush() {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn failure(why: impl ToString, cause: Option<ServerCause>) -> BackendFailure {
    BackendFailure::new(BackendStage::Upgrade, why.to_string()).with_cause(cause)
}

/// A response that is not HTTP, or not an upgrade.
fn invalid(why: &str, head: &[u8]) -> BackendFailure {
    let words = std::str::from_utf8(head).unwrap_or_default();
    let said = match head.first() {
        Some(byte) if byte.is_ascii_graphic() && !words.starts_with("HTTP/1.1 101") => {
            format!("; it said {}", text::quoted(words))
        }
        _ => String::new(),
    };
    failure(format!("{why}{said}"), ServerCause::of_bytes(head))
}

/// The header's value, trimmed; empty if there is none.
fn header<'a>(response: &httparse::Response<'_, 'a>, name: &str) -> &'a str {
    let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    found.and_then(|header| std::str::from_utf8(header.value).ok()).unwrap_or_default().trim()
}

/// Whether what follows the head, of this length, is enough of the server's words: all that it announces, or the limit.
fn has_words(response: &[u8], length: usize) -> bool {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let _ = head.parse(response);
    let chunked = header(&head, "transfer-encoding").eq_ignore_ascii_case("chunked");
    // A body of unknown length counts as complete when it has begun: what begins it comes in one piece.
    let announced = header(&head, "content-length").parse().unwrap_or(if chunked { MAX_REFUSAL } else { 1 });
    let body = response.len() - length;
    body >= announced.min(MAX_REFUSAL) || chunked && response.ends_with(b"\r\n0\r\n\r\n")
}

/// Why the upgrade is refused, by the response, whose head has this length, and the start of its body.
pub(crate) fn refusal(response: &[u8], length: usize, server: &ChatServerConfig) -> BackendFailure {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let _ = head.parse(response);
    let chunked = header(&head, "transfer-encoding").eq_ignore_ascii_case("chunked");
    let body = String::from_utf8_lossy(&response[length..]);
    let body = match body.split_once("\r\n") {
        Some((_, body)) if chunked => body,
        _ => &body,
    };
    let status = head.code.unwrap_or_default();
    let cause = ServerCause::of_response(&HttpAnswer {
        status,
        server: header(&head, "server"),
        authenticate: header(&head, "www-authenticate"),
        body,
    });
    let mut why = format!("HTTP {status} {}", text::shown(head.reason.unwrap_or_default()));
    let location = header(&head, "location");
    if (300..=399).contains(&status) && !location.is_empty() {
        let _ = write!(why, ", redirected to {}: use that address", redirect_target(location, server));
    }
    if !body.trim().is_empty() {
        let _ = write!(why, "; it said {}", text::quoted(body));
    }
    failure(why, cause)
}

/// The WebSocket URL that a redirect means, with the query of our own URL unless it has one. Secrets are masked.
fn redirect_target(location: &str, server: &ChatServerConfig) -> String {
    let location = location.split('#').next().unwrap_or_default();
    let scheme = if server.tls { "wss" } else { "ws" };
    let mut url = match location.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => format!("wss://{rest}"),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => format!("ws://{rest}"),
        None if location.starts_with('/') => format!("{scheme}://{}{location}", server.authority),
        _ => location.to_owned(),
    };
    if let (false, Some((_, query))) = (url.contains('?'), server.path.split_once('?')) {
        let _ = write!(url, "?{query}");
    }
    match url.parse::<ChatServerConfig>() {
        Ok(target) => target.to_string(),
        Err(_) => text::shown(location.split('?').next().unwrap_or_default()).into_owned(),
    }
}

/// Appends to a response's head, and returns what follows the head when it is complete. The head is parsed at its first bytes
/// and then only after line ends, so that the cost stays low when it arrives byte by byte.
fn append(
    head: &mut Vec<u8>,
    more: &[u8],
    parse: impl FnOnce(&[u8]) -> Result<Option<usize>, BadResponse>,
) -> Result<Option<Vec<u8>>, BadResponse> {
    let is_first = head.is_empty();
    head.extend_from_slice(more);
    if (is_first || more.contains(&b'\n'))
        && let Some(length) = parse(head)?
        && length <= MAX_HEAD
    {
        return Ok(Some(head.split_off(length)));
    }
    if head.len() > MAX_HEAD {
        return Err(BadResponse::Invalid(format!("the response head has more than {MAX_HEAD} bytes")));
    }
    Ok(None)
}

/// What chat servers and proxies see as the client.
pub(crate) const USER_AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// The `authorization` header: the server's own token, else a signed one. Without a secret, and for a device that no token may be signed for, it is what the Node.js
/// gateway sends without a secret.
pub(crate) fn authorization(secret: Option<&Secret>, dial: &DialRequest, unix_seconds: u64) -> String {
    if let Some(token) = &dial.server.token {
        return format!("Bearer {}", String::from_utf8_lossy(token.as_bytes()));
    }
    let Some(secret) = secret.filter(|_| dial.sign_token) else { return "Bearer test-token".to_owned() };
    let client_id = dial.client_id.as_deref().unwrap_or_default();
    format!("Bearer {}", identity::bearer_token(secret.as_bytes(), client_id, dial.mac, unix_seconds))
}

/// The request. Some servers compare the `connection` header with exactly `Upgrade`, so it contains nothing else.
pub(crate) fn request(dial: &DialRequest, authorization: &str, key: &str) -> String {
    let server = &dial.server;
    let mut text = String::with_capacity(512);
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {USER_AGENT}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\ndevice-id: {}\r\nprotocol-version: {}\r\nauthorization: {authorization}\r\n\
         x-forwarded-for: {}\r\n",
        server.path, server.authority, dial.mac, dial.protocol_version, dial.forwarded_for
    );
    if let Some(client_id) = &dial.client_id {
        let _ = write!(text, "client-id: {client_id}\r\n");
    }
    text.push_str("\r\n");
    text
}

/// The length of a complete response head that accepts the upgrade; `None` for an incomplete one.
///
/// # Errors
/// Why it is not an acceptance.
pub(crate) fn parse_response(head: &[u8], accept: &str) -> Result<Option<usize>, BadResponse> {
    let invalid = |why: &str| Err(BadResponse::Invalid(why.to_owned()));
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(head) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return invalid(&format!("not an HTTP response: {error}")),
    };
    if response.code != Some(101) {
        return Err(BadResponse::Refused(length));
    }
    let values = |name: &'static str| {
        let found = response.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| std::str::from_utf8(header.value).unwrap_or_default().trim())
    };
    let header = |name| values(name).next();
    if !header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")) {
        return invalid("the response has no `Upgrade: websocket`");
    }
    let mut options = values("connection").flat_map(|value| value.split(','));
    if !options.any(|option| option.trim().eq_ignore_ascii_case("upgrade")) {
        return invalid("the response has no `Connection: Upgrade`");
    }
    if !values("sec-websocket-accept").eq([accept]) {
        return invalid("the response's Sec-WebSocket-Accept does not match the key");
    }
    // These headers count even when their value is not text.
    let refused = ["sec-websocket-extensions", "sec-websocket-protocol"];
    if response.headers.iter().any(|header| refused.iter().any(|name| header.name.eq_ignore_ascii_case(name)))
    {
        return invalid("the server chose an extension or subprotocol that was not offered");
    }
    Ok(Some(length))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::session::harness::dial_request;

    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    /// Why this response is not an acceptance, for a server with a token in its query.
    fn why_not(status: &str, headers: &str, body: &str) -> BackendFailure {
        let server = "ws://a/p?from=mqtt_gateway&token=geheim".parse().unwrap();
        let response = format!("HTTP/1.1 {status}\r\n{headers}\r\n\r\n{body}");
        match parse_response(response.as_bytes(), ACCEPT).unwrap_err() {
            BadResponse::Refused(length) => refusal(response.as_bytes(), length, &server),
            BadResponse::Invalid(why) => invalid(&why, response.as_bytes()),
        }
    }

    #[test]
    fn headers_are_those_of_the_node_gateway() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/data/node_vectors.json")).unwrap();
        let cases = vectors["headers"].as_array().unwrap();
        assert!(cases.len() >= 3);
        for case in cases {
            let text = |key: &str| case[key].as_str().unwrap();
            let dial = DialRequest {
                server: Arc::new("ws://chat.example:8000/xiaozhi/v1/?from=mqtt_gateway".parse().unwrap()),
                mac: text("mac").parse().unwrap(),
                client_id: Some(text("uuid").to_owned()),
                sign_token: true,
                forwarded_for: text("ip").parse().unwrap(),
                protocol_version: 2,
                skip_dns_cache: false,
            };
            let secret = case["secret"].as_str().and_then(Secret::new);
            let seconds = case["unix_seconds"].as_u64().unwrap();
            let request = request(&dial, &authorization(secret.as_ref(), &dial, seconds), "KEY");
            let (first, rest) = request.split_once("\r\n").unwrap();
            assert_eq!(first, "GET /xiaozhi/v1/?from=mqtt_gateway HTTP/1.1");
            let found: BTreeMap<_, _> =
                rest.trim_end().lines().map(|line| line.split_once(": ").unwrap()).collect();
            for (name, value) in case["headers"].as_object().unwrap() {
                assert_eq!(found.get(name.as_str()), value.as_str().as_ref(), "{name}");
            }
            let upgrade: BTreeMap<_, _> = [
                ("Host", "chat.example:8000"),
                ("Connection", "Upgrade"),
                ("Upgrade", "websocket"),
                ("Sec-WebSocket-Version", "13"),
                ("Sec-WebSocket-Key", "KEY"),
            ]
            .into();
            assert_eq!(found.get("User-Agent"), Some(&USER_AGENT));
            let own: BTreeMap<_, _> = found
                .into_iter()
                .filter(|(name, _)| *name != "User-Agent")
                .filter(|(name, _)| !case["headers"][*name].is_string())
                .collect();
            assert_eq!(own, upgrade);
        }
    }

    #[test]
    fn a_token_is_only_signed_if_it_may_be() {
        let mut dial = dial_request("ws://a/".parse().unwrap());
        let secret = Secret::new("secret");
        assert!(authorization(secret.as_ref(), &dial, 7).ends_with(".7"));
        dial.sign_token = false;
        assert_eq!(authorization(secret.as_ref(), &dial, 7), "Bearer test-token");
        // The server's own is sent for every device, as it stands.
        Arc::make_mut(&mut dial.server).token = Secret::new("fixed");
        assert_eq!(authorization(secret.as_ref(), &dial, 7), "Bearer fixed");
    }

    #[test]
    fn key_and_accept_agree_with_rfc_6455() {
        assert_eq!(derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), ACCEPT);
    }

    #[test]
    fn a_redirect_names_the_websocket_url_with_our_query_and_without_its_secrets() {
        for (location, target) in [
            ("https://host/path/", "wss://host/path/?from=mqtt_gateway&token=***"),
            ("https://host/path/?token=geheim", "wss://host/path/?token=***"),
            ("http://host:81/#x", "ws://host:81/?from=mqtt_gateway&token=***"),
            ("/v2/", "ws://a/v2/?from=mqtt_gateway&token=***"),
            ("ftp://host/?geheim", "ftp://host/"),
            ("https://ü/?geheim", "https://ü/"),
        ] {
            let why = why_not("301 Moved", &format!("Location: {location}"), "");
            assert_eq!(why.cause, Some(ServerCause::Redirect));
            assert_eq!(why.message, format!("HTTP 301 Moved, redirected to {target}: use that address"));
        }
    }

    #[test]
    fn a_refusal_quotes_the_start_of_its_body_behind_the_likeliest_cause() {
        let go = "Client sent an HTTP request to an HTTPS server.\n";
        let why = why_not("400 Bad Request", "Connection: close", go);
        assert_eq!(
            why.to_string(),
            "upgrade failed: the port wants TLS, and the URL says ws:// (HTTP 400 Bad Request; it said \"Client sent an \
             HTTP request to an HTTPS server.\")"
        );
        let chunked = format!("Transfer-Encoding: chunked\r\nServer: {}", "cloudflare");
        let why = why_not("403 Forbidden", &chunked, "13\r\n不允许 \"x\"\u{1b}[0m\r\n0\r\n\r\n");
        assert_eq!(why.cause, Some(ServerCause::Cdn));
        assert!(why.message.contains("it said \"不允许 \\\"x\\\"\\u{1b}[0m"), "{why}");
    }

    #[test]
    fn a_body_is_waited_for_until_enough_of_it_is_there() {
        for (headers, body, enough) in [
            ("Content-Length: 0", "", true),
            ("Content-Length: 5", "four", false),
            ("Content-Length: 5", "fives", true),
            ("Content-Length: 100000", "some", false),
            ("X: y", "", false),
            ("X: y", "some", true),
            ("Transfer-Encoding: chunked", "4\r\nsome\r\n", false),
            ("Transfer-Encoding: chunked", "4\r\nsome\r\n0\r\n\r\n", true),
        ] {
            let response = format!("HTTP/1.1 403 No\r\n{headers}\r\n\r\n{body}");
            assert_eq!(
                has_words(response.as_bytes(), response.len() - body.len()),
                enough,
                "{headers} {body}"
            );
        }
        let response =
            format!("HTTP/1.1 403 No\r\nContent-Length: 100000\r\n\r\n{}", "x".repeat(MAX_REFUSAL));
        assert!(has_words(response.as_bytes(), response.len() - MAX_REFUSAL));
    }

    #[test]
    fn a_long_refusal_is_truncated_and_shown_in_one_line() {
        let long = "x".repeat(3000);
        let location = format!("Location: http://\u{202e}\u{85}{long}");
        let why = why_not(&format!("302 a\tb{long}"), &location, &long).message;
        assert!(why.starts_with("HTTP 302 a\\tb") && why.contains("http://\\u{202e}\\u{85}x"), "{why}");
        assert!(why.chars().count() < 4 * text::SHOWN_MAX, "{why}");
    }

    #[test]
    fn only_a_complete_acceptance_passes() {
        let good = format!(
            "Upgrade: WebSocket\r\nConnection: keep-alive, upgrade\r\nSec-WebSocket-Accept: {ACCEPT}"
        );
        let text = format!("HTTP/1.1 101 Switching Protocols\r\n{good}\r\n\r\n");
        assert_eq!(parse_response(text.as_bytes(), ACCEPT), Ok(Some(text.len())));
        for end in 0..text.len() {
            assert_eq!(parse_response(&text.as_bytes()[..end], ACCEPT), Ok(None), "{end}");
        }
        for (status, headers, expected) in [
            ("200 OK", good.as_str(), "HTTP 200"),
            ("403 Forbidden", "", "HTTP 403 Forbidden"),
            ("101 X", "Connection: Upgrade", "Upgrade: websocket"),
            ("101 X", "Upgrade: websocket", "Connection: Upgrade"),
            ("101 X", "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x", "Accept"),
            ("101 X", &format!("{good}\r\nSec-WebSocket-Extensions: permessage-deflate"), "extension"),
            ("101 X", &format!("{good}\r\nsec-websocket-protocol:"), "extension"),
        ] {
            let found = why_not(status, headers, "").message;
            assert!(found.contains(expected), "{status}: {found}");
        }
        assert!(parse_response(b"SSH-2.0-OpenSSH\r\n\r\n", ACCEPT).is_err());
    }

    #[test]
    fn an_extension_that_is_not_text_is_refused() {
        for name in ["Sec-WebSocket-Extensions", "sec-websocket-protocol"] {
            let head = format!(
                "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n"
            );
            let text = [head.as_bytes(), name.as_bytes(), b": \xff\r\n\r\n"].concat();
            assert!(
                matches!(parse_response(&text, ACCEPT), Err(BadResponse::Invalid(why)) if why.contains("extension")),
                "{name}"
            );
        }
    }

    #[test]
    fn a_head_that_arrives_byte_by_byte_is_parsed_once_per_line() {
        let good = format!("Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {ACCEPT}\r\n");
        let long = format!("X-Filler: {}\r\n", "x".repeat(6000));
        let text = format!("HTTP/1.1 101 Switching Protocols\r\n{long}{good}\r\n");
        let (mut head, mut parsed) = (Vec::new(), 0);
        for (at, byte) in text.bytes().enumerate() {
            let outcome = append(&mut head, &[byte], |head| {
                parsed += 1;
                parse_response(head, ACCEPT)
            });
            let last = at + 1 == text.len();
            assert_eq!(outcome, Ok(last.then(Vec::new)), "{at}");
        }
        assert_eq!(parsed, 1 + text.matches('\n').count());
    }

    #[test]
    fn bytes_that_are_not_http_fail_at_once() {
        let tls_alert = [0x15, 3, 1, 0, 2, 2, 70];
        assert!(append(&mut Vec::new(), &tls_alert, |head| parse_response(head, ACCEPT)).is_err());
        let mut head = Vec::new();
        assert_eq!(append(&mut head, b"HTTP/1.1 101 ", |head| parse_response(head, ACCEPT)), Ok(None));
        let too_long = append(&mut head, &[b'x'; MAX_HEAD], |head| parse_response(head, ACCEPT));
        assert!(matches!(too_long, Err(BadResponse::Invalid(why)) if why.contains("more than")));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn more_bytes_do_not_change_the_result(tail in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b':')], 0..120), status in "HTTP/1.1 [1-5][0-9][0-9] [a-z]{0,3}\r\n|") {
            let head = [status.as_bytes(), &tail].concat();
            let whole = parse_response(&head, ACCEPT);
            for end in 0..head.len() {
                let part = parse_response(&head[..end], ACCEPT);
                prop_assert!(part == Ok(None) || part == whole, "{} bytes: {:?}, all: {:?}", end, part, whole);
            }
        }
    }
}
