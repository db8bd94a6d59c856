//! A chat server's response to the upgrade request.

use super::split_points;
use crate::net::backend::upgrade::{BadResponse, parse_response, refusal};

/// The `Sec-WebSocket-Accept` that every response must have: the example of RFC 6455 section 1.3.
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The bytes of a response, and the first frames after it.
pub fn upgrade_reply(data: &[u8]) {
    let whole = parse_response(data, ACCEPT);
    let mut refused = false;
    for end in split_points(data.len()) {
        let part = parse_response(&data[..end], ACCEPT);
        match &whole {
            Ok(Some(length)) if end >= *length => assert_eq!(part, whole, "frames behind it change nothing"),
            Ok(_) => assert_eq!(part, Ok(None), "{end} bytes ask for more"),
            Err(_) if refused => assert!(part.is_err(), "refused for good"),
            Err(_) => assert!(!matches!(part, Ok(Some(_))), "what is refused never agreed"),
        }
        refused |= part.is_err();
    }
    match whole {
        Ok(Some(length)) => check_accepted(&data[..length]),
        Ok(None) => {}
        Err(BadResponse::Refused(length)) => {
            let server = "ws://a/?token=x".parse().expect("a good URL");
            let why = refusal(data, length, &server).to_string();
            assert!(why.chars().count() <= 5 * crate::text::SHOWN_MAX, "{why}");
        }
        Err(BadResponse::Invalid(why)) => assert!(!why.is_empty() && why.len() <= data.len() + 200, "{why}"),
    }
}

/// Another implementation of RFC 6455 section 4.1, line by line.
fn check_accepted(head: &[u8]) {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.trim_start_matches(['\r', '\n']).lines();
    assert!(
        lines.next().is_some_and(|line| line.starts_with("HTTP/1.") && line[8..].starts_with(" 101")),
        "{head}"
    );
    let fields: Vec<_> = lines.filter_map(|line| line.split_once(':')).collect();
    let of = |name: &str| {
        let name = name.to_owned();
        fields
            .iter()
            .filter(move |(found, _)| found.eq_ignore_ascii_case(&name))
            .map(|(_, value)| value.trim())
    };
    assert!(of("upgrade").any(|value| value.eq_ignore_ascii_case("websocket")), "{head}");
    assert!(of("connection").any(|value| value.to_ascii_lowercase().contains("upgrade")), "{head}");
    assert!(of("sec-websocket-accept").any(|value| value == ACCEPT), "{head}");
    assert_eq!(of("sec-websocket-extensions").chain(of("sec-websocket-protocol")).next(), None, "{head}");
}
