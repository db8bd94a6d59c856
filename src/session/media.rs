//! The audio path of one call: keys, sequences, the device's UDP address, framing towards the chat server.
//! The hot path: no allocation, borrowed results.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::jitter::Jitter;
use super::server_health::Spoken;
use super::{Discard, Grant};
use crate::config::PeerPolicy;
use crate::proto::audio::{self, Cipher, Header, Verdict, Window};

/// Direction bit of the downlink flags byte: no two packets of a call share a counter block with the uplink.
const DOWNLINK: u8 = 0x80;
/// How long the known source must be silent before another IP address may take over.
const KNOWN_SOURCE_SILENT: Duration = Duration::from_secs(2);
/// Plausible packets in a row that make an unknown IP address the device's.
const ADOPT_AFTER: u8 = 3;
/// Binary frames without a header, in one call, that show a server to speak raw Opus.
const RAW_AFTER: u8 = 3;

/// Where the device's datagrams come from, and which of our addresses they reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The device's address, where downlink audio goes.
    pub addr: SocketAddr,
    /// Our own address the device sends to, when the system tells: answers leave from it.
    pub local: Option<IpAddr>,
}

/// Packet and byte counts of a call, and what went missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Audio packets from the device that reached the chat server's connection, or went on to another device.
    pub up_packets: u64,
    /// Opus bytes in them.
    pub up_bytes: u64,
    /// Audio packets sent to the device.
    pub down_packets: u64,
    /// Opus bytes in them.
    pub down_bytes: u64,
    /// Sequences of the uplink that never came.
    pub lost: u64,
    /// Uplink packets that came after a later one: dropped, recognisers need order.
    pub reordered: u64,
    /// Uplink packets that came twice.
    pub duplicates: u64,
    /// Audio dropped in either direction: no one could take it, or it was none.
    pub dropped: u64,
    /// Times the chat server was replaced in mid-call.
    pub redials: u32,
}

/// A datagram ready to leave: encrypted, in the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Where to.
    pub peer: Peer,
    /// Bytes used of the buffer.
    pub len: usize,
}

/// One accepted uplink packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) timestamp: u32,
    pub(super) payload: usize,
    /// The device's address became known with this packet.
    pub(super) first: bool,
}

/// How this call's server frames audio, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Known(Spoken),
    /// So many frames of this call had no header.
    Unknown(u8),
}

/// What a binary frame of the server turned out to be.
pub(super) enum Frame<'a> {
    /// An Opus packet with its timestamp.
    Audio(u32, &'a [u8]),
    /// Not known yet.
    Undecided,
    /// Neither.
    Bad,
}

pub(super) struct Media {
    cipher: Cipher,
    ssrc: u32,
    window: Window,
    sequence: u32,
    peer: Option<Peer>,
    peer_heard: Instant,
    /// The IP address of the device's MQTT connection: trusted on any port.
    home: IpAddr,
    opus_config: Option<u8>,
    candidate: Option<Box<Candidate>>,
    pub(super) framing: Framing,
    jitter: Jitter,
    pub(super) facts: Facts,
}

struct Candidate {
    addr: SocketAddr,
    next: u32,
    opus_config: u8,
    seen: u8,
}

impl Media {
    pub(super) fn new(grant: &Grant, home: IpAddr, now: Instant) -> Self {
        Self {
            cipher: Cipher::new(&grant.key),
            ssrc: grant.ssrc,
            window: Window::new(),
            sequence: 0,
            peer: None,
            peer_heard: now,
            home,
            opus_config: None,
            candidate: None,
            framing: Framing::Unknown(0),
            jitter: Jitter::default(),
            facts: Facts::default(),
        }
    }

    pub(super) fn ssrc(&self) -> u32 {
        self.ssrc
    }

    /// How unevenly the device's audio arrives.
    pub(super) fn jitter(&self) -> Duration {
        self.jitter.value()
    }

    pub(super) fn peer(&self) -> Option<Peer> {
        self.peer
    }

    /// The device came back over another MQTT connection.
    pub(super) fn rehome(&mut self, home: IpAddr) {
        self.home = home;
    }

