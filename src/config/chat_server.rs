//! Chat servers: their URLs and settings.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

use super::Secret;
use crate::text::parse_digits;

/// A chat server: a `ws://` or `wss://` URL taken apart, and the settings that are its own.
///
/// Every text in it is visible ASCII without spaces, so it can stand in an HTTP head as it is. Displays with `***` for what
/// may be a secret in its query, and so does Debug: some servers take a token there, which belongs in no log.
#[derive(Clone, PartialEq, Eq)]
pub struct ChatServerConfig {
    /// The URL as it was written.
    pub url: String,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// The host's name or IP address, in lower case, an IPv6 address without brackets.
    pub host: String,
    /// The TCP port: as written, else 80, or 443 with TLS.
    pub port: u16,
    /// Path and query, at least `/`.
    pub path: String,
    /// The value of the Host header: the host, in brackets if it is an IPv6 address, and the port unless it is the scheme's own
    /// (RFC 9110 section 7.2).
    pub authority: String,
    /// How audio is framed towards this server.
    pub framing: Framing,
    /// Whether its certificate is not verified; `None` leaves it to `websocket.insecure`.
    pub insecure: Option<bool>,
    /// PEM certificates trusted for this server; `None` leaves it to `websocket.ca_file`.
    pub ca_file: Option<PathBuf>,
    /// What follows when it ends the connection in a call.
    pub on_disconnect: OnDisconnect,
    /// The bearer token that it gets instead of a signed one.
    pub token: Option<Secret>,
    /// Whether it gets a `goodbye` before the close; `None` leaves it to `websocket.send_goodbye`.
    pub send_goodbye: Option<bool>,
    /// Whether it is pinged, every `websocket.ping_interval_s`.
    pub ping: bool,
    /// Where to ask whether it is well, in the background.
    pub health_url: Option<HttpUrl>,
}

/// What follows when a chat server ends the connection in a call, without a `goodbye`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisconnect {
    /// An end that it meant ends the call; after a failure the call goes on with the next server.
    Auto,
    /// The call goes on with the next server.
    Redial,
    /// The call ends.
    End,
}

/// An `http://` or `https://` URL. Displays with `***` for what may be a secret in its query, and so does Debug.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpUrl {
    /// The URL as it was written.
    pub url: String,
    /// The same host, port and path as those of a chat server.
    pub target: Box<ChatServerConfig>,
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target.to_string();
        write!(f, "http{}", target.strip_prefix("ws").unwrap_or(&target))
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for HttpUrl {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(UrlError::HTTP_URL)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => "ws",
            "https" => "wss",
            _ => return Err(UrlError::HTTP_URL),
        };
        let target = format!("{scheme}://{rest}").parse().map(Box::new).map_err(|_| UrlError::HTTP_URL)?;
        Ok(Self { url: url.to_owned(), target })
    }
}

/// How audio is framed towards a chat server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// The 16-byte header, until the server is seen to send none.
    Auto,
    /// The 16-byte header: protocol version 2.
    Header,
    /// Bare Opus packets: protocol version 1.
    Raw,
}

impl FromStr for ChatServerConfig {
    type Err = UrlError;

    /// Reads a URL. The settings that are not in a URL get their defaults.
    fn from_str(url: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(UrlError::SCHEME)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "ws" => false,
            "wss" => true,
            "http" => return Err(UrlError::HTTP),
            "https" => return Err(UrlError::HTTPS),
            _ => return Err(UrlError::SCHEME),
        };
        let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(UrlError::USER_INFO);
        }
        if target.contains('#') {
            return Err(UrlError::FRAGMENT);
        }
        if !target.bytes().all(is_target_byte) {
            return Err(UrlError::TARGET);
        }
        let default_port = if tls { 443 } else { 80 };
        let (host, port) = split_authority(authority, default_port)?;
        let shown = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        Ok(Self {
            url: url.to_owned(),
            tls,
            port,
            path: if target.starts_with('/') { target.to_owned() } else { format!("/{target}") },
            authority: if port == default_port { shown } else { format!("{shown}:{port}") },
            host,
            framing: Framing::Auto,
            insecure: None,
            ca_file: None,
            on_disconnect: OnDisconnect::Auto,
            token: None,
            send_goodbye: None,
            ping: true,
            health_url: None,
        })
    }
}

/// What xiaozhi-esp32-server's URL must end with so that it takes and sends the 16-byte header.
pub const URL_SUFFIX: &str = "?from=mqtt_gateway";
/// What that server's path begins with, unless an operator changed it.
pub const XIAOZHI_PATH: &str = "/xiaozhi/";

