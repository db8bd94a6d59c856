//! What went wrong with a chat server, in words: the likeliest cause, and what to do about it.

use std::time::Duration;

use super::report::{State, Trouble};
use super::server::Talk;
use crate::config::{Config, Framing, Server};
use crate::proto::audio;
use crate::proto::message::{self, Object, Reader};
use crate::session::{Failure, Gone};
use crate::tools::tls_error::Cause;

/// Texts that are kept of what a server says instead of a hello.
pub(super) const TEXTS: usize = 5;
/// What xiaozhi-esp32-server's URL must end with so that it takes and sends the 16-byte header.
const SUFFIX: &str = "?from=mqtt_gateway";
/// What that server's path begins with, unless an operator changed it.
const USUAL_PATH: &str = "/xiaozhi/";

/// Words about one server.
pub(super) struct Words<'a> {
    pub(super) server: &'a Server,
    pub(super) config: &'a Config,
}

impl Words<'_> {
    pub(super) fn unresolved(&self, why: &str) -> Trouble {
        Trouble::new(format!("the name {} does not resolve: {why}", self.server.host)).advise(
            "is the name spelt right, and is it known to this machine (in a container: to its network)?",
        )
    }

    /// Why there is no open WebSocket, likeliest first.
    pub(super) fn undialled(&self, failure: &Failure) -> Vec<Trouble> {
        let why = failure.why.as_str();
        let trouble = match failure.stage {
            "connect" => self.unconnected(why),
            "tls" => self.insecure(why),
            _ => self.not_upgraded(why),
        };
        // Found early, it spares a second look.
        let hint = self.lacks_suffix().filter(|_| self.server.path.starts_with(USUAL_PATH));
        [trouble].into_iter().chain(hint).collect()
    }

    fn unconnected(&self, why: &str) -> Trouble {
        let Server { host, port, .. } = self.server;
        let trouble = if why.contains("refused") {
            Trouble::new(format!("nothing listens on {host} port {port}: the chat server is not running, or not there ({why})"))
                .advise(format!("start the chat server, and look at which address and port it listens on; this URL says port {port}"))
        } else {
            Trouble::new(format!("{host} port {port} cannot be reached: {why}")).advise(
                "is the address right, is the machine up, and does a firewall let TCP through to that port?",
            )
        };
        let is_loopback = host == "localhost" || host.starts_with("127.") || host == "::1";
        match is_loopback {
            true => trouble.advise(
                "in a container this address is the container itself: write the host's own address instead",
            ),
            false => trouble,
        }
    }

    fn insecure(&self, why: &str) -> Trouble {
        match Cause::of(why) {
            Cause::Absent => Trouble::new(format!("this program cannot speak TLS ({why})"))
                .advise("use a build with the feature \"tls\", which is on by default"),
            Cause::Expired => Trouble::new(format!("its certificate has expired ({why})"))
                .advise("renew the certificate; if it is new, look at this machine's clock"),
            Cause::NotYetValid => Trouble::new(format!("its certificate is not valid yet ({why})"))
                .advise("look at this machine's clock"),
            Cause::OtherName => {
                let host = &self.server.host;
                Trouble::new(format!("its certificate is for another name than {host} ({why})")).advise(
                    "write the name that the certificate is for into the URL, or get one for this name",
                )
            }
            Cause::UnknownAuthority => {
                Trouble::new(format!("its certificate is not from an authority known here ({why})")).advise(
                    "give the certificate of its authority as websocket.ca_file (or \"ca_file\" of this server), or get \
                     one from a public authority; \"insecure\": true would accept any certificate",
                )
            }
            Cause::NotTls => Trouble::new(format!("port {} does not speak TLS ({why})", self.server.port))
                .advise("write ws:// instead of wss://, or the port of the TLS endpoint"),
            Cause::Other => Trouble::new(format!("no TLS connection: {why}"))
                .advise("is this the port of a TLS endpoint (if not, write ws:// instead of wss://), and does it speak TLS 1.2 or newer?"),
        }
    }

    fn not_upgraded(&self, why: &str) -> Trouble {
        let code = why
            .strip_prefix("HTTP ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse::<u16>().ok());
        let proxy = "a reverse proxy before it must pass the upgrade on (for nginx: proxy_http_version 1.1, and \
                     proxy_set_header for Upgrade and Connection)";
        match code {
            Some(401 | 403) => self.refused(why),
            Some(300..=399) => Trouble::new(format!("it redirects ({why})")).advise("write the address it redirects to into the configuration"),
            Some(404) => Trouble::new(format!("there is no WebSocket at the path of this URL ({why})"))
                .advise("compare the path with the chat server's own; xiaozhi-esp32-server prints its address at start, ending in /xiaozhi/v1/")
                .advise(proxy),
            Some(502..=504) => Trouble::new(format!("a reverse proxy answers, but the chat server behind it does not ({why})"))
                .advise("start the chat server, or correct the address in the proxy's configuration"),
            Some(_) => Trouble::new(format!("it answers as a web server, and not as a WebSocket ({why})"))
                .advise("compare port and path with the chat server's own; the port of its web page or OTA is another one")
                .advise(proxy),
            None if why.starts_with("no answer") => Trouble::new(format!("it takes the connection and says nothing ({why})"))
                .advise("is this the chat server's port? If it is, the server hangs: look at its log"),
            None => {
                let trouble = Trouble::new(format!("port {} does not speak WebSocket: {why}", self.server.port))
                    .advise("is this the chat server's port?");
                match self.server.tls {
                    true => trouble,
                    false => trouble.advise("if the server wants TLS, write wss:// instead of ws://"),
                }
            }
        }
    }

    /// The server does not let us in.
    fn refused(&self, why: &str) -> Trouble {
        let theirs = "xiaozhi-esp32-server's is server.auth_key in its config file, or server.secret in the console's \
                      parameters";
        match self.config.websocket.secret {
            None => Trouble::new(format!("it asks for a token, and SERVER_SECRET is not set ({why})"))
                .advise(format!(
                    "set SERVER_SECRET or websocket.server_secret to the server's own secret: {theirs}"
                )),
            Some(_) => Trouble::new(format!(
                "it refuses the token: SERVER_SECRET is the wrong secret for it ({why})"
            ))
            .advise(format!(
                "set SERVER_SECRET or websocket.server_secret to the server's own secret: {theirs}"
            ))
            .advise("tokens carry the time: look at the clocks of both machines"),
        }
    }

    pub(super) fn slow_hello(&self, took: Duration) -> Trouble {
        Trouble::new(format!("its hello took {:.1} s", took.as_secs_f64()))
            .advise("after 4 s the gateway gives a server up for the next, and a device waits 10 s in all: look at the server's load")
    }

    /// State, detail and words when no hello came.
    pub(super) fn no_hello(&self, talk: &Talk, waited: Duration) -> (State, String, Trouble) {
        let said = talk.texts.iter().find_map(|text| complaint(text));
        let speaks = talk.texts.iter().any(|text| matches!(kind(text).as_str(), "tts" | "stt"));
        let Some(gone) = &talk.gone else {
            if speaks || !talk.frames.is_empty() {
                let trouble = Trouble::new("it answers with speech and without a hello: it does not know this device")
                    .advise("give --mac with the MAC address of a device that is bound on this server; a device that is not hears its binding code");
                return (State::Warn, "speech, but no hello".to_owned(), trouble);
            }
            let detail = said.as_ref().map_or_else(
                || format!("none within {} s", waited.as_secs()),
                |said| format!("none within {} s; it said: {said}", waited.as_secs()),
            );
            let trouble =
                Trouble::new(format!("it takes the connection, and does not answer the hello: {detail}"))
                    .advise("is this a XiaoZhi chat server? If it is, its log says what it waits for")
                    .advise("a server may answer known devices only: try --mac with one of yours");
            return (State::Fail, detail, trouble);
        };
        let ended = match gone {
            Gone::Closed(Some(code)) => format!("it closes with code {code}"),
            Gone::Closed(None) => "it closes without a code".to_owned(),
            Gone::Failed(failure) => failure.why.clone(),
        };
        let detail = match &said {
            Some(said) => format!("it says \"{said}\", then {ended}"),
            None => format!("{ended}, without a word"),
        };
        let trouble = if said.as_deref().is_some_and(is_about_trust) || is_refusal(gone) {
            self.refused(&detail)
        } else {
            let own = "its log says why; what is behind it may be the token (SERVER_SECRET), a device it does not know \
                       (try --mac with one of yours), or a path that is not for devices";
            Trouble::new(format!("it ends the connection before its hello: {detail}")).advise(own)
        };
        (State::Fail, detail, trouble)
    }

    /// State, detail and words about how it frames audio.
    pub(super) fn framing(&self, talk: &Talk) -> (State, &'static str, Option<Trouble>) {
        let framed = talk.frames.iter().any(|frame| audio::parse_ws(frame).is_some());
        match (talk.frames.is_empty(), framed, self.server.framing) {
            (true, ..) => match self.lacks_suffix() {
                None => (State::Skipped, "it sent no audio", None),
                Some(trouble) => {
                    let usual = self.server.path.starts_with(USUAL_PATH);
                    let state = if usual { State::Fail } else { State::Warn };
                    (state, "it sent no audio, and its URL lacks the suffix", Some(trouble))
                }
            },
            (_, true, Framing::Auto | Framing::Header) => (State::Ok, "header", None),
            (_, false, Framing::Raw) => (State::Ok, "raw", None),
            (_, true, Framing::Raw) => {
                let cause = "it sends the 16-byte header, and its \"framing\" is set to \"raw\"";
                let trouble = Trouble::new(cause).advise("take \"framing\" away from this server");
                (State::Fail, "header, but set to raw", Some(trouble))
            }
            (_, false, Framing::Auto | Framing::Header) => (State::Fail, "raw", Some(self.raw())),
        }
    }

    /// It sends bare Opus where the header is expected.
    fn raw(&self) -> Trouble {
        let raw = "a server that knows bare Opus only: give it as {\"url\": .., \"framing\": \"raw\"}";
        let noise = "it sends bare Opus, so it takes the gateway's 16-byte header for sound (noise, nothing is understood)";
        if self.server.path.ends_with(SUFFIX) {
            return Trouble::new(format!("{noise}, although its URL ends with {SUFFIX}"))
                .advise("xiaozhi-esp32-server before 0.7.7 does not know that suffix: update it")
                .advise(raw);
        }
        Trouble::new(format!("{noise}: its URL lacks {SUFFIX}"))
            .advise(format!(
                "xiaozhi-esp32-server: let the URL end with exactly {SUFFIX} ({})",
                self.suffixed()
            ))
            .advise(raw)
    }

    /// What to say when the suffix is missing and nothing shows that it need not be there.
    fn lacks_suffix(&self) -> Option<Trouble> {
        if self.server.framing != Framing::Auto || self.server.path.ends_with(SUFFIX) {
            return None;
        }
        let cause = format!(
            "its URL lacks {SUFFIX}: xiaozhi-esp32-server then takes the gateway's audio header for sound, and nothing \
             but noise is heard"
        );
        let trouble = Trouble::new(cause)
            .advise(format!(
                "xiaozhi-esp32-server: let the URL end with exactly {SUFFIX} ({})",
                self.suffixed()
            ))
            .advise("another server: say what it speaks: {\"url\": .., \"framing\": \"header\"}, or \"raw\"");
        Some(trouble)
    }

    /// The URL as it should be. Its query is not shown.
    fn suffixed(&self) -> String {
        let other = if self.server.path.contains('?') { ", in the place of its query" } else { "" };
        format!("{}{SUFFIX}{other}", self.server)
    }
}

