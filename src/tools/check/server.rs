//! The check of one chat server, step by step.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::conversation::Conversation;
use super::diagnosis::ServerDiagnosis;
use super::options::CheckOptions;
use super::report::ServerReport;
use crate::config::{ChatServerConfig, Config, Framing};
use crate::net::backend::blocking_client::{BlockingClient, DialReport};
use crate::proto::audio;
use crate::proto::message;
use crate::session::{BackendStage, DialRequest, ServerHealth};
use crate::tools::device::HELLO;
use crate::tools::step_report::StepState;

/// 20 ms of silence (RFC 6716 section 3.1: CELT only, full band, mono, one frame).
const SILENCE_PACKET: [u8; 3] = [0xf8, 0xff, 0xfe];
/// Packets of it: too few for a recogniser to take them for speech.
const SILENCE_PACKET_COUNT: u32 = 5;
/// Wait for a server that echoes, or that speaks unasked.
const REACTION_TIMEOUT: Duration = Duration::from_millis(800);
/// A hello that takes longer than this is given up for another server when there is one.
const SLOW_HELLO_THRESHOLD: Duration = Duration::from_secs(4);
/// Wait for the server's Close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Checks chat servers in the name of a device.
pub(super) struct ServerCheck<'a> {
    pub(super) config: &'a Config,
    pub(super) options: &'a CheckOptions,
}

