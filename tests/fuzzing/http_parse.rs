//! Requests to the management API.

use std::net::Ipv4Addr;

use super::split_points;
use crate::admin::auth::{self, WallClock};
use crate::admin::body::{Body, Framing};
use crate::admin::error::{ApiError, ErrorStyle};
use crate::admin::error::{MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_SOUND_BYTES};
use crate::admin::forwarded::Forwarded;
use crate::admin::http::{Method, RequestHead, parse_head};
use crate::admin::params::query_value;
use crate::admin::routes::{self, Access, RouteMatch};
use crate::config::{Config, Secret};
use crate::text::percent_decode;

const TOKEN: &str = "a-token-of-sixteen-bytes";

/// The bytes of a connection: the head of a request, and what follows it.
pub fn http_parse(data: &[u8]) {
    let whole = parse_head(data);
    let mut refused = false;
    for end in split_points(data.len()) {
        let part = parse_head(&data[..end]);
        match &whole {
            Ok(Some(found)) if end >= found.length => {
                assert_eq!(part, whole, "what follows a head is not its matter")
            }
            Ok(_) => assert_eq!(part, Ok(None), "{end} bytes ask for more"),
            Err(_) if refused => assert!(part.is_err(), "refused for good"),
            Err(_) => assert!(!matches!(part, Ok(Some(_))), "what is refused was never a request"),
        }
        refused |= part.is_err();
    }
    match whole {
        Ok(Some(found)) => {
            check_request(&data[..found.length], &found);
            chunked(&data[found.length..]);
        }
        Ok(None) => assert!(data.len() <= MAX_HEAD_BYTES, "a head has an end"),
        Err(refusal) => check_response(refusal.error(), false),
    }
    if let Ok(text) = std::str::from_utf8(data) {
        check_percent_decoding(text);
    }
}

fn bounded(found: &RequestHead) -> bool {
    found.length <= MAX_HEAD_BYTES
        && !matches!(found.body, Ok(Framing::Length(length)) if length > MAX_SOUND_BYTES)
}

/// A chunked body, whole and split in two: the result is the same, and the bytes after it are not consumed.
fn chunked(data: &[u8]) {
    let mut whole = data.to_vec();
    let verdict = Body::new(Framing::Chunked).take(&mut whole);
    for cut in split_points(data.len()) {
        let mut body = Body::new(Framing::Chunked);
        let mut inbox = data[..cut].to_vec();
        let mut found = body.take(&mut inbox);
        inbox.extend_from_slice(&data[cut..]);
        if let Ok(None) = found {
            found = body.take(&mut inbox);
        }
        assert_eq!(found, verdict, "{cut}");
        assert!(verdict.is_err() || inbox == whole, "{cut}");
    }
    if let Ok(Some(body)) = verdict {
        assert!(body.len() <= MAX_BODY_BYTES && data.ends_with(&whole));
    }
}

fn check_request(bytes: &[u8], found: &RequestHead) {
    assert!(bytes.ends_with(b"\n\r\n") || bytes.ends_with(b"\n\n"), "a head ends with an empty line");
    assert!(bounded(found));
    let target = format!("{}{}", found.path, found.query);
    assert!(!found.path.contains('?') && !target.contains([' ', '\r', '\n', '\t', '\0']), "{target:?}");
    for text in [&found.authorization, &found.host, &found.authority, &found.origin].into_iter().flatten() {
        assert!(!text.contains(['\r', '\n', '\0']), "{text:?}");
    }
    assert_eq!(
        parse_head(&serialize(found)).map(|again| again.map(normalize)),
        Ok(Some(normalize(found.clone())))
    );
    check_routing(found);
}

