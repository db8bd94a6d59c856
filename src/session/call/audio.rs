//! Audio in both directions, and the hold of audio and text until the device's address and the server's framing are known.

use std::time::{Duration, Instant};

use super::super::action::{Action, Counter, DropReason, Encrypted, LogEvent, UdpPeer};
use super::super::context::Context;
use super::super::deadlines::CallTimer;
use super::super::media::{ClassifiedFrame, Decrypted, FramingState, Received};
use super::super::queue::HeldItem;
use super::super::server_health::ServerHealth;
use super::{Call, CallResult, CallState};
use crate::config::{Config, Framing as FramingSetting};
use crate::proto::audio;

/// How long audio and `tts start` are held for the device's first datagram.
const HOLD_TIMEOUT: Duration = Duration::from_secs(2);

/// What to do with an uplink packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Uplink<'b> {
    /// Send it to the chat server.
    Server {
        /// The payload of the binary WebSocket frame.
        frame: &'b [u8],
        /// The number of Opus bytes in it.
        payload: usize,
        /// It is the device's first: call [`Core::release_held`](super::super::Core::release_held).
        peer_learned: bool,
    },
    /// Send it to the other device by [`Core::relay`](super::super::Core::relay): this many decrypted Opus bytes follow the
    /// datagram's header.
    OtherDevice(usize),
    /// Answer it with [`Core::ringing_silence`](super::super::Core::ringing_silence): the device is calling another one.
    Silence,
    /// Its source is taken for the device's from now on: its packets, this one included, follow from
    /// [`Core::next_released`](super::super::Core::next_released).
    Path {
        /// It is the device's first source: call [`Core::release_held`](super::super::Core::release_held) after them.
        peer_learned: bool,
    },
}

