//! The URL of a Redis server.

use std::fmt;
use std::str::FromStr;

use super::chat_server::split_authority;
use super::{ChatServerConfig, Secret, UrlError};
use crate::text::{parse_digits, percent_decode, percent_encode};

/// What is allowed.
const ALLOWED: &str = "redis[s]://[user:password@]host[:port][/database], user and password percent-encoded";
/// The port of Redis, also with TLS.
const DEFAULT_PORT: u16 = 6379;
/// The highest number of a database.
const DATABASE_MAX: u32 = 65_535;

/// A `redis://` or `rediss://` URL. Displays without the password, and so does Debug.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// The URL as it was written, with the password.
    pub url: String,
    /// Host, port and TLS, as those of a chat server.
    pub target: Box<ChatServerConfig>,
    /// The user; `None` for the default one.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// The number of the database.
    pub database: u32,
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.target.tls { "rediss" } else { "redis" };
        let user = self.user.as_deref().map_or(String::new(), percent_encode);
        let login = match (&self.user, &self.password) {
            (None, None) => String::new(),
            (Some(_), None) => format!("{user}@"),
            (_, Some(_)) => format!("{user}:***@"),
        };
        let host = match self.target.host.contains(':') {
            true => format!("[{}]", self.target.host),
            false => self.target.host.clone(),
        };
        write!(f, "{scheme}://{login}{host}:{}/{}", self.target.port, self.database)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RedisUrl {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        const BAD: UrlError = UrlError(ALLOWED);
        if cfg!(not(feature = "cluster")) {
            return Err(UrlError("\"\": this program was built without the feature cluster"));
        }
        let (scheme, rest) = url.split_once("://").ok_or(BAD)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "redis" => false,
            "rediss" if cfg!(not(feature = "tls")) => {
                return Err(UrlError("a redis:// URL: this program was built without TLS"));
            }
            "rediss" => true,
            _ => return Err(BAD),
        };
        let (rest, database) = match rest.split_once('/') {
            None | Some((_, "")) => (rest.trim_end_matches('/'), 0),
            Some((rest, database)) => {
                let database = parse_digits(database).filter(|database| *database <= DATABASE_MAX);
                (rest, database.ok_or(BAD)?)
            }
        };
        let (login, authority) = rest.rsplit_once('@').map_or(("", rest), |(login, host)| (login, host));
        let (host, port) = split_authority(authority, DEFAULT_PORT).map_err(|_| BAD)?;
        let shown = if host.contains(':') { format!("[{host}]") } else { host };
        let scheme = if tls { "wss" } else { "ws" };
        let target = format!("{scheme}://{shown}:{port}/").parse().map(Box::new).map_err(|_| BAD)?;
        if !login.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(BAD);
        }
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (user, password) = (percent_decode(user).ok_or(BAD)?, percent_decode(password).ok_or(BAD)?);
        let user = (!user.is_empty()).then(|| user.into_owned());
        Ok(Self { url: url.to_owned(), target, user, password: Secret::new(&password), database })
    }
}

/// Whether this can be the name of a gateway: it stands in log lines and keys.
pub(super) fn is_gateway_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(all(test, feature = "cluster"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_parsed_and_shown_without_its_password() {
        for (url, host, port, user, password, database, shown) in [
            ("redis://r", "r", 6379, None, None, 0, "redis://r:6379/0"),
            ("redis://r/", "r", 6379, None, None, 0, "redis://r:6379/0"),
            ("REDIS://R:1/3", "r", 1, None, None, 3, "redis://r:1/3"),
            ("redis://:p@[::1]:2", "::1", 2, None, Some("p"), 0, "redis://:***@[::1]:2/0"),
            ("redis://u@r", "r", 6379, Some("u"), None, 0, "redis://u@r:6379/0"),
            ("redis://u:a@b@r", "r", 6379, Some("u"), Some("a@b"), 0, "redis://u:***@r:6379/0"),
            ("redis://u%3A:p%2F%40%25ä".trim_end_matches('ä'), "", 0, None, None, 0, ""),
            (
                "redis://u%3a:p%2F%40%25@r",
                "r",
                6379,
                Some("u:"),
                Some("p/@%"),
                0,
                "redis://u%3A:***@r:6379/0",
            ),
        ] {
            if shown.is_empty() {
                assert!(url.parse::<RedisUrl>().is_err(), "{url}");
                continue;
            }
            let parsed: RedisUrl = url.parse().unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!(
                (&*parsed.target.host, parsed.target.port, parsed.database),
                (host, port, database),
                "{url}"
            );
            assert_eq!(parsed.user.as_deref(), user, "{url}");
            assert_eq!(parsed.password, password.and_then(Secret::new), "{url}");
            assert!(!parsed.target.tls);
            assert_eq!((parsed.to_string(), format!("{parsed:?}")), (shown.to_owned(), shown.to_owned()));
        }
    }

    #[test]
    fn rediss_needs_tls() {
        let parsed = "rediss://r".parse::<RedisUrl>();
        match cfg!(feature = "tls") {
            true => assert!(parsed.unwrap().target.tls),
            false => assert!(parsed.unwrap_err().to_string().contains("without TLS")),
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for url in [
            "",
            "r:6379",
            "http://r",
            "redis://",
            "redis://r:0",
            "redis://r:x",
            "redis://r/x",
            "redis://r/70000",
            "redis://r/1/2",
            "redis://r/+1",
            "redis://a b@r",
            "redis://a%2@r",
            "redis://a%zz@r",
            "redis://a%+1@r",
            "redis://r,s",
            "unix:/run/redis.sock",
        ] {
            assert!(url.parse::<RedisUrl>().is_err(), "{url}");
        }
    }
}
