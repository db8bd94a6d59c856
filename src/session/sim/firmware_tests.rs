//! The model of the firmware against the facts it is made from: what real firmware of each version did.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::firmware::{DeviceState, Firmware, ListeningMode, Loss, Output, Screen, Version};

const MS: fn(u64) -> Duration = Duration::from_millis;
const START: &str = r#"{"type":"tts","state":"start","session_id":"s1"}"#;
const STOP: &str = r#"{"type":"tts","state":"stop","session_id":"s1"}"#;

struct Bench {
    device: Firmware,
    now: Instant,
    sequence: u32,
}

impl Bench {
    fn new(version: Version) -> Self {
        let now = Instant::now();
        let mut device = Firmware::new(version, 1, now);
        device.message_delay_ms = 5..=5;
        device.power_on(now);
        assert_eq!(device.take_outputs(), [Output::ConnectMqtt]);
        device.on_mqtt_connected(now);
        Self { device, now, sequence: 0 }
    }

    /// In a call with the session id `s1`.
    fn in_call(version: Version, mode: ListeningMode) -> Self {
        let mut bench = Self::new(version);
        bench.device.button_mode = mode;
        match mode {
            ListeningMode::Manual => bench.device.hold_button(bench.now),
            _ => bench.device.press_button(bench.now),
        }
        assert_eq!(bench.published()[0]["type"], "hello");
        bench.say(&hello("s1"));
        let listen = bench.published();
        assert_eq!((&listen[0]["state"], &listen[0]["session_id"]), (&json!("start"), &json!("s1")));
        bench
    }

    fn speaking(version: Version, mode: ListeningMode) -> Self {
        let mut bench = Self::in_call(version, mode);
        if mode == ListeningMode::Manual {
            bench.device.release_button(bench.now);
        }
        bench.say(START);
        bench.pass(20);
        assert_eq!(bench.device.state(), DeviceState::Speaking);
        bench.published();
        bench
    }

    fn say(&mut self, text: &str) {
        self.device.on_message(self.now, text);
    }

    fn pass(&mut self, ms: u64) {
        self.now += MS(ms);
        self.device.tick(self.now);
    }

    fn audio(&mut self) {
        self.sequence += 1;
        self.datagram(self.sequence, 30, 30);
    }

    fn datagram(&mut self, sequence: u32, length: usize, length_field: u16) {
        let mut header = [0; 16];
        header[0] = 1;
        header[2..4].copy_from_slice(&length_field.to_be_bytes());
        header[12..].copy_from_slice(&sequence.to_be_bytes());
        self.device.on_datagram(self.now, header, &vec![sequence as u8; length]);
    }

    fn published(&mut self) -> Vec<Value> {
        let outputs = self.device.take_outputs().into_iter();
        outputs
            .filter_map(|output| match output {
                Output::Publish(text) => Some(serde_json::from_str(&text).unwrap()),
                _ => None,
            })
            .collect()
    }

    fn datagrams_sent(&mut self) -> usize {
        let outputs = self.device.take_outputs().into_iter();
        outputs.filter(|output| matches!(output, Output::Datagram(..))).count()
    }

    fn losses(&self) -> Vec<Loss> {
        self.device.lost.iter().map(|lost| lost.loss).collect()
    }

    fn is_idle(&self) -> bool {
        self.device.state() == DeviceState::Idle
    }
}

fn hello(id: &str) -> String {
    let udp = json!({"server": "127.0.0.1", "port": 9, "encryption": "aes-128-ctr",
        "key": "00".repeat(16), "nonce": format!("01{}", "00".repeat(15))});
    json!({"type": "hello", "transport": "udp", "session_id": id, "udp": udp}).to_string()
}

fn goodbye(id: &str) -> String {
    json!({"type": "goodbye", "session_id": id}).to_string()
}

fn all_but_the_newest() -> impl Iterator<Item = Version> {
    Version::ALL.into_iter().filter(|version| *version != Version::Next)
}

#[test]
fn tts_start_makes_the_device_speak_from_any_state_and_clears_what_was_queued() {
    for version in all_but_the_newest() {
        let mut idle = Bench::new(version);
        idle.say(START);
        idle.pass(5);
        assert_eq!(idle.device.state(), DeviceState::Speaking, "{version:?}");
        let mut listening = Bench::in_call(version, ListeningMode::Auto);
        listening.say(START);
        listening.pass(5);
        assert_eq!(listening.device.state(), DeviceState::Speaking);
    }
    let mut bench = Bench::in_call(Version::V1_6_2, ListeningMode::Auto);
    (0..3).for_each(|_| bench.audio());
    bench.say(START);
    bench.pass(5);
    assert_eq!(bench.losses(), [Loss::ClearedByStart; 2]);
}

