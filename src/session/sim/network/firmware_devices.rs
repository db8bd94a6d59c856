//! Devices with the modelled firmware in the simulated network, and the people in front of them.

use super::*;
use crate::session::harness::decrypt_datagram;
use crate::session::sim::firmware::{Firmware, ListeningMode, Loss, LostFrame, Output, Version};
use crate::session::sim::firmware_device::act;

/// On the way to a modelled device and from it, texts and audio take the same time, and nothing is lost.
const DELAY: Duration = Duration::from_millis(20);

/// What is on its way to a modelled device.
#[derive(Debug)]
pub(super) enum ToDevice {
    Text(String),
    /// The gateway has closed the connection.
    Closed,
}

/// The devices with the modelled firmware, by number: the others act at random.
pub(super) type FirmwareDevices = BTreeMap<usize, Firmware>;

pub(super) fn firmware_devices(seed: u64, now: Instant) -> FirmwareDevices {
    let devices = [2, 3].into_iter();
    let device = |device: usize| {
        let version = Version::ALL[(seed as usize + device) % Version::ALL.len()];
        let mut model = Firmware::new(version, seed ^ device as u64, now);
        model.uplink_interval = Duration::from_secs(1);
        if seed.is_multiple_of(3) {
            model.button_mode = ListeningMode::Realtime;
        }
        (device, model)
    };
    devices.map(device).collect()
}

impl SimulatedNetwork {
    /// The person does something, or the network does.
    pub(super) fn person_step(&mut self, device: usize) {
        let now = self.shell.now;
        let choice = self.rng.below(100);
        let Some(model) = self.firmware.get_mut(&device) else { return };
        if act(model, choice, now)
            && let Some(s) = self.session_by_device[device].filter(|s| self.sessions[*s].connected)
        {
            self.send_from_device(s, InFlight::ConnectionLost(s));
        }
        let state = self.firmware[&device].state();
        self.log(format_args!("device {device}: choice {choice}, {state:?}"));
        self.carry_out(device);
    }

    fn carry_out(&mut self, device: usize) {
        let Some(outputs) = self.firmware.get_mut(&device).map(Firmware::take_outputs) else { return };
        for output in outputs {
            match output {
                Output::ConnectMqtt if self.drain_deadline.is_some() => self.lose_mqtt(device),
                Output::ConnectMqtt => {
                    self.connect(device);
                    if let Some(model) = self.firmware.get_mut(&device) {
                        model.on_mqtt_connected(self.shell.now);
                    }
                    self.carry_out(device);
                }
                Output::Publish(text) => {
                    if let Some(s) = self.session_by_device[device].filter(|s| self.sessions[*s].connected) {
                        self.send_text(s, text);
                    }
                }
                Output::Datagram(header, payload) => {
                    let datagram = [&header[..], &payload].concat();
                    let header = UdpHeader::parse(&datagram).expect("made from the nonce");
                    let Some(call) = self.calls.get(header.ssrc as usize) else { continue };
                    let (ssrc, sequence) = (header.ssrc, header.sequence);
                    let bytes = encrypt_datagram(&call.key, ssrc, sequence, header.timestamp, &payload);
                    self.send_after(DELAY, InFlight::Datagram(ssrc, bytes));
                }
                Output::OpenUdp | Output::CloseUdp => {}
            }
        }
    }

    fn lose_mqtt(&mut self, device: usize) {
        if let Some(model) = self.firmware.get_mut(&device) {
            model.on_mqtt_lost(self.shell.now);
        }
    }

    /// A text for the session's device, or the end of its connection.
    pub(super) fn send_to_device(&mut self, s: usize, message: ToDevice) {
        let NetworkSession { device, connection, .. } = self.sessions[s];
        if self.firmware.contains_key(&device) {
            self.send_after(DELAY, InFlight::ToDevice(device, connection, message));
        }
    }

    pub(super) fn send_datagram_to_device(&mut self, s: usize, bytes: &[u8]) {
        let device = self.sessions[s].device;
        if self.firmware.contains_key(&device) {
            self.send_after(DELAY, InFlight::DatagramToDevice(device, bytes.into()));
        }
    }

