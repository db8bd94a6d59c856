//! Sends audio into a call, and counts what comes back.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::device::{Call, DeviceError, DeviceErrorKind, SimulatedDevice, message_type, test_audio};

/// The duration of a device's frame.
const PACKET_INTERVAL: Duration = Duration::from_millis(60);
/// Packets of so many seconds.
pub(super) fn packets_in(seconds: u32) -> u32 {
    (Duration::from_secs(seconds.into()).as_millis() / PACKET_INTERVAL.as_millis()) as u32
}

/// The longest single wait: short enough for a smooth display and for text that arrives meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Texts kept: far more than a call of a few seconds has.
const MAX_TEXTS: usize = 1000;

/// What was sent and received so far.
#[derive(Clone, Debug, Default)]
pub(super) struct RoundTripTest {
    /// Packets sent; their numbers are 0 to `sent`.
    pub(super) sent: u32,
    /// Packets of ours that came back, each counted once.
    pub(super) echoed: u32,
    /// For each packet, when it was sent and whether it came back.
    packets: Vec<(Instant, bool)>,
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
    /// Sends `packets` packets, one each [`PACKET_INTERVAL`], and listens for `linger` after the last. `tick` is called about every
    /// 20 ms. Ends early when the gateway says goodbye.
    ///
    /// # Errors
    /// When the MQTT connection ends. Errors of the audio socket are recorded and do not end the test.
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
            let sent_at = Instant::now();
            if let Err(error) = call.send(0, &test_audio::packet(self.sent, 0)) {
                self.on_udp_error(&error);
            }
            self.sent += 1;
            self.packets.push((sent_at, false));
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
                    // The error may return at once, again and again.
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

    /// Packets missing before the newest one that came back; packets in flight are not counted.
    pub(super) fn lost_so_far(&self) -> u32 {
        let highest = self.packets.iter().rposition(|(_, came_back)| *came_back).map_or(0, |i| i as u32 + 1);
        highest - self.echoed
    }

    /// The round trip that a share (0 to 1) of all packets did not exceed.
    pub(super) fn percentile(&self, share: f64) -> Option<Duration> {
        let mut sorted = self.round_trips.clone();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        sorted.get((last as f64 * share).round() as usize).copied()
    }

    fn on_audio(&mut self, payload: &[u8]) {
        self.received += 1;
        let Some((number, _)) = test_audio::parse(payload) else { return };
        if let Some((sent_at, came_back @ false)) = self.packets.get_mut(number as usize) {
            *came_back = true;
            self.echoed += 1;
            self.round_trips.push(sent_at.elapsed());
        }
    }

    fn on_text(&mut self, text: String) {
        self.call_ended |= message_type(&text) == "goodbye";
        if self.texts.len() < MAX_TEXTS {
            self.texts.push((self.sent, text));
        }
    }

    fn on_udp_error(&mut self, error: &DeviceError) {
        match &error.kind {
            DeviceErrorKind::Io(error) if error.kind() == ErrorKind::ConnectionRefused => {
                self.port_unreachable = true;
            }
            // Windows reports the same refusal as a reset.
            DeviceErrorKind::Closed => self.port_unreachable = true,
            other => self.udp_error = Some(other.to_string()),
        }
    }
}
