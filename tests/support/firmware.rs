//! A device with the stock firmware on real sockets: the model of `src/session/sim/firmware.rs` in a thread of its own, and the person in
//! front of it. Its network can be cut, and its audio alone too.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::net::Running;
use serde_json::Value;

use super::audio::aes_ctr;
use super::device::client_id;
use super::http::http_call;
use super::mqtt::{CONNACK, Client, Connect, PUBLISH, PacketError};
use super::{TIMEOUT, model};
use model::{DeviceState, Event, Firmware, Loss, Output, Version};

/// How often the device looks for input.
const TICK: Duration = Duration::from_millis(1);
/// After a longer pause of its thread, the order of what arrived meanwhile is unknown: messages then take effect first, and at once.
const STALL: Duration = Duration::from_millis(10);
/// How long a device may be in a state that only a person can end, on a slow machine. The simulations check 5 s.
pub const STUCK_LIMIT: Duration = Duration::from_secs(30);

pub struct FirmwareDevice {
    parts: Arc<Mutex<Parts>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    pub number: u8,
    pub version: Version,
}

/// The device and its sockets.
struct Parts {
    model: Firmware,
    gateway: SocketAddr,
    connect: Connect,
    mqtt: Option<Client>,
    udp: Option<UdpSocket>,
    /// Connections of a device that lost its power: they end without a word.
    abandoned: Vec<Client>,
    key: [u8; 16],
    is_reachable: bool,
    drops_uplink: bool,
    last_turn: Instant,
}

