//! The check of one chat server, step by step.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::CheckOptions;
use super::conversation::Conversation;
use super::diagnosis::ServerDiagnosis;
use super::report::ServerReport;
use crate::config::{ChatServerConfig, Framing};
use crate::net::backend::blocking_client::{BlockingClient, DialReport};
use crate::proto::audio;
use crate::proto::message::{self, JsonObject};
use crate::session::{BackendStage, DialRequest, ServerHealth};
use crate::tools::device::{GREETING, listen_message};
use crate::tools::step_report::StepState;

/// 20 ms of silence (RFC 6716 section 3.1: CELT only, full band, mono, one frame).
const SILENCE_PACKET: [u8; 3] = [0xf8, 0xff, 0xfe];
/// The hello of current firmware.
const HELLO_WITH_MCP: &str = r#"{"type":"hello","version":3,"transport":"udp","features":{"mcp":true},"audio_params":{"format":"opus","sample_rate":16000,"channels":1,"frame_duration":60}}"#;
/// Packets of it: too few for a recogniser to take them for speech.
const SILENCE_PACKET_COUNT: u32 = 5;
/// Wait for a server that echoes, or that speaks unasked.
const REACTION_TIMEOUT: Duration = Duration::from_millis(800);
/// A hello that takes longer than this is given up for another server when there is one.
const SLOW_HELLO_THRESHOLD: Duration = Duration::from_secs(4);
/// Wait for the server's Close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// Checks a chat server in the name of a device.
pub(super) struct ServerCheck<'a> {
    pub(super) options: &'a CheckOptions,
    pub(super) diagnosis: ServerDiagnosis<'a>,
}

impl ServerCheck<'_> {
    /// Resolves, connects, says hello, and listens for audio.
    pub(super) fn run(&self, list: &str) -> ServerReport {
        let mut report = ServerReport {
            server: self.diagnosis.server.to_string(),
            list: list.to_owned(),
            state: StepState::Ok,
            steps: Vec::new(),
            troubles: Vec::new(),
        };
        if let Some(client) = self.connect(&mut report) {
            self.check_conversation(Conversation::new(client), &mut report);
        }
        report
    }

    /// Connects up to the open WebSocket.
    fn connect(&self, report: &mut ServerReport) -> Option<BlockingClient> {
        let ServerDiagnosis { server, config } = self.diagnosis;
        let addresses = match resolve(server, self.options.timeout) {
            Ok((addresses, took)) => {
                let shown: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
                report.add_step("name", StepState::Ok, "ok", took.filter(|_| shown != [server.host.clone()]));
                addresses
            }
            Err(why) => {
                report.add_step("name", StepState::Fail, &why, None);
                report.troubles.push(self.diagnosis.resolve_failed(&why));
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
            BlockingClient::open(request, addresses, &config.websocket, self.options.timeout);
        for (stage, took) in stages {
            report.add_step(step_name(stage), StepState::Ok, "ok", Some(took));
        }
        match outcome {
            Ok(client) => Some(client),
            Err(failure) => {
                report.add_step(step_name(failure.stage), StepState::Fail, &failure.message, None);
                report.troubles.extend(self.diagnosis.dial_failed(&failure));
                None
            }
        }
    }

    fn check_conversation(&self, mut conversation: Conversation, report: &mut ServerReport) {
        let diagnosis = &self.diagnosis;
        let hello = JsonObject::parse(HELLO_WITH_MCP).expect("it is an object");
        let hello = message::parse_device_hello(hello).expect("its version is 3");
        conversation.client.send_text(hello.for_server(protocol_version(diagnosis.server)));
        // A server to which the device is not bound speaks a binding code, and never says hello.
        let until = conversation.start + self.options.timeout;
        conversation.receive_until(until, |conversation| conversation.hello.is_some());
        match &conversation.hello {
            Some((text, took)) => {
                let id = session_id_of(text);
                let detail = id.map_or("without a session id".to_owned(), |id| format!("session {id}"));
                let slow = (*took > SLOW_HELLO_THRESHOLD).then(|| diagnosis.slow_hello(*took));
                let state = if slow.is_some() { StepState::Warn } else { StepState::Ok };
                report.add_step("hello", state, detail, Some(*took));
                report.troubles.extend(slow);
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
            self.request_audio(&mut conversation);
        }
        let (mut state, detail, problem) = diagnosis.framing(&conversation);
        if conversation.hello.is_some() && conversation.frames.is_empty() {
            state = if state == StepState::Fail { state } else { StepState::Warn };
            report.troubles.push(diagnosis.silent(self.options.timeout));
        }
        report.add_step("framing", state, detail, None);
        report.troubles.extend(problem);
        if conversation.closed.is_none() {
            conversation.client.close(CLOSE_TIMEOUT);
        }
    }

    /// Makes the server send audio: with some silence, which an echo sends back, then with a greeting, which a speaker
    /// answers.
    fn request_audio(&self, conversation: &mut Conversation) {
        let id = conversation.hello.as_ref().and_then(|(text, _)| session_id_of(text)).unwrap_or_default();
        let listen = |fields| listen_message(&id, fields);
        conversation.client.send_text(listen(r#""state":"start","mode":"manual""#));
        for i in 0..SILENCE_PACKET_COUNT {
            let header = audio::ws_frame_header(i * 20, SILENCE_PACKET.len());
            let framed = [&header[..], &SILENCE_PACKET].concat();
            let is_raw = self.diagnosis.server.framing == Framing::Raw;
            conversation.client.send_audio(if is_raw { &SILENCE_PACKET } else { &framed });
        }
        conversation.client.send_text(listen(r#""state":"stop""#));
        conversation.receive_until(Instant::now() + REACTION_TIMEOUT, Conversation::framing_is_known);
        if conversation.frames.is_empty() && conversation.closed.is_none() {
            conversation.client.send_text(listen(GREETING));
            let until = Instant::now() + self.options.timeout;
            conversation.receive_until(until, Conversation::framing_is_known);
        }
    }
}

/// The protocol version for a server whose framing is not known yet.
fn protocol_version(server: &ChatServerConfig) -> u8 {
    ServerHealth::default().protocol_version(server)
}

fn session_id_of(hello: &str) -> Option<Box<str>> {
    message::parse_server_hello(&JsonObject::parse(hello).ok()?).session_id
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
