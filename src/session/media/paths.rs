//! Whose audio is taken.
//!
//! AES-CTR does not authenticate: whoever knows the ssrc of a call can send packets that decrypt to something. QUIC's path
//! validation (RFC 9000 section 9) is the model. A *path* is an address and port; one of them is the known source, and no other
//! moves the downlink, advances the sequence or reaches the chat server.
//!
//! | packet from | taken | ahead of the sequence |
//! | --- | --- | --- |
//! | the known source | at once | by up to the limit; by more than 64, or with another Opus configuration, it is provisional ([`ReplayWindow`]) |
//! | the MQTT peer's IP, no source is known yet | at once | as above |
//! | another port of the MQTT peer's IP | with 8 plausible packets, when the known source was silent for 1 s | by up to the limit |
//! | another IP, `adaptive` | with 8 plausible packets, when the known source, if there is one, was silent for 2 s | by up to the limit |
//! | another IP, `strict` | never | |
//! | the MQTT peer's IP, after a move to another IP, from the port it had | with the second plausible packet | by up to the limit of the sequence that *it* had reached |
//!
//! * The *limit* is 512, and one more for each 10 ms since the sequence was last settled: a device sends a packet in 20 ms or more.
//! * *Plausible* packets have the exact length and the flags of the nonce, are well-formed Opus, have one Opus configuration
//!   (number and stereo bit), and each is above the one before, by up to 64. One that is not Opus, of another configuration or
//!   further ahead ends the run.
//! * The known source is *not silent* when it settles a packet. That drops all other runs.
//! * Packets of a run are kept: 32 of a call, 8 KiB. They are forwarded when their path is taken, in order.
//! * A call has 4 candidates at most. The first place is only for the MQTT peer's IP. A candidate of one packet loses its place to
//!   a new one after 100 ms, and at once if the new one has the known source's Opus configuration and it has not; one of more
//!   packets, after a second without any. So an attacker with many addresses does not keep the device from a place for ever:
//!   random packets from an address end its run with the second one, or hold a place for 100 ms, and one in 64 of them competes
//!   with the device for the next 100 ms. The device's second packet comes in that time, and then it can no longer be displaced.
//! * Audio goes to the known source. If that is not at the MQTT peer's IP, it stops when the source was silent for 10 s while the
//!   device listens, and for 120 s otherwise ([`Media::destination`]).
//! * Before the first audio, a datagram with an empty payload, or with 8 or more bytes of printable ASCII, is no audio: from the MQTT
//!   peer's IP it makes its source known, from elsewhere it is not plausible.
//! * `docs/security.md` states the odds.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{Decrypted, Media, Received};
use crate::config::PeerPolicy;
use crate::proto::audio::{self, ReplayWindow, Run, UdpHeader};
use crate::session::action::{DropReason, UdpPeer};

/// The silence of the known source after which another port of the MQTT peer's IP is taken.
pub(super) const PORT_SILENCE: Duration = Duration::from_secs(1);
/// The silence of the known source after which another IP is taken.
const IP_SILENCE: Duration = Duration::from_secs(2);
/// How far ahead a packet may be when the sequence was settled just now.
const MAX_AHEAD: u32 = 512;
/// The silence after which a candidate can be displaced, by whether it has more than one packet.
const CANDIDATE_IDLE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];
const CANDIDATES: usize = 4;
const MAX_KEPT_PACKETS: usize = 32;
const MAX_KEPT_BYTES: usize = 8 * 1024;

/// How far ahead of the sequence a packet may be: one more for each 10 ms.
pub(super) fn max_ahead(since_settled: Duration) -> u32 {
    let grown = since_settled.as_secs() * 100 + u64::from(since_settled.subsec_millis() / 10);
    MAX_AHEAD.saturating_add(u32::try_from(grown).unwrap_or(u32::MAX))
}

/// Sources that may become known, and their decrypted packets.
#[derive(Default)]
pub(super) struct Paths {
    candidates: [Option<Candidate>; CANDIDATES],
    kept: VecDeque<KeptPacket>,
    kept_bytes: usize,
    pub(super) home: Option<Home>,
}

#[derive(Clone, Copy)]
struct Candidate {
    addr: SocketAddr,
    run: Run,
    last_seen: Instant,
}

struct KeptPacket {
    place: usize,
    datagram: Box<[u8]>,
}

