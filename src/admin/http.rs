//! HTTP/1.1 (RFC 9112) as far as the management API needs it: parsing requests.

pub use http::Method;
use httparse::Status;

use super::body::Framing;
use super::error::{MAX_HEAD_BYTES, MAX_HEADERS, MAX_SOUND_BYTES, RequestError};
use super::forwarded::Forwarded;
use crate::text::percent_decode;

/// A request without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// What to do.
    pub method: Method,
    /// The path as it was sent: still percent-encoded, without the query.
    pub path: String,
    /// What follows the question mark, or nothing.
    pub query: String,
    /// Whether the connection is to stay open afterwards.
    pub keep_alive: bool,
    /// The `Authorization` field.
    pub authorization: Option<String>,
    /// The `Host` field.
    pub host: Option<String>,
    /// The authority of a target that is a whole URL.
    pub authority: Option<String>,
    /// What proxies on its way have added.
    pub forwarded: Forwarded,
    /// A browser says that a page of another site makes the call (`Sec-Fetch-Site`).
    pub is_cross_site: bool,
    /// The `Origin` field: there when a web page makes the call.
    pub origin: Option<String>,
    /// The `Last-Event-ID` field, if it is a number: where a client resumes the stream of events.
    pub last_event_id: Option<u64>,
    /// The client accepts a body in the format of gzip (`Accept-Encoding`).
    pub accepts_gzip: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The request is none of HTTP/1.1, whoever sends it: why.
    pub malformed: Option<&'static str>,
    /// How the body ends; or why that is not served. Its length is that of the longest body of any call at most. To be asked only of
    /// a caller who may call at all.
    pub body: Result<Framing, RequestError>,
    /// How long the head is, in bytes.
    pub length: usize,
}

/// Reads a request's head from what has come so far; `None` when more must come.
///
/// # Errors
/// What can never become a request.
pub fn parse_head(bytes: &[u8]) -> Result<Option<RequestHead>, RequestError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    let window = &bytes[..bytes.len().min(MAX_HEAD_BYTES)];
    let length = match request.parse(window) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if bytes.len() > MAX_HEAD_BYTES => return Err(RequestError::HeadTooLong),
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(RequestError::HeadTooLong),
        Err(httparse::Error::Version) => {
            return Err(RequestError::Malformed("the version is not HTTP/1.0 or HTTP/1.1"));
        }
        Err(_) => return Err(RequestError::Malformed("the request line or a header field is broken")),
    };
    let method = request.method.unwrap_or_default();
    let (Ok(method), Some((authority, target))) =
        (method.parse(), split_target(method, request.path.unwrap_or_default()))
    else {
        return Err(RequestError::Malformed("its target is neither a path nor an http URL"));
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let one = |name| header_value(request.headers, name);
    let expect = one("expect");
    let mut body = body_length(request.headers, request.version == Some(1));
    if expect.as_ref().is_some_and(|expect| !expect.eq_ignore_ascii_case("100-continue")) {
        body = body.and(Err(RequestError::ExpectationFailed));
    }
    let connection = |option: &str| {
        let fields = values(request.headers, "connection");
        let mut options = fields.flat_map(|value| value.split(|byte| *byte == b','));
        options.any(|found| found.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
    };
    Ok(Some(RequestHead {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        keep_alive: !connection("close") && (request.version == Some(1) || connection("keep-alive")),
        authorization: one("authorization"),
        host: one("host"),
        authority: authority.map(str::to_owned),
        forwarded: Forwarded::of(request.headers),
        is_cross_site: values(request.headers, "sec-fetch-site")
            .any(|value| value != b"same-origin" && value != b"none"),
        origin: one("origin"),
        last_event_id: one("last-event-id").and_then(|id| id.parse().ok()),
        accepts_gzip: accepts_gzip(request.headers),
        malformed: bad_host(request.headers, request.version == Some(1)),
        // RFC 9110 section 10.1.1: not from a client of HTTP/1.0.
        expects_continue: expect.is_some() && request.version == Some(1),
        body,
        length,
    }))
}

/// All fields of a head that [`parse_head`] has read, in order.
pub fn header_fields(head: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(Status::Complete(_)) => {
            request.headers.iter().map(|field| (field.name.to_owned(), field.value.to_vec())).collect()
        }
        _ => Vec::new(),
    }
}

/// The authority of a target that is a whole URL (RFC 9112 section 3.2), and its path and query; `None` when the target has
/// no form that the method may have.
fn split_target<'a>(method: &str, target: &'a str) -> Option<(Option<&'a str>, &'a str)> {
    if target.starts_with('/') || (method == "OPTIONS" && target == "*") {
        return Some((None, target));
    }
    let (scheme, rest) = target.split_once("://")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let known = scheme.eq_ignore_ascii_case("http") && !authority.is_empty() && is_authority(authority);
    known.then_some((Some(authority), if path.is_empty() { "/" } else { path }))
}

