//! The exact number of bytes that are stored for a device, which the memory budget limits.

use super::*;
use crate::session::queue::HeldItem;

const ALERT: &str = r#"{"session_id":"s1","type":"alert"}"#;

fn online_with_mcp() -> Scenario {
    let mut scenario = Scenario::new();
    scenario.shell.config.mcp.enabled = true;
    scenario
}

impl Scenario {
    fn send_message(&mut self, text: &str) {
        self.drive(|core, cx| {
            core.send_message(text, cx);
        });
    }
}

#[test]
fn bytes_retained_by_a_call() {
    let mut scenario = Scenario::online();
    assert_eq!(scenario.core.retained_bytes(), 0);
    scenario.device_sends(HELLO);
    assert_eq!(scenario.core.retained_bytes(), 0, "hellos are shared, with a limit of their own");
    // The `listen` is queued, and stored for a repetition.
    scenario.device_sends(LISTEN);
    let mut kept = 2 * LISTEN.len();
    assert_eq!(scenario.core.retained_bytes(), kept);
    scenario.open_backend();
    scenario.server_sends(SERVER_HELLO);
    kept -= LISTEN.len();
    kept += "s1".len();
    assert_eq!(scenario.core.retained_bytes(), kept);
    // Text and audio are held for the first datagram.
    let frame = frame_with_header(1, b"\x08audio");
    scenario.server_sends(TTS_START);
    scenario.downlink(&frame).unwrap();
    let held = TTS_START.len() + b"\x08audio".len() + 2 * size_of::<HeldItem>();
    assert_eq!(scenario.core.retained_bytes(), kept + held);
    scenario.uplink(1, b"\x08x").unwrap();
    assert_eq!(scenario.core.retained_bytes(), kept);
    // Text is queued for a disconnected device.
    scenario.lose_connection();
    scenario.send_message(ALERT);
    scenario.send_message(ALERT);
    kept += 2 * ALERT.len();
    assert_eq!(scenario.core.retained_bytes(), kept);
    scenario.reconnect(DEVICE_IP);
    kept -= 2 * ALERT.len();
    assert_eq!(scenario.core.retained_bytes(), kept);
    // The other session id of the next server is stored. A call to another device drops the texts queued for the server.
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(250);
    scenario.open_backend();
    scenario.server_sends(r#"{"type":"hello","session_id":"another"}"#);
    assert_eq!(scenario.core.retained_bytes(), kept + "another".len());
    scenario.close_backend(failed(BackendStage::Live));
    scenario.wait(500);
    assert_eq!(scenario.core.retained_bytes(), kept);
    scenario.device_sends(r#"{"type":"iot"}"#);
    assert_eq!(scenario.core.retained_bytes(), kept + r#"{"type":"iot"}"#.len());
    scenario.drive(Core::start_ringing);
    assert_eq!(scenario.core.retained_bytes(), kept);
    scenario.device_sends(r#"{"type":"goodbye"}"#);
    assert_eq!(scenario.core.retained_bytes(), 0);
}

#[test]
fn tools_are_retained_until_their_list_is_complete() {
    const FIRST: u32 = 0x4000_0000;
    let answer = |scenario: &mut Scenario, id: u32, result: &str| {
        scenario.device_sends(&message::mcp_result(None, &id.to_string(), result))
    };
    let mut scenario = online_with_mcp();
    scenario.connect();
    assert_eq!(scenario.core.retained_bytes(), 0, "asked");
    scenario.device_sends(r#"{"type":"mcp","payload":{"method":"x"}}"#);
    assert_eq!(scenario.core.retained_bytes(), 0, "told nothing yet");
    answer(&mut scenario, FIRST, r#"{"server":1}"#);
    let kept = r#"{"server":1}"#.len();
    assert_eq!(scenario.core.retained_bytes(), kept);
    answer(&mut scenario, FIRST + 1, r#"{"tools":["one","three"],"nextCursor":"next"}"#);
    assert_eq!(scenario.core.retained_bytes(), kept + r#""one""three""#.len() + "next".len());
    answer(&mut scenario, FIRST + 2, r#"{"tools":[4]}"#);
    assert_eq!(scenario.core.retained_bytes(), 0, "complete lists are shared, with a limit of their own");
    scenario.device_sends(HELLO);
    assert_eq!(scenario.core.retained_bytes(), 0, "so are hellos");
    scenario.packet(Packet::Disconnect);
    assert_eq!((scenario.core.retained_bytes(), scenario.core.deadline()), (0, None));

    // After a failed discovery no list is stored.
    for late in [false, true] {
        let mut scenario = online_with_mcp();
        scenario.connect();
        answer(&mut scenario, FIRST, "{}");
        answer(&mut scenario, FIRST + 1, r#"{"tools":["one"],"nextCursor":"next"}"#);
        let actions = if late { scenario.wait(10_000) } else { answer(&mut scenario, FIRST + 2, "[]") };
        let why = if late { "no answer in 10 s" } else { "invalid page of tools" };
        assert_eq!(actions, [Action::Log(LogEvent::ToolDiscovery(Err(why)))]);
        assert_eq!(scenario.core.retained_bytes(), "{}".len());
    }
}

#[test]
fn the_memory_limit_ends_the_call_and_the_connection() {
    let mut scenario = Scenario::online();
    assert_eq!(scenario.drive(Core::on_memory_limit), [Action::CloseDevice(CloseReason::MemoryLimit)]);
    assert_eq!(scenario.drive(Core::on_memory_limit), []);

    let mut scenario = Scenario::with_udp_peer();
    let actions = scenario.drive(Core::on_memory_limit);
    assert_eq!(actions[..2], [server_goodbye("s1", EndReason::DeviceError, 0), Action::CloseBackend(1000)]);
    assert_eq!(summary(&actions).reason, EndReason::DeviceError);
    assert_eq!(actions[3..], [Action::CloseDevice(CloseReason::MemoryLimit)]);
    assert_eq!(scenario.core.retained_bytes(), 0);
}

/// As many texts as fit are queued for a disconnected device, and one more is held.
fn disconnect_with_full_queue(scenario: &mut Scenario) {
    scenario.server_sends(TTS_START);
    scenario.lose_connection();
    for _ in 0..128 {
        scenario.send_message(ALERT);
    }
    assert!(scenario.core.has_call());
}

#[test]
fn any_text_that_overflows_the_queue_of_a_disconnected_device_ends_its_call() {
    type Act = fn(&mut Core, &mut Context<'_>);
    let acts: [(&str, Act); 4] = [
        ("ring", Core::start_ringing),
        ("bridge", device_call::join_device_call),
        ("wake", |core, cx| core.wake_for_call("Ann", cx)),
        ("message", |core, cx| assert_eq!(core.send_message(ALERT, cx), Delivery::NotConnected)),
    ];
    for (name, act) in acts {
        let mut scenario = Scenario::in_call();
        disconnect_with_full_queue(&mut scenario);
        let actions = scenario.drive(act);
        assert_eq!(summary(&actions).reason, EndReason::Overflow, "{name}");
        assert!(!scenario.core.has_call() && scenario.core.is_finished(), "{name}");
    }
    let mut scenario = Scenario::in_call();
    scenario.downlink(&frame_with_header(1, b"\x08a")).unwrap();
    scenario.server_sends(TTS_STOP);
    disconnect_with_full_queue(&mut scenario);
    let (_, actions) = scenario.uplink_from("192.0.2.7:4000", 1, b"\x08x").unwrap();
    assert_eq!(summary(&actions).reason, EndReason::Overflow, "a datagram lets go what was held");

    let mut scenario = Scenario::with_udp_peer();
    scenario.drive(Core::start_ringing);
    disconnect_with_full_queue(&mut scenario);
    let actions = scenario.drive(|core, cx| core.on_call_accepted(mac(), cx));
    assert_eq!(summary(&actions).reason, EndReason::Overflow, "an answer");
}
