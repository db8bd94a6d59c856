//! One visit to a chat server, step by step.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::diagnosis::{self, Words};
use super::options::Options;
use super::report::{Seen, State};
use crate::config::{Config, Framing, Server};
use crate::net::blocking_client::{Dialled, Said, Visit};
use crate::proto::audio;
use crate::proto::message::{self, Reader};
use crate::session::{DialRequest, Gone, Servers};
use crate::tools::device::HELLO;

/// 20 ms of silence (RFC 6716 section 3.1: CELT only, full band, mono, one frame).
const SILENCE: [u8; 3] = [0xf8, 0xff, 0xfe];
/// Packets of it: too few for a recogniser to take them for speech.
const PACKETS: u32 = 5;
/// For a server that echoes, or that speaks by itself.
const REACTION: Duration = Duration::from_millis(800);
/// A hello that takes longer than this is given up for another server when there is one.
const SLOW_HELLO: Duration = Duration::from_secs(4);
/// Binary frames that tell the framing.
const ENOUGH: usize = 3;
/// For the server to agree to the close.
const PARTING: Duration = Duration::from_millis(500);

/// Goes to chat servers in the name of a device.
pub(super) struct Visitor<'a> {
    pub(super) config: &'a Config,
    pub(super) options: &'a Options,
}

/// What a server said before its hello, or instead of it.
#[derive(Default)]
pub(super) struct Talk {
    pub(super) hello: Option<(String, Duration)>,
    /// Texts that are no hello, the first few.
    pub(super) texts: Vec<String>,
    pub(super) frames: Vec<Vec<u8>>,
    pub(super) gone: Option<Gone>,
}

