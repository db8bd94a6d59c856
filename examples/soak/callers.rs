//! Devices in calls: some for the whole run, others start and end calls in every way.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::tools::device::{Call, DeviceError, Incoming, Login, SimulatedDevice, test_audio};

use crate::context::{Context, login};
use crate::gateway::STEADY;
use crate::statistics::Rng;

/// The MAC group of callers with short calls.
const TRANSIENT: u8 = 3;
/// Between two packets.
const INTERVAL: Duration = Duration::from_millis(60);
/// Echoes that arrive later than this count as lost.
const ECHO_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a vanished device's sockets stay open, so that the system answers like that of a hung device.
const VANISHED_DEVICE_LIFETIME: Duration = Duration::from_secs(30);

/// One call for the whole run.
pub(crate) fn run_steady_call(context: &Context, number: usize) {
    let login = login(STEADY, number, 60);
    // The calls start one after the other.
    context.sleep(Duration::from_millis(37 * number as u64));
    while !context.is_over() {
        if let Err(failure) = steady_call(context, &login) {
            context.record_failure(format_args!("a steady call broke: {failure}"));
            context.sleep(Duration::from_secs(1));
        }
    }
}

fn steady_call(context: &Context, login: &Login) -> Result<(), DeviceError> {
    let mut device = context.connect(login)?;
    let mut speaker = Speaker::new(context, device.call()?, true);
    while !context.is_over() {
        speaker.send_audio(&mut device, None, context.remaining().min(Duration::from_secs(5)))?;
        device.ping()?;
    }
    speaker.receive_until(Instant::now() + ECHO_TIMEOUT)?;
    device.goodbye(&speaker.call)?;
    device.disconnect()
}

/// Calls one after the other.
pub(crate) fn run_transient_calls(context: &Context, number: usize) {
    let mut rng = context.rng(number);
    let mut vanished = Vec::new();
    for round in 0.. {
        context.sleep(rng.ms(1, 1_500));
        if context.is_over() {
            return;
        }
        vanished.retain(|(_, _, since): &(SimulatedDevice, Call, Instant)| {
            since.elapsed() < VANISHED_DEVICE_LIFETIME
        });
        // A new number each time: the call of a device that left is kept for its grace period.
        let number = number + 1_000 * (round % 10_000);
        match transient_call(context, number, &mut rng) {
            Ok(Some((device, call))) => vanished.push((device, call, Instant::now())),
            Ok(None) => {}
            Err(failure) => context.record_failure(format_args!("a call broke: {failure}")),
        }
    }
}

/// How a call ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CallEnding {
    Goodbye,
    Disconnect,
    Reset,
    Fin,
    Vanish,
    Resume,
    Takeover,
    SecondHello,
    Garbage,
    TruncatedPacket,
}

const CALL_ENDINGS: [CallEnding; 10] = [
    CallEnding::Goodbye,
    CallEnding::Disconnect,
    CallEnding::Reset,
    CallEnding::Fin,
    CallEnding::Vanish,
    CallEnding::Resume,
    CallEnding::Takeover,
    CallEnding::SecondHello,
    CallEnding::Garbage,
    CallEnding::TruncatedPacket,
];

/// A whole call; returns a device that vanishes, so that its sockets stay open.
fn transient_call(
    context: &Context,
    number: usize,
    rng: &mut Rng,
) -> Result<Option<(SimulatedDevice, Call)>, DeviceError> {
    let end = CALL_ENDINGS[rng.below(CALL_ENDINGS.len() as u64) as usize];
    let login = login(TRANSIENT, number, if end == CallEnding::Vanish { 15 } else { 60 });
    let mut device = context.connect(&login)?;
    let mut speaker = Speaker::new(context, device.call()?, false);
    let mode = ["realtime", "auto"][rng.below(2) as usize];
    device.start_listening(&speaker.call, mode)?;
    let time = rng.ms(500, 20_000).min(context.remaining());
    speaker.send_audio(&mut device, Some(rng), time)?;
    match end {
        CallEnding::Goodbye => device.goodbye(&speaker.call)?,
        CallEnding::Disconnect => return device.disconnect().map(|()| None),
        CallEnding::Reset => reset(device),
        CallEnding::Fin => {}
        CallEnding::Vanish => {
            context.counters.vanished.fetch_add(1, Relaxed);
            return Ok(Some((device, speaker.call)));
        }
        CallEnding::Resume | CallEnding::Takeover => {
            let older = if end == CallEnding::Resume {
                reset(device);
                context.sleep(rng.ms(50, 2_000));
                None
            } else {
                Some(device)
            };
            let mut device = context.connect(&login)?;
            drop(older);
            speaker.send_audio(&mut device, None, Duration::from_secs(3).min(context.remaining()))?;
            device.goodbye(&speaker.call)?;
            context.counters.resumed.fetch_add(1, Relaxed);
        }
        CallEnding::SecondHello => {
            let mut speaker = Speaker::new(context, device.call()?, false);
            speaker.send_audio(&mut device, None, Duration::from_secs(2).min(context.remaining()))?;
            device.goodbye(&speaker.call)?;
            device.disconnect()?;
        }
        CallEnding::Garbage => device.send_raw(&rng.bytes(40))?,
        CallEnding::TruncatedPacket => device.send_raw(&[0x30, 200, 1, 0, 1])?,
    }
    Ok(None)
}

