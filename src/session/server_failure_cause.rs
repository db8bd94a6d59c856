//! The likeliest causes of what servers and proxies answer, and what to do about each: the gateway's log and `check` say the
//! same.

use serde::Serialize;

use super::tls_error::TlsErrorCause;

/// The likeliest cause of an answer that is not the expected one. Serializes as its stable code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerCause {
    /// The port speaks TLS, and the URL says `ws://`.
    TlsPort,
    /// Something between here and the chat server answers instead of it.
    UpgradeNotPassed,
    /// A proxy wants a user name and a password.
    BasicAuth,
    /// The token is refused.
    Token,
    /// The token or the path is refused.
    TokenOrPath,
    /// A content delivery network refuses the request.
    Cdn,
    /// There is nothing at the path.
    Path,
    /// There were too many requests.
    RateLimit,
    /// The chat server failed.
    ServerError,
    /// The chat server behind a proxy does not answer.
    BadGateway,
    /// It redirects.
    Redirect,
    /// It speaks HTTP/2 only.
    Http2Only,
    /// The device is refused.
    Device,
    /// Its certificate has expired.
    CertificateExpired,
    /// Its certificate is not valid yet.
    CertificateNotYetValid,
    /// Its certificate is for another name.
    CertificateName,
    /// Its certificate is from an authority that is not known here.
    CertificateAuthority,
    /// The port does not speak TLS, and the URL says `wss://`.
    NotTls,
}

/// What an HTTP response says about its cause.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpAnswer<'a> {
    /// The status code.
    pub status: u16,
    /// The `server` header.
    pub server: &'a str,
    /// The `www-authenticate` header.
    pub authenticate: &'a str,
    /// The start of the body.
    pub body: &'a str,
}

/// How nginx, Apache, and Go's web server (Caddy, Traefik) refuse HTTP on a port of theirs that speaks TLS.
const TLS_PORT_WORDINGS: [&str; 3] = [
    "plain HTTP request was sent to HTTPS port",
    "speaking plain HTTP to an SSL-enabled server port",
    "sent an HTTP request to an HTTPS server",
];
/// How the networks call themselves in the `server` header.
const CDN_NAMES: [&str; 5] = ["cloudflare", "cloudfront", "akamai", "fastly", "edgeone"];

impl ServerCause {
    /// The cause of a response that does not accept the upgrade.
    pub fn of_response(answer: &HttpAnswer<'_>) -> Option<Self> {
        let server = answer.server.to_ascii_lowercase();
        let basic = answer.authenticate.trim_start().get(..5);
        Some(match answer.status {
            _ if TLS_PORT_WORDINGS.iter().any(|words| answer.body.contains(words)) => Self::TlsPort,
            300..=399 => Self::Redirect,
            401 if basic.is_some_and(|scheme| scheme.eq_ignore_ascii_case("basic")) => Self::BasicAuth,
            401 => Self::Token,
            403 if CDN_NAMES.iter().any(|name| server.contains(name)) => Self::Cdn,
            403 => Self::TokenOrPath,
            404 => Self::Path,
            429 => Self::RateLimit,
            // An AWS load balancer answers HTTP/1.1 with 464 where only HTTP/2 is allowed.
            464 | 505 => Self::Http2Only,
            200 | 400 | 426 => Self::UpgradeNotPassed,
            500 => Self::ServerError,
            502..=504 => Self::BadGateway,
            _ => return None,
        })
    }

    /// The cause of an answer that is no HTTP/1 response, by its first bytes.
    pub fn of_bytes(answer: &[u8]) -> Option<Self> {
        match answer {
            // A TLS alert (RFC 8446 section 5.1).
            [0x15, 3, ..] => Some(Self::TlsPort),
            // A SETTINGS frame on stream 0 (RFC 9113 section 4.1).
            [0, _, _, 4, _, 0, 0, 0, 0, ..] => Some(Self::Http2Only),
            _ => None,
        }
    }