    /// Checks and decrypts one datagram in place: exact length, sequence, source, in that order, so that what is
    /// refused changes nothing.
    pub(super) fn open(
        &mut self,
        from: Peer,
        datagram: &mut [u8],
        policy: PeerPolicy,
        now: Instant,
    ) -> Result<Opened, Discard> {
        let header = Header::parse(datagram).map_err(Discard::Datagram)?;
        let trusted = from.addr.ip() == self.home || self.peer.is_some_and(|peer| peer.addr == from.addr);
        if !trusted {
            return self.consider(from, &header, datagram, policy, now);
        }
        self.judge(header.sequence)?;
        self.accept(from, &header, datagram, now)
    }

    fn judge(&mut self, sequence: u32) -> Result<(), Discard> {
        match self.window.accept(sequence) {
            Verdict::Fresh { lost } => {
                self.facts.lost += u64::from(lost);
                Ok(())
            }
            Verdict::Duplicate => {
                self.facts.duplicates += 1;
                Err(Discard::Duplicate)
            }
            Verdict::Late => {
                self.facts.reordered += 1;
                self.facts.lost = self.facts.lost.saturating_sub(1);
                Err(Discard::Late)
            }
            Verdict::TooOld => Err(Discard::TooOld),
            Verdict::Jump => Err(Discard::Jump),
        }
    }

    fn accept(
        &mut self,
        from: Peer,
        header: &Header,
        datagram: &mut [u8],
        now: Instant,
    ) -> Result<Opened, Discard> {
        let payload = &mut datagram[audio::HEADER..];
        self.cipher.apply(&header.bytes(), payload);
        self.opus_config = audio::opus_config(payload).or(self.opus_config);
        let first = self.peer.is_none();
        self.peer = Some(from);
        self.peer_heard = now;
        self.jitter.arrived(header.sequence, now);
        self.candidate = None;
        Ok(Opened { timestamp: header.timestamp, payload: payload.len(), first })
    }

    /// A packet from an unknown IP address: adopted only as the last of several plausible ones in a row, while the
    /// known source is silent; until then it moves nothing.
    fn consider(
        &mut self,
        from: Peer,
        header: &Header,
        datagram: &mut [u8],
        policy: PeerPolicy,
        now: Instant,
    ) -> Result<Opened, Discard> {
        if policy == PeerPolicy::Strict
            || !matches!(self.window.check(header.sequence), Verdict::Fresh { .. })
        {
            return Err(Discard::ForeignSource);
        }
        let silent =
            self.peer.is_none() || now.saturating_duration_since(self.peer_heard) >= KNOWN_SOURCE_SILENT;
        let payload = &mut datagram[audio::HEADER..];
        self.cipher.apply(&header.bytes(), payload);
        let Some(config) = audio::opus_config(payload) else {
            self.candidate = None;
            return Err(Discard::ForeignSource);
        };
        let plausible = silent && self.opus_config.is_none_or(|known| known == config);
        if !plausible {
            self.candidate = None;
            return Err(Discard::ForeignSource);
        }
        let seen = match &self.candidate {
            Some(candidate)
                if candidate.addr == from.addr
                    && candidate.next == header.sequence
                    && candidate.opus_config == config =>
            {
                candidate.seen + 1
            }
            _ => 1,
        };
        if seen < ADOPT_AFTER {
            let next = header.sequence.wrapping_add(1);
            let candidate = Candidate { addr: from.addr, next, opus_config: config, seen };
            match &mut self.candidate {
                Some(known) => **known = candidate,
                None => self.candidate = Some(Box::new(candidate)),
            }
            return Err(Discard::ForeignSource);
        }
        self.judge(header.sequence)?;
        let first = self.peer.is_none();
        self.peer = Some(from);
        self.peer_heard = now;
        self.opus_config = Some(config);
        self.candidate = None;
        Ok(Opened { timestamp: header.timestamp, payload: payload.len(), first })
    }

