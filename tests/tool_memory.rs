//! What the tools of a device cost in memory: boards of one model and firmware share their list, and lists that differ share the
//! tools that they have in common. All allocations of this process are counted, so there is only one test.
#![allow(clippy::unwrap_used)]

use std::alloc::System;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use mqtt_websocket_proxy::config::Config;
use mqtt_websocket_proxy::proto::message;
use mqtt_websocket_proxy::proto::mqtt::{Connect, Packet, ProtocolLevel, Publish};
use mqtt_websocket_proxy::session::{
    Action, Admission, Context, Core, EndedCalls, HelloLimiter, LogEvent, RequestIds, ServerHealth, ToolLists,
};
use serde_json::value::RawValue;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const DEVICES: usize = 10_000;
const INITIALIZE: &str = r#"{"protocolVersion":"2024-11-05","capabilities":{"tools":{}},"serverInfo":{"name":"board","version":"2.0.3"}}"#;

#[test]
fn ten_thousand_devices_with_one_list_share_it_and_with_different_ones_their_tools() {
    let tools: Vec<Box<RawValue>> = serde_json::from_str(include_str!("data/board_tools.json")).unwrap();
    let tools: Vec<&str> = tools.iter().map(|tool| tool.get()).collect();
    let one_list = tools.join(",");
    assert!((6_500..7_500).contains(&one_list.len()), "as real boards have: {}", one_list.len());

    let without = bytes_per_device(&mut Shell::new(false), |_| one_list.clone());
    assert!(without < 220, "{without}");
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
