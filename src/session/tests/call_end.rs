//! Every way a call ends: who is told, with which id, once, and how the WebSocket is closed.

use super::*;

/// How an end looks from outside: the reason, what the server is told and its close code, what the device is told.
fn check(actions: &[Action], reason: EndReason, server: &[String], code: u16, device: &[&str]) {
    assert_eq!(summary(actions).reason, reason, "{actions:?}");
    assert_eq!(said(actions), server, "{reason:?}");
    let codes: Vec<_> = actions.iter().filter(|action| matches!(action, Action::HangUp(_))).collect();
    assert_eq!(codes, [&Action::HangUp(code)], "{reason:?}");
    assert_eq!(told(actions), device, "{reason:?}");
}

fn farewells(reason: EndReason) -> Vec<String> {
    vec![message::server_goodbye(Some("s1"), reason.label(), 1_500)]
}

fn in_call() -> Story {
    let mut story = Story::talking();
    story.wait(1_500);
    story
}

const GOODBYE: &str = r#"{"type":"goodbye","session_id":"s1"}"#;

#[test]
fn the_device_ends_it() {
    use EndReason::*;
    let actions = in_call().device(r#"{"type":"goodbye","session_id":"s1"}"#);
    check(&actions, DeviceGoodbye, &farewells(DeviceGoodbye), 1000, &[]);
    let actions = in_call().device(r#"{"type":"goodbye"}"#);
    check(&actions, DeviceGoodbye, &farewells(DeviceGoodbye), 1000, &[]);
    let actions = in_call().device(r#"{"type":"udp_timeout"}"#);
    check(&actions, DeviceUdpTimeout, &farewells(DeviceUdpTimeout), 1000, &[GOODBYE]);
    let actions = in_call().packet(Packet::Disconnect);
    check(&actions, DeviceDisconnected, &farewells(DeviceDisconnected), 1000, &[]);
    let actions = in_call().device(HELLO);
    check(&actions, Replaced, &farewells(Replaced), 1000, &[]);
    let actions = in_call().connect();
    check(&actions, DeviceError, &farewells(DeviceError), 1000, &[]);
}

#[test]
fn the_server_ends_it() {
    use EndReason::ServerClosed;
    check(&in_call().gone(Gone::Closed(None)), ServerClosed, &[], 1000, &[GOODBYE]);
    let own = r#"{"type":"goodbye","session_id":"s1","why":"bye"}"#;
    check(&in_call().server(own), ServerClosed, &[], 1000, &[own]);
    let bare = in_call().server(r#"{"type":"goodbye"}"#);
    check(&bare, ServerClosed, &[], 1000, &[r#"{"session_id":"s1","type":"goodbye"}"#]);
    let other = in_call().server(r#"{"type":"goodbye","session_id":"of another call"}"#);
    check(&other, ServerClosed, &[], 1000, &[GOODBYE]);
}

#[test]
fn a_goodbye_after_a_redial_carries_the_id_the_device_knows() {
    let mut story = in_call();
    story.gone(failed("live"));
    story.wait(250);
    story.open();
    story.server(r#"{"type":"hello","session_id":"s2"}"#);
    let actions = story.server(r#"{"type":"goodbye","session_id":"s2"}"#);
    check(&actions, EndReason::ServerClosed, &[], 1000, &[GOODBYE]);
}

#[test]
fn the_gateway_ends_it() {
    use EndReason::*;
    let actions = in_call().drive(Core::shutdown);
    check(&actions, Shutdown, &farewells(Shutdown), 1001, &[GOODBYE]);
    assert_eq!(actions.last(), Some(&Action::Close(Reason::Shutdown)));
    let actions = in_call().drive(Core::backend_blocked);
    let alert =
        message::alert(Some("s1"), "通话结束 / Call ended", "通话无法继续 / The call cannot go on", "sad");
    check(&actions, Overflow, &farewells(Overflow), 1000, &[&alert, GOODBYE]);
}

#[test]
fn a_server_that_is_told_nothing_is_only_closed() {
    let mut story = in_call();
    story.config.websocket.send_goodbye = false;
    check(&story.device(r#"{"type":"goodbye"}"#), EndReason::DeviceGoodbye, &[], 1000, &[]);
}

#[test]
fn shutdown_is_over_after_one_close_whatever_the_phase() {
    let close = || Action::Close(Reason::Shutdown);
    assert_eq!(Story::new().drive(Core::shutdown), [close()]);
    let mut story = Story::online();
    assert_eq!(story.drive(Core::shutdown), [close()]);
    assert_eq!(story.drive(Core::shutdown), []);

    let mut story = in_call();
    story.lost();
    let actions = story.drive(Core::shutdown);
    check(&actions, EndReason::Shutdown, &farewells(EndReason::Shutdown), 1001, &[]);
    assert_eq!(actions.last(), Some(&Action::Close(Reason::Left)));
    assert!(story.core.is_over());

    let mut story = Story::online();
    story.device(HELLO);
    story.device(LISTEN);
    story.packet(Packet::Disconnect);
    let actions = story.drive(Core::shutdown);
    check(&actions, EndReason::Shutdown, &[], 1001, &[]);
    assert!(!actions.iter().any(|action| matches!(action, Action::Close(_))), "closed before");

    let mut story = Story::online();
    story.device(HELLO);
    let actions = story.drive(Core::shutdown);
    assert_eq!((told(&actions).len(), told(&actions)[2]), (3, r#"{"type":"goodbye","session_id":"own-1"}"#));
}

#[test]
fn text_that_waits_is_delivered_before_the_goodbye() {
    let mut story = Story::in_call();
    story.server(TTS_START);
    story.down(&headed(1, b"\x08a")).unwrap();
    story.server(TTS_STOP);
    let actions = story.gone(Gone::Closed(Some(1000)));
    assert_eq!(told(&actions), [TTS_START, TTS_STOP, GOODBYE]);
    assert_eq!(summary(&actions).facts.dropped, 1);
}

#[test]
fn a_message_without_a_call_is_answered_with_goodbye_but_not_every_one() {
    let mut story = Story::online();
    assert_eq!(story.device(r#"{"type":"listen"}"#), [publish(r#"{"type":"goodbye"}"#)]);
    assert_eq!(story.device(r#"{"type":"listen","session_id":"x"}"#), [goodbye("x")]);
    assert_eq!(story.device(r#"{"type":"listen","session_id":null}"#), [publish(r#"{"type":"goodbye"}"#)]);
    story.call();
    story.device(r#"{"type":"goodbye"}"#);
    assert_eq!(story.device(r#"{"type":"listen"}"#), [goodbye("s1")], "the last one given");
    assert_eq!(story.device(r#"{"type":"listen","session_id":"x"}"#), [goodbye("x")]);
    assert_eq!(story.device(r#"{"type":"goodbye","session_id":"s1"}"#), []);
    assert_eq!(story.device(r#"{"type":"mcp","payload":{"id":1,"result":{}}}"#), []);
    // A call that never came about gave no id.
    story.device(HELLO);
    story.device(r#"{"type":"goodbye"}"#);
    assert_eq!(story.device(r#"{"type":"listen"}"#), [goodbye("s1")]);
}

#[test]
fn the_summary_tells_the_call() {
    let mut story = Story::online();
    story.call();
    story.wait(500);
    story.up(1, b"\x08one").unwrap();
    story.up(3, b"\x08three").unwrap();
    story.down(&headed(1, b"\x08four5")).unwrap();
    story.wait(11_845);
    let actions = story.device(r#"{"type":"goodbye"}"#);
    let facts =
        Facts { up_packets: 2, up_bytes: 10, down_packets: 1, down_bytes: 6, lost: 1, ..Facts::default() };
    let expected = Summary {
        session_id: "s1".into(),
        reason: EndReason::DeviceGoodbye,
        duration: Duration::from_millis(12_345),
        answered: true,
        state: CallState::Live,
        server: Some(server(A)),
        ssrc: Some(0x1001),
        facts,
    };
    assert_eq!(actions.last(), Some(&Action::Ended(Box::new(expected))));
}

#[test]
fn a_draining_gateway_lets_a_device_go_at_its_moment_or_after_its_call() {
    let close = || Action::Close(Reason::Draining);
    let drain = |story: &mut Story, ms| {
        let leave_at = story.now + Duration::from_millis(ms);
        story.drive(|core, cx| core.drain(leave_at, cx))
    };

    let mut story = Story::new();
    assert_eq!(drain(&mut story, 1000), [close()], "not let in yet");

    let mut story = Story::online();
    assert_eq!(drain(&mut story, 1000), []);
    assert_eq!(story.watch(5000), [(1000, close())]);
    assert!(story.core.is_over());

    // A call keeps the device, however long it takes.
    let mut story = in_call();
    story.config.websocket.ping_interval = Duration::ZERO;
    assert_eq!(drain(&mut story, 1000), []);
    assert_eq!(story.watch(20_000), []);
    let actions = story.device(r#"{"type":"goodbye"}"#);
    assert!(summary(&actions).reason == EndReason::DeviceGoodbye && !actions.contains(&close()));
    assert!(story.core.deadline().is_some_and(|at| at <= story.now), "the alarm rings at once");
    assert_eq!(story.drive(Core::timeout), [close()]);

    // A call that begins before the moment is served, and one hello may follow another.
    let mut story = Story::online();
    drain(&mut story, 1000);
    story.call();
    story.call();
    assert!(!story.wait(2000).contains(&close()));
    assert!(story.core.has_call());

    // The end of such a call is the device's moment.
    let mut story = Story::online();
    drain(&mut story, 1000);
    story.call();
    assert!(!story.wait(2000).contains(&close()));
    story.device(r#"{"type":"goodbye"}"#);
    assert_eq!(story.drive(Core::timeout), [close()]);
}

#[test]
fn a_draining_gateway_keeps_no_call_for_a_device_that_is_lost() {
    for lost_before in [true, false] {
        let mut story = in_call();
        let lost = |story: &mut Story| story.drive(Core::connection_lost);
        let leave_at = story.now + Duration::from_secs(1);
        let drain = |story: &mut Story| story.drive(|core, cx| core.drain(leave_at, cx));
        let mut actions = if lost_before { lost(&mut story) } else { drain(&mut story) };
        assert!(!actions.iter().any(|action| matches!(action, Action::Ended(_))));
        actions = if lost_before { drain(&mut story) } else { lost(&mut story) };
        assert_eq!(summary(&actions).reason, EndReason::DeviceLost);
        assert!(story.core.is_over());
    }
}

#[test]
fn a_servers_goodbye_is_forwarded_with_the_session_that_the_device_knows() {
    let theirs = |id: &str| format!(r#"{{"type":"goodbye","session_id":"{id}","why":"theirs"}}"#);
    for (sent, expected) in [
        (theirs("s1"), theirs("s1")),
        (r#"{"type":"goodbye"}"#.to_owned(), r#"{"session_id":"s1","type":"goodbye"}"#.to_owned()),
        (theirs("another"), theirs("s1")),
    ] {
        let mut story = Story::talking();
        assert_eq!(told(&story.server(&sent)), [expected], "{sent}");
    }
}

#[test]
fn operators_see_how_far_a_call_is() {
    let mut story = Story::online();
    let state = |story: &Story| story.core.call().map(|call| call.state);
    assert_eq!(state(&story), None);
    let mut seen = Vec::new();
    let mut see = |story: &Story| seen.push(state(story).unwrap().label());
    story.device(HELLO);
    see(&story);
    story.open();
    see(&story);
    story.server(SERVER_HELLO);
    see(&story);
    story.gone(failed("live"));
    see(&story);
    story.wait(250);
    see(&story);
    story.open();
    see(&story);
    story.server(SERVER_HELLO);
    story.drive(Core::ring);
    see(&story);
    story.drive(Core::bridge);
    see(&story);
    let expected =
        ["dialing", "greeting", "live", "redialing", "redialing", "redialing", "ringing", "bridged"];
    assert_eq!(seen, expected);
    assert_eq!(
        CallState::ALL.map(CallState::label),
        ["dialing", "greeting", "live", "redialing", "ringing", "bridged"]
    );
}

#[test]
fn a_device_that_waits_for_its_answer_is_told_why_there_is_none() {
    for (end, status, why) in [
        (
            Core::shutdown as fn(&mut Core, &mut Cx<'_>),
            "网关重启 / Restart",
            "网关正在重启，请稍后再试 / The gateway restarts, try again later",
        ),
        (
            |core, cx| assert!(core.operator_hangs_up(cx)),
            "通话结束 / Call ended",
            "通话无法继续 / The call cannot go on",
        ),
    ] {
        let mut story = Story::online();
        story.device(HELLO);
        let actions = story.drive(end);
        assert_eq!(told(&actions)[0], message::alert(Some("own-1"), status, why, "sad"));
    }
}

#[test]
fn an_operators_message_waits_for_a_device_that_is_away() {
    let mut story = Story::talking();
    assert_eq!(story.core.online_since(), Some(story.start));
    let deliver = |story: &mut Story| {
        let mut delivery = None;
        let out = story.drive(|core, cx| delivery = Some(core.message(r#"{"type":"alert"}"#, cx)));
        (delivery.unwrap(), told(&out).join(""))
    };
    let text = r#"{"session_id":"s1","type":"alert"}"#;
    assert_eq!(deliver(&mut story), (Delivery::Sent, text.to_owned()));
    story.lost();
    assert_eq!(deliver(&mut story), (Delivery::Queued, String::new()));
    assert!(told(&story.come_back("192.0.2.7")).contains(&text));
}

#[test]
fn an_error_of_null_is_none() {
    let mut story = Story::online();
    let asked = story.drive(|core, cx| core.command(7, "x", "{}", cx));
    let request: serde_json::Value = serde_json::from_str(told(&asked)[0]).unwrap();
    let id = &request["payload"]["id"];
    let answer =
        format!(r#"{{"type":"mcp","payload":{{"jsonrpc":"2.0","id":{id},"error":null,"result":5}}}}"#);
    assert_eq!(story.device(&answer), [Action::Answer { ticket: 7, result: Ok("5".into()) }]);
}
