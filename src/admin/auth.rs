//! Authorization: bearer tokens, or local callers only when there is no key and no token.

use std::net::IpAddr;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use tz::UtcDateTime;

use super::error::ApiError;
use super::forwarded::{Forwarded, is_this_machine};
use super::http::RequestHead;
use crate::config::{Config, Network};

/// Seconds of a day.
const SECONDS_PER_DAY: i64 = 86_400;

/// The wall-clock time and the offset of local time.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    /// Seconds since 1970-01-01, UTC.
    pub unix_seconds: i64,
    /// Seconds that local time is ahead of UTC.
    pub utc_offset_seconds: i64,
}

/// Authorizes the caller of a request that needs a token, whatever it asks for.
///
/// The token is `api.token`, or the daily one that the consoles of the Node.js gateway send: hex of SHA-256 over the date
/// (yyyy-MM-dd) followed by `mqtt.signature_key`. The date is the local or the UTC one, or a day before or after, since
/// clocks and time zones differ. Without key and token only this machine is served, and no web page on it.
///
/// # Errors
/// Why the caller may not.
pub fn authorize(
    head: &RequestHead,
    peer: IpAddr,
    config: &Config,
    clock: WallClock,
) -> Result<(), ApiError> {
    let key = config.mqtt.signature_key.as_ref();
    let token = config.api.token.as_ref();
    if key.is_none() && token.is_none() {
        return authorize_local(head, peer, &config.api.trusted_proxies);
    }
    let weakness = key.and_then(|key| key.weakness());
    if let (Some(weakness), None) = (&weakness, token) {
        let sentence = format!(
            "The management API is closed: mqtt.signature_key (MQTT_SIGNATURE_KEY) {weakness}. Choose a key of at \
             least 8 characters with upper and lower case letters and without a common word."
        );
        return Err(ApiError::new(503, "weak_key", sentence));
    }
    let Some(shown) = head.authorization.as_deref().and_then(bearer_token) else {
        return Err(unauthorized("Send the header \"Authorization: Bearer <token>\"."));
    };
    let shown = Sha256::digest(shown);
    let mut good = token.is_some_and(|token| constant_time_eq(&Sha256::digest(token.as_bytes()), &shown));
    if let Some(key) = key.filter(|_| weakness.is_none()) {
        for date in accepted_dates(clock) {
            // Every candidate is compared in constant time, so that timing leaks nothing.
            good |= constant_time_eq(&Sha256::digest(daily_token(&date, key.as_bytes())), &shown);
        }
    }
    if good {
        return Ok(());
    }
    Err(unauthorized("Wrong or expired token; the daily token changes at midnight."))
}

fn unauthorized(sentence: &'static str) -> ApiError {
    ApiError::new(401, "unauthorized", sentence).with("WWW-Authenticate", "Bearer")
}

/// The daily token: hex of SHA-256 over the date and the key.
pub fn daily_token(date: &str, key: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::new().chain_update(date).chain_update(key).finalize())
}

/// The daily token of the local date.
pub fn todays_token(clock: WallClock, key: &[u8]) -> Option<String> {
    let day = (clock.unix_seconds + clock.utc_offset_seconds).div_euclid(SECONDS_PER_DAY);
    Some(daily_token(&civil_date(day)?, key))
}

fn constant_time_eq(one: &[u8], other: &[u8]) -> bool {
    one.iter().zip(other).fold(one.len() ^ other.len(), |differs, (a, b)| differs | usize::from(a ^ b)) == 0
}

