//! Who is still there: pings, idle calls, and devices that are never heard.

use super::*;

/// Ignores keep alive: the device pings all the time.
fn wait(story: &mut Story, seconds: u64) -> Vec<Action> {
    let mut out = Vec::new();
    for _ in 0..seconds {
        story.core.heard(story.now);
        out.extend(story.wait(1_000));
    }
    out
}

#[test]
fn servers_are_pinged_and_a_silent_one_is_a_failed_one() {
    let mut story = Story::talking();
    assert_eq!(wait(&mut story, 19), []);
    assert_eq!(wait(&mut story, 1), [Action::Ping]);
    story.core.backend_alive(story.now + Duration::from_millis(1));
    assert_eq!(wait(&mut story, 20), [Action::Ping], "a pong");
    assert_eq!(wait(&mut story, 20), [Action::Ping]);
    let actions = wait(&mut story, 20);
    let failure = Failure { stage: "live", why: "no pong in 20 s".to_owned() };
    assert_eq!(actions[..2], [Action::Ping, Action::Count(Counter::DialFailed("live"))]);
    let Some(Action::Note(Note::Redialling { failure: found, .. })) = actions.last() else {
        panic!("{actions:?}")
    };
    assert_eq!((found, story.ms()), (&failure, 80_000));
}

#[test]
fn anything_a_server_sends_is_a_sign_of_life() {
    let mut story = Story::talking();
    for _ in 0..100 {
        wait(&mut story, 19);
        story.down(&headed(1, b"\x08a")).unwrap();
        wait(&mut story, 19);
        story.server("not even JSON");
    }
    assert!(story.core.has_call());
}

#[test]
fn what_came_before_the_ping_is_no_answer_to_it() {
    let mut story = Story::talking();
    wait(&mut story, 20);
    story.server(TTS_STOP);
    story.core.backend_alive(story.now);
    let failed = |actions: &[Action]| actions.contains(&Action::Count(Counter::DialFailed("live")));
    assert!(failed(&wait(&mut story, 20)));
}

#[test]
fn pings_can_be_turned_off() {
    let mut story = Story::online();
    story.config.websocket.ping_interval = Duration::ZERO;
    story.call();
    assert_eq!(wait(&mut story, 299), []);
}

#[test]
fn a_call_without_audio_and_text_ends() {
    let mut story = Story::online();
    story.config.websocket.ping_interval = Duration::ZERO;
    story.call();
    story.up(1, b"\x08x").unwrap();
    let activities: [fn(&mut Story); 6] = [
        |story| drop(story.device(LISTEN)),
        |story| drop(story.server(TTS_STOP)),
        |story| drop(story.down(&headed(1, b"\x08a"))),
        |story| drop(story.up(2, b"\x08x")),
        |story| drop(story.server(r#"{"type":"mcp","payload":{}}"#)),
        |story| drop(story.device(r#"{"type":"mcp","payload":{}}"#)),
    ];
    for activity in activities {
        assert_eq!(wait(&mut story, 299), []);
        activity(&mut story);
    }
    // Neither bytes of the device nor a pong is audio or text.
    assert_eq!(wait(&mut story, 299), []);
    story.core.backend_alive(story.now);
    assert_eq!(story.up(2, b"\x08x"), Err(Discard::Duplicate));
    let actions = wait(&mut story, 1);
    assert_eq!(summary(&actions).reason, EndReason::Idle);
    assert_eq!(told(&actions), [r#"{"type":"goodbye","session_id":"s1"}"#]);
    assert_eq!(actions[0], farewell("s1", EndReason::Idle, story.ms()));
}

#[test]
fn a_changed_idle_limit_reaches_a_running_call() {
    let mut story = Story::online();
    story.config.websocket.ping_interval = Duration::ZERO;
    story.config.websocket.call_idle = Duration::ZERO;
    story.call();
    assert_eq!(wait(&mut story, 1_000), []);
    story.config.websocket.call_idle = Duration::from_secs(1_500);
    assert_eq!(story.drive(Core::timeout), [], "the shell wakes each session after a reload");
    assert_eq!(wait(&mut story, 499), []);
    story.config.websocket.call_idle = Duration::from_secs(5_000);
    assert_eq!(wait(&mut story, 3_500), [], "longer is longer");
    assert_eq!(summary(&wait(&mut story, 1)).reason, EndReason::Idle);
}

#[test]
fn a_device_that_listens_unheard_is_told_and_logged_once() {
    let mut story = Story::in_call();
    story.wait(1_000);
    story.device(LISTEN);
    assert_eq!(story.wait(2_999), []);
    let actions = story.wait(1);
    let note = Note::Unheard { after: Duration::from_secs(3), advertised: "10.0.0.9:8884".to_owned() };
    assert_eq!(actions[0], Action::Note(note));
    let alert = message::alert(
        Some("s1"),
        "没有声音 / No audio",
        "网关收不到设备的 UDP 音频，请检查防火墙和 UDP 端口 / The gateway receives no UDP audio: check firewall and UDP port",
        "sad",
    );
    assert_eq!(actions[1..], [publish(&alert)]);
    story.device(LISTEN);
    assert_eq!(story.wait(10_000), []);
}

#[test]
fn a_device_that_is_heard_or_does_not_listen_is_not() {
    let mut story = Story::in_call();
    assert_eq!(story.wait(10_000), []);
    story.device(LISTEN);
    story.up(1, b"\x08x").unwrap();
    assert_eq!(story.wait(5_000), []);

    let mut story = Story::in_call();
    story.device(r#"{"type":"listen","state":"detect"}"#);
    assert_eq!(story.wait(5_000), []);

    let mut story = Story::in_call();
    story.config.udp.first_packet_warn = Duration::ZERO;
    story.device(LISTEN);
    assert_eq!(story.wait(5_000), []);

    let mut story = Story::in_call();
    story.config.udp.first_packet_alert = false;
    story.device(LISTEN);
    assert_eq!(told(&story.wait(5_000)), [""; 0]);
}

#[test]
fn a_device_is_expected_to_be_heard_only_after_its_hello_reply() {
    let mut story = Story::online();
    story.device(HELLO);
    story.device(LISTEN);
    story.wait(2_500);
    story.open();
    story.wait(2_500);
    story.server(SERVER_HELLO);
    assert_eq!(story.wait(2_999), []);
    assert_eq!(told(&story.wait(1)).len(), 1);
}

#[test]
fn a_call_that_is_up_without_a_hello_is_idle_from_its_answer() {
    let mut story = Story::online();
    story.config.websocket.production = servers(&[A]);
    story.config.websocket.call_idle = Duration::from_secs(10);
    story.device(HELLO);
    story.open();
    story.wait(1_000);
    story.server(TTS_START);
    story.wait(12_999);
    assert!(story.core.has_call(), "answered at 4 s");
    assert_eq!(summary(&story.wait(1)).reason, EndReason::Idle);
}
