//! A seeded simulation: a device that does whatever devices do, servers that do whatever servers do, and a shadow that
//! knows what must come of it.
//!
//! `SIM_SEEDS=5000 cargo test sim` runs more seeds; `SIM_SEED=17 cargo test sim` replays one. A fuzzer's bytes may stand in
//! for the seed: [`play`].

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::*;
use crate::config::{Config, PeerPolicy, Server};
use model::{Input, Shadow, Ws};

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
const MANY: [usize; 2] = [70, 140];
/// Bytes of a long text.
const LONG: usize = 6_000;
/// How late a timer may expire here, in milliseconds: more than a tick of the shell's wheel (8 ms), as after a long turn.
const LATE: u64 = 100;

/// Plays a story whose every choice is taken from `script`; when that is used up, everybody goes away.
pub(crate) fn play(script: &[u8]) {
    let mut world = World::new(Choices::Script { bytes: script.to_vec(), used: 0 });
    // A fuzzer has no time for it.
    world.trail = cfg!(test).then(Vec::new);
    world.run();
}

#[test]
fn no_seed_breaks_an_invariant() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("SIM_SEED") {
        let mut world = World::new(Choices::Seed(seed));
        world.trail = Some(Vec::new());
        world.run();
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let reached = std::thread::scope(|scope| {
        let work = |first| {
            move || {
                (first..seeds)
                    .step_by(workers as usize)
                    .flat_map(|seed| World::new(Choices::Seed(seed)).run())
            }
        };
        let threads: Vec<_> =
            (0..workers).map(|first| scope.spawn(move || work(first)().collect::<BTreeSet<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no seed fails")).collect::<BTreeSet<_>>()
    });
    if seeds >= SEEDS {
        let missed: Vec<_> = MUST_REACH.iter().filter(|what| !reached.contains(*what)).collect();
        assert!(missed.is_empty(), "a simulation that never reaches {missed:?} proves little");
    }
}

/// Ends, and turns on the way, without which a run would be too tame.
const MUST_REACH: [&str; 21] = [
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
    fn is_over(&self) -> bool {
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
struct Session {
    core: Core,
    shadow: Shadow,
}

/// One device, its connections one after the other, and all its servers.
struct World {
    seed: Option<u64>,
    rng: Choices,
    start: Instant,
    now: Instant,
    config: Config,
    servers: Servers,
    ids: RequestIds,
    sessions: Vec<Session>,
    /// The session that is known under the device's client id.
    current: Option<usize>,
    /// Every grant ever minted, and whether its call has ended.
    minted: Vec<bool>,
    /// Numbers every text and frame.
    serial: u64,
    /// What happened, step by step, when a seed is replayed.
    trail: Option<Vec<String>>,
    /// What happened, for the sake of [`MUST_REACH`].
    reached: BTreeSet<&'static str>,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in self.trail.iter().flat_map(|trail| &trail[trail.len().saturating_sub(60)..]) {
                eprintln!("{line}");
            }
            if let Some(seed) = self.seed {
                eprintln!("replay with: SIM_SEED={seed} cargo test sim");
            }
        }
    }
}

impl World {
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
            servers: Servers::default(),
            ids: RequestIds::new(),
            sessions: Vec::new(),
            current: None,
            minted: Vec::new(),
            serial: 0,
            trail: None,
            reached: BTreeSet::new(),
        }
    }

    fn run(mut self) -> BTreeSet<&'static str> {
        for _ in 0..STEPS {
            if self.rng.is_over() {
                break;
            }
            self.step();
            self.check();
            self.bury();
        }
        // Everybody goes away, and time sorts out the rest.
        if let Some(current) = self.current {
            self.drive(current, Input::Other, Core::connection_lost);
        }
        for _ in 0..60 {
            self.advance(1_000);
            self.check();
        }
        for session in &self.sessions {
            assert!(session.core.is_over(), "no call is left without an owner");
        }
        assert!(self.minted.iter().all(|ended| *ended), "every call that was granted has ended");
        std::mem::take(&mut self.reached)
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..30 => self.device_acts(),
            30..70 => self.server_acts(),
            70..74 => self.reconfigure(),
            74..76 => self.false_alarm(),
            _ => {
                let ms = self.rng.pick(&[1, 10, 60, 60, 60, 300, 1_000, 2_500, 5_000]);
                let ms = if self.rng.percent(1) { 100_000 } else { ms };
                self.note(format_args!("{ms} ms pass"));
                self.advance(ms);
            }
        }
    }

    fn reconfigure(&mut self) {
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
        self.note(format_args!("the configuration changes"));
        for s in 0..self.sessions.len() {
            self.drive(s, Input::Other, Core::timeout);
        }
    }

    /// Waking a core for nothing, twice, is harmless.
    fn false_alarm(&mut self) {
        for s in (0..self.sessions.len()).chain(0..self.sessions.len()) {
            self.drive(s, Input::Other, Core::timeout);
        }
    }

    /// Time passes; alarms ring, now and then a little late.
    fn advance(&mut self, ms: u64) {
        let until = self.now + Duration::from_millis(ms);
        loop {
            let due = self.sessions.iter().filter_map(|session| session.core.deadline()).min();
            let Some(due) = due.filter(|due| *due <= until) else { break };
            let late = Duration::from_millis(self.rng.pick(&[0, 0, 1, LATE]));
            self.now = self.now.max(due + late);
            for s in 0..self.sessions.len() {
                self.drive(s, Input::Other, Core::timeout);
                let next = self.sessions[s].core.deadline();
                assert!(next.is_none_or(|at| at > self.now), "what is due was done");
            }
        }
        self.now = self.now.max(until);
    }

    /// Lets a core decide, and a shadow watch what comes of it.
    fn drive(&mut self, s: usize, input: Input, decide: impl FnOnce(&mut Core, &mut Cx<'_>)) -> Vec<Action> {
        let Session { core, shadow } = &mut self.sessions[s];
        let mut out = Vec::new();
        let mut cx = Cx {
            now: self.now,
            config: &self.config,
            servers: &mut self.servers,
            ids: &self.ids,
            out: &mut out,
        };
        decide(core, &mut cx);
        let mut grant = None;
        if cx.out.last() == Some(&Action::Grant) {
            let minted = mint(self.minted.len() as u32, &mut self.rng);
            self.minted.push(false);
            core.granted(minted.clone(), &mut cx);
            grant = Some(minted);
        }
        for action in &out {
            if let Some(trail) = &mut self.trail {
                let at = (self.now - self.start).as_millis();
                trail.push(format!("{at:>8} [{s}]   {action:?}"));
            }
            self.reached.extend(turn(action));
        }
        for ssrc in shadow.watch(self.now, input, grant, &out) {
            let ended = &mut self.minted[ssrc as usize];
            assert!(!std::mem::replace(ended, true), "a call ends once");
        }
        out
    }

    /// Forgets sessions that are over, but for the one that is still known under the client id.
    fn bury(&mut self) {
        let Some(current) = self.current.map(|current| self.sessions.remove(current)) else { return };
        self.sessions.retain(|session| !session.core.is_over());
        self.sessions.push(current);
        self.current = Some(self.sessions.len() - 1);
    }

    fn check(&self) {
        for session in &self.sessions {
            session.shadow.check(self.now, &session.core);
        }
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        if let Some(trail) = &mut self.trail {
            let at = (self.now - self.start).as_millis();
            trail.push(format!("{at:>8} {what}"));
        }
    }

    fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}

