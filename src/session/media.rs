//! The audio path of one call: encryption, sequences, the device's UDP address, framing towards the chat server. It does not
//! allocate and returns borrowed results, since it runs for each packet.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::action::{CallCredentials, CallStats, DropReason, Encrypted, UdpPeer};
use super::jitter::Jitter;
use super::server_health::WireFraming;
use crate::config::PeerPolicy;
use crate::proto::audio::{self, Cipher, ReplayWindow, SequenceVerdict, UdpHeader};

/// The direction bit in the flags byte of downlink packets: no counter block is used in both directions.
const DOWNLINK_FLAG: u8 = 0x80;
/// How long the known source must be silent before another IP address is accepted.
const PATH_SILENCE_MIN: Duration = Duration::from_secs(2);
/// The consecutive plausible packets after which an unknown IP address is accepted.
const PATH_VALIDATION_PACKETS: u8 = 3;
/// The binary frames without a header, in one call, after which a server is taken to send raw Opus.
const RAW_FRAMING_AFTER: u8 = 3;

/// An uplink packet that was accepted and decrypted in place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Decrypted {
    pub(super) timestamp: u32,
    pub(super) payload_len: usize,
    /// The device's address was not known before this packet.
    pub(super) peer_learned: bool,
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

pub(super) struct Media {
    cipher: Cipher,
    ssrc: u32,
    window: ReplayWindow,
    sequence: u32,
    peer: Option<UdpPeer>,
    peer_last_seen: Instant,
    /// The IP address of the device's MQTT connection. Datagrams from any of its ports are accepted.
    mqtt_ip: IpAddr,
    /// The configuration number of the device's Opus packets.
    opus_config: Option<u8>,
    candidate: Option<Box<PathCandidate>>,
    pub(super) framing: FramingState,
    jitter: Jitter,
    pub(super) stats: CallStats,
}

/// An unknown IP address that may be a new address of the device.
struct PathCandidate {
    addr: SocketAddr,
    next_sequence: u32,
    opus_config: u8,
    packets: u8,
}

impl Media {
    pub(super) fn new(credentials: &CallCredentials, mqtt_ip: IpAddr, now: Instant) -> Self {
        Self {
            cipher: Cipher::new(&credentials.key),
            ssrc: credentials.ssrc,
            window: ReplayWindow::new(),
            sequence: 0,
            peer: None,
            peer_last_seen: now,

            mqtt_ip,
            opus_config: None,
            candidate: None,
            framing: FramingState::Unknown(0),
            jitter: Jitter::default(),
            stats: CallStats::default(),
        }
    }

    pub(super) fn ssrc(&self) -> u32 {
        self.ssrc
    }

    /// The jitter of the device's audio.
    pub(super) fn jitter(&self) -> Duration {
        self.jitter.value()
    }

    /// When the device's last datagram was accepted; before the first, when the call began.
    pub(super) fn last_accepted(&self) -> Instant {
        self.peer_last_seen
    }

    pub(super) fn peer(&self) -> Option<UdpPeer> {
        self.peer
    }

    /// The device has a new MQTT connection.
    pub(super) fn set_mqtt_ip(&mut self, mqtt_ip: IpAddr) {
        self.mqtt_ip = mqtt_ip;
    }

    /// Checks one datagram (header, flags, source, sequence) and decrypts it in place. A datagram that is refused changes no
    /// state but counters and the path candidate.
    pub(super) fn decrypt(
        &mut self,
        from: UdpPeer,
        datagram: &mut [u8],
        policy: PeerPolicy,
        now: Instant,
    ) -> Result<Decrypted, DropReason> {
        let header = UdpHeader::parse(datagram)?;
        // The gateway's own packets have the call's ssrc and key: only their flags tell that they are not the device's.
        if header.flags != audio::UPLINK_FLAGS {
            return Err(DropReason::DatagramFlags);
        }
        let trusted = from.addr.ip() == self.mqtt_ip || self.peer.is_some_and(|peer| peer.addr == from.addr);
        if !trusted {
            return self.validate_path(from, &header, datagram, policy, now);
        }
        self.accept_sequence(header.sequence)?;
        let payload = &mut datagram[audio::HEADER_LEN..];
        self.cipher.apply(&header.to_bytes(), payload);
        let opus_config = audio::opus_config(payload);
        Ok(self.accept_source(from, &header, opus_config, now))
    }

