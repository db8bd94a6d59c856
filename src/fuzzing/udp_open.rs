//! The uplink of one call: header, sequence, source, decryption.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aes::cipher::{KeyIvInit, StreamCipher};

use super::FieldReader;
use super::live_call::{KEY, LiveCall, MQTT_IP, SSRC, cipher};
use crate::config::{Config, PeerPolicy};
use crate::proto::audio::{
    HEADER_LEN, MAX_PAYLOAD, ReplayWindow, SequenceVerdict, UdpHeader, opus_config, ws_frame_header,
};
use crate::session::DropReason;
use crate::session::harness::encrypt_datagram;

/// First a byte of settings, then datagrams. Each starts with a byte that says how it is made:
///
/// | bits | |
/// | --- | --- |
/// | 0, 1 | from the device's IP address, another port of it, or one of two other addresses |
/// | 2, 3 | 0, 60, 1,000 or 2,500 ms after the last one |
/// | 4 | as it is, instead of encrypted with the call's key |
/// | 5 | with a sequence of four bytes, instead of one byte relative to the last |
/// | 6 | sent twice |
/// | 7 | with the timestamp 2,000 |
///
/// Then sequence, length (one byte) and payload.
pub fn udp_open(data: &[u8]) {
    check_one_datagram(data);
    let mut fields = FieldReader(data);
    let settings = fields.byte();
    let mut config = Config::default();
    if settings & 1 != 0 {
        config.udp.peer_policy = PeerPolicy::Strict;
    }
    let mut call = LiveCall::new(config);
    if settings & 2 == 0 {
        call.server_hello();
    }
    let mut oracle = Oracle::new(settings & 2 == 0);
    let mut last = 0;
    while !fields.is_empty() {
        let op = fields.byte();
        call.advance([0, 60, 1_000, 2_500][usize::from(op >> 2 & 3)]);
        if call.core.call().is_none() {
            // The call was idle for too long, or no server was left.
            return;
        }
        let from = source_addr(op & 3);
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
                encrypt_datagram(&KEY, SSRC, sequence, timestamp, payload)
            }
            _ => payload.to_vec(),
        };
        for _ in 0..=op >> 6 & 1 {
            let mut bytes = datagram.clone();
            let outcome = call.uplink(from, &mut bytes).map(<[u8]>::to_vec);
            oracle.on_datagram(from, &datagram, outcome, &call);
        }
    }
    let stats = call.core.call().expect("checked after each step").stats;
    assert_eq!((stats.up_packets, stats.duplicates, stats.reordered), oracle.counts);
}

/// A header is written as it was read. The cipher agrees with another implementation, and is its own inverse.
fn check_one_datagram(data: &[u8]) {
    let parsed = UdpHeader::parse(data);
    let whole = data.len() > HEADER_LEN
        && data[0] == 1
        && usize::from(u16::from_be_bytes([data[2], data[3]])) == data.len() - HEADER_LEN
        && data.len() <= HEADER_LEN + MAX_PAYLOAD;
    assert_eq!(parsed.is_ok(), whole);
    let Ok(header) = parsed else { return };
    assert_eq!(header.to_bytes(), data[..HEADER_LEN]);
    let mut payload = data[HEADER_LEN..].to_vec();
    cipher().apply(&header.to_bytes(), &mut payload);
    let mut expected = data[HEADER_LEN..].to_vec();
    ctr::Ctr128BE::<aes::Aes128>::new(&KEY.into(), &header.to_bytes().into()).apply_keystream(&mut expected);
    assert_eq!(payload, expected, "another implementation of AES-CTR");
    cipher().apply(&header.to_bytes(), &mut payload);
    assert_eq!(payload, data[HEADER_LEN..], "decryption reverses encryption");
}

fn source_addr(which: u8) -> SocketAddr {
    match which {
        0 => (MQTT_IP, 4_000).into(),
        1 => (MQTT_IP, 4_001).into(),
        2 => ([198, 51, 100, 1], 5_000).into(),
        _ => ([203, 0, 113, 1], 6_000).into(),
    }
}

/// Computes the expected result of each datagram.
struct Oracle {
    live: bool,
    naive_window: NaiveWindow,
    /// The window under test, outside a call.
    window: ReplayWindow,
    known_source: Option<SocketAddr>,
    known_source_last_seen: Option<Instant>,
    /// The configuration of the device's Opus packets.
    opus_config: Option<u8>,
    /// The last consecutive packets of an unknown address: source, sequence, Opus configuration.
    candidate_packets: Vec<(SocketAddr, u32, u8)>,
    forwarded: BTreeSet<u32>,
    /// The number of forwarded packets, duplicates and late packets.
    counts: (u64, u64, u64),
}

impl Oracle {
    fn new(live: bool) -> Self {
        Self {
            live,
            naive_window: NaiveWindow::new(),
            window: ReplayWindow::new(),
            known_source: None,
            known_source_last_seen: None,
            opus_config: None,
            candidate_packets: Vec::new(),
            forwarded: BTreeSet::new(),
            counts: (0, 0, 0),
        }
    }

