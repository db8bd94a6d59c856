//! A chat server ends its connection in a call: whether it meant the end of the call, or failed.

use super::*;
use crate::config::OnDisconnect;

fn close(code: u16) -> BackendClosed {
    BackendClosed::CloseFrame(Some(code), "".into())
}

fn eof() -> BackendClosed {
    BackendClosed::NoCloseFrame("the connection was closed without a Close frame (1006)".to_owned())
}

/// What follows at once.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    End,
    Probe,
    Redial,
}

fn next(actions: &[Action]) -> Next {
    if actions.iter().any(|action| matches!(action, Action::CallEnded(_))) {
        return Next::End;
    }
    match actions.iter().find(|action| matches!(action, Action::Dial(_))) {
        Some(dialled) => {
            assert_eq!(*dialled, dial(A), "the same server");
            Next::Probe
        }
        None => Next::Redial,
    }
}

fn policy(scenario: &mut Scenario, policy: OnDisconnect) {
    for server in &mut scenario.shell.config.websocket.production {
        Arc::make_mut(server).on_disconnect = policy;
    }
}

/// The table of docs/protocol.md.
#[test]
fn how_a_connection_ends_decides_what_follows() {
    use Next::*;
    use OnDisconnect as On;
    const STT: &str = r#"{"type":"stt","text":"x"}"#;
    let spoken: &[&str] = &[TTS_START, TTS_STOP];
    let cases: [(BackendClosed, &[&str], [Next; 3]); 20] = [
        // What the server said, and what follows with auto, redial and end.
        (BackendClosed::CloseFrame(None, "".into()), &[], [End, Redial, End]),
        (close(1000), &[], [End, Redial, End]),
        (close(1008), &[], [End, Redial, End]),
        (close(4000), &[], [End, Redial, End]),
        (close(4999), &[TTS_START], [End, Redial, End]),
        (close(1001), spoken, [Redial, Redial, End]),
        (close(1002), spoken, [Redial, Redial, End]),
        (close(1011), spoken, [Redial, Redial, End]),
        (close(1012), spoken, [Redial, Redial, End]),
        (close(1013), spoken, [Redial, Redial, End]),
        (close(3000), spoken, [Redial, Redial, End]),
        (close(3999), spoken, [Redial, Redial, End]),
        (close(5000), spoken, [Redial, Redial, End]),
        (eof(), spoken, [Probe, Redial, End]),
        (eof(), &[], [Redial, Redial, End]),
        (eof(), &[TTS_START], [Redial, Redial, End]),
        (eof(), &[TTS_START, TTS_STOP, STT], [Redial, Redial, End]),
        (eof(), &[TTS_START, TTS_STOP, "not JSON"], [Redial, Redial, End]),
        (eof(), &[TTS_START, TTS_STOP, TTS_START], [Redial, Redial, End]),
        (failed(BackendStage::Live), spoken, [Redial, Redial, End]),
    ];
    for (gone, said, expected) in cases {
        for (on, expected) in [On::Auto, On::Redial, On::End].into_iter().zip(expected) {
            let mut scenario = Scenario::online();
            policy(&mut scenario, on);
            scenario.start_call();
            scenario.uplink(1, b"\x08one").unwrap();
            said.iter().for_each(|text| drop(scenario.server_sends(text)));
            let actions = scenario.close_backend(gone.clone());
            assert_eq!(next(&actions), expected, "{gone:?} after {said:?}, {on:?}");
            let goodbyes = texts_to_device(&actions).iter().filter(|text| text.contains("goodbye")).count();
            assert_eq!(goodbyes, usize::from(expected == End), "{gone:?} after {said:?}, {on:?}");
        }
    }
}

#[test]
fn audio_after_the_speech_is_not_its_end() {
    let mut scenario = Scenario::with_udp_peer();
    scenario.server_sends(TTS_START);
    scenario.server_sends(TTS_STOP);
    scenario.downlink(&frame_with_header(1, b"\x08a")).unwrap();
    assert_eq!(next(&scenario.close_backend(eof())), Next::Redial);
}

