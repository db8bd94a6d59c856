//! The stock firmware of several versions, modelled with its states, its two tasks, its queue and the person in front of it, on real
//! sockets: is it ever left deaf, silent, or talking to nobody?
//!
//! Each scenario ends with the laws of `support/firmware.rs`: no device is left in a state that only a person can end, and no frame of a reply is lost unless the person interrupted.

#![allow(clippy::unwrap_used)]

mod support;

use std::panic::resume_unwind;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use mqtt_websocket_proxy::config::Config;
use mqtt_websocket_proxy::net::Running;
use serde_json::{Value, json};
use support::chat_server::{ChatServer, Message, Peer, audio_frame, frame};
use support::device::{Device, mac};
use support::firmware::{FirmwareDevice, STUCK_LIMIT};
use support::host::wait_until;
use support::http::http_call;
use support::model::{DeviceState, Event, Firmware, ListeningMode, Screen, Version};
use support::real_time::assert_in_real_time;
use support::{TIMEOUT, config, gateway_with, process_loopback_ip, refusing_port, remaining};

const MS: fn(u64) -> Duration = Duration::from_millis;
const FRAME: Duration = Duration::from_millis(60);
const TTS_START: &str = r#"{"type":"tts","state":"start"}"#;
const TTS_STOP: &str = r#"{"type":"tts","state":"stop"}"#;
const STT: &str = r#"{"type":"stt","text":"what was said"}"#;
const TEXT: u8 = 1;
const BINARY: u8 = 2;

/// The ones that keep their call when MQTT is lost.
const WITH_RESUME: [Version; 7] = [
    Version::V1_6_0,
    Version::V1_6_2,
    Version::V1_7_5,
    Version::V1_8_9,
    Version::V2_0_5,
    Version::V2_2_6,
    Version::V2_4_2,
];

struct Scene {
    gateway: Running,
    server: ChatServer,
    device: FirmwareDevice,
}

impl Scene {
    fn new(version: Version) -> Self {
        Self::with_config(version, |_| {})
    }

    fn with_config(version: Version, change: impl FnOnce(&mut Config)) -> Self {
        let server = ChatServer::start();
        let gateway = gateway_with(&[server.url()], change);
        let device = FirmwareDevice::start(gateway.addresses().mqtt, version as u8 + 1, version);
        Self { gateway, server, device }
    }

    /// The person presses the button, and the device listens.
    fn call(&self) -> Peer {
        self.device.press_button();
        self.answer("server-session")
    }

    /// The chat server answers a call, and the device's audio arrives.
    fn answer(&self, session_id: &str) -> Peer {
        let mut peer = self.server.accept();
        peer.upgrade();
        peer.exchange_hello(session_id);
        assert_eq!(next_json(&mut peer)["type"], "listen");
        self.device.wait_for_state(DeviceState::Listening);
        wait_for_audio(&mut peer);
        peer
    }

    /// A call in which the device is speaking, and has played one frame.
    fn call_in_speech(&self) -> Peer {
        let mut peer = self.call();
        peer.send_text(TTS_START);
        self.device.wait_for_state(DeviceState::Speaking);
        peer.send_audio(0, &speech(1)[0]);
        self.device.wait_until("hearing", |model| model.heard.len() == 1);
        peer
    }

    /// The MQTT connection is lost, and the gateway has noticed.
    fn lose_mqtt(&self) {
        self.device.lose_mqtt();
        wait_until("noticed", || self.device.shown_by(&self.gateway)["connected"] != true);
    }

    fn assert_not_stuck(&self) {
        self.device.assert_not_stuck_for(&self.gateway, MS(7000));
    }

    /// The device is told to stop, after the last frame.
    fn assert_stop_is_last(&self, mark: usize) {
        let stop =
            |model: &Firmware| model.events[mark..].iter().position(|(_, event)| is_tts(event, "stop"));
        self.device.wait_until("told to stop", |model| stop(model).is_some());
        self.device.wait_for_state(DeviceState::Listening);
        let events = self.device.events_since(mark);
        let stop = self.device.read(stop).unwrap();
        assert!(!events[stop..].iter().any(|(_, event)| is_speech(event)), "{}", self.device.describe());
    }

    /// The speech is heard from its first frame to the last, and nothing of it is lost.
    fn assert_heard(&self, frames: &[Vec<u8>]) {
        self.device.wait_until("through", |model| model.heard.len() + model.lost.len() >= frames.len());
        self.device.assert_nothing_lost();
        assert_eq!(self.device.read(|model| model.heard.clone()), frames, "{}", self.device.describe());
    }
}

