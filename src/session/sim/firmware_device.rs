//! The modelled firmware as the device of the simulation, and the person in front of it.

use std::collections::VecDeque;

use super::firmware::{DeviceState, Firmware, Output, Version};
use super::*;
use crate::session::harness::decrypt_datagram;

/// What the core has sent, and the device has not handled yet.
pub(super) enum ToDevice {
    Text(String),
    Datagram(Box<[u8]>),
    Closed,
}

pub(super) struct FirmwareDevice {
    model: Firmware,
    pub(super) inbox: VecDeque<ToDevice>,
}

impl FirmwareDevice {
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        let version = Version::ALL[(seed / 2) as usize % Version::ALL.len()];
        let mut model = Firmware::new(version, seed, now);
        model.uplink_interval = Duration::from_secs(1);
        Self { model, inbox: VecDeque::new() }
    }
}

/// The person does something, or the network does. True: the connection of MQTT is lost.
pub(super) fn act(model: &mut Firmware, choice: u64, now: Instant) -> bool {
    match (choice, model.state()) {
        (_, DeviceState::Off) => model.power_on(now),
        (0..30, _) => model.press_button(now),
        (30..40, _) => model.say_wake_word(now),
        (40..50, _) => model.hold_button(now),
        (50..70, _) => model.release_button(now),
        (70..73, _) => {
            model.power_cut(now);
            model.power_on(now);
        }
        (73..80, _) if model.is_connected() => {
            model.on_mqtt_lost(now);
            return true;
        }
        _ => {}
    }
    false
}

impl Simulation {
    /// The person does something, or the network does.
    pub(super) fn person_step(&mut self) {
        let (choice, now) = (self.rng.below(100), self.shell.now);
        let Some(FirmwareDevice { model, .. }) = &mut self.firmware else { return };
        if act(model, choice, now)
            && let Some(s) = self.current.filter(|s| self.sessions[*s].model.is_connected())
        {
            self.drive(s, Input::ConnectionLost, Core::on_connection_lost);
        }
        self.log(format_args!("the person's choice {choice}"));
        self.run_firmware();
    }

    /// The device handles what it was sent and does what is due, until there is nothing more.
    pub(super) fn run_firmware(&mut self) {
        while let Some(FirmwareDevice { model, inbox }) = &mut self.firmware {
            let now = self.shell.now;
            match inbox.pop_front() {
                Some(ToDevice::Text(text)) => model.on_message(now, &text),
                Some(ToDevice::Closed) => model.on_mqtt_lost(now),
                Some(ToDevice::Datagram(bytes)) => {
                    if let Some(key) = model.channel().map(|channel| channel.key) {
                        let (header, payload) = decrypt_datagram(&key, &bytes);
                        model.on_datagram(now, header.to_bytes(), &payload);
                    }
                }
                None => model.tick(now),
            }
            let outputs = model.take_outputs();
            if outputs.is_empty() && inbox.is_empty() {
                break;
            }
            outputs.into_iter().for_each(|output| self.carry_out(output));
        }
        if let Some(s) = self.current.filter(|_| self.firmware.is_some()) {
            self.sessions[s].core.refresh_keep_alive(self.shell.now);
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::ConnectMqtt => {
                self.connect();
                if let Some(FirmwareDevice { model, inbox }) = &mut self.firmware {
                    // That was the connection before.
                    inbox.retain(|message| !matches!(message, ToDevice::Closed));
                    model.on_mqtt_connected(self.shell.now);
                }
            }
            Output::Publish(mut text) => {
                if let Some(s) = self.current.filter(|s| self.sessions[*s].model.is_connected()) {
                    // As the model of the session follows it to the server.
                    if [r#""listen""#, r#""abort""#].iter().any(|kind| text.contains(kind)) {
                        text = text.replacen('{', &format!(r#"{{"n":{},"#, self.next_serial()), 1);
                    }
                    self.log(format_args!("[{s}] {text}"));
                    self.send_text(s, &text);
                }
            }
            Output::Datagram(..) => self.send_audio(),
            Output::OpenUdp | Output::CloseUdp => {}
        }
    }

    pub(super) fn send_to_firmware(&mut self, s: usize, action: &Action) {
        let Some(FirmwareDevice { inbox, .. }) = self.firmware.as_mut().filter(|_| self.current == Some(s))
        else {
            return;
        };
        match action {
            Action::Publish(text) => inbox.push_back(ToDevice::Text(text.clone())),
            Action::SendDatagram(_, bytes) => inbox.push_back(ToDevice::Datagram(bytes.clone())),
            Action::CloseDevice(_) => inbox.push_back(ToDevice::Closed),
            _ => {}
        }
    }

    /// Nobody does anything for 90 s; then the device loses its power.
    pub(super) fn settle(&mut self) {
        for _ in 0..90 {
            self.advance(1_000);
            let call = self.current.and_then(|s| self.sessions[s].model.session_id());
            let Some(FirmwareDevice { model, .. }) = &mut self.firmware else { return };
            model.observe(self.shell.now, call.as_deref());
        }
        let call = self.current.and_then(|s| self.sessions[s].model.session_id());
        let Some(FirmwareDevice { mut model, .. }) = self.firmware.take() else { return };
        let stuck = model.observe(self.shell.now, call.as_deref());
        // It is not left in a state that only a person can end.
        assert!(stuck.is_none() || model.is_beyond_knowledge, "{stuck:?}, {:#?}", model.events);
        assert!(model.crashes.is_empty(), "{:?}", model.crashes);
        self.coverage.extend((!model.heard.is_empty()).then_some("heard"));
    }
}
