//! What is wrong with a chat server: the likeliest cause, and what to do about it.

use std::sync::Arc;
use std::time::Duration;

use super::conversation::Conversation;
use super::report::ServerProblem;
use crate::config::{ChatServerConfig, Config, Framing, URL_SUFFIX, XIAOZHI_PATH};
use crate::proto::audio;
use crate::proto::message::JsonObject;
use crate::session::{BackendClosed, BackendFailure, BackendStage, ServerCause, TlsErrorCause};
use crate::text;
use crate::tools::device::message_type;
use crate::tools::step_report::StepState;

/// Diagnoses one server.
#[derive(Clone, Copy)]
pub(super) struct ServerDiagnosis<'a> {
    pub(super) server: &'a Arc<ChatServerConfig>,
    pub(super) config: &'a Config,
}

impl ServerDiagnosis<'_> {
    pub(super) fn resolve_failed(&self, why: &str) -> ServerProblem {
        ServerProblem::new(format!("the name {} does not resolve: {why}", self.server.host)).with_advice(
            "is the name spelt right, and is it known to this machine (in a container: to its network)?",
        )
    }

    /// Why there is no open WebSocket, likeliest first.
    pub(super) fn dial_failed(&self, failure: &BackendFailure) -> Vec<ServerProblem> {
        let why = failure.message.as_str();
        let problem = match failure.stage {
            BackendStage::Connect => self.connect_failed(why),
            BackendStage::Tls => self.tls_failed(why),
            _ => self.upgrade_failed(failure),
        };
        // Reported together with the failure, which saves a second run.
        let hint = self.missing_url_suffix().filter(|_| self.server.path.starts_with(XIAOZHI_PATH));
        [problem].into_iter().chain(hint).collect()
    }

    fn connect_failed(&self, why: &str) -> ServerProblem {
        let ChatServerConfig { host, port, .. } = &**self.server;
        let mut problem = if why.contains("refused") {
            let cause = "the chat server is not running, or listens elsewhere";
            let advice = format!(
                "start the chat server, and look at which address and port it listens on; this URL says port {port}"
            );
            ServerProblem::new(format!("nothing listens on {host} port {port}: {cause} ({why})"))
                .with_advice(advice)
        } else {
            ServerProblem::new(format!("{host} port {port} cannot be reached: {why}")).with_advice(
                "is the address right, is the machine up, and does a firewall let TCP through to that port?",
            )
        };
        if host == "localhost" || host.starts_with("127.") || host == "::1" {
            problem = problem.with_advice(
                "in a container this address is the container itself: write the host's own address instead",
            );
        }
        problem
    }

    fn tls_failed(&self, why: &str) -> ServerProblem {
        let ChatServerConfig { host, port, .. } = &**self.server;
        let said = |cause: ServerCause| (cause.words(), cause.advice());
        let (cause, advice) = match TlsErrorCause::from_message(why) {
            TlsErrorCause::NotBuiltIn => (
                "this program cannot speak TLS",
                "use a build with the feature \"tls\", which is on by default",
            ),
            TlsErrorCause::Expired => said(ServerCause::CertificateExpired),
            TlsErrorCause::NotYetValid => said(ServerCause::CertificateNotYetValid),
            TlsErrorCause::UnknownAuthority => said(ServerCause::CertificateAuthority),
            TlsErrorCause::NameMismatch => (
                &*format!("its certificate is for another name than {host}"),
                ServerCause::CertificateName.advice(),
            ),
            TlsErrorCause::NotTls => {
                (&*format!("port {port} does not speak TLS"), ServerCause::NotTls.advice())
            }
            TlsErrorCause::Other => {
                let advice = "is this the port of a TLS endpoint (if not, write ws:// instead of wss://), and does it \
                              speak TLS 1.2 or newer?";
                return ServerProblem::new(format!("no TLS connection: {why}")).with_advice(advice);
            }
        };
        ServerProblem::new(format!("{cause} ({why})")).with_advice(advice)
    }

    fn upgrade_failed(&self, failure: &BackendFailure) -> ServerProblem {
        match failure.cause {
            Some(cause) => self.caused_by(cause, &failure.message),
            None if failure.message.starts_with("HTTP ") => {
                let why = &failure.message;
                ServerProblem::new(format!("it answers as a web server, and not as a WebSocket ({why})"))
                    .with_advice(ServerCause::UpgradeNotPassed.advice())
            }
            None => self.not_http(&failure.message),
        }
    }

    fn caused_by(&self, cause: ServerCause, why: &str) -> ServerProblem {
        match cause {
            ServerCause::Token => self.authentication_failed(why),
            ServerCause::TokenOrPath => {
                self.authentication_failed(why).with_advice(ServerCause::Path.advice())
            }
            _ => ServerProblem::new(format!("{} ({why})", cause.words())).with_advice(cause.advice()),
        }
    }

    fn not_http(&self, why: &str) -> ServerProblem {
        if why.starts_with("no answer") {
            return ServerProblem::new(format!("it takes the connection and says nothing ({why})"))
                .with_advice("is this the chat server's port? If it is, the server hangs: look at its log");
        }
        let cause = format!("port {} does not speak WebSocket: {why}", self.server.port);
        let problem = ServerProblem::new(cause).with_advice("is this the chat server's port?");
        match self.server.tls {
            true => problem,
            false => problem.with_advice("if the server wants TLS, write wss:// instead of ws://"),
        }
    }

    /// The server refuses the token.
    fn authentication_failed(&self, why: &str) -> ServerProblem {
        let advice = ServerCause::Token.advice();
        let (own, secret) = (&self.server.token, &self.config.websocket.secret);
        let cause = match (own, secret) {
            (Some(_), _) => "it refuses the token: \"token\" of this server is not the one it expects",
            (None, None) => "it asks for a token, and SERVER_SECRET is not set",
            (None, Some(_)) => "it refuses the token: SERVER_SECRET is the wrong secret for it",
        };
        let problem = ServerProblem::new(format!("{cause} ({why})")).with_advice(advice);
        match (own, secret) {
            (None, Some(_)) => {
                problem.with_advice("tokens carry the time: look at the clocks of both machines")
            }
            _ => problem,
        }
    }

    pub(super) fn slow_hello(&self, took: Duration) -> ServerProblem {
        ServerProblem::new(format!("its hello took {:.1} s", took.as_secs_f64()))
            .with_advice("after 4 s the gateway gives a server up for the next, and a device waits 10 s in all: look at the server's load")
    }

    /// State, detail and problem when no hello came.
    pub(super) fn no_hello(
        &self,
        conversation: &Conversation,
        waited: Duration,
    ) -> (StepState, String, ServerProblem) {
        let said = conversation.texts.iter().find_map(|text| error_text(text));
        let speaks =
            conversation.texts.iter().any(|text| matches!(message_type(text).as_str(), "tts" | "stt"));
        let Some(gone) = &conversation.closed else {
            if speaks || !conversation.frames.is_empty() {
                let problem = ServerProblem::new("it answers with speech and without a hello: it does not know this device")
                    .with_advice("give --mac with the MAC address of a device that is bound on this server; a device that is not hears its binding code");
                return (StepState::Warn, "speech, but no hello".to_owned(), problem);
            }
            let detail = said.as_ref().map_or_else(
                || format!("none within {} s", waited.as_secs()),
                |said| format!("none within {} s; it said {}", waited.as_secs(), text::quoted(said)),
            );
            let problem = ServerProblem::new(format!(
                "it takes the connection, and does not answer the hello: {detail}"
            ))
            .with_advice("is this a XiaoZhi chat server? If it is, its log says what it waits for")
            .with_advice("a server may answer known devices only: try --mac with one of yours");
            return (StepState::Fail, detail, problem);
        };
        let ended = match gone {
            BackendClosed::CloseFrame(code, reason) => {
                let code = code.map_or("without a code".to_owned(), |code| format!("with code {code}"));
                let reason =
                    if reason.is_empty() { String::new() } else { format!(": {}", text::quoted(reason)) };
                format!("it closes {code}{reason}")
            }
            BackendClosed::NoCloseFrame(how) => how.clone(),
            BackendClosed::Failed(failure) => failure.message.clone(),
        };
        let detail = match &said {
            Some(said) => format!("it says {}, then {ended}", text::quoted(said)),
            None => format!("{ended}, without a word"),
        };
        let code = if let BackendClosed::CloseFrame(code, _) = gone { *code } else { None };
        let reason = if let BackendClosed::CloseFrame(_, reason) = gone { &**reason } else { "" };
        let words = format!("{}{reason}", said.as_deref().unwrap_or_default());
        let problem = if let Some(cause) = ServerCause::of_close(code, &words) {
            self.caused_by(cause, &detail)
        } else {
            let own = "its log says why; what is behind it may be the token (SERVER_SECRET), a device it does not know \
                       (try --mac with one of yours), or a path that is not for devices";
            ServerProblem::new(format!("it ends the connection before its hello: {detail}")).with_advice(own)
        };
        (StepState::Fail, detail, problem)
    }

    /// It said hello, and then no word.
    pub(super) fn silent(&self, waited: Duration) -> ServerProblem {
        ServerProblem::new(format!("it greets, and does not speak within {} s", waited.as_secs()))
            .with_advice(
                "look at its model and its speech synthesis: its log says which of them does not answer",
            )
            .with_advice("a server may speak to known devices only: try --mac with one of yours")
    }

    /// State, detail and problem of its audio framing.
    pub(super) fn framing(
        &self,
        conversation: &Conversation,
    ) -> (StepState, &'static str, Option<ServerProblem>) {
        let framed = conversation.frames.iter().any(|frame| audio::parse_ws_frame(frame).is_some());
        match (conversation.frames.is_empty(), framed, self.server.framing) {
            (true, ..) => match self.missing_url_suffix() {
                None => (StepState::Skipped, "it sent no audio", None),
                Some(problem) => {
                    let usual = self.server.path.starts_with(XIAOZHI_PATH);
                    let state = if usual { StepState::Fail } else { StepState::Warn };
                    (state, "it sent no audio, and its URL lacks the suffix", Some(problem))
                }
            },
            (_, true, Framing::Auto | Framing::Header) => (StepState::Ok, "header", None),
            (_, false, Framing::Raw) => (StepState::Ok, "raw", None),
            (_, true, Framing::Raw) => {
                let cause = "it sends the 16-byte header, and its \"framing\" is set to \"raw\"";
                let problem = ServerProblem::new(cause).with_advice("take \"framing\" away from this server");
                (StepState::Fail, "header, but set to raw", Some(problem))
            }
            (_, false, Framing::Auto | Framing::Header) => (StepState::Fail, "raw", Some(self.bare_opus())),
        }
    }

    /// It sends bare Opus where the header is expected.
    fn bare_opus(&self) -> ServerProblem {
        let raw = "a server that knows bare Opus only: give it as {\"url\": .., \"framing\": \"raw\"}";
        let noise = "it sends bare Opus, so it takes the gateway's 16-byte header for sound (noise, nothing is understood)";
        if self.server.path.ends_with(URL_SUFFIX) {
            return ServerProblem::new(format!("{noise}, although its URL ends with {URL_SUFFIX}"))
                .with_advice("xiaozhi-esp32-server before 0.7.7 does not know that suffix: update it")
                .with_advice(raw);
        }
        ServerProblem::new(format!("{noise}: its URL lacks {URL_SUFFIX}"))
            .with_advice(self.suffix_advice())
            .with_advice(raw)
    }

    /// What to say when the suffix is missing and nothing shows that it need not be there.
    fn missing_url_suffix(&self) -> Option<ServerProblem> {
        if self.server.framing != Framing::Auto || self.server.path.ends_with(URL_SUFFIX) {
            return None;
        }
        let cause =
            "xiaozhi-esp32-server then takes the gateway's audio header for sound, and only noise is heard";
        let problem = ServerProblem::new(format!("its URL lacks {URL_SUFFIX}: {cause}"));
        Some(problem.with_advice(self.suffix_advice()).with_advice(
            "another server: set its framing: {\"url\": .., \"framing\": \"header\"}, or \"raw\"",
        ))
    }

    fn suffix_advice(&self) -> String {
        let url = self.url_with_suffix();
        format!("xiaozhi-esp32-server: let the URL end with exactly {URL_SUFFIX} ({url})")
    }

    /// The URL as it should be.
    fn url_with_suffix(&self) -> String {
        let shown = self.server.to_string();
        let url = shown.split('?').next().unwrap_or_default();
        let other = if self.server.path.contains('?') { ", in the place of its query" } else { "" };
        format!("{url}{URL_SUFFIX}{other}")
    }
}