#[test]
fn tts_stop_counts_only_while_speaking() {
    for version in Version::ALL {
        let mut bench = Bench::in_call(version, ListeningMode::Auto);
        bench.say(STOP);
        bench.pass(20);
        assert_eq!(bench.published(), [] as [Value; 0], "{version:?}");
    }
    let mut idle = Bench::new(Version::V2_2_6);
    idle.say(STOP);
    idle.pass(20);
    assert!(idle.is_idle() && idle.published().is_empty());
}

#[test]
fn after_tts_stop_manual_goes_idle_and_auto_and_realtime_listen_with_their_own_session_id() {
    for version in Version::ALL {
        let mut manual = Bench::speaking(version, ListeningMode::Manual);
        manual.say(STOP);
        manual.pass(5);
        assert!(manual.is_idle() && manual.device.channel().is_some(), "the channel stays open");
        for mode in [ListeningMode::Auto, ListeningMode::Realtime] {
            let mut bench = Bench::speaking(version, mode);
            bench.say(&STOP.replace("s1", if version == Version::Next { "s1" } else { "other" }));
            bench.pass(5);
            assert_eq!(bench.device.state(), DeviceState::Listening);
            let listen = &bench.published()[0];
            assert_eq!(
                (&listen["type"], &listen["state"], &listen["session_id"]),
                (&json!("listen"), &json!("start"), &json!("s1"))
            );
        }
    }
}

#[test]
fn a_datagram_before_the_main_loop_has_switched_to_speaking_is_thrown_away() {
    for version in Version::ALL.into_iter().filter(|version| *version >= Version::V1_7_5) {
        let mut bench = Bench::in_call(version, ListeningMode::Auto);
        bench.say(START);
        bench.audio();
        bench.pass(4);
        bench.audio();
        bench.pass(1);
        bench.audio();
        assert_eq!(bench.losses(), [Loss::NotSpeaking; 2], "{version:?}");
        assert_eq!(bench.device.heard.len(), 1);
        assert_eq!(bench.device.speech_lost().count(), 2);
    }
}

#[test]
fn messages_take_effect_up_to_15_ms_later_and_in_order() {
    let mut delays = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let now = Instant::now();
        let mut device = Firmware::new(Version::V2_2_6, seed, now);
        device.power_on(now);
        device.on_mqtt_connected(now);
        device.on_message(now, START);
        device.on_message(now, STOP);
        delays.insert(device.next_deadline().unwrap() - now);
        device.tick(now + MS(15));
        // `tts stop` did not come first.
        assert_eq!(device.state(), DeviceState::Listening);
    }
    assert!(delays.len() > 10 && delays.last() <= Some(&MS(15)));
}

#[test]
fn the_playback_queue_is_bounded_and_loses_the_rest_silently() {
    for (version, capacity) in [
        (Version::V1_6_0, 5),
        (Version::V1_6_2, 10),
        (Version::V1_7_5, 40),
        (Version::V2_4_2, 40),
        (Version::Next, 20),
    ] {
        let mut bench = Bench::speaking(version, ListeningMode::Auto);
        (0..50).for_each(|_| bench.audio());
        // One is being heard.
        assert_eq!(bench.losses(), vec![Loss::Overflow; 49 - capacity], "{version:?}");
        bench.pass(60 * 50);
        assert_eq!((bench.device.heard.len(), bench.device.max_queued), (capacity + 1, capacity));
    }
}