/// Runs a scenario with each of these versions at the same time.
fn for_each(versions: &[Version], scenario: impl Fn(Version) + Sync) {
    thread::scope(|scope| {
        let scenario = &scenario;
        let threads: Vec<_> =
            versions.iter().map(|version| scope.spawn(move || scenario(*version))).collect();
        let results: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        if let Some(failure) = results.into_iter().find_map(Result::err) {
            resume_unwind(failure);
        }
    });
}

/// Measures with all versions at the same time; a measurement returns what happened if it does not hold.
fn for_each_in_real_time(measure: impl Fn(Version) -> Option<String> + Sync) {
    assert_in_real_time(|| {
        let failures = Mutex::new(Vec::new());
        for_each(&Version::ALL, |version| failures.lock().unwrap().extend(measure(version)));
        failures.into_inner().unwrap().pop().map_or(Ok(()), Err)
    });
}

/// So many frames of speech, all different.
fn speech(frames: usize) -> Vec<Vec<u8>> {
    let frame = |n: usize| [&[0x58][..], &(n as u32).to_be_bytes(), &[7; 25]].concat();
    (0..frames).map(frame).collect()
}

/// `tts start`, the speech and `tts stop`, to be sent in one write.
fn reply(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = frame(TEXT, TTS_START.as_bytes());
    for (n, opus) in frames.iter().enumerate() {
        bytes.extend(frame(BINARY, &audio_frame(60 * n as u32, opus)));
    }
    bytes.extend(frame(TEXT, TTS_STOP.as_bytes()));
    bytes
}

/// Speech as a server in real time sends it.
fn speak(peer: &mut Peer, frames: &[Vec<u8>]) {
    let start = Instant::now();
    for (n, opus) in frames.iter().enumerate() {
        thread::sleep((FRAME * n as u32).saturating_sub(start.elapsed()));
        peer.send_audio(60 * n as u32, opus);
    }
}

/// The server's next text.
fn next_json(peer: &mut Peer) -> Value {
    let end = Instant::now() + TIMEOUT;
    while Instant::now() < end {
        match peer.message() {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Binary(_) | Message::Ping(_) => {}
            other => panic!("{other:?} instead of a text"),
        }
    }
    panic!("no text for the chat server");
}

/// What the device has sent before is not counted.
fn wait_for_audio(peer: &mut Peer) {
    let end = Instant::now() + TIMEOUT;
    while !matches!(peer.message(), Message::Binary(_)) {
        assert!(Instant::now() < end, "no audio for the chat server");
    }
}

/// The gateway ends the call with the server within this time.
fn assert_closed_within(peer: &mut Peer, limit: Duration) {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Some(Message::Close(_) | Message::End) = peer.message_within(remaining(end)) {
            return;
        }
    }
    panic!("the call still lives after {limit:?}");
}

/// When a message or datagram that fits first arrived.
fn first_at(events: &[(Instant, Event)], fits: impl Fn(&Event) -> bool) -> Option<Instant> {
    events.iter().find(|(_, event)| fits(event)).map(|(at, _)| *at)
}

fn is_tts(event: &Event, state: &str) -> bool {
    matches!(event, Event::Message(message) if message["type"] == "tts" && message["state"] == state)
}

/// Audio of a server, and not what keeps a path open.
fn is_speech(event: &Event) -> bool {
    matches!(event, Event::Datagram { sequence, .. } if *sequence != 0)
}

fn shows_an_alert(model: &Firmware) -> bool {
    matches!(model.screen(), Screen::Alert { .. })
}

// ----- calls without trouble ------------------------------------------------------------------------------------------

#[test]
fn a_reply_in_real_time_is_heard_whole() {
    for_each(&Version::ALL, |version| {
        for mode in [ListeningMode::Auto, ListeningMode::Realtime] {
            let scene = Scene::new(version);
            scene.device.act(|model, _| model.button_mode = mode);
            let mut peer = scene.call();
            peer.send_text(TTS_START);
            scene.device.wait_for_state(DeviceState::Speaking);
            let frames = speech(20);
            speak(&mut peer, &frames);
            scene.assert_heard(&frames);
            peer.send_text(TTS_STOP);
            scene.device.wait_for_state(DeviceState::Listening);
            assert_eq!(next_json(&mut peer)["state"], "start");
            scene.device.press_button();
            assert_closed_within(&mut peer, STUCK_LIMIT);
            assert_eq!(scene.device.state(), DeviceState::Idle);
        }
    });
}