/// A call whose server has ended the connection after its speech, which the device has aborted: it was not delivered.
fn probing() -> Scenario {
    let mut scenario = Scenario::with_udp_peer();
    scenario.server_sends(TTS_START);
    scenario.device_sends(r#"{"type":"abort"}"#);
    scenario.server_sends(TTS_STOP);
    assert_eq!(scenario.close_backend(eof()), [dial(A)]);
    scenario
}

#[test]
fn a_server_that_takes_a_new_connection_meant_the_end() {
    let mut scenario = probing();
    scenario.wait(999);
    let actions = scenario.open_backend();
    assert_eq!(texts_to_server(&actions), [""; 0], "no hello is said");
    assert!(actions.contains(&Action::CloseBackend(1000)));
    assert_eq!(texts_to_device(&actions), [r#"{"type":"goodbye","session_id":"s1"}"#]);
    assert_eq!(summary(&actions).reason, EndReason::ServerClosed);
    assert_eq!(texts_to_device(&scenario.wait(10_000)), [""; 0]);
}

#[test]
fn a_server_that_takes_no_new_connection_in_a_second_failed() {
    type End = fn(&mut Scenario) -> Vec<Action>;
    let ends: [(End, &str); 2] = [
        (|scenario| scenario.close_backend(failed(BackendStage::Connect)), "broken"),
        (|scenario| scenario.wait(1_000), "no answer in 1 s"),
    ];
    for (end, why) in ends {
        let mut scenario = probing();
        let actions = end(&mut scenario);
        let failure = actions.iter().find_map(|action| match action {
            Action::Log(LogEvent::Redialling { failure, .. }) => Some(failure.to_string()),
            _ => None,
        });
        let words = format!("without a Close frame (1006), and the server takes no new connection ({why})");
        assert!(failure.as_ref().is_some_and(|failure| failure.ends_with(&words)), "{failure:?}");
        assert!(actions.contains(&Action::CloseBackend(1001)));
        assert_eq!(texts_to_device(&actions), [""; 0]);
        assert!(scenario.wait(250).contains(&redial(B)));
        scenario.open_backend();
        assert_eq!(texts_to_device(&scenario.server_sends(SERVER_HELLO)), [""; 0]);
        assert!(scenario.core.has_call());
    }
}

#[test]
fn a_device_that_hangs_up_ends_the_probe() {
    let mut scenario = probing();
    let actions = scenario.device_sends(r#"{"type":"goodbye"}"#);
    assert_eq!(summary(&actions).reason, EndReason::DeviceGoodbye);
    assert_eq!(actions[0], Action::CloseBackend(1000));
    assert_eq!(scenario.drive(Core::on_backend_open), []);
}

/// Redials once: the server greets, says this, and the device says that.
fn greeted_redial(scenario: &mut Scenario, server: &str, device: &str) {
    assert_eq!(next(&scenario.close_backend(close(1011))), Next::Redial);
    while !scenario.wait(100).iter().any(|action| matches!(action, Action::Dial(_))) {}
    scenario.open_backend();
    scenario.server_sends(SERVER_HELLO);
    scenario.wait(11_000);
    scenario.core.refresh_keep_alive(scenario.shell.now);
    if !server.is_empty() {
        scenario.server_sends(server);
    }
    if !device.is_empty() {
        scenario.device_sends(device);
    }
}

#[test]
fn after_three_greeted_redials_without_a_word_of_the_user_the_next_failure_ends_the_call() {
    let mut scenario = Scenario::with_udp_peer();
    for said in ["", TTS_STOP, r#"{"type":"llm"}"#] {
        greeted_redial(&mut scenario, said, r#"{"type":"listen","state":"start","mode":"auto"}"#);
    }
    let actions = scenario.close_backend(failed(BackendStage::Live));
    assert_eq!(summary(&actions).reason, EndReason::ServerLost);
    assert_eq!(texts_to_device(&actions), [r#"{"type":"goodbye","session_id":"s1"}"#]);
    assert_eq!(texts_to_server(&actions), [""; 0]);
    for (server, device) in [
        (r#"{"type":"stt","text":"hi"}"#, ""),
        ("", r#"{"type":"listen","state":"detect","text":"hi"}"#),
        ("", r#"{"type":"abort"}"#),
    ] {
        let mut scenario = Scenario::with_udp_peer();
        for _ in 0..3 {
            greeted_redial(&mut scenario, "", "");
            greeted_redial(&mut scenario, server, device);
        }
        greeted_redial(&mut scenario, "", "");
        greeted_redial(&mut scenario, "", "");
        greeted_redial(&mut scenario, "", "");
        assert_eq!(next(&scenario.close_backend(eof())), Next::End, "{server}{device}");
    }
}

#[test]
fn a_reason_is_logged_and_shown_on_the_device() {
    for (code, reason, shown) in [
        (Some(1000), "", None),
        (None, "", None),
        (Some(1000), "再见 \"x\"\n", Some("再见 \"x\"")),
        (Some(1008), "", Some("code 1008")),
        (Some(4001), "no credit", Some("no credit")),
        (Some(4002), "", Some("code 4002")),
    ] {
        let mut scenario = Scenario::with_udp_peer();
        let actions = scenario.close_backend(BackendClosed::CloseFrame(code, reason.into()));
        let logged =
            actions.iter().any(|action| matches!(action, Action::Log(LogEvent::ServerEndedCall { .. })));
        assert_eq!(logged, shown.is_some(), "{code:?}");
        let alerts = scenario.wait(300);
        let expected =
            shown.map(|words| message::alert(Some("s1"), "通话结束 / Call ended", words, "neutral"));
        assert_eq!(texts_to_device(&alerts), expected.iter().collect::<Vec<_>>(), "{code:?}");
    }
}

#[test]
fn what_a_server_says_in_words_before_it_fails_is_quoted_in_the_failure() {
    let long = "语".repeat(1000);
    for (words, quoted, cause) in [
        ("认证失败", "\"认证失败\"".to_owned(), Some(ServerCause::Token)),
        ("no \"more\"\u{1b}[0m\n", "\"no \\\"more\\\"\\u{1b}[0m\"".to_owned(), None),
        (&long, format!("\"{}…\"", "语".repeat(127)), None),
    ] {
        let mut scenario = Scenario::online();
        scenario.device_sends(HELLO);
        scenario.open_backend();
        scenario.server_sends(words);
        let actions = scenario.close_backend(eof());
        let failure = actions.iter().find_map(|action| match action {
            Action::Log(LogEvent::DialFailed { failure, .. }) => Some(failure),
            _ => None,
        });
        let failure = failure.unwrap();
        assert!(failure.message.ends_with(&format!("; it said {quoted}")), "{failure}");
        assert_eq!(failure.cause, cause, "{failure}");
        let failing = actions.iter().any(
            |action| matches!(action, Action::Log(LogEvent::ServerFailing { why, .. }) if why.ends_with(&format!("{quoted}{}", if cause.is_some() { ")" } else { "" }))),
        );
        assert!(failing, "in the line at the default level and in recent errors too: {actions:?}");
    }
}

#[test]
fn a_server_may_want_no_pings_and_no_goodbye_or_its_own() {
    let mut scenario = Scenario::online();
    for server in &mut scenario.shell.config.websocket.production {
        let server = Arc::make_mut(server);
        (server.ping, server.send_goodbye) = (false, Some(false));
    }
    scenario.start_call();
    assert!(!scenario.wait(50_000).contains(&Action::SendPing));
    assert_eq!(texts_to_server(&scenario.device_sends(r#"{"type":"goodbye"}"#)), [""; 0]);

    let mut scenario = Scenario::online();
    scenario.shell.config.websocket.send_goodbye = false;
    for server in &mut scenario.shell.config.websocket.production {
        Arc::make_mut(server).send_goodbye = Some(true);
    }
    scenario.start_call();
    assert!(scenario.wait(20_000).contains(&Action::SendPing));
    assert_eq!(texts_to_server(&scenario.device_sends(r#"{"type":"goodbye"}"#)).len(), 1);
}