impl ChatServerConfig {
    /// Whether the path is that of xiaozhi-esp32-server, and the URL lacks the suffix, while nothing says that it need not be there.
    pub fn lacks_suffix(&self) -> bool {
        self.framing == Framing::Auto
            && self.path.starts_with(XIAOZHI_PATH)
            && !self.path.ends_with(URL_SUFFIX)
    }
}

/// Whether a value in a query is too plain to be a secret, whatever its name: a short word without digits, or a small number.
fn is_plain_value(value: &str) -> bool {
    let is_word = value.bytes().all(|byte| byte.is_ascii_alphabetic() || b"_-.".contains(&byte));
    is_word && value.len() <= 16 || value.len() <= 2 && value.bytes().all(|byte| byte.is_ascii_digit())
}

/// Parts of the names in a query whose values are secrets.
const SECRET_NAMES: [&str; 12] =
    ["token", "key", "secret", "pass", "pwd", "auth", "sig", "cred", "session", "jwt", "code", "%"];

/// A part of a query, `***` for what may be a secret in it.
fn masked(part: &str) -> Cow<'_, str> {
    match part.split_once('=') {
        _ if part.is_empty() => part.into(),
        Some((name, value)) => {
            let lower = name.to_ascii_lowercase();
            let is_secret = SECRET_NAMES.iter().any(|secret| lower.contains(secret));
            let is_shown = value.is_empty() || !is_secret && is_plain_value(value);
            if is_shown { part.into() } else { format!("{name}=***").into() }
        }
        None => "***".into(),
    }
}

impl fmt::Display for ChatServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        let (path, query) = match self.path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.path.as_str(), None),
        };
        write!(f, "{scheme}://{}{path}", self.authority)?;
        let Some(query) = query else { return Ok(()) };
        let parts: Vec<_> = query.split('&').map(masked).collect();
        write!(f, "?{}", parts.join("&"))
    }
}

impl fmt::Debug for ChatServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not the URL of a server. Displays as what is allowed instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UrlError(pub(super) &'static str);

impl UrlError {
    const SCHEME: Self = Self("a ws:// or wss:// URL");
    const HTTP: Self = Self("a ws:// or wss:// URL; did you mean ws://");
    const HTTPS: Self = Self("a ws:// or wss:// URL; did you mean wss://");
    const HTTP_URL: Self =
        Self("an http:// or https:// URL, its path percent-encoded, without user name and fragment");
    const USER_INFO: Self = Self("a ws:// or wss:// URL without user name and password");
    /// No server ever sees the part behind `#` (RFC 6455 section 3).
    const FRAGMENT: Self = Self("a ws:// or wss:// URL without a fragment (#...)");
    const HOST: Self =
        Self("a ws:// or wss:// URL whose host is a name, an IPv4 address or an IPv6 address in brackets");
    const PORT: Self = Self("a ws:// or wss:// URL whose port is a whole number from 1 to 65535");
    /// RFC 3986 section 3.3.
    const TARGET: Self =
        Self("a ws:// or wss:// URL with spaces, quotes and all that is not ASCII percent-encoded");
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for UrlError {}

/// Whether `text` can be the name of a host: letters, digits, `-`, `_` and dots, no empty label but a last one.
pub(super) fn is_host_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    text.len() <= 253
        && name.split('.').all(|label| (1..=63).contains(&label.len()) && label.bytes().all(is_label_byte))
}

/// Host, in lower case and an IPv6 address without brackets, and port.
pub(super) fn split_authority(authority: &str, default_port: u16) -> Result<(String, u16), UrlError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(UrlError::HOST)?;
            host.parse::<Ipv6Addr>().map_err(|_| UrlError::HOST)?;
            (host, port)
        }
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            if !is_host_name(host) {
                return Err(UrlError::HOST);
            }
            (host, port)
        }
    };
    let port = match port.strip_prefix(':') {
        Some(digits) => parse_digits(digits).filter(|port| *port != 0).ok_or(UrlError::PORT)?,
        None if port.is_empty() => default_port,
        None => return Err(UrlError::HOST),
    };
    Ok((host.to_ascii_lowercase(), port))
}