#[test]
fn a_call_by_a_held_button() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::new(version);
        scene.device.act(Firmware::hold_button);
        let mut peer = scene.answer("server-session");
        scene.device.act(Firmware::release_button);
        assert_eq!(next_json(&mut peer)["state"], "stop");
        peer.send_text(TTS_START);
        scene.device.wait_for_state(DeviceState::Speaking);
        let frames = speech(5);
        speak(&mut peer, &frames);
        scene.assert_heard(&frames);
        peer.send_text(TTS_STOP);
        scene.device.wait_for_state(DeviceState::Idle);
        // The channel is still open.
        scene.device.act(Firmware::hold_button);
        assert_eq!(next_json(&mut peer)["mode"], "manual");
    });
}

#[test]
fn the_person_interrupts_a_reply() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::new(version);
        let mut peer = scene.call_in_speech();
        scene.device.act(Firmware::say_wake_word);
        assert_eq!(next_json(&mut peer)["reason"], "wake_word_detected");
        peer.send_text(TTS_STOP);
        scene.device.wait_for_state(DeviceState::Listening);
    });
}

#[test]
fn a_restarted_device_calls_again() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::new(version);
        let mut first = scene.call_in_speech();
        scene.device.restart();
        scene.device.press_button();
        let mut second = scene.answer("second");
        assert_closed_within(&mut first, STUCK_LIMIT);
        assert_eq!(scene.device.read(|model| model.session_id().to_owned()), "second");
        second.send_text(TTS_START);
        scene.device.wait_for_state(DeviceState::Speaking);
    });
}

// ----- rule 1: MQTT is lost in a call, and the device is back -----------------------------------------------------------

/// A listening device has lost MQTT, and its way for audio too when `is_silent`. Then the server answers what was said, with this much
/// audio.
fn lose_mqtt_before_a_reply(scene: &Scene, frames: &[Vec<u8>], is_silent: bool) -> Peer {
    let mut peer = scene.call();
    scene.device.drop_uplink(is_silent);
    scene.lose_mqtt();
    peer.send_text(STT);
    peer.send_text(TTS_START);
    speak(&mut peer, frames);
    peer
}

#[test]
fn speech_that_had_begun_goes_on_while_mqtt_is_lost() {
    for_each(&WITH_RESUME, |version| {
        let scene = Scene::new(version);
        let mut peer = scene.call();
        peer.send_text(TTS_START);
        scene.device.wait_for_state(DeviceState::Speaking);
        let frames = speech(20);
        speak(&mut peer, &frames[..5]);
        scene.lose_mqtt();
        speak(&mut peer, &frames[5..]);
        peer.send_text(TTS_STOP);
        scene.assert_heard(&frames);
        scene.device.restore_mqtt();
        scene.device.wait_for_state(DeviceState::Listening);
        assert_eq!(next_json(&mut peer)["state"], "start");
    });
}

#[test]
fn a_reply_that_began_while_mqtt_was_lost_is_heard_from_its_start() {
    for_each(&WITH_RESUME, |version| {
        let scene = Scene::new(version);
        let frames = speech(20);
        let mut peer = lose_mqtt_before_a_reply(&scene, &frames, false);
        peer.send_text(TTS_STOP);
        let mark = scene.device.mark();
        scene.device.restore_mqtt();
        scene.assert_heard(&frames);
        scene.assert_stop_is_last(mark);
    });
}

/// A reply has begun while MQTT was lost. The device hangs up, unheard, connects and says hello. `is_silent`: no datagram has shown
/// since the loss that it is still in its call. Returns what it got since it is back.
fn say_hello_after_a_reply(scene: &Scene, is_silent: bool) -> Vec<(Instant, Event)> {
    let mut first = lose_mqtt_before_a_reply(scene, &speech(5), is_silent);
    // The newest is idle already.
    if scene.device.state() == DeviceState::Listening {
        scene.device.press_button();
    }
    scene.device.drop_uplink(false);
    let mark = scene.device.mark();
    scene.device.restore_mqtt();
    scene.device.press_button();
    let mut second = scene.answer("second");
    assert_closed_within(&mut first, STUCK_LIMIT);
    second.send_text(r#"{"type":"llm","emotion":"happy"}"#);
    let is_last = |event: &Event| matches!(event, Event::Message(message) if message["type"] == "llm");
    scene.device.wait_until("answered", |model| model.events.iter().any(|(_, event)| is_last(event)));
    scene.device.events_since(mark)
}

#[test]
fn a_device_that_says_hello_when_it_is_back_gets_nothing_of_the_old_call() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::new(version);
        for (_, event) in say_hello_after_a_reply(&scene, true) {
            let is_old = match &event {
                Event::Message(message) => message["type"] == "stt" || is_tts(&event, "start"),
                other => is_speech(other),
            };
            assert!(!is_old, "{}", scene.device.describe());
        }
        scene.assert_not_stuck();
        assert_eq!(scene.device.state(), DeviceState::Listening);
    });
}