/// The source at the MQTT peer's IP from which the call moved to another IP, and the sequence that it had reached.
pub(super) struct Home {
    addr: SocketAddr,
    window: ReplayWindow,
    settled_at: Instant,
    /// Its last packet, if that was plausible: the next plausible one takes the call back.
    first: Option<(Run, Box<[u8]>)>,
}

impl Paths {
    /// Adds a plausible packet to the run of its source. `None` if it is refused.
    fn extend(
        &mut self,
        addr: SocketAddr,
        places: std::ops::Range<usize>,
        packet: (u32, u8),
        window: &ReplayWindow,
        now: Instant,
    ) -> Option<(usize, Run)> {
        let (sequence, config) = packet;
        let Some(place) = self.place_of(addr) else {
            let place = places.clone().find(|place| {
                self.candidates[*place].is_none_or(|candidate| {
                    let idle = now.saturating_duration_since(candidate.last_seen);
                    let known = window.config();
                    let is_single = candidate.run.packets() == 1;
                    idle >= CANDIDATE_IDLE[usize::from(!is_single)]
                        || is_single && known == Some(config) && known != candidate.run.config()
                })
            })?;
            self.remove(place);
            let run = window.start_run(sequence, config);
            self.candidates[place] = Some(Candidate { addr, run, last_seen: now });
            return Some((place, run));
        };
        let candidate = self.candidates[place].as_mut()?;
        if !candidate.run.is_below(sequence) {
            return None;
        }
        if candidate.run.config() != Some(config) || !candidate.run.follows(sequence) {
            self.remove(place);
            return None;
        }
        candidate.run = candidate.run.extended(sequence, Some(config));
        candidate.last_seen = now;
        Some((place, candidate.run))
    }

    fn place_of(&self, addr: SocketAddr) -> Option<usize> {
        self.candidates.iter().position(|known| known.is_some_and(|known| known.addr == addr))
    }

    /// Ends a run. Returns the number of its packets that are dropped.
    fn remove(&mut self, place: usize) -> usize {
        self.candidates[place] = None;
        self.retain_kept(|of| of != place)
    }

    fn retain_kept(&mut self, stays: impl Fn(usize) -> bool) -> usize {
        let before = self.kept.len();
        self.kept.retain(|packet| stays(packet.place));
        self.kept_bytes = self.kept.iter().map(|packet| packet.datagram.len()).sum();
        before - self.kept.len()
    }

    fn keep(&mut self, place: usize, datagram: &[u8]) -> usize {
        self.kept.push_back(KeptPacket { place, datagram: datagram.into() });
        self.kept_bytes += datagram.len();
        let before = self.kept.len();
        while self.kept.len() > MAX_KEPT_PACKETS || self.kept_bytes > MAX_KEPT_BYTES {
            drop(self.pop());
        }
        before - self.kept.len()
    }

    fn pop(&mut self) -> Option<Box<[u8]>> {
        let packet = self.kept.pop_front()?;
        self.kept_bytes -= packet.datagram.len();
        Some(packet.datagram)
    }
}

impl Media {
    /// Handles a packet of a source that is not known.
    pub(super) fn validate_path(
        &mut self,
        from: UdpPeer,
        header: &UdpHeader,
        datagram: &mut [u8],
        policy: PeerPolicy,
        now: Instant,
    ) -> Result<Received, DropReason> {
        if self.home().is_some_and(|home| home.addr == from.addr) {
            return self.take_back(from, header, datagram, now);
        }
        let at_home = from.addr.ip() == self.mqtt_ip;
        let (places, silence) = match at_home {
            true => (0..1, PORT_SILENCE),
            false => (1..CANDIDATES, IP_SILENCE),
        };
        if !at_home && policy == PeerPolicy::Strict
            || !self.window.is_ahead_elsewhere(header.sequence, max_ahead(self.since_settled(now)))
        {
            return Err(DropReason::ForeignSource);
        }
        let (config, silent) = (self.decrypt_opus(datagram), self.is_silent(silence, now));
        let config = config.filter(|_| self.has_audio || !audio::is_text(&datagram[audio::HEADER_LEN..]));
        let paths = self.paths.get_or_insert_default();
        let Some(config) = config else {
            let dropped = paths.place_of(from.addr).map_or(0, |place| paths.remove(place));
            self.counts.dropped += dropped as u32;
            return Err(DropReason::ForeignSource);
        };
        let before = paths.kept.len();
        let extended = paths.extend(from.addr, places, (header.sequence, config), &self.window, now);
        self.counts.dropped += (before - paths.kept.len()) as u32;
        let Some((place, run)) = extended else { return Err(DropReason::ForeignSource) };
        self.counts.dropped += paths.keep(place, datagram) as u32;
        if run.packets() < ReplayWindow::RUN || !silent {
            return Err(DropReason::PathHeld);
        }
        self.counts.dropped += paths.retain_kept(|of| of == place) as u32;
        paths.candidates = Default::default();
        if let Some(known) = self.peer.filter(|known| !at_home && known.addr.ip() == self.mqtt_ip) {
            let (window, settled_at) = (self.window.clone(), self.settled_at);
            paths.home = Some(Home { addr: known.addr, window, settled_at, first: None });
        }
        Ok(self.move_to(from, &run, now))
    }

