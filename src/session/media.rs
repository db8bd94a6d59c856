//! The audio path of one call: encryption, sequences, the device's UDP address, framing towards the chat server. It returns
//! borrowed results and does not allocate for packets of the known source, since it runs for each packet.

use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::action::{CallCredentials, CallStats, DropReason, Encrypted, UdpPeer};
use super::call_quality::CallQuality;
use super::server_health::WireFraming;
use crate::config::PeerPolicy;
use crate::proto::audio::{self, BadDatagram, Cipher, ReplayWindow, SequenceVerdict, UdpHeader};
use paths::Paths;

mod paths;

/// The direction bit in the flags byte of downlink packets: no counter block is used in both directions.
const DOWNLINK_FLAG: u8 = 0x80;
/// Without a packet for so long, audio is no longer sent to an address other than the MQTT peer's: while the device listens, and
/// otherwise.
const DOWNLINK_SILENCE: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(120)];
/// What a packet of a device lasts: usually 60 ms. Some send shorter ones.
const FRAME: Duration = Duration::from_millis(60);
/// The binary frames without a header, in one call, after which a server is taken to send raw Opus.
const RAW_FRAMING_AFTER: u8 = 3;

/// An uplink packet that was accepted and decrypted in place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decrypted {
    pub(super) timestamp: u32,
    pub(super) sequence: u32,
    pub(super) payload_len: usize,
    /// The device's address was not known before this packet.
    pub(super) peer_learned: bool,
}

/// A datagram that was accepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// It is the next packet.
    Packet(Decrypted),
    /// Its source is known from now on, and its packets, this one included, follow from [`Media::next_released`].
    Path {
        /// No source was known before.
        peer_learned: bool,
    },
}

/// What is known of how this call's server frames audio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FramingState {
    Known(WireFraming),
    /// The number of frames without a header so far.
    Unknown(u8),
}

/// What a binary frame of the server contains.
pub(super) enum ClassifiedFrame<'a> {
    /// An Opus packet with its timestamp.
    Audio(u32, &'a [u8]),
    /// Audio, but the framing is not known yet.
    Undecided,
    /// No audio, or too much of it.
    Bad,
}

/// [`CallStats`] of a call that goes on, in little space: no number of packets reaches 2^32.
#[derive(Default)]
pub(super) struct CallCounts {
    pub(super) up_bytes: u64,
    pub(super) down_bytes: u64,
    pub(super) up_packets: u32,
    pub(super) down_packets: u32,
    pub(super) lost: u32,
    pub(super) reordered: u32,
    pub(super) duplicates: u32,
    pub(super) dropped: u32,
    pub(super) redials: u32,
}

impl CallCounts {
    pub(super) fn stats(&self) -> CallStats {
        CallStats {
            up_packets: self.up_packets.into(),
            up_bytes: self.up_bytes,
            down_packets: self.down_packets.into(),
            down_bytes: self.down_bytes,
            lost: self.lost.into(),
            reordered: self.reordered.into(),
            duplicates: self.duplicates.into(),
            dropped: self.dropped.into(),
            redials: self.redials,
        }
    }
}

pub(super) struct Media {
    cipher: Cipher,
    ssrc: u32,
    window: ReplayWindow,
    sequence: u32,
    /// The known source.
    peer: Option<UdpPeer>,
    /// When the known source last settled a packet; the start of the call before.
    settled_at: Instant,
    /// The known source is the device, as far as that can be told: its last packet was like the one before it.
    is_alive: bool,
    /// The IP address of the device's MQTT connection.
    mqtt_ip: IpAddr,
    /// A packet of audio was accepted. Datagrams before it may be something else.
    pub(super) has_audio: bool,
    /// Other sources, which may become known.
    paths: Option<Box<Paths>>,
    pub(super) framing: FramingState,
    pub(super) quality: CallQuality,
    pub(super) counts: CallCounts,
}

impl Media {
    pub(super) fn new(credentials: &CallCredentials, mqtt_ip: IpAddr, now: Instant) -> Self {
        Self {
            cipher: Cipher::new(&credentials.key),
            ssrc: credentials.ssrc,
            window: ReplayWindow::new(),
            sequence: 0,
            peer: None,
            settled_at: now,
            is_alive: false,
            mqtt_ip,
            has_audio: false,
            paths: None,
            framing: FramingState::Unknown(0),
            quality: CallQuality::default(),
            counts: CallCounts::default(),
        }
    }

    /// See [`Core::touch`](super::Core::touch).
    pub(super) fn touch(&self) {
        black_box((self.settled_at, self.counts.up_bytes, self.sequence, self.peer, self.has_audio));
        black_box(self.window.is_confirmed());
        self.quality.touch();
    }

    pub(super) fn ssrc(&self) -> u32 {
        self.ssrc
    }

    /// When the device's last datagram was accepted; before the first, when the call began.
    pub(super) fn last_accepted(&self) -> Instant {
        self.settled_at
    }