#[test]
fn a_device_that_sent_audio_until_it_said_hello_is_not_left_speaking() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::new(version);
        say_hello_after_a_reply(&scene, false);
        scene.assert_not_stuck();
        assert_eq!(scene.device.state(), DeviceState::Listening, "{}", scene.device.describe());
    });
}

#[test]
fn a_restarted_device_that_does_nothing_gets_nothing_of_the_old_call() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::with_config(version, |config| config.mqtt.resume_grace = MS(3000));
        let mut peer = lose_mqtt_before_a_reply(&scene, &speech(5), true);
        scene.device.restore_mqtt();
        let mark = scene.device.mark();
        scene.device.restart();
        scene.assert_not_stuck();
        assert_closed_within(&mut peer, STUCK_LIMIT);
        assert_eq!(scene.device.state(), DeviceState::Idle);
        for (_, event) in scene.device.events_since(mark) {
            let Event::Message(message) = &event else { continue };
            let is_text =
                matches!(message["type"].as_str(), Some("stt" | "alert")) || is_tts(&event, "start");
            assert!(!is_text, "{}", scene.device.describe());
        }
    });
}

#[test]
fn a_hello_of_a_device_that_may_have_been_speaking_is_followed_by_tts_stop() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::new(version);
        let mut first = scene.call_in_speech();
        scene.lose_mqtt();
        scene.device.restart();
        let mark = scene.device.mark();
        scene.device.restore_mqtt();
        scene.device.press_button();
        scene.answer("second");
        assert_closed_within(&mut first, STUCK_LIMIT);
        scene.device.wait_within(STUCK_LIMIT, "told to stop", |model| {
            model.events[mark..].iter().any(|(_, event)| is_tts(event, "stop"))
        });
        assert_eq!(scene.device.state(), DeviceState::Listening);
    });
}

#[test]
fn a_device_that_restarted_in_mid_speech_and_does_nothing_loses_its_call() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::with_config(version, |config| config.mqtt.resume_grace = MS(2000));
        let mut peer = scene.call_in_speech();
        scene.device.restart();
        scene.device.wait_until("connected", Firmware::is_connected);
        assert_closed_within(&mut peer, MS(2000) + STUCK_LIMIT);
        assert!(scene.device.read(|model| *model.screen() == Screen::Empty), "{}", scene.device.describe());
    });
}

#[test]
fn the_call_of_a_device_whose_audio_goes_on_outlives_the_grace() {
    for_each(&WITH_RESUME, |version| {
        let scene = Scene::with_config(version, |config| config.mqtt.resume_grace = MS(1000));
        let mut peer = scene.call();
        scene.lose_mqtt();
        thread::sleep(MS(3000));
        scene.device.restore_mqtt();
        scene.device.wait_until("connected", Firmware::is_connected);
        peer.send_text(TTS_START);
        scene.device.wait_for_state(DeviceState::Speaking);
        scene.assert_not_stuck();
    });
}

#[test]
fn the_default_grace_covers_two_attempts_of_the_firmware() {
    assert!(Config::default().mqtt.resume_grace >= Duration::from_secs(35));
}

#[test]
fn a_hello_reply_reaches_a_device_that_has_lost_mqtt_meanwhile() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::new(version);
        scene.device.press_button();
        let mut peer = scene.server.accept();
        peer.upgrade();
        scene.lose_mqtt();
        scene.device.restore_mqtt();
        scene.device.wait_until("connected", Firmware::is_connected);
        peer.exchange_hello("server-session");
        scene.device.wait_for_state(DeviceState::Listening);
        wait_for_audio(&mut peer);
    });
}

/// The chat server answers the first hello while the device is away. The newest takes any hello reply for that to its second hello, and
/// then ignores the right one.
#[test]
fn the_hello_reply_of_an_earlier_call_does_not_answer_a_new_hello() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::new(version);
        scene.device.press_button();
        let mut first = scene.server.accept();
        first.upgrade();
        scene.lose_mqtt();
        scene.device.restart();
        first.exchange_hello("first");
        wait_until("answered", || scene.device.call_of(&scene.gateway).is_some());
        scene.device.restore_mqtt();
        scene.device.press_button();
        scene.answer("second");
        assert_closed_within(&mut first, STUCK_LIMIT);
        let own = scene.device.read(|model| model.session_id().to_owned());
        assert_eq!(own, "second", "{}", scene.device.describe());
        scene.assert_not_stuck();
    });
}