    /// The cause of a TLS handshake that failed with this message of the platform's library.
    pub fn of_tls(message: &str) -> Option<Self> {
        match TlsErrorCause::from_message(message) {
            TlsErrorCause::Expired => Some(Self::CertificateExpired),
            TlsErrorCause::NotYetValid => Some(Self::CertificateNotYetValid),
            TlsErrorCause::NameMismatch => Some(Self::CertificateName),
            TlsErrorCause::UnknownAuthority => Some(Self::CertificateAuthority),
            TlsErrorCause::NotTls => Some(Self::NotTls),
            TlsErrorCause::NotBuiltIn | TlsErrorCause::Other => None,
        }
    }

    /// The cause of a Close frame with this code, or of words before the end of the connection. Besides 1008 (RFC 6455 section
    /// 7.4.1) these are unauthorized and forbidden of the registry, and what servers make of the HTTP codes.
    pub fn of_close(code: Option<u16>, words: &str) -> Option<Self> {
        let lower = words.to_lowercase();
        let chinese = ["认证", "鉴权", "授权", "令牌", "密钥"];
        let english = ["auth", "token", "secret", "forbidden", "denied", "permission"];
        match code {
            _ if chinese.iter().chain(&english).any(|word| lower.contains(word)) => Some(Self::Token),
            Some(1008) if !words.is_empty() => Some(Self::Device),
            Some(1008 | 3000 | 3003 | 4001 | 4003 | 4401 | 4403) => Some(Self::Token),
            _ => None,
        }
    }

