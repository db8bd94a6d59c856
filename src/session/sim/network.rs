//! A simulation of the gateway without its sockets: several devices, their chat servers, and a network that delays, loses,
//! duplicates, reorders and resets. Servers crash, names do not resolve, the configuration changes, devices reconnect and call each
//! other, and sometimes the gateway process is stopped for a while.

use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::proto::audio::{HEADER_LEN, MAX_PAYLOAD, UdpHeader};
use crate::proto::identity::Mac;
use crate::proto::mqtt::Packet;
use crate::session::harness::{encrypt_datagram, frame_with_header};
use firmware_devices::{FirmwareDevices, ToDevice, firmware_devices};
use harness::{NetworkCall, NetworkSession};

mod firmware_devices;
mod harness;
mod invariants;
mod operators;

const DEVICES: usize = 4;
const STEPS: usize = 400;
const URLS: [&str; 3] = ["ws://a/", "ws://b/", "ws://c/"];

/// What the runs of all seeds together must reach.
const REQUIRED_COVERAGE: [&str; 27] = [
    "asked",
    "away in a drain",
    "bridged",
    "bridged in realtime",
    "busy",
    "crashed",
    "device_disconnected",
    "device_goodbye",
    "device_lost",
    "drained",
    "hello_limit",
    "heard",
    "lost",
    "no_server",
    "not run",
    "operator",
    "peer_left",
    "redialled",
    "reloaded",
    "replaced",
    "resolve failed",
    "resumed",
    "server_lost",
    "shutdown",
    "talked",
    "twice",
    "unanswered",
];

#[test]
fn every_seed_keeps_the_invariants_of_the_network() {
    choices::run_seeds(&REQUIRED_COVERAGE, |seed, trace| SimulatedNetwork::new(seed, trace).run());
}

/// A message in the network, or a name in the resolver.
#[derive(Debug)]
enum InFlight {
    /// On the device's connection.
    Text(usize, String),
    Disconnect(usize),
    ConnectionLost(usize),
    /// To the UDP port, for the call with this ssrc.
    Datagram(u32, Vec<u8>),
    /// On the WebSocket with this number.
    DialResult(usize, u64, Result<(), BackendStage>),
    ServerText(usize, u64, String),
    ServerAudio(usize, u64, u64),
    ServerClosed(usize, u64, BackendClosed),
    /// For a modelled device, on its connection with this number.
    ToDevice(usize, u64, ToDevice),
    DatagramToDevice(usize, Box<[u8]>),
}

struct SimulatedNetwork {
    rng: Choices,
    shell: TestShell,
    device_calls: DeviceCallTable,
    /// Requests of operators to call or accept that have no outcome yet.
    device_call_tickets: HashSet<u64>,
    /// All sessions so far.
    sessions: Vec<NetworkSession>,
    /// The session that has the client id of a device.
    session_by_device: [Option<usize>; DEVICES],
    /// The number of connections of each device so far.
    connections: [u64; DEVICES],
    firmware: FirmwareDevices,
    calls: Vec<NetworkCall>,
    in_flight: BTreeMap<(Instant, u64), InFlight>,
    serial: u64,
    servers_down: HashSet<String>,
    /// The keys in hello replies.
    keys_sent: HashSet<[u8; 16]>,
    /// Pending commands of operators by ticket: the session, and when they were sent.
    pending_commands: BTreeMap<u64, (usize, Instant)>,
    /// The gateway is draining: idle devices are disconnected by then.
    drain_deadline: Option<Instant>,
    /// Every counter block that was used with a key in the downlink.
    headers_used: HashSet<([u8; 16], [u8; HEADER_LEN])>,
    coverage: BTreeSet<&'static str>,
    trace: Trace,
}