fn reset(device: SimulatedDevice) {
    // If it fails, the connection ends with a FIN instead.
    let _ = socket2::SockRef::from(device.stream()).set_linger(Some(Duration::ZERO));
}

/// A call that sends audio and receives its echo.
struct Speaker<'a> {
    context: &'a Context,
    call: Call,
    steady: bool,
    sent: u32,
    /// The number of the last echo: echoes may be lost, but must not repeat.
    last_received: u32,
    last_received_at: Instant,
}

impl<'a> Speaker<'a> {
    fn new(context: &'a Context, call: Call, steady: bool) -> Self {
        context.counters.calls.fetch_add(1, Relaxed);
        Self { context, call, steady, sent: 0, last_received: 0, last_received_at: Instant::now() }
    }

    /// Sends audio for a time; with `rng`, also duplicate, truncated and random packets.
    fn send_audio(
        &mut self,
        device: &mut SimulatedDevice,
        mut rng: Option<&mut Rng>,
        time: Duration,
    ) -> Result<(), DeviceError> {
        let (begin, mut next) = (Instant::now(), Instant::now());
        while begin.elapsed() < time {
            self.sent += 1;
            let micros = self.context.start.elapsed().as_micros() as u64;
            let packet =
                self.call.encrypt(self.sent.wrapping_mul(60), &test_audio::packet(self.sent, micros));
            self.call.send_packet(&packet)?;
            self.count(&self.context.counters.steady_sent, &self.context.counters.transient_sent);
            if let Some(rng) = &mut rng
                && rng.below(50) == 0
            {
                let wrong = match rng.below(3) {
                    0 => packet,
                    1 => packet[..packet.len() - 1].to_vec(),
                    _ => rng.bytes(60),
                };
                self.call.send_packet(&wrong)?;
            }
            next += INTERVAL;
            self.receive_until(next)?;
            while let Some(incoming) = device.receive(Duration::ZERO)? {
                self.check_message(&incoming);
            }
            let silence = self.last_received_at.elapsed().as_millis() as u64;
            self.context.counters.silence_ms_max.fetch_max(silence, Relaxed);
        }
        Ok(())
    }

    /// Only the device may end the call.
    fn check_message(&self, incoming: &Incoming) {
        if let Incoming::Text(text) = incoming
            && (text.contains("\"goodbye\"") || text.contains("\"alert\""))
        {
            self.context.record_failure(format_args!("in a call came {text}"));
        }
    }

    fn receive_until(&mut self, end: Instant) -> Result<(), DeviceError> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let Some(audio) = self.call.receive(left)? else { return Ok(()) };
            // The chat server's playback of a recording is not an echo.
            let Some((number, micros)) = test_audio::parse(&audio.payload) else { continue };
            let now = self.context.start.elapsed();
            let took = now.saturating_sub(Duration::from_micros(micros));
            if number <= self.last_received {
                if took < ECHO_TIMEOUT {
                    self.context.record_failure(format_args!("packet {number} came twice"));
                }
                continue;
            }
            (self.last_received, self.last_received_at) = (number, Instant::now());
            if took <= ECHO_TIMEOUT {
                self.count(&self.context.counters.steady_echoed, &self.context.counters.transient_echoed);
            }
            if self.steady {
                self.context.latencies.add(took);
            }
        }
    }

    fn count(&self, steady: &AtomicU64, transient: &AtomicU64) {
        let counter = if self.steady { steady } else { transient };
        counter.fetch_add(1, Relaxed);
    }
}
