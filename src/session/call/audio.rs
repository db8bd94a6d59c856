//! Audio in both directions, and the hold of audio and text until the device's address and the server's framing are known.

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::super::action::{
    Action, Counter, DropReason, Encrypted, EndReason, LogEvent, RefusedDatagrams, UdpPeer,
};
use super::super::context::Context;
use super::super::deadlines::{CallTime, CallTimer};
use super::super::media::{ClassifiedFrame, Decrypted, FramingState, Received};
use super::super::queue::{HeldItem, Speech};
use super::super::server_health::ServerHealth;
use super::{Attachment, Call, CallResult, CallState, HeldAudio};
use crate::config::{Config, Framing as FramingSetting};
use crate::proto::audio;

/// How long audio and `tts start` are held for the device's first datagram.
const HOLD_TIMEOUT: Duration = Duration::from_secs(2);
/// How much audio waits for a device at most.
const HELD_AUDIO_MAX: Duration = Duration::from_secs(300);

/// The silence in a keep-alive, in milliseconds: 24 bytes on the wire, as firmware before 2.4 drops shorter datagrams.
const KEEP_ALIVE_MS: u32 = 60;

/// When the first of what is held may be sent.
enum Due {
    At(Instant),
    /// When the device's address and the server's framing are known.
    Unknown,
    /// When the device has reconnected, and has shown that it is in the call.
    Reattached,
}

/// What to do with an uplink packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Uplink<'b> {
    /// Send it to the chat server.
    Server {
        /// The payload of the binary WebSocket frame.
        frame: &'b [u8],
        /// The number of Opus bytes in it.
        payload: usize,
        /// It is the device's first, or the first after a reconnection: call
        /// [`Core::on_device_heard`](super::super::Core::on_device_heard).
        device_heard: bool,
    },
    /// Send it to the other device by [`Core::relay`](super::super::Core::relay): this many decrypted Opus bytes follow the
    /// datagram's header.
    OtherDevice(usize),
    /// Answer it with [`Core::ringing_silence`](super::super::Core::ringing_silence): the device is calling another one.
    Silence,
    /// Its source is taken for the device's from now on: its packets, this one included, follow from
    /// [`Core::next_released`](super::super::Core::next_released).
    Path {
        /// It is the first, or the first after a reconnection: call
        /// [`Core::on_device_heard`](super::super::Core::on_device_heard) after them.
        device_heard: bool,
    },
}

/// Where a frame of the chat server may go.
pub struct FrameSpace<'b> {
    /// For its datagram, if it leaves at once: at least 16 + 1,400 bytes.
    pub datagram: &'b mut [u8],
    /// How many bytes more may be held.
    pub room: usize,
}

impl Call {
    /// See [`Core::touch`](super::super::Core::touch): a field in each 64 bytes, as far as the compiler's order of them is known.
    pub(in super::super) fn touch(&self) {
        self.media.touch();
        black_box((
            self.state,
            self.last_activity,
            self.playout.ends_at(),
            self.session_id.is_some(),
            self.cold.is_some(),
        ));
        black_box(self.deadlines.start());
    }

