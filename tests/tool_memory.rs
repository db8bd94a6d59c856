//! What the tools of a device cost in memory: boards of one model and firmware share their list, and lists that differ share the
//! tools that they have in common. And what a call costs.
#![allow(clippy::unwrap_used)]

use std::alloc::System;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::Config;
use mqtt_websocket_proxy::proto::audio::{Cipher, HEADER_LEN, UdpHeader};
use mqtt_websocket_proxy::proto::message;
use mqtt_websocket_proxy::proto::mqtt::{Connect, Packet, ProtocolLevel, Publish};
use mqtt_websocket_proxy::session::{
    Action, Admission, CallCredentials, Context, Core, EndedCalls, HelloLimiter, LogEvent, RequestIds,
    ServerHealth, SetupStage, ToolLists, UdpPeer, Uplink,
};
use mqtt_websocket_proxy::tools::device::HELLO;
use serde_json::value::RawValue;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const DEVICES: usize = 10_000;
const INITIALIZE: &str = r#"{"protocolVersion":"2024-11-05","capabilities":{"tools":{}},"serverInfo":{"name":"board","version":"2.0.3"}}"#;

/// One test: all allocations of this process are counted, and the harness allocates whenever a test ends.
#[test]
fn ten_thousand_devices_share_their_tools_and_a_call_that_is_up_takes_at_most_732_bytes() {
    devices_with_one_list_share_it_and_with_different_ones_their_tools();
    a_call_that_is_up_takes_at_most_732_bytes_of_the_core();
}

fn devices_with_one_list_share_it_and_with_different_ones_their_tools() {
    let tools: Vec<Box<RawValue>> = serde_json::from_str(include_str!("data/board_tools.json")).unwrap();
    let tools: Vec<&str> = tools.iter().map(|tool| tool.get()).collect();
    let one_list = tools.join(",");
    assert!((6_500..7_500).contains(&one_list.len()), "as real boards have: {}", one_list.len());

    let without = bytes_per_device(&mut Shell::new(false), |_| one_list.clone());
    assert!(without <= 120, "{without}");
    let same = bytes_per_device(&mut Shell::new(true), |_| one_list.clone());
    assert!(same <= without + 8, "{same} bytes each, {without} without tools");

    // Each device lacks other tools.
    let different = bytes_per_device(&mut Shell::new(true), |device| {
        let has = |i: &usize| i / 14 > 0 || device >> i & 1 == 0;
        (0..tools.len()).filter(has).map(|i| tools[i]).collect::<Vec<_>>().join(",")
    });
    assert!(different <= without + 400, "{different} bytes each, {without} without tools");

    // Nothing in common: the limit of all lists together.
    let mut shell = Shell::new(true);
    let hostile = bytes_per_device(&mut shell, |device| format!("\"{}{device}\"", "x".repeat(16_000)));
    assert!(hostile * DEVICES < 36 * 1024 * 1024 + without * DEVICES, "{hostile}");
    assert!((1_900..2_100).contains(&shell.lists), "{}", shell.lists);
}

/// The core's part of a call that is up, beyond its device: the rest is its connection to the chat server, 104 bytes, and its entry in
/// the index.
fn a_call_that_is_up_takes_at_most_732_bytes_of_the_core() {
    let mut shell = Shell::new(false);
    // Their buckets are for a while, and bounded.
    shell.config.mqtt.hello_limit = 0;
    shell.config.websocket.production = vec![std::sync::Arc::new("ws://chat/".parse().unwrap())];
    let mut cores: Vec<Core> = (0..1_000).map(|device| shell.connect(device, "")).collect();
    let region = Region::new(ALLOCATOR);
    let held = || region.change().bytes_allocated - region.change().bytes_deallocated;
    for (core, ssrc) in cores.iter_mut().zip(1..) {
        shell.call(core, ssrc);
    }
    let up = held() / cores.len();
    assert!(up <= 732, "{up}");
    // Later, with the course of the call so far.
    for second in 1..=30 {
        shell.now += Duration::from_secs(1);
        for (core, ssrc) in cores.iter_mut().zip(1..) {
            shell.hear(core, ssrc, second + 1);
        }
    }
    let later = held() / cores.len();
    assert!(later <= up + 3 * 20, "{later}");
}

/// What each of the devices takes, with its tools if the gateway asks for them. All is freed when they leave.
fn bytes_per_device(shell: &mut Shell, tools: impl Fn(usize) -> String) -> usize {
    let region = Region::new(ALLOCATOR);
    let held = || region.change().bytes_allocated - region.change().bytes_deallocated;
    let mut cores = Vec::with_capacity(DEVICES);
    cores.extend((0..DEVICES).map(|device| shell.connect(device, &tools(device))));
    let each = held() / DEVICES;
    drop(cores);
    assert!(held() < 4_096, "{} bytes are left", held());
    each
}