#[test]
fn a_press_that_is_lost_with_mqtt_does_not_leave_the_device_speaking() {
    for_each(&WITH_RESUME, |version| {
        let scene = Scene::new(version);
        let mut peer = scene.call_in_speech();
        scene.lose_mqtt();
        scene.device.press_button();
        peer.send_text(TTS_STOP);
        scene.device.restore_mqtt();
        scene.device.wait_for_state(DeviceState::Listening);
        scene.assert_not_stuck();
    });
}

// ----- rule 2: an empty session id says that the device has no call ------------------------------------------------------

#[test]
fn an_empty_session_id_in_listen_or_abort_ends_the_call() {
    for kind in [r#""type":"listen","state":"start","mode":"auto""#, r#""type":"abort""#] {
        let server = ChatServer::start();
        let gateway = gateway_with(&[server.url()], |config| config.udp.first_packet_warn = MS(0));
        let mut device = Device::connect(gateway.addresses().mqtt, 1);
        let (_call, mut peer) = device.call(&server);
        // Absent, null, truncated or foreign ids are forwarded.
        for id in ["", r#","session_id":null"#, r#","session_id":"server-se""#, r#","session_id":"x""#] {
            device.send_text(&format!("{{{kind}{id}}}"));
            assert!(matches!(peer.json()["type"].as_str(), Some("listen" | "abort")));
        }
        device.send_text(&format!(r#"{{{kind},"session_id":""}}"#));
        device.expect_goodbye("");
        assert_closed_within(&mut peer, STUCK_LIMIT);
        device.mqtt.assert_nothing_pending();
    }
}

#[test]
fn an_empty_session_id_without_a_call_is_answered_with_an_empty_one() {
    let server = ChatServer::start();
    let gateway = gateway_with(&[server.url()], |_| {});
    let mut device = Device::connect(gateway.addresses().mqtt, 1);
    let (call, mut peer) = device.call(&server);
    device.send_text(&json!({"type": "goodbye", "session_id": call.session_id}).to_string());
    assert_closed_within(&mut peer, STUCK_LIMIT);
    device.send_text(r#"{"type":"listen","state":"start","mode":"auto","session_id":""}"#);
    device.expect_goodbye("");
}

/// `tts start` has arrived, but the main loop has not handled it, when the person hangs up. Nothing but a second goodbye would reach
/// the newest then.
#[test]
fn a_hang_up_that_crosses_tts_start_does_not_leave_the_device_speaking() {
    for_each(&WITH_RESUME, |version| {
        let scene = Scene::new(version);
        let mut peer = scene.call();
        scene.device.act(|model, _| model.message_delay_ms = 100..=100);
        let mark = scene.device.mark();
        peer.send_text(TTS_START);
        scene.device.wait_until("told to speak", |model| {
            model.events[mark..].iter().any(|(_, event)| is_tts(event, "start"))
        });
        scene.device.press_button();
        assert_eq!(scene.device.state(), DeviceState::Idle);
        scene.assert_not_stuck();
    });
}

// ----- rules 3 and 4: when audio leaves ------------------------------------------------------------------------------

#[test]
fn the_first_frame_comes_when_the_device_has_begun_to_speak() {
    for_each_in_real_time(|version| {
        let scene = Scene::new(version);
        let mut peer = scene.call();
        for round in 1..=5 {
            let mark = scene.device.mark();
            let frames = speech(6);
            peer.send_raw(&reply(&frames));
            scene.device.wait_within(STUCK_LIMIT, "through", |model| model.heard.len() >= 6 * round);
            scene.device.wait_for_state(DeviceState::Listening);
            let events = scene.device.events_since(mark);
            let start = first_at(&events, |event| is_tts(event, "start")).unwrap();
            let lead = first_at(&events, is_speech).unwrap() - start;
            if lead < MS(20) {
                return Some(format!("{lead:?}: {}", scene.device.describe()));
            }
        }
        scene.device.assert_nothing_lost();
        None
    });
}

#[test]
fn a_reply_in_one_write_is_heard_whole() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::new(version);
        let mut peer = scene.call();
        let frames = speech(100);
        let mark = scene.device.mark();
        peer.send_raw(&reply(&frames));
        scene.assert_heard(&frames);
        scene.assert_stop_is_last(mark);
        assert!(scene.device.read(|model| model.max_queued) < 20);
    });
}

#[test]
fn an_interrupted_reply_in_one_write_is_silent_at_once() {
    for_each_in_real_time(interrupt_a_reply);
}

