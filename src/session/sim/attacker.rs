//! A simulated attacker on the audio of one call. It sees every datagram in clear and can send any, from addresses of its own, from
//! other ports of the device's IP, and as if from the device's own address. It has no key, and it cannot hold packets of others back
//! or be faster than them.
//!
//! The laws:
//!
//! 1. The chat server hears the device only. The exception: what is sent as if from the known source may be heard, since nothing
//!    proves who sent it; each of these packets is heard at most once, and random. So is the first packet at the MQTT peer's IP
//!    when no source is known.
//! 2. What an attacker repeats from elsewhere is heard at most once, when eight packets of the device have come in a row.
//! 3. The device has its call within 2 s of sending: it gets the downlink, and it is heard. The exception: about one in 80 of the
//!    packets that are forged as if from the known source has the device's Opus configuration, and may end the device's run on
//!    another path, or cost it a few packets. Until eight packets of the device came in a row, each of them may.
//!
//! Two things are left out, since no rule on addresses and sequences can tell them from the device: fresh packets of the device that
//! are repeated as if from an address that it has left, or from the first source at the MQTT peer's IP, and those that are repeated
//! from anywhere while its audio comes from another port than before, or does not come from the address of its MQTT connection.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::proto::audio::{HEADER_LEN, UdpHeader, opus_config};
use crate::session::harness::{call_credentials, decrypt_datagram, encrypt_datagram, frame_with_header};

const TICKS: u32 = 400;
const FRAME_MS: u64 = 60;
const KEY: [u8; 16] = *b"not the attacker";
const SSRC: u32 = 7;
const HOME_IP: [u8; 4] = [192, 0, 2, 7];
const ATTACKER_IP: [u8; 4] = [203, 0, 113, 9];

const REQUIRED_COVERAGE: [&str; 9] =
    ["rebound", "roamed", "outage", "paused", "lucky", "heard forged", "copy taken", "taken back", "strict"];

#[test]
fn an_attacker_without_the_key_neither_speaks_nor_keeps_a_call() {
    choices::run_seeds(&REQUIRED_COVERAGE, |seed, trace| AttackedCall::new(seed, trace).run());
}

struct AttackedCall {
    rng: Choices,
    shell: TestShell,
    core: Core,
    /// Where the device's packets come from, and where they came from before, with the number it had sent by then.
    device: SocketAddr,
    left: Vec<(SocketAddr, usize)>,
    /// The device's present address has been the known source.
    was_known: bool,
    /// Every datagram of the device, and whether it reached the gateway.
    sent: Vec<Vec<u8>>,
    downlink: Vec<Vec<u8>>,
    heard: HashSet<Vec<u8>>,
    /// The device neither sends nor is heard for so many ticks.
    paused: u32,
    lost: u32,
    /// The attacker repeats each packet of the device from this address.
    relay: Option<SocketAddr>,
    /// When the device's MQTT connection comes from its new address.
    reconnects_in: Option<u32>,
    /// The device must have its call from then on.
    due: Instant,
    /// When the device was last heard, and how often in a row, up to eight times: its Opus configuration is known then.
    last_heard: Instant,
    heard_in_a_row: u8,
    coverage: BTreeSet<&'static str>,
    trace: Trace,
}