    fn send_after(&mut self, delay: Duration, message: InFlight) {
        self.serial += 1;
        self.in_flight.insert((self.shell.now + delay, self.serial), message);
    }

    /// It arrives on this connection of the device, unless that is gone.
    pub(super) fn arrive_at_device(
        &mut self,
        at: Instant,
        device: usize,
        connection: u64,
        message: ToDevice,
    ) {
        let is_current = self.connections[device] == connection;
        let Some(model) = self.firmware.get_mut(&device) else { return };
        match message {
            ToDevice::Text(_) if !is_current => model.is_beyond_knowledge = true,
            ToDevice::Closed if !is_current => {}
            ToDevice::Text(text) => model.on_message(at, &text),
            ToDevice::Closed => model.on_mqtt_lost(at),
        }
        self.carry_out(device);
    }

    pub(super) fn datagram_arrives_at_device(&mut self, at: Instant, device: usize, bytes: &[u8]) {
        let Some(model) = self.firmware.get_mut(&device) else { return };
        let ssrc = UdpHeader::parse(bytes).expect("made by the core").ssrc;
        let call = &self.calls[ssrc as usize];
        // The socket of an earlier call is closed.
        if model.channel().is_some_and(|channel| channel.key == call.key) {
            let (header, payload) = decrypt_datagram(&call.key, bytes);
            model.on_datagram(at, header.to_bytes(), &payload);
        }
        self.carry_out(device);
    }

    pub(super) fn next_firmware_deadline(&self) -> Option<Instant> {
        self.firmware.values().filter_map(Firmware::next_deadline).min()
    }

    pub(super) fn tick_firmware(&mut self) {
        for device in 0..DEVICES {
            if let Some(model) = self.firmware.get_mut(&device) {
                model.tick(self.shell.now);
            }
            self.carry_out(device);
        }
    }

    /// The server answers a modelled device as real ones do: all at once.
    pub(super) fn send_reply(&mut self, s: usize, number: u64) {
        let text =
            |state: &str| InFlight::ServerText(s, number, format!(r#"{{"type":"tts","state":"{state}"}}"#));
        self.send_from_server(s, text("start"));
        for _ in 0..self.rng.pick(&[1, 5, 30]) {
            self.serial += 1;
            self.send_from_server(s, InFlight::ServerAudio(s, number, self.serial));
        }
        self.send_from_server(s, text("stop"));
    }

    /// All servers work, nobody does anything for 90 s, and the laws of the modelled devices hold.
    pub(super) fn settle(&mut self) {
        self.servers_down.clear();
        for _ in 0..90 {
            self.advance(1_000);
            self.check();
            self.check_firmware();
        }
        for (device, model) in &mut self.firmware {
            let call = self.session_by_device[*device].and_then(|s| self.sessions[s].core.call());
            let stuck = model.observe(self.shell.now, call.and_then(|call| call.session_id));
            self.coverage.extend(stuck.map(|_| "stuck"));
            // Nobody is left in a state that only a person can end.
            assert!(
                stuck.is_none() || model.is_beyond_knowledge,
                "device {device}: {stuck:?}, {:#?}",
                model.events
            );
        }
    }

    pub(super) fn check_firmware(&mut self) {
        for (device, model) in &mut self.firmware {
            let call = self.session_by_device[*device].and_then(|s| self.sessions[s].core.call());
            model.observe(self.shell.now, call.and_then(|call| call.session_id));
            assert!(model.crashes.is_empty(), "device {device} crashes: {:?}", model.crashes);
            let pace = self.shell.config.udp.downlink_pace;
            // The silence for a waiting caller is not paced, and no speech.
            let is_overflow =
                |lost: &&LostFrame| lost.loss == Loss::Overflow && lost.payload.first() == Some(&8);
            let lost = model.speech_lost().find(|lost| pace && is_overflow(lost));
            assert!(lost.is_none(), "device {device}: {lost:?}, {:#?}", model.events);
            self.coverage.extend((!model.heard.is_empty()).then_some("heard"));
        }
    }

    /// The modelled devices lose their power, and do nothing more.
    pub(super) fn switch_off(&mut self) {
        for model in self.firmware.values_mut() {
            model.power_cut(self.shell.now);
        }
    }
}
