//! A seeded simulation: a device and its chat servers act at random, and a model checks what the core does.
//!
//! `SIM_SEEDS=5000 cargo test sim` runs more seeds; `SIM_SEED=17 cargo test sim` replays one. A fuzzer's bytes can replace the seed:
//! [`run_script`].

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::harness::{TestShell, connect_packet, publish_packet, servers};
use super::*;
use crate::config::{Config, PeerPolicy};
use choices::{Choices, Trace};
use firmware_device::FirmwareDevice;
use model::{Input, Model, WebSocketState};

#[cfg(test)]
mod attacker;
mod audio_model;
mod choices;
mod device;
#[allow(dead_code, missing_docs, unreachable_pub, reason = "tests/support uses more of it")]
pub(super) mod firmware;
mod firmware_device;
#[cfg(test)]
mod firmware_tests;
mod model;
#[cfg(test)]
mod network;
mod server;

const STEPS: usize = 500;
const ID: &str = "GID_test@@@aa_bb_cc_dd_ee_ff@@@uuid";
/// Texts that come at once: of short ones a queue takes the former and not the latter, of long ones neither.
const TEXT_BURST_SIZES: [usize; 2] = [70, 140];
/// Bytes of a long text.
const LONG_TEXT_BYTES: usize = 6_000;
/// How late a timer may expire here, in milliseconds: more than a tick of the shell's wheel (8 ms), as after a long turn.
const MAX_TIMER_DELAY_MS: u64 = 100;

/// Plays a story whose every choice is taken from `script`; when that is used up, everybody goes away.
pub(crate) fn run_script(script: &[u8]) {
    // A trace takes too long for a fuzzer.
    Simulation::new(Choices::Script { bytes: script.to_vec(), used: 0 }, cfg!(test)).run();
}

#[test]
fn every_seed_keeps_the_invariants() {
    choices::run_seeds(&REQUIRED_COVERAGE, |seed, trace| Simulation::new(Choices::Seed(seed), trace).run());
}

/// Ends, and turns on the way, without which a run would be too tame.
const REQUIRED_COVERAGE: [&str; 24] = [
    "device_goodbye",
    "device_udp_timeout",
    "device_disconnected",
    "device_lost",
    "device_error",
    "replaced",
    "hello_limit",
    "dial kept",
    "server_closed",
    "no_server",
    "server_lost",
    "idle",
    "overflow",
    "refused",
    "redialled",
    "resumed",
    "away",
    "no server hello",
    "held dropped",
    "held sent",
    "adopted",
    "text of a closing call",
    "keep alive",
    "heard",
];

/// One connection of the device, or what is left of it, with what the shell holds for it.
struct ModelledSession {
    core: Core,
    model: Model,
}

/// One device, its connections one after the other, and all its servers.
struct Simulation {
    rng: Choices,
    shell: TestShell,
    sessions: Vec<ModelledSession>,
    /// The session that has the device's client id.
    current: Option<usize>,
    /// The device, unless it acts at random.
    firmware: Option<FirmwareDevice>,
    /// Whether the call has ended, for every ssrc so far.
    ended_by_ssrc: Vec<bool>,
    /// Numbers every text and frame.
    serial: u64,
    trace: Trace,
    /// What happened, compared with [`REQUIRED_COVERAGE`].
    coverage: BTreeSet<&'static str>,
}

impl Simulation {
    fn new(mut rng: Choices, trace: bool) -> Self {
        let mut config = Config::default();
        // The model has no clock for what a device plays.
        config.udp.downlink_pace = false;
        config.udp.speech_lead = Duration::ZERO;
        config.websocket.production = servers(&["ws://a/", "ws://raw/", "ws://c/"]);
        let seed = if let Choices::Seed(seed) = rng { Some(seed) } else { None };
        config.mcp.enabled = seed.unwrap_or_else(|| rng.next()).is_multiple_of(4);
        let replay = seed.map(|seed| format!("SIM_SEED={seed} cargo test sim"));
        let shell = TestShell::new(config);
        let seed_of_firmware = seed.filter(|seed| seed.is_multiple_of(2));
        Self {
            rng,
            firmware: seed_of_firmware.map(|seed| FirmwareDevice::new(seed, shell.now)),
            shell,
            sessions: Vec::new(),
            current: None,
            ended_by_ssrc: Vec::new(),
            serial: 0,
            trace: Trace::new(trace, replay),
            coverage: BTreeSet::new(),
        }
    }

