//! The address of a chat server.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// A chat server: a `ws://` or `wss://` URL taken apart, and the settings that are its own.
///
/// Every text in it is visible ASCII without spaces, so it can stand in an HTTP head as it is. Displays without its
/// query, and so does Debug: some servers take a token there, which belongs in no log.
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
        let (scheme, rest) = url.split_once("://").ok_or(UrlError::Scheme)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "ws" => false,
            "wss" => true,
            "http" => return Err(UrlError::Http("ws://")),
            "https" => return Err(UrlError::Http("wss://")),
            _ => return Err(UrlError::Scheme),
        };
        let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(UrlError::UserInfo);
        }
        if target.contains('#') {
            return Err(UrlError::Fragment);
        }
        if !target.bytes().all(is_target_byte) {
            return Err(UrlError::Target);
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
        })
    }
}

impl fmt::Display for ChatServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        let path = self.path.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.authority)
    }
}

impl fmt::Debug for ChatServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatServerConfig")
            .field("url", &format_args!("{self}"))
            .field("framing", &self.framing)
            .field("insecure", &self.insecure)
            .field("ca_file", &self.ca_file)
            .finish()
    }
}

/// Why a text is not the URL of a chat server. Displays as what is allowed instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlError {
    /// Neither ws:// nor wss://.
    Scheme,
    /// An HTTP scheme; the WebSocket scheme that was probably meant.
    Http(&'static str),
    /// User name and password before the host.
    UserInfo,
    /// A part behind `#`, which no server ever sees (RFC 6455 section 3).
    Fragment,
    /// Not a name, an IPv4 address or an IPv6 address in brackets.
    Host,
    /// Not a port.
    Port,
    /// A character that no path and no query may hold (RFC 3986 section 3.3).
    Target,
}

impl UrlError {
    /// Whether the text may hold a password, so that it must not be shown.
    pub fn hides_text(self) -> bool {
        self == Self::UserInfo
    }
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a ws:// or wss:// URL")?;
        match self {
            Self::Scheme => Ok(()),
            Self::Http(scheme) => write!(f, "; did you mean {scheme}"),
            Self::UserInfo => f.write_str(" without user name and password"),
            Self::Fragment => f.write_str(" without a fragment (#...)"),
            Self::Host => {
                f.write_str(" whose host is a name, an IPv4 address or an IPv6 address in brackets")
            }
            Self::Port => f.write_str(" whose port is a whole number from 1 to 65535"),
            Self::Target => f.write_str(" with spaces, quotes and all that is not ASCII percent-encoded"),
        }
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

fn split_authority(authority: &str, default_port: u16) -> Result<(String, u16), UrlError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(UrlError::Host)?;
            host.parse::<Ipv6Addr>().map_err(|_| UrlError::Host)?;
            (host, port)
        }
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            if !is_host_name(host) {
                return Err(UrlError::Host);
            }
            (host, port)
        }
    };
    let port = match port.strip_prefix(':') {
        // `parse` alone would accept a sign.
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().ok().filter(|port| *port != 0).ok_or(UrlError::Port)?
        }
        Some(_) => return Err(UrlError::Port),
        None if port.is_empty() => default_port,
        None => return Err(UrlError::Host),
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
            ("", UrlError::Scheme),
            ("chat.example", UrlError::Scheme),
            ("ftp://a/", UrlError::Scheme),
            (" ws://a/", UrlError::Scheme),
            ("http://a/", UrlError::Http("ws://")),
            ("HTTPS://a/", UrlError::Http("wss://")),
            ("ws://user:pass@a/", UrlError::UserInfo),
            ("ws://a/#x", UrlError::Fragment),
            ("ws://a#x", UrlError::Fragment),
            ("ws://", UrlError::Host),
            ("ws:///x", UrlError::Host),
            ("ws://:80/", UrlError::Host),
            ("ws://a b/", UrlError::Host),
            ("ws://a..b/", UrlError::Host),
            ("ws://a\r\nX: y/", UrlError::Host),
            ("ws://ü/", UrlError::Host),
            ("ws://[1.2.3.4]/", UrlError::Host),
            ("ws://[::1/", UrlError::Host),
            ("ws://[::1]x/", UrlError::Host),
            ("ws://::1/", UrlError::Host),
            ("ws://a:/", UrlError::Port),
            ("ws://a:0/", UrlError::Port),
            ("ws://a:+1/", UrlError::Port),
            ("ws://a:65536/", UrlError::Port),
            ("ws://a:80:80/", UrlError::Port),
            ("ws://a/b c", UrlError::Target),
            ("ws://a/\r\nX: y", UrlError::Target),
            ("ws://a/ü", UrlError::Target),
            ("ws://a/\0", UrlError::Target),
        ] {
            assert_eq!(url.parse::<ChatServerConfig>(), Err(error), "{url:?}");
        }
    }

    #[test]
    fn a_query_is_never_shown() {
        let server: ChatServerConfig = "wss://a/ws?token=hunter2".parse().unwrap();
        assert_eq!(server.to_string(), "wss://a/ws");
        assert!(!format!("{server:?}").contains("hunter2"));
    }
}
