//! The whole gateway but its sockets: several devices, their chat servers and the network between them, which delays,
//! loses, doubles, reorders and resets. Servers crash, names do not resolve, the configuration changes, devices connect
//! again and call each other, and at times the gateway itself does not run for a while.

use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::proto::audio::{Cipher, HEADER, Header, MAX_PAYLOAD, ws_header};
use crate::proto::identity::Mac;
use crate::proto::mqtt::{Connect, Level, Packet, Publish};
use harness::{Granted, Link};

mod harness;
mod invariants;
mod operators;

const DEVICES: usize = 4;
const STEPS: usize = 400;
const URLS: [&str; 3] = ["ws://a/", "ws://b/", "ws://c/"];

/// What a run must come to, for all seeds together.
const MUST_REACH: [&str; 24] = [
    "asked",
    "away in a drain",
    "bridged",
    "busy",
    "crashed",
    "device_disconnected",
    "device_goodbye",
    "device_lost",
    "drained",
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
fn no_seed_breaks_an_invariant_of_the_whole() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("SIM_SEED") {
        Town::new(seed, true).run();
        return;
    }
    let seeds = number("SIM_SEEDS").unwrap_or(SEEDS);
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let reached = std::thread::scope(|scope| {
        let work = |first| {
            move || {
                let seeds = (first..seeds).step_by(workers as usize);
                seeds.flat_map(|seed| Town::new(seed, false).run()).collect::<BTreeSet<_>>()
            }
        };
        let threads: Vec<_> = (0..workers).map(|first| scope.spawn(work(first))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no seed fails")).collect::<BTreeSet<_>>()
    });
    if seeds >= SEEDS {
        let missed: Vec<_> = MUST_REACH.iter().filter(|what| !reached.contains(*what)).collect();
        assert!(missed.is_empty(), "a simulation that never reaches {missed:?} proves little");
    }
}

/// Something on its way through the network, or a name on its way through the resolver.
#[derive(Debug)]
enum Mail {
    /// Of the device's connection.
    Text(usize, String),
    Disconnect(usize),
    Lost(usize),
    /// Of anybody, to the UDP port.
    Datagram(u32, Vec<u8>),
    /// Of the chat server's connection with this number.
    Dialled(usize, u64, Result<(), &'static str>),
    Says(usize, u64, String),
    Audio(usize, u64, u64),
    Ends(usize, u64, Gone),
}

struct Town {
    seed: u64,
    rng: Choices,
    start: Instant,
    now: Instant,
    config: Config,
    servers: Servers,
    ids: RequestIds,
    bridges: Bridges,
    /// Every session there ever was.
    links: Vec<Link>,
    /// Which of them is known under a device's client id.
    known: [Option<usize>; DEVICES],
    calls: Vec<Granted>,
    mail: BTreeMap<(Instant, u64), Mail>,
    serial: u64,
    down: HashSet<String>,
    /// Keys that were told in a hello reply, and every counter block that was used with a key on the way down.
    told: HashSet<[u8; 16]>,
    /// What operators asked, of which session and since when.
    asked: BTreeMap<u64, (usize, Instant)>,
    /// The gateway drains: idle devices are gone by then.
    leave_at: Option<Instant>,
    sealed: HashSet<([u8; 16], [u8; HEADER])>,
    reached: BTreeSet<&'static str>,
    trail: Option<Vec<String>>,
}

impl Drop for Town {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in self.trail.iter().flat_map(|trail| &trail[trail.len().saturating_sub(80)..]) {
                eprintln!("{line}");
            }
            eprintln!("replay with: SIM_SEED={} cargo test sim::town", self.seed);
        }
    }
}

impl Town {
    fn new(seed: u64, trail: bool) -> Self {
        let now = Instant::now();
        let mut config = Config::default();
        config.websocket.production = servers(&URLS);
        config.mcp.enabled = seed.is_multiple_of(4);
        Self {
            seed,
            rng: Choices::Seed(seed ^ 0x746f_776e),
            start: now,
            now,
            config,
            servers: Servers::default(),
            ids: RequestIds::new(),
            bridges: Bridges::default(),
            links: Vec::new(),
            known: [None; DEVICES],
            calls: Vec::new(),
            mail: BTreeMap::new(),
            serial: 0,
            down: HashSet::new(),
            told: HashSet::new(),
            asked: BTreeMap::new(),
            leave_at: None,
            sealed: HashSet::new(),
            reached: BTreeSet::new(),
            trail: trail.then(Vec::new),
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
        }
        if self.rng.percent(20) {
            return self.shut_down();
        }
        // Everybody goes away, and time sorts out the rest.
        for device in 0..DEVICES {
            if let Some(s) = self.known[device].filter(|s| self.links[*s].connected) {
                self.drive(s, Core::connection_lost);
            }
        }
        for _ in 0..200 {
            self.advance(1_000);
            self.check();
        }
        assert_eq!(self.bridges.deadline(), None, "nobody waits for anybody");
        self.all_is_over()
    }