    /// The cause in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::TlsPort => "the port wants TLS, and the URL says ws://",
            Self::UpgradeNotPassed => {
                "a proxy in between does not pass the upgrade on, or the port is that of a web page"
            }
            Self::BasicAuth => "a proxy asks for a user name and a password, by HTTP Basic",
            Self::Token => {
                "it refuses the token: SERVER_SECRET, or \"token\" of this server, is not the one it expects"
            }
            Self::TokenOrPath => {
                "it refuses the path, or the token: SERVER_SECRET or \"token\" of this server"
            }
            Self::Cdn => "a CDN in front of it refuses the request",
            Self::Path => "there is no WebSocket at the path of this URL",
            Self::RateLimit => "it, or a proxy before it, limits the number of requests",
            Self::ServerError => "the chat server itself fails",
            Self::BadGateway => "a reverse proxy answers, but the chat server behind it does not",
            Self::Redirect => "it redirects",
            Self::Http2Only => "it speaks HTTP/2 only, and a WebSocket begins with HTTP/1.1",
            Self::Device => "it refuses this device",
            Self::CertificateExpired => "its certificate has expired",
            Self::CertificateNotYetValid => "its certificate is not valid yet",
            Self::CertificateName => "its certificate is for another name than that in the URL",
            Self::CertificateAuthority => "its certificate is not from an authority known here",
            Self::NotTls => "the port does not speak TLS, and the URL says wss://",
        }
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::TlsPort => "write wss:// instead of ws://",
            Self::UpgradeNotPassed => {
                "for nginx: proxy_http_version 1.1, and proxy_set_header for Upgrade and Connection; else compare port and \
                 path with the chat server's own: the port of its web page or OTA is another one"
            }
            Self::BasicAuth => {
                "let the proxy pass the path of the chat server without a password: it has its own token"
            }
            Self::Token => {
                "set SERVER_SECRET or websocket.server_secret to the server's own secret (xiaozhi-esp32-server's is \
                 server.auth_key in its config file, or server.secret in the console's parameters), or \"token\" of this \
                 server to a fixed one"
            }
            Self::TokenOrPath => {
                "compare the path with the chat server's own, and SERVER_SECRET (websocket.server_secret) or this server's \
                 \"token\" with the secret that it expects"
            }
            Self::Cdn => {
                "let the CDN pass WebSockets on this path without a browser check, or write the server's own address"
            }
            Self::Path => {
                "compare the path with the chat server's own; xiaozhi-esp32-server prints its address at start, ending in \
                 /xiaozhi/v1/"
            }
            Self::RateLimit => "raise the limit for this gateway's address: all its devices come from there",
            Self::ServerError => "its log says why",
            Self::BadGateway => "start the chat server, or correct the address in the proxy's configuration",
            Self::Redirect => "write the address it redirects to into the configuration",
            Self::Http2Only => "allow HTTP/1.1 for this address, or write the chat server's own",
            Self::CertificateExpired => "renew the certificate; if it is new, look at this machine's clock",
            Self::CertificateNotYetValid => "look at this machine's clock",
            Self::CertificateName => {
                "write the name that the certificate is for into the URL, or get one for this name"
            }
            Self::CertificateAuthority => {
                "give the certificate of its authority as websocket.ca_file (or \"ca_file\" of this server), or get one from a \
                 public authority; \"insecure\": true would accept any certificate"
            }
            Self::NotTls => "write ws:// instead of wss://, or the port of the TLS endpoint",
            Self::Device => "its log says why; a server may answer devices only that are bound to an account",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_has_its_likeliest_cause() {
        use ServerCause::*;
        let nginx = "<title>400 The plain HTTP request was sent to HTTPS port</title>";
        let apache = "Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />";
        let go = "Client sent an HTTP request to an HTTPS server.\n";
        for (status, server, authenticate, body, cause) in [
            (400, "nginx", "", nginx, Some(TlsPort)),
            (400, "Apache", "", apache, Some(TlsPort)),
            (400, "", "", go, Some(TlsPort)),
            (400, "nginx", "", "Bad Request", Some(UpgradeNotPassed)),
            (200, "", "", "Server is running", Some(UpgradeNotPassed)),
            (426, "", "", "", Some(UpgradeNotPassed)),
            (401, "nginx", "Basic realm=\"x\"", "", Some(BasicAuth)),
            (401, "", "basic", "", Some(BasicAuth)),
            (401, "", "Bearer", "", Some(Token)),
            (401, "", "", "", Some(Token)),
            (403, "", "", "", Some(TokenOrPath)),
            (403, "cloudflare", "", "", Some(Cdn)),
            (403, "AkamaiGHost", "", "", Some(Cdn)),
            (404, "", "", "", Some(Path)),
            (429, "", "", "", Some(RateLimit)),
            (500, "", "", "", Some(ServerError)),
            (502, "", "", "", Some(BadGateway)),
            (503, "", "", "", Some(BadGateway)),
            (301, "", "", "", Some(Redirect)),
            (308, "", "", "", Some(Redirect)),
            (505, "", "", "", Some(Http2Only)),
            (464, "awselb/2.0", "", "", Some(Http2Only)),
            (418, "", "", "", None),
        ] {
            let answer = HttpAnswer { status, server, authenticate, body };
            assert_eq!(ServerCause::of_response(&answer), cause, "{answer:?}");
        }
        for (bytes, cause) in [
            (&[0x15, 3, 1, 0, 2, 2, 70][..], Some(TlsPort)),
            (&[0, 0, 18, 4, 0, 0, 0, 0, 0, 0, 3], Some(Http2Only)),
            (b"SSH-2.0-OpenSSH", None),
        ] {
            assert_eq!(ServerCause::of_bytes(bytes), cause, "{bytes:?}");
        }
        for (code, words, cause) in [
            (Some(1008), "Invalid token", Some(Token)),
            (Some(1008), "认证失败", Some(Token)),
            (None, "认证失败", Some(Token)),
            (Some(1008), "device not bound", Some(Device)),
            (Some(1008), "", Some(Token)),
            (Some(4401), "", Some(Token)),
            (Some(4000), "", None),
            (Some(1011), "out of memory", None),
        ] {
            assert_eq!(ServerCause::of_close(code, words), cause, "{code:?} {words}");
        }
    }
}
