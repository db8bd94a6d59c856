//! The WebSocket upgrade: an HTTP request and its response (RFC 6455 section 4.1).
//!
//! tungstenite's own handshake would keep 4 KiB per connection for its lifetime. Only its key functions are used.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};

use mio::net::TcpStream;
use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;

use crate::config::Secret;
use crate::net::event_loop::stream::Stream;
use crate::proto::identity;
use crate::session::DialRequest;
use crate::text;

/// The longest response head that is accepted.
const MAX_HEAD: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;

/// An upgrade in progress.
pub(crate) struct Upgrade {
    stream: Stream<TcpStream>,
    request: Vec<u8>,
    sent: usize,
    head: Vec<u8>,
    accept: String,
}

impl Upgrade {
    pub(crate) fn new(stream: Stream<TcpStream>, dial: &DialRequest, authorization: &str) -> Self {
        let key = generate_key();
        Self {
            stream,
            request: request(dial, authorization, &key).into_bytes(),
            sent: 0,
            head: Vec::new(),
            accept: derive_accept_key(key.as_bytes()),
        }
    }

    pub(crate) fn into_stream(self) -> Stream<TcpStream> {
        self.stream
    }

    /// Continues as far as the socket allows. After the whole response, returns the bytes behind it: the first frames.
    ///
    /// # Errors
    /// Why the upgrade failed, as text.
    pub(crate) fn advance(&mut self) -> Result<Option<Vec<u8>>, String> {
        if !self.send()? {
            return Ok(None);
        }
        let mut buffer = [0; 2048];
        loop {
            let n = match self.stream.read(&mut buffer) {
                Ok(0) => return Err("the server closed the connection instead of answering".to_owned()),
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.to_string()),
            };
            if let Some(tail) =
                append(&mut self.head, &buffer[..n], |head| parse_response(head, &self.accept))?
            {
                return Ok(Some(tail));
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

/// Appends to a response's head, and returns what follows the head when it is complete. The head is parsed at its first bytes
/// and then only after line ends, so that the cost stays low when it arrives byte by byte.
fn append(
    head: &mut Vec<u8>,
    more: &[u8],
    parse: impl FnOnce(&[u8]) -> Result<Option<usize>, String>,
) -> Result<Option<Vec<u8>>, String> {
    let is_first = head.is_empty();
    head.extend_from_slice(more);
    if (is_first || more.contains(&b'\n'))
        && let Some(length) = parse(head)?
        && length <= MAX_HEAD
    {
        return Ok(Some(head.split_off(length)));
    }
    if head.len() > MAX_HEAD {
        return Err(format!("the response head has more than {MAX_HEAD} bytes"));
    }
    Ok(None)
}

/// The `authorization` header. Without a secret, and for a device that no token may be signed for, it is what the Node.js
/// gateway sends without a secret.
pub(crate) fn authorization(secret: Option<&Secret>, dial: &DialRequest, unix_seconds: u64) -> String {
    let Some(secret) = secret.filter(|_| dial.sign_token) else { return "Bearer test-token".to_owned() };
    let client_id = dial.client_id.as_deref().unwrap_or_default();
    format!("Bearer {}", identity::bearer_token(secret.as_bytes(), client_id, dial.mac, unix_seconds))
}

/// The request. Some servers compare the `connection` header with exactly `Upgrade`, so it contains nothing else.
pub(crate) fn request(dial: &DialRequest, authorization: &str, key: &str) -> String {
    let server = &dial.server;
    let mut text = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
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
/// Why it is not an acceptance, as text.
pub(crate) fn parse_response(head: &[u8], accept: &str) -> Result<Option<usize>, String> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(head) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("not an HTTP response: {error}")),
    };
    let values = |name: &'static str| {
        let found = response.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| std::str::from_utf8(header.value).unwrap_or_default().trim())
    };
    let header = |name| values(name).next();
    let code = response.code.unwrap_or_default();
    if code != 101 {
        let reason = text::shown(response.reason.unwrap_or_default());
        let hint = match (code, header("location")) {
            (300..=399, Some(location)) => {
                // The query may contain tokens, including the gateway's.
                let location = location.split(['?', '#']).next().unwrap_or_default();
                let location = text::shown(location);
                format!(", redirected to {location}: use that address in the configuration")
            }
            (401 | 403, _) => ": check SERVER_SECRET".to_owned(),
            (404, _) => ": check the path of the URL".to_owned(),
            _ => String::new(),
        };
        return Err(format!("HTTP {code} {reason}{hint}"));
    }
    if !header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")) {
        return Err("the response has no `Upgrade: websocket`".to_owned());
    }
    let mut options = values("connection").flat_map(|value| value.split(','));
    if !options.any(|option| option.trim().eq_ignore_ascii_case("upgrade")) {
        return Err("the response has no `Connection: Upgrade`".to_owned());
    }
    if !values("sec-websocket-accept").eq([accept]) {
        return Err("the response's Sec-WebSocket-Accept does not match the key".to_owned());
    }
    // These headers count even when their value is not text.
    let refused = ["sec-websocket-extensions", "sec-websocket-protocol"];
    if response.headers.iter().any(|header| refused.iter().any(|name| header.name.eq_ignore_ascii_case(name)))
    {
        return Err("the server chose an extension or subprotocol that was not offered".to_owned());
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

    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn response(status: &str, headers: &str) -> Result<Option<usize>, String> {
        parse_response(format!("HTTP/1.1 {status}\r\n{headers}\r\n\r\n").as_bytes(), ACCEPT)
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
            let own: BTreeMap<_, _> =
                found.into_iter().filter(|(name, _)| !case["headers"][*name].is_string()).collect();
            assert_eq!(own, upgrade);
        }
    }

    #[test]
    fn a_token_is_only_signed_if_it_may_be() {
        let mut dial = DialRequest {
            server: Arc::new("ws://a/".parse().unwrap()),
            mac: [1, 2, 3, 4, 5, 6].into(),
            client_id: None,
            sign_token: true,
            forwarded_for: [192, 0, 2, 7].into(),
            protocol_version: 2,
            skip_dns_cache: false,
        };
        let secret = Secret::new("secret");
        assert!(authorization(secret.as_ref(), &dial, 7).ends_with(".7"));
        dial.sign_token = false;
        assert_eq!(authorization(secret.as_ref(), &dial, 7), "Bearer test-token");
    }

    #[test]
    fn key_and_accept_agree_with_rfc_6455() {
        assert_eq!(derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), ACCEPT);
    }

    #[test]
    fn a_redirect_in_the_log_does_not_show_the_urls_token() {
        let text = "HTTP/1.1 302 Found\r\nLocation: https://host/path/?token=geheim\r\n\r\n";
        let why = parse_response(text.as_bytes(), ACCEPT).unwrap_err();
        assert!(why.contains("redirected to https://host/path/:") && !why.contains("geheim"), "{why}");
    }

    #[test]
    fn a_long_refusal_is_truncated_and_shown_in_one_line() {
        let long = "x".repeat(3000);
        let location = format!("Location: http://\u{202e}\u{85}{long}");
        let why = response(&format!("302 a\tb{long}"), &location).unwrap_err();
        assert!(why.starts_with("HTTP 302 a\\tb") && why.contains("http://\\u{202e}\\u{85}x"), "{why}");
        assert!(why.chars().count() < 3 * text::SHOWN_MAX, "{why}");
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
            ("403 Forbidden", "", "SERVER_SECRET"),
            ("302 Found", "Location: http://elsewhere/", "redirected to http://elsewhere/"),
            ("101 X", "Connection: Upgrade", "Upgrade: websocket"),
            ("101 X", "Upgrade: websocket", "Connection: Upgrade"),
            ("101 X", "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x", "Accept"),
            ("101 X", &format!("{good}\r\nSec-WebSocket-Extensions: permessage-deflate"), "extension"),
            ("101 X", &format!("{good}\r\nsec-websocket-protocol:"), "extension"),
        ] {
            let found = response(status, headers).unwrap_err();
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
            assert!(parse_response(&text, ACCEPT).unwrap_err().contains("extension"), "{name}");
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
        assert!(too_long.unwrap_err().contains("more than"));
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