/// What a path or a query may hold (RFC 3986 sections 3.3 and 3.4).
fn is_target_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@/?".contains(&byte)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_parsed() {
        for (url, tls, host, port, path, authority) in [
            ("ws://chat", false, "chat", 80, "/", "chat"),
            ("WSS://Chat.Example/ws", true, "chat.example", 443, "/ws", "chat.example"),
            ("ws://1.2.3.4:8000/a/b?c=d", false, "1.2.3.4", 8000, "/a/b?c=d", "1.2.3.4:8000"),
            ("ws://a?token=x%20y", false, "a", 80, "/?token=x%20y", "a"),
            ("wss://[::1]:443/", true, "::1", 443, "/", "[::1]"),
            ("ws://[fe80::1]:9/x", false, "fe80::1", 9, "/x", "[fe80::1]:9"),
            ("wss://a:80/", true, "a", 80, "/", "a:80"),
            ("ws://chat_server.local./", false, "chat_server.local.", 80, "/", "chat_server.local."),
        ] {
            let server: ChatServerConfig = url.parse().unwrap();
            let parts = (server.tls, server.host.as_str(), server.port, &*server.path, &*server.authority);
            assert_eq!(parts, (tls, host, port, path, authority), "{url}");
            assert_eq!(server.url, url);
        }
    }

    #[test]
    fn an_invalid_url_is_rejected() {
        for (url, error) in [
            ("", UrlError::SCHEME),
            ("chat.example", UrlError::SCHEME),
            ("ftp://a/", UrlError::SCHEME),
            (" ws://a/", UrlError::SCHEME),
            ("http://a/", UrlError::HTTP),
            ("HTTPS://a/", UrlError::HTTPS),
            ("ws://user:pass@a/", UrlError::USER_INFO),
            ("ws://a/#x", UrlError::FRAGMENT),
            ("ws://a#x", UrlError::FRAGMENT),
            ("ws://", UrlError::HOST),
            ("ws:///x", UrlError::HOST),
            ("ws://:80/", UrlError::HOST),
            ("ws://a b/", UrlError::HOST),
            ("ws://a..b/", UrlError::HOST),
            ("ws://a\r\nX: y/", UrlError::HOST),
            ("ws://ü/", UrlError::HOST),
            ("ws://[1.2.3.4]/", UrlError::HOST),
            ("ws://[::1/", UrlError::HOST),
            ("ws://[::1]x/", UrlError::HOST),
            ("ws://::1/", UrlError::HOST),
            ("ws://a:/", UrlError::PORT),
            ("ws://a:0/", UrlError::PORT),
            ("ws://a:+1/", UrlError::PORT),
            ("ws://a:65536/", UrlError::PORT),
            ("ws://a:80:80/", UrlError::PORT),
            ("ws://a/b c", UrlError::TARGET),
            ("ws://a/\r\nX: y", UrlError::TARGET),
            ("ws://a/ü", UrlError::TARGET),
            ("ws://a/\0", UrlError::TARGET),
        ] {
            assert_eq!(url.parse::<ChatServerConfig>(), Err(error), "{url:?}");
        }
    }

    #[test]
    fn a_query_is_shown_without_its_secrets() {
        for (query, shown) in [
            ("?from=mqtt_gateway", "?from=mqtt_gateway"),
            ("?token=hunter2", "?token=***"),
            ("?Access_Token=hunter2&from=mqtt_gateway", "?Access_Token=***&from=mqtt_gateway"),
            ("?lang=zh&apiKey=hunter2&sig=hunter2", "?lang=zh&apiKey=***&sig=***"),
            ("?hunter2", "?***"),
            ("?v=1&id=hunter2", "?v=1&id=***"),
            ("?id=correcthorsebatterystaple", "?id=***"),
            ("?t%6Fken=hunter2", "?t%6Fken=***"),
            ("?", "?"),
            ("?a=&token=", "?a=&token="),
        ] {
            let server: ChatServerConfig = format!("wss://a/ws{query}").parse().unwrap();
            assert_eq!(server.to_string(), format!("wss://a/ws{shown}"));
            assert_eq!(format!("{server:?}"), server.to_string());
        }
    }

    #[test]
    fn a_health_url_is_an_http_url() {
        let health: HttpUrl = "https://a:8/health?x".parse().unwrap();
        assert_eq!((health.target.tls, health.target.port, &*health.target.path), (true, 8, "/health?x"));
        for url in ["ws://a/", "a/health", "http://a/ü", "http://"] {
            assert_eq!(url.parse::<HttpUrl>().unwrap_err(), UrlError::HTTP_URL, "{url}");
        }
    }

    #[test]
    fn the_path_of_the_python_server_needs_the_suffix() {
        for (url, lacks) in [
            ("ws://a/xiaozhi/v1/", true),
            ("ws://a/xiaozhi/v1/?from=mqtt_gateway&a=b", true),
            ("ws://a/xiaozhi/v1/?from=mqtt_gateway", false),
            ("ws://a/other", false),
        ] {
            assert_eq!(url.parse::<ChatServerConfig>().unwrap().lacks_suffix(), lacks, "{url}");
        }
    }
}
