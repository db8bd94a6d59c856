//! Datagrams of one call: header, order, source, decryption.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aes::cipher::{KeyIvInit, StreamCipher};

use super::Fields;
use super::live_call::{Call, HOME, KEY, SSRC, cipher};
use crate::config::{Config, PeerPolicy};
use crate::proto::audio::{HEADER, Header, MAX_PAYLOAD, Verdict, Window, opus_config, ws_header};
use crate::session::Discard;

/// First a byte of settings, then datagrams, each behind a byte that says how it is made:
///
/// | bits | |
/// | --- | --- |
/// | 0, 1 | from home, another port of it, or one of two strangers |
/// | 2, 3 | 0, 60, 1,000 or 2,500 ms after the last one |
/// | 4 | as it stands, instead of sealed with the call's key |
/// | 5 | with a sequence of four bytes, instead of one byte relative to the last |
/// | 6 | once more, at once |
/// | 7 | with 2,000 ms on the clock of its header |
///
/// Then sequence, length (one byte) and payload.
pub fn udp_open(data: &[u8]) {
    one_datagram(data);
    let mut fields = Fields(data);
    let settings = fields.byte();
    let mut config = Config::default();
    if settings & 1 != 0 {
        config.udp.peer_policy = PeerPolicy::Strict;
    }
    let mut call = Call::new(config);
    if settings & 2 == 0 {
        call.greet();
    }
    let mut judge = Judge::new(settings & 2 == 0);
    let mut last = 0;
    while !fields.is_empty() {
        let op = fields.byte();
        call.advance([0, 60, 1_000, 2_500][usize::from(op >> 2 & 3)]);
        if call.core.call().is_none() {
            // Nobody spoke for minutes, or no server was left.
            return;
        }
        let from = source(op & 3);
        let sequence = match op & 0x20 {
            0 => u32::wrapping_add_signed(last, (fields.byte() as i8).into()),
            _ => fields.u32(),
        };
        let len = fields.byte().into();
        let payload = fields.bytes(len);
        let datagram = match op & 0x10 {
            0 => {
                last = sequence;
                let timestamp = if op & 0x80 == 0 { 0 } else { 2_000 };
                seal(sequence, timestamp, payload)
            }
            _ => payload.to_vec(),
        };
        for _ in 0..=op >> 6 & 1 {
            let mut bytes = datagram.clone();
            let outcome = call.uplink(from, &mut bytes).map(<[u8]>::to_vec);
            judge.hear(from, &datagram, outcome, &call);
        }
    }
    let facts = call.core.call().expect("checked after each step").facts;
    assert_eq!((facts.up_packets, facts.duplicates, facts.reordered), judge.counts);
}

/// A header is read, and written again as it was; the cipher is the one of the book, and its own inverse.
fn one_datagram(data: &[u8]) {
    let parsed = Header::parse(data);
    let whole = data.len() > HEADER
        && data[0] == 1
        && usize::from(u16::from_be_bytes([data[2], data[3]])) == data.len() - HEADER
        && data.len() <= HEADER + MAX_PAYLOAD;
    assert_eq!(parsed.is_ok(), whole);
    let Ok(header) = parsed else { return };
    assert_eq!(header.bytes(), data[..HEADER]);
    let mut payload = data[HEADER..].to_vec();
    cipher().apply(&header.bytes(), &mut payload);
    let mut book = data[HEADER..].to_vec();
    ctr::Ctr128BE::<aes::Aes128>::new(&KEY.into(), &header.bytes().into()).apply_keystream(&mut book);
    assert_eq!(payload, book, "another way through AES-CTR");
    cipher().apply(&header.bytes(), &mut payload);
    assert_eq!(payload, data[HEADER..], "open of seal is identity");
}

fn seal(sequence: u32, timestamp: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header { flags: 0, len: payload.len() as u16, ssrc: SSRC, timestamp, sequence };
    let mut datagram = [&header.bytes()[..], payload].concat();
    cipher().apply(&header.bytes(), &mut datagram[HEADER..]);
    datagram
}

fn source(which: u8) -> SocketAddr {
    match which {
        0 => (HOME, 4_000).into(),
        1 => (HOME, 4_001).into(),
        2 => ([198, 51, 100, 1], 5_000).into(),
        _ => ([203, 0, 113, 1], 6_000).into(),
    }
}

/// Knows what must come of each datagram.
struct Judge {
    live: bool,
    naive: Naive,
    /// The window under test, by itself.
    window: Window,
    known: Option<SocketAddr>,
    heard: Option<Instant>,
    /// The configuration of the device's Opus packets.
    opus: Option<u8>,
    /// The last packets of a stranger, all alike and one after the other: source, sequence, configuration.
    stranger: Vec<(SocketAddr, u32, u8)>,
    forwarded: BTreeSet<u32>,
    /// Forwarded, twice, late.
    counts: (u64, u64, u64),
}

impl Judge {
    fn new(live: bool) -> Self {
        Self {
            live,
            naive: Naive::new(),
            window: Window::new(),
            known: None,
            heard: None,
            opus: None,
            stranger: Vec::new(),
            forwarded: BTreeSet::new(),
            counts: (0, 0, 0),
        }
    }

