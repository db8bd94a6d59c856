//! The device's MQTT connection is lost in mid-call, and comes back or does not.

use super::*;

const GRACE: Duration = Duration::from_secs(20);

#[test]
fn a_call_is_kept_and_taken_over() {
    let mut story = Story::talking();
    let away = [Action::Note(Note::Away(GRACE)), Action::Close(Reason::Left)];
    assert_eq!(story.lost(), away);
    assert!(story.core.has_call() && !story.core.is_online() && !story.core.is_gone());
    // Text for it waits, audio goes on both ways.
    assert_eq!(story.server(TTS_STOP), []);
    assert_eq!(story.server(r#"{"type":"llm"}"#), []);
    assert_eq!(story.down(&headed(1, b"\x08a")).unwrap().len(), 1);
    assert!(story.up(2, b"\x08x").is_ok());
    assert_eq!(story.wait(19_999), []);
    let welcome = [Action::Welcome, Action::Note(Note::Connected { resumed: true })];
    let actions = story.come_back(HOME);
    assert_eq!(actions[..2], welcome);
    assert_eq!(actions[2..], [publish(TTS_STOP), publish(r#"{"session_id":"s1","type":"llm"}"#)]);
    assert!(story.core.is_online());
    assert_eq!(story.device(LISTEN), [say(LISTEN)]);
    assert_eq!(story.server(TTS_START), [publish(TTS_START)]);
    // The new connection's keep alive counts: 30 s.
    assert_eq!(story.wait(45_000).last(), Some(&Action::Close(Reason::KeepAlive)));
}

#[test]
fn the_order_in_which_the_sockets_close_does_not_matter() {
    let mut story = Story::talking();
    assert_eq!(traffic(story.come_back(HOME)), [Action::Welcome], "the old one is still there");
    assert_eq!(story.device(LISTEN), [say(LISTEN)]);
    assert_eq!(story.wait(20_000).iter().filter(|action| matches!(action, Action::Ended(_))).count(), 0);
}

#[test]
fn silence_ends_the_call_with_a_normal_close() {
    let mut story = Story::talking();
    story.lost();
    let actions = story.wait(20_000);
    assert_eq!(actions[..2], [farewell("s1", EndReason::DeviceLost, 20_000), Action::HangUp(1000)]);
    assert_eq!(summary(&actions).reason, EndReason::DeviceLost);
    assert_eq!(actions[3..], [Action::Close(Reason::Left)]);
    assert!(story.core.is_over());
}

#[test]
fn without_a_grace_a_lost_or_replaced_connection_ends_its_call_at_once() {
    let mut story = Story::talking();
    story.config.mqtt.resume_grace = Duration::ZERO;
    let actions = story.lost();
    assert_eq!(summary(&actions).reason, EndReason::DeviceLost);
    assert_eq!(actions.last(), Some(&Action::Close(Reason::Left)));
    let mut story = Story::talking();
    let actions = story.drive(Core::replaced);
    assert_eq!((summary(&actions).reason, told(&actions).len()), (EndReason::Replaced, 0));
    assert_eq!(actions.last(), Some(&Action::Close(Reason::TakenOver)));
}

#[test]
fn disconnect_and_protocol_errors_keep_nothing() {
    let mut story = Story::talking();
    let actions = story.packet(Packet::Disconnect);
    assert_eq!(actions[..2], [farewell("s1", EndReason::DeviceDisconnected, 0), Action::HangUp(1000)]);
    assert_eq!(actions.last(), Some(&Action::Close(Reason::Left)));
    assert_eq!(story.lost(), []);
    let mut story = Story::talking();
    let actions = story.connect();
    assert_eq!((summary(&actions).reason, told(&actions).len()), (EndReason::DeviceError, 0));
    assert!(story.core.is_over());
}

#[test]
fn a_slow_reader_loses_its_connection_and_keeps_its_call() {
    let mut story = Story::talking();
    let away = [Action::Note(Note::Away(GRACE)), Action::Close(Reason::SlowReader)];
    assert_eq!(story.drive(Core::blocked), away);
    assert_eq!(story.drive(Core::blocked), []);
    assert_eq!(story.lost(), []);
}

#[test]
fn a_taken_over_call_takes_the_new_address_as_its_own() {
    let mut story = Story::talking();
    story.lost();
    story.come_back("192.0.2.200");
    assert_eq!(story.core.ip(), "192.0.2.200".parse::<IpAddr>().unwrap());
    assert!(story.up_from("192.0.2.200:1", 2, b"\x08x").is_ok());
    assert_eq!(story.up_from("192.0.2.7:4001", 3, b"\x08x"), Err(Discard::ForeignSource));
    story.gone(failed("live"));
    let actions = story.wait(250);
    let [Action::Dial(request)] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(request.forwarded_for, story.core.ip());
}

#[test]
fn a_device_that_comes_back_may_start_afresh() {
    let mut story = Story::talking();
    story.lost();
    story.come_back(HOME);
    let actions = story.device(HELLO);
    assert_eq!((summary(&actions).reason, told(&actions).len()), (EndReason::Replaced, 0));
    assert_eq!(story.core.ssrc(), Some(0x1002));
}

#[test]
fn a_hello_is_answered_when_the_device_is_back() {
    let mut story = Story::online();
    story.device(HELLO);
    story.lost();
    story.open();
    assert_eq!(told(&story.server(SERVER_HELLO)), [""; 0]);
    assert_eq!(traffic(story.come_back(HOME))[1..], [reply(1, "s1", r#"{"sample_rate":24000}"#)]);
}

#[test]
fn a_server_that_fails_or_ends_meanwhile() {
    let mut story = Story::talking();
    story.server(TTS_START);
    story.lost();
    story.gone(failed("live"));
    assert_eq!(story.wait(250), [redial(B)]);
    story.open();
    story.server(SERVER_HELLO);
    let stop = r#"{"type":"tts","session_id":"s1","state":"stop"}"#;
    assert_eq!(told(&story.come_back(HOME)), [stop]);

    let mut story = Story::talking();
    story.lost();
    let actions = story.gone(Gone::Closed(None));
    assert_eq!((summary(&actions).reason, told(&actions).len()), (EndReason::ServerClosed, 0));
    assert_eq!(actions.last(), Some(&Action::Close(Reason::Left)));
    assert!(story.core.is_over());
}

#[test]
fn too_much_text_for_an_absent_device_ends_the_call() {
    let mut story = Story::talking();
    story.lost();
    for _ in 0..128 {
        assert_eq!(story.server(TTS_STOP), []);
    }
    let actions = story.server(TTS_STOP);
    assert_eq!((summary(&actions).reason, told(&actions).len()), (EndReason::Overflow, 0));
}

#[test]
fn last_words_survive_a_new_connection() {
    let mut story = Story::online();
    story.device(HELLO);
    story.device(LISTEN);
    story.device(r#"{"type":"goodbye"}"#);
    assert_eq!(story.drive(Core::replaced), [Action::Close(Reason::TakenOver)]);
    story.open();
    assert_eq!(said(&story.server(SERVER_HELLO))[0], LISTEN);
    assert!(story.core.is_over());
}

/// It was said to be queued.
#[test]
fn an_operators_message_that_overflows_the_queue_of_an_absent_device_is_not_delivered() {
    let mut story = Story::talking();
    story.drive(Core::connection_lost);
    let mut message = || {
        let mut delivery = None;
        let actions = story.drive(|core, cx| delivery = Some(core.message(r#"{"type":"alert"}"#, cx)));
        (delivery.unwrap(), actions)
    };
    for _ in 0..128 {
        assert_eq!(message(), (Delivery::Queued, vec![]));
    }
    let (delivery, actions) = message();
    assert_eq!(delivery, Delivery::NotConnected);
    assert!(
        actions
            .iter()
            .any(|action| matches!(action, Action::Ended(summary) if summary.reason == EndReason::Overflow))
    );
    assert_eq!(message(), (Delivery::NotConnected, vec![]));
}