#[test]
fn one_frame_is_played_per_frame_duration() {
    let mut bench = Bench::speaking(Version::V2_2_6, ListeningMode::Auto);
    (0..3).for_each(|_| bench.audio());
    for heard in [1, 2, 3, 3] {
        assert_eq!(bench.device.heard.len(), heard);
        bench.pass(60);
    }
    let mut bench = Bench::new(Version::V2_2_6);
    bench.device.press_button(bench.now);
    let hello =
        hello("s1").replace(r#""session_id""#, r#""audio_params":{"frame_duration":20},"session_id""#);
    bench.say(&hello);
    bench.say(START);
    bench.pass(20);
    (0..3).for_each(|_| bench.audio());
    bench.pass(40);
    assert_eq!(bench.device.heard.len(), 3);
}

#[test]
fn tts_stop_flushes_in_two_versions_and_is_played_out_in_others_before_they_listen() {
    for version in Version::ALL {
        let mut bench = Bench::speaking(version, ListeningMode::Auto);
        (0..4).for_each(|_| bench.audio());
        bench.say(STOP);
        bench.pass(5);
        if matches!(version, Version::V1_8_9 | Version::V2_0_5) {
            assert_eq!(bench.losses(), [Loss::ClearedByStop; 3], "{version:?}");
            assert_eq!(bench.published()[0]["type"], "listen");
        } else {
            assert_eq!(bench.published(), [] as [Value; 0], "{version:?}");
            bench.pass(4 * 60);
            assert_eq!((bench.device.heard.len(), bench.losses().len()), (4, 0), "{version:?}");
            assert_eq!(bench.published()[0]["type"], "listen");
        }
    }
}

#[test]
fn goodbye_is_obeyed_when_its_id_is_the_devices_own() {
    for version in Version::ALL {
        let mut bench = Bench::in_call(version, ListeningMode::Auto);
        bench.say(&goodbye("other"));
        bench.pass(20);
        assert_eq!(bench.device.state(), DeviceState::Listening);
        bench.published();
        bench.say(&goodbye("s1"));
        bench.pass(5);
        assert!(bench.is_idle() && bench.device.channel().is_none() && bench.device.session_id().is_empty());
        let echo = bench.published().iter().filter(|message| message["type"] == "goodbye").count();
        assert_eq!(echo, usize::from(version <= Version::V2_0_5), "{version:?}");
        // Without an id only before 2.3.
        let mut bench = Bench::in_call(version, ListeningMode::Auto);
        bench.say(r#"{"type":"goodbye"}"#);
        bench.pass(5);
        assert_eq!(bench.is_idle(), version <= Version::V2_2_6, "{version:?}");
    }
}

#[test]
fn a_device_without_a_call_has_an_empty_id_and_obeys_a_goodbye_with_that() {
    for version in all_but_the_newest() {
        let mut bench = Bench::new(version);
        for text in [START, STOP] {
            bench.say(text);
            bench.pass(5);
        }
        assert_eq!(bench.published()[0]["session_id"], "", "put into speaking without a call");
        assert_eq!(bench.device.state(), DeviceState::Listening);
        bench.say(&goodbye("s1"));
        bench.pass(5);
        assert_eq!(bench.device.state(), DeviceState::Listening);
        bench.say(&goodbye(""));
        bench.pass(5);
        assert!(bench.is_idle(), "{version:?}");
    }
}

#[test]
fn a_null_session_id_in_goodbye_crashes_old_firmware() {
    for version in Version::ALL {
        let mut bench = Bench::in_call(version, ListeningMode::Auto);
        bench.say(r#"{"type":"goodbye","session_id":null}"#);
        assert_eq!(bench.device.crashes.len(), usize::from(version <= Version::V2_2_6));
    }
}

#[test]
fn an_alert_before_goodbye_is_cleared_and_one_to_an_idle_device_stays() {
    let alert = r#"{"type":"alert","status":"A","message":"B","emotion":"sad","session_id":"s1"}"#;
    let shown = Screen::Alert { status: "A".to_owned(), message: "B".to_owned() };
    for version in Version::ALL {
        let mut bench = Bench::in_call(version, ListeningMode::Auto);
        bench.say(alert);
        bench.say(&goodbye("s1"));
        assert_eq!(*bench.device.screen(), shown);
        bench.pass(5);
        assert_eq!(*bench.device.screen(), Screen::Empty);
        // Behind the goodbye in one write: the MQTT task shows it before the main loop clears the screen.
        let mut bench = Bench::in_call(version, ListeningMode::Auto);
        bench.say(&goodbye("s1"));
        bench.say(alert);
        bench.pass(5);
        assert_eq!(*bench.device.screen(), Screen::Empty);
        bench.pass(300);
        bench.say(alert);
        bench.pass(60_000);
        assert_eq!(*bench.device.screen() == shown, version != Version::Next, "{version:?}");
    }
}

#[test]
fn mqtt_lost_in_a_call_leaves_the_channel_open_and_uplink_goes_on() {
    for version in Version::ALL {
        let mut bench = Bench::in_call(version, ListeningMode::Auto);
        bench.device.take_outputs();
        bench.device.on_mqtt_lost(bench.now);
        let retry = bench.device.next_deadline();
        bench.pass(600);
        if version == Version::Next {
            assert!(bench.is_idle() && bench.device.channel().is_none());
            assert_eq!(bench.device.take_outputs().last(), Some(&Output::CloseUdp));
            assert_eq!(bench.datagrams_sent(), 0);
            continue;
        }
        assert!(retry.is_some());
        assert_eq!((bench.device.state(), bench.datagrams_sent()), (DeviceState::Listening, 11));
        // esp-mqtt tries again every 10 to 15 s.
        bench.pass(9_399);
        assert!(!bench.device.take_outputs().contains(&Output::ConnectMqtt));
        bench.pass(5_001);
        assert!(bench.device.take_outputs().contains(&Output::ConnectMqtt));
        bench.device.on_mqtt_lost(bench.now);
        bench.pass(15_000);
        assert!(bench.device.take_outputs().contains(&Output::ConnectMqtt));
    }
}

#[test]
fn the_button_hangs_up_and_a_second_press_connects_and_says_hello() {
    let mut bench = Bench::in_call(Version::V2_2_6, ListeningMode::Auto);
    bench.device.on_mqtt_lost(bench.now);
    bench.device.take_outputs();
    bench.device.press_button(bench.now);
    assert_eq!(bench.device.take_outputs(), [Output::CloseUdp], "its goodbye is lost");
    bench.device.press_button(bench.now);
    assert_eq!(bench.device.take_outputs(), [Output::ConnectMqtt]);
    bench.device.on_mqtt_connected(bench.now);
    assert_eq!(bench.published()[0]["type"], "hello");
    // In a call, it says goodbye with its id; while speaking, abort.
    let mut bench = Bench::in_call(Version::V2_2_6, ListeningMode::Auto);
    bench.device.press_button(bench.now);
    assert_eq!(bench.published(), [json!({"type": "goodbye", "session_id": "s1"})]);
    let mut bench = Bench::speaking(Version::V2_2_6, ListeningMode::Auto);
    bench.device.press_button(bench.now);
    assert_eq!(bench.published(), [json!({"type": "abort", "session_id": "s1"})]);
    assert_eq!(bench.device.state(), DeviceState::Speaking, "until `tts stop`");
    let mut bench = Bench::speaking(Version::V2_2_6, ListeningMode::Auto);
    bench.device.say_wake_word(bench.now);
    assert_eq!(bench.published()[0]["reason"], "wake_word_detected");
}

#[test]
fn a_wake_word_starts_a_call_with_detect_before_start() {
    let mut bench = Bench::new(Version::V2_2_6);
    bench.device.say_wake_word(bench.now);
    bench.published();
    bench.say(&hello("s1"));
    let states: Vec<_> = bench.published().iter().map(|message| message["state"].clone()).collect();
    assert_eq!(states, ["detect", "start"]);
}

#[test]
fn after_a_power_cut_the_device_connects_and_is_silent() {
    let mut bench = Bench::speaking(Version::V2_2_6, ListeningMode::Auto);
    bench.audio();
    bench.device.power_cut(bench.now);
    assert_eq!((bench.device.state(), bench.device.session_id()), (DeviceState::Off, ""));
    bench.device.power_on(bench.now);
    assert_eq!(bench.device.take_outputs(), [Output::ConnectMqtt]);
    bench.device.on_mqtt_connected(bench.now);
    bench.pass(60_000);
    assert!(bench.is_idle() && bench.device.take_outputs().is_empty());
}

#[test]
fn the_device_waits_10_s_for_its_hello_reply_and_then_goes_idle_without_goodbye() {
    for version in Version::ALL {
        let mut bench = Bench::new(version);
        bench.device.press_button(bench.now);
        bench.published();
        // The main loop is blocked.
        bench.say(START);
        bench.pass(9_999);
        assert_eq!(bench.device.state(), DeviceState::Connecting);
        bench.pass(1);
        assert!(matches!(bench.device.screen(), Screen::Alert { status, .. } if status == "SERVER_TIMEOUT"));
        assert!(bench.published().is_empty());
        // A late reply opens no channel.
        bench.say(&hello("late"));
        assert!(bench.device.channel().is_none());
    }
}

#[test]
fn a_second_hello_reply_changes_id_and_sequences_except_in_the_newest() {
    for version in Version::ALL {
        let mut bench = Bench::speaking(version, ListeningMode::Auto);
        bench.datagram(50, 30, 30);
        bench.say(&hello("s2"));
        bench.datagram(1, 30, 30);
        let is_new = version != Version::Next;
        assert_eq!(bench.device.session_id(), if is_new { "s2" } else { "s1" });
        assert_eq!(bench.losses().is_empty(), is_new, "{version:?}");
    }
}

#[test]
fn what_receivers_check_in_a_datagram() {
    for version in Version::ALL {
        let is_new = version >= Version::V2_4_2;
        let mut bench = Bench::speaking(version, ListeningMode::Auto);
        bench.datagram(5, 30, 30);
        bench.datagram(5, 30, 30);
        assert_eq!(bench.losses(), if is_new { vec![Loss::OldSequence] } else { vec![] }, "{version:?}");
        let mut bench = Bench::speaking(version, ListeningMode::Auto);
        bench.datagram(5, 30, 30);
        bench.datagram(4, 30, 30);
        assert_eq!(bench.losses(), [Loss::OldSequence]);
        let mut bench = Bench::speaking(version, ListeningMode::Auto);
        bench.datagram(1, 30, 31);
        assert_eq!(bench.losses(), if is_new { vec![Loss::WrongLength] } else { vec![] });
        let mut bench = Bench::speaking(version, ListeningMode::Auto);
        bench.datagram(1, 7, 7);
        bench.datagram(2, 8, 8);
        assert_eq!(bench.losses(), if is_new { vec![] } else { vec![Loss::TooShort] });
    }
}

#[test]
fn the_newest_ignores_what_is_not_for_its_session() {
    for text in [START.replace("s1", "s2"), r#"{"type":"tts","state":"start"}"#.to_owned()] {
        let mut bench = Bench::in_call(Version::Next, ListeningMode::Auto);
        bench.say(&text);
        bench.pass(20);
        assert_eq!(bench.device.state(), DeviceState::Listening);
    }
    let mcp = r#"{"type":"mcp","payload":{"jsonrpc":"2.0","id":1,"method":"tools/list"},"session_id":""}"#;
    for version in Version::ALL {
        let mut idle = Bench::new(version);
        idle.say(mcp);
        assert_eq!(idle.published().len(), usize::from(version != Version::Next));
        idle.say(START);
        idle.pass(20);
        assert_eq!(idle.is_idle(), version == Version::Next);
    }
}

#[test]
fn a_device_in_a_call_between_devices_throws_away_all_audio_until_tts_start() {
    let mut bench = Bench::in_call(Version::V2_2_6, ListeningMode::Realtime);
    bench.say(r#"{"type":"call_accepted","from":"x","session_id":"s1"}"#);
    for _ in 0..10 {
        bench.pass(60);
        bench.audio();
    }
    assert_eq!((bench.device.heard.len(), bench.losses().len()), (0, 10));
    bench.say(START);
    bench.pass(20);
    bench.device.take_outputs();
    for _ in 0..10 {
        bench.pass(60);
        bench.audio();
    }
    assert_eq!(bench.device.heard.len(), 10);
    assert_eq!(bench.datagrams_sent(), 10, "in realtime, it sends while it speaks");
}

#[test]
fn after_120_s_without_anything_received_the_next_call_begins_with_a_hello() {
    for (ms, kind) in [(119_000, "listen"), (121_000, "hello")] {
        let mut bench = Bench::speaking(Version::V2_2_6, ListeningMode::Manual);
        bench.say(STOP);
        bench.pass(ms);
        bench.published();
        bench.device.hold_button(bench.now);
        assert_eq!(bench.published()[0]["type"], kind);
    }
}

#[test]
fn a_device_is_stuck_when_the_gateway_has_no_such_call() {
    let mut bench = Bench::speaking(Version::V2_2_6, ListeningMode::Auto);
    assert_eq!(bench.device.observe(bench.now, Some("s1")), None);
    let since = bench.now;
    for why in ["speaking without a call", "listening to a call that does not exist"] {
        let stuck = bench.device.observe(bench.now, None).unwrap();
        bench.pass(5_000);
        let later = bench.device.observe(bench.now, Some("s2")).unwrap();
        assert_eq!((stuck, later.why, later.since - since), (later, why, stuck.since - since));
        bench.say(STOP);
        bench.pass(20);
    }
    bench.device.press_button(bench.now);
    assert_eq!(bench.device.observe(bench.now, None), None);
    bench.device.press_button(bench.now);
    assert_eq!(bench.device.observe(bench.now, None).unwrap().why, "connecting");
}
