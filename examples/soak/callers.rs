//! Devices in calls: some speak all the time, others come and go in every way there is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::tools::device::{Call, DeviceError, Incoming, Login, SimulatedDevice, test_audio};

use crate::context::{World, login};
use crate::gateway::STEADY;
use crate::statistics::Rng;

/// The group of MACs of callers that come and go.
const FICKLE: u8 = 3;
/// Between two packets.
const INTERVAL: Duration = Duration::from_millis(60);
/// Echoes that come later than this count as lost.
const LATE: Duration = Duration::from_secs(1);
/// How long a device that vanished is kept, so that its system answers for it as that of a hung device does.
const HAUNTING: Duration = Duration::from_secs(30);

/// One call for the whole run.
pub(crate) fn steady(world: &World, number: usize) {
    let login = login(STEADY, number, 60);
    // They begin one after the other.
    world.sleep(Duration::from_millis(37 * number as u64));
    while !world.is_over() {
        if let Err(failure) = speak_to_the_end(world, &login) {
            world.wrong(format_args!("a steady call broke: {failure}"));
            world.sleep(Duration::from_secs(1));
        }
    }
}

fn speak_to_the_end(world: &World, login: &Login) -> Result<(), DeviceError> {
    let mut device = world.connect(login)?;
    let mut speaker = Speaker::new(world, device.call()?, true);
    while !world.is_over() {
        speaker.speak(&mut device, None, world.left().min(Duration::from_secs(5)))?;
        device.ping()?;
    }
    speaker.listen_until(Instant::now() + LATE)?;
    device.goodbye(&speaker.call)?;
    device.disconnect()
}

/// Calls one after the other.
pub(crate) fn fickle(world: &World, number: usize) {
    let mut rng = world.rng(number);
    let mut ghosts = Vec::new();
    for round in 0.. {
        world.sleep(rng.ms(1, 1_500));
        if world.is_over() {
            return;
        }
        ghosts.retain(|(_, _, since): &(SimulatedDevice, Call, Instant)| since.elapsed() < HAUNTING);
        // A number of its own each time: who has left is away for its grace.
        let number = number + 1_000 * (round % 10_000);
        match one_call(world, number, &mut rng) {
            Ok(Some((device, call))) => ghosts.push((device, call, Instant::now())),
            Ok(None) => {}
            Err(failure) => world.wrong(format_args!("a call broke: {failure}")),
        }
    }
}

/// How a call ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Goodbye,
    Disconnect,
    Reset,
    Fin,
    Vanish,
    Resume,
    TakeOver,
    SecondHello,
    Garbage,
    HalfAPacket,
}

const ENDS: [End; 10] = [
    End::Goodbye,
    End::Disconnect,
    End::Reset,
    End::Fin,
    End::Vanish,
    End::Resume,
    End::TakeOver,
    End::SecondHello,
    End::Garbage,
    End::HalfAPacket,
];

/// A call from its begin to its end; a device that vanished stays for a while.
fn one_call(
    world: &World,
    number: usize,
    rng: &mut Rng,
) -> Result<Option<(SimulatedDevice, Call)>, DeviceError> {
    let end = ENDS[rng.below(ENDS.len() as u64) as usize];
    let login = login(FICKLE, number, if end == End::Vanish { 15 } else { 60 });
    let mut device = world.connect(&login)?;
    let mut speaker = Speaker::new(world, device.call()?, false);
    let mode = ["realtime", "auto"][rng.below(2) as usize];
    device.start_listening(&speaker.call, mode)?;
    let time = rng.ms(500, 20_000).min(world.left());
    speaker.speak(&mut device, Some(rng), time)?;
    match end {
        End::Goodbye => device.goodbye(&speaker.call)?,
        End::Disconnect => return device.disconnect().map(|()| None),
        End::Reset => reset(device),
        End::Fin => {}
        End::Vanish => {
            world.tally.vanished.fetch_add(1, Relaxed);
            return Ok(Some((device, speaker.call)));
        }
        End::Resume | End::TakeOver => {
            let older = if end == End::Resume {
                reset(device);
                world.sleep(rng.ms(50, 2_000));
                None
            } else {
                Some(device)
            };
            let mut device = world.connect(&login)?;
            drop(older);
            speaker.speak(&mut device, None, Duration::from_secs(3).min(world.left()))?;
            device.goodbye(&speaker.call)?;
            world.tally.resumed.fetch_add(1, Relaxed);
        }
        End::SecondHello => {
            let mut speaker = Speaker::new(world, device.call()?, false);
            speaker.speak(&mut device, None, Duration::from_secs(2).min(world.left()))?;
            device.goodbye(&speaker.call)?;
            device.disconnect()?;
        }
        End::Garbage => device.send_raw(&rng.bytes(40))?,
        End::HalfAPacket => device.send_raw(&[0x30, 200, 1, 0, 1])?,
    }
    Ok(None)
}