    /// Decrypts one datagram of the device in place, and frames it if it is for the chat server.
    pub(in super::super) fn uplink<'b>(
        &mut self,
        from: UdpPeer,
        datagram: &'b mut [u8],
        config: &Config,
        now: Instant,
    ) -> Result<Uplink<'b>, DropReason> {
        let received = self
            .media
            .receive(from, datagram, config.udp.peer_policy, now)
            .inspect_err(|reason| self.count_refused(*reason, from.addr))?;
        let age = self.age(now);
        self.last_activity = CallTime::after(age);
        self.heard_since_listen |= self.media.has_audio;
        let (Received::Path { peer_learned } | Received::Packet(Decrypted { peer_learned, .. })) = received;
        let device_heard = peer_learned || self.awaits_proof();
        match received {
            Received::Packet(decrypted) => {
                self.media.quality.on_uplink(decrypted.sequence, self.media.counts.lost, age);
                self.forward(&decrypted, device_heard, datagram)
            }
            Received::Path { .. } => Ok(Uplink::Path { device_heard }),
        }
    }

    /// The next packet that was kept until its source was taken. It is written to `datagram`.
    pub(in super::super) fn next_released<'b>(
        &mut self,
        datagram: &'b mut Vec<u8>,
    ) -> Option<Result<Uplink<'b>, DropReason>> {
        let decrypted = self.media.next_released(datagram)?;
        Some(self.forward(&decrypted, false, datagram))
    }

    /// Counts a datagram that was refused for this reason, for the line about missing audio.
    fn count_refused(&mut self, reason: DropReason, from: SocketAddr) {
        if RefusedDatagrams::counts(reason) {
            let cold = self.cold.get_or_insert_default();
            cold.refused.get_or_insert_default().count(reason, from);
        }
    }

    fn forward<'b>(
        &mut self,
        decrypted: &Decrypted,
        device_heard: bool,
        datagram: &'b mut [u8],
    ) -> Result<Uplink<'b>, DropReason> {
        let payload = decrypted.payload_len;
        match self.state {
            CallState::Live => Ok(Uplink::Server {
                frame: self.media.server_frame(decrypted, datagram),
                payload,
                device_heard,
            }),
            CallState::InDeviceCall => {
                self.media.count_uplink(payload);
                Ok(Uplink::OtherDevice(payload))
            }
            CallState::Ringing => {
                self.media.counts.dropped += 1;
                Ok(Uplink::Silence)
            }
            CallState::Dialing | CallState::AwaitingHello | CallState::Redialing => {
                self.count_dropped(DropReason::NoServer)
            }
        }
    }

    /// A packet of this many Opus bytes did not fit into the chat server's write buffer.
    pub(in crate::session) fn on_uplink_dropped(&mut self, payload: usize) {
        let counts = &mut self.media.counts;
        counts.up_packets -= 1;
        counts.up_bytes -= payload as u64;
        counts.dropped += 1;
    }

    /// Encrypts one binary frame of the chat server. `None`: it is held.
    pub(in super::super) fn downlink(
        &mut self,
        frame: &[u8],
        space: FrameSpace<'_>,
        config: &Config,
        servers: &mut ServerHealth,
        now: Instant,
    ) -> Result<Option<Encrypted>, DropReason> {
        if !self.has_server() {
            return self.count_dropped(DropReason::NoServer);
        }
        let age = self.age(now);
        self.on_server_message(age);
        let fixed = self.server.as_ref().is_some_and(|server| server.framing != FramingSetting::Auto);
        let before = self.media.framing;
        self.media.learn_framing(frame, fixed);
        if let (FramingState::Known(framing), Some(server)) = (self.media.framing, &self.server)
            && self.media.framing != before
        {
            servers.learn_framing(server, framing);
        }
        let is_early = self.state == CallState::AwaitingHello;
        let (timestamp, opus) = match self.media.classify(frame, age) {
            ClassifiedFrame::Bad => return self.count_dropped(DropReason::BadFrame),
            ClassifiedFrame::Undecided if self.hold_expired && !is_early => {
                return self.count_dropped(DropReason::NoPeer);
            }
            ClassifiedFrame::Undecided => return self.hold(HeldItem::Frame(frame.into()), space.room),
            ClassifiedFrame::Audio(..) if self.aborted && !is_early => {
                return self.count_dropped(DropReason::Aborted);
            }
            ClassifiedFrame::Audio(timestamp, opus) => (timestamp, opus),
        };
        self.media.quality.on_answer(age);
        if is_early
            || !self.held.is_empty()
            || self.must_hold()
            || self.playout.next_frame_at(false, &config.udp) > now
        {
            return self.hold(HeldItem::Packet { timestamp, opus: opus.into() }, space.room);
        }
        let peer = self.media.destination(self.is_listening, now).or_else(|why| self.count_dropped(why))?;
        self.note_frame(now);
        self.playout.on_frame(false, &config.udp, now);
        Ok(Some(self.encrypt(peer, (timestamp, opus), space.datagram, config, age)))
    }

    /// A frame of the server leaves now.
    fn note_frame(&mut self, now: Instant) {
        if self.tts_active {
            self.media.quality.on_speech_frame(now.saturating_duration_since(self.playout.ends_at()));
        }
    }

    /// Encrypts one Opus packet, with its timestamp, for the device, into `out`.
    pub(super) fn encrypt(
        &mut self,
        peer: UdpPeer,
        (timestamp, opus): (u32, &[u8]),
        out: &mut [u8],
        config: &Config,
        age: Duration,
    ) -> Encrypted {
        self.postpone_keep_alive(config, age);
        self.media.quality.on_downlink(self.media.counts.lost, age);
        self.media.encrypt(peer, timestamp, opus, config.udp.downlink_flags, out)
    }

    pub(super) fn count_dropped<T>(&mut self, discard: DropReason) -> Result<T, DropReason> {
        self.media.counts.dropped += 1;
        Err(discard)
    }

    /// Holds audio, of which the sum is bounded: by five minutes, and by `room` bytes.
    fn hold(&mut self, audio: HeldItem, room: usize) -> Result<Option<Encrypted>, DropReason> {
        let is_early = self.state == CallState::AwaitingHello;
        self.server_sent_early_media |= is_early;
        let frames = self.held.frames() + self.cold.as_ref().map_or(0, |cold| cold.early.frames());
        if frames >= self.playout.frames_in(HELD_AUDIO_MAX) || audio.bytes() > room {
            if self.held_audio == HeldAudio::Fits {
                self.held_audio = HeldAudio::Full;
            }
            return self.count_dropped(DropReason::HeldFull);
        }
        match is_early {
            true => self.cold.get_or_insert_default().early.push(audio),
            false => self.held.push(audio),
        }
        Ok(None)
    }

    /// Whether audio has to wait for the device's first datagram.
    pub(super) fn must_hold(&self) -> bool {
        self.media.peer().is_none() && !self.hold_expired
    }

    /// Whether what is held waits for the device or for the server's framing, and not for its time: texts wait behind it.
    fn is_blocked(&self, cx: &Context<'_>) -> bool {
        self.held.front().is_some_and(|front| !matches!(self.due(front, cx), Due::At(_)))
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

    /// The device's first datagram was accepted, or the first after a reconnection.
    pub(in super::super) fn on_device_heard(&mut self, cx: &mut Context<'_>) -> CallResult {
        self.on_proof(cx)?;
        self.free_cold_state();
        self.release_held(cx)
    }

    /// Releases, in order, what need not be held any longer. A call that is to end after that ends with the last of it.
    pub(super) fn release_ready(&mut self, cx: &mut Context<'_>) -> CallResult {
        if self.session_id.is_none() {
            return Ok(());
        }
        if self.held_audio == HeldAudio::Full {
            self.held_audio = HeldAudio::FullLogged;
            cx.log(LogEvent::HeldAudioFull);
        }
        self.deadlines.clear(CallTimer::Playout);
        while let Some(front) = self.held.front() {
            match self.due(front, cx) {
                Due::Unknown => {
                    self.start_hold_timer(cx.now);
                    return Ok(());
                }
                Due::Reattached => {
                    self.deadlines.clear(CallTimer::HoldMedia);
                    return Ok(());
                }
                Due::At(at) if at > cx.now => {
                    self.deadlines.clear(CallTimer::HoldMedia);
                    self.deadlines.set(CallTimer::Playout, at);
                    return Ok(());
                }
                Due::At(_) => {}
            }
            match self.held.pop() {
                Some(HeldItem::Text { text, .. }) => self.deliver_to_device(&text, cx)?,
                Some(HeldItem::Packet { timestamp, opus }) => self.release_packet(timestamp, &opus, cx),
                Some(HeldItem::Frame(frame)) => match self.media.classify(&frame, self.age(cx.now)) {
                    ClassifiedFrame::Audio(timestamp, opus) => self.release_packet(timestamp, opus, cx),
                    _ => self.count_held_dropped(1, DropReason::BadFrame, cx),
                },
                None => {}
            }
        }
        self.deadlines.clear(CallTimer::HoldMedia);
        match self.ending {
            Some(reason) if self.playout.ends_at() <= cx.now => Err(reason),
            Some(_) => {
                self.deadlines.set(CallTimer::Playout, self.playout.ends_at());
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn due(&self, item: &HeldItem, cx: &Context<'_>) -> Due {
        match item {
            HeldItem::Text { speech, .. } => self.text_due(*speech, cx),
            HeldItem::Frame(_) if matches!(self.media.framing, FramingState::Unknown(_)) => Due::Unknown,
            _ if self.must_hold() => Due::Unknown,
            _ => Due::At(self.playout.next_frame_at(true, &cx.config.udp)),
        }
    }

    /// When a text may be sent if nothing is held before it: `tts stop` when the device has played the speech.
    fn text_due(&self, speech: Option<Speech>, cx: &Context<'_>) -> Due {
        match speech {
            Some(Speech::Start) if self.attachment != Attachment::Attached && self.session_id.is_some() => {
                Due::Reattached
            }
            Some(Speech::Start) if self.must_hold() => Due::Unknown,
            Some(Speech::Stop) if cx.config.udp.downlink_pace => Due::At(self.playout.ends_at()),
            _ => Due::At(cx.now),
        }
    }

    /// Sends a text of the server to the device, in its place among the audio if it is about speech; others overtake audio that
    /// waits for its time.
    pub(super) fn deliver_in_order(
        &mut self,
        text: &str,
        speech: Option<Speech>,
        cx: &mut Context<'_>,
    ) -> CallResult {
        let waits = match speech {
            None => self.is_blocked(cx),
            Some(_) => {
                !self.held.is_empty() || !matches!(self.text_due(speech, cx), Due::At(at) if at <= cx.now)
            }
        };
        if !waits {
            return self.deliver_to_device(text, cx);
        }
        self.held.push_text(text, speech)?;
        self.release_ready(cx)
    }

    fn release_packet(&mut self, timestamp: u32, opus: &[u8], cx: &mut Context<'_>) {
        let peer = match self.media.destination(self.is_listening, cx.now) {
            Ok(peer) => peer,
            Err(why) => return self.count_held_dropped(1, why, cx),
        };
        self.note_frame(cx.now);
        self.playout.on_frame(true, &cx.config.udp, cx.now);
        let age = self.age(cx.now);
        self.last_activity = CallTime::after(age);
        let mut datagram = vec![0; audio::HEADER_LEN + opus.len()];
        let encrypted = self.encrypt(peer, (timestamp, opus), &mut datagram, cx.config, age);
        cx.out.push(Action::SendDatagram(encrypted, datagram.into_boxed_slice()));
    }

    /// A datagram is sent to the device. There is no keep-alive without the flags, since its counter block could then be that of an
    /// uplink packet with the sequence 0.
    pub(super) fn postpone_keep_alive(&mut self, config: &Config, age: Duration) {
        let interval = config.udp.keep_alive;
        if interval.is_zero() || !config.udp.downlink_flags {
            self.deadlines.clear(CallTimer::KeepAlive);
        } else {
            self.deadlines.set_after(CallTimer::KeepAlive, age + interval);
        }
    }

    /// Routers and relays between gateway and device forget the path when nothing was sent for a while.
    pub(super) fn send_keep_alive(&mut self, cx: &mut Context<'_>) {
        self.postpone_keep_alive(cx.config, self.age(cx.now));
        let wanted = self.deadlines.is_set(CallTimer::KeepAlive) && !self.is_closing();
        let peer = self.media.destination(self.is_listening, cx.now);
        let Some(peer) = peer.ok().filter(|_| wanted) else { return };
        let silence = audio::silence_packet(KEEP_ALIVE_MS);
        let mut datagram = vec![0; audio::HEADER_LEN + silence.len()];
        let encrypted = self.media.encrypt_keep_alive(peer, &silence, &mut datagram);
        cx.out.push(Action::SendDatagram(encrypted, datagram.into_boxed_slice()));
    }

    /// The user has interrupted the device: audio and sentences that wait are dropped, and what starts or stops speech is sent at
    /// once. Audio that the server still sends of that speech is dropped too.
    pub(super) fn interrupt(&mut self, cx: &mut Context<'_>) -> CallResult {
        self.aborted = self.held.speech_goes_on().unwrap_or(self.tts_active);
        self.media.quality.on_abort();
        self.drop_held_audio(DropReason::Aborted, cx);
        self.playout.on_abort(cx.now);
        cx.out.push(Action::FlushAudio(self.ssrc()));
        let mut held = std::mem::take(&mut self.held);
        while let Some(HeldItem::Text { text, speech }) = held.pop() {
            if speech != Some(Speech::Other) {
                self.deliver_to_device(&text, cx)?;
            }
        }
        self.release_ready(cx)
    }

    /// Ends the call for this reason, after the device has played what the server said.
    pub(super) fn end_after_playout(&mut self, reason: EndReason, cx: &mut Context<'_>) -> CallResult {
        let waits = !self.held.is_empty() || self.playout.ends_at() > cx.now;
        if !cx.config.udp.downlink_pace || self.session_id.is_none() || !waits {
            return Err(reason);
        }
        self.close_server((reason != EndReason::ServerClosed).then_some(reason.label()), 1000, cx);
        self.deadlines.clear_server_timers();
        self.ending = Some(reason);
        self.release_ready(cx)
    }

    /// Drops held audio and returns the number of frames.
    pub(super) fn drop_held_audio(&mut self, why: DropReason, cx: &mut Context<'_>) -> usize {
        let early = self.cold.as_mut().map_or(0, |cold| cold.early.drop_frames());
        let frames = self.held.drop_frames() + early;
        self.count_held_dropped(frames, why, cx);
        frames
    }

    pub(super) fn count_held_dropped(&mut self, frames: usize, why: DropReason, cx: &mut Context<'_>) {
        self.media.counts.dropped += frames as u32;
        cx.out.extend((0..frames).map(|_| Action::Count(Counter::Dropped(why))));
    }

    /// Sends the held texts to a device whose call ends.
    pub(super) fn release_held_texts(&mut self, cx: &mut Context<'_>) -> CallResult {
        self.deadlines.clear(CallTimer::HoldMedia);
        self.deadlines.clear(CallTimer::Playout);
        let mut held = std::mem::take(&mut self.held);
        while let Some(item) = held.pop() {
            if let HeldItem::Text { text, .. } = item {
                self.deliver_to_device(&text, cx)?;
            }
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