    pub(super) fn peer(&self) -> Option<UdpPeer> {
        self.peer
    }

    /// Where to send audio for the device. `listens`: it should be sending audio.
    pub(super) fn destination(&self, listens: bool, now: Instant) -> Result<UdpPeer, DropReason> {
        let peer = self.peer.ok_or(DropReason::NoPeer)?;
        let limit = DOWNLINK_SILENCE[usize::from(!listens)];
        if peer.addr.ip() != self.mqtt_ip && self.is_silent(limit, now) {
            return Err(DropReason::PeerSilent);
        }
        Ok(peer)
    }

    /// The device has a new MQTT connection.
    pub(super) fn set_mqtt_ip(&mut self, mqtt_ip: IpAddr) {
        if mqtt_ip != self.mqtt_ip {
            self.mqtt_ip = mqtt_ip;
            self.forget_home();
        }
    }

    /// Checks one datagram (header, flags, source, sequence) and decrypts it in place.
    pub(super) fn receive(
        &mut self,
        from: UdpPeer,
        datagram: &mut [u8],
        policy: PeerPolicy,
        now: Instant,
    ) -> Result<Received, DropReason> {
        let at_home = from.addr.ip() == self.mqtt_ip;
        let header = match UdpHeader::parse(datagram) {
            Err(BadDatagram::Empty)
                if at_home && self.peer.is_none() && datagram.get(1) == Some(&audio::UPLINK_FLAGS) =>
            {
                return Ok(self.learn(from));
            }
            parsed => parsed?,
        };
        // The gateway's own packets have the call's ssrc and key: only their flags tell that they are not the device's.
        if header.flags != audio::UPLINK_FLAGS {
            return Err(DropReason::DatagramFlags);
        }
        let peer_learned = self.peer.is_none();
        let is_known = self.peer.is_some_and(|known| known.addr == from.addr);
        if !is_known && !(at_home && (peer_learned || !self.has_audio)) {
            return self.validate_path(from, &header, datagram, policy, now);
        }
        let config = self.decrypt_opus(datagram);
        if !self.has_audio && audio::is_text(&datagram[audio::HEADER_LEN..]) {
            return Ok(self.learn(from));
        }
        let settled = self.accept_sequence(header.sequence, config, now)?;
        let is_first = !std::mem::replace(&mut self.has_audio, true);
        if settled || is_first {
            self.is_alive = true;
            if is_first || self.window.is_confirmed() {
                self.drop_candidates();
            }
        } else if !self.window.is_confirmed() {
            self.is_alive = false;
        }
        if settled {
            self.settled_at = now;
        }
        if settled || !self.window.is_confirmed() {
            self.peer = Some(from);
        }
        Ok(Received::Packet(Decrypted {
            timestamp: header.timestamp,
            sequence: header.sequence,
            payload_len: header.payload_len.into(),
            peer_learned,
        }))
    }

    /// A datagram without audio, which some clients send first, tells where the device is. What others sent is dropped.
    fn learn(&mut self, from: UdpPeer) -> Received {
        self.drop_candidates();
        Received::Path { peer_learned: self.peer.replace(from).is_none() }
    }

    /// Whether the sequence of the known source is settled, or provisional.
    fn accept_sequence(
        &mut self,
        sequence: u32,
        config: Option<u8>,
        now: Instant,
    ) -> Result<bool, DropReason> {
        // Most packets continue the sequence, and need no clock.
        let (max_ahead, expected, silent) = match self.window.is_next(sequence) {
            true => (1, 1, false),
            false => {
                let elapsed = self.since_settled(now);
                let expected = 1 + elapsed.as_millis() / FRAME.as_millis();
                let expected = expected.try_into().unwrap_or(u32::MAX);
                (paths::max_ahead(elapsed), expected, self.is_silent(paths::PORT_SILENCE, now))
            }
        };
        match self.window.accept(sequence, config, max_ahead, expected, silent) {
            SequenceVerdict::Fresh { lost, settled } => {
                self.counts.lost = self.counts.lost.saturating_add_signed(lost);
                Ok(settled)
            }
            SequenceVerdict::Duplicate => {
                self.counts.duplicates += 1;
                Err(DropReason::Duplicate)
            }
            SequenceVerdict::Late => {
                self.counts.reordered += 1;
                self.counts.lost = self.counts.lost.saturating_sub(1);
                Err(DropReason::Late)
            }
            SequenceVerdict::TooOld => Err(DropReason::TooOld),
            SequenceVerdict::Jump => Err(DropReason::Jump),
        }
    }