/// A text that is no message of the protocol, or an error in words.
fn error_text(text: &str) -> Option<String> {
    let words = match JsonObject::parse(text) {
        Err(_) => text.to_owned(),
        Ok(object) => {
            let kind = object.string("type").unwrap_or_default();
            let words =
                object.string("message").or_else(|| object.string("error")).or_else(|| object.string("text"));
            let is_complaint = !matches!(&*kind, "tts" | "stt" | "llm" | "mcp");
            words.filter(|_| is_complaint)?.into_owned()
        }
    };
    let words = words.trim();
    (!words.is_empty()).then(|| words.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tls_errors_are_recognised_in_the_messages_of_each_library() {
        let server = Arc::new("wss://chat.example/?from=mqtt_gateway".parse().unwrap());
        let words = ServerDiagnosis { server: &server, config: &Config::default() };
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
            let failure = BackendFailure::new(BackendStage::Tls, why.to_owned());
            let troubles = words.dial_failed(&failure);
            assert_eq!(troubles.len(), 1, "{why}");
            assert!(troubles[0].cause.contains(cause), "{why}: {}", troubles[0].cause);
            assert!(!troubles[0].advice.is_empty());
        }
    }

    #[test]
    fn only_error_messages_are_reported_as_errors() {
        for (text, expected) in [
            ("认证失败", Some("认证失败")),
            (" no\n", Some("no")),
            (r#"{"type":"error","message":"no token"}"#, Some("no token")),
            (r#"{"error":"bad device"}"#, Some("bad device")),
            (r#"{"type":"stt","text":"a"}"#, None),
            (r#"{"type":"tts","state":"start"}"#, None),
            (r#"{"type":"mcp","payload":{}}"#, None),
            ("", None),
        ] {
            assert_eq!(error_text(text).as_deref(), expected, "{text}");
        }
    }
}
