//! The uplink of one call: header, sequence, source, decryption.

use std::net::SocketAddr;

use aes::cipher::{KeyIvInit, StreamCipher};

use super::FieldReader;
use super::live_call::{KEY, LiveCall, MQTT_IP, SSRC, cipher};
use crate::config::{Config, PeerPolicy};
use crate::proto::audio::{
    BadDatagram, HEADER_LEN, MAX_PAYLOAD, UdpHeader, is_text, opus_config, ws_frame_header,
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
            let outcome = call.uplink(from, &mut bytes);
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

/// Checks the result of each datagram.
struct Oracle {
    live: bool,
    known_source: Option<SocketAddr>,
    has_audio: bool,
    /// Every well-formed packet so far: source, Opus configuration, frame.
    received: Vec<(SocketAddr, Option<u8>, Vec<u8>)>,
    /// The number of forwarded packets, duplicates and late packets.
    counts: (u64, u64, u64),
}

impl Oracle {
    fn new(live: bool) -> Self {
        Self { live, known_source: None, has_audio: false, received: Vec::new(), counts: (0, 0, 0) }
    }

    fn on_datagram(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        outcome: Result<Vec<Vec<u8>>, DropReason>,
        call: &LiveCall,
    ) {
        let header = match UdpHeader::parse(datagram) {
            Ok(header) => header,
            // An empty payload tells the address of a device that is not known yet.
            Err(BadDatagram::Empty) if outcome == Ok(Vec::new()) => {
                assert!(self.known_source.is_none() && from.ip() == source_addr(0).ip());
                self.known_source = Some(from);
                return;
            }
            Err(bad) => return assert_eq!(outcome, Err(bad.into())),
        };
        if header.flags != 0 {
            return assert_eq!(outcome, Err(DropReason::DatagramFlags));
        }
        let mut payload = datagram[HEADER_LEN..].to_vec();
        cipher().apply(&header.to_bytes(), &mut payload);
        let frame = [&ws_frame_header(header.timestamp, payload.len())[..], &payload].concat();
        self.received.push((from, opus_config(&payload), frame.clone()));
        self.counts.1 += u64::from(outcome == Err(DropReason::Duplicate));
        self.counts.2 += u64::from(outcome == Err(DropReason::Late));
        let at_mqtt_ip = from.ip() == source_addr(0).ip();
        if self.known_source == Some(from) || (!self.has_audio && at_mqtt_ip) {
            use DropReason::{Duplicate, Jump, Late, NoServer, TooOld};
            match outcome {
                Ok(frames) if frames.is_empty() => {
                    assert!(is_text(&payload) && !self.has_audio);
                    self.known_source = Some(from);
                    return;
                }
                Ok(frames) => assert!(self.live && frames == [frame], "{frames:?}"),
                Err(NoServer) => assert!(!self.live),
                Err(why) => return assert!(matches!(why, Duplicate | Late | TooOld | Jump), "{why:?}"),
            }
            self.counts.0 += u64::from(self.live);
            (self.known_source, self.has_audio) = (Some(from), true);
            return;
        }
        let frames = match outcome {
            Ok(frames) => frames,
            Err(why) => {
                return assert!(matches!(why, DropReason::ForeignSource | DropReason::PathHeld), "{why:?}");
            }
        };
        assert!(at_mqtt_ip || call.shell.config.udp.peer_policy == PeerPolicy::Adaptive, "strict");
        let packets: Vec<_> = self.received.iter().filter(|(source, ..)| *source == from).collect();
        let (_, config, _) = packets.last().expect("it was pushed above");
        let needed = if at_mqtt_ip { 2 } else { 8 };
        let alike = packets.iter().filter(|(_, other, _)| other.is_some() && other == config);
        assert!(alike.count() >= needed, "too few plausible packets");
        if self.live {
            assert_eq!(frames.last(), Some(&frame));
        }
        for frame in &frames {
            assert!(packets.iter().any(|(.., received)| received == frame), "sent by another source");
        }
        self.counts.0 += frames.len() as u64;
        (self.known_source, self.has_audio) = (Some(from), true);
    }
}