/// Returns what happened if it was late.
fn interrupt_a_reply(version: Version) -> Option<String> {
    let scene = Scene::new(version);
    let mut peer = scene.call();
    let frames = speech(100);
    // The stop comes when the person has interrupted.
    let burst = reply(&frames);
    peer.send_raw(&burst[..burst.len() - frame(TEXT, TTS_STOP.as_bytes()).len()]);
    scene.device.wait_within(STUCK_LIMIT, "in the middle", |model| model.heard.len() >= 20);
    scene.device.press_button();
    let mark = scene.device.mark();
    assert_eq!(next_json(&mut peer)["type"], "abort");
    peer.send_text(TTS_STOP);
    let sent = Instant::now();
    scene.device.wait_for_state(DeviceState::Listening);
    scene.device.assert_nothing_lost();
    let events = scene.device.events_since(mark);
    let stop = first_at(&events, |event| is_tts(event, "stop")).unwrap();
    let after = events.iter().filter(|(_, event)| is_speech(event)).count();
    let in_time = stop.saturating_duration_since(sent) < MS(500) && after <= 3;
    (!in_time).then(|| format!("{after} frames after the abort: {}", scene.device.describe()))
}

/// What a server says in one write is heard before this ends the call.
fn assert_played_out_before(end: impl Fn(&mut Peer) + Sync) {
    for_each(&Version::ALL, |version| {
        let scene = Scene::new(version);
        let mut peer = scene.call();
        let frames = speech(50);
        peer.send_raw(&reply(&frames));
        end(&mut peer);
        scene.assert_heard(&frames);
        scene.device.wait_for_state(DeviceState::Idle);
        assert_eq!(scene.device.call_of(&scene.gateway), None);
    });
}

#[test]
fn what_was_said_is_played_out_before_the_servers_close() {
    assert_played_out_before(|peer| peer.send_close(Some(1000)));
}

#[test]
fn what_was_said_is_played_out_before_the_servers_goodbye() {
    assert_played_out_before(|peer| peer.send_text(r#"{"type":"goodbye"}"#));
}

#[test]
fn what_a_server_said_before_it_failed_is_heard_during_the_redial() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::new(version);
        let mut peer = scene.call();
        let frames = speech(50);
        peer.send_raw(&reply(&frames));
        // The gateway has read it.
        scene.device.wait_for_state(DeviceState::Speaking);
        peer.send_close(Some(1011));
        let mut peer = scene.server.accept();
        peer.upgrade();
        peer.exchange_hello("another");
        scene.assert_heard(&frames);
        scene.device.wait_for_state(DeviceState::Listening);
        scene.assert_not_stuck();
    });
}

#[test]
fn a_server_that_dies_in_mid_speech_does_not_leave_the_device_speaking() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::new(version);
        let peer = scene.call_in_speech();
        peer.reset();
        let mut peer = scene.server.accept();
        peer.upgrade();
        peer.exchange_hello("another");
        scene.device.wait_for_state(DeviceState::Listening);
        scene.device.assert_nothing_lost();
        scene.assert_not_stuck();
    });
}

#[test]
fn the_six_digit_code_of_a_server_without_hello_is_heard() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::new(version);
        scene.device.press_button();
        let mut peer = scene.server.accept();
        peer.upgrade();
        let frames = speech(60);
        peer.send_raw(&[frame(TEXT, STT.as_bytes()), reply(&frames)].concat());
        scene.assert_heard(&frames);
        scene.device.wait_for_state(DeviceState::Listening);
        let own = scene.device.read(|model| model.session_id().to_owned());
        for (_, event) in scene.device.events_since(0) {
            if let Event::Message(message) = event {
                assert_eq!(message["session_id"], own.as_str(), "{message}");
            }
        }
    });
}

// ----- rules 5 and 6: reasons on the screen --------------------------------------------------------------------------------

/// All but the newest, which ignores alerts while it is idle, end with a reason on an idle screen.
fn assert_reason_stays(scene: &Scene) {
    scene.device.wait_for_state(DeviceState::Idle);
    if !scene.device.version.is_strict_on_sessions() {
        scene.device.wait_within(STUCK_LIMIT, "showing the reason", shows_an_alert);
    }
    scene.assert_not_stuck();
    let stays = scene.device.read(shows_an_alert) || scene.device.version.is_strict_on_sessions();
    assert!(stays, "{}", scene.device.describe());
}

#[test]
fn without_a_chat_server_the_reason_stays_on_the_screen() {
    for_each(&Version::ALL, |version| {
        let unreachable = format!("ws://{}/?from=mqtt_gateway", refusing_port()).parse().unwrap();
        let scene = Scene::with_config(version, |config| {
            config.websocket.production = vec![std::sync::Arc::new(unreachable)];
        });
        scene.device.press_button();
        assert_reason_stays(&scene);
    });
}