fn kind(text: &str) -> String {
    message::peek(text, Reader::Device).map(|peek| peek.kind.into_owned()).unwrap_or_default()
}

/// A text that is no message of the protocol, or an error in words; cut short.
fn complaint(text: &str) -> Option<String> {
    let words = match Object::parse(text) {
        Err(_) => text.to_owned(),
        Ok(object) => {
            let kind = object.string("type").unwrap_or_default();
            let words =
                object.string("message").or_else(|| object.string("error")).or_else(|| object.string("text"));
            let is_complaint = !matches!(&*kind, "tts" | "stt" | "llm" | "mcp");
            words.filter(|_| is_complaint)?.into_owned()
        }
    };
    let shown: String = words.trim().chars().filter(|c| !c.is_control()).take(120).collect();
    (!shown.is_empty()).then_some(shown)
}

/// Whether the words are about who may come in.
fn is_about_trust(words: &str) -> bool {
    let words = words.to_lowercase();
    let about = [
        "认证",
        "鉴权",
        "授权",
        "令牌",
        "密钥",
        "auth",
        "token",
        "secret",
        "forbidden",
        "denied",
        "permission",
    ];
    about.iter().any(|word| words.contains(word))
}

/// Close codes that refuse who asks: policy violation (RFC 6455 section 7.4.1), unauthorized and forbidden of the registry, and
/// those that servers make of the HTTP codes.
fn is_refusal(gone: &Gone) -> bool {
    matches!(gone, Gone::Closed(Some(1008 | 3000 | 3003 | 4001 | 4003 | 4401 | 4403)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_bad_about_tls_is_told_from_the_words_of_the_librarys() {
        let server: Server = "wss://chat.example/?from=mqtt_gateway".parse().unwrap();
        let words = Words { server: &server, config: &Config::default() };
        for (why, cause) in [
            // OpenSSL.
            (
                "..:certificate verify failed:ssl/statem/statem_clnt.c:2092: (certificate has expired)",
                "has expired",
            ),
            ("certificate verify failed (certificate is not yet valid)", "not valid yet"),
            ("certificate verify failed (hostname mismatch)", "for another name than chat.example"),
            ("certificate verify failed (IP address mismatch)", "for another name than chat.example"),
            (
                "certificate verify failed (unable to get local issuer certificate)",
                "not from an authority known",
            ),
            ("certificate verify failed (self-signed certificate)", "not from an authority known"),
            ("error:0A00010B:SSL routines:ssl3_get_record:wrong version number", "does not speak TLS"),
            // Secure Transport and Schannel.
            (
                "One or more parameters passed to a function were not valid. The certificate was not trusted.",
                "not from",
            ),
            (
                "A certificate chain processed, but terminated in a root certificate which is not trusted",
                "not from",
            ),
            ("The certificate's CN name does not match the passed value.", "for another name"),
            ("no answer within 5 s", "no TLS connection: no answer"),
            ("built without TLS: only ws:// servers can be reached", "this program cannot speak TLS"),
        ] {
            let failure = Failure { stage: "tls", why: why.to_owned() };
            let troubles = words.undialled(&failure);
            assert_eq!(troubles.len(), 1, "{why}");
            assert!(troubles[0].cause.contains(cause), "{why}: {}", troubles[0].cause);
            assert!(!troubles[0].advice.is_empty());
        }
    }

    #[test]
    fn only_words_that_complain_are_complaints() {
        for (text, expected) in [
            ("认证失败", Some("认证失败")),
            (" \u{1b}[31mno\n", Some("[31mno")),
            (r#"{"type":"error","message":"no token"}"#, Some("no token")),
            (r#"{"error":"bad device"}"#, Some("bad device")),
            (r#"{"type":"stt","text":"a"}"#, None),
            (r#"{"type":"tts","state":"start"}"#, None),
            (r#"{"type":"mcp","payload":{}}"#, None),
            ("", None),
        ] {
            assert_eq!(complaint(text).as_deref(), expected, "{text}");
        }
        assert_eq!(complaint(&"x".repeat(1000)).unwrap().len(), 120);
    }
}
