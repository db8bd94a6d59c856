//! Hellos that are repeated: one that comes before the reply takes over the dial, and `mqtt.hello_limit` bounds all of them.

use super::*;
use crate::config::Secret;
use crate::proto::identity;
use crate::proto::mqtt::Connect;

const GOODBYE: &str = r#"{"type":"goodbye"}"#;
const DEVICE_AUDIO: &str = r#"{"format":"opus","sample_rate":16000}"#;

/// What happens at a hello that replaces an unanswered one: the actions, without the summary of the replaced call.
fn assert_dial_goes_on(actions: &[Action]) {
    let end = summary(actions);
    assert_eq!((end.reason, end.answered), (EndReason::Replaced, false));
    assert!(matches!(actions, [Action::CallEnded(_), Action::GenerateCredentials]), "{actions:?}");
}

/// What happens at a hello beyond the limit, after the end of the previous call: the n-th credentials are given away for nothing.
fn assert_refused(actions: &[Action], n: u8) {
    let own = format!("own-{n}");
    let begin = actions.iter().position(|action| *action == Action::GenerateCredentials).unwrap();
    let [_, close, hello, bye, end] = &actions[begin..] else { panic!("{actions:?}") };
    assert_eq!(*close, Action::CloseBackend(1000));
    assert_eq!([hello, bye], [&hello_reply(n, &own, DEVICE_AUDIO), &goodbye(&own)]);
    let Action::CallEnded(end) = end else { panic!("{end:?}") };
    assert_eq!(
        (end.reason, end.answered, end.ssrc),
        (EndReason::HelloLimit, false, Some(0x1000 + u32::from(n)))
    );
}

fn dials(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Dial(_))).count()
}

/// The number of dials for so many hellos at once, each followed by another message.
fn count_dials(scenario: &mut Scenario, hellos: usize, other: &str) -> usize {
    (0..hellos).map(|_| dials(&scenario.device_sends(HELLO)) + dials(&scenario.device_sends(other))).sum()
}

