//! Audio both ways, and what waits for the device's first datagram or for a server's framing to show.

use std::time::{Duration, Instant};

use super::super::action::{Action, Counter, Cx, Discard, Note};
use super::super::deadlines::Timer;
use super::super::media::{Frame, Framing, Opened, Peer, Sealed};
use super::super::queue::Held;
use super::super::server_health::Servers;
use super::{Call, Flow, Stage};
use crate::config::{Config, Framing as FramingSetting};
use crate::proto::audio;

/// How long audio and `tts start` wait for the device's first datagram.
const HOLD: Duration = Duration::from_secs(2);

/// Where an uplink packet goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Uplink<'b> {
    /// To the chat server.
    Server {
        /// The binary WebSocket frame's payload.
        frame: &'b [u8],
        /// The Opus bytes in it.
        payload: usize,
        /// The device's address became known: call [`Core::audible`](super::super::Core::audible).
        first: bool,
    },
    /// To the device that this one talks to: so many Opus bytes stand decrypted behind the datagram's header, for
    /// [`Core::relay`](super::super::Core::relay).
    Peer(usize),
    /// Nowhere, since the other device rings: [`Core::silence`](super::super::Core::silence) answers it.
    Silence,
}

impl Call {
    /// One datagram of the device, decrypted in place, and framed if it goes to the chat server.
    pub(in super::super) fn uplink<'b>(
        &mut self,
        from: Peer,
        datagram: &'b mut [u8],
        config: &Config,
        now: Instant,
    ) -> Result<Uplink<'b>, Discard> {
        let opened: Opened = self.media.open(from, datagram, config.udp.peer_policy, now)?;
        self.last_activity = now;
        let (payload, first) = (opened.payload, opened.first);
        if first && self.id.is_some() {
            self.grant = None;
        }
        match self.stage {
            Stage::Live => Ok(Uplink::Server { frame: self.media.framed(&opened, datagram), payload, first }),
            Stage::Bridged => {
                self.media.count_up(payload);
                Ok(Uplink::Peer(payload))
            }
            Stage::Ringing => {
                self.media.facts.dropped += 1;
                Ok(Uplink::Silence)
            }
            Stage::Dialing { .. } | Stage::Greeting | Stage::Backoff => self.dropped(Discard::NoServer),
        }
    }

    /// The chat server's connection had no room for a packet of so many Opus bytes.
    pub(in crate::session) fn unsent(&mut self, payload: usize) {
        let facts = &mut self.media.facts;
        facts.up_packets -= 1;
        facts.up_bytes -= payload as u64;
        facts.dropped += 1;
    }

    /// One binary frame of the chat server, encrypted into `out`. None: it waits.
    pub(in super::super) fn downlink(
        &mut self,
        frame: &[u8],
        out: &mut [u8],
        config: &Config,
        servers: &mut Servers,
        now: Instant,
    ) -> Result<Option<Sealed>, Discard> {
        if !self.has_server() {
            return self.dropped(Discard::NoServer);
        }
        self.server_said(now);
        let fixed = self.server.as_ref().is_some_and(|server| server.framing != FramingSetting::Auto);
        let before = self.media.framing;
        let found = self.media.classify(frame, fixed, self.age(now));
        if let (Framing::Known(spoken), Some(server)) = (self.media.framing, &self.server)
            && self.media.framing != before
        {
            servers.learn(server, spoken);
        }
        if matches!(found, Frame::Bad) {
            return self.dropped(Discard::BadFrame);
        }
        if self.stage == Stage::Greeting {
            self.server_spoke = true;
            return self.hold_frame(frame);
        }
        let Frame::Audio(timestamp, payload) = found else {
            if self.hold_spent {
                return self.dropped(Discard::NoPeer);
            }
            self.hold(now);
            return self.hold_frame(frame);
        };
        if !self.held.is_empty() || self.must_hold() {
            self.hold(now);
            return self.hold_frame(frame);
        }
        let Some(peer) = self.media.peer() else { return self.dropped(Discard::NoPeer) };
        Ok(Some(self.media.seal(peer, timestamp, payload, config.udp.downlink_flags, out)))
    }

    pub(super) fn dropped<T>(&mut self, discard: Discard) -> Result<T, Discard> {
        self.media.facts.dropped += 1;
        Err(discard)
    }

    fn hold_frame(&mut self, frame: &[u8]) -> Result<Option<Sealed>, Discard> {
        if self.held.push_frame(frame) {
            return Ok(None);
        }
        self.dropped(Discard::HeldFull)
    }

    /// There is nowhere to send audio to yet, and it has not waited its time.
    pub(super) fn must_hold(&self) -> bool {
        self.media.peer().is_none() && !self.hold_spent
    }

    pub(super) fn hold(&mut self, now: Instant) {
        if !self.deadlines.is_set(Timer::Hold) {
            self.deadlines.set(Timer::Hold, now + HOLD);
        }
    }

    /// Something changed that may let waiting text and audio go: the framing, the device's address, or the hello.
    pub(in super::super) fn settle(&mut self, cx: &mut Cx<'_>) -> Flow {
        if self.stage == Stage::Greeting {
            return self.greet_late(cx);
        }
        self.release(cx)
    }

    /// Lets go, in order, all that need not wait any more.
    pub(super) fn release(&mut self, cx: &mut Cx<'_>) -> Flow {
        if self.stage != Stage::Live {
            return Ok(());
        }
        while let Some(front) = self.held.front() {
            let waits = match front {
                Held::Text { tts_start, .. } => *tts_start && self.must_hold(),
                Held::Frame(frame) => {
                    self.must_hold()
                        || matches!(self.media.reconsider(frame, self.age(cx.now)), Frame::Undecided)
                }
            };
            if waits {
                self.hold(cx.now);
                return Ok(());
            }
            match self.held.pop() {
                Some(Held::Text { text, .. }) => self.deliver(&text, cx)?,
                Some(Held::Frame(frame)) => self.release_frame(&frame, cx),
                None => {}
            }
        }
        self.deadlines.clear(Timer::Hold);
        Ok(())
    }

    fn release_frame(&mut self, frame: &[u8], cx: &mut Cx<'_>) {
        let found = self.media.reconsider(frame, self.age(cx.now));
        let (Frame::Audio(timestamp, payload), Some(peer)) = (found, self.media.peer()) else {
            self.media.facts.dropped += 1;
            cx.out.push(Action::Count(Counter::Dropped(Discard::BadFrame)));
            return;
        };
        let mut datagram = vec![0; audio::HEADER + payload.len()];
        let sealed = self.media.seal(peer, timestamp, payload, cx.config.udp.downlink_flags, &mut datagram);
        cx.out.push(Action::Datagram(sealed, datagram.into_boxed_slice()));
    }

    /// Forgets waiting audio; says how much.
    pub(super) fn drop_held_audio(&mut self, why: Discard, cx: &mut Cx<'_>) -> usize {
        let frames = self.held.drop_frames();
        self.media.facts.dropped += frames as u64;
        cx.out.extend((0..frames).map(|_| Action::Count(Counter::Dropped(why))));
        frames
    }

    /// The server is gone: its text that waits goes to the device, unless it never said hello.
    pub(super) fn release_texts(&mut self, cx: &mut Cx<'_>) -> Flow {
        self.deadlines.clear(Timer::Hold);
        let mut held = std::mem::take(&mut self.held);
        if self.stage != Stage::Live {
            return Ok(());
        }
        while let Some(Held::Text { text, .. }) = held.pop() {
            self.deliver(&text, cx)?;
        }
        Ok(())
    }

    /// Waited long enough: text goes on, audio is dropped.
    pub(super) fn hold_over(&mut self, cx: &mut Cx<'_>) -> Flow {
        self.hold_spent = true;
        let frames = self.drop_held_audio(Discard::NoPeer, cx);
        if frames > 0 {
            cx.out.push(Action::Note(Note::HeldDropped(frames)));
        }
        self.release(cx)
    }
}