impl Visitor<'_> {
    /// Resolves, dials, greets, and listens for audio.
    pub(super) fn visit(&self, list: &'static str, server: &Arc<Server>) -> Seen {
        let mut seen = Seen {
            server: server.to_string(),
            list,
            state: State::Ok,
            steps: Vec::new(),
            troubles: Vec::new(),
        };
        if let Some((visit, words)) = self.reach(server, &mut seen) {
            self.converse(server, visit, &mut seen, &words);
        }
        seen
    }

    /// As far as an open WebSocket.
    fn reach<'s>(&'s self, server: &'s Arc<Server>, seen: &mut Seen) -> Option<(Visit, Words<'s>)> {
        let words = Words { server, config: self.config };
        let addresses = match resolve(server, self.options.timeout) {
            Ok((addresses, took)) => {
                let shown: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
                seen.step("name", State::Ok, "ok", took.filter(|_| shown != [server.host.clone()]));
                addresses
            }
            Err(why) => {
                seen.step("name", State::Fail, &why, None);
                seen.troubles.push(words.unresolved(&why));
                return None;
            }
        };
        let request = DialRequest {
            server: Arc::clone(server),
            mac: self.options.mac,
            client_id: Some(self.options.uuid.clone()),
            forwarded_for: Ipv4Addr::LOCALHOST.into(),
            protocol_version: protocol_version(server),
            fresh: false,
        };
        let Dialled { stages, outcome } =
            Visit::open(request, addresses, &self.config.websocket, self.options.timeout);
        for (stage, took) in stages {
            seen.step(step_of(stage), State::Ok, "ok", Some(took));
        }
        match outcome {
            Ok(visit) => Some((visit, words)),
            Err(failure) => {
                seen.step(step_of(failure.stage), State::Fail, &failure.why, None);
                seen.troubles.extend(words.undialled(&failure));
                None
            }
        }
    }

    fn converse(&self, server: &Server, mut visit: Visit, seen: &mut Seen, words: &Words<'_>) {
        let mut talk = Talk::default();
        let start = Instant::now();
        match message::device_hello(HELLO) {
            Ok(hello) => visit.say(hello.for_server(protocol_version(server))),
            Err(error) => return seen.step("hello", State::Fail, error.to_string(), None),
        }
        // A server that has not bound the device says so by voice, and never says hello.
        let until = start + self.options.timeout;
        talk.listen(&mut visit, start, until, |talk| talk.hello.is_some());
        match &talk.hello {
            Some((text, took)) => {
                let id = message::server_hello(text).session_id;
                let slow = *took > SLOW_HELLO;
                let detail =
                    id.map_or_else(|| "without a session id".to_owned(), |id| format!("session {id}"));
                seen.step("hello", if slow { State::Warn } else { State::Ok }, detail, Some(*took));
                if slow {
                    seen.troubles.push(words.slow_hello(*took));
                }
            }
            None => {
                let (state, detail, trouble) = words.no_hello(&talk, self.options.timeout);
                seen.step("hello", state, detail, None);
                seen.troubles.push(trouble);
                if state == State::Fail {
                    return;
                }
            }
        }
        if talk.gone.is_none() {
            self.provoke(server, &mut visit, &mut talk, start);
        }
        let (state, detail, trouble) = words.framing(&talk);
        seen.step("framing", state, detail, None);
        seen.troubles.extend(trouble);
        if talk.gone.is_none() {
            visit.close(PARTING);
        }
    }

    /// Makes the server send audio: with some silence, which an echo sends back, then with a greeting, which a speaker
    /// answers.
    fn provoke(&self, server: &Server, visit: &mut Visit, talk: &mut Talk, start: Instant) {
        let hello = talk.hello.as_ref().and_then(|(text, _)| message::server_hello(text).session_id);
        let id = message::quote(&hello.unwrap_or_default());
        let listen = |rest: &str| format!(r#"{{"session_id":{id},"type":"listen",{rest}}}"#);
        visit.say(listen(r#""state":"start","mode":"manual""#));
        for i in 0..PACKETS {
            let header = audio::ws_header(i * 20, SILENCE.len());
            let framed: Vec<u8> = header.iter().chain(&SILENCE).copied().collect();
            visit.send_audio(if server.framing == Framing::Raw { &SILENCE } else { &framed });
        }
        visit.say(listen(r#""state":"stop""#));
        talk.listen(visit, start, Instant::now() + REACTION, Talk::framing_is_told);
        if talk.frames.is_empty() && talk.gone.is_none() {
            visit.say(listen(r#""state":"detect","text":"你好""#));
            talk.listen(visit, start, Instant::now() + self.options.timeout, Talk::framing_is_told);
        }
    }
}

impl Talk {
    /// Listens until `until`, the end, or `enough`.
    fn listen(&mut self, visit: &mut Visit, start: Instant, until: Instant, enough: impl Fn(&Self) -> bool) {
        while self.gone.is_none() && !enough(self) {
            match visit.listen(until) {
                None => return,
                Some(Said::Gone(gone)) => self.gone = Some(gone),
                Some(Said::Audio(frame)) if self.frames.len() < ENOUGH => self.frames.push(frame),
                Some(Said::Audio(_)) => {}
                Some(Said::Text(text)) => {
                    let is_hello =
                        message::peek(&text, Reader::Device).is_ok_and(|peek| peek.kind == "hello");
                    if is_hello && self.hello.is_none() {
                        self.hello = Some((text, start.elapsed()));
                    } else if self.texts.len() < diagnosis::TEXTS {
                        self.texts.push(text);
                    }
                }
            }
            // A server that never stops talking would keep us here.
            if Instant::now() >= until {
                return;
            }
        }
    }

    fn framing_is_told(&self) -> bool {
        self.frames.len() >= ENOUGH || self.frames.iter().any(|frame| audio::parse_ws(frame).is_some())
    }
}

/// What the gateway says to a server of which it has learnt nothing.
fn protocol_version(server: &Server) -> u8 {
    Servers::default().protocol_version(server)
}

/// The step that a stage of the gateway's dial is shown as.
fn step_of(stage: &'static str) -> &'static str {
    if stage == "connect" { "tcp" } else { stage }
}

/// Addresses, and how long it took to find them; IP addresses need no time.
fn resolve(server: &Server, limit: Duration) -> Result<(Vec<SocketAddr>, Option<Duration>), String> {
    if let Ok(ip) = server.host.parse() {
        return Ok((vec![SocketAddr::new(ip, server.port)], None));
    }
    let (answer, answered) = mpsc::channel();
    let (host, port) = (server.host.clone(), server.port);
    let start = Instant::now();
    // The system's resolver may block for longer than anyone wants to wait; then the thread is left behind.
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
