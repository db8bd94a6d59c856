//! A core in a call, without sockets: for benches of single steps.
#![allow(dead_code)] // Not each bench uses everything.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::Config;
use mqtt_websocket_proxy::net::backend::websocket_context_pool::ContextPool;
use mqtt_websocket_proxy::proto::audio::{self, Cipher, HEADER_LEN, UdpHeader};
use mqtt_websocket_proxy::proto::mqtt::{Connect, Packet, ProtocolLevel, Publish};
use mqtt_websocket_proxy::session::{
    Admission, CallCredentials, Context, Core, EndedCalls, FrameSpace, HelloLimiter, RequestIds,
    ServerHealth, SetupStage, ToolLists, UdpPeer,
};
use mqtt_websocket_proxy::tools::device::{HELLO, test_audio};

pub(crate) const KEY: [u8; 16] = [7; 16];
const SSRC: u32 = 0x1234_5678;
const SERVER_HELLO: &str =
    r#"{"type":"hello","transport":"websocket","session_id":"s1","audio_params":{"sample_rate":24000}}"#;

/// A core in a call, and what it needs around it.
pub(crate) struct CallFixture {
    core: Core,
    config: Config,
    servers: ServerHealth,
    now: Instant,
}

impl CallFixture {
    pub(crate) fn new() -> Self {
        let (mut config, now) = (Config::default(), Instant::now());
        config.websocket.production = vec![Arc::new("ws://chat/".parse().unwrap())];
        let home = IpAddr::from(Ipv4Addr::LOCALHOST);
        let mut talk = Self { core: Core::new(home, now), config, servers: ServerHealth::default(), now };
        let connect = Connect {
            level: ProtocolLevel::V311,
            client_id: "GID_test@@@02_00_00_00_00_01@@@1",
            clean_session: true,
            keep_alive: 90,
            will: None,
            user_name: None,
            password: None,
        };
        let hello = Publish { topic: "device-server", payload: HELLO.as_bytes(), retain: false };
        talk.with_core(|core, cx| core.on_packet(Packet::Connect(connect), cx));
        talk.with_core(|core, cx| core.on_admission(Admission::Accepted, cx));
        talk.with_core(|core, cx| core.on_packet(Packet::Publish(hello), cx));
        let (session_id, udp_host) = ("own".into(), "127.0.0.1".into());
        let grant =
            CallCredentials { ssrc: SSRC, key: KEY, session_id, udp_host, udp_port: 1, allowed: true };
        talk.with_core(|core, cx| core.on_credentials(grant, cx));
        talk.core.on_dial_stage(SetupStage::Connect, talk.now);
        talk.with_core(Core::on_backend_open);
        talk.with_core(|core, cx| core.on_backend_text(SERVER_HELLO, cx));
        talk
    }

    pub(crate) fn with_core(&mut self, decide: impl FnOnce(&mut Core, &mut Context<'_>)) {
        let mut out = Vec::new();
        let Self { core, config, servers, now } = self;
        let (ids, hellos) = (&RequestIds::new(), &mut HelloLimiter::default());
        let (ended_calls, tool_lists) = (&mut EndedCalls::default(), &ToolLists::default());
        let (now, out) = (*now, &mut out);
        decide(core, &mut Context { now, config, servers, hellos, ended_calls, ids, tool_lists, out });
    }

    pub(crate) fn uplink(&mut self, datagram: &mut [u8]) {
        let from = UdpPeer { addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 4000)), local_ip: None };
        self.core.uplink(from, datagram, &self.config, self.now).unwrap();
    }

    /// Lets another core in a call take the place of this one.
    pub(crate) fn swap_core(&mut self, core: &mut Core) {
        std::mem::swap(&mut self.core, core);
    }

    pub(crate) fn into_core(self) -> Core {
        self.core
    }

    pub(crate) fn downlink(&mut self, frame: &[u8], out: &mut [u8]) {
        self.wait();
        self.downlink_now(frame, out);
    }

    /// The time of one packet passes.
    pub(crate) fn wait(&mut self) {
        self.now += Duration::from_millis(60);
    }

    /// Frames that follow in real time do not wait.
    pub(crate) fn downlink_now(&mut self, frame: &[u8], out: &mut [u8]) {
        let space = FrameSpace { datagram: out, room: usize::MAX };
        let sealed = self.core.downlink(frame, space, &self.config, &mut self.servers, self.now);
        assert!(sealed.unwrap().is_some());
    }
}

pub(crate) fn datagram(sequence: u32) -> Vec<u8> {
    let header = UdpHeader {
        flags: 0,
        payload_len: test_audio::PACKET_LEN as u16,
        ssrc: SSRC,
        timestamp: 0,
        sequence,
    };
    let mut datagram = header.to_bytes().to_vec();
    datagram.extend_from_slice(&test_audio::packet(sequence, 0));
    Cipher::new(&KEY).apply(&header.to_bytes(), &mut datagram[HEADER_LEN..]);
    datagram
}

/// The payload of a chat server's frame.
pub(crate) fn audio_frame() -> Vec<u8> {
    let mut frame = audio::ws_frame_header(1, test_audio::PACKET_LEN).to_vec();
    frame.extend_from_slice(&test_audio::packet(1, 1));
    frame
}

/// Writes a masked frame to a stream that takes everything.
pub(crate) fn send_frame(contexts: &mut ContextPool, frame: &[u8]) {
    let (mut lent, mut stream) = (None, io::empty());
    let message = contexts.binary(frame);
    let context = contexts.borrow(&mut lent);
    context.write(&mut stream, message).unwrap();
    context.flush(&mut stream).unwrap();
    contexts.give_back(lent.unwrap(), false);
}
