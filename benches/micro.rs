//! The hot paths one by one, with their allocations.
//!
//! ```text
//! cargo bench --bench micro             all of them
//! cargo bench --bench micro -- audio    those whose name contains a word
//! ```
#![allow(clippy::unwrap_used)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, Divan, black_box};
use mqtt_websocket_proxy::Config;
use mqtt_websocket_proxy::net::backend::context_pool::ContextPool;
use mqtt_websocket_proxy::net::event_loop::timer_wheel::TimerWheel;
use mqtt_websocket_proxy::net::event_loop::token::SessionId;
use mqtt_websocket_proxy::net::sessions::index::Index;
use mqtt_websocket_proxy::proto::audio::{self, Cipher, HEADER_LEN, MAX_PAYLOAD, UdpHeader};
use mqtt_websocket_proxy::proto::message::{self, Reader};
use mqtt_websocket_proxy::proto::mqtt::{Connect, Packet, ProtocolLevel, Publish, decode, encode};
use mqtt_websocket_proxy::session::{
    Admission, CallCredentials, Context, Core, EndedCalls, FrameSpace, HelloLimiter, RequestIds,
    ServerHealth, SetupStage, ToolLists, UdpPeer,
};
use mqtt_websocket_proxy::tools::device::{HELLO, Login, test_audio};

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

const KEY: [u8; 16] = [7; 16];
const SSRC: u32 = 0x1234_5678;
const SERVER_HELLO: &str =
    r#"{"type":"hello","transport":"websocket","session_id":"s1","audio_params":{"sample_rate":24000}}"#;
const TTS_MESSAGE: &str = r#"{"session_id":"0b1e2c5a-6c0f-4b7e-9a57-1f0c3a3a1c55","type":"tts","state":"sentence_start","text":"The weather will be fine tomorrow, with a light wind from the west."}"#;

fn main() {
    Divan::default().max_time(Duration::from_millis(500)).config_with_args().main();
}

// ----- text -----------------------------------------------------------------------------------------------------------

#[divan::bench]
fn mqtt_decode_connect(bencher: Bencher) {
    let packet = Login::new("02:00:00:00:00:01".parse().unwrap(), Some(b"key")).connect_packet();
    bencher.bench(|| decode(black_box(&packet), 4096).unwrap().map(|(_, used)| used));
}

#[divan::bench]
fn mqtt_decode_publish(bencher: Bencher) {
    let mut packet = Vec::new();
    encode::publish(&mut packet, "device-server", TTS_MESSAGE.as_bytes());
    bencher.bench(|| decode(black_box(&packet), 65_536).unwrap().map(|(_, used)| used));
}

#[divan::bench]
fn message_peek() -> bool {
    message::peek(black_box(TTS_MESSAGE), Reader::Device).is_ok()
}

/// What a chat server usually sends has the device's session id already.
#[divan::bench]
fn message_with_session_id() -> usize {
    message::with_session_id(black_box(TTS_MESSAGE), Some("0b1e2c5a-6c0f-4b7e-9a57-1f0c3a3a1c55")).len()
}

// ----- audio ----------------------------------------------------------------------------------------------------------

/// The cipher alone: a packet of 60 ms, and the longest.
#[divan::bench(args = [test_audio::PACKET_LEN, MAX_PAYLOAD])]
fn audio_cipher(bencher: Bencher, len: usize) {
    let (cipher, mut payload) = (Cipher::new(&KEY), vec![0; len]);
    bencher.bench_local(|| cipher.apply(black_box(&[1; 16]), &mut payload));
}

/// A datagram becomes the payload of a WebSocket frame.
#[divan::bench]
fn audio_decrypt(bencher: Bencher) {
    let (mut call, mut sequence) = (CallFixture::new(), 0);
    let datagrams = || {
        sequence += 1;
        datagram(sequence)
    };
    bencher.with_inputs(datagrams).bench_local_refs(|datagram| call.uplink(datagram));
}

/// A chat server's frame becomes a datagram.
#[divan::bench]
fn audio_encrypt(bencher: Bencher) {
    let mut call = CallFixture::new();
    call.uplink(&mut datagram(1));
    let mut frame = audio::ws_frame_header(1, test_audio::PACKET_LEN).to_vec();
    frame.extend_from_slice(&test_audio::packet(1, 1));
    let mut out = [0; HEADER_LEN + MAX_PAYLOAD];
    bencher.bench_local(|| call.downlink(black_box(&frame), &mut out));
}