impl SimulatedNetwork {
    fn new(seed: u64, trace: bool) -> Self {
        let mut config = Config::default();
        config.websocket.production = servers(&URLS);
        config.udp.downlink_pace = seed.is_multiple_of(2);
        config.mcp.enabled = seed.is_multiple_of(4);
        let shell = TestShell::new(config);
        Self {
            rng: Choices::Seed(seed ^ 0x746f_776e),
            connections: [0; DEVICES],
            firmware: firmware_devices(seed, shell.now),
            shell,
            device_calls: DeviceCallTable::default(),
            device_call_tickets: HashSet::new(),
            sessions: Vec::new(),
            session_by_device: [None; DEVICES],
            calls: Vec::new(),
            in_flight: BTreeMap::new(),
            serial: 0,
            servers_down: HashSet::new(),
            keys_sent: HashSet::new(),
            pending_commands: BTreeMap::new(),
            drain_deadline: None,
            headers_used: HashSet::new(),
            coverage: BTreeSet::new(),
            trace: Trace::new(trace, Some(format!("SIM_SEED={seed} cargo test sim::network"))),
        }
    }

    fn run(mut self) -> BTreeSet<&'static str> {
        let drains = self.rng.percent(20).then(|| STEPS / 2 + self.rng.below(STEPS as u64 / 2) as usize);
        for step in 0..STEPS {
            if drains == Some(step) {
                self.drain();
            }
            self.step();
            self.check();
            self.check_firmware();
        }
        if drains.is_none() {
            self.settle();
        }
        self.switch_off();
        if self.rng.percent(20) {
            return self.shutdown();
        }
        // All devices disconnect, and all timers expire.
        for device in 0..DEVICES {
            if let Some(s) = self.session_by_device[device].filter(|s| self.sessions[*s].connected) {
                self.drive(s, Core::on_connection_lost);
            }
        }
        for _ in 0..200 {
            self.advance(1_000);
            self.check();
        }
        assert_eq!(self.device_calls.deadline(), None, "no call between devices is left over");
        self.check_all_finished()
    }

    fn step(&mut self) {
        let device = self.rng.below(DEVICES as u64) as usize;
        match self.rng.below(100) {
            0..35 => self.device_step(device),
            35..55 => self.server_step(),
            55..63 => self.device_call_step(device),
            63..65 => self.toggle_server_crash(),
            65..67 => self.change_config(),
            67..69 => self.operator_step(device),
            69..71 => {
                // The process is stopped. When it continues, what arrived meanwhile is read before timers are handled.
                let ms = self.rng.pick(&[2_000, 10_000, 40_000]);
                self.log(format_args!("does not run for {ms} ms"));
                self.coverage.insert("not run");
                self.firmware.values_mut().for_each(|model| model.is_beyond_knowledge = true);
                self.shell.now += Duration::from_millis(ms);
                self.advance(0);
            }
            _ => {
                let ms = self.rng.pick(&[1, 20, 60, 60, 300, 1_000, 3_000]);
                let ms = if self.rng.percent(1) { 70_000 } else { ms };
                self.advance(ms);
            }
        }
    }

    /// Time passes: messages arrive, then timers are handled.
    fn advance(&mut self, ms: u64) {
        let until = self.shell.now + Duration::from_millis(ms);
        loop {
            let arrives = self.in_flight.first_key_value().map(|((at, _), _)| *at);
            let due = self.sessions.iter().filter_map(|session| session.core.deadline());
            let due = due.chain(self.device_calls.deadline()).chain(self.next_firmware_deadline()).min();
            let Some(next) = arrives.into_iter().chain(due).min().filter(|next| *next <= until) else {
                break;
            };
            let late = self.rng.pick(&[0, 0, 1, MAX_TIMER_DELAY_MS]);
            self.shell.now = self.shell.now.max(next + Duration::from_millis(late));
            while let Some(entry) =
                self.in_flight.first_entry().filter(|entry| entry.key().0 <= self.shell.now)
            {
                let (at, message) = (entry.key().0, entry.remove());
                self.deliver(at, message);
            }
            self.tick_firmware();
            // A timer may end the call of another session, whose drain deadline has passed.
            for _ in 0..2 {
                (0..self.sessions.len()).for_each(|s| self.drive(s, Core::on_timeout));
                self.change_device_calls(DeviceCallTable::on_timeout);
            }
            let due = self
                .sessions
                .iter()
                .filter_map(|session| session.core.deadline())
                .chain(self.device_calls.deadline());
            assert!(due.min().is_none_or(|at| at > self.shell.now), "no timer in the past");
        }
        self.shell.now = self.shell.now.max(until);
    }

    /// Sends a message through the network.
    fn send(&mut self, after: Instant, message: InFlight) -> Instant {
        let delay = self.rng.pick(&[0, 1, 5, 20, 20, 80, 300, 1_500]);
        let arrives = after.max(self.shell.now + Duration::from_millis(delay));
        self.serial += 1;
        self.in_flight.insert((arrives, self.serial), message);
        arrives
    }

    /// A byte stream keeps its order.
    fn send_from_device(&mut self, s: usize, message: InFlight) {
        let after = self.sessions[s].last_uplink_arrival;
        self.sessions[s].last_uplink_arrival = self.send(after, message);
    }

    fn send_from_server(&mut self, s: usize, message: InFlight) {
        let Some(after) = self.sessions[s].websocket.as_ref().map(|ws| ws.last_downlink_arrival) else {
            return;
        };
        let arrives = self.send(after, message);
        if let Some(ws) = &mut self.sessions[s].websocket {
            ws.last_downlink_arrival = arrives;
        }
    }

    // ----- devices ------------------------------------------------------------------------------------------------

    fn device_step(&mut self, device: usize) {
        if self.firmware.contains_key(&device) {
            return self.person_step(device);
        }
        let Some(s) = self.session_by_device[device].filter(|s| self.sessions[*s].connected) else {
            if self.drain_deadline.is_none() {
                self.connect(device);
            }
            return;
        };
        match self.rng.below(100) {
            0..15 => self.send_text(s, r#"{"type":"hello","version":3,"transport":"udp"}"#.to_owned()),
            15..25 => self.send_text(s, r#"{"type":"listen","state":"start"}"#.to_owned()),
            25..30 => self.send_text(s, r#"{"type":"goodbye"}"#.to_owned()),
            30..32 => self.send_text(s, r#"{"type":"abort"}"#.to_owned()),
            32..34 => self.send_from_device(s, InFlight::Disconnect(s)),
            34..38 => self.send_from_device(s, InFlight::ConnectionLost(s)),
            // The older connection is broken, but no side has noticed.
            38..42 if self.drain_deadline.is_none() => self.connect(device),
            42..43 => self.drive(s, Core::on_memory_limit),
            43..44 if self.drain_deadline.is_none() => self.open_idle_connection(device),
            _ => self.send_audio(s),
        }
    }

    /// A connection that never sends its CONNECT.
    fn open_idle_connection(&mut self, device: usize) {
        let core = Core::new([192, 0, 2, device as u8].into(), self.shell.now);
        self.sessions.push(NetworkSession::new(core, device, self.shell.now));
    }

    fn send_text(&mut self, s: usize, text: String) {
        self.send_from_device(s, InFlight::Text(s, text));
    }

    fn send_audio(&mut self, s: usize) {
        let device = self.sessions[s].device;
        let Some(ssrc) =
            self.calls.iter().rposition(|call| call.device == device && call.session_id.is_some())
        else {
            return;
        };
        for _ in 0..1 + self.rng.below(4) {
            let call = &mut self.calls[ssrc];
            call.datagrams_sent += 1;
            let payload = [&[0x08][..], &call.datagrams_sent.to_be_bytes()].concat();
            let sequence = call.datagrams_sent;
            let datagram = encrypt_datagram(&call.key, ssrc as u32, sequence, sequence * 60, &payload);
            if self.rng.percent(5) {
                self.coverage.insert("lost");
                continue;
            }
            for _ in 0..1 + self.rng.below(20) / 19 {
                // Datagrams have different delays, so they are reordered.
                self.send(self.shell.now, InFlight::Datagram(ssrc as u32, datagram.clone()));
            }
        }
    }

    fn device_call_step(&mut self, caller: usize) {
        let other = self.rng.below(DEVICES as u64) as usize;
        self.serial += 1;
        let ticket = self.serial;
        self.log(format_args!("{caller} and {other}"));
        match self.rng.below(10) {
            0..5 => {
                let (caller, target) = (mac(caller), mac(other));
                let request = CallRequest { caller, target, place: Place::Here, nickname: "Ann" };
                self.device_call_tickets.insert(ticket);
                self.change_device_calls(|table, cx| table.request(request, ticket, cx));
            }
            5..8 => {
                self.device_call_tickets.insert(ticket);
                self.change_device_calls(|table, cx| table.accept(mac(other), ticket, cx));
            }
            _ => self.change_device_calls(|table, cx| _ = table.hang_up(mac(caller), cx)),
        }
        assert!(self.device_call_tickets.is_empty(), "the outcome is known at once");
    }

    // ----- chat servers -------------------------------------------------------------------------------------------

    fn server_step(&mut self) {
        let open: Vec<_> = (0..self.sessions.len())
            .filter_map(|s| self.sessions[s].websocket.as_ref().filter(|ws| ws.open).map(|ws| (s, ws.number)))
            .collect();
        if open.is_empty() {
            return;
        }
        let (s, number) = self.rng.pick(&open);
        let is_modelled = self.firmware.contains_key(&self.sessions[s].device);
        let message = match self.rng.below(100) {
            0..93 if is_modelled => return self.send_reply(s, number),
            0..15 => InFlight::ServerText(s, number, r#"{"type":"tts","state":"start"}"#.to_owned()),
            15..30 => InFlight::ServerText(s, number, r#"{"type":"tts","state":"stop"}"#.to_owned()),
            30..93 => {
                self.serial += 1;
                InFlight::ServerAudio(s, number, self.serial)
            }
            93..95 => InFlight::ServerText(s, number, r#"{"type":"goodbye"}"#.to_owned()),
            95..97 => InFlight::ServerClosed(s, number, BackendClosed::CloseFrame(Some(1000), "".into())),
            _ => InFlight::ServerClosed(s, number, BackendClosed::CloseFrame(Some(1011), "".into())),
        };
        self.send_from_server(s, message);
    }

    /// A chat server crashes with all its connections, or works again.
    fn toggle_server_crash(&mut self) {
        let url = self.rng.pick(&URLS).to_owned();
        if self.servers_down.remove(&url) {
            return self.log(format_args!("{url} is back"));
        }
        self.log(format_args!("{url} crashes"));
        for s in 0..self.sessions.len() {
            let Some(number) =
                self.sessions[s].websocket.as_ref().filter(|ws| ws.url == url).map(|ws| ws.number)
            else {
                continue;
            };
            let gone = BackendClosed::NoCloseFrame("reset".to_owned());
            // The reset arrives, or only pings can detect the failure.
            if self.rng.percent(80) {
                self.send_from_server(s, InFlight::ServerClosed(s, number, gone));
            }
        }
        self.coverage.insert("crashed");
        self.servers_down.insert(url);
    }

    fn change_config(&mut self) {
        let websocket = &mut self.shell.config.websocket;
        match self.rng.below(6) {
            0 => websocket.production = servers(&URLS[..1 + self.rng.below(3) as usize]),
            1 => websocket.production = servers(&URLS[1..]),
            2 => self.shell.config.mqtt.resume_grace = Duration::from_secs(self.rng.pick(&[0, 20, 20])),
            3 => self.shell.config.mqtt.hello_limit = self.rng.pick(&[0, 1, 8]),
            4 => websocket.ping_interval = Duration::from_secs(self.rng.pick(&[5, 20])),
            _ => websocket.reconnect.give_up_after = Duration::from_secs(self.rng.pick(&[3, 110])),
        }
        self.coverage.insert("reloaded");
        self.log(format_args!("the configuration changes"));
        let production = &self.shell.config.websocket.production;
        for ws in self.sessions.iter_mut().filter_map(|session| session.websocket.as_mut()) {
            ws.has_alternative &= production.iter().any(|server| server.url != ws.url);
        }
        (0..self.sessions.len()).for_each(|s| self.drive(s, Core::on_timeout));
    }

    fn log(&mut self, what: std::fmt::Arguments<'_>) {
        self.trace.log(self.shell.elapsed_ms(), what);
    }
}

fn mac(device: usize) -> Mac {
    Mac::from([2, 0, 0, 0, 0, device as u8])
}

/// The frame of a chat server with this number.
fn frame(number: u64) -> Vec<u8> {
    let payload = [&[0x08][..], &number.to_be_bytes()].concat();
    frame_with_header(number as u32, &payload)
}