impl ServerCheck<'_> {
    /// Resolves, connects, says hello, and listens for audio.
    pub(super) fn run(&self, list: &'static str, server: &Arc<ChatServerConfig>) -> ServerReport {
        let mut report = ServerReport {
            server: server.to_string(),
            list,
            state: StepState::Ok,
            steps: Vec::new(),
            troubles: Vec::new(),
        };
        if let Some((client, diagnosis)) = self.connect(server, &mut report) {
            self.check_conversation(server, Conversation::new(client), &mut report, &diagnosis);
        }
        report
    }

    /// Connects up to the open WebSocket.
    fn connect<'s>(
        &'s self,
        server: &'s Arc<ChatServerConfig>,
        report: &mut ServerReport,
    ) -> Option<(BlockingClient, ServerDiagnosis<'s>)> {
        let diagnosis = ServerDiagnosis { server, config: self.config };
        let addresses = match resolve(server, self.options.timeout) {
            Ok((addresses, took)) => {
                let shown: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
                report.add_step("name", StepState::Ok, "ok", took.filter(|_| shown != [server.host.clone()]));
                addresses
            }
            Err(why) => {
                report.add_step("name", StepState::Fail, &why, None);
                report.troubles.push(diagnosis.resolve_failed(&why));
                return None;
            }
        };
        let request = DialRequest {
            server: Arc::clone(server),
            mac: self.options.mac,
            client_id: Some(self.options.uuid.clone()),
            sign_token: true,
            forwarded_for: Ipv4Addr::LOCALHOST.into(),
            protocol_version: protocol_version(server),
            skip_dns_cache: false,
        };
        let DialReport { stages, outcome } =
            BlockingClient::open(request, addresses, &self.config.websocket, self.options.timeout);
        for (stage, took) in stages {
            report.add_step(step_name(stage), StepState::Ok, "ok", Some(took));
        }
        match outcome {
            Ok(client) => Some((client, diagnosis)),
            Err(failure) => {
                report.add_step(step_name(failure.stage), StepState::Fail, &failure.message, None);
                report.troubles.extend(diagnosis.dial_failed(&failure));
                None
            }
        }
    }

    fn check_conversation(
        &self,
        server: &ChatServerConfig,
        mut conversation: Conversation,
        report: &mut ServerReport,
        diagnosis: &ServerDiagnosis<'_>,
    ) {
        match message::parse_device_hello(HELLO) {
            Ok(hello) => conversation.client.send_text(hello.for_server(protocol_version(server))),
            Err(error) => return report.add_step("hello", StepState::Fail, error.to_string(), None),
        }
        // A server to which the device is not bound speaks a binding code, and never says hello.
        let until = conversation.start + self.options.timeout;
        conversation.receive_until(until, |conversation| conversation.hello.is_some());
        match &conversation.hello {
            Some((text, took)) => {
                let id = message::parse_server_hello(text).session_id;
                let slow = *took > SLOW_HELLO_THRESHOLD;
                let detail =
                    id.map_or_else(|| "without a session id".to_owned(), |id| format!("session {id}"));
                report.add_step(
                    "hello",
                    if slow { StepState::Warn } else { StepState::Ok },
                    detail,
                    Some(*took),
                );
                if slow {
                    report.troubles.push(diagnosis.slow_hello(*took));
                }
            }
            None => {
                let (state, detail, problem) = diagnosis.no_hello(&conversation, self.options.timeout);
                report.add_step("hello", state, detail, None);
                report.troubles.push(problem);
                if state == StepState::Fail {
                    return;
                }
            }
        }
        if conversation.closed.is_none() {
            self.request_audio(server, &mut conversation);
        }
        let (state, detail, problem) = diagnosis.framing(&conversation);
        report.add_step("framing", state, detail, None);
        report.troubles.extend(problem);
        if conversation.closed.is_none() {
            conversation.client.close(CLOSE_TIMEOUT);
        }
    }

    /// Makes the server send audio: with some silence, which an echo sends back, then with a greeting, which a speaker
    /// answers.
    fn request_audio(&self, server: &ChatServerConfig, conversation: &mut Conversation) {
        let hello =
            conversation.hello.as_ref().and_then(|(text, _)| message::parse_server_hello(text).session_id);
        let id = message::json_quote(&hello.unwrap_or_default());
        let listen = |rest: &str| format!(r#"{{"session_id":{id},"type":"listen",{rest}}}"#);
        conversation.client.send_text(listen(r#""state":"start","mode":"manual""#));
        for i in 0..SILENCE_PACKET_COUNT {
            let header = audio::ws_frame_header(i * 20, SILENCE_PACKET.len());
            let framed = [&header[..], &SILENCE_PACKET].concat();
            let is_raw = server.framing == Framing::Raw;
            conversation.client.send_audio(if is_raw { &SILENCE_PACKET } else { &framed });
        }
        conversation.client.send_text(listen(r#""state":"stop""#));
        conversation.receive_until(Instant::now() + REACTION_TIMEOUT, Conversation::framing_is_known);
        if conversation.frames.is_empty() && conversation.closed.is_none() {
            conversation.client.send_text(listen(r#""state":"detect","text":"你好""#));
            let until = Instant::now() + self.options.timeout;
            conversation.receive_until(until, Conversation::framing_is_known);
        }
    }
}

/// The protocol version for a server whose framing is not known yet.
fn protocol_version(server: &ChatServerConfig) -> u8 {
    ServerHealth::default().protocol_version(server)
}

/// The step that a stage of the gateway's dial is shown as.
fn step_name(stage: BackendStage) -> &'static str {
    if stage == BackendStage::Connect { "tcp" } else { stage.label() }
}

/// Addresses, and how long it took to find them; IP addresses need no time.
fn resolve(
    server: &ChatServerConfig,
    limit: Duration,
) -> Result<(Vec<SocketAddr>, Option<Duration>), String> {
    if let Ok(ip) = server.host.parse() {
        return Ok((vec![SocketAddr::new(ip, server.port)], None));
    }
    let (answer, answered) = mpsc::channel();
    let (host, port) = (server.host.clone(), server.port);
    let start = Instant::now();
    // The system's resolver may block for longer than the limit; the thread is then abandoned.
    let look_up = move || {
        let _ = answer.send((host.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>));
    };
    thread::Builder::new().name("resolver".into()).spawn(look_up).map_err(|error| error.to_string())?;
    match answered.recv_timeout(limit) {
        Ok(Ok(addresses)) if addresses.is_empty() => Err("the name has no address".to_owned()),
        Ok(Ok(addresses)) => Ok((addresses, Some(start.elapsed()))),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the name servers do not answer within {} s", limit.as_secs())),
    }
}