    /// One more packet of so many Opus bytes goes on.
    pub(super) fn count_up(&mut self, payload: usize) {
        self.facts.up_packets += 1;
        self.facts.up_bytes += payload as u64;
    }

    /// Writes the chat server's header over the datagram's, in place, and returns the frame it speaks.
    pub(super) fn framed<'b>(&mut self, opened: &Opened, datagram: &'b mut [u8]) -> &'b [u8] {
        let end = audio::HEADER + opened.payload;
        self.count_up(opened.payload);
        if self.framing == Framing::Known(Spoken::Raw) {
            return &datagram[audio::HEADER..end];
        }
        datagram[..audio::HEADER].copy_from_slice(&audio::ws_header(opened.timestamp, opened.payload));
        &datagram[..end]
    }

    /// Tells what a binary frame of a server is, in a call of this age, and learns from it.
    pub(super) fn classify<'a>(&mut self, frame: &'a [u8], fixed: bool, age: Duration) -> Frame<'a> {
        let headed = audio::parse_ws(frame);
        match (self.framing, headed) {
            (Framing::Known(Spoken::Header), Some((timestamp, payload))) => sized(timestamp, payload),
            (Framing::Known(Spoken::Header), None) => Frame::Bad,
            (Framing::Known(Spoken::Raw), Some((timestamp, payload))) if !fixed => {
                self.framing = Framing::Known(Spoken::Header);
                sized(timestamp, payload)
            }
            (Framing::Known(Spoken::Raw), _) => sized(millis(age), frame),
            (Framing::Unknown(_), Some((timestamp, payload))) => {
                self.framing = Framing::Known(Spoken::Header);
                sized(timestamp, payload)
            }
            (Framing::Unknown(_), None) if frame.is_empty() || frame.len() > audio::MAX_PAYLOAD => Frame::Bad,
            (Framing::Unknown(seen), None) if seen + 1 < RAW_AFTER => {
                self.framing = Framing::Unknown(seen + 1);
                Frame::Undecided
            }
            (Framing::Unknown(_), None) => {
                self.framing = Framing::Known(Spoken::Raw);
                sized(millis(age), frame)
            }
        }
    }

    /// A frame held while the framing was unknown, now that it is known.
    pub(super) fn reconsider<'a>(&self, frame: &'a [u8], age: Duration) -> Frame<'a> {
        match (self.framing, audio::parse_ws(frame)) {
            (Framing::Unknown(_), _) => Frame::Undecided,
            (Framing::Known(Spoken::Header), Some((timestamp, payload))) => sized(timestamp, payload),
            (Framing::Known(Spoken::Header), None) => Frame::Bad,
            (Framing::Known(Spoken::Raw), _) => sized(millis(age), frame),
        }
    }

    /// Encrypts one Opus packet for the device into `out`. The caller has checked that a peer is known.
    pub(super) fn seal(
        &mut self,
        peer: Peer,
        timestamp: u32,
        payload: &[u8],
        flags: bool,
        out: &mut [u8],
    ) -> Sealed {
        self.sequence = self.sequence.wrapping_add(1);
        let flags = if flags { DOWNLINK | (self.sequence & 0x7f) as u8 } else { 0 };
        let header =
            Header { flags, len: payload.len() as u16, ssrc: self.ssrc, timestamp, sequence: self.sequence };
        let bytes = header.bytes();
        let len = audio::HEADER + payload.len();
        out[..audio::HEADER].copy_from_slice(&bytes);
        out[audio::HEADER..len].copy_from_slice(payload);
        self.cipher.apply(&bytes, &mut out[audio::HEADER..len]);
        self.facts.down_packets += 1;
        self.facts.down_bytes += payload.len() as u64;
        Sealed { peer, len }
    }
}

/// Timestamps for servers that send none: milliseconds since the call's start, never zero.
fn millis(age: Duration) -> u32 {
    (age.as_millis() as u32).max(1)
}

fn sized(timestamp: u32, payload: &[u8]) -> Frame<'_> {
    if payload.is_empty() || payload.len() > audio::MAX_PAYLOAD {
        return Frame::Bad;
    }
    Frame::Audio(timestamp, payload)
}