/// The payload becomes a masked frame, and leaves with one write.
#[divan::bench]
fn websocket_frame(bencher: Bencher) {
    let (mut contexts, mut stream) = (ContextPool::default(), io::empty());
    let mut frame = audio::ws_frame_header(1, test_audio::PACKET_LEN).to_vec();
    frame.extend_from_slice(&test_audio::packet(1, 1));
    let mut send = || {
        let mut lent = None;
        let message = contexts.binary(black_box(&frame));
        let context = contexts.borrow(&mut lent);
        context.write(&mut stream, message).unwrap();
        context.flush(&mut stream).unwrap();
        contexts.give_back(lent.unwrap(), false);
    };
    // The first one allocates what later ones reuse.
    send();
    bencher.bench_local(send);
}

/// A core in a call, and what it needs around it.
struct CallFixture {
    core: Core,
    config: Config,
    servers: ServerHealth,
    now: Instant,
}

impl CallFixture {
    fn new() -> Self {
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
        let grant = CallCredentials {
            ssrc: SSRC,
            key: KEY,
            session_id,
            jitter_seed: 1,
            udp_host,
            udp_port: 1,
            allowed: true,
        };
        talk.with_core(|core, cx| core.on_credentials(grant, cx));
        talk.core.on_dial_stage(SetupStage::Connect, talk.now);
        talk.with_core(Core::on_backend_open);
        talk.with_core(|core, cx| core.on_backend_text(SERVER_HELLO, cx));
        talk
    }

    fn with_core(&mut self, decide: impl FnOnce(&mut Core, &mut Context<'_>)) {
        let mut out = Vec::new();
        let Self { core, config, servers, now } = self;
        let (ids, hellos) = (&RequestIds::new(), &mut HelloLimiter::default());
        let (ended_calls, tool_lists) = (&mut EndedCalls::default(), &ToolLists::default());
        let (now, out) = (*now, &mut out);
        decide(core, &mut Context { now, config, servers, hellos, ended_calls, ids, tool_lists, out });
    }

    fn uplink(&mut self, datagram: &mut [u8]) {
        let from = UdpPeer { addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 4000)), local_ip: None };
        self.core.uplink(from, datagram, &self.config, self.now).unwrap();
    }

    fn downlink(&mut self, frame: &[u8], out: &mut [u8]) {
        // In real time, so that no frame waits.
        self.now += Duration::from_millis(60);
        let space = FrameSpace { datagram: out, room: usize::MAX };
        let sealed = self.core.downlink(frame, space, &self.config, &mut self.servers, self.now);
        assert!(sealed.unwrap().is_some());
    }
}

fn datagram(sequence: u32) -> Vec<u8> {
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

// ----- the loop -------------------------------------------------------------------------------------------------------

/// Find a datagram's session among many calls.
#[divan::bench(args = [100, 9_000])]
fn session_lookup(bencher: Bencher, calls: u32) {
    let mut index = Index::default();
    let ssrc = |n: u32| n.wrapping_mul(0x9e37_79b9);
    for n in 0..calls {
        index.add_call(ssrc(n), SessionId { slot: n, epoch: n }, Ipv4Addr::LOCALHOST.into());
    }
    let mut n = 0;
    bencher.counter(ItemsCount::new(1_u32)).bench_local(|| {
        n = (n + 7) % calls;
        index.call(black_box(ssrc(n)))
    });
}

/// One timer is set and one expires, among many.
#[divan::bench(args = [100, 10_000])]
fn timer_wheel_expire(bencher: Bencher, timers: u64) {
    let start = Instant::now();
    let mut wheel = TimerWheel::new(start);
    for n in 0..timers {
        wheel.arm(start + Duration::from_millis(8 * n), n);
    }
    let (mut now, mut due) = (start, Vec::new());
    bencher.bench_local(|| {
        now += Duration::from_millis(8);
        wheel.arm(now + Duration::from_millis(8 * timers), 0);
        wheel.expire(now, &mut due);
        due.drain(..).count()
    });
}