impl AttackedCall {
    fn new(seed: u64, trace: bool) -> Self {
        let mut config = Config::default();
        config.websocket.production = servers(&["ws://a/"]);
        config.mcp.enabled = false;
        let mut rng = Choices::Seed(seed ^ 0x6174_7461);
        let strict = rng.percent(25);
        if strict {
            config.udp.peer_policy = PeerPolicy::Strict;
        }
        let shell = TestShell::new(config);
        let mut call = Self {
            core: Core::new(HOME_IP.into(), shell.now),
            device: (HOME_IP, 4_000).into(),
            left: Vec::new(),
            was_known: false,
            sent: Vec::new(),
            downlink: Vec::new(),
            heard: HashSet::new(),
            paused: rng.below(20) as u32,
            lost: 0,
            relay: None,
            reconnects_in: None,
            due: shell.now,
            last_heard: shell.now,
            heard_in_a_row: 0,
            coverage: BTreeSet::from_iter(strict.then_some("strict")),
            trace: Trace::new(trace, Some(format!("SIM_SEED={seed} cargo test sim::attacker"))),
            rng,
            shell,
        };
        call.drive(|core, cx| core.on_packet(connect_packet(ID, 0), cx));
        let hello = publish_packet(br#"{"type":"hello","version":3,"transport":"udp"}"#);
        call.drive(|core, cx| core.on_packet(hello, cx));
        call.core.on_dial_stage(SetupStage::Connect, call.shell.now);
        call.drive(Core::on_backend_open);
        call.drive(|core, cx| core.on_backend_text(r#"{"type":"hello"}"#, cx));
        call.restart_clock(0);
        call
    }

    fn drive(&mut self, decide: impl FnOnce(&mut Core, &mut Context<'_>)) {
        self.shell.drive(&mut self.core, || call_credentials(SSRC, KEY), decide);
    }

    fn run(mut self) -> BTreeSet<&'static str> {
        for _ in 0..TICKS {
            let sent = self.sent.len();
            self.device_tick();
            if let Some(relay) = self.relay.filter(|_| self.sent.len() > sent) {
                let frames = self.deliver(relay, sent);
                for frame in frames {
                    self.coverage.insert("copy taken");
                    assert!(self.heard.insert(frame) || self.heard_in_a_row < 8, "heard before");
                }
                self.relay.take_if(|_| self.rng.percent(1));
            }
            if self.rng.percent(3) {
                self.repeat_run();
            }
            for _ in 0..6 {
                self.shell.now += Duration::from_millis(FRAME_MS / 6);
                if self.rng.percent(40) {
                    self.attack();
                }
            }
            self.send_downlink();
            let foreign = self.known_source().is_some_and(|known| known.ip() == IpAddr::from(ATTACKER_IP));
            let strict = self.shell.config.udp.peer_policy == PeerPolicy::Strict;
            assert!(!(foreign && strict), "no other IP with strict");
        }
        std::mem::take(&mut self.coverage)
    }

    // ----- the device ---------------------------------------------------------------------------------------------

    fn device_tick(&mut self) {
        if let Some(ticks) = &mut self.reconnects_in {
            *ticks -= 1;
            if *ticks == 0 {
                self.reconnects_in = None;
                let newer = self.shell.connect(self.device.ip(), connect_packet(ID, 0));
                self.drive(|core, cx| core.take_over(newer, cx));
                self.restart_clock(0);
            }
        }
        if self.paused == 0 && self.lost == 0 && self.reconnects_in.is_none() {
            match self.rng.below(250) {
                0 => (self.paused, _) = (self.rng.below(80) as u32, self.coverage.insert("paused")),
                1 => {
                    self.lost = 1 + self.rng.below(100) as u32;
                    let relays = self.rng.percent(50) && self.known_source() == Some(self.device);
                    self.relay = relays.then(|| (ATTACKER_IP, 9_000).into());
                    self.coverage.insert("outage");
                }
                2 => {
                    self.coverage.insert("rebound");
                    self.leave(self.device.ip());
                }
                3 => {
                    self.coverage.insert("roamed");
                    let ip = [192, 0, 2, 8 + self.rng.below(50) as u8];
                    self.leave(ip.into());
                    self.reconnects_in = Some(1 + self.rng.below(60) as u32);
                }
                _ => {}
            }
        }
        if self.paused > 0 {
            self.paused -= 1;
            return self.restart_clock(0);
        }
        let sequence = self.sent.len() as u32 + 1;
        let payload = [&[0x58][..], &sequence.to_be_bytes(), &[self.rng.next() as u8; 20]].concat();
        self.sent.push(encrypt_datagram(&KEY, SSRC, sequence, 0, &payload));
        if self.lost > 0 {
            self.lost -= 1;
            return self.restart_clock(0);
        }
        let from = self.device;
        self.log(format_args!("the device sends {sequence} from {from}"));
        let known = self.known_source();
        let frames = self.deliver(self.device, sequence as usize - 1);
        self.was_known |= self.known_source() == Some(self.device);
        if frames.iter().any(|frame| frame[HEADER_LEN..] == payload) {
            self.last_heard = self.shell.now;
            self.heard_in_a_row = (self.heard_in_a_row + 1).min(8);
        }
        let moved = known.is_some_and(|known| known.ip() == IpAddr::from(ATTACKER_IP));
        if moved && self.known_source() == Some(self.device) {
            self.coverage.insert("taken back");
            // What it says again is not what somebody repeats.
            self.heard.clear();
        }
        self.heard.extend(frames);
        // While the MQTT connection is that of its older address, `strict` does not take it.
        let strict = self.shell.config.udp.peer_policy == PeerPolicy::Strict;
        if self.shell.now >= self.due && !(strict && self.reconnects_in.is_some()) {
            assert_eq!(self.known_source(), Some(self.device), "the device has its call after 2 s");
            let silent = self.shell.now - self.last_heard;
            assert!(silent < Duration::from_millis(600), "the device is heard after 2 s");
        }
    }

    fn leave(&mut self, ip: IpAddr) {
        self.relay = None;
        self.left.push((self.device, self.sent.len()));
        self.was_known = false;
        self.device = SocketAddr::new(ip, 10_000 + self.left.len() as u16);
        self.restart_clock(0);
    }

    /// The device has its call 2 s from now at the latest, or when it has sent so many more packets.
    fn restart_clock(&mut self, packets: u64) {
        self.due = self.due.max(self.shell.now + Duration::from_millis(2_000 + packets * FRAME_MS));
    }

    fn send_downlink(&mut self) {
        let frame = frame_with_header(1, &[0x58; 25]);
        if let Ok(Some((_, datagram))) = self.shell.downlink(&mut self.core, &frame) {
            self.downlink.push(datagram.into_vec());
        }
    }

    fn known_source(&self) -> Option<SocketAddr> {
        self.core.call().and_then(|call| call.peer)
    }

    /// A datagram of the device arrives, from this address.
    fn deliver(&mut self, from: SocketAddr, number: usize) -> Vec<Vec<u8>> {
        let mut datagram = self.sent[number].clone();
        self.uplink(from, &mut datagram)
    }

    fn uplink(&mut self, from: SocketAddr, datagram: &mut [u8]) -> Vec<Vec<u8>> {
        let outcome = self.shell.uplink_frames(&mut self.core, from, datagram);
        self.log(format_args!("    {:?}", outcome.as_ref().map(|(frames, _)| frames.len())));
        let Ok((frames, first)) = outcome else { return Vec::new() };
        if first {
            self.drive(Core::release_held);
        }
        frames
    }

    // ----- the attacker -------------------------------------------------------------------------------------------

    fn attack(&mut self) {
        let ours = SocketAddr::new(ATTACKER_IP.into(), 1_000 + self.rng.below(12) as u16);
        let neighbour = SocketAddr::new(self.core.ip(), 20_000 + self.rng.below(40) as u16);
        let (from, repeats_until) = match self.rng.below(10) {
            0..5 => (ours, self.repeatable()),
            5..8 => (neighbour, self.repeatable()),
            8 => (self.device, self.sent.len()),
            _ if self.left.is_empty() => return,
            _ => self.rng.pick(&self.left),
        };
        let known = self.known_source();
        let (mut datagram, what) = match self.rng.below(8) {
            0 if !self.downlink.is_empty() => {
                let at = self.rng.below(self.downlink.len() as u64) as usize;
                (self.downlink[at].clone(), "reflects")
            }
            // The last one, or any.
            1..4 if repeats_until > 0 && (known != Some(from) || from == self.device) => {
                let any = 1 + self.rng.below(repeats_until as u64);
                let back = self.rng.pick(&[1, 1, 1, any]);
                (self.sent[repeats_until - back as usize].clone(), "repeats")
            }
            4..8 => (self.forge(), "forges"),
            _ => return,
        };
        let header = UdpHeader::parse(&datagram).unwrap();
        self.log(format_args!("the attacker {what} {} from {from}", header.sequence));
        let plain = decrypt_datagram(&KEY, &datagram).1;
        let is_known = known == Some(from) || (known.is_none() && from.ip() == self.core.ip());
        let ends_run = from == self.device && !is_known && what == "forges";
        if ends_run {
            // Seldom, since the device must run without them for the clock to expire.
            if self.rng.percent(97) {
                return;
            }
            self.restart_clock(0);
        }
        let looks_alike = opus_config(&plain) == Some(0x58 >> 2);
        let frames = self.uplink(from, &mut datagram);
        if known.is_none() && self.known_source().is_some() {
            // It was first.
            self.restart_clock(0);
        }
        if ends_run || (is_known && what == "forges") {
            if self.heard_in_a_row < 8 {
                self.heard_in_a_row = 0;
                self.restart_clock(8);
            }
            if looks_alike {
                self.coverage.insert("lucky");
                self.restart_clock(16);
            }
            if !frames.is_empty() {
                self.coverage.insert("heard forged");
                let forged = frame_with_header(header.timestamp, &plain);
                assert_eq!(frames.last(), Some(&forged), "it is heard once");
                assert!(frames.len() == 1 || ends_run, "it is heard once");
            }
            return;
        }
        assert!(what != "reflects" || frames.is_empty(), "a packet that is sent back is not heard");
        for frame in frames {
            let payload = &frame[HEADER_LEN..];
            let number = payload.get(1..5).map_or(0, |bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
            let sent = self.sent.get((number as usize).wrapping_sub(1));
            assert_eq!(
                sent.map(|sent| decrypt_datagram(&KEY, sent).1).as_deref(),
                Some(payload),
                "not the device's"
            );
            self.coverage.insert("copy taken");
            let own = is_known || from == self.device || self.left.iter().any(|(left, _)| *left == from);
            let exempt = own || self.heard_in_a_row < 8;
            assert!(exempt || self.heard.insert(frame), "heard before");
        }
    }

    /// The number of packets that may be repeated from other addresses: all, while MQTT and audio come from one address, and the
    /// audio from the port that was known.
    fn repeatable(&self) -> usize {
        let until = self.left.last().filter(|_| self.reconnects_in.is_some() || !self.was_known);
        until.map_or(self.sent.len(), |(_, sent)| *sent)
    }

    /// Repeats packets of the device, in order, from one address.
    fn repeat_run(&mut self) {
        let repeatable = self.repeatable();
        let first = self.rng.below(repeatable as u64 + 1) as usize;
        // Two who repeat, one of them at the device's own IP, would be another port than before.
        let neighbour = self.rng.percent(50) && self.relay.is_none();
        let neighbour = neighbour.then(|| (self.core.ip(), 30_000).into());
        let from = neighbour.unwrap_or((ATTACKER_IP, 8_000).into());
        if self.known_source().is_none_or(|known| known == from) {
            return;
        }
        self.log(format_args!("the attacker repeats 12 from {} on, from {from}", first + 1));
        for number in first..repeatable.min(first + 12) {
            for frame in self.deliver(from, number) {
                assert!(self.heard.insert(frame) || self.heard_in_a_row < 8, "heard before");
            }
        }
    }

    /// Random bytes, or those of the device with another header or other bits.
    fn forge(&mut self) -> Vec<u8> {
        let next = self.sent.len() as u32 + 1;
        let sequence = match self.rng.below(6) {
            0..3 => next + self.rng.below(4) as u32,
            3 => next + self.rng.below(64) as u32,
            4 => next + self.rng.below(600) as u32,
            _ => self.rng.next() as u32,
        };
        let mut datagram = match self.sent.last().filter(|_| self.rng.percent(50)) {
            Some(last) => last.clone(),
            None => encrypt_datagram(&KEY, SSRC, sequence, 0, &[0; 25]),
        };
        datagram[12..HEADER_LEN].copy_from_slice(&sequence.to_be_bytes());
        let random = self.rng.next().to_le_bytes();
        datagram[HEADER_LEN..][..8].iter_mut().zip(random).for_each(|(byte, random)| *byte ^= random);
        datagram
    }

    fn log(&mut self, what: std::fmt::Arguments<'_>) {
        self.trace.log(self.shell.elapsed_ms(), what);
    }
}
