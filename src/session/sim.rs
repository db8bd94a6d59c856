//! A seeded simulation: a device that does whatever devices do, servers that do whatever servers do, and a shadow that
//! knows what must come of it.
//!
//! `SIM_SEEDS=5000 cargo test sim` runs more seeds; `SIM_SEED=17 cargo test sim` replays one. A fuzzer's bytes may stand in
//! for the seed: [`run_script`].

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::*;
use crate::config::{ChatServerConfig, Config, PeerPolicy};
use model::{Input, Model, WebSocketState};

mod audio_model;
mod device;
mod model;
#[cfg(test)]
mod network;
mod server;

const SEEDS: u64 = 256;
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
    let mut simulation = Simulation::new(Choices::Script { bytes: script.to_vec(), used: 0 });
    // A fuzzer has no time for it.
    simulation.trace = cfg!(test).then(Vec::new);
    simulation.run();
}

#[test]
fn every_seed_keeps_the_invariants() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("SIM_SEED") {
        let mut simulation = Simulation::new(Choices::Seed(seed));
        simulation.trace = Some(Vec::new());
        simulation.run();
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let reached = std::thread::scope(|scope| {
        let work = |first| {
            move || {
                (first..seeds)
                    .step_by(workers as usize)
                    .flat_map(|seed| Simulation::new(Choices::Seed(seed)).run())
            }
        };
        let threads: Vec<_> =
            (0..workers).map(|first| scope.spawn(move || work(first)().collect::<BTreeSet<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no seed fails")).collect::<BTreeSet<_>>()
    });
    if seeds >= SEEDS {
        let missed: Vec<_> = REQUIRED_COVERAGE.iter().filter(|what| !reached.contains(*what)).collect();
        assert!(missed.is_empty(), "a simulation that never reaches {missed:?} proves little");
    }
}

/// Ends, and turns on the way, without which a run would be too tame.
const REQUIRED_COVERAGE: [&str; 21] = [
    "device_goodbye",
    "device_udp_timeout",
    "device_disconnected",
    "device_lost",
    "device_error",
    "replaced",
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
    "last words",
    "keep alive",
];

/// Where the choices of a run come from.
enum Choices {
    /// splitmix64.
    Seed(u64),
    /// A byte a choice, as long as there are some.
    Script { bytes: Vec<u8>, used: usize },
}

impl Choices {
    fn next(&mut self) -> u64 {
        match self {
            Self::Seed(state) => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^ (z >> 31)
            }
            Self::Script { bytes, used } => {
                *used += 1;
                bytes.get(*used - 1).copied().unwrap_or_default().into()
            }
        }
    }

    /// Whether a script is used up.
    fn is_exhausted(&self) -> bool {
        matches!(self, Self::Script { bytes, used } if *used >= bytes.len())
    }

    /// Uniform below `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// One connection of the device, or what is left of it, with what the shell holds for it.
struct ModelledSession {
    core: Core,
    model: Model,
}

/// One device, its connections one after the other, and all its servers.
struct Simulation {
    seed: Option<u64>,
    rng: Choices,
    start: Instant,
    now: Instant,
    config: Config,
    servers: ServerHealth,
    ids: RequestIds,
    sessions: Vec<ModelledSession>,
    /// The session that is known under the device's client id.
    current: Option<usize>,
    /// Every grant ever minted, and whether its call has ended.
    ended_by_ssrc: Vec<bool>,
    /// Numbers every text and frame.
    serial: u64,
    /// What happened, step by step, when a seed is replayed.
    trace: Option<Vec<String>>,
    /// What happened, for the sake of [`REQUIRED_COVERAGE`].
    coverage: BTreeSet<&'static str>,
}

impl Drop for Simulation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in self.trace.iter().flat_map(|trail| &trail[trail.len().saturating_sub(60)..]) {
                eprintln!("{line}");
            }
            if let Some(seed) = self.seed {
                eprintln!("replay with: SIM_SEED={seed} cargo test sim");
            }
        }
    }
}