#[test]
fn a_hello_before_the_reply_takes_over_the_dial() {
    let mut scenario = Scenario::online();
    assert_eq!(scenario.device_sends(HELLO), [Action::GenerateCredentials, dial(A)]);
    scenario.wait(2_000);
    assert_dial_goes_on(&scenario.device_sends(HELLO));
    assert_eq!(scenario.core.ssrc(), Some(0x1002), "fresh credentials");
    // The timeout of the server counts from the dial, that of the reply from the hello.
    assert_eq!(scenario.wait(999), []);
    assert_eq!(without_logs_and_counters(scenario.wait(1)), [Action::CloseBackend(1001), dial(B)]);
    assert_eq!(scenario.open_backend(), [send_text(HELLO_TO_SERVER)]);
    scenario.wait(1_000);
    assert_dial_goes_on(&scenario.device_sends(HELLO));
    assert_eq!(scenario.wait(1_999), [], "our hello was sent for both");
    assert_eq!(scenario.wait(1), [send_text(HELLO_TO_SERVER)]);
    let reply = hello_reply(3, "s1", r#"{"sample_rate":24000}"#);
    let actions = scenario.server_sends(SERVER_HELLO);
    assert_eq!(actions[0], reply);
    let setup = SetupTimes { total_ms: Some(2_000), hello_ms: 2_000, ..SetupTimes::default() };
    assert!(actions.contains(&Action::Count(Counter::Answered(setup))), "{actions:?}");
    // The call is now like any other.
    assert_eq!(scenario.device_sends(LISTEN), [send_text(LISTEN)]);
    assert!(scenario.uplink(1, b"\x08x").is_ok());
}

#[test]
fn a_device_that_may_speak_and_hangs_up_before_the_reply_is_told_to_stop() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.open_backend();
    scenario.server_sends(SERVER_HELLO);
    scenario.uplink(1, b"\x08x").unwrap();
    scenario.server_sends(r#"{"type":"tts","state":"start"}"#);
    scenario.device_sends(HELLO);
    let stop = Action::Publish(message::tts(None, "stop"));
    assert!(scenario.device_sends(GOODBYE).contains(&stop));
    // Once.
    scenario.device_sends(HELLO);
    assert!(!scenario.device_sends(GOODBYE).contains(&stop));
}

#[test]
fn the_last_hello_is_answered_in_time_or_told_that_no_server_did() {
    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.production = servers(&[A]);
    scenario.device_sends(HELLO);
    scenario.wait(8_000);
    assert_dial_goes_on(&scenario.device_sends(HELLO));
    assert_eq!(scenario.wait(8_499), []);
    let actions = scenario.wait(1);
    assert_eq!(summary(&actions).reason, EndReason::NoServer);
    assert_eq!(texts_to_device(&actions).len(), 2, "hello reply, goodbye");
    assert_eq!(scenario.shell.elapsed_ms(), 16_500);
    assert_eq!(texts_to_device(&scenario.wait(300)).len(), 1, "alert");
}

#[test]
fn what_the_server_said_before_its_hello_goes_to_the_last_hello() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.open_backend();
    scenario.server_sends(r#"{"type":"stt","text":"bind me"}"#);
    scenario.downlink(&frame_with_header(5, b"\x08prompt")).unwrap();
    scenario.wait(1_000);
    assert_dial_goes_on(&scenario.device_sends(HELLO));
    // It is taken as live 4 s after our hello, which was sent for the first one.
    assert_eq!(without_logs_and_counters(scenario.wait(2_999)), [send_text(HELLO_TO_SERVER)]);
    let stt = publish(r#"{"session_id":"own-2","type":"stt","text":"bind me"}"#);
    assert_eq!(without_logs_and_counters(scenario.wait(1)), [hello_reply(2, "own-2", DEVICE_AUDIO), stt]);
    let (_, heard) = scenario.uplink_from("192.0.2.7:4000", 1, b"\x08x").unwrap();
    assert_eq!(scenario.decrypt_datagrams(&heard), [(1, 5, b"\x08prompt".to_vec())]);
}

#[test]
fn a_server_that_was_told_another_hello_is_told_the_new_one() {
    let other = HELLO.replace("16000", "48000");
    let other_to_server = HELLO_TO_SERVER.replace("16000", "48000");
    // Before the server was told the first one, it is told the second one only.
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    assert_dial_goes_on(&scenario.device_sends(&other));
    assert_eq!(scenario.open_backend(), [send_text(&other_to_server)]);
    // The same again.
    assert_dial_goes_on(&scenario.device_sends(&other));
    let actions = scenario.device_sends(HELLO);
    assert_eq!(actions[1..], [Action::GenerateCredentials, send_text(HELLO_TO_SERVER)]);
    let answer = scenario.server_sends(r#"{"type":"hello"}"#);
    assert_eq!(answer[0], hello_reply(4, "own-4", DEVICE_AUDIO));
}

#[test]
fn text_of_a_call_that_the_device_left_is_not_said_in_the_next_one() {
    for leave in [LISTEN, GOODBYE] {
        let mut scenario = Scenario::online();
        scenario.device_sends(HELLO);
        scenario.device_sends(LISTEN);
        scenario.device_sends(leave);
        assert_dial_goes_on(&scenario.device_sends(HELLO));
        scenario.open_backend();
        let actions = scenario.server_sends(SERVER_HELLO);
        assert_eq!((texts_to_server(&actions).len(), texts_to_device(&actions).len()), (0, 1), "{leave}");
        assert!(scenario.core.has_call());
    }
}

#[test]
fn a_refused_hello_gives_up_the_dial_of_the_one_before() {
    let mut scenario = Scenario::online();
    scenario.device_sends(HELLO);
    scenario.open_backend();
    let mut out = Vec::new();
    scenario.shell.decide(&mut scenario.core, &mut out, |core, cx| {
        core.on_packet(publish_packet(HELLO.as_bytes()), cx);
        core.on_credentials(CallCredentials { allowed: false, ..credentials(9) }, cx);
    });
    assert_eq!(out[2], Action::CloseBackend(1000));
    assert!(matches!(out.last(), Some(Action::CallEnded(end)) if end.reason == EndReason::Refused));
}

#[test]
fn hellos_beyond_the_limit_are_answered_with_words_and_cost_no_dial() {
    let mut scenario = Scenario::online();
    for n in 1..=8 {
        scenario.start_call();
        assert!(scenario.core.has_call(), "{n}");
    }
    // The old call ends.
    let actions = scenario.device_sends(HELLO);
    assert_eq!(actions[..2], [server_goodbye("s1", EndReason::Replaced, 0), Action::CloseBackend(1000)]);
    assert_refused(&actions, 9);
    let alert = message::alert(
        Some("own-10"),
        "呼叫太频繁 / Too many calls",
        "设备发起通话太频繁，请稍后再试 / The device starts calls too often, try again later",
        "sad",
    );
    assert!(!scenario.core.has_call());
    assert_refused(&scenario.device_sends(HELLO), 10);
    assert_eq!(scenario.device_sends(LISTEN), [goodbye("s1")], "there is no call");
    assert_eq!(texts_to_device(&scenario.wait(1_999)), [alert], "after the goodbye, and only the last one");
    assert_refused(&scenario.device_sends(HELLO), 11);
    scenario.wait(1);
    assert_eq!(dials(&scenario.device_sends(HELLO)), 1, "one in two seconds");
    assert_refused(&scenario.device_sends(HELLO)[1..], 13);
    // A device that was quiet for a while has its burst again.
    scenario.core.refresh_keep_alive(scenario.shell.now);
    scenario.wait(16_000);
    assert_eq!(count_dials(&mut scenario, 100, GOODBYE), 8);
}

#[test]
fn endless_hellos_cost_at_most_nine_dials_in_two_seconds() {
    for (other, most) in [(GOODBYE, 9), (LISTEN, 2), ("[]", 2)] {
        let mut scenario = Scenario::online();
        let mut sum = 0;
        for _ in 0..=100 {
            sum += count_dials(&mut scenario, 2, other);
            scenario.wait(20);
        }
        assert_eq!(sum, most, "{other}");
    }
}

#[test]
fn a_connection_for_each_hello_and_each_client_id_share_the_limit() {
    let mut scenario = Scenario::new();
    let sum: usize = (0..250)
        .map(|n| {
            let id = format!("GID_{}@@@aa_bb_cc_dd_ee_ff@@@uuid", n % 5);
            scenario.core = Core::new(device_ip(), scenario.shell.now);
            scenario.packet(connect_packet(&id, 60));
            let dialled = dials(&scenario.device_sends(HELLO));
            scenario.packet(Packet::Disconnect);
            dialled
        })
        .sum();
    assert_eq!(sum, 8);
    // Another device is not affected.
    scenario.core = Core::new(device_ip(), scenario.shell.now);
    scenario.packet(connect_packet("GID_test@@@aa_bb_cc_dd_ee_00@@@uuid", 60));
    assert_eq!(dials(&scenario.device_sends(HELLO)), 1);
}

#[test]
fn an_id_that_proved_nothing_uses_up_no_hellos_of_the_device() {
    const KEY: &str = "Signature-Key-1";
    const USER: &str = "eyJpcCI6IjEuMi4zLjQifQ==";
    let mut scenario = Scenario::new();
    scenario.shell.config.mqtt.signature_key = Secret::new(KEY);
    scenario.shell.config.mqtt.allow_legacy_ids = true;
    let password = identity::device_password(KEY.as_bytes(), ID, USER);
    let Packet::Connect(connect) = connect_packet(ID, 60) else { unreachable!() };
    let signed = Connect { user_name: Some(USER), password: Some(password.as_bytes()), ..connect };
    let mut log_in = |packet: Packet<'_>, ip: &str| {
        scenario.core = Core::new(ip.parse().unwrap(), scenario.shell.now);
        scenario.packet(packet);
        count_dials(&mut scenario, 20, GOODBYE)
    };
    let legacy = || connect_packet("GID@@@aa_bb_cc_dd_ee_ff", 60);
    assert_eq!(log_in(legacy(), "2001:db8:0:1::1"), 8);
    assert_eq!(log_in(legacy(), "2001:db8:0:1::2"), 0, "the same network");
    assert_eq!(log_in(legacy(), "2001:db8:0:2::1"), 8);
    assert_eq!(log_in(Packet::Connect(signed), "2001:db8:0:1::1"), 8);
    assert_eq!(log_in(Packet::Connect(signed), "203.0.113.1"), 0, "proven: whatever its address");
}

#[test]
fn with_a_limit_of_zero_every_hello_is_served() {
    let mut scenario = Scenario::online();
    scenario.shell.config.mqtt.hello_limit = 0;
    assert_eq!(count_dials(&mut scenario, 100, GOODBYE), 100);
}