/// What a worker lends to its cores.
struct Shell {
    config: Config,
    servers: ServerHealth,
    hellos: HelloLimiter,
    ended_calls: EndedCalls,
    ids: RequestIds,
    tool_lists: ToolLists,
    now: Instant,
    /// Devices whose list is kept.
    lists: usize,
}

impl Shell {
    fn new(tools: bool) -> Self {
        let mut config = Config::default();
        config.mcp.enabled = tools;
        Self {
            config,
            servers: ServerHealth::default(),
            hellos: HelloLimiter::default(),
            ended_calls: EndedCalls::default(),
            ids: RequestIds::new(),
            tool_lists: ToolLists::default(),
            now: Instant::now(),
            lists: 0,
        }
    }

    /// A device that is connected, and has been asked for its tools.
    fn connect(&mut self, device: usize, tools: &str) -> Core {
        let mut core = Core::new(IpAddr::from(Ipv4Addr::LOCALHOST), self.now);
        let client_id = format!("GID_test@@@02_00_00_00_{:02x}_{:02x}@@@1", device >> 8, device & 255);
        let connect = Connect {
            level: ProtocolLevel::V311,
            client_id: &client_id,
            clean_session: true,
            keep_alive: 90,
            will: None,
            user_name: None,
            password: None,
        };
        self.drive(&mut core, |core, cx| core.on_packet(Packet::Connect(connect), cx));
        let mut published = self.drive(&mut core, |core, cx| core.on_admission(Admission::Accepted, cx));
        while let Some(text) = published.pop() {
            let payload = message::parse_rpc(&text, message::Reader::Device);
            let Some((id, method)) =
                payload.and_then(|rpc| Some((rpc.id?.to_owned(), rpc.method?.into_owned())))
            else {
                continue;
            };
            let answer = match &*method {
                "initialize" => message::mcp_result(None, &id, INITIALIZE),
                _ => message::mcp_result(None, &id, &format!(r#"{{"tools":[{tools}]}}"#)),
            };
            let answer = Publish { topic: "device-server", payload: answer.as_bytes(), retain: false };
            published = self.drive(&mut core, |core, cx| core.on_packet(Packet::Publish(answer), cx));
        }
        core
    }

    /// The device calls, its chat server answers, and its first datagram comes.
    fn call(&mut self, core: &mut Core, ssrc: u32) {
        let hello = Publish { topic: "device-server", payload: HELLO.as_bytes(), retain: false };
        self.drive(core, |core, cx| core.on_packet(Packet::Publish(hello), cx));
        let credentials = CallCredentials {
            ssrc,
            key: [7; 16],
            session_id: "3f2b8f0e-6a8e-4a51-9a53-1f6d1b0c7a11".into(),
            udp_host: "192.0.2.1".into(),
            udp_port: 8884,
            allowed: true,
        };
        self.drive(core, |core, cx| core.on_credentials(credentials, cx));
        core.on_dial_stage(SetupStage::Connect, self.now);
        self.drive(core, Core::on_backend_open);
        let hello = format!(r#"{{"type":"hello","transport":"websocket","session_id":"{ssrc:036}"}}"#);
        let published = self.drive(core, |core, cx| core.on_backend_text(&hello, cx));
        assert_eq!(published.len(), 1, "the hello reply");
        self.hear(core, ssrc, 1);
    }

    /// A datagram of the device.
    fn hear(&mut self, core: &mut Core, ssrc: u32, sequence: u32) {
        let header = UdpHeader { flags: 0, payload_len: 120, ssrc, timestamp: 0, sequence };
        let mut datagram = header.to_bytes().to_vec();
        datagram.resize(HEADER_LEN + 120, 0x88);
        Cipher::new(&[7; 16]).apply(&header.to_bytes(), &mut datagram[HEADER_LEN..]);
        let from = UdpPeer { addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 4000)), local_ip: None };
        let uplink = core.uplink(from, &mut datagram, &self.config, self.now);
        let Ok(Uplink::Server { device_heard, .. }) = uplink else { panic!("{uplink:?}") };
        if device_heard {
            self.drive(core, Core::on_device_heard);
        }
    }

    /// Calls the core, and returns what it publishes.
    fn drive(&mut self, core: &mut Core, decide: impl FnOnce(&mut Core, &mut Context<'_>)) -> Vec<String> {
        let mut out = Vec::new();
        let Self { config, servers, hellos, ended_calls, ids, tool_lists, now, .. } = self;
        let out_ref = &mut out;
        decide(
            core,
            &mut Context { now: *now, config, servers, hellos, ended_calls, ids, tool_lists, out: out_ref },
        );
        let is_list = |action: &Action| matches!(action, Action::Log(LogEvent::ToolDiscovery(Ok(_))));
        self.lists += out.iter().filter(|action| is_list(action)).count();
        out.into_iter()
            .filter_map(|action| if let Action::Publish(text) = action { Some(text) } else { None })
            .collect()
    }
}