impl Simulation {
    fn new(mut rng: Choices) -> Self {
        let now = Instant::now();
        let mut config = Config::default();
        config.websocket.production = servers(&["ws://a/", "ws://raw/", "ws://c/"]);
        let seed = if let Choices::Seed(seed) = rng { Some(seed) } else { None };
        config.mcp.enabled = seed.unwrap_or_else(|| rng.next()).is_multiple_of(4);
        Self {
            seed,
            rng,
            start: now,
            now,
            config,
            servers: ServerHealth::default(),
            ids: RequestIds::new(),
            sessions: Vec::new(),
            current: None,
            ended_by_ssrc: Vec::new(),
            serial: 0,
            trace: None,
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
        // Everybody goes away, and time sorts out the rest.
        if let Some(current) = self.current {
            self.drive(current, Input::Other, Core::on_connection_lost);
        }
        for _ in 0..60 {
            self.advance(1_000);
            self.check();
        }
        for session in &self.sessions {
            assert!(session.core.is_finished(), "no call is left without an owner");
        }
        assert!(self.ended_by_ssrc.iter().all(|ended| *ended), "every call that was granted has ended");
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
        let websocket = &mut self.config.websocket;
        match self.rng.below(8) {
            0 => {
                websocket.production = servers(self.rng.pick(&[&["ws://a/"][..], &["ws://c/", "ws://raw/"]]))
            }
            1 => websocket.production = servers(&["ws://a/", "ws://raw/", "ws://c/"]),
            2 => websocket.send_goodbye ^= true,
            3 => websocket.call_idle = Duration::from_secs(self.rng.pick(&[0, 20, 300])),
            4 => websocket.reconnect.give_up_after = Duration::from_secs(self.rng.pick(&[0, 5, 110])),
            5 => websocket.ping_interval = Duration::from_secs(self.rng.pick(&[0, 5, 20])),
            6 => self.config.mqtt.resume_grace = Duration::from_secs(self.rng.pick(&[0, 20, 20])),
            _ => self.config.udp.peer_policy = self.rng.pick(&[PeerPolicy::Adaptive, PeerPolicy::Strict]),
        }
        self.log(format_args!("the configuration changes"));
        for s in 0..self.sessions.len() {
            self.drive(s, Input::Other, Core::on_timeout);
        }
    }

    /// Waking a core for nothing, twice, is harmless.
    fn spurious_timeouts(&mut self) {
        for s in (0..self.sessions.len()).chain(0..self.sessions.len()) {
            self.drive(s, Input::Other, Core::on_timeout);
        }
    }

    /// Time passes; alarms ring, now and then a little late.
    fn advance(&mut self, ms: u64) {
        let until = self.now + Duration::from_millis(ms);
        loop {
            let due = self.sessions.iter().filter_map(|session| session.core.deadline()).min();
            let Some(due) = due.filter(|due| *due <= until) else { break };
            let late = Duration::from_millis(self.rng.pick(&[0, 0, 1, MAX_TIMER_DELAY_MS]));
            self.now = self.now.max(due + late);
            for s in 0..self.sessions.len() {
                self.drive(s, Input::Other, Core::on_timeout);
                let next = self.sessions[s].core.deadline();
                assert!(next.is_none_or(|at| at > self.now), "what is due was done");
            }
        }
        self.now = self.now.max(until);
    }

    /// Lets a core decide, and a shadow watch what comes of it.
    fn drive(
        &mut self,
        s: usize,
        input: Input,
        decide: impl FnOnce(&mut Core, &mut Context<'_>),
    ) -> Vec<Action> {
        let ModelledSession { core, model } = &mut self.sessions[s];
        let mut out = Vec::new();
        let mut cx = Context {
            now: self.now,
            config: &self.config,
            servers: &mut self.servers,
            ids: &self.ids,
            out: &mut out,
        };
        decide(core, &mut cx);
        let mut credentials = None;
        if cx.out.last() == Some(&Action::GenerateCredentials) {
            let generated = generate_credentials(self.ended_by_ssrc.len() as u32, &mut self.rng);
            self.ended_by_ssrc.push(false);
            core.on_credentials(generated.clone(), &mut cx);
            credentials = Some(generated);
        }
        for action in &out {
            if let Some(trail) = &mut self.trace {
                let at = (self.now - self.start).as_millis();
                trail.push(format!("{at:>8} [{s}]   {action:?}"));
            }
            self.coverage.extend(coverage_point(action));
        }
        for ssrc in model.observe(self.now, input, credentials, &out) {
            let ended = &mut self.ended_by_ssrc[ssrc as usize];
            assert!(!std::mem::replace(ended, true), "a call ends once");
        }
        out
    }

    /// Forgets sessions that are over, but for the one that is still known under the client id.
    fn remove_finished(&mut self) {
        let Some(current) = self.current.map(|current| self.sessions.remove(current)) else { return };
        self.sessions.retain(|session| !session.core.is_finished());
        self.sessions.push(current);
        self.current = Some(self.sessions.len() - 1);
    }

    fn check(&self) {
        for session in &self.sessions {
            session.model.check_state(self.now, &session.core);
        }
    }

    fn log(&mut self, what: std::fmt::Arguments<'_>) {
        if let Some(trail) = &mut self.trace {
            let at = (self.now - self.start).as_millis();
            trail.push(format!("{at:>8} {what}"));
        }
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
    CallCredentials {
        ssrc,
        key,
        session_id: format!("own-{ssrc}").into(),
        jitter_seed: rng.next(),
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
        Action::Log(LogEvent::ConnectionLost(_)) => Some("away"),
        Action::Log(LogEvent::NoServerHello(_)) => Some("no server hello"),
        Action::Log(LogEvent::HeldAudioDropped(_)) => Some("held dropped"),
        _ => None,
    }
}

fn servers(urls: &[&str]) -> Vec<std::sync::Arc<ChatServerConfig>> {
    urls.iter().map(|url| std::sync::Arc::new(url.parse().unwrap())).collect()
}