    fn home(&self) -> Option<&Home> {
        self.paths.as_ref()?.home.as_ref()
    }

    /// Handles a packet of the source from which the call moved to another IP.
    fn take_back(
        &mut self,
        from: UdpPeer,
        header: &UdpHeader,
        datagram: &mut [u8],
        now: Instant,
    ) -> Result<Received, DropReason> {
        let config = self.decrypt_opus(datagram);
        let Some(home) = self.paths.as_mut().and_then(|paths| paths.home.as_mut()) else {
            return Err(DropReason::ForeignSource);
        };
        if !home.window.is_ahead(header.sequence, max_ahead(now.saturating_duration_since(home.settled_at))) {
            return Err(DropReason::ForeignSource);
        }
        let Some(config) = config.filter(|_| !home.window.is_confirmed() || config == home.window.config())
        else {
            self.counts.dropped += u32::from(home.first.take().is_some());
            return Err(DropReason::ForeignSource);
        };
        let Some((run, first)) =
            home.first.take_if(|(run, _)| run.is_below(header.sequence) && run.config() == Some(config))
        else {
            let run = home.window.start_run(header.sequence, config);
            self.counts.dropped += u32::from(home.first.replace((run, (&*datagram).into())).is_some());
            return Err(DropReason::PathHeld);
        };
        let run = run.extended(header.sequence, Some(config));
        self.window = home.window.clone();
        self.drop_candidates();
        let paths = self.paths.get_or_insert_default();
        paths.keep(0, &first);
        paths.keep(0, datagram);
        Ok(self.move_to(from, &run, now))
    }

    /// This source is known from now on.
    fn move_to(&mut self, from: UdpPeer, run: &Run, now: Instant) -> Received {
        self.has_audio = true;
        self.counts.lost = self.counts.lost.saturating_add(self.window.settle(run));
        if from.addr.ip() == self.mqtt_ip {
            self.forget_home();
        }
        (self.settled_at, self.is_alive) = (now, true);
        Received::Path { peer_learned: self.peer.replace(from).is_none() }
    }

    pub(super) fn forget_home(&mut self) {
        if let Some(paths) = &mut self.paths {
            paths.home = None;
        }
    }

    /// The known source is alive: all runs of others end.
    pub(in crate::session) fn drop_candidates(&mut self) {
        let Some(paths) = &mut self.paths else { return };
        self.counts.dropped += paths.kept.len() as u32;
        if paths.home.is_none() {
            self.paths = None;
        } else {
            paths.candidates = Default::default();
            paths.retain_kept(|_| false);
        }
    }

    /// Decrypts the datagram in place, and returns its Opus configuration if it is well-formed.
    #[inline]
    pub(super) fn decrypt_opus(&self, datagram: &mut [u8]) -> Option<u8> {
        let (header, payload) = datagram.split_first_chunk_mut::<{ audio::HEADER_LEN }>()?;
        self.cipher.apply(header, payload);
        audio::opus_config(payload)
    }

    /// The next packet that was kept until its source was taken, as if it had come now.
    pub(in crate::session) fn next_released(&mut self, datagram: &mut Vec<u8>) -> Option<Decrypted> {
        let Some(kept) = self.paths.as_mut()?.pop() else {
            self.drop_candidates();
            return None;
        };
        *datagram = kept.into_vec();
        let header = UdpHeader::parse(datagram).ok()?;
        self.quality.on_released();
        Some(Decrypted {
            timestamp: header.timestamp,
            sequence: header.sequence,
            payload_len: header.payload_len.into(),
            peer_learned: false,
        })
    }

    /// The bytes of packets that are kept.
    pub(in crate::session) fn retained_bytes(&self) -> usize {
        let first = self.home().and_then(|home| home.first.as_ref()).map_or(0, |(_, kept)| kept.len());
        first + self.paths.as_ref().map_or(0, |paths| paths.kept_bytes)
    }
}
