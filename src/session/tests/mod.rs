//! Tests of a core with virtual time: events go in, and exactly the expected actions must come out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::config::{ChatServerConfig, Config};
use crate::proto::audio::{self, UdpHeader};
use crate::proto::identity::Mac;
use crate::proto::message;
use crate::proto::mqtt::Packet;
use harness::{
    TestShell, connect_packet, decrypt_datagram, encrypt_datagram, frame_with_header, publish_packet, servers,
};

mod as_read;
mod call_end;
mod call_quality;
mod connect;
mod device_call;
mod dial;
mod encryption;
mod failover;
mod framing;
mod hello;
mod keep_alive;
mod liveness;
mod mcp;
mod ordering;
mod path_validation;
mod playout;
mod repeated_hello;
mod resume;
mod retained_bytes;
mod server_end;
mod session_ids;
mod session_phases;

pub(super) const A: &str = "ws://a/chat";
pub(super) const B: &str = "ws://b/chat";
const C: &str = "ws://c/chat";
const ID: &str = "GID_test@@@aa_bb_cc_dd_ee_ff@@@11111111-2222-4333-8444-555555555555";
const DEVICE_IP: &str = "192.0.2.7";
const HELLO: &str =
    r#"{"type":"hello","version":3,"transport":"udp","audio_params":{"format":"opus","sample_rate":16000}}"#;
/// [`HELLO`] as the server gets it.
const HELLO_TO_SERVER: &str = r#"{"type":"hello","version":2,"transport":"websocket","audio_params":{"format":"opus","sample_rate":16000}}"#;
const SERVER_HELLO: &str =
    r#"{"type":"hello","transport":"websocket","session_id":"s1","audio_params":{"sample_rate":24000}}"#;
const TTS_START: &str = r#"{"session_id":"s1","type":"tts","state":"start"}"#;
const TTS_STOP: &str = r#"{"session_id":"s1","type":"tts","state":"stop"}"#;
const LISTEN: &str = r#"{"session_id":"s1","type":"listen","state":"start","mode":"auto"}"#;

/// One device with its core and a shell.
struct Scenario {
    core: Core,
    shell: TestShell,
    credentials_issued: u8,
}

impl Scenario {
    /// A new connection, three chat servers, and no tool discovery. Audio is passed on at once, and there are no keep-alives.
    fn new() -> Self {
        let mut config = Config::default();
        config.udp.downlink_pace = false;
        config.udp.speech_lead = Duration::ZERO;
        config.udp.keep_alive = Duration::ZERO;
        config.websocket.production = servers(&[A, B, C]);
        config.mcp.enabled = false;
        let shell = TestShell::new(config);
        Self { core: Core::new(device_ip(), shell.now), shell, credentials_issued: 0 }
    }

    /// A device that is connected and accepted.
    fn online() -> Self {
        let mut scenario = Self::new();
        scenario.connect();
        scenario
    }

    /// A device in a call with server a, whose session id is s1. It has sent no datagram.
    fn in_call() -> Self {
        let mut scenario = Self::online();
        scenario.start_call();
        scenario
    }

    /// As [`Scenario::in_call`], after the device's first datagram.
    fn with_udp_peer() -> Self {
        let mut scenario = Self::in_call();
        scenario.uplink(1, b"\x08one").unwrap();
        scenario
    }

    fn connect(&mut self) -> Vec<Action> {
        self.packet(connect_packet(ID, 60))
    }

    fn start_call(&mut self) {
        self.device_sends(HELLO);
        self.open_backend();
        self.server_sends(SERVER_HELLO);
    }

