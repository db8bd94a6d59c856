//! A device speaks into a call for a while, and counts what comes back.

use std::time::{Duration, Instant};

use super::device::test_audio;
use super::device::{Call, DeviceError, SimulatedDevice};
use crate::proto::message::{self, Reader};

/// A device's frame.
const PACKET_INTERVAL: Duration = Duration::from_millis(60);
/// Packets of so many seconds.
pub(super) fn packets_in(seconds: u32) -> u32 {
    (Duration::from_secs(seconds.into()).as_millis() / PACKET_INTERVAL.as_millis()) as u32
}

/// Wait slices: short enough for a smooth view and for text that comes meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Texts kept: far more than a call of a few seconds brings.
const MAX_TEXTS: usize = 1000;

/// What was said and heard so far.
pub(super) struct RoundTripTest {
    start: Instant,
    /// Packets sent; their numbers are 0 to `sent`.
    pub(super) sent: u32,
    /// Packets of ours that came back, each counted once.
    pub(super) echoed: u32,
    echo_received: Vec<bool>,
    /// Audio packets from the gateway, ours or not.
    pub(super) received: u64,
    /// One for each packet that came back, in their order.
    pub(super) round_trips: Vec<Duration>,
    /// Text messages, with the number of packets sent before each.
    pub(super) texts: Vec<(u32, String)>,
    /// The host answered that nothing listens on the audio port.
    pub(super) port_unreachable: bool,
    /// Another error of the audio socket.
    pub(super) udp_error: Option<String>,
    /// The gateway said goodbye.
    pub(super) call_ended: bool,
}

impl RoundTripTest {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            sent: 0,
            echoed: 0,
            echo_received: Vec::new(),
            received: 0,
            round_trips: Vec::new(),
            texts: Vec::new(),
            port_unreachable: false,
            udp_error: None,
            call_ended: false,
        }
    }

    /// Sends `packets` packets, one each [`PACKET_INTERVAL`], and listens for `linger` after the last. `tick` is called about every
    /// 20 ms. Ends early when the gateway says goodbye.
    ///
    /// # Errors
    /// When the MQTT connection ends. Errors of the audio socket are noted and gone over.
    pub(super) fn send_audio(
        &mut self,
        device: &mut SimulatedDevice,
        call: &mut Call,
        packets: u32,
        linger: Duration,
        mut tick: impl FnMut(&Self),
    ) -> Result<(), DeviceError> {
        let first = Instant::now();
        for i in 0..packets {
            let packet = test_audio::packet(self.sent, self.start.elapsed().as_micros() as u64);
            if let Err(failure) = call.send(0, &packet) {
                self.on_udp_error(&failure);
            }
            self.sent += 1;
            self.echo_received.push(false);
            self.receive_until(device, call, first + PACKET_INTERVAL * (i + 1), &mut tick, |_| false)?;
            if self.call_ended {
                return Ok(());
            }
        }
        let until = Instant::now() + linger;
        self.receive_until(device, call, until, &mut tick, |round_trip| round_trip.echoed == round_trip.sent)
    }

    /// Listens until `until`, a goodbye, or `enough`.
    ///
    /// # Errors
    /// As [`Self::send_audio`].
    pub(super) fn receive_until(
        &mut self,
        device: &mut SimulatedDevice,
        call: &mut Call,
        until: Instant,
        mut tick: impl FnMut(&Self),
        enough: impl Fn(&Self) -> bool,
    ) -> Result<(), DeviceError> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match call.receive(left.min(POLL_INTERVAL)) {
                Ok(Some(audio)) => self.on_audio(&audio.payload),
                Ok(None) => {}
                Err(failure) => {
                    self.on_udp_error(&failure);
                    // The error may come at once, again and again.
                    std::thread::sleep(left.min(POLL_INTERVAL));
                }
            }
            while let Some(text) = device.receive_text(Duration::ZERO)? {
                self.on_text(text);
            }
            tick(self);
            if self.call_ended || enough(self) || Instant::now() >= until {
                return Ok(());
            }
        }
    }

    /// Packets overtaken by later ones, or never to come: those in flight are not among them.
    pub(super) fn lost_so_far(&self) -> u32 {
        let highest = self.echo_received.iter().rposition(|came| *came).map_or(0, |i| i as u32 + 1);
        highest - self.echoed
    }

    /// The round trip that a share (0 to 1) of all stayed within.
    pub(super) fn percentile(&self, share: f64) -> Option<Duration> {
        let mut sorted = self.round_trips.clone();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        sorted.get((last as f64 * share).round() as usize).copied()
    }

    fn on_audio(&mut self, payload: &[u8]) {
        self.received += 1;
        let Some((number, micros)) = test_audio::parse(payload) else { return };
        if let Some(came @ false) = self.echo_received.get_mut(number as usize) {
            *came = true;
            self.echoed += 1;
            let said = self.start + Duration::from_micros(micros);
            self.round_trips.push(said.elapsed());
        }
    }

    fn on_text(&mut self, text: String) {
        self.call_ended |= message::peek(&text, Reader::Device).is_ok_and(|peek| peek.kind == "goodbye");
        if self.texts.len() < MAX_TEXTS {
            self.texts.push((self.sent, text));
        }
    }

    fn on_udp_error(&mut self, failure: &DeviceError) {
        match &failure.kind {
            super::device::DeviceErrorKind::Io(error)
                if error.kind() == std::io::ErrorKind::ConnectionRefused =>
            {
                self.port_unreachable = true;
            }
            // Windows reports the same refusal as a reset.
            super::device::DeviceErrorKind::Closed => self.port_unreachable = true,
            other => self.udp_error = Some(other.to_string()),
        }
    }
}