    fn run(mut self) -> BTreeSet<&'static str> {
        for _ in 0..STEPS {
            if self.rng.is_exhausted() {
                break;
            }
            self.step();
            self.check();
            self.remove_finished();
        }
        self.settle();
        // The device disconnects, and all timers expire.
        if let Some(current) = self.current {
            self.drive(current, Input::Other, Core::on_connection_lost);
        }
        for _ in 0..60 {
            self.advance(1_000);
            self.check();
        }
        for session in &self.sessions {
            assert!(session.core.is_finished(), "no call is left over");
        }
        assert!(self.ended_by_ssrc.iter().all(|ended| *ended), "every call has ended");
        std::mem::take(&mut self.coverage)
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..30 => self.device_step(),
            30..70 => self.server_step(),
            70..74 => self.change_config(),
            74..76 => self.spurious_timeouts(),
            _ => {
                let ms = self.rng.pick(&[1, 10, 60, 60, 60, 300, 1_000, 2_500, 5_000]);
                let ms = if self.rng.percent(1) { 100_000 } else { ms };
                self.log(format_args!("{ms} ms pass"));
                self.advance(ms);
            }
        }
    }

    fn change_config(&mut self) {
        let websocket = &mut self.shell.config.websocket;
        match self.rng.below(9) {
            0 => {
                websocket.production = servers(self.rng.pick(&[&["ws://a/"][..], &["ws://c/", "ws://raw/"]]))
            }
            1 => websocket.production = servers(&["ws://a/", "ws://raw/", "ws://c/"]),
            2 => websocket.send_goodbye ^= true,
            3 => websocket.call_idle = Duration::from_secs(self.rng.pick(&[0, 20, 300])),
            4 => websocket.reconnect.give_up_after = Duration::from_secs(self.rng.pick(&[0, 5, 110])),
            5 => websocket.ping_interval = Duration::from_secs(self.rng.pick(&[0, 5, 20])),
            6 => self.shell.config.mqtt.resume_grace = Duration::from_secs(self.rng.pick(&[0, 20, 20])),
            7 => self.shell.config.mqtt.hello_limit = self.rng.pick(&[0, 1, 8]),
            _ => {
                self.shell.config.udp.peer_policy = self.rng.pick(&[PeerPolicy::Adaptive, PeerPolicy::Strict])
            }
        }
        self.log(format_args!("the configuration changes"));
        for s in 0..self.sessions.len() {
            self.drive(s, Input::Other, Core::on_timeout);
        }
    }

    /// Spurious and repeated calls of `on_timeout` have no effect.
    fn spurious_timeouts(&mut self) {
        for s in (0..self.sessions.len()).chain(0..self.sessions.len()) {
            self.drive(s, Input::Other, Core::on_timeout);
        }
    }

    /// Time passes. Timers expire, some of them late.
    fn advance(&mut self, ms: u64) {
        let until = self.shell.now + Duration::from_millis(ms);
        loop {
            self.run_firmware();
            let due = self.sessions.iter().filter_map(|session| session.core.deadline()).min();
            let Some(due) = due.filter(|due| *due <= until) else { break };
            let late = Duration::from_millis(self.rng.pick(&[0, 0, 1, MAX_TIMER_DELAY_MS]));
            self.shell.now = self.shell.now.max(due + late);
            for s in 0..self.sessions.len() {
                self.drive(s, Input::Other, Core::on_timeout);
                let next = self.sessions[s].core.deadline();
                assert!(next.is_none_or(|at| at > self.shell.now), "what is due was done");
            }
        }
        self.shell.now = self.shell.now.max(until);
        self.run_firmware();
    }

    /// Lets a core decide, and the model check its actions.
    fn drive(
        &mut self,
        s: usize,
        input: Input,
        decide: impl FnOnce(&mut Core, &mut Context<'_>),
    ) -> Vec<Action> {
        let ModelledSession { core, model } = &mut self.sessions[s];
        let mut credentials = None;
        let generate = || {
            let generated = generate_credentials(self.ended_by_ssrc.len() as u32, &mut self.rng);
            self.ended_by_ssrc.push(false);
            credentials.insert(generated).clone()
        };
        let ((), out) = self.shell.drive(core, generate, decide);
        let dial_kept = matches!(out[..], [Action::CallEnded(_), Action::GenerateCredentials, ..]);
        self.coverage.extend(dial_kept.then_some("dial kept"));
        for action in &out {
            self.trace.log(self.shell.elapsed_ms(), format_args!("[{s}]   {action:?}"));
            self.coverage.extend(coverage_point(action));
        }
        for ssrc in model.observe(self.shell.now, input, credentials, &out) {
            let ended = &mut self.ended_by_ssrc[ssrc as usize];
            assert!(!std::mem::replace(ended, true), "a call ends once");
        }
        out.iter().for_each(|action| self.send_to_firmware(s, action));
        out
    }

    /// Removes finished sessions, except the current one.
    fn remove_finished(&mut self) {
        let Some(current) = self.current.map(|current| self.sessions.remove(current)) else { return };
        self.sessions.retain(|session| !session.core.is_finished());
        self.sessions.push(current);
        self.current = Some(self.sessions.len() - 1);
    }

    fn check(&self) {
        for session in &self.sessions {
            session.model.check_state(self.shell.now, &session.core);
        }
    }

    fn log(&mut self, what: std::fmt::Arguments<'_>) {
        self.trace.log(self.shell.elapsed_ms(), what);
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}

/// Nothing in a grant is like in any other.
fn generate_credentials(ssrc: u32, rng: &mut Choices) -> CallCredentials {
    let mut key = [7; 16];
    key[..4].copy_from_slice(&ssrc.to_be_bytes());
    // So that a seed stands for the same turn of events as ever.
    rng.next();
    CallCredentials {
        ssrc,
        key,
        session_id: format!("own-{ssrc}").into(),
        udp_host: "192.0.2.1".into(),
        udp_port: 8884,
        allowed: !rng.percent(5),
    }
}

/// The name of this turn of events, if it has one.
fn coverage_point(action: &Action) -> Option<&'static str> {
    match action {
        Action::CallEnded(summary) => Some(summary.reason.label()),
        Action::SendDatagram(..) => Some("held sent"),
        Action::CloseDevice(CloseReason::KeepAlive) => Some("keep alive"),
        Action::Log(LogEvent::Redialled { .. }) => Some("redialled"),
        Action::Log(LogEvent::Connected { resumed: true }) => Some("resumed"),
        Action::Log(LogEvent::ConnectionLost { .. }) => Some("away"),
        Action::Log(LogEvent::NoServerHello(_)) => Some("no server hello"),
        Action::Log(LogEvent::HeldAudioDropped(_)) => Some("held dropped"),
        _ => None,
    }
}
