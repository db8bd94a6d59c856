//! A device speaks into a call for a while, and counts what comes back.

use std::time::{Duration, Instant};

use super::device::test_audio;
use super::device::{Call, Device, Failure};
use crate::proto::message::{self, Reader};

/// A device's frame.
pub(super) const PACE: Duration = Duration::from_millis(60);
/// Wait slices: short enough for a smooth view and for text that comes meanwhile.
const SLICE: Duration = Duration::from_millis(20);
/// Texts kept: far more than a call of a few seconds brings.
const MAX_TEXTS: usize = 1000;

/// What was said and heard so far.
pub(super) struct Exchange {
    start: Instant,
    /// Packets sent; their numbers are 0 to `sent`.
    pub(super) sent: u32,
    /// Packets of ours that came back, each counted once.
    pub(super) echoed: u32,
    came_back: Vec<bool>,
    /// Audio packets from the gateway, ours or not.
    pub(super) heard: u64,
    /// One for each packet that came back, in their order.
    pub(super) round_trips: Vec<Duration>,
    /// Text messages, with the number of packets sent before each.
    pub(super) texts: Vec<(u32, String)>,
    /// The host answered that nothing listens on the audio port.
    pub(super) refused: bool,
    /// Another error of the audio socket.
    pub(super) udp_error: Option<String>,
    /// The gateway said goodbye.
    pub(super) ended: bool,
}

impl Exchange {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            sent: 0,
            echoed: 0,
            came_back: Vec::new(),
            heard: 0,
            round_trips: Vec::new(),
            texts: Vec::new(),
            refused: false,
            udp_error: None,
            ended: false,
        }
    }

    /// Sends `packets` packets, one each [`PACE`], and listens for `linger` after the last. `tick` is called about every
    /// 20 ms. Ends early when the gateway says goodbye.
    ///
    /// # Errors
    /// When the MQTT connection ends. Errors of the audio socket are noted and gone over.
    pub(super) fn speak(
        &mut self,
        device: &mut Device,
        call: &mut Call,
        packets: u32,
        linger: Duration,
        mut tick: impl FnMut(&Self),
    ) -> Result<(), Failure> {
        let first = Instant::now();
        for i in 0..packets {
            let packet = test_audio::packet(self.sent, self.start.elapsed().as_micros() as u64);
            if let Err(failure) = call.send(0, &packet) {
                self.note_udp(&failure);
            }
            self.sent += 1;
            self.came_back.push(false);
            self.listen(device, call, first + PACE * (i + 1), &mut tick, |_| false)?;
            if self.ended {
                return Ok(());
            }
        }
        let until = Instant::now() + linger;
        self.listen(device, call, until, &mut tick, |exchange| exchange.echoed == exchange.sent)
    }

    /// Listens until `until`, a goodbye, or `enough`.
    ///
    /// # Errors
    /// As [`Self::speak`].
    pub(super) fn listen(
        &mut self,
        device: &mut Device,
        call: &mut Call,
        until: Instant,
        mut tick: impl FnMut(&Self),
        enough: impl Fn(&Self) -> bool,
    ) -> Result<(), Failure> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match call.receive(left.min(SLICE)) {
                Ok(Some(audio)) => self.note_audio(&audio.payload),
                Ok(None) => {}
                Err(failure) => {
                    self.note_udp(&failure);
                    // The error may come at once, again and again.
                    std::thread::sleep(left.min(SLICE));
                }
            }
            while let Some(text) = device.receive_text(Duration::ZERO)? {
                self.note_text(text);
            }
            tick(self);
            if self.ended || enough(self) || Instant::now() >= until {
                return Ok(());
            }
        }
    }

    /// Packets overtaken by later ones, or never to come: those in flight are not among them.
    pub(super) fn lost_so_far(&self) -> u32 {
        let highest = self.came_back.iter().rposition(|came| *came).map_or(0, |i| i as u32 + 1);
        highest - self.echoed
    }

    /// The round trip that a share (0 to 1) of all stayed within.
    pub(super) fn round_trip(&self, share: f64) -> Option<Duration> {
        let mut sorted = self.round_trips.clone();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        sorted.get((last as f64 * share).round() as usize).copied()
    }

    fn note_audio(&mut self, payload: &[u8]) {
        self.heard += 1;
        let Some((number, micros)) = test_audio::parse(payload) else { return };
        if let Some(came @ false) = self.came_back.get_mut(number as usize) {
            *came = true;
            self.echoed += 1;
            let said = self.start + Duration::from_micros(micros);
            self.round_trips.push(said.elapsed());
        }
    }

    fn note_text(&mut self, text: String) {
        self.ended |= message::peek(&text, Reader::Device).is_ok_and(|peek| peek.kind == "goodbye");
        if self.texts.len() < MAX_TEXTS {
            self.texts.push((self.sent, text));
        }
    }

    fn note_udp(&mut self, failure: &Failure) {
        match &failure.seen {
            super::device::Seen::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                self.refused = true;
            }
            // Windows reports the same refusal as a reset.
            super::device::Seen::Closed => self.refused = true,
            other => self.udp_error = Some(other.to_string()),
        }
    }
}