    fn step(&mut self) {
        let device = self.rng.below(DEVICES as u64) as usize;
        match self.rng.below(100) {
            0..35 => self.device_acts(device),
            35..55 => self.server_talks(),
            55..63 => self.device_call(device),
            63..65 => self.crash(),
            65..67 => self.reload(),
            67..69 => self.operator_acts(device),
            69..71 => {
                // The process is stopped: what comes meanwhile is read when it goes on, before any alarm rings.
                let ms = self.rng.pick(&[2_000, 10_000, 40_000]);
                self.note(format_args!("does not run for {ms} ms"));
                self.reached.insert("not run");
                self.now += Duration::from_millis(ms);
                self.advance(0);
            }
            _ => {
                let ms = self.rng.pick(&[1, 20, 60, 60, 300, 1_000, 3_000]);
                let ms = if self.rng.percent(1) { 70_000 } else { ms };
                self.advance(ms);
            }
        }
    }

    /// Time passes: mail arrives, then what is due is done.
    fn advance(&mut self, ms: u64) {
        let until = self.now + Duration::from_millis(ms);
        loop {
            let arrives = self.mail.first_key_value().map(|((at, _), _)| *at);
            let due = self.links.iter().filter_map(|link| link.core.deadline());
            let due = due.chain(self.bridges.deadline()).min();
            let Some(next) = arrives.into_iter().chain(due).min().filter(|next| *next <= until) else {
                break;
            };
            let late = self.rng.pick(&[0, 0, 1, LATE]);
            self.now = self.now.max(next + Duration::from_millis(late));
            while let Some(entry) = self.mail.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let mail = entry.remove();
                self.deliver(mail);
            }
            // What is due may make another session's call end, and that one's time to go is over already.
            for _ in 0..2 {
                (0..self.links.len()).for_each(|s| self.drive(s, Core::timeout));
                let mut effects = Vec::new();
                self.bridges.timeout(self.now, &mut effects);
                self.bring_about(effects);
            }
            let due =
                self.links.iter().filter_map(|link| link.core.deadline()).chain(self.bridges.deadline());
            assert!(due.min().is_none_or(|at| at > self.now), "no timer in the past");
        }
        self.now = self.now.max(until);
    }

    /// Hands something to the network.
    fn post(&mut self, after: Instant, mail: Mail) -> Instant {
        let delay = self.rng.pick(&[0, 1, 5, 20, 20, 80, 300, 1_500]);
        let arrives = after.max(self.now + Duration::from_millis(delay));
        self.serial += 1;
        self.mail.insert((arrives, self.serial), mail);
        arrives
    }

    /// A byte stream keeps its order, and what is lost of it comes later.
    fn post_from_device(&mut self, s: usize, mail: Mail) {
        let after = self.links[s].uplink;
        self.links[s].uplink = self.post(after, mail);
    }

    fn post_from_server(&mut self, s: usize, mail: Mail) {
        let Some(after) = self.links[s].ws.as_ref().map(|ws| ws.arrives) else { return };
        let arrives = self.post(after, mail);
        if let Some(ws) = &mut self.links[s].ws {
            ws.arrives = arrives;
        }
    }

    // ----- devices ------------------------------------------------------------------------------------------------

    fn device_acts(&mut self, device: usize) {
        let Some(s) = self.known[device].filter(|s| self.links[*s].connected) else {
            if self.leave_at.is_none() {
                self.connect(device);
            }
            return;
        };
        match self.rng.below(100) {
            0..15 => self.say(s, r#"{"type":"hello","version":3,"transport":"udp"}"#.to_owned()),
            15..25 => self.say(s, r#"{"type":"listen","state":"start"}"#.to_owned()),
            25..30 => self.say(s, r#"{"type":"goodbye"}"#.to_owned()),
            30..32 => self.say(s, r#"{"type":"abort"}"#.to_owned()),
            32..34 => self.post_from_device(s, Mail::Disconnect(s)),
            34..38 => self.post_from_device(s, Mail::Lost(s)),
            // The older connection is dead, but nobody knows.
            38..42 if self.leave_at.is_none() => self.connect(device),
            42..43 => self.drive(s, Core::too_much_kept),
            43..44 if self.leave_at.is_none() => self.say_nothing(device),
            _ => self.speak(s),
        }
    }

    /// A connection that never sends its CONNECT.
    fn say_nothing(&mut self, device: usize) {
        let core = Core::new([192, 0, 2, device as u8].into(), self.now);
        self.links.push(Link::new(core, device, self.now));
    }

    fn say(&mut self, s: usize, text: String) {
        self.post_from_device(s, Mail::Text(s, text));
    }

    fn speak(&mut self, s: usize) {
        let device = self.links[s].device;
        let Some(ssrc) = self.calls.iter().rposition(|call| call.device == device && call.id.is_some())
        else {
            return;
        };
        for _ in 0..1 + self.rng.below(4) {
            let call = &mut self.calls[ssrc];
            call.spoken += 1;
            let payload = [&[0x08][..], &call.spoken.to_be_bytes()].concat();
            let (len, sequence) = (payload.len() as u16, call.spoken);
            let header = Header { flags: 0, len, ssrc: ssrc as u32, timestamp: sequence * 60, sequence };
            let mut datagram = [&header.bytes()[..], &payload].concat();
            Cipher::new(&call.key).apply(&header.bytes(), &mut datagram[HEADER..]);
            if self.rng.percent(5) {
                self.reached.insert("lost");
                continue;
            }
            for _ in 0..1 + self.rng.below(20) / 19 {
                // Each takes its own time: later ones overtake.
                self.post(self.now, Mail::Datagram(ssrc as u32, datagram.clone()));
            }
        }
    }

    fn device_call(&mut self, caller: usize) {
        let other = self.rng.below(DEVICES as u64) as usize;
        let mut effects = Vec::new();
        match self.rng.below(10) {
            0..5 => {
                let parties = [caller, other].map(|device| (mac(device), self.presence(mac(device))));
                self.bridges.request(parties[0], parties[1], "Ann", self.now, &mut effects);
            }
            5..8 => {
                let mut bridges = std::mem::take(&mut self.bridges);
                let called = (mac(other), self.presence(mac(other)));
                bridges.accept(called, |caller| self.presence(caller), &mut effects);
                self.bridges = bridges;
            }
            _ => drop(self.bridges.hang_up(mac(caller), &mut effects)),
        }
        self.note(format_args!("{caller} and {other}: {effects:?}"));
        self.bring_about(effects);
    }

    // ----- chat servers -------------------------------------------------------------------------------------------

    fn server_talks(&mut self) {
        let open: Vec<_> = (0..self.links.len())
            .filter_map(|s| self.links[s].ws.as_ref().filter(|ws| ws.open).map(|ws| (s, ws.number)))
            .collect();
        if open.is_empty() {
            return;
        }
        let (s, number) = self.rng.pick(&open);
        let mail = match self.rng.below(100) {
            0..15 => Mail::Says(s, number, r#"{"type":"tts","state":"start"}"#.to_owned()),
            15..30 => Mail::Says(s, number, r#"{"type":"tts","state":"stop"}"#.to_owned()),
            30..93 => {
                self.serial += 1;
                Mail::Audio(s, number, self.serial)
            }
            93..95 => Mail::Says(s, number, r#"{"type":"goodbye"}"#.to_owned()),
            95..97 => Mail::Ends(s, number, Gone::Closed(Some(1000))),
            _ => Mail::Ends(s, number, Gone::Closed(Some(1011))),
        };
        self.post_from_server(s, mail);
    }

    /// A chat server dies with all its connections, or is back.
    fn crash(&mut self) {
        let url = self.rng.pick(&URLS).to_owned();
        if self.down.remove(&url) {
            return self.note(format_args!("{url} is back"));
        }
        self.note(format_args!("{url} crashes"));
        for s in 0..self.links.len() {
            let Some(number) = self.links[s].ws.as_ref().filter(|ws| ws.url == url).map(|ws| ws.number)
            else {
                continue;
            };
            let gone = Gone::Failed(Failure { stage: "live", why: "reset".to_owned() });
            // It reaches us at once, or its system says nothing and pings must tell.
            if self.rng.percent(80) {
                self.post_from_server(s, Mail::Ends(s, number, gone));
            }
        }
        self.reached.insert("crashed");
        self.down.insert(url);
    }

    fn reload(&mut self) {
        let websocket = &mut self.config.websocket;
        match self.rng.below(5) {
            0 => websocket.production = servers(&URLS[..1 + self.rng.below(3) as usize]),
            1 => websocket.production = servers(&URLS[1..]),
            2 => self.config.mqtt.resume_grace = Duration::from_secs(self.rng.pick(&[0, 20, 20])),
            3 => websocket.ping_interval = Duration::from_secs(self.rng.pick(&[5, 20])),
            _ => websocket.reconnect.give_up_after = Duration::from_secs(self.rng.pick(&[3, 110])),
        }
        self.reached.insert("reloaded");
        self.note(format_args!("the configuration changes"));
        let production = &self.config.websocket.production;
        for ws in self.links.iter_mut().filter_map(|link| link.ws.as_mut()) {
            ws.strict &= production.iter().any(|server| server.url != ws.url);
        }
        (0..self.links.len()).for_each(|s| self.drive(s, Core::timeout));
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        if let Some(trail) = &mut self.trail {
            trail.push(format!("{:>8} {what}", (self.now - self.start).as_millis()));
        }
    }
}

fn mac(device: usize) -> Mac {
    Mac::from([2, 0, 0, 0, 0, device as u8])
}

fn connect(client_id: &str) -> Packet<'_> {
    let (level, clean_session) = (Level::V311, true);
    Packet::Connect(Connect {
        level,
        client_id,
        clean_session,
        keep_alive: 0,
        will: None,
        user_name: None,
        password: None,
    })
}

/// What a chat server sends for the frame with this number.
fn frame(number: u64) -> Vec<u8> {
    let payload = [&[0x08][..], &number.to_be_bytes()].concat();
    [&ws_header(number as u32, payload.len())[..], &payload].concat()
}