#[test]
fn when_the_call_is_lost_the_reason_stays_on_the_screen() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::with_config(version, |config| config.websocket.reconnect.give_up_after = MS(1000));
        let peer = scene.call_in_speech();
        let Scene { server, gateway, device } = scene;
        support::parallel::kill_server(server, [peer]);
        let scene = Scene { server: ChatServer::start(), gateway, device };
        assert_reason_stays(&scene);
    });
}

#[test]
fn a_long_redial_is_shown_and_its_success_too() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::new(version);
        let peer = scene.call();
        let Scene { server, gateway, device } = scene;
        let address = support::parallel::kill_server(server, [peer]);
        device.wait_within(MS(3000) + STUCK_LIMIT, "told of the redial", shows_an_alert);
        let told = device.read(|model| model.screen().clone());
        let scene = Scene { server: ChatServer::start_at(address), gateway, device };
        let mut peer = scene.server.accept();
        peer.upgrade();
        peer.exchange_hello("another");
        scene.device.wait_within(STUCK_LIMIT, "told that it is back", |model| *model.screen() != told);
        scene.assert_not_stuck();
    });
}

#[test]
fn missing_audio_is_shown_in_the_call_and_again_after_it() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::with_config(version, |config| config.udp.first_packet_warn = MS(1000));
        scene.device.drop_uplink(true);
        scene.device.press_button();
        let mut peer = scene.server.accept();
        peer.upgrade();
        peer.exchange_hello("server-session");
        scene.device.wait_within(STUCK_LIMIT, "told", shows_an_alert);
        assert_eq!(scene.device.state(), DeviceState::Listening, "the call goes on");
        scene.device.press_button();
        assert_reason_stays(&scene);
    });
}

#[test]
fn audio_that_stops_in_mid_call_is_shown() {
    for_each(&Version::ALL, |version| {
        let scene = Scene::with_config(version, |config| config.udp.first_packet_warn = MS(1000));
        let mut peer = scene.call();
        peer.send_text(TTS_START);
        scene.device.wait_for_state(DeviceState::Speaking);
        scene.device.drop_uplink(true);
        peer.send_text(TTS_STOP);
        scene.device.wait_for_state(DeviceState::Listening);
        scene.device.wait_within(STUCK_LIMIT, "told", shows_an_alert);
        assert_eq!(scene.device.state(), DeviceState::Listening, "the call goes on");
    });
}

// ----- rule 7: the gateway is restarted -------------------------------------------------------------------------------------

/// The gateway ends without a word to the device, and another one starts on its ports.
fn restart_gateway(scene: Scene) -> Scene {
    let Scene { gateway, server, device } = scene;
    let addresses = gateway.addresses();
    device.lose_mqtt();
    drop(gateway);
    let mut config = config(&[server.url()]);
    (config.mqtt.port, config.udp.port) = (addresses.mqtt.port(), addresses.udp.port());
    let loopback = process_loopback_ip().into();
    (config.mqtt.host, config.udp.host) = (loopback, loopback);
    let gateway = Running::start(config, None).unwrap();
    device.restore_mqtt();
    device.wait_until("connected", Firmware::is_connected);
    Scene { gateway, server, device }
}

/// On an address of this process, so that its ports stay free.
fn scene_to_restart(version: Version) -> Scene {
    Scene::with_config(version, |config| {
        let loopback = process_loopback_ip().into();
        (config.mqtt.host, config.udp.host) = (loopback, loopback);
    })
}

/// The device is not stuck after the restart, and the next call is like any other.
fn assert_recovers(scene: Scene) {
    let scene = restart_gateway(scene);
    scene.assert_not_stuck();
    scene.device.assert_nothing_lost();
    if scene.device.state() != DeviceState::Idle {
        scene.device.press_button();
    }
    scene.device.press_button();
    scene.answer("after the restart");
}

#[test]
fn a_device_that_listens_when_the_gateway_restarts_does_not_listen_for_ever() {
    for_each(&Version::ALL, |version| {
        let scene = scene_to_restart(version);
        let _peer = scene.call();
        assert_recovers(scene);
    });
}

#[test]
fn a_device_that_speaks_when_the_gateway_restarts_does_not_stay_silent() {
    for_each(&Version::ALL, |version| {
        let scene = scene_to_restart(version);
        let _peer = scene.call_in_speech();
        assert_recovers(scene);
    });
}