    /// Lets the core decide. The shell accepts the device and generates credentials when asked to.
    fn drive(&mut self, decide: impl FnOnce(&mut Core, &mut Context<'_>)) -> Vec<Action> {
        let issued = &mut self.credentials_issued;
        let credentials = || {
            *issued += 1;
            credentials(*issued)
        };
        self.shell.drive(&mut self.core, credentials, decide).1
    }

    fn packet(&mut self, packet: Packet<'_>) -> Vec<Action> {
        self.drive(|core, cx| core.on_packet(packet, cx))
    }

    fn device_sends(&mut self, text: &str) -> Vec<Action> {
        self.packet(publish_packet(text.as_bytes()))
    }

    fn open_backend(&mut self) -> Vec<Action> {
        self.core.on_dial_stage(SetupStage::Connect, self.shell.now);
        self.drive(Core::on_backend_open)
    }

    fn server_sends(&mut self, text: &str) -> Vec<Action> {
        self.drive(|core, cx| core.on_backend_text(text, cx))
    }

    fn close_backend(&mut self, gone: BackendClosed) -> Vec<Action> {
        self.core.on_dial_stage(SetupStage::Connect, self.shell.now);
        self.drive(|core, cx| core.on_backend_closed(gone, cx))
    }

    /// The same device connects again from this address, and its call continues.
    fn reconnect(&mut self, ip: &str) -> Vec<Action> {
        let newer = self.shell.connect(ip.parse().unwrap(), connect_packet(ID, 30));
        self.drive(|core, cx| core.take_over(newer, cx))
    }

    /// The same device connects again without a call to continue.
    fn connect_anew(&mut self) -> Vec<Action> {
        self.core = Core::new(device_ip(), self.shell.now);
        self.connect()
    }

    fn lose_connection(&mut self) -> Vec<Action> {
        self.drive(Core::on_connection_lost)
    }

    /// Time passes, and each timer is handled when it expires.
    fn wait(&mut self, ms: u64) -> Vec<Action> {
        let until = self.shell.now + Duration::from_millis(ms);
        let mut out = Vec::new();
        while let Some(at) = self.core.deadline().filter(|at| *at <= until) {
            self.shell.now = self.shell.now.max(at);
            out.extend(self.drive(Core::on_timeout));
            assert!(self.core.deadline().is_none_or(|at| at > self.shell.now), "what was due is done");
        }
        self.shell.now = until;
        out
    }

    /// As [`Scenario::wait`], with the time of each action in milliseconds since the start.
    fn wait_timed(&mut self, ms: u64) -> Vec<(u64, Action)> {
        let until = self.shell.now + Duration::from_millis(ms);
        let mut out = Vec::new();
        while self.shell.now < until {
            let next = self.core.deadline().map_or(until, |at| at.min(until)).max(self.shell.now);
            let ms = next.saturating_duration_since(self.shell.now).as_nanos();
            self.shell.now = next;
            let at = self.shell.elapsed_ms();
            out.extend(self.drive(Core::on_timeout).into_iter().map(|action| (at, action)));
            assert!(ms > 0 || self.core.deadline().is_none_or(|at| at > self.shell.now), "time stands still");
        }
        out
    }

    /// A datagram from the device's usual address.
    fn uplink(&mut self, sequence: u32, payload: &[u8]) -> Result<Vec<u8>, DropReason> {
        self.uplink_from(&format!("{DEVICE_IP}:4000"), sequence, payload).map(|(frame, _)| frame)
    }

    /// A datagram from this address: the frame for the server, and the actions that it caused.
    fn uplink_from(
        &mut self,
        from: &str,
        sequence: u32,
        payload: &[u8],
    ) -> Result<(Vec<u8>, Vec<Action>), DropReason> {
        let (mut frames, out) = self.uplink_frames(from, sequence, payload)?;
        assert_eq!(frames.len(), 1, "{frames:?}");
        Ok((frames.remove(0), out))
    }

    /// As [`Scenario::uplink_from`], with the frames of packets that were kept.
    fn uplink_frames(
        &mut self,
        from: &str,
        sequence: u32,
        payload: &[u8],
    ) -> Result<(Vec<Vec<u8>>, Vec<Action>), DropReason> {
        let mut datagram = datagram(self.credentials_issued, sequence, 7, payload);
        let (frames, first) =
            self.shell.uplink_frames(&mut self.core, from.parse().unwrap(), &mut datagram)?;
        let out = if first { self.drive(Core::on_device_heard) } else { Vec::new() };
        Ok((frames, out))
    }

    /// A binary frame of the server: the datagram that is sent at once, or the actions that it caused.
    fn downlink(&mut self, frame: &[u8]) -> Result<Vec<Action>, DropReason> {
        match self.shell.downlink(&mut self.core, frame)? {
            Some((encrypted, datagram)) => Ok(vec![Action::SendDatagram(encrypted, datagram)]),
            None => Ok(self.drive(Core::release_held)),
        }
    }

    /// Sequence, timestamp and decrypted payload of each datagram among the actions.
    fn decrypt_datagrams(&self, actions: &[Action]) -> Vec<(u32, u32, Vec<u8>)> {
        let datagrams = actions.iter().filter_map(|action| match action {
            Action::SendDatagram(_, bytes) => Some(bytes),
            _ => None,
        });
        datagrams.map(|bytes| decrypt(self.credentials_issued, bytes)).collect()
    }
}

/// The actions without counters and log events.
fn without_logs_and_counters(actions: Vec<Action>) -> Vec<Action> {
    actions.into_iter().filter(|action| !matches!(action, Action::Count(_) | Action::Log(_))).collect()
}

fn server(url: &str) -> Arc<ChatServerConfig> {
    Arc::new(url.parse().unwrap())
}

fn device_ip() -> IpAddr {
    DEVICE_IP.parse().unwrap()
}

fn mac() -> Mac {
    "aa:bb:cc:dd:ee:ff".parse().unwrap()
}

/// The n-th credentials. They differ from all others.
pub(super) fn credentials(n: u8) -> CallCredentials {
    CallCredentials {
        ssrc: 0x1000 + u32::from(n),
        key: [n; 16],
        session_id: format!("own-{n}").into(),
        udp_host: "10.0.0.9".into(),
        udp_port: 8884,
        allowed: true,
    }
}

fn datagram(credentials: u8, sequence: u32, timestamp: u32, payload: &[u8]) -> Vec<u8> {
    encrypt_datagram(&[credentials; 16], 0x1000 + u32::from(credentials), sequence, timestamp, payload)
}

fn decrypt(credentials: u8, datagram: &[u8]) -> (u32, u32, Vec<u8>) {
    let (header, payload) = decrypt_datagram(&[credentials; 16], datagram);
    assert_eq!(header.ssrc, 0x1000 + u32::from(credentials));
    assert_eq!(header.flags, 0x80 | (header.sequence & 0x7f) as u8);
    (header.sequence, header.timestamp, payload)
}

fn publish(text: &str) -> Action {
    Action::Publish(text.to_owned())
}

fn send_text(text: &str) -> Action {
    Action::SendText(text.to_owned())
}

fn dial(url: &str) -> Action {
    dial_action(url, false)
}

fn redial(url: &str) -> Action {
    dial_action(url, true)
}

fn dial_action(url: &str, fresh: bool) -> Action {
    Action::Dial(Box::new(DialRequest {
        server: server(url),
        mac: mac(),
        client_id: Some("11111111-2222-4333-8444-555555555555".to_owned()),
        sign_token: true,
        forwarded_for: device_ip(),
        protocol_version: 2,
        skip_dns_cache: fresh,
    }))
}

/// The reply to the device's hello with the n-th credentials.
fn hello_reply(n: u8, session_id: &str, audio_params: &str) -> Action {
    let credentials = credentials(n);
    publish(&message::hello_reply(&message::HelloReply {
        session_id,
        audio_params: Some(audio_params),
        server: "10.0.0.9",
        port: 8884,
        key: &credentials.key,
        nonce: &audio::nonce(credentials.ssrc),
    }))
}

fn goodbye(session_id: &str) -> Action {
    publish(&message::goodbye(Some(session_id)))
}

fn server_goodbye(session_id: &str, reason: EndReason, ms: u64) -> Action {
    send_text(&message::server_goodbye(Some(session_id), reason.label(), ms))
}

fn failed(stage: BackendStage) -> BackendClosed {
    BackendClosed::Failed(BackendFailure::new(stage, "broken"))
}

/// The only summary among the actions.
fn summary(actions: &[Action]) -> &CallSummary {
    let mut ends = actions.iter().filter_map(|action| match action {
        Action::CallEnded(summary) => Some(&**summary),
        _ => None,
    });
    let end = ends.next().expect("the call ends");
    assert!(ends.next().is_none(), "it ends once");
    end
}

/// Texts for the device among the actions.
fn texts_to_device(actions: &[Action]) -> Vec<&str> {
    let texts = actions.iter().filter_map(|action| match action {
        Action::Publish(text) => Some(&**text),
        _ => None,
    });
    texts.collect()
}

/// Texts for the server among the actions.
fn texts_to_server(actions: &[Action]) -> Vec<&str> {
    let texts = actions.iter().filter_map(|action| match action {
        Action::SendText(text) => Some(&**text),
        _ => None,
    });
    texts.collect()
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