/// The token of an `Authorization` field (RFC 6750 section 2.1), whose scheme may be in any case (RFC 9110 section 11.1).
fn bearer_token(field: &str) -> Option<&str> {
    let (scheme, token) = field.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Without tokens the caller must be on this machine: neither behind a proxy, unless that one is trusted and forwards for
/// this machine, nor a web page in its browser, which sends its origin, or reaches us by a host name that resolves to this
/// machine (DNS rebinding).
fn authorize_local(head: &RequestHead, peer: IpAddr, trusted_proxies: &[Network]) -> Result<(), ApiError> {
    if !peer.to_canonical().is_loopback() {
        return Err(unauthorized(
            "Without mqtt.signature_key (MQTT_SIGNATURE_KEY) or api.token only callers on the gateway's own machine are \
             served: set one of them.",
        ));
    }
    let is_trusted = || trusted_proxies.iter().any(|network| network.contains(peer));
    match head.forwarded {
        Forwarded::No => {}
        Forwarded::ForThisMachine if is_trusted() => {}
        _ => {
            return Err(ApiError::new(
                403,
                "forwarded",
                "Without mqtt.signature_key or api.token only callers on the gateway's own machine are served, and a proxy \
                 forwarded this request (Forwarded, X-Forwarded-*, X-Real-IP, Via). Set api.token and send it.",
            ));
        }
    }
    let foreign_name = [&head.host, &head.authority].into_iter().flatten().any(|name| !is_this_machine(name));
    let foreign_page = head.origin.as_deref().is_some_and(|origin| {
        let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        host.is_none() || host != head.host.as_deref()
    });
    if foreign_name || foreign_page || head.is_cross_site {
        return Err(ApiError::new(
            403,
            "foreign_origin",
            "Without mqtt.signature_key or api.token, calls from web pages of other sites, or under another name than \
             localhost or a loopback address, are not served. Set api.token and send it.",
        ));
    }
    Ok(())
}

/// The dates whose tokens are good: local and UTC, each with the day before and after.
fn accepted_dates(clock: WallClock) -> impl Iterator<Item = String> {
    let utc = clock.unix_seconds.div_euclid(SECONDS_PER_DAY);
    let local = (clock.unix_seconds + clock.utc_offset_seconds).div_euclid(SECONDS_PER_DAY);
    (utc.min(local) - 1..=utc.max(local) + 1).filter_map(civil_date)
}

/// yyyy-MM-dd of a day counted from 1970-01-01; `None` when it is out of range.
fn civil_date(day: i64) -> Option<String> {
    let date = UtcDateTime::from_timespec(day * SECONDS_PER_DAY, 0).ok()?;
    Some(format!("{:04}-{:02}-{:02}", date.year(), date.month(), date.month_day()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::admin::error::ErrorStyle;
    use crate::admin::http;
    use crate::config::Secret;

    const KEY: &str = "A-good-Key-9";
    const TOKEN: &str = "static-token-of-the-operator";
    /// 2026-08-09 20:00:00 UTC, in China already the tenth.
    const NOW: WallClock = WallClock { unix_seconds: 1_786_305_600, utc_offset_seconds: 8 * 3600 };

    fn authorize_status(fields: &str, peer: &str, key: Option<&str>, token: Option<&str>) -> u16 {
        let head =
            http::parse_head(format!("POST /api/x HTTP/1.1\r\n{fields}\r\n").as_bytes()).unwrap().unwrap();
        let mut config = Config::default();
        config.mqtt.signature_key = key.and_then(Secret::new);
        config.api.token = token.and_then(Secret::new);
        authorize(&head, peer.parse().unwrap(), &config, NOW).map_or_else(|refusal| refusal.status, |()| 200)
    }

    #[test]
    fn the_daily_token_matches_the_consoles_token() {
        // printf '2026-08-09A-good-Key-9' | sha256sum
        let token = daily_token("2026-08-09", KEY.as_bytes());
        assert_eq!(token, "1cd9d82d82bdb36b552d414e4e96657d7cab6b2319ae35a18d430ef8468adaa8");
        let in_china = daily_token("2026-08-10", KEY.as_bytes());
        assert_eq!(todays_token(NOW, KEY.as_bytes()), Some(in_china), "the local date is a day ahead");
        let utc = WallClock { utc_offset_seconds: 0, ..NOW };
        assert_eq!(todays_token(utc, KEY.as_bytes()), Some(token));
    }

    #[test]
    fn tokens_within_a_day_of_the_local_and_the_utc_date_are_accepted() {
        let days = ["07", "08", "09", "10", "11", "12"];
        let expected = [401, 200, 200, 200, 200, 401];
        for (day, expected) in days.into_iter().zip(expected) {
            let token = daily_token(&format!("2026-08-{day}"), KEY.as_bytes());
            let field = format!("Authorization: Bearer {token}\r\n");
            assert_eq!(authorize_status(&field, "192.0.2.1", Some(KEY), None), expected, "{day}");
            assert_eq!(authorize_status(&field, "127.0.0.1", Some("Another-Key"), None), 401, "{day}");
            let weak = daily_token(&format!("2026-08-{day}"), b"weak");
            let field = format!("Authorization: Bearer {weak}\r\n");
            assert_eq!(
                authorize_status(&field, "127.0.0.1", Some("weak"), Some(TOKEN)),
                401,
                "a weak key opens nothing"
            );
        }
        assert_eq!(
            accepted_dates(WallClock { utc_offset_seconds: 0, ..NOW }).collect::<Vec<_>>(),
            ["2026-08-08", "2026-08-09", "2026-08-10"]
        );
        let west = WallClock { unix_seconds: NOW.unix_seconds - 19 * 3600, utc_offset_seconds: -5 * 3600 };
        assert_eq!(accepted_dates(west).next().unwrap(), "2026-08-07");
    }

    #[test]
    fn tokens_local_addresses_and_origins_are_checked() {
        let good = daily_token("2026-08-09", KEY.as_bytes());
        let upper = good.to_uppercase();
        let (near, far) = ("127.0.0.1", "192.0.2.1");
        for (fields, peer, key, token, expected) in [
            (format!("Authorization: bEARER  {good} \r\n"), far, Some(KEY), None, 200),
            (format!("Authorization: Bearer {TOKEN}\r\n"), far, Some(KEY), Some(TOKEN), 200),
            (format!("Authorization: Bearer {good}\r\n"), far, Some(KEY), Some(TOKEN), 200),
            (format!("Authorization: Bearer {TOKEN}\r\n"), far, None, Some(TOKEN), 200),
            (format!("Authorization: Bearer {TOKEN}\r\n"), far, Some("weak"), Some(TOKEN), 200),
            (format!("Authorization: Bearer {TOKEN}x\r\n"), far, None, Some(TOKEN), 401),
            (format!("Authorization: Bearer {upper}\r\n"), far, Some(KEY), None, 401),
            (format!("Authorization: Basic {good}\r\n"), far, Some(KEY), None, 401),
            (format!("Authorization: {good}\r\n"), far, Some(KEY), None, 401),
            ("Authorization: Bearer \r\n".to_owned(), far, Some(KEY), None, 401),
            (String::new(), near, Some(KEY), None, 401),
            (String::new(), near, None, Some(TOKEN), 401),
            (format!("Authorization: Bearer {good}\r\n"), near, Some("weak"), None, 503),
            (String::new(), near, Some("weak"), None, 503),
            (String::new(), far, None, None, 401),
            (String::new(), near, None, None, 200),
            (String::new(), "::1", None, None, 200),
            (String::new(), "::ffff:127.0.0.1", None, None, 200),
            ("Host: localhost:8007\r\n".to_owned(), near, None, None, 200),
            ("Host: LOCALHOST\r\n".to_owned(), near, None, None, 200),
            ("Host: [::1]:8007\r\n".to_owned(), near, None, None, 200),
            ("Host: 10.0.0.1\r\n".to_owned(), near, None, None, 403),
            ("Host: 0.0.0.0:8007\r\n".to_owned(), near, None, None, 403),
            ("Host: \r\n".to_owned(), near, None, None, 403),
            ("Host: lured.example:8007\r\n".to_owned(), near, None, None, 403),
            ("Host: a:8007\r\nOrigin: http://a:8007\r\n".to_owned(), near, None, None, 403),
            ("Host: 127.0.0.1:8007\r\nOrigin: http://127.0.0.1:8007\r\n".to_owned(), near, None, None, 200),
            ("Host: localhost\r\nOrigin: https://localhost\r\n".to_owned(), near, None, None, 200),
            ("Host: localhost\r\nOrigin: file://localhost\r\n".to_owned(), near, None, None, 403),
            ("Host: 127.0.0.1:8007\r\nOrigin: http://127.0.0.1:80\r\n".to_owned(), near, None, None, 403),
            ("Host: 127.0.0.1\r\nOrigin: https://evil.example\r\n".to_owned(), near, None, None, 403),
            ("Host: 127.0.0.1\r\nOrigin: null\r\n".to_owned(), near, None, None, 403),
        ] {
            assert_eq!(
                authorize_status(&fields, peer, key, token),
                expected,
                "{fields} {peer} {key:?} {token:?}"
            );
        }
    }

    /// The code of the refusal with neither key nor token, from a peer behind `trusted` or on its own; and the status with a
    /// token.
    fn local_refusal(line: &str, fields: &str, trusted: &[&str]) -> (String, u16) {
        let text = format!("{line} HTTP/1.1\r\n{fields}\r\n\r\n");
        let head = http::parse_head(text.as_bytes()).unwrap().unwrap();
        let mut config = Config::default();
        config.api.trusted_proxies = trusted.iter().map(|network| network.parse().unwrap()).collect();
        let peer = "127.0.0.1".parse().unwrap();
        let refusal = authorize(&head, peer, &config, NOW).err();
        let code = refusal.map_or_else(String::new, |refusal| {
            let body: serde_json::Value =
                serde_json::from_slice(&refusal.response(ErrorStyle::Coded).body).unwrap();
            assert!(body["error"].as_str().unwrap().contains("api.token"), "{body}");
            body["code"].as_str().unwrap().to_owned()
        });
        config.api.token = Secret::new(TOKEN);
        let head = RequestHead { authorization: Some(format!("Bearer {TOKEN}")), ..head };
        (code, authorize(&head, peer, &config, NOW).map_or_else(|refusal| refusal.status, |()| 200))
    }

    #[test]
    fn what_a_proxy_forwards_is_not_of_this_machine_unless_a_trusted_one_says_so() {
        let (none, us, other) = (&[][..], &["127.0.0.0/8"][..], &["192.0.2.1"][..]);
        for (fields, trusted, expected) in [
            ("Host: localhost", none, ""),
            ("Host: localhost", us, ""),
            ("Forwarded: for=127.0.0.1", none, "forwarded"),
            ("X-Forwarded-For: 127.0.0.1", none, "forwarded"),
            ("x-forwarded-proto: https", none, "forwarded"),
            ("X-Real-IP: 127.0.0.1", none, "forwarded"),
            ("Via: 1.1 proxy", none, "forwarded"),
            ("X-Forwarded-For: 127.0.0.1", other, "forwarded"),
            ("X-Forwarded-For: 127.0.0.1", us, ""),
            ("X-Forwarded-For: 127.0.0.1\r\nHost: gateway.example", us, "foreign_origin"),
            ("X-Forwarded-For: 203.0.113.9", us, "forwarded"),
            ("X-Forwarded-For: 127.0.0.1, 203.0.113.9", us, "forwarded"),
            ("Via: 1.1 proxy", us, "forwarded"),
        ] {
            assert_eq!(local_refusal("GET /", fields, trusted), (expected.to_owned(), 200), "{fields}");
        }
    }

    #[test]
    fn another_site_or_authority_is_refused_without_a_token() {
        for (line, fields, expected) in [
            ("GET /", "Sec-Fetch-Site: none", ""),
            ("GET /", "sec-fetch-site: same-origin", ""),
            ("GET /", "Sec-Fetch-Site: same-site", "foreign_origin"),
            ("GET /", "Sec-Fetch-Site: cross-site", "foreign_origin"),
            ("GET /", "Sec-Fetch-Site:", "foreign_origin"),
            ("GET /", "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Site: none", "foreign_origin"),
            ("GET http://127.0.0.1:8007/", "Host: 127.0.0.1:8007", ""),
            ("GET http://lured.example/", "Host: 127.0.0.1:8007", "foreign_origin"),
            ("GET http://127.0.0.1:8007/", "Host: lured.example", "foreign_origin"),
            ("GET http://192.0.2.1/", "Host: localhost", "foreign_origin"),
        ] {
            assert_eq!(local_refusal(line, fields, &[]), (expected.to_owned(), 200), "{line} {fields}");
        }
    }

    #[test]
    fn dates_of_leap_years_and_centuries() {
        for (day, expected) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (789, "1972-02-29"),
            (10_957, "2000-01-01"),
            (11_016, "2000-02-29"),
            (20_674, "2026-08-09"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(civil_date(day).as_deref(), Some(expected), "{day}");
        }
    }
}