    fn hear(&mut self, from: SocketAddr, datagram: &[u8], outcome: Result<Vec<u8>, Discard>, call: &Call) {
        let Ok(header) = Header::parse(datagram) else {
            return assert!(matches!(outcome, Err(Discard::Datagram(_))), "{outcome:?}");
        };
        let mut payload = datagram[HEADER..].to_vec();
        cipher().apply(&header.bytes(), &mut payload);
        let trusted = from.ip() == source(0).ip() || self.known == Some(from);
        if !trusted && !self.may_adopt(from, header.sequence, &payload, call) {
            return assert_eq!(outcome, Err(Discard::ForeignSource));
        }
        let verdict = self.naive.accept(header.sequence);
        assert_eq!(self.window.check(header.sequence), verdict, "check is accept without a change");
        assert_eq!(self.window.accept(header.sequence), verdict, "sequence {}", header.sequence);
        let expected = match verdict {
            Verdict::Fresh { .. } if self.live => {
                self.counts.0 += 1;
                assert!(
                    self.forwarded.last().is_none_or(|last| *last < header.sequence),
                    "in order, and once"
                );
                self.forwarded.insert(header.sequence);
                Ok([&ws_header(header.timestamp, payload.len())[..], &payload].concat())
            }
            Verdict::Fresh { .. } => Err(Discard::NoServer),
            Verdict::Duplicate => Err(Discard::Duplicate),
            Verdict::Late => Err(Discard::Late),
            Verdict::TooOld => Err(Discard::TooOld),
            Verdict::Jump => Err(Discard::Jump),
        };
        self.counts.1 += u64::from(verdict == Verdict::Duplicate);
        self.counts.2 += u64::from(verdict == Verdict::Late);
        assert_eq!(outcome, expected);
        if matches!(verdict, Verdict::Fresh { .. }) {
            (self.known, self.heard) = (Some(from), Some(call.now));
            self.stranger.clear();
            self.opus = opus_config(&payload).or(self.opus);
        }
    }

    /// A stranger is taken for the device after three packets in a row that could be its own, while that is silent.
    fn may_adopt(&mut self, from: SocketAddr, sequence: u32, payload: &[u8], call: &Call) -> bool {
        let strict = call.config.udp.peer_policy == PeerPolicy::Strict;
        if strict || !matches!(self.naive.check(sequence), Verdict::Fresh { .. }) {
            return false;
        }
        let silent = self.heard.is_none_or(|at| call.now - at >= Duration::from_secs(2));
        let config = opus_config(payload).filter(|config| self.opus.is_none_or(|known| known == *config));
        let Some(config) = config.filter(|_| silent) else {
            self.stranger.clear();
            return false;
        };
        let before = (from, sequence.wrapping_sub(1), config);
        if self.stranger.last() != Some(&before) {
            self.stranger.clear();
        }
        self.stranger.push((from, sequence, config));
        self.stranger.len() >= 3
    }
}

/// The window without a bit of cleverness: every sequence ever accepted, in a set.
struct Naive {
    seen: BTreeSet<u32>,
    floor: u32,
    /// Too far ahead, one after the other.
    run: Vec<u32>,
}

impl Naive {
    fn new() -> Self {
        Self { seen: BTreeSet::new(), floor: 1, run: Vec::new() }
    }

    fn highest(&self) -> u32 {
        self.seen.last().copied().unwrap_or_default()
    }

    fn check(&self, sequence: u32) -> Verdict {
        let highest = self.highest();
        if sequence > highest || self.seen.is_empty() {
            let ahead = sequence - highest;
            return match ahead {
                0..=65_536 => Verdict::Fresh { lost: ahead.saturating_sub(1) },
                _ if self.run_with(sequence).len() >= 3 => Verdict::Fresh { lost: 0 },
                _ => Verdict::Jump,
            };
        }
        if sequence < self.floor || highest - sequence >= 64 {
            Verdict::TooOld
        } else if self.seen.contains(&sequence) {
            Verdict::Duplicate
        } else {
            Verdict::Late
        }
    }

    fn accept(&mut self, sequence: u32) -> Verdict {
        let verdict = self.check(sequence);
        let run = self.run_with(sequence);
        self.run.clear();
        match verdict {
            Verdict::Jump => self.run = run,
            Verdict::Fresh { .. } if sequence - self.highest() > 65_536 => {
                self.seen.extend(run);
                self.floor = sequence - 2;
            }
            Verdict::Fresh { .. } => {
                self.floor = self.floor.min(sequence);
                self.seen.insert(sequence);
            }
            Verdict::Late => drop(self.seen.insert(sequence)),
            Verdict::Duplicate | Verdict::TooOld => {}
        }
        verdict
    }

    fn run_with(&self, sequence: u32) -> Vec<u32> {
        match self.run.last() {
            Some(last) if *last == sequence => self.run.clone(),
            Some(last) if last.checked_add(1) == Some(sequence) => [&self.run[..], &[sequence]].concat(),
            _ => vec![sequence],
        }
    }
}