    fn since_settled(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.settled_at)
    }

    /// Whether the known source, if there is one, was silent for so long.
    fn is_silent(&self, limit: Duration, now: Instant) -> bool {
        !self.is_alive || self.since_settled(now) >= limit
    }

    /// Counts one packet of this many Opus bytes that is passed on.
    pub(super) fn count_uplink(&mut self, payload: usize) {
        self.counts.up_packets += 1;
        self.counts.up_bytes += payload as u64;
    }

    /// Replaces the datagram's header by that of the chat server in place, and returns the frame.
    pub(super) fn server_frame<'b>(&mut self, decrypted: &Decrypted, datagram: &'b mut [u8]) -> &'b [u8] {
        let end = audio::HEADER_LEN + decrypted.payload_len;
        self.count_uplink(decrypted.payload_len);
        if self.framing == FramingState::Known(WireFraming::Raw) {
            return &datagram[audio::HEADER_LEN..end];
        }
        datagram[..audio::HEADER_LEN]
            .copy_from_slice(&audio::ws_frame_header(decrypted.timestamp, decrypted.payload_len));
        &datagram[..end]
    }

    /// Learns from a binary frame how the server frames audio. `fixed`: the framing is configured.
    pub(super) fn learn_framing(&mut self, frame: &[u8], fixed: bool) {
        let has_header = audio::parse_ws_frame(frame).is_some();
        self.framing = match self.framing {
            FramingState::Known(WireFraming::Raw) if !fixed && has_header => {
                FramingState::Known(WireFraming::Header)
            }
            FramingState::Unknown(_) if has_header => FramingState::Known(WireFraming::Header),
            FramingState::Unknown(_) if frame.is_empty() || frame.len() > audio::MAX_PAYLOAD => return,
            FramingState::Unknown(seen) if seen + 1 < RAW_FRAMING_AFTER => FramingState::Unknown(seen + 1),
            FramingState::Unknown(_) => FramingState::Known(WireFraming::Raw),
            known => known,
        };
    }

    /// Classifies a frame by what is known of the framing.
    pub(super) fn classify<'a>(&self, frame: &'a [u8], age: Duration) -> ClassifiedFrame<'a> {
        let (timestamp, payload) = match (self.framing, audio::parse_ws_frame(frame)) {
            (FramingState::Unknown(_), _) if frame.is_empty() || frame.len() > audio::MAX_PAYLOAD => {
                return ClassifiedFrame::Bad;
            }
            (FramingState::Unknown(_), _) => return ClassifiedFrame::Undecided,
            (FramingState::Known(WireFraming::Header), Some(headed)) => headed,
            (FramingState::Known(WireFraming::Header), None) => return ClassifiedFrame::Bad,
            // Milliseconds since the call's start, never zero.
            (FramingState::Known(WireFraming::Raw), _) => ((age.as_millis() as u32).max(1), frame),
        };
        match payload.len() {
            1..=audio::MAX_PAYLOAD => ClassifiedFrame::Audio(timestamp, payload),
            _ => ClassifiedFrame::Bad,
        }
    }

    /// Encrypts one Opus packet for the device into `out`.
    pub(super) fn encrypt(
        &mut self,
        peer: UdpPeer,
        timestamp: u32,
        payload: &[u8],
        flags: bool,
        out: &mut [u8],
    ) -> Encrypted {
        self.sequence = self.sequence.wrapping_add(1);
        self.counts.down_packets += 1;
        self.counts.down_bytes += payload.len() as u64;
        let header = UdpHeader {
            flags: if flags { DOWNLINK_FLAG | (self.sequence & 0x7f) as u8 } else { 0 },
            payload_len: payload.len() as u16,
            ssrc: self.ssrc,
            timestamp,
            sequence: self.sequence,
        };
        self.encrypt_under(&header, peer, payload, out)
    }

    /// Encrypts a datagram that only keeps the path to the device open. Sequence 0 is never used for audio: devices drop it, or play
    /// it if they had no audio yet. With [`DOWNLINK_FLAG`] its counter block is that of no other packet, since in neither direction
    /// has another one these flags with a sequence below 128; so `payload` must be the same throughout the call.
    pub(super) fn encrypt_keep_alive(&self, peer: UdpPeer, payload: &[u8], out: &mut [u8]) -> Encrypted {
        let (flags, payload_len, ssrc) = (DOWNLINK_FLAG, payload.len() as u16, self.ssrc);
        let header = UdpHeader { flags, payload_len, ssrc, timestamp: 0, sequence: 0 };
        self.encrypt_under(&header, peer, payload, out)
    }

    fn encrypt_under(&self, header: &UdpHeader, peer: UdpPeer, payload: &[u8], out: &mut [u8]) -> Encrypted {
        let bytes = header.to_bytes();
        let len = audio::HEADER_LEN + payload.len();
        out[..audio::HEADER_LEN].copy_from_slice(&bytes);
        out[audio::HEADER_LEN..len].copy_from_slice(payload);
        self.cipher.apply(&bytes, &mut out[audio::HEADER_LEN..len]);
        Encrypted { destination: peer, datagram_len: len }
    }
}