impl Call {
    /// Decrypts one datagram of the device in place, and frames it if it is for the chat server.
    pub(in super::super) fn uplink<'b>(
        &mut self,
        from: UdpPeer,
        datagram: &'b mut [u8],
        config: &Config,
        now: Instant,
    ) -> Result<Uplink<'b>, DropReason> {
        let received = self.media.receive(from, datagram, config.udp.peer_policy, now)?;
        self.last_activity = now;
        let (Received::Path { peer_learned } | Received::Packet(Decrypted { peer_learned, .. })) = received;
        if peer_learned && self.session_id.is_some() {
            self.credentials = None;
        }
        match received {
            Received::Packet(decrypted) => self.forward(&decrypted, datagram),
            Received::Path { peer_learned } => Ok(Uplink::Path { peer_learned }),
        }
    }

    /// The next packet that was kept until its source was taken. It is written to `datagram`.
    pub(in super::super) fn next_released<'b>(
        &mut self,
        datagram: &'b mut Vec<u8>,
    ) -> Option<Result<Uplink<'b>, DropReason>> {
        let decrypted = self.media.next_released(datagram)?;
        Some(self.forward(&decrypted, datagram))
    }

    fn forward<'b>(
        &mut self,
        decrypted: &Decrypted,
        datagram: &'b mut [u8],
    ) -> Result<Uplink<'b>, DropReason> {
        let payload = decrypted.payload_len;
        match self.state {
            CallState::Live => Ok(Uplink::Server {
                frame: self.media.server_frame(decrypted, datagram),
                payload,
                peer_learned: decrypted.peer_learned,
            }),
            CallState::InDeviceCall => {
                self.media.count_uplink(payload);
                Ok(Uplink::OtherDevice(payload))
            }
            CallState::Ringing => {
                self.media.stats.dropped += 1;
                Ok(Uplink::Silence)
            }
            CallState::Dialing | CallState::AwaitingHello | CallState::Redialing => {
                self.count_dropped(DropReason::NoServer)
            }
        }
    }

    /// A packet of this many Opus bytes did not fit into the chat server's write buffer.
    pub(in crate::session) fn on_uplink_dropped(&mut self, payload: usize) {
        let stats = &mut self.media.stats;
        stats.up_packets -= 1;
        stats.up_bytes -= payload as u64;
        stats.dropped += 1;
    }

    /// Encrypts one binary frame of the chat server into `out`. `None`: it is held.
    pub(in super::super) fn downlink(
        &mut self,
        frame: &[u8],
        out: &mut [u8],
        config: &Config,
        servers: &mut ServerHealth,
        now: Instant,
    ) -> Result<Option<Encrypted>, DropReason> {
        if !self.has_server() {
            return self.count_dropped(DropReason::NoServer);
        }
        self.on_server_message(now);
        let fixed = self.server.as_ref().is_some_and(|server| server.framing != FramingSetting::Auto);
        let before = self.media.framing;
        let found = self.media.classify(frame, fixed, self.age(now));
        if let (FramingState::Known(framing), Some(server)) = (self.media.framing, &self.server)
            && self.media.framing != before
        {
            servers.learn_framing(server, framing);
        }
        if matches!(found, ClassifiedFrame::Bad) {
            return self.count_dropped(DropReason::BadFrame);
        }
        if self.state == CallState::AwaitingHello {
            self.server_sent_early_media = true;
            return self.hold_frame(frame);
        }
        let ClassifiedFrame::Audio(timestamp, payload) = found else {
            if self.hold_expired {
                return self.count_dropped(DropReason::NoPeer);
            }
            self.start_hold_timer(now);
            return self.hold_frame(frame);
        };
        if !self.held.is_empty() || self.must_hold() {
            self.start_hold_timer(now);
            return self.hold_frame(frame);
        }
        let peer = self.media.destination(self.is_listening, now).or_else(|why| self.count_dropped(why))?;
        Ok(Some(self.media.encrypt(peer, timestamp, payload, config.udp.downlink_flags, out)))
    }

    pub(super) fn count_dropped<T>(&mut self, discard: DropReason) -> Result<T, DropReason> {
        self.media.stats.dropped += 1;
        Err(discard)
    }

    fn hold_frame(&mut self, frame: &[u8]) -> Result<Option<Encrypted>, DropReason> {
        if self.held.push_frame(frame) {
            return Ok(None);
        }
        self.count_dropped(DropReason::HeldFull)
    }

    /// Whether audio has to wait for the device's first datagram.
    pub(super) fn must_hold(&self) -> bool {
        self.media.peer().is_none() && !self.hold_expired
    }

    pub(super) fn start_hold_timer(&mut self, now: Instant) {
        if !self.deadlines.is_set(CallTimer::HoldMedia) {
            self.deadlines.set(CallTimer::HoldMedia, now + HOLD_TIMEOUT);
        }
    }

    /// Releases what need not be held any longer, after a change of the framing or of the device's address.
    pub(in super::super) fn release_held(&mut self, cx: &mut Context<'_>) -> CallResult {
        if self.state == CallState::AwaitingHello {
            return self.accept_missing_hello(cx);
        }
        self.release_ready(cx)
    }

    /// Releases, in order, what need not be held any longer.
    pub(super) fn release_ready(&mut self, cx: &mut Context<'_>) -> CallResult {
        if self.state != CallState::Live {
            return Ok(());
        }
        while let Some(front) = self.held.front() {
            let waits = match front {
                HeldItem::Text { tts_start, .. } => *tts_start && self.must_hold(),
                HeldItem::Frame(frame) => {
                    self.must_hold()
                        || matches!(
                            self.media.classify_held(frame, self.age(cx.now)),
                            ClassifiedFrame::Undecided
                        )
                }
            };
            if waits {
                self.start_hold_timer(cx.now);
                return Ok(());
            }
            match self.held.pop() {
                Some(HeldItem::Text { text, .. }) => self.deliver_to_device(&text, cx)?,
                Some(HeldItem::Frame(frame)) => self.release_frame(&frame, cx),
                None => {}
            }
        }
        self.deadlines.clear(CallTimer::HoldMedia);
        Ok(())
    }

    fn release_frame(&mut self, frame: &[u8], cx: &mut Context<'_>) {
        let found = self.media.classify_held(frame, self.age(cx.now));
        let ready = match found {
            ClassifiedFrame::Audio(timestamp, payload) => {
                self.media.destination(self.is_listening, cx.now).map(|peer| (peer, timestamp, payload))
            }
            _ => Err(DropReason::BadFrame),
        };
        let (peer, timestamp, payload) = match ready {
            Ok(ready) => ready,
            Err(why) => {
                self.media.stats.dropped += 1;
                return cx.count(Counter::Dropped(why));
            }
        };
        let mut datagram = vec![0; audio::HEADER_LEN + payload.len()];
        let encrypted =
            self.media.encrypt(peer, timestamp, payload, cx.config.udp.downlink_flags, &mut datagram);
        cx.out.push(Action::SendDatagram(encrypted, datagram.into_boxed_slice()));
    }

    /// Drops held audio and returns the number of frames.
    pub(super) fn drop_held_audio(&mut self, why: DropReason, cx: &mut Context<'_>) -> usize {
        let frames = self.held.drop_frames();
        self.media.stats.dropped += frames as u64;
        cx.out.extend((0..frames).map(|_| Action::Count(Counter::Dropped(why))));
        frames
    }

    /// Sends the held texts of a server that is given up to the device, unless that server sent no hello.
    pub(super) fn release_held_texts(&mut self, cx: &mut Context<'_>) -> CallResult {
        self.deadlines.clear(CallTimer::HoldMedia);
        let mut held = std::mem::take(&mut self.held);
        if self.state != CallState::Live {
            return Ok(());
        }
        while let Some(HeldItem::Text { text, .. }) = held.pop() {
            self.deliver_to_device(&text, cx)?;
        }
        Ok(())
    }

    /// The hold for the first datagram has ended: texts are released, audio is dropped.
    pub(super) fn on_hold_timeout(&mut self, cx: &mut Context<'_>) -> CallResult {
        self.hold_expired = true;
        let frames = self.drop_held_audio(DropReason::NoPeer, cx);
        if frames > 0 {
            cx.log(LogEvent::HeldAudioDropped(frames));
        }
        self.release_ready(cx)
    }
}