    fn on_datagram(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        outcome: Result<Vec<u8>, DropReason>,
        call: &LiveCall,
    ) {
        let header = match UdpHeader::parse(datagram) {
            Ok(header) => header,
            Err(bad) => return assert_eq!(outcome, Err(bad.into())),
        };
        if header.flags != 0 {
            return assert_eq!(outcome, Err(DropReason::DatagramFlags));
        }
        let mut payload = datagram[HEADER_LEN..].to_vec();
        cipher().apply(&header.to_bytes(), &mut payload);
        let trusted = from.ip() == source_addr(0).ip() || self.known_source == Some(from);
        if !trusted && !self.may_migrate(from, header.sequence, &payload, call) {
            return assert_eq!(outcome, Err(DropReason::ForeignSource));
        }
        let verdict = self.naive_window.accept(header.sequence);
        assert_eq!(self.window.check(header.sequence), verdict, "check agrees with accept");
        assert_eq!(self.window.accept(header.sequence), verdict, "sequence {}", header.sequence);
        let expected = match verdict {
            SequenceVerdict::Fresh { .. } if self.live => {
                self.counts.0 += 1;
                assert!(
                    self.forwarded.last().is_none_or(|last| *last < header.sequence),
                    "in order, and once"
                );
                self.forwarded.insert(header.sequence);
                Ok([&ws_frame_header(header.timestamp, payload.len())[..], &payload].concat())
            }
            SequenceVerdict::Fresh { .. } => Err(DropReason::NoServer),
            SequenceVerdict::Duplicate => Err(DropReason::Duplicate),
            SequenceVerdict::Late => Err(DropReason::Late),
            SequenceVerdict::TooOld => Err(DropReason::TooOld),
            SequenceVerdict::Jump => Err(DropReason::Jump),
        };
        self.counts.1 += u64::from(verdict == SequenceVerdict::Duplicate);
        self.counts.2 += u64::from(verdict == SequenceVerdict::Late);
        assert_eq!(outcome, expected);
        if matches!(verdict, SequenceVerdict::Fresh { .. }) {
            (self.known_source, self.known_source_last_seen) = (Some(from), Some(call.shell.now));
            self.candidate_packets.clear();
            self.opus_config = opus_config(&payload).or(self.opus_config);
        }
    }

    /// An unknown address is accepted with the third consecutive plausible packet, while the known one is silent.
    fn may_migrate(&mut self, from: SocketAddr, sequence: u32, payload: &[u8], call: &LiveCall) -> bool {
        let strict = call.shell.config.udp.peer_policy == PeerPolicy::Strict;
        if strict || !matches!(self.naive_window.check(sequence), SequenceVerdict::Fresh { .. }) {
            return false;
        }
        let silent =
            self.known_source_last_seen.is_none_or(|at| call.shell.now - at >= Duration::from_secs(2));
        let config =
            opus_config(payload).filter(|config| self.opus_config.is_none_or(|known| known == *config));
        let Some(config) = config.filter(|_| silent) else {
            self.candidate_packets.clear();
            return false;
        };
        let before = (from, sequence.wrapping_sub(1), config);
        if self.candidate_packets.last() != Some(&before) {
            self.candidate_packets.clear();
        }
        self.candidate_packets.push((from, sequence, config));
        self.candidate_packets.len() >= 3
    }
}

/// A simple implementation of the window: a set of all accepted sequences.
struct NaiveWindow {
    seen: BTreeSet<u32>,
    floor: u32,
    /// Consecutive sequences that are too far ahead.
    run: Vec<u32>,
}

impl NaiveWindow {
    fn new() -> Self {
        Self { seen: BTreeSet::new(), floor: 1, run: Vec::new() }
    }

    fn highest(&self) -> u32 {
        self.seen.last().copied().unwrap_or_default()
    }

    fn check(&self, sequence: u32) -> SequenceVerdict {
        let highest = self.highest();
        if sequence > highest || self.seen.is_empty() {
            let ahead = sequence - highest;
            return match ahead {
                0..=65_536 => SequenceVerdict::Fresh { lost: ahead.saturating_sub(1) },
                _ if self.run_with(sequence).len() >= 3 => SequenceVerdict::Fresh { lost: 0 },
                _ => SequenceVerdict::Jump,
            };
        }
        if sequence < self.floor || highest - sequence >= 64 {
            SequenceVerdict::TooOld
        } else if self.seen.contains(&sequence) {
            SequenceVerdict::Duplicate
        } else {
            SequenceVerdict::Late
        }
    }

    fn accept(&mut self, sequence: u32) -> SequenceVerdict {
        let verdict = self.check(sequence);
        let run = self.run_with(sequence);
        self.run.clear();
        match verdict {
            SequenceVerdict::Jump => self.run = run,
            SequenceVerdict::Fresh { .. } if sequence - self.highest() > 65_536 => {
                self.seen.extend(run);
                self.floor = sequence - 2;
            }
            SequenceVerdict::Fresh { .. } => {
                self.floor = self.floor.min(sequence);
                self.seen.insert(sequence);
            }
            SequenceVerdict::Late => drop(self.seen.insert(sequence)),
            SequenceVerdict::Duplicate | SequenceVerdict::TooOld => {}
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