/// What is wrong with the `Host` field (RFC 9112 section 3.2).
fn bad_host(fields: &[httparse::Header<'_>], is_http_1_1: bool) -> Option<&'static str> {
    let mut hosts = values(fields, "host");
    let Some(host) = hosts.next() else { return is_http_1_1.then_some("it has no Host") };
    if hosts.next().is_some() {
        return Some("it has more than one Host");
    }
    let valid = std::str::from_utf8(host).is_ok_and(is_authority);
    (!valid).then_some("its Host is not a host name or IP address with an optional port")
}

/// Whether this is `host [":" port]` (RFC 3986 section 3.2); the host may be empty.
fn is_authority(text: &str) -> bool {
    let (is_host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(None) => return false,
        Some(Some((address, port))) => (address.parse::<std::net::Ipv6Addr>().is_ok(), port),
        None => {
            let (name, port) = text.split_at(text.find(':').unwrap_or(text.len()));
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
            (name.bytes().all(allowed) && percent_decode(name).is_some(), port)
        }
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    is_host && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// The values of all fields of this name.
fn values<'a>(fields: &[httparse::Header<'a>], name: &'static str) -> impl Iterator<Item = &'a [u8]> + Clone {
    let named = fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
    named.map(|field| field.value.trim_ascii())
}

/// The value of a field that is to be there once; the last, when it is there more often.
fn header_value(fields: &[httparse::Header<'_>], name: &'static str) -> Option<String> {
    values(fields, name).last().map(|value| String::from_utf8_lossy(value).into_owned())
}

/// Whether a content coding is accepted (RFC 9110 section 12.5.3): it is named, and not with a weight of 0.
fn accepts_gzip(fields: &[httparse::Header<'_>]) -> bool {
    let lists = values(fields, "accept-encoding").filter_map(|list| str::from_utf8(list).ok());
    let mut codings = lists.flat_map(|list| list.split(','));
    codings.any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, "q=1"));
        let weight = weight.trim().strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
        name.trim().eq_ignore_ascii_case("gzip") && weight.is_some_and(|weight| weight > 0.0)
    })
}

/// RFC 9112 section 6.3, strictly: a request with two lengths is refused.
fn body_length(fields: &[httparse::Header<'_>], is_http_1_1: bool) -> Result<Framing, RequestError> {
    let mut lengths = values(fields, "content-length");
    let first = lengths.next();
    let mut codings = values(fields, "transfer-encoding").flat_map(|value| value.split(|byte| *byte == b','));
    if values(fields, "transfer-encoding").next().is_some() {
        if first.is_some() {
            return Err(RequestError::Malformed("it has a Content-Length and a Transfer-Encoding"));
        }
        if !is_http_1_1 {
            return Err(RequestError::Malformed("HTTP/1.0 has no Transfer-Encoding"));
        }
        let unknown = |coding: &&[u8]| {
            let coding = coding.trim_ascii();
            !coding.is_empty() && !coding.eq_ignore_ascii_case(b"chunked")
        };
        if codings.clone().any(|coding| unknown(&coding)) {
            return Err(RequestError::UnsupportedTransferCoding);
        }
        let chunked = codings.next().is_some_and(|coding| !coding.trim_ascii().is_empty());
        return match chunked && codings.next().is_none() {
            true => Ok(Framing::Chunked),
            false => Err(RequestError::Malformed("its Transfer-Encoding is not chunked once")),
        };
    }
    let Some(digits) = first else { return Ok(Framing::Length(0)) };
    if lengths.next().is_some() || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(RequestError::Malformed("its Content-Length is not one whole number"));
    }
    let length = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    length.filter(|length| *length <= MAX_SOUND_BYTES).map(Framing::Length).ok_or(RequestError::BodyTooLong)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> RequestHead {
        parse_head(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_request_head_is_parsed() {
        let text = "POST /api/commands/a%40@@x?dry=1&b HTTP/1.1\r\nHost: gate:8007\r\nauthorization:  Bearer abc \r\n\
                    Content-Length: 12\r\nOrigin: http://x\r\n\r\n{\"a\":\"body\"}next";
        let head = parsed(text);
        let expected = RequestHead {
            method: Method::POST,
            path: "/api/commands/a%40@@x".to_owned(),
            query: "dry=1&b".to_owned(),
            keep_alive: true,
            authorization: Some("Bearer abc".to_owned()),
            host: Some("gate:8007".to_owned()),
            authority: None,
            forwarded: Forwarded::No,
            is_cross_site: false,
            origin: Some("http://x".to_owned()),
            last_event_id: None,
            malformed: None,
            accepts_gzip: false,
            expects_continue: false,
            body: Ok(Framing::Length(12)),
            length: text.find("{").unwrap(),
        };
        assert_eq!(head, expected);
        for cut in 0..expected.length {
            assert_eq!(super::parse_head(&text.as_bytes()[..cut]), Ok(None), "{cut}");
        }
    }

    #[test]
    fn keep_alive_follows_the_version_and_the_connection_header() {
        for (version, field, expected) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: Upgrade, CLOSE\r\n", false),
            ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
        ] {
            let head = parsed(&format!("GET / HTTP/{version}\r\n{field}\r\n"));
            assert_eq!(head.keep_alive, expected, "{version} {field}");
        }
    }

    #[test]
    fn gzip_is_accepted_when_it_is_named_with_a_weight() {
        for (value, expected) in [
            ("gzip, deflate, br, zstd", true),
            ("br;q=1.0, GZIP;q=0.5", true),
            ("br, gzip; q=0.001", true),
            ("gzip;q=0", false),
            ("gzip;q=0.000", false),
            ("gzip;q=x", false),
            ("deflate", false),
            ("identity", false),
            ("", false),
        ] {
            let head = parsed(&format!("GET / HTTP/1.1\r\nHost: x\r\nAccept-Encoding: {value}\r\n\r\n"));
            assert_eq!(head.accepts_gzip, expected, "{value}");
        }
    }

    #[test]
    fn a_target_may_be_in_absolute_form() {
        for (target, path, query) in [
            ("/", "/", ""),
            ("/a?b=c?d", "/a", "b=c?d"),
            ("http://host:1/a?b", "/a", "b"),
            ("HTTP://host", "/", ""),
            ("http://host?b", "", "b"),
            ("http://[::1]:80/a", "/a", ""),
            ("/go/http://x", "/go/http://x", ""),
        ] {
            let head = parsed(&format!("GET {target} HTTP/1.1\r\n\r\n"));
            assert_eq!((head.path.as_str(), head.query.as_str()), (path, query), "{target}");
            let authority = target.split_once("://").filter(|_| !target.starts_with('/'));
            let authority = authority.and_then(|(_, rest)| rest.split(['/', '?']).next());
            assert_eq!(head.authority.as_deref(), authority, "{target}");
        }
    }

    #[test]
    fn a_target_that_is_no_path_and_no_http_url_is_refused() {
        for (method, target) in [
            ("GET", "*"),
            ("GET", "api/sessions"),
            ("GET", "?a=b"),
            ("GET", "http:/a"),
            ("GET", "http:///a"),
            ("GET", "http://user@host/a"),
            ("GET", "https://host/a"),
            ("GET", "://host/a"),
            ("CONNECT", "host:80"),
            ("OPTIONS", "**"),
        ] {
            let text = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n");
            assert!(matches!(super::parse_head(text.as_bytes()), Err(RequestError::Malformed(_))), "{text}");
        }
        assert_eq!(parsed("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").path, "*");
    }

    #[test]
    fn there_is_one_valid_host() {
        for (version, fields, expected) in [
            ("1.1", "", Some("it has no Host")),
            ("1.0", "", None),
            ("1.1", "Host: a\r\nhost: a\r\n", Some("it has more than one Host")),
            ("1.0", "Host: a\r\nHost: b\r\n", Some("it has more than one Host")),
        ] {
            let head = parsed(&format!("GET / HTTP/{version}\r\n{fields}\r\n"));
            assert_eq!(head.malformed, expected, "{version} {fields}");
        }
        for (host, valid) in [
            ("", true),
            ("gateway", true),
            ("my_gateway.example:8007", true),
            ("gateway:", true),
            ("192.0.2.1:80", true),
            ("[2001:db8::1]", true),
            ("[::ffff:192.0.2.1]:80", true),
            ("a%2Db", true),
            ("a%2", false),
            ("a b", false),
            ("a, b", false),
            ("a/b", false),
            ("http://a", false),
            ("user@a", false),
            ("a:b", false),
            ("a:80:80", false),
            ("::1", false),
            ("[::1", false),
            ("[::1]80", false),
            ("[a]", false),
            ("[]", false),
            ("组", false),
            ("a\"b", false),
        ] {
            for version in ["1.0", "1.1"] {
                let head = parsed(&format!("GET / HTTP/{version}\r\nHost: {host} \r\n\r\n"));
                assert_eq!(head.malformed.is_none(), valid, "{version} {host:?}");
            }
        }
    }

    #[test]
    fn a_body_has_one_plain_length_or_is_refused() {
        for (fields, expected) in [
            ("", Ok(Framing::Length(0))),
            ("Content-Length: 0\r\n", Ok(Framing::Length(0))),
            ("content-length: 1048576\r\n", Ok(Framing::Length(MAX_SOUND_BYTES))),
            ("Content-Length: 1048577\r\n", Err(RequestError::BodyTooLong)),
            ("Content-Length: 99999999999999999999999999\r\n", Err(RequestError::BodyTooLong)),
            ("Content-Length: 5\r\nExpect: 100-Continue\r\n", Ok(Framing::Length(5))),
            ("Content-Length: 5\r\nExpect: miracles\r\n", Err(RequestError::ExpectationFailed)),
            ("Transfer-Encoding: Chunked\r\n", Ok(Framing::Chunked)),
            ("Transfer-Encoding: gzip, chunked\r\n", Err(RequestError::UnsupportedTransferCoding)),
        ] {
            assert_eq!(parsed(&format!("POST / HTTP/1.1\r\n{fields}\r\n")).body, expected, "{fields}");
        }
        for fields in [
            "Content-Length: \r\n",
            "Content-Length: -1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: 0x10\r\n",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        ] {
            let body = parsed(&format!("POST / HTTP/1.1\r\n{fields}\r\n")).body;
            assert!(matches!(body, Err(RequestError::Malformed(_))), "{fields}: {body:?}");
        }
    }

    #[test]
    fn malformed_and_oversized_heads_are_rejected() {
        for bytes in [
            &b"\x16\x03\x01\x02\x00\x01\x00"[..],
            b"GET / HTTP/2.0\r\n\r\n",
            b"GET  / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET / HTTP/1.1\r\na\0b: c\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02ab",
        ] {
            assert!(matches!(parse_head(bytes), Err(RequestError::Malformed(_))), "{bytes:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(MAX_HEAD_BYTES));
        assert_eq!(parse_head(long.as_bytes()), Err(RequestError::HeadTooLong));
        let fields = "a: b\r\n".repeat(MAX_HEADERS + 1);
        assert_eq!(
            parse_head(format!("GET / HTTP/1.1\r\n{fields}\r\n").as_bytes()),
            Err(RequestError::HeadTooLong)
        );
        let fits = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(MAX_HEAD_BYTES - 18));
        assert_eq!(fits.len(), MAX_HEAD_BYTES);
        assert!(parse_head(fits.as_bytes()).is_ok_and(|head| head.is_some()));
    }

    #[test]
    fn percent_encoding() {
        for (text, expected) in [
            ("GID_test@@@aa_bb", Some("GID_test@@@aa_bb")),
            ("GID%5Ftest%40%40@", Some("GID_test@@@")),
            ("%E7%BB%84", Some("组")),
            ("%e7%bb%84%", None),
            ("%4", None),
            ("%zz", None),
            ("%+1", None),
            ("%ff", None),
            ("a+b%20c", Some("a+b c")),
        ] {
            assert_eq!(percent_decode(text).as_deref(), expected, "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_head(&bytes);
            let mut request = b"POST / HTTP/1.1\r\n".to_vec();
            request.extend(&bytes);
            let _ = parse_head(&request);
            if let Ok(text) = std::str::from_utf8(&bytes) {
                let _ = percent_decode(text);
            }
        }

        #[test]
        fn more_bytes_do_not_change_the_result(
            line in prop_oneof![Just("POST /a?b HTTP/1.1\r\n"), Just("GET / HTTP/1.0\r\n"), Just("")],
            rest in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b':')], 0..120),
        ) {
            let bytes = [line.as_bytes(), &rest].concat();
            let whole = parse_head(&bytes);
            for end in 0..bytes.len() {
                let part = parse_head(&bytes[..end]);
                prop_assert!(part == Ok(None) || part == whole, "{} bytes: {:?}, all: {:?}", end, part, whole);
            }
        }

        #[test]
        fn a_written_request_parses_to_the_same_values(path in "/[a-z0-9/%.~-]{0,30}", query in "[a-z0-9=&%]{0,20}", length in 0..MAX_SOUND_BYTES, host in "[a-z.]{1,20}(:[0-9]{1,5})?", close in any::<bool>()) {
            let connection = if close { "close" } else { "keep-alive" };
            let text = format!("DELETE {path}?{query} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n");
            let read = parsed(&text);
            prop_assert_eq!((read.method, read.path, read.query), (Method::DELETE, path, query));
            prop_assert_eq!((read.host, read.body, read.keep_alive), (Some(host), Ok(Framing::Length(length)), !close));
            prop_assert_eq!(read.length, text.len());
        }
    }
}