    fn accept_sequence(&mut self, sequence: u32) -> Result<(), DropReason> {
        match self.window.accept(sequence) {
            SequenceVerdict::Fresh { lost } => {
                self.stats.lost += u64::from(lost);
                Ok(())
            }
            SequenceVerdict::Duplicate => {
                self.stats.duplicates += 1;
                Err(DropReason::Duplicate)
            }
            SequenceVerdict::Late => {
                self.stats.reordered += 1;
                self.stats.lost = self.stats.lost.saturating_sub(1);
                Err(DropReason::Late)
            }
            SequenceVerdict::TooOld => Err(DropReason::TooOld),
            SequenceVerdict::Jump => Err(DropReason::Jump),
        }
    }

    /// The packet is accepted: its source is the device's address from now on.
    fn accept_source(
        &mut self,
        from: UdpPeer,
        header: &UdpHeader,
        opus_config: Option<u8>,
        now: Instant,
    ) -> Decrypted {
        self.opus_config = opus_config.or(self.opus_config);
        self.peer_last_seen = now;
        self.jitter.on_packet(header.sequence, now);
        self.candidate = None;
        Decrypted {
            timestamp: header.timestamp,
            payload_len: header.payload_len.into(),
            peer_learned: self.peer.replace(from).is_none(),
        }
    }

    /// Handles a packet from an unknown IP address. The address is accepted with the last of several plausible packets in a row,
    /// and only while the known source is silent.
    fn validate_path(
        &mut self,
        from: UdpPeer,
        header: &UdpHeader,
        datagram: &mut [u8],
        policy: PeerPolicy,
        now: Instant,
    ) -> Result<Decrypted, DropReason> {
        if policy == PeerPolicy::Strict
            || !matches!(self.window.check(header.sequence), SequenceVerdict::Fresh { .. })
        {
            return Err(DropReason::ForeignSource);
        }
        let silent =
            self.peer.is_none() || now.saturating_duration_since(self.peer_last_seen) >= PATH_SILENCE_MIN;
        let payload = &mut datagram[audio::HEADER_LEN..];
        self.cipher.apply(&header.to_bytes(), payload);
        let config = audio::opus_config(payload)
            .filter(|config| silent && self.opus_config.is_none_or(|known| known == *config));
        let Some(config) = config else {
            self.candidate = None;
            return Err(DropReason::ForeignSource);
        };
        let seen = match &self.candidate {
            Some(candidate)
                if candidate.addr == from.addr
                    && candidate.next_sequence == header.sequence
                    && candidate.opus_config == config =>
            {
                candidate.packets + 1
            }
            _ => 1,
        };
        if seen < PATH_VALIDATION_PACKETS {
            let next = header.sequence.wrapping_add(1);
            let candidate =
                PathCandidate { addr: from.addr, next_sequence: next, opus_config: config, packets: seen };
            match &mut self.candidate {
                Some(known) => **known = candidate,
                None => self.candidate = Some(Box::new(candidate)),
            }
            return Err(DropReason::ForeignSource);
        }
        self.accept_sequence(header.sequence)?;
        Ok(self.accept_source(from, header, Some(config), now))
    }

    /// Counts one packet of this many Opus bytes that is passed on.
    pub(super) fn count_uplink(&mut self, payload: usize) {
        self.stats.up_packets += 1;
        self.stats.up_bytes += payload as u64;
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
        self.stats.down_packets += 1;
        self.stats.down_bytes += payload.len() as u64;
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