impl FirmwareDevice {
    /// A device that is switched on and connected.
    pub fn start(gateway: SocketAddr, number: u8, version: Version) -> Self {
        let now = Instant::now();
        let mut model = Firmware::new(version, u64::from(number), now);
        // A test need not wait as long as a person.
        model.reconnect_delay_ms = 100..=150;
        model.power_on(now);
        let parts = Arc::new(Mutex::new(Parts {
            model,
            gateway,
            connect: Connect::new(&client_id(number)),
            mqtt: None,
            udp: None,
            abandoned: Vec::new(),
            key: [0; 16],
            is_reachable: true,
            drops_uplink: false,
            last_turn: now,
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(&parts), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                shared.lock().unwrap().turn();
                thread::sleep(TICK);
            }
        });
        let device = Self { parts, stop, thread: Some(thread), number, version };
        device.wait_until("connected", Firmware::is_connected);
        device
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        // A test that has failed does not hide why.
        self.parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    // ----- the person, and the network --------------------------------------------------------------------------------

    /// The person does something: `act(model, now)`.
    pub fn act(&self, act: impl FnOnce(&mut Firmware, Instant)) {
        let mut parts = self.parts();
        act(&mut parts.model, Instant::now());
        parts.carry_out();
    }

    pub fn press_button(&self) {
        self.act(Firmware::press_button);
    }

    /// The MQTT connection is reset, and no other one can be made until [`FirmwareDevice::restore_mqtt`]. Audio is not affected.
    pub fn lose_mqtt(&self) {
        let mut parts = self.parts();
        parts.is_reachable = false;
        if let Some(mqtt) = parts.mqtt.take() {
            mqtt.reset();
        }
        parts.model.on_mqtt_lost(Instant::now());
        parts.carry_out();
    }

    pub fn restore_mqtt(&self) {
        self.parts().is_reachable = true;
    }

    /// No power for a moment: the device connects again and does nothing.
    pub fn restart(&self) {
        let mut parts = self.parts();
        let abandoned = parts.mqtt.take();
        parts.abandoned.extend(abandoned);
        parts.udp = None;
        let now = Instant::now();
        parts.model.power_cut(now);
        parts.model.power_on(now);
        parts.carry_out();
    }

    /// Datagrams of the device are lost on their way, or not any more.
    pub fn drop_uplink(&self, drops: bool) {
        self.parts().drops_uplink = drops;
    }

    // ----- what is seen -----------------------------------------------------------------------------------------------

    pub fn read<T>(&self, read: impl FnOnce(&Firmware) -> T) -> T {
        read(&self.parts().model)
    }

    pub fn state(&self) -> DeviceState {
        self.read(Firmware::state)
    }

    /// How many events there were so far.
    pub fn mark(&self) -> usize {
        self.read(|model| model.events.len())
    }

    /// The events since the mark.
    pub fn events_since(&self, mark: usize) -> Vec<(Instant, Event)> {
        self.read(|model| model.events[mark..].to_vec())
    }

    pub fn wait_until(&self, what: &str, holds: impl Fn(&Firmware) -> bool) {
        self.wait_within(TIMEOUT, what, holds);
    }

    pub fn wait_within(&self, limit: Duration, what: &str, holds: impl Fn(&Firmware) -> bool) {
        let end = Instant::now() + limit;
        while !self.read(&holds) {
            if Instant::now() >= end {
                panic!("{:?} is never {what} in {limit:?}: {}", self.version, self.describe());
            }
            thread::sleep(TICK);
        }
    }

    pub fn wait_for_state(&self, state: DeviceState) {
        self.wait_within(STUCK_LIMIT, &format!("{state:?}"), |model| model.state() == state);
    }

    /// What happened, for a test that fails.
    pub fn describe(&self) -> String {
        self.read(|model| {
            let start = model.events.first().map(|(at, _)| *at);
            let mut text = format!(
                "{:?}, session {:?}, heard {}, lost {:?}, {:?}\n",
                model.state(),
                model.session_id(),
                model.heard.len(),
                model.lost.iter().map(|lost| lost.loss).collect::<Vec<_>>(),
                model.screen()
            );
            for (at, event) in &model.events {
                let ms = start.map_or(0, |start| (*at - start).as_millis());
                let line = match event {
                    Event::Message(value) => value.to_string(),
                    Event::Datagram { sequence, .. } => format!("datagram {sequence}"),
                    other => format!("{other:?}"),
                };
                text += &format!("{ms:>7} {line}\n");
            }
            text
        })
    }

    // ----- laws -------------------------------------------------------------------------------------------------------

    /// What the gateway shows of the device.
    pub fn shown_by(&self, gateway: &Running) -> Value {
        let path = format!("/api/sessions/{}", client_id(self.number));
        let (_, text) = http_call(gateway.addresses().api.unwrap(), "GET", &path, None, None);
        serde_json::from_str(&text).unwrap()
    }

    /// The session id of the call that the gateway has for the device.
    pub fn call_of(&self, gateway: &Running) -> Option<String> {
        self.shown_by(gateway)["call"]["sessionId"].as_str().map(str::to_owned)
    }

    /// For so long, with network and chat server up, it does not stay in one of the states that only a person can end, and is in none
    /// of them at the end.
    pub fn assert_not_stuck_for(&self, gateway: &Running, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            let call = self.call_of(gateway);
            let now = Instant::now();
            let stuck = self.parts().model.observe(now, call.as_deref());
            match stuck {
                Some(stuck) if now - stuck.since > STUCK_LIMIT => {
                    panic!(
                        "{:?}: {} for {:?}: {}",
                        self.version,
                        stuck.why,
                        now - stuck.since,
                        self.describe()
                    );
                }
                None if now >= end => return,
                _ => {}
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// No frame of a reply was thrown away or exceeded the queue, unless the person interrupted, and nothing would have crashed it.
    pub fn assert_nothing_lost(&self) {
        let (lost, crashes) = self.read(|model| {
            let lost: Vec<Loss> = model.speech_lost().map(|lost| lost.loss).collect();
            (lost, model.crashes.clone())
        });
        assert!(lost.is_empty() && crashes.is_empty(), "{:?} {crashes:?}: {}", self.version, self.describe());
    }
}

impl Drop for FirmwareDevice {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Parts {
    /// Reads what has arrived, lets the model act, and sends.
    fn turn(&mut self) {
        let now = Instant::now();
        let stalled = now.saturating_duration_since(self.last_turn) > STALL;
        self.last_turn = now;
        let delay = self.model.message_delay_ms.clone();
        if stalled {
            self.model.message_delay_ms = 0..=0;
        }
        self.read_mqtt(now);
        self.carry_out();
        self.read_udp(now);
        self.model.message_delay_ms = delay;
        self.model.tick(now);
        self.carry_out();
    }

    fn read_mqtt(&mut self, now: Instant) {
        while let Some(mqtt) = &mut self.mqtt {
            match mqtt.packet_within(Duration::ZERO) {
                Ok(packet) if packet.first == PUBLISH => self.model.on_message(now, packet.message().1),
                Ok(packet) if packet.first == CONNACK && packet.body[1] == 0 => {
                    self.model.on_mqtt_connected(now);
                }
                Err(PacketError::Deadline) => return,
                _ => {
                    self.mqtt = None;
                    self.model.on_mqtt_lost(now);
                }
            }
        }
    }

    fn read_udp(&mut self, now: Instant) {
        let mut buffer = [0; 2048];
        // An error is what an earlier datagram met.
        while let Some(Ok(n)) = self.udp.as_ref().map(|udp| udp.recv(&mut buffer)) {
            let Some((header, payload)) = buffer[..n].split_first_chunk::<16>() else { continue };
            self.model.on_datagram(now, *header, &aes_ctr(&self.key, header, payload));
        }
    }

    fn carry_out(&mut self) {
        for output in self.model.take_outputs() {
            match output {
                Output::ConnectMqtt => self.connect(),
                Output::Publish(text) => {
                    if let Some(mqtt) = &mut self.mqtt {
                        mqtt.try_send(&super::mqtt::publish("device-server", text.as_bytes()));
                    }
                }
                Output::OpenUdp => self.open_udp(),
                Output::CloseUdp => self.udp = None,
                Output::Datagram(header, payload) => {
                    if let Some(udp) = self.udp.as_ref().filter(|_| !self.drops_uplink) {
                        let _ = udp.send(&[&header[..], &aes_ctr(&self.key, &header, &payload)].concat());
                    }
                }
            }
        }
        if let Some(channel) = self.model.channel() {
            self.key = channel.key;
        }
    }

    fn connect(&mut self) {
        let stream = match self.is_reachable {
            true => std::net::TcpStream::connect_timeout(&self.gateway, TIMEOUT).ok(),
            false => None,
        };
        let Some(stream) = stream else { return self.model.on_mqtt_lost(Instant::now()) };
        let mut mqtt = Client::from(stream);
        mqtt.hears_leave_unknown_call = true;
        mqtt.try_send(&self.connect.packet());
        mqtt.stream.set_nonblocking(true).unwrap();
        self.mqtt = Some(mqtt);
    }

    fn open_udp(&mut self) {
        let channel = self.model.channel().unwrap();
        // A device has one address.
        let ip = self.mqtt.as_ref().unwrap().stream.local_addr().unwrap().ip();
        let udp = UdpSocket::bind((ip, 0)).unwrap();
        udp.connect((channel.server.as_str(), channel.port)).unwrap();
        udp.set_nonblocking(true).unwrap();
        (self.key, self.udp) = (channel.key, Some(udp));
    }
}