fn reset(device: SimulatedDevice) {
    // Without it the connection ends with a FIN, which is as good.
    let _ = socket2::SockRef::from(device.stream()).set_linger(Some(Duration::ZERO));
}

/// A call that speaks and hears itself.
struct Speaker<'a> {
    world: &'a World,
    call: Call,
    steady: bool,
    said: u32,
    /// The number of the last echo: they may be lost, but never come again.
    heard: u32,
    last: Instant,
}

impl<'a> Speaker<'a> {
    fn new(world: &'a World, call: Call, steady: bool) -> Self {
        world.tally.calls.fetch_add(1, Relaxed);
        Self { world, call, steady, said: 0, heard: 0, last: Instant::now() }
    }

    /// Speaks for a time; with `rng`, some packets are followed by others that should not be there.
    fn speak(
        &mut self,
        device: &mut SimulatedDevice,
        mut rng: Option<&mut Rng>,
        time: Duration,
    ) -> Result<(), DeviceError> {
        let (begin, mut next) = (Instant::now(), Instant::now());
        while begin.elapsed() < time {
            self.said += 1;
            let micros = self.world.start.elapsed().as_micros() as u64;
            let packet =
                self.call.encrypt(self.said.wrapping_mul(60), &test_audio::packet(self.said, micros));
            self.call.send_packet(&packet)?;
            self.count(&self.world.tally.steady_sent, &self.world.tally.fickle_sent);
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
            self.listen_until(next)?;
            while let Some(incoming) = device.receive(Duration::ZERO)? {
                self.check(&incoming);
            }
            let silence = self.last.elapsed().as_millis() as u64;
            self.world.tally.silence_ms.fetch_max(silence, Relaxed);
        }
        Ok(())
    }

    /// Nobody hangs up but the device.
    fn check(&self, incoming: &Incoming) {
        if let Incoming::Text { text, .. } = incoming
            && (text.contains("\"goodbye\"") || text.contains("\"alert\""))
        {
            self.world.wrong(format_args!("in a call came {text}"));
        }
    }

    fn listen_until(&mut self, end: Instant) -> Result<(), DeviceError> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let Some(audio) = self.call.receive(left)? else { return Ok(()) };
            // What the chat server recorded may be played back: that is no echo.
            let Some((number, micros)) = test_audio::parse(&audio.payload) else { continue };
            let now = self.world.start.elapsed();
            let took = now.saturating_sub(Duration::from_micros(micros));
            if number <= self.heard {
                if took < LATE {
                    self.world.wrong(format_args!("packet {number} came twice"));
                }
                continue;
            }
            (self.heard, self.last) = (number, Instant::now());
            if took <= LATE {
                self.count(&self.world.tally.steady_echoed, &self.world.tally.fickle_echoed);
            }
            if self.steady {
                self.world.latencies.add(took);
            }
        }
    }

    fn count(&self, steady: &AtomicU64, fickle: &AtomicU64) {
        let counter = if self.steady { steady } else { fickle };
        counter.fetch_add(1, Relaxed);
    }
}