/// The parsed request, written again in its simplest form.
fn serialize(found: &RequestHead) -> Vec<u8> {
    let origin = found.authority.as_ref().map(|authority| format!("http://{authority}")).unwrap_or_default();
    // The path of a URL can be empty, which without a query would be read as `/`.
    let has_query = !found.query.is_empty() || found.path.is_empty();
    let query = if has_query { format!("?{}", found.query) } else { String::new() };
    let mut text = format!("{} {origin}{}{query} HTTP/1.1\r\n", found.method, found.path);
    let fields = [("Authorization", &found.authorization), ("Host", &found.host), ("Origin", &found.origin)];
    for (name, value) in fields {
        text.extend(value.iter().map(|value| format!("{name}: {value}\r\n")));
    }
    match found.body {
        Ok(Framing::Length(length)) => text.push_str(&format!("Content-Length: {length}\r\n")),
        Ok(Framing::Chunked) => text.push_str("Transfer-Encoding: chunked\r\n"),
        Err(_) => {}
    }
    text.extend(found.expects_continue.then_some("Expect: 100-continue\r\n"));
    text.push_str(if found.keep_alive { "\r\n" } else { "Connection: close\r\n\r\n" });
    text.into_bytes()
}

/// The request without what is not written again.
fn normalize(found: RequestHead) -> RequestHead {
    let body = found.body.or(Ok(Framing::Length(0)));
    RequestHead { length: 0, malformed: None, forwarded: Forwarded::No, is_cross_site: false, body, ..found }
}

/// Without a valid token, no answer contains what needs one. Every answer is valid HTTP.
fn check_routing(found: &RequestHead) {
    let route = routes::match_route(&found.method, &found.path);
    if let RouteMatch::Found(_, Some(id)) = &route {
        assert!(!id.is_empty());
    }
    if let Some(error) = route.error_response() {
        check_response(error, found.method == Method::HEAD);
    }
    let mut config = Config::default();
    config.api.token = Secret::new(TOKEN);
    let clock = WallClock { unix_seconds: 1_750_000_000, utc_offset_seconds: 0 };
    let peer = Ipv4Addr::LOCALHOST.into();
    let shown =
        found.authorization.as_ref().and_then(|field| field.split_once(' ')).map(|(_, token)| token.trim());
    match auth::authorize(found, peer, &config, clock) {
        Ok(()) => assert_eq!(shown, Some(TOKEN)),
        Err(error) => {
            assert!(
                shown != Some(TOKEN)
                    || !found.authorization.as_ref().unwrap().to_ascii_lowercase().starts_with("bearer ")
            );
            check_response(error, found.method == Method::HEAD);
        }
    }
    // No key for tokens: only requests from this machine are accepted, and none from pages of other sites.
    config.api.token = None;
    assert!(auth::authorize(found, Ipv4Addr::new(192, 0, 2, 1).into(), &config, clock).is_err());
    if auth::authorize(found, peer, &config, clock).is_ok()
        && let (Some(origin), Some(host)) = (&found.origin, &found.host)
    {
        assert_eq!(origin.strip_prefix("http://"), Some(host.as_str()));
    }
    if let RouteMatch::NotFound = route {
        assert!(matches!(routes::required_access(&found.path), Access::Token) || found.path.contains('%'));
    }
}

/// Another parser reads an answer with the same result.
fn check_response(error: ApiError, head_only: bool) {
    let response = error.response(ErrorStyle::Coded);
    let mut bytes = Vec::new();
    response.write(&mut bytes, true, head_only);
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut parsed = httparse::Response::new(&mut fields);
    let length = parsed.parse(&bytes).unwrap().unwrap();
    assert_eq!(parsed.code, Some(response.status));
    let told = parsed.headers.iter().find(|field| field.name == "Content-Length").unwrap();
    assert_eq!(told.value, response.body.len().to_string().as_bytes());
    assert_eq!(&bytes[length..], if head_only { &[][..] } else { &response.body });
}

/// Percent-decoding never makes a text longer, and its result can be encoded again.
fn check_percent_decoding(text: &str) {
    if let Some(decoded) = percent_decode(text) {
        assert!(decoded.len() <= text.len());
        let encoded: String = decoded.bytes().map(|byte| format!("%{byte:02X}")).collect();
        assert_eq!(percent_decode(&encoded).as_deref(), Some(&*decoded));
    }
    let _ = query_value(text, "a");
    let query = format!("a={}&b=1", text.replace('&', "%26"));
    assert_eq!(
        query_value(&query, "a").ok().flatten(),
        percent_decode(&text.replace('&', "%26")).map(|v| v.into_owned().into())
    );
    assert_eq!(query_value(&query, "b").unwrap().as_deref(), Some("1"));
}