#[test]
fn a_device_in_realtime_mode_that_speaks_when_the_gateway_restarts_does_not_stay_silent() {
    for_each(&Version::ALL, |version| {
        let scene = scene_to_restart(version);
        scene.device.act(|model, _| model.button_mode = ListeningMode::Realtime);
        let _peer = scene.call_in_speech();
        assert_recovers(scene);
    });
}

/// Its channel stays open, so that the next press still speaks of the old call.
#[test]
fn a_device_whose_button_is_held_when_the_gateway_restarts_is_idle_and_its_next_press_ends_the_old_call() {
    for_each(&WITH_RESUME, |version| {
        let scene = scene_to_restart(version);
        scene.device.act(Firmware::hold_button);
        let _peer = scene.answer("server-session");
        let scene = restart_gateway(scene);
        scene.device.wait_for_state(DeviceState::Idle);
        scene.device.press_button();
        scene.assert_not_stuck();
        assert_eq!(scene.device.state(), DeviceState::Idle);
        scene.call();
    });
}

#[test]
fn a_device_that_calls_at_once_after_the_restart_is_not_told_to_stop() {
    for_each(&Version::ALL, |version| {
        let scene = restart_gateway(scene_to_restart(version));
        let mark = scene.device.mark();
        let _peer = scene.call();
        thread::sleep(MS(3000));
        let events = scene.device.events_since(mark);
        assert!(first_at(&events, |event| is_tts(event, "stop")).is_none(), "{}", scene.device.describe());
    });
}

#[test]
fn an_idle_device_stays_idle_when_the_gateway_restarts() {
    for_each(&Version::ALL, |version| {
        let scene = restart_gateway(scene_to_restart(version));
        scene.assert_not_stuck();
        assert_eq!(scene.device.state(), DeviceState::Idle);
        assert_eq!(scene.device.read(|model| model.screen().clone()), Screen::Empty);
        scene.call();
    });
}

// ----- rule 8: calls between devices ----------------------------------------------------------------------------------------

/// Two devices of this version that listen in this mode are connected with each other. Returns the API's answer too.
fn connect_devices(version: Version, mode: ListeningMode) -> (Scene, FirmwareDevice, Value) {
    let scene = Scene::new(version);
    let other = FirmwareDevice::start(scene.gateway.addresses().mqtt, 100 + version as u8, version);
    for device in [&scene.device, &other] {
        device.act(|model, _| model.button_mode = mode);
        device.press_button();
        let mut peer = scene.server.accept();
        peer.upgrade();
        peer.exchange_hello(&format!("server-{}", device.number));
        next_json(&mut peer);
        wait_for_audio(&mut peer);
        // It ends when the call between devices begins.
        thread::spawn(move || peer.ignore_until_closed());
    }
    let post = |path: &str, body: Value| -> Value {
        let api = scene.gateway.addresses().api.unwrap();
        let (status, text) = http_call(api, "POST", path, Some(&body.to_string()), None);
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).unwrap()
    };
    let [caller, target] = [&scene.device, &other].map(|device| mac(device.number));
    let request = json!({"caller_mac": caller, "target_mac": target, "caller_nickname": "Ann"});
    assert_eq!(post("/api/call/request", request)["status"], "pending");
    let answer = post("/api/call/accept", json!({ "mac": target }));
    assert_eq!(answer["status"], "bridged");
    (scene, other, answer)
}

#[test]
fn two_stock_devices_in_realtime_mode_hear_each_other() {
    for_each(&Version::ALL[2..], |version| {
        let (scene, other, _) = connect_devices(version, ListeningMode::Realtime);
        let is_sound = |payload: &Vec<u8>| payload.len() == 40;
        for device in [&scene.device, &other] {
            device.wait_for_state(DeviceState::Speaking);
            device.wait_until("heard", |model| {
                model.heard.iter().filter(|payload| is_sound(payload)).count() >= 50
            });
            device.assert_not_stuck_for(&scene.gateway, Duration::ZERO);
        }
        // One hangs up: in realtime, the button interrupts, which ends a call between devices.
        scene.device.press_button();
        for device in [&scene.device, &other] {
            device.wait_until("out of the call", |model| model.state() != DeviceState::Speaking);
            device.assert_not_stuck_for(&scene.gateway, MS(5000));
        }
    });
}

#[test]
fn two_stock_devices_in_auto_mode_are_connected_with_a_note_that_says_why_they_hear_nothing() {
    let (_scene, _other, answer) = connect_devices(Version::V2_2_6, ListeningMode::Auto);
    assert!(answer["note"].as_str().is_some_and(|note| !note.is_empty()), "{answer}");
}