/// Nothing in a grant is like in any other.
fn mint(ssrc: u32, rng: &mut Choices) -> Grant {
    let mut key = [7; 16];
    key[..4].copy_from_slice(&ssrc.to_be_bytes());
    Grant {
        ssrc,
        key,
        session_id: format!("own-{ssrc}").into(),
        seed: rng.next(),
        udp_host: "192.0.2.1".into(),
        udp_port: 8884,
        allowed: !rng.percent(5),
    }
}

/// The name of this turn of events, if it has one.
fn turn(action: &Action) -> Option<&'static str> {
    match action {
        Action::Ended(summary) => Some(summary.reason.label()),
        Action::Datagram(..) => Some("held sent"),
        Action::Close(Reason::KeepAlive) => Some("keep alive"),
        Action::Note(Note::Redialled { .. }) => Some("redialled"),
        Action::Note(Note::Connected { resumed: true }) => Some("resumed"),
        Action::Note(Note::Away(_)) => Some("away"),
        Action::Note(Note::NoServerHello(_)) => Some("no server hello"),
        Action::Note(Note::HeldDropped(_)) => Some("held dropped"),
        _ => None,
    }
}

fn servers(urls: &[&str]) -> Vec<std::sync::Arc<Server>> {
    urls.iter().map(|url| std::sync::Arc::new(url.parse().unwrap())).collect()
}
